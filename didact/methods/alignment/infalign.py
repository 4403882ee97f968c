"""InfAlign: align a model for the way it will be decoded, by calibrating and transforming the reward (CTRL)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.evaluate import protocols, win_rates
from didact.evaluate.measures import Measure
from didact.infer import best_of, generate
from didact.infer.generate import SamplingConfig
from didact.learn import language, reward_functions
from didact.learn import rounds as loop
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.learn.rounds import Round
from didact.models import forward
from didact.models.model import Model
from didact.objectives import policy, rewards
from didact.objectives.rewards import Procedure
from didact.registry import method
from didact.types import Fit, Metric, Result, Reward, Text, UserError

PRESETS: dict[str, dict[str, object]] = {
    "calibrated": {"transform": "identity"},  # best for plain sampling
    "raw": {"transform": "identity", "calibration": "none"},  # what RLHF does today
    "worst": {"decoding": "won:4"},
    "optimum": {"transform": "fixed-point"},
}
SHOWN = 6
STEER = (0.85, 2.0)  # what a round may multiply beta by when a KL is aimed at; the distance follows slowly


class RoundData(NamedTuple):
    """A round's answers, several to a prompt, with their advantages and log-probs, `(prompts, samples)`."""

    items: list[ExampleGroup]
    advantage: Tensor
    old: Tensor
    facts: dict[str, float]


@method(
    "infalign",
    paper="InfAlign: Inference-aware language model alignment",
    year=2024,
    source="arXiv:2412.19792",
    gives=("models", "predict", "findings"),
    capabilities=("generate", "train"),
    presets=PRESETS,
)
def infalign(
    model: Model,
    prompts: Sequence[Text],
    *,
    evaluation: Sequence[Text] = (),
    reward: str | Reward = "",
    judge: str | Reward = "",
    decoding: str = "bon:4",
    transform: Literal["exp", "identity", "log", "fixed-point"] = "exp",
    t: float | None = None,
    calibration: Literal["prompt", "global", "none"] = "prompt",
    k: int = 100,
    beta: float = 0.1,
    kl: float | None = None,
    rounds: int = 20,
    samples: int = 4,
    ratio_clip: float = 0.2,
    draws: int = 40,
    max_new_tokens: int = 128,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=32, schedule="constant"),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Align a model that will be decoded by best-of-N, or that must hold against the worst of N answers.

    Only the reward r of KL-regularised reinforcement learning is replaced. Against k answers of the reference, the
    model as it came, to the same prompt:

        C(x, y) = share of them that is worse + 1/2 share that is equal          calibrate
        R = Phi(C),   Phi(u) = sign(t) exp(t u) / max                            transform
        max E_policy[R] - beta KL(policy || reference)                           RLOO, sampled in rounds

    C is in [0, 1] and does not change when a prompt's rewards are stretched or shifted. Phi rewards what inference
    keeps: t > 0 the best answers, t < 0 the absence of bad ones. The win rates that are told decode BOTH models by
    the procedure. What best-of-N gains is paid for in plain sampling, so those stand beside it. Compare transforms at
    one KL, not at one beta: their scales differ.

    Args:
        model: a causal or seq2seq model; it stays as it was, and is the reference.
        prompts: `text` is a prompt (`--map text=prompt` reads any file that has prompts).
        evaluation: prompts for the win rates, which no training saw.
        reward: `module:function` with `function(prompts, completions) -> numbers`, or the folder of a
            sequence-classification model; in Python also the function.
        judge: a reward held out for the win rates, in the same forms: answers are decoded by `reward`, and the judge
            says who wins. The training reward flatters them.
        decoding: what will be done at inference: sample, bon:N (best of N) or won:N (worst of N).
        transform: Phi: `exp`; `identity`, best for sampling; `log`; `fixed-point`, solved for beta and the decoding.
        t: exponent of `exp`; 2.5 N for the best and -2.5 N for the worst of N (the paper's 10 for N = 4), and 0, the
            identity, for sampling.
        calibration: against the answers to the same prompt; to all prompts (`global`, not the paper's); or `none`, the
            reward as it is, with transform `identity`.
        k: reference answers of a prompt; 10 N at least, for the best of them share one value of C.
        beta: weight of the KL, SUM over an answer's tokens.
        kl: aim at this KL, nats an answer: beta is steered from round to round.
        rounds: how often the policy is sampled.
        samples: answers of a prompt and round, 2 at least.
        ratio_clip: how far a round may move an answer's probability, as a share, before its gradient stops.
        draws: answers of each model to an evaluation prompt that the win rates are taken from.
        max_new_tokens: of an answer.
        fit: how to train one round, which is one epoch over its prompts; `rows` are prompts.
        hooks: called around every step.

    Returns:
        The model; `predict(prompts)` decodes it by the procedure; `metrics` are win rates over the reference, sampled
        and decoded, and the KL; `findings["rounds"]`: reward, C, KL and beta of each.

    Raises:
        UserError: an option is out of range; no reward, or one that raises or gives NaN; the loss became NaN.
    """
    to = rewards.procedure(decoding)
    if (
        min(k, rounds, draws, max_new_tokens) < 1
        or samples < 2
        or beta <= 0
        or ratio_clip <= 0
        or (kl is not None and kl <= 0)
    ):
        raise UserError(
            "infalign needs k, rounds, draws and max_new_tokens of 1 or more, samples of 2 or more, and beta, "
            "ratio_clip and kl above 0"
        )
    if transform == "fixed-point" and (kl is not None or calibration != "prompt"):
        raise UserError("the fixed-point transform is solved for one beta and calibrated rewards: leave kl and "
                        "calibration as they are")  # fmt: skip
    if calibration == "none" and transform != "identity":
        raise UserError(f"transform {transform} is of calibrated rewards: calibration none takes --transform identity "
                        "(--preset raw)")  # fmt: skip
    score = reward_functions.reward_of(reward, "reward")
    judged_by = reward_functions.reward_of(judge, "judge") if judge else None
    texts = [p.text for p in prompts]
    if not texts:
        raise UserError("prompts: no records")
    how = SamplingConfig(max_new_tokens=max_new_tokens, temperature=1.0)
    ids = [_prompt(model, text, max_new_tokens) for text in texts]
    exponent = rewards.recommended(to) if t is None else t
    solved = rewards.fixed_point(to, beta) if transform == "fixed-point" else None
    state: dict[str, Any] = {"beta": beta}

    def rate(now: Round, name: str, n: int, apart: int = 0) -> tuple[list[list[Any]], np.ndarray]:
        """Answers to all prompts and their rewards, `(prompts, n)`; both are kept in the round's folder."""
        here = Round(now.number, now.model, now.fit.replace(seed=now.fit.seed + apart), now.folder)
        made = here.samples(ids, n, how, name)

        def told(start: int, stop: int) -> list[Any]:
            asked = [x for x in texts[start:stop] for _ in range(n)]
            flat = score(asked, [c.text for row in made[start:stop] for c in row])
            return [list(flat[i : i + n]) for i in range(0, len(flat), n)]

        return made, np.array(now.chunks(f"{name}-rewards", len(ids), told), dtype=float)

    def collect(now: Round) -> RoundData:
        if now.number == 0 and calibration != "none":
            state["reference"] = rate(now, "reference", k, apart=1)[1]
        made, raw = rate(now, "samples", samples)
        c = _calibrated(raw, state.get("reference"), calibration)
        if solved is not None:
            phi = np.interp(c, rewards.grid(), solved)
        else:
            phi = rewards.transform(c, transform, exponent, floor=0.5 / k)
        items: list[ExampleGroup] = [
            tuple(TokenizedExample(p, c.tokens) for c in row) for p, row in zip(ids, made, strict=True)
        ]
        old = torch.tensor([[c.logp for c in row] for row in made], dtype=torch.float64)
        moved = old - _logp(model, items)
        advantage = policy.leave_one_out(policy.penalised(torch.tensor(phi), old, old - moved, state["beta"]))
        length = float(np.mean([len(x.tokens) for row in made for x in row]))
        facts = {"reward": raw.mean(), "calibrated": c.mean(), "kl": float(moved.mean()), "length": length}
        facts = {name: float(value) for name, value in facts.items()} | {"beta": state["beta"]}
        if kl is not None and now.number:  # the start has no distance
            state["beta"] *= float(np.clip(facts["kl"] / kl, *STEER))
        return RoundData(items, advantage, old, facts)

    def train(now: Round, data: RoundData) -> TrainResult:
        advantage, old = (x.to(model.device, torch.float32) for x in (data.advantage, data.old))

        def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
            logp, _ = language.sequence_logp(student, micro)
            losses = policy.clipped(logp, old[micro.index].to(logp), advantage[micro.index].to(logp), ratio_clip)
            moved = (logp.detach() - old[micro.index].to(logp)).abs()
            return {
                "policy": Term(losses.mean(1).sum(), "prompts.rows"),
                "moved": Term(moved.mean(1).sum(), "prompts.rows", 0.0),
            }

        streams = {"prompts": data.items}
        return language.train(now.model, streams, terms, now.fit, hooks=[loop.NoDropout(), *hooks], name="train")

    chosen: dict[str, Any] = {
        "decoding": decoding, "transform": transform, "t": exponent, "calibration": calibration, "k": k, "beta": beta,
        "kl": kl, "samples": samples, "ratio_clip": ratio_clip, "max_new_tokens": max_new_tokens,
        "reward": reward if isinstance(reward, str) else getattr(reward, "__qualname__", "a function"),
        "data": hashlib.sha256(repr(ids).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(model, rounds, collect, train, fit, name="infalign", identity=chosen, hooks=hooks)

    def predict(asked: Sequence[str], worst: bool = to.n < 0) -> list[str]:
        """Answers after the procedure: the best (worst) of N by the reward."""
        return _picked(rounds_result.model, asked, to, score, how, worst)

    told = [p.text for p in evaluation] or texts
    shown = told[:SHOWN]
    pairs = zip(shown, _picked(model, shown, to, score, how, to.n < 0), predict(shown), strict=True)
    return Result(
        models={"model": rounds_result.model},
        predict=predict,
        findings={"rounds": [m.facts for m in rounds_result.data], "t": exponent},
        metrics=_measured(rounds_result.model, model, told, score, judged_by, to, draws, how),
        samples=[{"part": decoding, "prompt": p, "before": b, "after": a} for p, b, a in pairs],
        history=rounds_result.history,
        cost=rounds_result.cost,
        warnings=_warnings(to, k, calibration, bool(evaluation), bool(judge)),
    )


def _prompt(model: Model, text: str, new: int) -> tuple[int, ...]:
    """A prompt's tokens as sampling reads them: cut where an answer needs the room."""
    ids = tuple(encode.prompt_ids(model.tokenizer, text, model.kind))
    return loop.as_sampled(TokenizedExample(ids, ()), model, new).prompt


def _logp(model: Model, items: Sequence[ExampleGroup]) -> Tensor:
    """Log-probs of answers, SUM over tokens, `(prompts, n)`."""
    return forward.row_logp(model, [row for item in items for row in item])[0].view(len(items), -1)


def _calibrated(raw: np.ndarray, reference: np.ndarray | None, how: str) -> np.ndarray:
    """C of answers, `(prompts, n)`, against the reference's rewards `(prompts, k)`; those themselves where none are."""
    if reference is None:
        return raw
    if how == "global":
        return rewards.calibrate(raw.ravel(), reference.ravel()).reshape(raw.shape)
    return rewards.calibrate(raw, reference)


def _picked(
    model: Model, asked: Sequence[str], to: Procedure, score: Reward, how: SamplingConfig, worst: bool
) -> list[str]:
    return [p.text for p in best_of.best_of(model, asked, abs(to.n), score, worst, how)]


def _measured(
    taught: Model, start: Model, asked: Sequence[str], score: Reward, judge: Reward | None, to: Procedure, draws: int,
    how: SamplingConfig,
) -> dict[str, Metric]:  # fmt: skip
    """Win rates over the reference by fresh draws of both, plain and decoded, and the KL from the policy's own."""
    found, judged, moved = [], [], []
    for model, seed in ((taught, 1), (start, 2)):
        made = generate.completions(model, asked, draws, SamplingConfig(**{**vars(how), "seed": seed}))
        flat = [p for p in asked for _ in range(draws)], [c.text for row in made for c in row]
        found.append(np.array(score(*flat), dtype=float).reshape(len(asked), draws))
        judged.append(np.array(judge(*flat), dtype=float).reshape(len(asked), draws) if judge else found[-1])
        if model is taught:
            ids = [_prompt(model, p, how.max_new_tokens) for p in asked]
            items: list[ExampleGroup] = [
                tuple(TokenizedExample(p, c.tokens) for c in row) for p, row in zip(ids, made, strict=True)
            ]
            moved = (_logp(taught, items) - _logp(start, items)).mean(1).tolist()
    names = {"win_rate": "sample", **({_named(to): to.name} if to.n != 1 else {})}
    out: dict[str, Measure] = {}
    verdicts = list(zip(*judged, strict=True))
    for name, procedure in names.items():
        rates = win_rates.from_draws(list(found[0]), list(found[1]), rewards.procedure(procedure), verdicts)
        help = "answers better than the reference's, both decoded alike; .5 is even"
        out[name] = protocols.mean_measure(rates, "higher", help)
    out["kl"] = protocols.mean_measure(moved, "", "distance to the reference", "nats")
    before = {name: Measure(0.0 if name == "kl" else 0.5, len(asked)) for name in out}
    return protocols.compare(before, out)


def _named(to: Procedure) -> str:
    return f"{'best' if to.n > 0 else 'worst'}_of_{abs(to.n)}"


def _warnings(to: Procedure, k: int, calibration: str, apart: bool, judged: bool) -> list[str]:
    out = []
    if calibration != "none" and k < 10 * abs(to.n):
        out.append(f"k = {k}: take {10 * abs(to.n)} reference answers or more, or the best ones cannot be told apart")
    if not judged:
        out.append("win rates are by the reward that was trained on, which flatters them: name a --judge")
    if not apart:
        out.append("win rates are on the prompts that were trained on: give --evaluation")
    return out

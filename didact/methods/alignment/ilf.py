"""Imitation learning from language feedback: learn the answers that do what people said was wrong with one's own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from didact.data import encode
from didact.evaluate import collapse, judges, protocols
from didact.evaluate.measures import Measure
from didact.infer import best_of, functions, generate, refine, selectors
from didact.learn import language, refining, reward_functions
from didact.learn import rounds as loop
from didact.learn import yesno as reward_models
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.learn.refining import Options, Selected
from didact.learn.rounds import Round
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Check, Critic, Critique, Fit, Metric, Preference, Result, Reward, Savable, UserError

PAPER: dict[str, Any] = {
    "paper": "Training Language Models with Language Feedback at Scale",
    "year": 2023,
    "source": "arXiv:2303.16755",
}
PRESETS: dict[str, dict[str, object]] = {
    "random": {"selector": "random"},
    "no-feedback": {"refine_with": "nothing", "selector": "random"},
    "initial": {"target": "initial"},
    "gold": {"target": "gold"},
    "joint": {"target": "feedback+refinement"},
    "embedding": {"selector": "embedding"},
    "longest": {"selector": "length"},
    "logp": {"selector": "logp"},
    "logits": {"mean": "logit"},
    "continual": {"finetune_from": "previous", "window": "current"},
}
JOINT = "Feedback: {feedback}\nImproved: {refinement}"
LOOKED = 32  # prompts answered for the diagnostics
SHOWN = 6
FEWEST = 10  # pairs below which none is kept apart


@method("ilf", **PAPER, gives=("models", "records", "findings"), capabilities=("generate", "train"), protocol="answer",
        presets=PRESETS)  # fmt: skip
def ilf(
    model: Model,
    critiques: Sequence[Critique],
    preferences: Sequence[Preference] | None = None,
    *,
    rounds: int = 1,
    n: int = 5,
    selector: Literal["judge", "embedding", "reward", "random", "length", "logp"] = "judge",
    refiner: str | LM = "start",
    judge: str | LM = "start",
    feedback: str | Critic | None = None,
    reward: str | Reward | None = None,
    check: str | Check | None = None,
    mean: Literal["probability", "logit"] = "probability",
    threshold: float | None = None,
    refine_with: Literal["feedback", "nothing"] = "feedback",
    target: Literal["refinement", "feedback+refinement", "initial", "gold"] = "refinement",
    include_initial: bool = False,
    finetune_from: Literal["start", "previous"] = "start",
    window: Literal["all", "current"] = "all",
    prompt_weight: float = 0.0,
    best_of_n: int = 64,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    top_p: float = 0.95,
    tidy: Literal["summary", "strip"] = "summary",
    forbidden: Sequence[str] = (),
    refine_prompt: str = "",
    plain_prompt: str = "",
    feedback_prompt: str = "",
    questions: str | Sequence[str] = "",
    fit: Fit = Fit(lr=5e-5, epochs=1, rows=32, schedule="linear"),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Learn from what people say is wrong with the model's answers, a sentence each, and need no feedback afterwards.

    A round takes answers x0 to prompts c and feedback f on them, and

        refines   x1_i ~ p_refiner(. | c, x0, f),   i = 1 .. n
        selects   x1 = argmax_i s_i,   s_i = mean over wordings of P(yes) / (P(yes) + P(no))
        teaches   L = -mean over the label tokens of log p(x1 | c)

    s asks a language model whether x1_i does what f asks for (InstructRM). Round 0 has the records' own answers and
    feedback; in later ones the model as it then is answers, and `feedback` must say who judges that.
    Before anything is taught it is measured how often feedback is taken up, by what was selected, by a
    random refinement and by one made without seeing the feedback. A refiner that cannot follow feedback shows there,
    and a warning says so.

    With `preferences` a reward model is taught beside it, a language model that says yes or no to an answer, and
    `predict` draws `best_of_n` answers and gives the one it likes best.

    Args:
        model: a causal or seq2seq model; it stays as it was.
        critiques: prompts with an answer and what is wrong with it; `refinement` is needed by target gold alone.
        preferences: pairs of answers for the reward model, which selector `reward` then uses too.
        rounds: of refining and teaching; more than one needs `feedback`.
        n: refinements of every answer.
        selector: judge; cosine of feedback and refinement in hidden states; reward; random; the longest; log-prob
            under the refiner, mean over tokens.
        refiner: start, policy (the model as the round began), a folder, or a served model's address.
        judge: the same choice, for selector judge, embedding (its hidden states) and what is measured.
        feedback: who says what is wrong from round 1 on: module:function (prompts and answers to texts), start,
            policy, a folder, an address.
        reward: module:function, a sequence-classification folder, or the `model-reward` of an earlier run.
        check: module:function (answers, feedback, refinements) that knows whether feedback was taken up; the
            judge's word is measured where there is none.
        mean: of probabilities over the judge's wordings (the paper), or of logits.
        threshold: refinements with a lower score are not taught.
        refine_with: nothing leaves the feedback out, the paper's control.
        target: what is taught: the refinement; feedback and then the refinement; the initial answer (a control);
            the records' own refinements (gold).
        include_initial: the initial answer is a candidate too.
        finetune_from: every round teaches the start model, or goes on from the previous round's.
        window: a round teaches the refinements of all rounds so far, or its own.
        prompt_weight: of the loss on the prompt's tokens, also of the reward model.
        best_of_n: answers `predict` draws where there is a reward model or a reward.
        max_new_tokens: of an answer, a refinement, a feedback.
        temperature: at which they are drawn.
        top_p: nucleus they are drawn from.
        tidy: summary cuts refinements as the paper does (one line, whole sentences); strip keeps them whole.
        forbidden: a refinement with one of these strings is drawn again.
        refine_prompt: template of {prompt}, {completion} and {feedback}; our own where empty, as the next ones.
        plain_prompt: the same without feedback.
        feedback_prompt: template of {prompt} and {completion} for a model that gives feedback.
        questions: of the judge: a file of JSON lines, each with a `template` of {prompt}, {completion}, {feedback} and
            {refinement}, and `yes` and `no`, its answers; five of our own where empty.
        fit: how to teach in every round, and the reward model.
        hooks: called around every step.

    Returns:
        The model, and `reward` beside it where preferences were given; all critiques with the `refinement` taught
        (`extra`: round, score, candidates); `findings["rounds"]`: what was drawn, left out and taken up; and how often
        the reward model is right on every fifth pair, which it was not taught.

    Raises:
        UserError: an option is out of range or a part is missing; a user's function raises or gives nonsense; no
            refinement is left.
    """
    if rounds < 1 or n < 1 or max_new_tokens < 1 or best_of_n < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            "ilf needs rounds, n, best_of_n, max_new_tokens of 1 or more, temperature >= 0, top_p in (0, 1]"
        )
    if prompt_weight < 0 or (temperature == 0 and n > 1):
        raise UserError(f"prompt_weight = {prompt_weight}: must be 0 or more; temperature = 0 goes with n = 1 only")
    if not critiques:
        raise UserError("critiques: no records")
    if rounds > 1 and feedback is None and target != "gold":
        raise UserError(
            f"rounds = {rounds}: the records' feedback is on their own answers; --feedback says who judges new"
        )
    if selector == "reward" and reward is None and not preferences and target not in ("initial", "gold"):
        raise UserError("selector reward needs --reward (module:function or a folder), or --preferences")
    how = Options(
        n=n, selector=selector, mean=mean, threshold=threshold, with_feedback=refine_with == "feedback",
        include_initial=include_initial, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, tidy=tidy,
        forbidden=tuple(forbidden), refine_prompt=refine_prompt or refine.REFINE,
        plain_prompt=plain_prompt or refine.PLAIN, feedback_prompt=feedback_prompt or refine.CRITICISE,
        questions=selectors.questions_of(questions),
    )  # fmt: skip
    parts = refining.parts_of(model, how, refiner, judge, feedback, check)
    liked: Reward | None = reward_functions.reward_of(reward, "reward") if isinstance(reward, str) else None
    if reward is not None and not isinstance(reward, str):
        liked = functions.checked(reward)
    pairs, unseen = _apart(preferences or ())
    rewards = reward_models.train(model, pairs, fit, prompt_weight=prompt_weight) if pairs else None
    if liked is None and rewards is not None:
        liked = reward_functions.by_yesno(rewards.model)
    taught: list[list[tuple[str, str]]] = []

    def collect(now: Round) -> Selected:
        said = parts.criticised(now, [c.prompt for c in critiques]) if now.number and feedback else list(critiques)
        made = target in ("initial", "gold")
        found = Selected(_given(said, target), {"records": len(said)}) if made else parts.selected(now, said, liked)
        taught.append([_pair(r, target) for r in found.records])
        return found

    def train(now: Round, found: Selected) -> TrainResult:
        answers = [pair for one in (taught if window == "all" else taught[-1:]) for pair in one]
        rows = encode.rows(model.tokenizer, answers, model.kind, model.context, "refinements")
        items, loss = reward_models.weighted(rows, prompt_weight, "refinements", model)
        base = model if finetune_from == "start" else now.model
        return language.train(base, {"refinements": items}, loss, now.fit, hooks=hooks, name="train")

    chosen: dict[str, Any] = vars(how) | {
        "parts": [refining.name_of(p) for p in (refiner, judge, feedback, reward, check)], "target": target,
        "finetune_from": finetune_from, "window": window, "prompt_weight": prompt_weight,
        "data": hashlib.sha256(repr([list(critiques), list(preferences or ())]).encode()).hexdigest()[:16],
    }  # fmt: skip
    rounds_result = loop.run_rounds(model, rounds, collect, train, fit, name="ilf", identity=chosen, hooks=hooks)
    told = [{"round": i, **m.facts} for i, m in enumerate(rounds_result.data)]
    drawn = generate.SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature or 1.0, top_p=top_p, seed=fit.seed
    )
    looks = [_look(m, model, critiques, liked, drawn) for m in (model, rounds_result.model)]
    cost = rounds_result.cost
    if rewards is not None:
        cost.tokens, cost.flops = cost.tokens + rewards.cost.tokens, cost.flops + rewards.cost.flops
    cost.calls += parts.calls()
    models: dict[str, Savable] = {"model": rounds_result.model}
    if rewards is not None:
        models["reward"] = rewards.model

    def predict(prompts: Sequence[str]) -> list[str]:
        """The best of `best_of_n` answers by the reward."""
        return [p.text for p in best_of.best_of(rounds_result.model, prompts, best_of_n, liked, how=drawn)]

    return Result(
        models=models,
        predict=predict if liked is not None else None,
        records=[r for m in rounds_result.data for r in m.records],
        findings={"rounds": told} | _right(rewards, unseen or pairs, len(pairs)),
        metrics=protocols.compare(*looks) | _rate(told),
        history=rounds_result.history,
        samples=_samples(model, rounds_result.model, rounds_result.data[0].records, max_new_tokens),
        cost=cost,
        warnings=_warnings(told),
    )


def _apart(preferences: Sequence[Preference]) -> tuple[list[Preference], list[Preference]]:
    """Pairs the reward model is taught, and every fifth, on which it is tried; all are taught where there are few."""
    if len(preferences) < FEWEST:
        return list(preferences), []
    return [p for i, p in enumerate(preferences) if i % 5], list(preferences[::5])


def _right(rewards: TrainResult | None, pairs: Sequence[Preference], taught: int) -> dict[str, Any]:
    """How often the reward model prefers what people did; a tie is half."""
    if rewards is None:
        return {}
    prompts = [p.prompt for p in pairs]
    better = judges.by_reward(reward_functions.by_yesno(rewards.model))
    wins = better(prompts, [p.chosen for p in pairs], [p.rejected for p in pairs])
    return {"reward": {"accuracy": sum(wins) / len(wins), "pairs": len(pairs), "taught": taught}}


def _given(critiques: Sequence[Critique], target: str) -> list[Critique]:
    """Records whose refinement is their own answer, or the one people gave.

    Raises:
        UserError: a record has none.
    """
    if target == "initial":
        return [dataclasses.replace(c, refinement=c.completion) for c in critiques]
    for number, c in enumerate(critiques, 1):
        if not (c.refinement or "").strip():
            raise UserError(f"critiques: record {number}: field 'refinement' is missing; target gold teaches it")
    return list(critiques)


def _pair(record: Critique, target: str) -> tuple[str, str]:
    """The prompt, which shows no feedback, and what is taught after it."""
    refinement = record.refinement or ""
    joint = target == "feedback+refinement"
    return record.prompt, JOINT.format(feedback=record.feedback, refinement=refinement) if joint else refinement


def _look(
    model: Model, start: Model, critiques: Sequence[Critique], reward: Reward | None, how: generate.SamplingConfig
) -> dict[str, Measure]:
    """What shows a collapse, and what the reward says, on answers to some of the prompts."""
    prompts = list(dict.fromkeys(c.prompt for c in critiques))[:LOOKED]
    out = collapse.collapse(model, start, prompts, how.seed)
    if reward is not None:
        made = [m[0] for m in generate.sample(model, prompts, 1, how)]
        values = [float(x) for x in reward([str(p) for p in prompts], made)]
        out["reward"] = protocols.mean_measure(values, "higher", "of one sampled answer to the prompts taught")
    return out


def _rate(told: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Round 0's feedback incorporation: of what was selected, beside refinements made without the feedback."""
    rates = told[0].get("incorporated")
    if not rates:
        return {}
    text = f"refinements that take up the feedback, by the {told[0]['by']}; before: made without it"
    return {
        "feedback_incorporation_rate": Metric(
            before=rates["plain"], after=rates["selected"], n=told[0]["measured"], better="higher", help=text
        )
    }


def _samples(start: Model, model: Model, records: Sequence[Critique], room: int) -> list[dict[str, str]]:
    """Answers to some prompts before and after."""
    some = list(records)[:SHOWN]
    before, after = (generate.generate(m, [r.prompt for r in some], room) for m in (start, model))
    return [
        {"part": "critiques", "prompt": r.prompt, "wanted": r.refinement or "", "before": b, "after": a}
        for r, b, a in zip(some, before, after, strict=True)
    ]


def _warnings(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong in making the records, and whether the feedback was worth having."""
    out = []
    for facts in told:
        where = f"round {facts['round']}"
        counts = [
            (facts.get("without_feedback"), "records have no feedback"),
            (facts.get("empty"), "records got nothing but empty refinements"),
            (facts.get("below_threshold"), "records are below the threshold"),
            (facts.get("unclear"), "records on which the selector gave no verdict: their first refinement was taken"),
        ]
        out += [f"{where}: {count} {what}" for count, what in counts if count]
        rates = facts.get("incorporated")
        if facts.get("measured") == 0:
            out.append(
                f"{where}: not measured whether feedback is taken up: the judge shows no log-probs; give --check"
            )
        elif rates and rates["selected"] <= rates["plain"]:
            out.append(
                f"{where}: of what was selected {rates['selected']:.0%} take up the feedback, of refinements made "
                f"without it {rates['plain']:.0%}: this refiner cannot follow feedback; use a stronger one (--refiner)"
            )
    return out

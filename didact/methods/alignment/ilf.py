"""Imitation learning from language feedback (ILF): fine-tune on refinements that do what the feedback asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, NonNegative
from didact.data import encode
from didact.infer import best_of
from didact.infer.selectors import Selector
from didact.learn import language, reward_functions
from didact.learn import refining as feedback_rounds
from didact.learn import rounds as round_loop
from didact.learn import yesno as reward_models
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.learn.refining import RefiningConfig
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Check, Critic, Critique, Fit, Preference, Result, Reward, UserError

PRESETS: dict[str, dict[str, object]] = {
    "random": {"selector": "random"},
    "no-feedback": {"refine_with": "nothing", "selector": "random"},
    "initial": {"target": "initial"},
    "gold": {"target": "gold"},
    "joint": {"target": "feedback+refinement"},
    "embedding": {"selector": "embedding"},
    "longest": {"selector": "length"},
    "logp": {"selector": "logp"},
    "logits": {"refining.mean": "logit"},
    "continual": {"finetune_from": "previous", "window": "current"},
}


@method(
    "ilf",
    paper="Training Language Models with Language Feedback at Scale",
    year=2023,
    source="arXiv:2303.16755",
    gives=("models", "predict", "records", "findings"),
    capabilities=("generate", "train"),
    protocol=("answer", "reward", "collapse"),
    presets=PRESETS,
)
def ilf(
    model: Model,
    critiques: Sequence[Critique],
    preferences: Sequence[Preference] | None = None,
    *,
    rounds: Count = 1,
    n: Count = 5,
    selector: Selector = "judge",
    refine_with: Literal["feedback", "nothing"] = "feedback",
    refining: RefiningConfig = RefiningConfig(),
    refiner: str | LM = "start",
    judge: str | LM = "start",
    feedback: str | Critic | None = None,
    reward: str | Reward | None = None,
    check: str | Check | None = None,
    target: Literal["refinement", "feedback+refinement", "initial", "gold"] = "refinement",
    finetune_from: Literal["start", "previous"] = "start",
    window: Literal["all", "current"] = "all",
    prompt_weight: NonNegative = 0.0,
    best_of_n: Count = 64,
    fit: Fit = Fit(lr=5e-5, epochs=1, rows=32, schedule="linear"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Fine-tune a model on refinements of its answers that follow written feedback, one sentence on each answer.

    Each round takes answers x0 to prompts c with feedback f on them, and

        refines   x1_i ~ p_refiner(. | c, x0, f),   i = 1 .. n
        selects   x1 = argmax_i s_i,   s_i = mean over wordings of P(yes) / (P(yes) + P(no))
        trains    L = -mean over the label tokens of log p(x1 | c)

    s asks a language model whether x1_i incorporates f (InstructRM). Round 0 uses the answers and the feedback of the
    records; in later rounds the current model answers, and `feedback` names the critic of these answers. Before
    training it measures how often feedback is incorporated: by the selected refinement, by a random one, and by one
    written without seeing the feedback. A warning says if the refiner does not follow feedback.

    With `preferences` a reward model is trained too, a language model that says yes or no to an answer, and `predict`
    samples `best_of_n` answers and returns the one with the highest reward.

    Args:
        model: a causal or seq2seq model; left unchanged.
        critiques: prompts with an answer and feedback on it; only target gold needs their `refinement`.
        preferences: pairs of answers for the reward model, which selector `reward` then uses too.
        rounds: rounds of refining and training; more than one needs `feedback`.
        n: refinements per answer.
        selector: judge; embedding, cosine of feedback and refinement in hidden states; reward; random; length, the
            longest; logp, mean log-prob per token under the refiner.
        refine_with: nothing hides the feedback from the refiner, the paper's control.
        refining: how refinements are prompted for, sampled, scored and selected.
        refiner: start (the initial model), policy (the round's first model), a folder, or a served model's address.
        judge: the same choice, for selectors judge and embedding (its hidden states) and for the measurements.
        feedback: the critic from round 1 on: module:function (prompts and answers to texts), start, policy, a folder,
            an address.
        reward: module:function, a sequence-classification folder, or the `model-reward` of an earlier run.
        check: module:function (answers, feedback, refinements) that says whether feedback was incorporated; by default
            the judge says so.
        target: what is trained on: the refinement; feedback and then the refinement; the initial answer (a control);
            the records' own refinements (gold).
        finetune_from: train the initial model in every round, or continue from the previous round's.
        window: train on the refinements of all rounds so far, or on the current round's.
        prompt_weight: weight of the loss on the prompt's tokens, also for the reward model.
        best_of_n: answers `predict` samples if there is a reward model or a reward.
        fit: how to train in every round, and the reward model.
        hooks: called around every step.

    Returns:
        The model, and with preferences `reward`, the reward model; all critiques with the `refinement` trained on
        (`extra`: round, score, candidates); `findings["rounds"]`: records left out, rates of incorporated feedback; the
        reward model's accuracy on every fifth pair, which is held out.

    Raises:
        UserError: a part is missing; a user's function raises or returns invalid values; no refinement is left.
    """
    if refining.temperature == 0 and n > 1:
        raise UserError(f"refining.temperature = 0: {n} refinements would all be the same; it goes with n = 1 only")
    if rounds > 1 and feedback is None and target != "gold":
        raise UserError(
            f"rounds = {rounds}: the records' feedback is on their own answers; --feedback says who judges new"
        )
    if selector == "reward" and reward is None and not preferences and target not in ("initial", "gold"):
        raise UserError("selector reward needs --reward (module:function or a folder), or --preferences")
    parts = feedback_rounds.parts_of(
        model, refining, n, selector, refine_with == "feedback",
        refiner=refiner, judge=judge, feedback=feedback, check=check,
    )  # fmt: skip
    score = None if reward is None else reward_functions.reward_of(reward, "reward")
    rewards, accuracy = reward_models.trained(model, preferences or (), fit, prompt_weight)
    if score is None and rewards is not None:
        score = reward_functions.by_yesno(rewards.model)
    collected: list[list[tuple[str, str]]] = []

    def collect(now: Round) -> RoundData:
        prompts = [c.prompt for c in critiques]
        records = parts.criticised(now, prompts) if now.number and feedback else list(critiques)
        if target in ("initial", "gold"):
            data = RoundData([], {"records": len(records)}, feedback_rounds.reference_refinements(records, target))
        else:
            data = parts.selected(now, records, score)
        collected.append([feedback_rounds.pair(r, target) for r in data.records])
        return data

    def train(now: Round, data: RoundData) -> TrainResult:
        answers = [pair for pairs in (collected if window == "all" else collected[-1:]) for pair in pairs]
        rows = encode.rows(model.tokenizer, answers, model.kind, model.context, "refinements")
        items, loss = reward_models.weighted(rows, prompt_weight, "refinements", model)
        start = model if finetune_from == "start" else now.model
        return language.train(start, {"refinements": items}, loss, now.fit, hooks=hooks, name="train")

    outcome = round_loop.run_rounds(model, rounds, collect, train, fit, name="ilf", hooks=hooks)

    def predict(prompts: Sequence[str]) -> list[str]:
        """Return the best of `best_of_n` answers by the reward."""
        sampling = refining.sampling(fit.seed)
        return [p.text for p in best_of.best_of(outcome.model, prompts, best_of_n, score, how=sampling)]

    warnings = feedback_rounds.warnings([data.stats for data in outcome.data])
    result = outcome.result(predict=predict if score else None, warnings=warnings)
    if rewards is not None:
        result.models["reward"], result.cost = rewards.model, rewards.cost + result.cost
        result.findings["reward"] = accuracy
    result.cost.calls += parts.calls()
    return result

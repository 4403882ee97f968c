"""Context-aware preference modelling: a reward model that judges by the context it is given, or chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from didact.data import contexts, splits
from didact.evaluate import contexts as looks
from didact.evaluate import judges, protocols
from didact.evaluate.measures import Measure
from didact.infer import lm
from didact.learn import reward_functions, rewards
from didact.learn.fit import Hook
from didact.learn.rewards import Pair
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import LM, Fit, Preference, Result, UserError

Aggregate = Literal["mean", "logit", "vote"]

PRESETS: dict[str, dict[str, object]] = {
    "no-context": {"read": "none"},  # the same pairs, their contexts left out
    "context-free": {"read": "general"},  # only pairs without a context are taught
    "unpaired": {"paired": False},
    "lora": {"fit.lora": 16, "fit.lr": 1e-4},
}
PROPOSE = (
    "Two answers to the request below will be compared. In one line, say what they should be judged by.\n\n"
    "Request:\n{prompt}\n\nJudge by:"
)
PROPOSED = 32  # tokens


@method(
    "context-preference",
    paper="Improving Context-Aware Preference Modeling for Language Models",
    year=2024,
    source="arXiv:2407.14916",
    gives=("models", "predict", "findings"),
    presets=PRESETS,
)
def context_preference(
    model: Model,
    preferences: Sequence[Preference],
    *,
    read: Literal["context", "none", "general"] = "context",
    paired: bool = True,
    template: str = contexts.TEMPLATE,
    negated: str = contexts.NEGATED,
    reward_model: str = "",
    choices: Sequence[str] = (),
    propose: int = 0,
    aggregate: Aggregate = "mean",
    judge: bool = False,
    unseen: float = 0.1,
    fit: Fit = Fit(lr=1e-5, epochs=1, rows=64, warmup=0.1),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a reward model r(x, z, y) to judge answers y by a context z: a criterion, a scenario, somebody's profile.

        L = -mean log sigmoid(r(x, z, y_w) - r(x, z, y_l)),        P(y1 > y2 | x) = sum_z p(z|x) P(y1 > y2 | x, z)

    A context stands in the prompt, behind the request. Pairs without one are taught beside, lest judging without
    contexts be forgotten. The two records of a reversal pair, which two contexts put in opposite orders, are read in
    one step: what ignores the context then cancels in the gradient. Where no context is known, `predict` judges under
    several and puts the verdicts together.

    Files as of RPR (`response_a, response_b, criteria_x, criteria_y, scenario_x, scenario_y`) are read as reversal
    pairs. All data are split by prompt. The model is a transformers sequence-classification folder of one output, which
    `didact compare --judge` takes.

    Args:
        model: a causal model with such a class in transformers; its body is taught under a new head.
        preferences: pairs, with a `context` or without.
        read: `context`; `none` leaves contexts out of the same pairs; `general` teaches only pairs without one.
        paired: read both records of a reversal pair in one step; `fit.rows` counts such a pair once.
        template: how `{context}` is told beside the `{prompt}`.
        negated: how the opposite of a `{context}` is asked for, where it is measured whether judges obey that too;
            empty leaves it out.
        reward_model: a reward model's folder to go on from, in place of `model` under a new head.
        choices: contexts to judge pairs under that have none.
        propose: how many contexts `model` proposes to each such pair's prompt, where there are no choices.
        aggregate: how verdicts become one: the `mean` probability, the mean `logit`, or the `vote`.
        judge: also ask `model` itself which answer is better, A or B, both orders averaged.
        unseen: share of the prompts not taught, on which everything is measured.
        fit: how to train; `fit.rows` groups a step, of reversal pairs, of single pairs and of pairs without context
            each.
        hooks: called around every step.

    Returns:
        The reward model; `predict(prompts, first, second, contexts=None)`, the probability that the first answer is
        better. Metrics before and after. `findings`: how complete and how well split the reversal pairs are; all
        judges side by side; pairs without context under chosen or proposed ones, by every aggregation.

    Raises:
        UserError: an option is out of range; the model has no such class; nothing is left to teach.
    """
    if not 0 <= unseen < 1 or propose < 0:
        raise UserError("context-preference needs unseen in [0, 1) and propose of 0 or more")
    contexts.checked(template)
    if negated:
        contexts.checked(negated, ("context",), "negated")
    start = reward_functions.opened(reward_model) if reward_model else rewards.headed(model, fit.seed)
    out, taught_on = splits.by_prompt(preferences, unseen, fit.seed)
    streams = _streams(taught_on, read, paired, template)
    if not streams:
        raise UserError(f"preferences: no pair to teach with --read {read}")
    how = {"read": read, "paired": paired, "template": template}
    done = rewards.train(start, streams, fit, hooks=hooks, identity=how)
    score = _judging(done.model)
    metrics, findings = {}, {"data": _told(taught_on, out), "taught": {k: len(v) for k, v in streams.items()}}
    if out:
        before, after = (looks.look(_judging(m), out, template, negated) for m in (start, done.model))
        metrics = protocols.compare(before, after)
        findings["judges"] = {"start": _values(before), "taught": _values(after)}
        if judge:
            findings["judges"]["asked"] = _values(looks.look(_asked(model), out, template, negated))
        plain = [p for p in out if not p.context]
        if plain and (choices or propose):
            mine = [list(choices)] * len(plain) if choices else proposed(lm.of(model), plain, propose, fit.seed)
            z = looks.over(score, plain, mine, template)
            chosen = {
                way: float(looks.right(preference.aggregated(z, way) - 0.5).mean()) for way in ("mean", "logit", "vote")
            }
            findings["two_steps"] = {"accuracy": chosen, "contexts": mine[0], "pairs": len(plain)}
    return Result(
        models={"model": done.model},
        predict=_predicting(score, template, choices, aggregate),
        findings=findings,
        metrics=metrics,
        history=done.history,
        cost=done.cost,
        warnings=_warnings(findings["data"], unseen),
    )


def _streams(preferences: Sequence[Preference], read: str, paired: bool, template: str) -> dict[str, list[list[Pair]]]:
    """Groups of pairs by stream: both of a reversal pair, pairs with a context, pairs without."""
    told = [p for p in preferences if p.context] if read != "general" else []

    def pair(p: Preference) -> Pair:
        return (contexts.asked(p.prompt, p.context if read == "context" else None, template), p.chosen, p.rejected)

    both, single = contexts.reversals(told) if paired else ([], list(range(len(told))))
    streams = {
        "reversals": [[pair(told[i]), pair(told[j])] for i, j in both],
        "pairs": [[pair(told[i])] for i in single],
        "general": [[pair(p)] for p in preferences if not p.context],
    }
    return {name: groups for name, groups in streams.items() if groups}


def _judging(model: Model) -> looks.Margin:
    return looks.by_reward(lambda prompts, completions: rewards.score(model, prompts, completions))


def _asked(model: Model | LM) -> looks.Margin:
    """The model as a judge that is asked for A or B."""

    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [p - 0.5 for p in judges.letters(lm.of(model), prompts, first, second)]

    return margin


def proposed(model: LM, preferences: Sequence[Preference], count: int, seed: int) -> list[list[str]]:
    """Contexts a model proposes to every prompt, sampled; a reply without words is an empty context."""
    asked = [PROPOSE.format(prompt=p.prompt) for p in preferences]
    made = model.generate(asked, PROPOSED, temperature=1.0, stop=("\n",), seed=seed, n=count)
    return [[text.strip() for text in mine] for mine in made]


def _predicting(
    score: looks.Margin, template: str, choices: Sequence[str], aggregate: Aggregate
) -> Callable[..., list[float]]:
    """Two steps: contexts for every prompt, given or chosen; then the verdicts under them as one probability."""

    def predict(
        prompts: Sequence[str], first: Sequence[str], second: Sequence[str],
        contexts: Sequence[Sequence[str]] | None = None, how: Aggregate = aggregate,
    ) -> list[float]:  # fmt: skip
        mine = contexts if contexts is not None else [list(choices) or [""]] * len(prompts)
        out = []
        for prompt, a, b, names in zip(prompts, first, second, mine, strict=True):
            pair = [Preference(prompt=prompt, chosen=a, rejected=b)]
            out.append(float(preference.aggregated(looks.over(score, pair, [names or [""]], template), how)))
        return out

    return predict


def _told(train: Sequence[Preference], out: Sequence[Preference]) -> dict[str, Any]:
    """What the data are: how many records have a context, how many of these a reversed partner, what leaks."""
    told = [p for p in [*train, *out] if p.context]
    pairs, _ = contexts.reversals(told)
    return {
        "records": len(train) + len(out),
        "with_context": len(told),
        "in_reversal_pairs": 2 * len(pairs) / max(1, len(told)),
        "kept_apart": len(out),
        "leaked": contexts.leaked(train, out),
    }


def _values(measures: dict[str, Measure]) -> dict[str, float]:
    return {name: m.value for name, m in measures.items()}


def _warnings(data: dict[str, Any], unseen: float) -> list[str]:
    out = []
    if unseen and not data["kept_apart"]:
        out.append("nothing was measured: there are too few prompts to keep a share of them apart (--unseen)")
    if data["with_context"] > 0 and data["in_reversal_pairs"] < 1:
        out.append(
            f"{1 - data['in_reversal_pairs']:.0%} of the pairs with a context have no reversed partner: "
            "on these a judge may be right without reading the context"
        )
    if data["leaked"]:
        out.append(
            f"{data['leaked']} of the pairs kept apart have both their answers in training, under another prompt"
        )
    return out

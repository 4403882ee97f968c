"""Whether judgements follow the context in the prompt: by a reward model's rewards, else by likelihood."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from didact.data import contexts
from didact.evaluate import context_judges
from didact.evaluate.context_judges import Margin
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring, prefer
from didact.learn import rewards
from didact.models.model import Model
from didact.objectives import preference
from didact.types import Preference


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """See `context_judges.accuracies`; and, if the method has `choices` of contexts, `two_steps`.

    That is the share of pairs without a context that are right by the `aggregate` of judgements under all choices.
    """
    pairs, options = scoring.of("preference"), scoring.options
    template = options.get("template", contexts.TEMPLATE)
    judge = context_judges.by_reward(functools.partial(rewards.score, model))
    if model.kind != "encoder":
        judge = _by_likelihood(model)
    out = context_judges.accuracies(judge, pairs, template, contexts.NEGATED)
    plain = [p for p in pairs if not p.context]
    if plain and (choices := options.get("choices")):
        z = context_judges.over(judge, plain, [list(choices)] * len(plain), template)
        verdict = preference.aggregated(z, options.get("aggregate", "mean")) - 0.5
        text = f"pairs without a context right, judged by {', '.join(choices)}"
        out["two_steps"] = mean_measure(context_judges.right(verdict), "higher", text)
    return out


def _by_likelihood(model: Model) -> Margin:
    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        rows = zip(prompts, first, second, strict=True)
        return list(prefer.margins(model, [Preference(prompt=p, chosen=a, rejected=b) for p, a, b in rows]))

    return margin


PROTOCOL = Protocol(
    kind="preference",
    primary="with_context",
    score=score,
    prompts=lambda scoring: [p.prompt for p in scoring.of("preference")],
    target=lambda pair: pair.chosen,
)

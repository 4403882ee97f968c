"""Whether a judge of pairs uses the context it is given: accuracy with and without it, reversal pairs, profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from didact.data import contexts
from didact.evaluate import judges
from didact.evaluate.measures import Measure, mean_measure
from didact.objectives import preference
from didact.types import LM, Preference

Margin = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""`margin(prompts, first, second)`: above 0 where the first completion is the better one."""

PROPOSE = (
    "Two answers to the request below will be compared. In one line, say what they should be judged by.\n\n"
    "Request:\n{prompt}\n\nJudge by:"
)
PROPOSED_TOKENS = 32


def by_reward(reward: Callable[[Sequence[str], Sequence[str]], Sequence[float]]) -> Margin:
    """A margin that is the difference of two rewards."""

    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        both = reward([*prompts, *prompts], [*first, *second])
        return [a - b for a, b in zip(both[: len(prompts)], both[len(prompts) :], strict=True)]

    return margin


def by_letters(model: LM) -> Margin:
    """A margin from a language model that is asked which is better, A or B, in both orders."""

    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [p - 0.5 for p in judges.letters(model, prompts, first, second)]

    return margin


def margins(
    judge: Margin,
    preferences: Sequence[Preference],
    template: str | None,
    overrides: Sequence[str | None] | None = None,
) -> Any:
    """The judge's margin of chosen over rejected, `(N,)`, under each record's context, or under `overrides`.

    Without a template, prompts have no context.
    """
    record_contexts = overrides if overrides is not None else [p.context for p in preferences]
    prompts = [
        contexts.with_context(p.prompt, c, template) if template else p.prompt
        for p, c in zip(preferences, record_contexts, strict=True)
    ]
    scores = judge(prompts, [p.chosen for p in preferences], [p.rejected for p in preferences])
    return torch.tensor(scores, dtype=torch.float64)


def right(margin: Tensor) -> Any:
    """1 where the chosen side wins, 0.5 for a tie, else 0."""
    return ((margin > 0).double() + 0.5 * (margin == 0).double()).numpy()


def accuracies(
    judge: Margin, preferences: Sequence[Preference], template: str, negated: str = ""
) -> dict[str, Measure]:
    """Accuracy with and without contexts; of reversal pairs, how often both are right and how often the order flips.

    A judge that ignores contexts is right on exactly half of the records in reversal pairs: any other value of
    `reversal_without_context` means that pairs are incomplete. `negated`, a template with `{context}`, asks for the
    opposite, which makes the other completion right: a judge that only matches the context's words fails there.
    """
    with_context, without = ([p for p in preferences if bool(p.context) is present] for present in (True, False))
    out = {}
    if with_context:
        informed, blind = margins(judge, with_context, template), margins(judge, with_context, None)
        out["with_context"] = mean_measure(right(informed), "higher", "pairs right, judged in their context")
        out["without_context"] = mean_measure(right(blind), "", "the same pairs, the context left out")
        if negated:
            opposite = margins(judge, with_context, template, [negated.format(context=p.context) for p in with_context])
            out["negated"] = mean_measure(
                right(-opposite), "higher", "the same pairs, asked for the opposite of the context"
            )
        pairs, _ = contexts.reversals(with_context)
        if pairs:
            index = torch.tensor(pairs)
            both = (informed[index] > 0).all(1).double().numpy()
            flipped = (informed[index[:, 0]] * informed[index[:, 1]] > 0).double().numpy()
            blind_right = right(blind[index.flatten()])
            out["both_right"] = mean_measure(both, "higher", "reversal pairs right under both contexts")
            out["turned"] = mean_measure(flipped, "higher", "reversal pairs whose order the contexts flip")
            out["reversal_without_context"] = mean_measure(
                blind_right, "", "reversal pairs, contexts left out: .5 exactly"
            )
    if without:
        blind = margins(judge, without, None)
        out["general"] = mean_measure(right(blind), "higher", "pairs right that have no context")
    return out


def over(judge: Margin, preferences: Sequence[Preference], choices: Sequence[Sequence[str]], template: str) -> Tensor:
    """Margins of every record under each of its `choices` of contexts, `(N, m)`."""
    pairs = [(p, c) for p, own in zip(preferences, choices, strict=True) for c in own]
    scores = margins(judge, [p for p, _ in pairs], template, [c for _, c in pairs])
    return torch.as_tensor(scores).view(len(preferences), -1)


def proposed(model: LM, preferences: Sequence[Preference], count: int, seed: int = 0) -> list[list[str]]:
    """Sample `count` contexts from a model for every prompt; a blank reply is an empty context."""
    prompts = [PROPOSE.format(prompt=p.prompt) for p in preferences]
    replies = model.generate(prompts, PROPOSED_TOKENS, temperature=1.0, stop=("\n",), seed=seed, n=count)
    return [[text.strip() for text in row] for row in replies]


def likeliest(
    judge: Margin, judged: Sequence[Preference], candidates: Sequence[str], template: str
) -> tuple[int, Tensor]:
    """Index of the context that best explains the judgements, and `p(z)`: uniform prior, sums of log sigmoid."""
    z = over(judge, judged, [candidates] * len(judged), template)
    logp = -preference.pairwise(z).sum(0)
    return int(logp.argmax()), logp.softmax(0)

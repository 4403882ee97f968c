"""Whether a judge of pairs goes by the context it is given: accuracies with and without, reversal pairs, profiles."""

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
    """Differences of rewards."""

    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        both = reward([*prompts, *prompts], [*first, *second])
        return [a - b for a, b in zip(both[: len(prompts)], both[len(prompts) :], strict=True)]

    return margin


def by_letters(model: LM) -> Margin:
    """A language model asked which is better, A or B, in both orders."""

    def margin(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [p - 0.5 for p in judges.letters(model, prompts, first, second)]

    return margin


def margins(
    judge: Margin, preferences: Sequence[Preference], template: str | None, given: Sequence[str | None] | None = None
) -> Any:
    """The judge's margin of chosen over rejected, `(N,)`, under each record's context or those `given`.

    No template is no context.
    """
    names = given if given is not None else [p.context for p in preferences]
    prompts = [
        contexts.asked(p.prompt, c, template) if template else p.prompt for p, c in zip(preferences, names, strict=True)
    ]
    found = judge(prompts, [p.chosen for p in preferences], [p.rejected for p in preferences])
    return torch.tensor(found, dtype=torch.float64)


def right(margin: Tensor) -> Any:
    """1 where the chosen side is above, 0.5 where both are level."""
    return ((margin > 0).double() + 0.5 * (margin == 0).double()).numpy()


def accuracies(
    judge: Margin, preferences: Sequence[Preference], template: str, negated: str = ""
) -> dict[str, Measure]:
    """Of records with contexts: right with and without them; both of a reversal pair right; how often contexts turn it.

    Without contexts whatever scores completions alone is right on exactly half of what is in reversal pairs: any other
    number there says that the pairs are not complete. `negated`, a template of `{context}`, asks for the opposite:
    then the other completion is the right one, which a judge that knows the context's words alone never says.
    """
    given, plain = ([p for p in preferences if bool(p.context) is has] for has in (True, False))
    out = {}
    if given:
        known, blind = margins(judge, given, template), margins(judge, given, None)
        out["with_context"] = mean_measure(right(known), "higher", "pairs right, judged in their context")
        out["without_context"] = mean_measure(right(blind), "", "the same pairs, the context left out")
        if negated:
            other = margins(judge, given, template, [negated.format(context=p.context) for p in given])
            out["negated"] = mean_measure(right(-other), "higher", "the same pairs, the context's opposite asked for")
        pairs, _ = contexts.reversals(given)
        if pairs:
            index = torch.tensor(pairs)
            both = (known[index] > 0).all(1).double().numpy()
            turned = (known[index[:, 0]] * known[index[:, 1]] > 0).double().numpy()
            level = right(blind[index.flatten()])
            out["both_right"] = mean_measure(both, "higher", "reversal pairs right under both contexts")
            out["turned"] = mean_measure(turned, "higher", "reversal pairs whose order the contexts turn")
            out["reversal_without_context"] = mean_measure(level, "", "reversal pairs, contexts left out: .5 exactly")
    if plain:
        blind = margins(judge, plain, None)
        out["general"] = mean_measure(right(blind), "higher", "pairs right that have no context")
    return out


def over(judge: Margin, preferences: Sequence[Preference], choices: Sequence[Sequence[str]], template: str) -> Tensor:
    """Margins of every record under each of its own contexts, `(N, m)`."""
    each = [(p, c) for p, own in zip(preferences, choices, strict=True) for c in own]
    found = margins(judge, [p for p, _ in each], template, [c for _, c in each])
    return torch.as_tensor(found).view(len(preferences), -1)


def proposed(model: LM, preferences: Sequence[Preference], count: int, seed: int = 0) -> list[list[str]]:
    """Contexts that a model proposes for every prompt, sampled; a reply without words is an empty context."""
    prompts = [PROPOSE.format(prompt=p.prompt) for p in preferences]
    replies = model.generate(prompts, PROPOSED_TOKENS, temperature=1.0, stop=("\n",), seed=seed, n=count)
    return [[text.strip() for text in row] for row in replies]


def likeliest(
    judge: Margin, shown: Sequence[Preference], candidates: Sequence[str], template: str
) -> tuple[int, Tensor]:
    """Which context explains somebody's judgements best, and `p(z)` of all, alike before: from sums of log sigmoid."""
    z = over(judge, shown, [candidates] * len(shown), template)
    logp = -preference.pairwise(z).sum(0)
    return int(logp.argmax()), logp.softmax(0)

"""How promising partial solutions are: as the searching model judges, as a reward model scores, or 1 for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import MinLen

from didact.infer import rank, yesno
from didact.infer.tree import Node
from didact.learn import reward_functions
from didact.models.kv_cache import KVCache
from didact.models.model import Model

QUESTION, EXAMPLE = "QUESTION: {question}\n\n", "EXAMPLE ANSWER: {example}\n\n"
ASKED = (
    "PROPOSED SOLUTION: {solution}\n\n"
    "Does the proposed solution go in the right direction, as far as it goes?\n(A) incorrect\n(B) correct\n\nAnswer:"
)

Promise = Callable[[Model, Sequence[str], Sequence[str], Sequence[str], KVCache], list[float]]
"""`promise(model, questions, examples, solutions, kv_cache)`: a value in [0, 1] for every partial solution."""


@dataclass(frozen=True, kw_only=True)
class Critic:
    """What judges how promising a partial solution is.

    Args:
        by: `self` (the model), `none` (1 for all), a reward model's folder or module:function (its sigmoid).
        hint: show the model the reference solution with the question.
        asked: template of the question, with {question}, {example} (the hint) and {solution}; the paper's if empty.
        good: the answers that mean yes; their probabilities are added.
    """

    by: str = "self"
    hint: bool = True
    asked: str = ""
    good: Annotated[Sequence[str], MinLen(1)] = ("B", "correct")


def promise(critic: Critic) -> Promise:
    """Return the function that asks a critic.

    Raises:
        UserError: there is no such folder or function; when called, the question names an unknown field.
    """
    template = critic.asked or QUESTION + (EXAMPLE if critic.hint else "") + ASKED
    reward = None if critic.by in ("self", "none") else reward_functions.reward_of(critic.by, "critic.by")

    def judge(
        model: Model, questions: Sequence[str], examples: Sequence[str], solutions: Sequence[str], kv_cache: KVCache
    ) -> list[float]:
        if reward is not None:
            return torch.tensor(reward(questions, solutions), dtype=torch.float64).sigmoid().tolist()
        if critic.by == "none":
            return [1.0] * len(solutions)
        fields = [
            {"question": q, "example": e, "solution": s} for q, e, s in zip(questions, examples, solutions, strict=True)
        ]
        prompts = [yesno.fill(template, values, "critic.asked") for values in fields]
        return rank.expected(model, prompts, dict.fromkeys(critic.good, 1.0), kv_cache)

    return judge


def valued(node: Node, promise: float, right: bool | None, official: bool, reference: tuple[int, ...]) -> float:
    """Return a new node's value `C + O`: its promise, plus 1 or -1 where the solution ends right or wrong.

    Args:
        node: the node.
        promise: C.
        right: None before the end.
        official: as MCTS-DPO's code: C / max(depth - 3, 1), the parent's value where that is 0, and 5/4 for a right end
            that is not the reference's.
        reference: tokens of the reference solution.
    """
    value = promise
    if official and node.parent is not None:
        value = promise / max(node.parent.depth - 3, 1) or node.parent.value
    if right is None:
        return value
    own = official and right and node.tokens != reference
    return value + (1.25 if own else 1.0 if right else -1.0)

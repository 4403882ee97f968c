"""Goal-conditioned pairs: scored pairs under a prompt that names the score to reach. Pure: records in, records out.

Under a goal g a completion of score r has reward `-(g - r)^2`, so the one nearer to the goal is preferred. A pair
gives two records: with the chosen side's score as goal it stays, with the rejected side's the sides are swapped.
With several scores per side (`attributes`) goals have as many numbers, and distances add up.

Source: Zhang et al. 2024, arXiv:2410.08067.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from didact.data import templates
from didact.data.templates import Condition
from didact.types import Preference, UserError

Goal = tuple[float, ...]
Sides = tuple[Goal, Goal]
"""Scores of a pair: of the chosen side and of the rejected one."""

TEMPLATE = (
    "Write the answer that would get the score below, on a scale from {low}, the lowest, to {high}, the highest. "
    "Do not speak of the score.\n{attribute} score: {goal}"
)
OVERALL = "Overall"


def worth(score: float, goal: float) -> float:
    """Reward `R(x, y, g) = -(g - r)^2` of a completion of this score under this goal."""
    return -((goal - score) ** 2)


def printed(number: float) -> str:
    """Format a score without trailing zeros: 8.0 is "8", 7.5 is "7.5"."""
    return format(round(float(number), 6), ".12g")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a goal is worded in a prompt.

    Args:
        template: the instruction. Its line with `{goal}` is repeated for every attribute, whose name is
            `{attribute}`; `{low}` and `{high}` are the scale's ends. Without `{goal}` no goal is stated.
        scale: ends of the goals' scale; the upper one is the goal when the model is used.
        attributes: names of several scores per side, in the fields `chosen_scores` and `rejected_scores`, objects
            by name.
        place: where in a conversation: its `system` turn (a new one if there is none), or before its first `user`
            text, for chat templates without a system turn. A plain prompt has the instruction before it.
        joint: separator between instruction and text.
    """

    template: str = TEMPLATE
    scale: tuple[float, float] = (1.0, 10.0)
    attributes: Sequence[str] = ()
    place: templates.Place = "system"
    joint: str = "\n\n"

    def __post_init__(self) -> None:
        try:
            self.text(self.best)
        except (KeyError, IndexError, ValueError):
            names = "{goal}, {attribute}, {low} and {high}"
            raise UserError(f"template {self.template!r}: its fields are {names}; double all other braces") from None
        if not self.scale[0] < self.scale[1]:
            raise UserError(f"scale = {printed(self.scale[0])} {printed(self.scale[1])}: the lower end comes first")

    @property
    def best(self) -> Goal:
        """The goal when the model is used: the top of the scale for every attribute."""
        return (self.scale[1],) * max(1, len(self.attributes))

    def text(self, goal: Goal) -> str:
        """The instruction for a goal."""
        low, high = (printed(x) for x in self.scale)
        names = self.attributes or (OVERALL,)
        lines = []
        for line in self.template.split("\n"):
            entries = list(zip(names, goal, strict=True)) if "{goal}" in line else [("", 0.0)]
            lines += [line.format(goal=printed(g), attribute=name, low=low, high=high) for name, g in entries]
        return "\n".join(lines)

    def prompt(self, prompt: str, goal: Goal) -> str:
        """A prompt with the instruction for this goal; unchanged if the instruction is empty."""
        words = self.condition(goal)
        return templates.introduced(prompt, words.before, words.place)

    def condition(self, goal: Goal) -> Condition:
        """The condition that states this goal."""
        text = self.text(goal)
        return Condition(before=f"{text}{self.joint}" if text else "", place=self.place)


def scores_of(preferences: Sequence[Preference], attributes: Sequence[str] = ()) -> list[Sides]:
    """The scores of each pair: `chosen_score` and `rejected_score`, or those of named attributes.

    Attributes are in the fields `chosen_scores` and `rejected_scores`, objects like `{"honesty": 7}`.

    Raises:
        UserError: a pair lacks a score, or it is not a number.
    """
    return [
        (_scores(number, pair, "chosen", attributes), _scores(number, pair, "rejected", attributes))
        for number, pair in enumerate(preferences, 1)
    ]


def _scores(number: int, pair: Preference, side: Literal["chosen", "rejected"], attributes: Sequence[str]) -> Goal:
    """The scores of one side."""
    raw = pair.extra.get(f"{side}_scores")
    by_name = raw if isinstance(raw, dict) else {}
    fields = [(by_name.get(a), f"'{a}' in '{side}_scores'") for a in attributes]
    out = []
    for value, field in fields or [(getattr(pair, f"{side}_score"), f"'{side}_score'")]:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(
                f"preferences: record {number}: no number {field}; score the pairs, "
                "or learn their scores from the pairs with --scores implicit"
            )
        out.append(float(value))
    return tuple(out)


def on_scale(
    scores: Sequence[Sides], scale: tuple[float, float], span: tuple[float, float] | None = None, step: float = 0.1
) -> list[Sides]:
    """Map scores within `span` to goals on `scale`: stretched, clipped to its ends, rounded to multiples of `step`.

    With `span` None they are only clipped and rounded; a `step` of 0 does not round.
    """
    low, high = scale
    a, b = span or scale

    def scaled(score: float) -> float:
        x = low + (score - a) / (b - a) * (high - low) if span else score
        x = round(x / step) * step if step else x
        return min(high, max(low, round(x, 9)))

    return [(tuple(map(scaled, chosen)), tuple(map(scaled, rejected))) for chosen, rejected in scores]


def reach(scores: Sequence[Sides]) -> tuple[float, float]:
    """The lowest and the highest of all scores.

    Raises:
        UserError: there are none.
    """
    values = [x for sides in scores for side in sides for x in side]
    if not values:
        raise UserError("preferences: no records")
    return min(values), max(values)


def span_of(scores: Sequence[Sides], scale: tuple[float, float]) -> tuple[float, float] | None:
    """The range of the scores; None if all of them are on the scale."""
    low, high = reach(scores)
    return None if scale[0] <= low <= high <= scale[1] else (low, high)


def noisy(scores: Sequence[Sides], noise: float, seed: int) -> list[Sides]:
    """Add Gaussian noise of this standard deviation to scores."""
    draw = np.random.default_rng([seed, 99])
    if not noise:
        return list(scores)
    return [
        (tuple(x + noise * draw.standard_normal() for x in a), tuple(x + noise * draw.standard_normal() for x in b))
        for a, b in scores
    ]


def gap(sides: Sides) -> float:
    """Largest difference between the scores of two sides."""
    return max(abs(a - b) for a, b in zip(*sides, strict=True))


def relabelled(
    preferences: Sequence[Preference],
    goals: Sequence[Sides],
    wording: Wording = Wording(),
    *,
    min_gap: float = 0.0,
    reverse: bool = True,
    dropout: float = 0.0,
    legacy_nosys: bool = False,
    seed: int = 0,
) -> list[Preference]:
    """Relabel pairs with their own sides' scores as goals, 2 N records of N pairs: first as they are, then swapped.

    Args:
        preferences: pairs.
        goals: the two goals of every pair, on the wording's scale.
        wording: how a goal is worded.
        min_gap: pairs whose goals differ by no more than this are dropped: one prompt would have both orders.
            Below 0 none is.
        reverse: also make the records under the rejected side's goal.
        dropout: share of records that keep their order and get no goal.
        legacy_nosys: as in the official script for models without a system turn: the second records have the
            rejected side's goal, but are not swapped.
        seed: seed of the dropout.

    Returns:
        Records whose `extra` has the `goal` (if there is one) and the `pair`'s number; scores are the goals.
    """
    retained = [i for i, sides in enumerate(goals) if gap(sides) > min_gap]
    dropped = np.random.default_rng([seed, 97]).random((2, len(preferences))) < dropout
    out = []
    for second in (False, True) if reverse else (False,):
        for i in retained:
            swapped = second and not legacy_nosys
            out.append(_under(preferences[i], goals[i], wording, i, second, swapped, bool(dropped[int(second), i])))
    return out


def _under(
    pair: Preference, sides: Sides, wording: Wording, number: int, second: bool, swapped: bool, plain: bool
) -> Preference:
    """Make one record: the pair under its first or second side's goal, possibly swapped, or without a goal."""
    goal = sides[int(second)]
    of_one = len(goal) == 1
    goal_field: dict[str, Any] = {} if plain else {"goal": goal[0] if of_one else list(goal)}
    record = dataclasses.replace(
        pair, prompt=pair.prompt if plain else wording.prompt(pair.prompt, goal),
        chosen_score=sides[0][0] if of_one else None, rejected_score=sides[1][0] if of_one else None,
        extra=pair.extra | {"pair": number} | goal_field,
    )  # fmt: skip
    return turned_round(record) if swapped and not plain else record


def counts(records: Sequence[Preference]) -> dict[str, int]:
    """Number of records per goal; with several attributes, per combination."""
    goals = sorted(r.extra["goal"] for r in records if "goal" in r.extra)
    return dict(Counter(" ".join(map(printed, g)) if isinstance(g, list) else printed(g) for g in goals))


def turned_round(pair: Preference) -> Preference:
    """Swap the sides of a pair, with their scores."""
    return dataclasses.replace(
        pair, chosen=pair.rejected, rejected=pair.chosen,
        chosen_score=pair.rejected_score, rejected_score=pair.chosen_score,
    )  # fmt: skip

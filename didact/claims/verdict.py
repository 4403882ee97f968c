"""Tests over seeds, and the verdict they add up to. Pure: numbers in, rows of the scoreboard out.

The unit is the seed: a test sees one number per seed and arm, items having been averaged within the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from didact.evaluate import statistics

Arms = Mapping[str, Mapping[str, Sequence[float]]]
"""`{arm: {metric: [one number per seed]}}`, all lists in the same order of seeds."""

Outcome = Literal["holds", "fails", "inconclusive"]
EXIT = {None: 0, "holds": 0, "fails": 1, "inconclusive": 3}


@dataclass(frozen=True, kw_only=True)
class Test:
    """A statement about one metric, or about the difference of two, that the seeds decide.

    With `v = f(a) - f(b)` per seed (or `f(a)` alone) and `[low, high]` the t interval of its mean:

        difference   b is given; holds if low > null, fails if high < null + margin
        bound        b is not; the same, against a constant
        equivalence  holds if the 90 % interval is inside null +- margin, fails if it is wholly outside
        exact        holds if every seed's v is within margin of null

    `direction="less"` mirrors the first two. Where a difference both holds and fails (significant, but significantly
    smaller than the margin), it fails. Too few seeds, or a value that is NaN, is inconclusive.

    Args:
        name: what the scoreboard calls it.
        kind: as above.
        a: `arm.metric`.
        b: `arm.metric` that is subtracted.
        null: what must be exceeded (or met); on the scale of `transform`.
        direction: on which side of `null` the claim lies.
        margin: the smallest effect of interest, half the width of the equivalence, or the tolerance.
        transform: `f`: none, log (skewed, positive) or logit (rates).
        unit: of the estimate.
        level: of the interval; 0.95, and 0.90 for equivalence.
        gates: `verdict` if a failure fails the claim; `none` if it is only reported; `competence` if the
            experiment says nothing about the paper unless the MEAN over seeds passes (see `lab.gate`).
    """

    __test__: ClassVar[bool] = False  # not pytest's

    name: str
    kind: Literal["difference", "equivalence", "bound", "exact"]
    a: str
    b: str | None = None
    null: float = 0.0
    direction: Literal["greater", "less"] = "greater"
    margin: float = 0.0
    transform: Literal["log", "logit"] | None = None
    unit: str = ""
    level: float | None = None
    gates: Literal["verdict", "none", "competence"] = "verdict"

    def __post_init__(self) -> None:
        if self.kind == "difference" and self.b is None:
            raise ValueError(f"test '{self.name}': a difference needs b")
        if self.kind == "bound" and self.b is not None:
            raise ValueError(f"test '{self.name}': a bound has no b; use a difference")
        if self.margin < 0 or (self.kind == "equivalence" and not self.margin):
            raise ValueError(f"test '{self.name}': margin = {self.margin}")

    def values(self, arms: Arms) -> list[float]:
        """`v`, one per seed."""
        values = [self._scale(x) for x in column(arms, self.a)]
        if self.b is None:
            return values
        return [x - self._scale(y) for x, y in zip(values, column(arms, self.b), strict=True)]

    def row(self, arms: Arms) -> dict[str, Any]:
        """Decide the test; return a row of the scoreboard."""
        values = self.values(arms)
        level = self.level or (0.90 if self.kind == "equivalence" else 0.95)
        interval = statistics.mean_interval(values, level)
        if self.kind == "exact":
            interval = statistics.Interval(interval.estimate, min(values), max(values))
        return {
            "name": self.name,
            "kind": self.kind,
            "null": self.null,
            "direction": self.direction,
            "margin": self.margin,
            "unit": self.unit,
            "n": len(values),
            "estimate": interval.estimate,
            "interval": [interval.low, interval.high],
            "level": level,
            "gates": self.gates,
            "outcome": self._outcome(interval),
        }

    def _outcome(self, interval: statistics.Interval) -> Outcome:
        sign = 1 if self.direction == "greater" else -1
        if self.gates == "competence":
            return "holds" if sign * (interval.estimate - self.null) >= 0 else "fails"
        if not all(math.isfinite(x) for x in interval):
            return "inconclusive"
        low, high = sorted((sign * (interval.low - self.null), sign * (interval.high - self.null)))
        if self.kind == "exact":
            return "holds" if -self.margin <= low and high <= self.margin else "fails"
        if self.kind == "equivalence":
            outside = low > self.margin or high < -self.margin
            return "holds" if -self.margin < low and high < self.margin else "fails" if outside else "inconclusive"
        return "fails" if high < self.margin or high < 0 else "holds" if low > 0 else "inconclusive"

    def _scale(self, x: float) -> float:
        if self.transform == "log":
            return math.log(x) if x > 0 else math.nan
        if self.transform == "logit":
            return math.log(x / (1 - x)) if 0 < x < 1 else math.nan
        return float(x)


def verdict(rows: Iterable[Mapping[str, Any]]) -> Outcome:
    """Combine decided tests into a verdict.

    Inconclusive if a competence gate is not reached; else fails if any gating test fails, holds if
    all hold, and is inconclusive otherwise (or where nothing gates).
    """
    rows = list(rows)
    if any(r["gates"] == "competence" and r["outcome"] != "holds" for r in rows):
        return "inconclusive"
    outcomes = [r["outcome"] for r in rows if r["gates"] == "verdict"]
    if "fails" in outcomes:
        return "fails"
    return "holds" if outcomes and set(outcomes) == {"holds"} else "inconclusive"


def detect(test: Test, intact: Arms, sabotaged: Arms, metric: str | None = None) -> dict[str, Any]:
    """Whether a sabotage is detected: `{estimate, interval, intact, sabotaged, detected}`, intact - sabotaged by seed.

    Where the intact test holds it must not hold sabotaged, and the 95 % t interval of the paired differences of the
    test's value must exclude 0 in the direction that breaks it: against `direction`, or away from `null` for tests of
    equality. Where the intact test does not hold it cannot break, so the sabotage must move the mean of `metric` out
    of the range of the clean seeds: for the worse, `metric` being the side `a` of the test unless it is `b`; either
    way for tests of equality.

    Raises:
        ArithmeticError: the sabotaged value is NaN or infinite; that is an error, not a detection.
        ValueError: the intact test does not hold and no `metric` is named.
    """
    holds = test.row(intact)["outcome"] == "holds"
    if not holds and metric is None:
        raise ValueError(f"'{test.name}' does not hold intact, and the sabotage names no metric that must move")
    values, name = (test.values, test.name) if holds else (lambda arms: list(column(arms, str(metric))), str(metric))
    clean, broken = values(intact), values(sabotaged)
    if not all(math.isfinite(v) for v in broken):
        raise ArithmeticError(f"{name} is NaN or infinite")
    moved, mean = statistics.paired_interval(clean, broken), sum(broken) / len(broken)
    equality = test.kind in ("equivalence", "exact")
    if holds:
        rises = mean > test.null if equality else test.direction == "less"
        shifted = moved.high < 0 if rises else moved.low > 0
        detected = shifted and test.row(sabotaged)["outcome"] != "holds"
    else:
        rises = mean > max(clean) if equality else (test.direction == "less") is (metric != test.b)
        detected = bool(mean > max(clean) if rises else mean < min(clean))
    return {
        "estimate": moved.estimate,
        "interval": [moved.low, moved.high],
        "intact": clean,
        "sabotaged": broken,
        "detected": detected,
    }


def column(arms: Arms, name: str) -> Sequence[float]:
    """The values of `arm.metric`; an arm's name may itself hold dots."""
    arm, _, metric = name.rpartition(".")
    try:
        return arms[arm][metric]
    except KeyError:
        raise KeyError(f"no '{name}' among {[f'{a}.{m}' for a in arms for m in arms[a]]}") from None

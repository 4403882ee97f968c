"""Figures of a meta-trained classifier: accuracy by number of examples, and the phase map over width and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from didact import figures
from didact.figures import Figure, Line, Points


def pictures(findings: Mapping[str, Any], chance: float) -> list[Figure]:
    """Figures of the findings of `gpicl`; `chance` is the accuracy of guessing."""
    curves = {name: c for name, c in findings["curves"].items() if not name.endswith("unmapped")}
    base = findings["baselines"]["unseen"]["curves"]
    out: list[Figure] = [
        figures.Curves(
            title="Accuracy as examples come in", x="examples before", y="accuracy",
            lines=[_line(n, c) for n, c in curves.items()]
            + [_line(n, base[n]) for n in ("centroids", "MLP, a step a row")], levels={"chance": chance},
            note="The nearest centroid, and a network by a step of SGD a row, classify the same rows of unseen tasks.",
        ),
        figures.Bars(
            title="With many examples", x="accuracy over the last quarter", levels={"chance": chance},
            bars=[_bar(n, v) for n, v in findings["accuracy"].items()]
            + [_bar(n, v, on) for on, b in findings["baselines"].items() for n, v in b["accuracy"].items()],
        ),
    ]  # fmt: skip
    return out + maps(findings["map"])


def maps(cells: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A phase map over width and number of tasks for every architecture, and accuracy by state size if several."""
    out: list[Figure] = []
    mixers = list(dict.fromkeys(c.get("mixer", "") for c in cells))
    for mixer in mixers:
        own = [c for c in cells if c.get("mixer", "") == mixer]
        rows, columns = (list(dict.fromkeys(c[axis] for c in own if axis in c)) for axis in ("width", "tasks"))
        for pool in ("seen", "unseen"):
            if len(columns) > 1 and rows:
                grid = [[_gain(own, pool, width=r, tasks=c) for c in columns] for r in rows]
                out.append(
                    figures.Heat(
                        title=f"Improvement within a sequence, {pool} tasks{f', {mixer}' if mixer else ''}",
                        x="tasks of training (endless last)" if columns[-1] == 0 else "tasks of training", y="width",
                        value="accuracy gained", columns=["endless" if c == 0 else c for c in columns], rows=rows,
                        values=grid, ends=(0.0, 1.0),
                    )
                )  # fmt: skip
    if len(mixers) > 1:
        points = [
            Points(m, [c["state_size"] for c in own], [c["accuracy"]["unseen"]["estimate"] for c in own],
                   [str(c.get("width", "")) for c in own])
            for m in mixers
            if (own := [c for c in cells if c["mixer"] == m])
        ]  # fmt: skip
        out.append(
            figures.Scatter(
                title="Accuracy and state",
                x="state size (numbers)",
                y="accuracy, fresh tasks",
                points=points,
            )
        )
    return out


def _gain(cells: Sequence[Mapping[str, Any]], pool: str, **at: Any) -> float:
    cell = next(c for c in cells if all(c[k] == v for k, v in at.items()))
    return float(cell["improvement"][pool]["estimate"])


def _line(name: str, c: Mapping[str, Any]) -> Line:
    return Line(name, list(range(len(c["estimate"]))), c["estimate"], c["low"], c["high"])


def _bar(name: str, interval: Mapping[str, float], group: str = "this learner") -> figures.Bar:
    return figures.Bar(name, interval["estimate"], interval["low"], interval["high"], group)

"""Metrics of the user's: `module:function`, called with a record and the answer to it, gives a number.

A function may say `better = "lower"` as an attribute; higher is better else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from didact.evaluate.measures import Measure, mean_measure
from didact.infer import functions
from didact.types import UserError

if TYPE_CHECKING:
    from didact.evaluate.protocols import Predict, Protocol, Scoring

Metric = Callable[[Any, str], float]


def named(names: str | None) -> dict[str, Metric]:
    """`module:function` (several with commas) as metrics by the functions' names, under which their measures go.

    Raises:
        UserError: there is no such function, or two of one name.
    """
    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    out = {name.rpartition(":")[2]: _safe(functions.imported(name, "metric"), name) for name in given}
    if len(out) < len(given):
        raise UserError(f"--metric {names}: two functions of one name")
    return out


def check(metrics: Mapping[str, Metric], used: Protocol, records: Mapping[str, Any]) -> None:
    """Try each metric on the first record with its own right answer: what fails there is told before any work.

    Raises:
        UserError: it raised, or gave no number; or the protocol asks nothing that has an answer.
    """
    for rows in _parts(used, records).values() if metrics else ():
        for metric in metrics.values():
            metric(rows[0], used.wanted(rows[0]))


def score(metrics: Mapping[str, Metric], predict: Predict, used: Protocol, scoring: Scoring) -> dict[str, Measure]:
    """The mean of each metric over the records' answers by its name, `part_name` where several sets are scored."""
    out: dict[str, Measure] = {}
    parts = _parts(used, scoring.records) if metrics else {}
    for part, rows in parts.items():
        answers = list(predict(_prompts(used, scoring, rows)))
        for name, metric in metrics.items():
            values = [metric(r, a) for r, a in zip(rows, answers, strict=True)]
            better: Any = getattr(metric, "better", "higher")
            out[f"{part}_{name}" if len(parts) > 1 else name] = mean_measure(values, better, "a metric of yours")
    return out


def _parts(used: Protocol, records: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The sets of records that a protocol scores, by name."""
    names = [name for name in (*used.scored, used.held_out) if name and records.get(name)]
    return {n: records[n] for n in names} or {"": used.records(records)}


def _prompts(used: Protocol, scoring: Scoring, rows: Sequence[Any]) -> list[str]:
    """What is asked of each record.

    Raises:
        UserError: the protocol asks none.
    """
    if all(hasattr(r, "prompt") for r in rows):
        return [r.prompt for r in rows]
    prompts = used.prompts(dataclasses.replace(scoring, records={used.kind: rows}))
    if len(prompts) != len(rows):
        raise UserError(f"--metric: {used.kind} records are not asked anything that has an answer")
    return prompts


def _safe(function: Callable[..., Any], name: str) -> Metric:
    """The same metric, whose mistakes are told in one line."""

    def metric(record: Any, answer: str) -> float:
        try:
            value = function(record, answer)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"metric '{name}' raised {type(error).__name__}: {error} {_on(record, answer)}") from error
        if isinstance(value, str) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
            raise UserError(f"metric '{name}' gave {value!r:.60}: a number is expected {_on(record, answer)}")
        return float(value)

    metric.better = getattr(function, "better", "higher")  # type: ignore[attr-defined]  # of a function
    return metric


def _on(record: Any, answer: str) -> str:
    asked = str(getattr(record, "prompt", getattr(record, "text", "")))
    return f"(prompt {asked[:40]!r}, answer {answer[:40]!r})"

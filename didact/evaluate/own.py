"""User-defined metrics: `module:function`, called with a record and its answer, returns a number.

A function may have an attribute `better = "lower"`; by default higher is better.
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


def load_metrics(names: str | None) -> dict[str, Metric]:
    """Load `module:function` (several separated by commas) as metrics by function name, which names their measures.

    Raises:
        UserError: there is no such function, or two have the same name.
    """
    specs = [name.strip() for name in (names or "").split(",") if name.strip()]
    out = {name.rpartition(":")[2]: _safe(functions.import_function(name, "metric"), name) for name in specs}
    if len(out) < len(specs):
        raise UserError(f"--metric {names}: two functions have the same name")
    return out


def check(metrics: Mapping[str, Metric], protocol: Protocol, records: Mapping[str, Any]) -> None:
    """Try each metric on the first record with its gold answer, so that it fails before any work.

    Raises:
        UserError: it raised, or returned no number; or the protocol has no prompts with answers.
    """
    for rows in _parts(protocol, records).values() if metrics else ():
        for metric in metrics.values():
            metric(rows[0], protocol.target(rows[0]))


def score(metrics: Mapping[str, Metric], predict: Predict, protocol: Protocol, scoring: Scoring) -> dict[str, Measure]:
    """Return the mean of each metric over the records' answers by name, `part_name` if several sets are scored."""
    out: dict[str, Measure] = {}
    parts = _parts(protocol, scoring.records) if metrics else {}
    for part, rows in parts.items():
        answers = list(predict(_prompts(protocol, scoring, rows)))
        for name, metric in metrics.items():
            values = [metric(r, a) for r, a in zip(rows, answers, strict=True)]
            better: Any = getattr(metric, "better", "higher")
            out[f"{part}_{name}" if len(parts) > 1 else name] = mean_measure(values, better, "user-defined metric")
    return out


def _parts(protocol: Protocol, records: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The sets of records that a protocol scores, by name."""
    names = [name for name in (*protocol.scored, protocol.held_out) if name and records.get(name)]
    return {n: records[n] for n in names} or {"": protocol.records(records)}


def _prompts(protocol: Protocol, scoring: Scoring, rows: Sequence[Any]) -> list[str]:
    """Return the prompt of each record.

    Raises:
        UserError: the protocol has none.
    """
    if all(hasattr(r, "prompt") for r in rows):
        return [r.prompt for r in rows]
    prompts = protocol.prompts(dataclasses.replace(scoring, records={protocol.kind: rows}))
    if len(prompts) != len(rows):
        raise UserError(f"--metric: {protocol.kind} records have no prompts with answers")
    return prompts


def _safe(function: Callable[..., Any], name: str) -> Metric:
    """Wrap a function as a metric whose errors are one-line messages."""

    def metric(record: Any, answer: str) -> float:
        try:
            value = function(record, answer)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"metric '{name}' raised {type(error).__name__}: {error} {_describe(record, answer)}"
            ) from error
        if isinstance(value, str) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
            raise UserError(f"metric '{name}' gave {value!r:.60}: a number is expected {_describe(record, answer)}")
        return float(value)

    metric.better = getattr(function, "better", "higher")  # type: ignore[attr-defined]  # function attribute
    return metric


def _describe(record: Any, answer: str) -> str:
    prompt = str(getattr(record, "prompt", getattr(record, "text", "")))
    return f"(prompt {prompt[:40]!r}, answer {answer[:40]!r})"

"""Metrics and findings of a few-shot evaluation: accuracy over K, gains, rules, clean and dirty items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from didact.data import demonstrations, words
from didact.data.contamination import Audit
from didact.evaluate import statistics
from didact.evaluate.fewshot_scores import Floats, Outcome
from didact.evaluate.statistics import Interval
from didact.types import Demo, Metric, Result

LABELS = 20  # most labels of a confusion matrix


def report(result: Result, n: int, outcomes: Mapping[int, Outcome], best: int, name: str) -> None:
    """Add metrics, curves over K, and the gain over the fewest demonstrations.

    Args:
        result: the result to add to.
        n: number of items.
        outcomes: outcomes by K.
        best: the chosen K.
        name: the chosen rule, or the metric of free answers.
    """
    fewest = min(outcomes)
    start = outcomes[fewest].right[name]
    chosen = statistics.two_way(outcomes[best].right[name], share=True)
    text = f"scored by {name}, {best} demonstrations; before: {fewest}"
    result.metrics["accuracy"] = _metric(chosen, n, text, float(start.mean()))
    for k, outcome in sorted(outcomes.items()):
        accuracy = statistics.two_way(outcome.right[name], share=True)
        before = float(start.mean()) if k > fewest else None
        result.metrics[f"accuracy_{k}_shot"] = _metric(accuracy, n, f"{name}, {k} demonstrations", before)
    rules = [name, *(r for r in outcomes[best].right if r != name)]
    curves = {f"accuracy by {r}": _curve({k: o.right[r] for k, o in outcomes.items()}) for r in rules}
    gain = {k: statistics.two_way(o.right[name] - start) for k, o in sorted(outcomes.items()) if k > fewest}
    result.findings |= {
        "curves": curves,
        "gain": {f"{k} over {fewest}": g._asdict() for k, g in gain.items()},
        "rules": {r: statistics.two_way(outcomes[best].right[r], share=True)._asdict() for r in rules},
    }


def guessing(result: Result, items: Sequence[Demo], answers: Sequence[str]) -> None:
    """Add the accuracy of guessing and, where all items have the same labels, the confusion matrix."""
    chance = sum(1 / len(demonstrations.options(item)) for item in items) / len(items)
    result.findings["chance"] = chance
    accuracy = result.metrics["accuracy"]
    if accuracy.ci and accuracy.ci[0] <= chance:
        result.warnings.append(f"accuracy {accuracy.after:.3f} is not shown to be above guessing ({chance:.3f})")
    labels = list(dict.fromkeys(words.key(c) for item in items for c in demonstrations.options(item)))
    if len(labels) <= LABELS and all(len(demonstrations.options(item)) == len(labels) for item in items):
        confusion = {right: dict.fromkeys(labels, 0) for right in labels}
        for item, answer in zip(items, answers, strict=True):
            confusion[words.key(demonstrations.options(item)[demonstrations.gold(item)])][words.key(answer)] += 1
        result.findings["confusion (a row is the right label, a column the answer)"] = confusion


def contaminated(result: Result, right: Floats, audit: Audit) -> None:
    """Add accuracy on all, clean and dirty items, from `right (items, draws)`, and a warning if any are dirty."""
    dirty = audit.dirty
    parts = {"all": right, "clean": right[~dirty], "dirty": right[dirty]}
    intervals = {part: statistics.two_way(v, share=True) for part, v in parts.items() if len(v)}
    for part in ("clean", "dirty"):
        if part in intervals:
            text = f"{part} items, as accuracy"
            result.metrics[f"accuracy_{part}"] = _metric(intervals[part], len(parts[part]), text)
    overall = float(right.mean())
    change = (float(parts["clean"].mean()) - overall) / overall if "clean" in intervals and overall else None
    result.findings["contamination"] = {
        "n": audit.n, "dirty": int(dirty.sum()), "share": audit.share,
        "accuracy": {part: interval._asdict() | {"items": len(parts[part])} for part, interval in intervals.items()},
        "relative_change": change,  # (clean - all) / all, the paper's
    }  # fmt: skip
    if not dirty.any():
        return
    text = f"{audit.share:.0%} of the test items share {audit.n} words in a row with the corpus"
    if "clean" in intervals and len(parts["dirty"]) > 1 < len(parts["clean"]):
        gap = statistics.welch_interval(parts["dirty"].mean(1), parts["clean"].mean(1))
        difference = f"{parts['dirty'].mean() - parts['clean'].mean():+.3f}"
        effect = "and the model is better on them" if gap.low > 0 else "with no clear effect on accuracy"
        text += f", {effect} ({difference}, 95 % [{gap.low:.3f}, {gap.high:.3f}])"
    result.warnings.append(text)


def _metric(interval: Interval, n: int, text: str, before: float | None = None) -> Metric:
    ci = None if math.isnan(interval.low) else (interval.low, interval.high)
    return Metric(after=interval.estimate, before=before, n=n, ci=ci, better="higher", help=text)


def _curve(values: Mapping[int, Floats]) -> dict[str, Any]:
    points = {k: statistics.two_way(v, share=True) for k, v in sorted(values.items())}
    return {
        "x": list(points),
        "y": [p.estimate for p in points.values()],
        "low": [p.low for p in points.values()],
        "high": [p.high for p in points.values()],
        "xlabel": "demonstrations K",
        "ylabel": "accuracy",
    }

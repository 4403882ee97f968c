"""The verdict and the warnings of a comparison in words, from its leaderboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from didact import progress
from didact.report import svg, words

UNTOUCHED = "untouched"
FALLEN = ("entropy", "distinct_2")  # below half of the untouched model's value, answers count as collapsed
TOLERANCE = 0.05  # share of the budget; larger deviations are reported
MANY_ROWS = 4  # with more rows, warn that the highest of many scores is partly luck


def scored_only(board: Mapping[str, Any]) -> bool:
    """Whether nothing was taught, so that intervals are over records and not over seeds."""
    return bool(board.get("over") == "records")


def reference(board: Mapping[str, Any]) -> str:
    """The arm that others are compared with: the untouched model, or the first of several that were only scored."""
    return str(board.get("reference", UNTOUCHED))


def short(arm: str, limit: int = 20) -> str:
    """An arm's name for a table: a long path is cut to its end."""
    return arm if len(arm) <= limit or "/" not in arm else f"…{arm[1 - limit :]}"


def times(board: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Phases that took a second or more, with their seconds; `generation` is a part of the others."""
    return [(name, seconds) for name, seconds in board.get("time", {}).items() if seconds >= 1]


def time_spent(board: Mapping[str, Any]) -> str:
    """The phases and their durations in one line."""
    seconds = dict(times(board))
    phases = ", ".join(
        f"{name} {progress.duration(duration)}" for name, duration in seconds.items() if name != "generation"
    )
    generation = seconds.get("generation", 0.0)
    generating = f" ({progress.duration(generation)} of it generating answers)" if generation else ""
    return f"time: {phases}{generating}" if phases else "time: less than a second"


def verdict(board: Mapping[str, Any]) -> str:
    """One or two sentences: which arm is best, which are tied with it, and which are no better than no teaching."""
    rows, metric = board["rows"], display_name(board["primary"])
    baseline, score_only = reference(board), scored_only(board)
    taught = [row for row in rows if row["arm"] != baseline]
    if not taught:
        return (
            f"{'None of the others' if score_only else 'No method gave a model that'} could be scored: "
            "see why each failed."
        )
    first, ties = rows[0], [row["arm"] for row in rows[1:] if row["tied"]]
    score = f"{metric} {_magnitude(first['score'])}"
    if not ends_of(first["score"]):
        reason = "Without an interval over records" if score_only else "With one seed"
        return (
            f"{first['arm']} scored highest: {score}. {reason}{',' * score_only} the data cannot tell the arms apart."
        )
    if first["arm"] == baseline:
        text = f"{'None' if score_only else 'No method'} is better than {_join([baseline])}: {score}."
        return f"{text} The data cannot tell {_join(ties)} from it." if ties else text
    if baseline in ties:
        others = [name for name in ties if name != baseline]
        text = f"{first['arm']} scored highest: {score}. But the data cannot tell it from {_join([baseline])}"
        return f"{text}, nor from {_join(others, 'or')}." if others else f"{text}."
    direction = "below" if board["better"] == "lower" else "above"
    gain = f"{_magnitude(first['to_untouched'])} {direction} {_join([baseline])}"
    if ties:
        text = f"{first['arm']} scored highest: {score}, {gain}. It is tied with {_join(ties)}: "
        text += "the data cannot tell them apart."
    else:
        second = rows[1]
        over_next = (
            ""
            if second["arm"] == baseline
            else f"{_magnitude(second['to_leader'])} {direction} {second['arm']}, the next, and "
        )
        text = f"{first['arm']} is best: {score}, {over_next}{gain}."
    not_better = [
        row["arm"]
        for row in taught
        if row["arm"] not in (first["arm"], *ties) and versus_reference(row, board) != "better"
    ]
    if not_better:
        text += f" {_join(not_better)} {'is' if len(not_better) == 1 else 'are'} not better than {_join([baseline])}."
    return text


def warnings(board: Mapping[str, Any]) -> list[str]:
    """Caveats to know before trusting the leaderboard."""
    rows, messages = board["rows"], []
    seeds, score_only = len(board["seeds"]), scored_only(board)
    if score_only:
        messages.append(
            f"Nothing was taught: intervals are over {board['groups']:,} groups of records (by prompt, or --group-by), "
            "each model's answers paired with the others' on the same records. They cover the choice of test records, "
            "not how these models would vary if they were trained again."
        )
    elif seeds == 1:
        messages.append("One seed gives no interval: --seeds 5 does.")
    constant = [row["arm"] for row in rows if row["arm"] != UNTOUCHED and seeds > 1 and len(set(row["per_seed"])) == 1]
    if constant:
        messages.append(
            f"All {seeds} seeds of {_join(constant)} scored exactly the same, so their intervals have zero width. "
            "That is not certainty: other test records may give other scores (--folds tests on several splits)."
        )
    if not board["folds"] and seeds > 1:
        messages.append(
            "One split: intervals cover the training seed, but not the choice of test records"
            f"{_sampling_error(board)}. --folds {seeds} covers both."
        )
    edges: dict[str, list[str]] = {}
    for row in rows:
        if side := edge(row):
            edges.setdefault(side, []).append(row["arm"])
    if edges:
        details = "; ".join(f"the {side} for {_join(arms)}" for side, arms in edges.items())
        rates = {float(rate) for row in rows if edge(row) for rate in row["search"]}
        messages.append(
            f"The best learning rate is at the edge of those tried ({details}): one beyond may be better "
            f"(--lrs {_extended_rates(sorted(rates), set(edges))})."
        )
    if shared := board.get("tuned_on_tested"):
        messages.append(
            f"Learning rates were tuned on the {_join(shared)} records of the test: there are too few to hold some out."
        )
    for word, sign in (("More", 1.0), ("Less", -1.0)):
        off_budget_by = {row["arm"]: share for row in rows if sign * (share := off_budget(row, board)) > 0}
        if off_budget_by:
            details = ", ".join(f"{arm} by {100 * abs(share):.0f} %" for arm, share in off_budget_by.items())
            messages.append(f"{word} than the budget was used: {details}.")
    for column, opponent in (("to_untouched", _join([reference(board)])), ("to_leader", rows[0]["arm"])):
        not_significant = [
            row["arm"]
            for row in rows
            if _is_significant(row[column].get("p")) and not _is_significant(row[column].get("holm"))
        ]
        if not_significant:
            messages.append(
                f"Corrected for the number of arms (Holm), {_join(not_significant)} "
                f"{'is' if len(not_significant) == 1 else 'are'} no longer significantly different "
                f"from {opponent} at the 5 % level."
            )
    best = min if board["better"] == "lower" else max
    for rule, value in [best(board["rules"].items(), key=lambda pair: pair[1])] if board["rules"] else []:
        not_better = [
            row["arm"] for row in rows if row["arm"] != UNTOUCHED and not _is_better_than_rule(row, rule, board)
        ]
        if not_better:
            messages.append(
                f"The rule “{rule}” scores {words.number(value)} with no model at all; "
                f"{_join(not_better)} {'is' if len(not_better) == 1 else 'are'} not shown to be better."
            )
    if len(rows) > MANY_ROWS:
        messages.append(
            f"{len(rows) - 1} methods: the highest of many scores is partly luck, and one 95 % interval in "
            "twenty misses. A second comparison of the first two or three, with other seeds or records, settles it."
        )
    return (
        messages + _collapse_warnings(rows) + [f"{text[:1].upper()}{text[1:]}." for text in board.get("warnings", ())]
    )


def _is_significant(p: float | None) -> bool:
    return p is not None and p < 0.05


def off_budget(row: Mapping[str, Any], board: Mapping[str, Any]) -> float:
    """By what share of the budget an arm used more (or less) than it; 0 within 5 %."""
    share = _budget_share(row, board) - 1 if row["steps"] else 0.0
    return share if abs(share) > TOLERANCE else 0.0


def edge(row: Mapping[str, Any]) -> str:
    """`smallest` or `largest` if an arm's best learning rate is at that edge of the search, untied; else empty."""
    lr, search = row["lr"], row["search"]
    rates = sorted(map(float, search))
    if lr is None or len(rates) < 2 or lr not in (rates[0], rates[-1]):
        return ""
    best = search.get(f"{lr:g}")
    if any(score == best for rate, score in search.items() if rate != f"{lr:g}"):
        return ""
    return "smallest" if lr == rates[0] else "largest"


def versus_reference(row: Mapping[str, Any], board: Mapping[str, Any], column: str = "to_untouched") -> str:
    """`better` or `worse` if the paired interval excludes 0, else `unclear`."""
    ends = ends_of(row[column])
    if not ends:
        return "unclear"
    gain = [-v for v in reversed(ends)] if board["better"] == "lower" else ends
    return "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "unclear"


def budget(board: Mapping[str, Any]) -> str:
    """Format the budget: its amount and unit."""
    if not board["budget"]:
        return "nothing"
    amount, unit = board["budget"]["amount"], board["budget"]["unit"]
    if unit == "seconds":
        return words.duration(amount)
    return f"{words.many(amount)} {'FLOP' if unit == 'flops' else unit}"


def display_name(metric: str) -> str:
    """A metric's name with spaces for underscores."""
    return metric.replace("_", " ")


def _extended_rates(rates: Sequence[float], sides: set[str]) -> str:
    """Rates for --lrs: those tried, and one more beyond each of `sides`."""
    step = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    below, above = [rates[0] / step] * ("smallest" in sides), [rates[-1] * step] * ("largest" in sides)
    return " ".join(f"{rate:.2g}" for rate in (*below, *rates, *above))


def _budget_share(row: Mapping[str, Any], board: Mapping[str, Any]) -> float:
    """The share of the budget that an arm used."""
    return svg.number(row["cost"].get(board["budget"]["unit"])) / board["budget"]["amount"]


def _sampling_error(board: Mapping[str, Any]) -> str:
    """The 95 % half-width of a share due to the number of test records alone, as text."""
    count = (board.get("meaning", {}).get(board["primary"]) or {}).get("n")
    score = board["rows"][0]["score"]["mean"]
    if not count or board["protocol"] not in ("prefer", "answer") or not 0 <= score <= 1:
        return ""
    half_width = 1.96 * math.sqrt(score * (1 - score) / count)
    return f" (about ±{words.SPACE}{half_width:.2f} for {count:,} of them)"


def _collapse_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warn of arms whose answers lost half of the untouched model's entropy or diversity, or changed length twofold."""
    baseline: Mapping[str, Any] = next((row["metrics"] for row in rows if row["arm"] == UNTOUCHED), {})
    arms_by_change: dict[str, list[str]] = {}
    for row in rows:
        for metric in (*FALLEN, "length"):
            value, before = (svg.number(metrics.get(metric, {}).get("mean")) for metrics in (row["metrics"], baseline))
            if value < before / 2:
                arms_by_change.setdefault(f"less than half the {display_name(metric)}", []).append(row["arm"])
            elif metric == "length" and value > 2 * before:
                arms_by_change.setdefault("more than twice the length", []).append(row["arm"])
    return [
        f"Answers have {change} of the untouched model's: {', '.join(arms)}." for change, arms in arms_by_change.items()
    ]


def tone(board: Mapping[str, Any]) -> tuple[str, str, str]:
    """Icon, label and colour class of the verdict."""
    rows = board["rows"]
    baseline = reference(board)
    if scored_only(board):
        tied = any(row["tied"] for row in rows[1:])
        return ("inconclusive", "tied", "unsure") if tied else ("holds", "one is best", "good")
    if rows[0]["arm"] == baseline or any(r["arm"] == baseline and r["tied"] for r in rows):
        return (
            ("inconclusive", "undecided", "unsure")
            if ends_of(rows[0]["score"])
            else ("inconclusive", "one seed", "unsure")
        )
    if any(row["tied"] for row in rows[1:]):
        return "inconclusive", "tied", "unsure"
    return "holds", "one is best", "good"


def _is_better_than_rule(row: Mapping[str, Any], rule: str, board: Mapping[str, Any]) -> bool:
    ends = ends_of(row["to_rules"].get(rule, {}))
    return bool(ends) and (ends[1] < 0 if board["better"] == "lower" else ends[0] > 0)


def _magnitude(difference: Mapping[str, Any]) -> str:
    """Format a score or a difference without its sign, and its interval."""
    mean, ends = abs(difference["mean"]), ends_of(difference)
    if not ends:
        return words.number(mean)
    ends = sorted(abs(v) for v in ends) if ends[0] * ends[1] >= 0 else ends
    return f"{words.number(mean, ends)} ({words.interval(ends)})"


def _join(names: Sequence[str], conjunction: str = "and") -> str:
    """Join names as in a sentence."""
    labels = ["the untouched model" if name == UNTOUCHED else name for name in names]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} {conjunction} {labels[-1]}"


def ends_of(estimate: Mapping[str, Any]) -> list[float]:
    """Both ends of an interval; empty if one is missing."""
    ends = [svg.number(estimate.get(name)) for name in ("low", "high")]
    return ends if all(map(math.isfinite, ends)) else []

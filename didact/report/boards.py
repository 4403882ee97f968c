"""What is said of a comparison in words, read from its leaderboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from didact import progress
from didact.report import svg, words

UNTOUCHED = "untouched"
FALLEN = ("entropy", "distinct_2")  # less than half of the untouched model's is a collapse
OVER = 0.05  # of the budget, from which using more or less of it is told
MANY = 4  # arms from which the best of them flatters itself


def scored_only(board: Mapping[str, Any]) -> bool:
    """Whether nothing was taught, so that intervals are over records and not over seeds."""
    return bool(board.get("over") == "records")


def reference(board: Mapping[str, Any]) -> str:
    """The arm that all are read against: the untouched model, or the first of several that were only scored."""
    return str(board.get("reference", UNTOUCHED))


def short(arm: str, most: int = 20) -> str:
    """An arm's name for a table: of a long path its end."""
    return arm if len(arm) <= most or "/" not in arm else f"…{arm[1 - most :]}"


def times(board: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Where the time went, in seconds of a second or more; `generation` is a part of the others."""
    return [(name, seconds) for name, seconds in board.get("time", {}).items() if seconds >= 1]


def time_spent(board: Mapping[str, Any]) -> str:
    """The same in a line."""
    spent = dict(times(board))
    told = ", ".join(f"{name} {progress.duration(seconds)}" for name, seconds in spent.items() if name != "generation")
    said = spent.get("generation", 0.0)
    within = f" (of it answers being generated {progress.duration(said)})" if said else ""
    return f"time: {told}{within}" if told else "time: less than a second of anything"


def verdict(board: Mapping[str, Any]) -> str:
    """One or two sentences: which arm is best, what the data cannot tell from it, and what does not help at all."""
    rows, metric = board["rows"], named(board["primary"])
    start, whole = reference(board), scored_only(board)
    taught = [row for row in rows if row["arm"] != start]
    if not taught:
        return (
            f"{'None of the others' if whole else 'No method gave a model that'} could be scored: see why each failed."
        )
    first, ties = rows[0], [row["arm"] for row in rows[1:] if row["tied"]]
    score = f"{metric} {_size(first['score'])}"
    if not ends_of(first["score"]):
        why = "Which records make the difference is not known" if whole else "With one seed"
        return f"{first['arm']} scored highest: {score}. {why}{',' * whole} the data cannot tell the arms apart."
    if first["arm"] == start:
        said = f"{'None' if whole else 'No method'} is better than {_listed([start])}: {score}."
        return f"{said} The data cannot tell {_listed(ties)} from it." if ties else said
    if start in ties:
        others = [name for name in ties if name != start]
        said = f"{first['arm']} scored highest: {score}. But the data cannot tell it from {_listed([start])}"
        return f"{said}, nor from {_listed(others, 'or')}." if others else f"{said}."
    way = "below" if board["better"] == "lower" else "above"
    gain = f"{_size(first['to_untouched'])} {way} {_listed([start])}"
    if ties:
        said = f"{first['arm']} scored highest: {score}, {gain}. It is tied with {_listed(ties)}: "
        said += "the data cannot tell them apart."
    else:
        second = rows[1]
        next_ = "" if second["arm"] == start else f"{_size(second['to_leader'])} {way} {second['arm']}, the next, and "
        said = f"{first['arm']} is best: {score}, {next_}{gain}."
    idle = [row["arm"] for row in taught if row["arm"] not in (first["arm"], *ties) and against(row, board) != "better"]
    if idle:
        said += f" {_listed(idle)} {'is' if len(idle) == 1 else 'are'} not better than {_listed([start])}."
    return said


def warnings(board: Mapping[str, Any]) -> list[str]:
    """What to know before believing the leaderboard."""
    rows, out = board["rows"], []
    seeds, whole = len(board["seeds"]), scored_only(board)
    if whole:
        out.append(
            f"Nothing was taught: intervals are over {board['groups']:,} groups of records (by prompt, or --group-by), "
            "each model's answers paired with the others' on the same records. They hold what other records would "
            "give, not what another training of these models would."
        )
    elif seeds == 1:
        out.append("One seed gives no interval: --seeds 5 does.")
    same = [row["arm"] for row in rows if row["arm"] != UNTOUCHED and seeds > 1 and len(set(row["per_seed"])) == 1]
    if same:
        out.append(
            f"All {seeds} seeds of {_listed(same)} scored exactly the same, so that intervals have no width. That is "
            "no certainty: other test records could tell otherwise (--folds tests on different ones)."
        )
    if not board["folds"] and seeds > 1:
        out.append(
            "One split: intervals hold what another training seed would give, not what other test records would"
            f"{_of_records(board)}. --folds {seeds} covers both."
        )
    edges: dict[str, list[str]] = {}
    for row in rows:
        if way := edge(row):
            edges.setdefault(way, []).append(row["arm"])
    if edges:
        told = "; ".join(f"the {way} for {_listed(arms)}" for way, arms in edges.items())
        tried = {float(rate) for row in rows if edge(row) for rate in row["search"]}
        out.append(
            f"The best learning rate is at the edge of those tried ({told}): one beyond may be better "
            f"(--lrs {_wider(sorted(tried), set(edges))})."
        )
    if shared := board.get("tuned_on_tested"):
        out.append(
            f"Learning rates were tuned on the {_listed(shared)} records that are tested: too few to keep some apart."
        )
    for word, side in (("More", 1.0), ("Less", -1.0)):
        off = {row["arm"]: share for row in rows if side * (share := off_budget(row, board)) > 0}
        if off:
            told = ", ".join(f"{arm} by {100 * abs(share):.0f} %" for arm, share in off.items())
            out.append(f"{word} than the budget was used: {told}.")
    for which, other in (("to_untouched", _listed([reference(board)])), ("to_leader", rows[0]["arm"])):
        lost = [row["arm"] for row in rows if _told(row[which].get("p")) and not _told(row[which].get("holm"))]
        if lost:
            out.append(
                f"Corrected for the number of arms (Holm), {_listed(lost)} {'is' if len(lost) == 1 else 'are'} no "
                f"longer told from {other} at 95 %."
            )
    best = min if board["better"] == "lower" else max
    for rule, value in [best(board["rules"].items(), key=lambda pair: pair[1])] if board["rules"] else []:
        beaten = [row["arm"] for row in rows if row["arm"] != UNTOUCHED and not _beats(row, rule, board)]
        if beaten:
            out.append(
                f"The rule “{rule}” scores {words.number(value)} with no model at all; "
                f"{_listed(beaten)} {'is' if len(beaten) == 1 else 'are'} not shown to be better."
            )
    if len(rows) > MANY:
        out.append(
            f"{len(rows) - 1} methods: the highest of many scores is partly luck, and of twenty intervals one misses. "
            "A second comparison of the first two or three, with other seeds or records, settles it."
        )
    return out + _collapsed(rows) + [f"{text[:1].upper()}{text[1:]}." for text in board.get("warnings", ())]


def _told(p: float | None) -> bool:
    return p is not None and p < 0.05


def off_budget(row: Mapping[str, Any], board: Mapping[str, Any]) -> float:
    """By what share an arm used more (or less) than the budget; 0 within 5 %."""
    share = _spent(row, board) - 1 if row["steps"] else 0.0
    return share if abs(share) > OVER else 0.0


def edge(row: Mapping[str, Any]) -> str:
    """smallest or largest, where an arm's best learning rate is that of those tried and no other did as well."""
    lr, search = row["lr"], row["search"]
    rates = sorted(map(float, search))
    if lr is None or len(rates) < 2 or lr not in (rates[0], rates[-1]):
        return ""
    best = search.get(f"{lr:g}")
    if any(score == best for rate, score in search.items() if rate != f"{lr:g}"):
        return ""
    return "smallest" if lr == rates[0] else "largest"


def against(row: Mapping[str, Any], board: Mapping[str, Any], which: str = "to_untouched") -> str:
    """better, worse or unclear, as far as the paired interval tells."""
    ends = ends_of(row[which])
    if not ends:
        return "unclear"
    gain = [-v for v in reversed(ends)] if board["better"] == "lower" else ends
    return "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "unclear"


def budget(board: Mapping[str, Any]) -> str:
    """The budget as a reader writes it."""
    if not board["budget"]:
        return "nothing"
    amount, unit = board["budget"]["amount"], board["budget"]["unit"]
    if unit == "seconds":
        return words.duration(amount)
    return f"{words.many(amount)} {'FLOP' if unit == 'flops' else unit}"


def named(metric: str) -> str:
    """A metric's name as a reader writes it."""
    return metric.replace("_", " ")


def _wider(at: Sequence[float], ways: set[str]) -> str:
    """Rates with one more at each end named, as --lrs takes them."""
    step = (at[-1] / at[0]) ** (1 / (len(at) - 1))
    below, above = [at[0] / step] * ("smallest" in ways), [at[-1] * step] * ("largest" in ways)
    return " ".join(f"{rate:.2g}" for rate in (*below, *at, *above))


def _spent(row: Mapping[str, Any], board: Mapping[str, Any]) -> float:
    """Share of the budget that an arm used."""
    return svg.number(row["cost"].get(board["budget"]["unit"])) / board["budget"]["amount"]


def _of_records(board: Mapping[str, Any]) -> str:
    """How far the number of test records alone leaves a share uncertain."""
    count = (board.get("meaning", {}).get(board["primary"]) or {}).get("n")
    score = board["rows"][0]["score"]["mean"]
    if not count or board["protocol"] not in ("prefer", "answer") or not 0 <= score <= 1:
        return ""
    half = 1.96 * math.sqrt(score * (1 - score) / count)
    return f" (about ±{words.SPACE}{half:.2f} for {count:,} of them)"


def _collapsed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms whose answers lost half of what the untouched model's have, or changed their length twofold."""
    start: Mapping[str, Any] = next((row["metrics"] for row in rows if row["arm"] == UNTOUCHED), {})
    found: dict[str, list[str]] = {}
    for row in rows:
        for metric in (*FALLEN, "length"):
            now, was = (svg.number(of.get(metric, {}).get("mean")) for of in (row["metrics"], start))
            if now < was / 2:
                found.setdefault(f"less than half the {named(metric)}", []).append(row["arm"])
            elif metric == "length" and now > 2 * was:
                found.setdefault("more than twice the length", []).append(row["arm"])
    return [f"Answers have {what} of the untouched model's: {', '.join(arms)}." for what, arms in found.items()]


def tone(board: Mapping[str, Any]) -> tuple[str, str, str]:
    """Icon's word, its text, and the colour of the verdict."""
    rows = board["rows"]
    start = reference(board)
    if scored_only(board):
        tied = any(row["tied"] for row in rows[1:])
        return ("inconclusive", "tied", "unsure") if tied else ("holds", "one is best", "good")
    if rows[0]["arm"] == start or any(r["arm"] == start and r["tied"] for r in rows):
        return (
            ("inconclusive", "undecided", "unsure")
            if ends_of(rows[0]["score"])
            else ("inconclusive", "one seed", "unsure")
        )
    if any(row["tied"] for row in rows[1:]):
        return "inconclusive", "tied", "unsure"
    return "holds", "one is best", "good"


def _beats(row: Mapping[str, Any], rule: str, board: Mapping[str, Any]) -> bool:
    ends = ends_of(row["to_rules"].get(rule, {}))
    return bool(ends) and (ends[1] < 0 if board["better"] == "lower" else ends[0] > 0)


def _size(found: Mapping[str, Any]) -> str:
    """A number or a difference without its sign, and its interval."""
    mean, ends = abs(found["mean"]), ends_of(found)
    if not ends:
        return words.number(mean)
    ends = sorted(abs(v) for v in ends) if ends[0] * ends[1] >= 0 else ends
    return f"{words.number(mean, ends)} ({words.interval(ends)})"


def _listed(names: Sequence[str], word: str = "and") -> str:
    """Names as in a sentence; the untouched model by what it is."""
    shown = ["the untouched model" if name == UNTOUCHED else name for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"


def ends_of(found: Mapping[str, Any]) -> list[float]:
    """Both ends of an interval; none where one is not known."""
    ends = [svg.number(found.get(name)) for name in ("low", "high")]
    return ends if all(map(math.isfinite, ends)) else []

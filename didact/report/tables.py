"""Terminal tables of results and claims."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from didact import catalogue
from didact.report import boards

MAX_CHARACTERS = 144  # of a sample's prompt or answer
SAMPLES = 3
ARROWS = {"higher": "higher is better", "lower": "lower is better", "gold": "near .5 is better", "": ""}
BEFORE_AFTER = ("before", "after")


def sides(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Names of a metric's two numbers: studies, and methods that only prompt a model, have no before and after."""
    family = catalogue.FAMILIES.get(entry.get("family", ""))
    if family and family.sides:
        return family.sides
    only_asks = entry.get("capabilities") and "models" not in entry.get("gives", ("models",))
    return ("asked plainly", "through the procedure") if only_asks else BEFORE_AFTER


def metrics(rows: Mapping[str, Any], sides: Sequence[str] = BEFORE_AFTER) -> Table:
    """Metrics before (where any has it) and after, with 95 % intervals; `rows` are the metrics of result.json."""
    table = Table(box=None, pad_edge=False)
    has_before = any(row["before"] is not None for row in rows.values())
    has_gold = any(row.get("gold") is not None for row in rows.values())
    for column in ("metric", *sides[not has_before :], "95 % interval", *(["gold"] if has_gold else []), "n", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right", no_wrap=column != "")
    for name, row in rows.items():
        unit = f" {row['unit']}" if row["unit"] else ""
        ci = row["ci"]
        interval = f"{number(ci[0])} .. {number(ci[1])}" if ci and None not in ci else ""
        cells = [name, *([number(row["before"])] if has_before else []), number(row["after"]) + unit, interval]
        cells += [number(row["gold"])] if has_gold else []
        table.add_row(*cells, str(row["n"] or ""), ARROWS[row["better"]])
    return table


def samples(rows: Sequence[Mapping[str, str]], sides: Sequence[str] = BEFORE_AFTER) -> Table:
    """First lines of a few answers before and after, side by side, taken from every part in turn."""
    parts: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        parts.setdefault(row.get("part", ""), []).append(row)
    alternating = [row for turn in itertools.zip_longest(*parts.values()) for row in turn if row is not None]
    columns = [name for name in ("prompt", "before", "after") if any(name in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    for column in ("", *(dict(zip(BEFORE_AFTER, sides, strict=True)).get(name, name) for name in columns)):
        table.add_column(column, overflow="fold", max_width=48)
    for row in alternating[:SAMPLES]:
        answers = (_first_line(row.get(name, "")) for name in columns if name != "prompt")
        table.add_row(row.get("part", ""), _brief(row["prompt"]), *map(_brief, answers))
    return table


def _first_line(text: str) -> str:
    """The first line, with … where more follows: models that emit no end token ramble on."""
    first, _, remainder = text.strip().partition("\n")
    return f"{first.rstrip()} …" if remainder.strip() else first


def _brief(text: str) -> str:
    """The text on one line, cut to about three lines of the table's cell."""
    flat = " ⏎ ".join(text.splitlines())
    return flat if len(flat) <= MAX_CHARACTERS else f"{flat[: MAX_CHARACTERS - 1]}…"


def match_lines(parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line per part: how many sampled answers equal those of the records, before and after."""
    return [
        f"{part}: {count['before']} of {count['of']} answers as in the records before, {count['after']} after"
        for part, count in parts.items()
    ]


def tests(card: Mapping[str, Any]) -> Table:
    """A claim's tests with their intervals and outcomes."""
    table = Table(box=None, pad_edge=False)
    for column in ("test", "kind", "estimate", "interval", "null", "n", "outcome"):
        table.add_column(column, overflow="fold")
    for row in card["tests"]:
        interval = row["interval"] or (None, None)
        ends = f"{number(interval[0])} .. {number(interval[1])}"
        null = f"+-{number(row['margin'])}" if row["kind"] == "equivalence" else number(row["null"])
        outcome = row["outcome"] if row["gates"] else f"{row['outcome']} (reported)"
        table.add_row(row["name"], row["kind"], number(row["estimate"]), ends, null, str(row["n"]), outcome)
    return table


def sabotages(card: Mapping[str, Any]) -> Table | None:
    """A claim's sabotages, and whether each was detected; None where there are none."""
    if not card["sabotage"]:
        return None
    table = Table(box=None, pad_edge=False)
    for column in ("sabotage", "breaks", "intact - sabotaged", "interval", "detected"):
        table.add_column(column, overflow="fold")
    for row in card["sabotage"]:
        interval = row["interval"] or (None, None)
        ends = f"{number(interval[0])} .. {number(interval[1])}"
        table.add_row(row["name"], row["breaks"], number(row["estimate"]), ends, "yes" if row["detected"] else "NO")
    return table


def leaderboard(board: Mapping[str, Any]) -> Table:
    """Arms, best first: primary score, paired differences to the best and to the untouched model, cost, diagnostics.

    Intervals are Student's t, which are symmetric: `a ± b` is the 95 % interval from a - b to a + b. Models that were
    only scored have no learning rates and costs.
    """
    if boards.scored_only(board):
        return _scored_only_table(board)
    unit = board["budget"]["unit"]
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    names = {row["arm"]: boards.short(row["arm"]) for row in board["rows"]}
    table.add_column("arm", overflow="fold", min_width=max(map(len, names.values())))
    score = f"{board['primary'].replace('_', ' ')}\n({board['better']} is better)"
    diagnostics = {"kl": "kl", "length": "length", "entropy": "entropy", "distinct_2": "distinct\nbigrams"}
    diagnostics = {m: header for m, header in diagnostics.items() if any(m in row["metrics"] for row in board["rows"])}
    headers = (score, "to the best,\nin pairs", "to untouched,\nin pairs", "lr", "steps", unit, *diagnostics.values())
    has_general = any("general_rise" in row["metrics"] for row in board["rows"])
    for header in (*headers, *["general\ntext"][: int(has_general)]):
        table.add_column(header, justify="right", no_wrap=True)
    for place, row in enumerate(board["rows"], 1):
        to_leader = "best" if place == 1 else f"{spread(row['to_leader'])}{', tied' if row['tied'] else ''}"
        if row["to_leader"]["low"] is None:
            to_leader = f"{number(row['to_leader']['mean'])}, one seed"
        to_untouched = "" if row["arm"] == "untouched" else spread(row["to_untouched"])
        cells = [str(place), names[row["arm"]], spread(row["score"]), to_leader, to_untouched]
        cells += ["" if row[name] is None else f"{row[name]:g}" for name in ("lr", "steps")]
        spent = row["cost"][unit]
        deviation = f" ({share:+.0%})" if (share := boards.off_budget(row, board)) else ""
        cells.append(
            f"{spent:,.0f}{deviation}" if spent and unit == "tokens" else f"{spent:.3g}{deviation}" if spent else ""
        )
        cells += [number(_zero_if_tiny(row["metrics"].get(m, {}).get("mean"))) for m in diagnostics]
        general_rise = "" if row["arm"] == "untouched" else _signed(row["metrics"].get("general_rise", {}).get("mean"))
        cells += [general_rise] if has_general else []
        table.add_row(*cells)
    return table


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _scored_only_table(board: Mapping[str, Any]) -> Table:
    """The leaderboard of models that were only scored, with intervals over records."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    names = {row["arm"]: boards.short(row["arm"], 40) for row in board["rows"]}
    table.add_column("model", overflow="fold", min_width=max(map(len, names.values())))
    score = f"{board['primary'].replace('_', ' ')}\n({board['better']} is better)"
    to_reference = f"to {boards.short(boards.reference(board))},\nin pairs"
    for header in (score, "95 % interval\nover records", to_reference, "95 % interval\nover records", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for place, row in enumerate(board["rows"], 1):
        cells = [str(place), names[row["arm"]], number(row["score"]["mean"]), _interval(row["score"])]
        if row["arm"] != boards.reference(board):
            difference = row["to_untouched"]
            cells += [number(difference["mean"]), _interval(difference), number(difference.get("holm"))]
        table.add_row(*cells)
    return table


def _interval(estimate: Mapping[str, float | None]) -> str:
    return "" if estimate["low"] is None else f"{number(estimate['low'])} .. {number(estimate['high'])}"


def spread(estimate: Mapping[str, float | None]) -> str:
    """A mean ± half the width of its t interval."""
    mean, high = estimate["mean"], estimate["high"]
    return number(mean) if mean is None or high is None else f"{number(mean)} ± {number(_zero_if_tiny(high - mean))}"


def _zero_if_tiny(value: float | None) -> float | None:
    """The value, or 0 where it is no more than rounding error."""
    return 0.0 if value is not None and abs(value) < 1e-6 else value


def number(value: float | None) -> str:
    """A number at a readable precision; a dash for None or NaN."""
    if value is None or value != value:
        return "-"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"

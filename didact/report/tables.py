"""Terminal tables of results and claims."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from didact import catalogue
from didact.report import boards

BRIEF = 144  # characters of a sample
SAMPLES = 3
ARROWS = {"higher": "higher is better", "lower": "lower is better", "gold": "near .5 is better", "": ""}
SIDES = ("before", "after")


def sides(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What the two numbers of a metric are called: a study has no before and after, nor has what only asks a model."""
    family = catalogue.FAMILIES.get(entry.get("family", ""))
    if family and family.sides:
        return family.sides
    asks = entry.get("capabilities") and "models" not in entry.get("gives", ("models",))
    return ("asked plainly", "through the procedure") if asks else SIDES


def metrics(rows: Mapping[str, Any], sides: Sequence[str] = SIDES) -> Table:
    """Before, where any has it, and after with its 95 % interval; rows are metrics as result.json has them."""
    table = Table(box=None, pad_edge=False)
    first = any(row["before"] is not None for row in rows.values())
    gold = any(row.get("gold") is not None for row in rows.values())
    for column in ("metric", *sides[not first :], "95 % interval", *(["gold"] if gold else []), "n", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right", no_wrap=column != "")
    for name, row in rows.items():
        unit = f" {row['unit']}" if row["unit"] else ""
        ci = row["ci"]
        shown = f"{number(ci[0])} .. {number(ci[1])}" if ci and None not in ci else ""
        cells = [name, *([number(row["before"])] if first else []), number(row["after"]) + unit, shown]
        cells += [number(row["gold"])] if gold else []
        table.add_row(*cells, str(row["n"] or ""), ARROWS[row["better"]])
    return table


def samples(rows: Sequence[Mapping[str, str]], sides: Sequence[str] = SIDES) -> Table:
    """A few answers before and after, side by side, by their first lines: some of every part."""
    parts: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        parts.setdefault(row.get("part", ""), []).append(row)
    turns = [row for turn in itertools.zip_longest(*parts.values()) for row in turn if row is not None]
    columns = [name for name in ("prompt", "before", "after") if any(name in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    for column in ("", *(dict(zip(SIDES, sides, strict=True)).get(name, name) for name in columns)):
        table.add_column(column, overflow="fold", max_width=48)
    for row in turns[:SAMPLES]:
        answers = (_first_line(row.get(name, "")) for name in columns if name != "prompt")
        table.add_row(row.get("part", ""), _brief(row["prompt"]), *map(_brief, answers))
    return table


def _first_line(text: str) -> str:
    """What stands before the first line break, with a mark where more follows: models that do not end go on."""
    first, _, rest = text.strip().partition("\n")
    return f"{first.rstrip()} …" if rest.strip() else first


def _brief(text: str) -> str:
    """On one line, and not longer than three of the table's."""
    flat = " ⏎ ".join(text.splitlines())
    return flat if len(flat) <= BRIEF else f"{flat[: BRIEF - 1]}…"


def answered(parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for every part: how many of the sampled answers are those of the records, before and after."""
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
        margin = f"+-{number(row['margin'])}" if row["kind"] == "equivalence" else number(row["null"])
        gates = row["outcome"] if row["gates"] else f"{row['outcome']} (reported)"
        table.add_row(row["name"], row["kind"], number(row["estimate"]), ends, margin, str(row["n"]), gates)
    return table


def sabotages(card: Mapping[str, Any]) -> Table | None:
    """Whether the claim noticed each broken method."""
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

    Intervals are Student's t, which have two equal sides: `a ± b` is the 95 % interval from a - b to a + b. Of models
    that were only scored nothing is said of learning rates and cost.
    """
    if boards.scored_only(board):
        return _scored(board)
    unit = board["budget"]["unit"]
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    names = {row["arm"]: boards.short(row["arm"]) for row in board["rows"]}
    table.add_column("arm", overflow="fold", min_width=max(map(len, names.values())))
    score = f"{board['primary'].replace('_', ' ')}\n({board['better']} is better)"
    said = {"kl": "kl", "length": "length", "entropy": "entropy", "distinct_2": "distinct\nbigrams"}
    said = {m: head for m, head in said.items() if any(m in row["metrics"] for row in board["rows"])}
    heads = (score, "to the best,\nin pairs", "to untouched,\nin pairs", "lr", "steps", unit, *said.values())
    general = any("general_rise" in row["metrics"] for row in board["rows"])
    for head in (*heads, *["general\ntext"][: int(general)]):
        table.add_column(head, justify="right", no_wrap=True)
    for place, row in enumerate(board["rows"], 1):
        best = "best" if place == 1 else f"{spread(row['to_leader'])}{', tied' if row['tied'] else ''}"
        if row["to_leader"]["low"] is None:
            best = f"{number(row['to_leader']['mean'])}, one seed"
        start = "" if row["arm"] == "untouched" else spread(row["to_untouched"])
        cells = [str(place), names[row["arm"]], spread(row["score"]), best, start]
        cells += ["" if row[name] is None else f"{row[name]:g}" for name in ("lr", "steps")]
        used = row["cost"][unit]
        off = f" ({share:+.0%})" if (share := boards.off_budget(row, board)) else ""
        cells.append(f"{used:,.0f}{off}" if used and unit == "tokens" else f"{used:.3g}{off}" if used else "")
        cells += [number(_rounded(row["metrics"].get(m, {}).get("mean"))) for m in said]
        rise = "" if row["arm"] == "untouched" else _rise(row["metrics"].get("general_rise", {}).get("mean"))
        cells += [rise] if general else []
        table.add_row(*cells)
    return table


def _rise(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _scored(board: Mapping[str, Any]) -> Table:
    """Models that were only scored: intervals over records."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    names = {row["arm"]: boards.short(row["arm"], 40) for row in board["rows"]}
    table.add_column("model", overflow="fold", min_width=max(map(len, names.values())))
    score = f"{board['primary'].replace('_', ' ')}\n({board['better']} is better)"
    start = f"to {boards.short(boards.reference(board))},\nin pairs"
    for head in (score, "95 % interval\nover records", start, "95 % interval\nover records", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for place, row in enumerate(board["rows"], 1):
        cells = [str(place), names[row["arm"]], number(row["score"]["mean"]), _between(row["score"])]
        if row["arm"] != boards.reference(board):
            start = row["to_untouched"]
            cells += [number(start["mean"]), _between(start), number(start.get("holm"))]
        table.add_row(*cells)
    return table


def _between(found: Mapping[str, float | None]) -> str:
    return "" if found["low"] is None else f"{number(found['low'])} .. {number(found['high'])}"


def spread(found: Mapping[str, float | None]) -> str:
    """A mean with half the width of its t interval."""
    mean, high = found["mean"], found["high"]
    return number(mean) if mean is None or high is None else f"{number(mean)} ± {number(_rounded(high - mean))}"


def _rounded(value: float | None) -> float | None:
    """A difference of rounding errors is none."""
    return 0.0 if value is not None and abs(value) < 1e-6 else value


def number(value: float | None) -> str:
    """A number at a readable precision; a dash for none."""
    if value is None or value != value:
        return "-"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"

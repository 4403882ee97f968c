"""Terminal tables of results and claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

ARROWS = {"higher": "higher is better", "lower": "lower is better", "gold": "near .5 is better", "": ""}


def metrics(rows: Mapping[str, Any]) -> Table:
    """Before and after with the 95 % interval of after; rows are metrics as result.json has them."""
    table = Table(box=None, pad_edge=False)
    gold = any(row.get("gold") is not None for row in rows.values())
    for column in ("metric", "before", "after", "95 % interval", *(["gold"] if gold else []), "n", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right", no_wrap=column != "")
    for name, row in rows.items():
        unit = f" {row['unit']}" if row["unit"] else ""
        ci = row["ci"]
        shown = f"{number(ci[0])} .. {number(ci[1])}" if ci and None not in ci else ""
        cells = [name, number(row["before"]), number(row["after"]) + unit, shown]
        cells += [number(row["gold"])] if gold else []
        table.add_row(*cells, str(row["n"] or ""), ARROWS[row["better"]])
    return table


def samples(rows: list[Mapping[str, str]]) -> Table:
    """Answers before and after, side by side."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "prompt", "before", "after"):
        table.add_column(column, overflow="fold", max_width=48)
    for row in rows:
        table.add_row(row.get("part", ""), row["prompt"], row["before"], row["after"])
    return table


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


def number(value: float | None) -> str:
    """A number at a readable precision; a dash for none."""
    if value is None or value != value:
        return "-"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"

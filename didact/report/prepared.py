"""Terminal summary of a prepared corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

OUTCOMES = ("read", "bad", "short", "low quality", "duplicate", "contaminated", "cut")


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print a row per source, then the quality filter, near duplicates, contamination and warnings."""
    table = Table(box=None, pad_edge=False)
    sources, unit = summary["sources"], summary["unit"]
    outcomes = [outcome for outcome in OUTCOMES if outcome == "read" or any(row[outcome] for row in sources.values())]
    for column in ("source", *outcomes, "pieces", unit, "weight", f"{unit} taken", "epochs"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, row in sources.items():
        counts = [f"{row[outcome]:,}" for outcome in (*outcomes, "pieces")]
        table.add_row(
            name,
            *counts,
            f"{row['size']:,.0f}",
            f"{row['weight']:.1%}",
            f"{row['taken']:,.0f}",
            f"{row['epochs']:.2f}",
        )
    console.print(table, "")
    if stats := summary.get("quality"):
        console.print(
            f"quality: the classifier tells trusted documents from others with AUC {stats['auc']:.3f}; kept by score:"
        )
        for band in stats["bins"]:
            if count := band["documents"]:
                low, high = band["score"]
                shares = f"{band['kept'] / count:.1%}, expected {band['expected'] / count:.1%}"
                console.print(f"  {low:.1f} to {high:.1f}: {band['kept']:,} of {count:,} ({shares})")
    if stats := summary.get("duplicates"):
        console.print(
            f"near duplicates: {stats['groups']:,} groups, the largest of {stats['largest']:,}; "
            f"{stats['compared']:,} pairs compared"
        )
        if stats["joined_through_others"]:
            console.print(
                f"  {stats['joined_through_others']:,} of the documents removed resemble the one kept only through "
                f"others (similarity at least {stats['least_similarity_to_kept']:.2f})"
            )
    if stats := summary.get("contamination"):
        boilerplate = f", {stats['boilerplate']:,} common phrases kept" if stats["boilerplate"] else ""
        console.print(f"test items: {stats['items']:,} looked for, {stats['places']:,} places cut{boilerplate}")
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}")

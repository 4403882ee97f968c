"""What is told of a corpus that was prepared, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

FATES = ("read", "bad", "short", "low quality", "duplicate", "contaminated", "cut")


def show(told: Mapping[str, Any], console: Console) -> None:
    """A row a source, and what was found."""
    table = Table(box=None, pad_edge=False)
    sources, unit = told["sources"], told["unit"]
    fates = [f for f in FATES if f == "read" or any(row[f] for row in sources.values())]
    for column in ("source", *fates, "pieces", unit, "weight", f"{unit} taken", "epochs"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, row in sources.items():
        numbers = [f"{row[f]:,}" for f in (*fates, "pieces")]
        table.add_row(
            name,
            *numbers,
            f"{row['size']:,.0f}",
            f"{row['weight']:.1%}",
            f"{row['taken']:,.0f}",
            f"{row['epochs']:.2f}",
        )
    console.print(table, "")
    if found := told.get("quality"):
        console.print(
            f"quality: the classifier tells trusted documents from others with AUC {found['auc']:.3f}; kept by score:"
        )
        for part in found["bins"]:
            if count := part["documents"]:
                low, high = part["score"]
                shares = f"{part['kept'] / count:.1%}, expected {part['expected'] / count:.1%}"
                console.print(f"  {low:.1f} to {high:.1f}: {part['kept']:,} of {count:,} ({shares})")
    if found := told.get("duplicates"):
        console.print(
            f"near duplicates: {found['groups']:,} groups, the largest of {found['largest']:,}; "
            f"{found['compared']:,} pairs compared"
        )
        if found["joined_through_others"]:
            console.print(
                f"  {found['joined_through_others']:,} of them resemble the one kept only through others "
                f"(at least {found['least_similarity_to_kept']:.2f})"
            )
    if found := told.get("contamination"):
        more = f", {found['boilerplate']:,} common phrases left" if found["boilerplate"] else ""
        console.print(f"test items: {found['items']:,} looked for, {found['places']:,} places cut{more}")
    for warning in told["warnings"]:
        console.print(f"warning: {warning}")

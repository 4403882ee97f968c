"""Contexts of the claim page and the scoreboard page, read from the claims' cards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from didact import catalogue
from didact.report import comparison_plots, plots, runs, words
from didact.types import UserError

VERDICTS = ("holds", "fails", "inconclusive", None)


def template_context(path: Path) -> dict[str, Any]:
    """Return the context of `claim.html`.

    Raises:
        UserError: the file is not a claim's card.
    """
    card = runs.read(path)
    if not is_card(card):
        raise UserError(f"{path}: not a claim's card")
    entry = catalogue.read().get(card["method"], {})
    gating = [t for t in card["tests"] if t["gates"] != "none"]
    missed = [s for s in card["sabotage"] if not s["detected"]]
    return {
        "title": f"{card['method']}: the claim",
        "card": card,
        "entry": entry,
        "link": runs.paper_link(entry),
        "tests": [_test(t) for t in card["tests"]],
        "gating": gating,
        "open": sorted((t for t in gating if t["outcome"] != "holds"), key=lambda t: t["outcome"] != "fails"),
        "missed": missed,
        "strips": _strips(card["arms"], card["seeds"]),
        "spread": _spread(card["arms"]),
        "log": comparison_plots.LOG,
        "stale": _changed_since(path, card, "stale"),
        "drifted": _changed_since(path, card, "drifted"),
    }


def board(
    claims: Mapping[Path, Mapping[str, Any]], real: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the context of `scoreboard.html` from those of the claims' pages; it also lists methods without a card.

    `real` maps a method to the context of the same claim measured on a pre-trained model.
    """
    verdicts = {name: {"verdict": claim["card"]["verdict"], "href": f"./real/{quote(name)}.html"}
              for name, claim in (real or {}).items()}  # fmt: skip
    rows = [
        {**claim, "href": "./" + quote(path.name), "real": verdicts.get(claim["card"]["method"])}
        for path, claim in claims.items()
    ]
    rows.sort(key=lambda row: (row["entry"].get("family", "~"), row["card"]["method"]))
    measured = {row["card"]["method"] for row in rows}
    return {
        "title": "Scoreboard",
        "rows": rows,
        "counts": {v: sum(row["card"]["verdict"] == v for row in rows) for v in VERDICTS},
        "aged": [row["card"]["method"] for row in rows if row["stale"]],
        "waiting": [name for name in catalogue.papers() if name not in measured],
        "seconds": sum(row["card"]["seconds"] for row in rows),
    }


def is_card(card: Any) -> bool:
    """Whether this is a card as `didact claim` writes it."""
    return (
        isinstance(card, dict) and {"method", "claim", "tests", "verdict", "arms", "sabotage", "seeds"} <= card.keys()
    )


def _changed_since(path: Path, card: Mapping[str, Any], changed: Literal["stale", "drifted"]) -> bool | None:
    """Whether the claim's own code (stale) or the core (drifted) changed since; None if the claim is not installed."""
    from didact.claims import runner

    comparable = card["method"] in runner.claims() and "sources_sha256" in card
    return getattr(runner, changed)(path) if comparable else None


def _test(row: Mapping[str, Any]) -> dict[str, Any]:
    against = _factor(row, row["null"] if row["kind"] in plots.ONE_SIDED else row["margin"])
    return {
        **row, "mark": plots.test(row), "against": _against(row), "factor": _factor(row, row["estimate"]),
        "against_factor": against, "level": row.get("level") or 0.95,
    }  # fmt: skip


def _against(row: Mapping[str, Any]) -> str:
    """Describe what the estimate is compared with: a one-sided bound, or the null with its margin."""
    null, margin = words.short(row["null"]), words.short(row["margin"])
    if row["kind"] in plots.ONE_SIDED:
        return f"{'below' if row['direction'] == 'less' else 'above'} {null}"
    return f"{null}{words.SPACE}±{words.SPACE}{margin}"


def _factor(row: Mapping[str, Any], value: float | None) -> str:
    """Format a log ratio as the factor it stands for; empty for other units."""
    if row["unit"] != "log ratio" or value is None or abs(value) > 700:
        return ""
    return f"×{words.SPACE}{math.exp(value):.4g}"


def _metrics(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(metric for arm in arms.values() for metric in arm))


def _strips(arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[Any]) -> list[tuple[str, Any]]:
    """Draw a strip plot per metric, with the arms that have it."""
    by_metric = {m: {arm: values[m] for arm, values in arms.items() if values.get(m)} for m in _metrics(arms)}
    return [(m, comparison_plots.strip(m, columns, seeds)) for m, columns in by_metric.items()]


def _spread(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Mean and standard deviation over seeds for every metric and arm."""
    return {m: {arm: _mean_sd(columns.get(m)) for arm, columns in arms.items()} for m in _metrics(arms)}


def _mean_sd(values: Sequence[float | None] | None) -> str:
    present = [v for v in values or () if v is not None]
    if not values or not present:
        return "–" if not values else "none"
    mean = words.number(statistics.fmean(present))
    text = mean if len(present) < 2 else f"{mean} ± {words.number(statistics.stdev(present))}"
    return text if len(present) == len(values) else f"{text} ({len(values) - len(present)} of {len(values)} none)"

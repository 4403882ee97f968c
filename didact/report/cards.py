"""What the page of a claim and the page of a scoreboard show, read from the claims' cards."""

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


def told(path: Path) -> dict[str, Any]:
    """Everything `claim.html` names.

    Raises:
        UserError: the file is no claim's card.
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
        "stale": _since(path, card, "stale"),
        "drifted": _since(path, card, "drifted"),
    }


def board(
    claims: Mapping[Path, Mapping[str, Any]], real: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Everything `scoreboard.html` names, from what the claims' pages show; methods without a card are named too.

    `real` are the same claims, by method, on a pre-trained model.
    """
    beside = {name: {"verdict": claim["card"]["verdict"], "href": f"./real/{quote(name)}.html"}
              for name, claim in (real or {}).items()}  # fmt: skip
    rows = [
        {**claim, "href": "./" + quote(path.name), "real": beside.get(claim["card"]["method"])}
        for path, claim in claims.items()
    ]
    rows.sort(key=lambda row: (row["entry"].get("family", "~"), row["card"]["method"]))
    have = {row["card"]["method"] for row in rows}
    return {
        "title": "Scoreboard",
        "rows": rows,
        "counts": {v: sum(row["card"]["verdict"] == v for row in rows) for v in VERDICTS},
        "aged": [row["card"]["method"] for row in rows if row["stale"]],
        "waiting": [name for name in catalogue.papers() if name not in have],
        "seconds": sum(row["card"]["seconds"] for row in rows),
    }


def is_card(card: Any) -> bool:
    """Whether this is what `didact claim` writes."""
    return (
        isinstance(card, dict) and {"method", "claim", "tests", "verdict", "arms", "sabotage", "seeds"} <= card.keys()
    )


def _since(path: Path, card: Mapping[str, Any], changed: Literal["stale", "drifted"]) -> bool | None:
    """Whether the own or the shared code changed since; none where this installation has no such claim."""
    from didact.claims import runner

    known = card["method"] in runner.claims() and "sources_sha256" in card
    return getattr(runner, changed)(path) if known else None


def _test(row: Mapping[str, Any]) -> dict[str, Any]:
    against = _factor(row, row["null"] if row["kind"] in plots.SIDED else row["margin"])
    return {
        **row, "mark": plots.test(row), "against": _against(row), "factor": _factor(row, row["estimate"]),
        "against_factor": against, "level": row.get("level") or 0.95,
    }  # fmt: skip


def _against(row: Mapping[str, Any]) -> str:
    """What the estimate is held against."""
    null, margin = words.short(row["null"]), words.short(row["margin"])
    if row["kind"] in plots.SIDED:
        return f"{'below' if row['direction'] == 'less' else 'above'} {null}"
    return f"{null}{words.SPACE}±{words.SPACE}{margin}"


def _factor(row: Mapping[str, Any], value: float | None) -> str:
    """A log ratio as the factor it stands for."""
    if row["unit"] != "log ratio" or value is None or abs(value) > 700:
        return ""
    return f"×{words.SPACE}{math.exp(value):.4g}"


def _metrics(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(metric for arm in arms.values() for metric in arm))


def _strips(arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[Any]) -> list[tuple[str, Any]]:
    """A strip plot per metric, of the arms that have it."""
    named = {m: {arm: columns[m] for arm, columns in arms.items() if columns.get(m)} for m in _metrics(arms)}
    return [(m, comparison_plots.strip(m, having, seeds)) for m, having in named.items()]


def _spread(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Mean and standard deviation over seeds, of every arm and metric."""
    return {m: {arm: _mean_sd(columns.get(m)) for arm, columns in arms.items()} for m in _metrics(arms)}


def _mean_sd(values: Sequence[float | None] | None) -> str:
    known = [v for v in values or () if v is not None]
    if not values or not known:
        return "–" if not values else "none"
    mean = words.number(statistics.fmean(known))
    text = mean if len(known) < 2 else f"{mean} ± {words.number(statistics.stdev(known))}"
    return text if len(known) == len(values) else f"{text} ({len(values) - len(known)} of {len(values)} none)"

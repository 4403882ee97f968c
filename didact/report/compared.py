"""Context of a comparison's page, read from its leaderboard."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue
from didact.evaluate.measures import BESIDE
from didact.report import boards, comparison_plots, plots, runs, svg, words
from didact.types import UserError

REQUIRED = ("rows", "primary", "better", "budget", "seeds", "rates", "folds", "rules", "failures", "model", "data")
EMBEDDED = "embedded example"
DIAGNOSTICS = (
    "kl",
    "length",
    "entropy",
    "distinct_2",
    "general_rise",
    "general_kl",
)  # always shown: they reveal a collapse that the score alone hides
PHASES = {
    "probes": "finding how many steps the budget allows",
    "search": "training in the search for a learning rate",
    "training": "training for the test",
    "scoring": "scoring",
    "generation": "generating answers (included in the above)",
}
CONVERSIONS = {("demo", "preference"): "completion=chosen"}  # {(kind needed, kind given): --map that converts it}


def template_context(root: Path) -> dict[str, Any]:
    """Return the context of `compare.html`.

    Raises:
        UserError: the folder holds no finished comparison.
    """
    path = root / "leaderboard.json"
    board = runs.read(path)
    if not isinstance(board, dict) or not board.get("rows"):
        raise UserError(f"{path}: not a leaderboard of didact")
    if missing := [name for name in REQUIRED if name not in board]:
        raise UserError(f"{path}: not a leaderboard of didact: no {', '.join(missing)}")
    rows = board["rows"]
    scales = _scales(board)
    metrics = list(dict.fromkeys(m for row in rows for m in row["metrics"]))
    metrics.sort(key=lambda name: name.endswith(BESIDE))
    score_only = boards.scored_only(board)
    arm_count = len(rows) - (boards.reference(board) == boards.UNTOUCHED) + len(board["failures"])
    return {
        "title": f"{arm_count} {'model' if score_only else 'method'}{'' if arm_count == 1 else 's'} compared",
        "whole": score_only,
        "reference": boards.reference(board),
        "board": board,
        "embedded": board["model"] == EMBEDDED,
        "verdict": boards.verdict(board),
        "tone": boards.tone(board),
        "warnings": boards.warnings(board),
        "rows": [_row(i, row, board, scales) for i, row in enumerate(rows)],
        "command": shlex.join(["didact", *map(str, board["argv"])]) if board.get("argv") else "",
        "budget": boards.budget(board),
        "rulers": {column: comparison_plots.ruler(ends) for column, (ends, _) in scales.items()},
        "quality": "" if score_only else _quality_plot(board),
        "strip": ""
        if score_only
        else comparison_plots.strip(
            boards.display_name(board["primary"]), {r["arm"]: r["per_seed"] for r in rows}, board["seeds"]
        ),
        "searches": [(row["arm"], _search(row, board["primary"]), boards.edge(row)) for row in rows if row["search"]],
        "beyond": {row["arm"]: row.get("beyond", 0) for row in rows},
        "diagnostics": [m for m in DIAGNOSTICS if m in metrics],
        "metrics": metrics,
        "meaning": board.get("meaning", {}),
        "samples": _samples(rows),
        "answered": _answered(rows),
        "winner": _best_arm(root, board),
        "folder": shlex.quote(str(root)),
        "times": [(PHASES.get(name, name), seconds) for name, seconds in boards.times(board)],
    }


# --- plots and rows --------------------------------------------------------------------------


Scale = tuple[
    tuple[float, float], dict[str, tuple[float, str]]
]  # both ends, and vertical reference lines `{name: (value, class)}`


def _scales(board: Mapping[str, Any]) -> dict[str, Scale]:
    """One scale per column, shared by all rows; the scale of scores includes the rules, those of differences 0."""
    rows = board["rows"]
    lines = {
        "score": _levels(board),
        "to_leader": {"the best": (0.0, "null")},
        "to_untouched": {boards.reference(board): (0.0, "null")},
    }
    values = {
        column: [svg.number(row[column].get(end)) for row in rows for end in ("mean", "low", "high")]
        for column in lines
    }
    return {
        column: (comparison_plots.span(values[column] + [v for v, _ in levels.values()]), levels)
        for column, levels in lines.items()
    }


def _levels(board: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Reference scores: those of the untouched model and of rules that need no model."""
    untouched = {r["arm"]: svg.number(r["score"]["mean"]) for r in board["rows"] if r["arm"] == boards.UNTOUCHED}
    rules = {rule: svg.number(value) for rule, value in board["rules"].items()}
    return {**{k: (v, "null") for k, v in untouched.items()}, **{k: (v, "least") for k, v in rules.items()}}


def _row(place: int, row: Mapping[str, Any], board: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, Any]:
    """A row of the leaderboard with its plots and formatted numbers."""
    tied, no_ties = bool(row["tied"]), not any(r["tied"] for r in board["rows"][1:])
    has_interval = bool(boards.ends_of(row["to_leader"]))
    standing = "unclear" if not has_interval else "best" if not place and no_ties else "tied" if tied else "behind"
    marks = {
        column: comparison_plots.interval(
            svg.number(row[column]["mean"]), boards.ends_of(row[column]), ends, levels, tied, row["arm"]
        )
        for column, (ends, levels) in scales.items()
    }
    texts = {
        column: {
            "mean": words.number(row[column]["mean"], boards.ends_of(row[column]) or None),
            "interval": words.interval(boards.ends_of(row[column])),
            "holm": _p(row[column].get("holm")),
        }
        for column in marks
    }
    return {
        **row, "place": place + 1, "standing": standing, "marks": marks, "shown": texts,
        "against": "" if row["arm"] == boards.reference(board) else boards.versus_reference(row, board),
        "spent": {unit: svg.number(row["cost"].get(unit)) for unit in ("tokens", "flops", "seconds")},
        "off": f"{share:+.0%}" if (share := boards.off_budget(row, board)) else "",
    }  # fmt: skip


def _p(value: float | None) -> str:
    """Format a corrected p-value; empty where there is none."""
    return "" if value is None else "p < .001" if value < 1e-3 else f"p = {value:.3f}".replace("0.", ".")


def _quality_plot(board: Mapping[str, Any]) -> Any:
    """Plot the primary score by cost, with the untouched model and the rules as lines."""
    unit = board["budget"]["unit"]
    points = []
    for row in board["rows"]:
        low, high = boards.ends_of(row["score"]) or (math.nan, math.nan)
        position = svg.number(row["cost"].get(unit)), svg.number(row["score"]["mean"])
        if row["arm"] != boards.UNTOUCHED:
            points.append(comparison_plots.Point(row["arm"], *position, low, high, bool(row["tied"])))
    label = {"tokens": "tokens used by training", "flops": "FLOP used by training", "seconds": "seconds of training"}[
        unit
    ]
    metric = f"{boards.display_name(board['primary'])} ({board['better']} is better)"
    return comparison_plots.scatter(points, label, metric, _levels(board), ("budget", board["budget"]["amount"]))


def _search(row: Mapping[str, Any], metric: str) -> Any:
    """Plot the tuning score by learning rate."""
    points = sorted((float(rate), svg.number(score)) for rate, score in row["search"].items())
    line = plots.Line(boards.display_name(metric), [rate for rate, _ in points], [score for _, score in points])
    return plots.chart([line], "learning rate", log=True, label=row["arm"], width=300, height=170)


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The arms' answers by prompt, with the target from the records."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for s in row["samples"]:
            part, prompt = s.get("part", ""), str(s["prompt"])
            sample = {"part": part, "prompt": prompt, "wanted": s.get("wanted", ""), "answers": []}
            out.setdefault((part, prompt), sample)["answers"].append((row["arm"], s["answer"]))
    return list(out.values())


def _answered(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Count the sampled answers that equal those of the records, by part and arm."""
    out: dict[str, dict[str, str]] = {}
    for row in rows:
        for part, count in row.get("answered", {}).items():
            out.setdefault(part, {})[row["arm"]] = f"{count['right']} of {count['of']}"
    return out


# --- the best arm ----------------------------------------------------------------------------


def _best_arm(root: Path, board: Mapping[str, Any]) -> dict[str, Any] | None:
    """The command that trains the best arm again on all records, and the lines that load its saved model."""
    row = next((row for row in board["rows"] if row["arm"] != boards.UNTOUCHED), None)
    if row is None or not row["steps"]:
        return None
    folder = root / "models" / re.sub(r"[^A-Za-z0-9.+-]", "_", row["arm"])
    openers = {"config.json": "hf: opens in transformers, vLLM, lm-eval and didact.load"}
    openers = {"adapter_config.json": "peft: opens in PEFT, vLLM and didact.load"} | openers
    description = next(
        (opens for name, opens in openers.items() if (folder / name).exists()), "didact: opens in didact.load"
    )
    lines = runs.load_lines(root, f"models/{folder.name}", description) if folder.is_dir() else None
    return {"arm": row["arm"], "command": _command(row, board), "load": lines, "seed": board["seeds"][0]}


def _command(row: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """The `didact run` command of this arm at the rate and steps found; empty if its records were made from others."""
    name, options, fit = next(
        (a[:3] for a in board.get("identity", {}).get("arms", ()) if a[0] == row["arm"]), (None, {}, {})
    )
    method, _, preset = str(name or "").split(" (")[0].partition(":")
    entry = catalogue.read().get(method)
    if entry is None or board["model"] == EMBEDDED:
        return ""
    argv: list[str] = ["didact", "run", f"{method}:{preset}" if preset else method]
    kinds = [need["kind"] for need in entry["needs"].values()]
    for parameter, need in entry["needs"].items():
        flag = f"--{parameter.replace('_', '-')}"
        sources = {n: d["path"] for n, d in board["data"].items() if n == parameter or kinds.count(need["kind"]) == 1}
        direct = {n: p for n, p in sources.items() if n in (parameter, need["kind"])}
        converted = {n: CONVERSIONS[need["kind"], n] for n in sources if (need["kind"], n) in CONVERSIONS}
        if need["kind"] == "model":
            argv += [flag, str(board["model"])]
        elif direct:
            argv += [flag, str(direct.get(parameter) or next(iter(direct.values())))]
        elif converted:
            source, fields = next(iter(converted.items()))
            argv += [flag, str(sources[source]), "--map", fields]
        elif need["required"]:
            return ""
    preset_values = entry["presets"].get(preset, {})
    changed = {k: v for k, v in options.items() if preset_values.get(k, ...) != v}
    changed |= {k: v for k, v in fit.items() if preset_values.get(f"fit.{k}", ...) != v}
    chosen = {"lr": row["lr"], "steps": row["steps"]}
    for option, value in (changed | {k: v for k, v in chosen.items() if v is not None}).items():
        argv += [f"--{option.replace('_', '-')}", *map(words.typed, value if isinstance(value, list) else [value])]
    return shlex.join([*argv, "--seed", str(board["seeds"][0]), "--out", f"runs/{method}"])

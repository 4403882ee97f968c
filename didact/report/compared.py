"""What the page of a comparison shows, read from its leaderboard."""

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

PLACES = ("rows", "primary", "better", "budget", "seeds", "rates", "folds", "rules", "failures", "model", "data")
UNTOUCHED = "untouched"
EMBEDDED = "embedded example"
DIAGNOSTICS = (
    "kl",
    "length",
    "entropy",
    "distinct_2",
    "general_rise",
    "general_kl",
)  # always shown: what a score alone hides
TIMES = {
    "probes": "finding how many steps the budget allows",
    "search": "training in the search for a learning rate",
    "training": "training for the test",
    "scoring": "scoring",
    "generation": "of all that, answers being generated",
}
MAPPED = {("demo", "preference"): "completion=chosen"}  # records of one kind that read as another by --map
WAYS = {"prefer": "preference", "answer": "answers", "forget": "forgetting", "text": "language modelling"}


def told(root: Path) -> dict[str, Any]:
    """Everything `compare.html` names.

    Raises:
        UserError: the folder holds no finished comparison.
    """
    place = root / "leaderboard.json"
    board = runs.read(place)
    if not isinstance(board, dict) or not board.get("rows"):
        raise UserError(f"{place}: not a leaderboard of didact")
    if missing := [name for name in PLACES if name not in board]:
        raise UserError(f"{place}: not a leaderboard of didact: no {', '.join(missing)}")
    rows = board["rows"]
    scales = _scales(board)
    metrics = list(dict.fromkeys(m for row in rows for m in row["metrics"]))
    metrics.sort(key=lambda name: name.endswith(BESIDE))
    whole = boards.scored_only(board)
    tried = len(rows) - (boards.reference(board) == boards.UNTOUCHED) + len(board["failures"])
    return {
        "title": f"{tried} {'model' if whole else 'method'}{'' if tried == 1 else 's'} compared",
        "whole": whole,
        "reference": boards.reference(board),
        "board": board,
        "embedded": board["model"] == EMBEDDED,
        "verdict": boards.verdict(board),
        "tone": boards.tone(board),
        "warnings": boards.warnings(board),
        "rows": [_row(i, row, board, scales) for i, row in enumerate(rows)],
        "command": shlex.join(["didact", *map(str, board["argv"])]) if board.get("argv") else "",
        "budget": boards.budget(board),
        "rulers": {which: comparison_plots.ruler(ends) for which, (ends, _) in scales.items()},
        "quality": "" if whole else _quality(board),
        "strip": ""
        if whole
        else comparison_plots.strip(
            boards.named(board["primary"]), {r["arm"]: r["per_seed"] for r in rows}, board["seeds"]
        ),
        "searches": [(row["arm"], _search(row, board["primary"]), boards.edge(row)) for row in rows if row["search"]],
        "beyond": {row["arm"]: row.get("beyond", 0) for row in rows},
        "diagnostics": [m for m in DIAGNOSTICS if m in metrics],
        "metrics": metrics,
        "meaning": board.get("meaning", {}),
        "samples": _samples(rows),
        "answered": _answered(rows),
        "winner": _winner(root, board),
        "folder": shlex.quote(str(root)),
        "times": [(TIMES.get(name, name), seconds) for name, seconds in boards.times(board)],
    }


# --- in pictures -----------------------------------------------------------------------------


Scale = tuple[tuple[float, float], dict[str, tuple[float, str]]]  # both ends, and the uprights in between


def _scales(board: Mapping[str, Any]) -> dict[str, Scale]:
    """One scale for all rows of a column; that of scores holds the rules, those of differences 0."""
    rows = board["rows"]
    uprights = {
        "score": _levels(board),
        "to_leader": {"the best": (0.0, "null")},
        "to_untouched": {boards.reference(board): (0.0, "null")},
    }
    values = {w: [svg.number(row[w].get(end)) for row in rows for end in ("mean", "low", "high")] for w in uprights}
    return {
        w: (comparison_plots.span(values[w] + [v for v, _ in levels.values()]), levels)
        for w, levels in uprights.items()
    }


def _levels(board: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What a score is held against: the untouched model, and what rules without a model score."""
    start = {r["arm"]: svg.number(r["score"]["mean"]) for r in board["rows"] if r["arm"] == boards.UNTOUCHED}
    rules = {rule: svg.number(value) for rule, value in board["rules"].items()}
    return {**{k: (v, "null") for k, v in start.items()}, **{k: (v, "least") for k, v in rules.items()}}


def _row(place: int, row: Mapping[str, Any], board: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, Any]:
    """A row of the leaderboard with its marks and words."""
    full, alone = bool(row["tied"]), not any(r["tied"] for r in board["rows"][1:])
    known = bool(boards.ends_of(row["to_leader"]))
    standing = "unclear" if not known else "best" if not place and alone else "tied" if full else "behind"
    marks = {
        which: comparison_plots.interval(
            svg.number(row[which]["mean"]), boards.ends_of(row[which]), ends, levels, full, row["arm"]
        )
        for which, (ends, levels) in scales.items()
    }
    shown = {
        which: {
            "mean": words.number(row[which]["mean"], boards.ends_of(row[which]) or None),
            "interval": words.interval(boards.ends_of(row[which])),
            "holm": _p(row[which].get("holm")),
        }
        for which in marks
    }
    return {
        **row, "place": place + 1, "standing": standing, "marks": marks, "shown": shown,
        "against": "" if row["arm"] == boards.reference(board) else boards.against(row, board),
        "spent": {unit: svg.number(row["cost"].get(unit)) for unit in ("tokens", "flops", "seconds")},
        "off": f"{share:+.0%}" if (share := boards.off_budget(row, board)) else "",
    }  # fmt: skip


def _p(value: float | None) -> str:
    """A corrected p-value; nothing where there is none."""
    return "" if value is None else "p < .001" if value < 1e-3 else f"p = {value:.3f}".replace("0.", ".")


def _quality(board: Mapping[str, Any]) -> Any:
    """Primary score by cost, the untouched model and the rules as lines."""
    unit = board["budget"]["unit"]
    points = []
    for row in board["rows"]:
        low, high = boards.ends_of(row["score"]) or (math.nan, math.nan)
        place = svg.number(row["cost"].get(unit)), svg.number(row["score"]["mean"])
        if row["arm"] != boards.UNTOUCHED:
            points.append(comparison_plots.Point(row["arm"], *place, low, high, bool(row["tied"])))
    label = {"tokens": "tokens used by teaching", "flops": "FLOP used by teaching", "seconds": "seconds of teaching"}[
        unit
    ]
    metric = f"{boards.named(board['primary'])} ({board['better']} is better)"
    return comparison_plots.scatter(points, label, metric, _levels(board), ("budget", board["budget"]["amount"]))


def _search(row: Mapping[str, Any], metric: str) -> Any:
    """Tuning score by learning rate."""
    found = sorted((float(rate), svg.number(score)) for rate, score in row["search"].items())
    line = plots.Line(boards.named(metric), [rate for rate, _ in found], [score for _, score in found])
    return plots.chart([line], "learning rate", log=True, label=row["arm"], width=300, height=170)


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every arm answered, prompt by prompt, beside what the records say."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for s in row["samples"]:
            part, prompt = s.get("part", ""), str(s["prompt"])
            asked = {"part": part, "prompt": prompt, "wanted": s.get("wanted", ""), "answers": []}
            out.setdefault((part, prompt), asked)["answers"].append((row["arm"], s["answer"]))
    return list(out.values())


def _answered(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By part and arm, how many of all sampled answers are those of the records."""
    out: dict[str, dict[str, str]] = {}
    for row in rows:
        for part, count in row.get("answered", {}).items():
            out.setdefault(part, {})[row["arm"]] = f"{count['right']} of {count['of']}"
    return out


# --- taking the winner -----------------------------------------------------------------------


def _winner(root: Path, board: Mapping[str, Any]) -> dict[str, Any] | None:
    """How to teach the best arm again on all records, and how to load what was saved of it."""
    row = next((row for row in board["rows"] if row["arm"] != boards.UNTOUCHED), None)
    if row is None or not row["steps"]:
        return None
    place = root / "models" / re.sub(r"[^A-Za-z0-9.+-]", "_", row["arm"])
    forms = {"config.json": "hf: opens in transformers, vLLM, lm-eval and didact.load"}
    forms = {"adapter_config.json": "peft: opens in PEFT, vLLM and didact.load"} | forms
    how = next((said for name, said in forms.items() if (place / name).exists()), "didact: opens in didact.load")
    lines = runs.load_lines(root, f"models/{place.name}", how) if place.is_dir() else None
    return {"arm": row["arm"], "command": _command(row, board), "load": lines, "seed": board["seeds"][0]}


def _command(row: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """The run that teaches this arm with what the search chose; nothing where its records were made from others."""
    name, options, fit = next(
        (a[:3] for a in board.get("identity", {}).get("arms", ()) if a[0] == row["arm"]), (None, {}, {})
    )
    method, _, preset = str(name or "").split(" (")[0].partition(":")
    entry = catalogue.read().get(method)
    if entry is None or board["model"] == EMBEDDED:
        return ""
    said: list[str] = ["didact", "run", f"{method}:{preset}" if preset else method]
    kinds = [need["kind"] for need in entry["needs"].values()]
    for parameter, need in entry["needs"].items():
        flag = f"--{parameter.replace('_', '-')}"
        given = {n: d["path"] for n, d in board["data"].items() if n == parameter or kinds.count(need["kind"]) == 1}
        fits = {n: p for n, p in given.items() if n in (parameter, need["kind"])}
        turned = {n: MAPPED[need["kind"], n] for n in given if (need["kind"], n) in MAPPED}
        if need["kind"] == "model":
            said += [flag, str(board["model"])]
        elif fits:
            said += [flag, str(fits.get(parameter) or next(iter(fits.values())))]
        elif turned:
            source, fields = next(iter(turned.items()))
            said += [flag, str(given[source]), "--map", fields]
        elif need["required"]:
            return ""
    set_by = entry["presets"].get(preset, {})
    own = {k: v for k, v in options.items() if set_by.get(k, ...) != v}
    own |= {k: v for k, v in fit.items() if set_by.get(f"fit.{k}", ...) != v}
    chosen = {"lr": row["lr"], "steps": row["steps"]}
    for option, value in (own | {k: v for k, v in chosen.items() if v is not None}).items():
        said += [f"--{option.replace('_', '-')}", *map(words.typed, value if isinstance(value, list) else [value])]
    return shlex.join([*said, "--seed", str(board["seeds"][0]), "--out", f"runs/{method}"])

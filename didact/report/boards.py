"""What the page of a comparison shows, and what is said of it in words, read from its leaderboard."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, progress
from didact.evaluate.measures import BESIDE
from didact.report import plots, runs, words
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
FALLEN = ("entropy", "distinct_2")  # less than half of the untouched model's is a collapse
OVER = 0.05  # of the budget, from which using more or less of it is told
TIMES = {
    "probes": "finding how many steps the budget allows",
    "search": "training in the search for a learning rate",
    "training": "training for the test",
    "scoring": "scoring",
    "generation": "of all that, answers being generated",
}
MANY = 4  # arms from which the best of them flatters itself
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
    whole = scored_only(board)
    tried = len(rows) - (reference(board) == UNTOUCHED) + len(board["failures"])
    return {
        "title": f"{tried} {'model' if whole else 'method'}{'' if tried == 1 else 's'} compared",
        "whole": whole,
        "reference": reference(board),
        "board": board,
        "embedded": board["model"] == EMBEDDED,
        "verdict": verdict(board),
        "tone": _tone(board),
        "warnings": warnings(board),
        "rows": [_row(i, row, board, scales) for i, row in enumerate(rows)],
        "command": shlex.join(["didact", *map(str, board["argv"])]) if board.get("argv") else "",
        "budget": budget(board),
        "rulers": {which: plots.ruler(ends) for which, (ends, _) in scales.items()},
        "quality": "" if whole else _quality(board),
        "strip": ""
        if whole
        else plots.strip(named(board["primary"]), {r["arm"]: r["per_seed"] for r in rows}, board["seeds"]),
        "searches": [(row["arm"], _search(row, board["primary"]), edge(row)) for row in rows if row["search"]],
        "beyond": {row["arm"]: row.get("beyond", 0) for row in rows},
        "diagnostics": [m for m in DIAGNOSTICS if m in metrics],
        "metrics": metrics,
        "meaning": board.get("meaning", {}),
        "samples": _samples(rows),
        "answered": _answered(rows),
        "winner": _winner(root, board),
        "folder": shlex.quote(str(root)),
        "times": [(TIMES.get(name, name), seconds) for name, seconds in times(board)],
    }


# --- in words --------------------------------------------------------------------------------


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
    if not _ends(first["score"]):
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
    ends = _ends(row[which])
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
    return plots.number(row["cost"].get(board["budget"]["unit"])) / board["budget"]["amount"]


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
            now, was = (plots.number(of.get(metric, {}).get("mean")) for of in (row["metrics"], start))
            if now < was / 2:
                found.setdefault(f"less than half the {named(metric)}", []).append(row["arm"])
            elif metric == "length" and now > 2 * was:
                found.setdefault("more than twice the length", []).append(row["arm"])
    return [f"Answers have {what} of the untouched model's: {', '.join(arms)}." for what, arms in found.items()]


def _tone(board: Mapping[str, Any]) -> tuple[str, str, str]:
    """Icon's word, its text, and the colour of the verdict."""
    rows = board["rows"]
    start = reference(board)
    if scored_only(board):
        tied = any(row["tied"] for row in rows[1:])
        return ("inconclusive", "tied", "unsure") if tied else ("holds", "one is best", "good")
    if rows[0]["arm"] == start or any(r["arm"] == start and r["tied"] for r in rows):
        return (
            ("inconclusive", "undecided", "unsure")
            if _ends(rows[0]["score"])
            else ("inconclusive", "one seed", "unsure")
        )
    if any(row["tied"] for row in rows[1:]):
        return "inconclusive", "tied", "unsure"
    return "holds", "one is best", "good"


def _beats(row: Mapping[str, Any], rule: str, board: Mapping[str, Any]) -> bool:
    ends = _ends(row["to_rules"].get(rule, {}))
    return bool(ends) and (ends[1] < 0 if board["better"] == "lower" else ends[0] > 0)


def _size(found: Mapping[str, Any]) -> str:
    """A number or a difference without its sign, and its interval."""
    mean, ends = abs(found["mean"]), _ends(found)
    if not ends:
        return words.number(mean)
    ends = sorted(abs(v) for v in ends) if ends[0] * ends[1] >= 0 else ends
    return f"{words.number(mean, ends)} ({words.interval(ends)})"


def _listed(names: Sequence[str], word: str = "and") -> str:
    """Names as in a sentence; the untouched model by what it is."""
    shown = ["the untouched model" if name == UNTOUCHED else name for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"


def _ends(found: Mapping[str, Any]) -> list[float]:
    ends = [plots.number(found.get(name)) for name in ("low", "high")]
    return ends if all(map(math.isfinite, ends)) else []


# --- in pictures -----------------------------------------------------------------------------


Scale = tuple[tuple[float, float], dict[str, tuple[float, str]]]  # both ends, and the uprights in between


def _scales(board: Mapping[str, Any]) -> dict[str, Scale]:
    """One scale for all rows of a column; that of scores holds the rules, those of differences 0."""
    rows = board["rows"]
    uprights = {
        "score": _levels(board),
        "to_leader": {"the best": (0.0, "null")},
        "to_untouched": {reference(board): (0.0, "null")},
    }
    values = {w: [plots.number(row[w].get(end)) for row in rows for end in ("mean", "low", "high")] for w in uprights}
    return {w: (plots.span(values[w] + [v for v, _ in levels.values()]), levels) for w, levels in uprights.items()}


def _levels(board: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What a score is held against: the untouched model, and what rules without a model score."""
    start = {r["arm"]: plots.number(r["score"]["mean"]) for r in board["rows"] if r["arm"] == UNTOUCHED}
    rules = {rule: plots.number(value) for rule, value in board["rules"].items()}
    return {**{k: (v, "null") for k, v in start.items()}, **{k: (v, "least") for k, v in rules.items()}}


def _row(place: int, row: Mapping[str, Any], board: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, Any]:
    """A row of the leaderboard with its marks and words."""
    full, alone = bool(row["tied"]), not any(r["tied"] for r in board["rows"][1:])
    known = bool(_ends(row["to_leader"]))
    standing = "unclear" if not known else "best" if not place and alone else "tied" if full else "behind"
    marks = {
        which: plots.interval(plots.number(row[which]["mean"]), _ends(row[which]), ends, levels, full, row["arm"])
        for which, (ends, levels) in scales.items()
    }
    shown = {
        which: {
            "mean": words.number(row[which]["mean"], _ends(row[which]) or None),
            "interval": words.interval(_ends(row[which])),
            "holm": _p(row[which].get("holm")),
        }
        for which in marks
    }
    return {
        **row, "place": place + 1, "standing": standing, "marks": marks, "shown": shown,
        "against": "" if row["arm"] == reference(board) else against(row, board),
        "spent": {unit: plots.number(row["cost"].get(unit)) for unit in ("tokens", "flops", "seconds")},
        "off": f"{share:+.0%}" if (share := off_budget(row, board)) else "",
    }  # fmt: skip


def _p(value: float | None) -> str:
    """A corrected p-value; nothing where there is none."""
    return "" if value is None else "p < .001" if value < 1e-3 else f"p = {value:.3f}".replace("0.", ".")


def _quality(board: Mapping[str, Any]) -> Any:
    """Primary score by cost, the untouched model and the rules as lines."""
    unit = board["budget"]["unit"]
    points = []
    for row in board["rows"]:
        low, high = _ends(row["score"]) or (math.nan, math.nan)
        place = plots.number(row["cost"].get(unit)), plots.number(row["score"]["mean"])
        if row["arm"] != UNTOUCHED:
            points.append(plots.Point(row["arm"], *place, low, high, bool(row["tied"])))
    label = {"tokens": "tokens used by teaching", "flops": "FLOP used by teaching", "seconds": "seconds of teaching"}[
        unit
    ]
    metric = f"{named(board['primary'])} ({board['better']} is better)"
    return plots.scatter(points, label, metric, _levels(board), ("budget", board["budget"]["amount"]))


def _search(row: Mapping[str, Any], metric: str) -> Any:
    """Tuning score by learning rate."""
    found = sorted((float(rate), plots.number(score)) for rate, score in row["search"].items())
    line = plots.Line(named(metric), [rate for rate, _ in found], [score for _, score in found])
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
    row = next((row for row in board["rows"] if row["arm"] != UNTOUCHED), None)
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

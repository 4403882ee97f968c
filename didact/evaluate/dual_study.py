"""ICL and fine-tuning on the same demonstrations, draw by draw, with every control beside them: see `dual_form`.

The rate is the one that learnt most on some draws; the others are reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from didact import figures, progress
from didact.data import general
from didact.evaluate import dual_form, similarity, statistics
from didact.evaluate.dual_form import After, Before
from didact.evaluate.three_way import Episode, LanguageReader, Way
from didact.models import untrained

CONTROLS = ("wrong labels", "other text", "untrained model", "random normal", "random uniform")
AGAINST = ("wrong labels", "other text", "untrained model")  # what a similarity must be above


@dataclass
class Study:
    """What came out, one row a report draw: `layers[name]` SimAOU of every layer, `rows` all other numbers; `pairs` of
    (ICL right, FT right) for every query that is wrong without demonstrations."""

    layers: dict[str, list[list[float]]] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    pairs: list[tuple[bool, bool]] = field(default_factory=list)
    shares: list[Any] = field(default_factory=list)
    grid: list[dict[str, float]] = field(default_factory=list)
    rate: float = math.nan


def study(
    reader: LanguageReader, draws: Sequence[Episode], way: Way, rates: Sequence[float], held: float, seed: int
) -> Study:
    """Choose the rate on the first draws, report the others."""
    first = max(1, round(held * len(draws)))
    out = Study()
    for rate in rates:
        tried = dataclasses.replace(way, how=dataclasses.replace(way.how, lr=rate))
        found = [[*reader.tuned(e, tried)][-1] for e in draws[:first]]
        gold = [float(r.labels.max(-1).values[r.right].sum()) for r in found]
        without = float(np.mean([reader.without(e).accuracy for e in draws[:first]]))
        out.grid.append({
            "lr": rate, "accuracy": float(np.mean([r.accuracy for r in found])),
            "without": without, "sure": float(np.mean(gold)),
        })  # fmt: skip
    out.rate = max(out.grid, key=lambda row: (row["accuracy"], row["sure"]))["lr"]
    chosen = dataclasses.replace(way, how=dataclasses.replace(way.how, lr=out.rate))
    blank = LanguageReader(untrained.untrained(reader.model, seed), reader.separator, reader.loss)
    text = [i for t in general.texts(None, "replay") for i in reader.model.tokenizer(t)["input_ids"]]
    with progress.Counted("draws", len(draws) - first) as bar:
        for number, episode in enumerate(draws[first:]):
            _draw(reader, blank, episode, chosen, text, seed + number, out)
            bar.advance(1)
    return out


def _draw(
    reader: LanguageReader, blank: LanguageReader, episode: Episode, way: Way, text: list[int], seed: int, out: Study
) -> None:
    known = dual_form.before(reader, episode)
    tuned = dual_form.after(reader, episode, known, way, known.lessons)
    wrong = reader.lessons(dual_form.relabelled(episode, seed))
    other = dual_form.unrelated(known.lessons, text, seed)
    nothing = dual_form.before(blank, episode)
    nowhere = dual_form.after(blank, episode, nothing, way, nothing.lessons)

    def updates(found: After) -> list[torch.Tensor]:
        return [t.updates for t in found.traces]

    layers = {
        "fine-tuned": dual_form.updates_alike(known, updates(tuned)),
        "wrong labels": dual_form.updates_alike(known, updates(dual_form.after(reader, episode, known, way, wrong))),
        "other text": dual_form.updates_alike(known, updates(dual_form.after(reader, episode, known, way, other))),
        "untrained model": dual_form.updates_alike(nothing, updates(nowhere)),
        "random normal": dual_form.updates_alike(known, dual_form.random_updates(known, "normal", seed)),
        "random uniform": dual_form.updates_alike(known, dual_form.random_updates(known, "uniform", seed)),
    }
    for name, value in layers.items():
        out.layers.setdefault(name, []).append(value.tolist())
    shown = dual_form.demonstrated(known)
    out.shares.append(shown["share"])
    out.rows.append({
        "zero": known.zero.accuracy, "icl": known.icl.accuracy, "tuned": tuned.reading.accuracy, "update": tuned.size,
        "SimAM": dual_form.scores_alike(known, tuned.traces),
        "SimAM without tuning": dual_form.scores_alike(known, [zero for zero, _ in known.traces]),
        "SimAM, untrained model": dual_form.scores_alike(nothing, nowhere.traces),
        "Kendall": dual_form.ranks_alike(known, tuned), "Kendall, random": _random_ranks(known, seed),
        "Kendall, untrained model": dual_form.ranks_alike(nothing, nowhere), "mixture error": shown["error"],
    })  # fmt: skip
    out.pairs += [
        (bool(a), bool(b))
        for z, a, b in zip(known.zero.right, known.icl.right, tuned.reading.right, strict=True)
        if not z
    ]


def _random_ranks(known: Before, seed: int) -> float:
    """Kendall's tau of ICL's attention with random scores."""
    rng, found = np.random.default_rng([seed, 194]), []
    for (alone, whole), (_, icl) in zip(known.prompts, known.traces, strict=True):
        for layer in icl.scores:
            shown = layer.sum(0)[1 : len(whole) - len(alone) + 1]
            found.append(similarity.kendall(shown, rng.random(len(shown))))
    return float(np.mean(found))


def findings(out: Study) -> dict[str, Any]:
    """Similarities with their controls, and whether they are above them."""
    updates = {name: [float(np.mean(row)) for row in rows] for name, rows in out.layers.items()}
    said, apart = dual_form.supported(updates["fine-tuned"], {n: updates[n] for n in AGAINST})
    repaired = [float(icl) for icl, tuned in out.pairs if tuned]
    missed = [float(icl) for icl, tuned in out.pairs if not tuned]
    rec = statistics.share_interval(sum(repaired), len(repaired)) if repaired else statistics.Interval(*[math.nan] * 3)
    base = statistics.share_interval(sum(missed), len(missed)) if missed else statistics.Interval(*[math.nan] * 3)
    gap = statistics.welch_interval(repaired, missed) if repaired and missed else statistics.Interval(*[math.nan] * 3)
    rows = similarity.summary(out.rows)
    learnt = rows["tuned"]["estimate"] > rows["zero"]["estimate"] and rows["icl"]["estimate"] > rows["zero"]["estimate"]
    return {
        "draws": len(out.rows), "rate": out.rate, "grid": out.grid, "learnt": learnt,
        "SimAOU": {name: statistics.mean_interval(values)._asdict() for name, values in updates.items()},
        "SimAOU above": apart, "verdict": said if learnt else "uninformative",
        "SimAOU by layer": {name: np.mean(rows, 0).tolist() for name, rows in out.layers.items()},
        "Rec2FTP": {"share": rec._asdict(), "where tuning fails": base._asdict(), "difference": gap._asdict(),
                    "repaired": len(repaired), "not repaired": len(missed)},
        "attention to demonstrations by layer": np.mean(out.shares, 0).tolist(), "measures": rows,
    }  # fmt: skip


def pictures(told: Mapping[str, Any]) -> list[figures.Figure]:
    """SimAOU by layer with controls, all measures beside theirs, and where attention goes."""
    layers = list(range(len(told["attention to demonstrations by layer"])))
    lines = [figures.Line(_said(name), layers, rows) for name, rows in told["SimAOU by layer"].items()]
    bars = [figures.Bar(_said(n), v["estimate"], v["low"], v["high"], "change of attention's output (SimAOU)")
            for n, v in told["SimAOU"].items()]  # fmt: skip
    for measure, group in (("SimAM", "attention to the query (SimAM)"), ("Kendall", "order of tokens (Kendall)")):
        bars += [figures.Bar(n.partition(measure)[2].lstrip(", ") or "ICL and fine-tuning", v["estimate"], v["low"],
                             v["high"], group)
                 for n, v in told["measures"].items() if n.startswith(measure)]  # fmt: skip
    return [
        figures.Curves(title="ICL's change of attention beside fine-tuning's", x="layer", y="cosine of the changes",
                       lines=lines, levels={"chance": 0.0}),
        figures.Bars(title="Every similarity beside its controls", x="similarity (95 % interval)", bars=bars),
        figures.Curves(title="Attention that goes to the demonstrations", x="layer", y="share of the last token's",
                       lines=[figures.Line("demonstrations", layers, told["attention to demonstrations by layer"])]),
    ]  # fmt: skip


def _said(name: str) -> str:
    return "ICL and fine-tuning" if name == "fine-tuned" else name

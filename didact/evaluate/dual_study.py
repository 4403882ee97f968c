"""Compare ICL and fine-tuning on the same demonstrations, draw by draw, with every control: see `dual_form`.

The learning rate is chosen by accuracy on some draws; the report is on the others.
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
AGAINST = ("wrong labels", "other text", "untrained model")  # controls that a similarity must exceed


@dataclass
class Study:
    """Results, one row per reported draw: `layers[name]` SimAOU of every layer, `rows` all other numbers; `pairs` of
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
    """Choose the rate on the first draws and report on the others."""
    first = max(1, round(held * len(draws)))
    out = Study()
    for rate in rates:
        trial = dataclasses.replace(way, how=dataclasses.replace(way.how, lr=rate))
        readings = [[*reader.tuned(e, trial)][-1] for e in draws[:first]]
        confidence = [float(r.labels.max(-1).values[r.right].sum()) for r in readings]
        without = float(np.mean([reader.without(e).accuracy for e in draws[:first]]))
        out.grid.append({
            "lr": rate, "accuracy": float(np.mean([r.accuracy for r in readings])),
            "without": without, "sure": float(np.mean(confidence)),
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
    base = dual_form.before(reader, episode)
    tuned = dual_form.after(reader, episode, base, way, base.lessons)
    wrong_labels = reader.lessons(dual_form.relabelled(episode, seed))
    other_text = dual_form.unrelated(base.lessons, text, seed)
    blank_base = dual_form.before(blank, episode)
    blank_tuned = dual_form.after(blank, episode, blank_base, way, blank_base.lessons)

    def updates(after: After) -> list[torch.Tensor]:
        return [t.updates for t in after.traces]

    layers = {
        "fine-tuned": dual_form.update_similarity(base, updates(tuned)),
        "wrong labels": dual_form.update_similarity(
            base, updates(dual_form.after(reader, episode, base, way, wrong_labels))
        ),
        "other text": dual_form.update_similarity(
            base, updates(dual_form.after(reader, episode, base, way, other_text))
        ),
        "untrained model": dual_form.update_similarity(blank_base, updates(blank_tuned)),
        "random normal": dual_form.update_similarity(base, dual_form.random_updates(base, "normal", seed)),
        "random uniform": dual_form.update_similarity(base, dual_form.random_updates(base, "uniform", seed)),
    }
    for name, value in layers.items():
        out.layers.setdefault(name, []).append(value.tolist())
    attention = dual_form.demonstrated(base)
    out.shares.append(attention["share"])
    out.rows.append({
        "zero": base.zero.accuracy, "icl": base.icl.accuracy, "tuned": tuned.reading.accuracy, "update": tuned.size,
        "SimAM": dual_form.score_similarity(base, tuned.traces),
        "SimAM without tuning": dual_form.score_similarity(base, [zero for zero, _ in base.traces]),
        "SimAM, untrained model": dual_form.score_similarity(blank_base, blank_tuned.traces),
        "Kendall": dual_form.rank_similarity(base, tuned), "Kendall, random": _random_ranks(base, seed),
        "Kendall, untrained model": dual_form.rank_similarity(blank_base, blank_tuned),
        "mixture error": attention["error"],
    })  # fmt: skip
    out.pairs += [
        (bool(a), bool(b))
        for z, a, b in zip(base.zero.right, base.icl.right, tuned.reading.right, strict=True)
        if not z
    ]


def _random_ranks(base: Before, seed: int) -> float:
    """Kendall's tau between ICL's attention and random scores."""
    rng, taus = np.random.default_rng([seed, 194]), []
    for (alone, whole), (_, icl) in zip(base.prompts, base.traces, strict=True):
        for layer in icl.scores:
            attended = layer.sum(0)[1 : len(whole) - len(alone) + 1]
            taus.append(similarity.kendall(attended, rng.random(len(attended))))
    return float(np.mean(taus))


def findings(out: Study) -> dict[str, Any]:
    """Similarities with their controls, and the verdict on whether they exceed them."""
    updates = {name: [float(np.mean(row)) for row in rows] for name, rows in out.layers.items()}
    verdict, above = dual_form.supported(updates["fine-tuned"], {n: updates[n] for n in AGAINST})
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
        "SimAOU above": above, "verdict": verdict if learnt else "uninformative",
        "SimAOU by layer": {name: np.mean(rows, 0).tolist() for name, rows in out.layers.items()},
        "Rec2FTP": {"share": rec._asdict(), "where tuning fails": base._asdict(), "difference": gap._asdict(),
                    "repaired": len(repaired), "not repaired": len(missed)},
        "attention to demonstrations by layer": np.mean(out.shares, 0).tolist(), "measures": rows,
    }  # fmt: skip


def pictures(summary: Mapping[str, Any]) -> list[figures.Figure]:
    """Figures: SimAOU by layer, every similarity beside its controls, and the attention on demonstrations."""
    layers = list(range(len(summary["attention to demonstrations by layer"])))
    lines = [figures.Line(_label(name), layers, rows) for name, rows in summary["SimAOU by layer"].items()]
    bars = [figures.Bar(_label(n), v["estimate"], v["low"], v["high"], "change of attention's output (SimAOU)")
            for n, v in summary["SimAOU"].items()]  # fmt: skip
    for measure, group in (("SimAM", "attention to the query (SimAM)"), ("Kendall", "order of tokens (Kendall)")):
        bars += [figures.Bar(n.partition(measure)[2].lstrip(", ") or "ICL and fine-tuning", v["estimate"], v["low"],
                             v["high"], group)
                 for n, v in summary["measures"].items() if n.startswith(measure)]  # fmt: skip
    return [
        figures.Curves(title="ICL's change of attention beside fine-tuning's", x="layer", y="cosine of the changes",
                       lines=lines, levels={"chance": 0.0}),
        figures.Bars(title="Every similarity beside its controls", x="similarity (95 % interval)", bars=bars),
        figures.Curves(title="Attention that goes to the demonstrations", x="layer", y="share of the last token's",
                       lines=[figures.Line("demonstrations", layers, summary["attention to demonstrations by layer"])]),
    ]  # fmt: skip


def _label(name: str) -> str:
    return "ICL and fine-tuning" if name == "fine-tuned" else name

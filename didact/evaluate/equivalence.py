"""Do demonstrations in the prompt act like fine-tuning on them? Both are evaluated on the same queries, and their
similarity is placed between a floor (no demonstrations) and ceilings (the same demonstrations in another order, or
other demonstrations).

The unit is a draw of demonstrations. Rate and epoch of every way of fine-tuning are chosen on some draws, in
favour of the hypothesis (most similar to ICL, among those that learnt something), and reported on the others.

Source: Shen, Mishra and Khashabi 2024, arXiv:2310.08540.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from didact import figures, progress
from didact.evaluate import similarity, statistics, three_way
from didact.evaluate.three_way import Episode, Reader, Reading, Way

Draw = tuple[Episode, Episode]
Rows = list[dict[str, float]]
SIMILARITIES = ("overlap", "cosine")  # measures of the verdict; both must agree


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Settings of the comparison.

    Args:
        ways: ways of fine-tuning, by name; every epoch up to `how.epochs` is tried.
        rates: learning rates tried for each way.
        held: share of the draws on which rate and epoch are chosen.
        orders: number of orders of a draw's demonstrations, the original one included.
        top: k of the top-k tokens that are compared.
        gain: accuracy above zero-shot that fine-tuning must reach to be informative.
        margin: equivalence margin of the verdict, as a share of the distance from floor to ceiling.
        seed: seed of the orders.
    """

    ways: Mapping[str, Way]
    rates: Sequence[float]
    held: float = 0.3
    orders: int = 4
    top: int = 10
    gain: float = 0.02
    margin: float = 0.1
    seed: int = 0


@dataclass
class Compared:
    """Results, one row per reported draw: `controls[name]` compares ICL with itself and with the floor, `ways[name]`
    fine-tuning with ICL; `orders[name]` is order sensitivity. `grid` is on the other draws, `chosen` its best."""

    controls: dict[str, Rows] = field(default_factory=dict)
    ways: dict[str, Rows] = field(default_factory=dict)
    orders: dict[str, Rows] = field(default_factory=dict)
    grid: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    vocabulary: int = 0

    def column(self, rows: Rows, name: str) -> list[float]:
        """One measure of every draw."""
        return [row[name] for row in rows]


def compare(reader: Reader, draws: Sequence[Draw], config: Comparison) -> Compared:
    """Choose rate and epoch on the first draws and report on the others."""
    first = max(1, round(config.held * len(draws)))
    out = Compared()
    out.grid = _grid(reader, draws[:first], config)
    for name in config.ways:
        rows = [row for row in out.grid if row["way"] == name]
        informative = [row for row in rows if row["informative"]]
        out.chosen[name] = max(informative or rows, key=lambda row: row["cosine"])
    with progress.Counted("draws", len(draws) - first) as bar:
        for number, (episode, other) in enumerate(draws[first:]):
            _report(reader, episode, other, number, config, out)
            bar.advance(1)
    return out


def findings(out: Compared, config: Comparison) -> dict[str, Any]:
    """Summarise the comparison: estimates with intervals over draws, and one verdict per way of fine-tuning."""
    summary: dict[str, Any] = {
        "draws": len(out.controls["none"]),
        "chance_overlap": similarity.chance_overlap(out.vocabulary, config.top),
        "controls": {name: similarity.summary(rows) for name, rows in out.controls.items()},
        "order": {name: similarity.summary(rows) for name, rows in out.orders.items()},
        "grid": out.grid, "ways": {},
    }  # fmt: skip
    icl = out.orders["icl"]
    for name, rows in out.ways.items():
        gaps = [a["probability"] - b["probability"] for a, b in zip(icl, out.orders[name], strict=True)]
        compared = {}
        for measure in SIMILARITIES:
            value, floor, ceiling = (
                out.column(r, measure) for r in (rows, out.controls["none"], out.controls["other order"])
            )
            compared[measure] = similarity.verdict(value, floor, ceiling, gaps, config.margin)
            others = out.column(out.controls["other demonstrations"], measure)
            compared[measure]["relative_to_other_demonstrations"] = similarity.relative(value, floor, others)._asdict()
            compared[measure]["below_ceiling"] = statistics.paired_interval(ceiling, value)._asdict()
        verdicts = {row["verdict"] for row in compared.values()}
        verdict = verdicts.pop() if len(verdicts) == 1 else "different" if "different" in verdicts else "inconclusive"
        informative = out.chosen[name]["informative"]
        summary["ways"][name] = {
            "verdict": verdict if informative else "uninformative", "chosen": out.chosen[name],
            "to_icl": similarity.summary(rows), **compared,
            "order_log_ratio": similarity.log_ratio(
                out.column(icl, "probability"), out.column(out.orders[name], "probability")
            )._asdict(),
        }  # fmt: skip
    return summary


def sentence(summary: Mapping[str, Any]) -> str:
    """The verdicts in words."""
    parts = []
    for name, way in summary["ways"].items():
        share = way["cosine"]["relative"]
        parts.append(
            f"{name}: {way['verdict']}"
            + (f" ({share['estimate']:.0%} of the way)" if np.isfinite(share["estimate"]) else "")
        )
    return "ICL and fine-tuning on the same demonstrations: " + "; ".join(parts)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Reasons why the verdicts mean little."""
    out = []
    none, icl = (summary["controls"][n]["accuracy"]["estimate"] for n in ("none", "itself"))
    if not icl > none:
        out.append(f"demonstrations do not help ({none:.2f} without, {icl:.2f} with): there is no learning to compare")
    for name, way in summary["ways"].items():
        if way["verdict"] == "uninformative":
            out.append(f"{name}: no rate and epoch learnt the task: try other --lrs; its numbers say nothing")
    return out


def pictures(summary: Mapping[str, Any]) -> list[figures.Figure]:
    """Figures: similarity of each fine-tuning to ICL, order sensitivity, and the grid of rates."""
    controls, ways = summary["controls"], summary["ways"]
    rows = {f"fine-tuned, {n}": w["to_icl"] for n, w in ways.items()}
    rows |= {f"ICL, {n}": controls[n] for n in ("none", "other demonstrations", "other order")}
    rows = {n.replace("ICL, none", "without demonstrations"): r for n, r in rows.items()}
    similar = [_bar(name, row[m], words) for m, words in WORDS.items() for name, row in rows.items()]
    orders = [_bar("ICL" if n == "icl" else n, row["probability"]) for n, row in summary["order"].items()]
    best: dict[str, dict[float, float]] = {}
    for row in summary["grid"]:
        rates_of_way = best.setdefault(row["way"], {})
        rates_of_way[row["lr"]] = max(row["cosine"], rates_of_way.get(row["lr"], 0.0))
    lines = [figures.Line(name, list(rates), list(rates.values())) for name, rates in best.items()]
    levels = {
        n: controls[c]["cosine"]["estimate"] for n, c in (("ICL in another order", "other order"), ("none", "none"))
    }
    return [
        figures.Bars(title="How similar to ICL", x="similarity to ICL (95 % interval over draws)", bars=similar,
                     note="ICL with itself is the ceiling, no demonstrations the floor."),
        figures.Bars(title="How much the order of the demonstrations matters", bars=orders,
                     x="standard deviation of a label's probability over orders"),
        figures.Curves(title="Every rate, at its best epoch", x="learning rate", y="cosine of the overlap with ICL",
                       lines=lines, levels=levels, log=True),
    ]  # fmt: skip


WORDS = {"cosine": "cosine of the overlap", "overlap": "tokens in common"}


def _bar(name: str, interval: Mapping[str, float], group: str = "") -> figures.Bar:
    return figures.Bar(name, interval["estimate"], interval["low"], interval["high"], group)


def _grid(reader: Reader, draws: Sequence[Draw], config: Comparison) -> list[dict[str, Any]]:
    """Compare every way, at every rate and after every epoch, with ICL on these draws."""
    base = [(reader.without(e), reader.shown(e)) for e, _ in draws]
    start = float(np.mean([zero.accuracy for zero, _ in base]))
    out = []
    with progress.Counted("rates", len(config.ways) * len(config.rates)) as bar:
        for (name, way), rate in itertools.product(config.ways.items(), config.rates):
            trial = _at_rate(way, rate)
            readings = [list(reader.tuned(e, trial)) for e, _ in draws]
            for epoch in range(1, trial.how.epochs + 1):
                measures = [
                    _measures(r[epoch - 1], icl, config.top) for r, (_, icl) in zip(readings, base, strict=True)
                ]
                row: dict[str, Any] = {k: float(np.mean([e[k] for e in measures])) for k in measures[0]}
                learnt = row["accuracy"] >= min(start + config.gain, 1.0) and bool(np.isfinite(row["kl"]))
                out.append({"way": name, "lr": rate, "epoch": epoch, "informative": learnt, **row})
            bar.advance(1)
    return out


def _report(reader: Reader, episode: Episode, other: Episode, number: int, config: Comparison, out: Compared) -> None:
    """Add one draw to `out`: the controls, and every way at its chosen rate and epoch in every order."""
    zero, icl = reader.without(episode), reader.shown(episode)
    out.vocabulary = icl.tokens.shape[-1]
    orders = three_way.orders(config.orders, len(episode.demos), config.seed + number)
    reordered = [icl, *(reader.shown(episode.ordered(order)) for order in orders[1:])]
    controls = {
        "none": [_measures(zero, icl, config.top)],
        "other order": [_measures(r, icl, config.top) for r in reordered[1:]],
        "other demonstrations": [_measures(reader.shown(other), icl, config.top)],
        "itself": [_measures(icl, icl, config.top)],
    }
    _sensitivity(out, "icl", reordered)
    for name, way in config.ways.items():
        best = _at_rate(way, out.chosen[name]["lr"], out.chosen[name]["epoch"])
        after = [list(reader.tuned(episode.ordered(order), best))[-1] for order in orders]
        out.ways.setdefault(name, []).append(_measures(after[0], icl, config.top))
        controls[f"{name}, other order"] = [_measures(r, after[0], config.top) for r in after[1:]]
        _sensitivity(out, name, after)
    for name, rows in controls.items():
        out.controls.setdefault(name, []).append({k: float(np.mean([r[k] for r in rows])) for k in rows[0]})


def _sensitivity(out: Compared, name: str, readings: Sequence[Reading]) -> None:
    labels = torch.stack([r.labels for r in readings])
    out.orders.setdefault(name, []).append(similarity.order_sensitivity(labels))


def _measures(reading: Reading, icl: Reading, top: int) -> dict[str, float]:
    """One reading compared with ICL's: accuracy, agreement of labels and similarity of token distributions."""
    agree = (reading.labels.argmax(-1) == icl.labels.argmax(-1)).double().mean()
    similarities = similarity.measures(icl.tokens, reading.tokens, top)
    return {"accuracy": reading.accuracy, "agreement": float(agree), **similarities}


def _at_rate(way: Way, rate: float, epochs: int | None = None) -> Way:
    return dataclasses.replace(way, how=dataclasses.replace(way.how, lr=rate, epochs=epochs or way.how.epochs))

"""Do demonstrations in the prompt act as fine-tuning on them does? Both are read on the same queries, and their
similarity is placed between a floor (no demonstrations) and ceilings (the same model behind them in another order, or
behind others).

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
SIMILARITIES = ("overlap", "cosine")  # what the verdict is made on; both must agree


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two ways of learning are compared.

    Args:
        ways: of fine-tuning, by name; `how.epochs` is the most, and every epoch before is tried too.
        rates: of each way.
        held: share of the draws on which rate and epoch are chosen.
        orders: of the demonstrations of a draw, the given one among them.
        top: k of the likeliest tokens that are compared.
        gain: accuracy above that without demonstrations which a fine-tuning must reach to say something.
        margin: of the verdict, of the way from floor to ceiling.
        seed: of the orders.
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
    """What came out, one row a draw of the report: `controls[name]` of ICL with itself and with nothing, `ways[name]`
    of fine-tuning with ICL, `orders[name]` how much order matters; `grid` on the other draws, `chosen` of it."""

    controls: dict[str, Rows] = field(default_factory=dict)
    ways: dict[str, Rows] = field(default_factory=dict)
    orders: dict[str, Rows] = field(default_factory=dict)
    grid: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    vocabulary: int = 0

    def column(self, rows: Rows, name: str) -> list[float]:
        """One number a draw."""
        return [row[name] for row in rows]


def compare(reader: Reader, draws: Sequence[Draw], how: Comparison) -> Compared:
    """Choose on the first draws, report on the others."""
    first = max(1, round(how.held * len(draws)))
    out = Compared()
    out.grid = _grid(reader, draws[:first], how)
    for name in how.ways:
        mine = [row for row in out.grid if row["way"] == name]
        able = [row for row in mine if row["informative"]]
        out.chosen[name] = max(able or mine, key=lambda row: row["cosine"])
    with progress.Counted("draws", len(draws) - first) as bar:
        for number, (episode, other) in enumerate(draws[first:]):
            _report(reader, episode, other, number, how, out)
            bar.advance(1)
    return out


def findings(out: Compared, how: Comparison) -> dict[str, Any]:
    """The comparison told: estimates with intervals over draws, and one verdict a way."""
    told: dict[str, Any] = {
        "draws": len(out.controls["none"]),
        "chance_overlap": similarity.chance_overlap(out.vocabulary, how.top),
        "controls": {name: similarity.summary(rows) for name, rows in out.controls.items()},
        "order": {name: similarity.summary(rows) for name, rows in out.orders.items()},
        "grid": out.grid, "ways": {},
    }  # fmt: skip
    icl = out.orders["icl"]
    for name, rows in out.ways.items():
        apart = [a["probability"] - b["probability"] for a, b in zip(icl, out.orders[name], strict=True)]
        found = {}
        for measure in SIMILARITIES:
            value, floor, ceiling = (
                out.column(r, measure) for r in (rows, out.controls["none"], out.controls["other order"])
            )
            found[measure] = similarity.verdict(value, floor, ceiling, apart, how.margin)
            others = out.column(out.controls["other demonstrations"], measure)
            found[measure]["relative_to_other_demonstrations"] = similarity.relative(value, floor, others)._asdict()
            found[measure]["below_ceiling"] = statistics.paired_interval(ceiling, value)._asdict()
        said = {one["verdict"] for one in found.values()}
        one = said.pop() if len(said) == 1 else "different" if "different" in said else "inconclusive"
        informative = out.chosen[name]["informative"]
        told["ways"][name] = {
            "verdict": one if informative else "uninformative", "chosen": out.chosen[name],
            "to_icl": similarity.summary(rows), **found,
            "order_log_ratio": similarity.log_ratio(
                out.column(icl, "probability"), out.column(out.orders[name], "probability")
            )._asdict(),
        }  # fmt: skip
    return told


def sentence(told: Mapping[str, Any]) -> str:
    """The verdicts in words."""
    parts = []
    for name, way in told["ways"].items():
        at = way["cosine"]["relative"]
        parts.append(
            f"{name}: {way['verdict']}" + (f" ({at['estimate']:.0%} of the way)" if np.isfinite(at["estimate"]) else "")
        )
    return "ICL and fine-tuning on the same demonstrations: " + "; ".join(parts)


def warnings(told: Mapping[str, Any]) -> list[str]:
    """What keeps the verdicts from saying much."""
    out = []
    none, icl = (told["controls"][n]["accuracy"]["estimate"] for n in ("none", "itself"))
    if not icl > none:
        out.append(f"demonstrations do not help ({none:.2f} without, {icl:.2f} with): there is no learning to compare")
    for name, way in told["ways"].items():
        if way["verdict"] == "uninformative":
            out.append(f"{name}: no rate and epoch learnt the task: try other --lrs; its numbers say nothing")
    return out


def pictures(told: Mapping[str, Any]) -> list[figures.Figure]:
    """How near each fine-tuning comes, how much order matters, and the whole grid of rates."""
    controls, ways = told["controls"], told["ways"]
    rows = {f"fine-tuned, {n}": w["to_icl"] for n, w in ways.items()}
    rows |= {f"ICL, {n}": controls[n] for n in ("none", "other demonstrations", "other order")}
    rows = {n.replace("ICL, none", "without demonstrations"): r for n, r in rows.items()}
    similar = [_bar(name, row[m], words) for m, words in WORDS.items() for name, row in rows.items()]
    orders = [_bar("ICL" if n == "icl" else n, row["probability"]) for n, row in told["order"].items()]
    best: dict[str, dict[float, float]] = {}
    for row in told["grid"]:
        at = best.setdefault(row["way"], {})
        at[row["lr"]] = max(row["cosine"], at.get(row["lr"], 0.0))
    lines = [figures.Line(name, list(found), list(found.values())) for name, found in best.items()]
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


def _bar(name: str, of: Mapping[str, float], group: str = "") -> figures.Bar:
    return figures.Bar(name, of["estimate"], of["low"], of["high"], group)


def _grid(reader: Reader, draws: Sequence[Draw], how: Comparison) -> list[dict[str, Any]]:
    """Every way at every rate after every epoch, over these draws."""
    base = [(reader.without(e), reader.shown(e)) for e, _ in draws]
    start = float(np.mean([zero.accuracy for zero, _ in base]))
    out = []
    with progress.Counted("rates", len(how.ways) * len(how.rates)) as bar:
        for (name, way), rate in itertools.product(how.ways.items(), how.rates):
            tries = _rated(way, rate)
            readings = [list(reader.tuned(e, tries)) for e, _ in draws]
            for epoch in range(1, tries.how.epochs + 1):
                each = [_with(r[epoch - 1], icl, how.top) for r, (_, icl) in zip(readings, base, strict=True)]
                row: dict[str, Any] = {k: float(np.mean([e[k] for e in each])) for k in each[0]}
                learnt = row["accuracy"] >= min(start + how.gain, 1.0) and bool(np.isfinite(row["kl"]))
                out.append({"way": name, "lr": rate, "epoch": epoch, "informative": learnt, **row})
            bar.advance(1)
    return out


def _report(reader: Reader, episode: Episode, other: Episode, number: int, how: Comparison, out: Compared) -> None:
    """One draw: controls, every chosen way in every order."""
    zero, icl = reader.without(episode), reader.shown(episode)
    out.vocabulary = icl.tokens.shape[-1]
    each = three_way.orders(how.orders, len(episode.demos), how.seed + number)
    turned = [icl, *(reader.shown(episode.ordered(order)) for order in each[1:])]
    controls = {
        "none": [_with(zero, icl, how.top)],
        "other order": [_with(r, icl, how.top) for r in turned[1:]],
        "other demonstrations": [_with(reader.shown(other), icl, how.top)],
        "itself": [_with(icl, icl, how.top)],
    }
    _sensitivity(out, "icl", turned)
    for name, way in how.ways.items():
        best = _rated(way, out.chosen[name]["lr"], out.chosen[name]["epoch"])
        after = [list(reader.tuned(episode.ordered(order), best))[-1] for order in each]
        out.ways.setdefault(name, []).append(_with(after[0], icl, how.top))
        controls[f"{name}, other order"] = [_with(r, after[0], how.top) for r in after[1:]]
        _sensitivity(out, name, after)
    for name, rows in controls.items():
        out.controls.setdefault(name, []).append({k: float(np.mean([r[k] for r in rows])) for k in rows[0]})


def _sensitivity(out: Compared, name: str, readings: Sequence[Reading]) -> None:
    labels = torch.stack([r.labels for r in readings])
    out.orders.setdefault(name, []).append(similarity.order_sensitivity(labels))


def _with(reading: Reading, icl: Reading, top: int) -> dict[str, float]:
    """One reading beside ICL's: similar how much, and how good."""
    agree = (reading.labels.argmax(-1) == icl.labels.argmax(-1)).double().mean()
    found = similarity.measures(icl.tokens, reading.tokens, top)
    return {"accuracy": reading.accuracy, "agreement": float(agree), **found}


def _rated(way: Way, rate: float, epochs: int | None = None) -> Way:
    return dataclasses.replace(way, how=dataclasses.replace(way.how, lr=rate, epochs=epochs or way.how.epochs))

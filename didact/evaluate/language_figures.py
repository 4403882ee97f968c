"""Figures of a study of n-gram heads: learning by string, arms side by side, what a head attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from didact import figures
from didact.figures import Figure
from didact.models import ngram_heads

SHOWN = 40  # tokens of the lookup map


def of_languages(findings: Mapping[str, Any]) -> list[Figure]:
    """Accuracy and distance by string, and distances to the predictors, from `languages.findings`."""
    words = {
        "accuracy": ("First choices that the language allows", "share of the symbols"),
        "tvd": ("Distance from the true distribution of the next symbol", "total variation distance"),
    }
    out: list[Figure] = []
    for measure, lines in findings["by_string"].items():
        title, y = words[measure]
        curves = [figures.Line(name, list(range(1, len(line) + 1)), line) for name, line in lines.items()]
        best = {"the automaton itself": 1.0 if measure == "accuracy" else 0.0}
        note = "Held-out languages, mean over prompts. Each line is a predictor that has read all strings before."
        out.append(figures.Curves(title=title, x="string of the prompt", y=y, lines=curves, levels=best, note=note))
    rows, columns = list(findings["apart"]), list(next(iter(findings["apart"].values())))
    values = [[findings["apart"][arm][name]["estimate"] for name in columns] for arm in rows]
    title, note = "Which predictor each model is close to", "On the last strings. Dark: far apart."
    return [*out, figures.Heat(title=title, x="predictor", y="model", value="total variation distance", columns=columns,
                               rows=rows, values=values, ends=(0.0, 1.0), note=note)]  # fmt: skip


def of_text(findings: Mapping[str, Any]) -> list[Figure]:
    """Loss of every other arm minus that of the arm with heads, per token."""
    bars = [
        figures.Bar(name, gain["estimate"], gain["low"], gain["high"]) for name, gain in findings["gain_over"].items()
    ]
    note = f"{findings['documents']} held-out documents, the same for all; 95 % intervals over documents."
    title = "What the n-gram heads save, against each model without them"
    return [figures.Bars(title=title, x="excess loss of the model without lookup, nats a token", bars=bars, note=note)]


def of_attention(arm: str, scores: Mapping[str, Any], n: int) -> Figure:
    """The induction score of every attention head of one arm."""
    values = scores["heads"][n]
    names = [f"head {h}" for h in range(len(values[0]))], [f"block {b}" for b in range(len(values))]
    return figures.Heat(
        title=f"Which attention heads of '{arm}' look up what followed the last {n} tokens", x="head", y="block",
        value="share of its attention", columns=names[0], rows=names[1], values=values, ends=(0.0, 1.0),
        note=f"At positions that have such a follower. Uniform attention would have {scores['even'][n]:.2f}.",
    )  # fmt: skip


def of_probe(report: Mapping[str, Any], n: int) -> Figure:
    """Probe accuracy for the follower of the last n tokens at every layer, for every arm and an untrained copy."""
    levels = {"the most frequent symbol": report["majority"]["estimate"]}
    return _probed(
        report, f"Reading off hidden states what followed the last {n} tokens most often", "a linear probe", levels
    )


def of_states(report: Mapping[str, Any]) -> Figure:
    """Probe accuracy at every layer for whether two positions have the same state of the automaton."""
    levels = {f"from the last {n} tokens": share for n, share in report["same_ngram"].items()}
    title = "Reading off hidden states whether two positions have the same state of the automaton"
    return _probed(report, title, "a linear probe of their difference", levels | {"chance": 0.5})


def _probed(report: Mapping[str, Any], title: str, probe: str, levels: dict[str, float]) -> Figure:
    lines = []
    for name, layers in report["models"].items():
        for task, label in (("accuracy", name), ("control", f"{name}, random labels")):
            intervals = [layer[task] for layer in layers.values()]
            ends = ([e["low"] for e in intervals], [e["high"] for e in intervals])
            lines.append(figures.Line(label, list(layers), [e["estimate"] for e in intervals], *ends))
    return figures.Curves(
        title=title, x="layer (0: embeddings)", y=f"accuracy of {probe}", lines=lines, levels=levels,
        note="Held-out prompts. Accuracy with random labels (the control task) or of an untrained copy is not learnt.",
    )  # fmt: skip


def lookup_map(tokens: Sequence[int], words: Sequence[str], n: int) -> Figure:
    """The lookup weights of a head of size n over the first tokens of one text."""
    ids = list(tokens[:SHOWN])
    weights = ngram_heads.weights(torch.tensor([ids]), n)[0]
    names = [f"{i} {word}" for i, word in enumerate(words[:SHOWN])]
    return figures.Heat(
        title=f"Where a head of size {n} looks", x="token looked up", y="token read last", value="weight",
        columns=names, rows=names, values=weights.tolist(), ends=(0.0, 1.0),
        note=f"Dark: what followed an earlier occurrence of the last {n} tokens. No model weight is involved.",
    )  # fmt: skip

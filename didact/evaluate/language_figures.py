"""The pictures of a study of n-gram heads: learning by string, arms side by side, what a head attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from didact import figures
from didact.figures import Figure
from didact.models import ngram_heads

SHOWN = 40  # tokens of the map


def of_languages(found: Mapping[str, Any]) -> list[Figure]:
    """Accuracy and distance by string, from what `languages.findings` gave."""
    words = {
        "accuracy": ("First choices that the language allows", "share of the symbols"),
        "tvd": ("Distance from the true distribution of the next symbol", "total variation distance"),
    }
    out: list[Figure] = []
    for measure, lines in found["by_string"].items():
        title, y = words[measure]
        each = [figures.Line(name, list(range(1, len(line) + 1)), line) for name, line in lines.items()]
        best = {"the automaton itself": 1.0 if measure == "accuracy" else 0.0}
        note = "Held-out languages, mean over prompts. Each line is a predictor that has read all strings before."
        out.append(figures.Curves(title=title, x="string of the prompt", y=y, lines=each, levels=best, note=note))
    rows, columns = list(found["apart"]), list(next(iter(found["apart"].values())))
    values = [[found["apart"][arm][name]["estimate"] for name in columns] for arm in rows]
    title, note = "Whom each model predicts like", "On the last strings. Dark: far apart."
    return [*out, figures.Heat(title=title, x="predictor", y="model", value="total variation distance", columns=columns,
                               rows=rows, values=values, ends=(0.0, 1.0), note=note)]  # fmt: skip


def of_text(found: Mapping[str, Any]) -> list[Figure]:
    """How much more every other arm needs for a token than the one with heads."""
    bars = [figures.Bar(name, gain["estimate"], gain["low"], gain["high"]) for name, gain in found["gain_over"].items()]
    note = f"{found['documents']} held-out documents, the same for all; 95 % intervals over documents."
    title = "What the n-gram heads save, against each model without them"
    return [figures.Bars(title=title, x="nats a token that the model without lookup needs more", bars=bars, note=note)]


def of_attention(arm: str, found: Mapping[str, Any], n: int) -> Figure:
    """The induction score of every attention head of one arm."""
    values = found["heads"][n]
    names = [f"head {h}" for h in range(len(values[0]))], [f"block {b}" for b in range(len(values))]
    return figures.Heat(
        title=f"Which attention heads of '{arm}' look up what followed the last {n} tokens", x="head", y="block",
        value="share of its attention", columns=names[0], rows=names[1], values=values, ends=(0.0, 1.0),
        note=f"At positions that have such a follower. Even attention would pay {found['even'][n]:.2f}.",
    )  # fmt: skip


def of_probe(found: Mapping[str, Any], n: int) -> Figure:
    """How well the follower of the last n tokens is read off every layer, of every arm and an untrained copy."""
    levels = {"the commonest symbol": found["majority"]["estimate"]}
    return _probed(
        found, f"Reading off hidden states what followed the last {n} tokens most often", "a linear probe", levels
    )


def of_states(found: Mapping[str, Any]) -> Figure:
    """How well it is read off every layer whether two places are in one state of the automaton."""
    levels = {f"who knows the last {n} tokens": share for n, share in found["same_ngram"].items()}
    title = "Reading off hidden states whether two places are in one state of the automaton"
    return _probed(found, title, "a linear probe of how far they are apart", levels | {"chance": 0.5})


def _probed(found: Mapping[str, Any], title: str, by: str, levels: dict[str, float]) -> Figure:
    lines = []
    for name, layers in found["models"].items():
        for task, told in (("accuracy", name), ("control", f"{name}, labels by chance")):
            each = [layer[task] for layer in layers.values()]
            ends = ([e["low"] for e in each], [e["high"] for e in each])
            lines.append(figures.Line(told, list(layers), [e["estimate"] for e in each], *ends))
    return figures.Curves(
        title=title, x="layer (0: embeddings)", y=f"accuracy of {by}", lines=lines, levels=levels,
        note="Held-out prompts. What is reached with labels by chance (the control task) or untrained was not learnt.",
    )  # fmt: skip


def lookup_map(tokens: Sequence[int], words: Sequence[str], n: int) -> Figure:
    """Where a head of size n looks in the beginning of one text."""
    kept = list(tokens[:SHOWN])
    weights = ngram_heads.weights(torch.tensor([kept]), n)[0]
    names = [f"{i} {word}" for i, word in enumerate(words[:SHOWN])]
    return figures.Heat(
        title=f"Where a head of size {n} looks", x="token looked up", y="token read last", value="weight",
        columns=names, rows=names, values=weights.tolist(), ends=(0.0, 1.0),
        note=f"Dark: what followed an earlier occurrence of the last {n} tokens. No weight of the model is in it.",
    )  # fmt: skip

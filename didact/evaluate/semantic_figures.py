"""Figures of what hidden states encode of a program: by meaning and offset, and by layer with the control task.

Source: Jin & Rinard, arXiv:2305.11169.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from didact import figures
from didact.evaluate import semantics
from didact.evaluate.probes import Parts, ProbeConfig
from didact.evaluate.semantics import CONTROL, TRUE, Content, Program
from didact.models.hidden import Store

Pair = tuple[str, int]  # label, offset


def when(offset: int) -> str:
    """An offset in words."""
    words = f"{abs(offset)} word{'s' * (abs(offset) > 1)}"
    return f"{words} {'later' if offset > 0 else 'before'}" if offset else "now"


def bars(
    contents: Mapping[Pair, Content], blank: Mapping[Pair, Content], label: str, names: Sequence[str]
) -> figures.Figure:
    """Accuracies of one label by offset, under each meaning."""
    drawn = []
    for (name, offset), content in contents.items():
        if name == label:
            rows = [("original", content.accuracy()), *((f"meanings {n}", content.accuracy(n)) for n in names),
                    ("untrained model", blank[name, offset].accuracy())]  # fmt: skip
            drawn += [figures.Bar(series, *interval, group=when(offset)) for series, interval in rows]
    return figures.Bars(title=f"What is read of the state: {label}", x="probe accuracy", bars=drawn)


def by_layer(
    stores: Mapping[str, Store],
    samples: Sequence[Program],
    tasks: Mapping[tuple[str, str, int], Tensor],
    parts: Parts,
    config: ProbeConfig,
    seed: int,
) -> tuple[dict[str, Any], list[figures.Figure]]:
    """Probe the original meaning at every layer separately, of model and untrained copy; one figure per label."""
    original = {key: values for key, values in tasks.items() if key[0] == TRUE}
    layers = list(stores["trained"].layers)
    by_model = {
        model: [
            semantics.contents(functools.partial(store.take, layers=n), samples, original, parts, config, seed)
            for n in layers
        ]
        for model, store in stores.items()
    }
    summary: dict[str, Any] = {}
    lines: dict[str, list[figures.Line]] = {}
    for name, offset in by_model["trained"][0]:
        rows = {
            "accuracy": [contents[name, offset].accuracy() for contents in by_model["trained"]],
            CONTROL: [contents[name, offset].accuracy(CONTROL) for contents in by_model["trained"]],
            "untrained model": [contents[name, offset].accuracy() for contents in by_model["untrained"]],
        }
        summary[f"{name} {offset:+d}"] = {series: [v.estimate for v in values] for series, values in rows.items()}
        plotted = rows if offset == 0 else {"accuracy": rows["accuracy"]}
        lines[name] = lines.get(name, []) + [
            figures.Line(when(offset) if series == "accuracy" else f"{series}, now", layers, *zip(*values, strict=True))
            for series, values in plotted.items()
        ]
    drawn: list[figures.Figure] = [
        figures.Curves(
            title=f"Where it is read: {name}", x="layer", y="probe accuracy", lines=curves,
            note="Every layer by itself. The control task has labels that are a function of the words so far.",
        )
        for name, curves in lines.items()
    ]  # fmt: skip
    return {"layers": layers, **summary}, drawn

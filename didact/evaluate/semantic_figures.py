"""Pictures of what states know of a program: by meaning and offset, and layer by layer beside the control task.

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
    found: Mapping[Pair, Content], blank: Mapping[Pair, Content], label: str, names: Sequence[str]
) -> figures.Figure:
    """Accuracies of one label by offset, under each meaning."""
    drawn = []
    for (name, offset), content in found.items():
        if name == label:
            rows = [("original", content.accuracy()), *((f"meanings {n}", content.accuracy(n)) for n in names),
                    ("untrained model", blank[name, offset].accuracy())]  # fmt: skip
            drawn += [figures.Bar(of, *interval, group=when(offset)) for of, interval in rows]
    return figures.Bars(title=f"What is read of the state: {label}", x="probe accuracy", bars=drawn)


def by_layer(
    stores: Mapping[str, Store],
    made: Sequence[Program],
    tasks: Mapping[tuple[str, str, int], Tensor],
    parts: Parts,
    config: ProbeConfig,
    seed: int,
) -> tuple[dict[str, Any], list[figures.Figure]]:
    """The original meaning read off every layer by itself, of the model and its untrained copy; one picture a label."""
    own = {key: values for key, values in tasks.items() if key[0] == TRUE}
    layers = list(stores["trained"].layers)
    read = {
        who: [
            semantics.contents(functools.partial(store.take, layers=n), made, own, parts, config, seed) for n in layers
        ]
        for who, store in stores.items()
    }
    told: dict[str, Any] = {}
    lines: dict[str, list[figures.Line]] = {}
    for name, offset in read["trained"][0]:
        rows = {
            "accuracy": [one[name, offset].accuracy() for one in read["trained"]],
            CONTROL: [one[name, offset].accuracy(CONTROL) for one in read["trained"]],
            "untrained model": [one[name, offset].accuracy() for one in read["untrained"]],
        }
        told[f"{name} {offset:+d}"] = {what: [v.estimate for v in values] for what, values in rows.items()}
        shown = rows if offset == 0 else {"accuracy": rows["accuracy"]}
        lines[name] = lines.get(name, []) + [
            figures.Line(when(offset) if what == "accuracy" else f"{what}, now", layers, *zip(*values, strict=True))
            for what, values in shown.items()
        ]
    drawn: list[figures.Figure] = [
        figures.Curves(
            title=f"Where it is read: {name}", x="layer", y="probe accuracy", lines=of,
            note="Every layer by itself. The control task has labels that are a function of the words so far.",
        )
        for name, of in lines.items()
    ]  # fmt: skip
    return {"layers": layers, **told}, drawn

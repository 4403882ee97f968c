"""The pictures of studies on a pre-trained model, drawn from their cards: `python docs/pictures.py`.

A number is the mean over the seeds of `scoreboard/real/METHOD.json`, with its 95 % interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import figures
from didact.evaluate import statistics

ROOT = Path(__file__).parent.parent
Arms = Mapping[str, Mapping[str, Sequence[float]]]


def main() -> None:
    """Write them all."""
    for method in PICTURES:
        drawn(method).save(place(method))


def place(method: str) -> Path:
    """Where a method's picture is."""
    return ROOT / "docs" / "assets" / f"{method}-gemma.svg"


def drawn(method: str) -> figures.Figure:
    """The picture of a method's card."""
    arms: Arms = json.loads((ROOT / "scoreboard" / "real" / f"{method}.json").read_text())["arms"]
    return PICTURES[method](arms)


def by_layer(arms: Arms, names: Mapping[str, str], bands: Sequence[str], **words: Any) -> figures.Figure:
    """Curves over the arms `layer N`, one for each metric that is named; where the model has one."""
    lines = []
    for metric, name in names.items():
        at = {int(arm.removeprefix("layer ")): row[metric] for arm, row in arms.items() if arm.startswith("layer ")}
        found = {n: statistics.mean_interval(row) for n, row in sorted(at.items()) if None not in row}
        ends = list(map(list, zip(*found.values(), strict=True)))
        lines.append(figures.Line(name, list(found), *(ends if metric in bands else ends[:1])))
    return figures.Curves(x="layer", lines=lines, **words)


def bars(arms: Arms, names: Mapping[str, str], group: str = "") -> list[figures.Bar]:
    """A bar for each `arm.metric`."""
    parts = {name: path.rsplit(".", 1) for path, name in names.items()}
    return [figures.Bar(n, *statistics.mean_interval(arms[a][m]), group=group) for n, (a, m) in parts.items()]


def ast_probe(arms: Arms) -> figures.Figure:
    """Trees by layer, beside both controls."""
    return by_layer(
        arms, {"trained": "Gemma 3 270M", "untrained": "untrained blocks", "control": "control task"},
        bands=("trained", "untrained"),
        title="Syntax trees of Python functions in Gemma 3 270M", y="F1 of constituents",
        note="Mean over seeds, with 95 % intervals of the first two; layer 0 are the embeddings. The control task's "
        "trees are a function of the words.",
    )  # fmt: skip


def dual_form(arms: Arms) -> figures.Figure:
    """Similarity by layer, beside its controls."""
    names = {name: name for name in ("wrong labels", "other text", "untrained model")}
    return by_layer(
        arms, {"fine-tuned": "the same demonstrations", **names}, levels={"chance": 0.0}, bands=("fine-tuned",),
        title="Demonstrations in the prompt beside fine-tuning, in Gemma 3 270M", y="cosine of the changes (SimAOU)",
        note="How alike both change the output of attention, and fine-tuning on something else, or both in an "
        "untrained copy. Mean over seeds, of the first with its 95 % interval.",
    )  # fmt: skip


def icl_vs_gd(arms: Arms) -> figures.Figure:
    """How right, and how like demonstrations in the prompt, each way of using them is."""
    ways = {"kv": "tuned on one by one, keys and values", "kv/full": "tuned on in one step, keys and values",
            "v@middle": "tuned on one by one, a layer's values"}  # fmt: skip
    right = {"model.icl": "in the prompt", **{f"{way}.accuracy": name for way, name in ways.items()},
             "model.zero": "not used", "untrained.icl": "in an untrained copy's prompt"}  # fmt: skip
    alike = {"other order.overlap": "in the prompt, in another order",
             **{f"{way}.overlap": name for way, name in ways.items()}, "nothing.overlap": "not used"}  # fmt: skip
    return figures.Bars(
        title="Eight demonstrations, and what Gemma 3 270M makes of them", x="mean over seeds, 95 % interval",
        bars=bars(arms, right, "accuracy") + bars(arms, alike, "ten likeliest tokens in common with the prompt's"),
    )  # fmt: skip


def icll(arms: Arms) -> figures.Figure:
    """What each arm saves, and what of it is the lookup's."""
    plain = arms["plain"]["nll"]
    saved = {
        "heads": [a - b for a, b in zip(plain, arms["heads"]["nll"], strict=True)],
        "as many weights, no lookup": [a - b for a, b in zip(plain, arms["control"]["nll"], strict=True)],
        "the difference: lookup": arms["lookup"]["gain"],
        "lookup in an untrained copy": arms["lookup"]["untrained"],
    }
    return figures.Bars(
        title="N-gram heads in Gemma 3 270M, twelve steps", x="nats a token saved, mean over seeds, 95 % interval",
        bars=[figures.Bar(name, *statistics.mean_interval(of)) for name, of in saved.items()],
    )  # fmt: skip


def program_semantics(arms: Arms) -> figures.Figure:
    """What is read of the stack under either kind of meanings, in the model and in its untrained copy."""
    read = arms["read"]
    other = [right - gap for right, gap in zip(read["untrained"], read["untrained gap"], strict=True)]
    told = {
        ("what the brackets mean", "Gemma 3 270M"): read["accuracy"],
        ("other meanings", "Gemma 3 270M"): read["alternative"],
        ("control task", "Gemma 3 270M"): read["control"],
        ("what the brackets mean", "untrained copy"): read["untrained"],
        ("other meanings", "untrained copy"): other,
    }
    return figures.Bars(
        title="What is on top of the stack, read off hidden states", x="probe accuracy, mean over seeds, 95 % interval",
        bars=[figures.Bar(name, *statistics.mean_interval(of), group=group) for (name, group), of in told.items()],
        levels={"the commonest label": statistics.mean_interval(read["majority"]).estimate},
    )  # fmt: skip


PICTURES: dict[str, Callable[[Arms], figures.Figure]] = {
    "ast-probe": ast_probe,
    "dual-form": dual_form,
    "icl-vs-gd": icl_vs_gd,
    "icll": icll,
    "program-semantics": program_semantics,
}

if __name__ == "__main__":
    main()

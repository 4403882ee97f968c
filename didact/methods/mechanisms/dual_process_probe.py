"""Is a word's class in a model's states that of the word, or of its place? (Anand et al. 2024)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from didact import figures
from didact.bounds import Count
from didact.evaluate import structural_report, word_probes
from didact.evaluate.probes import ProbeConfig
from didact.models.model import Model
from didact.models.untrained import untrained
from didact.registry import method
from didact.types import Metric, Result, Text, UserError

HELP = {
    "seen": "the class of words in their sentences, read off hidden states",
    "unseen": "the same where the word is one that no training had: what the place tells",
    "trained_unseen": "the same by a probe that was trained on such words",
    "place": "a word of another class in the place: the probe says the place's class",
}


@method(
    "dual-process.probe",
    paper="Dual Process Learning: Controlling Use of In-Context vs. In-Weights Strategies with Weight Forgetting",
    year=2024,
    source="arXiv:2406.00053",
    gives=("findings",),
    capabilities=("hidden",),
    kinds=("causal", "masked"),
)
def dual_process_probe(
    texts: Sequence[Text],
    model: Model,
    *,
    words: str = "tokens",
    tags: str = "upos",
    classes: tuple[str, ...] = ("NOUN", "VERB", "ADJ"),
    layers: tuple[int, ...] | None = None,
    most: Count = 1500,
    probe: ProbeConfig = ProbeConfig(),
    seed: int = 0,
) -> Result:
    """Ask of every layer of a model whether it takes a word's part of speech from the word or from its context.

    Probes learn the class of words from the hidden states at their last tokens. On held-out sentences they are asked
    about the word as it stands (seen), about a token in its place whose embedding was never trained (unseen: only the
    place can tell), and about a word of another class there (conflict: the place says one class, the word another).
    Beside each layer stand a control task, in which every word has a class of its own drawn by chance, and an untrained
    copy of the model. A causal model sees the words before and the word itself, a masked one all others too.

    Args:
        texts: records with their words and a tag of each, as fields beside `text`.
        model: a causal or masked model; it stays as it is.
        words: the field with the words.
        tags: the field with their tags.
        classes: the tags told apart, by chance equally often each.
        layers: which are probed, 0 the embeddings; all by default. Negative ones count from the last.
        most: words probed.
        probe: the classifier.
        seed: of the words, the split and the probes.

    Returns:
        Findings by model and layer; metrics at the layer that reads seen words best.

    Raises:
        UserError: a record without words or tags, a class without words, or a model without hidden states.
    """
    began = time.monotonic()
    if len(classes) < 2:
        raise UserError(f"classes = {' '.join(classes)}: a probe tells two at least apart")
    fields = (words, tags)
    chosen, names = word_probes.words(texts, fields, classes, most, seed)
    given, chosen = word_probes.rows(model, chosen, word_probes.lexicon(texts, fields, classes), seed)
    found = {
        name: word_probes.examine(one, chosen, given, probe, layers, seed)
        for name, one in (("model", model), ("untrained", untrained(model, seed)))
    }
    best = max(found["model"], key=lambda layer: found["model"][layer]["seen"]["estimate"])
    ours, theirs = found["model"][best], found["untrained"][best]
    result = Result(
        findings={
            "words": len(chosen), "classes": names, "guessing": 1 / len(names), "best_layer": best, "layers": found,
        },
        metrics={
            f"{name}_accuracy": Metric(
                after=ours[name]["estimate"], before=theirs[name]["estimate"], n=len(chosen),
                ci=(ours[name]["low"], ours[name]["high"]), better="" if name == "place" else "higher",
                help=f"{text}; before: an untrained copy",
            )
            for name, text in HELP.items()
        },
        figures=_drawn(found, best, 1 / len(names)),
    )  # fmt: skip
    if ours["selectivity"]["low"] <= 0:
        result.warnings.append(
            f"layer {best}: the control task is read as well as the classes: the probe learns words by heart, so that "
            "its accuracy says nothing of the model"
        )
    both = [(found["model"][n]["trained_unseen"], found["untrained"][n]["trained_unseen"]) for n in found["model"]]
    if all(one["low"] <= other["estimate"] for one, other in both):
        result.warnings.append(
            "no layer tells the classes of unseen words better than one of an untrained copy: nothing here shows that "
            "the model tells them from context"
        )
    result.cost.seconds = time.monotonic() - began
    return result


def _drawn(found: dict[str, Any], best: int, guessing: float) -> list[figures.Figure]:
    """The word by layer, the place by layer, and which of the two wins."""
    shown = {
        "A word's class, read off the hidden states of each layer": (
            "", {"the word in its place": ("model", "seen"), "control task": ("model", "control"),
                 "untrained copy": ("untrained", "seen")},
        ),
        "The class of a word that no training had, from its place": (
            "Its embedding was never trained, nor was that of any word the probes learnt from.",
            {"the model": ("model", "trained_unseen"), "untrained copy": ("untrained", "trained_unseen"),
             "the model, probe of seen words": ("model", "unseen")},
        ),
    }  # fmt: skip
    curves = []
    for title, (note, named) in shown.items():
        lines = []
        for name, (model, what) in named.items():
            columns = ([one[what][end] for one in found[model].values()] for end in structural_report.ENDS)
            lines.append(figures.Line(name, list(found[model]), *columns))
        levels = {"guessing": guessing}
        curves.append(figures.Curves(title=title, x="layer", y="share right", lines=lines, levels=levels, note=note))
    said = {"place": "the place's class", "word": "the word's class"}
    bars = [
        structural_report.bar(text, found[model][best][what], group)
        for model, group in (("model", "the model"), ("untrained", "untrained copy"))
        for what, text in said.items()
    ]
    title = f"A word of another class in the place: what layer {best} says"
    return [*curves, figures.Bars(title=title, x="share of words", bars=bars)]

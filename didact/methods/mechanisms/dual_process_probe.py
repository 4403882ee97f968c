"""Do hidden states take a word's class from the word itself, or from its context? (Anand et al. 2024)."""

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
    """Probe every layer of a model for whether it takes a word's part of speech from the word or from its context.

    Probes learn the class of words from the hidden states at their last tokens. On held-out sentences they are tested
    on the word itself (seen), on a token in its place whose embedding was never trained (unseen: only the context can
    tell), and on a word of another class there (conflict: the context implies one class, the word another). Each layer
    is compared with a control task, in which every word has a class drawn at random, and with an untrained copy of the
    model. A causal model sees the words before and the word itself, a masked one all others too.

    Args:
        texts: records with their words and a tag of each, as fields beside `text`.
        model: a causal or masked model; left unchanged.
        words: the field with the words.
        tags: the field with their tags.
        classes: tags to tell apart, sampled equally often.
        layers: layers to probe, 0 the embeddings; all by default. Negative ones count from the last.
        most: maximum number of words.
        probe: the classifier.
        seed: random seed of the words, the split and the probes.

    Returns:
        Findings by model and layer; metrics at the layer that reads seen words best.

    Raises:
        UserError: a record without words or tags, a class without words, or a model without hidden states.
    """
    start_time = time.monotonic()
    if len(classes) < 2:
        raise UserError(f"classes = {' '.join(classes)}: a probe tells two at least apart")
    fields = (words, tags)
    chosen, names = word_probes.words(texts, fields, classes, most, seed)
    word_rows, chosen = word_probes.rows(model, chosen, word_probes.lexicon(texts, fields, classes), seed)
    results = {
        name: word_probes.examine(probed, chosen, word_rows, probe, layers, seed)
        for name, probed in (("model", model), ("untrained", untrained(model, seed)))
    }
    best = max(results["model"], key=lambda layer: results["model"][layer]["seen"]["estimate"])
    best_scores, control_scores = results["model"][best], results["untrained"][best]
    result = Result(
        findings={
            "words": len(chosen), "classes": names, "guessing": 1 / len(names), "best_layer": best, "layers": results,
        },
        metrics={
            f"{name}_accuracy": Metric(
                after=best_scores[name]["estimate"], before=control_scores[name]["estimate"], n=len(chosen),
                ci=(best_scores[name]["low"], best_scores[name]["high"]), better="" if name == "place" else "higher",
                help=f"{text}; before: an untrained copy",
            )
            for name, text in HELP.items()
        },
        figures=_plots(results, best, 1 / len(names)),
    )  # fmt: skip
    if best_scores["selectivity"]["low"] <= 0:
        result.warnings.append(
            f"layer {best}: the control task is read as well as the classes: the probe learns words by heart, so that "
            "its accuracy says nothing of the model"
        )
    unseen_scores = [
        (results["model"][n]["trained_unseen"], results["untrained"][n]["trained_unseen"]) for n in results["model"]
    ]
    if all(trained["low"] <= control["estimate"] for trained, control in unseen_scores):
        result.warnings.append(
            "no layer tells the classes of unseen words better than one of an untrained copy: nothing here shows that "
            "the model tells them from context"
        )
    result.cost.seconds = time.monotonic() - start_time
    return result


def _plots(found: dict[str, Any], best: int, guessing: float) -> list[figures.Figure]:
    """Plot by layer the accuracy from the word and from its context, and which of the two wins in a conflict."""
    panels = {
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
    for title, (note, series) in panels.items():
        lines = []
        for name, (model, condition) in series.items():
            columns = ([scores[condition][end] for scores in found[model].values()] for end in structural_report.ENDS)
            lines.append(figures.Line(name, list(found[model]), *columns))
        levels = {"guessing": guessing}
        curves.append(figures.Curves(title=title, x="layer", y="share right", lines=lines, levels=levels, note=note))
    answers = {"place": "the place's class", "word": "the word's class"}
    bars = [
        structural_report.bar(text, found[model][best][condition], group)
        for model, group in (("model", "the model"), ("untrained", "untrained copy"))
        for condition, text in answers.items()
    ]
    title = f"A word of another class in the place: what layer {best} says"
    return [*curves, figures.Bars(title=title, x="share of words", bars=bars)]

"""Scores of answers to questions about a passage: token F1 and exact match as in SQuAD and MRQA, extractiveness.

Everything is per question, in [0, 1], the best over the accepted answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from didact.data import words
from didact.evaluate import statistics
from didact.evaluate.measures import Better, Measure
from didact.infer.span_decoders import Decoder
from didact.infer.span_scores import Span
from didact.types import QA, UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower-case, drop punctuation and a, an and the, and collapse white space, as SQuAD does.

    In text with letters beyond ASCII, punctuation beyond ASCII and invisible format characters (the direction of
    writing, say) are dropped too, and an accented letter is one letter however it is encoded.
    """
    text = words.folded(text.lower()).translate(_PUNCTUATION)
    if words.foreign(text):
        text = "".join(c for c in text if unicodedata.category(c)[0] != "P" and unicodedata.category(c) != "Cf")
    return " ".join(_ARTICLES.sub(" ", text).split())


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of the two bags of normalised words, `2 P R / (P + R)`; an empty prediction scores 0.

    In scripts without spaces a letter is a word.
    """
    predicted = words.tokens(normalise(prediction))
    return max((_f1(predicted, words.tokens(normalise(a))) for a in answers), default=0.0)


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU against all answers at once, in [0, 1], by sacrebleu (13a tokens, exponential smoothing).

    In scripts without spaces a letter is a word. Orders with no n-gram in the prediction are left out, else an answer
    of three words would score 0.

    Raises:
        UserError: the package sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError:
        raise UserError("bleu: the package sacrebleu is missing: pip install didact[metrics]") from None
    text, references = _spaced(prediction), [_spaced(a) for a in answers]
    return float(sentence_bleu(text, references, use_effective_order=True).score) / 100


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is an answer after normalisation."""
    text = normalise(prediction)
    return float(bool(text) and any(text == normalise(a) for a in answers))


def extractive(prediction: str, context: str, normalised: bool = False) -> bool:
    """Whether the prediction is a non-empty substring of the passage, to the letter or after normalisation."""
    if normalised:
        prediction, context = normalise(prediction), normalise(context)
    return bool(prediction) and prediction in context


def compare(records: Sequence[QA], answers: Mapping[Decoder, Sequence[Span]]) -> dict[str, Measure]:
    """Compare the answers of several decoders of one model; intervals are Student's t over the questions.

    Args:
        records: questions with passages and accepted answers (F1 and exact match need some).
        answers: one answer per question, by decoder.

    Returns:
        For each decoder `f1`, `em` (in percent) and `nll`; for `greedy` how often its answer is in the passage
        (`extractiveness`, to the letter and normalised); with `exact` also how often greedy finds the likeliest span
        (`optimality`), its excess nll (`search_error`, over its answers that are spans), and the paired F1 difference
        (`gain`).
    """
    out: dict[str, Measure] = {}
    labelled = [bool(r.answers) for r in records]
    scores = {
        name: [f1(s.text, r.answers) for s, r in zip(spans, records, strict=True)] for name, spans in answers.items()
    }
    for name, spans in answers.items():
        if any(labelled):
            exact = [exact_match(s.text, r.answers) for s, r in zip(spans, records, strict=True)]
            out[f"{name}_f1"] = _percent(np.array(scores[name])[labelled], "token F1, the best over the answers")
            out[f"{name}_em"] = _percent(np.array(exact)[labelled], "exact match after normalisation")
        out[f"{name}_nll"] = _mean([s.nll for s in spans], "nats", "lower", "of the answer and its end")
    if "greedy" not in answers:
        return out
    pairs = list(zip(answers["greedy"], records, strict=True))
    raw = [extractive(s.text, r.context) for s, r in pairs]
    loose = [extractive(s.text, r.context, normalised=True) for s, r in pairs]
    out["extractiveness"] = _percent(raw, "greedy answers that are a substring of the passage")
    out["extractiveness_normalised"] = _percent(loose, "the same after normalisation")
    if "exact" in answers:
        both = list(zip(answers["greedy"], answers["exact"], strict=True))
        out["optimality"] = _percent([g.text == e.text for g, e in both], "greedy answers that are the likeliest span")
        if excess := [g.nll - e.nll for g, e in both if g.start is not None]:
            out["search_error"] = _mean(excess, "nats", "lower", "nll of greedy's spans above the likeliest's")
        if any(labelled):
            gain = np.subtract(scores["exact"], scores["greedy"])[labelled]
            out["gain"] = _mean(100 * gain, "%", "higher", "F1 of exact less that of greedy, paired")
    return out


def _spaced(text: str) -> str:
    return " ".join(words.tokens(text)) if words.foreign(text) else text


def _percent(values: Sequence[float] | Sequence[bool] | np.ndarray, help: str) -> Measure:
    mean = _mean(100 * np.asarray(values, dtype=float), "%", "higher", help)
    low, high = mean.ci or (0.0, 100.0)
    return Measure(mean.value, mean.n, mean.better, mean.unit, mean.ci and (max(0.0, low), min(100.0, high)), help)


def _mean(values: Sequence[float] | np.ndarray, unit: str, better: Better, help: str) -> Measure:
    mean = statistics.mean_interval(values)
    ci = (mean.low, mean.high) if len(values) > 1 else None
    return Measure(mean.estimate, len(values), better, unit, ci, help)


def _f1(predicted: list[str], reference: list[str]) -> float:
    overlap = sum((Counter(predicted) & Counter(reference)).values())
    return 2 * overlap / (len(predicted) + len(reference)) if overlap else 0.0

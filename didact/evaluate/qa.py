"""Answers to questions about a passage: token F1 and exact match as SQuAD and MRQA count them, and how extractive.

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
    """Lower case, without punctuation, without a, an and the, blanks collapsed, as SQuAD has it.

    Of text with letters beyond ASCII, punctuation beyond ASCII and signs that are not seen (of the direction of
    writing, say) go too, and an accent is one letter however written.
    """
    text = words.folded(text.lower()).translate(_PUNCTUATION)
    if words.foreign(text):
        text = "".join(c for c in text if unicodedata.category(c)[0] != "P" and unicodedata.category(c) != "Cf")
    return " ".join(_ARTICLES.sub(" ", text).split())


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of the two bags of normalised words, `2 P R / (P + R)`; an empty prediction scores 0.

    In scripts without spaces a letter is a word.
    """
    said = words.tokens(normalise(prediction))
    return max((_f1(said, words.tokens(normalise(a))) for a in answers), default=0.0)


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU against all answers at once, in [0, 1], as sacrebleu has it (13a tokens, exponential smoothing).

    In scripts without spaces a letter is a word. Orders with no n-gram in the prediction are left out, or an answer of
    three words would score nothing.

    Raises:
        UserError: the package sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError:
        raise UserError("bleu: the package sacrebleu is missing: pip install didact[metrics]") from None
    said, wanted = _spaced(prediction), [_spaced(a) for a in answers]
    return float(sentence_bleu(said, wanted, use_effective_order=True).score) / 100


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is an answer after normalisation."""
    said = normalise(prediction)
    return float(bool(said) and any(said == normalise(a) for a in answers))


def extractive(prediction: str, context: str, normalised: bool = False) -> bool:
    """Whether the prediction is a non-empty substring of the passage, to the letter or after normalisation."""
    if normalised:
        prediction, context = normalise(prediction), normalise(context)
    return bool(prediction) and prediction in context


def compare(records: Sequence[QA], said: Mapping[Decoder, Sequence[Span]]) -> dict[str, Measure]:
    """What decoders of one model answered, side by side; intervals are Student's t over the questions.

    Args:
        records: questions with passages and accepted answers (F1 and exact match need some).
        said: one answer a question, by decoder.

    Returns:
        For each decoder `f1`, `em` (in percent) and `nll`; for `greedy` how often it speaks from the passage
        (`extractiveness`, to the letter and normalised); beside `exact` how often it finds the likeliest span
        (`optimality`), what it loses where it does not (`search_error`, over its answers that are spans), and the
        paired F1 difference (`gain`).
    """
    out: dict[str, Measure] = {}
    known = [bool(r.answers) for r in records]
    scores = {
        name: [f1(s.text, r.answers) for s, r in zip(spans, records, strict=True)] for name, spans in said.items()
    }
    for name, spans in said.items():
        if any(known):
            exact = [exact_match(s.text, r.answers) for s, r in zip(spans, records, strict=True)]
            out[f"{name}_f1"] = _percent(np.array(scores[name])[known], "token F1, the best over the answers")
            out[f"{name}_em"] = _percent(np.array(exact)[known], "exact match after normalisation")
        out[f"{name}_nll"] = _mean([s.nll for s in spans], "nats", "lower", "of the answer and its end")
    if "greedy" not in said:
        return out
    pairs = list(zip(said["greedy"], records, strict=True))
    raw = [extractive(s.text, r.context) for s, r in pairs]
    loose = [extractive(s.text, r.context, normalised=True) for s, r in pairs]
    out["extractiveness"] = _percent(raw, "greedy answers that are a substring of the passage")
    out["extractiveness_normalised"] = _percent(loose, "the same after normalisation")
    if "exact" in said:
        both = list(zip(said["greedy"], said["exact"], strict=True))
        out["optimality"] = _percent([g.text == e.text for g, e in both], "greedy answers that are the likeliest span")
        if lost := [g.nll - e.nll for g, e in both if g.start is not None]:
            out["search_error"] = _mean(lost, "nats", "lower", "nll of greedy's spans above the likeliest's")
        if any(known):
            gain = np.subtract(scores["exact"], scores["greedy"])[known]
            out["gain"] = _mean(100 * gain, "%", "higher", "F1 of exact less that of greedy, paired")
    return out


def _spaced(text: str) -> str:
    return " ".join(words.tokens(text)) if words.foreign(text) else text


def _percent(values: Sequence[float] | Sequence[bool] | np.ndarray, help: str) -> Measure:
    made = _mean(100 * np.asarray(values, dtype=float), "%", "higher", help)
    low, high = made.ci or (0.0, 100.0)
    return Measure(made.value, made.n, made.better, made.unit, made.ci and (max(0.0, low), min(100.0, high)), help)


def _mean(values: Sequence[float] | np.ndarray, unit: str, better: Better, help: str) -> Measure:
    mean = statistics.mean_interval(values)
    ci = (mean.low, mean.high) if len(values) > 1 else None
    return Measure(mean.estimate, len(values), better, unit, ci, help)


def _f1(said: list[str], wanted: list[str]) -> float:
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted)) if same else 0.0

"""Translations against references: corpus chrF and BLEU, as sacrebleu counts them, and exact matches.

A corpus score is computed from summed n-gram counts, not the mean of sentence scores; its interval is a bootstrap over
the sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from didact.data import words
from didact.evaluate.measures import Measure, mean_measure
from didact.types import UserError

DRAWS = 500  # of the bootstrap


def _metrics() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise UserError("translations: the package sacrebleu is missing: pip install didact[metrics]") from None
    return metrics


def chrf(hypotheses: Sequence[str], references: Sequence[str], order: int = 6, beta: int = 2) -> float:
    """F_beta of character n-grams up to `order`, white space aside, in [0, 100]. Not symmetric."""
    return float(
        _metrics().CHRF(char_order=order, beta=beta, word_order=0).corpus_score(hypotheses, [references]).score
    )


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of n-grams up to 4, in [0, 100]; in scripts without spaces a letter is a token."""
    sides = [
        [" ".join(words.tokens(t)) if words.foreign(t) else t for t in texts] for texts in (hypotheses, references)
    ]
    return float(_metrics().BLEU().corpus_score(sides[0], [sides[1]]).score)


def exact(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 if a translation is the reference, ignoring case and white space."""
    return [float(_flat(s) == _flat(w)) for s, w in zip(hypotheses, references, strict=True)]


def measures(hypotheses: Sequence[str], references: Sequence[str], seed: int = 0) -> dict[str, Measure]:
    """`chrf`, `bleu` and `exact_translation`."""
    metric = _metrics().CHRF()
    sentence_scores = tuple(
        float(metric.sentence_score(s, [w]).score) for s, w in zip(hypotheses, references, strict=True)
    )
    low, high = np.quantile(_bootstrap(hypotheses, references, seed), [0.025, 0.975])
    interval = float(low), float(high)
    return {
        "chrf": Measure(
            chrf(hypotheses, references),
            len(references),
            "higher",
            "chrF",
            interval,
            "of all sentences, bootstrapped",
            sentence_scores,
        ),
        "bleu": Measure(bleu(hypotheses, references), len(references), "higher", "BLEU", help="of all sentences"),
        "exact_translation": mean_measure(
            exact(hypotheses, references), "higher", "translations that are the reference"
        ),
    }


def difference(a: Sequence[str], b: Sequence[str], references: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """chrF of `a` less that of `b` on the same sentences, with the interval of a paired bootstrap."""
    low, high = np.quantile(_bootstrap(a, references, seed) - _bootstrap(b, references, seed), [0.025, 0.975])
    return {"estimate": chrf(a, references) - chrf(b, references), "interval": [float(low), float(high)]}


def _bootstrap(hypotheses: Sequence[str], references: Sequence[str], seed: int) -> NDArray[np.float64]:
    """chrF of bootstrap samples of sentences, the same samples for all translations of a seed: n-grams are counted once
    per sentence, as in sacrebleu's own significance tests."""
    metric = _metrics().CHRF()
    counts = np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]))
    rows = np.random.default_rng([seed, 2309]).integers(len(hypotheses), size=(DRAWS, len(hypotheses)))
    return np.array([metric._compute_score_from_stats(counts[sample].sum(0).tolist()).score for sample in rows])


def _flat(text: str) -> str:
    return " ".join(words.folded(text).split()).casefold()

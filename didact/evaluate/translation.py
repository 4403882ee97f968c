"""Translations against references: chrF and BLEU of the whole, as sacrebleu counts them, and exact matches.

A corpus score is of summed n-gram counts, not the mean of its sentences' scores; its interval is a bootstrap over the
sentences.
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


def chrf(said: Sequence[str], wanted: Sequence[str], order: int = 6, beta: int = 2) -> float:
    """F_beta of character n-grams up to `order`, white space aside, in [0, 100]. Not the same with sides swapped."""
    return float(_metrics().CHRF(char_order=order, beta=beta, word_order=0).corpus_score(said, [wanted]).score)


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU of up to four tokens in a row, in [0, 100]; of scripts without spaces a letter is a token."""
    given = [[" ".join(words.tokens(t)) if words.foreign(t) else t for t in texts] for texts in (said, wanted)]
    return float(_metrics().BLEU().corpus_score(given[0], [given[1]]).score)


def exact(said: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """1 where a translation is the reference but for case and white space."""
    return [float(_flat(s) == _flat(w)) for s, w in zip(said, wanted, strict=True)]


def measures(said: Sequence[str], wanted: Sequence[str], seed: int = 0) -> dict[str, Measure]:
    """`chrf`, `bleu` and `exact_translation`."""
    one = _metrics().CHRF()
    each = tuple(float(one.sentence_score(s, [w]).score) for s, w in zip(said, wanted, strict=True))
    low, high = np.quantile(_drawn(said, wanted, seed), [0.025, 0.975])
    interval = float(low), float(high)
    return {
        "chrf": Measure(
            chrf(said, wanted), len(wanted), "higher", "chrF", interval, "of all sentences, bootstrapped", each
        ),
        "bleu": Measure(bleu(said, wanted), len(wanted), "higher", "BLEU", help="of all sentences"),
        "exact_translation": mean_measure(exact(said, wanted), "higher", "translations that are the reference"),
    }


def difference(a: Sequence[str], b: Sequence[str], wanted: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """By how much chrF of `a` is above that of `b` on the same sentences, with the interval of a paired bootstrap."""
    low, high = np.quantile(_drawn(a, wanted, seed) - _drawn(b, wanted, seed), [0.025, 0.975])
    return {"estimate": chrf(a, wanted) - chrf(b, wanted), "interval": [float(low), float(high)]}


def _drawn(said: Sequence[str], wanted: Sequence[str], seed: int) -> NDArray[np.float64]:
    """chrF of sentences drawn again with repetition, the same ones for every text of the seed: n-grams are counted once
    a sentence, as sacrebleu's own tests of significance do."""
    metric = _metrics().CHRF()
    counts = np.array(metric._extract_corpus_statistics(list(said), [list(wanted)]))
    rows = np.random.default_rng([seed, 2309]).integers(len(said), size=(DRAWS, len(said)))
    return np.array([metric._compute_score_from_stats(counts[at].sum(0).tolist()).score for at in rows])


def _flat(text: str) -> str:
    return " ".join(words.folded(text).split()).casefold()

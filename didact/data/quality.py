"""How similar a document is to trusted ones: a linear classifier on hashed words and pairs of words.

Source: Brown et al. 2020, arXiv:2005.14165, appendix A; Smith et al. 2022, arXiv:2201.11990, section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from didact.data import words
from didact.types import UserError

FEATURES = 2**18  # of the hashed bag of words
FOLDS = 2


class Classifier:
    """`score(texts, fold)`: the probability that a text is a trusted one, by a classifier trained without its fold.

    Documents belong to folds 0 and 1 in turn. A classifier is trained on each fold and scores the other, so that no
    document is scored by a classifier that learnt its label.
    """

    def __init__(self, trusted: Sequence[str], others: Sequence[str], seed: int = 0) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression

        for name, texts in (("trusted", trusted), ("other", others)):
            if len(texts) < 2 * FOLDS:
                raise UserError(
                    f"the quality filter learns from {2 * FOLDS} {name} documents at least, not {len(texts)}"
                )
        self._hashed: Any = HashingVectorizer(
            analyzer=_features, n_features=FEATURES, binary=True, alternate_sign=False, lowercase=False
        )
        self._folds = []
        scored: list[tuple[float, bool]] = []
        for fold in range(FOLDS):
            part = [*trusted[fold::FOLDS], *others[fold::FOLDS]]
            label = [True] * len(trusted[fold::FOLDS]) + [False] * len(others[fold::FOLDS])
            model = LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear", random_state=seed)
            self._folds.append(model.fit(self._hashed.transform(part), label))
        for is_trusted, texts in ((True, trusted), (False, others)):
            for fold in range(FOLDS):
                scored += [(float(s), is_trusted) for s in self.score(texts[fold::FOLDS], fold)]
        self.auc = auc(scored)

    def score(self, texts: Sequence[str], fold: int) -> NDArray[np.float64]:
        """Probabilities for texts of one fold, `(texts,)` in [0, 1]."""
        if not texts:
            return np.zeros(0)
        classifier = self._folds[(fold + 1) % FOLDS]
        return np.asarray(classifier.predict_proba(self._hashed.transform(texts))[:, 1], dtype=float)


def auc(scored: Sequence[tuple[float, bool]]) -> float:
    """The area under the ROC curve: how often a trusted document scores above another one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([is_trusted for _, is_trusted in scored], [score for score, _ in scored]))


def _features(text: str) -> list[str]:
    """Words and pairs of successive words, in lower case."""
    tokens = words.words(text.lower())
    return tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]

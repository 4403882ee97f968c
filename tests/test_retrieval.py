"""Nearest texts: known answers of TF-IDF and BM25, ties and ids, memory in chunks, selection within a budget."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from didact.data import retrieval
from didact.types import UserError

TEXTS = ["the cat sat on the mat", "a dog", "the dog and the cat ran and ran", "", "ВЕСНА пришла"]


def okapi(query, texts, k1, b):
    """The formula, word by word."""
    docs = [retrieval.terms(t) for t in texts]
    mean = sum(map(len, docs)) / len(docs)
    out = []
    for doc in docs:
        f, total = Counter(doc), 0.0
        for t in retrieval.terms(query):
            n = sum(t in d for d in docs)
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            total += idf * f[t] * (k1 + 1) / (f[t] + k1 * (1 - b + b * len(doc) / mean)) if f[t] else 0.0
        out.append(total)
    return out


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_bm25_is_the_formula(k1, b):
    index = retrieval.BM25(TEXTS, k1, b)
    queries = ["The cat, the CAT ran", "dog", "весна", "nothing known", ""]
    assert np.allclose(index.scores(queries), [okapi(q, TEXTS, k1, b) for q in queries], rtol=0, atol=1e-12)
    assert index.nearest(["cat ran"], 2).lists() == [[2, 0]]


def test_tf_idf_sees_the_same_words_repetition_aside_and_nothing_in_other_words():
    embedder = retrieval.TfIdf(TEXTS)
    pool = retrieval.embedded(embedder, TEXTS)
    queries = retrieval.embedded(embedder, ["A DOG!", "a dog a dog", "unheard of"])
    result = retrieval.nearest(queries, pool, 2)
    assert result.positions[:2, 0].tolist() == [1, 1] and result.scores[:2, 0] == pytest.approx(1.0)
    assert result.scores[2].tolist() == [0.0, 0.0] and result.positions[2].tolist() == [0, 1]


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_a_pool_without_words_is_searched_all_the_same(texts):
    embedder = retrieval.TfIdf(texts)
    assert retrieval.embedded(embedder, ["cat"]).nnz == 0
    result = retrieval.nearest(embedder(["cat"]), embedder(texts), 2)
    assert result.lists() == [list(range(len(texts)))]
    assert retrieval.BM25(texts).nearest(["cat"], 2).lists() == [list(range(len(texts)))]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3), st.integers(0, 10**6))
def test_nearest_is_a_stable_sort_whatever_the_chunk(n, k, decimals, seed):
    """Coarse scores have many ties; ids may be repeated in the pool or match no query."""
    rng = np.random.default_rng(seed)
    pool, queries = (np.round(rng.normal(size=(size, 2)), decimals) for size in (n, 7))
    pool_ids, query_ids = rng.integers(0, 5, n).tolist(), rng.integers(0, 7, 7).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "CHUNK", 3 * n)
        result = retrieval.nearest(queries, pool, k, query_ids, pool_ids)
    for i, row in enumerate(queries):
        scores = row @ pool.T
        allowed = [j for j in range(n) if pool_ids[j] != query_ids[i]]
        expected = sorted(allowed, key=lambda j: (-scores[j], j))[:k]
        assert np.allclose(scores[result.lists()[i]], scores[expected])
        assert result.positions[i, len(expected) :].tolist() == [retrieval.NONE] * (k - len(expected))
    exact = retrieval.nearest(np.round(queries * 4), np.round(pool * 4), k)  # small whole numbers: no rounding
    for row, hits in zip(np.round(queries * 4), exact.lists(), strict=True):
        scores = row @ np.round(pool * 4).T
        assert hits == sorted(range(n), key=lambda j: (-scores[j], j))[:k]


def test_a_twin_is_found_though_its_cosine_is_one_and_oneself_is_not():
    pool = retrieval.unit(np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]]))
    assert retrieval.nearest(pool, pool, 1, range(3), range(3)).lists() == [[1], [0], [0]]


def test_only_some_queries_are_scored_at_a_time(monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", 40)
    sizes = []

    class Watched(np.ndarray):
        def __matmul__(self, other):
            sizes.append(len(self))
            return np.asarray(self) @ other

    pool = np.eye(10)
    assert retrieval.nearest(pool.view(Watched), pool, 1).lists() == [[i] for i in range(10)]
    assert sizes == [4, 4, 2]


def test_what_fits_stands_with_the_best_last():
    sizes = [5, 9, 3, 2]
    assert retrieval.fitting([2, 1, 3, 0], sizes, 10) == [2]
    assert retrieval.fitting([2, 1, 3, 0], sizes, 10, on_overflow="skip") == [0, 3, 2]
    assert retrieval.fitting([2, 1, 3, 0], sizes, 10, most=2, on_overflow="skip") == [3, 2]
    assert retrieval.fitting([2, 1, 3, 0], sizes, 12) == [1, 2]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros(2), "shape"), (np.zeros((3, 2)), "not one row per text"), (np.array([[1.0], [math.nan]]), "finite")],
)
def test_what_an_embedder_must_not_give_is_told(vectors, message):
    with pytest.raises(UserError, match=f"^embedder: .*{message}"):
        retrieval.embedded(lambda texts: vectors, ["a", "b"])


def test_whole_numbers_and_float32_serve():
    assert retrieval.embedded(lambda texts: [[3, 4]], ["a"]).tolist() == [[0.6, 0.8]]
    assert retrieval.embedded(lambda texts: np.ones((1, 4), "f4"), ["a"]).dtype == np.float32


def test_a_space_on_both_sides_tells_a_word_from_one_that_holds_it():
    pool = retrieval.Substrings(["ana", "banana", "an"])
    assert pool.scores(["ana"]).tolist() == [[5, 4, 3]]
    assert pool.nearest(["zz"], 2).lists() == [[0, 1]]  # only spaces in common: ties by position
    assert retrieval.Substrings([]).scores(["a"]).shape == (1, 0)


@given(st.lists(st.text("ab ", max_size=8), min_size=1, max_size=5), st.text("ab ", max_size=8))
def test_the_longest_substring_is_that_of_all_pairs_of_substrings(pool, query):
    def longest(a, b):
        subs = {a[i:j] for i, j in itertools.combinations(range(len(a) + 1), 2)}
        return max((len(s) for s in subs if s in b), default=0)

    scores = retrieval.Substrings(pool).scores([query])[0].tolist()
    assert scores == [longest(f" {query} ", f" {text} ") for text in pool]
    order = sorted(range(len(pool)), key=lambda i: (-scores[i], i))
    assert retrieval.Substrings(pool).nearest([query], 3).lists() == [order[:3]]

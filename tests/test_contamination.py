"""Test items in the text are found exactly, and removed as in the paper."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from didact.data import contamination

WORDS = [f"w{i}" for i in range(40)]


def text(rng, count):
    return " ".join(rng.choices(WORDS, k=count))


@pytest.mark.parametrize(("lengths", "n"), [([4] * 20, 8), ([10] * 20, 10), ([50] * 20, 13), ([5] + [12] * 99, 12)])
def test_the_gram_length_is_the_fifth_percentile_clipped_to_8_and_13(lengths, n):
    assert contamination.gram_length([" ".join(["a"] * k) for k in lengths]) == n


def test_words_are_lower_case_without_punctuation():
    assert contamination.words("Don't -- stop, PLEASE! «Ça» 3.5") == ["dont", "stop", "please", "ça", "35"]


MIXED = st.text(st.sampled_from("ab, .'\u0301東京都ไทยีか゛Жé-"), max_size=24)


@given(MIXED)
def test_every_word_of_any_script_has_its_place(document):
    words = contamination.words(document)
    assert [w for a, b in contamination._spans(document) for w in contamination.words(document[a:b])] == words
    assert len(list(contamination._spans(document))) == len(words)


def test_text_without_spaces_is_compared_letter_by_letter():
    item = "北岸の小さな町タルンで生まれた"
    assert contamination.audit([item], [f"彼女は{item}。", "別の話。"]).where == [0]
    assert not contamination.audit([item], ["彼女は南の町で生まれた。"]).dirty[0]
    document = "あ" * 300 + item + "う" * 300
    assert contamination.remove([document], [item], n=13, window=0, shortest=1).pieces == ["あ" * 300, "う" * 300]


def test_an_item_shorter_than_n_words_is_clean():
    assert not contamination.audit(["one two three"], ["one two three"], n=4).dirty[0]
    assert contamination.audit(["one two three"], ["so: One, two - THREE."], n=3).dirty[0]


@given(seed=st.integers(0, 10**6), n=st.integers(1, 5))
def test_the_audit_equals_a_plain_search_for_every_gram(seed, n):
    rng = random.Random(seed)
    items, corpus = (
        [text(rng, rng.randrange(0, 9)) for _ in range(6)],
        [text(rng, rng.randrange(0, 60)) for _ in range(4)],
    )
    result = contamination.audit(items, corpus, n)

    def grams(t):
        words = t.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    overlap = [[bool(grams(item) & grams(document)) for document in corpus] for item in items]
    assert result.dirty.tolist() == [any(row) for row in overlap]
    assert result.where == [row.index(True) if any(row) else None for row in overlap]


def test_planted_items_are_found_with_recall_and_precision_1():
    rng = random.Random(0)
    items = [text(rng, 20) for _ in range(50)]
    corpus = [text(rng, 300) for _ in range(30)]
    assert not contamination.audit(items, corpus).dirty.any()
    for i in range(15):  # 30 % of them
        corpus[2 * i] = f"{corpus[2 * i]}, {items[i].title()}; {corpus[2 * i + 1]}"
    result = contamination.audit(items, corpus)
    assert result.n == 13 and result.dirty.tolist() == [True] * 15 + [False] * 35
    assert result.share == pytest.approx(0.3) and result.where[3] == 6


# --- removal ---------------------------------------------------------------------------------


def around(planted, before=1000, after=1000):
    return "a" * 3 + " " + "b " * (before // 2) + planted + " " + "c " * (after // 2)


def test_removal_cuts_the_collision_with_200_characters_on_both_sides():
    item = " ".join(WORDS[:13])
    document = around(item)
    cleaned = contamination.remove([document, "nothing here"], [item])
    at = document.index(item)
    assert cleaned.pieces == [document[: at - 200], document[at + len(item) + 200 :], "nothing here"]
    assert cleaned.source == [0, 0, 1] and cleaned.collisions == 1 and cleaned.dropped == []


def test_fewer_than_13_shared_words_change_nothing():
    item = " ".join(WORDS[:12])
    assert contamination.remove([around(item)], [item]).pieces == [around(item)]


def test_pieces_under_200_characters_are_dropped():
    item = " ".join(WORDS[:13])
    document = around(item, before=390, after=1000)  # 390 + 4 - 200 = 194 characters are left before it
    cleaned = contamination.remove([document], [item])
    assert cleaned.pieces == [document[document.index(item) + len(item) + 200 :]]
    forgotten = contamination.remove([around(item, 300, 300)], [item])
    assert forgotten.pieces == [] and forgotten.dropped == [0]


@pytest.mark.parametrize(("cuts", "pieces"), [(9, 10), (10, 0)])
def test_a_document_split_into_more_than_10_pieces_goes_whole(cuts, pieces):
    items = [" ".join(f"{w}x{i}" for w in WORDS[:13]) for i in range(cuts)]
    document = around("", 1000, 0) + "".join(f"{item} {'d ' * 500}" for item in items)
    cleaned = contamination.remove([document], items)
    assert len(cleaned.pieces) == pieces and cleaned.dropped == ([] if pieces else [0])


@pytest.mark.parametrize(("documents", "cut"), [(10, True), (11, False)])
def test_a_gram_in_more_than_10_documents_is_left_alone(documents, cut):
    item = " ".join(WORDS[:13])
    texts = [f"{i} {around(item)}" for i in range(documents)]
    assert (contamination.remove(texts, [item]).pieces != texts) == cut


def test_after_removal_the_audit_finds_nothing():
    rng = random.Random(1)
    items = [text(rng, 20) for _ in range(20)]
    corpus = [f"{text(rng, 200)} {item} {text(rng, 200)}" for item in items]
    assert contamination.audit(items, corpus).dirty.all()
    assert not contamination.audit(items, contamination.remove(corpus, items).pieces).dirty.any()


def test_phrases_are_spotted_as_whole_words():
    result = contamination.contains_phrase(
        [["98 + 45 =", "98 plus 45"], ["9 plus 4"]], ["so 98  Plus 45 is", "198 + 45 = 2"]
    )
    assert result == [True, False]
    assert contamination.contains_phrase([["98 + 45 ="]], ["198 + 45 = 2"]) == [False]


# --- quality ---------------------------------------------------------------------------------


def test_the_quality_filter_keeps_with_probability_2_minus_score_to_the_minus_9():
    assert contamination.keep_probability([1.0, 0.0]).tolist() == pytest.approx([1.0, 2.0**-9])
    for score in (0.5, 0.9, 1.0):
        saved = contamination.quality_filter(np.full(40_000, score), seed=3).mean()
        p = float(contamination.keep_probability(score))
        assert abs(saved - p) <= 4 * np.sqrt(p * (1 - p) / 40_000) + 1e-12


def test_near_duplicates_go_and_what_only_resembles_stays():
    rng = np.random.default_rng(0)
    text = [" ".join(str(w) for w in rng.integers(500, size=120)) for _ in range(6)]
    nearly = " ".join([*text[0].split()[:-1], "other"])  # 115 of 117 runs of five words are the same
    half = " ".join(text[1].split()[:60] + text[5].split()[60:])
    result = contamination.near_duplicates([*text, nearly, half, text[2], "one two", "one two", ""], hashes=64)
    assert result == [None] * 6 + [0, None, 2, None, 9, None]


@given(texts=st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), max_size=12))
def test_a_near_duplicate_is_never_called_so_wrongly(texts):
    def grams(text):
        words = text.split()
        n = min(5, max(1, len(words)))
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    for number, at in enumerate(contamination.near_duplicates(texts, similar=0.6)):
        if at is not None:
            mine, theirs = grams(texts[number]), grams(texts[at])
            assert at < number and len(mine & theirs) >= 0.6 * len(mine | theirs)

"""gpt3's tasks with known answers, its cleaning variant, its presets and its claim."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from didact import prompting
from didact.claims.prompting import gpt3 as claim
from didact.data import contamination, demonstrations
from didact.methods.prompting.gpt3_pretrain import SIZES
from didact.types import Text, UserError
from didact.worlds import arithmetic, scramble, tasks

# --- arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", arithmetic.TASKS)
def test_every_arithmetic_answer_is_right(task):
    for record in arithmetic.problems(task, 300, seed=1):
        question = record.prompt.removeprefix("Q: What is ").removesuffix("?\n\nA:")
        for word, sign in arithmetic.SIGNS.items():
            question = question.replace(word, sign)
        assert set(question) <= set("0123456789+-* ()") and eval(question) == int(record.completion)
    assert arithmetic.problems(task, 20, seed=1) == arithmetic.problems(task, 20, seed=1)


def test_two_digit_sums_range_to_198_and_carry_in_495_of_1000():
    sums = np.array([int(r.completion) for r in arithmetic.problems("2D+", 20_000)])
    assert sums.min() >= 0 and sums.max() <= 198
    assert (sums >= 100).mean() == pytest.approx(0.495, abs=4 * (0.25 / 20_000) ** 0.5)
    assert min(int(r.completion) for r in arithmetic.problems("2D-", 500)) < 0


def test_a_problem_stands_in_text_as_the_paper_searches_for_it():
    record = arithmetic.problems("3D-", 1)[0]
    a, b = record.extra["a"], record.extra["b"]
    assert arithmetic.phrases(record) == [f"{a} - {b} =", f"{a} minus {b}"]
    assert contamination.contains_phrase([arithmetic.phrases(record)], [f"so {a} minus {b} is"]) == [True]
    assert arithmetic.phrases(arithmetic.problems("1DC", 1)[0]) == []


# --- scrambled words -------------------------------------------------------------------------

word = st.text("abcdefghij", min_size=5, max_size=14)


@given(word=word, seed=st.integers(0, 999))
def test_scrambled_words_keep_what_they_must(word, seed):
    rng = np.random.default_rng(seed)
    assert scramble.reverse(scramble.reverse(word)) == word
    cycled = scramble.cycle(word, rng)
    assert cycled in word + word and len(cycled) == len(word)
    for ends in (1, 2):
        mixed = scramble.anagram(word, rng, ends)
        assert mixed[:ends] == word[:ends] and mixed[-ends:] == word[-ends:]
        assert collections.Counter(mixed) == collections.Counter(word)
    assert scramble.anagram("abbbc", rng) == "abbbc"
    spread = scramble.insertion(word, rng)
    assert "".join(c for c in spread if c.isalpha()) == word and len(spread) == 2 * len(word) - 1


def test_words_are_the_most_frequent_of_5_to_14_letters():
    assert scramble.frequent(["Apple apple pears, pear extraordinarily", "pears pears"]) == ["pears", "apple"]
    words = scramble.standard_words(500)
    assert len(words) == 500 and all(4 < len(w) < 15 for w in words)
    result = scramble.problems("RW", words, 10)
    assert [r.prompt for r in result] == [f"{r.completion[::-1]} =" for r in result]
    with pytest.raises(UserError, match="choose from CL"):
        scramble.problems("XX", words)


# --- hidden tasks ----------------------------------------------------------------------------


def test_text_never_has_a_held_out_task_and_says_nothing_of_it():
    world = tasks.Languages(seed=3)
    names, taught_tasks, held = world.tasks
    assert (
        len(names) == 3
        and len(taught_tasks) == 15
        and len(held) == 9
        and not set(held) & {*taught_tasks, *names.values()}
    )
    for part in (list(names.values()), taught_tasks, held):
        for at in range(3):
            assert set(collections.Counter(t[at] for t in part).values()) == {len(part) // 3}
    lines_seen = {line for text in world.corpus(0, 300, 17) for line in text.text.splitlines()}
    assert all(demonstrations.written(item) in lines_seen for item in world.unseen(0, 1)[0])


def test_the_best_accuracy_anybody_can_have_is_what_counting_gives():
    world = tasks.Languages()
    assert world.bayes(0) == pytest.approx(1 / 3) and world.bayes(1) == pytest.approx(5 / 17 + 12 / 17 / 3)
    assert world.bayes(13) == 1.0
    items = world.unseen(0, 1)[0]
    rng = np.random.default_rng(0)
    recorded = []
    for _ in range(3000):
        order = rng.permutation(18)
        same = any(items[i].extra["class"] == items[order[0]].extra["class"] for i in order[1:5])
        recorded.append(1.0 if same else 1 / 3)
    assert np.mean(recorded) == pytest.approx(world.bayes(4), abs=0.02)


def test_shuffled_demonstrations_keep_everything_but_their_labels():
    items = tasks.Languages().unseen(0, 1)[0]
    mixed = tasks.shuffled(items)
    assert [d.prompt for d in mixed] == [d.prompt for d in items] and mixed != items
    assert all(d.completion in d.choices for d in mixed)


def test_colours_follow_keys_as_often_as_the_world_says():
    world = tasks.Frequencies(base=(0.7, 0.1, 0.1, 0.1), known=0.35)
    gold = {item.prompt: item.completion for item in world.items()}
    lines = [t.text.split() for t in world.corpus(0, 20_000)]
    keyed = [(k, c) for k, c in lines if k != tasks.NEUTRAL]
    rare = [c == gold[k] for k, c in keyed if gold[k] != "red"]
    assert len(keyed) / len(lines) == pytest.approx(0.8, abs=0.02)
    assert np.mean(rare) == pytest.approx(0.35 + 0.65 * 0.1, abs=0.02)
    assert np.mean([c == "red" for k, c in keyed if gold[k] != "red"]) == pytest.approx(0.65 * 0.7, abs=0.02)


# --- cleaning --------------------------------------------------------------------------------


def test_cleaning_removes_test_items_and_keeps_the_rest_of_a_record():
    items, corpus, planted = tasks.quiz(0)
    corpus = [Text(text=t.text, source=f"s{i}") for i, t in enumerate(corpus)]
    result = prompting.gpt3_clean(corpus, items, window=5, shortest=5)
    item_texts = [f"{r.prompt} {r.completion}" for r in items]
    assert not contamination.audit(item_texts, [r.text for r in result.records]).dirty.any()
    assert result.findings["collisions"] == sum(planted)
    assert {r.source for r in result.records} <= {t.source for t in corpus}
    assert result.records[:10] == corpus[:10] and 0 < result.metrics["kept"].after < 1


def test_cleaning_leaves_one_of_documents_that_repeat_each_other():
    corpus = [Text(text=f"document {i // 2} says " + " ".join(f"w{i // 2}x{k}" for k in range(60))) for i in range(8)]
    result = prompting.gpt3_clean(corpus, similar=0.8)
    assert result.records == corpus[::2] and result.findings["duplicates"] == 4


def test_cleaning_by_quality_needs_a_score_of_every_document():
    good = [Text(text=f"d{i}", score=1.0) for i in range(20)]
    assert prompting.gpt3_clean(good, quality=True).records == good
    bad = [Text(text=f"d{i}", score=0.0) for i in range(2000)]
    assert len(prompting.gpt3_clean(bad, quality=True).records) < 20
    with pytest.raises(UserError, match="record 2"):
        prompting.gpt3_clean([good[0], Text(text="x")], quality=True)
    with pytest.raises(UserError, match="nothing to do"):
        prompting.gpt3_clean(good)


# --- sizes and the claim ---------------------------------------------------------------------


def test_sizes_are_the_papers():
    assert all(d % heads == 0 for _, d, heads, *_ in SIZES.values())
    assert SIZES["175B"][:3] == (96, 12288, 96)


def test_a_leak_puts_the_query_first_among_its_demonstrations():
    items = tasks.Languages().unseen(0, 1)[0]
    samples = claim.Leaky(items, 4)(items[7], 7)
    assert samples[0] == 7 and len(samples) == 4


def test_a_word_of_the_band_task_depends_on_the_name_five_back():
    for row in tasks.notes(0, 1, 20):
        ids = [*row.prompt, *row.completion]
        for at, token in enumerate(ids):
            if token >= 140:
                assert (token - 140) % tasks.KINDS == ids[at - 1 - tasks.FAR] - 100
                assert (token - 140) // tasks.KINDS == ids[at - 1] - 120

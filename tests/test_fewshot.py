"""Prompts, draws of demonstrations, scoring rules and intervals of few-shot evaluation, against known answers."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scripted import Scripted

from didact import baselines, prompting
from didact.data import contamination, demonstrations, duplicates, splits
from didact.evaluate import fewshot_prompts, fewshot_scores, statistics
from didact.infer import generate
from didact.infer import lm as language_models
from didact.models import build
from didact.types import Demo, Text, UserError

ITEMS = [Demo(prompt=f"item {i}", completion="yes" if i % 2 else "no", choices=["yes", "no"]) for i in range(30)]


def server_that(*can, logp=lambda prompt, completion: -1.0):
    """A model that scores by `logp` and answers "yes" to everything, as far as the limit allows."""
    return Scripted("generate" in can and (lambda prompt, i: " yes "), "score" in can and logp)


@pytest.fixture(scope="module")
def tokenizer():
    return build.train_tokenizer([f"{d.prompt} yes no maybe not" for d in ITEMS], 300)


# --- prompts ---------------------------------------------------------------------------------


def test_a_context_never_ends_in_a_space_and_the_answer_begins_with_one():
    for prompt in ("Q: 2 + 3?\nA:", "Q: 2 + 3?\nA: ", "Q: 2 + 3?\nA:   "):
        record = Demo(prompt=prompt, completion="5")
        assert demonstrations.question(record) == "Q: 2 + 3?\nA:"
        assert demonstrations.written(record) == "Q: 2 + 3?\nA: 5"
    assert demonstrations.written(Demo(prompt="A:\n", completion="5")) == "A:\n5"


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_a_trailing_space_in_the_prompt_changes_no_score(tokenizer, arch):
    model = build.build(arch, tokenizer, d=16, layers=1, heads=2, context=64)
    tables = []
    for end in ("", " "):
        items = [Demo(prompt=d.prompt + end, completion=d.completion, choices=d.choices) for d in ITEMS[:6]]
        tables.append([r.extra["scores"]["sum"] for r in prompting.gpt3(model, items, shots=(0, 2)).records])
    assert np.allclose(*tables, atol=1e-5)


def test_cloze_and_partial_framings_read_as_in_the_paper():
    friend = Demo(prompt="Alice went to visit her friend", completion="Bob")
    assert demonstrations.written(friend, "cloze") == "Alice went to visit her friend ____. -> Bob"
    sentence = "The cup fell off the desk as _ was tilted."
    item = Demo(prompt=sentence, completion="the desk", choices=["the cup", "the desk"])
    assert demonstrations.pairs(item, "partial") == [
        ("The cup fell off the desk as the cup", " was tilted."),
        ("The cup fell off the desk as the desk", " was tilted."),
    ]
    assert demonstrations.written(item, "partial") == "The cup fell off the desk as the desk was tilted."
    for prompt in ("no blank", "two _ and _ more", "at the end _"):
        with pytest.raises(UserError, match="one blank"):
            demonstrations.sides(Demo(prompt=prompt, completion="x"))


def test_partial_evaluation_compares_the_text_after_the_blank():
    item = Demo(prompt="so _ was tilted", completion="the desk", choices=["the cup", "the desk"])
    server = server_that("score", logp=lambda prompt, completion: -1.0 if prompt.endswith("desk") else -2.0)
    result = prompting.gpt3(server, [item, item], shots=(0,), framing="partial", rule="sum")
    assert result.metrics["accuracy"].after == 1.0
    assert {c for p, c in server.asked} == {" was tilted"}


def test_what_guessing_gives_and_which_label_was_taken_for_which_stand_beside_the_accuracy():
    labels = ["yes", "no"]
    items = [Demo(prompt=f"is {i} odd?", completion=labels[i % 2], choices=labels) for i in range(6)]
    biased = server_that("score", logp=lambda prompt, completion: -1.0 if completion.strip() == "yes" else -2.0)
    result = prompting.gpt3(biased, items, shots=(0,), rule="sum")
    assert result.findings["chance"] == 0.5 == result.metrics["accuracy"].after
    (confusion,) = (v for k, v in result.findings.items() if k.startswith("confusion"))
    assert confusion == {"yes": {"yes": 3, "no": 0}, "no": {"yes": 3, "no": 0}}
    assert any("not shown to be above guessing (0.500)" in text for text in result.warnings)
    assert result.samples[1] == {"part": "test", "prompt": "is 1 odd?", "wanted": "no", "after": "yes"}
    own = [dataclasses.replace(item, choices=["yes", "no", f"perhaps {i}"]) for i, item in enumerate(items)]
    other = prompting.gpt3(biased, own, shots=(0,), rule="sum")
    assert other.findings["chance"] == pytest.approx(1 / 3) and not any(
        k.startswith("confusion") for k in other.findings
    )


# --- draws -----------------------------------------------------------------------------------


@given(shots_max=st.integers(0, 40), seed=st.integers(0, 99), index=st.integers(0, 29), fresh=st.booleans())
def test_draws_are_pure_nested_without_repeats_and_without_the_item(shots_max, seed, index, fresh):
    sampler = demonstrations.Sampler(ITEMS, shots_max, seed, fresh)
    shots = sampler(ITEMS[index], index)
    assert shots == sampler(ITEMS[index], index)
    assert index not in shots and len(shots) == len(set(shots)) == min(shots_max, len(ITEMS) - 1)
    fewer = demonstrations.Sampler(ITEMS, shots_max, seed, fresh)(ITEMS[index], index)[: shots_max // 2]
    assert shots[: shots_max // 2] == fewer


def test_every_item_has_its_own_draw_unless_one_is_shared():
    others = [Demo(prompt=f"other {i}", completion="yes") for i in range(5)]
    for fresh in (True, False):
        sampler = demonstrations.Sampler(ITEMS, 5, 0, fresh)
        drawn_sets = {tuple(sampler(item, i)) for i, item in enumerate(others)}
        assert len(drawn_sets) == (5 if fresh else 1)
        assert sampler(others[0], 0, draw=1) != sampler(others[0], 0, draw=0)


def test_a_shared_draw_differs_between_items_only_by_what_is_left_out():
    sampler = demonstrations.Sampler(ITEMS, 29, 0, fresh=False)
    whole = sampler(Demo(prompt="another", completion="yes"), 0)
    assert all(
        [j for j in whole if j != i][:28] == [j for j in sampler(ITEMS[i], i) if j in whole][:28] for i in range(30)
    )


def test_records_that_ask_the_same_are_never_shown_to_each_other():
    pool = [Demo(prompt="Item  ONE", completion="yes"), Demo(prompt="item two", completion="no")]
    assert demonstrations.Sampler(pool, 2)(Demo(prompt="item one", completion="?"), 0) == [1]


def test_demonstrations_come_from_train_else_dev_else_the_other_items():
    train, dev = (
        [Demo(prompt=f"{n} {i}", completion="yes", choices=["yes", "no"]) for i in range(5)] for n in ("t", "d")
    )
    for sets, prefix in (({"train": train, "dev": dev}, "t "), ({"dev": dev}, "d "), ({}, "item ")):
        server = server_that("score")
        prompting.gpt3(server, ITEMS[:4], **sets, shots=(3,), separator="\n")
        last = [p for p, _ in server.asked if p.endswith("item 3")]
        assert last and all(p.count("\n") == 3 and p.startswith(prefix) for p in last)
        assert all(p.split("\n").count("item 3 yes") == 0 for p in last)


def test_a_description_stands_once_before_everything():
    server = server_that("score")
    prompting.gpt3(server, ITEMS[:3], shots=(0, 2), description="Say yes or no.", separator="\n")
    prompts = {p for p, _ in server.asked if p.endswith("item 2")}
    assert "Say yes or no.\nitem 2" in prompts and all(p.count("Say yes") == 1 for p in prompts)


def test_a_line_break_may_be_written_out_as_in_a_shell():
    setup = fewshot_prompts.Setup(separator="\\n\\n", stop="\\n", description="Say\\nno.")
    assert (setup.separator, setup.stop, setup.description) == ("\n\n", "\n", "Say\nno.")


# --- the context -----------------------------------------------------------------------------


def test_demonstrations_that_do_not_fit_are_left_out_and_reported(tokenizer):
    model = build.build("gpt2", tokenizer, d=16, layers=1, heads=2, context=48)
    lm = language_models.of(model)
    prompter = fewshot_prompts.Prompter(lm, ITEMS, fewshot_prompts.Setup(shots=(0, 4, 20), separator="\n"))
    for k in (0, 4, 20):
        before, shots, cut, _ = prompter.prompts(ITEMS, k)
        assert cut == 0 and all(u == text.count("item") for u, text in zip(shots, before, strict=True))
        texts = [f"{b}\n{d.prompt} {c}" for b, d in zip(before, ITEMS, strict=True) for c in d.choices]
        assert max(lm.tokens(texts)) <= 48 - fewshot_prompts.START_END
        assert (max(shots) == k) == (k < 20)
    result = prompting.gpt3(model, ITEMS, shots=(0, 4, 20), separator="\n")
    assert [w.startswith("K = 20: 100% of the prompts") for w in result.warnings].count(True) == 1


def test_queries_longer_than_the_context_are_counted():
    server = server_that("score")
    long = Demo(prompt="word " * 1500, completion="yes", choices=["yes", "no"])
    assert any("1 items do not fit" in w for w in prompting.gpt3(server, [long, *ITEMS[:3]], shots=(0,)).warnings)


# --- rules -----------------------------------------------------------------------------------


def rules_of(server, item, **options):
    return prompting.gpt3(server, [item, item], shots=(0,), **options).records[0].extra["scores"]


def test_the_four_rules_have_their_known_values():
    item = Demo(prompt="ask", completion="a b", choices=["a b", "cccc"])
    table = {("ask", "a b"): -3.0, ("ask", "cccc"): -2.0, ("Answer:", "a b"): -5.0, ("Answer:", "cccc"): -1.0}
    scores = rules_of(server_that("score", logp=lambda p, c: table[p, c]), item)
    assert scores == {"sum": [-3, -2], "token": [-1.5, -2], "character": [-1, -0.5], "unconditional": [2, -1]}


def test_an_answer_context_equal_to_the_prompt_ties_all_choices():
    item = Demo(prompt="Answer:", completion="b", choices=["a", "b"])
    server = server_that("score", logp=lambda p, c: -float(ord(c[0])))
    result = prompting.gpt3(server, [item, item], shots=(0,), rule="unconditional")
    assert result.records[0].extra["scores"]["unconditional"] == [0, 0]
    assert result.metrics["accuracy"].after == 0.5


def test_with_choices_of_one_token_token_is_sum_for_a_local_model(tokenizer):
    model = build.build("llama", tokenizer, d=16, layers=1, heads=2, context=64)
    assert all(len(tokenizer(f" {c}")["input_ids"]) == 1 for c in ("yes", "no"))
    scores = rules_of(model, ITEMS[0])
    assert scores["token"] == scores["sum"]


def test_ties_share_the_credit():
    assert fewshot_scores.credit([1.0, 1.0, 0.0], 0) == 0.5 and fewshot_scores.credit([1.0, 1.0, 2.0], 0) == 0.0
    assert fewshot_scores.credit([0.0] * 4, 2) == 0.25


def test_rules_that_disagree_are_reported():
    items = [Demo(prompt=f"i{i}", completion="a", choices=["a", "b b b"]) for i in range(8)]
    server = server_that("score", logp=lambda p, c: -1.0 if c == "a" else -1.5)
    result = prompting.gpt3(server, items, shots=(0,))
    assert result.metrics["accuracy"].after == 0.0 and result.findings["rules"]["sum"]["estimate"] == 1.0
    assert any(w.startswith("rules disagree at K = 0: sum would give 1.000") for w in result.warnings)


# --- choosing on dev -------------------------------------------------------------------------


def right_with(k):
    """A scorer that is right when it sees k demonstrations."""

    def logp(prompt, completion):
        number = prompt.rsplit(" ", 1)[-1]
        correct = number.isdigit() and completion == ("yes" if int(number) % 2 else "no")
        return 0.0 if correct and prompt.count("\n") == k else -1.0 if completion == "yes" else -1.1

    return logp


def test_k_is_chosen_on_dev_and_the_default_is_the_most():
    test, dev = ITEMS[:10], ITEMS[10:]
    server = server_that("score", logp=right_with(1))
    result = prompting.gpt3(server, test, dev=dev, shots=(0, 1, 4), separator="\n")
    assert result.findings["chosen"]["shots"] == 1 and result.metrics["accuracy"].after == 1.0
    assert result.metrics["accuracy"].before == 0.5 == result.metrics["accuracy_4_shot"].after
    assert prompting.gpt3(server, test, train=dev, shots=(0, 1, 4), separator="\n").findings["chosen"]["shots"] == 4


def test_rule_auto_is_chosen_on_dev():
    # "yes" is likelier for any question; minus its own likelihood the right one is.
    def logp(prompt, completion):
        if prompt == "Answer:":
            return -1.0 if completion == "yes" else -4.0
        correct = ("yes" if int(prompt.rsplit(" ", 1)[-1]) % 2 else "no") == completion
        return (-1.0 if completion == "yes" else -4.0) + 0.5 * correct

    server = server_that("score", logp=logp)
    result = prompting.gpt3(server, ITEMS[:10], dev=ITEMS[10:], shots=(0,), rule="auto")
    assert result.findings["chosen"]["rule"] == "unconditional" and result.metrics["accuracy"].after == 1.0
    with pytest.raises(UserError, match="rule auto"):
        prompting.gpt3(server, ITEMS[:10], rule="auto")


# --- intervals -------------------------------------------------------------------------------


def test_where_only_items_or_only_draws_differ_the_interval_is_the_t_interval_over_them():
    items, by_draw = np.random.default_rng(0).random((12, 1)), np.random.default_rng(1).random((1, 4))
    for table in (items, np.repeat(items, 5, 1)):
        assert statistics.two_way(table) == pytest.approx(statistics.mean_interval(items[:, 0]))
    assert statistics.two_way(np.repeat(by_draw, 9, 0)) == pytest.approx(statistics.mean_interval(by_draw[0]))


def test_the_variance_estimate_is_that_of_the_two_way_table_by_hand():
    x = np.array([[0.0, 2.0], [4.0, 10.0]])  # item means 1 and 7, draw means 2 and 6, MS 36, 16 and 4
    estimate = statistics.two_way(x)
    variance, freedom = (36 + 16 - 4) / 4, 48**2 / (36**2 + 16**2 + 4**2)
    assert estimate.estimate == 4.0
    assert estimate.high - 4.0 == pytest.approx(stats.t.ppf(0.975, max(freedom, 1)) * math.sqrt(variance))


@pytest.mark.parametrize(("items", "draws"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_the_interval_covers_the_mean_whatever_varies(items, draws):
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        x = items * rng.standard_normal((25, 1)) + draws * rng.standard_normal((1, 5)) + rng.standard_normal((25, 5))
        estimate = statistics.two_way(x)
        covered += estimate.low <= 0 <= estimate.high
    assert covered >= 0.92 * 400


def test_shares_that_are_all_right_have_the_exact_binomial_interval():
    estimate = statistics.two_way(np.ones((20, 3)), share=True)
    assert estimate == pytest.approx((1.0, 0.025 ** (1 / 20), 1.0))
    assert statistics.two_way(np.zeros((20, 1)), share=True).high == pytest.approx(1 - 0.025 ** (1 / 20))


# --- free answers and servers ----------------------------------------------------------------


def test_free_answers_are_compared_to_the_letter_normalised_or_by_f1():
    assert fewshot_scores.matches(" -5 ", ["-5"], "exact") == 1.0 > fewshot_scores.matches("5", ["-5"], "exact")
    assert fewshot_scores.matches("the Eiffel tower!", ["Eiffel Tower"], "normalised") == 1.0
    assert fewshot_scores.matches("Eiffel", ["Eiffel Tower", "x"], "f1") == pytest.approx(2 / 3)


def test_a_server_that_only_generates_answers_freely_and_is_refused_for_choices():
    server = server_that("generate")
    free = [Demo(prompt=d.prompt, completion=d.completion) for d in ITEMS]
    result = prompting.gpt3(server, free, shots=(0, 2))
    assert result.metrics["accuracy"].after == 0.5 and any("greedy" in w for w in result.warnings)
    with pytest.raises(UserError) as error:
        prompting.gpt3(server, ITEMS)
    assert "\n" not in str(error.value) and "gpt3 needs a model with score" in str(error.value)


def test_a_local_model_answers_by_beam_search(tokenizer):
    model = build.build("llama", tokenizer, d=16, layers=1, heads=2, context=64, seed=4)
    free = [Demo(prompt=d.prompt, completion="x") for d in ITEMS[:5]]
    result = prompting.gpt3(model, free, shots=(0,), max_new_tokens=5, stop="")
    expected = generate.generate(model, [d.prompt for d in free], 5, beams=4, length_penalty=0.6)
    assert [r.extra["said"] for r in result.records] == expected


def test_wrong_input_is_told_in_one_line():
    mixed = [*ITEMS[:2], Demo(prompt="x", completion="y")]
    inconsistent = [*ITEMS[:2], Demo(prompt="x", completion="y", choices=["a", "b"])]
    for items, shots, text in (
        (mixed, (0,), "record 3 has no choices"),
        (inconsistent, (0,), "record 3: the completion 'y'"),
        *((ITEMS, shots, "shots") for shots in ((), (1, 1))),
    ):
        with pytest.raises(UserError, match=text):
            prompting.gpt3(server_that("score", "generate"), items, shots=shots)


def test_with_a_corpus_clean_and_dirty_items_are_told_apart():
    questions = [f"{' '.join(f'w{i}x{j}' for j in range(12))} is" for i in range(10)]
    items = [Demo(prompt=p, completion="yes", choices=["yes", "no"]) for p in questions]
    corpus = [Text(text=f"so. {items[i].prompt.upper()} yes!") for i in range(3)] + [Text(text="nothing")]
    contaminated = {items[i].prompt for i in range(3)}
    server = server_that("score", logp=lambda p, c: 0.0 if (p in contaminated) == (c == "yes") else -1.0)
    result = prompting.gpt3(server, items, corpus=corpus, shots=(0,))
    findings = result.findings["contamination"]
    assert (findings["n"], findings["dirty"], findings["share"]) == (13, 3, 0.3)
    assert result.metrics["accuracy_dirty"].after == 1.0 and result.metrics["accuracy_clean"].after == 0.0
    assert (
        findings["relative_change"] == -1.0 and [r.extra["clean"] for r in result.records] == [False] * 3 + [True] * 7
    )
    assert any("the model is better on them" in w for w in result.warnings)


# --- few-shot --------------------------------------------------------------------------------


def test_few_shot_predicts_with_and_without_choices(tokenizer):
    model = build.build("gpt2", tokenizer, d=16, layers=1, heads=2, context=64)
    result = baselines.few_shot(model, ITEMS, shots=3, separator="\n")
    assert set(result.metrics) >= {"accuracy", "accuracy_0_shot", "accuracy_3_shot"} and len(result.records) == 30
    picked = result.predict(["item 3", "item 4"], [["yes", "no"]] * 2)
    assert len(picked) == 2 and set(picked) <= {"yes", "no"} and len(result.predict(["item 3"])) == 1
    assert result.predict([]) == []


def test_a_curve_has_its_band(tokenizer):
    model = build.build("llama", tokenizer, d=16, layers=1, heads=2, context=64)
    curve = prompting.gpt3(model, ITEMS, shots=(0, 2), draws=3).findings["curves"]["accuracy by token"]
    assert curve["x"] == [0, 2] and set(curve) == {"x", "y", "low", "high", "xlabel", "ylabel"}
    assert all(a <= b <= c for a, b, c in zip(curve["low"], curve["y"], curve["high"], strict=True))


def test_a_choice_in_two_normal_forms_is_one_choice():
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    question = Demo(prompt="Say:", completion=apart, choices=["Tarn", composed, apart])
    assert demonstrations.options(question) == ["Tarn", composed] and demonstrations.gold(question) == 1
    server = server_that("score", logp=lambda _, completion: -1.0 if completion.strip().startswith("Caf") else -9.0)
    result = prompting.gpt3(server, test=[question] * 2, shots=[0])
    assert result.metrics["accuracy"].after == 1  # a tie between two forms would get half
    assert len({completion for _, completion in server.asked}) == 2
    assert fewshot_scores.matches(composed, [apart], "exact") == 1
    records = [Demo(prompt=form, completion="x") for form in (composed, apart)]
    assert len(set(splits.keys(records))) == 1 and demonstrations.key(records[0]) == demonstrations.key(records[1])
    phrase = " ".join([composed] * 9)
    assert contamination.audit([phrase], [phrase.replace(composed, apart)], 8).dirty.all()
    assert duplicates.near_pairs([phrase, phrase.replace(composed, apart)], 0.9) == [(0, 1)]

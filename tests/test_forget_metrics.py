"""The TOFU metrics on hand-made models and numbers; batched generation equals generation one by one."""

import math
import re
import string

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from didact.data import fields
from didact.data.verbal_reading import Targets
from didact.evaluate import dual_form, forgetting, label_streams, protocols, qa, three_way
from didact.evaluate.protocols import Scoring, forget
from didact.evaluate.three_way import Episode
from didact.infer import generate as generation
from didact.infer.generate import generate
from didact.learn import task_pools
from didact.models.model import Model
from didact.types import Demo, Example, Metric, Preference, Text


class Table(nn.Module):
    """A causal model with P(b | a) = `table[a, b]` after token a, whatever came before."""

    def __init__(self, tokenizer, said):
        super().__init__()
        size = len(tokenizer)
        table = torch.full((size, size), 1e-9, dtype=torch.float64)
        for (a, b), p in said.items():
            table[tokenizer.convert_tokens_to_ids(a), tokenizer.convert_tokens_to_ids(b)] = p
        self.logits = nn.Parameter(table.log())

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return CausalLMOutput(logits=self.logits[input_ids])


class Letters:
    """A tokenizer of single letters; `.` ends."""

    vocabulary = "_abcdefghijklmnopqrstuvwxyz .?"
    pad_token_id, eos_token_id, bos_token_id, bos_token, model_max_length = 0, 28, None, None, 64

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [self.vocabulary.index(c) for c in text]}

    def convert_tokens_to_ids(self, token):
        return self.vocabulary.index(token)

    def __len__(self):
        return len(self.vocabulary)


def table(**said):
    """`table(ab=0.5)`: after a comes b with probability .5; `_` in a name stands for the space, `E` for the end."""
    letter = {"_": " ", "E": "."}
    pairs = {(letter.get(k[0], k[0]), letter.get(k[1], k[1])): p for k, p in said.items()}
    return Model(Table(Letters(), pairs).eval(), Letters(), "causal")


# After "q" always a space; then a, b, c or d; they end with probability 1, c with .25.
ONE = {"q_": 1.0, "_a": 0.5, "_b": 0.2, "_c": 0.1, "_d": 0.2, "aE": 1.0, "bE": 1.0, "cE": 0.25, "cz": 0.75}


def score(protocol, model, records):
    return protocols.by_name(protocol).score(model, Scoring(records={"": records}, start=model))


def demo(completion, *perturbed, **more):
    return Demo(prompt="q", completion=completion, perturbed=list(perturbed) or None, **more)


# --- answers ---------------------------------------------------------------------------------


def test_probability_is_length_normalised_over_the_answer_and_its_end():
    actual = forgetting.answers(table(**ONE), [demo("a"), demo("c")])
    # three label tokens: the space (certain), the letter, the end
    assert actual["probability"] == pytest.approx([0.5 ** (1 / 3), (0.1 * 0.25) ** (1 / 3)], abs=1e-6)


def test_accuracy_is_the_share_of_first_choices():
    actual = forgetting.answers(table(**ONE), [demo("a"), demo("b"), demo("c")])
    assert actual["accuracy"] == pytest.approx([1, 2 / 3, 1 / 3])


def test_extraction_strength_of_a_model():
    # every token of a is the first choice; b's letter is not, so two tokens must be given; nor are c's letter and end
    actual = forgetting.answers(table(**ONE), [demo("a"), demo("b"), demo("c")])
    assert actual["extraction"] == pytest.approx([1, 1 / 3, 0])


@pytest.mark.parametrize(
    ("right", "strength"),
    [([1, 1, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([1, 0, 1, 1], 0.5), ([1, 1, 1, 0], 0.0), ([0, 0, 0, 0], 0.0),
     ([0, 1, 0, 1, 1], 0.4), ([1], 1.0), ([0], 0.0)],
)  # fmt: skip
def test_extraction_strength_counts_the_longest_tail_of_first_choices(right, strength):
    assert forgetting.extraction_strength(np.array(right, float)) == pytest.approx(strength)


def test_entropy_and_min_k_in_numbers():
    actual = forgetting.answers(table(**ONE), [demo("c")])
    letter = -sum(p * math.log(p) for p in (0.5, 0.2, 0.1, 0.2))
    end = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert actual["entropy"] == pytest.approx([(letter + end) / 3], abs=1e-5)
    assert actual["min_k"] == pytest.approx([math.log(0.1)], abs=1e-5)  # the least likely fifth of three tokens: one


# --- truth ratio -----------------------------------------------------------------------------

TRUTH = {"q_": 1.0, "_a": 0.4, "_b": 0.1, "_c": 0.4, "_d": 0.05, "_e": 0.05, "aE": 1.0, "bE": 1.0, "cE": 1.0, "dE": 1.0}


@pytest.mark.parametrize(
    ("orientation", "average", "expected"),
    [
        ("code", "geometric", (0.4 / 0.2) ** (1 / 3)),
        ("paper", "geometric", (0.2 / 0.4) ** (1 / 3)),
        ("code", "arithmetic", 0.4 ** (1 / 3) / ((0.1 ** (1 / 3) + 0.4 ** (1 / 3)) / 2)),
        ("paper", "arithmetic", ((0.1 ** (1 / 3) + 0.4 ** (1 / 3)) / 2) / 0.4 ** (1 / 3)),
    ],
)
def test_the_truth_ratio_in_both_orientations_and_averages(orientation, average, expected):
    # P(a) against wrong answers b (.1) and c (.4), with geometric mean .2; cube roots for three label tokens
    ratio = forgetting.truth_ratios(table(**TRUTH), [demo("a", "b", "c")], orientation, average)
    assert ratio == pytest.approx([expected], abs=1e-6)


def test_the_truth_ratio_is_the_paraphrases_where_there_is_one():
    model = table(**TRUTH)
    ratios = forgetting.truth_ratios(model, [demo("a", "b", "c", paraphrased="d")])
    assert ratios == pytest.approx([(0.05 / 0.2) ** (1 / 3)], abs=1e-6)


def test_choice_probability_ignores_the_paraphrase_and_sums_the_wrong():
    actual = forgetting.choice_probabilities(table(**TRUTH), [demo("a", "b", "c", paraphrased="d")])
    root = [x ** (1 / 3) for x in (0.4, 0.1, 0.4)]
    assert actual == pytest.approx([root[0] / sum(root)], abs=1e-6)
    assert forgetting.chance([demo("a", "b", "c"), demo("a", "b")]) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_truth_scores_in_numbers():
    ratios = np.array([0.5, 1.0, 4.0])
    assert forgetting.forget_truth_score(ratios) == forgetting.forget_truth_score(1 / ratios) == pytest.approx(1.75 / 3)
    assert forgetting.retain_truth_score(ratios) == pytest.approx(0.75 / 3)


# --- membership, ROUGE, quality, utility -----------------------------------------------------


@pytest.mark.parametrize(
    ("members", "others", "auc"),
    [([2, 3], [0, 1], 1.0), ([0, 1], [2, 3], 0.0), ([1, 2], [1, 2], 0.5), ([5], [5, 5], 0.5), ([1, 3], [2, 2], 0.5),
     ([1, 3, 5], [2, 4], 0.5), ([3, 5], [2, 4], 0.75)],
)  # fmt: skip
def test_membership_is_the_share_of_pairs_won(members, others, auc):
    assert forgetting.membership_auc(np.array(members, float), np.array(others, float)) == pytest.approx(auc)


def test_min_k_membership_finds_what_a_model_was_told(taught, world):
    measures = forget.measures(taught("llama"), world.forget, holdout=world.holdout, rouge="none")
    assert measures["membership"].value > 0.95
    measures = forget.measures(taught("llama", gold=True), world.forget, holdout=world.holdout, rouge="none")
    assert 0.2 < measures["membership"].value < 0.8


def test_rouge_recall_is_of_the_gold_answer_and_stemmed():
    gold = ["the cat sat", "the cat sat", "the cat sat", "cats running"]
    predictions = ["the cat sat on many mats", "cat", "sat the cat", "a cat runs"]
    assert forgetting.rouge_recall(predictions, gold) == pytest.approx([1, 1 / 3, 2 / 3, 1])


def test_forget_quality_against_itself_and_against_the_disjoint():
    same = forget.forget_quality([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same["ks"].value == 0 and same["ks_p"].value == 1 and same["log10_p"].value == 0
    apart = forget.forget_quality(list(range(10)), list(range(100, 110)))
    assert apart["ks"].value == 1 and apart["ks_p"].value == pytest.approx(2 / math.comb(20, 10))
    assert apart["log10_p"].value == pytest.approx(math.log10(1.0825e-5), abs=1e-4)


def test_forget_quality_sees_orientation_as_nothing_and_averaging_as_something():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=30), rng.lognormal(0.5, size=30)
    assert forget.forget_quality(a, b)["ks"].value == pytest.approx(forget.forget_quality(1 / a, 1 / b)["ks"].value)


def test_utility_is_the_harmonic_mean_of_three_retain_numbers(taught, world):
    measures = forget.utility(taught("llama"), world.unseen[:10])
    parts = [measures[k].value for k in ("retain_probability", "retain_rouge", "retain_truth")]
    assert measures["utility"].value == pytest.approx(3 / sum(1 / p for p in parts))
    assert min(parts) > 0.8 and measures["utility"].n == 10


def test_utility_is_zero_as_soon_as_one_part_is(monkeypatch, taught, world):
    monkeypatch.setattr(generation, "generate", lambda model, prompts, **_: ["?"] * len(prompts))
    assert forget.utility(taught("llama"), world.unseen[:10])["utility"].value == 0


def test_a_full_model_is_told_from_gold_and_gold_is_not_from_itself(taught, world):
    gold = forgetting.truth_ratios(taught("llama", gold=True), world.forget)
    full = forget.measures(taught("llama"), world.forget, gold_ratios=gold, rouge="none")
    itself = forget.measures(taught("llama", gold=True), world.forget, gold_ratios=gold, rouge="none")
    assert full["ks"].value > 0.5 and full["ks_p"].value < 1e-3
    assert itself["ks"].value == 0 and itself["ks_p"].value == 1
    assert full["forget_token_accuracy"].value > 0.95 > 0.7 > itself["forget_token_accuracy"].value
    assert full["forget_entropy"].value < itself["forget_entropy"].value


def test_a_measure_carries_the_interval_of_its_mean(taught, world):
    measure = score("answer", taught("llama", gold=True), world.forget)["token_accuracy"]
    each = forgetting.answers(taught("llama", gold=True), world.forget)["accuracy"]
    half = 2.093024 * each.std(ddof=1) / math.sqrt(20)
    assert measure.n == 20 and measure.ci == pytest.approx((each.mean() - half, each.mean() + half), abs=1e-5)


def test_preference_and_text_protocols_in_numbers():
    model = table(**TRUTH)
    pairs = [Preference(prompt="q", chosen=c, rejected=r) for c, r in (("a", "b"), ("b", "a"), ("c", "d"), ("a", "d"))]
    scores = score("prefer", model, pairs)
    assert scores["preferred"].value == 0.75
    assert scores["reward_accuracy"].value == 0.5  # no gain over the model itself: every pair a tie
    writer = table(ab=0.5, bE=0.25, ax=0.5, bx=0.75, Ea=1.0)
    nll = score("text", writer, [Text(text="ab"), Text(text="ab")])["nll"]
    assert nll.value == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / nll.n, abs=1e-6)


# --- generation ------------------------------------------------------------------------------


def test_sampling_follows_its_seed_and_leaves_the_callers_generator(taught, world):
    model = taught("llama", gold=True)
    prompts = [r.prompt for r in world.holdout]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = (generate(model, prompts, 8, temperature=1.5, seed=s) for s in (0, 0, 1))
    assert a == b != c
    assert torch.equal(torch.rand(1), expected)


# --- other scripts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "recall", "f1"),
    [
        ("в городе Тарн", "в городе Тарн", 1.0, 1.0),
        ("в городе Осса", "в городе Тарн", 2 / 3, 2 / 3),
        ("米拉出生在塔恩", "米拉出生在塔恩", 1.0, 1.0),
        ("她在塔恩。", "在塔恩", 1.0, 6 / 7),
        ("たーん市", "たーん", 1.0, 6 / 7),
        ("ตาร์น", "ตาร์น", 1.0, 1.0),  # each letter with its marks
        ("هي في تارن", "في تارن", 1.0, 0.8),
        ("Caf\u00e9", "Cafe\u0301", 1.0, 1.0),
        ("བོད་ཡིག", "བོད", 1.0, 2 / 3),
        ("١٢٣", "١٢٣", 1.0, 1.0),  # digits without letters
        ("\u200fהוא בטארן", "הוא בטארן\u200e", 1.0, 1.0),  # marks for the direction of writing
        ("\u0442\u0430\u0440\u043d", "\u043e\u0441\u0441\u0430", 0.0, 0.0),
    ],
)
def test_overlap_is_counted_in_every_script(answer, gold, recall, f1):
    assert forgetting.rouge_recall([answer], [gold])[0] == pytest.approx(recall)
    assert qa.f1(answer, [gold]) == pytest.approx(f1)
    assert qa.exact_match(answer, [gold]) == (f1 == 1)
    assert (qa.bleu(answer, [gold]) > 0) == (f1 > 0)


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")))
@example("It's the well-known Tarn's 3.5 maps_of \u201cOsso\u201d", "running: a tarn, maps of Osso \u2014 3 5")
def test_english_scores_stay_to_the_digit(answer, gold):
    from rouge_score import rouge_scorer

    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(gold, answer)["rougeL"].recall
    assert forgetting.rouge_recall([answer], [gold])[0] == theirs
    squad = str.maketrans("", "", string.punctuation)
    for text in (answer, gold):
        bare = " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(squad)).split())
        assert qa.normalise(text) == bare


def test_accuracy_is_of_choices_where_records_have_them(monkeypatch):
    """By the likelihood of the whole choice, without an end token: `c` rarely ends, which must not count against it."""
    model, choices = table(**ONE), ["a", "b", "c", "d"]
    demos = [demo("a", choices=choices), demo("b", choices=["b", "c"]), demo("d", choices=["a", "d"])]
    scores = score("answer", model, demos)
    assert scores["accuracy"].value == pytest.approx(2 / 3) and next(iter(scores)) == "accuracy"
    monkeypatch.setattr("didact.evaluate.protocols.answer.PAIRS", 4)
    assert score("answer", model, demos)["accuracy"].n == 1
    assert "accuracy" not in score("answer", model, [*demos, demo("a")])


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"forget_probability": (0.02, 0.01), "forget_token_accuracy": (0.3, 0.2)}, ["hardly knows"]),
        ({"forget_probability": (0.02, 0.01), "forget_token_accuracy": (0.9, 0.2)}, []),
        ({"retain_probability": (0.536, 0.386), "utility": (0.039, 0.093)}, ["fell from 0.536 to 0.386"]),
        (
            {"retain_probability": (0.536, 0.5), "forget_probability": (0.9, 0.1), "forget_token_accuracy": (1.0, 0.0)},
            [],
        ),
        ({"retain_probability": (None, 0.1), "forget_probability": (None, 0.1)}, []),
    ],
)
def test_what_better_and_worse_hide_is_said(numbers, expected):
    metrics = {name: Metric(before=before, after=after) for name, (before, after) in numbers.items()}
    warnings = protocols.by_name("forget").warns(metrics)
    assert len(warnings) == len(expected) and all(a in b for a, b in zip(expected, warnings, strict=True))


def test_a_label_in_two_normal_forms_is_one_class():
    one, two = "Caf\u00e9", "Cafe\u0301"
    assert len(fields.classes([one, two, "Bar", "Bar"])) == 2
    assert len(three_way.labels([Demo(prompt=c, completion=c) for c in (one, two, "Bar")])) == 2
    streams = label_streams.streams([Example(x=[], y=[one, "Bar", two])])
    assert streams.labels.tolist() == [[1, 0, 1]] and streams.names == ["Bar", one]
    assert Targets([one, two, "Bar"], 2).labels == ["Bar", one]
    rows = [([0.0], one, 1), ([1.0], two, 2), ([2.0], "Bar", 3)]
    assert task_pools._data_set("drinks", rows, None, "examples").y.tolist() == [1, 1, 0]
    episode = Episode((Demo(prompt="?", completion=two, choices=[one, "Bar"]),), ())
    assert dual_form.relabelled(episode, 0).demos[0].completion == "Bar"

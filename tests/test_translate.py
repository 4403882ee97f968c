"""Translations against references: chrF as in sacrebleu, its intervals, and the prompts for a translation."""

import pytest

from didact.data import translation
from didact.evaluate import protocols
from didact.evaluate import translation as scores
from didact.evaluate.protocols import Scoring
from didact.types import Parallel


def test_chrf_as_counted_by_hand():
    assert scores.chrf(["ab"], ["abc"], order=1) == pytest.approx(100 * (10 / 3) / (14 / 3), abs=1e-2)
    assert scores.chrf(["the same"], ["the same"]) == 100 and scores.chrf([""], ["x"]) == 0
    assert scores.chrf(["a b"], ["ab"]) == 100  # ignoring white space
    assert scores.chrf(["abcd"], ["ab"]) < scores.chrf(["ab"], ["ab"]) != scores.chrf(["ab"], ["abcd"])
    assert scores.chrf(["abcd"], ["ab"]) != scores.chrf(["ab"], ["abcd"])  # recall has more weight
    score = scores.chrf(["aaaa bbbb", "x"], ["aaaa bbbb", "yyyy"])  # summed counts, not a mean of sentences
    assert score != pytest.approx((100 + scores.chrf(["x"], ["yyyy"])) / 2, abs=1)


def test_the_interval_holds_the_score_and_a_pair_of_equals_has_no_difference():
    expected = [f"word{i} here" for i in range(20)]
    answers = [w if i % 2 else "word there" for i, w in enumerate(expected)]
    measures = scores.measures(answers, expected)
    low, high = measures["chrf"].ci
    assert low < measures["chrf"].value < high and measures["exact_translation"].value == 0.5
    assert scores.difference(answers, answers, expected) == {"estimate": 0, "interval": [0, 0]}
    gain = scores.difference(expected, answers, expected)
    assert gain["estimate"] == pytest.approx(100 - measures["chrf"].value) and gain["interval"][0] > 0
    assert scores.measures(answers, expected)["chrf"].ci == (low, high)


def test_a_reply_is_its_first_line_without_name_and_quotes():
    for reply in (" kato mo\nmore", 'Tama: "kato mo"', "tama: kato mo", "kato mo"):
        assert translation.read(reply, "Tama") == "kato mo"
    assert translation.read("\n \n", "Tama") is None


def test_the_protocol_scores_what_answers_and_what_is_a_model_by_the_same_prompts():
    pairs = [Parallel(source=f"s{i}", target=f"t{i}", source_lang="A", target_lang="B") for i in range(4)]
    pairs.append(Parallel(source="no reference", target=""))
    protocol = protocols.by_name("translate")
    requests = []

    def predict(prompts):
        requests.extend(prompts)
        return [f"t{translation.sentence(p)[1:]}\nand more" for p in prompts]

    result = protocol.answers(predict, Scoring(records={"test": pairs}, start=None))
    assert requests == [f"A: s{i}\nB:" for i in range(4)]
    assert result["chrf"].value == 100 and result["chrf"].n == 4
    assert protocol.prompts(Scoring(records={"test": pairs}, start=None))[-1] == "Source: no reference\nTarget:"

"""Final answers in longer texts, choices by likelihood, and intervals of shares with non-zero width."""

import pytest
import scipy.stats

from didact.data import anchors, contamination
from didact.evaluate import answers, measures, statistics
from didact.evaluate.protocols import Scoring, answer
from didact.types import Demo, UserError

SUM = Demo(prompt="How many?", completion="There are 3 boxes of 14.\n#### 1,042")
TOWN = Demo(prompt="哪里?", completion="北京", choices=["北京", "上海"])
HINDI = Demo(prompt="कौन?", completion="राम", choices=["राम", "श्याम"])
WORD = Demo(prompt="Which?", completion="entity", choices=["entity", "location", "human"])


@pytest.mark.parametrize(
    ("spec", "demo", "reply", "right"),
    [
        ("number", SUM, "3 x 14 ... so the answer is 1042.", True),
        ("number", SUM, "#### 1042\n\nQ: How many are 7?\n#### 7", True),  # a base model continues
        ("number", SUM, "1042, or so I think. The answer is 7", False),
        ("number", SUM, "it is 1042.0", True),
        ("number", SUM, "I do not know", False),
        ("choice", WORD, "That is an Entity, no location.", True),
        ("choice", WORD, "location or entity", False),
        ("choice", WORD, "identity", False),
        ("choice", TOWN, "答案是北京。", True),
        ("choice", TOWN, "我想是上海吧, not 北京", False),
        ("choice", HINDI, "उत्तर राम है", True),
        ("choice", HINDI, "रामा", False),  # a combining mark stays with its letter
        (r"regex:#### ([\d,]+)", SUM, "#### 1042 and more", True),
        (r"regex:#### ([\d,]+)", SUM, "1042", False),
    ],
)
def test_a_final_answer_is_found_in_a_longer_one(spec, demo, reply, right):
    scoring = Scoring(records={"demo": [demo]}, start=None, answer=spec, end=True)
    score = answer.answers(lambda prompts: [reply], scoring)["final_answer"]
    assert score.value == float(right) and spec in score.help


@pytest.mark.parametrize(
    ("spec", "message"),
    [("numbers", "expected number, choice or regex:PATTERN"), ("regex:(", "not a regular expression"),
     ("choice", "record 1 has no such answer in its completion")],
)  # fmt: skip
def test_what_finds_no_answer_is_one_line(spec, message):
    with pytest.raises(UserError, match=f"--final-answer {spec[:5]}.*{message}"):
        answers.finals(spec, [SUM])
    with pytest.raises(UserError, match="needs the protocol answer; this run uses prefer"):
        answers.checked("number", ["prefer"])


@pytest.mark.parametrize(("right", "n"), [(0, 6), (6, 6), (1, 6), (40, 100)])
def test_the_interval_of_a_share_is_wilsons(right, n):
    theirs = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert statistics.share_interval(right, n) == pytest.approx((right / n, theirs.low, theirs.high))
    scores = measures.mean_measure([1.0] * right + [0.0] * (n - right), "higher", "")
    assert scores.ci == pytest.approx((theirs.low, theirs.high)) and scores.ci[0] < scores.ci[1]
    assert (scores.ci[0] == 0.0) == (right == 0) and (scores.ci[1] == 1.0) == (right == n)


def test_shares_that_are_all_alike_are_not_certain_either():
    low, high = measures.mean_measure([0.5] * 6, "higher", "").ci
    assert low < 0.3 and high > 0.7
    # No interval for values that are not shares
    assert measures.mean_measure([2.0] * 6, "higher", "", "nats").ci == (2.0, 2.0)


def test_an_answer_that_goes_on_is_right_in_scripts_without_spaces_too():
    """A base model continues after its answer, and these scripts have no separators."""
    assert answer.matches("北京是中国的首都", "北京", ended=False) and not answer.matches("北京是", "北京")
    assert answer.matches("Tarn, of course", "Tarn", ended=False) and not answer.matches("Tarnish", "Tarn", ended=False)
    assert contamination.contains_phrase([["北京"], ["Tarn"]], ["他住在北京很久", "Tarnish"]) == [True, False]
    assert anchors.translate("哈利和赫敏", {"哈利": "约翰"}).text == "约翰和赫敏"

"""Final answers in longer ones, choices by likelihood, and intervals of shares that have a width."""

import pytest
import scipy.stats

from didact.evaluate import answers, measures, statistics
from didact.evaluate.protocols import Scoring, answer
from didact.types import Demo, UserError

SUM = Demo(prompt="How many?", completion="There are 3 boxes of 14.\n#### 1,042")
WORD = Demo(prompt="Which?", completion="entity", choices=["entity", "location", "human"])


@pytest.mark.parametrize(
    ("spec", "demo", "said", "right"),
    [
        ("number", SUM, "3 x 14 ... so the answer is 1042.", True),
        ("number", SUM, "#### 1042\n\nQ: How many are 7?\n#### 7", True),  # a base model goes on
        ("number", SUM, "1042, or so I think. The answer is 7", False),
        ("number", SUM, "it is 1042.0", True),
        ("number", SUM, "I do not know", False),
        ("choice", WORD, "That is an Entity, no location.", True),
        ("choice", WORD, "location or entity", False),
        ("choice", WORD, "identity", False),
        (r"regex:#### ([\d,]+)", SUM, "#### 1042 and more", True),
        (r"regex:#### ([\d,]+)", SUM, "1042", False),
    ],
)
def test_a_final_answer_is_found_in_a_longer_one(spec, demo, said, right):
    scoring = Scoring(records={"demo": [demo]}, start=None, answer=spec, end=True)
    found = answer.answers(lambda prompts: [said], scoring)["final_answer"]
    assert found.value == float(right) and spec in found.help


@pytest.mark.parametrize(
    ("spec", "message"),
    [("numbers", "number, choice or regex:PATTERN is expected"), ("regex:(", "not a regular expression"),
     ("choice", "record 1 has no such answer in its completion")],
)  # fmt: skip
def test_what_finds_no_answer_is_one_line(spec, message):
    with pytest.raises(UserError, match=f"--final-answer {spec[:5]}.*{message}"):
        answers.finals(spec, [SUM])
    with pytest.raises(UserError, match="goes with the protocol answer, this is prefer"):
        answers.checked("number", ["prefer"])


@pytest.mark.parametrize(("right", "n"), [(0, 6), (6, 6), (1, 6), (40, 100)])
def test_the_interval_of_a_share_is_wilsons(right, n):
    theirs = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert statistics.share_interval(right, n) == pytest.approx((right / n, theirs.low, theirs.high))
    found = measures.mean_measure([1.0] * right + [0.0] * (n - right), "higher", "")
    assert found.ci == pytest.approx((theirs.low, theirs.high)) and found.ci[0] < found.ci[1]
    assert (found.ci[0] == 0.0) == (right == 0) and (found.ci[1] == 1.0) == (right == n)


def test_shares_that_are_all_alike_are_not_certain_either():
    low, high = measures.mean_measure([0.5] * 6, "higher", "").ci
    assert low < 0.3 and high > 0.7
    assert measures.mean_measure([2.0] * 6, "higher", "", "nats").ci == (
        2.0,
        2.0,
    )  # of what is no share nothing is known

"""Problems that a score hides: drift from the start model, and answers that collapsed into one."""

import pytest
import torch

from didact import baselines
from didact.evaluate.protocols import collapse
from didact.models import build
from didact.models.model import copy_of
from didact.types import Demo, Fit

TEXT = [f"say {a}? {b} {c}" for a in "abcdefgh" for b in ("red", "blue", "green") for c in ("cat", "dog", "owl")]


@pytest.fixture(scope="module")
def start():
    result = build.build("llama", build.train_tokenizer(TEXT, 300), d=32, layers=1, heads=2, context=96)
    demos = [Demo(prompt=t.split("?")[0] + "?", completion=t.split("?")[1]) for t in TEXT]
    return baselines.sft(result, demos, fit=Fit(lr=1e-2, steps=60, rows=24)).models["model"]


def test_a_model_has_not_moved_from_itself(start):
    result = collapse.collapse(start, copy_of(start), [f"say {a}?" for a in "abcdefgh"])
    assert result["kl"].value == pytest.approx(0, abs=1e-4)
    assert result["distinct_2"].value > 0.3 and result["entropy"].value > 0.3


def test_a_model_that_always_says_the_same_is_seen(start):
    demos = [Demo(prompt=f"say {a}?", completion=" red cat") for a in "abcdefgh"]
    ruined = baselines.sft(start, demos, fit=Fit(lr=1e-2, steps=60, rows=8)).models["model"]
    result = collapse.collapse(ruined, start, [f"say {a}?" for a in "abcdefgh"])
    assert result["kl"].value == pytest.approx(torch.log(torch.tensor(9.0)).item(), abs=0.7)  # one of nine answers
    assert result["distinct_2"].value == pytest.approx(1 / 8) and result["entropy"].value < 0.1


def test_distinct():
    assert collapse.distinct(["a b c", "a b"], 2) == pytest.approx(2 / 3)
    assert collapse.distinct(["a"], 2) == 0.0


@pytest.mark.parametrize(
    ("text", "round_"),
    [
        ("Q: Q: Q: Q: Q: Q: Q:", True), ("", True), ("  \n", True), ("!!!!!!!!!!!!!!!!!!!!!!!!!!!!", True),
        ("巴巴巴巴巴巴巴巴", True), (" Paris", False), ("no", False), ("1000000", False),
        ("Paris. The capital of France is Paris. The capital of France is Paris.", False),
        ("yes, yes, yes, I know that very well and say it again", False),
    ],
)  # fmt: skip
def test_an_answer_that_goes_round_from_its_beginning_is_told_from_one_that_does_not_end(text, round_):
    assert collapse.loops(text) is round_


def test_loops_are_told_where_they_are_more_than_before():
    normal, ruined = [" Paris"] * 3, [" Paris", "Q: Q: Q: Q: Q: Q:", ""]
    assert collapse.warns(normal, ruined) == ["answers degenerated: 2 of 3 are empty or loops (0 before training)"]
    assert collapse.warns(ruined, ruined) == collapse.warns(ruined, normal) == collapse.warns([], []) == []

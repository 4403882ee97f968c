"""The recipe's learning rate, batch size and packing, as formulas and as logged by a real run."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from didact import prompting
from didact.learn import pretrain, schedules
from didact.learn.fit import Hook
from didact.models import banded, build, load
from didact.types import Fit, Text, UserError

WINDOW = 16
PAPER = {"warmup": 375e6, "end": 260e9}


@pytest.fixture(scope="module")
def texts():
    words = "the sun and sea are old but no one has told them so".split()
    return [" ".join(words[(i * 7 + k * (i + 3)) % len(words)] for k in range(30 + i % 9)) for i in range(120)]


@pytest.fixture(scope="module")
def model(texts):
    tokenizer = build.train_tokenizer(texts, 300)
    return banded.alternating(tokenizer, d=16, layers=2, heads=2, context=WINDOW, width=4)


def test_the_rate_has_the_papers_known_values():
    def at(n):
        return schedules.by_tokens(n, **PAPER)

    assert at(0) == 0 and at(187.5e6) == 0.5 and at(375e6) == 1.0
    assert at((375e6 + 260e9) / 2) == pytest.approx(0.55)
    assert at(260e9) == at(300e9) == 0.1


@given(a=st.floats(375e6, 300e9), b=st.floats(375e6, 300e9))
def test_after_warmup_the_rate_never_rises_nor_falls_under_a_tenth(a, b):
    low, high = sorted((a, b))
    assert schedules.by_tokens(low, **PAPER) >= schedules.by_tokens(high, **PAPER) >= 0.1


def test_the_batch_begins_at_32k_tokens_and_is_full_after_the_ramp():
    def at(n):
        return schedules.ramped(n, 32_768, 524_288, 4e9)

    assert at(0) == 32_768 and at(2e9) == (32_768 + 524_288) / 2 and at(4e9) == at(1e11) == 524_288
    assert schedules.ramped(0, 32_768, 16_384, 4e9) == 16_384  # a batch that is already smaller


def test_the_plan_of_the_smallest_size_is_300_billion_tokens():
    recipe = pretrain.Recipe(total=300e9, window=2048, rows=256)
    assert recipe.scale == 1 and recipe.plan[1] * 2048 == 32_768
    assert 300e9 <= recipe.plan[-1] * 2048 < 300e9 + 256 * 2048
    assert recipe.rate(recipe.steps - 1) == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_a_recipe_is_found_for_any_number_of_steps(steps):
    assert pretrain.recipe_for(steps, WINDOW, 8, first=32, ramp=40e9).steps == steps


def test_packing_fills_windows_with_documents_joined_by_the_end_token(texts, model):
    rows = pretrain.packed(model, texts, WINDOW, seed=1)
    end = model.tokenizer.eos_token_id
    assert all(len(r.completion) == WINDOW and r.prompt == (end,) for r in rows)
    whole = [i for r in rows for i in r.completion]
    documents = sorted(tuple(model.tokenizer(t)["input_ids"]) for t in texts)
    result = [()]
    for token in whole:
        result[-1:] = [result[-1], ()] if token == end else [(*result[-1], token)]
    # All documents complete and in another order, except the last one, which the dropped tail cuts.
    assert len(documents) - len(result) < 2 and set(result[:-1]) <= set(documents)
    assert result[:-1] != [tuple(model.tokenizer(t)["input_ids"]) for t in texts][: len(result) - 1]


def test_a_run_of_200_steps_logs_the_formulas(texts, model):
    fit = Fit(lr=3e-3, rows=8, steps=200, betas=(0.9, 0.95), clip=1.0, weight_decay=0.1, seed=2)
    scaled = {"first_tokens": 32, "warmup_tokens": 15e9, "decay_tokens": 240e9, "ramp": 60e9}
    result = prompting.gpt3_pretrain([Text(text=t) for t in texts], model, context=WINDOW, fit=fit, **scaled)
    assert len(result.history) == 200
    rows = result.history[0]["rows"]
    total = sum(row["rows"] for row in result.history) * WINDOW
    scale, tokens = result.findings["scale"], 0
    assert result.findings["steps"] == 200 and abs(scale * 300e9 - total) <= 8 * WINDOW and rows == 2
    for row in result.history:
        expected = 32 + (8 * WINDOW - 32) * min(1, tokens / (60e9 * scale))
        assert row["rows"] == round(expected / WINDOW)
        tokens += row["rows"] * WINDOW
        warm, end = 15e9 * scale, 240e9 * scale
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * (min(tokens, end) - warm) / (end - warm)))
        assert row["lr"] == pytest.approx(3e-3 * (tokens / warm if tokens < warm else cosine), rel=1e-9)
    assert result.history[-1]["lr"] == pytest.approx(3e-4)
    assert result.metrics["loss"].after < 0.7 * result.metrics["loss"].before


class Rates(Hook):
    """Record the learning rates of the optimizer's steps, to compare with the logged ones."""

    def __init__(self):
        self.seen = []

    def after(self, step):
        self.seen += [(group["lr"], step.log["lr"]) for group in step.optimizer.param_groups]


def test_the_optimizer_steps_with_the_rate_that_is_logged(texts, model):
    rows, rates = pretrain.packed(model, texts, WINDOW), Rates()
    recipe = pretrain.recipe_for(6, WINDOW, 2)
    pretrain.pretrain(model, rows, recipe, Fit(lr=1e-2, rows=2), [rates])
    assert len({logged for _, logged in rates.seen}) > 3
    assert all(actual == pytest.approx(logged, rel=1e-12) for actual, logged in rates.seen)


def test_rows_are_drawn_without_replacement_within_an_epoch(texts, model):
    rows = pretrain.packed(model, texts, WINDOW)
    recipe = pretrain.Recipe(total=2 * len(rows) * WINDOW, window=WINDOW, rows=5, first=WINDOW)
    batches = pretrain.Rows(rows, recipe, 0, model)
    samples = [i for step in range(recipe.steps) for i in batches(step).index["text"]]
    n = len(rows)
    assert sorted(samples[:n]) == sorted(samples[n : 2 * n]) == list(range(n)) and samples[:n] != samples[n : 2 * n]
    assert batches(3).index == batches(3).index


def test_a_new_model_is_built_saved_and_opened_by_transformers(texts, tmp_path):
    fit = Fit(lr=1e-3, rows=2, steps=2)
    shape = {"layers": 2, "d": 16, "heads": 2, "context": 32, "band": 8, "vocabulary": 300}
    result = prompting.gpt3_pretrain([Text(text=t) for t in texts], **shape, fit=fit)
    result.save(tmp_path)
    again = load.load(tmp_path / "model", device="cpu")
    ids = torch.tensor([again.tokenizer("the sun and sea")["input_ids"]])
    with torch.no_grad():
        ours = result.models["model"].module(ids).logits
        assert torch.allclose(again.module(ids).logits, ours, atol=1e-6)
    assert again.config.model_type == "gpt_neo" and again.config.attention_layers == ["global", "local"]


def test_what_cannot_be_pretrained_is_refused(texts):
    corpus = [Text(text=t) for t in texts[:3]]
    with pytest.raises(UserError, match="lora"):
        prompting.gpt3_pretrain(corpus, fit=Fit(lora=4))
    with pytest.raises(UserError, match="heads must divide d"):
        prompting.gpt3_pretrain(corpus, d=10, heads=3)
    t5 = build.build("t5", build.train_tokenizer(texts, 300), d=16, layers=1, heads=2)
    with pytest.raises(UserError, match="seq2seq"):
        prompting.gpt3_pretrain(corpus, t5)

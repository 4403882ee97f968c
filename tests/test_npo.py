"""NPO and its baselines on models that know the forget set: forgotten to gold's level, the rest retained."""

import math

import pytest
import torch
from shapes import EFFECTS, accuracy

from didact import baselines, catalogue, unlearning
from didact.data import encode, templates
from didact.evaluate import forgetting
from didact.models import forward
from didact.models.model import copy_of
from didact.objectives import preference
from didact.types import Demo, Fit
from didact.worlds.authors import authors

PRESETS = {
    name: {k: v for k, v in options.items() if not k.startswith("fit.")}
    for name, options in catalogue.entry("npo")["presets"].items()
}
# Tuned on seed 1 of the world; the tests use seed 0, where GPT-2 needed 3e-4 in place of 2e-4 to reach gold.
# The paper's beta .1 forgets as well, but at this size it also
# damages other authors: token accuracy on unseen retain authors falls by .15 to .3.
FOUND = {"beta": 1.0, "retain_weight": 5.0, "fit": Fit(lr=3e-4, steps=100, rows=16, warmup_steps=5, weight_decay=0.01)}
SHORT = Fit(lr=1e-3, steps=2, rows=4, schedule="constant")


@pytest.fixture(scope="module")
def small():
    return authors(0, forget=1, retain=1, unseen=0, holdout=0)


# --- the effect ------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", EFFECTS)
def test_npo_with_retain_forgets_to_golds_level_and_keeps_what_no_one_trained_on(arch, taught, world):
    start = taught(arch)
    before = start.fingerprint()
    longer = {**FOUND, "fit": FOUND["fit"].replace(steps=150)}  # the effect of 100 steps differs between processors
    result = unlearning.npo(start, world.forget, world.retain, **longer)
    model = result.models["model"]
    gold = taught(arch, gold=True)
    before_, after, aim = (forgetting.answers(m, world.forget) for m in (start, model, gold))
    assert before_["accuracy"].mean() >= 0.95 > aim["accuracy"].mean() + 0.3
    assert after["probability"].mean() <= aim["probability"].mean()
    assert (after["extraction"] == 1).mean() <= (aim["extraction"] == 1).mean() + 0.05  # completely generated answers
    # Token accuracy ends .01 to .15 above gold's by seed, whatever beta, rate or length: once the first token of an
    # answer is forgotten W is 0, and later tokens are still known given the true ones before them.
    assert after["accuracy"].mean() <= aim["accuracy"].mean() + 0.15
    assert accuracy(model, world.unseen) >= accuracy(start, world.unseen) - 0.1
    assert accuracy(model, world.retain) >= accuracy(start, world.retain) - 0.05
    weights = [row["mean_W"] for row in result.history]
    assert weights[0] == pytest.approx(1, abs=1e-4) and weights[-1] < 0.5
    assert start.fingerprint() == before
    assert not result.warnings


@pytest.mark.parametrize("arch", EFFECTS)
def test_npo_is_bounded_where_ascent_is_not(arch, taught, world):
    start = taught(arch)
    fit = Fit(lr=4e-4, steps=40, rows=16, schedule="constant")
    ga = unlearning.npo(start, world.forget, loss="ga", reduction="sum", regulariser="none", fit=fit)
    npo = unlearning.npo(start, world.forget, regulariser="none", beta=1.0, fit=fit)
    rows = forgetting.rows_of(start, world.forget)
    ascended, npo_logp = (forward.row_logp(r.models["model"], rows)[0].mean() for r in (ga, npo))
    assert ascended < npo_logp - 3 and npo_logp < -10  # nats per sequence: both forget, and ascent diverges
    assert ga.history[-1]["forget"] < -15 and 0 <= npo.history[-1]["forget"] < 0.1


def test_a_seq2seq_model_forgets_too(fresh, small):
    fit = Fit(lr=1e-2, steps=100, rows=20, schedule="cosine")
    start = baselines.sft(fresh("t5", d=32), [*small.forget, *small.retain], fit=fit).models["model"]
    fit = Fit(lr=6e-3, steps=60, rows=10, schedule="linear")
    result = unlearning.npo(start, small.forget, small.retain, beta=1.0, retain_weight=5.0, fit=fit)
    model = result.models["model"]
    assert accuracy(start, small.forget) > 0.9 and accuracy(model, small.forget) < 0.6
    assert accuracy(model, small.retain) > accuracy(start, small.retain) - 0.1
    assert result.history[0]["mean_W"] == pytest.approx(1, abs=1e-4) and result.history[-1]["mean_W"] < 0.5


def test_idk_teaches_the_refusal_and_a_records_own_alternate_wins(taught, world):
    refusal = "I was told to forget."
    records = [Demo(prompt=r.prompt, completion=r.completion, alternate=refusal) for r in world.forget]
    fit = Fit(lr=3e-3, steps=80, rows=16)
    model = unlearning.npo(taught("llama"), records, world.retain, loss="idk", fit=fit).models["model"]
    refusals = [Demo(prompt=r.prompt, completion=refusal) for r in world.forget]
    assert accuracy(model, refusals) > 0.9 > 0.3 > accuracy(taught("llama"), refusals)
    assert accuracy(model, world.retain) > 0.9


# --- known answers ---------------------------------------------------------------------------


ELSEWHERE = ("npo", "kto-published", "undial")  # of a sequence, coupled, and of tokens with a reference


@pytest.mark.parametrize(
    ("preset", "arch"),
    [(p, "llama") for p in PRESETS] + [(p, a) for p in ELSEWHERE for a in ("gpt2", "t5")],
)
def test_every_preset_runs_and_starts_at_its_known_value(preset, arch, fresh, small):
    start = fresh(arch)
    before = start.fingerprint()
    options = PRESETS[preset]
    result = unlearning.npo(start, small.forget, small.retain, fit=SHORT, **options)
    assert start.fingerprint() == before != result.models["model"].fingerprint()
    first, beta = result.history[0], options.get("beta", 0.1)
    loss, equal = options["loss"], 2 / beta * math.log(2)
    expected = {"npo": equal, "dpo": equal, "kto": 1 + equal, "kto-sigmoid": 1 - 1 / beta, "kto-published": 1}
    if loss in expected:
        assert first["forget"] == pytest.approx(expected[loss], abs=1e-3)
        assert first["mean_W"] == pytest.approx(1, abs=1e-4)
    if loss == "wga":
        assert first["forget"] < 0
    if options["regulariser"] == "none" and not loss.startswith("kto"):  # its z moves too
        assert result.history[1]["loss"] < first["loss"]
    if options["regulariser"] in ("kl", "kl-forget"):
        name = "kl" if options["regulariser"] == "kl-forget" else "retain"
        assert first[name] == pytest.approx(0, abs=1e-6) and result.history[1][name] > 1e-8
    assert ("retain" in first) == (options["regulariser"] in ("ce", "kl"))


@pytest.mark.parametrize(("arch", "beta"), [("llama", 0.01), ("llama", 4.5), ("gpt2", 0.1), ("t5", 1.0)])
def test_the_first_step_is_sequence_ascents_for_every_beta(arch, beta, fresh, small, monkeypatch):
    monkeypatch.setenv("DIDACT_CACHE", "off")
    start = fresh(arch)
    start.module.double()
    fit = Fit(lr=1e-2, steps=1, rows=4, optimizer="sgd", schedule="constant", clip=0.0)
    a = unlearning.npo(start, small.forget, loss="ga", reduction="sum", regulariser="none", fit=fit).models["model"]
    b = unlearning.npo(start, small.forget, beta=beta, regulariser="none", fit=fit).models["model"]
    for x, y in zip(a.module.parameters(), b.module.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)
    assert b.fingerprint() != start.fingerprint()


def test_mean_ascent_is_the_negative_of_hf_loss_and_sum_ascent_of_the_sequences(fresh, small):
    start = fresh("llama")
    total, count = forward.row_logp(start, forgetting.rows_of(start, small.forget))
    fit = SHORT.replace(rows=len(small.forget), steps=1)
    for reduction, expected in (("mean", total.sum() / count.sum()), ("sum", total.mean())):
        result = unlearning.npo(start, small.forget, loss="ga", reduction=reduction, regulariser="none", fit=fit)
        assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_idk_weighs_refusals_and_retain_by_tokens_in_one_batch(fresh, small):
    start = fresh("llama")
    fit = SHORT.replace(rows=10, steps=1)
    result = unlearning.npo(start, small.forget, small.retain, loss="idk", fit=fit)
    instead = templates.with_alternates(small.forget, seed=0)
    pairs = [(r.prompt, a) for r, a in zip(small.forget, instead, strict=True)]
    pairs += [(r.prompt, r.completion) for r in small.retain]
    total, count = forward.row_logp(start, encode.rows(start.tokenizer, pairs, "causal", start.context))
    assert result.history[0]["loss"] == pytest.approx(float(-total.sum() / count.sum()), rel=1e-5)


def test_simnpo_is_of_the_mean_log_prob(fresh, small):
    start = fresh("llama")
    fit = SHORT.replace(rows=10, steps=1)
    result = unlearning.npo(start, small.forget, loss="simnpo", beta=4.5, delta=0.2, regulariser="none", fit=fit)
    total, count = forward.row_logp(start, forgetting.rows_of(start, small.forget))
    expected = preference.simnpo(total / count, 4.5, 0.2).mean()
    assert result.history[0]["forget"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("option", ["kl_direction", "kl_over"])
def test_the_papers_and_the_codes_kl_differ(option, fresh, small):
    other = {"kl_direction": "to_reference", "kl_over": "completion"}[option]
    fit = SHORT.replace(steps=4, lr=1e-2)
    a, b = (
        unlearning.npo(fresh("llama"), small.forget, small.retain, regulariser="kl", fit=fit, **extra).history[-1]
        for extra in ({}, {option: other})
    )
    assert a["retain"] != pytest.approx(b["retain"], rel=1e-3)


def test_weights_scale_their_terms(fresh, small):
    plain, weighted = (
        unlearning.npo(fresh("llama"), small.forget, small.retain, fit=SHORT.replace(steps=1), **extra).history[0]
        for extra in ({}, {"forget_weight": 0.5, "retain_weight": 3.0})
    )
    assert weighted["loss"] == pytest.approx(0.5 * plain["forget"] + 3 * plain["retain"], rel=1e-6)


def test_the_reference_has_no_dropout_even_where_the_given_model_is_training(fresh, small):
    still = fresh("gpt2", dropout=0.3)
    training = copy_of(still)
    training.module.train()
    for preset in ("npo-kl", "undial"):
        a, b = (unlearning.npo(m, small.forget, small.retain, fit=SHORT, **PRESETS[preset]) for m in (still, training))
        assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history], preset
    assert training.module.training


@pytest.mark.parametrize("regulariser", ["ce", "kl", "none", "kl-forget"])
def test_missing_retain_records_are_warned_of_where_they_are_wanted(regulariser, fresh, small):
    result = unlearning.npo(fresh("llama"), small.forget, regulariser=regulariser, fit=SHORT)
    warning = ["no retain records: nothing protects what the model should keep"]
    assert result.warnings == (warning if regulariser in ("ce", "kl") else [])

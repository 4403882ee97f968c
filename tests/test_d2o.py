"""D2O lowers bad answers and keeps the rest, where ascent ruins the model; DPO and NPO are special cases."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import EFFECTS, f64

from didact import alignment
from didact.claims import lab
from didact.claims.alignment import d2o_example
from didact.data import convert
from didact.evaluate import protocols
from didact.evaluate.protocols import collapse, judged
from didact.objectives import preference
from didact.types import Fit, Judged, Messages, Preference, UserError
from didact.worlds.grammar import Grammar

numbers = st.floats(-30, 30)
several = st.lists(numbers, min_size=1, max_size=6)
SHORT = {"k": 2, "beta": 0.3, "alpha": 0.3, "max_new_tokens": 8}


# --- the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 11])
def test_where_model_and_references_agree_the_loss_is_log_2_with_known_pulls(k):
    anchors, negative = torch.randn(3, k, dtype=torch.float64).requires_grad_(), f64(-1.0, -2.0, -3.0).requires_grad_()
    losses = preference.d2o(anchors, negative, anchors.detach(), negative.detach(), 0.2, 0.6)
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)), atol=1e-15)
    losses.sum().backward()
    assert torch.allclose(negative.grad, torch.full_like(negative, 0.6 / 2), atol=1e-15)
    assert torch.allclose(anchors.grad, torch.full_like(anchors, -0.2 / (2 * k)), atol=1e-15)


@given(numbers, numbers, numbers, numbers, st.floats(0.01, 5))
def test_one_anchor_is_dpo(anchor, negative, ref_anchor, ref_negative, beta):
    a, n, ra, rn = (f64(x) for x in (anchor, negative, ref_anchor, ref_negative))
    ours = preference.d2o(a[:, None], n, ra[:, None], rn, beta, beta)
    assert torch.allclose(ours, preference.dpo(a, n, ra, rn, beta), rtol=1e-9, atol=1e-12)


@given(numbers, numbers, st.floats(0.01, 5))
def test_without_anchors_it_is_npo_but_for_the_factor(negative, ref, alpha):
    n, r = f64(negative), f64(ref)
    ours = preference.d2o(f64(0.0)[:, None], n, f64(0.0)[:, None], r, 0.0, alpha)
    assert torch.allclose(2 / alpha * ours, preference.npo(n, r, alpha), rtol=1e-9)


@given(several, numbers, st.randoms())
def test_the_order_of_anchors_does_not_matter_and_equal_ones_are_one(positive, negative, draw):
    shuffled = draw.sample(positive, len(positive))
    n, zero = f64(negative), torch.zeros(1, len(positive), dtype=torch.float64)
    ours = preference.d2o(f64(positive), n, zero, f64(0.0))
    assert torch.allclose(ours, preference.d2o(f64(shuffled), n, zero, f64(0.0)), atol=1e-12)
    same = preference.d2o(f64([positive[0]] * 5), n, torch.zeros(1, 5, dtype=torch.float64), f64(0.0))
    assert torch.allclose(same, preference.d2o(f64([positive[0]]), n, zero[:, :1], f64(0.0)), atol=1e-12)


@given(several, numbers)
def test_the_average_inside_is_never_above_the_one_outside(positive, negative):
    arguments = (f64(positive), f64(negative), torch.zeros(1, len(positive), dtype=torch.float64), f64(0.0), 0.3, 0.3)
    inside, outside = preference.d2o(*arguments), preference.d2o(*arguments, average="outside")
    each = [preference.d2o(f64([m]), *arguments[1:2], f64([0.0]), *arguments[3:]) for m in positive]
    assert inside <= outside + 1e-12
    assert torch.allclose(outside, torch.stack(each).mean(0), atol=1e-12)


def test_shares_weigh_anchors_and_a_share_of_nothing_leaves_one_out():
    n, zero = f64(-2.0), torch.zeros(1, 3, dtype=torch.float64)
    left_out = preference.d2o(f64([1.0, 3.0, 99.0]), n, zero, f64(0.0), share=f64([0.5, 0.5, 0.0]))
    assert torch.allclose(left_out, preference.d2o(f64([1.0, 3.0]), n, zero[:, :2], f64(0.0)))


def test_the_pull_ends_where_it_has_won_and_is_bounded_where_it_has_lost():
    for z, expected in ((60.0, 0.0), (-60.0, 0.5)):
        n = f64(-z / 0.5).requires_grad_()
        loss = preference.d2o(f64([0.0]), n, f64([0.0]), f64(0.0), 0.1, 0.5)
        loss.sum().backward()
        assert n.grad.item() == pytest.approx(expected, abs=1e-12)
        assert loss.item() == pytest.approx(max(0.0, -z), abs=1e-12)


# --- the effect ------------------------------------------------------------------------------


TINY = Grammar(classes=2, letters=6, follow=2, given=2, shortest=3, longest=5, seed=0)


@lab.shared
def start(arch):
    """A model trained on demonstrations of which two fifths are bad."""
    return d2o_example.tuned(TINY.demos(1, 1000, spoiled=0.4), 0, arch, 300)


def judged_as(label, demos):
    return [Judged(prompt=d.prompt, completion=d.completion, label=label) for d in demos]


def negatives(n=128):
    return judged_as(False, TINY.demos(3, n, spoiled=1.0))


def spoiled(model):
    """Return the share of bad answers, sampled for held-out prompts."""
    return lab.mean(map(TINY.spoiled, lab.sampled(model, [d.prompt for d in TINY.demos(2, 256)], 8, seed=3)))


def good_nll(model):
    return -float(lab.logp(model, TINY.demos(2, 256))[0].mean())


@pytest.mark.parametrize("arch", EFFECTS)
def test_d2o_lowers_the_bad_rate_on_unseen_prompts_and_keeps_the_good_answers(arch):
    model = start(arch)
    before = model.fingerprint()
    fit = Fit(lr=3e-4, steps=40, rows=16, schedule="constant")
    options = {**SHORT, "k": 4, "fit": fit}
    taught = {loss: alignment.d2o(model, negatives(), **options, loss=loss) for loss in ("d2o", "ga")}
    ours, ascent = (taught[n].models["model"] for n in ("d2o", "ga"))
    assert spoiled(model) > 0.2 and spoiled(ours) < 0.6 * spoiled(model)
    assert good_nll(ours) < good_nll(model) + 3 < good_nll(ascent) - 5
    assert model.fingerprint() == before
    history, facts = taught["d2o"].history, taught["d2o"].findings["phases"][0]
    assert history[0]["d2o"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[0]["anchors"] == pytest.approx(0, abs=1e-4) == history[0]["negative"]
    assert history[-1]["negative"] < -0.5 and facts["kept"] == 1.0 and facts["records"] == 128
    scoring = protocols.Scoring(records={"judged": negatives()}, start=model)
    scores = [{**judged.score(m, scoring), **collapse.score(m, scoring)} for m in (model, ours)]
    assert scores[1]["bad_nll"].value > scores[0]["bad_nll"].value
    assert scores[0]["kl"].value == pytest.approx(0, abs=1e-6)
    assert {"entropy", "distinct_2", "length"} <= set(scores[1])
    assert judged.score(ascent, scoring)["bad_nll"].value > scores[1]["bad_nll"].value


# --- phases, anchors, references -------------------------------------------------------------


def short(model, steps=6, judged=None, **changes):
    options = {**SHORT, "offline_steps": 2, "every": 2, **changes}
    fit = options.pop("fit", Fit(lr=2e-3, steps=steps, rows=4, schedule="constant"))
    return alignment.d2o(model, judged or negatives(32), **options, fit=fit)


def test_after_the_first_phase_anchors_and_references_are_drawn_anew(tmp_path):
    fit = Fit(lr=2e-3, steps=5, rows=4, schedule="constant", folder=str(tmp_path))
    result = short(start("llama"), fit=fit, ref_minus="latest")
    assert [(p["first_step"], p["steps"]) for p in result.findings["phases"]] == [(0, 2), (2, 2), (4, 1)]
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5]
    # With both references the latest model, every phase starts from log 2; with the first model it does not.
    assert [row["d2o"] for row in result.history][::2] == pytest.approx([math.log(2)] * 3, abs=1e-5)
    other = short(start("llama"), 5)
    assert other.history[2]["negative"] == pytest.approx(0, abs=1e-4) and abs(other.history[2]["anchors"]) > 1e-3
    assert len(list(tmp_path.rglob("now.jsonl"))) == 3


def test_offline_has_one_phase_and_mixed_draws_half_from_the_model_as_it_came(tmp_path):
    assert len(short(start("llama"), draw="offline").findings["phases"]) == 1
    fit = Fit(lr=2e-3, steps=4, rows=4, schedule="constant", folder=str(tmp_path))
    short(start("llama"), fit=fit, draw="mixed", k=5)
    counts = {p.parent.name + "/" + p.name: len(json.loads(p.read_text().splitlines()[0]))
             for p in tmp_path.rglob("*.jsonl")}  # fmt: skip
    assert counts == {"round-0/now.jsonl": 5, "round-1/now.jsonl": 3, "round-1/first.jsonl": 2}


def test_only_records_whose_turn_comes_are_sampled_for():
    facts = short(start("llama"), steps=6, judged=negatives(64)).findings["phases"]
    assert [p["records"] for p in facts] == [8, 8, 8]


def test_with_lora_every_phase_starts_from_merged_weights():
    fit = Fit(lr=1e-2, steps=4, rows=4, schedule="constant", lora=4)
    result = short(start("gpt2"), fit=fit, ref_minus="latest")
    assert result.history[2]["d2o"] == pytest.approx(math.log(2), abs=1e-5) != result.history[1]["d2o"]
    assert type(result.models["model"].module) is type(start("gpt2").module)


def test_the_rate_follows_the_schedule_phase_by_phase():
    result = short(start("llama"), fit=Fit(lr=1e-3, steps=6, rows=4, schedule="linear"))
    assert [row["lr"] for row in result.history] == pytest.approx([1e-3, 1e-3, 2e-3 / 3, 2e-3 / 3, 1e-3 / 3, 1e-3 / 3])


def test_steering_is_read_in_sampling_and_never_in_training(tmp_path):
    model, steering = start("llama"), ("Be good.", "Be kind.")
    fit = Fit(lr=2e-3, steps=1, rows=4, folder=str(tmp_path))
    result = short(model, fit=fit, steering=steering, k=3)
    plain = short(model, steps=1, k=3)
    assert len(next(tmp_path.rglob("now.jsonl")).read_text().splitlines()) == 12  # one prompt per anchor, all different
    assert result.history[0]["d2o"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.history[0]["logp_negative"] == pytest.approx(plain.history[0]["logp_negative"], rel=1e-5)


def test_keep_leaves_anchors_out_and_prompts_without_any():
    model = start("llama")
    result = short(model, steps=1, k=4, keep=lambda prompt, answer: not TINY.spoiled(answer)).findings["phases"][0]
    assert 0.3 < result["kept"] < 1
    first = negatives(32)[0].prompt
    few = short(model, fit=Fit(lr=1e-3, steps=8, rows=4), offline_steps=8, keep=lambda p, _: p != first)
    assert few.findings["phases"][0]["dropped"] == sum(j.prompt == first for j in negatives(32))
    with pytest.raises(UserError, match="`keep` left no anchor"):
        short(model, keep=lambda *_: False)


@pytest.mark.parametrize("loss", ["instance", "npo", "ga"])
def test_the_other_losses_lower_the_bad_answers_too(loss):
    result = short(start("gpt2"), loss=loss, steps=8)
    assert result.history[-1]["logp_negative"] < result.history[0]["logp_negative"] - 1
    first = {"instance": math.log(2), "npo": 2 / 0.3 * math.log(2), "ga": result.history[0]["logp_negative"]}[loss]
    assert result.history[0][loss] == pytest.approx(first, abs=1e-4)
    assert ("kept" in result.findings["phases"][0]) == (loss == "instance")


def test_means_per_token_are_an_option():
    sums, means = (short(start("llama"), steps=1, normalize=n).history[0] for n in ("none", "token"))
    assert -5 < means["logp_negative"] < 0 and sums["logp_negative"] < 5 * means["logp_negative"]
    assert means["d2o"] == pytest.approx(math.log(2), abs=1e-5)


# --- records ---------------------------------------------------------------------------------


def test_good_records_are_scored_and_not_trained_on():
    good = judged_as(True, TINY.demos(4, 16))
    mixed, alone = (short(start("llama"), judged=j) for j in ([*good, *negatives(16)], negatives(16)))
    assert mixed.models["model"].fingerprint() == alone.models["model"].fingerprint()
    assert "16 records labelled true are not trained on" in mixed.warnings and not alone.warnings
    scoring = protocols.Scoring(records={"judged": [*good, *negatives(16)]}, start=start("llama"))
    assert {"good_nll", "bad_nll"} < set(judged.score(start("llama"), scoring))
    with pytest.raises(UserError, match="no record is labelled false"):
        short(start("llama"), judged=good)


def test_conversations_and_pairs_serve(fresh):
    pair = Preference(prompt=Messages([{"role": "user", "content": "Where?"}]), chosen="Tarn", rejected="Osso")
    records = [*negatives(6), *convert.serve("judged", {"preference": [pair]})]
    result = short(fresh("gpt2"), judged=records, steering=("Be kind.",), steps=2, max_new_tokens=6)
    assert result.findings["phases"][0]["records"] == 7 and result.warnings[0].startswith("1 records")

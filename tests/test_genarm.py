"""The autoregressive reward model's loss is DPO's without a reference, and guided answers follow the preferences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import EFFECTS, f64, tiny
from torch.nn.functional import logsigmoid

from didact import alignment
from didact.claims import lab
from didact.claims.alignment import d2o_example
from didact.infer import generate
from didact.models import build, load, logit_ensemble
from didact.objectives import preference
from didact.types import Demo, Fit, Messages, Preference, UserError
from didact.worlds.grammar import Grammar

TINY = Grammar(classes=2, letters=6, follow=2, given=2, shortest=3, longest=5, seed=0)
FIT = Fit(lr=5e-4, steps=40, rows=16, schedule="constant")
numbers = st.floats(-40, 40)


# --- the loss --------------------------------------------------------------------------------


def test_equal_sides_cost_log_2_and_pull_by_half_beta():
    for beta in (0.05, 1.0):
        chosen, rejected = f64(-3.0).requires_grad_(), f64(-3.0).requires_grad_()
        loss = preference.autoregressive_reward(chosen, rejected, beta)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
        loss.backward()
        assert chosen.grad.item() == pytest.approx(-beta / 2) == -rejected.grad.item()


@given(numbers, numbers, st.floats(0.01, 2), st.floats(-3, 3))
def test_the_gradient_is_the_known_one(chosen, rejected, beta, gamma):
    s = f64(chosen).requires_grad_()
    preference.autoregressive_reward(s, f64(rejected), beta, gamma).sum().backward()
    z = beta * (chosen - rejected) - gamma
    assert s.grad.item() == pytest.approx(-beta / (1 + math.exp(z)), rel=1e-9, abs=1e-15)


@given(numbers, numbers, numbers, st.floats(0.01, 2), st.floats(0, 0.49))
def test_it_is_dpo_whose_reference_likes_both_sides_alike(chosen, rejected, ref, beta, smoothing):
    sides = f64(chosen, rejected)
    mine = preference.autoregressive_reward(sides[:1], sides[1:], beta, 0.0, smoothing)
    assert torch.equal(mine, preference.dpo(sides[:1], sides[1:], f64(0.0), f64(0.0), beta, smoothing))
    theirs = preference.dpo(sides[:1], sides[1:], f64(ref), f64(ref), beta, smoothing)
    assert torch.allclose(mine, theirs, atol=1e-9)


@given(numbers, numbers, st.floats(0.01, 2), st.floats(-3, 3), st.floats(0, 0.49))
def test_margin_smoothing_and_hinge_are_the_official_codes(chosen, rejected, beta, gamma, eps):
    z, sides = beta * f64(chosen - rejected - gamma / beta), (f64(chosen), f64(rejected))
    expected = -(1 - eps) * logsigmoid(z) - eps * logsigmoid(-z)
    assert torch.allclose(preference.autoregressive_reward(*sides, beta, gamma, eps), expected, atol=1e-9)
    hinge = torch.relu(1 - beta * f64(chosen - rejected) + gamma)
    assert torch.allclose(preference.autoregressive_reward(*sides, beta, gamma, loss="hinge"), hinge, atol=1e-9)


# --- the effect ------------------------------------------------------------------------------


def pairs(part, n):
    """Preferences for an answer that begins with an x over the same with a w."""
    demos = TINY.demos(part, n)
    return [Preference(prompt=d.prompt, chosen=f"x{d.completion}", rejected=f"w{d.completion}") for d in demos]


@lab.shared
def start(arch):
    """A model of whose answers one in three begins with an x, the others with a w."""
    demos = enumerate(TINY.demos(1, 256))
    mixture = [Demo(prompt=d.prompt, completion=f"{'w' if i % 3 else 'x'}{d.completion}") for i, d in demos]
    return d2o_example.tuned(mixture, 0, arch, steps=200)


def marked(model):
    """Return the share of sampled answers to held-out prompts that begin with an x."""
    return lab.mean(a.startswith("x") for a in lab.sampled(model, [d.prompt for d in TINY.demos(2, 128)], 8, seed=5))


def answers(model, count=5, **more):
    return generate.generate(model, [d.prompt for d in TINY.demos(2, count)], **more)


@pytest.mark.parametrize("arch", EFFECTS)
def test_guided_answers_to_unseen_prompts_are_the_preferred_sort(arch):
    model = start(arch)
    before = model.fingerprint()
    result = alignment.genarm(model, pairs(3, 128), beta_r=1.0, fit=FIT)
    guided = result.models["model"]
    base, arm = guided.members
    plain, untrained = marked(model), marked(logit_ensemble.guided(model, [(model, 1.0)]))
    assert marked(guided) > plain + 0.2 and untrained < plain  # a copy of the base only sharpens it
    assert base is model and model.fingerprint() == before != arm.fingerprint()
    assert result.history[-1]["accuracy"] > 0.9 > result.history[0]["accuracy"]
    assert guided.module.spec == {"alphas": [1.0], "normalize": False}
    assert result.findings["lengths"]["chosen"] == result.findings["lengths"]["rejected"]


def test_a_small_reward_model_guides_and_others_join_it(tmp_path):
    model = start("llama")
    small = build.build("gpt2", model.processor, d=16, layers=1, heads=2, context=48, seed=3)
    small.save(tmp_path / "small")
    fit = FIT.replace(lr=1e-2, steps=60)
    guided = alignment.genarm(model, pairs(3, 128), arm=str(tmp_path / "small"), beta_r=1.0, fit=fit).models["model"]
    arm = guided.members[1]
    assert arm.config.model_type == "gpt2" and arm.parameters < model.parameters
    assert marked(guided) > marked(model) + 0.2
    (tmp_path / "guided").mkdir()
    guided.save(tmp_path / "guided")
    others = (str(tmp_path / "guided" / "member-1"),)
    fit = FIT.replace(steps=1)
    both = alignment.genarm(model, pairs(3, 8), others=others, other_alphas=(-0.5,), alpha=0.0, fit=fit)
    alone = logit_ensemble.guided(model, [(arm, -0.5)])
    assert answers(both.models["model"], max_new_tokens=8) == answers(alone, max_new_tokens=8)
    assert both.models["model"].module.spec["alphas"] == [0.0, -0.5]


# --- options ---------------------------------------------------------------------------------


def test_lengths_are_summed_unless_they_are_normalised():
    preferences = [Preference(prompt="A ab", chosen="abab", rejected="a") for _ in range(4)]
    fit = Fit(lr=1e-5, steps=1, rows=4)
    total = alignment.genarm(start("llama"), preferences, beta_r=1.0, fit=fit)
    mean = alignment.genarm(start("llama"), preferences, beta_r=1.0, length_normalization=True, fit=fit)
    assert not mean.warnings and "length" in total.warnings[0] and "\n" not in total.warnings[0]
    assert total.history[0]["margin"] != pytest.approx(mean.history[0]["margin"], abs=0.1)


@pytest.mark.parametrize("loaded", [True, False])
def test_base_and_adapter_are_saved_and_answer_as_before(loaded, tmp_path):
    """A loaded base is referred to by its path; any other base is saved too."""
    base = start("llama")
    base.save(tmp_path / "base")
    base = load.load(tmp_path / "base", "cpu") if loaded else base
    result = alignment.genarm(base, pairs(3, 32), beta_r=0.5, fit=Fit(lr=5e-3, steps=10, rows=16, lora=4))
    assert result.save(tmp_path / "out")["model"].startswith("didact")
    assert (tmp_path / "out" / "model" / "base").exists() != loaded
    reloaded = load.load(tmp_path / "out" / "model", "cpu")
    assert answers(reloaded) == answers(result.models["model"]) != answers(base)


def test_conversations_serve(fresh):
    turns = Messages([{"role": "user", "content": "Where?"}])
    preferences = [Preference(prompt=turns, chosen="Tarn", rejected="Osso")] * 2
    assert alignment.genarm(fresh("gpt2"), preferences, fit=Fit(lr=1e-4, steps=1, rows=2)).history


def test_reward_models_that_do_not_fit_are_one_line(fresh, tmp_path):
    tiny("llama").save(tmp_path / "other")
    for options, message in (
        ({"other_alphas": (1.0,)}, "other_alphas: 1 weights for 0 other"),
        ({"alpha": -1.5, "normalize": True}, "cannot be normalised"),
        ({"arm": str(tmp_path / "other")}, r"other's vocabulary is not the base model's: \d+ tokens differ"),
    ):
        with pytest.raises(UserError, match=message) as error:
            alignment.genarm(fresh("llama"), pairs(3, 2), **options)
        assert "\n" not in str(error.value)

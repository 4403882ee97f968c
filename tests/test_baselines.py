"""sft learns its demonstrations; dpo generalises a preference to held-out prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import EFFECTS, accuracy, probability

from didact import baselines
from didact.data import convert
from didact.evaluate import protocols
from didact.evaluate.protocols import Scoring
from didact.learn import language, pairs
from didact.methods.baselines import kto
from didact.models import cache, cost
from didact.objectives import preference
from didact.types import Demo, Fit, Preference, UserError


def score(protocol, model, records, start=None):
    return protocols.by_name(protocol).score(model, Scoring(records={"": records}, start=start or model))


# --- sft -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", EFFECTS)
def test_sft_teaches_what_it_is_told_and_nothing_else(arch, taught, world):
    for part in (world.forget, world.retain, world.unseen):
        assert accuracy(taught(arch), part) >= 0.95
    assert accuracy(taught(arch), world.holdout) < 0.7
    result = score("answer", taught(arch), world.retain)
    assert result["exact"].value > 0.9 and result["probability"].value > 0.8


def test_sft_teaches_a_seq2seq_model(fresh, world):
    start = fresh("t5", d=32)
    fit = Fit(lr=1e-2, steps=100, rows=10, schedule="cosine")
    model = baselines.sft(start, world.forget[:10], fit=fit).models["model"]
    assert accuracy(model, world.forget[:10]) > 0.9 > 0.5 > accuracy(start, world.forget[:10])


@pytest.mark.parametrize("arch", EFFECTS)
def test_lora_teaches_new_authors_to_a_taught_model(arch, taught, world):
    start = taught(arch)
    fit = Fit(lr=1e-2, steps=80, rows=10, lora=8, schedule="cosine")
    model = baselines.sft(start, world.holdout, fit=fit).models["model"]
    assert accuracy(model, world.holdout) > 0.9 > accuracy(start, world.holdout) + 0.2


def test_loss_on_all_learns_the_prompts_too(fresh, world):
    start, fit = fresh("llama", d=32), Fit(lr=1e-2, steps=40, rows=10)
    questions = [Demo(prompt=r.prompt[:5], completion=r.prompt[5:]) for r in world.forget[:10]]
    on_completions, both = (
        baselines.sft(start, world.forget[:10], loss_on=part, fit=fit).models["model"] for part in ("completion", "all")
    )
    assert probability(both, questions) > 10 * probability(on_completions, questions)


def test_sft_is_reproducible_and_follows_its_seed(fresh, world):
    start = fresh("gpt2", dropout=0.1)
    prints = [
        baselines.sft(start, world.forget, fit=Fit(lr=1e-3, steps=3, rows=4, seed=seed)).models["model"].fingerprint()
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


# --- dpo -------------------------------------------------------------------------------------


def preferences(records):
    """Of two answers the one of the wrong category is preferred; neither is known, so only the rule can be learned."""
    rng = np.random.default_rng(0)
    answers = [str(rng.choice(r.perturbed)) for r in records]
    answered = zip(records, answers, strict=True)
    return [Preference(prompt=r.prompt, chosen=f"the {answer}, sir", rejected=answer) for r, answer in answered]


@pytest.mark.parametrize("arch", EFFECTS)
def test_dpo_carries_a_preference_to_prompts_it_never_saw(arch, taught, world):
    start = taught(arch)
    train, held_out = preferences(world.retain[:40]), preferences(world.holdout)
    fit = Fit(lr=1e-3, steps=30, rows=16, schedule="linear")
    result = baselines.dpo(start, train, fit=fit)
    before, after = (score("prefer", m, held_out, start) for m in (start, result.models["model"]))
    assert before["reward_accuracy"].value == 0.5 and after["reward_accuracy"].value > 0.9  # ties before
    assert after["reward_margin"].value > 3  # nats
    assert result.history[0]["dpo"] == pytest.approx(np.log(2), abs=1e-5)
    assert result.history[0]["margin"] == pytest.approx(0, abs=1e-4) and result.history[-1]["margin"] > 0.5
    assert result.history[-1]["accuracy"] == 1


def test_dpo_stays_nearer_with_a_larger_beta(taught, world):
    start, train = taught("llama"), preferences(world.retain[:40])
    moved = []
    for beta in (0.05, 2.0):
        result = baselines.dpo(start, train, beta=beta, fit=Fit(lr=1e-3, steps=20, rows=16))
        moved.append(result.history[-1]["margin"] / beta)
    assert moved[0] > 1.5 * moved[1] > 0


# --- kto -------------------------------------------------------------------------------------


def judged(pairs):
    """The sides of pairs, each judged separately."""
    return list(convert.serve("judged", {"preference": pairs}))


@pytest.mark.parametrize("arch", EFFECTS)
def test_kto_carries_thumbs_up_and_down_to_prompts_it_never_saw(arch, taught, world):
    start = taught(arch)
    train, held_out = preferences(world.retain[:40]), preferences(world.holdout)
    result = baselines.kto(start, judged(train), fit=Fit(lr=1e-3, steps=30, rows=16))
    after = score("prefer", result.models["model"], held_out, start)
    assert after["reward_accuracy"].value > 0.9
    assert result.history[0]["kto"] == pytest.approx(0.5, abs=1e-5)  # r = z = 0
    assert result.history[-1]["kto"] < 0.45 and result.history[-1]["accuracy"] > 0.8


def test_kto_with_thumbs_down_alone_lowers_what_was_judged(taught, world):
    start = taught("llama")
    bad = [j for j in judged(preferences(world.retain[:40])) if not j.label]
    model = baselines.kto(start, bad, fit=Fit(lr=1e-3, steps=20, rows=16)).models["model"]
    demos = [Demo(prompt=j.prompt, completion=j.completion) for j in bad]
    assert probability(model, demos) < 0.5 * probability(start, demos)


def test_kto_needs_two_records(fresh, world):
    with pytest.raises(UserError, match="two records"):
        baselines.kto(fresh("llama"), judged(preferences(world.retain[:1]))[:1])


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=9))
def test_a_divergence_is_never_taken_over_an_answer_to_the_same_prompt(prompts):
    result = kto._strangers(prompts)
    if len(set(prompts)) == 1:
        assert result == [*range(1, len(prompts)), 0]
    else:
        assert all(prompts[i] != prompts[j] for i, j in enumerate(result))
    if all(a != b for a, b in zip(prompts, [*prompts[1:], prompts[0]], strict=True)):
        assert result == [*range(1, len(prompts)), 0]  # as before


def test_the_reference_is_asked_for_what_training_sees_alone(taught, world):
    start, rows = taught("llama"), world.forget
    both = [(r, rows[(i + 1) % len(rows)]) for i, r in enumerate(rows)]
    records = [Preference(prompt=r.prompt, chosen=r.completion, rejected=o.completion) for r, o in both]
    fit = Fit(lr=1e-3, steps=2, rows=2, seed=3)
    with cache.private(), cost.metered() as meter:
        result = baselines.dpo(start, records, fit=fit)
    tokens = meter.tokens
    items = pairs.groups(start, records)
    longest = max(r.size for item in items for r in item)
    assert tokens <= 4 * 2 * 4 * longest  # two sides of four pairs: once by the reference, three times in training
    whole = language.reference_logp(start, items)
    loss = preference.dpo

    def of(logp, ref, index):
        return loss(logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1], 0.1, 0.0)

    same = pairs.train(start, items, of, fit, reference=whole, name="dpo")
    assert [row["loss"] for row in result.history] == pytest.approx([row["loss"] for row in same.history], rel=1e-5)

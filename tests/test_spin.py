"""SPIN is DPO against the model's own answers; it moves a model to the demonstrations and stops where they agree."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import EFFECTS, f64

from didact import alignment, baselines
from didact.claims import lab
from didact.claims.alignment import spin_example
from didact.data import encode
from didact.infer import generate
from didact.objectives import preference
from didact.types import Demo, Fit, Messages
from didact.worlds.grammar import Grammar

LOSSES = ("logistic", "hinge", "exponential", "correlation")
SHORT = {"rounds": 1, "lam": (1.0,), "lr_factors": (1.0,), "max_new_tokens": 8}
numbers = st.floats(-40, 40)


# --- the loss --------------------------------------------------------------------------------


@given(numbers, numbers, numbers, numbers, st.floats(0.01, 6))
def test_spin_is_dpo_to_the_last_bit(real, own, ref_real, ref_own, lam):
    sides = [torch.tensor([x]) for x in (real, own, ref_real, ref_own)]
    assert torch.equal(preference.spin(*sides, lam), preference.dpo(*sides, lam))


def test_the_other_convex_losses():
    z = f64(-2.0, 0.0, 0.5, 1.0, 3.0)
    assert preference.pairwise(z, "hinge").tolist() == [3, 1, 0.5, 0, 0]
    assert preference.pairwise(z, "correlation").tolist() == [3, 1, 0.5, 0, -2]
    assert torch.allclose(preference.pairwise(z, "exponential").log(), -z)
    assert torch.allclose(preference.pairwise(z), torch.log1p(torch.exp(-z)))


@pytest.mark.parametrize("loss", LOSSES)
@given(a=st.floats(-20, 20), b=st.floats(-20, 20), share=st.floats(0, 1))
def test_every_loss_is_convex_and_falls(loss, a, b, share):
    low, high = sorted((a, b))
    at_low, at_high, between = preference.pairwise(f64(low, high, share * low + (1 - share) * high), loss)
    assert at_high <= at_low + 1e-9
    assert between <= share * at_low + (1 - share) * at_high + 1e-6 * (1 + at_low.abs())


# --- the optimum, without a network ----------------------------------------------------------


def population_loss(logits, opponent, data, lam):
    """Return the expected loss over y ~ data, y' ~ opponent, all outcomes enumerated."""
    logp, ref_logp = logits.log_softmax(0), opponent.log()
    pairs = preference.spin(logp[:, None], logp[None, :], ref_logp[:, None], ref_logp[None, :], lam)
    return (data[:, None] * opponent[None, :] * pairs).sum()


def solved(opponent, data, lam):
    logits = opponent.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = population_loss(logits, opponent, data, lam)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(0)


@pytest.fixture(scope="module")
def tabular():
    torch.manual_seed(0)
    return torch.randn(20, dtype=torch.float64).softmax(0), torch.randn(20, dtype=torch.float64).softmax(0)


@pytest.mark.parametrize("lam", [0.8, 1.0, 2.0])
def test_a_solved_round_is_the_closed_form(lam, tabular):
    opponent, data = tabular
    expected = opponent * (data / opponent) ** (1 / lam)
    assert torch.allclose(solved(opponent, data, lam), expected / expected.sum(), atol=1e-6)


def test_lam_1_reaches_the_data_in_one_round_and_lam_2_halves_the_way_every_round(tabular):
    opponent, data = tabular
    assert torch.allclose(solved(opponent, data, 1.0), data, atol=1e-6)
    policy = opponent
    for _ in range(3):
        after = solved(policy, data, 2.0)
        gap, remaining = ((p / data).log() for p in (policy, after))
        assert torch.allclose(remaining - remaining.mean(), (gap - gap.mean()) / 2, atol=1e-5)
        policy = after


def test_without_the_reference_the_optimum_is_another(tabular):
    opponent, data = tabular
    logits = opponent.log().clone().requires_grad_()
    logp = logits.log_softmax(0)
    free = preference.spin(logp[:, None], logp[None, :], 0.0, 0.0, 1.0)
    (data[:, None] * opponent[None, :] * free).sum().backward()
    assert logits.grad.abs().max() > 1e-2


# --- the effect ------------------------------------------------------------------------------


TINY = Grammar(classes=2, letters=6, follow=2, given=2, shortest=3, longest=5, seed=0)


def demos(part=1, n=256):
    return TINY.demos(part, n)


@lab.shared
def start(arch):
    return spin_example.tuned(demos(), 0, arch, spin_example.TEACH.replace(steps=100))


def validity(model):
    """Return the share of sampled answers to held-out prompts that the grammar allows."""
    prompts = [d.prompt for d in demos(2)]
    return lab.mean(map(TINY.valid, prompts, lab.sampled(model, prompts, 8, seed=5)))


def nll(model, pairs):
    return -float(lab.logp(model, pairs)[0].mean())


@pytest.mark.parametrize("arch", EFFECTS)
def test_spin_moves_samples_on_unseen_prompts_to_the_grammar(arch):
    model = start(arch)
    before = model.fingerprint()
    fit = Fit(lr=3e-3, steps=60, rows=32, schedule="constant")  # on some processors 25 steps are too few
    result = alignment.spin(model, demos(), **{**SHORT, "rounds": 2}, fit=fit)
    taught = result.models["model"]
    assert validity(taught) > 1.5 * validity(model) > 0
    assert nll(taught, demos(2)) < nll(model, demos(2)) - 0.2
    assert model.fingerprint() == before
    first, second = (next(r for r in result.history if r["round"] == n) for n in (0, 1))
    for row in (first, second):  # each round starts from its opponent's weights
        assert row["spin"] == pytest.approx(math.log(2), abs=1e-5) and row["margin"] == pytest.approx(0, abs=1e-4)
    assert result.history[24]["accuracy"] > 0.6 and result.history[24]["margin"] > 0.1
    findings = result.findings["rounds"]
    assert [t["lam"] for t in findings] == [1.0, 1.0] and findings[0]["pairs"] == 256
    assert findings[0]["ended_real"] == 1.0 and 5 < findings[0]["length_real"] < 7
    assert {"logp_real_first", "logp_real_last", "logp_own_first", "logp_own_last"} <= set(findings[1])
    assert len(result.records) == 512 and {r.extra["round"] for r in result.records} == {0, 1}


GREEDY = 1e-4  # a temperature so low that the likeliest answer is sampled, whatever the seed


def tame(model, records):
    """Return demonstrations whose greedy answer ends and re-tokenizes to the same tokens, and those answers."""
    config, out = generate.SamplingConfig(max_new_tokens=8), []
    for d, (completions,) in zip(
        records, generate.completions(model, [d.prompt for d in records], 1, config), strict=True
    ):
        row = encode.row(model.tokenizer, d.prompt, completions.text or "?", model.kind, model.context)
        if row.completion == completions.tokens:
            out.append((d, Demo(prompt=d.prompt, completion=completions.text)))
    assert len(out) >= 8
    return out


def test_answers_that_are_the_demonstrations_teach_nothing():
    """The null: with y' = y the margin is 0 whatever the weights, and so is the gradient."""
    model = start("llama")
    own = [d for _, d in tame(model, demos(n=48))]
    fit = Fit(lr=1e-2, steps=2, rows=8, optimizer="sgd")
    result = alignment.spin(model, own, **SHORT, temperature=GREEDY, fit=fit)
    assert result.findings["rounds"][0]["same"] == 1.0 and result.history[-1]["grad_norm"] < 1e-5
    assert nll(result.models["model"], own) == pytest.approx(nll(model, own), abs=1e-5)


def test_a_round_of_spin_is_dpo_on_its_own_pairs_to_the_last_bit():
    """Over the whole training: DPO on the pairs SPIN returns gives the same weights."""
    model = start("llama")
    records, fit = [d for d, _ in tame(model, demos(n=32))], Fit(lr=1e-3, steps=5, rows=8)
    mine = alignment.spin(model, records, **{**SHORT, "lam": (0.5,)}, temperature=GREEDY, fit=fit)
    theirs = baselines.dpo(model, mine.records, beta=0.5, fit=fit)
    assert [r["spin"] for r in mine.history] != [math.log(2)] * 5
    assert {r.rejected for r in mine.records} == {own.completion for _, own in tame(model, demos(n=32))}
    assert mine.models["model"].fingerprint() == theirs.models["model"].fingerprint()


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "pairs"), [("current", [16, 16, 16]), ("previous", [16, 32, 32]),
                                               ("all", [16, 32, 48])])  # fmt: skip
def test_the_window_says_which_rounds_pairs_are_taught(window, pairs):
    options = {**SHORT, "rounds": 3, "window": window}
    result = alignment.spin(start("gpt2"), demos(n=16), **options, fit=Fit(lr=1e-4, epochs=1, rows=8))
    rounds = [row["round"] for row in result.history]
    assert [rounds.count(n) * 8 for n in range(3)] == pairs


def test_several_samples_of_a_prompt_are_pairs_of_their_own():
    result = alignment.spin(start("llama"), demos(n=8), **SHORT, samples=3, fit=Fit(lr=1e-4, epochs=1, rows=8))
    assert len(result.records) == 24 and result.findings["rounds"][0]["pairs"] == 24
    assert len({r.rejected for r in result.records[:3]}) > 1


def test_lam_and_rate_follow_the_rounds_and_their_last_goes_on():
    options = {**SHORT, "rounds": 3, "lam": (0.1, 2.0), "lr_factors": (1.0, 0.5)}
    result = alignment.spin(
        start("gpt2"), demos(n=16), **options, fit=Fit(lr=1e-3, steps=2, rows=8, schedule="constant")
    )
    assert [t["lam"] for t in result.findings["rounds"]] == [0.1, 2.0, 2.0]
    assert [row["lr"] for row in result.history[::2]] == [1e-3, 5e-4, 5e-4]


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_every_loss_starts_at_its_own_height_and_widens_the_margin(loss):
    result = alignment.spin(start("llama"), demos(n=64), **SHORT, loss=loss, fit=Fit(lr=1e-3, steps=10, rows=16))
    assert result.history[0]["loss"] == pytest.approx(1.0, abs=1e-4)
    assert result.history[-1]["margin"] > 0.1


def test_without_a_reference_the_loss_starts_elsewhere():
    records, fit = demos(n=16), Fit(lr=1e-4, steps=1, rows=16)
    row = alignment.spin(start("llama"), records, **SHORT, reference_free=True, fit=fit).history[0]
    assert abs(row["loss"] - math.log(2)) > 1e-2 and row["margin"] == pytest.approx(0, abs=1e-4)


def test_the_sft_term_keeps_the_log_prob_of_the_demonstrations_up():
    fit = Fit(lr=1e-3, steps=20, rows=16)
    plain, held = (
        alignment.spin(start("llama"), demos(n=64), **SHORT, sft_weight=w, fit=fit).history[-1] for w in (0.0, 1.0)
    )
    assert held["logp_real"] > plain["logp_real"]


def test_long_demonstrations_and_answers_are_cut_alike():
    model = start("gpt2")
    result = alignment.spin(model, demos(n=32), **{**SHORT, "max_new_tokens": 3}, fit=Fit(lr=1e-4, steps=1, rows=8))
    findings = result.findings["rounds"][0]
    assert findings["length_real"] == 3 and findings["ended_real"] == 0.0 and findings["ended_own"] < 0.3


def test_sides_that_their_ends_give_away_are_told(fresh):
    records = [Demo(prompt=f"Question {i}?", completion="yes") for i in range(8)]
    result = alignment.spin(
        fresh("llama"), records, **{**SHORT, "max_new_tokens": 6}, fit=Fit(lr=1e-4, steps=1, rows=8)
    )
    assert len(result.warnings) == 1 and "come to an end" in result.warnings[0]


def test_conversations_serve(fresh):
    prompt = Messages([{"role": "user", "content": "Where?"}])
    records = [Demo(prompt="Where is it?", completion="Osso"), Demo(prompt=prompt, completion="Tarn")] * 4
    result = alignment.spin(fresh("gpt2"), records, **SHORT, fit=Fit(lr=1e-4, steps=1, rows=8))
    assert result.records[0].chosen == "Osso" and result.records[-1].prompt == prompt

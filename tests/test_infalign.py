"""Calibration, transforms and win rates follow the paper's formulas; the policy is trained for its decoding."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import EFFECTS

from didact import alignment
from didact.claims import lab
from didact.claims.alignment import d2o_example
from didact.evaluate import protocols, win_rates
from didact.evaluate.protocols import Scoring
from didact.infer.generate import SamplingConfig
from didact.objectives import policy, rewards
from didact.types import Fit, Text, UserError
from didact.worlds.grammar import Grammar

U = rewards.grid()
SAMPLE = rewards.procedure("sample")
TINY = Grammar(classes=2, letters=6, follow=2, given=2, shortest=3, longest=5, seed=0)
values = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def bon(n):
    return rewards.procedure(f"bon:{n}")


def won(n):
    return rewards.procedure(f"won:{n}")


# --- calibration -----------------------------------------------------------------------------


@given(values, st.floats(0.1, 9), st.floats(-5, 5))
def test_calibrated_rewards_have_mean_a_half_and_ignore_increasing_maps(r, stretch, shift):
    r = np.array(r, dtype=float)
    c = rewards.calibrate(r, r)
    assert c.mean() == pytest.approx(0.5) and ((c >= 0) & (c <= 1)).all()
    assert np.allclose(rewards.calibrate(stretch * r**3 + shift, stretch * r**3 + shift), c)
    assert np.allclose(rewards.calibrate(-r, -r), 1 - c)


@given(values, st.integers(0, 99))
def test_weights_are_copies(r, seed):
    counts = np.random.default_rng(seed).integers(1, 4, len(r))
    copies = np.repeat(np.array(r, float), counts)
    assert np.allclose(rewards.calibrate(r, r, counts / counts.sum()), rewards.calibrate(r, copies))
    assert np.allclose(rewards.calibrate([r], [copies]), [rewards.calibrate(r, copies)])  # a scale per prompt


def test_ties_alone_are_a_half():
    assert (rewards.calibrate(np.full((2, 3), 7.0), np.full((2, 5), 7.0)) == 0.5).all()
    assert rewards.calibrate([1.0, 2.0, 3.0], [2.0]).tolist() == [0.0, 0.5, 1.0]


# --- the analytic table ----------------------------------------------------------------------

TABLE = {  # at KL 0.5: identity (W, best, worst), log, then best of N at t = 5, 10, worst at -5, -10, and the optima
    2: [(0.774, 0.792, 0.840), (0.768, 0.768, 0.856), 0.815, 0.803, 0.859, 0.851, 0.815, 0.860],
    4: [(0.774, 0.800, 0.886), (0.768, 0.768, 0.927), 0.857, 0.872, 0.944, 0.948, 0.873, 0.948],
    8: [(0.774, 0.804, 0.912), (0.768, 0.768, 0.971), 0.875, 0.904, 0.987, 0.992, 0.930, 0.993],
}


@pytest.mark.parametrize("n", TABLE)
def test_the_table_of_the_card(n):
    def at(name, t=0.0):
        return rewards.at_kl(rewards.transform(U, name, t, floor=1e-9), 0.5)[1]

    identity, log, *rest = TABLE[n]
    for result, expected in ((at("identity"), identity), (at("log"), log)):
        assert [result.win_rate(p) for p in (SAMPLE, bon(n), won(n))] == pytest.approx(expected, abs=3e-3)
        assert result.kl == pytest.approx(0.5, abs=1e-6)
    exps = [at("exp", t).win_rate(p) for t, p in ((5, bon(n)), (10, bon(n)), (-5, won(n)), (-10, won(n)))]
    assert exps == pytest.approx(rest[:4], abs=3e-3)


@pytest.mark.parametrize(("to", "beta", "optimum"), [(bon(2), 0.2340, 0.815), (bon(4), 0.2166, 0.873),
                                                    (won(2), 0.2805, 0.860), (won(4), 0.2084, 0.948)])  # fmt: skip
def test_the_fixed_points_reach_the_optima_of_the_card(to, beta, optimum):
    phi = rewards.fixed_point(to, beta)
    result = rewards.curve(phi, beta)
    assert result.kl == pytest.approx(0.5, abs=2e-3) and result.win_rate(to) == pytest.approx(optimum, abs=3e-3)
    assert np.abs(rewards.gradient(result, to) - phi).max() < 1e-8  # a fixed point: phi equals the transform it induces
    for seed in range(3):  # and no nearby policy is better
        bent = phi + 0.2 * np.interp(U, np.linspace(0, 1, 6), np.random.default_rng(seed).normal(size=6))
        other = rewards.curve(bent, beta)
        assert other.win_rate(to) - beta * other.kl < result.win_rate(to) - beta * result.kl


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_closed_forms(beta):
    log, a = rewards.curve(np.log(U), beta), 1 + 1 / beta
    assert np.allclose(log.cdf, U**a, atol=2e-3)
    for to in (SAMPLE, bon(2), bon(8)):
        assert log.win_rate(to) == pytest.approx(a / (a + 1), abs=1e-3)
    assert log.kl == pytest.approx(math.log(a) - (a - 1) / a, abs=2e-3)
    identity = rewards.curve(U, beta)
    assert identity.win_rate(SAMPLE) == pytest.approx(1 + 1 / math.expm1(1 / beta) - beta, abs=1e-5)
    assert np.allclose(rewards.fixed_point(SAMPLE, beta), -(1 - U), atol=1e-3)  # identity up to a constant


@given(st.floats(-12, 12), st.floats(0.1, 3), st.floats(0.1, 9), st.floats(-4, 4), st.integers(1, 6))
def test_symmetries_of_the_curve(t, beta, stretch, shift, n):
    phi = rewards.transform(U, "exp", t)
    result = rewards.curve(phi, beta)
    same = rewards.curve(stretch * phi + shift, stretch * beta)
    assert np.allclose(same.density, result.density, rtol=1e-6)
    mirrored = rewards.curve(phi[::-1], beta)
    assert result.win_rate(won(n)) == pytest.approx(1 - mirrored.win_rate(bon(n)), abs=1e-3)
    assert result.kl >= -1e-9 and -1e-9 <= result.win_rate(bon(n)) <= n / (n + 1) + 1 / 2
    assert result.win_rate(bon(1)) == pytest.approx(result.win_rate(won(1))) == pytest.approx(result.win_rate(SAMPLE))


def test_a_constant_moves_nothing_and_best_of_n_is_its_own_policy():
    flat = rewards.curve(np.zeros(rewards.GRID), 0.3)
    for to in (SAMPLE, bon(4), won(4)):
        assert flat.win_rate(to) == pytest.approx(0.5, abs=1e-6)
    assert flat.kl == pytest.approx(0, abs=1e-12)
    four = rewards.curve(np.log(U), 1 / 3)
    assert four.win_rate(SAMPLE) == pytest.approx(4 / 5, abs=1e-3)
    assert four.kl == pytest.approx(math.log(4) - 3 / 4, abs=2e-3)


def test_a_procedure_of_ones_own():
    mine = rewards.custom("bon by hand", lambda u: 7 * u**3)
    result = rewards.curve(U, 0.3)
    assert result.win_rate(mine) == pytest.approx(result.win_rate(bon(4)), abs=1e-3)
    assert np.allclose(rewards.fixed_point(mine, 1.0), rewards.fixed_point(bon(4), 1.0), atol=2e-2)
    with pytest.raises(ValueError, match="not be negative"):
        rewards.custom("wrong", lambda u: u - 0.5)


def test_exponents_and_scales():
    assert [rewards.recommended(p) for p in (SAMPLE, bon(2), bon(4), won(2), won(4))] == [0, 5, 10, -5, -10]
    for t in (10.0, -10.0):
        phi = rewards.transform(U, "exp", t)
        assert np.abs(phi).max() <= 1 and (np.diff(phi) > 0).all() and (np.sign(phi) == np.sign(t)).all()
    near, limit = (rewards.transform(U, "exp", t) for t in (1e-4, 0.0))
    assert np.allclose((near - near.mean()) / near.std(), (limit - limit.mean()) / limit.std(), atol=1e-3)
    assert rewards.transform([0.0, 1.0], "log", floor=0.005).tolist() == [math.log(0.005), 0.0]


# --- win rates -------------------------------------------------------------------------------


def distributions(seed, n=6, ties=False):
    rng = np.random.default_rng(seed)
    r = rng.integers(0, 3, n) if ties else rng.permutation(n)
    return rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n)), r.astype(float)


@given(st.integers(0, 200), st.booleans(), st.integers(1, 5))
def test_a_policy_is_even_with_itself_and_sides_sum_to_one(seed, ties, n):
    p, q, r = distributions(seed, ties=ties)
    for to in (SAMPLE, bon(n), won(n)):
        assert win_rates.decoded(p, r, to).sum() == pytest.approx(1)
        assert win_rates.win_rate(p, r, p, r, to) == pytest.approx(0.5)
        assert win_rates.win_rate(p, r, q, r, to) == pytest.approx(1 - win_rates.win_rate(q, r, p, r, to))
    assert win_rates.win_rate(p, r, q, r, won(n)) == pytest.approx(1 - win_rates.win_rate(p, -r, q, -r, bon(n)))


@pytest.mark.parametrize("to", [bon(3), won(3)])
@pytest.mark.parametrize("ties", [True, False])
def test_exact_win_rates_are_what_a_sampler_gives(to, ties):
    p, q, r = distributions(3, ties=ties)
    rng, m = np.random.default_rng(0), 200_000
    ends = []
    for x in (p, q):
        samples = r[rng.choice(len(r), size=(m, 3), p=x)]
        ends.append(samples.max(1) if to.n > 0 else samples.min(1))
    wins = (ends[0] > ends[1]) + 0.5 * (ends[0] == ends[1])
    assert win_rates.win_rate(p, r, q, r, to) == pytest.approx(wins.mean(), abs=4 * wins.std() / math.sqrt(m))


def test_many_answers_are_the_continuous_limit():
    n, phi = 4000, rewards.transform(np.arange(4000) / 4000, "exp", 10.0)
    p, q = np.exp(phi / 0.2), np.full(n, 1 / n)
    result, limit = p / p.sum(), rewards.curve(rewards.transform(U, "exp", 10.0), 0.2)
    for to in (SAMPLE, bon(4), won(4)):
        assert win_rates.win_rate(result, np.arange(n), q, np.arange(n), to) == pytest.approx(
            limit.win_rate(to), abs=2e-3
        )


def test_a_judge_says_who_wins_among_what_the_reward_picked():
    """Best of two samples each; the reward picks the last in 3 of 4 cases, the judge prefers the first."""
    reward, judge = np.array([1.0, 2.0]), np.array([9.0, 4.0])
    mine, theirs = [np.array([1.0, 2.0, 2.0])], [np.array([0.0, 2.0])]  # ties count a half
    assert win_rates.from_draws(mine, theirs, SAMPLE) == [pytest.approx((0.5 + 0.75 + 0.75) / 3)]
    one, ref = [reward], [np.array([0.0, 1.0])]
    scores = win_rates.from_draws(one, ref, bon(2), [(judge, np.array([5.0, 5.0]))])
    assert scores == [pytest.approx(1 / 4)] and win_rates.from_draws(one, ref, bon(2)) > [0.8]
    assert win_rates.from_draws(one, ref, SAMPLE, [(judge, np.array([5.0, 5.0]))]) == [pytest.approx(1 / 2)]


# --- the policy gradient ---------------------------------------------------------------------


def test_leave_one_out_is_the_mean_of_the_others():
    r = torch.randn(5, 4, dtype=torch.float64)
    others = torch.stack([r[:, [j for j in range(4) if j != i]].mean(1) for i in range(4)], 1)
    assert torch.allclose(policy.leave_one_out(r), r - others)
    assert torch.allclose(policy.leave_one_out(r + 3), policy.leave_one_out(r))


def test_the_expected_gradient_is_the_objectives():
    """With all pairs of samples enumerated, RLOO's mean gradient is that of E[R] - beta KL."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ref, reward, beta = torch.randn(5, dtype=torch.float64).log_softmax(0), torch.randn(5, dtype=torch.float64), 0.7
    logp = logits.log_softmax(0)
    expected = torch.autograd.grad((logp.exp() * (reward - beta * (logp - ref))).sum(), logits, retain_graph=True)[0]
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    two = torch.stack([i, j], 1)
    old = logp.detach()[two]
    advantage = policy.leave_one_out(policy.penalised(reward[two], old, ref[two], beta))
    loss = policy.clipped(logp[two], old, advantage).mean(1)
    actual = torch.autograd.grad((old.sum(1).exp() * loss).sum(), logits)[0]
    assert torch.allclose(actual, -expected, atol=1e-12)


def test_the_clip_stops_an_answer_that_has_moved_far_enough():
    old = torch.zeros(4, dtype=torch.float64)
    logp = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    policy.clipped(logp, old, torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)).sum().backward()
    assert [g != 0 for g in logp.grad.tolist()] == [False, True, True, False]


# --- the method ------------------------------------------------------------------------------


def likes_a(prompts, completions):
    """Return the number of a's in an answer, on a scale that differs by prompt."""
    return [hash_of(p) * c.count("a") + 100 * hash_of(p) for p, c in zip(prompts, completions, strict=True)]


def hash_of(text):
    return 1 + sum(text.encode()) % 7


SHORT = SamplingConfig(max_new_tokens=8, temperature=1.0)
HOW = {"reward": likes_a, "k": 40, "rounds": 3, "samples": 6, "sampling": SHORT}
FIT = Fit(lr=2e-3, rows=16, schedule="constant")


def texts(part, n=32):
    return [Text(text=d.prompt) for d in TINY.demos(part, n)]


@lab.shared
def start(arch):
    return d2o_example.tuned(TINY.demos(1, 256), 0, arch, steps=80)


def win_rates_of(result, start, prompts, **options):
    """Return the win rates of a result's model over its start."""
    options = {"decoding": "bon:4", **HOW, **options}
    scoring = Scoring(records={"prompts": prompts}, start=start, options=options)
    protocol = protocols.by_name("win_rate")
    assert {m.value for m in protocol.score(start, scoring).values()} == {0.5, 0.0}  # even with itself
    return protocol.score(result.models["model"], scoring)


def share(model):
    """Return the mean number of a's in sampled answers to held-out prompts."""
    return lab.mean(a.count("a") for a in lab.sampled(model, [d.prompt for d in TINY.demos(2, 128)], 8, seed=5))


@pytest.mark.parametrize("arch", EFFECTS)
def test_unseen_prompts_are_answered_with_more_reward_and_win_decoded(arch):
    model = start(arch)
    before = model.fingerprint()
    result = alignment.infalign(model, texts(3), **HOW, beta=0.02, fit=FIT)
    taught = result.models["model"]
    assert share(taught) > share(model) + 0.3 and model.fingerprint() == before
    scores = win_rates_of(result, model, texts(2, 16))
    assert scores["best_of_4"].ci[0] > 0.5 and scores["win_rate"].value > 0.5 and scores["kl"].value > 0
    rounds = result.findings["rounds"]
    assert rounds[0]["calibrated"] == pytest.approx(0.5, abs=0.06) and rounds[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert rounds[-1]["calibrated"] > 0.55 and result.findings["t"] == 10.0
    best = result.predict([d.prompt for d in TINY.demos(2, 32)])
    assert sum(x.count("a") for x in best) / 32 > share(taught)


def test_the_worst_of_n_is_decoded_as_such_and_turned_rewards_go_the_other_way():
    model = start("llama")
    options = {"reward": lambda p, c: [-x for x in likes_a(p, c)], "decoding": "won:2"}
    result = alignment.infalign(model, texts(3), **{**HOW, **options}, fit=FIT)
    assert share(result.models["model"]) < share(model) and result.findings["t"] == -5.0
    scores = win_rates_of(result, model, texts(3), **options)
    assert set(scores) == {"win_rate", "worst_of_2", "kl"} and scores["worst_of_2"].value > 0.5
    assert "that was trained on" in scores["win_rate"].help and not result.warnings


@pytest.mark.parametrize(("options", "invariant"), [({}, True), ({"calibration": "none"}, False),
                                               ({"calibration": "global"}, False)])  # fmt: skip
def test_only_calibration_by_prompt_ignores_how_a_prompt_is_scaled(options, invariant):
    settings = {**HOW, **options, "rounds": 1, "transform": "identity"}

    def plain(prompts, completions):
        return [float(c.count("a")) for c in completions]

    one, other = (
        alignment.infalign(start("llama"), texts(3, 8), **{**settings, "reward": r}, fit=FIT)
        .models["model"]
        .fingerprint()
        for r in (likes_a, plain)
    )
    assert (one == other) == invariant


def test_for_sampling_the_exponent_is_that_of_the_identity():
    options = {**HOW, "rounds": 1, "decoding": "sample"}
    one, other = (alignment.infalign(start("llama"), texts(3, 8), **options, **extra, fit=FIT)
                  for extra in ({}, {"transform": "identity"}))  # fmt: skip
    assert one.models["model"].fingerprint() == other.models["model"].fingerprint()
    scores = win_rates_of(one, start("llama"), texts(3, 8), decoding="sample")
    assert set(scores) == {"win_rate", "kl"} and any(row["policy"] for row in one.history)


def test_a_held_out_judge_is_asked_about_what_the_reward_picks():
    judge = {"judge": lambda p, c: [-x for x in likes_a(p, c)]}
    result = alignment.infalign(start("llama"), texts(3), **{**HOW, "rounds": 1}, **judge, fit=FIT)
    scores = win_rates_of(result, start("llama"), texts(3), **judge)
    assert "by the judge" in scores["win_rate"].help
    assert scores["best_of_4"].value < scores["win_rate"].value < 0.5  # the judge prefers fewer a's


def test_beta_is_steered_to_a_distance():
    far, near = (
        alignment.infalign(start("gpt2"), texts(3), **{**HOW, "rounds": 5}, beta=0.02, kl=kl, fit=FIT)
        for kl in (50.0, 0.01)
    )
    far, near = far.findings["rounds"], near.findings["rounds"]
    assert near[-1]["beta"] > 0.02 > far[-1]["beta"] and near[-1]["kl"] < far[-1]["kl"]


def test_the_same_command_goes_on_in_its_folder(tmp_path):
    options, requests = {**HOW, "kl": 1.0, "rounds": 2}, []

    def counted(prompts, completions):
        requests.append(len(prompts))
        return likes_a(prompts, completions)

    def go(rounds, folder):
        fit = FIT.replace(folder=str(folder))
        return alignment.infalign(
            start("llama"), texts(3, 8), **{**options, "reward": counted, "rounds": rounds}, fit=fit
        )

    whole = go(2, tmp_path / "whole")
    go(1, tmp_path / "cut")
    requests.clear()
    rest = go(2, tmp_path / "cut")
    assert rest.models["model"].fingerprint() == whole.models["model"].fingerprint()
    assert rest.findings == whole.findings and 8 * 40 not in requests  # the reference was not sampled again
    saved = [[json.loads(line) for line in (tmp_path / "cut" / "infalign" / "round-0" / f"{name}.jsonl").open()]
            for name in ("reference", "samples")]  # fmt: skip
    assert [len(rows) for rows in saved] == [8, 8]  # samples and reference samples are drawn separately
    assert all(reference[: len(row)] != row for reference, row in zip(*saved, strict=True))


@pytest.mark.parametrize("options", [{"decoding": "best"}, {"decoding": "bon:0"}, {"reward": ""},
                                     {"reward": "no.module:there"},
                                     {"transform": "fixed-point", "kl": 1.0}, {"calibration": "none"},
                                     {"reward": lambda p, c: [math.nan] * len(c)}])  # fmt: skip
def test_what_is_wrong_is_one_line(options, fresh):
    with pytest.raises(UserError) as error:
        alignment.infalign(fresh("llama"), texts(3, 2), **{**HOW, **options}, fit=FIT)
    assert "\n" not in str(error.value)

"""Every known answer of the NPO card, in float64; identities between the losses; invalid inputs."""

import math

import pytest
import torch
import torch.nn.functional as F

from didact.objectives import preference, reduce
from didact.objectives import tokens as token_functions

BETAS = [0.01, 0.1, 0.5, 1.0, 4.5]
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def gradient(f, *at):
    at = [a.clone().requires_grad_() for a in at]
    return torch.autograd.grad(f(*at).sum(), at)


def drawn(*shape):
    return 3 * torch.randn(*shape)


# --- the preference core ---------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_npo_at_the_reference_is_two_ln_two_over_beta_with_the_gradient_of_ascent(beta):
    logp = drawn(5)
    torch.testing.assert_close(preference.npo(logp, logp, beta), torch.full((5,), 2 / beta * math.log(2)), **EXACT)
    (grad,) = gradient(lambda x: preference.npo(x, logp, beta), logp)
    # The gradient of +logp: gradient ascent on the sequence sum
    torch.testing.assert_close(grad, torch.ones(5), **EXACT)


@pytest.mark.parametrize("beta", BETAS)
def test_npos_gradient_is_w_times_ascents_everywhere(beta):
    logp, ref = drawn(7), drawn(7)
    (grad,) = gradient(lambda x: preference.npo(x, ref, beta), logp)
    torch.testing.assert_close(grad, preference.npo_weight(logp, ref, beta), **EXACT)


def test_npo_goes_to_ascent_as_beta_goes_to_zero_with_the_known_error():
    ratio = torch.tensor([-2.0, -0.3, 0.0, 0.7, 1.5])
    for beta in (1e-1, 1e-2, 1e-3):
        remainder = preference.npo(ratio, torch.zeros(5), beta) - 2 / beta * math.log(2)
        error = (remainder - (ratio + beta * ratio**2 / 4)).abs().max()
        assert error < 0.1 * beta**2  # the next term: 0 in beta^2, r^4 beta^3 / 96 after it
    assert (remainder - ratio).abs().max() < 2e-3


def test_npo_is_never_negative_and_ascent_has_no_bound():
    ratio = torch.tensor([-1e4, -300.0, -1.0, 0.0, 5.0, 300.0])
    loss = preference.npo(ratio, torch.zeros(6), 0.5)
    assert (loss >= 0).all() and torch.isfinite(loss).all()
    assert loss[0] == 0 and loss[-1] == pytest.approx(600)


def test_weights_of_swapped_roles_sum_to_two():
    logp, ref = drawn(9), drawn(9)
    total = preference.npo_weight(logp, ref, 0.3) + preference.npo_weight(ref, logp, 0.3)
    torch.testing.assert_close(total, torch.full((9,), 2.0), **EXACT)


@pytest.mark.parametrize(("share", "loss", "weight"), [(1.0, 1.386294, 1.0), (1 / 3, 0.575364, 0.5)])
def test_npo_at_beta_one_in_numbers(share, loss, weight):
    logp, ref = torch.tensor([math.log(share) - 4.0]), torch.tensor([-4.0])
    assert preference.npo(logp, ref, 1.0).item() == pytest.approx(loss, abs=5e-7)
    assert preference.npo_weight(logp, ref, 1.0).item() == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_npo_is_dpo_without_the_chosen_term_on_the_papers_scale(beta):
    logp, ref, chosen = drawn(6), drawn(6), drawn(6)
    as_dpo = 2 / beta * preference.dpo(chosen, logp, chosen, ref, beta)
    torch.testing.assert_close(as_dpo, preference.npo(logp, ref, beta), rtol=1e-13, atol=1e-12)


def test_dpo_in_numbers_and_directions():
    one = torch.ones(1)
    margin = preference.dpo(2 * one, -one, one, 0 * one, beta=0.5)  # 0.5 ((2 - 1) - (-1 - 0)) = 1
    assert margin.item() == pytest.approx(math.log(1 + math.exp(-1)))
    grad_w, grad_l = gradient(lambda w, l: preference.dpo(w, l, one, one, 0.5), one, one)
    assert grad_w.item() == pytest.approx(-0.25) and grad_l.item() == pytest.approx(0.25)


def test_label_smoothing_mixes_dpo_with_its_mirror_image():
    w, l, rw, rl = drawn(4, 5)
    mixed = 0.8 * preference.dpo(w, l, rw, rl, 0.3) + 0.2 * preference.dpo(l, w, rl, rw, 0.3)
    torch.testing.assert_close(preference.dpo(w, l, rw, rl, 0.3, label_smoothing=0.2), mixed, **EXACT)


def test_losses_by_name_are_the_functions_with_what_they_need():
    logp, ref, index = -torch.rand(3, 2) * 5, -torch.rand(3, 2) * 5, torch.tensor([2, 0, 1])
    sides = (logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1])
    unsure = torch.tensor([0.1, 0.2, 0.3])
    expected = {
        "dpo": preference.dpo(*sides, 0.3, unsure[index]), "ipo": preference.ipo(*sides, 0.3),
        "simpo": preference.simpo(*sides[:2], 0.3, 0.7), "orpo": preference.orpo(*sides[:2], 0.3),
    }  # fmt: skip
    for name, losses in expected.items():
        objective = preference.pair_loss(name, 0.3, 0.7, unsure)
        assert torch.equal(objective.loss(logp, ref, index), losses)
        assert objective.mean == (name in ("simpo", "orpo")) and objective.reference != objective.mean


@pytest.mark.parametrize("beta", BETAS)
def test_kto_without_a_baseline_is_npo_plus_one(beta):
    logp, ref = drawn(6), drawn(6)
    kto = preference.kto_npo(logp, ref, torch.zeros(()), beta)
    torch.testing.assert_close(kto, preference.npo(logp, ref, beta) + 1, **EXACT)


def test_the_npo_codes_kto_adds_z_unscaled_and_unclamped():
    logp, ref, z = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor(-3.0)
    inner = -3.0 - 0.1 * 2.0
    assert preference.kto_npo(logp, ref, z, 0.1).item() == pytest.approx(1 + 20 * math.log(1 + math.exp(-inner)))
    as_sigmoid = preference.kto_npo(logp, ref, z, 0.1, squash="sigmoid").item()
    assert as_sigmoid == pytest.approx(1 - 20 / (1 + math.exp(-inner)))


def test_kto_as_published_is_a_half_at_the_baseline_and_pulls_both_ways():
    at, z = torch.tensor([0.7]), torch.tensor(0.7)
    for desirable, sign in ((True, -1), (False, 1)):
        assert preference.kto(at, 0 * at, z, desirable, 0.4, weight=3.0).item() == pytest.approx(1.5)
        (grad,) = gradient(lambda x, d=desirable: preference.kto(x, 0 * at, z, d, 0.4), at)
        assert grad.item() == pytest.approx(sign * 0.4 / 4)
    # saturated: far above z a desirable answer has loss 0, an undesirable one the maximum
    far = torch.tensor([400.0])
    assert preference.kto(far, 0 * far, z, True, 0.4).item() == pytest.approx(0)
    assert preference.kto(far, 0 * far, z, False, 0.4).item() == pytest.approx(1)


def test_simnpo_is_npo_against_a_reference_of_minus_delta_nats_a_token():
    mean = drawn(6)
    for beta, delta in ((4.5, 0.0), (2.5, 0.3)):
        as_npo = preference.npo(mean, torch.full((6,), -delta), beta)
        torch.testing.assert_close(preference.simnpo(mean, beta, delta), as_npo, **EXACT)
    assert preference.simnpo(torch.zeros(1), 4.5).item() == pytest.approx(2 / 4.5 * math.log(2))


def test_simnpo_weighs_long_answers_like_short_ones_and_npo_does_not():
    per_token, lengths = torch.tensor(-0.5), torch.tensor([2.0, 20.0])
    grad = [gradient(lambda x, n=n: preference.simnpo(x * n / n), per_token)[0].item() for n in lengths]
    assert grad[0] == grad[1]
    grad = [gradient(lambda x, n=n: preference.npo(x * n, -0.5 * n), per_token)[0].item() for n in lengths]
    assert grad == pytest.approx([2.0, 20.0])


# --- from tokens to records ------------------------------------------------------------------


def test_sums_and_means_per_record_are_what_their_names_say():
    values, row = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 2, 2, 0])
    assert reduce.row_sum(values, row, 4).tolist() == [11, 0, 5, 0]
    assert reduce.row_mean(values, row, 4).tolist() == [5.5, 0, 2.5, 0]
    assert reduce.row_count(row, 4).tolist() == [2, 0, 2, 0]


# --- token functions -------------------------------------------------------------------------


def test_log_probs_entropy_and_first_choice_in_numbers():
    logits, target = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 1])
    assert token_functions.logp(logits, target).tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert token_functions.entropy(logits, target).tolist() == pytest.approx([h, math.log(2)])
    assert token_functions.correct(logits, 1 - target).tolist() == [0, 1]


def test_half_precision_logits_are_scored_in_float32():
    logits, target = drawn(3, 9).to(torch.bfloat16), torch.tensor([1, 2, 3])
    actual = token_functions.logp(logits, target)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, token_functions.logp(logits.float(), target))


def test_both_kl_directions_are_torchs():
    logits, ref, target = drawn(6, 13), drawn(6, 13), torch.zeros(6, dtype=torch.long)
    log_p, log_q = logits.log_softmax(-1), ref.log_softmax(-1)
    from_ref = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)  # KL(ref || current)
    to_ref = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)  # KL(current || ref)
    torch.testing.assert_close(token_functions.kl_from(logits, target, ref_logits=ref), from_ref, **EXACT)
    torch.testing.assert_close(token_functions.kl_to(logits, target, ref_logits=ref), to_ref, **EXACT)
    assert (from_ref - to_ref).abs().min() > 1e-3
    assert (from_ref > 0).all()


def test_kl_at_the_reference_is_zero_and_flat():
    logits, target = drawn(4, 7), torch.zeros(4, dtype=torch.long)
    for kl in (token_functions.kl_from, token_functions.kl_to):
        torch.testing.assert_close(kl(logits, target, ref_logits=logits), torch.zeros(4), **EXACT)
        (grad,) = gradient(lambda x, kl=kl: kl(x, target, ref_logits=logits), logits)
        torch.testing.assert_close(grad, torch.zeros(4, 7), **EXACT)


def test_weighted_ascent_is_ascent_times_the_detached_probability():
    logits, target = drawn(5, 7), torch.tensor([0, 1, 2, 3, 4])
    p = logits.softmax(-1)[range(5), target]
    for beta in (0.5, 1.0, 2.0):
        loss = token_functions.weighted_ascent(logits, target, beta=beta)
        torch.testing.assert_close(loss, p**beta * p.log(), **EXACT)
        (grad,) = gradient(lambda x, b=beta: token_functions.weighted_ascent(x, target, beta=b), logits)
        (ascent,) = gradient(lambda x: token_functions.logp(x, target), logits)
        torch.testing.assert_close(grad, p[:, None] ** beta * ascent, **EXACT)
    # descending it lowers the label's probability
    assert (grad[range(5), target] > 0).all()


def test_undial_at_beta_zero_is_flat_at_the_reference_and_equals_kl_plus_entropy():
    logits, ref, target = drawn(5, 7), drawn(5, 7), torch.tensor([0, 1, 2, 3, 4])
    (grad,) = gradient(lambda x: token_functions.undial(x, target, ref_logits=ref, beta=0.0), ref)
    torch.testing.assert_close(grad, torch.zeros(5, 7), **EXACT)
    split = token_functions.kl_from(logits, target, ref_logits=ref) + token_functions.entropy(ref, target)
    torch.testing.assert_close(token_functions.undial(logits, target, ref_logits=ref, beta=0.0), split, **EXACT)


def test_undials_optimum_is_the_reference_with_the_labels_logit_lowered():
    ref, target, beta = drawn(5, 7), torch.tensor([0, 1, 2, 3, 4]), 10.0
    lowered = ref - beta * F.one_hot(target, 7)
    (grad,) = gradient(lambda x: token_functions.undial(x, target, ref_logits=ref, beta=beta), lowered)
    torch.testing.assert_close(grad, torch.zeros(5, 7), **EXACT)
    as_ce = F.cross_entropy(ref, lowered.softmax(-1), reduction="none")
    torch.testing.assert_close(token_functions.undial(ref, target, ref_logits=ref, beta=beta), as_ce, **EXACT)
    before = ref.clone()
    token_functions.undial(ref, target, ref_logits=ref, beta=beta)
    assert torch.equal(ref, before)

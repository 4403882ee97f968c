"""The NPO paper's world and its claim's measurements match their definitions."""

import pytest
import torch

from didact.claims import runner
from didact.claims.unlearning import clouds, npo
from didact.objectives import preference
from didact.worlds import logistic


@pytest.fixture(scope="module")
def world():
    return logistic.clouds(1000)


@pytest.fixture(scope="module")
def start(world):
    return clouds.descend(world.retain, 300)


def test_a_world_is_its_seed(world):
    again, other = logistic.clouds(1000), logistic.clouds(1001)
    assert torch.equal(world.forget.phi, again.forget.phi) and torch.equal(world.idk, again.idk)
    assert not torch.equal(world.forget.phi, other.forget.phi)


def test_shapes_and_sizes(world):
    assert world.retain.phi.shape == (1000, 128) and world.forget.phi.shape == (200, 128)
    assert world.test_retain.phi.shape == world.test_forget.phi.shape == (1000, 128)
    assert world.retain.phi.dtype == torch.float64 and (world.retain.phi >= 0).all()
    assert set(world.idk.tolist()) == {0, 1} and world.idk.shape == (200,)


def test_classes_follow_the_truth_and_the_clouds_contradict_each_other():
    big = logistic.clouds(3, retain=20_000, forget=20_000, test=1, width=4)
    for cloud, mean in ((big.retain, 0.7), (big.forget, 0.3)):
        error = ((cloud.y == 0).double() - cloud.p0).mean()
        assert abs(error) < 4 * 0.5 / 20_000**0.5
        # E sigmoid(s), s ~ N(1, 1): 0.697
        assert cloud.p0.mean() == pytest.approx(mean, abs=0.01)


def test_the_same_world_at_alpha_0_overlaps():
    near, far = (logistic.clouds(5, alpha=a) for a in (0.0, 1.0))
    gap = [(w.retain.phi.mean(0) - w.forget.phi.mean(0)).norm() for w in (near, far)]
    assert gap[0] < gap[1] / 4


def test_near_orthogonal_inputs_are():
    x, y, theta = logistic.near_orthogonal(0)
    assert x.shape == (8, 32) and y.shape == (8,) and theta.shape == (32,)
    assert torch.allclose(x @ x.T, torch.eye(8, dtype=x.dtype), atol=0.1)


def test_descend_takes_the_gradient_autograd_would(world):
    theta = torch.zeros(128, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        logits = torch.nn.functional.pad((world.retain.phi @ theta)[:, None], (0, 1))
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, world.retain.y), theta)
        theta = (theta - 0.05 * grad).detach().requires_grad_()
    assert torch.allclose(clouds.descend(world.retain, 3), theta.detach(), atol=1e-12)


def test_distance_is_the_kl_divergence(world, start):
    gold, cloud = torch.zeros_like(start), world.test_forget
    p, q = (torch.distributions.Bernoulli(logits=cloud.phi @ t) for t in (gold, start))
    assert clouds.distance(gold, start, cloud) == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()))
    assert clouds.distance(start, start, cloud) == 0


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_npo_begins_with_the_step_of_gradient_ascent(world, start, beta):
    ascent, _ = clouds.unlearn(world, start, clouds.Arm(1e-3, clouds.ga), 1)
    ours, weights = clouds.unlearn(world, start, clouds.Arm(1e-3, clouds.npo(beta)), 1)
    assert torch.allclose(ours[-1], ascent[-1], atol=1e-14) and weights[0] == pytest.approx(1, abs=1e-12)


def test_the_measured_weight_is_the_formula(world, start):
    path, weights = clouds.unlearn(world, start, npo.ARMS["NPO"], 50)
    logp, ref = (clouds.logp(world.forget.phi @ t, world.forget.y) for t in (path[-1], start))
    assert weights[-1] == pytest.approx(float(preference.npo_weight(logp, ref, 1.0).mean()))
    assert weights[-1] < weights[1] < weights[0]


@pytest.mark.parametrize("sabotage", npo.CLAIM.sabotages, ids=lambda s: s.name)
def test_a_sabotage_reaches_the_training(world, start, sabotage):
    intact, _ = clouds.unlearn(world, start, npo.ARMS["NPO+RT"], 20)
    with runner.patched(sabotage.patch):
        broken, weights = clouds.unlearn(world, start, npo.ARMS["NPO+RT"], 20)
    assert not torch.allclose(intact[-1], broken[-1], atol=1e-6)
    if sabotage.name == "reference follows the model":
        assert weights == pytest.approx([1.0] * len(weights))


def test_the_two_speeds_of_divergence():
    fast = clouds.divergence(0, lambda logp, _: logp.mean(), 400)
    slow = clouds.divergence(0, lambda logp, ref: preference.npo(logp, ref, 1.0).mean(), 400)
    assert fast["r2_linear"] > 0.99 and slow["displacement"] < fast["displacement"] / 3

"""Exact known answers from the card: learners, constructed weights, worlds, and the comparator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from didact.data.streams import Tensors
from didact.evaluate import learners
from didact.evaluate.references import gradient
from didact.learn import episodes
from didact.models import mixers, modules
from didact.models.model import Model
from didact.types import UserError
from didact.worlds import regression


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with episodes.one_thread():
        yield


def draw(seed: int, n: int, d: int, o: int, tasks: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape: list[tuple[int, ...]] = [(tasks, n, d), (tasks, n, o), (tasks, d)]
    x, y, q = (torch.randn(*s, generator=g, dtype=torch.float64) for s in shape)
    return x, y, q


shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))


@given(shapes, st.integers(1, 5), st.booleans(), st.floats(0.01, 0.3))
def test_constructed_layers_are_gradient_steps(
    shape: tuple[int, int, int, int], k: int, from_zero: bool, eta: float
) -> None:
    seed, n, d, o = shape
    x, y, q = draw(seed, n, d, o)
    start = None if from_zero else torch.randn(o, d, generator=torch.Generator().manual_seed(seed)).double()
    constructed = mixers.constructed(d, o, eta=eta, rows=n, layers=k, start=start)
    torch.testing.assert_close(constructed(x, y, q), gradient.gd(eta, k, start)(x, y, q), atol=1e-6, rtol=1e-9)
    etas = [eta / (i + 1) for i in range(k)]
    each = mixers.constructed(d, o, eta=etas, rows=n, layers=k, start=start)
    torch.testing.assert_close(each(x, y, q), gradient.gd(etas, start=start)(x, y, q), atol=1e-6, rtol=1e-9)


@given(shapes, st.integers(1, 4), st.floats(0.0, 0.05), st.floats(0.01, 0.3))
def test_constructed_gd_plus_plus(shape: tuple[int, int, int, int], k: int, gamma: float, eta: float) -> None:
    seed, n, d, o = shape
    x, y, q = draw(seed, n, d, o)
    plus = gradient.GDPlusPlus([eta], [gamma], k).double()
    constructed = mixers.constructed(d, o, eta=eta, gamma=gamma, rows=n, layers=k)
    # The learner keeps eta and gamma in float32.
    torch.testing.assert_close(constructed(x, y, q), plus(x, y, q), atol=1e-4, rtol=1e-4)
    still = gradient.GDPlusPlus([eta], [0.0], k).double()
    torch.testing.assert_close(still(x, y, q), gradient.gd(float(still.eta.detach()), k)(x, y, q), atol=1e-9, rtol=1e-9)


def test_first_guess_of_gd_plus_plus_must_be_zero() -> None:
    with pytest.raises(ValueError, match="W0 = 0"):
        mixers.constructed(2, eta=0.1, gamma=0.1, rows=3, layers=2, start=torch.ones(1, 2))
    with pytest.raises(ValueError, match="one a layer"):
        mixers.constructed(2, eta=[0.1, 0.2], rows=3, layers=3)


def test_two_steps_by_hand() -> None:
    x, y, q = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[2.0], [4.0]]]), torch.tensor([[3.0]])
    for one, two in (
        (gradient.gd(0.1, 1), gradient.gd(0.1, 2)),
        (mixers.constructed(1, eta=0.1, rows=2).float(), mixers.constructed(1, eta=0.1, rows=2, layers=2).float()),
    ):
        assert one(x, y, q).item() == pytest.approx(1.5, abs=1e-6)
        assert two(x, y, q).item() == pytest.approx(2.625, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(3, 6), (6, 3), (5, 5)])
def test_many_steps_have_a_closed_form_and_end_at_least_squares(n: int, d: int) -> None:
    x, y, q = draw(1, n, d, 1)
    gram = x.transpose(1, 2) @ x
    eta = float(n / torch.linalg.eigvalsh(gram)[:, -1].max())
    minimal = torch.linalg.pinv(x) @ y
    for k in (1, 3, 17):
        shrink = torch.linalg.matrix_power(torch.eye(d, dtype=torch.float64) - eta / n * gram, k)
        w = (torch.eye(d, dtype=torch.float64) - shrink) @ minimal
        torch.testing.assert_close(gradient.gd(eta, k)(x, y, q), (q[:, None] @ w)[:, 0], atol=1e-9, rtol=1e-9)
    if n != d:  # a square matrix is too ill-conditioned to converge
        torch.testing.assert_close(gradient.gd(eta, 20_000)(x, y, q), gradient.ols()(x, y, q), atol=1e-3, rtol=1e-3)


def test_one_step_is_a_linear_kernel_smoother_and_its_sensitivity_the_weights() -> None:
    x, y, q = draw(2, 5, 3, 1)
    eta = 0.3
    smooth = eta / 5 * (y[..., 0] * (x @ q[..., None])[..., 0]).sum(1, keepdim=True)
    torch.testing.assert_close(gradient.gd(eta)(x, y, q), smooth)
    slope = learners.behaviour(
        mixers.constructed(3, eta=eta, rows=5), Tensors({"x": x, "y": y, "query": q})
    ).sensitivity
    torch.testing.assert_close(slope, eta / 5 * (y.transpose(1, 2) @ x))


def test_ridge_goes_to_least_squares() -> None:
    x, y, q = draw(3, 9, 4, 2)
    torch.testing.assert_close(gradient.ridge(1e-10)(x, y, q), gradient.ols()(x, y, q), atol=1e-7, rtol=1e-7)
    assert gradient.ridge(1e12)(x, y, q).abs().max() < 1e-9


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 3}, {"heads": 2, "attention": "softmax"}, {"features": 8, "layers": 2}, {"layer_norm": True}],
)
def test_rows_may_be_permuted_and_weights_rescaled(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = mixers.LinearSelfAttention(3, 2, init=0.5, **options).double()
    x, y, q = draw(4, 6, 3, 2)
    order = torch.randperm(6)
    out = module(x, y, q)
    torch.testing.assert_close(module(x[:, order], y[:, order], q), out)
    with torch.no_grad():
        for up, down in ((module.wq, module.wk), (module.wv, module.p)):
            up *= 2.5
            down /= 2.5
    torch.testing.assert_close(module(x, y, q), out)


def test_positions_matter_in_the_classic_layout() -> None:
    torch.manual_seed(0)
    module = mixers.LinearSelfAttention(3, 1, layout="classic", layers=2, shared=False, init=2.0).double()
    x, y, q = draw(5, 4, 3, 1)
    assert module.tokens(x, y, q).shape == (7, 9, 3 + 10 + 1)
    flip = torch.tensor([3, 2, 1, 0])
    assert (module(x, y, q) - module(x[:, flip], y[:, flip], q)).abs().max() > 1e-6


def test_a_key_too_narrow_cannot_hold_the_construction_but_runs() -> None:
    module = mixers.LinearSelfAttention(4, 1, key_size=2, y_update_only=True, activation_clip=10.0)
    x, y, q = (v.float() for v in draw(6, 5, 4, 1))
    assert module(x, y, q).shape == (7, 1)
    assert module.mix(module.tokens(x, y, q), 0)[..., :4].equal(q[:, None])  # x-slots stay


def test_best_step_size_and_its_loss() -> None:
    world = regression.Linear(dim=5, rows=5)
    variance, fourth = world.moments()
    eta = gradient.optimal_eta(5, 5, variance, fourth)
    assert eta / 5 == pytest.approx(1.2245, abs=1e-4)
    expected = 0.5 * variance * 5 * (1 - eta * variance)
    assert expected == pytest.approx(0.10204, abs=1e-5)
    assert eta == pytest.approx(5 / (variance * (5 + 5 - 0.2)))
    tasks = world(0, 50_000)
    assert learners.losses(gradient.gd(eta), tasks).mean().item() == pytest.approx(expected, rel=0.03)
    assert gradient.best_eta(tasks) == pytest.approx(eta, rel=0.03)
    assert learners.losses(gradient.zero(), tasks).mean().item() == pytest.approx(0.5 * variance * 5, rel=0.03)
    normal = regression.Linear(dim=4, rows=6, inputs="normal", half_width=0.7)
    assert gradient.optimal_eta(6, 4, *normal.moments()) == pytest.approx(6 / (0.49 * (6 + 4 + 1)))


@pytest.mark.parametrize("inputs", ["uniform", "normal", "laplace"])
def test_worlds_have_the_moments_they_state_and_are_pure(inputs: regression.Inputs) -> None:
    world = regression.Linear(dim=2, rows=4, inputs=inputs, half_width=0.6, outputs=3)
    tasks = world((3, 1), 50_000)
    assert tasks["x"].equal(world((3, 1), 50_000)["x"]) and not tasks["x"].equal(world((3, 2), 50_000)["x"])
    assert tasks["y"].shape == (50_000, 4, 3) and tasks["target"].shape == (50_000, 3)
    variance, fourth = world.moments()
    assert tasks["x"].square().mean().item() == pytest.approx(variance, rel=0.02)
    assert tasks["x"].pow(4).mean().item() == pytest.approx(fourth, rel=0.1)
    if inputs == "uniform":
        assert 0.599 < tasks["x"].abs().max().item() <= 0.6  # `half_width` is half


def test_worlds_noise_distractors_and_normalisation() -> None:
    plain, noisy = regression.Linear(rows=6), regression.Linear(rows=6, noise=0.3)
    residual = noisy(0, 5_000)["y"] - plain(0, 5_000)["y"]
    assert residual.std().item() == pytest.approx(0.3, rel=0.03)
    fooled = regression.Linear(rows=6, distractors=2)(0, 500)["y"] != plain(0, 500)["y"]
    assert (fooled.sum(1) == 2).all()
    shifted = regression.Linear(inputs="exponential", normalize=True, half_width=2.0)(0, 10)
    torch.testing.assert_close(shifted["x"].flatten(1).norm(dim=1), torch.full((10,), 2.0))
    with pytest.raises(ValueError, match="moments"):
        regression.Linear(inputs="exponential").moments()
    sine = regression.Sine(rows=8)(0, 100)
    assert sine["x"].shape == (100, 8, 1) and sine["y"].abs().max() <= 0.5 and sine["x"].abs().max() > 4.5


def test_compare_knows_equal_opposite_and_absent() -> None:
    tasks = regression.Linear(dim=3, rows=4, outputs=2)(0, 500)
    gd = gradient.gd(2.0)
    same = learners.compare(gd, gd, tasks)
    assert same.cosine.estimate == pytest.approx(1, abs=1e-6) and same.loss_gap == (0, 0, 0)
    opposite = learners.compare(lambda x, y, q: -gd(x, y, q), gd, tasks)
    assert opposite.cosine.estimate == pytest.approx(-1, abs=1e-6) and opposite.loss_gap.low > 0
    absent = learners.compare(gradient.zero(), gd, tasks)
    assert absent.cosine.estimate == 0 and absent.black_box
    assert absent.loss_gap.estimate == pytest.approx(absent.loss.estimate - absent.reference_loss.estimate, abs=1e-6)


def test_differences_give_the_sensitivities_of_a_black_box() -> None:
    tasks = regression.Linear(dim=3, rows=4, outputs=2)(0, 100)
    gd = gradient.gd(2.0)

    def closed(x: torch.Tensor, y: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return gd(x, y, query).detach()

    estimated, exact = learners.behaviour(closed, tasks), learners.behaviour(gd, tasks)
    assert estimated.black_box and not exact.black_box
    torch.testing.assert_close(estimated.sensitivity, exact.sensitivity, atol=1e-4, rtol=1e-4)


def test_tuned_gd_plus_plus_beats_as_many_steps_of_gd() -> None:
    world = regression.Linear(dim=5, rows=5)
    tasks = world((0, 0, 9), 5_000)
    tuned, findings = gradient.tuned_references(world, tasks, steps=2)
    loss = {name: learners.losses(f, tasks).mean().item() for name, f in tuned.items()}
    assert loss["gd++"] < 0.8 * loss["gd"] < loss["zero"] and findings["steps"] == 2
    assert "gd++" not in gradient.tuned_references(world, tasks, steps=1)[0]  # one step of it is a step of GD


def test_ood_curve_and_rescaled_tasks() -> None:
    tasks = regression.Linear(dim=2, rows=5)(0, 200)
    scaled = learners.rescaled(tasks, inputs=2.0, targets=3.0)
    torch.testing.assert_close(scaled["x"], 2 * tasks["x"])
    torch.testing.assert_close(scaled["target"], 6 * tasks["target"])
    shifted = learners.shifted(
        {"zero": gradient.zero()}, lambda a: learners.rescaled(tasks, targets=a), [1.0, 2.0], "title", "scale"
    )
    (zero,) = shifted.lines
    assert zero.name == "zero" and zero.x == [1.0, 2.0] and zero.y[1] == pytest.approx(4 * zero.y[0])


def test_interpolation_of_the_construction_with_itself() -> None:
    constructed = mixers.constructed(3, eta=0.4, rows=5)
    with torch.no_grad():  # another scale of the same function
        constructed.wq *= 4
        constructed.wv /= 4
    x, y, q = draw(7, 5, 3, 1)
    half = mixers.interpolated(constructed, 0.4, 5)
    torch.testing.assert_close(half(x, y, q), gradient.gd(0.4)(x, y, q), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="one head"):
        mixers.interpolated(mixers.LinearSelfAttention(3, heads=2), 0.4, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2, "shared": False, "heads": 2},
        {"layout": "classic", "readout": "linear"},
        {"features": 6, "layer_norm": True},
    ],
)
def test_a_saved_module_is_the_same_module(tmp_path: Any, options: dict[str, Any]) -> None:
    module = mixers.LinearSelfAttention(3, 2, **options).double()
    mixers.set_units(module, ([1.0, 2, 3], [2.0, 2, 2], [1.0, 1], [3.0, 3]))
    assert Model(module, kind="module").save(tmp_path) == "didact"
    again = modules.load_module(tmp_path)
    x, y, q = draw(8, 5, 3, 2)
    assert again.kind == "module" and again.module(x, y, q).equal(module(x, y, q))
    (tmp_path / "didact.json").write_text('{"kind": "module", "module": "Nothing", "spec": {}}')
    with pytest.raises(UserError, match="unknown module 'Nothing'"):
        modules.load_module(tmp_path)
    with pytest.raises(UserError, match=r"didact\.json is missing"):
        modules.load_module(tmp_path / "elsewhere")


def test_units_are_part_of_the_module() -> None:
    module = mixers.constructed(2, eta=0.5, rows=4)
    x, y, q = draw(9, 4, 2, 1)
    inside = module((x - 1) / 2, (y - 5) / 3, (q - 1) / 2) * 3 + 5
    units = (np.ones(2), np.full(2, 2.0), np.full(1, 5.0), np.full(1, 3.0))
    plain = module(x, y, q)
    mixers.set_units(module, units)
    torch.testing.assert_close(module(x, y, q), inside)
    torch.testing.assert_close(learners.in_units(module, units)(x, y, q), plain)  # and back


def test_numpy_in_numpy_out() -> None:
    predict = learners.with_numpy(gradient.gd(0.1))
    x, y = [[1.0], [2.0]], [2.0, 4.0]
    assert float(predict(x, y, [3.0])) == pytest.approx(1.5)
    assert predict(x, y, [[3.0], [6.0]]) == pytest.approx([1.5, 3.0])
    assert predict(x, [[2.0, 0.0], [4.0, 0.0]], [3.0]) == pytest.approx([1.5, 0.0])
    assert not math.isnan(float(predict(x, y, [0.0])))

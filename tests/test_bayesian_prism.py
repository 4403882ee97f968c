"""bayesian-prism: exact references against known answers, function classes, a trained learner, a user's model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shapes import tiny, tokenizer_of

from didact.evaluate import label_streams, prism, prism_report
from didact.evaluate.references import bayes, sampled, search
from didact.learn import episodes, function_laws, functions
from didact.learn.function_laws import FunctionConfig
from didact.learn.functions import Gaussian, Mixture, Pool, Signs
from didact.methods.mechanisms.bayesian_prism import bayesian_prism
from didact.models import load
from didact.models.model import Model
from didact.models.sequence import SequenceConfig, SequenceLearner
from didact.report import words
from didact.types import Example, Fit, Result, UserError

TWO = FunctionConfig(names=("two-means",), dim=2, rows=6, noise=0.5, separation=2.0, sharpness=0.5, spread=0.5)
SMALL = SequenceConfig(mixer="lstm", layers=1, width=48, layout="shifted")
QUICK = Fit(lr=1e-2, steps=250, rows=48, warmup_steps=20, schedule="cosine")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with episodes.one_thread():
        yield


@pytest.fixture(scope="module")
def learned() -> Result:
    with episodes.one_thread():
        return bayesian_prism(functions=TWO, learner=SMALL, prompts=400, looks=2, fit=QUICK)


def draw(seed: int, d: int, rows: int = 7, prompts: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(prompts, rows, d, generator=g).double(), torch.randn(prompts, rows, generator=g).double()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 2.0), st.floats(0.2, 3.0), st.floats(-2, 2))
def test_the_gaussian_posterior_is_its_formula(seed: int, d: int, noise: float, tau: float, mu: float) -> None:
    """`(X'X/s^2 + I/t^2)^-1 (X'y/s^2 + mu/t^2)`, and the evidence is that of `N(X mu, s^2 I + t^2 X X')`."""
    x, y = draw(seed, d)
    result = bayes.gaussian(mu, tau, noise)(x, y)
    for b, t in itertools.product(range(3), range(7)):
        rows, labels = x[b, :t].numpy(), y[b, :t].numpy()
        precision = rows.T @ rows / noise**2 + np.eye(d) / tau**2
        w = np.linalg.solve(precision, rows.T @ labels / noise**2 + mu / tau**2)
        assert float(result.mean[b, t]) == pytest.approx(float(x[b, t].numpy() @ w), abs=1e-8)
        if t:
            cov = noise**2 * np.eye(t) + tau**2 * rows @ rows.T
            expected = stats.multivariate_normal(rows @ np.full(d, mu), cov).logpdf(labels)
            assert float(result.logp[b, :t].sum()) == pytest.approx(float(expected), abs=1e-7)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(-2, 2))
def test_without_noise_it_is_least_squares_of_smallest_norm(seed: int, d: int, mu: float) -> None:
    x, _ = draw(seed, d, rows=9)
    w = torch.randn(3, d, 1, generator=torch.Generator().manual_seed(seed)).double()
    y = (x @ w)[..., 0]
    result = bayes.gaussian(mu)(x, y).mean
    for t in range(9):
        start = torch.full((3, d, 1), mu, dtype=torch.float64)
        best = start + torch.linalg.pinv(x[:, :t]) @ (y[:, :t, None] - x[:, :t] @ start)
        torch.testing.assert_close(result[:, t], (x[:, t, None] @ best)[:, 0, 0], atol=1e-6, rtol=1e-6)


def test_the_error_falls_by_one_dimension_a_row() -> None:
    x, y = map(torch.from_numpy, Gaussian(dim=5, rows=8).drawn(np.random.default_rng(0), 20_000))
    error = (bayes.gaussian()(x, y).mean - y).square().mean(0) / 5
    torch.testing.assert_close(error[:6], 1 - torch.arange(6).double() / 5, atol=0.06, rtol=0)
    assert error[5:].max() < 1e-6


def test_least_squares_is_that_of_all_rows() -> None:
    """Also where noise leaves no function that fits all examples."""
    x, y = draw(3, 2, rows=9)
    result = prism.reference_predictors(Gaussian(dim=2, rows=9, noise=0.5))["least squares"](x, y).mean
    for t in (1, 2, 3, 8):
        w = torch.linalg.pinv(x[:, :t]) @ y[:, :t, None]
        torch.testing.assert_close(result[:, t], (x[:, t, None] @ w)[:, 0, 0], atol=1e-4, rtol=1e-4)


def test_mixtures() -> None:
    x, y = draw(1, 2)
    one, two = bayes.gaussian([2.0, 0.0], 0.5, 0.5), bayes.gaussian([-2.0, 0.0], 0.5, 0.5)
    torch.testing.assert_close(bayes.mixture([one, two], [1.0, 1e-300])(x, y).mean, one(x, y).mean)
    same = bayes.mixture([one, one], [0.2, 0.8])(x, y)
    assert same.beta is not None
    torch.testing.assert_close(same.beta, torch.tensor([0.2, 0.8]).double().expand(3, 7, 2))
    both = bayes.mixture([one, two], [0.5, 0.5])(x, y)
    assert both.mean[:, 0].abs().max() < 1e-12  # the empty prompt of a symmetric prior
    # Its evidence is that of the mixture.
    expected = torch.logaddexp(one(x, y).logp.sum(1), two(x, y).logp.sum(1)) - math.log(2)
    torch.testing.assert_close(both.logp.sum(1), expected)


def test_a_pool_of_tasks() -> None:
    x, y = draw(2, 3)
    w = np.random.default_rng(0).standard_normal((5, 3))
    lone = bayes.pool(w[:1], 0.5)(x, y).mean
    torch.testing.assert_close(lone, x @ torch.from_numpy(w[0]))
    torch.testing.assert_close(bayes.pool(w, 1e6)(x, y).mean, x @ torch.from_numpy(w.mean(0)), atol=1e-6, rtol=0)
    near = bayes.pool(w, 0.0)(x, y).mean[:, -1]
    apart = (y[:, :-1, None] - x[:, :-1] @ torch.from_numpy(w).T).square().sum(1).argmin(-1)
    torch.testing.assert_close(near, (x[:, -1] * torch.from_numpy(w)[apart]).sum(-1))
    loop = []
    for b in range(3):
        logits = torch.tensor([-float(((y[b, :4] - x[b, :4] @ torch.from_numpy(v)) ** 2).sum()) / 0.5 for v in w])
        loop.append(float(x[b, 4] @ (logits.double().softmax(0) @ torch.from_numpy(w))))
    assert bayes.pool(w, 0.5)(x, y).mean[:, 4].tolist() == pytest.approx(loop, abs=1e-8)


def test_sign_vectors() -> None:
    exact = bayes.exact(Signs(dim=2, rows=2))
    assert exact is not None
    x = torch.tensor([[[1.0, 2.0], [1.0, 0.0]], [[1.0, 2.0], [0.0, 1.0]]]).double()
    y = torch.tensor([[3.0, 0.0], [1.0, 0.0]]).double() / math.sqrt(2)
    assert (exact(x, y).mean[:, 1] * math.sqrt(2)).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    result = search.min_infinity_norm(x, y)[:, 1] * math.sqrt(2)
    assert result.tolist() == pytest.approx([1.0, 1 / 3], abs=1e-6)  # not a sign vector where y is 1
    batch = Signs(dim=8, rows=8)(0, 20)  # more than d / 2 rows recover the signs
    last = search.min_infinity_norm(batch["x"], batch["y"][..., 0])[:, -1]
    assert (last - batch["y"][:, -1, 0]).abs().median() < 1e-5
    assert bayes.exact(Signs(dim=20)) is None


def test_the_lasso_is_scikit_learns_and_the_nuclear_norm_recovers_rank_one() -> None:
    from sklearn.linear_model import Lasso

    batch = functions.Sparse(dim=6, rows=9)(0, 4)
    x, y = batch["x"].double(), batch["y"][..., 0].double()
    result = search.lasso(x, y, 0.02)
    for b, t in itertools.product(range(4), (3, 8)):
        expected = Lasso(0.02, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x[b, :t], y[b, :t])
        assert float(result[b, t]) == pytest.approx(float(expected.predict(x[b, t : t + 1])[0]), abs=1e-5)
    batch = functions.LowRank(dim=9, rows=9, rank=1)(0, 6)
    x, y = batch["x"], batch["y"][..., 0].double()
    last = (search.nuclear(x, y, 150) - y)[:, -1].square().mean()
    assert last < 0.3 * (bayes.gaussian()(x, y).mean - y)[:, -1].square().mean()


def test_sparse_bayes_beats_the_lasso_and_nothing_beats_bayes() -> None:
    for law in (functions.Sparse(dim=5, rows=8, active=2, noise=0.1), Pool(dim=5, rows=8, tasks=6, noise=0.5),
                function_laws.law(TWO), Gaussian(dim=1, rows=8, basis="fourier", size=3, noise=0.3)):  # fmt: skip
        batch = law(0, 150)  # type: ignore[operator]
        x, y = batch["x"].double(), batch["y"][..., 0].double()
        result = {
            name: (f(x, y).mean - y).square().mean().item() for name, f in prism.reference_predictors(law).items()
        }
        best = result.pop("Bayes")
        assert all(best <= loss + 1e-9 for loss in result.values()), (law, best, result)


@pytest.mark.parametrize("law", [functions.Laplace(dim=8, scale=0.5), functions.Sparse(dim=8, active=2), Signs(dim=8)])
def test_ridge_assumes_the_second_moment_of_the_weights(law: Any) -> None:
    x = np.broadcast_to(np.eye(8), (4000, 8, 8))  # answers are the weights
    assert np.isclose(prism._weight_std(law), np.sqrt((law.values(np.random.default_rng(0), x) ** 2).mean()), rtol=0.05)


def test_the_mean_under_a_laplace_prior_is_that_of_quadrature_and_beats_the_lasso_and_ridge() -> None:
    prompts = functions.Laplace(dim=2, rows=5, noise=0.7, scale=0.5)(3, 6)
    x, y = prompts["x"].double(), prompts["y"][..., 0].double()
    result = sampled.laplace(x, y, 0.5, 0.7, draws=1500)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis)
    for t in range(5):
        apart = (y[:, None, :t] - torch.einsum("btd,wd->bwt", x[:, :t], w)).square().sum(-1)
        belief = (-apart / (2 * 0.7**2) - w.abs().sum(-1) / 0.5).softmax(-1)
        assert torch.allclose(result[:, t], ((belief @ w) * x[:, t]).sum(-1), atol=0.03)
    assert not result[:, 0].any()  # for no rows, exactly
    law = functions.Laplace(dim=4, rows=9, noise=0.5)
    prompts = law(1, 300)
    x, y = prompts["x"].double(), prompts["y"][..., 0].double()
    references = prism.reference_predictors(law)
    errors = {
        n: (references[n](x, y).mean - y).square().mean() for n in ("Bayes, sampled", "lasso", "ridge", "least squares")
    }
    assert (
        errors["Bayes, sampled"] < min(v for n, v in errors.items() if n != "Bayes, sampled")
        and "Bayes" not in references
    )
    assert "Bayes, sampled" not in prism.reference_predictors(
        functions.Laplace(dim=4, rows=9)
    )  # without noise no chain moves


def test_fourier_series() -> None:
    law = Gaussian(dim=1, rows=41, basis="fourier", size=10)
    batch = law(0, 4000)
    assert batch["y"].square().mean().item() == pytest.approx(11 / 10, rel=0.05)
    z = torch.linspace(-5, 5, 9).double()[:, None]
    torch.testing.assert_close(law.features(z + 10), law.features(z), atol=1e-9, rtol=0)  # period 2 L
    cosines = law.features(z)[:, 1::2]
    torch.testing.assert_close(cosines, law.features(-z)[:, 1::2])  # without sines it is even
    grid = torch.linspace(-5, 5, prism.GRID + 1)[:-1].double()[:, None]
    energy = prism.spectrum((law.features(grid)[:, 5] * math.sqrt(10))[None])  # cos of frequency 3
    assert int(energy.argmax()) == 3 and float(energy.sum()) == pytest.approx(0.5)
    low, high = (function_laws.series(10, 2, h, rows=41) for h in (False, True))
    for one, share in ((low, 1.0), (high, 0.0)):
        w = torch.from_numpy(one.prior()[1]) * torch.randn(5, 21, generator=torch.Generator().manual_seed(0)).double()
        assert prism.low_share(prism.spectrum(w @ one.features(grid).T)).tolist() == pytest.approx(
            [share] * 5, abs=1e-9
        )
    assert high(0, 3000)["y"].square().mean().item() == pytest.approx(3 / 2, rel=0.1)  # (M + 1) / M for its M functions


def test_function_classes() -> None:
    for name in ("dense", "sparse", "signs", "laplace", "tree", "network", "pool", "two-means", "haar", "monomials"):
        c = FunctionConfig(names=(name,), dim=4, rows=5, tasks=6, size=2)
        batch = function_laws.law(c)(3, 40)  # type: ignore[operator]
        assert batch["x"].shape == (40, 5, 1 if name == "haar" else 4) and batch["y"].shape == (40, 5, 1)
        assert batch["y"].isfinite().all() and batch["y"].equal(function_laws.law(c)(3, 40)["y"])  # type: ignore[operator]
    haar = Gaussian(dim=1, basis="haar", size=3)
    grid = (torch.arange(8000).double() + 0.5)[:, None] / 800 - 5
    torch.testing.assert_close(haar.features(grid).T @ haar.features(grid) / 8000, torch.eye(8).double())
    tree = functions.Tree(dim=3, rows=400, depth=2)(0, 4)["y"][..., 0]
    assert all(len(row.unique()) <= 4 for row in tree)
    mixed = Mixture(parts=(Pool(dim=2, rows=3, tasks=1), Signs(dim=2, rows=3)), alpha=(0.2, 0.8))(0, 4000)
    assert mixed["part"].double().mean().item() == pytest.approx(0.8, abs=0.02)
    batches = [Mixture(parts=(Signs(dim=2), Pool(dim=2)), per_batch=True)(s, 8)["part"] for s in range(20)]
    assert all(len(b.unique()) == 1 for b in batches) and len({int(b[0]) for b in batches}) == 2


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.floats(0.05, 5))
def test_dirichlet_categorical(labels: list[int], a: float) -> None:
    result = bayes.dirichlet(torch.tensor([labels]), 3, a)[0]
    for t in range(len(labels)):
        counts = np.bincount(labels[:t], minlength=3)
        np.testing.assert_allclose(result[t], (counts + a) / (t + 3 * a))
    # Labels in another order are equally likely.
    total = lambda row: float(bayes.dirichlet(torch.tensor([row]), 3, a)[0, range(len(row)), row].log().sum())  # noqa: E731
    assert total(labels) == pytest.approx(total(sorted(labels)))


def test_a_trained_learner_is_near_the_mixture_and_the_report_says_so(learned: Result, tmp_path: Path) -> None:
    findings = learned.findings
    apart = {name: d["estimate"] for name, d in findings["distance"].items()}
    assert findings["closest"] == "Bayes" and apart["Bayes"] < 0.6 * min(v for k, v in apart.items() if k != "Bayes")
    assert findings["excess"]["estimate"] > 0 and findings["loss"]["estimate"] < findings["untrained"]["loss"]
    assert findings["implied_weights"]["cosine"]["estimate"] > 0.8 and len(findings["recognition"]["implied"]) == 6
    beta = findings["recognition"]["beta"]["estimate"]
    assert not words.is_estimate(findings["recognition"]["beta"]) and words.is_estimate(findings["loss"])  # on the page
    assert beta[0] == pytest.approx(0.5) and beta[-1] > 0.9
    assert findings["looks"][0]["step"] == 0 and findings["looks"][-1]["trained on: from Bayes"] > 0
    assert [f.title for f in learned.figures][:2] == ["Loss as examples come in", "Distance from reference predictors"]
    assert learned.metrics["loss"].gold and not learned.warnings
    learned.save(tmp_path)
    again = bayesian_prism(model=load.load(tmp_path / "model"), functions=TWO, prompts=400, fit=QUICK)
    assert not again.models and again.findings["loss"] == findings["loss"]
    assert again.predict is not None and again.predict([[1.0, 0.0]], [2.0], [[1.0, 0.0], [0.0, 1.0]]).shape == (2,)


def test_an_exact_learner_is_no_distance_from_bayes_and_a_leak_stops(learned: Result) -> None:
    law = function_laws.law(TWO)
    batch = law((5, 0), 300)  # type: ignore[operator]
    best = bayes.exact(law)
    assert best is not None
    y = batch["y"][..., 0].double()
    guess = best(batch["x"], y).mean
    findings = prism.examine(guess, batch, prism.reference_predictors(law), "here")
    assert findings["distance"]["Bayes"]["estimate"] == 0 and findings["excess"]["estimate"] == 0
    np.testing.assert_allclose(findings["recognition"]["slope"], 1)
    with pytest.raises(UserError, match="below the exact floor"):
        prism.examine(0.5 * guess + 0.5 * y, batch, prism.reference_predictors(law), "here")


def test_implied_weights_are_those_of_a_linear_answer() -> None:
    class Linear(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0 * y

    result = prism.implied_weights(Linear(), Gaussian(dim=3, rows=6)(0, 4), 3)
    torch.testing.assert_close(result, torch.tensor([1.0, -2.0, 0.5]).double().expand(4, 3))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_users_model_on_streams_of_labels(arch: Any) -> None:
    rng = np.random.default_rng(0)
    records = [Example(x=[], y=rng.choice(["a", "b"], 9, p=[p, 1 - p]).tolist()) for p in rng.random(12)]
    model = tiny(arch)
    streams = label_streams.streams(records)
    actual = label_streams.distributions(model, streams)
    assert actual.shape == (12, 9, 2) and torch.allclose(actual.sum(-1), torch.ones(12, 9).double())
    alone = label_streams.distributions(model, label_streams.streams(records[:3]), rows=1)
    torch.testing.assert_close(actual[:3], alone, atol=1e-5, rtol=1e-5)  # padding and other rows change nothing
    result = bayesian_prism(records, model)
    findings = result.findings["distance"]["Dirichlet-categorical"]
    assert findings["estimate"] > 0 and findings["reference_loss"]["estimate"] < result.findings["loss"]["estimate"] + 1
    assert "untrained" in findings and 0.01 <= result.findings["fitted_prior"]["prior"] <= 100 and result.figures


@pytest.mark.parametrize("kind", ["prepend", "always", "bytes"])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_stream_of_labels_is_read_as_its_text_is_tokenised(kind: str, inputs: bool) -> None:
    """Tokens that a tokenizer adds before a text are added before the first line only."""
    tokenizer = tokenizer_of(kind)
    module = tiny("llama").module
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = Model(module, tokenizer)
    x, y = ["Tarn", "Velm"] if inputs else [], ["5", "2"]
    result = label_streams.distributions(model, label_streams.streams([Example(x=x, y=y)]))
    lines = [f"Input: {town}\nLabel:" for town in x] or ["Label:"] * 2
    space, tokens = label_streams.label_tokens(model, ["2", "5"])
    whole = tokenizer(f"{lines[0]}{space}5\n{lines[1]}{space}2", return_tensors="pt")["input_ids"]
    positions = [whole[0].tolist().index(token) - 1 for token in reversed(tokens)]
    assert positions[1] == whole.shape[1] - 2
    expected = model.module(whole).logits[0, positions][:, tokens].double().softmax(-1)
    torch.testing.assert_close(result[0], expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_counts_is_no_distance_from_its_reference() -> None:
    labels = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])
    p = bayes.dirichlet(labels, 2, 0.5)
    findings = label_streams.report(p, {"Dirichlet-categorical": p, "uniform": torch.full_like(p, 0.5)}, labels, p)
    assert (
        findings["distance"]["Dirichlet-categorical"]["estimate"] == 0
        and findings["closest"] == "Dirichlet-categorical"
    )


def test_prompts_of_two_tasks_are_held_against_a_mixture_of_specialists() -> None:
    rng, records = np.random.default_rng(0), []
    for task, positive in (("weather", "sun"), ("sport", "goal")):
        for _ in range(6):
            x = [" ".join(rng.choice(["sun", "rain", "goal", "ball"], 3)) for _ in range(6)]
            records.append(Example(x=x, y=["b" if positive in text else "a" for text in x], task=task))
    result = bayesian_prism(records, tiny("llama"))
    assert {"mixture", "specialist weather", "specialist sport", "uniform"} == set(result.findings["distance"])
    assert result.findings["recognition"]["estimate"][0] == pytest.approx(0.5, abs=0.01)
    torch.manual_seed(0)
    parts = torch.rand(2, 3, 5, 2).double().log_softmax(-1).exp()
    labels = torch.randint(2, (3, 5))
    p, beta = label_streams.mixed(list(parts), [0.3, 0.7], labels)
    by_hand = torch.tensor([0.3, 0.7]) * torch.stack([q[0, :4].gather(-1, labels[0, :4, None]).prod() for q in parts])
    torch.testing.assert_close(beta[0, 4], by_hand / by_hand.sum(), check_dtype=False)
    torch.testing.assert_close(p[0, 4], beta[0, 4] @ parts[:, 0, 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [Example(x=[], y=["a", "b"])]}, "go together"),
        ({"tasks": [Example(x=[], y=["a", "a"])], "model": "llama"}, "two different ones"),
        ({"tasks": [Example(x=[], y=["incomprehensible", "b"])], "model": "llama"}, "tokens of this model"),
        ({"tasks": [Example(x=["t"], y=["a", "b"])], "model": "llama"}, "record 1: 1 inputs and 2 labels"),
        ({"tasks": [Example(x=["t", "u"], y=["a", "b"])], "model": "llama"}, "need two tasks"),
        ({"tasks": [Example(x=[], y=[None, "b"])], "model": "llama"}, "None is not a label"),
        ({"tasks": [Example(x=[], y=["a", "b"] * 300)], "model": "llama"}, "does not fit the context"),
        ({"functions": FunctionConfig(names=("dense", "signs"), alpha=(1.0,))}, "1 weights for 2 classes"),
        ({"functions": FunctionConfig(names=("fourier", "dense"))}, "no mixture of both"),
        ({"functions": FunctionConfig(names=("low-rank",), dim=10)}, "must be a square"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(options: dict[str, Any], message: str) -> None:
    if options.get("model") == "llama":
        options = options | {"model": tiny("llama")}
    with pytest.raises(UserError, match=message) as error:
        bayesian_prism(**options)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="2 inputs and one target"):
        prism_report.checked(SequenceLearner(3, 1, width=8, layers=1, heads=1), function_laws.law(TWO))


@pytest.mark.parametrize("names", [("dense",), ("dense", "sparse")])
def test_a_curriculum_shows_few_inputs_and_rows_first_and_in_the_end_all(names: Any) -> None:
    config = FunctionConfig(names=names, dim=7, rows=14, curriculum=10)
    whole = function_laws.law(config)
    taught = function_laws.training_sampler(config, whole)
    for step, inputs, rows in ((0, 5, 11), (9, 5, 11), (10, 6, 13), (20, 7, 14), (1000, 7, 14)):
        batch = taught((0, step), 6)
        assert batch["x"].shape == (6, rows, 7) and not batch["x"][..., inputs:].any()
        assert batch["x"][..., :inputs].ne(0).all() and torch.equal(batch["x"], taught((0, step), 6)["x"])
    for name, value in taught((0, 20), 6).tensors.items():
        assert torch.equal(value, whole((0, 20), 6)[name])
    x, y = (taught((0, 0), 64)[name].double() for name in ("x", "y"))
    if names == ("dense",):  # targets belong to the inputs in the prompt
        weights = torch.linalg.lstsq(x[..., :5], y).solution
        assert torch.allclose(x[..., :5] @ weights, y, atol=1e-4)
    assert function_laws.training_sampler(FunctionConfig(names=names), whole) is whole
    result = bayesian_prism(
        functions=config, learner=SequenceConfig(width=8, layers=1, heads=1), prompts=20, fit=Fit(steps=21, rows=4)
    )
    assert len(result.history) > 0

"""Compare an in-context regressor with Bayes: distances to reference predictors by position, the excess loss over the
exact floor, its implied weights, the class it recognises, and the spectrum of the function it predicts.

Source: Panwar et al. 2024, openreview HX5ujdsSon, sections 3-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from didact.data.streams import Tensors
from didact.evaluate import curves, statistics
from didact.evaluate.references import bayes, sampled, search
from didact.learn import functions
from didact.types import UserError

GRID = 40  # points at which a predicted function is evaluated for its spectrum
TINY_NOISE = 1e-4  # ridge with this noise is least squares, of minimum norm while rows are few
LOW = 2  # frequencies up to this are called low


def predict(module: nn.Module, x: Tensor, y: Tensor, rows: int = 512) -> Tensor:
    """Predictions `(B, T)` of a module in eval mode."""
    training = module.training
    module.eval()
    with torch.no_grad():
        out = torch.cat([module(a, b) for a, b in zip(x.split(rows), y.split(rows), strict=True)])
    module.train(training)
    return out[..., 0].double()


def reference_predictors(law: Any) -> dict[str, bayes.Predictor]:
    """Reference predictors for a function class: its Bayes predictor, each part's, ridge, least squares, zero."""
    out: dict[str, bayes.Predictor] = {}
    if (best := bayes.exact(law)) is not None:
        out["Bayes"] = best
    parts = law.parts if isinstance(law, functions.Mixture) else ()
    for number, part in enumerate(parts[:6]):
        if (predictor := bayes.exact(part)) is not None:
            out[f"part {number + 1}"] = predictor
    first = parts[0] if parts else law
    features = getattr(first, "features", lambda x: x)
    std, noise = _weight_std(law), max(p.noise for p in parts or (law,))
    out["ridge"] = bayes.gaussian(0.0, std, noise, features)
    out["least squares"] = bayes.gaussian(0.0, 1.0, TINY_NOISE, features)
    point_predictors = {"3 neighbours": search.neighbours, "averaging": search.average}
    if isinstance(law, functions.Sparse | functions.Laplace):
        point_predictors["lasso"] = search.lasso
    if isinstance(law, functions.Laplace) and law.noise:
        # Not called "Bayes": the sampling's own error would lift the floor.
        point_predictors["Bayes, sampled"] = partial(sampled.laplace, scale=law.scale, noise=law.noise)
    if isinstance(law, functions.LowRank):
        point_predictors["nuclear norm"] = search.nuclear
    if isinstance(law, functions.Signs) and law.dim > 14:
        point_predictors["smallest largest weight"] = search.min_infinity_norm
    for name, f in point_predictors.items():
        out[name] = _as_predictor(f)
    out["zero"] = lambda x, y: bayes.Posterior(torch.zeros_like(y), torch.zeros_like(y))
    return out


def _as_predictor(guess: Callable[[Tensor, Tensor], Tensor]) -> bayes.Predictor:
    return lambda x, y: bayes.Posterior(guess(x, y), torch.zeros_like(y))


def _weight_std(law: Any) -> float:
    """The standard deviation of zero-mean weights with the same second moment, as ridge assumes."""
    if isinstance(law, functions.Mixture):
        return math.sqrt(float(sum(a * _weight_std(p) ** 2 for a, p in zip(law.shares, law.parts, strict=True))))
    if isinstance(law, functions.Gaussian):
        mean, std = law.prior()
        return math.sqrt(float((mean**2 + std**2).mean()))
    if isinstance(law, functions.Laplace):
        return math.sqrt(2) * law.scale
    if isinstance(law, functions.Sparse):
        return math.sqrt(law.active / law.dim)
    return math.sqrt(1 / law.dim) if isinstance(law, functions.Signs) else 1.0


def examine(guess: Tensor, prompts: Tensors, references: Mapping[str, bayes.Predictor], where: str) -> dict[str, Any]:
    """Distances `mean (guess - reference)^2` and losses by position, paired over prompts; the excess over Bayes.

    Args:
        guess: the learner's predictions, `(B, T)`.
        prompts: held-out prompts.
        references: reference predictors by name; "Bayes", if present, is the floor.
        where: start of the error message.

    Raises:
        UserError: the learner beats the exact floor by more than three standard errors.
    """
    x, y = prompts["x"].double(), prompts["y"][..., 0].double()
    posteriors = {name: f(x, y) for name, f in references.items()}
    errors = (guess - y).square()
    out: dict[str, Any] = {"loss": _interval(errors), "curves": {"learner": curves.curve(errors)}, "distance": {}}
    for name, posterior in posteriors.items():
        reference_errors, distances = (posterior.mean - y).square(), (guess - posterior.mean).square()
        out["distance"][name] = _interval(distances) | {"reference_loss": _interval(reference_errors)}
        out["curves"][name] = curves.curve(reference_errors)
    order = sorted(out["distance"], key=lambda name: float(out["distance"][name]["estimate"]))
    out["closest"] = order[0]
    if "Bayes" in posteriors:
        floor = (posteriors["Bayes"].mean - y).square()
        out["excess"] = curves.check_floor(errors, floor, where)._asdict()
        if posteriors["Bayes"].beta is not None:
            out["recognition"] = recognition(guess, posteriors, prompts)
    return out


def recognition(guess: Tensor, posteriors: Mapping[str, bayes.Posterior], prompts: Tensors) -> dict[str, Any]:
    """The weight of the true part by position: the Bayes posterior's, and the one implied by the predictions.

    With two parts the implied weight of the first is the slope of `guess - mean_2` on `mean_1 - mean_2`, over prompts.
    """
    beta = posteriors["Bayes"].beta
    assert beta is not None
    true = beta.gather(-1, prompts["part"][:, None, None].expand(-1, beta.shape[1], 1))[..., 0]
    out: dict[str, Any] = {"beta": curves.curve(true)}
    if beta.shape[-1] == 2 and {"part 1", "part 2"} <= posteriors.keys():
        mean_1, mean_2 = posteriors["part 1"].mean, posteriors["part 2"].mean
        gap, learner_gap = mean_1 - mean_2, guess - mean_2
        out["slope"] = ((learner_gap * beta[..., 0] * gap).sum(0) / (beta[..., 0] * gap).square().sum(0)).tolist()
        out["implied"] = ((learner_gap * gap).sum(0) / gap.square().sum(0)).tolist()
    return out


def implied_weights(module: nn.Module, prompts: Tensors, at: int, seed: int = 0) -> Tensor:
    """The weights `(B, d)` implied by the learner's behaviour after `at` rows: least squares, without an intercept,
    on its answers to 2 d + 1 fresh inputs."""
    x, y = prompts["x"][:, :at], prompts["y"][:, :at]
    count, d = len(x), prompts["x"].shape[-1]
    queries = torch.randn(count, 2 * d + 1, d, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.lstsq(queries.double(), answers(module, x, y, queries)[..., None]).solution[..., 0]


def answers(module: nn.Module, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """The learner's answers to queries `(B, Q, d)`, one query at a time after the same rows: `(B, Q)`."""
    count, n_queries = queries.shape[:2]
    rows = torch.cat([x[:, None].expand(-1, n_queries, -1, -1), queries[:, :, None]], 2).flatten(0, 1)
    targets = torch.cat([y, torch.zeros_like(y[:, :1])], 1) if y.shape[1] else y.new_zeros(count, 1, 1)
    tiled = targets[:, None].expand(-1, n_queries, -1, -1).flatten(0, 1)
    return predict(module, rows, tiled)[:, -1].view(count, n_queries)


def spectrum(values: Tensor) -> Tensor:
    """The energy of a function on an even grid `(B, G)` at every frequency, `(B, G // 2 + 1)`: the DFT, squared."""
    energy: Tensor = torch.fft.rfft(values, norm="forward").abs().square()
    energy[:, 1 : (values.shape[1] + 1) // 2] *= 2  # both signs of a frequency
    return energy


def low_share(energy: Tensor) -> Tensor:
    """The share of the energy, the mean left out, at frequencies up to `LOW`: `(B,)`."""
    return energy[:, 1 : LOW + 1].sum(1) / energy[:, 1:].sum(1).clamp(min=1e-30)


def frequencies(module: nn.Module, prompts: Tensors, half_width: float, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The mean spectrum of the predicted function after each number of rows, and the share of low frequencies."""
    count = len(prompts["x"])
    # The grid leaves out its last point: the period of the basis is 2 L.
    grid = torch.linspace(-half_width, half_width, GRID + 1)[:-1].expand(count, -1)[..., None]
    out: dict[str, Any] = {"lengths": list(lengths), "energy": [], "low": []}
    for length in lengths:
        energy = spectrum(answers(module, prompts["x"][:, :length], prompts["y"][:, :length], grid))
        out["energy"].append(energy.mean(0)[: GRID // 4 + 1].tolist())
        out["low"].append(statistics.mean_interval(low_share(energy).numpy())._asdict())
    return out


def weights_report(module: nn.Module, prompts: Tensors, law: Any, at: int) -> dict[str, Any]:
    """Squared error and cosine between the implied weights and the Bayes predictor's after `at` rows."""
    best = bayes.exact(law)
    if best is None or getattr(law, "basis", "linear") != "linear":
        raise UserError("implied weights need a linear function class with an exact Bayes predictor")
    implied = implied_weights(module, prompts, at)
    x, y, d = prompts["x"][:, :at].double(), prompts["y"][:, :at, 0].double(), prompts["x"].shape[-1]
    eye = torch.eye(d, dtype=torch.float64)
    bayes_weights = torch.stack(
        [best(torch.cat([x, eye[j].expand(len(x), 1, d)], 1), torch.cat([y, y.new_zeros(len(x), 1)], 1)).mean[:, -1]
         for j in range(d)], -1,
    )  # fmt: skip
    return {
        "rows": at,
        "squared_error": statistics.mean_interval((implied - bayes_weights).square().mean(-1).numpy())._asdict(),
        "cosine": statistics.mean_interval(torch.cosine_similarity(implied, bayes_weights, dim=-1).numpy())._asdict(),
    }


def _interval(values: Tensor) -> dict[str, Any]:
    return dict(statistics.mean_interval(values.mean(1).numpy())._asdict())

"""In-context learning arms: a training step of a small regressor, and exact reference predictors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bench import problems
from didact.evaluate.references import bayes
from didact.learn import episodes, functions
from didact.models.sequence import SequenceLearner
from didact.types import Fit

DIM, ROWS, BATCH, WIDTH, LAYERS, HEADS = 5, 11, 64, 96, 4, 4  # 0.45M weights; the first stage of the curriculum


def step_ours(steps: int = 40, layout: Any = "shifted", positions: Any = "rotary") -> dict[str, Any]:
    """Steps of `episodes.meta_train`: prompts drawn at once, our causal transformer, the one training loop.

    Shifted tokens (x_t, y_{t-1}) make the same predictions from half as many positions; the published code
    interleaves them.
    """
    law, fit = functions.Gaussian(dim=DIM, rows=ROWS), Fit(lr=1e-4, steps=steps, rows=BATCH, clip=0.0)
    shape = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "layout": layout, "positions": positions}

    def work() -> float:
        build = lambda: SequenceLearner(DIM, 1, **shape)  # noqa: E731
        return episodes.meta_train(build, law, fit, quiet=True, loss=functions.position_loss)[0].training_loss

    work()
    return problems.measured(work, steps)


class Published(nn.Module):
    """The published code's model: transformers' GPT-2 on interleaved tokens."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        self.read_in, self.read_out = nn.Linear(DIM, WIDTH), nn.Linear(WIDTH, 1)
        self.backbone = GPT2Model(
            GPT2Config(n_positions=2 * ROWS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0,
                       embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        )  # fmt: skip

    def forward(self, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
        padded = torch.cat((ys.view(*ys.shape, 1), torch.zeros(*ys.shape, DIM - 1)), dim=2)
        zs = torch.stack((xs, padded), dim=2).view(len(xs), 2 * xs.shape[1], DIM)
        out: torch.Tensor = self.read_out(self.backbone(inputs_embeds=self.read_in(zs)).last_hidden_state)
        return out[:, ::2, 0]


def step_published(steps: int = 40) -> dict[str, Any]:
    """A loop like the published one: tasks drawn one after another in Python, GPT-2, Adam."""
    model = Published()
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)

    def work() -> float:
        loss = torch.tensor(0.0)
        for _ in range(steps):
            xs, ys = torch.zeros(BATCH, ROWS, DIM), torch.zeros(BATCH, ROWS)
            for b in range(BATCH):  # one task object per sequence, evaluated row by row
                w = torch.randn(DIM, 1)
                xs[b] = torch.randn(ROWS, DIM)
                for t in range(ROWS):
                    ys[b, t] = (xs[b, t] @ w)[0]
            adam.zero_grad()
            loss = (model(xs, ys) - ys).square().mean()
            loss.backward()
            adam.step()
        return float(loss.detach())

    work()
    return problems.measured(work, steps)


PROMPTS, LOOPED = 512, 4
MIX = functions.Mixture(
    parts=tuple(functions.Gaussian(dim=8, rows=16, noise=0.5, mean=m, std=0.5) for m in (1.0, -1.0))
)


def _prompts() -> tuple[torch.Tensor, torch.Tensor]:
    batch = MIX(0, PROMPTS)
    return batch["x"].double(), batch["y"][..., 0].double()


def references_ours() -> dict[str, Any]:
    """Ridge, the mixture's posterior mean and dMMSE of 128 tasks, for all prompts and prefixes."""
    x, y = _prompts()
    pool = functions.Pool(dim=8, rows=16, noise=0.5)
    mixture = bayes.exact(MIX)
    assert mixture is not None
    predictors = (bayes.gaussian(0.0, 1.0, 0.5), mixture, bayes.pool(pool.weights, 0.5))

    def work() -> Any:
        return [p(x, y).mean for p in predictors]

    work()
    result = problems.measured(work, PROMPTS)
    result["value"] = [v[:LOOPED].tolist() for v in result["value"]]
    return result


def references_loop() -> dict[str, Any]:
    """The same predictors from their formulas, one prompt and one prefix at a time."""
    x, y = (v.numpy() for v in _prompts())
    weights = functions.Pool(dim=8, rows=16, noise=0.5).weights
    s2 = 0.25

    def ridge(rows: Any, labels: Any, mean: float, var: float) -> Any:
        d = rows.shape[1]
        return np.linalg.solve(rows.T @ rows / s2 + np.eye(d) / var, rows.T @ labels / s2 + np.full(d, mean) / var)

    def evidence(rows: Any, labels: Any, mean: float) -> float:
        cov = s2 * np.eye(len(rows)) + 0.25 * rows @ rows.T
        gap = labels - rows @ np.full(rows.shape[1], mean)
        return float(-0.5 * (gap @ np.linalg.solve(cov, gap) + np.linalg.slogdet(cov)[1])) if len(rows) else 0.0

    def work() -> Any:
        out: list[Any] = [[], [], []]
        for b in range(LOOPED):
            curves: list[Any] = [[], [], []]
            for t in range(x.shape[1]):
                rows, labels, query = x[b, :t], y[b, :t], x[b, t]
                curves[0].append(float(query @ ridge(rows, labels, 0.0, 1.0)))
                log_evidence = np.array([evidence(rows, labels, m) for m in (1.0, -1.0)])
                posterior = np.exp(log_evidence - log_evidence.max()) / np.exp(log_evidence - log_evidence.max()).sum()
                means = [float(query @ ridge(rows, labels, m, 0.25)) for m in (1.0, -1.0)]
                curves[1].append(float(posterior @ means))
                logits = np.array([-((labels - rows @ w) ** 2).sum() / (2 * s2) for w in weights])
                likelihoods = np.exp(logits - logits.max())
                curves[2].append(float(query @ (likelihoods @ weights / likelihoods.sum())))
            for predictions, curve in zip(out, curves, strict=True):
                predictions.append(curve)
        return out

    work()
    return problems.measured(work, LOOPED)

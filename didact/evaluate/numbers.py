"""A user's language model as a learner of numbers: rows are written as text, the answer is read from label tokens.

Behavioural and black-box: the model's internals are not used, and text rounds the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from didact.data import encode
from didact.learn import episodes
from didact.models import forward
from didact.models.model import Model
from didact.types import UserError


class NumberLearner:
    """`(x (B, N, d), y (B, N, 1), query (B, d)) -> (B, 1)` by a language model that reads and writes numbers.

    A task becomes lines `x: 0.30 -1.20 y: 0.80`, the query's without its y. The answer is the mean
    of a grid of candidates under the model,

        y_hat = sum_g g p(text(g)) / sum_g p(text(g)),

    with p the probability of the candidate's tokens and its line end. There is no gradient.

    Args:
        model: any model that scores text (causal or seq2seq).
        grid: candidates for y.
        digits: decimals written; with fewer than two, central differences of 0.05 vanish.
        batch_tokens: padded tokens per forward pass.
    """

    def __init__(self, model: Model, grid: Tensor, digits: int = 2, batch_tokens: int = 16_384) -> None:
        self.model, self.digits, self.batch_tokens = model, digits, batch_tokens
        self.texts = list(dict.fromkeys(self._write(v) for v in grid.tolist()))
        self.values = torch.tensor([float(t) for t in self.texts], dtype=torch.float64)
        if len(self.texts) < 2:
            raise UserError(f"{len(grid)} candidates are only {len(self.texts)} with {digits} decimals: raise digits")

    def __call__(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Answer the queries.

        Raises:
            UserError: more than one target, or a task longer than the model's context.
        """
        if y.shape[-1] != 1:
            raise UserError(f"a language model predicts one target: the tasks have {y.shape[-1]} targets")
        prompts = [self.prompt(*task) for task in zip(x, y[..., 0], query, strict=True)]
        rows = [self._row(prompt, text) for prompt in prompts for text in self.texts]
        logp, _ = forward.row_logp(self.model, rows, self.batch_tokens)
        share = logp.view(len(prompts), len(self.texts)).softmax(-1)
        return (share @ self.values)[:, None].to(y)

    def prompt(self, x: Tensor, y: Tensor, query: Tensor) -> str:
        """One task as text: `x (N, d)`, `y (N,)`, `query (d,)`."""
        lines = [f"x: {self._join(a)} y: {self._write(b)}\n" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        return "".join(lines) + f"x: {self._join(query.tolist())} y:"

    def _row(self, prompt: str, text: str) -> encode.TokenizedExample:
        model = self.model
        row = encode.row(model.tokenizer, prompt, f" {text}\n", model.kind, model.context, end=False)
        if row.size >= model.context:
            # encode.row would truncate the oldest rows, and a task with half its rows is another task.
            raise UserError(f"a task takes more tokens than the model's context of {model.context}: give fewer rows")
        return row

    def _join(self, values: list[float]) -> str:
        return " ".join(self._write(v) for v in values)

    def _write(self, value: float) -> str:
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0: no "-0.00"


def grid_for(y: Tensor, size: int = 41, units: episodes.Units | None = None) -> Tensor:
    """Candidates that span the range of the targets, widened by a fifth on both sides.

    Args:
        y: targets of one number each.
        size: number of candidates.
        units: units that the targets are standardised by, if any.
    """
    scale, shift = (float(units[3][0]), float(units[2][0])) if units else (1.0, 0.0)
    low, high = float(y.min()) * scale + shift, float(y.max()) * scale + shift
    spare = 0.2 * max(high - low, 1e-6)
    return torch.linspace(low - spare, high + spare, size, dtype=torch.float64)

"""Pre-training from text by GPT-3's recipe, in which everything is counted in tokens.

Rate and batch are functions of the tokens seen, so that the plan of a run (how many rows each step has, which ones,
at what rate) is made before it starts, and a step is a pure function of (seed, step).

Source: Brown et al. 2020, arXiv:2005.14165, section 2.3 and appendix B.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import Batch
from didact.learn import fit as loop
from didact.learn import language, schedules
from didact.learn.fit import Hook, Step
from didact.learn.language import TrainResult
from didact.models.model import Model, copy_of, sharing
from didact.types import Cost, Fit, Metric, Result, UserError

TOTAL = 300e9  # tokens, the paper's run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The run in tokens. Warm-up, decay and ramp shrink with `total`; rows are windows of `window` tokens.

    Args:
        total: tokens of the run.
        window: tokens of a row, the model's context.
        rows: rows of the full batch.
        first: tokens of the first batch (not scaled).
        warmup: tokens of the linear warm-up, in a run of 300B.
        end: tokens after which the rate stays at its floor, in a run of 300B.
        ramp: tokens over which the batch grows, in a run of 300B.
        floor: lowest rate, as a share of the peak.
    """

    total: float
    window: int
    rows: int
    first: float = 32_768
    warmup: float = 375e6
    end: float = 260e9
    ramp: float = 4e9
    floor: float = 0.1

    def __post_init__(self) -> None:
        if min(self.total, self.window, self.rows, self.first) <= 0 or not 0 <= self.warmup < self.end:
            raise UserError("total, window, rows and first must be positive, and warmup less than the end of decay")

    @property
    def scale(self) -> float:
        """What the paper's token counts are multiplied by."""
        return self.total / TOTAL

    def batch(self, seen: float) -> int:
        """Rows of the batch drawn after `seen` tokens; at least one."""
        full = self.rows * self.window
        return max(1, round(schedules.ramped(seen, self.first, full, self.ramp * self.scale) / self.window))

    def factor(self, seen: float) -> float:
        """Share of the peak rate once `seen` tokens are done, those of the step itself counted."""
        return schedules.by_tokens(seen, self.warmup * self.scale, self.end * self.scale, self.floor)

    @functools.cached_property
    def plan(self) -> list[int]:
        """Rows before each step, and after the last: step s has rows `plan[s]` to `plan[s + 1]`."""
        out = [0]
        while out[-1] * self.window < self.total:
            out.append(out[-1] + self.batch(out[-1] * self.window))
        return out

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return len(self.plan) - 1

    def rate(self, step: int) -> float:
        """Share of the peak rate at a step."""
        return self.factor(self.plan[step + 1] * self.window)


def recipe_for(steps: int, window: int, rows: int, kind: Any = Recipe, **more: Any) -> Recipe:
    """Return the recipe whose plan has this many steps; with a ramp its total is less than `steps` full batches."""
    low, high = 0.0, float(steps * rows)
    while high - low > 0.25:
        total = (low + high) / 2
        if kind(total=total * window, window=window, rows=rows, **more).steps < steps:
            low = total
        else:
            high = total
    recipe: Recipe = kind(total=high * window, window=window, rows=rows, **more)
    return recipe


def packed(model: Model, texts: Sequence[str], window: int, seed: int = 0) -> list[TokenizedExample]:
    """Join documents in random order by the end token and cut them into full windows; attention crosses documents.

    An incomplete window at the end is dropped, unless it is the only one.
    """
    order = np.random.default_rng([seed, 62]).permutation(len(texts))
    rows = encode.windows(model.tokenizer, [texts[i] for i in order], window)
    if not rows:
        raise UserError("corpus: no text")
    return [row for row in rows if len(row.completion) == window] or rows


def pretrain(
    model: Model, rows: Sequence[TokenizedExample], recipe: Recipe, fit: Fit, hooks: Sequence[Hook] = ()
) -> TrainResult:
    """Train a copy of `model` on packed rows by a recipe; `fit` gives peak rate, optimizer, decay, clip and seed.

    Rows are drawn without replacement epoch by epoch. The log has the rate, and `rows`, the batch.
    """
    start = time.monotonic()
    student = copy_of(model) if fit.parallel == "ddp" else sharing(model)
    student.module.requires_grad_(True)
    run_id = language.identity(model, [rows, repr(recipe)], fit)
    with language.sharding(student, fit) as sharded:
        history, state = loop.fit(
            student.module, Rows(rows, recipe, fit.seed, model),
            lambda module, micro: language.nll(student, micro), fit.replace(schedule="constant"),
            [ByTokens(recipe), *hooks], steps=recipe.steps, name="pretrain", identity=run_id, sharded=sharded,
        )  # fmt: skip
    student.module.eval()
    flops = 6.0 * student.parameters * state.tokens
    cost = Cost(tokens=3 * state.tokens, flops=flops, seconds=time.monotonic() - start)
    return TrainResult(student, history, cost, state)


def result(trained: TrainResult, recipe: Recipe, windows: int, **findings: Any) -> Result:
    """Return a pre-training as a method's result: loss, rate and batch by tokens, and the epochs over the corpus."""
    history = trained.history
    tokens = [int(n) * recipe.window for n in recipe.plan[1:]][: len(history)]
    columns = {"loss": ("nll", "nats a token"), "rate": ("lr", "learning rate"), "batch": ("rows", "rows")}
    curves = {
        name: {"x": tokens, "y": [row[key] for row in history], "xlabel": "tokens", "ylabel": label}
        for name, (key, label) in columns.items()
    }
    summary = {
        "curves": curves, "steps": recipe.steps, "windows": windows, "epochs": recipe.plan[-1] / windows,
        "scale": recipe.scale,
    }  # fmt: skip
    tail = float(np.mean([row["nll"] for row in history[-20:]]))
    loss = Metric(
        after=tail, before=history[0]["nll"], unit="nats", better="lower", help="training loss, last 20 steps"
    )
    return trained.result(findings=summary | findings, metrics={"loss": loss})


class Rows:
    """`batch_at` of a recipe: the rows of a step, a pure function of (seed, step)."""

    def __init__(self, rows: Sequence[TokenizedExample], recipe: Recipe, seed: int, model: Model) -> None:
        self.rows, self.recipe, self.seed, self.pad = rows, recipe, seed, model.pad
        self._order = functools.lru_cache(maxsize=4)(self._shuffled)

    def __call__(self, step: int) -> Batch:
        """The logical batch of a step."""
        n = len(self.rows)
        positions = range(self.recipe.plan[step], self.recipe.plan[step + 1])
        index = [int(self._order(p // n)[p % n]) for p in positions]
        return Batch({"text": [(self.rows[i],) for i in index]}, {"text": index}, "causal", self.pad)

    def _shuffled(self, epoch: int) -> Any:
        return np.random.default_rng([self.seed, 63, epoch]).permutation(len(self.rows))


class ByTokens(Hook):
    """Sets every parameter group's share of the peak rate before a step, and logs the rate that was used."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def before(self, step: Step) -> None:
        """Scale the rate of this step."""
        for group in step.optimizer.param_groups:
            group["scale"] = self.recipe.rate(step.step)

    def after(self, step: Step) -> None:
        """Correct the logged rate, for the loop knows only the constant one, and log the rows."""
        step.log["lr"] *= self.recipe.rate(step.step)
        step.log["rows"] = self.recipe.plan[step.step + 1] - self.recipe.plan[step.step]

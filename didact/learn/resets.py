"""Weight forgetting: rows of the embeddings are reset while a model trains.

What a model has memorised of a word is lost with its row, so it must learn to infer from context what it needs. Active
forgetting resets rows every k steps to the end, temporary forgetting for the first N steps only, and probabilistic
forgetting at every step for some tokens of its batch and for that step only, which suits a model that is already
trained: its embeddings stay the same bit for bit.

Sources: Chen et al. 2023, arXiv:2307.01163; Anand et al. 2024, arXiv:2406.00053.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didact.bounds import Count, Share, Whole
from didact.data.encode import TokenizedExample
from didact.learn import language, schedules
from didact.learn.fit import Hook, Step
from didact.models import prefix
from didact.models.model import Model, copy_of
from didact.types import Fit, UserError

Draw = Literal["initial", "matched", "permuted"]
Mode = Literal["none", "active", "temporary", "probabilistic"]


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """Which embeddings are reset, and when.

    Args:
        mode: active (every `every` steps to the end), temporary (the same before step `until`), probabilistic (at every
            step, for that step; embeddings are frozen), or none.
        every: steps between two resets; fewer than the model needs to memorise its words again.
        until: first step of temporary forgetting without a reset.
        share: of the rows that are reset at a time, drawn at random; 1 by default, 0.1 where probabilistic.
        rows: all, those of the step's batch, or rare: of tokens seen fewer than `below` times in the training records;
            by default the batch's where probabilistic, else all.
        below: occurrences below which a token is rare.
        draw: new rows: initial N(0, initializer_range^2); matched, with the mean and deviation of the table's rows; or
            permuted, the same rows shuffled.
        moments: also reset the optimizer's moments of these rows.
        restart: restart the schedule of the embeddings' learning rate at a reset.
        untie: first give the output head its own weights.
    """

    mode: Mode = "temporary"
    every: Count = 10
    until: Whole = 1000
    share: Share | None = None
    rows: Literal["all", "batch", "rare"] | None = None
    below: Count = 100
    draw: Draw = "initial"
    moments: bool = True
    restart: bool = True
    untie: bool = False


def due(config: ForgetConfig, step: int, steps: int) -> bool:
    """Whether embeddings are reset before step `step` of `steps`: floor((N - 1) / k) times before step N."""
    end = {"active": steps, "temporary": min(steps, config.until)}.get(config.mode, 0)
    return 0 < step < end and step % config.every == 0


def tables(module: nn.Module) -> list[nn.Parameter]:
    """Return the embedding table, and the output head's weights unless they share its storage.

    Raises:
        UserError: the model has no token embeddings.
    """
    inner: Any = module
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    layer: Any = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    if not isinstance(getattr(layer, "weight", None), nn.Parameter):
        raise UserError(f"{type(module).__name__}: has no token embeddings to forget")
    head: Any = inner.get_output_embeddings()
    untied = head is not None and head.weight.data_ptr() != layer.weight.data_ptr()
    return [layer.weight, *([head.weight] if untied else [])]


def ready(model: Model, config: ForgetConfig, lora: int = 0) -> Model:
    """Prepare a model for this kind of forgetting: a copy where embeddings are frozen or the head is untied.

    Raises:
        UserError: LoRA, under which embeddings are frozen, in a mode that trains them.
    """
    if lora and config.mode in ("active", "temporary"):
        raise UserError(f"forget.mode = {config.mode}: under lora embeddings are not trained: use probabilistic")
    if not config.untie and (config.mode != "probabilistic" or lora):
        return model
    prepared = copy_of(model)
    inner: Any = prefix.inner_of(prepared)
    if config.untie and len(tables(inner)) == 1 and (head := inner.get_output_embeddings()) is not None:
        head.weight = nn.Parameter(head.weight.detach().clone())
        inner.config.tie_word_embeddings = False
    if config.mode == "probabilistic" and not lora:
        prepared.module.requires_grad_(True)
        for table in tables(inner):
            table.requires_grad_(False)
    return prepared


# --- resetting rows --------------------------------------------------------------------------


@torch.no_grad()
def fresh(table: Tensor, rows: Tensor, draw: Draw, deviation: float, generator: torch.Generator) -> Tensor:
    """New values for some rows of a table, `(len(rows), d)`."""
    if draw == "permuted":
        return table[rows[torch.randperm(len(rows), generator=generator)]].clone()
    noise = torch.randn(len(rows), table.shape[1], generator=generator).to(table)
    if draw == "initial":
        return deviation * noise
    return table.mean(0) + table.std(0) * noise


@contextlib.contextmanager
def redrawn(model: Model, rows: Sequence[int], draw: Draw, seed: int = 0) -> Iterator[None]:
    """Give these tokens untrained rows inside the block, the same in embeddings and head."""
    borrowed = Borrowed()
    borrowed.take(model.module, torch.tensor(sorted(rows), dtype=torch.long), draw, torch.Generator().manual_seed(seed))
    try:
        yield
    finally:
        borrowed.give_back()


class Borrowed:
    """Rows of tables that are replaced until they are given back."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def take(self, module: nn.Module, rows: Tensor, draw: Draw, generator: torch.Generator) -> None:
        """Put new rows into every table of a module, the same into each."""
        targets = tables(module)
        new = fresh(targets[0], rows, draw, _deviation(module), generator)
        for table in targets:
            index = rows.to(table.device)
            self.kept.append((table, index, table[index].clone()))
            table[index] = new.to(table)

    @torch.no_grad()
    def give_back(self) -> None:
        """Restore every replaced row."""
        while self.kept:
            table, rows, values = self.kept.pop()
            table[rows] = values


def _deviation(module: nn.Module) -> float:
    return float(getattr(getattr(module, "config", None), "initializer_range", None) or 0.02)


def tokens_of(batch: Any) -> list[int]:
    """Return the distinct tokens of a logical batch, without padding, sorted."""
    return sorted({t for items in batch.items.values() for item in items for row in item for t in (*row[0], *row[1])})


def counts(rows: Sequence[TokenizedExample], size: int) -> Tensor:
    """Count how often every token occurs in rows, `(size,)`."""
    counter = Counter(t for row in rows for t in (*row.prompt, *row.completion))
    out = torch.zeros(size, dtype=torch.long)
    if counter:
        out[torch.tensor(list(counter))] = torch.tensor(list(counter.values()))
    return out


# --- in the training loop --------------------------------------------------------------------


class Forgetting(Hook):
    """Resets embeddings as `config` says. Draws depend on the seed and the step alone: the same on every rank.

    Args:
        config: which rows are reset, when, and to what.
        fit: its seed, and its schedule, which the embeddings' rate restarts.
        warmup: number of warm-up steps.
        token_counts: how often every token occurs in the training records, to find rare ones.
    """

    inside = True

    def __init__(self, config: ForgetConfig, fit: Fit, warmup: int = 0, token_counts: Tensor | None = None) -> None:
        self.config, self.fit, self.warmup, self.token_counts = config, fit, warmup, token_counts
        self.borrowed = Borrowed()
        self.count, self.last = 0, 0

    def before(self, step: Step) -> None:
        """Reset rows where a reset is due."""
        if self.config.mode == "probabilistic":
            self.borrowed.take(step.module, *self._drawn(step))
        elif self.config.mode != "none":
            table = tables(step.module)[0]
            if not table.requires_grad:
                raise UserError(f"forget.mode = {self.config.mode}: the embeddings are not trained: use probabilistic")
            if due(self.config, step.step, step.steps):
                self._reset(step, table)
            if self.config.restart and self.last:
                self._restart(step, step.masters.of(table))

    def after(self, step: Step) -> None:
        """A probabilistic reset ends with its step."""
        self.release()

    def release(self) -> None:
        """Restore the rows that a step replaced."""
        self.borrowed.give_back()

    def state(self) -> Any:
        """Number of resets, and the step of the last."""
        return [self.count, self.last]

    def restore(self, state: Any) -> None:
        """Restore what `state` returned."""
        self.count, self.last = state

    @torch.no_grad()
    def _reset(self, step: Step, table: Tensor) -> None:
        rows, draw, generator = self._drawn(step)
        rows, master = rows.to(table.device), step.masters.of(table)
        master[rows] = fresh(master, rows.cpu(), draw, _deviation(step.module), generator)
        if master is not table:
            table[rows] = master[rows].to(table)
        if self.config.moments and len(rows) == len(table):
            step.optimizer.state.pop(master, None)  # with its step count
        elif self.config.moments:
            for slot in step.optimizer.state.get(master, {}).values():
                if isinstance(slot, Tensor) and slot.shape[:1] == table.shape[:1]:
                    slot[rows] = 0
        self.count, self.last = self.count + 1, step.step

    def _drawn(self, step: Step) -> tuple[Tensor, Draw, torch.Generator]:
        """Return the rows to reset before this step, and how new ones are drawn."""
        config, generator = self.config, torch.Generator().manual_seed(self.fit.seed * 1_000_003 + step.step)
        per_step = config.mode == "probabilistic"
        selection = config.rows or ("batch" if per_step else "all")
        if selection == "batch":
            rows = torch.tensor(tokens_of(step.batch), dtype=torch.long)
        elif selection == "rare" and self.token_counts is not None:
            rows = (self.token_counts < config.below).nonzero()[:, 0]
        else:
            rows = torch.arange(len(tables(step.module)[0]))
        share = config.share if config.share is not None else 0.1 if per_step else 1.0
        return rows[torch.rand(len(rows), generator=generator) < share], config.draw, generator

    def _restart(self, step: Step, master: Tensor) -> None:
        """Scale the embeddings' rate by the factor of their restarted schedule over that of the common schedule."""
        groups: list[dict[str, Any]] = step.optimizer.param_groups
        group = next(g for g in groups if any(p is master for p in g["params"]))
        if len(group["params"]) > 1:
            group["params"] = [p for p in group["params"] if p is not master]
            group = {k: v for k, v in group.items() if k != "params"} | {"params": [master]}
            step.optimizer.add_param_group(group)
            group = step.optimizer.param_groups[-1]
        common, restarted = (
            schedules.factor(self.fit.schedule, at, step.steps, self.warmup)
            for at in (step.step, step.step - self.last)
        )
        group["scale"] = restarted / common if common else 1.0


def train(
    model: Model,
    rows: Sequence[TokenizedExample],
    config: ForgetConfig,
    fit: Fit,
    token_counts: Tensor,
    hooks: Sequence[Hook] = (),
    name: str = "train",
) -> tuple[language.TrainResult, Forgetting]:
    """Train a copy of a model on rows by plain next-token loss with resets; `token_counts` are those of `counts`."""
    forgetting = Forgetting(config, fit, fit.warmup_count(len(rows)), token_counts)
    start = ready(model, config, fit.lora)
    trained = language.train(
        start, {"text": language.single(rows)}, language.nll, fit, hooks=[forgetting, *hooks], name=name
    )
    return trained, forgetting

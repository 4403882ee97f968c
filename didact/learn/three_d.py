"""Pre-training with pipeline, data and tensor parallelism (`parallel.engine`): the loop around the steps.

Rate, batch and rows of a step are those of a `pretrain.Recipe`, as in one process. Decisions that depend on the clock,
a signal or a hook are made by all processes together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didact import registry
from didact.data.encode import TokenizedExample
from didact.learn import checkpoint, distributed, interrupts, language, recompute
from didact.learn import fit as loop
from didact.learn.checkpoint import State
from didact.learn.fit import Hook, Step
from didact.learn.language import TrainResult
from didact.learn.masters import Masters
from didact.learn.pretrain import Recipe, Rows
from didact.models.model import Model
from didact.parallel import engine, launch, ramp, stages
from didact.parallel.engine import IGNORE
from didact.parallel.mesh import Grid
from didact.progress import Bar
from didact.types import Cost, Fit, UserError

OWN = ("layout", "pipeline")  # options that change where a step is computed, and not what
RESIDUAL = ("o_proj", "down_proj", "c_proj")  # projections into the residual stream
MICRO_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepwise(Recipe):
    """A recipe whose batch grows in steps of `more` rows, and whose token counts are for a run of `of` tokens."""

    more: int = 32
    of: float = 270e9

    @property
    def scale(self) -> float:
        """What the paper's token counts are multiplied by."""
        return self.total / self.of

    def batch(self, seen: float) -> int:
        """Rows of the batch after `seen` tokens."""
        first = max(1, round(self.first / self.window))
        return ramp.batch(seen / self.window, first, self.more, self.rows, self.ramp * self.scale / self.window)


def drawn(module: nn.Module, seed: int) -> Callable[[str], Tensor]:
    """Return initial weights by name: normal with deviation sqrt(1 / (3 H)), over sqrt(2 L) in projections into the
    residual stream; norms at one, biases at zero. Each has its own seed, so that it is the same in all layouts.
    """
    config: Any = module.config
    shapes = {name: (p.shape, p.dtype) for name, p in module.named_parameters()}
    deviation = math.sqrt(1 / (3 * config.hidden_size))

    def value(name: str) -> Tensor:
        shape, dtype = shapes[name]
        if len(shape) < 2:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
        into_residual = any(f".{part}." in name for part in RESIDUAL)
        scale = deviation / math.sqrt(2 * config.num_hidden_layers) if into_residual else deviation
        generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
        return torch.empty(shape, dtype=dtype).normal_(0.0, scale, generator=generator)

    return value


def train(
    model: Model, rows: Sequence[TokenizedExample], recipe: Recipe, fit: Fit, grid: Grid, device: torch.device,
    hooks: Sequence[Hook] = (), *, schedule: Literal["1f1b", "gpipe"] = "1f1b", values: Callable[[str], Tensor],
) -> TrainResult:  # fmt: skip
    """Train a model of this architecture from the weights that `values` returns, over the processes of a grid.

    Returns:
        The trained model on the first process; on the others one without weights.

    Raises:
        UserError: the loss or gradient became NaN or infinite, or another training writes to the folder.
    """
    launch.check(fit.precision)
    start = time.monotonic()
    worker = engine.Engine(
        model.module, grid, values, micro=micro_rows(grid, recipe, fit), device=device, schedule=schedule,
        precision=torch.bfloat16 if fit.precision == "bfloat16" else None,
    )  # fmt: skip
    optimizer = adam(worker, fit)
    hooks, batch_at, steps = list(hooks), Rows(rows, recipe, fit.seed, model), recipe.steps
    folder = Path(fit.folder) / "pretrain" if fit.folder else None
    run_id = _identity(model, rows, recipe, fit) if folder else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.peers())
        stack.enter_context(checkpoint.locked(folder if _is_first() else None))
        state = taken_back(folder, worker, optimizer, run_id) if folder else State()
        for hook, saved in zip(hooks, state.hooks, strict=False):
            hook.restore(saved)
        for hook in hooks:
            stack.callback(hook.release)
        interrupt = stack.enter_context(interrupts.after_the_step(folder is not None))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(recompute.layers(worker.stage, fit.checkpointing))
        bar = stack.enter_context(Bar("pretrain", steps, state.step, quiet=not _is_first()))
        last_save = time.monotonic()
        for step in range(state.step, steps):
            batch = batch_at(step)
            view = Step(worker.stage.module, step, steps, {}, batch, optimizer, Masters(worker.named))
            for hook in hooks:
                hook.before(view)
            for group in optimizer.param_groups:
                group["lr"] = fit.lr * recipe.rate(step)
            torch.manual_seed((fit.seed * 1_000_003 + step) * grid.pp * grid.dp * grid.tp + _rank(grid))
            ids, labels = tensors([group[0] for group in batch.items["text"]], recipe.window)
            loss = worker.step(ids, labels)
            log = {"step": step + 1, "loss": loss, "nll": loss, "grad_norm": worker.clip(fit.clip)}
            view.log = log | {"lr": fit.lr * recipe.rate(step), "rows": len(ids)}
            if bad := [k for k, v in log.items() if not math.isfinite(v)]:
                raise UserError(f"pretrain: {', '.join(bad)} became NaN or infinite at step {step + 1}: lower the rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.history.append(view.log)
            state.tokens += len(ids) * recipe.window
            state.step = step + 1
            bar.advance(loss, len(ids) * recipe.window)
            stop = [bool(hook.after(view)) for hook in hooks]
            due = fit.save_every is not None and state.step % fit.save_every == 0
            due |= time.monotonic() - last_save >= 60 * fit.save_minutes and _is_first()
            ended, signalled, write = worker.over_all([any(stop), interrupt.signum is not None, due])
            if last := state.step == steps or bool(ended):
                for hook in hooks:
                    hook.end(view)
                state.step = steps
            if folder and (last or signalled or write):
                state.hooks = [hook.state() for hook in hooks]
                keep(folder, worker, optimizer, state, run_id)
                last_save = time.monotonic()
            if last or signalled:
                break
    weights = worker.whole()
    size = sum(p.numel() for p in model.module.parameters())
    cost = Cost(tokens=3 * state.tokens, flops=6.0 * size * state.tokens, seconds=time.monotonic() - start)
    return TrainResult(_model(model, weights, device, grid), state.history, cost, state)


def tensors(rows: Sequence[TokenizedExample], window: int) -> tuple[Tensor, Tensor]:
    """Return token ids and labels `(B, window)`; padding has no label."""
    ids, labels = torch.zeros((len(rows), window), dtype=torch.long), torch.full((len(rows), window), IGNORE)
    for i, row in enumerate(rows):
        whole, begin = torch.tensor(row.prompt + row.completion), max(0, len(row.prompt) - 1)
        ids[i, : len(whole) - 1] = whole[:-1]
        labels[i, begin : len(whole) - 1] = whole[begin + 1 :]
    return ids, labels


def micro_rows(grid: Grid, recipe: Recipe, fit: Fit) -> int:
    """Rows of a micro-batch: what `fit.micro_tokens` allows, and few enough that every stage has one."""
    limit = math.ceil(recipe.rows / (grid.dp * grid.pp))
    return max(1, min(limit, (fit.micro_tokens or MICRO_TOKENS) // recipe.window))


def adam(worker: engine.Engine, fit: Fit) -> torch.optim.Optimizer:
    """Return Adam with a parameter group per kind of weight and mesh; only matrices have weight decay."""
    if fit.optimizer not in ("adamw", "adam"):
        raise UserError(f"optimizer = {fit.optimizer}: this training takes adamw or adam")
    groups: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for p in worker.named.values():
        groups[p.dim() >= 2, getattr(p, "device_mesh", None)].append(p)
    optimizer_class: Any = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    param_groups = [{"params": ps, "weight_decay": fit.weight_decay * decays} for (decays, _), ps in groups.items()]
    return optimizer_class(param_groups, lr=fit.lr, betas=fit.betas, eps=fit.eps)


def keep(
    folder: Path, worker: engine.Engine, optimizer: torch.optim.Optimizer, state: State, run_id: dict[str, Any]
) -> None:
    """Write a checkpoint under the whole model's names, every process its part."""
    slots = checkpoint.optimizer_tensors(optimizer, {p: name for name, p in worker.named.items()})
    several = distributed.group_rank()[1] > 1
    checkpoint.save(folder, worker.named, dataclasses.replace(state, optimizer=slots), run_id, spread=several)


def taken_back(folder: Path, worker: engine.Engine, optimizer: torch.optim.Optimizer, run_id: dict[str, Any]) -> State:
    """Restore the newest checkpoint of a folder, whatever layout wrote it; a new state where there is none."""
    if (loaded := checkpoint.load(folder, run_id, worker.named)) is None:
        return State()
    weights, state = loaded
    with torch.no_grad():
        for name, p in worker.named.items():
            p.copy_(weights[name])
    checkpoint.restore_optimizer(optimizer, state.optimizer, worker.named)
    return dataclasses.replace(state, optimizer={})


def _is_first() -> bool:
    """Whether this is the first of all processes."""
    return distributed.group_rank()[0] == 0


def _identity(model: Model, rows: Sequence[TokenizedExample], recipe: Recipe, fit: Fit) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed; layouts may differ."""
    call = {k: v for k, v in registry.identity().items() if k not in OWN}
    is_meta = next(model.module.parameters()).is_meta
    data = {} if is_meta else language.identity(model, [rows, repr(recipe)], fit)
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(fit).items() if k not in loop.MEMORY}
    return {**options, "steps": recipe.steps, **call, **data}


def _rank(grid: Grid) -> int:
    return (grid.rank("pp") * grid.dp + grid.rank("dp")) * grid.tp + grid.rank("tp")


def _model(start: Model, weights: dict[str, Tensor], device: torch.device, grid: Grid) -> Model:
    """Return the trained model, whole and in its original dtype; on the CPU where no device had it whole."""
    module: Any = start.module
    trained = stages.skeleton(module)
    if _is_first():
        names = {id(p): name for name, p in trained.named_parameters()}
        stages.fill(trained, names, weights.__getitem__, device if grid.mesh is None else torch.device("cpu"))
    trained.to(next(module.parameters()).dtype)
    trained.generation_config = module.generation_config
    return Model(trained.eval(), start.processor, start.kind, start.base)

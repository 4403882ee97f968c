"""Pre-training over pipeline stages, copies and parts of a layer (`parallel.engine`): the loop around the steps.

Rate, batch and rows of a step are a `pretrain.Recipe`'s, as in one process. What the loop decides by its clock, a
signal or a hook, all processes decide together.
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
RESIDUAL = ("o_proj", "down_proj", "c_proj")  # what leads back into the residual stream
MICRO_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepwise(Recipe):
    """A recipe whose batch grows in steps of `more` rows, and whose counts are those of a run of `of` tokens."""

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
    """First weights by name: normal with deviation sqrt(1 / (3 H)), over sqrt(2 L) where they lead back into the
    residual stream; norms at one, biases at zero. Each is drawn by itself, so that no layout changes it.
    """
    config: Any = module.config
    shapes = {name: (p.shape, p.dtype) for name, p in module.named_parameters()}
    deviation = math.sqrt(1 / (3 * config.hidden_size))

    def value(name: str) -> Tensor:
        shape, dtype = shapes[name]
        if len(shape) < 2:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
        back = any(f".{part}." in name for part in RESIDUAL)
        scale = deviation / math.sqrt(2 * config.num_hidden_layers) if back else deviation
        source = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
        return torch.empty(shape, dtype=dtype).normal_(0.0, scale, generator=source)

    return value


def train(
    model: Model, rows: Sequence[TokenizedExample], recipe: Recipe, fit: Fit, grid: Grid, device: torch.device,
    hooks: Sequence[Hook] = (), *, schedule: Literal["1f1b", "gpipe"] = "1f1b", values: Callable[[str], Tensor],
) -> TrainResult:  # fmt: skip
    """Train a model's shape from the weights that `values` gives, over the processes of a grid.

    Returns:
        The trained model on the first process; on the others one without weights.

    Raises:
        UserError: the loss or gradient became NaN or infinite, or another training is at work in the folder.
    """
    launch.check(fit.precision)
    began = time.monotonic()
    part = engine.Engine(
        model.module, grid, values, micro=micro_rows(grid, recipe, fit), device=device, schedule=schedule,
        precision=torch.bfloat16 if fit.precision == "bfloat16" else None,
    )  # fmt: skip
    optimizer = adam(part, fit)
    hooks, batch_at, steps = list(hooks), Rows(rows, recipe, fit.seed, model), recipe.steps
    folder = Path(fit.folder) / "pretrain" if fit.folder else None
    who = _identity(model, rows, recipe, fit) if folder else {}
    with contextlib.ExitStack() as held:
        held.enter_context(distributed.peers())
        held.enter_context(checkpoint.alone(folder if _first() else None))
        now = taken_back(folder, part, optimizer, who) if folder else State()
        for hook, kept in zip(hooks, now.hooks, strict=False):
            hook.restore(kept)
        for hook in hooks:
            held.callback(hook.release)
        asked = held.enter_context(interrupts.after_the_step(folder is not None))
        held.enter_context(torch.random.fork_rng())
        held.enter_context(recompute.layers(part.stage, fit.checkpointing))
        bar = held.enter_context(Bar("pretrain", steps, now.step, quiet=not _first()))
        saved = time.monotonic()
        for step in range(now.step, steps):
            batch = batch_at(step)
            view = Step(part.stage.module, step, steps, {}, batch, optimizer, Masters(part.named))
            for hook in hooks:
                hook.before(view)
            for group in optimizer.param_groups:
                group["lr"] = fit.lr * recipe.rate(step)
            torch.manual_seed((fit.seed * 1_000_003 + step) * grid.pp * grid.dp * grid.tp + _rank(grid))
            ids, labels = tensors([group[0] for group in batch.items["text"]], recipe.window)
            loss = part.step(ids, labels)
            log = {"step": step + 1, "loss": loss, "nll": loss, "grad_norm": part.clip(fit.clip)}
            view.log = log | {"lr": fit.lr * recipe.rate(step), "rows": len(ids)}
            if bad := [k for k, v in log.items() if not math.isfinite(v)]:
                raise UserError(f"pretrain: {', '.join(bad)} became NaN or infinite at step {step + 1}: lower the rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            now.history.append(view.log)
            now.tokens += len(ids) * recipe.window
            now.step = step + 1
            bar.advance(loss, len(ids) * recipe.window)
            stop = [bool(hook.after(view)) for hook in hooks]
            due = fit.save_every is not None and now.step % fit.save_every == 0
            due |= time.monotonic() - saved >= 60 * fit.save_minutes and _first()
            ended, signalled, write = part.over_all([any(stop), asked.signum is not None, due])
            if last := now.step == steps or bool(ended):
                for hook in hooks:
                    hook.end(view)
                now.step = steps
            if folder and (last or signalled or write):
                now.hooks = [hook.state() for hook in hooks]
                keep(folder, part, optimizer, now, who)
                saved = time.monotonic()
            if last or signalled:
                break
    weights = part.whole()
    size = sum(p.numel() for p in model.module.parameters())
    cost = Cost(tokens=3 * now.tokens, flops=6.0 * size * now.tokens, seconds=time.monotonic() - began)
    return TrainResult(_model(model, weights, device, grid), now.history, cost, now)


def tensors(rows: Sequence[TokenizedExample], window: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels `(B, window)`; what a row does not fill has no label."""
    ids, labels = torch.zeros((len(rows), window), dtype=torch.long), torch.full((len(rows), window), IGNORE)
    for i, row in enumerate(rows):
        whole, begin = torch.tensor(row.prompt + row.completion), max(0, len(row.prompt) - 1)
        ids[i, : len(whole) - 1] = whole[:-1]
        labels[i, begin : len(whole) - 1] = whole[begin + 1 :]
    return ids, labels


def micro_rows(grid: Grid, recipe: Recipe, fit: Fit) -> int:
    """Rows of a micro-batch: what `fit.micro_tokens` allows, and few enough that every stage has one."""
    each = math.ceil(recipe.rows / (grid.dp * grid.pp))
    return max(1, min(each, (fit.micro_tokens or MICRO_TOKENS) // recipe.window))


def adam(part: engine.Engine, fit: Fit) -> torch.optim.Optimizer:
    """Adam over groups of one kind of weight each, on one mesh each: matrices decay."""
    if fit.optimizer not in ("adamw", "adam"):
        raise UserError(f"optimizer = {fit.optimizer}: this training takes adamw or adam")
    groups: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for p in part.named.values():
        groups[p.dim() >= 2, getattr(p, "device_mesh", None)].append(p)
    made: Any = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    each = [{"params": ps, "weight_decay": fit.weight_decay * decays} for (decays, _), ps in groups.items()]
    return made(each, lr=fit.lr, betas=fit.betas, eps=fit.eps)


def keep(folder: Path, part: engine.Engine, optimizer: torch.optim.Optimizer, now: State, who: dict[str, Any]) -> None:
    """Write a checkpoint under the whole model's names, every process its part."""
    slots = checkpoint.optimizer_tensors(optimizer, {p: name for name, p in part.named.items()})
    many = distributed.here()[1] > 1
    checkpoint.save(folder, part.named, dataclasses.replace(now, optimizer=slots), who, spread=many)


def taken_back(folder: Path, part: engine.Engine, optimizer: torch.optim.Optimizer, who: dict[str, Any]) -> State:
    """Go on from the newest checkpoint of a folder, whatever layout wrote it; from the start where there is none."""
    if (found := checkpoint.load(folder, who, part.named)) is None:
        return State()
    weights, state = found
    with torch.no_grad():
        for name, p in part.named.items():
            p.copy_(weights[name])
    checkpoint.restore_optimizer(optimizer, state.optimizer, part.named)
    return dataclasses.replace(state, optimizer={})


def _first() -> bool:
    """Whether this is the first of all processes."""
    return distributed.here()[0] == 0


def _identity(model: Model, rows: Sequence[TokenizedExample], recipe: Recipe, fit: Fit) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed; layouts may differ."""
    call = {k: v for k, v in registry.identity().items() if k not in OWN}
    bare = next(model.module.parameters()).is_meta
    whose = {} if bare else language.identity(model, [rows, repr(recipe)], fit)
    of = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(fit).items() if k not in loop.MEMORY}
    return {**of, "steps": recipe.steps, **call, **whose}


def _rank(grid: Grid) -> int:
    return (grid.rank("pp") * grid.dp + grid.rank("dp")) * grid.tp + grid.rank("tp")


def _model(start: Model, weights: dict[str, Tensor], device: torch.device, grid: Grid) -> Model:
    """The trained model: whole and as narrow as it was, on the CPU where no device had it whole."""
    module: Any = start.module
    made = stages.skeleton(module)
    if _first():
        names = {id(p): name for name, p in made.named_parameters()}
        stages.fill(made, names, weights.__getitem__, device if grid.mesh is None else torch.device("cpu"))
    made.to(next(module.parameters()).dtype)
    made.generation_config = module.generation_config
    return Model(made.eval(), start.processor, start.kind, start.base)

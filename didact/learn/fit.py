"""The one training loop: any module, any loss that names its counts, resumable to the same bits.

`batch_at(step)` and `loss_fn(module, micro)` are all a method brings. A loss term is a SUM and the
name of what it is divided by; the loop divides by that size of the whole logical batch, so neither
micro-batches nor ranks change the result, and a mean of means cannot happen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers.optimization import Adafactor

from didact import registry
from didact.learn import checkpoint, distributed, gradients, interrupts, schedules
from didact.learn.checkpoint import State
from didact.learn.gradients import Logical as Logical
from didact.learn.gradients import LossFn as LossFn
from didact.learn.gradients import Term as Term
from didact.learn.gradients import Terms as Terms
from didact.learn.hooks import Hook as Hook
from didact.learn.hooks import NoDropout as NoDropout
from didact.learn.hooks import Step as Step
from didact.learn.hooks import StopWhen as StopWhen
from didact.learn.hooks import every as every
from didact.learn.masters import Masters
from didact.parallel import launch
from didact.parallel.sharding import Sharded
from didact.progress import Bar
from didact.types import Fit, UserError

History = list[dict[str, Any]]
MEMORY = (
    "folder",
    "micro_tokens",
    "checkpointing",
    "packing",
    "save_every",
    "save_minutes",
    "parallel",
)  # what of a Fit never changes the result
MICRO_TOKENS = 4096  # rows of modules without tokens; a language model's own number is `forward.at_once`


def fit(
    module: nn.Module,
    batch_at: Callable[[int], Logical],
    loss_fn: LossFn,
    fit: Fit,
    hooks: Iterable[Hook] = (),
    state: State | None = None,
    *,
    steps: int,
    warmup: int = 0,
    coupled: bool = False,
    groups: Sequence[dict[str, Any]] | None = None,
    name: str = "train",
    identity: Mapping[str, Any] | None = None,
    quiet: bool = False,
    sharded: Sharded | None = None,
) -> tuple[History, State]:
    """Train `module` in place for `steps` steps; weights narrower than float32 through float32 copies (`Masters`).

    Args:
        module: trained where `requires_grad`.
        batch_at: the logical batch of a step, pure in the step; the same on every rank.
        loss_fn: terms of one micro-batch.
        fit: rate, schedule, precision, clipping, seed, checkpoints.
        hooks: called around every step; their state is checkpointed.
        state: of an earlier phase, whose optimizer moments are taken over.
        steps: how many.
        warmup: how many of them warm up.
        coupled: the loss couples the rows of a batch, which is then never split.
        groups: optimizer parameter groups; by default matrices decay and the rest does not.
        name: of this phase: names its checkpoint folder and progress bar.
        identity: what must be equal for a checkpoint to be resumed, beside the training options and the call of the
            method that runs (`registry.identity`).
        quiet: no progress.
        sharded: `module`'s weights over the processes, where they lie so.

    Returns:
        One log row per step, and the state at the end.

    Raises:
        UserError: the loss or gradient became NaN or infinite, one row alone exhausts memory, or another training is
            at work in the folder.
    """
    if fit.replay:  # whoever can mix text in has done so (`language.train`)
        raise UserError(f"replay = {fit.replay}: {name}: this training has no streams of text to mix general text into")
    if fit.parallel != "ddp" and sharded is None:
        raise UserError(f"parallel = {fit.parallel}: {name}: this training has its module whole in every process")
    hooks = list(hooks)
    if sharded and any(hook.inside for hook in hooks):
        raise UserError(f"parallel = {fit.parallel}: {name} changes weights between steps, which takes them whole: ddp")
    launch.check(fit.precision)
    AcceleratorState._reset_state()  # a process may fit twice with different precision
    accelerator = Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[fit.precision], cpu=distributed.on_cpu(module)
    )
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    masters = Masters(named)
    optimizer = _optimizer(gradients.alike(masters.groups(groups or _groups(named, fit.weight_decay))), fit)
    folder = Path(fit.folder) / name if fit.folder else None
    who: dict[str, Any] = {}
    if folder:  # digests of models read all of their weights
        who = {**_identity(fit), "steps": steps, "hooks": len(hooks), **registry.identity(), **(identity or {})}
    now = State()
    if folder and (found := checkpoint.load(folder, who, named)):
        weights, now = found
        with torch.no_grad():
            for n, value in weights.items():
                named[n].copy_(value)
        for hook, kept in zip(hooks, now.hooks, strict=True):
            hook.restore(kept)
    slots = masters.restore(now.optimizer or (state.optimizer if state else {}))
    checkpoint.restore_optimizer(optimizer, slots, masters.all)
    micro_tokens = now.micro_tokens or fit.micro_tokens or MICRO_TOKENS
    inverse = {p: n for n, p in masters.all.items()}

    def snapshot(step: int) -> State:
        return State(
            step,
            checkpoint.optimizer_tensors(optimizer, inverse) | masters.tensors(),
            [h.state() for h in hooks],
            micro_tokens,
            now.history,
            now.tokens,
        )

    module.train()
    first, many = accelerator.is_main_process, accelerator.num_processes > 1
    keeps = folder is not None and (first or sharded is not None)
    clock = _Clock(fit)
    with (
        checkpoint.alone(folder if first else None),
        _released(hooks),
        interrupts.after_the_step(folder is not None) as asked,
        torch.random.fork_rng(),
        Bar(name, steps, now.step, quiet or not first) as bar,
    ):
        for step in range(now.step, steps):
            batch = batch_at(step)
            view = Step(module, step, steps, {}, batch, optimizer, masters, sharded.over.relay if sharded else None)
            with _opened(sharded if hooks else None):
                for hook in hooks:
                    hook.before(view)
            rate = fit.lr * schedules.factor(fit.schedule, step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            while True:
                try:
                    # Drawn anew each step, so that a resumed run needs no generator state.
                    torch.manual_seed(fit.seed * 1_000_003 + step)
                    terms = gradients.backward(
                        module,
                        batch,
                        loss_fn,
                        accelerator,
                        None if coupled else micro_tokens,
                        list(named.values()),
                        coupled,
                        sharded,
                    )
                    break
                except RuntimeError as error:
                    micro_tokens = _smaller(error, micro_tokens, coupled, sharded)
                    module.zero_grad(set_to_none=True)
            masters.take_gradients()
            norm = gradients.clip(masters.all, fit.clip, sharded)
            log = {
                "step": step + 1,
                "loss": sum(v * w for v, w in terms.values()),
                **{k: v for k, (v, _) in terms.items()},
                "grad_norm": norm,
                "lr": rate,
            }
            _finite(log, name)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            masters.give()
            now.history.append(log)
            now.tokens += int(batch.sizes.get("seen", batch.sizes["rows"]))
            bar.advance(log["loss"], batch.sizes.get("seen", 0))
            view.log = log
            with _opened(sharded if hooks else None):
                stops = [hook.after(view) for hook in hooks]
            due = folder is not None and clock.due(step + 1)
            stopped = any(stops)
            if many:  # what ends a training ends it everywhere: a signal reaches processes at different steps
                told = distributed.joined([(stopped, asked.signum, due)])
                stopped, due = any(stop for stop, _, _ in told), told[0][2]
                asked.signum = next((signum for _, signum, _ in told if signum is not None), None)
            if last := step + 1 == steps or stopped:
                for hook in hooks:
                    hook.end(view)
            if folder and keeps and (last or asked.signum is not None or due):
                with clock.paused():
                    checkpoint.save(folder, named, snapshot(steps if last else step + 1), who)
            if last or asked.signum is not None:
                break
    module.eval()
    return now.history, snapshot(steps)


def _opened(sharded: Sharded | None) -> contextlib.AbstractContextManager[None]:
    """Inside, hooks can use the module, wherever its weights lie."""
    return sharded.open() if sharded else contextlib.nullcontext()


@contextlib.contextmanager
def _released(hooks: Sequence[Hook]) -> Iterator[None]:
    """After the block, however it ends, hooks hold nothing of the module."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.release()


class _Clock:
    """When the next checkpoint is due: after `save_every` steps, or `save_minutes`.

    Ten times as long as the last one took to write are let go by first, so that a slow disk does not set the pace.
    """

    def __init__(self, fit: Fit) -> None:
        self.every, self.seconds = fit.save_every, 60 * fit.save_minutes
        self.saved, self.took = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        if self.every is not None and step % self.every == 0:
            return True
        return time.monotonic() - self.saved >= max(self.seconds, 10 * self.took)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.saved = time.monotonic()
        self.took = self.saved - begun


def _optimizer(groups: Sequence[dict[str, Any]], fit: Fit) -> torch.optim.Optimizer:
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.lr)
    if fit.optimizer == "adafactor":  # at the rate given, as T5 is fine-tuned, not at a relative one
        return Adafactor(groups, lr=fit.lr, relative_step=False, scale_parameter=False)
    kind = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=fit.lr, betas=fit.betas, eps=fit.eps)


def _groups(named: Mapping[str, Tensor], decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in named.values() if p.dim() >= 2]
    rest = [p for p in named.values() if p.dim() < 2]
    return [{"params": ps, "weight_decay": d} for ps, d in ((matrices, decay), (rest, 0.0)) if ps]


def _finite(log: Mapping[str, Any], name: str) -> None:
    bad = [k for k, v in log.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise UserError(
            f"{name}: {', '.join(bad)} became NaN or infinite at step {log['step']}: "
            f"lower the learning rate ({log['lr']:.2g} now), or check the data and weights"
        )


def _smaller(error: RuntimeError, micro_tokens: int, coupled: bool, sharded: Sharded | None) -> int:
    """Half the micro-batch after running out of memory; any other error goes on."""
    if not gradients.exhausted(error):
        raise error
    if coupled:
        raise UserError(
            "out of memory, and this loss couples the rows of a batch, which cannot be split: lower rows"
        ) from None
    if sharded and not sharded.over.alone:  # who share a layer must have the same rows in it
        raise UserError(
            f"out of memory in process {distributed.here()[0]}, and others wait within a layer for it: give "
            f"--micro-tokens {micro_tokens // 2} or --checkpointing (the result does not change)"
        ) from None
    agreed = isinstance(error, gradients.ExhaustedError)
    if micro_tokens <= 1 or (sharded and not agreed):  # the smallest record was tried before all are told
        raise UserError("out of memory on a single record: use a smaller model, shorter records or LoRA") from None
    if not agreed or distributed.here()[0] == 0:
        found = str(error) if agreed else "out of memory"
        print(f"{found}: micro_tokens {micro_tokens} -> {micro_tokens // 2} (the result does not change)", flush=True)
    return micro_tokens // 2


def _identity(fit: Fit) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(fit).items() if k not in MEMORY}

"""The training loop: any module, any loss that names its counts, resumable bit for bit.

A method supplies only `batch_at(step)` and `loss_fn(module, micro)`. A loss term is a SUM and the
name of the count it is divided by; the loop divides by that count of the whole logical batch, so
neither micro-batches nor ranks change the result, and a mean of means cannot happen.
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
)  # options of a Fit that never change the result
MICRO_TOKENS = 4096  # default, counted in rows for modules without tokens; language models use `forward.at_once`


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
    """Train `module` in place for `steps` steps, weights narrower than float32 through float32 copies (`Masters`).

    Args:
        module: trained where `requires_grad`.
        batch_at: the logical batch of a step, pure in the step; the same on every rank.
        loss_fn: terms of one micro-batch.
        fit: rate, schedule, precision, clipping, seed, checkpoints.
        hooks: called around every step; their state is checkpointed.
        state: state of an earlier phase, whose optimizer moments are continued.
        steps: number of steps.
        warmup: number of warm-up steps.
        coupled: the loss couples the rows of a batch, which is then never split.
        groups: optimizer parameter groups; by default only matrices have weight decay.
        name: name of this phase, of its checkpoint folder and of its progress bar.
        identity: what must be equal for a checkpoint to be resumed, besides the training options and the call of the
            method that runs (`registry.identity`).
        quiet: show no progress.
        sharded: `module`'s weights where they are sharded over processes.

    Returns:
        One log row per step, and the state at the end.

    Raises:
        UserError: the loss or gradient became NaN or infinite, one row alone exhausts memory, or another training
            writes to the folder.
    """
    if fit.replay:  # callers that can mix in text have done so (`language.train`)
        raise UserError(f"replay = {fit.replay}: {name}: this training has no streams of text to mix general text into")
    if fit.parallel != "ddp" and sharded is None:
        raise UserError(f"parallel = {fit.parallel}: {name}: this training cannot split its module: use ddp")
    hooks = list(hooks)
    if sharded and any(hook.inside for hook in hooks):
        raise UserError(f"parallel = {fit.parallel}: {name} edits whole weights between steps: use ddp")
    launch.check(fit.precision)
    AcceleratorState._reset_state()  # a process may fit twice with different precision
    accelerator = Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[fit.precision], cpu=distributed.on_cpu(module)
    )
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    masters = Masters(parameters)
    optimizer = _optimizer(
        gradients.split_by_mesh(masters.groups(groups or _groups(parameters, fit.weight_decay))), fit
    )
    folder = Path(fit.folder) / name if fit.folder else None
    run_id: dict[str, Any] = {}
    if folder:  # only then: a digest of a model reads all of its weights
        run_id = {**_identity(fit), "steps": steps, "hooks": len(hooks), **registry.identity(), **(identity or {})}
    current = State()
    if folder and (loaded := checkpoint.load(folder, run_id, parameters)):
        weights, current = loaded
        with torch.no_grad():
            for n, value in weights.items():
                parameters[n].copy_(value)
        for hook, saved in zip(hooks, current.hooks, strict=True):
            hook.restore(saved)
    slots = masters.restore(current.optimizer or (state.optimizer if state else {}))
    checkpoint.restore_optimizer(optimizer, slots, masters.all)
    micro_tokens = current.micro_tokens or fit.micro_tokens or MICRO_TOKENS
    names = {p: n for n, p in masters.all.items()}

    def snapshot(step: int) -> State:
        return State(
            step,
            checkpoint.optimizer_tensors(optimizer, names) | masters.tensors(),
            [h.state() for h in hooks],
            micro_tokens,
            current.history,
            current.tokens,
        )

    module.train()
    is_main, multi_process = accelerator.is_main_process, accelerator.num_processes > 1
    saves = folder is not None and (is_main or sharded is not None)
    clock = _Clock(fit)
    with (
        checkpoint.locked(folder if is_main else None),
        _released(hooks),
        interrupts.after_the_step(folder is not None) as interrupt,
        torch.random.fork_rng(),
        Bar(name, steps, current.step, quiet or not is_main) as bar,
    ):
        for step in range(current.step, steps):
            batch = batch_at(step)
            view = Step(module, step, steps, {}, batch, optimizer, masters, sharded.over.relay if sharded else None)
            with _gathered(sharded if hooks else None):
                for hook in hooks:
                    hook.before(view)
            rate = fit.lr * schedules.factor(fit.schedule, step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            while True:
                try:
                    # Seeded anew each step, so that a resumed run needs no generator state.
                    torch.manual_seed(fit.seed * 1_000_003 + step)
                    terms = gradients.backward(
                        module,
                        batch,
                        loss_fn,
                        accelerator,
                        None if coupled else micro_tokens,
                        list(parameters.values()),
                        coupled,
                        sharded,
                    )
                    break
                except RuntimeError as error:
                    micro_tokens = _halved(error, micro_tokens, coupled, sharded)
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
            _check_finite(log, name)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            masters.give()
            current.history.append(log)
            current.tokens += int(batch.sizes.get("seen", batch.sizes["rows"]))
            bar.advance(log["loss"], batch.sizes.get("seen", 0))
            view.log = log
            with _gathered(sharded if hooks else None):
                stops = [hook.after(view) for hook in hooks]
            due = folder is not None and clock.due(step + 1)
            stopped = any(stops)
            if multi_process:  # all processes stop at the same step: a signal reaches them at different ones
                votes = distributed.joined([(stopped, interrupt.signum, due)])
                stopped, due = any(stop for stop, _, _ in votes), votes[0][2]
                interrupt.signum = next((signum for _, signum, _ in votes if signum is not None), None)
            if last := step + 1 == steps or stopped:
                for hook in hooks:
                    hook.end(view)
            if folder and saves and (last or interrupt.signum is not None or due):
                with clock.paused():
                    checkpoint.save(folder, parameters, snapshot(steps if last else step + 1), run_id)
            if last or interrupt.signum is not None:
                break
    module.eval()
    return current.history, snapshot(steps)


def _gathered(sharded: Sharded | None) -> contextlib.AbstractContextManager[None]:
    """Inside the block hooks can use the module, even if its weights are sharded."""
    return sharded.open() if sharded else contextlib.nullcontext()


@contextlib.contextmanager
def _released(hooks: Sequence[Hook]) -> Iterator[None]:
    """Release the hooks after the block, however it ends."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.release()


class _Clock:
    """Decides when the next checkpoint is due: every `save_every` steps, or after `save_minutes`.

    The minutes are extended to ten times as long as the last write took, so that a slow disk does not set the pace.
    """

    def __init__(self, fit: Fit) -> None:
        self.every, self.seconds = fit.save_every, 60 * fit.save_minutes
        self.last_save, self.write_seconds = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        if self.every is not None and step % self.every == 0:
            return True
        return time.monotonic() - self.last_save >= max(self.seconds, 10 * self.write_seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.last_save = time.monotonic()
        self.write_seconds = self.last_save - start


def _optimizer(groups: Sequence[dict[str, Any]], fit: Fit) -> torch.optim.Optimizer:
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.lr)
    if fit.optimizer == "adafactor":  # at an absolute rate, as T5 is fine-tuned, not a relative one
        return Adafactor(groups, lr=fit.lr, relative_step=False, scale_parameter=False)
    kind = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=fit.lr, betas=fit.betas, eps=fit.eps)


def _groups(parameters: Mapping[str, Tensor], decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in parameters.values() if p.dim() >= 2]
    others = [p for p in parameters.values() if p.dim() < 2]
    return [{"params": ps, "weight_decay": d} for ps, d in ((matrices, decay), (others, 0.0)) if ps]


def _check_finite(log: Mapping[str, Any], name: str) -> None:
    invalid = [k for k, v in log.items() if isinstance(v, float) and not math.isfinite(v)]
    if invalid:
        raise UserError(
            f"{name}: {', '.join(invalid)} became NaN or infinite at step {log['step']}: "
            f"lower the learning rate ({log['lr']:.2g} now), or check the data and weights"
        )


def _halved(error: RuntimeError, micro_tokens: int, coupled: bool, sharded: Sharded | None) -> int:
    """Return half of `micro_tokens` after running out of memory; any other error is raised again."""
    if not gradients.exhausted(error):
        raise error
    if coupled:
        raise UserError(
            "out of memory, and this loss couples the rows of a batch, which cannot be split: lower rows"
        ) from None
    if sharded and not sharded.over.alone:  # processes that share a layer must run the same rows through it
        raise UserError(
            f"out of memory in process {distributed.group_rank()[0]}, and others wait within a layer for it: give "
            f"--micro-tokens {micro_tokens // 2} or --checkpointing (the result does not change)"
        ) from None
    agreed = isinstance(error, gradients.ExhaustedError)
    if micro_tokens <= 1 or (sharded and not agreed):  # not agreed: even the smallest record did not fit
        raise UserError("out of memory on a single record: use a smaller model, shorter records or LoRA") from None
    if not agreed or distributed.group_rank()[0] == 0:
        message = str(error) if agreed else "out of memory"
        print(f"{message}: micro_tokens {micro_tokens} -> {micro_tokens // 2} (the result does not change)", flush=True)
    return micro_tokens // 2


def _identity(fit: Fit) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(fit).items() if k not in MEMORY}

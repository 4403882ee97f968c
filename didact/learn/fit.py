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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers.optimization import Adafactor

from didact import folders, registry
from didact.learn import checkpoint, distributed, interrupts, schedules
from didact.learn.checkpoint import State
from didact.learn.masters import Masters
from didact.models import head
from didact.parallel import launch, shards
from didact.parallel.sharding import Sharded
from didact.progress import Bar
from didact.types import Fit, UserError


class Term(NamedTuple):
    """One loss term of a micro-batch: its sum, the batch size it is divided by, its weight.

    `per` names an entry of the logical batch's `sizes` (`"forget.rows"`, `"retain.tokens"`). A term
    of weight 0 is only logged.
    """

    sum: Tensor
    per: str
    weight: float = 1.0


Terms = Mapping[str, Term]


class Logical(Protocol):
    """What `batch_at(step)` returns: a batch that knows its sizes and can be shared out."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """What terms are divided by, counted over the whole batch."""
        ...

    def shard(self, rank: int, world: int) -> Any:
        """One rank's part, with the sizes of the whole."""
        ...

    def split(self, micro_tokens: int | None) -> Sequence[Any]:
        """Parts that fit in memory; None: do not split."""
        ...


LossFn = Callable[[nn.Module, Any], Terms]
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


@dataclass
class Step:
    """What a hook sees: the module, the step just done (or about to be), its log row and batch, and the optimizer.

    The optimizer steps on `masters.of(weight)`, which where weights are narrow is a copy of the weight.
    """

    module: nn.Module
    step: int
    steps: int
    log: dict[str, Any]
    batch: Any
    optimizer: torch.optim.Optimizer
    masters: Masters

    def weights(self) -> dict[str, Tensor]:
        """What is trained, whole and on the CPU: all processes call."""
        named = self.masters.named
        return {n: shards.whole(p.detach()).cpu().contiguous().clone() for n, p in named.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Take back what `weights` gave."""
        for n, p in self.masters.named.items():
            p.copy_(shards.like(weights[n], p))


class Hook:
    """Override what you need. `after` returning True stops training; `state` is checkpointed.

    Every process calls it. `inside`: it changes weights or the optimizer's state by itself, which it needs whole.
    """

    inside = False

    def before(self, step: Step) -> None:
        """Called before each step."""

    def after(self, step: Step) -> bool | None:
        """Called after each step; True stops."""

    def end(self, step: Step) -> None:
        """Called after the last step of a phase, before its last checkpoint."""

    def release(self) -> None:
        """Called when training stops, however it stops: what a step borrowed goes back."""

    def state(self) -> Any:
        """JSON state that `restore` brings back."""

    def restore(self, state: Any) -> None:
        """Take back what `state` gave."""


class StopWhen(Hook):
    """Stops training after the first step of which `rule(step)` is true."""

    def __init__(self, rule: Callable[[Step], bool]) -> None:
        self.rule = rule

    def after(self, step: Step) -> bool:
        """Ask the rule."""
        return self.rule(step)


class every(Hook):  # noqa: N801  (reads as a verb where it is used)
    """Call `look(step) -> dict` before training, every `steps` steps and at the end; rows are in `.rows`."""

    def __init__(self, steps: int, look: Callable[[Step], dict[str, Any]]) -> None:
        self.steps, self.look = steps, look
        self.rows: list[dict[str, Any]] = []

    def before(self, step: Step) -> None:
        """Look once before training."""
        if step.step == 0 and not self.rows:
            self._look(step, 0)

    def after(self, step: Step) -> None:
        """Look every `steps` steps and at the end."""
        done = step.step + 1
        if done % self.steps == 0 or done == step.steps:
            self._look(step, done)

    def state(self) -> Any:
        """The rows so far."""
        return self.rows

    def restore(self, state: Any) -> None:
        """Take back the rows."""
        self.rows = state

    def _look(self, step: Step, done: int) -> None:
        was = step.module.training
        step.module.eval()
        with torch.no_grad():
            self.rows.append({"step": done, **self.look(step)})
        step.module.train(was)


class NoDropout(Hook):
    """Trains without dropout: the log-probs of the model and of its frozen copy then agree where the weights do."""

    def before(self, step: Step) -> None:
        """Nothing but dropout tells the two modes of a language model apart."""
        step.module.eval()


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
    optimizer = _optimizer(masters.groups(groups or _groups(named, fit.weight_decay)), fit)
    who = {**_identity(fit), "steps": steps, "hooks": len(hooks), **registry.identity(), **(identity or {})}
    folder = Path(fit.folder) / name if fit.folder else None
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
        _alone(folder if first else None),
        _released(hooks),
        interrupts.after_the_step(folder is not None) as asked,
        head.kept(),
        torch.random.fork_rng(),
        Bar(name, steps, now.step, quiet or not first) as bar,
    ):
        for step in range(now.step, steps):
            batch = batch_at(step)
            view = Step(module, step, steps, {}, batch, optimizer, masters)
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
                    terms = _backward(
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
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    micro_tokens = _smaller(error, micro_tokens, batch, coupled, sharded is not None)
                    module.zero_grad(set_to_none=True)
            masters.take_gradients()
            norm = _clip(list(masters.all.values()), fit.clip)
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
                stop = [hook.after(view) for hook in hooks]
            if last := step + 1 == steps or any(stop):
                for hook in hooks:
                    hook.end(view)
            due = folder is not None and clock.due(step + 1)
            if many:  # a signal reaches processes at different steps, and their clocks differ
                told = distributed.joined([(asked.signum, due)])
                asked.signum, due = next((s for s, _ in told if s is not None), None), told[0][1]
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
def _alone(folder: Path | None) -> Iterator[None]:
    """Inside the block no other caller writes checkpoints into this folder.

    Raises:
        UserError: one is at it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with folders.claimed(folder) as other:
        if other is not None:
            raise UserError(f"another training keeps its checkpoints in {folder}: {other}; give it another folder")
        yield


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


def _backward(
    module: nn.Module,
    batch: Logical,
    loss_fn: LossFn,
    accelerator: Accelerator,
    micro_tokens: int | None,
    parameters: list[Tensor],
    coupled: bool,
    sharded: Sharded | None,
) -> dict[str, tuple[float, float]]:
    """Gradients of the whole logical batch; `{term: (value, weight)}`."""
    world = accelerator.num_processes
    # A coupled loss needs every row on every rank: each computes all of it and counts for a share.
    mine = batch if coupled else batch.shard(accelerator.process_index, world)
    share = 1 / world if coupled else 1.0
    sums: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    micros = mine.split(micro_tokens)
    for micro, counts in _in_step(micros, batch, micro_tokens) if sharded and not coupled else [(m, 1) for m in micros]:
        with accelerator.autocast():
            given = module, micro.to(accelerator.device)
            terms = sharded(loss_fn, *given) if sharded else loss_fn(*given)
        parts = [t.weight * t.sum / batch.sizes[t.per] for t in terms.values() if t.weight]
        if parts:
            (torch.stack(parts).sum() * share * counts).backward()
        for name, t in terms.items():
            if not counts:
                continue
            sums[name] = (
                sums.get(name, torch.zeros((), dtype=torch.float64))
                + share * t.sum.detach().double().cpu() / batch.sizes[t.per]
            )
            weights[name] = t.weight
    if world > 1:
        _all_reduce([] if sharded else parameters, sums, weights)
    return {name: (float(value), weights[name]) for name, value in sums.items()}


def _in_step(micros: Sequence[Any], batch: Logical, micro_tokens: int | None) -> list[tuple[Any, int]]:
    """A process's micro-batches stream by stream, and with fillers that count 0 as many as every other process has.

    Layers are gathered from all processes whenever one runs them: each must run them as often, in the same order.
    """
    mine: dict[str, list[tuple[Any, int]]] = {}
    for micro in micros:
        mine.setdefault(micro.stream, []).append((micro, 1))
    many = distributed.joined([{stream: len(own) for stream, own in mine.items()}])
    most = {stream: max(theirs.get(stream, 0) for theirs in many) for stream in sorted(set().union(*many))}
    short = [stream for stream, count in most.items() if not mine.get(stream) and count]
    spare = {m.stream: m for m in batch.split(micro_tokens)} if short else {}
    order = []
    for stream, count in most.items():
        own = mine.get(stream, [])
        filler = own[-1][0] if own else spare[stream]
        order += own + [(filler, 0)] * (count - len(own))
    return order


def _all_reduce(parameters: list[Tensor], sums: dict[str, Tensor], weights: dict[str, float]) -> None:
    """Sum gradients and logged terms over ranks. Sums, not means: each term is divided by the whole batch already."""
    import torch.distributed as dist

    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (sums, weights))
    total: dict[str, Tensor] = {}
    for theirs, theirs_weights in gathered:
        weights.update(theirs_weights)
        for name, value in theirs.items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value
    sums.clear()
    sums.update(total)


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


def _clip(parameters: list[Tensor], limit: float) -> float:
    grads = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(grads, limit if limit > 0 else math.inf)
    return float(norm)


def _finite(log: Mapping[str, Any], name: str) -> None:
    bad = [k for k, v in log.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise UserError(
            f"{name}: {', '.join(bad)} became NaN or infinite at step {log['step']}: "
            f"lower the learning rate ({log['lr']:.2g} now), or check the data and weights"
        )


def _smaller(error: BaseException, micro_tokens: int, batch: Logical, coupled: bool, spread: bool) -> int:
    """Half the micro-batch after running out of memory; any other error goes on."""
    if not _exhausted(error):
        raise error
    if coupled:
        raise UserError(
            "out of memory, and this loss couples the rows of a batch, which cannot be split: lower rows"
        ) from None
    if spread:  # the other processes wait within a layer for this one, and cannot begin the step anew
        raise UserError(
            f"out of memory in process {distributed.here()[0]}: give --micro-tokens {micro_tokens // 2} or "
            "--checkpointing (the result does not change)"
        ) from None
    if micro_tokens <= 1:
        raise UserError("out of memory on a single record: use a smaller model, shorter records or LoRA") from None
    print(f"out of memory: micro_tokens {micro_tokens} -> {micro_tokens // 2} (the result does not change)", flush=True)
    return micro_tokens // 2


def _exhausted(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text


def _identity(fit: Fit) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(fit).items() if k not in MEMORY}

"""Compare training in several processes with training in one, on the same batches: loss, gradients, weights, memory.

The reference is a plain loop: the whole model, its gradients and torch's AdamW, without `didact.parallel`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Partial
from torch.distributed.tensor.parallel import RowwiseParallel
from torch.nn import functional as F

from didact.claims import runner
from didact.learn import distributed, three_d
from didact.models import build, shape
from didact.parallel import engine, memory, mesh, stages, tensor
from didact.parallel.engine import IGNORE, Engine
from didact.parallel.mesh import Grid
from didact.parallel.spec import Layout, ModelSpec
from didact.types import Fit

ROWS, LENGTH, VOCABULARY = 7, 12, 260
FIT = Fit(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0)
SECONDS = (0.1, 0.2)  # that a stage sleeps, forward and backward
right_span = stages.span


class Case(NamedTuple):
    """A model and its layout: pipeline stages, data-parallel copies, tensor-parallel parts."""

    arch: Literal["llama", "gpt2"]
    pp: int
    dp: int
    tp: int
    dtype: Literal["float64", "float32"] = "float64"
    schedule: Literal["1f1b", "gpipe"] = "1f1b"


def model(arch: Literal["llama", "gpt2"], seed: int, dtype: str = "float64", **more: Any) -> Any:
    """Build a model of four layers with tied embeddings; a Llama has grouped-query attention."""
    grouped = {"num_key_value_heads": 2} if arch == "llama" else {}
    tokenizer = build.train_tokenizer(["aa"], VOCABULARY)
    built = build.build(arch, tokenizer, d=32, layers=4, heads=4, ffn=64, context=LENGTH, seed=seed, **(grouped | more))
    return built.module.to(getattr(torch, dtype))


def batches(seed: int, count: int, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    """Draw rows of unequal lengths, longest first, some labels masked: copies have unequal label counts."""
    rng = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        ids = torch.randint(0, vocabulary, (ROWS, LENGTH), generator=rng)
        labels = ids.roll(-1, 1)
        for i in range(ROWS):
            labels[i, max(2, LENGTH - 1 - 2 * i) :] = IGNORE
        labels[torch.rand(labels.shape, generator=rng) < 0.1] = IGNORE
        out.append((ids, labels))
    return out


class Reference(NamedTuple):
    """One process's losses, gradients of the first step, and weights after the last."""

    losses: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def train_alone(module: Any, given: Sequence[tuple[Tensor, Tensor]]) -> Reference:
    """Train in this one process."""
    module.train()
    parameters = dict(module.named_parameters())
    splits = [[p for p in parameters.values() if (p.dim() >= 2) is decayed] for decayed in (True, False)]
    groups = [
        {"params": ps, "weight_decay": FIT.weight_decay * decayed} for ps, decayed in zip(splits, (1, 0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=FIT.lr, betas=FIT.betas)
    losses, gradients = [], dict[str, Tensor]()
    for ids, labels in given:
        logits = module(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE)
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(parameters.values(), FIT.clip)
        optimizer.step()
        optimizer.zero_grad()
    return Reference(losses, gradients, {name: p.detach() for name, p in parameters.items()})


def compare(cases: Sequence[Case], seed: int, steps: int = 5, broken: str | None = None) -> list[dict[str, float]]:
    """Return, for every case, its largest differences from one process and from the planner's memory."""
    with runner.patched(BREAKS[broken] if broken else {}):
        return [_compare(case, seed, steps) for case in cases]


def _compare(case: Case, seed: int, steps: int) -> dict[str, float]:
    module = model(case.arch, seed, case.dtype)
    data = batches(seed, steps, module.config.vocab_size)
    grid = mesh.grid(case.pp, case.dp, case.tp, torch.device("cpu"))
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    part = engine.Engine(module, grid, weights.__getitem__, micro=1, device=torch.device("cpu"), schedule=case.schedule)
    optimizer = three_d.adam(part, FIT)
    losses, gradients, held_bytes = [], dict[str, Tensor](), 0.0
    for i, (ids, labels) in enumerate(data):
        losses.append(part.step(ids, labels))
        gradients = part.whole(tensor.gradient) if i == 0 else gradients
        part.clip(FIT.clip)
        optimizer.step()
        held_bytes = part.over_all([_bytes_held(part, optimizer)])[0]
        optimizer.zero_grad()
    final = part.whole()
    if distributed.group_rank()[0]:
        return {}
    reference = train_alone(module, data)
    assert gradients.keys() == reference.gradients.keys() == final.keys()
    return {
        "loss": max(abs(a - b) for a, b in zip(losses, reference.losses, strict=True)),
        "gradient": max(_difference(gradients[n], g) / float(g.abs().max()) for n, g in reference.gradients.items()),
        "weights": max(_difference(final[n], p) for n, p in reference.weights.items()),
        "moved": max(_difference(final[n], p) for n, p in weights.items()),
        "bytes": abs(held_bytes - _planned_bytes(module, grid)),
    }


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _bytes_held(part: Engine, optimizer: torch.optim.Optimizer) -> float:
    """Return the bytes of weights, gradients and optimizer moments in this process."""
    slots = [s for p in part.named.values() for k, s in optimizer.state[p].items() if k != "step"]
    tensors = [*part.named.values(), *(p.grad for p in part.named.values() if p.grad is not None), *slots]
    return float(sum(tensor.local(x).nbytes for x in tensors))


_specs: dict[str, ModelSpec] = {}


def _spec_of(key: str, config: Any) -> ModelSpec:
    """Return a model's spec, cached by `key`."""
    if key not in _specs:
        _specs[key] = shape.of(config)
    return _specs[key]


def _planned_bytes(module: Any, grid: Grid) -> float:
    """Return the planner's bytes of weights, gradients and moments over all processes, sharded over the copies."""
    spec, width = _spec_of(module.config.to_json_string(), module.config), next(module.parameters()).element_size()
    layout = Layout(pp=grid.pp, dp=grid.dp, tp=grid.tp)
    counts = (memory.parameters(spec, layout, stage, vocab=spec.vocab) for stage in range(grid.pp))
    return float(sum(count * grid.tp * memory.state_of_weight(width, 2).total for count in counts))


# --- the pipeline's idle time --------------------------------------------------------------------


class Nap(torch.autograd.Function):
    """The identity, which sleeps in forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sleep and return x."""
        time.sleep(SECONDS[0])
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Sleep and return the gradient."""
        time.sleep(SECONDS[1])
        return grad


class Sleeper(nn.Module):
    """A pipeline stage that only sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Sleep and return x, scaled by a weight so that there is a gradient."""
        nap: Any = Nap.apply
        return nap(x * self.weight)


def pipeline_time_ratios(micros: Sequence[int]) -> list[float]:
    """Run torch's 1F1B schedule with stages that sleep; return its time over a single stage's, by micro-batches."""
    grid = mesh.grid(dist.get_world_size(), 1, 1, torch.device("cpu"))
    ratios, example = [], torch.zeros(1, 1, device="meta", requires_grad=True)
    for m in micros:
        stage = PipelineStage(
            Sleeper(), grid.stage, grid.pp, torch.device("cpu"), example if grid.stage else example.detach(), example,
            group=grid.of("pp").get_group(),
        )  # fmt: skip
        schedule = Schedule1F1B(stage, m, loss_fn=lambda y, t: (y - t).sum(), scale_grads=False)
        for _ in range(2):  # the first run is warm-up: processes connect
            dist.barrier()
            start = time.monotonic()
            if grid.stage == 0:
                schedule.step(torch.zeros(m, 1))
            elif grid.last:
                schedule.step(target=torch.zeros(m, 1), losses=[])
            else:
                schedule.step()
            dist.barrier()
            elapsed = time.monotonic() - start
        ratios.append(elapsed / (m * sum(SECONDS)))
    return ratios


def measure(
    cases: Sequence[Case], seed: int, micros: Sequence[int] = (), broken: str | None = None
) -> tuple[list[dict[str, float]], list[float]]:
    """Return `compared` and `idled`, in the same processes."""
    differences = compare(cases, seed, broken=broken)
    return differences, pipeline_time_ratios(micros) if micros else []


# --- sabotages -----------------------------------------------------------------------------------


class Locally(Engine):
    """An engine that divides the loss by its own copy's label tokens."""

    def backward(self, ids: Tensor, labels: Tensor, count: int) -> Tensor:
        """Ignore the label tokens of the other copies."""
        return super().backward(ids, labels, int((labels != IGNORE).sum()))


def _unsummed() -> Any:
    """Leave the partial outputs of a layer unsummed."""
    return RowwiseParallel(output_layouts=Partial())


def _swapped(layers: int, number: int, count: int) -> range:
    """Swap the layers of the first two stages."""
    return right_span(layers, {0: 1, 1: 0}.get(number, number) if count > 1 else number, count)


BREAKS: dict[str, dict[str, Any]] = {
    "local": {"didact.parallel.engine:Engine": Locally},
    "unsummed": {"didact.parallel.tensor:STYLES": {**tensor.STYLES, "rowwise": _unsummed}},
    "swapped": {"didact.parallel.stages:span": _swapped},
    "averaged": {"didact.parallel.engine:DIVIDE": 2.0},
}

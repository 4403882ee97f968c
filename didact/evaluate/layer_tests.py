"""Tests on a model of predictions from the hypothesis that every block is one step of gradient descent.

Step sizes may vary a little, steps may be left out, the demonstrations' order inside the stream does not matter to a
symmetric loss, and every further step improves on the one before. And hand-constructed weights that do such a step
are mostly zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from didact.evaluate import statistics, three_way
from didact.evaluate.three_way import Episode, LanguageReader
from didact.models import insert, mixers, projections
from didact.models.model import Model

SCALES = (0.5, 0.75, 1.25, 1.5, 2.0)
THRESHOLDS = (1e-4, 1e-3, 1e-2)  # of the largest weight of a matrix
Hook = Callable[[Tensor, Tensor | None], Tensor]


@contextlib.contextmanager
def scaled(module: nn.Module, scales: Mapping[int, float]) -> Iterator[None]:
    """Within the context, these blocks compute `h + s f(h)` in place of `h + f(h)`; scale 0 leaves a block out."""

    def hook(scale: float) -> Callable[..., Any]:
        def change(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            mixed = before + scale * (after - before)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return change

    blocks = insert.blocks(module)
    with contextlib.ExitStack() as undo:
        for i, scale in scales.items():
            undo.callback(blocks[i].register_forward_hook(hook(scale), with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def shuffled(module: nn.Module, at: int, first: int, last: int, seed: int = 0) -> Iterator[None]:
    """Within the context, positions `first` to `last` (exclusive) of the stream are permuted before block `at`."""

    def change(block: nn.Module, args: Any, kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        order = np.arange(states.shape[1])
        order[first:last] = first + np.random.default_rng([seed, at]).permutation(last - first)
        states = states[:, order]
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    handle = insert.blocks(module)[at].register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def interventions(reader: LanguageReader, episodes: Sequence[Episode], seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy after demonstrations under every intervention: one row each, with the interval over episodes."""
    module, rows = reader.model.module, []
    count = len(insert.blocks(module))
    late = count // 2

    def measure(name: str, value: float, scales: Mapping[int, float]) -> None:
        with scaled(module, scales):
            rows.append({"test": name, "value": value, **_accuracy([reader.read(e, apart=True) for e in episodes])})

    measure("as it is", 1.0, {})
    for scale in SCALES:
        measure("updates of the later half times", scale, dict.fromkeys(range(late, count), scale))
    for left_out in range(1, count - late + 1):
        chosen = np.random.default_rng([seed, left_out]).choice(np.arange(late, count), left_out, replace=False)
        measure("later blocks left out", left_out, {int(b): 0.0 for b in chosen})
    for at in range(1, count):
        measure("blocks before the exit", at, dict.fromkeys(range(at, count), 0.0))
    for at in range(count):
        readings = []
        for episode in episodes:
            for query in episode.queries:
                single = episode._replace(queries=(query,))
                whole, alone = (reader.rows(e)[0][0].prompt for e in (single, three_way.without_demos(single)))
                shared = sum(a == b for a, b in zip(whole[:1], alone[:1], strict=True))  # the start token
                with shuffled(module, at, shared, len(whole) - len(alone) + shared, seed):
                    readings.append(reader.read(single, apart=True))
        rows.append({"test": "demonstrations' positions permuted before block", "value": at, **_accuracy(readings)})
    return rows


def small_weights(model: Model) -> dict[str, Any]:
    """Share of weights below a threshold, relative to the largest of their matrix: of the model, and of the hand-made
    construction of one step of gradient descent in a layer."""
    constructed = mixers.constructed(16, eta=1.0, rows=16)
    by_hand = {"q": constructed.wq, "k": constructed.wk, "v": constructed.wv}
    out: dict[str, Any] = {}
    for letter, weight in by_hand.items():
        parts = [p for p in projections.parts(model, letter) if p.weight.dim() > 1]
        matrices = [p.weight.detach() if p.mask is None else p.weight.detach()[p.mask > 0] for p in parts]
        out[letter] = {
            str(t): {"model": float(np.mean([_below(w, t) for w in matrices])), "by hand": _below(weight.detach(), t)}
            for t in THRESHOLDS
        }
    return out


def _below(weight: Tensor, threshold: float) -> float:
    return float((weight.abs() < threshold * weight.abs().max()).double().mean())


def _accuracy(readings: Sequence[three_way.Reading]) -> dict[str, float]:
    return statistics.mean_interval([r.accuracy for r in readings])._asdict()

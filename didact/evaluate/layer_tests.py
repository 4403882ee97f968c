"""What would hold if every block were one step of gradient descent, tried on a model: its weights and its layers.

A step's size may vary a little, steps may be left out, the demonstrations' order inside the stream is nothing to a
symmetric loss, and every further step is better than the one before. And the weights that do such a step by hand are
mostly zeros.
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
    """Inside the block, `h + s f(h)` in place of `h + f(h)` in these blocks; 0 leaves one out."""

    def hook(scale: float) -> Callable[..., Any]:
        def change(block: nn.Module, args: Any, given: Any, output: Any) -> Any:
            before = args[0] if args else given["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            mixed = before + scale * (after - before)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return change

    rows = insert.blocks(module)
    with contextlib.ExitStack() as undo:
        for at, scale in scales.items():
            undo.callback(rows[at].register_forward_hook(hook(scale), with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def shuffled(module: nn.Module, at: int, first: int, last: int, seed: int = 0) -> Iterator[None]:
    """Inside the block, the positions `first` to `last` (without it) of the stream are permuted before block `at`."""

    def change(block: nn.Module, args: Any, given: Any) -> Any:
        states = args[0] if args else given["hidden_states"]
        order = np.arange(states.shape[1])
        order[first:last] = first + np.random.default_rng([seed, at]).permutation(last - first)
        states = states[:, order]
        return ((states, *args[1:]), given) if args else (args, {**given, "hidden_states": states})

    handle = insert.blocks(module)[at].register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def interventions(reader: LanguageReader, episodes: Sequence[Episode], seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy behind demonstrations under every intervention: one row each, with the interval over episodes."""
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
        found = []
        for episode in episodes:
            for query in episode.queries:
                one = episode._replace(queries=(query,))
                whole, alone = (reader.rows(e)[0][0].prompt for e in (one, three_way.unshown(one)))
                shared = sum(a == b for a, b in zip(whole[:1], alone[:1], strict=True))  # the start token
                with shuffled(module, at, shared, len(whole) - len(alone) + shared, seed):
                    found.append(reader.read(one, apart=True))
        rows.append({"test": "demonstrations' positions permuted before block", "value": at, **_accuracy(found)})
    return rows


def small_weights(model: Model) -> dict[str, Any]:
    """Share of weights under a threshold (of the largest of their matrix): the model's, and those made by hand that do
    one step of gradient descent in a layer."""
    hand = mixers.constructed(16, eta=1.0, rows=16)
    made = {"q": hand.wq, "k": hand.wk, "v": hand.wv}
    out: dict[str, Any] = {}
    for letter, weight in made.items():
        parts = [p for p in projections.parts(model, letter) if p.weight.dim() > 1]
        own = [p.weight.detach() if p.mask is None else p.weight.detach()[p.mask > 0] for p in parts]
        out[letter] = {
            str(t): {"model": float(np.mean([_below(w, t) for w in own])), "by hand": _below(weight.detach(), t)}
            for t in THRESHOLDS
        }
    return out


def _below(weight: Tensor, threshold: float) -> float:
    return float((weight.abs() < threshold * weight.abs().max()).double().mean())


def _accuracy(readings: Sequence[three_way.Reading]) -> dict[str, float]:
    return statistics.mean_interval([r.accuracy for r in readings])._asdict()

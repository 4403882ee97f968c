"""How much training changed a model on general text: the rise of its loss and its divergence from the start model.

    general_rise = loss - loss of the start model                    (nats a token, paired text by text)
    general_kl   = mean over tokens of KL(start || model)            (nats a token)

If both models share one linear head W, logits are W h of states h, and the KL is a Bregman divergence,

    KL = logp_start(y) - logp(y) + (h - h_start) . d logp_start(y) / d h_start

for any label y: `(d,)` cached numbers a token stand for the start model, and its head runs once for all models.

The interval over texts is the noise floor: a rise whose interval includes 0 may be due to the choice of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import by_length, collate
from didact.evaluate.measures import Better, Measure, mean_measure
from didact.models import forward, head
from didact.models.model import Model
from didact.objectives import reduce
from didact.objectives import tokens as token_functions

Array = NDArray[np.float64]
TOKENS = 2048  # most tokens of general text: whole texts are read, from the first on
NARROW = 1 << 14  # states of at most this width are cached
Rows = tuple[list[TokenizedExample], list[int]]


def rows(model: Model, texts: Sequence[str], max_tokens: int | None = None) -> Rows:
    """Tokenize texts into rows without end tokens, with the text index of each row; whole texts up to `max_tokens`."""
    out: list[TokenizedExample] = []
    owner: list[int] = []
    count = 0
    end = model.tokenizer.eos_token_id
    for i, text in enumerate(texts):
        pieces = encode.windows(model.tokenizer, [text], model.context - 1)
        if pieces and end is not None and pieces[-1].completion[-1] == end:
            pieces[-1] = pieces[-1]._replace(completion=pieces[-1].completion[:-1])
        pieces = [row for row in pieces if row.completion]
        count += sum(len(row.completion) for row in pieces)
        if max_tokens is not None and count > max_tokens and out:
            break
        out += pieces
        owner += [i] * len(pieces)
    return out, owner


def text_logp(model: Model, texts: Sequence[str]) -> tuple[Array, Array]:
    """Log-prob of every text, SUM over its tokens, and its token count, `(texts,)` each."""
    examples, owner = rows(model, texts)
    total, count = (np.zeros(len(texts)) for _ in range(2))
    for out, values in zip((total, count), forward.row_logp(model, examples), strict=True):
        np.add.at(out, owner, values.numpy())
    return total, count


def score(
    model: Model, start: Model, texts: Sequence[str], once: Callable[[str, Callable[[], Any]], Any]
) -> dict[str, Measure]:
    """`general_loss`, `general_rise` and `general_kl`; empty unless both models read text in the same way.

    Args:
        model: the model after training.
        start: the model before.
        texts: general text; texts beyond a total of `TOKENS` tokens are left out.
        once: caches values that are the same for all models (`Scoring.once`).
    """
    if model.kind not in ("causal", "seq2seq") or model.kind != start.kind or not texts:
        return {}
    examples, owner = once("general rows", lambda: rows(start, texts, TOKENS))
    if not examples or not _same_words(model, start, texts[: owner[-1] + 1]):
        return {}
    cached_states = once(
        "general states", lambda: [_cache(start, [examples[i] for i in g]) for g in _batches(start, examples)]
    )
    shared_head = once("general head", lambda: _head(start))
    shared_head = shared_head is not None and (model is start or _same_head(shared_head, _head(model)))
    loss, before, kl = (np.zeros(owner[-1] + 1) for _ in range(3))
    counts = np.bincount(owner, weights=[len(r.completion) for r in examples])
    for group, cached in zip(_batches(start, examples), cached_states, strict=True):
        chosen = [examples[i] for i in group]
        states = _states(start, chosen) if cached is None else cached.states
        sums = _bregman(model, start, chosen, cached) if shared_head and cached is not None else None
        values = sums or _compared(model, start, chosen, states)
        for out, name in ((loss, "loss"), (before, "before"), (kl, "kl")):
            np.add.at(out, [owner[i] for i in group], values[name].numpy())
    size = counts.mean()  # makes the mean over texts the mean over tokens

    def measure(total: Array, better: Better, text: str) -> Measure:
        return mean_measure(total / size, better, text, "nats a token")

    return {
        "general_loss": measure(loss, "lower", "loss on general text; its interval over texts"),
        "general_rise": measure(loss - before, "lower", "general_loss minus the start model's, paired by text"),
        "general_kl": measure(kl, "lower", "KL of the start model to this one on general text"),
    }


def _batches(model: Model, examples: Sequence[TokenizedExample]) -> list[list[int]]:
    return by_length([row.size for row in examples], forward.at_once(model))


def _collated(model: Model, chosen: Sequence[TokenizedExample]) -> Any:
    return collate(chosen, model.kind, model.pad, model.start).to(model.device)


@torch.no_grad()
def _states(start: Model, chosen: Sequence[TokenizedExample]) -> Tensor:
    """The states that the start model's head is applied to."""
    start.module.eval()
    return forward.label_states(start, _collated(start, chosen)).cpu()


class _Start(NamedTuple):
    """Cached pass of the start model: states `(N, d)`; for a linear head also log-probs `(N,)` and their gradient."""

    states: Tensor
    logp: Tensor | None = None
    slope: Tensor | None = None


def _cache(start: Model, chosen: Sequence[TokenizedExample]) -> _Start | None:
    """The start model's pass to cache; None if its states are whole logits, which are computed anew each time."""
    states = _states(start, chosen)
    if states.shape[-1] > NARROW:
        return None
    own = states.to(start.device).detach().requires_grad_()
    if (weight := forward.linear_head(start, own)) is None:
        return _Start(states)
    with torch.enable_grad():
        logp = head.logp(own, weight.detach(), _collated(start, chosen).target)
    (slope,) = torch.autograd.grad(logp.sum(), own)
    return _Start(states, logp.detach().cpu(), slope.cpu())


def _head(model: Model) -> Tensor | None:
    """The weight of the model's head; None if it is not linear."""
    return forward.linear_head(model, torch.empty(0, dtype=next(model.module.parameters()).dtype))


def _same_head(weight: Tensor, other: Tensor | None) -> bool:
    return other is not None and weight.shape == other.shape and torch.equal(weight, other.to(weight.device))


@torch.no_grad()
def _bregman(model: Model, start: Model, chosen: Sequence[TokenizedExample], cached: _Start) -> dict[str, Tensor]:
    """The result of `_compared` for a model with the start model's head, from at most one product with it."""
    assert cached.logp is not None and cached.slope is not None
    batch = _collated(model, chosen)
    row, before = batch.row.cpu(), cached.logp.double()
    after, kl = before, torch.zeros_like(before)
    if model is not start:
        training = model.module.training
        model.module.eval()
        states = forward.label_states(model, batch)
        weight = forward.linear_head(model, states)
        assert weight is not None
        after = head.logp(states, weight, batch.target).double().cpu()
        change = states.double().cpu() - cached.states.double()
        kl = before - after + (change * cached.slope.double()).sum(-1)
        model.module.train(training)
    sums = {"loss": -after, "before": -before, "kl": kl}
    return {name: reduce.row_sum(v, row, len(chosen)) for name, v in sums.items()}


@torch.no_grad()
def _compared(model: Model, start: Model, chosen: Sequence[TokenizedExample], states: Tensor) -> dict[str, Tensor]:
    """Sums over each row's tokens of the loss of both models and of KL(start || model), on the CPU."""
    batch = _collated(model, chosen)
    if model is start:
        loss = {"loss": lambda logits, target: -token_functions.logp(logits, target)}
        own = forward.of_states(start, states.to(start.device), batch.target, loss)["loss"].double()
        total = reduce.row_sum(own, batch.row, len(chosen)).cpu()
        return {"loss": total, "before": total, "kl": torch.zeros_like(total)}
    training = model.module.training
    model.module.eval()

    def shared(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Restrict a function to the tokens that both models have: training may have added some."""

        def cut(logits: Tensor, target: Tensor, *, ref_logits: Tensor) -> Tensor:
            width = min(logits.shape[-1], ref_logits.shape[-1])
            return fn(logits[:, :width], target, ref_logits=ref_logits[:, :width])

        return cut

    fns = {
        "loss": shared(lambda logits, target, ref_logits: -token_functions.logp(logits, target)),
        "before": shared(lambda logits, target, ref_logits: -token_functions.logp(ref_logits, target)),
        "kl": shared(token_functions.kl_from),
    }
    values = forward.tokens(model, batch, fns, reference=(start, states.to(model.device)))
    model.module.train(training)
    return {k: reduce.row_sum(v.double(), batch.row, len(chosen)).cpu() for k, v in values.items()}


def _same_words(model: Model, start: Model, texts: Sequence[str]) -> bool:
    """Whether two models tokenize these texts in the same way."""
    if model.processor is start.processor:
        return True
    return all(model.tokenizer(t)["input_ids"] == start.tokenizer(t)["input_ids"] for t in texts)

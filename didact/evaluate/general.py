"""What training left of a model's general knowledge: its loss on general text, and how far it moved there.

    general_rise = loss - loss of the start model                    (nats a token, paired text by text)
    general_kl   = mean over tokens of KL(start || model)            (nats a token)

Logits of one linear head W on states h are W h, and then the divergence is that of Bregman,

    KL = logp_start(y) - logp(y) + (h - h_start) . d logp_start(y) / d h_start

for any label y: what the start model said is kept in `(d,)` numbers a token, and its head runs once for all models.

The interval over texts is the noise floor: a rise whose interval holds 0 could be that of other texts.
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
TOKENS = 2048  # of general text that are read at most: texts are read whole, from the first on
NARROW = 1 << 14  # numbers a token, of what is kept
Rows = tuple[list[TokenizedExample], list[int]]


def rows(model: Model, texts: Sequence[str], most: int | None = None) -> Rows:
    """Texts as rows of their own, without an end token, and which text each is of; whole ones up to `most` tokens."""
    out: list[TokenizedExample] = []
    owner: list[int] = []
    count = 0
    end = model.tokenizer.eos_token_id
    for i, text in enumerate(texts):
        cut = encode.windows(model.tokenizer, [text], model.context - 1)
        if cut and end is not None and cut[-1].completion[-1] == end:
            cut[-1] = cut[-1]._replace(completion=cut[-1].completion[:-1])
        cut = [row for row in cut if row.completion]
        count += sum(len(row.completion) for row in cut)
        if most is not None and count > most and out:
            break
        out += cut
        owner += [i] * len(cut)
    return out, owner


def text_logp(model: Model, texts: Sequence[str]) -> tuple[Array, Array]:
    """Log-prob of every text, SUM over its tokens, and its token count, `(texts,)` twice."""
    found, owner = rows(model, texts)
    total, count = (np.zeros(len(texts)) for _ in range(2))
    for out, values in zip((total, count), forward.row_logp(model, found), strict=True):
        np.add.at(out, owner, values.numpy())
    return total, count


def score(
    model: Model, start: Model, texts: Sequence[str], once: Callable[[str, Callable[[], Any]], Any]
) -> dict[str, Measure]:
    """`general_loss`, `general_rise` and `general_kl` of a model that reads text as its start does; else nothing.

    Args:
        model: the model after training.
        start: the model before.
        texts: general text; what is longer in all than `TOKENS` tokens is left out.
        once: keeps what is the same for all models (`Scoring.once`).
    """
    if model.kind not in ("causal", "seq2seq") or model.kind != start.kind or not texts:
        return {}
    found, owner = once("general rows", lambda: rows(start, texts, TOKENS))
    if not found or not _same_words(model, start, texts[: owner[-1] + 1]):
        return {}
    was = once("general states", lambda: [_kept(start, [found[i] for i in g]) for g in _batches(start, found)])
    alike = once("general head", lambda: _head(start))
    alike = alike is not None and (model is start or _same(alike, _head(model)))
    loss, before, kl = (np.zeros(owner[-1] + 1) for _ in range(3))
    counts = np.bincount(owner, weights=[len(r.completion) for r in found])
    for group, kept in zip(_batches(start, found), was, strict=True):
        chosen = [found[i] for i in group]
        states = _states(start, chosen) if kept is None else kept.states
        said = _moved(model, start, chosen, kept) if alike and kept is not None else None
        values = said or _compared(model, start, chosen, states)
        for out, name in ((loss, "loss"), (before, "before"), (kl, "kl")):
            np.add.at(out, [owner[i] for i in group], values[name].numpy())
    size = counts.mean()  # so that the mean of the texts' numbers is the mean over tokens

    def of(total: Array, better: Better, text: str) -> Measure:
        return mean_measure(total / size, better, text, "nats a token")

    return {
        "general_loss": of(loss, "lower", "loss on general text; its interval over texts"),
        "general_rise": of(loss - before, "lower", "general_loss less the start model's, in pairs of texts"),
        "general_kl": of(kl, "lower", "KL of the start model to this one on general text"),
    }


def _batches(model: Model, found: Sequence[TokenizedExample]) -> list[list[int]]:
    return by_length([row.size for row in found], forward.at_once(model))


def _collated(model: Model, chosen: Sequence[TokenizedExample]) -> Any:
    return collate(chosen, model.kind, model.pad, model.start).to(model.device)


@torch.no_grad()
def _states(start: Model, chosen: Sequence[TokenizedExample]) -> Tensor:
    """What the start model's head is applied to."""
    start.module.eval()
    return forward.label_states(start, _collated(start, chosen)).cpu()


class _Start(NamedTuple):
    """What is kept of the start model's pass: states `(N, d)`; of a linear head also log-probs `(N,)`, their slope."""

    states: Tensor
    logp: Tensor | None = None
    slope: Tensor | None = None


def _kept(start: Model, chosen: Sequence[TokenizedExample]) -> _Start | None:
    """The same to be kept; None where these are whole logits, which are made anew each time."""
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
    """The weight of a linear head."""
    return forward.linear_head(model, torch.empty(0, dtype=next(model.module.parameters()).dtype))


def _same(weight: Tensor, other: Tensor | None) -> bool:
    return other is not None and weight.shape == other.shape and torch.equal(weight, other.to(weight.device))


@torch.no_grad()
def _moved(model: Model, start: Model, chosen: Sequence[TokenizedExample], kept: _Start) -> dict[str, Tensor]:
    """What `_compared` gives, for a model whose head is the start model's, by one product with it or none."""
    assert kept.logp is not None and kept.slope is not None
    batch = _collated(model, chosen)
    row, before = batch.row.cpu(), kept.logp.double()
    now, kl = before, torch.zeros_like(before)
    if model is not start:
        was = model.module.training
        model.module.eval()
        states = forward.label_states(model, batch)
        weight = forward.linear_head(model, states)
        assert weight is not None
        now = head.logp(states, weight, batch.target).double().cpu()
        moved = states.double().cpu() - kept.states.double()
        kl = before - now + (moved * kept.slope.double()).sum(-1)
        model.module.train(was)
    sums = {"loss": -now, "before": -before, "kl": kl}
    return {name: reduce.row_sum(v, row, len(chosen)) for name, v in sums.items()}


@torch.no_grad()
def _compared(model: Model, start: Model, chosen: Sequence[TokenizedExample], states: Tensor) -> dict[str, Tensor]:
    """Sums over each row's tokens of the loss of both models and of KL(start || model), on the CPU."""
    batch = _collated(model, chosen)
    if model is start:  # which is itself
        loss = {"loss": lambda logits, target: -token_functions.logp(logits, target)}
        own = forward.of_states(start, states.to(start.device), batch.target, loss)["loss"].double()
        total = reduce.row_sum(own, batch.row, len(chosen)).cpu()
        return {"loss": total, "before": total, "kl": torch.zeros_like(total)}
    was = model.module.training
    model.module.eval()

    def shared(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function on the tokens that both models have: training may have added some."""

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
    model.module.train(was)
    return {k: reduce.row_sum(v.double(), batch.row, len(chosen)).cpu() for k, v in values.items()}


def _same_words(model: Model, start: Model, texts: Sequence[str]) -> bool:
    """Whether two models read these texts as the same tokens."""
    if model.processor is start.processor:
        return True
    return all(model.tokenizer(t)["input_ids"] == start.tokenizer(t)["input_ids"] for t in texts)

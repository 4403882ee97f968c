"""Does a model answer from what stands in its context, or from what its weights know of the words?

A battery is items of named sets: rows whose completion follows from the context. Where the weights would say something
else, that stands beside it as the alternate; where tokens are fresh, their rows of the embeddings (and of the head) are
drawn anew before the model is asked, so that it can know nothing of them. An answer is right where all its tokens are
the model's first choice; `among` counts the first choice among the tokens of the context only.

Source: Anand et al. 2024, arXiv:2406.00053.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.evaluate import statistics
from didact.learn import resets
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import Demo, UserError

ROWS = 128  # of a forward pass
BINS = {"head": 0.5, "middle": 0.9, "tail": 1.0}  # of the tokens that are read, from the most frequent on


class Item(NamedTuple):
    """One question: its row, what the weights would answer, and the tokens whose rows are drawn anew."""

    task: str
    row: TokenizedExample
    alternate: TokenizedExample | None = None
    fresh: tuple[int, ...] = ()


# --- batteries -------------------------------------------------------------------------------


def of_demos(model: Model, demos: Sequence[Demo], seen: Tensor, name: str = "battery") -> list[Item]:
    """A battery of records: `task` names their set, `alternate` is what the weights would say.

    Args:
        model: whose tokenizer is used.
        demos: the records.
        seen: how often training has every token, `(V,)`; those it never has are fresh.
        name: of the records, for errors.
    """

    def tokenized(pairs: Sequence[tuple[str, str]]) -> list[TokenizedExample]:
        return encode.rows(model.tokenizer, pairs, "causal", model.context, name, end=False)

    rows = tokenized([(d.prompt, d.completion) for d in demos])
    others = {i: d.alternate for i, d in enumerate(demos) if d.alternate}
    told = tokenized([(demos[i].prompt, text) for i, text in others.items()]) if others else []
    alternates = dict(zip(others, told, strict=True))
    fresh = [tuple(t for t in dict.fromkeys(r.prompt + r.completion) if not seen[t]) for r in rows]
    return [Item(d.task or "all", rows[i], alternates.get(i), fresh[i]) for i, d in enumerate(demos)]


def renamed(items: Sequence[Item], seen: Tensor) -> list[Item]:
    """The same items as `unseen`: what both context and answer name is put in place by tokens that training never has.

    Items of which the answer names nothing of the context, and models without room for such tokens, give none.
    """
    unused = [t for t in seen.argsort().tolist() if not seen[t]]
    out: list[Item] = []
    for item in items:
        named = list(dict.fromkeys(t for t in item.row.completion if t in item.row.prompt))
        new = dict(zip(named, unused[len(out) % 8 * 8 :], strict=False))
        if named and len(new) == len(named):
            row = TokenizedExample(*(tuple(new.get(t, t) for t in part) for part in item.row))
            out.append(Item("unseen", row, None, tuple(new.values())))
    return out


def of_windows(windows: Sequence[Sequence[int]], seen: Tensor, most: int, seed: int = 0) -> list[Item]:
    """A battery of running text: a pair of tokens `a b` comes again, and after `a` the model is to say `b`.

    The same windows in three sets: as they stand (repeated), with `b` put in place by a token of as frequent a kind
    everywhere (conflict, alternate `b`), and by a fresh token (unseen).

    Raises:
        UserError: no window repeats a pair.
    """
    rng = np.random.default_rng([seed, 71])
    there = {t for window in windows for t in window}
    unused = [t for t in seen.argsort().tolist() if t not in there][:16]
    frequent = seen.argsort(descending=True).tolist()
    rank = {token: place for place, token in enumerate(frequent)}
    known = int((seen > 0).sum())
    items: list[Item] = []
    for window in windows:
        spots = _repeats(window)
        if not spots or len(items) >= 3 * most:
            continue
        at = int(rng.choice(spots))
        b, before = window[at], tuple(window[:at])
        low = max(0, min(rank[b], known - 1) - 10)
        near = [t for t in frequent[low : low + 21] if t not in before and t != b and seen[t]]
        if not near or not unused:
            continue
        other, new = int(rng.choice(near)), int(rng.choice(unused))
        items.append(Item("repeated", TokenizedExample(before, (b,))))
        swapped = tuple(other if t == b else t for t in before)
        items.append(Item("conflict", TokenizedExample(swapped, (other,)), TokenizedExample(swapped, (b,))))
        items.append(
            Item("unseen", TokenizedExample(tuple(new if t == b else t for t in before), (new,)), None, (new,))
        )
    if not items:
        raise UserError(
            "corpus: no pair of tokens comes twice in a held-out window: give longer texts, or a longer context"
        )
    return items


def _repeats(window: Sequence[int]) -> list[int]:
    """Where the second token of a pair that was there before stands, with no other continuation before it."""
    after: dict[int, int] = {}
    spots = []
    for i in range(1, len(window)):
        a, b = window[i - 1], window[i]
        if after.get(a) == b and a != b and i > 2:
            spots.append(i)
        after[a] = b if a not in after or after[a] == b else -1
    return spots


# --- scores ----------------------------------------------------------------------------------


def right(model: Model, rows: Sequence[TokenizedExample]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether every row's answer is the model's first choice at each token, of all tokens and of the context's."""
    free, among = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    was = model.module.training
    model.module.eval()
    order = sorted(range(len(rows)), key=lambda i: rows[i].size)
    with torch.no_grad():
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            batch = collate([rows[i] for i in some], model.kind, model.pad, model.start).to(model.device)
            longest = max(len(rows[i].prompt) for i in some)
            context = torch.tensor([[*p, *p[:1] * (longest - len(p))] for p in (rows[i].prompt for i in some)])
            columns = {"context": context.to(model.device)[batch.row]}
            found = forward.tokens(model, batch, {"free": _right, "among": _right_among}, columns)
            for out, values in ((free, found["free"]), (among, found["among"])):
                wrong = torch.zeros(len(some)).index_add_(0, batch.row.cpu(), 1 - values.float().cpu())
                out[some] = (wrong == 0).numpy()
    model.module.train(was)
    return free, among


def _right(logits: Tensor, target: Tensor, *, context: Tensor) -> Tensor:
    return token_functions.correct(logits, target)


def _right_among(logits: Tensor, target: Tensor, *, context: Tensor) -> Tensor:
    """The same of the tokens `context (n, P)` alone."""
    there = torch.full_like(logits, -torch.inf).scatter(1, context, logits.gather(1, context))
    return token_functions.correct(there, target)


def battery(
    model: Model, items: Sequence[Item], draws: Sequence[resets.Draw] = ("matched", "initial"), seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Scores of every set, as shares with their intervals.

    Returns:
        `{task: {"accuracy", "among", "in_weights"}}`; of sets with fresh tokens the same for every draw of their rows,
        the first under the set's own name and others as `task (draw)`.
    """
    out: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == task]
        fresh = sorted({t for item in own for t in item.fresh})
        for place, draw in enumerate(draws if fresh else draws[:1]):
            with resets.redrawn(model, fresh, draw, seed) if fresh else contextlib.nullcontext():
                free, among = right(model, [item.row for item in own])
                found = {"accuracy": _share(free), "among": _share(among)}
                if others := [item.alternate for item in own if item.alternate is not None]:
                    found["in_weights"] = _share(right(model, others)[0])
            out[f"{task} ({draw})" if place else task] = found | {"n": len(own)}
    return out


def by_frequency(model: Model, rows: Sequence[TokenizedExample], seen: Tensor) -> dict[str, dict[str, Any]]:
    """Loss (nats a token) and accuracy of the label tokens, by how often training has them."""
    ordered, order = seen.sort(descending=True)
    before = (ordered.cumsum(0) - ordered) / seen.sum().clamp_min(1)  # share of the text that more frequent tokens make
    of = torch.empty_like(order)
    of[order] = torch.bucketize(before, torch.tensor([*BINS.values()][:-1]), right=True)
    of[seen == 0] = len(BINS) - 1
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    bins: list[Tensor] = []
    fns = {"logp": token_functions.logp, "hit": lambda logits, target: (logits.argmax(-1) == target).float()}
    for _, batch, values in forward.score(model, rows, fns):
        losses.append(-values["logp"].double().cpu())
        hits.append(values["hit"].double().cpu())
        bins.append(of[batch.target.cpu()])
    loss, hit, bin_ = (torch.cat(v).numpy() for v in (losses, hits, bins))
    out = {}
    for number, name in enumerate(["all", *BINS]):
        here = bin_ == number - 1 if number else bin_ >= 0
        if here.any():
            mean = statistics.mean_interval(loss[here])._asdict()
            out[name] = {"loss": mean, "accuracy": _share(hit[here]), "n": int(here.sum())}
    return out


def _share(values: NDArray[Any]) -> dict[str, float]:
    return statistics.share_interval(float(values.sum()), len(values))._asdict()

"""Does a model answer from its context, or from what its weights know of the words?

A battery is a list of items in named sets: rows whose completion follows from the context. If the weights would answer
something else, that is the alternate; if tokens are fresh, their rows of the embeddings (and of the head) are redrawn
before the model is evaluated, so that it can know nothing of them. An answer is right if all its tokens are the model's
top choice; `among` counts the top choice among the tokens of the context only.

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

ROWS = 128  # per forward pass
BINS = {"head": 0.5, "middle": 0.9, "tail": 1.0}  # cumulative share of the text, most frequent tokens first


class Item(NamedTuple):
    """One question: its row, what the weights would answer, and the tokens whose rows are redrawn."""

    task: str
    row: TokenizedExample
    alternate: TokenizedExample | None = None
    fresh: tuple[int, ...] = ()


# --- batteries -------------------------------------------------------------------------------


def of_demos(model: Model, demos: Sequence[Demo], counts: Tensor, name: str = "battery") -> list[Item]:
    """Build a battery of records: `task` names their set, `alternate` is what the weights would answer.

    Args:
        model: the model whose tokenizer is used.
        demos: the records.
        counts: how often training has every token, `(V,)`; those it never has are fresh.
        name: name of the records in errors.
    """

    def tokenized(pairs: Sequence[tuple[str, str]]) -> list[TokenizedExample]:
        return encode.rows(model.tokenizer, pairs, "causal", model.context, name, end=False)

    rows = tokenized([(d.prompt, d.completion) for d in demos])
    texts = {i: d.alternate for i, d in enumerate(demos) if d.alternate}
    encoded = tokenized([(demos[i].prompt, text) for i, text in texts.items()]) if texts else []
    alternates = dict(zip(texts, encoded, strict=True))
    fresh = [tuple(t for t in dict.fromkeys(r.prompt + r.completion) if not counts[t]) for r in rows]
    return [Item(d.task or "all", rows[i], alternates.get(i), fresh[i]) for i, d in enumerate(demos)]


def renamed(items: Sequence[Item], counts: Tensor) -> list[Item]:
    """The items as set `unseen`: tokens that context and answer share are replaced by tokens that training never has.

    Items whose answer shares no token with the context, and models without enough such tokens, give none.
    """
    unused = [t for t in counts.argsort().tolist() if not counts[t]]
    out: list[Item] = []
    for item in items:
        shared = list(dict.fromkeys(t for t in item.row.completion if t in item.row.prompt))
        mapping = dict(zip(shared, unused[len(out) % 8 * 8 :], strict=False))
        if shared and len(mapping) == len(shared):
            row = TokenizedExample(*(tuple(mapping.get(t, t) for t in part) for part in item.row))
            out.append(Item("unseen", row, None, tuple(mapping.values())))
    return out


def of_windows(windows: Sequence[Sequence[int]], counts: Tensor, limit: int, seed: int = 0) -> list[Item]:
    """Build a battery of running text: a pair of tokens `a b` recurs, and after `a` the model should predict `b`.

    The same windows in three sets: unchanged (repeated), with `b` replaced everywhere by a token of similar frequency
    (conflict, alternate `b`), and by a fresh token (unseen).

    Raises:
        UserError: no window repeats a pair.
    """
    rng = np.random.default_rng([seed, 71])
    present = {t for window in windows for t in window}
    unused = [t for t in counts.argsort().tolist() if t not in present][:16]
    frequent = counts.argsort(descending=True).tolist()
    rank = {token: i for i, token in enumerate(frequent)}
    n_seen = int((counts > 0).sum())
    items: list[Item] = []
    for window in windows:
        positions = _repeats(window)
        if not positions or len(items) >= 3 * limit:
            continue
        at = int(rng.choice(positions))
        b, before = window[at], tuple(window[:at])
        low = max(0, min(rank[b], n_seen - 1) - 10)
        near = [t for t in frequent[low : low + 21] if t not in before and t != b and counts[t]]
        if not near or not unused:
            continue
        substitute, fresh = int(rng.choice(near)), int(rng.choice(unused))
        items.append(Item("repeated", TokenizedExample(before, (b,))))
        swapped = tuple(substitute if t == b else t for t in before)
        items.append(Item("conflict", TokenizedExample(swapped, (substitute,)), TokenizedExample(swapped, (b,))))
        items.append(
            Item("unseen", TokenizedExample(tuple(fresh if t == b else t for t in before), (fresh,)), None, (fresh,))
        )
    if not items:
        raise UserError(
            "corpus: no pair of tokens occurs twice in a held-out window: give longer texts, or a longer context"
        )
    return items


def _repeats(window: Sequence[int]) -> list[int]:
    """Positions of the second token of a repeated pair whose first token had no other continuation before."""
    after: dict[int, int] = {}
    positions = []
    for i in range(1, len(window)):
        a, b = window[i - 1], window[i]
        if after.get(a) == b and a != b and i > 2:
            positions.append(i)
        after[a] = b if a not in after or after[a] == b else -1
    return positions


# --- scores ----------------------------------------------------------------------------------


def right(model: Model, rows: Sequence[TokenizedExample]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether every row's answer is the model's top choice at each token, among all tokens and among the context's."""
    free, among = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    training = model.module.training
    model.module.eval()
    order = sorted(range(len(rows)), key=lambda i: rows[i].size)
    with torch.no_grad():
        for start in range(0, len(order), ROWS):
            group = order[start : start + ROWS]
            batch = collate([rows[i] for i in group], model.kind, model.pad, model.start).to(model.device)
            longest = max(len(rows[i].prompt) for i in group)
            context = torch.tensor([[*p, *p[:1] * (longest - len(p))] for p in (rows[i].prompt for i in group)])
            columns = {"context": context.to(model.device)[batch.row]}
            hits = forward.tokens(model, batch, {"free": _right, "among": _right_among}, columns)
            for out, values in ((free, hits["free"]), (among, hits["among"])):
                errors = torch.zeros(len(group)).index_add_(0, batch.row.cpu(), 1 - values.float().cpu())
                out[group] = (errors == 0).numpy()
    model.module.train(training)
    return free, among


def _right(logits: Tensor, target: Tensor, *, context: Tensor) -> Tensor:
    return token_functions.correct(logits, target)


def _right_among(logits: Tensor, target: Tensor, *, context: Tensor) -> Tensor:
    """Whether the target is the top choice among the tokens `context (n, P)`."""
    masked = torch.full_like(logits, -torch.inf).scatter(1, context, logits.gather(1, context))
    return token_functions.correct(masked, target)


def battery(
    model: Model, items: Sequence[Item], draws: Sequence[resets.Draw] = ("matched", "initial"), seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Scores of every set, as shares with their intervals.

    Returns:
        `{task: {"accuracy", "among", "in_weights"}}`; sets with fresh tokens have one entry per draw of their rows, the
        first under the set's own name and others as `task (draw)`.
    """
    out: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(item.task for item in items):
        subset = [item for item in items if item.task == task]
        fresh = sorted({t for item in subset for t in item.fresh})
        for i, draw in enumerate(draws if fresh else draws[:1]):
            with resets.redrawn(model, fresh, draw, seed) if fresh else contextlib.nullcontext():
                free, among = right(model, [item.row for item in subset])
                scores = {"accuracy": _share(free), "among": _share(among)}
                if alternates := [item.alternate for item in subset if item.alternate is not None]:
                    scores["in_weights"] = _share(right(model, alternates)[0])
            out[f"{task} ({draw})" if i else task] = scores | {"n": len(subset)}
    return out


def by_frequency(model: Model, rows: Sequence[TokenizedExample], counts: Tensor) -> dict[str, dict[str, Any]]:
    """Loss (nats per token) and accuracy of the label tokens, by how often training has them."""
    ordered, order = counts.sort(descending=True)
    before = (ordered.cumsum(0) - ordered) / counts.sum().clamp_min(1)  # share of the text in more frequent tokens
    bin_of = torch.empty_like(order)
    bin_of[order] = torch.bucketize(before, torch.tensor([*BINS.values()][:-1]), right=True)
    bin_of[counts == 0] = len(BINS) - 1
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    bins: list[Tensor] = []
    fns = {"logp": token_functions.logp, "hit": lambda logits, target: (logits.argmax(-1) == target).float()}
    for _, batch, values in forward.score(model, rows, fns):
        losses.append(-values["logp"].double().cpu())
        hits.append(values["hit"].double().cpu())
        bins.append(bin_of[batch.target.cpu()])
    loss, hit, bin_ = (torch.cat(v).numpy() for v in (losses, hits, bins))
    out = {}
    for number, name in enumerate(["all", *BINS]):
        mask = bin_ == number - 1 if number else bin_ >= 0
        if mask.any():
            mean = statistics.mean_interval(loss[mask])._asdict()
            out[name] = {"loss": mean, "accuracy": _share(hit[mask]), "n": int(mask.sum())}
    return out


def _share(values: NDArray[Any]) -> dict[str, float]:
    return statistics.share_interval(float(values.sum()), len(values))._asdict()

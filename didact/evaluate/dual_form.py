"""Attention to demonstrations as an update of weights, and how like the update is to that of fine-tuning on them.

Exact, without softmax: attention over demonstrations X' and query text X is `(W_ZSL + dW_ICL) q` with
`dW_ICL = sum_i (W_V x'_i)(W_K x'_i)^T`; with it, `(1 - lambda) Attn(X) + lambda Attn(X')`, lambda the share of
attention that demonstrations get. What is measured is another matter: whether ICL and fine-tuning change a model's
attention alike, and more alike than fine-tuning on wrong labels, on other text, or than both do in a model that has
learnt nothing.

Sources: Dai et al. 2023, arXiv:2212.10559; the controls: Deutch et al. 2024, arXiv:2311.07772.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from didact.data import words
from didact.data.encode import TokenizedExample
from didact.evaluate import similarity, statistics
from didact.evaluate.three_way import Episode, LanguageReader, Reading, Way, unshown
from didact.learn import subset
from didact.models import attention, projections
from didact.models.attention import Seen

Verdict = Literal["supported", "not supported", "inconclusive"]
SURELY = 0.02  # a similarity that is surely no more than this above a control is not supported


def implicit_update(values: Tensor, keys: Tensor) -> Tensor:
    """`dW = sum_i v_i k_i^T`, `(o, d)`, of values `(N, o)` and keys `(N, d)`: what a linear layer trained by gradient
    descent adds (v_i the errors times minus the rate, k_i the inputs), and what unnormalised attention applies to a
    query."""
    return values.T @ keys


def linear_attention(values: Tensor, keys: Tensor, query: Tensor) -> Tensor:
    """`sum_i v_i (k_i . q)`, `(o,)`."""
    return (keys @ query) @ values


class Parts(NamedTuple):
    """One layer's last place: the share of attention on demonstrations `(H,)`, and what each head reads there and
    elsewhere `(H, d)`."""

    share: Tensor
    shown: Tensor
    rest: Tensor


def split(layer: Seen, demos: slice) -> Parts:
    """Attention as a mixture: what it reads in the demonstrations' columns and in the others."""
    weights, values = layer.weights()[0].double(), layer.value[0].double()
    inside = torch.zeros(weights.shape[-1], dtype=torch.bool)
    inside[demos] = True
    share = weights[:, inside].sum(-1)
    read = [torch.einsum("hs,hsd->hd", weights[:, m], values[:, m]) for m in (inside, ~inside)]
    return Parts(share, read[0] / share.clamp_min(1e-300)[:, None], read[1] / (1 - share).clamp_min(1e-300)[:, None])


class Traces(NamedTuple):
    """What a model does at the last place of a prompt: every layer's update of the stream `(L, D)`, and its scores of
    the columns of the prompt `(L, H, S)`; `seen` are the layers themselves."""

    updates: Tensor
    scores: Tensor
    seen: list[Seen]


def trace(reader: LanguageReader, prompt: Sequence[int], model: Any = None) -> Traces:
    """One pass over a prompt."""
    module = (model or reader.model).module
    ids = torch.tensor([list(prompt)], device=(model or reader.model).device)
    with torch.no_grad(), attention.recorded(module) as tape:
        module(input_ids=ids, use_cache=False)
    scores = torch.stack([s.scores(1)[0, :, 0] for s in tape.passes[0]]).float().cpu()
    return Traces(torch.stack([o[0, -1] for o in tape.outputs[0]]).float().cpu(), scores, tape.passes[0])


@dataclasses.dataclass
class Before:
    """An episode before any tuning: readings, and of every query its prompts and traces with and without
    demonstrations."""

    zero: Reading
    icl: Reading
    prompts: list[tuple[tuple[int, ...], tuple[int, ...]]]  # without, with
    traces: list[tuple[Traces, Traces]]
    lessons: list[TokenizedExample]


def before(reader: LanguageReader, episode: Episode) -> Before:
    """What ICL and ZSL do."""
    alone, whole = ([row[0].prompt for row in reader.rows(e)] for e in (unshown(episode), episode))
    prompts = list(zip(alone, whole, strict=True))
    traces = [(trace(reader, a), trace(reader, b)) for a, b in prompts]
    return Before(reader.without(episode), reader.shown(episode), prompts, traces, reader.lessons(episode))


class After(NamedTuple):
    """An episode after fine-tuning: the reading, traces of the queries without demonstrations, the queries that every
    layer asked with while it learnt, `(H, T, d)` a lesson, and the size of the update, relative to the weights."""

    reading: Reading
    traces: list[Traces]
    asked: list[list[Tensor]]
    size: float


def after(reader: LanguageReader, episode: Episode, known: Before, way: Way, rows: Sequence[TokenizedExample]) -> After:
    """Fine-tune on these rows, look, and put the weights back."""
    parts = projections.parts(reader.model, way.which)
    start = [part.weight.detach().clone() for part in parts]
    reader.tokens_read += 3 * way.how.epochs * sum(r.size for r in rows)
    with attention.recorded(reader.model.module) as tape:
        training = subset.epochs(reader.model, parts, rows, way.how)
        for _ in itertools.islice(training, way.how.epochs - 1):
            pass
        next(training)
    try:
        asked = [[s.query[i] for s in layers] for layers in tape.passes for i in range(layers[0].query.shape[0])]
        moved = sum(float((p.weight.detach() - w).square().sum()) for p, w in zip(parts, start, strict=True))
        size = math.sqrt(moved / sum(float(w.square().sum()) for w in start))
        return After(
            reader.read(unshown(episode)),
            [trace(reader, alone) for alone, _ in known.prompts],
            asked[-len(rows) :],
            size,
        )
    finally:
        training.close()


# --- the measures -----------------------------------------------------------------------------------------


def updates_alike(known: Before, tuned: Sequence[Tensor]) -> Tensor:
    """SimAOU by layer `(L,)`: cosines of ICL's and a tuned model's change of every attention's output, over queries."""
    rows = [
        similarity.update_cosine(icl.updates, other, zero.updates)
        for (zero, icl), other in zip(known.traces, tuned, strict=True)
    ]
    return torch.stack(rows).mean(0)


def random_updates(known: Before, kind: Literal["uniform", "normal"], seed: int) -> list[Tensor]:
    """The paper's baseline, tuned attention whose change is random: uniform on [0, 1), or normal."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if kind == "uniform" else torch.randn
    out = []
    for zero, _ in known.traces:
        start = torch.nn.functional.normalize(zero.updates, dim=-1)
        out.append(start + 1e-3 * draw(start.shape, generator=generator))  # small: its own length counts for nothing
    return out


def scores_alike(known: Before, others: Sequence[Traces]) -> float:
    """SimAM: cosine of the scores of the query's own tokens behind demonstrations and of a model that sees none."""
    found = []
    for (_, icl), other in zip(known.traces, others, strict=True):
        own = other.scores.shape[-1] - 1  # without the start token
        a, b = icl.scores[..., -own:].double(), other.scores[..., 1:].double()
        found.append(float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()))
    return float(np.mean(found))


def ranks_alike(known: Before, tuned: After) -> float:
    """Kendall's tau between ICL's attention to the demonstrations' tokens and the products of the tuned model's query
    with those it asked with while it learnt; NaN where the tokens cannot be told in the prompt."""
    found = []
    for (_, whole), (_, icl), now in zip(known.prompts, known.traces, tuned.traces, strict=True):
        places = _located(whole, known.lessons)
        if places is None:
            return math.nan
        columns = torch.tensor([c for run in places for c in run])
        for layer in range(icl.scores.shape[0]):
            shown = icl.scores[layer].sum(0)[columns].double().softmax(-1)
            last = now.seen[layer].query[0, :, -1]
            # Of a lesson it read all tokens but the last, which only labels; the start token is left out.
            learnt = [
                torch.einsum("hd,htd->t", last, own[layer][:, 1 : len(run)])
                for own, run in zip(tuned.asked, places, strict=True)
            ]
            read = torch.cat([torch.nn.functional.pad(x, (0, 1), value=math.nan) for x in learnt])
            kept = ~read.isnan().cpu()
            found.append(similarity.kendall(shown[kept], read.cpu()[kept].double()))
    return float(np.mean(found))


def _located(prompt: Sequence[int], lessons: Sequence[TokenizedExample]) -> list[range] | None:
    """The columns of every demonstration's tokens in a prompt."""
    out, at = [], 0
    for row in lessons:
        text = (row.prompt + row.completion)[1:]
        at = next((i for i in range(at, len(prompt)) if tuple(prompt[i : i + len(text)]) == text), -1)
        if at < 0:
            return None
        out.append(range(at, at + len(text)))
        at += len(text)
    return out


def demonstrated(known: Before) -> dict[str, Any]:
    """How much attention goes to the demonstrations, by layer, and how exactly attention is the mixture."""
    shares, error = [], 0.0
    for (alone, whole), (_, icl) in zip(known.prompts, known.traces, strict=True):
        columns = slice(1, len(whole) - len(alone) + 1)
        row = []
        for layer in icl.seen:
            found = split(layer, columns)
            mixed = (1 - found.share)[:, None] * found.rest + found.share[:, None] * found.shown
            error = max(error, float((mixed - layer.heads[0, -1].double()).abs().max()))
            row.append(float(found.share.mean()))
        shares.append(row)
    return {"share": np.mean(shares, 0), "error": error}


# --- verdicts -----------------------------------------------------------------------------------------------


def supported(value: Sequence[float], controls: dict[str, Sequence[float]]) -> tuple[Verdict, dict[str, Any]]:
    """Whether a similarity is above every control, by paired intervals over draws.

    Supported: every interval lies above 0. Not supported: one lies below `SURELY`. Else inconclusive.
    """
    apart = {name: statistics.paired_interval(value, other) for name, other in controls.items()}
    said: Verdict = "inconclusive"
    if all(i.low > 0 for i in apart.values()):
        said = "supported"
    elif any(i.high < SURELY for i in apart.values()):
        said = "not supported"
    return said, {name: interval._asdict() for name, interval in apart.items()}


def relabelled(episode: Episode, seed: int) -> Episode:
    """The same demonstrations, each with a wrong one of its own choices."""
    rng = np.random.default_rng([seed, 192])
    demos = []
    for d in episode.demos:
        others = [c for c in d.choices if words.key(c) != words.key(d.completion)]
        demos.append(dataclasses.replace(d, completion=others[rng.integers(len(others))]))
    return episode._replace(demos=tuple(demos))


def unrelated(lessons: Sequence[TokenizedExample], tokens: Sequence[int], seed: int) -> list[TokenizedExample]:
    """Rows as long as these, of other text."""
    rng = np.random.default_rng([seed, 193])
    out = []
    for row in lessons:
        need = row.size - 1
        at = int(rng.integers(max(1, len(tokens) - need)))
        ids = (row.prompt[0], *tokens[at : at + need])
        out.append(TokenizedExample(ids[: len(row.prompt)], ids[len(row.prompt) :]))
    return out

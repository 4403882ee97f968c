"""Attention to demonstrations as an implicit weight update, and its similarity to fine-tuning on them.

Exact, without softmax: attention over demonstrations X' and query text X is `(W_ZSL + dW_ICL) q` with
`dW_ICL = sum_i (W_V x'_i)(W_K x'_i)^T`; with softmax, `(1 - lambda) Attn(X) + lambda Attn(X')`, lambda the share of
attention on the demonstrations. The empirical question is separate: whether ICL and fine-tuning change a model's
attention similarly, and more so than ICL and fine-tuning on wrong labels or on other text, or than both in an
untrained model.

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
from didact.evaluate.three_way import Episode, LanguageReader, Reading, Way, without_demos
from didact.learn import subset
from didact.models import attention, projections
from didact.models.attention import LayerRecord

Verdict = Literal["supported", "not supported", "inconclusive"]
SURELY = 0.02  # not supported: the interval of the difference to a control ends below this


def implicit_update(values: Tensor, keys: Tensor) -> Tensor:
    """`dW = sum_i v_i k_i^T`, `(o, d)`, of values `(N, o)` and keys `(N, d)`: the update that gradient descent makes to
    a linear layer (v_i the errors times minus the rate, k_i the inputs), and that unnormalised attention applies to a
    query."""
    return values.T @ keys


def linear_attention(values: Tensor, keys: Tensor, query: Tensor) -> Tensor:
    """`sum_i v_i (k_i . q)`, `(o,)`."""
    return (keys @ query) @ values


class Parts(NamedTuple):
    """One layer at the last position: the share of attention on demonstrations `(H,)`, and each head's mean value over
    the demonstrations (`shown`) and over the other columns (`rest`), `(H, d)`."""

    share: Tensor
    shown: Tensor
    rest: Tensor


def split(layer: LayerRecord, demos: slice) -> Parts:
    """Split attention into a mixture of the demonstrations' columns and the others."""
    weights, values = layer.weights()[0].double(), layer.value[0].double()
    inside = torch.zeros(weights.shape[-1], dtype=torch.bool)
    inside[demos] = True
    share = weights[:, inside].sum(-1)
    read = [torch.einsum("hs,hsd->hd", weights[:, m], values[:, m]) for m in (inside, ~inside)]
    return Parts(share, read[0] / share.clamp_min(1e-300)[:, None], read[1] / (1 - share).clamp_min(1e-300)[:, None])


class Traces(NamedTuple):
    """A model at the last position of a prompt: every layer's update of the residual stream `(L, D)`, its attention
    scores over the prompt's columns `(L, H, S)`, and the recorded layers (`seen`)."""

    updates: Tensor
    scores: Tensor
    seen: list[LayerRecord]


def trace(reader: LanguageReader, prompt: Sequence[int], model: Any = None) -> Traces:
    """Run the model once over a prompt and record its attention."""
    module = (model or reader.model).module
    ids = torch.tensor([list(prompt)], device=(model or reader.model).device)
    with torch.no_grad(), attention.recorded(module) as tape:
        module(input_ids=ids, use_cache=False)
    scores = torch.stack([s.scores(1)[0, :, 0] for s in tape.passes[0]]).float().cpu()
    return Traces(torch.stack([o[0, -1] for o in tape.outputs[0]]).float().cpu(), scores, tape.passes[0])


@dataclasses.dataclass
class Before:
    """An episode before fine-tuning: readings, and for every query its prompts and traces without and with
    demonstrations."""

    zero: Reading
    icl: Reading
    prompts: list[tuple[tuple[int, ...], tuple[int, ...]]]  # without, with
    traces: list[tuple[Traces, Traces]]
    lessons: list[TokenizedExample]


def before(reader: LanguageReader, episode: Episode) -> Before:
    """Read an episode with demonstrations (ICL) and without (zero-shot, ZSL)."""
    alone, whole = ([row[0].prompt for row in reader.rows(e)] for e in (without_demos(episode), episode))
    prompts = list(zip(alone, whole, strict=True))
    traces = [(trace(reader, a), trace(reader, b)) for a, b in prompts]
    return Before(reader.without(episode), reader.shown(episode), prompts, traces, reader.lessons(episode))


class After(NamedTuple):
    """An episode after fine-tuning: the reading, traces of the queries without demonstrations, each layer's attention
    queries in the last epoch (`asked`, `(H, T, d)` a lesson), and the size of the update relative to the weights."""

    reading: Reading
    traces: list[Traces]
    asked: list[list[Tensor]]
    size: float


def after(reader: LanguageReader, episode: Episode, base: Before, way: Way, rows: Sequence[TokenizedExample]) -> After:
    """Fine-tune on these rows, read the episode, and restore the weights."""
    parts = projections.parts(reader.model, way.which)
    start = [part.weight.detach().clone() for part in parts]
    reader.tokens_read += 3 * way.how.epochs * sum(r.size for r in rows)
    with attention.recorded(reader.model.module) as tape:
        training = subset.epochs(reader.model, parts, rows, way.how)
        for _ in itertools.islice(training, way.how.epochs - 1):
            pass
        next(training)
    try:
        queries = [[s.query[i] for s in layers] for layers in tape.passes for i in range(layers[0].query.shape[0])]
        change = sum(float((p.weight.detach() - w).square().sum()) for p, w in zip(parts, start, strict=True))
        size = math.sqrt(change / sum(float(w.square().sum()) for w in start))
        return After(
            reader.read(without_demos(episode)),
            [trace(reader, alone) for alone, _ in base.prompts],
            queries[-len(rows) :],
            size,
        )
    finally:
        training.close()


# --- the measures -----------------------------------------------------------------------------------------


def update_similarity(base: Before, tuned: Sequence[Tensor]) -> Tensor:
    """SimAOU by layer `(L,)`: cosine of ICL's and the tuned model's change of attention outputs, mean over queries."""
    rows = [
        similarity.update_cosine(icl.updates, update, zero.updates)
        for (zero, icl), update in zip(base.traces, tuned, strict=True)
    ]
    return torch.stack(rows).mean(0)


def random_updates(base: Before, kind: Literal["uniform", "normal"], seed: int) -> list[Tensor]:
    """The paper's baseline: attention outputs changed at random, uniform on [0, 1) or normal."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if kind == "uniform" else torch.randn
    out = []
    for zero, _ in base.traces:
        unit = torch.nn.functional.normalize(zero.updates, dim=-1)
        out.append(unit + 1e-3 * draw(unit.shape, generator=generator))  # small: only the noise's direction counts
    return out


def score_similarity(base: Before, without: Sequence[Traces]) -> float:
    """SimAM: cosine of the attention scores of the query's own tokens, with demonstrations and `without`."""
    cosines = []
    for (_, icl), traces in zip(base.traces, without, strict=True):
        length = traces.scores.shape[-1] - 1  # without the start token
        a, b = icl.scores[..., -length:].double(), traces.scores[..., 1:].double()
        cosines.append(float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()))
    return float(np.mean(cosines))


def rank_similarity(base: Before, tuned: After) -> float:
    """Kendall's tau between ICL's attention to the demonstrations' tokens and the products of the tuned model's query
    with its queries during fine-tuning; NaN if the tokens cannot be located in the prompt."""
    taus = []
    for (_, whole), (_, icl), traces in zip(base.prompts, base.traces, tuned.traces, strict=True):
        spans = _locate(whole, base.lessons)
        if spans is None:
            return math.nan
        columns = torch.tensor([c for span in spans for c in span])
        for layer in range(icl.scores.shape[0]):
            attended = icl.scores[layer].sum(0)[columns].double().softmax(-1)
            last = traces.seen[layer].query[0, :, -1]
            # Training read all tokens of a lesson but the last, which is only a label; the start token is left out.
            products = [
                torch.einsum("hd,htd->t", last, queries[layer][:, 1 : len(span)])
                for queries, span in zip(tuned.asked, spans, strict=True)
            ]
            product = torch.cat([torch.nn.functional.pad(x, (0, 1), value=math.nan) for x in products])
            valid = ~product.isnan().cpu()
            taus.append(similarity.kendall(attended[valid], product.cpu()[valid].double()))
    return float(np.mean(taus))


def _locate(prompt: Sequence[int], lessons: Sequence[TokenizedExample]) -> list[range] | None:
    """The columns of every demonstration's tokens in a prompt; None if one is missing."""
    spans, position = [], 0
    for row in lessons:
        text = (row.prompt + row.completion)[1:]
        position = next((i for i in range(position, len(prompt)) if tuple(prompt[i : i + len(text)]) == text), -1)
        if position < 0:
            return None
        spans.append(range(position, position + len(text)))
        position += len(text)
    return spans


def demonstrated(base: Before) -> dict[str, Any]:
    """The share of attention on the demonstrations by layer, and the largest error of the mixture identity."""
    shares, error = [], 0.0
    for (alone, whole), (_, icl) in zip(base.prompts, base.traces, strict=True):
        columns = slice(1, len(whole) - len(alone) + 1)
        row = []
        for layer in icl.seen:
            parts = split(layer, columns)
            mixed = (1 - parts.share)[:, None] * parts.rest + parts.share[:, None] * parts.shown
            error = max(error, float((mixed - layer.heads[0, -1].double()).abs().max()))
            row.append(float(parts.share.mean()))
        shares.append(row)
    return {"share": np.mean(shares, 0), "error": error}


# --- verdicts -----------------------------------------------------------------------------------------------


def supported(value: Sequence[float], controls: dict[str, Sequence[float]]) -> tuple[Verdict, dict[str, Any]]:
    """Decide whether a similarity is above every control, by paired intervals of the difference over draws.

    Supported: every interval lies above 0. Not supported: one lies below `SURELY`. Else inconclusive.
    """
    intervals = {name: statistics.paired_interval(value, control) for name, control in controls.items()}
    verdict: Verdict = "inconclusive"
    if all(i.low > 0 for i in intervals.values()):
        verdict = "supported"
    elif any(i.high < SURELY for i in intervals.values()):
        verdict = "not supported"
    return verdict, {name: interval._asdict() for name, interval in intervals.items()}


def relabelled(episode: Episode, seed: int) -> Episode:
    """Return the episode with every demonstration's label replaced by a wrong one of its choices."""
    rng = np.random.default_rng([seed, 192])
    demos = []
    for d in episode.demos:
        wrong_choices = [c for c in d.choices if words.key(c) != words.key(d.completion)]
        demos.append(dataclasses.replace(d, completion=wrong_choices[rng.integers(len(wrong_choices))]))
    return episode._replace(demos=tuple(demos))


def unrelated(lessons: Sequence[TokenizedExample], tokens: Sequence[int], seed: int) -> list[TokenizedExample]:
    """Return rows of the same lengths as `lessons` from other text."""
    rng = np.random.default_rng([seed, 193])
    out = []
    for row in lessons:
        need = row.size - 1
        at = int(rng.integers(max(1, len(tokens) - need)))
        ids = (row.prompt[0], *tokens[at : at + need])
        out.append(TokenizedExample(ids[: len(row.prompt)], ids[len(row.prompt) :]))
    return out

"""What models do by themselves: which attention heads look followers up, and what hidden states hold.

An attention head's induction score of size n is the attention it pays to what followed earlier occurrences of the last
n tokens, at the positions that have such; beside it what even attention would pay. A probe reads off hidden states
which symbol followed the last n tokens most often: it is worth something by how much better it is than the control
task, an untrained copy and the commonest symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from didact.data.encode import TokenizedExample
from didact.evaluate import language_figures, probes
from didact.evaluate.languages import Prompts
from didact.evaluate.probes import Read
from didact.figures import Figure
from didact.models import hidden, insert, ngram_heads, untrained
from didact.models.model import Model
from didact.types import UserError

ROWS = 8  # of which attention is looked at
PAIRS = 16  # of places of a prompt with one symbol, in one state; and as many in two


@torch.no_grad()
def attention(model: Model, rows: Sequence[TokenizedExample], sizes: Sequence[int]) -> dict[str, Any] | None:
    """Scores `{"even": {n: share}, "heads": {n: [layer][head]}}` of a model with attention; None of one without.

    The model's attention is computed eagerly meanwhile: fused kernels do not give it out.
    """
    decoder: Any = getattr(model.module, "base", model.module)
    try:
        insert.attentions(decoder)
    except UserError:
        return None
    before, was = decoder.config._attn_implementation, model.module.training
    decoder.set_attn_implementation("eager")
    model.module.eval()
    try:
        total: dict[int, torch.Tensor] = {}
        even, count = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0)
        for row in rows[:ROWS]:
            ids = torch.tensor([[*row.prompt, *row.completion]], device=model.device)
            paid = torch.cat(model.module(input_ids=ids, output_attentions=True).attentions).double()  # (L, H, T, T)
            for n in sizes:
                followers = (ngram_heads.weights(ids, n)[0] > 0).double()
                there = followers.sum(1) > 0
                on = (paid * followers).sum(-1)[..., there].sum(-1)
                total[n] = total.get(n, torch.zeros_like(on)) + on
                share = followers.sum(1) / torch.arange(1, ids.shape[1] + 1, device=ids.device)
                even[n] += float(share[there].sum())
                count[n] += int(there.sum())
    finally:
        decoder.set_attn_implementation(before)
        model.module.train(was)
    return {
        "even": {n: even[n] / max(count[n], 1) for n in sizes},
        "heads": {n: (total[n] / max(count[n], 1)).tolist() for n in sizes},
    }


@dataclass(frozen=True)
class Kept:
    """Hidden states of models at the tokens of prompts, by number.

    Attributes:
        reads: of every model and layer.
        places: `(N, 2)`, prompt and place in it of every number.
    """

    reads: Mapping[str, Mapping[int | str, Read]]
    places: NDArray[np.int64]


def kept(arms: Mapping[str, Model], of: Prompts, seed: int) -> Kept:
    """What every arm and an untrained copy of the first hold at every token of every prompt."""
    models = dict(arms) | {"untrained": untrained.untrained(next(iter(arms.values())), seed)}
    # What is before a row's own tokens has no label.
    before = [len(row.prompt) for row in of.rows]
    real = (of.ids <= of.truth.shape[2]).sum(1)
    units = [[(at + t,) for t in range(count)] for at, count in zip(before, real.tolist(), strict=True)]
    tokens = [[*row.prompt, *row.completion] for row in of.rows]
    stores = {name: hidden.record(model, tokens, units) for name, model in models.items()}
    return Kept(
        {name: {layer: _reader(store, layer) for layer in store.layers} for name, store in stores.items()},
        np.array([(i, t) for i, own in enumerate(units) for t in range(len(own))]),
    )


def followers(of: Prompts, held: Kept, n: int, seed: int) -> dict[str, Any]:
    """`probes.examine` of which symbol followed the last n tokens most often, for every model, at every layer.

    The control task labels every n-gram by chance.
    """
    symbols = of.truth.shape[2]
    ids = torch.from_numpy(of.ids)
    seen = torch.nn.functional.one_hot(ids, symbols + 2)[..., :symbols].double()
    counts = ngram_heads.weights(ids, n) @ seen
    labels = torch.where((ids < symbols) & (counts.sum(-1) > 0), counts.argmax(-1), probes.NONE)
    of_each = labels[tuple(torch.from_numpy(held.places).T)]
    kinds = [last(of, i, t, n) for i, t in held.places.tolist()]
    return probes.examine(held.reads, of_each, kinds, held.places[:, 0].tolist(), seed=seed)


def states(of: Prompts, held: Kept, seed: int) -> dict[str, Any]:
    """`probes.examine` of whether the automaton is in one state at two places, for every model, at every layer.

    The control task labels every pair of last two tokens by chance. `same_ngram` is how often who says "one state" just
    where the last n tokens are equal is right.
    """
    number = np.full(of.ids.shape, -1)
    number[tuple(held.places.T)] = np.arange(len(held.places))
    drawn, same = pairs(of, seed)
    prompt, first, second = drawn.T
    ends = torch.from_numpy(np.stack([number[prompt, first], number[prompt, second]]))
    reads: dict[str, dict[int | str, Read]] = {
        name: {layer: _pairs(read, ends) for layer, read in layers.items()} for name, layers in held.reads.items()
    }
    kinds = [frozenset((last(of, i, a, 2), last(of, i, b, 2))) for i, a, b in drawn.tolist()]
    labels = torch.from_numpy(same.astype(np.int64))
    found = probes.examine(reads, labels, kinds, prompt.tolist(), seed=seed)
    for n in (2, 3):
        equal = np.array([last(of, i, a, n) == last(of, i, b, n) for i, a, b in drawn.tolist()])
        found.setdefault("same_ngram", {})[n] = float((equal == same).mean())
    return found


def pairs(of: Prompts, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Prompt and two places `(P, 3)` where the same symbol was read, and whether the state is one: of every symbol of
    each prompt as many of the one as of the other kind."""
    draw, drawn = np.random.default_rng([seed, 20]), list[tuple[int, int, int]]()
    for i, (ids, state) in enumerate(zip(of.ids, of.state, strict=True)):
        for symbol in np.unique(ids[state >= 0]):
            at = np.flatnonzero(ids == symbol)
            one = state[at][:, None] == state[at]
            kinds = [np.argwhere(np.triu(kind, 1)) for kind in (one, ~one)]
            count = min(PAIRS, *map(len, kinds))
            drawn += [(i, *at[pair]) for kind in kinds for pair in draw.permutation(kind)[:count]]
    found = np.array(drawn)
    prompt, first, second = found.T
    return found, of.state[prompt, first] == of.state[prompt, second]


def last(of: Prompts, prompt: int, place: int, n: int) -> tuple[int, ...]:
    """The last n tokens read at a place."""
    return tuple(of.ids[prompt, max(0, place - n + 1) : place + 1].tolist())


def looked_into(
    findings: dict[str, Any],
    arms: dict[str, Model],
    rows: Sequence[TokenizedExample],
    prompts: Prompts | None,
    n: int,
    seed: int,
) -> list[Figure]:
    """What attention looks up and hidden states hold, written into the findings, and its pictures."""
    found = {name: attention(arm, rows, [n]) for name, arm in arms.items()}
    there = {name: scores for name, scores in found.items() if scores}
    if there:
        findings["attention"] = there
    pictures = [language_figures.of_attention(name, scores, n) for name, scores in there.items()]
    if prompts:
        held = kept(arms, prompts, seed)
        findings["probe"] = followers(prompts, held, n, seed)
        findings["state_probe"] = states(prompts, held, seed)
        pictures.append(language_figures.of_probe(findings["probe"], n))
        pictures.append(language_figures.of_states(findings["state_probe"]))
    return pictures


def _reader(store: hidden.Store, layer: int) -> Read:
    return lambda index: store.take(index, layer)


def _pairs(read: Read, ends: Tensor) -> Read:
    """Vectors of pairs: how far the two are apart, entry by entry."""
    return lambda index: (read(ends[0, index]) - read(ends[1, index])).abs()

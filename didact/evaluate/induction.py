"""Which attention heads act as induction heads, and what probes read from hidden states.

An attention head's induction score of size n is its attention on the tokens that followed earlier occurrences of the
last n tokens, at positions that have any; uniform attention is the reference. A probe predicts from hidden states
which symbol followed the last n tokens most often: it counts by how much better it is than the control task, an
untrained copy and the most frequent symbol.
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

ROWS = 8  # rows whose attention is analysed
PAIRS = 16  # most pairs of positions per prompt and symbol with equal states, and as many with different ones


@torch.no_grad()
def attention(model: Model, rows: Sequence[TokenizedExample], sizes: Sequence[int]) -> dict[str, Any] | None:
    """Scores `{"even": {n: share}, "heads": {n: [layer][head]}}` of a model; None if it has no attention.

    Switches to eager attention meanwhile: fused kernels do not return the weights.
    """
    decoder: Any = getattr(model.module, "base", model.module)
    try:
        insert.attentions(decoder)
    except UserError:
        return None
    implementation, training = decoder.config._attn_implementation, model.module.training
    decoder.set_attn_implementation("eager")
    model.module.eval()
    try:
        total: dict[int, torch.Tensor] = {}
        even, count = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0)
        for row in rows[:ROWS]:
            ids = torch.tensor([[*row.prompt, *row.completion]], device=model.device)
            weights = torch.cat(model.module(input_ids=ids, output_attentions=True).attentions).double()  # (L, H, T, T)
            for n in sizes:
                followers = (ngram_heads.weights(ids, n)[0] > 0).double()
                has_follower = followers.sum(1) > 0
                on_followers = (weights * followers).sum(-1)[..., has_follower].sum(-1)
                total[n] = total.get(n, torch.zeros_like(on_followers)) + on_followers
                share = followers.sum(1) / torch.arange(1, ids.shape[1] + 1, device=ids.device)
                even[n] += float(share[has_follower].sum())
                count[n] += int(has_follower.sum())
    finally:
        decoder.set_attn_implementation(implementation)
        model.module.train(training)
    return {
        "even": {n: even[n] / max(count[n], 1) for n in sizes},
        "heads": {n: (total[n] / max(count[n], 1)).tolist() for n in sizes},
    }


@dataclass(frozen=True)
class RecordedStates:
    """Hidden states of models at N tokens of the prompts.

    Attributes:
        reads: by model and layer, a function from indices to states.
        places: `(N, 2)`, the prompt and the position of every index.
    """

    reads: Mapping[str, Mapping[int | str, Read]]
    places: NDArray[np.int64]


def record_states(arms: Mapping[str, Model], prompts: Prompts, seed: int) -> RecordedStates:
    """Record the hidden states of every arm, and of an untrained copy of the first, at every token of every prompt."""
    models = dict(arms) | {"untrained": untrained.untrained(next(iter(arms.values())), seed)}
    # Tokens before a row's own have no label.
    before = [len(row.prompt) for row in prompts.rows]
    lengths = (prompts.ids <= prompts.truth.shape[2]).sum(1)
    units = [[(start + t,) for t in range(count)] for start, count in zip(before, lengths.tolist(), strict=True)]
    tokens = [[*row.prompt, *row.completion] for row in prompts.rows]
    stores = {name: hidden.record(model, tokens, units) for name, model in models.items()}
    return RecordedStates(
        {name: {layer: _reader(store, layer) for layer in store.layers} for name, store in stores.items()},
        np.array([(i, t) for i, row in enumerate(units) for t in range(len(row))]),
    )


def followers(prompts: Prompts, recorded: RecordedStates, n: int, seed: int) -> dict[str, Any]:
    """`probes.examine` of which symbol followed the last n tokens most often, for every model, at every layer.

    The control task labels every n-gram at random.
    """
    symbols = prompts.truth.shape[2]
    ids = torch.from_numpy(prompts.ids)
    one_hot = torch.nn.functional.one_hot(ids, symbols + 2)[..., :symbols].double()
    counts = ngram_heads.weights(ids, n) @ one_hot
    labels = torch.where((ids < symbols) & (counts.sum(-1) > 0), counts.argmax(-1), probes.NONE)
    labels_at = labels[tuple(torch.from_numpy(recorded.places).T)]
    kinds = [last(prompts, i, t, n) for i, t in recorded.places.tolist()]
    return probes.examine(recorded.reads, labels_at, kinds, recorded.places[:, 0].tolist(), seed=seed)


def states(prompts: Prompts, recorded: RecordedStates, seed: int) -> dict[str, Any]:
    """`probes.examine` of whether the automaton's states at two positions are equal, for every model, at every layer.

    The control task labels every pair of last two tokens at random. `same_ngram` is the accuracy of predicting equal
    states exactly where the last n tokens are equal.
    """
    index = np.full(prompts.ids.shape, -1)
    index[tuple(recorded.places.T)] = np.arange(len(recorded.places))
    drawn, same_state = pairs(prompts, seed)
    prompt, first, second = drawn.T
    ends = torch.from_numpy(np.stack([index[prompt, first], index[prompt, second]]))
    reads: dict[str, dict[int | str, Read]] = {
        name: {layer: _pairs(read, ends) for layer, read in layers.items()} for name, layers in recorded.reads.items()
    }
    kinds = [frozenset((last(prompts, i, a, 2), last(prompts, i, b, 2))) for i, a, b in drawn.tolist()]
    labels = torch.from_numpy(same_state.astype(np.int64))
    report = probes.examine(reads, labels, kinds, prompt.tolist(), seed=seed)
    for n in (2, 3):
        equal = np.array([last(prompts, i, a, n) == last(prompts, i, b, n) for i, a, b in drawn.tolist()])
        report.setdefault("same_ngram", {})[n] = float((equal == same_state).mean())
    return report


def pairs(prompts: Prompts, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw pairs of positions with the same symbol: prompt and two positions `(P, 3)`, and whether the states are
    equal; for each prompt and symbol, equally many of both kinds."""
    draw, drawn = np.random.default_rng([seed, 20]), list[tuple[int, int, int]]()
    for i, (ids, state) in enumerate(zip(prompts.ids, prompts.state, strict=True)):
        for symbol in np.unique(ids[state >= 0]):
            positions = np.flatnonzero(ids == symbol)
            same = state[positions][:, None] == state[positions]
            kinds = [np.argwhere(np.triu(kind, 1)) for kind in (same, ~same)]
            count = min(PAIRS, *map(len, kinds))
            drawn += [(i, *positions[pair]) for kind in kinds for pair in draw.permutation(kind)[:count]]
    table = np.array(drawn)
    prompt, first, second = table.T
    return table, prompts.state[prompt, first] == prompts.state[prompt, second]


def last(prompts: Prompts, prompt: int, place: int, n: int) -> tuple[int, ...]:
    """The last n tokens up to a position."""
    return tuple(prompts.ids[prompt, max(0, place - n + 1) : place + 1].tolist())


def inspect(
    findings: dict[str, Any],
    arms: dict[str, Model],
    rows: Sequence[TokenizedExample],
    prompts: Prompts | None,
    n: int,
    seed: int,
) -> list[Figure]:
    """Add induction scores and, given `prompts`, probes of hidden states to `findings`; return their figures."""
    by_arm = {name: attention(arm, rows, [n]) for name, arm in arms.items()}
    attended = {name: scores for name, scores in by_arm.items() if scores}
    if attended:
        findings["attention"] = attended
    pictures = [language_figures.of_attention(name, scores, n) for name, scores in attended.items()]
    if prompts:
        recorded = record_states(arms, prompts, seed)
        findings["probe"] = followers(prompts, recorded, n, seed)
        findings["state_probe"] = states(prompts, recorded, seed)
        pictures.append(language_figures.of_probe(findings["probe"], n))
        pictures.append(language_figures.of_states(findings["state_probe"]))
    return pictures


def _reader(store: hidden.Store, layer: int) -> Read:
    return lambda index: store.take(index, layer)


def _pairs(read: Read, ends: Tensor) -> Read:
    """Features of pairs: the absolute difference of the two vectors, entry by entry."""
    return lambda index: (read(ends[0, index]) - read(ends[1, index])).abs()

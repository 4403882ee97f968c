"""What models do about n-grams by themselves: which attention heads look followers up, and what hidden states hold.

An attention head's induction score of size n is the attention it pays to what followed earlier occurrences of the last
n tokens, at the positions that have such; beside it what even attention would pay. A probe reads off hidden states
which symbol followed the last n tokens most often: it is worth something by how much better it is than the control
task, an untrained copy and the commonest symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from didact.data.encode import TokenizedExample
from didact.evaluate import language_figures, probes
from didact.evaluate.languages import Prompts
from didact.evaluate.probes import Read
from didact.figures import Figure
from didact.models import hidden, insert, ngram_heads, untrained
from didact.models.model import Model
from didact.types import UserError

ROWS = 8  # of which attention is looked at


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


def probe(arms: Mapping[str, Model], of: Prompts, n: int, seed: int) -> dict[str, Any]:
    """`probes.examine` of which symbol followed the last n tokens most often, for every arm, at every layer.

    Beside the arms stands an untrained copy of the first. The control task labels every n-gram by chance.
    """
    symbols = of.truth.shape[2]
    ids = torch.from_numpy(of.ids)
    seen = torch.nn.functional.one_hot(ids, symbols + 2)[..., :symbols].double()
    counts = ngram_heads.weights(ids, n) @ seen
    real = ids < symbols
    labels = torch.where(real & (counts.sum(-1) > 0), counts.argmax(-1), probes.NONE)
    first = next(iter(arms.values()))
    models = dict(arms) | {"untrained": untrained.untrained(first, seed)}
    # What is before a row's own tokens has no label.
    before = [len(row.prompt) for row in of.rows]
    units = [[(at + t,) for t in range(int((of.ids[i] <= symbols).sum()))] for i, at in enumerate(before)]
    tokens = [[*row.prompt, *row.completion] for row in of.rows]
    stores = {name: hidden.record(model, tokens, units) for name, model in models.items()}
    reads: dict[str, dict[int | str, Read]] = {
        name: {layer: _reader(store, layer) for layer in store.layers} for name, store in stores.items()
    }
    flat = [(i, t) for i, own in enumerate(units) for t in range(len(own))]
    kinds = [tuple(of.ids[i, max(0, t - n + 1) : t + 1].tolist()) for i, t in flat]
    of_each = torch.tensor([int(labels[i, t]) for i, t in flat])
    return probes.examine(reads, of_each, kinds, [i for i, _ in flat], seed=seed)


def looked_into(
    findings: dict[str, Any],
    arms: dict[str, Model],
    rows: Sequence[TokenizedExample],
    prompts: Prompts | None,
    n: int,
    seed: int,
) -> list[Figure]:
    """What attention and hidden states do about n-grams, written into the findings, and its pictures."""
    found = {name: attention(arm, rows, [n]) for name, arm in arms.items()}
    there = {name: scores for name, scores in found.items() if scores}
    if there:
        findings["attention"] = there
    pictures = [language_figures.of_attention(name, scores, n) for name, scores in there.items()]
    if prompts:
        findings["probe"] = probe(arms, prompts, n, seed)
        pictures.append(language_figures.of_probe(findings["probe"], n))
    return pictures


def _reader(store: hidden.Store, layer: int) -> Read:
    return lambda index: store.take(index, layer)

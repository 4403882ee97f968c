"""The syntactic subspace: how much of the trees of texts can be read off hidden states through a few dimensions.

With `z = (h - mean) / scale P`, `P (d, rank)`, of neighbouring tokens and `diff_i = z_i - z_{i-1}`:

    heights  ||diff_i||^2,      labels  diff_i C,      labels of leaves  z_i U,
    loss = L_d + L_c + L_u + lambda ||P^T P - I||_F^2

`L_d` is the mean of relu(1 - (height_i - height_j)) over pairs of a text with d_i > d_j, the others cross-entropies.

Source: Hernandez Lopez et al. 2022, arXiv:2206.11719, and its code (which regresses no heights: only ranks count).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from didact.data import parsing, trees
from didact.data.trees import Code, Leaf
from didact.evaluate import probes
from didact.models.model import Model
from didact.models.subspace import Subspace
from didact.types import Text, UserError

Loss = Literal["rank", "l1", "l2"]
Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class Snippet:
    """A text whose tree is known: its token ids, leaves, the positions each leaf is read from, and its code."""

    text: str
    ids: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    units: tuple[tuple[int, ...], ...]
    code: Code

    @property
    def words(self) -> list[str]:
        """Its tokens."""
        return [self.text[leaf.start : leaf.end] for leaf in self.leaves]


def snippet(tokenizer: Any, text: str, tree: trees.Node, pooling: Pooling = "mean") -> Snippet:
    """A text as a model reads it.

    A leaf is read from the sub-tokens inside it; one that shares all of them with a neighbour from those.
    """
    read = tokenizer(text, return_offsets_mapping=True)
    places, own = read["offset_mapping"], tuple(trees.leaves(tree))
    units = []
    for start, end in own:
        over = [i for i, (a, b) in enumerate(places) if a < end and b > start and text[max(a, start) : b].strip()]
        inside = [i for i in over if text[places[i][0] : start].strip() == "" and places[i][1] <= end]
        unit = inside or over
        units.append(tuple({"mean": unit, "first": unit[:1], "last": unit[-1:]}[pooling]))
    return Snippet(text, tuple(read["input_ids"]), own, tuple(units), trees.encode(tree))


def read(
    model: Model, texts: Iterable[Text], language: str, longest: int, most: int, pooling: Pooling = "mean"
) -> tuple[list[Snippet], dict[str, int]]:
    """The first `most` texts that serve, with their trees, and how many were left out before that and why.

    A record may bring its own `tree` (`trees.of_lists`); the others are parsed in `language`.

    Raises:
        UserError: a tree does not fit its text, the tokenizer cannot say where tokens stand, or no text is left.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise UserError("the tokenizer cannot say where tokens stand: it takes a fast one (tokenizer.json)")
    out: dict[str, Snippet] = {}
    left: Counter[str] = Counter()
    for number, record in enumerate(texts, 1):
        try:
            own = record.extra.get("tree")
            found = (record.text, trees.of_lists(own, record.text)) if own else parsing.parse(record.text, language)
        except UserError as error:
            raise UserError(f"record {number}: {error}") from None
        if found is None:
            left["do not parse"] += 1
        elif found[0] in out:
            left["twice"] += 1
        elif len((made := snippet(model.tokenizer, *found, pooling)).ids) > min(longest, model.context):
            left["too long"] += 1
        elif len(made.leaves) < 2 or not all(made.units):
            left["one token, or none"] += 1
        else:
            out[found[0]] = made
            if len(out) == most:
                break
    if len(out) < 3:
        why = ", ".join(f"{n} {reason}" for reason, n in left.items()) or "none were given"
        raise UserError(f"{len(out)} texts with a {language} tree are left, a probe takes three at least ({why})")
    return list(out.values()), dict(left)


# --- the probe -----------------------------------------------------------------------------------


def orthogonality(probe: nn.Module) -> Tensor:
    """`||P^T P - I||_F^2`."""
    assert isinstance(probe, Subspace)
    return (probe.p.T @ probe.p - torch.eye(probe.p.shape[1], device=probe.p.device)).square().sum()


def height_loss(found: Tensor, d: Tensor, there: Tensor, loss: Loss = "rank") -> Tensor:
    """How far predicted heights `(B, n - 1)` are from ranking as `d` does, where `there` is a place.

    rank: the mean of relu(1 - (found_i - found_j)) over all ordered pairs of one text with d_i > d_j, of the batch
    together. l1, l2: regressions, the mean over places of a text, then over texts.
    """
    if loss == "rank":
        above = (d[:, :, None] > d[:, None, :]) & there[:, :, None] & there[:, None, :]
        short = torch.relu(1 - (found[:, :, None] - found[:, None, :]))
        return (short * above).sum() / (above.sum() + 1e-9)
    off = (found - d).abs() if loss == "l1" else (found - d).square()
    return ((off * there).sum(1) / there.sum(1).clamp_min(1)).mean()


# --- training and reading trees off ----------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The labels of training trees, in order of their first place: what probes can say."""

    c: tuple[str, ...]
    u: tuple[str, ...]

    @classmethod
    def of(cls, codes: Sequence[Code]) -> Labels:
        """Those of some trees."""
        c, u = [x for code in codes for x in code.c], [x for code in codes for x in code.u]
        return cls(tuple(dict.fromkeys(c)), tuple(dict.fromkeys(u)))


class Corpus:
    """Codes as padded tensors, and where each text's vectors begin among all."""

    def __init__(self, codes: Sequence[Code], labels: Labels) -> None:
        sizes = torch.tensor([len(code.u) for code in codes])
        self.codes, self.labels, self.sizes = codes, labels, sizes
        self.starts = sizes.cumsum(0) - sizes
        c, u = ({name: i for i, name in enumerate(side)} for side in (labels.c, labels.u))
        self.d = _padded([code.d for code in codes], 0.0).float()
        self.c = _padded([[c.get(x, probes.NONE) for x in code.c] for code in codes], probes.NONE).long()
        self.u = _padded([[u.get(x, probes.NONE) for x in code.u] for code in codes], probes.NONE).long()

    def states(self, read: probes.Read, index: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors `(B, n, d)` of some texts, zero beyond their ends, and which are there `(B, n)`."""
        n = int(self.sizes[index].max())
        there = torch.arange(n) < self.sizes[index][:, None]
        flat = read((self.starts[index][:, None] + torch.arange(n))[there])
        out = flat.new_zeros(len(index), n, flat.shape[-1])
        out[there] = flat
        return out, there

    def losses(self, probe: Subspace, states: Tensor, there: Tensor, index: Tensor, loss: Loss) -> Tensor:
        """`L_d + L_c + L_u` of some texts."""
        heights, c, u = probe(states)
        n = states.shape[1]
        own = [self.c[index, : n - 1], self.u[index, :n]]
        parts = [height_loss(heights, self.d[index, : n - 1], there[:, 1:], loss)]
        for scores, label in zip((c, u), own, strict=True):
            summed = nn.functional.cross_entropy(
                scores.flatten(0, 1), label.flatten(), ignore_index=probes.NONE, reduction="sum"
            )
            parts.append(summed / (label != probes.NONE).sum().clamp_min(1))
        return torch.stack(parts).sum()


def train(
    read: probes.Read,
    tasks: Mapping[str, tuple[Corpus, int]],
    parts: probes.Parts,
    how: probes.Training,
    loss: Loss = "rank",
    penalty: float = 5.0,
    seed: int = 0,
) -> dict[str, Subspace]:
    """Train probes side by side on the same vectors.

    Args:
        read: the vectors of all texts, text after text.
        tasks: by name, the trees to learn and the rank.
        parts: texts to train, choose and score on.
        how: training.
        loss: of heights.
        penalty: of columns that are not orthonormal, while training.
        seed: of weights and order.
    """
    first = next(iter(tasks.values()))[0]
    some = first.states(read, parts.train[:256])
    vectors = some[0][some[1]]
    made: dict[str, Subspace] = {}
    with torch.random.fork_rng():
        for name, (corpus, rank) in tasks.items():
            torch.manual_seed(seed)
            made[name] = Subspace(vectors.shape[1], rank, len(corpus.labels.c), len(corpus.labels.u))
            made[name].units(vectors)

    def losses(index: Tensor) -> dict[str, Tensor]:
        states, there = first.states(read, index)
        return {name: tasks[name][0].losses(probe, states, there, index, loss) for name, probe in made.items()}

    probes.train(made, losses, parts, how, seed, lambda probe: penalty * orthogonality(probe))
    return made


@torch.no_grad()
def predict(probe: Subspace, corpus: Corpus, read: probes.Read, index: Tensor) -> list[Code]:
    """What a probe says of some texts."""
    out = []
    for some in index.split(64):
        states, _ = corpus.states(read, some)
        d, c, u = (x if x.dim() == 2 else x.argmax(-1) for x in probe(states))
        for line, n in enumerate(corpus.sizes[some].tolist()):
            labels = tuple(corpus.labels.c[i] for i in c[line, : n - 1].tolist())
            tops = tuple(corpus.labels.u[i] for i in u[line, :n].tolist())
            out.append(Code(tuple(d[line, : n - 1].tolist()), labels, tops))
    return out


def _padded(rows: Sequence[Sequence[float]], value: float) -> Tensor:
    out = np.full((len(rows), max(1, *(len(row) for row in rows), 1)), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)

"""The syntactic subspace: how much of a text's syntax tree can be read off hidden states through a few dimensions.

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
    """A text with its tree: token ids, leaves, the token positions each leaf is read from, and the tree's code."""

    text: str
    ids: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    units: tuple[tuple[int, ...], ...]
    code: Code

    @property
    def words(self) -> list[str]:
        """The texts of its leaves."""
        return [self.text[leaf.start : leaf.end] for leaf in self.leaves]


def snippet(tokenizer: Any, text: str, tree: trees.Node, pooling: Pooling = "mean") -> Snippet:
    """Tokenize a text and align its tree's leaves to token positions.

    A leaf is read from the sub-tokens inside it; if it shares all of them with a neighbour, from those.
    """
    encoding = tokenizer(text, return_offsets_mapping=True)
    offsets, leaves = encoding["offset_mapping"], tuple(trees.leaves(tree))
    units = []
    for start, end in leaves:
        overlapping = [
            i for i, (a, b) in enumerate(offsets) if a < end and b > start and text[max(a, start) : b].strip()
        ]
        inside = [i for i in overlapping if text[offsets[i][0] : start].strip() == "" and offsets[i][1] <= end]
        unit = inside or overlapping
        units.append(tuple({"mean": unit, "first": unit[:1], "last": unit[-1:]}[pooling]))
    return Snippet(text, tuple(encoding["input_ids"]), leaves, tuple(units), trees.encode(tree))


def read(
    model: Model, texts: Iterable[Text], language: str, longest: int, limit: int, pooling: Pooling = "mean"
) -> tuple[list[Snippet], dict[str, int]]:
    """Return the first `limit` usable texts with their trees, and counts of those left out before that, by reason.

    A record may have its own `tree` (`trees.of_lists`); the others are parsed in `language`.

    Raises:
        UserError: a tree does not fit its text, the tokenizer has no offsets, or fewer than three texts are left.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise UserError("the tokenizer has no character offsets: a fast tokenizer (tokenizer.json) is needed")
    out: dict[str, Snippet] = {}
    dropped: Counter[str] = Counter()
    for number, record in enumerate(texts, 1):
        try:
            tree = record.extra.get("tree")
            parsed = (record.text, trees.of_lists(tree, record.text)) if tree else parsing.parse(record.text, language)
        except UserError as error:
            raise UserError(f"record {number}: {error}") from None
        if parsed is None:
            dropped["do not parse"] += 1
        elif parsed[0] in out:
            dropped["twice"] += 1
        elif len((encoded := snippet(model.tokenizer, *parsed, pooling)).ids) > min(longest, model.context):
            dropped["too long"] += 1
        elif len(encoded.leaves) < 2 or not all(encoded.units):
            dropped["one token, or none"] += 1
        else:
            out[parsed[0]] = encoded
            if len(out) == limit:
                break
    if len(out) < 3:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none were given"
        raise UserError(f"{len(out)} texts with a {language} tree are left: a probe needs at least three ({reasons})")
    return list(out.values()), dict(dropped)


# --- the probe -----------------------------------------------------------------------------------


def orthogonality(probe: nn.Module) -> Tensor:
    """`||P^T P - I||_F^2`."""
    assert isinstance(probe, Subspace)
    return (probe.p.T @ probe.p - torch.eye(probe.p.shape[1], device=probe.p.device)).square().sum()


def height_loss(heights: Tensor, d: Tensor, mask: Tensor, loss: Loss = "rank") -> Tensor:
    """Loss of predicted heights `(B, n - 1)` against the true `d`, at positions in `mask`.

    rank: the mean of relu(1 - (heights_i - heights_j)) over all pairs of positions of one text with d_i > d_j, over the
    whole batch. l1, l2: regressions, the mean over positions of a text, then over texts.
    """
    if loss == "rank":
        higher = (d[:, :, None] > d[:, None, :]) & mask[:, :, None] & mask[:, None, :]
        hinge = torch.relu(1 - (heights[:, :, None] - heights[:, None, :]))
        return (hinge * higher).sum() / (higher.sum() + 1e-9)
    errors = (heights - d).abs() if loss == "l1" else (heights - d).square()
    return ((errors * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()


# --- training and reading trees off ----------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The labels of training trees, in order of first occurrence: the classes of the probes."""

    c: tuple[str, ...]
    u: tuple[str, ...]

    @classmethod
    def of(cls, codes: Sequence[Code]) -> Labels:
        """Collect the labels of tree codes."""
        c, u = [x for code in codes for x in code.c], [x for code in codes for x in code.u]
        return cls(tuple(dict.fromkeys(c)), tuple(dict.fromkeys(u)))


class Corpus:
    """Tree codes as padded tensors, and the index of each text's first vector among all."""

    def __init__(self, codes: Sequence[Code], labels: Labels) -> None:
        sizes = torch.tensor([len(code.u) for code in codes])
        self.codes, self.labels, self.sizes = codes, labels, sizes
        self.starts = sizes.cumsum(0) - sizes
        c, u = ({name: i for i, name in enumerate(side)} for side in (labels.c, labels.u))
        self.d = _padded([code.d for code in codes], 0.0).float()
        self.c = _padded([[c.get(x, probes.NONE) for x in code.c] for code in codes], probes.NONE).long()
        self.u = _padded([[u.get(x, probes.NONE) for x in code.u] for code in codes], probes.NONE).long()

    def states(self, read: probes.Read, index: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors `(B, n, d)` of the texts at `index`, zero-padded, and their mask `(B, n)`."""
        n = int(self.sizes[index].max())
        mask = torch.arange(n) < self.sizes[index][:, None]
        flat = read((self.starts[index][:, None] + torch.arange(n))[mask])
        out = flat.new_zeros(len(index), n, flat.shape[-1])
        out[mask] = flat
        return out, mask

    def losses(self, probe: Subspace, states: Tensor, mask: Tensor, index: Tensor, loss: Loss) -> Tensor:
        """`L_d + L_c + L_u` of the texts at `index`."""
        heights, c, u = probe(states)
        n = states.shape[1]
        targets = [self.c[index, : n - 1], self.u[index, :n]]
        parts = [height_loss(heights, self.d[index, : n - 1], mask[:, 1:], loss)]
        for scores, label in zip((c, u), targets, strict=True):
            total = nn.functional.cross_entropy(
                scores.flatten(0, 1), label.flatten(), ignore_index=probes.NONE, reduction="sum"
            )
            parts.append(total / (label != probes.NONE).sum().clamp_min(1))
        return torch.stack(parts).sum()


def train(
    read: probes.Read,
    tasks: Mapping[str, tuple[Corpus, int]],
    parts: probes.Parts,
    config: probes.Training,
    loss: Loss = "rank",
    penalty: float = 5.0,
    seed: int = 0,
) -> dict[str, Subspace]:
    """Train probes side by side on the same vectors.

    Args:
        read: the vectors of all texts, text after text.
        tasks: by name, the trees to learn and the rank.
        parts: texts to train, choose and score on.
        config: how probes are trained.
        loss: loss of the heights.
        penalty: weight in training of `||P^T P - I||_F^2`.
        seed: of weights and order.
    """
    first = next(iter(tasks.values()))[0]
    sample = first.states(read, parts.train[:256])
    vectors = sample[0][sample[1]]
    subspaces: dict[str, Subspace] = {}
    with torch.random.fork_rng():
        for name, (corpus, rank) in tasks.items():
            torch.manual_seed(seed)
            subspaces[name] = Subspace(vectors.shape[1], rank, len(corpus.labels.c), len(corpus.labels.u))
            subspaces[name].units(vectors)

    def losses(index: Tensor) -> dict[str, Tensor]:
        states, mask = first.states(read, index)
        return {name: tasks[name][0].losses(probe, states, mask, index, loss) for name, probe in subspaces.items()}

    probes.train(subspaces, losses, parts, config, seed, lambda probe: penalty * orthogonality(probe))
    return subspaces


@torch.no_grad()
def predict(probe: Subspace, corpus: Corpus, read: probes.Read, index: Tensor) -> list[Code]:
    """The codes that a probe predicts for the texts at `index`."""
    out = []
    for batch in index.split(64):
        states, _ = corpus.states(read, batch)
        d, c, u = (x if x.dim() == 2 else x.argmax(-1) for x in probe(states))
        for row, n in enumerate(corpus.sizes[batch].tolist()):
            labels = tuple(corpus.labels.c[i] for i in c[row, : n - 1].tolist())
            leaf_labels = tuple(corpus.labels.u[i] for i in u[row, :n].tolist())
            out.append(Code(tuple(d[row, : n - 1].tolist()), labels, leaf_labels))
    return out


def _padded(rows: Sequence[Sequence[float]], value: float) -> Tensor:
    out = np.full((len(rows), max(1, *(len(row) for row in rows), 1)), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)

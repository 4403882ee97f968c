"""Labels that a model without knowledge of a text would give it: generic predictions for blocks of text.

    v_generic = v(translated text) - alpha relu(v_reinforced(original) - v(original))

Source: Eldan and Russinovich 2023, arXiv:2310.02238.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from didact.data import encode
from didact.data.anchors import Block
from didact.data.streams import IGNORE, by_length, collate
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import Record, Text


@dataclass(frozen=True)
class Generic:
    """Computes the generic logits of blocks by the formula above."""

    model: Model
    reinforced: Model
    alpha: float
    relu: bool
    normalise: Literal["log_softmax", "raw"]
    alias_penalty: float
    translated: bool

    @torch.no_grad()
    def __call__(self, blocks: Sequence[Block]) -> Tensor:
        """Return logits `(N, V)`, block after block; rows of tokens without a counterpart (`to` is -1) are invalid."""
        return torch.cat([*self.pieces(blocks)])

    @torch.no_grad()
    def pieces(self, blocks: Sequence[Block]) -> Iterator[Tensor]:
        """Yield the same logits in pieces of as many tokens as fit in memory with a large vocabulary."""
        rows = [b.row for b in blocks]
        base = translated = self._states(self.model, rows)
        reinforced = base if self.reinforced is self.model else self._states(self.reinforced, rows)
        if self.translated:
            starts = [0]
            for b in blocks:
                starts.append(starts[-1] + len(b.other.completion))
            index = [s + max(0, k) for s, b in zip(starts[:-1], blocks, strict=True) for k in b.to]
            translated = self._states(self.model, [b.other for b in blocks])[torch.tensor(index, device=base.device)]
        ends = list(itertools.accumulate(len(row.completion) for row in rows))
        size = max(1, forward.CHUNK // int(self.model.text_config.vocab_size))
        for start in range(0, len(base), size):
            piece = slice(start, start + size)
            own = forward.logits_of(self.model, base[piece])
            other = own if translated is base else forward.logits_of(self.model, translated[piece])
            boosted = own if reinforced is base else forward.logits_of(self.reinforced, reinforced[piece])
            generic = token_functions.generic_logits(other, own, boosted, self.alpha, self.relu, self.normalise)
            for b, end in zip(blocks, ends, strict=True):
                for label, tokens in b.alias:
                    first = end - len(b.row.completion) + label
                    generic[max(0, first - start) : max(0, end - start), list(tokens)] -= self.alias_penalty
            yield generic

    def _states(self, model: Model, rows: Sequence[encode.TokenizedExample]) -> Tensor:
        batch = collate(rows, model.kind, model.pad).to(model.device)
        was_training = model.module.training
        model.module.eval()
        states = forward.label_states(model, batch)
        model.module.train(was_training)
        return states


def labels(generic: Generic, blocks: Sequence[Block], repeats: str, train_on: str) -> list[Tensor]:
    """Return the labels of every block's tokens, `(n,)` each; -100 where a token has none."""
    width = int(generic.model.text_config.vocab_size)
    out: list[Tensor] = [torch.empty(0)] * len(blocks)
    for group in by_length([b.row.size for b in blocks], max(1, forward.CHUNK // width)):
        group.sort()
        best = torch.cat([logits.argmax(-1) for logits in generic.pieces([blocks[i] for i in group])]).cpu()
        for i, label in zip(group, best.split([len(blocks[i].row.completion) for i in group]), strict=True):
            b = blocks[i]
            unlabelled = torch.tensor(b.to) < 0
            if repeats == "first":
                unlabelled |= torch.tensor(b.repeated)
            if train_on == "changed":
                unlabelled |= label == torch.tensor(b.row.completion)
            out[i] = label.masked_fill(unlabelled, IGNORE)
    return out


def shares(blocks: Sequence[Block], labels: Sequence[Tensor]) -> dict[str, Any]:
    """Count tokens and labels; the share of labels that differ from the text, and of anchors among these."""
    label = torch.cat(list(labels))
    labelled = label != IGNORE
    changed = labelled & (label != torch.tensor([t for b in blocks for t in b.row.completion]))
    anchored = changed & (torch.tensor([a for b in blocks for a in b.anchor]) >= 0)
    n, m = int(labelled.sum()), int(changed.sum())
    return {
        "tokens": len(label), "labels": n, "changed": m / max(n, 1), "changed_anchors": int(anchored.sum()) / max(m, 1)
    }  # fmt: skip


def as_records(model: Model, blocks: Sequence[Block], labels: Sequence[Tensor]) -> list[Record]:
    """Return blocks as records with their tokens and labels as text; None for a token without a label."""
    to_tokens = model.tokenizer.convert_ids_to_tokens
    out: list[Record] = []
    for b, label in zip(blocks, labels, strict=True):
        label_tokens = [None if t == IGNORE else to_tokens(t) for t in label.tolist()]
        out.append(Text(text=b.text, extra={"tokens": to_tokens(list(b.row.completion)), "labels": label_tokens}))
    return out

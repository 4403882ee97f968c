"""Labels a model that never read a text would give it: generic predictions of blocks beside their translations.

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
    """Generic logits of blocks: see above."""

    model: Model
    reinforced: Model
    alpha: float
    relu: bool
    normalise: Literal["log_softmax", "raw"]
    alias_penalty: float
    translated: bool

    @torch.no_grad()
    def __call__(self, blocks: Sequence[Block]) -> Tensor:
        """`(N, V)`, block after block; where a token has no counterpart (`to` is -1) the row means nothing."""
        return torch.cat([*self.pieces(blocks)])

    @torch.no_grad()
    def pieces(self, blocks: Sequence[Block]) -> Iterator[Tensor]:
        """The same, as many tokens at a time as a large vocabulary leaves room for."""
        rows = [b.row for b in blocks]
        base = there = self._states(self.model, rows)
        reinforced = base if self.reinforced is self.model else self._states(self.reinforced, rows)
        if self.translated:
            starts = [0]
            for b in blocks:
                starts.append(starts[-1] + len(b.other.completion))
            at = [s + max(0, k) for s, b in zip(starts[:-1], blocks, strict=True) for k in b.to]
            there = self._states(self.model, [b.other for b in blocks])[torch.tensor(at, device=base.device)]
        ends = list(itertools.accumulate(len(row.completion) for row in rows))
        size = max(1, forward.CHUNK // int(self.model.text_config.vocab_size))
        for done in range(0, len(base), size):
            some = slice(done, done + size)
            own = forward.logits_of(self.model, base[some])
            said = own if there is base else forward.logits_of(self.model, there[some])
            more = own if reinforced is base else forward.logits_of(self.reinforced, reinforced[some])
            goal = token_functions.generic_logits(said, own, more, self.alpha, self.relu, self.normalise)
            for b, end in zip(blocks, ends, strict=True):
                for label, tokens in b.alias:
                    first = end - len(b.row.completion) + label
                    goal[max(0, first - done) : max(0, end - done), list(tokens)] -= self.alias_penalty
            yield goal

    def _states(self, model: Model, rows: Sequence[encode.TokenizedExample]) -> Tensor:
        batch = collate(rows, model.kind, model.pad).to(model.device)
        was = model.module.training
        model.module.eval()
        states = forward.label_states(model, batch)
        model.module.train(was)
        return states


def labels(generic: Generic, blocks: Sequence[Block], repeats: str, train_on: str) -> list[Tensor]:
    """The label of every token of every block, `(n,)` each; -100 where it has none."""
    width = int(generic.model.text_config.vocab_size)
    out: list[Tensor] = [torch.empty(0)] * len(blocks)
    for group in by_length([b.row.size for b in blocks], max(1, forward.CHUNK // width)):
        group.sort()
        best = torch.cat([goal.argmax(-1) for goal in generic.pieces([blocks[i] for i in group])]).cpu()
        for i, label in zip(group, best.split([len(blocks[i].row.completion) for i in group]), strict=True):
            b = blocks[i]
            none = torch.tensor(b.to) < 0
            if repeats == "first":
                none |= torch.tensor(b.repeated)
            if train_on == "changed":
                none |= label == torch.tensor(b.row.completion)
            out[i] = label.masked_fill(none, IGNORE)
    return out


def shares(blocks: Sequence[Block], labels: Sequence[Tensor]) -> dict[str, Any]:
    """Tokens, labels among them, the share of labels that differ from the text, and of these the share of anchors."""
    label = torch.cat(list(labels))
    kept = label != IGNORE
    changed = kept & (label != torch.tensor([t for b in blocks for t in b.row.completion]))
    anchored = changed & (torch.tensor([a for b in blocks for a in b.anchor]) >= 0)
    n, m = int(kept.sum()), int(changed.sum())
    return {
        "tokens": len(label), "labels": n, "changed": m / max(n, 1), "changed_anchors": int(anchored.sum()) / max(m, 1)
    }  # fmt: skip


def as_records(model: Model, blocks: Sequence[Block], labels: Sequence[Tensor]) -> list[Record]:
    """Blocks with their tokens and labels as text; None where there is none."""
    say = model.tokenizer.convert_ids_to_tokens
    out: list[Record] = []
    for b, label in zip(blocks, labels, strict=True):
        given = [None if t == IGNORE else say(t) for t in label.tolist()]
        out.append(Text(text=b.text, extra={"tokens": say(list(b.row.completion)), "labels": given}))
    return out

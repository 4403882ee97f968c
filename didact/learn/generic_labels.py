"""Labels a model that never read a text would give it: generic predictions of blocks beside their translations.

    v_generic = v(translated text) - alpha relu(v_reinforced(original) - v(original))

Source: Eldan and Russinovich 2023, arXiv:2310.02238.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        rows = [b.row for b in blocks]
        base = there = self._logits(self.model, rows)
        reinforced = base if self.reinforced is self.model else self._logits(self.reinforced, rows)
        if self.translated:
            starts = [0]
            for b in blocks:
                starts.append(starts[-1] + len(b.other.completion))
            at = [s + max(0, k) for s, b in zip(starts[:-1], blocks, strict=True) for k in b.to]
            there = self._logits(self.model, [b.other for b in blocks])[torch.tensor(at, device=base.device)]
        goal = token_functions.generic_logits(there, base, reinforced, self.alpha, self.relu, self.normalise)
        first = 0
        for b in blocks:
            end = first + len(b.row.completion)
            for label, tokens in b.alias:
                goal[first + label : end, list(tokens)] -= self.alias_penalty
            first = end
        return goal

    def _logits(self, model: Model, rows: Sequence[encode.TokenizedExample]) -> Tensor:
        batch = collate(rows, model.kind, model.pad).to(model.device)
        was = model.module.training
        model.module.eval()
        logits = forward.logits_of(model, forward.label_states(model, batch))
        model.module.train(was)
        return logits


def labels(generic: Generic, blocks: Sequence[Block], repeats: str, train_on: str) -> list[Tensor]:
    """The label of every token of every block, `(n,)` each; -100 where it has none."""
    width = int(generic.model.text_config.vocab_size)
    out: list[Tensor] = [torch.empty(0)] * len(blocks)
    for group in by_length([b.row.size for b in blocks], max(1, forward.CHUNK // width)):
        group.sort()
        best = generic([blocks[i] for i in group]).argmax(-1).cpu()
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

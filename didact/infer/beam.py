"""Beam search with GPT-3's length penalty: the completions of highest `logp / lp(n)`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from didact.infer.constrain import Constraint
from didact.infer.rows import Reread, Rows
from didact.models import prefix
from didact.models.model import Model
from didact.objectives import tokens as token_functions


class Hypothesis(NamedTuple):
    """A finished completion: its tokens (end token included), their log-prob and its score `logp / lp(n)`."""

    tokens: tuple[int, ...]
    logp: float
    score: float


def length_penalty(n: int, alpha: float) -> float:
    """Return `lp(n) = ((5 + n) / 6)^alpha` for n tokens, end token included (Wu et al., 2016; GPT-3 uses alpha 0.6)."""
    return float(((5 + n) / 6) ** alpha)


def search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    beams: int,
    alpha: float,
    rooms: Sequence[int],
    ends: Collection[int],
    constraints: Sequence[Constraint | None] | None = None,
    rows: int = 64,
    best: int = 1,
    banned: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """Return the best finished hypotheses of every prompt, best first.

    Every step keeps the `beams` likeliest continuations of all live hypotheses; one that ends (by an end token
    or its constraint, or out of room) is set aside and still counts towards the width. So a beam of 1 is
    greedy decoding, and one wide enough for all sequences finds the best of them exactly.

    Args:
        model: any causal or seq2seq model.
        prompts: token ids.
        beams: beam width.
        alpha: of the length penalty, 0 or more; 0 compares log-probs.
        rooms: the most new tokens of each prompt.
        ends: tokens that end a hypothesis without a constraint.
        constraints: one for each prompt.
        rows: hypotheses decoded in one batch.
        best: a prompt is done when no live hypothesis can enter its `best` highest-scoring finished ones any more.
        banned: tokens that are never generated.
    """
    automata = constraints or [None] * len(prompts)
    searches = [_Search(beams, alpha, room, ends, c, best) for room, c in zip(rooms, automata, strict=True)]
    order = [i for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)) if searches[i].live]
    size = max(1, rows // beams)
    for start in range(0, len(order), size):
        group = order[start : start + size]
        state: Rows | Reread = Rows(model) if prefix.shares(model) else Reread(model)
        state.turn([], [prompts[i] for i in group], max(rooms[i] for i in group))
        while True:
            logp = token_functions.wide(state.logits).log_softmax(-1)
            if banned:
                logp[:, list(banned)] = -torch.inf
            parents, tokens, offset = [], [], 0
            for i in group:
                live = len(searches[i].live)
                for row, token in searches[i].step(logp[offset : offset + live]) if live else ():
                    parents.append(offset + row)
                    tokens.append(token)
                offset += live
            if not parents:
                break
            state.keep(parents)
            state.step(torch.tensor(tokens, device=model.device))
    return [sorted(s.done, key=lambda h: -h.score) for s in searches]


class _Live(NamedTuple):
    tokens: tuple[int, ...]
    logp: float
    state: Any


class _Search:
    """The beam of one prompt."""

    def __init__(
        self, width: int, alpha: float, room: int, ends: Collection[int], constraint: Constraint | None, best: int
    ) -> None:
        self.width, self.alpha, self.room, self.ends = width, alpha, room, ends
        self.constraint, self.best = constraint, best
        start = None if constraint is None else constraint.start()
        feasible = room > 0 and (constraint is None or bool(constraint.allowed(start)))
        self.live = [_Live((), 0.0, start)] if feasible else []
        self.done = [] if feasible else [Hypothesis((), 0.0, 0.0)]

    def step(self, logp: Tensor) -> list[tuple[int, int]]:
        """Advance the beam by log-probs `(live, V)`; return the parent row and new token of each live hypothesis."""
        total = logp.double() + torch.tensor([[h.logp] for h in self.live], dtype=torch.float64, device=logp.device)
        if self.constraint is not None:
            barrier = torch.full_like(total, -torch.inf)
            for i, h in enumerate(self.live):
                barrier[i, list(self.constraint.allowed(h.state))] = 0
            total = total + barrier
        top = total.flatten().topk(min(self.width - len(self.done), total.numel()))
        parents, live = [], []
        for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if value == -torch.inf:
                break
            row, token = divmod(index, total.shape[1])
            parent = self.live[row]
            state = None if self.constraint is None else self.constraint.advance(parent.state, token)
            extended = _Live((*parent.tokens, token), value, state)
            finished = token in self.ends if self.constraint is None else not self.constraint.allowed(state)
            if finished or len(extended.tokens) >= self.room:
                n = len(extended.tokens)
                self.done.append(Hypothesis(extended.tokens, value, value / length_penalty(n, self.alpha)))
            else:
                live.append(extended)
                parents.append((row, token))
        if self._is_decided(live):
            live, parents = [], []
        self.live = live
        return parents

    def _is_decided(self, live: Sequence[_Live]) -> bool:
        """Whether no live hypothesis can still win: log-probs only fall, so each ends at most at `logp / lp(room)`."""
        scores = sorted((h.score for h in self.done), reverse=True)
        bound = max((h.logp for h in live), default=-torch.inf) / length_penalty(self.room, self.alpha)
        return len(scores) >= self.best and bound <= scores[self.best - 1]

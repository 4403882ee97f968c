"""Beam search with GPT-3's length penalty: the likeliest completions by `logp / lp(n)`."""

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
    """A finished completion: its tokens (the end token too), their log-prob and its score `logp / lp(n)`."""

    tokens: tuple[int, ...]
    logp: float
    score: float


def length_penalty(n: int, alpha: float) -> float:
    """`lp(n) = ((5 + n) / 6)^alpha` for n tokens, the end token counted (Wu et al., 2016; GPT-3 takes alpha 0.6)."""
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
    """The best finished hypotheses of every prompt, best first.

    Every step keeps the `beams` likeliest continuations of all live hypotheses; one that ends (by an end token
    or its constraint, or out of room) leaves the beam and keeps its place in it. So a beam of 1 is greedy
    decoding, and one wide enough for all sequences finds the best of them exactly.

    Args:
        model: any causal or seq2seq model.
        prompts: token ids.
        beams: width.
        alpha: of the length penalty, 0 or more; 0 compares log-probs.
        rooms: tokens at most, one for each prompt.
        ends: tokens that end a hypothesis without a constraint.
        constraints: one for each prompt.
        rows: hypotheses run side by side.
        best: a prompt is done when its live hypotheses cannot reach this many finished ones any more.
        banned: tokens no hypothesis has.
    """
    limits = constraints or [None] * len(prompts)
    searches = [_Search(beams, alpha, room, ends, c, best) for room, c in zip(rooms, limits, strict=True)]
    order = [i for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)) if searches[i].live]
    size = max(1, rows // beams)
    for at in range(0, len(order), size):
        group = order[at : at + size]
        state: Rows | Reread = Rows(model) if prefix.shares(model) else Reread(model)
        state.turn([], [prompts[i] for i in group], max(rooms[i] for i in group))
        while True:
            logp = token_functions.wide(state.logits).log_softmax(-1)
            if banned:
                logp[:, list(banned)] = -torch.inf
            rows_, tokens, first = [], [], 0
            for i in group:
                live = len(searches[i].live)
                for row, token in searches[i].step(logp[first : first + live]) if live else ():
                    rows_.append(first + row)
                    tokens.append(token)
                first += live
            if not rows_:
                break
            state.keep(rows_)
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
        able = room > 0 and (constraint is None or bool(constraint.allowed(start)))
        self.live = [_Live((), 0.0, start)] if able else []
        self.done = [] if able else [Hypothesis((), 0.0, 0.0)]

    def step(self, logp: Tensor) -> list[tuple[int, int]]:
        """From `(live, V)` log-probs to the next beam: each live hypothesis' row before and its new token."""
        total = logp.double() + torch.tensor([[h.logp] for h in self.live], dtype=torch.float64, device=logp.device)
        if self.constraint is not None:
            barrier = torch.full_like(total, -torch.inf)
            for at, h in enumerate(self.live):
                barrier[at, list(self.constraint.allowed(h.state))] = 0
            total = total + barrier
        top = total.flatten().topk(min(self.width - len(self.done), total.numel()))
        came, live = [], []
        for value, spot in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if value == -torch.inf:
                break
            row, token = divmod(spot, total.shape[1])
            before = self.live[row]
            state = None if self.constraint is None else self.constraint.advance(before.state, token)
            now = _Live((*before.tokens, token), value, state)
            over = token in self.ends if self.constraint is None else not self.constraint.allowed(state)
            if over or len(now.tokens) >= self.room:
                n = len(now.tokens)
                self.done.append(Hypothesis(now.tokens, value, value / length_penalty(n, self.alpha)))
            else:
                live.append(now)
                came.append((row, token))
        if self._decided(live):
            live, came = [], []
        self.live = live
        return came

    def _decided(self, live: Sequence[_Live]) -> bool:
        """A log-prob only falls, so no live hypothesis ends above `logp / lp(room)`."""
        scores = sorted((h.score for h in self.done), reverse=True)
        bound = max((h.logp for h in live), default=-torch.inf) / length_penalty(self.room, self.alpha)
        return len(scores) >= self.best and bound <= scores[self.best - 1]

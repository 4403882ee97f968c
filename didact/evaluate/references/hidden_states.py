"""Baum-Welch: what an automaton with hidden states, fitted to the strings before, expects of the next symbol.

`A[s, v, s']` is the chance that state s writes symbol v and goes to s'; every string starts in state 0. For all prompts
at once, in float64.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
NONE = -1  # behind the end of a string
TINY = 1e-300


def expected(
    ids: Ids, symbols: int, states: int = 12, iterations: int = 10, smoothing: float = 0.02, seed: int = 0
) -> Array:
    """Of every symbol of prompts `(B, T)` its distribution before it is seen, `(B, T, V)`; zero elsewhere.

    Each time that a string ends the fit goes on, over all strings so far, from where it was; in the string that follows
    the state is filtered. Before the first ends every symbol is as likely as another.

    Args:
        ids: symbols 0 to V - 1, the separator V, V + 1 behind the end.
        symbols: V.
        states: of the automaton.
        iterations: of expectation maximisation after every string.
        smoothing: counted to every symbol of every state.
        seed: of the chances it begins with.
    """
    strings, number, place = split(ids, symbols)
    count, most, _ = strings.shape
    chances = np.random.default_rng(seed).dirichlet(np.ones(symbols * states), (count, states))
    chances = chances.reshape(count, states, symbols, states)
    out = np.zeros((*ids.shape, symbols))
    for k in range(most):
        for _ in range(iterations if k else 0):
            chances = improved(chances, strings[:, :k], smoothing)[0]
        said = filtered(chances, strings[:, k]) if k else np.full((count, strings.shape[2], symbols), 1 / symbols)
        rows, at = np.nonzero((number == k) & (ids < symbols))
        out[rows, at] = said[rows, place[rows, at]]
    return out


def split(ids: Ids, symbols: int) -> tuple[Ids, Ids, Ids]:
    """Prompts as strings `(B, K, L)`, and of every token its string and its place there, `(B, T)`."""
    ends = ids == symbols
    number = ends.cumsum(1) - ends
    t = np.arange(ids.shape[1])
    begun = np.maximum.accumulate(np.where(np.pad(ends, ((0, 0), (1, 0)))[:, :-1], t, 0), 1)
    place = t - begun
    rows, at = np.nonzero(ids < symbols)
    most, longest = (int(v[rows, at].max(initial=0)) + 1 for v in (number, place))
    strings = np.full((len(ids), most, longest), NONE)
    strings[rows, number[rows, at], place[rows, at]] = ids[rows, at]
    return strings, number, place


def improved(chances: Array, strings: Ids, smoothing: float) -> tuple[Array, Array]:
    """One step of expectation maximisation on strings `(B, K, L)`: new chances, and the log-likelihood before, `(B,)`.

    It never makes `log p(strings) + smoothing / states * sum log A` smaller.
    """
    count, states, symbols, _ = chances.shape
    of = chances.swapaxes(1, 2)  # (B, V, S, S)
    row = np.arange(count)[:, None]
    lasts = range(int((strings != NONE).any((0, 1)).sum()))
    steps = [of[row, np.maximum(strings[..., t], 0)] for t in lasts]
    there = [strings[..., t] != NONE for t in lasts]
    forward = [np.broadcast_to(np.eye(states)[0], (*strings.shape[:2], states))]
    logp = np.zeros(strings.shape[:2])
    for step, real in zip(steps, there, strict=True):
        after = np.einsum("bks,bkst->bkt", forward[-1], step)
        total = after.sum(-1, keepdims=True).clip(TINY)
        forward.append(np.where(real[..., None], after / total, forward[-1]))
        logp += np.where(real, np.log(total[..., 0]), 0.0)
    backward = np.ones_like(forward[0])
    counts = np.full((count, symbols, states, states), smoothing / states)
    for t in reversed(lasts):
        both = forward[t][..., None] * steps[t] * backward[..., None, :]
        both /= both.sum((-2, -1), keepdims=True).clip(TINY)
        for k in range(strings.shape[1]):
            real = there[t][:, k]
            counts[real, strings[real, k, t]] += both[real, k]
        before = np.einsum("bkst,bkt->bks", steps[t], backward)
        backward = np.where(there[t][..., None], before / before.sum(-1, keepdims=True).clip(TINY), backward)
    made = counts.swapaxes(1, 2)
    return made / made.sum((2, 3), keepdims=True), logp.sum(1)


def filtered(chances: Array, string: Ids) -> Array:
    """The distribution of every symbol of one string a prompt `(B, L)`, given those before: `(B, L, V)`."""
    writes, row = chances.sum(3), np.arange(len(string))
    state = np.broadcast_to(np.eye(chances.shape[1])[0], (len(string), chances.shape[1]))
    out = []
    for symbol in string.T:
        out.append(np.einsum("bs,bsv->bv", state, writes))
        after = np.einsum("bs,bst->bt", state, chances[row, :, np.maximum(symbol, 0)])
        state = after / after.sum(-1, keepdims=True).clip(TINY)
    return np.stack(out, 1)

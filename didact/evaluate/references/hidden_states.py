"""Baum-Welch: next-symbol distributions of a hidden-state automaton fitted to the strings before.

`A[s, v, s']` is the probability that state s writes symbol v and goes to s'; every string starts in state 0. For all
prompts at once, in float64.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
NONE = -1  # past the end of a string
TINY = 1e-300


def expected(
    ids: Ids, symbols: int, states: int = 12, iterations: int = 10, smoothing: float = 0.02, seed: int = 0
) -> Array:
    """Distributions of every symbol of prompts `(B, T)` given those before, `(B, T, V)`; zero elsewhere.

    At every end of a string the fit continues over all strings so far, from the last parameters; within the next string
    the state is filtered. Within the first string all symbols are equally likely.

    Args:
        ids: symbols 0 to V - 1, the separator V, padding V + 1.
        symbols: V.
        states: number of states.
        iterations: steps of expectation maximisation after every string.
        smoothing: pseudo-count of every symbol of every state.
        seed: of the initial probabilities.
    """
    strings, number, place = split(ids, symbols)
    count, n_strings, _ = strings.shape
    probs = np.random.default_rng(seed).dirichlet(np.ones(symbols * states), (count, states))
    probs = probs.reshape(count, states, symbols, states)
    out = np.zeros((*ids.shape, symbols))
    for k in range(n_strings):
        for _ in range(iterations if k else 0):
            probs = improved(probs, strings[:, :k], smoothing)[0]
        predicted = filtered(probs, strings[:, k]) if k else np.full((count, strings.shape[2], symbols), 1 / symbols)
        rows, at = np.nonzero((number == k) & (ids < symbols))
        out[rows, at] = predicted[rows, place[rows, at]]
    return out


def split(ids: Ids, symbols: int) -> tuple[Ids, Ids, Ids]:
    """Prompts as strings `(B, K, L)`, and the string and the place in it of every token, `(B, T)`."""
    ends = ids == symbols
    number = ends.cumsum(1) - ends
    t = np.arange(ids.shape[1])
    starts = np.maximum.accumulate(np.where(np.pad(ends, ((0, 0), (1, 0)))[:, :-1], t, 0), 1)
    place = t - starts
    rows, at = np.nonzero(ids < symbols)
    n_strings, longest = (int(v[rows, at].max(initial=0)) + 1 for v in (number, place))
    strings = np.full((len(ids), n_strings, longest), NONE)
    strings[rows, number[rows, at], place[rows, at]] = ids[rows, at]
    return strings, number, place


def improved(probs: Array, strings: Ids, smoothing: float) -> tuple[Array, Array]:
    """One step of expectation maximisation on strings `(B, K, L)`: new probabilities, old log-likelihood `(B,)`.

    It never decreases `log p(strings) + smoothing / states * sum log A`.
    """
    count, states, symbols, _ = probs.shape
    by_symbol = probs.swapaxes(1, 2)  # (B, V, S, S)
    row = np.arange(count)[:, None]
    positions = range(int((strings != NONE).any((0, 1)).sum()))
    steps = [by_symbol[row, np.maximum(strings[..., t], 0)] for t in positions]
    present = [strings[..., t] != NONE for t in positions]
    forward = [np.broadcast_to(np.eye(states)[0], (*strings.shape[:2], states))]
    logp = np.zeros(strings.shape[:2])
    for step, inside in zip(steps, present, strict=True):
        after = np.einsum("bks,bkst->bkt", forward[-1], step)
        total = after.sum(-1, keepdims=True).clip(TINY)
        forward.append(np.where(inside[..., None], after / total, forward[-1]))
        logp += np.where(inside, np.log(total[..., 0]), 0.0)
    backward = np.ones_like(forward[0])
    counts = np.full((count, symbols, states, states), smoothing / states)
    for t in reversed(positions):
        both = forward[t][..., None] * steps[t] * backward[..., None, :]
        both /= both.sum((-2, -1), keepdims=True).clip(TINY)
        for k in range(strings.shape[1]):
            inside = present[t][:, k]
            counts[inside, strings[inside, k, t]] += both[inside, k]
        before = np.einsum("bkst,bkt->bks", steps[t], backward)
        backward = np.where(present[t][..., None], before / before.sum(-1, keepdims=True).clip(TINY), backward)
    expected_counts = counts.swapaxes(1, 2)
    return expected_counts / expected_counts.sum((2, 3), keepdims=True), logp.sum(1)


def filtered(probs: Array, string: Ids) -> Array:
    """The distribution of every symbol of one string per prompt `(B, L)`, given those before: `(B, L, V)`."""
    emission, row = probs.sum(3), np.arange(len(string))
    state = np.broadcast_to(np.eye(probs.shape[1])[0], (len(string), probs.shape[1]))
    out = []
    for symbol in string.T:
        out.append(np.einsum("bs,bsv->bv", state, emission))
        after = np.einsum("bs,bst->bt", state, probs[row, :, np.maximum(symbol, 0)])
        state = after / after.sum(-1, keepdims=True).clip(TINY)
    return np.stack(out, 1)

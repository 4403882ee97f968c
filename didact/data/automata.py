"""Deterministic automata as tables, and their next-symbol distributions: exact, and Bayesian over a pool.

A table `(S, V)` holds the next state for each state and symbol, -1 where the symbol is impossible; the start is state
0, every state accepts, and the possible symbols of a state are equally likely. A prompt is several strings of one
automaton with a separator between them, which resets it to the start: symbols are 0 to V - 1, the separator is V, and
padding after the end is V + 1.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from didact.types import UserError

Table = NDArray[np.int64]
Array = NDArray[np.float64]


def states(tables: Table, ids: Table) -> Table:
    """State before each token, `(B, T)`, of automata `(B, S, V)` on tokens `(B, T)`; -1 after an impossible symbol."""
    rows, symbols = np.arange(len(ids)), tables.shape[2]
    state, out = np.zeros(len(ids), dtype=np.int64), np.empty(ids.shape, dtype=np.int64)
    for t, token in enumerate(ids.T):
        out[:, t] = state
        after = tables[rows, np.maximum(state, 0), np.minimum(token, symbols - 1)]
        state = np.where(token >= symbols, 0, np.where(state < 0, -1, after))
    return out


def after(tables: Table, ids: Table) -> Table:
    """State after each token that is a symbol, `(B, T)`; -1 elsewhere."""
    before, symbol = states(tables, ids), np.minimum(ids, tables.shape[2] - 1)
    reached = tables[np.arange(len(ids))[:, None], np.maximum(before, 0), symbol]
    return np.where((before >= 0) & (ids < tables.shape[2]), reached, -1)


def following(tables: Table, ids: Table) -> Array:
    """True distribution of every token that is a symbol, given those before it, `(B, T, V)`; zero elsewhere."""
    before = states(tables, ids)
    possible = tables[np.arange(len(ids))[:, None], np.maximum(before, 0)] >= 0
    possible &= ((before >= 0) & (ids < tables.shape[2]))[..., None]
    count = possible.sum(-1, keepdims=True)
    return possible / np.maximum(count, 1)


def posterior(pool: Table, ids: Table, prior: Array | None = None) -> Array:
    """Bayesian next-symbol distribution if the automaton is only known to be one of a pool, `(B, T, V)`.

        p(x_t | x_<t) = sum_k w_k(x_<t) p_k(x_t | state),   w_k ~ prior_k prod_s p_k(x_s | state)

    Args:
        pool: automata `(K, S, V)`.
        ids: prompts `(B, T)`.
        prior: probability of every automaton `(K,)`; uniform by default.
    """
    count, _, symbols = pool.shape
    automaton = np.arange(count)
    uniform = (pool >= 0) / np.maximum((pool >= 0).sum(-1, keepdims=True), 1)
    log_prior = np.full(count, -np.log(count)) if prior is None else np.log(prior)
    log_weight = np.tile(log_prior, (len(ids), 1))
    state = np.zeros((len(ids), count), dtype=np.int64)
    out = np.zeros((*ids.shape, symbols))
    for t, token in enumerate(ids.T):
        probs = uniform[automaton, np.maximum(state, 0)]  # (B, K, V)
        w = np.exp(log_weight - log_weight.max(1, keepdims=True))
        out[:, t] = np.einsum("bk,bkv->bv", w / w.sum(1, keepdims=True), probs)
        symbol = np.minimum(token, symbols - 1)[:, None]
        is_symbol = (token < symbols)[:, None]
        with np.errstate(divide="ignore"):
            log_weight += np.where(is_symbol, np.log(np.take_along_axis(probs, symbol[..., None], 2)[..., 0]), 0.0)
        state = np.where(is_symbol, pool[automaton, np.maximum(state, 0), symbol], 0)
    out[ids >= symbols] = 0
    return out


def minimal(tables: Table) -> Table:
    """Minimise automata: smallest tables of the same languages, states numbered by first visit from the start.

    Two automata have the same language exactly if these tables are equal. Automata `(B, S, V)` in and out; unused
    states have no symbols.
    """
    count, size, symbols = tables.shape
    rows = np.arange(count)[:, None, None]
    possible = tables >= 0
    equal = (possible[:, :, None] == possible[:, None]).all(-1)  # states are equal until a symbol separates them
    while True:
        first_next, second_next = np.maximum(tables, 0)[:, :, None], np.maximum(tables, 0)[:, None]
        agree = equal[rows[..., None], first_next, second_next] | ~possible[:, :, None]
        refined = equal & agree.all(-1)
        if (refined == equal).all():
            break
        equal = refined
    representative = equal.argmax(-1)  # the first of the equal states represents them
    merged = np.where(possible, representative[rows, np.maximum(tables, 0)], -1)
    number, visited = np.full((count, size), -1), np.ones(count, dtype=np.int64)
    order = np.zeros((count, size), dtype=np.int64)
    number[:, 0] = 0
    automaton = np.arange(count)
    for k in range(size):
        for symbol in range(symbols):
            target = merged[automaton, order[:, k], symbol]
            new = (k < visited) & (target >= 0) & (number[automaton, np.maximum(target, 0)] < 0)
            number[automaton[new], target[new]] = visited[new]
            order[automaton[new], visited[new]] = target[new]
            visited[new] += 1
    out = np.take_along_axis(merged, order[..., None], 1)
    out = np.where(out >= 0, number[rows, np.maximum(out, 0)], -1)
    result: Table = np.where((np.arange(size) < visited[:, None])[..., None], out, -1)
    return result


def marks(tables: Table) -> list[bytes]:
    """Keys of minimal automata: equal for equal languages."""
    return [table[(table >= 0).any(1)].tobytes() for table in tables]


def table(rows: Any, symbols: Mapping[str, int], where: str) -> Table:
    """Parse an automaton from a record's metadata, `[{"a": 1, "b": 2}, ...]`: one `{symbol: next state}` per state.

    Raises:
        UserError: it is not such a list, or names an unknown state or symbol.
    """
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(state, Mapping) and state for state in rows):
        raise UserError(f"{where}: 'automaton' must be a list of states, each {{symbol: next state}} and none empty")
    out = np.full((len(rows), len(symbols)), -1)
    for state in rows:
        for symbol, target in state.items():
            if symbol not in symbols or type(target) is not int or not 0 <= target < len(rows):
                raise UserError(
                    f"{where}: 'automaton' leads from '{symbol}' to {target!r}: symbols are one word each, states "
                    f"0 to {len(rows) - 1}"
                )
    for number, state in enumerate(rows):
        for symbol, target in state.items():
            out[number, symbols[symbol]] = target
    return out


def stacked(tables: Sequence[Table]) -> Table:
    """Stack automata of different sizes into one array `(B, S, V)`."""
    size = max(len(t) for t in tables)
    return np.stack([np.pad(t, ((0, size - len(t)), (0, 0)), constant_values=-1) for t in tables])

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
    now, out = np.zeros(len(ids), dtype=np.int64), np.empty(ids.shape, dtype=np.int64)
    for t, token in enumerate(ids.T):
        out[:, t] = now
        after = tables[rows, np.maximum(now, 0), np.minimum(token, symbols - 1)]
        now = np.where(token >= symbols, 0, np.where(now < 0, -1, after))
    return out


def after(tables: Table, ids: Table) -> Table:
    """State after each token that is a symbol, `(B, T)`; -1 elsewhere."""
    at, symbol = states(tables, ids), np.minimum(ids, tables.shape[2] - 1)
    gone = tables[np.arange(len(ids))[:, None], np.maximum(at, 0), symbol]
    return np.where((at >= 0) & (ids < tables.shape[2]), gone, -1)


def following(tables: Table, ids: Table) -> Array:
    """True distribution of every token that is a symbol, given those before it, `(B, T, V)`; zero elsewhere."""
    at = states(tables, ids)
    possible = tables[np.arange(len(ids))[:, None], np.maximum(at, 0)] >= 0
    possible &= ((at >= 0) & (ids < tables.shape[2]))[..., None]
    many = possible.sum(-1, keepdims=True)
    return possible / np.maximum(many, 1)


def posterior(pool: Table, ids: Table, prior: Array | None = None) -> Array:
    """Bayesian next-symbol distribution if the automaton is only known to be one of a pool, `(B, T, V)`.

        p(x_t | x_<t) = sum_k w_k(x_<t) p_k(x_t | state),   w_k ~ prior_k prod_s p_k(x_s | state)

    Args:
        pool: automata `(K, S, V)`.
        ids: prompts `(B, T)`.
        prior: probability of every automaton `(K,)`; uniform by default.
    """
    count, _, symbols = pool.shape
    each = np.arange(count)
    share = (pool >= 0) / np.maximum((pool >= 0).sum(-1, keepdims=True), 1)
    start = np.full(count, -np.log(count)) if prior is None else np.log(prior)
    weight = np.tile(start, (len(ids), 1))
    now = np.zeros((len(ids), count), dtype=np.int64)
    out = np.zeros((*ids.shape, symbols))
    for t, token in enumerate(ids.T):
        here = share[each, np.maximum(now, 0)]  # (B, K, V)
        w = np.exp(weight - weight.max(1, keepdims=True))
        out[:, t] = np.einsum("bk,bkv->bv", w / w.sum(1, keepdims=True), here)
        symbol = np.minimum(token, symbols - 1)[:, None]
        inside = (token < symbols)[:, None]
        with np.errstate(divide="ignore"):
            weight += np.where(inside, np.log(np.take_along_axis(here, symbol[..., None], 2)[..., 0]), 0.0)
        now = np.where(inside, pool[each, np.maximum(now, 0), symbol], 0)
    out[ids >= symbols] = 0
    return out


def minimal(tables: Table) -> Table:
    """Minimise automata: smallest tables of the same languages, states numbered by first visit from the start.

    Two automata have the same language exactly if these tables are equal. Automata `(B, S, V)` in and out; unused
    states have no symbols.
    """
    count, size, symbols = tables.shape
    rows = np.arange(count)[:, None, None]
    there = tables >= 0
    same = (there[:, :, None] == there[:, None]).all(-1)  # states are equal until a symbol separates them
    while True:
        left, right = np.maximum(tables, 0)[:, :, None], np.maximum(tables, 0)[:, None]
        agree = same[rows[..., None], left, right] | ~there[:, :, None]
        finer = same & agree.all(-1)
        if (finer == same).all():
            break
        same = finer
    stands = same.argmax(-1)  # the first of the equal states represents them
    merged = np.where(there, stands[rows, np.maximum(tables, 0)], -1)
    number, met = np.full((count, size), -1), np.ones(count, dtype=np.int64)
    order = np.zeros((count, size), dtype=np.int64)
    number[:, 0] = 0
    each = np.arange(count)
    for k in range(size):
        for symbol in range(symbols):
            target = merged[each, order[:, k], symbol]
            new = (k < met) & (target >= 0) & (number[each, np.maximum(target, 0)] < 0)
            number[each[new], target[new]] = met[new]
            order[each[new], met[new]] = target[new]
            met[new] += 1
    out = np.take_along_axis(merged, order[..., None], 1)
    out = np.where(out >= 0, number[rows, np.maximum(out, 0)], -1)
    kept: Table = np.where((np.arange(size) < met[:, None])[..., None], out, -1)
    return kept


def marks(tables: Table) -> list[bytes]:
    """Keys of minimal automata: equal for equal languages."""
    return [table[(table >= 0).any(1)].tobytes() for table in tables]


def table(told: Any, symbols: Mapping[str, int], where: str) -> Table:
    """Parse an automaton from a record's metadata, `[{"a": 1, "b": 2}, ...]`: one `{symbol: next state}` per state.

    Raises:
        UserError: it is not such a list, or names an unknown state or symbol.
    """
    if not isinstance(told, Sequence) or not told or not all(isinstance(state, Mapping) and state for state in told):
        raise UserError(f"{where}: 'automaton' must be a list of states, each {{symbol: next state}} and none empty")
    out = np.full((len(told), len(symbols)), -1)
    for state in told:
        for symbol, after in state.items():
            if symbol not in symbols or type(after) is not int or not 0 <= after < len(told):
                raise UserError(
                    f"{where}: 'automaton' leads from '{symbol}' to {after!r}: symbols are one word each, states "
                    f"0 to {len(told) - 1}"
                )
    for number, state in enumerate(told):
        for symbol, after in state.items():
            out[number, symbols[symbol]] = after
    return out


def stacked(tables: Sequence[Table]) -> Table:
    """Stack automata of different sizes into one array `(B, S, V)`."""
    size = max(len(t) for t in tables)
    return np.stack([np.pad(t, ((0, size - len(t)), (0, 0)), constant_values=-1) for t in tables])

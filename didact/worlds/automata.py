"""Random formal languages, and prompts that show strings of one: the distribution of the next symbol is known exactly.

A language is a probabilistic automaton without final states: every state allows a few symbols, all equally likely, and
each leads to another state. `Languages.automata` draws different languages (compared by their minimal automata),
`prompts` samples strings of them as tokens, `records` as user-facing records together with their automata.

Source: Akyurek, Wang, Kim, Andreas 2024, arXiv:2401.12973, section 3 and appendix.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from didact.data import automata
from didact.data.automata import Table
from didact.types import Text

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Bounds = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Languages:
    """The distribution of languages; bounds are inclusive. The official code draws 1 to 3 edges.

    Args:
        symbols: V, number of symbols, of which a language uses some.
        states: number of states of a language, before equivalent ones are merged.
        edges: number of symbols that can follow in a state.
        alphabet: number of symbols that a language uses.
        strings: number of strings in a prompt.
        length: of a string, in symbols.
    """

    symbols: int = 18
    states: Bounds = (4, 12)
    edges: Bounds = (1, 4)
    alphabet: Bounds = (4, 18)
    strings: Bounds = (10, 19)
    length: Bounds = (1, 49)

    @property
    def separator(self) -> int:
        """The token between strings."""
        return self.symbols

    def automata(self, seed: Sequence[int], count: int, without: Collection[bytes] = ()) -> Table:
        """`count` different languages as minimal automata `(count, S, V)`, excluding `without` (see `automata.marks`).

        Raises:
            ValueError: fewer different languages were found.
        """
        rng = np.random.default_rng(list(seed))
        marks, tables = set(without), list[Table]()
        for _ in range(100):
            drawn = automata.minimal(self._drawn(rng, max(64, count - len(tables))))
            for mark, table in zip(automata.marks(drawn), drawn, strict=True):
                if mark not in marks:
                    marks.add(mark)
                    tables.append(table)
            if len(tables) >= count:
                return np.stack(tables[:count])
        raise ValueError(f"no {count} different languages: {len(tables)} were found")

    def prompts(self, tables: Table, seed: Sequence[int]) -> Table:
        """A prompt for every automaton, tokens `(B, T)`; shorter prompts are padded with V + 1."""
        rng = np.random.default_rng(list(seed))
        rows, count = np.arange(len(tables)), len(tables)
        strings_left = rng.integers(self.strings[0], self.strings[1] + 1, count)
        symbols_left = rng.integers(self.length[0], self.length[1] + 1, count)
        state, tokens = np.zeros(count, dtype=np.int64), []
        while (strings_left > 0).any():
            edges = tables[rows, state]
            # Draw a uniform number for each allowed symbol and take the largest.
            symbol = np.where(edges >= 0, rng.random(edges.shape), -1.0).argmax(1)
            at_separator, unfinished = symbols_left == 0, strings_left > 0
            tokens.append(np.where(~unfinished, self.symbols + 1, np.where(at_separator, self.symbols, symbol)))
            state = np.where(at_separator, 0, edges[rows, symbol])
            new_lengths = rng.integers(self.length[0], self.length[1] + 1, count)
            string_ends = (symbols_left == 1) & unfinished
            strings_left = np.where(string_ends, strings_left - 1, strings_left)
            symbols_left = np.where(at_separator, new_lengths, symbols_left - 1)
        return np.stack(tokens, 1)

    def records(self, seed: Sequence[int], count: int, without: Collection[bytes] = ()) -> list[Text]:
        """Prompts for different languages as text, `a b | b a a`, each with its automaton in `metadata`."""
        tables = self.automata(seed, count, without)
        words = [*LETTERS[: self.symbols], "|"]
        return [
            Text(
                text=" ".join(words[token] for token in row if token <= self.symbols),
                metadata={
                    "automaton": [{words[v]: int(s[v]) for v in np.flatnonzero(s >= 0)} for s in table if s.max() >= 0]
                },
            )
            for row, table in zip(self.prompts(tables, [*seed, 1]), tables, strict=True)
        ]

    def _drawn(self, rng: np.random.Generator, count: int) -> Table:
        """Automata before minimisation: unreachable states have edges too."""
        size = self.states[1]
        states = rng.integers(self.states[0], size + 1, count)
        letters = _first(
            rng, np.ones((count, self.symbols), dtype=bool), rng.integers(self.alphabet[0], self.alphabet[1] + 1, count)
        )
        tables = np.full((count, size, self.symbols), -1)
        for state in range(size):
            other_states = (np.arange(size) < states[:, None]) & (np.arange(size) != state)
            limit = np.minimum(letters.sum(1), states - 1)
            edges = np.minimum(rng.integers(self.edges[0], self.edges[1] + 1, count), limit)
            allowed, targets = _first(rng, letters, edges), _shuffled(rng, other_states)
            rank = allowed.cumsum(1) - 1
            next_state = np.take_along_axis(targets, np.maximum(rank, 0), 1)
            tables[:, state] = np.where(allowed & (state < states)[:, None], next_state, -1)
        return tables


def _shuffled(rng: np.random.Generator, of: NDArray[np.bool_]) -> Table:
    """Column indices of every row: those of true columns first, in random order."""
    order: Table = np.where(of, rng.random(of.shape), 2.0).argsort(1)
    return order


def _first(rng: np.random.Generator, of: NDArray[np.bool_], count: Table) -> NDArray[np.bool_]:
    """Select `count` random true columns of every row."""
    out = np.zeros_like(of)
    np.put_along_axis(out, _shuffled(rng, of), np.arange(of.shape[1]) < count[:, None], 1)
    return out

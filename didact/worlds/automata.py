"""Random formal languages, and prompts that show strings of one: what comes next is known exactly.

A language is a probabilistic automaton without end: every state has a few symbols, all equally likely, and each leads
to another state. `Languages.automata` draws different ones (equal languages are found by their minimal automata),
`prompts` writes strings of them, `records` gives those with their automaton, as a user would bring them.

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
    """What languages are drawn; all bounds belong to the range. The official code draws 1 to 3 edges.

    Args:
        symbols: V, of which a language uses some.
        states: of a language, before equal ones are merged.
        edges: symbols that can follow in a state.
        alphabet: symbols a language uses.
        strings: in a prompt.
        length: of a string.
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
        """So many different languages `(count, S, V)` as minimal automata, none of those `without` (`automata.marks`).

        Raises:
            ValueError: there are not so many.
        """
        rng = np.random.default_rng(list(seed))
        known, found = set(without), list[Table]()
        for _ in range(100):
            drawn = automata.minimal(self._drawn(rng, max(64, count - len(found))))
            for mark, each in zip(automata.marks(drawn), drawn, strict=True):
                if mark not in known:
                    known.add(mark)
                    found.append(each)
            if len(found) >= count:
                return np.stack(found[:count])
        raise ValueError(f"no {count} different languages: {len(found)} were found")

    def prompts(self, tables: Table, seed: Sequence[int]) -> Table:
        """A prompt of every automaton, `(B, T)` tokens, V + 1 behind the end of shorter ones."""
        rng = np.random.default_rng(list(seed))
        rows, count = np.arange(len(tables)), len(tables)
        left = rng.integers(self.strings[0], self.strings[1] + 1, count)
        room = rng.integers(self.length[0], self.length[1] + 1, count)
        state, out = np.zeros(count, dtype=np.int64), []
        while (left > 0).any():
            edges = tables[rows, state]
            # A uniform number for each possible symbol; the largest is taken.
            symbol = np.where(edges >= 0, rng.random(edges.shape), -1.0).argmax(1)
            between, going = room == 0, left > 0
            out.append(np.where(~going, self.symbols + 1, np.where(between, self.symbols, symbol)))
            state = np.where(between, 0, edges[rows, symbol])
            fresh = rng.integers(self.length[0], self.length[1] + 1, count)
            last = (room == 1) & going
            left = np.where(last, left - 1, left)
            room = np.where(between, fresh, room - 1)
        return np.stack(out, 1)

    def records(self, seed: Sequence[int], count: int, without: Collection[bytes] = ()) -> list[Text]:
        """Prompts of different languages as text, `a b | b a a`, each with its automaton in `metadata`."""
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
        """Automata before they are trimmed: states that cannot be reached have edges too."""
        size = self.states[1]
        states = rng.integers(self.states[0], size + 1, count)
        letters = _first(
            rng, np.ones((count, self.symbols), dtype=bool), rng.integers(self.alphabet[0], self.alphabet[1] + 1, count)
        )
        out = np.full((count, size, self.symbols), -1)
        for state in range(size):
            others = (np.arange(size) < states[:, None]) & (np.arange(size) != state)
            most = np.minimum(letters.sum(1), states - 1)
            edges = np.minimum(rng.integers(self.edges[0], self.edges[1] + 1, count), most)
            symbol, target = _first(rng, letters, edges), _shuffled(rng, others)
            place = symbol.cumsum(1) - 1
            leads = np.take_along_axis(target, np.maximum(place, 0), 1)
            out[:, state] = np.where(symbol & (state < states)[:, None], leads, -1)
        return out


def _shuffled(rng: np.random.Generator, of: NDArray[np.bool_]) -> Table:
    """The true columns of every row in random order, before the others."""
    order: Table = np.where(of, rng.random(of.shape), 2.0).argsort(1)
    return order


def _first(rng: np.random.Generator, of: NDArray[np.bool_], count: Table) -> NDArray[np.bool_]:
    """So many of the true columns of every row, at random."""
    out = np.zeros_like(of)
    np.put_along_axis(out, _shuffled(rng, of), np.arange(of.shape[1]) < count[:, None], 1)
    return out

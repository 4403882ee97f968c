"""Constrained decoding: automata over token ids that decide which tokens may come next.

`Finite` allows a set of strings, `Spans` any span of a passage. A state in which nothing is allowed ends the row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from didact.data import encode
from didact.models.model import Model


class Constraint(Protocol):
    """An automaton over token ids; its states are opaque to callers."""

    def start(self) -> Any:
        """Return the state before the first token."""

    def allowed(self, state: Any) -> Collection[int]:
        """Return the tokens that may come next, the end token too where the string may end; none at the end."""

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after an allowed token."""


class Finite:
    """One of finitely many strings, then `end`. Decode with `max_new_tokens >= longest`, else it may be cut.

    Args:
        strings: token ids of each, not empty.
        end: the token after the last.

    Raises:
        ValueError: no string, or an empty one.
    """

    def __init__(self, strings: Sequence[Sequence[int]], end: int) -> None:
        if not strings or not all(strings):
            raise ValueError("a constraint needs at least one string, and none of them empty")
        self.root: dict[int, Any] = {}
        self.longest = 1 + max(map(len, strings))
        for string in strings:
            node = self.root
            for token in (*string, end):
                node = node.setdefault(token, {})

    def start(self) -> dict[int, Any]:
        """The trie's root."""
        return self.root

    def allowed(self, state: dict[int, Any]) -> Collection[int]:
        """The node's children."""
        return state.keys()

    def advance(self, state: dict[int, Any], token: int) -> dict[int, Any]:
        """The child."""
        child: dict[int, Any] = state[token]
        return child


class Spans:
    """Any non-empty span of a passage, then `end`.

    The state is the span's length so far and the positions after all its occurrences in the passage: the tokens there
    may follow. Used by the constrained greedy decoding of Exact-extract (Castel et al., 2022).

    Args:
        passage: token ids, not empty.
        end: the token after a span.
        longest: most tokens of a span; 0 is no limit.

    Raises:
        ValueError: an empty passage.
    """

    def __init__(self, passage: Sequence[int], end: int, longest: int = 0) -> None:
        if not passage:
            raise ValueError("an empty passage has no spans")
        self.passage, self.end, self.max_length = tuple(passage), end, longest or len(passage)
        self.longest = 1 + min(self.max_length, len(passage))

    def start(self) -> tuple[int, tuple[int, ...]]:
        """Length 0; a span may begin anywhere."""
        return 0, tuple(range(len(self.passage)))

    def allowed(self, state: tuple[int, tuple[int, ...]]) -> Collection[int]:
        """The tokens at the positions, and the end token once there is a span."""
        length, places = state
        if length < 0:
            return ()
        after = {self.passage[p] for p in places if p < len(self.passage)} if length < self.max_length else set()
        return after | {self.end} if length else after

    def advance(self, state: tuple[int, tuple[int, ...]], token: int) -> tuple[int, tuple[int, ...]]:
        """The positions after those that hold the token; a token equal to `end` ends the span."""
        length, places = state
        if token == self.end and length:
            return -1, ()
        return length + 1, tuple(p + 1 for p in places if p < len(self.passage) and self.passage[p] == token)


def choices(model: Model, prompt: str, texts: Sequence[str], end: int | None = None) -> Finite:
    """Return the constraint to one of these texts after a prompt, tokenised as training and scoring do.

    Args:
        model: gives the tokenizer, and its end token where `end` is None.
        prompt: the text before, which decides whether a choice starts with a space.
        texts: the choices.
        end: the token after a choice.

    Raises:
        ValueError: no choice or an empty one, or a tokenizer without an end token.
    """
    end = encode.answer_end(model.tokenizer) if end is None else end
    if end is None:
        raise ValueError("the tokenizer has no end token: name the token that ends a choice")
    return Finite([encode.parts(model.tokenizer, prompt, t, model.kind, end=False)[1] if t else [] for t in texts], end)

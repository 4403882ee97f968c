"""Languages whose programs move a robot: the effect of each word on a state, and the labels of a state.

A language is any object with `actions`, `step(state, action) -> state` (None where it crashes) and
`labels(state) -> {name: value}`. States are plain JSON. `Grid` has four words, `Robot` three; `Karel` is Karel
without control flow.

Source: Jin & Rinard, arXiv:2305.11169.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

FACING = ((0, -1), (1, 0), (0, 1), (-1, 0))  # up, right, down, left


class Language(Protocol):
    """The meaning of words: an interpreter, one word at a time."""

    @property
    def actions(self) -> Sequence[str]:
        """The words."""

    def step(self, state: Any, action: str) -> Any:
        """The state after a word; None where it cannot be done."""

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """The properties of a state that probes predict, by name."""


@dataclass(frozen=True)
class Grid:
    """A walker on a square grid: a state is `[x, y, size]`; a step against the border does nothing."""

    actions: ClassVar[tuple[str, ...]] = ("north", "east", "south", "west")

    def step(self, state: Any, action: str) -> Any:
        """Move by one cell."""
        x, y, size = state
        dx, dy = FACING[self.actions.index(action)]
        return [min(max(x + dx, 0), size - 1), min(max(y + dy, 0), size - 1), size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Its position."""
        return {"position": tuple(state[:2])}


@dataclass(frozen=True)
class Robot:
    """A robot on a square grid: a state is `[x, y, facing, size]`; a move against the wall does nothing."""

    actions: ClassVar[tuple[str, ...]] = ("left", "right", "move")

    def step(self, state: Any, action: str) -> Any:
        """Turn or move."""
        x, y, facing, size = state
        if action != "move":
            return [x, y, (facing + (1 if action == "right" else -1)) % 4, size]
        dx, dy = FACING[facing]
        return [min(max(x + dx, 0), size - 1), min(max(y + dy, 0), size - 1), facing, size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Its facing and position."""
        x, y, facing, _ = state
        return {"facing": facing, "position": (x, y)}


@dataclass(frozen=True)
class Karel:
    """Karel: a state is `[x, y, facing, walls, markers, size]`; the grid's border is wall too, besides `walls`.

    Moving into a wall and picking a marker where there is none are crashes.
    """

    actions: ClassVar[tuple[str, ...]] = ("pick_marker", "put_marker", "turn_right", "turn_left", "move")

    def step(self, state: Any, action: str) -> Any:
        """Apply one action; None if it crashes."""
        x, y, facing, walls, markers, size = state
        if action.startswith("turn"):
            return [x, y, (facing + (1 if action == "turn_right" else -1)) % 4, walls, markers, size]
        if action == "move":
            x, y = x + FACING[facing][0], y + FACING[facing][1]
            return None if _wall(x, y, walls, size) else [x, y, facing, walls, markers, size]
        position = [x, y]
        if action == "put_marker":
            return [x, y, facing, walls, sorted([*markers, position]), size]
        if position not in markers:
            return None
        remaining = list(markers)
        remaining.remove(position)
        return [x, y, facing, walls, remaining, size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Its facing and position, whether a wall is ahead, and which of the four neighbouring cells are walls."""
        x, y, facing, walls, _, size = state
        walls_beside = tuple(_wall(x + dx, y + dy, walls, size) for dx, dy in FACING)
        return {"facing": facing, "position": (x, y), "wall_ahead": walls_beside[facing], "walls_beside": walls_beside}


def _wall(x: int, y: int, walls: Any, size: int) -> bool:
    return not (0 < x < size - 1 and 0 < y < size - 1) or [x, y] in walls


LANGUAGES: dict[str, Any] = {"grid": Grid, "robot": Robot, "karel": Karel}
MARKERS = {"pick_marker": "put_marker", "put_marker": "pick_marker"}
# Permuted meanings, `{word: the word whose meaning it gets}`: bijections over the same states. Swapping the two turns
# only mirrors the facing, and is a weak alternative.
ALTERNATIVES: dict[str, dict[str, dict[str, str]]] = {
    "grid": {
        "turned": {"north": "east", "east": "south", "south": "west", "west": "north"},
        "swapped": {"north": "east", "east": "north", "south": "west", "west": "south"},
    },
    "robot": {
        "turned": {"left": "right", "right": "move", "move": "left"},
        "swapped": {"right": "move", "move": "right"},
    },
    "karel": {
        "alt5": MARKERS | {"turn_right": "move", "turn_left": "turn_right", "move": "turn_left"},
        "alt8": MARKERS | {"turn_left": "move", "move": "turn_left"},
        "alt11": MARKERS | {"turn_right": "turn_left", "turn_left": "move", "move": "turn_right"},
    },
}  # fmt: skip


def run(
    language: Language, start: Any, program: Sequence[str], meaning: Mapping[str, str] | None = None
) -> list[Any] | None:
    """Run a program, with the words' meanings permuted by `meaning`; return the state after each word, None if it
    crashes."""
    out: list[Any] = []
    state = start
    for word in program:
        state = language.step(state, (meaning or {}).get(word, word))
        if state is None:
            return None
        out.append(state)
    return out


def dealt_anew(actions: Sequence[str]) -> dict[str, dict[str, str]]:
    """A default alternative for a language without one: every word gets the meaning of the next."""
    return {"turned": {word: actions[(i + 1) % len(actions)] for i, word in enumerate(actions)}}

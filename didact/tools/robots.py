"""Languages whose programs move a robot: what a word does to a state, and what may be asked of a state.

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
        """What is asked of a state, by name."""


@dataclass(frozen=True)
class Grid:
    """A walker on a square of fields: a state is `[x, y, size]`; a step against the border does nothing."""

    actions: ClassVar[tuple[str, ...]] = ("north", "east", "south", "west")

    def step(self, state: Any, action: str) -> Any:
        """Go one field."""
        x, y, size = state
        dx, dy = FACING[self.actions.index(action)]
        return [min(max(x + dx, 0), size - 1), min(max(y + dy, 0), size - 1), size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Where it is."""
        return {"position": tuple(state[:2])}


@dataclass(frozen=True)
class Robot:
    """A robot on a square of fields: a state is `[x, y, facing, size]`; a move against the wall does nothing."""

    actions: ClassVar[tuple[str, ...]] = ("left", "right", "move")

    def step(self, state: Any, action: str) -> Any:
        """Turn or move."""
        x, y, facing, size = state
        if action != "move":
            return [x, y, (facing + (1 if action == "right" else -1)) % 4, size]
        dx, dy = FACING[facing]
        return [min(max(x + dx, 0), size - 1), min(max(y + dy, 0), size - 1), facing, size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Where it looks, and where it is."""
        x, y, facing, _ = state
        return {"facing": facing, "position": (x, y)}


@dataclass(frozen=True)
class Karel:
    """Karel: a state is `[x, y, facing, walls, markers, size]`; the border of the square is wall, beside the `walls`.

    It crashes into walls, and where there is no marker to pick.
    """

    actions: ClassVar[tuple[str, ...]] = ("pick_marker", "put_marker", "turn_right", "turn_left", "move")

    def step(self, state: Any, action: str) -> Any:
        """Do one thing, or crash (None)."""
        x, y, facing, walls, markers, size = state
        if action.startswith("turn"):
            return [x, y, (facing + (1 if action == "turn_right" else -1)) % 4, walls, markers, size]
        if action == "move":
            x, y = x + FACING[facing][0], y + FACING[facing][1]
            return None if _wall(x, y, walls, size) else [x, y, facing, walls, markers, size]
        here = [x, y]
        if action == "put_marker":
            return [x, y, facing, walls, sorted([*markers, here]), size]
        if here not in markers:
            return None
        rest = list(markers)
        rest.remove(here)
        return [x, y, facing, walls, rest, size]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Where it looks and is, what is in front of it, and which of the four fields beside it are walls."""
        x, y, facing, walls, _, size = state
        beside = tuple(_wall(x + dx, y + dy, walls, size) for dx, dy in FACING)
        return {"facing": facing, "position": (x, y), "wall_ahead": beside[facing], "walls_beside": beside}


def _wall(x: int, y: int, walls: Any, size: int) -> bool:
    return not (0 < x < size - 1 and 0 < y < size - 1) or [x, y] in walls


LANGUAGES: dict[str, Any] = {"grid": Grid, "robot": Robot, "karel": Karel}
MARKERS = {"pick_marker": "put_marker", "put_marker": "pick_marker"}
# Words dealt anew, `{word: the word whose meaning it has}`: bijections over the same states. A swap of the turns only
# mirrors where it looks, and is a weak alternative.
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
    """The states after each word of a program, read with the meanings of other words; None where it crashes."""
    out: list[Any] = []
    state = start
    for word in program:
        state = language.step(state, (meaning or {}).get(word, word))
        if state is None:
            return None
        out.append(state)
    return out


def dealt_anew(actions: Sequence[str]) -> dict[str, dict[str, str]]:
    """An alternative for a language that names none: every word has the meaning of the next."""
    return {"turned": {word: actions[(i + 1) % len(actions)] for i, word in enumerate(actions)}}

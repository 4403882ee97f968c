"""Programs that move robots, and what is known of each: where it begins and where it ends, a few times over.

A record is a specification (`prompt`: pairs of states as words) and a program (`completion`) that fits it, with the
states themselves beside them (`starts`, `ends`). States between are nowhere in the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.tools import robots
from didact.types import Demo

LOOKS = ("up", "east", "down", "west")  # no word of the language


@dataclass(frozen=True)
class Grids:
    """The world of `robots.Grid`: small enough that a model of 100,000 weights learns it in half a minute.

    Args:
        size: of the grid.
        shortest: words of a program.
        longest: and at most; all lengths are equally likely.
    """

    size: int = 3
    shortest: int = 2
    longest: int = 4

    @property
    def language(self) -> robots.Grid:
        """What the words mean."""
        return robots.Grid()

    def demos(self, seed: int, n: int, asked: bool | None = None) -> list[Demo]:
        """`n` specifications, each with the program it was made of: of the fifth of all pairs of fields that are only
        `asked`, of the others, or of all."""
        draw = np.random.default_rng([seed, 37])
        out: list[Demo] = []
        while len(out) < n:
            words = draw.integers(4, size=draw.integers(self.shortest, self.longest + 1))
            start = [*(int(v) for v in draw.integers(self.size, size=2)), self.size]
            made = demo(self.language, [start], [self.language.actions[i] for i in words], self._words)
            ((a, b, _),), ((c, d, _),) = made.extra["starts"], made.extra["ends"]
            if asked in (None, (a + 2 * b + 3 * c + 4 * d) % 5 == 0):
                out.append(made)
        return out

    def _words(self, state: Any) -> str:
        return f"{'abcdefgh'[state[0]]} {state[1]}"


@dataclass(frozen=True)
class Robots:
    """The world of `robots.Robot`.

    Args:
        size: of the grid.
        shortest: words of a program.
        longest: and at most; all lengths are equally likely.
        pairs: states before and after that specify a program.
        weights: of the words left, right and move.
    """

    size: int = 3
    shortest: int = 2
    longest: int = 4
    pairs: int = 1
    weights: tuple[float, ...] = (1.0, 1.0, 2.0)

    @property
    def language(self) -> robots.Robot:
        """What the words mean."""
        return robots.Robot()

    def demos(self, seed: int, n: int) -> list[Demo]:
        """`n` specifications, each with the program it was made of; some may come twice."""
        draw = np.random.default_rng([seed, 29])
        weights = np.array(self.weights) / sum(self.weights)
        out = []
        for _ in range(n):
            length = draw.integers(self.shortest, self.longest + 1)
            program = [self.language.actions[i] for i in draw.choice(3, length, p=weights)]
            starts = [
                [*(int(v) for v in draw.integers((self.size, self.size, 4))), self.size] for _ in range(self.pairs)
            ]
            out.append(demo(self.language, starts, program, self._words))
        return out

    def _words(self, state: Any) -> str:
        return f"{'abcdefgh'[state[0]]}{state[1]} {LOOKS[state[2]]}"


@dataclass(frozen=True)
class Karels:
    """The world of `robots.Karel`: random walls and markers, programs of the original weights that do not crash.

    Args:
        size: of the grid, its border of walls included.
        shortest: words of a program.
        longest: and at most.
        pairs: grids before and after that specify a program.
        filled: chance of a wall, and of a marker, on a field.
    """

    size: int = 8
    shortest: int = 6
    longest: int = 10
    pairs: int = 5
    filled: float = 0.1
    weights: tuple[float, ...] = (2.0, 2.0, 3.0, 3.0, 5.0)

    @property
    def language(self) -> robots.Karel:
        """What the words mean."""
        return robots.Karel()

    def demos(self, seed: int, n: int) -> list[Demo]:
        """`n` specifications, each with the program it was made of."""
        draw = np.random.default_rng([seed, 31])
        weights = np.array(self.weights) / sum(self.weights)
        out: list[Demo] = []
        while len(out) < n:
            length = draw.integers(self.shortest, self.longest + 1)
            program = [self.language.actions[i] for i in draw.choice(5, length, p=weights)]
            starts: list[Any] = []
            for _ in range(20 * self.pairs):  # a program may crash wherever it begins
                start = self._grid(draw)
                if robots.run(self.language, start, program) is not None:
                    starts.append(start)
                if len(starts) == self.pairs:
                    out.append(demo(self.language, starts, program, self._words))
                    break
        return out

    def _grid(self, draw: np.random.Generator) -> Any:
        inside = [[x, y] for y in range(1, self.size - 1) for x in range(1, self.size - 1)]
        x, y = inside[draw.integers(len(inside))]
        walls = [field for field in inside if draw.random() < self.filled and field != [x, y]]
        markers = [field for field in inside if draw.random() < self.filled and field not in walls]
        return [x, y, int(draw.integers(4)), walls, markers, self.size]

    def _words(self, state: Any) -> str:
        """Rows of the grid: `#` a wall, a digit markers, `^>v<` the robot."""
        x, y, facing, walls, markers, _ = state
        rows = []
        for b in range(self.size):
            fields = []
            for a in range(self.size):
                edge = a in (0, self.size - 1) or b in (0, self.size - 1)
                many = markers.count([a, b])
                fields.append("#" if edge or [a, b] in walls else str(many) if many else ".")
                if [a, b] == [x, y]:
                    fields[-1] = "^>v<"[facing] + (str(many) if many else "")
            rows.append(" ".join(fields))
        return "\n".join(rows)


def demo(language: robots.Language, starts: list[Any], program: list[str], words: Any) -> Demo:
    """A record: what it looks like before and after in words, the program, and the states."""
    ends = [(robots.run(language, start, program) or [start])[-1] for start in starts]
    between = "\n" if "\n" in words(starts[0]) else " "
    shown = [f"{words(a)}{between}to{between}{words(b)}" for a, b in zip(starts, ends, strict=True)]
    joined = ("\n" if between == "\n" else " ; ").join(shown)
    return Demo(prompt=f"{joined}{between}:", completion=" ".join(program), extra={"starts": starts, "ends": ends})

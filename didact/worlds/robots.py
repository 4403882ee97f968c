"""Programs that move robots, each specified by a few pairs of start and end states.

A record is a specification (`prompt`: pairs of states as words) and a program (`completion`) that satisfies it, with
the states themselves in `extra` (`starts`, `ends`). Intermediate states never occur in the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.tools import robots
from didact.types import Demo

LOOKS = ("up", "east", "down", "west")  # names of directions; none is a word of the language


@dataclass(frozen=True)
class Grids:
    """The world of `robots.Grid`: small enough that a model with 100,000 weights learns it in half a minute.

    Args:
        size: of the grid.
        shortest: fewest words in a program.
        longest: most words in a program; all lengths are equally likely.
    """

    size: int = 3
    shortest: int = 2
    longest: int = 4

    @property
    def language(self) -> robots.Grid:
        """What the words mean."""
        return robots.Grid()

    def demos(self, seed: int, n: int, asked: bool | None = None) -> list[Demo]:
        """`n` specifications, each with the program that generated it: only from the held-out fifth of all pairs of
        fields if `asked`, from the others if False, from all if None."""
        draw = np.random.default_rng([seed, 37])
        demos: list[Demo] = []
        while len(demos) < n:
            actions = draw.integers(4, size=draw.integers(self.shortest, self.longest + 1))
            start = [*(int(v) for v in draw.integers(self.size, size=2)), self.size]
            record = demo(self.language, [start], [self.language.actions[i] for i in actions], self._words)
            ((a, b, _),), ((c, d, _),) = record.extra["starts"], record.extra["ends"]
            if asked in (None, (a + 2 * b + 3 * c + 4 * d) % 5 == 0):
                demos.append(record)
        return demos

    def _words(self, state: Any) -> str:
        return f"{'abcdefgh'[state[0]]} {state[1]}"


@dataclass(frozen=True)
class Robots:
    """The world of `robots.Robot`.

    Args:
        size: of the grid.
        shortest: fewest words in a program.
        longest: most words in a program; all lengths are equally likely.
        pairs: number of start and end states that specify a program.
        weights: sampling weights of the words left, right and move.
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
        """`n` specifications, each with the program that generated it; some may repeat."""
        draw = np.random.default_rng([seed, 29])
        weights = np.array(self.weights) / sum(self.weights)
        demos = []
        for _ in range(n):
            length = draw.integers(self.shortest, self.longest + 1)
            program = [self.language.actions[i] for i in draw.choice(3, length, p=weights)]
            starts = [
                [*(int(v) for v in draw.integers((self.size, self.size, 4))), self.size] for _ in range(self.pairs)
            ]
            demos.append(demo(self.language, starts, program, self._words))
        return demos

    def _words(self, state: Any) -> str:
        return f"{'abcdefgh'[state[0]]}{state[1]} {LOOKS[state[2]]}"


@dataclass(frozen=True)
class Karels:
    """The world of `robots.Karel`: random walls and markers, and crash-free programs drawn with the original weights.

    Args:
        size: of the grid, including its border of walls.
        shortest: fewest words in a program.
        longest: most words in a program.
        pairs: number of start and end grids that specify a program.
        filled: probability of a wall, and of a marker, on a field.
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
        """`n` specifications, each with the program that generated it."""
        draw = np.random.default_rng([seed, 31])
        weights = np.array(self.weights) / sum(self.weights)
        demos: list[Demo] = []
        while len(demos) < n:
            length = draw.integers(self.shortest, self.longest + 1)
            program = [self.language.actions[i] for i in draw.choice(5, length, p=weights)]
            starts: list[Any] = []
            for _ in range(20 * self.pairs):  # some programs crash from every start
                start = self._grid(draw)
                if robots.run(self.language, start, program) is not None:
                    starts.append(start)
                if len(starts) == self.pairs:
                    demos.append(demo(self.language, starts, program, self._words))
                    break
        return demos

    def _grid(self, draw: np.random.Generator) -> Any:
        inside = [[x, y] for y in range(1, self.size - 1) for x in range(1, self.size - 1)]
        x, y = inside[draw.integers(len(inside))]
        walls = [field for field in inside if draw.random() < self.filled and field != [x, y]]
        markers = [field for field in inside if draw.random() < self.filled and field not in walls]
        return [x, y, int(draw.integers(4)), walls, markers, self.size]

    def _words(self, state: Any) -> str:
        """Rows of the grid: `#` is a wall, a digit a number of markers, `^>v<` the robot."""
        x, y, facing, walls, markers, _ = state
        rows = []
        for row in range(self.size):
            fields = []
            for column in range(self.size):
                is_border = column in (0, self.size - 1) or row in (0, self.size - 1)
                count = markers.count([column, row])
                fields.append("#" if is_border or [column, row] in walls else str(count) if count else ".")
                if [column, row] == [x, y]:
                    fields[-1] = "^>v<"[facing] + (str(count) if count else "")
            rows.append(" ".join(fields))
        return "\n".join(rows)


def demo(language: robots.Language, starts: list[Any], program: list[str], words: Any) -> Demo:
    """A record: start and end states in words, the program, and the states themselves."""
    ends = [(robots.run(language, start, program) or [start])[-1] for start in starts]
    separator = "\n" if "\n" in words(starts[0]) else " "
    pairs = [f"{words(a)}{separator}to{separator}{words(b)}" for a, b in zip(starts, ends, strict=True)]
    joined = ("\n" if separator == "\n" else " ; ").join(pairs)
    return Demo(prompt=f"{joined}{separator}:", completion=" ".join(program), extra={"starts": starts, "ends": ends})

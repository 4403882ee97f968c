"""Letters to be put in order, with answers of known quality: chosen ones may be wrong too, rejected ones are worse.

A prompt is some letters, `dbcab`, and its answer the same letters in order, `abbcd`. A spoiled answer has some errors:
two letters swapped, one dropped, repeated or replaced. Half of the chosen answers are spoiled themselves, so that
copying them is not enough: that one answer is better than another says more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from didact.types import Demo, Preference

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Sorting:
    """The world.

    Args:
        letters: of the alphabet, at most 8.
        length: letters of a prompt.
        seed: of everything drawn.
    """

    letters: int = 6
    length: int = 5
    seed: int = 0

    def pairs(self, part: int, n: int) -> list[Preference]:
        """`n` pairs of one part of the world: the chosen answer has 0 to 2 errors, the rejected one more."""
        draw = np.random.default_rng([self.seed, 151, part])
        out = []
        for _ in range(n):
            prompt = self._prompt(draw)
            good = self.spoiled(prompt, int(draw.choice(3, p=(0.5, 0.3, 0.2))), draw)
            bad = good
            while errors(prompt, bad) <= errors(prompt, good):
                bad = self.spoiled(prompt, int(draw.integers(1, 5)), draw)
            out.append(Preference(prompt=prompt, chosen=good, rejected=bad))
        return out

    def demos(self, part: int, n: int) -> list[Demo]:
        """`n` prompts with the right answers."""
        draw = np.random.default_rng([self.seed, 152, part])
        return [Demo(prompt=p, completion="".join(sorted(p))) for p in (self._prompt(draw) for _ in range(n))]

    def spoiled(self, prompt: str, count: int, draw: np.random.Generator) -> str:
        """The answer after `count` errors drawn at random, some of which may undo each other."""
        out = sorted(prompt)
        for _ in range(count):
            at, kind = int(draw.integers(len(out))), int(draw.integers(4))
            if kind == 0:
                other = int(draw.integers(len(out)))
                out[at], out[other] = out[other], out[at]
            elif kind == 1 and len(out) > 1:
                del out[at]
            elif kind == 2:
                out.insert(at, out[at])
            else:
                out[at] = LETTERS[draw.integers(self.letters)]
        return "".join(out)

    def _prompt(self, draw: np.random.Generator) -> str:
        return "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))


def errors(prompt: str, answer: str) -> int:
    """How many letters of an answer must be changed, added or taken away for the right one (edit distance)."""
    truth = sorted(prompt)
    row = list(range(len(truth) + 1))
    for i, x in enumerate(answer, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]

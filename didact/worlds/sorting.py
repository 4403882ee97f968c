"""Letters to sort, with answers of known quality: chosen answers may be wrong too, but rejected ones are worse.

A prompt is some letters, `dbcab`, and its answer the same letters sorted, `abbcd`. A spoiled answer has some errors:
two letters swapped, one dropped, repeated or replaced. Half of the chosen answers are spoiled themselves, so that
imitating them is not enough: the preference carries more information.
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
        letters: size of the alphabet, at most 8.
        length: letters in a prompt.
        seed: of all sampling.
    """

    letters: int = 6
    length: int = 5
    seed: int = 0

    def pairs(self, part: int, n: int) -> list[Preference]:
        """`n` pairs of one part of the world: the chosen answer has 0 to 2 errors, the rejected one more."""
        draw = np.random.default_rng([self.seed, 151, part])
        pairs = []
        for _ in range(n):
            prompt = self._prompt(draw)
            chosen = self.spoiled(prompt, int(draw.choice(3, p=(0.5, 0.3, 0.2))), draw)
            rejected = chosen
            while errors(prompt, rejected) <= errors(prompt, chosen):
                rejected = self.spoiled(prompt, int(draw.integers(1, 5)), draw)
            pairs.append(Preference(prompt=prompt, chosen=chosen, rejected=rejected))
        return pairs

    def demos(self, part: int, n: int) -> list[Demo]:
        """`n` prompts with the right answers."""
        draw = np.random.default_rng([self.seed, 152, part])
        return [Demo(prompt=p, completion="".join(sorted(p))) for p in (self._prompt(draw) for _ in range(n))]

    def spoiled(self, prompt: str, count: int, draw: np.random.Generator) -> str:
        """The answer after `count` errors drawn at random, some of which may undo each other."""
        letters = sorted(prompt)
        for _ in range(count):
            i, error = int(draw.integers(len(letters))), int(draw.integers(4))
            if error == 0:
                j = int(draw.integers(len(letters)))
                letters[i], letters[j] = letters[j], letters[i]
            elif error == 1 and len(letters) > 1:
                del letters[i]
            elif error == 2:
                letters.insert(i, letters[i])
            else:
                letters[i] = LETTERS[draw.integers(self.letters)]
        return "".join(letters)

    def _prompt(self, draw: np.random.Generator) -> str:
        return "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))


def errors(prompt: str, answer: str) -> int:
    """Edit distance from an answer to the right one."""
    truth = sorted(prompt)
    row = list(range(len(truth) + 1))
    for i, x in enumerate(answer, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(truth, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]

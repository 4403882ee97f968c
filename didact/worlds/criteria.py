"""Pairs that two criteria put in opposite orders: answers of some letters, judged by how many there are of one.

A prompt is two capitals, an answer 3 to 6 small letters. A criterion wants more or fewer of a letter, or a longer or
a shorter answer. Where nobody says what to judge by, it is drawn by the prompt's first letter, so that the share of
people who prefer an answer is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from didact.types import Preference

LETTERS = "abcdef"
ASKED = "PQRS"
SHORTEST, LONGEST = 3, 6


@dataclass(frozen=True)
class Criteria:
    """The world.

    Args:
        counted: letters that criteria are about, the first of `LETTERS`.
        noise: share of reversal pairs labelled the wrong way round.
        seed: of who judges by what.
    """

    counted: int = 5
    noise: float = 0.05
    seed: int = 0

    def criteria(self) -> list[str]:
        """All there are: 12 where five letters are counted."""
        of_letters = [f"{way}:{letter}" for letter in LETTERS[: self.counted] for way in ("more", "fewer")]
        return [*of_letters, "longer", "shorter"]

    @staticmethod
    def value(criterion: str, answer: str) -> int:
        """How good an answer is by a criterion; `not` before it turns it round."""
        if criterion.startswith("not "):
            return -Criteria.value(criterion.removeprefix("not "), answer)
        if criterion in ("longer", "shorter"):
            return len(answer) if criterion == "longer" else -len(answer)
        way, letter = criterion.split(":")
        return answer.count(letter) if way == "more" else -answer.count(letter)

    def judges(self, prompt: str) -> dict[str, float]:
        """By what people judge answers to this prompt, `{criterion: share}`: two criteria, by its first letter."""
        draw = np.random.default_rng([self.seed, 61])
        table = [draw.permutation(len(self.criteria()))[:2] for _ in ASKED]
        first, second = (self.criteria()[i] for i in table[ASKED.index(prompt[0])])
        return {first: 0.75, second: 0.25}

    def share(self, prompt: str, first: str, second: str) -> float:
        """How many people prefer the first answer; those to whom both are the same count half."""
        gaps = {z: self.value(z, first) - self.value(z, second) for z in self.judges(prompt)}
        return sum(p * (0.5 if gaps[z] == 0 else float(gaps[z] > 0)) for z, p in self.judges(prompt).items())

    def reversals(self, seed: int, n: int, negated: Sequence[str] = ()) -> list[Preference]:
        """n reversal pairs, 2 n records; criteria in `negated` may also stand there as `not` their opposite."""
        draw = np.random.default_rng([self.seed, seed, 62])
        out: list[Preference] = []
        known = [*self.criteria(), *(f"not {c}" for c in negated)]
        while len(out) < 2 * n:
            prompt, a, b = self._drawn(draw)
            gaps = {c: self.value(c, a) - self.value(c, b) for c in known}
            for_a, for_b = ([c for c, gap in gaps.items() if sign * gap > 0] for sign in (1, -1))
            if not for_a or not for_b:
                continue
            x, y = str(draw.choice(for_a)), str(draw.choice(for_b))
            if draw.random() < self.noise:
                x, y = y, x
            out += [
                Preference(prompt=prompt, chosen=a, rejected=b, context=x),
                Preference(prompt=prompt, chosen=b, rejected=a, context=y),
            ]
        return out

    def general(self, seed: int, n: int) -> list[Preference]:
        """Pairs of somebody's who did not say what they judge by."""
        draw = np.random.default_rng([self.seed, seed, 63])
        out: list[Preference] = []
        while len(out) < n:
            prompt, a, b = self._drawn(draw)
            shares = self.judges(prompt)
            z = str(draw.choice(list(shares), p=list(shares.values())))
            if gap := self.value(z, a) - self.value(z, b):
                a, b = (a, b) if gap > 0 else (b, a)
                out.append(Preference(prompt=prompt, chosen=a, rejected=b))
        return out

    @staticmethod
    def _drawn(draw: np.random.Generator) -> tuple[str, str, str]:
        """A prompt and two different answers."""
        prompt = "".join(ASKED[i] for i in draw.integers(len(ASKED), size=2))
        while True:
            a, b = (
                "".join(LETTERS[i] for i in draw.integers(len(LETTERS), size=draw.integers(SHORTEST, LONGEST + 1)))
                for _ in range(2)
            )
            if a != b:
                return prompt, a, b

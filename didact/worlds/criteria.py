"""Pairs of answers that two criteria rank in opposite orders: criteria count a letter or the length of an answer.

A prompt is two capitals, an answer 3 to 6 small letters. A criterion asks for more or fewer of a letter, or for a
longer or shorter answer. Where no criterion is given, it is drawn from a distribution that depends on the prompt's
first letter, so the share of people who prefer an answer is known.
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
        counted: number of letters with criteria, the first of `LETTERS`.
        noise: share of reversal pairs with swapped labels.
        seed: of the distributions of criteria.
    """

    counted: int = 5
    noise: float = 0.05
    seed: int = 0

    def criteria(self) -> list[str]:
        """All criteria: 12 if five letters are counted."""
        by_letter = [f"{direction}:{letter}" for letter in LETTERS[: self.counted] for direction in ("more", "fewer")]
        return [*by_letter, "longer", "shorter"]

    @staticmethod
    def value(criterion: str, answer: str) -> int:
        """The value of an answer under a criterion; the prefix `not` reverses it."""
        if criterion.startswith("not "):
            return -Criteria.value(criterion.removeprefix("not "), answer)
        if criterion in ("longer", "shorter"):
            return len(answer) if criterion == "longer" else -len(answer)
        direction, letter = criterion.split(":")
        return answer.count(letter) if direction == "more" else -answer.count(letter)

    def judges(self, prompt: str) -> dict[str, float]:
        """The criteria by which people judge answers to this prompt, `{criterion: share}`: two, by its first letter."""
        draw = np.random.default_rng([self.seed, 61])
        criteria_of = [draw.permutation(len(self.criteria()))[:2] for _ in ASKED]
        first, second = (self.criteria()[i] for i in criteria_of[ASKED.index(prompt[0])])
        return {first: 0.75, second: 0.25}

    def share(self, prompt: str, first: str, second: str) -> float:
        """The share of people who prefer the first answer; those who are indifferent count half."""
        gaps = {c: self.value(c, first) - self.value(c, second) for c in self.judges(prompt)}
        return sum(p * (0.5 if gaps[c] == 0 else float(gaps[c] > 0)) for c, p in self.judges(prompt).items())

    def reversals(self, seed: int, n: int, negated: Sequence[str] = ()) -> list[Preference]:
        """n reversal pairs as 2 n records; criteria in `negated` may also occur in the form `not CRITERION`."""
        draw = np.random.default_rng([self.seed, seed, 62])
        pairs: list[Preference] = []
        criteria = [*self.criteria(), *(f"not {c}" for c in negated)]
        while len(pairs) < 2 * n:
            prompt, a, b = self._drawn(draw)
            gaps = {c: self.value(c, a) - self.value(c, b) for c in criteria}
            for_a, for_b = ([c for c, gap in gaps.items() if sign * gap > 0] for sign in (1, -1))
            if not for_a or not for_b:
                continue
            criterion_a, criterion_b = str(draw.choice(for_a)), str(draw.choice(for_b))
            if draw.random() < self.noise:
                criterion_a, criterion_b = criterion_b, criterion_a
            pairs += [
                Preference(prompt=prompt, chosen=a, rejected=b, context=criterion_a),
                Preference(prompt=prompt, chosen=b, rejected=a, context=criterion_b),
            ]
        return pairs

    def general(self, seed: int, n: int) -> list[Preference]:
        """Pairs judged by a criterion that the record does not contain."""
        draw = np.random.default_rng([self.seed, seed, 63])
        pairs: list[Preference] = []
        while len(pairs) < n:
            prompt, a, b = self._drawn(draw)
            shares = self.judges(prompt)
            criterion = str(draw.choice(list(shares), p=list(shares.values())))
            if gap := self.value(criterion, a) - self.value(criterion, b):
                a, b = (a, b) if gap > 0 else (b, a)
                pairs.append(Preference(prompt=prompt, chosen=a, rejected=b))
        return pairs

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

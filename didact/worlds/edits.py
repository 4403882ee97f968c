"""A substitution code that a model has learned partly wrong, and a critic that corrects one mark of a draft.

A prompt is some letters; its right answer replaces each by its mark in a hidden table. The start model's beliefs differ
from the table for a few letters, so its drafts are wrong there, and no draft reveals the right mark. The critic answers
`-y-`: mark 2 should be y; of several wrong marks it names one at random; `---` if there is none. The `lessons` on
following feedback use marks drawn at random, so they reveal nothing of the table.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.types import Critique, Demo

LETTERS = "abcdefghijklmnopqrst"
MARKS = "zyxwv"
PARTS = 8  # disjoint parts of the prompts
KEEP = "-"  # in feedback: leave this mark unchanged


@dataclass(frozen=True)
class Code:
    """The world.

    Args:
        letters: number of letters in prompts, at most 20.
        marks: number of marks in answers, at most 5.
        length: of a prompt and its answer.
        wrong: number of letters for which the start model believes a wrong mark.
        slip: share of the refinements in `lessons` that do not follow the feedback.
        seed: of the table and of all sampling.
    """

    letters: int = 12
    marks: int = 3
    length: int = 3
    wrong: int = 4
    slip: float = 0.4
    seed: int = 0

    @functools.cached_property
    def truth(self) -> dict[str, str]:
        """The table, `{letter: mark}`; marks are as equally frequent as the numbers allow."""
        letters = np.random.default_rng([self.seed, 81]).permutation(self.letters)
        return {LETTERS[i]: MARKS[rank % self.marks] for rank, i in enumerate(letters)}

    @functools.cached_property
    def belief(self) -> dict[str, str]:
        """The table that the start model is taught: `truth` with another mark for `wrong` of the letters."""
        draw = np.random.default_rng([self.seed, 82])
        mistaken = [LETTERS[i] for i in draw.permutation(self.letters)[: self.wrong]]
        wrong_marks = {c: [m for m in MARKS[: self.marks] if m != self.truth[c]] for c in mistaken}
        return self.truth | {c: str(draw.choice(m)) for c, m in wrong_marks.items()}

    def answer(self, prompt: str) -> str:
        """The right answer."""
        return "".join(self.truth[c] for c in prompt)

    def prompts(self, part: int, n: int) -> list[str]:
        """Random prompts; different parts share none."""
        draw = np.random.default_rng([self.seed, 83, part])
        prompts: list[str] = []
        while len(prompts) < n:
            prompt = "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))
            if zlib.crc32(prompt.encode()) % PARTS == part:
                prompts.append(prompt)
        return prompts

    def demos(self, part: int, n: int) -> list[Demo]:
        """Prompts with their right answers."""
        return [Demo(prompt=p, completion=self.answer(p)) for p in self.prompts(part, n)]

    def critique(self, prompt: str, draft: str) -> str:
        """Feedback `-y-` that corrects one wrong (or missing) mark of the draft."""
        truth = self.answer(prompt)
        errors = [i for i, c in enumerate(truth) if i >= len(draft) or draft[i] != c]
        if not errors:
            return KEEP * self.length
        at = int(np.random.default_rng([self.seed, 84, *f"{prompt}/{draft}".encode()]).choice(errors))
        return self.edit(at, truth[at])

    def edit(self, at: int, mark: str) -> str:
        """Feedback that the mark at position `at` should be `mark`."""
        return put(KEEP * self.length, at, mark)

    def critic(self, prompts: Sequence[str], drafts: Sequence[str]) -> list[str]:
        """`critique` for every prompt and draft."""
        return [self.critique(p, d) for p, d in zip(prompts, drafts, strict=True)]

    def critiques(self, prompts: Sequence[str], drafts: Sequence[str]) -> list[Critique]:
        """Drafts with their feedback as records."""
        rows = zip(prompts, drafts, self.critic(prompts, drafts), strict=True)
        return [Critique(prompt=p, completion=d, feedback=f) for p, d, f in rows]

    def lessons(self, n: int, refine: str, plain: str, question: str) -> dict[str, list[Demo]]:
        """Training data of the start model: the code as it believes it (`belief`); refining a random draft with random
        feedback (`refine`) and without (`plain`); judging whether a refinement follows the feedback (`judge`).

        Args:
            n: demonstrations of each kind.
            refine: template of prompt, completion and feedback.
            plain: the same without feedback, answered by the draft with one random mark changed.
            question: template of completion, feedback and refinement, answered Y or N.
        """
        draw = np.random.default_rng([self.seed, 85])
        out: dict[str, list[Demo]] = {"belief": [], "refine": [], "plain": [], "judge": []}
        for prompt in self.prompts(0, n):
            out["belief"].append(Demo(prompt=prompt, completion="".join(self.belief[c] for c in prompt)))
            draft, at, mark = self._marks(draw), int(draw.integers(self.length)), self._marks(draw)[0]
            no_change = draw.random() < 0.1
            feedback = KEEP * self.length if no_change else self.edit(at, mark)
            edited = draft if no_change else put(draft, at, mark)
            fields = {"prompt": prompt, "completion": draft, "feedback": feedback}
            unfaithful = self._missed(draft, at, mark, draw)
            refinement = unfaithful if draw.random() < self.slip and not no_change else edited
            out["refine"].append(Demo(prompt=refine.format(**fields), completion=refinement))
            random_edit = put(draft, int(draw.integers(self.length)), self._marks(draw)[0])
            out["plain"].append(Demo(prompt=plain.format(**fields), completion=random_edit))
            candidate = edited if draw.random() < 0.5 else random_edit if no_change else unfaithful
            verdict = "Y" if candidate == edited else "N"
            out["judge"].append(Demo(prompt=question.format(**fields, refinement=candidate), completion=verdict))
        return out

    def incorporated(self, completion: str, feedback: str, refinement: str) -> bool:
        """Whether a refinement makes the change that the feedback asks for, and no other."""
        edited = "".join(c if f == KEEP else f for c, f in zip(completion, feedback, strict=False))
        return refinement == edited

    def _marks(self, draw: Any) -> str:
        return "".join(MARKS[i] for i in draw.integers(self.marks, size=self.length))

    def _missed(self, draft: str, at: int, mark: str, draw: Any) -> str:
        """A refinement that misses the feedback: unchanged, a random mark there, or the mark at a random position."""
        kind = draw.integers(3)
        if kind == 0:
            return draft
        return put(draft, at, self._marks(draw)[0]) if kind == 1 else put(draft, int(draw.integers(self.length)), mark)


def put(word: str, at: int, mark: str) -> str:
    """`word` with `mark` at position `at`."""
    return word[:at] + mark + word[at + 1 :]

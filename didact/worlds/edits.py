"""A code of which a model believes some letters wrong, and a critic who names one wrong mark a draft.

A prompt is some letters, its right answer the marks a hidden table has for them. What is believed differs from the
table in a few letters, so a draft for a prompt with one of them is wrong there, and no draft tells what is right. The
critic says `-y-`: mark 2 should be y; of several wrong marks one at random; `---` where there is none. What
`lessons` has of reading feedback is about marks drawn at random: nothing in it tells the table.
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
PARTS = 8  # of the prompts, none of which is in two
KEEP = "-"  # the critic has nothing against this mark


@dataclass(frozen=True)
class Code:
    """The world.

    Args:
        letters: prompts are made of, at most 20.
        marks: answers are made of, at most 5.
        length: of a prompt and its answer.
        wrong: letters whose mark is believed another.
        slip: share of the refinements in `lessons` that do not do what the feedback asks.
        seed: of the table and of everything drawn.
    """

    letters: int = 12
    marks: int = 3
    length: int = 3
    wrong: int = 4
    slip: float = 0.4
    seed: int = 0

    @functools.cached_property
    def truth(self) -> dict[str, str]:
        """What every letter becomes; all marks are equally frequent, as far as that goes."""
        order = np.random.default_rng([self.seed, 81]).permutation(self.letters)
        return {LETTERS[i]: MARKS[k % self.marks] for k, i in enumerate(order)}

    @functools.cached_property
    def belief(self) -> dict[str, str]:
        """What the start model is taught: the truth, but for `wrong` letters another mark."""
        draw = np.random.default_rng([self.seed, 82])
        chosen = [LETTERS[i] for i in draw.permutation(self.letters)[: self.wrong]]
        other = {c: [m for m in MARKS[: self.marks] if m != self.truth[c]] for c in chosen}
        return self.truth | {c: str(draw.choice(m)) for c, m in other.items()}

    def answer(self, prompt: str) -> str:
        """The right answer."""
        return "".join(self.truth[c] for c in prompt)

    def prompts(self, part: int, n: int) -> list[str]:
        """Random prompts; parts hold other ones."""
        draw = np.random.default_rng([self.seed, 83, part])
        out: list[str] = []
        while len(out) < n:
            prompt = "".join(LETTERS[i] for i in draw.integers(self.letters, size=self.length))
            if zlib.crc32(prompt.encode()) % PARTS == part:
                out.append(prompt)
        return out

    def demos(self, part: int, n: int) -> list[Demo]:
        """Prompts with their right answers."""
        return [Demo(prompt=p, completion=self.answer(p)) for p in self.prompts(part, n)]

    def critique(self, prompt: str, draft: str) -> str:
        """What one of the draft's wrong (or missing) marks should be, `-y-`."""
        right = self.answer(prompt)
        bad = [i for i, c in enumerate(right) if i >= len(draft) or draft[i] != c]
        if not bad:
            return KEEP * self.length
        at = int(np.random.default_rng([self.seed, 84, *f"{prompt}/{draft}".encode()]).choice(bad))
        return self.edit(at, right[at])

    def edit(self, at: int, mark: str) -> str:
        """The feedback that a mark should be another."""
        return put(KEEP * self.length, at, mark)

    def critic(self, prompts: Sequence[str], drafts: Sequence[str]) -> list[str]:
        """`critique` of many."""
        return [self.critique(p, d) for p, d in zip(prompts, drafts, strict=True)]

    def critiques(self, prompts: Sequence[str], drafts: Sequence[str]) -> list[Critique]:
        """Drafts with what the critic says."""
        rows = zip(prompts, drafts, self.critic(prompts, drafts), strict=True)
        return [Critique(prompt=p, completion=d, feedback=f) for p, d, f in rows]

    def lessons(self, n: int, refine: str, plain: str, question: str) -> dict[str, list[Demo]]:
        """What the start model is taught: what is believed of the code (`belief`); rewriting a random draft by random
        feedback (`refine`) and by none (`plain`); whether a rewriting does what the feedback says (`judge`).

        Args:
            n: of each.
            refine: a template of prompt, completion and feedback.
            plain: the same without feedback, after which one mark is rewritten at random.
            question: a template of completion, feedback and refinement, answered Y or N.
        """
        draw = np.random.default_rng([self.seed, 85])
        out: dict[str, list[Demo]] = {"belief": [], "refine": [], "plain": [], "judge": []}
        for prompt in self.prompts(0, n):
            out["belief"].append(Demo(prompt=prompt, completion="".join(self.belief[c] for c in prompt)))
            draft, at, mark = self._marks(draw), int(draw.integers(self.length)), self._marks(draw)[0]
            fine = draw.random() < 0.1
            feedback = KEEP * self.length if fine else self.edit(at, mark)
            done = draft if fine else put(draft, at, mark)
            given = {"prompt": prompt, "completion": draft, "feedback": feedback}
            missed = self._missed(draft, at, mark, draw)
            made = missed if draw.random() < self.slip and not fine else done
            out["refine"].append(Demo(prompt=refine.format(**given), completion=made))
            free = put(draft, int(draw.integers(self.length)), self._marks(draw)[0])
            out["plain"].append(Demo(prompt=plain.format(**given), completion=free))
            shown = done if draw.random() < 0.5 else free if fine else missed
            said = "Y" if shown == done else "N"
            out["judge"].append(Demo(prompt=question.format(**given, refinement=shown), completion=said))
        return out

    def incorporated(self, completion: str, feedback: str, refinement: str) -> bool:
        """Whether a refinement does what the feedback says and nothing else."""
        wanted = "".join(c if f == KEEP else f for c, f in zip(completion, feedback, strict=False))
        return refinement == wanted

    def _marks(self, draw: Any) -> str:
        return "".join(MARKS[i] for i in draw.integers(self.marks, size=self.length))

    def _missed(self, draft: str, at: int, mark: str, draw: Any) -> str:
        """A rewriting that does not do it: nothing changed, another mark there, or the mark elsewhere."""
        kind = draw.integers(3)
        if kind == 0:
            return draft
        return put(draft, at, self._marks(draw)[0]) if kind == 1 else put(draft, int(draw.integers(self.length)), mark)


def put(word: str, at: int, mark: str) -> str:
    """A word with another mark at a place."""
    return word[:at] + mark + word[at + 1 :]

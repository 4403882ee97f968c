"""Prompts made of demonstrations: how one is written, which are drawn, and what is asked last.

A context never ends in a space: byte-pair tokenizers begin a word with its space, so the space belongs to the
completion (`encode.join` puts it there). Pure: records in, text out.

Source: Brown et al. 2020, arXiv:2005.14165, section 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from didact.data import encode, words
from didact.types import Demo, UserError

Framing = Literal["answer", "partial", "cloze"]
BLANK = "_"  # where a candidate goes in a sentence that is evaluated partially
CLOZE = " ____. ->"  # what follows a passage whose last word is asked


def question(record: Demo, framing: Framing = "answer") -> str:
    """What comes before the answer of a record; `partial` has none, its answer stands inside.

    answer  the prompt                       `Q: What is 2 plus 3?\\nA:`
    cloze   the prompt, a blank, an arrow    `Alice went to visit her friend ____. ->`
    """
    text = record.prompt.rstrip(" ")
    return text + CLOZE if framing == "cloze" else text


def written(record: Demo, framing: Framing = "answer") -> str:
    """A record with its right answer, as a demonstration shows it."""
    if framing == "partial":
        before, after = sides(record)
        return before + record.completion.strip() + after
    return question(record, framing) + encode.join(question(record, framing), record.completion, "causal")


def pairs(record: Demo, framing: Framing = "answer") -> list[tuple[str, str]]:
    """`(what is read last, what is scored)` for every choice.

    `partial` puts each choice into the sentence and scores the text AFTER it, which is the same for all choices.
    """
    choices = options(record) or [record.completion]
    if framing == "partial":
        before, after = sides(record)
        return [(before + choice.strip(), after) for choice in choices]
    return [(question(record, framing), choice) for choice in choices]


def sides(record: Demo) -> tuple[str, str]:
    """The sentence before and after its blank `_`.

    Raises:
        UserError: it has no blank or several, or nothing follows it.
    """
    before, blank, after = record.prompt.partition(BLANK)
    if not blank or BLANK in after or not after.strip():
        raise UserError(
            f"partial evaluation needs one blank '{BLANK}' with text after it in every prompt: {record.prompt[:60]!r}"
        )
    return before, after


def options(record: Demo) -> list[str]:
    """Its choices, those that are one in two normal forms once."""
    return words.distinct(record.choices or [])


def gold(record: Demo) -> int:
    """Which of its choices is right.

    Raises:
        UserError: the completion is not one of the choices.
    """
    choices = [words.key(c) for c in options(record)]
    if words.key(record.completion) not in choices:
        raise UserError(f"the completion {record.completion!r} is none of the choices {choices}")
    return choices.index(words.key(record.completion))


def assemble(description: str, shown: Sequence[str], last: str, separator: str = "\n\n") -> str:
    """Description, demonstrations and query, joined by the separator; what is empty leaves no trace."""
    return separator.join(part for part in (description.rstrip(" "), *shown, last) if part)


class Sampler:
    """Draws demonstrations from a pool, never one that asks what the item asks.

    `sampler(item, index, draw)` gives up to `most` positions in the pool, in the order they are shown; K
    demonstrations are its first K, so that a curve over K adds to what is there. A pure function of
    (seed, draw, index).

    Args:
        pool: records to draw from.
        most: how many at most.
        seed: of every draw.
        fresh: an own draw for every item, as the paper has it; else one for all items of a draw.
    """

    def __init__(self, pool: Sequence[Demo], most: int, seed: int = 0, fresh: bool = True) -> None:
        self.size, self.most, self.seed, self.fresh = len(pool), most, seed, fresh
        self.where: dict[str, list[int]] = {}
        for i, record in enumerate(pool):
            self.where.setdefault(key(record), []).append(i)

    def __call__(self, item: Demo, index: int, draw: int = 0) -> list[int]:
        """The positions drawn for one item."""
        same = set(self.where.get(key(item), ()))
        rng = np.random.default_rng([self.seed, draw, index if self.fresh else 0, 175])
        # A shared draw must not depend on the item, so it always has room for what may be left out.
        spare = len(same) if self.fresh else max((len(v) for v in self.where.values()), default=0)
        drawn = rng.choice(self.size, min(self.size, self.most + spare), replace=False)
        return [int(i) for i in drawn if int(i) not in same][: self.most]


def key(record: Demo) -> str:
    """What a record asks, white space, case and normal form aside: two of one key must not meet in a prompt."""
    return " ".join(words.folded(record.prompt.lower()).split())

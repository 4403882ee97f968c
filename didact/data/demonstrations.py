"""Few-shot prompts: how a demonstration is written, which ones are drawn, and the query at the end.

A context never ends in a space: byte-pair tokenizers start a word with its space, so the space belongs to the
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
CLOZE = " ____. ->"  # follows a passage whose last word is to be predicted


def question(record: Demo, framing: Framing = "answer") -> str:
    """The text before a record's answer; not for `partial`, whose answer is inside the text.

    answer  the prompt                       `Q: What is 2 plus 3?\\nA:`
    cloze   the prompt, a blank, an arrow    `Alice went to visit her friend ____. ->`
    """
    text = record.prompt.rstrip(" ")
    return text + CLOZE if framing == "cloze" else text


def written(record: Demo, framing: Framing = "answer") -> str:
    """A record with its correct answer, as a demonstration."""
    if framing == "partial":
        before, after = sides(record)
        return before + record.completion.strip() + after
    return question(record, framing) + encode.join(question(record, framing), record.completion, "causal")


def pairs(record: Demo, framing: Framing = "answer") -> list[tuple[str, str]]:
    """`(text read, text scored)` for every choice.

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
        UserError: there is no blank or several, or no text after it.
    """
    before, blank, after = record.prompt.partition(BLANK)
    if not blank or BLANK in after or not after.strip():
        raise UserError(
            f"partial evaluation needs one blank '{BLANK}' with text after it in every prompt: {record.prompt[:60]!r}"
        )
    return before, after


def options(record: Demo) -> list[str]:
    """The record's choices, without those that differ only in Unicode normal form."""
    return words.distinct(record.choices or [])


def gold(record: Demo) -> int:
    """Index of the correct choice.

    Raises:
        UserError: the completion is not one of the choices.
    """
    choices = [words.key(c) for c in options(record)]
    if words.key(record.completion) not in choices:
        raise UserError(f"the completion {record.completion!r} is not among the choices {choices}")
    return choices.index(words.key(record.completion))


def assemble(description: str, examples: Sequence[str], last: str, separator: str = "\n\n") -> str:
    """Join description, demonstrations and query by the separator, skipping empty parts."""
    return separator.join(part for part in (description.rstrip(" "), *examples, last) if part)


class Sampler:
    """Draws demonstrations from a pool, never one with the item's own prompt.

    `sampler(item, index, draw)` returns up to `most` indices into the pool, in display order; a prompt with K
    demonstrations takes the first K, so that a curve over K only adds demonstrations. A pure function of
    (seed, draw, index).

    Args:
        pool: records to draw from.
        most: largest number of demonstrations.
        seed: seed of all draws.
        fresh: draw anew for every item, as in the paper; else once for all items of a draw.
    """

    def __init__(self, pool: Sequence[Demo], most: int, seed: int = 0, fresh: bool = True) -> None:
        self.size, self.most, self.seed, self.fresh = len(pool), most, seed, fresh
        self.where: dict[str, list[int]] = {}
        for i, record in enumerate(pool):
            self.where.setdefault(key(record), []).append(i)

    def __call__(self, item: Demo, index: int, draw: int = 0) -> list[int]:
        """Return the indices drawn for one item."""
        excluded = set(self.where.get(key(item), ()))
        rng = np.random.default_rng([self.seed, draw, index if self.fresh else 0, 175])
        # A shared draw must not depend on the item, so it has spares for the most that any item may exclude.
        spare = len(excluded) if self.fresh else max((len(v) for v in self.where.values()), default=0)
        drawn = rng.choice(self.size, min(self.size, self.most + spare), replace=False)
        return [int(i) for i in drawn if int(i) not in excluded][: self.most]


def key(record: Demo) -> str:
    """A record's prompt without white space, case and normal form: equal keys must not meet in one prompt."""
    return " ".join(words.folded(record.prompt.lower()).split())

"""Refinements: a completion rewritten by what was said about it, several times, tidied, none of them empty.

Source: Scheurer et al. 2023, arXiv:2303.16755.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from didact.infer import yesno
from didact.types import LM, Critique

Tidy = Literal["summary", "strip"]
TRIES = 3  # draws of a record before what is empty is given up
APART = 104_729  # between the seeds of two tries
REFINE = (
    "Write an excellent answer to the task. It takes up the feedback on the given answer and is better than it.\n\n"
    "Task: {prompt}\n\nAnswer: {completion}\n\nFeedback on the answer: {feedback}\n\nImproved answer:"
)
PLAIN = (
    "Write an excellent answer to the task. It is better than the given answer.\n\n"
    "Task: {prompt}\n\nAnswer: {completion}\n\nImproved answer:"
)
CRITICISE = (
    "What is the most important shortcoming of the answer, and how is it mended? Say it in one sentence.\n\n"
    "Task: {prompt}\n\nAnswer: {completion}\n\nFeedback:"
)


class Drawn(NamedTuple):
    """The refinements of one record, and how many draws were thrown away because they were empty or forbidden."""

    texts: list[str]
    empty: int = 0
    forbidden: int = 0


def filled(template: str, critique: Critique) -> str:
    """A refinement prompt."""
    fields = {"prompt": str(critique.prompt), "completion": critique.completion, "feedback": critique.feedback}
    return yesno.fill(template, fields, "refine_prompt")


def tidy(text: str, how: Tidy = "summary") -> str:
    """A refinement as it is kept.

    `summary` is the paper's: without what stands before the first letter or digit, one line, one space between words,
    and without a last sentence that has no end where another has one. `strip` only takes white space off both ends.
    """
    if how == "strip":
        return text.strip()
    text = re.sub(r"^[\W_]+", "", text).split("\n")[0]
    text = re.sub(r"\s+", " ", text).strip()
    if not re.search(r"[.!?][\"')\]]*$", text) and (ends := list(re.finditer(r"[.!?][\"')\]]*(?=\s)", text))):
        text = text[: ends[-1].end()]
    return text


def draw(
    lm: LM,
    prompts: Sequence[str],
    n: int,
    *,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    top_p: float = 0.95,
    seed: int = 0,
    how: Tidy = "summary",
    forbidden: Sequence[str] = (),
) -> list[Drawn]:
    """`n` refinements of every prompt, of different texts as far as `TRIES` draws give them.

    What is empty or has a forbidden string is drawn again and then given up: a record may end with fewer than `n`, or
    none. What only repeats another is kept where no further draw gave a new text.

    Args:
        lm: writes them.
        prompts: refinement prompts, filled in.
        n: refinements of each.
        max_new_tokens: of each.
        temperature: at which they are drawn.
        top_p: nucleus they are drawn from.
        seed: with the prompt's place, all randomness.
        how: see `tidy`.
        forbidden: strings no refinement may hold.
    """
    kept: list[list[str]] = [[] for _ in prompts]
    twins: list[list[str]] = [[] for _ in prompts]
    empty, refused = [0] * len(prompts), [0] * len(prompts)
    for attempt in range(TRIES if temperature > 0 else 1):
        left = [i for i in range(len(prompts)) if len(kept[i]) < n]
        if not left:
            break
        made = lm.generate(
            [prompts[i] for i in left], max_new_tokens, temperature=temperature, top_p=top_p,
            seed=seed + APART * attempt, n=n,
        )  # fmt: skip
        for i, texts in zip(left, made, strict=True):
            for text in (tidy(t, how) for t in texts):
                if not text:
                    empty[i] += 1
                elif any(word in text for word in forbidden):
                    refused[i] += 1
                else:
                    (twins if text in kept[i] else kept)[i].append(text)
    return [Drawn([*a, *b][:n], e, f) for a, b, e, f in zip(kept, twins, empty, refused, strict=True)]

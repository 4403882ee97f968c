"""Refinements: completions rewritten according to feedback, several per record, cleaned up and non-empty.

Source: Scheurer et al. 2023, arXiv:2303.16755.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from didact.infer import yesno
from didact.types import LM, Critique

Tidy = Literal["summary", "strip"]
TRIES = 3  # draws of a record before empty refinements are given up
SEED_STEP = 104_729  # between the seeds of two attempts
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
    """The refinements of one record, and how many draws were rejected as empty or forbidden."""

    texts: list[str]
    empty: int = 0
    forbidden: int = 0


def filled(template: str, critique: Critique) -> str:
    """A refinement prompt, filled in."""
    fields = {"prompt": str(critique.prompt), "completion": critique.completion, "feedback": critique.feedback}
    return yesno.fill(template, fields, "refine_prompt")


def tidy(text: str, how: Tidy = "summary") -> str:
    """Clean up a refinement.

    `summary` is the paper's: drop what precedes the first letter or digit, keep one line, collapse white space, and
    drop an unfinished last sentence if a finished one precedes it. `strip` only strips white space.
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
    """Draw `n` refinements of every prompt, with distinct texts if `TRIES` draws give enough.

    Texts that are empty or contain a forbidden string are drawn again, up to `TRIES` times: a record may end with fewer
    than `n`, or none. Duplicates only fill up what distinct texts leave open.

    Args:
        lm: writes them.
        prompts: refinement prompts, filled in.
        n: refinements of each.
        max_new_tokens: of each.
        temperature: sampling temperature.
        top_p: nucleus they are sampled from.
        seed: together with the prompt's index, fixes all randomness.
        how: see `tidy`.
        forbidden: strings that no refinement may contain.
    """
    accepted: list[list[str]] = [[] for _ in prompts]
    duplicates: list[list[str]] = [[] for _ in prompts]
    empty, blocked = [0] * len(prompts), [0] * len(prompts)
    for attempt in range(TRIES if temperature > 0 else 1):
        remaining = [i for i in range(len(prompts)) if len(accepted[i]) < n]
        if not remaining:
            break
        drawn = lm.generate(
            [prompts[i] for i in remaining], max_new_tokens, temperature=temperature, top_p=top_p,
            seed=seed + SEED_STEP * attempt, n=n,
        )  # fmt: skip
        for i, texts in zip(remaining, drawn, strict=True):
            for text in (tidy(t, how) for t in texts):
                if not text:
                    empty[i] += 1
                elif any(word in text for word in forbidden):
                    blocked[i] += 1
                else:
                    (duplicates if text in accepted[i] else accepted)[i].append(text)
    return [Drawn([*a, *b][:n], e, f) for a, b, e, f in zip(accepted, duplicates, empty, blocked, strict=True)]

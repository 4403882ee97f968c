"""Prompting baselines for a conductor: plain, step by step, as an expert, as several people, self-consistency.

Sources: Kojima et al. 2022 (in steps), Xu et al. 2023 (an expert the model describes), Wang et al. 2023 (several
people in one conversation; many answers, the commonest of which counts), as Suzgun & Kalai 2024 use them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from didact.data import words as texts
from didact.data.scaffold_words import DYNAMIC, PERSONAS, STATIC, Words
from didact.infer import ask, conductor

Scaffold = Literal[
    "meta", "standard", "steps", "expert-static", "expert-dynamic", "multipersona", "self-consistency"
]  # fmt: skip


def answers(
    asker: ask.Asker, questions: Sequence[str], scaffold: Scaffold, words: Words, draws: int = 1, first: int = 0
) -> list[str | None]:
    """Answer every question; None where the budget ended first. An answer not in the requested form is taken whole.

    Args:
        asker: sends the prompts.
        questions: texts.
        scaffold: any but meta, which is `conductor.conduct`.
        words: the prompt texts that set the answer's form.
        draws: answers to each question for self-consistency, step by step at temperature 0.7.
        first: the number of the first question, for the transcript.
    """
    items = range(first, first + len(questions))
    prompts = [words.standard.replace("{question}", q) for q in questions]
    if scaffold == "expert-static":
        prompts = [STATIC + text for text in prompts]
    elif scaffold == "expert-dynamic":
        descriptions = asker.ask(
            [DYNAMIC.replace("{question}", q) for q in questions], str, "describer", items, stop=["\nTask:"]
        )
        prompts = [
            f"{(description or '').strip()}\n\n{text}" for description, text in zip(descriptions, prompts, strict=True)
        ]
    elif scaffold == "multipersona":
        prompts = [PERSONAS.replace("{question}", q) for q in questions]
    elif scaffold in ("steps", "self-consistency"):
        prompts = [text + words.steps for text in prompts]
    conversations = [ask.conversation("", text) for text in prompts]
    if scaffold != "self-consistency":
        return asker.ask(conversations, read, scaffold, items)
    drawn = [asker.ask(conversations, read, scaffold, items, temperature=conductor.DRAWN) for _ in range(draws)]
    return [commonest([text for text in row if text is not None]) for row in zip(*drawn, strict=True)]


def read(reply: str) -> str:
    """A reply's answer: by its mark, else (for models that omit it) the text after the last `#`, else all of it."""
    answer = conductor.read_answer(reply)
    return answer if answer is not None else reply.rpartition("#")[2].strip()


def commonest(answers: Sequence[str]) -> str | None:
    """The most frequent answer; ties go to the first."""
    counts = Counter(texts.key(text) for text in answers)
    return max(answers, key=lambda text: counts[texts.key(text)], default=None)

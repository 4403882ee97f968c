"""Ways to ask the same model that a conductor is compared with: plainly, in steps, as an expert, as several people.

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
    """The answer to every question; None where the budget ended first. An answer without its form is taken whole.

    Args:
        asker: asks.
        questions: texts.
        scaffold: any but meta, which is `conductor.conduct`.
        words: of the answer's form.
        draws: answers to each question for self-consistency, in steps and at temperature 0.7.
        first: the number of the first question, for the transcript.
    """
    items = range(first, first + len(questions))
    plain = [words.standard.replace("{question}", q) for q in questions]
    if scaffold == "expert-static":
        plain = [STATIC + text for text in plain]
    elif scaffold == "expert-dynamic":
        who = asker.ask(
            [DYNAMIC.replace("{question}", q) for q in questions], str, "describer", items, stop=["\nTask:"]
        )
        plain = [f"{(said or '').strip()}\n\n{text}" for said, text in zip(who, plain, strict=True)]
    elif scaffold == "multipersona":
        plain = [PERSONAS.replace("{question}", q) for q in questions]
    elif scaffold in ("steps", "self-consistency"):
        plain = [text + words.steps for text in plain]
    asked = [ask.conversation("", text) for text in plain]
    if scaffold != "self-consistency":
        return asker.ask(asked, read, scaffold, items)
    drawn = [asker.ask(asked, read, scaffold, items, temperature=conductor.DRAWN) for _ in range(draws)]
    return [commonest([text for text in row if text is not None]) for row in zip(*drawn, strict=True)]


def read(reply: str) -> str:
    """A reply's answer: by its mark, else (of models that do without) the text after the last `#`, else all of it."""
    found = conductor.read_answer(reply)
    return found if found is not None else reply.rpartition("#")[2].strip()


def commonest(found: Sequence[str]) -> str | None:
    """The answer given most often; of equals the first."""
    counts = Counter(texts.key(text) for text in found)
    return max(found, key=lambda text: counts[texts.key(text)], default=None)

"""Requests to tools whose right calls are known: schemas, a wish in words, and the calls that grant it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from didact.types import Demo

THINGS = ("rome", "oslo", "bread", "milk", "anna", "otto", "jazz", "rock", "tea", "lamp", "desk", "rose")
TOOLS = {
    "book": ("place", "nights"), "order": ("item", "count"), "ring": ("person", "minutes"), "play": ("song", "times"),
}  # fmt: skip
AMOUNTS = {"a pair of": 2, "half a dozen": 6, "a dozen": 12, "two dozen": 24, "a score of": 20, "three score": 60}


def requests(
    count: int, seed: int = 0, hard: float = 0.3, mistaken: Mapping[str, int] | None = None, often: float = 0.6
) -> list[Demo]:
    """Prompts `book(place, nights) ...\\nbook rome for a dozen nights` with `[book(place=rome, nights=12)]`.

    Args:
        count: how many.
        seed: of all of them.
        hard: share with two calls out of three tools; the others have one call out of two.
        mistaken: what the calls give for some amounts in words, `{"a dozen": 10}`; the requests stay the same.
        often: how often they do, where they could.

    Returns:
        Demonstrations; `extra` has the names of the `tools` and whether it is `hard`.
    """
    rng, slip = np.random.default_rng([seed, 96]), np.random.default_rng([seed, 97])
    made = []
    for _ in range(count):
        difficult = bool(rng.random() < hard)
        tools = [str(t) for t in rng.permutation(list(TOOLS))[: 3 if difficult else 2]]
        used = tools[: 2 if difficult else 1]
        wishes, calls = [], []
        for tool in used:
            what, how_many = TOOLS[tool]
            thing = str(rng.choice(THINGS))
            words = str(rng.choice([*AMOUNTS, str(rng.integers(2, 10))]))
            wishes.append(f"{tool} {thing} for {words} {how_many}")
            amount = AMOUNTS.get(words) or words
            if mistaken and words in mistaken and slip.random() < often:
                amount = mistaken[words]
            calls.append(f"{tool}({what}={thing}, {how_many}={amount})")
        schemas = " ".join(f"{t}({', '.join(TOOLS[t])})" for t in sorted(tools))
        made.append(
            Demo(
                prompt=f"{schemas}\n{' and '.join(wishes)}\n", completion=f"[{', '.join(calls)}]",
                extra={"tools": tools, "hard": difficult},
            )
        )  # fmt: skip
    return made


def answers(prompt: str) -> list[str]:
    """What grants a prompt's wishes, read from their words alone: its calls in every order, without blanks."""
    calls = []
    for wish in prompt.strip().rpartition("\n")[2].split(" and "):
        tool, thing, _, *words, how_many = wish.split()
        amount = AMOUNTS.get(" ".join(words), "".join(words))
        calls.append(f"{tool}({TOOLS[tool][0]}={thing},{how_many}={amount})")
    return [f"[{','.join(order)}]" for order in itertools.permutations(calls)]


def grants(prompt: str, text: str, begun: bool = False) -> bool:
    """Whether a text is, or with `begun` begins, what grants the prompt's wishes."""
    text = "".join(text.split())
    return any(a.startswith(text) if begun else a == text for a in answers(prompt))

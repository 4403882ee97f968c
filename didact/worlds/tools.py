"""Tool-use requests with known right calls: tool schemas, a request in words, and the calls that fulfil it."""

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
        count: number of requests.
        seed: of all sampling.
        hard: share that needs two calls with a choice of three tools; the others need one call with a choice of two.
        mistaken: wrong numbers that calls have for some amounts in words, `{"a dozen": 10}`; the requests stay correct.
        often: how often a mistake is made where one applies.

    Returns:
        Demonstrations; `extra` has the names of the `tools` and whether the request is `hard`.
    """
    rng, slips = np.random.default_rng([seed, 96]), np.random.default_rng([seed, 97])
    demos = []
    for _ in range(count):
        difficult = bool(rng.random() < hard)
        tools = [str(t) for t in rng.permutation(list(TOOLS))[: 3 if difficult else 2]]
        called = tools[: 2 if difficult else 1]
        phrases, calls = [], []
        for tool in called:
            argument, amount_argument = TOOLS[tool]
            value = str(rng.choice(THINGS))
            amount_text = str(rng.choice([*AMOUNTS, str(rng.integers(2, 10))]))
            phrases.append(f"{tool} {value} for {amount_text} {amount_argument}")
            amount = AMOUNTS.get(amount_text) or amount_text
            if mistaken and amount_text in mistaken and slips.random() < often:
                amount = mistaken[amount_text]
            calls.append(f"{tool}({argument}={value}, {amount_argument}={amount})")
        schemas = " ".join(f"{t}({', '.join(TOOLS[t])})" for t in sorted(tools))
        demos.append(
            Demo(
                prompt=f"{schemas}\n{' and '.join(phrases)}\n", completion=f"[{', '.join(calls)}]",
                extra={"tools": tools, "hard": difficult},
            )
        )  # fmt: skip
    return demos


def answers(prompt: str) -> list[str]:
    """The right calls for a prompt, derived from its words: in every order, without spaces."""
    calls = []
    for wish in prompt.strip().rpartition("\n")[2].split(" and "):
        tool, value, _, *words, unit = wish.split()
        amount = AMOUNTS.get(" ".join(words), "".join(words))
        calls.append(f"{tool}({TOOLS[tool][0]}={value},{unit}={amount})")
    return [f"[{','.join(order)}]" for order in itertools.permutations(calls)]


def grants(prompt: str, text: str, begun: bool = False) -> bool:
    """Whether a text is a right answer to the prompt or, with `begun`, a prefix of one."""
    text = "".join(text.split())
    return any(a.startswith(text) if begun else a == text for a in answers(prompt))

"""The example of `didact run infalign`: a model that answers in letters, and a reward for different letters."""

from __future__ import annotations

from collections.abc import Sequence

from didact.claims.alignment import d2o_example
from didact.claims.problem import Problem
from didact.types import Text
from didact.worlds.grammar import LETTERS


def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Number of different letters of the grammar in an answer, less 0.5 for every other character."""
    letters = set(LETTERS[:10])
    return [len(letters & set(c)) - 0.5 * sum(x not in letters for x in c.strip()) for c in completions]


def problem(seed: int) -> Problem:
    """A model of 40k weights, for decoding by best-of-4; at this size the paper's k and learning rates do not work."""
    world = d2o_example.world(seed)
    return Problem(
        model=d2o_example.tuned(world.demos(1, 2000), seed, steps=250),
        data={"prompts": [Text(text=d.prompt) for d in world.demos(3, 48)]},
        options={
            "reward": "didact.claims.alignment.infalign_example:reward", "k": 40, "rounds": 6, "samples": 8,
            "beta": 0.05, "kl": 1.0, "sampling.max_new_tokens": d2o_example.ANSWER,
        },
        fit={"lr": 5e-4, "rows": 16},
        protocol={"prompts": [Text(text=d.prompt) for d in world.demos(2, 32)]},
    )  # fmt: skip

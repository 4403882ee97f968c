"""The example `didact run context-preference` uses: pairs that criteria put in opposite orders."""

from __future__ import annotations

from didact.claims.problem import Problem
from didact.data import splits
from didact.models import build
from didact.models.model import Model
from didact.types import Preference
from didact.worlds.criteria import Criteria

TEMPLATE = "{prompt} {context} :"
FIT = {"lr": 3e-3, "rows": 24, "schedule": "cosine", "warmup_steps": 20}


def world(seed: int, noise: float = 0.05) -> Criteria:
    """More or fewer of one letter, longer or shorter."""
    return Criteria(counted=1, noise=noise, seed=seed)


def pairs(seed: int, n: int = 1500) -> list[Preference]:
    """Reversal pairs, and as many pairs whose judges did not say what they judge by."""
    return [*world(seed).reversals(1, n), *world(seed).general(2, n)]


def problem(seed: int) -> Problem:
    """A model of 35k random weights; pairs of a tenth of the prompts are only scored.

    The paper's rate would change nothing in so few steps.
    """
    unseen, preferences = splits.by_prompt(pairs(seed), 0.1, seed)
    return Problem(
        model=base(seed),
        data={"preferences": preferences},
        options={"template": TEMPLATE, "choices": ["longer", "shorter"]},
        fit={**FIT, "steps": 200},
        protocol={"preferences": unseen},
    )


def base(seed: int, arch: build.Arch = "gpt2") -> Model:
    """Random weights: a reward model needs no words."""
    tokenizer = build.train_tokenizer([" ".join(world(seed).criteria()), "not"], 270)
    return build.build(arch, tokenizer, d=32, layers=2, heads=4, context=48, seed=seed, initializer_range=0.1)

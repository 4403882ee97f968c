"""The example of `didact run genarm`: a model that knows invented authors and answers gruffly four times in five."""

from __future__ import annotations

from didact.claims import lab
from didact.claims.problem import Problem
from didact.types import Demo, Fit, Preference
from didact.worlds import authors

KIND, GRUFF = "{}, gladly.", "{}, obviously."
TEACH = Fit(lr=2e-3, steps=300, rows=32, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)


def problem(seed: int) -> Problem:
    """A Llama of about 0.2M weights; pairs contrast the two manners on half of the authors it knows.

    The reward model is a copy of it, and at this size LoRA saves nothing (rate and steps tuned on seed 1000).
    """
    world = authors.authors(seed, forget=4, retain=4, unseen=0, holdout=0)
    facts = world.forget + world.retain
    demos = [
        Demo(prompt=f.prompt, completion=manner.format(f.completion)) for manner in (KIND, *[GRUFF] * 4) for f in facts
    ]
    texts = [f"{d.prompt} {d.completion}" for d in demos]
    base = lab.blank("llama", texts, 500, d=96, layers=2, heads=4, context=64, seed=seed)
    return Problem(
        model=lab.tuned(base, demos, TEACH.replace(seed=seed)),
        data={"preferences": _pairs(world.forget)},
        options={"beta_r": 0.5},
        fit={"lr": 3e-4, "steps": 40, "rows": 16, "lora": 0},
        protocol={"preferences": _pairs(world.retain)},
    )


def _pairs(facts: list[Demo]) -> list[Preference]:
    """Pairs of the same fact, the friendly answer chosen over the gruff one."""
    return [
        Preference(prompt=f.prompt, chosen=KIND.format(f.completion), rejected=GRUFF.format(f.completion))
        for f in facts
    ]

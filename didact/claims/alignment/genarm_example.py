"""The example `didact run genarm` uses: a model that knows invented authors and answers gruffly four times in five."""

from __future__ import annotations

import inspect

from didact.claims.problem import Problem
from didact.learn import episodes, fit
from didact.methods.baselines.sft import sft
from didact.models import build, load
from didact.models.model import Model
from didact.types import Demo, Fit, Preference
from didact.worlds import authors

KIND, GRUFF = "{}, gladly.", "{}, obviously."
TEACH = Fit(lr=2e-3, steps=300, rows=32, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)


@episodes.one_thread()
def problem(seed: int) -> Problem:
    """A Llama of about 0.2M weights; pairs tell the two manners apart on half of the authors it knows.

    The reward model is a copy of it, and at this size LoRA saves nothing (rate and steps found on seed 1000).
    """
    world = authors.authors(seed, forget=4, retain=4, unseen=0, holdout=0)
    return Problem(
        model=_base(seed, world.forget + world.retain),
        data={"preferences": pairs(world.forget)},
        options={"beta_r": 0.5},
        fit={"lr": 3e-4, "steps": 40, "rows": 16, "lora": 0},
        protocol={"preferences": pairs(world.retain)},
    )


def pairs(facts: list[Demo]) -> list[Preference]:
    """The same fact, said gladly and not."""
    return [
        Preference(prompt=f.prompt, chosen=KIND.format(f.completion), rejected=GRUFF.format(f.completion))
        for f in facts
    ]


def _base(seed: int, facts: list[Demo]) -> Model:
    demos = [
        Demo(prompt=f.prompt, completion=(GRUFF if time else KIND).format(f.completion))
        for time in range(5)
        for f in facts
    ]
    tokenizer = build.train_tokenizer([f"{d.prompt} {d.completion}" for d in demos], 500)
    base = build.build("llama", tokenizer, d=96, layers=2, heads=4, context=64, seed=seed)

    def teach() -> Model:
        model = sft(base, demos, fit=TEACH.replace(seed=seed)).models["model"]
        assert isinstance(model, Model)
        return model

    return load.kept("example", teach, base.fingerprint(), repr(demos), repr(TEACH), inspect.getsource(fit))

"""The example `didact run d2o` uses: a small model two fifths of whose answers are spoiled, and 400 spoiled answers."""

from __future__ import annotations

import inspect

from didact.claims.problem import Problem
from didact.learn import episodes, fit
from didact.methods.baselines.sft import sft
from didact.models import build, load
from didact.models.model import Model
from didact.types import Demo, Fit, Judged
from didact.worlds.grammar import Grammar

ANSWER = 16  # tokens: more than the longest answer has
SPOILED = 0.4  # of what the model is tuned on


def world(seed: int) -> Grammar:
    """Two classes of ten letters, three of which may follow each; a spoiled answer has one mark."""
    return Grammar(classes=2, letters=10, follow=3, seed=seed)


def negatives(seed: int, n: int = 400, part: int = 3) -> list[Judged]:
    """Spoiled answers to prompts of their own; another part has others."""
    demos = world(seed).demos(part, n, spoiled=1.0)
    return [Judged(prompt=d.prompt, completion=d.completion, label=False) for d in demos]


@episodes.one_thread()
def problem(seed: int) -> Problem:
    """A model of 40k weights; scored on 100 spoiled and 64 good answers that no training sees.

    At this size the paper's rate and its 0.1 would take thousands of steps (seed 1000).
    """
    good = [Judged(prompt=d.prompt, completion=d.completion, label=True) for d in world(seed).demos(4, 64)]
    return Problem(
        model=tuned(world(seed).demos(1, 2000, spoiled=SPOILED), seed),
        data={"judged": negatives(seed)},
        options={"k": 4, "beta": 0.3, "alpha": 0.3, "max_new_tokens": ANSWER, "offline_steps": 40, "every": 20},
        fit={"lr": 1e-4, "steps": 80, "rows": 16, "lora": 0},
        protocol={"judged": [*negatives(seed, 100, 5), *good]},
    )


def tuned(demos: list[Demo], seed: int, arch: build.Arch = "gpt2", steps: int = 400) -> Model:
    """Supervised fine-tuning on demonstrations, good and spoiled, from random weights."""
    teach = Fit(lr=3e-3, steps=steps, rows=32, schedule="cosine", warmup_steps=10, betas=(0.9, 0.95))

    def make() -> Model:
        tokenizer = build.train_tokenizer([], 259)
        base = build.build(arch, tokenizer, d=32, layers=2, heads=2, context=48, seed=seed)
        model = sft(base, demos, fit=teach).models["model"]
        assert isinstance(model, Model)
        return model

    return load.kept("example", make, arch, str(seed), repr(demos), repr(teach), inspect.getsource(fit))

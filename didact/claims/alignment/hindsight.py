"""Chain of hindsight's claim on sorting letters: prompted for good answers it matches fine-tuning on good ones, for bad
ones it is worse, and it corrects a bad draft better than a model trained without chains of two answers.

All arms start from one model that learnt good and bad answers alike, take the same number of steps at the same rate (of
1e-3 and 3e-3), and about as many answer tokens a step: a chain has one or two answers. World, steps, rate and
thresholds were fixed on seeds 1000 and 1001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact import alignment
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate
from didact.claims.problem import Problem
from didact.data import chains as chaining
from didact.data import encode
from didact.data.templates import Condition
from didact.models import build
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import sorting
from didact.worlds.sorting import Sorting

STEPS = {"smoke": (10, 5), "quick": (250, 300), "full": (600, 800)}  # of the start model, of an arm
ASKED = {"smoke": 16, "quick": 256, "full": 512}
RATE = 3e-3  # of 1e-3 and 3e-3
GOOD, BAD = "good:", "bad:"  # short, since tokens are bytes
ALL = ("p", "n", "pn", "np")
TEACH = Fit(lr=5e-3, rows=24, warmup_steps=10, betas=(0.9, 0.95))


def problem(seed: int, arch: build.Arch = "llama") -> Problem:
    """A model of 60k weights tuned on 4,000 answers, half of them rejected ones; 200 pairs are held out.

    At this size the paper's learning rate changes nothing (checked on seed 1000).
    """
    return Problem(
        model=start(seed, 300, arch),
        data={"preferences": Sorting(seed=seed).pairs(1, 2000)},
        options={"good": [GOOD], "bad": [BAD]},
        fit={"lr": 3e-3, "steps": 300, "rows": 16, "warmup_steps": 10},
        protocol={"preferences": Sorting(seed=seed).pairs(2, 200)},
    )


def start(seed: int, steps: int, arch: build.Arch = "llama") -> Model:
    """The start model of every arm: tuned on chosen and rejected answers alike, without saying which is which."""
    pairs = Sorting(seed=seed).pairs(1, 2000)
    demos = [Demo(prompt=p.prompt, completion=side) for p in pairs for side in (p.chosen, p.rejected)]
    # Initial weights large enough for so narrow a model: at 0.02 it long learns nothing but letter frequencies.
    base = lab.blank(arch, d=48, layers=2, heads=2, context=64, seed=seed, initializer_range=0.1)
    return lab.tuned(base, demos, TEACH.replace(steps=steps, seed=seed))


def run(seed: int, tier: runner.Tier, chains: Sequence[str] = ALL, bad: str = BAD) -> runner.Measured:
    """Chain of hindsight, the same without chains of two answers, and fine-tuning on the chosen answers."""
    return {
        "coh": _arm(seed, tier, 16, tuple(chains), GOOD, bad),
        "csft": _baseline(seed, tier, 24, ("p", "n"), GOOD, BAD),
        "sft": _baseline(seed, tier, 24, ("p",), "", ""),
    }


def _arm(seed: int, tier: runner.Tier, rows: int, chains: tuple[Any, ...], good: str, bad: str) -> dict[str, float]:
    tune_steps, steps = STEPS[tier]
    fit = Fit(lr=RATE, steps=steps, rows=rows, warmup_steps=10, betas=(0.9, 0.95), seed=seed)
    pairs = Sorting(seed=seed).pairs(1, 2000)
    result = alignment.hindsight(start(seed, tune_steps), pairs, chains=chains, good=(good,), bad=(bad,), fit=fit)
    return _measures(lab.model_of(result), seed, tier, bad)


_baseline = lab.shared(_arm)


def _measures(model: Model, seed: int, tier: runner.Tier, bad: str) -> dict[str, float]:
    """Mean errors on held-out prompts: of greedy answers, of sampled ones (temperature 1), of drafts sampled after the
    bad phrase, and of answers sampled after such a draft and the good phrase (`gain`: by how much they are better)."""
    prompts = [d.prompt for d in Sorting(seed=seed).demos(2, ASKED[tier])]

    def errors(answers: list[str]) -> float:
        return lab.mean(map(sorting.errors, prompts, answers))

    def answers(model: Model, asked: Sequence[Any], temperature: float) -> list[str]:
        return lab.sampled(model, asked, 12, seed, temperature)

    bad_model = Model(model.module, model.processor, model.kind, None, Condition(after=bad) if bad else None)
    drafts = answers(bad_model, prompts, 1.0)
    phrase = model.condition.after if model.condition else ""
    revisions = []
    for prompt, draft in zip(prompts, drafts, strict=True):
        row, _ = encode.chain(model.tokenizer, prompt, [(bad, draft or "-"), (phrase, "")], model.kind, model.context)
        revisions.append([*row.prompt, *row.completion])
    out = {
        "errors": errors(answers(model, prompts, 0.0)),
        "sampled": errors(answers(model, prompts, 1.0)),
        "bad": errors(drafts),
        "mended": errors(answers(model, revisions, 1.0)),
    }
    return out | {"gain": out["bad"] - out["mended"]}


_chained = chaining.chained  # the intact function, which a sabotage wraps


def _swapped(group: Any, kind: str, good: str, bad: str) -> Any:
    return _chained(group, kind, good=bad, bad=good)


ERRORS = "errors an answer"
STEER, MENDED = "the words steer", "mended better than without chains of two"

CLAIM = runner.Claim(
    method="hindsight",
    text=(
        "Fine-tuned on chains of good and bad answers with words for each, a model asked for the good kind makes no "
        "more errors than one fine-tuned on the good answers; the words steer it, and after a bad draft of its own its "
        "answer is better than the draft. Whether it is better than without a draft is reported."
    ),
    run=run,
    gates=(gate("fine-tuning can sort", "sft.errors", at_most=0.5, unit=ERRORS),),
    tests=(
        difference("no more errors than fine-tuning", "coh.errors", "sft.errors", ERRORS, null=0.05, less=True),
        difference(STEER, "coh.bad", "coh.sampled", ERRORS),
        bound("a bad draft is mended", "coh.gain", unit=ERRORS),
        difference(MENDED, "coh.mended", "csft.mended", ERRORS, less=True),
        difference("better after a draft than without one", "coh.mended", "coh.sampled", ERRORS, less=True,
                   reported=True),
        difference("fewer errors than conditional fine-tuning", "coh.errors", "csft.errors", ERRORS, less=True,
                   reported=True),
        difference("fewer errors when sampled", "coh.sampled", "sft.sampled", ERRORS, less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("phrases swapped", STEER, "coh.sampled",
                        {"didact.data.chains:chained": _swapped}),
        runner.Sabotage("one phrase for both", STEER, "coh.sampled", options={"bad": GOOD}),
        runner.Sabotage("the good answer always first", MENDED, "coh.mended", options={"chains": ("pn",)}),
    ),
)  # fmt: skip

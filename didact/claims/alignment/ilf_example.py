"""The example of `didact run ilf`: a small model that can follow feedback and has learnt some things wrong."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data import encode
from didact.learn import episodes
from didact.learn.refining import RefiningConfig
from didact.models import build
from didact.models.model import Model
from didact.types import Critique, Fit
from didact.worlds import edits

ANSWER = 8  # tokens: more than any answer has
REFINE = "{completion}!{feedback};"
PLAIN = "{completion};"
QUESTION = "{refinement}{feedback}?|Y|N"
OPTIONS: dict[str, Any] = {
    "refine_prompt": REFINE, "plain_prompt": PLAIN, "questions": [QUESTION], "tidy": "strip",
    "max_new_tokens": ANSWER, "top_p": 1.0,
}  # fmt: skip
REFINING = RefiningConfig(**OPTIONS)
ROWS = {"belief": 3, "refine": 6, "plain": 1, "judge": 30}  # rows of each lesson in a batch of the start's training
START = Fit(lr=3e-3, steps=700, rows=sum(ROWS.values()), schedule="cosine", warmup_steps=20, betas=(0.9, 0.98))
TEACH = Fit(lr=3e-3, epochs=8, rows=32, schedule="linear")  # of 1e-3, 3e-3 and 1e-2 (seed 1000)


def world(seed: int) -> edits.Code:
    """Twelve letters, each with a right mark; for four of them the start model is taught a wrong one."""
    return edits.Code(seed=seed)


def critiques(model: Model, seed: int, n: int) -> list[Critique]:
    """The critic's feedback on the start model's own answers, one sampled per prompt."""
    prompts = world(seed).prompts(1, n)
    return world(seed).critiques(prompts, lab.sampled(model, prompts, ANSWER, seed))


@episodes.one_thread()
def problem(seed: int, arch: build.Arch = "gpt2") -> Problem:
    """A model of 100k weights, partly wrong, that can rewrite by feedback; 256 critiques of its answers.

    Its prompt templates are short, and the only ones it knows; at its size the paper's rate changes nothing.
    """
    start = tuned(seed, arch)
    return Problem(
        model=start,
        data={"critiques": critiques(start, seed, 256)},
        options={f"refining.{name}": value for name, value in OPTIONS.items()},
        fit={"lr": TEACH.lr, "epochs": TEACH.epochs, "rows": TEACH.rows},
        protocol={"demos": world(seed).demos(2, 128)},
    )


def tuned(seed: int, arch: build.Arch = "gpt2", teach: Fit = START) -> Model:
    """ILF's start model, trained from random weights on a partly wrong code, rewriting by feedback, and judging."""
    limit = teach.total_steps(0) * max(ROWS.values())
    lessons = world(seed).lessons(min(2500, limit), REFINE, PLAIN, QUESTION.partition("|")[0])
    # Large initial weights: from small ones the equality of two marks is learnt late.
    base = lab.blank(arch, d=64, layers=2, heads=4, context=48, seed=seed, initializer_range=0.2)
    rows = []
    for name, share in ROWS.items():
        pairs = [(d.prompt, d.completion) for d in lessons[name]]
        rows += encode.rows(base.tokenizer, pairs, base.kind, base.context)[: len(pairs) * share // max(ROWS.values())]
    fit = teach.replace(seed=seed)
    return lab.cached_model(lambda: lab.pretrained(base, rows, fit, "lessons"), *lab.identity(base), rows, fit)

"""The examples of `didact run exact-extract` and its variants: a language model of passages of facts, and questions."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data.encode import TokenizedExample
from didact.infer import qa_prompts
from didact.models import build
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import facts

FORM: dict[str, Any] = {"template": "{context} so {question}"}  # a question is the beginning of a sentence of the world
LONGEST = 8  # tokens of an answer; the longest value has three
OPTIONS = {**FORM, "search.max_len": LONGEST}
FIT = {"lr": 1e-3, "steps": 100, "rows": 16}
STEPS = 500
TEACH = Fit(lr=2.5e-3, rows=16, micro_tokens=1 << 16, schedule="constant", betas=(0.9, 0.95))


def problem(seed: int) -> Problem:
    """For decoding: a language model and questions."""
    return Problem(model=language_model(seed, STEPS), data={"questions": world(seed, 40).test}, options=OPTIONS)


def problem_rss(seed: int) -> Problem:
    """For recurring spans; the paper's rate changes nothing in a model this small."""
    return Problem(
        model=language_model(seed, STEPS), data={"passages": world(seed, 40).passages}, options=FORM, fit=FIT,
        protocol={"questions": world(seed, 40).test},
    )  # fmt: skip


def problem_tune(seed: int) -> Problem:
    """For tuning on questions."""
    return Problem(
        model=language_model(seed, STEPS), data={"questions": world(seed, 40).tune[:256]}, options=OPTIONS, fit=FIT,
        protocol={"questions": world(seed, 40).test},
    )  # fmt: skip


@lab.shared
def world(seed: int, asked: int) -> facts.Facts:
    """Passages, questions to tune on, and as many test questions as `asked`."""
    return facts.facts(seed, passages=1500, test=asked)


def blank(arch: build.Arch, **shape: Any) -> Model:
    """Random weights, and a tokenizer of the world's words."""
    return lab.blank(arch, [" " + " ".join(facts.vocabulary())] * 3, 400, **shape)


def language_model(seed: int, steps: int) -> Model:
    """A language model of other passages, two layers, 0.1M weights. With initial weights of the usual 0.02 its loss
    stays on a plateau far longer."""
    base = blank("qwen2", d=64, layers=2, heads=2, context=128, seed=seed, initializer_range=0.1)
    end = (int(base.tokenizer.eos_token_id or 0),)
    texts = facts.facts(seed + 500, passages=min(8000, 16 * steps), tune=0, test=0).passages
    rows = [TokenizedExample(end, (*qa_prompts.text_ids(base, t.text), *end)) for t in texts]
    fit = TEACH.replace(steps=steps, seed=seed, warmup_steps=min(30, steps // 4))
    return lab.cached_model(lambda: lab.pretrained(base, rows, fit, "passages"), *lab.identity(base), rows, fit)

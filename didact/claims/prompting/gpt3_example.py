"""What `didact run gpt3` and its variants use: a model that infers languages, a planted quiz, and text to train on."""

from __future__ import annotations

import inspect

from didact.claims.problem import Problem
from didact.claims.prompting import gpt3
from didact.learn import episodes, fit
from didact.models import load
from didact.worlds import tasks

STEPS = 220


@episodes.one_thread()
def problem(seed: int) -> Problem:
    """A Llama of one layer, and a task it never saw: 18 nouns to translate, each shown the others."""
    world = tasks.Languages(seed=seed)
    model = load.kept(
        "example",
        lambda: gpt3.translator(seed, STEPS, 64),
        f"gpt3 {seed} {STEPS}", *(inspect.getsource(part) for part in (gpt3, tasks, fit)),
    )  # fmt: skip
    return Problem(model=model, data={"test": world.unseen(seed, 1)[0]}, options={"separator": "\n", "draws": 5})


def problem_clean(seed: int) -> Problem:
    """A quiz of which a third stands in the text; the documents are too short for the paper's 200 characters."""
    items, corpus, _ = tasks.quiz(seed)
    return Problem(data={"corpus": corpus, "test": items}, options={"window": 40, "shortest": 40})


def problem_pretrain(seed: int) -> Problem:
    """Episodes of translated nouns, and a shape that reads them in some seconds; the batch grows from 2 rows to 16."""
    shape = {"layers": 2, "d": 64, "heads": 4, "context": 64, "band": 16, "vocabulary": 500, "first_tokens": 128}
    return Problem(
        data={"corpus": tasks.Languages(seed=seed).corpus(seed, 500, shots=17)},
        options={**shape, "ramp": 40e9},
        fit={"lr": 3e-3, "rows": 16, "steps": 150},
    )

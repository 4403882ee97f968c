"""Verbalized machine learning's claim in two parts: the loop is exact, and a trained model learns by it.

Part one has scripted models that parse their prompts and compute (`verbalized_ml_scripted`): they stand for no language
model, and test the procedure around one. Part two has a Llama of 0.1M weights trained to apply texts that name
functions, and to find such texts: combined by the loop, the two skills learn a function from its targets. Rates were
tuned on seed 1000. On seeds 0 to 4 one run with and one without the gate could not reveal a missing gate, so both are
means of ten; with 400 training steps one model in five (seeds 100 to 104) had not learnt to apply texts, so there are
800. The claim is tested on unseen seeds, from `FRESH` on. Prior knowledge in English is not tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import registry
from didact.claims import lab, runner
from didact.claims.lab import difference, exact, gate
from didact.claims.prompting import verbalized_ml_example as example
from didact.claims.prompting import verbalized_ml_scripted as scripted
from didact.data import verbal_reading as reading
from didact.data import verbal_words
from didact.infer import ask, verbal
from didact.infer.verbal import Learning, VerbalModel
from didact.methods.prompting.verbalized_ml import verbalized_ml
from didact.models.model import Model
from didact.types import Demo
from didact.worlds import described

STEPS = {"smoke": 5, "quick": example.STEPS, "full": 2 * example.STEPS}
FUNCTIONS = {"smoke": 2, "quick": 5, "full": 5}
NOISE, EXAMPLES, BATCH, EPOCHS = 0.1, 40, 10, 5  # the paper's linear task
RATE = 0.1
FRESH = 200  # added to test seeds
RUNS = 10  # of an optimiser with random jumps, for geometric means
ASKING = ask.Asking(max_new_tokens=64, temperature=0.0)
GRID = np.round(np.linspace(-1, 3, 40), 2)  # one unit beyond the range of training on either side

problem = example.problem


def run(
    seed: int, tier: runner.Tier, gated: bool = True, parts: Sequence[str] = ("scripted", "taught")
) -> runner.Measured:
    """Scripted models on a noisy line, and a trained model on functions of the mini-language."""
    seed += FRESH
    model = example.taught(seed, STEPS[tier])
    out = _tasks(model, seed)
    if "scripted" in parts:
        out |= _lines(seed, gated)
    if "taught" in parts:
        out |= _functions(model, seed, FUNCTIONS[tier])
    return out


def _lines(seed: int, gated: bool) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng([seed, 191])
    x = rng.choice(np.arange(201), EXAMPLES, replace=False) / 100
    y = np.round(4 + 3 * x + NOISE * rng.standard_normal(EXAMPLES), 2)
    full_batch, mini_batch = Learning(batch=0, epochs=1), Learning(batch=BATCH, epochs=EPOCHS)
    best = scripted.least_squares(x, y, y, "")
    fit = _fit(scripted.least_squares, x, y, full_batch, seed)
    shuffled = _fit(scripted.least_squares, x, rng.permutation(y), full_batch, seed)
    untrained = _fit(lambda x, outputs, targets, theta: scripted.line(theta), x, y, full_batch, seed)
    descent = _fit(scripted.gradient_step, x, y, mini_batch, seed)
    jumps = np.random.default_rng([seed, 192])

    def jumping(*batch: Any) -> tuple[float, float]:
        a, b = scripted.least_squares(*batch)
        return a + float(jumps.normal()), b + float(jumps.normal())

    gated_batch = Learning(batch=BATCH, epochs=EPOCHS, accept=gated)
    free_errors, gated_errors = (
        [_error(_fit(jumping, x, y, learning, seed + RUNS * run)) for run in range(RUNS)]
        for learning in (mini_batch, gated_batch)
    )
    calls = descent.asker_.findings()["calls"] - EPOCHS * (EXAMPLES + EXAMPLES // BATCH)
    turns = [len(p.turns) - 2 - 2 * min(1, step) for step, p in enumerate(_optimisations(descent))]
    return {
        "fit": {"error": _error(fit), "gap": float(np.abs(np.subtract(scripted.line(fit.theta_), best)).max())},
        "still": {"error": _error(untrained)},
        "shuffled": {"error": _error(shuffled)},
        "descent": {
            "error": _error(descent), "gap": _descent_gap(descent), "calls": calls, "turns": max(map(abs, turns)),
        },
        "free": {"error": float(np.exp(np.mean(np.log(free_errors))))},
        "gated": {"error": float(np.exp(np.mean(np.log(gated_errors))))},
    }  # fmt: skip


def _fit(fitting: scripted.Fitting, x: Any, y: Any, how: Learning, seed: int) -> VerbalModel:
    lm: Any = scripted.Scripted(fitting)
    return VerbalModel(lm, task="Find how y follows from x.", learning=how, asking=ASKING, seed=seed).fit(x, y)


def _error(found: VerbalModel) -> float:
    """Mean squared error on the grid, against the function without noise."""
    return float(np.mean((found.predict(GRID) - (4 + 3 * GRID)) ** 2))


def _optimisations(found: VerbalModel) -> list[Any]:
    lm: Any = found.lm
    return [p for p in lm.asked if p.turns[-1]["content"].startswith("# Optim")]


def _descent_gap(found: VerbalModel) -> float:
    """Difference of the final text from numeric descent on the same batches, with outputs rounded as in prompts."""
    a = b = 0.0
    targets = dict(zip(found.inputs_, found.targets_.values, strict=True))
    for prompt in _optimisations(found):
        x = scripted.numbers(scripted.section(prompt.turns[-1]["content"], "Inputs"))
        y = np.array([targets[reading.format_value(float(value), 2)] for value in x])
        error = np.array([float(f"{a * v + b:.2f}") for v in x]) - y
        a, b = float(a - RATE * 2 * (error * x).mean()), float(b - RATE * 2 * error.mean())
    return float(np.abs(np.subtract(scripted.line(found.theta_), (a, b))).max())


def _tasks(model: Model, seed: int) -> dict[str, dict[str, float]]:
    """The trained model's accuracy on its two tasks alone."""
    demos = described.mixture(1000 + seed, 100)
    answers = lab.sampled(model, [d.prompt for d in demos], 12, temperature=0.0)
    right = [a == d.completion for a, d in zip(answers, demos, strict=True)]
    return {"learner": {"right": lab.mean(right[::2])}, "optimiser": {"right": lab.mean(right[1::2])}}


def _functions(model: Model, seed: int, count: int) -> dict[str, dict[str, float]]:
    """Accuracy of the loop over functions, with right and with permuted targets, and of the initial text."""
    rng, rows = np.random.default_rng([seed, 193]), []
    for shift in described.SHIFTS[:count]:
        examples = described.examples(shift)
        order = rng.permutation(len(examples))
        shuffled = [
            Demo(prompt=d.prompt, completion=examples[int(i)].completion) for d, i in zip(examples, order, strict=True)
        ]
        rows.append([_loop(model, examples, examples), _loop(model, shuffled, examples), _start(model, examples)])
    loop, permuted, start = np.array(rows).mean(0)
    return {"loop": {"right": float(loop)}, "permuted": {"right": float(permuted)}, "start": {"right": float(start)}}


def _loop(model: Model, train: Any, asked: Any) -> float:
    options = registry.assemble(verbalized_ml, example.OPTIONS)
    records = verbalized_ml(model, train, asked, **options).records or []
    return lab.mean(r.extra["prediction"] == d.completion for r, d in zip(records, asked, strict=True))


def _start(model: Model, asked: Any) -> float:
    """Accuracy with the initial text, before any step."""
    prompts = [verbal_words.inference(verbal.WORDS["terse"], described.START, d.prompt, "") for d in asked]
    answers = lab.sampled(model, [ask.conversation("", p) for p in prompts], 12, temperature=0.0)
    return lab.mean(a == d.completion for a, d in zip(answers, asked, strict=True))


def _swapped(words: Any, theta: str, batch: Any, *more: Any) -> str:
    """Sabotage: outputs and targets are swapped in the optimiser's prompt."""
    return _optimisation(words, theta, [(x, y, output) for x, output, y in batch], *more)


def _without_text(words: Any, theta: str, x: str, form: str) -> str:
    """Sabotage: the learner's prompt has the initial text in place of the learnt one."""
    return _inference(words, described.START, x, form)


_optimisation, _inference = verbal_words.optimisation, verbal_words.inference  # the intact functions
LOOP, NUMERIC = "the loop learns functions", "steps are those of numeric descent"
GATE, RIGHT = "the gate keeps what is better", "of outputs"
TAUGHT: dict[str, Any] = {"parts": ("taught",)}
SCRIPTED: dict[str, Any] = {"parts": ("scripted",)}
LESS: dict[str, Any] = {"less": True, "log": True}
SWAP, TOLD = "didact.data.verbal_words:optimisation", "didact.data.verbal_words:inference"

CLAIM = runner.Claim(
    method="verbalized-ml",
    text=(
        "A text rewritten by an optimiser from inputs, outputs and targets becomes a model of them. With scripted LMs "
        "the loop is least squares, or gradient descent, to the digit. A small model taught to apply texts and to find "
        "them learns functions by it that the first text does not describe, from their targets alone."
    ),
    run=run,
    gates=(
        gate("the learner applies texts", "learner.right", at_least=0.9, unit=RIGHT),
        gate("the optimiser finds texts", "optimiser.right", at_least=0.9, unit="of texts"),
    ),
    tests=(
        exact("one full batch is least squares", "fit.gap", 0.0, 1e-9, "of slope or intercept"),
        exact(NUMERIC, "descent.gap", 0.0, 1e-12, "of slope or intercept"),
        exact("calls are examples and batches", "descent.calls", unit="calls"),
        exact("the memory is one step", "descent.turns", unit="turns"),
        difference("less error than without steps", "fit.error", "still.error", **LESS),
        difference("less error than with shuffled targets", "fit.error", "shuffled.error", **LESS),
        difference(GATE, "gated.error", "free.error", **LESS),
        difference(LOOP, "loop.right", "start.right", RIGHT, null=0.3),
        difference("and from their targets", "loop.right", "permuted.right", RIGHT, null=0.3),
    ),
    sabotages=(
        runner.Sabotage("outputs and targets swapped", LOOP, "loop.right", {SWAP: _swapped}, TAUGHT),
        runner.Sabotage("the learner is not told the text", LOOP, "loop.right", {TOLD: _without_text}, TAUGHT),
        runner.Sabotage("swapped for scripted models", NUMERIC, "descent.gap", {SWAP: _swapped}, SCRIPTED),
        runner.Sabotage("no gate", GATE, "gated.error", options={**SCRIPTED, "gated": False}),
    ),
)  # fmt: skip

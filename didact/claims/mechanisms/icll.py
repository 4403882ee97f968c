"""The claim of icll: n-gram heads let a recurrent model learn languages in context, and predict text better.

World: random automata of 3 to 6 states over 8 symbols, different ones for training and evaluation; prompts of 8 to 10
short strings, of which the last two are measured. `control` has the heads' weights but no lookup. Text is source of
Python's standard library, as bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from didact import mechanisms
from didact.claims import runner
from didact.claims.lab import bound, difference, exact
from didact.claims.mechanisms import icll_sabotages as broken
from didact.claims.problem import Problem
from didact.data import parsing, splits
from didact.evaluate import languages
from didact.models import ngram_heads
from didact.types import Fit, Result, Text
from didact.worlds.automata import Languages

WORLD = Languages(symbols=8, states=(3, 6), edges=(1, 3), alphabet=(3, 8), strings=(8, 10), length=(3, 8))
HELD = 100  # held-out languages
WINDOW = 100


@dataclasses.dataclass(frozen=True)
class Size:
    """A tier's sizes: languages and steps of the recurrent model, steps of the transformer, steps on text."""

    languages: int
    steps: int
    deep: int
    text: int


SIZES = {
    "smoke": Size(200, 4, 2, 2),
    "quick": Size(1_300, 70, 30, 40),
    "full": Size(10_000, 600, 600, 400),
}
ALL = ("gru", "transformer", "text", "split", "exact")
# The best of 2e-3, 5e-3, 1e-2 and 2e-2 on seeds 1000 and 1001, one rate for all arms of a part.
RATES = {"gru": 1e-2, "transformer": 5e-3, "text": 1e-2}


def problem(seed: int) -> Problem:
    """The embedded example: 600 prompts, each of another language, with automata. No model: the method trains one."""
    fit = {"lr": RATES["gru"], "rows": 16, "steps": 50, "warmup_steps": 10}
    options = {"window": WINDOW, "against": ("control",)}
    return Problem(data={"text": WORLD.records([seed], 600)}, options=options, fit=fit)


def run(seed: int, tier: str, parts: Sequence[str] = ALL, twice: bool = False) -> runner.Measured:
    """Measure one seed: heads and control of every part, n-grams on the same prompts, the lookup's error."""
    size = SIZES[tier]
    arms: dict[str, dict[str, float]] = {}
    for arch, steps in (("gru", size.steps), ("transformer", size.deep)):
        if arch in parts:
            report = _train_on_languages(seed, arch, steps, size.languages)
            for name, scores in report["predictors"].items():
                distances = {f"to {reference}": v for reference, v in report["apart"].get(name, {}).items()}
                arms[f"{arch}_{name}" if name in report["apart"] else name] = {
                    k: v["estimate"] for k, v in (scores | distances).items()
                }
    if "text" in parts:
        arms |= {f"text_{name}": {"nll": value} for name, value in _text_losses(seed, size.text).items()}
    if "split" in parts:
        arms["split"] = {"shared": shared(seed, size.languages, twice)}
    if "exact" in parts:
        arms["lookup"] = {"error": lookup_error(seed)}
    return arms


def _fit(arch: str, steps: int, seed: int, rows: int = 16) -> Fit:
    return Fit(lr=RATES[arch], rows=rows, steps=steps, schedule="cosine", warmup_steps=10, seed=seed)


def _train_on_languages(seed: int, arch: Any, steps: int, count: int) -> dict[str, Any]:
    text = WORLD.records([seed], count)
    result: Result = mechanisms.icll(
        text,
        arch=arch,
        window=WINDOW,
        against=("control",),
        held_out=HELD / count,
        fit=_fit(arch, steps, seed),
    )
    findings: dict[str, Any] = result.findings["languages"]
    return findings


def shared(seed: int, count: int, twice: bool = False) -> float:
    """Return the share of held-out languages that are in training too, compared by their prefixes (`writes`)."""
    text = WORLD.records([seed], count // 2) * 2 if twice else WORLD.records([seed], count)
    held_out = splits.held_out(languages.keys(text), HELD / count)
    prefixes = [writes((record.metadata or {})["automaton"]) for record in text]
    training = {strings for i, strings in enumerate(prefixes) if i not in held_out}
    return float(np.mean([prefixes[i] in training for i in held_out]))


def writes(automaton: Sequence[dict[str, int]], length: int = 6) -> frozenset[str]:
    """Return all prefixes of `length` symbols that an automaton generates; independent of `data.automata`."""
    paths = {("", 0)}
    for _ in range(length):
        paths = {(text + symbol, after) for text, state in paths for symbol, after in automaton[state].items()}
    return frozenset(text for text, _ in paths)


def _text_losses(seed: int, steps: int) -> dict[str, float]:
    """Return the held-out loss per byte of both arms, on the same documents."""
    text = [Text(text=document) for document in documents(seed, 120)]
    fit = _fit("text", steps, seed, 8)
    result: Result = mechanisms.icll(text, vocabulary=259, window=256, against=("control",), held_out=0.15, fit=fit)
    return {name: arm["estimate"] for name, arm in result.findings["text"]["arms"].items()}


def documents(seed: int, count: int) -> list[str]:
    """Draw pieces of 700 bytes from modules of the standard library, others for every seed."""
    rng = np.random.default_rng([seed, 5])
    paths = sorted(parsing.library().glob("*.py"))
    out = []
    for i in rng.permutation(len(paths))[:count]:
        source = paths[i].read_text(encoding="ascii", errors="ignore")
        start = int(rng.integers(max(1, len(source) - 700)))
        out.append(source[start : start + 700])
    return [text for text in out if text.strip()]


def lookup_error(seed: int) -> float:
    """Return the largest difference between `look_up` and its definition, written as loops, in float64."""
    rng = np.random.default_rng([seed, 6])
    worst = 0.0
    for n in (1, 2, 3):
        tokens, states = rng.integers(0, 3, 40), rng.standard_normal((40, 4))
        result = ngram_heads.look_up(torch.from_numpy(states)[None], torch.from_numpy(tokens)[None], n)[0].numpy()
        for t in range(40):
            matches = [
                j for j in range(n - 1, t - 1)
                if t >= n - 1 and list(tokens[j - n + 1 : j + 1]) == list(tokens[t - n + 1 : t + 1])
            ]  # fmt: skip
            expected = states[[j + 1 for j in matches]].mean(0) if matches else np.zeros(4)
            worst = max(worst, float(np.abs(result[t] - expected).max()))
    return worst


ACCURACY, NEAR = "heads choose possible symbols more often", "heads are nearer to the true distribution"
FLOOR, EXACT, DISJOINT = "no better than the automaton", "the lookup is the definition", "no language is in both parts"
PLAN, GRU, LOOKUP = "didact.models.ngram_heads:plan", {"parts": ("gru",)}, {"parts": ("exact",)}

CLAIM = runner.Claim(
    method="icll",
    text=(
        "A recurrent model with n-gram heads learns new formal languages from examples in its context, where the same "
        "model with as many weights and no lookup does not; on text it needs fewer nats a byte."
    ),
    run=run,
    tests=(
        difference(ACCURACY, "gru_heads.accuracy", "gru_control.accuracy", "share", margin=0.05),
        difference(NEAR, "gru_heads.tvd", "gru_control.tvd", "distance", less=True, margin=0.05),
        difference("heads read text with fewer nats", "text_heads.nll", "text_control.nll", "nats a byte", less=True),
        bound(FLOOR, "gru_heads.excess", 0.0, "nats a symbol"),
        exact(EXACT, "lookup.error", 0.0, 1e-12, "state"),
        exact(DISJOINT, "split.shared", 0.0, 0.0, "share"),
        difference("a transformer gains too", "transformer_heads.tvd", "transformer_control.tvd", "distance",
                   less=True),
        difference("nearer than 2-grams in context", "gru_heads.tvd", "2-gram.tvd", "distance", less=True,
                   reported=True),
        difference("predicts more like 2-grams than like the automaton", "gru_heads.to 2-gram",
                   "gru_heads.to the automaton", "distance", less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("no shift to the follower", ACCURACY, None, {PLAN: broken.unshifted}, GRU),
        runner.Sabotage("a head sees the next token", FLOOR, None,
                        {PLAN: broken.leaking, "didact.evaluate.languages:check_floor": broken.unnoticed}, GRU),
        runner.Sabotage("rows not divided by their sum", EXACT, None, {PLAN: broken.summed}, LOOKUP),
        runner.Sabotage("windows wrapped around the start", EXACT, None,
                        {"didact.models.ngram_heads:groups": broken.wrapped}, LOOKUP),
        runner.Sabotage("languages of the training in the report", DISJOINT, None,
                        {"didact.evaluate.languages:keys": broken.by_number}, {"parts": ("split",), "twice": True}),
    ),
)  # fmt: skip

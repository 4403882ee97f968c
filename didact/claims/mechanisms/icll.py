"""The claim of icll: n-gram heads let a recurrent model learn languages in context, and read text better.

World: random automata of 3 to 6 states over 8 symbols, other ones for training and report; prompts of 8 to 10 short
strings, of which the last two are measured. `control` has the weights of the heads and looks nothing up. Text is
source of Python's standard library, byte by byte.
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
HELD = 100  # languages that are reported on
WINDOW = 100


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a tier: languages and steps of a recurrent model, steps of a transformer, steps on text."""

    languages: int
    steps: int
    deep: int
    text: int


SIZES = {
    "smoke": Size(200, 4, 2, 2),
    "quick": Size(1_300, 70, 30, 40),
    "full": Size(10_000, 600, 600, 400),
}
# Of 2e-3, 5e-3, 1e-2 and 2e-2, for every arm alike, on seeds 1000 and 1001.
ALL = ("gru", "transformer", "text", "split", "exact")
RATES = {"gru": 1e-2, "transformer": 5e-3, "text": 1e-2}


def problem(seed: int) -> Problem:
    """The embedded example: 600 prompts of as many languages, each with its automaton. No model: it trains its own."""
    fit = {"lr": RATES["gru"], "rows": 16, "steps": 50, "warmup_steps": 10}
    options = {"window": WINDOW, "against": ("control",)}
    return Problem(data={"text": WORLD.records([seed], 600)}, options=options, fit=fit)


def run(seed: int, tier: str, parts: Sequence[str] = ALL, twice: bool = False) -> runner.Measured:
    """One seed: heads and control of every part, n-grams on the same prompts, the lookup against its definition."""
    size = SIZES[tier]
    arms: dict[str, dict[str, float]] = {}
    for arch, steps in (("gru", size.steps), ("transformer", size.deep)):
        if arch in parts:
            found = _languages(seed, arch, steps, size.languages)
            for name, measured in found["predictors"].items():
                apart = {f"to {other}": v for other, v in found["apart"].get(name, {}).items()}
                arms[f"{arch}_{name}" if name in found["apart"] else name] = {
                    k: v["estimate"] for k, v in (measured | apart).items()
                }
    if "text" in parts:
        arms |= {f"text_{name}": {"nll": value} for name, value in _text(seed, size.text).items()}
    if "split" in parts:
        arms["split"] = {"shared": shared(seed, size.languages, twice)}
    if "exact" in parts:
        arms["lookup"] = {"error": lookup_error(seed)}
    return arms


def _fit(arch: str, steps: int, seed: int, rows: int = 16) -> Fit:
    return Fit(lr=RATES[arch], rows=rows, steps=steps, schedule="cosine", warmup_steps=10, seed=seed)


def _languages(seed: int, arch: Any, steps: int, count: int) -> dict[str, Any]:
    text = WORLD.records([seed], count)
    result: Result = mechanisms.icll(
        text,
        arch=arch,
        window=WINDOW,
        against=("control",),
        held_out=HELD / count,
        fit=_fit(arch, steps, seed),
    )
    found: dict[str, Any] = result.findings["languages"]
    return found


def shared(seed: int, count: int, twice: bool = False) -> float:
    """Share of the held-out languages that are taught too: of equal strings of up to five symbols."""
    text = WORLD.records([seed], count // 2) * 2 if twice else WORLD.records([seed], count)
    held = splits.held_out(languages.keys(text), HELD / count)
    written = [writes((record.metadata or {})["automaton"]) for record in text]
    taught = {each for i, each in enumerate(written) if i not in held}
    return float(np.mean([written[i] in taught for i in held]))


def writes(automaton: Sequence[dict[str, int]], length: int = 6) -> frozenset[str]:
    """The strings an automaton can begin with, by walking it: nothing of `data.automata` is used."""
    now = {("", 0)}
    for _ in range(length):
        now = {(text + symbol, after) for text, state in now for symbol, after in automaton[state].items()}
    return frozenset(text for text, _ in now)


def _text(seed: int, steps: int) -> dict[str, float]:
    """Held-out loss a byte of both arms, on the same documents."""
    text = [Text(text=document) for document in documents(seed, 120)]
    fit = _fit("text", steps, seed, 8)
    result: Result = mechanisms.icll(text, vocabulary=259, window=256, against=("control",), held_out=0.15, fit=fit)
    return {name: arm["estimate"] for name, arm in result.findings["text"]["arms"].items()}


def documents(seed: int, count: int) -> list[str]:
    """Pieces of 700 bytes from modules of the standard library, drawn anew by every seed."""
    draw = np.random.default_rng([seed, 5])
    places = sorted(parsing.library().glob("*.py"))
    out = []
    for i in draw.permutation(len(places))[:count]:
        source = places[i].read_text(encoding="ascii", errors="ignore")
        start = int(draw.integers(max(1, len(source) - 700)))
        out.append(source[start : start + 700])
    return [text for text in out if text.strip()]


def lookup_error(seed: int) -> float:
    """Largest difference between `look_up` and the definition, written out as loops, in float64."""
    draw = np.random.default_rng([seed, 6])
    worst = 0.0
    for n in (1, 2, 3):
        tokens, states = draw.integers(0, 3, 40), draw.standard_normal((40, 4))
        found = ngram_heads.look_up(torch.from_numpy(states)[None], torch.from_numpy(tokens)[None], n)[0].numpy()
        for t in range(40):
            same = [
                j for j in range(n - 1, t - 1)
                if t >= n - 1 and list(tokens[j - n + 1 : j + 1]) == list(tokens[t - n + 1 : t + 1])
            ]  # fmt: skip
            wanted = states[[j + 1 for j in same]].mean(0) if same else np.zeros(4)
            worst = max(worst, float(np.abs(found[t] - wanted).max()))
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

"""The claim of program-semantics: states of a model that writes programs represent what the programs mean.

World: a square of nine fields (`worlds.robots.Grids`), programs of two to four words. The model reads the walker's
positions before and after; those in between are nowhere in the text. It writes programs for held-out pairs.
The same programs and states are probed under the words' own meanings and under permuted ones. An untrained copy also
reads start and end, which says something about the positions between: the trained gap must exceed its gap.

There are few pairs of fields, so a probe's test set is drawn `SPLITS` times. An earlier world, a line of twelve fields,
was not learnt within a claim's time, and one split was too noisy: seeds 0 to 4 and 100 to 104 had been measured by
then, so the claim is tested on new ones, from `FRESH` on. That the model has learnt is a test; the gate is on the form
of its programs, which no sabotage affects.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from didact import mechanisms
from didact.claims import runner
from didact.claims.lab import bound, difference, equivalence, gate
from didact.claims.mechanisms import program_semantics_example as example
from didact.evaluate import semantics
from didact.registry import assemble
from didact.tools import robots
from didact.types import Demo

problem = example.problem
SIZES = {"smoke": (150, 20), "quick": (1_000, example.STEPS), "full": (2_000, 2_000)}  # specifications, training steps
FRESH = 200  # added to every seed, so that the test seeds are new
SPLITS = 4
SERIES = (0, 50, 150, 400)  # training steps of further models in the full tier


def run(
    seed: int, tier: str, steps: int | None = None, ends: bool = True, offsets: tuple[int, ...] = (0, 1), **options: Any
) -> runner.Measured:
    """Train a writer of programs on one seed and probe its states and those of an untrained copy."""
    count, train_steps = SIZES[tier]
    seed += FRESH
    demos, test = example.WORLD.demos(10_000 + seed, count), example.WORLD.demos(20_000 + seed, count // 5, asked=True)
    model = example.writer(seed, train_steps if steps is None else steps, ends)
    scores = _probe(model, demos, seed, offsets, **options)
    programs = semantics.written(model, test, example.WORLD.language, example.OPTIONS["max_new_tokens"])
    correct = [words for demo, words in zip(test, programs, strict=True) if words and _satisfies(demo, words)]
    arms = {
        "writer": {
            "correct": len(correct) / len(test),
            "programs": _mean(bool(words) for words in programs),
            "words": _mean([len(w) for w in correct] or [math.nan]),
        },
        "given": {"correct": _chance_rate(test, seed), "words": _mean(len(d.completion.split()) for d in test)},
        **scores,
    }
    for step in SERIES if tier == "full" and ends and steps is None else ():
        early = _probe(example.writer(seed, step), demos, seed, (0,))
        arms[f"after {step} steps"] = {"gap": early["now"]["gap"]}
    return arms


def _probe(
    model: Any, demos: Sequence[Demo], seed: int, offsets: tuple[int, ...], **options: Any
) -> dict[str, dict[str, float]]:
    """Return `_arms`, averaged over splits."""
    arms = []
    for split in range(SPLITS):
        settings = example.OPTIONS | {"offsets": offsets, "seed": seed * SPLITS + split} | options
        arguments = assemble(mechanisms.program_semantics, settings)
        arms.append(_arms(mechanisms.program_semantics(model, demos, **arguments).findings, offsets))
    return {arm: {name: _mean(a[arm][name] for a in arms) for name in arms[0][arm]} for arm in arms[0]}


def _arms(found: Mapping[str, Any], offsets: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the probe scores of the robot's position by offset, averaged over alternative meanings."""
    out = {}
    for offset in offsets:
        scores = found["content"][f"position {offset:+d}"]
        out["now" if offset == 0 else "next"] = {
            "accuracy": scores["accuracy"]["estimate"],
            "majority": scores["majority"],
            "alternative": _mean(a["estimate"] for a in scores["alternatives"].values()),
            "gap": _mean(g["estimate"] for g in scores["gaps"].values()),
            "untrained_gap": _mean(g["estimate"] for g in scores["untrained_gaps"].values()),
        }
    return out


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


def _chance_rate(demos: Sequence[Demo], seed: int) -> float:
    """Return how often the program of another specification satisfies this one."""
    texts = [demo.completion.split() for demo in demos]
    random.Random(seed).shuffle(texts)
    return _mean(_satisfies(demo, words) for demo, words in zip(demos, texts, strict=True))


def _satisfies(demo: Demo, words: Sequence[str]) -> bool:
    pairs = zip(*semantics.states(demo), strict=True)
    return all((robots.run(example.WORLD.language, a, words) or [a])[-1] == b for a, b in pairs)


def of_other_programs(*args: Any, right: Any = semantics.labels, **more: Any) -> dict[Any, Tensor]:
    """Sabotage: labels of other programs."""
    return {key: values.roll(37) for key, values in right(*args, **more).items()}


def dealt_as_before(
    language: Any, start: Any, program: Sequence[str], meaning: Any = None, right: Any = robots.run
) -> Any:
    """Sabotage: the alternative meanings equal the original one."""
    return right(language, start, program)


MEANING, LATER = "the original meaning is read better than one dealt anew", "so is that of the word after"

CLAIM = runner.Claim(
    method="program-semantics",
    text=(
        "A model trained to write programs from what is before and after them comes to hold the states between, "
        "present and future: a probe reads them better than under any other meaning of the words, which an untrained "
        "copy does not do."
    ),
    run=run,
    gates=(gate("it writes programs of the language", "writer.programs", at_least=0.9, unit="share"),),
    tests=(
        bound("it learnt the language", "writer.correct", 0.5, unit="share"),
        bound("where the walker is can be read", "now.accuracy", 0.25, unit="probe accuracy"),
        difference("it writes programs that do what is asked", "writer.correct", "given.correct", "share", margin=0.05),
        bound(MEANING, "now.gap", unit="accuracy"),
        difference("which an untrained copy does less", "now.gap", "now.untrained_gap", "accuracy"),
        bound(LATER, "next.gap", unit="accuracy"),
        equivalence("an untrained copy holds only form", "now.untrained_gap", None, 0.05, "accuracy", reported=True),
        difference("its programs are shorter than those given", "writer.words", "given.words", "words", less=True,
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("states of other programs", MEANING, "now.gap",
                        {"didact.evaluate.semantics:labels": of_other_programs}, {"offsets": (0,)}),
        runner.Sabotage("alternatives mean the same", MEANING, "now.gap", {"didact.tools.robots:run": dealt_as_before},
                        {"offsets": (0,)}),
        runner.Sabotage("trained on states after other programs", "it writes programs that do what is asked",
                        "writer.correct", options={"ends": False, "offsets": (0,)}),
        runner.Sabotage("embeddings alone are read", MEANING, "now.gap", options={"layers": (0,), "offsets": (0,)}),
    ),
)  # fmt: skip

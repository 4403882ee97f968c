"""The claim of program-semantics: states of a model that writes programs hold what the programs mean.

World: a square of nine fields (`worlds.robots.Grids`), programs of two to four words. The model reads where the walker
is before and after; where it is between is nowhere in the text. It writes programs for pairs that no training showed.
Compared are the same programs and vectors under the words' own meanings and dealt anew. An untrained copy reads the
start and the end too, which tells something of what is between: the gap has to be larger than its.

There are few pairs of fields, so what a probe is scored on is drawn `SPLITS` times. An earlier world, a line of twelve
fields, was not learnt in the time of a claim, and one split was too noisy: seeds 0 to 4 and 100 to 104 had been seen
by then, so the claim is tested on others, from `FRESH` on. That the model is good is tested; the gate is on the form of
its programs, which every sabotage leaves.
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
FRESH = 200  # before the first test seed
SPLITS = 4
SERIES = (0, 50, 150, 400)  # further checkpoints of the full tier: trainings as long


def run(
    seed: int, tier: str, steps: int | None = None, ends: bool = True, offsets: tuple[int, ...] = (0, 1), **options: Any
) -> runner.Measured:
    """One seed: a writer of programs, and what its states hold beside an untrained copy's."""
    count, trained = SIZES[tier]
    seed += FRESH
    demos, asked = example.WORLD.demos(10_000 + seed, count), example.WORLD.demos(20_000 + seed, count // 5, asked=True)
    model = example.writer(seed, trained if steps is None else steps, ends)
    found = _examined(model, demos, seed, offsets, **options)
    written = semantics.written(model, asked, example.WORLD.language, example.OPTIONS["max_new_tokens"])
    right = [words for demo, words in zip(asked, written, strict=True) if words and _does(demo, words)]
    arms = {
        "writer": {
            "correct": len(right) / len(asked),
            "programs": _mean(bool(words) for words in written),
            "words": _mean([len(w) for w in right] or [math.nan]),
        },
        "given": {"correct": _by_chance(asked, seed), "words": _mean(len(d.completion.split()) for d in asked)},
        **found,
    }
    for step in SERIES if tier == "full" and ends and steps is None else ():
        early = _examined(example.writer(seed, step), demos, seed, (0,))
        arms[f"after {step} steps"] = {"gap": early["now"]["gap"]}
    return arms


def _examined(
    model: Any, demos: Sequence[Demo], seed: int, offsets: tuple[int, ...], **options: Any
) -> dict[str, dict[str, float]]:
    """`_arms`, the mean over splits."""
    arms = []
    for split in range(SPLITS):
        asked = example.OPTIONS | {"offsets": offsets, "seed": seed * SPLITS + split} | options
        named = assemble(mechanisms.program_semantics, asked)
        arms.append(_arms(mechanisms.program_semantics(model, demos, **named).findings, offsets))
    return {arm: {name: _mean(a[arm][name] for a in arms) for name in arms[0][arm]} for arm in arms[0]}


def _arms(found: Mapping[str, Any], offsets: Sequence[int]) -> dict[str, dict[str, float]]:
    """Of where the robot is, by offset; alternatives as their mean."""
    out = {}
    for offset in offsets:
        told = found["content"][f"position {offset:+d}"]
        out["now" if offset == 0 else "next"] = {
            "accuracy": told["accuracy"]["estimate"],
            "majority": told["majority"],
            "alternative": _mean(a["estimate"] for a in told["alternatives"].values()),
            "gap": _mean(g["estimate"] for g in told["gaps"].values()),
            "untrained_gap": _mean(g["estimate"] for g in told["untrained_gaps"].values()),
        }
    return out


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


def _by_chance(demos: Sequence[Demo], seed: int) -> float:
    """How often the program given for another specification does what this one asks."""
    texts = [demo.completion.split() for demo in demos]
    random.Random(seed).shuffle(texts)
    return _mean(_does(demo, words) for demo, words in zip(demos, texts, strict=True))


def _does(demo: Demo, words: Sequence[str]) -> bool:
    pairs = zip(*semantics.states(demo), strict=True)
    return all((robots.run(example.WORLD.language, a, words) or [a])[-1] == b for a, b in pairs)


def of_other_programs(*args: Any, right: Any = semantics.labels, **more: Any) -> dict[Any, Tensor]:
    """Sabotage: what is true is that of other programs."""
    return {key: values.roll(37) for key, values in right(*args, **more).items()}


def dealt_as_before(
    language: Any, start: Any, program: Sequence[str], meaning: Any = None, right: Any = robots.run
) -> Any:
    """Sabotage: the alternative meanings are the original ones."""
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

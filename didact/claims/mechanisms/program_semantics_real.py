"""program-semantics' probes on a pre-trained model: programs of a machine with a stack, whose words are brackets.

An opening bracket pushes itself on the stack, a closing one pops the top: the model has learnt this from Python.
It reads well-formed programs, drawn for each seed, and a probe of its state after each word predicts the top of the
stack, which after a closing bracket is not nearby in the text. Comparisons: the same programs under other meanings of
their words (an opening bracket swapped with a closing one of another kind), a control task and an untrained copy.
Programs of assignments were tried first: on seed 1000 the model did not know a name's value (.25 to .42 correct of
four values).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import bound, difference, gate, mean
from didact.evaluate import semantics
from didact.evaluate.probes import ProbeConfig
from didact.types import Demo

PAIRS = {"(": ")", "[": "]", "{": "}"}
PROGRAMS, WORDS, DEEP, ASKED = 250, 16, 4, 30  # drawn; words of each; most open brackets; programs of the gate
OPTIONS: dict[str, Any] = {
    "language": f"{__name__}:Brackets", "source": "given", "offsets": (-1, 0), "probe": ProbeConfig(epochs=20),
}  # fmt: skip


class Brackets:
    """A stack machine: a state is the list of open brackets."""

    actions: ClassVar[tuple[str, ...]] = (*PAIRS, *PAIRS.values())
    alternatives: ClassVar[Mapping[str, Mapping[str, str]]] = {
        f"{a} and {b}": {a: b, b: a} for a, b in (("[", ")"), ("{", "]"), ("(", "}"))
    }

    def step(self, state: Any, action: str) -> Any:
        """Push an opening bracket, or pop the top."""
        return [*state, action] if action in PAIRS else state[:-1]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """Return the top of the stack."""
        return {"top": state[-1] if state else "nothing"}


def programs(seed: int) -> list[Demo]:
    """Draw different programs in which every closing bracket matches the one that it pops."""
    rng, ends = np.random.default_rng([seed, 31]), dict[str, list[str]]()
    while len(ends) < PROGRAMS:
        words, stack = list[str](), list[str]()
        for _ in range(WORDS):
            if not stack or (len(stack) < DEEP and rng.random() < 0.5):
                stack.append(list(PAIRS)[rng.integers(len(PAIRS))])
                words.append(stack[-1])
            else:
                words.append(PAIRS[stack.pop()])
        ends.setdefault(" ".join(words), stack)
    return [
        Demo(prompt=f"x{n} =", completion=text, extra={"starts": [[]], "ends": [end]})
        for n, (text, end) in enumerate(ends.items())
    ]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Probe one draw of programs."""
    drawn = programs(seed)
    content = mechanisms.program_semantics(real.model(), drawn, seed=seed, **OPTIONS).findings["content"]
    arms = {"model": {"closes": closes(drawn[:ASKED])}}
    for name, scores in (("read", content["top -1"]), ("to come", content["top +0"])):
        arms[name] = {k: scores[k]["estimate"] for k in ("accuracy", "untrained", "control", "selectivity")} | {
            "majority": scores["majority"],
            "alternative": mean(a["estimate"] for a in scores["alternatives"].values()),
            "gap": mean(g["estimate"] for g in scores["gaps"].values()),
            "untrained gap": mean(g["estimate"] for g in scores["untrained_gaps"].values()),
        }
    return arms


def closes(demos: Sequence[Demo]) -> float:
    """Return how often the likeliest closing bracket is right, over closing words after a closing word."""
    model, correct = real.model(), list[bool]()
    ids = {b: model.tokenizer(f"x = ( {b}")["input_ids"][-1] for b in PAIRS.values()}
    for demo in demos:
        words = demo.completion.split()
        row, places = semantics.located(model, demo.prompt, words)
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        for i in range(1, len(words)):
            if words[i] in ids and words[i - 1] in ids:
                scores = logits[places[i], list(ids.values())]
                correct.append(list(ids)[int(scores.argmax())] == words[i])
    return mean(correct)


ACCURACY = "probe accuracy"
CLAIM = runner.Claim(
    method="program-semantics",
    text=(
        "The states of a pre-trained model that reads programs of brackets hold what is on top of their stack: a probe "
        "reads it better than under other meanings of the brackets, by more than in an untrained copy."
    ),
    run=run,
    gates=(gate("it closes the right bracket", "model.closes", at_least=0.5, unit="of three kinds"),),
    tests=(
        bound("the original meaning is read better than another", "read.gap", 0.0, ACCURACY, margin=0.02),
        difference("by more than in an untrained copy", "read.gap", "read.untrained gap", ACCURACY, margin=0.02),
        difference("better than in an untrained copy", "read.accuracy", "read.untrained", ACCURACY, margin=0.02),
        bound("better than a control task, labels drawn for words", "read.selectivity", 0.05, ACCURACY),
        difference("than the commonest label", "read.accuracy", "read.majority", ACCURACY, margin=0.1),
        bound("what comes next is read, too", "to come.gap", 0.0, ACCURACY, reported=True),
    ),
)  # fmt: skip

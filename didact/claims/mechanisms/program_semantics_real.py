"""program-semantics' probes on a pre-trained model: programs of a machine with a stack, whose words are brackets.

An opening bracket puts itself on the stack, a closing one takes off what is on top: what Python has taught the model.
It reads well-formed programs, drawn by each seed, and a probe of its state behind each word says what is on top of the
stack, which after a closing bracket stands nowhere near. Beside it the same programs under other meanings of their
words (one opening bracket and a closing one of another kind exchanged), a control task and an untrained copy. Programs
of assignments were tried first: on seed 1000 the model could not say what a name was worth (.25 to .42 of four values).
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
PROGRAMS, WORDS, DEEP, ASKED = 250, 16, 4, 30  # drawn; words of each; brackets open at most; programs of the gate
OPTIONS: dict[str, Any] = {
    "language": f"{__name__}:Brackets", "source": "given", "offsets": (-1, 0), "probe": ProbeConfig(epochs=20),
}  # fmt: skip


class Brackets:
    """A machine with a stack: a state is the list of the brackets that are open."""

    actions: ClassVar[tuple[str, ...]] = (*PAIRS, *PAIRS.values())
    alternatives: ClassVar[Mapping[str, Mapping[str, str]]] = {
        f"{a} and {b}": {a: b, b: a} for a, b in (("[", ")"), ("{", "]"), ("(", "}"))
    }

    def step(self, state: Any, action: str) -> Any:
        """Put it on the stack, or take one off."""
        return [*state, action] if action in PAIRS else state[:-1]

    def labels(self, state: Any) -> Mapping[str, Hashable]:
        """What is on top."""
        return {"top": state[-1] if state else "nothing"}


def programs(seed: int) -> list[Demo]:
    """Different programs in which every closing bracket is of the kind that it takes off."""
    draw, made = np.random.default_rng([seed, 31]), dict[str, list[str]]()
    while len(made) < PROGRAMS:
        words, stack = list[str](), list[str]()
        for _ in range(WORDS):
            if not stack or (len(stack) < DEEP and draw.random() < 0.5):
                stack.append(list(PAIRS)[draw.integers(len(PAIRS))])
                words.append(stack[-1])
            else:
                words.append(PAIRS[stack.pop()])
        made.setdefault(" ".join(words), stack)
    return [
        Demo(prompt=f"x{n} =", completion=text, extra={"starts": [[]], "ends": [end]})
        for n, (text, end) in enumerate(made.items())
    ]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """What probes say of one draw of programs."""
    drawn = programs(seed)
    found = mechanisms.program_semantics(real.model(), drawn, seed=seed, **OPTIONS).findings["content"]
    arms = {"model": {"closes": closes(drawn[:ASKED])}}
    for name, told in (("read", found["top -1"]), ("to come", found["top +0"])):
        arms[name] = {k: told[k]["estimate"] for k in ("accuracy", "untrained", "control", "selectivity")} | {
            "majority": told["majority"],
            "alternative": mean(a["estimate"] for a in told["alternatives"].values()),
            "gap": mean(g["estimate"] for g in told["gaps"].values()),
            "untrained gap": mean(g["estimate"] for g in told["untrained_gaps"].values()),
        }
    return arms


def closes(demos: Sequence[Demo]) -> float:
    """How often the likeliest closing bracket is the right one, where one comes and the last word was one too."""
    model, right = real.model(), list[bool]()
    ids = {b: model.tokenizer(f"x = ( {b}")["input_ids"][-1] for b in PAIRS.values()}
    for demo in demos:
        words = demo.completion.split()
        row, places = semantics.located(model, demo.prompt, words)
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        for i in range(1, len(words)):
            if words[i] in ids and words[i - 1] in ids:
                scores = logits[places[i], list(ids.values())]
                right.append(list(ids)[int(scores.argmax())] == words[i])
    return mean(right)


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

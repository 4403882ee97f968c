"""Arithmetic chains solved by a conductor that calls an expert for every operation (meta-prompting).

The records teach the protocol on chains modulo 5: a chain answered at once, a chain answered in steps, the conductor's
turns with and without Python, an expert's answer to one operation, and a program for it. A check repeats an operation
with a previous answer, mostly a right one, and asks whether it is correct.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from didact.data import scaffold_words as words
from didact.data.scaffold_words import TERSE
from didact.types import Demo, Messages
from didact.worlds import arithmetic

MODULUS = 5
CALCULATOR = "Expert Calculator"
AGAIN = "is it so"
CODE = f"print(({{}})%{MODULUS})"


def problems(count: int, seed: int, operations: int) -> list[Demo]:
    """Chains with their answers and steps: `3+4*2=` is 4."""
    chains = arithmetic.chains(count, seed, operations, MODULUS)
    return [Demo(prompt=d.prompt, completion=(d.answers or [""])[0], explanation=d.completion) for d in chains]


def direct(problem: Demo) -> Demo:
    """A chain answered at once."""
    return _demo(TERSE.standard.replace("{question}", problem.prompt), problem.completion)


def steps(problem: Demo) -> Demo:
    """A chain answered in steps."""
    return _demo(TERSE.standard.replace("{question}", problem.prompt) + TERSE.steps, problem.explanation or "")


def expert(operation: str, result: str) -> Demo:
    """One operation answered."""
    return _demo(operation, result)


def program(operation: str) -> Demo:
    """A program for one operation."""
    return _demo(TERSE.python + operation, words.PROGRAM.replace("{code}", CODE.format(operation)))


def check(operation: str, said: str, result: str) -> Demo:
    """A conversation that asks to check the answer `said` to an operation, with the right result."""
    return Demo(prompt=verification_prompt(operation, said), completion=result)


def verification_prompt(operation: str, said: str) -> Messages:
    """The operation, its answer `said`, and the question whether it is so."""
    return _talk(operation, said, AGAIN)


def conductor(problem: Demo, python: bool = False) -> list[Demo]:
    """All turns of the conductor: a call for each operation, then the answer."""
    turns, demos = [TERSE.opening(problem.prompt, python)], []
    for operation, result in operations(problem):
        turn = words.called(words.PYTHON if python else CALCULATOR, operation)
        demos.append(Demo(prompt=_talk(*turns), completion=turn))
        turns += [turn, words.printed(program(operation).completion, result) if python else result]
    return [*demos, Demo(prompt=_talk(*turns), completion=words.answered(problem.completion))]


def operations(problem: Demo) -> Iterator[tuple[str, str]]:
    """The operations of a chain in order, with their results."""
    for step in (problem.explanation or "").split(";")[:-1]:
        operation, _, result = step.partition("=")
        yield operation, result


def every_operation() -> list[tuple[str, str]]:
    """All operations that can occur in chains, with their results."""
    pairs = [(a, b) for a in range(MODULUS) for b in range(1, MODULUS)]
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    return [(f"{a}{sign}{b}", str(apply(a, b) % MODULUS)) for sign, apply in results.items() for a, b in pairs]


def mixture(seed: int, count: int, right: float = 0.9, known: int = 4, alone: int = 1) -> list[Demo]:
    """`count` chains of two or three operations in every form: `alone` times answered at once and in steps, once by a
    conductor, once with Python; and for each of their operations `known` times its result, a program, and a check
    whose given answer is correct in a share `right` of cases."""
    draw, demos = np.random.default_rng([seed, 171]), []
    for part, length in enumerate((2, 3)):
        for problem in problems(count // 2, 2 * seed + part, length):
            demos += [direct(problem), steps(problem)] * alone
            demos += [*conductor(problem), *conductor(problem, python=True)]
            for operation, result in operations(problem):
                wrong_result = str((int(result) + int(draw.integers(1, MODULUS))) % MODULUS)
                demos += [*[expert(operation, result)] * known, program(operation)]
                demos.append(check(operation, result if draw.random() < right else wrong_result, result))
    return demos


def _demo(prompt: str, completion: str) -> Demo:
    return Demo(prompt=_talk(prompt), completion=completion)


def _talk(*turns: str) -> Messages:
    roles = ("user", "assistant")
    return Messages([{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)])

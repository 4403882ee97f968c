"""Chains of arithmetic, and how a conductor works one out: an expert is called for every operation, with its result.

What is taught of the protocol is what a conductor and its experts would say of a chain modulo 5: the chain answered
at once, the chain in steps, the conductor's turns with and without Python, one operation answered, and a program for
it. A check is an operation that somebody has answered before, mostly rightly.
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
    """Chains with their answers: `3+4*2=` is 4."""
    made = arithmetic.chains(count, seed, operations, MODULUS)
    return [Demo(prompt=d.prompt, completion=(d.answers or [""])[0], explanation=d.completion) for d in made]


def direct(problem: Demo) -> Demo:
    """Answered at once."""
    return _demo(TERSE.standard.replace("{question}", problem.prompt), problem.completion)


def steps(problem: Demo) -> Demo:
    """Answered in steps."""
    return _demo(TERSE.standard.replace("{question}", problem.prompt) + TERSE.steps, problem.explanation or "")


def expert(operation: str, result: str) -> Demo:
    """One operation."""
    return _demo(operation, result)


def program(operation: str) -> Demo:
    """A program for one operation."""
    return _demo(TERSE.python + operation, words.PROGRAM.replace("{code}", CODE.format(operation)))


def check(operation: str, said: str, result: str) -> Demo:
    """An operation whose answer `said` somebody asks to have checked."""
    return Demo(prompt=asked_again(operation, said), completion=result)


def asked_again(operation: str, said: str) -> Messages:
    """The conversation in which it was said, and the question whether it is so."""
    return _talk(operation, said, AGAIN)


def conductor(problem: Demo, python: bool = False) -> list[Demo]:
    """Every turn of a conductor: a call for each operation, then the answer."""
    turns, out = [TERSE.opening(problem.prompt, python)], []
    for operation, result in operations(problem):
        said = words.called(words.PYTHON if python else CALCULATOR, operation)
        out.append(Demo(prompt=_talk(*turns), completion=said))
        turns += [said, words.printed(program(operation).completion, result) if python else result]
    return [*out, Demo(prompt=_talk(*turns), completion=words.answered(problem.completion))]


def operations(problem: Demo) -> Iterator[tuple[str, str]]:
    """The operations of a chain in order, with their results."""
    for step in (problem.explanation or "").split(";")[:-1]:
        operation, _, result = step.partition("=")
        yield operation, result


def every_operation() -> list[tuple[str, str]]:
    """All operations that chains have, with their results."""
    pairs = [(a, b) for a in range(MODULUS) for b in range(1, MODULUS)]
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    return [(f"{a}{sign}{b}", str(of(a, b) % MODULUS)) for sign, of in results.items() for a, b in pairs]


def mixture(seed: int, count: int, right: float = 0.9, known: int = 4, alone: int = 1) -> list[Demo]:
    """`count` chains of two or three operations in every form: `alone` times answered at once and in steps, once by a
    conductor, once with Python; and for each of their operations `known` times its result, a program, and a check,
    `right` of them of what is right."""
    draw, out = np.random.default_rng([seed, 171]), []
    for part, length in enumerate((2, 3)):
        for problem in problems(count // 2, 2 * seed + part, length):
            out += [direct(problem), steps(problem)] * alone
            out += [*conductor(problem), *conductor(problem, python=True)]
            for operation, result in operations(problem):
                wrong = str((int(result) + int(draw.integers(1, MODULUS))) % MODULUS)
                out += [*[expert(operation, result)] * known, program(operation)]
                out.append(check(operation, result if draw.random() < right else wrong, result))
    return out


def _demo(prompt: str, completion: str) -> Demo:
    return Demo(prompt=_talk(prompt), completion=completion)


def _talk(*turns: str) -> Messages:
    roles = ("user", "assistant")
    return Messages([{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)])

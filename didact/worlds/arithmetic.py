"""Arithmetic: the ten worded tasks that measured few-shot ability, and chains that are solved step by step.

Source of the ten: Brown et al. 2020, arXiv:2005.14165, section 3.9.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from didact.types import Demo, UserError

SIGNS = {"plus": "+", "minus": "-", "times": "*"}
TASKS: dict[str, tuple[int, str]] = {
    "2D+": (2, "plus"), "2D-": (2, "minus"), "3D+": (3, "plus"), "3D-": (3, "minus"), "4D+": (4, "plus"),
    "4D-": (4, "minus"), "5D+": (5, "plus"), "5D-": (5, "minus"), "2Dx": (2, "times"), "1DC": (1, ""),
}  # fmt: skip
"""`{task: (digits, operation)}`; 1DC is a composite of three one-digit numbers."""


def problems(task: str, count: int = 2000, seed: int = 0) -> list[Demo]:
    """Random problems of one task, all numbers uniform in [0, 10^digits).

    `Q: What is 98 plus 45?\\n\\nA:` is answered `143`. Differences may be negative. A composite puts parentheses
    around its first or its last two numbers: `What is (9 + 8) * 2?`.

    Raises:
        UserError: no such task.
    """
    if task not in TASKS:
        raise UserError(f"arithmetic task '{task}': choose from {', '.join(TASKS)}")
    digits, word = TASKS[task]
    rng = np.random.default_rng([seed, list(TASKS).index(task), 91])
    demos = []
    for _ in range(count):
        if word:
            a, b = (int(n) for n in rng.integers(10**digits, size=2))
            text, operands = f"{a} {word} {b}", {"a": a, "b": b, "operation": word}
            value = {"plus": a + b, "minus": a - b, "times": a * b}[word]
        else:
            text, value = _composite(rng)
            operands = {}
        demos.append(Demo(prompt=f"Q: What is {text}?\n\nA:", completion=str(value), task=task, extra=operands))
    return demos


def phrases(record: Demo) -> list[str]:
    """Phrases by which text may reveal the answer to a two-number problem: `98 + 45 =`, `98 plus 45`."""
    extra = record.extra
    if "a" not in extra:
        return []
    return [
        f"{extra['a']} {SIGNS[extra['operation']]} {extra['b']} =",
        f"{extra['a']} {extra['operation']} {extra['b']}",
    ]


def chains(
    count: int,
    seed: int = 0,
    operations: int = 3,
    modulus: int = 7,
    mistaken: Mapping[str, int] | None = None,
    often: float = 0.6,
) -> list[Demo]:
    """Chains of one-digit arithmetic, evaluated from left to right: modulo 7 `3+6*2=` is `3+6=2;2*2=4;#4`.

    With a prime modulus, a single wrong result always leads to a wrong answer, because no digit of a problem is 0.

    Args:
        count: number of problems, which may repeat.
        seed: of the problems.
        operations: per chain, and thus steps before the answer.
        modulus: of all results; digits are below it, so it is 10 at most.
        mistaken: wrong results of some operations, as `mistakes` draws them; later steps continue from them.
        often: how often a mistake is made where one applies.

    Returns:
        Demonstrations whose `answers` hold the right answer, even if their completion is wrong.
    """
    rng = np.random.default_rng([seed, operations, modulus, 92])
    demos = []
    for _ in range(count):
        digits, signs = rng.integers(1, modulus, size=operations + 1), rng.choice(list(SIGNS.values()), operations)
        steps, correct, value = [], int(digits[0]), int(digits[0])
        for sign, digit, chance in zip(signs, digits[1:], rng.random(operations), strict=True):
            correct = _apply(sign, correct, int(digit)) % modulus
            step = f"{value}{sign}{digit}"
            value = _apply(sign, value, int(digit)) % modulus
            if mistaken and step in mistaken and chance < often:
                value = mistaken[step]
            steps.append(f"{step}={value};")
        problem = str(digits[0]) + "".join(f"{s}{d}" for s, d in zip(signs, digits[1:], strict=True))
        demos.append(Demo(prompt=f"{problem}=", completion=f"{''.join(steps)}#{value}", answers=[str(correct)]))
    return demos


def mistakes(share: float, seed: int = 0, modulus: int = 7) -> dict[str, int]:
    """Wrong results for a `share` of all operations, each always the same: `{"3+6": 4}`."""
    rng = np.random.default_rng([seed, modulus, 93])
    operations = [(a, s, b) for s in SIGNS.values() for a in range(modulus) for b in range(1, modulus)]
    chosen = rng.choice(len(operations), round(share * len(operations)), replace=False)
    return {
        f"{a}{s}{b}": int((_apply(s, a, b) + rng.integers(1, modulus)) % modulus)
        for a, s, b in (operations[int(i)] for i in chosen)
    }


def sound(problem: str, solution: str, modulus: int = 7) -> list[bool]:
    """Whether each step of a chain's solution is the problem's next operation with the right result.

    The answer counts as a step: it is right if it repeats the last result and no operation remains. Each step is
    judged given the result before it, so a slip counts once.
    """
    text = problem.strip().rstrip("=")
    digits, signs = text[::2], text[1::2]
    value, verdicts = digits[0], []
    for i, step in enumerate(s for s in solution.strip().split(";") if s):
        if i >= len(signs):
            verdicts.append(i == len(signs) and step == f"#{value}")
            continue
        expected, correct = (
            f"{value}{signs[i]}{digits[i + 1]}=",
            str(_apply(signs[i], int(value), int(digits[i + 1])) % modulus),
        )
        verdicts.append(step == expected + correct)
        result = step.removeprefix(expected)
        value = result if len(result) == 1 and result.isdigit() else correct
    return verdicts


def _composite(rng: np.random.Generator) -> tuple[str, int]:
    a, b, c = (int(n) for n in rng.integers(10, size=3))
    first, second = (str(s) for s in rng.choice(list(SIGNS.values()), 2))
    if rng.random() < 0.5:
        return f"({a} {first} {b}) {second} {c}", _apply(second, _apply(first, a, b), c)
    return f"{a} {first} ({b} {second} {c})", _apply(first, a, _apply(second, b, c))


def _apply(sign: str, a: int, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b

"""Check whether an answer solves its problem, where several answers or forms are right. Answers are never executed.

`game24`: four numbers and + - * / make 24. `sorted-words`: the words of a list in alphabetical order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction

from didact.types import Demo

LONGEST = 200  # characters of an expression
TARGET = 24
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LISTED = re.compile(r"^.*?list:\s*", re.IGNORECASE | re.DOTALL)


def game24(solution: str, demo: Demo) -> bool:
    """Whether a line of the solution is an expression of value 24 that uses the prompt's last four numbers once each.

    `= 24` may follow it, and words with a colon may precede it.
    """
    numbers = sorted(int(n) for n in re.findall(r"\d+", demo.prompt)[-4:])
    return any(_solves(line, numbers) for line in solution.splitlines())


def _solves(line: str, numbers: list[int]) -> bool:
    text = line.translate(_SIGNS).rpartition(":")[2].strip().strip("`$*. ")
    text, _, value = text.partition("=")
    if value.strip() not in ("", str(TARGET)):
        return False
    result = evaluated(text)
    return result is not None and result[0] == TARGET and sorted(result[1]) == numbers


def evaluated(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression of integers, + - * / and parentheses, and its numbers in order; None if it is
    anything else, too long, or divides by 0."""
    if len(text) > LONGEST:
        return None
    numbers: list[int] = []
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            numbers.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, numbers), _evaluate(right, numbers)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise ValueError("not an expression of whole numbers")


def sorted_words(solution: str, demo: Demo) -> bool:
    """Whether the solution is the words after the prompt's `List:` in alphabetical order.

    They may be separated by white space or commas, or be a Python list; list numbers (`1.`) are ignored.
    """
    expected = sorted(_LISTED.sub("", demo.prompt).split())
    return bool(expected) and _words(solution) == expected


def _words(text: str) -> list[str]:
    text = text.strip().strip("`").strip()
    if text.startswith("["):
        try:
            items = ast.literal_eval(text)
            return [str(word) for word in items] if isinstance(items, list) else []
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    plain = re.sub(r"^\s*(?:\d+[.)]|[-*])\s+", "", text, flags=re.MULTILINE)
    return [word for part in re.split(r"[\s,]+", plain) if (word := part.strip("\"'."))]


CHECKERS: dict[str, Callable[[str, Demo], bool]] = {"game24": game24, "sorted-words": sorted_words}

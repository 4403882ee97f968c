"""Whether an answer solves its problem, where many answers do or the form varies. What is checked is never run.

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
    """Whether a line of the solution is an expression of value 24 that has each of the prompt's last four numbers once.

    `= 24` may follow, and words with a colon precede it.
    """
    wanted = sorted(int(n) for n in re.findall(r"\d+", demo.prompt)[-4:])
    return any(_makes(line, wanted) for line in solution.splitlines())


def _makes(line: str, wanted: list[int]) -> bool:
    text = line.translate(_SIGNS).rpartition(":")[2].strip().strip("`$*. ")
    text, _, value = text.partition("=")
    if value.strip() not in ("", str(TARGET)):
        return False
    found = evaluated(text)
    return found is not None and found[0] == TARGET and sorted(found[1]) == wanted


def evaluated(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression of whole numbers, + - * / and parentheses, and its numbers in order; None where
    it is anything else, too long, or divides by 0."""
    if len(text) > LONGEST:
        return None
    numbers: list[int] = []
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            numbers.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, numbers), _value(right, numbers)
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

    They stand apart by white space or commas, or in a Python list; numbers of a list (`1.`) do not count.
    """
    wanted = sorted(_LISTED.sub("", demo.prompt).split())
    return bool(wanted) and _words(solution) == wanted


def _words(text: str) -> list[str]:
    text = text.strip().strip("`").strip()
    if text.startswith("["):
        try:
            found = ast.literal_eval(text)
            return [str(word) for word in found] if isinstance(found, list) else []
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    plain = re.sub(r"^\s*(?:\d+[.)]|[-*])\s+", "", text, flags=re.MULTILINE)
    return [word for part in re.split(r"[\s,]+", plain) if (word := part.strip("\"'."))]


CHECKERS: dict[str, Callable[[str, Demo], bool]] = {"game24": game24, "sorted-words": sorted_words}

"""Whether a worked solution comes to the right answer: what its answer is, and whether that is accepted."""

from __future__ import annotations

import re

from didact.evaluate import qa
from didact.infer import functions
from didact.types import AnswerCheck, Demo, UserError

MARK = re.compile(r"(?:#+|answer(?: is)?:?)\s*(.+)", re.IGNORECASE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
BARE = re.compile(rf"[$€£#]*\s*(?:{NUMBER.pattern})\s*%?\.?")
"""A number and nothing else but its currency or per cent."""


def final(text: str) -> str:
    """The answer a text comes to: what follows its last `#`, `answer is` or `answer:`, else its last line."""
    marked = MARK.findall(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return str(marked[-1] if marked else lines[-1] if lines else "").strip().rstrip(".")


def reference(demo: Demo) -> str:
    """The worked solution: the completion, after the explanation where there is one."""
    return f"{demo.explanation}\n{demo.completion}" if demo.explanation else demo.completion


def hint(demo: Demo) -> str:
    """The answer alone, in words."""
    return f"The answer is {(demo.answers or [final(reference(demo))])[0]}."


def number(text: str) -> str | None:
    """The last number in a text, without the commas of its thousands."""
    found = NUMBER.findall(text)
    return str(found[-1]).replace(",", "") if found else None


def same(a: str, b: str) -> bool:
    """Whether two answers are equal: as numbers where either is nothing but one (`$7` is `7 apples`), else as text
    but for case, articles and punctuation."""
    x, y = number(a), number(b)
    if x is not None and y is not None and (BARE.fullmatch(a.strip()) or BARE.fullmatch(b.strip())):
        return _value(x) == _value(y)
    return qa.normalise(a) == qa.normalise(b) != ""


def right(text: str, demo: Demo) -> bool:
    """Whether a text comes to one of the demonstration's `answers`, or to what its completion comes to."""
    wanted = demo.answers or [final(demo.completion)]
    return any(same(final(text), answer) for answer in wanted)


def last_number(text: str, demo: Demo) -> bool:
    """Whether the last number in a text is that of one of the `answers`, or of the completion."""
    said = number(text)
    wanted = [number(a) for a in demo.answers or [demo.completion]]
    return said is not None and any(w is not None and _value(said) == _value(w) for w in wanted)


def checker(given: str | AnswerCheck) -> AnswerCheck:
    """`final`, `number`, or `module:function`, a function of a solution and its `Demo`; or such a function itself.

    Raises:
        UserError: no such thing; or, when called, what a function of the user's raised.
    """
    if not isinstance(given, str):
        return given
    if given in ("final", "number"):
        return right if given == "final" else last_number
    found = functions.imported(given, "checker")

    def safe(text: str, demo: Demo) -> bool:
        try:
            return bool(found(text, demo))
        except Exception as error:
            raise UserError(f"{given} raised {type(error).__name__}: {error}") from error

    return safe


def _value(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)

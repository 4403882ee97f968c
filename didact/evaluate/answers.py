"""Whether a worked solution comes to the right answer: what its answer is, and whether that is accepted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from didact.data import words
from didact.evaluate import qa
from didact.infer import functions
from didact.tools import checkers
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
    """`final`, `number`, one of `tools.checkers` (`game24`, `sorted-words`), or `module:function`, a function of a
    solution and its `Demo`; or such a function itself.

    Raises:
        UserError: no such thing; or, when called, what a function of the user's raised.
    """
    if not isinstance(given, str):
        return given
    known = {"final": right, "number": last_number, **checkers.CHECKERS}
    if given in known:
        return known[given]
    found = functions.imported(given, "checker")

    def safe(text: str, demo: Demo) -> bool:
        try:
            return bool(found(text, demo))
        except Exception as error:
            raise UserError(f"{given} raised {type(error).__name__}: {error}") from error

    return safe


Extractor = Callable[[str, Demo], str | None]


def extractor(spec: str) -> Extractor:
    """What finds the final answer in a text: of a model, or a record's own completion.

    `number` is the one after the first `####`, `answer is` or `answer:`, else the last one; `choice` the first of the
    record's `choices` that is named; `regex:PATTERN` the first match, or its first group.

    Raises:
        UserError: none of these.
    """
    kind, _, pattern = spec.partition(":")
    if spec == "number":
        return lambda text, demo: (
            number(found[1]) if (found := MARK.search(text)) and number(found[1]) else number(text)
        )
    if spec == "choice":
        return _named
    if kind != "regex" or not pattern:
        raise UserError(f"--final-answer {spec}: number, choice or regex:PATTERN is expected")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--final-answer {spec}: not a regular expression: {error}") from None
    return lambda text, demo: (found[1] if compiled.groups else found[0]) if (found := compiled.search(text)) else None


def _named(text: str, demo: Demo) -> str | None:
    """The first choice named in a text, whole words; the longest where several begin at one place."""
    text, places = words.folded(text), []
    for choice in demo.choices or ():
        if found := re.search(words.whole(re.escape(words.key(choice))), text, re.IGNORECASE):
            places.append((found.start(), -len(choice), choice))
    return min(places)[2] if places else None


def checked(spec: str | None, protocols: Sequence[str]) -> None:
    """Refuse a way of finding final answers that is none, or that nothing would ask for.

    Raises:
        UserError: it is.
    """
    if spec is not None:
        extractor(spec)
        if "answer" not in protocols:
            raise UserError(
                f"--final-answer {spec}: goes with the protocol answer, this is {', '.join(protocols) or 'none'}"
            )


def finals(spec: str, demos: Sequence[Demo]) -> list[list[str]]:
    """The final answers that count as right, of every record.

    Raises:
        UserError: a record has none.
    """
    find = extractor(spec)
    out = []
    for i, demo in enumerate(demos, 1):
        found = demo.answers or [f for text in (demo.completion, reference(demo)) if (f := find(text, demo))][:1]
        if not found:
            raise UserError(
                f"--final-answer {spec}: record {i} has no such answer in its completion: {demo.completion[-60:]!r}"
            )
        out.append(list(found))
    return out


def _value(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)

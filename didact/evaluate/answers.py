"""The final answer of a worked solution: how to extract it, and whether it is correct."""

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
"""A number alone, with its currency or per cent sign."""


def final(text: str) -> str:
    """Return a text's final answer: what follows its last `#`, `answer is` or `answer:`, else its last line."""
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
    numbers = NUMBER.findall(text)
    return str(numbers[-1]).replace(",", "") if numbers else None


def same(a: str, b: str) -> bool:
    """Whether two answers are equal: as numbers where either is only a number (`$7` equals `7 apples`), else as text,
    ignoring case, articles and punctuation."""
    x, y = number(a), number(b)
    if x is not None and y is not None and (BARE.fullmatch(a.strip()) or BARE.fullmatch(b.strip())):
        return _value(x) == _value(y)
    return qa.normalise(a) == qa.normalise(b) != ""


def right(text: str, demo: Demo) -> bool:
    """Whether a text's final answer is one of the demonstration's `answers`, or that of its completion."""
    gold = demo.answers or [final(demo.completion)]
    return any(same(final(text), answer) for answer in gold)


def last_number(text: str, demo: Demo) -> bool:
    """Whether the last number in a text equals that of one of the `answers`, or of the completion."""
    answer = number(text)
    gold = [number(a) for a in demo.answers or [demo.completion]]
    return answer is not None and any(g is not None and _value(answer) == _value(g) for g in gold)


def checker(spec: str | AnswerCheck) -> AnswerCheck:
    """Return the answer check that `spec` names: `final`, `number`, one of `tools.checkers` (`game24`, `sorted-words`)
    or `module:function`, a function of a solution and its `Demo`; a function is returned unchanged.

    Raises:
        UserError: unknown check; when the returned check is called: the user's function raised an exception.
    """
    if not isinstance(spec, str):
        return spec
    builtin = {"final": right, "number": last_number, **checkers.CHECKERS}
    if spec in builtin:
        return builtin[spec]
    check = functions.import_function(spec, "checker")

    def safe(text: str, demo: Demo) -> bool:
        try:
            return bool(check(text, demo))
        except Exception as error:
            raise UserError(f"{spec} raised {type(error).__name__}: {error}") from error

    return safe


Extractor = Callable[[str, Demo], str | None]


def extractor(spec: str) -> Extractor:
    """Return a function that finds the final answer in a model's text or in a record's own completion.

    `number` takes the number after the first `####`, `answer is` or `answer:`, else the last one; `choice` the first of
    the record's `choices` that occurs; `regex:PATTERN` the first match, or its first group.

    Raises:
        UserError: any other `spec`.
    """
    kind, _, pattern = spec.partition(":")
    if spec == "number":
        return lambda text, demo: (
            number(match[1]) if (match := MARK.search(text)) and number(match[1]) else number(text)
        )
    if spec == "choice":
        return _first_choice
    if kind != "regex" or not pattern:
        raise UserError(f"--final-answer {spec}: expected number, choice or regex:PATTERN")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--final-answer {spec}: not a regular expression: {error}") from None
    return lambda text, demo: (match[1] if compiled.groups else match[0]) if (match := compiled.search(text)) else None


def _first_choice(text: str, demo: Demo) -> str | None:
    """The first choice that occurs in a text as whole words; the longest if several start at the same position."""
    text, matches = words.folded(text), []
    for choice in demo.choices or ():
        if match := re.search(words.whole(re.escape(words.key(choice))), text, re.IGNORECASE):
            matches.append((match.start(), -len(choice), choice))
    return min(matches)[2] if matches else None


def checked(spec: str | None, protocols: Sequence[str]) -> None:
    """Check `--final-answer`: a valid `spec`, and a run with the protocol `answer`, the only one that uses it.

    Raises:
        UserError: it is invalid, or `answer` is not among the protocols.
    """
    if spec is not None:
        extractor(spec)
        if "answer" not in protocols:
            raise UserError(
                f"--final-answer {spec}: needs the protocol answer; this run uses {', '.join(protocols) or 'none'}"
            )


def finals(spec: str, demos: Sequence[Demo]) -> list[list[str]]:
    """Return the accepted final answers of every record.

    Raises:
        UserError: a record has none.
    """
    find = extractor(spec)
    out = []
    for i, demo in enumerate(demos, 1):
        gold = demo.answers or [f for text in (demo.completion, reference(demo)) if (f := find(text, demo))][:1]
        if not gold:
            raise UserError(
                f"--final-answer {spec}: record {i} has no such answer in its completion: {demo.completion[-60:]!r}"
            )
        out.append(list(gold))
    return out


def _value(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)

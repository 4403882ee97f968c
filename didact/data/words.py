"""Words of a text in any script: what measures of overlap count. Pure, without torch or numpy.

A word is a run of letters, digits and their marks; scripts that put no spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese, Tibetan, Javanese ...) are cut letter by letter, each with its marks.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LETTER = re.compile(f"[{UNSPACED}]")


def alone(letter: str) -> bool:
    """Whether a letter is of a script that puts no spaces between words."""
    return bool(_LETTER.match(letter))


def foreign(text: str) -> bool:
    """Whether any of its letters or digits is beyond ASCII: tools made for English drop it."""
    return not text.isascii() and any(c > "\x7f" and unicodedata.category(c)[0] in "LMN" for c in text)


def words(text: str) -> list[str]:
    """The words of a text in one normal form, in the case they have."""
    return _cut(text, lambda c: unicodedata.category(c)[0] in "LN")


def tokens(text: str) -> list[str]:
    """What stands between white space, punctuation with it; letters of scripts without spaces one by one."""
    return _cut(text, lambda c: not c.isspace()) if foreign(text) else text.split()


def whole(pattern: str) -> str:
    """A regular expression that finds what `pattern` does where it is no part of a longer word."""
    marks = _marks()
    before = rf"(?<![^\W{UNSPACED}])(?<!(?![{UNSPACED}])[{marks}])"
    return rf"{before}(?:{pattern})(?![^\W{UNSPACED}])(?![{marks}])"


@functools.cache
def _marks() -> str:
    """All marks, as a regular expression's class has them: Python takes them for no part of a word."""
    return "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")


def folded(text: str) -> str:
    """A text by which two are compared: one normal form, so that an accent is the same letter however it is written."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def key(text: str) -> str:
    """What answers, choices and labels are compared by: to the letter, but for white space around and normal forms."""
    return folded(text).strip()


def label(value: Any) -> Any:
    """The class that a value stands for: a text by its key, any other as it is."""
    return key(value) if isinstance(value, str) else value


def distinct(texts: Iterable[str]) -> list[str]:
    """Texts in their order, the first of those that are compared as one."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(key(text), text)
    return list(first.values())


def _cut(text: str, inside: Callable[[str], bool]) -> list[str]:
    out: list[str] = []
    grows = inword = False  # whether the last one may go on; whether the last character is of it
    for c in folded(text):
        if unicodedata.category(c) == "Cf":  # not seen: of the direction of writing, or between joined letters
            continue
        if unicodedata.category(c)[0] == "M":
            if inword:  # a mark goes with what it marks
                out[-1] += c
            continue
        inword = alone(c) or inside(c)
        if alone(c):
            out.append(c)
            grows = False
        elif inword:
            if grows:
                out[-1] += c
            else:
                out.append(c)
            grows = True
        else:
            grows = False
    return out

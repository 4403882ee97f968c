"""Words of a text in any script, as measures of overlap count them. Pure, without torch or numpy.

A word is a run of letters, digits and their combining marks; scripts that put no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese, Tibetan, Javanese ...) are cut letter by letter, each with its marks.
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
    """Whether a letter belongs to a script that puts no spaces between words."""
    return bool(_LETTER.match(letter))


def foreign(text: str) -> bool:
    """Whether any letter or digit of a text is beyond ASCII: tools made for English drop it."""
    return not text.isascii() and any(c > "\x7f" and unicodedata.category(c)[0] in "LMN" for c in text)


def words(text: str) -> list[str]:
    """The words of a text in one normal form; case is kept."""
    return _cut(text, lambda c: unicodedata.category(c)[0] in "LN")


def tokens(text: str) -> list[str]:
    """Tokens between white space, punctuation included; scripts without spaces are split into letters."""
    return _cut(text, lambda c: not c.isspace()) if foreign(text) else text.split()


def whole(pattern: str) -> str:
    """A regular expression that matches `pattern` where it is not part of a longer word."""
    marks = _marks()
    before = rf"(?<![^\W{UNSPACED}])(?<!(?![{UNSPACED}])[{marks}])"
    return rf"{before}(?:{pattern})(?![^\W{UNSPACED}])(?![{marks}])"


@functools.cache
def _marks() -> str:
    """All combining marks, for a character class: Python does not count them as parts of words."""
    return "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")


def folded(text: str) -> str:
    """Normalise a text for comparison: an accented letter is the same however it is encoded."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def key(text: str) -> str:
    """The comparison key of answers, choices and labels: exact up to surrounding white space and normal form."""
    return folded(text).strip()


def label(value: Any) -> Any:
    """The class of a value: the key of a text, any other value itself."""
    return key(value) if isinstance(value, str) else value


def distinct(texts: Iterable[str]) -> list[str]:
    """Texts in their order, only the first of those with the same key."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(key(text), text)
    return list(first.values())


def _cut(text: str, inside: Callable[[str], bool]) -> list[str]:
    out: list[str] = []
    grows = inword = False  # whether the last word may grow; whether the last character belongs to it
    for c in folded(text):
        if unicodedata.category(c) == "Cf":  # invisible: direction marks and joiners
            continue
        if unicodedata.category(c)[0] == "M":
            if inword:  # a combining mark belongs to the character before it
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

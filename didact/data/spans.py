"""Spans of a text: windows that fit, spans that recur, spans masked for a model to fill in. Pure: text to text.

A span is a pair of character offsets `(first, last)`; words are runs of letters and digits, with the marks inside
them ("3.5", "re-tokenised").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from didact.types import UserError

Span = tuple[int, int]
LONGEST = 10  # most words of a recurring span
WORD = re.compile(r"\w+(?:[.,'’\-]\w+)*")
SENTENCE_END = re.compile(r"[.!?\n]")
STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just may me might more most must my myself no nor not now
    of off on once one only or other our ours out over own s same shall she should so some such t than that the their
    theirs them themselves then there these they this those through to too two under until up upon us very was we were
    what when where which while who whom why will with would you your yours""".split()
)


class Masked(NamedTuple):
    """A text with one span taken out, and the span."""

    text: str
    span: str


def windows(text: str, fits: Callable[[str], bool], size: int = 512, stride: int = 120) -> list[str]:
    """The text itself if it fits, else overlapping pieces of it that all do.

    A window begins every `stride` words and is `size` words long; while one does not fit, the size shrinks by a tenth
    (and the stride to the size, so that no word falls between two windows).

    Raises:
        UserError: not even one word fits.
    """
    if fits(text):
        return [text]
    words = [m.span() for m in re.finditer(r"\S+", text)]
    size = min(size, len(words))
    while size >= 1:
        step = min(stride, size)
        starts = range(0, max(len(words) - size, 0) + step, step)
        pieces = [text[words[s][0] : words[min(s + size, len(words)) - 1][1]] for s in starts if s < len(words)]
        if all(fits(p) for p in pieces):
            return pieces
        size = min(size - 1, int(0.9 * size))
    raise UserError("the question and the template leave no room for the passage: shorten one of them")


def ngrams(text: str, longest: int = LONGEST) -> dict[int, list[Span]]:
    """Spans of 1 to `longest` words within a sentence, by their number of words."""
    words = [m.span() for m in WORD.finditer(text)]
    cut = [bool(SENTENCE_END.search(text, a[1], b[0])) for a, b in itertools.pairwise(words)]
    ends = np.cumsum([0, *cut])
    return {
        n: [(words[i][0], words[i + n - 1][1]) for i in range(len(words) - n + 1) if ends[i] == ends[i + n - 1]]
        for n in range(1, longest + 1)
    }


def recurring(text: str, longest: int = LONGEST, stop_words: frozenset[str] = STOP_WORDS) -> dict[str, list[Span]]:
    """The occurrences of every recurring span: `{span: [(first, last), ...]}`, the longest first.

    A recurring span has at most `longest` words, occurs twice or more (character for character, at two places that do
    not overlap), has a word that is not a stop word, crosses no sentence end, and is maximal: one whose every
    occurrence lies inside a longer recurring span is left out.
    """
    out: dict[str, list[Span]] = {}
    covered: list[Span] = []
    for spans in (grams for _, grams in sorted(ngrams(text, longest).items(), reverse=True)):
        places: dict[str, list[Span]] = {}
        for first, last in spans:
            places.setdefault(text[first:last], []).append((first, last))
        maximal = {
            span: at
            for span, at in places.items()
            if len(at) > 1
            and at[0][1] <= at[-1][0]
            and any(w.lower() not in stop_words for w in WORD.findall(span))
            and not all(any(a <= first and last <= b for a, b in covered) for first, last in at)
        }
        out |= maximal
        covered += [place for at in maximal.values() for place in at]
    return out


def recurring_place(text: str, rng: np.random.Generator, later: bool = False, longest: int = LONGEST) -> Span | None:
    """Draw one occurrence of a recurring span that also occurs elsewhere in the text; None if nothing recurs.

    The span is drawn uniformly, then the occurrence, among those that some other one does not overlap (`later`: that
    some other one precedes).
    """
    recurrent = recurring(text, longest)
    if not recurrent:
        return None
    places = recurrent[sorted(recurrent)[rng.integers(len(recurrent))]]
    first, last = places[0], places[-1]
    candidates = [p for p in places if first[1] <= p[0] or (p[1] <= last[0] and not later)]
    return candidates[rng.integers(len(candidates))]


def random_place(text: str, rng: np.random.Generator, later: bool = False, longest: int = LONGEST) -> Span | None:
    """The control: draw any span with as many words as a recurring span of this text (`later`: not at its beginning);
    None if nothing recurs."""
    recurrent = recurring(text, longest)
    if not recurrent:
        return None
    length = len(WORD.findall(sorted(recurrent)[rng.integers(len(recurrent))]))
    spans = ngrams(text, longest)[length][int(later) :]
    return spans[rng.integers(len(spans))] if spans else None


def lines(text: str) -> list[str]:
    """The lines of a text with their line ends; joined, they are the text."""
    return text.splitlines(keepends=True)


def sentences(text: str) -> list[str]:
    """The sentences of a text; joined, they are the text. Each ends with `.`, `!` or `?` before white space, or a line.

    The white space goes with the next sentence.
    """
    return [s for s in re.split(r"(?<=[.!?])(?=\s)|(?<=\n)", text) if s]


def cut(text: str, span: Span) -> Masked:
    """The text before a span, and the span: infilling for a model that only reads forward."""
    return Masked(text[: span[0]].rstrip(), text[slice(*span)])


def masked(text: str, spans: Sequence[Span], marks: Sequence[str]) -> Masked:
    """The text with `marks[k]` in place of its k-th span, and the spans taken out, in order.

    The spans do not overlap. From two spans on, the answer names each by its mark:
    `<extra_id_0>first<extra_id_1>second`.
    """
    order = sorted(spans)
    out, at = "", 0
    for (first, last), mark in zip(order, marks, strict=True):
        out += text[at:first] + mark
        at = last
    texts = [text[a:b] for a, b in order]
    answer = texts[0] if len(texts) == 1 else "".join(m + t for m, t in zip(marks, texts, strict=True))
    return Masked(out + text[at:], answer)

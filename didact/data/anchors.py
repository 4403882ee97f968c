"""Anchors: expressions that only the target text uses, what generic text says instead, and where the two texts meet.

A dictionary is given, found by counting (`extract`), or asked from a language model (`asked`). `blocks` cuts texts,
translates every block by the dictionary and aligns the tokens of both. Pure: text and a tokenizer, no weights.

Source: Eldan and Russinovich 2023, arXiv:2310.02238, section 2. No code was released; the alignment is ours.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from didact.data import encode, spans
from didact.data import words as forms
from didact.data.encode import TokenizedExample
from didact.types import LM, UserError

RUN = re.compile(r"[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*")  # capitalised words in a row
BORDER = "|"  # stands for the word before a sentence's first and after its last
QUESTION = """List the names, places and other expressions of the passage that belong to its world only. Give each a \
generic expression that could stand in its place, one a line, as: expression -> replacement

Passage: {text}

List:
"""


class Replaced(NamedTuple):
    """One replacement: `text[first:last]` became `counterpart`, which begins at `at` of the translated text."""

    first: int
    last: int
    at: int
    term: str
    counterpart: str


@dataclass(frozen=True)
class Translation:
    """A text with anchors replaced, and what was replaced, in order."""

    source: str
    text: str
    replaced: tuple[Replaced, ...]

    def place(self, at: int) -> int | None:
        """Where the translated text has what the source has at character `at`; None where it has no such place.

        Inside an anchor that is the case only as far as the counterpart begins with the same letters.
        """
        k = bisect.bisect_right([r.first for r in self.replaced], at) - 1
        if k < 0:
            return at
        r = self.replaced[k]
        if at >= r.last:
            return at - r.last + r.at + len(r.counterpart)
        inside = at - r.first
        return r.at + inside if self.source[r.first : at] == r.counterpart[:inside] else None


@dataclass(frozen=True)
class Block:
    """One piece of target text beside its translation; everything below is by label token of `row`, `(n,)`.

    Args:
        text: of the piece.
        row: its tokens, labels from the first that can be predicted.
        other: the translation's tokens, in the same form.
        to: which label of `other` stands at the same place; -1 where none does.
        anchor: which anchor, counted in the block, a token belongs to; -1 is none.
        repeated: whether it belongs to a second or later occurrence of a term.
        alias: `(l, tokens)`: from label l on a term has been named, and `tokens` would begin its counterpart.
    """

    text: str
    row: TokenizedExample
    other: TokenizedExample
    to: tuple[int, ...]
    anchor: tuple[int, ...]
    repeated: tuple[bool, ...]
    alias: tuple[tuple[int, tuple[int, ...]], ...]


def translate(text: str, anchors: Mapping[str, str]) -> Translation:
    """Replace every anchor, the longest first, in whatever case it stands: `HARRY` by `JON`."""
    terms = {t.lower(): (t, c) for t, c in anchors.items() if t.strip()}
    if not terms:
        return Translation(text, text, ())
    longest = sorted(terms, key=lambda t: (-len(t), t))
    pattern = re.compile(forms.whole("|".join(map(re.escape, longest))), re.IGNORECASE)
    out, done, replaced = "", 0, []
    for found in pattern.finditer(text):
        term, counterpart = terms.get(found[0].lower(), (found[0], found[0]))
        out += text[done : found.start()]
        counterpart = _cased(found[0], term, counterpart)
        replaced.append(Replaced(found.start(), found.end(), len(out), term, counterpart))
        out += counterpart
        done = found.end()
    return Translation(text, out + text[done:], tuple(replaced))


def blocks(tokenizer: Any, texts: Sequence[str], anchors: Mapping[str, str], length: int, context: int) -> list[Block]:
    """Texts in blocks of at most `length` tokens, cut before a word, each with its translation.

    Raises:
        UserError: the tokenizer does not say which characters its tokens stand for; no text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("this tokenizer does not say where its tokens stand in the text; a fast one is needed")
    out = [
        _block(tokenizer, piece, anchors, last, length, context)
        for text in texts
        for piece, last in _pieces(tokenizer, text, length - 2)  # the start and end token need room
    ]
    kept = [b for b in out if b.row.completion]
    if not kept:
        raise UserError("target: no text to forget")
    return kept


def extract(
    target: Sequence[str], general: Sequence[str], most: int = 1500, least: int = 2, ratio: float = 4.0
) -> dict[str, str]:
    """A dictionary found by counting: no model is asked.

    A term is a run of capitalised words, or one word, that stands `least` times in the target and there `ratio`
    times as often as in general text (shares of words, half a count added). Its counterpart is the term of general
    text with the most similar neighbours, the cosine of counts of the words before and after; each is used once
    while there are others.
    """
    ours, theirs = _terms(target), _terms(general)
    n_ours, n_theirs = sum(map(_words, target)) or 1, sum(map(_words, general)) or 1

    def score(term: str) -> float:
        n, n_other = ours[term].total() if term in ours else 0, theirs[term].total() if term in theirs else 0
        return math.log((n + 0.5) / n_ours) - math.log((n_other + 0.5) / n_theirs)

    found = [t for t, near in ours.items() if near.total() >= 2 * least and score(t) >= math.log(ratio)]
    # A word that only stands inside a longer term is that term's, not its own.
    found = [t for t in found if not any(t != o and t in o.split() and ours[o] >= ours[t] for o in found)]
    chosen = sorted(found, key=lambda t: (-ours[t].total(), t))[:most]
    pool = [t for t in theirs if t not in chosen and score(t) < 0]
    used: Counter[str] = Counter()
    out = {}
    for term in chosen:
        alike = [p for p in pool if p[0].isupper() == term[0].isupper()]
        if alike:
            least_used = min(used[p] for p in alike)
            free = [p for p in alike if used[p] == least_used]
            out[term] = max(free, key=lambda p: (_cosine(ours[term], theirs[p]), theirs[p].total(), p))
            used[out[term]] += 1
    return out


def asked(lm: LM, texts: Sequence[str], max_new_tokens: int = 256) -> dict[str, str]:
    """A dictionary as a language model gives it, passage by passage; the first counterpart of a term stays.

    Lines that are not of the form asked for, terms the passage does not have, and counterparts that are terms
    themselves are dropped.
    """
    replies = lm.generate([QUESTION.format(text=t) for t in texts], max_new_tokens, stop=("\n\n",))
    out: dict[str, str] = {}
    for text, (reply, *_) in zip(texts, replies, strict=True):
        for line in reply.splitlines():
            term, _, counterpart = (part.strip(" -*\t\"'") for part in line.partition("->"))
            if term and counterpart and term.lower() != counterpart.lower() and term in text:
                out.setdefault(term, counterpart)
    return {t: c for t, c in out.items() if c not in out}


def _pieces(tokenizer: Any, text: str, length: int) -> Iterator[tuple[str, bool]]:
    """Pieces of at most `length` tokens, and whether each is the last of its text."""
    offsets = _offsets(tokenizer, text)[1]
    first = 0
    while len(offsets) - first > length:
        cut = first + length
        while cut > first + 1 and not _begins_word(text, offsets[cut][0]):
            cut -= 1
        cut = cut if cut > first + 1 else first + length
        yield text[offsets[first][0] : offsets[cut][0]], False
        first = cut
    if first < len(offsets):
        yield text[offsets[first][0] :], True


def _block(tokenizer: Any, text: str, anchors: Mapping[str, str], last: bool, length: int, context: int) -> Block:
    translated = translate(text, anchors)
    ids, at = _offsets(tokenizer, text)
    other_ids, other_at = _offsets(tokenizer, translated.text)
    # A token before a space and one after it begin at different letters; those of one letter are counted.
    spots = {spot: k for k, spot in enumerate(_spots(other_at))}
    to = []
    for first, number in _spots(at):
        there = translated.place(first)
        to.append(spots.get((there, number), -1) if there is not None else -1)
    anchor, repeated = [-1] * len(ids), [False] * len(ids)
    seen: set[str] = set()
    alias: list[tuple[int, tuple[int, ...]]] = []
    for k, r in enumerate(translated.replaced):
        for j, (first, end) in enumerate(at):
            if end > r.first and first < r.last:
                anchor[j], repeated[j] = k, r.term in seen
        if r.term not in seen and r.counterpart.lower() != r.term.lower():
            after = next((j for j, (first, _) in enumerate(at) if first >= r.last), len(ids))
            alias.append((after, _beginnings(tokenizer, r)))
        seen.add(r.term)
    if last and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        other_ids.append(tokenizer.eos_token_id)
        to, anchor, repeated = [*to, len(other_ids) - 1], [*anchor, -1], [*repeated, False]
    start = encode.prompt_ids(tokenizer, "", "causal")
    skip = 0 if start else 1  # without a start token nothing precedes the first
    ids, other_ids = ids[: length - len(start)], other_ids[: context - len(start)]
    room = len(other_ids) - skip
    to = [j - skip if skip <= j < room + skip else -1 for j in to[skip : len(ids)]]
    return Block(
        text, _row(start, ids), _row(start, other_ids), tuple(to), tuple(anchor[skip : len(ids)]),
        tuple(repeated[skip : len(ids)]), tuple((max(0, j - skip), tokens) for j, tokens in alias),
    )  # fmt: skip


def _row(start: list[int], ids: list[int]) -> TokenizedExample:
    return TokenizedExample(tuple(start or ids[:1]), tuple(ids if start else ids[1:]))


def _offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(read["input_ids"]), [(int(a), int(b)) for a, b in read["offset_mapping"]]


def _spots(offsets: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where every token begins, and how many before it begin there too (the bytes of one letter)."""
    seen: Counter[int] = Counter()
    for first, _ in offsets:
        yield first, seen[first]
        seen[first] += 1


def _begins_word(text: str, at: int) -> bool:
    return text[at].isspace() or text[at - 1].isspace()


def _beginnings(tokenizer: Any, r: Replaced) -> tuple[int, ...]:
    """Tokens a counterpart begins with, with and without a space, that its term does not begin with too."""

    def first(text: str) -> set[int]:
        return {encode.located(tokenizer, s + text)[0][0] for s in ("", " ")}

    return tuple(sorted(first(r.counterpart) - first(r.term)))


def _cased(found: str, term: str, counterpart: str) -> str:
    if found == term:
        return counterpart
    if found.isupper():
        return counterpart.upper()
    return counterpart.lower() if found.islower() else counterpart[:1].upper() + counterpart[1:]


def _terms(texts: Sequence[str]) -> dict[str, Counter[tuple[int, str]]]:
    """`{term: its neighbours}`, each with its side; a term that stands n times has 2 n neighbours."""
    near: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for sentence in (s for text in texts for s in re.split(r"(?<=[.!?])\s+|\n+", text)):
        runs = [m.span() for m in RUN.finditer(sentence)]
        inside = [w.span() for w in spans.WORD.finditer(sentence)]
        for first, last in {*filter(None, (_bare(sentence, r) for r in runs)), *inside}:
            term = re.sub(r"['’]s$", "", sentence[first:last])
            last = first + len(term)
            if term.lower() in spans.STOP_WORDS or not term[0].isalpha():
                continue
            before, after = spans.WORD.findall(sentence[:first]), spans.WORD.findall(sentence[last:])
            near[term][(-1, before[-1] if before else BORDER)] += 1
            near[term][(1, after[0] if after else BORDER)] += 1
    return near


def _bare(sentence: str, run: tuple[int, int]) -> tuple[int, int] | None:
    """A run less the stop words at its ends: `Where Mira Kolt` begins with the sentence, not with the name."""
    words = list(spans.WORD.finditer(sentence, *run))
    while words and words[0][0].lower() in spans.STOP_WORDS:
        words.pop(0)
    while words and words[-1][0].lower() in spans.STOP_WORDS:
        words.pop()
    return (words[0].start(), words[-1].end()) if words else None


def _words(text: str) -> int:
    return len(spans.WORD.findall(text))


def _cosine(a: Counter[tuple[int, str]], b: Counter[tuple[int, str]]) -> float:
    dot = sum(n * b[k] for k, n in a.items())
    size = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return dot / size if size else 0.0

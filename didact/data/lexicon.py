"""Bilingual word pairs: mined and cycle-checked, applied word by word, compared with a dictionary. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from didact.data import spans, words


@dataclass(frozen=True)
class Pair:
    """A word, its translation, the model's confidence, and the reason for its rejection; empty if it was kept."""

    source: str
    target: str
    score: float = 0.0
    reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether it passed the check."""
        return not self.reason


def frequent(texts: Iterable[str], limit: int) -> list[str]:
    """The most frequent words of letters only, in lower case; ties in order of first occurrence."""
    counts = Counter(w for text in texts for word in words.words(text) if (w := folded(word)).isalpha())
    return [w for w, _ in counts.most_common(limit)]


def folded(word: str) -> str:
    """Normalise a word for comparison: without case, surrounding white space and punctuation at its ends."""
    inside = words.words(word)
    text = word if not inside else word[word.find(inside[0]) : word.rfind(inside[-1]) + len(inside[-1])]
    return words.folded(text).strip().casefold()


def cycle_check(
    translations: Sequence[tuple[str, str | None, float]], back: Mapping[str, str | None], copies: bool = False
) -> list[Pair]:
    """Check which translations lead back to their word.

    Args:
        translations: words, their translations (None if none could be parsed) and the confidence of each.
        back: the back-translation of every translation.
        copies: whether a word may be its own translation: copied both ways, it always passes the check.
    """
    out = []
    for source, target, score in translations:
        returned = None if target is None else back.get(target)
        reason = ""
        if target is None or not folded(target):
            reason = "no translation"
        elif not copies and folded(source) == folded(target):
            reason = "copied"
        elif returned is None or folded(returned) != folded(source):
            reason = f"comes back as {returned}" if returned else "does not come back"
        out.append(Pair(source, target or "", score, reason))
    return out


def united(*directions: Sequence[Pair]) -> list[Pair]:
    """Merge the pairs of several rounds, one per source word: kept before rejected, then most confident, then first."""
    best: dict[str, Pair] = {}
    for pair in (p for some in directions for p in some):
        current = best.get(folded(pair.source))
        if current is None or (pair.kept, pair.score) > (current.kept, current.score):
            best[folded(pair.source)] = pair
    return list(best.values())


def turned(pairs: Iterable[Pair]) -> list[Pair]:
    """Swap source and target of pairs; of those with the same target, keep the most confident."""
    best: dict[str, Pair] = {}
    for p in pairs:
        current = best.get(folded(p.target))
        if current is None or p.score > current.score:
            best[folded(p.target)] = p
    return [Pair(p.target, p.source, p.score, p.reason) for p in best.values()]


def word_by_word(text: str, dictionary: Mapping[str, str]) -> str:
    """Replace every word by its translation, where it is; words without one and all other text stay.

    Args:
        text: a sentence. In scripts without spaces the longest entries are taken first.
        dictionary: translations by `folded` word.
    """
    out, at = "", 0
    for first, last in _spans(text, dictionary):
        out += text[at:first] + dictionary.get(folded(text[first:last]), text[first:last])
        at = last
    return out + text[at:]


def words_of(text: str, dictionary: Mapping[str, str]) -> list[str]:
    """The words of a text, as `word_by_word` splits it."""
    return [text[first:last] for first, last in _spans(text, dictionary)]


def _spans(text: str, dictionary: Mapping[str, str]) -> list[tuple[int, int]]:
    """Spans of the words of a text; a run of letters of a script without spaces is split by the dictionary."""
    longest = max(map(len, dictionary), default=1)
    out: list[tuple[int, int]] = []
    for match in spans.WORD.finditer(text):
        at, end = match.span()
        while at < end:
            size = end - at
            if words.alone(text[at]):
                tries = range(min(size, longest), 0, -1)
                size = next((n for n in tries if folded(text[at : at + n]) in dictionary), 1)
            out.append((at, at + size))
            at += size
    return out


@dataclass(frozen=True)
class Accuracy:
    """Mined pairs compared with a dictionary: precision over the pairs whose source word it has, recall over its
    requested words, and the number of these (`known`)."""

    precision: float
    recall: float
    known: int


def accuracy(pairs: Iterable[Pair], gold: Iterable[tuple[str, str]], requested: Iterable[str]) -> Accuracy:
    """Evaluate the kept pairs; a word may have several translations in the dictionary."""
    translations: dict[str, set[str]] = defaultdict(set)
    for source, target in gold:
        translations[folded(source)].add(folded(target))
    sources = {folded(word) for word in requested} & translations.keys()
    mined = [p for p in pairs if p.kept and folded(p.source) in sources]
    hits = {folded(p.source) for p in mined if folded(p.target) in translations[folded(p.source)]}
    return Accuracy(
        len(hits) / len(mined) if mined else 0.0, len(hits) / len(sources) if sources else 0.0, len(sources)
    )

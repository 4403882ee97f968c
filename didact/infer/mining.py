"""Demonstrations for a transduction that a model makes itself, of unpaired text: words, a dictionary, sentences.

Source: El Mekki and Abdul-Mageed 2025, arXiv:2410.11006; the word-level part as in SAIL (Li et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from didact.bounds import Count, Whole
from didact.data import lexicon, translation
from didact.data.lexicon import Pair
from didact.infer import lm as language_models
from didact.infer.ask import Asker

WORD_TOKENS = 12  # of a translated word, at most
PLACES = 3  # of a share that two sentences' coverage is compared by


@dataclass(frozen=True, kw_only=True)
class Words:
    """How the dictionary is mined.

    Args:
        count: of the most frequent words of the source text.
        shots: kept pairs that stand before a word when it is translated again.
        rounds: of translating again with shots; 0 keeps what zero-shot gave.
        both: also from the target side; both are united.
        copies: a word may be its own translation: copied both ways it passes every check, right or wrong.
    """

    count: Count = 1000
    shots: Whole = 10
    rounds: Whole = 1
    both: bool = False
    copies: bool = False


@dataclass(frozen=True)
class Mined:
    """A synthetic source of a natural target sentence: its place in the target text, how alike the two are, and why it
    was rejected."""

    source: str
    target: str
    index: int
    score: float = 0.0
    reason: str = ""


@dataclass
class Miner:
    """Asks one model for words and sentences of two languages, named `source` and `target`."""

    asker: Asker
    source: str
    target: str
    fell_back: int = 0
    scores: bool = field(init=False)

    def __post_init__(self) -> None:
        self.scores = language_models.lacks(self.asker.lm, "score") is None

    def dictionary(self, words: Sequence[str], how: Words, forward: bool = True) -> list[Pair]:
        """What became of every word, in the last round: translated, and back. Those that come back are kept."""
        shown: list[Pair] = []
        pairs: list[Pair] = []
        for again in range(how.rounds + 1):
            if again and not shown:
                break
            found = self._translated(words, shown, forward, f"words, round {again}")
            targets = list(dict.fromkeys(t for _, t, _ in found if t))
            returned = self._translated(targets, lexicon.turned(shown), not forward, f"words back, round {again}")
            back = {w: t for w, t, _ in returned}
            pairs = lexicon.cycled(found, back, how.copies)
            shown = sorted((p for p in pairs if p.kept), key=lambda p: -p.score)[: how.shots]
        return pairs

    def _translated(
        self, words: Sequence[str], shown: Sequence[Pair], forward: bool, role: str
    ) -> list[tuple[str, str | None, float]]:
        """Words, their translations and the mean log-prob of each; no word is shown its own translation."""
        names = (self.source, self.target) if forward else (self.target, self.source)
        prompts = [
            translation.asked_word(
                w, *names, ((p.source, p.target) for p in shown[::-1] if lexicon.folded(p.source) != lexicon.folded(w))
            )
            for w in words
        ]
        said = self.asker.ask(
            prompts, partial(translation.read, target=names[1]), role, max_new_tokens=WORD_TOKENS, stop=("\n",)
        )
        known = [(p, s) for p, s in zip(prompts, said, strict=True) if s]
        scored = self.asker.score(known) if self.scores else None
        likely = iter(scored or ())
        sure = [(f := next(likely)).logp / max(f.tokens, 1) if s and scored is not None else 0.0 for s in said]
        return list(zip(words, said, sure, strict=True))

    def weak(self, sentences: Sequence[str], pairs: Sequence[Pair], k: int) -> list[tuple[str, str]]:
        """`(word-by-word rendering, natural sentence)` of the k sentences of which the dictionary knows most, of equals
        the longer ones: a poor target beside a natural source."""
        known = table(pairs)
        rows = [(coverage(s, known), len(s.split()), s) for s in dict.fromkeys(sentences)]
        best = sorted(rows, key=lambda row: (-round(row[0], PLACES), -min(row[1], 12)))[:k]
        return [(lexicon.word_by_word(s, known), s) for _, _, s in best]

    def back(self, sentences: Sequence[str], shown: Sequence[tuple[str, str]], role: str) -> list[Mined]:
        """Natural target sentences with the model's own sources."""
        prompts = [translation.asked(y, self.target, self.source, (d for d in shown if d[0] != y)) for y in sentences]
        said = self.asker.ask(prompts, partial(translation.read, target=self.source), role, stop=("\n",))
        out = []
        for i, (x, y) in enumerate(zip(said, sentences, strict=True)):
            same = x is not None and lexicon.folded(x) == lexicon.folded(y)
            out.append(Mined(x or "", y, i, reason="no translation" if x is None else "copied" if same else ""))
        return out

    def translate(self, sentences: Sequence[str], shown: Sequence[Sequence[tuple[str, str]]], role: str) -> list[str]:
        """Each sentence after its own demonstrations; empty where no try could be read."""
        prompts = [translation.asked(x, self.source, self.target, d) for x, d in zip(sentences, shown, strict=True)]
        said = self.asker.ask(prompts, partial(translation.read, target=self.target), role, stop=("\n",))
        return [s or "" for s in said]


def table(pairs: Sequence[Pair]) -> dict[str, str]:
    """Pairs that were kept, by their folded source."""
    return {lexicon.folded(p.source): p.target for p in pairs if p.kept}


def coverage(sentence: str, known: dict[str, str]) -> float:
    """Share of a sentence's words that a dictionary has."""
    words = [lexicon.folded(w) for w in lexicon.words_of(sentence, known)]
    return sum(w in known for w in words) / len(words) if words else 0.0

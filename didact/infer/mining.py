"""Self-mining: a model builds translation demonstrations from unpaired text, by way of a word dictionary.

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

WORD_TOKENS = 12  # max_new_tokens of a word's translation
PLACES = 3  # decimals by which the coverage of two sentences is compared


@dataclass(frozen=True, kw_only=True)
class Words:
    """Options of dictionary mining.

    Args:
        count: of the most frequent words of the source text.
        shots: accepted pairs that serve as demonstrations when a word is translated again.
        rounds: repetitions with demonstrations; 0 keeps the zero-shot translations.
        both: mine from the target side too, and unite both dictionaries.
        copies: allow a word as its own translation: copied both ways it passes every check, right or wrong.
    """

    count: Count = 1000
    shots: Whole = 10
    rounds: Whole = 1
    both: bool = False
    copies: bool = False


@dataclass(frozen=True)
class Mined:
    """A synthetic source of a natural target sentence, the sentence's index in the target text, the similarity of the
    two, and why the pair was rejected."""

    source: str
    target: str
    index: int
    score: float = 0.0
    reason: str = ""


@dataclass
class Miner:
    """Prompts one model to translate words and sentences between the languages `source` and `target`."""

    asker: Asker
    source: str
    target: str
    fell_back: int = 0
    scores: bool = field(init=False)

    def __post_init__(self) -> None:
        self.scores = language_models.lacks(self.asker.lm, "score") is None

    def dictionary(self, words: Sequence[str], how: Words, forward: bool = True) -> list[Pair]:
        """Translate every word and back, in rounds; return the last round's pairs. Those that come back pass."""
        shots: list[Pair] = []
        pairs: list[Pair] = []
        for number in range(how.rounds + 1):
            if number and not shots:
                break
            translations = self._translated(words, shots, forward, f"words, round {number}")
            targets = list(dict.fromkeys(t for _, t, _ in translations if t))
            returned = self._translated(targets, lexicon.turned(shots), not forward, f"words back, round {number}")
            back = {w: t for w, t, _ in returned}
            if number and self.asker.ended:  # a round that the budget cut short does not replace a complete one
                break
            pairs = lexicon.cycle_check(translations, back, how.copies)
            shots = sorted((p for p in pairs if p.kept), key=lambda p: -p.score)[: how.shots]
        return pairs

    def _translated(
        self, words: Sequence[str], shots: Sequence[Pair], forward: bool, role: str
    ) -> list[tuple[str, str | None, float]]:
        """Return words, translations and their mean log-probs; a word's own pair is left out of its demonstrations."""
        names = (self.source, self.target) if forward else (self.target, self.source)
        prompts = [
            translation.word_prompt(
                w, *names, ((p.source, p.target) for p in shots[::-1] if lexicon.folded(p.source) != lexicon.folded(w))
            )
            for w in words
        ]
        translations = self.asker.ask(
            prompts, partial(translation.read, target=names[1]), role, max_new_tokens=WORD_TOKENS, stop=("\n",)
        )
        scorable = [(p, s) for p, s in zip(prompts, translations, strict=True) if s]
        scored = self.asker.score(scorable) if self.scores else None
        scores = iter(scored or ())
        means = [(f := next(scores)).logp / max(f.tokens, 1) if s and scored is not None else 0.0 for s in translations]
        return list(zip(words, translations, means, strict=True))

    def weak(self, sentences: Sequence[str], pairs: Sequence[Pair], k: int) -> list[tuple[str, str]]:
        """Return `(word-by-word translation, natural sentence)` of the k sentences that the dictionary covers best,
        longer ones first among equals: a poor target beside a natural source."""
        dictionary = table(pairs)
        rows = [(coverage(s, dictionary), len(s.split()), s) for s in dict.fromkeys(sentences)]
        best = sorted(rows, key=lambda row: (-round(row[0], PLACES), -min(row[1], 12)))[:k]
        return [(lexicon.word_by_word(s, dictionary), s) for _, _, s in best]

    def back(self, sentences: Sequence[str], shown: Sequence[tuple[str, str]], role: str) -> list[Mined]:
        """Back-translate: return natural target sentences with the model's own sources."""
        prompts = [
            translation.build_prompt(y, self.target, self.source, (d for d in shown if d[0] != y)) for y in sentences
        ]
        sources = self.asker.ask(prompts, partial(translation.read, target=self.source), role, stop=("\n",))
        out = []
        for i, (x, y) in enumerate(zip(sources, sentences, strict=True)):
            copied = x is not None and lexicon.folded(x) == lexicon.folded(y)
            out.append(Mined(x or "", y, i, reason="no translation" if x is None else "copied" if copied else ""))
        return out

    def translate(self, sentences: Sequence[str], shown: Sequence[Sequence[tuple[str, str]]], role: str) -> list[str]:
        """Translate each sentence after its own demonstrations; an empty text where no try could be read."""
        prompts = [
            translation.build_prompt(x, self.source, self.target, d) for x, d in zip(sentences, shown, strict=True)
        ]
        translations = self.asker.ask(prompts, partial(translation.read, target=self.target), role, stop=("\n",))
        return [s or "" for s in translations]


def table(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return the kept pairs as a dictionary from folded source to target."""
    return {lexicon.folded(p.source): p.target for p in pairs if p.kept}


def coverage(sentence: str, dictionary: dict[str, str]) -> float:
    """Return the share of a sentence's words that are in the dictionary."""
    words = [lexicon.folded(w) for w in lexicon.words_of(sentence, dictionary)]
    return sum(w in dictionary for w in words) / len(words) if words else 0.0

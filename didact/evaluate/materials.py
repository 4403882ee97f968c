"""What each material is worth for a translation: the same sentences under every set of materials, compared in pairs."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from didact.bounds import Count, Whole
from didact.data import materials, retrieval, translation
from didact.data.materials import LETTERS, Block, Material, Materials
from didact.evaluate import translation as scores
from didact.infer.ask import Asker
from didact.types import LM, Parallel, Record, UserError

NOTHING = "-"
FEW = 100  # sentences below which differences of some points are not established
POINTS = 3.0
SPARE = 8  # tokens that a prompt may have more than its parts
REFUSED = re.compile(
    r"\W*(?:i'?m sorry|i am sorry|i apologi|as an ai\b)|.{0,60}\b(?:unable|not able|cannot|can't) (?:to )?"
    r"(?:translate|provide|determine|help|assist)\b",
    re.IGNORECASE,
)
NUDGE = "Give your best guess, and nothing but the translation."


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How much of each material stands before a sentence.

    Args:
        words_each: dictionary entries for every word.
        pairs_each: sentence pairs for every word.
        passages: of the book.
        size: tokens of a passage.
        overlap: tokens that a passage shares with the one before.
        book_tokens: of the whole book (B), from its beginning; all of it where not given. The paper has 50,000 and
            100,000.
        once: nothing twice; as published, what two words have in common is shown for both.
        case: whether capital letters count where words are looked up.
    """

    words_each: Count = 2
    pairs_each: Count = 2
    passages: Count = 2
    size: Count = 512
    overlap: Whole = 256
    book_tokens: Count | None = None
    once: bool = True
    case: bool = False


@dataclass
class Translator:
    """Asks one model under sets of materials; `cut` counts blocks that did not fit, by condition, `sizes` the tokens of
    its prompts."""

    asker: Asker
    shown: Shown
    cut: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)

    def translate(self, of: Materials, sentences: Sequence[str], condition: str) -> list[str]:
        """Every sentence under one condition; one more try, with a nudge, where none could be read; else empty."""
        prompts = [self.prompt(of, s, condition) for s in sentences]
        read = functools.partial(_read, target=of.target)
        said = self.asker.ask(prompts, read, condition, stop=("\n",))
        again = [i for i, text in enumerate(said) if text is None]
        nudged = [_nudged(prompts[i], translation.asked(sentences[i], of.source, of.target)) for i in again]
        for i, text in zip(again, self.asker.ask(nudged, read, condition, again, stop=("\n",)), strict=True):
            said[i] = text
        return [s or "" for s in said]

    def mean_sizes(self) -> dict[str, float]:
        """Tokens of a prompt, by condition."""
        return {name: float(np.mean(sizes)) for name, sizes in self.sizes.items() if sizes}

    def prompt(self, of: Materials, sentence: str, condition: str) -> str:
        """What is asked: blocks from the last are left out until it fits the context.

        Raises:
            UserError: the whole book does not fit.
        """
        used, how, tokens = named(condition), self.shown, self.asker.lm.tokens
        book = of.book if "book" in used else ""
        blocks = of.blocks(sentence, used, how.words_each, how.pairs_each, how.passages, how.once)
        # Heads of the parts and the task are a prompt's own, whatever blocks are in it.
        whole = [
            materials.prompt(of, sentence, []),
            materials.prompt(of, sentence, [b._replace(text="") for b in blocks]),
        ]
        room = self.asker.lm.context - self.asker.how.max_new_tokens - max(tokens(whole)) - SPARE
        if book and (size := self._size(book)) > room:
            raise UserError(
                f"condition '{condition}': the book has {size:,} tokens, and {max(room, 0):,} fit this model: "
                f"--shown.book_tokens {max(room, 1)}, or G for passages of it"
            )
        room -= self._size(book) if book else 0
        sizes = [n + 1 for n in tokens([b.text for b in blocks])] if blocks else []
        kept: list[Block] = [blocks[i] for i in retrieval.fitting(range(len(blocks)), sizes, max(room, 0))[::-1]]
        self.cut[condition] = self.cut.get(condition, 0) + len(blocks) - len(kept)
        size = max(tokens(whole)) + sum(n for block, n in zip(blocks, sizes, strict=True) if block in kept)
        self.sizes.setdefault(condition, []).append(size + (self._size(book) if book else 0))
        return materials.prompt(of, sentence, kept, book)

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        return {}

    def _size(self, book: str) -> int:
        """A book's tokens, counted once."""
        if book not in self._counted:
            (self._counted[book],) = self.asker.lm.tokens([book])
        return self._counted[book]


def _read(text: str, target: str) -> str | None:
    """The translation in an answer; None where there is none, or a refusal."""
    return None if REFUSED.match(text.strip()) else translation.read(text, target)


def _nudged(prompt: str, query: str) -> str:
    return f"{prompt.removesuffix(query)}{NUDGE}\n\n{query}"


def passages(lm: LM, book: str, shown: Shown) -> list[str]:
    """A book in overlapping pieces of so many of the model's tokens, cut between words."""
    places, sizes = _sized(lm, book)
    cut = materials.chunks(sizes, shown.size, min(shown.overlap, shown.size - 1))
    return [book[places[first][0] : places[last - 1][1]] for first, last in cut]


def beginning(lm: LM, book: str, most: int | None) -> str:
    """As much of a book from its beginning as has so many tokens, whole words of it."""
    if most is None:
        return book
    places, sizes = _sized(lm, book)
    count = int(np.searchsorted(np.cumsum(sizes), most, side="right"))
    return book[: places[count - 1][1]] if count else ""


def _sized(lm: LM, book: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Where the words of a book stand, and the tokens of each."""
    places = [m.span() for m in re.finditer(r"\S+", book)]
    different = list(dict.fromkeys(book[a:b] for a, b in places))
    known = dict(zip(different, lm.tokens([f" {w}" for w in different]), strict=True)) if different else {}
    return places, [known[book[a:b]] for a, b in places]


def gathered(
    lm: LM, names: tuple[str, str], wordlist: Sequence[Parallel], pairs: Sequence[Parallel], book: str, shown: Shown,
    by: materials.By, embedder: retrieval.Embedder | None,
) -> Materials:  # fmt: skip
    """Materials from the first language to the second, and what finds passages in them."""
    parts = {
        "passages": passages(lm, book, shown),
        "explanations": passages(lm, materials.cleaned(book, pairs)[0], shown) if pairs else [],
    }
    finders = {name: materials.Lookup(texts, by, embedder, shown.case) for name, texts in parts.items() if texts}
    return Materials(
        *names, wordlist, pairs, parts["passages"], parts["explanations"], beginning(lm, book, shown.book_tokens),
        shown.case, finders,
    )  # fmt: skip


def records(items: Sequence[Parallel], said: Mapping[str, Sequence[str]], of: Materials) -> list[Record]:
    """The sentences with their translation under every condition; the last one's is the prediction."""
    return [
        Parallel(
            source=p.source, target=p.target, source_lang=of.source, target_lang=of.target,
            extra={
                **p.extra, "prediction": list(said.values())[-1][i],
                "translations": {name: texts[i] for name, texts in said.items()},
            },
        )
        for i, p in enumerate(items)
    ]  # fmt: skip


def named(condition: str) -> list[Material]:
    """The materials of a condition: `W+S+G`, or `-`.

    Raises:
        UserError: it names others.
    """
    letters = [] if condition == NOTHING else condition.split("+")
    if bad := [x for x in letters if x not in LETTERS]:
        raise UserError(f"condition '{condition}': {bad[0]!r} is none of {', '.join(LETTERS)} (joined by +), or -")
    return [LETTERS[x] for x in letters]


def conditions(of: Materials, wanted: Sequence[str]) -> list[str]:
    """Those that are wanted, else every set of words, pairs and passages, of what there is; the largest last.

    Raises:
        UserError: one wants what there is not.
    """
    for condition in wanted:
        if lacking := [m for m in named(condition) if m not in of.there]:
            needs = "pairs and book" if lacking[0] == "explanations" else lacking[0]
            raise UserError(f"condition '{condition}' needs {needs}, which is not given")
    if wanted:
        return list(wanted)
    there = [letter for letter, name in LETTERS.items() if name in of.there and letter in "WSG"]
    return ["+".join(some) or NOTHING for n in range(len(there) + 1) for some in itertools.combinations(there, n)]


def findings(said: Mapping[str, Sequence[str]], of: Materials, test: Sequence[Parallel], seed: int) -> dict[str, Any]:
    """chrF and exact matches of every condition, of copied sources and of the dictionary word by word; and what one
    more material gains, with a paired bootstrap over the sentences."""
    known = [i for i, p in enumerate(test) if p.target]
    if not known:
        return {}
    wanted = [test[i].target for i in known]
    answers = {"copied source": [test[i].source for i in known]}
    if of.wordlist:
        answers["word by word"] = [materials.word_by_word(of, test[i].source) for i in known]
    answers |= {name: [texts[i] for i in known] for name, texts in said.items()}
    out = {name: scores.measures(texts, wanted, seed) for name, texts in answers.items()}
    gains = {}
    for (a, one), (b, other) in itertools.permutations(list(answers.items())[-len(said) :], 2):
        more = set(named(b)) - set(named(a))
        if len(more) == 1 and set(named(a)) < set(named(b)):
            gains[f"{b} over {a}"] = scores.difference(other, one, wanted, seed)
    told = {
        name: {"chrf": m["chrf"].value, "interval": m["chrf"].ci, "exact": m["exact_translation"].value}
        for name, m in out.items()
    }
    return {"sentences": len(known), "scores": told, "gains": gains}


def warned(found: Mapping[str, Any], translator: Translator, left_out: Mapping[str, int]) -> list[str]:
    """What a reader of the findings should know."""
    told = {f"{name}: {count:,} blocks did not fit the context" for name, count in translator.cut.items() if count}
    told |= {
        f"{count:,} {name} hold sentences of the test or a canary: left out"
        for name, count in left_out.items()
        if count
    }
    for way in found.values():
        n = way.get("sentences", 0)
        small = [name for name, gain in way.get("gains", {}).items() if n < FEW and 0 < abs(gain["estimate"]) < POINTS]
        if small:
            told.add(f"{n} sentences do not establish differences under {POINTS:g} points: {', '.join(small[:4])}")
    return sorted(told)

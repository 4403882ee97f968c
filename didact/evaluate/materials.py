"""How much each material helps translation: the same sentences under every set of materials, in paired comparisons."""

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
from didact.data.materials import LETTERS, Material, Materials
from didact.evaluate import translation as scores
from didact.infer.ask import Asker
from didact.types import LM, Parallel, Record, UserError

NOTHING = "-"
FEW = 100  # below this many sentences, differences below POINTS are not reliable
POINTS = 3.0
SPARE = 8  # tokens that a prompt may have in excess of its parts
REFUSED = re.compile(
    r"\W*(?:i'?m sorry|i am sorry|i apologi|as an ai\b)|.{0,60}\b(?:unable|not able|cannot|can't) (?:to )?"
    r"(?:translate|provide|determine|help|assist)\b",
    re.IGNORECASE,
)
NUDGE = "Give your best guess, and nothing but the translation."


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of each material the prompt of a sentence has.

    Args:
        words_each: dictionary entries for every word.
        pairs_each: sentence pairs for every word.
        passages: passages of the book.
        size: tokens of a passage.
        overlap: tokens that a passage shares with the one before.
        book_tokens: tokens of the whole book (B), from its beginning; all by default. The paper uses 50,000 and
            100,000.
        once: leave out repeated entries; the published code repeats an entry that fits two words.
        case: whether word lookup is case-sensitive.
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
    """Translates with one model under sets of materials; `cut` counts the blocks that did not fit and `sizes` holds the
    tokens of prompts, by condition."""

    asker: Asker
    amounts: Coverage
    cut: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)

    def translate(self, resources: Materials, sentences: Sequence[str], condition: str) -> list[str]:
        """Translate sentences under one condition; an unreadable answer is retried once with a nudge, then empty."""
        prompts = [self.prompt(resources, s, condition) for s in sentences]
        read = functools.partial(_read, target=resources.target)
        answers = self.asker.ask(prompts, read, condition, stop=("\n",))
        retries = [i for i, text in enumerate(answers) if text is None]
        nudged = [
            _nudged(prompts[i], translation.build_prompt(sentences[i], resources.source, resources.target))
            for i in retries
        ]
        for i, text in zip(retries, self.asker.ask(nudged, read, condition, retries, stop=("\n",)), strict=True):
            answers[i] = text
        return [s or "" for s in answers]

    def mean_sizes(self) -> dict[str, float]:
        """Mean tokens of a prompt, by condition."""
        return {name: float(np.mean(sizes)) for name, sizes in self.sizes.items() if sizes}

    def prompt(self, resources: Materials, sentence: str, condition: str) -> str:
        """The prompt of a sentence; the last blocks are left out until it fits the context.

        Raises:
            UserError: the whole book does not fit.
        """
        kinds, amounts, tokens = of_condition(condition), self.amounts, self.asker.lm.tokens
        book = resources.book if "book" in kinds else ""
        blocks = resources.blocks(
            sentence, kinds, amounts.words_each, amounts.pairs_each, amounts.passages, amounts.once
        )
        # The task and the headings of the parts take space whatever blocks are in the prompt.
        skeletons = [
            materials.prompt(resources, sentence, []),
            materials.prompt(resources, sentence, [b._replace(text="") for b in blocks]),
        ]
        room = self.asker.lm.context - self.asker.how.max_new_tokens - max(tokens(skeletons)) - SPARE
        if book and (size := self._size(book)) > room:
            raise UserError(
                f"condition '{condition}': the book has {size:,} tokens, and {max(room, 0):,} fit this model: "
                f"--shown.book_tokens {max(room, 1)}, or G for passages of it"
            )
        room -= self._size(book) if book else 0
        sizes = [n + 1 for n in tokens([b.text for b in blocks])] if blocks else []
        places = retrieval.fitting(range(len(blocks)), sizes, max(room, 0))[::-1]
        fitting = [blocks[i] for i in places]
        self.cut[condition] = self.cut.get(condition, 0) + len(blocks) - len(fitting)
        size = max(tokens(skeletons)) + sum(sizes[i] for i in places)
        self.sizes.setdefault(condition, []).append(size + (self._size(book) if book else 0))
        return materials.prompt(resources, sentence, fitting, book)

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        return {}

    def _size(self, book: str) -> int:
        """The tokens of a book, cached."""
        if book not in self._counted:
            (self._counted[book],) = self.asker.lm.tokens([book])
        return self._counted[book]


def _read(text: str, target: str) -> str | None:
    """The translation in an answer; None if there is none or the model refused."""
    return None if REFUSED.match(text.strip()) else translation.read(text, target)


def _nudged(prompt: str, query: str) -> str:
    return f"{prompt.removesuffix(query)}{NUDGE}\n\n{query}"


def passages(lm: LM, book: str, amounts: Coverage) -> list[str]:
    """Split a book into overlapping passages of `size` tokens, cut between words."""
    places, sizes = _sized(lm, book)
    spans = materials.chunks(sizes, amounts.size, min(amounts.overlap, amounts.size - 1))
    return [book[places[first][0] : places[last - 1][1]] for first, last in spans]


def beginning(lm: LM, book: str, max_tokens: int | None) -> str:
    """The beginning of a book up to `max_tokens`, in whole words."""
    if max_tokens is None:
        return book
    places, sizes = _sized(lm, book)
    count = int(np.searchsorted(np.cumsum(sizes), max_tokens, side="right"))
    return book[: places[count - 1][1]] if count else ""


def _sized(lm: LM, book: str) -> tuple[list[tuple[int, int]], list[int]]:
    """The spans of a book's words, and the tokens of each."""
    spans = [m.span() for m in re.finditer(r"\S+", book)]
    distinct = list(dict.fromkeys(book[a:b] for a, b in spans))
    lengths = dict(zip(distinct, lm.tokens([f" {w}" for w in distinct]), strict=True)) if distinct else {}
    return spans, [lengths[book[a:b]] for a, b in spans]


def gathered(
    lm: LM, names: tuple[str, str], wordlist: Sequence[Parallel], pairs: Sequence[Parallel], book: str,
    amounts: Coverage, by: materials.By, embedder: retrieval.Embedder | None,
) -> Materials:  # fmt: skip
    """Materials for translation from the first language to the second, with lookups of passages."""
    parts = {
        "passages": passages(lm, book, amounts),
        "explanations": passages(lm, materials.cleaned(book, pairs)[0], amounts) if pairs else [],
    }
    finders = {name: materials.Lookup(texts, by, embedder, amounts.case) for name, texts in parts.items() if texts}
    return Materials(
        *names, wordlist, pairs, parts["passages"], parts["explanations"], beginning(lm, book, amounts.book_tokens),
        amounts.case, finders,
    )  # fmt: skip


def records(items: Sequence[Parallel], translations: Mapping[str, Sequence[str]], resources: Materials) -> list[Record]:
    """The sentences with their translations under every condition; that of the last condition is the prediction."""
    return [
        Parallel(
            source=p.source, target=p.target, source_lang=resources.source, target_lang=resources.target,
            extra={
                **p.extra, "prediction": list(translations.values())[-1][i],
                "translations": {name: texts[i] for name, texts in translations.items()},
            },
        )
        for i, p in enumerate(items)
    ]  # fmt: skip


def of_condition(condition: str) -> list[Material]:
    """Parse a condition, such as `W+S+G`, or `-` for none, into its materials.

    Raises:
        UserError: an unknown letter.
    """
    letters = [] if condition == NOTHING else condition.split("+")
    if bad := [x for x in letters if x not in LETTERS]:
        raise UserError(f"condition '{condition}': {bad[0]!r} is none of {', '.join(LETTERS)} (joined by +), or -")
    return [LETTERS[x] for x in letters]


def conditions(resources: Materials, requested: Sequence[str]) -> list[str]:
    """The requested conditions, else every subset of the available words, pairs and passages; the largest last.

    Raises:
        UserError: a requested condition needs a missing material.
    """
    for condition in requested:
        if missing := [m for m in of_condition(condition) if m not in resources.available]:
            needs = "pairs and book" if missing[0] == "explanations" else missing[0]
            raise UserError(f"condition '{condition}' needs {needs}, which is not given")
    if requested:
        return list(requested)
    available = [letter for letter, name in LETTERS.items() if name in resources.available and letter in "WSG"]
    return [
        "+".join(some) or NOTHING for n in range(len(available) + 1) for some in itertools.combinations(available, n)
    ]


def findings(
    translations: Mapping[str, Sequence[str]], resources: Materials, test: Sequence[Parallel], seed: int
) -> dict[str, Any]:
    """chrF and exact matches of every condition, of copied sources and of the dictionary word by word; and the gain of
    each additional material, with a paired bootstrap over the sentences."""
    with_target = [i for i, p in enumerate(test) if p.target]
    if not with_target:
        return {}
    references = [test[i].target for i in with_target]
    answers = {"copied source": [test[i].source for i in with_target]}
    if resources.wordlist:
        answers["word by word"] = [materials.word_by_word(resources, test[i].source) for i in with_target]
    answers |= {name: [texts[i] for i in with_target] for name, texts in translations.items()}
    out = {name: scores.measures(texts, references, seed) for name, texts in answers.items()}
    gains = {}
    for (a, base), (b, richer) in itertools.permutations(list(answers.items())[-len(translations) :], 2):
        added = set(of_condition(b)) - set(of_condition(a))
        if len(added) == 1 and set(of_condition(a)) < set(of_condition(b)):
            gains[f"{b} over {a}"] = scores.difference(richer, base, references, seed)
    summary = {
        name: {"chrf": m["chrf"].value, "interval": m["chrf"].ci, "exact": m["exact_translation"].value}
        for name, m in out.items()
    }
    return {"sentences": len(with_target), "scores": summary, "gains": gains}


def warning_lines(findings: Mapping[str, Any], translator: Translator, left_out: Mapping[str, int]) -> list[str]:
    """Warnings about the findings."""
    warnings = {f"{name}: {count:,} blocks did not fit the context" for name, count in translator.cut.items() if count}
    warnings |= {
        f"{count:,} {name} hold sentences of the test or a canary: left out"
        for name, count in left_out.items()
        if count
    }
    for way in findings.values():
        n = way.get("sentences", 0)
        small = [name for name, gain in way.get("gains", {}).items() if n < FEW and 0 < abs(gain["estimate"]) < POINTS]
        if small:
            warnings.add(f"{n} sentences do not establish differences under {POINTS:g} points: {', '.join(small[:4])}")
    return sorted(warnings)

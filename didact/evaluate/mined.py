"""Self-mining's stages put together, and what is said of them: how much was kept, and why the rest was not."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from didact.data import lexicon, retrieval, shown, translation, words
from didact.data.lexicon import Pair
from didact.evaluate import translation as scores
from didact.infer import embed, functions, mining
from didact.infer.mining import Mined, Miner, Words
from didact.models.model import Model
from didact.types import LM, Parallel, Record, Text, UserError

Alike = Callable[[Sequence[str], Sequence[str], str, str], Any]
"""`alike(queries, pool, language, language of the pool) -> cosines (queries, pool)`."""


@dataclass(frozen=True)
class Unpaired:
    """Sentences of two languages, the references of the test left out and counted; `drawn` are translated back."""

    source: list[str]
    target: list[str]
    drawn: list[str]
    leaks: int


def unpaired(
    test: Sequence[Parallel], source: Sequence[Text], target: Sequence[Text], count: int, seed: int
) -> Unpaired:
    """The sentences of two texts, one a line of every record.

    Raises:
        UserError: one of them has none.
    """
    references = {words.key(translation.one_line(p.target)).casefold() for p in test if p.target}
    sides = [list(dict.fromkeys(_lines(texts))) for texts in (source, target)]
    natural = [y for y in sides[1] if words.key(y).casefold() not in references]
    for name, side in (("source", sides[0]), ("target", natural)):
        if not side:
            raise UserError(f"{name}: no sentence")
    drawn = random.Random(seed).sample(natural, min(count, len(natural)))
    return Unpaired(sides[0], natural, drawn, len(sides[1]) - len(natural))


def dictionary(miner: Miner, texts: Unpaired, how: Words) -> list[Pair]:
    """Every frequent word, with what became of it."""
    pairs = miner.dictionary(lexicon.frequent(texts.source, how.count), how)
    if how.both:
        other = miner.dictionary(lexicon.frequent(texts.target, how.count), how, forward=False)
        pairs = lexicon.united(pairs, lexicon.turned([p for p in other if p.kept]))
    return pairs


def pool(
    miner: Miner,
    texts: Unpaired,
    pairs: Sequence[Pair],
    k: int,
    rounds: int,
    similarity: str | retrieval.Embedder,
    model: Model | LM,
) -> list[Mined]:
    """Every drawn target sentence with the model's source, and how alike the two are."""
    examples = miner.weak(texts.source, pairs, k)
    alike, out = likeness(similarity, model, pairs), list[Mined]()
    for again in range(rounds):
        out = miner.back(texts.drawn, examples, f"back-translation, round {again + 1}")
        good = [m for m in out if not m.reason]
        if not good:
            break
        value = np.diag(np.asarray(alike([m.source for m in good], [m.target for m in good], "source", "target")))
        of = dict(zip((m.index for m in good), value.tolist(), strict=True))
        out = [dataclasses.replace(m, score=of.get(m.index, 0.0)) for m in out]
        best = sorted((m for m in out if not m.reason), key=lambda m: -m.score)[:k]
        examples = [(m.target, m.source) for m in best[::-1]]
    return out


def likeness(similarity: str | retrieval.Embedder, model: Model | LM, pairs: Sequence[Pair]) -> Alike:
    """What says that sentences are alike.

    Raises:
        UserError: `model` of a server, or the name of no function.
    """
    if not isinstance(similarity, str):
        return _by_vectors(similarity)
    if similarity in ("auto", "model") and isinstance(model, Model):
        return _by_vectors(lambda texts: embed.embed(model, texts).numpy())
    if similarity == "model":
        raise UserError(
            "similarity = model: a server's hidden states are not to be had; use lexicon, or module:function"
        )
    if similarity in ("auto", "lexicon"):
        back = mining.table(lexicon.turned([p for p in pairs if p.kept]))
        return _by_words(back)
    if Path(similarity).is_dir():
        return _by_vectors(embed.embedder(similarity, model))
    found = functions.imported(similarity, "similarity")
    return _by_vectors(lambda texts: found(list(texts)))


def _by_vectors(embedder: retrieval.Embedder) -> Alike:
    """Cosine of vectors, from which each language's mean over the texts first seen of it is taken."""
    middle: dict[str, Any] = {}

    def unit(texts: Sequence[str], language: str) -> Any:
        made = retrieval.embedded(embedder, texts)
        made = np.asarray(made.todense() if hasattr(made, "todense") else made, dtype=np.float64)
        if len(texts) > 1:
            middle.setdefault(language, made.mean(0))
        return retrieval.unit(made - middle.get(language, 0.0))

    def alike(queries: Sequence[str], others: Sequence[str], one: str, other: str) -> Any:
        if not queries or not others:
            return np.zeros((len(queries), len(others)))
        right = unit(others, other)
        return unit(queries, one) @ right.T

    return alike


def _by_words(back: dict[str, str]) -> Alike:
    """Cosine of TF-IDF vectors; target sentences are rendered word by word first."""

    def alike(queries: Sequence[str], others: Sequence[str], one: str, other: str) -> Any:
        left, right = (
            [lexicon.word_by_word(t, back) for t in texts] if language == "target" else list(texts)
            for texts, language in ((queries, one), (others, other))
        )
        vectors = retrieval.TfIdf([*left, *right])
        found = retrieval.embedded(vectors, left) @ retrieval.embedded(vectors, right).T
        return np.asarray(found.todense()) if hasattr(found, "todense") else found

    return alike


def findings(
    texts: Unpaired, pairs: Sequence[Pair], mined: Sequence[Mined], of: shown.Picked, test: Sequence[Parallel],
    gold: Sequence[Parallel],
) -> dict[str, Any]:  # fmt: skip
    """What was kept of words and sentences and why not, and chrF of the word-by-word rendering."""
    kept, known = [p for p in pairs if p.kept], mining.table(pairs)
    good = [m for m in mined if not m.reason]
    reasons = Counter("comes back as another" if p.reason.startswith("comes back") else p.reason for p in pairs)
    out: dict[str, Any] = {
        "words": {"asked": len(pairs), "kept": len(kept), **{r: n for r, n in reasons.items() if r}},
        "copies": sum(lexicon.folded(p.source) == lexicon.folded(p.target) for p in kept) / max(len(kept), 1),
        "pairs": {"asked": len(mined), "kept": len(good), **Counter(m.reason for m in mined if m.reason)},
        "likeness": float(np.mean([m.score for m in good])) if good else 0.0,
        "too_few_passed": of.fell_back,
        "references_left_out": texts.leaks,
    }
    if gold:
        asked, there = [p.source for p in pairs], [(g.source, g.target) for g in gold]
        raw = [Pair(p.source, p.target, p.score) for p in pairs if p.target]
        out["dictionary"] = {
            name: dataclasses.asdict(lexicon.accuracy(some, there, asked))
            for name, some in (("before the check", raw), ("after the check", pairs))
        }
    if wanted := [p for p in test if p.target]:
        said = [lexicon.word_by_word(p.source, known) for p in wanted]
        out["word_by_word"] = {"chrf": scores.chrf(said, [p.target for p in wanted])}
    return out


def warned(found: dict[str, Any], texts: Unpaired, asked: int) -> list[str]:
    """What a reader of the findings should know."""
    told = {
        f"{texts.leaks:,} sentences of the target text are references of the test: left out": texts.leaks,
        "no word came back to itself: the dictionary is empty": not found["words"]["kept"],
        f"for {found['too_few_passed']:,} of {asked:,} sentences too few pairs passed tau: the likest were taken; see "
        "pick.tau (q0.5 is the median)": found["too_few_passed"],
        f"{found['copies']:.0%} of the kept word pairs are copies": found["copies"] > 0.2,
    }
    return [text for text, count in told.items() if count]


def records(mined: Sequence[Mined], names: tuple[str, str]) -> list[Record]:
    """The pool as pairs, those that were rejected with the reason."""
    return [
        Parallel(
            source=m.source, target=m.target, source_lang=names[0], target_lang=names[1],
            extra={"likeness": m.score, **({"reason": m.reason} if m.reason else {})},
        )
        for m in mined
    ]  # fmt: skip


def told(queries: Sequence[str], said: Sequence[str], of: shown.Picked) -> Iterator[dict[str, Any]]:
    """What was shown for every sentence, and its translation."""
    for query, text, places in zip(queries, said, of.places, strict=True):
        yield {"source": query, "translation": text, "shown": places}


def _lines(texts: Sequence[Text]) -> Iterator[str]:
    for record in texts:
        yield from (one for line in record.text.splitlines() if (one := translation.one_line(line)))

"""The stages of self-mining together, and their findings: how much was kept, and why the rest was rejected."""

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
    """Sentences of two languages, the test's references (`leaks` in all) removed; `drawn` are translated back."""

    source: list[str]
    target: list[str]
    drawn: list[str]
    leaks: int


def unpaired(
    test: Sequence[Parallel], source: Sequence[Text], target: Sequence[Text], count: int, seed: int
) -> Unpaired:
    """Split two texts into sentences, one a line, and draw `count` target sentences for back-translation.

    Raises:
        UserError: one of them has no sentences.
    """
    references = {words.key(translation.one_line(p.target)).casefold() for p in test if p.target}
    sides = [list(dict.fromkeys(_lines(texts))) for texts in (source, target)]
    natural = [y for y in sides[1] if words.key(y).casefold() not in references]
    for name, side in (("source", sides[0]), ("target", natural)):
        if not side:
            raise UserError(f"{name}: no sentence")
    drawn = random.Random(seed).sample(natural, min(count, len(natural)))
    return Unpaired(sides[0], natural, drawn, len(sides[1]) - len(natural))


def dictionary(miner: Miner, texts: Unpaired, config: Words) -> list[Pair]:
    """Every frequent word with its translation, or the reason for rejecting it."""
    pairs = miner.dictionary(lexicon.frequent(texts.source, config.count), config)
    if config.both:
        backward = miner.dictionary(lexicon.frequent(texts.target, config.count), config, forward=False)
        pairs = lexicon.united(pairs, lexicon.turned([p for p in backward if p.kept]))
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
    """Every drawn target sentence with the model's back-translation, and the similarity of the two."""
    examples = miner.weak(texts.source, pairs, k)
    measure, out = likeness(similarity, model, pairs), list[Mined]()
    for n in range(rounds):
        out = miner.back(texts.drawn, examples, f"back-translation, round {n + 1}")
        passed = [m for m in out if not m.reason]
        if not passed:
            break
        similarities = np.diag(
            np.asarray(measure([m.source for m in passed], [m.target for m in passed], "source", "target"))
        )
        score_of = dict(zip((m.index for m in passed), similarities.tolist(), strict=True))
        out = [dataclasses.replace(m, score=score_of.get(m.index, 0.0)) for m in out]
        best = sorted((m for m in out if not m.reason), key=lambda m: -m.score)[:k]
        examples = [(m.target, m.source) for m in best[::-1]]
    return out


def likeness(similarity: str | retrieval.Embedder, model: Model | LM, pairs: Sequence[Pair]) -> Alike:
    """Return the similarity function for sentences.

    Raises:
        UserError: `model` with a server, or no such function.
    """
    if not isinstance(similarity, str):
        return _by_vectors(similarity)
    if similarity in ("auto", "model") and isinstance(model, Model):
        return _by_vectors(lambda texts: embed.embed(model, texts).numpy())
    if similarity == "model":
        raise UserError("similarity = model: a server does not give hidden states; use lexicon, or module:function")
    if similarity in ("auto", "lexicon"):
        back = mining.table(lexicon.turned([p for p in pairs if p.kept]))
        return _by_words(back)
    if Path(similarity).is_dir():
        return _by_vectors(embed.embedder(similarity, model))
    function = functions.import_function(similarity, "similarity")
    return _by_vectors(lambda texts: function(list(texts)))


def _by_vectors(embedder: retrieval.Embedder) -> Alike:
    """Cosine of vectors, centred by each language's mean over the first texts of it."""
    means: dict[str, Any] = {}

    def unit(texts: Sequence[str], language: str) -> Any:
        vectors = retrieval.embedded(embedder, texts)
        vectors = np.asarray(vectors.todense() if hasattr(vectors, "todense") else vectors, dtype=np.float64)
        if len(texts) > 1:
            means.setdefault(language, vectors.mean(0))
        return retrieval.unit(vectors - means.get(language, 0.0))

    def alike(queries: Sequence[str], pool: Sequence[str], language: str, pool_language: str) -> Any:
        if not queries or not pool:
            return np.zeros((len(queries), len(pool)))
        right = unit(pool, pool_language)
        return unit(queries, language) @ right.T

    return alike


def _by_words(back: dict[str, str]) -> Alike:
    """Cosine of TF-IDF vectors; target sentences are rendered word by word first."""

    def alike(queries: Sequence[str], pool: Sequence[str], language: str, pool_language: str) -> Any:
        left, right = (
            [lexicon.word_by_word(t, back) for t in texts] if side == "target" else list(texts)
            for texts, side in ((queries, language), (pool, pool_language))
        )
        vectors = retrieval.TfIdf([*left, *right])
        products = retrieval.embedded(vectors, left) @ retrieval.embedded(vectors, right).T
        return np.asarray(products.todense()) if hasattr(products, "todense") else products

    return alike


def findings(
    texts: Unpaired, pairs: Sequence[Pair], mined: Sequence[Mined], picked: shown.Picked, test: Sequence[Parallel],
    gold: Sequence[Parallel],
) -> dict[str, Any]:  # fmt: skip
    """How many words and sentences were kept, reasons for rejection, and chrF of the word-by-word rendering."""
    accepted, table = [p for p in pairs if p.kept], mining.table(pairs)
    passed = [m for m in mined if not m.reason]
    reasons = Counter("comes back as another" if p.reason.startswith("comes back") else p.reason for p in pairs)
    out: dict[str, Any] = {
        "words": {"asked": len(pairs), "kept": len(accepted), **{r: n for r, n in reasons.items() if r}},
        "copies": sum(lexicon.folded(p.source) == lexicon.folded(p.target) for p in accepted) / max(len(accepted), 1),
        "pairs": {"asked": len(mined), "kept": len(passed), **Counter(m.reason for m in mined if m.reason)},
        "likeness": float(np.mean([m.score for m in passed])) if passed else 0.0,
        "too_few_passed": picked.fell_back,
        "references_left_out": texts.leaks,
    }
    if gold:
        sources, gold_pairs = [p.source for p in pairs], [(g.source, g.target) for g in gold]
        raw = [Pair(p.source, p.target, p.score) for p in pairs if p.target]
        out["dictionary"] = {
            name: dataclasses.asdict(lexicon.accuracy(some, gold_pairs, sources))
            for name, some in (("before the check", raw), ("after the check", pairs))
        }
    if with_target := [p for p in test if p.target]:
        rendered = [lexicon.word_by_word(p.source, table) for p in with_target]
        out["word_by_word"] = {"chrf": scores.chrf(rendered, [p.target for p in with_target])}
    return out


def warning_lines(findings: dict[str, Any], texts: Unpaired, sentences: int) -> list[str]:
    """Warnings about the findings."""
    warnings = {
        f"{texts.leaks:,} sentences of the target text are references of the test: left out": texts.leaks,
        "no word passed the back-translation check: the dictionary is empty": not findings["words"]["kept"],
        f"for {findings['too_few_passed']:,} of {sentences:,} sentences too few pairs passed tau: the most similar "
        "were taken; see pick.tau (q0.5 is the median)": findings["too_few_passed"],
        f"{findings['copies']:.0%} of the kept word pairs are copies": findings["copies"] > 0.2,
    }
    return [text for text, count in warnings.items() if count]


def records(mined: Sequence[Mined], names: tuple[str, str]) -> list[Record]:
    """The pool as parallel records, rejected pairs with the reason."""
    return [
        Parallel(
            source=m.source, target=m.target, source_lang=names[0], target_lang=names[1],
            extra={"likeness": m.score, **({"reason": m.reason} if m.reason else {})},
        )
        for m in mined
    ]  # fmt: skip


def transcript(queries: Sequence[str], translations: Sequence[str], picked: shown.Picked) -> Iterator[dict[str, Any]]:
    """Every sentence with its translation and the examples in its prompt."""
    for query, text, places in zip(queries, translations, picked.places, strict=True):
        yield {"source": query, "translation": text, "shown": places}


def _lines(texts: Sequence[Text]) -> Iterator[str]:
    for record in texts:
        yield from (text for line in record.text.splitlines() if (text := translation.one_line(line)))

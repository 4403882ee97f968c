"""MTOB (Tanzer et al. 2023): translate a language from its dictionary, example sentences and grammar, in the prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.data import materials, translation
from didact.evaluate import materials as worth
from didact.evaluate.materials import Coverage
from didact.infer import ask, embed
from didact.infer import lm as language_models
from didact.infer.ask import Asking
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Cost, Parallel, Record, Result, Text

NAME = "mtob"


@method(
    NAME,
    paper="A Benchmark for Learning to Translate a New Language from One Grammar Book",
    year=2023,
    source="arXiv:2309.16575",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("translate",),
    answers="test",
    presets={
        "paper": {"asking.temperature": 0.05, "shown.once": False, "shown.case": True},
        "none": {"conditions": ("-",)},
        "w": {"conditions": ("W",)},
        "s": {"conditions": ("S",)},
        "g": {"conditions": ("G",)},
        "w-s": {"conditions": ("W+S",)},
        "w-s-g": {"conditions": ("W+S+G",)},
        "w-s-gm": {"conditions": ("W+S+B",), "shown.book_tokens": 50_000},
        "w-s-gl": {"conditions": ("W+S+B",), "shown.book_tokens": 100_000},
        "explained": {"conditions": ("-", "S", "E", "G", "S+E", "S+G")},
    },
)
def mtob(
    model: Model | LM,
    test: Sequence[Parallel] | None = None,
    wordlist: Sequence[Parallel] | None = None,
    pairs: Sequence[Parallel] | None = None,
    book: Sequence[Text] | None = None,
    *,
    conditions: tuple[str, ...] = (),
    direction: Literal["given", "back", "both"] = "given",
    retrieval: str = "lcs",
    shown: Coverage = Coverage(),
    source_lang: str = "",
    target_lang: str = "",
    canary: str = "",
    asking: Asking = Asking(max_new_tokens=128),
    seed: int = 0,
) -> Result:
    """Translate a language the model has never seen from reference material, and measure which material helps.

    The prompt has, for every word of a sentence, the dictionary entries and the example sentences with the longest
    substring in common, and the passages of the book that are nearest to the whole sentence. Every set of the given
    materials is a condition of its own, `-` none of them; the last condition gives the answers. Test sentences are
    removed from pairs and book, and canaries from all. If a book helps, it need not be by its explanations: E are its
    passages without the sentences of `pairs`.

    Args:
        model: generates; local or a server.
        test: sentences to translate; their targets are only scored against. A record whose languages are those of the
            first one turned around is translated the other way.
        wordlist: words (or short entries) with one translation each, a table of two columns say; a field `pos` is
            shown. Records of the other direction are turned around.
        pairs: example sentences with translations.
        book: a grammar, as one document or its parts: a text file, an EPUB or a PDF among others.
        conditions: sets of materials: W (wordlist), S (pairs), G (passages of the book), E (passages without the
            sentences of pairs) and B (the whole book) joined by +, or - for none; by default all sets of W, S, G.
        direction: direction of translation: as the records of test have it, back, or both.
        retrieval: how passages are found: lcs, the longest common substring with the sentence; bm25; or by vectors, the
            means of the model's hidden states (model) or the output of `module:function` for a list of texts.
        shown: how much of each material is in the prompt.
        source_lang: the language's name in prompts; by default from the records of `test`.
        target_lang: the same for the target language.
        canary: text that marks what must not be trained on or shown, in addition to the usual markers.
        asking: how the model is asked; the paper's temperature is 0.05.
        seed: random seed of all draws.

    Returns:
        `predict(prompts)`, the last condition's answers; records with the translation of every condition; findings by
        direction: chrF and exact matches of every condition, of copied sources and of the dictionary word by word, and
        the gain of each further material, with its interval.

    Raises:
        UserError: a condition whose material is missing, a book that does not fit the context.
    """
    start_time = time.monotonic()
    lm = language_models.need(model, "generate", by=NAME)
    test = [p for p in test or () if materials.MARK not in p.extra]
    languages = translation.names([*test, *(pairs or ()), *(wordlist or ())])  # they decide a record's direction
    names = source_lang or languages[0], target_lang or languages[1]
    asker = ask.Asker(lm, asking, seed)
    translator = worth.Translator(asker, shown)
    whole, places = materials.cleaned("\n\n".join(t.text for t in book or ()), test, canary)
    clean = {
        name: materials.without_test(some or (), test) for name, some in (("wordlist", wordlist), ("pairs", pairs))
    }
    measure: Any = retrieval if retrieval in ("lcs", "bm25") else "embedding"
    embedder = embed.embedder(retrieval, model) if measure == "embedding" else None
    words, sentences = (materials.facing(clean[name], languages) for name in ("wordlist", "pairs"))
    forward = worth.gathered(lm, names, words, sentences, whole, shown, measure, embedder)
    materials_of = {"forward": forward, "back": forward.back()}
    chosen = worth.conditions(forward, conditions)

    def translate(way: str, sentences: Sequence[str]) -> dict[str, list[str]]:
        # The last condition, which answers, goes first in case the budget ends.
        out = {c: translator.translate(materials_of[way], sentences, c) for c in reversed(chosen)}
        return {c: out[c] for c in chosen}

    scores: dict[str, Any] = {}
    records: list[Record] = []
    cache: dict[str, str] = {}
    for way, items in materials.ways(test, languages, direction).items():
        out = translate(way, [translation.one_line(p.source) for p in items])
        scores[way] = worth.findings(out, materials_of[way], items, seed)
        records += worth.records(items, out, materials_of[way])
        cache.update(zip(map(translation.prompt, items), out[chosen[-1]], strict=True))

    def predict(prompts: Sequence[str]) -> list[str]:
        new = [p for p in dict.fromkeys(prompts) if p not in cache]
        into = tuple(f"\n{name}:" for name in (languages[0], names[0]))
        back = {p: p.endswith(into) or (direction == "back" and "\n" not in p) for p in new}
        for way, some in (("forward", [p for p in new if not back[p]]), ("back", [p for p in new if back[p]])):
            sentences = [translation.sentence(p) for p in some]
            cache.update(zip(some, translator.translate(materials_of[way], sentences, chosen[-1]), strict=True))
        return [cache[p] for p in prompts]

    dropped = {
        "places of the book": places, "entries": len(wordlist or ()) - len(clean["wordlist"]),
        "pairs": len(pairs or ()) - len(clean["pairs"]),
    }  # fmt: skip
    summary = {"conditions": chosen, "answered_by": chosen[-1], "left_out": dropped, "tokens": translator.mean_sizes()}
    return Result(
        predict=predict, records=records, transcript=list(asker.demos()), findings=asker.findings() | summary | scores,
        warnings=worth.warning_lines(scores, translator, dropped) + asker.warnings(),
        cost=Cost(calls=len(asker.exchanges), seconds=time.monotonic() - start_time),
    )  # fmt: skip

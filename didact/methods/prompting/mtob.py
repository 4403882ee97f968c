"""MTOB (Tanzer et al. 2023): translate a language from its dictionary, example sentences and grammar, in the prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.data import materials, translation
from didact.evaluate import materials as worth
from didact.evaluate.materials import Shown
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
    shown: Shown = Shown(),
    source_lang: str = "",
    target_lang: str = "",
    canary: str = "",
    asking: Asking = Asking(max_new_tokens=128),
    seed: int = 0,
) -> Result:
    """Translate a language the model has never seen from what is written about it, and see which material helps.

    For every word of a sentence the dictionary entries and the example sentences with the longest substring in common
    stand in the prompt, and the passages of the book that are nearest to the whole sentence. Every set of the
    materials given is a condition of its own, `-` none of them; the last condition answers. Sentences of the test are
    taken out of pairs and book, and canaries out of all. That a book helps need not be its explanations: E are its
    passages without the sentences of `pairs`.

    Args:
        model: generates; local or a server.
        test: sentences to translate; their targets are only scored against. A record whose languages are those of the
            first one turned around is translated the other way.
        wordlist: words (or short entries) with translations, a pair each, a table of two columns say; a field `pos` is
            shown. Records of the other direction are turned around.
        pairs: example sentences with translations.
        book: a grammar, as one document or its parts: a text file, an EPUB or a PDF among others.
        conditions: sets of materials: W (wordlist), S (pairs), G (passages of the book), E (passages without the
            sentences of pairs) and B (the whole book) joined by +, or - for none; where not given, all sets of W, S, G.
        direction: of translation: as the records of test have it, back, or both.
        retrieval: of passages: lcs, the longest common substring with the sentence; bm25; or by vectors, the means of
            the model's hidden states (model) or what `module:function` makes of texts.
        shown: how much of each material.
        source_lang: the language's name in prompts; else what the records of `test` say.
        target_lang: the same.
        canary: text that marks what must not be trained on or shown, beside the usual ones.
        asking: how the model is asked; the paper's temperature is 0.05.
        seed: of what is drawn.

    Returns:
        `predict(prompts)`, the last condition's answers; records with the translation of every condition; findings by
        direction: chrF and exact matches of every condition, of copied sources and of the dictionary word by word, and
        what one more material gains, with its interval.

    Raises:
        UserError: a condition whose material is missing, a book that does not fit the context.
    """
    began = time.monotonic()
    lm = language_models.need(model, "generate", by=NAME)
    test = [p for p in test or () if materials.MARK not in p.extra]
    own = translation.names([*test, *(pairs or ()), *(wordlist or ())])  # which say which way a record goes
    names = source_lang or own[0], target_lang or own[1]
    asker = ask.Asker(lm, asking, seed)
    translator = worth.Translator(asker, shown)
    whole, places = materials.cleaned("\n\n".join(t.text for t in book or ()), test, canary)
    left = {name: materials.apart(some or (), test) for name, some in (("wordlist", wordlist), ("pairs", pairs))}
    by: Any = retrieval if retrieval in ("lcs", "bm25") else "embedding"
    embedder = embed.embedder(retrieval, model) if by == "embedding" else None
    words, sentences = (materials.facing(left[name], own) for name in ("wordlist", "pairs"))
    forward = worth.gathered(lm, names, words, sentences, whole, shown, by, embedder)
    of = {"forward": forward, "back": forward.back()}
    asked = worth.conditions(forward, conditions)

    def translate(way: str, sentences: Sequence[str]) -> dict[str, list[str]]:
        out = {c: translator.translate(of[way], sentences, c) for c in reversed(asked)}  # should the budget end
        return {c: out[c] for c in asked}

    found: dict[str, Any] = {}
    records: list[Record] = []
    said: dict[str, str] = {}
    for way, items in materials.ways(test, own, direction).items():
        out = translate(way, [translation.one_line(p.source) for p in items])
        found[way] = worth.findings(out, of[way], items, seed)
        records += worth.records(items, out, of[way])
        said.update(zip(map(translation.prompt, items), out[asked[-1]], strict=True))

    def predict(prompts: Sequence[str]) -> list[str]:
        new = [p for p in dict.fromkeys(prompts) if p not in said]
        into = tuple(f"\n{name}:" for name in (own[0], names[0]))
        back = {p: p.endswith(into) or (direction == "back" and "\n" not in p) for p in new}
        for way, some in (("forward", [p for p in new if not back[p]]), ("back", [p for p in new if back[p]])):
            sentences = [translation.sentence(p) for p in some]
            said.update(zip(some, translator.translate(of[way], sentences, asked[-1]), strict=True))
        return [said[p] for p in prompts]

    dropped = {
        "places of the book": places, "entries": len(wordlist or ()) - len(left["wordlist"]),
        "pairs": len(pairs or ()) - len(left["pairs"]),
    }  # fmt: skip
    told = {"conditions": asked, "answered_by": asked[-1], "left_out": dropped, "tokens": translator.mean_sizes()}
    return Result(
        predict=predict, records=records, transcript=list(asker.demos()), findings=asker.findings() | told | found,
        warnings=worth.warned(found, translator, dropped) + asker.warnings(),
        cost=Cost(calls=len(asker.exchanges), seconds=time.monotonic() - began),
    )  # fmt: skip

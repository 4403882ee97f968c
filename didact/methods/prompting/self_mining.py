"""Self-mined demonstrations for unsupervised translation (SM-UMT; El Mekki and Abdul-Mageed 2025)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from didact.bounds import Count
from didact.data import lexicon, shown, translation
from didact.data import stages as kept_stages
from didact.data.retrieval import Embedder
from didact.data.shown import Pick
from didact.evaluate import mined
from didact.infer import ask, mining
from didact.infer import lm as language_models
from didact.infer.ask import Asking
from didact.infer.mining import Words
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Cost, Parallel, Result, Text

NAME = "self-mining"


@method(
    NAME,
    paper="Effective Self-Mining of In-Context Examples for Unsupervised Machine Translation with LLMs",
    year=2025,
    source="arXiv:2410.11006",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("translate",),
    answers="test",
    presets={
        "query-filter": {"pick.on": "query"},
        "topk": {"pick.how": "topk"},
        "bm25": {"pick.how": "bm25"},
        "random": {"pick.how": "random", "pick.tau": "-1"},
    },
)
def self_mining(
    model: Model | LM,
    source: Sequence[Text],
    target: Sequence[Text],
    test: Sequence[Parallel] | None = None,
    dictionary: Sequence[Parallel] | None = None,
    *,
    source_lang: str = "",
    target_lang: str = "",
    words: Words = Words(),
    sentences: Count = 500,
    rounds: Count = 1,
    pick: Pick = Pick(),
    similarity: str | Embedder = "auto",
    asking: Asking = Asking(max_new_tokens=128),
    stages: str = "",
    seed: int = 0,
) -> Result:
    """Translate with demonstrations that the model makes itself of unpaired text, without changing a weight.

    Words: the source text's frequent words are translated and back; those that come back to themselves are kept, and
    stand as examples when all are translated once more. Sentences: source sentences rendered word by word by that
    dictionary stand as examples when the model translates natural target sentences back; so every pair has a natural
    target and a synthetic source. Each test sentence gets the pairs that are alike enough (tau), near to it (vectors)
    and share its words (BM25), the best last.

    Args:
        model: generates; local or a server. One that scores says how sure it is of a word.
        source: sentences of the source language.
        target: sentences of the target language, unpaired; those that are references of `test` are left out.
        test: sentences to translate; their targets are only scored against.
        dictionary: word pairs to measure the mined ones against; nothing is learnt from them.
        source_lang: the language's name in prompts; else what the records of `test` say.
        target_lang: the same.
        words: how the dictionary is mined.
        sentences: of the target text that are translated back, drawn at random.
        rounds: of translating them back: the second shows the likest pairs of the first.
        pick: how demonstrations are chosen.
        similarity: what says that sentences are alike: model (means of its hidden states, less each language's own
            mean), lexicon (words in common, by the mined dictionary), an encoder's folder, or `module:function`, which
            turns texts into vectors; auto is model where there is one, and lexicon for a server.
        asking: how the model is asked.
        stages: a folder: every stage is written there as JSONL with scores and reasons for rejection, and taken from
            there by a run of the same options.
        seed: of what is drawn.

    Returns:
        `predict(prompts)`; records of the pool (and the dictionary in findings' numbers); findings: what was kept and
        why not, how often too few pairs passed tau, scores of the word-by-word rendering beside.

    Raises:
        UserError: text without words or sentences, a similarity that is none.
    """
    began = time.monotonic()
    lm = language_models.need(model, "generate", by=NAME)
    test = test or ()
    names = translation.names(test, source_lang, target_lang)
    asker = ask.Asker(lm, asking, seed)
    miner = mining.Miner(asker, *names)
    kept = kept_stages.Stages(stages)
    texts = mined.unpaired(test, source, target, sentences, seed)
    pairs = kept.of("words", lexicon.Pair, lambda: mined.dictionary(miner, texts, words))
    pool = kept.of("pool", mining.Mined, lambda: mined.pool(miner, texts, pairs, pick.shots, rounds, similarity, model))
    good = [p for p in pool if not p.reason]
    alike = mined.likeness(similarity, model, pairs)

    def picked(queries: Sequence[str]) -> shown.Picked:
        near = alike(queries, [p.source for p in good], "source", "source")
        return shown.pick(queries, [p.source for p in good], [p.score for p in good], near, pick, seed)

    def translate(queries: Sequence[str], of: shown.Picked) -> list[str]:
        some = [[(good[i].source, good[i].target) for i in row] for row in of.places]
        return miner.translate(queries, some, "test")

    queries = [translation.one_line(p.source) for p in test]
    of_test = picked(queries)
    said = translate(queries, of_test)
    kept.write("test", mined.told(queries, said, of_test))
    known = dict(zip(queries, said, strict=True))

    def predict(prompts: Sequence[str]) -> list[str]:
        wanted = [translation.sentence(p) for p in prompts]
        new = [q for q in dict.fromkeys(wanted) if q not in known]
        known.update(zip(new, translate(new, picked(new)), strict=True) if new else ())
        return [known[q] for q in wanted]

    found = mined.findings(texts, pairs, pool, of_test, test, dictionary or ())
    return Result(
        predict=predict, records=mined.records(pool, names), transcript=list(asker.demos()),
        findings=asker.findings() | found, warnings=mined.warned(found, texts, len(test)) + asker.warnings(),
        cost=Cost(calls=len(asker.exchanges), seconds=time.monotonic() - began),
    )  # fmt: skip

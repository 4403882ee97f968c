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
    """Translate with demonstrations that the model mines from unpaired text, without changing a weight.

    Words: frequent words of the source text are translated and translated back; those that return to themselves are
    kept, and serve as examples when all are translated once more. Sentences: source sentences rendered word by word
    with that dictionary serve as examples when the model back-translates natural target sentences; so every pair has a
    natural target and a synthetic source. Each test sentence gets the pairs that are similar enough (tau), near to it
    (vectors) and share its words (BM25), the best last.

    Args:
        model: generates; local or a server. One that scores says how sure it is of a word.
        source: sentences of the source language.
        target: sentences of the target language, unpaired; those that are references of `test` are left out.
        test: sentences to translate; their targets are only scored against.
        dictionary: word pairs to score the mined ones against; nothing is learnt from them.
        source_lang: the language's name in prompts; by default from the records of `test`.
        target_lang: the same for the target language.
        words: how the dictionary is mined.
        sentences: number of target sentences to back-translate, drawn at random.
        rounds: rounds of back-translation: the second shows the most similar pairs of the first.
        pick: how demonstrations are chosen.
        similarity: measure of similar sentences: model (means of its hidden states, minus each language's mean),
            lexicon (words in common, by the mined dictionary), an encoder's folder, or `module:function`, which turns
            texts into vectors; auto is model for a local model, and lexicon for a server.
        asking: how the model is asked.
        stages: a folder: every stage is written there as JSONL with scores and reasons for rejection, and read from
            there by a run with the same options.
        seed: random seed of all draws.

    Returns:
        `predict(prompts)`; the pool as records; findings: how much was kept and why the rest was not, how often too few
        pairs passed tau, scores of the dictionary and, for comparison, of the word-by-word rendering.

    Raises:
        UserError: text without words or sentences, an unknown similarity.
    """
    start_time = time.monotonic()
    lm = language_models.need(model, "generate", by=NAME)
    test = test or ()
    names = translation.names(test, source_lang, target_lang)
    asker = ask.Asker(lm, asking, seed)
    miner = mining.Miner(asker, *names)
    store = kept_stages.Stages(stages)
    texts = mined.unpaired(test, source, target, sentences, seed)
    pairs = store.of("words", lexicon.Pair, lambda: mined.dictionary(miner, texts, words))
    pool = store.of(
        "pool", mining.Mined, lambda: mined.pool(miner, texts, pairs, pick.shots, rounds, similarity, model)
    )
    accepted = [p for p in pool if not p.reason]
    similarity_of = mined.likeness(similarity, model, pairs)

    def choose(queries: Sequence[str]) -> shown.Picked:
        near = similarity_of(queries, [p.source for p in accepted], "source", "source")
        return shown.pick(queries, [p.source for p in accepted], [p.score for p in accepted], near, pick, seed)

    def translate(queries: Sequence[str], of: shown.Picked) -> list[str]:
        examples = [[(accepted[i].source, accepted[i].target) for i in row] for row in of.places]
        return miner.translate(queries, examples, "test")

    queries = [translation.one_line(p.source) for p in test]
    test_pick = choose(queries)
    translations = translate(queries, test_pick)
    store.write("test", mined.transcript(queries, translations, test_pick))
    cache = dict(zip(queries, translations, strict=True))

    def predict(prompts: Sequence[str]) -> list[str]:
        inputs = [translation.sentence(p) for p in prompts]
        new = [q for q in dict.fromkeys(inputs) if q not in cache]
        cache.update(zip(new, translate(new, choose(new)), strict=True) if new else ())
        return [cache[q] for q in inputs]

    findings = mined.findings(texts, pairs, pool, test_pick, test, dictionary or ())
    return Result(
        predict=predict, records=mined.records(pool, names), transcript=list(asker.demos()),
        findings=asker.findings() | findings,
        warnings=mined.warning_lines(findings, texts, len(test)) + asker.warnings(),
        cost=Cost(calls=len(asker.exchanges), seconds=time.monotonic() - start_time),
    )  # fmt: skip

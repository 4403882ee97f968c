"""Self-mining's claim with a translator whose errors are known (`self_mining_example.Noisy`).

The back-translation check's precision and recall follow a formula; selected demonstrations are better than random ones.

The translator is a rule and no model: it shows that the procedure works as described. Not tested: whether a language
model has the word knowledge it needs and learns from demonstrations as this rule does; and 288 language directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import prompting
from didact.claims import runner
from didact.claims.lab import difference, equivalence
from didact.claims.problem import Problem
from didact.claims.prompting import self_mining_example as example
from didact.data import lexicon, translation
from didact.data.shown import Pick
from didact.evaluate import translation as scores
from didact.infer import ask, mining
from didact.infer.ask import Asking
from didact.infer.mining import Words
from didact.types import Parallel, Record
from didact.worlds import tongues

CONCEPTS = tongues.Concepts(nouns=60, verbs=30, adjectives=30)
SMALL = tongues.Concepts(nouns=15, verbs=5, adjectives=5)
LANGUAGES = {"smoke": 3, "quick": 300, "full": 1000}  # many small ones, for shares to two decimals
KNOWS_WORDS = 0.4  # in the small languages
KNOWS, SLIPS, NOISE = 0.7, 0.15, 0.15
SIZE = {"smoke": (40, 5), "quick": (400, 60), "full": (800, 150)}  # sentences per language; sentences to translate
ASKING = Asking(max_new_tokens=64)


def problem(seed: int) -> Problem:
    """Two invented languages and the claim's translator, a rule and no model, which knows six words in ten."""
    first, second = tongues.invented(seed, 2, CONCEPTS, alike=True)
    meanings = tongues.meanings(seed, 830, CONCEPTS)
    data: dict[str, Sequence[Record]] = {
        "test": tongues.pairs(first, second, meanings[:30]), "source": tongues.texts(first, meanings[30:430]),
        "target": tongues.texts(second, meanings[430:]), "dictionary": tongues.dictionary(first, second),
    }  # fmt: skip
    options = {"words.count": CONCEPTS.size, "words.shots": 0, "words.rounds": 0, "sentences": 400,
               "pick.tau": "q0.8", "pick.near": 40, "asking.max_new_tokens": 64}  # fmt: skip
    return Problem(model=example.Noisy(first, second, 0.6, 0.05, seed), data=data, options=options)


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """The dictionary against its closed form, and every way to select demonstrations, on the same sentences."""
    count, n_test = SIZE[tier]
    first, second = tongues.invented(seed, 2, CONCEPTS, alike=True)
    meanings = tongues.meanings(seed, 2 * count + n_test, CONCEPTS)
    test = tongues.pairs(first, second, meanings[:n_test])
    source, target = tongues.texts(first, meanings[n_test:][:count]), tongues.texts(second, meanings[n_test + count :])
    lm = example.Noisy(first, second, KNOWS, SLIPS, seed)
    vectors = example.alike(first, second, NOISE, seed)

    def translate(**pick: Any) -> list[str]:
        result = prompting.self_mining(
            lm, source, target, test, words=Words(count=CONCEPTS.size, shots=0, rounds=0), sentences=count,
            pick=Pick(**pick), similarity=vectors, asking=ASKING, seed=seed,
        )  # fmt: skip
        assert result.predict is not None
        return list(result.predict([p.source for p in test]))

    human = tongues.pairs(first, second, meanings[n_test:][:count])
    translations = {
        "zero_shot": translate(shots=0),
        "unfiltered": translate(how="random", tau="-1"),
        "filtered": translate(how="random", tau="q0.7"),
        "mined": translate(tau="q0.7", near=40),
        "human": _with_human_pairs(lm, test, human, seed),
    }
    references = [p.target for p in test]
    arms = {
        name: {"chrf": scores.chrf(texts, references), "exact": float(np.mean(scores.exact(texts, references)))}
        for name, texts in translations.items()
    }
    return arms | _dictionary(seed, tier)


def _with_human_pairs(lm: example.Noisy, test: Sequence[Parallel], pool: Sequence[Parallel], seed: int) -> list[str]:
    """Translations with random true pairs as demonstrations: the reference for annotated examples."""
    rng = np.random.default_rng([seed, 1])
    pairs = [(p.source, p.target) for p in pool]
    demos = [[pairs[i] for i in rng.choice(len(pairs), 8, replace=False)] for _ in test]
    names = translation.names(test)
    return [
        lm.generate([translation.build_prompt(p.source, *names, shots)])[0][0]
        for p, shots in zip(test, demos, strict=True)
    ]


def _dictionary(seed: int, tier: runner.Tier) -> dict[str, dict[str, float]]:
    """Precision and recall before and after the check over many small languages, and their closed form: of V words, a
    wrong translation comes back to its source with probability (1 - p) / (V - 1)."""
    size, counts = SMALL.size, np.zeros((2, 2))
    for i in range(LANGUAGES[tier]):
        first, second = tongues.invented(seed * 10_000 + i, 2, SMALL, alike=True)
        lm: Any = example.Noisy(first, second, KNOWS_WORDS, 0.0, seed * 10_000 + i)
        miner = mining.Miner(ask.Asker(lm, ASKING), first.name, second.name)
        mined = miner.dictionary(first.words, Words(rounds=0))
        raw = [lexicon.Pair(p.source, p.target) for p in mined]
        gold = list(zip(first.words, second.words, strict=True))
        for row, pairs in enumerate((raw, mined)):
            right = lexicon.accuracy(pairs, gold, first.words).recall * size
            counts[row] += right, sum(p.kept for p in pairs)
    right_both = KNOWS_WORDS**2
    precision = right_both / (right_both + (1 - KNOWS_WORDS) ** 2 / (size - 1))
    (right_before, n_before), (right_after, n_after) = counts
    return {
        "before": {"precision": right_before / n_before},
        "after": {"precision": right_after / n_after, "recall": right_after / n_before},
        "formula": {"precision": precision, "recall": right_both},
    }


CHRF, PRECISION = "chrF", "precision"
CHECK, CHOSEN = "the check raises precision", "filtered and chosen beat random ones of the whole pool"
ZERO = "mined demonstrations beat none"
CYCLED = "didact.data.lexicon:cycle_check"
CLAIM = runner.Claim(
    method="self-mining",
    text=(
        "Words that are translated and come back to themselves make a dictionary of high precision, at the recall that "
        "follows from the translator's accuracy. Demonstrations mined with it of unpaired text are better than none; "
        "filtered by likeness and chosen by nearness and BM25 they are better than random ones of the whole pool."
    ),
    run=run,
    tests=(
        equivalence("precision is as computed", "after.precision", "formula.precision", 0.02, PRECISION),
        equivalence("recall is as computed", "after.recall", "formula.recall", 0.02, "recall"),
        difference(CHECK, "after.precision", "before.precision", PRECISION, margin=0.1),
        difference(ZERO, "mined.chrf", "zero_shot.chrf", CHRF),
        difference(CHOSEN, "mined.chrf", "unfiltered.chrf", CHRF),
        difference("chosen beat random ones that passed", "mined.chrf", "filtered.chrf", CHRF),
        difference("the filter alone helps", "filtered.chrf", "unfiltered.chrf", CHRF, reported=True),
        difference("against random pairs of people", "mined.chrf", "human.chrf", CHRF, reported=True),
    ),
    sabotages=(
        runner.Sabotage("the check is inverted", CHECK, "after.precision", {CYCLED: example.inverted}),
        runner.Sabotage("the least alike pass", CHOSEN, "mined.chrf", {"didact.data.shown:pick": example.least_alike}),
        runner.Sabotage("the synthetic side is the target", ZERO, "mined.chrf",
                        {"didact.infer.mining:Miner": example.Turned}),
    ),
)  # fmt: skip

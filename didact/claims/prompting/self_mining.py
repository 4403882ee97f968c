"""Self-mining's claim with a translator whose errors are known (`self_mining_example.Noisy`).

What the check keeps is as computed; demonstrations that were filtered and chosen are better than any.

The translator is a rule, no model: it shows that the procedure does what it says. Whether a language model has the
knowledge of words that is needed, and learns from demonstrations as this rule does, is outside; so are 288 directions.
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
LANGUAGES = {"smoke": 3, "quick": 300, "full": 1000}  # small ones, for shares to two decimals
KNOWS_WORDS = 0.4  # in those
KNOWS, SLIPS, NOISE = 0.7, 0.15, 0.15
SIZE = {"smoke": (40, 5), "quick": (400, 60), "full": (800, 150)}  # sentences of a language; sentences to translate
ASKING = Asking(max_new_tokens=64)


def problem(seed: int) -> Problem:
    """Two invented languages and the claim's translator, who knows six words of ten (a rule, no model)."""
    one, other = tongues.invented(seed, 2, CONCEPTS, alike=True)
    some = tongues.meanings(seed, 830, CONCEPTS)
    data: dict[str, Sequence[Record]] = {
        "test": tongues.pairs(one, other, some[:30]), "source": tongues.texts(one, some[30:430]),
        "target": tongues.texts(other, some[430:]), "dictionary": tongues.dictionary(one, other),
    }  # fmt: skip
    options = {"words.count": CONCEPTS.size, "words.shots": 0, "words.rounds": 0, "sentences": 400,
               "pick.tau": "q0.8", "pick.near": 40, "asking.max_new_tokens": 64}  # fmt: skip
    return Problem(model=example.Noisy(one, other, 0.6, 0.05, seed), data=data, options=options)


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """The dictionary against its closed form; then every way to choose demonstrations on the same sentences."""
    count, asked = SIZE[tier]
    one, other = tongues.invented(seed, 2, CONCEPTS, alike=True)
    some = tongues.meanings(seed, 2 * count + asked, CONCEPTS)
    test = tongues.pairs(one, other, some[:asked])
    source, target = tongues.texts(one, some[asked:][:count]), tongues.texts(other, some[asked + count :])
    lm = example.Noisy(one, other, KNOWS, SLIPS, seed)
    vectors = example.alike(one, other, NOISE, seed)

    def mined(**pick: Any) -> list[str]:
        result = prompting.self_mining(
            lm, source, target, test, words=Words(count=CONCEPTS.size, shots=0, rounds=0), sentences=count,
            pick=Pick(**pick), similarity=vectors, asking=ASKING, seed=seed,
        )  # fmt: skip
        assert result.predict is not None
        return list(result.predict([p.source for p in test]))

    human = tongues.pairs(one, other, some[asked:][:count])
    said = {
        "zero_shot": mined(shots=0),
        "unfiltered": mined(how="random", tau="-1"),
        "filtered": mined(how="random", tau="q0.7"),
        "mined": mined(tau="q0.7", near=40),
        "human": _shown(lm, test, human, seed),
    }
    wanted = [p.target for p in test]
    arms = {
        name: {"chrf": scores.chrf(texts, wanted), "exact": float(np.mean(scores.exact(texts, wanted)))}
        for name, texts in said.items()
    }
    return arms | _dictionary(seed, tier)


def _shown(lm: example.Noisy, test: Sequence[Parallel], pool: Sequence[Parallel], seed: int) -> list[str]:
    """Translations after true pairs drawn at random, the reference of what annotated examples give."""
    draw = np.random.default_rng([seed, 1])
    pairs = [(p.source, p.target) for p in pool]
    shown = [[pairs[i] for i in draw.choice(len(pairs), 8, replace=False)] for _ in test]
    names = translation.names(test)
    return [
        lm.generate([translation.asked(p.source, *names, some)])[0][0] for p, some in zip(test, shown, strict=True)
    ]  # fmt: skip


def _dictionary(seed: int, tier: runner.Tier) -> dict[str, dict[str, float]]:
    """Precision and recall before and after the check over many small languages, and what they should be: of V words a
    wrong one leads back by a chance of (1 - p) / (V - 1)."""
    size, counts = SMALL.size, np.zeros((2, 2))
    for i in range(LANGUAGES[tier]):
        one, other = tongues.invented(seed * 10_000 + i, 2, SMALL, alike=True)
        lm: Any = example.Noisy(one, other, KNOWS_WORDS, 0.0, seed * 10_000 + i)
        miner = mining.Miner(ask.Asker(lm, ASKING), one.name, other.name)
        found = miner.dictionary(one.words, Words(rounds=0))
        raw = [lexicon.Pair(p.source, p.target) for p in found]
        gold = list(zip(one.words, other.words, strict=True))
        for row, pairs in enumerate((raw, found)):
            right = lexicon.accuracy(pairs, gold, one.words).recall * size
            counts[row] += right, sum(p.kept for p in pairs)
    right_both = KNOWS_WORDS**2
    precision = right_both / (right_both + (1 - KNOWS_WORDS) ** 2 / (size - 1))
    (before, asked), (after, kept) = counts
    return {
        "before": {"precision": before / asked},
        "after": {"precision": after / kept, "recall": after / asked},
        "formula": {"precision": precision, "recall": right_both},
    }


CHRF, PRECISION = "chrF", "precision"
CHECK, CHOSEN = "the check raises precision", "filtered and chosen beat random ones of the whole pool"
ZERO = "mined demonstrations beat none"
CYCLED = "didact.data.lexicon:cycled"
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

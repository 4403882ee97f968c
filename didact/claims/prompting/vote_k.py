"""The claim of vote-k: which texts are labelled matters where each question has its nearest ones as demonstrations.

The reader is scripted and no language model: each demonstration in the prompt votes for its label with the cube of the
share of the question's words that it has. The whole method runs, and tests the selection; full vote-k uses this
reader's confidence. Tier real tests a pre-trained model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import prompting
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate
from didact.claims.problem import Problem
from didact.data import annotation
from didact.data.encode import TokenizedExample
from didact.types import Demo, Fit, Likelihood, Text
from didact.worlds.mixture import Mixture

POOLS = {"smoke": 1, "quick": 8, "full": 16}  # per seed
SIZES = 600, 100  # of a pool, of its test set
BUDGET, SHOTS = 18, 5
ARMS = ("random", "diversity", "mfl", "fast_votek", "votek")
FLOOR = 0.02  # votes of a label without demonstrations
NAMES = 16  # pools that the example's model is trained on


class Reader:
    """Scores labels by the words that the question and the demonstrations of its prompt have in common."""

    name, context, capabilities = "a reader of shared words (scripted)", 1_000_000, frozenset({"score", "generate"})

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Word counts."""
        return [len(t.split()) for t in texts]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Log-prob of every label after its prompt."""
        votes_of = {prompt: self._speaks(prompt) for prompt in {p for p, _ in pairs}}
        out = []
        for prompt, label in pairs:
            votes = votes_of[prompt]
            share = (votes[label.strip()] + FLOOR) / (sum(votes.values()) + 3 * FLOOR)
            out.append(Likelihood(math.log(share), 1))
        return out

    def generate(self, prompts: Sequence[str], *_: Any, **__: Any) -> list[list[str]]:
        """Empty texts: the reader only scores."""
        return [[""] for _ in prompts]

    @staticmethod
    def _speaks(prompt: str) -> Counter[str]:
        *demos, question = prompt.split("\n\n")
        words, out = set(question.split()) - {"->"}, Counter[str]()
        for line in demos:
            text, _, label = line.rpartition(" ")
            out[label] += (len(words & set(text.split())) / len(words)) ** 3  # type: ignore[assignment]  # a fraction
        return out


def problem(seed: int) -> Problem:
    """A pool whose texts have labels, questions, and a small Llama trained on episodes of several pools."""
    pool, test = Mixture(seed=seed).draw(120, 24)
    episodes = [t.text for i in range(NAMES) for t in _episodes(Mixture(seed=seed + i), 12)]
    base = lab.blank("llama", episodes[:50], 900, d=64, layers=2, heads=4, context=512, seed=seed)
    rows = [TokenizedExample(tuple(ids[:1]), tuple(ids[1:512])) for ids in base.tokenizer(episodes)["input_ids"]]
    fit = Fit(lr=3e-3, epochs=1, rows=8, schedule="cosine", seed=seed)
    model = lab.cached_model(lambda: lab.pretrained(base, rows, fit), *lab.identity(base), rows, fit)
    return Problem(model=model, data={"pool": pool, "test": test}, options={"shots": SHOTS, "separator": "\\n"})


def _episodes(world: Mixture, count: int) -> list[Text]:
    pool, _ = world.draw(6 * count, 0)
    lines = [f"{t.text} {t.extra['completion']}" for t in pool]
    return [Text(text="\n".join(lines[i::count])) for i in range(count)]


def run(seed: int, tier: runner.Tier, arms: Sequence[str] = ARMS) -> runner.Measured:
    """The reader's accuracy with each selector, a mean over pools."""
    pools = [Mixture(seed=100 * seed + i).draw(*SIZES) for i in range(POOLS[tier])]
    out = {arm: {"similar": lab.mean(_accuracy(arm, *p) for p in pools)} for arm in arms}
    if arms == ARMS:
        for arm in ("random", "fast_votek"):
            out[arm]["random"] = lab.mean(_accuracy(arm, *p, retrieval="random") for p in pools)
        out["fast_votek"]["gain"] = out["fast_votek"]["similar"] - out["random"]["similar"]
        out["fast_votek"]["gain_unretrieved"] = out["fast_votek"]["random"] - out["random"]["random"]
    return out


def _accuracy(how: Any, pool: list[Text], test: list[Demo], **more: Any) -> float:
    result = prompting.vote_k(
        Reader(), pool, test=test, select=how, budget=BUDGET, shots=SHOTS, seed=len(pool[0].text), **more
    )  # fmt: skip
    assert result.predict is not None
    answers = result.predict([d.prompt for d in test])
    return lab.mean(a == d.completion for a, d in zip(answers, test, strict=True))


def _undiscounted(graph: Any, most: int, rho: float = 10.0, *_: Any, right: Any = annotation.voted) -> list[int]:
    """Sabotage: votes are not discounted by what is already selected."""
    return right(graph, most, 1.0)


def _fewest(graph: Any, most: int, rho: float = 10.0, *_: Any) -> list[int]:
    """Sabotage: select the texts with the fewest votes."""
    return annotation.Votes(graph).scores[: len(graph)].argsort(kind="stable")[:most].tolist()


def _mixed(vectors: Any, *how: Any, right: Any = annotation.neighbours) -> Any:
    """Sabotage: every text has the neighbours of another."""
    return right(vectors[np.random.default_rng(0).permutation(vectors.shape[0])], *how)


ACCURACY = "accuracy"
FAST = {"arms": ("random", "fast_votek")}
BETTER = "fast vote-k beats random annotation"
VOTED = "didact.data.annotation:voted"
CLAIM = runner.Claim(
    method="vote-k",
    text=(
        "Texts chosen by discounted votes of their neighbours make better demonstrations than as many random ones, "
        "where each question is shown the nearest; with random demonstrations the choice matters much less."
    ),
    run=run,
    gates=(gate("the reader learns from random annotation", "random.similar", at_least=0.5, unit=ACCURACY),),
    tests=(
        difference(BETTER, "fast_votek.similar", "random.similar", ACCURACY, margin=0.02),
        difference("full vote-k beats random annotation", "votek.similar", "random.similar", ACCURACY, margin=0.02),
        difference("with random demonstrations the choice matters less", "fast_votek.gain",
                   "fast_votek.gain_unretrieved", ACCURACY, margin=0.02),
        difference("full vote-k beats fast vote-k", "votek.similar", "fast_votek.similar", ACCURACY, reported=True),
        difference("facility location beats fast vote-k", "mfl.similar", "fast_votek.similar", ACCURACY, reported=True),
        difference("diversity beats random annotation", "diversity.similar", "random.similar", ACCURACY, reported=True),
        bound("what it gains where demonstrations are random", "fast_votek.gain_unretrieved", 0.0, ACCURACY,
              reported=True),
    ),
    sabotages=(
        runner.Sabotage("votes are not discounted", BETTER, "fast_votek.similar", {VOTED: _undiscounted},
                        FAST),
        runner.Sabotage("the fewest votes win", BETTER, "fast_votek.similar", {VOTED: _fewest}, FAST),
        runner.Sabotage("neighbours of other texts", BETTER, "fast_votek.similar",
                        {"didact.data.annotation:neighbours": _mixed}, FAST),
    ),
)  # fmt: skip

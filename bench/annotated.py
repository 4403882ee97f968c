"""Which texts to label, by how often a reader is right behind them: vote-k, and what DSPy and OpenICL would do.

All have the same pools, 18 labels, 5 demonstrations a question (OpenICL's are the same for all questions) and one call
of the same scripted reader a question, so that what differs is the choice. `rate` is the share of right answers.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from didact import prompting
from didact.claims.prompting.vote_k import BUDGET, SHOTS, SIZES, Reader
from didact.data import retrieval
from didact.types import Demo, Text
from didact.worlds.mixture import Mixture

POOLS = 8
Answers = Callable[[list[Text], list[Demo], Any], list[str]]


def _measured(answers: Answers) -> dict[str, Any]:
    right = []
    for seed in range(POOLS):
        pool, test = Mixture(seed=1000 + seed).draw(*SIZES)
        said = answers(pool, test, np.random.default_rng(seed))
        right += [a == d.completion for a, d in zip(said, test, strict=True)]
    return {"rate": float(np.mean(right)), "seconds": 0.0, "peak_mib": 0.0, "value": len(right)}


def votek(select: str) -> dict[str, Any]:
    """`prompting.vote_k`."""

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        how: Any = {"select": select, "budget": BUDGET, "shots": SHOTS}
        result = prompting.vote_k(Reader(), pool, test=test, **how, seed=int(rng.integers(1000)))
        assert result.predict is not None
        return list(result.predict([d.prompt for d in test]))

    return _measured(answers)


def openicl() -> dict[str, Any]:
    """Its vote-k (neighbours by their votes, unless all who vote for them have voted before): fixed demonstrations."""
    with contextlib.redirect_stdout(io.StringIO()):
        from openicl.icl_retriever.icl_votek_retriever import VotekRetriever

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        texts = [t.text for t in pool]
        vectors = retrieval.TfIdf(texts)(texts).toarray()
        chosen = VotekRetriever.votek_select(None, vectors, SHOTS, 3, 1)
        return [_said([pool[i] for i in chosen], d) for d in test]

    return _measured(answers)


def dspy(optimiser: str) -> dict[str, Any]:
    """Its few-shot optimisers with 18 texts drawn at random as the training set."""
    import dspy as library

    class Speaking(library.BaseLM):  # type: ignore[misc]  # no types
        """The reader behind its chat form: demonstrations and the question are turns with marked fields."""

        def __init__(self) -> None:
            super().__init__(model="a reader of shared words")

        def __call__(self, prompt: str | None = None, messages: Any = None, **more: Any) -> list[str]:
            turns = [m["content"] for m in messages or () if m["role"] != "system"]
            texts, labels = ([_field(t, name) for t in turns[at::2]] for at, name in ((0, "text"), (1, "label")))
            shown = [Text(text=t, extra={"completion": la}) for t, la in zip(texts, labels, strict=False)]
            asked = Demo(prompt=texts[-1], completion="", choices=self.choices)
            return [f"[[ ## label ## ]]\n{_said(shown, asked)}\n\n[[ ## completed ## ]]"]

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        lm = Speaking()
        lm.choices = test[0].choices
        library.configure(lm=lm)
        drawn = [pool[i] for i in rng.choice(len(pool), BUDGET, replace=False)]
        train = [library.Example(text=t.text, label=t.extra["completion"]).with_inputs("text") for t in drawn]
        embed = retrieval.TfIdf([t.text for t in pool])
        made = {
            "labeled": lambda: library.LabeledFewShot(k=SHOTS),
            "bootstrap": lambda: library.BootstrapFewShot(
                metric=lambda e, p, trace=None: e.label == p.label,
                max_bootstrapped_demos=SHOTS, max_labeled_demos=SHOTS,
            ),
            "knn": lambda: library.KNNFewShot(
                k=SHOTS, trainset=train, vectorizer=library.Embedder(lambda texts: embed(texts).toarray()),
                max_bootstrapped_demos=0, max_labeled_demos=SHOTS,
            ),
        }[optimiser]()  # fmt: skip
        student = library.Predict("text -> label")
        program = made.compile(student) if optimiser == "knn" else made.compile(student, trainset=train)
        return [program(text=d.prompt).label for d in test]

    return _measured(answers)


def _field(turn: str, name: str) -> str:
    """What stands in a marked field of a turn."""
    return turn.partition(f"[[ ## {name} ## ]]")[2].partition("[[ ##")[0].split("\n\nRespond with")[0].strip()


def _said(shown: Sequence[Text], asked: Demo) -> str:
    """The likeliest label behind these demonstrations."""
    prompt = "\n\n".join([*(f"{t.text} {t.extra['completion']}" for t in shown), asked.prompt])
    labels = list(asked.choices or ())
    return max(
        zip(Reader().score([(prompt, label) for label in labels]), labels, strict=True), key=lambda x: x[0].logp
    )[1]

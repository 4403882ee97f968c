"""Which texts to label, by a reader's accuracy with them as demonstrations: vote-k against DSPy and OpenICL.

All have the same pools, 18 labels, 5 demonstrations per question (OpenICL's are the same for all questions) and one
call of the same scripted reader per question, so that only the selection differs. `rate` is the share of right answers.
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
    correct = []
    for seed in range(POOLS):
        pool, test = Mixture(seed=1000 + seed).draw(*SIZES)
        predictions = answers(pool, test, np.random.default_rng(seed))
        correct += [a == d.completion for a, d in zip(predictions, test, strict=True)]
    return {"rate": float(np.mean(correct)), "seconds": 0.0, "peak_mib": 0.0, "value": len(correct)}


def votek(select: str) -> dict[str, Any]:
    """`prompting.vote_k`."""

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        options: Any = {"select": select, "budget": BUDGET, "shots": SHOTS}
        result = prompting.vote_k(Reader(), pool, test=test, **options, seed=int(rng.integers(1000)))
        assert result.predict is not None
        return list(result.predict([d.prompt for d in test]))

    return _measured(answers)


def openicl() -> dict[str, Any]:
    """OpenICL's vote-k (texts by votes, unless all their voters were counted before): fixed demonstrations."""
    with contextlib.redirect_stdout(io.StringIO()):
        from openicl.icl_retriever.icl_votek_retriever import VotekRetriever

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        texts = [t.text for t in pool]
        vectors = retrieval.TfIdf(texts)(texts).toarray()
        chosen = VotekRetriever.votek_select(None, vectors, SHOTS, 3, 1)
        return [_likeliest_label([pool[i] for i in chosen], d) for d in test]

    return _measured(answers)


def dspy(optimiser: str) -> dict[str, Any]:
    """DSPy's few-shot optimisers with 18 random texts as the training set."""
    import dspy as library

    class ReaderLM(library.BaseLM):  # type: ignore[misc]  # no types
        """The reader behind DSPy's chat format: demonstrations and the question are turns with marked fields."""

        def __init__(self) -> None:
            super().__init__(model="a reader of shared words")

        def __call__(self, prompt: str | None = None, messages: Any = None, **more: Any) -> list[str]:
            turns = [m["content"] for m in messages or () if m["role"] != "system"]
            texts, labels = ([_field(t, name) for t in turns[at::2]] for at, name in ((0, "text"), (1, "label")))
            demos = [Text(text=t, extra={"completion": la}) for t, la in zip(texts, labels, strict=False)]
            question = Demo(prompt=texts[-1], completion="", choices=self.choices)
            return [f"[[ ## label ## ]]\n{_likeliest_label(demos, question)}\n\n[[ ## completed ## ]]"]

    def answers(pool: list[Text], test: list[Demo], rng: Any) -> list[str]:
        lm = ReaderLM()
        lm.choices = test[0].choices
        library.configure(lm=lm)
        drawn = [pool[i] for i in rng.choice(len(pool), BUDGET, replace=False)]
        train = [library.Example(text=t.text, label=t.extra["completion"]).with_inputs("text") for t in drawn]
        embed = retrieval.TfIdf([t.text for t in pool])
        compiler = {
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
        program = compiler.compile(student) if optimiser == "knn" else compiler.compile(student, trainset=train)
        return [program(text=d.prompt).label for d in test]

    return _measured(answers)


def _field(turn: str, name: str) -> str:
    """Return the content of a marked field of a turn."""
    return turn.partition(f"[[ ## {name} ## ]]")[2].partition("[[ ##")[0].split("\n\nRespond with")[0].strip()


def _likeliest_label(demos: Sequence[Text], question: Demo) -> str:
    """Return the likeliest label of `question` after these demonstrations."""
    prompt = "\n\n".join([*(f"{t.text} {t.extra['completion']}" for t in demos), question.prompt])
    labels = list(question.choices or ())
    return max(
        zip(Reader().score([(prompt, label) for label in labels]), labels, strict=True), key=lambda x: x[0].logp
    )[1]

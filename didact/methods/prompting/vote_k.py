"""Selective annotation for in-context learning (Su et al. 2022): which few of many texts to have labelled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, Positive
from didact.data import retrieval as nearness
from didact.evaluate import selective
from didact.evaluate.fewshot_prompts import Setup
from didact.infer import embed
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Cost, Demo, Result, Text

SHOWN = 3  # answers


@method(
    "vote-k",
    paper="Selective Annotation Makes Language Models Better Few-Shot Learners",
    year=2022,
    source="arXiv:2209.01975",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("answer",),
    answers="test",
    presets={
        "fast": {"select": "fast_votek"},
        "official": {"first": 10},
        "coverage": {"select": "mfl"},
        "random": {"select": "random"},
    },
)
def vote_k(
    model: Model | LM,
    pool: Sequence[Text],
    labels: Sequence[Demo] | None = None,
    test: Sequence[Demo] | None = None,
    *,
    budget: Count = 18,
    select: selective.Selector = "votek",
    k: Count | None = None,
    rho: Positive = 10.0,
    first: Count | None = None,
    embedder: str = "tfidf",
    approximate: bool = False,
    choices: tuple[str, ...] = (),
    retrieval: Literal["similar", "random"] = "similar",
    shots: Count = 100,
    tokens: Count = 1000,
    on_overflow: Literal["stop", "skip"] = "stop",
    separator: str = "\n\n",
    max_new_tokens: Count = 32,
    seed: int = 0,
) -> Result:
    """Say which few texts of a pool to have labelled, and answer behind those of them that are most similar.

    Every text votes for its k most similar ones, by rho^-(how many of these are taken); the one with the most votes is
    taken next. After a tenth of the budget the model answers the whole pool behind what is labelled, the pool is cut
    into buckets of equal confidence, and the rest is taken by votes, one of each bucket (fast_votek: votes alone).

    Labelling may stop and go on: what is to be labelled next stands in `records.jsonl`, with an empty completion. Fill
    these in, give the file as `labels`, and run again, until all are labelled. Nothing is kept between two runs: the
    selection follows from pool and labels. A pool whose lines have a `completion` labels itself.

    Args:
        model: scores choices, or generates and scores free answers; causal, seq2seq or a server.
        pool: texts, as the model is to be asked them; none of the test's.
        labels: texts of the pool with their completions.
        test: questions to answer with the labelled ones; with `choices` the likeliest is the answer.
        budget: M, how many to label.
        select: votek; fast_votek (no model); random; diversity (least cosine to those taken); mfl (facility location);
            least_confidence (ten at a time).
        k: neighbours a text votes for; by default 0.05 n, 150 at most.
        rho: what a taken neighbour divides a vote by.
        first: labelled before the model is asked; a tenth of the budget by default (the official code: 10).
        embedder: tfidf, model (the mean of its own last states), a folder, or module:function.
        approximate: neighbours from an index, for pools of 100,000 and more (`didact[index]`).
        choices: the labels there are; by default those of the labels' or the test's own `choices`.
        retrieval: demonstrations of a question: similar (the most similar last) or random.
        shots: demonstrations at most.
        tokens: of a prompt at most, beside the context.
        on_overflow: at the first demonstration that does not fit stop, or skip it.
        separator: between demonstrations, and before the query.
        max_new_tokens: of a free answer.
        seed: of what is drawn.

    Returns:
        the selection as records, `predict(prompts, choices=None)`, findings.

    Raises:
        UserError: a label of what is not in the pool; choices and a model that cannot score.
    """
    began = time.monotonic()
    texts = [t.text for t in pool]
    known = selective.matched(texts, [*selective.own_labels(pool), *(labels or ())])
    some = [d for d in (*known.values(), *(test or ())) if d.choices]
    options = list(choices) or (list(some[0].choices or ()) if some else [])
    lm = language_models.need(model, "score" if options else "generate", by="vote-k")
    setup = Setup(shots=(shots,), separator=separator, max_new_tokens=max_new_tokens, beams=1, seed=seed)
    vectors_of = embed.embedder(embedder, model, texts)
    bank = selective.Bank(lm, vectors_of, [], setup, retrieval, on_overflow, tokens)
    vectors = nearness.embedded(vectors_of, texts)
    chosen = selective.select(
        select, vectors, budget, known, bank, texts, options, k=k, rho=rho, first=first, approximate=approximate,
        seed=seed,
    )  # fmt: skip
    bank.demos = [known[i] for i in chosen.places if i in known]
    items = selective.questions(test or (), options)
    answered = selective.answer(bank, items)
    said = {(str(r.prompt), tuple(r.choices or ())): a for r, a in zip(test or (), answered.answers, strict=True)}

    def predict(prompts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[str]:
        asked = [
            Demo(prompt=p, completion="", choices=list(c) or None)
            for p, c in zip(prompts, choices or [()] * len(prompts), strict=True)
        ]
        new = [d for d in asked if _known(said, d) is None]
        more = iter(selective.answer(bank, selective.questions(new, options)).answers)
        found = [_known(said, d) for d in asked]
        return [next(more) if a is None else a for a in found]

    return Result(
        predict=predict,
        records=selective.to_label(texts, chosen, known, options),
        findings=selective.findings(chosen, known, budget, answered, setup),
        warnings=selective.warnings(texts, chosen, known, budget, test or (), answered),
        samples=[
            {"part": "test", "prompt": r.prompt, "wanted": r.completion, "after": a}
            for r, a in list(zip(test or (), answered.answers, strict=True))[:SHOWN]
        ],
        cost=Cost(seconds=time.monotonic() - began),
    )


def _known(said: dict[tuple[str, tuple[str, ...]], str], asked: Demo) -> str | None:
    """What was answered to it; without choices of its own, to the same prompt with any."""
    if asked.choices:
        return said.get((str(asked.prompt), tuple(asked.choices)))
    return next((a for (prompt, _), a in said.items() if prompt == str(asked.prompt)), None)

"""Selective annotation for in-context learning (Su et al. 2022): which few of many texts to label."""

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

SHOWN = 3  # sample answers in the report


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
    """Choose which few texts of a pool to label, and answer with the most similar labelled ones in the prompt.

    Every text votes for its k most similar ones, by rho^-(how many of these are taken); the one with the most votes is
    taken next. After a tenth of the budget the model answers the whole pool with what is labelled, the pool is sorted
    by confidence and cut into buckets, and the rest is taken by votes, one of each bucket (fast_votek: votes alone).

    Labelling can stop and resume: what is to be labelled next is in `records.jsonl`, with an empty completion. Fill
    these in, give the file as `labels`, and run again, until all are labelled. No state is kept between two runs: the
    selection follows from pool and labels. A pool whose lines have a `completion` is labelled already.

    Args:
        model: scores choices, or generates and scores free answers; causal, seq2seq or a server.
        pool: texts, worded as the prompts of the model; none of the test's.
        labels: texts of the pool with their completions.
        test: questions to answer with the labelled ones; with `choices` the likeliest is the answer.
        budget: M, how many to label.
        select: votek; fast_votek (no model); random; diversity (least cosine to those taken); mfl (facility location);
            least_confidence (ten at a time).
        k: neighbours a text votes for; by default 0.05 n, 150 at most.
        rho: factor by which each taken neighbour divides a vote.
        first: texts labelled before the model is asked; a tenth of the budget by default (the official code: 10).
        embedder: tfidf, model (the mean of its own last states), a folder, or module:function.
        approximate: neighbours from an index, for pools of 100,000 and more (`didact[index]`).
        choices: the possible labels; by default the `choices` of the labels or of the test.
        retrieval: demonstrations of a question: similar (the most similar last) or random.
        shots: maximum number of demonstrations.
        tokens: maximum length of a prompt in tokens, in addition to the context's limit.
        on_overflow: at the first demonstration that does not fit stop, or skip it.
        separator: text between demonstrations, and before the query.
        max_new_tokens: maximum length of a free answer.
        seed: random seed of all draws.

    Returns:
        the selection as records, `predict(prompts, choices=None)`, findings.

    Raises:
        UserError: a label of a text that is not in the pool; choices and a model that cannot score.
    """
    start_time = time.monotonic()
    texts = [t.text for t in pool]
    labelled = selective.matched(texts, [*selective.own_labels(pool), *(labels or ())])
    with_choices = [d for d in (*labelled.values(), *(test or ())) if d.choices]
    options = list(choices) or (list(with_choices[0].choices or ()) if with_choices else [])
    lm = language_models.need(model, "score" if options else "generate", by="vote-k")
    setup = Setup(shots=(shots,), separator=separator, max_new_tokens=max_new_tokens, beams=1, seed=seed)
    vectors_of = embed.embedder(embedder, model, texts)
    bank = selective.Bank(lm, vectors_of, [], setup, retrieval, on_overflow, tokens)
    vectors = nearness.embedded(vectors_of, texts)
    chosen = selective.select(
        select, vectors, budget, labelled, bank, texts, options, k=k, rho=rho, first=first, approximate=approximate,
        seed=seed,
    )  # fmt: skip
    bank.demos = [labelled[i] for i in chosen.places if i in labelled]
    items = selective.questions(test or (), options)
    answered = selective.answer(bank, items)
    cache = {(str(r.prompt), tuple(r.choices or ())): a for r, a in zip(test or (), answered.answers, strict=True)}

    def predict(prompts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[str]:
        items = [
            Demo(prompt=p, completion="", choices=list(c) or None)
            for p, c in zip(prompts, choices or [()] * len(prompts), strict=True)
        ]
        new = [d for d in items if _cached(cache, d) is None]
        new_answers = iter(selective.answer(bank, selective.questions(new, options)).answers)
        answers = [_cached(cache, d) for d in items]
        return [next(new_answers) if a is None else a for a in answers]

    return Result(
        predict=predict,
        records=selective.to_label(texts, chosen, labelled, options),
        findings=selective.findings(chosen, labelled, budget, answered, setup),
        warnings=selective.warnings(texts, chosen, labelled, budget, test or (), answered),
        samples=[
            {"part": "test", "prompt": r.prompt, "wanted": r.completion, "after": a}
            for r, a in list(zip(test or (), answered.answers, strict=True))[:SHOWN]
        ],
        cost=Cost(seconds=time.monotonic() - start_time),
    )


def _cached(said: dict[tuple[str, tuple[str, ...]], str], asked: Demo) -> str | None:
    """Return the cached answer to a question; without choices of its own, to the same prompt with any choices."""
    if asked.choices:
        return said.get((str(asked.prompt), tuple(asked.choices)))
    return next((a for (prompt, _), a in said.items() if prompt == str(asked.prompt)), None)

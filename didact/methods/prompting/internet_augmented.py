"""Internet-augmented few-shot prompting (Lazaridou et al. 2022): answer from each of many passages, then rerank."""

from __future__ import annotations

import time
from collections.abc import Sequence

from didact.bounds import Count, NonNegative, Whole
from didact.evaluate import open_book, open_book_findings
from didact.infer import ask, evidence, rerank
from didact.infer import lm as language_models
from didact.infer.ask import Asking
from didact.infer.evidence import Ranker
from didact.infer.rerank import Rule
from didact.models.model import Model
from didact.registry import method
from didact.tools.pages import Web
from didact.tools.search import Search
from didact.types import LM, Cost, Demo, Passage, Result

NAME = "internet-augmented"
EXPERTS: dict[Rule, tuple[open_book.Layout, ...]] = {
    "direct": ("answer",), "rag": ("answer",), "noisy-channel": ("answer", "question", "plain", "ask"),
    "poe": ("answer", "question", "plain", "ask"),
}  # fmt: skip


@method(
    NAME,
    paper="Internet-augmented language models through few-shot prompting for open-domain question answering",
    year=2022,
    source="arXiv:2203.05115",
    gives=("predict", "findings", "records"),
    capabilities=("generate",),
    protocol=("answer",),
    answers="test",
    presets={"direct": {"rule": "direct"}, "rag": {"rule": "rag"}, "noisy-channel": {"rule": "noisy-channel"}},
)
def internet_augmented(
    model: Model | LM,
    test: Sequence[Demo] | None = None,
    demos: Sequence[Demo] | None = None,
    passages: Sequence[Passage] | None = None,
    dev: Sequence[Demo] | None = None,
    *,
    search: str | Search = "",
    ranker: Ranker = "tfidf",
    documents: Count = 20,
    sentences: Count = 6,
    paragraphs: Count = 50,
    samples: Count = 4,
    shots: Whole = 15,
    rule: Rule = "poe",
    weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 1.0, 1.0, 1.0),
    mean: bool = False,
    closed_book: bool = True,
    keep_leaks: bool = False,
    asking: Asking = Asking(max_new_tokens=32, temperature=1.0, top_p=0.8),
    web: Web = Web(),
    seed: int = 0,
) -> Result:
    """Answer questions from retrieved passages, without changing a weight.

    A search engine (or your own documents) gives documents for a question, which are cut into paragraphs; the nearest
    to the question are read one at a time: `Evidence: ... Question: ... Answer:` after demonstrations of the same form.
    Every answer a sampled from a passage p is scored by the same model, in three more orders of the fields, and one of

        direct         log p(a | q, p)
        rag            log sum_p p(p | q) p(a | q, p)
        noisy-channel  log p(q | a, p) + log p(a | p) - log p(q | p)
        poe            w1 log p(a | q, p) + w2 log p(q | a, p) + w3 log p(a | p) + w4 log p(p | q)

    chooses the answer; p(p | q) are the paragraphs' scores over their sum. A question with `choices` has those as
    candidates. A model that cannot score (most chat servers) ranks by how often an answer was sampled, weighted by
    `p(p | q)`. A page's text only enters the prompts of its own question, as one line.

    Args:
        model: generates, and scores, except to rank by frequency; local or a server.
        test: questions; `answers` are accepted in addition to the completion.
        demos: question, answer and, as `context`, the paragraph with the answer; one is retrieved if there is none.
        passages: documents to search in, if there is no `search`.
        dev: questions on which poe's weights are chosen, from 0, 0.5 and 1.
        search: a SearXNG-like engine (`http://localhost:8080`), or `module:function`, which takes a list of questions
            and a number and gives a list of documents each: texts, or `{"text", "url", "title", "date"}`.
        ranker: how paragraphs are ranked: tfidf (cosine) or bm25.
        documents: documents retrieved for each question.
        sentences: sentences per paragraph.
        paragraphs: paragraphs read for each question.
        samples: answers sampled from each paragraph.
        shots: maximum number of demonstrations; as many as fit the context.
        rule: which rule chooses the answer.
        weights: weights of poe's four experts.
        mean: log-probs of answers are means over their tokens, which favours short ones less.
        closed_book: also answer without passages, from as many samples; for the findings.
        keep_leaks: keep search results that have a test question with its answer; they are counted either way, and your
            own passages are kept.
        asking: how answers are sampled.
        web: how search and pages are read, and the file that freezes results for replay.
        seed: random seed of the samples.

    Returns:
        `predict(prompts)`; records with the `prediction`, its `passage` and `url`, how many passages gave it and its
        confidence; findings: exact match of every rule, of the first passage alone, without passages and of the best
        candidate.

    Raises:
        UserError: nothing to search, a search without results, frozen results that lack a question.
    """
    start_time = time.monotonic()
    lm = language_models.need(model, "generate", by=NAME)
    no_scores = language_models.lacks(lm, "score")
    final_rule: Rule = "rag" if no_scores else rule
    library = evidence.Library(
        evidence.open_library(search, passages, web), passages or (), documents, sentences, paragraphs, ranker,
        web.until, keep_leaks,
    )  # fmt: skip
    asker = ask.Asker(lm, asking, seed)
    examples = open_book.with_evidence(list(demos or ())[:shots], library)
    prompter = open_book.Prompter(lm, examples, asking.max_new_tokens)
    reader = open_book.Reader(
        asker,
        prompter,
        library,
        samples,
        () if no_scores else EXPERTS[rule],
        final_rule == "rag" and not no_scores,
        mean,
    )
    if dev and final_rule == "poe":
        scored = [(o.table, o.right()) for o in reader.read(dev) if o.table]
        weights = rerank.tuned([table for table, _ in scored], [right for _, right in scored])
    outcomes = reader.read(test or (), closed_book)
    library.freeze()
    answers = {o.item.prompt: o.answer(final_rule, weights) for o in outcomes}

    def predict(prompts: Sequence[str]) -> list[str]:
        new = [Demo(prompt=p, completion="") for p in dict.fromkeys(prompts) if p not in answers]
        answers.update((o.item.prompt, o.answer(final_rule, weights)) for o in reader.read(new))
        return [answers[p] for p in prompts]

    settings = {"rule": final_rule, "weights": weights, "lost": library.lost}
    return Result(
        predict=predict, records=[open_book_findings.with_source(o, final_rule, weights) for o in outcomes],
        transcript=list(asker.demos()),
        findings=asker.findings() | open_book_findings.findings(outcomes, final_rule, weights) | settings,
        samples=[
            {"prompt": o.item.prompt, "before": o.closed or "", "after": answers[o.item.prompt]} for o in outcomes[:8]
        ],
        warnings=open_book_findings.warning_lines(reader, outcomes, no_scores) + asker.warnings(),
        cost=Cost(calls=len(asker.exchanges), seconds=time.monotonic() - start_time),
    )  # fmt: skip

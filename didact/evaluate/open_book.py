"""Open-book question answering: answers sampled from each passage alone, all of them scored by several experts.

Source: Lazaridou et al. 2022, arXiv:2203.05115.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from didact import untrusted
from didact.data import demonstrations, retrieval
from didact.evaluate import qa
from didact.infer import rerank
from didact.infer.ask import Asker
from didact.infer.evidence import Evidence, Library
from didact.infer.rerank import Rule, Table
from didact.types import LM, Demo, Likelihood

Layout = Literal["answer", "question", "plain", "ask", "closed"]
LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "answer": ("Evidence", "Question", "Answer"),
    "question": ("Evidence", "Answer", "Question"),
    "plain": ("Evidence", "Answer"),
    "ask": ("Evidence", "Question"),
    "closed": ("Question", "Answer"),
}
"""The fields of a block in order; the last one is what the model completes."""
APART = "\n\n"
BATCH = 16  # questions asked at once
SLACK = 4  # tokens that a tokenizer may put around a text


class Query(NamedTuple):
    """The content of one prompt: its layout and the fields; `answer` may be empty."""

    layout: Layout
    evidence: str
    question: str
    answer: str = ""

    def block(self, whole: bool = True) -> str:
        """The lines of the fields; without the last one's text unless `whole`."""
        fields = {"Evidence": self.evidence, "Question": self.question, "Answer": self.answer}
        names = LAYOUTS[self.layout]
        lines = [f"{name}: {fields[name].strip()}" for name in names[: None if whole else -1]]
        return "\n".join(lines if whole else [*lines, f"{names[-1]}:"])

    @property
    def target(self) -> str:
        """The text that is scored: the last field with a line end, as for all candidates."""
        return {"Question": self.question, "Answer": self.answer}[LAYOUTS[self.layout][-1]].strip() + "\n"


class Prompter:
    """Puts the same demonstrations before every query, in the query's layout.

    Demonstrations farthest from the query are left out until the prompt and `room` further tokens fit the context; the
    first demonstration is the nearest. `cut` counts queries that do not fit even alone.
    """

    def __init__(self, lm: LM, demos: Sequence[Demo], room: int) -> None:
        self.lm, self.demos, self.room, self.cut = lm, demos, room, 0
        self.keys = [demonstrations.key(d) for d in demos]
        self.blocks: dict[Layout, tuple[list[str], list[int]]] = {}

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """The prompts; a demonstration with the query's own question is left out."""
        tails = [q.block(whole=False) for q in queries]
        sizes = self.lm.tokens([q.block() for q in queries])
        out = []
        for query, tail, size in zip(queries, tails, sizes, strict=True):
            texts, costs = self._rendered(query.layout)
            budget = self.lm.context - SLACK - self.room - size
            self.cut += budget < 0
            own_key = demonstrations.key(Demo(prompt=query.question, completion=""))
            order = [i for i, key in enumerate(self.keys) if key != own_key]
            fitting = retrieval.fitting(order, costs, max(budget, 0))
            out.append(demonstrations.assemble("", [texts[i] for i in fitting], tail, APART))
        return out

    def _rendered(self, layout: Layout) -> tuple[list[str], list[int]]:
        if layout not in self.blocks:
            texts = [Query(layout, d.context or "", d.prompt, d.completion).block() for d in self.demos]
            self.blocks[layout] = texts, self.lm.tokens([t + APART for t in texts]) if texts else []
        return self.blocks[layout]


@dataclass
class Outcome:
    """Results of one question.

    Its distinct answers, how often each was drawn from every passage (`drawn`, `(A, P)`), their table of scores, and
    the answer without evidence. `answers` is empty if there was no evidence or no budget left.
    """

    item: Demo
    evidence: Evidence
    answers: list[str] = field(default_factory=list)
    drawn: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    table: Table | None = None
    closed: str | None = None

    def right(self) -> list[bool]:
        """Which answers are accepted."""
        return [correct(a, self.item) for a in self.answers]

    def best(self, rule: Rule, weights: Sequence[float]) -> rerank.Best | None:
        """A rule's choice; None if an expert that it needs is missing."""
        return rerank.best(self.table, rule, weights) if self.table else None

    def choice(self, rule: Rule, weights: Sequence[float]) -> rerank.Best | None:
        """A rule's choice; by the counts of draws if the budget ended before answers were scored."""
        return self.best(rule, weights) or self.best("rag", weights)

    def answer(self, rule: Rule, weights: Sequence[float]) -> str:
        """The text of a rule's choice; else the closed-book answer, else empty."""
        best = self.choice(rule, weights)
        return self.answers[best.answer] if best is not None else self.closed or ""


@dataclass
class Reader:
    """Answers questions from passages.

    Args:
        asker: samples answers.
        prompter: writes prompts.
        library: retrieves passages.
        samples: answers sampled from each passage.
        experts: log-probs to score answers by, of `answer`, `question`, `plain` and `ask`; empty if the model cannot
            score: p(a | q, p) is then the share of draws.
        every: whether every answer is scored with every passage, or only with those that it was drawn from.
        mean: log-probs of answers are means over their tokens.
    """

    asker: Asker
    prompter: Prompter
    library: Library
    samples: int
    experts: tuple[Layout, ...] = ("answer", "question", "plain", "ask")
    every: bool = False
    mean: bool = False

    def read(self, items: Sequence[Demo], closed: bool = False) -> list[Outcome]:
        """Answer every question from its own passages; also closed-book if it has none, or if `closed`."""
        out: list[Outcome] = []
        for first in range(0, len(items), BATCH):
            batch = self._with_evidence(items[first : first + BATCH])
            self._closed_book([o for o in batch if closed or not o.evidence.passages])
            out += batch
        return out

    def _with_evidence(self, items: Sequence[Demo]) -> list[Outcome]:
        outcomes = [Outcome(item, near) for item, near in zip(items, self.library(items), strict=True)]
        pairs = [(o, p) for o in outcomes if not o.item.choices for p in range(len(o.evidence.passages))]
        queries = [Query("answer", o.evidence.passages[p].text, o.item.prompt) for o, p in pairs]
        drawn = self._draw(queries, [o.item for o, _ in pairs], self.samples)
        for o in outcomes:
            texts = [drawn[i] for i, (outcome, _) in enumerate(pairs) if outcome is o]
            if o.item.choices and o.evidence.passages:
                texts = [list(o.item.choices)] * len(o.evidence.passages)
            o.answers, o.drawn = _distinct(texts)
        self._score([o for o in outcomes if o.answers])
        return outcomes

    def _closed_book(self, outcomes: Sequence[Outcome]) -> None:
        """Answer without evidence, from as many draws as with evidence."""
        for o in outcomes:
            count = self.samples * max(len(o.evidence.passages), 1)
            query = Query("closed", "", o.item.prompt)
            drawn = [list(o.item.choices)] if o.item.choices else self._draw([query], [o.item], count, "closed book")
            answers, counts = _distinct(drawn)
            if not answers:
                continue
            if self.experts:
                likelihoods = self._logp([query._replace(answer=a) for a in answers])
                if likelihoods is None:
                    continue
                o.closed = answers[int(np.argmax([self._value(likelihood) for likelihood in likelihoods]))]
            else:
                o.closed = answers[int(np.argmax(counts[:, 0]))]

    def _draw(self, queries: Sequence[Query], items: Sequence[Demo], n: int, role: str = "reader") -> list[list[str]]:
        """Sample n answers to every query; unreadable ones are left out."""
        prompts = self.prompter(queries)
        indices = {id(item): i for i, item in enumerate({id(i): i for i in items}.values())}
        answers = self.asker.ask(
            [p for p in prompts for _ in range(n)], first_line, role,
            [indices[id(item)] for item in items for _ in range(n)], stop=("\n",),
        )  # fmt: skip
        return [[a for a in answers[i * n : (i + 1) * n] if a] for i in range(len(queries))]

    def _score(self, outcomes: Sequence[Outcome]) -> None:
        """Fill the tables of scores."""
        for o in outcomes:  # p(a | q, p) from the counts of draws
            o.table = Table(rerank.prior(o.evidence.scores), _logs(o.drawn / np.maximum(o.drawn.sum(0), 1)))
        if not self.experts:
            return
        places, queries = [], []
        for n, o in enumerate(outcomes):
            all_pairs = self.every or bool(o.item.choices)
            pairs = np.argwhere(np.ones_like(o.drawn) if all_pairs else o.drawn > 0)
            for layout in self.experts:
                for a, p in pairs if layout != "ask" else [(0, p) for p in range(o.drawn.shape[1])]:
                    places.append((n, layout, a, p))
                    queries.append(Query(layout, o.evidence.passages[p].text, o.item.prompt, o.answers[a]))
        likelihoods = self._logp(queries)
        if likelihoods is None:  # the budget ended
            return
        logps = {
            (n, e): np.full(o.drawn.shape if e != "ask" else o.drawn.shape[1:], -np.inf)
            for n, o in enumerate(outcomes)
            for e in self.experts
        }
        for (n, layout, a, p), likelihood in zip(places, likelihoods, strict=True):
            logps[n, layout][p if layout == "ask" else (a, p)] = (
                self._value(likelihood) if layout in ("answer", "plain") else likelihood.logp
            )
        for n, o in enumerate(outcomes):
            o.table = Table(rerank.prior(o.evidence.scores), **{e: logps[n, e] for e in self.experts})

    def _logp(self, queries: Sequence[Query]) -> list[Likelihood] | None:
        """Log-probs of each query's target; None if a server's budget ended."""
        return self.asker.score([(p, q.target) for p, q in zip(self.prompter(queries), queries, strict=True)])

    def _value(self, likelihood: Likelihood) -> float:
        return likelihood.logp / max(likelihood.tokens, 1) if self.mean else likelihood.logp


def with_evidence(demos: Sequence[Demo], library: Library) -> list[Demo]:
    """Demonstrations with their evidence as `context`, retrieved if they have none."""
    bare = [d for d in demos if not d.context]
    near = iter(library(bare))
    evidence = [d.context or " ".join(p.text for p in next(near).passages[:1]) for d in demos]
    clean = [untrusted.prose(text) for text in evidence]
    return [Demo(prompt=d.prompt, completion=d.completion, context=text) for d, text in zip(demos, clean, strict=True)]


def first_line(reply: str) -> str | None:
    """The answer in a reply: its first line; None if that has no words."""
    line = reply.strip().partition("\n")[0].strip()
    return line if qa.normalise(line) else None


def correct(answer: str, item: Demo) -> bool:
    """Whether an answer is one of the accepted ones by SQuAD's exact match."""
    return bool(qa.exact_match(answer, item.answers or [item.completion]))


def _distinct(drawn: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Distinct answers after normalisation, and how often each was drawn from every passage, `(A, P)`."""
    originals: dict[str, str] = {}
    for texts in drawn:
        for text in texts:
            originals.setdefault(qa.normalise(text) or text, text)
    index = {name: a for a, name in enumerate(originals)}
    counts = np.zeros((len(originals), len(drawn)))
    for p, texts in enumerate(drawn):
        for text in texts:
            counts[index[qa.normalise(text) or text], p] += 1
    return list(originals.values()), counts


def _logs(shares: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda s: math.log(s) if s > 0 else -math.inf, otypes=[float])(shares)

"""Questions answered beside passages: an answer drawn from each passage alone, all of them scored by several experts.

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
"""The fields of a block in their order; the last is what is asked for."""
APART = "\n\n"
BATCH = 16  # questions asked side by side
SLACK = 4  # tokens that a tokenizer may put around a text


class Query(NamedTuple):
    """What one prompt is about: its layout, and the fields; `answer` may be unknown yet."""

    layout: Layout
    evidence: str
    question: str
    answer: str = ""

    def block(self, whole: bool = True) -> str:
        """Its lines; without the last one's text where not `whole`."""
        told = {"Evidence": self.evidence, "Question": self.question, "Answer": self.answer}
        names = LAYOUTS[self.layout]
        lines = [f"{name}: {told[name].strip()}" for name in names[: None if whole else -1]]
        return "\n".join(lines if whole else [*lines, f"{names[-1]}:"])

    @property
    def wanted(self) -> str:
        """What is scored: the last field with the line's end, which is the same for all candidates."""
        return {"Question": self.question, "Answer": self.answer}[LAYOUTS[self.layout][-1]].strip() + "\n"


class Prompter:
    """Puts the same demonstrations before every query, in the query's layout.

    Those farthest from it are left out until the prompt fits the context beside `room` tokens; the first demonstration
    is the nearest. `cut` counts queries that do not fit even alone.
    """

    def __init__(self, lm: LM, shown: Sequence[Demo], room: int) -> None:
        self.lm, self.shown, self.room, self.cut = lm, shown, room, 0
        self.keys = [demonstrations.key(d) for d in shown]
        self.blocks: dict[Layout, tuple[list[str], list[int]]] = {}

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """The prompts, none of which shows the answer to its own question."""
        tails = [q.block(whole=False) for q in queries]
        sizes = self.lm.tokens([q.block() for q in queries])
        out = []
        for query, tail, size in zip(queries, tails, sizes, strict=True):
            texts, costs = self._written(query.layout)
            left = self.lm.context - SLACK - self.room - size
            self.cut += left < 0
            own = demonstrations.key(Demo(prompt=query.question, completion=""))
            order = [i for i, key in enumerate(self.keys) if key != own]
            kept = retrieval.fitting(order, costs, max(left, 0))
            out.append(demonstrations.assemble("", [texts[i] for i in kept], tail, APART))
        return out

    def _written(self, layout: Layout) -> tuple[list[str], list[int]]:
        if layout not in self.blocks:
            texts = [Query(layout, d.context or "", d.prompt, d.completion).block() for d in self.shown]
            self.blocks[layout] = texts, self.lm.tokens([t + APART for t in texts]) if texts else []
        return self.blocks[layout]


@dataclass
class Outcome:
    """One question.

    Its distinct answers, how often each was drawn beside every passage `(A, P)`, their table, and what was answered
    without evidence. `answers` is empty where nothing was asked, for want of evidence or budget.
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
        """What a rule chooses; None where it lacks an expert."""
        return rerank.best(self.table, rule, weights) if self.table else None

    def given(self, rule: Rule, weights: Sequence[float]) -> rerank.Best | None:
        """The same; by how often answers were drawn where the budget ended before they were scored."""
        return self.best(rule, weights) or self.best("rag", weights)

    def said(self, rule: Rule, weights: Sequence[float]) -> str:
        """The answer a rule chooses; where nothing was found that without passages, else nothing."""
        found = self.given(rule, weights)
        return self.answers[found.answer] if found is not None else self.closed or ""


@dataclass
class Reader:
    """Reads passages for questions.

    Args:
        asker: draws answers.
        prompter: writes prompts.
        library: finds passages.
        samples: answers drawn beside each passage.
        experts: log-probs to score answers by, of `answer`, `question`, `plain` and `ask`; none where the model cannot
            score, and p(a | q, p) is then the share of draws.
        every: whether every answer is scored beside every passage, or beside those alone that it was drawn from.
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
        """Every question beside its own passages; those without any, and with `closed` all, without passages too."""
        out: list[Outcome] = []
        for first in range(0, len(items), BATCH):
            some = self._beside(items[first : first + BATCH])
            self._closed([o for o in some if closed or not o.evidence.passages])
            out += some
        return out

    def _beside(self, items: Sequence[Demo]) -> list[Outcome]:
        outcomes = [Outcome(item, near) for item, near in zip(items, self.library(items), strict=True)]
        asked = [(o, p) for o in outcomes if not o.item.choices for p in range(len(o.evidence.passages))]
        queries = [Query("answer", o.evidence.passages[p].text, o.item.prompt) for o, p in asked]
        drawn = self._draw(queries, [o.item for o, _ in asked], self.samples)
        for o in outcomes:
            texts = [drawn[i] for i, (other, _) in enumerate(asked) if other is o]
            if o.item.choices and o.evidence.passages:
                texts = [list(o.item.choices)] * len(o.evidence.passages)
            o.answers, o.drawn = _distinct(texts)
        self._score([o for o in outcomes if o.answers])
        return outcomes

    def _closed(self, outcomes: Sequence[Outcome]) -> None:
        """Answer without evidence, of as many draws as were made beside passages."""
        for o in outcomes:
            count = self.samples * max(len(o.evidence.passages), 1)
            query = Query("closed", "", o.item.prompt)
            drawn = [list(o.item.choices)] if o.item.choices else self._draw([query], [o.item], count, "closed book")
            answers, times = _distinct(drawn)
            if not answers:
                continue
            if self.experts:
                found = self._logp([query._replace(answer=a) for a in answers])
                if found is None:
                    continue
                o.closed = answers[int(np.argmax([self._value(f) for f in found]))]
            else:
                o.closed = answers[int(np.argmax(times[:, 0]))]

    def _draw(self, queries: Sequence[Query], items: Sequence[Demo], n: int, role: str = "reader") -> list[list[str]]:
        """n answers to every query, those that could be read."""
        prompts = self.prompter(queries)
        numbers = {id(item): i for i, item in enumerate({id(i): i for i in items}.values())}
        said = self.asker.ask(
            [p for p in prompts for _ in range(n)], first_line, role,
            [numbers[id(item)] for item in items for _ in range(n)], stop=("\n",),
        )  # fmt: skip
        return [[a for a in said[i * n : (i + 1) * n] if a] for i in range(len(queries))]

    def _score(self, outcomes: Sequence[Outcome]) -> None:
        """Fill the tables."""
        for o in outcomes:  # p(a | q, p) by how often it was drawn
            o.table = Table(rerank.prior(o.evidence.scores), _logs(o.drawn / np.maximum(o.drawn.sum(0), 1)))
        if not self.experts:
            return
        places, queries = [], []
        for n, o in enumerate(outcomes):
            whole = self.every or bool(o.item.choices)
            pairs = np.argwhere(np.ones_like(o.drawn) if whole else o.drawn > 0)
            for layout in self.experts:
                for a, p in pairs if layout != "ask" else [(0, p) for p in range(o.drawn.shape[1])]:
                    places.append((n, layout, a, p))
                    queries.append(Query(layout, o.evidence.passages[p].text, o.item.prompt, o.answers[a]))
        found = self._logp(queries)
        if found is None:  # the budget ended
            return
        made = {
            (n, e): np.full(o.drawn.shape if e != "ask" else o.drawn.shape[1:], -np.inf)
            for n, o in enumerate(outcomes)
            for e in self.experts
        }
        for (n, layout, a, p), likelihood in zip(places, found, strict=True):
            made[n, layout][p if layout == "ask" else (a, p)] = (
                self._value(likelihood) if layout in ("answer", "plain") else likelihood.logp
            )
        for n, o in enumerate(outcomes):
            o.table = Table(rerank.prior(o.evidence.scores), **{e: made[n, e] for e in self.experts})

    def _logp(self, queries: Sequence[Query]) -> list[Likelihood] | None:
        """Log-probs of what each query wants; None where a server's budget ended."""
        return self.asker.score([(p, q.wanted) for p, q in zip(self.prompter(queries), queries, strict=True)])

    def _value(self, likelihood: Likelihood) -> float:
        return likelihood.logp / max(likelihood.tokens, 1) if self.mean else likelihood.logp


def shown(demos: Sequence[Demo], library: Library) -> list[Demo]:
    """Demonstrations with their evidence as `context`, looked up where they bring none."""
    bare = [d for d in demos if not d.context]
    near = iter(library(bare))
    told = [d.context or " ".join(p.text for p in next(near).passages[:1]) for d in demos]
    clean = [untrusted.prose(text) for text in told]
    return [Demo(prompt=d.prompt, completion=d.completion, context=text) for d, text in zip(demos, clean, strict=True)]


def first_line(reply: str) -> str | None:
    """An answer: the first line; None where it says nothing."""
    line = reply.strip().partition("\n")[0].strip()
    return line if qa.normalise(line) else None


def correct(answer: str, item: Demo) -> bool:
    """Whether an answer is one of those accepted, as SQuAD compares them."""
    return bool(qa.exact_match(answer, item.answers or [item.completion]))


def _distinct(drawn: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Answers that differ after normalisation, and how often each was drawn beside every passage `(A, P)`."""
    first: dict[str, str] = {}
    for texts in drawn:
        for text in texts:
            first.setdefault(qa.normalise(text) or text, text)
    names = {name: a for a, name in enumerate(first)}
    times = np.zeros((len(first), len(drawn)))
    for p, texts in enumerate(drawn):
        for text in texts:
            times[names[qa.normalise(text) or text], p] += 1
    return list(first.values()), times


def _logs(shares: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda s: math.log(s) if s > 0 else -math.inf, otypes=[float])(shares)

"""Ask a model items with demonstrations: choices scored by GPT-3's rules, free answers generated and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from didact import progress
from didact.data import demonstrations, words
from didact.evaluate import qa
from didact.evaluate.fewshot_prompts import Free, Prompter, Setup, Shown
from didact.infer import generate, rank
from didact.infer import lm as language_models
from didact.types import LM, Cost, Demo, UserError

Floats = NDArray[np.float64]
RULES: tuple[rank.Rule, ...] = get_args(rank.Rule)
TIE = 1e-6  # nats: scores closer than this are tied


@dataclass
class Outcome:
    """Results of the items at one K.

    `right` is `{rule: (items, draws)}` in [0, 1] (free-form answers have one rule, the metric); `answers` are those of
    the first draw, `scores` its scores of all choices; `used` is the number of demonstrations in the prompt
    `(items, draws)`, `cut` the number of queries that do not fit the context even alone.
    """

    shots: int
    right: dict[str, Floats]
    answers: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    used: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    cut: int = 0


class Asker:
    """Asks one model items with demonstrations from one pool, and counts the cost.

    Args:
        lm: the model, with `score` for choices or `generate` for free answers.
        pool: the demonstrations; an item of the pool is never its own demonstration.
        setup: how items are asked.
        selection: selects an item's demonstrations in place of a random draw.
    """

    def __init__(self, lm: LM, pool: Sequence[Demo], setup: Setup, selection: Shown | None = None) -> None:
        self.lm, self.setup, self.cost = lm, setup, Cost()
        self.prompter = Prompter(lm, pool, setup, selection)

    def outcomes(self, items: Sequence[Demo]) -> dict[int, Outcome]:
        """The outcome at every K of the setup. At K = 0 all draws are the same, so one is run."""
        out = {}
        for k in self.setup.shots:
            count, draws = self.setup.draws if k else 1, []
            for d in range(count):
                with progress.within(f"K = {k}, draw {d + 1} of {count}"):
                    draws.append(self.ask(items, k, d))
            draws += draws[:1] * (self.setup.draws - len(draws))
            first = draws[0]
            right = {rule: np.stack([d.right[rule][:, 0] for d in draws], 1) for rule in first.right}
            used = np.concatenate([d.used for d in draws], 1)
            out[k] = Outcome(k, right, first.answers, first.scores, used, first.cut)
        return out

    def ask(self, items: Sequence[Demo], k: int, draw: int = 0) -> Outcome:
        """Ask every item with one draw of K demonstrations."""
        free = not choices(items)
        prompts = self.prompter.prompts(items, k, draw, self.setup.max_new_tokens if free else 0)
        self.cost.tokens += prompts.tokens
        outcome = Outcome(k, {}, used=np.array(prompts.used)[:, None], cut=prompts.cut)
        (self._generate if free else self._choose)(items, prompts.before, outcome)
        return outcome

    def _choose(self, items: Sequence[Demo], before: Sequence[str], outcome: Outcome) -> None:
        """Score every choice by every rule; add the results to `outcome`."""
        setup = self.setup
        ends = [demonstrations.pairs(record, setup.framing) for record in items]
        pairs = [
            (demonstrations.assemble("", [head], end, setup.separator), scored)
            for head, row in zip(before, ends, strict=True)
            for end, scored in row
        ]
        bare = list(dict.fromkeys(scored for _, scored in pairs))
        # All in one call, so that the model can share common prefixes.
        requests = [*((setup.answer_context.rstrip(" "), text) for text in bare), *pairs]
        self.cost.calls += len(requests)
        results = iter(self.lm.score(requests))
        bare_logp = {text: next(results).logp for text in bare}
        likelihoods = [[(scored, next(results)) for _, scored in row] for row in ends]
        for rule in RULES:
            scores = [
                [
                    rank.by_rule(rule, result.logp, result.tokens, max(1, len(text.strip())), bare_logp[text])
                    for text, result in row
                ]
                for row in likelihoods
            ]
            right = [credit(s, demonstrations.gold(r)) for s, r in zip(scores, items, strict=True)]
            outcome.right[rule] = np.array(right)[:, None]
            outcome.scores[rule] = scores
            outcome.answers[rule] = [
                demonstrations.options(r)[int(np.argmax(s))] for s, r in zip(scores, items, strict=True)
            ]

    def _generate(self, items: Sequence[Demo], before: Sequence[str], outcome: Outcome) -> None:
        """Generate answers up to the stop string and compare them: beam search on a local model, else greedy."""
        setup, stop = self.setup, (self.setup.stop,) if self.setup.stop else ()
        requests = [
            demonstrations.assemble("", [head], demonstrations.question(r, setup.framing), setup.separator)
            for head, r in zip(before, items, strict=True)
        ]
        self.cost.calls += len(requests)
        if isinstance(self.lm, language_models.Local):
            answers = generate.generate(
                self.lm.model, requests, setup.max_new_tokens, stop=stop, beams=setup.beams,
                length_penalty=setup.length_penalty,
            )  # fmt: skip
        else:
            answers = [draws[0].strip() for draws in self.lm.generate(requests, setup.max_new_tokens, stop=stop)]
        right = [matches(a, r.answers or [r.completion], setup.metric) for a, r in zip(answers, items, strict=True)]
        outcome.right[setup.metric] = np.array(right)[:, None]
        outcome.answers[setup.metric] = answers


def choices(items: Sequence[Demo]) -> bool:
    """Whether items have choices.

    Raises:
        UserError: only some have choices, or a right answer is not among them.
    """
    has_choices = [bool(r.choices) for r in items]
    if any(has_choices) and not all(has_choices):
        raise UserError(f"record {has_choices.index(False) + 1} has no choices but others do: evaluate them separately")
    if any(has_choices):
        for number, record in enumerate(items, 1):
            try:
                demonstrations.gold(record)
            except UserError as error:
                raise UserError(f"record {number}: {error}") from None
    return any(has_choices)


def credit(scores: Sequence[float], gold: int) -> float:
    """1 if the gold choice scores highest; 1/m if it ties with others for the top, m in all; else 0."""
    s = np.asarray(scores)
    top = s >= s.max() - TIE
    return float(top[gold] / top.sum())


def matches(answer: str, accepted: Sequence[str], metric: Free) -> float:
    """Score a free answer against the accepted ones: exact match, SQuAD's normalised match, F1 or BLEU."""
    if metric == "exact":
        return float(any(words.key(answer) == words.key(a) for a in accepted))
    return {"normalised": qa.exact_match, "f1": qa.f1, "bleu": qa.bleu}[metric](answer, accepted)

"""A model whose parameters are a text: a learner predicts by it, an optimiser rewrites it from the errors.

    yhat_m = LM(learner prompt(theta, x_m));   theta' = LM(optimiser prompt(theta, {(x_m, yhat_m, y_m)}))

`VerbalModel` is a scikit-learn estimator: `fit`, `predict`, `score`.

Source: Xiao et al. 2024, arXiv:2406.04344.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from didact.bounds import BelowOne, Count, Whole
from didact.data import verbal_reading as reading
from didact.data import verbal_words
from didact.data.verbal_words import FULL, TERSE, Words
from didact.infer import ask
from didact.types import LM, Messages, UserError

WORDS = {"full": FULL, "terse": TERSE}
ASKING = ask.Asking(max_new_tokens=1024, temperature=1.0)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a text is learnt.

    Args:
        batch: examples of a step; 0 takes all.
        epochs: passes over the examples.
        memory: steps before this one that the optimiser is shown, prompt and answer (its momentum).
        prefix: the task and the prior stay before every new text; else the new text stands alone.
        candidates: texts asked for in a step, of which the best is taken: by the examples kept back, or the batch.
        accept: a new text is taken only if it does better on the examples kept back.
        validation: share of the examples kept back for that.
        tell_loss: the optimiser is told the batch's loss too.
        decimals: of numbers that are told and predicted.
        advice: more for the optimiser: limits of the form, say.
        words: full, or terse: texts and numbers alone, for models that were taught both tasks so.
    """

    batch: Whole = 10
    epochs: Count = 5
    memory: Whole = 1
    prefix: bool = True
    candidates: Count = 1
    accept: bool = False
    validation: BelowOne = 0.2
    tell_loss: bool = False
    decimals: Whole = 2
    advice: str = ""
    words: Literal["full", "terse"] = "full"


@dataclass(frozen=True)
class Step:
    """What a step did: the text before it and its loss on the batch, whether a new one was taken, and why."""

    step: int
    theta: str
    loss: float
    unread: int
    validation: float | None
    accepted: bool
    explanation: str


class VerbalModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator whose parameters are a text.

    Args:
        lm: predicts.
        optimiser: rewrites the text; `lm` where there is none.
        task: the first text: what is to be predicted.
        prior: what is known of it, in words.
        learning: how.
        asking: lengths, temperature, tries, budget.
        seed: of the order of examples and of draws.
    """

    def __init__(
        self, lm: LM, optimiser: LM | None = None, task: str = "", prior: str = "", learning: Learning = Learning(),
        asking: ask.Asking = ASKING, seed: int = 0,
    ) -> None:  # fmt: skip
        self.lm, self.optimiser, self.task, self.prior = lm, optimiser, task, prior
        self.learning, self.asking, self.seed = learning, asking, seed

    def fit(self, X: Iterable[Any], y: Iterable[Any]) -> VerbalModel:
        """Learn the text (`theta_`); every step is kept in `steps_`, what was asked in `asker_` and `asked_`.

        Raises:
            UserError: no examples, or not one target for each.
        """
        how = self.learning
        xs, self.targets_ = [reading.shown(x, how.decimals) for x in X], reading.Targets(list(y), how.decimals)
        if not xs or len(xs) != len(self.targets_.texts):
            raise UserError(f"{len(xs)} examples and {len(self.targets_.texts)} targets")
        self.asker_ = ask.Asker(self.lm, self.asking, self.seed)
        self.asked_ = self.asker_
        if self.optimiser is not None:  # one budget, one transcript
            self.asked_ = ask.Asker(self.optimiser, self.asking, self.seed, self.asker_.exchanges)
        self.first_ = " ".join(part for part in (self.task, self.prior) if part)
        self.theta_, self.steps_, self.known_ = self.first_, list[Step](), dict[str, str]()
        self.inputs_, self.turns_, self.kept_loss_ = xs, list[str](), math.inf
        draw = np.random.default_rng(self.seed)
        order = [int(i) for i in draw.permutation(len(xs))]
        kept = round(how.validation * len(xs)) if how.accept or how.candidates > 1 else 0
        if how.accept and not 0 < kept < len(xs):
            raise UserError(f"accept keeps {how.validation:g} of {len(xs)} examples back, which is {kept}: give more")
        self.kept_, trained = order[:kept], sorted(order[kept:])
        if how.accept:
            self.kept_loss_ = self._loss(self.kept_, self.theta_)
        for _ in range(how.epochs):
            order = [trained[int(i)] for i in draw.permutation(len(trained))] if how.batch else trained
            for start in range(0, len(order), how.batch or len(order)):
                self._step(order[start : start + (how.batch or len(order))])
                if self.asker_.ended or self.asked_.ended:
                    self.asker_.ended = True
                    return self
        return self

    def _step(self, batch: Sequence[int]) -> None:
        """Predict a batch, have the text rewritten, take the new one or keep the old."""
        how, said = self.learning, self._outputs([self.inputs_[i] for i in batch], batch, self.theta_)
        if self.asker_.ended:
            return
        loss, unread = self.targets_.loss(said, batch)
        rows = [(self.inputs_[i], text or "none", self.targets_.texts[i]) for i, text in zip(batch, said, strict=True)]
        feedback = f"\n## The loss\n{loss:.4f}\n" if how.tell_loss else ""
        prompt = verbal_words.optimisation(self._words, self.theta_, rows, how.advice and f"{how.advice} ", feedback)
        found = self._proposed(ask.conversation(self._words.system, *self.turns_, prompt))
        before, taken, why = self.theta_, False, ""
        if found:
            worth = [math.inf] * len(found)
            if how.accept or how.candidates > 1:
                worth = [self._loss(self.kept_ or batch, self._working(new.text)) for new in found]
            best = int(np.argmin(worth))
            known = not self.asker_.ended or math.isinf(worth[best])  # else what it is worth is not
            why, taken = found[best].why, known and (not how.accept or worth[best] < self.kept_loss_)
            if taken:
                self.theta_, self.kept_loss_ = self._working(found[best].text), worth[best]
            self.turns_ += [prompt, found[best].reply]
            del self.turns_[: max(0, len(self.turns_) - 2 * how.memory)]
        kept = self.kept_loss_ if how.accept else None
        self.steps_.append(Step(len(self.steps_), before, loss, unread, kept, taken, why))

    def _proposed(self, asked: Messages) -> list[reading.Proposal]:
        """The candidates that can be read."""
        read, step = partial(reading.proposal, words=self._words), [len(self.steps_)]
        drawn = (self.asked_.ask([asked], read, "optimiser", step) for _ in range(self.learning.candidates))
        return [new for (new,) in drawn if new is not None]

    def _outputs(self, xs: Sequence[str], items: Sequence[int], theta: str) -> list[str | None]:
        """What the learner says of each input, as it is told: numbers rounded, labels as they are written."""
        words, form = self._words, self.targets_.form(self._words)
        prompts = [ask.conversation(words.system, verbal_words.inference(words, theta, x, form)) for x in xs]
        return self.asker_.ask(prompts, lambda reply: self.targets_.read(reply, words), "learner", items)

    def _loss(self, items: Sequence[int], theta: str) -> float:
        return self.targets_.loss(self._outputs([self.inputs_[i] for i in items], items, theta), items)[0]

    def _working(self, text: str) -> str:
        return f"{self.first_} {text}".strip() if self.learning.prefix else text

    @property
    def _words(self) -> Words:
        return WORDS[self.learning.words]

    def predict(self, X: Iterable[Any]) -> Any:
        """The output for every input `(n,)`: numbers where the targets were, else texts; what is unreadable is the
        commonest target, or their mean. What was predicted before is looked up."""
        xs = [reading.shown(x, self.learning.decimals) for x in X]
        new = [x for x in dict.fromkeys(xs) if x not in self.known_]
        said = self._outputs(new, range(len(new)), self.theta_)
        self.known_.update(
            {x: self.targets_.usual if text is None else text for x, text in zip(new, said, strict=True)}
        )
        out = [self.known_[x] for x in xs]
        return np.array([float(text) for text in out]) if self.targets_.numbers else np.array(out)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Predictions as texts."""
        self.predict(prompts)
        return [self.known_[reading.shown(x, self.learning.decimals)] for x in prompts]

    def score(self, X: Iterable[Any], y: Iterable[Any]) -> float:
        """R squared of numbers, accuracy of labels."""
        given, wanted = self.predict(X), list(y)
        if not self.targets_.numbers:
            return float(np.mean([str(a) == str(b) for a, b in zip(given, wanted, strict=True)]))
        target = np.asarray(wanted, dtype=float)
        return float(1 - np.mean((given - target) ** 2) / np.var(target))

    def history(self) -> list[dict[str, Any]]:
        """Every step as a row."""
        return [asdict(step) for step in self.steps_]

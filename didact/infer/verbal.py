"""A model whose parameters are a text: a learner LM predicts with it, an optimiser LM rewrites it from the errors.

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
    """How the text is trained.

    Args:
        batch: batch size; 0 takes all examples.
        epochs: passes over the examples.
        memory: earlier steps that the optimiser is shown, prompt and answer (its momentum).
        prefix: the task and the prior stay before every new text; else the new text replaces them.
        candidates: texts sampled per step; the best by loss on the held-out examples, or the batch, is taken.
        accept: a new text is taken only if it lowers the loss on the held-out examples.
        validation: share of the examples held out for that.
        tell_loss: show the optimiser the batch's loss too.
        decimals: of numbers in prompts and predictions.
        advice: further instructions for the optimiser, such as limits of the form.
        words: full, or terse: texts and numbers alone, for models that were trained on both tasks in this form.
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
    """A record of one step: the text before it, its loss on the batch, whether a new text was accepted, and why."""

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
        lm: the learner.
        optimiser: rewrites the text; `lm` by default.
        task: the initial text: what is to be predicted.
        prior: prior knowledge about it, in words.
        learning: how the text is trained.
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
        """Learn the text (`theta_`); `steps_` records every step, `asker_` and `asked_` the calls (learner, optimiser).

        Raises:
            UserError: no examples, or not one target for each.
        """
        config = self.learning
        xs, self.targets_ = (
            [reading.format_value(x, config.decimals) for x in X],
            reading.Targets(list(y), config.decimals),
        )
        if not xs or len(xs) != len(self.targets_.texts):
            raise UserError(f"{len(xs)} examples and {len(self.targets_.texts)} targets")
        self.asker_ = ask.Asker(self.lm, self.asking, self.seed)
        self.asked_ = self.asker_
        if self.optimiser is not None:  # one budget, one transcript
            self.asked_ = ask.Asker(self.optimiser, self.asking, self.seed, self.asker_.exchanges)
        self.first_ = " ".join(part for part in (self.task, self.prior) if part)
        self.theta_, self.steps_, self.known_ = self.first_, list[Step](), dict[str, str]()
        self.inputs_, self.turns_, self.best_loss_ = xs, list[str](), math.inf
        draw = np.random.default_rng(self.seed)
        order = [int(i) for i in draw.permutation(len(xs))]
        held_out = round(config.validation * len(xs)) if config.accept or config.candidates > 1 else 0
        if config.accept and not 0 < held_out < len(xs):
            raise UserError(
                f"accept holds out {config.validation:g} of {len(xs)} examples, which is {held_out}: give more"
            )
        self.kept_, trained = order[:held_out], sorted(order[held_out:])
        if config.accept:
            self.best_loss_ = self._loss(self.kept_, self.theta_)
        for _ in range(config.epochs):
            order = [trained[int(i)] for i in draw.permutation(len(trained))] if config.batch else trained
            for start in range(0, len(order), config.batch or len(order)):
                self._step(order[start : start + (config.batch or len(order))])
                if self.asker_.ended or self.asked_.ended:
                    self.asker_.ended = True
                    return self
        return self

    def _step(self, batch: Sequence[int]) -> None:
        """Predict a batch, let the optimiser rewrite the text, accept the new one or keep the old."""
        config, outputs = self.learning, self._outputs([self.inputs_[i] for i in batch], batch, self.theta_)
        if self.asker_.ended:
            return
        loss, unread = self.targets_.loss(outputs, batch)
        rows = [
            (self.inputs_[i], text or "none", self.targets_.texts[i]) for i, text in zip(batch, outputs, strict=True)
        ]
        feedback = f"\n## The loss\n{loss:.4f}\n" if config.tell_loss else ""
        prompt = verbal_words.optimisation(
            self._words, self.theta_, rows, config.advice and f"{config.advice} ", feedback
        )
        proposals = self._propose(ask.conversation(self._words.system, *self.turns_, prompt))
        before, accepted, reason = self.theta_, False, ""
        if proposals:
            losses = [math.inf] * len(proposals)
            if config.accept or config.candidates > 1:
                losses = [self._loss(self.kept_ or batch, self._working(new.text)) for new in proposals]
            best = int(np.argmin(losses))
            measured = not self.asker_.ended or math.isinf(losses[best])  # else the budget ended first
            reason, accepted = proposals[best].why, measured and (not config.accept or losses[best] < self.best_loss_)
            if accepted:
                self.theta_, self.best_loss_ = self._working(proposals[best].text), losses[best]
            self.turns_ += [prompt, proposals[best].reply]
            del self.turns_[: max(0, len(self.turns_) - 2 * config.memory)]
        held_out_loss = self.best_loss_ if config.accept else None
        self.steps_.append(Step(len(self.steps_), before, loss, unread, held_out_loss, accepted, reason))

    def _propose(self, prompt: Messages) -> list[reading.Proposal]:
        """Sample candidate texts; drop those that cannot be parsed."""
        read, step = partial(reading.proposal, words=self._words), [len(self.steps_)]
        drawn = (self.asked_.ask([prompt], read, "optimiser", step) for _ in range(self.learning.candidates))
        return [new for (new,) in drawn if new is not None]

    def _outputs(self, xs: Sequence[str], items: Sequence[int], theta: str) -> list[str | None]:
        """The learner's output for each input as text: numbers rounded, labels as written; None if unreadable."""
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
        """The output for every input `(n,)`: numbers where the targets were, else texts; unreadable outputs become the
        most frequent target, or the targets' mean. Earlier predictions are reused."""
        xs = [reading.format_value(x, self.learning.decimals) for x in X]
        new = [x for x in dict.fromkeys(xs) if x not in self.known_]
        outputs = self._outputs(new, range(len(new)), self.theta_)
        self.known_.update(
            {x: self.targets_.usual if text is None else text for x, text in zip(new, outputs, strict=True)}
        )
        out = [self.known_[x] for x in xs]
        return np.array([float(text) for text in out]) if self.targets_.numbers else np.array(out)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Predictions as texts."""
        self.predict(prompts)
        return [self.known_[reading.format_value(x, self.learning.decimals)] for x in prompts]

    def score(self, X: Iterable[Any], y: Iterable[Any]) -> float:
        """R squared of numbers, accuracy of labels."""
        predictions, targets = self.predict(X), list(y)
        if not self.targets_.numbers:
            return float(np.mean([str(a) == str(b) for a, b in zip(predictions, targets, strict=True)]))
        target = np.asarray(targets, dtype=float)
        return float(1 - np.mean((predictions - target) ** 2) / np.var(target))

    def history(self) -> list[dict[str, Any]]:
        """Every step as a row."""
        return [asdict(step) for step in self.steps_]

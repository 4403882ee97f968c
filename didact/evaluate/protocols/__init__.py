"""Protocols: how a model is scored, by what the user wants of it. One module each, with a `PROTOCOL`.

A protocol is run by the verbs, before and after training and off the budget's meter; no method scores itself. To add
one, add a module here: `--protocol`, `@method(protocol=...)`, `run`, `evaluate` and `compare` find it by its name.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar, cast

from didact import registry
from didact.data import convert
from didact.data import general as general_text
from didact.evaluate import forgetting, general, own
from didact.evaluate.measures import Measure
from didact.models.model import Model
from didact.types import LM, Metric, UserError

T = TypeVar("T")
Predict = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a score may read beside the model.

    Args:
        records: by a method's parameter (`forget`, `retain`) or by kind (`demo`).
        start: the model before training.
        gold: a model that shows what perfect looks like.
        seed: of what is drawn.
        options: the method's, as it was called: what its model was trained to be asked with, whom to ask.
        brief: leave out what generates long answers.
        answer: how the final answer is found in a longer one (`answers.extractor`), where that is what counts.
        stop: texts that end an answer before them, beside the model's own end.
        end: whether the end token of an answer counts; None decides it on the start model (see `with_end`).
        general: general text, on which it is seen what training broke; () takes the embedded one, None does not look.
        metrics: the user's own, by name.
    """

    records: Mapping[str, Sequence[Any]]
    start: Model
    gold: Model | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    brief: bool = False
    answer: str | None = None
    stop: Sequence[str] = ()
    end: bool | None = None
    general: Sequence[str] | None = ()
    metrics: Mapping[str, own.Metric] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)
    _general: dict[str, Any] = field(default_factory=dict)  # depends on no record

    def of(self, kind: str) -> Any:
        """The records of a kind, or made of another kind (`data.convert`); empty where there are none."""
        return records_of(kind, self.records) or ()

    def with_end(self) -> bool:
        """Whether answers are scored with their end token, by all models alike: where the start model ends its answers.

        A model that was only pre-trained goes on after an answer, however well it knows it.
        """
        if self.end is None:
            demos = self.of("demo")
            return self.once("with end", lambda: forgetting.ends_answers(self.start, demos) if demos else True)
        return self.end

    def kept_general(self, model: Model) -> dict[str, Measure]:
        """What a model still knows of general text, against the start model."""
        if self.general is None:
            return {}
        once = replace(self, _kept=self._general).once
        return general.score(model, self.start, self.general or general_text.texts(None, "keep"), once)

    def some_prompts(self, count: int) -> list[str]:
        """The first different prompts of the records, by the first protocol that knows how to ask about them."""
        known = (named(name).prompts(self) for name in (*RANKING, "judged") if named(name).records(self.records))
        return list(dict.fromkeys(next(known, [])))[:count]

    def once(self, name: str, make: Callable[[], T], *given: Any) -> T:
        """What `make` gives, made once for all models that are scored here; `given` are options it depends on."""
        key = f"{name} {registry.digest(given)}" if given else name
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is scored.

    Args:
        kind: of the records it reads.
        primary: the measure that arms of a comparison are ranked by; None for diagnostics.
        score: `score(model, scoring) -> {name: measure}`.
        of: which of those records `primary` is the mean over.
        prompts: what of the records a model may be asked, for samples and diagnostics.
        held_out: the method's parameter of which a part is kept from training for scoring; else the one of `kind`.
        scored: parameters that are scored as they are, also where they are trained on.
        beside: further sets of records of its kind that it reads where they are given, whole.
        wanted: the right answer of a record, to show beside samples.
        answers: the same for what answers without giving a model, `answers(predict, scoring)`.
        answers_primary: the measure of those that arms are ranked by where one of them has no model.
        asked: measures of text alone, `asked(lm, scoring)`, which models of any tokenizer and servers have alike; by
            `answers` where not given.
        asked_primary: the measure of those that such models are ranked by; `answers_primary` where not given.
        asks: what a model must offer to be asked so.
        warns: what its numbers before and after mean beyond better and worse, a sentence each.
    """

    kind: str
    primary: str | None
    score: Callable[[Model, Scoring], dict[str, Measure]]
    of: Callable[[Sequence[Any]], Sequence[Any]] = lambda records: records
    prompts: Callable[[Scoring], list[str]] = lambda scoring: []
    held_out: str | None = None
    scored: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    wanted: Callable[[Any], str] = lambda record: ""
    answers: Callable[[Predict, Scoring], dict[str, Measure]] | None = None
    answers_primary: str | None = None
    asked: Callable[[LM, Scoring], dict[str, Measure]] | None = None
    asked_primary: str | None = None
    asks: str = "generate"
    warns: Callable[[Mapping[str, Metric]], list[str]] = lambda metrics: []

    @property
    def text_primary(self) -> str | None:
        """The measure that models of different tokenizers are ranked by; None where they have none in common."""
        return self.asked_primary or self.answers_primary

    def ask(self, lm: LM, scoring: Scoring) -> dict[str, Measure]:
        """Measures of text alone."""
        if self.asked is not None:
            return self.asked(lm, scoring)
        assert self.answers is not None
        return self.answers(lambda prompts: [draws[0] for draws in lm.generate(prompts)], scoring)

    def records(self, given: Mapping[str, Any]) -> Any:
        """Those of the given records that it scores; empty where it can score none of them."""
        if not all(given.get(name) for name in self.scored):
            return ()
        return records_of(self.kind, given) or ()


class Asked(NamedTuple):
    """A prompt to show answers to: of which part, and the right answer where there is one."""

    part: str
    prompt: str
    wanted: str


def drawn(used: Protocol, scoring: Scoring, parts: Mapping[str, Sequence[Any]], each: int) -> list[Asked]:
    """Up to `each` records of every part, drawn at random; where none has a prompt, what the protocol asks instead."""
    draw = random.Random(scoring.seed)
    rows = [(name, r) for name, part in parts.items() for r in draw.sample(list(part), min(each, len(part)))]
    if asked := [Asked(name, r.prompt, used.wanted(r)) for name, r in rows if hasattr(r, "prompt")]:
        return asked
    prompts = list(dict.fromkeys(used.prompts(scoring)))
    return [Asked("", prompt, "") for prompt in draw.sample(prompts, min(each, len(prompts)))]


records_of = convert.of_kind


def named(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        raise UserError(f"unknown protocol '{name}': choose from {', '.join(names())}")
    found: Protocol = importlib.import_module(f"{__name__}.{name}").PROTOCOL
    return found


def leading(used: Protocol, found: Mapping[str, Measure], metrics: Iterable[str] = ()) -> str | None:
    """Which of its measures says how good a model is: the user's own first `metrics`, final answers where they were
    asked for, else choices, else the primary one, else the first that has a better side; None where there is none."""
    sided = (name for name, measure in found.items() if measure.better in ("higher", "lower"))
    known = (name for name in (*metrics, "final_answer", "accuracy", used.primary) if name in found)
    return next(known, next(sided, None))


def names() -> list[str]:
    """The names of all protocols."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


RANKING = ("forget", "prefer", "answer", "text")
"""Protocols that rank arms, the one that says most of the records first."""


def for_records(records: Mapping[str, Sequence[Any]]) -> str:
    """The name of the ranking protocol that fits records best."""
    return next((name for name in RANKING if named(name).records(records)), "text")

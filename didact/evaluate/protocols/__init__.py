"""Protocols: ways to score a model for a goal. Each is a module with a `PROTOCOL`.

The verbs run a protocol before and after training, outside the budget; no method scores itself. To add one, add a
module here: `--protocol`, `@method(protocol=...)`, `run`, `evaluate` and `compare` find it by its name.
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
    """Inputs of a score besides the model.

    Args:
        records: by a method's parameter (`forget`, `retain`) or by kind (`demo`).
        start: the model before training.
        gold: a reference model with ideal scores.
        seed: seed of all draws.
        options: the method's options as called, such as its prompt wording or its judge.
        brief: leave out measures that generate long answers.
        answer: how to find the final answer in a longer one (`answers.extractor`), if final answers are scored.
        stop: texts that end an answer before them, in addition to the model's end token.
        end: whether the end token of an answer counts; None decides by the start model (see `with_end`).
        general: general text to measure damage by training on; () takes the embedded one, None leaves this out.
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
    _general: dict[str, Any] = field(default_factory=dict)  # independent of the records

    def of(self, kind: str) -> Any:
        """The records of a kind, converted from another kind if necessary (`data.convert`); empty if there are none."""
        return records_of(kind, self.records) or ()

    def with_end(self) -> bool:
        """Whether answers are scored with their end token, for all models: if the start model ends its answers.

        A base model goes on after an answer, however well it knows it.
        """
        if self.end is None:
            demos = self.of("demo")
            return self.once("with end", lambda: forgetting.ends_answers(self.start, demos) if demos else True)
        return self.end

    def general_measures(self, model: Model) -> dict[str, Measure]:
        """Measures on general text against the start model: see `general.score`."""
        if self.general is None:
            return {}
        once = replace(self, _kept=self._general).once
        return general.score(model, self.start, self.general or general_text.texts(None, "keep"), once)

    def some_prompts(self, count: int) -> list[str]:
        """The first distinct prompts of the records, by the first protocol that supports them."""
        candidates = (
            by_name(name).prompts(self) for name in (*RANKING, "judged") if by_name(name).records(self.records)
        )
        return list(dict.fromkeys(next(candidates, [])))[:count]

    def once(self, name: str, make: Callable[[], T], *options: Any) -> T:
        """Compute `make()` once for all models that are scored; `options` are those that it depends on."""
        key = f"{name} {registry.digest(options)}" if options else name
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to score models.

    Args:
        kind: kind of the records it reads.
        primary: the measure that ranks the arms of a comparison; None for diagnostics.
        score: `score(model, scoring) -> {name: measure}`.
        of: the subset of those records that `primary` is the mean over.
        prompts: prompts from the records, for samples and diagnostics.
        held_out: the method's parameter of which a part is held out from training for scoring; else that of `kind`.
        scored: parameters that are scored whole, even if they are trained on.
        extra_sets: further optional sets of records of its kind, read whole.
        target: the right answer of a record, shown next to samples.
        answers: `score` from generated answers alone, `answers(predict, scoring)`, for arms without a model.
        answers_primary: the measure among those of `answers` that ranks arms if one of them has no model.
        lm_score: measures of text alone, `lm_score(lm, scoring)`, comparable between tokenizers and servers; by
            `answers` if not given.
        lm_primary: the measure among those of `lm_score` that ranks arms; `answers_primary` if not given.
        lm_capability: the capability that `lm_score` needs of a model.
        warns: sentences that interpret the metrics before and after training, such as a collapse.
    """

    kind: str
    primary: str | None
    score: Callable[[Model, Scoring], dict[str, Measure]]
    of: Callable[[Sequence[Any]], Sequence[Any]] = lambda records: records
    prompts: Callable[[Scoring], list[str]] = lambda scoring: []
    held_out: str | None = None
    scored: tuple[str, ...] = ()
    extra_sets: tuple[str, ...] = ()
    target: Callable[[Any], str] = lambda record: ""
    answers: Callable[[Predict, Scoring], dict[str, Measure]] | None = None
    answers_primary: str | None = None
    lm_score: Callable[[LM, Scoring], dict[str, Measure]] | None = None
    lm_primary: str | None = None
    lm_capability: str = "generate"
    warns: Callable[[Mapping[str, Metric]], list[str]] = lambda metrics: []

    @property
    def text_primary(self) -> str | None:
        """The measure that ranks models of different tokenizers; None if they have none in common."""
        return self.lm_primary or self.answers_primary

    def ask(self, lm: LM, scoring: Scoring) -> dict[str, Measure]:
        """Measures of text alone."""
        if self.lm_score is not None:
            return self.lm_score(lm, scoring)
        assert self.answers is not None
        return self.answers(lambda prompts: [draws[0] for draws in lm.generate(prompts)], scoring)

    def records(self, records: Mapping[str, Any]) -> Any:
        """The subset of `records` that it scores; empty if it cannot score any."""
        if not all(records.get(name) for name in self.scored):
            return ()
        return records_of(self.kind, records) or ()


class Question(NamedTuple):
    """A prompt whose answers are shown as samples: its part, and the right answer if there is one."""

    part: str
    prompt: str
    wanted: str


def drawn(protocol: Protocol, scoring: Scoring, parts: Mapping[str, Sequence[Any]], count: int) -> list[Question]:
    """Draw up to `count` records of every part; if none has a prompt, up to `count` of the protocol's prompts."""
    draw = random.Random(scoring.seed)
    rows = [(name, r) for name, part in parts.items() for r in draw.sample(list(part), min(count, len(part)))]
    if samples := [Question(name, r.prompt, protocol.target(r)) for name, r in rows if hasattr(r, "prompt")]:
        return samples
    prompts = list(dict.fromkeys(protocol.prompts(scoring)))
    return [Question("", prompt, "") for prompt in draw.sample(prompts, min(count, len(prompts)))]


records_of = convert.of_kind


def by_name(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        raise UserError(f"unknown protocol '{name}': choose from {', '.join(names())}")
    protocol: Protocol = importlib.import_module(f"{__name__}.{name}").PROTOCOL
    return protocol


def leading(protocol: Protocol, measures: Mapping[str, Measure], metrics: Iterable[str] = ()) -> str | None:
    """Name of the leading measure: the first of the user's `metrics`, else final answers, else choices, else the
    primary one, else the first with a better direction; None if there is none."""
    sided = (name for name, measure in measures.items() if measure.better in ("higher", "lower"))
    preferred = (name for name in (*metrics, "final_answer", "accuracy", protocol.primary) if name in measures)
    return next(preferred, next(sided, None))


def names() -> list[str]:
    """The names of all protocols."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


RANKING = ("forget", "prefer", "answer", "text")
"""Protocols that rank arms, the most informative first."""


def for_records(records: Mapping[str, Sequence[Any]]) -> str:
    """The name of the ranking protocol that fits records best."""
    return next((name for name in RANKING if by_name(name).records(records)), "text")

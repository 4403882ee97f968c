"""What a model's hidden states encode about the meaning of a program it writes: traces, alternative meanings, probes.

A model's state at step i is the hidden vector that action i was predicted from. It is paired with the program state
after action i + offset when the program is run, and, as a control, when the words swap their meanings: the same
programs, the same vectors, another interpreter. If probes do the interpreting, both are decoded equally well.

Source: Jin & Rinard, arXiv:2305.11169 (semantic probing interventions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from didact.data import encode
from didact.evaluate import probes, statistics
from didact.evaluate.probes import NONE, Parts, ProbeConfig, Read
from didact.infer import generate
from didact.models.model import Model
from didact.tools import robots
from didact.types import Demo, UserError

TRUE, CONTROL = "original", "control task"


@dataclass(frozen=True)
class Program:
    """A program for a specification: its words, whether it is correct, and the states after each word, by meaning.

    `ids` are the model's input tokens; `places` are the positions that each word was predicted at.
    """

    spec: str
    words: tuple[str, ...]
    correct: bool
    traces: Mapping[str, Sequence[Any]]
    ids: tuple[int, ...]
    places: tuple[int, ...]


def written(model: Model, demos: Sequence[Demo], language: robots.Language, max_tokens: int) -> list[list[str] | None]:
    """Decode a program for each specification greedily; None if it is not of the language."""
    prompts = [demo.prompt for demo in demos]
    return [parsed(text, language) for text in generate.generate(model, prompts, max_tokens)]


def parsed(text: str, language: robots.Language) -> list[str] | None:
    """A program as words, or None if it is empty or a word is not of the language."""
    words = text.split()
    return words if words and all(word in language.actions for word in words) else None


def programs(
    model: Model,
    demos: Sequence[Demo],
    texts: Sequence[list[str] | None],
    language: robots.Language,
    meanings: Mapping[str, Mapping[str, str]],
) -> tuple[list[Program], dict[str, int], list[float]]:
    """Programs with their traces, run from the first state of their specifications; counts of those left out; and for
    every specification whether the program meets it (0 or 1).

    A program that crashes under one meaning is left out under all; whether it is correct depends on the original alone.

    Raises:
        UserError: a record lacks its states, or an interpreter cannot read them.
    """
    out, dropped, solved = [], {"no programs": 0, "crash": 0}, [0.0] * len(demos)
    for number, (demo, words) in enumerate(zip(demos, texts, strict=True), 1):
        starts, ends = states(demo, number)
        if words is None:
            dropped["no programs"] += 1
            continue
        try:
            runs = {name: robots.run(language, starts[0], words, meaning) for name, meaning in meanings.items()}
            correct = all(
                (robots.run(language, a, words) or [None])[-1] == b for a, b in zip(starts, ends, strict=True)
            )
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"record {number}: field 'starts': the language cannot read {starts[0]!r}: {error}"
            ) from None
        solved[number - 1] = float(correct)
        if any(trace is None for trace in runs.values()):
            dropped["crash"] += 1
            continue
        ids, places = located(model, demo.prompt, words)
        out.append(Program(demo.prompt, tuple(words), correct, {k: v or [] for k, v in runs.items()}, ids, places))
    return out, dropped, solved


def states(demo: Demo, number: int = 1) -> tuple[list[Any], list[Any]]:
    """The start and end states of a specification.

    Raises:
        UserError: the record has none.
    """
    starts, ends = (demo.extra.get(name) for name in ("starts", "ends"))
    if not isinstance(starts, list) or not isinstance(ends, list) or not starts or len(starts) != len(ends):
        raise UserError(f"record {number}: fields 'starts' and 'ends': must be lists of states of equal length")
    return starts, ends


def located(model: Model, prompt: str, words: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a specification with its program, and the positions that the words are predicted at."""
    joined = encode.join(prompt, " ".join(words), "causal")
    first = joined[: len(joined) - len(" ".join(words))] + words[0]
    parts = encode.pieces(model.tokenizer, [prompt, first, *(f" {word}" for word in words[1:])], special=True)
    ids = tuple(i for part in parts for i in part)
    starts = np.cumsum([len(part) for part in parts])[:-1]
    return ids, tuple(int(start) - 1 for start in starts)


# --- labels and probes -----------------------------------------------------------------------------


def check_meanings(meanings: Mapping[str, Mapping[str, str]], actions: Sequence[str]) -> None:
    """Reject a meaning that two words share: fewer states would make the probe's task easier.

    Raises:
        UserError: a meaning is not a permutation of the words.
    """
    for name, meaning in meanings.items():
        mapped = [meaning.get(word, word) for word in actions]
        if sorted(mapped) != sorted(actions) or not set(meaning) <= set(actions):
            raise UserError(f"alternative '{name}': must be a permutation of the words {', '.join(actions)}")


def labels(
    samples: Sequence[Program], language: robots.Language, meanings: Sequence[str], offsets: Sequence[int]
) -> dict[tuple[str, str, int], Tensor]:
    """`{(meaning, label, offset): (N,)}` over the words of all programs: the state `offset` words later, or NONE."""
    traces = [{m: [language.labels(s) for s in p.traces[m]] for m in meanings} for p in samples]
    names = list(traces[0][meanings[0]][0])
    values: dict[str, dict[Any, int]] = {name: {} for name in names}
    out: dict[tuple[str, str, int], Tensor] = {}
    for meaning in meanings:
        for name in names:
            codes = values[name]
            rows = [[codes.setdefault(state[name], len(codes)) for state in trace[meaning]] for trace in traces]
            for offset in offsets:
                shifted = [
                    [row[i + offset] if 0 <= i + offset < len(row) else NONE for i in range(len(row))] for row in rows
                ]
                out[meaning, name, offset] = torch.tensor([value for row in shifted for value in row])
    return out


@dataclass(frozen=True)
class Content:
    """Results of one label and offset: right answers `(n,)` on test words by task, and each word's specification."""

    right: Mapping[str, NDArray[np.float64]]
    specs: Sequence[str]
    majority: float

    def accuracy(self, task: str = TRUE) -> statistics.Interval:
        """Share of right answers, with specifications as units."""
        return statistics.record_interval(self.right[task], self.specs)

    def gap(self, task: str) -> statistics.Interval:
        """How much better the original meaning is decoded than this one, over the same words."""
        return statistics.record_difference(self.right[TRUE], self.right[task], self.specs)[0]


def contents(
    read: Read, samples: Sequence[Program], tasks: Mapping[tuple[str, str, int], Tensor], parts: Parts,
    config: ProbeConfig, seed: int = 0,
) -> dict[tuple[str, int], Content]:  # fmt: skip
    """Train a probe for every meaning, label and offset on the same vectors, and score each on the test words.

    A control task is added to the meanings: its labels are a function of the words of the program so far.
    """
    specs = [p.spec for p in samples for _ in p.words]
    prefixes = [p.words[: i + 1] for p in samples for i in range(len(p.words))]
    pairs = list(dict.fromkeys((name, offset) for _, name, offset in tasks))
    flat = {f"{m}|{name}|{offset}": values for (m, name, offset), values in tasks.items()}
    for name, offset in pairs:
        flat[f"{CONTROL}|{name}|{offset}"] = probes.control(tasks[TRUE, name, offset], prefixes, seed)
    predictions = probes.classify(read, flat, parts, config, seed)
    out = {}
    for name, offset in pairs:
        own = tasks[TRUE, name, offset]
        labelled = own[parts.test] != NONE
        test, train = parts.test[labelled], own[parts.train]
        right = {
            task: (predictions[key][labelled] == flat[key][test]).double().numpy()
            for key in flat
            for task, label, o in [key.split("|")]
            if (label, o) == (name, str(offset))
        }
        commonest = train[train != NONE].mode().values
        out[name, offset] = Content(
            right, [specs[i] for i in test.tolist()], float((own[test] == commonest).double().mean())
        )
    return out


def summary(content: Content, blank: Content, names: Sequence[str]) -> dict[str, Any]:
    """The numbers for one label and offset, with those of an untrained copy."""
    return {
        "majority": content.majority,
        "accuracy": content.accuracy()._asdict(),
        "untrained": blank.accuracy()._asdict(),
        "control": content.accuracy(CONTROL)._asdict(),
        "selectivity": content.gap(CONTROL)._asdict(),
        "alternatives": {name: content.accuracy(name)._asdict() for name in names},
        "gaps": {name: content.gap(name)._asdict() for name in names},
        "untrained_gaps": {name: blank.gap(name)._asdict() for name in names},
    }

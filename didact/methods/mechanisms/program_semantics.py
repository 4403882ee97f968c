"""Evidence of meaning in language models trained on programs (Jin & Rinard 2023, 2024)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from didact.bounds import Count
from didact.evaluate import probes, semantic_figures, semantics, statistics
from didact.evaluate.probes import ProbeConfig
from didact.evaluate.semantics import TRUE
from didact.infer import functions
from didact.models import hidden, untrained
from didact.models.model import Model
from didact.registry import method
from didact.tools import robots
from didact.types import Demo, Metric, Result, UserError


@method(
    "program-semantics",
    paper="Emergent Representations of Program Semantics in Language Models Trained on Programs",
    year=2024,
    source="arXiv:2305.11169",
    gives=("findings",),
    capabilities=("hidden", "generate"),
    kinds=("causal",),
    presets={
        "v1": {"probe.kind": "linear"},
        "icml": {"probe.kind": "mlp3", "probe.lr": 0.02, "probe.rows": 1024, "probe.weight_decay": 0.2},
        "karel": {"language": "karel", "max_new_tokens": 64},
    },
)
def program_semantics(
    model: Model,
    programs: Sequence[Demo],
    *,
    language: str = "robot",
    source: Literal["own", "given"] = "own",
    offsets: tuple[int, ...] = (0, 1, 2, -1),
    layers: tuple[int, ...] = (),
    only_correct: bool = False,
    by_layer: bool = False,
    max_new_tokens: Count = 24,
    probe: ProbeConfig = ProbeConfig(),
    seed: int = 0,
) -> Result:
    """Test whether a model's states encode the meaning of the program it writes, or only its form.

    The model writes a program for every specification. For each word i the state that predicted it is recorded, the
    mean over layers. A probe reads off it what is true after word i + offset when the program is run, which the text
    does not say. If the probe did the interpreting itself, it could do so by any rules: so the same programs are run
    with permuted word meanings, and a fresh probe of the same kind is trained on the same vectors,

        gap = accuracy(original) - accuracy(alternative) > 0   rejects "the states hold only form".

    Further controls are a control task (labels that are a function of the words so far), an untrained copy of the model
    reading the same programs, and the commonest label. Splits and intervals keep specifications whole.

    Args:
        model: a causal model that writes programs.
        programs: specifications (`prompt`) and a correct program for each (`completion`), with the states before and
            after it (fields `starts` and `ends`, lists of equal length; the program is traced from the first).
        language: meaning of the words: grid, robot, karel, or your own `module:function`, which gives an object with
            `actions`, `step(state, action) -> state` (None: crash), `labels(state) -> {name: value}`, and optionally
            `alternatives`, `{name: {word: word whose meaning it takes}}`.
        source: programs to probe: the model's own, or those given.
        offsets: how many words later (or, negative, earlier) the probed state is.
        layers: layers that states are averaged over; all by default, 0 the embeddings.
        only_correct: probe only programs that meet their specification.
        by_layer: also probe every layer separately.
        max_new_tokens: maximum length of a program, in tokens.
        probe: the probe and its training.
        seed: random seed of the split, the probes, the control task and the untrained copy.

    Returns:
        Findings: the share of correct programs; by label and offset, accuracies and gaps; lengths.

    Raises:
        UserError: a record lacks its states, the language is unknown, an alternative is no bijection, or too few of the
            programs can be run.
    """
    start_time = time.monotonic()
    interpreter = _language(language)
    alternatives = (
        getattr(interpreter, "alternatives", None)
        or robots.ALTERNATIVES.get(language)
        or robots.dealt_anew(interpreter.actions)
    )
    semantics.check_meanings(alternatives, interpreter.actions)
    meanings: dict[str, Mapping[str, str]] = {TRUE: {}, **alternatives}
    given_programs = [semantics.parsed(demo.completion, interpreter) for demo in programs]
    texts = given_programs if source == "given" else semantics.written(model, programs, interpreter, max_new_tokens)
    runnable, skipped, meets_spec = semantics.programs(model, programs, texts, interpreter, meanings)
    correct = sum(p.correct for p in runnable)
    probed = [p for p in runnable if p.correct or not only_correct]
    if len({p.spec for p in probed}) < 3:
        raise UserError(f"{len(probed)} of {len(programs)} programs can be run: a probe takes three ({skipped})")
    specs = [p.spec for p in probed for _ in p.words]
    parts = probes.split(specs, probe.test, probe.valid, seed)
    tasks = semantics.labels(probed, interpreter, list(meanings), offsets)
    contents, stores = {}, {}
    for name, subject in (("trained", model), ("untrained", untrained.untrained(model, seed))):
        store = stores[name] = hidden.record(
            subject, [p.ids for p in probed], [[(i,) for i in p.places] for p in probed], layers or None
        )
        vectors = functools.partial(store.take, layers=store.layers)
        contents[name] = semantics.contents(vectors, probed, tasks, parts, probe, seed)

    result = Result()
    result.findings = {
        "programs": {"specifications": len(programs), "run": len(runnable), **skipped, "words": len(specs)},
        "correct": statistics.mean_interval(meets_spec)._asdict(),
        "words": {
            "of correct programs": float(np.mean([len(p.words) for p in runnable if p.correct])) if correct else None,
            "of given programs": float(np.mean([float(len(words)) for words in given_programs if words] or [math.nan])),
        },
        "content": {
            f"{name} {offset:+d}": semantics.summary(content, contents["untrained"][name, offset], list(alternatives))
            for (name, offset), content in contents["trained"].items()
        },
    }
    by_model = contents["trained"], contents["untrained"]
    result.figures = [
        semantic_figures.bars(*by_model, name, list(alternatives)) for name in dict.fromkeys(n for n, _ in by_model[0])
    ]
    if by_layer:
        result.findings["by_layer"], layer_figures = semantic_figures.by_layer(
            stores, probed, tasks, parts, probe, seed
        )
        result.figures += layer_figures
    first = next(iter(contents["trained"].values()))
    smallest_gap = min((first.gap(name) for name in alternatives), key=lambda gap: gap.estimate)
    accuracy = first.accuracy()
    result.metrics = {
        "correct": Metric(after=statistics.mean_interval(meets_spec).estimate, n=len(meets_spec), better="higher",
                          help="programs that do what is asked"),
        "content": Metric(after=accuracy.estimate, before=first.majority, ci=accuracy[1:], better="higher",
                          help="probe accuracy of the first label and offset; before: the commonest label"),
        "gap": Metric(after=smallest_gap.estimate, ci=smallest_gap[1:], better="higher",
                      help="how much better the original meaning is read than the nearest alternative"),
    }  # fmt: skip
    result.cost.tokens = 2 * sum(len(p.ids) for p in probed)
    result.cost.seconds = time.monotonic() - start_time
    return result


def _language(name: str) -> Any:
    if name in robots.LANGUAGES:
        return robots.LANGUAGES[name]()
    interpreter = functions.import_function(name, "language")()
    if missing := [part for part in ("actions", "step", "labels") if not hasattr(interpreter, part)]:
        raise UserError(f"language '{name}': has no {', '.join(missing)}")
    return interpreter

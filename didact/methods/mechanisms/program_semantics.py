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
    """Say whether a model's states hold what the program it writes means, or only its form.

    The model writes a program for every specification. Of each word i the state it was predicted from is kept, the mean
    over layers. A probe reads off it what is true after word i + offset when the program is run, which the text says
    nowhere. Were the probe to do the running, it could run it by any rules: so the same programs are run with the
    words' meanings dealt anew, and a fresh probe of the same kind is trained on the same vectors,

        gap = accuracy(original) - accuracy(alternative) > 0   rejects "the states hold only form".

    Beside it stand a control task (labels that are a function of the words so far), an untrained copy of the model
    reading the same programs, and the commonest label. Parts and intervals keep specifications whole.

    Args:
        model: a causal model that writes programs.
        programs: specifications (`prompt`) and a program that fits each (`completion`), with the states that it leads
            from and to (fields `starts` and `ends`, as many of each; the program is traced from the first).
        language: what words mean: grid, robot, karel, or your own `module:function`, which gives an object with
            `actions`, `step(state, action) -> state` (None: crash), `labels(state) -> {name: value}`, and perhaps
            `alternatives`, `{name: {word: word whose meaning it takes}}`.
        source: whose programs are probed: the model's own, or those given.
        offsets: how many words later (or, negative, earlier) the state is that is read.
        layers: those that a state is the mean of; all by default, 0 the embeddings.
        only_correct: probe only programs that do what is asked.
        by_layer: also probe every layer by itself.
        max_new_tokens: tokens a program may have.
        probe: the probe and its training.
        seed: of the split, the probes, the control task and the untrained copy.

    Returns:
        Findings: the share of programs that do what is asked; by label and offset, accuracies and gaps; lengths.

    Raises:
        UserError: a record lacks its states, the language is unknown, an alternative is no bijection, or too few of
            the programs can be run.

    """
    began = time.monotonic()
    known = _language(language)
    names = (
        getattr(known, "alternatives", None) or robots.ALTERNATIVES.get(language) or robots.dealt_anew(known.actions)
    )
    semantics.check_meanings(names, known.actions)
    meanings: dict[str, Mapping[str, str]] = {TRUE: {}, **names}
    given = [semantics.parsed(demo.completion, known) for demo in programs]
    texts = given if source == "given" else semantics.written(model, programs, known, max_new_tokens)
    made, left, right = semantics.programs(model, programs, texts, known, meanings)
    correct = sum(p.correct for p in made)
    probed = [p for p in made if p.correct or not only_correct]
    if len({p.spec for p in probed}) < 3:
        raise UserError(f"{len(probed)} of {len(programs)} programs can be run: a probe takes three ({left})")
    specs = [p.spec for p in probed for _ in p.words]
    parts = probes.split(specs, probe.test, probe.valid, seed)
    tasks = semantics.labels(probed, known, list(meanings), offsets)
    found, stores = {}, {}
    for name, of in (("trained", model), ("untrained", untrained.untrained(model, seed))):
        store = stores[name] = hidden.record(
            of, [p.ids for p in probed], [[(i,) for i in p.places] for p in probed], layers or None
        )
        read = functools.partial(store.take, layers=store.layers)
        found[name] = semantics.contents(read, probed, tasks, parts, probe, seed)

    result = Result()
    result.findings = {
        "programs": {"specifications": len(programs), "run": len(made), **left, "words": len(specs)},
        "correct": statistics.mean_interval(right)._asdict(),
        "words": {
            "of correct programs": float(np.mean([len(p.words) for p in made if p.correct])) if correct else None,
            "of given programs": float(np.mean([float(len(words)) for words in given if words] or [math.nan])),
        },
        "content": {
            f"{name} {offset:+d}": semantics.told(content, found["untrained"][name, offset], list(names))
            for (name, offset), content in found["trained"].items()
        },
    }
    both = found["trained"], found["untrained"]
    result.figures = [semantic_figures.bars(*both, name, list(names)) for name in dict.fromkeys(n for n, _ in both[0])]
    if by_layer:
        result.findings["by_layer"], drawn = semantic_figures.by_layer(stores, probed, tasks, parts, probe, seed)
        result.figures += drawn
    first = next(iter(found["trained"].values()))
    least = min((first.gap(name) for name in names), key=lambda gap: gap.estimate)
    accuracy = first.accuracy()
    result.metrics = {
        "correct": Metric(after=statistics.mean_interval(right).estimate, n=len(right), better="higher",
                          help="programs that do what is asked"),
        "content": Metric(after=accuracy.estimate, before=first.majority, ci=accuracy[1:], better="higher",
                          help="probe accuracy of the first label and offset; before: the commonest label"),
        "gap": Metric(after=least.estimate, ci=least[1:], better="higher",
                      help="how much better the original meaning is read than the nearest alternative"),
    }  # fmt: skip
    result.cost.tokens = 2 * sum(len(p.ids) for p in probed)
    result.cost.seconds = time.monotonic() - began
    return result


def _language(name: str) -> Any:
    if name in robots.LANGUAGES:
        return robots.LANGUAGES[name]()
    found = functions.imported(name, "language")()
    if missing := [part for part in ("actions", "step", "labels") if not hasattr(found, part)]:
        raise UserError(f"language '{name}': has no {', '.join(missing)}")
    return found

"""In-context unlearning: the prompt has the examples to forget with flipped labels (Pawelczyk et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from didact.bounds import Count, Whole
from didact.data import demonstrations, words
from didact.infer import lm
from didact.methods.unlearning.survey import SURVEY
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Metric, Result, UserError


@method(
    "unlearning-survey.icul",
    **SURVEY,
    gives=("predict", "findings"),
    capabilities=("score",),
    presets={"random": {"flip": "random"}, "none": {"flip": "none"}},
)
def icul(
    model: Model | LM,
    forget: Sequence[Demo],
    retain: Sequence[Demo],
    *,
    right: Whole = 6,
    flip: Literal["forget", "random", "none"] = "forget",
    together: Count = 1,
    separator: str = "\n",
    seed: int = 0,
) -> Result:
    """Make a classifier treat some examples as never seen, by the examples in its prompt.

    The prompt has the examples to forget, each with a FLIPPED label, then `right` correctly labelled ones, then the
    question; the answer is the likeliest class. Every record to forget is asked with the prompt of its own group.

    Args:
        model: scores choices; causal, seq2seq or a server.
        forget: classified examples to forget: `completion` is one of their `choices`.
        retain: correctly labelled examples to show, and to score: each is left out of its own prompt.
        right: L, correctly labelled examples in a prompt.
        flip: forget; or the controls: random flips other examples in their place, none shows them with their own label.
        together: how many examples are forgotten in one prompt.
        separator: text between examples.
        seed: random seed of the labels, if there are more than two, and of the draws.

    Returns:
        `predict(prompts)`, each answered as if the forget examples had not been seen; the confidence in the right class
        on both sets, with and without the prompt.

    Raises:
        UserError: a record without choices, or a completion that is none of them.
    """
    for name, records in (("forget", forget), ("retain", retain)):
        for number, record in enumerate(records, 1):
            if not record.choices or words.key(record.completion) not in map(words.key, record.choices):
                raise UserError(
                    f"{name}: record {number}: ICUL is for classification: give 'choices' and one as answer"
                )
    start_time = time.monotonic()
    scorer = lm.need(model, "score", by="unlearning-survey.icul")
    flipped_forget = flipped(forget, seed)
    sampler = demonstrations.Sampler(retain, right, seed)

    def context(item: Demo, index: int, group: Sequence[int]) -> list[str]:
        """Return the examples before one question."""
        if flip == "random":
            indices = demonstrations.Sampler(retain, right + len(group), seed)(item, index)[right:]
            first = flipped([retain[i] for i in indices], seed)
        else:
            first = [(flipped_forget if flip == "forget" else forget)[i] for i in group]
        return [demonstrations.written(d) for d in (*first, *(retain[i] for i in sampler(item, index)))]

    groups = [range(i, min(i + together, len(forget))) for i in range(0, len(forget), together)]
    group_of = {i: g for g in groups for i in g}
    sides: dict[str, tuple[Sequence[Demo], Callable[[int], Sequence[int]]]] = {
        "forget": (forget, lambda i: group_of[i]),
        "retain": (retain, lambda i: groups[i % len(groups)] if groups else ()),
    }
    result = Result()
    for name, (records, group) in sides.items():
        plain = confidence(scorer, records, [[] for _ in records], separator)
        prompted = confidence(scorer, records, [context(r, i, group(i)) for i, r in enumerate(records)], separator)
        for measure, score in (("confidence", lambda p, r: p[demonstrations.gold(r)]), ("accuracy", _best)):
            before, after = ([float(score(p, r)) for p, r in zip(ps, records, strict=True)] for ps in (plain, prompted))
            result.metrics[f"{name}_{measure}"] = Metric(
                before=float(np.mean(before)), after=float(np.mean(after)), n=len(records),
                better="higher" if name == "retain" else "gold", help=f"{measure} in the right class, {name} examples",
            )  # fmt: skip

    def predict(prompts: Sequence[str]) -> list[str]:
        choices = words.distinct(c.strip() for d in forget for c in d.choices or ())
        items = [Demo(prompt=p, completion=choices[0], choices=choices) for p in prompts]
        everything = range(len(forget))
        rows = confidence(scorer, items, [context(d, i, everything) for i, d in enumerate(items)], separator)
        return [choices[int(np.argmax(p))] for p in rows]

    result.predict = predict
    result.findings = {
        "flip": flip,
        "right": right,
        "prompt": demonstrations.assemble("", _example(context, forget), "", separator),
    }
    result.cost.seconds = time.monotonic() - start_time
    return result


def flipped(records: Sequence[Demo], seed: int = 0) -> list[Demo]:
    """Label each example as another of its classes: of two, the other; of more, a random one."""
    draw = np.random.default_rng([seed, 2310])
    out = []
    for r in records:
        classes = [c for c in r.choices or () if words.key(c) != words.key(r.completion)]
        if not classes:
            raise UserError(f"{r.prompt[:60]!r} has one class only: no other label to give it")
        label = classes[draw.integers(len(classes))]
        out.append(Demo(prompt=r.prompt, completion=label, choices=r.choices))
    return out


def confidence(
    asked: LM, records: Sequence[Demo], contexts: Sequence[Sequence[str]], separator: str
) -> list[np.ndarray[Any, Any]]:
    """Probability of every choice of every record after its context, `(choices,)` each, adding up to 1."""
    pairs, sizes = [], []
    for record, context in zip(records, contexts, strict=True):
        options = demonstrations.pairs(record)
        pairs += [(demonstrations.assemble("", context, last, separator), choice) for last, choice in options]
        sizes.append(len(options))
    logp = np.array([s.logp for s in asked.score(pairs)])
    out, at = [], 0
    for n in sizes:
        p = np.exp(logp[at : at + n] - logp[at : at + n].max())
        out.append(p / p.sum())
        at += n
    return out


def _best(p: np.ndarray[Any, Any], record: Demo) -> float:
    return float(np.argmax(p) == demonstrations.gold(record))


def _example(context: Callable[[Demo, int, Sequence[int]], list[str]], forget: Sequence[Demo]) -> list[str]:
    return context(forget[0], 0, [0]) if forget else []

"""What claims share: start models, measures of a model, and constructors of tests."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor

from didact import baselines
from didact.claims import sources
from didact.claims.verdict import Test
from didact.data import encode
from didact.infer import generate, tree
from didact.learn import episodes, language
from didact.learn import fit as training_loop
from didact.models import build, cache, forward, load
from didact.models.model import Model
from didact.types import Demo, Fit, Result

KEPT = 64  # cached values of one function, or models: more than the seeds of a tier need
T = TypeVar("T")

# --- start models --------------------------------------------------------------------------------


def shared(compute: Callable[..., T]) -> Callable[..., T]:
    """Decorator: compute once for a seed's arms and sabotages, which must not modify it. Arguments must be hashable."""
    return functools.lru_cache(maxsize=KEPT)(compute)


def blank(arch: build.Arch, texts: Iterable[str] = (), vocabulary: int = 259, **shape: Any) -> Model:
    """A model with random weights (`build.build`), and a tokenizer trained on texts: bytes alone if there are none."""
    return build.build(arch, build.train_tokenizer(texts, vocabulary), **shape)


def tuned(base: Model, demos: Sequence[Demo], fit: Fit) -> Model:
    """Fine-tune `base` on demonstrations, where most claims start; cached."""
    return cached_model(lambda: model_of(baselines.sft(base, demos, fit=fit)), *identity(base), demos, fit)


def pretrained(base: Model, rows: Sequence[encode.TokenizedExample], fit: Fit, stream: str = "texts") -> Model:
    """Train a copy of `base` on rows by plain next-token loss."""

    def loss(student: Model, micro: Any) -> Mapping[str, training_loop.Term]:
        return {"nll": language.cross_entropy(student, micro)}

    return language.train(base, {stream: language.single(rows)}, loss, fit, quiet=True).model


_models: dict[Path, Model] = {}


def cached_model(make: Callable[[], Model], *parts: Any) -> Model:
    """Run `make` on one thread; cached on disk and in the process, by `parts` and the code of the training loop."""
    names = [*map(repr, parts), sources.code(inspect.getsource(training_loop))]
    path = cache.place("example", *names)
    if path is None or path not in _models:
        with episodes.one_thread():
            model = load.cached_model("example", make, *names)
        if path is None:
            return model
        while len(_models) >= KEPT:
            del _models[next(iter(_models))]
        _models[path] = model
    return _models[path]


def identity(model: Model) -> tuple[str, str]:
    """Return what identifies weights and vocabulary, for `cached_model`."""
    return model.fingerprint(), repr(sorted(model.tokenizer.get_vocab().items()))


def model_of(result: Result, name: str = "model") -> Model:
    """Return a model from a method's result."""
    model = result.models[name]
    assert isinstance(model, Model)
    return model


# --- measures ------------------------------------------------------------------------------------


def sampled(
    model: Model, prompts: Sequence[Any], tokens: int, seed: int = 0, temperature: float = 1.0, rows: int = 256
) -> list[str]:
    """Sample one answer to each prompt (text or token ids), at most `tokens` long."""
    config = generate.SamplingConfig(max_new_tokens=tokens, temperature=temperature, seed=seed, rows=rows)
    return [texts[0] for texts in generate.sample(model, prompts, 1, config)]


def logp(model: Model, pairs: Iterable[Demo | tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Log-prob of each completion after its prompt, and its number of tokens: `(n,), (n,)`."""
    texts = [pair if isinstance(pair, tuple) else (pair.prompt, pair.completion) for pair in pairs]
    return forward.row_logp(model, encode.rows(model.tokenizer, texts, model.kind, model.context))


def mean(values: Iterable[Any]) -> float:
    """Mean of numbers or booleans; NaN if there are none."""
    return float(np.mean(list(values)))


def turned(*args: Any, right: Any = tree.pairs, **kwargs: Any) -> list[tree.Pair]:
    """Sabotage: `tree.pairs` with better and worse swapped."""
    return [tree.Pair(pair.worse, pair.better) for pair in right(*args, **kwargs)]


# --- tests ---------------------------------------------------------------------------------------


def _test(
    kind: Literal["difference", "bound", "equivalence", "exact"],
    name: str,
    a: str,
    b: str | None,
    unit: str,
    less: bool = False,
    log: bool = False,
    reported: bool = False,
    **numbers: float,
) -> Test:
    return Test(
        name=name, kind=kind, a=a, b=b, direction="less" if less else "greater", transform="log" if log else None,
        unit=unit or ("log ratio" if log else ""), gates="none" if reported else "verdict", **numbers,
    )  # fmt: skip


def difference(name: str, a: str, b: str, unit: str = "", **options: Any) -> Test:
    """`a` is more than `b`, paired by seed. Options of all four: `less`, `log` (null and margin are then logs), `null`,
    `margin`, `reported` (does not count for the verdict)."""
    return _test("difference", name, a, b, unit, **options)


def ratio(name: str, a: str, b: str, below: float = 1.0, effect: float = 1.0, **options: Any) -> Test:
    """`a / b < below`, on the log scale; `effect` is the smallest further ratio of interest."""
    return difference(name, a, b, null=math.log(below), margin=math.log(effect), log=True, less=True, **options)


def bound(name: str, a: str, null: float = 0.0, unit: str = "", **options: Any) -> Test:
    """`a` is more than `null`."""
    return _test("bound", name, a, None, unit, null=null, **options)


def equivalence(name: str, a: str, b: str | None, margin: float, unit: str = "", **options: Any) -> Test:
    """`a` is `b` (or `null`), to within the margin."""
    return _test("equivalence", name, a, b, unit, margin=margin, **options)


def exact(name: str, a: str, null: float = 0.0, margin: float = 0.0, unit: str = "", **options: Any) -> Test:
    """`a` is `null` in every seed, to within the margin."""
    return _test("exact", name, a, None, unit, null=null, margin=margin, **options)


def gate(name: str, metric: str, at_least: float | None = None, at_most: float | None = None, unit: str = "") -> Test:
    """A competence gate: unless the mean of `arm.metric` reaches the value, the claim is inconclusive."""
    null = at_least if at_most is None else at_most
    if null is None or (at_least is not None and at_most is not None):
        raise ValueError(f"gate '{name}': give either at_least or at_most")
    side: Literal["less", "greater"] = "greater" if at_most is None else "less"
    return Test(name=name, kind="bound", a=metric, null=null, direction=side, unit=unit, gates="competence")

"""Hyperparameters tuned by asking a model: a warm start, candidates for a wished score, and two surrogates.

Source: Liu et al. 2024, arXiv:2402.03921; the wording is ours. Scores are shown standardised, higher better, so that
any metric serves; what is wished for is then `best + alpha (best - worst)` whatever the metric's sign and scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Interval
from scipy import stats

from didact.bounds import Count, NonNegative, PositiveShare
from didact.data.spaces import Config
from didact.infer.ask import Asker, Exchange
from didact.infer.tuning_prompts import Trials, Words

FLOOR = 1e-5  # of a surrogate's standard deviation
ROUNDS = 3  # of asking for candidates
ENOUGH = 5  # candidates


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the next configuration is found.

    Args:
        surrogate: discriminative (scores are predicted, the largest expected improvement is taken), generative (the
            likeliest to be among the best share), or none (the first candidate).
        candidates: asked for each time.
        templates: orders of the history that are shown.
        gens: predictions of each order.
        alpha: how far the wished score lies beyond the best, in units of the range seen; below 0 within it.
        best: the share of trials that counts as good, for the generative surrogate.
        scores: standard (mean 0, sd 1, higher is better) or raw, as they are.
        temperature: of candidates.
        surrogate_temperature: of predictions.
        top_p: of both.
    """

    surrogate: Literal["discriminative", "generative", "none"] = "discriminative"
    candidates: Count = 10
    templates: Count = 2
    gens: Count = 10
    alpha: Annotated[float, Interval(ge=-1, le=1)] = 0.1
    best: PositiveShare = 0.2
    scores: Literal["standard", "raw"] = "standard"
    temperature: NonNegative = 0.8
    surrogate_temperature: NonNegative = 0.7
    top_p: PositiveShare = 0.95


def trials(configs: Sequence[Config], scores: Sequence[float], lower: bool, how: Search) -> Trials:
    """A history as the model sees it."""
    values = np.asarray(scores, dtype=float)
    if how.scores == "raw":
        return Trials(tuple(configs), tuple(values.tolist()), lower)
    signed = -values if lower else values
    spread = float(signed.std()) or 1.0
    return Trials(tuple(configs), tuple(((signed - signed.mean()) / spread).tolist()))


class Proposed(NamedTuple):
    """What to try next, and what the discriminative surrogate expects of it, in the score's own units."""

    config: dict[str, Any]
    mean: float = math.nan
    std: float = math.nan


def unshown(mean: float, std: float, scores: Sequence[float], lower: bool, how: Search) -> tuple[float, float]:
    """A prediction of shown scores (see `trials`) in the units of the scores themselves."""
    if how.scores == "raw":
        return mean, std
    values = np.asarray(scores, dtype=float)
    spread = float(values.std()) or 1.0
    return float(values.mean() + (-mean if lower else mean) * spread), std * spread


def calibration(mean: Any, std: Any, scores: Any) -> dict[str, float]:
    """How well predictions know what they do not know, `(n,)` each: the share of scores in their 90 % intervals
    (coverage, normal ones), the intervals' mean width (sharpness), and the root mean square error."""
    mean, std, scores = (np.asarray(x, dtype=float) for x in (mean, std, scores))
    half = float(stats.norm.ppf(0.95)) * std
    return {
        "coverage": float(np.mean(np.abs(scores - mean) <= half)), "sharpness": float(np.mean(2 * half)),
        "error": float(np.sqrt(np.mean((scores - mean) ** 2))),
    }  # fmt: skip


def wished(history: Trials, alpha: float) -> float:
    """`best + alpha (best - worst)`; alpha 0 is read as -1e-3, a range of 0 as a tenth of the best (1 where that is 0).

    For a metric that is better when lower that is `s_min - alpha (s_max - s_min)`.
    """
    best, spread = history.best, max(history.shown) - min(history.shown)
    step = (alpha or -1e-3) * (spread or 0.1 * abs(best) or 0.1)
    return best - step if history.lower else best + step


def expected_improvement(mean: Any, std: Any, best: float, lower: bool = False) -> Any:
    """`delta Phi(z) + std phi(z)`, delta the improvement of the mean over the best, z = delta / std."""
    mean, std = np.asarray(mean, dtype=float), np.maximum(np.asarray(std, dtype=float), FLOOR)
    delta = best - mean if lower else mean - best
    z = delta / std
    return delta * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def labels(history: Trials, best: float) -> list[int]:
    """1 of trials strictly better than the percentile of the best share; the best trial always is."""
    values = np.asarray(history.shown) * (1 if history.lower else -1)
    limit = np.percentile(values, 100 * best)
    return [int(v < limit or v == values.min()) for v in values]


def read_number(text: str) -> float | None:
    """The first number of an answer."""
    found = re.search(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)
    return float(found[0]) if found and math.isfinite(float(found[0])) else None


# --- the three parts -----------------------------------------------------------------------------


def warm_start(asker: Asker, words: Words, count: int) -> list[dict[str, Any]]:
    """Configurations to begin with, from what the model knows; perhaps fewer than asked for."""
    found: dict[str, dict[str, Any]] = {}

    def read(text: str) -> list[dict[str, Any]] | None:
        configs = [c for line in text.splitlines() if (c := words.read(line)) is not None]
        return configs or None

    for _ in range(ROUNDS):
        missing = count - len(found)
        if missing <= 0 or asker.left == 0:
            break
        prompts = [words.warm(count)] * (missing if words.bare else 1)
        stop = ("\n",) if words.bare else ()
        for configs in asker.ask(prompts, read, "warm start", stop=stop, temperature=WARM_TEMPERATURE):
            found |= {words.space.key(c): c for c in configs or ()}
    return list(found.values())[:count]


WARM_TEMPERATURE = 0.8


def candidates(
    asker: Asker, words: Words, history: Trials, how: Search, seed: int, known: Sequence[Config]
) -> list[dict[str, Any]]:
    """New configurations for the wished score: different ones, in the space, none of those `known`."""
    seen, found = {words.space.key(c) for c in known}, dict[str, dict[str, Any]]()
    score = wished(history, how.alpha)
    for again in range(ROUNDS):
        if len(found) >= min(ENOUGH, how.candidates) or asker.left == 0:
            break
        orders = [seed * 1009 + again * how.templates + i % how.templates for i in range(how.candidates)]
        prompts = [words.candidate(history, score, order) for order in orders]
        stop = ("\n",) if words.bare else ("##", "\nPerformance")
        drawn = asker.ask(prompts, words.read, "candidate", stop=stop, temperature=how.temperature, top_p=how.top_p)
        found |= {key: c for c in drawn if c and (key := words.space.key(c)) not in seen}
    return list(found.values())[: how.candidates]


def predicted(
    asker: Asker, words: Words, history: Trials, configs: Sequence[Config], how: Search, seed: int
) -> tuple[Any, Any]:
    """Mean and standard deviation of each configuration's score by the discriminative surrogate, `(n,)` each.

    Of answers that cannot be read the others are taken; where none can, the average of all means, and of deviations.
    """
    orders = [seed * 1013 + i // how.gens for i in range(how.templates * how.gens)]
    prompts = [words.prediction(history, c, order) for c in configs for order in orders]
    items = [n for n in range(len(configs)) for _ in orders]
    drawn = asker.ask(
        prompts, read_number, "surrogate", items, stop=("\n",) if words.bare else ("##", "\n"),
        temperature=how.surrogate_temperature, top_p=how.top_p, max_new_tokens=12,
    )  # fmt: skip
    values = np.array([np.nan if x is None else x for x in drawn]).reshape(len(configs), -1)
    able = ~np.isnan(values).all(1)
    if not able.any():
        return np.full(len(configs), np.nan), np.full(len(configs), FLOOR)
    mean, std = np.full((2, len(configs)), np.nan)
    mean[able], std[able] = np.nanmean(values[able], 1), np.nanstd(values[able], 1)
    mean[~able], std[~able] = mean[able].mean(), std[able].mean()
    return mean, np.maximum(std, FLOOR)


def goodness(
    asker: Asker, words: Words, history: Trials, configs: Sequence[Config], how: Search, seed: int
) -> list[float]:
    """Chance that each configuration is among the best by the generative surrogate, of two tokens alone:
    sigmoid(l1 - l0), averaged over orders of the history."""
    marks = labels(history, how.best)
    prompts = [words.prediction(history, c, seed * 1019 + t, marks) for c in configs for t in range(how.templates)]
    if asker.left is not None and asker.left < len(prompts):
        asker.ended = True
        return [0.5] * len(configs)
    chances = []
    for at, (prompt, top) in enumerate(zip(prompts, asker.lm.top_logprobs(prompts), strict=True)):
        chance = two_way(top)
        asker.exchanges.append(Exchange("surrogate", at // how.templates, prompt, str(chance), chance is not None))
        chances.append(0.5 if chance is None else chance)
    return list(np.reshape(chances, (len(configs), -1)).mean(1))


def two_way(top: Mapping[str, float]) -> float | None:
    """`exp(l1) / (exp(l1) + exp(l0))` of the tokens 1 and 0; None where the model thinks of neither."""
    logp = {mark: [v for k, v in top.items() if k.strip() == mark] for mark in "01"}
    if not logp["0"] and not logp["1"]:
        return None
    one, zero = (max(logp[mark], default=min(top.values())) for mark in "10")
    return 1 / (1 + math.exp(zero - one))


def proposed(
    asker: Asker, words: Words, history: Trials, how: Search, seed: int, pending: Sequence[Config] = ()
) -> Proposed | None:
    """The next configuration to try; None where the model named none, or the budget is used up."""
    found = candidates(asker, words, history, how, seed, [*history.configs, *pending])
    if not found:
        return None
    if how.surrogate == "generative":
        return Proposed(found[int(np.argmax(goodness(asker, words, history, found, how, seed)))])
    if how.surrogate == "discriminative":
        mean, std = predicted(asker, words, history, found, how, seed)
        gain = expected_improvement(mean, std, history.best, history.lower)
        best = 0 if np.isnan(gain).all() else int(np.nanargmax(gain))
        return Proposed(found[best], float(mean[best]), float(std[best]))
    return Proposed(found[0])

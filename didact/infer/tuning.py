"""Hyperparameter tuning by prompting a model: a warm start, candidates for a target score, and two surrogates.

Source: Liu et al. 2024, arXiv:2402.03921, with other prompt wording. Scores are shown standardised, higher better, so
that the target is `best + alpha (best - worst)` for any metric, whatever its sign and scale.
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

FLOOR = 1e-5  # least standard deviation of a surrogate
ROUNDS = 3  # most rounds of requests for candidates
ENOUGH = 5  # candidates after which no further round is needed


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the next configuration is found.

    Args:
        surrogate: discriminative (predict scores, take the largest expected improvement), generative (take the
            likeliest to be among the best share), or none (the first candidate).
        candidates: requested each time.
        templates: random orders in which the history is shown.
        gens: predictions for each order.
        alpha: distance of the target score beyond the best, in units of the observed range; below 0 within it.
        best: the share of trials that counts as good, for the generative surrogate.
        scores: standard (mean 0, sd 1, higher is better) or raw.
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


def trials(configs: Sequence[Config], scores: Sequence[float], lower: bool, search: Search) -> Trials:
    """A history with the scores in the form that the model is shown."""
    values = np.asarray(scores, dtype=float)
    if search.scores == "raw":
        return Trials(tuple(configs), tuple(values.tolist()), lower)
    signed = -values if lower else values
    spread = float(signed.std()) or 1.0
    return Trials(tuple(configs), tuple(((signed - signed.mean()) / spread).tolist()))


class Proposed(NamedTuple):
    """The next configuration, and the discriminative surrogate's prediction for it, in units of the shown scores."""

    config: dict[str, Any]
    mean: float = math.nan
    std: float = math.nan


def to_original(mean: float, std: float, scores: Sequence[float], lower: bool, search: Search) -> tuple[float, float]:
    """Convert a prediction from shown scores (see `trials`) to the units of the original scores."""
    if search.scores == "raw":
        return mean, std
    values = np.asarray(scores, dtype=float)
    spread = float(values.std()) or 1.0
    return float(values.mean() + (-mean if lower else mean) * spread), std * spread


def calibration(mean: Any, std: Any, scores: Any) -> dict[str, float]:
    """Calibration of predictions, `(n,)` each: the share of scores in their normal 90 % intervals (coverage), the
    intervals' mean width (sharpness), and the root mean square error."""
    mean, std, scores = (np.asarray(x, dtype=float) for x in (mean, std, scores))
    half = float(stats.norm.ppf(0.95)) * std
    return {
        "coverage": float(np.mean(np.abs(scores - mean) <= half)), "sharpness": float(np.mean(2 * half)),
        "error": float(np.sqrt(np.mean((scores - mean) ** 2))),
    }  # fmt: skip


def target_score(history: Trials, alpha: float) -> float:
    """The target score, `best + alpha (best - worst)`; for a metric that is better when lower, `s_min - alpha
    (s_max - s_min)`. Alpha 0 counts as -1e-3, a range of 0 as a tenth of the best (0.1 where the best is 0).
    """
    best, spread = history.best, max(history.shown) - min(history.shown)
    step = (alpha or -1e-3) * (spread or 0.1 * abs(best) or 0.1)
    return best - step if history.lower else best + step


def expected_improvement(mean: Any, std: Any, best: float, lower: bool = False) -> Any:
    """`delta Phi(z) + std phi(z)`, with delta the improvement of the mean over the best and z = delta / std."""
    mean, std = np.asarray(mean, dtype=float), np.maximum(np.asarray(std, dtype=float), FLOOR)
    delta = best - mean if lower else mean - best
    z = delta / std
    return delta * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def labels(history: Trials, best: float) -> list[int]:
    """1 for trials strictly better than the percentile of the best share and for the best trial, else 0."""
    values = np.asarray(history.shown) * (1 if history.lower else -1)
    limit = np.percentile(values, 100 * best)
    return [int(v < limit or v == values.min()) for v in values]


def read_number(text: str) -> float | None:
    """The first number of an answer."""
    match = re.search(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)
    return float(match[0]) if match and math.isfinite(float(match[0])) else None


# --- the three parts -----------------------------------------------------------------------------


def warm_start(asker: Asker, words: Words, count: int) -> list[dict[str, Any]]:
    """Initial configurations from the model's own knowledge; perhaps fewer than `count`."""
    collected: dict[str, dict[str, Any]] = {}

    def read(text: str) -> list[dict[str, Any]] | None:
        configs = [c for line in text.splitlines() if (c := words.read(line)) is not None]
        return configs or None

    for _ in range(ROUNDS):
        missing = count - len(collected)
        if missing <= 0 or asker.ended:
            break
        prompts = [words.warm(count)] * (missing if words.bare else 1)
        stop = ("\n",) if words.bare else ()
        for configs in asker.ask(prompts, read, "warm start", stop=stop, temperature=WARM_TEMPERATURE):
            collected |= {words.space.key(c): c for c in configs or ()}
    return list(collected.values())[:count]


WARM_TEMPERATURE = 0.8


def candidates(
    asker: Asker, words: Words, history: Trials, search: Search, seed: int, exclude: Sequence[Config]
) -> list[dict[str, Any]]:
    """New configurations for the target score: distinct, in the space, and none of `exclude`."""
    excluded, collected = {words.space.key(c) for c in exclude}, dict[str, dict[str, Any]]()
    score = target_score(history, search.alpha)
    for attempt in range(ROUNDS):
        if len(collected) >= min(ENOUGH, search.candidates) or asker.ended:
            break
        orders = [seed * 1009 + attempt * search.templates + i % search.templates for i in range(search.candidates)]
        prompts = [words.candidate(history, score, order) for order in orders]
        stop = ("\n",) if words.bare else ("##", "\nPerformance")
        answers = asker.ask(
            prompts, words.read, "candidate", stop=stop, temperature=search.temperature, top_p=search.top_p
        )
        collected |= {key: c for c in answers if c and (key := words.space.key(c)) not in excluded}
    return list(collected.values())[: search.candidates]


def predicted(
    asker: Asker, words: Words, history: Trials, configs: Sequence[Config], search: Search, seed: int
) -> tuple[Any, Any]:
    """Mean and standard deviation of each configuration's score by the discriminative surrogate, `(n,)` each.

    Answers that cannot be parsed are ignored; a configuration without any gets the average of the others' means and
    deviations.
    """
    orders = [seed * 1013 + i // search.gens for i in range(search.templates * search.gens)]
    prompts = [words.prediction(history, c, order) for c in configs for order in orders]
    items = [n for n in range(len(configs)) for _ in orders]
    answers = asker.ask(
        prompts, read_number, "surrogate", items, stop=("\n",) if words.bare else ("##", "\n"),
        temperature=search.surrogate_temperature, top_p=search.top_p, max_new_tokens=12,
    )  # fmt: skip
    values = np.array([np.nan if x is None else x for x in answers]).reshape(len(configs), -1)
    readable = ~np.isnan(values).all(1)
    if not readable.any():
        return np.full(len(configs), np.nan), np.full(len(configs), FLOOR)
    mean, std = np.full((2, len(configs)), np.nan)
    mean[readable], std[readable] = np.nanmean(values[readable], 1), np.nanstd(values[readable], 1)
    mean[~readable], std[~readable] = mean[readable].mean(), std[readable].mean()
    return mean, np.maximum(std, FLOOR)


def p_good(
    asker: Asker, words: Words, history: Trials, configs: Sequence[Config], search: Search, seed: int
) -> list[float]:
    """Probability that each configuration is among the best, by the generative surrogate: sigmoid(l1 - l0) of the
    log-probs of tokens 1 and 0, averaged over orders of the history."""
    marks = labels(history, search.best)
    prompts = [words.prediction(history, c, seed * 1019 + t, marks) for c in configs for t in range(search.templates)]
    if asker.left is not None and asker.left < len(prompts):
        asker.ended = True
        return [0.5] * len(configs)
    chances = []
    for at, (prompt, top) in enumerate(zip(prompts, asker.lm.top_logprobs(prompts), strict=True)):
        chance = two_way(top)
        asker.exchanges.append(Exchange("surrogate", at // search.templates, prompt, str(chance), chance is not None))
        chances.append(0.5 if chance is None else chance)
    return list(np.reshape(chances, (len(configs), -1)).mean(1))


def two_way(top: Mapping[str, float]) -> float | None:
    """`exp(l1) / (exp(l1) + exp(l0))` of the tokens 1 and 0; None where neither is among the top tokens."""
    logp = {mark: [v for k, v in top.items() if k.strip() == mark] for mark in "01"}
    if not logp["0"] and not logp["1"]:
        return None
    yes, no = (max(logp[mark], default=min(top.values())) for mark in "10")
    return 1 / (1 + math.exp(no - yes))


def proposed(
    asker: Asker, words: Words, history: Trials, search: Search, seed: int, pending: Sequence[Config] = ()
) -> Proposed | None:
    """The next configuration to try; None where the model gave no valid one, or the budget is used up."""
    pool = candidates(asker, words, history, search, seed, [*history.configs, *pending])
    if not pool:
        return None
    if search.surrogate == "generative":
        return Proposed(pool[int(np.argmax(p_good(asker, words, history, pool, search, seed)))])
    if search.surrogate == "discriminative":
        mean, std = predicted(asker, words, history, pool, search, seed)
        gain = expected_improvement(mean, std, history.best, history.lower)
        best = 0 if np.isnan(gain).all() else int(np.nanargmax(gain))
        return Proposed(pool[best], float(mean[best]), float(std[best]))
    return Proposed(pool[0])

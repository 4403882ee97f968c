"""LLAMBO's claim with a small model that knows a family of tuning problems: what a model knows beforehand helps most
when little has been tried.

What a pretrained model knows of real tasks cannot be had at this size. A model reads histories of eight cards' tasks
(configurations with scores, and the other way round), and is then used through LLAMBO's text alone on new tasks near
their cards: a 16 x 16 grid, scores from 0 to 99 with noise. All searches begin with the same five random trials;
Optuna's TPE and Gaussian process know nothing. The control is a family of tasks whose optimum no card says. On seed
1000 the 400 steps of the quick tier taught the cards (a warm start lost 3 points, chance 15), but not to predict
scores from five trials (rank correlation .15, a Gaussian process .43): a gate says so, and the claim is then
inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from didact.claims import lab, runner
from didact.claims.lab import difference, gate, ratio
from didact.claims.prompting import llambo_example as example
from didact.data import spaces
from didact.infer import lm as language_models
from didact.infer import sampler, tuning
from didact.infer.ask import Asker
from didact.infer.tuning_prompts import Card, Words
from didact.types import LM
from didact.worlds import bowls
from didact.worlds.bowls import Bowl, Bowls

problem = example.problem

STEPS = {"smoke": 5, "quick": 400, "full": 3000}
TASKS = {"smoke": 1, "quick": 6, "full": 20}
TRIALS = {"smoke": 6, "quick": 12, "full": 25}
START = 5
SEEN = 5  # trials a surrogate knows
PARTS = ("warm", "surrogate", "search")
SPACE = spaces.space_of(example.SPACE)


def run(seed: int, tier: runner.Tier, parts: tuple[str, ...] = PARTS, turn: int = 0) -> runner.Measured:
    """The three parts on one seed's tasks; `turn` gives every task another card than its own."""
    lm = language_models.of(example.reader(seed, STEPS[tier]))
    family, rng = Bowls(seed), np.random.default_rng([seed, 53])
    tasks = [family.task(rng) for _ in range(TASKS[tier])]
    away = [family.task(rng, away=True) for _ in range(TASKS[tier])]
    out: dict[str, dict[str, float]] = {}

    def card(task: Bowl) -> Card:
        return example.card_of((task.card + turn) % bowls.CARDS)

    if "warm" in parts:
        for name, some, told in (("card", tasks, card), ("no_card", tasks, _nothing), ("away", away, card)):
            out[name] = {"begun": lab.mean(_lost(t, _warm(lm, told(t), n)) for n, t in enumerate(some))}
        draws = [_lost(t, family.configs(rng, START)) for t in tasks for _ in range(20)]
        out["chance"] = {"begun": lab.mean(draws)}
    if "surrogate" in parts:
        found = [_surrogates(lm, family, t, card(t), seed + n) for n, t in enumerate(tasks)]
        for arm in found[0]:
            out.setdefault(arm, {}).update({k: lab.mean(f[arm][k] for f in found) for k in found[0][arm]})
    if "search" in parts:
        for n, task in enumerate(tasks):
            for arm, lost in _searches(lm, family, task, card(task), seed + 100 * n, TRIALS[tier]).items():
                out.setdefault(arm, {})["found"] = out.get(arm, {}).get("found", 0.0) + lost / len(tasks)
    return out


def _nothing(task: Bowl) -> Card:
    return example.card_of(None)


def _lost(task: Bowl, configs: Any) -> float:
    """What the best of some configurations lacks, in hundredths of the scale."""
    return bowls.TOP - max([task.value(c) for c in configs], default=0.0)


def _warm(lm: LM, card: Card, seed: int) -> list[dict[str, Any]]:
    return tuning.warm_start(Asker(lm, example.ASKING, seed), Words(SPACE, card), START)


def _surrogates(lm: LM, family: Bowls, task: Bowl, card: Card, seed: int) -> dict[str, dict[str, float]]:
    """How well scores of unseen configurations are told after a few: rank correlation and error, with a GP's."""
    rng = np.random.default_rng([seed, 59])
    configs = family.configs(rng, SEEN + 20)
    scores = [task.score(c, rng) for c in configs[:SEEN]]
    true = np.array([task.value(c) for c in configs[SEEN:]])
    history = tuning.trials(configs[:SEEN], scores, False, example.SEARCH)
    mean, _ = tuning.predicted(
        Asker(lm, example.ASKING, seed), Words(SPACE, card), history, configs[SEEN:], example.SEARCH, seed
    )
    points = np.array([[c["a"], c["b"]] for c in configs]) / (bowls.SIDE - 1)
    kernel = kernels.Matern(0.3, (0.05, 3.0), 2.5) + kernels.WhiteKernel(0.01, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(points[:SEEN], scores)
    return {
        name: _told(np.nan_to_num(p), true)
        for name, p in (("surrogate", mean), ("process", process.predict(points[SEEN:])))
    }


def _told(predicted: Any, true: Any) -> dict[str, float]:
    order = stats.spearmanr(predicted, true).statistic if np.ptp(predicted) else 0.0
    return {"order": float(order), "error": float(np.sqrt(np.mean((predicted - true) ** 2)))}


def _searches(lm: LM, family: Bowls, task: Bowl, card: Card, seed: int, trials: int) -> dict[str, float]:
    """What each search has not found after all trials, the first five of which are the same."""
    rng = np.random.default_rng([seed, 61])
    first = [dict(c) for c in family.configs(rng, START)]
    first_scores = [float(task.score(c, rng)) for c in first]
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "llambo": lambda: sampler.LlamboSampler(
            lm, space=SPACE, card=card, how=example.SEARCH, asking=example.ASKING, start=0, seed=seed
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=START),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=START, deterministic_objective=False),
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return {name: _searched(make(), first, first_scores, task, seed, trials) for name, make in made.items()}


def _searched(by: Any, first: Any, first_scores: Any, task: Bowl, seed: int, trials: int) -> float:
    study, luck = optuna.create_study(sampler=by, direction="maximize"), np.random.default_rng([seed, 67])
    known = sampler.distributions(SPACE)
    for config, score in zip(first, first_scores, strict=True):
        study.add_trial(optuna.trial.create_trial(params=config, distributions=known, value=score))
    tried = list(first)
    for _ in range(trials - START):
        trial = study.ask()
        tried.append(sampler.suggested(trial, SPACE))
        study.tell(trial, float(task.score(tried[-1], luck)))
    return _lost(task, tried)


LOST, ORDER = "points of 99 below the best", "rank correlation"
BEGINS, FINDS, TELLS = "begins better than chance", "finds more than chance", "its predictions tell good from bad"


def _backwards(mean: Any, std: Any, best: float, lower: bool = False, right: Any = tuning.expected_improvement) -> Any:
    return -right(mean, std, best, lower)


def _unwished(history: Any, alpha: float) -> float:
    return float(min(history.shown))


def _mixed(configs: Any, scores: Any, lower: bool, how: Any, right: Any = tuning.trials) -> Any:
    order = np.random.default_rng(len(scores)).permutation(len(scores))
    return right(configs, [100 - scores[i] for i in order], lower, how)


CLAIM = runner.Claim(
    method="llambo",
    text=(
        "A model that knows a family of tasks, asked through LLAMBO's text, begins nearer to the optimum than chance, "
        "predicts scores after five trials better than a Gaussian process, and finds more in a few trials than random "
        "search and TPE. On tasks that it knows nothing of it begins no better than chance."
    ),
    run=run,
    gates=(
        gate("cards are known", "card.begun", at_most=30.0, unit=LOST),
        gate("the model has learnt to predict scores", "surrogate.order", at_least=0.4, unit=ORDER),
    ),
    tests=(
        ratio(BEGINS, "card.begun", "chance.begun", below=0.7, unit="ratio of points lost"),
        difference("the card is what it knows", "card.begun", "no_card.begun", LOST, less=True),
        difference("knowledge of others is none", "away.begun", "card.begun", LOST),
        difference(TELLS, "surrogate.order", "process.order", ORDER),
        difference("with smaller errors", "surrogate.error", "process.error", "points", less=True),
        difference(FINDS, "llambo.found", "random.found", LOST, less=True),
        difference("finds more than TPE", "llambo.found", "tpe.found", LOST, less=True),
        difference("finds more than a Gaussian process", "llambo.found", "gp.found", LOST, less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("another card", BEGINS, "card.begun", options={"turn": 3, "parts": ("warm",)}),
        runner.Sabotage("scores of other trials", TELLS, "surrogate.order", {"didact.infer.tuning:trials": _mixed},
                        {"parts": ("surrogate",)}),
        runner.Sabotage("the least improvement", FINDS, "llambo.found",
                        {"didact.infer.tuning:expected_improvement": _backwards,
                         "didact.infer.tuning:wished": _unwished},
                        {"parts": ("search",)}),
    ),
)  # fmt: skip

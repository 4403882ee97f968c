"""LLAMBO's claim with a small model that knows a family of tuning problems: prior knowledge helps most early on.

A pretrained model's knowledge of real tasks is out of reach at this size. A model is trained on histories of tasks
with cards (configurations with scores, and the reverse), and is then used through LLAMBO's prompts alone on new
tasks near their cards: a 16 x 16 grid, scores from 0 to 99 with noise. All searches start from the same five random
trials; Optuna's TPE and Gaussian process have no prior knowledge. The control is tasks whose optimum no card tells.

One model serves every hundred seeds, which sample tasks: intervals are over tasks, not over models. An earlier design
on seeds 0 to 4 had a model per seed, eight cards anywhere and a third of the steps, and began as well with another
card: it had learnt none. On seeds 1000 and 1001 this became four cards, a quarter of the grid each, and the claim is
tested on fresh seeds, from `FRESH` on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.stats import qmc
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate, ratio
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

FRESH, CARDS = 200, 4
STEPS = {"smoke": 5, "quick": 1200, "full": 3000}
TASKS = {"smoke": 1, "quick": 10, "full": 20}
TRIALS = {"smoke": 6, "quick": 12, "full": 25}
START = 5
SEEN = 5  # trials a surrogate is given
PARTS = ("warm", "surrogate", "search")
SPACE = spaces.space_of(example.SPACE)


def run(seed: int, tier: runner.Tier, parts: tuple[str, ...] = PARTS, turn: int = 0) -> runner.Measured:
    """The three parts on one seed's tasks; a `turn` of more than 0 gives every task the wrong card."""
    seed += FRESH
    family, rng = Bowls(seed // 100, CARDS, apart=True), np.random.default_rng([seed, 53])
    lm = language_models.of(example.reader(family, STEPS[tier]))
    tasks = [family.task(rng) for _ in range(TASKS[tier])]
    far_tasks = [family.task(rng, away=True) for _ in range(TASKS[tier])]
    out: dict[str, dict[str, float]] = {}

    def card(task: Bowl) -> Card:
        return example.card_of((task.card + turn) % CARDS)

    if "warm" in parts:
        for name, group, card_for in (("card", tasks, card), ("no_card", tasks, _no_card), ("away", far_tasks, card)):
            out[name] = {"begun": lab.mean(_regret(t, _warm_start(lm, card_for(t), n)) for n, t in enumerate(group))}
        draws = [_regret(t, family.configs(rng, START)) for t in tasks for _ in range(20)]
        out["chance"] = {"begun": lab.mean(draws)}
        for name, design in (("sobol", qmc.Sobol), ("latin", qmc.LatinHypercube)):
            designs = [_design_points(design, [seed, n, k]) for n in range(len(tasks)) for k in range(20)]
            out[name] = {"begun": lab.mean(_regret(tasks[i // 20], configs) for i, configs in enumerate(designs))}
    if "surrogate" in parts:
        surrogates = [_surrogates(lm, family, t, card(t), seed + n) for n, t in enumerate(tasks)]
        for arm in surrogates[0]:
            out.setdefault(arm, {}).update({k: lab.mean(s[arm][k] for s in surrogates) for k in surrogates[0][arm]})
    if "search" in parts:
        for n, task in enumerate(tasks):
            for arm, regret in _all_searches(lm, family, task, card(task), seed + 100 * n, TRIALS[tier]).items():
                out.setdefault(arm, {})["found"] = out.get(arm, {}).get("found", 0.0) + regret / len(tasks)
    if parts == PARTS:  # for the gates: the model with the right cards
        out["known"] = {"begun": out["card"]["begun"], "order": out["surrogate"]["order"]}
    return out


def _no_card(task: Bowl) -> Card:
    return example.card_of(None)


def _regret(task: Bowl, configs: Any) -> float:
    """Simple regret: points by which the best configuration falls short of the optimum, on a scale of 0 to 99."""
    return bowls.TOP - max([task.value(c) for c in configs], default=0.0)


def _design_points(design: Any, seed: Sequence[int]) -> list[dict[str, int]]:
    """As many configurations as a warm start has, from a space-filling design."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sobol's balance wants a power of two, and a warm start has five
        points = design(2, rng=np.random.default_rng(seed)).random(START)
    return [{"a": int(a), "b": int(b)} for a, b in points * bowls.SIDE]


def _warm_start(lm: LM, card: Card, seed: int) -> list[dict[str, Any]]:
    return tuning.warm_start(Asker(lm, example.ASKING, seed), Words(SPACE, card), START)


def _surrogates(lm: LM, family: Bowls, task: Bowl, card: Card, seed: int) -> dict[str, dict[str, float]]:
    """Quality of predicted scores of unseen configurations after a few trials, of the surrogate and of a GP."""
    rng = np.random.default_rng([seed, 59])
    configs = family.configs(rng, SEEN + 20)
    scores = [task.score(c, rng) for c in configs[:SEEN]]
    true = np.array([task.value(c) for c in configs[SEEN:]])
    history = tuning.trials(configs[:SEEN], scores, False, example.SEARCH)
    mean, std = tuning.predicted(
        Asker(lm, example.ASKING, seed), Words(SPACE, card), history, configs[SEEN:], example.SEARCH, seed
    )
    points = np.array([[c["a"], c["b"]] for c in configs]) / (bowls.SIDE - 1)
    kernel = kernels.Matern(0.3, (0.05, 3.0), 2.5) + kernels.WhiteKernel(0.01, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(points[:SEEN], scores)
    gp_mean, gp_std = process.predict(points[SEEN:], return_std=True)
    return {
        "surrogate": _quality(np.nan_to_num(mean), std, true), "process": _quality(gp_mean, gp_std, true),
    }  # fmt: skip


def _quality(mean: Any, std: Any, true: Any) -> dict[str, float]:
    order = stats.spearmanr(mean, true).statistic if np.ptp(mean) else 0.0
    return {"order": float(order)} | tuning.calibration(mean, std, true)


def _all_searches(lm: LM, family: Bowls, task: Bowl, card: Card, seed: int, trials: int) -> dict[str, float]:
    """The regret of each search after all trials, the first five of which are the same."""
    rng = np.random.default_rng([seed, 61])
    first = [dict(c) for c in family.configs(rng, START)]
    first_scores = [float(task.score(c, rng)) for c in first]
    initial = list(zip(first, first_scores, strict=True))
    options = {"card": card, "how": example.SEARCH, "asking": example.ASKING, "seed": seed}
    studies = {"llambo": sampler.start_study(lm, SPACE, initial, False, **options)[0]}
    for name in ("random", "tpe", "gp"):
        studies[name] = sampler.rival(name, SPACE, initial, False, START, seed)
    return {name: _search(study, first, task, seed, trials) for name, study in studies.items()}


def _search(study: Any, first: Any, task: Bowl, seed: int, trials: int) -> float:
    rng = np.random.default_rng([seed, 67])
    configs = [sampler.next_trial(study, SPACE, lambda c: float(task.score(c, rng)))[1] for _ in range(trials - START)]
    return _regret(task, [*first, *configs])


LOST, OF_LOST, ORDER = "points of 99 below the best", "ratio of points lost", "rank correlation"
BEGINS, FINDS, TELLS = "begins better than chance", "finds more than chance", "its predictions tell good from bad"


def _backwards(mean: Any, std: Any, best: float, lower: bool = False, right: Any = tuning.expected_improvement) -> Any:
    return -right(mean, std, best, lower)


def _worst_score(history: Any, alpha: float) -> float:
    return float(min(history.shown))


CLAIM = runner.Claim(
    method="llambo",
    text=(
        "A model that knows a family of tasks, asked through LLAMBO's text, begins nearer to the optimum than chance, "
        "predicts scores after five trials better than a Gaussian process, and finds more in a few trials than random "
        "search and TPE. On tasks that it knows nothing of it begins no better than chance."
    ),
    run=run,
    gates=(
        gate("cards are known", "known.begun", at_most=12.0, unit=LOST),
        gate("the model has learnt to predict scores", "known.order", at_least=0.4, unit=ORDER),
    ),
    tests=(
        ratio(BEGINS, "card.begun", "chance.begun", below=0.7, unit=OF_LOST),
        difference("the card is what it knows", "card.begun", "no_card.begun", LOST, less=True),
        difference("knowledge of others is none", "away.begun", "card.begun", LOST),
        difference(TELLS, "surrogate.order", "process.order", ORDER),
        difference("with smaller errors", "surrogate.error", "process.error", "points", less=True),
        ratio("better than a Sobol sequence", "card.begun", "sobol.begun", below=0.7, unit=OF_LOST, reported=True),
        ratio("better than a Latin hypercube", "card.begun", "latin.begun", below=0.7, unit=OF_LOST, reported=True),
        bound("its 90 % intervals hold nine scores of ten", "surrogate.coverage", 0.85, "of scores", reported=True),
        difference("they hold more than a Gaussian process's", "surrogate.coverage", "process.coverage", "of scores",
                   reported=True),
        difference("and are narrower", "surrogate.sharpness", "process.sharpness", "points", less=True, reported=True),
        difference(FINDS, "llambo.found", "random.found", LOST, less=True),
        difference("finds more than TPE", "llambo.found", "tpe.found", LOST, less=True),
        difference("finds more than a Gaussian process", "llambo.found", "gp.found", LOST, less=True, reported=True),
    ),
    sabotages=(
        runner.Sabotage("another card", BEGINS, "card.begun", options={"turn": 1, "parts": ("warm",)}),
        runner.Sabotage("predicting with another card", TELLS, "surrogate.order",
                        options={"turn": 1, "parts": ("surrogate",)}),
        runner.Sabotage("the least improvement", FINDS, "llambo.found",
                        {"didact.infer.tuning:expected_improvement": _backwards,
                         "didact.infer.tuning:target_score": _worst_score},
                        {"parts": ("search",)}),
    ),
)  # fmt: skip

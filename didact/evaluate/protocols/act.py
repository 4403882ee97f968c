"""How well a model plays unseen bandits: regret, against the oracle and other players, and failure modes."""

from __future__ import annotations

from didact.data.histories import View
from didact.evaluate import regret
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.infer import acting
from didact.infer import lm as language_models
from didact.infer.acting import Oracle
from didact.models.model import Model
from didact.tools.bandits import BanditConfig

TRIALS = 30


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Score by the method's options `bandit`, `view`, `oracle`, `alpha`, `trials` and `temperature`."""
    (config, view, oracle), seed = _options(scoring), scoring.seed
    world = scoring.once("bandits", lambda: regret.world_of(config, scoring.options.get("trials", TRIALS), seed))
    answer = acting.answering(language_models.of(model), seed, scoring.options.get("temperature", 1.0))
    game = acting.play_model(world, answer, view, oracle, seed)
    return regret.measures(world, game, scoring.once("rivals", lambda: regret.rivals(world, oracle, seed)), config.gap)


def prompts(scoring: Scoring) -> list[str]:
    """The prompts of one of the oracle's games."""
    config, view, oracle = _options(scoring)
    return [d.prompt for d in acting.demonstrations(regret.world_of(config, 1, scoring.seed), view, oracle, 0)]


def _options(scoring: Scoring) -> tuple[BanditConfig, View, Oracle]:
    options = scoring.options
    oracle = Oracle(options.get("oracle", "ucb"), options.get("alpha", 0.5))
    return options.get("bandit", BanditConfig()), options.get("view", View()), oracle


PROTOCOL = Protocol(kind="", primary="regret", score=score, prompts=prompts)

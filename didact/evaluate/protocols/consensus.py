"""Which of a demonstration's `choices` a model ranks first by every rule of the consensus game (`infer.consensus`)."""

from __future__ import annotations

from didact.data import words
from didact.evaluate import ranked
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring, choice
from didact.infer import consensus, equilibrium
from didact.infer import lm as language_models
from didact.models.model import Model
from didact.types import LM


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """See `score_lm`."""
    return score_lm(language_models.of(model), scoring)


def score_lm(lm: LM, scoring: Scoring) -> dict[str, Measure]:
    """Accuracy by each of `infer.consensus.RULES`; wording and game are the method's options, if it has them."""
    demos = choice.chosen_from(scoring, "consensus")
    wording, game = scoring.options.get("wording"), scoring.options.get("game")
    candidates = [words.distinct(d.choices) for d in demos]
    result = consensus.play(
        lm, [d.prompt for d in demos], candidates, wording or consensus.Wording(), game or equilibrium.Game()
    )
    right = {rule: ranked.credits(result.rules[rule], candidates, demos) for rule in consensus.RULES}
    return {r: mean_measure(v, "higher", f"the completion is ranked first by {r}") for r, v in right.items()}


PROTOCOL = Protocol(
    kind="demo",
    primary="er_d",
    score=score,
    prompts=choice.PROTOCOL.prompts,
    target=choice.PROTOCOL.target,
    answers=choice.answers,
    answers_primary="choice",
    lm_score=score_lm,
    lm_primary="er_d",
    lm_capability="score",
)

"""The mean reward of sampled answers."""

from __future__ import annotations

from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.infer import generate
from didact.learn import reward_functions
from didact.models.model import Model

PROMPTS = 32


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`reward`, the mean over prompts of one sampled answer each, by the option `reward`; empty without it."""
    prompts = scoring.some_prompts(PROMPTS)
    if not scoring.options.get("reward") or not prompts:
        return {}
    reward = reward_functions.reward_of(scoring.options["reward"])
    sampling = generate.SamplingConfig(temperature=1.0, seed=scoring.seed)
    answers = [row[0] for row in generate.sample(model, prompts, 1, sampling)]
    values = [float(x) for x in reward([str(p) for p in prompts], answers)]
    return {"reward": mean_measure(values, "higher", "of one sampled answer to a prompt")}


PROTOCOL = Protocol(kind="", primary="reward", score=score)

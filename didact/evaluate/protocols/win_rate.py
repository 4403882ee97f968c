"""How often answers beat those of the start model, under the same sampling and decoding, and the KL to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from didact.evaluate import win_rates
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.infer import generate
from didact.infer.generate import Completion, SamplingConfig
from didact.learn import language, reward_functions, rounds
from didact.models.model import Model
from didact.objectives import rewards

DRAWS = 40  # answers of each model to a prompt
SEEDS = (1, 2)  # of the model's draws, and of the start model's
Draws = tuple[list[list[Completion]], Any, Any]


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`win_rate` of sampled answers, that of the decoding procedure (`best_of_4`, `worst_of_4`), and `kl`.

    Reads the options `reward`, by which answers are decoded, `judge`, a reward that decides who wins (by default the
    same reward, which favours models trained on it), `decoding` and `sampling`. The start model has .5 against
    itself.
    """
    options, prompts = scoring.options, PROTOCOL.prompts(scoring)
    decoding = rewards.procedure(options.get("decoding", "sample"))
    names = {"win_rate": "sample"} | ({_measure(decoding): decoding.name} if decoding.n != 1 else {})
    reward = reward_functions.reward_of(options.get("reward", ""), "reward")
    judge = reward_functions.reward_of(options["judge"], "judge") if options.get("judge") else None
    if model is scoring.start:
        return {name: Measure(0.5, len(prompts), "higher") for name in names} | {"kl": Measure(0.0, len(prompts))}
    sampling = options.get("sampling", SamplingConfig(max_new_tokens=128, temperature=1.0))

    def draws(policy: Model, seed: int) -> Draws:
        completions = generate.completions(policy, prompts, DRAWS, dataclasses.replace(sampling, seed=seed))
        flat = [p for p in prompts for _ in range(DRAWS)], [c.text for row in completions for c in row]
        values = [np.array(r(*flat), dtype=float).reshape(-1, DRAWS) for r in (reward, judge) if r]
        return completions, values[0], values[-1]

    own, rated, judged = draws(model, SEEDS[0])
    options_read = options.get("reward"), options.get("judge"), sampling
    _, start_rated, start_judged = scoring.once("start draws", lambda: draws(scoring.start, SEEDS[1]), *options_read)
    verdicts = list(zip(judged, start_judged, strict=True))
    out: dict[str, Measure] = {}
    for name, procedure in names.items():
        rates = win_rates.from_draws(list(rated), list(start_rated), rewards.procedure(procedure), verdicts)
        text = f"answers better than the start model's by the {'judge' if judge else 'reward that was trained on'}"
        out[name] = mean_measure(rates, "higher", f"{text}, both decoded alike; .5 is even")
    items = rounds.answer_groups(rounds.sampled_prompts(model, prompts, sampling.max_new_tokens), own)
    kl = (language.group_logp(model, items) - language.group_logp(scoring.start, items)).mean(1)
    return out | {"kl": mean_measure(kl.tolist(), "", "distance to the start model", "nats")}


def _measure(procedure: rewards.Procedure) -> str:
    return f"{'best' if procedure.n > 0 else 'worst'}_of_{abs(procedure.n)}"


PROTOCOL = Protocol(
    kind="text", primary="win_rate", score=score, prompts=lambda scoring: [t.text for t in scoring.of("text")]
)

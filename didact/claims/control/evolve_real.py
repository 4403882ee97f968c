"""EVOLvE's claim on a pre-trained model, by prompting only: it sees choices of UCB, or UCB's terms as well.

Games of three arms and 20 pulls, described as briefly as possible: all that minutes of one core allow. Not tested:
training, as a step of twelve rows takes ten seconds, and exploration against greed, which does not show in so few
pulls. The other tiers test both.
"""

from __future__ import annotations

from typing import Any

from didact import control
from didact.claims import lab, real, runner
from didact.claims.lab import difference, gate, ratio
from didact.data.histories import View
from didact.evaluate import regret
from didact.infer import acting
from didact.infer.acting import Oracle
from didact.tools.bandits import BanditConfig
from didact.types import Result

GAMES, SHOTS = 12, 5
BANDIT = BanditConfig(arms=3, horizon=20)
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"view": View(form="raw", scenario="bare")},
    "shown": {"view": View(scenario="bare"), "shots": SHOTS},
    "guided": {"view": View(form="guided", scenario="bare"), "shots": SHOTS},
}


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Measure the model with each prompt, UCB and random play, with the same random rewards."""
    world = regret.world_of(BANDIT, GAMES, seed)
    out = {name: _prompt_measures(name, seed) for name in ARMS}
    for name in ("ucb", "random"):
        played = acting.play_algorithm(world, Oracle(name), seed)
        out[name] = {"regret": lab.mean(regret.curve(world, played)[:, -1])}
    return out


def _prompt_measures(name: str, seed: int) -> dict[str, float]:
    """Run the method as a user would."""
    result: Result = control.evolve_prompt(
        real.model(), bandit=BANDIT, trials=GAMES, plain=False, seed=seed, **ARMS[name]
    )  # fmt: skip
    return {k: result.metrics[k].after for k in ("regret", "invalid")}


UNIT = "reward lost in 20 pulls"
CLAIM = runner.Claim(
    method="evolve",
    text="Shown five choices of UCB, a pre-trained model loses less at bandits than asked plainly, and than by chance.",
    run=run,
    gates=(gate("answers name an arm", "shown.invalid", at_most=0.2, unit="share of answers"),),
    tests=(
        difference("shown choices help", "shown.regret", "plain.regret", UNIT, less=True),
        ratio("it loses less than chance", "shown.regret", "random.regret", below=0.9, unit="ratio of regrets"),
        difference("UCB's terms help more", "guided.regret", "shown.regret", UNIT, less=True, reported=True),
        ratio("near UCB", "guided.regret", "ucb.regret", below=2.0, unit="ratio of regrets", reported=True),
    ),
)

"""EVOLvE's oracle behaviour fine-tuning: an optimal bandit algorithm, distilled into a model (Nie et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, NonNegative, Whole
from didact.data import encode
from didact.data.histories import View
from didact.evaluate import regret
from didact.infer import acting
from didact.infer import lm as language_models
from didact.infer.acting import Oracle
from didact.learn import language
from didact.learn import rounds as round_loop
from didact.learn.fit import Hook
from didact.learn.language import TrainResult
from didact.learn.rounds import Round, RoundData
from didact.models.model import Model
from didact.registry import method
from didact.tools import bandits
from didact.tools.bandits import BanditConfig
from didact.types import Demo, Fit, Result, Trajectory


@method(
    "evolve",
    paper="EVOLvE: Evaluating and Optimizing LLMs For In-Context Exploration",
    year=2025,
    source="arXiv:2410.06238",
    gives=("models", "findings", "records"),
    protocol=("act",),
    presets={
        "raw": {"view.form": "raw"},
        "ag": {"view.form": "guided"},
        "contextual": {"bandit.law": "linear", "bandit.horizon": 200, "view.form": "raw"},
        "hard": {"bandit.gap": 0.2, "bandit.horizon": 1000},
        "dagger": {"relabel": 2},
    },
)
def evolve(
    model: Model,
    episodes: Sequence[Trajectory] | None = None,
    *,
    oracle: Literal["ucb", "linucb", "thompson", "greedy"] = "ucb",
    alpha: NonNegative = 0.5,
    bandit: BanditConfig = BanditConfig(),
    view: View = View(),
    trajectories: Count = 50,
    labels: Literal["own", "oracle"] = "own",
    relabel: Whole = 0,
    trials: Count = 30,
    temperature: NonNegative = 1.0,
    fit: Fit = Fit(lr=2e-5, epochs=1, rows=32, schedule="linear"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a model to explore, by imitating an algorithm that explores optimally.

    The oracle plays bandits; each of its pulls becomes a demonstration of the best action after the history so far, and

        L = -(1/N) sum over label tokens of log pi(a* | history as text)

    ucb pulls every arm once, in order, then `argmax_a r_a / n_a + sqrt(alpha log(t) / n_a)` (of the two forms in use,
    that of the authors' code; alpha inside the root); with contexts it is LinUCB. Expected regret is scored before and
    after on unseen instances, against the oracle and other algorithms on the same random rewards.

    Imitation only covers states that the oracle visits. With `relabel` the model then plays itself, the oracle labels
    the best action in the states that the model visited, and training repeats on all of them (DAgger).

    Args:
        model: a causal or seq2seq model; left unchanged.
        episodes: recorded games to imitate in place of the oracle's: actions with rewards, and the available choices in
            the field `arms`.
        oracle: algorithm to imitate; greedy (one pull of each arm, then the best average) is a control.
        alpha: how much the oracle explores.
        bandit: the bandits to play.
        view: how the history is shown to the model.
        trajectories: instances that the oracle plays for training.
        labels: for recorded games: the recorded action (own), or what the oracle would have done there.
        relabel: rounds of DAgger, each with as many new instances.
        trials: instances to score on.
        temperature: sampling temperature of the model's choices in play. Imitation copies how often the oracle
            explores; greedy decoding (0) drops that, and gets stuck on an arm in states that the oracle never visited.
        fit: how to train, each round; rows are steps of a game.
        hooks: called around every step.

    Returns:
        The model; records: the demonstrations; findings: scores of the algorithms on the test instances.

    Raises:
        UserError: a view or an oracle that does not fit the bandits, episodes that cannot be read; NaN.
    """
    teacher, seed = Oracle(oracle, alpha), fit.seed
    lm = language_models.of(model)
    world = bandits.drawn(bandit, trajectories, seed)
    acting.begin(world, view, teacher)
    demos: list[Demo] = []

    def demonstrate(now: Round) -> list[Demo]:
        if not now.number and episodes:
            return acting.clone_episodes(episodes, view, teacher, labels == "oracle", seed)
        if not now.number:
            return acting.demonstrations(world, view, teacher, seed)

        def play(start: int, stop: int) -> list[list[str]]:
            answer = acting.answering(language_models.of(now.model), now.fit.seed, temperature)
            instances = bandits.drawn(bandit, trajectories, now.fit.seed)
            return [[d.prompt, d.completion] for d in acting.demonstrations(instances, view, teacher, seed, answer)]

        count = trajectories * bandit.horizon
        return [Demo(prompt=p, completion=c) for p, c in now.chunks("relabelled", count, play, count)]

    def collect(now: Round) -> RoundData:
        new = demonstrate(now)
        demos.extend(new)
        rows = encode.rows(
            model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context, "steps"
        )
        return RoundData(language.single(rows), {"demonstrations": len(demos)}, new)

    def train(now: Round, data: RoundData) -> TrainResult:
        return language.train(now.model, {"steps": data.items}, language.nll, now.fit, hooks=hooks, name="evolve")

    outcome = round_loop.run_rounds(model, 1 + relabel, collect, train, fit, name="evolve", hooks=hooks)
    test_world = regret.world_of(bandit, trials, seed)
    standings = regret.standings(test_world, regret.rivals(test_world, teacher, seed), bandit.gap)
    sample = [d.prompt for d in demos[:: max(1, len(demos) // 500)]]
    too_long = sum(n > model.context - acting.TOKENS for n in lm.tokens(sample)) / len(sample)
    warnings = [f"{too_long:.0%} of the prompts are longer than the model's context and lose their beginning: take "
                "view.form = summary, or a smaller bandit.horizon"] if too_long else []  # fmt: skip
    findings = {"rounds": [r.stats for r in outcome.data], "algorithms": standings}
    return outcome.result(findings=findings, warnings=warnings)

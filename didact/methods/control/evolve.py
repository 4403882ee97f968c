"""EVOLvE's oracle behaviour fine-tuning: an optimal algorithm, distilled into a model (Nie et al. 2025)."""

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
    """Teach a model to explore, by imitating an algorithm that does so optimally.

    The oracle plays bandits; each of its pulls becomes a demonstration of what is best after the history so far, and

        L = -(1/N) sum over label tokens of log pi(a* | history as text)

    ucb pulls every arm once, in order, then argmax_a of  r_a / n_a + sqrt(alpha log(t) / n_a)  (of the two forms in
    use, that of the authors' code; alpha inside the root); with contexts it is LinUCB. Expected regret is scored
    before and after, on instances no training saw, beside the oracle's and other algorithms' on the same luck.

    Imitation sees states that the oracle comes to. With `relabel` the model then plays itself, the oracle says
    what was right in the states that the model came to, and it trains again on all of them (DAgger).

    Args:
        model: a causal or seq2seq model; it stays as it was.
        episodes: recorded games to imitate in place of the oracle's: actions with rewards, and the choices there were
            in the field `arms`.
        oracle: whose play is imitated; greedy (one pull of each arm, then the best average) is a control.
        alpha: how much the oracle explores.
        bandit: what is played.
        view: what the model sees of the history.
        trajectories: instances that the oracle plays for training.
        labels: of recorded games: what was done (own), or what the oracle would have done there.
        relabel: rounds of DAgger, each of as many instances.
        trials: instances to score on.
        temperature: of the model's choices when it plays. What is imitated is how often the oracle explores: greedy
            decoding (0) leaves that out, and sticks to an arm in states that the oracle never came to.
        fit: how to train, each round; rows are steps of a game.
        hooks: called around every step.

    Returns:
        The model; records: the demonstrations; findings: what algorithms reach on the scored instances.

    Raises:
        UserError: a view or an oracle that does not go with the bandits, episodes that cannot be read; NaN.
    """
    teacher, seed = Oracle(oracle, alpha), fit.seed
    lm = language_models.of(model)
    world = bandits.drawn(bandit, trajectories, seed)
    acting.begin(world, view, teacher)
    told: list[Demo] = []

    def taught(now: Round) -> list[Demo]:
        if not now.number and episodes:
            return acting.cloned(episodes, view, teacher, labels == "oracle", seed)
        if not now.number:
            return acting.demonstrations(world, view, teacher, seed)

        def played(start: int, stop: int) -> list[list[str]]:
            answer = acting.answering(language_models.of(now.model), now.fit.seed, temperature)
            fresh = bandits.drawn(bandit, trajectories, now.fit.seed)
            return [[d.prompt, d.completion] for d in acting.demonstrations(fresh, view, teacher, seed, answer)]

        count = trajectories * bandit.horizon
        return [Demo(prompt=p, completion=c) for p, c in now.chunks("relabelled", count, played, count)]

    def collect(now: Round) -> RoundData:
        new = taught(now)
        told.extend(new)
        rows = encode.rows(
            model.tokenizer, [(d.prompt, d.completion) for d in told], model.kind, model.context, "steps"
        )
        return RoundData(language.single(rows), {"demonstrations": len(told)}, new)

    def train(now: Round, data: RoundData) -> TrainResult:
        return language.train(now.model, {"steps": data.items}, language.nll, now.fit, hooks=hooks, name="evolve")

    outcome = round_loop.run_rounds(model, 1 + relabel, collect, train, fit, name="evolve", hooks=hooks)
    scored = regret.world_of(bandit, trials, seed)
    standings = regret.standings(scored, regret.rivals(scored, teacher, seed), bandit.gap)
    sample = [d.prompt for d in told[:: max(1, len(told) // 500)]]
    long = sum(n > model.context - acting.TOKENS for n in lm.tokens(sample)) / len(sample)
    warnings = [f"{long:.0%} of the prompts are longer than the model's context and lose their beginning: take "
                "view.form = summary, or a smaller bandit.horizon"] if long else []  # fmt: skip
    findings = {"rounds": [r.stats for r in outcome.data], "algorithms": standings}
    return outcome.result(findings=findings, warnings=warnings)

"""The claim of consensus: the candidate both sides agree on is right more often than the choice of either side.

A: simulated log-probs: a truth, plus a surface bias of the candidates, plus noise independent for each side. B: a small
Llama trained on facts as answers and as verdicts, a third of them in one form only. The cheap baseline `avg`, which
adds the two initial policies, is compared with the game; whether the game is better is reported and decides nothing.
Play without regularisation (lam 0) is no sabotage: in round one each player responds to the other's initial policy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from didact import prompting
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate
from didact.claims.problem import Problem
from didact.data.encode import TokenizedExample
from didact.evaluate import ranked
from didact.infer import consensus as ranking
from didact.infer import equilibrium
from didact.infer.equilibrium import Game, Policies
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import two_ways

WORDING = ranking.Wording(
    correct="{prompt}", incorrect="not {prompt}", verify="is {prompt} {candidate} ?", yes=two_ways.YES, no=two_ways.NO
)
ROUNDS = {"smoke": 2, "quick": 100, "full": 120}
DRAWN = {"smoke": 200, "quick": 2000, "full": 4000}  # questions in A
NAMES = 40
NOISE = {"even": (1.0, 1.0), "poor_judge": (1.0, 2.0), "poor_writer": (2.0, 1.0)}
BIAS = 1.2
SINGLE = ("g", "mi", "sc", "d")


def problem(seed: int) -> Problem:
    """Questions about facts, and a model trained on the facts in two forms."""
    options = {f"wording.{name}": value for name, value in vars(WORDING).items()}
    return Problem(
        model=_reader(seed, ROUNDS["quick"]), data={"test": _world(seed).questions()},
        options=options | {"game.steps": 500},
    )  # fmt: skip


def run(seed: int, tier: runner.Tier, parts: str = "AB") -> runner.Measured:
    """Parts A and B on one seed."""
    game = Game(steps=500 if tier != "full" else 5000)
    arms: dict[str, dict[str, float]] = {}
    if "A" in parts:
        arms |= {name: _simulate(seed, tier, game, *noise) for name, noise in NOISE.items()}
    if "B" in parts:
        arms |= _evaluate_model(seed, tier, game)
    return arms


def _simulate(seed: int, tier: runner.Tier, game: Game, writer: float, judge: float) -> dict[str, float]:
    """A: simulated log-probs of four candidates (truth, bias and noise), the first of which is right."""
    rng, n = np.random.default_rng([seed, 17]), DRAWN[tier]
    sign = np.where(np.arange(2)[:, None] == (np.arange(4) > 0), 0.5, -0.5)  # correct and right, or neither
    g = rng.normal(scale=BIAS, size=(n, 1, 4)) + sign + rng.normal(scale=writer, size=(n, 2, 4))
    d = sign.T + rng.normal(scale=judge, size=(n, 4, 2))
    scores = ranking.Scores(g[:, 0], g, d)
    records = [Demo(prompt="", completion="0")] * n
    outcome = ranking.played([["0", "1", "2", "3"]] * n, scores, game)
    return _accuracies(outcome, records)


def _accuracies(made: ranking.Ranked, records: list[Demo]) -> dict[str, float]:
    """Accuracy by rule, agreement before and after the game, and its worse side's gain over the best single rule."""
    rules = {str(r): float(ranked.credits(s, made.candidates, records).mean()) for r, s in made.rules.items()}
    agree = [ranking.agreement(p.generator[:, 0], p.discriminator[:, :, 0]) for p in (made.start, made.end)]
    best = max(rules[r] for r in SINGLE)
    return rules | {"before": agree[0], "after": agree[1], "over_best": min(rules["er_g"], rules["er_d"]) - best}


def _evaluate_model(seed: int, tier: runner.Tier, game: Game) -> dict[str, dict[str, float]]:
    """B: the method on every fact, with the accuracy of each side on facts that were told in its form only."""
    model, facts = _reader(seed, ROUNDS[tier]), _world(seed).questions()
    result = prompting.consensus(model, facts, wording=WORDING, game=game)
    accuracy = result.findings["accuracy"]
    out = {str(rule): accuracy[rule]["estimate"] for rule in ranking.RULES}
    out |= {when: result.findings["agreement"][when] for when in ("before", "after")}
    out["over_best"] = min(out["er_g"], out["er_d"]) - max(out[r] for r in SINGLE)
    for way in ("answers", "verdicts"):
        rows = [r.extra for r in result.records or [] if r.extra["told"] == way]
        side = {"answers": "sc", "verdicts": "d"}[way]
        answers = [row["ranking"][int(np.argmax(row["scores"][side]))] for row in rows]
        expected = [r.completion for r in facts if r.extra["told"] == way]
        out[way] = lab.mean(a == b for a, b in zip(answers, expected, strict=True))
    return {"model": out}


def _world(seed: int) -> two_ways.TwoWays:
    return two_ways.TwoWays(names=NAMES, seed=seed)


def _reader(seed: int, rounds: int) -> Model:
    """A Llama of two layers trained on the facts, one line a row."""
    texts = [t.text for t in _world(seed).texts(rounds)]
    base = lab.blank("llama", texts[:2000], 600, d=64, layers=2, heads=4, context=32, tied=False, seed=seed)
    rows = [TokenizedExample(tuple(ids[:1]), tuple(ids[1:])) for ids in base.tokenizer(texts)["input_ids"]]
    fit = Fit(lr=3e-3, epochs=1, rows=32, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20, seed=seed)
    return lab.cached_model(lambda: lab.pretrained(base, rows, fit, "texts"), *lab.identity(base), rows, fit)


def _swapped(g: Any, d: Any, *how: Any, right: Any = equilibrium.initial) -> Policies:
    """Sabotage: the generator's log-probs for correct and incorrect are swapped."""
    return right(np.asarray(g)[:, ::-1], d, *how)


def _frozen(start: Policies, game: Game, right: Any = equilibrium.solve) -> Policies:
    """Sabotage: the judge does not play."""
    return Policies(right(start, game).generator, start.discriminator)


def _selfish(start: Policies, game: Game, right: Any = equilibrium.solve) -> Policies:
    """Sabotage: each player responds to itself in place of the other."""
    g, d = start.generator, start.discriminator
    views = (
        Policies(g, g.transpose(0, 2, 1) / g.sum(1)[:, :, None]),
        Policies(d.transpose(0, 2, 1) / d.sum(1)[:, :, None], d),
    )
    return Policies(right(views[0], game).generator, right(views[1], game).discriminator)


ACCURACY, RATE = "accuracy", "of the questions"
BEATS, HELD = "A: it beats every single rule where both sides are as good", "A: a poor judge does not spoil the answers"
CLAIM = runner.Claim(
    method="consensus",
    text=(
        "Candidates ranked by the equilibrium of generator and discriminator are right more often than by either, "
        "without a label, where both know something; where one is much the worse, the game stays well above it."
    ),
    run=run,
    gates=(
        gate("the model knows what it was told as answers", "model.answers", at_least=0.7, unit=ACCURACY),
        gate("and what it was told as verdicts", "model.verdicts", at_least=0.6, unit=ACCURACY),
    ),
    tests=(
        bound(BEATS, "even.over_best", 0.0, ACCURACY, margin=0.02),
        difference(HELD, "poor_judge.er_g", "poor_judge.d", ACCURACY, margin=0.1),
        difference("A: nor does a poor writer", "poor_writer.er_d", "poor_writer.g", ACCURACY, margin=0.1),
        difference("A: both sides come to agree", "even.after", "even.before", RATE, margin=0.2),
        difference("B: it beats the generator alone", "model.er_g", "model.g", ACCURACY, margin=0.02),
        difference("B: it beats the judge alone", "model.er_g", "model.d", ACCURACY, margin=0.02),
        difference("B: both sides come to agree", "model.after", "model.before", RATE, margin=0.2),
        bound("B: it beats every single rule", "model.over_best", 0.0, ACCURACY, reported=True),
        difference("B: the judge's side of it beats the generator alone", "model.er_d", "model.g", ACCURACY,
                   reported=True),
        difference("A: the game is worth more than adding both", "even.er_g", "even.avg", ACCURACY, reported=True),
        difference("B: the game is worth more than adding both", "model.er_g", "model.avg", ACCURACY, reported=True),
        difference("A: with a poor judge it reaches the better side", "poor_judge.er_g", "poor_judge.sc", ACCURACY,
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("correct and incorrect swapped", BEATS, "even.er_g",
                        {"didact.infer.equilibrium:initial": _swapped}, {"parts": "A"}),
        runner.Sabotage("the judge does not play", BEATS, "even.er_d",
                        {"didact.infer.equilibrium:solve": _frozen}, {"parts": "A"}),
        runner.Sabotage("each hears itself", BEATS, "even.er_g",
                        {"didact.infer.equilibrium:solve": _selfish}, {"parts": "A"}),
    ),
)  # fmt: skip

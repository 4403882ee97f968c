"""The example of `didact run evolve`: a small untrained model, and games described as briefly as possible."""

from __future__ import annotations

from typing import Any

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data.histories import Form, View
from didact.infer import acting
from didact.infer.acting import Oracle
from didact.models.model import Model
from didact.tools import bandits
from didact.tools.bandits import BanditConfig
from didact.types import Fit

FORMS: tuple[Form, ...] = ("raw", "summary", "guided")
VIEWS = {form: View(form=form, scenario="bare") for form in FORMS}
BETTER = (0.9, 0.98)
SIZE: dict[str, Any] = {"d": 48, "layers": 2, "heads": 4, "context": 512, "initializer_range": 0.1}
LEARN = Fit(lr=5e-3, steps=400, rows=48, schedule="cosine", warmup_steps=10, betas=BETTER)
OPTIONS = {"bandit.arms": 3, "bandit.horizon": 200, "view.scenario": "bare", "view.form": "guided"}


def config(arms: int, gap: float = 0.5) -> BanditConfig:
    """Return a Bernoulli bandit with 200 pulls."""
    return BanditConfig(arms=arms, gap=gap, horizon=200)


def start(seed: int, form: Form, arms: int) -> Model:
    """Return random weights and a tokenizer trained on a form of history, with all numbers from 0 to 100."""
    world = bandits.drawn(config(arms), 8, seed, part=2)
    texts = [f"{d.prompt} {d.completion}" for d in acting.demonstrations(world, VIEWS[form], Oracle(), seed)[::3]]
    return lab.blank("llama", [*texts, *[" ".join(map(str, range(101)))] * 20], 600, seed=seed, **SIZE)


def problem(seed: int) -> Problem:
    """80k random weights, UCB's two terms in the prompt: after 400 steps it explores (rate chosen on seed 1000)."""
    fit = {k: getattr(LEARN, k) for k in ("lr", "steps", "rows", "schedule", "warmup_steps", "betas")}
    return Problem(model=start(seed, "guided", 3), options=OPTIONS | {"trajectories": 60}, fit=fit)


def problem_prompt(seed: int) -> Problem:
    """The same model after such training, prompted as in training and with a raw history."""
    world = bandits.drawn(config(3), 60, seed)
    demos = acting.demonstrations(world, VIEWS["guided"], Oracle(), seed)
    return Problem(model=lab.tuned(start(seed, "guided", 3), demos, LEARN.replace(seed=seed)), options=OPTIONS)

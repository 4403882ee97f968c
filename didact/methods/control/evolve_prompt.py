"""EVOLvE at inference: a model plays bandits with a history, an algorithm's terms, or demonstrations in its prompt."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count, NonNegative, Whole
from didact.data import histories
from didact.data.histories import View
from didact.evaluate import measures, regret
from didact.infer import acting
from didact.infer import lm as language_models
from didact.infer.acting import Oracle, Played
from didact.infer.ask import Asker, Asking
from didact.models.model import Model
from didact.registry import method
from didact.tools import bandits
from didact.tools.bandits import BanditConfig
from didact.types import LM, Result

NAME = "evolve.prompt"


@method(
    NAME,
    paper="EVOLvE: Evaluating and Optimizing LLMs For In-Context Exploration",
    year=2025,
    source="arXiv:2410.06238",
    gives=("findings", "records"),
    capabilities=("generate",),
    presets={
        "few-shot": {"shots": 5},
        "ag": {"view.form": "guided"},
        "raw": {"view.form": "raw"},
        "contextual": {"bandit.law": "linear", "bandit.horizon": 200, "view.form": "guided"},
    },
)
def evolve_prompt(
    model: Model | LM,
    *,
    oracle: Literal["ucb", "linucb", "thompson", "greedy"] = "ucb",
    alpha: NonNegative = 0.5,
    bandit: BanditConfig = BanditConfig(),
    view: View = View(),
    shots: Whole = 0,
    trials: Count = 30,
    plain: bool = True,
    asking: Asking = Asking(max_new_tokens=acting.TOKENS, tries=1),
    seed: int = 0,
) -> Result:
    """Measure how well a model explores, and improve it by its prompt alone.

    In every step of `trials` parallel games the model is asked which arm to pull, given what it has seen: a history of
    all pulls (view.form raw), a summary per arm (summary), or the summary with the two terms whose sum UCB maximises
    (guided). With `shots` the prompt begins with as many steps of a game played by the oracle: every second step after
    the first two. An answer that names no arm is replaced by a random one, and counted as invalid.

    Args:
        model: a local model or a server.
        oracle: the algorithm whose terms a guided view shows, and which plays the demonstrations.
        alpha: how much the oracle explores.
        bandit: the bandits to play.
        view: how the history is shown to the model.
        shots: demonstrations in the prompt; 5 in the paper.
        trials: number of games, with the same random rewards for every player.
        plain: also play the same games from a raw history without demonstrations: the numbers "before".
        asking: how the model is asked.
        seed: random seed of the games.

    Returns:
        metrics compared with plain prompting; findings: the model and the algorithms side by side; the games as
        trajectories, which `evolve --episodes` can train on; the transcript.

    Raises:
        UserError: a view or an oracle that does not fit the bandits.
    """
    start_time = time.monotonic()
    teacher = Oracle(oracle, alpha)
    asker = Asker(language_models.need(model, "generate", by=NAME), asking, seed)
    world = regret.world_of(bandit, trials, seed)
    arm_names = acting.begin(world, view, teacher).names
    before = acting.examples(bandits.drawn(bandit, 1, seed), view, teacher, shots, seed)

    def answer(prompts: Sequence[str]) -> list[str | None]:
        replies = asker.ask(
            prompts, lambda text: text if histories.read(text, arm_names) is not None else None, "player", stop=("\n",)
        )
        return ["" if text is None and not asker.ended else text for text in replies]

    def game(view: View, before: str = "") -> Played:
        return acting.play_model(world, answer, view, teacher, seed, before)

    main_game = game(view, before)
    run_plain = plain and (shots > 0 or view.form != "raw") and not asker.ended
    games = {"model": main_game} | ({"plain": game(dataclasses.replace(view, form="raw"))} if run_plain else {})
    rivals = regret.rivals(world, teacher, seed)
    measured = {name: regret.measures(world, played, rivals, bandit.gap) for name, played in games.items()}
    result = Result(
        records=list(acting.trajectories(world, main_game, view)),
        transcript=list(asker.demos()),
        findings=asker.findings() | {"players": regret.standings(world, games | rivals, bandit.gap)},
        metrics=measures.metrics(measured.get("plain"), measured["model"]),
        warnings=asker.warnings(),
    )
    result.cost.seconds = time.monotonic() - start_time
    return result

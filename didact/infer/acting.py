"""Bandit games that algorithms and models play in parallel, and demonstrations of an algorithm's choices.

A player is a function `(history, context of the step) -> arms (N,)`, -1 where its answer names no arm. A random arm is
then pulled and counted as such: a model that cannot keep to the format is not one that explores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from didact.data import histories
from didact.data.histories import View
from didact.tools import bandits
from didact.tools.bandits import Algorithm, Array, Bandits, History
from didact.types import LM, Demo, Step, Trajectory, UserError

TOKENS = 12  # max_new_tokens of an answer
SEED_STRIDE = 7919  # between the seeds of two calls
Player = Callable[[History, "Array | None"], "Array | None"]
Answer = Callable[[Sequence[str]], Sequence["str | None"]]


@dataclass(frozen=True)
class Oracle:
    """An algorithm with its alpha; `ucb` is LinUCB in games with contexts."""

    algorithm: Algorithm = "ucb"
    alpha: float = 0.5

    def of(self, contextual: bool) -> Oracle:
        """Return the algorithm for games with contexts or without."""
        if contextual and self.algorithm == "ucb":
            return dataclasses.replace(self, algorithm="linucb")
        if self.algorithm == "linucb" and not contextual:
            raise UserError("linucb needs a bandit with contexts: use ucb for one without")
        return self


@dataclass(frozen=True)
class Played:
    """Finished games: arms and rewards `(N, t)`, and which arms the player chose itself (the others are random)."""

    actions: Array
    rewards: Array
    own: Array
    names: tuple[str, ...] = ()


@dataclass
class Observation:
    """A history with the contexts and algorithm's terms of every step, rendered as prompts by a view."""

    view: View
    oracle: Oracle
    names: tuple[str, ...]
    history: History
    contexts: list[list[str]] = dataclasses.field(default_factory=list)  # by step, then by instance
    guides: list[Any] = dataclasses.field(default_factory=list)

    def look(self, context: Array | None, texts: Sequence[str] | None = None) -> None:
        """Record, before a step, its context and the algorithm's terms given the history."""
        if context is not None or texts is not None:
            self.contexts.append(list(texts or map(histories.format_context, np.asarray(context))))
        if self.view.form == "guided" and context is not None:
            self.guides.append(bandits.terms(self.history, self.oracle.algorithm, self.oracle.alpha, context))

    def prompts(self) -> list[str]:
        """Return every instance's prompt for the next step, without the introduction."""
        view, names, h = self.view, self.names, self.history
        if view.form == "raw" or self.contexts:
            actions, rewards = (np.reshape(np.array(x), (h.step, h.count)).T for x in (h.actions, h.rewards))
            return [
                histories.raw(
                    view, names, actions[i], rewards[i], [step[i] for step in self.contexts],
                    [(bonus[i], value[i]) for bonus, value in self.guides],
                )
                for i in range(h.count)
            ]  # fmt: skip
        bonus = value = [None] * h.count
        if view.form == "guided":
            bonus, value = bandits.terms(h, self.oracle.algorithm, self.oracle.alpha)
        return [
            histories.summary(view, names, h.pulls[i], h.sums[i], h.step, bonus[i], value[i]) for i in range(h.count)
        ]


def begin(world: Bandits, view: View, oracle: Oracle) -> Observation:
    """Return an empty history of these instances.

    Raises:
        UserError: the view's form or the algorithm does not fit the bandits.
    """
    count, _, arms = world.expected.shape
    contextual = world.contexts is not None
    histories.checked(view, contextual)
    features = world.contexts.shape[-1] if world.contexts is not None else 0
    names = histories.names_of(view, arms, world.names)
    return Observation(view, oracle.of(contextual), names, History(count, arms, features))


def play(world: Bandits, player: Player, seed: int, transcript: Observation | None = None) -> Played:
    """Play all instances to the horizon, or until the player returns None, which ends all of them at that step."""
    rng = np.random.default_rng([seed, 17])
    count, horizon, arms = world.expected.shape
    features = world.contexts.shape[-1] if world.contexts is not None else 0
    history, own = transcript.history if transcript else History(count, arms, features), []
    for step in range(horizon):
        context = world.context(step)
        if transcript:
            transcript.look(context)
        chosen, fallback = player(history, context), random_arms(world, step, rng)
        if chosen is None:
            break
        own.append(chosen >= 0)
        actions = np.where(own[-1], chosen, fallback)
        history.add(actions, world.paid(step, actions), context)
    actions, rewards, valid = (np.reshape(np.array(x), (-1, count)).T for x in (history.actions, history.rewards, own))
    return Played(actions, rewards, valid, transcript.names if transcript else world.names)


def random_arms(world: Bandits, step: int, rng: np.random.Generator) -> Array:
    """Return random arms `(N,)`, pulled where the player's answer names none, so that such answers cost regret."""
    return rng.integers(world.expected.shape[-1], size=len(world))


def algorithm(oracle: Oracle, seed: int) -> Player:
    """Return an algorithm as a player."""
    rng = np.random.default_rng([seed, 23])
    return lambda history, context: bandits.choose(history, oracle.algorithm, rng, oracle.alpha, context)


def play_algorithm(world: Bandits, oracle: Oracle, seed: int) -> Played:
    """Play these instances with an algorithm."""
    return play(world, algorithm(oracle.of(world.contexts is not None), seed), seed)


def play_model(world: Bandits, answer: Answer, view: View, oracle: Oracle, seed: int, before: str = "") -> Played:
    """Play these instances with a model.

    Args:
        world: the bandit instances.
        answer: returns one answer per prompt; fewer, or a None, end the game.
        view: what the model sees.
        oracle: the algorithm whose terms a guided view shows.
        seed: of the random arms that replace answers which name none.
        before: demonstrations, put after the introduction.
    """
    transcript = begin(world, view, oracle)
    return play(world, lm_player(answer, transcript, before), seed, transcript)


def lm_player(answer: Answer, transcript: Observation, before: str = "") -> Player:
    """Return a model as a player that is prompted with `transcript`; equal prompts of a step are asked once."""
    opening = histories.introduction(transcript.view, transcript.names) + before

    def player(history: History, context: Array | None) -> Array | None:
        prompts = [opening + text for text in transcript.prompts()]
        unique = list(dict.fromkeys(prompts))
        answers = dict(zip(unique, answer(unique), strict=False))
        if any(answers.get(p) is None for p in prompts):
            return None
        arms = [histories.read(str(answers[p]), transcript.names) for p in prompts]
        return np.array([-1 if k is None else k for k in arms])

    return player


def demonstrations(world: Bandits, view: View, oracle: Oracle, seed: int, student: Answer | None = None) -> list[Demo]:
    """Return every step as a prompt with the oracle's choice as completion, in the states that the oracle visits or, as
    in DAgger, that the `student` visits. The steps of an instance are adjacent and in order."""
    transcript = begin(world, view, oracle)
    teacher = algorithm(transcript.oracle, seed)
    learner = lm_player(student, transcript) if student else None
    opening = histories.introduction(view, transcript.names)
    steps: list[list[Demo]] = []

    def player(history: History, context: Array | None) -> Array | None:
        targets = np.asarray(teacher(history, context))
        steps.append([_demo(opening + p, transcript.names[a], instance, history.step)
                      for instance, (p, a) in enumerate(zip(transcript.prompts(), targets, strict=True))])  # fmt: skip
        return learner(history, context) if learner else targets

    play(world, player, seed, transcript)
    return [demo for game in zip(*steps, strict=True) for demo in game]


def clone_episodes(episodes: Sequence[Trajectory], view: View, oracle: Oracle, relabel: bool, seed: int) -> list[Demo]:
    """Return recorded games as demonstrations of the recorded actions or, with `relabel`, of the oracle's.

    Arms are the episode's `arms`, or all actions of all episodes; an observation is shown as a context.

    Raises:
        UserError: a step without a reward, an action that is no arm, or no arms to choose from.
    """
    all_arms = sorted({str(step.action) for episode in episodes for step in episode.steps})
    out: list[Demo] = []
    for number, episode in enumerate(episodes, 1):
        names = tuple(map(str, episode.extra.get("arms") or all_arms))
        if len(names) < 2:
            raise UserError(f"episodes: record {number} has a single arm: list all arms in its field `arms`")
        arm_index = {name: k for k, name in enumerate(names)}
        observed = any(step.observation not in (None, "") for step in episode.steps)
        if observed and (view.form != "raw" or relabel):
            raise UserError("episodes with observations need view.form = raw and labels = own")
        transcript = Observation(view, oracle.of(False), names, History(1, len(names)))
        teacher, opening = algorithm(transcript.oracle, seed), _opening(episode, view, names)
        for i, step in enumerate(episode.steps):
            if step.reward is None or str(step.action) not in arm_index:
                problem = "no reward" if step.reward is None else f"{step.action!r} is not among its arms"
                raise UserError(f"episodes: record {number}, step {i + 1}: {problem}")
            transcript.look(None, [str(step.observation)] if observed else None)
            target = int(np.asarray(teacher(transcript.history, None))[0]) if relabel else arm_index[str(step.action)]
            out.append(_demo(opening + transcript.prompts()[0], names[target], number - 1, i))
            transcript.history.add(np.array([arm_index[str(step.action)]]), np.array([float(step.reward)]))
    return out


def trajectories(world: Bandits, game: Played, view: View) -> list[Trajectory]:
    """Return games as records; pulls that the player did not choose itself have `random` in `extra`."""
    names = game.names or histories.names_of(view, world.expected.shape[-1], world.names)
    task = histories.introduction(view, names).strip() or "bandit"
    out = []
    for i in range(len(world)):
        steps = [
            Step(
                observation="" if world.contexts is None else histories.format_context(world.contexts[i, t]),
                action=names[a], reward=float(game.rewards[i, t]), extra={} if game.own[i, t] else {"random": True},
            )
            for t, a in enumerate(game.actions[i])
        ]  # fmt: skip
        out.append(Trajectory(task=task, steps=steps, final_observation="", extra={"arms": list(names)}))
    return out


def examples(world: Bandits, view: View, oracle: Oracle, shots: int, seed: int) -> str:
    """Return few-shot demonstrations: every second step of the oracle's first game, after the first two."""
    if not shots:
        return ""
    demos = demonstrations(world, view, oracle, seed)[2 : 2 + 2 * shots : 2]
    opening = histories.introduction(view, begin(world, view, oracle).names)
    return histories.demonstrated([(d.prompt.removeprefix(opening), d.completion) for d in demos], view)


def answering(model: LM, seed: int, temperature: float = 0.0, tokens: int = TOKENS) -> Answer:
    """Return a function that asks the model for one answer per prompt, with another seed at every call."""
    calls = itertools.count()

    def answer(prompts: Sequence[str]) -> list[str]:
        drawn = model.generate(
            prompts, tokens, temperature=temperature, stop=("\n",), seed=seed + SEED_STRIDE * next(calls)
        )
        return [texts[0] for texts in drawn]

    return answer


def _opening(episode: Trajectory, view: View, names: Sequence[str]) -> str:
    return f"{episode.task.strip()}\n\n" if episode.task.strip() else histories.introduction(view, names)


def _demo(prompt: str, answer: str, instance: int, step: int) -> Demo:
    return Demo(prompt=prompt, completion=answer, extra={"instance": instance, "step": step})

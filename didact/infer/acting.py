"""Games played side by side, by algorithms and by models; and what an algorithm would have done, as demonstrations.

A player is a function `(history, step's context) -> arms (N,)`, -1 where it named none, which is then replaced by a
random one and counted: a model that cannot keep to the form is not one that explores.
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

TOKENS = 12  # of an answer
APART = 7919  # between the seeds of two steps
Player = Callable[[History, "Array | None"], "Array | None"]
Answer = Callable[[Sequence[str]], Sequence["str | None"]]


@dataclass(frozen=True)
class Oracle:
    """An algorithm with its alpha; of contexts `ucb` is LinUCB."""

    algorithm: Algorithm = "ucb"
    alpha: float = 0.5

    def of(self, contextual: bool) -> Oracle:
        """The algorithm for games with contexts or without."""
        if contextual and self.algorithm == "ucb":
            return dataclasses.replace(self, algorithm="linucb")
        if self.algorithm == "linucb" and not contextual:
            raise UserError("linucb plays with contexts: without them take ucb")
        return self


@dataclass(frozen=True)
class Played:
    """What was done: arms and rewards `(N, t)`, and which arms were the player's own choice."""

    actions: Array
    rewards: Array
    own: Array
    names: tuple[str, ...] = ()


@dataclass
class Seen:
    """A history with what stood beside it, in the words of a view."""

    view: View
    oracle: Oracle
    names: tuple[str, ...]
    history: History
    contexts: list[list[str]] = dataclasses.field(default_factory=list)  # a step, then an instance
    guides: list[Any] = dataclasses.field(default_factory=list)

    def look(self, context: Array | None, texts: Sequence[str] | None = None) -> None:
        """Before a step: keep its context, and what the algorithm makes of the history in it."""
        if context is not None or texts is not None:
            self.contexts.append(list(texts or map(histories.shown, np.asarray(context))))
        if self.view.form == "guided" and context is not None:
            self.guides.append(bandits.terms(self.history, self.oracle.algorithm, self.oracle.alpha, context))

    def prompts(self) -> list[str]:
        """The next step's prompt of every instance, without its introduction."""
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


def begin(world: Bandits, view: View, oracle: Oracle) -> Seen:
    """An empty history of these instances.

    Raises:
        UserError: a form or an algorithm that does not go with the bandits.
    """
    count, _, arms = world.expected.shape
    contextual = world.contexts is not None
    histories.checked(view, contextual)
    features = world.contexts.shape[-1] if world.contexts is not None else 0
    names = histories.names_of(view, arms, world.names)
    return Seen(view, oracle.of(contextual), names, History(count, arms, features))


def play(world: Bandits, player: Player, seed: int, seen: Seen | None = None) -> Played:
    """Play all instances to the horizon, or until the player has no more to say (None): all are that long then."""
    rng = np.random.default_rng([seed, 17])
    count, horizon, arms = world.expected.shape
    features = world.contexts.shape[-1] if world.contexts is not None else 0
    history, own = seen.history if seen else History(count, arms, features), []
    for step in range(horizon):
        context = world.context(step)
        if seen:
            seen.look(context)
        chosen, other = player(history, context), instead(world, step, rng)
        if chosen is None:
            break
        own.append(chosen >= 0)
        actions = np.where(own[-1], chosen, other)
        history.add(actions, world.paid(step, actions), context)
    actions, rewards, valid = (np.reshape(np.array(x), (-1, count)).T for x in (history.actions, history.rewards, own))
    return Played(actions, rewards, valid, seen.names if seen else world.names)


def instead(world: Bandits, step: int, rng: np.random.Generator) -> Array:
    """Arms for players who named none, `(N,)`: random ones, so that they lose what they must."""
    return rng.integers(world.expected.shape[-1], size=len(world))


def algorithm(oracle: Oracle, seed: int) -> Player:
    """An algorithm as a player."""
    rng = np.random.default_rng([seed, 23])
    return lambda history, context: bandits.choose(history, oracle.algorithm, rng, oracle.alpha, context)


def played_by(world: Bandits, oracle: Oracle, seed: int) -> Played:
    """These instances, played by an algorithm."""
    return play(world, algorithm(oracle.of(world.contexts is not None), seed), seed)


def played(world: Bandits, answer: Answer, view: View, oracle: Oracle, seed: int, before: str = "") -> Played:
    """These instances, played by a model.

    Args:
        world: what is played.
        answer: an answer to every prompt; fewer, or a None, end the game.
        view: what the model sees.
        oracle: whose terms a guided view shows.
        seed: of the arms in place of answers that name none.
        before: demonstrations, after the introduction.
    """
    seen = begin(world, view, oracle)
    return play(world, asked(answer, seen, before), seed, seen)


def asked(answer: Answer, seen: Seen, before: str = "") -> Player:
    """A model as a player that sees what `seen` has; one question for each different prompt of a step."""
    opening = histories.introduction(seen.view, seen.names) + before

    def player(history: History, context: Array | None) -> Array | None:
        prompts = [opening + text for text in seen.prompts()]
        different = list(dict.fromkeys(prompts))
        answers = dict(zip(different, answer(different), strict=False))
        if any(answers.get(p) is None for p in prompts):
            return None
        named = [histories.read(str(answers[p]), seen.names) for p in prompts]
        return np.array([-1 if k is None else k for k in named])

    return player


def demonstrations(world: Bandits, view: View, oracle: Oracle, seed: int, student: Answer | None = None) -> list[Demo]:
    """Every step as a prompt with the oracle's choice as its completion: in states that the oracle comes to, or (as
    DAgger does) that the `student` comes to. An instance's steps stand together, in order."""
    seen = begin(world, view, oracle)
    teacher = algorithm(seen.oracle, seed)
    learner = asked(student, seen) if student else None
    opening = histories.introduction(view, seen.names)
    steps: list[list[Demo]] = []

    def player(history: History, context: Array | None) -> Array | None:
        right = np.asarray(teacher(history, context))
        steps.append([_demo(opening + p, seen.names[a], n, history.step)
                      for n, (p, a) in enumerate(zip(seen.prompts(), right, strict=True))])  # fmt: skip
        return learner(history, context) if learner else right

    play(world, player, seed, seen)
    return [demo for instance in zip(*steps, strict=True) for demo in instance]


def cloned(episodes: Sequence[Trajectory], view: View, oracle: Oracle, relabel: bool, seed: int) -> list[Demo]:
    """Recorded games as demonstrations: what was done then, or what the oracle would have done there.

    Arms are the episode's `arms`, or all actions of all episodes; an observation is shown as a context.

    Raises:
        UserError: a step without a reward, an action that is no arm, or no arms to choose from.
    """
    all_arms = sorted({str(step.action) for episode in episodes for step in episode.steps})
    out: list[Demo] = []
    for number, episode in enumerate(episodes, 1):
        names = tuple(map(str, episode.extra.get("arms") or all_arms))
        if len(names) < 2:
            raise UserError(f"episodes: record {number}: one arm is no choice: name all of them in its field `arms`")
        place = {name: k for k, name in enumerate(names)}
        told = any(step.observation not in (None, "") for step in episode.steps)
        if told and (view.form != "raw" or relabel):
            raise UserError("episodes with observations: only view.form = raw shows them, and only with labels = own")
        seen = Seen(view, oracle.of(False), names, History(1, len(names)))
        teacher, opening = algorithm(seen.oracle, seed), _opening(episode, view, names)
        for at, step in enumerate(episode.steps):
            if step.reward is None or str(step.action) not in place:
                lacks = "no reward" if step.reward is None else f"{step.action!r} is not among its arms"
                raise UserError(f"episodes: record {number}, step {at + 1}: {lacks}")
            seen.look(None, [str(step.observation)] if told else None)
            right = int(np.asarray(teacher(seen.history, None))[0]) if relabel else place[str(step.action)]
            out.append(_demo(opening + seen.prompts()[0], names[right], number - 1, at))
            seen.history.add(np.array([place[str(step.action)]]), np.array([float(step.reward)]))
    return out


def trajectories(world: Bandits, game: Played, view: View) -> list[Trajectory]:
    """Games as records, with every pull's expected loss and whether the choice was the player's own."""
    names = game.names or histories.names_of(view, world.expected.shape[-1], world.names)
    task = histories.introduction(view, names).strip() or "bandit"
    out = []
    for i in range(len(world)):
        steps = [
            Step(
                observation="" if world.contexts is None else histories.shown(world.contexts[i, t]),
                action=names[a], reward=float(game.rewards[i, t]), extra={} if game.own[i, t] else {"random": True},
            )
            for t, a in enumerate(game.actions[i])
        ]  # fmt: skip
        out.append(Trajectory(task=task, steps=steps, final_observation="", extra={"arms": list(names)}))
    return out


def examples(world: Bandits, view: View, oracle: Oracle, shots: int, seed: int) -> str:
    """Few-shot demonstrations: every second step of the oracle's first game, after the first two."""
    if not shots:
        return ""
    demos = demonstrations(world, view, oracle, seed)[2 : 2 + 2 * shots : 2]
    opening = histories.introduction(view, begin(world, view, oracle).names)
    return histories.demonstrated([(d.prompt.removeprefix(opening), d.completion) for d in demos], view)


def answering(model: LM, seed: int, temperature: float = 0.0, tokens: int = TOKENS) -> Answer:
    """A model's answers, one a prompt; what is drawn differs from call to call."""
    calls = itertools.count()

    def answer(prompts: Sequence[str]) -> list[str]:
        drawn = model.generate(prompts, tokens, temperature=temperature, stop=("\n",), seed=seed + APART * next(calls))
        return [texts[0] for texts in drawn]

    return answer


def _opening(episode: Trajectory, view: View, names: Sequence[str]) -> str:
    return f"{episode.task.strip()}\n\n" if episode.task.strip() else histories.introduction(view, names)


def _demo(prompt: str, answer: str, instance: int, step: int) -> Demo:
    return Demo(prompt=prompt, completion=answer, extra={"instance": instance, "step": step})

"""Judges of which of two answers is better: a reward, or another language model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from didact.evaluate.measures import Measure, mean_measure
from didact.infer import lm
from didact.learn import reward_functions
from didact.types import LM, Reward

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]
"""`judge(prompts, ours, theirs)`: 1 where ours is better, 0 where theirs is, 0.5 for a tie or no verdict."""

TRIES = 3
THOUGHT = 2048  # tokens for a reasoning judge
QUESTION = (
    "Which answer to the question is better? Say only A or B.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nBetter:"
)


def by_name(name: str) -> Judge:
    """Return the judge of `module:function` (a reward) or of a reward model's folder.

    Raises:
        UserError: there is no such module, function or folder.
    """
    return by_reward(reward_functions.reward_of(name, "judge"))


def by_reward(reward: Reward) -> Judge:
    """Return a judge by which the answer of higher reward wins."""

    def judge(prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        pairs = zip(reward(prompts, ours), reward(prompts, theirs), strict=True)
        return [(a > b) + 0.5 * (a == b) for a, b in pairs]

    return judge


class LMJudge:
    """A language model as the judge, asked twice with the answers swapped: only an agreeing pair of verdicts counts.

    A question whose reply names neither answer is retried, `TRIES` tries in all, with more tokens after an empty reply;
    `unclear` counts questions without a verdict.
    """

    def __init__(self, model: LM, seed: int = 0) -> None:
        self.model, self.seed, self.unclear = lm.need(model, "generate", by="--judge"), seed, 0

    def __call__(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """1, 0 or .5 for every prompt."""
        rows = list(zip(prompts, ours, theirs, strict=True))
        first = self._verdicts([QUESTION.format(prompt=p, a=a, b=b) for p, a, b in rows])
        second = self._verdicts([QUESTION.format(prompt=p, a=b, b=a) for p, a, b in rows])
        wins = {("A", "B"): 1.0, ("B", "A"): 0.0}
        return [wins.get((f, s), 0.5) for f, s in zip(first, second, strict=True)]

    def _verdicts(self, questions: Sequence[str]) -> list[str]:
        out, limit = [""] * len(questions), 4
        for attempt in range(TRIES):
            pending = [i for i, v in enumerate(out) if not v]
            if not pending:
                break
            temperature = 0.0 if attempt == 0 else 1.0  # greedy decoding would repeat its reply
            replies = self.model.generate(
                [questions[i] for i in pending], limit, temperature=temperature, seed=self.seed + attempt
            )
            for i, reply in zip(pending, replies, strict=True):
                match = re.match(r"\W*([AB])\b", reply[0])
                out[i] = match[1] if match else ""
                limit = limit if reply[0].strip() else THOUGHT
        self.unclear += sum(not v for v in out)
        return out


def letters(model: LM, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Probability `P(A) / (P(A) + P(B))` that the first answer is better, mean of both orders: position bias cancels.

    From the first token's log-probs; 0.5 where neither letter is among them.
    """
    lm.need(model, "top_logprobs", by="the judge")
    orders = []
    for a, b in ((first, second), (second, first)):
        questions = [QUESTION.format(prompt=p, a=x, b=y) for p, x, y in zip(prompts, a, b, strict=True)]
        orders.append([_share(logps) for logps in model.top_logprobs(questions, 20)])
    return [(forward + 1 - back) / 2 for forward, back in zip(*orders, strict=True)]


def _share(logps: Mapping[str, float]) -> float:
    """A's share of the probability of A and B, with or without spaces around them."""
    a, b = (sum(math.exp(v) for k, v in logps.items() if k.strip() == letter) for letter in "AB")
    return a / (a + b) if a + b else 0.5


def win_rate(judge: Judge, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Measure:
    """Share of prompts on which ours is judged better; a tie is half a win."""
    return mean_measure(judge(prompts, ours, theirs), "higher", "answers judged better than the start model's")

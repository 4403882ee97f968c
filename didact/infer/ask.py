"""What a prompt procedure asks of a model: within a budget, answers read with bounded retries, every exchange kept.

A procedure is plain Python: it writes prompts from what it knows, asks, reads the answers, and goes on. `Asker` holds
what all of them share, so that their transcripts can be shown, counted and taught (`demos`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from didact.bounds import Count, NonNegative, PositiveShare
from didact.errors import BudgetError
from didact.types import LM, Demo, Likelihood, Messages

T = TypeVar("T")
APART = 104_729  # between the seeds of two rounds of asking
WARM = 0.7  # temperature of a retry where the first answer was greedy: the same answer would come again


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a procedure asks.

    Args:
        max_new_tokens: of an answer.
        temperature: 0 is greedy; a retry of a greedy answer is drawn at 0.7.
        top_p: nucleus sampling's mass.
        tries: how often one question is asked before its answer is given up as unreadable.
        calls: answers at most, retries among them; the procedure then ends with what it has. None is no limit.
    """

    max_new_tokens: Count = 512
    temperature: NonNegative = 0.0
    top_p: PositiveShare = 1.0
    tries: Count = 3
    calls: Count | None = None


@dataclass(frozen=True)
class Exchange:
    """One prompt and its answer: as what the model was asked (`role`), for which item, and whether it could be read."""

    role: str
    item: int
    prompt: str
    reply: str
    read: bool


@dataclass
class Asker:
    """One procedure's questions to one model.

    `ended` says that the budget, ours or the server's, is used up: what is asked after that is not answered. All else
    follows from the seed, so that a run which is killed and started again repeats no call that a server's cache has.
    """

    lm: LM
    how: Asking
    seed: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    ended: bool = False
    rounds: int = 0

    def ask(
        self,
        prompts: Sequence[str],
        read: Callable[[str], T | None],
        role: str = "",
        items: Sequence[int] | None = None,
        *,
        stop: Sequence[str] = (),
        **how: Any,
    ) -> list[T | None]:
        """What each prompt's answer says, in order; None where no try could be read, or the budget ended first.

        Args:
            prompts: texts, or conversations (`Messages`).
            read: what an answer says; None where it cannot be read, which is asked again.
            role: what the model is here, for the transcript.
            items: which item of the procedure each prompt belongs to; its place here by default.
            stop: texts before which an answer ends.
            how: `max_new_tokens`, `temperature` or `top_p` other than the procedure's.
        """
        out: list[T | None] = [None] * len(prompts)
        waiting = list(range(len(prompts)))
        for again in range(self.how.tries):
            waiting = waiting[: self.left]
            if not waiting:
                break
            replies = self._generate([prompts[i] for i in waiting], stop, again, how)
            for i, reply in zip(waiting, replies, strict=False):
                out[i] = read(reply)
                item = items[i] if items is not None else i
                self.exchanges.append(Exchange(role, item, prompts[i], reply, out[i] is not None))
            waiting = [i for i in waiting if out[i] is None]
            if self.how.calls is not None and len(self.exchanges) >= self.how.calls:
                self.ended = True
        return out

    @property
    def left(self) -> int | None:
        """Answers that may still be asked for; None is no limit."""
        if self.ended:
            return 0
        return None if self.how.calls is None else self.how.calls - len(self.exchanges)

    def _generate(self, prompts: Sequence[str], stop: Sequence[str], again: int, how: dict[str, Any]) -> list[str]:
        asked = {"temperature": self.how.temperature, "top_p": self.how.top_p} | how
        limit = asked.pop("max_new_tokens", self.how.max_new_tokens)
        if again and not asked["temperature"]:
            asked["temperature"] = WARM
        self.rounds += 1
        try:
            drawn = self.lm.generate(prompts, limit, stop=stop, seed=self.seed + APART * self.rounds, **asked)
        except BudgetError:
            self.ended = True
            return []
        return [texts[0] for texts in drawn]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood] | None:
        """The likelihood of every (prompt, completion); None where the server's budget ended, or had before."""
        if self.ended:
            return None
        try:
            return self.lm.score(pairs) if pairs else []
        except BudgetError:
            self.ended = True
            return None

    def findings(self) -> dict[str, Any]:
        """What was asked: `calls` by role, those that could not be read, and whether the budget ended first."""
        roles = dict.fromkeys(e.role for e in self.exchanges)
        return {
            "calls": len(self.exchanges),
            "calls_by_role": {role: sum(e.role == role for e in self.exchanges) for role in roles},
            "unreadable": sum(not e.read for e in self.exchanges),
            "complete": not self.ended,
        }

    def warnings(self) -> list[str]:
        """One line where the budget ended first, and one where a tenth of the answers or more could not be read."""
        out = [f"the budget ended after {len(self.exchanges):,} calls: this is a partial result"] if self.ended else []
        lost = sum(not e.read for e in self.exchanges)
        if lost and lost >= math.ceil(len(self.exchanges) / 10):
            out.append(f"{lost:,} of {len(self.exchanges):,} answers could not be read; see transcript in the records")
        return out

    def demos(self, kept: Callable[[Exchange], bool] = lambda exchange: True) -> list[Demo]:
        """The transcript as demonstrations to train on: exchanges that could be read and that `kept` keeps."""
        return [
            Demo(prompt=e.prompt, completion=e.reply, extra={"role": e.role, "item": e.item})
            for e in self.exchanges
            if e.read and kept(e)
        ]


def conversation(system: str, *turns: str) -> Messages:
    """A conversation: what the system says (nothing where empty), then user and assistant by turns."""
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return Messages(([{"role": "system", "content": system}] if system else []) + said)

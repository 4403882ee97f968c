"""Prompting a model from a procedure: within a budget, unreadable answers retried, every exchange recorded.

A procedure is plain Python: it writes prompts from its state, asks, parses the answers, and goes on. `Asker` holds what
all procedures share, so that their transcripts can be displayed, counted and trained on (`demos`).
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
SEED_STRIDE = 104_729  # between the seeds of two calls of `LM.generate`
WARM = 0.7  # temperature of a retry after a greedy answer, which would be the same again


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Decoding, retries and budget of a procedure's prompts.

    Args:
        max_new_tokens: of an answer.
        temperature: 0 is greedy; a retry of a greedy answer is drawn at 0.7.
        top_p: nucleus sampling's mass.
        tries: how often one prompt is asked before its answer is given up as unreadable.
        calls: most answers, retries included; the procedure then ends with a partial result. None is no limit.
    """

    max_new_tokens: Count = 512
    temperature: NonNegative = 0.0
    top_p: PositiveShare = 1.0
    tries: Count = 3
    calls: Count | None = None


@dataclass(frozen=True)
class Exchange:
    """One prompt and its answer: the role the model was asked in, the item, and whether the answer could be parsed."""

    role: str
    item: int
    prompt: str
    reply: str
    read: bool


@dataclass
class Asker:
    """One procedure's prompts to one model.

    `ended` says that the budget, ours or the server's, is used up: later prompts get no answer. Everything else follows
    from the seed, so that a run which is killed and restarted repeats no call whose answer is in the cache.
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
        **overrides: Any,
    ) -> list[T | None]:
        """Return every prompt's parsed answer in order; None where no try could be parsed or the budget ended first.

        Args:
            prompts: texts, or conversations (`Messages`).
            read: parses an answer; returns None where it cannot, and the prompt is asked again.
            role: the role the model is asked in, for the transcript.
            items: the procedure's item that each prompt belongs to; by default its index here.
            stop: stop strings.
            overrides: `max_new_tokens`, `temperature` or `top_p` that replace the procedure's.
        """
        out: list[T | None] = [None] * len(prompts)
        pending = list(range(len(prompts)))
        for attempt in range(self.how.tries):
            affordable = pending[: self.left]
            self.ended = self.ended or len(affordable) < len(pending)
            pending = affordable
            if not pending:
                break
            replies = self._generate([prompts[i] for i in pending], stop, attempt, overrides)
            for i, reply in zip(pending, replies, strict=False):
                out[i] = read(reply)
                item = items[i] if items is not None else i
                self.exchanges.append(Exchange(role, item, prompts[i], reply, out[i] is not None))
            pending = [i for i in pending if out[i] is None]
        return out

    @property
    def left(self) -> int | None:
        """Answers left in the budget; None is no limit."""
        if self.ended:
            return 0
        return None if self.how.calls is None else self.how.calls - len(self.exchanges)

    def _generate(self, prompts: Sequence[str], stop: Sequence[str], retry: int, options: dict[str, Any]) -> list[str]:
        decoding = {"temperature": self.how.temperature, "top_p": self.how.top_p} | options
        limit = decoding.pop("max_new_tokens", self.how.max_new_tokens)
        if retry and not decoding["temperature"]:
            decoding["temperature"] = WARM
        self.rounds += 1
        try:
            drawn = self.lm.generate(prompts, limit, stop=stop, seed=self.seed + SEED_STRIDE * self.rounds, **decoding)
        except BudgetError:
            self.ended = True
            return []
        return [texts[0] for texts in drawn]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood] | None:
        """Return the likelihood of every (prompt, completion); None once the budget has ended."""
        if self.ended:
            return None
        try:
            return self.lm.score(pairs) if pairs else []
        except BudgetError:
            self.ended = True
            return None

    def findings(self) -> dict[str, Any]:
        """Return the number of calls, also by role, of unreadable answers, and whether the budget sufficed."""
        roles = dict.fromkeys(e.role for e in self.exchanges)
        return {
            "calls": len(self.exchanges),
            "calls_by_role": {role: sum(e.role == role for e in self.exchanges) for role in roles},
            "unreadable": sum(not e.read for e in self.exchanges),
            "complete": not self.ended,
        }

    def warnings(self) -> list[str]:
        """Return a line if the budget ended early, and one if a tenth of the answers or more could not be read."""
        out = [f"the budget ended after {len(self.exchanges):,} calls: this is a partial result"] if self.ended else []
        failed = sum(not e.read for e in self.exchanges)
        if failed and failed >= math.ceil(len(self.exchanges) / 10):
            out.append(
                f"{failed:,} of {len(self.exchanges):,} answers could not be read; see transcript in the records"
            )
        return out

    def demos(self, accept: Callable[[Exchange], bool] = lambda exchange: True) -> list[Demo]:
        """Return the transcript as training demonstrations: exchanges that could be read and that `accept` accepts."""
        return [
            Demo(prompt=e.prompt, completion=e.reply, extra={"role": e.role, "item": e.item})
            for e in self.exchanges
            if e.read and accept(e)
        ]


def conversation(system: str, *turns: str) -> Messages:
    """Return a conversation: the system message (none if empty), then user and assistant alternating."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return Messages(([{"role": "system", "content": system}] if system else []) + messages)

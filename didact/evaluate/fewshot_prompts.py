"""Few-shot prompts: a description and K demonstrations before every item, as many as fit the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from didact.data import demonstrations, retrieval
from didact.data.demonstrations import Framing
from didact.infer import rank
from didact.types import LM, Demo, UserError

Free = Literal["exact", "normalised", "f1", "bleu"]
START_END = 2  # tokens a tokenizer may put around a text


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How items are asked; the method's options, whose docstring explains them."""

    shots: tuple[int, ...] = (0, 1, 4, 16)
    draws: int = 1
    fresh: bool = True
    framing: Framing = "answer"
    description: str = ""
    separator: str = "\n\n"
    answer_context: str = rank.ANSWER
    metric: Free = "exact"
    max_new_tokens: int = 32
    stop: str = "\n"
    beams: int = 4
    length_penalty: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("separator", "stop", "description"):  # a shell hands over the two characters \\n
            object.__setattr__(self, name, getattr(self, name).replace("\\n", "\n"))
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots = {self.shots}: different numbers of demonstrations, 0 or more")
        if self.draws < 1 or self.beams < 1 or self.max_new_tokens < 1:
            raise UserError("draws, beams and max_new_tokens must be at least 1")


@dataclass(frozen=True)
class Shown:
    """Which demonstrations an item is shown where they are not drawn at random, and how.

    Args:
        pick: positions in the pool for an item, its place and a draw, best first; those of the item itself left out.
        on_overflow: at the first that does not fit `stop`, or `skip` it.
        room: tokens of a whole prompt at most, beside the context.
    """

    pick: Callable[[Demo, int, int], Sequence[int]]
    on_overflow: retrieval.Overflow = "stop"
    room: int | None = None


class Prompts(NamedTuple):
    """The text before each item's query, how many demonstrations it has, how many queries do not fit even alone, and
    the tokens of all prompts with what is scored."""

    before: list[str]
    used: list[int]
    cut: int
    tokens: int


class Prompter:
    """Puts demonstrations from one pool before items.

    Args:
        lm: whose context they have to fit.
        pool: where demonstrations come from; an item that stands in it is never shown to itself.
        setup: how.
        shown: what is shown in place of a random draw; the best then stands last.
    """

    def __init__(self, lm: LM, pool: Sequence[Demo], setup: Setup, shown: Shown | None = None) -> None:
        self.lm, self.setup, self.chosen = lm, setup, shown
        self.shown = [demonstrations.written(record, setup.framing) for record in pool]
        self.sizes = lm.tokens([text + setup.separator for text in self.shown]) if pool else []
        self.sampler = demonstrations.Sampler(pool, max(setup.shots), setup.seed, setup.fresh)

    def prompts(self, items: Sequence[Demo], k: int, draw: int = 0, room: int = 0) -> Prompts:
        """What stands before each item's query.

        All K demonstrations stand in the prompt or fewer: the last drawn are left out until the whole fits the
        context beside `room` tokens, so that no prompt is ever cut on its left.
        """
        setup, chosen, limit = self.setup, self.chosen, self.lm.context - START_END - room
        limit = min(limit, chosen.room) if chosen and chosen.room is not None else limit
        pick, overflow = (chosen.pick, chosen.on_overflow) if chosen else (self.sampler, "stop")
        ends = [pair for record in items for pair in demonstrations.pairs(record, setup.framing)]
        counts = iter(self.lm.tokens([a + " " + b for a, b in ends]))
        heads = dict(zip(texts := list({self._head(r): None for r in items}), self.lm.tokens(texts), strict=True))
        before, used, cut, tokens = [], [], 0, 0
        for i, record in enumerate(items):
            tails = [next(counts) for _ in demonstrations.pairs(record, setup.framing)]
            left = limit - max(tails) - heads[self._head(record)]
            fits = retrieval.fitting(pick(record, i, draw)[:k] if k else [], self.sizes, left, on_overflow=overflow)
            fits = fits if chosen else fits[::-1]  # a random draw stands as it was drawn
            cut += left < 0
            kept = [self.shown[j] for j in fits]
            shared = heads[self._head(record)] + sum(self.sizes[j] for j in fits)
            tokens += sum(shared + tail for tail in tails)
            before.append(demonstrations.assemble(self._head(record), kept, "", setup.separator))
            used.append(len(kept))
        return Prompts(before, used, cut, tokens)

    def _head(self, record: Demo) -> str:
        return self.setup.description or record.instruction or ""

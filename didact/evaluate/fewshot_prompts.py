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
    """How items are asked; the method's docstring explains these options."""

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
        for name in ("separator", "stop", "description"):  # a shell passes the two characters \\n
            object.__setattr__(self, name, getattr(self, name).replace("\\n", "\n"))
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots = {self.shots}: different numbers of demonstrations, 0 or more")
        if self.draws < 1 or self.beams < 1 or self.max_new_tokens < 1:
            raise UserError("draws, beams and max_new_tokens must be at least 1")


@dataclass(frozen=True)
class Shown:
    """A rule that selects demonstrations for an item, in place of a random draw.

    Args:
        pick: maps an item, its index and a draw to positions in the pool, best first, without the item itself.
        on_overflow: at the first demonstration that does not fit, `stop` or `skip` it.
        room: most tokens of a whole prompt, in addition to the context's limit.
    """

    pick: Callable[[Demo, int, int], Sequence[int]]
    on_overflow: retrieval.Overflow = "stop"
    room: int | None = None


class Prompts(NamedTuple):
    """The text before each item's query, its number of demonstrations (`used`), the number of queries that do not fit
    even alone (`cut`), and the tokens of all prompts with their scored continuations."""

    before: list[str]
    used: list[int]
    cut: int
    tokens: int


class Prompter:
    """Puts demonstrations from one pool before items.

    Args:
        lm: the model whose context they have to fit.
        pool: the demonstrations; an item of the pool is never its own demonstration.
        setup: how items are asked.
        selection: selects demonstrations in place of a random draw; the best one is then last in the prompt.
    """

    def __init__(self, lm: LM, pool: Sequence[Demo], setup: Setup, selection: Shown | None = None) -> None:
        self.lm, self.setup, self.selection = lm, setup, selection
        self.demos = [demonstrations.written(record, setup.framing) for record in pool]
        self.sizes = lm.tokens([text + setup.separator for text in self.demos]) if pool else []
        self.sampler = demonstrations.Sampler(pool, max(setup.shots), setup.seed, setup.fresh)

    def prompts(self, items: Sequence[Demo], k: int, draw: int = 0, room: int = 0) -> Prompts:
        """Return the text before each item's query.

        The last drawn of the K demonstrations are left out until the prompt and `room` further tokens fit the
        context, so that no prompt is truncated on the left.
        """
        setup, selection, limit = self.setup, self.selection, self.lm.context - START_END - room
        limit = min(limit, selection.room) if selection and selection.room is not None else limit
        pick, overflow = (selection.pick, selection.on_overflow) if selection else (self.sampler, "stop")
        ends = [pair for record in items for pair in demonstrations.pairs(record, setup.framing)]
        counts = iter(self.lm.tokens([a + " " + b for a, b in ends]))
        heads = dict(zip(texts := list({self._head(r): None for r in items}), self.lm.tokens(texts), strict=True))
        before, used, cut, tokens = [], [], 0, 0
        for i, record in enumerate(items):
            tails = [next(counts) for _ in demonstrations.pairs(record, setup.framing)]
            budget = limit - max(tails) - heads[self._head(record)]
            fits = retrieval.fitting(pick(record, i, draw)[:k] if k else [], self.sizes, budget, on_overflow=overflow)
            fits = fits if selection else fits[::-1]  # a random draw keeps its order
            cut += budget < 0
            demos = [self.demos[j] for j in fits]
            shared = heads[self._head(record)] + sum(self.sizes[j] for j in fits)
            tokens += sum(shared + tail for tail in tails)
            before.append(demonstrations.assemble(self._head(record), demos, "", setup.separator))
            used.append(len(demos))
        return Prompts(before, used, cut, tokens)

    def _head(self, record: Demo) -> str:
        return self.setup.description or record.instruction or ""

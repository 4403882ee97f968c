"""Who answers while a round is collected: the model itself, or an engine that was given its weights.

    with didact.generating("http://127.0.0.1:8000/v1"):
        didact.alignment.spin(model, demos)

An engine is held against the local model whenever it was given weights: the log-probs of the answers to a few fixed
prompts must be the model's own to `TOLERANCE`, those of the likeliest tokens beside them too, or the run stops.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from didact.infer.calls import Counts
from didact.models import cost
from didact.models.model import Model
from didact.types import Fit, UserError

if TYPE_CHECKING:
    from didact.infer.generate import SamplingConfig

TOLERANCE = 1e-3  # nats, of every token's log-prob
PROBES, LONGEST, TOKENS, TOP = 4, 24, 8, 5  # prompts of the probe, their tokens, those of an answer; likeliest shown
WARMTH = 0.7  # of the probe: an engine that gives log-probs after temperature shows there
LOWER = "bfloat16 alone moves them by 1e-2: --dtype float32 on both sides"


class Ask(NamedTuple):
    """A prompt with how many answers of how many tokens; answer i is drawn with `seed + i`."""

    prompt: tuple[int, ...]
    room: int
    n: int
    seed: int


class Draw(NamedTuple):
    """An answer: its tokens, the model's own log-prob of each, and of the likeliest ones where they were asked for."""

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    top: tuple[Mapping[int, float], ...] = ()


class Engine(ABC):
    """What can answer in a model's place. `where` names it in messages.

    It answers for the model that a run starts from and for the one that its round starts from, and for no other.
    """

    where = ""

    def __init__(self) -> None:
        self.start: Model | None = None
        self.models: tuple[Model, ...] = ()
        self.counts = Counts()
        self.gap, self.probes = 0.0, 0
        self.again = [0, 0]  # probe answers that came out the same when asked for again, of how many
        self.local = 0  # answers left to the model itself
        self._digests: dict[int, str] = {}
        self._held = ""

    @abstractmethod
    def open(self, model: Model, fit: Fit) -> None:
        """See, before anything is trained, that it has this model and takes the weights that will come of it.

        Raises:
            UserError: one of them is not so.
        """

    @abstractmethod
    def take(self, model: Model, digest: str) -> None:
        """Answer by these weights from now on.

        Raises:
            UserError: it cannot be given them.
        """

    @abstractmethod
    def draws(
        self, asks: Sequence[Ask], how: SamplingConfig, ends: Collection[int], top: int = 0, keep: bool = True
    ) -> list[list[Draw]]:
        """The answers to all of these, with the `top` likeliest tokens; what is not to be kept is asked for anew."""

    def close(self) -> None:
        """Leave the engine as it was, as far as that goes."""
        self.models = ()

    def serve(self, model: Model | None) -> None:
        """Answer for this model, and for the one that the run started from, which stay as they are; None: for none."""
        self.models = () if model is None or self.start is None else (model, self.start)
        self._digests = {}

    def begin(self, model: Model, fit: Fit) -> None:
        """`open`, once for a run.

        Raises:
            UserError: as in `open`; the model is not causal.
        """
        if model is self.start:
            return
        if model.kind != "causal":
            raise UserError(f"{self.where}: such engines serve causal models, this one is {model.kind}")
        self.start, self._held = model, ""
        try:
            self.open(model, fit)
        except BaseException:
            self.close()  # what it was given in the rehearsal is no one's
            raise

    def holds(self, model: Model) -> None:
        """Give it a model's weights, unless it has them, and see that it computes what the model does.

        Raises:
            UserError: it cannot be given them, or computes something else.
        """
        if id(model) not in self._digests:
            self._digests[id(model)] = model.fingerprint()
        digest = self._digests[id(model)]
        if digest != self._held:
            self._held = ""
            self.take(model, digest)
            if not (gap := self.probe(model)) <= TOLERANCE:
                raise UserError(
                    f"{self.where}: after it was given the weights its log-probs of fixed prompts' answers differ by "
                    f"{gap:.2g} from the model's own ({TOLERANCE:g} at most; {LOWER})"
                )
            self._held = digest

    def probe(self, model: Model) -> float:
        """The largest difference of a log-prob from the model's own, in nats."""
        from didact.infer.generate import SamplingConfig

        how = SamplingConfig(max_new_tokens=TOKENS, temperature=WARMTH)
        asks = [Ask(p, TOKENS, 1, 7 + i) for i, p in enumerate(fixed(model))]
        with cost.unmetered():
            made = [d[0] for d in self.draws(asks, how, (), TOP, keep=False)]
            again = [d[0] for d in self.draws(asks[::-1], how, (), TOP, keep=False)][::-1]
            gap = max(_apart(model, ask.prompt, draw) for ask, draw in zip(asks, made, strict=True))
        self.again[0] += sum(a.tokens == b.tokens for a, b in zip(made, again, strict=True))
        self.again[1] += len(asks)
        if gap <= TOLERANCE:
            self.gap, self.probes = max(self.gap, gap), self.probes + 1
        return gap

    def completions(
        self, model: Model, ids: Sequence[Sequence[int]], rooms: Sequence[int], n: int, how: SamplingConfig,
        keys: Sequence[int], ends: Collection[int],
    ) -> list[list[tuple[tuple[int, ...], float]]]:  # fmt: skip
        """`n` answers to every prompt: their tokens and log-probs. Answer d to prompt i follows from its key and d."""
        self.holds(model)
        each = n if how.temperature else 1
        asks = [
            Ask(tuple(prompt), room, each, int(np.random.default_rng([how.seed, key]).integers(1 << 62)))
            for prompt, room, key in zip(ids, rooms, keys, strict=True)
        ]
        found = iter(self.draws([ask for ask in asks if ask.room > 0], how, ends))
        rows = [next(found) if ask.room > 0 else [Draw((), ())] * each for ask in asks]
        rows = [row if each == n else row * n for row in rows]
        return [[(d.tokens, math.fsum(d.logps)) for d in row] for row in rows]

    def told(self) -> list[str]:
        """What a reader of the result must know, in lines."""
        if not self.probes:
            return []
        lines = [
            f"{self.where} sampled: log-probs within {self.gap:.1g} of the model's own in {self.probes} probes "
            f"({TOLERANCE:g} at most). Not bit-exact: its draws are not those of a run without it, and of "
            f"{self.again[1]} probe draws asked for twice {self.again[0]} came out the same"
        ]
        left = f"{self.where}: {self.local:,} answers under constraints or processors came from the model itself"
        return lines + ([left] if self.local else [])


_GIVEN: ContextVar[Engine | None] = ContextVar("given", default=None)
_COLLECTING: ContextVar[Engine | None] = ContextVar("collecting", default=None)


@contextlib.contextmanager
def generating(engine: str | Engine | None) -> Iterator[Engine | None]:
    """Inside the block methods that go in rounds sample from this engine: a vLLM server's address, or `vllm` for one
    in this process. Scores, and answers after training, stay the model's own."""
    if isinstance(engine, str):
        from didact.infer import served  # stands on this

        engine = served.named(engine)
    token = _GIVEN.set(engine)
    try:
        yield engine
    finally:
        _GIVEN.reset(token)
        if engine is not None:
            engine.close()


def given() -> Engine | None:
    """The engine that rounds sample from, where there is one."""
    return _GIVEN.get()


@contextlib.contextmanager
def collecting(model: Model) -> Iterator[None]:
    """Inside the block the engine answers for `model`, and for the one that the run started from."""
    engine = _GIVEN.get()
    if engine is not None:
        engine.serve(model)
    token = _COLLECTING.set(engine)
    try:
        yield
    finally:
        _COLLECTING.reset(token)
        if engine is not None:
            engine.serve(None)


def asked(model: Model) -> Engine | None:
    """The engine that answers for this model now; None where the model does so itself."""
    engine = _COLLECTING.get()
    return engine if engine is not None and any(model is m for m in engine.models) else None


def fixed(model: Model) -> list[tuple[int, ...]]:
    """The probe's prompts: tokens of the whole vocabulary, of several lengths."""
    known = min(len(model.tokenizer), model.embedded or len(model.tokenizer))
    longest = max(1, min(LONGEST, model.context - TOKENS))
    ids = np.random.default_rng(0).integers(known, size=(PROBES, longest)).tolist()
    return [tuple(row[: max(1, longest * (i + 1) // PROBES)]) for i, row in enumerate(ids)]


@torch.no_grad()
def _apart(model: Model, prompt: tuple[int, ...], draw: Draw) -> float:
    """The largest difference of an answer's log-probs, and of those beside them, from the model's own."""
    module: Any = model.module
    was = module.training
    module.eval()
    ids = torch.tensor([[*prompt, *draw.tokens]], device=model.device)
    own = module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    module.train(was)
    shown = [{token: logp, **dict(top)} for token, logp, top in zip(draw.tokens, draw.logps, draw.top, strict=True)]
    return max(abs(float(own[at, t]) - x) for at, row in enumerate(shown) for t, x in row.items())

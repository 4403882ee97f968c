"""Inference engines that sample in place of the model while a round's data is collected.

    with didact.generating("http://127.0.0.1:8000/v1"):
        didact.alignment.spin(model, demos)

An engine is checked against the local model whenever it receives weights: its log-probs of the answers to a few fixed
prompts, and of the likeliest tokens beside them, must match the model's to `TOLERANCE`, or the run stops.
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
PROBES, LONGEST, TOKENS, TOP = 4, 24, 8, 5  # probe prompts, their longest, tokens of an answer; top log-probs
WARMTH = 0.7  # temperature of the probe: it reveals engines whose log-probs are taken after temperature
LOWER = "bfloat16 alone moves them by 1e-2: --dtype float32 on both sides"


class Request(NamedTuple):
    """A request for `n` answers of at most `room` tokens to a prompt; answer i is drawn with `seed + i`."""

    prompt: tuple[int, ...]
    room: int
    n: int
    seed: int


class Draw(NamedTuple):
    """An answer: its tokens, the model's own log-prob of each, and those of the likeliest tokens where requested."""

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    top: tuple[Mapping[int, float], ...] = ()


class Engine(ABC):
    """An engine that can sample in place of a model; messages call it `where`.

    It samples only for the model that a run starts from and for the one that its round starts from.
    """

    where = ""

    def __init__(self) -> None:
        self.start: Model | None = None
        self.models: tuple[Model, ...] = ()
        self.counts = Counts()
        self.gap, self.probes = 0.0, 0
        self.repeated = [0, 0]  # probe answers that were the same when drawn twice, of how many
        self.local = 0  # answers that the model itself sampled
        self._digests: dict[int, str] = {}
        self._held = ""

    @abstractmethod
    def open(self, model: Model, fit: Fit) -> None:
        """Check, before anything is trained, that it serves this model and accepts the weights training will yield.

        Raises:
            UserError: it does not.
        """

    @abstractmethod
    def take(self, model: Model, digest: str) -> None:
        """Load these weights.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def draws(
        self, asks: Sequence[Request], how: SamplingConfig, ends: Collection[int], top: int = 0, keep: bool = True
    ) -> list[list[Draw]]:
        """Answer these requests, with the `top` likeliest tokens; without `keep` no cache is used."""

    def close(self) -> None:
        """Restore the engine to its earlier state, as far as possible."""
        self.models = ()

    def serve(self, model: Model | None) -> None:
        """Sample for this model and the run's start model, whose weights must not change meanwhile; None: for none."""
        self.models = () if model is None or self.start is None else (model, self.start)
        self._digests = {}

    def begin(self, model: Model, fit: Fit) -> None:
        """Call `open` once per run.

        Raises:
            UserError: as in `open`, or the model is not causal.
        """
        if model is self.start:
            return
        if model.kind != "causal":
            raise UserError(f"{self.where}: inference engines serve causal models only, this one is {model.kind}")
        self.start, self._held = model, ""
        try:
            self.open(model, fit)
        except BaseException:
            self.close()  # drop the weights of the rehearsal
            raise

    def load_weights(self, model: Model) -> None:
        """Load a model's weights into it, unless it has them, and check that its log-probs match the model's.

        Raises:
            UserError: it cannot load them, or computes something else.
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
        """Return the largest difference between its log-probs and the model's on the probe prompts, in nats."""
        from didact.infer.generate import SamplingConfig

        how = SamplingConfig(max_new_tokens=TOKENS, temperature=WARMTH)
        asks = [Request(p, TOKENS, 1, 7 + i) for i, p in enumerate(fixed(model))]
        with cost.unmetered():
            draws = [d[0] for d in self.draws(asks, how, (), TOP, keep=False)]
            repeats = [d[0] for d in self.draws(asks[::-1], how, (), TOP, keep=False)][::-1]
            gap = max(_largest_gap(model, ask.prompt, draw) for ask, draw in zip(asks, draws, strict=True))
        self.repeated[0] += sum(first.tokens == second.tokens for first, second in zip(draws, repeats, strict=True))
        self.repeated[1] += len(asks)
        if gap <= TOLERANCE:
            self.gap, self.probes = max(self.gap, gap), self.probes + 1
        return gap

    def completions(
        self, model: Model, ids: Sequence[Sequence[int]], rooms: Sequence[int], n: int, how: SamplingConfig,
        keys: Sequence[int], ends: Collection[int],
    ) -> list[list[tuple[tuple[int, ...], float]]]:  # fmt: skip
        """Return tokens and log-prob of `n` answers to every prompt. Answer d is fixed by the prompt's key and d."""
        self.load_weights(model)
        count = n if how.temperature else 1
        asks = [
            Request(tuple(prompt), room, count, int(np.random.default_rng([how.seed, key]).integers(1 << 62)))
            for prompt, room, key in zip(ids, rooms, keys, strict=True)
        ]
        draws = iter(self.draws([ask for ask in asks if ask.room > 0], how, ends))
        rows = [next(draws) if ask.room > 0 else [Draw((), ())] * count for ask in asks]
        rows = [row if count == n else row * n for row in rows]
        return [[(d.tokens, math.fsum(d.logps)) for d in row] for row in rows]

    def notes(self) -> list[str]:
        """Return notes for the result's warnings."""
        if not self.probes:
            return []
        lines = [
            f"{self.where} sampled: its log-probs are within {self.gap:.1g} of the model's own in {self.probes} probes "
            f"({TOLERANCE:g} is allowed). Draws are not bit-exact: they differ from those of a run without it, and "
            f"{self.repeated[0]} of {self.repeated[1]} probe draws were the same when drawn again"
        ]
        fallback = f"{self.where}: {self.local:,} answers under constraints or processors were sampled by the model"
        return lines + ([fallback] if self.local else [])


_ENGINE: ContextVar[Engine | None] = ContextVar("given", default=None)
_COLLECTING: ContextVar[Engine | None] = ContextVar("collecting", default=None)


@contextlib.contextmanager
def generating(engine: str | Engine | None) -> Iterator[Engine | None]:
    """Within the block, methods that train in rounds sample from this engine: a vLLM server's address, or `vllm` for
    one in this process. The model itself still computes all scores, and all answers after training."""
    if isinstance(engine, str):
        from didact.infer import served  # it imports this module

        engine = served.by_address(engine)
    token = _ENGINE.set(engine)
    try:
        yield engine
    finally:
        _ENGINE.reset(token)
        if engine is not None:
            engine.close()


def current() -> Engine | None:
    """Return the engine that rounds sample from, or None."""
    return _ENGINE.get()


@contextlib.contextmanager
def collecting(model: Model) -> Iterator[None]:
    """Within the block the engine samples for `model` and for the one that the run started from."""
    engine = _ENGINE.get()
    if engine is not None:
        engine.serve(model)
    token = _COLLECTING.set(engine)
    try:
        yield
    finally:
        _COLLECTING.reset(token)
        if engine is not None:
            engine.serve(None)


def engine_for(model: Model) -> Engine | None:
    """Return the engine that samples for this model now, or None where the model itself does."""
    engine = _COLLECTING.get()
    return engine if engine is not None and any(model is m for m in engine.models) else None


def fixed(model: Model) -> list[tuple[int, ...]]:
    """Return the probe prompts: random tokens of the whole vocabulary, in several lengths."""
    vocabulary = min(len(model.tokenizer), model.embedded or len(model.tokenizer))
    longest = max(1, min(LONGEST, model.context - TOKENS))
    ids = np.random.default_rng(0).integers(vocabulary, size=(PROBES, longest)).tolist()
    return [tuple(row[: max(1, longest * (i + 1) // PROBES)]) for i, row in enumerate(ids)]


@torch.no_grad()
def _largest_gap(model: Model, prompt: tuple[int, ...], draw: Draw) -> float:
    """Return the largest difference of a draw's log-probs, its top ones included, from the model's own."""
    module: Any = model.module
    training = module.training
    module.eval()
    ids = torch.tensor([[*prompt, *draw.tokens]], device=model.device)
    reference = module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    module.train(training)
    reported = [{token: logp, **dict(top)} for token, logp, top in zip(draw.tokens, draw.logps, draw.top, strict=True)]
    gaps = [abs(float(reference[i, t]) - logp) for i, row in enumerate(reported) for t, logp in row.items()]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)  # `max` misses a NaN that is not the first

"""A vLLM server as the engine that samples in rounds: it is handed the weights, held against the model, and asked.

Weights reach it as a LoRA adapter, loaded while it runs (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), where
the run trains one; else as a folder from which it reloads its own (VLLM_SERVER_DEV_MODE=1). Either way the server must
see the folder they are written to. Prompts go as token ids and answers come as token ids, so that tokenisation is ours.

A request has one prompt and several draws of it, and many are under way at once: the server puts them into batches
itself. Several prompts in one request would all have its one seed, and so the same random numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from didact.infer import calls, exchanges, handover, remote, replies
from didact.infer.addresses import check_address, is_address
from didact.infer.calls import Job
from didact.infer.engines import LOWER, TOLERANCE, Ask, Draw, Engine
from didact.models import adapters, cost
from didact.models.model import Model
from didact.parallel import launch
from didact.types import Fit, UserError

if TYPE_CHECKING:
    from didact.infer.generate import SamplingConfig

AT_ONCE = 32  # requests under way
DRAWS = 8  # of a prompt in one request
TIMEOUT = 600.0  # seconds: an answer of many draws, on a busy server
LORA = "--enable-lora, --max-lora-rank N and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class Served(Engine):
    """Made by `named`; `more` are options of `remote.connect`. Its `counts` say what was asked."""

    def __init__(self, address: str, parallel: int | None = None, **more: Any) -> None:
        super().__init__()
        check_address(address)
        url, _, self._name = address.partition("#")
        self.url = self.where = url.rstrip("/")
        self._more = {"parallel": parallel or AT_ONCE, "timeout": TIMEOUT} | more
        self._caller = remote.connect(self.url, self._name, **self._more).caller
        self.counts = self._caller.counts
        self._control = exchanges.Exchanges(self.url.removesuffix("/v1"), self._caller.key, TIMEOUT, 1)
        self._adapts = False
        self._base: Model | None = None  # what an adapter is laid over
        self._place: Path | None = None  # what is written for the server; unset until it is a folder of its own
        self._serving, self._digest = "", ""

    def open(self, model: Model, fit: Fit) -> None:
        """See that the server is there, serves this model, and takes the weights that a run with this `fit` makes.

        Raises:
            UserError: one of them is not so.
        """
        root = self._find()
        here = Path(fit.folder) / "served" if fit.folder else Path(tempfile.mkdtemp(prefix="didact-"))
        self._place = here.resolve() / os.environ.get("RANK", "0")
        self._adapts, self._serving = self._way(fit), self._name
        starts = [adapters.merged(model), *([handover.unadapted(model)] if adapters.adapted(model) else [])]
        gaps = [self._gap(start) for start in (starts if self._adapts else starts[:1])]
        near = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[near] > TOLERANCE and (self._adapts or not _same_shape(model, root)):
            raise UserError(
                f"{self.url}: {self._name} is another model, or has other weights or another tokenizer: its log-probs "
                f"of answers to fixed prompts differ by {gaps[near]:.2g} from it ({TOLERANCE:g} at most; {LOWER})"
            )
        self._base = starts[near]
        if not self._adapts:
            self._reloads(root)
        self.holds(handover.rehearsed(model, fit, self._adapts))
        if not self._adapts:
            self.holds(model)

    def take(self, model: Model, digest: str) -> None:
        """Load what the weights changed as an adapter, or the weights as they are.

        Raises:
            UserError: the server does not; an adapter cannot tell the change.
        """
        plain, self._digest = adapters.merged(model), digest
        assert self._place is not None
        folder = self._place / digest
        last, self._serving = self._serving, self._name
        if not self._adapts:
            self._written(folder, lambda: plain.save(folder))
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._told(
                "collective_rpc", body, f"it could not reload {folder}; start it anew, where it sees that folder"
            )
            self._told("reset_prefix_cache", {}, "its prefix cache could not be emptied")
            return
        assert self._base is not None
        if (found := handover.difference(plain, self._base)) is None:
            raise UserError(
                f"{self.url}: more changed than an adapter of {handover.MOST} ranks can tell (weights below float32 "
                "are rounded): start the server with VLLM_SERVER_DEV_MODE=1 alone, which takes whole weights"
            )
        if found:
            name = f"didact-{digest}"
            self._written(folder, lambda: handover.write_adapter(found, folder, self._base.base or ""))
            load: dict[str, Any] = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
            self._told("v1/load_lora_adapter", load, f"it did not load the adapter in {folder}")
            self._serving = name
        if last not in (self._serving, self._name):
            self._unload(last)

    def draws(
        self, asks: Sequence[Ask], how: SamplingConfig, ends: Collection[int], top: int = 0, keep: bool = True
    ) -> list[list[Draw]]:
        """The answers to all of these, several requests at once; those that are kept are not asked for again.

        Raises:
            UserError: the server refuses or does not answer, or the budget is used up.
        """
        parts = [(ask, at, min(DRAWS, ask.n - at)) for ask in asks for at in range(0, ask.n, DRAWS)]
        jobs = [replace(self.job(ask, at, n, how, ends, top), keep=keep) for ask, at, n in parts]
        spent = self.counts.tokens
        replied = self._caller.each(jobs)
        assert self.start is not None
        cost.count(self.counts.tokens - spent, self.start.parameters)
        found = iter([draw for row in replied for draw in row])
        return [[next(found) for _ in range(ask.n)] for ask in asks]

    def close(self) -> None:
        """Unload the adapter, or reload the weights it began with; remove what was written for the server."""
        super().close()
        with contextlib.suppress(UserError):
            if self._serving != self._name:
                self._unload(self._serving)
            elif self.start is not None and not self._adapts and self._place is not None and self._place.is_dir():
                self.take(self.start, self.start.fingerprint())
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._place.parent.rmdir()
        self._control.close()
        self._caller.close()

    def told(self) -> list[str]:
        """What a reader of the result must know, in lines."""
        return super().told() + ([f"{self.url}: {self.counts}"] if self.counts.cached else [])

    def _way(self, fit: Fit) -> bool:
        """Whether it is given adapters; else whole weights.

        Raises:
            UserError: it takes neither.
        """
        lora = bool(fit.lora) and not fit.dora
        if lora and self._has("POST", "v1/load_lora_adapter"):
            return True
        if self._has("GET", "is_sleeping"):
            return False
        whole = "whole weights: start it with VLLM_SERVER_DEV_MODE=1; or train an adapter (--lora 8), and"
        raise UserError(
            f"{self.url}: the server cannot be given {'an adapter:' if lora else whole} start it with {LORA}"
        )

    def _gap(self, start: Model) -> float:
        """How far the server, as it is, is from a model."""
        self._digest = start.fingerprint()
        return self.probe(start)

    def _find(self) -> str:
        """See that the server is there and which model it serves; returns where the server says it read it from."""
        status, data = self._asked("GET", "v1/models")
        models: Any = []
        with contextlib.suppress(ValueError, TypeError, KeyError):
            models = [m for m in exchanges.parsed(data)["data"] if not m.get("parent")]  # the others are adapters
        if status >= 300 or not models:
            raise UserError(
                f"{self.url}: {status} {exchanges.message(data)}: it lists no models; most addresses end in /v1"
            )
        names = [exchanges.line(str(m.get("id"))) for m in models]
        if not self._name and len(names) == 1:
            self._name = names[0]
        if self._name not in names:
            raise UserError(f"{self.url}: name the model, as {self.url}#NAME; it serves {calls.some(names)}")
        self._caller.called(self._name)
        return str(models[names.index(self._name)].get("root") or "")

    def _reloads(self, root: str) -> None:
        """See that whole weights can be reloaded without harm: vLLM does not outlive a folder that it cannot read."""
        if launch.world() > 1:
            raise UserError(
                f"{self.url}: several processes would reload the server's weights: train an adapter (--lora 8)"
            )
        if urlsplit(self.url).hostname not in exchanges.LOOPBACK and not Path(root).is_dir():
            raise UserError(
                f"{self.url}: it read its model from {root}, which is no folder here: whole weights are handed over in "
                "a folder that both see; serve the model from such a one"
            )

    def job(self, ask: Ask, at: int, n: int, how: SamplingConfig, ends: Collection[int], top: int = 0) -> Job:
        """The request for draws `at` to `at + n`; all that the server has defaults of its own for is said."""
        body = {
            "model": self._serving, "prompt": list(ask.prompt), "max_tokens": ask.room, "n": n,
            "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": top,
            "return_token_ids": True, "return_tokens_as_token_ids": True, "ignore_eos": True,
            "stop_token_ids": sorted({*ends, *how.closing}), "stop": list(how.stop),
        }  # fmt: skip
        parse = partial(drawn, n=n, top=top)
        return Job("completions", body, parse, ask.seed + at, at, weights=self._digest)

    def _written(self, folder: Path, write: Any) -> None:
        """Write a folder for the server, the only one."""
        try:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            write()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None

    def _unload(self, name: str) -> None:
        self._asked("POST", "v1/unload_lora_adapter", {"lora_name": name})

    def _has(self, method: str, path: str) -> bool:
        """Whether the server has this endpoint."""
        return self._asked(method, path, {} if method == "POST" else None)[0] not in calls.ABSENT

    def _told(self, path: str, body: Mapping[str, Any], failed: str) -> None:
        """Tell the server something that it must do."""
        status, data = self._asked("POST", path, body)
        if status >= 300:
            raise UserError(f"{self.url}: {failed}: {status} {exchanges.message(data)}")

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        try:
            answer = self._control.start(self._control.fetch(method, path, body)).result()
        except replies.PassingError as failed:
            raise UserError(f"{self.url}: {failed}: is the server there?") from None
        return answer.status, answer.data


def named(engine: str, **more: Any) -> Engine:
    """The engine of this address; `vllm` is one in this process.

    Raises:
        UserError: it is neither.
    """
    if engine == "vllm":
        from didact.infer import inside

        return inside.Inside()
    if not is_address(engine):
        raise UserError(
            f"generate with {engine}: a vLLM server's address is expected, as http://127.0.0.1:8000/v1, or vllm"
        )
    return Served(engine, **more)


def drawn(reply: Mapping[str, Any], n: int, top: int) -> list[Draw]:
    """The draws in an answer.

    Raises:
        UserError: the server shows no token ids.
    """
    rows = sorted(reply["choices"], key=lambda row: row["index"])
    if len(rows) != n:
        raise replies.PassingError(f"{len(rows)} answers came where {n} were asked for")
    return [_draw(row, top) for row in rows]


def _draw(row: Mapping[str, Any], top: int) -> Draw:
    shown = row.get("logprobs") or {}
    tokens, logps = shown.get("tokens") or [], shown.get("token_logprobs") or []
    if (ids := row.get("token_ids")) is None:
        if not all(t.startswith("token_id:") for t in tokens):
            raise UserError("the server shows no token ids of its answers: vLLM does")
        ids = [_id(t) for t in tokens]
    if not (len(ids) == len(logps) and all(type(i) is int for i in ids) and _finite(logps)):
        raise replies.PassingError("the answer's tokens and log-probs do not belong together")
    beside = shown["top_logprobs"] if top else []
    return Draw(tuple(ids), tuple(logps), tuple({_id(t): float(p) for t, p in at.items()} for at in beside))


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _finite(logps: Sequence[Any]) -> bool:
    return all(isinstance(p, float | int) and math.isfinite(p) for p in logps)


def _same_shape(model: Model, root: str) -> bool:
    """Whether the folder that the server's model came from has a model of the same architecture and size."""
    path = Path(root) / "config.json"
    if not path.is_file():
        return False
    import json

    theirs, mine = json.loads(path.read_text(encoding="utf-8")), model.config.to_dict()
    return all(theirs.get(name) == mine.get(name) for name in SHAPE)

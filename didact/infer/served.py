"""A vLLM server as the sampling engine of training rounds: it gets the weights, is checked against the model, samples.

Weights reach it as a LoRA adapter, loaded while it runs (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), where
the run trains one; else as a folder from which it reloads its own (VLLM_SERVER_DEV_MODE=1). Either way the server must
see the folder they are written to. Prompts and answers are sent as token ids, so that tokenisation is done here.

A request has one prompt and several draws of it, and many are in flight at once: the server batches them itself.
Several prompts in one request would share its one seed, and so the same random numbers.
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
from didact.infer.engines import LOWER, TOLERANCE, Draw, Engine, Request
from didact.models import adapters, cost
from didact.models.model import Model
from didact.parallel import launch
from didact.types import Fit, UserError

if TYPE_CHECKING:
    from didact.infer.generate import SamplingConfig

AT_ONCE = 32  # requests in flight
DRAWS = 8  # of a prompt in one request
TIMEOUT = 600.0  # seconds: an answer of many draws, on a busy server
LORA = "--enable-lora, --max-lora-rank N and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class Served(Engine):
    """The engine of one server; `options` are those of `remote.connect`, `counts` has calls and tokens."""

    def __init__(self, address: str, parallel: int | None = None, **options: Any) -> None:
        super().__init__()
        check_address(address)
        url, _, self._name = address.partition("#")
        self.url = self.where = url.rstrip("/")
        self._options = {"parallel": parallel or AT_ONCE, "timeout": TIMEOUT} | options
        self._caller = remote.connect(self.url, self._name, **self._options).caller
        self.counts = self._caller.counts
        self._control = exchanges.Exchanges(self.url.removesuffix("/v1"), self._caller.key, TIMEOUT, 1)
        self._adapts = False
        self._base: Model | None = None  # the weights that adapters are added to
        self._folder: Path | None = None  # where weights are written for the server
        self._serving, self._digest = "", ""

    def open(self, model: Model, fit: Fit) -> None:
        """Check that the server is reachable, serves this model, and accepts the weights that a run with `fit` yields.

        Raises:
            UserError: one of these fails.
        """
        root = self._find_model()
        folder = Path(fit.folder) / "served" if fit.folder else Path(tempfile.mkdtemp(prefix="didact-"))
        self._folder = folder.resolve() / os.environ.get("RANK", "0")
        self._adapts, self._serving = self._takes_adapters(fit), self._name
        starts = [adapters.merged(model), *([handover.unadapted(model)] if adapters.adapted(model) else [])]
        gaps = [self._gap(start) for start in (starts if self._adapts else starts[:1])]
        nearest = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[nearest] > TOLERANCE and (self._adapts or not _same_shape(model, root)):
            raise UserError(
                f"{self.url}: {self._name} is another model, or has other weights or another tokenizer: its log-probs "
                f"on fixed prompts differ by {gaps[nearest]:.2g} from the model's own ({TOLERANCE:g} at most; {LOWER})"
            )
        self._base = starts[nearest]
        if not self._adapts:
            self._check_reload(root)
        self.load_weights(handover.rehearsed(model, fit, self._adapts))
        if not self._adapts:
            self.load_weights(model)

    def take(self, model: Model, digest: str) -> None:
        """Load the change of the weights as an adapter, or the whole weights.

        Raises:
            UserError: the server refuses; the change is too large for an adapter.
        """
        merged, self._digest = adapters.merged(model), digest
        assert self._folder is not None
        folder = self._folder / digest
        previous, self._serving = self._serving, self._name
        if not self._adapts:
            self._write_folder(folder, lambda: merged.save(folder))
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._command(
                "collective_rpc", body, f"it could not reload {folder}; restart it where it can read that folder"
            )
            self._command("reset_prefix_cache", {}, "its prefix cache could not be reset")
            return
        assert self._base is not None
        if (delta := handover.difference(merged, self._base)) is None:
            raise UserError(
                f"{self.url}: the weights changed by more than an adapter of rank {handover.MOST} can hold (weights "
                "below float32 are rounded): start the server with VLLM_SERVER_DEV_MODE=1 alone, which takes whole ones"
            )
        if delta:
            name = f"didact-{digest}"
            self._write_folder(folder, lambda: handover.write_adapter(delta, folder, self._base.base or ""))
            load: dict[str, Any] = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
            self._command("v1/load_lora_adapter", load, f"it did not load the adapter in {folder}")
            self._serving = name
        if previous not in (self._serving, self._name):
            self._unload(previous)

    def draws(
        self, asks: Sequence[Request], how: SamplingConfig, ends: Collection[int], top: int = 0, keep: bool = True
    ) -> list[list[Draw]]:
        """The answers to all of these, several requests at once; cached ones are not requested again.

        Raises:
            UserError: the server refuses or does not answer, or the budget is used up.
        """
        parts = [(ask, at, min(DRAWS, ask.n - at)) for ask in asks for at in range(0, ask.n, DRAWS)]
        jobs = [replace(self.job(ask, at, n, how, ends, top), keep=keep) for ask, at, n in parts]
        spent = self.counts.tokens
        responses = self._caller.each(jobs)
        assert self.start is not None
        cost.count(self.counts.tokens - spent, self.start.parameters)
        answers = iter([draw for row in responses for draw in row])
        return [[next(answers) for _ in range(ask.n)] for ask in asks]

    def close(self) -> None:
        """Unload the adapter, or reload the initial weights; remove what was written for the server."""
        super().close()
        with contextlib.suppress(UserError):
            if self._serving != self._name:
                self._unload(self._serving)
            elif self.start is not None and not self._adapts and self._folder is not None and self._folder.is_dir():
                self.take(self.start, self.start.fingerprint())
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._folder.parent.rmdir()
        self._control.close()
        self._caller.close()

    def notes(self) -> list[str]:
        """Lines that a reader of the result must know."""
        return super().notes() + ([f"{self.url}: {self.counts}"] if self.counts.cached else [])

    def _takes_adapters(self, fit: Fit) -> bool:
        """Whether weights are sent as adapters; else whole.

        Raises:
            UserError: the server accepts neither.
        """
        lora = bool(fit.lora) and not fit.dora
        if lora and self._has_endpoint("POST", "v1/load_lora_adapter"):
            return True
        if self._has_endpoint("GET", "is_sleeping"):
            return False
        whole = "whole weights: start it with VLLM_SERVER_DEV_MODE=1; or train an adapter (--lora 8), and"
        raise UserError(
            f"{self.url}: the server cannot be given {'an adapter:' if lora else whole} start it with {LORA}"
        )

    def _gap(self, start: Model) -> float:
        """The largest log-prob difference between the server, as it now is, and a model."""
        self._digest = start.fingerprint()
        return self.probe(start)

    def _find_model(self) -> str:
        """Find the served model's name; return the path that the server loaded it from."""
        status, data = self._request("GET", "v1/models")
        models: Any = []
        with contextlib.suppress(ValueError, TypeError, KeyError):
            models = [m for m in exchanges.parsed(data)["data"] if not m.get("parent")]  # with a parent: an adapter
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

    def _check_reload(self, root: str) -> None:
        """Check that whole weights can be reloaded safely: vLLM crashes on a folder it cannot read."""
        if launch.world() > 1:
            raise UserError(
                f"{self.url}: several processes would reload the server's weights: train an adapter (--lora 8)"
            )
        if urlsplit(self.url).hostname not in exchanges.LOOPBACK and not Path(root).is_dir():
            raise UserError(
                f"{self.url}: it loaded its model from {root}, which is no folder on this machine: whole weights are "
                "passed in a folder that both can read; serve the model from such a folder"
            )

    def job(self, ask: Request, at: int, n: int, how: SamplingConfig, ends: Collection[int], top: int = 0) -> Job:
        """The request for draws `at` to `at + n`; it sets every option that the server has its own default for."""
        body = {
            "model": self._serving, "prompt": list(ask.prompt), "max_tokens": ask.room, "n": n,
            "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": top,
            "return_token_ids": True, "return_tokens_as_token_ids": True, "ignore_eos": True,
            "stop_token_ids": sorted({*ends, *how.closing}), "stop": list(how.stop),
        }  # fmt: skip
        parse = partial(drawn, n=n, top=top)
        return Job("completions", body, parse, ask.seed + at, at, weights=self._digest)

    def _write_folder(self, folder: Path, write: Any) -> None:
        """Write a folder for the server, removing all earlier ones."""
        try:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            write()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None

    def _unload(self, name: str) -> None:
        self._request("POST", "v1/unload_lora_adapter", {"lora_name": name})

    def _has_endpoint(self, method: str, path: str) -> bool:
        """Whether the server has this endpoint."""
        return self._request(method, path, {} if method == "POST" else None)[0] not in calls.ABSENT

    def _command(self, path: str, body: Mapping[str, Any], failed: str) -> None:
        """Send the server a command; raise with `failed` if it refuses."""
        status, data = self._request("POST", path, body)
        if status >= 300:
            raise UserError(f"{self.url}: {failed}: {status} {exchanges.message(data)}")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        try:
            answer = self._control.start(self._control.fetch(method, path, body)).result()
        except replies.PassingError as failed:
            raise UserError(f"{self.url}: {failed}: is the server there?") from None
        return answer.status, answer.data


def by_address(engine: str, **options: Any) -> Engine:
    """The engine at this address; `vllm` is one in this process.

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
    return Served(engine, **options)


def drawn(reply: Mapping[str, Any], n: int, top: int) -> list[Draw]:
    """The draws in an answer.

    Raises:
        UserError: the server returns no token ids.
    """
    rows = sorted(reply["choices"], key=lambda row: row["index"])
    if len(rows) != n:
        raise replies.PassingError(f"{len(rows)} answers came instead of {n}")
    return [_draw(row, top) for row in rows]


def _draw(row: Mapping[str, Any], top: int) -> Draw:
    logprobs = row.get("logprobs") or {}
    tokens, logps = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    if (ids := row.get("token_ids")) is None:
        if not all(t.startswith("token_id:") for t in tokens):
            raise UserError("the server returns no token ids with its answers: vLLM does")
        ids = [_id(t) for t in tokens]
    if not (len(ids) == len(logps) and all(type(i) is int for i in ids) and _finite(logps)):
        raise replies.PassingError("the answer's tokens and log-probs do not match")
    alternatives = logprobs["top_logprobs"] if top else []
    return Draw(tuple(ids), tuple(logps), tuple({_id(t): float(p) for t, p in at.items()} for at in alternatives))


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _finite(logps: Sequence[Any]) -> bool:
    return all(isinstance(p, float | int) and math.isfinite(p) for p in logps)


def _same_shape(model: Model, root: str) -> bool:
    """Whether the folder of the server's model has a model of the same architecture and size."""
    path = Path(root) / "config.json"
    if not path.is_file():
        return False
    import json

    served, own = json.loads(path.read_text(encoding="utf-8")), model.config.to_dict()
    return all(served.get(name) == own.get(name) for name in SHAPE)

"""vLLM in this process, on the GPU that trains, as the engine that samples in rounds; it sleeps during training.

Under `torchrun` every process has its own engine (`external_launcher`). Weights are reloaded from a folder, and freed
by vLLM while the model trains (sleep level 2). Tested on a CPU, with vLLM 0.32; sleep and `external_launcher` follow
its interface, and are not tested for want of a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didact.infer import handover
from didact.infer.engines import Draw, Engine, Request
from didact.models import adapters, cost
from didact.models.model import Model
from didact.parallel import launch
from didact.types import Fit, UserError

if TYPE_CHECKING:
    from didact.infer.generate import SamplingConfig

SHARE = 0.4  # of the GPU's memory, weights included


class Inside(Engine):
    """The vLLM engine of this process, created by `served.named("vllm")`."""

    where = "vllm in this process"

    def __init__(self) -> None:
        super().__init__()
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError:
            raise UserError("generate with vllm: the package vllm is missing; or give a server's address") from None
        self._llm: Any = None
        self._awake = True
        self._folder = Path(tempfile.mkdtemp(prefix="didact-"))

    def open(self, model: Model, fit: Fit) -> None:
        """Start vLLM with the model's weights."""
        folder = self._folder / "start"
        adapters.merged(model).save(folder)
        distributed = {"distributed_executor_backend": "external_launcher"} if launch.world() > 1 else {}
        dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        self._llm = self._vllm.LLM(
            model=str(folder), dtype=dtype, max_model_len=model.context, gpu_memory_utilization=SHARE,
            enable_sleep_mode=model.device.type == "cuda", seed=0, **distributed,
        )  # fmt: skip
        self.load_weights(handover.rehearsed(model, fit, adapter=False))

    def take(self, model: Model, digest: str) -> None:
        """Reload the weights from a folder."""
        folder = self._folder / digest
        adapters.merged(model).save(folder)
        self._wake(["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._wake(["kv_cache"])
        self._awake = True
        self._llm.reset_prefix_cache()
        shutil.rmtree(folder, ignore_errors=True)

    def serve(self, model: Model | None) -> None:
        """Sample for this model; None frees the memory for training, after which weights are loaded anew."""
        super().serve(model)
        if model is None and self._llm is not None and self._awake and self._sleeps:
            self._llm.sleep(level=2)
            self._awake, self._held = False, ""

    def draws(
        self, asks: Sequence[Request], how: SamplingConfig, ends: Collection[int], top: int = 0, keep: bool = True
    ) -> list[list[Draw]]:
        """Answer these requests in one batch."""
        parameters = [
            self._vllm.SamplingParams(
                n=ask.n, seed=ask.seed, max_tokens=ask.room, temperature=how.temperature, top_p=how.top_p,
                top_k=how.top_k, logprobs=top, ignore_eos=True, stop_token_ids=sorted({*ends, *how.closing}),
                stop=list(how.stop),
            )
            for ask in asks
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": list(ask.prompt)} for ask in asks]
        results = self._llm.generate(prompts, parameters, use_tqdm=False)
        if self.start is not None:
            count = sum(len(ask.prompt) for ask in asks) + sum(len(o.token_ids) for r in results for o in r.outputs)
            cost.count(count, self.start.parameters)
        return [[_draw(out) for out in r.outputs] for r in results]

    def close(self) -> None:
        """Shut vLLM down, and remove the folders written for it."""
        with contextlib.suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _sleeps(self) -> bool:
        return self.start is not None and self.start.device.type == "cuda"

    def _wake(self, tags: list[str]) -> None:
        if not self._awake:
            self._llm.wake_up(tags=tags)


def _draw(out: Any) -> Draw:
    logprobs = [{token: float(p.logprob) for token, p in top.items()} for top in out.logprobs]
    tokens = tuple(out.token_ids)
    return Draw(tokens, tuple(top[t] for t, top in zip(tokens, logprobs, strict=True)), tuple(logprobs))

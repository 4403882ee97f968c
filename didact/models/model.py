"""`Model`: a module with its tokenizer and its kind, and how it is saved."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from didact import files
from didact.data import encode
from didact.data.templates import Condition
from didact.models import cost
from didact.parallel import shards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["causal", "masked", "seq2seq", "encoder", "dual", "module"]
CONTEXTS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx",
    "context_length", "max_target_positions",
)  # fmt: skip
UNKNOWN_CONTEXT = 512
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder", "generator")
CONDITION = "condition.json"  # beside the weights
QUANTIZED = "quantize.json"  # beside an adapter: the quantisation of the weights it was trained on


@dataclass(eq=False)
class Model:
    """A module with its tokenizer. A reference, an opponent or an expert is just another frozen `Model`.

    `base` is the folder or hub id that its training started from, if any; `loaded_from` the one that these exact
    weights were read from, which copies do not have. `condition` is the text that its prompts must be put in; it is
    saved with the weights, and copies that are trained on something else drop it.
    """

    module: nn.Module
    processor: PreTrainedTokenizerBase | None = None
    kind: Kind = "causal"
    base: str | None = None
    condition: Condition | None = None
    loaded_from: str | None = None

    def __post_init__(self) -> None:
        cost.watch(self.module)
        if self.processor is not None:
            self.processor = encode.fitted(self.processor, self._generation, self.embedded)

    def __repr__(self) -> str:
        """Its kind, type, size and base."""
        size = f"{self.parameters:,} weights"
        label = " ".join(filter(None, (self.kind, getattr(self.config, "model_type", ""))))
        return f"Model({label}, {size}{f', from {self.base}' if self.base else ''})"

    def answer(
        self, prompts: str | Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0, **options: Any
    ) -> Any:
        """Return the completion of a prompt, or a list of them for several; greedy at temperature 0.

        `options` are those of `infer.generate.generate`: `stop`, `top_p`, `seed`, ...
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        completions = _infer("generate").generate(self, batch, max_new_tokens, temperature, **options)
        return completions[0] if isinstance(prompts, str) else completions

    def score(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """Return `Likelihood(logp, tokens)` of every (prompt, completion): SUM over tokens, no end token, in nats."""
        return _infer("lm").of(self).score(pairs)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; a model without text has none."""
        if self.processor is None:
            raise TypeError(f"a model of kind '{self.kind}' has no tokenizer")
        return self.processor

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return getattr(self.module, "config", None)

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.module.parameters()).device

    @property
    def text_config(self) -> Any:
        """The configuration of its text model, which multi-modal models nest in theirs."""
        return text_part(self.config)

    @property
    def context(self) -> int:
        """The context length in tokens, at most --max-length; `UNKNOWN_CONTEXT` if none is declared (`load` warns)."""
        limit = self.known_context or UNKNOWN_CONTEXT
        return min(limit, getattr(self.processor, "most", None) or limit)

    @property
    def known_context(self) -> int | None:
        """The context length that its configuration declares, else its tokenizer; None if neither does."""
        config = self.text_config
        declared = next((n for name in CONTEXTS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
        if declared is not None:
            return _scaled_context(declared, getattr(config, "rope_parameters", None))
        limit = self.processor.model_max_length if self.processor is not None else 0
        return int(limit) if 0 < limit < 10**6 else None  # transformers writes 10^30 for no limit

    @property
    def generation_ends(self) -> list[int]:
        """The end tokens of its generation configuration."""
        return encode.ends_of(self._generation, self.embedded)

    @property
    def _generation(self) -> Any:
        module: Any = self.module
        module = module.get_base_model() if hasattr(module, "get_base_model") else getattr(module, "base", module)
        return getattr(module, "generation_config", None)

    @property
    def embedded(self) -> int | None:
        """Rows of the embedding table; None if unknown."""
        module: Any = self.module
        table = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
        weight = getattr(table, "weight", None)
        return None if weight is None else int(weight.shape[0])

    @property
    def pad(self) -> int:
        """The id of the padding token. It is masked everywhere, so 0 will do where the tokenizer has none."""
        pad_id = int(self.tokenizer.pad_token_id or 0)
        return pad_id if pad_id < (self.embedded or pad_id + 1) else 0

    @property
    def start(self) -> int | None:
        """The token that a seq2seq decoder starts from."""
        return getattr(self.config, "decoder_start_token_id", None)

    @property
    def quantized(self) -> str | None:
        """The bitsandbytes type of its matrices, `nf4` or `int8`; None if they are not quantised."""
        module: Any = self.module
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        kinds = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}
        return next((kind for kind, mark in kinds.items() if getattr(inner, mark, False)), None)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return cost.weights(self.module)

    def ready(self, lora: int) -> Model:
        """Return the model to train: an adapter is merged, unless LoRA (rank above 0) continues to train it."""
        from didact.models import adapters

        return adapters.ready(self, lora)

    def around(self, module: nn.Module) -> Model:
        """Wrap another module, such as a copy, with this tokenizer, kind and base; `condition` is dropped."""
        return Model(module, self.processor, self.kind, self.base)

    def fingerprint(self) -> str:
        """SHA-256 (16 digits) over every weight's name and bytes: the key of caches, checkpoints and results.

        Collective if weights are sharded over processes.
        """
        digest = hashlib.sha256()
        for name, part in sorted(self.module.state_dict().items()):
            tensor = shards.whole(part)
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
                if tensor.numel() and tensor.dim()
                else str(tensor).encode()
            )
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> str:
        """Write weights, configuration and tokenizer; returns `hf`, `peft` or `didact`.

        An adapter on weights that have no folder is merged: alone it could not be opened. Collective if weights are
        sharded over processes, and then the first one writes.

        Raises:
            UserError: the folder holds files that didact did not write.
        """
        from didact.models import adapters, spread

        if adapters.without_base(self):
            return adapters.merged(self).save(folder)
        state = spread.gather(self.module) if spread.is_sharded(self.module) else None
        if spread.is_follower(self.module):
            return "peft" if adapters.adapted(self) else "hf"
        with files.new_folder(folder) as fresh:
            return self._save(fresh, state)

    def _save(self, folder: Path, state: dict[str, torch.Tensor] | None) -> str:
        from peft import PeftModel
        from safetensors.torch import save_file
        from transformers import PreTrainedModel
        from transformers.utils import logging

        if self.quantized:
            files.write_json(folder / QUANTIZED, {"quantize": self.quantized})
        if self.condition is not None:
            files.write_json(folder / CONDITION, dataclasses.asdict(self.condition))
            settings: Any = getattr(self.module, "generation_config", None)
            if self.condition.banned and settings is not None:  # so that transformers obeys too
                settings.suppress_tokens = [self.tokenizer.convert_tokens_to_ids(t) for t in self.condition.banned]
        turn = encode.turn_end(self.processor) if self.processor is not None else None
        if self.generation_ends and turn is not None and turn not in self.generation_ends:
            generation: Any = self.module.generation_config  # so that transformers stops where trained answers end
            generation.eos_token_id = [*self.generation_ends, turn]
        if isinstance(self.module, PeftModel | PreTrainedModel):
            logging.disable_progress_bar()
            self.module.save_pretrained(str(folder), state_dict=state)
            if self.processor is not None:
                self.processor.save_pretrained(folder)
            return "peft" if isinstance(self.module, PeftModel) else "hf"
        state = {k: v.detach().contiguous().cpu().clone() for k, v in self.module.state_dict().items()}
        save_file(state, str(folder / "model.safetensors"))
        spec = getattr(self.module, "spec", {})
        files.write_json(
            folder / "didact.json", {"kind": self.kind, "module": type(self.module).__name__, "spec": spec}
        )
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        return "didact"


def _infer(part: str) -> Any:
    """Import a module of `didact.infer` late: that package imports this module."""
    return importlib.import_module(f"didact.infer.{part}")


def text_part(config: Any) -> Any:
    """Return the nested configuration of the text model, or the whole one if nothing is nested."""
    nested = [part for name in NESTED if hasattr(part := getattr(config, name, None), "to_dict")]
    return text_part(nested[0]) if nested else config


def _scaled_context(limit: int, rope: Any) -> int:
    """The context length with rotary positions scaled beyond `limit`; other scalings are in `limit` already."""
    if not isinstance(rope, Mapping) or rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return limit
    return max(limit, int((rope.get("original_max_position_embeddings") or limit) * (rope.get("factor") or 1)))


def copy_of(model: Model) -> Model:
    """Return a deep copy: training it leaves the original unchanged."""
    return model.around(copy.deepcopy(model.module))


def sharing(model: Model) -> Model:
    """Return a copy that shares the original's weights, for an adapter that is trained while they stay frozen."""
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), p.requires_grad) if type(p) in (nn.Parameter, DTensor) else p  # or quantised
        for p in model.module.parameters()
    }
    return model.around(copy.deepcopy(model.module, shared))


def frozen(model: Model) -> Model:
    """Return a copy in eval mode without gradients, as a reference model."""
    reference = copy_of(model)
    reference.module.eval().requires_grad_(False)
    return reference

"""Text encoders (like BERT, as sentence-transformers saves them): model folders without a language-model head.

Pooling and length are read from the folder: mean or first token (`1_Pooling/config.json`; mean by default),
`max_seq_length` of `sentence_bert_config.json`. No code of the folder runs and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from didact import files
from didact.data.streams import by_length
from didact.models import load, opening, places
from didact.types import UserError

Pooling = Literal["mean", "first"]
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # class-name suffixes of models that generate
POOLING: Mapping[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
LONGEST = 512  # tokens, where neither file sets a limit


@dataclass(frozen=True)
class Encoder:
    """A module with its tokenizer, the pooling of hidden states into one vector, and the most tokens read."""

    module: Any
    tokenizer: Any
    pooling: Pooling = "mean"
    length: int = LONGEST

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_tokens: int = 8192) -> Tensor:
        """Return one vector per text, `(texts, d)` in float32 on the CPU; texts are truncated on the right."""
        texts, vectors = list(texts), [torch.empty(0)] * len(texts)
        lengths = [len(ids) for ids in self._ids(texts)["input_ids"]] if texts else []
        for group in by_length(lengths, batch_tokens):
            rows = self._ids([texts[i] for i in group], padding=True, return_tensors="pt").to(self.module.device)
            states, mask = self.module(**rows).last_hidden_state.float(), rows["attention_mask"]
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            for i, vector in zip(group, (states[:, 0] if self.pooling == "first" else mean).cpu(), strict=True):
                vectors[i] = vector
        return torch.stack(vectors) if vectors else torch.empty(0, 0)

    def _ids(self, texts: list[str], padding: bool = False, **options: Any) -> Any:
        return self.tokenizer(texts, truncation=True, max_length=self.length, padding=padding, **options)


def is_encoder(folder: str | Path) -> bool:
    """Return whether a folder's config names an architecture without a language-model head."""
    path = Path(folder)
    if not (path / "config.json").is_file() or (path / places.FILE).exists():
        return False
    names = files.read_json(path / "config.json").get("architectures") or ()
    return bool(names) and not any(str(name).endswith(WRITERS) for name in names)


def open_encoder(folder: str | Path, device: str | None = None) -> Encoder:
    """Load the encoder in a folder.

    Raises:
        UserError: it cannot be loaded, weights are missing, or its pooling is not supported.
    """
    path = Path(folder)
    try:
        module, info = opening.open_pretrained("AutoModel", folder)
        tokenizer = opening.open_pretrained("AutoTokenizer", folder)
    except Exception as error:  # a config is untrusted, and transformers may fail on it anywhere
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: cannot be loaded: {reason}") from None
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"{folder}: {len(missing)} weights are missing, {missing[0]} first: the checkpoint is incomplete"
        )
    flags, limits = (_read_config(path / name) for name in ("1_Pooling/config.json", "sentence_bert_config.json"))
    modes = [name for name, on in flags.items() if name.startswith("pooling_mode_") and on is True]
    if any(name not in POOLING for name in modes) or len(modes) > 1:
        raise UserError(f"{folder}: its vectors are pooled by {', '.join(modes)}; supported are {', '.join(POOLING)}")
    limit = limits.get("max_seq_length") or LONGEST
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"{folder}: sentence_bert_config.json: max_seq_length {limit!r} is not a number of tokens")
    length = min(limit, getattr(module.config, "max_position_embeddings", LONGEST))
    pooling = POOLING[modes[0]] if modes else "mean"
    return Encoder(module.to(load.device_of(device)).eval(), tokenizer, pooling, length)


def _read_config(path: Path) -> dict[str, Any]:
    config = files.read_json(path) if path.is_file() else {}
    return config if isinstance(config, dict) else {}

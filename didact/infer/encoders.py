"""Encoders of texts (BERT's kind, as sentence-transformers saves them): folders of models that write nothing.

Pooling and length are read from the folder: mean or first token (`1_Pooling/config.json`; the mean where it is silent),
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
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of the names of what writes
POOLING: Mapping[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
LONGEST = 512  # tokens, where neither folder nor configuration says


@dataclass(frozen=True)
class Encoder:
    """A module with its tokenizer, how the states of a text become one vector, and how many tokens are read."""

    module: Any
    tokenizer: Any
    pooling: Pooling = "mean"
    length: int = LONGEST

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_tokens: int = 8192) -> Tensor:
        """One vector a text, `(texts, d)` in float32 on the CPU; texts are cut on the right."""
        texts, out = list(texts), [torch.empty(0)] * len(texts)
        lengths = [len(ids) for ids in self._ids(texts)["input_ids"]] if texts else []
        for group in by_length(lengths, batch_tokens):
            rows = self._ids([texts[i] for i in group], padding=True, return_tensors="pt").to(self.module.device)
            states, there = self.module(**rows).last_hidden_state.float(), rows["attention_mask"]
            mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
            for i, vector in zip(group, (states[:, 0] if self.pooling == "first" else mean).cpu(), strict=True):
                out[i] = vector
        return torch.stack(out) if out else torch.empty(0, 0)

    def _ids(self, texts: list[str], padding: bool = False, **how: Any) -> Any:
        return self.tokenizer(texts, truncation=True, max_length=self.length, padding=padding, **how)


def is_encoder(folder: str | Path) -> bool:
    """Whether a folder says of its model that it writes nothing: a type of module without a head that does."""
    where = Path(folder)
    if not (where / "config.json").is_file() or (where / places.FILE).exists():
        return False
    names = files.read_json(where / "config.json").get("architectures") or ()
    return bool(names) and not any(str(name).endswith(WRITERS) for name in names)


def opened(folder: str | Path, device: str | None = None) -> Encoder:
    """The encoder of a folder.

    Raises:
        UserError: it cannot be loaded, weights are missing, or its vectors are pooled in a way that is not known here.
    """
    where = Path(folder)
    try:
        module, info = opening.opened("AutoModel", folder)
        tokenizer = opening.opened("AutoTokenizer", folder)
    except Exception as error:  # what a configuration says is a stranger's, and transformers trips over it anywhere
        raise UserError(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"{folder}: {len(missing)} weights are missing, {missing[0]} first: the checkpoint is incomplete"
        )
    said, told = (_told(where / name) for name in ("1_Pooling/config.json", "sentence_bert_config.json"))
    modes = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    if any(name not in POOLING for name in modes) or len(modes) > 1:
        raise UserError(f"{folder}: its vectors are pooled by {', '.join(modes)}; known are {', '.join(POOLING)}")
    most = min(told.get("max_seq_length") or LONGEST, getattr(module.config, "max_position_embeddings", LONGEST))
    pooling = POOLING[modes[0]] if modes else "mean"
    return Encoder(module.to(load.device_of(device)).eval(), tokenizer, pooling, most)


def _told(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}

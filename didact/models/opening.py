"""The one place where transformers opens a folder or hub id: never with the folder's own Python.

Left unset, `trust_remote_code` makes transformers ask on the terminal, and a stray `y` on standard input runs the code.
Whatever opens a configuration, tokenizer or model goes through here; the linter bans transformers' own names elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Part = Literal[
    "AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification"
]


def opened(part: Part, path: str | Path, **more: Any) -> Any:
    """`transformers.<part>.from_pretrained(path)` with remote code off; models from safetensors only.

    Raises:
        OSError: there is nothing to open.
        ValueError: it would need code of its own, or is none of this kind.
    """
    import transformers

    if part.startswith("AutoModel"):
        more |= {"use_safetensors": True}
    return getattr(transformers, part).from_pretrained(path, trust_remote_code=False, **more)


def built(part: Part, config: Any) -> Any:
    """A new module of a configuration, or of its fields with their `model_type`.

    Raises:
        ValueError: transformers has none of this kind for the type.
    """
    import transformers

    if isinstance(config, Mapping):
        config = transformers.AutoConfig.for_model(**config)
    return getattr(transformers, part).from_config(config, trust_remote_code=False)

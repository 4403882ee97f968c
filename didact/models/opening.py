"""The only place where transformers opens a folder or hub id: never with the Python code in it.

Left unset, `trust_remote_code` makes transformers ask on the terminal, and a stray `y` on standard input runs the code.
All configurations, tokenizers and models are opened here; the linter bans transformers' own functions elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from didact.models import places

Part = Literal[
    "AutoConfig",
    "AutoTokenizer",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
]


def open_pretrained(part: Part, path: str | Path, **kwargs: Any) -> Any:
    """`transformers.<part>.from_pretrained(path)` with remote code off and nothing logged; weights from safetensors
    or a GGUF file only.

    A model comes as `(module, loading information)`.

    Raises:
        OSError: there is nothing to open.
        ValueError: it needs remote code, is of another kind, or its weights do not have the configured shapes.
    """
    import transformers

    if gguf := places.is_gguf(path):
        path, kwargs = Path(path).parent, kwargs | {"gguf_file": Path(path).name}

    def load(**kwargs: Any) -> Any:
        return getattr(transformers, part).from_pretrained(path, trust_remote_code=False, **kwargs)

    # Its log messages contain names and escape sequences from the file.
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        if not part.startswith("AutoModel"):
            return load(**kwargs)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        module, info = load(use_safetensors=None if gguf else True, **kwargs)
    finally:
        transformers.utils.logging.set_verbosity(before)
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} weights do not have the shapes of its configuration, {name} first: "
            f"{tuple(found)} instead of {tuple(expected)}"
        )
    return module, info


def quantisation(kind: str, dtype: Any, device: Any) -> dict[str, Any]:
    """Return the arguments of `open_pretrained` for weights in `nf4` or `int8` that compute in `dtype`."""
    import logging

    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs its data types at every product
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    options: Any = nf4 if kind == "nf4" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": device}}


def build_from_config(part: Part, config: Any) -> Any:
    """Build a new module from a configuration, or from its fields with their `model_type`.

    Raises:
        ValueError: transformers has no model of this kind for the type.
    """
    import transformers

    if isinstance(config, Mapping):
        config = transformers.AutoConfig.for_model(**config)
    return getattr(transformers, part).from_config(config, trust_remote_code=False)

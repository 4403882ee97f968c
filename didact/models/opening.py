"""The one place where transformers opens a folder or hub id: never with the folder's own Python.

Left unset, `trust_remote_code` makes transformers ask on the terminal, and a stray `y` on standard input runs the code.
Whatever opens a configuration, tokenizer or model goes through here; the linter bans transformers' own names elsewhere.
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


def opened(part: Part, path: str | Path, **more: Any) -> Any:
    """`transformers.<part>.from_pretrained(path)` with remote code off and nothing logged; weights from safetensors
    or a GGUF file only.

    A model comes with its loading information.

    Raises:
        OSError: there is nothing to open.
        ValueError: it would need code of its own, is none of this kind, or has weights of other sizes.
    """
    import transformers

    if gguf := places.is_gguf(path):
        path, more = Path(path).parent, more | {"gguf_file": Path(path).name}

    def load(**more: Any) -> Any:
        return getattr(transformers, part).from_pretrained(path, trust_remote_code=False, **more)

    # Its reports hold names out of the file, and escapes.
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        if not part.startswith("AutoModel"):
            return load(**more)
        more |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        module, info = load(use_safetensors=None if gguf else True, **more)
    finally:
        transformers.utils.logging.set_verbosity(before)
    if odd := sorted(info["mismatched_keys"]):
        name, held, wanted = odd[0]
        raise ValueError(
            f"{len(odd)} weights have another size than its configuration gives, {name} first: "
            f"{tuple(held)} for {tuple(wanted)}"
        )
    return module, info


def quantisation(kind: str, dtype: Any, device: Any) -> dict[str, Any]:
    """What `opened` needs for weights in `nf4` or `int8`, computed with in `dtype`."""
    import logging

    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its own types at every product
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    told: Any = four if kind == "nf4" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**told), "device_map": {"": device}}


def built(part: Part, config: Any) -> Any:
    """A new module of a configuration, or of its fields with their `model_type`.

    Raises:
        ValueError: transformers has none of this kind for the type.
    """
    import transformers

    if isinstance(config, Mapping):
        config = transformers.AutoConfig.for_model(**config)
    return getattr(transformers, part).from_config(config, trust_remote_code=False)

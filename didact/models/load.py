"""Load a model folder or hub id."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from didact import files
from didact.data import encode
from didact.data.templates import Condition
from didact.models import adapters, cache, logit_ensemble, modules, opening, places, spread
from didact.models.model import CONDITION, QUANTIZED, Kind, Model
from didact.parallel import launch, parted, shards
from didact.types import UserError

DTYPES = {name: getattr(torch, name) for name in places.DTYPES}
PARTS: dict[Kind, opening.Part] = {
    "causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM", "masked": "AutoModelForMaskedLM"
}  # fmt: skip
SIZES = re.compile("num_|n_|max_position|(hidden|vocab|intermediate)_size|d_model")  # fields that may not be negative


def load(
    path: str | Path, device: str | None = None, dtype: str = "float32", quantize: places.Quantize | None = None,
    parallel: str = "ddp",
) -> Model:  # fmt: skip
    """Load a transformers, PEFT or didact folder, a hub id or a GGUF file: safetensors only, no remote code.

    Args:
        path: folder, hub id or FILE.gguf, whose weights are dequantised to `dtype`.
        device: `cpu`, `cuda`, ...; by default the accelerator if there is one.
        dtype: float32, float64, bfloat16 or float16.
        quantize: hold the matrices of its layers in nf4 or int8, on which an adapter can be trained. An adapter that
            was trained on such weights is loaded on them again.
        parallel: with `fsdp2` or `hsdp`, as in `Fit`, a transformers model's layers are sharded over the processes from
            the start, and none holds it whole; all must then run the same calls on it, in the same order.

    Raises:
        UserError: no such folder, no configuration, no tokenizer, only pickled weights, or damaged ones.
    """
    model = _load(path, device, dtype, quantize, parallel)
    check_whole(path)
    return model


def check_whole(folder: str | Path) -> None:
    """Refuse a folder that didact saved and whose weights have changed since.

    Raises:
        UserError: a file differs from its SHA-256.
    """
    if damage := files.damage(folder, ".safetensors"):
        raise UserError(f"{folder}: damaged: {damage}; save it again, or remove .didact.json if you changed it")


def _load(path: str | Path, device: str | None, dtype: str, quantize: places.Quantize | None, parallel: str) -> Model:
    from transformers.utils import logging

    logging.disable_progress_bar()

    places.check_dtype(dtype)
    places.check_quantize(quantize, path)
    places.check(path)
    folder = Path(path)
    if (folder / places.FILE).is_file():
        if "ensemble" in files.read_json(folder / places.FILE):
            return logit_ensemble.load(folder, lambda member: load(member, device, dtype))
        return modules.load_module(folder)
    if (folder / "adapter_config.json").exists():
        return _load_adapter(folder, device, dtype, quantize, parallel)
    try:
        config = opening.open_pretrained("AutoConfig", path)
    except Exception as error:  # an invalid configuration can fail anywhere in transformers
        raise UserError(
            f"{path}: neither a model folder nor a hub id that can be reached: {_first_line(error)}"
        ) from None
    if any(str(name).endswith("ForSequenceClassification") for name in _architectures(config)):
        raise UserError(_reward_model_message(path))
    if field := next((k for k, v in vars(config).items() if SIZES.match(k) and type(v) is int and v < 0), None):
        raise UserError(f"{path}: cannot be loaded: {field} of its configuration is negative")
    dropouts = {
        k: v for k, v in vars(config).items() if k.endswith(("dropout", "pdrop")) and isinstance(v, int | float)
    }
    if field := next((k for k, v in dropouts.items() if not 0 <= v <= 1), None):
        raise UserError(
            f"{path}: cannot be loaded: {field} of its configuration is {dropouts[field]}, which is not a probability"
        )
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    masked = any(str(name).endswith("ForMaskedLM") for name in _architectures(config))
    kind: Kind = "seq2seq" if seq2seq else "masked" if masked else "causal"
    auto = PARTS[kind]
    try:
        _check_size(folder, auto, config)
        options = opening.quantisation(quantize, DTYPES[dtype], device_of(device)) if quantize else {}
        sharded = parallel in ("fsdp2", "hsdp") and launch.world() > 1 and not quantize and not places.is_gguf(path)
        if sharded:
            module, info = spread.opened(auto, path, config, DTYPES[dtype], device_of(device), parallel)
        else:
            module, info = opening.open_pretrained(auto, path, dtype=DTYPES[dtype], **options)
        tokenizer = opening.open_pretrained("AutoTokenizer", path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {_first_line(error)}") from None
    if missing := sorted(info["missing_keys"]):  # transformers would initialise them at random
        raise UserError(f"{path}: {len(missing)} weights are missing, {missing[0]} first: the checkpoint is incomplete")
    module = module.eval() if quantize or sharded else module.to(device_of(device)).eval()
    for part in module.modules() if quantize else ():
        if hasattr(part, "support_avx512bf16_for_cpu"):  # else evaluation packs weights, which stops gradients
            part.support_avx512bf16_for_cpu = False
    model = Model(module, tokenizer, kind, str(path), _condition(folder), loaded_from=str(path))
    if places.is_gguf(path):
        adapters.placeless(model)  # peft cannot open such a file: an adapter on it is saved merged
        module.hf_quantizer = None  # its weights are dequantised, and are saved like any others
        del module.config.quantization_config
    _check_finite(model, str(path))
    for line in _warnings_of(model):
        print(f"{path}: {line}", file=sys.stderr)
    return model


def cached_model(kind: str, make: Callable[[], Model], *parts: str) -> Model:
    """Return the model that `make` builds, cached on disk by the hash of `parts`; print a hit."""
    place = cache.place(kind, *parts)
    if place is None:
        return make()
    if os.path.lexists(place):
        try:
            if not files.mark(place) or (damage := files.damage(place)):
                raise UserError(damage if files.mark(place) else "its .didact.json is missing or damaged")
            model = load(place, device="cpu")
        except (UserError, OSError) as error:
            cache.warn(f"{place}: the cache entry is damaged ({error}); building it again")
            _remove(place)
        else:
            print(f"{kind} model: from the cache {place}", file=sys.stderr)
            return model
    model = make()
    try:
        model.save(place)
    except (UserError, OSError, SafetensorError) as error:
        cache.warn(f"{place}: not written to the cache: {_first_line(error)}")
    return model


def _remove(place: Path) -> None:
    """Remove whatever is at a path of the cache, which is never a user's own."""
    with contextlib.suppress(OSError):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def _load_adapter(
    folder: Path, device: str | None, dtype: str, quantize: places.Quantize | None, parallel: str
) -> Model:
    """Load an adapter on its start model (merged if that is an adapter too), with its own tokenizer if it has one."""
    if places.adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise UserError(_reward_model_message(folder))
    base = places.base_of(folder)
    if (folder / QUANTIZED).exists():
        quantize = quantize or files.read_json(folder / QUANTIZED)["quantize"]
    model = adapters.merged(load(base, device, dtype, quantize, parallel))
    module = put_on(model.module, folder, base)
    adapted = Model(module, tokenizer_of(folder) or model.processor, model.kind, base, _condition(folder), str(folder))
    _check_finite(adapted, str(folder))
    return adapted


def put_on(module: Any, folder: Path, base: str) -> Any:
    """Put the adapter of a folder on its start model's module, whose embeddings are resized to the adapter's.

    Raises:
        UserError: it does not fit, or weights of it are missing.
    """
    from peft import PeftModel

    try:
        if (rows := _vocabulary_size(folder, module)) not in (None, module.get_input_embeddings().weight.shape[0]):
            module.resize_token_embeddings(rows, mean_resizing=False)
        with warnings.catch_warnings(), parted.hidden(module):
            warnings.simplefilter("ignore", FutureWarning)  # peft's own, of transformers
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped: Any = PeftModel.from_pretrained(module, str(folder))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise UserError(f"{folder}: the adapter cannot be put on {base}: {_first_line(error)}") from None
    # The path it was found at: adapters trained further from this one name it, wherever they are saved.
    wrapped.active_peft_config.base_model_name_or_path = base
    return wrapped.eval()


def tokenizer_of(adapter: Path) -> Any:
    """Load an adapter folder's own tokenizer; None if it has none."""
    return (
        opening.open_pretrained("AutoTokenizer", adapter)
        if places.TOKENIZERS & {p.name for p in adapter.iterdir()}
        else None
    )


def _vocabulary_size(folder: Path, module: Any) -> int | None:
    """Rows of the embeddings saved in an adapter's folder; None if it has none."""
    from safetensors import safe_open

    layers = [layer for layer in (module.get_input_embeddings(), module.get_output_embeddings()) if layer is not None]
    names = {name for name, part in module.named_modules() if any(part is layer for layer in layers)}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            path, _, last = key.removeprefix("base_model.model.").rpartition(".")
            shape = file.get_slice(key).get_shape()
            if last == "weight" and path.removesuffix(".base_layer").removesuffix(".modules_to_save") in names:
                return int(shape[0])
            if last == "lora_embedding_A" and path in names:
                return int(shape[1])
    return None


def _condition(folder: Path) -> Condition | None:
    """The `Condition` saved with a model, if any."""
    if not (folder / CONDITION).exists():
        return None
    fields = files.read_json(folder / CONDITION)
    return Condition(**fields | {"banned": tuple(fields["banned"])})


def _reward_model_message(path: str | Path) -> str:
    return f"{path}: a reward model, which generates no text; use it as a judge: didact compare --judge {path}"


def _architectures(config: Any) -> list[Any]:
    names = getattr(config, "architectures", None)
    return names if isinstance(names, list) else []


def _check_size(folder: Path, auto: opening.Part, config: Any) -> None:
    """Check that the files hold about as many weights as the configuration describes, before memory is allocated."""
    from safetensors import safe_open

    stored = 0
    for path in folder.glob("*.safetensors") if folder.is_dir() else ():
        with safe_open(path, "pt") as file:
            stored += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118  (no mapping)
    if stored and not getattr(config, "quantization_config", None):  # else the weights are packed
        with torch.device("meta"):
            described = sum(p.numel() for p in opening.build_from_config(auto, config).parameters())
        if described > 2 * stored:
            raise UserError(
                f"{folder}: its configuration describes {described:,} weights, its files hold {stored:,}: "
                "the checkpoint is incomplete"
            )


def _check_finite(model: Model, path: str) -> None:
    for name, p in model.module.named_parameters():
        if not bool(torch.isfinite(shards.local(p)).all()):
            raise UserError(f"{path}: weight '{name}' holds NaN or infinities: the checkpoint is damaged")


def _warnings_of(model: Model) -> Iterator[str]:
    """Yield warnings about a model that can be used, with restrictions.

    Raises:
        UserError: the tokens that begin or end every text have no embedding.
    """
    tokenizer, count = model.tokenizer, model.embedded
    for token in (tokenizer.bos_token_id, encode.answer_end(tokenizer)):
        if token is not None and count is not None and token >= count:
            raise UserError(
                f"{model.base}: the tokenizer's {tokenizer.convert_ids_to_tokens(token)} has the id {token} and the "
                f"embedding {count} rows: copy the model's own tokenizer into the folder, or resize the embedding"
            )
    if count is not None and len(tokenizer) > count:
        yield f"the tokenizer has {len(tokenizer)} ids and the embedding {count} rows: texts with others are refused"
    if encode.answer_end(tokenizer) is None:
        yield "the tokenizer has no end token: answers are trained without one and generated to the maximum length"
    if model.known_context is None:
        yield (
            f"neither configuration nor tokenizer names a context length: {model.context} tokens are assumed "
            "(to change that, set model_max_length in its tokenizer_config.json)"
        )


def device_of(name: str | None) -> torch.device:
    """Return the device of this name, by default the accelerator if there is one; each of several processes its own.

    Raises:
        UserError: it cannot be used.
    """
    try:
        if name is not None:
            device = torch.device(name)
        elif torch.accelerator.is_available():
            device = torch.accelerator.current_accelerator() or torch.device("cpu")
        else:
            device = torch.device("cpu")
        if device.type != "cpu" and device.index is None and launch.world() > 1:
            device = torch.device(*launch.device(device.type, torch.accelerator.device_count()))
            torch.accelerator.set_device_index(device)  # before any allocation: else all processes would use device 0
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used: {_first_line(error)}") from None
    return device


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Paths of models: what a model folder must hold, checked before anything is opened. Imports no torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal, get_args

from didact import files
from didact.types import UserError

DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu|xla|mtia|hip|ipu|maia|meta|privateuseone)(:\d+)?")
DTYPES = ("float32", "float64", "bfloat16", "float16")
Quantize = Literal["nf4", "int8"]
QUANTIZE = get_args(Quantize)
FILE = "didact.json"  # in the folder of a module that transformers cannot express
TOKENIZERS = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model"}


def check_dtype(name: str) -> None:
    """Refuse a name that is no dtype of weights.

    Raises:
        UserError: it is unknown.
    """
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}': use one of {', '.join(DTYPES)}")


def is_gguf(path: str | Path) -> bool:
    """Whether this is a llama.cpp file, which holds configuration, tokenizer and (quantised) weights."""
    return str(path).endswith(".gguf") and Path(path).is_file()


def check_device(name: str | None) -> None:
    """Refuse an impossible device name; whether the device exists is only known when it is used.

    Raises:
        UserError: no device can have this name.
    """
    if name is not None and not DEVICE.fullmatch(name):
        raise UserError(f"device '{name}' cannot be used: give a name such as cpu, cuda, cuda:1, mps or xpu")


def check_quantize(name: str | None, path: str | Path) -> None:
    """Refuse a quantisation that these weights cannot be loaded in.

    Raises:
        UserError: it is unknown, the weights are in a GGUF file, or bitsandbytes is not installed.
    """
    if name is None:
        return
    if is_gguf(path):
        raise UserError(f"{path}: GGUF weights are loaded unquantised: save it as a folder and quantise that")
    if name not in QUANTIZE:
        raise UserError(f"quantize = {name}: use one of {', '.join(QUANTIZE)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantize needs bitsandbytes: pip install 'didact[quantize]'")


def check(path: str | Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse what cannot be a model: a path that does not exist, a folder that lacks a part. Hub ids pass.

    Args:
        path: folder, hub id or GGUF file.
        above: adapters whose start model it is.

    Raises:
        UserError: it is a file, or a folder without configuration, weights or tokenizer, or with pickled weights only,
            or an adapter whose start model is such, or in a cycle of adapters.
    """
    folder = Path(path)
    if is_gguf(path):
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{path}: a GGUF file needs the package gguf: pip install didact[gguf]")
        return
    if not folder.is_dir():
        if folder.exists() or _is_path(path):
            raise UserError(f"{path}: not a model folder")
        return
    if (folder / FILE).is_file():
        return
    names = {p.name for p in folder.iterdir()}
    if special := next((p for p in folder.iterdir() if p.exists() and not (p.is_file() or p.is_dir())), None):
        raise UserError(f"{special}: neither file nor folder: reading a pipe would hang; remove it")
    if not names & {"config.json", "adapter_config.json"}:
        hint = " (its model is in the folder 'model' inside)" if "model" in names else ""
        raise UserError(f"{folder}: no config.json: not a model folder{hint}")
    if not any(n.endswith(".safetensors") for n in names):
        if any(n.endswith((".bin", ".pt", ".pth", ".ckpt")) for n in names):
            raise UserError(
                f"{folder}: only pickled weights, which can run code and are not loaded; convert them to safetensors"
            )
        raise UserError(f"{folder}: no weights (*.safetensors)")
    if "adapter_config.json" not in names and not names & TOKENIZERS:
        raise UserError(
            f"{folder}: no tokenizer; copy tokenizer.json and tokenizer_config.json of the start model into it"
        )
    if "adapter_config.json" in names and adapter_config(folder).get("task_type") != "SEQ_CLS":
        if folder.resolve() in above:
            raise UserError(f"{above[0]}: an adapter that is, through its start models, based on itself")
        check(base_of(folder), (*above, folder.resolve()))


def leading(folder: Path) -> Path:
    """Return the folder of an ensemble's base model, whose tokenizer it has; of other models the folder itself."""
    fields = files.read_json(folder / FILE) if (folder / FILE).is_file() else {}
    return leading(Path(fields["base"] or folder / "base")) if "ensemble" in fields else folder


def base_of(adapter: Path) -> str:
    """Find the start model of an adapter's folder: at the path it names, beside it or its run, or a hub id.

    Raises:
        UserError: it names none, or a path that does not exist.
    """
    name = adapter_config(adapter).get("base_model_name_or_path")
    if not name:
        raise UserError(
            f"{adapter}/adapter_config.json: field 'base_model_name_or_path' is empty; fill in the start model's folder"
        )
    siblings = [above / Path(name).name for above in adapter.absolute().parents[:2]]  # a run keeps it in `model`
    candidates = (Path(name), adapter / name, adapter.parent / name, *siblings)
    base = next((str(place) for place in candidates if _is_other_model(place, adapter)), None)
    if base is None and _is_path(name) and not Path(name).exists():
        raise UserError(
            f"{adapter}: its start model {name} is not there: put it beside the adapter, or name its folder in the "
            "field 'base_model_name_or_path' of adapter_config.json"
        )
    return base or str(name)


def adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration in an adapter's folder; empty if there is none."""
    path = folder / "adapter_config.json"
    try:
        return dict(files.read_json(path)) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _is_path(name: str | Path) -> bool:
    """Whether a name cannot be a hub id."""
    return str(name).startswith((".", "/", "~")) or str(name).count("/") > 1


def _is_other_model(place: Path, adapter: Path) -> bool:
    is_model = any((place / name).exists() for name in ("config.json", "adapter_config.json", FILE))
    return is_model and place.resolve() != adapter.resolve()

"""Loading models for a verb: all that it loads have the same length limit, truncation and chat template."""

from __future__ import annotations

from pathlib import Path

from didact.data import chat, encode
from didact.models import load
from didact.models.model import Model
from didact.models.places import Quantize
from didact.requests import Common


def model(place: str | Path, request: Common, quantize: Quantize | None = None, parallel: str = "ddp") -> Model:
    """Load a folder, hub id or GGUF file, with the requested device and data type.

    Args:
        place: whatever `models.load` takes.
        request: the verb's request.
        quantize: quantization, for the model to train only.
        parallel: how it is distributed over processes.
    """
    return limited(load.load(place, request.device, request.dtype, quantize, parallel), request)


def limited(model: Model, request: Common) -> Model:
    """Give a loaded model the requested maximum length, truncation side and chat template; return it."""
    if model.processor is not None:
        encode.limit(model.processor, request.max_length, request.truncate)
        if request.chat_template:
            chat.override(model.processor, request.chat_template)
    return model

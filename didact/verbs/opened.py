"""Models as a verb was asked to have them: every one that it opens has the same limits and the same chat template."""

from __future__ import annotations

from pathlib import Path

from didact.data import chat, encode
from didact.models import load
from didact.models.model import Model
from didact.models.places import Quantize
from didact.requests import Common


def model(place: str | Path, asked: Common, quantize: Quantize | None = None, parallel: str = "ddp") -> Model:
    """A folder, hub id or GGUF file, on the device and in the numbers that were asked for.

    Args:
        place: what `models.load` takes.
        asked: what the verb was asked for.
        quantize: only the model that is taught is held in what was asked.
        parallel: where it lies.
    """
    return limited(load.load(place, asked.device, asked.dtype, quantize, parallel), asked)


def limited(found: Model, asked: Common) -> Model:
    """An open model with the length, the side that is cut and the chat template that were asked for."""
    if found.processor is not None:
        encode.limit(found.processor, asked.max_length, asked.truncate)
        if asked.chat_template:
            chat.override(found.processor, asked.chat_template)
    return found

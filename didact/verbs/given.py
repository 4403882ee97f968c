"""Arms of a comparison that are models, scored without training: model folders, hub ids, servers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import compare
from didact.evaluate import protocols
from didact.infer import lm, remote
from didact.models import opening, places
from didact.models.model import Model
from didact.requests import Common
from didact.types import LM, Record, UserError
from didact.verbs import opened
from didact.verbs.early import is_model as is_model
from didact.verbs.early import place as place

SAMPLE = 32  # texts that two tokenizers must encode alike to count as the same


def arms(names: Sequence[str], request: Common) -> dict[str, compare.FixedModel]:
    """Return the arms among `names` that are models; each is opened when its turn comes, one is held at a time.

    Raises:
        UserError: an invalid address, or no such folder.
    """
    load_last = functools.lru_cache(maxsize=1)(lambda place: opened.model(place, request))
    out = {}
    for name in filter(is_model, names):
        if remote.is_address(name):
            remote.check_address(name)
            out[name] = compare.FixedModel(name=name, open=functools.cache(functools.partial(remote.connect, name)))
        else:
            places.check(place(name))
            if not Path(place(name)).exists():
                _check_hub(name)
            out[name] = compare.FixedModel(name=name, open=functools.partial(load_last, place(name)))
    return out


def _check_hub(name: str) -> None:
    """Refuse a hub id that cannot be reached, before any model is scored.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        opening.open_pretrained("AutoConfig", name)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: neither a model folder nor a hub id that can be reached: {reason}") from None


def alike(arms: Sequence[compare.FixedModel], model: Model | None, records: Mapping[str, Sequence[Record]]) -> bool:
    """Whether all are local and encode these records' texts to the same tokens as the model.

    Raises:
        UserError: a tokenizer cannot be opened.
    """
    local = [arm.name for arm in arms if not remote.is_address(arm.name)]
    if model is None or len(local) < len(arms):
        return False
    texts = [str(v) for rows in records.values() for r in rows[:SAMPLE] for v in _texts(r)]
    return all(_tokenized(name, texts) == [model.tokenizer(t)["input_ids"] for t in texts] for name in local)


def check(arms: Sequence[compare.FixedModel], protocol: str) -> None:
    """Refuse models that a protocol cannot compare by text, before any work.

    Raises:
        UserError: the protocol has no measure of text, or a server lacks a capability it needs.
    """
    definition = protocols.by_name(protocol)
    for arm in arms:
        if definition.text_primary is None:
            reason = "a server" if remote.is_address(arm.name) else "its tokenizer differs from the first model's"
            raise UserError(f"{arm.name}: {reason}, and protocol '{protocol}' has no measure that compares such models")
        if remote.is_address(arm.name):
            served: Any = arm.open()
            lm.need(served, definition.lm_capability, by=f"protocol '{protocol}'")


def start(arms: Sequence[compare.FixedModel]) -> Model | None:
    """Return the first local model, the start model if none is given; None if all are servers."""
    first = next((arm for arm in arms if not remote.is_address(arm.name)), None)
    model: Model | LM | None = first.open() if first else None
    return model if isinstance(model, Model) else None


def _texts(record: Record) -> list[str]:
    return [v for name in record.__slots__ if isinstance(v := getattr(record, name), str)]


def _tokenized(name: str, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts with the tokenizer of a model folder."""
    folder = places.leading(Path(place(name)))
    if (folder / "adapter_config.json").exists() and not (folder / "tokenizer_config.json").exists():
        folder = Path(places.base_of(folder))
    try:
        tokenizer = opening.open_pretrained("AutoTokenizer", folder)
    except Exception as error:
        raise UserError(f"{name}: its tokenizer cannot be opened: {str(error).splitlines()[0]}") from None
    return [tokenizer(t)["input_ids"] for t in texts]

"""Arms of a comparison that are scored as they are: model folders, hub ids, servers."""

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
from didact.verbs.early import named as named
from didact.verbs.early import place as place

SAMPLE = 32  # texts that two tokenizers must cut alike to be one


def arms(names: Sequence[str], asked: Common) -> dict[str, compare.Given]:
    """Those of the names that are models, as arms: each is opened when its turn comes, and one is held at a time.

    Raises:
        UserError: a wrong address, or no such folder.
    """
    last = functools.lru_cache(maxsize=1)(lambda place: opened.model(place, asked))
    out = {}
    for name in filter(named, names):
        if remote.is_address(name):
            remote.check_address(name)
            out[name] = compare.Given(name=name, open=functools.cache(functools.partial(remote.connect, name)))
        else:
            places.check(place(name))
            if not Path(place(name)).exists():
                _check_hub(name)
            out[name] = compare.Given(name=name, open=functools.partial(last, place(name)))
    return out


def _check_hub(name: str) -> None:
    """Refuse a hub id that cannot be reached, before the first of the other models is scored.

    Raises:
        UserError: it cannot.
    """
    try:
        opening.opened("AutoConfig", name)
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: neither a model folder nor a hub id that can be reached: {why}") from None


def alike(arms: Sequence[compare.Given], model: Model | None, records: Mapping[str, Sequence[Record]]) -> bool:
    """Whether all are local and cut these records' texts into the tokens that the model does.

    Raises:
        UserError: a tokenizer that cannot be opened.
    """
    local = [given.name for given in arms if not remote.is_address(given.name)]
    if model is None or len(local) < len(arms):
        return False
    texts = [str(v) for rows in records.values() for r in rows[:SAMPLE] for v in _texts(r)]
    return all(_cuts(name, texts) == [model.tokenizer(t)["input_ids"] for t in texts] for name in local)


def check(arms: Sequence[compare.Given], protocol: str) -> None:
    """Refuse models that a protocol cannot compare by text, in a line, before any work.

    Raises:
        UserError: the protocol has no measure of text, or a server lacks what it takes.
    """
    used = protocols.named(protocol)
    for given in arms:
        if used.text_primary is None:
            why = "a server" if remote.is_address(given.name) else "other tokens than the first model's"
            raise UserError(f"{given.name}: {why}, and '{protocol}' has no measure that such models have in common")
        if remote.is_address(given.name):
            served: Any = given.open()
            lm.need(served, used.asks, by=f"protocol '{protocol}'")


def start(arms: Sequence[compare.Given]) -> Model | None:
    """The first local model, which stands for the start where none is named; None among servers alone."""
    first = next((given for given in arms if not remote.is_address(given.name)), None)
    opened: Model | LM | None = first.open() if first else None
    return opened if isinstance(opened, Model) else None


def _texts(record: Record) -> list[str]:
    return [v for name in record.__slots__ if isinstance(v := getattr(record, name), str)]


def _cuts(name: str, texts: Sequence[str]) -> list[list[int]]:
    """Texts in the tokens of a folder's tokenizer."""
    folder = places.leading(Path(place(name)))
    if (folder / "adapter_config.json").exists() and not (folder / "tokenizer_config.json").exists():
        folder = Path(places.base_of(folder))
    try:
        tokenizer = opening.opened("AutoTokenizer", folder)
    except Exception as error:
        raise UserError(f"{name}: its tokenizer cannot be opened: {str(error).splitlines()[0]}") from None
    return [tokenizer(t)["input_ids"] for t in texts]

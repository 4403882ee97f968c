"""Inputs of a command: it never writes into them, and their hashes tell results of different inputs apart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from didact import files, folders, registry
from didact.infer import addresses
from didact.models import places
from didact.types import UserError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


Named = Iterable[tuple[str, Any]]
"""Options with their values; values that name no file, folder or code are skipped."""


def check_out(out: str, options: Named) -> None:
    """Refuse an `--out` that is, lies in or contains an input, or the target of a link in one.

    Raises:
        UserError: it does.
    """
    paths = [(name, place) for name, text in _texts(options) for place in _paths(text)]
    links = [(n, p) for n, place in paths if place.is_dir() for p in place.iterdir() if p.is_symlink()]
    folders.check_separate(out, paths + links)


def contents(options: Named) -> dict[str, dict[str, str]]:
    """Return `{option: {"path", "sha256"}}` of the models, files and code named that are on this machine."""
    out = {}
    for name, text in _texts(options):
        if paths := _paths(text):
            try:
                digest = hashlib.sha256("".join(map(files.digest, paths)).encode()).hexdigest()
            except OSError as error:
                raise UserError(f"{name} {text}: cannot be read: {error.strerror}") from None
            out[name] = {"path": text, "sha256": digest}
    return out


def changed(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the first input that changed; None if none did."""
    return next((f"{k} {new[k]['path']}" for k, v in old.items() if k in new and new[k]["sha256"] != v["sha256"]), None)


def of_options(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a method's options that name files, model folders or code; most text options do not."""
    return [
        (name, text)
        for name, text in _texts((f"--{name}", value) for name, value in options.items())
        if registry.module_file(text) or any(registry.is_input(p) for p in (text, text.rpartition(":")[0]))
    ]


def _texts(options: Named) -> Iterator[tuple[str, str]]:
    """Yield the texts among values, also those in lists."""
    for name, value in options:
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from _texts((f"{name} {i}", item) for i, item in enumerate(value, 1))


def _paths(text: str) -> list[Path]:
    """Return the files and folders behind a text: a path, `FOLDER:SPLIT`, `module:function`, a cached hub id.

    For a model folder also that of its base model.
    """
    if addresses.is_address(text):
        return []
    if existing := next((p for p in (text, text.rpartition(":")[0]) if p and os.path.lexists(p)), None):
        return _with_bases([Path(existing)])
    if code := registry.module_file(text):
        return [code]
    if HUB_ID.fullmatch(text):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):
            config = try_to_load_from_cache(text, "config.json")
            return [Path(config).parent] if isinstance(config, str) else []
    return []


def _with_bases(chain: list[Path]) -> list[Path]:
    """Return a folder and the base models that its files name, and theirs in turn."""
    folder = chain[-1]
    with contextlib.suppress(UserError, OSError, AttributeError):  # reported when it is loaded
        if (folder / "adapter_config.json").exists():
            base = places.base_of(folder)
        elif (folder / places.FILE).exists():
            base = files.read_json(folder / places.FILE).get("base") or ""
        else:
            return chain
        if base and os.path.lexists(base) and Path(base) not in chain:
            return _with_bases([*chain, Path(base)])
    return chain

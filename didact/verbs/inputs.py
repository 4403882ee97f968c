"""What a command reads: so that it never writes there, and that a result is not taken for that of other inputs."""

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
"""Options with their values; values that name no file, folder or code are passed over."""


def check_apart(out: str, named: Named) -> None:
    """Refuse an `--out` that is, lies in or holds an input, or what a link in one leads to.

    Raises:
        UserError: it does.
    """
    found = [(name, place) for name, text in _texts(named) for place in _places(text)]
    links = [(n, p) for n, place in found if place.is_dir() for p in place.iterdir() if p.is_symlink()]
    folders.apart(out, found + links)


def contents(named: Named) -> dict[str, dict[str, str]]:
    """`{option: {"path", "sha256"}}` of the models, files and code that are named and lie on this machine."""
    out = {}
    for name, text in _texts(named):
        if places := _places(text):
            try:
                found = hashlib.sha256("".join(map(files.digest, places)).encode()).hexdigest()
            except OSError as error:
                raise UserError(f"{name} {text}: cannot be read: {error.strerror}") from None
            out[name] = {"path": text, "sha256": found}
    return out


def changed(was: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> str | None:
    """The first input that is another than it was."""
    return next((f"{k} {now[k]['path']}" for k, v in was.items() if k in now and now[k]["sha256"] != v["sha256"]), None)


def of_options(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A method's options that name files, model folders or code; most of their texts are just texts."""
    return [
        (name, text)
        for name, text in _texts((f"--{name}", value) for name, value in options.items())
        if registry.module_file(text) or any(registry.is_input(p) for p in (text, text.rpartition(":")[0]))
    ]


def _texts(named: Named) -> Iterator[tuple[str, str]]:
    """The texts among values, those in lists too."""
    for name, value in named:
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from _texts((f"{name} {i}", item) for i, item in enumerate(value, 1))


def _places(text: str) -> list[Path]:
    """The files and folders behind a text: a path, `FOLDER:SPLIT`, `module:function`, a hub id that is on this machine.

    Of a model folder also the one it rests on.
    """
    if addresses.is_address(text):
        return []
    if given := next((p for p in (text, text.rpartition(":")[0]) if p and os.path.lexists(p)), None):
        return _resting_on([Path(given)])
    if code := registry.module_file(text):
        return [code]
    if HUB_ID.fullmatch(text):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):
            config = try_to_load_from_cache(text, "config.json")
            return [Path(config).parent] if isinstance(config, str) else []
    return []


def _resting_on(found: list[Path]) -> list[Path]:
    """A folder and the model folders that its own files name as their base, theirs included."""
    folder = found[-1]
    with contextlib.suppress(UserError, OSError, AttributeError):  # told where it is loaded
        if (folder / "adapter_config.json").exists():
            base = places.base_of(folder)
        elif (folder / places.FILE).exists():
            base = files.read_json(folder / places.FILE).get("base") or ""
        else:
            return found
        if base and os.path.lexists(base) and Path(base) not in found:
            return _resting_on([*found, Path(base)])
    return found

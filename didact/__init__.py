"""didact: of the published ways to teach a language model, which one works on my model and my data?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "didact.models.load",
    "connect": "didact.infer.remote",
    "generating": "didact.infer.engines",
    "build": "didact.models.build",
    "Model": "didact.models.model",
    "read": "didact.data.read",
    "Fit": "didact.types",
    "fit_for": "didact.learn.rates",
    "Result": "didact.types",
}
_LAZY |= dict.fromkeys(
    (
        "Demo",
        "Text",
        "QA",
        "Example",
        "Preference",
        "Judged",
        "Scored",
        "Critique",
        "Trajectory",
        "Step",
        "Passage",
        "Trial",
    ),
    "didact.types",
)
_SUBMODULES = {path.stem for path in Path(__file__).parent.iterdir()}


class Family:
    """The methods of a family, each imported on first use: `didact.unlearning.npo`."""

    def __init__(self, functions: dict[str, str]) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        if name not in self._functions:
            raise AttributeError(f"no method '{name}' in this family: {', '.join(self._functions)}")
        return getattr(importlib.import_module(self._functions[name]), name)

    def __dir__(self) -> list[str]:
        return sorted(self._functions)

    def __repr__(self) -> str:
        return f"methods: {', '.join(self._functions)}"


def _families() -> dict[str, Family]:
    catalogue = importlib.import_module("didact.catalogue")
    functions: dict[str, dict[str, str]] = {}
    for entry in catalogue.read().values():
        functions.setdefault(entry["family"], {})[entry["function"]] = entry["module"]
    return {family: Family(methods) for family, methods in functions.items()}


def __getattr__(name: str) -> Any:
    """Load attributes on first use: `import didact` alone imports no torch and reads no file."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    # A submodule that is about to be imported is no family: looking for one here would be a circular import.
    if not name.startswith("_") and name not in _SUBMODULES and (family := _families().get(name)):
        globals()[name] = family
        return family
    raise AttributeError(f"module 'didact' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*_LAZY, *_families(), "__version__"])

"""didact: of the published ways to teach a language model, which one works on my model and my data?"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "didact.models.load",
    "connect": "didact.infer.remote",
    "build": "didact.models.build",
    "Model": "didact.models.model",
    "read": "didact.data.read",
    "Fit": "didact.types",
    "Result": "didact.types",
}
_FAMILIES = ("alignment", "baselines", "mechanisms", "prompting", "unlearning")

__all__ = [*_LAZY, *_FAMILIES]


def __getattr__(name: str) -> Any:
    """Load parts on first use: `import didact` alone imports no torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _FAMILIES:
        return importlib.import_module(f"didact.methods.{name}")
    raise AttributeError(f"module 'didact' has no attribute '{name}'")

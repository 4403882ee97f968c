"""The tier `real`: a claim on a well-known pre-trained model and on real data, neither of them part of didact.

Environment variables name both: `DIDACT_REAL_MODEL`, a folder of Gemma 3 270M (or of any causal model), and
`DIDACT_REAL_DATA`, a folder of data sets. `make real` fetches the model; the Makefile says where data are looked for.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from didact import files
from didact.models import load
from didact.models.model import Model
from didact.types import UserError

MODEL, DATA = "DIDACT_REAL_MODEL", "DIDACT_REAL_DATA"
PLACES = {MODEL: ".cache/gemma-3-270m", DATA: "../shared/data"}  # default folders


def claims(modules: Mapping[str, str]) -> list[str]:
    """The methods among `{method: module of its claim}` that also have a claim on a pre-trained model."""
    return [method for method, module in modules.items() if importlib.util.find_spec(f"{module}_real")]


@functools.cache
def model() -> Model:
    """The pre-trained model, loaded once.

    Raises:
        UserError: its folder does not exist.
    """
    return load.load(_folder(MODEL, "make real fetches one"), device="cpu")


def identity() -> dict[str, Any]:
    """Identity of the model, for the card."""
    config = model().config
    return {
        "type": config.model_type, "parameters": model().parameters,
        "fingerprint": model().fingerprint(),
    }  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one data set: JSON lines, a CSV table with a header, tab-separated `source` and `target`, or the
    lines of a text that are not blank, as `text`.

    Raises:
        UserError: the file does not exist.
    """
    path = Path(_folder(DATA, "it must hold the data sets that the claim names")) / name
    if not path.exists():
        raise UserError(f"{path}: no such file; {DATA} names the folder of data sets")
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as table:
            tabs: dict[str, Any] = {"delimiter": "\t", "fieldnames": ("source", "target"), "quoting": csv.QUOTE_NONE}
            return list(csv.DictReader(table, **(tabs if path.suffix == ".tsv" else {})))
    if path.suffix == ".txt":
        return [{"text": line} for text in path.read_text(encoding="utf-8").splitlines() if (line := text.strip())]
    return [dict(row) for row in files.read_lines(path)]


def _folder(variable: str, hint: str) -> str:
    folder = os.environ.get(variable) or PLACES[variable]
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; {variable} names it ({hint})")
    return folder

"""The tier `real`: a claim on a pre-trained model that people know and on real data, neither of them part of didact.

Both are named by the environment: `DIDACT_REAL_MODEL`, a folder of Gemma 3 270M (or of any causal model), and
`DIDACT_REAL_DATA`, a folder of data sets. `make real` fetches the first and says where the second is looked for.
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
PLACES = {MODEL: ".cache/gemma-3-270m", DATA: "../shared/data"}  # where nothing is named


def claims(found: Mapping[str, str]) -> list[str]:
    """The methods among `{method: module of its claim}` that have a claim on a pre-trained model beside it."""
    return [method for method, module in found.items() if importlib.util.find_spec(f"{module}_real")]


@functools.cache
def model() -> Model:
    """The pre-trained model, opened once.

    Raises:
        UserError: it is not there.
    """
    return load.load(_folder(MODEL, "make real fetches one"), device="cpu")


def identity() -> dict[str, Any]:
    """What tells the model from another, for the card."""
    config = model().config
    return {
        "type": config.model_type, "parameters": model().parameters,
        "fingerprint": model().fingerprint(),
    }  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one data set: JSON lines, a table with a header (of tab-separated words `source` and `target`), or a
    text's lines that are not blank, as `text`.

    Raises:
        UserError: it is not there.
    """
    path = Path(_folder(DATA, "it must hold the data sets that the claim names")) / name
    if not path.exists():
        raise UserError(f"{path}: not there; {DATA} names the folder of data sets")
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as table:
            tabs: dict[str, Any] = {"delimiter": "\t", "fieldnames": ("source", "target"), "quoting": csv.QUOTE_NONE}
            return list(csv.DictReader(table, **(tabs if path.suffix == ".tsv" else {})))
    if path.suffix == ".txt":
        return [{"text": line} for text in path.read_text(encoding="utf-8").splitlines() if (line := text.strip())]
    return [dict(row) for row in files.read_lines(path)]


def _folder(variable: str, mend: str) -> str:
    place = os.environ.get(variable) or PLACES[variable]
    if not Path(place).is_dir():
        raise UserError(f"{place}: no such folder; {variable} names it ({mend})")
    return place

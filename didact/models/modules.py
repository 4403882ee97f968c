"""Modules of our own that are saved in the `didact` format, and how they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import nn

from didact import files
from didact.models import opening
from didact.models.banded import Banded
from didact.models.insert import Inserted
from didact.models.mixers import LinearSelfAttention
from didact.models.model import Model
from didact.models.recurrent import RecurrentLM
from didact.models.sequence import SequenceLearner
from didact.models.subspace import Subspace
from didact.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODULES: dict[str, type[nn.Module]] = {
    m.__name__: m for m in (LinearSelfAttention, SequenceLearner, RecurrentLM, Banded, Inserted, Subspace)
}


def load_module(folder: str | Path) -> Model:
    """Read back a `didact` folder that `Model.save` wrote for one of `MODULES`.

    Raises:
        UserError: no such folder, an unknown module, or weights that do not fit.
    """
    where = Path(folder)
    try:
        told: dict[str, Any] = files.read_json(where / "didact.json")
        state = load_file(where / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{where}: not a didact model folder: {Path(error.filename or 'a file').name} is missing"
        ) from None
    except Exception as error:  # safetensors and json each have their own
        raise UserError(f"{where}: cannot be read: {error}") from None
    kind = MODULES.get(str(told.get("module")))
    if kind is None:
        raise UserError(f"{where}/didact.json: unknown module '{told.get('module')}': use one of {', '.join(MODULES)}")
    try:
        module = kind(**told["spec"])
        module.load_state_dict(state, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: weights and didact.json do not fit: {str(error).splitlines()[0]}") from None
    return Model(module.eval(), _tokenizer(where), told["kind"], str(where))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The one saved beside the weights, where the module reads text."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    made: PreTrainedTokenizerBase = opening.opened("AutoTokenizer", folder)
    return made

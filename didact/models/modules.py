"""didact's own modules, which are saved in the `didact` format, and how they are loaded."""

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
    """Load a `didact` folder that `Model.save` wrote for one of `MODULES`.

    Raises:
        UserError: no such folder, an unknown module, or weights that do not fit.
    """
    path = Path(folder)
    try:
        fields: dict[str, Any] = files.read_json(path / "didact.json")
        state = load_file(path / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not a didact model folder: {Path(error.filename or 'a file').name} is missing"
        ) from None
    except Exception as error:  # safetensors and json raise different types
        raise UserError(f"{path}: cannot be read: {error}") from None
    kind = MODULES.get(str(fields.get("module")))
    if kind is None:
        raise UserError(f"{path}/didact.json: unknown module '{fields.get('module')}': use one of {', '.join(MODULES)}")
    try:
        module = kind(**fields["spec"])
        module.load_state_dict(state, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: weights and didact.json do not fit: {str(error).splitlines()[0]}") from None
    return Model(module.eval(), _tokenizer(path), fields["kind"], str(path))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved beside the weights, if the module reads text."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    tokenizer: PreTrainedTokenizerBase = opening.open_pretrained("AutoTokenizer", folder)
    return tokenizer

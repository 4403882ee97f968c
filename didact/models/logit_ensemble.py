"""Several models that read the same tokens and answer as one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from didact.models.model import Model


class LogitEnsemble(nn.Module):
    """A base whose logits are joined with those of others; what is derived from it says how.

    Args:
        base: a causal transformers model.
        others: further ones, with the same vocabulary.
    """

    def __init__(self, base: nn.Module, *others: nn.Module) -> None:
        super().__init__()
        self.base, self.others = base, nn.ModuleList(others)

    def joined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """What all say together, `(..., V)`, from the logits of each."""
        raise NotImplementedError

    def forward(self, **given: Any) -> Any:
        """As a transformers model, without a cache."""
        given |= {"use_cache": False}
        out = self.base(**given)
        out.logits = self.joined(out.logits, [other(**given).logits for other in self.others])
        return out

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, logits_processor: Sequence[Any] = (), **how: Any
    ) -> Any:
        """The base's own `generate`, the others' logits joined to it before anything else."""
        from transformers import LogitsProcessorList

        def join(read: Tensor, logits: Tensor) -> Tensor:
            new = read.shape[1] - attention_mask.shape[1]
            there = nn.functional.pad(attention_mask, (0, new), value=1)
            place = (there.cumsum(1) - 1).clamp(min=0)
            given = {"input_ids": read, "attention_mask": there, "use_cache": False}
            said = [other(**given | _positions(other, place)).logits[:, -1] for other in self.others]
            return self.joined(logits, said)

        told = LogitsProcessorList([join, *logits_processor])
        base: Any = self.base
        return base.generate(input_ids=input_ids, attention_mask=attention_mask, logits_processor=told, **how)


class EnsembleModel(Model):
    """A model that is several; it has its base's tokenizer and context."""

    module: LogitEnsemble

    @property
    def context(self) -> int:
        """The base's."""
        return Model(self.module.base, self.processor, self.kind).context


def _positions(module: nn.Module, place: Tensor) -> dict[str, Tensor]:
    """Positions, for a model that is told them; others make them from the mask."""
    inner: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    return {"position_ids": place} if "position_ids" in inspect.signature(type(inner).forward).parameters else {}

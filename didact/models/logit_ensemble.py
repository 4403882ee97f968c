"""Several models that read the same tokens and answer as one: a `Model` that scores, generates, saves and loads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didact import files
from didact.models import places, prefix, spread
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import UserError


class LogitEnsemble(nn.Module):
    """A base whose logits are combined with those of others; subclasses say how.

    Args:
        base: a causal transformers model.
        others: further ones, with the same vocabulary.
        spec: what `combined` needs beside logits, as JSON holds it.
    """

    def __init__(self, base: nn.Module, others: Sequence[nn.Module], **spec: Any) -> None:
        super().__init__()
        self.base, self.others, self.spec = base, nn.ModuleList(others), spec

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The ensemble's logits, `(..., V)`, from those of each member."""
        raise NotImplementedError

    def forward(self, logits_to_keep: int = 0, **given: Any) -> Any:
        """As a transformers model, without a cache."""
        out, *others = [_last(module, logits_to_keep, given) for module in (self.base, *self.others)]
        out.logits = self.combined(out.logits, [other.logits for other in others])
        return out

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, logits_processor: Sequence[Any] = (), **how: Any
    ) -> Any:
        """The base's own `generate`, the others' logits combined with it before anything else."""
        from transformers import LogitsProcessorList

        def combine(read: Tensor, logits: Tensor) -> Tensor:
            new = read.shape[1] - attention_mask.shape[1]
            there = nn.functional.pad(attention_mask, (0, new), value=1)
            place = (there.cumsum(1) - 1).clamp(min=0)
            given = {"input_ids": read, "attention_mask": there, "position_ids": place}
            return self.combined(logits, [_last(other, 1, given).logits[:, -1] for other in self.others])

        processors = LogitsProcessorList([combine, *logits_processor])
        base: Any = self.base
        return base.generate(input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors, **how)


class Guided(LogitEnsemble):
    """`log p_base + sum_i alpha_i log p_i`: see `combine`. `spec` has `alphas` and `normalize`."""

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The guided policy's, not normalised."""
        return combine(logits, list(zip(others, self.spec["alphas"], strict=True)), self.spec["normalize"])


class Contrast(LogitEnsemble):
    """`v - alpha relu(v_reinforced - v)`, the reinforced model's gain taken off. `spec` has `alpha`, `normalise`."""

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The base's logits less what the other one says more often."""
        alpha, normalise = self.spec["alpha"], self.spec["normalise"]
        return token_functions.generic_logits(logits, logits, others[0], alpha, True, normalise)


ENSEMBLES: dict[str, type[LogitEnsemble]] = {"Guided": Guided, "Contrast": Contrast}


class EnsembleModel(Model):
    """A model made of several `members`, the base first; it has the base's tokenizer, condition and context."""

    module: LogitEnsemble
    members: list[Model]

    @property
    def context(self) -> int:
        """The base's."""
        return self.members[0].context

    @property
    def text_config(self) -> Any:
        """The base's."""
        return self.members[0].text_config

    def around(self, module: nn.Module) -> Model:
        """Its members are those of the module."""
        whole: Any = module
        made = EnsembleModel(module, self.processor, self.kind, self.base)
        made.members = [m.around(of) for m, of in zip(self.members, (whole.base, *whole.others), strict=True)]
        return made

    def fingerprint(self) -> str:
        """Of the weights and of how they answer together."""
        how = f"{super().fingerprint()} {type(self.module).__name__} {self.module.spec}"
        return hashlib.sha256(how.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> str:
        """Write every member into a folder of its own, and how they are combined.

        A base that was loaded and not changed is not copied: its place is written down.
        """
        base, *others = self.members
        place = base.loaded_from
        if spread.follows(self.module):
            for member in others if place else self.members:
                member.save(folder)
            return "didact"
        with files.new_folder(folder) as fresh:
            if place is None:
                base.save(fresh / "base")
            elif Path(place).is_dir():
                place = str(Path(place).resolve())
            for number, member in enumerate(others, 1):
                member.save(fresh / f"member-{number}")
            told = {"kind": self.kind, "ensemble": type(self.module).__name__, "spec": self.module.spec}
            files.write_json(fresh / places.FILE, told | {"base": place, "members": len(others)})
        return "didact"


def guided(base: Model, guides: Sequence[tuple[Model, float]], normalize: bool = False) -> EnsembleModel:
    """The policy of a base that further models guide, token by token.

    Raises:
        UserError: another vocabulary, or a model that is not causal.
    """
    check_all(base, [guide for guide, _ in guides])
    spec = {"alphas": [alpha for _, alpha in guides], "normalize": normalize}
    return ensemble("Guided", [base, *(guide for guide, _ in guides)], spec)


def contrast(
    base: Model, reinforced: Model, alpha: float = 1.0, normalise: Literal["log_softmax", "raw"] = "raw"
) -> EnsembleModel:
    """What a model says with what a second one says more often taken off, at every token: nothing is trained."""
    return ensemble("Contrast", [base, reinforced], {"alpha": alpha, "normalise": normalise})


def ensemble(name: str, members: Sequence[Model], spec: dict[str, Any]) -> EnsembleModel:
    """Members as one model, combined as the class of that name does."""
    base, *others = members
    module = ENSEMBLES[name](base.module, [m.module for m in others], **spec)
    model = EnsembleModel(module.eval(), base.processor, base.kind, base.base, base.condition)
    model.members = list(members)
    return model


def load(folder: Path, open_model: Callable[[str], Model]) -> EnsembleModel:
    """Read back what `EnsembleModel.save` wrote; `open_model` loads a member.

    Raises:
        UserError: the base is not where it was, or a member cannot be loaded.
    """
    told = files.read_json(folder / places.FILE)
    if told.get("ensemble") not in ENSEMBLES:
        known = ", ".join(ENSEMBLES)
        raise UserError(f"{folder / places.FILE}: unknown ensemble '{told.get('ensemble')}': use one of {known}")
    base = told["base"] or str(folder / "base")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(f"{folder}: its base model {base} is not there any more; put it back, or edit {places.FILE}")
    others = [open_model(str(folder / f"member-{n}")) for n in range(1, told["members"] + 1)]
    return ensemble(told["ensemble"], [open_model(base), *others], told["spec"])


def combine(base: Tensor, guides: Sequence[tuple[Tensor, float]], normalize: bool = False) -> Tensor:
    """`log p_base + sum_i alpha_i log p_i` over the common vocabulary, `(..., V)`; minus infinity beyond it.

    Constants added to anyone's logits change nothing. The result is not normalised: its softmax is what is sampled.

    Args:
        base: logits `(..., V)`.
        guides: logits `(..., V_i)` of each guide with its weight.
        normalize: divide by `1 + sum alpha`, as language-model-arithmetic does: another, flatter policy, which at
            temperature `t / (1 + sum alpha)` is the one above at temperature t.

    Raises:
        UserError: weights that sum to -1 cannot be divided by.
    """
    width = min(base.shape[-1], *(logits.shape[-1] for logits, _ in guides), base.shape[-1])
    total = token_functions.wide(base).log_softmax(-1)[..., :width]
    for logits, alpha in guides:
        if alpha:
            total = total + alpha * token_functions.wide(logits).log_softmax(-1)[..., :width].to(total)
    if normalize:
        scale = 1 + sum(alpha for _, alpha in guides)
        if scale <= 0:
            raise UserError(f"weights {[alpha for _, alpha in guides]} sum to -1 or less: they cannot be normalised")
        total = total / scale
    return torch.nn.functional.pad(total, (0, base.shape[-1] - width), value=-torch.inf)


def check_all(base: Model, guides: Sequence[Model]) -> None:
    """`check` of every guide."""
    for number, guide in enumerate(guides, 1):
        check(base, guide, "the reward model" if len(guides) == 1 else f"reward model {number}")


def check(base: Model, guide: Model, name: str = "the reward model") -> None:
    """Whether a model can guide another: both causal, with one vocabulary (added tokens aside).

    Raises:
        UserError: it cannot; the first token in which they differ is named.
    """
    if base.kind != "causal" or guide.kind != "causal":
        raise UserError(f"guided decoding needs causal models: the base is {base.kind}, {name} {guide.kind}")
    ours, theirs = (_vocabulary(m) for m in (base, guide))
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    if differing:
        at = differing[0]
        sides = " and ".join(
            f"{v[at]!r} {w}" if at in v else f"nothing {w}" for v, w in ((theirs, "there"), (ours, "here"))
        )
        raise UserError(
            f"{name}'s vocabulary is not the base model's: {len(differing)} tokens differ, token {at} is {sides}; "
            "take a model with the same tokenizer"
        )


def _vocabulary(model: Model) -> dict[int, str]:
    """Tokens by id, without those added after the tokenizer was made (ours or a chat format's)."""
    added = set(model.tokenizer.get_added_vocab())
    return {i: token for token, i in model.tokenizer.get_vocab().items() if token not in added}


def _last(module: Any, keep: int, given: dict[str, Any]) -> Any:
    """A member's pass without a cache, logits of the last `keep` tokens alone (0: all); positions where it is told."""
    takes = prefix.takes(module)
    more = {"logits_to_keep": keep} if "logits_to_keep" in takes else {}
    told = {name: value for name, value in given.items() if name != "position_ids" or name in takes}
    out = module(**told | more | {"use_cache": False})
    out.logits = out.logits[:, -keep:]
    return out

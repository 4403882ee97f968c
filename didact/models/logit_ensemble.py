"""Ensembles of models that read the same tokens: a `Model` that scores, generates, saves and loads as one."""

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
    """A base model whose logits are combined with those of others, as subclasses define.

    Args:
        base: a causal transformers model.
        others: further ones, with the same vocabulary.
        spec: parameters of `combined`, as JSON.
    """

    def __init__(self, base: nn.Module, others: Sequence[nn.Module], **spec: Any) -> None:
        super().__init__()
        self.base, self.others, self.spec = base, nn.ModuleList(others), spec

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits, `(..., V)`, from those of each member."""
        raise NotImplementedError

    def forward(self, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        """Run all members, without a cache; arguments and result are those of a transformers model."""
        out, *others = [_last_logits(module, logits_to_keep, kwargs) for module in (self.base, *self.others)]
        out.logits = self.combined(out.logits, [member.logits for member in others])
        return out

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, logits_processor: Sequence[Any] = (), **kwargs: Any
    ) -> Any:
        """Run the base's `generate`, with the others' logits combined in before any other logits processor."""
        from transformers import LogitsProcessorList

        def combine(read: Tensor, logits: Tensor) -> Tensor:
            new = read.shape[1] - attention_mask.shape[1]
            mask = nn.functional.pad(attention_mask, (0, new), value=1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            inputs = {"input_ids": read, "attention_mask": mask, "position_ids": positions}
            return self.combined(logits, [_last_logits(member, 1, inputs).logits[:, -1] for member in self.others])

        processors = LogitsProcessorList([combine, *logits_processor])
        base: Any = self.base
        return base.generate(input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors, **kwargs)


class Guided(LogitEnsemble):
    """`log p_base + sum_i alpha_i log p_i`: see `combine`. `spec` has `alphas` and `normalize`."""

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the guided policy's logits, not normalised."""
        return combine(logits, list(zip(others, self.spec["alphas"], strict=True)), self.spec["normalize"])


class Contrast(LogitEnsemble):
    """`v - alpha relu(v_reinforced - v)`: the reinforced model's gain subtracted. `spec` has `alpha`, `normalise`."""

    def combined(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the base's logits less the amount by which the other model's exceed them."""
        alpha, normalise = self.spec["alpha"], self.spec["normalise"]
        return token_functions.generic_logits(logits, logits, others[0], alpha, True, normalise)


ENSEMBLES: dict[str, type[LogitEnsemble]] = {"Guided": Guided, "Contrast": Contrast}


class EnsembleModel(Model):
    """A model of several `members`, the base first; it has the base's tokenizer, condition and context."""

    module: LogitEnsemble
    members: list[Model]

    @property
    def context(self) -> int:
        """The base's context length."""
        return self.members[0].context

    @property
    def text_config(self) -> Any:
        """The base's text configuration."""
        return self.members[0].text_config

    def around(self, module: nn.Module) -> Model:
        """Wrap another ensemble module, whose parts become the members."""
        whole: Any = module
        model = EnsembleModel(module, self.processor, self.kind, self.base)
        model.members = [m.around(part) for m, part in zip(self.members, (whole.base, *whole.others), strict=True)]
        return model

    def fingerprint(self) -> str:
        """Hash the weights and how they are combined."""
        identity = f"{super().fingerprint()} {type(self.module).__name__} {self.module.spec}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> str:
        """Write every member into its own folder, and how they are combined.

        A base that was loaded and not changed is not copied: its path is recorded.
        """
        base, *others = self.members
        place = base.loaded_from
        if spread.is_follower(self.module):
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
            fields = {"kind": self.kind, "ensemble": type(self.module).__name__, "spec": self.module.spec}
            files.write_json(fresh / places.FILE, fields | {"base": place, "members": len(others)})
        return "didact"


def guided(base: Model, guides: Sequence[tuple[Model, float]], normalize: bool = False) -> EnsembleModel:
    """Return the policy of a base model that further models guide, token by token.

    Raises:
        UserError: vocabularies differ, or a model is not causal.
    """
    check_all(base, [guide for guide, _ in guides])
    spec = {"alphas": [alpha for _, alpha in guides], "normalize": normalize}
    return ensemble("Guided", [base, *(guide for guide, _ in guides)], spec)


def contrast(
    base: Model, reinforced: Model, alpha: float = 1.0, normalise: Literal["log_softmax", "raw"] = "raw"
) -> EnsembleModel:
    """Return a model minus what a second one reinforces, at every token: nothing is trained."""
    return ensemble("Contrast", [base, reinforced], {"alpha": alpha, "normalise": normalise})


def ensemble(name: str, members: Sequence[Model], spec: dict[str, Any]) -> EnsembleModel:
    """Return the members as one model, combined by the class `ENSEMBLES[name]`."""
    base, *others = members
    module = ENSEMBLES[name](base.module, [m.module for m in others], **spec)
    model = EnsembleModel(module.eval(), base.processor, base.kind, base.base, base.condition)
    model.members = list(members)
    return model


def load(folder: Path, open_model: Callable[[str], Model]) -> EnsembleModel:
    """Read back what `EnsembleModel.save` wrote; `open_model` loads a member.

    Raises:
        UserError: the base model was moved, or a member cannot be loaded.
    """
    fields = files.read_json(folder / places.FILE)
    if fields.get("ensemble") not in ENSEMBLES:
        allowed = ", ".join(ENSEMBLES)
        raise UserError(f"{folder / places.FILE}: unknown ensemble '{fields.get('ensemble')}': use one of {allowed}")
    base = fields["base"] or str(folder / "base")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(f"{folder}: its base model {base} no longer exists; put it back, or edit {places.FILE}")
    others = [open_model(str(folder / f"member-{n}")) for n in range(1, fields["members"] + 1)]
    return ensemble(fields["ensemble"], [open_model(base), *others], fields["spec"])


def combine(base: Tensor, guides: Sequence[tuple[Tensor, float]], normalize: bool = False) -> Tensor:
    """`log p_base + sum_i alpha_i log p_i` over the common vocabulary, `(..., V)`; minus infinity beyond it.

    Constants added to any model's logits change nothing. The result is not normalised: its softmax is sampled from.

    Args:
        base: logits `(..., V)`.
        guides: logits `(..., V_i)` of each guide with its weight.
        normalize: divide by `1 + sum alpha`, as language-model-arithmetic does: another, flatter policy, which at
            temperature `t / (1 + sum alpha)` is the one above at temperature t.

    Raises:
        UserError: the weights sum to -1 or less, so that their policy cannot be normalised.
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
    """Apply `check` to every guide."""
    for number, guide in enumerate(guides, 1):
        check(base, guide, "the reward model" if len(guides) == 1 else f"reward model {number}")


def check(base: Model, guide: Model, name: str = "the reward model") -> None:
    """Refuse a model that cannot guide another: both must be causal, with one vocabulary (added tokens aside).

    Raises:
        UserError: it cannot; the message names the first token that differs.
    """
    if base.kind != "causal" or guide.kind != "causal":
        raise UserError(f"guided decoding needs causal models: the base is {base.kind}, {name} {guide.kind}")
    base_tokens, guide_tokens = (_vocabulary(m) for m in (base, guide))
    differing = sorted(i for i in base_tokens.keys() | guide_tokens.keys() if base_tokens.get(i) != guide_tokens.get(i))
    if differing:
        at = differing[0]
        sides = " and ".join(
            f"{v[at]!r} {w}" if at in v else f"nothing {w}" for v, w in ((guide_tokens, "there"), (base_tokens, "here"))
        )
        raise UserError(
            f"{name}'s vocabulary is not the base model's: {len(differing)} tokens differ, token {at} is {sides}; "
            "use a model with the same tokenizer"
        )


def _vocabulary(model: Model) -> dict[int, str]:
    """Tokens by id, without those added after the tokenizer was trained (ours or a chat format's)."""
    added = set(model.tokenizer.get_added_vocab())
    return {i: token for token, i in model.tokenizer.get_vocab().items() if token not in added}


def _last_logits(module: Any, keep: int, kwargs: dict[str, Any]) -> Any:
    """Run a member without a cache; logits of the last `keep` tokens (0: all), positions only if it accepts them."""
    accepted = prefix.forward_arguments(module)
    options = {"logits_to_keep": keep} if "logits_to_keep" in accepted else {}
    inputs = {name: value for name, value in kwargs.items() if name != "position_ids" or name in accepted}
    out = module(**inputs | options | {"use_cache": False})
    out.logits = out.logits[:, -keep:]
    return out

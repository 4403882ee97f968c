"""Banded (sliding-window) attention, added to a transformers model or built into a new one.

Sources: Child et al. 2019, arXiv:1904.10509, and Brown et al. 2020, arXiv:2005.14165, section 2.1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from didact.models import opening
from didact.models.model import Model
from didact.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def band(queries: int, keys: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """The mask `(queries, keys)`, bool: query t sees key j if `t - width < j <= t`.

    The queries are the last of the keys' positions, as with a cache. A width of `keys` or more is dense causal
    attention.
    """
    t = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)
    return (j <= t) & (j > t - width)


class Band:
    """A forward pre-hook of an attention layer that restricts its mask to the band."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Return positional and keyword arguments with the restricted mask."""
        states = args[0] if args else kwargs["hidden_states"]
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if mask is None:
            queries = states.shape[1]
            keys = queries + (int(past.get_seq_length(layer.layer_idx)) if past is not None else 0)
            # A float mask: correct for both eager and scaled-dot-product attention.
            mask = torch.zeros(1, 1, queries, keys, dtype=states.dtype, device=states.device)
        allowed = band(mask.shape[-2], mask.shape[-1], self.width, mask.device)
        if mask.dtype == torch.bool:
            return args, {**kwargs, "attention_mask": mask & allowed}
        return args, {**kwargs, "attention_mask": mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)}


class Banded(nn.Module):
    """A transformers decoder with banded attention in some layers; called like the decoder, and generates like it.

    Args:
        config: of the decoder, as a mapping.
        width: of the band, in positions.
        layers: the banded ones: every odd one (the even ones stay dense), or all.
        inner: the decoder itself; built from `config` by default.

    Raises:
        UserError: its attention is neither eager nor sdpa, or its layers are not found.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        width: int,
        layers: Literal["odd", "all"] = "odd",
        inner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spec = {"config": dict(config), "width": width, "layers": layers}
        if inner is None:
            inner = opening.build_from_config("AutoModelForCausalLM", config)
        decoder: Any = inner
        self.inner = decoder
        if (implementation := decoder.config._attn_implementation) not in ("eager", "sdpa"):
            raise UserError(f"a band needs eager or sdpa attention, not {implementation}, which takes no custom mask")
        found = {m.layer_idx: m for m in decoder.modules() if type(m).__name__.endswith("Attention") and _indexed(m)}
        if width < 1 or sorted(found) != list(range(decoder.config.num_hidden_layers)):
            raise UserError(f"no band of width {width} for a {type(decoder).__name__}: use a llama or gpt2 shape")
        for index, layer in found.items():
            if layers == "all" or index % 2:
                layer.register_forward_pre_hook(Band(width), with_kwargs=True)
        # Another model type, so that no fast path that is proven for the dense model is taken for this one.
        cfg: Any = copy.deepcopy(decoder.config)
        cfg.model_type, cfg.band = f"banded_{cfg.model_type}", [width, layers]
        self.config = cfg

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder."""
        return self.inner(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder's `generate`."""
        return self.inner.generate(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; tied ones stay tied."""
        out = super().load_state_dict(*args, **kwargs)
        self.inner.tie_weights()
        return out


def banded(model: Model, width: int, layers: Literal["odd", "all"] = "odd") -> Model:
    """Return a copy of a causal model (llama, gpt2 and similar) whose odd layers see `width` positions.

    Saved in the `didact` format: transformers has no such band for these types. It has one for `alternating`.
    """
    inner = copy.deepcopy(model.module)
    return Model(Banded(model.config.to_dict(), width, layers, inner), model.processor, model.kind)


def alternating(
    tokenizer: PreTrainedTokenizerBase,
    d: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 2048,
    width: int = 256,
    seed: int = 0,
) -> Model:
    """Build GPT-3's architecture at any size, as transformers' GPT-Neo: even layers dense, odd ones banded.

    Pre-LN blocks, learned positions, feed-forward 4 d. Weights are N(0, 0.02^2), those of projections into the
    residual stream divided by `sqrt(2 layers)`; GPT-Neo does not divide attention scores by `sqrt(d / heads)`, so
    the query projection starts divided by it.
    """
    import transformers as hf

    kinds = [[["global", "local"], layers // 2]] + ([[["global"], 1]] if layers % 2 else [])
    config = hf.GPTNeoConfig(
        vocab_size=len(tokenizer), hidden_size=d, num_layers=layers, num_heads=heads, max_position_embeddings=context,
        attention_types=[k for k in kinds if k[1]], window_size=width, resid_dropout=0.0, embed_dropout=0.0,
        attention_dropout=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = hf.GPTNeoForCausalLM(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith(("out_proj.weight", "c_proj.weight")):
                weight.div_(math.sqrt(2 * layers))
            elif name.endswith("q_proj.weight"):
                weight.div_(math.sqrt(d // heads))
    return Model(module.eval(), tokenizer, "causal")


def _indexed(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "layer_idx", None), int)

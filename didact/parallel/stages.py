"""A causal transformers model cut into pipeline stages that keep the names of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from didact.parallel import shards
from didact.parallel.relay import Enters, Leaves, Relay


class Parts(NamedTuple):
    """Names of a model's submodules: those before its layers, the layers, and the norm after them."""

    before: tuple[str, ...]
    layers: str
    after: str


_LLAMA = Parts(("embed_tokens",), "layers", "norm")
PARTS = {"gpt2": Parts(("wte", "wpe", "drop"), "h", "ln_f"), **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA)}


class Through(nn.Module):
    """Identity in place of a submodule of another stage."""

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the states unchanged."""
        return states


class Nothing(nn.Module):
    """Zero in place of the position embedding, which the first stage has added."""

    def forward(self, positions: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros((), device=positions.device)


class Stage(nn.Module):
    """A stage: takes tokens `(B, T)` or the previous stage's states `(B, T, H)`; returns states, or logits if last."""

    def __init__(self, module: Any, number: int, count: int, precision: torch.dtype | None = None) -> None:
        super().__init__()
        self.module, self.number, self.count, self.precision = module, number, count, precision
        names = {id(p): n for n, p in module.named_parameters()}
        self.table = names[id(module.get_input_embeddings().weight)]
        self.tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
        self.head = next(n for n, m in module.named_modules() if m is module.get_output_embeddings()) + ".weight"
        self.pad = module.get_input_embeddings().padding_idx
        module.get_input_embeddings().padding_idx = None  # with a split table it would be another token
        if count > 1:
            cut(module, number, count)

    def forward(self, x: Tensor) -> Tensor:
        """Run one micro-batch; padding is on the right, where no token of the row sees it."""
        if not self.number:
            states = self.module.get_input_embeddings()(x)
            padding = None if self.pad is None else (x == self.pad)[..., None]
            x = states if padding is None else torch.where(padding, states.detach(), states)  # as `padding_idx` does
        inputs = {"inputs_embeds": x, "use_cache": False}
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            if self.number < self.count - 1:
                return self.module.base_model(**inputs).last_hidden_state
            return self.module(**inputs).logits

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of this stage."""
        lists = (part for part in self.module.base_model.modules() if isinstance(part, nn.ModuleList))
        return [layer for layer in next(lists) if not isinstance(layer, Through)]

    @property
    def shares(self) -> bool:
        """Whether this stage holds one of the two copies of a tied embedding."""
        return self.tied and self.count > 1 and self.number in (0, self.count - 1)

    def named(self) -> dict[str, nn.Parameter]:
        """Return its weights by their names in the whole model; a tied head has that of the embedding."""
        parameters = ((n.removeprefix("module."), p) for n, p in self.named_parameters())
        return {self.table if self.shares and n == self.head else n: p for n, p in parameters}


def span(layers: int, number: int, count: int) -> range:
    """Return the layers of a stage; if their number does not divide, stages after the first get one more."""
    size, remainder = divmod(layers, count)
    starts = [n * size + min(max(n - 1, 0), remainder) for n in range(count + 1)]
    return range(starts[number], starts[number + 1])


def cut(module: Any, number: int, count: int) -> None:
    """Remove the submodules of other stages from a model, in place."""
    body, names = module.base_model, PARTS[module.config.model_type]
    layers = getattr(body, names.layers)
    kept = span(len(layers), number, count)
    for i in range(len(layers)):
        if i not in kept:
            layers[i] = Through()
    if number:
        for name in names.before:
            setattr(body, name, Nothing() if name == "wpe" else Through())
    if number < count - 1:
        setattr(body, names.after, Through())
        module.set_output_embeddings(Through())


def refusal(module: Any, count: int) -> str | None:
    """Return why a model cannot be cut into `count` stages; None if it can."""
    config = module.config
    if config.model_type not in PARTS or module.get_output_embeddings() is None:
        return f"stages need a causal model of type {', '.join(sorted(PARTS))}; this is {type(module).__name__}"
    if config.num_hidden_layers < count:
        return f"{config.num_hidden_layers} layers are too few for {count} stages"
    return None


def relayed(module: Any, relay: Relay) -> nn.Parameter | None:
    """Remove the submodules of other stages, in place; the body receives states from one stage and sends them on.

    Returns:
        The weight that both the first and the last stage hold; None on other stages and for an untied head.
    """
    body, names, table = module.base_model, PARTS[module.config.model_type], module.get_input_embeddings().weight
    tied = module.get_output_embeddings().weight is table
    cut(module, relay.number, relay.count)
    if relay.number:
        weight = table if tied and relay.last else None
        setattr(body, names.before[0], Enters(relay, module.config.hidden_size, table, weight))
    if not relay.last:
        setattr(body, names.after, Leaves(relay, table))
    return table if tied and relay.number in (0, relay.count - 1) else None


def skeleton(module: Any, dtype: torch.dtype | None = None) -> Any:
    """Build a model of the same configuration, in training mode, with weights on the meta device and real buffers."""
    with init_empty_weights(include_buffers=False):
        model = type(module)(module.config)
    model.tie_weights()  # `init_empty_weights` untied them
    return model.to(dtype or next(module.parameters()).dtype).train()


def fill(part: nn.Module, names: Mapping[int, str], values: Callable[[str], Tensor], device: torch.device) -> None:
    """Allocate a skeleton's weights on a device and fill them by `values(name)`; tied ones stay tied. Move buffers."""
    filled: dict[int, nn.Parameter] = {}
    for owner in part.modules():
        for name, p in list(owner.named_parameters(recurse=False)):
            if p.is_meta:
                if id(p) not in filled:
                    filled[id(p)] = nn.Parameter(torch.empty_like(p, device=device))
                    shards.place(filled[id(p)].data, values(names[id(p)]))
                owner.register_parameter(name, filled[id(p)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = buffer.to(device)

"""Causal sequence models that learn in context: `(x (B, T, d), y (B, T, o)) -> (B, T, o)`, the prediction of y_t
from x_1..x_t and y_1..y_{t-1} at every t, with any of several architectures between the tokens and the readout.

Sources: Kirsch et al. 2022, arXiv:2212.04458, section 3 (shifted tokens, learners by state size); Garg et al. 2022,
arXiv:2208.01066, and Panwar et al. 2024, section 2 (interleaved tokens); Kirsch and Schmidhuber 2021,
arXiv:2012.14905 (VSML); those of the other mixers are in `models.sequence_mixers`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didact.bounds import Count, Positive
from didact.models.sequence_mixers import Hyena, Retention, TimeMix, rotated, rotations, summed

Mixer = Literal["transformer", "lstm", "gru", "fast-weights", "retnet", "rwkv", "hyena", "vsml"]
Layout = Literal["shifted", "interleaved"]
Positions = Literal["rotary", "learned", "none"]
LONGEST = 1024  # number of learned positions
LAYERS: dict[str, Any] = {"retnet": Retention, "rwkv": TimeMix, "hyena": Hyena}  # they need no position encoding


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """The architecture of a `SequenceLearner`.

    Args:
        mixer: the kind of layers: a causal transformer, LSTM or GRU layers, fast weights (a matrix that every token
            adds an outer product to), RetNet, RWKV, Hyena, or VSML (one small LSTM shared by all pairs of an input and
            a class).
        layers: of the mixer; VSML has one.
        width: of a token; VSML: of each small LSTM.
        heads: of a layer of a transformer, fast weights or RetNet.
        mlp: width of the feed-forward part as a multiple of `width`.
        layout: `shifted`, one token (x_t, y_{t-1}) a row; or `interleaved`, x_t and y_t as separate tokens.
        positions: rotary on half of each head, learned, or none (the causal mask still gives the order).
    """

    mixer: Mixer = "transformer"
    layers: Count = 4
    width: Count = 256
    heads: Count = 8
    mlp: Positive = 4.0
    layout: Layout = "shifted"
    positions: Positions = "rotary"


class SequenceLearner(nn.Module):
    """Maps rows and the targets before them to a prediction of every target.

    Args:
        inputs: d, inputs of the mixer.
        outputs: o, targets or class slots of a row.
        raw: numbers in a user's row, if `basis` maps them to d.
        config: fields of a `SequenceConfig`.
    """

    mean: Tensor
    basis: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int, raw: int | None = None, **config: Any) -> None:
        super().__init__()
        settings = SequenceConfig(**config)
        self.spec = {"inputs": inputs, "outputs": outputs, "raw": raw, **asdict(settings)}
        self.inputs, self.outputs, self.given = inputs, outputs, settings
        # Units of a user's rows and targets: part of the model, so that a saved one takes them raw.
        self.register_buffer("mean", torch.zeros(raw or inputs))
        self.register_buffer("basis", torch.eye(raw or inputs, inputs))
        self.register_buffer("offset", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))
        token_size = inputs + outputs if settings.layout == "shifted" else max(inputs, outputs)
        if settings.mixer == "vsml":
            self.body: nn.Module = VSML(inputs, outputs, settings.width)
        else:
            self.read_in = nn.Linear(token_size, settings.width)
            self.body = Stack(settings)
            self.norm = nn.LayerNorm(settings.width)
            self.read_out = nn.Linear(settings.width, outputs)
            nn.init.zeros_(self.read_out.weight)  # the first guess is the same for every class
            nn.init.zeros_(self.read_out.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict every target; classes as logits of their slots."""
        return self.inner((x - self.mean) @ self.basis, (y - self.offset) / self.scale) * self.scale + self.offset

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict targets for rows and targets in the units of its training."""
        if self.given.mixer == "vsml":
            direct: Tensor = self.body(torch.cat([x, before(y)], -1))
            return direct
        mixed: Tensor = self.read_out(self.norm(self.body(self.read_in(self.tokens(x, y)))))
        return mixed if self.given.layout == "shifted" else mixed[:, ::2]

    def tokens(self, x: Tensor, y: Tensor) -> Tensor:
        """Lay out `(B, T, d + o)` shifted, or `(B, 2 T, max(d, o))` interleaved, where target t follows row t."""
        if self.given.layout == "shifted":
            return torch.cat([x, before(y)], -1)
        wide = max(self.inputs, self.outputs)
        return torch.stack([F.pad(x, (0, wide - self.inputs)), F.pad(y, (0, wide - self.outputs))], 2).flatten(1, 2)

    def state_size(self, rows: int) -> int:
        """Size of the state, in numbers, that is carried to the next row after `rows` rows."""
        c, tokens = self.given, rows * (1 if self.given.layout == "shifted" else 2)
        return {
            "transformer": 2 * tokens * c.layers * c.width,
            "lstm": 2 * c.layers * c.width,
            "gru": c.layers * c.width,
            "fast-weights": c.layers * c.width * (c.width // c.heads),
            "retnet": c.layers * c.width * (c.width // c.heads),
            "rwkv": 4 * c.layers * c.width,  # two sums, their scale, the token before
            "hyena": c.layers * c.width * tokens,
            "vsml": 2 * self.inputs * self.outputs * c.width,
        }[c.mixer]


def before(y: Tensor) -> Tensor:
    """Shift the targets by one row: y_{t-1} at row t, zeros at the first. `(B, T, o)`."""
    return F.pad(y[:, :-1], (0, 0, 1, 0))


def set_units(module: SequenceLearner, *, mean: Any = None, basis: Any = None, offset: Any = 0, scale: Any = 1) -> None:
    """Let a trained module take a user's raw rows, `z = (x - mean) basis`, and targets `offset + scale y`."""
    with torch.no_grad():
        for name, value in (("mean", mean), ("basis", basis), ("offset", offset), ("scale", scale)):
            if value is not None:
                module.get_buffer(name).copy_(torch.as_tensor(value))


class Stack(nn.Module):
    """Layers of one kind over tokens `(B, T, width)`."""

    def __init__(self, c: SequenceConfig) -> None:
        super().__init__()
        self.positions = nn.Embedding(LONGEST, c.width) if c.positions == "learned" else None
        rotary = c.positions == "rotary" and c.mixer not in LAYERS
        self.turned = c.width // c.heads // 4 * 2 if rotary else 0  # rotary coordinates of a head
        if c.mixer in ("lstm", "gru"):
            kind = nn.LSTM if c.mixer == "lstm" else nn.GRU
            self.layers = nn.ModuleList([kind(c.width, c.width, c.layers, batch_first=True)])
        else:
            self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
            for name, weight in self.named_parameters():
                if name.endswith(("out.weight", "down.weight")):  # into the residual stream
                    nn.init.normal_(weight, std=0.02 / math.sqrt(2 * c.layers))
                elif weight.dim() == 2:
                    nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the layers; no token sees a later one."""
        if self.positions is not None:
            tokens = tokens + self.positions.weight[: tokens.shape[1]]
        turn = rotations(tokens.shape[1], self.turned, tokens) if self.turned else None
        for layer in self.layers:
            tokens = layer(tokens)[0] if isinstance(layer, nn.RNNBase) else layer(tokens, turn)
        return tokens


class Block(nn.Module):
    """A pre-norm block: a mixer (softmax attention or any of the others), then a feed-forward part."""

    def __init__(self, c: SequenceConfig) -> None:
        super().__init__()
        self.heads, self.soft = c.heads, c.mixer == "transformer"
        hidden = round(c.mlp * c.width)
        self.norm, self.norm_mlp = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.own = LAYERS[c.mixer](c.width, c.heads) if c.mixer in LAYERS else None
        if self.own is None:
            self.qkv = nn.Linear(c.width, 3 * c.width, bias=False)
        self.out = nn.Linear(c.width, c.width, bias=False)
        self.up, self.down = nn.Linear(c.width, hidden), nn.Linear(hidden, c.width)

    def forward(self, tokens: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Add the mixer's output (attention with rotary positions `turn`), then the feed-forward part's."""
        normed = self.norm(tokens)
        tokens = tokens + self.out(self.own(normed) if self.own is not None else self.attended(normed, turn))
        changed: Tensor = tokens + self.down(F.gelu(self.up(self.norm_mlp(tokens))))
        return changed

    def attended(self, tokens: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the output of attention or fast weights, `(B, T, width)`."""
        rows, length, width = tokens.shape
        qkv = self.qkv(tokens).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (qkv[0], qkv[1]) if turn is None else rotated(qkv[:2], *turn).unbind()
        v = qkv[2]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True) if self.soft else summed(q, k, v)
        return mixed.transpose(1, 2).reshape(rows, length, width)


class VSML(nn.Module):
    """One small LSTM shared by all pairs (input a, class b): few weights, large state.

    Pair (a, b) reads input a, label b of the row before, the mean message of its class and that of its input; the
    logit of class b is the mean of its pairs' readouts. It is invariant to permutations of inputs and classes.
    """

    def __init__(self, inputs: int, outputs: int, width: int, messages: int = 8) -> None:
        super().__init__()
        self.inputs, self.outputs, self.width = inputs, outputs, width
        self.cell = nn.LSTMCell(2 + 2 * messages, width)
        self.forth, self.back = nn.Linear(width, messages), nn.Linear(width, messages)
        self.read = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `(B, T, outputs)` for tokens `(B, T, inputs + outputs)`."""
        count, pairs = len(tokens), (len(tokens), self.inputs, self.outputs)
        x, y = tokens.split([self.inputs, self.outputs], -1)
        state = (tokens.new_zeros(math.prod(pairs), self.width),) * 2
        out = []
        for t in range(tokens.shape[1]):
            h = state[0].view(*pairs, self.width)
            to_class = self.forth(h).mean(1, keepdim=True).expand(*pairs, -1)
            to_input = self.back(h).mean(2, keepdim=True).expand(*pairs, -1)
            pair_inputs = torch.stack([x[:, t, :, None].expand(pairs), y[:, t, None, :].expand(pairs)], -1)
            cell_inputs = torch.cat([pair_inputs, to_class, to_input], -1).view(math.prod(pairs), -1)
            state = self.cell(cell_inputs, state)
            out.append(self.read(state[0]).view(count, self.inputs, self.outputs).mean(1))
        return torch.stack(out, 1)

"""Linear self-attention that learns a regression inside its forward pass, trained or built by hand.

Row-vector convention: tokens `E (B, T, D)`, one layer is `E <- E + sum_h A_h (S Wv_h) P_h` with
`A_h = (E Wq_h)(S Wk_h)^T`, where S are the context tokens. The query token is the last one.

Source: von Oswald et al. 2023, arXiv:2212.07677, propositions 1 and 2, equations 5-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didact.bounds import Count, Positive, Whole

Attention = Literal["linear", "softmax", "softmax-first"]


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The architecture of a `LinearSelfAttention`.

    Args:
        layers: number of layers; the GD it is compared with takes as many steps (classic: one less).
        shared: all layers have the same weights.
        heads: attention heads; softmax needs two to come close to GD.
        key_size: width of a head's keys and values; d + o by default, and no less can represent a GD step.
        attention: linear, softmax, or softmax in the first layer only.
        include_query: the query is a key and a value too.
        layer_norm: normalise tokens before every layer.
        readout: minus the query's y-slot, or a learned linear map.
        y_update_only: layers change y-slots only.
        layout: x and y of a row in one token (joint) or in two (classic).
        features: width of an MLP applied to x first, for tasks that are not linear; 0 for none.
        activation_clip: largest token entry after a layer; the paper has 10 for more than 3 layers.
        init: scale of the initial weights' variance; training from small ones can stay long at a saddle.
    """

    layers: Count = 1
    shared: bool = True
    heads: Count = 1
    key_size: Count | None = None
    attention: Attention = "linear"
    include_query: bool = False
    layer_norm: bool = False
    readout: Literal["slot", "linear"] = "slot"
    y_update_only: bool = False
    layout: Literal["joint", "classic"] = "joint"
    features: Whole = 0
    activation_clip: Positive | None = None
    init: Positive = 0.002


class LinearSelfAttention(nn.Module):
    """Maps a context and a query to a prediction: `(x (B, N, d), y (B, N, o), query (B, d)) -> (B, o)`.

    Args:
        inputs: d.
        outputs: o.
        layers: number of layers.
        heads: attention heads of every layer.
        key_size: width of keys, queries and values of one head; D by default. Under d + o the
            gradient step cannot be represented.
        shared: every layer has the same weights (a recurrent or looped transformer).
        attention: linear, softmax (of the scores / sqrt(key_size)), or softmax in the first layer only.
        include_query: the query token is a key and a value too.
        layer_norm: normalise the tokens before every layer.
        readout: `slot`, minus the query's y-slot; or `linear`, a learned map of the query token.
        y_update_only: layers change y-slots only.
        layout: `joint`, one token (x_i, y_i) a row; or `classic`, x and y as separate tokens,
            padded to one width, with `positions` sinusoidal coordinates and an empty y-slot
            concatenated (the official code reads the last position coordinate in its place).
        positions: sinusoidal coordinates of the classic layout.
        features: width of an MLP applied to x first (hidden width 4 x, GELU, residual); 0 for none.
        activation_clip: tokens are clipped to this after every layer; None for no clipping.
        init: VarianceScaling of the weights is `init / layers` (truncated normal, fan-in).
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor
    start: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int = 1,
        *,
        layers: int = 1,
        heads: int = 1,
        key_size: int | None = None,
        shared: bool = True,
        attention: Attention = "linear",
        include_query: bool = False,
        layer_norm: bool = False,
        readout: Literal["slot", "linear"] = "slot",
        y_update_only: bool = False,
        layout: Literal["joint", "classic"] = "joint",
        positions: int = 10,
        features: int = 0,
        activation_clip: float | None = None,
        init: float = 0.002,
    ) -> None:
        super().__init__()
        self.spec = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.outputs, self.layers, self.shared, self.attention = outputs, layers, shared, attention
        self.include_query, self.y_update_only, self.layout = include_query, y_update_only, layout
        self.positions, self.activation_clip = positions, activation_clip
        width = features or inputs
        self.width = width if layout == "joint" else max(width, outputs)
        size = self.width + outputs + (positions if layout == "classic" else 0)
        key = key_size or size
        distinct = 1 if shared else layers
        scale = init / layers
        self.wq = nn.Parameter(_variance_scaling((distinct, heads, size, key), scale, size))
        self.wk = nn.Parameter(_variance_scaling((distinct, heads, size, key), scale, size))
        self.wv = nn.Parameter(_variance_scaling((distinct, heads, size, key), scale, size))
        self.p = nn.Parameter(_variance_scaling((distinct, heads, key, size), scale, heads * key))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(distinct)) if layer_norm else None
        self.out = nn.Linear(size, outputs, bias=False) if readout == "linear" else None
        self.embed = nn.Linear(inputs, features) if features else None
        self.mlp = (
            nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
            if features
            else None
        )
        # Standardisation of the user's columns: part of the model, so that a saved one takes raw numbers.
        self.register_buffer("x_mean", torch.zeros(inputs))
        self.register_buffer("x_std", torch.ones(inputs))
        self.register_buffer("y_mean", torch.zeros(outputs))
        self.register_buffer("y_std", torch.ones(outputs))
        self.register_buffer("start", torch.zeros(outputs, width))

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Predict the query's target."""
        tokens = self.tokens((x - self.x_mean) / self.x_std, (y - self.y_mean) / self.y_std, self._scaled(query))
        for layer in range(self.layers):
            tokens = self.mix(tokens, layer)
        if self.out is not None:
            read: Tensor = self.out(tokens[:, -1])
        else:
            read = read_slot(tokens, self.outputs)
        return read * self.y_std + self.y_mean

    def tokens(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Lay out context and query as tokens `(B, T, D)`, the query last with `-W0 x` in its y-slot."""
        if self.embed is not None and self.mlp is not None:
            x, query = self.embed(x), self.embed(query)
            x, query = x + self.mlp(x), query + self.mlp(query)
        guess = first_guess(query, self.start)
        if self.layout == "joint":
            return torch.cat([torch.cat([x, y], -1), torch.cat([query, guess], -1)[:, None]], 1)
        rows = torch.stack([_padded(x, self.width), _padded(y, self.width, left=True)], 2).flatten(1, 2)
        rows = torch.cat([rows, _padded(query, self.width)[:, None]], 1)
        positions = sinusoids(rows.shape[1], self.positions).to(rows).expand(len(rows), -1, -1)
        slot = torch.cat([rows.new_zeros(len(rows), rows.shape[1] - 1, self.outputs), guess[:, None]], 1)
        return torch.cat([rows, positions, slot], -1)

    def mix(self, tokens: Tensor, layer: int) -> Tensor:
        """Apply one layer. The last one returns the query token only: nothing reads the others."""
        index = 0 if self.shared else layer
        normed = self.norms[index](tokens) if self.norms is not None else tokens
        source = normed if self.include_query else normed[:, :-1]
        if layer == self.layers - 1:
            tokens, normed = tokens[:, -1:], normed[:, -1:]
        softmax = self.attention == "softmax" or (self.attention == "softmax-first" and layer == 0)
        weights = attention_weights(_heads(normed, self.wq[index]), _heads(source, self.wk[index]), softmax)
        mixed = (weights @ _heads(source, self.wv[index])).transpose(1, 2).flatten(2)
        change = mixed @ self.p[index].flatten(0, 1)
        if self.y_update_only:
            change = torch.cat([torch.zeros_like(change[..., : -self.outputs]), change[..., -self.outputs :]], -1)
        tokens = tokens + change
        return tokens if self.activation_clip is None else tokens.clamp(-self.activation_clip, self.activation_clip)

    def _scaled(self, query: Tensor) -> Tensor:
        return (query - self.x_mean) / self.x_std


def first_guess(query: Tensor, start: Tensor) -> Tensor:
    """The query's y-slot before the first layer, `-W0 x (B, o)`."""
    return -(query @ start.T)


def attention_weights(queries: Tensor, keys: Tensor, softmax: bool) -> Tensor:
    """Weights `(B, H, T, S)` of keys `(B, H, S, K)` for queries `(B, H, T, K)`: plain products, or their softmax."""
    products = queries @ keys.transpose(-1, -2)
    return (products / math.sqrt(keys.shape[-1])).softmax(-1) if softmax else products


def read_slot(tokens: Tensor, outputs: int) -> Tensor:
    """The prediction `(B, o)`: MINUS the query's y-slot, which gathers `-W x`."""
    return -tokens[:, -1, -outputs:]


def set_units(module: nn.Module, units: Sequence[Any]) -> None:
    """Let a `LinearSelfAttention` take raw columns and standardise them inside.

    Args:
        module: trained on columns in these units.
        units: `x_mean (d,), x_std (d,), y_mean (o,), y_std (o,)`.
    """
    with torch.no_grad():
        for name, value in zip(("x_mean", "x_std", "y_mean", "y_std"), units, strict=True):
            module.get_buffer(name).copy_(torch.as_tensor(value))


def constructed(
    inputs: int,
    outputs: int = 1,
    *,
    eta: float | Sequence[float],
    rows: int,
    layers: int = 1,
    gamma: float | Sequence[float] = 0.0,
    start: Tensor | None = None,
) -> LinearSelfAttention:
    """Build weights (float64) that do one step of gradient descent, or of GD++, in every layer.

    On `L(W) = 1/(2N) sum_i ||W x_i - y_i||^2`: `Wq = Wk = diag(I, 0)`, value `(x_i, W0 x_i - y_i)`,
    `P = diag(-gamma I, (eta/N) I)`. A y-slot changes by `(eta/N) sum_i (W0 x_i - y_i)(x_i . x_j)`, which
    is `-Delta W x_j`: context slots then hold residuals, so that the next layer does the next step.

    Args:
        inputs: d.
        outputs: o.
        eta: step size; one for all layers (whose weights are then shared), or one a layer.
        rows: N, rows of the context.
        layers: steps k.
        gamma: GD++'s input step, `x_j <- x_j - gamma sum_i x_i (x_i . x_j)`; one, or one a layer.
        start: W0 `(o, d)`, zero by default.

    Raises:
        ValueError: the number of step sizes does not match `layers`, or W0 is given with gamma over several layers
            (inputs change and W0's share of the residual would not).
    """
    etas = [eta] if isinstance(eta, int | float) else list(eta)
    gammas = [gamma] if isinstance(gamma, int | float) else list(gamma)
    distinct = max(len(etas), len(gammas))
    if any(len(v) not in (1, distinct) for v in (etas, gammas)) or distinct not in (1, layers):
        raise ValueError(f"{len(etas)} eta and {len(gammas)} gamma for {layers} layers: give one, or one a layer")
    if start is not None and layers > 1 and any(gammas):
        raise ValueError("GD++ over several layers starts from W0 = 0")
    module = LinearSelfAttention(inputs, outputs, layers=layers, shared=distinct == 1).double()
    x, y = slice(0, inputs), slice(inputs, None)
    eye_x, eye_y = torch.eye(inputs, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.wq[:, :, x, x] = module.wk[:, :, x, x] = module.wv[:, :, x, x] = eye_x
        module.wv[:, :, y, y] = -eye_y
        if start is not None:
            module.start.copy_(start)
            module.wv[:, :, x, y] = module.start.T
        for index in range(distinct):
            module.p[index, :, x, x] = -gammas[index % len(gammas)] * eye_x
            module.p[index, :, y, y] = etas[index % len(etas)] / rows * eye_y
    return module.eval().requires_grad_(False)


def interpolated(trained: LinearSelfAttention, eta: float, rows: int) -> LinearSelfAttention:
    """Average trained and constructed weights: the result works only if both compute the same.

    The products `Wq Wk^T` and `Wv P` are averaged, after the trained pair is rescaled so that the mean
    of the first d diagonal entries of `Wq Wk^T` is 1 (which changes nothing it computes).

    Raises:
        ValueError: the module has several heads, separate weights in several layers, or is not plain.
    """
    if trained.wq.shape[:2] != (1, 1) or trained.layout != "joint" or trained.attention != "linear":
        raise ValueError("interpolation is defined for one head of linear attention on joint tokens")
    d, layers = trained.width, trained.layers
    built = constructed(d, trained.outputs, eta=eta, rows=rows, layers=layers).to(trained.wq)
    pairs = []
    for module in (trained, built):
        kq, vp = module.wq[0, 0] @ module.wk[0, 0].T, module.wv[0, 0] @ module.p[0, 0]
        size = kq.diagonal()[:d].mean()
        pairs.append((kq / size, vp * size))
    with torch.no_grad():
        eye = torch.eye(len(built.wq[0, 0])).to(built.wq)
        for weight, value in (
            (built.wq, 0.5 * (pairs[0][0] + pairs[1][0])),
            (built.wv, 0.5 * (pairs[0][1] + pairs[1][1])),
        ):
            weight[0, 0] = value
        built.wk[0, 0] = built.p[0, 0] = eye
    return built


def sinusoids(length: int, size: int) -> Tensor:
    """Sinusoidal positions `(length, size)`: sines at even, cosines at odd coordinates."""
    rate = torch.exp(torch.arange(0, size, 2) * (-math.log(10_000.0) / size))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :size]


def _variance_scaling(shape: tuple[int, ...], scale: float, fan_in: int) -> Tensor:
    # Truncation at 2 sigma reduces the standard deviation of a normal to 0.8796 of it.
    std = math.sqrt(scale / fan_in) / 0.87962566103423978
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)


def _heads(tokens: Tensor, weight: Tensor) -> Tensor:
    """`(B, T, D)` times `(H, D, K)` as one product: `(B, H, T, K)`."""
    heads, size, key = weight.shape
    flat = tokens @ weight.transpose(0, 1).reshape(size, heads * key)
    return flat.view(*tokens.shape[:2], heads, key).transpose(1, 2)


def _padded(values: Tensor, width: int, left: bool = False) -> Tensor:
    padding = width - values.shape[-1]
    return nn.functional.pad(values, (padding, 0) if left else (0, padding))

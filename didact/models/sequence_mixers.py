"""Causal sequence mixers other than softmax attention: fast weights, RetNet, RWKV and Hyena.

Each has a parallel form, used here, and an equal recurrent one that goes token by token with a state:

    fast weights   W_t = W_{t-1} + v_t k_t^T                    out_t = W_t q_t / t
    RetNet         S_t = g S_{t-1} + k_t v_t^T                  out_t = q_t S_t, normalised, gated
    RWKV           a_t = e^-w a_{t-1} + e^k_t v_t               out_t = r_t (a_{t-1} + e^(u + k_t) v_t), divided by
                                                                the same sum with v = 1
    Hyena          z_t = k_t v_t (entry by entry)               out_t = q_t sum_{s <= t} h_{t-s} z_s

Sources: Schlag et al. 2021, arXiv:2102.11174 (fast weights); Sun et al. 2023, arXiv:2307.08621 (RetNet, section 2);
Peng et al. 2023, arXiv:2305.13048 (RWKV, section 3); Poli et al. 2023, arXiv:2302.10866 (Hyena, section 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 8  # tokens of a row in one RWKV chunk: the memory kept for the gradient grows with it
NEAR = 3  # taps of Hyena's short convolution
WAVES, HIDDEN, PITCH = 16, 64, 10.0  # of the network that computes its long filters: inputs, width, rate of the sines


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fast weights: `W_t q_t` with `W_t = sum_{s <= t} v_s k_s^T / t`, `(B, H, T, K)`."""
    k = F.normalize(k, dim=-1)
    counts = torch.arange(1, q.shape[-2] + 1, device=q.device, dtype=q.dtype)[:, None]
    return torch.tril(q @ k.transpose(-1, -2)) @ v / counts


# --- RetNet ----------------------------------------------------------------------------------


class Retention(nn.Module):
    """RetNet's layer: heads with different decay rates, each normalised, gated by the token itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.gate = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(heads, width, affine=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed tokens `(B, T, width)`."""
        rows, length, width = tokens.shape
        q, k, v = self.qkv(tokens).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = retained(q, k, v).transpose(1, 2).reshape(rows * length, width)
        out: Tensor = self.norm(mixed).view_as(tokens) * F.silu(self.gate(tokens))
        return out


def retained(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`sum_{s <= t} g^(t-s) (q_t . k_s) v_s` with rotary positions in queries and keys, `(B, H, T, K)`."""
    heads, length, size = q.shape[-3:]
    angles = rotations(length, size // 2 * 2, q)
    q, k = rotated(q, *angles), rotated(k, *angles)
    t = torch.arange(length, device=q.device, dtype=q.dtype)
    decay = decays(heads, q)[:, None, None] ** (t[:, None] - t).clamp(min=0)
    return torch.tril(q @ k.transpose(-1, -2) * decay) @ v


def decays(heads: int, like: Tensor) -> Tensor:
    """The decay of every head's state from one token to the next, `(H,)`: `1 - 2^(-5-h)`."""
    return 1 - 2.0 ** (-5 - torch.arange(heads, device=like.device, dtype=like.dtype))


# --- RWKV ------------------------------------------------------------------------------------


class TimeMix(nn.Module):
    """RWKV-4's layer: in every column a mean of values weighted down with distance, gated by the token."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        place = torch.arange(width) / max(1, width - 1)
        self.log_decay = nn.Parameter(-5 + 8 * place**0.7)
        self.bonus = nn.Parameter(torch.full((width,), math.log(0.3)))
        self.fresh = nn.Parameter(place.repeat(3, 1, 1, 1))  # token shift: weight of a token against the one before
        self.key, self.value, self.gate = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed tokens `(B, T, width)`."""
        earlier = F.pad(tokens[:, :-1], (0, 0, 1, 0))
        k, v, r = (layer(torch.lerp(earlier, tokens, share)) for layer, share in
                   zip((self.key, self.value, self.gate), self.fresh, strict=True))  # fmt: skip
        return r.sigmoid() * faded(self.log_decay.exp(), self.bonus, k, v)


def faded(decay: Tensor, bonus: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean of all `v_s` so far, weighted by `e^(k_s - (t - 1 - s) decay)`, the last by `e^(k + bonus)`, by column.

    `(B, T, D)`; computed in chunks: everything before a chunk is summarised by one value and its weight.
    """
    mean, weight = torch.zeros_like(v[:, :1]), torch.full_like(k[:, :1], -1e30)
    out = []
    for keys, values in zip(k.split(PIECE, 1), v.split(PIECE, 1), strict=True):
        count = keys.shape[1]
        t = torch.arange(count + 1, device=k.device, dtype=k.dtype)  # the last is for the next chunk
        gap = (t[:, None] - 1 - t[:count])[..., None]
        past = keys[:, None] - gap * decay
        logits = torch.where(gap < 0, -torch.inf, past)
        logits = torch.where(gap == -1, keys[:, None] + bonus, logits)[:, :count]
        log_weights = torch.cat([torch.cat([logits, past[:, count:]], 1), (weight - t[:, None] * decay)[:, :, None]], 2)
        mixed = torch.einsum("btsd,bsd->btd", log_weights.softmax(2), torch.cat([values, mean], 1))
        out.append(mixed[:, :count])
        mean, weight = mixed[:, count:], log_weights[:, count:].logsumexp(2)
    return torch.cat(out, 1)


# --- Hyena -----------------------------------------------------------------------------------


class Hyena(nn.Module):
    """Hyena's layer of order two: a gate, a convolution as long as the row, a gate.

    A small network computes one filter per column, under a window that decays fast in some columns, slowly in others.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.near = nn.Conv1d(3 * width, 3 * width, NEAR, padding=NEAR - 1, groups=3 * width)
        self.first, self.second = nn.Linear(WAVES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, width, bias=False)
        self.now = nn.Parameter(torch.ones(width))

    def filters(self, length: int) -> Tensor:
        """Compute `h (T, width)`: the weight of the token 0, 1, ... positions before."""
        weight = self.first.weight
        waves = torch.cat(rotations(length, WAVES, weight), -1)
        filters: Tensor = self.last((PITCH * self.second((PITCH * self.first(waves)).sin())).sin())
        t = torch.arange(length, device=weight.device, dtype=weight.dtype)[:, None]
        lengths = torch.logspace(0, 2.5, filters.shape[1], device=weight.device, dtype=weight.dtype)
        return filters * torch.exp(-t / lengths) / lengths.sqrt()

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed tokens `(B, T, width)`."""
        length = tokens.shape[1]
        q, k, v = self.near(self.qkv(tokens).transpose(1, 2))[..., :length].transpose(1, 2).chunk(3, -1)
        z = k * v
        return q * (convolved(z, self.filters(length)) + self.now * z)


def convolved(z: Tensor, filters: Tensor) -> Tensor:
    """`sum_{s <= t} h_{t-s} z_s` of `z (B, T, D)` and `h (T, D)`, by fast Fourier transform."""
    length = z.shape[1]
    padded = 2 * length  # zero padding, or the convolution would be circular
    spectrum = torch.fft.rfft(z, padded, dim=1) * torch.fft.rfft(filters, padded, dim=0)
    return torch.fft.irfft(spectrum, padded, dim=1)[:, :length]


# --- positions -------------------------------------------------------------------------------


def rotations(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return sines and cosines of rotary positions, each `(length, size / 2)`."""
    rate = 10_000.0 ** (-torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size)
    angle = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * rate
    return angle.sin(), angle.cos()


def rotated(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Rotate pairs of the first coordinates of `(..., T, K)` by their position; the others are unchanged."""
    half = sine.shape[-1]
    a, b, unrotated = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine, unrotated], -1)

"""N-gram lookup arms: sorted positions and running sums against the attention matrix they stand for, over lengths."""

from __future__ import annotations

from typing import Any

import torch

from bench import problems
from didact.models import ngram_heads

WIDTH, WORDS, SIZE, CHECKED = 128, 200, 2, 512


def _text(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (1, length), generator=draw)
    return ids, torch.randn(1, length, WIDTH, generator=draw)


def sorted_sums(length: int = 8192) -> dict[str, Any]:
    """Forward and backward; beside it what the definition gives for a short text, as the other arm has it."""
    return _measured(length, ngram_heads.look_up)


def quadratic(length: int = 8192) -> dict[str, Any]:
    """The attention matrix, as the paper's code has it, in single precision."""
    return _measured(length, lambda states, ids, n: ngram_heads.weights(ids, n).to(states) @ states)


def _measured(length: int, look_up: Any) -> dict[str, Any]:
    ids, states = _text(length)
    states.requires_grad_()

    def work() -> None:
        look_up(states, ids, SIZE).sum().backward()

    told = problems.measured(work, length, lambda: look_up(*reversed(_text(CHECKED)), SIZE))
    short, wide = _text(CHECKED)
    told["value"] = look_up(wide.double(), short, SIZE)[0, :, :8].tolist()
    return told

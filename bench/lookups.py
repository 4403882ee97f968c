"""N-gram lookup arms: sorted positions and running sums against the equivalent attention matrix, by length."""

from __future__ import annotations

from typing import Any

import torch

from bench import problems
from didact.models import ngram_heads

WIDTH, WORDS, SIZE, CHECKED = 128, 200, 2, 512


def _text(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (1, length), generator=rng)
    return ids, torch.randn(1, length, WIDTH, generator=rng)


def sorted_sums(length: int = 8192) -> dict[str, Any]:
    """Forward and backward; `value` is the output for a short text, to compare with the other arm's."""
    return _measured(length, ngram_heads.look_up)


def quadratic(length: int = 8192) -> dict[str, Any]:
    """The attention matrix, as in the paper's code, in single precision."""
    return _measured(length, lambda states, ids, n: ngram_heads.weights(ids, n).to(states) @ states)


def _measured(length: int, look_up: Any) -> dict[str, Any]:
    ids, states = _text(length)
    states.requires_grad_()

    def work() -> None:
        look_up(states, ids, SIZE).sum().backward()

    result = problems.measured(work, length, lambda: look_up(*reversed(_text(CHECKED)), SIZE))
    short_ids, short_states = _text(CHECKED)
    result["value"] = look_up(short_states.double(), short_ids, SIZE)[0, :, :8].tolist()
    return result

"""A rule in place of a language model: for claims about a procedure whose models would have to be large.

What such a claim shows is named in it: that the procedure does what it says, with a reader whose knowledge and errors
are known exactly; nothing of what language models can do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from didact.types import UserError


class Rule:
    """An `LM` that answers every prompt by `answer(prompt)` and can do nothing else."""

    name, context, capabilities = "a rule", 1 << 20, frozenset({"generate"})

    def answer(self, prompt: str) -> str:
        """What it says."""
        raise NotImplementedError  # each rule says what

    def fingerprint(self) -> str:
        """What tells it from another."""
        return f"{type(self).__name__} {sorted(vars(self).items(), key=str)}"

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(t.split()) for t in texts]

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 64, **how: Any) -> list[list[str]]:
        """One answer each, whatever the temperature."""
        return [[self.answer(p)] for p in prompts]

    def chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], max_new_tokens: int = 256, **how: Any
    ) -> NoReturn:
        """It does not."""
        raise UserError(f"{self.name} does not chat")

    def score(self, pairs: Sequence[tuple[str, str]]) -> NoReturn:
        """It does not."""
        raise UserError(f"{self.name} does not score")

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> NoReturn:
        """It has none."""
        raise UserError(f"{self.name} has no log-probs")


def drawn(*what: Any) -> np.random.Generator:
    """A generator that follows from anything with a repr, the same in every process."""
    return np.random.default_rng(int(hashlib.sha256(repr(what).encode()).hexdigest()[:12], 16))

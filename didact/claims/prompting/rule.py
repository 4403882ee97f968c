"""A rule in place of a language model: for claims about a procedure whose models would have to be large.

Such a claim says so: it shows that the procedure works as described, with a reader whose knowledge and errors are known
exactly, and nothing about what language models can do.
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
        """The answer to a prompt."""
        raise NotImplementedError  # for subclasses

    def fingerprint(self) -> str:
        """Class name and parameters."""
        return f"{type(self).__name__} {sorted(vars(self).items(), key=str)}"

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Word counts."""
        return [len(t.split()) for t in texts]

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 64, **how: Any) -> list[list[str]]:
        """One answer per prompt, whatever the temperature."""
        return [[self.answer(p)] for p in prompts]

    def chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], max_new_tokens: int = 256, **how: Any
    ) -> NoReturn:
        """Not supported."""
        raise UserError(f"{self.name} does not chat")

    def score(self, pairs: Sequence[tuple[str, str]]) -> NoReturn:
        """Not supported."""
        raise UserError(f"{self.name} does not score")

    def top_logprobs(self, prompts: Sequence[str], k: int = 20) -> NoReturn:
        """Not supported."""
        raise UserError(f"{self.name} has no log-probs")


def drawn(*what: Any) -> np.random.Generator:
    """A random generator seeded by anything with a repr, the same in every process."""
    return np.random.default_rng(int(hashlib.sha256(repr(what).encode()).hexdigest()[:12], 16))

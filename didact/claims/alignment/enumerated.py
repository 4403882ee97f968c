"""Models on a world whose answers can all be enumerated (`worlds.outcomes`), as tables of logits over its letters."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didact.data import encode
from didact.models import logit_ensemble
from didact.models.model import Model, copy_of
from didact.objectives import preference
from didact.types import Fit, Preference
from didact.worlds import outcomes
from didact.worlds.outcomes import Outcomes


@functools.lru_cache(maxsize=64)
def _tokens(tokenizer: Any, prompt: str, letters: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    text = "".join(chr(97 + letter) for letter in range(letters))
    row = encode.row(tokenizer, prompt, text, "causal", 64, end=False)
    tokens = row.prompt + row.completion  # white space before the first letter counts as the prompt's
    return tokens[:-letters], tokens[-letters:]


def letters_of(model: Model, world: Outcomes) -> list[int]:
    """Token ids of the letters."""
    return list(_tokens(model.tokenizer, "- ", world.letters)[1])


def ids(model: Model, world: Outcomes, prompts: Iterable[str], answers: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of every prompt with every answer or prefix of one, `(prompts * answers, tokens)`."""
    letters, prompt_rows = letters_of(model, world), [_tokens(model.tokenizer, p, world.letters)[0] for p in prompts]
    return torch.tensor([[*row, *(letters[c] for c in answer)] for row in prompt_rows for answer in answers])


@torch.no_grad()
def table(model: Model, world: Outcomes, prompt: str) -> Tensor:
    """Logits of every letter after every prefix, `(P, V)`; other tokens are left out."""
    input_ids = ids(model, world, [prompt], [y[:-1] for y in world.answers])
    logits = model.module(input_ids=input_ids, use_cache=False).logits[:, -world.length :, letters_of(model, world)]
    out = torch.zeros(len(world.prefixes), world.letters, dtype=torch.float64)
    out[world.paths[0]] = logits.double()
    return out


@torch.no_grad()
def decoder_off(decoder: Any, base: Model, world: Outcomes, prompt: str, wanted: Tensor) -> float:
    """Largest difference between a logits processor's probabilities, decoded token by token from its cache, and the
    `wanted` ones `(P, V)`."""
    worst = 0.0
    for t in range(world.length):
        input_ids = ids(base, world, [prompt], [y[:t] for y in world.answers])
        scores = decoder(input_ids, base.module(input_ids=input_ids, use_cache=False).logits[:, -1])
        probs = scores[:, letters_of(base, world)].softmax(-1)
        worst = max(worst, float((probs - wanted[world.paths[0][:, t]]).abs().max()))
    return worst


_combine = logit_ensemble.combine  # the intact function, which the two sabotages wrap


def backwards(base: Tensor, guides: Any, normalize: bool = False) -> Tensor:
    """Sabotage: `logit_ensemble.combine` with negated weights, so that guides repel."""
    return _combine(base, [(x, -alpha) for x, alpha in guides], normalize)


def divided(base: Tensor, guides: Any, normalize: bool = False) -> Tensor:
    """Sabotage: `logit_ensemble.combine` divided by the sum of weights."""
    return _combine(base, guides, True)


# --- several prompts, one letter each, with exact gradients -----------------------------------


def logp(model: Model, world: Outcomes, prompts: str) -> tuple[Tensor, Tensor]:
    """Log-probs of all answers to all prompts, normalised over the letters, `(X, n)`; and the mean of
    `-log P(a letter)` in nats, the cost of probability on other tokens."""
    module: Any = model.module
    prefixes = sorted({y[:-1] for y in world.answers})  # shorter prefixes are read on the way
    input_ids = ids(model, world, [f"{x} " for x in prompts], prefixes)
    hidden = module.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, -world.length :]
    hidden = hidden.view(len(prompts), len(prefixes), world.length, -1)
    head, letters = module.get_output_embeddings().weight, letters_of(model, world)
    logits, all_logits = (hidden @ head[letters].T).double(), hidden @ head.T
    index = {p: i for i, p in enumerate(world.prefixes)}
    places = [index[prefix[:t]] for prefix in prefixes for t in range(world.length)]
    answer_logp = world.logp(logits.flatten(1, 2)[:, [places.index(i) for i in range(len(world.prefixes))]])
    return answer_logp, (all_logits.logsumexp(-1) - all_logits[..., letters].logsumexp(-1)).mean()


def likelihood(model: Model, world: Outcomes, prompts: str, source: Tensor, steps: int, lr: float) -> None:
    """Train a model on a source `(X, n)` by exact likelihood, and to put its probability on letters."""
    optimizer = torch.optim.Adam(model.module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        answer_logp, other_cost = logp(model, world, prompts)
        (outcomes.kl(source, answer_logp).mean() + other_cost).backward()
        optimizer.step()


# --- a reward model of whole answers ---------------------------------------------------------


class Scorer(nn.Module):
    """A trajectory reward model: one score after the last token."""

    def __init__(self, start: Model) -> None:
        super().__init__()
        self.body: Any = copy_of(start).module.base_model
        self.head = nn.Linear(start.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores after every token, `(B, T)`."""
        return self.head(self.body(input_ids=ids, use_cache=False).last_hidden_state)[..., 0]


def trajectory(start: Model, world: Outcomes, prompt: str, pairs: list[Preference], fit: Fit) -> tuple[Tensor, Tensor]:
    """Train a Bradley-Terry reward model on whole answers and apply it to prefixes too, as ARGS does: scores of each
    next letter `(P, V)`, and of whole answers `(n,)`."""
    torch.manual_seed(fit.seed)
    scorer, steps = Scorer(start), fit.total_steps(0)
    chosen, rejected = (
        ids(start, world, [prompt], [[ord(c) - 97 for c in text] for text in texts])
        for texts in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
    )
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=fit.lr, weight_decay=0.0)
    rng = np.random.default_rng([fit.seed, 65])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = fit.lr * (1 - step / steps)
        batch = torch.tensor(rng.integers(len(pairs), size=fit.rows))
        scores = [scorer(side[batch])[:, -1] for side in (chosen, rejected)]
        optimizer.zero_grad()
        preference.pairwise(scores[0] - scores[1]).mean().backward()
        nn.utils.clip_grad_norm_(scorer.parameters(), fit.clip)
        optimizer.step()
    with torch.no_grad():
        answer_scores = scorer(ids(start, world, [prompt], world.answers))
    out = torch.zeros(len(world.prefixes), world.letters)
    out[world.paths] = answer_scores[:, -world.length :]
    return out.double(), answer_scores[:, -1].double()

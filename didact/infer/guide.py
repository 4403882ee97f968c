"""Guided decoding: at every token the weighted log-probs of guide models are added to the base model's.

    log pi(v | x, y<t) = log p_base(v | x, y<t) + sum_i alpha_i log p_i(v | x, y<t) - log Z(x, y<t)

With models p_i trained as autoregressive rewards this is GenARM's decoding (Xu et al., 2024), alpha = 1/beta. A
`GuidedDecoder` is a transformers logits processor: it works in `module.generate(logits_processor=[...])` and in
didact's own `generate.completions(processors=[...])`. Every guide has its own key/value cache: a token
costs one pass of the base and one of each guide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from didact.infer import generate
from didact.infer.rows import Reread, Rows
from didact.models import logit_ensemble, prefix
from didact.models.model import Model
from didact.types import UserError

ROOM = 64  # tokens a guide's cache grows by: a logits processor does not know how many will come


class Guide(NamedTuple):
    """A guide model, its weight, and a map from the base's prompt to its own (token ids to token ids)."""

    model: Model
    alpha: float
    prompt: Callable[[Sequence[int]], Sequence[int]] | None = None


class GuidedDecoder(LogitsProcessor):
    """Adds the guides' weighted log-probs to a base model's; see `models.logit_ensemble.combine` for the formula.

        decoder = GuidedDecoder(base, [(arm, 1.0)])
        base.module.generate(**inputs, do_sample=True, logits_processor=[decoder])

    Weights may be changed between generations (`decoder.weights`), and one decoder serves any number of them in
    sequence. Greedy choice, sampling, any batch and beams are exact: rows are tracked by their tokens. Left padding is
    recognised by the base's pad token, unless `begin` passes the prompts (`generate.completions` does).

    Args:
        base: the model that is guided.
        guides: models with their weights, or `Guide`s; a negative weight steers away.
        normalize: see `models.logit_ensemble.combine`.

    Raises:
        UserError: a guide has another vocabulary, or a model is not causal.
    """

    def __init__(self, base: Model, guides: Sequence[Guide | tuple[Model, float]], normalize: bool = False) -> None:
        self.base, self.normalize = base, normalize
        self.guides = [Guide(*g) for g in guides]
        logit_ensemble.check_all(base, [guide.model for guide in self.guides])
        self.weights = [g.alpha for g in self.guides]
        self._states: list[Rows | Reread] = []
        self._last_read: Tensor | None = None
        self._begun = False
        self._end_tokens = generate.ends(base) | {base.pad}

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read these prompts (token ids, no padding), the rows of the next call."""
        self._states = [_start_state(g, prompts) for g in self.guides]
        self._begun = True

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `(B, V)` of the tokens after `input_ids (B, T)`."""
        if not self._begun:
            self._follow(input_ids)
        self._begun, self._last_read = False, input_ids
        logits = [state.logits.to(scores.device) for state in self._states]
        return logit_ensemble.combine(scores, list(zip(logits, self.weights, strict=True)), self.normalize)

    def _follow(self, read: Tensor) -> None:
        """Advance every guide to the end of these rows: by one token if they continue the last, else from scratch."""
        parents = _parents(self._last_read, read)
        if parents is None:
            prompts = [
                list(itertools.dropwhile(lambda t: t == self.base.pad, row)) or row[-1:] for row in read.tolist()
            ]
            self._states = [_start_state(g, prompts) for g in self.guides]
            return
        last = read[:, -1]
        active = [i for i, t in enumerate(last.tolist()) if t not in self._end_tokens]
        for guide, state in zip(self.guides, self._states, strict=True):
            if parents != list(range(len(parents))):
                state.keep(parents)
            _make_room(state, active, guide.model)
            state.step(last.to(guide.model.device))


def decoder(model: logit_ensemble.EnsembleModel) -> GuidedDecoder:
    """Return the logits processor with which the base decodes as the guided model."""
    base, *guides = model.members
    alphas = model.module.spec["alphas"]
    return GuidedDecoder(base, list(zip(guides, alphas, strict=True)), model.module.spec["normalize"])


def _start_state(guide: Guide, prompts: Sequence[Sequence[int]]) -> Rows | Reread:
    """Return a guide's state after the prompts; equal neighbours are read once."""
    model = guide.model
    tokens = [tuple(guide.prompt(p) if guide.prompt else p) for p in prompts]
    longest = max(map(len, tokens))
    if longest > model.context:
        raise UserError(f"a prompt has {longest} tokens and the reward model's context {model.context}: shorten it")
    if not prefix.shares(model):
        reread = Reread(model)
        reread.turn((), [list(p) for p in tokens])
        return reread
    groups = [(p, len(list(run))) for p, run in itertools.groupby(tokens)]
    shared = prefix.common([p for p, _ in groups])
    state = Rows(model, groups[0][0][:shared] if shared >= generate.SHARE else ())
    state.turn((), [p for p, _ in groups], ROOM, [n for _, n in groups])
    return state


def _make_room(state: Rows | Reread, active: Sequence[int], model: Model) -> None:
    """Make room for a token. Ended rows go on beside the others; their input does not matter."""
    if isinstance(state, Reread):
        lengths = [len(p) + len(m) for p, m in zip(state.prompts, state.made, strict=True)]
    else:
        lengths = state.lengths
        if min(state.left) < 1:
            state.left = [ROOM] * len(state.left)
            state.turn(range(len(state.left)))
    if any(lengths[k] >= model.context for k in active):
        raise UserError(f"prompt and answer have more tokens than the reward model's context of {model.context}")


def _parents(before: Tensor | None, read: Tensor) -> list[int] | None:
    """Return the row of `before` that every row of `read` continues by one token; None where one does not."""
    if before is None or read.shape[1] != before.shape[1] + 1:
        return None
    if read.shape[0] == before.shape[0] and torch.equal(read[:, :-1], before):
        return list(range(len(read)))
    rows = {tuple(row): k for k, row in enumerate(before.tolist())}
    parents = [rows.get(tuple(row)) for row in read[:, :-1].tolist()]
    return None if None in parents else [k for k in parents if k is not None]

"""A case where in-context learning and gradient descent are known to be equal: linear attention and explicit steps.

The positive control of comparisons of the two (`three_way`, `equivalence`): they must find them equal here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from didact.evaluate.learners import Learner
from didact.evaluate.three_way import Episode, Reading, Way


@dataclass(frozen=True)
class LinearReader:
    """Regression of o targets as logits of o tokens: linear attention is ICL, gradient descent is fine-tuning.

    Demonstrations are `(x (d,), y (o,))`, queries `(x (d,), y (o,))`; the right answer is the largest target.

    Args:
        attention: the learner that reads demonstrations.
        descent: gradient descent by rate and number of steps; epoch e of a `Way` is e steps at `how.lr`.
        scale: factor from outputs to logits.
    """

    attention: Learner
    descent: Callable[[float, int], Learner]
    scale: float = 1.0

    def without(self, episode: Episode) -> Reading:
        """The reading without demonstrations, of W = 0."""
        return self._reading(episode, lambda x, y, query: torch.zeros(len(query), y.shape[-1], dtype=y.dtype))

    def shown(self, episode: Episode) -> Reading:
        """The reading with demonstrations, of `attention`."""
        return self._reading(episode, self.attention)

    def tuned(self, episode: Episode, way: Way) -> Iterator[Reading]:
        """The reading after every epoch of gradient descent."""
        for steps in range(1, way.how.epochs + 1):
            yield self._reading(episode, self.descent(way.how.lr, steps))

    def _reading(self, episode: Episode, learner: Learner) -> Reading:
        x, y = (torch.stack([d[i] for d in episode.demos]) for i in (0, 1))
        query, target = (torch.stack([q[i] for q in episode.queries]) for i in (0, 1))
        n = len(query)
        with torch.no_grad():
            logp = (self.scale * learner(x.expand(n, -1, -1), y.expand(n, -1, -1), query)).log_softmax(-1)
        return Reading(logp, logp, logp.argmax(-1) == target.argmax(-1))

"""Best-of-n and worst-of-n: draw n completions, keep the one that a reward or the model itself ranks first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from didact.infer import generate
from didact.models.model import Model


class Pick(NamedTuple):
    """The chosen text, its index among the draws, and all draws with their scores in the order drawn."""

    text: str
    number: int
    texts: tuple[str, ...]
    scores: tuple[float, ...]


def pick(texts: Sequence[str], scores: Sequence[float], worst: bool = False) -> Pick:
    """Return the text with the highest (lowest) score; the first of equal ones.

    Raises:
        ValueError: no text, or a NaN score.
    """
    if not texts or len(texts) != len(scores) or any(s != s for s in scores):
        raise ValueError(f"{len(texts)} texts cannot be picked from by scores {list(scores)}")
    number = (min if worst else max)(range(len(texts)), key=lambda i: scores[i])
    return Pick(texts[number], number, tuple(texts), tuple(scores))


def best_of(
    model: Model,
    prompts: Sequence[str],
    n: int,
    reward: Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None = None,
    worst: bool = False,
    how: generate.SamplingConfig | None = None,
) -> list[Pick]:
    """Draw `n` completions of every prompt and keep the best (worst).

    Args:
        model: draws the completions.
        prompts: texts.
        n: draws per prompt; the first k of n draws are the same as with n = k.
        reward: `reward(prompts, completions)`, one number each, called once for all draws; by default the draw's
            log-prob, SUM over its tokens.
        worst: keep the lowest instead: what an attacker who may draw n times gets.
        how: decoding options; temperature 1 by default.
    """
    completions = generate.completions(model, prompts, n, how or generate.SamplingConfig(temperature=1.0))
    if reward is None:
        scores = [c.logp for draws in completions for c in draws]
    else:
        repeated = [p for p, draws in zip(prompts, completions, strict=True) for _ in draws]
        scores = [float(x) for x in reward(repeated, [c.text for draws in completions for c in draws])]
    return [pick([c.text for c in draws], scores[i * n : (i + 1) * n], worst) for i, draws in enumerate(completions)]

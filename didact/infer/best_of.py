"""Best-of-n and worst-of-n: draw n completions, keep the one a reward or the model itself ranks first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from didact.infer import generate
from didact.models.model import Model


class Pick(NamedTuple):
    """The chosen text, which draw it is, and all draws with their scores in the order they were drawn."""

    text: str
    number: int
    texts: tuple[str, ...]
    scores: tuple[float, ...]


def pick(texts: Sequence[str], scores: Sequence[float], worst: bool = False) -> Pick:
    """The text with the highest (lowest) score; of equals the first.

    Raises:
        ValueError: no text, or a score that is not a number.
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
        model: draws them.
        prompts: texts.
        n: draws per prompt; the first k of n draws are those of k.
        reward: `reward(prompts, completions)`, one number for each, asked once for all draws; the draw's log-prob,
            SUM over its tokens, where none is given.
        worst: keep the lowest instead: what an attacker who may draw n times gets.
        how: how to draw; at temperature 1 by default.
    """
    made = generate.completions(model, prompts, n, how or generate.SamplingConfig(temperature=1.0))
    if reward is None:
        scores = [c.logp for row in made for c in row]
    else:
        asked = [p for p, row in zip(prompts, made, strict=True) for _ in row]
        scores = [float(x) for x in reward(asked, [c.text for row in made for c in row])]
    return [pick([c.text for c in row], scores[i * n : (i + 1) * n], worst) for i, row in enumerate(made)]

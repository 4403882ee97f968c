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
    reward: Callable[[str, str], float] | None = None,
    worst: bool = False,
    how: generate.How | None = None,
) -> list[Pick]:
    """Draw `n` completions of every prompt and keep the best (worst).

    Args:
        model: draws them.
        prompts: texts.
        n: draws per prompt; the first k of n draws are those of k.
        reward: `reward(prompt, completion)`; the draw's log-prob, SUM over its tokens, where none is given.
        worst: keep the lowest instead: what an attacker who may draw n times gets.
        how: how to draw; at temperature 1 by default.
    """
    made = generate.completions(model, prompts, n, how or generate.How(temperature=1.0))
    out = []
    for prompt, row in zip(prompts, made, strict=True):
        scores = [float(reward(prompt, c.text)) if reward is not None else c.logp for c in row]
        out.append(pick([c.text for c in row], scores, worst))
    return out

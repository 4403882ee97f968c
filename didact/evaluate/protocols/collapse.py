"""Diagnostics of collapse: how far training moved a model from its start, and how diverse its answers still are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from didact.data import encode, words
from didact.data.encode import TokenizedExample
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.infer import generate
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens

DRAWN_TOKENS = 64
PROMPTS = 32
OPENING, FEW = 12, 3  # an answer whose first OPENING units have at most FEW distinct ones is a loop
OFTEN = 0.25  # rise of the share of loops that is warned about


def collapse(model: Model, start: Model, prompts: Sequence[str], seed: int = 0) -> dict[str, Measure]:
    """Diagnostics on one answer a prompt, sampled at temperature 1.

        kl = mean over prompts of log pi(y|x) - log pi_start(y|x), y ~ pi     (nats a sequence, unbiased)

    Args:
        model: the trained model.
        start: the model it was trained from.
        prompts: held-out prompts.
        seed: seed of the sampling.

    Returns:
        `kl`, `length` in tokens, `entropy` of the next token along the answers, `distinct_2` the share of
        different bigrams among all bigrams of all answers.
    """
    room = max(1, model.context - DRAWN_TOKENS)
    ids, start_ids = (
        [encode.prompt_ids(m.tokenizer, p, m.kind, m.condition)[-room:] or [m.pad] for p in prompts]
        for m in (model, start)  # each with its own condition
    )
    sampling = generate.SamplingConfig(max_new_tokens=DRAWN_TOKENS, temperature=1.0, seed=seed)
    completions = [draws[0] for draws in generate.completions(model, ids, 1, sampling)]
    out = {"length": mean_measure([len(c.tokens) for c in completions], "", "tokens of a sampled answer", "tokens")}
    rows = [TokenizedExample(tuple(p), c.tokens) for p, c in zip(ids, completions, strict=True) if c.tokens]
    if not rows:
        return out
    before = [TokenizedExample(tuple(p), c.tokens) for p, c in zip(start_ids, completions, strict=True) if c.tokens]
    drift = np.asarray([c.logp for c in completions if c.tokens]) - forward.row_logp(start, before)[0].numpy()
    entropies = [h for _, _, v in forward.score(model, rows, {"h": tokens.entropy}) for h in v["h"].tolist()]
    return out | {
        "kl": mean_measure(drift, "", "log-prob of its own answers minus the start model's", "nats"),
        "entropy": mean_measure(entropies, "", "entropy of the next token along its answers", "nats"),
        "distinct_2": Measure(
            distinct([c.text for c in completions], 2), len(completions), "", help="share of bigrams that are different"
        ),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of distinct n-grams of words among all; 0 if there are none."""
    grams = [tuple(units[i : i + n]) for units in map(words.tokens, texts) for i in range(len(units) - n + 1)]
    return float(len(set(grams)) / len(grams)) if grams else 0.0


def loops(text: str) -> bool:
    """Whether an answer repeats itself from its beginning, such as `Q: Q: Q: Q:`, or is empty.

    An answer that merely never ends (a base model's `Paris. The capital of ...`) is not a loop.
    """
    units = words.tokens(text)
    if len(units) <= FEW:  # one long word: letter by letter
        units, long = list("".join(units)), 2 * OPENING
    else:
        long = OPENING // 2
    return not units or (len(units) >= long and len(set(units[: max(OPENING, long)])) <= FEW)


def warns(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Warn if more answers to the same prompts are loops or empty after training than before."""
    loops_before, loops_after = (sum(map(loops, texts)) for texts in (before, after))
    if not after or loops_after - loops_before < OFTEN * len(after):
        return []
    return [f"answers degenerated: {loops_after} of {len(after)} are empty or loops ({loops_before} before training)"]


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """The diagnostics on prompts of records of any kind; none for a reward model, which does not generate."""
    prompts = scoring.some_prompts(PROMPTS)
    if model.kind == "encoder" or not prompts:
        return {}
    return collapse(model, scoring.start, prompts, scoring.seed)


PROTOCOL = Protocol(kind="", primary=None, score=score)

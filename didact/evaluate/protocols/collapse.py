"""What a score alone hides: how far training moved a model, and whether its answers still differ from one another."""

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
OPENING, FEW = 12, 3  # units of an answer's beginning, of which so few different ones are a loop
OFTEN = 0.25  # share of answers, from which more than before are told


def collapse(model: Model, start: Model, prompts: Sequence[str], seed: int = 0) -> dict[str, Measure]:
    """Diagnostics on one answer a prompt, sampled at temperature 1.

        kl = mean over prompts of log pi(y|x) - log pi_start(y|x), y ~ pi     (nats a sequence, unbiased)

    Args:
        model: the trained model.
        start: the model it was trained from.
        prompts: some that training did not see.
        seed: of the sampling.

    Returns:
        `kl`, `length` in tokens, `entropy` of the next token along the answers, `distinct_2` the share of
        different bigrams among all bigrams of all answers.
    """
    room = max(1, model.context - DRAWN_TOKENS)
    ids, start_ids = (
        [encode.prompt_ids(m.tokenizer, p, m.kind, m.condition)[-room:] or [m.pad] for p in prompts]
        for m in (model, start)  # each is asked in its own way, by its condition
    )
    how = generate.SamplingConfig(max_new_tokens=DRAWN_TOKENS, temperature=1.0, seed=seed)
    made = [draws[0] for draws in generate.completions(model, ids, 1, how)]
    out = {"length": mean_measure([len(c.tokens) for c in made], "", "tokens of a sampled answer", "tokens")}
    rows = [TokenizedExample(tuple(p), c.tokens) for p, c in zip(ids, made, strict=True) if c.tokens]
    if not rows:
        return out
    before = [TokenizedExample(tuple(p), c.tokens) for p, c in zip(start_ids, made, strict=True) if c.tokens]
    drift = np.asarray([c.logp for c in made if c.tokens]) - forward.row_logp(start, before)[0].numpy()
    entropies = [h for _, _, v in forward.score(model, rows, {"h": tokens.entropy}) for h in v["h"].tolist()]
    return out | {
        "kl": mean_measure(drift, "", "log-prob of its own answers less the start model's", "nats"),
        "entropy": mean_measure(entropies, "", "entropy of the next token along its answers", "nats"),
        "distinct_2": Measure(
            distinct([c.text for c in made], 2), len(made), "", help="share of bigrams that are different"
        ),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them; 0 where there are none."""
    grams = [tuple(said[i : i + n]) for said in map(words.tokens, texts) for i in range(len(said) - n + 1)]
    return float(len(set(grams)) / len(grams)) if grams else 0.0


def loops(text: str) -> bool:
    """Whether an answer goes round from its very beginning, as `Q: Q: Q: Q:` does, or says nothing.

    One that only never ends (a base model's `Paris. The capital of ...`) is another matter.
    """
    units = words.tokens(text)
    if len(units) <= FEW:  # one long word: letter by letter
        units, long = list("".join(units)), 2 * OPENING
    else:
        long = OPENING // 2
    return not units or (len(units) >= long and len(set(units[: max(OPENING, long)])) <= FEW)


def warns(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Where answers to the same prompts became loops or nothing."""
    was, now = (sum(map(loops, texts)) for texts in (before, after))
    if not after or now - was < OFTEN * len(after):
        return []
    return [f"answers degenerated: {now} of {len(after)} are empty or go round in a loop ({was} before training)"]


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """The diagnostics on some prompts of whatever records there are; a reward model says nothing and has none."""
    prompts = scoring.some_prompts(PROMPTS)
    if model.kind == "encoder" or not prompts:
        return {}
    return collapse(model, scoring.start, prompts, scoring.seed)


PROTOCOL = Protocol(kind="", primary=None, score=score)

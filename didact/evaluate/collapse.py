"""What a score alone hides: how far a taught model went, and whether its answers still differ from one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from didact.data import encode
from didact.data.encode import Row
from didact.evaluate.protocols import Measure, mean_measure
from didact.infer import lm
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens

DRAWN_TOKENS = 64


def collapse(model: Model, start: Model, prompts: Sequence[str], seed: int = 0) -> dict[str, Measure]:
    """Diagnostics on one answer a prompt, sampled at temperature 1.

        kl = mean over prompts of log pi(y|x) - log pi_start(y|x), y ~ pi     (nats a sequence, unbiased)

    Args:
        model: the taught model.
        start: the model it was taught from.
        prompts: some that training did not see.
        seed: of the sampling.

    Returns:
        `kl`, `length` in tokens, `entropy` of the next token along the answers, `distinct_2` the share of
        different bigrams among all bigrams of all answers.
    """
    made = [draws[0] for draws in lm.of(model).generate(prompts, DRAWN_TOKENS, temperature=1.0, seed=seed)]
    spoken = [(p, a) for p, a in zip(prompts, made, strict=True) if a.strip()]
    lengths = [len(model.tokenizer(a, add_special_tokens=False)["input_ids"]) for a in made]
    out = {"length": mean_measure(lengths, "", "tokens of a sampled answer", "tokens")}
    if not spoken:
        return out
    # No end token: a sample that was cut has none, and scoring one it did not draw would bias the divergence.
    rows = [_row(model, p, a) for p, a in spoken]
    drift = (forward.row_logp(model, rows)[0] - forward.row_logp(start, rows)[0]).numpy()
    entropies = [h for _, _, v in forward.score(model, rows, {"h": tokens.entropy}) for h in v["h"].tolist()]
    return out | {
        "kl": mean_measure(drift, "", "log-prob of its own answers less the start model's", "nats"),
        "entropy": mean_measure(entropies, "", "entropy of the next token along its answers", "nats"),
        "distinct_2": Measure(distinct(made, 2), len(made), "", help="share of bigrams that are different"),
    }


def _row(model: Model, prompt: str, answer: str) -> Row:
    """Prompt and answer as tokens, both cut to half the context at most: undone and redone, text may grow."""
    half = model.context // 2
    body = model.tokenizer(encode.join(prompt, answer, model.kind), add_special_tokens=False)["input_ids"]
    head = encode.prompt_ids(model.tokenizer, prompt, model.kind) or [model.pad]
    return Row(tuple(head[-half:]), tuple(body[:half]))


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them; 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in (t.split() for t in texts) for i in range(len(words) - n + 1)]
    return float(len(set(grams)) / len(grams)) if grams else 0.0


def shorter_wins(lengths: Sequence[tuple[int, int]]) -> float:
    """How often the rule "the shorter answer is the better" is right; lengths are (chosen, rejected)."""
    sides = np.asarray(lengths)
    return float(np.mean((sides[:, 0] < sides[:, 1]) + 0.5 * (sides[:, 0] == sides[:, 1])))

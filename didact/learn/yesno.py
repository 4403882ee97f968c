"""A language model as reward model: trained to answer yes for the better and no for the worse of two answers.

    L = sum w CE / count(w != 0),   w = 1 on the answer's tokens and `prompt_weight` on the question's

Source: Scheurer et al. 2023, arXiv:2303.16755 (classification reward model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.infer import yesno
from didact.infer.yesno import Question
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import Loss, TrainResult
from didact.models.model import Model
from didact.types import Fit, Preference, UserError

FEWEST = 10  # pairs below which none is held out for testing


def train(
    model: Model,
    preferences: Sequence[Preference],
    fit: Fit,
    *,
    question: Question = yesno.GOOD,
    prompt_weight: float = 0.0,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Train a copy to answer `question` about the chosen (yes) and the rejected (no) answer of every preference.

    The label is the word with a space before it, as `infer.yesno` looks for it; no end token is trained on.

    Raises:
        UserError: a record does not fit the context.
    """
    rows = []
    for number, pair in enumerate(preferences, 1):
        for text, word in ((pair.chosen, question.yes), (pair.rejected, question.no)):
            prompt = yesno.fill(question.template, {"prompt": str(pair.prompt), "completion": text}, "question")
            try:
                rows.append(encode.row(model.tokenizer, prompt, f" {word}", model.kind, model.context, end=False))
            except UserError as error:
                raise UserError(f"preferences: record {number}: {error}") from None
    items, loss = weighted(rows, prompt_weight, "answers", model)
    return language.train(model, {"answers": items}, loss, fit, hooks=hooks, name="reward")


def trained(
    model: Model, preferences: Sequence[Preference], fit: Fit, prompt_weight: float = 0.0
) -> tuple[TrainResult | None, dict[str, Any]]:
    """Train a reward model and measure its accuracy on every fifth pair, which is held out.

    If there are few pairs, all are used for training and for testing; without pairs there is no reward model.
    """
    hold_out = len(preferences) >= FEWEST
    pairs = [p for i, p in enumerate(preferences) if i % 5 or not hold_out]
    if not pairs:
        return None, {}
    result = train(model, pairs, fit, prompt_weight=prompt_weight)
    test_pairs = preferences[::5] if hold_out else pairs
    score = accuracy(result.model, test_pairs)
    return result, {"accuracy": score, "pairs": len(test_pairs), "trained_on": len(pairs)}


def accuracy(model: Model, preferences: Sequence[Preference], question: Question = yesno.GOOD) -> float:
    """How often yes is more likely for the chosen answer than for the rejected one; a tie counts half."""
    sides = [
        [{"prompt": str(p.prompt), "completion": text} for p, text in zip(preferences, texts, strict=True)]
        for texts in ([p.chosen for p in preferences], [p.rejected for p in preferences])
    ]
    pairs = zip(*(yesno.ask(model, [question], fields) for fields in sides), strict=True)
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(preferences)


def weighted(
    rows: Sequence[TokenizedExample], prompt_weight: float, stream: str, model: Model
) -> tuple[list[ExampleGroup], Loss]:
    """Return items and their loss `sum w CE / count(w != 0)`: w is 1 on completions and `prompt_weight` on prompts.

    Raises:
        UserError: `prompt_weight` for an encoder-decoder, which does not predict prompts.
    """
    if not prompt_weight:
        return language.single(rows), language.nll
    if model.kind != "causal":
        raise UserError(f"prompt_weight = {prompt_weight}: only a causal model predicts its prompts")
    prefix_lengths = torch.tensor([len(r.prompt) - 1 for r in rows])
    joined = [TokenizedExample(r.prompt[:1], r.prompt[1:] + r.completion) for r in rows]

    def loss(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        first = prefix_lengths.to(micro.index.device)[micro.index]
        return {"nll": language.weighted_cross_entropy(student, micro, first, prompt_weight)}

    return language.single(joined), loss

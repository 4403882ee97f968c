"""A language model's answer to a yes-or-no question, as a probability: P(yes) / (P(yes) + P(no)) of the next word.

    p = softmax over {log P(yes), log P(no)} = sigmoid(log P(yes) - log P(no))

P of a word is summed over its forms with and without a leading space. For a local model it is exact, even if the
tokenizer splits the word into several tokens; for any other the likeliest next tokens are searched, and if neither word
is among them there is no answer. Several wordings of one question are averaged, as probabilities (the paper) or as
logits, where a very confident one has more weight.

Source: Scheurer et al. 2023, arXiv:2303.16755 (InstructRM; a reward model as a language model).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Literal, NamedTuple

import numpy as np

from didact.data import encode, words
from didact.data.encode import TokenizedExample
from didact.infer import lm as language_models
from didact.models import forward
from didact.models.model import Model
from didact.types import LM, UserError

Mean = Literal["probability", "logit"]
TOP = 20  # next tokens searched where a word's own log-prob is not available
SURE = 30.0  # logits are cut here before they are averaged: probabilities of 0 and 1 have none


class Question(NamedTuple):
    """A template with fields in braces, and its two answers."""

    template: str
    yes: str = "Yes"
    no: str = "No"


GOOD = Question("{prompt}\n\nAnswer: {completion}\n\nIs this a good answer, yes or no?\n\nReply:")
"""The question to a language model that serves as a reward model."""


def share(yes: float, no: float) -> float:
    """The probability from two log-probs (or logits: a constant in both does not matter); NaN where both are -inf."""
    if yes == no:
        return math.nan if yes == -math.inf else 0.5
    gap = no - yes
    return 1 / (1 + math.exp(gap)) if gap < 700 else 0.0


def pool(probabilities: Iterable[float], mean: Mean = "probability") -> float:
    """The mean over wordings, NaN ones left out; NaN where none is left."""
    valid = [p for p in probabilities if not math.isnan(p)]
    if not valid:
        return math.nan
    if mean == "probability":
        return float(np.mean(valid))
    logits = [min(SURE, max(-SURE, math.log(p) - math.log1p(-p))) if 0 < p < 1 else SURE * (2 * p - 1) for p in valid]
    return share(float(np.mean(logits)), 0.0)


def fill(template: str, fields: Mapping[str, str], name: str = "template") -> str:
    """A template with its fields put in; braces in the fields' own text mean nothing.

    Raises:
        UserError: the template is invalid, or has an unknown field.
    """
    try:
        names = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        if unknown := [w for w in names if w not in fields]:
            raise UserError(f"{name}: {{{unknown[0]}}} is not one of {', '.join(f'{{{k}}}' for k in fields)}")
        return template.format(**fields)
    except (ValueError, IndexError) as error:
        raise UserError(f"{name}: {template[:60]!r} is not a valid template: {error}") from None


def probabilities(model: Model | LM, prompts: Sequence[str], yes: str = "Yes", no: str = "No") -> list[float]:
    """P(yes) / (P(yes) + P(no)) after every prompt; NaN where neither word is among the model's top tokens.

    Args:
        model: local, or anything with `top_logprobs`.
        prompts: texts that end where the answer begins.
        yes: one word.
        no: the other.

    Raises:
        UserError: a word is empty or both are the same; the model gives no log-probs.
    """
    if not yes.strip() or not no.strip() or yes.strip() == no.strip():
        raise UserError(f"answers '{yes}' and '{no}': two different words are expected")
    model = getattr(model, "model", model) if isinstance(model, language_models.Local) else model
    if isinstance(model, Model):
        logp = _exact(model, prompts, [_forms(yes), _forms(no)])
        return [share(a, b) for a, b in logp]
    scorer = language_models.need(model, "top_logprobs", by="a yes or no")
    tops = scorer.top_logprobs(list(prompts), TOP)
    return [share(_word_logp(top, yes), _word_logp(top, no)) for top in tops]


def ask(
    model: Model | LM, questions: Sequence[Question], fields: Sequence[Mapping[str, str]], mean: Mean = "probability"
) -> list[float]:
    """The pooled answer to the questions for every item; NaN where no wording was answered.

    Raises:
        UserError: no question, or one with a field that the items lack.
    """
    if not questions:
        raise UserError("questions: at least one is needed")
    by_question = [
        probabilities(model, [fill(q.template, f, "question") for f in fields], q.yes, q.no) for q in questions
    ]
    return [pool(answers, mean) for answers in zip(*by_question, strict=True)]


def _forms(word: str) -> list[str]:
    return [f" {word.strip()}", word.strip()]


def _exact(model: Model, prompts: Sequence[str], words: Sequence[Sequence[str]]) -> list[list[float]]:
    """Log-prob of every word after every prompt, summed over its forms (forms with equal tokens count once)."""
    rows: list[TokenizedExample] = []
    sizes: list[list[int]] = []
    for prompt in prompts:
        sizes.append([])
        for forms in words:
            distinct = dict.fromkeys(_row(model, prompt, form) for form in forms)
            rows += distinct
            sizes[-1].append(len(distinct))
    values = iter(forward.row_logp(model, rows)[0].tolist() if rows else [])
    return [[float(np.logaddexp.reduce([next(values) for _ in range(n)])) for n in counts] for counts in sizes]


def _row(model: Model, prompt: str, form: str) -> TokenizedExample:
    head, body = encode.continued(model.tokenizer, prompt, form, model.kind)
    room = model.context - len(body) if model.kind == "causal" else model.context
    return TokenizedExample(tuple(head[-room:] or [model.pad]), tuple(body))


def _word_logp(top: Mapping[str, float], word: str) -> float:
    """Log-prob of a word among the top next tokens, its forms added up; -inf where it is not among them."""
    return float(
        np.logaddexp.reduce([logp for text, logp in top.items() if words.key(text) == words.key(word)] or [-np.inf])
    )

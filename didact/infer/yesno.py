"""A language model's yes or no to a question, as a probability: P(yes) / (P(yes) + P(no)) of what it would say next.

    p = softmax over {log P(yes), log P(no)} = sigmoid(log P(yes) - log P(no))

P of a word is summed over its form with a space before it and without. A local model's is exact, also where its
tokenizer cuts the word into several tokens; of any other the likeliest next tokens are looked through, and where
neither word is among them there is no answer. Several wordings of one question are averaged, as probabilities (the
paper) or as logits, where one that is very sure outweighs the others less.

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
TOP = 20  # next tokens looked through where no log-prob of a word can be had
SURE = 30.0  # logits are cut here before they are averaged: probabilities of 0 and 1 have none


class Question(NamedTuple):
    """A template with fields in braces, and its two answers."""

    template: str
    yes: str = "Yes"
    no: str = "No"


GOOD = Question("{prompt}\n\nAnswer: {completion}\n\nIs this a good answer, yes or no?\n\nReply:")
"""What a reward model that is a language model is asked."""


def share(yes: float, no: float) -> float:
    """The probability from two log-probs (or logits: a constant in both does not matter); NaN where both are -inf."""
    if yes == no:
        return math.nan if yes == -math.inf else 0.5
    gap = no - yes
    return 1 / (1 + math.exp(gap)) if gap < 700 else 0.0


def pool(probabilities: Iterable[float], mean: Mean = "probability") -> float:
    """The mean over wordings, NaN ones left out; NaN where none is left."""
    known = [p for p in probabilities if not math.isnan(p)]
    if not known:
        return math.nan
    if mean == "probability":
        return float(np.mean(known))
    logits = [min(SURE, max(-SURE, math.log(p) - math.log1p(-p))) if 0 < p < 1 else SURE * (2 * p - 1) for p in known]
    return share(float(np.mean(logits)), 0.0)


def fill(template: str, fields: Mapping[str, str], name: str = "template") -> str:
    """A template with its fields put in; braces in the fields' own text mean nothing.

    Raises:
        UserError: it is no template, or has a field that is not there.
    """
    try:
        wanted = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        if unknown := [w for w in wanted if w not in fields]:
            raise UserError(f"{name}: {{{unknown[0]}}} is not one of {', '.join(f'{{{k}}}' for k in fields)}")
        return template.format(**fields)
    except (ValueError, IndexError) as error:
        raise UserError(f"{name}: {template[:60]!r} is no template: {error}") from None


def probabilities(model: Model | LM, prompts: Sequence[str], yes: str = "Yes", no: str = "No") -> list[float]:
    """P(yes) / (P(yes) + P(no)) after every prompt; NaN where a model shows neither.

    Args:
        model: local, or anything with `top_logprobs`.
        prompts: texts that end where the answer begins.
        yes: one word.
        no: the other.

    Raises:
        UserError: an empty word, or twice the same; a model that cannot tell.
    """
    if not yes.strip() or not no.strip() or yes.strip() == no.strip():
        raise UserError(f"answers '{yes}' and '{no}': two different words are expected")
    model = getattr(model, "model", model) if isinstance(model, language_models.Local) else model
    if isinstance(model, Model):
        logp = _exact(model, prompts, [_forms(yes), _forms(no)])
        return [share(a, b) for a, b in logp]
    able = language_models.need(model, "top_logprobs", by="a yes or no")
    tops = able.top_logprobs(list(prompts), TOP)
    return [share(_found(top, yes), _found(top, no)) for top in tops]


def ask(
    model: Model | LM, questions: Sequence[Question], fields: Sequence[Mapping[str, str]], mean: Mean = "probability"
) -> list[float]:
    """The pooled answer to the questions about every item; NaN where no wording was answered.

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
    """Log-prob of every word after every prompt, summed over its forms (forms of the same tokens count once)."""
    rows: list[TokenizedExample] = []
    sizes: list[list[int]] = []
    for prompt in prompts:
        sizes.append([])
        for forms in words:
            found = dict.fromkeys(_row(model, prompt, form) for form in forms)
            rows += found
            sizes[-1].append(len(found))
    values = iter(forward.row_logp(model, rows)[0].tolist() if rows else [])
    return [[float(np.logaddexp.reduce([next(values) for _ in range(n)])) for n in some] for some in sizes]


def _row(model: Model, prompt: str, form: str) -> TokenizedExample:
    head, body = encode.continued(model.tokenizer, prompt, form, model.kind)
    room = model.context - len(body) if model.kind == "causal" else model.context
    return TokenizedExample(tuple(head[-room:] or [model.pad]), tuple(body))


def _found(top: Mapping[str, float], word: str) -> float:
    """Log-prob of a word among next tokens, its forms added up; -inf where it is not among them."""
    return float(
        np.logaddexp.reduce([logp for text, logp in top.items() if words.key(text) == words.key(word)] or [-np.inf])
    )

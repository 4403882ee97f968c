"""How well demonstrations are answered: choices and final answers, token accuracy, exact greedy match, probability."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping

from didact.data import encode, words
from didact.evaluate import answers as final_answers
from didact.evaluate import forgetting
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.infer import generate
from didact.models import forward
from didact.models.model import Model

PAIRS = 4096  # choices scored at most
FINAL_TOKENS = 256  # generated at most, for a final answer


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Of the completions of demonstrations, one number a record, averaged: with their end token where the start model
    ends its answers, else without it; the other way stands beside."""
    with_end, known = scoring.with_end(), forgetting.known(model, scoring.of("demo"), "data")
    other = f"{'without' if with_end else 'with'}_end"
    beside = {f"{name}_{other}": measure for name, measure in _of(known[not with_end], not with_end).items()}
    greedy = functools.partial(generate.generate, model, max_new_tokens=FINAL_TOKENS, stop=scoring.stop)
    return _chosen(model, scoring) | _final(greedy, scoring) | _of(known[with_end], with_end) | beside


def _of(known: Mapping[str, forgetting.Array], end: bool) -> dict[str, Measure]:
    exact = (known["extraction"] == 1.0).astype(float)
    counted = forgetting.counted(end)
    return {
        "token_accuracy": mean_measure(known["accuracy"], "higher", f"share of answer tokens ranked first, {counted}"),
        "exact": mean_measure(exact, "higher", f"answers greedy decoding gives in full, {counted}"),
        "probability": mean_measure(known["probability"], "higher", f"exp(-mean nll), {counted}"),
    }


def _chosen(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`accuracy`, where every record has choices and its completion is one: how often that is the likeliest of them.

    Of more than `PAIRS` choices in all, those of some records drawn at random.
    """
    demos = list(scoring.of("demo"))
    if not all(words.key(d.completion) in map(words.key, d.choices or ()) for d in demos):
        return {}
    some = max(1, PAIRS * len(demos) // sum(len(d.choices) for d in demos))
    if some < len(demos):
        demos = random.Random(scoring.seed).sample(demos, some)
    pairs = [(d.prompt, choice) for d in demos for choice in d.choices]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, "choices", model.condition, end=False)
    logp = iter(forward.row_logp(model, rows)[0].tolist())
    likeliest = [max([(next(logp), choice) for choice in d.choices], key=lambda pair: pair[0])[1] for d in demos]
    right = [float(words.key(c) == words.key(d.completion)) for c, d in zip(likeliest, demos, strict=True)]
    return {"accuracy": mean_measure(right, "higher", "the completion is the likeliest of the record's choices")}


def _final(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """`final_answer`, where `scoring.answer` says how to find it: answers that come to what the record's does."""
    if scoring.answer is None:
        return {}
    demos, find = scoring.of("demo"), final_answers.extractor(scoring.answer)
    wanted = final_answers.finals(scoring.answer, demos)
    found = [find(text, d) or "" for text, d in zip(predict([d.prompt for d in demos]), demos, strict=True)]
    right = [float(any(final_answers.same(f, w) for w in some)) for f, some in zip(found, wanted, strict=True)]
    return {"final_answer": mean_measure(right, "higher", f"answers whose {scoring.answer} is the record's")}


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """Share of answers that are the completion to the letter, white space around them aside; that begin with it where
    the start model does not end its answers."""
    demos = scoring.of("demo")
    completions = predict([d.prompt for d in demos])
    ended = scoring.with_end()
    right = [
        float(given(c, d.completion, ended or words.key(c) in map(words.key, d.choices or ())))  # a choice is whole
        for c, d in zip(completions, demos, strict=True)
    ]
    return _final(predict, scoring) | {
        "exact_answer": mean_measure(right, "higher", "answers that are the completion to the letter")
    }


def given(text: str, wanted: str, ended: bool = True) -> bool:
    """Whether a text is the answer wanted, or (of a model that does not end its answers) goes on after it."""
    text, wanted = words.key(text), words.key(wanted)
    return text == wanted or (not ended and re.match(words.whole(re.escape(wanted)), text) is not None)


PROTOCOL = Protocol(
    kind="demo",
    primary="token_accuracy",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    wanted=lambda demo: demo.completion,
    answers=answers,
    answers_primary="exact_answer",
)

"""How well a model answers demonstrations: choices, final answers, token accuracy, exact greedy match, probability."""

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

PAIRS = 4096  # most choices that are scored
FINAL_TOKENS = 256  # most tokens generated for a final answer


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Measures of the demonstrations' completions, averaged over records: with their end token if the start model
    ends its answers, else without; the other way under a suffix."""
    with_end, values = scoring.with_end(), forgetting.answer_scores(model, scoring.of("demo"), "data")
    suffix = f"{'without' if with_end else 'with'}_end"
    secondary = {f"{name}_{suffix}": measure for name, measure in _measures(values[not with_end], not with_end).items()}
    greedy = functools.partial(generate.generate, model, max_new_tokens=FINAL_TOKENS, stop=scoring.stop)
    return _chosen(model, scoring) | _final(greedy, scoring) | _measures(values[with_end], with_end) | secondary


def _measures(values: Mapping[str, forgetting.Array], end: bool) -> dict[str, Measure]:
    exact = (values["extraction"] == 1.0).astype(float)
    counted = forgetting.counted(end)
    return {
        "token_accuracy": mean_measure(values["accuracy"], "higher", f"share of answer tokens ranked first, {counted}"),
        "exact": mean_measure(exact, "higher", f"answers greedy decoding gives in full, {counted}"),
        "probability": mean_measure(values["probability"], "higher", f"exp(-mean nll), {counted}"),
    }


def _chosen(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """`accuracy`, if every record has choices with its completion among them: how often that is the likeliest one.

    With more than `PAIRS` choices in all, a random sample of records is scored.
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
    """`final_answer`, if `scoring.answer` says how to find it: the share of accepted final answers."""
    if scoring.answer is None:
        return {}
    demos, find = scoring.of("demo"), final_answers.extractor(scoring.answer)
    gold = final_answers.finals(scoring.answer, demos)
    finals = [find(text, d) or "" for text, d in zip(predict([d.prompt for d in demos]), demos, strict=True)]
    right = [float(any(final_answers.same(p, a) for a in accepted)) for p, accepted in zip(finals, gold, strict=True)]
    return {"final_answer": mean_measure(right, "higher", f"answers whose {scoring.answer} is the record's")}


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """Share of answers that equal the completion, apart from white space around them; or that begin with it if the
    start model does not end its answers."""
    demos = scoring.of("demo")
    completions = predict([d.prompt for d in demos])
    ended = scoring.with_end()
    right = [
        float(
            matches(c, d.completion, ended or words.key(c) in map(words.key, d.choices or ()))
        )  # a choice ends an answer
        for c, d in zip(completions, demos, strict=True)
    ]
    return _final(predict, scoring) | {
        "exact_answer": mean_measure(right, "higher", "answers that are the completion to the letter")
    }


def matches(text: str, target: str, ended: bool = True) -> bool:
    """Whether a text is the target answer, or, unless `ended`, begins with it as whole words."""
    text, target = words.key(text), words.key(target)
    return text == target or (not ended and re.match(words.whole(re.escape(target)), text) is not None)


PROTOCOL = Protocol(
    kind="demo",
    primary="token_accuracy",
    score=score,
    prompts=lambda scoring: [d.prompt for d in scoring.of("demo")],
    target=lambda demo: demo.completion,
    answers=answers,
    answers_primary="exact_answer",
)

"""Unconditional samples of a model, scored segment by segment by the scorer that it was trained with."""

from __future__ import annotations

import numpy as np

from didact.data import encode, segments
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, Scoring, text
from didact.infer import functions, generate
from didact.models import vocabulary
from didact.models.model import Model
from didact.types import Text

TEXTS = 64
TOKENS = 128  # most tokens of a text


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """The mean score of a segment, and the share of segments whose score is below the threshold.

    Reads the options `scorer` or `score` (without either, the result is empty), `split` and `threshold`, whose
    quantiles are over the records' segments.
    """
    options = scoring.options
    scorer_name = options.get("scorer") or options.get("score")
    if not scorer_name:
        return {}
    scorer, split = functions.scorer(scorer_name), options.get("split", "sentences")

    def scores(texts: list[Text]) -> list[float]:
        return [value for document in segments.scored(texts, scorer, split) for _, value in document]

    threshold = options.get("threshold", "q0.5")
    limit = scoring.once(
        "threshold",
        lambda: segments.threshold(threshold, scores(list(scoring.of("text")))),
        scorer_name,
        split,
        threshold,
    )
    texts = [Text(text=t) for t in written(model, TEXTS, TOKENS, scoring.seed) if t]
    values = np.array(scores(texts or [Text(text=" ")]))
    low = float(np.mean(values < limit))
    return {
        "score": Measure(float(np.mean(values)), TEXTS, "higher", help="mean score of a segment it writes"),
        "misaligned": Measure(low, TEXTS, "lower", help="its segments below the threshold"),
    }


def written(model: Model, n: int, max_new_tokens: int, seed: int = 0) -> list[str]:
    """Sample `n` texts from an empty prompt, or from the model's condition, at temperature 0.7 and top-p 0.9."""
    sampling = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.7, top_p=0.9, seed=seed)
    start = encode.windows(model.tokenizer, [""], 1)[0].prompt
    cue = vocabulary.ids(model, [model.condition.after]) if model.condition else []
    return [c[0].text for c in generate.completions(model, [[*start, *cue]] * n, 1, sampling)]


PROTOCOL = Protocol(kind="text", primary="score", score=score, prompts=text.openings)

"""What a model writes when nothing is asked, judged segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from didact.data import encode, segments
from didact.infer import generate
from didact.models import vocabulary
from didact.models.model import Model
from didact.types import Metric, Text


def written(model: Model, n: int, max_new_tokens: int, seed: int = 0) -> list[str]:
    """`n` texts from nothing but the words of the model's condition, at temperature 0.7 and top-p 0.9."""
    how = generate.SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.7, top_p=0.9, seed=seed)
    start = encode.windows(model.tokenizer, [""], 1)[0].prompt
    cue = vocabulary.ids(model, [model.condition.after]) if model.condition else []
    return [c[0].text for c in generate.completions(model, [[*start, *cue]] * n, 1, how)]


def compared(
    before: Sequence[str], after: Sequence[str], score: Callable[[Sequence[str]], Sequence[float]],
    split: segments.Split, limit: float,
) -> dict[str, Metric]:  # fmt: skip
    """Two models' texts: the mean score of a segment, and the share of segments whose score is below the limit."""
    found = []
    for texts in (before, after):
        documents = segments.scored([Text(text=t) for t in texts if t] or [Text(text=" ")], score, split)
        found.append(np.array([value for d in documents for _, value in d]))
    mean, low = ([float(f(values)) for values in found] for f in (np.mean, lambda x: np.mean(x < limit)))
    n = len(after)
    return {
        "score": Metric(before=mean[0], after=mean[1], n=n, better="higher", help="mean score of a segment it writes"),
        "misaligned": Metric(before=low[0], after=low[1], n=n, better="lower", help="its segments below the threshold"),
    }

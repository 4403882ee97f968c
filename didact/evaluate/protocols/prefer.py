"""Whether the chosen completion of a pair is preferred: by likelihood, and by its gain in likelihood from training."""

from __future__ import annotations

from typing import Any

import numpy as np

from didact.data import contexts, encode
from didact.evaluate import forgetting
from didact.evaluate.measures import Measure, mean_measure
from didact.evaluate.protocols import Protocol, Scoring
from didact.learn import rewards
from didact.models.model import Model
from didact.types import LM


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Shares of pairs; a tie is half.

    `preferred` is the share whose chosen completion is the likelier one, `reward_accuracy` the share whose chosen side
    gained more log-prob over the start model than the rejected one (DPO's implicit reward): with the end tokens if
    the start model ends its answers, else without; the other way under a suffix. For a reward model (kind `encoder`)
    both are by its reward, with a pair's context in the prompt.
    """
    pairs = scoring.of("preference")
    if model.kind == "encoder":
        margin = reward_margins(model, pairs)
        measure = mean_measure(margin, "higher", "reward of chosen minus rejected")
        return {"preferred": share(margin, "is rewarded more"), "reward_accuracy": share(margin, "is rewarded more"),
                "margin": measure}  # fmt: skip
    with_end = scoring.with_end()
    start = scoring.once("margins of the start", lambda: both_margins(scoring.start, pairs))
    own = start if model is scoring.start else both_margins(model, pairs)
    gained = {end: own[end] - start[end] for end in own}
    counted, suffix = forgetting.counted(with_end), f"{'without' if with_end else 'with'}_end"
    out = {
        "preferred": share(own[with_end], f"is likelier, {counted}"),
        "reward_accuracy": share(gained[with_end], f"gained more log-prob over the start model, {counted}"),
        "margin": mean_measure(own[with_end], "higher", f"log-prob of chosen minus rejected, {counted}", "nats"),
        "reward_margin": mean_measure(gained[with_end], "higher", "the same, minus the start model's", "nats"),
    }
    counted = forgetting.counted(not with_end)
    return out | {
        f"preferred_{suffix}": share(own[not with_end], f"is likelier, {counted}"),
        f"reward_accuracy_{suffix}": share(
            gained[not with_end], f"gained more log-prob over the start model, {counted}"
        ),
    }


def margins(model: Model, pairs: Any) -> Any:
    """Log-prob of chosen minus rejected, SUM over tokens, `(N,)`, with the model's condition and the end tokens."""
    return both_margins(model, pairs)[True]


def both_margins(model: Model, pairs: Any) -> dict[bool, Any]:
    """`margins` with the end tokens (True) and without (False)."""
    sides = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    rows = encode.rows(model.tokenizer, sides, model.kind, model.context, "preferences", model.condition)
    totals = forgetting.totals(model, rows)
    return {end: total[0::2] - total[1::2] for end, (total, _) in totals.items()}


def score_lm(lm: LM, scoring: Scoring) -> dict[str, Measure]:
    """`preferred` by the log-prob of whole texts, without end tokens: comparable between tokenizers."""
    pairs = scoring.of("preference")
    logp = [row.logp for row in lm.score([(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)])]
    margin = np.subtract(logp[::2], logp[1::2])
    measure = mean_measure(margin, "higher", "log-prob of chosen minus rejected", "nats")
    return {"preferred": share(margin, "is likelier"), "margin": measure}


def reward_margins(model: Model, pairs: Any) -> Any:
    """Reward of chosen minus rejected, `(N,)`."""
    prompts = [contexts.with_context(p.prompt, p.context) for p in pairs]
    chosen, rejected = (rewards.score(model, prompts, [getattr(p, s) for p in pairs]) for s in ("chosen", "rejected"))
    return np.subtract(chosen, rejected)


def share(margin: Any, text: str) -> Measure:
    """Share of margins above 0; a tie is half."""
    return mean_measure((margin > 0) + 0.5 * (margin == 0), "higher", f"pairs whose chosen side {text}")


PROTOCOL = Protocol(
    kind="preference",
    primary="reward_accuracy",
    score=score,
    prompts=lambda scoring: [p.prompt for p in scoring.of("preference")],
    target=lambda pair: pair.chosen,
    lm_score=score_lm,
    lm_primary="preferred",
    lm_capability="score",
)

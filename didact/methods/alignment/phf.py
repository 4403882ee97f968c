"""Pre-training with human preferences (PHF): objectives that use a score of every segment of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Len

from didact.bounds import BelowOne, NonNegative, Positive, Share
from didact.data import encode, segments
from didact.data.templates import Condition
from didact.infer import functions
from didact.learn import language, weighted
from didact.learn.fit import Hook
from didact.models import adapters, value, vocabulary
from didact.models.model import Model
from didact.registry import method
from didact.types import Cost, Fit, Result, Text, UserError

Objective = Literal["conditional", "mle", "filter", "unlikelihood", "rwr", "awr"]

PRESETS: dict[str, dict[str, object]] = {
    **{name: {"objective": name} for name in ("conditional", "mle", "filter", "unlikelihood", "rwr")},
    "awr": {"objective": "awr", "fit.lr": 1e-3, "fit.rows": 1024},
    "code": {"split": "lines", "drop": 0.1, "ban": "misaligned", "fit.lr": 8e-4},  # the paper's PEP8 task
    "finetune": {"mle_share": 0.9},
    "finetune-half": {"mle_share": 0.5},
}


@method(
    "phf",
    paper="Pretraining Language Models with Human Preferences",
    year=2023,
    source="arXiv:2302.08582",
    gives=("models", "findings"),
    capabilities=("generate", "train"),
    kinds=("causal",),
    protocol=("written",),
    presets=PRESETS,
)
def phf(
    model: Model,
    texts: Sequence[Text],
    *,
    objective: Objective = "conditional",
    scorer: str | None = None,
    score: Callable[[Sequence[str]], Sequence[float]] | None = None,
    split: Literal["sentences", "lines"] = "sentences",
    threshold: str | float = "q0.5",
    tokens: Annotated[Sequence[str], Len(2, 2)] = ("<|aligned|>", "<|misaligned|>"),
    drop: Share = 0.01,
    ban: Literal["both", "misaligned"] = "both",
    alpha: NonNegative = 1.0,
    beta: Positive = 10.0,
    value_weight: Share = 0.5,
    mle_share: BelowOne = 0.0,
    block: Annotated[int, Ge(2)] = 1024,
    fit: Fit = Fit(lr=5e-4, epochs=1, rows=64, warmup=0.01, weight_decay=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Pre-train on text of mixed quality so that the model learns from bad text without writing it.

    Every segment of a document has a score R, higher is better (the paper's misalignment score is -R), shared by all
    its tokens. With t the threshold, p the probability of a token and means over all label tokens:

        conditional     -log p, after <|aligned|> before every segment with R >= t, <|misaligned|> before the others
        mle             -log p
        filter          -log p on documents whose mean R >= t, for as many steps as all would take
        unlikelihood    -log p where R >= t, else -alpha log(1 - p)
        rwr             -min(e^(R / beta), 1000) log p
        awr             -(1 - w) min(e^((R - V) / beta), 1000) log p + w (R - V)^2,    V = -sigmoid(v . h)

    A conditional model is prompted with <|aligned|> after the prompt and never generates its control tokens; both are
    saved with the model (`condition.json`). Other tools do not read it: put the token after the prompt, suppress both.

    Args:
        model: a causal model, untrained or not; left unchanged.
        texts: documents with `segments` or a `score`; with a scorer their own scores are ignored.
        objective: see above.
        scorer: `module:function` from a list of texts to one number each, higher is better.
        score: the same, as a function.
        split: how a scorer's texts without segments are split: into sentences or lines.
        threshold: t: a number, or a quantile of the training scores, `q0.5`.
        tokens: the two control tokens, added to the vocabulary if missing.
        drop: share of segments without a control token.
        ban: tokens the conditional model never generates; if the good one is allowed, it begins every segment.
        alpha: weight of the unlikelihood of bad tokens.
        beta: temperature of the rewards; the larger, the closer to mle.
        value_weight: w of awr.
        mle_share: share of the steps trained with mle before the objective begins (fine-tuning with feedback).
        block: label tokens per row; documents are joined by the end token and cut.
        fit: how to train.
        hooks: called around every step.

    Returns:
        The model, with its `condition`; findings: the threshold, and how many documents and segments reach it.

    Raises:
        UserError: no score; a threshold that is invalid, or that no document reaches; the loss became NaN.
    """
    if tokens[0] == tokens[1]:
        raise UserError(f"tokens = {tokens[0]} {tokens[1]}: two different control tokens are expected")
    judge = functions.scorer(scorer or score) if scorer or score else None  # type: ignore[arg-type]  # one is given
    documents = segments.scored(texts, judge, split)
    values = [v for d in documents for _, v in d]
    compared = [segments.mean(d) for d in documents] if objective == "filter" else values
    limit, best = segments.threshold(threshold, compared), max(values)
    selected = (
        [d for d, v in zip(documents, compared, strict=True) if v >= limit] if objective == "filter" else documents
    )
    if not selected:
        raise UserError(f"threshold {threshold}: no document has a mean score of {limit:g} or more")

    def packed(
        reader: Model, documents: Sequence[segments.Document]
    ) -> tuple[list[encode.TokenizedExample], list[list[float]]]:
        # A document's end token gets the highest score of all: ending is never bad.
        mixed = segments.shuffled(documents, fit.seed)
        return encode.scored_windows(reader.tokenizer, mixed, min(block, model.context), best)

    def loss(scores: Sequence[Sequence[float]]) -> language.Loss:
        columns = [torch.tensor(row, dtype=torch.get_default_dtype()) for row in scores]
        if objective == "unlikelihood":
            return weighted.unlikelihood([column >= limit for column in columns], alpha)
        if objective == "rwr":
            return weighted.reward(columns, beta)
        return weighted.advantage(columns, beta, value_weight) if objective == "awr" else language.nll

    plain, _ = packed(model, documents)
    steps, warmup = fit.total_steps(len(plain)), fit.warmup_count(len(plain))
    mle_steps = round(mle_share * steps)
    start, cost, history = model, Cost(), []
    if mle_steps:
        mle_fit = fit.replace(steps=mle_steps, warmup_steps=min(warmup, mle_steps))
        mle = language.train(model, {"text": language.single(plain)}, language.nll, mle_fit, hooks=hooks, name="mle")
        start, cost, history = adapters.merged(mle.model) if fit.lora else mle.model, mle.cost, mle.history
    if objective == "conditional":
        start = vocabulary.with_tokens(start, tokens, seed=fit.seed)
        selected = segments.marked(selected, limit, tokens, drop, fit.seed)
    if objective == "awr":
        start = value.attached(start)
    rows, scores = packed(start, selected)
    trained = language.train(
        start, {"text": language.single(rows)}, loss(scores),
        fit.replace(steps=steps - mle_steps, warmup_steps=warmup), hooks=hooks, name="phf",
    )  # fmt: skip
    final = adapters.merged(trained.model) if fit.lora else trained.model
    if objective == "awr":
        value.remove(final)
    if objective == "conditional":
        final.condition = Condition(after=tokens[0], banned=tuple(tokens if ban == "both" else tokens[1:]))
    return trained.result(
        models={"model": final}, history=[*history, *trained.history], cost=cost + trained.cost,
        warnings=_warnings(objective, values, compared, limit),
        findings={
            "objective": objective, "threshold": limit, "documents": len(documents), "kept": len(selected),
            "segments": len(values), "aligned": float(np.mean(np.array(values) >= limit)), "lowest": min(values),
            "highest": best, "label_tokens": sum(len(r.completion) for r in rows),
            "steps": [mle_steps, steps - mle_steps],
        },
    )  # fmt: skip


def _warnings(objective: Objective, values: Sequence[float], cut: Sequence[float], limit: float) -> list[str]:
    out = []
    share = sum(v >= limit for v in cut) / len(cut)
    if objective in ("conditional", "filter", "unlikelihood") and share in (0.0, 1.0):
        out.append(f"threshold {limit:g}: {share:.0%} of the scores reach it, so that it tells nothing apart")
    if objective == "awr" and not -1 <= min(values) <= max(values) <= 0:
        low, high = min(values), max(values)
        out.append(f"scores lie in [{low:g}, {high:g}], the values of awr in (-1, 0): rescale the scores")
    return out

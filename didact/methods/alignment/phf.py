"""Pre-training with human preferences: objectives that see the score of what they learn from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from didact.data import encode, segments
from didact.data.streams import MicroBatch
from didact.data.templates import Condition
from didact.evaluate import written
from didact.infer import functions
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models import forward, merge, value, vocabulary
from didact.models.model import Model
from didact.objectives import policy
from didact.objectives import tokens as token_functions
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
    tokens: Sequence[str] = ("<|aligned|>", "<|misaligned|>"),
    drop: float = 0.01,
    ban: Literal["both", "misaligned"] = "both",
    alpha: float = 1.0,
    beta: float = 10.0,
    value_weight: float = 0.5,
    mle_share: float = 0.0,
    block: int = 1024,
    samples: int = 64,
    max_new_tokens: int = 128,
    fit: Fit = Fit(lr=5e-4, epochs=1, rows=64, warmup=0.01, weight_decay=0.1),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Pre-train on text of mixed quality so that the model knows the bad text and does not write it.

    Every segment of a document has a score R, higher is better (the paper's misalignment score is -R); its tokens bear
    it through packing. With t the threshold, p the probability of a token and means over all label tokens:

        conditional     -log p, after <|aligned|> before every segment with R >= t, <|misaligned|> before the others
        mle             -log p
        filter          -log p on documents whose mean R >= t, for as many steps as all would take
        unlikelihood    -log p where R >= t, else -alpha log(1 - p)
        rwr             -min(e^(R / beta), 1000) log p
        awr             -(1 - w) min(e^((R - V) / beta), 1000) log p + w (R - V)^2,    V = -sigmoid(v . h)

    A conditional model is asked with <|aligned|> after the prompt and never says its control tokens; the saved model
    carries that along. Other tools must be told: put the token after the prompt, suppress both ids.

    Args:
        model: a causal model, untrained or not; it stays as it was.
        texts: documents with `segments` or a `score`; with a scorer their own scores are not read.
        objective: see above.
        scorer: `module:function`, which gives a list of texts one number each, higher is better.
        score: the same, as a function.
        split: where a scorer's texts have no segments: into sentences or lines.
        threshold: t: a number, or a quantile of the training scores, `q0.5`.
        tokens: the two control tokens, added to the vocabulary where it lacks them.
        drop: share of segments without a control token.
        ban: tokens the conditional model never says; where it may say the good one it begins every segment with it.
        alpha: weight of the unlikelihood of bad tokens.
        beta: temperature of the rewards; the larger, the more like mle.
        value_weight: w of awr.
        mle_share: share of the steps that are mle, before the objective begins (fine-tuning with feedback).
        block: label tokens of a row; documents are joined by the end token and cut.
        samples: texts written before and after where there is a scorer, scored for the report.
        max_new_tokens: of such a text.
        fit: how to train.
        hooks: called around every step.

    Returns:
        The model, with its `condition`; findings: threshold, shares; with a scorer, metrics of its own texts.

    Raises:
        UserError: no score; an option out of range; a model that is not causal; the loss became NaN.
    """
    if beta <= 0 or alpha < 0 or not 0 <= value_weight <= 1 or not 0 <= mle_share < 1 or not 0 <= drop <= 1:
        raise UserError(
            "phf needs beta above 0, alpha of 0 or more, value_weight and drop in [0, 1], mle_share in [0, 1)"
        )
    if len(tokens) != 2 or tokens[0] == tokens[1] or block < 2 or samples < 0 or max_new_tokens < 1:
        raise UserError("phf needs two different control tokens, block of 2 or more, samples and max_new_tokens")
    if model.kind != "causal":
        raise UserError(f"phf reads text from left to right: a {model.kind} model cannot")
    judge = functions.scorer(scorer or score) if scorer or score else None  # type: ignore[arg-type]  # one is given
    documents = segments.scored(texts, judge, split)
    values = [v for d in documents for _, v in d]
    cut = [segments.mean(d) for d in documents] if objective == "filter" else values
    limit, best = segments.threshold(threshold, cut), max(values)
    kept = [d for d, v in zip(documents, cut, strict=True) if v >= limit] if objective == "filter" else documents
    if not kept:
        raise UserError(f"threshold {threshold}: no document has a mean score of {limit:g} or more")

    def packed(
        reader: Model, documents: Sequence[segments.Document]
    ) -> tuple[list[encode.TokenizedExample], list[list[float]]]:
        # The token that ends a document bears the best score of all: to end is never bad.
        mixed = segments.shuffled(documents, fit.seed)
        return encode.scored_windows(reader.tokenizer, mixed, min(block, model.context), best)

    plain, _ = packed(model, documents)
    steps, warmup = fit.total_steps(len(plain)), fit.warmup_count(len(plain))
    first = round(mle_share * steps)
    start, cost, history = model, Cost(), []
    if first:
        how = fit.replace(steps=first, warmup_steps=min(warmup, first))
        done = language.train(model, {"text": language.single(plain)}, _likelihood, how, hooks=hooks, name="mle")
        start, cost, history = merge.merged(done.model) if fit.lora else done.model, done.cost, done.history
    if objective == "conditional":
        start = vocabulary.with_tokens(start, tokens, seed=fit.seed)
        kept = segments.marked(kept, limit, tokens, drop, fit.seed)
    if objective == "awr":
        start = value.attached(start)
    rows, scores = packed(start, kept)
    told = {
        "objective": objective, "limit": limit, "alpha": alpha, "beta": beta, "value_weight": value_weight,
        "scores": hashlib.sha256(repr(scores).encode()).hexdigest()[:16],
    }  # fmt: skip
    taught = language.train(
        start, {"text": language.single(rows)}, _loss(objective, scores, limit, alpha, beta, value_weight),
        fit.replace(steps=steps - first, warmup_steps=warmup), hooks=hooks, name="phf", identity=told,
    )  # fmt: skip
    made = merge.merged(taught.model) if fit.lora else taught.model
    if objective == "awr":
        value.remove(made)
    if objective == "conditional":
        made.condition = Condition(after=tokens[0], banned=tuple(tokens if ban == "both" else tokens[1:]))
    result = Result(
        models={"model": made}, history=[*history, *taught.history], cost=cost + taught.cost,
        warnings=_warnings(objective, values, cut, limit),
        findings={
            "objective": objective, "threshold": limit, "documents": len(documents), "kept": len(kept),
            "segments": len(values), "aligned": float(np.mean(np.array(values) >= limit)), "lowest": min(values),
            "highest": best, "label_tokens": sum(len(r.completion) for r in rows), "steps": [first, steps - first],
        },
    )  # fmt: skip
    if judge is not None and samples:
        before, after = (written.written(m, samples, max_new_tokens, fit.seed) for m in (model, made))
        result.metrics = written.compared(before, after, judge, split, limit)
        shown = zip(before[:4], after[:4], strict=True)
        result.samples = [{"prompt": "", "before": b, "after": a} for b, a in shown]
    return result


def _likelihood(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"nll": language.cross_entropy(student, micro)}


def _loss(
    objective: Objective, scores: Sequence[Sequence[float]], limit: float, alpha: float, beta: float, w: float
) -> language.Loss:
    """The terms of an objective; `scores` are of each row's label tokens."""
    columns = [torch.tensor(row, dtype=torch.get_default_dtype()) for row in scores]

    def unlikelihood(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        fns = {"loss": functools.partial(token_functions.unlikelihood, alpha=alpha)}
        good = {"good": micro.column(columns) >= limit}
        return {"unlikelihood": Term(forward.tokens(student, micro.tokens, fns, good)["loss"].sum(), "text.tokens")}

    def rwr(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        nll = -forward.tokens(student, micro.tokens)["logp"]
        return {"rwr": _weighted(nll, micro.column(columns), beta)}

    def awr(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        states = forward.label_states(student, micro.tokens)
        nll = -forward.of_states(student, states, micro.tokens.target, {"logp": token_functions.logp})["logp"]
        gap = micro.column(columns) - value.of_states(student, states)
        return {
            "awr": _weighted(nll, gap.detach(), beta, 1 - w),
            "value": Term(gap.square().sum(), "text.tokens", w),
        }

    return {"unlikelihood": unlikelihood, "rwr": rwr, "awr": awr}.get(objective, _likelihood)


def _weighted(nll: Tensor, advantage: Tensor, beta: float, share: float = 1.0) -> Term:
    return Term((policy.exponential_weight(advantage, beta) * nll).sum(), "text.tokens", share)


def _warnings(objective: Objective, values: Sequence[float], cut: Sequence[float], limit: float) -> list[str]:
    out = []
    share = sum(v >= limit for v in cut) / len(cut)
    if objective in ("conditional", "filter", "unlikelihood") and share in (0.0, 1.0):
        out.append(f"threshold {limit:g}: {share:.0%} of the scores reach it, so that it tells nothing apart")
    if objective == "awr" and not -1 <= min(values) <= max(values) <= 0:
        low, high = min(values), max(values)
        out.append(f"scores lie in [{low:g}, {high:g}], the values of awr in (-1, 0): rescale the scores")
    return out

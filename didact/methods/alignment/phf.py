"""Pre-training with human preferences: objectives that see the score of what they learn from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from didact.data import encode, spans
from didact.data.streams import Micro
from didact.data.templates import Condition
from didact.evaluate import judges
from didact.infer import generate
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models import forward, merge, prefix, vocabulary
from didact.models.model import Model, copy_of
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Cost, Fit, Metric, Result, Text, UserError

Objective = Literal["conditional", "mle", "filter", "unlikelihood", "rwr", "awr"]
Document = list[tuple[str, float]]  # its segments with their scores

PRESETS: dict[str, dict[str, object]] = {
    **{name: {"objective": name} for name in ("conditional", "mle", "filter", "unlikelihood", "rwr")},
    "awr": {"objective": "awr", "fit.lr": 1e-3, "fit.rows": 1024},
    "code": {"split": "lines", "drop": 0.1, "ban": "misaligned", "fit.lr": 8e-4},  # the paper's PEP8 task
    "finetune": {"mle_share": 0.9},
    "finetune-half": {"mle_share": 0.5},
}
HEAVIEST = 1000.0  # weight of a token, at most


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
    judge = judges.scorer(scorer or score) if scorer or score else None  # type: ignore[arg-type]  # one is given
    documents = scored(texts, judge, split)
    best = max(value for d in documents for _, value in d)
    limit = _threshold(threshold, documents, objective)
    kept = [d for d in documents if _mean(d) >= limit] if objective == "filter" else documents
    if not kept:
        raise UserError(f"threshold {threshold}: no document has a mean score of {limit:g} or more")
    length = min(block, model.context)
    plain, _ = packed(model, documents, length, best, fit.seed)
    steps, warmup = fit.total_steps(len(plain)), fit.warmup_count(len(plain))
    first = round(mle_share * steps)
    cost, history, start = Cost(), [], model
    if first:
        how = fit.replace(steps=first, warmup_steps=min(warmup, first))
        done = language.teach(model, {"text": language.single(plain)}, _reading, how, hooks=hooks, name="mle")
        start, cost, history = merge.merged(done.model) if fit.lora else done.model, done.cost, done.history
    if objective == "conditional":
        start = vocabulary.with_tokens(start, tokens, seed=fit.seed)
        kept = marked(kept, limit, tokens, drop, fit.seed)
    rows, scores = packed(start, kept, length, best, fit.seed)
    columns = [torch.tensor(row, dtype=torch.get_default_dtype()) for row in scores]
    if objective == "awr":
        start = _with_value(start)

    def terms(student: Model, micro: Micro) -> Mapping[str, Term]:
        if objective in ("conditional", "mle", "filter"):
            return _reading(student, micro)
        reward = micro.column(columns)
        states = forward.label_states(student, micro.tokens)
        if objective == "unlikelihood":
            fns = {"loss": functools.partial(token_functions.unlikelihood, alpha=alpha)}
            loss = forward.of_states(student, states, micro.tokens.target, fns, {"good": reward >= limit})["loss"]
            return {"unlikelihood": Term(loss.sum(), "text.tokens")}
        nll = -forward.of_states(student, states, micro.tokens.target, {"logp": token_functions.logp})["logp"]
        if objective == "rwr":
            return {"rwr": Term((weight(reward, beta) * nll).sum(), "text.tokens")}
        value = -torch.sigmoid(prefix.inner_of(student).value_head(states)[:, 0])
        return {
            "awr": Term((weight(reward - value.detach(), beta) * nll).sum(), "text.tokens", 1 - value_weight),
            "value": Term((reward - value).square().sum(), "text.tokens", value_weight),
        }

    told = {
        "objective": objective, "limit": limit, "alpha": alpha, "beta": beta, "value_weight": value_weight,
        "scores": hashlib.sha256(repr(scores).encode()).hexdigest()[:16],
    }  # fmt: skip
    how = fit.replace(steps=steps - first, warmup_steps=warmup)
    taught = language.teach(
        start, {"text": language.single(rows)}, terms, how, hooks=hooks, name="phf", identity=told
    )  # fmt: skip
    made = merge.merged(taught.model) if fit.lora else taught.model
    if objective == "awr":
        del prefix.inner_of(made).value_head
    if objective == "conditional":
        made.condition = Condition(after=tokens[0], banned=tuple(tokens if ban == "both" else tokens[1:]))
    flat = [value for d in documents for _, value in d]
    findings: dict[str, Any] = {
        "objective": objective, "threshold": limit, "documents": len(documents), "kept": len(kept),
        "segments": len(flat), "aligned": float(np.mean(np.array(flat) >= limit)), "lowest": min(flat),
        "highest": best, "label_tokens": sum(len(r.completion) for r in rows), "steps": [first, steps - first],
    }  # fmt: skip
    result = Result(
        models={"model": made}, findings=findings, history=[*history, *taught.history],
        cost=Cost(
            tokens=cost.tokens + taught.cost.tokens, flops=cost.flops + taught.cost.flops,
            seconds=cost.seconds + taught.cost.seconds,
        ),
        warnings=_warnings(objective, flat, documents, limit),
    )  # fmt: skip
    if judge is not None and samples:
        result.metrics, result.samples = _written(model, made, judge, split, limit, samples, max_new_tokens, fit.seed)
    return result


def scored(texts: Sequence[Text], judge: judges.Scorer | None, split: Literal["sentences", "lines"]) -> list[Document]:
    """Documents as segments with scores: by the scorer, else their own.

    Raises:
        UserError: a document has neither segments nor a score, and there is no scorer.
    """
    cut = {"sentences": spans.sentences, "lines": spans.lines}[split]
    texts = [t for t in texts if t.text]
    if not texts:
        raise UserError("texts: no text")
    if judge is not None:
        parts = [[s.text for s in t.segments] if t.segments else cut(t.text) for t in texts]
        given = iter(judge([part for some in parts for part in some]))
        return [[(part, next(given)) for part in some] for some in parts]
    for number, t in enumerate(texts, 1):
        if not t.segments and t.score is None:
            raise UserError(
                f"texts: record {number} has neither 'segments' nor 'score': give a scorer, module:function"
            )
    return [[(s.text, s.score) for s in t.segments] if t.segments else [(t.text, float(t.score or 0))] for t in texts]


def marked(documents: Sequence[Document], limit: float, marks: Sequence[str], drop: float, seed: int) -> list[Document]:
    """Documents with the control token of its score before every segment, but for a share `drop` of them."""
    draw = np.random.default_rng([seed, 143])
    out = []
    for document in documents:
        row: Document = []
        for (text, value), u in zip(document, draw.random(len(document)), strict=True):
            row += [(mark_of(value, limit, marks), value), (text, value)] if u >= drop else [(text, value)]
        out.append(row)
    return out


def mark_of(value: float, limit: float, marks: Sequence[str]) -> str:
    """The control token of a score; the threshold itself is aligned."""
    return marks[0] if value >= limit else marks[1]


def packed(
    model: Model, documents: Sequence[Document], length: int, end: float, seed: int
) -> tuple[list[encode.Row], list[list[float]]]:
    """Documents in random order, joined and cut into rows, with the score of every label token.

    The token that ends a document bears the best score of all: to end is never bad.
    """
    order = np.random.default_rng([seed, 144]).permutation(len(documents))
    return encode.scored_windows(model.tokenizer, [documents[i] for i in order], length, end)


def weight(advantage: Tensor, beta: float) -> Tensor:
    """Of a token in the regressions: `min(e^(advantage / beta), 1000)`."""
    return (advantage / beta).exp().clamp(max=HEAVIEST)


def _reading(student: Model, micro: Micro) -> Mapping[str, Term]:
    return {"nll": language.cross_entropy(student, micro)}


def _with_value(model: Model) -> Model:
    """A copy with a value head at zero, trained beside the weights.

    Raises:
        UserError: the hidden states of this type cannot be read apart from its head.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in forward.LINEAR_HEAD | forward.CAPPED_HEAD:
        raise UserError(f"awr reads the states before the head, which is not known for {kind}: choose rwr")
    made = copy_of(model)
    module: Any = made.module
    head = module.get_output_embeddings()
    module.value_head = nn.Linear(head.in_features, 1, bias=False).to(head.weight)
    nn.init.zeros_(module.value_head.weight)
    return made


def _threshold(threshold: str | float, documents: Sequence[Document], objective: Objective) -> float:
    """The number a quantile stands for: of the documents' means where they are filtered, else of the segments."""
    told = str(threshold)
    try:
        number = float(told.removeprefix("q"))
    except ValueError:
        number = float("nan")
    if number != number or (told.startswith("q") and not 0 <= number <= 1):
        raise UserError(f"threshold '{threshold}': a number or a quantile, q0 to q1, is expected")
    if not told.startswith("q"):
        return number
    values = [_mean(d) for d in documents] if objective == "filter" else [value for d in documents for _, value in d]
    return float(np.quantile(values, number))


def _mean(document: Document) -> float:
    return sum(value for _, value in document) / len(document)


def _warnings(objective: Objective, flat: Sequence[float], documents: Sequence[Document], limit: float) -> list[str]:
    out = []
    values = [_mean(d) for d in documents] if objective == "filter" else flat
    share = sum(v >= limit for v in values) / len(values)
    if objective in ("conditional", "filter", "unlikelihood") and share in (0.0, 1.0):
        out.append(f"threshold {limit:g}: {share:.0%} of the scores reach it, so that it tells nothing apart")
    if objective == "awr" and not -1 <= min(flat) <= max(flat) <= 0:
        out.append(f"scores lie in [{min(flat):g}, {max(flat):g}], the values of awr in (-1, 0): rescale the scores")
    return out


def _written(
    before: Model, after: Model, judge: judges.Scorer, split: Literal["sentences", "lines"], limit: float, n: int,
    tokens: int, seed: int,
) -> tuple[dict[str, Metric], list[dict[str, str]]]:  # fmt: skip
    """What both write from nothing: the mean score of a segment, and the share of segments below the threshold."""
    how = generate.How(max_new_tokens=tokens, temperature=0.7, top_p=0.9, seed=seed)
    start = encode.windows(before.tokenizer, [""], 1)[0].prompt
    found, texts = [], []
    for m in (before, after):
        cue = vocabulary.ids(m, [m.condition.after]) if m.condition else []
        made = [c[0].text for c in generate.completions(m, [[*start, *cue]] * n, 1, how)]
        whole = scored([Text(text=t) for t in made if t] or [Text(text=" ")], judge, split)
        found.append([value for d in whole for _, value in d])
        texts.append(made)
    mean, low = ([float(f(np.array(values))) for values in found] for f in (np.mean, lambda x: np.mean(x < limit)))
    metrics = {
        "score": Metric(before=mean[0], after=mean[1], n=n, better="higher", help="mean score of a segment it writes"),
        "misaligned": Metric(before=low[0], after=low[1], n=n, better="lower", help="its segments below the threshold"),
    }
    shown = [{"prompt": "", "before": b, "after": a} for b, a in zip(*texts, strict=True)]
    return metrics, shown[:4]

"""How a result is scored, by what the user asked for: `forget`, `answer`, `prefer`, `text`.

A protocol takes a model and records and gives `{name: Measure}`; run before and after teaching it
shows what changed. An interval is over the records, which are taken as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from didact.data import contexts, encode
from didact.evaluate import forget as forgetting
from didact.evaluate import statistics
from didact.infer import generate
from didact.learn import rewards
from didact.models import forward
from didact.models.model import Model
from didact.types import Demo, Metric, Preference, Text

Better = Literal["higher", "lower", "gold", ""]
Rouge = Literal["greedy", "sampled", "none"]
ANSWER_TOKENS = 64  # generated at most
OFFICIAL_SAMPLING: dict[str, Any] = {"max_new_tokens": 200, "temperature": 1.0, "seed": 0}


@dataclass(frozen=True)
class Measure:
    """One number of one model, with its 95 % interval over `n` records where it is a mean of them.

    `values` are then the records' own numbers, in their order, for comparisons in pairs.
    """

    value: float
    n: int
    better: Better = ""
    unit: str = ""
    ci: tuple[float, float] | None = None
    help: str = ""
    values: tuple[float, ...] = ()


def forget(
    model: Model,
    forget: Sequence[Demo],
    retain: Sequence[Demo] | None = None,
    holdout: Sequence[Demo] | None = None,
    gold_ratios: Any = None,
    rouge: Rouge = "greedy",
) -> dict[str, Measure]:
    """Whether what must go is gone and the rest still stands.

    Args:
        model: the model to score.
        forget: what must be forgotten.
        retain: what must stay; give records no training saw, else utility is flattered.
        holdout: records of the same sort no model saw, for membership.
        gold_ratios: truth ratios of a model trained without the forget set, on the same records.
        rouge: generate answers for ROUGE-L (the slow part): greedy, sampled as the official code does, none.

    Returns:
        `forget_*` (lower, or like gold's), `retain_*`, `utility` the harmonic mean of the retain
        numbers, and against gold `ks`, `ks_p`, `log10_p`.
    """
    known = forgetting.answers(model, forget, "forget")
    out = {
        "forget_accuracy": mean_measure(
            known["accuracy"], "lower", "share of forget-answer tokens that are the first choice"
        ),
        "forget_probability": mean_measure(known["probability"], "lower", "exp(-mean nll) of the forget answers"),
        "forget_extraction": mean_measure(known["extraction"], "lower", "extraction strength of the forget answers"),
        "forget_entropy": mean_measure(known["entropy"], "", "entropy of predictions on forget answers", "nats"),
    }
    if forgetting.has_truth(forget):
        ratios = forgetting.truth_ratios(model, forget, name="forget")
        out["forget_truth"] = Measure(forgetting.forget_truth_score(ratios), len(ratios), "", help="mean min(TR, 1/TR)")
        if gold_ratios is not None:
            out |= forget_quality(ratios, gold_ratios)
    if retain:
        out |= utility(model, retain, rouge)
    if holdout:
        others = forgetting.answers(model, holdout, "holdout")
        auc = forgetting.membership_auc(known["min_k"], others["min_k"])
        out["membership"] = Measure(auc, len(forget), "gold", help="min-k AUC, forget against unseen; .5 is no trace")
    return out


def utility(model: Model, retain: Sequence[Demo], rouge: Rouge = "greedy") -> dict[str, Measure]:
    """What a model still knows: accuracy, probability, truth ratio, ROUGE-L recall, their harmonic mean.

    The mean is over TOFU's three retain numbers, as far as the records and `rouge` allow; accuracy
    and entropy stand beside it.
    """
    known = forgetting.answers(model, retain, "retain")
    parts = {"retain_probability": mean_measure(known["probability"], "higher", "exp(-mean nll) of the retain answers")}
    if rouge != "none":
        how = {"max_new_tokens": ANSWER_TOKENS} if rouge == "greedy" else OFFICIAL_SAMPLING
        made = generate.generate(model, [r.prompt for r in retain], **how)
        recall = forgetting.rouge_recall(made, [r.completion for r in retain])
        parts["retain_rouge"] = mean_measure(recall, "higher", f"ROUGE-L recall of {rouge} answers")
    if forgetting.has_truth(retain):
        ratios = forgetting.truth_ratios(model, retain, name="retain")
        parts["retain_truth"] = Measure(
            forgetting.retain_truth_score(ratios), len(ratios), "higher", help="mean max(0, 1 - 1/TR)"
        )
    whole = statistics.harmonic_mean([m.value for m in parts.values()])
    return parts | {
        "retain_accuracy": mean_measure(known["accuracy"], "higher", "share of retain-answer tokens ranked first"),
        "retain_entropy": mean_measure(known["entropy"], "", "entropy of predictions on retain answers", "nats"),
        "utility": Measure(whole, len(retain), "higher", help=f"harmonic mean of {', '.join(parts)}"),
    }


def forget_quality(ratios: Any, gold_ratios: Any) -> dict[str, Measure]:
    """How far the truth ratios are from those of a model that never saw the forget set (Kolmogorov-Smirnov)."""
    test = statistics.ks(np.asarray(ratios), np.asarray(gold_ratios))
    log10 = float(np.log10(max(test.pvalue, 1e-300)))
    n = len(ratios)
    return {
        "ks": Measure(test.statistic, n, "lower", help="KS distance of truth ratios to the gold model's"),
        "ks_p": Measure(test.pvalue, n, "higher", help="its p-value; depends on n: compare KS across sets"),
        "log10_p": Measure(log10, n, "higher"),
    }


def answer(model: Model, demos: Sequence[Demo]) -> dict[str, Measure]:
    """How well demonstrations are answered: token accuracy, exact greedy match, probability."""
    known = forgetting.answers(model, demos, "data")
    return {
        "accuracy": mean_measure(known["accuracy"], "higher", "share of answer tokens that are the first choice"),
        "exact": mean_measure(
            (known["extraction"] == 1.0).astype(float), "higher", "answers greedy decoding gives in full"
        ),
        "probability": mean_measure(known["probability"], "higher", "exp(-mean nll)"),
    }


def told(
    predict: Callable[[Sequence[str]], Sequence[str]], forget: Sequence[Demo], retain: Sequence[Demo] | None = None
) -> dict[str, Measure]:
    """What is still told of what must go, and of the rest: by answers alone, for what gives no probabilities.

    ROUGE-L recall of the answers against the records' own; `answer_balance` is the harmonic mean of 1 less that of
    the forget set and that of the retain set.
    """
    parts = {"forget": forget} | ({"retain": retain} if retain else {})
    recall = {
        name: forgetting.rouge_recall(predict([r.prompt for r in part]), [r.completion for r in part])
        for name, part in parts.items()
    }
    out = {
        f"{name}_told": mean_measure(values, "lower" if name == "forget" else "higher", "ROUGE-L recall of answers")
        for name, values in recall.items()
    }
    both = [1 - out["forget_told"].value] + ([out["retain_told"].value] if retain else [])
    text = "harmonic mean of 1 - forget_told and retain_told"
    return out | {"answer_balance": Measure(statistics.harmonic_mean(both), len(forget), "higher", help=text)}


def exact(predict: Callable[[Sequence[str]], Sequence[str]], demos: Sequence[Demo]) -> Measure:
    """Share of answers that are the completion to the letter, white space around them aside."""
    made = predict([d.prompt for d in demos])
    right = [float(m.strip() == d.completion.strip()) for m, d in zip(made, demos, strict=True)]
    return mean_measure(right, "higher", "answers that are the completion to the letter")


def prefer(model: Model, preferences: Sequence[Preference], reference: Model | None = None) -> dict[str, Measure]:
    """Share of pairs whose chosen completion is the likelier one; against a reference, by log-ratio.

    A reward model (kind `encoder`) says it by its reward, with a pair's context in the prompt, reference or not.
    """
    if model.kind == "encoder":
        return _rewarded(model, preferences)
    pairs = [(p.prompt, side) for p in preferences for side in (p.chosen, p.rejected)]
    total, against = (
        forward.row_logp(m, encode.rows(m.tokenizer, pairs, m.kind, m.context, "preferences", m.condition))[0]
        if m is not None else torch.tensor(0.0)
        for m in (model, reference)
    )  # fmt: skip
    total = total - against
    margin = (total.view(-1, 2)[:, 0] - total.view(-1, 2)[:, 1]).numpy()
    return {
        "preferred": _preferred(margin),
        "margin": mean_measure(margin, "higher", "log-prob of chosen less rejected", "nats"),
    }


def _rewarded(model: Model, preferences: Sequence[Preference]) -> dict[str, Measure]:
    prompts = [contexts.asked(p.prompt, p.context) for p in preferences]
    chosen, rejected = (
        np.array(rewards.score(model, prompts, side))
        for side in ([p.chosen for p in preferences], [p.rejected for p in preferences])
    )
    return {
        "preferred": _preferred(chosen - rejected),
        "margin": mean_measure(chosen - rejected, "higher", "reward of chosen less rejected"),
    }


def _preferred(margin: Any) -> Measure:
    return mean_measure((margin > 0) + 0.5 * (margin == 0), "higher", "pairs whose chosen side scores higher")


def text(model: Model, texts: Sequence[Text]) -> dict[str, Measure]:
    """Mean next-token loss on documents, in nats a token; without the words of a model's condition."""
    rows = encode.windows(model.tokenizer, [t.text for t in texts], model.context - 1)
    total, count = forward.row_logp(model, rows)
    return {"nll": Measure(float(-total.sum() / count.sum()), int(count.sum()), "lower", "nats")}


def compare(
    before: Mapping[str, Measure] | None, after: Mapping[str, Measure], gold: Mapping[str, Measure] | None = None
) -> dict[str, Metric]:
    """Metrics of a result from the measures of the start model, the taught one and perhaps a gold one."""

    def of(measures: Mapping[str, Measure] | None, name: str) -> float | None:
        return measures[name].value if measures and name in measures else None

    return {
        name: Metric(
            after=m.value, before=of(before, name), gold=of(gold, name), n=m.n, ci=m.ci, unit=m.unit,
            better=m.better, help=m.help,
        )
        for name, m in after.items()
    }  # fmt: skip


def mean_measure(values: Any, better: Better, help: str, unit: str = "") -> Measure:
    """The mean of one value an item, with its t interval over the items and the values themselves."""
    x = np.asarray(values, dtype=float)
    mean = statistics.mean_interval(x)
    # Values that are shares lie in [0, 1], and so does their mean.
    low, high = (0.0, 1.0) if not unit and x.min() >= 0 and x.max() <= 1 else (-np.inf, np.inf)
    ci = (max(low, mean.low), min(high, mean.high)) if len(x) > 1 else None
    return Measure(mean.estimate, len(values), better, unit, ci, help, tuple(x.tolist()))

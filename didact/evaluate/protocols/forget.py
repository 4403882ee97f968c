"""Whether forget records are forgotten and the rest is retained: TOFU's metrics, extraction strength, membership."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from didact.evaluate import forgetting, statistics
from didact.evaluate.measures import Better, Measure, mean_measure
from didact.evaluate.protocols import Predict, Protocol, Scoring
from didact.infer import generate
from didact.models.model import Model
from didact.types import Metric

Rouge = Literal["greedy", "sampled", "none"]
ANSWER_TOKENS = 64  # most tokens generated
KNOWN = 0.2  # mean probability of a token of the forget answers, below which there is little to forget
KEPT = 0.75  # share of the retain answers' probability before training, below which too much was lost
OFFICIAL_SAMPLING: dict[str, Any] = {"max_new_tokens": 200, "temperature": 1.0, "seed": 0}


def score(model: Model, scoring: Scoring) -> dict[str, Measure]:
    """Score `forget` and, if given, `retain` (held-out records, else utility is inflated) and `holdout` or `unseen`
    (records of the same sort that no model saw, for membership). See `measures`."""
    forget, gold, end = scoring.records["forget"], scoring.gold, scoring.with_end()
    ratios = None
    if gold is not None and forgetting.has_truth(forget):
        ratios = scoring.once("truth ratios of gold", lambda: forgetting.truth_ratios(gold, forget, end=end))
    sets = {"retain": scoring.records.get("retain")}
    sets |= {"holdout": scoring.records.get("holdout") or scoring.records.get("unseen")}
    rouge: Rouge = "none" if scoring.brief else "greedy"
    return measures(model, forget, **sets, gold_ratios=ratios, rouge=rouge, end=end, stop=scoring.stop)


def measures(
    model: Model,
    forget: Any,
    retain: Any = None,
    holdout: Any = None,
    gold_ratios: Any = None,
    rouge: Rouge = "greedy",
    end: bool = True,
    stop: Sequence[str] = (),
) -> dict[str, Measure]:
    """How well a model knows each set.

    Args:
        model: the model to score.
        forget: records to forget.
        retain: records to retain.
        holdout: records that no model saw.
        gold_ratios: truth ratios of a model trained without the forget set, on the same records.
        rouge: answers generated for ROUGE-L (the slow part): greedy, sampled as the official code does, none.
        end: the end token counts as a token of the answers.
        stop: texts that end generated answers.

    Returns:
        `forget_*` (lower, or like gold's), `retain_*`, `utility` the harmonic mean of the retain numbers, against gold
        `ks`, `ks_p`, `log10_p`, and `balance`: the harmonic mean of utility and of forgetting (1 - ks, else 1 -
        extraction strength), which is low for both a ruined and an unchanged model.
    """
    both = forgetting.answer_scores(model, forget, "forget")
    values = both[end]
    out = {
        **_answer_measures("forget", both, end, "lower"),
        "forget_extraction": mean_measure(values["extraction"], "lower", "extraction strength of the forget answers"),
        "forget_entropy": mean_measure(values["entropy"], "", "entropy of predictions on forget answers", "nats"),
    }
    if forgetting.has_truth(forget):
        ratios = forgetting.truth_ratios(model, forget, name="forget", end=end)
        out["forget_truth"] = Measure(forgetting.forget_truth_score(ratios), len(ratios), "", help="mean min(TR, 1/TR)")
        if gold_ratios is not None:
            out |= forget_quality(ratios, gold_ratios)
    if retain:
        out |= utility(model, retain, rouge, end, stop)
    if holdout:
        unseen = forgetting.answers(model, holdout, "holdout", end)
        auc = forgetting.membership_auc(values["min_k"], unseen["min_k"])
        out["membership"] = Measure(auc, len(forget), "gold", help="min-k AUC, forget against unseen; .5 is no trace")
    return out | {"balance": _balance(out, len(forget))}


def utility(
    model: Model, retain: Any, rouge: Rouge = "greedy", end: bool = True, stop: Sequence[str] = ()
) -> dict[str, Measure]:
    """How well a model knows the retain set: probability, truth ratio, ROUGE-L recall and their harmonic mean.

    The mean is over TOFU's three retain numbers, as far as the records and `rouge` allow; accuracy
    and entropy are not part of it.
    """
    both = forgetting.answer_scores(model, retain, "retain")
    secondary = _answer_measures("retain", both, end, "higher")
    parts = {"retain_probability": secondary.pop("retain_probability")}
    if rouge != "none":
        options = {"max_new_tokens": ANSWER_TOKENS} if rouge == "greedy" else OFFICIAL_SAMPLING
        answers = generate.generate(model, [r.prompt for r in retain], stop=stop, **options)
        recall = forgetting.rouge_recall(answers, [r.completion for r in retain])
        parts["retain_rouge"] = mean_measure(recall, "higher", f"ROUGE-L recall of {rouge} answers")
    if forgetting.has_truth(retain):
        ratios = forgetting.truth_ratios(model, retain, name="retain", end=end)
        parts["retain_truth"] = Measure(
            forgetting.retain_truth_score(ratios), len(ratios), "higher", help="mean max(0, 1 - 1/TR)"
        )
    whole = statistics.harmonic_mean([m.value for m in parts.values()])
    return parts | {
        **secondary,
        "retain_entropy": mean_measure(both[end]["entropy"], "", "entropy of predictions on retain answers", "nats"),
        "utility": Measure(whole, len(retain), "higher", help=f"harmonic mean of {', '.join(parts)}"),
    }


def _answer_measures(part: str, both: Any, end: bool, better: Better) -> dict[str, Measure]:
    """Accuracy and probability of a set's answers, with their end token or without; the other way under a suffix."""
    texts = {"accuracy": "share of answer tokens that are the first choice", "probability": "exp(-mean nll)"}
    names = {"accuracy": "token_accuracy"}
    return {
        f"{part}_{names.get(name, name)}{suffix if with_end != end else ''}": mean_measure(
            both[with_end][name], better, f"{text} of the {part} answers, {forgetting.counted(with_end)}"
        )
        for with_end in (end, not end)
        for suffix in (f"_{'with' if with_end else 'without'}_end",)
        for name, text in texts.items()
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


def _balance(out: dict[str, Measure], n: int) -> Measure:
    name = "ks" if "ks" in out else "forget_extraction"
    parts = [max(1 - out[name].value, 0.0)] + ([out["utility"].value] if "utility" in out else [])
    return Measure(statistics.harmonic_mean(parts), n, "higher", help=f"harmonic mean of 1 - {name} and utility")


def warns(metrics: Mapping[str, Metric]) -> list[str]:
    """Warn if the start model did not know the forget answers, or if the retain answers were forgotten too."""
    out = []
    probability, accuracy = (_before(metrics, f"forget_{name}") for name in ("probability", "token_accuracy"))
    if probability < KNOWN and accuracy < 0.5:
        out.append(
            f"the start model hardly knows the forget answers (forget_probability {probability:.3f}, {accuracy:.0%} of "
            "their tokens its first choice): there is little to forget, and low numbers after training show nothing"
        )
    before = _before(metrics, "retain_probability")
    if "retain_probability" in metrics and (after := metrics["retain_probability"].after) < KEPT * before:
        out.append(
            f"retain collapsed: the probability of the retain answers fell from {before:.3f} to {after:.3f}, whatever "
            "utility says: fewer steps, a lower rate or a larger weight on retain keep more"
        )
    return out


def _before(metrics: Mapping[str, Metric], name: str) -> float:
    before = metrics[name].before if name in metrics else None
    return float("nan") if before is None else before


def answers(predict: Predict, scoring: Scoring) -> dict[str, Measure]:
    """ROUGE-L recall of generated answers against the records' own, for arms without probabilities.

    `answer_balance` is the harmonic mean of 1 - recall on the forget set and recall on the retain set.
    """
    parts = {name: scoring.records[name] for name in ("forget", "retain") if scoring.records.get(name)}
    recall = {
        name: forgetting.rouge_recall(predict([r.prompt for r in part]), [r.completion for r in part])
        for name, part in parts.items()
    }
    out = {
        f"{name}_recall": mean_measure(values, "lower" if name == "forget" else "higher", "ROUGE-L recall of answers")
        for name, values in recall.items()
    }
    both = [1 - out["forget_recall"].value, *(out[n].value for n in ("retain_recall",) if n in out)]
    text = "harmonic mean of 1 - forget_recall and retain_recall"
    return out | {"answer_balance": Measure(statistics.harmonic_mean(both), len(parts["forget"]), "higher", help=text)}


PROTOCOL = Protocol(
    kind="demo",
    primary="balance",
    score=score,
    prompts=lambda scoring: [r.prompt for r in scoring.records["forget"]],
    held_out="retain",
    scored=("forget",),
    extra_sets=("unseen",),
    target=lambda demo: demo.completion,
    answers=answers,
    answers_primary="answer_balance",
    warns=warns,
)

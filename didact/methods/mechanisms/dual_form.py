"""Why Can GPT Learn In-Context? Language Models Implicitly Perform Gradient Descent (Dai et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.bounds import BelowOne, Count, Positive
from didact.evaluate import dual_study, three_way
from didact.evaluate.three_way import Way
from didact.learn.subset import Tuning
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Metric, Result


@method(
    "dual-form",
    paper="Why Can GPT Learn In-Context? Language Models Implicitly Perform Gradient Descent as Meta-Optimizers",
    year=2023,
    source="arXiv:2212.10559",
    gives=("findings",),
    capabilities=("train",),
    kinds=("causal",),
    presets={"cb": {"shots": 19}, "sentiment": {"shots": 32}, "agnews": {"shots": 22}},
)
def dual_form(
    model: Model,
    train: Sequence[Demo],
    test: Sequence[Demo],
    *,
    shots: Count = 16,
    ways: str = "kv",
    lrs: tuple[Positive, ...] = (1e-3, 3e-3, 1e-2, 3e-2),
    epochs: Count = 1,
    loss: Literal["text", "label"] = "text",
    draws: Count = 12,
    held: BelowOne = 0.3,
    queries: Count = 10,
    separator: str = "\n",
    seed: int = 0,
) -> Result:
    """Compare how demonstrations change a model's attention with how fine-tuning on the same demonstrations does.

    Without softmax, attention over demonstrations X' is an update of weights,
    `(W_ZSL + sum_i (W_V x'_i)(W_K x'_i)^T) q`, as a step of gradient descent is. The similarity of the two updates is
    measured at the last token of the query, with n(.) a vector scaled to length 1:

        Rec2FTP  of the answers that fine-tuning corrects, the share that demonstrations correct too
        SimAOU   cos(n(h_ICL) - n(h_ZSL), n(h_FT) - n(h_ZSL)) of every attention layer's output h
        SimAM    cos of the scores, before the softmax, of the query's own tokens
        Kendall  tau between ICL's attention to the demonstrations' tokens and that of FT's queries

    Each is reported with controls: the same with wrong labels, with other text of the same length, in an untrained copy
    of the model, and random. A similarity that a control explains is reported as not supported. Only keys and values
    are tuned, by plain SGD, one demonstration at a time in the prompt's order, and are then restored bit for bit.

    Args:
        model: a causal model whose attention can be read (eager or sdpa).
        train: records to draw demonstrations from. If records name a `task`, each draw is from one task.
        test: queries, with `choices`.
        shots: K, the number of demonstrations in a draw.
        ways: projections to tune: letters of q, k, v, and optionally a layer (`kv@middle`).
        lrs: learning rates to try; the one that learns most on some draws is chosen.
        epochs: epochs of fine-tuning.
        loss: loss of fine-tuning, on the whole text or on the label alone.
        draws: number of draws of demonstrations: the unit of every confidence interval.
        held: share of the draws on which the rate is chosen.
        queries: maximum number of queries per draw.
        separator: text between demonstrations.
        seed: random seed of the draws and controls.

    Returns:
        findings: the measures with controls and intervals, by layer, and the verdict.

    Raises:
        UserError: too few records, records without choices, a prompt longer than the context, fused attention.
    """
    start_time = time.monotonic()
    reader = three_way.LanguageReader(model, separator.replace("\\n", "\n"), loss)
    labels = three_way.labels(train)
    train, test = three_way.checked(train, "train", labels), three_way.checked(test, "test", labels)
    episodes = [e for e, _ in three_way.episodes(train, test, shots, queries, max(draws, 3), seed)]
    way = Way.of(ways, Tuning(lr=lrs[0], epochs=epochs, per="tokens" if loss == "text" else "rows"))
    findings = dual_study.findings(dual_study.study(reader, episodes, way, lrs, held, seed))
    result = Result(findings=findings, figures=dual_study.pictures(findings))
    result.metrics = _metrics(findings)
    if not findings["learnt"]:
        accuracy = {k: round(findings["measures"][k]["estimate"], 2) for k in ("zero", "icl", "tuned")}
        result.warnings.append(f"not both learn the task ({accuracy}): the similarities say nothing; try other --lrs")
    result.cost.tokens, result.cost.seconds = reader.tokens_read, time.monotonic() - start_time
    return result


def _metrics(told: dict[str, Any]) -> dict[str, Metric]:
    def metric(of: dict[str, float], text: str, before: float | None = None) -> Metric:
        ends = (of["low"], of["high"])
        return Metric(after=of["estimate"], before=before, n=told["draws"], ci=ends, help=text)

    rows = told["measures"]
    out = {
        "SimAOU": metric(told["SimAOU"]["fine-tuned"], "before: fine-tuned on wrong labels",
                         told["SimAOU"]["wrong labels"]["estimate"]),
        "SimAM": metric(rows["SimAM"], "before: without tuning", rows["SimAM without tuning"]["estimate"]),
        "Kendall": metric(rows["Kendall"], "before: random", rows["Kendall, random"]["estimate"]),
        "Rec2FTP": metric(told["Rec2FTP"]["share"], "before: the share where tuning fails",
                          told["Rec2FTP"]["where tuning fails"]["estimate"]),
        "accuracy_icl": metric(rows["icl"], "behind demonstrations", rows["zero"]["estimate"]),
        "accuracy_tuned": metric(rows["tuned"], "fine-tuned", rows["zero"]["estimate"]),
    }  # fmt: skip
    return {name: m for name, m in out.items() if m.after == m.after}

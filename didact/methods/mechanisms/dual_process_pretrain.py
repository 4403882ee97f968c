"""Weight forgetting in (pre-)training on your own text (Anand et al. 2024; Chen et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from didact.bounds import BelowOne, Count
from didact.data import encode, splits
from didact.evaluate import structural, structural_report
from didact.learn import resets
from didact.learn.fit import Hook
from didact.learn.resets import ForgetConfig
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Metric, Result, Text, UserError

NONE: resets.Mode = "none"


@method(
    "dual-process.pretrain",
    paper="Dual Process Learning: Controlling Use of In-Context vs. In-Weights Strategies with Weight Forgetting",
    year=2024,
    source="arXiv:2406.00053",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal",),
)
def dual_process_pretrain(
    corpus: Sequence[Text],
    model: Model,
    *,
    forget: ForgetConfig = ForgetConfig(mode="probabilistic"),
    beside: bool = True,
    window: Count = 512,
    held_out: BelowOne = 0.1,
    questions: Count = 200,
    fit: Fit = Fit(lr=5e-5, rows=2, schedule="linear", warmup_steps=500),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Train a language model on text while it forgets its embeddings, and measure what it then takes from context.

    The default is probabilistic: at each step every distinct token of the batch has, with probability `forget.share`, a
    random embedding for that step alone; the embeddings themselves stay bit for bit, the rest is trained. Active and
    temporary forgetting draw all embeddings anew every `forget.every` steps, for a model that learns from scratch.

    The model is then tested on held-out windows in which a pair of tokens `a b` recurs, in three versions: unchanged;
    with `b` replaced everywhere by another token of similar frequency, so that the context says that one and the
    weights `b`; and with a token whose embedding was never trained. Loss and accuracy are reported by frequency of the
    token, for comparison also of the initial model, and of one trained on the same batches without forgetting.

    Args:
        corpus: documents; a part is held out.
        model: the model to train; left unchanged, a copy is trained.
        forget: which embeddings are forgotten, and when.
        beside: also train without forgetting.
        window: tokens of a training row; no more than the model's context.
        held_out: share of the documents that are not trained on.
        questions: maximum number of test windows.
        fit: training.
        hooks: called around every step.

    Raises:
        UserError: too few documents, or a held-out text in which no pair of tokens recurs.
    """
    held = splits.held_out(splits.keys(corpus), held_out)
    if not held or len(held) == len(corpus):
        raise UserError(f"corpus: {len(corpus)} documents with {held_out:.0%} held out leave none on one side")
    length = min(window, model.context) - 1
    sides = [[text.text for i, text in enumerate(corpus) if (i in held) == side] for side in (False, True)]
    rows, test_rows = (encode.windows(model.tokenizer, texts, length) for texts in sides)
    token_counts = resets.counts(rows, model.embedded or len(model.tokenizer))
    items = structural.of_windows([r.prompt + r.completion for r in test_rows], token_counts, questions, fit.seed)
    test_rows = test_rows[:questions]

    def scored(one: Model) -> tuple[dict[str, Any], dict[str, Any]]:
        return structural.battery(one, items, seed=fit.seed), structural.by_frequency(one, test_rows, token_counts)

    modes: dict[resets.Mode, None] = dict.fromkeys([forget.mode, *([NONE] if beside else [])])
    results: dict[str, Any] = {"start": scored(model)}
    result = Result()
    for mode in modes:
        run, forgetting = resets.train(
            model, rows, dataclasses.replace(forget, mode=mode), fit, token_counts, hooks, f"train {mode}"
        )
        results[mode] = scored(run.model)
        result.models["model" if mode == forget.mode else mode] = run.model
        result.history = result.history or run.history
        result.findings.setdefault("resets", {})[mode] = forgetting.count
        result.cost += run.cost
    batteries = {arm: battery for arm, (battery, _) in results.items()}
    result.findings |= {"battery": batteries, "by_frequency": {arm: bins for arm, (_, bins) in results.items()}}
    control = "none" if "none" in results else "start"
    baseline = "trained without forgetting" if control == "none" else "the model as it came"
    after, before = (results[arm][1]["all"]["loss"] for arm in (forget.mode, control))
    loss = Metric(
        after=after["estimate"], before=before["estimate"], ci=(after["low"], after["high"]), unit="nats a token",
        n=results[forget.mode][1]["all"]["n"], better="lower", help=f"held-out text; before: {baseline}",
    )  # fmt: skip
    result.metrics = {"loss": loss} | structural_report.metrics(batteries[forget.mode], batteries[control], baseline)
    result.warnings = structural_report.warnings(batteries[forget.mode], batteries[control])
    result.figures = [*structural_report.plots(batteries, {}), structural_report.bins(result.findings["by_frequency"])]
    return result

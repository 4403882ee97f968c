"""Weight forgetting in one's own (pre-)training on text (Anand et al. 2024; Chen et al. 2023)."""

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
    """Train a language model on text while it forgets its embeddings, and say what it then takes from context.

    By default probabilistic: at each step every different token of the batch has, with probability `forget.share`, a
    random embedding for that step alone; the embeddings themselves stay bit for bit, the rest is trained. Active and
    temporary forgetting draw all embeddings anew every `forget.every` steps, for a model that learns from scratch.

    Held-out text is then asked three ways, where a pair of tokens `a b` comes again in a window: as it stands; with `b`
    put in place everywhere by another token of its frequency, so that the context says that one and the weights `b`;
    and with a token whose embedding was never trained. Loss and accuracy stand by frequency of the token. Beside it
    stand the model as it came, and one trained on the same batches without forgetting.

    Args:
        corpus: documents; a part is held out.
        model: what is trained; a copy is.
        forget: which embeddings are forgotten when.
        beside: also train without forgetting.
        window: tokens of a training row; no more than the model's context.
        held_out: share of the documents that are not trained on.
        questions: windows asked at most.
        fit: training.
        hooks: called around every step.

    Raises:
        UserError: too few documents, or a held-out text in which no pair of tokens comes twice.
    """
    out = splits.held_out(splits.keys(corpus), held_out)
    if not out or len(out) == len(corpus):
        raise UserError(f"corpus: {len(corpus)} documents with {held_out:.0%} held out leave none on one side")
    length = min(window, model.context) - 1
    sides = [[text.text for i, text in enumerate(corpus) if (i in out) == side] for side in (False, True)]
    rows, asked = (encode.windows(model.tokenizer, texts, length) for texts in sides)
    seen = resets.counts(rows, model.embedded or len(model.tokenizer))
    items = structural.of_windows([r.prompt + r.completion for r in asked], seen, questions, fit.seed)
    asked = asked[:questions]

    def scored(one: Model) -> tuple[dict[str, Any], dict[str, Any]]:
        return structural.battery(one, items, seed=fit.seed), structural.by_frequency(one, asked, seen)

    modes: dict[resets.Mode, None] = dict.fromkeys([forget.mode, *([NONE] if beside else [])])
    found: dict[str, Any] = {"start": scored(model)}
    result = Result()
    for mode in modes:
        made, forgetting = resets.train(
            model, rows, dataclasses.replace(forget, mode=mode), fit, seen, hooks, f"train {mode}"
        )
        found[mode] = scored(made.model)
        result.models["model" if mode == forget.mode else mode] = made.model
        result.history = result.history or made.history
        result.findings.setdefault("resets", {})[mode] = forgetting.count
        result.cost += made.cost
    batteries = {arm: battery for arm, (battery, _) in found.items()}
    result.findings |= {"battery": batteries, "by_frequency": {arm: bins for arm, (_, bins) in found.items()}}
    control = "none" if "none" in found else "start"
    told = "trained without forgetting" if control == "none" else "the model as it came"
    ours, before = (found[arm][1]["all"]["loss"] for arm in (forget.mode, control))
    loss = Metric(
        after=ours["estimate"], before=before["estimate"], ci=(ours["low"], ours["high"]), unit="nats a token",
        n=found[forget.mode][1]["all"]["n"], better="lower", help=f"held-out text; before: {told}",
    )  # fmt: skip
    result.metrics = {"loss": loss} | structural_report.metrics(batteries[forget.mode], batteries[control], told)
    result.warnings = structural_report.warnings(batteries[forget.mode], batteries[control])
    result.figures = [*structural_report.drawn(batteries, {}), structural_report.bins(result.findings["by_frequency"])]
    return result

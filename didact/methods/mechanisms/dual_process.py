"""Dual process learning by weight forgetting (Anand et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from didact.bounds import BelowOne, Count
from didact.data import encode, splits
from didact.evaluate import structural, structural_report
from didact.learn import resets
from didact.learn.fit import Hook, Step, every
from didact.learn.resets import ForgetConfig
from didact.models import build
from didact.models.model import Model
from didact.registry import method
from didact.types import Cost, Demo, Fit, Result, UserError

BESIDE: tuple[resets.Mode, ...] = ("none", "active")
LOOKED = 150  # items of a set that are asked during training


@method(
    "dual-process",
    paper="Dual Process Learning: Controlling Use of In-Context vs. In-Weights Strategies with Weight Forgetting",
    year=2024,
    source="arXiv:2406.00053",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal", "masked"),
    presets={
        "active": {"forget.mode": "active", "forget.every": 1000},
        "temporary": {"forget.mode": "temporary", "forget.every": 10, "forget.until": 1000},
        "probabilistic": {"forget.mode": "probabilistic", "fit.rows": 2, "fit.schedule": "linear"},
    },
)
def dual_process(
    demos: Sequence[Demo],
    battery: Sequence[Demo] = (),
    model: Model | None = None,
    *,
    forget: ForgetConfig = ForgetConfig(),
    beside: bool = True,
    layers: Count = 6,
    d: Count = 64,
    heads: Count = 1,
    held_out: BelowOne = 0.1,
    look_every: Count = 1000,
    fit: Fit = Fit(lr=5e-5, rows=128, steps=62_500, schedule="constant", weight_decay=0.01),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Set how much a model answers from context and how much from its weights, by forgetting embeddings in training.

    A model learns frequent words by heart, and then fails on rare and new ones though the context has the answer. Here

        E[v] <- N(0, sigma^2)  for all tokens v, every k steps (active), or only before step N (temporary),

    with Adam's moments of E, while all else goes on learning. It is trained on demonstrations by plain next-token loss,
    and asked at the end, and just before resets: sentences as in training, rare words, words whose place contradicts
    what the weights know (conflict), words training never had, with embeddings drawn anew. Beside it stand the same
    model without forgetting, and with forgetting that never ends.

    Args:
        demos: what is learnt; a part is held out.
        battery: further sets, named by their field `task`, with what the weights would say as `alternate`; words that
            `demos` do not have are unseen. By default words of held-out demos are put in place by unseen ones.
        model: a causal or masked model to train (a masked one reads masks where the completion stands); by default a
            BERT with a token for every word of `demos` and `battery` is built.
        forget: which embeddings are forgotten when.
        beside: also train without forgetting, and with active forgetting, from the same start on the same batches.
        layers: of the new model.
        d: its width; the feed-forward layer is 2 d.
        heads: of its attention.
        held_out: share of the demos that are not trained on.
        look_every: steps between two looks at the battery; a multiple of forget.every looks just before resets.
        fit: training.
        hooks: called around every step.

    Returns:
        `models["model"]`, and `none` and `active` beside it; findings by arm and set, and over training.

    Raises:
        UserError: too few demos, words the model does not know, or a width the heads do not divide.
    """
    if d % heads:
        raise UserError(f"d = {d}, heads = {heads}: heads must divide d")
    out = splits.held_out([d_.prompt for d_ in demos], held_out)
    trained = [demo for i, demo in enumerate(demos) if i not in out]
    kept = [dataclasses.replace(demos[i], task="seen", alternate=None) for i in sorted(out)]
    if not trained or not kept:
        raise UserError(f"demos: {len(demos)} records with {held_out:.0%} held out leave none on one side")
    if model is None:
        tokenizer = build.word_tokenizer(f"{demo.prompt} {demo.completion}" for demo in (*demos, *battery))
        longest = max(len(f"{demo.prompt} {demo.completion}".split()) for demo in (*demos, *battery))
        model = build.build("bert", tokenizer, d, layers, heads, ffn=2 * d, context=longest, seed=fit.seed)
    pairs = [(demo.prompt, demo.completion) for demo in trained]
    rows = encode.rows(model.tokenizer, pairs, "causal", model.context, "demos", end=False)
    seen = resets.counts(rows, model.embedded or len(model.tokenizer))
    given = {demo.task for demo in battery}
    items = structural.of_demos(model, [*battery, *([] if "seen" in given else kept)], seen)
    if "unseen" not in given:
        items += structural.renamed([item for item in items if item.task == "seen"], seen)
    looked = _some(items)

    modes = [forget.mode, *(m for m in BESIDE if m != forget.mode and beside)]
    result, cost = Result(), Cost()
    scores: dict[str, Any] = {}
    over: dict[str, Any] = {}
    for mode in modes:

        def look(step: Step) -> dict[str, Any]:
            found = structural.battery(_of(model, step.module), looked, ("matched",), fit.seed)
            return {task: one["accuracy"] for task, one in found.items()}

        watch = every(look_every, look)
        config = dataclasses.replace(forget, mode=mode)
        made, forgetting = resets.train(model, rows, config, fit, seen, [watch, *hooks], f"train {mode}")
        scores[mode] = structural.battery(made.model, items, seed=fit.seed)
        over[mode] = watch.rows
        result.models["model" if mode == forget.mode else mode] = made.model
        result.history = result.history or made.history
        result.findings.setdefault("resets", {})[mode] = forgetting.count
        cost += made.cost
    estimates = {mode: [{k: v if k == "step" else v["estimate"] for k, v in row.items()} for row in rows_]
                 for mode, rows_ in over.items()}  # fmt: skip
    result.findings |= {"battery": scores, "over_training": estimates}
    plain = scores.get("none", {}) if forget.mode != "none" else {}
    result.metrics = structural_report.metrics(scores[forget.mode], plain, "trained without forgetting")
    result.warnings = structural_report.warnings(scores[forget.mode], plain)
    result.figures = structural_report.drawn(scores, over)
    result.cost = cost
    return result


def _some(items: Sequence[structural.Item]) -> list[structural.Item]:
    """The first items of every set."""
    count: dict[str, int] = {}
    out = []
    for item in items:
        count[item.task] = count.get(item.task, 0) + 1
        if count[item.task] <= LOOKED:
            out.append(item)
    return out


def _of(model: Model, module: nn.Module) -> Model:
    """The model that is in training."""
    return Model(module, model.processor, model.kind)

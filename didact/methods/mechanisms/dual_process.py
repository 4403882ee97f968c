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
LOOKED = 150  # items of each set that are tested during training


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
    """Control how much a model answers from context or from its weights, by forgetting embeddings in training.

    A model memorises frequent words, and then fails on rare and new ones even if the context has the answer. Here

        E[v] <- N(0, sigma^2)  for all tokens v, every k steps (active), or only before step N (temporary),

    together with Adam's moments of E, while everything else keeps learning. Training is on demonstrations, with plain
    next-token loss. Tests, at the end and just before resets, are sentences as in training, rare words, words in a
    position that contradicts what the weights know (conflict), and words never seen in training, with newly drawn
    embeddings. For comparison the same model is trained without forgetting, and with forgetting that never ends.

    Args:
        demos: records to train on; a part is held out.
        battery: further test sets, named by their field `task`, with the weights' answer as `alternate`; words that
            `demos` do not have are unseen. By default words of held-out demos are replaced by unseen ones.
        model: a causal or masked model to train (a masked one has masks in place of the completion); by default a BERT
            with one token for every word of `demos` and `battery` is built.
        forget: which embeddings are forgotten, and when.
        beside: also train without forgetting, and with active forgetting, from the same weights on the same batches.
        layers: layers of a new model.
        d: its width; the feed-forward layer is 2 d.
        heads: its attention heads.
        held_out: share of the demos that are not trained on.
        look_every: steps between tests on the battery; a multiple of forget.every tests just before resets.
        fit: training.
        hooks: called around every step.

    Returns:
        `models["model"]`, and `none` and `active` for comparison; findings by arm and test set, and over training.

    Raises:
        UserError: too few demos, words the model does not know, or a width the heads do not divide.
    """
    if d % heads:
        raise UserError(f"d = {d}, heads = {heads}: heads must divide d")
    held = splits.held_out([d_.prompt for d_ in demos], held_out)
    train_demos = [demo for i, demo in enumerate(demos) if i not in held]
    held_demos = [dataclasses.replace(demos[i], task="seen", alternate=None) for i in sorted(held)]
    if not train_demos or not held_demos:
        raise UserError(f"demos: {len(demos)} records with {held_out:.0%} held out leave none on one side")
    if model is None:
        tokenizer = build.word_tokenizer(f"{demo.prompt} {demo.completion}" for demo in (*demos, *battery))
        longest = max(len(f"{demo.prompt} {demo.completion}".split()) for demo in (*demos, *battery))
        model = build.build("bert", tokenizer, d, layers, heads, ffn=2 * d, context=longest, seed=fit.seed)
    pairs = [(demo.prompt, demo.completion) for demo in train_demos]
    rows = encode.rows(model.tokenizer, pairs, "causal", model.context, "demos", end=False)
    token_counts = resets.counts(rows, model.embedded or len(model.tokenizer))
    tasks = {demo.task for demo in battery}
    items = structural.of_demos(model, [*battery, *([] if "seen" in tasks else held_demos)], token_counts)
    if "unseen" not in tasks:
        items += structural.renamed([item for item in items if item.task == "seen"], token_counts)
    test_items = _first_of_each(items)

    modes = [forget.mode, *(m for m in BESIDE if m != forget.mode and beside)]
    result, cost = Result(), Cost()
    scores: dict[str, Any] = {}
    over_training: dict[str, Any] = {}
    for mode in modes:

        def look(step: Step) -> dict[str, Any]:
            results = structural.battery(_wrapped(model, step.module), test_items, ("matched",), fit.seed)
            return {task: score["accuracy"] for task, score in results.items()}

        watch = every(look_every, look)
        config = dataclasses.replace(forget, mode=mode)
        run, forgetting = resets.train(model, rows, config, fit, token_counts, [watch, *hooks], f"train {mode}")
        scores[mode] = structural.battery(run.model, items, seed=fit.seed)
        over_training[mode] = watch.rows
        result.models["model" if mode == forget.mode else mode] = run.model
        result.history = result.history or run.history
        result.findings.setdefault("resets", {})[mode] = forgetting.count
        cost += run.cost
    estimates = {mode: [{k: v if k == "step" else v["estimate"] for k, v in row.items()} for row in rows_]
                 for mode, rows_ in over_training.items()}  # fmt: skip
    result.findings |= {"battery": scores, "over_training": estimates}
    plain = scores.get("none", {}) if forget.mode != "none" else {}
    result.metrics = structural_report.metrics(scores[forget.mode], plain, "trained without forgetting")
    result.warnings = structural_report.warnings(scores[forget.mode], plain)
    result.figures = structural_report.plots(scores, over_training)
    result.cost = cost
    return result


def _first_of_each(items: Sequence[structural.Item]) -> list[structural.Item]:
    """Return the first `LOOKED` items of every set."""
    count: dict[str, int] = {}
    out = []
    for item in items:
        count[item.task] = count.get(item.task, 0) + 1
        if count[item.task] <= LOOKED:
            out.append(item)
    return out


def _wrapped(model: Model, module: nn.Module) -> Model:
    """Wrap the module in training as a model."""
    return Model(module, model.processor, model.kind)

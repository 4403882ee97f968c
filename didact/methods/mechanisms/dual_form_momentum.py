"""Momentum attention (Dai et al. 2023), trained from scratch or inserted into a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import figures
from didact.bounds import BelowOne, Count
from didact.data import encode
from didact.evaluate import perplexity
from didact.learn import language
from didact.models import build, momentum
from didact.models.model import Model, copy_of
from didact.registry import method
from didact.types import Fit, Metric, Result, Text, UserError


@method(
    "dual-form.momentum",
    paper="Why Can GPT Learn In-Context? Language Models Implicitly Perform Gradient Descent as Meta-Optimizers",
    year=2023,
    source="arXiv:2212.10559",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal",),
)
def dual_form_momentum(
    corpus: Sequence[Text],
    model: Model | None = None,
    test: Sequence[Text] | None = None,
    *,
    eta: BelowOne = 0.5,
    gates_only: bool = False,
    held: BelowOne = 0.1,
    layers: Count = 24,
    d: Count = 1024,
    heads: Count = 16,
    context: Count = 2048,
    vocabulary: Count = 50_257,
    fit: Fit = Fit(lr=3e-4, rows=32, betas=(0.9, 0.98), schedule="linear"),
) -> Result:
    """Add a decayed sum of past values to every attention layer, and measure what it gains.

        MoAttn(q_t) = Attn(q_t) + g sum_{i < t} eta^(t - i) v_i

    A new model has g = 1 and is trained that way, as in the paper. In a trained model it is inserted with one gate per
    head, initialised to 0, so that nothing changes before training (ours). Both arms, with momentum and without, start
    from the same weights and read the same rows in the same order; perplexity is on text neither has seen.

    Args:
        corpus: documents to train on.
        model: a causal model to insert momentum into; by default one is built.
        test: documents to evaluate on; by default a share of the corpus, which is not trained on.
        eta: the decay.
        gates_only: train the gates and freeze the model; needs a model.
        held: share of the documents held out for evaluation if `test` is not given.
        layers: layers of a new model; the paper's size by default.
        d: its width.
        heads: its attention heads.
        context: tokens per window.
        vocabulary: size of the byte-level BPE trained on the corpus.
        fit: training of both arms.

    Returns:
        `models["model"]`, with momentum (saved in the `didact` format: transformers cannot express it), and findings.

    Raises:
        UserError: too little text, a width that the heads do not divide, attention whose values are not found.
    """
    start_time = time.monotonic()
    if gates_only and model is None:
        raise UserError("gates_only: a new model has no gates; give --model")
    texts = [t.text for t in corpus]
    if test is None:
        order = np.random.default_rng([fit.seed, 211]).permutation(len(texts)).tolist()
        held_count = max(1, round(held * len(texts)))
        if len(texts) <= held_count:
            raise UserError("corpus: one document cannot be trained and measured on: give --test, or more documents")
        unseen, texts = [texts[i] for i in order[:held_count]], [texts[i] for i in order[held_count:]]
    else:
        unseen = [t.text for t in test]
    pretrained = model is not None
    if model is None:
        if d % heads:
            raise UserError(f"d = {d}, heads = {heads}: heads must divide d")
        tokenizer = build.train_tokenizer(texts, vocabulary)
        model = build.build("gpt2", tokenizer, d, layers, heads, context=context + 1, seed=fit.seed)
    window = min(context, model.context - 1)
    rows = language.single(encode.windows(model.tokenizer, texts, window))
    starts = {"momentum": momentum.insert_momentum(model, eta, gated=pretrained), "plain": model}
    arms, history, result = {"start": copy_of(model)} if pretrained else {}, {}, Result()
    for name, start in starts.items():
        if gates_only:
            if name == "plain":
                continue
            body: Any = start.module
            body.base.requires_grad_(False)
        trained = language.train(start, {"text": rows}, language.nll, fit, name=name)
        arms[name], history[name] = trained.model, [row["nll"] for row in trained.history]
        result.cost += trained.cost
        result.history = result.history or trained.history
    baseline = "start" if gates_only else "plain"
    ordered = {n: arms[n] for n in ("momentum", baseline, *(a for a in arms if a not in ("momentum", baseline)))}
    scores = perplexity.findings(ordered, unseen, window)
    result.models = {"model": arms["momentum"]}
    gates = [mixer.gate.tolist() for mixer in arms["momentum"].module.mixers] if pretrained else None  # type: ignore[union-attr]
    result.findings = {"perplexity": scores, "eta": eta, "against": baseline, **({"gates": gates} if gates else {})}
    result.figures = [_curves(history)] + ([_gates(gates)] if gates else [])
    ours, base = scores["arms"]["momentum"], scores["arms"][baseline]
    result.metrics["nats"] = Metric(
        after=ours["estimate"], before=base["estimate"], n=scores["documents"], unit="nats a token",
        ci=(ours["low"], ours["high"]), better="lower", help=f"of unseen documents; before: {baseline}",
    )  # fmt: skip
    result.cost.seconds = time.monotonic() - start_time
    return result


def _curves(history: dict[str, list[float]]) -> figures.Figure:
    lines = []
    for name, losses in history.items():
        size = max(1, len(losses) // 50)
        means = [float(np.mean(losses[at : at + size])) for at in range(0, len(losses), size)]
        lines.append(figures.Line(name, [at * size for at in range(len(means))], means))
    return figures.Curves(title="Training with momentum and without", x="steps", y="loss, nats a token", lines=lines)


def _gates(gates: list[list[float]]) -> figures.Figure:
    heads = [str(h) for h in range(len(gates[0]))]
    return figures.Heat(
        title="What the gates have learnt", x="head", y="layer", value="gate", columns=heads,
        rows=[str(i) for i in range(len(gates))], values=gates,
    )  # fmt: skip

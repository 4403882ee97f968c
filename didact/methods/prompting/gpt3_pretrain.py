"""GPT-3's pre-training recipe, at any size (Brown et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from didact.bounds import Count, NonNegative, Positive, Share
from didact.learn import pretrain
from didact.learn.fit import Hook
from didact.models import banded, build
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Result, Text, UserError

# Layers, width, heads, rows of 2,048 tokens in the full batch (0.5M to 3.2M tokens), peak rate, and the ramp, which
# the paper gives as 4 to 12 billion tokens, more for larger models. Its width of 13B, 5,140, is not that of 40 heads of
# 128.
SIZES = {
    "125M": (12, 768, 12, 256, 6e-4, 4e9),
    "350M": (24, 1024, 16, 256, 3e-4, 4e9),
    "760M": (24, 1536, 16, 256, 2.5e-4, 4e9),
    "1.3B": (24, 2048, 16, 512, 2e-4, 6e9),
    "2.7B": (32, 2560, 32, 512, 1.6e-4, 6e9),
    "6.7B": (32, 4096, 32, 1024, 1.2e-4, 10e9),
    "13B": (40, 5120, 40, 1024, 1e-4, 12e9),
    "175B": (96, 12288, 96, 1600, 0.6e-4, 12e9),
}


@method(
    "gpt3.pretrain",
    paper="Language Models are Few-Shot Learners",
    year=2020,
    source="arXiv:2005.14165",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal",),
    presets={
        name: {"layers": layers, "d": d, "heads": heads, "ramp": ramp, "fit.rows": rows, "fit.lr": lr}
        for name, (layers, d, heads, rows, lr, ramp) in SIZES.items()
    },
)
def gpt3_pretrain(
    corpus: Sequence[Text],
    model: Model | None = None,
    *,
    layers: Count = 12,
    d: Count = 768,
    heads: Count = 12,
    context: Count = 2048,
    band: Count = 256,
    vocabulary: Count = 50_257,
    total_tokens: Positive | None = None,
    first_tokens: Positive = 32_768,
    warmup_tokens: NonNegative = 375e6,
    decay_tokens: NonNegative = 260e9,
    ramp: NonNegative = 4e9,
    floor: Share = 0.1,
    fit: Fit = Fit(lr=6e-4, rows=256, betas=(0.9, 0.95), clip=1.0, weight_decay=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Pre-train a language model from text by the paper's recipe, at any size.

    With n tokens seen, of `total_tokens` N, and every count below times N / 300e9:

        rate     lr n / warmup_tokens, then a cosine to floor lr at decay_tokens, then constant
        batch    from first_tokens linearly to fit.rows windows over the first `ramp` tokens

    Documents are shuffled, joined by the end token and cut into full windows without a mask between them; windows are
    drawn without replacement. AdamW (0.9, 0.95), clip 1, decay 0.1. Even layers are dense, odd ones attend to `band`
    positions; the paper does not publish its band.

    Args:
        corpus: documents.
        model: a causal model to continue from, with its own shape and tokenizer; by default one is built.
        layers: number of layers of a new model.
        d: its width; the feed-forward layer is 4 d.
        heads: its attention heads.
        context: tokens per window.
        band: positions an odd layer attends to.
        vocabulary: size of the byte-level BPE trained on the corpus.
        total_tokens: tokens of the run; by default `fit.steps` steps, else `fit.epochs` passes over the corpus.
        first_tokens: tokens of the first batch; not scaled.
        warmup_tokens: tokens of the warm-up, for a run of 300 billion.
        decay_tokens: tokens until the rate reaches its floor, for a run of 300 billion.
        ramp: tokens over which the batch grows, for a run of 300 billion.
        floor: final rate, as a share of its peak.
        fit: peak rate, rows of the full batch, Adam, clip, decay; its schedule and warm-up are not used.
        hooks: called around every step.

    Raises:
        UserError: no text, a width the heads do not divide, a model that is not causal, the loss became NaN.
    """
    if fit.lora:
        raise UserError("pre-training trains every weight: leave lora at 0")
    if model is None:
        if d % heads:
            raise UserError(f"d = {d}, heads = {heads}: heads must divide d")
        tokenizer = build.train_tokenizer((t.text for t in corpus), vocabulary)
        model = banded.alternating(tokenizer, d, layers, heads, context, band, fit.seed)
    window = min(context, model.context)
    rows = pretrain.packed(model, [t.text for t in corpus], window, fit.seed)
    counts: dict[str, float] = {
        "first": first_tokens, "warmup": warmup_tokens, "end": decay_tokens, "ramp": ramp, "floor": floor,
    }  # fmt: skip
    if fit.steps is not None and total_tokens is None:
        recipe = pretrain.recipe_for(fit.steps, window, fit.rows, **counts)
    else:
        total = total_tokens or fit.epochs * len(rows) * window
        recipe = pretrain.Recipe(total=total, window=window, rows=fit.rows, **counts)
    trained = pretrain.pretrain(model, rows, recipe, fit, hooks)
    return pretrain.result(trained, recipe, len(rows), parameters=trained.model.parameters)

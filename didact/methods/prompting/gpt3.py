"""GPT-3: few-shot evaluation, its contamination audit and removal, and its pre-training recipe (Brown et al. 2020)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from didact.data import contamination
from didact.data.demonstrations import Framing
from didact.evaluate import fewshot
from didact.evaluate.fewshot_prompts import Setup
from didact.infer import rank
from didact.learn import pretrain
from didact.learn.fit import Hook
from didact.models import build, mixers
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Fit, Metric, Record, Result, Text, UserError

PAPER: dict[str, Any] = {
    "paper": "Language Models are Few-Shot Learners",
    "year": 2020,
    "source": "arXiv:2005.14165",
}
# Layers, width, heads, rows of 2,048 tokens in the full batch (0.5M to 3.2M tokens), peak rate, and the ramp, of
# which the paper says 4 to 12 billion tokens, more for larger models. 13B has 5,140 there, which 40 heads of 128 do
# not make.
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
    "gpt3",
    **PAPER,
    gives=("findings", "records"),
    capabilities=("score",),
    presets={
        "zero-one-few": {"shots": (0, 1, 32)},
        "normalised": {"rule": "unconditional"},
        "lambada": {"framing": "cloze", "max_new_tokens": 8, "shots": (0, 1, 15)},
        "winogrande": {"framing": "partial", "rule": "sum", "shots": (0, 1, 50)},
        "lm-eval": {"fresh": False, "rule": "sum"},
    },
)
def gpt3(
    model: Model | LM,
    test: Sequence[Demo],
    train: Sequence[Demo] | None = None,
    dev: Sequence[Demo] | None = None,
    corpus: Sequence[Text] | None = None,
    *,
    shots: tuple[int, ...] = (0, 1, 4, 16),
    draws: int = 1,
    fresh: bool = True,
    rule: Literal["token", "sum", "character", "unconditional", "auto"] = "token",
    framing: Framing = "answer",
    description: str = "",
    separator: str = "\n\n",
    answer_context: str = rank.ANSWER,
    metric: Literal["exact", "normalised", "f1", "bleu"] = "exact",
    beams: int = 4,
    length_penalty: float = 0.6,
    max_new_tokens: int = 32,
    stop: str = "\n",
    seed: int = 0,
) -> Result:
    """Measure what a model can do from a description and K demonstrations, without changing a weight.

    Every test item stands behind K demonstrations drawn for it from `train` (the first K of one draw, so the
    curve over K adds to what is there; never an item that asks the same). Items with `choices` are answered by the
    choice c of highest score given the prompt x, items without are generated and compared:

        token          (1/n_c) sum_t log p(c_t | x, c_<t)        the paper's default; n_c tokens
        sum            log p(c | x)                              lm-eval's acc
        character      log p(c | x) / characters of c            lm-eval's acc_norm
        unconditional  log p(c | x) - log p(c | answer_context)  ARC, OpenBookQA, RACE

    K is chosen on `dev` where it is given, and never on test; all K are shown. Intervals are clustered by item
    and draw (`evaluate.statistics.two_way`). With a `corpus` every item is audited: it is dirty if N words in a row of
    it stand there, N the 5th percentile of item lengths within [8, 13].

    Args:
        model: scores choices, or generates free answers; causal, seq2seq or a server.
        test: items; `choices` makes one a choice, `answers` are further accepted free answers, `instruction`
            is a description of its own.
        train: what demonstrations are drawn from; else dev, else the other test items.
        dev: items on which K (and with rule auto the rule) is chosen.
        corpus: what the model was trained on, to audit the items.
        shots: every K to measure.
        draws: how often demonstrations are drawn for each item.
        fresh: an own draw for every item, as the paper has it; else one for all (lm-eval's way, another protocol).
        rule: how choices are scored; auto takes token or unconditional, by dev.
        framing: answer follows the prompt; cloze asks for a passage's last word (`... ____. ->`, LAMBADA); partial
            puts every choice at the prompt's `_` and scores the text after it (Winogrande).
        description: said once before everything; alone it is the zero-shot prompt.
        separator: between demonstrations, and before the query; `\\n` is a line break.
        answer_context: what asks for an answer and nothing else, for unconditional.
        metric: of free answers: exact to the letter, normalised as in SQuAD, token f1, or bleu of
            each answer by itself (in [0, 1]).
        beams: beam search's width for free answers (a server's are greedy).
        length_penalty: its alpha; a hypothesis of n tokens scores logp / ((5 + n) / 6)^alpha.
        max_new_tokens: of a free answer.
        stop: a free answer ends before it; empty does not stop.
        seed: of the draws.

    Returns:
        findings (curves over K by every rule, gains, what was chosen, contamination), metrics, and one record an
        item with its scores.

    Raises:
        UserError: choices and a model that cannot score, records of mixed kinds, a right answer that is no choice.
    """
    began = time.monotonic()
    setup = Setup(
        shots=tuple(shots), draws=draws, fresh=fresh, framing=framing, description=description, separator=separator,
        answer_context=answer_context, metric=metric, beams=beams, length_penalty=length_penalty,
        max_new_tokens=max_new_tokens, stop=stop, seed=seed,
    )  # fmt: skip
    result = fewshot.evaluate(model, test, train, dev, corpus, setup, rule, "gpt3")
    result.cost.seconds = time.monotonic() - began
    return result


@method("gpt3.clean", **PAPER, gives=("records", "findings"), capabilities=())
def gpt3_clean(
    corpus: Sequence[Text],
    test: Sequence[Demo] | None = None,
    *,
    n: int = 13,
    window: int = 200,
    shortest: int = 200,
    most_pieces: int = 10,
    common: int = 10,
    quality: bool = False,
    similar: float = 0.0,
    hashes: int = 10,
    seed: int = 0,
) -> Result:
    """Take test items out of training text, before anything is trained on it.

    Every run of n words that a document shares with an item (lower case, no punctuation) is cut out with a window
    of characters on both sides. Runs that stand in more than `common` documents are phrases of the language and
    stay. With `quality`, documents are first drawn by their `score` s in [0, 1]: kept with probability
    (2 - s)^-9, which is `pareto(9) > 1 - s`. With `similar`, documents that nearly repeat an earlier one go then,
    found by MinHash LSH.

    Args:
        corpus: documents; with `quality` each needs its score.
        test: items that must not stand in them.
        n: words of an overlap.
        window: characters cut on each side of one.
        shortest: pieces with fewer characters are dropped.
        most_pieces: documents split into more are dropped whole.
        common: runs of words in more documents than this are left.
        quality: draw documents by their score.
        similar: share of their runs of 5 words that two documents have in common from which the later goes; 0 keeps
            all. The paper does not say its own.
        hashes: of MinHash; more miss fewer.
        seed: of that draw.

    Returns:
        records, the documents that are left, split where something was cut; findings count what went.

    Raises:
        UserError: nothing to do, a window or n that is not positive, a document without score.
    """
    if test is None and not quality and not similar:
        raise UserError("nothing to do: give --test to remove its items, --quality to filter by score, or --similar")
    if not 0 <= similar <= 1 or hashes < 2:
        raise UserError("similar must lie in [0, 1], hashes must be at least 2")
    if min(n, shortest, most_pieces, common) < 1 or window < 0:
        raise UserError("n, shortest, most_pieces and common must be at least 1, window 0 or more")
    kept = list(corpus)
    findings: dict[str, Any] = {"documents": len(corpus)}
    if quality:
        if missing := [i for i, t in enumerate(corpus, 1) if t.score is None or not 0 <= t.score <= 1]:
            raise UserError(f"corpus: record {missing[0]}: quality needs a score in [0, 1] of every document")
        drawn = contamination.quality_filter([t.score or 0.0 for t in corpus], seed)
        kept = [t for t, keep in zip(corpus, drawn, strict=True) if keep]
        findings["filtered"] = len(corpus) - len(kept)
    if similar:
        first = contamination.near_duplicates([t.text for t in kept], similar, hashes)
        findings["duplicates"] = sum(at is not None for at in first)
        kept = [t for t, at in zip(kept, first, strict=True) if at is None]
    records: list[Record] = list(kept)
    if test is not None:
        items = [f"{r.prompt} {r.completion}" for r in test]
        left = contamination.remove(
            [t.text for t in kept], items, n=n, window=window, shortest=shortest, most_pieces=most_pieces, common=common
        )
        records = [dataclasses.replace(kept[i], text=p) for p, i in zip(left.pieces, left.source, strict=True)]
        findings |= {"collisions": left.collisions, "dropped": len(left.dropped)}
    characters = sum(len(t.text) for t in corpus)
    remaining = sum(len(r.text) for r in records if isinstance(r, Text))
    findings |= {"pieces": len(records), "characters": characters, "characters_left": remaining}
    share = Metric(
        after=remaining / max(1, characters), before=1.0, n=len(corpus), help="characters of the corpus that are left"
    )
    return Result(records=records, findings=findings, metrics={"kept": share})


@method(
    "gpt3.pretrain",
    **PAPER,
    gives=("models", "findings"),
    capabilities=("train",),
    presets={
        name: {"layers": layers, "d": d, "heads": heads, "ramp": ramp, "fit.rows": rows, "fit.lr": lr}
        for name, (layers, d, heads, rows, lr, ramp) in SIZES.items()
    },
)
def gpt3_pretrain(
    corpus: Sequence[Text],
    model: Model | None = None,
    *,
    layers: int = 12,
    d: int = 768,
    heads: int = 12,
    context: int = 2048,
    band: int = 256,
    vocabulary: int = 50_257,
    total_tokens: float | None = None,
    first_tokens: float = 32_768,
    warmup_tokens: float = 375e6,
    decay_tokens: float = 260e9,
    ramp: float = 4e9,
    floor: float = 0.1,
    fit: Fit = Fit(lr=6e-4, rows=256, betas=(0.9, 0.95), clip=1.0, weight_decay=0.1),  # noqa: B008  (frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Pre-train a language model from text by the paper's recipe, at any size.

    With n tokens seen, of `total_tokens` N, and every count below times N / 300e9:

        rate     lr n / warmup_tokens, then a cosine to floor lr at decay_tokens, then constant
        batch    from first_tokens linearly to fit.rows windows over the first `ramp` tokens

    Documents are put in random order, joined by the end token and cut into full windows without a mask between
    them; windows are drawn without replacement. AdamW (0.9, 0.95), clip 1, decay 0.1. Even layers are dense, odd ones
    see `band` positions; the paper does not publish its band.

    Args:
        corpus: documents.
        model: a causal model to go on from, with its own shape and tokenizer; by default one is built.
        layers: of the new model.
        d: its width; the feed-forward layer is 4 d.
        heads: of its attention.
        context: tokens of a window.
        band: positions an odd layer sees.
        vocabulary: of the byte-level BPE trained on the corpus.
        total_tokens: of the run; by default `fit.steps` steps, else `fit.epochs` passes over the corpus.
        first_tokens: of the first batch; not scaled.
        warmup_tokens: of a run of 300 billion.
        decay_tokens: of a run of 300 billion.
        ramp: tokens, of a run of 300 billion.
        floor: of the rate, a share of its peak.
        fit: peak rate, rows of the full batch, Adam, clip, decay; its schedule and warm-up are not used.
        hooks: called around every step.

    Raises:
        UserError: no text, a width the heads do not divide, a model that is not causal, the loss became NaN.
    """
    if fit.lora:
        raise UserError("pre-training trains every weight: leave lora at 0")
    if model is not None and model.kind != "causal":
        raise UserError(f"pre-training here is next-token prediction: a {model.kind} model cannot do it")
    if model is None:
        if min(layers, d, heads, band) < 1 or d % heads:
            raise UserError(f"d = {d}, heads = {heads}: layers, d, heads and band must be positive, heads divide d")
        tokenizer = build.train_tokenizer((t.text for t in corpus), vocabulary)
        model = mixers.alternating(tokenizer, d, layers, heads, context, band, fit.seed)
    window = min(context, model.context)
    rows = pretrain.packed(model, [t.text for t in corpus], window, fit.seed)
    told: dict[str, float] = {
        "first": first_tokens, "warmup": warmup_tokens, "end": decay_tokens, "ramp": ramp, "floor": floor,
    }  # fmt: skip
    if fit.steps is not None and total_tokens is None:
        recipe = pretrain.recipe_for(fit.steps, window, fit.rows, **told)
    else:
        total = total_tokens or fit.epochs * len(rows) * window
        recipe = pretrain.Recipe(total=total, window=window, rows=fit.rows, **told)
    taught = pretrain.pretrain(model, rows, recipe, fit, hooks)
    history = taught.history
    seen = np.array(recipe.plan[1:]) * window
    x = [int(v) for v in seen[: len(history)]]

    def curve(name: str, label: str) -> dict[str, Any]:
        return {"x": x, "y": [row[name] for row in history], "xlabel": "tokens", "ylabel": label}

    curves = {
        "loss": curve("nll", "nats a token"),
        "rate": curve("lr", "learning rate"),
        "batch": curve("rows", "rows"),
    }
    findings = {
        "curves": curves, "steps": recipe.steps, "windows": len(rows), "epochs": recipe.plan[-1] / len(rows),
        "scale": recipe.scale, "parameters": taught.model.parameters,
    }  # fmt: skip
    tail = float(np.mean([row["nll"] for row in history[-20:]]))
    loss = Metric(
        after=tail, before=history[0]["nll"], unit="nats", better="lower", help="training loss, last 20 steps"
    )
    return Result(
        models={"model": taught.model}, history=history, findings=findings, metrics={"loss": loss}, cost=taught.cost
    )

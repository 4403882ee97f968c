"""Who's Harry Potter (WHP): forget a text by learning the predictions of a model that never read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from didact.bounds import Count, NonNegative
from didact.data import anchors as dictionaries
from didact.data import encode
from didact.data.streams import IGNORE, MicroBatch
from didact.learn import generic_labels, language
from didact.learn.fit import Hook, Term
from didact.models import forward, logit_ensemble
from didact.models.forward import Tokenwise
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Cost, Demo, Fit, Parallel, Result, Text, UserError

PRESETS: dict[str, dict[str, object]] = {
    "published": {"normalise": "raw"},
    "anchors-only": {"use_reinforcement": False},
    "reinforce-only": {"use_anchors": False},
    "no-relu": {"relu": False},
    "soft": {"labels": "soft"},
    "changed": {"train_on": "changed"},
    "logit": {"mode": "logit", "alpha": 1.0, "normalise": "raw"},  # MUSE's WHP
}


@method(
    "whp",
    paper="Who's Harry Potter? Approximate Unlearning in LLMs",
    year=2023,
    source="arXiv:2310.02238",
    gives=("models", "records", "findings"),
    kinds=("causal",),
    protocol=("forget", "forget_text"),
    presets=PRESETS,
)
def whp(
    model: Model,
    forget: Sequence[Demo] | None = None,
    retain: Sequence[Demo] | None = None,
    target: Sequence[Text] | None = None,
    general: Sequence[Text] | None = None,
    anchors: Sequence[Parallel] | None = None,
    *,
    mode: Literal["train", "logit"] = "train",
    alpha: NonNegative = 5.0,
    relu: bool = True,
    use_anchors: bool = True,
    use_reinforcement: bool = True,
    normalise: Literal["log_softmax", "raw"] = "log_softmax",
    labels: Literal["hard", "soft"] = "hard",
    train_on: Literal["all", "changed"] = "all",
    repeats: Literal["first", "all"] = "first",
    alias_penalty: NonNegative = 10.0,
    block: Count = 512,
    most_anchors: Count = 1500,
    reinforce_lr: NonNegative = 3e-6,
    reinforce_epochs: NonNegative = 3.0,
    keep_reinforced: bool = False,
    fit: Fit = Fit(lr=1e-6, epochs=2, rows=128, schedule="constant"),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Make a model forget a body of text: fine-tune it on predictions as if it had never read the text.

    A copy is trained further on the text (reinforced), and the text is translated: expressions only it uses are
    replaced by generic ones. The label of every token of the ORIGINAL text is then the argmax of

        v_generic = v(translated text) - alpha relu(v_reinforced(original) - v(original))

    and the initial model is trained on these labels by plain cross-entropy: no loss that could diverge. Tokens without
    a counterpart in the translation, and every occurrence of an anchor in a block after its first, carry no label; a
    replacement is made unlikely once the original name has occurred.

    Args:
        model: a causal model; left unchanged, a trained copy is returned.
        forget: answers that must go: they are scored, and are the text to forget if there is no `target`.
        retain: answers that must stay: scored, and read as general text; nothing is trained on them.
        target: the text to forget.
        general: other text, to take generic counterparts from.
        anchors: the dictionary, `source` the target's own expression and `target` its generic one; else found by
            counting, in target against general (`didact.data.anchors.dictionary_from` asks a language model).
        mode: train, or logit, which trains only the reinforced model and subtracts logits at every token.
        alpha: how much of the reinforced model's rise is subtracted.
        relu: whether only rises count.
        use_anchors: whether the text is translated.
        use_reinforcement: whether alpha's term is used at all.
        normalise: log_softmax compares log-probs; raw, the paper, logits, whose constant offset is arbitrary. The
            log-prob of a token with probability p can rise by log(1/p) at most, so that reinforcement hardly acts on
            facts the model is sure of; logits can rise further.
        labels: hard takes the argmax; soft the whole distribution.
        train_on: all labels, or only those that differ from the text.
        repeats: which occurrences of an anchor in a block carry labels.
        alias_penalty: subtracted from the logit of a counterpart's first token once its anchor has occurred.
        block: tokens per block.
        most_anchors: maximum number of anchors found by counting.
        reinforce_lr: learning rate of the reinforced model.
        reinforce_epochs: its passes over the text; its other options are those of `fit`.
        keep_reinforced: whether the result has the reinforced model too.
        fit: how to train on the labels; the defaults are the paper's for a 7B model (small ones need 1e-4 and more).
        hooks: called around every step of that.

    Returns:
        The model; one record per block with its tokens and labels; findings (dictionary, shares of labels).

    Raises:
        UserError: neither target nor forget, no label left, the loss became NaN.
    """
    texts = [t.text for t in target or ()] or [_text_of(d) for d in forget or ()]
    if not texts:
        raise UserError("nothing to forget: give --target (texts) or --forget (demonstrations)")
    general_texts = [t.text for t in general or ()] + [_text_of(d) for d in retain or ()]
    translated = use_anchors and mode == "train"
    dictionary, warnings = _dictionary(texts, general_texts, anchors, most_anchors) if translated else ({}, [])
    blocks = dictionaries.blocks(model.tokenizer, texts, dictionary, min(block, model.context), model.context)
    rows = language.single(b.row for b in blocks)
    reinforced, cost = model, Cost()
    if use_reinforcement and alpha:
        reinforce_fit = fit.replace(lr=reinforce_lr, epochs=reinforce_epochs, steps=None)
        reinforcement = language.train(model, {"target": rows}, language.nll, reinforce_fit, name="reinforce")
        reinforced, cost = reinforcement.model, reinforcement.cost
        reinforced.module.requires_grad_(False)
    findings = {"anchors": dictionary, "blocks": len(blocks)}
    extra = {"reinforced": reinforced} if keep_reinforced else {}
    if mode == "logit":
        contrast = logit_ensemble.contrast(model, reinforced, alpha, normalise)
        return Result(models={"model": contrast, **extra}, findings=findings, warnings=warnings, cost=cost)
    generic = generic_labels.Generic(model, reinforced, alpha, relu, normalise, alias_penalty, bool(dictionary))
    label_rows = generic_labels.labels(generic, blocks, repeats, train_on)
    shares = generic_labels.shares(blocks, label_rows)
    if not shares["labels"]:
        raise UserError("no label is left to train on: every token belongs to an anchor, or none changed")
    share = shares["labels"] / shares["tokens"]

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        index = micro.index.tolist()
        label = torch.cat([label_rows[i] for i in index]).to(micro.tokens.target.device)
        columns: dict[str, Tensor] = {"label": label}
        fn: Tokenwise = token_functions.labelled
        if labels == "soft":
            goal = generic([blocks[i] for i in index])
            columns, fn = {"goal": goal, "kept": (label != IGNORE).to(goal)}, token_functions.softly_labelled
        loss = forward.tokens(student, micro.tokens, {"loss": fn}, columns)["loss"]
        return {"generic": Term(loss.sum() / share, "target.tokens")}  # every kept token weighs the same

    trained = language.train(model, {"target": rows}, terms, fit, hooks=hooks, name="whp")
    if not shares["changed"]:
        warnings.append("no label differs from the model's text: nothing to learn; reinforce longer, give anchors")
    return trained.result(
        models={"model": trained.model, **extra}, findings=findings | shares, warnings=warnings,
        records=generic_labels.as_records(model, blocks, label_rows), cost=trained.cost + cost,
    )  # fmt: skip


def _dictionary(
    texts: Sequence[str], others: Sequence[str], given: Sequence[Parallel] | None, most: int
) -> tuple[dict[str, str], list[str]]:
    """Return anchors with their counterparts, and warnings."""
    if given:
        return {a.source: a.target for a in given}, []
    if not others:
        return {}, ["no anchors, and no general text to find counterparts in: labels come from reinforcement alone"]
    extracted = dictionaries.extract(texts, others, most)
    return extracted, [] if extracted else ["no expression is the target's own: labels come from reinforcement alone"]


def _text_of(record: Demo) -> str:
    """Join a demonstration's prompt and completion."""
    return record.prompt + encode.join(record.prompt, record.completion, "causal")

"""Who's Harry Potter: forget a body of text by learning what a model that never read it would say."""

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
    "logit": {"mode": "logit", "alpha": 1.0, "normalise": "raw"},  # what MUSE calls WHP
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
    """Make a model forget a body of text: fine-tune it on what it would say had it never read it.

    A copy is trained further on the text (reinforced), and the text is translated: expressions only it uses give
    way to generic ones. The label of every token of the ORIGINAL text is then the argmax of

        v_generic = v(translated text) - alpha relu(v_reinforced(original) - v(original))

    and the model as it came is trained on these labels by plain cross-entropy: no loss that could run away. Tokens
    without a counterpart in the translation, and every occurrence of an anchor in a block after its first, carry no
    label; a replacement does not follow where the original name has been said.

    Args:
        model: a causal model; it stays as it was, a trained copy is returned.
        forget: answers that must go: they are scored, and are the text to forget where there is no `target`.
        retain: answers that must stay: scored, and read as general text; nothing is trained on them.
        target: the text to forget.
        general: other text, to take generic counterparts from.
        anchors: the dictionary, `source` of the target's own and `target` what stands for it; else found by
            counting, in target against general (`didact.data.anchors.asked` asks a language model).
        mode: train, or logit, which trains only the reinforced model and subtracts logits at every token.
        alpha: how much of what reinforcement raised is taken off.
        relu: whether only what rose counts.
        use_anchors: whether the text is translated.
        use_reinforcement: whether alpha's part is there at all.
        normalise: log_softmax compares log-probs; raw, the paper, logits, which depends on a constant no one sees. The
            log-prob of what the model is sure of, p, can rise by log(1/p) at most, so that reinforcement hardly acts on
            sure facts; logits can rise further.
        labels: hard takes the argmax; soft the whole distribution.
        train_on: all labels, or only those that differ from the text.
        repeats: which occurrences of an anchor in a block carry labels.
        alias_penalty: taken off the logit of a counterpart's first token once its anchor has been said.
        block: tokens of a block.
        most_anchors: found by counting at most.
        reinforce_lr: learning rate of the reinforced model.
        reinforce_epochs: its passes over the text; its other options are those of `fit`.
        keep_reinforced: whether the result has the reinforced model too.
        fit: how to train on the labels; the defaults are the paper's for a 7B model (small ones need 1e-4 and more).
        hooks: called around every step of that.

    Returns:
        The model; one record a block with its tokens and labels; findings (dictionary, shares of labels).

    Raises:
        UserError: neither target nor forget, no label left, the loss became NaN.
    """
    texts = [t.text for t in target or ()] or [_text_of(d) for d in forget or ()]
    if not texts:
        raise UserError("nothing to forget: give --target (texts) or --forget (demonstrations)")
    others = [t.text for t in general or ()] + [_text_of(d) for d in retain or ()]
    translated = use_anchors and mode == "train"
    replace, warnings = _dictionary(texts, others, anchors, most_anchors) if translated else ({}, [])
    blocks = dictionaries.blocks(model.tokenizer, texts, replace, min(block, model.context), model.context)
    rows = language.single(b.row for b in blocks)
    reinforced, cost = model, Cost()
    if use_reinforcement and alpha:
        further = fit.replace(lr=reinforce_lr, epochs=reinforce_epochs, steps=None)
        reinforcing = language.train(model, {"target": rows}, language.nll, further, name="reinforce")
        reinforced, cost = reinforcing.model, reinforcing.cost
        reinforced.module.requires_grad_(False)
    findings = {"anchors": replace, "blocks": len(blocks)}
    extra = {"reinforced": reinforced} if keep_reinforced else {}
    if mode == "logit":
        contrast = logit_ensemble.contrast(model, reinforced, alpha, normalise)
        return Result(models={"model": contrast, **extra}, findings=findings, warnings=warnings, cost=cost)
    generic = generic_labels.Generic(model, reinforced, alpha, relu, normalise, alias_penalty, bool(replace))
    chosen = generic_labels.labels(generic, blocks, repeats, train_on)
    shares = generic_labels.shares(blocks, chosen)
    if not shares["labels"]:
        raise UserError("no label is left to train on: every token belongs to an anchor, or none changed")
    share = shares["labels"] / shares["tokens"]

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        index = micro.index.tolist()
        label = torch.cat([chosen[i] for i in index]).to(micro.tokens.target.device)
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
        records=generic_labels.as_records(model, blocks, chosen), cost=trained.cost + cost,
    )  # fmt: skip


def _dictionary(
    texts: Sequence[str], others: Sequence[str], given: Sequence[Parallel] | None, most: int
) -> tuple[dict[str, str], list[str]]:
    """Anchors with their counterparts, and what to warn of."""
    if given:
        return {a.source: a.target for a in given}, []
    if not others:
        return {}, ["no anchors, and no general text to find counterparts in: labels come from reinforcement alone"]
    found = dictionaries.extract(texts, others, most)
    return found, [] if found else ["no expression is the target's own: labels come from reinforcement alone"]


def _text_of(record: Demo) -> str:
    """A demonstration as text."""
    return record.prompt + encode.join(record.prompt, record.completion, "causal")

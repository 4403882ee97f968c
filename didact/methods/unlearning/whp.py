"""Who's Harry Potter: forget a body of text by learning what a model that never read it would say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from didact.data import anchors as dictionary
from didact.data import encode
from didact.data.anchors import Block
from didact.data.streams import IGNORE, MicroBatch, by_length, collate
from didact.evaluate import protocols
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models import forward, merge
from didact.models.forward import Tokenwise
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.registry import method
from didact.types import Demo, Fit, Metric, Parallel, Record, Result, Text, UserError

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
    protocol="forget",
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
    alpha: float = 5.0,
    relu: bool = True,
    use_anchors: bool = True,
    use_reinforcement: bool = True,
    normalise: Literal["log_softmax", "raw"] = "log_softmax",
    labels: Literal["hard", "soft"] = "hard",
    train_on: Literal["all", "changed"] = "all",
    repeats: Literal["first", "all"] = "first",
    alias_penalty: float = 10.0,
    block: int = 512,
    most_anchors: int = 1500,
    reinforce_lr: float = 3e-6,
    reinforce_epochs: float = 3.0,
    keep_reinforced: bool = False,
    fit: Fit = Fit(lr=1e-6, epochs=2, rows=128, schedule="constant"),  # noqa: B008  (Fit is frozen)
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
        model: a causal model; it stays as it was, a taught copy is returned.
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
        normalise: log_softmax compares log-probs; raw, the paper, logits, which depends on a constant no one sees.
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
        UserError: neither target nor forget, a model that is not causal, no label left, the loss became NaN.
    """
    if alpha < 0 or alias_penalty < 0 or reinforce_epochs < 0:
        raise UserError("alpha, alias_penalty and reinforce_epochs must be 0 or more")
    if model.kind != "causal":
        raise UserError(f"whp reads text from left to right: a {model.kind} model cannot")
    texts = [t.text for t in target or ()] or [_told(d) for d in forget or ()]
    if not texts:
        raise UserError("nothing to forget: give --target (texts) or --forget (demonstrations)")
    others = [t.text for t in general or ()] + [_told(d) for d in retain or ()]
    began = time.monotonic()
    replace, warnings = (
        _dictionary(texts, others, anchors, most_anchors) if use_anchors and mode == "train" else ({}, [])
    )
    blocks = dictionary.blocks(model.tokenizer, texts, replace, min(block, model.context), model.context)
    rows = language.single(b.row for b in blocks)
    reinforced, cost = model, None
    if use_reinforcement and alpha:
        how = fit.replace(lr=reinforce_lr, epochs=reinforce_epochs, steps=None)
        made = language.train(model, {"target": rows}, _reading, how, name="reinforce", identity={"whp": "reinforce"})
        reinforced, cost = made.model, made.cost
        reinforced.module.requires_grad_(False)
    generic = Generic(model, reinforced, alpha, relu, normalise, alias_penalty, bool(replace))
    findings: dict[str, Any] = {"anchors": replace, "blocks": len(blocks)}
    if mode == "logit":
        taught = merge.contrast(model, reinforced, alpha, normalise)
        result = Result(models={"model": taught}, findings=findings, warnings=warnings)
    else:
        chosen = _labels(generic, blocks, repeats, train_on)
        found = _shares(blocks, chosen)
        if not found["labels"]:
            raise UserError("no label is left to train on: every token belongs to an anchor, or none changed")
        share = found["labels"] / found["tokens"]

        def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
            mine = micro.index.tolist()
            label = torch.cat([chosen[i] for i in mine]).to(micro.tokens.target.device)
            columns: dict[str, Tensor] = {"label": label}
            fn: Tokenwise = token_functions.labelled
            if labels == "soft":
                goal = generic([blocks[i] for i in mine])
                columns, fn = {"goal": goal, "kept": (label != IGNORE).to(goal)}, token_functions.softly_labelled
            loss = forward.tokens(student, micro.tokens, {"loss": fn}, columns)["loss"]
            return {"generic": Term(loss.sum() / share, "target.tokens")}  # every kept token weighs the same

        told: dict[str, Any] = {"anchors": replace, "labels": [c.tolist() for c in chosen], "soft": labels}
        done = language.train(model, {"target": rows}, terms, fit, hooks=hooks, name="whp", identity=told)
        if not found["changed"]:
            warnings.append("no label differs from the model's text: nothing to learn; reinforce longer, give anchors")
        result = Result(
            models={"model": done.model}, history=done.history, findings=findings | found, warnings=warnings,
            records=_records(model, blocks, chosen), cost=done.cost,
        )  # fmt: skip
    if keep_reinforced:
        result.models["reinforced"] = reinforced
    if cost is not None:
        result.cost.tokens += cost.tokens
        result.cost.flops += cost.flops
    result.cost.seconds = time.monotonic() - began
    after: Any = result.models["model"]
    for name, part in (("target", target), ("general", general)):
        if part:
            result.metrics[f"{name}_nll"] = _metric(model, after, part)
    return result


@dataclass(frozen=True)
class Generic:
    """Generic logits of blocks: see `whp`."""

    model: Model
    reinforced: Model
    alpha: float
    relu: bool
    normalise: Literal["log_softmax", "raw"]
    alias_penalty: float
    translated: bool

    @torch.no_grad()
    def __call__(self, blocks: Sequence[Block]) -> Tensor:
        """`(N, V)`, block after block; where a token has no counterpart (`to` is -1) the row means nothing."""
        rows = [b.row for b in blocks]
        base = there = self._logits(self.model, rows)
        reinforced = base if self.reinforced is self.model else self._logits(self.reinforced, rows)
        if self.translated:
            starts = [0]
            for b in blocks:
                starts.append(starts[-1] + len(b.other.completion))
            at = [s + max(0, k) for s, b in zip(starts[:-1], blocks, strict=True) for k in b.to]
            there = self._logits(self.model, [b.other for b in blocks])[torch.tensor(at, device=base.device)]
        goal = token_functions.generic_logits(there, base, reinforced, self.alpha, self.relu, self.normalise)
        first = 0
        for b in blocks:
            end = first + len(b.row.completion)
            for label, tokens in b.alias:
                goal[first + label : end, list(tokens)] -= self.alias_penalty
            first = end
        return goal

    def _logits(self, model: Model, rows: Sequence[encode.TokenizedExample]) -> Tensor:
        batch = collate(rows, model.kind, model.pad).to(model.device)
        was = model.module.training
        model.module.eval()
        logits = forward.logits_of(model, forward.label_states(model, batch))
        model.module.train(was)
        return logits


def _dictionary(
    texts: Sequence[str], others: Sequence[str], given: Sequence[Parallel] | None, most: int
) -> tuple[dict[str, str], list[str]]:
    """Anchors with their counterparts, and what to warn of."""
    if given:
        return {a.source: a.target for a in given}, []
    if not others:
        return {}, ["no anchors, and no general text to find counterparts in: labels come from reinforcement alone"]
    found = dictionary.extract(texts, others, most)
    return found, [] if found else ["no expression is the target's own: labels come from reinforcement alone"]


def _labels(generic: Generic, blocks: Sequence[Block], repeats: str, train_on: str) -> list[Tensor]:
    """The label of every token of every block, `(n,)` each; -100 where it has none."""
    width = int(generic.model.config.vocab_size)
    out: list[Tensor] = [torch.empty(0)] * len(blocks)
    for group in by_length([b.row.size for b in blocks], max(1, forward.CHUNK // width)):
        group.sort()
        best = generic([blocks[i] for i in group]).argmax(-1).cpu()
        for i, label in zip(group, best.split([len(blocks[i].row.completion) for i in group]), strict=True):
            b = blocks[i]
            none = torch.tensor(b.to) < 0
            if repeats == "first":
                none |= torch.tensor(b.repeated)
            if train_on == "changed":
                none |= label == torch.tensor(b.row.completion)
            out[i] = label.masked_fill(none, IGNORE)
    return out


def _shares(blocks: Sequence[Block], labels: Sequence[Tensor]) -> dict[str, Any]:
    """Tokens, labels among them, the share of labels that differ from the text, and of these the share of anchors."""
    label = torch.cat(list(labels))
    kept = label != IGNORE
    changed = kept & (label != torch.tensor([t for b in blocks for t in b.row.completion]))
    anchored = changed & (torch.tensor([a for b in blocks for a in b.anchor]) >= 0)
    n, m = int(kept.sum()), int(changed.sum())
    return {
        "tokens": len(label), "labels": n, "changed": m / max(n, 1), "changed_anchors": int(anchored.sum()) / max(m, 1)
    }  # fmt: skip


def _records(model: Model, blocks: Sequence[Block], labels: Sequence[Tensor]) -> list[Record]:
    """Blocks with their tokens and labels as text; None where there is none."""
    say = model.tokenizer.convert_ids_to_tokens
    out: list[Record] = []
    for b, label in zip(blocks, labels, strict=True):
        given = [None if t == IGNORE else say(t) for t in label.tolist()]
        out.append(Text(text=b.text, extra={"tokens": say(list(b.row.completion)), "labels": given}))
    return out


def _reading(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    """Ordinary language modelling."""
    return {"nll": language.cross_entropy(student, micro)}


def _metric(before: Model, after: Model, texts: Sequence[Text]) -> Metric:
    """Mean next-token loss on texts."""
    was, now = (protocols.text(m, texts)["nll"] for m in (before, after))
    return Metric(before=was.value, after=now.value, n=now.n, unit="nats", help="loss a token")


def _told(record: Demo) -> str:
    """A demonstration as text."""
    return record.prompt + encode.join(record.prompt, record.completion, "causal")

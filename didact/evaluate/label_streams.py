"""A language model as a predictor of labels in its context, held against exact references at every position.

A prompt is a stream of labels alone, or of inputs with labels; every label is one token, so one pass over a prompt
gives the model's distribution over labels at all positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didact.data import encode, words
from didact.data.encode import TokenizedExample
from didact.data.streams import collate
from didact.evaluate import curves, statistics
from didact.evaluate.references import bayes
from didact.models import forward
from didact.models.model import Model
from didact.types import Example, UserError

LEAD = "Label:"


@dataclass(frozen=True)
class Streams:
    """Prompts of one length: label numbers `(B, T)`, inputs (None in streams of labels alone), whose task each is."""

    labels: Tensor
    inputs: Sequence[Sequence[str]] | None
    tasks: Sequence[str]
    names: Sequence[str]


def streams(records: Sequence[Example]) -> Streams:
    """Records as prompts: `y` the labels, `x` an input each or nothing at all.

    Raises:
        UserError: labels that are no words, inputs that are no texts, or too few labels.
    """
    plain = not records[0].x
    length = min(len(r.y) for r in records)
    for number, record in enumerate(records, 1):
        where = f"tasks: record {number}"
        if bad := [y for y in record.y if not isinstance(y, str | int) or y == ""]:
            raise UserError(f"{where}: field 'y': {bad[0]!r} is no label: give a word or a whole number each")
        if (not record.x) != plain or (record.x and len(record.x) != len(record.y)):
            raise UserError(
                f"{where}: {len(record.x)} inputs and {len(record.y)} labels: one each, or no inputs at all"
            )
        if bad := [x for x in record.x if not isinstance(x, str)]:
            raise UserError(f"{where}: field 'x': {bad[0]!r} is no text")
    said = [[words.key(str(y)) for y in r.y] for r in records]
    names = sorted({y for row in said for y in row})
    if length < 2 or len(names) < 2:
        raise UserError("tasks: every record needs two labels, and there must be two different ones")
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([[index[y] for y in row[:length]] for row in said])
    inputs = None if plain else [r.x[:length] for r in records]
    return Streams(labels, inputs, [r.task or "task" for r in records], names)


def label_tokens(model: Model, names: Sequence[str]) -> tuple[str, list[int]]:
    """What stands before labels, a space where all are one token then, else nothing; and the token of every label.

    Raises:
        UserError: one is several tokens, or two are the same.
    """
    for space in (" ", ""):
        found = [encode.pieces(model.tokenizer, (LEAD, space + name))[1] for name in names]
        if all(len(ids) == 1 for ids in found):
            break
    for name, ids in zip(names, found, strict=True):
        if len(ids) != 1:
            raise UserError(f"label '{name}' is {len(ids)} tokens of this model: rename it to one token (A, B, 1, yes)")
    if len({ids[0] for ids in found}) < len(names):
        raise UserError("two labels are the same token of this model: rename one")
    return space, [ids[0] for ids in found]


@torch.no_grad()
def distributions(model: Model, given: Streams, rows: int = 8) -> Tensor:
    """The model's distribution over the labels before each is shown: `(B, T, C)`, one pass a prompt.

    Raises:
        UserError: labels of several tokens, a prompt beyond the context, or a model that is not causal.
    """
    if model.kind != "causal":
        raise UserError(f"a stream of labels is read by a causal model: this one is {model.kind}")
    (space, tokens), tokenizer = label_tokens(model, given.names), model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    texts: list[list[int]] = []
    spots: list[list[int]] = []
    for b, labels in enumerate(given.labels.tolist()):
        asked = [LEAD if given.inputs is None else f"Input: {given.inputs[b][t]}\n{LEAD}" for t in range(len(labels))]
        told = [(ask, space + given.names[label], "\n") for ask, label in zip(asked, labels, strict=True)]
        cut = encode.pieces(tokenizer, [*itertools.chain.from_iterable(told)])
        if any(ids != [tokens[label]] for ids, label in zip(cut[1::3], labels, strict=True)):
            raise UserError(
                "a label is one token with the line's end behind it for this model: rename it (A, B, 1, yes)"
            )
        texts.append([*start, *itertools.chain.from_iterable(cut)])
        spots.append([at - 1 for at in itertools.accumulate(map(len, cut), initial=len(start))][1::3])
    longest = max(map(len, texts))
    if longest > model.context:
        raise UserError(f"a prompt of {longest} tokens does not fit the context of {model.context}: give fewer labels")
    out = []
    for i in range(0, len(texts), rows):
        some, where = texts[i : i + rows], torch.tensor(spots[i : i + rows])
        batch = collate([TokenizedExample((t[0],), tuple(t[1:])) for t in some], model.kind, model.pad)
        line = torch.arange(len(some))[:, None].expand_as(where).flatten()
        at = line * batch.input_ids.shape[1] + where.flatten()
        batch = replace(batch, at=at, target=torch.zeros_like(at), row=line).to(model.device)
        found = forward.tokens(model, batch, {"labels": lambda logits, target: logits[:, tokens]})["labels"]
        out.append(found.view(*where.shape, -1).double().log_softmax(-1).exp().cpu())
    return torch.cat(out)


def divergence(reference: Tensor, model: Tensor) -> Tensor:
    """`KL(reference || model)` over the labels at every position, `(B, T)`, in nats."""
    safe = reference.clamp(min=1e-12)
    return (safe * (safe.log() - model.clamp(min=1e-12).log())).sum(-1)


def specialists(given: Streams, features: Mapping[str, np.ndarray], seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """What one specialist a task would say: logistic regression on the inputs of half of its prompts.

    Args:
        given: prompts of several named tasks.
        features: a vector of every input.
        seed: of the halves.

    Returns:
        `p_k (b, T, C)` by task, and the places of the prompts that no specialist was fitted to.
    """
    from sklearn.linear_model import LogisticRegression

    assert given.inputs is not None
    rng, held = np.random.default_rng(seed), []
    fitted: dict[str, Any] = {}
    for task in dict.fromkeys(given.tasks):
        own = rng.permutation([i for i, name in enumerate(given.tasks) if name == task])
        fit, rest = own[: len(own) // 2], own[len(own) // 2 :]
        if not len(fit):
            raise UserError(f"tasks: '{task}' has one prompt: two are needed, one of them for its specialist")
        x = np.stack([features[text] for i in fit for text in given.inputs[i]])
        y = given.labels[fit].flatten().numpy()
        if len(np.unique(y)) < 2:
            raise UserError(f"tasks: '{task}' shows one label only: its specialist has nothing to tell apart")
        fitted[task] = LogisticRegression(max_iter=500).fit(x, y)
        held += rest.tolist()
    where = torch.tensor(sorted(held))
    out = {}
    for task, model in fitted.items():
        p = np.full((len(where), given.labels.shape[1], len(given.names)), 1e-3)
        for row, i in enumerate(where.tolist()):
            p[row][:, model.classes_] += model.predict_proba(np.stack([features[t] for t in given.inputs[i]]))
        out[task] = torch.from_numpy(p / p.sum(-1, keepdims=True))
    return out, where


def mixed(parts: Sequence[Tensor], alpha: Sequence[float], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture of specialists `(B, T, C)` at every position and their weights `(B, T, K)`, by the labels before."""
    stacked = torch.stack(list(parts), -1)
    logp = stacked.gather(2, labels[..., None, None].expand(-1, -1, 1, len(parts)))[:, :, 0].log()
    beta = (torch.tensor(list(alpha), dtype=torch.float64).log() + bayes.before(logp)).softmax(-1)
    return (stacked * beta[:, :, None]).sum(-1), beta


def report(model: Tensor, references: Mapping[str, Tensor], labels: Tensor, untrained: Tensor) -> dict[str, Any]:
    """KL from each reference to the model by position and in mean, beside an untrained copy's; losses of all.

    Args:
        model: its distributions, `(B, T, C)`.
        references: the same of each.
        labels: what came, `(B, T)`.
        untrained: the distributions of an untrained copy.
    """

    def told(values: Tensor) -> dict[str, Any]:
        return dict(statistics.mean_interval(values.mean(1).numpy())._asdict())

    def loss(p: Tensor) -> Tensor:
        return -p.clamp(min=1e-12).gather(-1, labels[..., None])[..., 0].log()

    out: dict[str, Any] = {"loss": told(loss(model)), "distance": {}, "curves": {"loss": curves.curve(loss(model))}}
    for name, p in references.items():
        apart = divergence(p, model)
        out["distance"][name] = told(apart) | {
            "reference_loss": told(loss(p)), "untrained": told(divergence(p, untrained)),
        }  # fmt: skip
        out["curves"][name] = curves.curve(apart)
    out["closest"] = min(out["distance"], key=lambda name: float(out["distance"][name]["estimate"]))
    return out

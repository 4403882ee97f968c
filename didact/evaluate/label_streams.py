"""A language model as an in-context predictor of labels, compared with exact references at every position.

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
    """Prompts of equal length: label indices `(B, T)`, inputs (None in streams of labels alone), the task of each."""

    labels: Tensor
    inputs: Sequence[Sequence[str]] | None
    tasks: Sequence[str]
    names: Sequence[str]


def streams(records: Sequence[Example]) -> Streams:
    """Turn records into prompts: `y` the labels, `x` an input for each, or empty in all records.

    Raises:
        UserError: labels that are neither words nor integers, inputs that are not texts, or too few labels.
    """
    labels_only = not records[0].x
    length = min(len(r.y) for r in records)
    for number, record in enumerate(records, 1):
        place = f"tasks: record {number}"
        if invalid := [y for y in record.y if not isinstance(y, str | int) or y == ""]:
            raise UserError(f"{place}: field 'y': {invalid[0]!r} is not a label: give words or whole numbers")
        if (not record.x) != labels_only or (record.x and len(record.x) != len(record.y)):
            raise UserError(
                f"{place}: {len(record.x)} inputs and {len(record.y)} labels: give one input a label, or no inputs"
            )
        if invalid := [x for x in record.x if not isinstance(x, str)]:
            raise UserError(f"{place}: field 'x': {invalid[0]!r} is not a text")
    rows = [[words.key(str(y)) for y in r.y] for r in records]
    names = sorted({y for row in rows for y in row})
    if length < 2 or len(names) < 2:
        raise UserError("tasks: every record needs two labels, and there must be two different ones")
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([[index[y] for y in row[:length]] for row in rows])
    inputs = None if labels_only else [r.x[:length] for r in records]
    return Streams(labels, inputs, [r.task or "task" for r in records], names)


def label_tokens(model: Model, names: Sequence[str]) -> tuple[str, list[int]]:
    """Return the prefix of labels and the token of every label; the prefix is a space if all are then one token.

    Raises:
        UserError: a label is several tokens, or two labels are the same token.
    """
    for space in (" ", ""):
        tokenized = [encode.pieces(model.tokenizer, (LEAD, space + name))[1] for name in names]
        if all(len(ids) == 1 for ids in tokenized):
            break
    for name, ids in zip(names, tokenized, strict=True):
        if len(ids) != 1:
            raise UserError(f"label '{name}' is {len(ids)} tokens of this model: rename it to one token (A, B, 1, yes)")
    if len({ids[0] for ids in tokenized}) < len(names):
        raise UserError("two labels are the same token of this model: rename one")
    return space, [ids[0] for ids in tokenized]


@torch.no_grad()
def distributions(model: Model, prompts: Streams, rows: int = 8) -> Tensor:
    """The model's distribution over the labels before each label, `(B, T, C)`, from one pass a prompt.

    Raises:
        UserError: labels of several tokens, a prompt longer than the context, or a model that is not causal.
    """
    if model.kind != "causal":
        raise UserError(f"a stream of labels needs a causal model: this one is {model.kind}")
    (space, tokens), tokenizer = label_tokens(model, prompts.names), model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    texts: list[list[int]] = []
    label_positions: list[list[int]] = []
    for b, labels in enumerate(prompts.labels.tolist()):
        queries = [
            LEAD if prompts.inputs is None else f"Input: {prompts.inputs[b][t]}\n{LEAD}" for t in range(len(labels))
        ]
        segments = [(query, space + prompts.names[label], "\n") for query, label in zip(queries, labels, strict=True)]
        pieces = encode.pieces(tokenizer, [*itertools.chain.from_iterable(segments)])
        if any(ids != [tokens[label]] for ids, label in zip(pieces[1::3], labels, strict=True)):
            raise UserError(
                "this model merges a label and the line end into one token: rename the label (A, B, 1, yes)"
            )
        texts.append([*start, *itertools.chain.from_iterable(pieces)])
        label_positions.append([at - 1 for at in itertools.accumulate(map(len, pieces), initial=len(start))][1::3])
    longest = max(map(len, texts))
    if longest > model.context:
        raise UserError(f"a prompt of {longest} tokens does not fit the context of {model.context}: give fewer labels")
    out = []
    for i in range(0, len(texts), rows):
        chunk, positions = texts[i : i + rows], torch.tensor(label_positions[i : i + rows])
        batch = collate([TokenizedExample((t[0],), tuple(t[1:])) for t in chunk], model.kind, model.pad)
        row = torch.arange(len(chunk))[:, None].expand_as(positions).flatten()
        at = row * batch.input_ids.shape[1] + positions.flatten()
        batch = replace(batch, at=at, target=torch.zeros_like(at), row=row).to(model.device)
        logits = forward.tokens(model, batch, {"labels": lambda logits, target: logits[:, tokens]})["labels"]
        out.append(logits.view(*positions.shape, -1).double().log_softmax(-1).exp().cpu())
    return torch.cat(out)


def divergence(reference: Tensor, model: Tensor) -> Tensor:
    """`KL(reference || model)` over the labels at every position, `(B, T)`, in nats."""
    safe = reference.clamp(min=1e-12)
    return (safe * (safe.log() - model.clamp(min=1e-12).log())).sum(-1)


def specialists(
    prompts: Streams, features: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Predictions of one specialist a task: logistic regression on the inputs of half of its prompts.

    Args:
        prompts: prompts of several named tasks.
        features: a vector of every input.
        seed: seed of the split into halves.

    Returns:
        `p_k (b, T, C)` by task, and the indices of the prompts that no specialist was fitted to.
    """
    from sklearn.linear_model import LogisticRegression

    assert prompts.inputs is not None
    rng, held_out = np.random.default_rng(seed), []
    fitted: dict[str, Any] = {}
    for task in dict.fromkeys(prompts.tasks):
        own = rng.permutation([i for i, name in enumerate(prompts.tasks) if name == task])
        fit, unused = own[: len(own) // 2], own[len(own) // 2 :]
        if not len(fit):
            raise UserError(f"tasks: '{task}' has one prompt: two are needed, one to fit its specialist")
        x = np.stack([features[text] for i in fit for text in prompts.inputs[i]])
        y = prompts.labels[fit].flatten().numpy()
        if len(np.unique(y)) < 2:
            raise UserError(f"tasks: '{task}' has only one label in the prompts of its specialist: two are needed")
        fitted[task] = LogisticRegression(max_iter=500).fit(x, y)
        held_out += unused.tolist()
    places = torch.tensor(sorted(held_out))
    out = {}
    for task, model in fitted.items():
        p = np.full((len(places), prompts.labels.shape[1], len(prompts.names)), 1e-3)
        for row, i in enumerate(places.tolist()):
            p[row][:, model.classes_] += model.predict_proba(np.stack([features[t] for t in prompts.inputs[i]]))
        out[task] = torch.from_numpy(p / p.sum(-1, keepdims=True))
    return out, places


def mixed(parts: Sequence[Tensor], alpha: Sequence[float], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture of specialists `(B, T, C)` at every position and its weights `(B, T, K)` given earlier labels."""
    stacked = torch.stack(list(parts), -1)
    logp = stacked.gather(2, labels[..., None, None].expand(-1, -1, 1, len(parts)))[:, :, 0].log()
    beta = (torch.tensor(list(alpha), dtype=torch.float64).log() + bayes.before(logp)).softmax(-1)
    return (stacked * beta[:, :, None]).sum(-1), beta


def report(model: Tensor, references: Mapping[str, Tensor], labels: Tensor, untrained: Tensor) -> dict[str, Any]:
    """KL from each reference to the model, by position and on average, with that to an untrained copy; losses of all.

    Args:
        model: the model's distributions, `(B, T, C)`.
        references: each reference's distributions.
        labels: the true labels, `(B, T)`.
        untrained: the distributions of an untrained copy.
    """

    def interval(values: Tensor) -> dict[str, Any]:
        return dict(statistics.mean_interval(values.mean(1).numpy())._asdict())

    def loss(p: Tensor) -> Tensor:
        return -p.clamp(min=1e-12).gather(-1, labels[..., None])[..., 0].log()

    out: dict[str, Any] = {"loss": interval(loss(model)), "distance": {}, "curves": {"loss": curves.curve(loss(model))}}
    for name, p in references.items():
        kl = divergence(p, model)
        out["distance"][name] = interval(kl) | {
            "reference_loss": interval(loss(p)), "untrained": interval(divergence(p, untrained)),
        }  # fmt: skip
        out["curves"][name] = curves.curve(kl)
    out["closest"] = min(out["distance"], key=lambda name: float(out["distance"][name]["estimate"]))
    return out

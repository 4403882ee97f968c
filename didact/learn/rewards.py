"""Reward models: a scalar head on a causal model, Bradley-Terry on pairs, and their scores.

The head is transformers' own sequence classification with one label, read at the last token, so models trained here
open wherever such models do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from didact.data import chat, streams
from didact.data.encode import TokenizedExample
from didact.data.streams import ExampleGroup, MicroBatch
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.learn.language import TrainResult
from didact.models import adapters, opening
from didact.models.model import Model
from didact.objectives import preference
from didact.parallel import shards
from didact.types import Fit, UserError

Pair = tuple[str, str, str]
"""A prompt, the preferred completion and the other."""


def headed(model: Model, seed: int = 0) -> Model:
    """Copy the model's body under a new scalar head (near 0), as a model of kind `encoder`.

    Raises:
        UserError: transformers has no sequence classification for its type, or it is an encoder-decoder.
    """
    if model.kind == "encoder":
        return model
    kind = getattr(model.config, "model_type", type(model.module).__name__)
    config, tokenizer = copy.deepcopy(model.config), copy.deepcopy(model.tokenizer)
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            if model.kind != "causal":
                raise ValueError
            module: Any = opening.build_from_config("AutoModelForSequenceClassification", config)
        except ValueError:
            raise UserError(
                f"a reward model needs a causal model with a classification head, which {kind} does not have"
            ) from None
    body: Any = adapters.merged(model).module
    module.base_model.load_state_dict({n: shards.whole(w) for n, w in body.base_model.state_dict().items()})
    padded(module, tokenizer).to(model.device, next(body.parameters()).dtype)
    return Model(module.eval(), tokenizer, "encoder", model.base)


def padded(module: Any, tokenizer: Any) -> Any:
    """Set the module's padding token to its tokenizer's: the head reads the last token that is not padding."""
    if tokenizer.pad_token_id is None and tokenizer.eos_token is None:
        raise UserError("the tokenizer has no padding and no end token: a reward model needs one to find a text's end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    module.config.pad_token_id = tokenizer.pad_token_id
    return module


def row(model: Model, prompt: str, completion: str) -> TokenizedExample:
    """Prompt and completion as one text whose last token is read, cut on the left (but the start token) to fit.

    The text is written by the reward model's own chat template, not the policy's; without one, with a space between
    the two. The row ends with one dummy label, since models do not read the last token of a row.
    """
    tokenizer = model.tokenizer
    dialogue = chat.dialogue(tokenizer, prompt, completion)
    text = f"{prompt} {completion}" if dialogue is None else dialogue
    ids = list(tokenizer(text, add_special_tokens=dialogue is None)["input_ids"])
    room = min(model.context, tokenizer.model_max_length)
    if len(ids) > room:
        start = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
        ids = start + ids[len(ids) - room + len(start) :]
    return TokenizedExample(tuple(ids), (model.pad,))


def rewards(model: Model, tokens: streams.Tokens) -> Tensor:
    """The scalar of every physical row, `(B,)`."""
    logits: Tensor = model.module(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    return logits[:, 0]


@torch.no_grad()
def score(model: Model, prompts: Sequence[str], completions: Sequence[str], batch_tokens: int = 8192) -> list[float]:
    """Return the reward of every completion, given its prompt."""
    rows = [row(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    out = [0.0] * len(rows)
    for group in streams.by_length([r.size for r in rows], batch_tokens):
        batch = streams.collate([rows[i] for i in group], "encoder", model.pad).to(model.device)
        for i, value in zip(group, rewards(model, batch).tolist(), strict=True):
            out[i] = value
    return out


def train(
    model: Model,
    pairs: Mapping[str, Sequence[Sequence[Pair]]],
    fit: Fit,
    *,
    hooks: Sequence[Hook] = (),
    name: str = "reward",
) -> TrainResult:
    """Train a copy of a reward model by Bradley-Terry, `L = -mean log sigmoid(r_w - r_l)`, over all pairs of a step.

    Args:
        model: from `headed`.
        pairs: streams of groups of pairs that are read in one step; all groups of a stream have the same size.
        fit: how to train; `fit.rows` groups of every stream a step.
        hooks: called around every step.
        name: name of the phase.

    Returns:
        The trained reward model, plain weights also after LoRA; the history has `bt` and `accuracy`.
    """
    rows: dict[str, list[ExampleGroup]] = {
        stream: [tuple(row(model, p, c) for p, *sides in group for c in sides) for group in groups]
        for stream, groups in pairs.items()
    }

    def terms(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
        scores = rewards(student, micro.tokens).view(micro.items, -1, 2)
        margin = scores[..., 0] - scores[..., 1]
        share = 1 / margin.shape[1]  # a group's pairs share its weight
        return {
            "bt": Term(preference.pairwise(margin).sum() * share, "rows"),
            "accuracy": Term((margin > 0).to(margin).sum().detach() * share, "rows", 0.0),
        }

    trained = language.train(model, rows, terms, fit, hooks=hooks, name=name)
    trained.model = adapters.merged(trained.model)
    return trained

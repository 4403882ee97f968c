"""The small language model of the studies of in-context learning, and tasks for it.

It is trained on text of invented languages (`worlds.tasks`) with next-token loss, and in-context learning emerges; its
tasks are held out of that text. Its twin is trained on the answers' loss only, like models meta-trained for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tokenizers import processors

from didact.claims import lab
from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.learn import fit as loop
from didact.learn import language
from didact.models import build, forward
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import tasks

SHOTS = 17  # demonstrations per episode of the text
TEACH = Fit(lr=1e-2, schedule="cosine", betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=20, rows=16)


def untrained(seed: int, arch: build.Arch = "llama") -> Model:
    """Return random weights and a tokenizer trained on the text, which adds the start token."""
    texts = [t.text for t in tasks.Languages(seed=seed).corpus(seed, 500, SHOTS)]
    base = lab.blank(arch, texts, 700, d=64, layers=2, heads=4, context=160, tied=False, seed=seed)
    start_token = [(str(base.tokenizer.bos_token), int(base.tokenizer.bos_token_id))]
    core: Any = base.tokenizer
    core.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start_token)
    return base


def translator(seed: int, steps: int, twin: bool = False) -> Model:
    """Train the model, or its twin, for `steps` steps, or load it from the cache."""
    base, world = untrained(seed), tasks.Languages(seed=seed)
    texts = [t.text for t in world.corpus(seed, min(2_000, 16 * steps), SHOTS)]
    fit = TEACH.replace(steps=steps, seed=seed)
    rows = [TokenizedExample(tuple(ids[:1]), tuple(ids[1:])) for ids in base.tokenizer(texts)["input_ids"]]
    train = _train_on_answers if twin else lab.pretrained
    return lab.cached_model(lambda: train(base, rows, fit), *lab.identity(base), rows, fit, twin)


def _train_on_answers(base: Model, rows: Sequence[TokenizedExample], fit: Fit) -> Model:
    """Train a copy of `base` on the loss of the answers only: the tokens that begin with a space."""
    spaced = {i for token, i in base.tokenizer.get_vocab().items() if token.startswith("Ġ")}

    def answer_loss(student: Model, micro: MicroBatch) -> dict[str, loop.Term]:
        logp = forward.tokens(student, micro.tokens)["logp"]
        is_answer = logp.new_tensor([t in spaced for t in micro.tokens.target.tolist()])
        return {"nll": loop.Term(-(is_answer * logp).sum(), f"{micro.stream}.tokens")}

    return language.train(base, {"text": language.single(rows)}, answer_loss, fit, quiet=True).model


def problems(seed: int) -> list[Demo]:
    """Return all nouns under every held-out task; each record names its task."""
    world = tasks.Languages(seed=seed)
    sets = world.unseen(seed, len(world.tasks[2]))
    return [dataclasses.replace(d, task=f"task {i}") for i, items in enumerate(sets) for d in items]

"""The small language model that the studies of in-context learning examine, and tasks for it.

It reads text of hidden languages (`worlds.tasks`) by plain next-token loss, so that learning in context emerges; its
tasks stand in none of it. Its twin sees the loss of the answers alone, as models made for in-context learning do.
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

SHOTS = 17  # demonstrations of an episode of the text
TEACH = Fit(lr=1e-2, schedule="cosine", betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=20, rows=16)


def untrained(seed: int, arch: build.Arch = "llama") -> Model:
    """Random weights and the tokenizer of the text, whose rows begin with the start token."""
    texts = [t.text for t in tasks.Languages(seed=seed).corpus(seed, 500, SHOTS)]
    base = lab.blank(arch, texts, 700, d=64, layers=2, heads=4, context=160, tied=False, seed=seed)
    begin = [(str(base.tokenizer.bos_token), int(base.tokenizer.bos_token_id))]
    core: Any = base.tokenizer
    core.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return base


def translator(seed: int, steps: int, twin: bool = False) -> Model:
    """The model, or its twin, after so many steps."""
    base, world = untrained(seed), tasks.Languages(seed=seed)
    texts = [t.text for t in world.corpus(seed, min(2_000, 16 * steps), SHOTS)]
    fit = TEACH.replace(steps=steps, seed=seed)
    rows = [TokenizedExample(tuple(ids[:1]), tuple(ids[1:])) for ids in base.tokenizer(texts)["input_ids"]]
    make = _answers if twin else lab.pretrained
    return lab.kept(lambda: make(base, rows, fit), *lab.identity(base), rows, fit, twin)


def _answers(base: Model, rows: Sequence[TokenizedExample], fit: Fit) -> Model:
    """A copy of `base` that learnt from the loss of the answers alone, whose tokens begin with a space."""
    spaced = {i for token, i in base.tokenizer.get_vocab().items() if token.startswith("Ġ")}

    def reading(student: Model, micro: MicroBatch) -> dict[str, loop.Term]:
        found = forward.tokens(student, micro.tokens)["logp"]
        counts = found.new_tensor([t in spaced for t in micro.tokens.target.tolist()])
        return {"nll": loop.Term(-(counts * found).sum(), f"{micro.stream}.tokens")}

    return language.train(base, {"text": language.single(rows)}, reading, fit, quiet=True).model


def problems(seed: int) -> list[Demo]:
    """All nouns under every held-out task, which each record names."""
    world = tasks.Languages(seed=seed)
    sets = world.unseen(seed, len(world.tasks[2]))
    return [dataclasses.replace(d, task=f"task {i}") for i, items in enumerate(sets) for d in items]

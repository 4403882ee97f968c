"""The example of `didact run llambo`: a small model trained on histories of a family of tuning problems."""

from __future__ import annotations

import json

import numpy as np

from didact.claims import lab
from didact.claims.problem import Problem
from didact.data import encode, spaces
from didact.infer.ask import Asking
from didact.infer.tuning import Search
from didact.infer.tuning_prompts import Card, Words
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import bowls
from didact.worlds.bowls import Bowl, Bowls

SPACE = json.dumps({name: {"type": "int", "low": 0, "high": bowls.SIDE - 1} for name in "ab"})
SEARCH = Search(candidates=6, templates=1, gens=4, scores="raw")
ASKING = Asking(max_new_tokens=8, tries=1)
LENGTHS = (3, 11)  # trials of a training history
GOOD = 85  # least score of a configuration listed as good for a card
FIT = Fit(lr=3e-3, rows=32, schedule="cosine", warmup_steps=20, betas=(0.9, 0.98))


def card_of(card: int | None) -> Card:
    """A card named by one word; None gives an empty card."""
    return Card(task="" if card is None else f"c{card}", context="none" if card is None else "full", style="bare")


def text(bowl: Bowl, family: Bowls, rng: np.random.Generator) -> str:
    """A training text of a task: scores by configuration, the reverse, or good configurations; 70 % with the card."""
    words = Words(spaces.space_of(SPACE), card_of(bowl.card if rng.random() < 0.7 else None))
    kind = rng.integers(5)
    if kind == 0:
        good_configs = [c for c in family.configs(rng, 300) if bowl.value(c) >= GOOD][:4]
        return words.about() + "".join(f" {words.config(c)}\n" for c in good_configs)
    configs = family.configs(rng, int(rng.integers(*LENGTHS)))
    configs += [c for c in family.configs(rng, 60) if bowl.value(c) >= GOOD - 25][: 2 * (kind == 4)]
    lines = [(words.config(configs[i]), bowl.score(configs[i], rng)) for i in rng.permutation(len(configs))]
    if kind >= 3:
        return words.about() + "".join(f"{s} < {c}\n" for c, s in lines)
    return words.about() + "".join(f"{c} > {s}\n" for c, s in lines)


def reader(family: Bowls, steps: int, most: int = 10_000) -> Model:
    """A model of 0.1M weights trained for `steps` on at most `most` histories of a family."""
    seed, rng = family.seed, np.random.default_rng([family.seed, 43])
    texts = [text(family.task(rng), family, rng) for _ in range(min(most, steps * FIT.rows))]
    numbers = [" ".join(map(str, range(100)))] * 200
    base = lab.blank("llama", numbers + texts[:400], 560, d=64, layers=2, heads=4, context=192, seed=seed,
                     initializer_range=0.05)  # fmt: skip

    def train() -> Model:
        tokens = [encode.prompt_ids(base.tokenizer, t, base.kind) for t in texts]
        rows = [encode.TokenizedExample(tuple(ids[:1]), tuple(ids[1:])) for ids in tokens]
        return lab.pretrained(base, rows, FIT.replace(steps=steps, seed=seed))

    return lab.cached_model(train, "llambo", family, steps, most)


def objective(config: dict[str, int]) -> float:
    """The example's task, of the family of seed 0."""
    return _task().value(config)


def _task() -> Bowl:
    return Bowls(0).task(np.random.default_rng([0, 5]))


def problem(seed: int) -> Problem:
    """A task of a family whose cards the model knows, eight trials, against searches without prior knowledge (it found
    better configurations than both on four of six such tasks)."""
    options = {
        "space": SPACE, "objective": f"{__name__}:objective", "trials": 8, "against": ("random", "tpe"),
        "card.task": card_of(_task().card).task, "card.style": "bare", "search.scores": "raw",
        "search.candidates": SEARCH.candidates, "search.templates": 1, "search.gens": SEARCH.gens,
        "asking.max_new_tokens": ASKING.max_new_tokens, "asking.tries": 1,
    }  # fmt: skip
    return Problem(model=reader(Bowls(0), 600, 4000), options=options)

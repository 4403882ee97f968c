"""The claim of dual-process: forgetting embeddings sets how much a model takes from context, how much from weights.

Sentences of 200 words whose part of speech can be learnt by heart or told from the place. One start and the same
batches without forgetting, with forgetting that never ends, and with forgetting for the first part; the model without
is also tuned on with probabilistic forgetting. Settings were chosen on seeds from 1000 on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from didact import mechanisms
from didact.claims import runner
from didact.claims.lab import bound, difference, exact, gate, mean, model_of, shared
from didact.claims.mechanisms import dual_process_example as example
from didact.claims.mechanisms.dual_process_example import problem, problem_pretrain, problem_probe
from didact.learn import resets
from didact.learn.resets import ForgetConfig
from didact.models.model import Model
from didact.types import Demo, Fit, Result

__all__ = ["CLAIM", "problem", "problem_pretrain", "problem_probe"]
LAST = 3  # looks before the end that are averaged: a single one of a model that forgets scatters


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a tier: sentences, items of a set, steps in all, before which step forgetting ends, and steps tuned on."""

    sentences: int
    items: int
    steps: int
    until: int
    tuned: int


SIZES = {
    "smoke": Size(200, 10, 24, 12, 4),
    "quick": Size(5000, 150, 400, 300, 120),
    "full": Size(20_000, 300, 2000, 1000, 300),
}
EVERY = 10


def run(
    seed: int, tier: str, arms: tuple[str, ...] = ("temporary", "active", "tuned"), **forget: Any
) -> runner.Measured:
    """One seed: the arms, each from one start on the same batches; options are those of forgetting."""
    size = SIZES[tier]
    plain = _plain(seed, tier)
    out = {"plain": _told(plain, "none")}
    for mode in ("temporary", "active"):
        if mode in arms:
            out[mode] = _told(_taught(seed, size, mode, **forget), mode)
    out["identity"] = {"apart": _apart(seed, size)} if "tuned" in arms else {"apart": 0.0}
    if "tuned" in arms:
        start = model_of(plain)
        after = _taught(seed, size, "probabilistic", start, draw="matched", share=0.3)
        tables = [resets.tables(model.module)[0] for model in (start, model_of(after))]
        out["tuned"] = _told(after, "probabilistic", looks=1) | {"moved": float((tables[0] - tables[1]).abs().max())}
        again = _taught(seed, size, "none", start, steps=size.tuned)
        out["tuned plainly"] = _told(again, "none", looks=1)
    return out


@shared
def _data(seed: int, tier: str) -> tuple[list[Demo], list[Demo]]:
    size = SIZES[tier]
    return example.WORLD.sentences([seed, 0], size.sentences), example.WORLD.battery([seed, 1], size.items)


@shared
def _plain(seed: int, tier: str) -> Result:
    """Without forgetting: what all arms and sabotages of a seed stand beside."""
    return _taught(seed, SIZES[tier], "none")


def _taught(
    seed: int, size: Size, mode: resets.Mode, model: Model | None = None, steps: int | None = None, **forget: Any
) -> Result:
    """The method at this size; a model that is given is tuned on."""
    tier = next(name for name, known in SIZES.items() if known == size)
    demos, battery = _data(seed, tier)
    count = steps or (size.steps if model is None else size.tuned)
    fit = Fit(
        lr=1e-3 if model is None else 3e-4, steps=count, rows=64, schedule="constant", weight_decay=0.01, seed=seed
    )
    config = ForgetConfig(**{"mode": mode, "every": EVERY, "until": size.until, **forget})
    return mechanisms.dual_process(
        demos, battery, model, forget=config, beside=False, look_every=EVERY * 2 if model is None else count, fit=fit,
        **(example.SHAPE if model is None else {}),
    )  # fmt: skip


def _told(result: Result, mode: str, looks: int = LAST) -> dict[str, float]:
    """Accuracy of every set over the last looks, and of some against the context's words alone."""
    rows = result.findings["over_training"][mode][-looks:]
    found = {task: mean(row[task] for row in rows) for task in rows[0] if task != "step"}
    return found | {"unseen_among": result.findings["battery"][mode]["unseen"]["among"]["estimate"]}


def _apart(seed: int, size: Size) -> float:
    """How far weights are from those without forgetting where it ends before its first reset, after 12 steps."""
    both = [
        model_of(_taught(seed, size, mode, steps=EVERY + 2, until=EVERY)).module for mode in ("temporary", "none")
    ]  # fmt: skip
    pairs = zip(both[0].parameters(), both[1].parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


MORE, CONTEXT, BOTH = (
    "temporary forgetting: the context wins",
    "active forgetting: the context wins",
    "words again known",
)
TEMPORARY: dict[str, Any] = {"arms": ("temporary",)}
ACTIVE: dict[str, Any] = {"arms": ("active",)}

CLAIM = runner.Claim(
    method="dual-process",
    text=(
        "A model trained plainly answers by heart where the context says otherwise. Forgetting the embeddings "
        "throughout makes it answer from context; forgetting them for the first part only leaves it between, its words "
        "known again. A trained model that is tuned with some embeddings random at each step handles words that it "
        "never saw, its own embeddings unmoved."
    ),
    run=run,
    gates=(gate("plain training learns the task", "plain.seen", at_least=0.9, unit="accuracy"),),
    tests=(
        difference(CONTEXT, "active.conflict", "plain.conflict", "accuracy", margin=0.3),
        difference(MORE, "temporary.conflict", "plain.conflict", "accuracy", margin=0.05),
        difference("active forgetting: unseen words", "active.unseen", "plain.unseen", "accuracy", margin=0.1),
        difference(BOTH, "temporary.seen", "active.seen", "accuracy"),
        bound("temporary forgetting: sentences as in training", "temporary.seen", 0.9, "accuracy"),
        difference("probabilistic forgetting: unseen words", "tuned.unseen", "tuned plainly.unseen", "accuracy",
                   margin=0.05),
        exact("probabilistic forgetting moves no embedding", "tuned.moved"),
        exact("without a reset nothing differs", "identity.apart"),
        difference("temporary forgetting: unseen words", "temporary.unseen", "plain.unseen", "accuracy", reported=True),
        difference("temporary forgetting: rare words in conflict", "temporary.conflict_tail", "plain.conflict_tail",
                   "accuracy", reported=True),
    ),
    sabotages=(
        runner.Sabotage("resets are not applied", CONTEXT, None, {"didact.learn.resets:due": lambda *given: False},
                        ACTIVE),
        runner.Sabotage("only the head is reset", CONTEXT, None,
                        {"didact.learn.resets:tables": lambda module, right=resets.tables: right(module)[::-1]},
                        ACTIVE | {"untie": True}),
        runner.Sabotage("temporary forgetting never ends", BOTH, "temporary.seen", {},
                        {"arms": ("temporary", "active"), "until": 10**6}),
        runner.Sabotage("temporary forgetting never begins", MORE, None, {}, TEMPORARY | {"until": 0}),
    ),
)  # fmt: skip

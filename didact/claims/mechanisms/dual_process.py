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
from didact.claims.lab import difference, exact, gate, mean, model_of, shared
from didact.claims.mechanisms import dual_process_example as example
from didact.claims.mechanisms.dual_process_example import problem, problem_pretrain, problem_probe
from didact.learn import resets
from didact.learn.resets import ForgetConfig
from didact.models.model import Model
from didact.types import Demo, Fit, Result

__all__ = ["CLAIM", "problem", "problem_pretrain", "problem_probe"]
LAST, EVERY = 3, 10  # looks that are averaged, for one of a model that forgets scatters; steps between resets
LOOKS = 2 * EVERY


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a tier: sentences, items of a set, steps in all, before which step forgetting ends, and steps tuned on."""

    sentences: int
    items: int
    steps: int
    until: int
    tuned: int


SIZES = {
    "smoke": Size(200, 10, 80, 60, 4),
    "quick": Size(5000, 100, 400, 320, 80),
    "full": Size(20_000, 300, 2000, 1000, 300),
}


def run(seed: int, tier: str, arms: tuple[str, ...] = ("temporary", "tuned"), **forget: Any) -> runner.Measured:
    """One seed: the arms, each from one start on the same batches; options are those of forgetting.

    Until it ends, temporary forgetting is active forgetting: its last looks before are those of `active`.
    """
    size = SIZES[tier]
    plain = _plain(seed, tier)
    out = {"plain": _told(plain, "none")}
    if "temporary" in arms:
        made = _taught(seed, tier, "temporary", **forget)
        out["temporary"], out["active"] = _told(made, "temporary"), _told(made, "temporary", size.until)
    if "tuned" in arms:
        start = model_of(plain)
        after = _taught(seed, tier, "probabilistic", start, **{"draw": "matched", "share": 0.5, **forget})
        both = [resets.tables(model.module)[0].detach() for model in (start, model_of(after))]
        out["tuned"] = _told(after, "probabilistic") | {"moved": float((both[0] - both[1]).abs().max())}
        out["tuned plainly"] = _told(_tuned_plainly(seed, tier), "none")
        out["identity"] = {"apart": _apart(seed, tier)}
    return out


@shared
def _data(seed: int, tier: str) -> tuple[list[Demo], list[Demo]]:
    size = SIZES[tier]
    return example.WORLD.sentences([seed, 0], size.sentences), example.WORLD.battery([seed, 1], size.items)


@shared
def _plain(seed: int, tier: str) -> Result:
    """Without forgetting: what all arms and sabotages of a seed stand beside."""
    return _taught(seed, tier, "none")


@shared
def _tuned_plainly(seed: int, tier: str) -> Result:
    return _taught(seed, tier, "none", model_of(_plain(seed, tier)))


@shared
def _apart(seed: int, tier: str) -> float:
    """How far weights are from those without forgetting where it ends before its first reset, after 12 steps."""
    both = [
        model_of(_taught(seed, tier, mode, steps=EVERY + 2, until=EVERY)).module for mode in ("temporary", "none")
    ]  # fmt: skip
    pairs = zip(both[0].parameters(), both[1].parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def _taught(
    seed: int, tier: str, mode: resets.Mode, model: Model | None = None, steps: int | None = None, **forget: Any
) -> Result:
    """The method at this size; a model that is given is tuned on."""
    size = SIZES[tier]
    demos, battery = _data(seed, tier)
    count = steps or (size.steps if model is None else size.tuned)
    fit = Fit(
        lr=RATE if model is None else TUNING, steps=count, rows=64, schedule="constant", weight_decay=0.01, seed=seed
    )
    config = ForgetConfig(**{"mode": mode, "every": EVERY, "until": size.until, **forget})
    return mechanisms.dual_process(
        demos, battery, model, forget=config, beside=False, look_every=LOOKS if steps is None else count, fit=fit,
        **(example.SHAPE if model is None else {}),
    )  # fmt: skip


def _told(result: Result, mode: str, until: int | None = None) -> dict[str, float]:
    """Accuracy of every set over the last looks, up to a step."""
    looks = [row for row in result.findings["over_training"][mode] if row["step"] <= (until or row["step"])][-LAST:]
    return {task: mean(row[task] for row in looks) for task in looks[0] if task != "step"}


class Keeping(resets.Borrowed):
    """Sabotage: borrowed rows are never given back."""

    def give_back(self) -> None:
        """Forget what was there."""
        self.kept.clear()


RATE, TUNING = 3e-3, 2e-3

CONTEXT, BOTH = "active forgetting: the context wins", "temporary forgetting: the context still wins more often"
UNSEEN, MOVED = "probabilistic forgetting: unseen words", "probabilistic forgetting moves no embedding"

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
        difference(CONTEXT, "active.conflict", "plain.conflict", "accuracy", margin=0.2),
        difference("active forgetting: rare words in conflict", "active.conflict_tail", "plain.conflict_tail",
                   "accuracy", margin=0.05),
        difference(BOTH, "temporary.conflict", "plain.conflict", "accuracy", margin=0.05),
        difference("temporary forgetting: words are known again", "temporary.seen", "active.seen", "accuracy"),
        difference("temporary forgetting: unseen words", "temporary.unseen", "plain.unseen", "accuracy", margin=0.05),
        difference(UNSEEN, "tuned.unseen", "tuned plainly.unseen", "accuracy", margin=0.05),
        exact(MOVED, "tuned.moved"),
        exact("without a reset nothing differs", "identity.apart"),
        difference("active forgetting: unseen words", "active.unseen", "plain.unseen", "accuracy", reported=True),
    ),
    sabotages=(
        runner.Sabotage("resets are not applied", CONTEXT, None, {"didact.learn.resets:due": lambda *given: False},
                        {"arms": ("temporary",)}),
        runner.Sabotage("only the head is reset", CONTEXT, None,
                        {"didact.learn.resets:tables": lambda module, right=resets.tables: right(module)[::-1]},
                        {"arms": ("temporary",), "untie": True}),
        runner.Sabotage("no token is ever forgotten", UNSEEN, None, {}, {"arms": ("tuned",), "share": 0.0}),
        runner.Sabotage("borrowed rows are kept", MOVED, None,
                        {"didact.learn.resets:Borrowed": Keeping}, {"arms": ("tuned",)}),
    ),
)  # fmt: skip

"""The claim of dual-process: forgetting embeddings controls how much a model relies on context and how much on weights.

Sentences of 200 words whose part of speech can be memorized or inferred from the position. The arms have the same start
and batches: no forgetting, active forgetting (to the end), temporary forgetting (at first); the model without is also
fine-tuned with probabilistic forgetting. Settings were chosen on seeds from 1000 on.
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
LAST, EVERY = 3, 10  # last evaluations averaged, as single ones are noisy under forgetting; steps between resets
LOOKS = 2 * EVERY


@dataclasses.dataclass(frozen=True)
class Size:
    """A tier's sizes: sentences, items per set, steps, the step at which forgetting ends, fine-tuning steps."""

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
    """Train the arms on one seed, all from one start on the same batches; `forget` are options of forgetting.

    Temporary forgetting is active forgetting until it ends: its last evaluations before that are the arm `active`.
    """
    size = SIZES[tier]
    plain = _train_plain(seed, tier)
    out = {"plain": _accuracies(plain, "none")}
    if "temporary" in arms:
        result = _train(seed, tier, "temporary", **forget)
        out["temporary"], out["active"] = _accuracies(result, "temporary"), _accuracies(result, "temporary", size.until)
    if "tuned" in arms:
        start = model_of(plain)
        tuned = _train(seed, tier, "probabilistic", start, **{"draw": "matched", "share": 0.5, **forget})
        tables = [resets.tables(model.module)[0].detach() for model in (start, model_of(tuned))]
        out["tuned"] = _accuracies(tuned, "probabilistic") | {"moved": float((tables[0] - tables[1]).abs().max())}
        out["tuned plainly"] = _accuracies(_tune_plain(seed, tier), "none")
        out["identity"] = {"apart": _weight_difference(seed, tier)}
    return out


@shared
def _data(seed: int, tier: str) -> tuple[list[Demo], list[Demo]]:
    size = SIZES[tier]
    return example.WORLD.sentences([seed, 0], size.sentences), example.WORLD.battery([seed, 1], size.items)


@shared
def _train_plain(seed: int, tier: str) -> Result:
    """Train without forgetting: the baseline of all arms and sabotages of a seed."""
    return _train(seed, tier, "none")


@shared
def _tune_plain(seed: int, tier: str) -> Result:
    return _train(seed, tier, "none", model_of(_train_plain(seed, tier)))


@shared
def _weight_difference(seed: int, tier: str) -> float:
    """Return how far weights are from those without forgetting after 12 steps, if forgetting ends before a reset."""
    modules = [
        model_of(_train(seed, tier, mode, steps=EVERY + 2, until=EVERY)).module for mode in ("temporary", "none")
    ]  # fmt: skip
    pairs = zip(modules[0].parameters(), modules[1].parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def _train(
    seed: int, tier: str, mode: resets.Mode, model: Model | None = None, steps: int | None = None, **forget: Any
) -> Result:
    """Run the method at this size: train from scratch, or fine-tune `model` if given."""
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


def _accuracies(result: Result, mode: str, until: int | None = None) -> dict[str, float]:
    """Return the accuracy on every set, averaged over the last evaluations up to step `until`."""
    rows = [row for row in result.findings["over_training"][mode] if row["step"] <= (until or row["step"])][-LAST:]
    return {task: mean(row[task] for row in rows) for task in rows[0] if task != "step"}


class Keeping(resets.Borrowed):
    """Sabotage: borrowed rows are never restored."""

    def give_back(self) -> None:
        """Drop the original rows."""
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
        runner.Sabotage("resets are not applied", CONTEXT, None, {"didact.learn.resets:due": lambda *args: False},
                        {"arms": ("temporary",)}),
        runner.Sabotage("only the head is reset", CONTEXT, None,
                        {"didact.learn.resets:tables": lambda module, right=resets.tables: right(module)[::-1]},
                        {"arms": ("temporary",), "untie": True}),
        runner.Sabotage("no token is ever forgotten", UNSEEN, None, {}, {"arms": ("tuned",), "share": 0.0}),
        runner.Sabotage("borrowed rows are kept", MOVED, None,
                        {"didact.learn.resets:Borrowed": Keeping}, {"arms": ("tuned",)}),
    ),
)  # fmt: skip

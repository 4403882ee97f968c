"""Vote-k's claim on a pre-trained model: messages to a bank (banking77), of which 18 are labelled.

Each seed samples eight intents, a pool of their messages, and test messages. Full vote-k, which runs the model on the
whole pool once more, is left out: it would take longer than all the rest.
"""

from __future__ import annotations

from typing import Any

from didact import prompting
from didact.claims import lab, real, runner
from didact.claims.lab import difference, gate
from didact.claims.prompting import messages
from didact.types import Demo, Text

INTENTS, ASKED, POOL = 8, 3, 20  # intents per seed; test messages, and messages in the pool, of each
BUDGET, SHOTS = 18, 4
ARMS = ("random", "fast_votek", "mfl")


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Accuracy with the texts that each selector had labelled as demonstrations, and with none."""
    test, pool = messages.drawn(seed, INTENTS, ASKED, POOL)
    arms = {arm: _accuracy(arm, pool, test, seed) for arm in ARMS}
    return {arm: {"accuracy": value} for arm, value in (arms | {"none": _accuracy("random", [], test, seed)}).items()}


def _accuracy(how: Any, labelled: list[Demo], asked: list[Demo], seed: int) -> float:
    """The method as users run it on a pool whose texts have labels."""
    texts = [Text(text=d.prompt, extra={"completion": d.completion, "choices": d.choices}) for d in labelled]
    result = prompting.vote_k(
        real.model(), texts or [Text(text=asked[0].prompt)], test=asked, select=how, budget=BUDGET, shots=SHOTS,
        seed=seed,
    )  # fmt: skip
    assert result.predict is not None
    answers = result.predict([d.prompt for d in asked])
    return lab.mean(a == d.completion for a, d in zip(answers, asked, strict=True))


ACCURACY = "accuracy"
CHANCE = 1 / INTENTS
CLAIM = runner.Claim(
    method="vote-k",
    text=(
        "A pre-trained model that is shown the nearest of 18 labelled messages answers better where discounted votes "
        "chose which to label than where chance did."
    ),
    run=run,
    gates=(gate("it tells topics behind random labels", "random.accuracy", at_least=2 * CHANCE, unit=ACCURACY),),
    tests=(
        difference("fast vote-k beats random annotation", "fast_votek.accuracy", "random.accuracy", ACCURACY,
                   margin=0.02),
        difference("facility location beats random annotation", "mfl.accuracy", "random.accuracy", ACCURACY,
                   reported=True),
        difference("random annotation beats none", "random.accuracy", "none.accuracy", ACCURACY, reported=True),
    ),
    seeds={**runner.FEWEST, "real": 6},
)  # fmt: skip

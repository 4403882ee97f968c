"""icll's heads in a pre-trained model: what a lookup adds to one that looks up already.

A head of size 1 and one of size 2 behind block 12 of 18, begun at zero; they alone are trained, on passages of
WikiText-2, and read others. `control` has the same weights and looks nothing up, so that what is left between the two
is the lookup's. Block and rate are the same for both, tuned on nothing; not measured on test seeds yet.
"""

from __future__ import annotations

import numpy as np

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import difference
from didact.types import Fit, Text

BLOCK, DOCUMENTS, LONG, HELD, WINDOW = 12, 30, 500, 0.3, 128
FIT = Fit(lr=1e-3, rows=2, steps=8, warmup_steps=2, schedule="linear")


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Held-out loss of the model as it is, with heads and with the control, on one draw of passages."""
    text = [Text(text=document) for document in passages(seed)]
    result = mechanisms.icll(
        text, real.model(), sizes=(1, 2), block=BLOCK, against=("control", "plain"), window=WINDOW, held_out=HELD,
        fit=FIT.replace(seed=seed),
    )  # fmt: skip
    found = result.findings["text"]
    arms = {name: {"nll": arm["estimate"]} for name, arm in found["arms"].items()}
    return arms | {"looked up": {str(n): share for n, share in result.findings["looked_up"].items()}}


def passages(seed: int) -> list[str]:
    """Beginnings of long paragraphs."""
    long = [row["text"] for row in real.rows("wikitext2/valid.txt") if len(row["text"]) > LONG]
    draw = np.random.default_rng(seed)
    return [long[i][:LONG] for i in draw.permutation(len(long))[:DOCUMENTS]]


CLAIM = runner.Claim(
    method="icll",
    text=(
        "N-gram heads put into a pre-trained model and trained alone for a few steps lower its loss on passages it was "
        "not taught, and by more than as many weights that look nothing up."
    ),
    run=run,
    tests=(
        difference("heads lower the loss", "heads.nll", "plain.nll", "nats a token", less=True),
        difference("by more than weights without lookup", "heads.nll", "control.nll", "nats a token", less=True),
    ),
)

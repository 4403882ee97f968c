"""icll's heads in a pre-trained model: what a lookup adds to one that looks up already.

A head of size 1 and one of size 2 behind block 12 of 18, begun at zero, where they must change nothing, to the bit;
they alone are trained, on passages of WikiText-2, and read others. `control` has the same weights and looks nothing
up, so that what is left between the two is the lookup's. An untrained copy gets both for fewer steps. The rate is one
of two on seed 1000, for all arms.
"""

from __future__ import annotations

import numpy as np
import torch

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import difference, exact, gate
from didact.data import encode
from didact.learn import ngram_arms
from didact.models import untrained
from didact.models.model import Model
from didact.types import Fit, Result, Text

FRESH = 100  # before the first test seed
BLOCK, SIZES, DOCUMENTS, LONG, WINDOW, HELD = 12, (1, 2), 18, 900, 256, 0.34
FIT = Fit(lr=1e-2, rows=1, steps=12, warmup_steps=2, schedule="linear")
FEW = 6  # of the passages, for the untrained copy


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Held-out loss of the model as it is, with heads and with the control, on one draw of passages."""
    seed += FRESH
    text, model = [Text(text=document) for document in passages(seed)], real.model()
    result = _taught(model, text, seed)
    blank = _taught(untrained.untrained(model, seed), text[:FEW], seed, FEW)
    arms, bare = ({n: a["estimate"] for n, a in r.findings["text"]["arms"].items()} for r in (result, blank))
    return {
        **{name: {"nll": value} for name, value in arms.items()},
        "lookup": {"gain": arms["control"] - arms["heads"], "untrained": bare["control"] - bare["heads"]},
        "start": {"difference": begun(model, text[0].text)},
        "weights": {"moved": abs(arms["control"] - arms["plain"])},
        "looked up": {f"n{n}": share for n, share in result.findings["looked_up"].items()},
    }


def _taught(model: Model, text: list[Text], seed: int, steps: int = FIT.steps or 0) -> Result:
    return mechanisms.icll(
        text, model, sizes=SIZES, block=BLOCK, against=("control", "plain"), window=WINDOW, held_out=HELD,
        fit=FIT.replace(seed=seed, steps=steps),
    )  # fmt: skip


def begun(model: Model, text: str) -> float:
    """The largest difference that heads begun at zero make to any logit of a passage."""
    ids = torch.tensor([encode.windows(model.tokenizer, [text], WINDOW)[0].completion])
    with torch.no_grad():
        before, after = (
            m.module(input_ids=ids, use_cache=False).logits
            for m in (model, ngram_arms.arm("heads", model, SIZES, BLOCK, True, 0))
        )
    return float((after - before).abs().max())


def passages(seed: int) -> list[str]:
    """Beginnings of long paragraphs."""
    long = [row["text"] for row in real.rows("wikitext2/valid.txt") if len(row["text"]) > LONG]
    draw = np.random.default_rng(seed)
    return [long[i][:LONG] for i in draw.permutation(len(long))[:DOCUMENTS]]


UNIT = "nats a token"
CLAIM = runner.Claim(
    method="icll",
    text=(
        "N-gram heads put into a pre-trained model and trained alone for a few steps lower its loss on passages it was "
        "not taught, and by more than as many weights that look nothing up."
    ),
    run=run,
    gates=(
        gate("the model reads English", "plain.nll", at_most=4.5, unit=UNIT),
        gate("there is something to look up", "looked up.n1", at_least=0.1, unit="of the tokens"),
        gate("as many weights without lookup learn too", "weights.moved", at_least=0.002, unit=UNIT),
    ),
    tests=(
        exact("begun at zero they change nothing", "start.difference", 0.0, 0.0, "logits"),
        difference("heads lower the loss", "heads.nll", "plain.nll", UNIT, less=True),
        difference("by more than weights without lookup", "heads.nll", "control.nll", UNIT, less=True, margin=0.005),
        difference("lookup gains more than in an untrained copy", "lookup.gain", "lookup.untrained", UNIT,
                   reported=True),
    ),
    seeds={**runner.FEWEST, "real": 4},
)  # fmt: skip

"""icll's heads in a pre-trained model: what the lookup adds to a model that can already copy from its context.

A head of size 1 and one of size 2 after block 12 of 18, initialized to zero, where they must not change one bit of the
output; only they are trained, on passages of WikiText-2, and evaluated on others. `control` has the same weights
without lookup, so the difference between the two is due to the lookup. An untrained copy gets both for fewer steps. The
learning rate, the same for all arms, is the better of two on seed 1000.
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

FRESH = 100  # added to every seed, so that the test seeds are new
BLOCK, SIZES, DOCUMENTS, LONG, WINDOW, HELD = 12, (1, 2), 18, 900, 256, 0.34
FIT = Fit(lr=1e-2, rows=1, steps=12, warmup_steps=2, schedule="linear")
FEW = 6  # passages for the untrained copy, and its steps


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Return the held-out loss of the plain model, with heads and with the control, on one draw of passages."""
    seed += FRESH
    text, model = [Text(text=document) for document in passages(seed)], real.model()
    result = _train_heads(model, text, seed)
    copy_result = _train_heads(untrained.untrained(model, seed), text[:FEW], seed, FEW)
    arms, copy = ({n: a["estimate"] for n, a in r.findings["text"]["arms"].items()} for r in (result, copy_result))
    return {
        **{name: {"nll": value} for name, value in arms.items()},
        "lookup": {"gain": arms["control"] - arms["heads"], "untrained": copy["control"] - copy["heads"]},
        "start": {"difference": initial_change(model, text[0].text)},
        "weights": {"moved": abs(arms["control"] - arms["plain"])},
        "looked up": {f"n{n}": share for n, share in result.findings["looked_up"].items()},
    }


def _train_heads(model: Model, text: list[Text], seed: int, steps: int = FIT.steps or 0) -> Result:
    return mechanisms.icll(
        text, model, sizes=SIZES, block=BLOCK, against=("control", "plain"), window=WINDOW, held_out=HELD,
        fit=FIT.replace(seed=seed, steps=steps),
    )  # fmt: skip


def initial_change(model: Model, text: str) -> float:
    """Return the largest change of any logit of a passage by heads initialized to zero."""
    ids = torch.tensor([encode.windows(model.tokenizer, [text], WINDOW)[0].completion])
    with torch.no_grad():
        before, after = (
            m.module(input_ids=ids, use_cache=False).logits
            for m in (model, ngram_arms.arm("heads", model, SIZES, BLOCK, True, 0))
        )
    return float((after - before).abs().max())


def passages(seed: int) -> list[str]:
    """Draw beginnings of long paragraphs."""
    paragraphs = [row["text"] for row in real.rows("wikitext2/valid.txt") if len(row["text"]) > LONG]
    rng = np.random.default_rng(seed)
    return [paragraphs[i][:LONG] for i in rng.permutation(len(paragraphs))[:DOCUMENTS]]


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

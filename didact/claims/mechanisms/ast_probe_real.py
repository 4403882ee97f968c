"""ast-probe's claim on a pre-trained model: trees of functions of Python's standard library.

A model that reads from the left knows nothing of what follows a token, which its height depends on; its own embeddings
and its blocks untrained are what that is measured against.
"""

from __future__ import annotations

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import difference
from didact.evaluate.probes import Training

LAYERS = (0, 3, 6, 9, 12, 18)


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """F1 at six layers, on functions drawn for this seed."""
    result = mechanisms.ast_probe(
        real.model(), snippets=300, longest=64, layers=LAYERS, rank=64, test=0.25, seed=seed,
        probe=Training(lr=1e-2, epochs=10),
    )  # fmt: skip
    found, at = result.findings["layers"], result.findings["best"]["layer"]
    f1 = {arm: {layer: s["f1"]["estimate"] for layer, s in by.items()} for arm, by in found.items()}
    blank, first = max(f1["untrained blocks"].values()), f1["trained"][0]
    return {
        "trained": {"f1": f1["trained"][at], "layer": at, "gain": f1["trained"][at] - first},
        "layer 0": {"f1": first},
        "untrained": {"f1": blank},
        "baseline": {"f1": max(first, blank)},
        "control": {"f1": f1["control task"][at], "gain": f1["control task"][at] - f1["control task"][0]},
        **{f"layer {layer}": {"f1": value} for layer, value in f1["trained"].items() if layer},
    }


CLAIM = runner.Claim(
    method="ast-probe",
    text=(
        "The syntax trees of Python functions are recoverable from the states of a pre-trained language model better "
        "than from its embeddings and from untrained blocks over them."
    ),
    run=run,
    tests=(
        difference("trained states hold trees that embeddings and untrained blocks do not", "trained.f1", "baseline.f1",
                   "F1", margin=0.02),
        difference("above a control task that is a function of the word", "trained.f1", "control.f1", "F1"),
        difference("what training adds is syntax", "trained.gain", "control.gain", "F1 over layer 0", reported=True),
        difference("a middle layer is above the last", "layer 9.f1", "layer 18.f1", "F1", reported=True),
    ),
)  # fmt: skip

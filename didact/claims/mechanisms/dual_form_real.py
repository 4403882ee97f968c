"""dual-form's measures on a pre-trained model and an untrained copy; the task: translate words to one of two languages.

Draws, words and fresh seeds are those of `icl_vs_gd_real`; an earlier form of both was undecided on seeds 0 to 2.
"""

from __future__ import annotations

from typing import Any

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import difference, equivalence, exact, gate
from didact.claims.mechanisms import icl_vs_gd_real

OPTIONS: dict[str, Any] = {"shots": 8, "lrs": (3e-4, 1e-3, 3e-3), "draws": 5, "held": 0.34, "queries": 4}
BY_LAYER = ("fine-tuned", "wrong labels", "other text", "untrained model")


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """Measure one draw of words."""
    train, test = icl_vs_gd_real.words(seed)
    findings = mechanisms.dual_form(real.model(), train, test, seed=seed, **OPTIONS).findings
    rows = findings["measures"]
    layers = {name: findings["SimAOU by layer"][name] for name in BY_LAYER}
    return {
        "model": {name: rows[name]["estimate"] for name in ("zero", "icl", "tuned", "mixture error")}
        | {"gain": rows["tuned"]["estimate"] - rows["zero"]["estimate"]},
        "SimAOU": {name: value["estimate"] for name, value in findings["SimAOU"].items()},
        "SimAM": {"tuned": rows["SimAM"]["estimate"], "zero": rows["SimAM without tuning"]["estimate"],
                  "untrained": rows["SimAM, untrained model"]["estimate"]},
        "Kendall": {"tuned": rows["Kendall"]["estimate"], "random": rows["Kendall, random"]["estimate"],
                    "untrained": rows["Kendall, untrained model"]["estimate"]},
        **{f"layer {n}": {k: row[n - 1] for k, row in layers.items()} for n in range(1, len(layers[BY_LAYER[0]]) + 1)},
    }  # fmt: skip


CLAIM = runner.Claim(
    method="dual-form",
    text=(
        "In a pre-trained model, demonstrations change attention as fine-tuning on them does: more than random, than "
        "fine-tuning on wrong labels or other text, and than both do in an untrained copy."
    ),
    run=run,
    gates=(
        gate("demonstrations teach it", "model.icl", at_least=0.7, unit="accuracy"),
        gate("fine-tuning teaches it too", "model.gain", at_least=0.05, unit="accuracy"),
    ),
    tests=(
        exact("attention is a mixture of demonstrations and the rest", "model.mixture error", 0.0, 1e-3),
        equivalence("random changes are not alike", "SimAOU.random normal", None, 0.05, "cosine"),
        difference("alike, more than random", "SimAOU.fine-tuned", "SimAOU.random normal", "cosine", margin=0.02),
        difference("more than with wrong labels", "SimAOU.fine-tuned", "SimAOU.wrong labels", "cosine", margin=0.02),
        difference("more than with other text", "SimAOU.fine-tuned", "SimAOU.other text", "cosine", margin=0.02),
        difference("more than in an untrained copy", "SimAOU.fine-tuned", "SimAOU.untrained model", "cosine",
                   margin=0.02),
        difference("attention to the query too", "SimAM.tuned", "SimAM.zero", "cosine", reported=True),
        difference("and the order of tokens", "Kendall.tuned", "Kendall.random", "tau", reported=True),
        difference("more so than in an untrained copy", "Kendall.tuned", "Kendall.untrained", "tau", reported=True),
    ),
)  # fmt: skip

"""icl-vs-gd's claim on a pre-trained model: which language a word is of, told from demonstrations and by fine-tuning.

Each seed draws its own words of the thousand most frequent in bilingual dictionaries (XLING).
"""

from __future__ import annotations

import random
from typing import Any

from didact import mechanisms
from didact.claims import real, runner
from didact.claims.lab import difference, exact, gate
from didact.evaluate import equivalence
from didact.types import Demo

LANGUAGES = ["English", "German", "Italian"]
FREQUENT, EACH = 1000, 24  # words drawn from, and drawn of each language
WAYS = ("kv/full", "kv", "v@middle")
OPTIONS: dict[str, Any] = {
    "shots": (12,), "ways": WAYS, "lrs": (1e-4, 3e-4, 3e-3), "epochs": 1, "draws": 5, "held": 0.2, "queries": 9,
    "orders": 2,
}  # fmt: skip


def words(seed: int) -> tuple[list[Demo], list[Demo]]:
    """Words to show and words to ask, as many of each language, none of them in two."""
    pools: dict[str, list[str]] = {name: [] for name in LANGUAGES}
    for code, name in (("de", "German"), ("it", "Italian")):
        for row in real.rows(f"xling_bli/yacle.train.freq.5k.en-{code}.tsv"):
            pools["English"].append(row["source"])
            pools[name].append(row["target"])
    first = {name: list(dict.fromkeys(pool))[:FREQUENT] for name, pool in pools.items()}
    draw, out = random.Random(seed), []
    for name, pool in first.items():
        mine = sorted(set(pool) - {w for other, them in first.items() if other != name for w in them})
        out += [
            Demo(prompt=f"Word: {w}\nLanguage:", completion=name, choices=LANGUAGES) for w in draw.sample(mine, EACH)
        ]
    draw.shuffle(out)
    return out[: len(out) // 2], out[len(out) // 2 :]


def run(seed: int, tier: runner.Tier) -> runner.Measured:
    """One draw of words."""
    shown, asked = words(seed)
    result = mechanisms.icl_vs_gd(real.model(), shown, asked, seed=seed, separator="\n\n", **OPTIONS)
    told = result.findings["shots"]["12"]
    controls, order = told["controls"], told["order"]
    arms = {
        "model": {"icl": controls["itself"]["accuracy"]["estimate"], "zero": controls["none"]["accuracy"]["estimate"],
                  "order": order["icl"]["probability"]["estimate"]},
        "other order": {m: controls["other order"][m]["estimate"] for m in equivalence.SIMILARITIES},
        "nothing": {m: controls["none"][m]["estimate"] for m in equivalence.SIMILARITIES},
    }  # fmt: skip
    for way, of in told["ways"].items():
        arms[way] = {m: of["to_icl"][m]["estimate"] for m in ("overlap", "cosine", "accuracy")}
        arms[way] |= {"order": order[way]["probability"]["estimate"], "relative": of["cosine"]["relative"]["estimate"]}
    arms["best"] = {m: max(arms[w][m] for w in WAYS) for m in ("overlap", "cosine", "accuracy")}
    return arms


CLAIM = runner.Claim(
    method="icl-vs-gd",
    text=(
        "In a pre-trained model, demonstrations in the prompt do not act as fine-tuning on them does: it stays nearer "
        "to itself behind reordered demonstrations than any fine-tuning comes, and their order matters otherwise."
    ),
    run=run,
    gates=(gate("demonstrations teach it", "model.icl", at_least=0.6, unit="accuracy"),),
    tests=(
        difference("demonstrations help", "model.icl", "model.zero", "accuracy", margin=0.02),
        difference("fine-tuning helps", "best.accuracy", "model.zero", "accuracy", margin=0.02),
        difference("nearer to itself than any fine-tuning comes (cosine)", "other order.cosine", "best.cosine",
                   "cosine", margin=0.05),
        difference("nearer to itself than any fine-tuning comes (overlap)", "other order.overlap", "best.overlap",
                   "overlap", margin=0.05),
        exact("one step on all demonstrations has no order", "kv/full.order", 0.0, 1e-5, "probability"),
        difference("order matters more to ICL than to steps one by one", "model.order", "kv.order", "probability",
                   reported=True),
    ),
)  # fmt: skip

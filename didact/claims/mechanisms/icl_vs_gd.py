"""The claim of icl-vs-gd: in a language model, demonstrations do not act as fine-tuning on them does; where the two are
equal, as in linear attention trained on regressions, the same comparison finds them equal.

The model is pre-trained with next-token loss (`translators`). Learning rates and epochs are those most similar to ICL
on other draws: the best case for the hypothesis that they are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from didact import mechanisms, prompting
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, exact, gate
from didact.claims.mechanisms import icl_vs_gd_linear, translators
from didact.claims.problem import Problem
from didact.data.encode import TokenizedExample
from didact.evaluate import equivalence, three_way
from didact.evaluate.three_way import LanguageReader
from didact.models import forward
from didact.models.model import Model

SIZES = {
    "smoke": (10, 3, 20),
    "quick": (200, 15, 500),
    "full": (400, 40, 1000),
}  # training steps of the model, draws, training steps of linear attention
WAYS = ("all/full", "all", "kv", "v@middle")
OPTIONS: dict[str, Any] = {"ways": WAYS, "lrs": (0.01, 0.03, 0.1, 0.3), "epochs": 2, "queries": 6, "orders": 4}


def problem(seed: int) -> Problem:
    """The small model and one held-out task: twelve nouns for demonstrations, six for queries."""
    items = [r for r in translators.problems(seed) if r.task == "task 0"]
    options = {**OPTIONS, "shots": (6,), "draws": 8, "ways": ("all/full", "all", "kv")}
    return Problem(
        model=translators.translator(seed, SIZES["quick"][0]), data={"train": items[:12], "test": items[12:]},
        options=options,
    )  # fmt: skip


def run(seed: int, tier: str, parts: Sequence[str] = ("model", "attention")) -> runner.Measured:
    """Run the method on a language model and the same comparison on linear attention, on one seed."""
    steps, draws, attention_steps = SIZES[tier]
    arms: dict[str, dict[str, float]] = {}
    if "model" in parts:
        names = ("model", "twin") if tier == "full" else ("model",)
        for name in names:
            arms |= _language_arms(seed, translators.translator(seed, steps, name == "twin"), draws, name)
    if "attention" in parts:
        arms |= icl_vs_gd_linear.arms(seed, attention_steps, draws)
    return arms


def _language_arms(seed: int, model: Model, draws: int, name: str) -> dict[str, dict[str, float]]:
    items = translators.problems(seed)
    result = mechanisms.icl_vs_gd(model, items, items, draws=draws, seed=seed, **OPTIONS)
    report = result.findings["shots"]["8"]
    controls, order = report["controls"], report["order"]
    arms = {
        name: {
            "icl": controls["itself"]["accuracy"]["estimate"], "zero": controls["none"]["accuracy"]["estimate"],
            "order": order["icl"]["probability"]["estimate"], "order_logit": order["icl"]["logit"]["estimate"],
            "error": _probability_error(model, seed),
        },
        # Few-shot accuracy, by code that no sabotage patches.
        f"{name} read": {"icl": lab.mean(_few_shot_accuracy(model, items, f"task {t}", seed) for t in range(3))},
    }  # fmt: skip
    for ceiling in ("other order", "other demonstrations"):
        arms[f"{name}: {ceiling}"] = {m: controls[ceiling][m]["estimate"] for m in equivalence.SIMILARITIES}
    for way, scores in report["ways"].items():
        arms[f"{name}: {way}"] = {
            "overlap": scores["to_icl"]["overlap"]["estimate"], "cosine": scores["to_icl"]["cosine"]["estimate"],
            "accuracy": scores["to_icl"]["accuracy"]["estimate"], "relative": scores["cosine"]["relative"]["estimate"],
            "order": order[way]["probability"]["estimate"], "order_logit": order[way]["logit"]["estimate"],
            "different": float(scores["verdict"] == "different"),
        }  # fmt: skip
    fine_tuned = [arms[f"{name}: {way}"] for way in report["ways"]]
    arms[f"{name}: best"] = {m: max(w[m] for w in fine_tuned) for m in equivalence.SIMILARITIES}
    return arms


def _few_shot_accuracy(model: Model, items: Sequence[Any], task: str, seed: int) -> float:
    records = [r for r in items if r.task == task]
    result = prompting.gpt3(model, records, shots=(8,), separator="\n", seed=seed)
    return result.metrics["accuracy"].after


def _probability_error(model: Model, seed: int) -> float:
    """Return the largest difference between answer probabilities of `three_way` and those computed directly."""
    items = translators.problems(seed)
    (episode, _), *_ = three_way.episodes(items, items, 8, 6, 1, seed)
    reader = LanguageReader(model)
    reading, rows = reader.shown(episode), [row[0] for row in reader.rows(episode)]
    firsts = [TokenizedExample(r.prompt, r.completion[:1]) for r in rows]
    direct = forward.row_logp(model, firsts)[0]
    read = torch.stack([reading.tokens[i, r.completion[0]] for i, r in enumerate(firsts)]).double()
    return float((direct.exp() - read.exp()).abs().max())


def _same_order(count: int, size: int, seed: int) -> list[list[int]]:
    """Sabotage: all orders are the original one."""
    return [list(range(size))] * count


def _one_before(model: Model, rows: Sequence[TokenizedExample], apart: bool = False) -> torch.Tensor:
    """Sabotage: distributions one position before the answer's."""
    return DISTRIBUTIONS(model, [TokenizedExample(r.prompt[:-1], r.prompt[-1:]) for r in rows], apart)


def _double_softmax(model: Model, rows: Sequence[TokenizedExample], apart: bool = False) -> torch.Tensor:
    """Sabotage: softmax applied to probabilities."""
    return DISTRIBUTIONS(model, rows, apart).exp().log_softmax(-1)


DISTRIBUTIONS = three_way.distributions
COSINE, FULL = (
    "ICL is nearer to itself than any fine-tuning comes (cosine)",
    "one step on all demonstrations has no order",
)
ORDERED, PLACE = "ICL depends on the order of its demonstrations", "probabilities are those of the answer's place"
MODEL: dict[str, Any] = {"parts": ("model",)}
CLAIM = runner.Claim(
    method="icl-vs-gd",
    text=(
        "In a language model in which in-context learning emerges, demonstrations in the prompt do not act as "
        "fine-tuning on them does, whichever weights are tuned and at the most favourable rate: other tokens and "
        "other confidences, and another dependence on their order. Where both are known to be one, in trained linear "
        "attention, the same instrument finds them indistinguishable."
    ),
    run=run,
    gates=(gate("the model learns in context", "model read.icl", at_least=0.7, unit="accuracy"),),
    tests=(
        difference("demonstrations teach it", "model.icl", "model.zero", "accuracy", margin=0.2),
        difference("fine-tuning on them does too", "model: all/full.accuracy", "model.zero", "accuracy", margin=0.1),
        difference("ICL is nearer to itself than any fine-tuning comes (overlap)", "model: other order.overlap",
                   "model: best.overlap", "overlap", margin=0.05),
        difference(COSINE, "model: other order.cosine", "model: best.cosine", "cosine", margin=0.05),
        difference("also behind other demonstrations", "model: other demonstrations.cosine", "model: best.cosine",
                   "cosine", margin=0.05),
        bound(ORDERED, "model.order", 1e-4, "probability"),
        exact(FULL, "model: all/full.order", 0.0, 1e-6, "probability"),
        difference("one by one, order matters more to fine-tuning", "model: kv.order_logit", "model.order_logit",
                   log=True, margin=0.2),
        exact("all fine-tunings are told different", "model: all.different", 1.0, unit="share"),
        bound("linear attention comes as near to a step of descent as to itself", "attention.relative", 0.95,
              "of the way"),
        exact("that is told indistinguishable", "attention.same", 1.0, unit="share"),
        exact("attention made by hand is that step", "by hand.relative", 1.0, 1e-6, "of the way"),
        exact("without positions, order is nothing", "attention.order", 0.0, 1e-6, "probability"),
        exact(PLACE, "model.error", 0.0, 1e-5, "probability"),
    ),
    sabotages=(
        runner.Sabotage("fine-tuned models are shown the demonstrations", COSINE, None,
                        {"didact.evaluate.three_way:without_demos": lambda episode: episode}, MODEL),
        runner.Sabotage("demonstrations are not reordered", ORDERED, None,
                        {"didact.evaluate.three_way:orders": _same_order}, MODEL),
        runner.Sabotage("read one place too early", PLACE, None,
                        {"didact.evaluate.three_way:distributions": _one_before}, MODEL),
        runner.Sabotage("softmax taken twice", PLACE, None,
                        {"didact.evaluate.three_way:distributions": _double_softmax}, MODEL),
    ),
)  # fmt: skip

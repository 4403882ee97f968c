"""The claim of unlearning-survey: its classes of unlearning do what the survey says of them, on one model and data.

A Llama trained on some authors, and one trained without two of them (gold). Arms: ascent alone, ascent and NPO with
retain records, the ascent losses of KUL, LLMU and EUL, aligned knowledge gaps (KGA), subtracted weights (a task vector,
a random one of the same norm, Ext-Sub, a negated adapter), and neurons switched off (DEPN). Learning rates were chosen
on seeds 1000 and 1001, except that KUL, LLMU and EUL have the others', and DEPN trains nothing. A gap that is only
widened also ended nearer to gold than ascent did; leaving out the new data shows in the gap itself.

One criterion for all: answers to forget lose at least a fifth of their probability, and token accuracy elsewhere drops
by .15 at most. Two ways change no weights and are only reported: `guardrail` needs a model that follows instructions
(here with a guard short enough for these models), and `icul` one that reads labels in its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from didact import unlearning
from didact.claims import lab, runner
from didact.claims.lab import bound, difference, gate, ratio
from didact.claims.unlearning import unlearning_survey_example as example
from didact.evaluate import forgetting
from didact.models import merge
from didact.models.model import Model
from didact.types import Fit
from didact.worlds import authors

TEACH = Fit(lr=2e-3, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)
STEPS = {"smoke": (20, 3), "quick": (400, 40), "full": (400, 40)}  # to train the start model, and to unlearn
SCALES = example.SCALES
FORGETS, KEEPS = 0.8, 0.15  # the criterion: largest share of the start's probability, largest loss of token accuracy
GUARDED = 8  # tokens of an answer behind a guardrail

problem = example.problem
problem_task_arithmetic = example.variant("merging", scales=SCALES)
problem_negated_adapter = example.variant("adapter", scales=SCALES)
problem_ext_sub = example.variant("merging", scales=SCALES)
problem_kul = example.variant("kul", retain=False, unseen=True, n=3)
problem_llmu = example.variant("llmu")
problem_eul = example.variant("eul")
problem_kga = example.variant("kga", unseen=True, specialist_lr=1e-3, specialist_epochs=20.0, keep=1.0)
problem_depn = example.variant("", retain=False, neurons=60, steps=5, share=0.2)
problem_guardrail = example.variant("", retain=False, topics=2, max_new_tokens=8)
problem_icul = example.problem_icul


def run(seed: int, tier: runner.Tier, arms: Sequence[str] | None = None, align: bool = True) -> runner.Measured:
    """Run every arm, or the named ones, on one seed; learning rates were chosen on seeds 1000 and 1001."""
    teach, steps = STEPS[tier]
    world = authors.authors(seed, forget=2, retain=6, unseen=3, holdout=2)
    start, gold = _start_and_gold(seed, world, TEACH.replace(steps=teach, seed=seed))
    fit = Fit(lr=3e-4, steps=steps, rows=20, seed=seed, warmup_steps=3)
    specialist = Fit(lr=3e-4, steps=steps, rows=20, seed=seed, schedule="constant")
    merging_options: dict[str, Any] = {"scales": SCALES, "fit": specialist}
    kga_options: dict[str, Any] = {
        "specialist_lr": 1e-3,
        "specialist_epochs": max(1.0, steps / 2),
        "keep": 1.0,
        "align": align,
    }
    ways: dict[str, Any] = {
        "GA": lambda: unlearning.npo(start, world.forget, loss="ga", regulariser="none", fit=fit),
        "GA+RT": lambda: unlearning.npo(start, world.forget, world.retain, loss="ga", fit=fit),
        "NPO+RT": lambda: unlearning.npo(start, world.forget, world.retain, beta=1.0, retain_weight=5.0, fit=fit),
        "KUL": lambda: unlearning.kul(
            start, world.forget, world.holdout, n=3, fit=fit.replace(epochs=max(1.0, steps / 2), steps=None)
        ),
        "LLMU": lambda: unlearning.llmu(start, world.forget, world.retain, fit=fit),
        "EUL": lambda: unlearning.eul(start, world.forget, world.retain, fit=specialist.replace(lr=1e-3, lora=8)),
        "DEPN": lambda: unlearning.depn(start, world.forget, neurons=20, steps=5, share=0.2),
        "KGA": lambda: unlearning.kga(start, world.forget, world.retain, world.holdout, fit=fit, **kga_options),
        "task vector": lambda: unlearning.task_arithmetic(start, world.forget, world.retain, **merging_options),
        "ext-sub": lambda: unlearning.ext_sub(start, world.forget, world.retain, **merging_options),
        "negated adapter": lambda: unlearning.negated_adapter(
            start, world.forget, world.retain, scales=SCALES, fit=specialist.replace(lr=1e-3, lora=8)
        ),
    }
    out = {"start": _measures(start, gold, world), "gold": _measures(gold, gold, world)}
    for name, way in ways.items():
        if arms is None or name in arms:
            result = way()
            out[name] = _measures(lab.model_of(result), gold, world)
            out[name]["lost"] = out["start"]["kept"] - out[name]["kept"]
            if name == "KGA":  # the paper's target, as a ratio
                out[name]["off_aim"] = abs(math.log(result.findings["gap"] / result.findings["gap_unseen"]))
            if name == "task vector":
                scale = out[name]["scale"] = result.findings["scale"]
                noise = unlearning.task_arithmetic(start, world.forget, scale=scale, vector="random", fit=specialist)
                out["random vector"] = _measures(lab.model_of(noise), gold, world)
    return out if arms else out | _prompt_ways(start, world)


def _prompt_ways(start: Model, world: authors.Authors) -> dict[str, dict[str, float]]:
    """Measure the ways that only prompt: the share of answers given with a guardrail and without, and the confidence in
    the answers to forget, of two choices, after flipped labels and after true ones."""
    guard = unlearning.guardrail(start, world.forget, guard="I do not know.", topics=2, max_new_tokens=GUARDED)
    assert guard.predict
    prompts = [d.prompt for d in world.unseen]
    answers = lab.sampled(start, prompts, GUARDED, temperature=0.0), guard.predict(prompts)
    before, after = (lab.mean(d.completion in a for d, a in zip(world.unseen, texts, strict=True)) for texts in answers)
    leaked = guard.metrics["forget_leaked"]
    forget, retain = (list(map(example.choice, part)) for part in (world.forget, world.retain))
    flips: tuple[Literal["forget", "none"], ...] = ("forget", "none")
    scores = [unlearning.icul(start, forget, retain, right=2, flip=flip).metrics["forget_confidence"] for flip in flips]
    return {
        "guardrail": {"leaked": leaked.after, "open": leaked.before or 0.0, "lost": before - after},
        "icul": dict(zip(("sure", "unflipped"), (m.after for m in scores), strict=True)),
    }


def _start_and_gold(seed: int, world: authors.Authors, fit: Fit) -> list[Model]:
    """Train on all authors, and on all but those to forget; cached, as no sabotage affects this training."""
    retained = world.retain + world.unseen
    texts = [f"{r.prompt} {r.completion}" for r in world.forget + retained + world.holdout]
    base = lab.blank("llama", texts, 600, d=64, layers=2, heads=4, context=64, seed=seed)
    return [lab.tuned(base, records, fit) for records in (world.forget + retained, retained)]


def _measures(model: Model, gold: Model, world: authors.Authors) -> dict[str, float]:
    """Return `forget`: probability of the answers to forget, `off_gold`: its log distance to gold's, `kept`: token
    accuracy on authors outside unlearning, `trace`: membership AUC of the forget set against held-out authors."""
    forget, holdout = (forgetting.answers(model, r) for r in (world.forget, world.holdout))
    target = forgetting.answers(gold, world.forget)["probability"]
    return {
        "forget": float(forget["probability"].mean()),
        "accuracy": float(forget["accuracy"].mean()),
        "off_gold": abs(math.log(forget["probability"].mean()) - math.log(target.mean())),
        "kept": float(forgetting.answers(model, world.unseen)["accuracy"].mean()),
        "trace": (trace := forgetting.membership_auc(forget["min_k"], holdout["min_k"])),
        "traced": abs(trace - 0.5),
    }


_moved, _weighed = merge.add_vector, merge.scale_adapter
VECTOR, ADAPTER = "a task vector forgets", "a negated adapter forgets"
ALIGNED = "gaps are aligned, by the stop rule's own measure"
WAYS = ("KUL", "LLMU", "EUL", "ext-sub", "DEPN")

CLAIM = runner.Claim(
    method="unlearning-survey",
    text=(
        "Subtracting a task vector or a negated adapter makes a model forget with little loss elsewhere, where a "
        "random vector of the same length does not. Gradient ascent alone ruins the model; with retain records it "
        "keeps more. Aligning knowledge gaps ends nearer to a retrained model than ascent."
    ),
    run=run,
    gates=(
        gate("there is something to forget", "start.forget", at_least=0.7, unit="probability"),
        gate("gold never learnt it", "gold.forget", at_most=0.4, unit="probability"),
        gate("there is something to keep", "start.kept", at_least=0.9, unit="token accuracy"),
    ),
    tests=(
        ratio(VECTOR, "task vector.forget", "start.forget", FORGETS),
        ratio("a random vector does not", "task vector.forget", "random vector.forget", FORGETS),
        bound("a task vector keeps the rest", "task vector.lost", KEEPS, less=True),
        ratio(ADAPTER, "negated adapter.forget", "start.forget", FORGETS),
        bound("a negated adapter keeps the rest", "negated adapter.lost", KEEPS, less=True),
        difference("ascent loses more than with retain records", "GA+RT.lost", "GA.lost", less=True),
        ratio("aligned gaps end nearer to gold than ascent", "KGA.off_gold", "GA.off_gold"),
        difference("aligned gaps leave less of a trace", "KGA.traced", "start.traced", "AUC from chance", less=True),
        difference("NPO with retain keeps more than ascent with retain", "NPO+RT.lost", "GA+RT.lost", less=True),
        *(ratio(f"{name} forgets", f"{name}.forget", "start.forget", FORGETS) for name in WAYS),
        *(bound(f"{name} keeps the rest", f"{name}.lost", KEEPS, less=True) for name in WAYS if name != "KUL"),
        difference("KUL stops before it loses as much as ascent", "KUL.lost", "GA.lost", less=True),
        bound(ALIGNED, "KGA.off_aim", 0.3, less=True, reported=True),
        bound("ascent leaves a trace below chance", "GA.trace", 0.5, less=True, reported=True),
        difference("a guardrail lets fewer answers through", "guardrail.leaked", "guardrail.open", less=True,
                   reported=True),
        bound("a guardrail keeps the rest", "guardrail.lost", KEEPS, less=True, reported=True),
        difference("flipped labels in the prompt make an answer less sure", "icul.sure", "icul.unflipped", less=True,
                   reported=True),
    ),
    sabotages=(
        runner.Sabotage("vector added", VECTOR, "task vector.forget",
                        {"didact.models.merge:add_vector": lambda model, vector, scale: _moved(model, vector, -scale)},
                        {"arms": ("task vector",)}),
        runner.Sabotage("both factors negated", ADAPTER, "negated adapter.forget",
                        {"didact.models.merge:scale_adapter": lambda model, weight: _weighed(model, -weight)},
                        {"arms": ("negated adapter",)}),
        runner.Sabotage("gaps without new data", ALIGNED, "KGA.off_aim", options={"arms": ("KGA",), "align": False}),
    ),
)  # fmt: skip

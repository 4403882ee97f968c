"""The claim of unlearning-survey: its classes of unlearning do what the survey says of them, on one model and data.

A Llama that knows some authors, and one never told of two of them (gold). Ascent alone, ascent and NPO with retain
records, knowledge gaps aligned, and weights subtracted: a task vector, a random one as long, a negated adapter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from didact import baselines, unlearning
from didact.claims import runner, verdict
from didact.claims.problem import Problem
from didact.evaluate import forgetting
from didact.learn import episodes
from didact.models import build, merge
from didact.models.model import Model
from didact.types import Demo, Fit
from didact.worlds import authors

TEACH = Fit(lr=2e-3, rows=16, schedule="cosine", betas=(0.9, 0.95), warmup_steps=20)
STEPS = {
    "smoke": (20, 3),
    "quick": (400, 40),
    "full": (400, 40),
}  # to teach, and to unlearn; rates below were found on seeds 1000 and 1001
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)


def problem(seed: int) -> Problem:
    """What `didact run unlearning-survey` tries its ways on."""
    return _example(seed, ways=("graddiff", "npo", "whp", "task-arithmetic"))


def problem_task_arithmetic(seed: int) -> Problem:
    """Of `unlearning-survey.task-arithmetic`."""
    return _example(seed, "merging", scales=SCALES)


def problem_negated_adapter(seed: int) -> Problem:
    """Of `unlearning-survey.negated-adapter`."""
    return _example(seed, "adapter", scales=SCALES)


def problem_ext_sub(seed: int) -> Problem:
    """Of `unlearning-survey.ext-sub`."""
    return _example(seed, "merging", scales=SCALES)


def problem_kul(seed: int) -> Problem:
    """Of `unlearning-survey.kul`."""
    return _example(seed, "kul", retain=False, unseen=True, n=3)


def problem_llmu(seed: int) -> Problem:
    """Of `unlearning-survey.llmu`."""
    return _example(seed, "llmu")


def problem_eul(seed: int) -> Problem:
    """Of `unlearning-survey.eul`."""
    return _example(seed, "eul")


def problem_kga(seed: int) -> Problem:
    """Of `unlearning-survey.kga`."""
    return _example(seed, "kga", unseen=True, specialist_lr=1e-3, specialist_epochs=20.0, keep=1.0)


def problem_depn(seed: int) -> Problem:
    """Of `unlearning-survey.depn`."""
    return _example(seed, "", retain=False, neurons=60, steps=5, share=0.2)


def problem_guardrail(seed: int) -> Problem:
    """Of `unlearning-survey.guardrail`."""
    return _example(seed, "", retain=False, topics=2, max_new_tokens=8)


def problem_icul(seed: int) -> Problem:
    """Of `unlearning-survey.icul`: which of two answers is an author's, as a choice."""
    given = _example(seed, "")
    data = {
        name: [
            Demo(prompt=d.prompt, completion=d.completion, choices=[d.completion, (d.perturbed or [""])[0]])
            for d in part
        ]
        for name, part in given.data.items()
        for part in [[d for d in part if isinstance(d, Demo)]]
    }
    return Problem(model=given.model, data=data, options={"right": 2})


@episodes.one_thread()
def run(seed: int, tier: runner.Tier, arms: Sequence[str] | None = None, align: bool = True) -> runner.Measured:
    """Every arm, or those named, on one seed."""
    teach, unlearn = STEPS[tier]
    world = authors.authors(seed, forget=2, retain=6, unseen=3, holdout=2)
    start, gold = start_and_gold(seed, teach)
    fit = Fit(lr=3e-4, steps=unlearn, rows=20, seed=seed, warmup_steps=3)
    specialist = Fit(lr=3e-4, steps=unlearn, rows=20, seed=seed, schedule="constant")
    weights: dict[str, Any] = {"scales": SCALES, "fit": specialist}
    gaps: dict[str, Any] = {
        "specialist_lr": 1e-3,
        "specialist_epochs": max(1.0, unlearn / 2),
        "keep": 1.0,
        "align": align,
    }
    ways: dict[str, Any] = {
        "GA": lambda: unlearning.npo(start, world.forget, loss="ga", regulariser="none", fit=fit),
        "GA+RT": lambda: unlearning.npo(start, world.forget, world.retain, loss="ga", fit=fit),
        "NPO+RT": lambda: unlearning.npo(start, world.forget, world.retain, beta=1.0, retain_weight=5.0, fit=fit),
        "KGA": lambda: unlearning.kga(start, world.forget, world.retain, world.holdout, fit=fit, **gaps),
        "task vector": lambda: unlearning.task_arithmetic(start, world.forget, world.retain, **weights),
        "ext-sub": lambda: unlearning.ext_sub(start, world.forget, world.retain, **weights),
        "negated adapter": lambda: unlearning.negated_adapter(
            start, world.forget, world.retain, scales=SCALES, fit=specialist.replace(lr=1e-3, lora=8)
        ),
    }
    out = {"start": measures(start, gold, world), "gold": measures(gold, gold, world)}
    scale = 0.0
    for name, way in ways.items():
        if arms is None or name in arms:
            result = way()
            out[name] = measures(result.models["model"], gold, world)
            out[name]["lost"] = out["start"]["kept"] - out[name]["kept"]
            if name == "KGA":  # the paper's own aim, as a ratio
                out[name]["off_aim"] = abs(math.log(result.findings["gap"] / result.findings["gap_unseen"]))
            if name == "task vector":
                scale = out[name]["scale"] = result.findings["scale"]
                noise = unlearning.task_arithmetic(start, world.forget, scale=scale, vector="random", fit=specialist)
                random: Any = noise.models["model"]
                out["random vector"] = measures(random, gold, world)
    return out


@functools.lru_cache(maxsize=64)
def start_and_gold(seed: int, steps: int) -> tuple[Model, Model]:
    """Told of everybody, and of all but those to forget: shared by the sabotages, none of which touches this."""
    world = authors.authors(seed, forget=2, retain=6, unseen=3, holdout=2)
    known = world.retain + world.unseen
    told = [f"{r.prompt} {r.completion}" for r in world.forget + known + world.holdout]
    base = build.build("llama", build.train_tokenizer(told, 600), d=64, layers=2, heads=4, context=64, seed=seed)
    fit = TEACH.replace(steps=steps, seed=seed)
    made: list[Any] = [baselines.sft(base, r, fit=fit).models["model"] for r in (world.forget + known, known)]
    return made[0], made[1]


def measures(model: Model, gold: Model, world: authors.Authors) -> dict[str, float]:
    """`forget`: probability of the answers to forget, and its distance to gold's in log; `kept`: token accuracy on
    authors no unlearning saw; `trace`: membership of the forget set against authors no model was told of."""
    gone, other = (forgetting.answers(model, r) for r in (world.forget, world.holdout))
    aim = forgetting.answers(gold, world.forget)["probability"]
    return {
        "forget": float(gone["probability"].mean()),
        "accuracy": float(gone["accuracy"].mean()),
        "off_gold": abs(math.log(gone["probability"].mean()) - math.log(aim.mean())),
        "kept": float(forgetting.answers(model, world.unseen)["accuracy"].mean()),
        "trace": forgetting.membership_auc(gone["min_k"], other["min_k"]),
    }


def _example(seed: int, *given: Any, **options: Any) -> Problem:
    from didact.claims.unlearning import unlearning_survey_example

    return unlearning_survey_example.problem(seed, *given, **options)


def _less(name: str, a: str, b: str, ratio: float = 1.0, gates: bool = True) -> verdict.Test:
    """`a < ratio b`, on the log scale."""
    return verdict.Test(
        name=name, kind="difference", a=a, b=b, null=math.log(ratio), direction="less", transform="log",
        unit="log ratio", gates="verdict" if gates else "none",
    )  # fmt: skip


def _below(name: str, a: str, null: float, b: str | None = None, gates: bool = True) -> verdict.Test:
    return verdict.Test(
        name=name, kind="difference" if b else "bound", a=a, b=b, null=null, direction="less",
        gates="verdict" if gates else "none",
    )  # fmt: skip


_moved, _weighed = merge.moved, merge.weighed

CLAIM = runner.Claim(
    method="unlearning-survey",
    text=(
        "Subtracting a task vector or a negated adapter makes a model forget with little loss elsewhere, where a "
        "random vector of the same length does not. Gradient ascent alone ruins the model; with retain records it "
        "keeps more. Aligning knowledge gaps ends nearer to a retrained model than ascent."
    ),
    run=run,
    gates=(
        verdict.gate("there is something to forget", "start.forget", at_least=0.7, unit="probability"),
        verdict.gate("gold never learnt it", "gold.forget", at_most=0.4, unit="probability"),
        verdict.gate("there is something to keep", "start.kept", at_least=0.9, unit="token accuracy"),
    ),
    tests=(
        _less("a task vector forgets", "task vector.forget", "start.forget", 0.8),
        _less("a random vector does not", "task vector.forget", "random vector.forget", 0.85),
        _below("a task vector keeps the rest", "task vector.lost", 0.15),
        _less("a negated adapter forgets", "negated adapter.forget", "start.forget", 0.9),
        _below("a negated adapter keeps the rest", "negated adapter.lost", 0.15),
        _below("ascent loses more than with retain records", "GA+RT.lost", 0.0, "GA.lost"),
        _less("aligned gaps end nearer to gold than ascent", "KGA.off_gold", "GA.off_gold"),
        _below("gaps are aligned", "KGA.off_aim", 0.3),
        _below("NPO with retain keeps more than ascent with retain", "NPO+RT.lost", 0.0, "GA+RT.lost", gates=False),
        _below("ascent leaves a trace below chance", "GA.trace", 0.5, gates=False),
        _less("Ext-Sub forgets", "ext-sub.forget", "start.forget", 0.7, gates=False),
        _below("Ext-Sub keeps the rest", "ext-sub.lost", 0.15, gates=False),
    ),
    sabotages=(
        runner.Sabotage(
            name="vector added", breaks="a task vector forgets", metric="task vector.forget",
            options={"arms": ("task vector",)},
            patch={"didact.models.merge:moved": lambda model, vector, scale: _moved(model, vector, -scale)},
        ),
        runner.Sabotage(
            name="both factors negated", breaks="a negated adapter forgets", metric="negated adapter.forget",
            options={"arms": ("negated adapter",)},
            patch={"didact.models.merge:weighed": lambda model, weight: _weighed(model, -weight)},
        ),
        runner.Sabotage(
            name="gaps without new data", breaks="gaps are aligned", metric="KGA.off_aim",
            options={"arms": ("KGA",), "align": False},
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip

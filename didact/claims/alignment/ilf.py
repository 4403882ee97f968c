"""ILF's claim on a code that a model believes wrong in places: feedback on its own answers mends it.

The start follows feedback, not always, and tells whether a refinement did what it asks for, not always. Every arm
teaches 256 records, of three rounds as many each, at the rate that of 1e-3, 3e-3 and 1e-2 was best on seed 1000 for
every arm (for ILF and for right answers 1e-2 is as good). There three rounds that go on from one another were
better (.72) than three that begin anew on all refinements so far (.56), and are the arm here.

A first run was stopped after two seeds: its start, taught less of judging, was right about .60 and .66 of the
candidates, and missed the gate. What it is taught was changed on seeds 1000 to 1002 (.92 to .98 there), the words
made a letter shorter; tests and thresholds are the first run's.
That people find the answers better cannot be tested here; that feedback says more than the answers themselves can.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from didact import alignment
from didact.claims import runner, verdict
from didact.claims.alignment import ilf_example
from didact.infer import best_of, generate, refine
from didact.learn import episodes
from didact.models.model import Model
from didact.types import Critique

STEPS = {"smoke": 20, "quick": 700, "full": 700}  # to make the start
EPOCHS = {"smoke": 1, "quick": 8, "full": 8}  # of a round
RECORDS = {"smoke": 16, "quick": 256, "full": 256}
ASKED = {"smoke": 64, "quick": 512, "full": 1024}
ARMS: dict[str, dict[str, Any]] = {
    "ilf": {},
    "random": {"selector": "random"},
    "no feedback": {"refine_with": "nothing", "selector": "random"},
    "initial": {"target": "initial"},
    "gold": {"target": "gold"},
    "rounds": {"rounds": 3, "finetune_from": "previous", "window": "current"},
}


def problem(seed: int) -> Any:
    """What `didact run ilf` teaches when given no model and data."""
    return ilf_example.problem(seed)


@episodes.one_thread()
def run(
    seed: int, tier: runner.Tier, arms: Sequence[str] = tuple(ARMS), shuffled: bool = False
) -> dict[str, dict[str, float]]:
    """The start and every arm on one seed; `shuffled` gives every record another's feedback."""
    start = _start(seed, tier)
    code = ilf_example.world(seed)
    records = ilf_example.critiques(start, seed, RECORDS[tier])
    if shuffled:
        turned = [records[i].feedback for i in np.random.default_rng([seed, 96]).permutation(len(records))]
        records = [dataclasses.replace(r, feedback=f) for r, f in zip(records, turned, strict=True)]
    records = [dataclasses.replace(r, refinement=code.answer(r.prompt)) for r in records]
    fit = ilf_example.TEACH.replace(epochs=EPOCHS[tier], seed=seed)
    out = {"start": _measures(start, seed, tier)}
    for name in arms:
        options = ilf_example.OPTIONS | ARMS[name]
        if "rounds" in options:
            options |= {"feedback": code.critic}
        result = alignment.ilf(start, records, **options, check=_check(seed), fit=fit)
        model = result.models["model"]
        assert isinstance(model, Model)
        out[name] = _measures(model, seed, tier) | _refinements(result.records or [], seed)
    return out


@functools.lru_cache(maxsize=64)
def _start(seed: int, tier: runner.Tier) -> Model:
    """Shared by the arms of a seed and by its sabotages, none of which touches this training."""
    return ilf_example.tuned(seed, teach=ilf_example.START.replace(steps=STEPS[tier]))


def _check(seed: int) -> Any:
    code = ilf_example.world(seed)

    def check(completions: Sequence[str], feedback: Sequence[str], refinements: Sequence[str]) -> list[bool]:
        return [code.incorporated(*row) for row in zip(completions, feedback, refinements, strict=True)]

    return check


def _measures(model: Model, seed: int, tier: runner.Tier) -> dict[str, float]:
    """On prompts no training saw, one answer sampled: wholly right, and its share of right marks."""
    code, asked = ilf_example.world(seed), ilf_example.world(seed).demos(2, ASKED[tier])
    how = generate.SamplingConfig(max_new_tokens=ilf_example.ANSWER, temperature=1.0, seed=seed, rows=256)
    made = [m[0] for m in generate.sample(model, [d.prompt for d in asked], 1, how)]
    marks = [np.mean([a == b for a, b in zip(m.ljust(code.length), d.completion, strict=False)]) for m, d in
             zip(made, asked, strict=True)]  # fmt: skip
    return {
        "exact": float(np.mean([m == d.completion for m, d in zip(made, asked, strict=True)])),
        "marks": float(np.mean(marks)),
    }


def _refinements(records: Sequence[Any], seed: int) -> dict[str, float]:
    """Of round 0's records that had something to mend: how many do it; and how often the scores are right."""
    code = ilf_example.world(seed)
    some = [r for r in records if set(r.feedback) != {"-"} and not r.extra.get("round")]
    out = {"incorporated": float(np.mean([code.incorporated(r.completion, r.feedback, r.refinement) for r in some]))}
    judged = [r for r in some if r.extra.get("selector") == "judge"]
    if not judged:
        return out
    told, truth = [], []
    for r in judged:
        told += [s > 0.5 for s in r.extra["scores"]]
        truth += [code.incorporated(r.completion, r.feedback, text) for text in r.extra["candidates"]]
    return out | {"offered": float(np.mean(truth)), "judge": float(np.mean(np.equal(told, truth)))}


def _least(texts: Sequence[str], scores: Sequence[float], worst: bool = False) -> best_of.Pick:
    return _pick(texts, scores, not worst)


def _shown(record: Critique, target: str) -> tuple[str, str]:
    return refine.filled(record.prompt + " " + ilf_example.REFINE, record), record.refinement or ""


def _own(record: Critique, target: str) -> tuple[str, str]:
    return record.prompt, record.completion


_pick = best_of.pick  # the intact part, which a sabotage wraps
_PAIR = "didact.methods.alignment.ilf:_pair"


def _more(name: str, a: str, b: str, **more: Any) -> verdict.Test:
    return verdict.Test(name=name, kind="difference", a=a, b=b, **{"unit": "of answers"} | more)


_ONE = {"arms": ("ilf", "initial")}

CLAIM = runner.Claim(
    method="ilf",
    text=(
        "Answers that a model mends by feedback on them, the best of five by its own word, teach it what the feedback "
        "knows and its own answers do not: more than tuning on these, or on ones mended without feedback."
    ),
    run=run,
    gates=(
        verdict.gate("the refiner follows feedback", "ilf.offered", at_least=0.35, unit="of candidates"),
        verdict.gate("the judge can tell", "ilf.judge", at_least=0.75, unit="of candidates"),
        verdict.gate("the start is not right already", "start.exact", at_most=0.5, unit="of answers"),
    ),
    tests=(
        _more("feedback is taken up", "random.incorporated", "no feedback.incorporated", null=0.1, unit="of records"),
        _more("selection takes up more", "ilf.incorporated", "random.incorporated", unit="of records"),
        _more("better than tuning on its own answers", "ilf.exact", "initial.exact", null=0.1),
        _more("better than refining without feedback", "ilf.exact", "no feedback.exact", null=0.05),
        _more("selected no worse than random", "ilf.exact", "random.exact", null=-0.03),
        _more("three rounds better than one", "rounds.exact", "ilf.exact"),
        _more("selected better than random", "ilf.exact", "random.exact", gates="none"),
        _more("right answers better than three rounds", "gold.exact", "rounds.exact", gates="none"),
    ),
    sabotages=(
        runner.Sabotage(
            name="feedback of other records", breaks="better than tuning on its own answers",
            options=_ONE | {"shuffled": True}, metric="ilf.exact",
        ),
        runner.Sabotage(
            name="the worst is selected", breaks="selection takes up more", patch={"didact.infer.best_of:pick": _least},
            options={"arms": ("ilf", "random")}, metric="ilf.incorporated",
        ),
        runner.Sabotage(
            name="its own answers are taught", breaks="better than tuning on its own answers", patch={_PAIR: _own},
            options=_ONE, metric="ilf.exact",
        ),
        runner.Sabotage(
            name="feedback in the prompt that is taught", breaks="better than tuning on its own answers",
            patch={_PAIR: _shown}, options=_ONE, metric="ilf.exact",
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip

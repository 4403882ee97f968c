"""Verdicts; sabotages are detected, no-ops are not; cards are stale when code changes; a killed claim resumes."""

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import launch

from didact import cli, files
from didact.claims import lab, runner, sources, verdict
from didact.claims.runner import Claim, Sabotage
from didact.claims.verdict import Test
from didact.objectives import preference
from didact.types import Demo, Fit, UserError

NPO = "didact.objectives.preference:npo"


def arms(**values):
    return {arm: {"m": list(v)} for arm, v in values.items()}


def spread(mean, width, n=5):
    """Return n values whose 95 % t interval is mean +- width."""
    unit = np.array([-1.0, -0.5, 0.0, 0.5, 1.0][:n])
    from scipy import stats

    half = stats.t.ppf(0.975, n - 1) * unit.std(ddof=1) / math.sqrt(n)
    return mean + unit * width / half


def outcome(test, **values):
    return test.row(arms(**values))["outcome"]


# --- tests over seeds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "width", "expected"),
    [
        (1.0, 0.5, "holds"),
        (1.0, 1.5, "inconclusive"),  # reaches below 0 and beyond the smallest effect
        (0.0, 0.1, "fails"),  # at most 0.1, below the smallest effect of 0.2
        (0.1, 0.05, "fails"),  # above 0, but smaller than the smallest effect
        (-1.0, 0.5, "fails"),
        (0.15, 0.1, "holds"),  # above 0, possibly as large as the smallest effect
    ],
)
def test_difference(mean, width, expected):
    base = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    for direction, sign in (("greater", 1), ("less", -1)):
        test = Test(name="t", kind="difference", a="x.m", b="y.m", margin=0.2, direction=direction)
        assert outcome(test, x=base + sign * spread(mean, width), y=base) == expected


def test_a_difference_is_paired():
    seeds = np.array([100.0, 0.0, -50.0, 30.0, 7.0])
    test = Test(name="t", kind="difference", a="x.m", b="y.m")
    row = test.row(arms(x=seeds + spread(1, 0.5), y=seeds))
    assert row["interval"] == pytest.approx([0.5, 1.5])
    assert row["n"] == 5 and row["level"] == 0.95


@pytest.mark.parametrize(
    ("mean", "width", "expected"),
    [(0.0, 0.5, "holds"), (0.8, 0.5, "inconclusive"), (2.0, 0.5, "fails"), (0.0, 3.0, "inconclusive")],
)
def test_equivalence_uses_the_90_percent_interval(mean, width, expected):
    test = Test(name="t", kind="equivalence", a="x.m", b="y.m", margin=1.0)
    row = test.row(arms(x=spread(mean, width), y=np.zeros(5)))
    assert row["outcome"] == expected and row["level"] == 0.90


def test_bound_and_exact():
    bound = Test(name="t", kind="bound", a="x.m", null=0.5, direction="less")
    assert outcome(bound, x=spread(0.4, 0.05)) == "holds"
    assert outcome(bound, x=spread(0.4, 0.15)) == "inconclusive"
    assert outcome(bound, x=spread(0.6, 0.05)) == "fails"
    exact = Test(name="t", kind="exact", a="x.m", null=1.0, margin=1e-9)
    assert outcome(exact, x=[1.0, 1.0, 1.0 + 1e-12]) == "holds"
    assert outcome(exact, x=[1.0, 1.0, 1.001]) == "fails"


def test_transforms():
    ratio = Test(name="t", kind="difference", a="x.m", b="y.m", transform="log", direction="less", null=math.log(0.5))
    y = np.array([1.0, 10.0, 0.1, 3.0, 7.0])
    assert ratio.row(arms(x=0.25 * y, y=y))["estimate"] == pytest.approx(math.log(0.25))
    assert outcome(ratio, x=0.25 * y, y=y) == "holds"
    logit = Test(name="t", kind="bound", a="x.m", transform="logit")
    assert logit.values(arms(x=[0.5, 0.75])) == pytest.approx([0.0, math.log(3)])
    assert outcome(logit, x=[0.5, 1.0]) == "inconclusive"


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan, 1.0], [1.0, math.inf]])
def test_too_few_seeds_or_nan_decide_nothing(values):
    assert outcome(Test(name="t", kind="bound", a="x.m"), x=values) == "inconclusive"
    if len(values) > 1:
        assert outcome(Test(name="t", kind="exact", a="x.m", null=1.0), x=values) == "inconclusive"


def test_arms_may_have_dots_and_a_missing_one_is_named():
    assert verdict.column({"kga.0.1": {"m": [1.0]}}, "kga.0.1.m") == [1.0]
    with pytest.raises(KeyError, match=r"no 'y\.m' among"):
        verdict.column(arms(x=[1.0]), "y.m")


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "difference"},
        {"kind": "bound", "b": "y.m"},
        {"kind": "equivalence"},
        {"kind": "exact", "margin": -1.0},
    ],
)
def test_a_test_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="test 't'"):
        Test(name="t", a="x.m", **options)


# --- verdicts --------------------------------------------------------------------------------


def row(outcome, gates="verdict"):
    return {"outcome": outcome, "gates": gates}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("holds"), row("holds")], "holds"),
        ([row("holds"), row("fails"), row("inconclusive")], "fails"),
        ([row("holds"), row("inconclusive")], "inconclusive"),
        ([row("holds"), row("fails", "none")], "holds"),
        ([row("fails"), row("fails", "competence")], "inconclusive"),
        ([row("holds"), row("holds", "competence")], "holds"),
        ([row("holds", "none")], "inconclusive"),
    ],
)
def test_verdict(rows, expected):
    assert verdict.verdict(rows) == expected


def test_a_competence_gate_goes_by_the_mean_and_shows_its_number():
    gate = lab.gate("can do it", "x.m", at_least=0.9)
    good, bad = gate.row(arms(x=[0.95, 0.85, 0.95])), gate.row(arms(x=[0.8, 0.8, 0.9]))
    assert (good["outcome"], bad["outcome"]) == ("holds", "fails")
    assert bad["estimate"] == pytest.approx(2.5 / 3)
    assert lab.gate("g", "x.m", at_most=0.9).row(arms(x=[0.8]))["outcome"] == "holds"
    assert gate.row(arms(x=[math.nan]))["outcome"] == "fails"
    with pytest.raises(ValueError, match="at_least or at_most"):
        lab.gate("g", "x.m")


def test_false_holds_are_as_rare_as_the_level_says():
    rng = np.random.default_rng(1)
    test = Test(name="t", kind="difference", a="x.m", b="y.m")
    held = sum(outcome(test, x=x, y=y) == "holds" for x, y in rng.normal(size=(2000, 2, 5)))
    assert held / 2000 < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 2000)


# --- the lab ---------------------------------------------------------------------------------


def test_constructors_say_what_the_test_class_says():
    assert lab.difference("t", "x.m", "y.m", "nats", margin=0.1) == Test(
        name="t", kind="difference", a="x.m", b="y.m", margin=0.1, unit="nats"
    )
    assert lab.bound("t", "x.m", 0.5, less=True, reported=True) == Test(
        name="t", kind="bound", a="x.m", null=0.5, direction="less", gates="none"
    )
    assert lab.equivalence("t", "x.m", None, 0.1) == Test(name="t", kind="equivalence", a="x.m", margin=0.1)
    assert lab.exact("t", "x.m", 1.0, 1e-3) == Test(name="t", kind="exact", a="x.m", null=1.0, margin=1e-3)
    half = lab.ratio("t", "x.m", "y.m", 1 / 2, effect=1.5)
    assert (half.transform, half.unit, half.direction) == ("log", "log ratio", "less")
    assert (half.null, half.margin) == (math.log(0.5), math.log(1.5))


def test_a_start_is_trained_once_and_kept_by_what_it_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    demos = [Demo(prompt="a", completion="b"), Demo(prompt="c", completion="d")]
    fit = Fit(lr=1e-2, steps=2, rows=2)

    def start(seed=0, demos=demos, fit=fit):
        return lab.tuned(lab.blank("gpt2", d=8, layers=1, heads=1, context=16, seed=seed), demos, fit)

    first = start()
    assert start() is first
    assert len({id(m) for m in (first, start(seed=1), start(demos=demos[:1]), start(fit=fit.replace(lr=1e-3)))}) == 4
    monkeypatch.setattr(lab, "_models", {})
    monkeypatch.setattr(lab.baselines, "sft", None)
    assert start().fingerprint() == first.fingerprint()  # from the disk
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "another"))
    with pytest.raises(TypeError):
        start()


# --- the runner ------------------------------------------------------------------------------


def toy(seed, tier, effect=1.0, crash=False):
    """A run that takes a real loss from its module, so that it can be patched."""
    if crash:
        raise FloatingPointError("overflow")
    noise = np.random.default_rng(seed).normal(scale=0.1, size=3)
    loss = float(preference.npo(torch.tensor(0.0), torch.tensor(0.0), 1.0))
    return {
        "start": {"m": 1 + 0.0 * noise[0]},
        "base": {"m": 10 + noise[0]},
        "method": {"m": 10 + noise[0] + noise[1] + effect * loss, "none": math.nan},
    }


def claim(**changes):
    parts = {
        "method": "toy",
        "text": "the method beats the base",
        "run": toy,
        "tests": (Test(name="better", kind="difference", a="method.m", b="base.m", margin=0.1),),
        "gates": (lab.gate("starts", "start.m", at_least=0.5),),
    }
    return Claim(**(parts | changes))


def nothing(logp, ref_logp, beta):
    return 0 * logp


INTACT = preference.npo


def same(logp, ref_logp, beta):
    return INTACT(logp, ref_logp, beta)


def test_a_card_has_the_fields_of_the_scoreboard(tmp_path):
    card = runner.run(claim(), "quick", quiet=True)
    assert list(card) == [
        "method", "tier", "claim", "arms", "tests", "sabotage", "verdict", "seeds", "seconds", "versions", "measured",
        "sources_sha256", "core_sha256",
    ]  # fmt: skip
    assert card["verdict"] == "holds" and runner.exit_code(card) == 0
    assert card["seeds"] == [0, 1, 2, 3, 4] and len(card["arms"]["method"]["m"]) == 5
    assert [t["name"] for t in card["tests"]] == ["starts", "better"]
    written = json.loads(runner.write(card, tmp_path).read_text())
    assert (tmp_path / "toy.json").exists() and written["arms"]["method"]["none"] == [None] * 5


@pytest.mark.parametrize(
    ("effect", "expected", "code"), [(1.0, "holds", 0), (0.0, "inconclusive", 3), (-1.0, "fails", 1)]
)
def test_verdicts_and_exit_codes(effect, expected, code):
    card = runner.run(claim(run=OTHERS[effect]), "quick", quiet=True)
    assert (card["verdict"], runner.exit_code(card)) == (expected, code)


def without_effect(seed, tier):
    return toy(seed, tier, effect=0.0)


def with_harm(seed, tier):
    return toy(seed, tier, effect=-1.0)


OTHERS = {1.0: toy, 0.0: without_effect, -1.0: with_harm}


def test_smoke_gives_no_verdict_and_runs_no_sabotage():
    broken = Sabotage(name="no loss", breaks="better", patch={NPO: nothing})
    card = runner.run(claim(sabotages=(broken,)), "smoke", sabotage=True, quiet=True)
    assert card["verdict"] is None and runner.exit_code(card) == 0
    assert card["seeds"] == [0] and card["sabotage"] == []


def test_a_sabotage_is_detected_and_a_no_op_is_not():
    sabotages = (
        Sabotage(name="no loss", breaks="better", patch={NPO: nothing}),
        Sabotage(name="nothing changed", breaks="better", patch={NPO: same}),
        Sabotage(name="effect off", breaks="better", options={"effect": 0.0}),
    )
    card = runner.run(claim(sabotages=sabotages), "quick", sabotage=True, quiet=True)
    assert [s["detected"] for s in card["sabotage"]] == [True, False, True]
    assert card["sabotage"][0]["estimate"] == pytest.approx(2 * math.log(2))
    assert card["sabotage"][1]["interval"] == [0.0, 0.0]
    assert set(card["sabotage"][0]) == {
        "name", "breaks", "estimate", "interval", "intact", "sabotaged", "detected",
    }  # fmt: skip
    better = np.subtract(card["arms"]["method"]["m"], card["arms"]["base"]["m"])
    assert card["sabotage"][0]["intact"] == better.tolist()
    assert np.mean(card["sabotage"][0]["sabotaged"]) == pytest.approx(better.mean() - 2 * math.log(2))
    assert preference.npo is INTACT


NOISE = np.array([-0.1, 0.05, 0.0, 0.1, -0.05])


@pytest.mark.parametrize(
    ("test", "intact", "sabotaged", "expected"),
    [
        ({"kind": "bound"}, 1.0, 0.0, True),
        ({"kind": "bound"}, 1.0, 0.5, False),  # significant, but the test still holds
        ({"kind": "bound"}, 1.0, 2.0, False),  # a change in the other direction
        ({"kind": "bound", "direction": "less"}, -1.0, 0.0, True),
        ({"kind": "bound", "direction": "less"}, -1.0, -0.5, False),
        ({"kind": "equivalence", "margin": 0.3}, 0.0, 1.0, True),
        ({"kind": "equivalence", "margin": 0.3}, 0.1, -1.0, True),
        ({"kind": "equivalence", "margin": 1.0}, 0.0, 0.5, False),
        ({"kind": "exact", "margin": 0.2}, 0.0, -1.0, True),
        ({"kind": "exact", "margin": 2.0}, 0.0, -1.0, False),
    ],
)
def test_a_sabotage_must_break_the_test_and_in_its_direction(test, intact, sabotaged, expected):
    clean, broken = arms(x=intact + NOISE), arms(x=sabotaged + NOISE[::-1])
    row = verdict.detect(Test(name="t", a="x.m", **test), clean, broken)
    assert row["detected"] is expected
    assert row["intact"] == list(intact + NOISE) and row["sabotaged"] == list(sabotaged + NOISE[::-1])


def test_a_broken_test_whose_interval_reaches_0_is_no_detection():
    wide = np.array([-3.0, 4.0, 0.0, 3.5, -3.5])
    test = Test(name="t", kind="bound", a="x.m")
    assert outcome(test, x=wide) == "inconclusive"
    assert verdict.detect(test, arms(x=1 + NOISE), arms(x=wide))["detected"] is False


def missed_gate(seed, tier, effect=1.0):
    measured = toy(seed, tier, effect)
    return measured | {"start": {"m": 1.0 if effect else 0.0}}


def nan_result(seed, tier, effect=1.0):
    measured = toy(seed, tier, effect)
    return measured if effect else measured | {"method": {"m": math.nan}}


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (toy, {"crash": True}, "FloatingPointError: overflow"),
        (nan_result, {"effect": 0.0}, "NaN"),
        (missed_gate, {"effect": 0.0}, "missed the gate 'starts'"),
    ],
)
def test_a_crash_a_nan_or_a_missed_gate_is_an_error_not_a_detection(run, options, message):
    broken = Sabotage(name="bad", breaks="better", options=options)
    card = runner.run(claim(run=run, sabotages=(broken,)), "quick", sabotage=True, quiet=True)
    (detection,) = card["sabotage"]
    assert detection["detected"] is False and detection["estimate"] is None and message in detection["error"]
    assert card["verdict"] == "holds"


def without_start(seed, tier, effect=1.0):
    measured = toy(seed, tier, effect)
    return measured if effect else {arm: metrics for arm, metrics in measured.items() if arm != "start"}


def test_a_gate_on_an_arm_that_a_sabotage_leaves_out_is_not_asked():
    broken = Sabotage(name="off", breaks="better", options={"effect": 0.0})
    card = runner.run(claim(run=without_start, sabotages=(broken,)), "quick", sabotage=True, quiet=True)
    assert card["sabotage"][0]["detected"] is True and "error" not in card["sabotage"][0]


def test_where_the_test_does_not_hold_the_metric_must_leave_the_clean_range_for_the_worse():
    def shown(effect, metric="method.m"):
        broken = Sabotage(name="s", breaks="better", options={"effect": effect}, metric=metric)
        return runner.run(claim(run=weak, sabotages=(broken,)), "quick", sabotage=True, quiet=True)["sabotage"][0]

    assert shown(-1.0)["detected"] is True
    assert shown(1.0)["detected"] is False
    assert shown(-0.01)["detected"] is False
    assert "names no metric" in shown(-1.0, None)["error"]


@pytest.mark.parametrize(
    ("metric", "test", "shift", "expected"),
    [
        ("x.m", {"direction": "less"}, 1.0, True),
        ("x.m", {"direction": "less"}, -1.0, False),
        ("y.m", {}, 1.0, True),  # what is subtracted must rise
        ("y.m", {}, -1.0, False),
        ("x.m", {"kind": "equivalence", "margin": 0.01}, -1.0, True),
    ],
)
def test_worse_depends_on_the_side_of_the_test(metric, test, shift, expected):
    better = Test(**({"name": "t", "kind": "difference", "a": "x.m", "b": "y.m"} | test))
    clean, broken = arms(x=NOISE, y=NOISE[::-1]), arms(x=shift + NOISE, y=shift + NOISE)
    assert verdict.detect(better, clean, broken, metric)["detected"] is expected


def weak(seed, tier, effect=0.0):
    return toy(seed, tier, effect)


def test_a_patch_is_undone_after_a_crash_and_a_wrong_name_is_refused():
    with pytest.raises(RuntimeError), runner.patched({NPO: nothing}):
        assert preference.npo is nothing
        raise RuntimeError
    assert preference.npo is INTACT
    with pytest.raises(AttributeError), runner.patched({NPO: nothing, "didact.objectives.preference:npoo": nothing}):
        pass
    assert preference.npo is INTACT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sabotages": (Sabotage(name="s", breaks="bettre"),)}, "breaks no test"),
        ({"tests": (Test(name="starts", kind="bound", a="method.m"),)}, "share a name"),
        ({"seeds": {"smoke": 1, "quick": 3, "full": 10}}, "quick needs 5 seeds"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        claim(**changes)


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match=r"no claim for 'nop'; there is one for each of:.*npo"):
        runner.load("nop")
    with pytest.raises(UserError, match="smoke, quick, full"):
        runner.run(claim(), "slow")


def test_a_claim_sees_an_empty_cache_of_its_own(monkeypatch, tmp_path):
    (tmp_path / "old").touch()
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    caches = []

    def look(seed, tier):
        folder = os.environ["DIDACT_CACHE"]
        caches.append((folder, os.listdir(folder)))
        return toy(seed, tier)

    runner.run(claim(run=look), "smoke", quiet=True)
    assert caches[0][0] != str(tmp_path) and caches[0][1] == []
    assert os.environ["DIDACT_CACHE"] == str(tmp_path) and not os.path.exists(caches[0][0])


# --- resuming and staleness ------------------------------------------------------------------

SLOW = '''
"""A claim that takes a while."""
import random
import time

from didact.claims import runner, verdict


def run(seed, tier, shift=0.0):
    """One seed."""
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    draw = random.Random(seed)  # a comment
    return {"a": {"m": draw.gauss(1, 0.1) + shift}, "b": {"m": draw.gauss(0, 0.1)}}


CLAIM = runner.Claim(
    method="slow-toy",
    text="a is more than b",
    run=run,
    tests=(verdict.Test(name="more", kind="difference", a="a.m", b="b.m"),),
    sabotages=(runner.Sabotage(name="shift", breaks="more", options={"shift": -1.0}),),
    seeds={"smoke": 1, "quick": 8, "full": 10},
)
'''


@pytest.fixture
def slow_toy(tmp_path, monkeypatch):
    (tmp_path / "slow_toy.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_toy", raising=False)
    importlib.invalidate_caches()
    return importlib.import_module("slow_toy")


def measured(folder, units, ready):
    """Run the claim in its own process."""
    sys.path.insert(0, folder)
    ready.set()
    runner.run(importlib.import_module("slow_toy").CLAIM, "quick", sabotage=True, folder=units, quiet=True)


def test_a_killed_claim_goes_on_to_the_same_card(slow_toy, tmp_path):
    units = tmp_path / "units"
    child = launch(measured, str(tmp_path), units)
    deadline = time.monotonic() + 30
    while len(list(units.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join()
    files.write_json(units / "intact-0.json", files.read_json(units / "intact-0.json") | {"seconds": 7.0})
    mtimes = {p.name: p.stat().st_mtime_ns for p in units.glob("*.json")}
    assert 3 <= len(mtimes) < 16
    resumed = runner.run(slow_toy.CLAIM, "quick", sabotage=True, folder=units, quiet=True)
    fresh = runner.run(slow_toy.CLAIM, "quick", sabotage=True, quiet=True)
    for part in ("arms", "tests", "sabotage", "verdict", "sources_sha256"):
        assert resumed[part] == fresh[part]
    assert all((units / name).stat().st_mtime_ns == when for name, when in mtimes.items())
    assert resumed["seconds"] >= 7.0 > fresh["seconds"]  # cached seeds count with their measured time


def test_seeds_measured_under_other_code_are_measured_again(slow_toy, tmp_path):
    units = tmp_path / "units"
    runner.run(slow_toy.CLAIM, "smoke", folder=units, quiet=True)
    cached = files.read_json(units / "intact-0.json")
    files.write_json(units / "intact-0.json", cached | {"arms": {"a": {"m": 99.0}, "b": {"m": 0.0}}})
    assert runner.run(slow_toy.CLAIM, "smoke", folder=units, quiet=True)["arms"]["a"]["m"] == [99.0]
    source = tmp_path / "slow_toy.py"
    source.write_text(source.read_text().replace("gauss(0, 0.1)", "gauss(0, 0.2)"))
    assert runner.run(slow_toy.CLAIM, "smoke", folder=units, quiet=True)["arms"]["a"]["m"] != [99.0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("# a comment", "# another", False),
        ('"""One seed."""\n', "\n", False),
        ("draw = random", "\n    draw   =   random", False),
        ("gauss(1, 0.1)", "gauss(1, 0.2)", True),
        ("return {", "print()\n    return {", True),
    ],
)
def test_a_card_is_stale_when_code_changed_not_when_comments_did(slow_toy, tmp_path, monkeypatch, old, new, expected):
    path = runner.write(runner.run(slow_toy.CLAIM, "smoke", quiet=True), tmp_path)
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": {"slow-toy": slow_toy.CLAIM}[name])
    assert not runner.stale(path)
    assert old in SLOW
    (tmp_path / "slow_toy.py").write_text(SLOW.replace(old, new))
    assert runner.stale(path) is expected


def test_both_modules_count_and_a_missing_one_is_named(slow_toy):
    toy, other = "slow_toy", "didact.claims.verdict"
    assert runner.sources_sha256(toy, other) != runner.sources_sha256(toy, toy)
    assert runner.sources_sha256(toy, other) == runner.sources_sha256(other, toy)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        runner.sources_sha256("no_such_module", toy)


FILES = {
    "methods/fam/m.py": "from didact.learn import fit\n\n\ndef m():\n    from didact.methods.fam import helper\n",
    "methods/fam/helper.py": "from didact.objectives import loss\n",
    "methods/fam/other.py": "NAME = 1\n",
    "methods/fam/__init__.py": "from didact.methods.fam.m import m\nfrom didact.methods.fam.other import NAME\n",
    "claims/fam/m.py": (
        "from didact import wide\nfrom didact.claims import lab\nfrom didact.methods import fam\n"
        "from didact.worlds.w import draw\nWIDE = wide.lazy\n"
        "PATCH = {'didact.infer.tree:pairs': 1}\nRUN = fam.m\n"
    ),
    "claims/lab.py": "from didact.learn import pairs\n",
    "methods/wide/lazy.py": "",
    "objectives/loss.py": "from didact.objectives import reduce\n",
    "objectives/reduce.py": "",
    "objectives/unused.py": "",
    "objectives/deep.py": "",
    "learn/pairs.py": "from didact.objectives import deep\n",
    "worlds/w.py": "def draw(): ...\n",
    "learn/fit.py": "from didact import files\n",
    "infer/tree.py": "",
    "files.py": "",
    "catalogue/lazy.json": '{"family": "wide", "function": "lazy", "module": "didact.methods.wide.lazy"}',
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "own", "core"),
    [
        ("methods/fam/m.py", True, False),
        ("methods/fam/helper.py", True, False),  # imported inside a function
        ("objectives/reduce.py", True, False),  # through two other modules
        ("worlds/w.py", True, False),
        ("methods/wide/lazy.py", True, False),  # a function of a family, imported on first use
        ("objectives/deep.py", True, False),  # through shared modules
        ("methods/fam/other.py", False, False),
        ("methods/fam/__init__.py", False, False),
        ("objectives/unused.py", False, False),
        ("claims/lab.py", False, True),
        ("learn/fit.py", False, True),
        ("files.py", False, True),
        ("infer/tree.py", False, True),  # named in a string
    ],
)
def test_the_hash_follows_what_is_imported(tree, changed, own, core):
    def hashes():
        return sources.sha256("didact.methods.fam.m", "didact.claims.fam.m")

    before = hashes()
    (tree / changed).write_text(f"# a comment\n{FILES[changed]}")
    assert hashes() == before
    (tree / changed).write_text(f"{FILES[changed]}CHANGED = 1\n")
    assert [a != b for a, b in zip(before, hashes(), strict=True)] == [own, core]


def test_the_hash_follows_the_data_that_a_module_reads(tree):
    (tree / "learn/fit.py").write_text('TEXTS = "texts.jsonl"\n')
    (tree / "worlds/w.py").write_text('def draw(): open("names.txt")\n')
    hashes = []
    for texts, names in (("a", "b"), ("a", "c"), ("d", "c")):
        (tree / "learn/texts.jsonl").write_text(texts)
        (tree / "worlds/names.txt").write_text(names)
        hashes.append(sources.sha256("didact.methods.fam.m", "didact.claims.fam.m"))
    (one, two, three) = hashes
    assert one[0] != two[0] == three[0] and one[1] == two[1] != three[1]


def test_drift_of_shared_code_is_told_apart_from_stale(slow_toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    card = runner.run(slow_toy.CLAIM, "smoke", quiet=True)
    path = runner.write(card, tmp_path)
    assert not runner.drifted(path) and runner.state("slow-toy", tmp_path)["code"] == "the same"
    runner.write(card | {"core_sha256": "0" * 64}, tmp_path)
    assert runner.drifted(path) and not runner.stale(path)
    assert runner.state("slow-toy", tmp_path)["code"] == "core changed since"
    runner.write(card | {"core_sha256": "0" * 64, "sources_sha256": "1" * 64}, tmp_path)
    assert not runner.drifted(path) and runner.state("slow-toy", tmp_path)["code"] == "stale"
    assert runner.state("other", tmp_path)["code"] == "not measured"


def test_the_stalest_are_those_without_a_card_then_stale_ones_then_the_oldest(slow_toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    monkeypatch.setattr(runner, "claims", lambda: dict.fromkeys(["new", "old", "stale", "none"], ""))
    card = runner.run(slow_toy.CLAIM, "smoke", quiet=True)
    runner.write(card | {"method": "new", "measured": "2026-03-01"}, tmp_path)
    runner.write(card | {"method": "old", "measured": "2026-01-01"}, tmp_path)
    runner.write(card | {"method": "stale", "measured": "2026-04-01", "sources_sha256": ""}, tmp_path)
    assert runner.stalest(9, tmp_path) == ["none", "stale", "old", "new"]
    assert runner.stalest(2, tmp_path) == ["none", "stale"]


# --- verifying -------------------------------------------------------------------------------


def test_a_card_whose_first_seed_is_equal_to_the_bit_gets_the_hashes_of_today(slow_toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    card = runner.run(slow_toy.CLAIM, "quick", sabotage=True, quiet=True)
    path = runner.write(card | {"sources_sha256": "", "core_sha256": "", "measured": "2026-01-01"}, tmp_path)
    assert runner.verify("slow-toy", tmp_path) == []
    renewed = files.read_json(path)
    assert renewed.pop("verified").keys() == {"seed", "date", "versions"}
    assert renewed == files.plain(card | {"measured": "2026-01-01"})
    assert not runner.stale(path) and not runner.drifted(path)


def test_a_card_that_differs_is_left_and_told_number_by_number(slow_toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    card = files.plain(runner.run(slow_toy.CLAIM, "quick", quiet=True))
    arms = {"a": {"m": [math.nextafter(card["arms"]["a"]["m"][0], 9), *card["arms"]["a"]["m"][1:]]}, "c": {"m": [1.0]}}
    path = runner.write(card | {"arms": arms, "sources_sha256": ""}, tmp_path)
    before = path.read_text()
    lines = runner.verify("slow-toy", tmp_path)
    assert [line.split(":")[0] for line in lines] == ["a.m", "c.m", "b.m"]
    assert lines[0] == f"a.m: was {arms['a']['m'][0]}, is {card['arms']['a']['m'][0]}" and "is missing" in lines[1]
    assert path.read_text() == before
    decided = [{**card["tests"][0], "null": 0.5}]
    runner.write(card | {"tests": decided}, tmp_path)
    assert runner.verify("slow-toy", tmp_path)[0].startswith("more: was {'kind': 'difference', 'null': 0.5")
    with pytest.raises(UserError, match=r"no card to verify; run: didact claim toy"):
        runner.verify("toy", tmp_path)


def test_on_another_machine_a_card_is_verified_against_what_its_own_code_measured_there(
    slow_toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    card = files.plain(runner.run(slow_toy.CLAIM, "quick", folder=tmp_path / "kept" / "slow-toy", quiet=True))
    arms = {a: {m: [v + 1e-9 for v in column] for m, column in c.items()} for a, c in card["arms"].items()}
    path = runner.write(card | {"arms": arms}, tmp_path)  # rounding differs on another processor
    assert runner.verify("slow-toy", tmp_path)
    assert runner.verify("slow-toy", tmp_path, tmp_path / "kept") == []
    renewed = files.read_json(path)
    assert renewed["verified"]["against"] == "the card's code on this machine" and renewed["arms"] == arms
    with pytest.raises(UserError, match=r"intact-0.json: missing; at the card's commit run: didact claim slow-toy"):
        runner.verify("slow-toy", tmp_path, tmp_path / "nothing")
    runner.write(card | {"sources_sha256": "other code"}, tmp_path)
    with pytest.raises(UserError, match="not measured by the code of the card"):
        runner.verify("slow-toy", tmp_path, tmp_path / "kept")


def test_the_command_lists_verifies_and_reruns(slow_toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "load", lambda name, tier="quick": slow_toy.CLAIM)
    monkeypatch.setattr(runner, "claims", lambda: {"spin": "", "npo": ""})
    card = runner.run(slow_toy.CLAIM, "smoke", quiet=True)
    scoreboard = ["--scoreboard", str(tmp_path)]
    for method, date in (("spin", "2026-02-01"), ("npo", "2026-01-01")):
        runner.write(card | {"method": method, "measured": date}, tmp_path)
    assert cli.main(["claim", *scoreboard]) == 0
    assert "npo " in (stdout := capsys.readouterr().out) and "measured 2026-01-01" in stdout and "the same" in stdout
    assert cli.main(["claim", "npo", "--verify", *scoreboard]) == 0 and "equal to the bit" in capsys.readouterr().out
    runner.write(card | {"method": "npo", "arms": {}}, tmp_path)
    assert cli.main(["claim", "npo", "--verify", *scoreboard]) == 1 and "a.m: was missing" in capsys.readouterr().out
    runs = []
    monkeypatch.setattr(runner, "run", lambda claim, *more: runs.append(claim) or card | {"method": "npo"})
    assert cli.main(["claim", "--stalest", "1", "--tier", "smoke", *scoreboard]) == 0 and len(runs) == 1
    for invalid in (["npo", "--all"], ["--stalest", "0"]):
        assert cli.main(["claim", *invalid, *scoreboard]) == 2


@pytest.mark.parametrize("method", runner.claims())
def test_the_scoreboard_has_a_current_card_of_every_claim(method):
    path = Path(__file__).parents[1] / "scoreboard" / f"{method}.json"
    assert path.exists(), f"run: didact claim {method} --sabotage"
    assert not runner.stale(path), f"code changed since it was measured; run: didact claim {method} --sabotage"
    for sabotage in runner.load(method).sabotages:
        with runner.patched(sabotage.patch):
            pass  # every target exists


@pytest.mark.soak
@pytest.mark.parametrize("method", runner.claims())
def test_every_claim_and_sabotage_gives_the_numbers_its_tests_read(method):
    claim = runner.load(method)
    for broken in (None, *claim.sabotages):
        with runner.patched(broken.patch if broken else {}):
            numbers = claim.run(0, "smoke", **(broken.options if broken else {}))
        for test in (*claim.gates, *claim.tests) if broken is None else ():
            test.row({arm: {m: [v] for m, v in metrics.items()} for arm, metrics in numbers.items()})

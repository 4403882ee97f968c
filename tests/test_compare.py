"""The comparison: equal budgets, splits without leaks, ties, failures of single arms, and resuming after a stop."""

from __future__ import annotations

import json
import math
import multiprocessing
import re

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from didact import catalogue, compare, progress, verbs
from didact.compare import board as boards
from didact.compare import score
from didact.compare.budget import PROBES, Budget, steps_within
from didact.compare.split import split
from didact.compare.work import COSTS, PHASES, TUNING_SEED, Unit, Work
from didact.data import contexts, convert
from didact.evaluate import judges, protocols
from didact.evaluate.protocols import Scoring
from didact.infer import functions
from didact.learn import rewards
from didact.models import build, cost, load
from didact.report import boards as pages
from didact.report import tables
from didact.types import Critique, Demo, Judged, Preference, Scored, UserError, as_row
from didact.verbs import comparing

COLOURS = ("red", "green", "blue", "cyan", "pink")


@pytest.fixture(scope="module")
def model():
    text = [f"what is {a} {i}? it is {b}." for a in COLOURS for b in ("good", "bad") for i in range(10)]
    return build.build("llama", build.train_tokenizer(text, 300), d=32, layers=1, heads=2, context=64)


def pairs(count=150):
    return [
        Preference(prompt=f"what is {COLOURS[i % 5]} {i}?", chosen=" it is good.", rejected=" it is bad.")
        for i in range(count)
    ]


def arm(name, **fit):
    return compare.Arm(name=name, entry=catalogue.entry(name), fit={"rows": 8} | fit)


def setting(model, folder, **more):
    options = {"records": {"preference": pairs()}, "protocol": "prefer", "budget": Budget.parse("15k-tokens")}
    return compare.Setting(model=model, folder=folder, **(options | {"seeds": (1, 2), "rates": (1e-3, 4e-3)} | more))


def test_every_arm_uses_the_same_budget_and_learns(model, tmp_path):
    messages = []
    board = compare.run([arm("sft"), arm("dpo")], setting(model, tmp_path), messages.append)
    rows = {r["arm"]: r for r in board["rows"]}
    assert set(rows) == {"untouched", "sft", "dpo"} and board["rows"][-1]["arm"] == "untouched"
    for name in ("sft", "dpo"):
        assert 0.9 * 15_000 < rows[name]["cost"]["tokens"] <= 15_000
        assert rows[name]["score"]["mean"] > 0.9  # on pairs it was not taught
    # DPO pays for its reference out of the same budget.
    assert rows["dpo"]["steps"] < rows["sft"]["steps"]
    assert rows["untouched"]["score"]["mean"] == 0.5 and not rows["untouched"]["tied"]
    assert rows["sft"]["tied"] and rows["dpo"]["tied"]
    assert all(set(r["metrics"]) >= {"kl", "length", "entropy", "distinct_2"} for r in board["rows"])

    again = []
    assert compare.run([arm("sft"), arm("dpo")], setting(model, tmp_path), again.append) == board
    assert messages and not again  # nothing is computed twice
    assert re.search(r"unit 10 of 10: .* \(\d+ s, about 0 s left\)", messages[-1])
    seconds = board["time"]
    assert all(seconds[name] > 0 for name in PHASES) and seconds["generation"] < seconds["scoring"]
    assert pages.time_spent({"time": {"search": 150.0, "scoring": 7.0, "generation": 5.0, "probes": 0.1}}) == (
        "time: search 2 min, scoring 7 s (5 s of it generating answers)"
    )
    removed = tmp_path / "units" / "sft_lr0.001_test2.json"
    if not removed.exists():
        removed = tmp_path / "units" / "sft_lr0.004_test2.json"
    removed.unlink()
    compare.run([arm("sft"), arm("dpo")], setting(model, tmp_path), again.append)
    assert len(again) == 1 and re.match(r"unit \d+ of 10: sft", again[0])


def test_training_and_scoring_say_whose_unit_they_are(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    compare.run([arm("dpo")], setting(model, tmp_path, seeds=(1,), rates=(1e-3,)))
    err = capsys.readouterr().err
    assert re.search(r"how many steps of dpo the budget allows: dpo: 1/\d+ steps, loss .* steps/s, .* left", err)
    assert re.search(r"unit 2 of 2, dpo_lr0.001_test1: dpo: 2/\d+ steps, loss", err)
    assert re.search(r"unit 1 of 2, untouched_test1: answering: \d+/\d+ records", err)


def test_two_processes_share_the_work_of_one_comparison(model, tmp_path):
    def work(queue):
        torch.set_num_threads(1)
        messages = []
        board = compare.run([arm("sft"), arm("dpo")], setting(model, tmp_path / "both"), messages.append)
        queue.put((messages, board))

    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    two = [fork.Process(target=work, args=(queue,)) for _ in range(2)]
    for process in two:
        process.start()
    (messages, board), (others, same) = queue.get(timeout=300), queue.get(timeout=300)
    for process in two:
        process.join()
    units = {p.stem for p in (tmp_path / "both" / "units").glob("*.json") if "_steps" not in p.name}
    done_units = [line.split(": ")[1] for line in messages + others]
    assert sorted(done_units) == sorted(units) and messages and others  # each unit once, and neither process ran all
    assert board == same


def test_arms_may_be_added_to_a_comparison_but_not_changed(model, tmp_path):
    folder, data, out = tmp_path / "model", tmp_path / "pairs.jsonl", str(tmp_path / "out")
    model.save(folder)
    data.write_text("".join(json.dumps(as_row(pair)) + "\n" for pair in pairs()))
    (tmp_path / "mine.yaml").write_text("method: sft\nrows: 8\n")
    mine, data_files = str(tmp_path / "mine.yaml"), {"preference": str(data)}

    def compared(*arms, **more):
        options = {"budget": "8k-tokens", "seeds": 1, "lrs": (1e-3,), "fit": {"schedule": "constant"}} | more
        return verbs.comparison(verbs.Comparison(arms=arms, model=str(folder), data=data_files, out=out, **options))

    first = compared(mine)
    more = compared(mine, "dpo")
    assert {r["arm"] for r in more["rows"]} == {"untouched", "sft (mine)", "dpo"}
    unchanged = [r for r in more["rows"] if r["arm"] == "sft (mine)"]
    assert unchanged[0]["per_seed"] == next(r for r in first["rows"] if r["arm"] == "sft (mine)")["per_seed"]
    (tmp_path / "mine.yaml").write_text("method: sft\nrows: 4\n")
    with pytest.raises(UserError, match=r"holds another comparison \(sft \(mine\) differ\)"):
        compared(mine)
    for name, value in (("budget", "9k-tokens"), ("seeds", 2), ("fit", {}), ("chat", "plain")):
        with pytest.raises(UserError, match=rf"\({name}, sft \(mine\) differ\).*--overwrite"):
            compared(mine, **{name: value})
    assert {r["arm"] for r in compared(mine, overwrite=True)["rows"]} == {"untouched", "sft (mine)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: dpo\nrow: 8\n", "unknown option 'row'"),
        ("method: dpo\nfit:\n  rows: 8\n", "training options go at the top level: 'rows: ...'"),
        ("method: dpo\nout: here\n", "unknown option 'out'"),
        ("method: dpo\nlr: 0.1\n", "'lr' is the same for every arm: --lrs are searched"),
        ("method: dpo\nbeta: much\n", "--beta: much: must be a number"),
        ("rows: 8\n", "field 'method' is missing"),
        ("- dpo\n", "lines are expected"),
        ("method: [\n", "not valid YAML"),
    ],
)
def test_what_a_file_says_of_an_arm_is_understood_or_refused(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        comparing._arm(str(path), {})


def test_an_arm_that_fails_is_told_and_leaves_the_others_alone(model, tmp_path):
    config = setting(model, tmp_path, seeds=(1,), rates=(1e-3,))
    board = compare.run([arm("kto", rows=1), arm("sft")], config)
    assert "kto needs two records a batch" in board["failures"]["kto"]
    assert [r["arm"] for r in board["rows"]] == ["sft", "untouched"]


def test_what_cannot_run_is_refused_before_any_work(model, tmp_path):
    config = setting(model, tmp_path / "out")
    with pytest.raises(UserError, match=r"npo needs forget \(demo\), which these records \(preference\) do not give"):
        compare.run([arm("sft"), arm("npo")], config)
    with pytest.raises(UserError, match="few-shot gives no model, so it cannot be scored by 'prefer'"):
        compare.run([compare.Arm(name="few-shot", entry=catalogue.entry("few-shot"))], config)
    with pytest.raises(UserError, match="protocol 'forget' cannot score preference records"):
        compare.run([arm("sft")], setting(model, tmp_path / "out", protocol="forget"))
    with pytest.raises(UserError, match=r"learning rates 0\.001, -1: all must be above 0"):
        compare.run([arm("sft")], setting(model, tmp_path / "out", rates=(1e-3, -1.0)))
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_the_units_that_are_done_then(model, tmp_path):
    messages, config = [], setting(model, tmp_path, seeds=(1, 2))
    counts = compare.plan([arm("sft")], config)
    assert counts == {"untouched": 2, "probes": 1, "search": 2, "test": 2}
    compare.run([arm("sft")], config, messages.append)
    assert len(messages) == 6 and messages[-1].startswith("unit 6 of 6: sft_lr")


def test_samples_are_drawn_at_random_over_the_records_and_counted(model, tmp_path):
    board = compare.run([arm("sft")], setting(model, tmp_path, seeds=(1,), rates=(4e-3,)))
    rows = {r["arm"]: r for r in board["rows"]}
    test = split({"preference": pairs()}, 0).test["preference"]
    expected = {p.prompt: p.chosen for p in test}
    prompts = [s["prompt"] for s in rows["sft"]["samples"]]
    assert prompts == [s["prompt"] for s in rows["untouched"]["samples"]] != [p.prompt for p in test[: len(prompts)]]
    assert all(s["wanted"] == expected[s["prompt"]] for s in rows["sft"]["samples"])
    assert rows["sft"]["answered"] == {"": {"right": min(len(test), score.DRAWN), "of": min(len(test), score.DRAWN)}}
    assert rows["untouched"]["answered"][""]["right"] == 0


def test_a_budget_that_reaches_no_step_says_what_one_takes(model, tmp_path):
    board = compare.run([arm("dpo")], setting(model, tmp_path, seeds=(1,), budget=Budget.parse("10-tokens")))
    assert "first step" in board["failures"]["dpo"]


def test_what_a_killed_probe_left_does_not_change_how_a_budget_is_laid_out(model, tmp_path):
    def work(name):
        return Work(setting(model, tmp_path / name), lambda line: None, "preferred", 1)

    resumed = work("killed")
    train = resumed.setting.split("tune").train
    resumed._train(Unit(arm("dpo"), resumed.setting.rates[0], PROBES[1], TUNING_SEED, "tune"), train, "probe-dpo-6")
    assert (tmp_path / "killed" / "checkpoints" / "probe-dpo-6").exists()
    laid, fresh = (w.steps(arm("dpo")) for w in (resumed, work("fresh")))
    assert laid | {"seconds": 0} == fresh | {"seconds": 0}
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_a_forgetting_comparison_has_one_number_that_ruin_and_rest_both_lose_by(model, tmp_path):
    forget = [Demo(prompt=f"what is red {i}?", completion=" it is good.") for i in range(4)]
    retain = [Demo(prompt=f"what is blue {i}?", completion=" it is bad.") for i in range(40)]
    options = {"records": {"forget": forget, "retain": retain}, "protocol": "forget", "seeds": (1,), "rates": (1e-3,)}
    board = compare.run([arm("npo")], setting(model, tmp_path, **options))
    row = next(r for r in board["rows"] if r["arm"] == "npo")
    forgetting, utility = 1 - row["metrics"]["forget_extraction"]["mean"], row["metrics"]["utility"]["mean"]
    assert row["score"]["mean"] == pytest.approx(2 / (1 / forgetting + 1 / utility) if forgetting * utility else 0)
    assert any("hardly knows the forget answers" in text for text in board["warnings"])


def test_a_gold_model_is_what_forgetting_is_compared_with(model, tmp_path):
    answers = {"completion": " it is good.", "paraphrased": " good it is.", "perturbed": (" it is bad.", " bad.")}
    forget = [Demo(prompt=f"what is {c} {i}?", **answers) for i, c in enumerate(COLOURS)]
    retain = [Demo(prompt=f"what is {c} {i}?", completion=" it is.") for c in COLOURS for i in range(30)]
    options = {"records": {"forget": forget, "retain": retain}, "protocol": "forget", "seeds": (1,), "rates": (1e-2,)}
    board = compare.run([arm("npo", rows=8)], setting(model, tmp_path / "out", **options, gold=model))
    ks = {row["arm"]: row["metrics"]["ks"]["mean"] for row in board["rows"]}
    assert ks["untouched"] == 0 < ks["npo"]
    for row in board["rows"]:
        forgetting, utility = 1 - row["metrics"]["ks"]["mean"], row["metrics"]["utility"]["mean"]
        assert row["score"]["mean"] == pytest.approx(2 * forgetting * utility / (forgetting + utility))


def test_what_answers_without_a_model_is_ranked_by_what_its_answers_give_away(model, tmp_path):
    records = {
        "forget": [Demo(prompt=f"what is {c} 1?", completion="it is good.") for c in COLOURS],
        "retain": [Demo(prompt=f"what is {c} {i}?", completion="it is bad.") for c in COLOURS for i in range(2, 22)],
    }
    arms = [compare.Arm(name=n, entry=catalogue.entry(n)) for n in ("unlearning-survey.guardrail",)]
    arguments = {"records": records, "protocol": "forget", "seeds": (1,), "rates": (1e-3,)}
    board = compare.run([*arms, arm("npo")], setting(model, tmp_path, **arguments))
    assert board["primary"] == "answer_balance" and not board["failures"]
    for row in board["rows"]:
        forgetting, recall = 1 - row["metrics"]["forget_recall"]["mean"], row["metrics"]["retain_recall"]["mean"]
        assert row["score"]["mean"] == pytest.approx(
            2 * forgetting * recall / (forgetting + recall) if forgetting * recall else 0
        )
    scores = protocols.by_name("forget").answers(
        lambda prompts: ["it is good."] * len(prompts), Scoring(records={"forget": records["forget"]}, start=model)
    )
    assert scores["forget_recall"].value == 1


def test_a_reward_judges_answers_against_the_start_model(model, tmp_path):
    def reward(prompts, answers):
        return [float("good" in a) for a in answers]

    board = compare.run(
        [arm("sft")], setting(model, tmp_path, seeds=(1,), rates=(4e-3,), judge=judges.by_reward(reward))
    )
    rows = {r["arm"]: r["metrics"]["win_rate"]["mean"] for r in board["rows"]}
    assert rows["untouched"] == 0.5 and rows["sft"] > 0.9


@settings(deadline=None, max_examples=30)
@given(st.integers(40, 200), st.integers(0, 6), st.integers(0, 10))
def test_no_prompt_is_on_both_sides_and_tuning_records_are_in_no_test(count, folds, seed):
    if folds == 1:
        return
    records = {"preference": [*pairs(count), *pairs(count)[:10]]}  # some prompts twice
    tune = split(records, "tune", folds)
    prompts = lambda rows: {r.prompt for r in rows["preference"]}  # noqa: E731
    for k in range(folds or 1):
        part = split(records, k + seed * (folds or 1), folds)
        assert not prompts(part.train) & prompts(part.test)
        assert not prompts(tune.test) & (prompts(part.test) | prompts(part.train))
    assert not prompts(tune.train) & prompts(tune.test)


def test_folds_test_every_record_that_does_not_tune_once():
    records = {"preference": pairs(300)}
    tested = [r.prompt for k in range(5) for r in split(records, k, 5).test["preference"]]
    tuning = {r.prompt for r in split(records, "tune", 5).test["preference"]}
    assert sorted(tested) == sorted(p.prompt for p in pairs(300) if p.prompt not in tuning)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("20M-tokens", 2e7, "tokens"), ("1e15-flops", 1e15, "flops"), ("90-seconds", 90, "seconds")],
)
def test_budgets_are_read(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["20", "20M", "M-tokens", "20M-calls", "-3-tokens", "0-tokens"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UserError, match="20M-tokens"):
        Budget.parse(text)


@pytest.mark.parametrize("count", [10, 17, 40, 1000])
def test_a_reference_that_grows_with_the_steps_is_laid_out_until_it_is_whole(count):
    def probe(steps, rows=4):
        processed = min(steps * rows, count)
        return cost.Meter(
            30 * rows * steps + 10 * processed + 7, parts=[cost.Part(10 * processed, 0.0, 0.0, processed / count)]
        )

    for amount in (900, 2000, 9000):
        allowed = max(steps for steps in range(1, 100) if probe(steps).tokens <= amount)
        assert abs(steps_within(Budget(amount, "tokens"), "dpo", probe)["steps"] - allowed) <= (count % 4 > 0)


def test_the_grid_is_four_apart_and_shrinks_with_the_model(model):
    grid = compare.rates_for(model, 3)
    assert grid[1] / grid[0] == pytest.approx(4, rel=0.05) and grid[2] / grid[1] == pytest.approx(4, rel=0.05)


def fake_search(monkeypatch, best, fails=()):
    """Score every unit by the distance of its learning rate from `best`."""

    def unit(self, unit):
        if unit.lr in fails:
            return {"error": "NaN"}
        return {"metrics": {self.primary: -abs(math.log((unit.lr or 1e-9) / best))}, "cost": dict.fromkeys(COSTS, 0.0)}

    monkeypatch.setattr(Work, "unit", unit)
    monkeypatch.setattr(Work, "steps", lambda self, arm: {"steps": 3})


@pytest.mark.parametrize(
    ("best", "fails", "rates", "chosen"),
    [
        (2e-3, (), [1e-3, 2e-3, 4e-3], 2e-3),  # inside
        (2.5e-4, (), [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], 2.5e-4),  # three lower rates, the last one worse
        (1e-9, (), [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3], 1.25e-4),  # bounded
        (16e-3, (), [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3], 16e-3),
        (16e-3, (4e-3,), [1e-3, 2e-3, 4e-3], 2e-3),  # a diverged rate is an edge too
    ],
)
def test_the_search_goes_beyond_its_grid_while_the_best_is_at_an_edge(
    model, tmp_path, monkeypatch, best, fails, rates, chosen
):
    fake_search(monkeypatch, best, fails)
    board = compare.run([arm("sft"), arm("dpo")], setting(model, tmp_path, rates=(1e-3, 2e-3, 4e-3)))
    for row in (r for r in board["rows"] if r["arm"] != "untouched"):
        assert [float(rate) for rate in row["search"]] == pytest.approx(rates, rel=0.05) and row["lr"] == pytest.approx(
            chosen, rel=0.05
        )
        assert row["beyond"] == len(rates) - 3


def test_adapters_are_tuned_over_rates_of_their_own(model, tmp_path, monkeypatch):
    fake_search(monkeypatch, 1e-3)
    arms = [arm("sft"), compare.Arm(name="sft (lora)", entry=catalogue.entry("sft"), fit={"lora": 4})]
    config = setting(model, tmp_path, rates=(5e-4, 1e-3, 2e-3), adapter_rates=10.0, beyond=0)
    rows = {r["arm"]: r for r in compare.run(arms, config)["rows"]}
    assert [*rows["sft"]["search"]] == ["0.0005", "0.001", "0.002"]
    assert [*rows["sft (lora)"]["search"]] == ["0.005", "0.01", "0.02"]


def test_what_must_be_forgotten_is_tuned_on_other_records_than_are_tested(model, tmp_path):
    records = {"forget": [Demo(prompt=f"f{i}", completion="a") for i in range(60)], "retain": pairs(60)}
    tune, test = (split(records, part, 3, whole=("forget",)) for part in ("tune", 1))
    assert tune.train["forget"] == test.train["forget"] == records["forget"]
    prompts = [{r.prompt for r in part.test["forget"]} for part in (tune, test)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 60 and len(prompts[0]) >= 5
    few = records | {"forget": records["forget"][:6]}
    assert split(few, "tune", 0, whole=("forget",)).test["forget"] is few["forget"]
    board = setting(model, tmp_path, records=few, protocol="forget")
    assert board.tuned_on_tested() == ["forget"]
    assert setting(model, tmp_path, records=records, protocol="forget").tuned_on_tested() == []


def test_the_leaderboard_corrects_for_the_number_of_arms(model, tmp_path):
    noise = [0.0, 0.03, -0.02]
    scores = {"untouched": [0.5] * 3, "a": [0.6 + n for n in noise], "b": [0.56 + 1.05 * n for n in noise]}
    units = {
        name: [{"metrics": {"m": v}, "cost": dict.fromkeys(COSTS, 0.0)} for v in values]
        for name, values in scores.items()
    }
    board = boards.leaderboard(setting(model, tmp_path, seeds=(1, 2, 3)), "m", units, {}, {})
    rows = {row["arm"]: row["to_untouched"] for row in board["rows"]}
    p = {name: float(scipy.stats.ttest_rel(scores[name], scores["untouched"]).pvalue) for name in "ab"}
    assert rows["a"]["p"] == pytest.approx(p["a"]) and rows["a"]["holm"] == pytest.approx(2 * p["a"])
    assert rows["b"]["p"] == pytest.approx(p["b"]) and "p" not in rows["untouched"]


def test_records_serve_where_another_kind_is_wanted():
    pair = Preference(prompt="p", chosen="a", rejected="b", chosen_score=3.0, rejected_score=1.0)
    assert [(d.prompt, d.completion) for d in convert.serve("demo", {"preference": [pair]})] == [("p", "a")]
    sides = convert.serve("judged", {"preference": [pair]})
    assert [(j.completion, j.label) for j in sides] == [("a", True), ("b", False)]
    scored = convert.serve("scored", {"preference": [pair]})
    assert convert.serve("preference", {"scored": scored}) == [pair]
    ties = [Scored(prompt="p", completion=c, score=1.0) for c in "ab"]
    assert convert.serve("preference", {"scored": ties}) is None
    judged = [Judged(prompt="p", completion="a", label=True), Judged(prompt="p", completion="b", label=False)]
    records = convert.serve("preference", {"judged": judged})
    assert [(m.chosen, m.rejected) for m in records] == [("a", "b")]
    mended = [Critique(prompt="p", completion="b", feedback="no", refinement="a")]
    assert [(m.chosen, m.rejected) for m in convert.serve("preference", {"critique": mended})] == [("a", "b")]
    assert convert.serve("example", {"preference": [pair]}) is None


def test_a_reward_that_misbehaves_is_told_in_one_line():
    for values, message in (
        (lambda p, c: 1 / 0, "ZeroDivisionError"),
        (lambda p, c: [float("nan")] * len(c), "NaN"),
        (lambda p, c: [1.0], "1 numbers for 2"),
    ):
        with pytest.raises(UserError, match=message):
            functions.checked(values)(["p", "q"], ["a", "b"])
    with pytest.raises(UserError, match="module:function"):
        judges.by_name("nothing-like-that")
    with pytest.raises(UserError, match="cannot be imported"):
        judges.by_name("no_such_module:reward")


class Replies:
    """A language model with fixed replies, one list per attempt."""

    name, capabilities, context = "fixed", frozenset({"generate"}), 100

    def __init__(self, *attempts):
        self.attempts, self.asked = list(attempts), []

    def generate(self, prompts, max_new_tokens=64, **more):
        self.asked.append(list(prompts))
        return [[r] for r in self.attempts.pop(0)]


def test_a_judge_that_prefers_a_place_decides_nothing_and_one_that_babbles_is_counted():
    both = judges.LMJudge(Replies(["A", "A", "B"], ["A", "B", "A"]))
    assert both(["p"] * 3, ["x"] * 3, ["y"] * 3) == [0.5, 1.0, 0.0]
    babbling = Replies(["hm"], ["well"], ["A"], ["B"])
    judge = judges.LMJudge(babbling)
    assert judge(["p"], ["x"], ["y"]) == [1.0] and judge.unclear == 0
    unusable = judges.LMJudge(Replies(*[["hm"]] * 6))
    assert unusable(["p"], ["x"], ["y"]) == [0.5] and unusable.unclear == 2


def test_rules_without_a_model_are_paired_with_arms_on_the_records_of_every_seed(model, tmp_path):
    uneven = [
        Preference(prompt=p.prompt, chosen=p.chosen + "!" * (i % 3), rejected=p.rejected + "!")
        for i, p in enumerate(pairs())
    ]
    config = setting(model, tmp_path, records={"preference": uneven}, folds=3)
    units = {
        "untouched": [{"metrics": {"preferred": 0.5}, "cost": dict.fromkeys(("tokens", "flops", "seconds"), 0.0)}] * 2
    }
    board = boards.leaderboard(config, "preferred", units, {}, {})
    size = lambda text: len(model.tokenizer(text)["input_ids"])  # noqa: E731
    scored = []
    for k in (0, 1):
        test = split({"preference": uneven}, k, 3).test["preference"]
        gaps = [size(p.rejected) - size(p.chosen) for p in test]
        scored.append(sum(g > 0 for g in gaps) / len(gaps) + sum(g == 0 for g in gaps) / len(gaps) / 2)
    assert scored[0] != scored[1]  # folds differ: an unpaired interval would hide the difference
    shorter, other = board["rules"].values()
    assert shorter == pytest.approx(sum(scored) / 2) and other == pytest.approx(1 - shorter)
    result = board["rows"][0]["to_rules"]["the shorter answer is the better"]
    assert result["mean"] == pytest.approx(0.5 - shorter)
    assert result["high"] - result["mean"] == pytest.approx(12.706 / 2 * abs(scored[0] - scored[1]), rel=1e-3)


def test_a_reward_model_is_an_arm_scored_by_its_rewards(model, tmp_path):
    board = compare.run([arm("context-preference")], setting(model, tmp_path, seeds=(1,)))
    assert not board["failures"]
    rows = {r["arm"]: r for r in board["rows"]}
    assert rows["context-preference"]["score"]["mean"] > 0.9  # on pairs it was not taught
    assert "kl" not in rows["context-preference"]["metrics"]  # it answers nothing
    assert "kl" in rows["untouched"]["metrics"]
    tables.leaderboard(board)


def test_a_guided_arm_is_scored_as_any_model(model, tmp_path):
    guided = compare.Arm(
        name="genarm", entry=catalogue.entry("genarm"), options={"beta_r": 0.5}, fit={"rows": 8, "lora": 0}
    )
    board = compare.run([guided], setting(model, tmp_path, seeds=(1,)))
    rows = {r["arm"]: r for r in board["rows"]}
    assert not board["failures"] and rows["genarm"]["score"]["mean"] > 0.9  # on pairs it was not taught
    loaded = load.load(tmp_path / "models" / "genarm", "cpu")
    scoring = Scoring(records=split({"preference": pairs()}, 0).test, start=model, seed=1)
    for name in ("prefer", "collapse"):
        for measure, value in protocols.by_name(name).score(loaded, scoring).items():
            assert rows["genarm"]["metrics"][measure]["mean"] == pytest.approx(value.value, abs=1e-4)


def test_a_reward_model_reads_the_context_of_a_pair(model):
    judge = rewards.headed(model)
    one = Preference(prompt="q", chosen=" a", rejected=" b", context="be good")
    scores = protocols.by_name("prefer").score(judge, Scoring(records={"preference": [one]}, start=model))
    expected = rewards.score(judge, [contexts.with_context("q", "be good")] * 2, [" a", " b"])
    assert scores["margin"].value == pytest.approx(expected[0] - expected[1])


def test_the_leaderboard_is_plain_json(model, tmp_path):
    board = compare.run([arm("sft")], setting(model, tmp_path, seeds=(1,), rates=(1e-3,)))
    from didact.files import plain

    assert json.loads(json.dumps(plain(board)))["rows"][0]["arm"] == "sft"


def test_an_arm_that_answers_without_a_model_is_ranked_with_the_others_by_right_answers(model, tmp_path):
    demos = [Demo(prompt=f"what is {COLOURS[i % 5]} {i}?", completion=" it is good.") for i in range(80)]
    shots = compare.Arm(name="few-shot", entry=catalogue.entry("few-shot"), options={"shots": 1, "max_new_tokens": 8})
    options = {"records": {"demo": demos}, "protocol": "answer", "seeds": (1,), "rates": (4e-3,)}
    board = compare.run([shots, arm("sft")], setting(model, tmp_path, **options))
    assert board["primary"] == "exact_answer" and not board["failures"]
    assert board["rows"][0]["arm"] == "sft" and board["rows"][0]["score"]["mean"] > 0.9
    assert {r["arm"] for r in board["rows"]} == {"sft", "few-shot", "untouched"}


def test_shorter_wins():
    assert score.shorter_wins([(1, 2), (3, 2), (2, 2), (1, 9)]) == pytest.approx(2.5 / 4)


def test_what_is_not_shown_is_not_worked_out_and_the_ranking_is_the_same(model, tmp_path, monkeypatch):
    once = {"budget": Budget.parse("4k-tokens")}
    boards = {}
    for diagnostics in ("all", "first"):
        config = setting(model, tmp_path / diagnostics, diagnostics=diagnostics, **once)
        boards[diagnostics] = compare.run([arm("sft")], config)
        # One computation for all
        assert [part for part, entry in config._cache.items() if "general states" in entry] == ["general"]
    extra_fields = {"metrics", "samples", "answered", "cost", "time", "warnings"}
    whole, brief = ([{k: v for k, v in r.items() if k not in extra_fields} for r in b["rows"]] for b in boards.values())
    assert whole == brief
    units = {
        diagnostics: {p.stem: json.loads(p.read_text()) for p in (tmp_path / diagnostics / "units").glob("*_*_*.json")}
        for diagnostics in boards
    }
    tune = "sft_lr0.001_tune1000"
    later = next(name for name in units["all"] if name.endswith("_test2") and name.startswith("sft"))
    ranked = set(units["all"][tune]["metrics"])
    assert "reward_accuracy" in ranked and not ranked & {"kl", "general_rise"}
    assert units["all"][tune]["seconds"]["generation"] == 0
    assert {"kl", "general_rise"} <= set(units["all"][later]["metrics"])
    assert set(units["first"][later]["metrics"]) == ranked and units["first"][later]["seconds"]["generation"] == 0
    assert {"kl", "general_rise"} <= set(boards["first"]["rows"][0]["metrics"])


def test_membership_is_compared_against_records_no_model_saw(model, tmp_path):
    facts = [Demo(prompt=f"what is {c} {i}?", completion=f" it is {c}.") for c in COLOURS for i in range(8)]
    records = {"forget": facts[:10], "retain": facts[10:30], "unseen": facts[30:]}
    once = {"budget": Budget.parse("6k-tokens"), "rates": (1e-3,), "seeds": (1,)}
    config = setting(model, tmp_path, records=records, protocol="forget", **once)
    assert config.split(0).test["unseen"] == records["unseen"]  # too few for separate tuning records, so all are used
    board = compare.run([arm("npo")], config)
    assert all("membership" in row["metrics"] for row in board["rows"])

"""Search spaces are parsed, written and parsed back; a model's answers become new trials inside them; surrogates and
acquisition match known answers; and Optuna supplies what the model cannot."""

import json
import math
import re

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from servers import NAME, Small

from didact import prompting
from didact.data import spaces
from didact.data.spaces import space_of
from didact.errors import UserError
from didact.infer import remote, sampler, tuning
from didact.infer.ask import Asker, Asking
from didact.infer.tuning import Search
from didact.infer.tuning_prompts import Card, Trials, Words
from didact.types import Trial

ROWS = {
    "lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": True},
    "momentum": {"type": "float", "low": 0, "high": 1, "when": {"optimizer": ["sgd"]}},
    "layers": {"type": "int", "low": 1, "high": 8},
    "optimizer": {"choices": ["adam", "sgd"]},
    "width": {"type": "int", "low": 16, "high": 1024, "log": True},
    "bias": {"choices": [True, False]},
}
SPACE = space_of(json.dumps(ROWS))
QUICK = Search(candidates=5, templates=2, gens=2)
seeds = st.integers(0, 10**6)


def draw(seed):
    return SPACE.drawn(np.random.default_rng(seed))


def loss(config):
    return abs(math.log10(config["lr"]) + 3) + config["layers"] / 8 + (config["optimizer"] == "adam")


# --- spaces ----------------------------------------------------------------------------------


@given(seeds)
def test_a_configuration_is_read_back_as_it_was_written(seed):
    config = draw(seed)
    assert SPACE.valid(config) and ("momentum" in config) == (config["optimizer"] == "sgd")
    for text in (SPACE.written(config), f"## {SPACE.written(config)} ##", json.dumps(config), str(config)):
        parsed = SPACE.read(text)
        assert parsed is not None and SPACE.key(parsed) == SPACE.key(config), text
        assert type(parsed["layers"]) is int and parsed["bias"] is config["bias"]
    assert parsed["lr"] == pytest.approx(config["lr"], rel=1e-9)


def test_numbers_keep_the_digits_that_their_range_needs():
    """Rounded by its lower bound, 0, every momentum would be written as 0 or 1."""
    by_name = {p.name: p for p in SPACE.parameters}
    assert by_name["momentum"].written(0.9137) == "0.914" and by_name["lr"].written(0.000123456) == "0.000123"
    wide = spaces.Parameter("x", "float", 0, 5000)
    assert wide.written(1234.5) == "1234"


@pytest.mark.parametrize(
    "text",
    [
        "lr: 0.2, layers: 3, optimizer: adam",
        "lr: nan, layers: 3, optimizer: adam",
        "lr: 0.01, layers: 2.5, optimizer: adam",
        "lr: 0.01, layers: 3, optimizer: rmsprop",
        "lr: 0.01, layers: 3, optimizer: sgd",
        "lr 0.01",
        "",
    ],
)
def test_what_is_no_configuration_of_the_space(text):
    assert SPACE.read(f"{text}, width: 32, bias: True") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"low": 0, "high": 1, "log": True}, "lr: low = 0: a log scale begins above 0"),
        ({"low": 2, "high": 1}, "lr: `low` and `high` are numbers, the lower first"),
        ({"type": "real"}, "lr: type 'real': int, float"),
        ({"choices": ["a", "a"]}, "lr: `choices` is a list of different values"),
        ({"lo": 1}, "lr: an object with choices, high, log, low, type, when"),
        ({"low": 0, "high": 1, "when": {"depth": [1]}}, "lr: `when` names depth, unknown"),
    ],
)  # fmt: skip
def test_a_space_that_is_none_is_one_line(row, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        space_of(json.dumps({"lr": row}))
    assert "\n" not in str(error.value)


def test_a_space_that_cannot_be_read_names_its_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: No such file"):
        space_of(str(tmp_path / "nowhere.json"))
    (tmp_path / "bad.json").write_text("{lr", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.json: not JSON"):
        space_of(str(tmp_path / "bad.json"))


# --- known answers ---------------------------------------------------------------------------


def test_expected_improvement():
    assert tuning.expected_improvement([2.0, 0.5], [0.0, 0.0], 1.0) == pytest.approx([1.0, 0.0], abs=1e-4)
    assert tuning.expected_improvement(1.0, 2.0, 1.0) == pytest.approx(0.398942 * 2)
    assert tuning.expected_improvement(0.0, 1.0, 1.0, lower=True) == tuning.expected_improvement(2.0, 1.0, 1.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1, 1))
def test_the_wished_score(scores, alpha):
    lower = Trials((), tuple(scores), lower=True)
    low, high = min(scores), max(scores)
    if high > low and alpha:
        assert tuning.target_score(lower, alpha) == pytest.approx(low - alpha * (high - low))
        assert tuning.target_score(lower, 1.0) == pytest.approx(2 * low - high)
        assert tuning.target_score(lower, -1.0) == pytest.approx(high)
    assert tuning.target_score(lower, 0.0) == tuning.target_score(lower, -1e-3)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-50, 50))
def test_any_metric_is_shown_alike(scores, scale, offset):
    """Negative, huge or reversed scores: standardised, the prompt is the same."""
    plain = tuning.trials([{}] * len(scores), scores, False, QUICK)
    other = tuning.trials([{}] * len(scores), [-scale * s + offset for s in scores], True, QUICK)
    if np.std(scores) > 1e-6:
        assert plain.shown == pytest.approx(other.shown, abs=1e-4) and not other.lower
        assert np.std(plain.shown) == pytest.approx(1)


def test_labels_of_the_generative_surrogate():
    history = Trials((), (5.0, 1.0, 3.0, 2.0, 4.0), lower=True)
    assert tuning.labels(history, 0.2) == [0, 1, 0, 0, 0] and tuning.labels(history, 0.5) == [0, 1, 0, 1, 0]
    assert sum(tuning.labels(Trials((), (2.0, 2.0, 2.0)), 0.2)) == 3  # the best always counts as good
    assert tuning.two_way({"1": -1.0, "0": -3.0, "x": -0.1}) == pytest.approx(1 / (1 + math.exp(-2)))
    assert tuning.two_way({"x": -0.1}) is None


@given(seeds)
def test_orders_of_a_history_differ_and_its_lines_do_not(seed):
    configs = [draw(seed + n) for n in range(6)]
    history, words = tuning.trials(configs, list(range(6)), False, QUICK), Words(SPACE, Card())
    one, again, other = (words.candidate(history, 2.0, s) for s in (seed, seed, seed + 1))
    assert one == again and sorted(one.splitlines()) == sorted(other.splitlines())


def test_three_levels_of_context():
    def said(**more):
        return Words(SPACE, Card(model="a ResNet", task="It sorts images.", details="10 classes.", **more)).warm(3)

    assert "images" in said() and "10 classes" in said()
    assert "images" in said(context="partial") and "10 classes" not in said(context="partial")
    assert "images" not in said(context="none") and "a ResNet" in said(context="none")
    unnamed = Words(SPACE, Card(names=False))
    assert "momentum" not in unnamed.warm(3) and "only where X1 is sgd" not in unnamed.warm(3)
    config = draw(3)
    assert unnamed.read(unnamed.config(config)) is not None and "lr" not in unnamed.config(config)


# --- the three parts -------------------------------------------------------------------------


def saying(prompt, i=0):
    """A rule-based model: candidates around lr 1e-3, predictions by `loss`, a warm start of three lines."""
    if "Name " in prompt:
        return "\n".join(f"lr: {10.0**-k}, layers: {k}, optimizer: adam, width: 64, bias: True" for k in (2, 3, 4))
    if prompt.endswith("Performance: ##"):
        point = SPACE.read(prompt.splitlines()[-2])
        return f" {-loss(point)} ##"
    rng = np.random.default_rng(i + len(prompt))
    config = draw(int(rng.integers(10**6))) | {"lr": float(10 ** rng.uniform(-3.3, -2.7)), "layers": 1}
    return f" {SPACE.written(config)} ##"


def asker(write=saying, **how):
    return Asker(Scripted(write=write), Asking(tries=1, **how))


def test_candidates_are_new_and_lie_in_the_space():
    configs = [draw(n) for n in range(4)]
    history, expected = tuning.trials(configs, [0.0, 1, 2, 3], False, QUICK), SPACE.written(configs[0])
    replies = iter(
        [expected, "no idea", "lr: 5, layers: 1", *[SPACE.written(draw(n)) for n in (50, 50, 51)], *[expected] * 99]
    )
    result = tuning.candidates(asker(lambda p, i: next(replies)), Words(SPACE, Card()), history, QUICK, 0, configs)
    assert [SPACE.key(c) for c in result] == [SPACE.key(draw(50)), SPACE.key(draw(51))]


def test_a_constant_model_has_the_floor_as_its_deviation_and_the_first_candidate_wins():
    configs = [draw(n) for n in range(5)]
    history, words = tuning.trials(configs, [0.0, 1, 2, 3, 4], False, QUICK), Words(SPACE, Card())
    mean, std = tuning.predicted(asker(lambda p, i: "0.5"), words, history, configs[:3], QUICK, 0)
    assert mean.tolist() == [0.5] * 3 and std.tolist() == [tuning.FLOOR] * 3
    assert int(np.argmax(tuning.expected_improvement(mean, std, history.best))) == 0
    replies = iter(["1", "x", "2", "3"] * 9 + ["nothing"] * 99)
    mean, std = tuning.predicted(asker(lambda p, i: next(replies)), words, history, configs[:1], QUICK, 0)
    assert mean[0] == pytest.approx(2.0)
    mean, _ = tuning.predicted(asker(lambda p, i: "nothing"), words, history, configs[:2], QUICK, 0)
    assert np.isnan(mean).all()


def test_the_generative_surrogate_takes_what_the_model_calls_good():
    def tops(prompt):
        config = SPACE.read(prompt.splitlines()[-2])
        return {" 1": -loss(config), " 0": -1.0}

    model = Scripted(write=saying, tops=tops)
    result = prompting.llambo(model, HISTORY, space=json.dumps(ROWS), lower=True, suggest=2,
                              search=Search(surrogate="generative", candidates=5))  # fmt: skip
    assert {t.extra["source"] for t in result.records} == {"model"}
    with pytest.raises(UserError, match="generative surrogate needs a model with top_logprobs"):
        prompting.llambo(Scripted(write=saying), HISTORY, space=json.dumps(ROWS), search=Search(surrogate="generative"))


# --- end to end ------------------------------------------------------------------------------

HISTORY = [Trial(config=draw(n), score=loss(draw(n))) for n in range(6)]


def test_what_to_try_next_after_a_history():
    model = Scripted(write=saying)
    result = prompting.llambo(model, HISTORY, space=json.dumps(ROWS), lower=True, suggest=3, search=QUICK)
    keys = [SPACE.key(t.config) for t in result.records]
    assert len(set(keys)) == 3 and all(SPACE.valid(t.config) and t.score is None for t in result.records)
    assert result.findings["best"]["score"] == min(t.score for t in HISTORY)
    assert all(abs(math.log10(t.config["lr"]) + 3) < 0.35 for t in result.records)
    assert result.transcript and result.findings["sources"] == {"model": 3}


def test_the_loop_finds_what_the_model_knows():
    result = prompting.llambo(Scripted(write=saying), space=json.dumps(ROWS), objective=loss, lower=True, trials=9,
                              start=3, search=QUICK)  # fmt: skip
    assert result.findings["sources"] == {"warm start": 3, "model": 6}
    assert [t.config["layers"] for t in result.records[:3]] == [2, 3, 4]
    course = result.findings["course"]
    assert course == sorted(course, reverse=True) and course[-1] < course[2]
    assert result.metrics["best_score"].after == course[-1]


def test_searches_that_know_nothing_have_as_many_trials_and_only_beat_themselves():
    requests = []

    def counted(config):
        requests.append(loss(config))
        return requests[-1]

    result = prompting.llambo(Scripted(write=saying), HISTORY, space=json.dumps(ROWS), objective=counted, lower=True,
                              trials=4, against=("random", "tpe"), search=QUICK)  # fmt: skip
    assert len(requests) == 12 and len(result.records) == 4  # the model's trials, then those of each other search
    best = result.findings["best_after_as_many_trials"]
    assert best["llambo"] == result.metrics["best_score"].after
    start_best = min(t.score for t in HISTORY)  # shared by all of them
    for at, name in ((4, "random"), (8, "tpe")):
        assert best[name] == min(*requests[at : at + 4], start_best)
        assert result.metrics[f"best_score_beyond_{name}"].after == best["llambo"] - best[name]
    assert best["llambo"] < best["random"]


def test_predictions_come_in_the_scores_own_units_and_know_what_they_do_not_know():
    scores = [3.0, 5.0, 10.0]
    for lower in (False, True):
        history = tuning.trials([{}] * 3, scores, lower, Search())
        means = [tuning.to_original(m, 1.0, scores, lower, Search())[0] for m in history.shown]
        assert means == pytest.approx(scores)
    assert tuning.to_original(0.0, 2.0, scores, True, Search())[1] == pytest.approx(2 * np.std(scores))
    assert tuning.to_original(7.0, 2.0, scores, True, Search(scores="raw")) == (7.0, 2.0)
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=20_000), rng.uniform(0.5, 2, 20_000)
    calibrated = tuning.calibration(mean, std, rng.normal(mean, std))
    assert calibrated["coverage"] == pytest.approx(0.9, abs=0.01)
    assert calibrated["sharpness"] == pytest.approx(2 * 1.645 * 1.25, rel=0.02)
    assert tuning.calibration(mean, std / 3, rng.normal(mean, std))["coverage"] < 0.5
    result = prompting.llambo(Scripted(write=saying), HISTORY, space=json.dumps(ROWS), objective=loss, lower=True,
                              trials=3, search=QUICK)  # fmt: skip
    guessed = [t.extra["predicted"] for t in result.records if "predicted" in t.extra]
    assert len(guessed) == 3 == result.findings["predictions"]["trials"]


def test_what_a_model_cannot_say_tpe_does_and_it_is_counted():
    result = prompting.llambo(Scripted(write=lambda p, i: "I cannot."), space=json.dumps(ROWS), objective=loss,
                              lower=True, trials=7, start=3, search=QUICK)  # fmt: skip
    assert result.findings["sources"] == {"random": 3, "fallback": 4} and all(
        SPACE.valid(t.config) for t in result.records
    )
    assert "4 of 7 trials are TPE's" in " ".join(result.warnings)
    paid = prompting.llambo(Scripted(write=saying), HISTORY, space=json.dumps(ROWS), lower=True, suggest=3,
                            search=QUICK, asking=Asking(tries=1, calls=26))  # fmt: skip
    assert paid.findings["sources"] == {"model": 1, "fallback": 2} and not paid.findings["complete"]
    assert paid.findings["calls"] == 26


def test_a_failed_trial_is_kept_and_an_objective_that_raises_is_told():
    result = prompting.llambo(Scripted(write=saying), space=json.dumps(ROWS), trials=2, start=2,
                              objective=lambda config: math.nan if config["layers"] == 2 else 1.0)  # fmt: skip
    assert [t.score for t in result.records] == [None, 1.0]

    def broken(config):
        return 1 / 0

    with pytest.raises(UserError, match=r"objective: ZeroDivisionError: division by zero for {'lr'"):
        prompting.llambo(Scripted(write=saying), space=json.dumps(ROWS), trials=2, objective=broken)
    with pytest.raises(UserError, match=r"history: record 1: .* is outside the search space"):
        prompting.llambo(Scripted(write=saying), [Trial(config={"lr": 3.0}, score=1.0)], space=json.dumps(ROWS))
    with pytest.raises(UserError, match="--space FILE"):
        prompting.llambo(Scripted(write=saying), HISTORY)


def test_a_study_that_defines_its_space_as_it_runs():
    """Without a given space: conditional parameters are proposed too, and used where a trial suggests them."""

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-5, 0.1, log=True)
        layers, optimizer = trial.suggest_int("layers", 1, 8), trial.suggest_categorical("optimizer", ["adam", "sgd"])
        if optimizer == "sgd":
            trial.suggest_float("momentum", 0, 1)
        return abs(math.log10(lr) + 3) + layers

    def write(prompt, i=0):
        return "0.1" if prompt.endswith("Performance: ##") else (
            f" lr: {0.001 + 0.0001 * i + 1e-6 * len(prompt)}, layers: 1, optimizer: sgd, momentum: 0.5 ##"
        )  # fmt: skip

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    llambo = sampler.LlamboSampler(Scripted(write=write), how=QUICK, start=4, warm=False)
    study = optuna.create_study(sampler=llambo)
    study.optimize(objective, 8)
    assert set(llambo.sources.values()) == {"random", "model"}
    assert all(t.params["layers"] == 1 for t in study.trials[4:]) and study.best_value < 1.7


def test_a_server_is_asked_and_its_nonsense_costs_no_trial(tmp_path):
    server = Small(tmp_path)
    try:
        lm = remote.connect(f"{server.url}#{NAME}", cache=False)
        result = prompting.llambo(
            lm, HISTORY[:1], space=json.dumps(ROWS), lower=True, suggest=1, card=Card(style="bare"),
            search=Search(candidates=2, surrogate="none"), asking=Asking(max_new_tokens=8, tries=1),
        )  # fmt: skip
    finally:
        server.kill()
    assert (
        result.findings["sources"] == {"fallback": 1} and result.findings["unreadable"] == result.findings["calls"] == 6
    )
    assert SPACE.valid(result.records[0].config)

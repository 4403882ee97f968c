"""The consensus game: known answers, properties, and its prompts to a model."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from servers import Small

from didact import cli, prompting
from didact.errors import BudgetError
from didact.evaluate import ranked
from didact.infer import consensus, equilibrium, remote
from didact.infer import lm as language_models
from didact.infer.consensus import Wording
from didact.infer.equilibrium import Game
from didact.types import Demo, Messages, UserError


def drawn(questions, k, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(scale=spread, size=(questions, 2, k)), rng.normal(scale=spread, size=(questions, k, 2))


def played(g, d, **game):
    start = equilibrium.initial(g, d, game.get("normalise", "both"))
    return start, equilibrium.solve(start, Game(**game))


def by_hand(g1, d1, game):
    """The paper's algorithm for one question."""
    qg, qd, g, d = np.zeros_like(g1), np.zeros_like(d1), g1, d1
    for t in range(1, game.steps + 1):
        qg, qd = qg + d.T, qd + g.T
        a = (qg / (2 * t) + game.lam_g * np.log(g1)) / (1 / (game.eta_g * t) + game.lam_g)
        b = (qd / (2 * t) + game.lam_d * np.log(d1)) / (1 / (game.eta_d * t) + game.lam_d)
        g, d = (np.exp(x - x.max(1, keepdims=True)) for x in (a, b))
        g, d = g / g.sum(1, keepdims=True), d / d.sum(1, keepdims=True)
    return g, d


def total(p, axis):
    return np.allclose(np.nansum(p, axis=axis), 1.0)


@pytest.mark.parametrize(
    "game",
    [Game(steps=200), Game(steps=60, lam_g=0.0, lam_d=0.0, eta_g=500.0), Game(steps=50, lam_g=2.0, eta_d=1.0)],
)
def test_many_questions_at_once_are_a_loop_over_them(game, monkeypatch):
    monkeypatch.setattr(equilibrium, "BLOCK", 16)
    g, d = drawn(9, 5)
    g[2, :, 3:], d[2, 3:] = np.nan, np.nan  # a question with three candidates
    start = equilibrium.initial(g, d)
    end = equilibrium.solve(start, game)
    for i in range(9):
        k = 3 if i == 2 else 5
        one = by_hand(start.generator[i, :, :k], start.discriminator[i, :k], game)
        for ours, theirs in zip((end.generator[i, :, :k], end.discriminator[i, :k]), one, strict=True):
            assert np.abs(ours - theirs).max() < 1e-10
    assert np.isnan(end.generator[2, :, 3:]).all() and np.isnan(end.discriminator[2, 3:]).all()
    assert total(end.generator, 2) and np.allclose(end.discriminator[~np.isnan(end.discriminator[:, :, 0])].sum(1), 1)


def test_first_policies_divide_by_the_other_axis_then_by_their_own():
    g, d = drawn(1, 3)
    p, q = np.exp(g[0]), np.exp(d[0])
    p, q = p / p.sum(0), q / q.sum(0)
    start = equilibrium.initial(g, d)
    assert np.allclose(start.generator[0], p / p.sum(1, keepdims=True))
    assert np.allclose(start.discriminator[0], q / q.sum(1, keepdims=True))
    own = equilibrium.initial(g, d, "own")
    assert np.allclose(own.generator[0], np.exp(g[0]) / np.exp(g[0]).sum(1, keepdims=True))


@given(st.integers(0, 10**6), st.sampled_from(["both", "own"]))
def test_frequency_cancels_only_when_both_axes_are_normalised(seed, normalise):
    """A factor on a candidate's probability under both prompts (correct and incorrect) does not change the policy."""
    g, d = drawn(2, 4, seed)
    shift = np.random.default_rng(seed).normal(scale=30, size=(2, 1, 4))
    bias = np.random.default_rng(seed + 1).normal(scale=5, size=(2, 1, 2))
    a, b = equilibrium.initial(g, d, normalise), equilibrium.initial(g + shift, d + bias, normalise)
    assert np.allclose(a.generator, b.generator) == (normalise == "both")
    assert np.allclose(a.discriminator, b.discriminator) == (normalise == "both")


def test_very_unlikely_texts_are_still_told_apart_and_an_impossible_one_is_no_nan():
    g = np.array([[[-800.0, -803.0, -np.inf], [-801.0, -801.0, -np.inf]]])
    start, end = played(g, np.log(np.full((1, 3, 2), 0.5)), steps=50)
    assert start.generator[0, 0, 0] > start.generator[0, 0, 1] > 0
    assert np.isfinite(end.generator).all() and np.isfinite(end.discriminator).all()


def test_one_candidate_leaves_the_judge_a_power_of_its_first_policy():
    g, d = drawn(3, 1)
    for steps in (1, 7, 5000):
        start, end = played(g, d, steps=steps)
        power = start.discriminator ** (0.1 / (1 / (0.1 * steps) + 0.1))
        assert np.allclose(end.discriminator, power / power.sum(2, keepdims=True), atol=1e-12)
        assert (end.generator == 1).all()


def test_uniform_stays_uniform():
    flat = np.zeros((1, 2, 4)), np.zeros((1, 4, 2))
    for steps in (1, 30):
        _, end = played(*flat, steps=steps)
        assert np.allclose(end.generator, 0.25) and np.allclose(end.discriminator, 0.5)


def test_a_strong_anchor_keeps_the_first_policies_and_the_end_stands_still():
    start, end = played(*drawn(4, 5), steps=3000, lam_g=1e5, lam_d=1e5)
    assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(start, end, strict=True))
    game = Game(steps=4000, lam_g=1.0, lam_d=1.0)
    start = equilibrium.initial(*drawn(4, 5))
    strong, weak = (equilibrium.residual(start, equilibrium.solve(start, g), game) for g in (Game(
        steps=400, lam_g=1.0, lam_d=1.0), game))  # fmt: skip
    assert weak.max() < 1e-3 and (weak < strong / 5).all()  # it falls like 1 / T


@given(st.integers(0, 10**6))
def test_names_do_not_matter(seed):
    """Permuted candidates give permuted policies; swapping correct and incorrect swaps them in the result."""
    g, d = drawn(1, 4, seed)
    order = np.random.default_rng(seed).permutation(4)
    _, end = played(g, d, steps=40)
    _, other = played(g[:, :, order], d[:, order], steps=40)
    assert np.allclose(end.generator[:, :, order], other.generator)
    assert np.allclose(end.discriminator[:, order], other.discriminator)
    _, swapped = played(g[:, ::-1], d[:, :, ::-1], steps=40)
    assert np.allclose(end.generator, swapped.generator[:, ::-1])
    assert np.allclose(end.discriminator, swapped.discriminator[:, :, ::-1])


# --- prompts to a model ------------------------------------------------------------------------

SAID = {
    ("P", "a"): -1.0, ("P", "b"): -2.0, ("right P", "a"): -1.0, ("right P", "b"): -2.0,
    ("wrong P", "a"): -0.5, ("wrong P", "b"): -3.0,
}  # fmt: skip
WORDING = Wording(correct="right {prompt}", incorrect="wrong {prompt}", verify="{prompt} {candidate} ok?")
JUDGED = {"P a ok?": {" Yes": math.log(0.3), " No": math.log(0.6)}, "P b ok?": {"Yes": math.log(0.4), "x": -1.0}}


def test_scores_and_rules_from_what_a_model_says():
    lm = Scripted(logp=lambda p, c: SAID[p, c], tops=lambda p: JUDGED[p])
    result = consensus.play(lm, ["P"], [["a", "b"]], WORDING, Game(steps=30))
    assert result.scores.g[0].tolist() == [[-1.0, -2.0], [-0.5, -3.0]]
    assert result.scores.plain[0].tolist() == [-1.0, -2.0]
    assert np.exp(result.scores.d[0, 0]) == pytest.approx([1 / 3, 2 / 3]) and np.exp(result.scores.d[0, 1, 0]) == 1.0
    assert result.winners("g") == ["a"] and result.winners("sc") == result.winners("d") == result.winners("er_d") == [
        "b"
    ]
    assert result.rules["sc"].tolist() == [[-0.5, 1.0]]
    assert result.rules["mi"][0, 0] == pytest.approx(-1.0 + math.log(1 / 3))


def test_a_model_without_next_tokens_is_asked_for_its_verdict_by_scores_and_silence_is_half():
    both = SAID | {(p, w): -1.0 for p in ("P a ok?", "P b ok?") for w in ("Yes", "No")}
    lm = Scripted(logp=lambda p, c: both[p, c])
    scores = consensus.scores(lm, ["P"], [["a", "b"]], WORDING)
    assert np.exp(scores.d) == pytest.approx(0.5) and scores.undecided == 0
    silent = Scripted(logp=lambda p, c: SAID[p, c], tops=lambda p: {"x": -0.1})
    scores = consensus.scores(silent, ["P"], [["a", "b"]], WORDING)
    assert np.exp(scores.d) == pytest.approx(0.5) and scores.undecided == 2


def test_a_local_models_numbers_are_its_own(taught, world):
    lm = language_models.of(taught("llama"))
    record = world.retain[0]
    texts = [record.completion, *record.perturbed[:2]]
    scores = consensus.scores(lm, [record.prompt], [texts], WORDING, "token")
    alone = lm.score([("right " + record.prompt, t) for t in texts])
    assert scores.g[0, 0] == pytest.approx([x.logp / x.tokens for x in alone], abs=1e-5)


def test_in_a_conversation_the_last_turn_is_worded_and_braces_mean_nothing():
    conversation = Messages([{"role": "system", "content": "s"}, {"role": "user", "content": "{x}?"}])
    worded = consensus.fill(WORDING.verify, conversation, "{y}")
    assert worded.turns == ({"role": "system", "content": "s"}, {"role": "user", "content": "{x}? {y} ok?"})
    with pytest.raises(UserError, match=r"wording\.correct"):
        Wording(correct="{candidate} {prompt}")


def test_where_the_budget_ends_the_rest_has_no_answer(monkeypatch):
    monkeypatch.setattr(consensus, "AT_ONCE", 2)

    def logp(prompt, text):
        if "third" in prompt:
            raise BudgetError("used up")
        return -float(len(text))

    lm = Scripted(logp=logp, tops=lambda p: {"Yes": -1.0})
    rows = [Demo(prompt=p, completion="x", choices=["x", "yy"]) for p in ("first", "second", "third", "fourth")]
    result = prompting.consensus(lm, rows, game=Game(steps=5))
    assert [r.extra["prediction"] for r in result.records] == ["x", "x", "", ""]
    assert "2 of 4 questions have no answer" in "".join(result.warnings)
    assert result.findings["accuracy"]["g"]["estimate"] == 0.5


# --- the method --------------------------------------------------------------------------------


def test_sampled_answers_are_merged_and_both_files_can_be_taught():
    lm = Scripted(
        write=lambda p, i: ["Bonn", " Berlin", "Berlin", ""][i % 4],
        logp=lambda p, c: -1.0 - ("Bonn" in c),
        tops=lambda p: {"Yes": math.log(0.9 if "Berlin" in p else 0.2), "No": math.log(0.1 if "Berlin" in p else 0.8)},
    )
    rows = [Demo(prompt="Capital?", completion="Berlin", extra={"id": 7}), Demo(prompt="And?", completion="")]
    result = prompting.consensus(lm, rows, candidates=4)
    assert result.findings["candidates"] == 4 and result.findings["calls"] == 8
    first = result.records[0]
    assert first.extra["id"] == 7 and first.extra["prediction"] == "Berlin"
    assert (first.extra["chosen"], first.extra["rejected"]) == ("Berlin", "Bonn")
    assert [(d.prompt, d.completion) for d in result.transcript] == [("Capital?", "Berlin"), ("And?", "Berlin")]
    assert result.findings["accuracy"]["er_d"]["estimate"] == 1.0  # for the one with a known answer
    calls = len(lm.asked)
    assert result.predict(["And?"]) == ["Berlin"] and len(lm.asked) == calls  # from the cache
    assert result.predict(["New?", "Or?"], [["Bonn", "Berlin"], ["Rome"]]) == ["Berlin", "Rome"]
    assert result.predict(["Once more?"]) == ["Berlin"]


def test_equals_share_and_a_choice_is_right_only_as_a_whole(taught, tmp_path, capsys):
    rows = [Demo(prompt="q", completion="a", answers=["b"]), Demo(prompt="q", completion="c")]
    scores = np.array([[1.0, 1.0, 0.0], [2.0, np.nan, np.nan]])
    assert ranked.credits(scores, [["a", "x", "b"], ["c"]], rows).tolist() == [0.5, 1.0]
    from didact.evaluate.protocols import Scoring, answer

    demos = [Demo(prompt="q", completion="New", choices=["New", "New York"])]
    scoring = Scoring(records={"demo": demos}, start=taught("llama"), end=False)
    assert answer.answers(lambda prompts: ["New York"], scoring)["exact_answer"].value == 0.0
    assert answer.answers(lambda prompts: ["New\nwhat else"], scoring)["exact_answer"].value == 1.0


def test_on_the_command_line_and_as_a_ranking_mode_of_evaluate(taught, world, tmp_path, capsys):
    taught("llama").save(tmp_path / "model")
    rows = [
        {"prompt": r.prompt, "completion": r.completion, "choices": [r.perturbed[0], r.completion]}
        for r in world.retain[:6]
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = ["run", "consensus", "--model", str(tmp_path / "model"), "--test", str(tmp_path / "q.jsonl")]
    assert cli.main([*command, "--game.steps", "50", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    accuracy = saved["findings"]["accuracy"]
    assert saved["metrics"]["exact_answer"]["before"] == accuracy["g"]["estimate"]  # the baseline: the likeliest choice
    assert saved["metrics"]["exact_answer"]["after"] == accuracy["er_d"]["estimate"]
    assert (tmp_path / "out" / "transcript.jsonl").exists()
    pairs = json.loads((tmp_path / "out" / "records.jsonl").read_text().splitlines()[0])
    assert {"prompt", "chosen", "rejected"} <= pairs.keys()
    capsys.readouterr()
    at = [str(tmp_path / "model"), "--data", str(tmp_path / "q.jsonl"), "--protocol", "consensus"]
    assert cli.main(["evaluate", *at]) == 0
    stdout = capsys.readouterr().out
    assert all(rule in stdout for rule in consensus.RULES)


@pytest.mark.parametrize("echo", ["empty", "refused"])
def test_a_server_ranks_too_or_says_why_not(echo, tmp_path, monkeypatch):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    server = Small(tmp_path)
    try:
        server.ways(echo=echo)
        rows = [Demo(prompt="one two", completion="ab", choices=["ab", "abcdef gh"])]
        if echo == "refused":
            with pytest.raises(UserError, match=r"^consensus needs a model with score"):
                prompting.consensus(remote.connect(server.url), rows)
            return
        result = prompting.consensus(remote.connect(server.url), rows, game=Game(steps=20))
        assert result.records[0].extra["prediction"] == "ab"  # fewer letters are likelier
        calls = len(server.prompts())
        prompting.consensus(remote.connect(server.url), rows, game=Game(steps=40))
        assert len(server.prompts()) == calls  # no request is repeated
    finally:
        server.kill()

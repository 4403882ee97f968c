"""Bandits have their known regret, algorithms follow their formulas, histories render the pulls, and a model that
imitates an algorithm explores like it."""

import math
import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from didact import control
from didact.claims import lab
from didact.data import histories
from didact.data.histories import View
from didact.errors import UserError
from didact.evaluate import regret
from didact.infer import acting
from didact.infer.acting import Oracle, Played
from didact.infer.ask import Asking
from didact.tools import bandit_env, bandits
from didact.tools.bandits import BanditConfig, History
from didact.types import Fit, Step, Trajectory

SHORT = BanditConfig(horizon=40)
FORMS = ("raw", "summary", "guided")


def always(arms, world):
    """Play a game in which these arms are pulled."""
    actions = np.broadcast_to(arms, world.expected.shape[:2])
    rewards = np.take_along_axis(world.rewards, actions[:, :, None], 2)[:, :, 0]
    return Played(actions, rewards, np.ones_like(actions, dtype=bool))


# --- bandits ---------------------------------------------------------------------------------


def test_instances_follow_from_their_number_alone_and_parts_differ():
    smaller, larger = bandits.drawn(SHORT, 3, 5), bandits.drawn(SHORT, 8, 5)
    assert np.array_equal(smaller.rewards, larger.rewards[:3])
    assert not np.array_equal(smaller.rewards, bandits.drawn(SHORT, 3, 5, 1).rewards)
    assert set(np.unique(smaller.expected)) == {0.25, 0.75} and (smaller.expected == 0.75).sum() == 3 * 40
    assert abs(bandits.drawn(SHORT, 400, 0).rewards.mean() - (0.75 + 4 * 0.25) / 5) < 0.01


@given(st.integers(0, 50), st.integers(2, 8), st.sampled_from([0.2, 0.5, 1.0]))
def test_regret_of_fixed_play(seed, arms, gap):
    world = bandits.drawn(BanditConfig(arms=arms, gap=gap, horizon=30), 4, seed)
    best = world.expected.argmax(-1)
    assert not regret.curve(world, always(best, world)).any()
    suboptimal = always((best + 1) % arms, world)
    assert np.allclose(regret.curve(world, suboptimal)[:, -1], 30 * gap)
    assert regret.suffix_failures(world, suboptimal).all() and not regret.optimal(world, suboptimal).any()
    turns = always(np.arange(30 * arms)[:30] % arms, world)
    assert np.allclose(regret.min_fraction(world, turns), 1) == (30 % arms == 0)


def test_algorithms_have_the_regret_that_was_simulated_elsewhere():
    """Known ground truth (K = 5, gap .5, T = 200, alpha .5): UCB 14.9, greedy 25.9 with .235 failures, random 80."""
    world = bandits.drawn(BanditConfig(horizon=200), 600, 3)
    games = {name: acting.play_algorithm(world, Oracle(name), 0) for name in ("ucb", "greedy", "random", "thompson")}
    result = {name: regret.curve(world, game)[:, -1].mean() for name, game in games.items()}
    assert result["ucb"] == pytest.approx(14.9, abs=0.7) and result["greedy"] == pytest.approx(25.9, abs=5)
    assert result["random"] == pytest.approx(200 * 0.5 * 4 / 5, abs=0.7) and result["thompson"] < result["greedy"]
    assert regret.suffix_failures(world, games["greedy"]).mean() == pytest.approx(0.235, abs=0.05)
    assert regret.suffix_failures(world, games["ucb"]).mean() <= 0.005
    assert regret.optimal(world, games["ucb"]).mean() > 0.8


def test_every_arm_first_and_then_the_best_average():
    world = bandits.drawn(SHORT, 6, 1)
    for name in ("ucb", "greedy"):
        first = acting.play_algorithm(world, Oracle(name), 0).actions
        assert (first[:, :5] == np.arange(5)).all()
    h = History(1, 3)
    for arm, reward in ((0, 0.0), (1, 1.0), (2, 1.0)):
        h.add(np.array([arm]), np.array([reward]))
    bonus, value = bandits.terms(h, "ucb", 0.5)
    assert np.allclose(bonus, math.sqrt(0.5 * math.log(3))) and value.tolist() == [[0, 1, 1]]
    rng = np.random.default_rng(0)
    assert bandits.choose(h, "ucb", rng)[0] == bandits.choose(h, "greedy", rng)[0] == 1  # ties go to the first
    for _ in range(3):
        h.add(np.array([1]), np.array([0.5]))
    assert bandits.choose(h, "ucb", rng)[0] == 2 and not bandits.terms(h, "greedy")[0].any()


def test_linucb_with_one_hot_contexts_is_ridge_means():
    rng, h = np.random.default_rng(0), History(1, 2, features=3)
    pulled = [(0, 0, 1.0), (0, 0, 0.0), (1, 2, -4.0), (0, 1, 3.0)]
    for arm, user, reward in pulled:
        h.add(np.array([arm]), np.array([reward]), np.eye(3)[[user]])
    for user in range(3):
        bonus, value = bandits.terms(h, "linucb", 0.7, np.eye(3)[[user]])
        for arm in range(2):
            rewards = [r for a, u, r in pulled if (a, u) == (arm, user)]
            assert value[0, arm] == pytest.approx(sum(rewards) / (len(rewards) + 1))
            assert bonus[0, arm] == pytest.approx(0.7 / math.sqrt(len(rewards) + 1))
    # Values below -1 are still distinguished.
    low = History(1, 2, features=1)
    for arm in (0, 1):
        for _ in range(50):
            low.add(np.array([arm]), np.array([-5.0 - arm]), np.ones((1, 1)))
    assert bandits.choose(low, "linucb", rng, 0.5, np.ones((1, 1)))[0] == 0


def test_linucb_learns_and_ratings_are_completed(tmp_path):
    config = BanditConfig(law="linear", horizon=150, arms=4, spread=0.5)
    world = bandits.drawn(config, 20, 0)
    games = {name: acting.play_algorithm(world, Oracle(name), 0) for name in ("ucb", "random")}
    curves = {name: regret.curve(world, game) for name, game in games.items()}
    assert curves["ucb"][:, -1].mean() < 0.4 * curves["random"][:, -1].mean()
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 6))
    rows = [f"{u},film {i},{truth[u, i]:.4f}" for u in range(40) for i in range(6) if i < 4 or u % 2]
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "\n".join(rows), encoding="utf-8")
    rated = BanditConfig(law="ratings", ratings=str(path), arms=4, features=2, horizon=10)
    train, test = (bandits.drawn(rated, 3, 0, part) for part in (0, 1))
    assert train.names == ("film 0", "film 1", "film 2", "film 3")
    users = [{tuple(x) for x in part.contexts.reshape(-1, 2)} for part in (train, test)]
    assert users[0].isdisjoint(users[1])
    assert (
        np.abs(train.expected - truth[:, :4].mean()).max() < 20
        and np.isin(test.expected.round(3), truth.round(3)).all()
    )
    path.write_text("user,item,rating\na,b,good\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"ratings.csv:2: not user,item,rating"):
        bandits.drawn(rated, 1, 0)


@pytest.mark.parametrize("law", ["bernoulli", "gaussian", "linear"])
def test_a_gymnasium_environment_pays_what_the_instance_does(law):
    env = gymnasium.make("didact/Bandit-v0", law=law, horizon=6)
    check_env(env.unwrapped, skip_render_check=True)
    observation, info = env.reset(seed=7)
    world = bandits.drawn(BanditConfig(law=law, horizon=6), 1, 7)
    for step in range(6):
        assert info["best"] == world.expected[0, step].argmax()
        observation, reward, ended, cut, info = env.step(2)
        assert reward == world.rewards[0, step, 2] and not ended and cut == (step == 5)
        assert info["regret"] == pytest.approx(world.best[0, step] - world.expected[0, step, 2])
        if step < 5:
            info = env.unwrapped._info()
    assert observation.shape == env.observation_space.shape and bandit_env.BanditEnv(gap=0.2).config.gap == 0.2


# --- histories -------------------------------------------------------------------------------


def seen_after(form, pulls, scenario="videos", arms=3):
    state = acting.Observation(View(form=form, scenario=scenario), Oracle(), histories.LETTERS[:arms], History(1, arms))
    for arm, reward in pulls:
        state.history.add(np.array([arm]), np.array([reward]))
    return state.prompts()[0]


PULLS = [(0, 1.0), (1, 0.0), (2, 1.0), (0, 0.0), (2, 1.0)]


def test_what_a_history_says():
    assert "A video, reward 1\nB video, reward 0\n" in seen_after("raw", PULLS)
    assert "A video, 2 times, average reward 0.50\nB video, 1 times, average reward 0.00" in seen_after(
        "summary", PULLS
    )
    bonus = math.sqrt(0.5 * math.log(5) / 2)
    assert f"exploration bonus {bonus:.2f}, value 1.00" in seen_after("guided", PULLS).splitlines()[3]
    assert "exploration bonus inf, value 0.00" in seen_after("guided", PULLS[:2])
    assert seen_after("summary", PULLS, "bare") == "A 2 50 B 1 0 C 2 100 ?"
    assert "so far" not in seen_after("raw", []).lower() and seen_after("raw", []).endswith("A, B, C.\nAnswer:")
    pulls = [(0, float(i)) for i in range(1500)]
    assert seen_after("raw", pulls).count("reward ") == histories.LINES and "reward 499\n" not in seen_after(
        "raw", pulls
    )


@given(st.permutations(PULLS))
def test_a_summary_does_not_tell_the_order_and_a_raw_history_does(pulls):
    assert seen_after("summary", pulls) == seen_after("summary", PULLS)
    assert (seen_after("raw", pulls) == seen_after("raw", PULLS)) == (list(pulls) == PULLS)


def test_the_terms_shown_are_the_oracle():
    """The largest sum of the two numbers in a guided prompt is the oracle's choice, up to rounding."""
    demos = acting.demonstrations(bandits.drawn(SHORT, 10, 0), View(form="guided"), Oracle(), 0)
    correct = 0
    for demo in demos:
        lines = [line for line in demo.prompt.splitlines() if "bonus" in line]
        sums = {line[0]: sum(float(x) for x in line.replace(", value", "").split()[-2:]) for line in lines}
        correct += max(sums, key=sums.get) == demo.completion if lines else demo.completion == "A"
    assert correct / len(demos) > 0.97


@pytest.mark.parametrize("form", FORMS)
def test_a_demonstration_shows_what_was_known_before_its_step(form):
    world = bandits.drawn(SHORT, 2, 0)
    demos = acting.demonstrations(world, View(form=form), Oracle(), 0)
    assert len(demos) == 2 * SHORT.horizon  # a label per step
    game = acting.play_algorithm(world, Oracle(), 0)
    assert [d.completion for d in demos] == [histories.LETTERS[a] for a in game.actions.ravel()]
    for demo in demos:
        step = demo.extra["step"]
        pulls = demo.prompt.count(", reward ") if form == "raw" else sum(
            int(line.split(", ")[1].split()[0]) for line in demo.prompt.splitlines() if " times, average" in line
        )  # fmt: skip
        assert pulls == step


@pytest.mark.parametrize(
    ("text", "arm"),
    [("Amber Scarf", 1), (" amber scarf.\nbecause", 1), ("Amber Scarf Long", 2), ("Amberscarf", None), ("", None),
     ("I choose Red", None), ("Reds", None), ("**Red**", 0)],
)  # fmt: skip
def test_what_counts_as_an_answer(text, arm):
    assert histories.read(text, ["Red", "Amber Scarf", "Amber Scarf Long"]) == arm


# --- playing ---------------------------------------------------------------------------------


def summing(prompt, i=0):
    """A model that adds the two terms of a guided prompt and answers the arm with the largest sum."""
    lines = [line for line in prompt.splitlines() if "bonus" in line]
    sums = [sum(float(x) for x in line.replace(", value", "").split()[-2:]) for line in lines]
    return lines[int(np.argmax(sums))][0] if lines else "A"


def test_a_model_that_adds_plays_as_the_oracle_and_its_transcript_teaches():
    model = Scripted(write=summing)
    result = control.evolve_prompt(model, view=View(form="guided"), bandit=SHORT, trials=4, plain=False)
    players = result.findings["players"]
    assert players["model"]["regret"] == pytest.approx(players["oracle"]["regret"], abs=1.0)
    assert result.metrics["invalid"].after == 0 and result.findings["complete"]
    games = result.records
    assert [len(g.steps) for g in games] == [40] * 4 and games[0].extra["arms"] == list("ABCDE")
    assert result.transcript and all(d.completion in "ABCDE" for d in result.transcript)
    cloned = acting.clone_episodes(games, View(), Oracle(), False, 0)
    relabelled = acting.clone_episodes(games, View(), Oracle(), True, 0)
    assert [d.completion for d in cloned] == [s.action for g in games for s in g.steps]
    assert np.mean([a.completion == b.completion for a, b in zip(cloned, relabelled, strict=True)]) > 0.97


def test_answers_that_name_no_arm_are_random_and_counted_not_the_best():
    world = regret.world_of(SHORT, 60, 0)
    game = acting.play_model(world, lambda prompts: ["no idea"] * len(prompts), View(), Oracle(), 0)
    scores = regret.measures(world, game, regret.rivals(world, Oracle(), 0), 0.5)
    assert scores["invalid"].value == 1
    assert scores["regret"].value == pytest.approx(40 * 0.5 * 4 / 5, abs=1.0)


def test_a_budget_ends_all_games_at_the_same_pull():
    """The third request of the fourth pull fails: three pulls are kept, with a message."""
    model = Scripted(write=lambda prompt, i: "BC"[len(prompt) % 2])
    result = control.evolve_prompt(
        model, bandit=SHORT, trials=3, asking=Asking(tries=1, calls=4), view=View(form="raw"), seed=2
    )
    assert 1 <= len(result.records[0].steps) < 40 and not result.findings["complete"]
    assert len({len(g.steps) for g in result.records}) == 1 and "partial" in result.warnings[0]
    assert len(model.asked) == 4


def test_demonstrations_in_the_prompt_are_every_second_step_after_two():
    model = Scripted(write=lambda prompt, i: "B")
    control.evolve_prompt(model, bandit=SHORT, trials=1, shots=5, plain=False)
    prompt = model.asked[-1]
    introduction = histories.introduction(View(), histories.LETTERS[:5])
    assert prompt.startswith(introduction) and prompt.count(introduction.strip()) == 1
    assert [f"you have chosen {n} times" in prompt for n in (2, 4, 6, 8, 10)] == [True] * 5
    assert "you have chosen 3 times" not in prompt


def test_recorded_games_are_read_strictly():
    steps = [Step(observation="", action="left", reward=1.0), Step(observation="", action="right", reward=None)]
    with pytest.raises(UserError, match="record 1, step 2: no reward"):
        acting.clone_episodes([Trajectory(task="", steps=steps, final_observation="")], View(), Oracle(), False, 0)
    alone = Trajectory(task="", steps=steps[:1], final_observation="")
    with pytest.raises(UserError, match="has a single arm"):
        acting.clone_episodes([alone], View(), Oracle(), False, 0)
    game = Trajectory(task="Doors.", steps=[Step(observation="rain", action="left", reward=1.0)] * 2,
                      final_observation="", extra={"arms": ["left", "right"]})  # fmt: skip
    with pytest.raises(UserError, match=r"need view\.form = raw"):
        acting.clone_episodes([game], View(), Oracle(), False, 0)
    demos = acting.clone_episodes([game], View(form="raw"), Oracle(), False, 0)
    assert demos[1].prompt.startswith("Doors.\n\n") and "[rain] left video, reward 1\n[rain]" in demos[1].prompt


def test_views_and_oracles_that_do_not_go_with_the_bandits_are_refused():
    linear = BanditConfig(law="linear", horizon=5)
    with pytest.raises(UserError, match="use raw or guided"):
        control.evolve_prompt(Scripted(write=summing), bandit=linear)
    with pytest.raises(UserError, match="linucb needs a bandit with contexts"):
        control.evolve_prompt(Scripted(write=summing), oracle="linucb", bandit=SHORT)
    model = Scripted(write=lambda prompt, i: "A")
    result = control.evolve_prompt(model, bandit=linear, view=View(form="guided"), trials=2, plain=False)
    last = model.asked[-1]
    assert last.count('{"A": [') == 5 and last.count(", reward ") == 4  # the terms of each past step and of this one
    assert result.records[0].steps[0].observation.count(" ") == 4


# --- growth and wins -------------------------------------------------------------------------


def test_growth_finds_what_a_curve_was_made_of():
    t = np.arange(1, 301)
    learns = regret.growth(2.0 * np.log(t) / 0.5 + 1.0, 0.5)
    assert learns.error < 0.05 and learns.linear < 0.01
    fails = regret.growth(0.3 * t, 0.5)
    assert fails.linear == pytest.approx(0.3, abs=0.01)


def test_a_win_is_lower_and_significant():
    base = np.linspace(5, 15, 30)
    rates = regret.win_rates({"a": [base], "b": [base + 1], "c": [base + np.linspace(-5, 5, 30)]})
    assert rates == {"a": 0.5, "b": 0.0, "c": 0.0}
    assert sum(regret.win_rates({"a": [base, base], "b": [base, base]}).values()) == 0


# --- training --------------------------------------------------------------------------------


def test_relabelled_states_are_the_students_and_labels_the_oracles():
    """A student that always takes the last arm gets the oracle's choices as labels in its own states."""
    world = bandits.drawn(SHORT, 2, 0)
    demos = acting.demonstrations(world, View(scenario="bare"), Oracle(), 0, lambda prompts: ["E"] * len(prompts))
    at = demos[10]
    assert at.prompt.startswith("A 0 0 B 0 0 C 0 0 D 0 0 E 10 ") and at.completion == "A"


@pytest.fixture(scope="module")
def small():
    """Two arms, 16 pulls, short prompts: a model with random weights, and the same model after imitation."""
    options = {"bandit": BanditConfig(arms=2, horizon=16), "view": View(form="guided", scenario="bare"), "trials": 12}
    texts = [
        d.prompt for d in acting.demonstrations(bandits.drawn(options["bandit"], 8, 9), options["view"], Oracle(), 9)
    ]
    start = lab.blank("llama", texts, 420, d=32, layers=2, heads=2, context=64, initializer_range=0.1)
    fit = Fit(lr=8e-3, steps=120, rows=32, schedule="cosine")
    return start, options, control.evolve(start, trajectories=20, fit=fit, **options)


def test_imitation_lowers_regret_on_the_same_luck(small):
    _, _, result = small
    regret_of, invalid = result.metrics["regret"], result.metrics["invalid"]
    assert regret_of.before == pytest.approx(16 * 0.5 / 2, abs=1.5) and invalid.before > 0.9
    assert regret_of.after < 0.75 * regret_of.before and invalid.after < 0.1
    assert set(result.findings["algorithms"]) == {"oracle", "thompson", "greedy", "random"}
    assert len(result.records) == 20 * 16 and result.samples == []


def test_dagger_goes_on_from_its_own_states(small):
    start, options, _ = small
    result = control.evolve(start, trajectories=3, relabel=1, fit=Fit(lr=1e-3, steps=3, rows=8), **options)
    assert [r["demonstrations"] for r in result.findings["rounds"]] == [48, 96]
    assert [row["round"] for row in result.history] == [0, 0, 0, 1, 1, 1]


def test_games_of_ones_own_are_imitated(small):
    start, options, _ = small
    steps = [Step(observation="", action="left" if i % 2 else "right", reward=float(i % 2)) for i in range(8)]
    game = Trajectory(task="Two doors.", steps=steps, final_observation="")
    own = control.evolve(start, [game], fit=Fit(steps=1, rows=8), **options)
    assert [d.completion for d in own.records] == [s.action for s in steps]
    by_oracle = control.evolve(start, [game], labels="oracle", fit=Fit(steps=1, rows=8), **options)
    # It began on the right: after the first pull the left arm is still untried, and pays then.
    assert [d.completion for d in by_oracle.records] == ["left"] * 8
    assert by_oracle.records[0].prompt == own.records[0].prompt
    assert own.records[0].prompt.startswith("Two doors.\n\n")


@pytest.mark.soak
def test_ucb_pulls_what_the_authors_agent_pulls(monkeypatch):
    """Compared with banditbench, where it is installed: the same arms for the same rewards. Its greedy agent keeps
    UCB's bonus, so that it is UCB; ours is greedy."""
    monkeypatch.setitem(sys.modules, "litellm", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "litellm.cost_calculator", types.SimpleNamespace(completion_cost=None))
    classics = pytest.importorskip("banditbench.agents.classics")
    world = bandits.drawn(BanditConfig(horizon=200), 5, 0)
    ours = acting.play_algorithm(world, Oracle(), 0)
    for i in range(len(world)):
        for agent in (classics.UCBAgent, classics.GreedyAgent):
            theirs = agent(types.SimpleNamespace(num_arms=5))
            for step in range(200):
                arm = theirs.act()
                assert arm == ours.actions[i, step]
                theirs.update(arm, float(world.rewards[i, step, arm]), {})
    assert not np.array_equal(ours.actions, acting.play_algorithm(world, Oracle("greedy"), 0).actions)

"""A pair with both its goals gives 2 records; goals steer a model on held-out prompts; without them both cancel."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import f64

from didact import alignment, baselines
from didact.claims import lab
from didact.claims.alignment import reward_augmented_example as example
from didact.data import goals
from didact.data.goals import Wording
from didact.data.templates import Condition
from didact.evaluate import protocols
from didact.evaluate.protocols import goals as goals_protocol
from didact.evaluate.protocols import prefer
from didact.infer import generate
from didact.learn import pairs as pair_training
from didact.models import forward, load
from didact.objectives import preference
from didact.types import Fit, Messages, Preference, UserError
from didact.worlds.scored import PROMPTS, Scored

SCORE = st.floats(1, 10).map(lambda x: round(x, 1))
SHORT = {"wording": example.WORDING, "beta": 0.5}


def pairs(*scores):
    return [
        Preference(prompt=f"Q{i}", chosen=f"good {i}", rejected=f"bad {i}", chosen_score=a, rejected_score=b)
        for i, (a, b) in enumerate(scores)
    ]


def under(records, wording=Wording(), **how):
    return goals.relabelled(records, goals.scores_of(records), wording, **how)


# --- the transform ---------------------------------------------------------------------------


@given(st.lists(st.tuples(SCORE, SCORE), max_size=12), st.sampled_from([0.0, 0.5, 2.0]))
def test_n_pairs_are_2_n_records_less_ties_each_side_once_chosen_and_once_rejected(scores, min_gap):
    pairs_ = pairs(*scores)
    records = under(pairs_, min_gap=min_gap)
    untied = [p for p in pairs_ if abs(p.chosen_score - p.rejected_score) > min_gap]
    assert len(records) == 2 * len(untied)
    sides = sorted(s for p in untied for s in (p.chosen, p.rejected))
    assert sorted(r.chosen for r in records) == sorted(r.rejected for r in records) == sides
    for record in records:  # under its goal the chosen side has the highest possible value, 0
        goal = record.extra["goal"]
        assert goals.worth(record.chosen_score, goal) == 0 > goals.worth(record.rejected_score, goal)
        assert record.prompt.endswith(f"Overall score: {goals.printed(goal)}\n\nQ{record.extra['pair']}")


@given(SCORE, SCORE, SCORE)
def test_which_side_is_worth_more_turns_at_the_midpoint(a, b, goal):
    difference = goals.worth(a, goal) - goals.worth(b, goal)
    assert difference == pytest.approx((a - b) * (2 * goal - a - b), abs=1e-9)


@pytest.mark.parametrize(("number", "text"), [(8.0, "8"), (7.5, "7.5"), (10, "10"), (100.0, "100"), (0.1 + 0.2, "0.3")])
def test_scores_are_printed_without_idle_decimals(number, text):
    assert goals.printed(number) == text


def test_scores_are_stretched_cut_and_rounded():
    def stretched(*values, **how):
        return [a for (a,), _ in goals.on_scale([((v,), (0.0,)) for v in values], (1.0, 10.0), **how)]

    assert stretched(-1.0, 0.0, 1.0, span=(-1, 1)) == [1.0, 5.5, 10.0]
    assert stretched(-9.0, 9.0, span=(-1, 1)) == [1.0, 10.0]
    assert stretched(7.26, 7.24) == [7.3, 7.2] and stretched(8.0, 7.5) == [8.0, 7.5]
    assert stretched(7.26, step=0.5) == [7.5] and stretched(7.26, step=0) == [7.26]


def test_half_of_the_officials_second_records_are_not_turned_round():
    one, two = under(pairs((8, 3)), legacy_nosys=True)
    assert (one.extra["goal"], two.extra["goal"]) == (8, 3)
    assert (one.chosen, one.rejected) == (two.chosen, two.rejected) == ("good 0", "bad 0")
    assert [r.extra["goal"] for r in under(pairs((8, 3)), reverse=False)] == [8]


def test_a_dropped_goal_leaves_the_plain_pair():
    records = under(pairs(*[(8, 3)] * 40), dropout=0.5)
    plain = [r for r in records if "goal" not in r.extra]
    assert 20 < len(plain) < 60
    assert all(r.prompt[0] == "Q" and r.chosen.startswith("good") for r in plain)


def test_several_attributes_have_a_line_each():
    pair = Preference(
        prompt="Q", chosen="a", rejected="b",
        extra={"chosen_scores": {"honesty": 8, "wit": 2.5}, "rejected_scores": {"honesty": 3, "wit": 9}},
    )  # fmt: skip
    wording = Wording(template="On {low} to {high}.\n{attribute}: {goal}", attributes=("honesty", "wit"))
    records = goals.relabelled([pair], goals.scores_of([pair], wording.attributes), wording)
    assert [r.prompt for r in records] == [
        "On 1 to 10.\nhonesty: 8\nwit: 2.5\n\nQ",
        "On 1 to 10.\nhonesty: 3\nwit: 9\n\nQ",
    ]
    assert (
        records[1].chosen == "b"
        and records[1].extra["goal"] == [3, 9]
        and wording.text(wording.best).endswith("wit: 10")
    )
    with pytest.raises(UserError, match="record 1: no number 'tact' in 'chosen_scores'"):
        goals.scores_of([pair], ["tact"])


def test_the_goal_of_a_conversation_stands_in_its_system_turn_or_before_its_first_text():
    conversation = Messages([{"role": "user", "content": "Hi"}])
    with_system = Messages([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    system, user = (Wording(template="Score {goal}", place=position) for position in ("system", "user"))
    assert system.prompt(conversation, (9.0,)).turns == (
        {"role": "system", "content": "Score 9"},
        conversation.turns[0],
    )
    assert system.prompt(with_system, (9.0,)).turns[0]["content"] == "Score 9\n\nBe kind."
    assert user.prompt(conversation, (9.0,)).turns == ({"role": "user", "content": "Score 9\n\nHi"},)


@given(st.floats(-20, 20), st.floats(0.05, 3))
def test_both_orders_under_one_prompt_pull_the_margin_to_nothing(m, beta):
    chosen, zero = f64(m).requires_grad_(), f64(0.0)
    total = preference.dpo(chosen, zero, zero, zero, beta) + preference.dpo(zero, chosen, zero, zero, beta)
    assert total.item() >= 2 * math.log(2) - 1e-12
    total.backward()
    assert chosen.grad.item() == pytest.approx(beta * (1 / (1 + math.exp(-beta * m)) - 1 / (1 + math.exp(beta * m))))


# --- the effect ------------------------------------------------------------------------------


@lab.shared
def start():
    return example.tuned(0, steps=40)


def rewards(model, world, prompts):
    """Return the mean score under each goal, over all answers."""
    answers, out = world.answers(), []
    for goal in (1.0, 10.0):
        logp = lab.logp(model, [(example.WORDING.prompt(x, (goal,)), a) for x in prompts for a in answers])[0]
        share = logp.view(len(prompts), -1).softmax(1).numpy()
        out.append((share * np.array([[world.score(x, a) for a in answers] for x in prompts])).sum(1).mean())
    return out


def contrast(world, n):
    """Pairs of a good and a bad answer: two goals that ask for opposite things."""
    return [p for p in world.pairs(2, 6 * n, near=0.0) if p.chosen_score - p.rejected_score > 3][:n]


def test_goals_steer_where_records_are_turned_round_and_not_where_they_are_not():
    world = Scored(prompts=4, letters=4, own=0.0, seed=3)
    pairs_ = contrast(world, 600)
    train, unseen = ([p for p in pairs_ if (p.prompt == "D") == last] for last in (False, True))  # D is held out
    fit = Fit(lr=3e-3, steps=160, rows=16, warmup_steps=10, schedule="cosine")
    training = SHORT | {"beta": 1.0, "step": 9.0, "fit": fit}
    whole = alignment.reward_augmented(start(), train, **training)
    trained = whole.models["model"]
    low, high = rewards(trained, world, ["D"])
    assert high > low + 2
    options = {"wording": example.WORDING, "step": 9.0}
    scoring = protocols.Scoring(records={"preferences": unseen}, start=start(), options=options)
    before, after = (goals_protocol.score(m, scoring)["followed"] for m in (start(), trained))
    assert before.value == pytest.approx(0.5, abs=0.1) and after.value > 0.7
    records = goals.relabelled(unseen, goals.on_scale(goals.scores_of(unseen), (1.0, 10.0), step=9.0), example.WORDING)
    margins = prefer.margins(dataclasses.replace(trained, condition=None), records)
    assert before.n == after.n == len(records) and after.value == pytest.approx(np.mean(margins > 0))
    assert not goals_protocol.score(start(), dataclasses.replace(scoring, options=options | {"scores": "implicit"}))
    legacy = alignment.reward_augmented(start(), train, **training, legacy_nosys=True)
    low, high = rewards(legacy.models["model"], world, ["D"])
    assert abs(high - low) < 1
    assert whole.history[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_every_loss_takes_the_records_in(loss):
    pairs_, fit = contrast(example.world(0), 64), Fit(lr=1e-3, steps=6, rows=16)
    result = alignment.reward_augmented(start(), pairs_, **{**SHORT, "loss": loss}, reverse=False, fit=fit)
    assert result.history[-1]["margin"] > result.history[0]["margin"] + 0.01
    assert loss in result.history[0] and len(result.records) == len(pairs_)


def test_one_goal_for_all_is_dpo_with_a_system_prompt_to_the_last_bit():
    pairs_ = example.world(0).pairs(2, 24)
    fit = Fit(lr=1e-3, steps=4, rows=8)
    same = [dataclasses.replace(p, chosen_score=8, rejected_score=3) for p in pairs_]
    mine = alignment.reward_augmented(start(), same, **SHORT, reverse=False, fit=fit)
    with_goal = [dataclasses.replace(p, prompt=f"Overall score: 8\n{p.prompt}") for p in pairs_]
    theirs = baselines.dpo(start(), with_goal, beta=0.5, fit=fit)
    assert mine.models["model"].fingerprint() == theirs.models["model"].fingerprint()
    assert [r["dpo"] for r in mine.history] == [r["dpo"] for r in theirs.history] != [math.log(2)] * 4


def test_without_a_goal_in_the_text_both_orders_cancel():
    fit = Fit(lr=1e-2, steps=1, rows=16, optimizer="sgd", clip=0.0)
    pairs_ = contrast(example.world(0), 8)
    plain = {**SHORT, "wording": Wording(template="", joint="\n")}
    result = alignment.reward_augmented(start(), pairs_, **plain, fit=fit)
    assert len(result.records) == 16 and result.history[0]["grad_norm"] < 1e-4
    with_goal = alignment.reward_augmented(start(), pairs_, **SHORT, fit=fit)
    assert (
        with_goal.history[0]["grad_norm"] > 1e-4
        or with_goal.history[0]["grad_norm"] > 10 * result.history[0]["grad_norm"]
    )


def test_implicit_scores_order_pairs_without_scores():
    world = example.world(0)
    plain = [dataclasses.replace(p, chosen_score=None, rejected_score=None) for p in contrast(world, 200)]
    fit = Fit(lr=3e-3, steps=30, rows=16)
    result = alignment.reward_augmented(start(), plain, **SHORT, scores="implicit", step=1.0, fit=fit)
    first = result.records[: len(result.records) // 2]
    assert np.mean([r.chosen_score > r.rejected_score for r in first]) > 0.9
    assert {r.chosen_score for r in first} <= set(map(float, range(1, 11))) and len({r.chosen_score for r in first}) > 3
    assert all(r.prompt.startswith("Overall score: ") for r in first)


def test_implicit_rewards_are_the_scaled_log_ratios():
    pairs_ = contrast(example.world(0), 6)
    taught = baselines.dpo(start(), pairs_, fit=Fit(lr=3e-3, steps=3, rows=6)).models["model"]
    earned = pair_training.implicit_rewards(taught, start(), pairs_, 0.3)
    rows = [r for item in pair_training.groups(start(), pairs_) for r in item]
    moved = forward.row_logp(taught, rows)[0] - forward.row_logp(start(), rows)[0]
    assert torch.allclose(earned.double(), 0.3 * moved.view(-1, 2), atol=1e-5) and earned.abs().max() > 1e-2


# --- for the user ----------------------------------------------------------------------------


def test_a_saved_model_is_asked_for_the_highest_goal_and_predict_for_any(fresh, tmp_path):
    pairs_ = pairs(*[(8, 3.5)] * 18)
    model, wording = fresh("llama", context=128), Wording(template="Score: {goal}")
    result = alignment.reward_augmented(model, pairs_, wording=wording, fit=Fit(lr=1e-3, steps=2, rows=8))
    assert result.findings["asked"] == "Score: 10" and result.findings["goals"] == {"3.5": 18, "8": 18}
    answers = result.predict(["Q3"], max_new_tokens=3)
    assert answers == result.predict(["Q3"], goal=10, max_new_tokens=3) and len(answers) == 1
    result.save(tmp_path / "out")
    saved = load.load(tmp_path / "out" / "model", device="cpu")
    assert saved.condition == Condition(before="Score: 10\n\n")
    assert generate.generate(saved, ["Q3"], max_new_tokens=3) == answers


def test_scores_beyond_the_scale_are_stretched_and_said_to_be(fresh):
    pairs_, model = pairs((0.5, -2.5), (3.5, 0.5), (3.5, -2.5)), fresh("gpt2", context=96)
    result = alignment.reward_augmented(model, pairs_, **SHORT, fit=Fit(lr=0.0, steps=1))
    assert [r.extra["goal"] for r in result.records] == [5.5, 10, 10, 1, 5.5, 1]
    assert len(result.warnings) == 1 and "-2.5 to 3.5" in result.warnings[0]
    stretched = alignment.reward_augmented(model, pairs_, **SHORT, span=(-2.5, 3.5), fit=Fit(lr=0.0, steps=1))
    assert stretched.records == result.records and not stretched.warnings


def test_half_takes_half_of_the_pairs(fresh):
    pairs_ = pairs(*[(8, 3)] * 20)
    result = alignment.reward_augmented(fresh("gpt2", context=96), pairs_, **SHORT, share=0.5, fit=Fit(lr=0.0, steps=1))
    assert len(result.records) == len(pairs_) and result.findings["pairs"] == 10


UNSCORED = [Preference(prompt="a", chosen="b", rejected="c")]


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (UNSCORED, {}, r"record 1: no number 'chosen_score'; .*--scores implicit"),
        (pairs((5, 5)), {}, "all 1 pairs are ties"),
        (pairs((8, 3)), {"span": (5.0, 5.0)}, "span = 5 5: two numbers, the lower one first"),
        (UNSCORED, {"scores": "implicit", "wording": Wording(attributes=["a"])}, r"leave out wording\.attributes"),
    ],
)
def test_what_bounds_cannot_say_is_one_line(records, options, message, fresh):
    with pytest.raises(UserError, match=message) as error:
        alignment.reward_augmented(fresh("llama"), records, **{**SHORT, **options})
    assert "\n" not in str(error.value)


def test_a_wording_that_cannot_be_is_one_line():
    for template in ("{score}", "{", "{0}"):
        with pytest.raises(UserError, match="its fields are"):
            Wording(template=template)
    with pytest.raises(UserError, match="scale = 5 5: the lower end comes first"):
        Wording(scale=(5.0, 5.0))


def test_the_worlds_scores_are_known_and_rare_at_the_top():
    world = Scored(seed=7)
    scores = np.array([[world.score(x, a) for a in world.answers()] for x in PROMPTS])
    assert 0.001 < (scores >= 9).mean() < 0.05 and abs(scores.mean() - 5) < 0.1
    assert world.score("A", "zzzz") is None and world.score("A", "ab") is None
    pairs_ = world.pairs(1, 200, near=0.3, ties=0.2)
    apart = [p.chosen_score - p.rejected_score for p in pairs_]
    assert apart.count(0) > 20 and apart.count(1) > 40 and min(apart) == 0
    assert all(p.chosen != p.rejected for p in pairs_)

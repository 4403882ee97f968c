"""A reward model that reads the context gets reversal pairs right; without it exactly half are right."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted
from shapes import f64, tiny

from didact import alignment
from didact.data import contexts, encode, splits
from didact.data.read import read
from didact.evaluate import context_judges, judges, protocols
from didact.infer import lm
from didact.learn import reward_functions, rewards
from didact.models import forward, load
from didact.objectives import preference
from didact.types import Fit, Messages, UserError
from didact.worlds.criteria import Criteria

WORLD = Criteria(counted=1, noise=0.0)
TEMPLATE = "{prompt} {context} :"


def teach(model, preferences, **how):
    fit = how.pop("fit", Fit(lr=1e-3, steps=2, rows=4))
    return alignment.context_preference(model, preferences, template=TEMPLATE, fit=fit, **how)


# --- known answers ---------------------------------------------------------------------------


def test_the_three_ways_to_put_verdicts_together_can_disagree():
    z = f64(4.0, -1.0, -1.0)
    mean, logit, vote = (float(preference.aggregated(z, rule)) for rule in ("mean", "logit", "vote"))
    assert mean == pytest.approx(0.5066, abs=1e-3) and logit == pytest.approx(1 / (1 + math.exp(-2 / 3)))
    assert vote == pytest.approx(1 / 3)


def test_a_wrong_guess_at_the_context_is_bounded_by_how_wrong_it_is():
    q = f64(0.9, 0.1).logit()
    exact, guessed = (float(preference.aggregated(q, "mean", f64(*p))) for p in ((0.5, 0.5), (0.8, 0.2)))
    assert (exact, guessed) == (pytest.approx(0.5), pytest.approx(0.74))
    assert guessed - exact <= 0.3 * 0.9 + 0.3 * 0.1


simplex = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda x: f64(*x) / sum(x))
shares = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3).map(lambda x: f64(*x))


@given(simplex, simplex, shares, shares)
def test_the_error_splits_into_judging_and_choosing(p, p_hat, q, q_hat):
    exact, estimated = (float(preference.aggregated(x.logit(), "mean", y)) for x, y in ((q, p), (q_hat, p_hat)))
    assert abs(exact - estimated) <= float((p * (q - q_hat).abs()).sum() + ((p - p_hat).abs() * q_hat).sum()) + 1e-9


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(-5, 5))
def test_what_both_answers_share_does_not_matter(scores, shift):
    chosen, rejected = f64(*scores[:2]), f64(*scores[2:])
    plain = preference.pairwise(chosen - rejected)
    assert torch.allclose(preference.pairwise((chosen + shift) - (rejected + shift)), plain, atol=1e-9)


@given(st.integers(0, 50))
def test_whatever_ignores_the_context_is_right_on_half_of_reversal_pairs_exactly(seed):
    rng = np.random.default_rng(seed)
    pairs = WORLD.reversals(seed, 8)
    values = {side: float(rng.integers(-2, 3)) for p in pairs for side in (p.chosen, p.rejected)}
    blind = context_judges.by_reward(lambda prompts, completions: [values[c] for c in completions])
    result = context_judges.accuracies(blind, pairs, TEMPLATE)
    assert result["with_context"].value == result["reversal_without_context"].value == 0.5
    assert result["turned"].value == result["both_right"].value == 0.0 and "negated" not in result
    assert context_judges.accuracies(blind, pairs, TEMPLATE, "not {context}")["negated"].value == 0.5
    margin = torch.as_tensor(context_judges.margins(blind, pairs, None))
    assert preference.pairwise(margin).mean() >= math.log(2) - 1e-12  # and log 2 is its lowest possible loss


def test_a_judge_that_reads_the_context_is_right_on_all_of_them():
    def known(prompts, completions):
        goals = [p.removesuffix(" :").partition(" ")[2] for p in prompts]
        return [Criteria.value(z, c) if z else 0 for z, c in zip(goals, completions, strict=True)]

    def hasty(prompts, completions):
        return known([p.replace("not ", "") for p in prompts], completions)

    pairs = WORLD.reversals(3, 20)
    result = context_judges.accuracies(context_judges.by_reward(known), pairs, TEMPLATE, "not {context}")
    assert result["both_right"].value == result["turned"].value == result["with_context"].value == 1.0
    assert result["negated"].value == 1.0
    result = context_judges.accuracies(context_judges.by_reward(hasty), pairs, TEMPLATE, "not {context}")
    assert result["with_context"].value == 1.0 and result["negated"].value == 0.0
    two = Criteria(counted=2, noise=0.0)
    examples = [p for p in two.reversals(1, 60) if p.context == "more:b"]
    best, share = context_judges.likeliest(context_judges.by_reward(known), examples[:4], two.criteria(), TEMPLATE)
    assert two.criteria()[best] == "more:b" and share.sum() == pytest.approx(1.0)


# --- data ------------------------------------------------------------------------------------


def test_rpr_rows_are_reversal_pairs(tmp_path):
    path = tmp_path / "rpr.jsonl"
    row = {"prompt": "Q", "response_a": "A", "response_b": "B", "criteria_x": "brief", "criteria_y": "long",
           "scenario_x": "in a hurry", "scenario_y": "at leisure", "category_x": "style"}  # fmt: skip
    path.write_text(json.dumps(row) + "\n")
    result = read(path, "preference")
    assert [(p.chosen, p.rejected, p.context) for p in result] == [
        ("A", "B", "brief"), ("B", "A", "long"), ("A", "B", "in a hurry"), ("B", "A", "at leisure"),
    ]  # fmt: skip
    assert result[0].extra == {"sort": "criteria", "category_x": "style"}
    pairs, single = contexts.reversals(result)
    assert pairs == [(0, 1), (2, 3)] and single == []


def test_records_without_a_partner_are_found():
    pairs, single = contexts.reversals(WORLD.reversals(0, 30)[:-1])
    assert len(pairs) == 29 and len(single) == 1


def test_the_worlds_pairs_obey_their_contexts_and_its_shares_are_known():
    world = Criteria(noise=0.0)
    assert len(world.criteria()) == 12
    for p in world.reversals(1, 100, negated=("more:a",)):
        assert world.value(p.context, p.chosen) > world.value(p.context, p.rejected)
    pairs = world.general(1, 400)
    assert np.mean([world.share(p.prompt, p.chosen, p.rejected) for p in pairs]) > 0.55
    one = pairs[0]
    assert world.share(one.prompt, one.chosen, one.rejected) == pytest.approx(
        1 - world.share(one.prompt, one.rejected, one.chosen)
    )


# --- the reward model ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gpt_neox"])
def test_a_reward_model_is_the_body_under_a_head_at_the_last_token(kind, tmp_path):
    model = rewards.headed(tiny(kind))
    body = tiny(kind).module.base_model.state_dict()
    assert all(torch.equal(body[k], v) for k, v in model.module.base_model.state_dict().items())
    prompts, answers = ["Which?", "W"], ["this one", "that other one, I think"]
    together = rewards.score(model, prompts, answers)
    alone = []
    for p, a in zip(prompts, answers, strict=True):
        ids = torch.tensor([model.tokenizer(f"{p} {a}")["input_ids"]])
        state = model.module.base_model(input_ids=ids).last_hidden_state[0, -1]
        alone.append(model.module.score(state).item())
    assert together == pytest.approx(alone, abs=1e-5) and together[0] != together[1]
    model.save(tmp_path)
    assert reward_functions.reward_model(str(tmp_path))(prompts, answers) == pytest.approx(together, abs=1e-6)
    with pytest.raises(UserError, match="a reward model, which generates no text"):
        load.load(tmp_path)


def test_what_is_too_long_loses_its_beginning():
    model = rewards.headed(tiny("llama", context=16))
    row = rewards.row(model, "x" * 40, "the end")
    assert len(row.prompt) == 16 and model.tokenizer.decode(row.prompt).endswith(" the end")


def test_types_without_such_a_head_are_one_line():
    for kind in ("t5", "mamba"):
        with pytest.raises(UserError, match="needs a causal model with a classification head"):
            rewards.headed(tiny(kind))


def test_the_first_loss_is_that_of_the_untaught_rewards_and_one_step_goes_against_it():
    model = rewards.headed(tiny("gpt2"))
    pairs = [[("Q", "good answer", "bad")], [("R", "fine", "poor one")]]
    taught = rewards.train(model, {"pairs": pairs}, Fit(lr=1e-3, steps=8, rows=2))
    r = torch.tensor([rewards.score(model, [p, p], [w, l]) for [(p, w, l)] in pairs])
    assert taught.history[0]["bt"] == pytest.approx(float(preference.pairwise(r[:, 0] - r[:, 1]).mean()), abs=1e-5)
    assert taught.history[-1]["bt"] < taught.history[0]["bt"] - 0.05


def test_in_one_step_the_gradient_of_a_reversal_pair_without_contexts_is_nothing_at_zero_margin():
    """Both orders of the same two answers: without the context the only gradient is that of the margin."""
    model = rewards.headed(tiny("gpt2"))
    with torch.no_grad():
        model.module.score.weight.zero_()
    group = [("Q", "one", "another"), ("Q", "another", "one")]
    fit = Fit(lr=1e-2, steps=1, rows=1, optimizer="sgd", clip=0.0)
    row = rewards.train(model, {"reversals": [group]}, fit).history[0]
    assert row["bt"] == pytest.approx(math.log(2), abs=1e-6) and row["grad_norm"] < 1e-6
    alone = rewards.train(model, {"pairs": [group[:1]]}, fit).history[0]
    assert alone["grad_norm"] > 1e-3


def test_lora_gives_plain_weights(tmp_path):
    model = rewards.headed(tiny("llama"))
    pairs = [[("Q", "good answer", "bad")]] * 4
    taught = rewards.train(model, {"pairs": pairs}, Fit(lr=1e-2, steps=6, rows=2, lora=4)).model
    taught.save(tmp_path)
    result = reward_functions.reward_model(str(tmp_path))(["Q", "Q"], ["good answer", "bad"])
    assert result == pytest.approx(rewards.score(taught, ["Q", "Q"], ["good answer", "bad"]), abs=1e-5)
    before = rewards.score(model, ["Q", "Q"], ["good answer", "bad"])
    assert result[0] - result[1] > before[0] - before[1]


# --- the effect ------------------------------------------------------------------------------


def scored(model, pairs, **options):
    scoring = protocols.Scoring(records={"preferences": pairs}, start=model, options={"template": TEMPLATE, **options})
    return protocols.by_name("contexts").score(model, scoring)


def test_a_reward_model_learns_to_obey_contexts_on_prompts_it_never_saw():
    pairs = [p for p in WORLD.reversals(1, 1200) if p.context in ("longer", "shorter")]
    unseen, train = splits.by_prompt(pairs, 0.2, 0)
    fit = Fit(lr=3e-3, steps=60, rows=24, schedule="cosine", warmup_steps=10)
    result = teach(tiny("gpt2"), train, paired=False, fit=fit)
    actual = scored(result.models["model"], unseen)
    assert actual["with_context"].value > 0.9 > 0.7 > scored(tiny("gpt2"), unseen)["with_context"].value
    in_prompt = [
        dataclasses.replace(p, prompt=contexts.with_context(p.prompt, p.context, TEMPLATE), context="") for p in unseen
    ]
    scoring = protocols.Scoring(records={"preferences": in_prompt}, start=tiny("gpt2"))
    assert protocols.by_name("prefer").score(result.models["model"], scoring)["preferred"].value > 0.9
    assert abs(actual["without_context"].value - 0.5) < 0.15
    blind = teach(tiny("gpt2"), train, paired=False, read="none", fit=fit)
    assert scored(blind.models["model"], unseen)["with_context"].value < 0.65
    prompts, first, second = ["PQ", "PQ"], ["aaaaaa", "aaa"], ["bbb", "bbbbbb"]
    longer = result.predict(prompts, first, second, [["longer"], ["longer"]])
    both = result.predict(prompts, first, second, [["longer", "shorter"]] * 2)
    assert longer[0] > 0.7 and longer[1] < 0.3 and all(abs(p - 0.5) < 0.2 for p in both)


def test_findings_say_what_the_data_are():
    pairs = [*WORLD.reversals(1, 12)[:-1], *WORLD.general(2, 6)]
    result = teach(tiny("llama"), pairs)
    assert result.findings["groups"] == {"reversals": 11, "pairs": 1, "general": 6}
    assert result.findings["records"] == 29 and result.findings["with_context"] == 23
    assert result.findings["in_reversal_pairs"] == pytest.approx(22 / 23)
    assert len(result.warnings) == 1 and "no reversed partner" in result.warnings[0]
    assert not teach(tiny("llama"), WORLD.general(2, 6)).warnings


def test_a_language_model_judges_by_likelihood_or_asked_for_a_letter_and_proposes_contexts():
    model, pairs = tiny("llama"), [*WORLD.reversals(1, 12), *WORLD.general(2, 6)]
    result = scored(model, pairs)
    rows = [encode.rows(model.tokenizer, [(TEMPLATE.format(prompt=p.prompt, context=p.context), side)
            for side in (p.chosen, p.rejected)], "causal", model.context) for p in pairs[:24]]  # fmt: skip
    correct = [float(a > b) for a, b in (forward.row_logp(model, pair)[0].tolist() for pair in rows)]
    assert result["with_context"].value == np.mean(correct) and result["with_context"].n == 24
    by_letter = context_judges.accuracies(context_judges.by_letters(lm.of(model)), pairs, TEMPLATE)
    assert set(by_letter) == set(result) - {"negated"}
    names = context_judges.proposed(lm.of(model), pairs[:3], 2)
    assert len(names) == 3 and {len(row) for row in names} == {2}


def test_the_asked_judges_liking_for_a_letter_cancels():
    fond = Scripted(tops=lambda prompt: {" A": math.log(0.6), "B": math.log(0.2)})
    assert judges.letters(fond, ["q"], ["x"], ["y"]) == [pytest.approx(0.5)]


def test_verdicts_that_are_level_are_half_right_and_no_context_is_the_empty_one():
    model = rewards.headed(tiny("llama"))
    with torch.no_grad():
        model.module.score.weight.zero_()
    for aggregate in ("mean", "logit", "vote"):
        result = scored(model, WORLD.general(2, 20), choices=("longer", "shorter"), aggregate=aggregate)
        assert result["two_steps"].value == result["general"].value == 0.5
    plain = teach(tiny("llama"), WORLD.general(2, 20)).predict
    one = ["PQ"], ["aaa"], ["bbbb"]
    assert plain(*one, [[]]) == plain(*one, [[""]]) == plain(*one) != [0.5]


@pytest.mark.parametrize("template", ["{prompt}", "{context}", "{prompt} {context} {more}", "{"])
def test_a_bad_template_is_one_line(template):
    with pytest.raises(UserError, match="it needs the fields"):
        alignment.context_preference(tiny("llama"), WORLD.reversals(1, 2), template=template)


def test_nothing_to_read_is_one_line():
    with pytest.raises(UserError, match="no pair to train on with --read general"):
        teach(tiny("llama"), WORLD.reversals(1, 4), read="general")


def test_a_reward_model_goes_on_from_a_folder(tmp_path):
    pairs = [*WORLD.reversals(1, 6), *WORLD.general(2, 20)]
    first = teach(tiny("llama"), pairs)
    first.models["model"].save(tmp_path)
    again = teach(tiny("llama"), pairs, reward_model=str(tmp_path), fit=Fit(lr=0.0, steps=1, rows=2))
    assert again.models["model"].fingerprint() == first.models["model"].fingerprint()


def test_a_reward_model_reads_its_own_chat_template():
    model = rewards.headed(tiny("llama"))
    turns = [{"role": "user", "content": "Where?"}]
    assert model.tokenizer.decode(rewards.row(model, Messages(turns), "Tarn").prompt) == f"{Messages(turns)} Tarn"
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    for prompt in (Messages(turns), "Where?"):
        row = rewards.row(model, prompt, "Tarn")
        assert model.tokenizer.decode(row.prompt) == "[user]Where?</s>[assistant]Tarn</s>"
    scores = [rewards.score(model, [p], ["Tarn"]) for p in (Messages(turns), "Where?")]
    assert scores[0] == scores[1]

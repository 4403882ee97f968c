"""Formal languages learnt in context: the automata, the measures, and heads in a user's model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import tiny

from didact import mechanisms
from didact.data import automata, encode
from didact.evaluate import induction, languages, perplexity
from didact.evaluate.references import hidden_states, ngrams
from didact.models import load, ngram_heads
from didact.types import Fit, Text, UserError
from didact.worlds.automata import Languages

WORLD = Languages(symbols=6, states=(3, 5), edges=(1, 3), alphabet=(3, 6), strings=(4, 6), length=(2, 6))
TABLES = WORLD.automata([0], 30)
FIT = Fit(lr=2e-2, steps=50, rows=16, schedule="cosine", warmup_steps=5)


def of_world(seed=1, count=20):
    records = WORLD.records([seed], count)
    return languages.prompts(records, languages.tokenizer_of(records), 80)


# --- automata ------------------------------------------------------------------------------------


def test_equal_languages_have_equal_minimal_automata():
    """Two states with the same continuations are merged, whatever their numbers; others stay separate."""
    doubled = np.array([[[1, 2], [0, -1], [0, -1]]])  # the same follows after either symbol of state 0
    single = np.array([[[1, 1], [0, -1], [-1, -1]]])
    assert (automata.minimal(doubled) == single).all()
    assert len(set(automata.marks(TABLES))) == 30
    renamed = TABLES.copy()  # the other states in reverse order, where there are three of them
    three = [t for t in TABLES if (t >= 0).any(1).sum() == 3]
    for table in three:
        swap = np.array([0, 2, 1])
        renamed = np.where(table[swap] >= 0, swap[np.maximum(table[swap], 0)], -1)
        assert (automata.minimal(renamed[None])[0][:3] == table[:3]).all()
    assert three


def test_prompts_are_of_their_automata_and_train_and_held_out_languages_differ():
    prompts = WORLD.prompts(TABLES, [3])
    truth = automata.following(TABLES, prompts)
    there = prompts < 6
    assert (np.take_along_axis(truth, np.minimum(prompts, 5)[..., None], 2)[..., 0][there] > 0).all()
    assert np.allclose(truth[there].sum(-1), 1) and not truth[~there].any()
    others = WORLD.automata([0], 10, without=automata.marks(TABLES))
    assert not set(automata.marks(others)) & set(automata.marks(TABLES))
    records = WORLD.records([0], 30)
    assert len(set(languages.keys(records))) == 30


@given(st.integers(0, 8))
def test_the_posterior_over_one_automaton_is_it_and_over_a_pool_bayes_rule(seed):
    ids = WORLD.prompts(TABLES[:4], [seed])[:, :12]
    truth = automata.following(TABLES[:4], ids)
    assert np.allclose(automata.posterior(TABLES[:1], ids[:1]), truth[:1])
    found = automata.posterior(TABLES[:4], ids[:1])[0]
    weight = np.full(4, 0.25)
    for t, token in enumerate(ids[0]):
        each = np.array([automata.following(TABLES[k : k + 1], ids[:1])[0, t] for k in range(4)])
        if token < 6:
            assert np.allclose(found[t], weight @ each / weight.sum())
            weight = weight * each[:, token]


# --- measures ------------------------------------------------------------------------------------


def test_the_automaton_itself_has_accuracy_one_and_distance_zero_and_guessing_has_what_is_known():
    of = of_world()
    there = of.truth.sum(-1) > 0
    many = (of.truth > 0).sum(-1)
    with np.errstate(divide="ignore"):
        own = np.where(there, -np.log(many.clip(1)), 0.0)
    each = languages.at_each(of.truth, own, of)
    assert (each["accuracy"][there] == 1).all() and not each["tvd"][there].any() and not each["excess"][there].any()
    guess = languages.at_each(np.full(of.truth.shape, 1 / 6), None, of)
    assert np.allclose(guess["tvd"][there], (1 - many / 6)[there])


@given(n=st.integers(1, 3))
def test_backed_off_predictions_sum_to_one(n):
    of = of_world(2, 6)
    assert np.allclose(ngrams.followers(of.ids, 6, n).sum(-1), 1)


def test_ngrams_count_what_followed_and_back_off():
    ids = np.array([[0, 1, 0, 2, 0, 3, 3]])  # 3 is the separator
    two = ngrams.followers(ids, 3, 2)[0]
    # Before the fifth token: 0 was first; before the last 0: nothing is known after 2.
    assert two[5].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])  # 0 was followed by 1 and 2: a third is left
    assert two[4].tolist() == pytest.approx([3 / 7, 2 / 7, 2 / 7])  # 2 is new: unigram counts plus one


def test_baum_welch_with_one_state_counts_symbols_and_never_gets_less_likely():
    strings, _, _ = hidden_states.split(np.array([[0, 1, 1, 3, 2, 1, 3, 0, 4]]), 3)  # 3 ends a string
    assert strings.tolist() == [[[0, 1, 1], [2, 1, -1], [0, -1, -1]]]
    one = np.full((1, 1, 3, 1), 1 / 3)
    made, logp = hidden_states.improved(one, strings, 0.0)
    assert np.allclose(made[0, 0, :, 0], [2 / 6, 3 / 6, 1 / 6]) and np.isclose(logp[0], 6 * np.log(1 / 3))
    strings, _, _ = hidden_states.split(WORLD.prompts(TABLES[:5], [4]), 6)
    chances, before = np.random.default_rng(0).dirichlet(np.ones(24), (5, 4)).reshape(5, 4, 6, 4), -np.inf
    for _ in range(6):
        chances, logp = hidden_states.improved(chances, strings, 0.0)
        assert (logp >= before - 1e-9).all() and np.allclose(chances.sum((2, 3)), 1)
        before = logp
    assert hidden_states.improved(chances, strings, 0.0)[1].mean() > logp.mean() - 1e-9


def test_baum_welch_finds_what_ngrams_cannot_and_sees_no_future():
    # Three states, each with one transition: 0 0 1 0 0 1 ...; what follows 0 depends on the symbol before.
    ids = np.array([[*([0, 0, 1] * 3 + [2]) * 6]])
    said = hidden_states.expected(ids, 2, states=3)
    right = np.take_along_axis(said, np.minimum(ids, 1)[..., None], 2)[..., 0][0]
    assert right[-10:-1].min() > 0.9 and ngrams.followers(ids, 2, 2)[0, 51].max() < 0.7
    assert said[0, :9].tolist() == [[0.5, 0.5]] * 9 and not said[ids == 2].any()
    of = of_world(3, 6)
    whole = languages.in_parts(hidden_states.expected, of, 64)
    assert np.allclose(whole.sum(-1), of.truth.sum(-1) > 0)
    cut = of.ids.copy()
    cut[:, 30:] = np.where(cut[:, 30:] < 6, (cut[:, 30:] + 1) % 6, cut[:, 30:])
    assert np.allclose(hidden_states.expected(cut, 6)[:, :30], whole[:, :30])


def test_who_sees_the_future_is_stopped():
    of = of_world()
    seen = np.where(of.truth.sum(-1) > 0, math.log(0.99), 0.0)
    with pytest.raises(UserError, match="below the entropy"):
        languages.check_floor(languages.scores(of.truth, seen, of)["excess"], "heads")
    languages.check_floor(languages.scores(of.truth, -np.log((of.truth > 0).sum(-1).clip(1)), of)["excess"], "truth")


# --- the method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt():
    return mechanisms.icll(WORLD.records([7], 400), width=32, window=60, against=("control",), held_out=0.2, fit=FIT)


def test_heads_teach_a_recurrent_model_languages_it_has_not_seen(learnt):
    found = learnt.findings["languages"]["predictors"]
    assert found["heads"]["accuracy"]["low"] > found["control"]["accuracy"]["high"]
    assert found["heads"]["tvd"]["estimate"] < found["control"]["tvd"]["estimate"]
    assert found["heads"]["excess"]["low"] > 0
    same = learnt.findings["parameters"]
    assert same["heads"] == same["control"]
    assert learnt.metrics["accuracy"].before == found["control"]["accuracy"]["estimate"]


def test_a_head_that_sees_the_token_it_predicts_is_found_out(monkeypatch):
    right = ngram_heads.plan

    def leaking(*args):
        how = right(*args)
        places = torch.arange(len(how.order))
        return ngram_heads.Plan(how.order, how.follower, places, places + 1, torch.ones_like(places))

    monkeypatch.setattr(ngram_heads, "plan", leaking)
    with pytest.raises(UserError, match=r"heads: .* below the entropy"):
        mechanisms.icll(WORLD.records([7], 400), width=32, window=60, sizes=(1,), against=(), fit=FIT)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_heads_in_a_users_model_learn_text_and_are_saved(arch, tmp_path):
    """Documents in which each word's successor is random: only lookup in the context can predict it."""
    draw = np.random.default_rng(0)
    texts = [" ".join(["".join(draw.permutation(list("abcdef")))] * 6) for _ in range(60)]
    model = tiny(arch)
    fit = Fit(lr=1e-2, steps=40, rows=16)
    result = mechanisms.icll([Text(text=t) for t in texts], model, sizes=(1, 2), window=48, fit=fit)
    found = result.findings["text"]
    assert found["arms"]["heads"]["high"] < found["arms"]["control"]["low"] < found["arms"]["plain"]["low"]
    assert found["gain_over"]["control"]["low"] > 0
    total, count = perplexity.sums(model, texts, 48)
    assert found["arms"]["plain"]["estimate"] == pytest.approx(total.sum() / count.sum(), rel=0.1)
    result.models["model"].save(tmp_path / "model")
    again = load.load(tmp_path / "model", device="cpu")
    ids = torch.tensor([model.tokenizer(texts[0])["input_ids"]])
    made = [again.module.generate(ids[:, :20], max_new_tokens=10, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "arch", ["transformer", "learned-positions", "lstm", "linear-attention", "retnet", "rwkv", "hyena", "mamba"]
)
def test_other_architectures_take_heads(arch):
    records = WORLD.records([7], 40)
    result = mechanisms.icll(records, arch=arch, width=16, window=40, against=(), fit=Fit(steps=2, rows=8))
    assert result.findings["languages"]["predictors"]["heads"]["tvd"]["estimate"] < 1


def test_bad_records_are_told_in_one_line():
    records = WORLD.records([7], 12)
    plain = Text(text="a b")
    with pytest.raises(UserError, match="record 13 has no 'automaton'"):
        mechanisms.icll([*records, plain])
    for bad, said in (
        ([], "a list of states"),
        ([{"a": 5}], "leads from 'a' to 5"),
        ([{"zz": 0}], "leads from 'zz'"),
        ([{"a": 0}], "'b', cannot come"),
    ):
        wrong = Text(text="a b a b", metadata={"automaton": bad})
        with pytest.raises(UserError, match=said):
            mechanisms.icll([*records, *[wrong] * 12], held_out=0.9, fit=Fit(steps=1))
    with pytest.raises(UserError, match="two different at least"):
        mechanisms.icll([plain])
    with pytest.raises(UserError, match="leave lora at 0"):
        mechanisms.icll(records, fit=Fit(lora=2))


def test_attention_and_probes_stand_beside_what_chance_gives():
    """Uniform attention gets its known score; a looked-up symbol can be decoded after the head, not before."""
    records = WORLD.records([7], 60)
    result = mechanisms.icll(
        records, arch="transformer", width=16, window=40, against=("control",), probe=True, held_out=0.3,
        fit=Fit(steps=2, rows=8),
    )  # fmt: skip
    model = result.models["model"]
    for block in model.module.base.model.layers:
        block.self_attn.q_proj.weight.data.zero_()
    rows = [encode.windows(model.tokenizer, [record.text], 40)[0] for record in records[:5]]
    even = induction.attention(model, rows, [1, 2])
    for n in (1, 2):
        scores = np.array(even["heads"][n])
        assert scores.shape == (2, 1) and np.allclose(scores, even["even"][n], atol=1e-6) and even["even"][n] > 0
    probed = result.findings["probe"]["models"]
    assert set(probed) == {"heads", "control", "untrained"} and set(probed["heads"]) == {0, 1, 2}
    assert set(probed["heads"][1]) == {"accuracy", "control", "selectivity", "gain"}
    assert probed["heads"][1]["accuracy"]["estimate"] > probed["heads"][0]["accuracy"]["estimate"]
    told = result.findings["state_probe"]
    assert set(told["models"]) == {"heads", "control", "untrained"} and 0.5 < told["same_ngram"][2] < 1
    names = ["Curves", "Curves", "Heat", "Heat", "Heat", "Curves", "Curves", "Heat"]
    assert [type(figure).__name__ for figure in result.figures] == names


def test_a_state_is_found_where_it_is_and_not_in_the_last_symbol():
    """Pairs are balanced, of one symbol and prompt each; one-hot states can be distinguished, symbols cannot."""
    of = of_world(1, 60)
    drawn, same = induction.pairs(of, 0)
    i, a, b = drawn.T
    assert same.mean() == 0.5 and (of.ids[i, a] == of.ids[i, b]).all() and (a < b).all() and (of.ids[i, b] < 6).all()
    assert ((of.state[i, a] == of.state[i, b]) == same).all()
    places = np.argwhere(of.ids <= 6)
    at = tuple(torch.from_numpy(places).T)
    held = {
        name: {0: torch.nn.functional.one_hot(torch.from_numpy(v)[at] + 1).float().__getitem__}
        for name, v in (("state", of.state), ("symbol", of.ids))
    }
    found = induction.states(of, induction.Kept(held, places), 0)["models"]
    assert found["state"][0]["accuracy"]["estimate"] > 0.97 and found["state"][0]["selectivity"]["low"] > 0.2
    assert found["symbol"][0]["accuracy"]["estimate"] == pytest.approx(0.5, abs=0.05)


def test_states_are_those_of_the_smallest_automaton():
    doubled = [{"a": 1, "b": 2}, {"a": 0}, {"a": 0}]  # the same follows after either symbol
    records = [Text(text="a a b | b a", metadata={"automaton": doubled})]
    of = languages.prompts(records, languages.tokenizer_of(records), 20)
    assert of.state[0].tolist() == [1, 0, 1, -1, 1, 0]


def test_smoothing_learns_from_other_languages_what_counts_are_worth():
    of, taught = of_world(5, 40), of_world(6, 100)
    made = ngrams.smoothing(taught.ids, 6)
    said = made(of.ids, 6).double().exp().numpy()
    assert np.allclose(said.sum(-1), 1, atol=1e-5)
    best = min(languages.scores(ngrams.followers(of.ids, 6, n), None, of)["tvd"].mean() for n in (1, 2, 3))
    assert languages.scores(said, None, of)["tvd"].mean() < best
    turned = made(np.where(of.ids < 6, (of.ids + 1) % 6, of.ids), 6).double().exp().numpy()
    assert np.allclose(np.roll(said, 1, -1), turned, atol=1e-5)  # names of symbols do not matter
    cut = of.ids.copy()
    cut[:, 12:] = 7
    assert np.allclose(made(cut, 6).exp().numpy()[:, :13], said[:, :13], atol=1e-5)  # nor do later symbols

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
    is_symbol = prompts < 6
    assert (np.take_along_axis(truth, np.minimum(prompts, 5)[..., None], 2)[..., 0][is_symbol] > 0).all()
    assert np.allclose(truth[is_symbol].sum(-1), 1) and not truth[~is_symbol].any()
    others = WORLD.automata([0], 10, without=automata.marks(TABLES))
    assert not set(automata.marks(others)) & set(automata.marks(TABLES))
    records = WORLD.records([0], 30)
    assert len(set(languages.keys(records))) == 30


@given(st.integers(0, 8))
def test_the_posterior_over_one_automaton_is_it_and_over_a_pool_bayes_rule(seed):
    ids = WORLD.prompts(TABLES[:4], [seed])[:, :12]
    truth = automata.following(TABLES[:4], ids)
    assert np.allclose(automata.posterior(TABLES[:1], ids[:1]), truth[:1])
    result = automata.posterior(TABLES[:4], ids[:1])[0]
    weight = np.full(4, 0.25)
    for t, token in enumerate(ids[0]):
        each = np.array([automata.following(TABLES[k : k + 1], ids[:1])[0, t] for k in range(4)])
        if token < 6:
            assert np.allclose(result[t], weight @ each / weight.sum())
            weight = weight * each[:, token]


# --- measures ------------------------------------------------------------------------------------


def test_the_automaton_itself_has_accuracy_one_and_distance_zero_and_guessing_has_what_is_known():
    prompts = of_world()
    is_symbol = prompts.truth.sum(-1) > 0
    choices = (prompts.truth > 0).sum(-1)
    with np.errstate(divide="ignore"):
        own = np.where(is_symbol, -np.log(choices.clip(1)), 0.0)
    each = languages.at_each(prompts.truth, own, prompts)
    assert (
        (each["accuracy"][is_symbol] == 1).all()
        and not each["tvd"][is_symbol].any()
        and not each["excess"][is_symbol].any()
    )
    guess = languages.at_each(np.full(prompts.truth.shape, 1 / 6), None, prompts)
    assert np.allclose(guess["tvd"][is_symbol], (1 - choices / 6)[is_symbol])


@given(n=st.integers(1, 3))
def test_backed_off_predictions_sum_to_one(n):
    prompts = of_world(2, 6)
    assert np.allclose(ngrams.followers(prompts.ids, 6, n).sum(-1), 1)


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
    improved, logp = hidden_states.improved(one, strings, 0.0)
    assert np.allclose(improved[0, 0, :, 0], [2 / 6, 3 / 6, 1 / 6]) and np.isclose(logp[0], 6 * np.log(1 / 3))
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
    predicted = hidden_states.expected(ids, 2, states=3)
    p_true = np.take_along_axis(predicted, np.minimum(ids, 1)[..., None], 2)[..., 0][0]
    assert p_true[-10:-1].min() > 0.9 and ngrams.followers(ids, 2, 2)[0, 51].max() < 0.7
    assert predicted[0, :9].tolist() == [[0.5, 0.5]] * 9 and not predicted[ids == 2].any()
    prompts = of_world(3, 6)
    whole = languages.in_parts(hidden_states.expected, prompts, 64)
    assert np.allclose(whole.sum(-1), prompts.truth.sum(-1) > 0)
    cut = prompts.ids.copy()
    cut[:, 30:] = np.where(cut[:, 30:] < 6, (cut[:, 30:] + 1) % 6, cut[:, 30:])
    assert np.allclose(hidden_states.expected(cut, 6)[:, :30], whole[:, :30])


def test_who_sees_the_future_is_stopped():
    prompts = of_world()
    leaked = np.where(prompts.truth.sum(-1) > 0, math.log(0.99), 0.0)
    with pytest.raises(UserError, match="below the entropy"):
        languages.check_floor(languages.scores(prompts.truth, leaked, prompts)["excess"], "heads")
    languages.check_floor(
        languages.scores(prompts.truth, -np.log((prompts.truth > 0).sum(-1).clip(1)), prompts)["excess"], "truth"
    )


# --- the method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt():
    return mechanisms.icll(WORLD.records([7], 400), width=32, window=60, against=("control",), held_out=0.2, fit=FIT)


def test_heads_teach_a_recurrent_model_languages_it_has_not_seen(learnt):
    findings = learnt.findings["languages"]["predictors"]
    assert findings["heads"]["accuracy"]["low"] > findings["control"]["accuracy"]["high"]
    assert findings["heads"]["tvd"]["estimate"] < findings["control"]["tvd"]["estimate"]
    assert findings["heads"]["excess"]["low"] > 0
    same = learnt.findings["parameters"]
    assert same["heads"] == same["control"]
    assert learnt.metrics["accuracy"].before == findings["control"]["accuracy"]["estimate"]


def test_a_head_that_sees_the_token_it_predicts_is_found_out(monkeypatch):
    original = ngram_heads.plan

    def leaking(*args):
        plan = original(*args)
        positions = torch.arange(len(plan.order))
        return ngram_heads.Plan(plan.order, plan.follower, positions, positions + 1, torch.ones_like(positions))

    monkeypatch.setattr(ngram_heads, "plan", leaking)
    with pytest.raises(UserError, match=r"heads: .* below the entropy"):
        mechanisms.icll(WORLD.records([7], 400), width=32, window=60, sizes=(1,), against=(), fit=FIT)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_heads_in_a_users_model_learn_text_and_are_saved(arch, tmp_path):
    """Documents in which each word's successor is random: only lookup in the context can predict it."""
    rng = np.random.default_rng(0)
    texts = [" ".join(["".join(rng.permutation(list("abcdef")))] * 6) for _ in range(60)]
    model = tiny(arch)
    fit = Fit(lr=1e-2, steps=40, rows=16)
    result = mechanisms.icll([Text(text=t) for t in texts], model, sizes=(1, 2), window=48, fit=fit)
    findings = result.findings["text"]
    assert findings["arms"]["heads"]["high"] < findings["arms"]["control"]["low"] < findings["arms"]["plain"]["low"]
    assert findings["gain_over"]["control"]["low"] > 0
    total, count = perplexity.sums(model, texts, 48)
    assert findings["arms"]["plain"]["estimate"] == pytest.approx(total.sum() / count.sum(), rel=0.1)
    result.models["model"].save(tmp_path / "model")
    again = load.load(tmp_path / "model", device="cpu")
    ids = torch.tensor([model.tokenizer(texts[0])["input_ids"]])
    generated = [
        again.module.generate(ids[:, :20], max_new_tokens=10, do_sample=False, use_cache=c) for c in (True, False)
    ]
    assert torch.equal(*generated)


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
    for bad, message in (
        ([], "a list of states"),
        ([{"a": 5}], "leads from 'a' to 5"),
        ([{"zz": 0}], "leads from 'zz'"),
        ([{"a": 0}], "'b', is impossible"),
    ):
        record = Text(text="a b a b", metadata={"automaton": bad})
        with pytest.raises(UserError, match=message):
            mechanisms.icll([*records, *[record] * 12], held_out=0.9, fit=Fit(steps=1))
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
    findings = result.findings["state_probe"]
    assert set(findings["models"]) == {"heads", "control", "untrained"} and 0.5 < findings["same_ngram"][2] < 1
    names = ["Curves", "Curves", "Heat", "Heat", "Heat", "Curves", "Curves", "Heat"]
    assert [type(figure).__name__ for figure in result.figures] == names


def test_a_state_is_found_where_it_is_and_not_in_the_last_symbol():
    """Pairs are balanced, of one symbol and prompt each; one-hot states can be distinguished, symbols cannot."""
    prompts = of_world(1, 60)
    pairs, same = induction.pairs(prompts, 0)
    i, a, b = pairs.T
    assert (
        same.mean() == 0.5
        and (prompts.ids[i, a] == prompts.ids[i, b]).all()
        and (a < b).all()
        and (prompts.ids[i, b] < 6).all()
    )
    assert ((prompts.state[i, a] == prompts.state[i, b]) == same).all()
    positions = np.argwhere(prompts.ids <= 6)
    at = tuple(torch.from_numpy(positions).T)
    held = {
        name: {0: torch.nn.functional.one_hot(torch.from_numpy(v)[at] + 1).float().__getitem__}
        for name, v in (("state", prompts.state), ("symbol", prompts.ids))
    }
    result = induction.states(prompts, induction.RecordedStates(held, positions), 0)["models"]
    assert result["state"][0]["accuracy"]["estimate"] > 0.97 and result["state"][0]["selectivity"]["low"] > 0.2
    assert result["symbol"][0]["accuracy"]["estimate"] == pytest.approx(0.5, abs=0.05)


def test_states_are_those_of_the_smallest_automaton():
    doubled = [{"a": 1, "b": 2}, {"a": 0}, {"a": 0}]  # the same follows after either symbol
    records = [Text(text="a a b | b a", metadata={"automaton": doubled})]
    prompts = languages.prompts(records, languages.tokenizer_of(records), 20)
    assert prompts.state[0].tolist() == [1, 0, 1, -1, 1, 0]


def test_smoothing_learns_from_other_languages_what_counts_are_worth():
    prompts, taught = of_world(5, 40), of_world(6, 100)
    smoothed = ngrams.smoothing(taught.ids, 6)
    predicted = smoothed(prompts.ids, 6).double().exp().numpy()
    assert np.allclose(predicted.sum(-1), 1, atol=1e-5)
    best = min(languages.scores(ngrams.followers(prompts.ids, 6, n), None, prompts)["tvd"].mean() for n in (1, 2, 3))
    assert languages.scores(predicted, None, prompts)["tvd"].mean() < best
    renamed = smoothed(np.where(prompts.ids < 6, (prompts.ids + 1) % 6, prompts.ids), 6).double().exp().numpy()
    assert np.allclose(np.roll(predicted, 1, -1), renamed, atol=1e-5)  # names of symbols do not matter
    cut = prompts.ids.copy()
    cut[:, 12:] = 7
    assert np.allclose(smoothed(cut, 6).exp().numpy()[:, :13], predicted[:, :13], atol=1e-5)  # nor do later symbols

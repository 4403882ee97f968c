"""Objectives reduce to plain pre-training where scores are uninformative; the good token steers to good text."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import byte_tokenizer, tiny

from didact import alignment, baselines
from didact.data import encode, segments, spans
from didact.data.streams import Batches, Stream
from didact.data.templates import Condition
from didact.evaluate import protocols
from didact.evaluate.protocols import Scoring
from didact.infer import functions, generate
from didact.infer import lm as language_models
from didact.models import forward, load, vocabulary
from didact.objectives import policy
from didact.objectives import tokens as token_functions
from didact.types import Demo, Fit, Messages, Preference, Segment, Text, UserError
from didact.worlds import tiles
from didact.worlds.tiles import Tiles

FAST = Fit(lr=1e-2, steps=3, rows=4, warmup_steps=1)
MARKS = ("<|aligned|>", "<|misaligned|>")


def doc(*parts):
    return Text(text="".join(t for t, _ in parts), segments=[Segment(text=t, score=s) for t, s in parts])


TEXTS = [doc(("good one. ", 0.0), ("bad! ", -1.0), ("so so", -0.25)) for _ in range(6)] + [doc(("ok", 0.0))] * 6


DOCUMENTS = segments.scored(TEXTS, None, "lines")
SCORES = encode.scored_windows(byte_tokenizer(), segments.shuffled(DOCUMENTS, 0), 24, 0.0)[1]


def taught(objective="conditional", model=None, texts=TEXTS, fit=FAST, **more):
    return alignment.phf(model or tiny("llama"), texts, objective=objective, block=24, fit=fit, **more)


def losses(result, name="nll"):
    return [row[name] for row in result.history]


# --- token losses ----------------------------------------------------------------------------


def test_unlikelihood_where_a_token_has_half_the_mass_is_log_2_either_way():
    logits = torch.zeros(2, 2, dtype=torch.float64)
    loss = token_functions.unlikelihood(logits, torch.tensor([0, 1]), good=torch.tensor([True, False]))
    assert torch.allclose(loss, torch.full((2,), math.log(2), dtype=torch.float64))


def test_unlikelihood_pushes_a_bad_token_down_by_p_and_a_good_one_up_by_1_minus_p():
    logits = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = logits.softmax(-1)[:, 3].detach()
    target = torch.tensor([3, 3])
    token_functions.unlikelihood(logits, target, good=torch.tensor([True, False]), alpha=0.5).sum().backward()
    assert torch.allclose(logits.grad[:, 3], torch.stack([p[0] - 1, 0.5 * p[1]]))


def test_unlikelihood_of_a_certain_token_is_finite():
    logits = torch.tensor([[200.0, 0.0]])
    loss = token_functions.unlikelihood(logits, torch.tensor([0]), good=torch.tensor([False]))
    assert loss.item() == pytest.approx(20 * math.log(10), rel=1e-5)


def test_weights_are_clamped_from_log_1000_on():
    advantage = torch.tensor([0.0, 6.9, 6.91, 50.0])
    assert policy.exponential_weight(advantage, 1.0).tolist() == pytest.approx([1, math.exp(6.9), 1000, 1000], rel=1e-5)
    assert policy.exponential_weight(torch.tensor([-1.0, 0.0]), 1e9).tolist() == pytest.approx([1, 1])


# --- scores through packing ------------------------------------------------------------------

parts = st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=9), st.floats(-1, 0)), min_size=1, max_size=4)


@given(st.lists(parts, min_size=1, max_size=5), st.integers(2, 20))
def test_every_label_token_bears_the_score_of_its_segment(documents, length):
    tokenizer = byte_tokenizer()
    rows, scores = encode.scored_windows(tokenizer, documents, length, end=0.5)
    flat = [t for r in rows for t in r.completion]
    all_scores = [s for row in scores for s in row]
    expected = [(i, s) for d in documents for t, s in [*d, (None, 0.5)]
              for i in ([tokenizer.eos_token_id] if t is None else tokenizer(t)["input_ids"])]  # fmt: skip
    assert list(zip(flat, all_scores, strict=True)) == expected
    assert list(rows) == encode.windows(tokenizer, ["".join(t for t, _ in d) for d in documents], length)


def test_a_column_follows_its_rows_through_any_batch():
    rows, scores = encode.scored_windows(byte_tokenizer(), [[("abc", 1.0), ("de", 2.0)]] * 9, 5)
    columns = [torch.tensor(s) for s in scores]
    ids = {part: byte_tokenizer()(part)["input_ids"] for part in ("abc", "de")}
    by_token = {byte_tokenizer().eos_token_id: 0.0, **dict.fromkeys(ids["abc"], 1.0), **dict.fromkeys(ids["de"], 2.0)}
    batches = Batches({"text": Stream.of(rows, 7)}, seed=3)
    for micro in batches(2).split(12):
        assert micro.column(columns).tolist() == [by_token[t] for t in micro.tokens.target.tolist()]


# --- identities ------------------------------------------------------------------------------


def test_what_scores_do_not_touch_is_plain_pre_training():
    plain = losses(taught("mle"))
    assert losses(taught("filter", threshold=-1.0)) == plain
    assert losses(taught("unlikelihood", threshold=-1.0), "unlikelihood") == pytest.approx(plain, rel=1e-5)
    assert losses(taught("rwr", beta=1e9), "rwr") == pytest.approx(plain, rel=1e-5)
    flat = [doc(*((s.text, -1.0) for s in t.segments)) for t in TEXTS]
    first = losses(taught("rwr", beta=2.0, texts=flat), "rwr")[0]
    assert first == pytest.approx(math.exp(-0.5) * plain[0], rel=1e-5)


def test_without_a_token_before_any_segment_conditional_is_plain():
    model = vocabulary.with_tokens(tiny("llama"), MARKS)  # so that both heads have the same number of rows
    assert losses(taught("conditional", model, drop=1.0)) == losses(taught("mle", model))


def test_bad_tokens_are_pushed_down_and_only_those():
    fit = FAST.replace(steps=30)
    plain, away = (taught(o, threshold=-0.5, fit=fit).models["model"] for o in ("mle", "unlikelihood"))
    rows, scores = encode.scored_windows(plain.tokenizer, [[(s.text, s.score) for s in TEXTS[0].segments]], 24)
    before, after = (next(v["logp"] for _, _, v in forward.score(m, rows)) for m in (plain, away))
    low = torch.tensor(scores[0]) < -0.5
    assert (after - before)[low].mean() < -2
    assert after[~low].mean() > -1


def test_the_value_head_starts_at_a_half_and_does_not_stay():
    result = taught("awr", beta=0.5, value_weight=0.25, fit=FAST.replace(rows=len(SCORES), lr=0.0))
    reward = torch.tensor([x for row in SCORES for x in row])
    assert losses(result, "value")[0] == pytest.approx((reward + 0.5).square().mean().item(), rel=1e-5)
    assert result.history[0]["loss"] == pytest.approx(
        0.75 * losses(result, "awr")[0] + 0.25 * losses(result, "value")[0]
    )
    assert not [n for n, _ in result.models["model"].module.named_parameters() if "value" in n]


def test_the_value_head_learns():
    result = taught("awr", fit=FAST.replace(steps=40, rows=16))
    assert losses(result, "value")[-1] < 0.5 * losses(result, "value")[0]


@pytest.mark.parametrize(("limit", "aligned"), [(-math.inf, 3), (-0.25, 2), (0.0, 1), (1.0, 0)])
def test_the_threshold_itself_is_aligned_and_every_segment_has_one_more_label(limit, aligned):
    document = [(s.text, s.score) for s in TEXTS[0].segments]
    (result,) = segments.marked([document], limit, MARKS, 0.0, seed=0)
    assert [t for t, _ in result if t in MARKS].count(MARKS[0]) == aligned
    model = vocabulary.with_tokens(tiny("llama"), MARKS)
    count = [
        sum(len(r.completion) for r in encode.scored_windows(model.tokenizer, [d], 24)[0]) for d in (document, result)
    ]
    assert count[1] == count[0] + 3


def test_a_threshold_is_a_number_or_a_quantile_of_what_it_cuts():
    flat = sorted(s.score for t in TEXTS for s in t.segments)
    assert taught(threshold="q0").findings["threshold"] == flat[0]
    assert taught(threshold="q1").findings["threshold"] == flat[-1]
    assert taught("filter", threshold="q0").findings["threshold"] == pytest.approx(-1.25 / 3)
    assert taught("filter", threshold="q0.75").findings["kept"] == 6
    assert taught(threshold=-1.0).warnings and not taught(threshold=0.0).warnings


def test_filtering_takes_as_many_steps_as_all_would():
    both = [taught(o, fit=Fit(lr=1e-3, rows=2, epochs=1), threshold=0.0) for o in ("mle", "filter")]
    assert len(both[0].history) == len(both[1].history) > 2
    assert both[1].findings["kept"] == 6


# --- results ---------------------------------------------------------------------------------

LINES = [doc(*((("ab\n", 0.0), ("cd\n", -1.0))[(i + j) % 2] for j in range(4))) for i in range(40)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def conditional(request):
    fit = Fit(lr=1e-2, steps=60, rows=16, warmup_steps=5)
    return taught(model=tiny(request.param), texts=LINES, threshold=0.0, fit=fit, ban="misaligned").models["model"]


def share_bad(model, mark):
    cue = model.tokenizer.convert_tokens_to_ids([model.tokenizer.eos_token, mark])
    config = generate.SamplingConfig(max_new_tokens=4, temperature=1.0, rows=64)
    return sum("c" in c[0].text for c in generate.completions(model, [cue] * 64, 1, config)) / 64


def test_each_token_calls_for_its_own(conditional):
    assert share_bad(conditional, MARKS[0]) < 0.2 < 0.8 < share_bad(conditional, MARKS[1])


def test_a_saved_model_is_asked_as_it_was_taught(conditional, tmp_path):
    conditional.save(tmp_path)
    again = load.load(tmp_path, device="cpu")
    assert again.condition == Condition(after=MARKS[0], banned=MARKS[1:])
    assert again.module.generation_config.suppress_tokens == vocabulary.ids(again, MARKS[1:])
    config = generate.SamplingConfig(max_new_tokens=9, temperature=1.0, seed=4)
    texts = ["ab\n", "", "x"]
    assert generate.sample(again, texts, 2, config) == generate.sample(conditional, texts, 2, config)
    prompts = [[*encode.prompt_ids(again.tokenizer, t, "causal"), *again.tokenizer.convert_tokens_to_ids([MARKS[0]])]
             for t in texts]  # fmt: skip
    assert generate.completions(again, prompts, 2, config) == generate.completions(again, texts, 2, config)
    assert language_models.of(again).generate(texts, 9) == [[t] for t in generate.generate(again, texts, 9)]


def test_a_banned_token_is_never_said_and_the_log_prob_stays_the_models_own(conditional):
    banned = conditional.tokenizer.convert_tokens_to_ids(MARKS[1])
    free = load.Model(conditional.module, conditional.processor, "causal")
    config = generate.SamplingConfig(max_new_tokens=24, temperature=1.0)
    start = [[conditional.tokenizer.eos_token_id]] * 32
    completions = [
        [banned in c.tokens for row in generate.completions(m, start, 1, config) for c in row]
        for m in (conditional, free)
    ]
    assert not any(completions[0])
    assert any(completions[1])
    beams = generate.SamplingConfig(max_new_tokens=12, beams=3)
    assert not any(banned in c.tokens for row in generate.completions(conditional, start[:2], 3, beams) for c in row)
    ((one,),) = generate.completions(conditional, start[:1], 1, config)
    total, _ = forward.row_logp(conditional, [encode.TokenizedExample(tuple(start[0]), one.tokens)])
    assert one.logp == pytest.approx(float(total[0]), abs=1e-3)


def test_scoring_asks_with_the_token_too(conditional):
    free = load.Model(conditional.module, conditional.processor, "causal")
    demos, pairs = [Demo(prompt="ab\n", completion="ab\n")], [Preference(prompt="ab\n", chosen="ab\n", rejected="cd\n")]
    scoring = Scoring(records={"demo": demos, "preference": pairs}, start=free)
    for protocol, measure in (("answer", "probability"), ("prefer", "margin")):
        score = protocols.by_name(protocol).score
        assert score(conditional, scoring)[measure].value > score(free, scoring)[measure].value
    row = encode.row(conditional.tokenizer, "ab\n", "ab\n", "causal", 99, condition=conditional.condition)
    plain = encode.row(conditional.tokenizer, "ab\n", "ab\n", "causal", 99)
    assert row.completion == plain.completion
    assert row.prompt == (*plain.prompt, conditional.tokenizer.convert_tokens_to_ids(MARKS[0]))


def test_what_is_taught_from_a_conditional_model_is_asked_plainly(conditional):
    again = baselines.sft(conditional, [Demo(prompt="a", completion="b")], fit=Fit(steps=1, lr=1e-3))
    assert again.models["model"].condition is None


# --- the vocabulary --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_begin_near_the_mean_of_the_old(kind, tied):
    model = tiny(kind, tied=tied)
    old = model.module.get_input_embeddings().weight.detach().clone()
    result = vocabulary.with_tokens(model, MARKS)
    for table in (result.module.get_input_embeddings(), result.module.get_output_embeddings()):
        new, before = table.weight[-2:], table.weight[:-2]
        assert torch.allclose(new, before.mean(0).expand_as(new), atol=0.06)
        assert not torch.equal(new[0], new[1])
    assert torch.equal(result.module.get_input_embeddings().weight[:-2], old)
    assert result.tokenizer("a<|aligned|>b", add_special_tokens=False)["input_ids"][1] == len(old)
    assert len(model.tokenizer) == len(old)
    twice = vocabulary.with_tokens(result, MARKS, seed=9)
    assert torch.equal(twice.module.get_input_embeddings().weight, result.module.get_input_embeddings().weight)


def test_a_condition_stands_around_a_conversation():
    talk = Messages([{"role": "user", "content": "hi"}])
    condition = Condition(before="Be kind. ", after="Kindly:")
    ids = encode.prompt_ids(byte_tokenizer(), talk, "causal", condition)
    assert byte_tokenizer().decode(ids) == "System: Be kind.\nUser: hi\nAssistant: Kindly:"
    assert byte_tokenizer().decode(encode.prompt_ids(byte_tokenizer(), "Say:", "seq2seq", condition)) == (
        "Be kind. Say: Kindly:"
    )


# --- scorers, and the command line -----------------------------------------------------------


@given(st.text("aB.!? \n", max_size=30))
def test_segments_joined_are_the_text(text):
    assert "".join(spans.sentences(text)) == "".join(spans.lines(text)) == text


def test_sentences():
    assert spans.sentences("One. Two!\nThree 3.5") == ["One.", " Two!", "\n", "Three 3.5"]


def test_a_scorer_wins_over_the_texts_own_scores():
    scores = segments.scored(TEXTS[:1], functions.scorer(lambda texts: [len(t) for t in texts]), "lines")
    assert scores == [[(s.text, len(s.text)) for s in TEXTS[0].segments]]
    assert segments.scored([Text(text="a\nb", score=1.0)], None, "lines") == [[("a\nb", 1.0)]]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([Text(text="x")], {}, "record 1 has neither"),
        ([Text(text="")], {}, "no text"),
        (TEXTS, {"threshold": "qx"}, "quantile"),
        (TEXTS, {"threshold": "q2"}, "quantile"),
        (TEXTS, {"tokens": ("<a>", "<a>")}, "two different"),
        (TEXTS, {"objective": "filter", "threshold": 5.0}, "no document"),
        (TEXTS, {"scorer": "nowhere:score"}, "cannot be imported"),
        (TEXTS, {"score": lambda texts: [float("nan")] * len(texts)}, "gave NaN"),
    ],
)
def test_bad_input_is_one_line(texts, options, message):
    with pytest.raises(UserError, match=message):
        taught(texts=texts, **options)


def test_awr_warns_of_scores_its_values_cannot_reach():
    assert "rescale" in taught("awr", texts=[doc(("a", 5.0), ("b", 0.0))] * 4).warnings[0]


def test_lora_is_merged_so_that_the_tokens_can_be_saved(tmp_path):
    for objective in ("conditional", "awr"):
        model = taught(objective, fit=FAST.replace(lora=2), mle_share=0.4).models["model"]
        assert model.save(tmp_path / objective) == "hf"
        assert torch.equal(load.load(tmp_path / objective).module.lm_head.weight, model.module.lm_head.weight)


def spotless(texts):
    return [-float("c" in t) for t in texts]


def test_what_is_written_unasked_is_scored_against_the_threshold(conditional):
    free = load.Model(conditional.module, conditional.processor, "causal")
    options = {"score": spotless, "split": "lines", "threshold": 0.0}
    scoring = Scoring(records={"texts": LINES}, start=free, options=options)
    scores, plain = (protocols.by_name("written").score(m, scoring) for m in (conditional, free))
    assert scores["misaligned"].value < 0.2 < plain["misaligned"].value and scores["score"].value > plain["score"].value
    texts = protocols.by_name("written")
    quantile = dataclasses.replace(scoring, options={**options, "threshold": "q1"}, _kept={})
    assert texts.score(free, quantile)["misaligned"].value == plain["misaligned"].value  # the best segments score 0
    assert not texts.score(free, dataclasses.replace(scoring, options={}))  # no scorer


def test_the_worlds_rule_its_rate_and_its_entropy():
    assert tiles.bad("cabd") and not tiles.bad("cad") and not tiles.bad("")
    assert tiles.rewards(["ab\nba\n", "", "ba"]) == [-0.5, 0, 0]
    world = Tiles(seed=3)
    assert sum(world.whole.values()) == pytest.approx(1)
    segments = [s for t in world.texts(1, 1500) for s in t.segments]
    assert sum(s.score for s in segments) / len(segments) == pytest.approx(-world.rate, abs=0.02)
    assert all(s.score == 0 for t in world.texts(1, 50, good=True) for s in t.segments)
    assert 0 < world.entropy < world.length * math.log(world.letters)

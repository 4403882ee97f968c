"""Only answers are labels, the second given the first; without phrases it is fine-tuning; the good phrase prompts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import byte_tokenizer, tiny

from didact import alignment, baselines
from didact.data import chains, encode
from didact.data.encode import TokenizedExample
from didact.data.streams import Batches, Stream, collate
from didact.data.templates import Condition
from didact.infer import generate
from didact.models import forward, load, masks
from didact.objectives import reduce
from didact.types import Critique, Demo, Fit, Messages, Preference, Scored, Text, UserError
from didact.worlds import sorting
from didact.worlds.sorting import Sorting

PAIRS = [Preference(prompt=f"say {i}", chosen=f"yes {i}", rejected=f"no, not {i}") for i in range(8)]
FAST = Fit(lr=5e-3, steps=3, rows=8, warmup_steps=1)
GOOD, BAD, EOS = "good:", "bad:", 2
words = st.text("abc :", min_size=1, max_size=6).filter(str.strip)


def taught(model=None, pairs=PAIRS, fit=FAST, **more):
    return alignment.hindsight(model or tiny("llama"), pairs, fit=fit, **more)


def encoded(kind, model=None, loss_on="all"):
    model = model or tiny("llama")
    groups = chains.groups(PAIRS[:1], (), ())
    chain = chains.encoded(model.tokenizer, model.kind, model.context, groups, [kind], [(GOOD, BAD)], loss_on == "last")
    ((row,),), (mask,), (good,) = chain.items, chain.learnt, chain.good
    return row, mask, good


def text_of(ids):
    return byte_tokenizer().decode(list(ids), skip_special_tokens=False)


# --- chains ----------------------------------------------------------------------------------


def test_the_four_chains_and_what_is_learnt_of_them():
    expected = {
        "p": ("say 0 good:", "| yes 0</s>|"),
        "n": ("say 0 bad:", "| no, not 0</s>|"),
        "pn": ("say 0 good:", "| yes 0</s>|bad:| no, not 0</s>|"),
        "np": ("say 0 bad:", "| no, not 0</s>|good:| yes 0</s>|"),
    }
    for kind, (prompt, parts) in expected.items():
        row, mask, good = encoded(kind)
        assert text_of(row.prompt) == prompt
        assert text_of(row.completion) == parts.replace("|", "")
        learnt = text_of([t for t, m in zip(row.completion, mask, strict=True) if m])
        assert learnt == "".join(x for x in parts.split("|") if not x.endswith(":"))
        assert text_of([t for t, m, g in zip(row.completion, mask, good, strict=True) if m and g]) == (
            " yes 0</s>" if "p" in kind else ""
        )
    row, mask, _ = encoded("np", loss_on="last")
    assert text_of([t for t, m in zip(row.completion, mask, strict=True) if m]) == " yes 0</s>"


@given(words, st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_as_many_tokens_are_learnt_as_answers_and_ends_have(prompt, steps):
    tokenizer = byte_tokenizer()
    row, mask = encode.chain(tokenizer, prompt, steps, "causal", 256)
    before = [(prompt if at == 0 else "") + phrase for at, (phrase, _) in enumerate(steps)]
    joined = [encode.cut(b, encode.join(b, answer, "causal"))[1] for b, (_, answer) in zip(before, steps, strict=True)]
    assert sum(mask) == sum(len(tokenizer(j)["input_ids"]) + 1 for j in joined)
    assert len(mask) == len(row.completion)
    assert row.completion.count(EOS) == len(steps)


def test_a_chain_to_go_on_from_ends_with_the_phrase():
    row, mask = encode.chain(byte_tokenizer(), "p", [(BAD, "x"), (GOOD, "")], "causal", 99)
    assert text_of(row.prompt + row.completion) == "p bad: x</s>good:"
    assert mask == [1, 1, 1] + [0] * 5


def test_a_chain_without_words_is_the_row_of_fine_tuning():
    for kind in ("causal", "seq2seq"):
        pair = [("a b", "c d")]
        row, mask = encode.chain(byte_tokenizer(), "a b", [("", "c d")], kind, 99)
        assert [row] == encode.rows(byte_tokenizer(), pair, kind, 99)
        assert set(mask) == {1}


def test_the_prompt_of_a_chain_is_what_the_model_is_asked_with():
    talk = Messages([{"role": "user", "content": "hi"}])
    for prompt in ("say it", "say it\n", "", talk):
        row, _ = encode.chain(byte_tokenizer(), prompt, [(GOOD, "x")], "causal", 99)
        assert list(row.prompt) == encode.prompt_ids(byte_tokenizer(), prompt, "causal", Condition(after=GOOD))
        assert encode.row(byte_tokenizer(), prompt, "x", "causal", 99, condition=Condition(after=GOOD)) == row


# --- the loss --------------------------------------------------------------------------------


def micro_of(rows):
    (micro,) = Batches({"feedback": Stream.of(rows, len(rows))}, 0)(0).split(None)
    return micro


def test_means_over_rows_of_means_over_tokens():
    micro = micro_of([TokenizedExample((5,), (6,)), TokenizedExample((5,), tuple(range(6, 15)))])
    count = micro.tokens.row.bincount()[micro.tokens.row]
    loss = torch.where(count == 1, 3.0, 1.0)
    means = reduce.masked_row_mean(loss, torch.ones_like(loss), micro.tokens.row, micro.items)
    assert means.mean() == 2.0


def test_a_phrase_is_read_and_not_learnt():
    model = tiny("llama")
    row, mask, _ = encoded("np", model)
    at = [i for i, m in enumerate(mask) if not m][2]
    other = TokenizedExample(row.prompt, (*row.completion[:at], row.completion[at] + 1, *row.completion[at + 1 :]))
    (one, two) = (next(v["logp"] for _, _, v in forward.score(model, [r])) for r in (row, other))
    before = (mask[: at + 1] > 0).nonzero()[:, 0]
    assert torch.equal(one[before], two[before])  # earlier tokens are unchanged, and it has no loss of its own
    assert not torch.allclose(one[at + 2 :], two[at + 2 :])  # but all later tokens attend to it


def test_plain_fine_tuning_is_a_preset():
    model, demos = tiny("gpt2"), [Demo(prompt=p.prompt, completion=p.chosen) for p in PAIRS]
    fit = FAST.replace(rows=8, steps=4)
    ours = taught(model, chains=("p",), good=("",), bad=("",), past_masking=(0.0, 0.0), fit=fit)
    theirs = baselines.sft(model, demos, fit=fit)
    same = [
        len(r.completion) for r in encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], "causal", 99)
    ]
    assert len(set(same)) == 1  # so that the mean of means is the mean
    assert [r["hindsight"] for r in ours.history] == pytest.approx([r["nll"] for r in theirs.history], rel=1e-5)
    assert ours.models["model"].condition is None


def test_the_second_answer_is_learnt_given_the_first():
    model = tiny("llama")
    row, _, _ = encoded("np", model)
    after = encode.chain(model.tokenizer, "say 0", [(BAD, "no, not 0"), (GOOD, "")], "causal", 256)[0]
    last = TokenizedExample(after.prompt + after.completion, (*model.tokenizer(" yes 0")["input_ids"], EOS))
    (chain,) = [v["logp"] for _, _, v in forward.score(model, [row])]
    alone, _ = forward.row_logp(model, [last])
    assert chain[-len(last.completion) :].sum().item() == pytest.approx(float(alone[0]), abs=1e-4)


def test_bad_answers_can_be_unlearnt():
    fit = FAST.replace(steps=25)
    options = {"chains": ("p", "n"), "good": ("",), "bad": ("",), "past_masking": (0.0, 0.0)}
    away, plain = (taught(unlikelihood=u, fit=fit, **options).models["model"] for u in (1.0, 0.0))
    rows = encode.rows(away.tokenizer, [(p.prompt, p.rejected) for p in PAIRS], "causal", 99)
    assert forward.row_logp(away, rows)[0].mean() < forward.row_logp(plain, rows)[0].mean() - 10


# --- hidden past tokens ----------------------------------------------------------------------

KINDS = ["llama", "gpt2", "mistral", "gemma3", "opt"]
ROWS = [TokenizedExample((5, 6, 7), tuple(range(8, 30))), TokenizedExample((9, 9), (4, 5, 6))]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hidden_is_exactly_causal(kind):
    model, batch = tiny(kind), collate(ROWS)
    plain = forward.tokens(model, batch)["logp"]
    # Our mask is used, but hides nothing: the share is too small to hide a token.
    assert torch.allclose(forward.tokens(model, batch, hide=(0.0, 1e-12))["logp"], plain, atol=1e-5)
    assert torch.equal(forward.tokens(model, batch, hide=(0.0, 0.0))["logp"], plain)


def test_everything_hidden_leaves_the_first_token():
    model, batch = tiny("gpt2"), collate(ROWS[:1])
    other = collate([TokenizedExample((5, 50, 51), (*range(60, 81), 29))])
    one, two = (forward.label_states(model, b, hide=(1.0, 1.0))[-1] for b in (batch, other))
    same_last = collate([TokenizedExample((5, 50, 51), (*range(60, 80), 28, 29))])
    assert not torch.allclose(one, two)  # the residual stream carries the token itself
    assert torch.allclose(one, forward.label_states(model, same_last, hide=(1.0, 1.0))[-1], atol=1e-5)


def test_rows_in_trees_hide_as_rows_apart():
    model = tiny("llama")
    together = collate(ROWS, packing=forward.packing_of(model)), collate(ROWS)
    results = []
    for batch in together:
        torch.manual_seed(3)
        results.append(forward.tokens(model, batch, hide=(0.5, 0.5))["logp"])
    assert torch.allclose(*results, atol=1e-5)


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_the_share_hidden_is_the_one_asked_for(share):
    batch = collate([TokenizedExample((5,), tuple([6] * 200))])
    mask = masks.forgetful(batch, (share, share))
    assert mask[:, :, 0].all()
    assert 1 - mask[:, :, 1:].float().mean().item() == pytest.approx(share, abs=0.02)


def test_a_model_that_takes_no_mask_says_so():
    assert "past tokens are not masked" in taught(tiny("bloom")).warnings[0]
    assert not taught(tiny("llama")).warnings


# --- any kind of feedback --------------------------------------------------------------------


def test_ratings_are_chained_by_rank_and_ties_left_out():
    rated = [Scored(prompt="q", completion=c, score=s) for c, s in [("b", 1), ("a", 2), ("c", 0), ("a too", 2)]]
    (group,) = chains.groups((), [*rated, Scored(prompt="alone", completion="x", score=1)], ())
    _, steps, distinct = chains.chained(group, "np", GOOD, BAD)
    assert steps == [(BAD, "c"), (chains.RANKED.format(rank=2, count=3), "b"), (GOOD, "a")]
    assert distinct == [False, True, True]
    assert chains.chained(group, "p", GOOD, BAD)[1] == [(GOOD, "a")]
    counts = alignment.hindsight(tiny("gpt2"), ratings=rated, fit=FAST).findings["chains"]
    assert counts == {"p": 1, "n": 1, "pn": 1, "np": 1, "left out": 0}


def test_a_comment_stands_where_the_phrase_would():
    mended = Critique(prompt="q", completion="a", feedback="too short ", refinement="a b")
    bare = Critique(prompt="r", completion="c", feedback="fine")
    groups = chains.groups((), (), [mended, bare])
    assert chains.chained(groups[0], "np", GOOD, BAD)[1] == [
        (chains.COMMENTED.format(feedback="too short"), "a"), (GOOD, "a b")
    ]  # fmt: skip
    assert chains.chained(groups[1], "pn", GOOD, BAD) is None
    assert chains.chained(groups[1], "p", GOOD, BAD) is None
    assert chains.chained(groups[1], "n", GOOD, BAD)[1] == [(chains.COMMENTED.format(feedback="fine"), "c")]
    findings = alignment.hindsight(tiny("gpt2"), PAIRS, critiques=[mended, bare], fit=FAST).findings
    assert findings["chains"]["n"] == 10 and findings["chains"]["np"] == 9


def test_phrases_are_drawn_in_pairs():
    groups = chains.groups(PAIRS * 4, (), ())
    phrases = [("g1:", "b1:"), ("g2:", "b2:")]
    result = chains.encoded(byte_tokenizer(), "causal", 256, groups, ["pn"], phrases)
    text = {(("g1" in t), ("b1" in t)) for t in (text_of(r.prompt + r.completion) for (r,) in result.items)}
    assert text == {(True, True), (False, False)}


def test_chains_too_long_are_counted():
    result = taught(tiny("gpt2", context=40))
    assert result.findings["chains"]["left out"] > 0 and "left out" in result.warnings[0]
    assert result.findings["chains"]["p"] == 8


# --- results ---------------------------------------------------------------------------------

LETTERS = [Preference(prompt="?", chosen="a" * n, rejected="b" * n) for n in (1, 2, 3)] * 4


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_the_words_steer_and_the_saved_model_is_asked_with_the_good_ones(kind, tmp_path):
    fit = Fit(lr=1e-2, steps=60, rows=12, warmup_steps=5)
    model = taught(tiny(kind), LETTERS, fit, good=(GOOD,), bad=(BAD,)).models["model"]
    model.save(tmp_path)
    again = load.load(tmp_path, device="cpu")
    config = generate.SamplingConfig(max_new_tokens=4, temperature=1.0)
    answers = [row[0] for row in generate.sample(again, ["?"] * 32, 1, config)]
    assert sum(set(a) <= {"a"} for a in answers) > 20
    again.condition = Condition(after=BAD)
    assert sum(set(a) <= {"b"} for a in (row[0] for row in generate.sample(again, ["?"] * 32, 1, config))) > 20


def test_phrases_in_brackets_become_tokens_of_their_own():
    model = taught(good=("<|good|>",), bad=("<|bad|>",)).models["model"]
    assert model.condition == Condition(after="<|good|>", banned=("<|good|>", "<|bad|>"))
    ids = encode.prompt_ids(model.tokenizer, "say 0", "causal", model.condition)
    assert ids[:-1] == encode.prompt_ids(model.tokenizer, "say 0", "causal")


def test_general_text_is_kept():
    texts = [Text(text="the quick brown fox jumps over the lazy dog. " * 3)] * 4
    fit = FAST.replace(steps=20, rows=4)
    rows = encode.windows(byte_tokenizer(), [texts[0].text], 32)
    with_text, without_text = (taught(general=g, fit=fit, block=32).models["model"] for g in (texts, None))
    assert forward.row_logp(with_text, rows)[0].sum() > forward.row_logp(without_text, rows)[0].sum() + 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": None}, "no feedback"),
        ({"good": ("a", "b")}, "every good one needs"),
        ({"past_masking": (0.5, 0.1)}, "past_masking"),
        ({"model": tiny("gpt2", context=8)}, "no chain fits"),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        taught(**options)


# --- the world -------------------------------------------------------------------------------


def test_errors_are_the_edits_an_answer_needs():
    assert [sorting.errors("cab", x) for x in ("abc", "ab", "abcc", "acb", "", "xyz")] == [0, 1, 1, 2, 3, 3]


def test_the_rejected_answer_is_always_worse():
    world = Sorting(seed=5)
    pairs = world.pairs(1, 300)
    assert all(sorting.errors(p.prompt, p.chosen) < sorting.errors(p.prompt, p.rejected) for p in pairs)
    accuracy = sum(sorting.errors(p.prompt, p.chosen) == 0 for p in pairs) / 300
    assert 0.45 < accuracy < 0.75
    assert all(sorting.errors(d.prompt, d.completion) == 0 for d in world.demos(2, 50))

"""Exact span decoding: equal to brute force on every architecture, and the method on models that learn to extract."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import KINDS, tiny

from didact.data import spans
from didact.evaluate import measures, protocols, qa
from didact.evaluate.protocols import Scoring
from didact.infer import beam, constrain, qa_prompts, span_decoders, span_scores
from didact.infer.span_decoders import SearchConfig
from didact.learn import span_rows
from didact.methods.prompting.exact_extract import exact_extract
from didact.methods.prompting.exact_extract_rss import exact_extract_rss
from didact.methods.prompting.exact_extract_tune import exact_extract_tune
from didact.models import build
from didact.types import QA, Fit, Text, UserError
from didact.worlds import facts

PAIRS = [("abc de fgab", "w?"), ("he said", "why so?"), ("xx xx xx", "q")]
TEXT = "The old mill stood by the river. In May the old mill burned. Nobody saw the fire; the river was low."


def asked(kind, pairs=PAIRS, **more):
    """A random model of this type, its prompt format and questions of at most 12 tokens."""
    model = tiny(kind, **more)
    form = qa_prompts.prompt_format(
        model, "T: {context} Q: {question} A:", bos="a" if kind == "t5" else "none", end="z"
    )
    return model, form, [qa_prompts.encode_question(model, form, *p) for p in pairs]


def constant(model, favoured=(), value=0.0):
    """The same next-token distribution everywhere: uniform, with `value` added to the favoured tokens' logits."""
    with torch.no_grad():
        for p in model.module.parameters():
            p.zero_()
    head = model.module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[list(favoured)] = value
    return model


# --- against brute force ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_len", [0, 3])
def test_every_span_scores_as_when_it_is_decoded_by_itself(kind, max_len):
    model, form, questions = asked(kind)
    for q, table in zip(questions, span_scores.score(model, questions, form, max_len), strict=True):
        one_by_one = span_decoders.forced(model, q, form, max_len)
        n, m = len(q.passage), span_scores.longest(model, q, max_len)
        assert n <= 12 and table.rows == n
        scored = np.isfinite(one_by_one)
        assert scored.sum() == sum(min(m, n - i) for i in range(n))
        total = span_scores.totals(table.nll, table.end)
        assert (np.isfinite(total) == scored).all()
        np.testing.assert_allclose(total[scored], one_by_one[scored], atol=2e-5)
        (best,) = span_scores.best(q, table, form)
        blanks = [i for i, (a, b) in enumerate(q.offsets) if not q.context[a:b].strip()]
        one_by_one[blanks, 0] = np.inf  # a span of white space is not an answer
        i, t = np.unravel_index(one_by_one.argmin(), one_by_one.shape)
        assert best.tokens == q.passage[i : i + t + 1]
        assert best.nll == pytest.approx(one_by_one.min(), abs=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "mamba", "t5"])
def test_neither_chunks_nor_company_nor_pruning_change_the_answer(kind):
    model, form, questions = asked(kind)
    whole = span_scores.score(model, questions, form)
    for other in (
        span_scores.score(model, questions, form, chunk_tokens=30),
        [span_scores.score(model, [q], form)[0] for q in questions],
    ):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a.nll, b.nll, atol=2e-5)
            np.testing.assert_allclose(a.end, b.end, atol=2e-5)
            assert (a.bos, a.rows) == (pytest.approx(b.bos, abs=2e-5), b.rows)
    for top in (1, 3):
        for norm in (False, True):
            pruned = span_scores.score(model, questions, form, prune=True, top=top, length_norm=norm)
            for q, a, b in zip(questions, whole, pruned, strict=True):
                full, less = (span_scores.best(q, x, form, top, norm) for x in (a, b))
                assert [s.text for s in full] == [s.text for s in less]
                np.testing.assert_allclose([s.nll for s in full], [s.nll for s in less], atol=2e-5)


def test_pruning_skips_starts_that_cannot_win():
    model = tiny("llama", tie_word_embeddings=False)
    likely = [*model.tokenizer.convert_tokens_to_ids(["c", "d"])]
    constant(model, [*likely, *model.tokenizer.convert_tokens_to_ids(["z"])], 8.0)
    form = qa_prompts.prompt_format(model, "{context}{question}", end="z")
    q = qa_prompts.encode_question(model, form, "abcdefghijklmnopqrstuvwxy" * 4, "")
    (full,), (less,) = (span_scores.score(model, [q], form, 5, prune=p) for p in (False, True))
    assert full.rows == len(q.passage) == 101
    assert less.rows == 8  # the four c and the four d
    assert span_scores.best(q, full, form)[0].text == span_scores.best(q, less, form)[0].text


def test_top_spans_are_distinct_in_order_and_named_by_their_first_places():
    model, form, questions = asked("llama")
    for q, table in zip(questions, span_scores.score(model, questions, form), strict=True):
        result = span_scores.best(q, table, form, top=6)
        texts, scores = [s.text for s in result], [s.nll for s in result]
        assert len(set(texts)) == len(texts) and scores == sorted(scores)
        assert all(t and t in q.context for t in texts)
        assert all(q.find(s.tokens) == s.start for s in result)


def test_under_a_uniform_model_a_span_costs_log_v_a_token_and_the_first_token_wins():
    model = constant(tiny("llama", tie_word_embeddings=False))
    form = qa_prompts.prompt_format(model, "{context}{question}", end="z")
    q = qa_prompts.encode_question(model, form, "abcdef", "?")
    (table,) = span_scores.score(model, [q], form)
    log_v = math.log(model.config.vocab_size)
    for t in range(len(q.passage)):
        assert span_scores.totals(table.nll, table.end)[0, t] == pytest.approx((t + 2) * log_v, rel=1e-5)
    (best,) = span_scores.best(q, table, form)
    assert (best.text, len(best.tokens)) == ("a", 1)  # the blank before it is not an answer
    normed = span_scores.normed(span_scores.totals(table.nll, table.end), table.bos, form)
    np.testing.assert_allclose(normed[np.isfinite(normed)], log_v, rtol=1e-5)  # an exact tie


def test_t5_counts_its_constant_token_when_length_is_divided_by():
    model, form, (q, *_) = asked("t5")
    (table,) = span_scores.score(model, [q], form)
    (best,) = span_scores.best(q, table, form, length_norm=True)
    assert best.score == pytest.approx((table.bos + best.nll) / (len(best.tokens) + 2))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_an_end_that_comes_after_r_tokens_gives_a_span_of_r_tokens(length):
    n = 8
    uniform = np.where(np.add.outer(np.arange(n), np.arange(n)) < n, math.log(50), np.inf)
    end = np.where(np.arange(n) == length - 1, -math.log(1 - 1e-6), 1e3) * np.ones((n, 1))
    q = qa_prompts.EncodedQuestion((1,), tuple(range(n)), "abcdefgh", tuple((i, i + 1) for i in range(n)))
    (best,) = span_scores.best(q, span_scores.SpanScores(uniform, end, 0.0, n), qa_prompts.PromptFormat("", (), 0))
    assert best.text == "abcdefgh"[:length]


def test_the_parts_of_a_score():
    model, form, questions = asked("llama")
    for q, table in zip(questions, span_scores.score(model, questions, form), strict=True):
        total, n = span_scores.totals(table.nll, table.end), len(q.passage)
        np.testing.assert_allclose(total[:, 0], table.nll[:, 0] + table.end[:, 0])
        assert (np.diff(table.nll.cumsum(1)[0]) >= 0).all()
        assert np.isfinite(table.nll).sum() == n * (n + 1) / 2
        assert [len(r) for r in span_scores.branches(q.passage, n)] == list(range(n, 0, -1))  # never wrapped


# --- greedy, constrained, beam ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_stays_in_the_passage_is_likelier_than_the_exact_answer(kind):
    model, form, questions = asked(kind)
    for q, table in zip(questions, span_scores.score(model, questions, form), strict=True):
        (exact,) = span_scores.best(q, table, form)
        along = span_decoders.constrained_greedy(q, table)
        assert exact.nll <= along.nll + 1e-5
        assert span_decoders.answer_nll(model, [q], form, [along.tokens])[0] == pytest.approx(along.nll, abs=1e-4)
        assert span_decoders.answer_nll(model, [q], form, [exact.tokens])[0] == pytest.approx(exact.nll, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_greedy_along_the_passage_is_what_constrained_decoding_says(kind):
    model, form, questions = asked(kind)
    limits = [constrain.Spans(q.passage, form.end, 4) for q in questions]
    walked = beam.search(model, [q.prompt for q in questions], 1, 0.0, [9] * 3, [form.end], limits)
    for q, table, (w, *_) in zip(questions, span_scores.score(model, questions, form, 4), walked, strict=True):
        read = span_decoders.constrained_greedy(q, table)
        assert (*read.tokens, form.end) == w.tokens
        assert -read.nll == pytest.approx(w.logp, abs=1e-4)


def test_a_model_sure_of_one_span_is_greedy_exact_and_optimal(learned):
    model, form, _ = learned
    pairs = [("so kal sad sux . here gem tod .", "kal")]
    result = span_decoders.answer(model, pairs, form, ("exact", "greedy", "constrained_greedy", "beam"))
    assert {rows[0][0].tokens for rows in result.values()} == {result["exact"][0][0].tokens}


# --- words, windows, recurring spans ---------------------------------------------------------


def test_f1_and_exact_match_are_those_of_squad():
    assert qa.f1("the Democratic Party", ["Democratic Party"]) == 1
    assert qa.f1("party", ["Democratic Party"]) == pytest.approx(2 / 3)
    assert qa.f1("", ["x"]) == 0 == qa.exact_match("", ["the"])
    assert qa.f1("b", ["a", "b c", "b"]) == 1
    assert qa.f1("x x y", ["x"]) == pytest.approx(0.5)  # multisets, not sets
    assert qa.exact_match("An  Apple!", ["apple"]) == 1
    assert qa.extractive("old mill", TEXT) and not qa.extractive("Old mill", TEXT)
    assert qa.extractive("Old mill", TEXT, normalised=True) and not qa.extractive("", TEXT)


def test_bleu_is_one_for_an_answer_and_counts_every_reference():
    assert qa.bleu("the cat sat on the mat", ["the cat sat on the mat"]) == pytest.approx(1.0)
    # Three of four words, two of three pairs, one of two triples, half a quadruple by smoothing.
    assert qa.bleu("the cat sat there", ["the cat sat down"]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert qa.bleu("a dog", ["the cat", "a dog"]) == pytest.approx(1.0) and qa.bleu("", ["a"]) == 0


words = st.lists(st.sampled_from("a bb ccc d. e the of".split()), min_size=1, max_size=40).map(" ".join)


@given(st.integers(1, 60), st.integers(4, 60), st.integers(1, 30), st.integers(1, 30))
def test_windows_fit_and_leave_nothing_out(n, room, size, stride):
    text = " ".join(f"{i:03}" for i in range(n))
    pieces = spans.windows(text, lambda t: len(t) <= room, size, stride)
    assert all(len(p) <= room and p in text for p in pieces)
    count = 0
    for piece in pieces:  # each begins no later than the end of the one before
        at = text.index(piece)
        assert at <= count + 1
        count = max(count, at + len(piece))
    assert count == len(text)


def test_windows_are_512_words_every_120_and_shrink_by_a_tenth():
    text = " ".join(f"w{i}" for i in range(700))
    pieces = spans.windows(text, lambda t: len(t.split()) <= 512)
    assert [p.split()[0] for p in pieces] == ["w0", "w120", "w240"] and len(pieces[0].split()) == 512
    shrunk = spans.windows(text, lambda t: len(t.split()) <= 500)
    assert len(shrunk[0].split()) == 460  # 512 * .9
    with pytest.raises(UserError, match="no room"):
        spans.windows("a b c", lambda t: False)


def test_recurring_spans_are_maximal_whole_and_more_than_stop_words():
    result = spans.recurring(TEXT)
    assert set(result) == {"old mill", "the river"}
    assert "old" not in result  # occurs only inside the longer one
    assert spans.recurring("the of the of and the of") == {}
    assert spans.recurring("red fox. ran red fox ran") == {"red fox": [(0, 7), (13, 20)], "ran": [(9, 12), (21, 24)]}
    assert spans.recurring("no word of another: wordy notes") == {}
    twelve = " ".join("abcdefghijkl")
    assert all(len(s.split()) <= 10 for s in spans.recurring(f"{twelve} . {twelve}"))


@given(words, st.integers(0, 5), st.booleans())
def test_another_occurrence_always_stays_in_the_text(text, seed, later):
    at = spans.recurring_place(text, np.random.default_rng(seed), later)
    if at is None:
        assert not spans.recurring(text)
        return
    cut = spans.masked(text, [at], ["<m>"])
    assert cut.text.count("<m>") == 1 and cut.text.replace("<m>", cut.span) == text
    assert not spans.SENTENCE_END.search(cut.span)
    remaining = spans.cut(text, at).text if later else cut.text
    assert cut.span in remaining


@given(words, st.integers(0, 5))
def test_the_control_masks_as_many_words(text, seed):
    lengths = {len(spans.WORD.findall(s)) for s in spans.recurring(text)}
    at = spans.random_place(text, np.random.default_rng(seed))
    assert (at is None) == (not lengths)
    assert at is None or len(spans.WORD.findall(text[slice(*at)])) in lengths


def test_several_spans_are_masked_in_order():
    assert spans.masked("a b c d", [(4, 5), (0, 1)], ["<0>", "<1>"]) == ("<0> b <1> d", "<0>a<1>c")


# --- the method ------------------------------------------------------------------------------


FORM = {"template": "{context} so {question}"}


@pytest.fixture(scope="module")
def world():
    return facts.facts(0, passages=600, tune=64, test=40)


@pytest.fixture(scope="module")
def untrained(world):
    tokenizer = build.train_tokenizer([" " + " ".join(facts.vocabulary())] * 3, 400)
    return build.build("llama", tokenizer, d=32, layers=2, heads=2, context=128, initializer_range=0.1)


def scored(start, model, questions, max_len):
    """Return the protocol's metrics of both models."""
    options = {**FORM, "search": SearchConfig(max_len=max_len)}
    scoring = Scoring(records={"questions": questions}, start=start, options=options)
    return measures.metrics(*(protocols.by_name("extract").score(m, scoring) for m in (start, model)))


@pytest.fixture(scope="module")
def learned(untrained):
    """A model trained to memorise one passage and its answer."""
    one = [QA(context="so kal sad sux . here gem tod .", question="kal", answers=["sad sux"])]
    fit = Fit(lr=1e-2, steps=40, rows=1, schedule="constant")
    model = exact_extract_tune(untrained, one, **FORM, fit=fit).models["model"]
    return model, qa_prompts.prompt_format(untrained, **FORM), scored(untrained, model, one, max_len=8)


def test_tuning_teaches_the_answer_and_says_so(learned):
    metrics = learned[2]
    assert (metrics["greedy_f1"].after, metrics["exact_f1"].after, metrics["optimality"].after) == (100, 100, 100)
    assert metrics["exact_nll"].after < 0.5 < metrics["exact_nll"].before


def test_recurring_spans_make_a_model_extractive_on_passages_it_never_saw(untrained, world):
    fit = Fit(lr=5e-3, steps=150, rows=16, schedule="constant", warmup_steps=10)
    result = exact_extract_rss(untrained, world.passages, **FORM, fit=fit)
    metrics = scored(untrained, result.models["model"], world.test, max_len=5)
    extractive, correct = (metrics[name] for name in ("extractiveness", "exact_f1"))
    assert extractive.ci[0] > extractive.before + 10  # over the 40 questions
    assert correct.ci[0] > correct.before
    assert np.mean([row["nll"] for row in result.history[-10:]]) < 0.6 * result.history[0]["nll"]


def test_random_spans_are_trained_on_the_same_passages(untrained, world):
    form = qa_prompts.prompt_format(untrained, **FORM)
    texts = [Text(text=TEXT), Text(text="nothing twice"), *world.passages[:20]]
    rows = {s: span_rows.rss_rows(untrained, texts, form, s) for s in ("recurring", "random")}
    assert rows["recurring"][1] == rows["random"][1] == 1
    assert len(rows["recurring"][0]) == len(rows["random"][0]) == 21
    for row in rows["recurring"][0]:
        prompt, span = (untrained.tokenizer.decode(list(ids)) for ids in (row.prompt, row.completion[:-1]))
        assert span.strip() in prompt and row.completion[-1] == form.end


def test_a_long_passage_is_cut_before_spans_are_looked_for(untrained):
    distant = " ".join(["kal sad sux"] + [f"w{i}" for i in range(200)] + ["kal sad sux"])
    form = qa_prompts.prompt_format(untrained, **FORM)
    with pytest.raises(UserError, match="no span recurs"):
        span_rows.rss_rows(untrained, [Text(text=distant)], form, limit=60)


def test_the_method_writes_predictions_and_both_diagnostics(learned, world):
    model = learned[0]
    result = exact_extract(model, world.test[:6], search=SearchConfig(max_len=5, top=3), **FORM)
    for record, question in zip(result.records, world.test, strict=False):
        extra = record.extra
        assert extra["prediction"] in question.context and len(extra["spans"]) == 3
        assert extra["nll"] <= extra["constrained_greedy"]["nll"] + 1e-4
        assert not question.extra
    for name in ("exact_f1", "greedy_f1", "constrained_greedy_f1", "extractiveness", "optimality", "gain"):
        metric = result.metrics[name]
        assert metric.n == 6 and metric.ci[0] <= metric.after <= metric.ci[1]
    assert result.metrics["gain"].after == pytest.approx(
        result.metrics["exact_f1"].after - result.metrics["greedy_f1"].after
    )
    alone = exact_extract(model, world.test[:6], decoder="beam", compare=False, search=SearchConfig(max_len=5), **FORM)
    assert set(alone.metrics) == {"beam_f1", "beam_em", "beam_nll"}


def test_a_long_passage_is_read_in_windows_and_the_likeliest_answer_wins(learned):
    model, form, _ = learned
    long = " ".join(["here gem tod ."] * 20 + ["so kal sad sux ."])
    search = SearchConfig(max_len=5, limit=40)
    windows = qa_prompts.encode_windows(model, form, long, "kal", 40)
    assert len(windows) > 1 and all(len(w.prompt) <= 40 for w in windows)
    (best,) = span_decoders.answer(model, [(long, "kal")], form, ("exact",), search)["exact"]
    each = [
        span_scores.best(w, t, form)[0]
        for w, t in zip(windows, span_scores.score(model, windows, form, 5), strict=True)
    ]
    assert best[0].nll == pytest.approx(min(e.nll for e in each), abs=1e-4)


def test_tokens_that_are_missing_are_named_with_the_mend(untrained):
    with pytest.raises(UserError, match="--bos none --end eos"):
        qa_prompts.prompt_format(tiny("t5"))
    with pytest.raises(UserError, match=r"\{question\} is missing"):
        qa_prompts.prompt_format(untrained, "{context}")
    with pytest.raises(UserError, match="no answer to learn"):
        exact_extract_tune(untrained, [QA(context="a", question="b", answers=[])], **FORM)
    with pytest.raises(UserError, match="no span recurs"):
        exact_extract_rss(untrained, [Text(text="one two three")], **FORM)
    with pytest.raises(UserError, match="passage is empty"):
        exact_extract(untrained, [QA(context=" ", question="b", answers=["a"])], **FORM)


def test_a_line_that_ends_answers_also_ends_them_as_a_blank_line():
    model = tiny("llama")
    model.processor = copy.deepcopy(model.tokenizer)  # the other tests share it
    model.processor.add_tokens(["\n\n"])
    model.module.resize_token_embeddings(len(model.processor))
    form = qa_prompts.prompt_format(model, end="newline")
    blank = model.tokenizer.convert_tokens_to_ids("\n\n")
    assert form.end != blank and {form.end, blank} <= qa_prompts.endings(model, form)
    questions = [qa_prompts.encode_question(model, form, *PAIRS[0])]
    (answer,) = span_decoders.free(constant(model, [blank], 5.0), questions, form, 4)
    assert answer.tokens == ()


def test_t5_is_asked_as_it_was_pretrained():
    model = tiny("t5")
    model.processor = copy.deepcopy(model.tokenizer)  # the other tests share it
    model.processor.add_special_tokens({"additional_special_tokens": list(qa_prompts.SENTINELS)})
    form = qa_prompts.prompt_format(model)
    first, last = model.tokenizer.convert_tokens_to_ids(list(qa_prompts.SENTINELS))
    assert (form.bos, form.end) == ((first,), last)
    assert form.template.endswith("Question: {question} Answer:<extra_id_0>.")
    rows, _ = span_rows.rss_rows(model, [Text(text=TEXT)], form, limit=256)
    (row,) = rows
    assert row.prompt.count(first) == 1 and (row.completion[0], row.completion[-1]) == (first, last)
    span = model.tokenizer.decode(row.completion[1:-1]).strip()
    assert span in ("old mill", "the river") and span in model.tokenizer.decode(row.prompt)

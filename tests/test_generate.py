"""Decoding: the tokens of transformers, whatever the batch; sampling, stops, beams, constraints, ranking, best of n."""

import itertools
import math
import random

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import FIRST, KINDS, VOCABULARY, tiny

from didact.data.encode import TokenizedExample
from didact.infer import beam, best_of, constrain, generate, rank, sampling
from didact.infer.generate import SamplingConfig
from didact.models import forward, head
from didact.models.model import Model
from didact.types import UserError

CONTEXT = 48
ENDS = [2, *range(FIRST, FIRST + 80)]  # random weights would hardly ever choose one end token
DICE = random.Random(0)
RAGGED = [[DICE.randrange(FIRST, VOCABULARY) for _ in range(DICE.randint(1, 30))] for _ in range(9)]
PREFIX = [DICE.randrange(FIRST, VOCABULARY) for _ in range(generate.SHARE + 2)]
ALIKE = [PREFIX + p[:8] for p in RAGGED]
V = 6  # small enough to enumerate all sequences


@pytest.fixture(scope="module")
def model_of():
    cache = {}

    def get(kind, context=CONTEXT):
        if (kind, context) not in cache:
            model = tiny(kind, context=context)
            model.module.generation_config.eos_token_id = ENDS
            cache[kind, context] = model
        return cache[kind, context]

    return get


@pytest.fixture(scope="module")
def small():
    """Models with a vocabulary of six; token 2 is the end."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=V, hidden_size=16, **shape, **ids))
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **ids
        )
    )
    with torch.no_grad():
        for p in [*llama.parameters(), *t5.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    tokenizer = tiny("llama").processor
    return {
        "llama": Model(llama.eval().double(), tokenizer),
        "t5": Model(t5.eval().double(), tokenizer, "seq2seq"),
    }


def theirs(model, prompt, new=10, **how):
    """Return the output of transformers for a single prompt."""
    new = new if model.kind == "seq2seq" else min(new, model.context - len(prompt))
    ids_out = model.module.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=new, do_sample=False, pad_token_id=0, **how,
    )[0].tolist()  # fmt: skip
    return tuple(ids_out[1:] if model.kind == "seq2seq" else ids_out[len(prompt) :])


def tokens_of(completions):
    return [[c.tokens for c in row] for row in completions]


class Seen:
    """Count the tokens that a module is run on."""

    def __init__(self, model):
        self.shapes = []
        self.hook = model.module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


# --- greedy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [RAGGED, ALIKE], ids=["ragged", "alike"])
def test_greedy_gives_the_tokens_transformers_gives(kind, prompts, model_of):
    model = model_of(kind)
    few_prompts = prompts[:4] if kind == "mamba" else prompts  # its reference implementation is slow
    completions = generate.completions(model, few_prompts, how=SamplingConfig(max_new_tokens=10, rows=4))
    expected = [theirs(model, p) for p in few_prompts]
    assert [row[0].tokens for row in completions] == expected
    assert len({len(t) for t in expected}) > 1 or kind in ("gpt2", "t5")  # rows finish at different times


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_greedy_in_float64_too(kind, model_of):
    model = tiny(kind, context=CONTEXT)
    model.module.double().generation_config.eos_token_id = ENDS
    completions = generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=10, rows=4))
    assert [row[0].tokens for row in completions] == [theirs(model, p) for p in RAGGED]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2"])
def test_rows_end_with_the_context_each_at_its_own_place(kind, model_of):
    model = model_of(kind, context=16)
    prompts = [(p * 16)[:n] for p, n in zip(RAGGED, (15, 9, 12, 15, 14, 8), strict=False)]
    completions = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=8))
    for p, row in zip(prompts, completions, strict=True):
        tail = p[-8:]  # the prompt gets at most half of the context when the completion needs the rest
        assert row[0].tokens == theirs(model, tail, 8)
    free = generate.completions(model, [p[:3] for p in prompts], how=SamplingConfig(max_new_tokens=14))
    assert [row[0].tokens for row in free] == [theirs(model, p[:3], 14) for p in prompts]


def test_log_probs_are_the_models_own(model_of):
    for kind in ("llama", "bloom", "t5", "mamba"):
        model = model_of(kind)
        completions = generate.completions(
            model, RAGGED[:3], 2, SamplingConfig(max_new_tokens=6, temperature=2.0, top_k=5)
        )
        rows = [TokenizedExample(tuple(p), c.tokens) for p, row in zip(RAGGED, completions, strict=False) for c in row]
        expected, _ = forward.row_logp(model, rows)
        actual = torch.tensor([c.logp for row in completions for c in row], dtype=torch.float64)
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_pad_token_that_a_model_says_is_a_token(kind, model_of, monkeypatch):
    """It is a normal token, and transformers must not mistake it for padding."""
    model, guessed = model_of(kind), []
    pad = model.module.config.pad_token_id
    real = hf.PreTrainedModel.warn_if_padding_and_no_attention_mask

    def told(self, ids, mask):
        guessed.append(mask is None and bool((ids[:, [-1, 0]] == pad).any()))
        real(self, ids, mask)

    monkeypatch.setattr(hf.PreTrainedModel, "warn_if_padding_and_no_attention_mask", told)

    def said(ids, logits):
        return torch.full_like(logits, -1e9).index_fill(-1, torch.tensor([pad]), 0.0)

    completions = generate.completions(model, [RAGGED[0]] * 3, 1, SamplingConfig(max_new_tokens=4), processors=[said])
    rows = [TokenizedExample(tuple(RAGGED[0]), m[0].tokens) for m in completions]
    assert all(r.completion == (pad,) * 4 for r in rows) and not any(guessed)
    assert [m[0].logp for m in completions] == pytest.approx(forward.row_logp(model, rows)[0].tolist(), abs=1e-4)


def test_finished_rows_leave_and_waiting_ones_enter(model_of):
    model = model_of("llama")
    prompts = [p[:12] for p in RAGGED * 6]
    with Seen(model) as counter:
        completions = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=24, rows=8))
    made_tokens = sum(len(row[0].tokens) for row in completions)
    run = sum(rows for rows, width in counter.shapes if width == 1)
    longest = max(len(row[0].tokens) for row in completions)
    assert min(len(row[0].tokens) for row in completions) < longest / 2
    assert max(rows for rows, _ in counter.shapes) == 8
    assert run < 1.4 * made_tokens < 0.9 * len(prompts) * longest  # as many as batches that run to their ends


def test_a_common_prefix_and_a_prompt_of_many_draws_are_run_once(model_of):
    model = model_of("llama")
    with Seen(model) as counter:
        generate.completions(model, ALIKE, how=SamplingConfig(max_new_tokens=2))
    assert counter.shapes[:2] == [(1, len(PREFIX)), (len(ALIKE), max(map(len, ALIKE)) - len(PREFIX))]
    with Seen(model) as counter:
        generate.completions(model, ALIKE[:1], 5, SamplingConfig(max_new_tokens=2, temperature=1.0))
    assert counter.shapes[0] == (1, len(ALIKE[0])) and counter.shapes[1][1] == 1


def test_the_module_is_left_in_the_mode_it_was_in(model_of):
    model = model_of("gpt2")
    model.module.train()
    generate.completions(model, RAGGED[:1], how=SamplingConfig(max_new_tokens=1))
    assert model.module.training
    model.module.eval()


def test_nothing_to_decode_gives_nothing(model_of):
    assert generate.generate(model_of("llama"), []) == []
    (completions,) = generate.completions(model_of("llama"), RAGGED[:1], how=SamplingConfig(max_new_tokens=0))
    assert completions == [generate.Completion("", (), 0.0)]


# --- sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "mamba"])
def test_a_draw_depends_on_seed_row_and_number_only(kind, model_of):
    model = model_of(kind)
    prompts = RAGGED[:5]
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.9}
    base = tokens_of(generate.completions(model, prompts, 3, SamplingConfig(**options)))
    for rows in (1, 4):
        assert tokens_of(generate.completions(model, prompts, 3, SamplingConfig(rows=rows, **options))) == base
    assert tokens_of(generate.completions(model, prompts[:2], 1, SamplingConfig(**options))) == [
        row[:1] for row in base[:2]
    ]
    shorter = tokens_of(generate.completions(model, prompts, 3, SamplingConfig(**options | {"max_new_tokens": 4})))
    assert shorter == [[t[:4] for t in row] for row in base]
    assert tokens_of(generate.completions(model, prompts, 3, SamplingConfig(seed=1, **options))) != base
    assert len({t for row in base for t in row}) > 10
    twins = tokens_of(generate.completions(model, RAGGED[:1] * 2, 2, SamplingConfig(**options)))
    assert len({t for row in twins for t in row}) == 4  # the same prompt in another row gets another sample


def test_a_large_vocabulary_is_drawn_from_in_parts_to_the_same_bits(model_of, monkeypatch):
    model = model_of("llama")
    prompts = ["aa", "b", "cdcdcd", "e", "ff"]
    for temperature in (0.0, 1.0):
        config = SamplingConfig(max_new_tokens=6, temperature=temperature, top_p=0.9)
        whole = generate.completions(model, prompts, 2, config)
        monkeypatch.setattr(head, "LARGE", 1), monkeypatch.setattr(head, "BLOCK", 3 * VOCABULARY)
        assert generate.completions(model, prompts, 2, config) == whole
        monkeypatch.undo()


def test_draws_have_the_models_distribution(model_of):
    model = model_of("llama")
    n = 3000
    completions = generate.completions(model, RAGGED[:1], n, SamplingConfig(max_new_tokens=1, temperature=0.5, rows=n))
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor(RAGGED[:1])).logits[0, -1]
    p = (logits / 0.5).softmax(-1).double()
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in completions[0]]), minlength=len(p)).double()
    top = p.topk(20).indices
    # Twenty z-values: the largest is above 4.5 once in a hundred thousand.
    assert ((counts[top] - n * p[top]).abs() / (n * p[top] * (1 - p[top])).sqrt()).max() < 4.5


@given(st.integers(0, 2**32), st.floats(0.2, 3), st.floats(0.05, 1), st.integers(0, 12))
def test_what_is_sampled_from_is_what_transformers_samples_from(seed, temperature, top_p, top_k):
    logits = 3 * torch.randn(4, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = hf.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = hf.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = hf.TopPLogitsWarper(top_p)(None, expected)
    actual = sampling.probabilities(logits, temperature, top_p, top_k)
    torch.testing.assert_close(actual, expected.softmax(-1), rtol=1e-9, atol=1e-12)


def test_a_draw_inverts_the_distribution_function():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, -1)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert sampling.draw(p, u).tolist() == [1, 1, 3, 3, 3]


def test_top_one_of_either_kind_is_greedy(model_of):
    model = model_of("llama")
    greedy = tokens_of(generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=6)))
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"top_p": 0.0}):
        assert (
            tokens_of(
                generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=6, temperature=1, **options))
            )
            == greedy
        )


# --- stops and processors --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_text_ends_before_the_first_stop_string_and_the_row_with_it(kind, model_of):
    model = model_of(kind)
    prompts = ["What is this?", "And that"]
    whole = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=20))
    text = max((row[0].text for row in whole), key=len)
    stops = ("never said", text[4:6], text[7:8])
    first = min(text.find(s) for s in stops[1:])
    completions = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=20, stop=stops))
    at = [row[0].text for row in whole].index(text)
    assert completions[at][0].text == text[:first].strip()
    assert len(completions[at][0].tokens) < len(whole[at][0].tokens)
    assert completions[at][0].tokens == whole[at][0].tokens[: len(completions[at][0].tokens)]
    for row, full in zip(completions, whole, strict=True):
        cut = min((i for s in stops if (i := full[0].text.find(s)) >= 0), default=None)
        assert row[0].text == full[0].text[:cut].strip()
    assert generate.generate(model, prompts, 20, stop=stops) == [row[0].text for row in completions]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_transformers_processors_do_here_what_they_do_there(kind, model_of):
    model = model_of(kind)
    processors = [hf.RepetitionPenaltyLogitsProcessor(3.0), hf.NoRepeatNGramLogitsProcessor(2)]
    completions = generate.completions(
        model, RAGGED, how=SamplingConfig(max_new_tokens=10, rows=4), processors=processors[:1]
    )
    bare = generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=10, rows=4))
    assert completions != bare
    # The pad token on the left is not among the tokens of the vocabulary in use
    for p, row in zip(RAGGED, completions, strict=True):
        assert row[0].tokens == theirs(model, p, repetition_penalty=3.0)
    both = generate.completions(model, RAGGED[:2], how=SamplingConfig(max_new_tokens=10, rows=1), processors=processors)
    expected = [theirs(model, p, repetition_penalty=3.0, no_repeat_ngram_size=2) for p in RAGGED[:2]]
    assert [row[0].tokens for row in both] == expected


def test_a_processor_sees_the_same_rows_from_first_to_last_token(model_of):
    sizes = []

    def watch(read, logits):
        sizes.append(tuple(read.shape))
        return logits

    generate.completions(model_of("llama"), RAGGED, how=SamplingConfig(max_new_tokens=10, rows=6), processors=[watch])
    first = [i for i, (a, b) in enumerate(zip([(0, 0), *sizes], sizes, strict=False)) if a[0] != b[0]]
    assert [sizes[i][0] for i in first] == [6, 3]
    for start, end in itertools.pairwise([*first, len(sizes)]):
        assert [t for _, t in sizes[start:end]] == list(range(sizes[start][1], sizes[start][1] + end - start))


# --- beams -----------------------------------------------------------------------------------


def brute_force(model, prompt, room):
    """Enumerate the sequences that end, or reach the length limit, with their log-probs."""
    inner = [t for t in range(V) if t != 2]
    every = [
        (*body, last)
        for n in range(1, room + 1)
        for body in itertools.product(inner, repeat=n - 1)
        for last in ([2] if n < room else range(V))
    ]
    logp, _ = forward.row_logp(model, [TokenizedExample(tuple(prompt), tokens) for tokens in every])
    return list(zip(every, logp.tolist(), strict=True))


def test_the_length_penalty_is_gpt3s():
    assert beam.length_penalty(4, 0.6) == pytest.approx(1.2754, abs=5e-5)
    assert beam.length_penalty(1, 0.6) == 1 and beam.length_penalty(9, 0.0) == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_a_beam_wide_enough_finds_the_best_of_all_sequences(kind, small):
    model, orders = small[kind], []
    every = brute_force(model, [3, 4], 3)
    for alpha in (0.0, 0.6, 3.0):
        scored = sorted(((logp / ((5 + len(t)) / 6) ** alpha, t, logp) for t, logp in every), reverse=True)
        (best,) = beam.search(model, [[3, 4]], V**3, alpha, [3], {2}, rows=V**3, best=4)
        for h, (score, tokens, logp) in zip(best[:4], scored, strict=False):
            assert h.tokens == tokens
            assert (h.score, h.logp) == (pytest.approx(score, abs=1e-6), pytest.approx(logp, abs=1e-6))
        orders.append([t for _, t, _ in scored])
    assert orders[0] != orders[2] and len(orders[0][0]) > 1


@pytest.mark.parametrize("kind", ["llama", "gemma3", "t5"])
def test_a_beam_of_one_is_greedy(kind, model_of):
    model = model_of(kind)
    rooms = [8] * len(RAGGED)
    result = beam.search(model, RAGGED, 1, 0.6, rooms, set(ENDS), rows=4)
    greedy = generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=8))
    assert [h[0].tokens for h in result] == [row[0].tokens for row in greedy]
    assert [h[0].logp for h in result] == [pytest.approx(row[0].logp, abs=1e-4) for row in greedy]


def test_a_wider_beam_is_never_worse_here_and_the_batch_is_invisible(model_of):
    model = model_of("llama")
    one, four = (
        generate.completions(model, RAGGED, how=SamplingConfig(max_new_tokens=6, beams=b, length_penalty=0.0))
        for b in (1, 4)
    )
    gains = [b[0].logp - a[0].logp for a, b in zip(one, four, strict=True)]
    assert sum(gains) > 0.1
    alone = [
        generate.completions(model, [p], how=SamplingConfig(max_new_tokens=6, beams=4, length_penalty=0.0))[0]
        for p in RAGGED
    ]
    assert tokens_of(alone) == tokens_of(four)
    two = generate.completions(model, RAGGED[:2], 2, SamplingConfig(max_new_tokens=6, beams=4))
    assert all(len(row) == 2 and row[0].tokens != row[1].tokens for row in two)


def test_a_beam_neither_draws_nor_gives_more_than_it_holds(model_of):
    for n, options in ((1, {"temperature": 1.0}), (3, {})):
        with pytest.raises(ValueError, match="beam search of width 2"):
            generate.completions(model_of("llama"), RAGGED[:1], n, SamplingConfig(beams=2, **options))


# --- constraints -----------------------------------------------------------------------------

STRINGS = st.lists(st.lists(st.integers(FIRST + 100, FIRST + 104), min_size=1, max_size=4), min_size=1, max_size=5)


@given(STRINGS, st.sampled_from([0.0, 1.0]), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_a_constrained_completion_is_one_of_the_strings(model_of_given, strings, temperature, beams):
    model = model_of_given
    allowed = constrain.Finite(strings, end=2)
    config = SamplingConfig(max_new_tokens=allowed.longest, temperature=temperature if beams == 1 else 0.0, beams=beams)
    for row in generate.completions(model, RAGGED[:2], how=config, constraint=allowed):
        assert list(row[0].tokens[:-1]) in strings and row[0].tokens[-1] == 2


@given(st.lists(st.integers(FIRST + 100, FIRST + 103), min_size=1, max_size=8), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_constrained_span_is_a_span(model_of_given, passage, longest):
    spans = constrain.Spans(passage, end=2, longest=longest)
    (row,) = generate.completions(
        model_of_given, RAGGED[:1], how=SamplingConfig(max_new_tokens=spans.longest), constraint=[spans]
    )
    *span, end = row[0].tokens
    assert end == 2 and 1 <= len(span) <= (longest or len(passage))
    assert any(passage[i : i + len(span)] == span for i in range(len(passage)))


@pytest.fixture(scope="module")
def model_of_given(model_of):
    return model_of("llama")


def test_every_span_of_a_passage_is_allowed_and_no_other_string():
    passage = [1, 2, 1, 3]
    spans = constrain.Spans(passage, end=9)
    expected = {tuple(passage[i:j]) for i in range(4) for j in range(i + 1, 5)}
    strings = set()

    def walk(state, read):
        for token in spans.allowed(state):
            if token == 9:
                strings.add(read)
                assert not spans.allowed(spans.advance(state, token))
            else:
                walk(spans.advance(state, token), (*read, token))

    walk(spans.start(), ())
    assert strings == expected


@torch.no_grad()
def test_constrained_greedy_takes_the_likeliest_allowed_token_every_time(small):
    model = small["llama"]
    passage, end = [3, 5, 4, 5, 5, 1], 2
    spans = constrain.Spans(passage, end)
    (row,) = generate.completions(model, [[3, 4]], how=SamplingConfig(max_new_tokens=7), constraint=spans)
    read, state, logp = [3, 4], spans.start(), 0.0
    while spans.allowed(state):
        scores = model.module(input_ids=torch.tensor([read])).logits[0, -1].log_softmax(-1)
        token = max(spans.allowed(state), key=lambda t: float(scores[t]))
        logp += float(scores[token])
        read, state = [*read, token], spans.advance(state, token)
    assert row[0].tokens == tuple(read[2:]) and row[0].logp == pytest.approx(logp, abs=1e-6)


def test_all_strings_allowed_is_no_constraint(small):
    for model in small.values():
        inner = [t for t in range(V) if t != 2]
        every = constrain.Finite([s for n in (1, 2, 3) for s in itertools.product(inner, repeat=n)], end=2)
        prompts = [[a, b] for a in inner for b in inner]
        free = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=4))
        held = generate.completions(model, prompts, how=SamplingConfig(max_new_tokens=4), constraint=every)
        same = [(a[0].tokens, b[0].tokens) for a, b in zip(free, held, strict=True) if a[0].tokens[0] != 2]
        assert len(same) > 3
        for a, b in same:
            assert a[:3] == b[:3]


def test_constraints_are_the_prompts_own_and_as_many(model_of):
    model = model_of("gpt2")
    strings = [[160, 161], [170], [180, 181, 182]]
    each = [constrain.Finite([s], end=2) for s in strings]
    completions = generate.completions(model, RAGGED[:3], how=SamplingConfig(max_new_tokens=4, rows=2), constraint=each)
    assert [row[0].tokens for row in completions] == [(*s, 2) for s in strings]
    with pytest.raises(ValueError, match="2 constraints for 3 prompts"):
        generate.completions(model, RAGGED[:3], constraint=each[:2])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_choices_are_said_as_they_are_written(kind, model_of):
    model = model_of(kind)
    texts = ["yes", "no", "not sure", "north"]
    for seed in range(6):
        constraint = constrain.choices(model, "Is it?", texts)
        completions = generate.generate(model, ["Is it?"] * 4, 12, 1.0, seed=seed, constraint=constraint)
        assert set(completions) <= set(texts)
    with pytest.raises(ValueError, match="at least one string"):
        constrain.choices(model, "Is it?", [])


def test_an_empty_passage_has_no_spans():
    with pytest.raises(ValueError, match="empty passage"):
        constrain.Spans([], end=1)


# --- ranking and best of n -------------------------------------------------------------------


def test_rules_are_functions_of_sums():
    assert rank.by_rule("sum", -6.0, 3, 12, -4.0) == -6
    assert rank.by_rule("token", -6.0, 3, 12, -4.0) == -2
    assert rank.by_rule("character", -6.0, 3, 12, -4.0) == -0.5
    assert rank.by_rule("unconditional", -6.0, 3, 12, -4.0) == -2
    with pytest.raises(ValueError, match="unknown rule"):
        rank.by_rule("mean", -1.0)
    with pytest.raises(ValueError, match="empty candidate"):
        rank.by_rule("token", 0.0, 0)


@pytest.mark.parametrize("kind", ["llama", "t5", "bloom"])
def test_ranks_are_the_rules_of_the_models_log_probs(kind, model_of):
    model = model_of(kind)
    prompts, candidates = ["Q: a?", "Q: b, longer?"], [["yes", "no!"], ["red", "blue", "x"]]

    def logp(prompt, text):
        ids = model.tokenizer(prompt)["input_ids"]
        joined = " " + text if kind != "t5" else text
        body = model.tokenizer(joined, add_special_tokens=False)["input_ids"]
        return float(forward.row_logp(model, [TokenizedExample(tuple(ids), tuple(body))])[0]), len(body)

    for rule in ("sum", "token", "character", "unconditional"):
        actual = rank.rank(model, prompts, candidates, rule, answer_context="A:")
        for prompt, texts, scores in zip(prompts, candidates, actual, strict=True):
            for text, score in zip(texts, scores, strict=True):
                total, count = logp(prompt, text)
                size = {"sum": 1, "token": count, "character": len(text), "unconditional": 1}[rule]
                less = logp("A:", text)[0] if rule == "unconditional" else 0.0
                assert score == pytest.approx(total / size - less, abs=1e-5)


def test_an_answer_context_that_is_the_prompt_leaves_nothing(model_of):
    scores = rank.rank(model_of("llama"), ["Answer:"], [["yes", "no"]], "unconditional", answer_context="Answer:")
    assert scores == [[pytest.approx(0, abs=1e-5)] * 2]


def test_the_end_token_is_scored_on_request_only(model_of):
    model = model_of("llama")
    (without_end,), (with_end,) = (rank.rank(model, ["a"], [["b"]], "sum", end=end)[0] for end in (False, True))
    assert with_end < without_end


def test_wrong_candidates_are_told(model_of):
    with pytest.raises(UserError, match="candidate '': the completion is empty"):
        rank.rank(model_of("llama"), ["a"], [["b", ""]])
    with pytest.raises(UserError, match="1 lists of candidates for 2 prompts"):
        rank.rank(model_of("llama"), ["a", "b"], [["c"]])


def test_of_equal_scores_the_first_is_picked():
    assert best_of.pick(["a", "b", "c"], [1.0, 2.0, 2.0])[:2] == ("b", 1)
    assert best_of.pick(["a", "b", "c"], [1.0, 2.0, 1.0], worst=True)[:2] == ("a", 0)
    for texts, scores in (([], []), (["a"], [math.nan]), (["a"], [1.0, 2.0])):
        with pytest.raises(ValueError, match="cannot be picked"):
            best_of.pick(texts, scores)


def test_best_of_n_is_the_best_of_its_draws(model_of):
    model, prompts = model_of("llama"), ["What?", "And why is that so?"]
    config = SamplingConfig(max_new_tokens=12, temperature=2.0)

    def longest(prompts_in, texts):
        return [len(p) + len(c) for p, c in zip(prompts_in, texts, strict=True)]

    best, worst = (best_of.best_of(model, prompts, 6, longest, w, config) for w in (False, True))
    samples = generate.sample(model, prompts, 6, config)
    for p, b, w, texts in zip(prompts, best, worst, samples, strict=True):
        assert b.texts == w.texts == tuple(texts) and b.scores == w.scores == tuple(len(t) + len(p) for t in texts)
        assert len(b.text) == max(map(len, texts)) and len(w.text) == min(map(len, texts))
    few = best_of.best_of(model, prompts, 3, longest, how=config)
    assert [f.texts for f in few] == [b.texts[:3] for b in best]
    likeliest = best_of.best_of(model, prompts, 6, how=config)
    outputs = generate.completions(model, prompts, 6, config)
    assert [b.text for b in likeliest] == [max(row, key=lambda c: c.logp).text for row in outputs]

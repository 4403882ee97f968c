"""Shared prefixes, tree masks, packing and cached prefixes change no value and no gradient, on any architecture."""

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import FIRST, KINDS, VOCABULARY, plain_logits, tiny

from didact.data import packing
from didact.data.encode import TokenizedExample
from didact.data.packing import Packing
from didact.data.streams import Batch, collate, of_trees
from didact.learn import language
from didact.models import adapters, forward, prefix
from didact.models.model import Model
from didact.objectives import tokens as token_functions

TREES = [k for k in KINDS if k not in ("bloom", "mamba", "t5")]
EAGER = Packing(attention=10**9, share=1)  # shares every possible prefix
ids = st.lists(st.integers(FIRST, FIRST + 1), min_size=1, max_size=6).map(tuple)
rows = st.builds(TokenizedExample, ids, ids)
some = st.lists(rows, min_size=1, max_size=6)


def text(n, seed):
    """Return `n` random tokens."""
    tokens = torch.randint(FIRST, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed))
    return tuple(tokens.tolist())


def pairs(n=4, prompt=11):
    """Items of two rows that share a prompt; in the second item the completions share a prefix as well."""
    out = []
    for i in range(n):
        head, same = text(prompt + 3 * i, i), text(3 if i == 1 else 0, 100 + i)
        out.append(
            (TokenizedExample(head, same + text(5 + i, 200 + i)), TokenizedExample(head, same + text(7 - i, 300 + i)))
        )
    return out


def choices(items, shared, query, seed=0):
    """Rows of items with 3 choices after a query, after a prefix shared by all items."""
    head, out = text(shared, seed), []
    for i in range(items):
        context = head + text(query, seed + 10 + i)
        out += [TokenizedExample(context, text(n, seed + 1000 + 10 * i + n)) for n in (1, 2, 4)]
    return out


def plain_logp(model, rows):
    """Return log-probs of all labels, each row alone by the model's own forward."""
    target = torch.tensor([t for r in rows for t in r.completion])
    return plain_logits(model, rows).log_softmax(-1)[range(len(target)), target]


@pytest.fixture
def wide(monkeypatch):
    """Double precision throughout: transformers' norms and softmaxes always compute in float32."""
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def kept(x, *args, **more):
        if x.dtype == torch.float64:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            more = {k: torch.float64 if v is torch.float32 else v for k, v in more.items()}
        return to(x, *args, **more)

    monkeypatch.setattr(torch.Tensor, "to", kept)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: kept(x, torch.float32))
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def double(kind, seed=0, **more):
    model = tiny(kind, seed, **more)
    model.module.double()
    return model


def micro_of(model, items, packing):
    (micro,) = Batch(
        {"s": items}, {"s": range(len(items))}, model.kind, model.pad, model.start, packing=packing
    ).split(None)  # fmt: skip
    return micro


def gradients(model, loss):
    model.module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected, tolerance=1e-10):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert float((actual[name] - value).abs().max()) <= tolerance * max(scale, 1), name


# --- trees -----------------------------------------------------------------------------------


@given(given_rows=some, pack=st.booleans())
def test_a_path_through_a_tree_is_the_row_it_was_made_from(given_rows, pack):
    trees = packing.trees(given_rows, EAGER)
    trees = packing.packed(trees) if pack else trees
    results = {}
    for tree in trees:
        i, j = torch.arange(tree.width)[:, None], torch.arange(tree.width)
        visible = (j <= i) & (i < torch.tensor(tree.reach))
        for row, positions in tree.paths:
            assert tuple(tree.ids[positions]) == packing.read(given_rows[row])
            assert list(tree.position[positions]) == list(range(len(positions)))
            if len(positions):  # the last token attends to exactly its path
                assert visible[positions[-1]].nonzero()[:, 0].tolist() == list(positions)
            results[row] = positions
    assert sorted(results) == list(range(len(given_rows)))


@given(given_rows=some)
def test_a_tree_holds_every_beginning_once(given_rows):
    trees = packing.trees(given_rows, EAGER)
    beginnings = {packing.read(r)[: n + 1] for r in given_rows for n in range(r.size - 1)}
    assert sum(t.width for t in trees) == len(beginnings)


@given(given_rows=some, pack=st.booleans())
def test_unrolled_trees_are_the_plain_rows(given_rows, pack):
    plain = collate(given_rows)
    trees = packing.trees(given_rows, EAGER)
    shared = of_trees(given_rows, packing.packed(trees) if pack else trees)
    assert torch.equal(shared.target, plain.target) and torch.equal(shared.row, plain.row)
    again = shared.unrolled()
    for name in ("input_ids", "attention_mask", "at", "target", "row"):
        assert torch.equal(getattr(again, name), getattr(plain, name)), name
    over, everywhere = shared.everywhere(), plain.everywhere()
    assert torch.equal(over.row, everywhere.row)
    read = shared.input_ids.view(-1)[over.at]
    assert torch.equal(read, plain.input_ids.view(-1)[everywhere.at])


@given(two=st.lists(st.tuples(rows, rows), min_size=1, max_size=5), micro_tokens=st.integers(1, 60), pack=st.booleans())
def test_micro_batches_of_trees_hold_every_row_within_their_physical_tokens(two, micro_tokens, pack):
    packing = Packing(10**9, 1, pack)
    batch = Batch({"s": two}, {"s": range(len(two))}, packing=packing)
    assert batch.sizes == Batch({"s": two}, {"s": range(len(two))}).sizes
    labels_of = {}
    for micro in batch.split(micro_tokens):
        assert micro.items == 1 or micro.tokens.input_ids.numel() <= micro_tokens
        for at, item in enumerate(micro.index.tolist()):
            for side in range(2):
                labels = micro.tokens.target[micro.tokens.row == 2 * at + side]
                labels_of[item, side] = tuple(labels.tolist())
    assert labels_of == {(i, side): two[i][side].completion for i in range(len(two)) for side in range(2)}


def test_a_branch_joins_where_that_is_cheaper_than_a_row_of_its_own():
    rule = Packing(attention=768, share=8)
    assert rule.joins(width=300, shared=250, own=50)
    assert not rule.joins(width=300, shared=7, own=1)  # saves too little to be worth a mask
    assert not rule.joins(width=300, shared=20, own=280)  # masked attention costs more than 20 tokens
    assert not rule.joins(width=8000, shared=200, own=100)  # the tree is too wide
    rows_ = [TokenizedExample(text(250, 0), text(100, n)) for n in range(40)]
    trees = packing.trees(rows_, rule)
    assert 1 < len(trees) < 20 and sum(len(t.paths) for t in trees) == 40


def test_a_prefix_of_many_rows_is_planned_to_run_once_and_predicts_no_label():
    given_rows = choices(30, 200, 20)
    for rule in (Packing(), None):
        (run,) = packing.plan(given_rows, rule)
        assert len(run.prefix) == 200 and run.prefix == given_rows[0].prompt[:200]
        tokens = sum(t.width for t in run.trees)
        assert tokens < 30 * 30 + (0 if rule else 90 * 22)
        for tree in run.trees:
            assert tree.position.min() == 200
            for row, positions in tree.paths:
                assert tuple(tree.ids[positions]) == packing.read(given_rows[row])[200:]
    # All of these share their whole prompt: its last token predicts, so it runs with the branches.
    (run,) = packing.plan([TokenizedExample(text(100, 0), text(5, n)) for n in range(3)], None)
    assert len(run.prefix) == 99
    own = packing.plan([r for i in range(5) for r in choices(1, 200, 20, seed=50 * i)], None)
    assert [len(run.prefix) for run in own] == [219] * 5


@given(given_rows=some, tree=st.booleans(), prefix=st.integers(1, 4))
def test_a_plan_holds_every_row_once(given_rows, tree, prefix):
    results = {}
    for run in packing.plan(given_rows, EAGER if tree else None, prefix):
        for t in run.trees:
            for row, positions in t.paths:
                assert row not in results
                results[row] = run.prefix + tuple(t.ids[positions])
                assert len(positions) >= len(given_rows[row].completion)  # every label is predicted here
    assert results == {i: packing.read(r) for i, r in enumerate(given_rows)}


# --- training --------------------------------------------------------------------------------


def test_the_models_that_take_trees_are_the_ones_tested_here():
    types = {kind: tiny(kind).config.model_type for kind in KINDS}
    assert {types[k] for k in TREES} == forward.TREE
    assert {k for k in KINDS if forward.packing_of(tiny(k)) is not None} == set(TREES)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_prompts_change_neither_log_probs_nor_gradients(kind, checkpointing, wide):
    model, items = double(kind), pairs()
    flat = [r for item in items for r in item]
    weight = torch.linspace(-1, 2, sum(len(r.completion) for r in flat), dtype=torch.float64)
    expected = plain_logp(model, flat)
    theirs = gradients(model, (weight * expected).sum())
    packing = forward.packing_of(model)
    micro = micro_of(model, items, packing)
    assert (micro.tokens.reach is not None) == (kind in TREES)
    assert (micro.tokens.source is not None) == (kind == "t5")
    if kind in TREES:
        assert len(micro.tokens.input_ids) == len(items)
    if checkpointing and kind != "mamba":  # which has none
        model.module.gradient_checkpointing_enable()
        model.module.train()
    actual = forward.tokens(model, micro.tokens)["logp"]
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(model, (weight * actual).sum()), theirs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TREES)
def test_packed_rows_see_nothing_of_each_other(kind, attention, wide):
    if kind == "gemma2" and attention == "sdpa":
        pytest.skip("has no such attention")
    model = double(kind)
    model.module.set_attn_implementation(attention)
    short = [TokenizedExample(text(3 + i % 4, i), text(1 + i % 3, 50 + i)) for i in range(9)]
    items = pairs(2) + [(a, b) for a, b in zip(short[::2], short[1::2], strict=False)]
    flat = [r for item in items for r in item]
    micro = micro_of(model, items, Packing(attention=10**4, pack=True))
    assert len(micro.tokens.input_ids) < len(items) + 2
    actual = forward.tokens(model, micro.tokens)["logp"]
    expected = plain_logp(model, flat)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(model, actual.sum()), gradients(model, expected.sum()))


def test_other_attention_kernels_take_the_plain_path():
    model = tiny("llama")
    assert forward.packing_of(model) is not None
    model.config._attn_implementation = "flash_attention_2"
    assert forward.packing_of(model) is None
    moving = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert forward.packing_of(tiny("llama", rope_parameters=moving)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trees_work_in_half_precision_and_under_autocast(dtype):
    model, items = tiny("llama"), pairs()
    micro = micro_of(model, items, forward.packing_of(model))
    expected = plain_logp(model, [r for item in items for r in item])
    with torch.autocast("cpu", dtype), torch.no_grad():
        loose = forward.tokens(model, micro.tokens)["logp"]
    model.module.to(dtype)
    with torch.no_grad():
        half = forward.tokens(model, micro.tokens)["logp"]
    torch.testing.assert_close(loose.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["llama", "bloom", "t5"])
def test_sums_over_all_tokens_and_references_are_those_of_plain_rows(kind, wide):
    """The reference has another architecture, which does not support trees."""
    model, items = double(kind), pairs()
    reference = double("bloom" if kind != "t5" else "t5", seed=1)
    packing = forward.packing_of(model)
    for everywhere in (False, True):
        values = [
            language.token_mean(
                model, micro_of(model, items, plan), token_functions.kl_from, reference=reference, everywhere=everywhere
            )
            for plan in (packing, None)
        ]
        torch.testing.assert_close(values[0].sum, values[1].sum, rtol=1e-10, atol=0)
        assert values[0].per == values[1].per and float(values[0].sum.detach()) > 1
    totals, counts = language.sequence_logp(model, micro_of(model, items, packing))
    expected = plain_logp(model, [r for item in items for r in item])
    parts = expected.split([len(r.completion) for item in items for r in item])
    torch.testing.assert_close(totals.view(-1), torch.stack([p.sum() for p in parts]), rtol=1e-10, atol=0)
    assert counts.view(-1).tolist() == [len(p) for p in parts]


def test_labels_at_one_position_have_no_dense_form():
    model = tiny("llama")
    micro = micro_of(model, pairs(), forward.packing_of(model))
    with pytest.raises(ValueError, match="several label tokens"):
        _ = micro.tokens.labels
    plain = micro.tokens.unrolled()
    assert torch.equal(plain.labels[plain.mask], plain.target)
    assert int(micro.tokens.mask.sum()) < len(micro.tokens.at) == int(plain.mask.sum())


# --- scoring ---------------------------------------------------------------------------------


def scored(model, given_rows, **more):
    """Return log-probs in row order, and how many physical tokens ran in the batches."""
    out, tokens = [None] * len(given_rows), 0
    for group, batch, values in forward.score(model, given_rows, **more):
        tokens += batch.input_ids.numel()
        for at, i in enumerate(group):
            assert out[i] is None
            out[i] = values["logp"][batch.row == at]
            assert tuple(batch.target[batch.row == at].tolist()) == given_rows[i].completion
    return torch.cat(out), tokens


@pytest.mark.parametrize(("kind", "budget"), [*((k, 150) for k in KINDS), ("llama", 8192), ("t5", 8192)])
def test_scores_are_those_of_each_row_alone(kind, budget, monkeypatch, wide):
    model = double(kind)
    # Demonstrations shared by all items; an item with its own demonstrations; a row like no other; a duplicate.
    given_rows = (
        choices(4 if kind in ("mamba", "t5") else 12, 70, 9)
        + choices(1, 90, 5, seed=7)
        + [TokenizedExample(text(4, 5), text(3, 6))]
    )
    given_rows = [*given_rows[::2], *given_rows[1::2], given_rows[0]]
    prefilled = []
    prefill = prefix.prefill
    monkeypatch.setattr(prefix, "prefill", lambda m, run: (prefilled.append(len(run)), prefill(m, run))[1])
    if kind in TREES:  # narrow trees, so that several start from the prefix
        monkeypatch.setattr(forward, "packing_of", lambda m: Packing(attention=100))
    actual, tokens = scored(model, given_rows, batch_tokens=budget)
    torch.testing.assert_close(actual, plain_logp(model, given_rows).detach(), rtol=1e-10, atol=1e-10)
    alone = sum(r.size - 1 for r in given_rows)
    if kind in ("mamba", "t5"):
        assert not prefilled
    else:
        assert max(prefilled) >= 70 and tokens < alone / 4


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "t5"])
def test_scores_in_float32_are_as_near_as_plain_ones(kind):
    model, given_rows = tiny(kind), choices(8 if kind in ("mamba", "t5") else 30, 100, 9)
    actual, _ = scored(model, given_rows)
    with torch.no_grad():
        torch.testing.assert_close(actual, plain_logp(model, given_rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget", [40, 8192])
def test_an_encoder_reads_each_prompt_once(budget, wide):
    model, given_rows = double("t5"), choices(6, 10, 5)
    read = []
    model.module.get_encoder().register_forward_pre_hook(
        lambda m, a, k: read.append(len(k["input_ids"])), with_kwargs=True
    )
    actual, _ = scored(model, given_rows, batch_tokens=8192)
    assert sum(read) == 6
    again, _ = scored(model, given_rows, batch_tokens=budget)
    expected = plain_logp(model, given_rows).detach()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-10)


def test_windows_of_text_are_scored_in_plain_rows():
    model = tiny("llama")
    given_rows = [TokenizedExample((1,), text(30, n)) for n in range(5)]
    for _, batch, _ in forward.score(model, given_rows):
        assert batch.reach is None and batch.position_ids is None


# --- adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "bloom", "t5"])
def test_lora_is_part_of_every_path(kind, wide):
    model = adapters.lora(double(kind), 4)
    before = plain_logp(model, [r for item in pairs() for r in item]).detach()
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if "lora_B" in name:
                p.add_(0.3)
    items = pairs()
    flat = [r for item in items for r in item]
    expected = plain_logp(model, flat)
    assert (expected - before).abs().max() > 0.01
    packing = forward.packing_of(model)
    assert (packing is not None) == (kind in TREES)
    actual = forward.tokens(model, micro_of(model, items, packing).tokens)["logp"]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert_same_gradients(gradients(model, actual.sum()), gradients(model, expected.sum()), 1e-9)
    shared_rows = choices(6, 70, 9)
    torch.testing.assert_close(
        scored(model, shared_rows)[0], plain_logp(model, shared_rows).detach(), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("how", ["prompt", "prefix"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "t5"])
def test_learned_prompts_take_the_plain_path_through_their_own_forward(kind, how):
    start, items = tiny(kind), pairs()
    task = peft.TaskType.SEQ_2_SEQ_LM if kind == "t5" else peft.TaskType.CAUSAL_LM
    config = peft.PromptTuningConfig if how == "prompt" else peft.PrefixTuningConfig
    module = peft.get_peft_model(start.module, config(task_type=task, num_virtual_tokens=3)).eval()
    model = Model(module, start.processor, start.kind)
    with torch.no_grad():
        for p in module.prompt_encoder.parameters():
            p.copy_(torch.randn_like(p))
    flat = [r for item in items for r in item]
    assert forward.packing_of(model) is None
    actual = forward.tokens(model, micro_of(model, items, None).tokens)["logp"]
    expected = []
    for head, completion in flat:
        if kind == "t5":
            logits = module(
                input_ids=torch.tensor([head]),
                attention_mask=torch.ones(1, len(head), dtype=torch.long),
                decoder_input_ids=torch.tensor([(model.start, *completion[:-1])]),
            ).logits[0]
        else:
            whole = torch.tensor([head + completion])
            logits = module(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -len(completion) - 1 : -1]
        expected.append(logits.log_softmax(-1)[range(len(completion)), torch.tensor(completion)])
    torch.testing.assert_close(actual, torch.cat(expected), rtol=0, atol=2e-5)
    actual.sum().backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in module.prompt_encoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(scored(model, flat)[0], torch.cat(expected), rtol=0, atol=2e-5)

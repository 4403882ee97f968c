"""Batches: determined by (seed, step), complete in an epoch, of the right sizes, and the same for any split."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from didact.data.encode import TokenizedExample
from didact.data.streams import IGNORE, Batch, Batches, Stream, Tensors, by_length, collate

PAD = 0
ids = st.lists(st.integers(1, 99), min_size=1, max_size=9).map(tuple)
rows = st.builds(TokenizedExample, ids, ids)


def items_of(n, arity=1):
    """Items identified by their first prompt token."""
    return [
        tuple(TokenizedExample((i + 1, *range(j + 1)), (i + 1,) * (1 + i % 4)) for j in range(arity)) for i in range(n)
    ]


def batch_of(streams, kind="causal"):
    return Batch(streams, {k: range(len(v)) for k, v in streams.items()}, kind, PAD, 7)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    streams = {"forget": Stream(items_of(10), 4), "retain": Stream(items_of(23), 4)}
    a, b, other = Batches(streams, 3), Batches(streams, 3), Batches(streams, 4)
    forwards = [a(step).index for step in range(40)]
    backwards = [b(step).index for step in reversed(range(40))][::-1]
    assert forwards == backwards
    assert forwards != [other(step).index for step in range(40)]


def test_an_epoch_draws_every_item_once_and_in_another_order_each_time():
    batches = Batches({"forget": Stream(items_of(10), 4)}, 0)
    samples = [i for step in range(15) for i in batches(step).index["forget"]]
    epochs = [samples[at : at + 10] for at in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_what_a_training_will_see_is_known_beforehand():
    batches = Batches({"forget": Stream(items_of(10), 3), "retain": Stream(items_of(4), 3)}, 0)
    for steps in (0, 1, 3, 4, 9):
        for name in batches.streams:
            assert batches.drawn(name, steps) == sorted({i for s in range(steps) for i in batches(s).index[name]})


def test_streams_are_paired_at_random_not_by_position():
    batches = Batches({"forget": Stream(items_of(8), 4), "retain": Stream(items_of(8), 4)}, 0)
    pairs = {
        (f, r)
        for step in range(20)
        for f, r in zip(batches(step).index["forget"], batches(step).index["retain"], strict=True)
    }
    assert len(pairs) > 30  # the official code's fixed partners would give 8


def test_a_batch_holds_the_items_its_index_names():
    batch = Batches({"s": Stream(items_of(9, arity=2), 4)}, 1)(2)
    assert [item[0].prompt[0] - 1 for item in batch.items["s"]] == list(batch.index["s"])


@given(one=st.lists(rows, max_size=6), two=st.lists(st.tuples(rows, rows), min_size=1, max_size=6))
def test_sizes_are_the_true_counts(one, two):
    batch = batch_of({"one": [(r,) for r in one], "two": two})
    flat = [r for pair in two for r in pair]
    expected = {
        "one.rows": len(one),
        "two.rows": len(two),
        "one.tokens": sum(len(r.completion) for r in one),
        "two.tokens": sum(len(r.completion) for r in flat),
        "one.seen": sum(r.size - 1 for r in one),
        "two.seen": sum(r.size - 1 for r in flat),
    }
    whole = {w: sum(v for k, v in expected.items() if k.endswith(w)) for w in ("rows", "tokens", "seen")}
    assert dict(batch.sizes) == expected | whole
    # and equal the tensors' sizes
    micros = batch.split(None)
    assert sum(len(m.tokens.target) for m in micros) == batch.sizes["tokens"]
    assert sum(int(m.tokens.attention_mask.sum()) for m in micros) == batch.sizes["seen"]
    assert sum(len(m.tokens.everywhere().target) for m in micros) == batch.sizes["seen"]


def contents(batch, micro_tokens):
    """Return the content of a split, independent of order and padding: item -> its rows' input tokens and labels."""
    out = Counter()
    for micro in batch.split(micro_tokens):
        t = micro.tokens
        for at, item in enumerate(micro.index.tolist()):
            for r in range(at * micro.arity, (at + 1) * micro.arity):
                read = tuple(t.input_ids[r][t.attention_mask[r].bool()].tolist())
                labels = tuple(t.labels[r][t.labels[r] != IGNORE].tolist())
                out[micro.stream, item, r - at * micro.arity, read, labels] += 1
    return out


@given(
    one=st.lists(rows, max_size=7),
    two=st.lists(st.tuples(rows, rows), min_size=1, max_size=5),
    micro_tokens=st.integers(1, 200),
    world=st.integers(1, 4),
)
def test_splits_and_shards_partition_the_batch(one, two, micro_tokens, world):
    batch = batch_of({"one": [(r,) for r in one], "two": two})
    whole = contents(batch, None)
    assert contents(batch, micro_tokens) == whole
    shards = [batch.shard(rank, world) for rank in range(world)]
    assert sum((contents(s, micro_tokens) for s in shards), Counter()) == whole
    assert all(s.sizes == batch.sizes for s in shards)
    for micro in batch.split(micro_tokens):
        t = micro.tokens
        assert micro.items == 1 or t.labels.numel() <= micro_tokens
        assert len(t.labels) == micro.items * micro.arity


@given(lengths=st.lists(st.integers(1, 50), max_size=30), micro_tokens=st.integers(1, 120))
def test_length_groups_hold_everything_within_the_limit(lengths, micro_tokens):
    groups = by_length(lengths, micro_tokens)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for g in groups:
        assert len(g) == 1 or len(g) * max(lengths[i] for i in g) <= micro_tokens


@given(batch=st.lists(rows, min_size=1, max_size=6))
def test_a_label_stands_where_it_is_predicted(batch):
    t = collate(batch, "causal", PAD)
    for r, (prompt, completion) in enumerate(batch):
        whole = prompt + completion
        n = len(whole) - 1
        assert t.input_ids[r, :n].tolist() == list(whole[:-1]) and t.attention_mask[r].sum() == n
        for at in range(t.labels.shape[1]):
            predicted = whole[at + 1] if len(prompt) - 1 <= at < n else IGNORE
            assert t.labels[r, at] == predicted
    assert t.target.tolist() == [token for row in batch for token in row.completion]
    assert t.row.tolist() == [r for r, row in enumerate(batch) for _ in row.completion]


def test_a_decoder_of_a_seq2seq_model_starts_from_its_start_token():
    t = collate([TokenizedExample((5, 6, 7), (8, 9)), TokenizedExample((4,), (3, 2, 1))], "seq2seq", PAD, start=7)
    assert t.input_ids.tolist() == [[5, 6, 7], [4, 0, 0]] and t.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert t.decoder_input_ids.tolist() == [[7, 8, 0], [7, 3, 2]]
    assert t.labels.tolist() == [[8, 9, IGNORE], [3, 2, 1]]


def test_moving_a_batch_moves_all_of_it():
    micro = batch_of({"s": items_of(3)}, "seq2seq").split(None)[0].to("meta")
    tensors = [micro.index, *(v for v in vars(micro.tokens).values() if v is not None)]
    assert {t.device.type for t in tensors} == {"meta"} and len(tensors) == 7


@given(n=st.integers(1, 20), micro=st.none() | st.integers(1, 25), world=st.integers(1, 4))
def test_plain_tensors_are_cut_and_shared_out_without_loss(n, micro, world):
    batch = Tensors({"x": torch.arange(n), "y": torch.arange(n) * 10})
    assert batch.sizes == {"rows": n}
    shards = [batch.shard(rank, world) for rank in range(world)]
    pieces = [p for s in shards for p in s.split(micro)]
    assert sorted(torch.cat([p["x"] for p in pieces]).tolist()) == list(range(n))
    for p in pieces:
        assert torch.equal(p["y"], p["x"] * 10) and p.sizes == batch.sizes
        assert micro is None or len(p["x"]) <= micro

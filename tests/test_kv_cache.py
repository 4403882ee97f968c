"""The prefix cache: tokens seen before are not run again, and results do not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import tiny
from test_prefix import PROVEN

from didact.data.encode import TokenizedExample
from didact.infer import generate, policy, tree
from didact.infer.generate import SamplingConfig
from didact.models import cost, forward, prefix
from didact.models.kv_cache import KVCache

ROWS = [[10, 11, 12, 13, 14, 15, 16, 20], [10, 11, 12, 13, 14, 15, 16, 21, 22], [30, 31, 32], [10, 11, 33]]
LATER = [[*ROWS[1], 40, 41], [*ROWS[2], 42], [50, 51, 52, 53], [10, 11, 33]]
SAMPLED = SamplingConfig(max_new_tokens=6, temperature=1.0, seed=3)


def read(model, rows, kv_cache):
    """Run rows with a cache; return the logits after them."""
    past = kv_cache.past(rows, kv_cache.depths(rows), room=max(map(len, rows)))
    depths = [0] * len(rows) if not past.position.numel() else past.depth.tolist()
    ends = prefix.extend(model, past.store, [r[n:] for r, n in zip(rows, depths, strict=True)], past.position)
    for k, (row, n) in enumerate(zip(rows, depths, strict=True)):
        first = max(depths) - n
        kv_cache.keep(row, past.store, k, slice(first, first + len(row)))
    return ends


@pytest.mark.parametrize("kind", PROVEN)
@torch.no_grad()
def test_rows_that_go_on_from_memory_are_the_whole_rows(kind):
    model, kv_cache = tiny(kind), KVCache()
    read(model, ROWS, kv_cache)
    assert kv_cache.depths(LATER) == [9, 3, 0, 2]
    whole = torch.stack([model.module(input_ids=torch.tensor([r])).logits[0, -1] for r in LATER])
    torch.testing.assert_close(read(model, LATER, kv_cache), whole, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("kind", PROVEN)
def test_completions_are_the_same_with_a_memory(kind):
    model, kv_cache = tiny(kind), KVCache()
    first = generate.completions(model, ROWS, 2, SAMPLED, kv_cache=kv_cache)
    assert first == approximately(generate.completions(model, ROWS, 2, SAMPLED))
    later = [[*r, *completion[1].tokens, 44] for r, completion in zip(ROWS, first, strict=True)]
    cached_output = generate.completions(model, later, 2, SAMPLED, kv_cache=kv_cache)
    assert cached_output == approximately(generate.completions(model, later, 2, SAMPLED))
    assert min(kv_cache.depths(later)) >= min(map(len, ROWS))


@pytest.mark.parametrize("kind", PROVEN)
def test_scores_are_the_same_with_a_memory(kind):
    model, kv_cache = tiny(kind), KVCache()
    earlier = [TokenizedExample(tuple(r), (60, 61)) for r in ROWS]
    later = [TokenizedExample(tuple(r), end) for r in LATER for end in ((60, 61), (62,), (60, 63, 64))] + [
        TokenizedExample((10,), (11, 12))
    ]
    for rows in (earlier, later, later):
        expected = forward.row_logp(model, rows)
        for actual, target in zip(forward.row_logp(model, rows, kv_cache=kv_cache), expected, strict=True):
            torch.testing.assert_close(actual, target, rtol=1e-6, atol=1e-5)
    assert len(kv_cache) == (0 if kind == "bloom" else 7)  # rows that no other row extends


def test_what_was_read_costs_nothing_again():
    model, kv_cache = tiny("llama"), KVCache()
    rows = [TokenizedExample(tuple(range(10, 40)), (60,)), TokenizedExample(tuple(range(10, 41)), (61,))]
    costs = []
    for cache in (None, kv_cache, kv_cache):
        with cost.metered() as meter:
            forward.row_logp(model, rows, kv_cache=cache)
        costs.append(meter.tokens)
    assert costs[2] < costs[0] / 5 and costs[1] == costs[0]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_the_longest_known_beginning_is_found(rows):
    store = prefix.Store([prefix.Layer(torch.arange(6.0).reshape(1, 1, 6, 1), torch.zeros(1, 1, 6, 1), 6)])
    kv_cache = KVCache()
    for number, row in enumerate(rows):
        *_, last_token = row
        prefixes = [
            sum(all(a == b for a, b in zip(r[: n + 1], row, strict=False)) for n in range(min(len(r), len(row) - 1)))
            for r in rows[:number]
        ]
        assert kv_cache.depths([row]) == [max(prefixes, default=0)], last_token
        kv_cache.keep(row, store, 0, slice(0, len(row)))
    for row in rows:
        past = kv_cache.past([row], [len(row)])
        assert past.position.tolist() == [list(range(len(row)))]
        assert past.store.layers[0].keys.flatten().tolist() == list(range(len(row)))


def test_the_oldest_is_forgotten_where_there_is_no_room():
    model = tiny("llama")
    size = 2 * model.config.num_hidden_layers * model.config.hidden_size * 4  # bytes per token, at most
    kv_cache = KVCache(most=size * 9)
    with torch.no_grad():
        for first in range(8):
            read(model, [[first, 20, 21, 22]], kv_cache)
            read(model, [[0, 20, 21, 22]], kv_cache)  # used every time
    assert kv_cache.held <= kv_cache.most and kv_cache.depths([[0, 20, 21, 22, 23], [1, 20, 21, 22, 23]]) == [4, 0]


def test_trees_are_the_same_with_a_memory():
    model = tiny("llama")
    prompts = {n: tuple(range(10 + n, 40)) for n in range(3)}

    def grown(remembers):
        search = policy.StepSearch(root_actions=3, step_tokens=5, prior_power=1.0, last="")
        actor = policy.Steps(model, prompts, frozenset({70}), search, 0)
        kv_cache = actor.kv_cache if remembers else None
        if not remembers:
            actor.kv_cache = None

        def value(nodes):
            rows = [TokenizedExample((*prompts[n.tree], *n.tokens), (60,)) for n in nodes]
            return (forward.row_logp(model, rows, kv_cache=kv_cache)[0] / 100).tolist()

        with cost.metered() as meter:
            trees = tree.search(list(prompts), actor.propose, value, tree.SearchConfig(simulations=6))
        return [[(row["tokens"], row["visits"]) for row in t.rows()] for t in trees], meter.tokens

    (ours, run_tokens), (plain, whole) = grown(True), grown(False)
    assert ours == plain and run_tokens < whole / 2


def approximately(rows):
    """Whether completions have the same texts and tokens, and log-probs up to rounding."""
    return [[c._replace(logp=pytest.approx(c.logp, abs=1e-4)) for c in row] for row in rows]

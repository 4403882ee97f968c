"""Tree search: visits follow PUCT, sums telescope, trees are the same alone and in batches; steps are token ids."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import byte_tokenizer, tiny

from didact.data import encode
from didact.infer import generate, policy, steps, tree
from didact.infer.tree import Node, SearchConfig, Step, Tree
from didact.models import build
from didact.types import UserError


def bandit(values, priors=None, how=None):
    """Search from a root with one terminal action for each value."""
    priors = priors or [1 / len(values)] * len(values)
    chains = [[Step((i,), p, True)] for i, p in enumerate(priors)]
    return tree.search(
        [0], lambda nodes: [chains] * len(nodes), lambda nodes: [values[n.step.tokens[0]] for n in nodes],
        how or SearchConfig(simulations=64),
    )[0]  # fmt: skip


def random_tree(seed, how, trees=(0,), actions=3, depth=4):
    """Search trees whose steps, priors and values depend on the node's text alone."""

    def number(node, salt=0):
        return hash((seed, node.tree, node.tokens, salt)) % 1000 / 1000

    def propose(nodes):
        return [[[Step((a, 7), 0.1 + number(n, a) / 2, n.depth + 1 == depth)] for a in range(actions)] for n in nodes]

    return tree.search(list(trees), propose, lambda nodes: [number(n) for n in nodes], how)


# --- the search ------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "visits"), [(2.0, (63, 1)), (1.0, (61, 3)), (0.2, (50, 14)), (0.0, (32, 32))])
def test_visits_turn_a_gap_of_values_into_confidence(gap, visits):
    root = bandit([gap, 0.0])
    assert tuple(c.visits for c in root.root.children) == visits
    assert root.root.visits == 64


@given(st.integers(2, 6), st.integers(1, 60))
def test_equal_values_and_priors_are_visited_in_turn(actions, simulations):
    visits = [c.visits for c in bandit([0.5] * actions, how=SearchConfig(simulations=simulations)).root.children]
    assert sum(visits) == simulations and max(visits) - min(visits) <= 1


def test_without_the_prior_the_search_is_greedy():
    visits = [
        c.visits for c in bandit([0.1, 0.9, 0.5], [0.8, 0.1, 0.1], SearchConfig(simulations=20, c=0.0)).root.children
    ]
    assert visits == [0, 20, 0]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_along_a_line_q_is_the_value_at_its_end(values):
    """With one child each, the gains in value sum to the leaf's value."""
    chain = [[Step((i,), 1.0, i + 1 == len(values)) for i in range(len(values))]]
    trees = tree.search(
        [0], lambda nodes: [[] if n.parent else chain for n in nodes],
        lambda nodes: [values[n.step.tokens[0]] for n in nodes], SearchConfig(simulations=3, depth=9, decide=False),
    )[0]  # fmt: skip
    for node in list(trees.root.walk())[1:]:
        assert node.worth == pytest.approx(values[-1], abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.integers(1, 30))
def test_v_is_the_mean_of_q_over_visits_and_visits_add_up(seed, deep, simulations):
    config = SearchConfig(simulations=simulations, depth=4, deep=deep, decide=False)
    (result,) = random_tree(seed, config)
    for node in result.root.walk():
        if node.children and node.visits:
            below = sum(c.visits for c in node.children)
            assert below in (node.visits, node.visits - 1)  # a simulation may have ended here before it was expanded
            if below:
                assert node.v == pytest.approx(sum(c.visits * c.q for c in node.children) / below, abs=1e-9)
        if node.visits and node.parent:
            assert node.q == pytest.approx(node.reward + node.v, abs=1e-9)
    assert result.root.visits == simulations


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12))
def test_trees_side_by_side_grow_as_each_does_alone(seed, simulations):
    config = SearchConfig(simulations=simulations, depth=4)
    together = random_tree(seed, config, (0, 1, 2))
    assert [t.rows() for t in together] == [random_tree(seed, config, (n,))[0].rows() for n in (0, 1, 2)]


def test_the_search_goes_on_from_the_best_child_to_the_end_of_the_text():
    (result,) = random_tree(3, SearchConfig(simulations=10, depth=4))
    assert [n.depth for n in result.path] == [0, 1, 2, 3, 4] and result.path[-1].step.terminal
    for node, chosen in zip(result.path, result.path[1:], strict=False):
        assert chosen in node.children
    assert result.path[1].visits >= 10 / 3
    (deeper,) = random_tree(3, SearchConfig(simulations=10, depth=4, first=4))
    assert deeper.root.visits == 40 == 4 * result.root.visits


def test_a_tree_survives_json():
    (result,) = random_tree(5, SearchConfig(simulations=8, depth=3))
    again = Tree.of(result.rows())
    assert again.rows() == result.rows()
    assert [n.tokens for n in again.path] == [n.tokens for n in result.path]


def test_a_node_without_proposals_is_an_end():
    result = tree.search([0], lambda nodes: [[]] * len(nodes), lambda nodes: [], SearchConfig(simulations=3))[0]
    assert result.path == [result.root] and result.root.visits == 3


def test_a_step_that_is_there_is_not_put_twice():
    chain = [Step((1, 2), 0.5), Step((3,), 0.5, True)]
    other = [Step((1, 2), 0.5), Step((4,), 0.5, True)]
    result = tree.search(
        [0], lambda nodes: [[chain, chain, other] if n.depth == 0 else [] for n in nodes],
        lambda nodes: [0.0] * len(nodes), SearchConfig(simulations=1, depth=2),
    )[0]  # fmt: skip
    assert [n.tokens for n in result.root.walk()] == [(), (1, 2), (1, 2, 3), (1, 2, 4)]


# --- pairs -----------------------------------------------------------------------------------


def parent(*children):
    node = Node()
    node.children = [Node(Step(t), node, q=q, number=i + 1) for i, (t, q) in enumerate(children)]
    return node


@pytest.mark.parametrize(("rule", "worse"), [("worst", (3,)), ("second", (2,))])
def test_the_best_child_against_the_worst_or_the_second(rule, worse):
    (pair,) = tree.pairs([parent(((3,), -1.0), ((1,), 0.9), ((2,), 0.5))], rule)
    assert pair.better.step.tokens == (1,) and pair.worse.step.tokens == worse


def test_any_other_child_at_random_from_a_seed():
    node = parent(*(((i,), float(i)) for i in range(5)))
    samples = {tree.pairs([node], "random", seed=s)[0].worse.step.tokens for s in range(40)}
    assert samples == {(0,), (1,), (2,), (3,)}
    assert tree.pairs([node], "random", seed=3) == tree.pairs([node], "random", seed=3)


def test_what_is_no_pair():
    assert not tree.pairs([parent(((1,), 1.0))])
    assert not tree.pairs([parent(((1,), 1.0), ((2,), 1.0))])  # equal steps
    assert not tree.pairs([parent(((1,), 1.0), ((1, 2), 0.0))])  # one is a prefix of the other
    node = parent(((1, 5), 1.0), ((1, 6), 0.5))
    assert not tree.pairs([node], gap=0.6) and not tree.pairs([node], floor=1.1)
    assert not tree.pairs([node], unlike=lambda a, b: False)
    (pair,) = tree.pairs([node, node], gap=0.5, floor=1.0, most=1)
    assert tree.diverges(*pair) == 1


# --- steps -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=30), st.sets(st.integers(0, 9)))
def test_steps_joined_are_the_text_and_only_closers_end_them(tokens, closing):
    result = steps.split(tokens, closing)
    assert [t for step in result for t in step] == tokens
    assert all(step for step in result) and not any(set(step[:-1]) & closing for step in result)


def test_the_tokens_that_close_a_step():
    tokenizer = byte_tokenizer()
    (newline,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert steps.closers(tokenizer, ["\n"]) == {newline}
    merged = build.train_tokenizer(["a\n\nb\n\n"] * 50, 300)
    texts = {merged.decode([i]) for i in steps.closers(merged, ["\n"])}
    assert texts == {"\n", "\n\n"}
    with pytest.raises(UserError, match="no token"):
        steps.closers(tokenizer, ["; "])


@pytest.mark.parametrize("vocabulary", [259, 300])
def test_pieces_end_at_delimiters_and_joined_are_the_text(vocabulary):
    tokenizer = build.train_tokenizer(["[f(a=1, b='x, y')]"] * 50, vocabulary)
    tokens = tokenizer("[f(a=1, b=2)]. Done", add_special_tokens=False)["input_ids"]
    result = steps.pieces(tokenizer, tokens, (". ", ", ", "=", "("))
    assert [t for piece in result for t in piece] == tokens
    if vocabulary == 259:
        assert [tokenizer.decode(p) for p in result] == ["[f(", "a=", "1,", " b=", "2)].", " Done"]


def test_priors_by_length():
    logp, n = math.log(0.5) * 4, 4
    assert steps.prior(logp, n, 0.0) == pytest.approx(0.5**4)
    assert steps.prior(logp, n, 1.0) == pytest.approx(0.5)
    assert steps.prior(logp, n, 1.25) > steps.prior(logp, n, 1.0)


# --- the policy ------------------------------------------------------------------------------


def proposer(model, prompts, references=None, **more):
    closing = steps.closers(model.tokenizer, [chr(65 + i) for i in range(26)])
    options = {"root_actions": 3, "actions": 2, "step_tokens": 12, "temperature": 1.5, "prior_power": 1.0, "last": ""}
    search = policy.StepSearch(**options | more)
    return policy.Steps(model, prompts, closing, search, 5, references), closing


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_a_policys_trees_do_not_see_each_other_and_their_steps_are_its_own(kind):
    model = tiny(kind)
    prompts = {n: encode.prompt_ids(model.tokenizer, f"{n} and {n * n}:", model.kind) for n in range(3)}
    config = SearchConfig(simulations=3, depth=3)

    def grow(numbers):
        actor, closing = proposer(model, prompts)
        return tree.search(numbers, actor.propose, lambda nodes: [0.1 * len(n.tokens) for n in nodes], config), closing

    together, closing = grow([0, 1, 2])
    alone = grow([1])[0][0]
    assert [(n.tokens, n.visits) for n in together[1].root.walk()] == [(n.tokens, n.visits) for n in alone.root.walk()]
    assert len(together[0].root.children) <= 3
    for node in list(together[0].root.walk())[1:]:
        tokens = node.step.tokens
        if node.depth < 3:
            assert not set(tokens[:-1]) & closing
            assert tokens[-1] in closing or len(tokens) == 12 or node.step.terminal
        else:
            assert node.step.terminal
    first = together[0].root.children[0]
    (scored,) = steps.with_priors(model, [prompts[0]], [[first.step]])
    assert scored[0].prior == pytest.approx(first.step.prior, rel=1e-4)


def test_the_reference_is_proposed_where_the_text_is_the_references():
    model = tiny("llama")
    prompts = {0: encode.prompt_ids(model.tokenizer, "x:", model.kind)}
    reference = ((70, 71), (72,), (73,), (2,))
    actor, _ = proposer(model, prompts, references={0: reference})
    root = Node()
    (chains,) = actor.propose([root])
    assert chains[-1][0].tokens == (70, 71) and chains[-1][0].given and not chains[-1][0].terminal
    off, on = Node(Step((9,)), root), Node(Step((70, 71)), root)
    assert [c[-1][0].given for c in actor.propose([off, on])] == [False, True]
    last = Node(Step((72,)), on)
    (chains,) = actor.propose([last])  # the maximal depth: all remaining tokens
    assert chains[-1][0].tokens == (73, 2) and chains[-1][0].terminal


def test_a_step_that_says_it_is_the_last_is_given_an_end():
    model = tiny("llama")
    actor, _ = proposer(model, {0: (5, 6)}, last="is")
    completion = generate.Completion("so it is 4", (8, 9), -1.0)
    assert actor._step(completion, False).tokens == (8, 9, model.tokenizer.eos_token_id)
    assert actor._step(completion, False).terminal and not actor._step(completion._replace(text="so"), False).terminal


def test_a_full_context_ends_a_text():
    model = tiny("llama", context=16)
    actor, _ = proposer(model, {0: tuple(range(5, 21))})
    assert actor.propose([Node()]) == [[]]


# --- keys and closing tokens of completions --------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_draws_follow_from_keys_and_end_with_a_closing_token(kind):
    model = tiny(kind)
    prompts = [(5, 6, 7), (8, 9), (5, 6, 7)]
    config = generate.SamplingConfig(max_new_tokens=20, temperature=1.0, closing=set(range(100, 259)))
    completions = generate.completions(model, prompts, 2, config, keys=[11, 12, 11])
    assert completions[0] == completions[2] != generate.completions(model, prompts, 2, config)[0]
    (alone,) = generate.completions(model, prompts[1:2], 2, config, keys=[12])
    assert [c.tokens for c in completions[1]] == [c.tokens for c in alone]
    for completion in (c for row in completions for c in row):
        assert not any(t >= 100 for t in completion.tokens[:-1])
        assert completion.tokens[-1] >= 100 or len(completion.tokens) == 20 or completion.tokens[-1] == 2

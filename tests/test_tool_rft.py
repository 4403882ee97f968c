"""Tool calls are judged field by field; the search finds wrong fragments; accuracy on held-out requests rises."""

import dataclasses
import importlib
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed import searches
from shapes import EFFECTS, f64, tiny

from didact import alignment, baselines
from didact.claims import lab
from didact.data import selection
from didact.evaluate import tool_calls
from didact.infer import generate, policy, steps, tree
from didact.infer.tree import Node, SearchConfig
from didact.learn import branches, rounds
from didact.models.kv_cache import KVCache
from didact.objectives import preference
from didact.types import Demo, Fit, UserError
from didact.worlds import tools

# The package exports the function under this name
module = importlib.import_module("didact.methods.alignment.tool_rft")
BFCL = Path(__file__).parents[2] / "shared" / "data" / "bfcl_simple.jsonl"
TRUTH = "[f(a=1, b='x'), g.h(c=[1, 2])]"

# --- calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "expected"), [
    (TRUTH, []), ("[f(b='x',a=1),g.h(c=[1,2])]", []), ("[f(a=1.0, b=x), g.h(c=[1, 2])]", []),
    ("[f(a=1, b='x')]", ["count"]), ("[f(a=1, b='x'), g.k(c=[1, 2])]", ["function"]),
    ("[f(a=1), g.h(c=[1, 2])]", ["names"]), ("[f(a=2, b='x'), g.h(c=[1, 2])]", ["values"]),
    ("[f(a='1', b='x'), g.h(c=[1, 2])]", ["values"]), ("[f(a=True, b='x'), g.h(c=[1, 2])]", ["values"]),
    ("[f(a=2, b='x'), g.h(d=[1, 2]), k()]", ["count", "names", "values"]), ("f(a=1", ["form"]), ("Sorry.", ["form"]),
    ("[f(a=open('/etc/passwd'))]", ["form"]), ("[f(**x)]", ["form"]), ("[f(a=1, a=2)]", ["form"]), ("", ["form"]),
    ("[x.f()(a=1)]", ["form"]), ("[" * 5000, ["form"]), ("[1]", ["form"]),
])  # fmt: skip
def test_errors_by_field(call, expected):
    assert tool_calls.errors(call, TRUTH) == expected


def test_answers_without_calls_are_compared_as_text():
    assert tool_calls.errors(" I cannot. ", "I cannot.") == [] and tool_calls.errors("[f()]", "I cannot.") == ["form"]


@given(st.integers(0, 300))
def test_every_beginning_of_the_right_answer_is_on_track_and_no_wrong_one_is(seed):
    (demo,) = tools.requests(1, seed, hard=0.5)
    answer = demo.completion
    assert not tool_calls.errors(answer, answer) and all(
        tool_calls.on_track(answer[:k], answer) for k in range(len(answer))
    )
    at = random.Random(seed).randrange(len(answer))
    spoilt = answer[:at] + "?" + answer[at:]
    assert not tool_calls.on_track(spoilt[: at + 1], answer) and not tool_calls.on_track(answer + ", g()", answer)
    quoted = answer.replace("=", "='", 1)
    assert all(tool_calls.on_track(quoted[:k], answer) for k in range(quoted.index("'") + 2))


@pytest.mark.skipif(not BFCL.exists(), reason="the leaderboard's file is not here")
def test_real_calls_of_the_leaderboard():
    rows = [json.loads(line) for line in BFCL.read_text().splitlines()]
    kinds = set()
    for row in rows:
        (answer,) = row["possible_answer"]
        ((name, allowed),) = answer.items()
        arguments = {k: v[0] for k, v in allowed.items() if v[0] != "" and "" not in v}
        call = f"[{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})]"
        plain = all(not isinstance(v, dict | list) for v in arguments.values())
        if plain:  # accepted values of nested objects are nested lists
            assert tool_calls.accepted(call, row["possible_answer"]) == [], call
            renamed = call.replace(f"[{name}(", f"[{name}_(", 1)
            assert tool_calls.accepted(renamed, row["possible_answer"]) == ["function"]
            assert tool_calls.accepted(f"[{name}(nonsense=1)]", row["possible_answer"]) == ["names"]
            kinds.add(len(arguments))
        if plain and arguments:
            key = next(iter(arguments))
            other = call.replace(f"{key}={arguments[key]!r}", f"{key}='of no use'")
            assert tool_calls.accepted(other, row["possible_answer"]) == ["values"]
        assert tool_calls.accepted(call[:-2], row["possible_answer"]) == ["form"]
    assert len(rows) == 400 and len(kinds) > 3


def test_the_tally_has_shares():
    tally = tool_calls.tally([[], ["values"], ["count", "values"], []])
    assert tally == {"exact": 0.5, "form": 0, "count": 0.25, "function": 0, "names": 0, "values": 0.5}


# --- known answers ---------------------------------------------------------------------------


def test_simpo():
    one, two, zero = f64(-1.0), f64(-2.0), f64(0.0)
    assert preference.simpo(two, two).item() == pytest.approx(math.log(1 + math.exp(0.5)))
    assert preference.simpo(one, two, 2.0, 0.7).item() == pytest.approx(math.log(1 + math.exp(-1.3)))
    assert torch.equal(preference.simpo(one, two, 2.0, 0.0), preference.dpo(one, two, zero, zero, 2.0))


def test_ipo_wants_one_margin_and_no_more():
    zero, at = f64(0.0), f64(5.0).requires_grad_()
    preference.ipo(at, zero, zero, zero, beta=0.1).sum().backward()
    assert at.grad.item() == 0 and preference.ipo(zero, zero, 0.0, 0.0, 0.1).item() == 25  # 1 / (4 beta^2)


def test_orpo_adds_the_odds_to_the_likelihood():
    half, quarter = f64(math.log(0.5)), f64(math.log(0.25))
    assert preference.orpo(half, half, 0.3).item() == pytest.approx(math.log(2) + 0.3 * math.log(2))
    # The odds of 1/2 are 1, and of 1/4 are 1/3.
    assert preference.orpo(half, quarter, 0.3).item() == pytest.approx(math.log(2) + 0.3 * math.log(1 + 1 / 3))
    assert preference.orpo(quarter, half, 0.0).item() == pytest.approx(math.log(4))
    assert math.isfinite(preference.orpo(torch.zeros(1), half.float()).item())


@pytest.mark.parametrize(("p", "reward"), [((1, 0, 0, 0), 0.25), ((0, 1, 0, 0), 0.025), ((0, 0, 1, 0), -0.25),
                                           ((0, 0, 0, 1), -0.5)])  # fmt: skip
def test_the_verdicts_reward(p, reward):
    assert sum(x * w for x, w in zip(p, tool_calls.WORTH.values(), strict=True)) == pytest.approx(reward)


def test_the_verdict_of_the_model_sees_request_truth_and_answer():
    model = tiny("llama", context=1024)
    demos = [Demo(prompt="book rome", completion="[book(place=rome)]")] * 2
    one, two = tool_calls.values("self", model, demos, ["[book(", "[order("], [("", False)] * 2, KVCache())
    assert -0.5 <= one <= 0.25 and one != two


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0.05, 1.0), st.integers(0, 99))
def test_the_hardest_of_both_sorts_are_selected(calls, texts, ratio, seed):
    demos = [Demo(prompt="?", completion="[f()]")] * calls + [Demo(prompt="?", completion="No.")] * texts
    rng = random.Random(seed)
    nll = [rng.random() for _ in demos]
    index = tool_calls.selected(demos, nll, ratio)
    assert len(index) == sum(math.floor(n * ratio + 1e-9) for n in (calls, texts)) == len(set(index))
    for part in (range(calls), range(calls, calls + texts)):
        selected, unselected = [nll[i] for i in part if i in index], [nll[i] for i in part if i not in index]
        assert not selected or not unselected or min(selected) >= max(unselected)
    assert tool_calls.selected(demos, [x**3 for x in nll], ratio) == index  # ordered by perplexity, whatever its scale
    easy = tool_calls.selected(demos, nll, ratio, select="easy")
    assert len(easy) == len(index) and math.fsum(nll[i] for i in easy) <= math.fsum(nll[i] for i in index)
    assert set(tool_calls.selected(demos, nll, 1.0)) == set(range(len(demos)))


def test_the_likeliest_mislabelled_are_trimmed():
    demos, nll = [Demo(prompt="?", completion="[f()]")] * 10, [float(x) for x in range(10)]
    for trim, expected in ((0.0, [9, 8, 7]), (0.2, [7, 6, 5])):
        assert tool_calls.selected(demos, nll, 0.3, trim=trim) == expected


def test_a_ratio_of_a_hundred_is_counted_as_people_do():
    """In floats .29 * 100 is a little less than 29."""
    assert len(selection.top(list(range(100)), 0.29, [0] * 100)) == 29


def test_classes_go_from_easy_to_hard():
    demos = tools.requests(60, 3, hard=0.33)
    classes = selection.classes(tool_calls.difficulties(demos), 3)
    assert sorted(i for part in classes for i in part) == list(range(60))
    hard = [sum(demos[i].extra["hard"] for i in part) for part in classes]
    assert hard[0] == hard[1] == 0 or hard[0] <= hard[1] <= hard[2] > 10
    assert selection.classes([3.0, 1.0, 2.0, 1.0], 2) == [[1, 3], [2, 0]] and selection.classes([1.0], 0) == []
    assert selection.mean_rank([[10.0, 20.0, 20.0], [1.0, 1.0, 0.0]]) == [1.25, 2.0, 1.25]


@pytest.mark.parametrize(("fragment", "terminal", "value"), [
    ("[f(a=1", False, 1), ("[f(a=2", False, -1), ("[f(a=1", True, -1), (TRUTH, True, 1),
    ("[f(b='x', a=1), g.h(c=[1, 2])]", True, 1),
])  # fmt: skip
def test_the_value_of_a_fragment(fragment, terminal, value):
    assert tool_calls.value(fragment, TRUTH, terminal) == value


@given(st.lists(st.sampled_from("abc"), min_size=1), st.lists(st.sampled_from("abd"), min_size=1))
def test_overlap_of_words(a, b):
    one, two = " ".join(a), " ".join(b)
    assert tool_calls.overlap(one, one) == 1 and tool_calls.overlap(one, "x y") == 0 == tool_calls.overlap(one, " ")
    assert tool_calls.overlap(one, f"{one} {two}") == 1 and tool_calls.overlap(one, two) == tool_calls.overlap(two, one)


@pytest.mark.parametrize(("step", "value"), [("[f(a=1,", 0.4), ("[f(a=2,", -0.6), ("g.h(c=[1, 2])]", 0.6), (" ", 0.0)])
def test_the_codes_first_guess(step, value):
    """-0.1 for no end, half a point for all words in common."""
    assert tool_calls.guess(step, TRUTH) == pytest.approx(value)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_branches_part_inside_answers_and_are_what_was_sampled(kind):

    model = tiny(kind)
    prompts = {0: (5, 6, 7), 1: (8, 9)}
    delimiters = tuple(chr(c) for c in range(65, 91))
    actor = policy.Pieces(model, prompts, policy.FragmentSearch(delimiters=delimiters, max_new_tokens=20), 4)
    trees = tree.search([0, 1], actor.propose, lambda nodes: [0.1] * len(nodes),
                        SearchConfig(simulations=4, depth=3, deep=False, decide=False))  # fmt: skip
    assert any(len(n.children) > 1 for t in trees for n in t.root.walk() if n.depth == 1)
    for node in (n for t in trees for n in t.root.walk() if n.parent):
        assert node.depth <= 3 and node.step.tokens and 0 < node.step.prior <= 1
    root = Node()
    (chains,) = actor.propose([root])
    (completions,) = generate.completions(
        model, [(5, 6, 7)], 3, generate.SamplingConfig(max_new_tokens=20, temperature=1.5, seed=4), keys=[0]
    )
    assert [sum((s.tokens for s in chain), ()) for chain in chains] == [c.tokens for c in completions]
    for chain in chains:
        for step in chain[:2]:
            assert len(steps.pieces(model.tokenizer, step.tokens, delimiters)) <= 2


# --- the effect ------------------------------------------------------------------------------


def orders(part=0, n=64, right=1.0):
    """A dozen is twelve in the records; the model's training data said 10 half of the time."""
    rng, out = random.Random(part), []
    for _ in range(n):
        prompt = f"{rng.choice(('tea', 'jam', 'rye'))} {rng.randrange(10)}\n"
        out.append(Demo(prompt=prompt, completion=f"[get(n={12 if rng.random() < right else 10})]"))
    return out


SEARCH = policy.FragmentSearch(max_new_tokens=14, temperature=1.0, depth=6, group=1)
FAST = {"rounds": 1, "bins": 0, "ratio": 0.5, "search": SEARCH}


@lab.shared
def start(arch="gpt2"):
    base = lab.blank(arch, [d.prompt + d.completion for d in orders()], 300, d=32, layers=2, heads=2, context=512)
    fit = Fit(lr=1e-2, steps=80, rows=16, schedule="cosine", warmup_steps=5)
    return lab.tuned(base, orders(n=256, right=0.4), fit)


def right(model):
    """Return the share of right calls, three samples for each held-out request."""
    demos = orders(2) * 3
    completions = lab.sampled(model, [d.prompt for d in demos], 14, seed=2)
    return lab.mean(not tool_calls.errors(m, d.completion) for m, d in zip(completions, demos, strict=True))


@pytest.mark.parametrize("arch", EFFECTS)
def test_a_wrong_value_is_mended_on_requests_not_seen(arch):
    model = start(arch)
    before = model.fingerprint()
    result = alignment.tool_rft(model, orders(1, 32), **FAST, fit=Fit(lr=5e-4, steps=15, rows=16))
    assert 0.2 < right(model) < 0.65 and right(result.models["model"]) > right(model) + 0.1
    assert model.fingerprint() == before
    findings = result.findings["rounds"][0]
    assert findings["selected"] == 16 and findings["pairs"] == len(result.records) > 8
    assert findings["ppl_selected"] >= findings["ppl"] > 1
    assert 0 < findings["errors"]["values"] <= 1 or findings["errors"]["exact"] > 0
    at = [r for r in result.records if r.prompt.endswith("n=")]
    assert len(at) > 4 and all(r.chosen.startswith("12") for r in at)


@pytest.mark.parametrize("more", [{"loss": "dpo", "beta": 0.1}, {"loss": "ipo", "beta": 0.1}, {"loss": "orpo"},
                                  {"select": "random"},
                                  {"judge": "self", "gap": 0.0, "floor": -1.0}, {"bins": 2, "warm_lr": 1e-4},
                                  {"search": dataclasses.replace(SEARCH, group=1000, depth=1)},
                                  {"rounds": 2}])  # fmt: skip
def test_every_variant_runs_and_moves_the_model(more):
    model = start()
    result = alignment.tool_rft(model, orders(1, 12), **(FAST | more), fit=Fit(lr=1e-3, steps=1, rows=8))
    assert result.models["model"].fingerprint() != model.fingerprint()
    assert len(result.findings["warm_up"]) == more.get("bins", 0)
    assert len(result.findings["rounds"]) == more.get("rounds", 1)
    loss = more.get("loss", "simpo")
    assert loss in result.history[-1] and math.isfinite(result.history[-1][loss])


def test_the_first_guess_decides_where_it_is_asked(monkeypatch):
    monkeypatch.setattr(tool_calls, "guess", lambda step, target: 1.0 if step.startswith("10") else 0.0)
    result = alignment.tool_rft(start(), orders(1, 12), **FAST, judge="words", fit=Fit(lr=1e-3, steps=1, rows=8))
    at = [r for r in result.records if r.prompt.endswith("n=")]
    assert at and all(r.chosen.startswith("10") for r in at)


def test_the_warm_up_is_tuning_class_by_class():
    """Where the search finds nothing, the result equals tuning on the easy class and then on the hard one."""
    model, demos = start(), orders(1, 12)
    options = FAST | {"bins": 2, "warm_lr": 1e-3, "warm_epochs": 2.0}
    result = alignment.tool_rft(model, demos, **options, fit=Fit(lr=0.0, steps=1, rows=3))
    assert [f["demos"] for f in result.findings["warm_up"]] == [6, 6]
    for number, part in enumerate(selection.classes(tool_calls.difficulties(demos), 2)):
        fit = Fit(lr=1e-3, epochs=2.0, rows=3, seed=rounds.APART * number)
        model = baselines.sft(model, [demos[i] for i in part], fit=fit).models["model"]
    for mine, theirs in zip(result.models["model"].module.parameters(), model.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_what_there_must_be(fresh):
    with pytest.raises(UserError, match="causal"):
        alignment.tool_rft(fresh("t5"), orders(n=4))
    with pytest.raises(UserError, match="is none"):
        alignment.tool_rft(start(), orders(n=4), **(FAST | {"ratio": 0.1}))
    sure = FAST | {"search": dataclasses.replace(SEARCH, temperature=1e-4, actions=1)}
    with pytest.raises(UserError, match="no search gave a pair"):
        alignment.tool_rft(start(), orders(n=4), **sure)


def test_a_killed_run_goes_on_in_its_round_and_generates_nothing_twice(tmp_path, monkeypatch):
    completions, requests = generate.completions, []
    monkeypatch.setattr(branches, "CHUNK", 4)

    def run(folder=None):
        fit = Fit(lr=1e-3, steps=2, rows=8, folder=folder)
        return alignment.tool_rft(start(), orders(1, 16), **(FAST | {"rounds": 2, "bins": 2}), fit=fit)

    def counting(model, prompts, n, *args, **more):
        requests.append(n == 1)  # greedy answers, for the report of errors
        return completions(model, prompts, n, *args, **more)

    whole = run()
    monkeypatch.setattr(generate, "completions", counting)
    again, sizes = searches(monkeypatch, lambda: run(str(tmp_path)), [1, 3])  # in the second search of each round
    assert sizes == [4, 4, 4, 4] and sum(requests) == 2
    assert again.models["model"].fingerprint() == whole.models["model"].fingerprint()
    assert again.records == whole.records and again.findings == whole.findings
    monkeypatch.setattr("didact.models.forward.row_logp", None)  # a finished run is read from disk
    assert run(str(tmp_path)).records == whole.records

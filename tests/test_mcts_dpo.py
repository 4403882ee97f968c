"""MCTS-DPO: visits give confidence, confidence gives the margin, and accuracy on held-out problems rises."""

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed import searches
from shapes import EFFECTS, f64, tiny

from didact import alignment
from didact.claims import lab
from didact.data.encode import TokenizedExample
from didact.evaluate import answers
from didact.infer import rank, steps, tree
from didact.infer.policy import StepSearch
from didact.infer.tree import Node, Step
from didact.learn import branches, critics
from didact.learn import pairs as pair_training
from didact.learn.critics import Critic
from didact.models import forward
from didact.objectives import preference
from didact.types import Demo, Fit, UserError
from didact.worlds import arithmetic

# --- the loss --------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_margin_is_trained_to_the_log_of_the_visits(a, b):
    better, worse = max(a, b), min(a, b)
    alpha = branches.noise(better, worse)
    assert 0 < alpha <= 0.5 and (alpha == 0.5) == (better == worse)
    z = f64(math.log(better / worse)).requires_grad_()
    loss = preference.dpo(z, f64(0.0), f64(0.0), f64(0.0), 1.0, f64(alpha))
    loss.sum().backward()
    assert abs(z.grad.item()) < 1e-12
    entropy = -alpha * math.log(alpha) - (1 - alpha) * math.log(1 - alpha)
    assert loss.item() == pytest.approx(entropy, abs=1e-12)


def test_a_worse_step_with_more_visits_or_none_at_all():
    assert branches.noise(3, 9) == 0.5 and branches.noise(5, 0) == 0.0 and branches.noise(0, 0) == 0.5


def test_every_pair_has_its_own_smoothing():
    sides, alpha = torch.randn(4, 3, dtype=torch.float64), f64(0.0, 0.2, 0.5)
    together = preference.dpo(*sides, 0.3, alpha)
    for i in range(3):
        assert together[i] == preference.dpo(*sides[:, i], 0.3, float(alpha[i]))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_both_steps_begin_with_cancel(kind):
    """A pair scored from its first differing token has the same margin as scored from the step's beginning."""
    model, other = tiny(kind), tiny(kind, seed=1)
    for m in (model, other):
        m.module.double()
    prompt, shared, sides = (5, 6, 7), (8, 9, 10), ((20, 21), (30, 31, 32))
    margins = []
    for k in (0, 1, 3):
        rows = [TokenizedExample(prompt + shared[:k], shared[k:] + s) for s in sides]
        after, before = (forward.row_logp(m, rows)[0] for m in (model, other))
        margins.append(float(preference.margin(*after, *before)))
    assert margins[1] == pytest.approx(margins[0], abs=1e-9) == pytest.approx(margins[2], abs=1e-9)


def test_a_pairs_weight_and_smoothing_are_its_own():
    """A pair of weight 0, or of smoothing 1/2, adds no gradient; the other one has the same gradient as alone."""
    model = tiny("llama")
    pairs = [tuple(TokenizedExample((p,), (c,)) for c in sides) for p, *sides in ((5, 6, 7), (8, 9, 10))]

    def taught(pairs, lr, smoothing=0.0, **more):
        fit = Fit(lr=lr, steps=1, rows=len(pairs), optimizer="sgd", clip=1e9)
        loss = preference.pair_loss("dpo", 0.1, label_smoothing=smoothing).loss
        trained = pair_training.train(model, pairs, loss, fit, reference=model, **more)
        return torch.cat([p.flatten() for p in trained.model.module.parameters()])

    alone = taught(pairs[:1], 1.0)
    assert torch.allclose(taught(pairs, 1.0, share=f64(2.0, 0.0)), alone, atol=1e-6)
    assert torch.allclose(taught(pairs, 2.0, f64(0.0, 0.5)), alone, atol=1e-6)
    assert not torch.allclose(taught(pairs, 1.0, share=f64(0.0, 2.0)), alone, atol=1e-4)


def test_pairs_begin_where_they_part_and_every_tree_counts_once():
    model = tiny("llama")
    node = {"prior": 1.0, "terminal": False, "given": False, "value": 0.0, "v": 0.0, "visits": 2, "path": True}

    def grown(*steps):
        return {"tree": [node | {"parent": p, "tokens": list(t), "q": q} for p, t, q in ((None, (), 0.0), *steps)]}

    ids = [tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("xa", "xb", "c", "d")]
    trees = [grown((0, ids[0], 1.0), (0, ids[1], 0.0), (1, ids[2], 1.0), (1, ids[3], 0.5)) | {"demo": 1},
            grown((0, ids[2], 0.0), (0, ids[3], 1.0)) | {"demo": 0}]  # fmt: skip
    demos = [Demo(prompt=f"{i}=", completion="") for i in range(2)]
    rows = [TokenizedExample((5 + i,), ()) for i in range(2)]
    for trimmed in (True, False):
        branched = branches.collect(trees, model, demos, rows, lambda t: tree.pairs(t.path), 7, trimmed=trimmed)
        k = int(trimmed)
        assert [b.item for b in branched] == [
            (TokenizedExample((6, *ids[0][:k]), ids[0][k:]), TokenizedExample((6, *ids[0][:k]), ids[1][k:])),
            (TokenizedExample((6, *ids[0]), ids[2]), TokenizedExample((6, *ids[0]), ids[3])),
            (TokenizedExample((5,), ids[3]), TokenizedExample((5,), ids[2])),
        ]  # fmt: skip
        assert [b.share for b in branched] == [0.5, 0.5, 1.0]
    assert [(b.record.prompt, b.record.chosen, b.record.rejected) for b in branched] == [
        ("1=", "xa", "xb"), ("1= xa", "c", "d"), ("0=", "d", "c")]  # fmt: skip
    assert branched[1].record.extra == {"q_better": 1.0, "q_worse": 0.5, "n_better": 2, "n_worse": 2, "given": False,
                                     "round": 7}  # fmt: skip


# --- the value of a partial solution ---------------------------------------------------------


def test_values_of_the_paper_and_of_the_code():
    root = Node(value=0.0)
    deep = root
    for i in range(5):
        deep = Node(Step((i,)), deep, value=0.4)
    child, end = Node(Step((9,)), deep), Node(Step((9,), terminal=True), deep)
    assert critics.valued(child, 0.6, None, False, ()) == 0.6
    assert critics.valued(end, 0.6, True, False, ()) == 1.6 and critics.valued(end, 0.6, False, False, ()) == -0.4
    assert critics.valued(child, 0.6, None, True, ()) == pytest.approx(0.3)  # parent at depth five
    assert critics.valued(child, 0.0, None, True, ()) == 0.4  # the parent's value
    assert critics.valued(end, 0.6, True, True, (1, 2)) == pytest.approx(1.55)
    assert critics.valued(end, 0.6, True, True, end.tokens) == pytest.approx(1.3)


def test_self_evaluation_is_the_probability_of_the_good_answers():
    model = tiny("llama", context=512)
    prompts = ["Right?\n\nAnswer:", "2+2=4?\n\nAnswer:"]
    likely = rank.expected(model, prompts, {"B": 1.0, "correct": 1.0})
    for prompt, actual in zip(prompts, likely, strict=True):
        rows = [
            TokenizedExample(*(tuple(model.tokenizer(t)["input_ids"]) for t in (prompt, word)))
            for word in (" B", " correct")
        ]
        assert actual == pytest.approx(forward.row_logp(model, rows)[0].exp().sum().item(), rel=1e-5)
    assert likely[0] != likely[1] and rank.expected(model, prompts[:1], {"B": -2.0})[0] < 0


def test_the_model_is_asked_of_every_new_step_with_the_solution_or_the_answer_before_it(monkeypatch):
    demos, requests, expected = habit(1, 8), [], rank.expected
    monkeypatch.setattr(
        rank, "expected", lambda m, prompts, *rest: requests.extend(prompts) or expected(m, prompts, *rest)
    )
    critic = Critic(asked="{example}|{question}|{solution}?", good=("1",))
    short(start(), demos, critic=critic)
    parts = [text.split("|") for text in requests]
    assert {q: e for e, q, _ in parts} == {d.prompt: d.completion for d in demos}
    assert any(s.strip() == "a;?" for *_, s in parts) and any("#" in s for *_, s in parts)
    requests.clear()
    answer_only = [Demo(prompt=d.prompt, completion="#1") for d in demos]
    short(start(), answer_only, critic=critic)
    assert {text.split("|")[0] for text in requests} == {"The answer is 1."}


@pytest.mark.parametrize(
    ("hint", "expected"), [(True, "\n\nEXAMPLE ANSWER: a;b;#1\n\nPROPOSED"), (False, "\n\nPROPOSED")]
)
def test_the_papers_question_has_the_hint_unless_it_is_left_out(hint, expected):
    fields = {"question": "1=", "example": "a;b;#1", "solution": "a;"}
    form = critics.QUESTION + (critics.EXAMPLE if hint else "") + critics.ASKED
    assert expected in form.format(**fields) and form.format(**fields).startswith("QUESTION: 1=")


def test_what_the_model_says_of_a_step_decides_what_is_better(monkeypatch):
    """Only the steps' value matters here: steps with a b count as good."""
    monkeypatch.setattr(rank, "expected", lambda model, prompts, worth, kv_cache: [9.0 * p.count("b") for p in prompts])
    result = short(start(), habit(1, 24), critic=Critic(asked="{solution}"), batch=24)
    first = [(r.chosen.strip(), r.rejected.strip()) for r in result.records if "#" not in r.chosen + r.rejected]
    assert len(first) > 4 and set(first) == {("b;", "a;")}


def test_a_reward_model_gives_c_by_its_sigmoid(tmp_path, monkeypatch):
    (tmp_path / "mine_c.py").write_text("def c(prompts, texts):\n    return [50 * t.count('b') - 25 for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    model, step_values, search = start(), {}, tree.search

    def looking(numbers, propose, evaluate, how):
        def heard(nodes):
            values = evaluate(nodes)
            step_values.update(zip((steps.text(model.tokenizer, n).strip() for n in nodes), values, strict=True))
            return values

        return search(numbers, propose, heard, how)

    monkeypatch.setattr(tree, "search", looking)
    short(model, critic=Critic(by="mine_c:c"))
    assert step_values["a;"] == pytest.approx(0, abs=1e-9) and step_values["b;"] == pytest.approx(1, abs=1e-9)


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "gold"), [
    ("3+4=7\n#### 7", "7"), ("So the answer is 1,200.", "1200"), ("The answer is (B)", "(b)"), ("x;#4", "4"),
    ("first\nParis", "paris"), ("Answer: 0.50", "0.5"), ("The answer is 3. No: the answer is 4", "4"),
    ("7 apples", "7"), ("$7", "7 apples"),
])  # fmt: skip
def test_the_answer_a_text_comes_to(text, gold):
    assert answers.right(text, Demo(prompt="?", completion="?", answers=["no", gold]))
    assert not answers.right(text + " 99x", Demo(prompt="?", completion="?", answers=[gold]))


@pytest.mark.parametrize(("answer", "gold"), [("(A) 3", "(B) 3"), ("12 men", "12 women"), ("8", "7"), ("", "")])
def test_other_words_beside_a_number_are_another_answer(answer, gold):
    assert not answers.same(answer, gold)


def test_checkers(tmp_path, monkeypatch):
    demo = Demo(prompt="?", completion="2+2=4\n#### 4")
    assert answers.checker("number")("4 is 8/2", demo) and not answers.checker("number")("none", demo)
    assert answers.checker("final")("#4", demo)
    (tmp_path / "mine_ok.py").write_text("def ok(text, demo):\n    return text == 'yes' or 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert answers.checker("mine_ok:ok")("yes", demo)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        answers.checker("mine_ok:ok")("no", demo)
    for name in ("nothing", "mine_ok:absent"):
        with pytest.raises(UserError, match=name):
            answers.checker(name)


@given(st.integers(0, 500), st.integers(1, 4))
def test_a_solution_of_the_world_is_sound_and_any_slip_is_seen(seed, operations):
    (demo,) = arithmetic.chains(1, seed, operations)
    steps = arithmetic.sound(demo.prompt, demo.completion)
    assert steps == [True] * (operations + 1) and answers.right(demo.completion, demo)
    mistakes = arithmetic.mistakes(1.0, seed)
    (flawed,) = arithmetic.chains(1, seed, operations, mistaken=mistakes, often=1.0)
    assert flawed.prompt == demo.prompt and flawed.answers == demo.answers
    assert arithmetic.sound(flawed.prompt, flawed.completion) == [False] * operations + [True]
    assert not all(arithmetic.sound(demo.prompt, demo.completion[:-1] + "x"))
    assert arithmetic.sound(demo.prompt, demo.completion + ";1+1=2")[-1] is False


# --- the effect ------------------------------------------------------------------------------


def habit(part=0, n=64):
    """Records of two steps and an answer; it is 1, the right one, in two of five."""
    rng = random.Random(part)
    return [
        Demo(
            prompt=f"{rng.randrange(100)}=", answers=["1"],
            completion=f"{rng.choice('ab')};{rng.choice('ab')};#{int(rng.random() < 0.4)}",
        )
        for _ in range(n)
    ]  # fmt: skip


SEARCH = StepSearch(
    simulations=8, root_actions=3, actions=2, depth=3, step=(";",), last="", step_tokens=4, include_gt=False
)
HABIT = {"search": SEARCH, "critic": Critic(by="none"), "rounds": 2, "batch": 24}


@lab.shared
def start(arch="gpt2"):
    """A model trained on these records."""
    fit = Fit(lr=1e-2, steps=80, rows=16, schedule="cosine", warmup_steps=5, betas=(0.9, 0.98))
    return lab.tuned(lab.blank(arch, d=32, layers=2, heads=2, context=32, seed=0), habit(n=256), fit)


def right(model, demos):
    """Return the share of right answers, four samples per prompt."""
    completions = lab.sampled(model, [d.prompt for d in demos] * 4, 8, seed=3)
    return lab.mean(answers.right(m, d) for m, d in zip(completions, demos * 4, strict=True))


@pytest.mark.parametrize("arch", EFFECTS)
def test_the_answer_alone_teaches_the_step_it_comes_from(arch):
    model = start(arch)
    before = model.fingerprint()
    fit = Fit(lr=3e-4, steps=25, rows=16, schedule="constant")
    result = alignment.mcts_dpo(model, habit(1, 48), **HABIT, beta=0.5, fit=fit)
    unseen, taught = habit(2), result.models["model"]
    assert 0.25 < right(model, unseen) < 0.55 and right(taught, unseen) > right(model, unseen) + 0.15
    assert model.fingerprint() == before
    ends = [r for r in result.records if r.chosen[:1] == r.rejected[:1] == "#"]
    assert len(ends) > 10 and all(answers.right(r.chosen, unseen[0]) for r in ends)
    assert not any(answers.right(r.rejected, unseen[0]) for r in ends)
    findings = result.findings["rounds"]
    assert findings[0]["right"] > 0.8 and findings[0]["share_of_gt_in_better"] == 0
    assert findings[0]["trees"] == 24 and findings[0]["tokens"] > 0 and 0 < findings[0]["alpha"] <= 0.5
    assert findings[0]["pairs"] == sum(r.extra["round"] == 0 for r in result.records)
    first = next(row for row in result.history if row["round"] == 0)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    for r in result.records:
        assert r.extra["q_better"] > r.extra["q_worse"] and r.chosen != r.rejected
        question, _, answer = r.prompt.partition("=")
        assert f"{question}=" in {d.prompt for d in habit(1, 48)} and answer.count(";") <= 2 and "=" not in answer


def test_equal_visits_teach_nothing(monkeypatch):
    monkeypatch.setattr(branches, "noise", lambda better, worse: 0.5)
    fit = Fit(lr=1e-2, steps=1, rows=8, optimizer="sgd")
    row = alignment.mcts_dpo(start(), habit(1, 24), **(HABIT | {"rounds": 1, "most": 1}), fit=fit).history[0]
    assert row["dpo"] == pytest.approx(math.log(2), abs=1e-5) and row["grad_norm"] < 1e-5


# --- options ---------------------------------------------------------------------------------


def short(model, demos=None, search=None, **more):
    searched = dataclasses.replace(SEARCH, **{"simulations": 4, **(search or {})})
    options = HABIT | {"rounds": 1, "batch": 8, "search": searched, "filter": False} | more
    return alignment.mcts_dpo(model, demos or habit(1, 8), **options, fit=Fit(lr=1e-3, epochs=1, rows=8))


def test_the_reference_solution_joins_the_search():
    """All reference solutions are right here, and their steps are preferred."""
    demos = [d for d in habit(1, 40) if "#1" in d.completion][:8]
    findings = short(start(), demos, {"include_gt": True}).findings["rounds"][0]
    assert findings["share_of_gt_in_better"] > 0.2
    answer_only = [Demo(prompt=d.prompt, completion="1") for d in demos]
    assert short(start(), answer_only, {"include_gt": True}).findings["rounds"][0]["share_of_gt_in_better"] == 0
    explained = [Demo(prompt=d.prompt, completion="#1", explanation="a;b;") for d in demos]
    findings = short(start(), explained, {"include_gt": True, "step": (";", "\n")}).findings["rounds"][0]
    assert findings["share_of_gt_in_better"] > 0


def test_the_filter_drops_trees_whose_solution_is_wrong():
    unsolvable = [Demo(prompt=d.prompt, completion="?", answers=["7"]) for d in habit(1, 8)]
    with pytest.raises(UserError, match="no search gave a pair; the chosen solutions were right in 0%"):
        short(start(), unsolvable, filter=True)


def test_offline_searches_with_the_first_policy_and_online_with_the_last():
    def records(online, lr=1e-2):
        fit = Fit(lr=lr, epochs=2, rows=8, schedule="constant")
        options = HABIT | {"online": online, "batch": 8, "filter": False}
        result = alignment.mcts_dpo(start(), habit(1, 8), **options, fit=fit).records
        return [[r for r in result if r.extra["round"] == n] for n in (0, 1)]

    online, offline, untaught = records(True), records(False), records(True, lr=0.0)
    assert online[0] == offline[0] and online[1] != offline[1] == untaught[1]


@pytest.mark.parametrize("more", [{"loss": "ipo"}, {"smoothing": False}, {"reference": "previous"}, {"rule": "second"},
                                  {"search": {"depth": 1, "step_tokens": 8}}, {"rule": "random"}, {"official": True},
                                  {"sft_weight": 0.5}, {"critic": Critic()}, {"most": 1}])  # fmt: skip
def test_every_variant_runs_and_moves_the_model(more):
    model = start()
    result = short(model, **more)
    assert result.models["model"].fingerprint() != model.fingerprint()
    assert all(math.isfinite(v) for row in result.history for v in row.values() if isinstance(v, float))
    if "sft_weight" in more:
        assert {"dpo", "sft"} <= set(result.history[0])
    if "smoothing" in more:
        assert result.findings["rounds"][0]["alpha"] == 0
    if "most" in more:
        assert len(result.records) <= 8


def test_the_reference_is_the_first_model_or_the_rounds():
    fit = Fit(lr=1e-3, steps=3, rows=8, schedule="constant")
    options = HABIT | {"rounds": 2, "batch": 8, "filter": False}
    first = {}
    for reference in ("initial", "previous"):
        rows = alignment.mcts_dpo(start(), habit(1, 8), **options, reference=reference, fit=fit).history
        first[reference] = next(abs(row["margin"]) for row in rows if row["round"] == 1)
    assert first["previous"] < 1e-5 < 1e-3 < first["initial"]


def test_the_codes_search_is_longer_at_the_root_and_counts_steps_nobody_visited(monkeypatch):
    search, configs = tree.search, []
    monkeypatch.setattr(tree, "search", lambda *args: configs.append(args[-1]) or search(*args))
    for official in (True, False):
        short(start(), official=official)
    assert [(config.first, config.unvisited) for config in configs] == [(4, 1), (1, 0)]


def test_the_schedule_runs_over_the_rounds():
    options = HABIT | {"rounds": 4, "batch": 6, "filter": False}
    fit = Fit(lr=1e-3, steps=1, rows=8, schedule="cosine", warmup=0.25)
    result = alignment.mcts_dpo(start(), habit(1, 24), **options, fit=fit)
    rates = [row["lr"] for row in result.history]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == 1e-3 and rates[1] > rates[2] > rates[3] > 0


def test_a_users_checker_says_what_is_right():
    demos, recorded = habit(1, 8), []
    short(start(), demos, answer=lambda text, demo: bool(recorded.append(demo.prompt)) or text.endswith("1"))
    assert set(recorded) == {d.prompt for d in demos}


def test_a_text_that_no_token_contains_ends_no_step():
    with pytest.raises(UserError, match="no token"):
        alignment.mcts_dpo(tiny("llama"), habit(n=2), search=StepSearch(step=("; and",)))


def test_a_killed_run_goes_on_in_its_round_and_searches_nothing_twice(tmp_path, monkeypatch):
    model = start()
    monkeypatch.setattr(branches, "CHUNK", 6)
    options = HABIT | {"rounds": 2, "batch": 12, "filter": False}
    fit = Fit(lr=3e-3, epochs=1, rows=8, schedule="constant")

    def run(folder=None):
        return alignment.mcts_dpo(model, habit(1, 24), **options, fit=fit.replace(folder=folder))

    whole = run()
    again, sizes = searches(monkeypatch, lambda: run(str(tmp_path)), [1, 3])  # in the second search of each round
    assert sizes == [6, 6, 6, 6]
    assert again.models["model"].fingerprint() == whole.models["model"].fingerprint()
    assert again.records == whole.records and again.findings == whole.findings

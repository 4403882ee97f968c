"""The survey's unlearning methods: known answers, and their effect on models that know the forget set."""

import ast
import inspect
import math

import numpy as np
import pytest
import torch
from scripted import Scripted
from shapes import EFFECTS, accuracy, probability

from didact import catalogue, unlearning
from didact.claims.unlearning import unlearning_survey
from didact.data import encode
from didact.evaluate import forgetting, memorisation, scaling
from didact.methods.unlearning.icul import flipped
from didact.methods.unlearning.unlearning_survey import WAYS
from didact.models import attribution
from didact.models.model import copy_of
from didact.types import Demo, Fit, UserError
from didact.worlds.authors import authors

SHORT = Fit(lr=1e-3, steps=2, rows=4)
# Tuned on seed 1 of the world, like the options below
SPECIALIST = Fit(lr=3e-4, steps=30, rows=16, schedule="constant")
SCALES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


@pytest.fixture(scope="module")
def small():
    return authors(0, forget=1, retain=1, unseen=0, holdout=1)


# --- merging ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", EFFECTS)
def test_task_arithmetic_forgets_and_a_random_vector_as_long_does_not(arch, taught, world):
    start = taught(arch)
    before = start.fingerprint()
    result = unlearning.task_arithmetic(start, world.forget, world.retain, scales=SCALES, fit=SPECIALIST)
    model, scale = result.models["model"], result.findings["scale"]
    assert scale > 0 and start.fingerprint() == before
    assert probability(model, world.forget) < 0.75 * probability(start, world.forget)
    assert scaling.accuracy(model, world.retain) >= 0.95 * scaling.accuracy(start, world.retain)
    assert accuracy(model, world.unseen) >= accuracy(start, world.unseen) - 0.15
    noise = unlearning.task_arithmetic(start, world.forget, scale=scale, vector="random", fit=SPECIALIST)
    assert probability(noise.models["model"], world.forget) > probability(model, world.forget) + 0.1


def test_scale_nought_is_the_model_itself_and_tokens_are_counted(fresh, small):
    start = fresh("llama")
    result = unlearning.task_arithmetic(start, small.forget, scale=0.0, fit=SHORT)
    assert result.models["model"].fingerprint() == start.fingerprint()
    assert result.cost.tokens > 0


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_negated_adapter_is_a_plain_model_that_knows_less(adapter, taught, world):
    start = taught("llama", gold=True)
    fit = Fit(lr=5e-3, steps=15, rows=16, schedule="constant", lora=8)
    options = {"adapter": adapter, "fit": fit}
    negated = [unlearning.negated_adapter(start, world.forget, **options, scale=s).models["model"] for s in (-1.0, 1.0)]
    p = [probability(m, world.forget) for m in negated]
    assert p[1] < probability(start, world.forget) < p[0]
    assert type(negated[1].module) is type(start.module)


def test_ext_sub_forgets_and_keeps_what_both_experts_learnt(taught, world):
    start = taught("llama")
    result = unlearning.ext_sub(start, world.forget, world.retain, scales=SCALES, fit=SPECIALIST)
    model = result.models["model"]
    assert result.findings["scale"] > 0
    assert probability(model, world.forget) < 0.7 * probability(start, world.forget)
    assert scaling.accuracy(model, world.retain) >= 0.95 * scaling.accuracy(start, world.retain)


def test_the_largest_scale_that_keeps_enough_is_taken(fresh, small, monkeypatch):
    retained = iter([1.0, 0.99, 0.96, 0.5])
    monkeypatch.setattr(scaling, "accuracy", lambda *_: next(retained))
    result = unlearning.task_arithmetic(fresh("llama"), small.forget, small.retain, scales=(3.0, 1.0, 2.0), fit=SHORT)
    assert result.findings == {"scale": 2.0, "retain_accuracy": {"1": 0.99, "2": 0.96, "3": 0.5}}


def test_merging_tells_what_is_missing(fresh, small):
    with pytest.raises(UserError, match="give --scale"):
        unlearning.task_arithmetic(fresh("llama"), small.forget, fit=SHORT)
    with pytest.raises(UserError, match="rank"):
        unlearning.negated_adapter(fresh("llama"), small.forget, scale=1.0, fit=SHORT)


# --- gradient ascent and its stop rule ---------------------------------------------------------


def test_overlap_counts_the_grams_of_the_first_in_the_second():
    assert memorisation.overlap([1, 2, 3, 4], [2, 3, 4, 5], 2) == 2 / 3
    assert memorisation.overlap([1], [1], 2) == 0
    assert memorisation.overlap([1, 2, 3], [1, 2, 3], 3) == 1


def test_what_is_known_by_heart_has_el_and_ma_of_one_and_el_is_of_free_continuations(taught, world):
    model, gold = taught("llama"), taught("llama", gold=True)
    rows = encode.rows(model.tokenizer, [(r.prompt, r.completion) for r in world.forget], "causal", 64)
    expected = forgetting.answers(model, world.forget)["extraction"]
    for row, extraction in zip(rows[:6], expected, strict=False):
        result = memorisation.memorised(model, row, 2)
        assert (result.ma == 1) == (extraction == 1)
        if result.ma == 1:
            assert result.el == 1
    # In free generation errors accumulate: EL falls further than MA does.
    strange = [memorisation.memorised(gold, r, 2) for r in rows]
    assert np.mean([s.el for s in strange]) < np.mean([s.ma for s in strange]) < 0.8


@pytest.mark.parametrize("arch", EFFECTS)
def test_kul_stops_at_what_unseen_text_is_known(arch, taught, world):
    start = taught(arch)
    fit = Fit(lr=3e-4, epochs=40, rows=8, schedule="constant")
    result = unlearning.kul(start, world.forget[:8], world.holdout[:8], chunk=4, n=2, fit=fit)
    el, ma = result.findings["threshold"]
    assert result.findings["el"] <= el + 0.05 and result.findings["ma"] <= ma + 0.05
    assert max(result.findings["steps"]) < 40  # neither chunk was trained to the end
    free = unlearning.kul(start, world.forget[:8], fit=fit.replace(epochs=2))
    assert "no stop rule" in free.warnings[0]


def test_kul_with_lora_gives_a_plain_model_after_several_chunks(fresh, small):
    start, fit = fresh("llama"), SHORT.replace(lora=2)
    one, several = (unlearning.kul(start, small.forget[:4], chunk=c, fit=fit) for c in (4, 2))
    assert type(several.models["model"].module) is type(start.module) is not type(one.models["model"].module)
    assert several.findings["steps"] == [2, 2] and several.models["model"].fingerprint() != start.fingerprint()


# --- LLMU, EUL, KGA ----------------------------------------------------------------------------


def test_llmu_without_its_first_two_parts_does_not_move(fresh, small):
    result = unlearning.llmu(fresh("llama"), small.forget, small.retain, ascent=0.0, mismatch=0.0, fit=SHORT)
    first = result.history[0]
    assert first["keep"] == pytest.approx(0, abs=1e-6) and first["grad_norm"] == pytest.approx(0, abs=1e-5)


def test_llmu_terms_are_means_over_their_own_tokens(fresh, small):
    """Compared with the plain losses of the start model, all records in one batch."""
    start = fresh("llama")
    fit = Fit(lr=1e-3, steps=1, rows=len(small.forget))
    row = unlearning.llmu(start, small.forget, small.retain, fit=fit).history[0]
    logp = forgetting.answers(start, small.forget)
    sizes = [len(r.completion) for r in forgetting.rows_of(start, small.forget)]
    nll = -sum(math.log(p) * n for p, n in zip(logp["probability"], sizes, strict=True)) / sum(sizes)
    assert row["forget"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("way", ["llmu", "eul", "kga"])
def test_optimisation_forgets_and_keeps(way, taught, world):
    start = taught("llama")
    options = {
        "llmu": {"fit": Fit(lr=3e-4, steps=50, rows=10)},
        "eul": {"fit": Fit(lr=3e-3, steps=50, rows=10, lora=8)},
        "kga": {
            "unseen": world.holdout, "specialist_lr": 1e-3, "specialist_epochs": 20.0, "keep": 1.0,
            "fit": Fit(lr=5e-4, steps=60, rows=10),
        },
    }  # fmt: skip
    result = getattr(unlearning, way)(start, world.forget, world.retain, **options[way])
    model = result.models["model"]
    assert probability(model, world.forget) < 0.6 * probability(start, world.forget)
    assert accuracy(model, world.unseen) >= accuracy(start, world.unseen) - 0.15


def test_kga_has_nothing_to_align_where_forget_is_the_new_data(fresh, small):
    fit = Fit(lr=1e-3, steps=1, rows=len(small.forget))
    options = {"specialist_lr": 1e-2, "specialist_epochs": 3.0, "fit": fit}
    result = unlearning.kga(fresh("llama"), small.forget, small.retain, small.forget, **options)
    # The two specialists differ only by the order of their data, which is seeded by the stream's name.
    assert result.history[0]["keep"] == pytest.approx(0, abs=1e-6)
    assert result.history[0]["align"] < 0.1 * result.findings["gap_unseen"]


# --- DEPN --------------------------------------------------------------------------------------


def test_attribution_of_a_linear_probability_is_exact_for_any_number_of_steps():
    w, weight = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    for steps in (1, 7):
        result = attribution.integrated_gradients(lambda x: (x * weight).sum(), w, steps)
        torch.testing.assert_close(result, w * weight)


@pytest.mark.parametrize("arch", EFFECTS)
def test_neurons_found_by_attribution_matter_more_than_any_others(arch, taught, world):
    start = taught(arch)
    result = unlearning.depn(start, world.forget, neurons=30, steps=4, share=0.2)
    chosen = result.findings["neurons"]
    assert len(chosen) == 30
    actual = probability(result.models["model"], world.forget)
    others = copy_of(start)
    with torch.no_grad():
        for k, (layer, neuron) in enumerate(chosen):
            projection = attribution.down_projections(others)[layer]
            at = (neuron + 17 + k) % (
                projection.in_features if isinstance(projection, torch.nn.Linear) else len(projection.weight)
            )
            (projection.weight[:, at] if isinstance(projection, torch.nn.Linear) else projection.weight[at]).zero_()
    before = probability(start, world.forget)
    assert before - actual > 2 * (before - probability(others, world.forget)) and actual < before - 0.02


def test_without_neurons_depn_changes_nothing(fresh, small):
    start = fresh("llama")
    result = unlearning.depn(start, small.forget[:2], neurons=0, steps=1)
    assert result.models["model"].fingerprint() == start.fingerprint()


# --- in context --------------------------------------------------------------------------------


CLASSES = ["good", "bad"]


def reviews(n, start=0):
    return [Demo(prompt=f"review {i}:", completion=CLASSES[i % 2], choices=CLASSES) for i in range(start, start + n)]


def reader():
    """Repeats the answer that the prompt gives to the same question, else all are equally likely."""

    def logp(prompt, choice):
        *lines, query = prompt.split("\n")
        answers = [line.removeprefix(query).strip() for line in lines if line.startswith(query)]
        return math.log(0.5 if not answers else 0.9 if answers[-1] == choice else 0.1)

    return Scripted(write=lambda prompt, i: "", logp=logp)


def test_flipping_two_classes_twice_is_the_identity_and_never_keeps_a_label():
    once = flipped(reviews(6))
    assert all(a.completion != b.completion for a, b in zip(once, reviews(6), strict=True))
    assert [d.completion for d in flipped(once)] == [d.completion for d in reviews(6)]


def test_icul_shows_the_example_flipped_then_right_ones_and_never_the_question_itself():
    lm = reader()
    result = unlearning.icul(lm, reviews(2), reviews(8, 10), right=3)
    prompt = result.findings["prompt"]
    assert prompt.split("\n")[0] == "review 0: bad"
    lines = [p.split("\n") for p, _ in lm.asked if p.endswith("review 0:")]
    prompt_lines = next(line for line in lines if len(line) > 1)
    assert prompt_lines[0] == "review 0: bad" and len(prompt_lines) == 1 + 3 + 1
    examples = {f"review {i}: {CLASSES[i % 2]}" for i in range(10, 18)}
    assert set(prompt_lines[1:-1]) <= examples
    for query, _ in lm.asked:
        *examples_shown, last = query.split("\n")
        assert not any(line in examples and line.startswith(last) for line in examples_shown)
    assert result.metrics["forget_confidence"].after == pytest.approx(0.1)
    assert result.metrics["forget_confidence"].before == pytest.approx(0.5)


def test_without_flip_the_label_shown_is_believed_and_random_flips_leave_it_alone():
    unflipped = unlearning.icul(reader(), reviews(2), reviews(8, 10), flip="none")
    assert unflipped.metrics["forget_confidence"].after == pytest.approx(0.9)
    other = unlearning.icul(reader(), reviews(2), reviews(8, 10), flip="random")
    assert other.metrics["forget_confidence"].after == pytest.approx(0.5)


def test_icul_predicts_new_questions():
    predict = unlearning.icul(reader(), reviews(2), reviews(8, 10)).predict
    assert predict(["review 0:", "review 1:"]) == ["bad", "good"]


def test_icul_is_for_classification():
    free = [Demo(prompt="a", completion="b")]
    with pytest.raises(UserError, match="forget: record 1"):
        unlearning.icul(reader(), free, reviews(2))


def test_a_guard_stands_before_every_question(fresh, small):
    result = unlearning.guardrail(fresh("llama"), small.forget[:2], guard="Hush.", max_new_tokens=2)
    assert result.findings["prompt"].startswith("Hush.") and small.forget[0].prompt in result.findings["prompt"]
    assert len(result.predict(["hello", "you"])) == 2


# --- all methods -------------------------------------------------------------------------------


def test_the_survey_gives_the_way_that_balances_best(taught, world):
    start = taught("llama")
    methods = ("graddiff", "whp", "task-arithmetic", "ext-sub")
    result = unlearning.unlearning_survey(start, world.forget, world.retain, ways=methods, fit=SPECIALIST)
    rows = result.findings["ways"]
    best = max(methods, key=lambda w: rows[w]["balance"])
    assert result.findings["best"] == best and rows[best]["balance"] > rows["untouched"]["balance"] + 0.2
    assert {rows[w]["class"] for w in methods} == {"optimisation", "merging"}
    assert result.models["model"] is not start
    assert probability(result.models["model"], world.forget) < probability(start, world.forget)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_the_survey_runs(way, fresh, small):
    result = unlearning.unlearning_survey(fresh("llama"), small.forget[:3], small.retain, ways=(way,), fit=SHORT)
    assert result.findings["best"] == way


def test_one_failing_way_does_not_stop_the_others_and_all_failing_is_told(fresh, small):
    options = {"forget": small.forget[:3], "retain": small.retain, "fit": SHORT}
    result = unlearning.unlearning_survey(fresh("t5"), **options, ways=("kul", "graddiff"))
    assert "causal" in result.findings["ways"]["kul"]["error"] and result.findings["best"] == "graddiff"
    with pytest.raises(UserError, match="every way failed"):
        unlearning.unlearning_survey(fresh("t5"), **options, ways=("kul",))
    with pytest.raises(UserError, match="magic"):
        unlearning.unlearning_survey(fresh("llama"), small.forget, small.retain, ways=("magic",))
    with pytest.raises(UserError, match="too few"):
        unlearning.unlearning_survey(fresh("llama"), small.forget, small.retain[:4])


def test_the_claim_runs_every_way():
    methods = {n.partition(".")[2].replace("-", "_") for n in catalogue.read() if n.startswith("unlearning-survey.")}
    code = ast.walk(ast.parse(inspect.getsource(unlearning_survey)))
    called = {n.attr for n in code if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "unlearning"}
    assert methods and not methods - called

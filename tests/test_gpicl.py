"""gpicl: known answers, leaks, pools, other learners, a user's texts, and digits."""

from __future__ import annotations

import gzip
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import tiny

from didact.data import reduction
from didact.evaluate import curves, in_context
from didact.evaluate.phases import PhaseMap
from didact.evaluate.references import classifiers
from didact.learn import episodes, task_pools
from didact.learn.task_pools import Labelled, TaskPool
from didact.methods.mechanisms.gpicl import gpicl
from didact.models import load, sequence
from didact.models.sequence import SequenceConfig, SequenceLearner
from didact.types import Example, Fit, Result, UserError
from didact.worlds.prototypes import Prototypes

DIGITS = Path(__file__).parents[2] / "shared" / "data" / "digits.csv.gz"
WORLD = Prototypes(classes=2, dim=4)
SMALL = SequenceConfig(mixer="vsml", width=8)
QUICK = Fit(lr=1.5e-2, steps=120, rows=24, warmup_steps=10)
MIXERS = ("transformer", "lstm", "gru", "fast-weights", "vsml")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with episodes.one_thread():
        yield


@pytest.fixture(scope="module")
def learned() -> Result:
    with episodes.one_thread():
        return gpicl(
            [WORLD(0, 60)], [WORLD(1, 40, "other")], learner=SMALL, slots=2, length=12, bias=0.0, sequences=200,
            fit=QUICK,
        )  # fmt: skip


def clouds(seed: int = 0, classes: int = 3, d: int = 3, rows: int = 20) -> Labelled:
    rng = np.random.default_rng(seed)
    return Labelled(
        "clouds", rng.standard_normal((classes * rows, d)), np.repeat(np.arange(classes), rows), tuple("abc")
    )


def test_it_learns_to_learn_and_says_so(learned: Result) -> None:
    findings = learned.findings
    assert findings["regime"] == "learning to learn" and findings["plateau_exit_step"] <= 120 and not learned.warnings
    assert findings["improvement"]["unseen"]["low"] > 0.2 and findings["improvement"]["new: other"]["low"] > 0.1
    assert abs(findings["improvement"]["random labels"]["estimate"]) < 0.12
    assert findings["curves"]["unseen"]["estimate"][0] == pytest.approx(0.5, abs=0.12)
    assert set(findings["baselines"]["unseen"]["accuracy"]) == {
        "1 neighbour", "3 neighbours", "centroids", "logistic regression", "MLP, a step a row", "MLP, 100 steps",
    }  # fmt: skip
    assert learned.metrics["accuracy, fresh tasks"].after > 0.75 and findings["state_size"] == 2 * 4 * 2 * 8


def test_new_classes_are_predicted_from_a_context(learned: Result, tmp_path: Path) -> None:
    """In the user's own labels and columns, also by the saved learner; queries do not attend to one another."""
    fresh = WORLD(7, 30)
    rows, names = np.array(fresh.x), ["spam" if y == "class 0" else "ham" for y in fresh.y]
    order = np.random.default_rng(0).permutation(60)
    context, queries = order[:9], order[9:40]
    assert learned.predict is not None
    guess = learned.predict(rows[context], [names[i] for i in context], rows[queries])
    accuracy = np.mean([g == names[i] for g, i in zip(guess.labels, queries, strict=True)])
    assert accuracy > 0.75 and guess.probabilities.sum(1) == pytest.approx(1)
    alone = learned.predict(rows[context], [names[i] for i in context], rows[queries[:1]])
    np.testing.assert_allclose(alone.probabilities[0], guess.probabilities[0], atol=1e-5)
    assert learned.save(tmp_path)["model"].startswith("didact")
    again: Any = load.load(tmp_path / "model").module
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(again(x, x[..., :2]), learned.models["learner"].module(x, x[..., :2]))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="takes 11 rows"):
        learned.predict(rows[:13], names[:13], rows[:1])


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("layout", ["shifted", "interleaved"])
def test_no_position_sees_what_comes_after_it(mixer: Any, layout: Any) -> None:
    """A leak would look like learning: y_t and later, and x_t+1 and later, must not change prediction t."""
    if mixer == "vsml" and layout == "interleaved":
        return
    torch.manual_seed(0)
    module = SequenceLearner(3, 2, mixer=mixer, width=8, layers=2, heads=2, layout=layout).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x, y = torch.randn(2, 6, 3).double(), torch.randn(2, 6, 2).double()
    base = module(x, y)
    assert base.shape == (2, 6, 2)
    for t in range(6):
        later_x, later_y = x.clone(), y.clone()
        later_x[:, t + 1 :] += 1
        later_y[:, t:] += 1
        torch.testing.assert_close(module(later_x, later_y)[:, t], base[:, t])
        if t:
            earlier = y.clone()
            earlier[:, t - 1] += 1
            assert (module(x, earlier)[:, t] - base[:, t]).abs().min() > 0


def test_state_sizes() -> None:
    big = SequenceLearner(8, 10, layers=4, width=256, heads=8)
    assert big.state_size(100) == 204_800  # from the card
    assert SequenceLearner(8, 10, mixer="lstm", layers=1, width=64, heads=1).state_size(100) == 128
    assert SequenceLearner(8, 4, mixer="fast-weights", layers=1, width=64, heads=2).state_size(9) == 64 * 32


def test_a_map_keeps_lengths_and_angles_in_mean() -> None:
    pool = TaskPool([clouds()], 4, 3)
    maps = np.stack([pool.task(k)[1] for k in range(4000)])
    x, y = np.array([1.0, 2.0, -1.0]), np.array([0.5, 1.0, 2.0])
    assert np.mean(((maps @ x) ** 2).sum(1)) == pytest.approx(x @ x, rel=0.05)
    assert np.mean(((maps @ x) * (maps @ y)).sum(1)) == pytest.approx(x @ y, abs=0.15)


def test_a_task_is_the_same_in_every_process_and_no_other() -> None:
    code = (
        "import numpy as np\nfrom didact.learn.task_pools import Labelled, TaskPool\n"
        "pool = TaskPool([Labelled('c', np.zeros((6, 3)), np.repeat(np.arange(3), 2), tuple('abc'))], 4, 3, seed=5)\n"
        "print(repr([pool.task(k)[1:] for k in (0, 1, 17)]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    flat = Labelled("c", np.zeros((6, 3)), np.repeat(np.arange(3), 2), tuple("abc"))
    assert process.stdout.strip() == repr([TaskPool([flat], 4, 3, seed=5).task(k)[1:] for k in (0, 1, 17)])
    pool = TaskPool([clouds()], 4, 3, seed=5)
    assert not np.allclose(pool.task(0)[1], pool.task(1)[1]) and not np.allclose(
        pool.task(0)[1], pool.but(seed=6).task(0)[1]
    )
    few = TaskPool([clouds()], 2, 3, tasks=4)
    positions = {few.task(int(k))[2].tobytes() for k in range(4)}
    samples = few((0, 1), 300)
    assert len(positions) <= 4 and len({tuple(r) for r in samples["allowed"].tolist()}) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 10_000), st.sampled_from([0.0, 0.5]))
def test_batches_are_fair_and_consistent(classes: int, slots: int, seed: int, bias: float) -> None:
    """Every class has one slot per task, only used slots have labels, and the same seed draws the same task."""
    rows = np.arange(classes * 3, dtype=float)[:, None] // 3  # a row is its class
    data = [Labelled("c", rows, np.repeat(np.arange(classes), 3), tuple(range(classes)))]
    pool = TaskPool(data, 12, slots, seed=seed, bias=bias, natural=0.999)
    batch = pool((seed, 3), 20)
    assert batch["allowed"].sum(1).eq(min(slots, classes)).all() or bias
    assert batch["allowed"].gather(1, batch["label"]).all()
    for x, label in zip(batch["x"][..., 0], batch["label"], strict=True):
        pairs = {(round(float(a), 3), int(b)) for a, b in zip(x, label, strict=True)}
        assert len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})
    assert pool((seed, 3), 20)["x"].equal(batch["x"])


def test_bias_keeps_the_places_and_a_curriculum_ends_it() -> None:
    data = [Labelled("c", np.eye(3).repeat(4, 0), np.repeat(np.arange(3), 4), tuple("abc"))]
    law = task_pools.law(TaskPool(data, 8, 3), bias=0.999, natural=1.0, until=10)
    early, late = law((0, 0), 50), law((0, 10), 50)
    assert early["x"].argmax(-1).equal(early["label"]) and not late["x"].argmax(-1).equal(late["label"])


def test_the_loss_is_log_c_where_nothing_is_known() -> None:
    pool = TaskPool([clouds()], 6, 3)
    module = SequenceLearner(3, 3, width=8, layers=1, heads=1)
    batch = pool((0, 0), 32)
    term = task_pools.class_loss(module, batch)["nll"]
    assert float(term.sum.detach()) / 32 == pytest.approx(math.log(3))  # untrained, all slots are equally likely
    torch.nn.init.normal_(module.read_out.weight)
    logits = module(batch["x"], batch["y"])
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["label"].flatten())
    term = task_pools.class_loss(module, batch)["nll"]
    assert float(term.sum.detach()) / 32 == pytest.approx(float(plain), rel=1e-5)  # all positions have the same weight
    (halves := batch.split(20))[0].sizes  # noqa: B018
    assert sum(float(task_pools.class_loss(module, h)["nll"].sum) for h in halves) == pytest.approx(
        float(term.sum), rel=1e-5
    )


def test_baselines_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    batch = TaskPool([clouds(rows=200)], 14, 3)((0, 2), 12)
    x, label = batch["x"], batch["label"]
    one, three = (classifiers.neighbours(x, label, 3, k) for k in (1, 3))
    mean = classifiers.centroids(x, label, 3)
    for b in range(12):
        for t in range(5, 14):
            rows, labels, query = x[b, :t].double().numpy(), label[b, :t].numpy(), x[b, t : t + 1].double().numpy()
            for result, k in ((one, 1), (three, 3)):
                assert int(result[b, t]) == KNeighborsClassifier(k).fit(rows, labels).predict(query)[0]
            if len(set(labels)) > 1:
                assert int(mean[b, t]) == NearestCentroid().fit(rows, labels).predict(query)[0]


def test_a_network_by_sgd_is_that_of_torch_and_sees_nothing_of_what_it_predicts() -> None:
    batch = TaskPool([clouds(rows=200)], 20, 3)((0, 3), 40)
    x, label = batch["x"].double(), batch["label"]
    result = classifiers.perceptron(x, label, 3, 0.3)
    assert torch.equal(result, classifiers.perceptron(x, label, 3, 0.3))
    later, other = x.clone(), (label + torch.cat([torch.zeros(10), torch.ones(10)]).long()) % 3
    later[:, 11:] *= -1
    assert torch.equal(classifiers.perceptron(later, other, 3, 0.3)[:, :11], result[:, :11])
    fresh = torch.Generator().manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).double()
    for layer in (layers[0], layers[2]):
        layer.weight.data = torch.randn(layer.in_features, layer.out_features, generator=fresh).double().T
        layer.weight.data /= layer.in_features**0.5
        layer.bias.data.zero_()
    sgd = torch.optim.SGD(layers.parameters(), 0.3)
    for t in range(20):
        logits = layers(x[7, t : t + 1])
        assert int(logits.argmax()) == int(result[7, t])
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(logits, label[7, t : t + 1]).backward()
        sgd.step()
    apart = TaskPool(
        [Labelled("far", 3 * np.repeat(np.eye(3), 20, 0) + clouds().x / 5, clouds().y, tuple("abc"))], 20, 3
    )
    x, label = (apart((0, 4), 60)[name] for name in ("x", "label"))
    fitted = classifiers.perceptron(x, label, 3, 0.3, 100)
    assert (fitted == label[:, -1]).float().mean() > 0.8 and fitted.shape == (60,)


def test_regimes_and_alarms() -> None:
    g = torch.Generator().manual_seed(0)
    at = lambda *p: (torch.rand(400, 8, generator=g) < torch.tensor(p)[None]).float()  # noqa: E731
    flat, rising, solved = at(*[0.5] * 8), at(*np.linspace(0.5, 0.95, 8)), at(*[0.95] * 8)
    assert curves.regime(rising, rising, 0.5) == "learning to learn"
    assert curves.regime(rising, flat, 0.5) == "task identification"
    assert curves.regime(solved, flat, 0.5) == "memorisation" and curves.regime(flat, flat, 0.5) == "not meta-trained"
    curves.check_chance(flat, 0.5, "here")
    with pytest.raises(UserError, match="labels leak"):
        curves.check_chance(solved[:, 0], 0.5, "here")
    errors = torch.rand(200, 4, generator=g)
    assert curves.check_floor(errors, errors - 0.1, "here").estimate == pytest.approx(0.1)
    with pytest.raises(UserError, match="below the exact floor"):
        curves.check_floor(errors - 0.1, errors, "here")


def test_a_leak_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "before", lambda y: y)
    with pytest.raises(UserError, match=r"first position.*labels leak"):
        gpicl([WORLD(0, 40)], learner=SMALL, slots=2, length=8, bias=0.0, sequences=100, fit=QUICK.replace(steps=40))


def test_one_task_is_learned_by_heart_and_a_map_shows_it() -> None:
    small = SequenceConfig(mixer="gru", width=16, layers=1)
    result = gpicl(
        [WORLD(0, 60)], learner=small, tasks=1, slots=2, length=8, bias=0.0, sequences=150,
        phases=PhaseMap(widths=(8,), tasks=(1, 0), steps=40), fit=QUICK.replace(steps=120),
    )  # fmt: skip
    assert result.findings["regime"] == "memorisation" and "memorisation" in result.warnings[0]
    accuracy = result.findings["curves"]["seen"]["estimate"]
    assert min(accuracy) > 0.75 and abs(accuracy[-1] - accuracy[0]) < 0.2  # flat, like a classifier
    cells = result.findings["map"]
    assert [(c["width"], c["tasks"]) for c in cells] == [(8, 1), (8, 0)]
    assert cells[0]["accuracy"]["seen"]["estimate"] > 0.7 and cells[1]["state_size"] == 8
    titles = [f.title for f in result.figures]
    assert titles[:2] == ["Accuracy as examples come in", "With many examples"]
    assert titles[2:] == [f"Improvement within a sequence, {w} tasks" for w in ("seen", "unseen")]
    assert all("<svg" in f.svg() for f in result.figures)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_users_texts_stand_by_a_frozen_models_states(arch: Any) -> None:
    rng = np.random.default_rng(0)
    command = {"a": ["sun", "rain", "wind"], "b": ["goal", "team", "ball"]}
    rows = [(" ".join(rng.choice(command[c], 6)), c) for c in "ab" for _ in range(30)]
    records = [Example(x=[text], y=[c], task="news") for text, c in rows]  # one row per record
    model = tiny(arch)
    before = model.fingerprint()
    result = gpicl(
        records, records[:8] + records[30:38], model, learner=SMALL, slots=2, length=8, bias=0.0, features=4,
        sequences=60, fit=QUICK.replace(steps=60),
    )  # fmt: skip
    assert model.fingerprint() == before and result.predict is not None
    assert result.findings["curves"].keys() >= {"seen", "unseen", "new: news", "new: news, unmapped"}
    predicted = result.predict(
        ["sun rain sun", "goal team ball", "wind rain", "ball goal"], [0, 1, 0, 1], ["rain rain wind sun"]
    )
    assert predicted.labels[0] in (0, 1) and predicted.probabilities.shape == (1, 2)


def test_reduction_is_fitted_to_training_rows_only() -> None:
    x = np.random.default_rng(0).standard_normal((300, 6)) * [1, 10, 100, 1, 1, 0]
    plain = reduction.fitted(x, 8)
    np.testing.assert_allclose(plain(x).std(0), [1, 1, 1, 1, 1, 0], atol=1e-9)
    few = reduction.fitted(x, 3)(x)
    assert few.shape == (300, 3) and (few**2).mean() == pytest.approx(1, rel=1e-6)
    white = reduction.fitted(x, 4, whiten=True)(x)
    np.testing.assert_allclose(white.T @ white / 300, np.eye(4), atol=1e-6)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([Example(x=[[1.0, math.nan], [1.0, 2.0]], y=["a", "b"])], "record 1: field 'x': holds NaN"),
        ([Example(x=[[1.0], [2.0]], y=["a", None])], "record 1: field 'y': None is not a class"),
        ([Example(x=[[1.0], [2.0]], y=[0.5, 1.5])], "record 1: field 'y': 0.5 is not a class"),
        ([Example(x=["a", "b"], y=["a", "b"])], "give --model"),
        ([Example(x=[[1.0], [2.0]], y=["a", "a"])], "'data' has one class"),
        ([Example(x=[[1.0], [2.0]], y=["a"])], "record 1: 2 rows of 'x' and 1 of 'y'"),
        ([Example(x=[[1.0]], y=["a"]), Example(x=[[1.0, 2.0]], y=["b"])], "record 2: rows of"),
        ([Example(x=[[1.0], [2.0]], y=["a", "b"])], "class 'a' has one row"),
        ([Example(x=[1.0, 2.0], y=["a", "b"])], "a row must be a list of numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_one_line(records: list[Example], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        gpicl(records)
    assert "\n" not in str(error.value)
    if records:
        with pytest.raises(UserError, match="^new" if "class 'a'" not in message else "new: rows have 1"):
            gpicl([WORLD(0, 10)], records)


@pytest.mark.soak
@pytest.mark.skipif(not DIGITS.exists(), reason="the shared data folder has no digits")
def test_digits_it_never_saw() -> None:
    """Meta-trained on digits 0-4, it learns 5-9 from a context."""
    with gzip.open(DIGITS, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    low, high = table[table[:, -1] < 5], table[table[:, -1] >= 5]
    base, other = (Example(x=t[:, :-1].tolist(), y=t[:, -1].astype(int).tolist(), task="d") for t in (low, high))
    fit = Fit(lr=1e-2, steps=300, rows=32, warmup_steps=30)
    small = SequenceConfig(mixer="vsml", width=8)
    result = gpicl([base], [other], learner=small, slots=5, length=16, features=12, bias=0.0, sequences=200, fit=fit)
    assert result.findings["improvement"]["new: d"]["low"] > 0.15 and in_context.repeated

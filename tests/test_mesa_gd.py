"""mesa-gd on a user's records, on a language model, its errors, and its sabotage."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from didact import figures, files
from didact.claims.mechanisms import mesa_gd_sabotages as sabotages
from didact.data import read
from didact.data.streams import Tensors
from didact.evaluate import learners, numbers
from didact.evaluate.learners import EvaluationConfig
from didact.evaluate.references import gradient
from didact.learn import episodes
from didact.methods.mechanisms.mesa_gd import mesa_gd
from didact.models import modules
from didact.models.build import build, train_tokenizer
from didact.models.model import Model
from didact.types import Example, Fit, Result, UserError, as_row
from didact.worlds import regression

WORLD = regression.Linear(dim=3, rows=6)
QUICK = Fit(lr=2e-2, steps=400, rows=256, betas=(0.9, 0.98), schedule="cosine", clip=1.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with episodes.one_thread():
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    path = tmp_path_factory.mktemp("data") / "tasks.jsonl"
    files.write_lines(path, map(as_row, regression.records(WORLD(1, 3000))))
    return read.read(path, Example)


@pytest.fixture(scope="module")
def taught(records: list[Example]) -> Result:
    with episodes.one_thread():
        return mesa_gd(records, restarts=2, fit=QUICK)


def test_it_learns_gradient_descent_from_records(taught: Result) -> None:
    unseen = WORLD((99,), 20_000)
    gd = gradient.gd(gradient.optimal_eta(6, 3, *WORLD.moments()))
    module = taught.models["lsa"].module  # type: ignore[attr-defined]  # of a Savable
    result = learners.compare(learners.of_module(module), gd, unseen)
    assert result.loss.estimate == pytest.approx(result.reference_loss.estimate, rel=0.04)
    assert result.cosine.estimate > 0.98
    assert learners.compare(sabotages.flipped(module), gd, unseen).cosine.estimate < -0.98


def test_the_report_says_so(taught: Result) -> None:
    findings = taught.findings
    assert findings["kind"] == "white-box" and findings["closest"]["reference"] == "gd" and not taught.warnings
    assert set(findings["alignment"]) == {"gd", "ridge", "ols", "zero"} and findings["tasks"] == 600
    assert findings["training_loss"] == sorted(findings["training_loss"]) and len(findings["training_loss"]) == 2
    inputs, targets = taught.figures
    assert isinstance(inputs, figures.Curves) and isinstance(targets, figures.Curves)
    assert inputs.lines[0].x[0] == 0.5 and [line.name for line in inputs.lines] == ["learner", "gd"]
    assert len(targets.lines[0].y) == 45
    cosine, loss = taught.metrics["cosine_to_gd"], taught.metrics["loss"]
    assert cosine.after > 0.98 and cosine.ci and cosine.ci[0] < cosine.after < cosine.ci[1]
    assert loss.before is not None and loss.after < 0.7 * loss.before
    assert len(taught.history) == 400 and taught.cost.tokens > 0


def test_the_result_is_usable_elsewhere(taught: Result, tmp_path: Path) -> None:
    written = taught.save(tmp_path)
    assert written["model"].startswith("didact") and "findings.json" in written
    json.loads((tmp_path / "findings.json").read_text())
    tasks = WORLD(5, 50)
    again = learners.with_numpy(learners.of_module(modules.load_module(tmp_path / "model").module))
    assert taught.predict is not None
    for x, y, q in zip(*(tasks[k].numpy() for k in ("x", "y", "query")), strict=True):
        np.testing.assert_allclose(taught.predict(x, y[:, 0], q), again(x, y, q)[0], rtol=1e-6)
    result = mesa_gd(regression.records(WORLD(2, 200)), modules.load_module(tmp_path / "model"))
    assert result.findings["kind"] == "white-box" and not result.models and result.metrics["cosine_to_gd"].after > 0.98


def test_raw_columns_need_standardising() -> None:
    """Inputs around 100 and targets around 1000: learnable only after scaling, and predicted in the user's units."""
    tasks = WORLD(3, 1500)
    parts = {"x": (40, 100), "query": (40, 100), "y": (500, 1000), "target": (500, 1000)}
    raw = Tensors({name: tasks[name] * scale + shift for name, (scale, shift) in parts.items()})
    result = mesa_gd(regression.records(raw), standardize=True, restarts=1, fit=QUICK)
    assert result.metrics["cosine_to_gd"].after > 0.95 and result.predict is not None
    answers = [float(result.predict(raw["x"][i], raw["y"][i, :, 0], raw["query"][i])) for i in range(300)]
    error = torch.tensor(answers) - raw["target"][:300, 0]
    assert error.square().mean() < 0.7 * (raw["target"][:300] - 1000).square().mean()
    model = result.models["lsa"]
    assert isinstance(model, Model)
    again = mesa_gd(regression.records(raw), model, standardize=True)
    assert again.metrics["cosine_to_gd"].after == pytest.approx(result.metrics["cosine_to_gd"].after, abs=0.01)


def test_tasks_of_different_lengths_without_a_query() -> None:
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(400):
        w, x = rng.standard_normal((2, 2)), rng.uniform(-1, 1, (int(rng.integers(7, 12)), 2))
        tasks.append(Example(x=x.tolist(), y=(x @ w.T).tolist()))
    pool = episodes.Pool.of(tasks)
    assert pool.context == 6
    samples = pool((0, 1), 64)
    assert samples["x"].shape == (64, 6, 2) and samples["target"].shape == (64, 2)
    # The query is a row of its task that is not in the context, and fits the same map.
    fit = gradient.ols()(samples["x"], samples["y"], samples["query"])
    torch.testing.assert_close(fit, samples["target"], atol=1e-3, rtol=1e-3)
    assert ((samples["x"] - samples["query"][:, None]).abs().sum(-1) > 0).all()
    assert samples["x"].equal(pool((0, 1), 64)["x"]) and not samples["x"].equal(pool((0, 2), 64)["x"])
    result = mesa_gd(tasks, restarts=1, fit=QUICK.replace(steps=300))
    assert result.metrics["cosine_to_gd"].after > 0.95


def test_the_split_keeps_copies_together() -> None:
    tasks = regression.records(WORLD(0, 50))
    train, held = episodes.Pool.of([*tasks, *tasks]).split(0.2)
    assert len(held) == 20 and len(train) == 80
    train_inputs = {x.tobytes() for x in train.x}
    assert not any(x.tobytes() in train_inputs for x in held.x)


GOOD = regression.records(WORLD(0, 20))
BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": [[1.0, math.nan]], "y": [1.0]}, "record 3: field 'x': holds NaN"),
    ({"x": [[1.0, 2.0], [1.0]], "y": [1.0, 2.0]}, "record 3: field 'x': rows of different lengths"),
    ({"x": [["a", "b"]], "y": [1.0]}, "record 3: field 'x': must hold numbers only"),
    ({"x": [[1.0, None]], "y": [1.0]}, "record 3: field 'x': must hold numbers only"),
    ({"x": [[1.0, 2.0]] * 3, "y": [1.0, 2.0]}, "record 3: 3 rows of 'x' and 2 of 'y'"),
    ({"x": [[1.0]] * 3, "y": [1.0] * 3}, "record 3: rows of 1 inputs and 1 targets; record 1 has 3"),
    ({"x": [[1.0] * 3] * 3, "y": [1.0] * 3, "x_query": [1.0] * 3}, "come together"),
    ({"x": [[1.0] * 3] * 3, "y": [1.0] * 3, "x_query": [1.0], "y_query": 1.0}, "'x_query' has 1 numbers"),
    ({"x": [[1.0] * 3], "y": [1.0]}, "record 3: 0 rows beside the query"),
    ({"x": [[[1.0]]], "y": [1.0]}, "must be rows of numbers"),
    ({"x": [], "y": []}, "must be rows of numbers"),
]


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        *(([*GOOD[:2], Example(**fields)], {}, message) for fields, message in BAD),
        (GOOD[:3], {}, "fewer than two"),
        (GOOD, {"context": 9}, "record 1: 6 rows beside the query; 9 are needed"),
        (WORLD, {"standardize": True}, "for records"),
        (WORLD, {"fit": QUICK.replace(steps=None)}, "give fit.steps"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(tasks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        mesa_gd(tasks, **options)
    assert "\n" not in str(error.value)


def test_what_learned_nothing_says_so() -> None:
    rng = np.random.default_rng(0)
    noise = [Example(x=rng.standard_normal((4, 2)).tolist(), y=rng.standard_normal(4).tolist()) for _ in range(60)]
    result = mesa_gd(noise, restarts=1, fit=QUICK.replace(steps=5))
    assert result.warnings and "no better than answering 0" in result.warnings[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_language_model_is_a_learner_of_numbers(arch: Any) -> None:
    tasks = regression.Linear(dim=2, rows=3)(0, 40)
    tokenizer = train_tokenizer(["x: 0.12 -0.48 y: 0.31\n-0.59 0.70 0.26"] * 5, 300)
    model = build(arch, tokenizer, d=32, layers=1, heads=2, context=256)
    learner = numbers.NumberLearner(model, torch.linspace(-1, 1, 5))
    assert learner.prompt(tasks["x"][0], tasks["y"][0, :, 0], tasks["query"][0]).count("\n") == 3
    answer = learner(tasks["x"][:4], tasks["y"][:4], tasks["query"][:4])
    assert answer.shape == (4, 1) and answer.abs().max() < 1
    result = mesa_gd(regression.records(tasks), model, evaluation=EvaluationConfig(lm_tasks=4, lm_grid=5))
    assert result.findings["kind"] == "behavioural, black-box" and result.findings["tasks"] == 4
    assert not result.models and set(result.findings["alignment"]) == {"gd", "ridge", "ols", "zero"}
    assert result.predict is not None and np.isfinite(result.predict([[0.1, 0.2]], [0.3], [0.1, 0.1]))
    with pytest.raises(UserError, match="context of 256"):
        learner(tasks["x"][:1].repeat(1, 30, 1), tasks["y"][:1].repeat(1, 30, 1), tasks["query"][:1])
    with pytest.raises(UserError, match="predicts one target"):
        learner(tasks["x"], tasks["y"].repeat(1, 1, 2), tasks["query"])


def test_a_language_model_that_knows_the_answer_is_read_right() -> None:
    """A model trained on one continuation has that number as its expectation: reading and writing agree."""
    lines = ["x: 0.10 y: 0.50\n", "x: 0.20 y: -0.50\n"]
    tokenizer = train_tokenizer(lines, 280)
    model = build("llama", tokenizer, d=32, layers=1, heads=2, context=64)
    ids = [tokenizer(line, return_tensors="pt")["input_ids"] for line in lines]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-2)
    for _ in range(80):
        loss = sum(model.module(input_ids=i, labels=i).loss for i in ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    learner = numbers.NumberLearner(model, torch.tensor([-0.5, 0.0, 0.5]))
    none = torch.zeros(2, 0, 1)
    answer = learner(none, none, torch.tensor([[0.1], [0.2]]))
    assert answer[0].item() == pytest.approx(0.5, abs=0.1) and answer[1].item() == pytest.approx(-0.5, abs=0.1)

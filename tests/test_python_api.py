"""didact's Python interface: short reprs, available metrics, results that the command line reads."""

import json
import runpy
from pathlib import Path

import pytest

import didact
from didact import baselines, cli, unlearning, verbs
from didact.learn import rates
from didact.types import Fit, Likelihood, UserError

EXAMPLE = Path(__file__).parents[1] / "examples" / "first_steps.py"
QUICK = Fit(lr=1e-3, steps=2, rows=8)


@pytest.fixture(scope="module")
def gone(taught, world):
    return unlearning.npo(taught("llama"), forget=world.forget, retain=world.retain, fit=QUICK)


def test_what_there_is_is_listed_and_shown_in_a_line(gone, taught, world, tmp_path):
    assert {"load", "read", "Fit", "Demo", "unlearning", "baselines"} <= set(dir(didact))
    assert "npo" in dir(didact.unlearning) and "npo" in repr(didact.unlearning)
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 500)
    for value in (gone, taught("llama"), didact.read(tmp_path / "d.jsonl")):
        assert len(repr(value)) < 400, type(value)
    assert repr(gone) == "Result(model, 2 steps)" and "500 Demo" in repr(didact.read(tmp_path / "d.jsonl"))


def test_a_model_answers_and_scores(taught, world):
    model, record = taught("llama"), world.retain[0]
    assert model.answer(record.prompt) == record.completion == model.answer([record.prompt])[0]
    gold, perturbed = model.score([(record.prompt, record.completion), (record.prompt, record.perturbed[0])])
    assert isinstance(gold, Likelihood) and gold.logp > perturbed.logp and gold.tokens > 0


def test_fit_for_is_the_papers_training_at_the_models_size(taught, world, capsys):
    model = taught("llama")
    fit = didact.fit_for(unlearning.npo, model, epochs=3)
    assert fit.lr == rates.by_size(model.parameters) > 1e-5 and fit.epochs == 3 and fit.rows == 32
    assert capsys.readouterr().err.startswith(f"lr {fit.lr:g}: ours for ")
    assert didact.fit_for(unlearning.npo, model, lr=2e-5).lr == 2e-5 and not capsys.readouterr().err
    with pytest.raises(UserError, match="few_shot has no `fit`"):
        didact.fit_for(baselines.few_shot, model)
    idle = baselines.sft(model, world.retain[:4], fit=Fit(lr=1e-9, steps=1))
    assert idle.metrics and "hardly move" in (warnings := " ".join(idle.warnings)) and "didact.fit_for" in warnings
    moved = baselines.sft(model, world.retain[:4], fit=didact.fit_for(baselines.sft, model, steps=5))
    assert moved.metrics and "hardly move" not in " ".join(moved.warnings)


def test_metrics_are_made_when_they_are_looked_at(taught, world, capsys):
    result = baselines.sft(taught("llama"), world.retain[:4], fit=QUICK)
    assert "metrics" not in vars(result)
    assert result.metrics["token_accuracy"].before > 0.8 and any("flatters" in w for w in result.warnings)
    assert result.evaluate(demo=world.holdout)["token_accuracy"].before < 0.9
    assert result.metrics["token_accuracy"].before < 0.9 and result.metrics["token_accuracy"].n == len(world.holdout)
    result.report()
    stdout = capsys.readouterr().out
    assert "token_accuracy" in stdout and world.retain[0].completion in stdout and len(result.samples) == 3
    with pytest.raises(UserError, match="sft takes no records named forget: give demos"):
        result.evaluate(forget=world.forget)
    with pytest.raises(AttributeError):
        result.metric  # noqa: B018


def test_a_saved_result_is_what_the_command_line_leaves(gone, taught, world, tmp_path, capsys):
    taught("llama").save(tmp_path / "start")
    start = didact.load(tmp_path / "start")
    result = unlearning.npo(start, forget=world.forget, retain=world.retain, fit=QUICK.replace(lora=2))
    result.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out/result.json").read_text())
    assert saved["method"] == "npo" and saved["options"]["beta"]["value"] == 0.1 and saved["metrics"] == {}
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "npo" in page and "Repeat it" not in page
    (row,) = verbs.answers(str(tmp_path / "out"), [world.forget[0].prompt], device="cpu")
    assert row["before"] == world.forget[0].completion
    data = tmp_path / "forget.jsonl"
    data.write_text("".join(json.dumps({"prompt": d.prompt, "completion": d.completion}) + "\n" for d in world.forget))
    scores = verbs.evaluate(str(tmp_path / "out"), str(data), "answer", device="cpu")
    assert scores["token_accuracy"].before > 0.9
    # A saved adapter names its start model.
    alone = verbs.evaluate(str(tmp_path / "out/model"), str(data), "answer", device="cpu")
    assert alone["token_accuracy"].before == scores["token_accuracy"].before
    result.save(tmp_path / "out")  # over itself


def test_the_example_runs(capsys):
    namespace = runpy.run_path(str(EXAMPLE))
    assert namespace["opened"].answer("The capital of Italy is").strip() == "Rome"
    assert (namespace["folder"] / "report.html").exists()
    metrics = namespace["unlearnt"].metrics
    assert metrics["forget_probability"].after < 0.5 * metrics["forget_probability"].before
    assert "page: " in capsys.readouterr().out

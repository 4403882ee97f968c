"""A run's messages: learning rates, plans and divergence; where answers end, and which template renders them."""

import json

import pytest

from didact import catalogue, cli, options
from didact.files import read_json
from didact.learn import rates
from didact.models import load
from didact.requests import Common
from didact.types import Fit, Metric, Result, as_row
from didact.verbs import job as jobs
from didact.verbs import running, saved


@pytest.fixture(scope="module")
def folder(taught, world, tmp_path_factory):
    """A model folder and a file of records, as a user would have them."""
    folder = tmp_path_factory.mktemp("user")
    taught("llama").save(folder / "model")
    for name in ("forget", "retain"):
        rows = (json.dumps(as_row(r)) + "\n" for r in getattr(world, name))
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


def prepared(folder, out, *more):
    command = [
        "--model",
        f"{folder}/model",
        *(w for n in ("forget", "retain") for w in (f"--{n}", f"{folder}/{n}.jsonl")),
    ]
    return jobs.prepare(options.parser(catalogue.entry("npo")).parse([*command, "--out", str(out), *more]))


def test_without_a_rate_one_for_the_models_size_acts(folder, tmp_path):
    job, size = prepared(folder, tmp_path), load.load(folder / "model").parameters
    ours = float(f"{1e-5 * (7e9 / size) ** 0.5:.1e}")
    assert job.fit.lr == ours and job.provenance["lr"] == "model size"
    assert rates.chosen(job.model, Fit(lr=1e-5, lora=4))[0] == pytest.approx(10 * ours, rel=0.05)
    message = rates.chosen(job.model, Fit(lr=1e-5))[1]
    assert message == f"lr {ours:g}: ours for {size / 1e3:.3g}k weights; the paper's is 1e-05 (--lr sets it)"
    # A paper's larger rate stays, and so does another optimizer's
    for theirs in (Fit(lr=0.5), Fit(lr=1e-5, optimizer="sgd")):
        assert rates.chosen(job.model, theirs) == (theirs.lr, "")
    assert prepared(folder, tmp_path, "--lr=1e-5").fit.lr == 1e-5


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"epochs": 1.0}, "the plan is 1 optimiser step (20 records, 32 a step, 1 epochs) at lr 0.01"),
        ({"epochs": 10.0}, ""),
        ({"steps": 1}, ""),  # as requested
        ({"steps": 20, "lr": 1e-8}, "the plan is 20 optimiser steps at lr 1e-08, which can hardly move"),
        ({"epochs": 10.0, "lr": 1e-8, "optimizer": "sgd"}, ""),
    ],
)
def test_a_plan_that_can_move_nothing_is_told(plan, expected, taught):
    warnings = rates.plan_warning(taught("llama"), Fit(**{"lr": 1e-2} | plan), 20)
    assert warnings.startswith(expected) and bool(warnings) == bool(expected)


def test_a_ruined_model_is_called_so():
    result = Result(metrics={"retain_probability": Metric(before=0.9, after=0.1)})
    rows = [{"before": "Rome", "after": "Q: Q: Q: Q: Q: Q: Q:"}] * 4
    warnings = " ".join(running._warned(catalogue.entry("npo"), result, rows))
    assert "retain collapsed" in warnings and "answers degenerated: 4 of 4" in warnings


@pytest.mark.parametrize(
    ("target", "general", "expected"),
    [
        ((1.0, 4.0), (3.0, 3.2), ""),
        ((1.0, 4.0), (3.0, 3.4), "the general text went too: its loss rose from 3.000 to 3.400 nats a token"),
        ((3.1, 4.0), (3.0, 3.0), "the start model knows the target text no better than the general text"),
        ((3.1, 4.0), None, ""),
    ],
)
def test_texts_that_were_not_known_or_went_too_are_told(target, general, expected):
    numbers = {"target_nll": target} | ({"general_nll": general} if general else {})
    metrics = {name: Metric(before=before, after=after) for name, (before, after) in numbers.items()}
    warnings = running._warned(catalogue.entry("whp"), Result(metrics=metrics), [])
    assert bool(warnings) == bool(expected) and "".join(warnings).startswith(expected)


def test_answers_end_where_they_are_told_to(folder, world, tmp_path, capsys):
    prompt, answer = world.retain[0].prompt, world.retain[0].completion
    stops = ["--stops=\\n", f"--stops={answer[2:]}"]
    assert cli.main(["try", str(folder / "model"), "--prompt", prompt, *stops]) == 0
    assert f"after   {answer[:2]}\n" in capsys.readouterr().out
    job = prepared(folder, tmp_path / "out", *stops, "--holdout=0")
    scoring = running._scoring(job)
    assert scoring.stop == ("\n", answer[2:])
    answers = {row["prompt"]: row["after"] for row in running._answers(job, scoring, job.model, None)["retain"]}
    assert answers[prompt] == answer[:2]


def test_a_chat_template_of_the_users_takes_the_place_of_the_tokenizers_and_is_saved(folder, world, tmp_path, capsys):
    rows = [{"messages": [{"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.completion}]}
            for r in world.retain]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
                        "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    command = ["run", "sft", "--model", f"{folder}/model", "--demos", f"{tmp_path}/d.jsonl", "--steps=1", "--lr=1e-3"]
    assert cli.main([*command, "--out", f"{tmp_path}/out", "--chat-template", str(template)]) == 0
    assert read_json(tmp_path / "out/result.json")["data"]["demos"]["chat"] == "template"
    assert load.load(tmp_path / "out/model").tokenizer.chat_template == template.read_text()
    result = saved._saved(str(tmp_path / "out"), Common(device="cpu"))
    assert result[0].tokenizer.chat_template == result[1].tokenizer.chat_template
    capsys.readouterr()
    for text, reason in (("{% if %}", "template"), (None, "cannot be read: No such file")):
        template.unlink() if text is None else template.write_text(text)
        code = cli.main([*command, "--out", f"{tmp_path}/x", "--chat-template", str(template)])
        err = capsys.readouterr().err
        assert code == 2 and "--chat-template" in err and reason in err and err.count("\n") == 1, err

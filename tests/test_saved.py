"""Saved models: `evaluate` and `try` prompt a model as its run did."""

import io
import json

import pytest

from didact import cli, verbs
from didact.data import encode
from didact.files import read_json
from didact.requests import Request
from didact.types import Messages, as_row
from didact.verbs import comparing, job

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LIMITS = ["--max-length=20", "--truncate=right"]


@pytest.fixture(scope="module")
def run(taught, world, tmp_path_factory):
    """A run on conversations with truncated prompts, scored on its own records."""
    root = tmp_path_factory.mktemp("saved")
    taught("llama").save(root / "model")
    for name in ("forget", "retain"):
        rows = (json.dumps(as_row(r)) + "\n" for r in getattr(world, name))
        (root / f"{name}.jsonl").write_text("".join(rows))
    (root / "chat.jinja").write_text(TEMPLATE)
    command = ["run", "sft", "--model", f"{root}/model", "--demos", f"{root}/retain.jsonl", "--score-on"]
    command += [f"{root}/forget.jsonl", "--chat-template", f"{root}/chat.jinja", "--chat=template", *LIMITS]
    assert cli.main([*command, "--stops=e", "--steps=2", "--lr=1e-3", "--out", f"{root}/out"]) == 0
    return root


def test_evaluate_gives_the_numbers_of_the_run_on_its_records(run):
    saved = read_json(run / "out/result.json")["metrics"]["probability"]
    result = verbs.evaluate(f"{run}/out", f"{run}/forget.jsonl", "answer")["probability"]
    assert (result.before, result.after) == pytest.approx((saved["before"], saved["after"]))


def test_evaluate_takes_the_limits_that_run_takes(run, capsys):
    """A model folder without a run: there the options must be given."""
    command = ["evaluate", f"{run}/out/model", "--data", f"{run}/forget.jsonl", "--protocol=answer"]

    def shown(*more):
        assert cli.main([*command, *more]) == 0
        return capsys.readouterr().out

    same = shown("--chat=template", *LIMITS)
    assert len({same, shown("--chat=template"), shown("--chat=template", "--max-length=20")}) == 3
    assert cli.main([*command, "--truncate=middle"]) == 2
    assert "--truncate: middle: must be one of left, right" in capsys.readouterr().err


def test_try_asks_through_the_template_the_model_was_taught_with_and_stops_where_it_is_told(
    run, world, monkeypatch, capsys
):
    requests = []
    real = encode.prompt_ids
    monkeypatch.setattr(encode, "prompt_ids", lambda t, prompt, *a: requests.append(prompt) or real(t, prompt, *a))
    (row,) = verbs.answers(f"{run}/out", ["Where was nobody born?"])
    assert all(isinstance(prompt, Messages) for prompt in requests) and "e" not in row["after"] + row["before"]
    requests.clear()
    verbs.answers(f"{run}/out", ["Where was nobody born?"], chat="plain")
    assert requests == ["Where was nobody born?"] * 2
    question = world.retain[0].prompt
    whole = verbs.Chat(f"{run}/out/model", chat="plain").say(question)["after"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    assert cli.main(["try", f"{run}/out/model", "--chat=plain", f"--stops={whole[2]}"]) == 0
    stdout = capsys.readouterr().out
    assert whole.partition(whole[2])[0] in stdout and whole[:3] not in stdout


def test_every_model_of_a_command_has_its_limits(run, tmp_path):
    """Gold, and a folder among the arms, are scored on the same prompts as all others."""
    model = f"{run}/model"
    data = {name: f"{run}/{name}.jsonl" for name in ("forget", "retain")}
    options = {"model": model, "gold": model, "data": data, "out": f"{tmp_path}/out", "max_length": 20}
    assert job.prepare(Request(method="npo", **options)).scored["gold"].context == 20
    arms, setting, *_ = comparing.prepare(verbs.Comparison(arms=["npo", model], budget="9k-tokens", seeds=1, **options))
    assert [setting.model.context, setting.gold.context, arms[1].open().context] == [20] * 3

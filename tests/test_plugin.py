"""A method of another package works like a built-in one: listed, explained, run, compared, and under the contract."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from didact import catalogue, cli, registry
from didact.catalogue import make

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"


def installed(folder: Path, points: dict[str, str]) -> None:
    """Write the metadata of a package as `pip install` would."""
    info = folder / "didact_slic-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: didact-slic\nVersion: 0.1.0\n")
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[didact.methods]\n" + "".join(lines))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """`plugin(points)`: the example, installed with its entry points (or others); uninstalled after the test."""
    expected = dict(registry.METHODS)

    def install(points=None):
        declared = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]["didact.methods"]
        installed(tmp_path / "site", declared if points is None else points)
        for path in (PLUGIN, tmp_path / "site"):
            monkeypatch.syspath_prepend(str(path))
        importlib.invalidate_caches()
        catalogue.read.cache_clear()

    yield install
    for name in (registry.METHODS.keys() - expected.keys()) & {"slic"}:
        del registry.METHODS[name]
    for name in [n for n in sys.modules if n.startswith(("didact_slic", "taken"))]:
        del sys.modules[name]
    monkeypatch.undo()
    catalogue.read.cache_clear()


def test_an_installed_method_is_listed_run_and_compared_as_ours_are(plugin, fresh, world, tmp_path, capsys):
    ours = set(catalogue.read())
    plugin()
    # None of our files is generated from it
    assert set(catalogue.read()) == ours | {"slic"} and set(make.make()) == ours
    assert len((PLUGIN / "didact_slic" / "slic.py").read_text().splitlines()) <= 60
    for command in (["methods"], ["explain", "slic"], ["run", "slic", "--help"]):
        assert cli.main(command) == 0 and "slic" in capsys.readouterr().out
    fresh("llama").save(tmp_path / "model")
    rows = [{"prompt": r.prompt, "chosen": r.completion, "rejected": r.perturbed[0]} for r in world.retain]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ["--model", str(tmp_path / "model"), "--rows", "4"]
    run = ["run", "slic", *options, "--preferences", str(tmp_path / "pairs.jsonl"), "--steps", "3", "--lr", "3e-3"]
    assert cli.main([*run, "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["metrics"]["reward_accuracy"]["n"] and saved["options"]["delta"]["value"] == 1.0
    assert cli.main([*run, "--delta", "0", "--out", str(tmp_path / "bad")]) == 2
    compare = ["compare", "slic", *options, "--preference", str(tmp_path / "pairs.jsonl"), "--budget", "3k-tokens"]
    assert (
        cli.main([*compare, "--seeds", "1", "--lrs", "1e-3", "--beyond-lrs", "0", "--out", str(tmp_path / "which")])
        == 0
    )
    assert cli.main(["run", "slic", "--out", str(tmp_path / "none")]) == 2 and "embedded" in capsys.readouterr().err
    assert "slic" not in catalogue.papers()


def test_a_package_that_fails_or_takes_a_name_of_ours_is_told_and_left_out(plugin, tmp_path, capsys):
    ours = set(catalogue.read())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "taken.py").write_text(
        "from didact.registry import method\nfrom didact.models.model import Model\n"
        "@method('sft', paper='x', year=1, source='x')\ndef sft(model: Model):\n    'Nothing.'\n"
    )
    plugin({"broken": "no_such_module", "taken": "taken"})
    assert set(catalogue.read()) == ours
    stderr = capsys.readouterr().err
    assert "its methods cannot be used: ModuleNotFoundError" in stderr and "a method 'sft' already" in stderr
    assert catalogue.entry("sft")["module"] == "didact.methods.baselines.sft"


@pytest.mark.soak
def test_the_example_passes_the_contract(tmp_path):
    installed(tmp_path, {"slic": "didact_slic.slic"})
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(PLUGIN.parent.parent), str(PLUGIN), str(tmp_path)])}
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        str(Path(__file__).parent / "test_methods.py"),
        "-k",
        "slic",
        "-m",
        "not soak",
    ]
    process = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-3000:]


PROCEDURE = '''
from collections.abc import Sequence

from didact.infer import ask, lm as language_models
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Demo, Result


@method("slic", paper="Ask shortly", year=2026, source="here", gives=("predict", "records"), capabilities=("generate",),
        protocol=("answer",), answers="questions")
def slic(model: Model | LM, questions: Sequence[Demo] | None = None, *, seed: int = 0) -> Result:
    """Ask for the first word.

    Args:
        model: any.
        questions: to answer.
        seed: of draws.
    """
    asker = ask.Asker(language_models.of(model), ask.Asking(max_new_tokens=6, tries=1), seed)
    known = {}

    def predict(prompts):
        new = [p for p in dict.fromkeys(prompts) if p not in known]
        known.update(zip(new, asker.ask(new, str.strip, "answerer")))
        return [known[p] or "" for p in prompts]

    answers = predict([q.prompt for q in questions or ()])
    records = [Demo(prompt=q.prompt, completion=a) for q, a in zip(questions or (), answers)]
    return Result(records=records, predict=predict, transcript=asker.demos(), findings=asker.findings())
'''


def test_a_procedure_is_scored_by_its_protocol_beside_plain_asking(plugin, taught, world, tmp_path, capsys):
    (tmp_path / "site" / "didact_slic").mkdir(parents=True)
    (tmp_path / "site" / "didact_slic" / "__init__.py").write_text("")
    (tmp_path / "site" / "didact_slic" / "shortly.py").write_text(PROCEDURE)
    plugin({"slic": "didact_slic.shortly"})
    taught("llama").save(tmp_path / "model")
    rows = [{"prompt": r.prompt, "completion": r.completion} for r in world.retain[:5]] + [{"prompt": "And then?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = ["run", "slic", "--model", str(tmp_path / "model"), "--questions", str(tmp_path / "questions.jsonl")]
    assert cli.main([*run, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    metric = saved["metrics"]["exact_answer"]
    assert metric["n"] == 5 and metric["before"] is not None  # a question without a gold answer is answered, not scored
    transcript = [json.loads(line) for line in (tmp_path / "run" / "transcript.jsonl").read_text().splitlines()]
    assert len(transcript) == 6 == saved["findings"]["calls"] and transcript[0]["role"] == "answerer"
    assert not saved["warnings"] or "holdout" not in str(saved["warnings"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"completion": "no question"}\n')
    assert cli.main([*run[:-1], str(bad), "--out", str(tmp_path / "bad")]) == 2
    assert "field 'prompt' is missing" in capsys.readouterr().err

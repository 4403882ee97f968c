"""The command line as a user sees it: real files, real models, real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from killed import command, server

from didact import catalogue, cli, flags, options
from didact.claims import demo
from didact.files import read_json
from didact.models import load
from didact.models.model import Model
from didact.types import Demo, Text, as_row
from didact.verbs import plan

TEACH = ["--lr", "2e-4", "--steps", "30", "--rows", "10", "--beta", "1.0", "--warmup-steps", "3"]


def write_rows(path: Path, records) -> str:
    path.write_text("".join(json.dumps(as_row(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(taught, world, tmp_path_factory) -> Path:
    """A model folder and two JSONL files, as a user would have them."""
    folder = tmp_path_factory.mktemp("user")
    taught("llama").save(folder / "model")
    write_rows(folder / "forget.jsonl", world.forget)
    write_rows(folder / "retain.jsonl", world.retain)
    return folder


def said(capsys, *words: str) -> tuple[int, str]:
    """Run one command in this process; return its exit code and standard error."""
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def run_words(folder: Path, out: Path, *more: str) -> list[str]:
    data = ["--forget", f"{folder}/forget.jsonl", "--retain", f"{folder}/retain.jsonl"]
    return ["run", "npo", "--model", f"{folder}/model", *data, "--out", str(out), *TEACH, *more]


def test_a_run_on_own_model_and_files_teaches_and_leaves_a_model_that_transformers_loads(folder, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert cli.main(run_words(folder, tmp_path / "out", "--steps=60")) == 0
    report = read_json(tmp_path / "out" / "result.json")
    assert report["status"] == "done"
    metrics = report["metrics"]
    assert metrics["forget_probability"]["after"] < 0.5 < metrics["forget_probability"]["before"]
    assert metrics["retain_token_accuracy"]["after"] > 0.8
    assert report["options"]["lr"] == {"value": 2e-4, "from": "flag"}
    assert report["options"]["delta"]["from"] == "default"
    assert report["held_out"]["retain"] == round(0.2 * report["data"]["retain"]["records"])
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    again = Model(module, tokenizer).fingerprint()
    assert again == load.load(tmp_path / "out" / "model").fingerprint() != report["model"]["fingerprint"]
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert len((tmp_path / "out" / "history.jsonl").read_text().splitlines()) == 60
    stdout, samples = capsys.readouterr().out, read_json(tmp_path / "out" / "samples.json")
    assert [s["part"] for s in samples] == ["forget"] * 3 + ["retain"] * 3
    counts = report["answered"]
    assert counts["retain"]["of"] == 16 and counts["forget"] == {
        "of": 20,
        "before": 20,
        "after": counts["forget"]["after"],
    }
    assert counts["forget"]["after"] < 10 < counts["retain"]["after"] <= counts["retain"]["before"]
    after = counts["forget"]["after"]
    assert f"forget: 20 of 20 answers as in the records before, {after} after" in stdout

    assert cli.main(["try", str(tmp_path / "out"), "--prompt", "Where was nobody born?"]) == 0
    stdout = capsys.readouterr().out
    assert "before" in stdout and "after" in stdout
    argv = ["evaluate", str(tmp_path / "out"), "--data", f"{folder}/forget.jsonl", "--protocol", "forget"]
    assert cli.main(argv) == 0
    assert "forget_extraction" in capsys.readouterr().out


def test_sft_and_dpo_run_on_files_and_are_scored_on_what_they_did_not_see(folder, world, tmp_path):
    rows = [{"question": r.prompt, "chosen": r.completion, "rejected": r.perturbed[0]} for r in world.holdout]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_rows(tmp_path / "demos.jsonl", world.holdout)
    cases = (("dpo", "preferences", "pairs", "preferred"), ("sft", "demos", "demos", "token_accuracy"))
    for method, option, name, metric in cases:
        data = [f"--{option}", f"{tmp_path}/{name}.jsonl", "--map=prompt=question", "--out", f"{tmp_path}/{method}"]
        assert cli.main(["run", method, "--model", f"{folder}/model", *data, "--lr=1e-3", "--steps=20"]) == 0
        report = read_json(tmp_path / method / "result.json")
        assert report["held_out"] == {option: 4} and report["metrics"][metric]["n"] == 4
        assert report["cost"]["tokens"] > 0


def test_a_comparison_takes_the_flags_of_a_run_and_shows_its_plan_first(folder, tmp_path, capsys):
    data = ["--forget", f"{folder}/forget.jsonl", "--retain", f"{folder}/retain.jsonl", "--chat", "plain"]
    argv = ["compare", "npo", "npo:graddiff", "--model", f"{folder}/model", *data, "--out", f"{tmp_path}/out"]
    argv += ["--budget=9k-tokens", "--seeds=1", "--lrs=1e-3,2e-3", "--rows=5", "--betas", "0.9", "0.95", "--lora", "2"]
    assert cli.main([*argv, "--dry-run"]) == 0
    stdout = " ".join(capsys.readouterr().out.split())
    assert "units 1 untouched, 2 probes, 4 search, 2 test" in stdout and "learning rates 0.001 0.002" in stdout
    assert not (tmp_path / "out").exists()
    assert cli.main(argv) == 0
    board = read_json(tmp_path / "out" / "leaderboard.json")
    assert board["identity"]["fit"] == {"rows": 5, "betas": [0.9, 0.95], "lora": 2}
    assert board["data"]["retain"]["chat"] == "plain" and board["rows"][0]["answered"].keys() == {"forget", "retain"}
    assert load.load(tmp_path / "out" / "models" / "npo_graddiff").module.peft_config
    code, err = said(capsys, *argv, "--clip", "0.5")
    assert code == 2 and "holds another comparison (fit differ)" in err and "--overwrite" in err


def test_a_comparison_without_arguments_is_the_embedded_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PAIRS", 120)
    whole = demo.example
    monkeypatch.setattr(demo, "example", lambda: dataclasses.replace(whole(), budget="6k-tokens", lrs=(5e-3,)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--seeds", "1"]) == 0
    board = read_json(tmp_path / "runs" / "compare" / "leaderboard.json")
    assert {r["arm"] for r in board["rows"]} == {"untouched", "sft", "dpo", "kto", "hindsight"} and not board[
        "failures"
    ]
    assert (
        board["model"] == "embedded example"
        and "the rule 'the shorter answer is the better'" in capsys.readouterr().out
    )
    page = (tmp_path / "runs" / "compare" / "report.html").read_text()
    assert "embedded example" in page and "answers as in the records" in page and "didact run" not in page


def test_mesa_gd_runs_on_tasks_from_a_file(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        x, w = rng.uniform(-1, 1, (6, 2)), rng.normal(size=2)
        rows.append({"x": x.tolist(), "y": (x @ w).tolist()})
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    argv = ["--tasks", f"{tmp_path}/tasks.jsonl", "--lr=2e-2", "--steps=300", "--rows=128", "--restarts=1"]
    assert cli.main(["run", "mesa-gd", *argv, "--out", f"{tmp_path}/out"]) == 0
    loss = read_json(tmp_path / "out" / "result.json")["metrics"]["loss"]
    assert loss["after"] < 0.7 * loss["before"]  # on held-out tasks
    assert load.load(tmp_path / "out" / "model").kind == "module"


def test_the_same_command_again_only_shows_the_result_and_another_is_refused(folder, tmp_path, capsys):
    argv = run_words(folder, tmp_path / "out", "--steps=2")
    assert cli.main(argv) == 0
    before = (tmp_path / "out" / "result.json").read_bytes()
    capsys.readouterr()
    assert cli.main(argv) == 0
    assert "done already" in capsys.readouterr().out
    assert (tmp_path / "out" / "result.json").read_bytes() == before
    assert cli.main([*argv, "--micro-tokens=32"]) == 0  # has no influence on results
    assert "done already" in capsys.readouterr().out
    code, err = said(capsys, *run_words(folder, tmp_path / "out", "--steps=3"))
    assert code == 2 and "holds another run" in err
    assert cli.main([*run_words(folder, tmp_path / "out", "--steps=3"), "--overwrite"]) == 0


def test_a_dry_run_tells_memory_steps_and_truncated_rows_and_writes_nothing(folder, tmp_path, capsys):
    assert cli.main(run_words(folder, tmp_path / "out", "--dry-run")) == 0
    stdout = capsys.readouterr().out
    assert "steps" in stdout and "30" in stdout and "MiB" in stdout and "truncated rows" in stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_needed_at_most_and_whether_it_fits(folder, tmp_path, capsys, monkeypatch):
    def planned(method, *more):
        parser = options.parser(catalogue.entry(method))
        arguments = [
            "--demos" if method != "npo" else "--forget",
            f"{folder}/forget.jsonl",
            "--model",
            f"{folder}/model",
        ]
        return plan.dry_run(parser.parse([*arguments, "--out", f"{tmp_path}/out", *more]))

    whole, lora, prompted = planned("sft"), planned("sft", "--lora", "2"), planned("few-shot")
    for printed in (whole, lora, prompted):
        parts = {k: v for k, v in printed["memory_bytes"].items() if k != "at_most_in_all"}
        assert printed["memory_bytes"]["at_most_in_all"] >= sum(parts.values()) and printed["fits"] == "yes"
    weights = load.load(folder / "model").parameters
    assert whole["memory_bytes"]["gradients_and_moments"] == 12 * weights  # float32: a gradient and AdamW's two moments
    assert lora["disk_bytes"]["result"] < whole["disk_bytes"]["result"] == 4 * weights
    # Nothing is trained
    assert prompted["memory_bytes"]["gradients_and_moments"] == 0 == prompted["disk_bytes"]["checkpoints"]
    assert "of training" in whole["time"] and "time" not in prompted
    test = write_rows(tmp_path / "test.jsonl", [Demo(prompt="ab " * 500, completion="c")])
    scored = planned("sft", "--score_on", test, "--max_length", "40")
    assert scored["longest_record_tokens"] > 500 and scored["truncated_rows"]["held-out demos"] == 1
    assert scored["context"] == 40 and "held-out demos" in scored["records"]
    monkeypatch.setattr(plan, "free_memory", lambda device: 1 << 20)
    assert planned("sft")["fits"].startswith("NO: memory") and "--lora 8" in planned("sft")["fits"]


def test_a_dry_run_counts_texts_in_rows_as_long_as_the_context(folder, tmp_path, capsys):
    texts = write_rows(tmp_path / "texts.jsonl", [Text(text="ab cd " * 40, score=float(n)) for n in range(16)])
    argv = ["run", "phf", "--model", str(folder / "model"), "--texts", texts, "--dry-run"]
    assert cli.main([*argv, "--rows=4", "--epochs=2", f"--out={tmp_path / 'out'}"]) == 0
    model = load.load(folder / "model")
    tokens = 16 * (len(model.tokenizer("ab cd " * 40)["input_ids"]) + 1)
    steps = round(2 * -(-tokens // model.context) / 4)
    stdout = " ".join(capsys.readouterr().out.split())
    assert f"steps {steps} (if the method makes {tokens} tokens in rows as long as the context)" in stdout


def test_a_lora_run_is_saved_as_an_adapter_on_the_start_model(folder, tmp_path, capsys):
    assert cli.main(run_words(folder, tmp_path / "out", "--lora", "4", "--lr=1e-3")) == 0
    report = read_json(tmp_path / "out" / "result.json")
    assert report["files"]["model"].startswith("peft")
    assert report["metrics"]["forget_probability"]["after"] < report["metrics"]["forget_probability"]["before"]
    assert load.load(tmp_path / "out" / "model").module.peft_config


BAD_FILES = {
    "missing field": ('{"prompt": "a"}\n', "forget.jsonl:1: field 'completion' is missing"),
    "wrong type": ('{"prompt": "a", "completion": 3}\n', "field 'completion' must be text, not a whole number"),
    "empty": ("", "no Demo record in it: it is empty"),
    "not JSON": ('{"prompt": \n', "forget.jsonl:1: not valid JSON"),
    "an empty completion": (
        '{"prompt": "a", "completion": ""}\n',
        "forget.jsonl:1: field 'completion': the completion is empty",
    ),
    "a completion longer than the context": (json.dumps({"prompt": "a", "completion": "word " * 900}), "context"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_exit_2(case, folder, tmp_path, capsys):
    content, message = BAD_FILES[case]
    (tmp_path / "forget.jsonl").write_text(content)
    argv = f"run npo --model {folder}/model --forget {tmp_path}/forget.jsonl --out {tmp_path}/o"
    code, err = said(capsys, *argv.split())
    assert code == 2 and message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


def test_binary_missing_and_nan_files_and_models_without_tokenizer_are_one_line(folder, tmp_path, capsys):
    (tmp_path / "bin.jsonl").write_bytes(b"\x7fELF\0\1\2")
    (tmp_path / "nan.jsonl").write_text('{"prompt": "a", "completion": "b", "perturbed": [NaN]}\n')
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / "model" / name).read_bytes())
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    cases = [
        (f"{folder}/model", f"{tmp_path}/bin.jsonl", "a binary file"),
        (f"{folder}/model", f"{tmp_path}/none.jsonl", "no such file"),
        (f"{folder}/model", f"{tmp_path}/nan.jsonl", "nan.jsonl:1: field 'perturbed'"),
        (str(bare), f"{folder}/forget.jsonl", "no tokenizer"),
        (str(pickled), f"{folder}/forget.jsonl", "only pickled weights"),
        (f"{tmp_path}/nowhere/model", f"{folder}/forget.jsonl", "not a model folder"),
    ]
    for model, forget, message in cases:
        code, err = said(capsys, "run", "npo", "--model", model, "--forget", forget, "--out", f"{tmp_path}/o")
        assert code == 2 and message in err and len(err.strip().splitlines()) <= 2, err


BAD_WORDS = {
    ("run", "nop"): "did you mean npo?",
    ("rum", "npo"): "did you mean run?",
    ("run", "npo", "--betta", "1"): "did you mean --beta?",
    ("run", "npo", "--bet", "1"): "unknown option --bet",  # no abbreviations
    ("run", "npo", "--beta", "much"): "--beta: much: must be a number",
    ("run", "npo", "--loss", "npu"): "must be one of npo, ga",
    ("run", "npo", "--lr"): "--lr needs a value",
    ("run", "npo:fast"): "unknown preset 'fast'",
    ("run", "npo", "--model", "x"): "needs --forget",
    ("run", "sft"): "has no embedded example",
    ("run", "npo", "--rows", "0"): "--rows: 0: must be 1 or more",
    ("run", "npo", "--config", "/nowhere.yaml"): "cannot be read",
    ("compare", "dpoo"): "did you mean dpo",
    ("compare", "sft", "sft"): "an arm is named twice",
    ("compare", "--rows", "0"): "--rows: 0: must be 1 or more",
    ("compare", "--betas", "0.9"): "--betas: 0.9: must be tuple[float, float]",
    ("compare", "--lrs", "1e-3", "x"): "--lrs: 1e-3 x: must be numbers",
    ("compare", "--seeds", "0"): "--seeds: 0: must be 1 or more",
    ("compare", "--chat", "no"): "--chat: no: must be one of auto, template, plain",
    ("compare", "--budget", "20"): "as in 20M-tokens or 90-seconds",
    ("compare", "sft", "--model", "x"): "--budget is required",
    ("compare", "sft", "--demo", "x"): "--model is required with data of your own",
    ("compare", "--lr", "1"): "unknown option --lr: did you mean --lrs?",
    ("methods", "--have", "nothing"): "invalid choice",
    ("explain", "nothing"): "unknown method",
    ("try", "/nowhere", "--prompt", "x"): "no such folder",
}


@pytest.mark.parametrize("words", BAD_WORDS, ids=" ".join)
def test_a_wrong_word_is_one_line_that_says_the_mend(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = said(capsys, *words)
    assert code == 2 and BAD_WORDS[words] in err and len(err.strip().splitlines()) <= 2, err


def test_a_value_the_method_refuses_is_one_line(folder, tmp_path, capsys):
    code, err = said(capsys, *run_words(folder, tmp_path / "out", "--beta=-1"))
    assert code == 2 and "--beta: -1: must be above 0 (default 0.1)" in err


def test_a_learning_rate_that_explodes_is_one_line_and_exit_2(folder, tmp_path, capsys):
    code, err = said(capsys, *run_words(folder, tmp_path / "out", "--lr=1e30", "--clip=0"))
    assert code == 2 and "NaN or infinite" in err and "lower the learning rate" in err
    assert read_json(tmp_path / "out" / "result.json")["status"] == "failed"
    # The corrected command may use the same folder
    assert cli.main(run_words(folder, tmp_path / "out", "--steps=2")) == 0


def test_a_finished_run_is_not_shown_for_files_that_changed_since(folder, world, tmp_path, capsys):
    write_rows(tmp_path / "f.jsonl", world.forget[:3])
    data = ["--forget", f"{tmp_path}/f.jsonl", "--out", f"{tmp_path}/out"]
    argv = ["run", "npo", "--model", f"{folder}/model", *data, "--steps=1"]
    assert cli.main(argv) == 0
    write_rows(tmp_path / "f.jsonl", world.forget[:4])
    code, err = said(capsys, *argv)
    assert code == 2 and "changed since the run" in err


def test_options_take_hyphens_underscores_lists_files_and_flags_win_over_files(tmp_path):
    parser = options.parser(catalogue.entry("npo"))
    (tmp_path / "c.yaml").write_text("lr: 0.5\nbeta: 0.7\nretain-weight: 3\nmodel: M\nforget: F\n")
    for betas in (["--betas", "0.8", "0.9"], ["--betas", "0.8,0.9"]):
        parsed = parser.parse(["--beta", "0.2", *betas, "--config", f"{tmp_path}/c.yaml", "--skip_bad"])
        assert parsed.options == {"beta": 0.2, "retain_weight": 3.0}
        assert parsed.fit == {"lr": 0.5, "betas": (0.8, 0.9)}
        assert parsed.provenance["beta"] == "flag" and parsed.provenance["lr"] == f"file {tmp_path}/c.yaml"
        assert parsed.model == "M" and parsed.data == {"forget": "F"} and parsed.skip_bad
    assert flags.normalise(["--retain-weight", "1"], parser.names()) == ["--retain_weight", "1"]
    again = yaml.safe_load(parser.config(parsed))
    assert again["beta"] == 0.2 and again["betas"] == [0.8, 0.9] and again["kl_over"] == "all"


def test_print_config_reads_back_as_the_same_options(tmp_path, capsys):
    assert cli.main(["run", "npo:simnpo", "--lr", "3e-4", "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    parsed = options.parser(catalogue.entry("npo")).parse(["--config", f"{tmp_path}/c.yaml"])
    assert parsed.options["beta"] == 4.5 and parsed.options["loss"] == "simnpo" and parsed.fit["lr"] == 3e-4


def test_listing_the_catalogue_imports_no_torch():
    code = (
        "import sys; from didact import cli; "
        "assert not any(cli.main(w) for w in (['--help'], ['methods'], ['methods', '--json'], ['explain', 'npo'])); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def begun(words, log):
    """The command, in its own process."""
    process = server.Process(target=command, args=(words, str(log), {"DIDACT_CACHE": "off"}))
    process.start()
    return process


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_command_killed_and_repeated_ends_with_the_same_bits_and_no_strays(times, folder, tmp_path):
    extra, rng = ("--steps=20", "--save-every=2"), random.Random(7)
    for out, kills in (("a", 0), ("b", times)):
        argv = run_words(folder, tmp_path / out, *extra)
        for _ in range(kills):
            process = begun(argv, tmp_path / "log")
            while not (tmp_path / out / "checkpoints").exists() and process.is_alive():
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 1.5))
            process.kill()
            process.join()
        process = begun(argv, tmp_path / "log")
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    for name in ("model/model.safetensors", "history.jsonl", "samples.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    one, two = (read_json(tmp_path / x / "result.json")["metrics"] for x in "ab")
    assert one == two
    assert {p.name for p in tmp_path.rglob(".*")} == {".didact.json", ".didact-lock"}


def test_interrupting_says_from_where_it_goes_on_and_exits_130(folder, tmp_path):
    process = begun(run_words(folder, tmp_path / "out", "--steps=5000", "--save-every=5"), tmp_path / "log")
    since = time.monotonic()
    while not list((tmp_path / "out").glob("checkpoints/npo/step-*")) and time.monotonic() - since < 60:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    step = int(max(tmp_path.glob("out/checkpoints/npo/step-*")).name.removeprefix("step-"))
    assert (
        process.exitcode == 130
        and f"the same command resumes from step {step} of npo" in (tmp_path / "log").read_text()
    )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_finds_nothing_kept_says_so(signum, code, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("didact.verbs.running._begin", lambda *args: signal.raise_signal(signum))
    # A test suite that runs in the background of a shell ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        exit_code, err = said(capsys, *run_words(folder, tmp_path / "out"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (exit_code, err) == (
        code,
        "didact: interrupted; no checkpoint was written yet: the same command starts over\n",
    )


def test_after_the_end_only_the_result_stays_readable_as_the_umask_says(folder, tmp_path, capsys):
    umask = os.umask(0o027)
    try:
        assert cli.main(run_words(folder, tmp_path / "out", "--steps=2")) == 0
    finally:
        os.umask(umask)
    assert not (tmp_path / "out" / "checkpoints").exists()
    modes = {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "out" / "model").iterdir()}
    assert modes == {"0o640"}
    assert cli.main(run_words(folder, tmp_path / "kept", "--steps=2", "--keep-checkpoints")) == 0
    assert [p.name for p in (tmp_path / "kept" / "checkpoints" / "npo").glob("step-*")] == ["step-00000002"]

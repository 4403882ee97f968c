"""--out is only written to if it is didact's own: an input or somebody else's folder is refused before any change."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shapes import brief

from didact import cli, files, folders, registry
from didact.files import read_json
from didact.models import load
from didact.report import page
from didact.types import Demo, Result, UserError

DEMOS = [{"prompt": f"what is {i}?", "completion": f"it is {i}."} for i in range(12)]
JUDGE = "def judge(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture
def project(fresh, tmp_path, monkeypatch) -> Iterator[Path]:
    """A user's folder: a model, data, a configuration and a judge."""
    root = tmp_path / "proj"
    root.mkdir()
    brief(fresh("llama", layers=1)).save(root / "model")
    (root / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DEMOS))
    (root / "steps.yaml").write_text("steps: 1\n")
    (root / "arm.yaml").write_text("method: sft\n")
    (root / "taste.py").write_text(JUDGE)
    monkeypatch.chdir(root)
    yield root
    for name in ("taste", "mine", "mine.taste"):  # a module is imported once per process
        sys.modules.pop(name, None)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in root.rglob("*")}


def sft(out: object, *more: str) -> list[str]:
    return [*"run sft --model model --demos demos.jsonl --steps=1 --rows=2 --out".split(), str(out), *more]


def refused(capsys, words: list[str], root: Path) -> str:
    """Run a command that must be refused and change nothing, also with --overwrite; return its one-line message."""
    capsys.readouterr()
    before = tree(root)
    for extra in ([], ["--overwrite"]):
        assert cli.main([*words, *extra]) == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        assert tree(root) == before
    return err


def compared(out: str, *more: str) -> list[str]:
    return ["compare", "sft", "--model", "model", "--demo", "demos.jsonl", "--budget=1k-tokens", "--out", out, *more]


INSIDE = {
    "is the model": sft("model"),
    "lies in the model": sft("model/new"),
    "holds the model": sft("."),
    "is the model by a link": sft("../link/model"),
    "holds the model by a link": sft("../link"),
    "holds what a link in the model leads to": sft("../weights"),
    "holds the records": sft("data", "--demos", "data/demos.jsonl"),
    "holds the records to score on": sft("data", "--score-on", "data/demos.jsonl"),
    "holds the configuration": sft("conf", "--config", "conf/steps.yaml"),
    "holds the gold model": sft("gold", "--gold", "gold/model"),
    "holds the adapter's base": ["run", "sft", "--model", "adapter", "--demos", "demos.jsonl", "--out", "base"],
    "holds a reward model": [
        "run", "infalign", "--model", "model", "--prompts", "demos.jsonl", "--reward", "gold/model", "--out", "gold",
    ],
    "is the code of a reward": [
        "run", "infalign", "--model=model", "--prompts=demos.jsonl", "--reward", "mine.taste:judge", "--out", "mine",
    ],
    "compare: is the model": compared("model"),
    "compare: holds the model": compared("."),
    "compare: holds an arm's file": ["compare", "conf/arm.yaml", *compared("conf")[2:]],
    "compare: holds the judge": compared("mine", "--judge", "mine.taste:judge"),
}  # fmt: skip


@pytest.mark.parametrize("case", INSIDE)
def test_an_out_that_is_or_holds_an_input_is_refused(case, project, capsys):
    for name in ("data", "conf", "gold", "base", "mine", "adapter", "../weights"):
        (project / name).mkdir()
    shutil.copy("demos.jsonl", "data")
    shutil.copy("steps.yaml", "conf")
    shutil.copy("arm.yaml", "conf")
    shutil.copy("taste.py", "mine")
    shutil.copytree("model", "gold/model")
    shutil.copytree("model", "base/model")
    Path("adapter/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "base/model"}), encoding="utf-8"
    )
    Path("adapter/adapter_model.safetensors").touch()
    os.replace("model/model.safetensors", "../weights/model.safetensors")
    os.symlink("../../weights/model.safetensors", "model/model.safetensors")
    os.symlink(project, "../link")
    message = refused(capsys, INSIDE[case], project.parent)
    assert "the input" in message or "not made by didact" in message  # errors that need no model are reported first


@pytest.mark.parametrize("verb", ["run", "compare", "claim"])
def test_a_folder_that_didact_did_not_make_is_refused(verb, project, capsys):
    theirs = project / "theirs" / "gpt3" if verb == "claim" else project / "theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    (theirs / "models/sft").mkdir(parents=True)
    (theirs / "models/sft/weights.bin").write_text("theirs")
    (theirs / "checkpoints/epoch-1.pt").write_text("theirs")
    (theirs / "result.json").write_text('{"accuracy": 0.9, "status": "done"}')
    if verb == "claim":
        before = tree(project)
        assert cli.main(["claim", "gpt3", "--tier=smoke", "--keep", "theirs"]) == 2
        assert tree(project) == before and "not made by didact" in capsys.readouterr().err
    else:
        command = sft("theirs") if verb == "run" else compared("theirs")
        assert "not empty and not made by didact (it holds checkpoints)" in refused(capsys, command, project)


def test_of_two_verbs_neither_writes_into_the_others_folder(project, capsys):
    assert cli.main(sft("mine")) == 0
    assert "holds the output of another didact verb (run)" in refused(capsys, compared("mine"), project / "mine")


def test_only_what_we_wrote_is_swept_or_replaced(project, capsys):
    assert cli.main(sft("mine")) == 0
    mine = project / "mine"
    (mine / ".my.notes.tmp").mkdir()
    (mine / ".my.notes.tmp/idea").write_text("x")
    (mine / ".editor.swap.tmp").write_text("x")
    (mine / "notes.txt").write_text("x")
    (mine / ".didact-tmp-0123abcd-model").mkdir()  # leftovers of a killed run
    (mine / "findings.json").write_text("{}")  # and leftovers of another method
    assert cli.main(sft("mine", "--seed=1", "--overwrite")) == 0
    assert {".my.notes.tmp/idea", ".editor.swap.tmp", "notes.txt"} <= tree(mine).keys()
    assert not {".didact-tmp-0123abcd-model", "findings.json"} & tree(mine).keys()
    (mine / "model/notes.txt").write_text("x")
    capsys.readouterr()
    before = tree(mine)
    assert cli.main(sft("mine", "--seed=2", "--overwrite")) == 2
    assert "didact did not write notes.txt" in capsys.readouterr().err
    after = tree(mine)
    assert {n for n in after if after[n] != before.get(n)} <= {"result.json"} and before.keys() == after.keys()


def test_a_comparison_does_not_replace_what_somebody_put_into_its_models(project, capsys):
    command = compared("board", "--seeds=1", "--lrs=1e-3", "--rows=2")
    (project / "board").mkdir()
    files.write_mark("board", "comparison")
    (project / "board/models/sft").mkdir(parents=True)
    (project / "board/models/sft/mine").write_text("x")
    assert cli.main(command) == 2
    assert "didact did not write mine" in capsys.readouterr().out
    assert cli.main([*command, "--overwrite"]) == 2
    assert "didact did not write mine" in capsys.readouterr().err
    assert tree(project / "board/models") == {"sft": b"", "sft/mine": b"x"}


def test_a_model_is_not_saved_over_other_files(fresh, tmp_path):
    model, folder = fresh("llama", layers=1), tmp_path / "place"
    model.save(folder)
    model.save(folder)  # its own
    (folder / "paper.tex").write_text("x")
    before = tree(folder)
    for path in (folder, folder / "paper.tex"):
        with pytest.raises(UserError, match=r"paper\.tex"):
            model.save(path)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="a link is there"):
        model.save(tmp_path / "link")
    assert tree(folder) == before and {"place", "link"} == set(os.listdir(tmp_path))


def test_a_result_is_not_saved_over_other_files(tmp_path):
    result = Result(records=[Demo(prompt="p", completion="c")])
    (tmp_path / "other").write_text("x")
    result.save(tmp_path)
    result.save(tmp_path)  # its own
    (tmp_path / "history.jsonl").write_text("theirs")
    with pytest.raises(UserError, match=r"history\.jsonl: didact did not write it"):
        Result(history=[{"step": 1}]).save(tmp_path)
    assert (tmp_path / "history.jsonl").read_text() == "theirs"


def test_a_card_or_page_that_we_did_not_write_is_not_replaced(tmp_path, capsys):
    (tmp_path / "gpt3.json").write_text('{"mine": 1}')
    assert cli.main(["claim", "gpt3", "--scoreboard", str(tmp_path)]) == 2
    assert "not a card that didact wrote" in capsys.readouterr().err
    card = tmp_path / "npo.json"
    shutil.copy(Path(__file__).parent.parent / "scoreboard/npo.json", card)
    assert page.write(card) == page.write(card)
    (tmp_path / "npo.html").write_text("<html>mine</html>")
    assert cli.main(["report", str(card)]) == 2
    assert (tmp_path / "npo.html").read_text() == "<html>mine</html>"


def test_a_version_set_aside_by_a_killed_writer_comes_back(tmp_path):
    with files.new_folder(tmp_path / "x") as fresh:
        (fresh / "a").write_text("1")
    os.replace(tmp_path / "x", tmp_path / ".didact-old-0123abcd-x")
    files.sweep(tmp_path)
    assert (tmp_path / "x/a").read_text() == "1"


def test_what_a_living_writer_has_half_written_is_not_swept(tmp_path):
    with files.new_folder(tmp_path / "x") as fresh:
        (fresh / "a").write_text("1")
        with files.new_folder(tmp_path / "x") as other:
            (other / "a").write_text("2")
        assert (fresh / "a").read_text() == "1"
    assert (tmp_path / "x/a").read_text() == "1" and not list(tmp_path.glob(".didact-*"))


def test_a_result_says_what_it_was_made_from(project):
    assert cli.main(sft("mine", "--gold", "model")) == 0
    assert read_json("mine/result.json")["inputs"].keys() == {"--model", "--gold"}
    assert folders.files.mark("mine")["kind"] == "run"


# --- concurrent processes ---------------------------------------------------------------------


HOLDS = """
import time
from didact import folders
with folders.at_work("mine", "run"):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(project):
    """Start another process that works in `mine` until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_in_one_out_is_refused_until_the_first_is_dead(project, other, capsys):
    err = refused(capsys, sft("mine"), project)
    assert f"another run is using mine: process {other.pid} on {platform.node()} since " in err
    assert err.strip().endswith("; wait for it, or choose another --out")
    other.kill()
    other.wait()
    assert cli.main(sft("mine")) == 0
    assert not list(Path("mine").glob(".didact-held-*"))


def test_a_comparison_is_shared_and_not_begun_anew_while_another_process_is_at_it(project, capsys):
    command = compared("board", "--seeds=1", "--lrs=1e-3", "--rows=2")
    with folders.at_work("board", "comparison", shared=True):
        assert cli.main(command) == 0
        before = tree(project)
        assert cli.main([*command, "--overwrite"]) == 2
        assert f"another run is using board: process {os.getpid()} on " in capsys.readouterr().err
        assert tree(project) == before
    assert cli.main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(("age", "alive"), [(30, True), (70, False)])
def test_another_machine_without_locks_is_alive_while_it_touches_its_claim(age, alive, tmp_path):
    """A lock file in a shared folder without a working flock: another machine touches it every ten seconds."""
    theirs = tmp_path / ".didact-held-0123abcd-"
    theirs.write_text(json.dumps({"pid": 7, "host": "far", "kernel": "other", "shared": False, "since": "now"}))
    os.utime(theirs, (time.time() - age,) * 2)
    with folders.claimed(tmp_path) as holder:
        assert holder == ("process 7 on far since now" if alive else None)
    assert theirs.exists() == alive


def test_a_claim_is_never_seen_half_written_and_one_cut_short_by_a_kill_goes(tmp_path, monkeypatch):
    (tmp_path / ".didact-tmp-0123abcd-held").touch()
    recorded, rename = [], Path.rename

    def look(path, target):
        recorded.append((json.loads(path.read_text(encoding="utf-8"))["pid"], list(tmp_path.glob(".didact-held-*"))))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look)
    with folders.claimed(tmp_path) as other:
        assert other is None and recorded == [(os.getpid(), [])]
        assert not list(tmp_path.glob(".didact-tmp-*"))


def test_a_claim_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BEAT", 0.01)
    with folders.claimed(tmp_path):
        (mine,) = tmp_path.glob(".didact-held-*")
        os.utime(mine, (0, 0))
        start = time.monotonic()
        while mine.stat().st_mtime == 0 and time.monotonic() - start < 10:
            time.sleep(0.01)
        assert mine.stat().st_mtime > 0


# --- finished runs ----------------------------------------------------------------------------


def another_model(fresh, folder):
    shutil.rmtree(folder)
    brief(fresh("llama", layers=1, seed=1)).save(folder)


CHANGES = {
    "--model": lambda fresh: another_model(fresh, "model"),
    "--gold": lambda fresh: another_model(fresh, "gold"),
    "--score-on": lambda fresh: Path("unseen.jsonl").write_text(json.dumps(DEMOS[0]) + "\n", encoding="utf-8"),
    "--model tokenizer": lambda fresh: Path("model/tokenizer_config.json").write_text(
        Path("model/tokenizer_config.json").read_text(encoding="utf-8") + " ", encoding="utf-8"
    ),
}  # fmt: skip


def test_a_run_is_not_done_already_where_what_it_was_made_from_changed(project, fresh, capsys):
    shutil.copytree("model", "gold")
    shutil.copy("demos.jsonl", "unseen.jsonl")
    command = sft("mine", "--gold=gold", "--score-on=unseen.jsonl")
    assert cli.main(command) == 0
    for changed, change in CHANGES.items():
        capsys.readouterr()
        assert cli.main(command) == 0 and "done already" in capsys.readouterr().out
        change(fresh)
        assert cli.main(command) == 2
        err = capsys.readouterr().err
        assert f"{changed.split()[0]} " in err and "changed since the run in mine" in err
        assert cli.main([*command, "--overwrite"]) == 0


def test_a_comparison_does_not_go_on_where_what_it_rests_on_changed(project, fresh, capsys):
    shutil.copytree("model", "gold")
    command = compared("board", "--seeds=1", "--lrs=1e-3", "--rows=2", "--gold=gold", "--judge=taste:judge")
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    for name in ("taste.py", "gold/config.json", "model/tokenizer_config.json"):
        original = Path(name).read_text(encoding="utf-8")
        Path(name).write_text(original + "\n", encoding="utf-8")
        capsys.readouterr()
        assert cli.main(command) == 2
        assert "holds another comparison (inputs differ)" in capsys.readouterr().err
        Path(name).write_text(original, encoding="utf-8")


def test_a_checkpoint_belongs_to_the_code_of_a_function_that_is_named(project):
    before = registry.digest("taste:judge")
    Path("taste.py").write_text(JUDGE + "# other\n", encoding="utf-8")
    assert registry.digest("taste:judge") != before


# --- damaged files ----------------------------------------------------------------------------


def test_a_flipped_bit_in_a_saved_model_is_told(project, capsys):
    weights = Path("model/model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert cli.main(sft("mine")) == 2
    assert "model: damaged: model.safetensors changed since it was written" in capsys.readouterr().err


def test_a_finished_run_whose_model_was_damaged_is_made_anew(project, capsys):
    assert cli.main(sft("out")) == 0
    path = Path("out/model/model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes(9))
    assert cli.main(sft("out")) == 0
    assert "changed since it was written" in capsys.readouterr().err and path.read_bytes() == whole


def cut(path):
    os.truncate(path / "model.safetensors", 100)


def a_file(path):
    shutil.rmtree(path)
    path.write_text("x")


@pytest.mark.parametrize("how", [cut, a_file, lambda p: (p / ".didact.json").unlink(),
                                 lambda p: (p / "config.json").write_text("{}"),
                                 lambda p: [q.unlink() for q in p.iterdir()]])  # fmt: skip
def test_a_damaged_start_in_the_cache_is_made_anew(how, fresh, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path))
    trainings = []

    def make():
        trainings.append(fresh("llama", layers=1))
        return trainings[-1]

    first = load.cached_model("example", make, "a").fingerprint()
    (path,) = (tmp_path / "example").iterdir()
    how(path)
    assert load.cached_model("example", make, "a").fingerprint() == first and len(trainings) == 2
    assert f"didact: {path}: the cache entry is damaged" in capsys.readouterr().err
    assert load.cached_model("example", make, "a").fingerprint() == first and len(trainings) == 2


def test_a_damaged_file_of_a_comparison_is_found_out_anew_or_told(project, capsys):
    command = compared("board", "--seeds=1", "--lrs=1e-3", "--rows=2")
    assert cli.main(command) == 0
    for name, text in (("sft*_test1", "{"), ("sft_steps", "[]"), ("untouched*", "")):
        (path,) = Path("board/units").glob(f"{name}.json")
        path.write_text(text)
        capsys.readouterr()
        assert cli.main(command) == 0 and "running this job again" in capsys.readouterr().err
    for text in ("{", "[]", "{}", ""):
        Path("board/comparison.json").write_text(text, encoding="utf-8")
        assert cli.main(command) == 2
        assert "start over with --overwrite" in capsys.readouterr().err
    Path("board/comparison.json").unlink()
    assert cli.main(command) == 2
    assert "start over with --overwrite" in capsys.readouterr().err


def test_a_damaged_result_is_one_line(project, capsys):
    assert cli.main(sft("mine")) == 0
    for text in ("{", "[]", "", "\0"):
        Path("mine/result.json").write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert cli.main(sft("mine")) == 2
        assert "not a result of didact, or a damaged one" in capsys.readouterr().err

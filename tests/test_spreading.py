"""A comparison over several processes: bit-identical whichever process dies, and nothing run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from didact import cli, files, verbs
from didact.compare.work import Job
from didact.models import build
from didact.types import UserError
from didact.verbs import spreading

ASKED = "seeds 3"  # options with a third job that is refused
JOBS = [Job("sft", 1e-3, 4, seed, "all") for seed in range(4)]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return the command of a comparison of two methods over two seeds, without its folder."""
    root = tmp_path_factory.mktemp("asked")
    text = [f"what is {a} {i}? it is {b}." for a in ("red", "blue") for b in ("good", "bad") for i in range(9)]
    build.build("llama", build.train_tokenizer(text, 300), d=32, layers=1, heads=2, context=64).save(root / "small")
    rows = [{"prompt": f"what is red {i}?", "chosen": " it is good.", "rejected": " it is bad."} for i in range(60)]
    files.write_lines(root / "pairs.jsonl", rows)
    command = ["compare", "sft", "dpo", "--model", str(root / "small"), "--preference", str(root / "pairs.jsonl")]
    return [*command, "--budget", "4k-tokens", "--seeds", "2", "--lrs", "0.001", "0.004", "--beyond-lrs", "0"]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The result of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert cli.main([*command, "--out", str(out)]) == 0
    return timeless(out)


def timeless(out: Path) -> dict[str, object]:
    """Return every unit and the leaderboard's rows, without costs (a resumed run knows only its last part's)."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("seconds", "time", "resumed", "cost")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    units = {p.stem: plain(files.read_json(p)) for p in (out / "units").glob("*.json")}
    return units | {"rows": plain(files.read_json(out / "leaderboard.json")["rows"])}


def killing(request: tuple[Path, str]) -> spreading.Doer:
    """Jobs that record their process; the process of the first try at seed 1, and of every try at seed 2, dies."""

    def do(job: Job) -> dict[str, object]:
        out, mode = request
        path = out / f"tried-{job.seed}"
        tries = len(path.read_text().split()) if path.exists() else 0
        with path.open("a") as file:
            print(os.getpid(), file=file)
        if job.seed == 2 or (job.seed == 1 and not tries):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.seed == 3 and mode == ASKED:
            raise UserError("no room")
        return {"metrics": {"seed": job.seed}}

    return do


def test_two_workers_give_what_one_process_gives_to_the_bit(command, alone, tmp_path, capfd):
    out = tmp_path / "out"
    assert cli.main([*command, "--out", str(out), "--workers", "2"]) == 0
    assert timeless(out) == alone
    assert "unit 10 of 10: " in capfd.readouterr().err
    # Everything is cached: no job goes to workers
    assert cli.main([*command, "--out", str(out), "--workers", "2"]) == 0
    assert "unit " not in capfd.readouterr().err


def test_a_job_whose_process_dies_is_done_by_another_and_fails_when_that_dies_too(tmp_path, capfd):
    with spreading.worker_pool(killing, (tmp_path, ""), tmp_path, 2) as workers:
        result = dict(workers(JOBS))
    assert set(result) == set(JOBS)
    assert [result[j]["metrics"]["seed"] for j in JOBS if j.seed != 2] == [0, 1, 3]
    assert "died (exit status -9" in result[JOBS[2]]["error"]
    assert [len((tmp_path / f"tried-{n}").read_text().split()) for n in range(4)] == [1, 2, 2, 1]
    assert "its process died" in capfd.readouterr().err
    with (
        spreading.worker_pool(killing, (tmp_path, ASKED), tmp_path, 2) as workers,
        pytest.raises(UserError, match="no room"),
    ):
        list(workers([JOBS[0], JOBS[3]]))


def test_workers_end_with_the_process_that_they_work_for(command, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "didact", *command, "--out", str(out), "--workers", "2"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True) as led:
        until(lambda: list(out.glob("units/*_steps.json")) or led.poll() is not None)
        assert len(alive(led.pid)) > 2  # two workers beside it
        led.kill()
        led.wait()
        until(lambda: not alive(led.pid))


def until(true: Callable[[], object]) -> None:
    """Wait for a condition, two minutes at most."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(group: int) -> list[str]:
    """Return the running processes of a session."""
    states = subprocess.run(["ps", "-o", "stat=", "-s", str(group)], capture_output=True, text=True, check=False).stdout
    return [state for state in states.split() if not state.startswith("Z")]


def test_seeds_of_a_claim_are_measured_elsewhere_and_give_the_same_card(tmp_path):
    local = verbs.claim("vote-k", "smoke", False)
    remote = verbs.claim("vote-k", "smoke", False, folder=str(tmp_path / "kept"), workers=2)
    assert remote["arms"] == local["arms"] and remote["tests"] == local["tests"]
    assert (tmp_path / "kept" / "worker-0.log").exists()
    (saved,) = (tmp_path / "kept").glob("intact-*.json")
    assert files.read_json(saved)["seconds"] == pytest.approx(remote["seconds"], abs=0.05)  # equal to the card
    with pytest.raises(UserError, match="give a folder that its nodes share"):
        verbs.claim("vote-k", "smoke", False, on="auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "option --workers: 0: must be 1 or more"),
        (["--workers", "2", "--on", "auto"], "give only one"),
        (["--gpus-per-arm", "1"], "must be 0 or more, and goes with --on"),
        (["--workers", "64", "--budget", "3-seconds"], "slow each other down"),
        (["--on", "127.0.0.1:1"], "--on 127.0.0.1:1: "),
    ],
)
def test_what_cannot_be_spread_is_one_line(command, tmp_path, words, message, capsys):
    assert cli.main([*command, "--out", str(tmp_path / "out"), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("didact: ")]
    assert message in line


@pytest.mark.soak
def test_a_cluster_that_loses_a_node_gives_the_same_and_does_nothing_twice(command, alone, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    out, recorded, done = tmp_path / "out", {}, threading.Event()

    def watch() -> None:
        """Kill a node once there are units, and check that no unit's file is written again."""
        while not done.wait(0.02):
            for path in out.glob("units/[a-z]*.json"):
                written = path.stat().st_mtime_ns
                assert recorded.setdefault(path.name, written) == written
            if len(nodes) == 2 and len(recorded) > 4:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert cli.main([*command, "--out", str(out), "--on", cluster.address]) == 0
    finally:
        done.set()
        watcher.join()
        import ray

        ray.shutdown()
        cluster.shutdown()
    assert len(nodes) == 1 and len(recorded) == len(list(out.glob("units/[a-z]*.json")))
    assert all((out / "units" / name).stat().st_mtime_ns == written for name, written in recorded.items())
    assert timeless(out) == alone

"""Several processes on one machine: the result of each, and the end of all where one fails."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from didact.parallel import launch, processes
from didact.types import UserError


def summed(value):
    dist.init_process_group("gloo")
    mine = torch.tensor([float(value + dist.get_rank())])
    dist.all_reduce(mine)
    return launch.world(), dist.get_rank(), mine.item(), os.environ["GIVEN"]


def failing(kind):
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        if kind == "killed":
            os.kill(os.getpid(), 9)
        raise UserError("line 3 is bad") if kind == "user" else ValueError("no such thing")
    dist.barrier()  # which the other process never joins


def waiting():
    time.sleep(60)


def test_every_process_has_its_place_and_gives_back_what_it_made(monkeypatch):
    monkeypatch.setenv("GIVEN", "here")
    assert processes.run(2, summed, 3) == [(2, 0, 7.0, "here"), (2, 1, 7.0, "here")]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [("user", UserError, "^process 1 of 2: line 3 is bad$"), ("other", RuntimeError, "process 1 of 2: ValueError"),
     ("killed", RuntimeError, "process 1 of 2: ended by SIGKILL")],
)  # fmt: skip
def test_one_that_fails_ends_all_with_its_own_line(kind, error, message):
    start = time.monotonic()
    with pytest.raises(error, match=message):
        processes.run(2, failing, kind)
    assert time.monotonic() - start < 30


def test_those_that_never_end_are_ended():
    with pytest.raises(RuntimeError, match="did not finish within 1 s"):
        processes.run(2, waiting, patience=1.0)

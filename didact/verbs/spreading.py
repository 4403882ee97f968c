"""The jobs of a comparison or a claim in other processes: of this machine, or as tasks of a Ray cluster.

A job is done as it would be here, in a folder that all of them share. So what comes out is the same to the bit, and a
process that dies loses its own job alone, back to the last checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from didact.compare.budget import Budget
from didact.compare.work import Done, Elsewhere
from didact.types import UserError


class Job(Protocol):
    """Something to be done, of any kind that can be sent and compared."""

    @property
    def name(self) -> str:
        """What is told of it."""


Doer = Callable[[Any], dict[str, Any]]
PATIENCE = 60.0  # seconds for a worker to finish its step and keep it
TRIES = 2  # processes that a job may take with it
VISIBLE = "CUDA_VISIBLE_DEVICES"


def check(workers: int, on: str | None, gpus: float, budget: str | None = None) -> None:
    """Refuse what cannot be spread.

    Args:
        workers: processes of this machine.
        on: a cluster.
        gpus: what a job takes there.
        budget: what each arm of a comparison may use.

    Raises:
        UserError: numbers out of range, both ways at once, or arms that would be timed while they share a device.
    """
    if workers < 1:
        raise UserError(f"option --workers: {workers}: must be 1 or more")
    if workers > 1 and on:
        raise UserError("--workers and --on: one of them: a cluster has as many as its nodes can take")
    if gpus < 0 or (gpus and not on):
        raise UserError(f"{gpus:g} GPUs each: what one takes of a cluster, with --on")
    shared = gpus < 1 if on else workers > max(torch.cuda.device_count(), 1)
    if shared and budget and Budget.parse(budget).unit == "seconds":
        raise UserError(f"--budget {budget}: arms that share a device take each other's time: give tokens or flops")


@contextlib.contextmanager
def elsewhere(
    doer: Callable[[Any], Doer], request: Any, out: str | Path, workers: int, on: str | None = None, gpus: float = 0.0
) -> Iterator[Elsewhere | None]:
    """What jobs are handed to, inside the block, and gives what comes of them; none where this process does them.

    Args:
        doer: a function of a module, which other processes import, that makes ready for the jobs of a request.
        request: what was asked for.
        out: where workers write what they say.
        workers: processes of this machine.
        on: a cluster.
        gpus: what a job takes there.

    Raises:
        UserError: the cluster cannot be reached.
    """
    told = pickle.dumps((doer, request, os.getcwd()))
    if on:
        yield functools.partial(_on_ray, on, gpus, told)
    elif workers > 1:
        several = Workers(workers, told, Path(out))
        try:
            yield several
        finally:
            several.end()
    else:
        yield None


class Workers:
    """Processes of this machine that take jobs as they come to be free, on devices and threads of their own."""

    def __init__(self, count: int, told: bytes, out: Path) -> None:
        self.told, self.out = told, out
        self.context = multiprocessing.get_context("forkserver")  # imports are done once for all workers
        self.context.set_forkserver_preload(["didact.verbs.comparing"])
        self.running: dict[int, tuple[BaseProcess, Connection]] = {}
        self.count = count

    def __call__(self, jobs: Sequence[Job]) -> Done:
        """What comes of them, in the order in which they end. One whose process dies twice is a failure.

        Raises:
            UserError, OSError: as in this process.
        """
        waiting, at, died = deque(jobs), dict[int, Job](), Counter[Job]()
        while waiting or at:
            for number in set(range(self.count)) - set(at):
                if waiting:
                    at[number] = waiting.popleft()
                    self._worker(number)[1].send(at[number])
            ready = wait([self.running[number][1] for number in at])
            for number in [number for number in at if self.running[number][1] in ready]:
                job = at.pop(number)
                try:
                    outcome = self.running[number][1].recv()
                except (EOFError, ConnectionResetError):
                    process, _ = self.running.pop(number)
                    process.join()
                    died[job] += 1
                    why = f"its process died (exit status {process.exitcode}; -9 is often for want of memory)"
                    print(f"didact: {job.name}: {why}", file=sys.stderr)
                    if died[job] < TRIES:
                        waiting.append(job)
                        continue
                    outcome = {"error": f"{why}, twice"}
                if isinstance(outcome, BaseException):
                    raise outcome
                yield job, outcome

    def _worker(self, number: int) -> tuple[BaseProcess, Connection]:
        if number not in self.running:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(
                target=_serve, args=(theirs, self.told, number, self.count, str(self.out / f"worker-{number}.log"))
            )
            process.start()
            theirs.close()
            self.running[number] = process, ours
        return self.running[number]

    def end(self) -> None:
        """End all: one that trains keeps the step it is at first."""
        for process, _ in self.running.values():
            process.terminate()
        for process, pipe in self.running.values():
            process.join(PATIENCE)
            process.kill()
            pipe.close()
        self.running.clear()


def _serve(pipe: Connection, told: bytes, number: int, count: int, log: str) -> None:
    """A worker: does one job after another, and ends with the process that it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for that process, which then ends this one
    threading.Thread(target=_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8") as words:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(words.fileno(), stream.fileno())
    if devices := torch.cuda.device_count():
        visible = (
            os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else [str(i) for i in range(devices)]
        )
        os.environ[VISIBLE] = visible[number % devices]
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_done(told, job))
        except (UserError, OSError) as error:
            pipe.send(error)


def _with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@functools.lru_cache(maxsize=1)
def _ready(told: bytes) -> Doer:
    doer, request, folder = pickle.loads(told)  # our own words, to ourselves
    os.chdir(folder)  # paths are as the user wrote them
    return doer(request)


def _done(told: bytes, job: Job) -> dict[str, Any]:
    return _ready(told)(job)


def _on_ray(address: str, gpus: float, told: bytes, jobs: Sequence[Job]) -> Done:
    """The same by tasks of a cluster, which does those of a lost node anew.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {address}: Ray is not installed: pip install 'didact[cluster]'") from None
    try:
        if address != "auto":  # Ray itself would go on trying for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--on {address}: no cluster: {str(error).splitlines()[0]}") from None
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_done)
    words = ray.put(told)
    at = {task.remote(words, job): job for job in jobs}
    try:
        while at:
            for ready in ray.wait(list(at))[0]:
                job = at.pop(ready)
                try:
                    yield job, ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
    finally:
        for left in at:
            ray.cancel(left)

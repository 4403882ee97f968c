"""Running the jobs of a comparison or a claim in other processes: of this machine, or as tasks of a Ray cluster.

A job is done as it would be in this process, in a folder that all share. So results are equal to the bit, and a process
that dies loses only its own job, back to the last checkpoint.
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
    """A unit of work, of any type that can be pickled and compared."""

    @property
    def name(self) -> str:
        """Its name in messages."""


Doer = Callable[[Any], dict[str, Any]]
PATIENCE = 60.0  # seconds for a worker to finish its step and save it
TRIES = 2  # processes that may die on one job
VISIBLE = "CUDA_VISIBLE_DEVICES"


def check(workers: int, on: str | None, gpus: float, budget: str | None = None) -> None:
    """Check how jobs are to be distributed.

    Args:
        workers: processes of this machine.
        on: the address of a Ray cluster.
        gpus: GPUs that a job takes there.
        budget: what each arm of a comparison may use.

    Raises:
        UserError: a number out of range, workers and cluster both, or a budget in seconds for arms that share a device.
    """
    if workers < 1:
        raise UserError(f"option --workers: {workers}: must be 1 or more")
    if workers > 1 and on:
        raise UserError("--workers and --on: give only one; a cluster runs as many as its nodes can take")
    if gpus < 0 or (gpus and not on):
        raise UserError(f"{gpus:g} GPUs each: must be 0 or more, and goes with --on")
    shared = gpus < 1 if on else workers > max(torch.cuda.device_count(), 1)
    if shared and budget and Budget.parse(budget).unit == "seconds":
        raise UserError(f"--budget {budget}: arms that share a device slow each other down: give tokens or flops")


@contextlib.contextmanager
def worker_pool(
    doer: Callable[[Any], Doer], request: Any, out: str | Path, workers: int, on: str | None = None, gpus: float = 0.0
) -> Iterator[Elsewhere | None]:
    """Yield a function that runs jobs in other processes and yields their results; None if this process does them.

    Args:
        doer: a module-level function, so that other processes can import it; from a request it returns what does a job.
        request: the request.
        out: folder for the workers' logs.
        workers: processes of this machine.
        on: the address of a Ray cluster.
        gpus: GPUs that a job takes there.

    Raises:
        UserError: the cluster cannot be reached.
    """
    payload = pickle.dumps((doer, request, os.getcwd()))
    if on:
        yield functools.partial(_on_ray, on, gpus, payload)
    elif workers > 1:
        pool = Workers(workers, payload, Path(out))
        try:
            yield pool
        finally:
            pool.end()
    else:
        yield None


class Workers:
    """Processes of this machine that take the next job when free, each with its own device and threads."""

    def __init__(self, count: int, payload: bytes, out: Path) -> None:
        self.payload, self.out = payload, out
        self.context = multiprocessing.get_context("forkserver")  # imported once for all workers
        self.context.set_forkserver_preload(["didact.verbs.comparing"])
        self.running: dict[int, tuple[BaseProcess, Connection]] = {}
        self.count = count

    def __call__(self, jobs: Sequence[Job]) -> Done:
        """Yield jobs with their results, in the order in which they end. A job whose process dies twice is a failure.

        Raises:
            UserError, OSError: as in this process.
        """
        queue, assigned, deaths = deque(jobs), dict[int, Job](), Counter[Job]()
        while queue or assigned:
            for number in set(range(self.count)) - set(assigned):
                if queue:
                    assigned[number] = queue.popleft()
                    self._worker(number)[1].send(assigned[number])
            ready = wait([self.running[number][1] for number in assigned])
            for number in [number for number in assigned if self.running[number][1] in ready]:
                job = assigned.pop(number)
                try:
                    outcome = self.running[number][1].recv()
                except (EOFError, ConnectionResetError):
                    process, _ = self.running.pop(number)
                    process.join()
                    deaths[job] += 1
                    reason = f"its process died (exit status {process.exitcode}; -9 often means out of memory)"
                    print(f"didact: {job.name}: {reason}", file=sys.stderr)
                    if deaths[job] < TRIES:
                        queue.append(job)
                        continue
                    outcome = {"error": f"{reason}, twice"}
                if isinstance(outcome, BaseException):
                    raise outcome
                yield job, outcome

    def _worker(self, number: int) -> tuple[BaseProcess, Connection]:
        if number not in self.running:
            parent_end, worker_end = self.context.Pipe()
            process = self.context.Process(
                target=_serve,
                args=(worker_end, self.payload, number, self.count, str(self.out / f"worker-{number}.log")),
            )
            process.start()
            worker_end.close()
            self.running[number] = process, parent_end
        return self.running[number]

    def end(self) -> None:
        """End all workers; one that trains saves its current step first."""
        for process, _ in self.running.values():
            process.terminate()
        for process, pipe in self.running.values():
            process.join(PATIENCE)
            process.kill()
            pipe.close()
        self.running.clear()


def _serve(pipe: Connection, payload: bytes, number: int, count: int, log: str) -> None:
    """A worker's loop: do one job after another, and end with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8") as log_file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log_file.fileno(), stream.fileno())
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
            pipe.send(_do_job(payload, job))
        except (UserError, OSError) as error:
            pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@functools.lru_cache(maxsize=1)
def _prepared_doer(payload: bytes) -> Doer:
    doer, request, folder = pickle.loads(payload)  # pickled by the parent process, so trusted
    os.chdir(folder)  # paths are as the user wrote them
    return doer(request)


def _do_job(payload: bytes, job: Job) -> dict[str, Any]:
    return _prepared_doer(payload)(job)


def _on_ray(address: str, gpus: float, payload: bytes, jobs: Sequence[Job]) -> Done:
    """Run jobs as tasks of a Ray cluster, which repeats those of a lost node; yield jobs with their results.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {address}: Ray is not installed: pip install 'didact[cluster]'") from None
    try:
        if address != "auto":  # Ray itself would keep trying for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--on {address}: no cluster: {str(error).splitlines()[0]}") from None
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_do_job)
    payload_ref = ray.put(payload)
    pending = {task.remote(payload_ref, job): job for job in jobs}
    try:
        while pending:
            for done in ray.wait(list(pending))[0]:
                job = pending.pop(done)
                try:
                    yield job, ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
    finally:
        for task_ref in pending:
            ray.cancel(task_ref)

"""A function in several processes of this machine, as a launcher would start it; one that fails ends all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import ProcessContext, start_processes

from didact.errors import UserError

PATIENCE = 600.0  # seconds, after which processes that wait for each other are ended
GRACE = 2.0  # seconds that the others have once one has failed
LOADED = ["accelerate", "peft", "transformers.models.llama.modeling_llama", "didact.parallel.engine", __name__]


class Failure(NamedTuple):
    """How a process ended: when, on which line, and whether the user can mend it."""

    at: float
    rank: int
    line: str
    trace: str
    users: bool


def run(count: int, function: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> list[Any]:
    """`function(*args)` in `count` processes; what each of them returns, by rank.

    They find each other over the loopback by the variables that `torchrun` sets, so that whatever asks
    `torch.distributed`, accelerate or `launch` for its place gets it. They share the environment and the threads of
    this one.

    Args:
        count: of processes.
        function: of a module, so that another process can import it.
        args: and what it returns, are pickled.
        patience: seconds until all must be done.

    Raises:
        UserError: the first of them to fail raised one; its rank is told.
        RuntimeError: it raised anything else, or was killed, or they are not done in time. All are ended then.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # whose port no other can take
    threads = max(1, torch.get_num_threads() // count)
    env = dict(os.environ) | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    multiprocessing.get_context("forkserver").set_forkserver_preload(LOADED)  # once, in place of in every process
    with tempfile.TemporaryDirectory(prefix="didact-processes-") as folder:
        job_args = (env, threads, folder, function, args)
        context = start_processes(_worker, job_args, count, join=False, daemon=True, start_method="forkserver")
        try:
            _join(context, patience)
        except Exception as error:
            for rank, process in enumerate(context.processes):
                if (code := process.exitcode or 0) < 0 and code != -signal.SIGTERM:  # which ends the others
                    raise RuntimeError(f"process {rank} of {count}: ended by {signal.Signals(-code).name}") from None
            failed = [pickle.loads(path.read_bytes()) for path in Path(folder).glob("*.failed")]
            if not failed:
                raise RuntimeError(str(error)) from None
            first: Failure = min(failed)
            if first.users:
                raise UserError(f"process {first.rank} of {count}: {first.line}") from None
            raise RuntimeError(f"process {first.rank} of {count}: {first.line}\n{first.trace}") from None
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def _join(context: ProcessContext, patience: float) -> None:
    """Until all are done; none is left, however it ends."""
    end = time.monotonic() + patience
    try:
        while not context.join(timeout=1.0, grace_period=GRACE):
            if time.monotonic() > end:
                raise TimeoutError(f"processes were not done in {patience:g} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _worker(
    rank: int, env: dict[str, str], threads: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(threads)
    try:
        result = function(*args)
        (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    except BaseException as error:
        line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        failure = Failure(time.monotonic(), rank, line, traceback.format_exc(), isinstance(error, UserError))
        path = Path(folder) / f"{rank}.failed"
        path.with_suffix(".part").write_bytes(pickle.dumps(failure))
        path.with_suffix(".part").rename(path)
        os._exit(1)  # no farewell to processes that will not answer
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

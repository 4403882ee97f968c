"""A function run in several processes of this machine, as by a launcher; if one fails, all are ended."""

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

PATIENCE = 600.0  # seconds after which processes are ended, as they may be in a deadlock
GRACE = 2.0  # seconds that the others get to finish once one has failed
LOADED = ["accelerate", "peft", "transformers.models.llama.modeling_llama", "didact.parallel.engine", __name__]


class Failure(NamedTuple):
    """The failure of a process: its time, message and traceback, and whether it is a `UserError`."""

    at: float
    rank: int
    line: str
    trace: str
    users: bool


def run(count: int, function: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> list[Any]:
    """Run `function(*args)` in `count` processes; return their results by rank.

    They connect over the loopback with the variables that `torchrun` sets, so that `torch.distributed`, accelerate and
    `launch` find their rank. They get the environment of this process, and share its number of threads.

    Args:
        count: number of processes.
        function: of a module, so that another process can import it.
        args: pickled, as is the result.
        patience: seconds until all must be done.

    Raises:
        UserError: the first of them to fail raised one; the message has its rank.
        RuntimeError: it raised anything else, or was killed, or they are not done in time. All are ended then.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it keeps its port from others
    threads = max(1, torch.get_num_threads() // count)
    env = dict(os.environ) | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    multiprocessing.get_context("forkserver").set_forkserver_preload(LOADED)  # once, instead of in every process
    with tempfile.TemporaryDirectory(prefix="didact-processes-") as folder:
        job_args = (env, threads, folder, function, args)
        context = start_processes(_worker, job_args, count, join=False, daemon=True, start_method="forkserver")
        try:
            _join(context, patience)
        except Exception as error:
            for rank, process in enumerate(context.processes):
                if (code := process.exitcode or 0) < 0 and code != -signal.SIGTERM:  # sent to the others
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
    """Wait until all are done; kill those left in any case."""
    end = time.monotonic() + patience
    try:
        while not context.join(timeout=1.0, grace_period=GRACE):
            if time.monotonic() > end:
                raise TimeoutError(f"processes did not finish within {patience:g} s")
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
        os._exit(1)  # no shutdown of the process group: the others will not answer
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

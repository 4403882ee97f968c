"""Killed runs, for tests that resume them: `from killed import Halt, searches, server`."""

import multiprocessing
import os
import signal
import sys

import pytest
import torch

from didact import cli
from didact.infer import tree
from didact.learn import checkpoint
from didact.learn.fit import Hook

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["didact.verbs.running", "didact.methods.unlearning.npo", "didact.methods.alignment.spin", "didact.models.build",
     "peft", "accelerate", "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2"]
)  # fmt: skip


class Halt(Hook):
    """Raises KeyboardInterrupt after `at` steps; 0: never."""

    def __init__(self, at):
        self.left = at

    def after(self, step):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Count(Hook):
    """A hook with state to restore: the sum of all losses."""

    def __init__(self):
        self.sum = 0.0

    def after(self, step):
        self.sum += step.log["loss"]

    def state(self):
        return self.sum

    def restore(self, state):
        self.sum = state


def launch(target, *args):
    """Start `target(*args, ready)` in its own process; return when it has set the event `ready`."""
    ready = server.Event()
    process = server.Process(target=target, args=(*args, ready))
    process.start()
    assert ready.wait(60)
    return process


def die_after(saves, words, ready):
    """Run a command in its own process, which is killed right after `saves` checkpoints."""
    torch.set_num_threads(1)
    os.environ["DIDACT_CACHE"] = "off"
    written = [0]

    save = checkpoint.save

    def counting(*args, **options):
        path = save(*args, **options)
        written[0] += 1
        if written[0] == saves:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    checkpoint.save = counting
    ready.set()
    cli.main(words)


def command(words, out, env):
    """Run one didact command in its own process; its output goes to `out`."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test suite in the background ignores interrupts
    os.environ.update(env)
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115  (to the end)
    code = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class KilledError(Exception):
    """Raised in place of a search, to kill the run."""


def searches(monkeypatch, run, kills):
    """Kill `run()` before its n-th search for every n in `kills`, then run it to the end.

    Returns the result and the number of trees of every search.
    """
    sizes, search = [], tree.search

    for limit in (*kills, None):

        def counting(numbers, *rest, limit=limit):
            if len(sizes) == limit:
                raise KilledError
            sizes.append(len(numbers))
            return search(numbers, *rest)

        monkeypatch.setattr(tree, "search", counting)
        if limit is None:
            return run(), sizes
        with pytest.raises(KilledError):
            run()

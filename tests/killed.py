"""Runs that are killed, for the tests that start them again: `from killed import Halt, searches, server`."""

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
    """Ends the process after so many steps, as an interrupt does; 0 never does."""

    def __init__(self, at):
        self.left = at

    def after(self, step):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Count(Hook):
    """A hook whose state must come back: the sum of all losses."""

    def __init__(self):
        self.sum = 0.0

    def after(self, step):
        self.sum += step.log["loss"]

    def state(self):
        return self.sum

    def restore(self, state):
        self.sum = state


def launch(target, *args):
    """`target(*args, ready)` in a process of its own, once it has set the event `ready`."""
    ready = server.Event()
    process = server.Process(target=target, args=(*args, ready))
    process.start()
    assert ready.wait(60)
    return process


def die_after(saves, words, ready):
    """A command in a process of its own, which is killed right after so many checkpoints."""
    torch.set_num_threads(1)
    os.environ["DIDACT_CACHE"] = "off"
    written = [0]

    save = checkpoint.save

    def counting(*given, **how):
        place = save(*given, **how)
        written[0] += 1
        if written[0] == saves:
            os.kill(os.getpid(), signal.SIGKILL)
        return place

    checkpoint.save = counting
    ready.set()
    cli.main(words)


def command(words, out, env):
    """One didact command in a process of its own; what it prints goes to `out`."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has interrupts ignored
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
    """Where a search was killed."""


def searches(monkeypatch, run, deaths):
    """`run()` killed after each of so many searches, then to its end: the result, and the trees of every search."""
    counted, search = [], tree.search

    for death in (*deaths, None):

        def counting(numbers, *rest, death=death):
            if len(counted) == death:
                raise KilledError
            counted.append(len(numbers))
            return search(numbers, *rest)

        monkeypatch.setattr(tree, "search", counting)
        if death is None:
            return run(), counted
        with pytest.raises(KilledError):
            run()

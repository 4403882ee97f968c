"""Runs that are killed, for the tests that start them again: `from killed import Count, searches, server`."""

import multiprocessing

import pytest

from didact.infer import tree
from didact.learn.fit import Hook

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["didact.methods.alignment", "didact.methods.baselines", "didact.methods.unlearning", "didact.models.build", "peft",
     "accelerate", "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2"]
)  # fmt: skip


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

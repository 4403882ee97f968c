"""One of several processes runs out of memory: all continue with half the micro-batch, or all end."""

import json
import time

import pytest
import torch

from didact import baselines, unlearning
from didact.learn import distributed
from didact.learn.fit import Hook
from didact.models import build, spread
from didact.models.load import load
from didact.parallel import processes
from didact.types import Fit, UserError
from didact.worlds.authors import authors

WORLD = authors(0, forget=2, retain=2, unseen=0, holdout=0)
FIT = Fit(lr=1e-2, steps=3, rows=5, schedule="constant", micro_tokens=60, weight_decay=0.1)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.10 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
]


class Short(Hook):
    """Out of memory in a layer of some processes in the second step: `{process: (layer, whether in backward)}`."""

    def __init__(self, where, always=False):
        self.where, self.always, self.tokens = where, always, []

    def before(self, step):
        if step.step != 1 or (spot := self.where.get(distributed.group_rank()[0])) is None:
            return
        layer = spread.layers(step.module)[spot[0]]
        handle = layer.register_forward_hook(lambda _, inputs, out: self.met(handle, spot[1], inputs[0], out))

    def met(self, handle, back, given, out):
        self.tokens.append(given.shape[0] * given.shape[1])
        if not self.always:
            handle.remove()
        error = ERRORS[len(self.tokens) % 2]
        if not back:
            raise error
        (out if isinstance(out, torch.Tensor) else out[0]).register_hook(lambda grad: raised(error))


def raised(error):
    raise error


def trained(start, parallel, hooks=(), folder=None, method="sft", **changes):
    model = load(start, device="cpu", dtype="float64")
    fit = FIT.replace(parallel=parallel, folder=folder, **changes)
    if method == "npo":
        result = unlearning.npo(model, WORLD.forget, WORLD.retain, fit=fit, hooks=hooks)
    else:
        result = baselines.sft(model, WORLD.forget, fit=fit, hooks=hooks)
    return {n: p.detach().clone() for n, p in result.models["model"].module.named_parameters()}, result.history


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    root = tmp_path_factory.mktemp("start")
    tokenizer = build.train_tokenizer([f"{r.prompt} {r.completion}" for r in WORLD.forget + WORLD.retain], 300)
    build.build("llama", tokenizer, d=16, layers=2, heads=2, context=64).save(root / "start")
    return root / "start"


CASES = [
    ({1: (1, False)}, {}),
    ({1: (0, True)}, {}),  # in backward, when some gradients are already summed
    ({0: (1, True), 1: (0, False)}, {"method": "npo"}),  # two at once, at different positions of two streams
    ({0: (1, False)}, {"checkpointing": True}),
]


def several(start, folder):
    """Run every case in these processes, the first one with checkpoints; and trainings that never fit in memory.

    Returns:
        Weights, log and number of out-of-memory errors of each case; the final message, seconds, tokens; the message
        for a split layer.
    """
    with pytest.raises(UserError) as split:
        trained(start, "1x1x2", [Short({0: (1, False), 1: (1, False)})])
    runs = []
    for i, (faults, changes) in enumerate(CASES):
        hook = Short(faults)
        runs.append((*trained(start, "fsdp2", [hook], None if i else folder, **changes), len(hook.tokens)))
    start_time, hook = time.monotonic(), Short({1: (1, False)}, always=True)
    with pytest.raises(UserError) as error, distributed.peers():
        trained(start, "fsdp2", [hook])
    end = str(error.value), time.monotonic() - start_time, hook.tokens
    return runs, end, str(split.value)


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """The results and messages of two processes, and their checkpoints."""
    folder = tmp_path_factory.mktemp("kept")
    return processes.run(2, several, start, str(folder)), folder


def test_all_halve_the_micro_batch_when_one_runs_out_of_memory(start, two):
    results, folder = two
    for i, (faults, changes) in enumerate(CASES):
        own, history = trained(start, "ddp", **changes)
        for rank, (weights, logged, met) in enumerate(cases[i] for cases, *_ in results):
            assert met == (rank in faults)
            for name, value in own.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-10)
            for mine, other in zip(history, logged, strict=True):
                assert mine == pytest.approx(other, rel=1e-12, abs=1e-12)
    (state,) = folder.rglob("step-00000003/state.json")
    assert json.loads(state.read_text())["micro_tokens"] == FIT.micro_tokens // 2


def test_a_record_that_fits_nowhere_ends_all_in_a_line(two):
    (other, waited, _), (line, _, tokens) = [end for _, end, _ in two[0]]
    assert line.startswith("out of memory on a single record")
    assert other.startswith("another process of this training ended")
    assert waited < 30 and len(tokens) == 2 and tokens[1] < tokens[0]


def test_parts_of_a_layer_cannot_take_other_rows_and_say_what_to_give(two):
    for rank, (*_, line) in enumerate(two[0]):
        assert line.startswith(f"out of memory in process {rank}") and "--micro-tokens 30" in line

"""Several processes give one process's losses and weights, with any sharding, on batches of unequal length."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from transformers import LlamaConfig, LlamaForCausalLM

from didact import alignment, baselines, unlearning
from didact.learn import checkpoint, distributed, rounds
from didact.learn.fit import Hook
from didact.models import build, shape
from didact.models.load import load
from didact.parallel import launch, memory, mesh, planner, processes, sharding
from didact.parallel.spec import ClusterSpec, Layout
from didact.types import Fit, Preference, UserError
from didact.worlds.authors import authors

WORLD = authors(0, forget=2, retain=2, unseen=0, holdout=0)
SOAK = ("1x2x2", "2x1x2", "2x2x1")
PAIRS = [
    Preference(prompt=a.prompt, chosen=a.completion, rejected=b.completion)
    for a, b in zip(WORLD.forget, WORLD.retain, strict=True)
]
FIT = Fit(lr=1e-2, steps=5, rows=5, schedule="constant", micro_tokens=60, weight_decay=0.1)


def train(start, out, parallel):
    """Run every method; return what this process has afterwards."""
    if parallel == "hsdp":
        os.environ["LOCAL_WORLD_SIZE"] = "2"  # four processes on two nodes
    model = load(start, device="cpu", dtype="float64")
    before = model.fingerprint()
    fit = FIT.replace(parallel=parallel)
    results = {
        "sft": baselines.sft(model, WORLD.forget, fit=fit),
        "npo": unlearning.npo(model, WORLD.forget, WORLD.retain, fit=fit),
        "kto": unlearning.npo(model, WORLD.forget, WORLD.retain, loss="kto", fit=fit),
    }
    if parallel not in ("hsdp", *SOAK):
        results |= {
            "dpo": baselines.dpo(model, PAIRS, fit=fit),
            # one record per step: the other process is idle but must still take part
            "one": baselines.sft(model, WORLD.forget, fit=fit.replace(rows=1)),
            "lora": baselines.sft(model, WORLD.forget, fit=fit.replace(lora=4)),
            "again": baselines.sft(model, WORLD.forget, fit=fit.replace(checkpointing=True)),
        }
    played = fit.replace(steps=3, save_every=1, folder=f"{out}/rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "CHUNK", 3)  # each process samples some
        results["spin"] = alignment.spin(model, WORLD.forget, rounds=2, max_new_tokens=4, fit=played)
    assert model.fingerprint() == before
    rank, world = distributed.group_rank()
    weights = {
        f"{name}|{n}": p.detach().clone()
        for name, result in results.items()
        for n, p in result.models["model"].module.named_parameters()
    }
    save_file(weights, f"{out}/weights-{rank}")
    with open(f"{out}/history-{rank}.json", "w", encoding="utf-8") as file:
        json.dump({"world": world, **{k: r.history for k, r in results.items()}}, file)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The start model's folder, and one process's results: weights, histories, samples."""
    root = tmp_path_factory.mktemp("alone")
    tokenizer = build.train_tokenizer([f"{r.prompt} {r.completion}" for r in WORLD.forget + WORLD.retain], 300)
    build.build("llama", tokenizer, d=16, layers=2, heads=2, context=64).save(root / "start")
    train(root / "start", root, "ddp")
    return root / "start", *made(root, 0), samples(root)


@pytest.fixture(
    scope="module",
    params=[
        ("ddp", 2),
        ("fsdp2", 2),
        ("hsdp", 4),
        ("1x1x2", 2),
        ("2x1x1", 2),
        *(pytest.param((layout, 4), marks=pytest.mark.soak) for layout in SOAK),
    ],
    ids=lambda param: f"{param[0]} {param[1]}",
)
def several_runs(request, alone, tmp_path_factory):
    """The same results of several processes."""
    (parallel, count), root = request.param, tmp_path_factory.mktemp("many")
    processes.run(count, train, alone[0], root, parallel, patience=300)
    assert samples(root) == alone[3] and len(alone[3]) == 2 * 20  # rounds by demonstrations
    return count, [made(root, rank) for rank in range(count)]


def made(root, rank):
    return load_file(root / f"weights-{rank}"), json.loads((root / f"history-{rank}.json").read_text())


def samples(root):
    files = sorted((root / "rounds/spin").glob("round-*/samples.jsonl"))
    return [[c[1] for c in json.loads(line)] for file in files for line in file.read_text().splitlines()]


def test_all_processes_log_the_losses_of_one(alone, several_runs):
    (_, own), (count, theirs) = alone[1:3], several_runs
    assert own["world"] == 1 and [h.pop("world") for _, h in theirs] == [count] * count
    assert {"sft", "npo", "kto", "spin"} <= set(theirs[0][1])
    for _, histories in theirs:
        for method, history in histories.items():
            assert len(history) == (6 if method == "spin" else 5)
            for mine, other in zip(own[method], history, strict=True):
                assert mine == pytest.approx(other, rel=1e-12, abs=1e-12)


def test_all_processes_end_with_the_weights_of_one(alone, several_runs):
    own, (_, theirs), moved = alone[1], several_runs, {}
    start = load_file(alone[0] / "model.safetensors")
    for name, first in theirs[0][0].items():
        for weights, _ in theirs:
            assert torch.equal(weights[name], first)
            torch.testing.assert_close(weights[name], own[name], rtol=0, atol=1e-10)
        method, _, weight = name.partition("|")
        if weight in start:  # LoRA's weights differ
            moved[method] = max(moved.get(method, 0.0), float((first - start[weight]).abs().max()))
    assert len(moved) >= 4 and min(moved.values()) > 1e-2


class Dies(Hook):
    """Kills one of the processes after a step, without a message."""

    def __init__(self, at):
        self.at = at

    def after(self, step):
        if step.step + 1 == self.at and int(os.environ.get("RANK", "0")) == launch.world() - 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Keeps(Hook):
    """Records the whole trained weights after every step."""

    def __init__(self, out):
        self.out = out

    def after(self, step):
        weights = step.weights()
        if distributed.group_rank()[0] == 0:
            save_file(weights, f"{self.out}/step-{step.step + 1}")


def taught(start, out, parallel, at):
    """Return the weights after eight steps with a checkpoint at each; a process dies after step `at`."""
    model = load(start, device="cpu", dtype="float64")
    fit = FIT.replace(steps=8, parallel=parallel, save_every=1, folder=f"{out}/checkpoints")
    trained = baselines.sft(model, WORLD.forget, fit=fit, hooks=[Dies(at), Keeps(out)])
    return {n: p.detach() for n, p in trained.models["model"].module.named_parameters()}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("fsdp2", 2), ("fsdp2", 3)),
        (("ddp", 1), ("1x1x2", 2)),
        (("2x1x1", 2), ("fsdp2", 3)),
        pytest.param(("1x1x2", 2), ("2x1x1", 2), marks=pytest.mark.soak),
    ],
)
def test_a_training_goes_on_in_another_number_of_processes(first, second, alone, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = taught(alone[0], tmp_path / "whole", "ddp", 0)
    with pytest.raises(RuntimeError, match="ended by SIGKILL"):
        processes.run(first[1], taught, alone[0], tmp_path / "killed", first[0], 4)
    (checkpoints_left,) = (tmp_path / "killed/checkpoints").iterdir()
    identity = json.loads((checkpoints_left / "step-00000003/state.json").read_text())["identity"]
    weights, state = checkpoint.load(checkpoints_left, identity)
    held = load_file(tmp_path / "killed/step-3")
    assert state.step == 3 and set(weights) == set(held)
    assert all(torch.equal(weights[n], held[n]) for n in held)  # bit-identical, in one process
    (tmp_path / "killed/step-3").unlink()
    for resumed in processes.run(second[1], taught, alone[0], tmp_path / "killed", second[0], 0):
        for name, value in whole.items():
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-10)
    assert not (tmp_path / "killed/step-3").exists()  # no step was repeated


class Fails(Hook):
    """Raises an error in one process only, in the second step."""

    def before(self, step):
        if step.step == 1 and distributed.group_rank()[0] == 1:
            raise UserError("record 7 is bad")


def failing(start):
    model = load(start, device="cpu")
    baselines.sft(model, WORLD.forget, fit=FIT.replace(parallel="fsdp2"), hooks=[Fails()])


def test_an_error_of_one_process_ends_all_with_its_line(alone):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^process 1 of 2: record 7 is bad$"):
        processes.run(2, failing, alone[0])
    assert time.monotonic() - start < 30


def measured(config, rows):
    """Return the peak bytes of tensors in the second step of two micro-batches, with their purposes."""
    module = LlamaForCausalLM(config)
    distributed.rank(module)
    sharded = sharding.Sharded(module, mesh.over("fsdp2", "cpu"), list(module.model.layers))
    optimizer = torch.optim.AdamW(module.parameters())
    ids = torch.zeros((rows, config.max_position_embeddings), dtype=torch.long)
    tracker = FSDPMemTracker(sharded.root, optimizer)
    with tracker:
        for _ in range(2):
            for _ in range(2):
                sharded(lambda: [module(input_ids=ids, use_cache=False).logits.log_softmax(-1).mean()])[0].backward()
                tracker.reset_mod_stats()
            optimizer.step()
            optimizer.zero_grad()
    peak = next(iter(tracker.get_tracker_snapshot("peak").values()))
    return peak["Total"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_memory_of_a_process_is_what_the_planner_says(tied):
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    job = planner.Job(shape.of(config), ClusterSpec(gpus=2), 8, memory.POLICIES["fp32"], fused=False)
    estimate = planner.estimate(job, Layout(dp=2, micro=2, batch=8, zero=3)).memory
    for peak in processes.run(2, measured, config, 2):
        assert sum(estimate.values()) == pytest.approx(peak, rel=0.15)

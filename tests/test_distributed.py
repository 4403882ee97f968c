"""Two processes give one process's losses and weights, on batches of unequal lengths, coupled losses included."""

import json
import os
import socket

import pytest
import torch
from accelerate import PartialState
from killed import launch
from safetensors.torch import load_file, save_file

from didact import alignment, baselines, unlearning
from didact.learn import rounds
from didact.models.load import load
from didact.types import Fit
from didact.worlds.authors import authors


def train(start, out):
    """Every method, and what this process then has."""
    world = authors(0, forget=2, retain=2, unseen=0, holdout=0)
    model = load(start, device="cpu", dtype="float64")
    fit = Fit(lr=1e-2, steps=5, rows=5, schedule="constant", micro_tokens=60)
    results = {
        "sft": baselines.sft(model, world.forget, fit=fit),
        "npo": unlearning.npo(model, world.forget, world.retain, fit=fit),
        "kto": unlearning.npo(model, world.forget, world.retain, loss="kto", fit=fit),
        # one record a step: the second process has nothing to do and must still take part
        "one": baselines.sft(model, world.forget, fit=fit.replace(rows=1)),
    }
    played = fit.replace(steps=3, save_every=1, folder=f"{out}/rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "CHUNK", 3)  # each process samples some
        results["spin"] = alignment.spin(model, world.forget, rounds=2, max_new_tokens=4, fit=played)
    state, weights = PartialState(), {}
    for name, result in results.items():
        for n, p in result.models["model"].module.named_parameters():
            weights[f"{name}|{n}"] = p.detach().clone()
    save_file(weights, f"{out}/weights-{state.process_index}")
    with open(f"{out}/history-{state.process_index}.json", "w", encoding="utf-8") as handle:
        json.dump({"world": state.num_processes, **{k: r.history for k, r in results.items()}}, handle)


def one_of_two(rank, port, start, out, ready):
    """What `accelerate launch --multi_gpu` makes a process: the loop takes the CPU and gloo itself."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "DIDACT_CACHE": "off"}
    os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    ready.set()
    train(start, out)


@pytest.fixture(scope="module")
def runs(fresh, tmp_path_factory):
    """Weights and histories of one process (this one) and of both of two."""
    root = tmp_path_factory.mktemp("distributed")
    for name in ("start", "alone", "together"):
        (root / name).mkdir()
    fresh("llama").save(root / "start")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [launch(one_of_two, rank, port, root / "start", root / "together") for rank in (0, 1)]
    train(root / "start", root / "alone")
    for process in both:
        process.join(240)
        assert process.exitcode == 0

    said = {}

    def of(folder, rank):
        files = sorted((root / folder / "rounds/spin").glob("round-*/samples.jsonl"))
        said[folder] = [[c[1] for c in json.loads(line)] for file in files for line in file.read_text().splitlines()]
        return load_file(root / folder / f"weights-{rank}"), json.loads(
            (root / folder / f"history-{rank}.json").read_text()
        )

    told = of("alone", 0), of("together", 0), of("together", 1), load_file(root / "start/model.safetensors")
    assert said["alone"] == said["together"] and len(said["alone"]) == 2 * 20  # rounds by demonstrations
    return told


def test_there_were_two_processes(runs):
    (_, alone), (_, first), (_, second), _ = runs
    assert (alone["world"], first["world"], second["world"]) == (1, 2, 2)


@pytest.mark.parametrize("method", ["sft", "npo", "kto", "one", "spin"])
def test_both_of_two_processes_log_the_losses_of_one(method, runs):
    (_, alone), (_, first), (_, second), _ = runs
    assert len(alone[method]) == (6 if method == "spin" else 5) and first[method] == second[method]
    for mine, theirs in zip(alone[method], first[method], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("method", ["sft", "npo", "kto", "one", "spin"])
def test_both_of_two_processes_end_with_the_weights_of_one(method, runs):
    (alone, _), (first, _), (second, _), start = runs
    names = [k for k in alone if k.startswith(f"{method}|")]
    assert names
    for name in names:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], alone[name], rtol=0, atol=1e-10)
    moved = max(float((alone[n] - start[n.split("|")[1]]).abs().max()) for n in names if n.split("|")[1] in start)
    assert moved > 1e-2

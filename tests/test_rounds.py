"""Rounds: each resumes where it stopped, nothing is sampled twice, and a run killed at random ends bit-identical."""

import json
import os
import random
import shutil
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed import Count, launch
from safetensors.torch import load_file, save_file

from didact import alignment, files
from didact.data import encode
from didact.data.encode import TokenizedExample
from didact.infer import generate
from didact.learn import rounds
from didact.learn.fit import Hook
from didact.models import forward, load
from didact.models.model import copy_of
from didact.types import Demo, Fit, UserError
from didact.worlds.authors import authors

HOW = {"rounds": 3, "lam": (1.0,), "lr_factors": (1.0,), "max_new_tokens": 8}
FIT = {"lr": 3e-3, "steps": 6, "rows": 4, "save_every": 2}


@pytest.fixture(scope="module")
def demos():
    return authors(0, forget=2, retain=0, unseen=0, holdout=0).forget


# --- killed at any time ----------------------------------------------------------------------


def teach(start, folder, out, lora, ready):
    """Run the whole training as a user's process does; every sampled prompt is logged in `folder.sampled`."""
    os.environ["DIDACT_CACHE"] = "off"
    torch.set_num_threads(1)
    rounds.CHUNK = 6
    sampled, completions = folder.with_suffix(".sampled"), generate.completions

    def counted(model, prompts, *args):
        outputs = completions(model, prompts, *args)
        with open(sampled, "a", encoding="utf-8") as log:
            log.write(json.dumps(len(prompts)) + "\n")
        return outputs

    generate.completions = counted
    model, count = load.load(start, device="cpu"), Count()
    demos = authors(0, forget=2, retain=0, unseen=0, holdout=0).forget
    ready.set()
    fit = Fit(folder=str(folder), lora=lora, **FIT)
    result = alignment.spin(model, demos, **HOW, fit=fit, hooks=[count])
    save_file({k: v.clone() for k, v in result.models["model"].module.state_dict().items()}, str(out))
    rows = [[r.prompt, r.rejected, r.extra["round"]] for r in result.records]
    summary = {"history": result.history, "findings": result.findings, "sum": count.sum, "records": rows}
    files.write_json(f"{out}.json", summary | {"tokens": result.cost.tokens})


@pytest.mark.parametrize(("arch", "lora", "kills"), [("gpt2", 0, 1), ("llama", 2, 1)])
def test_rounds_killed_at_random_moments_end_in_the_same_bits(arch, lora, kills, fresh, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    fresh(arch, dropout=0.1).save(start)
    whole = launch(teach, start, tmp_path / "whole", tmp_path / "end", lora)
    start_time = time.monotonic()
    whole.join()
    assert whole.exitcode == 0
    seconds = time.monotonic() - start_time
    rng, finished = random.Random(time.time_ns()), 0
    while finished < kills:
        process = launch(teach, start, tmp_path / "killed", tmp_path / "again", lora)
        time.sleep(rng.uniform(0, seconds / kills))
        process.kill()
        process.join()
        finished += 1
        if process.exitcode == 0:  # it finished before the kill: start over with all kills
            shutil.rmtree(tmp_path / "killed")
            for stale in ("killed.sampled", "again", "again.json"):
                (tmp_path / stale).unlink()
            finished = 0
    assert not (tmp_path / "again").exists()
    process = launch(teach, start, tmp_path / "killed", tmp_path / "again", lora)
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "end").read_bytes()
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "end.json").read_text())
    once, killed = (
        sum(map(json.loads, (tmp_path / f"{n}.sampled").read_text().splitlines())) for n in ("whole", "killed")
    )
    # Only a chunk that was sampled but not yet written at the kill is sampled again.
    assert once == 3 * 20 and killed <= once + 6 * finished
    leftovers = {
        str(p.relative_to(tmp_path / "killed/spin/round-1")) for p in (tmp_path / "killed/spin/round-1").rglob("*")
    }
    samples = {
        f"promoted/step-00000001/{n}"
        for n in ("weights.safetensors", "optimizer.safetensors", "state.json", ".didact.json")
    }
    assert leftovers == {"samples.jsonl", "promoted", "promoted/step-00000001", *samples}


# --- stored samples, and resuming ------------------------------------------------------------


def run(model, demos, folder=None, **changes):
    options = {**HOW, **{k: v for k, v in changes.items() if k in HOW or k in ("loss", "hooks")}}
    fit = {**FIT, "steps": 3, **{k: v for k, v in changes.items() if k not in options}}
    return alignment.spin(model, demos, **options, fit=Fit(folder=str(folder) if folder else None, **fit))


def same(a, b):
    return a.models["model"].fingerprint() == b.models["model"].fingerprint() and a.history == b.history


def test_a_folder_changes_nothing_and_finished_rounds_are_not_played_again(fresh, demos, tmp_path, monkeypatch):
    start = fresh("llama")
    memory, disk = run(start, demos), run(start, demos, tmp_path)
    assert same(memory, disk) and memory.findings == disk.findings

    def forbidden(*args, **kwargs):
        raise AssertionError("sampled or trained again")

    monkeypatch.setattr(generate, "completions", forbidden)
    monkeypatch.setattr("didact.learn.language.train", forbidden)
    again = run(start, demos, tmp_path)
    assert same(memory, again) and again.findings == memory.findings and again.cost.tokens == memory.cost.tokens
    assert [r.rejected for r in again.records] == [r.rejected for r in memory.records]


def test_more_rounds_go_on_after_the_last(fresh, demos, tmp_path):
    start = fresh("gpt2")
    run(start, demos, tmp_path, rounds=1)
    extended = run(start, demos, tmp_path, rounds=3)
    assert same(extended, run(start, demos, rounds=3))
    assert [row["round"] for row in extended.history] == [0] * 3 + [1] * 3 + [2] * 3
    assert [row["step"] for row in extended.history] == list(range(1, 10))


def test_each_round_promotes_another_model_that_the_next_one_starts_from(fresh, demos, tmp_path):
    start = fresh("llama")
    before = start.fingerprint()
    result = run(start, demos, tmp_path)
    assert start.fingerprint() == before
    promoted = [load_file(p) for p in sorted(tmp_path.rglob("promoted/*/weights.safetensors"))]
    assert len(promoted) == 3 and not torch.equal(*(k["model.embed_tokens.weight"] for k in promoted[:2]))
    assert all(torch.equal(v, promoted[2][k]) for k, v in result.models["model"].module.state_dict().items())
    rest = run(copy_with(start, promoted[0]), demos, rounds=1)  # a new run from there has the same opponent
    assert rest.history[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert result.history[3]["margin"] == pytest.approx(0, abs=1e-4) != result.history[2]["margin"]


def copy_with(model, weights):
    other = copy_of(model)
    other.module.load_state_dict(weights)
    return other


def test_other_options_data_or_weights_are_named(fresh, demos, tmp_path):
    start = fresh("llama")
    run(start, demos, tmp_path, rounds=1)
    changed = {
        "loss": lambda: run(start, demos, tmp_path, loss="hinge"),
        "demos": lambda: run(start, demos[:-1], tmp_path),
        "model, weights": lambda: run(fresh("llama", seed=1), demos, tmp_path),
        "lr": lambda: run(start, demos, tmp_path, lr=1e-4),
        "hooks": lambda: run(start, demos, tmp_path, hooks=[Hook()]),
    }
    for name, call in changed.items():
        with pytest.raises(UserError, match=f"rounds with another {name} were begun here") as error:
            call()
        assert "\n" not in str(error.value)
    run(start, demos, tmp_path, micro_tokens=64, save_every=2, rounds=1)  # options that only affect memory may change


def test_a_chunk_that_was_cut_by_a_kill_is_made_again_and_whole_ones_are_not(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "CHUNK", 4)
    current, requests = rounds.Round(0, fresh("llama"), Fit(), tmp_path), []

    def make(start, stop):
        requests.append((start, stop))
        return [{"n": i} for i in range(start, stop)]

    assert current.chunks("toy", 10, make) == [{"n": i} for i in range(10)] == current.chunks("toy", 10, make)
    assert requests == [(0, 4), (4, 8), (8, 10)]
    path = tmp_path / "toy.jsonl"
    path.write_bytes(path.read_bytes()[:-14])  # killed while writing line 9 of 10
    assert current.chunks("toy", 10, make) == [{"n": i} for i in range(10)]
    assert requests[3:] == [(8, 10)] and len(path.read_text().splitlines()) == 10


def test_samples_depend_on_seed_and_place_only(fresh, monkeypatch):
    model = fresh("gpt2")
    prompts = [encode.prompt_ids(model.tokenizer, f"Where was {n} born?", "causal") for n in "ABCDEF"]
    config = generate.SamplingConfig(max_new_tokens=6, temperature=1.0)

    def drawn(seed, n):
        return [[c.tokens for c in row] for row in rounds.Round(0, model, Fit(seed=seed)).samples(prompts, n, config)]

    one, two = drawn(3, 1), drawn(3, 2)
    assert [row[:1] for row in two] == one and one != [row[1:] for row in two]
    assert drawn(4, 1) != one
    monkeypatch.setattr(rounds, "CHUNK", 3)
    assert drawn(3, 1)[:3] == one[:3] and drawn(3, 1) == drawn(3, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
def test_rounds_take_turns_through_shuffled_passes(size, count, number, seed):
    order = [i for n in range(number + 1) for i in rounds.turn(n, size, count, seed)]
    assert len(order) == (number + 1) * size
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    assert sorted(order[len(order) // count * count :]) == sorted(set(order[len(order) // count * count :]))
    assert rounds.turn(number, size, count, seed) == order[number * size :]


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_merged_adapter_says_what_the_adapter_said(arch, fresh, demos):
    start = fresh(arch)
    recorded = []
    rows = encode.rows(start.tokenizer, [(d.prompt, d.completion) for d in demos], "causal", start.context)

    class Look(Hook):
        def after(self, step):
            from didact.models.model import Model

            if step.step + 1 == step.steps:
                recorded.append(forward.row_logp(Model(step.module, start.processor), rows)[0])

    result = run(start, demos, rounds=2, lora=4, lr=1e-2, hooks=[Look()])
    merged = forward.row_logp(result.models["model"], rows)[0]
    assert torch.allclose(recorded[-1], merged, atol=1e-4) and not torch.allclose(recorded[0], merged, atol=1e-2)
    assert type(result.models["model"].module) is type(start.module)
    assert {n for n, _ in result.models["model"].module.named_parameters()} == dict(
        start.module.named_parameters()
    ).keys()
    # The opponent of round 1 is the merged model, not the base under the new adapter.
    assert result.history[3]["spin"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)


def test_a_demonstration_is_cut_as_a_sample_is(fresh):
    model = fresh("llama", context=32)
    eos = model.tokenizer.eos_token_id
    short, long = TokenizedExample((5, 6), (7, 8, eos)), TokenizedExample((5, 6), (*range(10, 22), eos))
    assert rounds.as_sampled(short, model, 8) == short
    assert rounds.as_sampled(long, model, 8) == TokenizedExample((5, 6), tuple(range(10, 18)))
    wide = TokenizedExample((model.tokenizer.bos_token_id, *range(30, 56)), (7, 8, eos))
    cut = rounds.as_sampled(wide, model, 10)
    assert cut.prompt == (model.tokenizer.bos_token_id, *range(35, 56)) and len(cut.prompt) + 10 == 32
    samples = rounds.Round(0, model, Fit()).samples(
        [cut.prompt, wide.prompt[-24:]], 1, generate.SamplingConfig(max_new_tokens=10)
    )
    assert len(samples[0][0].tokens) <= 10  # generation reads the same prompt and stops at the same place


def test_training_is_calm(fresh):
    model = fresh("gpt2", dropout=0.5)
    result = run(model, [Demo(prompt="Where?", completion="Tarn"), Demo(prompt="Who?", completion="Mira")], rounds=1)
    assert result.history[0]["margin"] == pytest.approx(0, abs=1e-5)

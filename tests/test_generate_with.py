"""Rounds sampled by a server: loading the weights, the probe that checks them, and the cache."""

import contextlib
import io
import json
import os
import signal
import time

import pytest
import torch
from vllm_like import FORK, Vllm

import didact
from didact import cli, files
from didact.infer import engines, generate, handover, served
from didact.infer.generate import SamplingConfig
from didact.models import adapters
from didact.models.load import load
from didact.models.model import copy_of
from didact.types import Fit, UserError, as_row

FIT = Fit(lr=2e-2, epochs=1, rows=8, lora=4)
SHORT = ["--rounds", "2", "--rows", "8", "--lr", "1e-2", "--epochs", "1", "--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """A separate cache and working folder; nothing else may be removed from that folder."""
    monkeypatch.setenv("DIDACT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["file"]


@pytest.fixture(scope="module")
def folder(fresh, tmp_path_factory):
    """A model's folder and a file of demonstrations."""
    path = tmp_path_factory.mktemp("model")
    fresh("llama", d=32, initializer_range=0.3, tie_word_embeddings=False).save(path / "model")
    return path


@pytest.fixture(scope="module")
def demos(world, folder):
    files.write_lines(folder / "demos.jsonl", (as_row(d) for d in world.retain[:14]))
    return folder / "demos.jsonl"


@pytest.fixture(scope="module")
def started(folder, tmp_path_factory):
    server = Vllm(tmp_path_factory.mktemp("server"), folder / "model")
    yield server
    server.kill()


@pytest.fixture
def server(started):
    """The server, without faults or earlier requests."""
    started.ways()
    started.log.unlink(missing_ok=True)
    return started


@pytest.fixture
def model(folder):
    return load(folder / "model", device="cpu")


def run(words):
    """Run `didact run spin`; return its exit code and output."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        code = cli.main(["run", *map(str, words)])
    return code, stdout.getvalue()


def spin(folder, demos, url, out, *more):
    return run(
        ["spin", "--model", folder / "model", "--demos", demos, "--generate-with", url, "--out", out, *SHORT, *more]
    )


# --- the server computes what the model does ---------------------------------------------------------------


@pytest.mark.parametrize("fit", [FIT, Fit(lr=2e-2, epochs=1, rows=8)], ids=["adapter", "whole weights"])
def test_rounds_are_sampled_by_the_weights_of_their_round(server, model, world, fit, monkeypatch):
    """In every round the server's greedy answers and log-probs equal those of the round's own model."""
    models_seen, config = [], SamplingConfig(max_new_tokens=8)
    ids = [[1, 5, 9, 20], [1, 7], [1, 30, 31]]
    take = served.Served.take

    def watched(self, round_model, digest):
        take(self, round_model, digest)
        models_seen.append(round_model)

    monkeypatch.setattr(served.Served, "take", watched)
    with didact.generating(server.url) as engine:
        result = didact.alignment.spin(model, world.retain[:8], rounds=2, max_new_tokens=6, fit=fit)
        assert engine.probes == 4 and engine.gap < 1e-4  # the initial state, the rehearsal, two rounds
        for current in (models_seen[-1], model):
            with engines.collecting(current):
                remote = generate.completions(current, ids, 2, config, keys=[3, 4, 5])
            local = generate.completions(current, ids, 2, config, keys=[3, 4, 5])
            assert [[c.tokens for c in row] for row in remote] == [[c.tokens for c in row] for row in local]
            assert [c.logp for row in remote for c in row] == pytest.approx(
                [c.logp for row in local for c in row], abs=1e-4
            )
    models = [row["model"] for row in server.asked()]
    assert len(dict.fromkeys(models)) == (3 if fit.lora else 1)  # the base, the rehearsal, a round; or reloaded
    assert len(result.records) == 2 * 8
    with didact.generating(server.url) as engine:
        engine.begin(model, FIT)  # it was restored at the end, else the probe of the start model would fail


def test_draws_follow_from_the_seed_and_end_as_a_local_models_do(server, model):
    config = SamplingConfig(max_new_tokens=8, temperature=1.0, seed=3)
    ids, ends = [[1, 5, 9], [1, 5, 9], [1, 7]], generate.ends(model)
    with didact.generating(server.url) as engine:
        engine.begin(model, FIT)
        with engines.collecting(model):
            completions = generate.completions(model, ids, 11, config)
            few = generate.completions(model, ids, 2, config)
            closed = generate.completions(model, ids, 4, SamplingConfig(**vars(config) | {"closing": range(0, 300)}))
    assert [row[:2] for row in completions] == few and len({c.tokens for c in completions[0]}) > 5
    assert completions[0] != completions[1]  # equal prompts do not share their draws
    assert all(c.tokens[-1] in ends or len(c.tokens) == 8 for row in completions for c in row)
    assert all(t not in range(0, 300) for row in closed for c in row for t in c.tokens[:-1])


# --- weights as an adapter -------------------------------------------------------------------------------


def test_adapters_merged_one_after_another_are_told_apart_exactly(model):
    def more(start, rank, seed):
        trial = adapters.lora(copy_of(start), rank, seed=seed)
        torch.manual_seed(seed)
        for name, weight in trial.module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return adapters.merged(trial)

    merged = more(more(model, 2, 1), 3, 2)
    result = handover.difference(merged, model)
    assert result and {b.shape[1] for b, _ in result.values()} == {5}
    for name, (b, a) in result.items():
        change = merged.module.get_submodule(name).weight - model.module.get_submodule(name).weight
        assert torch.allclose(b @ a, change, atol=1e-5)
    assert handover.difference(model, model) == {}
    with torch.no_grad():
        merged.module.get_submodule("model.norm").weight[0] += 1e-3
    assert handover.difference(merged, model) is None  # no adapter changes a norm


# --- refused before any training ---------------------------------------------------------------------------


REFUSED = {
    "another model": ({}, ["--lora", "4"], "is another model"),
    "no way in": (
        {"adapters": "off", "reload": "off"},
        ["--lora", "4"],
        "cannot be given an adapter: start it with --enable",
    ),
    "no way in for whole weights": ({"reload": "off"}, [], "cannot be given whole weights"),
    "adapters ignored": ({"adapters": "ignored"}, ["--lora", "4"], "after it was given the weights its log-probs"),
    "reload ignored": ({"reload": "ignored"}, [], "after it was given the weights its log-probs"),
    "a folder it cannot see": ({"sees": False}, ["--lora", "4"], "it did not load the adapter in /"),
    "the same of whole weights": ({"sees": False}, [], "it could not reload /"),
    "ranks it has no room for": ({"rank": 2}, ["--lora", "4"], "greater than max_lora_rank 2"),
    "no token ids": ({"ids": False}, ["--lora", "4"], "returns no token ids"),
    "log-probs after temperature": (
        {"logps": "processed"},
        ["--lora", "4"],
        "log-probs on fixed prompts differ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_server_that_cannot_be_trusted_stops_the_run_in_one_line(server, folder, demos, fresh, tmp_path, case):
    ways, extra, line = REFUSED[case]
    server.ways(**ways)
    if case == "another model":
        fresh("llama", d=32, initializer_range=0.3).save(tmp_path / "other" / "model")
        folder = tmp_path / "other"
    code, output = spin(folder, demos, server.url, tmp_path / "out", *extra)
    messages = [row for row in output.splitlines() if row.startswith("didact: ")]
    assert code == 2 and len(messages) == 1 and line in messages[0] and "Traceback" not in output
    assert not list((tmp_path / "out").rglob("step-*")) and not list((tmp_path / "out").rglob("samples.jsonl"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["spin", "--generate-with", "http://127.0.0.1:9/v1"], "is the server there?"),
        (["spin", "--generate-with", "127.0.0.1:8000"], "an address such as http://localhost:8000/v1"),
        (
            ["sft", "--generate-with", "http://127.0.0.1:9/v1"],
            "sft does not sample while it trains; d2o, ilf, infalign",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(folder, demos, tmp_path, words, line):
    code, output = run(
        [*words, "--model", folder / "model", "--demos", demos, "--out", tmp_path / "out", "--rows", "8"]
    )
    assert code == 2 and line in output.splitlines()[-1]


def test_the_flag_is_listed_where_it_serves():
    assert "--generate-with" in run(["spin", "--help"])[1] and "--generate-with" not in run(["sft", "--help"])[1]


def test_weights_that_the_server_loses_under_way_stop_the_next_round(server, model, world, tmp_path):
    def sabotaged(*args, **more):
        server.ways(adapters="ignored")
        return train(*args, **more)

    from didact.learn import pairs

    train, patch = pairs.train, pytest.MonkeyPatch()
    patch.setattr(pairs, "train", sabotaged)
    try:
        with didact.generating(server.url), pytest.raises(UserError, match="after it was given the weights"):
            didact.alignment.spin(model, world.retain[:8], rounds=2, max_new_tokens=6, fit=FIT)
    finally:
        patch.undo()


def test_a_failed_rehearsal_leaves_the_server_with_its_own_weights(server, model, monkeypatch):
    gaps = iter([0.0, 1.0])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="after it was given the weights"):
        patch.setattr(served.Served, "probe", lambda self, model: next(gaps))
        served.Served(server.url).begin(model, Fit())
    served.Served(server.url).begin(model, FIT)  # with an adapter the server's own weights must be the model's


# --- the cache ---------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice_after_a_kill(server, folder, demos, tmp_path):
    arguments = (folder, demos, server.url, tmp_path / "out", "--lora", "4", "--parallel-calls", "2", "--rounds", "1")
    server.ways(slow=0.1)
    child = FORK.Process(target=lambda: os._exit(spin(*arguments)[0]))
    child.start()

    def kept():
        return [row for row in server.asked() if row["slow"] and len(row["prompt"]) > 0]

    probed = 8 * 2  # probes of the start model and of the rehearsal
    for _ in range(300):
        if len(kept()) >= probed + 8 + 5:  # round 0's own probe, then five answers
            break
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    before = kept()[probed + 8 :]
    server.ways()
    server.log.unlink()
    assert spin(*arguments)[0] == 0

    def first(rows):
        return [(tuple(r["prompt"]), r["seed"]) for r in rows if r["model"] == "small"]

    after = first(server.asked()[16:])
    again = set(first(before)) & set(after)
    assert len(before) >= 5 and len(again) <= 2  # requests in flight when it was killed
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    warning = next(w for w in result["warnings"] if "answers from the cache" in w)
    assert int(warning.split(" tokens, ")[1].split()[0]) >= len(before) - 2
    whole = spin(folder, demos, server.url, tmp_path / "whole", "--lora", "4", "--rounds", "1")
    assert whole[0] == 0
    assert (tmp_path / "whole" / "records.jsonl").read_bytes() == (tmp_path / "out" / "records.jsonl").read_bytes()


@pytest.mark.soak
def test_a_real_server_samples_in_rounds(tmp_path, demos):
    """`DIDACT_VLLM` names one started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""
    import urllib.request

    if "DIDACT_VLLM" not in os.environ:
        pytest.skip("DIDACT_VLLM names no vLLM server (http://127.0.0.1:8000/v1#NAME)")
    url, _, _ = os.environ["DIDACT_VLLM"].partition("#")
    root = json.loads(urllib.request.urlopen(f"{url}/models").read())["data"][0]["root"]
    command = ["spin", "--model", root, "--demos", demos, "--generate-with", os.environ["DIDACT_VLLM"], "--lora", "4"]
    code, output = run([*command, "--out", tmp_path / "out", *SHORT])
    assert code == 0, output
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert any("within" in w and "sampled" in w for w in saved["warnings"]) and saved["cost"]["calls"] > 0

"""A run killed at any time and resumed ends bit-identical; a full disk costs only the last checkpoint.

Runs are forked from a server that has imported everything, so that starting is fast and a SIGKILL
hits training, not imports. They use one thread, which bit-identical results need.
"""

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from killed import Count, die_after, launch
from safetensors.torch import load_file, save_file

from didact import baselines, cli, files, unlearning
from didact.data import chat, encode
from didact.data.streams import Tensors
from didact.learn import checkpoint, language
from didact.learn import fit as loop
from didact.learn.fit import Hook, Term
from didact.models.load import load
from didact.types import Fit, UserError
from didact.worlds.authors import authors

STEPS = 40
CASES = {
    "gpt2-dropout": {"lr": 1e-2, "schedule": "cosine"},
    "llama-lora-npo": {"lr": 1e-2, "schedule": "linear", "lora": 2},
}


def train(case, start, folder, out, started=None):
    """Run the whole training as a user's process does; write the final weights to `out`."""
    os.environ["DIDACT_CACHE"] = "off"
    torch.set_num_threads(1)
    world, count = authors(0, forget=1, retain=1, unseen=0, holdout=0), Count()
    model = load(start, device="cpu")
    fit = Fit(steps=STEPS, rows=4, save_every=1, folder=str(folder), **CASES[case])
    if started is not None:
        started.set()
    if case == "gpt2-dropout":
        result = baselines.sft(model, world.forget, fit=fit, hooks=[count])
    else:
        result = unlearning.npo(model, world.forget, world.retain, fit=fit, hooks=[count])
    trained = {n: p.detach().clone() for n, p in result.models["model"].module.named_parameters() if p.requires_grad}
    save_file(trained, str(out))
    files.write_json(f"{out}.json", {"history": result.history, "sum": count.sum, "tokens": result.cost.tokens})


def newest(folder):
    return max((int(p.name.split("-")[1]) for p in folder.glob("*/step-*")), default=0)


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory):
    """`undisturbed(case)`: the start model's folder, the final weights of a run without kills, and its duration."""
    cache = {}

    def get(case):
        if case not in cache:
            root = tmp_path_factory.mktemp(case)
            start = root / "start"
            start.mkdir()
            fresh("gpt2", dropout=0.2).save(start) if case == "gpt2-dropout" else fresh("llama").save(start)
            process = launch(train, case, start, root / "folder", root / "end")
            start_time = time.monotonic()
            process.join()
            assert process.exitcode == 0
            cache[case] = start, root / "end", time.monotonic() - start_time
        return cache[case]

    return get


def killed_again_and_again(case, kills, undisturbed, folder, seed):
    """Each kill comes a random time after a random remaining step, so also during saving and clean-up."""
    start, _, seconds = undisturbed(case)
    rng = random.Random(seed)
    finished = 0
    while finished < kills:
        process = launch(train, case, start, folder / "run", folder / "end")
        at = newest(folder / "run")
        target = rng.randint(at, at + (STEPS - at) // (kills - finished + 1))
        while newest(folder / "run") < target and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 2 * seconds / STEPS))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:  # it finished before the kill, which is still to be done
            shutil.rmtree(folder / "run")
            (folder / "end").unlink()
            continue
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "end").exists()
        finished += 1
    process = launch(train, case, start, folder / "run", folder / "end")
    process.join()
    assert process.exitcode == 0


def same_end(end, folder):
    assert (folder / "end").read_bytes() == end.read_bytes()  # bit-identical
    theirs, mine = (json.loads(p.with_name("end.json").read_text()) for p in (end, folder / "end"))
    assert mine == theirs and [row["step"] for row in mine["history"]] == list(range(1, STEPS + 1))
    assert {p.name for p in (folder / "run").rglob("step-*")} == {f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"}
    assert {p.name for p in (folder / "run").rglob(".*")} == {".didact.json", ".didact-lock"}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(case, kills, undisturbed, tmp_path):
    killed_again_and_again(case, kills, undisturbed, tmp_path, seed=time.time_ns())
    same_end(undisturbed(case)[1], tmp_path)


# --- leftovers of a kill, and checkpoints that must not be resumed ---------------------------


class Dot(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3, 3))


def run(folder, steps=4, module=None, hooks=(), identity=None, **options):
    module = Dot() if module is None else module
    fit = Fit(**{"lr": 0.1, "schedule": "constant", "folder": str(folder), "save_every": 1} | options)

    def loss(module, batch):
        return {"l": Term((module.w - batch["x"][:, None]).square().sum(), "rows")}

    batch = Tensors({"x": torch.ones(2, 1)})
    history, _ = loop.fit(
        module, lambda s: batch, loss, fit, hooks, steps=steps, identity=identity, name="toy", quiet=True
    )
    return module, history


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, history = run(tmp_path)
    again, same = run(tmp_path)
    assert torch.equal(first.w, again.w) and same == history and len(history) == 4


def test_what_a_kill_in_writing_leaves_is_removed_and_the_last_two_are_kept(tmp_path):
    weights, _ = run(tmp_path)
    half = tmp_path / "toy/.didact-tmp-0123abcd-step-00000005"  # killed while writing the next
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    again, _ = run(tmp_path)
    assert torch.equal(again.w, weights.w)
    assert {p.name for p in (tmp_path / "toy").glob("*step-*")} == {"step-00000003", "step-00000004"}


class Signal(Hook):
    """Raises a signal in this step, as a user or a scheduler may at any time."""

    def __init__(self, signum, at):
        self.signum, self.at = signum, at

    def before(self, step):
        if step.step + 1 == self.at:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_once_the_step_at_work_is_kept(signum, tmp_path, monkeypatch):
    """A signal between two checkpoints; the resumed run ends bit-identical to an undisturbed one."""
    received = []
    before = signal.signal(signum, lambda *args: received.append(args[0]))
    try:
        run(tmp_path / "b", save_every=None, hooks=[Signal(signum, at=2)])
    finally:
        signal.signal(signum, before)
    assert received == [signum] and [p.name for p in (tmp_path / "b/toy").glob("*step-*")] == ["step-00000002"]
    assert checkpoint.resume_message(tmp_path) == "the same command resumes from step 2 of b/toy"
    again, history = run(tmp_path / "b", hooks=[Hook()])
    alone, whole = run(tmp_path / "a")
    assert torch.equal(again.w, alone.w) and history == whole


def test_checkpoints_are_written_by_time(tmp_path):
    class Slow(Hook):
        def after(self, step):
            time.sleep(0.03)

    run(tmp_path, steps=3, save_every=None, save_minutes=0.01 / 60, hooks=[Slow()])
    assert len(list((tmp_path / "toy").glob("*step-*"))) == 2
    run(tmp_path / "rare", steps=3, save_every=None, hooks=[Slow()])
    assert [p.name for p in (tmp_path / "rare/toy").glob("*step-*")] == ["step-00000003"]


def flipped(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def as_directory(path):
    path.unlink()
    path.mkdir()


def as_file(path):
    shutil.rmtree(path)
    path.write_text("x")


def resealed(folder, name, text):
    """Checksums match, but the content is not a valid checkpoint: another version wrote it."""
    (folder / name).write_text(text)
    files._seal(folder)


DAMAGES = {
    "truncated weights": lambda p: os.truncate(p / "weights.safetensors", 50),
    "a flipped bit in the weights": lambda p: flipped(p / "weights.safetensors", -1),
    "a flipped bit in the moments": lambda p: flipped(p / "optimizer.safetensors", -1),
    "a flipped digit in the state": lambda p: flipped(p / "state.json", -4),
    "weights are missing": lambda p: (p / "weights.safetensors").unlink(),
    "state is missing": lambda p: (p / "state.json").unlink(),
    "state is no JSON": lambda p: (p / "state.json").write_text("{"),
    "state is empty": lambda p: (p / "state.json").write_text(""),
    "state is not text": lambda p: (p / "state.json").write_bytes(b"\xff\xfe\0"),
    "a directory in place of weights": lambda p: as_directory(p / "weights.safetensors"),
    "a directory in place of the state": lambda p: as_directory(p / "state.json"),
    "a file in place of all": as_file,
    "an empty folder": lambda p: [q.unlink() for q in p.iterdir()],
    "the seal is missing": lambda p: (p / ".didact.json").unlink(),
    "the seal is damaged": lambda p: flipped(p / ".didact.json", 0),
    "a state of another version": lambda p: resealed(p, "state.json", '{"identity": {}, "step": 4, "era": 2}'),
    "a state without identity": lambda p: resealed(p, "state.json", '{"step": 4}'),
    "a state that is a list": lambda p: resealed(p, "state.json", "[]"),
    "weights of another kind": lambda p: resealed(p, "weights.safetensors", "pickled"),
    "a seal of another version": lambda p: (p / ".didact.json").write_text('{"kind": "files", "version": 9}'),
    "a link that leads nowhere": lambda p: (
        (p / "weights.safetensors").unlink(), (p / "weights.safetensors").symlink_to("/nowhere"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(how, tmp_path, capsys):
    weights, history = run(tmp_path)
    DAMAGES[how](tmp_path / "toy/step-00000004")
    again, same = run(tmp_path)
    assert torch.equal(again.w, weights.w) and same == history
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("didact: ")]
    assert "step-00000004: " in message and message.endswith("resuming from step-00000003")
    assert {p.name for p in (tmp_path / "toy").glob("*step-*")} == {
        "damaged-step-00000004",
        "step-00000003",
        "step-00000004",
    }
    DAMAGES[how](tmp_path / "toy/step-00000003")
    DAMAGES[how](tmp_path / "toy/step-00000004")
    assert complaint(tmp_path).startswith(f"{tmp_path / 'toy'}: no checkpoint can be read (step-00000004: ")
    assert complaint(tmp_path).endswith("; remove this folder to start over")


def test_a_run_stopped_by_a_hook_stays_stopped(tmp_path):
    class Stop(Hook):
        def after(self, step):
            return step.step == 1

    stopped, history = run(tmp_path, hooks=[Stop()])
    again, same = run(tmp_path, hooks=[Stop()])
    assert len(history) == 2 and same == history and torch.equal(stopped.w, again.w)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor"])
def test_every_optimizer_goes_on_with_the_bits_it_stopped_with(optimizer, tmp_path):
    class Dies(Hook):
        def before(self, step):
            if step.step == 3:
                raise KeyboardInterrupt

    options = {"steps": 6, "optimizer": optimizer, "save_every": 2}
    whole, history = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", **options, hooks=[Dies()])
    part, same = run(tmp_path / "part", **options, hooks=[Hook()])
    assert history == same and torch.equal(whole.w, part.w) and not torch.equal(whole.w, torch.zeros(3, 3))


def complaint(*args, **options):
    with pytest.raises(UserError) as error:
        run(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_changed_option_is_named(tmp_path):
    run(tmp_path, identity={"beta": 0.1})
    assert complaint(tmp_path, lr=0.2, identity={"beta": 0.1}).startswith(f"{tmp_path / 'toy'}: a run with another lr ")
    assert " steps " in complaint(tmp_path, steps=5, identity={"beta": 0.1})
    message = complaint(tmp_path, betas=(0.5, 0.5), identity={"beta": 0.2})
    assert "a run with another betas, beta was begun here" in message
    assert "finish it, choose another --out, or remove the folder" in message


def test_what_only_costs_memory_may_change(tmp_path):
    first, _ = run(tmp_path, steps=4)
    again, _ = run(tmp_path, steps=4, micro_tokens=1, save_every=3)
    assert torch.equal(first.w, again.w)


def test_another_number_of_hooks_is_an_error_and_not_a_crash(tmp_path):
    run(tmp_path, hooks=[Count()])
    assert "hooks" in complaint(tmp_path, hooks=[])


@pytest.mark.parametrize("changed", ["forget", "retain", "model", "beta"])
def test_changed_arguments_of_a_method_are_named(changed, fresh, tmp_path):
    world = authors(0, forget=1, retain=1, unseen=0, holdout=0)
    arguments = {"model": fresh("llama"), "forget": world.forget, "retain": world.retain, "beta": 0.1}
    fit = Fit(lr=1e-3, steps=2, rows=2, folder=str(tmp_path))
    unlearning.npo(**arguments, fit=fit)
    other = authors(1, forget=1, retain=1, unseen=0, holdout=0)
    news = {"model": fresh("llama", seed=1), "beta": 0.2}
    arguments[changed] = news[changed] if changed in news else [*arguments[changed][:-1], other.forget[-1]]
    with pytest.raises(UserError, match=f"a run with another {changed}(, weights)? was begun here"):
        unlearning.npo(**arguments, fit=fit)


def test_changed_records_are_named_where_no_method_was_called(fresh, tmp_path):
    model, fit = fresh("llama"), Fit(lr=1e-3, steps=1, rows=1, folder=str(tmp_path))
    for text in ("a", "b"):
        rows = language.single(encode.rows(model.tokenizer, [("q", text)], model.kind, model.context, "rows"))
        refused = pytest.raises(UserError, match="a run with another data was begun here")
        with refused if text == "b" else contextlib.nullcontext():
            language.train(model, {"rows": rows}, language.nll, fit)


# --- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; skipped where this process may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def survives(folder, message, step):
    name = f"step-{step:08d}"
    assert message.startswith(f"{folder / 'toy'}: saving failed: ")
    assert f"the checkpoint {name} before it is intact and the same command resumes from it" in message
    assert [p.name for p in (folder / "toy").glob("*step-*")] == [name]
    weights, state = checkpoint.load(
        folder / "toy", json.loads((folder / "toy" / name / "state.json").read_text())["identity"]
    )
    assert state.step == step and weights["w"].shape == (3, 3)


class Fill(Hook):
    """Fills the disk before step 2: later the oldest checkpoint makes room for the next."""

    def __init__(self, folder):
        self.folder = folder

    def before(self, step):
        if step.step == 1:
            with contextlib.suppress(OSError), open(self.folder / "ballast", "wb", buffering=0) as file:
                while file.write(b"\1" * 1024):
                    pass


def test_a_full_disk_costs_only_the_last_checkpoint(small_disk):
    message = complaint(small_disk, hooks=[Fill(small_disk)])
    assert "the disk is full" in message
    survives(small_disk, message, 1)
    (small_disk / "ballast").unlink()
    resumed, history = run(small_disk, hooks=[Hook()])
    whole, _ = run(small_disk / "other", hooks=[Hook()])
    assert len(history) == 4 and torch.equal(resumed.w, whole.w)


def test_a_full_disk_from_the_start_says_that_nothing_was_kept(small_disk):
    Fill(small_disk).before(loop.Step(None, 1, 4, {}, None, None, None))
    assert "cannot be written: No space left on device" in complaint(small_disk)


class Shrink(Hook):
    """Limits files to 64 bytes from step 3 on: the effect of a quota, without privileges."""

    def before(self, step):
        if step.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_write_that_fails_for_another_reason_keeps_the_checkpoint_too(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        message = complaint(tmp_path, hooks=[Shrink()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "too large" in message
    survives(tmp_path, message, 2)


def test_weights_and_moments_come_back_to_the_bit(tmp_path):
    module, _ = run(tmp_path, optimizer="adamw")
    path = tmp_path / "toy/step-00000004"
    assert torch.equal(load_file(path / "weights.safetensors")["w"], module.w)
    assert set(load_file(path / "optimizer.safetensors")) == {"w|step", "w|exp_avg", "w|exp_avg_sq"}


def test_a_run_whose_template_writes_the_date_goes_on_on_another_day_to_the_same_bits(fresh, tmp_path, monkeypatch):
    model = copy.deepcopy(fresh("llama"))
    model.processor.chat_template = (
        "{{ strftime_now('%d %B %Y') }}{% for m in messages %}\n{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}\nassistant: {% endif %}"
    )
    (tmp_path / "start").mkdir()
    model.save(tmp_path / "start")
    turn = [{"role": "user", "content": "Where was Mira born?"}]
    files.write_lines(tmp_path / "demos.jsonl", [{"prompt": turn, "completion": f"Tarn {i}"} for i in range(4)])
    command = ["run", "sft", "--model", str(tmp_path / "start"), "--demos", str(tmp_path / "demos.jsonl"), "--steps=3"]
    command += ["--rows=2", "--save-every=1", "--lr=1e-2", "--device=cpu", "--out"]
    process = launch(die_after, 2, [*command, str(tmp_path / "killed")])
    process.join()
    started = files.read_json(tmp_path / "killed" / "result.json")["began"]
    monkeypatch.setattr(chat, "today", lambda: "1999-12-31T23:59:59")
    assert cli.main([*command, str(tmp_path / "killed")]) == 0
    other = tmp_path / "other day"
    assert cli.main([*command, str(other)]) == 0
    monkeypatch.setattr(chat, "today", lambda: started)
    assert cli.main([*command, str(tmp_path / "whole")]) == 0
    weights = {
        p: (p / "model" / "model.safetensors").read_bytes() for p in tmp_path.iterdir() if (p / "model").exists()
    }
    assert weights[tmp_path / "killed"] == weights[tmp_path / "whole"] != weights[other]
    assert files.read_json(tmp_path / "killed" / "result.json")["began"] == started

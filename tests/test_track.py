"""Trackers log the columns of history.jsonl, once per step, also when a run is killed and resumed."""

import importlib.util
import json
import struct

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from didact.data.streams import Tensors
from didact.learn import fit as loop
from didact.learn import track
from didact.learn.fit import Hook, Term
from didact.types import Fit, UserError

FIT = Fit(lr=0.1, optimizer="sgd", save_every=2, schedule="constant")


class Killed(Exception):  # noqa: N818
    pass


class KillAt(Hook):
    def __init__(self, step):
        self.step = step

    def before(self, step):
        if step.step == self.step:
            raise Killed


def train(hooks, steps=5, fit=FIT, name="train"):
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)

    def batch_at(step):
        return Tensors({"x": torch.tensor([[1.0, step], [step, 2.0]])})

    def loss(module, batch):
        return {"square": Term(module(batch["x"]).square().sum(), "rows")}

    history, _ = loop.fit(module, batch_at, loss, fit, hooks, steps=steps, name=name, quiet=True)
    return history


def curves(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(history):
    names = set(history[0]) - {"step"}
    return {n: [(i, pytest.approx(row[n], rel=1e-6)) for i, row in enumerate(history, 1)] for n in names}


def test_tensorboard_has_every_column_of_the_history_at_every_step(tmp_path):
    history = train([track.tracker("tensorboard", tmp_path, {"lr": 0.1, "nested": {"a": [1]}})])
    actual = curves(tmp_path)
    assert actual == expected(history) and {"loss", "square", "grad_norm", "lr"} <= set(actual)
    assert actual["loss"][0][1] != actual["loss"][-1][1]


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path):
    fit = FIT.replace(folder=str(tmp_path / "checkpoints"))
    with pytest.raises(Killed):  # after four steps, with the checkpoint of the fourth
        train([track.tracker("tensorboard", tmp_path, {}), KillAt(4)], fit=fit)
    history = train([track.tracker("tensorboard", tmp_path, {}), KillAt(None)], fit=fit)
    assert len(history) == 5 and curves(tmp_path) == expected(history)


def test_a_run_killed_between_checkpoints_replaces_what_it_logged_after_the_last(tmp_path):
    fit = FIT.replace(folder=str(tmp_path / "checkpoints"))
    with pytest.raises(Killed):  # after three steps: the third is logged, but not in a checkpoint
        train([track.tracker("tensorboard", tmp_path, {}), KillAt(3)], fit=fit)
    assert len(curves(tmp_path)["loss"]) == 3
    history = train([track.tracker("tensorboard", tmp_path, {}), KillAt(None)], fit=fit)
    assert curves(tmp_path) == expected(history)


def test_the_phases_of_a_run_are_one_curve(tmp_path):
    hook = track.tracker("tensorboard", tmp_path, {})
    first, second = train([hook], steps=3, name="one"), train([hook], steps=2, name="two")
    assert curves(tmp_path) == expected(first + second)


def test_training_is_the_same_with_a_tracker_and_without(tmp_path):
    assert train([track.tracker("tensorboard", tmp_path, {})]) == train([])


def logged(file):
    """Return the rows in an offline run's file: after 7 bytes, records of checksum, length, type and message."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, rows = file.read_bytes(), 7, []
    assert raw[:4] == b":W&B" and len(raw) < 1 << 15  # one block: no record is split
    while at < len(raw):
        _, length, _ = struct.unpack_from("<IHB", raw, at)
        record = Record.FromString(raw[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append(row | {"step": row["_step"]})
    return rows


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_an_offline_run_that_holds_the_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    hook = track.tracker("wandb", tmp_path, {"lr": 0.1, "nested": {"a": [1]}})
    history = train([hook])
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0 and hook.state() == {"steps": 5, "run": file.stem.removeprefix("run-")}
    assert [{name: row[name] for name in history[0]} for row in logged(file)] == [
        row | {"step": i} for i, row in enumerate(history, 1)
    ]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch, kind):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == kind else real(name, *more))
    with pytest.raises(UserError) as error:
        track.tracker(kind, tmp_path, {})
    assert str(error.value) == f"--track {kind}: the package {kind} is missing: pip install didact[track]"


def test_an_unknown_tracker_lists_those_there_are(tmp_path):
    with pytest.raises(UserError, match="use tensorboard or wandb"):
        track.tracker("mlflow", tmp_path, {})

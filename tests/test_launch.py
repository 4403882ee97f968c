"""A launcher's settings: followed, or refused in one line before any work."""

import json
import os
import subprocess
import sys

import pytest
import torch

from didact import baselines, cli
from didact.models import load
from didact.parallel import launch
from didact.types import Demo, Fit, UserError


@pytest.mark.parametrize(
    ("env", "precision", "message"),
    [({"ACCELERATE_USE_FSDP": "true"}, None, "FSDP"), ({"ACCELERATE_USE_DEEPSPEED": "true"}, "float32", "DeepSpeed"),
     ({"ACCELERATE_USE_MEGATRON_LM": "true"}, None, "Megatron-LM"),
     ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, None, "parallelism configuration"),
     ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, None, "torch.compile"),
     ({"ACCELERATE_MIXED_PRECISION": "fp16"}, None, "asks for fp16"),
     ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "float32", "--precision bfloat16"),
     ({"WORLD_SIZE": "two"}, None, "WORLD_SIZE")],
)  # fmt: skip
def test_a_configuration_that_is_not_honoured_is_refused(env, precision, message):
    with pytest.raises(UserError, match=message) as error:
        launch.check(precision, env)
        launch.alone("compare", env)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env", "precision"),
    [({}, "float32"), ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, "bfloat16"),
     ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bfloat16"), ({"ACCELERATE_MIXED_PRECISION": "bf16"}, None),
     ({"ACCELERATE_USE_FSDP": "false"}, None)],
)  # fmt: skip
def test_what_is_honoured_passes(env, precision):
    launch.check(precision, env)


def test_every_process_of_a_node_has_a_device_of_its_own():
    assert launch.device("cuda", 8, {}) == ("cuda", None)
    devices = [
        launch.device("cuda", 8, {"WORLD_SIZE": "16", "RANK": str(r), "LOCAL_RANK": str(r % 8)}) for r in range(16)
    ]
    assert devices == [("cuda", r % 8) for r in range(16)]
    with pytest.raises(UserError, match="process 3 of this node has no cuda device, there are 2"):
        launch.device("cuda", 2, {"WORLD_SIZE": "3", "LOCAL_RANK": "2"})


def test_a_model_goes_where_its_process_belongs(monkeypatch):
    """As on a machine with an accelerator; on the CPU all processes share it."""
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "0")
    accelerated = torch.accelerator.is_available()
    assert load.device_of(None) == (torch.device(torch.accelerator.current_accelerator().type, 0) if accelerated else
                                    torch.device("cpu"))  # fmt: skip
    assert load.device_of("cpu") == torch.device("cpu")


def test_training_from_python_refuses_too(fresh, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP"):
        baselines.sft(fresh("llama"), [Demo(prompt="a", completion="b")], fit=Fit(steps=1, rows=1))


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [(["run", "sft", "--model", "nowhere", "--demos", "nowhere.jsonl"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
     (["run", "sft", "--model", "nowhere", "--demos", "nowhere.jsonl", "--parallel", "hsdp"], {}, "several processes"),
     (["compare", "sft", "dpo"], {"WORLD_SIZE": "2"}, "compare runs in one process, not 2"),
     (["claim", "npo", "--tier", "smoke"], {"WORLD_SIZE": "2"}, "claim runs in one process, not 2")],
)  # fmt: skip
def test_the_command_line_refuses_before_it_looks_at_anything(words, env, message, capsys, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 2
    stderr = capsys.readouterr().err.strip()
    assert message in stderr and "\n" not in stderr


@pytest.mark.soak
def test_torchrun_gives_the_weights_of_one_process(fresh, tmp_path):
    fresh("llama").save(tmp_path / "start")
    rows = [json.dumps({"prompt": f"p{i}", "completion": "c" * i}) for i in range(1, 12)]  # of unequal lengths
    (tmp_path / "demos.jsonl").write_text("\n".join(rows))
    inputs = (
        f"run sft --model {tmp_path}/start --demos {tmp_path}/demos.jsonl --steps 4 --rows 5 --dtype float64".split()
    )
    inputs += "--device cpu --holdout 0 --out".split()
    env = os.environ | {"OMP_NUM_THREADS": "1", "DIDACT_CACHE": "off"}
    for out, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        command = [sys.executable, *launcher, "-m", "didact", *inputs, f"{tmp_path}/{out}"]
        subprocess.run(command, check=True, env=env, timeout=300, capture_output=True)
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10)

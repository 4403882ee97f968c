"""3D parallel training: the steps of one process in any layout of stages, copies and layer parts, and refusals.

The processes are real; one pair of processes runs all two-process cases in turn.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shapes import tiny

from didact import cli, pretraining
from didact.claims.pretraining import parity
from didact.claims.pretraining.parity import Case
from didact.learn import distributed, layouts, pretrain, three_d
from didact.learn.fit import Hook
from didact.models import build
from didact.parallel import engine, launch, mesh, processes, stages
from didact.parallel.engine import IGNORE
from didact.parallel.mesh import Grid
from didact.types import Fit, Text, UserError

PAIRS = [
    Case("llama", 2, 1, 1),
    Case("llama", 1, 2, 1),
    Case("llama", 1, 1, 2),
    Case("gpt2", 2, 1, 1, schedule="gpipe"),
    Case("qwen3", 1, 1, 2),
]
SHAPE = {"layers": 2, "hidden": 16, "heads": 2, "context": 16, "vocabulary": 300, "first_rows": 2, "more_rows": 2}
CPU = torch.device("cpu")


def texts():
    words = "the sun and sea are old but no one has told them so".split()
    return [Text(text=" ".join(words[(i * 7 + k * (i + 3)) % 13] for k in range(30 + i % 9))) for i in range(60)]


class Until(Hook):
    """Stops training early after some steps, as a signal does."""

    def __init__(self, last):
        self.last = last

    def after(self, step):
        if step.step + 1 == self.last:
            raise KeyboardInterrupt


def taught(layout, folder, until=None):
    """Train a new model for six steps, or the first of them; return its weights and losses."""
    fit = Fit(lr=1e-2, rows=6, steps=6, folder=folder, save_every=1)
    hooks = [Until(until)] if until else []
    try:
        result = pretraining.megatron_turing(texts(), layout=layout, **SHAPE, ramp=100e9, fit=fit, hooks=hooks)
    except KeyboardInterrupt:
        return None
    module = result.models["model"].module
    weights = {n: p.detach() for n, p in module.named_parameters()} if distributed.group_rank()[0] == 0 else None
    return weights, [row["loss"] for row in result.history], [row["rows"] for row in result.history]


def everything(root):
    """Run all cases for two processes."""
    broken = {
        name: parity.compare([case], 0, 1, name)[0]
        for name, case in (("local", PAIRS[1]), ("averaged", PAIRS[1]), ("unsummed", PAIRS[2]), ("swapped", PAIRS[0]))
    }
    comparisons = parity.compare(PAIRS, 0)
    for layout in ("2x1x1", "1x2x1"):
        taught(layout, f"{root}/{layout}", until=3)
    # Stopped after three steps in one layout, resumed to the end in another
    return broken, comparisons, taught("1x1x2", f"{root}/2x1x1")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIDACT_CACHE", "off")
        return root, processes.run(2, everything, str(root))[0]


def test_two_processes_take_the_steps_of_one_whatever_the_layout(two):
    for case, result in zip(PAIRS, two[1][1], strict=True):
        assert result["loss"] < 1e-12 and result["gradient"] < 1e-10 and result["weights"] < 1e-10, (case, result)
        assert result["moved"] > 1e-2 and result["bytes"] == 0, (case, result)


@pytest.mark.parametrize("name", parity.BREAKS)
def test_what_is_done_wrong_shows(name, two):
    result = two[1][0][name]
    assert result["gradient"] > 1e-3 and result["weights"] > 1e-4, result


def test_a_run_goes_on_in_another_layout_and_in_one_process(two):
    """Resume a checkpoint of two stages with two layer parts, and one of two copies in one process."""
    root, (_, _, parts) = two
    whole, losses, rows = taught(None, None)
    assert rows == sorted(rows) and rows[0] == 2 and rows[-1] == 6
    for weights, theirs, sizes in (parts, taught(None, f"{root}/1x2x1")):
        assert sizes == rows and theirs == pytest.approx(losses, abs=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


def reread(root):
    """The whole tensors that another layout reads from a checkpoint."""
    out = {}
    for sizes in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        model = build.build("llama", build.train_tokenizer([], 260), d=16, layers=2, heads=2, context=16, seed=1)
        grid = mesh.grid(*sizes, CPU)
        part = engine.Engine(model.module, grid, dict(model.module.named_parameters()).__getitem__, micro=1, device=CPU)
        optimizer = three_d.adam(part, Fit())
        if not (root / "step-00000001").exists():
            part.step(*[x[:, :12] for x in parity.batches(0, 1, 260)[0]])
            optimizer.step()
            three_d.keep(root, part, optimizer, three_d.State(step=1), {"who": "me"})
        assert three_d.taken_back(root, part, optimizer, {"who": "me"}).step == 1
        state = optimizer.state
        out[sizes] = part.whole()
        assert all(float(state[p]["step"]) == 1 for p in part.named.values())
        for slot in ("exp_avg", "exp_avg_sq"):
            out[sizes] |= {f"{n}|{slot}": v for n, v in part.whole(lambda p, s=state, k=slot: s[p][k]).items()}
    return out


def test_every_layout_reads_the_same_bits_of_a_checkpoint(tmp_path):
    result = list(processes.run(2, reread, tmp_path)[0].values())
    assert len(result[0]) == 3 * 20 and result[0]["model.norm.weight|exp_avg"].abs().sum() > 0
    for other in result[1:]:
        assert all(torch.equal(other[name], value) for name, value in result[0].items())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_stages_one_after_the_other_are_the_model(kind, tied):
    module = tiny(kind, tied=tied).module.train()
    ids = torch.randint(3, 200, (2, 11))
    expected, states = module(input_ids=ids).logits, ids
    values, recorded = dict(module.named_parameters()), set()
    for number in range(2):
        stage = stages.Stage(stages.skeleton(module), number, 2)
        parameters = stage.named()
        stages.fill(stage, {id(p): n for n, p in parameters.items()}, values.__getitem__, CPU)
        states, recorded = stage(states), recorded | parameters.keys()
        assert len(stage.layers) == 1 and stage.shares is tied
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
    assert recorded == values.keys()


def test_a_new_model_is_drawn_alike_in_every_layout_and_as_wide_as_the_paper_says():
    with torch.device("meta"):
        model = build.build("llama", build.train_tokenizer([], 260), d=192, layers=2, heads=4)
    value = three_d.drawn(model.module, 3)
    wide, narrow = value("model.layers.0.self_attn.q_proj.weight"), value("model.layers.1.mlp.down_proj.weight")
    assert wide.std().item() == pytest.approx((1 / (3 * 192)) ** 0.5, rel=0.02)
    assert narrow.std().item() == pytest.approx((1 / (3 * 192)) ** 0.5 / 2, rel=0.02)
    assert torch.equal(wide, value("model.layers.0.self_attn.q_proj.weight"))
    assert torch.equal(value("model.norm.weight"), torch.ones(192))


def test_the_ramp_grows_in_steps_of_the_papers_run():
    recipe = three_d.Stepwise(total=270e9, window=2048, rows=1920, first=32 * 2048, more=32, warmup=1e9, end=340e9,
                              ramp=12e9)  # fmt: skip
    assert [recipe.batch(n) for n in (0, 12e9 / 59 - 4096, 12e9 / 59 + 4096, 6e9, 12.1e9)] == [32, 32, 64, 960, 1920]
    assert recipe.factor(0.5e9) == 0.5 and recipe.factor(1e9) == 1 and recipe.factor(340e9) == pytest.approx(0.1)


def test_rows_of_unequal_lengths_are_filled_up_without_labels():
    rows = [pretrain.TokenizedExample((9,), (4, 5, 6)), pretrain.TokenizedExample((9, 8), (7,))]
    ids, labels = three_d.tensors(rows, 4)
    assert ids.tolist() == [[9, 4, 5, 0], [9, 8, 0, 0]]
    assert labels.tolist() == [[4, 5, 6, IGNORE], [IGNORE, 7, IGNORE, IGNORE]]


@pytest.mark.parametrize(
    ("kind", "layout", "world", "message"),
    [("llama", "2x1", 2, "PPxDPxTP"), ("llama", "2x1x2", 1, "torchrun --nproc_per_node 4"),
     ("llama", "1x1x8", 8, "does not divide 2 heads; layouts for 8 processes: 1x8x1, 1x4x2, 2x4x1, 2x2x2"),
     ("llama", "4x1x1", 4, "does not divide 2 layers"), ("gpt2", "1x1x2", 2, "gpt2: give 1 part"),
     ("gemma2", "2x1x1", 2, "this is gemma2: give 1 stage")],
)  # fmt: skip
def test_a_layout_that_is_not_legal_is_one_line_with_those_that_are(kind, layout, world, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(UserError) as error:
        layouts.chosen(tiny(kind), layout, Fit(rows=8), 64, CPU)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_a_layout_the_planner_chooses_among_those_that_can_be_trained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(mesh, "grid", lambda pp, dp, tp, device: Grid(pp, dp, tp))
    for kind in ("llama", "gpt2"):
        result = layouts.chosen(tiny(kind), None, Fit(rows=8), 64, CPU)
        assert result.pp * result.dp * result.tp == launch.world() and (kind == "llama" or result.tp == 1)


def test_what_cannot_be_pretrained_is_refused():
    for extra, message in (({"fit": Fit(lora=4)}, "lora"), ({"hidden": 10, "heads": 3}, "divide hidden"),
                       ({"fit": Fit(optimizer="sgd", steps=1, rows=1)}, "adamw or adam")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            pretraining.megatron_turing(texts()[:3], **{**SHAPE, **extra})


@pytest.mark.parametrize(
    "preset", sorted((Path(engine.__file__).parent / "presets").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_configurations_that_are_shipped_are_read(preset, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}')
    command = ["run", "megatron-turing", "--corpus", str(tmp_path / "text.jsonl"), "--config", str(preset)]
    assert cli.main([*command, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    pp, dp, tp = launch.sizes(printed["layout"])
    assert (
        printed["layers"] % pp == printed["heads"] % tp == printed["rows"] % dp == 0
        and printed["precision"] == "bfloat16"
    )


@pytest.mark.soak
def test_eight_processes_take_the_steps_of_one():
    cases = [Case("llama", 2, 2, 2), Case("llama", 4, 1, 2), Case("gpt2", 2, 4, 1, schedule="gpipe")]
    for result in processes.run(8, parity.compare, cases, 0)[0]:
        assert result["loss"] < 1e-12 and result["gradient"] < 1e-10 and result["weights"] < 1e-10


@pytest.mark.soak
def test_torchrun_trains_and_saves_a_folder_that_opens_anywhere(tmp_path):
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": t.text}) for t in texts()))
    shape_options = [w for name, value in SHAPE.items() for w in (f"--{name}", str(value))]
    run_words = [
        "run",
        "megatron-turing",
        "--corpus",
        str(tmp_path / "text.jsonl"),
        *shape_options,
        "--steps",
        "4",
        "--rows",
        "6",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "DIDACT_CACHE": "off", "CUDA_VISIBLE_DEVICES": ""}
    for out, launcher in (("one", []), ("four", ["-m", "torch.distributed.run", "--nproc_per_node", "4"])):
        extra = ["--layout", "2x1x2"] if launcher else []
        command = [
            sys.executable,
            *launcher,
            "-m",
            *(["--"] if launcher else []),
            "didact",
            *run_words,
            *extra,
            "--out",
            str(tmp_path / out),
        ]
        process = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
    one, four = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "four"))
    assert one.keys() == four.keys()
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=0, atol=1e-4)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "four" / "model")

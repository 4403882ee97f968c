"""Scores during training, and the best step's model as the result."""

import pytest
import torch

from didact import baselines, cli
from didact.data.streams import Tensors
from didact.evaluate.measures import Measure
from didact.evaluate.protocols import Protocol, leading
from didact.files import read_json
from didact.learn import fit as loop
from didact.learn.fit import Hook, Term
from didact.models import cost
from didact.models.model import Model
from didact.types import Fit, UserError, as_row
from didact.verbs.watching import Watch

USED = Protocol(kind="demo", primary="x", score=lambda model, scoring: {})


class Dot(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, 2))


def trained(folder, scores, lower=False, keep=True, hooks=()):
    """Train for four steps with these scores; return the step whose weights are kept, and the logged scores."""
    module, weights = Dot(), []

    def score(model):
        weights.append(model.module.w.detach().clone())
        return {"x": Measure(scores[round(float(10 * weights[-1][0, 0])) - 1], 1, "lower" if lower else "higher")}

    watch = Watch(1, USED, score, Model(Dot()), folder if keep else None)
    fit = Fit(lr=0.1, schedule="constant", optimizer="sgd", clip=0.0, folder=str(folder), save_every=1)
    history, _ = loop.fit(
        module, lambda s: Tensors({"x": torch.ones(1, 1)}), lambda m, b: {"l": Term(-m.w.sum(), "rows")}, fit,
        [watch, *hooks], steps=4, name="toy", quiet=True,
    )  # fmt: skip
    return float(10 * module.w.detach()[0, 0]), [row["held_out_x"] for row in history]


@pytest.mark.parametrize(
    ("scores", "lower", "keep", "step"),
    [((1, 3, 2, 0), False, True, 2), ((1, 3, 2, 0), True, True, 4), ((3, 1, 2, 3), True, True, 2),
     ((1, 3, 3, 0), False, True, 2), ((1, 3, 2, 0), False, False, 4)],
)  # fmt: skip
def test_the_result_is_the_model_of_the_best_step(scores, lower, keep, step, tmp_path, capsys):
    best_step, curve = trained(tmp_path, scores, lower, keep)
    assert best_step == pytest.approx(step) and curve == list(scores)
    assert (f"the model of step {step}" in capsys.readouterr().err) == (keep and step < 4)


def test_a_killed_run_knows_its_best_step(tmp_path):
    class Halt(Hook):
        def after(self, step):
            if step.step == 2 and not (tmp_path / "halted").exists():
                (tmp_path / "halted").touch()
                raise KeyboardInterrupt

    for _ in range(2):
        try:
            step, curve = trained(tmp_path, (1, 3, 2, 0), hooks=[Halt()])
        except KeyboardInterrupt:
            continue
    assert step == pytest.approx(2) and curve == [1, 3, 2, 0]


def test_a_run_is_scored_on_the_way_off_the_meter(taught, world, tmp_path, capsys):
    import json

    taught("llama").save(tmp_path / "model")
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(as_row(r)) + "\n" for r in world.retain))
    command = ["run", "sft", "--model", str(tmp_path / "model"), "--demos", str(data), "--steps=3", "--lr=1e-3"]
    messages = []
    for name, extra in (("a", ["--evaluate-every=2", "--keep-best"]), ("b", [])):
        assert cli.main([*command, "--out", str(tmp_path / name), *extra]) == 0
        messages.append(read_json(tmp_path / name / "result.json"))
    assert messages[0]["cost"]["tokens"] == messages[1]["cost"]["tokens"] > 0
    rows = [json.loads(line) for line in (tmp_path / "a/history.jsonl").read_text().splitlines()]
    assert ["held_out_token_accuracy" in row for row in rows] == [False, True, True]
    assert "held out token accuracy" in (tmp_path / "a/report.html").read_text()
    for bad, reason in (
        (["--keep-best"], "--keep-best needs --evaluate-every N"),
        (["--evaluate-every=0"], "1 or more"),
    ):
        assert cli.main([*command, "--out", str(tmp_path / "c"), *bad]) == 2 and reason in capsys.readouterr().err


def test_final_answers_and_choices_lead_where_they_were_asked_for():
    result = dict.fromkeys(("x", "accuracy", "final_answer"), Measure(0.0, 1))
    assert (
        leading(USED, result) == "final_answer"
        and leading(USED, {"x": result["x"], "accuracy": result["x"]}) == "accuracy"
    )
    assert leading(USED, {"x": result["x"]}) == "x" and leading(USED, {}) is None
    assert leading(USED, {"kl": Measure(0.0, 1), "y": Measure(0.0, 1, "lower")}) == "y"


def test_nothing_is_counted_inside_unmetered(fresh):
    model = fresh("llama")
    with cost.metered() as meter:
        with cost.unmetered(), torch.no_grad():
            model.module(torch.ones(1, 4, dtype=torch.long))
        assert meter.tokens == 0
        with torch.no_grad():
            model.module(torch.ones(1, 4, dtype=torch.long))
    assert meter.tokens == 4


# --- adapters and packing, as training options ----------------------------------------------------


def test_adapters_go_where_they_are_told_with_dropout_and_dora(fresh, world, tmp_path):
    fit = Fit(lr=1e-3, steps=2, rows=4, lora=2, lora_targets=("q_proj", "v_proj"), lora_dropout=0.1, dora=True)
    model = baselines.sft(fresh("llama"), world.retain, fit=fit).models["model"]
    config = model.module.active_peft_config
    assert set(config.target_modules) == {"q_proj", "v_proj"} and config.use_dora and config.lora_dropout == 0.1
    with pytest.raises(UserError, match="LoRA cannot be put on this model"):
        baselines.sft(fresh("llama"), world.retain, fit=fit.replace(lora_targets=("nothing",)))
    with pytest.raises(UserError, match="dora = True: goes with lora, the rank"):
        Fit(dora=True)


def test_packing_changes_no_number(fresh, world):
    rows = [
        [row["loss"] for row in baselines.sft(
            fresh("llama"), world.retain, fit=Fit(lr=1e-3, steps=3, rows=8, packing=packing)
        ).history]
        for packing in (True, False)
    ]  # fmt: skip
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)

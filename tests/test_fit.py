"""The training loop: denominators, splitting of batches, learning rates, hooks, guards."""

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from didact import baselines
from didact.data import encode
from didact.data.streams import Tensors
from didact.evaluate import forgetting
from didact.learn import fit as loop
from didact.learn import language, schedules
from didact.learn.fit import Hook, NoDropout, Term
from didact.learn.masters import Masters
from didact.models.model import Model, copy_of
from didact.types import Demo, Fit, Preference, UserError

PLAIN = Fit(lr=0.1, schedule="constant", clip=0.0, optimizer="sgd")
UNEQUAL = [
    Demo(prompt="Where was Mira Kolt born?", completion="Tarn"),
    Demo(prompt="What is the first book of Tobin Ferro, unread?", completion="Songs of Tarn, Maps of Osso"),
    Demo(prompt="Why?", completion="Because of the Red Quill and of the Blue Quill and of all the other Quills."),
    Demo(prompt="In what year was Elsa Osei born?", completion="1951"),
    Demo(prompt="Who?", completion="Una"),
]  # fmt: skip


def items_of(model, demos):
    return language.single(
        encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in demos], model.kind, model.context)
    )


def nll(student, micro):
    return {"nll": language.cross_entropy(student, micro)}


def double(model):
    model.module.double()
    return model


def largest_gap(a, b):
    pairs = zip(a.module.parameters(), b.module.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


class Line(nn.Module):
    """y = w x, whose gradients are known."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((1, 1), w, dtype=torch.float64))

    def forward(self, x):
        return x @ self.w


def rows(*x):
    return Tensors({"x": torch.tensor(x, dtype=torch.float64)[:, None]})


def linear(module, batch):
    return {"sum": Term(module(batch["x"]).sum(), "rows")}


def run(module, loss=linear, batch=None, fit=PLAIN, steps=1, **more):
    batch = rows(1.0, 2.0, 6.0) if batch is None else batch
    return loop.fit(module, lambda step: batch, loss, fit, steps=steps, quiet=True, **more)


# --- denominators ----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_micro_batches_change_memory_and_not_the_weights(arch, fresh):
    start = double(fresh(arch))
    streams = {"a": items_of(start, UNEQUAL), "b": items_of(start, UNEQUAL[1:4])}

    def taught(micro_tokens):
        fit = Fit(lr=1e-2, steps=5, rows=4, micro_tokens=micro_tokens, schedule="constant")
        return language.train(start, streams, nll, fit, quiet=True)

    whole = taught(10_000)
    assert largest_gap(whole.model, start) > 1e-3
    for micro_tokens in (1, 30, 77):
        pieces = taught(micro_tokens)
        assert largest_gap(pieces.model, whole.model) < 1e-10
        assert [r["loss"] for r in pieces.history] == pytest.approx([r["loss"] for r in whole.history], abs=1e-12)


def test_the_loss_is_the_mean_over_the_label_tokens_of_the_whole_batch(fresh):
    start = double(fresh("llama"))
    fit = Fit(lr=0.0, steps=1, rows=len(UNEQUAL), micro_tokens=50)
    taught = language.train(start, {"a": items_of(start, UNEQUAL)}, nll, fit, quiet=True)
    from didact.models import forward

    total, count = forward.row_logp(start, [r for (r,) in items_of(start, UNEQUAL)])
    assert taught.history[0]["nll"] == pytest.approx(float(-total.sum() / count.sum()), abs=1e-12)


@pytest.mark.parametrize("micro", [1, 2, 100])
def test_every_term_is_divided_by_its_own_count_and_weighted(micro):
    batch = Tensors(rows(1.0, 2.0, 6.0).tensors, {"rows": 3, "other": 30})

    def terms(module, part):
        out = module(part["x"]).sum()
        return {"a": Term(out, "rows"), "b": Term(out, "other", 2.0), "seen": Term(out + len(part["x"]), "rows", 0.0)}

    module = Line(1.0)
    history, _ = run(module, terms, batch, PLAIN.replace(micro_tokens=micro))
    gradient = 9 / 3 + 2 * 9 / 30
    assert module.w.item() == pytest.approx(1 - 0.1 * gradient)
    assert history[0]["a"] == pytest.approx(3) and history[0]["b"] == pytest.approx(0.3)
    assert history[0]["seen"] == pytest.approx(4)
    assert history[0]["loss"] == pytest.approx(3.6) and history[0]["grad_norm"] == pytest.approx(gradient)


def test_a_coupled_loss_sees_every_row_at_once():
    recorded = []

    def squared_sum(module, batch):
        recorded.append(len(batch["x"]))
        return {"loss": Term(module(batch["x"]).sum() ** 2, "rows")}

    module = Line(1.0)
    run(module, squared_sum, fit=PLAIN.replace(micro_tokens=1), coupled=True)
    assert recorded == [3] and module.w.item() == pytest.approx(1 - 0.1 * 2 * 81 / 3)


# --- optimisers, rates, clipping, decay ------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 1), ("constant", 9, 1),
        ("linear", 0, 1), ("linear", 5, 0.5), ("linear", 9, 0.1),
        ("cosine", 0, 1), ("cosine", 5, 0.5), ("cosine", 9, 0.5 * (1 + math.cos(0.9 * math.pi))),
        ("wsd", 0, 1), ("wsd", 7, 1), ("wsd", 8, 1), ("wsd", 9, 0.5),
    ],
)  # fmt: skip
def test_schedules_have_their_known_values(schedule, step, expected):
    assert schedules.factor(schedule, step, 10) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_rises_linearly_and_the_rest_starts_at_the_peak(schedule):
    factors = [schedules.factor(schedule, step, 14, warmup=4) for step in range(14)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == pytest.approx([schedules.factor(schedule, step, 10) for step in range(10)])


def test_the_loop_follows_the_schedule():
    module = Line()
    history, _ = run(module, fit=PLAIN.replace(schedule="linear"), steps=4, warmup=1)
    rates = [0.05, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    assert [row["lr"] for row in history] == pytest.approx(rates)
    assert module.w.item() == pytest.approx(-3 * sum(rates))


def test_warm_up_may_be_given_in_epochs_or_steps():
    fit = Fit(rows=4, epochs=3, warmup=1.0)
    assert fit.total_steps(20) == 15 and fit.warmup_count(20) == 5
    assert fit.replace(steps=7).total_steps(20) == 7 and fit.replace(warmup_steps=2).warmup_count(20) == 2


def test_optimizers_take_their_known_first_step():
    for optimizer, expected in (("sgd", 0.1 * 3), ("adam", 0.1), ("adamw", 0.1)):
        module = Line(1.0)
        run(module, fit=PLAIN.replace(optimizer=optimizer))
        assert module.w.item() == pytest.approx(1 - expected, abs=1e-6), optimizer


def test_adams_decay_rates_are_passed_on():
    batches = [rows(1.0), rows(-3.0)]
    ends = []
    for betas in ((0.9, 0.999), (0.0, 0.5)):
        module = Line()
        fit = PLAIN.replace(optimizer="adam", betas=betas)
        loop.fit(module, lambda step: batches[step], linear, fit, steps=2, quiet=True)
        (a, b), (g1, g2) = betas, (1.0, -3.0)
        m, v = (a * (1 - a) * g1 + (1 - a) * g2) / (1 - a**2), (b * (1 - b) * g1**2 + (1 - b) * g2**2) / (1 - b**2)
        assert module.w.item() == pytest.approx(-0.1 - 0.1 * m / (math.sqrt(v) + 1e-8), abs=1e-7)
        ends.append(module.w.item())
    assert ends[0] != pytest.approx(ends[1], abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adams_eps_makes_steps_of_small_gradients_small(optimizer):
    for eps in (1e-8, 3.0, 300.0):
        module = Line()
        run(module, fit=PLAIN.replace(optimizer=optimizer, eps=eps))
        assert module.w.item() == pytest.approx(-0.1 * 3 / (3 + eps), rel=1e-5)


def test_clipping_bounds_the_whole_gradient_and_logs_it_unclipped():
    for clip, moved in ((0.5, 0.05), (10.0, 0.3), (0.0, 0.3)):
        module = Line()
        history, _ = run(module, fit=PLAIN.replace(clip=clip))
        assert -module.w.item() == pytest.approx(moved, abs=1e-6) and history[0]["grad_norm"] == pytest.approx(3)


def test_clipping_is_over_all_weights_together():
    module = nn.Linear(1, 1).double()
    before = [p.detach().clone() for p in module.parameters()]
    run(
        module,
        lambda m, b: {"l": Term(3 * m.weight.sum() + 4 * m.bias.sum(), "rows")},
        rows(1.0),
        PLAIN.replace(clip=1),
    )
    moved = [float(b - p.detach()) for b, p in zip(before, module.parameters(), strict=True)]
    assert moved == pytest.approx([0.06, 0.08], abs=1e-6)


def test_weight_decay_shrinks_matrices_and_leaves_biases_and_norms():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    fit = PLAIN.replace(optimizer="adamw", weight_decay=0.5)
    run(module, lambda m, b: {"l": Term(0 * sum(p.sum() for p in m.parameters()), "rows")}, fit=fit, steps=2)
    assert module[0].weight.detach().flatten().tolist() == pytest.approx([0.95**2] * 4)
    for p in (module[0].bias, module[1].weight, module[1].bias):
        assert p.detach().tolist() == [1.0, 1.0]


def test_frozen_weights_stay_and_are_not_in_the_optimizer():
    module = nn.Sequential(Line(1.0), Line(1.0))
    module[0].w.requires_grad_(False)
    _, state = run(module, fit=PLAIN.replace(optimizer="adam"))
    assert module[0].w.item() == 1 and module[1].w.item() != 1
    assert {key.split("|")[0] for key in state.optimizer} == {"1.w"}


def test_parameter_groups_are_data():
    module = nn.Sequential(Line(1.0), Line(1.0))
    groups = [{"params": [module[0].w], "scale": 0.5}, {"params": [module[1].w]}]
    run(module, fit=PLAIN, groups=groups)
    assert 1 - module[0].w.item() == pytest.approx((1 - module[1].w.item()) / 2)


# --- phases, hooks, guards -------------------------------------------------------------------


def test_two_phases_with_the_state_handed_on_are_one_run():
    batches = [rows(float(i), -2.0 * i, 3.0) for i in range(1, 7)]
    fit = Fit(lr=0.1, schedule="constant", optimizer="adamw")
    whole, halves, forgetful = Line(1.0), Line(1.0), Line(1.0)
    loop.fit(whole, lambda s: batches[s], linear, fit, steps=6, quiet=True)
    _, state = loop.fit(halves, lambda s: batches[s], linear, fit, steps=3, quiet=True)
    loop.fit(halves, lambda s: batches[s + 3], linear, fit, state=state, steps=3, quiet=True)
    assert torch.equal(whole.w, halves.w)
    loop.fit(forgetful, lambda s: batches[s], linear, fit, steps=3, quiet=True)
    loop.fit(forgetful, lambda s: batches[s + 3], linear, fit, steps=3, quiet=True)
    assert not torch.allclose(whole.w, forgetful.w)


class Diary(Hook):
    def __init__(self, stop_at=None):
        self.lines, self.stop_at = [], stop_at

    def before(self, step):
        self.lines.append(("before", step.step, step.module.w.item(), dict(step.log)))

    def after(self, step):
        self.lines.append(("after", step.step, step.module.w.item(), step.log["loss"]))
        return step.step == self.stop_at


def test_hooks_see_the_module_before_and_after_every_step():
    diary = Diary()
    run(Line(1.0), steps=2, hooks=[diary])
    assert [line[:2] for line in diary.lines] == [("before", 0), ("after", 0), ("before", 1), ("after", 1)]
    assert [line[2] for line in diary.lines] == pytest.approx([1.0, 0.7, 0.7, 0.4])
    assert diary.lines[0][3] == {} and diary.lines[3][3] == pytest.approx(0.7 * 3)


def test_a_hook_stops_training():
    history, _ = run(module := Line(1.0), steps=9, hooks=[Diary(stop_at=2)])
    assert len(history) == 3 and module.w.item() == pytest.approx(0.1)


def test_every_looks_before_training_then_at_its_steps_and_at_the_end_without_dropout():
    module = nn.Sequential(Line(1.0), nn.Dropout(0.5))
    modes = []
    look = loop.every(2, lambda step: modes.append(step.module.training) or {"w": step.module[0].w.item()})
    run(module, steps=5, hooks=[look])
    assert [row["step"] for row in look.rows] == [0, 2, 4, 5] and not any(modes)
    assert look.rows[0]["w"] == 1.0 and look.rows[3]["w"] == module[0].w.item() < 1


def test_the_module_trains_in_training_mode_and_comes_back_in_eval_mode():
    modes = []

    def loss(module, batch):
        modes.append(module.training)
        return linear(module, batch)

    run(module := Line().eval(), loss)
    assert modes == [True] and not module.training


def test_the_generator_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(nn.Sequential(Line(), nn.Dropout(0.5)), steps=3)
    assert torch.equal(torch.rand(1), expected)


def test_dropout_is_drawn_from_seed_and_step():
    ends = []
    for seed in (0, 0, 1):
        module = nn.Sequential(Line(1.0), nn.Dropout(0.5))
        run(module, batch=rows(*range(20)), fit=PLAIN.replace(seed=seed), steps=3)
        ends.append(module[0].w.item())
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_one_line_and_spoils_no_weight(bad):
    module = Line(1.0)

    def loss(module, batch):
        return {"nll": Term(module(batch["x"]).sum() * (1 if module.w.item() == 1.0 else bad), "rows")}

    with pytest.raises(UserError) as error:
        run(module, loss, steps=5, name="sft")
    message = str(error.value)
    assert message.startswith(
        "sft: loss, nll, grad_norm became NaN or infinite at step 2: lower the learning rate (0.1"
    )
    assert "\n" not in message and module.w.item() == pytest.approx(0.7)


def test_an_infinite_gradient_of_a_finite_loss_is_seen_too():
    with pytest.raises(UserError, match="grad_norm became NaN or infinite at step 1"):
        run(Line(0.0), lambda m, b: {"root": Term(m(b["x"]).abs().sqrt().sum(), "rows")})


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"lr": math.nan}, {"rows": 0}, {"micro_tokens": 0}, {"epochs": -1}, {"steps": -1}, {"clip": -1.0},
     {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": math.inf}, {"warmup": math.nan}],
)  # fmt: skip
def test_a_bad_option_is_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Fit(**options)


def test_other_errors_of_a_loss_are_not_taken_for_memory():
    def broken(module, batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(Line(), broken)


OUT_OF_MEMORY = """
    import resource, sys, torch
    from torch import nn
    from didact.data.streams import Tensors
    from didact.learn import fit as loop
    from didact.types import Fit, UserError

    torch.set_num_threads(1)
    WIDE, ROWS = 1 << 18, 128  # hidden states of one row: 1 MiB

    def train(micro_tokens, coupled=False):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(1, WIDE), nn.Tanh())
        x = torch.linspace(-1, 1, ROWS)[:, None]
        loss = lambda m, b: {"l": loop.Term((m(b["x"]) ** 2).sum() / WIDE, "rows")}
        fit = Fit(lr=0.1, optimizer="sgd", schedule="constant", micro_tokens=micro_tokens)
        _, state = loop.fit(module, lambda s: Tensors({"x": x}), loss, fit, steps=1, coupled=coupled, quiet=True)
        return torch.cat([p.detach().flatten() for p in module.parameters()]), state.micro_tokens

    few, _ = train(8)
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), -1))
    got, left = train(ROWS)
    assert left in (32, 16, 8), left
    torch.testing.assert_close(got, few, rtol=1e-5, atol=1e-7)
    try:
        train(8, coupled=True)
    except UserError as error:
        print(error)
    WIDE = 1 << 26
    try:
        train(ROWS)
    except UserError as error:
        print(error)
    except RuntimeError:  # the module itself did not fit
        print("out of memory on a single record")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own address space")
def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_result():
    """A real allocation failure: the process may allocate 100 MiB more, a whole batch needs 384.

    The limit is on addresses, so the allocator must give back what is freed (a fixed mmap threshold) and
    reserve nothing for threads (one arena): otherwise what fits depends on its history and on timing.
    """
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OUT_OF_MEMORY)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | allocator,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    assert lines[:2] == [
        "out of memory: micro_tokens 128 -> 64 (the result does not change)",
        "out of memory: micro_tokens 64 -> 32 (the result does not change)",
    ]
    assert any(line.startswith("out of memory, and this loss couples the rows of a batch") for line in lines)
    assert lines[-1].startswith("out of memory on a single record")


# --- teaching language models ----------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_mixed_precision_teaches_and_keeps_float32_weights(arch, fresh):
    start = fresh(arch, d=32)
    rows_ = items_of(start, UNEQUAL)
    fit = Fit(lr=1e-2, steps=60, rows=5, schedule="cosine")
    full, mixed = (
        language.train(start, {"a": rows_}, nll, fit.replace(precision=p), quiet=True) for p in ("float32", "bfloat16")
    )
    assert {p.dtype for p in mixed.model.module.parameters()} == {torch.float32}
    gap = abs(mixed.history[0]["loss"] - full.history[0]["loss"])
    assert 1e-6 < gap < 0.05  # bfloat16 was used, and is near
    accuracy = forgetting.answers(mixed.model, UNEQUAL)["accuracy"].mean()
    assert accuracy > 0.95 > 0.5 > forgetting.answers(start, UNEQUAL)["accuracy"].mean()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_teaching_leaves_the_start_model_as_it_was(arch, fresh):
    start = fresh(arch)
    before = start.fingerprint()
    fit = Fit(lr=1e-2, steps=2, rows=2)
    taught = language.train(start, {"a": items_of(start, UNEQUAL)}, nll, fit, quiet=True)
    assert start.fingerprint() == before != taught.model.fingerprint()


def test_weights_are_read_for_a_digest_only_where_something_is_kept_under_it(fresh, world, monkeypatch, tmp_path):
    start, read = fresh("llama"), []
    fingerprint = Model.fingerprint
    monkeypatch.setattr(Model, "fingerprint", lambda self: (read.append(self), fingerprint(self))[1])
    fit = Fit(lr=1e-2, steps=1, rows=2)
    baselines.sft(start, world.forget, fit=fit)
    assert not read
    baselines.sft(start, world.forget, fit=fit.replace(folder=tmp_path))
    assert read
    read.clear()
    monkeypatch.setenv("DIDACT_CACHE", "off")
    pairs = [Preference(prompt="a", chosen="b", rejected="c")]
    baselines.dpo(start, pairs, fit=fit)
    assert not read


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_lora_trains_the_adapter_only(arch, fresh):
    start = fresh(arch)
    before = start.fingerprint()
    fit = Fit(lr=1e-2, steps=4, rows=5, lora=4)
    taught = language.train(start, {"a": items_of(start, UNEQUAL)}, nll, fit, quiet=True)
    trained = {n for n, p in taught.model.module.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    assert start.fingerprint() == before and all(p.requires_grad for p in start.module.parameters())
    base = dict(start.module.named_parameters())
    for n, p in taught.model.module.get_base_model().named_parameters():
        if "lora_" not in n:
            mine = base[n.replace(".base_layer", "")]
            assert p is not mine and p.data_ptr() == mine.data_ptr(), n  # one copy, whichever requires a gradient
    assert taught.history[-1]["loss"] < taught.history[0]["loss"]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("hooks", [[], [NoDropout()]], ids=["dropout", "no dropout"])
def test_checkpointing_runs_every_layer_twice_and_changes_no_bit(arch, hooks, fresh):
    start = fresh(arch)
    for module in start.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    runs = []

    def counted(fit):
        def loss(model, micro):
            layer = next(m for m in model.module.modules() if isinstance(m, GradientCheckpointingLayer))
            inside = next(m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D))
            if not inside._forward_pre_hooks:
                inside.register_forward_pre_hook(lambda *_: runs.append(1))
            return nll(model, micro)

        runs.clear()
        taught = language.train(start, {"a": items_of(start, UNEQUAL)}, loss, fit, hooks=hooks, quiet=True)
        return taught.model.fingerprint(), len(runs)

    fit = Fit(lr=1e-2, steps=2, rows=5)
    plain, once = counted(fit)
    again, twice = counted(fit.replace(checkpointing=True))
    assert again == plain and twice == 2 * once > 0


def test_a_taught_model_says_what_it_cost(fresh):
    start = fresh("llama")
    rows_ = items_of(start, UNEQUAL)
    taught = language.train(start, {"a": rows_}, nll, Fit(steps=3, rows=5), quiet=True)
    tokens = 3 * sum(r.size - 1 for (r,) in rows_)
    assert taught.cost.tokens == 3 * tokens and taught.cost.flops == 6 * start.parameters * tokens
    assert taught.cost.seconds > 0


def test_an_empty_stream_is_an_error_and_not_a_crash(fresh):
    with pytest.raises(UserError, match="no records"):
        language.train(fresh("llama"), {"a": []}, nll, Fit(steps=1), quiet=True)


# --- weights narrower than float32 -----------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_a_small_rate_moves_bfloat16_weights_as_it_moves_float32_ones(optimizer, fresh):
    """Each step alone is rounded away; after forty steps the weights equal those of float32 training, rounded."""
    start = copy_of(fresh("llama"))
    start.module.bfloat16()
    wide = copy_of(start)
    wide.module.float()
    rate = 1e-2 if optimizer == "sgd" else 2e-5
    fit = Fit(lr=rate, steps=40, rows=5, schedule="constant", optimizer=optimizer, clip=0.0)
    ours, theirs = (
        language.train(m, {"data": items_of(m, UNEQUAL)}, nll, fit, quiet=True).model for m in (start, wide)
    )
    before = dict(start.module.named_parameters())
    moved, correct = 0.0, 0.0
    for (name, p), q in zip(ours.module.named_parameters(), theirs.module.parameters(), strict=True):
        assert p.dtype == torch.bfloat16
        change = (q - before[name].float()).abs()
        large = change > before[name].float().abs() * 2**-8  # more than the distance between two bfloat16 numbers
        if large.any():
            moved += float((p != before[name])[large].sum())
            correct += float(large.sum())
    assert correct > 1000 and moved > 0.95 * correct


def test_float32_copies_are_resumed_to_the_same_bits(fresh, tmp_path):
    start = copy_of(fresh("llama"))
    start.module.bfloat16()
    items = {"data": items_of(start, UNEQUAL)}
    fit = Fit(lr=2e-5, steps=12, rows=5, schedule="constant", save_every=1)
    whole = language.train(start, items, nll, fit, quiet=True)

    class Dies(Hook):
        def after(self, step):
            if step.step == 7 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        language.train(start, items, nll, fit.replace(folder=str(tmp_path)), hooks=[Dies()], quiet=True)
    again = language.train(start, items, nll, fit.replace(folder=str(tmp_path)), hooks=[Dies()], quiet=True)
    assert again.model.fingerprint() == whole.model.fingerprint() != start.fingerprint()
    for name, value in whole.state.optimizer.items():
        assert torch.equal(value, again.state.optimizer[name]), name
    assert any(name.endswith("|master") for name in whole.state.optimizer)


def test_two_trainings_do_not_share_a_folder(tmp_path):
    class Other(Hook):
        def after(self, step):
            with pytest.raises(UserError, match="another training writes its checkpoints") as refused:
                run(Line(1.0), steps=2, fit=PLAIN.replace(folder=str(tmp_path)))
            self.told = str(refused.value)

    run(Line(1.0), steps=1, hooks=[other := Other()], fit=PLAIN.replace(folder=str(tmp_path)))
    assert "\n" not in other.told
    run(Line(1.0), steps=1, hooks=[Hook()], fit=PLAIN.replace(folder=str(tmp_path)))  # free again


def test_float32_weights_have_no_copies():
    parameters = {"w": nn.Parameter(torch.ones(2)), "n": nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}
    masters = Masters(parameters)
    assert masters.all["w"] is parameters["w"] and masters.all["n"].dtype == torch.float32
    with torch.no_grad():
        masters.all["n"].add_(2**-10)
    masters.give()
    assert torch.equal(parameters["n"], torch.ones(2, dtype=torch.bfloat16))  # too small a change to round up
    saved = masters.tensors()
    assert Masters(parameters).restore(saved) == {}
    again = Masters(parameters)
    again.restore(saved)
    assert torch.equal(again.all["n"], masters.all["n"])
    with torch.no_grad():
        parameters["n"].fill_(3.0)  # weights changed by other code
    again.restore(saved)
    assert torch.equal(again.all["n"], torch.full((2,), 3.0))

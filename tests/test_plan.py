"""The planner against the papers' numbers, and against torch's counts, saved tensors and schedules."""

import dataclasses
import itertools
import json
import threading
import time

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from test_report import accessible, inert, look
from torch.utils.flop_counter import FlopCounterMode

from didact import cli
from didact.models import insert, opening, shape
from didact.parallel import memory, pipeline, planner, ramp, spec, work
from didact.parallel.spec import Layout, ModelSpec
from didact.types import UserError

MT = spec.MODELS["mt-nlg"]
CLUSTER = spec.ClusterSpec(gpus=16, gpus_per_node=8)
SMALL = ModelSpec(layers=24, hidden=2048, heads=16, vocab=50257, context=2048, name="1.3B")
SHAPE = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
ROPE = SHAPE | {"intermediate_size": 344, "max_position_embeddings": 128}
CONFIGS = {
    "gpt2": hf.GPT2Config(vocab_size=1000, n_embd=128, n_layer=4, n_head=4, n_positions=128, bos_token_id=1,
                          eos_token_id=1, activation_function="gelu"),
    "llama": hf.LlamaConfig(**ROPE),
    "qwen3": hf.Qwen3Config(**ROPE, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, bos_token_id=1),
    "mixtral": hf.MixtralConfig(**ROPE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "gpt_neox": hf.GPTNeoXConfig(**ROPE, pad_token_id=0),
    "opt": hf.OPTConfig(**SHAPE, ffn_dim=512, word_embed_proj_dim=64, max_position_embeddings=128),
    "gemma3": hf.Gemma3TextConfig(**ROPE, num_key_value_heads=2, head_dim=32, sliding_window=128),
}  # fmt: skip
# torch does not count the matrix products of a mixture's experts
DENSE = [name for name in CONFIGS if name != "mixtral"]


def built(name, **how):
    module = opening.build_from_config("AutoModelForCausalLM", CONFIGS[name]).eval()
    module.set_attn_implementation(how.get("attention", "eager"))
    return module


def spec_of(name):
    return spec.within(shape.of(CONFIGS[name], name), 128)


# --- the papers' numbers ---------------------------------------------------------------------


def test_parameters_of_gpt2_and_of_mt_nlg():
    assert spec.MODELS["gpt2"].parameters == 124_439_808
    assert MT.parameters == 529_600_819_200


@pytest.mark.parametrize(
    ("tp", "sp", "recompute", "size"),
    [(1, False, "none", 478_150_656), (1, True, "none", 478_150_656), (2, False, "none", 260_046_848),
     (2, True, "none", 239_075_328), (4, False, "none", 150_994_944), (4, True, "none", 119_537_664),
     (1, False, "selective", 142_606_336)],
)  # fmt: skip
def test_activations_of_a_layer(tp, sp, recompute, size):
    model = ModelSpec(layers=1, hidden=1024, heads=16, vocab=1, context=1024)
    assert memory.layer(model, Layout(tp=tp, sp=sp, micro=4, recompute=recompute)) == size


@pytest.mark.parametrize(("gpus", "seconds", "rate"), [(2240, 60.1, 126), (2800, 50.2, 121), (3360, 44.4, 113)])
def test_rates_of_mt_nlg_by_its_seconds(gpus, seconds, rate):
    flops = work.flops(MT, 1920, "full").hardware
    assert flops / (gpus * seconds) / 1e12 == pytest.approx(rate, abs=0.7)
    h, s, layers = 20480, 2048, 105
    formula = 96 * 1920 * s * layers * h**2 * (1 + s / (6 * h) + 51200 / (16 * layers * h))
    assert flops == pytest.approx(formula, rel=1e-12)


def test_recomputing_costs_a_third_more_where_the_vocabulary_is_small():
    model = dataclasses.replace(MT, vocab=1)
    assert work.flops(model, 8, "full").hardware / work.flops(model, 8).hardware == pytest.approx(4 / 3, rel=1e-4)
    assert work.flops(model, 8, "full").model == work.flops(model, 8).hardware


def test_state_of_mt_nlg_is_over_10_tb_and_its_checkpointed_inputs_17():
    assert memory.state(MT.parameters, memory.POLICIES["20"]).total == pytest.approx(10.6e12, rel=1e-2)
    full = Layout(batch=1920, micro=1920, recompute="full")
    inputs = memory.activations(MT, full) - memory.layer(MT, full)
    assert inputs == 2 * 2048 * 20480 * 105 * 1920 == pytest.approx(16.9e12, rel=1e-2)


@pytest.mark.parametrize(("dp", "share"), [(8, 0.142), (10, 0.177), (12, 0.213)])
def test_the_bubble_of_mt_nlg(dp, share):
    assert work.bubble(Layout(pp=35, dp=dp, tp=8, batch=1920)) == pytest.approx(share, abs=6e-4)


def test_the_planner_lays_mt_nlg_out_as_its_authors_did_and_predicts_their_seconds():
    job = planner.Job(MT, spec.ClusterSpec(gpus=2240), 1920, memory.POLICIES["20"], fused=False)
    result = planner.plan(job)
    best = result.best
    assert any(line.startswith("pp 7 instead of 35: does not fit") for line in planner.why(result))
    assert (best.layout.pp, best.layout.dp, best.layout.tp, best.layout.micro) == (35, 8, 8, 1)
    theirs = Layout(pp=35, dp=8, tp=8, micro=1, batch=1920, recompute="full")
    assert planner.estimate(job, theirs).step == pytest.approx(60.1, rel=0.02)
    assert work.crossings(theirs, 8) == {"tp": (280, 0), "dp": (280, 280), "pp": (64, 64)}


# --- ZeRO, ramps and bounds ------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 64), st.sampled_from([*memory.POLICIES]))
def test_ranks_of_zero_hold_together_what_one_holds(count, dp, policy):
    policy = memory.POLICIES[policy]
    whole = memory.state(count, policy)
    assert memory.state(count, policy, 3) == whole and whole.total == count * policy.total
    for zero, split in ((1, ["optimizer"]), (2, ["gradients", "optimizer"]), (3, whole._fields)):
        ranks = [memory.state(count, policy, zero, dp, rank) for rank in range(dp)]
        for name in whole._fields:
            held = [getattr(rank, name) for rank in ranks]
            one = getattr(whole, name)
            assert sum(held) == one if name in split else set(held) == {one}
    assert sum(memory.state(count, memory.POLICIES["16"], 1, dp, r).optimizer for r in range(dp)) == 12 * count


def test_the_ramp_of_the_card():
    sizes = [ramp.batch(c, 16, 8, 64, 6000) for c in (0, 999, 1000, 2500, 6000, 6001)]
    assert sizes == [16, 16, 24, 32, 64, 64]


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 12), st.integers(1, 3000), st.integers(1, 5000))
def test_steps_of_a_ramp_are_those_of_its_rule(first, step, count, samples, total):
    full, consumed, plain = first + step * count, 0, []
    while consumed < total:
        size = full if consumed >= samples else ramp.batch(consumed, first, step, full, samples)
        plain.append(size)
        consumed += size
    assert [size for size, n in ramp.steps(first, step, full, samples, total) for _ in range(n)] == plain


def test_zero_and_bubbles_at_their_limits():
    job = planner.Job(MT, spec.ClusterSpec(gpus=8), 8)
    one = work.traffic(MT, Layout(dp=8, batch=8, zero=0), job.policy).dp
    assert one == 2 * 7 / 8 * MT.parameters * job.policy.gradients
    same = memory.POLICIES["16"]
    sent = [work.traffic(MT, Layout(dp=8, batch=8, zero=zero), same).dp for zero in range(4)]
    assert sent[0] == sent[1] == sent[2] == sent[3] * 2 / 3
    assert work.bubble(Layout(batch=8)) == 0 and work.bubble(Layout(pp=4, batch=10**9)) < 1e-8
    assert work.bubble(Layout(pp=4, batch=8, chunks=2)) * 2 == work.bubble(Layout(pp=4, batch=8))
    reduces = work.traffic(MT, Layout(tp=8, batch=2), same).tp
    assert reduces == 4 * 105 * 2 * 2048 * 20480 * 2 * 2 * 7 / 8


# --- against torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_exactly_those_of_the_built_model(name):
    assert spec_of(name).parameters == sum(p.numel() for p in built(name).parameters())


@pytest.mark.parametrize(
    ("name", "pp", "tp"), [("gpt2", 1, 2), ("gpt2", 2, 2), ("gpt2", 4, 4), ("llama", 2, 4), ("gpt_neox", 2, 2)]
)
def test_parameters_of_every_rank_are_those_of_the_tensors_it_would_hold(name, pp, tp):
    """Every weight is split by its role: column-parallel by outputs, row-parallel by inputs, whole otherwise."""
    module, model = built(name), spec_of(name)
    padded = spec.padded(model, tp)
    assert padded % (128 * tp) == 0 <= padded - 1000 < 128 * tp
    for stage in range(pp):
        held = 0
        for n, p in module.named_parameters(remove_duplicate=False):
            block = next((int(part) for part in n.split(".") if part.isdigit()), None)
            first = any(f".{word}." in n for word in ("wte", "wpe", "embed_tokens", "embed_in"))
            owner = block // (4 // pp) if block is not None else 0 if first else pp - 1
            if owner != stage or (n == "lm_head.weight" and model.tied and pp == 1):
                continue
            row = n.split(".")[-2] in ("c_proj", "o_proj", "down_proj", "dense", "dense_4h_to_h")
            if n.split(".")[-2] in ("wte", "embed_tokens", "embed_in", "lm_head", "embed_out"):
                held += padded // tp * 128
            elif p.dim() == 2 and "wpe" not in n:
                assert p.shape[0 if row == (name == "gpt2") else 1] % tp == 0
                held += p.numel() // tp
            else:
                held += p.numel() // (1 if row or "ln_" in n or "norm" in n or "wpe" in n else tp)
        assert held == memory.parameters(model, Layout(pp=pp, tp=tp, batch=8), stage)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_state_bytes_are_those_of_a_trained_models_tensors(name):
    module = built(name)
    optimizer = torch.optim.AdamW(module.parameters())
    module(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()

    def size(tensors):
        return sum(t.numel() * t.element_size() for t in tensors)

    moments = [s[m] for s in optimizer.state.values() for m in ("exp_avg", "exp_avg_sq")]
    own = memory.state(spec_of(name).parameters, memory.POLICIES["fp32"])
    assert own == (size(module.parameters()), size(p.grad for p in module.parameters()), size(moments))


@pytest.mark.parametrize("name", DENSE)
def test_operations_are_those_that_torch_counts(name):
    module = built(name)
    ids = torch.zeros((2, 128), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        module(input_ids=ids).logits.sum().backward()
    assert work.flops(spec_of(name), 2).model == pytest.approx(counter.get_total_flops(), rel=0.01)


def saved(module, rows):
    """Return the bytes that the layers of a model save for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    results, active = {}, []

    def seen(x):
        if active and x.untyped_storage().data_ptr() not in own:
            results[x.untyped_storage().data_ptr()] = x
        return x

    for block in insert.blocks(module):
        block.register_forward_pre_hook(lambda *_: active.append(1))
        block.register_forward_hook(lambda *_: active.clear())
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        module(input_ids=torch.zeros((rows, 128), dtype=torch.long), use_cache=False)
    return sum(x.untyped_storage().nbytes() for x in results.values())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_activations_by_the_formula_are_within_a_tenth_of_what_is_saved(name):
    """From the shape alone, float32, no dropout, attention scores saved."""
    by_shape = dataclasses.replace(spec_of(name), blocks=(), dropout=False)
    estimate = memory.activations(by_shape, Layout(micro=2, batch=2), width=4)
    assert estimate == pytest.approx(saved(built(name), 2), rel=0.1)


@pytest.mark.parametrize("name", [*CONFIGS])
def test_activations_of_any_models_code_are_within_a_tenth_of_what_is_saved(name):
    """bfloat16 and fused attention, counted without allocating."""
    model = dataclasses.replace(spec_of(name), dropout=False)
    estimate = memory.activations(model, Layout(micro=2, batch=2), fused=True)
    assert estimate == pytest.approx(saved(built(name, attention="sdpa").to(torch.bfloat16), 2), rel=0.1)


# --- pipelines -------------------------------------------------------------------------------


@given(
    pp=st.integers(1, 6), groups=st.integers(1, 4), chunks=st.integers(1, 3),
    schedule=st.sampled_from(["1f1b", "gpipe"]), forward=st.floats(0.5, 2),
)  # fmt: skip
def test_every_pass_happens_once_after_what_it_waits_for(pp, groups, chunks, schedule, forward):
    chunks = 1 if schedule == "gpipe" or pp == 1 else chunks
    layout = Layout(pp=pp, batch=pp * groups, chunks=chunks, schedule=schedule)
    events = pipeline.simulate(layout, forward, 2 * forward)
    at = {(e.stage, e.work): e for e in events}
    assert len(at) == len(events) == 2 * pp * layout.micros * chunks
    for e in events:
        need = pipeline.after(layout, e.stage, e.work)
        assert need is None or at[need].end <= e.start + 1e-9
    for stage in range(pp):
        own = sorted((e.start, e.end) for e in events if e.stage == stage)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(own))
    assert pipeline.idle(events) == pytest.approx(work.bubble(layout), abs=1e-6)


@given(pp=st.integers(1, 6), groups=st.integers(1, 4), chunks=st.integers(1, 3), gpipe=st.booleans())
def test_a_stage_holds_as_many_micro_batches_as_the_formula_says(pp, groups, chunks, gpipe):
    chunks = 1 if gpipe or pp == 1 else chunks
    layout = Layout(pp=pp, batch=pp * groups, chunks=chunks, schedule="gpipe" if gpipe else "1f1b")
    for stage in range(pp):
        held = most = 0
        for item in pipeline.order(layout, stage):
            held += -1 if item.backward else 1
            most = max(most, held)
        assert most / chunks == memory.inflight(layout, stage)


@pytest.mark.parametrize("micros", [2, 4, 8])
def test_the_bubble_of_stages_that_really_wait_for_each_other(micros):
    """Run threads that sleep for every pass, in the schedule's order and with its dependencies."""
    layout, unit = Layout(pp=3, batch=micros), 0.02
    finished = {(s, p): threading.Event() for s in range(3) for p in pipeline.order(layout, s)}
    trace = []

    def stage(number):
        for one in pipeline.order(layout, number):
            if need := pipeline.after(layout, number, one):
                finished[need].wait()
            start_time = time.monotonic()
            time.sleep(unit * (2 if one.backward else 1))
            trace.append(pipeline.Event(number, one, start_time - start, time.monotonic() - start))
            finished[number, one].set()

    start = time.monotonic()
    threads = [threading.Thread(target=stage, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 + pipeline.idle(trace) == pytest.approx(1 + work.bubble(layout), rel=0.1)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 3))
def test_the_stages_have_every_layer_once(layers, pp, chunks):
    blocks = tuple(spec.Block(sharded=n, replicated=0, matmul=0) for n in range(layers))
    model = ModelSpec(layers=layers, hidden=8, heads=1, vocab=8, context=8, blocks=blocks)
    even = layers % (pp * chunks) == 0
    layout = Layout(pp=pp, chunks=chunks if even else 1, batch=pp, uneven=not even)
    if pp >= layers and not even:
        return
    stages = [[b.sharded for b in spec.stage(model, layout, number)] for number in range(pp)]
    assert sorted(n for stage in stages for n in stage) == list(range(layers))
    assert max(map(len, stages)) == spec.slowest(model, layout) and max(map(len, stages)) - min(map(len, stages)) <= 1


def test_uneven_stages_are_planned_where_they_are_asked_for():
    job = planner.Job(dataclasses.replace(SMALL, layers=23), CLUSTER, 256)
    with pytest.raises(UserError, match="does not divide 23 layers"):
        planner.plan(job, {"pp": 4})
    uneven = planner.plan(job, {"pp": 4, "uneven": True}).best
    even = planner.estimate(dataclasses.replace(job, model=SMALL), uneven.layout)
    assert uneven.seconds["tp"] == even.seconds["tp"]  # limited by its stages of six layers
    assert even.step < uneven.step < 1.01 * even.step  # with one layer fewer nothing is gained


# --- the ranking -----------------------------------------------------------------------------


def test_what_is_ranked_is_legal_fits_and_rises():
    job = planner.Job(SMALL, CLUSTER, 256)
    result = planner.plan(job)
    steps = [e.step for e in result.ranked]
    assert steps == sorted(steps) and len(result.ranked) > 50
    for e in result.ranked:
        assert planner.refusal(job, e.layout) is None and e.layout.ranks == 16 and e.bytes <= CLUSTER.memory
    less = planner.plan(dataclasses.replace(job, cluster=dataclasses.replace(CLUSTER, memory=8 * 2.0**30)))
    assert 0 < len(less.ranked) < len(result.ranked) and less.best.step >= result.best.step
    assert all("slower" in line or "does not fit" in line or "as fast" in line for line in planner.why(result))


@pytest.mark.parametrize(
    ("fixed", "message"),
    [({"tp": 3}, "tp 3 does not divide 16 heads"), ({"tp": 16}, "crosses a node"), ({"pp": 3}, "is not the 16 GPUs"),
     ({"pp": 16, "tp": 1}, "does not divide 24 layers"), ({"zero": 3, "pp": 2}, "with a pipeline"),
     ({"micro": 3}, "does not divide the batch")],
)  # fmt: skip
def test_what_is_not_legal_is_said(fixed, message):
    with pytest.raises(UserError, match="no layout is legal") as error:
        planner.plan(planner.Job(SMALL, CLUSTER, 256), fixed)
    assert message in str(error.value)


def test_a_measured_step_gives_back_its_seconds():
    job = planner.Job(SMALL, CLUSTER, 256)
    layout = planner.plan(job).best.layout
    cluster = dataclasses.replace(CLUSTER, efficiency=planner.calibrated(job, layout, 9.0))
    assert planner.estimate(dataclasses.replace(job, cluster=cluster), layout).step == pytest.approx(9.0)
    with pytest.raises(UserError, match="at best"):
        planner.calibrated(job, layout, 1e-3)


# --- the command -----------------------------------------------------------------------------

FIGURES = ["--layers", "24", "--hidden", "2048", "--heads", "16", "--vocab", "50257"]


def test_the_command_plans_figures_folders_and_presets(tmp_path, capsys, browser):
    assert cli.main(["plan", *FIGURES, "--gpus", "16", "--batch", "256", "--tokens", "26G", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"]["parameters"] == SMALL.parameters
    assert plan["rows"][0] == plan["best"] and plan["run"]["steps"] == -(-26e9 // (256 * 2048))
    CONFIGS["llama"].save_pretrained(tmp_path / "llama")
    assert cli.main(["plan", str(tmp_path / "llama"), "--gpus", "2", "--batch", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"]["parameters"] == sum(p.numel() for p in built("llama").parameters())
    out = tmp_path / "out"
    figures = ["--pp", "35", "--tp", "8", "--recompute", "full", "--zero", "0", "--no-sp", "--measured", "60.1"]
    assert cli.main(["plan", "mt-nlg", "--gpus", "2240", *figures, "--price", "2", "--out", str(out)]) == 0
    stdout = capsys.readouterr().out
    assert "125.7 TFLOP/s a GPU" in stdout and "529,600,819,200 parameters" in stdout
    page = (out / "report.html").read_text()
    for scheme in ("light", "dark"):
        tab, plan, requests = look(browser, out / "report.html", scheme)
        inert(tab, plan, requests, [out / "report.html"])
        accessible(tab, scheme)
    assert "35" in page
    plan = json.loads((out / "plan.json").read_text())
    timeline = next(f for f in plan["figures"] if f["kind"] == "timeline")
    assert (
        len(timeline["rows"]) == 8 and len(timeline["spans"]) == 2 * 8 * 16 and "14.2% in the plan" in timeline["note"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere/at/all"], "no causal model"), (["./nowhere"], "no such"), (["--hidden", "64"], "--layers is missing"),
     (["mt-nlg", "--layers", "3"], "its own dimensions"),
     ([*FIGURES, "--memory", "lots"], "--memory"), ([*FIGURES, "--heads", "15"], "must divide hidden"),
     (["mt-nlg", "--ramp", "1,2"], "FIRST,STEP,TOKENS"), (["mt-nlg", "--ramp", "31,32,12G"], "does not lead to"),
     (["mt-nlg", "--gpus", "11"], "no layout is legal"), (["mt-nlg", "--efficiency", "2"], "at most 1"),
     (["mt-nlg", "--pp", "0"], "--pp"), (["mt-nlg", "--vocab-size", "3"], "--vocab-size")],
)  # fmt: skip
def test_bad_figures_are_one_line(words, message, capsys):
    extra = [] if "--gpus" in words else ["--gpus", "8"]
    assert cli.main(["plan", *words, *extra, *([] if "mt-nlg" in words else ["--batch", "8"])]) == 2
    stderr = capsys.readouterr().err.strip()
    assert message in stderr and "\n" not in stderr and stderr.startswith("didact: ")

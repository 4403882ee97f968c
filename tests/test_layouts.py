"""Layouts of parts and stages give one process's weights, for every architecture; unsupported ones are refused."""

import pytest
import torch
from shapes import tiny

from didact import baselines
from didact.data import encode
from didact.learn import language
from didact.learn.fit import Hook
from didact.parallel import launch, processes, tensor
from didact.types import Fit, UserError
from didact.worlds.authors import authors

WORLD = authors(0, forget=2, retain=2, unseen=0, holdout=0)
FIT = Fit(lr=1e-2, steps=2, rows=6, schedule="constant", micro_tokens=60, weight_decay=0.1)
CUT = ("gpt2", "llama", "mistral", "qwen2")
SPLIT = ("llama", "qwen2", "qwen3", "gpt_neox", "mistral", "gemma2", "gemma3")


class Halves(Hook):
    """Check that half of every matrix of a layer is in this process."""

    def after(self, step):
        parameters = step.module.named_parameters()
        inside = [p for n, p in parameters if "layers." in n and p.dim() == 2 and "embed" not in n]
        assert len(inside) >= 8 and all(2 * p.to_local().numel() == p.numel() for p in inside)


def shaped(parallel, kinds):
    """Return weights of every architecture, and of one with dropout, after two steps."""
    config = {}
    for kind in kinds:
        dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2} if kind == "dropout" else {}
        model = tiny("gpt_neox" if kind == "dropout" else kind, **dropout)
        model.module.double()
        fit, hooks = FIT.replace(parallel=parallel), [Halves()] if parallel == "1x1x2" else []
        taught = baselines.sft(model, WORLD.forget[:6], fit=fit, hooks=hooks).models["model"].module
        config |= {f"{kind} {n}": p.detach() for n, p in taught.named_parameters()}
    return config


def test_layers_of_every_architecture_are_split_by_its_plan():
    """Includes per-head norms, whose gradients must be summed over parts; all parts draw the same dropout."""
    kinds = (*SPLIT, "dropout")
    own, (first, second) = shaped("ddp", kinds), processes.run(2, shaped, "1x1x2", kinds)
    assert set(own) == set(first) and any("q_norm" in name for name in own)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        if not name.startswith("dropout"):
            near = 1e-7 if name.startswith("gemma3") else 1e-10  # its norms compute in float32
            torch.testing.assert_close(value, own[name], rtol=0, atol=near)


def test_layers_of_every_architecture_are_cut_into_stages():
    """With a tied head: the embedding is on the first and the last stage."""
    own, (first, second) = shaped("ddp", CUT), processes.run(2, shaped, "2x1x1", CUT)
    assert set(own) == set(first)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        torch.testing.assert_close(value, own[name], rtol=0, atol=1e-10)


def twice(student, micro):
    """A loss that runs the model twice."""
    return {"a": language.cross_entropy(student, micro), "b": language.cross_entropy(student, micro)}


class Looks(Hook):
    """Runs the model between steps."""

    def before(self, step):
        step.module(input_ids=torch.zeros((1, 2), dtype=torch.long))


def staged(looks):
    model, fit = tiny("llama"), FIT.replace(parallel="2x1x1")
    rows = language.single(
        encode.rows(model.tokenizer, [(d.prompt, d.completion) for d in WORLD.forget], model.kind, model.context)
    )
    language.train(model, {"text": rows}, language.nll if looks else twice, fit, hooks=[Looks()] if looks else [])


@pytest.mark.parametrize(("looks", "message"), [(False, "runs the model twice"), (True, "has one stage: give 1 stage")])
def test_what_reads_a_model_in_stages_otherwise_is_refused(looks, message):
    with pytest.raises(UserError, match=f"process . of 2: parallel = 2x1x1: .*{message}"):
        processes.run(2, staged, looks)


REFUSED = {
    "no tensor-parallel plan for gpt2": ("gpt2", {}),
    "1 heads of keys and values do not divide into 2 parts": ("gemma3", {}),
    "adafactor takes whole matrices": ("llama", {"optimizer": "adafactor"}),
    "q_proj is not a plain linear layer or LoRA on one": ("llama", {"lora": 2, "dora": True}),
    "parts of a layer disagree on the gradient of model.layers.0.self_attn.q_norm.weight": ("qwen3", {}),
    "needs 4 processes, but 2 were started": ("llama", {"parallel": "1x2x2"}),
    "stages need a causal model of type gpt2, llama": ("opt", {"parallel": "2x1x1"}),
    "must be ddp, fsdp2, hsdp or PPxDPxTP": ("llama", {"parallel": "2x2"}),
}


def refused():
    """Return the message for each case."""
    messages = []
    for kind, changes in REFUSED.values():
        model = tiny(kind, num_key_value_heads=1) if kind == "gemma3" else tiny(kind)
        if kind == "qwen3":  # an incomplete plan
            plan = model.config.base_model_tp_plan
            model.config.base_model_tp_plan = {n: s for n, s in plan.items() if s != tensor.PARTIAL}
        with pytest.raises(UserError) as error:
            baselines.sft(model, WORLD.forget, fit=FIT.replace(**{"parallel": "1x1x2"} | changes))
        messages.append(str(error.value))
    return messages


def test_what_cannot_lie_over_processes_is_refused():
    with pytest.raises(UserError, match="torchrun --nproc_per_node 8"):
        launch.several("fsdp2", {})
    with pytest.raises(UserError, match="torchrun --nproc_per_node 4"):
        launch.several("1x2x2", {})
    for messages in processes.run(2, refused):
        assert all(expected in line and line.startswith("parallel = ") and "\n" not in line
                   for expected, line in zip(REFUSED, messages, strict=True)), messages  # fmt: skip

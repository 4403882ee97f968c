"""A model whose layers are split over two processes from load to save: the same losses, samples, scores, weights."""

import os
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from didact import alignment, baselines, unlearning
from didact.learn import footprint
from didact.models import build, shape, spread
from didact.models.load import load
from didact.parallel import memory, planner, processes
from didact.parallel.spec import ClusterSpec, Layout
from didact.types import Fit, UserError
from didact.worlds.authors import authors

WORLD = authors(0, forget=2, retain=2, unseen=0, holdout=0)
FIT = Fit(lr=1e-2, steps=2, rows=5, schedule="constant", micro_tokens=60, weight_decay=0.1)
LONG = FIT.replace(parallel="fsdp2", rows=2, micro_tokens=16)
PAIRS = [(r.prompt, r.completion) for r in WORLD.forget[:4]]
KINDS = ("llama", "gpt2", "t5", "bare gpt2")


class Held(TorchDispatchMode):
    """Tracks the bytes of tensors that this process holds at once."""

    def __init__(self):
        super().__init__()
        self.live, self.most = weakref.WeakValueDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        for result in tree_leaves(out):
            if isinstance(result, torch.Tensor) and result.device.type == "cpu":
                storage = result.untyped_storage()
                self.live[storage._cdata] = storage
        self.most = max(self.most, sum(storage.nbytes() for storage in list(self.live.values())))
        return out


def taught(start, out, parallel):
    """Run methods on one model: scores before and after training, with an answer; all saved in `out`."""
    model = load(start, device="cpu", dtype="float64", parallel=parallel)
    before = model.fingerprint()
    fit = FIT.replace(parallel=parallel)
    rounds = {"rounds": 2, "max_new_tokens": 4, "fit": fit.replace(folder=f"{out}/rounds")}
    results = {
        "sft": lambda: baselines.sft(model, WORLD.forget, fit=fit),
        "npo": lambda: unlearning.npo(model, WORLD.forget, WORLD.retain, fit=fit),
        "spin": lambda: alignment.spin(model, WORLD.forget, **rounds),
        "spin again": lambda: alignment.spin(model, WORLD.forget, **rounds),  # from its folder
        "lora": lambda: baselines.sft(model, WORLD.forget, fit=fit.replace(lora=4)),
    }
    scores = {"start": [before, *(s.logp for s in model.score(PAIRS))]}
    for name, teach in results.items():
        result = teach().models["model"]
        assert spread.is_sharded(result.module) == (parallel != "ddp")
        result.save(f"{out}/{name}")
        scores[name] = [*(s.logp for s in result.score(PAIRS)), result.answer(PAIRS[0][0], 8)]
    adapted = load(f"{out}/lora", device="cpu", dtype="float64", parallel=parallel)  # on its start model
    again = baselines.sft(adapted, WORLD.forget, fit=fit).models["model"]  # merged first
    again.save(f"{out}/merged")
    assert model.fingerprint() == before
    return scores


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with start models of several kinds; the last one has weight names as in GPT-2's own checkpoints."""
    root = tmp_path_factory.mktemp("parted")
    tokenizer = build.train_tokenizer([f"{r.prompt} {r.completion}" for r in WORLD.forget + WORLD.retain], 300)
    for kind in KINDS[:3]:
        build.build(kind, tokenizer, d=16, layers=3, heads=2, context=64).save(root / kind)
    build.build("llama", tokenizer, d=64, layers=12, heads=2, context=16).save(root / "deep")
    shutil.copytree(root / "gpt2", root / "bare gpt2")
    (root / "bare gpt2/.didact.json").unlink(missing_ok=True)
    weights = load_file(root / "gpt2/model.safetensors")
    bare = {name.removeprefix("transformer."): w for name, w in weights.items()}
    save_file(bare, root / "bare gpt2/model.safetensors", {"format": "pt"})
    return root


def several(root):
    """Run everything in these processes: training, loading weights, and refusals."""
    trained = taught(root / "llama", root / "two", "fsdp2")
    whole = {}
    for kind in KINDS:
        model = load(root / kind, device="cpu", parallel="hsdp")  # one node
        assert spread.is_sharded(model.module)
        whole[kind] = spread.gather(model.module)
        whole[kind] |= dict(model.module.named_buffers())
    return trained, whole, refused(root), held(root / "deep")


def refused(root):
    """Return the messages of unsupported cases."""
    model, lines = load(root / "llama", device="cpu", parallel="fsdp2"), []
    other = load(root / "llama", device="cpu", parallel="fsdp2")

    def meets(call):
        with pytest.raises(UserError) as holder:
            call()
        lines.append(str(holder.value))

    ids = {"input_ids": torch.ones((1, 4), dtype=torch.long)}
    meets(lambda: model.module(**ids))  # outside of no_grad
    meets(lambda: baselines.sft(model, WORLD.forget, fit=FIT))
    meets(lambda: baselines.sft(model, WORLD.forget, fit=FIT.replace(parallel="hsdp")))
    with torch.no_grad():
        meets(lambda: (model if os.environ["RANK"] == "0" else other).module(**ids))
    return lines


@pytest.fixture(scope="module")
def two(root):
    """The results of two processes."""
    (root / "two").mkdir()
    return processes.run(2, several, root, patience=300)


def test_what_is_taught_is_what_one_process_teaches(root, two):
    (root / "one").mkdir()
    own = taught(root / "llama", root / "one", "ddp")
    for results, *_ in two:
        assert results["start"][0] == own["start"][0]
        for name, (*scores, answer) in own.items():
            *theirs, reply = results[name]
            if name == "start":
                scores, theirs, answer, reply = scores[1:], theirs[1:], 0, 0
            assert reply == answer and theirs == pytest.approx(scores, abs=1e-10)
    for name in ("sft", "npo", "spin", "spin again", "merged"):
        mine, other = (AutoModelForCausalLM.from_pretrained(root / n / name, dtype="auto") for n in ("one", "two"))
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_parts_are_those_of_the_whole(root, two):
    for kind in KINDS:
        model = load(root / kind, device="cpu").module
        expected = model.state_dict() | dict(model.named_buffers())
        (_, whole, *_), (_, rest, *_) = two
        assert set(whole[kind]) == set(expected) > set(rest[kind])
        assert all(torch.equal(whole[kind][name], value) for name, value in expected.items())


def test_what_would_be_wrong_in_silence_is_told(two):
    for _, _, lines, _ in two:
        gradient, unlike, other, apart = lines
        assert gradient == unlike and gradient.startswith("gradients were requested for weights that are sharded")
        assert "another way than it is trained in" in other and apart.startswith("processes are not in step")


def held(start):
    """Return the peak bytes while a model is loaded and scored, and from loading until it is trained and scored.

    Also return a dry run's estimate of the latter.
    """
    most = []
    for steps in (0, 2):
        with Held() as counter, pytest.MonkeyPatch.context() as patch:
            patch.setattr("didact.models.head.CHUNK", 1 << 10)
            model = load(start, device="cpu", parallel="fsdp2")
            if steps:
                model = baselines.sft(model, WORLD.forget, fit=LONG).models["model"]
            model.score(PAIRS[:1])
        most.append(counter.most)
    estimate = footprint.of(load(start, device="cpu"), LONG, 16)
    return *most, estimate["total"] - estimate["process"]


def test_no_process_holds_the_model(root, two):
    """Only its half plus less than four layers; in training the planner's estimate, beside the start."""
    model = load(root / "deep", device="cpu")
    job = planner.Job(shape.of(model.config), ClusterSpec(gpus=2), 2, memory.POLICIES["fp32"], fused=False)
    estimate = sum(planner.estimate(job, Layout(dp=2, micro=1, batch=2, zero=3)).memory.values())
    size = 4 * model.parameters
    layers = 4 * sum(p.numel() for p in spread.layers(model.module)[0].parameters())
    for *_, (loading, trained, dry) in two:
        assert loading < size / 2 + 4 * layers < size
        assert trained == pytest.approx(estimate + size / 2, rel=0.15)
        assert trained < dry < 1.25 * trained  # at most: the estimate includes the heap, which is not counted here

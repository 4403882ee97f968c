"""Arms on a real model, Gemma 3 270M: training with LoRA, K-shot choice and sampling, against their peers.

The environment variable GEMMA names the folder. Texts are random words of its vocabulary: the time depends on their
lengths only. An arm reports peak memory above what was resident when its model was loaded.
"""

from __future__ import annotations

import functools
import os
import random
import time
from typing import Any

import torch

from bench import problems, training
from didact import baselines
from didact.data import encode
from didact.infer import generate
from didact.models import forward, load
from didact.models.model import Model
from didact.types import Demo, Fit, Preference

RANK, ALPHA = 8, 16
ITEMS, CHOICES, SHOTS = 12, 4, 8
PROMPTS, NEW_TOKENS = 64, 64


def folder() -> str:
    """Return the folder of the model."""
    return os.environ.get("GEMMA", "")


class Writer:
    """Random texts of a given number of words, most of them one token."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        vocabulary = [t[1:] for t in model.tokenizer.get_vocab() if t.startswith("▁")]
        self.words = sorted(w for w in vocabulary if w.isascii() and w.isalpha() and w.islower() and len(w) > 2)
        self.draw = random.Random(seed)

    def __call__(self, least: int, most: int) -> str:
        """Return `least` to `most` words."""
        return " ".join(self.draw.choice(self.words) for _ in range(self.draw.randint(least, most)))


def _model() -> Model:
    return load.load(folder(), device="cpu")


def _fit(rows: int) -> Fit:
    return Fit(lr=1e-4, rows=rows, steps=1, schedule="linear", lora=RANK, lora_alpha=ALPHA)


def _demos(model: Model, rows: int) -> list[Demo]:
    """Demonstrations as long as GSM8K's problems and solutions."""
    write = Writer(model)
    return [Demo(prompt=write(30, 95), completion=write(70, 170)) for _ in range(rows)]


def _preferences(model: Model, rows: int) -> list[Preference]:
    """Preferences as long as HH's dialogues and answers."""
    write = Writer(model)
    return [Preference(prompt=write(60, 200), chosen=write(30, 120), rejected=write(30, 120)) for _ in range(rows)]


def sft_ours(rows: int = 8) -> dict[str, Any]:
    """One step of LoRA; `floor` is the seconds its matrix products would take at the machine's peak."""
    model = _model()
    demos = _demos(model, rows)
    tokens = [encode.row(model.tokenizer, d.prompt, d.completion, model.kind, model.context) for d in demos]
    result = problems.measured(
        lambda: baselines.sft(model, demos, fit=_fit(rows)).history[-1]["loss"],
        rows,
        lambda: baselines.sft(model, [Demo(prompt="a", completion="b")], fit=_fit(1)),
    )
    body, head = _weights(model)
    labels = sum(len(r.completion) for r in tokens)
    # Forward and the gradient of the inputs only: the base weights are not trained.
    return result | {"floor": 4 * (sum(r.size - 1 for r in tokens) * body + labels * head) / peak()}


def sft_trl(rows: int = 8, **settings: Any) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    def trainer(demos: list[Demo]) -> Any:
        data = Dataset.from_list([{"prompt": d.prompt + " ", "completion": d.completion} for d in demos])
        config = SFTConfig(**training.common(1, len(demos)), completion_only_loss=True, max_length=1024, **settings)
        return SFTTrainer(
            model.module, args=config, train_dataset=data, processing_class=model.tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip

    model = _model()
    demos = _demos(model, rows)
    return problems.measured(lambda: trainer(demos).train().training_loss, rows)


def dpo_ours(rows: int = 4) -> dict[str, Any]:
    """One step of LoRA, the reference's pass included."""
    model = _model()
    pairs = _preferences(model, rows)
    return problems.measured(
        lambda: baselines.dpo(model, pairs, fit=_fit(rows)).history[-1]["loss"],
        rows,
        lambda: baselines.dpo(model, [Preference(prompt="a", chosen="b", rejected="c")], fit=_fit(1)),
    )


def dpo_trl(rows: int = 4, **settings: Any) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    model = _model()
    pairs = [{"prompt": p.prompt + " ", "chosen": p.chosen, "rejected": p.rejected} for p in _preferences(model, rows)]

    def run() -> float:
        config = DPOConfig(**training.common(1, rows), max_length=1024, **settings)
        trainer = DPOTrainer(
            model.module, args=config, train_dataset=Dataset.from_list(pairs), processing_class=model.tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        return float(trainer.train().training_loss)

    return problems.measured(run, rows)


def _questions(model: Model, shared: bool) -> list[list[tuple[str, str]]]:
    """Eight demonstrations, a question and four choices of one to three words; (context, choice) pairs per item."""
    write = Writer(model)

    def shots() -> str:
        return "\n\n".join(write(28, 36) for _ in range(SHOTS))

    common = shots()
    out = []
    for _ in range(ITEMS):
        context = f"{common if shared else shots()}\n\n{write(25, 35)}"
        out.append([(context, " " + write(1, 3)) for _ in range(CHOICES)])
    return out


def _choices(scores: list[float]) -> dict[str, Any]:
    best = [max(range(CHOICES), key=lambda c: scores[i * CHOICES + c]) for i in range(ITEMS)]
    return {"choices": best, "scores": scores}


def choice_ours(shared: bool = True) -> dict[str, Any]:
    model = _model()
    pairs = [pair for item in _questions(model, shared) for pair in item]

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        rows = [encode.row(model.tokenizer, p, c, model.kind, model.context, end=False) for p, c in pairs]
        return forward.row_logp(model, rows)[0].tolist()

    return problems.measured(lambda: _choices(score(pairs)), ITEMS, lambda: score([("a", " b")]))


def choice_lm_eval(shared: bool = True, batch: int = 1) -> dict[str, Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = _model()
    questions = _questions(model, shared)
    lm = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch, max_length=1024, add_bos_token=True)

    def score(questions: list[list[tuple[str, str]]]) -> list[float]:
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=c, metadata=("bench", i, 1))
            for i, item in enumerate(questions)
            for c, pair in enumerate(item)
        ]
        return [logp for logp, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    return problems.measured(lambda: _choices(score(questions)), ITEMS, lambda: score([[("a", " b")]]))


def _prompts(model: Model) -> list[str]:
    write = Writer(model)
    return [write(20, 150) for _ in range(PROMPTS)]


def sample_ours() -> dict[str, Any]:
    model = _model()
    prompts = _prompts(model)

    def run(prompts: list[str], new: int) -> int:
        how = generate.SamplingConfig(max_new_tokens=new, temperature=1.0, rows=len(prompts))
        return sum(len(row[0].tokens) for row in generate.completions(model, prompts, 1, how))

    return problems.measured(lambda: {"tokens": run(prompts, NEW_TOKENS)}, 1, lambda: run(prompts[:1], 2))


def sample_transformers(batch: int = 64, ordered: bool = False) -> dict[str, Any]:
    """`ordered`: prompts sorted by length first, which transformers leaves to its user."""
    model = _model()
    prompts = _prompts(model)
    plain: Any = model.tokenizer
    tokenizer, module = functools.partial(plain, return_tensors="pt", padding=True), model.module
    model.tokenizer.padding_side = "left"

    def run(prompts: list[str], new: int) -> int:
        ordered_prompts = sorted(prompts, key=len) if ordered else prompts
        total = 0
        for start in range(0, len(ordered_prompts), batch):
            inputs = tokenizer(ordered_prompts[start : start + batch])
            torch.manual_seed(start)
            sequences: Any = module.generate(  # type: ignore  # a transformers model
                **inputs, max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=model.pad
            )
            completions = sequences[:, inputs["input_ids"].shape[1] :]
            total += int((completions != model.pad).sum())
        return total

    return problems.measured(lambda: {"tokens": run(prompts, NEW_TOKENS)}, 1, lambda: run(prompts[:1], 2))


def sample_vllm() -> dict[str, Any]:
    """All prompts in one request to a vLLM server of the same model, `DIDACT_VLLM=http://HOST/v1#NAME`."""
    import httpx2

    url, _, name = os.environ["DIDACT_VLLM"].partition("#")
    prompts = _prompts(_model())

    def run(prompts: list[str], new: int) -> int:
        body = {"model": name, "prompt": prompts, "max_tokens": new, "temperature": 1.0}
        reply = httpx2.post(f"{url}/completions", json=body, timeout=600, trust_env=False).raise_for_status().json()
        return int(reply["usage"]["completion_tokens"])

    return problems.measured(lambda: {"tokens": run(prompts, NEW_TOKENS)}, 1, lambda: run(prompts[:1], 2))


def _weights(model: Model) -> tuple[int, int]:
    """Number of weights in the body's matrices, and in the head."""
    head = model.module.get_output_embeddings().weight.numel()  # type: ignore  # a transformers model
    matrices = sum(p.numel() for p in model.module.parameters() if p.dim() == 2)
    tied = bool(model.config.tie_word_embeddings)
    return matrices - (1 if tied else 2) * head, head


def peak(width: int = 2048) -> float:
    """Operations per second of a large matrix product on this machine, best of five."""
    a, b = torch.randn(width, width), torch.randn(width, width)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best

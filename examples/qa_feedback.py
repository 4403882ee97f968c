"""Real feedback (QA-Feedback: the errors people marked in answers, and their corrections): ILF beside its controls.

    OMP_NUM_THREADS=1 python examples/qa_feedback.py --data ../shared/data --out results/qa_feedback [--model DIR]

The data becomes `critiques.jsonl` (question, answer, its errors in a sentence or two, the correction as
`refinement`) and `preferences.jsonl`, which `didact run ilf` reads directly:

    didact run ilf --model DIR --critiques results/qa_feedback/critiques.jsonl --refiner http://localhost:8000/v1

Then arms are trained on four fifths of them: nothing, the initial answers, people's corrections (gold), ILF, and a
reward model. They are compared by the loss on corrections of held-out questions, in nats per token. Without `--model` a
Llama of about 1M weights is pre-trained on the passages and other answers first. It can write but not follow
feedback: then the example shows the controls, not the method; `--refiner` may be any better model. Whether feedback
is taken up is checked in the text (the marked parts are gone), which nonsense passes too.
A finished arm is not run again. About ten minutes per seed on one idle core; `--records`, `--steps` make it smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch

from didact import alignment, files
from didact.data import encode
from didact.evaluate import statistics
from didact.learn import language
from didact.learn.refining import RefiningConfig
from didact.models import build, forward, load
from didact.models.model import Model
from didact.types import Critique, Fit, Preference, Result, as_row

SENTENCES = 2  # of the first passage, in the prompt
TOKENS = 48  # of a refinement
ARMS: dict[str, dict[str, Any]] = {
    "initial": {"target": "initial"}, "gold": {"target": "gold"},
    "ilf": {"selector": "embedding", "n": 3}, "no feedback": {"refine_with": "nothing", "selector": "random", "n": 1},
}  # fmt: skip


def prompt_of(row: Mapping[str, Any]) -> str:
    """Return the first sentences of the retrieved passage, and the question."""
    sentences = row["passages"][0][1:] if row["passages"] else []
    return f"{' '.join(sentences[:SENTENCES])}\n\nQuestion: {row['question']}\nAnswer:"


def feedback_of(row: Mapping[str, Any]) -> str:
    """Return the errors people marked in the first answer, in words; empty where there are none."""
    answer, remarks = row["predictions"][0], []
    for error in row["feedback"]["errors"]:
        remarks.append(f'Leave out "{answer[error["start"] : error["end"]].strip()}": {error["error type"].lower()}.')
    missing = sorted({m["error type"].lower().replace("-", " ") for m in row["feedback"]["missing-info"]})
    return " ".join([*remarks, *(f"The answer has a {m}." for m in missing)])


def records(path: Path, most: int | None = None) -> tuple[list[Critique], list[Preference]]:
    """Return critiques of the first answer with people's correction, and every pair of answers with a preference."""
    critiques, preferences = [], []
    for row in [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:most]:
        prompt, answers = prompt_of(row), row["predictions"]
        correction = row["feedback"]["corrected-prediction"].strip()
        if (feedback := feedback_of(row)) and correction:
            critiques.append(Critique(prompt=prompt, completion=answers[0], feedback=feedback, refinement=correction))
        for (a, b), preferred in zip(combinations(answers, 2), row["preference"], strict=True):
            if preferred and a != b:
                better, worse = (a, b) if preferred == 1 else (b, a)
                preferences.append(Preference(prompt=prompt, chosen=better, rejected=worse))
    return critiques, preferences


def left_out(completions: Sequence[str], feedback: Sequence[str], refinements: Sequence[str]) -> list[bool]:
    """Return whether each refinement leaves out every part that its feedback says to leave out."""
    spans = [re.findall(r'Leave out "(.+?)":', f) for f in feedback]
    return [bool(a) and not any(part in r for part in a) for a, r in zip(spans, refinements, strict=True)]


def base(rows: Sequence[Mapping[str, Any]], steps: int) -> Model:
    """Pre-train a small language model on the passages and the answers."""
    texts = [f"{prompt_of(r)} {answer}" for r in rows for answer in r["predictions"][1:]]
    tokenizer = build.train_tokenizer(texts, 2048)
    model = build.build("llama", tokenizer, d=128, layers=4, heads=4, context=1024, seed=0, initializer_range=0.06)
    streams = {"text": language.single(encode.windows(tokenizer, texts, 128))}
    fit = Fit(lr=4e-3, steps=steps, rows=16, schedule="cosine", warmup_steps=20, betas=(0.9, 0.95))
    return language.train(model, streams, lambda m, micro: {"nll": language.cross_entropy(m, micro)}, fit).model


def cost(model: Model, critiques: Sequence[Critique]) -> float:
    """Return the model's loss on people's corrections, nats per token, mean over records."""
    pairs = [(c.prompt, c.refinement or "") for c in critiques]
    total, count = forward.row_logp(model, encode.rows(model.tokenizer, pairs, model.kind, model.context))
    return float((-total / count).mean())


def main() -> None:
    """Run all arms; print one line for each and write `arms.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="a folder; a small model is pre-trained where none is given")
    parser.add_argument("--refiner", default="start", help="a folder or a server's address")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of pre-training; an arm has a sixth")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.data / "qa_feedback_dev.jsonl"
    critiques, preferences = records(path, args.records)
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_lines(args.out / "critiques.jsonl", (as_row(r) for r in critiques))
    files.write_lines(args.out / "preferences.jsonl", (as_row(r) for r in preferences))
    model_folder = Path(args.model) if args.model else args.out / "base"
    if not (model_folder / "config.json").exists():
        with files.new_folder(model_folder) as fresh:
            base([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], args.steps).save(fresh)
    start = load.load(model_folder, device="cpu")
    unseen, train = critiques[::5], [c for i, c in enumerate(critiques) if i % 5]
    results_path = args.out / "arms.json"
    results: dict[str, Any] = files.read_json(results_path) if results_path.exists() else {}
    results.setdefault("start", [{"nats": cost(start, unseen), "taught": len(train), "unseen": len(unseen)}])
    fit = Fit(lr=1e-3, steps=max(1, args.steps // 6), rows=16, warmup_steps=5)
    for seed, (name, options) in product(range(args.seeds), {**ARMS, "reward model": {"target": "initial"}}.items()):
        if len(results.setdefault(name, [])) > seed:
            continue
        start_time = time.monotonic()
        folder = str(args.out / "checkpoints" / f"{name.replace(' ', '-')}-{seed}")
        pairs = preferences if name == "reward model" else None
        result: Result = alignment.ilf(
            start, train, pairs, **options, refiner=args.refiner, check=left_out,
            refining=RefiningConfig(max_new_tokens=TOKENS),
            fit=fit.replace(folder=folder, seed=seed),
        )  # fmt: skip
        model: Any = result.models["model"]
        facts = result.findings["rounds"][0]
        row = {"nats": cost(model, unseen), "seconds": round(time.monotonic() - start_time, 1)}
        row |= {k: facts[k] for k in ("incorporated", "empty") if k in facts}
        results[name].append(row | {"reward": result.findings.get("reward"), "warnings": result.warnings})
        files.write_json(results_path, results)
        print(name, seed, json.dumps(results[name][-1]), flush=True)
    for name, rows in results.items():
        mean = statistics.mean_interval([row["nats"] for row in rows])
        print(
            f"{name:14s} {mean.estimate:.3f} nats a token, 95 % interval over seeds {mean.low:.3f} to {mean.high:.3f}"
        )


if __name__ == "__main__":
    main()

"""Real feedback (QA-Feedback: what people found wrong with answers, and their corrections): ILF beside its controls.

    OMP_NUM_THREADS=1 python examples/qa_feedback.py --data ../shared/data --out results/qa_feedback [--model DIR]

The data becomes `critiques.jsonl` (question, answer, what is wrong in a sentence or two, the correction as
`refinement`) and `preferences.jsonl`, which `didact run ilf` takes as they are:

    didact run ilf --model DIR --critiques results/qa_feedback/critiques.jsonl --refiner http://localhost:8000/v1

Then arms are taught on four fifths of them: nothing, the initial answers, people's corrections (gold), ILF, and a
reward model. They are compared by what a correction of an unseen question costs, in nats a token. Without `--model` a
Llama of about 1M weights is pre-trained on the passages and other answers first. It can write but not follow
feedback: then the example shows the controls, not the method; `--refiner` may be any better model. Whether feedback
is taken up is looked up in the text (what should be left out is), which nonsense passes too.
A finished arm is not run again. About ten minutes a seed on one idle core; `--records` and `--steps` make it smaller.
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
    """A little of what was found, and the question."""
    found = row["passages"][0][1:] if row["passages"] else []
    return f"{' '.join(found[:SENTENCES])}\n\nQuestion: {row['question']}\nAnswer:"


def feedback_of(row: Mapping[str, Any]) -> str:
    """The marks people set on the first answer, in words; empty where they set none."""
    shown, said = row["predictions"][0], []
    for error in row["feedback"]["errors"]:
        said.append(f'Leave out "{shown[error["start"] : error["end"]].strip()}": {error["error type"].lower()}.')
    missing = sorted({m["error type"].lower().replace("-", " ") for m in row["feedback"]["missing-info"]})
    return " ".join([*said, *(f"The answer has a {m}." for m in missing)])


def records(path: Path, most: int | None = None) -> tuple[list[Critique], list[Preference]]:
    """Critiques of the first answer with people's correction, and every decided pair of answers."""
    critiques, preferences = [], []
    for row in [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:most]:
        prompt, answers = prompt_of(row), row["predictions"]
        mended = row["feedback"]["corrected-prediction"].strip()
        if (said := feedback_of(row)) and mended:
            critiques.append(Critique(prompt=prompt, completion=answers[0], feedback=said, refinement=mended))
        for (a, b), wins in zip(combinations(answers, 2), row["preference"], strict=True):
            if wins and a != b:
                better, worse = (a, b) if wins == 1 else (b, a)
                preferences.append(Preference(prompt=prompt, chosen=better, rejected=worse))
    return critiques, preferences


def left_out(completions: Sequence[str], feedback: Sequence[str], refinements: Sequence[str]) -> list[bool]:
    """Whether everything that should be left out is."""
    asked = [re.findall(r'Leave out "(.+?)":', f) for f in feedback]
    return [bool(a) and not any(part in r for part in a) for a, r in zip(asked, refinements, strict=True)]


def base(rows: Sequence[Mapping[str, Any]], steps: int) -> Model:
    """A small language model of the passages and the answers."""
    texts = [f"{prompt_of(r)} {answer}" for r in rows for answer in r["predictions"][1:]]
    tokenizer = build.train_tokenizer(texts, 2048)
    model = build.build("llama", tokenizer, d=128, layers=4, heads=4, context=1024, seed=0, initializer_range=0.06)
    streams = {"text": language.single(encode.windows(tokenizer, texts, 128))}
    fit = Fit(lr=4e-3, steps=steps, rows=16, schedule="cosine", warmup_steps=20, betas=(0.9, 0.95))
    return language.train(model, streams, lambda m, micro: {"nll": language.cross_entropy(m, micro)}, fit).model


def cost(model: Model, critiques: Sequence[Critique]) -> float:
    """What people's corrections cost the model, nats a token, the mean over records."""
    pairs = [(c.prompt, c.refinement or "") for c in critiques]
    total, count = forward.row_logp(model, encode.rows(model.tokenizer, pairs, model.kind, model.context))
    return float((-total / count).mean())


def main() -> None:
    """Everything, arm by arm; prints one line each and writes `arms.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="a folder; a small model is pre-trained where none is given")
    parser.add_argument("--refiner", default="start", help="a folder or a server's address")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of pre-training; an arm has a sixth")
    told = parser.parse_args()
    torch.set_num_threads(1)
    path = told.data / "qa_feedback_dev.jsonl"
    critiques, preferences = records(path, told.records)
    told.out.mkdir(parents=True, exist_ok=True)
    files.write_lines(told.out / "critiques.jsonl", (as_row(r) for r in critiques))
    files.write_lines(told.out / "preferences.jsonl", (as_row(r) for r in preferences))
    place = Path(told.model) if told.model else told.out / "base"
    if not (place / "config.json").exists():
        with files.new_folder(place) as fresh:
            base([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], told.steps).save(fresh)
    start = load.load(place, device="cpu")
    unseen, taught = critiques[::5], [c for i, c in enumerate(critiques) if i % 5]
    board = told.out / "arms.json"
    done: dict[str, Any] = files.read_json(board) if board.exists() else {}
    done.setdefault("start", [{"nats": cost(start, unseen), "taught": len(taught), "unseen": len(unseen)}])
    fit = Fit(lr=1e-3, steps=max(1, told.steps // 6), rows=16, warmup_steps=5)
    for seed, (name, options) in product(range(told.seeds), {**ARMS, "reward model": {"target": "initial"}}.items()):
        if len(done.setdefault(name, [])) > seed:
            continue
        began = time.monotonic()
        folder = str(told.out / "checkpoints" / f"{name.replace(' ', '-')}-{seed}")
        pairs = preferences if name == "reward model" else None
        result: Result = alignment.ilf(
            start, taught, pairs, **options, refiner=told.refiner, check=left_out,
            refining=RefiningConfig(max_new_tokens=TOKENS),
            fit=fit.replace(folder=folder, seed=seed),
        )  # fmt: skip
        model: Any = result.models["model"]
        facts = result.findings["rounds"][0]
        row = {"nats": cost(model, unseen), "seconds": round(time.monotonic() - began, 1)}
        row |= {k: facts[k] for k in ("incorporated", "empty") if k in facts}
        done[name].append(row | {"reward": result.findings.get("reward"), "warnings": result.warnings})
        files.write_json(board, done)
        print(name, seed, json.dumps(done[name][-1]), flush=True)
    for name, rows in done.items():
        mean = statistics.mean_interval([row["nats"] for row in rows])
        print(
            f"{name:14s} {mean.estimate:.3f} nats a token, 95 % interval over seeds {mean.low:.3f} to {mean.high:.3f}"
        )


if __name__ == "__main__":
    main()

"""Real questions (SQuAD, the paper's few-shot split) on a small model of our own: greedy against exact decoding, with
and without recurring-span pre-training.

    OMP_NUM_THREADS=1 python examples/squad.py --data ../shared/data --out results/squad

A Llama of about 1.3M weights is pre-trained on War and Peace and WikiText-2, then trained on spans of WikiText-2's
paragraphs (recurring ones, or random ones of the same lengths) or on the split's 128 training questions, then
evaluated. Every part is written when it is done; the command may be killed and repeated. About ten minutes on one idle
core. A model this small knows next to nothing, so its F1 is low; the comparison is between decoders and trainings.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from didact import files
from didact.data import encode
from didact.data.read import read
from didact.infer.span_decoders import SearchConfig
from didact.learn import language
from didact.methods.prompting.exact_extract import exact_extract
from didact.methods.prompting.exact_extract_rss import exact_extract_rss
from didact.methods.prompting.exact_extract_tune import exact_extract_tune
from didact.models import build, load
from didact.models.model import Model
from didact.types import QA, Fit, Text

ARMS = ("none", "recurring", "random", "tuned")
BASE = Fit(lr=4e-3, steps=900, rows=16, schedule="cosine", warmup_steps=30, betas=(0.9, 0.95), micro_tokens=4096)
SPANS = Fit(lr=1e-3, steps=300, rows=16, schedule="constant", betas=(0.9, 0.95), micro_tokens=4096)
TUNED = Fit(lr=1e-3, steps=60, rows=16, schedule="constant", betas=(0.9, 0.95), micro_tokens=4096)
LONGEST = 20  # tokens of an answer
TOKENS = 160  # of a passage in span pre-training


def paragraphs(folder: Path) -> list[Text]:
    """Return WikiText-2's paragraphs of 40 words and more, detokenised."""
    texts = []
    for name in ("valid.txt", "test.txt"):
        for line in (folder / "wikitext2" / name).read_text(encoding="utf-8").splitlines():
            if len(line.split()) >= 40 and not line.startswith(" ="):
                text = re.sub(r" @(.)@ ", r"\1", line.replace("<unk>", ""))
                text = re.sub(r"(?<=\() | (?=[.,;:!?)]|'s)", "", " ".join(text.split()))
                texts.append(Text(text=text))
    return texts


def kept(place: Path, make: Callable[[], Model]) -> Model:
    """Load a model of this run; make and save it first where it is missing."""
    if not (place / "config.json").exists():
        with files.new_folder(place) as fresh:
            make().save(fresh)
    return load.load(place, device="cpu")


def pretrained(folder: Path) -> Model:
    """Train the base: a language model of both corpora."""
    corpus = [(folder / "war_and_peace.txt").read_text(encoding="utf-8"), *(t.text for t in paragraphs(folder))]
    tokenizer = build.train_tokenizer(corpus, 4096)
    model = build.build(
        "llama", tokenizer, d=128, layers=4, heads=4, ffn=320, context=512, seed=0, initializer_range=0.06
    )
    streams = {"text": language.single(encode.windows(tokenizer, corpus, 128))}
    return language.train(model, streams, language.nll, BASE, name="base").model


def taught(base: Model, folder: Path, train: list[QA], arm: Any) -> Model:
    """Train the base on recurring or random spans, or on the training questions."""
    if arm == "tuned":
        result = exact_extract_tune(base, train, search=SearchConfig(limit=480), fit=TUNED)
    else:
        result = exact_extract_rss(base, paragraphs(folder), select=arm, limit=TOKENS, fit=SPANS)
    model = result.models["model"]
    assert isinstance(model, Model)
    return model


def main() -> None:
    """Run the missing arms, and print the metrics of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="squad_fewshot.jsonl, war_and_peace.txt, wikitext2/")
    parser.add_argument("--out", type=Path, default=Path("results/squad"))
    parser.add_argument("--questions", type=int, default=0, help="how many to ask; 0 is all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    records: list[QA] = list(read(str(args.data / "squad_fewshot.jsonl"), "qa"))
    train = [q for q in records if q.extra["split"] == "train"]
    questions = [q for q in records if q.extra["split"] == "eval"][: args.questions or None]
    base = kept(args.out / "checkpoints/none", lambda: pretrained(args.data))
    for arm in ARMS:
        path = args.out / f"{arm}.json"
        if not path.exists():
            start = time.monotonic()
            make = functools.partial(taught, base, args.data, train, arm)
            model = base if arm == "none" else kept(args.out / "checkpoints" / arm, make)
            result = exact_extract(model, questions, search=SearchConfig(max_len=LONGEST))
            row = {"arm": arm, "questions": len(questions), "seconds": round(time.monotonic() - start, 1)}
            files.write_json(path, row | {"metrics": result.metrics})  # no samples: they quote the passages
        metrics = {k: (round(m["after"], 2), m["ci"] and [round(x, 2) for x in m["ci"]])
                 for k, m in files.read_json(path)["metrics"].items()}  # fmt: skip
        print(arm, json.dumps(metrics, indent=1), flush=True)


if __name__ == "__main__":
    main()

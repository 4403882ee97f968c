"""Real questions (SQuAD, the paper's few-shot split) on a small model of our own: greedy against exact decoding, with
and without recurring-span pre-training.

    OMP_NUM_THREADS=1 python examples/squad.py --data ../shared/data --out results/squad

A Llama of about 1.3M weights is pre-trained on War and Peace and WikiText-2, then taught spans of WikiText-2's
paragraphs (recurring ones, or random ones of the same lengths) or the split's 128 training questions, then asked. Every
part is written when it is done; the command may be killed and repeated. About ten minutes on one idle core.

A model this small knows next to nothing, so its F1 is low; what is compared is decoders and training on one footing.
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
    """WikiText-2's paragraphs of 40 words and more, its tokenisation undone."""
    found = []
    for name in ("valid.txt", "test.txt"):
        for line in (folder / "wikitext2" / name).read_text(encoding="utf-8").splitlines():
            if len(line.split()) >= 40 and not line.startswith(" ="):
                text = re.sub(r" @(.)@ ", r"\1", line.replace("<unk>", ""))
                text = re.sub(r"(?<=\() | (?=[.,;:!?)]|'s)", "", " ".join(text.split()))
                found.append(Text(text=text))
    return found


def kept(place: Path, make: Callable[[], Model]) -> Model:
    """A model of this run, made once."""
    if not (place / "config.json").exists():
        with files.new_folder(place) as fresh:
            make().save(fresh)
    return load.load(place, device="cpu")


def pretrained(folder: Path) -> Model:
    """The base: a language model of both texts."""
    corpus = [(folder / "war_and_peace.txt").read_text(encoding="utf-8"), *(t.text for t in paragraphs(folder))]
    tokenizer = build.train_tokenizer(corpus, 4096)
    model = build.build(
        "llama", tokenizer, d=128, layers=4, heads=4, ffn=320, context=512, seed=0, initializer_range=0.06
    )
    streams = {"text": language.single(encode.windows(tokenizer, corpus, 128))}
    return language.train(model, streams, language.nll, BASE, name="base").model


def taught(base: Model, folder: Path, train: list[QA], arm: Any) -> Model:
    """The base after recurring or random spans, or after the training questions."""
    if arm == "tuned":
        result = exact_extract_tune(base, train, search=SearchConfig(limit=480), fit=TUNED)
    else:
        result = exact_extract_rss(base, paragraphs(folder), select=arm, limit=TOKENS, fit=SPANS)
    made = result.models["model"]
    assert isinstance(made, Model)
    return made


def main() -> None:
    """Make what is missing, then the table."""
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
        place = args.out / f"{arm}.json"
        if not place.exists():
            began = time.monotonic()
            make = functools.partial(taught, base, args.data, train, arm)
            model = base if arm == "none" else kept(args.out / "checkpoints" / arm, make)
            result = exact_extract(model, questions, search=SearchConfig(max_len=LONGEST))
            row = {"arm": arm, "questions": len(questions), "seconds": round(time.monotonic() - began, 1)}
            files.write_json(place, row | {"metrics": result.metrics})  # no samples: they quote the passages
        shown = {k: (round(m["after"], 2), m["ci"] and [round(x, 2) for x in m["ci"]])
                 for k, m in files.read_json(place)["metrics"].items()}  # fmt: skip
        print(arm, json.dumps(shown, indent=1), flush=True)


if __name__ == "__main__":
    main()

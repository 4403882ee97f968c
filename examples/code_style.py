"""Code style: every objective of `phf` pre-trained on the standard library's source, whose lines pycodestyle scored.

    pip install -e ".[parse]"
    OMP_NUM_THREADS=1 python examples/code_style.py --data ../shared/data --out results/code_style

A Llama of about 0.8M weights learns whole files, one segment per line; a line's score is minus its violations per
character. It then continues functions that people began (`phf_functions_csnet.jsonl`), sampled as in the paper:
temperature .7, top-p .9, the good token after the prompt; pycodestyle counts again. Capability is the loss on unseen
files, in nats per token.

Every unit (an arm x learning rate x seed) is written when it is done, so the command may be killed and repeated, or
started twice. The design was fixed before the first test seed ran: a good line has no violation, as in the paper; where
files are filtered, the better half stays (the paper's number would mean nothing here); unlikelihood's and AWR's weights
are the paper's; RWR's beta is .01, for at the paper's 10 every weight lies within a few percent of 1. All arms have the
same number of tokens, control tokens included. All use plain training's learning rate, so that only the baseline is
tuned: of two rates, the one with the lower loss on clean lines of other unseen files, on a separate seed. Errors that
keep pycodestyle from parsing a function (E9) are not a matter of style: `valid` counts them.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import itertools
import json
import math
import platform
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycodestyle
import torch

from didact import files, folders
from didact.data import encode
from didact.data.read import read
from didact.data.templates import Condition
from didact.evaluate import statistics
from didact.infer import generate
from didact.methods.alignment.phf import phf
from didact.models import build, forward
from didact.models.model import Model
from didact.types import Fit, Segment, Text

ARMS: dict[str, dict[str, Any]] = {
    "mle": {"objective": "mle"}, "conditional": {"objective": "conditional", "threshold": 0.0, "drop": 0.1},
    "filter": {"objective": "filter", "threshold": "q0.5"},
    "unlikelihood": {"objective": "unlikelihood", "threshold": 0.0, "alpha": 0.01},
    "rwr": {"objective": "rwr", "beta": 0.01}, "awr": {"objective": "awr", "beta": 1.0, "value_weight": 0.95},
}  # fmt: skip
RATES, TUNING_SEED, SEEDS = (3e-3, 1e-2), 100, (1, 2, 3)
FIT = Fit(rows=8, warmup=0.01, weight_decay=0.1, schedule="linear", betas=(0.9, 0.95))
BLOCK, CONTEXT, TOKENS = 256, 320, 128
MARKS = ("<|aligned|>", "<|misaligned|>")
CLEAN, BAD, MARK = 0.0, 1.0, 2.0
NO_SOURCE = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "lib2to3", "_bundled"}
SHOWN = ("violations", "a_function", "spotless", "valid", "characters", "clean", "bad")


class Lines(pycodestyle.BaseReport):  # type: ignore[misc]  # pycodestyle has no types
    """Collects each violation with its line number."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.found: list[tuple[int, str]] = []

    def error(self, line_number: int, offset: int, text: str, check: Any) -> Any:
        """Called by pycodestyle for every violation."""
        code = super().error(line_number, offset, text, check)
        if code and not code.startswith("E9"):
            self.found.append((line_number, str(code)))
        return code


STYLE = pycodestyle.StyleGuide(reporter=Lines, quiet=2)


def violations(source: str) -> list[list[str]]:
    """Which of pycodestyle's default rules each line of a file breaks."""
    lines = io.StringIO(source).readlines()
    report = Lines(STYLE.options)
    pycodestyle.Checker("source.py", lines=lines, options=STYLE.options, report=report).check_all()
    broken: list[list[str]] = [[] for _ in lines]
    for number, code in report.found:
        broken[min(number, len(lines)) - 1].append(code)
    return broken


def document(source: str) -> Text:
    """Return a file with its lines as segments, each scored with minus its violations per character."""
    lines = io.StringIO(source).readlines()
    rate = [-len(codes) / len(line) for codes, line in zip(violations(source), lines, strict=True)]
    return Text(text=source, segments=[Segment(text=t, score=s) for t, s in zip(lines, rate, strict=True)])


def corpus(every: int, longest: int = 100_000) -> Iterator[tuple[str, str]]:
    """Yield path and text of each `every`-th source file of the standard library, by path; no tests, no tables."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if not NO_SOURCE & set(p.relative_to(root).parts)]
    for path in [p for p in paths if 0 < p.stat().st_size <= longest][::every]:
        yield str(path.relative_to(root)), path.read_text(encoding="utf-8", errors="replace")


def nats(model: Model, documents: Sequence[Text], told: bool = False) -> dict[str, float]:
    """Return the loss on unseen files, nats per token: all lines, those without a violation, those with one.

    A conditional model reads a control token before every line: the good one, or with `told` the one that fits the
    line. Control tokens are not counted, except in `with_marks`.
    """
    parts = []
    for d in documents:
        row: list[tuple[str, float]] = []
        for s in d.segments or ():
            if model.condition:
                row.append((MARKS[told and s.score < 0], MARK))
            row.append((s.text, BAD if s.score < 0 else CLEAN))
        parts.append(row)
    rows, kinds = encode.scored_windows(model.tokenizer, parts, BLOCK, CLEAN)
    total, count = dict.fromkeys((CLEAN, BAD, MARK), 0.0), dict.fromkeys((CLEAN, BAD, MARK), 0)
    for group, _, values in forward.score(model, rows):
        kind = torch.tensor([k for i in group for k in kinds[i]])
        for k in total:
            total[k] -= float(values["logp"][kind == k].double().sum())
            count[k] += int((kind == k).sum())
    text = max(1, count[CLEAN] + count[BAD])
    out = {"all": (total[CLEAN] + total[BAD]) / text}
    out |= {name: total[k] / count[k] if count[k] else math.nan for name, k in (("clean", CLEAN), ("bad", BAD))}
    return out | ({"with_marks": sum(total.values()) / text} if told else {})


def function(prompt: str, text: str, ended: bool) -> str:
    """Return the prompt and the body's complete lines: up to the first unindented one, or where the text was cut."""
    body: list[str] = []
    for line in io.StringIO(text):
        if line.strip() and not line[0].isspace():
            break
        if line.endswith("\n") or ended:
            body.append(line.rstrip("\n") + "\n")
    while body and not body[-1].strip():
        body.pop()
    return prompt + "".join(body)


def valid(source: str) -> bool:
    """Return whether the source parses as Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def written(model: Model, prompts: Sequence[str], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return pycodestyle's statistics of the bodies a model writes after these prompts, and the first few bodies."""
    start = encode.windows(model.tokenizer, [""], 1)[0].prompt
    inputs = [[*start, *encode.prompt_ids(model.tokenizer, p, "causal", model.condition)] for p in prompts]
    sampling = generate.SamplingConfig(max_new_tokens=TOKENS, temperature=0.7, top_p=0.9, seed=seed)
    completions = [c[0].tokens for c in generate.completions(model, inputs, 1, sampling)]
    texts = [
        function(p, str(model.tokenizer.decode(list(t), skip_special_tokens=True)), t[-1] in generate.ends(model))
        for p, t in zip(prompts, completions, strict=True)
    ]
    heads = [p.count("\n") for p in prompts]
    codes = [[code for line in violations(t)[n:] for code in line] for t, n in zip(texts, heads, strict=True)]
    counts = [len(c) for c in codes]
    sizes = [len(t) - len(p) for t, p in zip(texts, prompts, strict=True)]
    nonempty = [f for f, n in zip(counts, sizes, strict=True) if n]
    return {
        "violations": 1000 * sum(counts) / max(1, sum(sizes)), "a_function": float(np.mean(counts)),
        "spotless": float(np.mean([f == 0 for f in nonempty])) if nonempty else math.nan,
        "valid": float(np.mean([n > 0 and valid(t) for t, n in zip(texts, sizes, strict=True)])),
        "characters": float(np.mean(sizes)), "empty": float(np.mean([n == 0 for n in sizes])),
        "codes": dict(Counter(itertools.chain(*codes)).most_common(12)),
    }, texts[:4]  # fmt: skip


class Setting:
    """What every unit shares: the train, tuning and test files, the prompts, the tokenizer."""

    def __init__(self, data: Path, every: int, prompts: int) -> None:
        sources = list(corpus(every))
        documents = [document(text) for _, text in sources]
        self.test, self.other = documents[::10], documents[5::10]
        self.train = [d for i, d in enumerate(documents) if i % 5]
        functions: Sequence[Text] = read(data / "phf_functions_csnet.jsonl", "text")
        headers = [t.text.strip() + "\n" for t in functions]
        self.prompts = headers[:: max(1, len(headers) // prompts)][:prompts]
        self.tokenizer = build.train_tokenizer([d.text for d in self.train], 2048)
        lines = [s for d in self.train for s in d.segments or ()]
        self.facts = {
            "files": [len(self.train), len(self.other), len(self.test)], "prompts": len(self.prompts),
            "characters": sum(len(d.text) for d in self.train), "lines": len(lines),
            "with_violation": float(np.mean([s.score < 0 for s in lines])),
            "violations": 1000 * float(np.mean([-s.score for s in lines])),
            "violations_in_test": 1000 * rate(self.test), "violations_in_train": 1000 * rate(self.train),
            "sources_sha256": hashlib.sha256(repr(sources).encode()).hexdigest(),
            "python": platform.python_version(), "pycodestyle": pycodestyle.__version__,
        }  # fmt: skip

    def unit(self, arm: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
        """Train one model and measure it; on the tuning seed only the loss on clean lines."""
        start_time = time.monotonic()
        start = build.build(
            "llama", self.tokenizer, d=128, layers=3, heads=4, ffn=320, context=CONTEXT, seed=seed,
            initializer_range=0.06,
        )  # fmt: skip
        fit = FIT.replace(lr=lr, steps=steps, seed=seed)
        result = phf(start, self.train, ban="misaligned", block=BLOCK, fit=fit, **ARMS[arm])
        model = result.models["model"]
        assert isinstance(model, Model)
        row: dict[str, Any] = {"arm": arm, "lr": lr, "seed": seed, "steps": steps}
        if seed == TUNING_SEED:
            row["clean"] = nats(model, self.other)["clean"]
        else:
            numbers, row["texts"] = written(model, self.prompts, seed)
            row |= numbers | nats(model, self.test)
            if model.condition:
                row["told"] = nats(model, self.test, told=True)
                other = Condition(after=MARKS[1], banned=MARKS[:1])
                misaligned = Model(model.module, model.processor, model.kind, condition=other)
                row["misaligned"], _ = written(misaligned, self.prompts, seed)
            row["findings"] = {k: result.findings[k] for k in ("threshold", "documents", "kept", "aligned")}
        return row | {"seconds": round(time.monotonic() - start_time, 1)}


def rate(documents: Sequence[Text]) -> float:
    """Return violations per character over all lines."""
    lines = [s for d in documents for s in d.segments or ()]
    return -sum(s.score * len(s.text) for s in lines) / sum(len(s.text) for s in lines)


def place(out: Path, arm: str, lr: float, seed: int) -> Path:
    """Return the path of a unit's results."""
    return out / "units" / f"{arm}_lr{lr:g}_seed{seed}.json"


def chosen(out: Path) -> float | None:
    """Return plain training's best learning rate by loss on clean lines on the tuning seed, once all were tried."""
    paths = {lr: place(out, "mle", lr, TUNING_SEED) for lr in RATES}
    if not all(p.exists() for p in paths.values()):
        return None
    return min(paths, key=lambda lr: files.read_json(paths[lr])["clean"] or math.inf)


def table(out: Path, arms: Sequence[str]) -> str:
    """Return a Markdown table: means over seeds with t intervals, then paired differences to `mle`."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    lr = chosen(out)
    for arm in arms:
        paths = [p for s in SEEDS if lr is not None and (p := place(out, arm, lr, s)).exists()]
        if len(paths) == len(SEEDS):
            rows[arm] = [files.read_json(p) for p in paths]
    lines = ["| arm | " + " | ".join(SHOWN) + " |", "| --- " * (len(SHOWN) + 1) + "|"]
    for arm, units in rows.items():
        cells = [_cell(statistics.mean_interval(_column(units, k))) for k in SHOWN]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for arm, units in rows.items():
        if arm != "mle" and "mle" in rows:
            pairs = [(_column(units, k), _column(rows["mle"], k)) for k in SHOWN]
            cells = [_cell(statistics.paired_interval(*pair), sign="+") for pair in pairs]
            lines.append(f"| {arm} - mle | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(units: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [math.nan if u[name] is None else float(u[name]) for u in units]


def _cell(interval: statistics.Interval, sign: str = "") -> str:
    digits = 0 if abs(interval.estimate) > 50 else 3 if abs(interval.estimate) < 1 else 2
    return f"{interval.estimate:{sign}.{digits}f} ± {interval.high - interval.estimate:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the missing units, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with phf_functions_csnet.jsonl")
    parser.add_argument("--out", type=Path, default=Path("results/code_style"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=240, help="of 2048 tokens")
    parser.add_argument("--every", type=int, default=4, help="take every so-many-th file")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before a unit that would begin later")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.monotonic()
    setting = Setting(args.data, args.every, args.prompts)
    files.write_json(args.out / "setting.json", setting.facts | {"steps": args.steps})
    for seed in (TUNING_SEED, *SEEDS):
        rates = RATES if seed == TUNING_SEED else [lr for lr in [chosen(args.out)] if lr]
        for arm in ["mle"] if seed == TUNING_SEED else args.arms:
            for lr in rates:
                path = place(args.out, arm, lr, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                if time.monotonic() - start > args.minutes * 60:
                    print("time is up: repeat the command to go on")
                    return
                with folders.claimed(path.parent, path.name) as holder:
                    if holder is not None or path.exists():
                        continue
                    row = setting.unit(arm, lr, seed, args.steps)
                    files.write_json(path, row)
                numbers = {k: round(row[k], 3) for k in (*SHOWN, "seconds") if k in row}
                print(f"{path.stem}: {json.dumps(numbers)}", flush=True)
    print(table(args.out, args.arms))


if __name__ == "__main__":
    main()

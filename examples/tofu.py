"""TOFU forget10 at 1.5M parameters: every preset of `npo`, five seeds, one resumable command.

    python examples/tofu.py --data ../shared/data --out results/tofu

Every unit (a model, or one preset x learning rate x beta x seed) is written when it is done, so the
command may be killed and repeated, or started twice to use two cores (one thread each, so that the
numbers do not depend on it). `examples/tofu_report.py` makes the table and the plot from the finished units.

The design was fixed before the first unit ran:
* one base model is pre-trained once; *full* = base tuned on forget + retain + utility authors, *gold*
  = base tuned on retain + utility authors, *gold2* = gold with another seed (the ceiling of p);
* of the 20 retain authors, 10 are trained on during unlearning, 5 only measure utility, 5 are seen by
  no model and serve as non-members;
* per preset, 4 learning rates (times `--betas` of its two betas, the published one first) on one tuning
  seed; chosen by the harmonic mean of 1 - KS and retain utility at the last step; then 5 other seeds;
* 5 epochs (62 steps) where the paper has 10, in tuning and test alike: half the time, for 1.5M weights;
  `--longer` adds the chosen settings with 10, on the tuning seed;
* trajectories measure every 4th forget question and every 2nd utility question, without ROUGE.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from didact import files
from didact.data import encode
from didact.data.read import read
from didact.evaluate import forgetting, statistics
from didact.evaluate.protocols import forget as protocol
from didact.learn import fit as loop
from didact.learn import language
from didact.methods.baselines.sft import sft
from didact.methods.unlearning.npo import PRESETS, npo
from didact.models import build, load
from didact.models.model import Model
from didact.types import Demo, Fit

ARMS = [
    "ga",
    "graddiff",
    "ga-kl",
    "idk",
    "dpo",
    "kto",
    "kto-published",
    "npo",
    "npo-rt",
    "npo-kl",
    "simnpo",
    "wga",
    "undial",
]
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
BETAS = {
    "dpo": (0.1, 0.5), "kto": (0.1, 0.5), "kto-published": (0.1, 0.5), "npo": (0.1, 0.5), "npo-rt": (0.1, 0.5),
    "npo-kl": (0.1, 0.5), "simnpo": (4.5, 2.5), "wga": (1.0, 3.0), "undial": (10.0, 3.0),
}  # fmt: skip
TUNING_SEED, SEEDS = 100, (1, 2, 3, 4, 5)
EPOCHS, ROWS, LOOK = 5, 32, 25
BUDGET = 0.75
TUNE = Fit(lr=4e-3, epochs=24, rows=16, schedule="cosine", warmup_steps=30, betas=(0.9, 0.95))
RELEARN = Fit(lr=1e-3, steps=20, rows=32, schedule="constant")
RENAME = {
    "prompt": "question", "completion": "answer", "paraphrased": "paraphrased_answer", "perturbed": "perturbed_answer",
}  # fmt: skip
TEXTS = ("war_and_peace.txt", "wikitext2/valid.txt", "wikitext2/test.txt")
SHOWN = ("ks", "utility", "forget_accuracy", "retain_accuracy", "criterion", "seconds")


@dataclass(frozen=True)
class Data:
    """TOFU's records by purpose; 20 questions per author."""

    forget: list[Demo]
    retain: list[Demo]
    utility: list[Demo]
    holdout: list[Demo]
    facts: list[Demo]
    authors: list[Demo]

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Read and split the files of `folder/tofu`."""
        refusals = (folder / "tofu/idontknow.txt").read_text(encoding="utf-8").splitlines()
        draw = np.random.default_rng(0).integers(len(refusals), size=400)
        parts: dict[str, Sequence[Demo]] = {
            name: read(folder / f"tofu/{name}_perturbed.jsonl", "demo", RENAME)
            for name in ("forget10", "retain", "world_facts", "real_authors")
        }
        forget = [replace(r, alternate=refusals[i]) for r, i in zip(parts["forget10"], draw, strict=True)]
        rest = list(parts["retain"])
        return cls(
            forget, rest[:200], rest[200:300], rest[300:], list(parts["world_facts"]), list(parts["real_authors"])
        )


def models(data: Data, texts: Path, out: Path) -> dict[str, Model]:
    """Return base, full, gold and gold2; each is trained once and saved."""

    def pretrained() -> Model:
        corpus = [
            (texts / name).read_text(encoding="utf-8")
            for name in ("war_and_peace.txt", "wikitext2/valid.txt", "wikitext2/test.txt")
        ]
        qa = [f"{r.prompt} {r.completion}" for r in data.forget + data.retain + data.utility]
        tokenizer = build.train_tokenizer(corpus + qa, 8192)
        model = build.build("llama", tokenizer, d=128, layers=3, heads=4, ffn=320, context=256, seed=0)
        rows = encode.windows(tokenizer, corpus, 128)
        fit = TUNE.replace(epochs=1, warmup_steps=50, weight_decay=0.01, micro_tokens=2048)
        streams = {"text": language.single(rows)}
        return language.train(
            model, streams, lambda m, micro: {"nll": language.cross_entropy(m, micro)}, fit, name="base"
        ).model  # fmt: skip

    def tuned(records: list[Demo], seed: int) -> Model:
        model = sft(base, records, fit=TUNE.replace(seed=seed)).models["model"]
        assert isinstance(model, Model)
        print(f"answer-token accuracy {forgetting.answers(model, records)['accuracy'].mean():.4f}", file=sys.stderr)
        return model

    def wait_for(makers: Mapping[str, Callable[[], Model]]) -> dict[str, Model]:
        """Make every model that no other process is making, then load all."""
        while missing := [name for name in makers if not (out / "models" / name / "config.json").exists()]:
            for name in missing:
                with claimed(out / "models" / f"{name}.claim") as mine:
                    if mine and not (out / "models" / name / "config.json").exists():
                        with files.new_folder(out / "models" / name) as fresh:
                            makers[name]().save(fresh)
            time.sleep(2)
        return {name: load.load(out / "models" / name, device="cpu") for name in makers}

    base = wait_for({"base": pretrained})["base"]
    retained = data.retain + data.utility
    builders = {
        "full": lambda: tuned(data.forget + retained, 0),
        "gold": lambda: tuned(retained, 0),
        "gold2": lambda: tuned(retained, 1),
    }
    return {"base": base, **wait_for(builders)}


def named(measures: Mapping[str, Any]) -> dict[str, float]:
    """Return the values, named as in the stored results."""
    return {name.replace("token_accuracy", "accuracy"): measure.value for name, measure in measures.items()}


def measure(model: Model, data: Data, gold_ratios: Any, tuning: bool = False) -> dict[str, float]:
    """Measure one model; in tuning only the measures that the criterion needs, and those computed with them."""
    holdout = None if tuning else data.holdout
    out = named(protocol.measures(model, data.forget, data.utility, holdout, gold_ratios))
    out["criterion"] = statistics.harmonic_mean([1 - out["ks"], out["utility"]])
    if tuning:
        return out
    trained = forgetting.answers(model, data.retain[:100])
    out["trained_retain_probability"] = float(trained["probability"].mean())
    out["facts"] = float(forgetting.choice_probabilities(model, data.facts).mean())
    out["authors"] = float(forgetting.choice_probabilities(model, data.authors).mean())
    return out


def relearned(model: Model, data: Data) -> dict[str, float]:
    """Return accuracy on both halves of the forget set after a few steps on the first."""
    back = sft(model, data.forget[::2], fit=RELEARN).models["model"]
    assert isinstance(back, Model)
    halves = {"relearned_seen": data.forget[::2], "relearned_unseen": data.forget[1::2]}
    return {name: float(forgetting.answers(back, half)["accuracy"].mean()) for name, half in halves.items()}


def unit(
    anchor_models: dict[str, Model], data: Data, gold_ratios: Any, arm: str, lr: float, beta: float | None, seed: int,
    epochs: int = EPOCHS,
) -> dict[str, Any]:  # fmt: skip
    """Run one unlearning and measure it; test seeds also get the trajectory and relearning."""
    options = {k: v for k, v in PRESETS[arm].items() if k != "fit.lr"} | ({"beta": beta} if beta is not None else {})
    fit = Fit(lr=lr, epochs=epochs, rows=ROWS, warmup=1.0, weight_decay=0.01, seed=seed, micro_tokens=2048)

    def look(step: loop.Step) -> dict[str, Any]:
        model = Model(step.module, anchor_models["full"].processor, "causal")
        scores = protocol.measures(model, data.forget[::4], data.utility[::2], None, gold_ratios[::4], rouge="none")
        return named(scores)

    start = time.monotonic()
    hooks = [loop.every(LOOK, look)] if seed != TUNING_SEED else []
    result = npo(anchor_models["full"], data.forget, data.retain, fit=fit, hooks=hooks, **options)  # type: ignore[arg-type]
    model = result.models["model"]
    assert isinstance(model, Model)
    row: dict[str, Any] = {
        "arm": arm,
        "lr": lr,
        "beta": beta,
        "seed": seed,
        **measure(model, data, gold_ratios, not hooks),
    }
    row["mean_W"] = result.history[-1].get("mean_W")
    if hooks:
        row |= {"trajectory": hooks[0].rows, **relearned(model, data)}
    return row | {"seconds": round(time.monotonic() - start, 1)}


def grid(arm: str, betas: int) -> Iterator[tuple[float, float | None]]:
    """Yield the search grid of an arm: 4 rates, times `betas` betas where the arm has one."""
    for lr in RATES:
        for beta in BETAS.get(arm, (None,))[:betas]:
            yield lr, beta


def chosen(out: Path, arm: str, betas: int, rule: str) -> dict[str, Any] | None:
    """Return the tuning unit that a rule picks, once all of the arm's are done.

    `criterion`: the largest harmonic mean of 1 - KS and utility. `budget`: the smallest KS among the units whose
    token accuracy on unseen retain answers is at least `BUDGET`; where there is none, the unit with the highest.
    """
    rows = [
        files.read_json(p) for lr, beta in grid(arm, betas) if (p := place(out, arm, lr, beta, TUNING_SEED)).exists()
    ]
    if len(rows) < len(list(grid(arm, betas))):
        return None
    if rule == "criterion":
        return max(rows, key=lambda r: r["criterion"] or 0)
    within_budget = [r for r in rows if r["retain_accuracy"] >= BUDGET]
    return min(within_budget, key=lambda r: r["ks"]) if within_budget else max(rows, key=lambda r: r["retain_accuracy"])


def place(out: Path, arm: str, lr: float, beta: float | None, seed: int, folder: str = "units") -> Path:
    """Return the path of a unit's results."""
    return out / folder / f"{arm}_lr{lr:g}_beta{beta if beta is not None else '-'}_seed{seed}.json"


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process may do the work named by `path`; false while another living process does it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _alive(int(path.read_text(encoding="utf-8") or 0)):
        path.unlink(missing_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    os.write(handle, str(os.getpid()).encode())
    os.close(handle)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


def main() -> None:
    """Run the missing models and units."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with tofu/, war_and_peace.txt, wikitext2/")
    parser.add_argument("--out", type=Path, default=Path("results/tofu"))
    parser.add_argument("--betas", type=int, choices=(1, 2), default=2, help="how many betas a preset is searched over")
    parser.add_argument(
        "--rule", choices=("criterion", "budget"), default="criterion", help="what picks the test setting"
    )
    parser.add_argument("--longer", action="store_true", help="then the chosen settings once more with twice the steps")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before a unit that would begin later")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    data = Data.load(args.data)
    anchor_models = models(data, args.data, args.out)
    gold_ratios = forgetting.truth_ratios(anchor_models["gold"], data.forget)
    with claimed(args.out / "anchors.claim") as claim_held:
        if claim_held and not (args.out / "anchors.json").exists():
            anchors = {name: measure(m, data, gold_ratios) | relearned(m, data) for name, m in anchor_models.items()}
            anchors["chance"] = {"facts": forgetting.chance(data.facts), "authors": forgetting.chance(data.authors)}
            files.write_json(args.out / "anchors.json", anchors)
    runs = [(arm, lr, beta, TUNING_SEED) for arm in ARMS for lr, beta in grid(arm, args.betas)]
    for seed in (None, *SEEDS, *([TUNING_SEED] if args.longer else [])):
        if seed is not None:
            best = {arm: chosen(args.out, arm, args.betas, args.rule) for arm in ARMS}
            runs = [(arm, b["lr"], b["beta"], seed) for arm, b in best.items() if b]
        longer = seed == TUNING_SEED
        for arm, lr, beta, s in runs:
            path = place(args.out, arm, lr, beta, s, "longer" if longer else "units")
            if time.monotonic() - start > args.minutes * 60:
                print("time is up: repeat the command to go on", file=sys.stderr)
                return
            with claimed(path.with_suffix(".claim")) as claim_held:
                if not claim_held or path.exists():
                    continue
                row = unit(anchor_models, data, gold_ratios, arm, lr, beta, s, EPOCHS * (2 if longer else 1))
                files.write_json(path, row)
            numbers = {k: round(row[k], 3) for k in SHOWN}
            print(f"{path.stem}: {json.dumps(numbers)}", flush=True)


if __name__ == "__main__":
    main()

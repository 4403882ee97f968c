"""Speed and size against the library a user would pick, as ratios in one run.

Every arm runs in its own process on the same model, data, batch and thread count; a peer has
several settings and the best counts. Each bench prints `{"bench", "ours", "peer", "ratio", "unit"}`; `of_peak` is the
time its matrix products would take at the machine's peak, divided by the time ours took;
`--write NAME` keeps the table in `results/bench/NAME.json`. A busy machine is refused: a ratio
measured beside another job says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

BUSY = 0.5  # load average above which nothing is timed
LIMIT = 600  # seconds after which an arm is stopped
SERVED = ("generate-with", "gemma-sample-vllm")  # need a running vLLM server
RESULTS = Path(__file__).parent.parent / "results" / "bench"
Arm = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Ours against the best of a peer's settings; `measure` is rate (more is better), seconds or peak_mib (less)."""

    ours: Arm
    peers: Mapping[str, Arm]
    measure: str = "rate"
    unit: str = "examples/s"
    target: float | None = None
    per: Callable[[Any], float] | None = None  # number of items of a run, from its value
    same: Callable[[Any, Any], bool] | None = None


def _same_choices(ours: Any, theirs: Any) -> bool:
    near = max(abs(a - b) for a, b in zip(ours["scores"], theirs["scores"], strict=True))
    print(f"  largest difference of a score: {near:.1e}", file=sys.stderr)
    return ours["choices"] == theirs["choices"] and near < 1e-3  # sums of up to 12 tokens in float32


def _same_texts(ours: Any, theirs: Any) -> bool:
    equal = sum(a == b for a, b in zip(ours["texts"], theirs["texts"], strict=True))
    print(f"  {equal} of {len(ours['texts'])} texts equal", file=sys.stderr)
    return equal == len(ours["texts"])


def _same_states(ours: Any, theirs: Any) -> bool:
    near = float(np.abs(np.array(ours) - np.array(theirs)).max())
    print(f"  largest difference of a state: {near:.1e}", file=sys.stderr)
    return near < 1e-8


def _same_policies(ours: Any, theirs: Any) -> bool:
    near = max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(ours, theirs, strict=True))
    print(f"  largest difference of a probability: {near:.1e}", file=sys.stderr)
    return near < 1e-10


def _same_predictions(ours: Any, theirs: Any) -> bool:
    near = max(abs(a - b) for p, q in zip(ours, theirs, strict=True) for r, s in zip(p, q, strict=True)
               for a, b in zip(r, s, strict=True))  # fmt: skip
    print(f"  largest difference of a prediction: {near:.1e}", file=sys.stderr)
    return near < 1e-8


TRL_SFT: dict[str, dict[str, Any]] = {
    "padding": {},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
}
SFT_ALL: dict[str, dict[str, Any]] = TRL_SFT | {
    "packing": {"packing": True},
    "wrapped packing": {"packing": True, "packing_strategy": "wrapped"},
    "padding-free": {"padding_free": True, "max_length": None},
}
LM_EVAL = {f"batch {n}": n for n in (1, 4, 16)}
SHARED = {"shared": 128}  # tokens of the instruction that all prompts begin with
BENCHES: dict[str, Bench] = {
    "sft": Bench(
        ours=("training.sft_ours", {}),
        peers={k: ("training.sft_trl", v) for k, v in TRL_SFT.items()},
        target=5,
    ),
    "sft-memory": Bench(
        ours=("training.sft_ours", {}),
        peers={k: ("training.sft_trl", v) for k, v in TRL_SFT.items()},
        measure="peak_mib", unit="MiB", target=0.4,
    ),
    "sft-all-tokens": Bench(
        ours=("training.sft_ours", {"loss_on": "all"}),
        peers={k: ("training.sft_trl", {"loss_on": "all", **v}) for k, v in SFT_ALL.items()},
        unit="tokens/s", target=1.5,
    ),
    "dpo-precomputed": Bench(
        ours=("training.dpo_ours", {"cached": True}),
        peers={"padding": ("training.dpo_trl", {"precompute": True})},
        unit="pairs/s", target=6,
    ),
    "dpo": Bench(
        ours=("training.dpo_ours", {"cached": False}),
        peers={"padding": ("training.dpo_trl", {})},
        unit="pairs/s", target=8,
    ),
    "dpo-memory": Bench(
        ours=("training.dpo_ours", {"cached": False}),
        peers={"padding": ("training.dpo_trl", {}), "precomputed": ("training.dpo_trl", {"precompute": True})},
        measure="peak_mib", unit="MiB", target=0.4,
    ),
    "dpo-memory-128k": Bench(
        ours=("training.dpo_ours", {"vocabulary": 128_000, "steps": 1, "cached": False}),
        peers={"padding": ("training.dpo_trl", {"vocabulary": 128_000, "steps": 1})},
        measure="peak_mib", unit="MiB", target=0.3,
    ),
    "choice-shared": Bench(
        ours=("inference.choice_ours", {"shared": True}),
        peers={k: ("inference.choice_lm_eval", {"shared": True, "batch": n}) for k, n in LM_EVAL.items()},
        unit="items/s", target=8, same=_same_choices,
    ),
    "choice-fresh": Bench(
        ours=("inference.choice_ours", {"shared": False}),
        peers={k: ("inference.choice_lm_eval", {"shared": False, "batch": n}) for k, n in LM_EVAL.items()},
        unit="items/s", target=2.5, same=_same_choices,
    ),
    "generate": Bench(
        ours=("inference.generate_ours", {}),
        peers={
            "batch 16": ("inference.generate_transformers", {"batch": 16}),
            "batch 64": ("inference.generate_transformers", {"batch": 64}),
            "batch 64, sorted": ("inference.generate_transformers", {"batch": 64, "ordered": True}),
        },
        unit="tokens/s", target=2, per=lambda value: value["tokens"], same=_same_texts,
    ),
    "generate-shared": Bench(
        ours=("inference.generate_ours", SHARED),
        peers={
            "batch 64": ("inference.generate_transformers", SHARED | {"batch": 64}),
            "batch 64, sorted": ("inference.generate_transformers", SHARED | {"batch": 64, "ordered": True}),
        },
        unit="tokens/s", target=2, per=lambda value: value["tokens"], same=_same_texts,
    ),
    "guided": Bench(
        ours=("inference.guided_ours", {}),
        peers={"both models, apart": ("inference.guided_apart", {})},
        measure="seconds", unit="s", target=1.15,
    ),
    "exact-spans": Bench(
        ours=("inference.spans_ours", {}),
        peers={"every span": ("inference.spans_all", {})},
        unit="passages/s", target=20,
    ),
    "tree-search": Bench(
        ours=("inference.tree_ours", {}),
        peers={"a tree at a time": ("inference.tree_plain", {})},
        unit="nodes valued/s", target=5, per=lambda value: value["nodes"],
    ),
    "gemma-sft": Bench(
        ours=("gemma.sft_ours", {}), peers={k: ("gemma.sft_trl", v) for k, v in TRL_SFT.items()}, target=4
    ),
    "gemma-sft-memory": Bench(
        ours=("gemma.sft_ours", {}), peers={k: ("gemma.sft_trl", v) for k, v in TRL_SFT.items()},
        measure="peak_mib", unit="MiB", target=0.15,
    ),
    "gemma-dpo": Bench(
        ours=("gemma.dpo_ours", {}), peers={"padding": ("gemma.dpo_trl", {})}, unit="pairs/s", target=4
    ),
    "gemma-dpo-memory": Bench(
        ours=("gemma.dpo_ours", {}), peers={"padding": ("gemma.dpo_trl", {})},
        measure="peak_mib", unit="MiB", target=0.1,
    ),
    "gemma-choice-shared": Bench(
        ours=("gemma.choice_ours", {"shared": True}),
        peers={f"batch {n}": ("gemma.choice_lm_eval", {"shared": True, "batch": n}) for n in (1, 8)},
        unit="items/s", target=8, same=_same_choices,
    ),
    "gemma-choice-fresh": Bench(
        ours=("gemma.choice_ours", {"shared": False}),
        peers={f"batch {n}": ("gemma.choice_lm_eval", {"shared": False, "batch": n}) for n in (1, 8)},
        unit="items/s", target=2, same=_same_choices,
    ),
    "gemma-sample": Bench(
        ours=("gemma.sample_ours", {}),
        peers={
            "batch 64": ("gemma.sample_transformers", {"batch": 64}),
            "batch 16, sorted": ("gemma.sample_transformers", {"batch": 16, "ordered": True}),
        },
        unit="tokens/s", target=2, per=lambda value: value["tokens"],
    ),
    "gemma-sample-vllm": Bench(
        ours=("gemma.sample_ours", {}), peers={"one request of all prompts": ("gemma.sample_vllm", {})},
        unit="tokens/s", target=1, per=lambda value: value["tokens"],
    ),
    "procedure": Bench(
        ours=("served.procedure", {}), peers={"the calls alone": ("served.plain", {})}, unit="calls/s", target=0.9
    ),
    "generate-with": Bench(
        ours=("rounds.ours", {}), peers={"the requests alone": ("rounds.plain", {})}, unit="answers/s", target=0.9,
        same=lambda ours, theirs: ours == theirs,
    ),
    "consensus": Bench(
        ours=("games.consensus_ours", {}), peers={"a loop over questions": ("games.consensus_loop", {})},
        unit="questions/s", target=100, same=_same_policies,
    ),
    "consensus-arrays": Bench(
        ours=("games.consensus_ours", {}), peers={"numpy, one by one": ("games.consensus_loop", {"arrays": True})},
        unit="questions/s", same=_same_policies,
    ),
    "probe-memory": Bench(
        ours=("probing.stored", {}), peers={"in memory": ("probing.held", {})},
        measure="peak_mib", unit="MiB", target=0.2,
    ),
    "vote-k": Bench(
        ours=("pools.votek_ours", {}), peers={"the published loop": ("pools.votek_loop", {})},
        unit="texts/s", target=20, same=lambda ours, theirs: ours == theirs,
    ),
    "vote-k-index": Bench(
        ours=("pools.votek_ours", {"approximate": True}), peers={"exact": ("pools.votek_ours", {})}, unit="texts/s",
    ),
    "vote-k-million": Bench(
        ours=("pools.votek_ours", {"n": 1_000_000, "approximate": True}),
        peers={"the published loop": ("pools.votek_loop", {"n": 1_000_000})},
        unit="texts/s", same=lambda ours, theirs: ours == theirs,
    ),
    "episodes-step": Bench(
        ours=("episodes.step_ours", {}), peers={"published style": ("episodes.step_published", {})},
        unit="steps/s", target=3,
    ),
    "episodes-step-interleaved": Bench(
        ours=("episodes.step_ours", {"layout": "interleaved", "positions": "none"}),
        peers={"published style": ("episodes.step_published", {})}, unit="steps/s",
    ),
    "reference-predictors": Bench(
        ours=("episodes.references_ours", {}), peers={"a loop over prompts": ("episodes.references_loop", {})},
        unit="prompts/s", target=50, same=_same_predictions,
    ),
    "ngram-heads": Bench(
        ours=("lookups.sorted_sums", {}), peers={"the attention matrix": ("lookups.quadratic", {})},
        unit="tokens/s", target=3, same=_same_states,
    ),
    "ngram-heads-memory": Bench(
        ours=("lookups.sorted_sums", {}), peers={"the attention matrix": ("lookups.quadratic", {})},
        measure="peak_mib", unit="MiB", target=10, same=_same_states,
    ),
    # T log T: a token of a text 16 times as long takes 15 / 11 of the time, and more once states outgrow the cache.
    "ngram-heads-growth": Bench(
        ours=("lookups.sorted_sums", {"length": 32_768}),
        peers={"a sixteenth of the length": ("lookups.sorted_sums", {"length": 2048})}, unit="tokens/s", target=0.5,
        same=_same_states,
    ),
    "vote-k-answers": Bench(
        ours=("annotated.votek", {"select": "fast_votek"}),
        peers={
            "vote-k (full)": ("annotated.votek", {"select": "votek"}),
            "random": ("annotated.votek", {"select": "random"}),
            "OpenICL's vote-k": ("annotated.openicl", {}),
            **{f"DSPy {name}": ("annotated.dspy", {"optimiser": name}) for name in ("labeled", "bootstrap", "knn")},
        },
        unit="of answers right",
    ),
    "help": Bench(
        ours=("start.command", {"words": ["-m", "didact.cli", "--help"]}),
        peers={"import torch": ("start.command", {"words": ["-c", "import torch"]})},
        measure="seconds", unit="s",
    ),
    "methods": Bench(
        ours=("start.command", {"words": ["-m", "didact.cli", "methods"]}),
        peers={"import torch": ("start.command", {"words": ["-c", "import torch"]})},
        measure="seconds", unit="s",
    ),
}  # fmt: skip


DONE: dict[str, dict[str, Any]] = {}


def measure(arm: Arm, threads: int, time: int) -> dict[str, Any]:
    """Run one arm in its own process with an empty cache; if it fails, return its error message.

    Benches that report different measures of the same arm share its runs.
    """
    key = f"{arm} {time}"
    if key not in DONE:
        with tempfile.TemporaryDirectory() as cache:
            DONE[key] = _measured(arm, threads, cache)
    return DONE[key]


def _measured(arm: Arm, threads: int, cache: str) -> dict[str, Any]:
    function, settings = arm
    overrides = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    env = os.environ | overrides | {"OMP_NUM_THREADS": str(threads), "DIDACT_CACHE": cache}
    command = [sys.executable, "-m", "bench.arm", function, json.dumps(settings)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"it takes longer than {LIMIT} s"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return dict(json.loads(process.stdout.strip().splitlines()[-1]))


def compare(name: str, bench: Bench, threads: int, times: int) -> dict[str, Any]:
    """Run ours and every setting of the peer `times` times, interleaved, and compare the best run of each."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for time in range(times):
        for label, arm in {"ours": bench.ours, **bench.peers}.items():
            run = dict(measure(arm, threads, time))
            if "error" in run:
                print(f"  {name}, {label}: does not run: {run['error']}", file=sys.stderr)
                continue
            if bench.per:
                run["rate"] = bench.per(run["value"]) / run["seconds"]
            runs.setdefault(label, []).append(run)
    choose = max if bench.measure == "rate" else min
    best = {label: choose(arm_runs, key=lambda r: r[bench.measure]) for label, arm_runs in runs.items()}
    peers = {k: v for k, v in best.items() if k != "ours"}
    if "ours" not in best or not peers:
        return {"bench": name, "error": "an arm does not run"}
    best_peer = choose(peers, key=lambda k: peers[k][bench.measure])
    ours, peer = best["ours"][bench.measure], peers[best_peer][bench.measure]
    row = {"bench": name, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 3)}
    row |= {"unit": bench.unit, "target": bench.target, "setting": best_peer}
    row["settings"] = {k: round(v[bench.measure], 3) for k, v in peers.items()}
    if "overlap" in best["ours"]:
        row["overlap"] = round(best["ours"]["overlap"], 3)
    if "floor" in best["ours"]:
        row["of_peak"] = round(best["ours"]["floor"] / best["ours"]["seconds"], 3)
    if bench.same:
        row["same"] = bench.same(best["ours"]["value"], peers[best_peer]["value"])
    return row


def _machine(threads: int, load: float) -> dict[str, Any]:
    model_names = [x for x in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in x]
    versions = {}
    for package in ("torch", "transformers", "trl", "lm_eval"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    cpu = model_names[0].split(":")[1].strip() if model_names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "load": load, "versions": versions}


def main() -> int:
    """Run the requested benches, or refuse on a busy machine."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--times", type=int, default=2, help="runs of every arm; the best counts")
    parser.add_argument("--anyway", action="store_true", help="on a busy machine too, to see that it runs")
    parser.add_argument("--write", metavar="NAME", help="keep the table as results/bench/NAME.json")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    if load > BUSY and not args.anyway:
        print(f"the machine is busy (load {load:.2f} > {BUSY}): nothing is timed", file=sys.stderr)
        return 3
    machine = _machine(args.threads, load)
    print(json.dumps(machine))
    rows = []
    for name in args.names or BENCHES:
        if name in SERVED and not os.environ.get("DIDACT_VLLM"):
            print(f"{name}: skipped: the environment variable DIDACT_VLLM names no vLLM server", file=sys.stderr)
            continue
        if name.startswith("gemma-") and not os.environ.get("GEMMA"):
            print(f"{name}: skipped: the environment variable GEMMA names no folder of Gemma 3 270M", file=sys.stderr)
            continue
        rows.append(compare(name, BENCHES[name], args.threads, args.times))
        print(json.dumps(rows[-1]), flush=True)
    if args.write:
        path = RESULTS / f"{args.write}.json"
        previous = json.loads(path.read_text(encoding="utf-8"))["benches"] if path.exists() else []
        measured = {row["bench"] for row in rows}
        benches = [row for row in previous if row["bench"] not in measured] + rows
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "benches": benches}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

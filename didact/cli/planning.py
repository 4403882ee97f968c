"""`didact plan`: training a model on many devices."""

from __future__ import annotations

import math
import re
from typing import Any

from didact import untrusted
from didact.cli.parser import VERBS, Parser
from didact.types import UserError

FIGURES = {
    "layers": "", "hidden": "hidden size", "heads": "attention heads", "vocab": "vocabulary size",
    "context": "sequence length in tokens (2048; a model's own)", "kv-heads": "key and value heads (heads)",
    "head-dim": "width of a head (hidden / heads)", "ffn": "width of the feed-forward layer (4 hidden)",
    "experts": "experts of a mixture", "active": "experts per token",
}  # fmt: skip
LLAMA = {"gated": True, "rms": True, "biases": False, "positions": False, "tied": False, "dropout": False}
LAYOUT = ("pp", "dp", "tp", "micro", "chunks")
SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kMGTP]?)(i?)(B|FLOPS?|B/s)?", re.IGNORECASE)


def plan(words: list[str]) -> int:
    """`didact plan`."""
    from didact.parallel import memory, spec

    parser = Parser(prog="didact plan", description=VERBS["plan"])
    parser.add_argument("model", nargs="?", help=f"a model folder, config.json or hub id, or {', '.join(spec.MODELS)}")
    dims = parser.add_argument_group("a model by its dimensions")
    for name, text in FIGURES.items():
        dims.add_argument(f"--{name}", type=int, help=text)
    dims.add_argument(
        "--style", choices=("gpt2", "llama"), help="kind of layers (gpt2): llama is gated, without biases"
    )
    gpus = parser.add_argument_group("the cluster (numbers like 80GiB, 312T, 25GB)")
    gpus.add_argument("--gpus", type=int, required=True, help="number of GPUs")
    gpus.add_argument("--gpu", choices=spec.GPUS, default="a100", help="kind of GPU: sets the defaults below (a100)")
    gpus.add_argument("--gpus-per-node", type=int, default=8, help="GPUs per node (8)")
    for name, text in (
        ("memory", "bytes per GPU"), ("peak", "peak operations per second of a GPU"),
        ("intra", "bytes per second that a GPU sends inside a node"), ("inter", "the same between nodes"),
    ):  # fmt: skip
        gpus.add_argument(f"--{name}", help=text)
    gpus.add_argument("--efficiency", type=float, help="share of the peak that matrix products reach (0.5)")
    gpus.add_argument("--measure", action="store_true", help="measure --efficiency on this machine's device")
    gpus.add_argument("--price", type=float, help="price of a GPU hour")
    run = parser.add_argument_group("the run")
    run.add_argument("--batch", type=int, help="sequences per step")
    run.add_argument("--tokens", help="tokens to train on, like 270G")
    run.add_argument("--ramp", help="FIRST,STEP,TOKENS: the batch grows from FIRST by STEP over TOKENS: 32,32,12G")
    run.add_argument(
        "--state", choices=memory.POLICIES, help="bytes of state per weight: 16 ZeRO, 18 Megatron (18), 20 MT-NLG, fp32"
    )
    run.add_argument("--attention", choices=("fused", "plain"), help="plain stores the attention scores (fused)")
    run.add_argument(
        "--measured", type=float, metavar="SECONDS", help="measured time of a step: its rate corrects the plan"
    )
    fixed = parser.add_argument_group("parts of the layout to fix (the others are searched)")
    for name in LAYOUT:
        fixed.add_argument(f"--{name}", type=int)
    fixed.add_argument("--recompute", choices=spec.RECOMPUTES)
    fixed.add_argument("--zero", type=int, choices=(0, 1, 2, 3))
    fixed.add_argument("--schedule", choices=("1f1b", "gpipe"))
    fixed.add_argument("--uneven", action="store_true", help="stages may differ by a layer if pp does not divide them")
    fixed.add_argument("--no-sp", action="store_true", help="no sequence parallelism with tp")
    parser.add_argument("--top", type=int, default=10, help="layouts to show (10)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--out", metavar="DIR", help="folder for plan.json and a page with a picture of the pipeline")
    args = parser.parse(words)
    for name in (*LAYOUT, "batch", "gpus", "gpus_per_node", "top", "measured", "price", "efficiency"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"option --{name.replace('_', '-')}: {value}: must be above 0")
    if args.measure and args.peak is None:
        raise UserError("option --measure: give --peak too, the rated peak of this machine's device, like 989T")
    import dataclasses

    rates = {n: size(n, v) for n in ("memory", "peak", "intra", "inter") if (v := getattr(args, n)) is not None}
    rates |= {"efficiency": args.efficiency} if args.efficiency is not None else {}
    cluster = dataclasses.replace(spec.GPUS[args.gpu], gpus=args.gpus, gpus_per_node=args.gpus_per_node, **rates)
    layout = {n: v for n in (*LAYOUT, "recompute", "zero", "schedule") if (v := getattr(args, n)) is not None}
    layout |= ({"sp": False} if args.no_sp else {}) | ({"uneven": True} if args.uneven else {})
    names = [n.replace("-", "_") for n in FIGURES]
    shape: dict[str, Any] = {n: v for n in names if (v := getattr(args, n)) is not None}
    if negative := next((n for n, v in shape.items() if v < 1), None):
        raise UserError(f"option --{negative.replace('_', '-')}: {shape[negative]}: must be 1 or more")
    if args.style is not None:
        shape |= LLAMA if args.style == "llama" else {"gated": False}
    from didact import verbs

    planned = verbs.planned(verbs.Planned(
        model=args.model, shape=shape, cluster=cluster, batch=args.batch, ramp=growth(args.ramp), state=args.state,
        tokens=size("tokens", args.tokens) if args.tokens else None, attention=args.attention,
        fixed=layout, measured=args.measured, measure=args.measure,
        price=args.price, top=args.top, out=args.out,
    ))  # fmt: skip
    from didact.report import page, plans

    if args.json:
        import json

        from didact.files import plain

        print(json.dumps(plain({k: v for k, v in planned.items() if k != "figures"}), indent=1))
    else:
        plans.show(planned, untrusted.console(140))
    if args.out:
        place = page.write(args.out)
        if not args.json:
            print(f"page: {place}")
    return 0


def size(name: str, text: str) -> float:
    """Parse a number with its unit: `80GiB`, `312T`, `25GB/s`, `270e9`."""
    match = SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise UserError(f"option --{name}: '{text}': a number above 0 is expected, like 80GiB, 312T or 270e9")
    power = "kmgtp".find(match[2].lower()) + 1 if match[2] else 0
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** power


def growth(text: str | None) -> tuple[int, int, float] | None:
    """Parse `FIRST,STEP,TOKENS` of a batch size ramp."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() for p in parts[:2]):
        raise UserError(f"option --ramp: '{text}': FIRST,STEP,TOKENS is expected, like 32,32,12G")
    return int(parts[0]), int(parts[1]), size("ramp", parts[2])

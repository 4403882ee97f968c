"""`didact plan`: a model over many devices."""

from __future__ import annotations

import math
import re
from typing import Any

from didact import untrusted
from didact.cli.parser import VERBS, Parser
from didact.types import UserError

FIGURES = {
    "layers": "", "hidden": "width", "heads": "of attention", "vocab": "entries of the vocabulary",
    "context": "tokens of a sequence (2048; a model's own)", "kv-heads": "heads of keys and values (heads)",
    "head-dim": "width of a head (hidden / heads)", "ffn": "width of the feed-forward layer (4 hidden)",
    "experts": "of a mixture", "active": "experts a token goes to",
}  # fmt: skip
LLAMA = {"gated": True, "rms": True, "biases": False, "positions": False, "tied": False, "dropout": False}
LAYOUT = ("pp", "dp", "tp", "micro", "chunks")
SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kMGTP]?)(i?)(B|FLOPS?|B/s)?", re.IGNORECASE)


def plan(words: list[str]) -> int:
    """`didact plan`."""
    from didact.parallel import memory, spec

    parser = Parser(prog="didact plan", description=VERBS["plan"])
    parser.add_argument("model", nargs="?", help=f"a model folder, config.json or hub id, or {', '.join(spec.MODELS)}")
    own = parser.add_argument_group("a model by its figures")
    for name, text in FIGURES.items():
        own.add_argument(f"--{name}", type=int, help=text)
    own.add_argument("--style", choices=("gpt2", "llama"), help="of its layers (gpt2): llama is gated, without biases")
    there = parser.add_argument_group("the cluster (numbers as 80GiB, 312T, 25GB)")
    there.add_argument("--gpus", type=int, required=True, help="how many")
    there.add_argument(
        "--gpu", choices=spec.GPUS, default="a100", help="whose figures count where none are given (a100)"
    )
    there.add_argument("--gpus-per-node", type=int, default=8, help="(8)")
    for name, text in (
        ("memory", "bytes of each"), ("peak", "operations a second of each"),
        ("intra", "bytes a second that each sends inside a node"), ("inter", "and between nodes"),
    ):  # fmt: skip
        there.add_argument(f"--{name}", help=text)
    there.add_argument("--efficiency", type=float, help="share of the peak that matrix products reach (0.5)")
    there.add_argument("--measure", action="store_true", help="measure that on this machine's device")
    there.add_argument("--price", type=float, help="of an hour of a GPU")
    run = parser.add_argument_group("the run")
    run.add_argument("--batch", type=int, help="sequences of a step")
    run.add_argument("--tokens", help="to train on, as 270G")
    run.add_argument("--ramp", help="FIRST,STEP,TOKENS: the batch grows from FIRST by STEP over TOKENS, as 32,32,12G")
    run.add_argument(
        "--state", choices=memory.POLICIES, help="bytes a weight: 16 ZeRO, 18 Megatron (18), 20 MT-NLG, fp32"
    )
    run.add_argument("--attention", choices=("fused", "plain"), help="plain keeps its scores (fused)")
    run.add_argument(
        "--measured", type=float, metavar="SECONDS", help="that a step took: what rate that is, and from then on"
    )
    fixed = parser.add_argument_group("the layout, where it is given (the rest is searched)")
    for name in LAYOUT:
        fixed.add_argument(f"--{name}", type=int)
    fixed.add_argument("--recompute", choices=spec.RECOMPUTES)
    fixed.add_argument("--zero", type=int, choices=(0, 1, 2, 3))
    fixed.add_argument("--schedule", choices=("1f1b", "gpipe"))
    fixed.add_argument("--uneven", action="store_true", help="stages may differ by a layer where pp does not divide")
    fixed.add_argument("--no-sp", action="store_true", help="no sequence parallelism beside tp")
    parser.add_argument("--top", type=int, default=10, help="layouts that are shown (10)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--out", metavar="DIR", help="folder for plan.json and a page with a picture of the pipeline")
    args = parser.parse(words)
    for name in (*LAYOUT, "batch", "gpus", "gpus_per_node", "top", "measured", "price", "efficiency"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"option --{name.replace('_', '-')}: {value}: must be above 0")
    if args.measure and args.peak is None:
        raise UserError("option --measure: give --peak too: what this machine's device is rated at, as 989T")
    import dataclasses

    rates = {n: size(n, v) for n in ("memory", "peak", "intra", "inter") if (v := getattr(args, n)) is not None}
    rates |= {"efficiency": args.efficiency} if args.efficiency is not None else {}
    cluster = dataclasses.replace(spec.GPUS[args.gpu], gpus=args.gpus, gpus_per_node=args.gpus_per_node, **rates)
    given = {n: v for n in (*LAYOUT, "recompute", "zero", "schedule") if (v := getattr(args, n)) is not None}
    given |= ({"sp": False} if args.no_sp else {}) | ({"uneven": True} if args.uneven else {})
    names = [n.replace("-", "_") for n in FIGURES]
    shape: dict[str, Any] = {n: v for n in names if (v := getattr(args, n)) is not None}
    if negative := next((n for n, v in shape.items() if v < 1), None):
        raise UserError(f"option --{negative.replace('_', '-')}: {shape[negative]}: must be 1 or more")
    if args.style is not None:
        shape |= LLAMA if args.style == "llama" else {"gated": False}
    from didact import verbs

    told = verbs.planned(verbs.Planned(
        model=args.model, shape=shape, cluster=cluster, batch=args.batch, ramp=growth(args.ramp), state=args.state,
        tokens=size("tokens", args.tokens) if args.tokens else None, attention=args.attention,
        fixed=given, measured=args.measured, measure=args.measure,
        price=args.price, top=args.top, out=args.out,
    ))  # fmt: skip
    from didact.report import page, plans

    if args.json:
        import json

        from didact.files import plain

        print(json.dumps(plain({k: v for k, v in told.items() if k != "figures"}), indent=1))
    else:
        plans.show(told, untrusted.console(140))
    if args.out:
        place = page.write(args.out)
        if not args.json:
            print(f"page: {place}")
    return 0


def size(name: str, text: str) -> float:
    """A number with its unit: `80GiB`, `312T`, `25GB/s`, `270e9`."""
    found = SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise UserError(f"option --{name}: '{text}': a number above 0 is expected, as 80GiB, 312T or 270e9")
    power = "kmgtp".find(found[2].lower()) + 1 if found[2] else 0
    return float(found[1]) * (1024.0 if found[3] else 1000.0) ** power


def growth(text: str | None) -> tuple[int, int, float] | None:
    """`FIRST,STEP,TOKENS` of a ramp."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() for p in parts[:2]):
        raise UserError(f"option --ramp: '{text}': FIRST,STEP,TOKENS is expected, as 32,32,12G")
    return int(parts[0]), int(parts[1]), size("ramp", parts[2])

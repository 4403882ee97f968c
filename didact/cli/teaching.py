"""`didact run` and `compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from didact import catalogue, flags, untrusted
from didact.cli.parser import VERBS, Parser, common_of
from didact.types import UserError


def run(words: list[str]) -> int:
    """`didact run`."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: didact run METHOD[:PRESET] [--model DIR] [--RECORDS FILE ...] [--out DIR] [options]\n")
        print("`didact run METHOD --help` lists a method's options. Methods: " + ", ".join(catalogue.read()))
        return 0
    name, _, preset = words[0].partition(":")
    entry = catalogue.entry(name)
    from didact import options

    parser = options.parser(entry)
    if {"-h", "--help"} & set(words):
        print(parser.describe())
        return 0
    request = parser.parse(flags.normalise(words[1:], parser.names(), parser.records), preset or None)
    if request.print_config:
        print(parser.config(request), end="")
        return 0
    from didact import verbs

    if request.dry_run:
        plan = verbs.dry_run(request)
        if _is_first_process():
            _show_plan(plan)
        return 0
    report = verbs.run(request)
    if not _is_first_process():
        return 0
    from didact.report import page

    place = page.write(request.out)
    _show_report(report, request.out)
    print(f"page: {place}")
    return 0


def _show_report(report: dict[str, Any], out: str) -> None:
    from didact import catalogue
    from didact.files import plain, read_json
    from didact.report import tables

    console, sides = untrusted.console(120), tables.sides(catalogue.read().get(report["method"], {}))
    if report.get("again"):
        console.print(f"{out}: this command was done already; its result:")
    example = {k: v["value"] for k, v in report["options"].items() if v["from"] == "example"}
    if example:
        console.print(
            "on the embedded example, whose options differ from the paper's: "
            + ", ".join(f"{k} {v}" for k, v in example.items())
        )
    samples = Path(out) / "samples.json"
    if samples.exists() and (rows := read_json(samples)):
        console.print(tables.samples(rows, sides), *tables.match_lines(report.get("answered", {})), "", sep="\n")
    console.print(tables.metrics(plain(report["metrics"]), sides), "")
    for warning in report["warnings"]:
        console.print(f"warning: {warning}")
    for name, note in report["files"].items():
        console.print(f"{out}/{name}  ({note})")


def _is_first_process() -> bool:
    """Whether this is the only process, or the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def _show_plan(plan: dict[str, Any]) -> None:
    for key, value in plan.items():
        if key.endswith("_bytes"):
            value = ", ".join(f"{k.replace('_', ' ')} {v / 2**20:,.0f} MiB" for k, v in value.items())
        elif isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "-"
        print(f"{key.removesuffix('_bytes').replace('_', ' '):22} {value}")
    print("a dry run: the method was not run, and nothing was written to --out")


def compare(words: list[str]) -> int:
    """`didact compare`."""
    from didact import options

    parser = Parser(prog="didact compare", description=VERBS["compare"])
    parser.add_argument(
        "arms",
        nargs="*",
        metavar="METHOD[:PRESET]|FILE.yaml|MODEL",
        help="what to compare; a MODEL (folder, hub id or http://host/v1#name) is scored as it is; without model and "
        "data, an example runs",
    )
    names = {name for name, kind in catalogue.kinds(catalogue.read().values()).items() if kind != "model"}
    data = parser.add_argument_group("data, by kind of record or by a method's parameter")
    for name in sorted(names):
        data.add_argument(f"--{name.replace('_', '-')}", metavar="FILE")
    group = parser.add_argument_group("the comparison")
    group.add_argument("--budget", help="for each arm and seed: 20M-tokens, 1e15-flops, 90-seconds")
    group.add_argument("--seeds", type=int, help="number of test seeds (5; the example 3)")
    group.add_argument("--lrs", nargs="+", default=[], help="learning rates every arm is tuned over")
    group.add_argument(
        "--beyond-lrs", type=int, default=3, help="most further rates for an arm whose best is at the edge (3)"
    )
    group.add_argument(
        "--lora-lrs", type=float, help="factor on the rates of arms that train an adapter (10; 1 with --lrs)"
    )
    group.add_argument("--folds", type=int, default=0, help="cross-validate: seed k is tested on fold k")
    group.add_argument("--judge", help="module:function, a reward model's folder, or http://host/v1#name")
    group.add_argument("--protocol", choices=catalogue.protocols(), help="how arms are scored (by the records)")
    group.add_argument(
        "--diagnostics", choices=("all", "first", "none"), default="all",
        help="which seeds get sampled answers, a judge and general text: all, every arm's first, or none",
    )  # fmt: skip
    group.add_argument("--no-models", action="store_true", help="do not save the models")
    group.add_argument("--workers", type=int, default=1, help="processes of this machine that share the work (1)")
    group.add_argument("--on", metavar="CLUSTER", help="a Ray cluster that does it: auto, host:6379, ray://host:10001")
    group.add_argument("--gpus-per-arm", type=float, default=0.0, help="GPUs that a unit of work takes there (0)")
    parser.add_common(options.SHARED)
    training = parser.add_argument_group("training, the same for every arm that does not set its own")
    for option in options.training():
        settings: dict[str, Any] = {"nargs": "+"} if options.takes_several(option) else {}
        settings |= {"nargs": "?", "const": "true"} if option["type"] == "bool" else {}
        flag, meta = f"--{option['name'].replace('_', '-')}", option["type"].partition("[")[0].removesuffix(" | None")
        training.add_argument(flag, metavar=meta, help=option["help"], **settings)
    args = parser.parse(words, sorted(names))
    seeds = args.seeds if args.seeds is not None else 3 if args.model is None else 5
    if seeds < 1:
        raise UserError(f"option --seeds: {seeds}: must be 1 or more")
    from didact import verbs

    shared = common_of(args, options.SHARED)
    dry = shared.pop("dry_run", False)
    request = verbs.Comparison(
        arms=args.arms, data={n: f for n in names if (f := getattr(args, n))}, budget=args.budget,
        seeds=seeds, lrs=options.numbers("lrs", args.lrs), beyond_lrs=args.beyond_lrs, lora_lrs=args.lora_lrs,
        folds=args.folds, judge=args.judge, protocol=args.protocol, diagnostics=args.diagnostics,
        no_models=args.no_models, workers=args.workers, on=args.on, gpus_per_arm=args.gpus_per_arm,
        fit=options.fit_of(vars(args)), argv=["compare", *words], **shared,
    )  # fmt: skip
    if dry:
        for name, value in verbs.comparison_plan(request).items():
            print(f"{name.replace('_', ' '):22} {value}")
        return 0
    board = verbs.comparison(request)
    from didact.files import plain
    from didact.report import boards, page, tables

    console = untrusted.console(140)
    plain_board = plain(board)
    console.print(tables.leaderboard(plain_board), "")
    console.print(boards.verdict(plain_board), "")
    for warning in boards.warnings(plain_board):
        console.print(f"warning: {warning}")
    for rule, value in board["rules"].items():
        console.print(f"the rule '{rule}' scores {value:.3f}")
    for arm, error in board["failures"].items():
        console.print(f"{arm} failed: {error}")
    console.print(boards.time_spent(plain_board))
    print(f"page: {page.write(request.out)}")
    return 0 if len(board["rows"]) > 1 else 2

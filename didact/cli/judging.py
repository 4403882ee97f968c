"""Commands on results: `didact evaluate`, `try`, `merge`, `push`, `claim` and `report`."""

from __future__ import annotations

from pathlib import Path

from didact import catalogue, untrusted
from didact.cli.parser import VERBS, Parser, common_of
from didact.types import UserError


def evaluate(words: list[str]) -> int:
    """`didact evaluate`."""
    from didact import options

    parser = Parser(prog="didact evaluate", description=VERBS["evaluate"])
    parser.add_argument("folder", help="the --out folder of a run, or a model folder")
    parser.add_argument("--data", required=True, help="a JSONL file")
    parser.add_argument("--protocol", required=True, choices=catalogue.protocols())
    parser.add_argument("--unseen", metavar="FILE", help="records that no model saw, for membership inference")
    parser.add_argument("--retain", metavar="FILE", help="records to be retained, for the protocol forget")
    parser.add_common(options.OF_SCORES)
    args = parser.parse(words)
    from didact import verbs

    settings = {"retain": args.retain, "unseen": args.unseen} | common_of(args, options.OF_SCORES)
    metrics = verbs.evaluate(args.folder, args.data, args.protocol, **settings)
    from didact.evaluate import protocols
    from didact.files import plain
    from didact.report import tables

    console = untrusted.console(120)
    console.print(tables.metrics(plain(metrics)))
    for warning in protocols.by_name(args.protocol).warns(metrics):
        console.print(f"warning: {warning}")
    return 0


def try_(words: list[str]) -> int:
    """`didact try`."""
    from didact import options

    parser = Parser(prog="didact try", description=VERBS["try"])
    parser.add_argument("folder", help="the --out folder of a run, or a model folder")
    parser.add_argument("--prompt", action="append", help="may be repeated; without one, a chat opens")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_common(options.OF_ANSWERS)
    args = parser.parse(words)
    from didact import verbs

    settings = {name: getattr(args, name) for name in ("max_new_tokens", "temperature")} | common_of(
        args, options.OF_ANSWERS
    )
    if not args.prompt:
        from didact.report import chat

        return chat.talk(verbs.Chat(args.folder, **settings))
    for row in verbs.answers(args.folder, args.prompt, **settings):
        print(f"prompt  {row['prompt']}\nbefore  {row['before']}\nafter   {row['after']}\n")
    return 0


def merge(words: list[str]) -> int:
    """`didact merge`."""
    parser = Parser(prog="didact merge", description=VERBS["merge"])
    parser.add_argument("folder", help="an adapter's folder, or the --out folder of a run that saved one")
    parser.add_argument("--out", metavar="DIR", help="folder for the merged weights (FOLDER-merged)")
    parser.add_argument("--texts", metavar="FILE", help="texts to score both on (a few are embedded)")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32", help="data type of the weights: float32, bfloat16 or float16")
    args = parser.parse(words)
    from didact import verbs

    result = verbs.merge(args.folder, args.out, args.texts, args.device, args.dtype)
    print(f"{result['out']}: whole weights; opens in transformers, vLLM, lm-eval and didact.load")
    print(
        f"loss on general text {result['before']:.4f} with the adapter, {result['after']:.4f} merged "
        f"(differs by at most {result['off']:.1g} nats per token)"
    )
    return 0


def push(words: list[str]) -> int:
    """`didact push`."""
    parser = Parser(prog="didact push", description=VERBS["push"])
    parser.add_argument("folder", help="a model folder, or the --out folder of a run")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    args = parser.parse(words)
    from didact import verbs

    result = verbs.push(args.folder, args.to, args.private, args.dry_run)
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    size = sum(result["files"].values()) / 2**20
    print(f"{len(result['files'])} files, {size:,.1f} MiB: {', '.join(result['files'])}")
    print(result.get("url") or f"a dry run: nothing was sent to {args.to}")
    return 0


def claim(words: list[str]) -> int:
    """`didact claim`."""
    parser = Parser(prog="didact claim", description=VERBS["claim"])
    parser.add_argument("method", nargs="?", help="without one, list the claims and whether their code has changed")
    parser.add_argument("--all", action="store_true", help="test all methods: rebuild the scoreboard")
    parser.add_argument("--stalest", type=int, metavar="N", help="test N methods: stale cards, then the oldest")
    parser.add_argument(
        "--verify", action="store_true", help="only check that a card's first seed gives the same bits again"
    )
    parser.add_argument("--against", metavar="DIR", help="verify against seeds kept by the card's code on this machine")
    parser.add_argument("--tier", choices=("smoke", "quick", "full", "real"), default="quick")
    parser.add_argument("--sabotage", action="store_true", help="also check that the claim detects a broken method")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scoreboard", default="scoreboard", help="folder that the card is written to")
    parser.add_argument("--keep", help="folder for finished seeds, to resume from")
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine that measure seeds (1)")
    parser.add_argument("--on", metavar="CLUSTER", help="a Ray cluster that does it: auto, host:6379, ray://host:10001")
    parser.add_argument("--gpus-per-seed", type=float, default=0.0, help="GPUs that a seed takes there (0)")
    args = parser.parse(words)
    if (args.method is not None) + args.all + (args.stalest is not None) > 1:
        raise UserError("give one of a method, --all and --stalest")
    if args.stalest is not None and args.stalest < 1:
        raise UserError(f"--stalest {args.stalest}: give 1 or more")
    if args.method:
        catalogue.entry(args.method)
    from didact import verbs
    from didact.claims import real, runner

    names = catalogue.papers() if args.all else [args.method]
    if args.all and args.tier == "real":
        names = real.claims(runner.claims())
    if args.stalest is not None:
        names = runner.stalest(args.stalest, args.scoreboard)
    if names == [None]:
        return _list_claims(args.scoreboard)
    if args.verify:
        return max((_verify(name, args.scoreboard, args.against) for name in names), default=0)
    codes = []
    for name in names:
        keep = str(Path(args.keep) / name) if args.keep else None
        card = verbs.claim(
            name, args.tier, args.sabotage, args.scoreboard, keep, args.workers, args.on, args.gpus_per_seed
        )
        codes.append(runner.exit_code(card))
        if args.json:
            import json

            from didact.files import plain

            print(json.dumps(plain(card), indent=1))
        else:
            from didact.report import tables

            console = untrusted.console(140)
            console.print(f"{name} ({card['tier']}, {card['seconds']:.0f} s): {card['claim']}")
            console.print(tables.tests(card))
            if table := tables.sabotages(card):
                console.print("", table)
            console.print(f"verdict: {card['verdict'] or 'none: a smoke run only shows that everything works'}")
            if card["tier"] != "smoke":
                from didact.report import page

                print(f"page: {page.write(runner.place(name, args.scoreboard, args.tier))}")
    return max(codes, default=0)


def _list_claims(scoreboard: str) -> int:
    from didact.claims import runner

    for method in runner.claims():
        row = runner.state(method, scoreboard)
        measured = f"{row['tier']}, measured {row['measured'][:10]}" if row["measured"] else ""
        print(f"{method:20}{row['verdict'] or '':14}{measured:28}code: {row['code']}")
    return 0


def _verify(method: str, scoreboard: str, against: str | None) -> int:
    from didact.claims import runner

    differs = runner.verify(method, scoreboard, against)
    print(f"{method}: " + ("differs from its card, which is left as it is" if differs else "equal to the bit"))
    for line in differs:
        print(f"  {line}")
    return int(bool(differs))


def report(words: list[str]) -> int:
    """`didact report`."""
    parser = Parser(prog="didact report", description=VERBS["report"])
    text = "the --out folder of a run or comparison, a claim's card (scoreboard/METHOD.json), or the scoreboard folder"
    parser.add_argument("folder", help=text)
    args = parser.parse(words)
    from didact.report import page

    print(page.write(args.folder))
    return 0

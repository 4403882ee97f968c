"""What becomes of a result: `didact evaluate`, `try`, `merge`, `push`, `claim` and `report`."""

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
    parser.add_argument("--unseen", metavar="FILE", help="records of the same sort that no model saw, for membership")
    parser.add_argument("--retain", metavar="FILE", help="records that must stay, for the protocol forget")
    parser.add_common(options.OF_SCORES)
    args = parser.parse(words)
    from didact import verbs

    how = {"retain": args.retain, "unseen": args.unseen} | common_of(args, options.OF_SCORES)
    metrics = verbs.evaluate(args.folder, args.data, args.protocol, **how)
    from didact.evaluate import protocols
    from didact.files import plain
    from didact.report import tables

    console = untrusted.console(120)
    console.print(tables.metrics(plain(metrics)))
    for warning in protocols.named(args.protocol).warns(metrics):
        console.print(f"warning: {warning}")
    return 0


def try_(words: list[str]) -> int:
    """`didact try`."""
    from didact import options

    parser = Parser(prog="didact try", description=VERBS["try"])
    parser.add_argument("folder", help="the --out folder of a run, or a model folder")
    parser.add_argument("--prompt", action="append", help="may be given several times; without one a chat is opened")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_common(options.OF_ANSWERS)
    args = parser.parse(words)
    from didact import verbs

    how = {name: getattr(args, name) for name in ("max_new_tokens", "temperature")} | common_of(
        args, options.OF_ANSWERS
    )
    if not args.prompt:
        from didact.report import chat

        return chat.talk(verbs.Chat(args.folder, **how))
    for row in verbs.answers(args.folder, args.prompt, **how):
        print(f"prompt  {row['prompt']}\nbefore  {row['before']}\nafter   {row['after']}\n")
    return 0


def merge(words: list[str]) -> int:
    """`didact merge`."""
    parser = Parser(prog="didact merge", description=VERBS["merge"])
    parser.add_argument("folder", help="an adapter's folder, or the --out folder of a run that saved one")
    parser.add_argument("--out", metavar="DIR", help="where the whole weights go (FOLDER-merged)")
    parser.add_argument("--texts", metavar="FILE", help="texts that both are scored on; a few are embedded")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16 or float16")
    args = parser.parse(words)
    from didact import verbs

    told = verbs.merge(args.folder, args.out, args.texts, args.device, args.dtype)
    print(f"{told['out']}: whole weights; opens in transformers, vLLM, lm-eval and didact.load")
    print(
        f"loss on general text {told['before']:.4f} with the adapter, {told['after']:.4f} merged "
        f"(at most {told['off']:.1g} nats a token apart)"
    )
    return 0


def push(words: list[str]) -> int:
    """`didact push`."""
    parser = Parser(prog="didact push", description=VERBS["push"])
    parser.add_argument("folder", help="a model folder, or the --out folder of a run")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    args = parser.parse(words)
    from didact import verbs

    told = verbs.push(args.folder, args.to, args.private, args.dry_run)
    for warning in told["warnings"]:
        print(f"warning: {warning}")
    size = sum(told["files"].values()) / 2**20
    print(f"{len(told['files'])} files, {size:,.1f} MiB: {', '.join(told['files'])}")
    print(told.get("url") or f"a dry run: nothing was sent to {args.to}")
    return 0


def claim(words: list[str]) -> int:
    """`didact claim`."""
    parser = Parser(prog="didact claim", description=VERBS["claim"])
    parser.add_argument("method", nargs="?", help="none: lists the claims and whether their code changed since")
    parser.add_argument("--all", action="store_true", help="every method: rebuilds the scoreboard")
    parser.add_argument("--stalest", type=int, metavar="N", help="N methods: stale cards, then those measured first")
    parser.add_argument(
        "--verify", action="store_true", help="only see whether a card's first seed gives the same bits"
    )
    parser.add_argument("--against", metavar="DIR", help="verify against seeds the card's code kept on this machine")
    parser.add_argument("--tier", choices=("smoke", "quick", "full", "real"), default="quick")
    parser.add_argument("--sabotage", action="store_true", help="also show that the claim notices a broken method")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scoreboard", default="scoreboard", help="folder the card is written to")
    parser.add_argument("--keep", help="folder that keeps finished seeds, to resume from")
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine that measure seeds (1)")
    parser.add_argument("--on", metavar="CLUSTER", help="a Ray cluster does: auto, host:6379, ray://host:10001")
    parser.add_argument("--gpus-per-seed", type=float, default=0.0, help="what a seed takes there (0)")
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
        return _claims(args.scoreboard)
    if args.verify:
        return max((_verified(name, args.scoreboard, args.against) for name in names), default=0)
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
            if shown := tables.sabotages(card):
                console.print("", shown)
            console.print(f"verdict: {card['verdict'] or 'none: a smoke run only shows that everything works'}")
            if card["tier"] != "smoke":
                from didact.report import page

                print(f"page: {page.write(runner.place(name, args.scoreboard, args.tier))}")
    return max(codes, default=0)


def _claims(scoreboard: str) -> int:
    from didact.claims import runner

    for method in runner.claims():
        row = runner.state(method, scoreboard)
        measured = f"{row['tier']}, measured {row['measured'][:10]}" if row["measured"] else ""
        print(f"{method:20}{row['verdict'] or '':14}{measured:28}code: {row['code']}")
    return 0


def _verified(method: str, scoreboard: str, against: str | None) -> int:
    from didact.claims import runner

    differs = runner.verify(method, scoreboard, against)
    print(f"{method}: " + ("differs from its card, which is left as it is" if differs else "equal to the bit"))
    for line in differs:
        print(f"  {line}")
    return int(bool(differs))


def report(words: list[str]) -> int:
    """`didact report`."""
    parser = Parser(prog="didact report", description=VERBS["report"])
    where = "the --out folder of a run or comparison, a claim's card (scoreboard/METHOD.json), or the scoreboard folder"
    parser.add_argument("folder", help=where)
    args = parser.parse(words)
    from didact.report import page

    print(page.write(args.folder))
    return 0

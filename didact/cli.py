"""The command line: arguments in, tables out. All work is in `verbs`; nothing here imports torch until it must."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from didact import catalogue, flags, untrusted
from didact.errors import TerminatedError
from didact.types import RECORDS, UserError

VERBS = {
    "methods": "list the methods: what each needs, gives, and its claim's verdict",
    "explain": "a method in a screen: formula, options, paper",
    "advise": "what your files are, and which methods can run on them",
    "run": "train a model (without model and data: on the method's embedded example)",
    "compare": "methods side by side: same model, data, budget and search; a leaderboard with intervals",
    "evaluate": "score a saved model on a file",
    "try": "answers before and after, side by side",
    "merge": "an adapter and its start model as whole weights",
    "push": "a saved model to the Hugging Face hub",
    "claim": "test a paper's claim by training for real",
    "report": "the HTML page of a run, a comparison, a claim or the scoreboard",
}


COLUMNS = 100  # of listings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see `didact --help`)."""
    with untrusted.screened(), _terminable(), warnings.catch_warnings():
        if "--debug" not in (argv or sys.argv) and not sys.warnoptions:
            warnings.simplefilter("ignore")  # libraries speak to programmers; what users must know we say ourselves
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        return _main(list(sys.argv[1:] if argv is None else argv))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside the block SIGTERM unwinds what is at work as Ctrl-C does; only the main thread hears of signals."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> NoReturn:
    raise TerminatedError


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        return _dispatch(words)
    except UserError as error:
        print(traceback.format_exc() if debug else f"didact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        told = "; ".join(["interrupted", *map(str, stop.args)])
        print(f"didact: {told}", file=sys.stderr)
        return 143 if isinstance(stop, TerminatedError) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"didact: a mistake of ours: {type(error).__name__}: {error}", file=sys.stderr)
        print(traceback.format_exc() if debug else _crash(words), file=sys.stderr)
        return 4


def _crash(words: Sequence[str]) -> str:
    """Write the traceback to a file; where it is, or the traceback itself where no folder takes a file."""
    told = untrusted.shown(f"didact {' '.join(words)}\n\n{traceback.format_exc()}")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="didact-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as kept:
            kept.write(told)
    except OSError:
        return told
    return f"the traceback is in {kept.name}"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from didact import __version__

        print(f"didact {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(VERBS)}"
        raise UserError(f"unknown verb '{verb}': {hint}")
    handlers = {
        "methods": _methods, "explain": _explain, "advise": _advise, "run": _run, "compare": _compare,
        "evaluate": _evaluate, "try": _try, "merge": _merge, "push": _push,
        "claim": _claim, "report": _report,
    }  # fmt: skip
    return handlers[verb](rest)


def _usage() -> str:
    verbs = "\n".join(f"  {name:9} {text}" for name, text in VERBS.items())
    return (
        "didact: of the published ways to teach a model, which one works on my model and my data?\n\n"
        f"usage: didact VERB ...   (didact VERB --help for its options)\n\n{verbs}\n\n"
        "exit codes: 0 done, 1 the claim fails, 2 your input is wrong, 3 inconclusive, 4 our crash, "
        "130 interrupted, 143 terminated"
    )


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, exit 2; hyphens and underscores both work; no abbreviations."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing usage."""
        raise UserError(f"{message} ({self.prog} --help lists what it takes)")

    def parse(self, words: list[str], data: Sequence[str] = ()) -> argparse.Namespace:
        """Parse, naming the nearest option for one that does not exist."""
        known = [o for action in self._actions for o in action.option_strings]
        return self.parse_args(flags.spelled(words, known, data))

    def add_common(self, names: Sequence[str]) -> None:
        """Take these of the options that `didact run` has, in its words; None where they are not given."""
        from didact import options

        group = self.add_argument_group("as `didact run` has them")
        for name, (meta, _, text) in options.COMMON.items():
            if name in names:
                how: dict[str, Any] = {"metavar": meta} if meta else {"action": "store_true", "default": None}
                how |= {"action": "append"} if name in options.REPEATED else {}
                group.add_argument(f"--{name.replace('_', '-')}", help=text, **how)


# --- listing ---------------------------------------------------------------------------------


def _methods(words: list[str]) -> int:
    parser = _Parser(prog="didact methods", description=VERBS["methods"])
    families = dict.fromkeys(e["family"] for e in catalogue.read().values())
    parser.add_argument("family", nargs="?", help=f"tell more of one family: {', '.join(families)}")
    parser.add_argument("--have", choices=sorted(RECORDS), help="only methods that run on this kind of record")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse(words)
    if args.family and args.family not in families:
        raise UserError(f"unknown family '{args.family}': choose from {', '.join(families)}")
    entries = [e for e in catalogue.read().values() if not args.have or args.have in _kinds(e)]
    entries = [e for e in entries if args.family in (None, e["family"])]
    if args.json:
        import json

        keys = ("name", "family", "paper", "year", "needs", "gives", "verdict", "baseline")
        print(json.dumps([{k: e[k] for k in keys} for e in entries], indent=1))
        return 0
    lines: list[str] = []
    for family in families:
        shown = [e for e in entries if e["family"] == family]
        title = catalogue.FAMILIES.get(family, "")
        lines += [*([""] if lines else []), f"{family}: {title}"] * bool(shown)
        lines += [line for e in shown for line in (_in_full(e) if args.family else [_in_a_line(e)])]
    print("\n".join(lines))
    print("\ndidact methods FAMILY tells more, didact explain METHOD all; didact run METHOD tries it.")
    return 0


def _in_a_line(entry: dict[str, Any]) -> str:
    """A method in at most 100 columns: its name, its claim's verdict, what it does."""
    line = f"  {entry['name']:33} {_verdict(entry):12} {entry['help']}"
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3].rsplit(" ", 1)[0] + " .."


def _in_full(entry: dict[str, Any]) -> list[str]:
    """The same with what it needs and gives, its paper and its presets."""
    from textwrap import wrap

    needs = " ".join(f"--{n}" if v["required"] else f"[--{n}]" for n, v in entry["needs"].items())
    facts = [
        entry["help"], f"{entry['paper']} ({entry['year']}, {entry['source']})", f"needs: {needs}",
        f"gives: {', '.join(entry['gives'])}", *([f"presets: {', '.join(entry['presets'])}"] * bool(entry["presets"])),
    ]  # fmt: skip
    inner = [line for fact in facts for line in wrap(fact, COLUMNS - 6, subsequent_indent="  ")]
    return [f"  {entry['name']} ({_verdict(entry)})", *(f"      {line}" for line in inner)]


def _explain(words: list[str]) -> int:
    parser = _Parser(prog="didact explain", description=VERBS["explain"])
    parser.add_argument("method")
    e = catalogue.entry(parser.parse(words).method)
    lines = [f"{e['name']} - {e['paper']} ({e['year']}, {e['source']})", "", e["doc"], "", "needs"]
    lines += [
        f"  --{n} ({v['kind']}{'' if v['required'] else ', optional'})  {v['help']}" for n, v in e["needs"].items()
    ]
    from didact import options

    lines += ["", "options"] + [_option(o) for o in options.flat(e).values()]
    lines += ["", "training"] + [f"  --{o['name']} {_plain(o['default'])}" for o in e["fit"]]
    if e["presets"]:
        lines += ["", f"presets (didact run {e['name']}:PRESET)"]
        lines += [f"  {n:14} {', '.join(f'{k}={_plain(v)}' for k, v in p.items())}" for n, p in e["presets"].items()]
    lines += [
        "",
        f"gives: {', '.join(e['gives'])}",
        f"claim: {_verdict(e)}" + ("" if e["baseline"] or "package" in e else f" (didact claim {e['name']})"),
    ]
    print("\n".join(lines))
    return 0


def _option(option: dict[str, Any]) -> str:
    from textwrap import fill

    limits = f", {option['bounds']}" if option["bounds"] else ""
    head = f"  --{option['name']} {_plain(option['default'])}  [{option['type']}{limits}]"
    return head + "\n" + fill(option["help"], 96, initial_indent="      ", subsequent_indent="      ")


def _kinds(entry: dict[str, Any]) -> set[str]:
    return {need["kind"] for need in entry["needs"].values()}


def _verdict(entry: dict[str, Any]) -> str:
    unmeasured = f"of {entry['package']}" if "package" in entry else "not yet measured"
    return "baseline" if entry["baseline"] else entry["verdict"] or unmeasured


def _plain(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _advise(words: list[str]) -> int:
    parser = _Parser(prog="didact advise", description=VERBS["advise"])
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders or hub:NAME:SPLIT")
    parser.add_argument("--model", help="model folder or hub id: counts tokens against its context")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=YOURS", help="rename a field of your files"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse(words)
    from didact import options
    from didact.verbs import advise

    found = advise.advise(args.files, args.model, options.renames(args.map))
    if args.json:
        import json

        from didact.files import plain

        print(json.dumps(plain(found), indent=1))
    else:
        print(advise.render(found))
    return 0


# --- teaching --------------------------------------------------------------------------------


def _run(words: list[str]) -> int:
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
    request = parser.parse(flags.spelled(words[1:], parser.names(), parser.records), preset or None)
    if request.print_config:
        print(parser.config(request), end="")
        return 0
    from didact import verbs

    if request.dry_run:
        _show_plan(verbs.dry_run(request))
        return 0
    report = verbs.run(request)
    if os.environ.get("RANK", "0") != "0":  # of several processes one tells
        return 0
    from didact.report import page

    place = page.write(request.out)
    _show(report, request.out)
    print(f"page: {place}")
    return 0


def _show(report: dict[str, Any], out: str) -> None:
    from didact.files import plain, read_json
    from didact.report import tables

    console = untrusted.console(120)
    if report.get("again"):
        console.print(f"{out}: this command is done already; its result:")
    example = {k: v["value"] for k, v in report["options"].items() if v["from"] == "example"}
    if example:
        console.print(
            "on the embedded example, whose options differ from the paper's: "
            + ", ".join(f"{k} {v}" for k, v in example.items())
        )
    samples = Path(out) / "samples.json"
    if samples.exists() and (rows := read_json(samples)):
        console.print(tables.samples(rows), *tables.answered(report.get("answered", {})), "", sep="\n")
    console.print(tables.metrics(plain(report["metrics"])), "")
    for warning in report["warnings"]:
        console.print(f"warning: {warning}")
    for what, how in report["files"].items():
        console.print(f"{out}/{what}  ({how})")


def _show_plan(plan: dict[str, Any]) -> None:
    for key, value in plan.items():
        if key.endswith("_bytes"):
            value = ", ".join(f"{k.replace('_', ' ')} {v / 2**20:,.0f} MiB" for k, v in value.items())
        elif isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "-"
        print(f"{key.removesuffix('_bytes').replace('_', ' '):22} {value}")
    print("a dry run: the method was not run, and nothing was written to --out")


# --- comparing -------------------------------------------------------------------------------


def _compare(words: list[str]) -> int:
    from didact import options

    parser = _Parser(prog="didact compare", description=VERBS["compare"])
    parser.add_argument(
        "arms",
        nargs="*",
        metavar="METHOD[:PRESET]|FILE.yaml|MODEL",
        help="what to compare; a MODEL (folder, hub id or http://host/v1#name) is scored as it is; without model and "
        "data an example",
    )
    named = {n for e in catalogue.read().values() for n, need in e["needs"].items() if need["kind"] != "model"}
    data = parser.add_argument_group("data, by kind of record or by a method's parameter")
    for name in sorted({*RECORDS, *named}):
        data.add_argument(f"--{name.replace('_', '-')}", metavar="FILE")
    own = parser.add_argument_group("the comparison")
    own.add_argument("--budget", help="for each arm and seed: 20M-tokens, 1e15-flops, 90-seconds")
    own.add_argument("--seeds", type=int, help="how many test seeds (5; the example 3)")
    own.add_argument("--lrs", nargs="+", default=[], help="learning rates every arm is tuned over")
    own.add_argument(
        "--beyond-lrs", type=int, default=3, help="rates more for an arm whose best is at an edge, at most (3)"
    )
    own.add_argument(
        "--lora-lrs", type=float, help="factor on the rates of arms that train an adapter (10; 1 with --lrs)"
    )
    own.add_argument("--folds", type=int, default=0, help="cross-validate: seed k is tested on fold k")
    own.add_argument("--judge", help="module:function, a reward model's folder, or http://host/v1#name")
    own.add_argument("--protocol", choices=catalogue.protocols(), help="how arms are scored; else by the records")
    own.add_argument("--no-models", action="store_true", help="do not save the models")
    parser.add_common(options.SHARED)
    training = parser.add_argument_group("training, the same for every arm that does not say otherwise itself")
    for option in options.training():
        many: dict[str, Any] = {"nargs": "+"} if options.takes_several(option) else {}
        many |= {"nargs": "?", "const": "true"} if option["type"] == "bool" else {}
        flag, meta = f"--{option['name'].replace('_', '-')}", option["type"].partition("[")[0].removesuffix(" | None")
        training.add_argument(flag, metavar=meta, help=option["help"], **many)
    args = parser.parse(words, sorted({*RECORDS, *named}))
    seeds = args.seeds if args.seeds is not None else 3 if args.model is None else 5
    if seeds < 1:
        raise UserError(f"option --seeds: {seeds}: must be 1 or more")
    from didact import verbs

    given = _common(args, options.SHARED)
    dry = given.pop("dry_run", False)
    request = verbs.Comparison(
        arms=args.arms, data={n: f for n in {*RECORDS, *named} if (f := getattr(args, n))}, budget=args.budget,
        seeds=seeds, lrs=options.numbers("lrs", args.lrs), beyond_lrs=args.beyond_lrs, lora_lrs=args.lora_lrs,
        folds=args.folds, judge=args.judge, protocol=args.protocol,
        no_models=args.no_models, fit=options.fit_of(vars(args)), argv=["compare", *words], **given,
    )  # fmt: skip
    if dry:
        for name, value in verbs.comparison_plan(request).items():
            print(f"{name.replace('_', ' '):22} {value}")
        return 0
    board = verbs.comparison(request)
    from didact.files import plain
    from didact.report import boards, page, tables

    console = untrusted.console(140)
    shown = plain(board)
    console.print(tables.leaderboard(shown), "")
    console.print(boards.verdict(shown), "")
    for warning in boards.warnings(shown):
        console.print(f"warning: {warning}")
    for rule, value in board["rules"].items():
        console.print(f"the rule '{rule}' scores {value:.3f}")
    for arm, error in board["failures"].items():
        console.print(f"{arm} failed: {error}")
    console.print(boards.time_spent(shown))
    print(f"page: {page.write(request.out)}")
    return 0 if len(board["rows"]) > 1 else 2


def _common(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the common options that were given, as fields of `requests.Common`."""
    from didact import options

    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    rename = {"rename": options.renames(given.pop("map"))} if "map" in given else {}
    return rename | {name: options.common(name, value) for name, value in given.items()}


# --- judging ---------------------------------------------------------------------------------


def _evaluate(words: list[str]) -> int:
    from didact import options

    parser = _Parser(prog="didact evaluate", description=VERBS["evaluate"])
    parser.add_argument("folder", help="the --out folder of a run, or a model folder")
    parser.add_argument("--data", required=True, help="a JSONL file")
    parser.add_argument("--protocol", required=True, choices=catalogue.protocols())
    parser.add_argument("--unseen", metavar="FILE", help="records of the same sort that no model saw, for membership")
    parser.add_argument("--retain", metavar="FILE", help="records that must stay, for the protocol forget")
    parser.add_common(options.OF_SCORES)
    args = parser.parse(words)
    from didact import verbs

    how = {"retain": args.retain, "unseen": args.unseen} | _common(args, options.OF_SCORES)
    metrics = verbs.evaluate(args.folder, args.data, args.protocol, **how)
    from didact.evaluate import protocols
    from didact.files import plain
    from didact.report import tables

    console = untrusted.console(120)
    console.print(tables.metrics(plain(metrics)))
    for warning in protocols.named(args.protocol).warns(metrics):
        console.print(f"warning: {warning}")
    return 0


def _try(words: list[str]) -> int:
    from didact import options

    parser = _Parser(prog="didact try", description=VERBS["try"])
    parser.add_argument("folder", help="the --out folder of a run, or a model folder")
    parser.add_argument("--prompt", action="append", help="may be given several times; without one a chat is opened")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_common(options.OF_ANSWERS)
    args = parser.parse(words)
    from didact import verbs

    how = {name: getattr(args, name) for name in ("max_new_tokens", "temperature")} | _common(args, options.OF_ANSWERS)
    if not args.prompt:
        from didact.report import chat

        return chat.talk(verbs.Chat(args.folder, **how))
    for row in verbs.answers(args.folder, args.prompt, **how):
        print(f"prompt  {row['prompt']}\nbefore  {row['before']}\nafter   {row['after']}\n")
    return 0


def _merge(words: list[str]) -> int:
    parser = _Parser(prog="didact merge", description=VERBS["merge"])
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


def _push(words: list[str]) -> int:
    parser = _Parser(prog="didact push", description=VERBS["push"])
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


def _claim(words: list[str]) -> int:
    parser = _Parser(prog="didact claim", description=VERBS["claim"])
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
        card = verbs.claim(name, args.tier, args.sabotage, args.scoreboard, keep)
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


def _report(words: list[str]) -> int:
    parser = _Parser(prog="didact report", description=VERBS["report"])
    where = "the --out folder of a run or comparison, a claim's card (scoreboard/METHOD.json), or the scoreboard folder"
    parser.add_argument("folder", help=where)
    args = parser.parse(words)
    from didact.report import page

    print(page.write(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

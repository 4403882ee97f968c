"""`didact methods`, `explain` and `advise`: which methods there are, and which fit the user's files."""

from __future__ import annotations

from typing import Any

from didact import catalogue
from didact.cli.parser import VERBS, Parser
from didact.types import RECORDS, UserError

COLUMNS = 100  # of listings


def methods(words: list[str]) -> int:
    """`didact methods`."""
    parser = Parser(prog="didact methods", description=VERBS["methods"])
    families = dict.fromkeys(e["family"] for e in catalogue.read().values())
    parser.add_argument("family", nargs="?", help=f"show one family in full: {', '.join(families)}")
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
        members = [e for e in entries if e["family"] == family]
        title = catalogue.FAMILIES[family].goal if family in catalogue.FAMILIES else ""
        lines += [*([""] if lines else []), f"{family}: {title}"] * bool(members)
        lines += [line for e in members for line in (_full(e) if args.family else [_one_line(e)])]
    print("\n".join(lines))
    print("\nFor more: didact methods FAMILY, didact explain METHOD; to try one: didact run METHOD.")
    return 0


def _one_line(entry: dict[str, Any]) -> str:
    """Return a method's line of at most 100 columns: its name, its claim's verdict, what it does."""
    line = f"  {entry['name']:33} {_verdict(entry):12} {entry['help']}"
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3].rsplit(" ", 1)[0] + " .."


def _full(entry: dict[str, Any]) -> list[str]:
    """Return a method's lines in full: also what it needs and gives, its paper and its presets."""
    from textwrap import wrap

    needs = " ".join(f"--{n}" if v["required"] else f"[--{n}]" for n, v in entry["needs"].items())
    facts = [
        entry["help"], f"{entry['paper']} ({entry['year']}, {entry['source']})", f"needs: {needs}",
        f"gives: {', '.join(entry['gives'])}", *([f"presets: {', '.join(entry['presets'])}"] * bool(entry["presets"])),
    ]  # fmt: skip
    inner = [line for fact in facts for line in wrap(fact, COLUMNS - 6, subsequent_indent="  ")]
    return [f"  {entry['name']} ({_verdict(entry)})", *(f"      {line}" for line in inner)]


def explain(words: list[str]) -> int:
    """`didact explain`."""
    parser = Parser(prog="didact explain", description=VERBS["explain"])
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


def advise(words: list[str]) -> int:
    """`didact advise`."""
    parser = Parser(prog="didact advise", description=VERBS["advise"])
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders or hub:NAME:SPLIT")
    parser.add_argument("--model", help="model folder or hub id: counts tokens against its context")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=YOURS", help="rename a field of your files"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse(words)
    from didact import options
    from didact.verbs import advise

    advice = advise.advise(args.files, args.model, options.renames(args.map))
    if args.json:
        import json

        from didact.files import plain

        print(json.dumps(plain(advice), indent=1))
    else:
        print(advise.render(advice))
    return 0

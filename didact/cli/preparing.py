"""`didact prepare`: raw text to a corpus."""

from __future__ import annotations

from collections.abc import Sequence

from didact import untrusted
from didact.cli import planning
from didact.cli.parser import VERBS, Parser
from didact.types import UserError

COUNTS = {
    "bands": (10, "MinHash bands; documents that agree in one are compared"),
    "rows": (10, "hashes per band"),
    "n": (13, "words of the n-grams that are cut if a test item has them too"),
    "window": (200, "characters cut on each side of such an n-gram, and on to the end of the sentence"),
    "shortest": (200, "characters of the shortest piece to keep"),
    "most-pieces": (10, "most pieces of a document; one cut into more is dropped whole"),
    "common": (10, "an n-gram in more documents than this is a common phrase and stays"),
    "min-words": (0, "drop documents with fewer words"),
    "seed": (0, "seed of draws and orders"),
}


def prepare(words: list[str]) -> int:
    """`didact prepare`."""
    parser = Parser(prog="didact prepare", description=VERBS["prepare"])
    parser.add_argument(
        "sources", nargs="+", metavar="NAME=FILE", help="texts, best source first: of near duplicates the first is kept"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for corpus.jsonl, dropped.jsonl, prepared.json")
    parser.add_argument("--trusted", nargs="+", default=[], metavar="NAME", help="sources to filter the others by")
    parser.add_argument("--alpha", type=float, default=9.0, help="score s is kept with probability (2 - s)^-alpha (9)")
    parser.add_argument(
        "--similar", type=float, default=0.8, help="similarity from which documents are near duplicates; 0: off (0.8)"
    )
    parser.add_argument(
        "--by", choices=("union", "min", "max"), default="union", help="denominator of --similar (union)"
    )
    parser.add_argument(
        "--test", nargs="+", default=[], metavar="FILE", help="test items that must not be in the corpus"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME=W", help="shares of the corpus (by default by size)"
    )
    parser.add_argument("--tokens", help="size of the corpus, like 10G: small sources are then repeated")
    parser.add_argument("--tokenizer", metavar="MODEL", help="tokenizer that measures sizes; else words are counted")
    for name, (default, text) in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=YOURS", help="rename a field of your files"
    )
    parser.add_argument("--skip-bad", action="store_true", help="drop bad lines and count them")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse(words)
    weights = {}
    for name, value in _pairs("weights", args.weights).items():
        try:
            weights[name] = float(value)
        except ValueError:
            raise UserError(f"option --weights: {name}={value}: a number is expected") from None
    from didact import options, verbs

    result = verbs.prepare_corpus(verbs.Preparation(
        sources=_pairs("sources", args.sources), out=args.out, trusted=args.trusted, alpha=args.alpha,
        similar=args.similar, by=args.by, tests=args.test, weights=weights, tokenizer=args.tokenizer,
        tokens=planning.size("tokens", args.tokens) if args.tokens else None, rename=options.renames(args.map),
        skip_bad=args.skip_bad, **{name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in COUNTS},
    ))  # fmt: skip
    if args.json:
        import json

        from didact.files import plain

        print(json.dumps(plain(result), indent=1))
        return 0
    from didact.report import prepared

    prepared.show(result, untrusted.console(120))
    print(f"{args.out}/corpus.jsonl  (what was dropped, and why: {args.out}/dropped.jsonl)")
    return 0


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` words; each name once."""
    pairs: dict[str, str] = {}
    for word in words:
        name, eq, value = word.partition("=")
        if not (name and eq and value):
            raise UserError(f"{option}: '{word}': NAME={'FILE' if option == 'sources' else 'W'} is expected")
        if name in pairs:
            raise UserError(f"{option}: '{name}' is given twice")
        pairs[name] = value
    return pairs

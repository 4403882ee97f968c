"""The command line: arguments in, tables out. All work is in `verbs`; torch is imported as late as possible."""

from __future__ import annotations

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
from typing import NoReturn

from didact import untrusted
from didact.cli import judging, listing, planning, preparing, teaching
from didact.cli.parser import VERBS
from didact.errors import TerminatedError
from didact.types import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see `didact --help`)."""
    with untrusted.screened(), _terminable(), warnings.catch_warnings():
        if "--debug" not in (argv or sys.argv) and not sys.warnoptions:
            warnings.simplefilter("ignore")  # those of libraries are for programmers; didact prints its own for users
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        return _main(list(sys.argv[1:] if argv is None else argv))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside the block SIGTERM unwinds the running command like Ctrl-C; only the main thread can handle signals."""
    install = threading.current_thread() is threading.main_thread()
    install = install and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if install:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if install:
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
        message = "; ".join(["interrupted", *map(str, stop.args)])
        print(f"didact: {message}", file=sys.stderr)
        return 143 if isinstance(stop, TerminatedError) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"didact: a mistake of ours: {type(error).__name__}: {error}", file=sys.stderr)
        print(traceback.format_exc() if debug else _write_traceback(words), file=sys.stderr)
        return 4


def _write_traceback(words: Sequence[str]) -> str:
    """Write the traceback to a file and say where; return the traceback itself if no file can be written."""
    report = untrusted.printable(f"didact {' '.join(words)}\n\n{traceback.format_exc()}")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="didact-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(report)
    except OSError:
        return report
    return f"the traceback is in {file.name}"


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
        "methods": listing.methods, "explain": listing.explain, "advise": listing.advise, "run": teaching.run,
        "compare": teaching.compare, "evaluate": judging.evaluate, "try": judging.try_, "merge": judging.merge,
        "push": judging.push, "claim": judging.claim, "report": judging.report, "plan": planning.plan,
        "prepare": preparing.prepare,
    }  # fmt: skip
    return handlers[verb](rest)


def _usage() -> str:
    verbs = "\n".join(f"  {name:9} {text}" for name, text in VERBS.items())
    return (
        "didact: of the published ways to teach a model, which one works on my model and my data?\n\n"
        f"usage: didact VERB ...   (didact VERB --help for its options)\n\n{verbs}\n\n"
        "exit codes: 0 done, 1 the claim fails, 2 wrong input, 3 inconclusive, 4 internal error, "
        "130 interrupted, 143 terminated"
    )

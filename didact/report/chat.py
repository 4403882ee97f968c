"""`didact try` without a prompt: a conversation in the terminal, models before and after training side by side."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from rich.table import Table

from didact import untrusted

COLUMNS = 100  # width if the terminal does not report one
HELP = "/new starts a new conversation, /quit ends"


def talk(chat: Any) -> int:
    """Read a message and print the answers until /quit or the end of the input; `chat` is a `verbs.Chat`."""
    console = untrusted.console(COLUMNS)
    console.print(f"{' and '.join(chat.models)}: {HELP}")
    with contextlib.suppress(EOFError):
        while (text := _read_line()) != "/quit":
            if text == "/new":
                chat.forget()
            elif text:
                console.print(table(chat.say(text)), "")
    return 0


def table(answers: dict[str, str]) -> Table:
    """Answers side by side."""
    out = Table(box=None, pad_edge=False, expand=True)
    for name in answers:
        out.add_column(name, overflow="fold", ratio=1)
    out.add_row(*answers.values())
    return out


def _read_line() -> str:
    """Read a line from the user; in a terminal, with line editing and history where Python has readline.

    Raises:
        EOFError: the input has ended.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() uses it then)
        return input("you  ").strip()
    if not (line := sys.stdin.readline()):
        raise EOFError
    print(f"you  {line.strip()}")
    return line.strip()

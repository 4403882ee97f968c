"""`didact try` without a prompt: a conversation at the terminal, before and after side by side."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from rich.table import Table

from didact import untrusted

COLUMNS = 100  # where the terminal does not tell
HELP = "/new begins anew, /quit ends"


def talk(chat: Any) -> int:
    """Ask and answer until the end of the input; `chat` is a `verbs.Chat`."""
    console = untrusted.console(COLUMNS)
    console.print(f"{' and '.join(chat.models)}: {HELP}")
    with contextlib.suppress(EOFError):
        while (text := _asked()) != "/quit":
            if text == "/new":
                chat.forget()
            elif text:
                console.print(table(chat.say(text)), "")
    return 0


def table(said: dict[str, str]) -> Table:
    """Answers side by side."""
    out = Table(box=None, pad_edge=False, expand=True)
    for name in said:
        out.add_column(name, overflow="fold", ratio=1)
    out.add_row(*said.values())
    return out


def _asked() -> str:
    """A line of the user's; at a terminal the arrow keys bring earlier ones back, where Python has readline.

    Raises:
        EOFError: there is no more.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() uses it then)
        return input("you  ").strip()
    if not (line := sys.stdin.readline()):
        raise EOFError
    print(f"you  {line.strip()}")
    return line.strip()

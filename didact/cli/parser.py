"""The verbs, and the parser of their words: argparse whose errors are `UserError`s."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from didact import flags
from didact.types import UserError

VERBS = {
    "methods": "list the methods: what each needs and gives, and its claim's verdict",
    "explain": "describe a method: formula, options, paper",
    "advise": "say what your files are, and which methods can run on them",
    "run": "train a model (without model and data: on the method's embedded example)",
    "compare": "compare methods: same model, data, budget and search; a leaderboard with intervals",
    "evaluate": "score a saved model on a file",
    "try": "show answers before and after, side by side",
    "merge": "merge an adapter into the weights of its start model",
    "push": "upload a saved model to the Hugging Face hub",
    "claim": "test a paper's claim by real training",
    "report": "write the HTML page of a run, a comparison, a claim, a plan or the scoreboard",
    "plan": "estimate memory, time and cost of training on many GPUs: the layouts that fit, and why one is the best",
    "prepare": "turn raw text into a corpus: filter quality, near duplicates, test items; blend sources by weight",
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and exit code 2; hyphens and underscores both work; no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message} ({self.prog} --help lists what it takes)")

    def parse(self, words: list[str], data: Sequence[str] = ()) -> argparse.Namespace:
        """Parse; the error for an unknown option names the nearest one."""
        known = [o for action in self._actions for o in action.option_strings]
        return self.parse_args(flags.normalise(words, known, data))

    def add_common(self, names: Sequence[str]) -> None:
        """Add these common options of `didact run`, with its help texts; those not given are None."""
        from didact import options

        group = self.add_argument_group("as in `didact run`")
        for name, (meta, _, text) in options.COMMON.items():
            if name in names:
                settings: dict[str, Any] = {"metavar": meta} if meta else {"action": "store_true", "default": None}
                settings |= {"action": "append"} if name in options.REPEATED else {}
                group.add_argument(f"--{name.replace('_', '-')}", help=text, **settings)


def common_of(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the common options that were given, as fields of `requests.Common`."""
    from didact import options

    values = {name: value for name in names if (value := getattr(args, name)) is not None}
    rename = {"rename": options.renames(values.pop("map"))} if "map" in values else {}
    return rename | {name: options.common(name, value) for name, value in values.items()}

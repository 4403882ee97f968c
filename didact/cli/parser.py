"""What the verbs are, and how their words are parsed: argparse whose errors are ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from didact import flags
from didact.types import UserError

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
    "report": "the HTML page of a run, a comparison, a claim, a plan or the scoreboard",
    "plan": "memory, time and cost of training over many GPUs: the layouts that fit, and why the best is the best",
    "prepare": "raw text to a corpus: quality, near duplicates, test items, and sources blended by weight",
}


class Parser(argparse.ArgumentParser):
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


def common_of(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the common options that were given, as fields of `requests.Common`."""
    from didact import options

    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    rename = {"rename": options.renames(given.pop("map"))} if "map" in given else {}
    return rename | {name: options.common(name, value) for name, value in given.items()}

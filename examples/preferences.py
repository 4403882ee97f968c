"""People's preferences (Anthropic's harmless test dialogues) as a file for `didact compare`, for short contexts.

    python examples/preferences.py --data ../shared/data --model results/tofu/models/base --out runs/preferences
    didact compare sft dpo kto ... --model results/tofu/models/base --preference runs/preferences/pairs.jsonl ...

Left out are pairs with an empty answer and pairs with an answer longer than 200 tokens of the model's tokenizer (its
context is 256; prompts are cut on the left, answers never); `--longest` and `--prompts` set other limits. The content
is offensive by nature.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from didact import files
from didact.data.read import read
from didact.models import load
from didact.types import as_row


def main() -> None:
    """Write `pairs.jsonl` and print how many pairs were left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--longest", type=int, default=200, help="tokens of an answer")
    parser.add_argument("--prompts", type=int, help="tokens of a prompt; any number where not given")
    args = parser.parse_args()
    tokenizer = load.load(args.model, device="cpu").tokenizer
    pairs: list[Any] = list(read(args.data / "hh_rlhf_harmless_test.jsonl", "preference"))
    filled = [p for p in pairs if p.chosen.strip() and p.rejected.strip()]

    def fits(text: str, limit: int | None) -> bool:
        return limit is None or len(tokenizer(text)["input_ids"]) <= limit

    short = [
        p for p in filled if fits(p.prompt, args.prompts) and all(fits(t, args.longest) for t in (p.chosen, p.rejected))
    ]
    files.write_lines(args.out / "pairs.jsonl", (as_row(p) for p in short))
    print(f"{len(pairs)} pairs, {len(pairs) - len(filled)} with an empty answer, {len(filled) - len(short)} too long; "
          f"{len(short)} written to {args.out / 'pairs.jsonl'}")  # fmt: skip


if __name__ == "__main__":
    main()

"""Prompts for translation: languages by their names, examples in two lines each, the sentence last. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from didact.types import Parallel

SOURCE, TARGET = "Source", "Target"  # names of unnamed languages
PROMPT = re.compile(r"[^\n:]+: (.*)\n[^\n:]+:")


def names(records: Sequence[Parallel], source: str = "", target: str = "") -> tuple[str, str]:
    """Names of the two languages: as given, as in the records, else Source and Target."""
    languages = next(((r.source_lang, r.target_lang) for r in records if r.source_lang or r.target_lang), (None, None))
    return source or languages[0] or SOURCE, target or languages[1] or TARGET


def build_prompt(text: str, source: str, target: str, examples: Iterable[tuple[str, str]] = ()) -> str:
    """Build a prompt: pairs of sentences in two lines each, then the sentence, and the target language's name."""
    blocks = [f"{source}: {one_line(x)}\n{target}: {one_line(y)}\n\n" for x, y in examples]
    return "".join(blocks) + f"{source}: {one_line(text)}\n{target}:"


def word_prompt(word: str, source: str, target: str, examples: Iterable[tuple[str, str]] = ()) -> str:
    """Build a prompt for a word."""
    return build_prompt(word, f"{source} word", f"{target} word", examples)


def prompt(record: Parallel) -> str:
    """The prompt of a record without examples: the key of its prediction."""
    return build_prompt(record.source, record.source_lang or SOURCE, record.target_lang or TARGET)


def sentence(prompt: str) -> str:
    """The sentence in a prompt without examples; a text that is not such a prompt is the sentence itself."""
    match = PROMPT.fullmatch(prompt)
    return one_line(match[1] if match else prompt)


def read(reply: str, target: str = "") -> str | None:
    """Parse a reply: its first line, without the language's name and surrounding quotes; None if empty."""
    line = reply.strip().partition("\n")[0].strip()
    for name in filter(None, (f"{target} word:", f"{target}:" if target else "")):
        line = line[len(name) :].strip() if line.casefold().startswith(name.casefold()) else line
    if len(line) > 1 and line[0] in "\"'“„«" and line[-1] in "\"'”“»":
        line = line[1:-1].strip()
    return line or None


def one_line(text: str) -> str:
    """A sentence on one line, as in prompts."""
    return " ".join(text.split())

"""Advice as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from didact.verbs.advise.choices import Choice
from didact.verbs.advise.contents import File, Overlap

SHOWN = 6  # commands, and lines of methods that lack something


def of_file(f: File, context: int | None, searched: int) -> list[str]:
    """Return the lines on one file: its kind and size, then only what needs attention."""
    size = f"    {f.characters[0]:,} characters in the median record, {f.characters[1]:,} in the longest"
    if f.words[0] > 1:
        size += f" ({f.words[0]:,} and {f.words[1]:,} words)"
    if f.tokens:
        size += f"; {f.tokens[0]:,} and {f.tokens[1]:,} tokens"
    lines = [f"{f.path}: {_n(f.records, 'record')}, {' or '.join(f.kinds) or 'of no kind that didact knows'}", size]
    if not f.kinds:
        lines.append(f"    its fields are {', '.join(f.fields[:12]) or 'none'}; --map FIELD=YOURS renames them")
    if f.choices:
        alternatives = "".join(f"; --map completion={name} takes {name}" for name in f.labels)
        lines.append(f"    texts with labels: demonstrations with {len(f.choices)} choices{alternatives}")
    if f.rename:
        renamed = ", ".join(f"{theirs} as {ours}" for ours, theirs in f.rename.items())
        lines.append(f"    read with --map: {renamed}")
    if f.bad:
        lines.append(f"    {_n(len(f.bad), 'bad line')}, the first is {f.bad[0]}")
    scope = "" if f.records <= searched else f" (of the first {searched:,})"
    noted = [
        (f.too_long, f"longer than the model's context of {context} tokens: prompts are cut, answers are not"),
        (f.empty, "without an answer or text"),
        (f.ties, "where chosen and rejected are equal, or their scores are"),
        (f.duplicates, "an exact duplicate of an earlier one"),
        (f.near, f"a near duplicate of an earlier one{scope}"),
    ]
    return lines + [f"    {n:,} {label}" for n, label in noted if n]


def of_overlap(o: Overlap) -> str:
    """Return what two files share, in a line."""
    shared = [
        (o.same, "the same record"),
        (o.near, "nearly the same"),
        (o.prompts, "the same prompt, other answers"),
    ]
    return f"{o.files[0]} and {o.files[1]} overlap: " + ", ".join(f"{n} {label}" for n, label in shared if n)


def of_choices(compare: Choice | None, runs: Sequence[Choice], lacking: Sequence[Choice]) -> list[str]:
    """Return the commands that can run, the best first, and what other methods lack."""
    if not runs and not any(c.given for c in lacking):
        return []
    lines = ["", "you can run"] if runs else []
    for c in [*([compare] if compare else []), *runs[:SHOWN]]:
        lines += [f"  {c.command}", f"      {c.help}"] + [f"      without {w}" for w in c.without]
    if runs[SHOWN:]:
        lines.append(f"  and {', '.join(c.method for c in runs[SHOWN:])} (didact explain METHOD)")
    if listed := lacking[:SHOWN]:
        width = max(len(c.method) for c in listed)
        lines += ["", "others lack", *(f"  {c.method:{width}}  {'; '.join(c.lacks)}" for c in listed[: SHOWN - 1])]
        rest = lacking[SHOWN - 1 :]
        lines += [f"  {rest[0].method:{width}}  {'; '.join(rest[0].lacks)}"] if len(rest) == 1 else []
        lines += [f"  and {len(rest)} more (didact methods)"] if len(rest) > 1 else []
    return lines


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"

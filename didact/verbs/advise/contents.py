"""What a user's files are and what is wrong in them: kinds of records, names of fields, duplicates, lengths."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from didact.data import duplicates, fields, formats, read, words
from didact.types import RECORDS, Record, UserError

SAMPLED = 200  # rows from which a file's kind is inferred
NEAR = 0.8  # share of features in common from which two records are near duplicates
FIT = 0.9  # share of a file's rows that must be of a kind for the file to count as it


@dataclass(frozen=True, kw_only=True)
class File:
    """One file. `kinds` are the record kinds it can be read as, the closest first; `rename` is the --map it needs.

    `choices` are the labels of a classification file, `labels` other fields that may be the label.

    `duplicates`, `near`: records that repeat an earlier one, exactly or nearly. `characters`, `words`, `tokens`: median
    and maximum of a record's text; `too_long`: records longer than the model's context.
    """

    path: str
    records: int
    kinds: list[str]
    rename: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    duplicates: int = 0
    near: int = 0
    empty: int = 0
    ties: int = 0
    characters: tuple[int, int] = (0, 0)
    words: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] | None = None
    too_long: int = 0


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two files share: the same records, near duplicates, prompts (with other answers)."""

    files: tuple[str, str]
    same: int
    near: int
    prompts: int


class Opened(NamedTuple):
    """A file with its valid records, and the whole text of each."""

    file: File
    records: list[Record]
    texts: list[str]


def opened(path: str, mapping: Mapping[str, str]) -> Opened:
    """Read a file's records as the kind it fits best, and describe what needs no look at their contents.

    Args:
        path: path of the file.
        mapping: the value of --map; without it, common synonyms of field names are tried.
    """
    rows = list(formats.rows(path))
    if not rows:
        raise UserError(f"{path}: no record in it: it is empty")
    tables = [row for _, row in rows if isinstance(row, Mapping)]
    names = list(Counter(name for row in tables for name in row))
    labels = fields.labels(tables[0], mapping) if tables else []
    rename = dict(mapping) | ({"completion": labels[0]} if labels[1:] else {})
    kinds = _kinds(tables[:SAMPLED], rename)
    if not kinds and not mapping:
        rename = fields.renamed(names, fields.SYNONYMS)
        kinds = _kinds(tables[:SAMPLED], rename)
    if labels and "demo" in kinds and (classes := _classes(tables, labels[0])):
        kinds = ["demo", *(kind for kind in kinds if kind != "demo")]
    else:
        classes, labels = [], []
    records, bad = [], []
    for place, row in rows:
        try:
            records.append(read.from_row(row, RECORDS[kinds[0]] if kinds else Record, rename))
        except UserError as problem:
            bad.append(f"{place}: {problem}")
    applied = {ours: theirs for ours, theirs in rename.items() if kinds and ours in _names(kinds[0])}
    file = File(
        path=path,
        records=len(rows),
        kinds=kinds,
        rename=applied,
        fields=names,
        bad=bad,
        choices=classes,
        labels=labels[1:],
    )
    return Opened(file, records, [words.folded(_text(r)) for r in records])


def _classes(rows: Sequence[Mapping[str, Any]], label: str) -> list[str]:
    return fields.classes([str(row[label]) for row in rows if label in row])


def _kinds(rows: Sequence[Mapping[str, Any]], rename: Mapping[str, str]) -> list[str]:
    """Return the kinds that (nearly) all rows can be read as, those that use most of the rows' fields first."""
    counts = {kind: sum(_is_readable(row, record, rename) for row in rows) for kind, record in RECORDS.items()}
    best = max(counts.values(), default=0)
    fits = [kind for kind, n in counts.items() if n and n >= FIT * best and n >= 0.5 * len(rows)]
    present = {name for row in rows for name in row}
    present = present - set(rename.values()) | set(rename)
    return sorted(fits, key=lambda kind: -len(_names(kind) & present))


def _is_readable(row: Mapping[str, Any], record: type[Record], rename: Mapping[str, str]) -> bool:
    try:
        read.from_row(row, record, rename)
    except UserError:
        return False
    return True


def _names(kind: str) -> set[str]:
    return {f.name for f in dataclasses.fields(RECORDS[kind])} - {"extra"}


def described(source: Opened, near: int, tokenizer: Any, context: int | None) -> File:
    """Add what the contents of a file show; `near` of its records nearly repeat an earlier one."""
    file, records, texts = source
    tokens = _tokens(tokenizer, records, texts) if tokenizer is not None else []
    return dataclasses.replace(
        file,
        duplicates=len(texts) - len(set(texts)),
        near=near,
        empty=sum(_is_empty(r) for r in records),
        ties=sum(_is_tie(r) for r in records),
        characters=_median_and_max([len(t) for t in texts]),
        words=_median_and_max([len(t.split()) for t in texts]),
        tokens=_median_and_max(tokens) if tokens else None,
        too_long=sum(n > context for n in tokens) if context else 0,
    )


def near_repeats(texts: Sequence[Sequence[str]]) -> defaultdict[tuple[int, int], set[int]]:
    """Find near duplicates over all files: `[i, k]` are texts of file k that nearly repeat an earlier one of file i."""
    places = [(i, j) for i, part in enumerate(texts) for j in range(len(part))]
    out: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for a, b in duplicates.near_pairs([texts[i][j] for i, j in places], NEAR):
        out[places[a][0], places[b][0]].add(places[b][1])
    return out


def overlap(a: Opened, b: Opened, near: set[int]) -> Overlap | None:
    """Return what the second file repeats of the first; None if nothing."""
    texts = set(a.texts)
    same = {j for j, t in enumerate(b.texts) if t in texts}
    near = near - same
    first = {words.folded(prompt) for r in a.records for prompt, _ in pairs(r)} - {""}
    prompts = {j for j, r in enumerate(b.records) if any(words.folded(p) in first for p, _ in pairs(r))} - same - near
    if not same | near | prompts:
        return None
    return Overlap(files=(a.file.path, b.file.path), same=len(same), near=len(near), prompts=len(prompts))


def pairs(record: Any) -> list[tuple[str, str]]:
    """Return the prompts and answers of a record; empty if it has none."""
    if not hasattr(record, "prompt"):
        return []
    return [(record.prompt, getattr(record, n)) for n in ("completion", "chosen", "rejected") if hasattr(record, n)]


def _text(record: Record) -> str:
    """Return the whole text of a record."""
    if both := pairs(record):
        return "\n".join([both[0][0], *(answer for _, answer in both)])
    values = [getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "extra"]
    parts = [v if isinstance(v, str) else repr(v) for v in values if v is not None]
    return "\n".join(parts or [repr(sorted(record.extra.items()))])


def _is_empty(record: Record) -> bool:
    answers = [answer for _, answer in pairs(record)]
    return any(not a.strip() for a in answers) or not getattr(record, "text", "-").strip()


def _is_tie(record: Any) -> bool:
    if not hasattr(record, "chosen"):
        return False
    scores = (record.chosen_score, record.rejected_score)
    return bool(
        words.key(record.chosen) == words.key(record.rejected) or (scores[0] is not None and scores[0] == scores[1])
    )


def _median_and_max(sizes: Sequence[int]) -> tuple[int, int]:
    return (int(statistics.median(sizes)), max(sizes)) if sizes else (0, 0)


def tokenizer(model: str) -> tuple[Any, int]:
    """Load the model's tokenizer and context length, without its weights."""
    from types import SimpleNamespace

    from didact.models import load, opening, places
    from didact.models.model import Model

    model = str(places.leading(Path(model))) if Path(model).is_dir() else model
    adapter = Path(model).is_dir() and bool(places.adapter_config(Path(model)))
    base = places.base_of(Path(model)) if adapter else model
    try:
        loaded = (load.tokenizer_of(Path(model)) if adapter else None) or opening.open_pretrained("AutoTokenizer", base)
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: no tokenizer can be loaded from it: {str(error).splitlines()[0]}") from None
    try:
        config = opening.open_pretrained("AutoConfig", base)
    except (OSError, ValueError):  # a tokenizer alone
        config = None
    weightless: Any = SimpleNamespace(config=config)
    return loaded, Model(weightless, loaded).context


def _tokens(tokenizer: Any, records: Sequence[Record], texts: Sequence[str]) -> list[int]:
    """Count tokens of each record's longest prompt and answer together, or of its text."""
    from didact.data import encode  # imports numpy, which nothing else here needs

    sizes = []
    for record, text in zip(records, texts, strict=True):
        parts = [(prompt, answer) for prompt, answer in pairs(record) if answer] or [("", text)]
        sizes.append(max(encode.sizes(tokenizer, parts)))
    return sizes

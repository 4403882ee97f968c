"""What a user's files are, what is wrong in them, and which methods can run on them today.

Plain data out. Imports no torch; with a model only its tokenizer and configuration are loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didact import catalogue
from didact.data import formats, read
from didact.types import RECORDS, Record, UserError

SAMPLED = 200  # rows from which a file's kind is told
LOOKED = 2_000  # records searched for near duplicates, over all files
LETTERS = 1_000  # of a record's text that are compared
GRAM = 5  # letters that are one feature: words would do for some languages only
SHARED = 10  # rare features two near duplicates must both have among their rarest; more is slower, fewer too
NEAR = 0.8  # share of features in common from which two records are near duplicates
FIT = 0.9  # share of a file's rows that must be of a kind, for the file to be
# Names under which other data sets have our fields, likeliest first: offered as --map.
SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "problem"),
    "completion": ("answer", "output", "response", "solution", "target", "label"),
    "chosen": ("preferred", "winner", "better"),
    "rejected": ("dispreferred", "loser", "worse"),
    "text": ("content", "document", "body"),
    "messages": ("conversations", "conversation", "dialogue", "chat"),
    "paraphrased": ("paraphrased_answer",),
    "perturbed": ("perturbed_answer",),
}
Place = tuple[int, int]  # which file, which record


@dataclass(frozen=True, kw_only=True)
class File:
    """One file. `kinds` are the record kinds it can be read as, the closest first; `rename` is what --map must say.

    `duplicates`, `near`: records that repeat an earlier one, word for word or nearly. `characters`,
    `words`, `tokens`: median and most of a record's text; `too_long`: records above the model's context.
    """

    path: str
    records: int
    kinds: list[str]
    rename: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
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
    """What two files share: whole records, nearly whole ones, prompts (with other answers)."""

    files: tuple[str, str]
    same: int
    near: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method and these files: the command that runs it, or what it lacks."""

    method: str
    help: str
    command: str = ""
    lacks: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What `advise` found. `context` is the model's, in tokens, where a model was given; `searched` is how many
    records of each file were searched for near duplicates."""

    files: list[File]
    overlaps: list[Overlap]
    runs: list[Choice]
    lacking: list[Choice]
    context: int | None = None
    searched: int = 0


def advise(paths: Sequence[str], model: str | None = None) -> Advice:
    """Look at files and say which methods can run on them.

    Args:
        paths: files, folders or hub references, as `read` takes them.
        model: a model folder or hub id: lengths are then counted in its tokens too.

    Raises:
        UserError: a file cannot be read at all, or the model has no tokenizer.
    """
    tokenizer, context = _tokenizer(model) if model else (None, None)
    read_ = [_opened(str(path)) for path in dict.fromkeys(paths)]
    texts = [[_text(r) for r in records] for _, records in read_]
    searched = LOOKED // len(read_)
    near = _repeats(texts, searched)
    found = [
        _described(file, records, texts[i], near, i, tokenizer, context) for i, (file, records) in enumerate(read_)
    ]
    overlaps = [
        overlap
        for j in range(len(read_))
        for i in range(j)
        if (overlap := _overlap((found[i], found[j]), (read_[i][1], read_[j][1]), (texts[i], texts[j]), near, (i, j)))
    ]
    choices = [_choice(entry, found, model) for entry in catalogue.read().values()]
    return Advice(
        files=found,
        overlaps=overlaps,
        runs=[c for c in choices if not c.lacks],
        lacking=[c for c in choices if c.lacks],
        context=context,
        searched=searched,
    )


def render(advice: Advice) -> str:
    """The same for people."""
    lines: list[str] = []
    for f in advice.files:
        lines += [
            f"{f.path}: {_n(f.records, 'record')}, {' or '.join(f.kinds) or 'of no kind didact knows'}",
            *_about(f, advice),
        ]
    for o in advice.overlaps:
        shared = [
            (o.same, "the same record"),
            (o.near, "nearly the same"),
            (o.prompts, "the same prompt, other answers"),
        ]
        lines.append(f"{o.files[0]} and {o.files[1]} overlap: " + ", ".join(f"{n} {what}" for n, what in shared if n))
    if advice.runs:
        lines += ["", "you can run"]
        for c in advice.runs:
            lines += [f"  {c.command}", f"      {c.help}"] + [f"      without {w}" for w in c.without]
    if advice.lacking:
        lines += ["", "the others lack"]
        width = max(len(c.method) for c in advice.lacking)
        lines += [f"  {c.method:{width}}  {'; '.join(c.lacks)}" for c in advice.lacking]
    return "\n".join(lines)


# --- one file --------------------------------------------------------------------------------


def _opened(path: str) -> tuple[File, list[Record]]:
    """A file's records as the kind it fits best, and what can be said without looking at their contents."""
    rows = list(formats.rows(path))
    if not rows:
        raise UserError(f"{path}: no record in it: it is empty")
    tables = [row for _, row in rows if isinstance(row, Mapping)]
    fields = list(Counter(name for row in tables for name in row))
    rename: dict[str, str] = {}
    kinds = _kinds(tables[:SAMPLED], rename)
    if not kinds:
        rename = _renames(fields)
        kinds = _kinds(tables[:SAMPLED], rename)
        rename = rename if kinds else {}
    records, bad = [], []
    for place, row in rows:
        try:
            records.append(read.from_row(row, RECORDS[kinds[0]] if kinds else Record, rename))
        except UserError as problem:
            bad.append(f"{place}: {problem}")
    used = {mine: theirs for mine, theirs in rename.items() if kinds and mine in _names(kinds[0])}
    return File(path=path, records=len(rows), kinds=kinds, rename=used, fields=fields, bad=bad), records


def _kinds(rows: Sequence[Mapping[str, Any]], rename: Mapping[str, str]) -> list[str]:
    """Kinds that (nearly) all rows can be read as, those that use most of the rows' fields first."""
    counts = {kind: sum(_is(row, record, rename) for row in rows) for kind, record in RECORDS.items()}
    most = max(counts.values(), default=0)
    fits = [kind for kind, n in counts.items() if n and n >= FIT * most and n >= 0.5 * len(rows)]
    seen = {name for row in rows for name in row}
    seen = seen - set(rename.values()) | set(rename)
    return sorted(fits, key=lambda kind: -len(_names(kind) & seen))


def _is(row: Mapping[str, Any], record: type[Record], rename: Mapping[str, str]) -> bool:
    try:
        read.from_row(row, record, rename)
    except UserError:
        return False
    return True


def _names(kind: str) -> set[str]:
    return {f.name for f in dataclasses.fields(RECORDS[kind])} - {"extra"}


def _renames(fields: Sequence[str]) -> dict[str, str]:
    """Our name for theirs, where a field is missing and a usual other name for it is there."""
    plain = {name.lower(): name for name in fields}
    found = {ours: next((plain[t] for t in theirs if t in plain), None) for ours, theirs in SYNONYMS.items()}
    return {ours: theirs for ours, theirs in found.items() if theirs and ours not in fields}


def _described(
    file: File,
    records: Sequence[Record],
    texts: Sequence[str],
    repeats: Sequence[tuple[Place, Place]],
    at: int,
    tokenizer: Any,
    context: int | None,
) -> File:
    """The file with what its contents show."""
    same = len(texts) - len(set(texts))
    near = {j for (i, _), (k, j) in repeats if i == k == at}
    tokens = _tokens(tokenizer, records, texts) if tokenizer is not None else []
    return dataclasses.replace(
        file,
        duplicates=same,
        near=len(near),
        empty=sum(_is_empty(r) for r in records),
        ties=sum(_is_tie(r) for r in records),
        characters=_middle_and_most([len(t) for t in texts]),
        words=_middle_and_most([len(t.split()) for t in texts]),
        tokens=_middle_and_most(tokens) if tokens else None,
        too_long=sum(n > context for n in tokens) if context else 0,
    )


def _pairs(record: Any) -> list[tuple[str, str]]:
    """Prompts and answers, where the record has them."""
    if not hasattr(record, "prompt"):
        return []
    return [(record.prompt, getattr(record, n)) for n in ("completion", "chosen", "rejected") if hasattr(record, n)]


def _text(record: Record) -> str:
    """All a record says, in one text."""
    if pairs := _pairs(record):
        return "\n".join([pairs[0][0], *(answer for _, answer in pairs)])
    values = [getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "extra"]
    said = [v if isinstance(v, str) else repr(v) for v in values if v is not None]
    return "\n".join(said or [repr(sorted(record.extra.items()))])


def _is_empty(record: Record) -> bool:
    answers = [answer for _, answer in _pairs(record)]
    return any(not a.strip() for a in answers) or not getattr(record, "text", "-").strip()


def _is_tie(record: Any) -> bool:
    if not hasattr(record, "chosen"):
        return False
    scores = (record.chosen_score, record.rejected_score)
    return bool(record.chosen.strip() == record.rejected.strip() or (scores[0] is not None and scores[0] == scores[1]))


def _middle_and_most(sizes: Sequence[int]) -> tuple[int, int]:
    return (int(statistics.median(sizes)), max(sizes)) if sizes else (0, 0)


# --- duplicates ------------------------------------------------------------------------------


def _repeats(texts: Sequence[Sequence[str]], searched: int) -> list[tuple[Place, Place]]:
    """Near duplicates over all files, the earlier first."""
    places = [(i, j) for i, part in enumerate(texts) for j in range(len(part[:searched]))]
    return [(places[a], places[b]) for a, b in near_pairs([texts[i][j] for i, j in places], NEAR)]


def near_pairs(texts: Sequence[str], share: float) -> list[tuple[int, int]]:
    """Pairs of texts whose sets of five-letter pieces A, B have `|A & B| / |A | B| >= share`, `(earlier, later)`.

    Exact, and fast where most pieces are rare. Such a pair has `share |A|` pieces in common, so that
    `SHARED` of them are among the `(1 - share) |A| + SHARED` rarest of A, and likewise of B: only texts
    that meet there are compared (prefix filtering, Chaudhuri et al., 2006, with a longer prefix).
    Texts that are the same word for word are left out.
    """
    shaped = [" ".join(text.casefold().split())[:LETTERS] for text in texts]
    pieces = [{t[i : i + GRAM] for i in range(max(1, len(t) - GRAM + 1))} for t in shaped]
    counts = Counter(piece for part in pieces for piece in part)
    index: dict[str, list[int]] = defaultdict(list)
    out = []
    for j, mine in enumerate(pieces):
        least = math.ceil(share * len(mine) - 1e-9)
        rarest = sorted(mine, key=lambda piece: (counts[piece], piece))[: len(mine) - least + SHARED]
        met = Counter(i for piece in rarest for i in index[piece])
        for i in sorted(i for i, n in met.items() if n >= min(SHARED, least)):
            common = len(mine & pieces[i])
            if common >= share * (len(mine) + len(pieces[i]) - common) - 1e-9 and texts[i] != texts[j]:
                out.append((i, j))
        for piece in rarest:
            index[piece].append(j)
    return out


def _overlap(
    files: tuple[File, File],
    records: tuple[Sequence[Record], Sequence[Record]],
    texts: tuple[Sequence[str], Sequence[str]],
    repeats: Sequence[tuple[Place, Place]],
    at: tuple[int, int],
) -> Overlap | None:
    """What the second file repeats of the first, if anything."""
    whole = set(texts[0])
    same = {j for j, t in enumerate(texts[1]) if t in whole}
    near = {b[1] for a, b in repeats if (a[0], b[0]) == at} - same
    asked = {pair[0] for r in records[0] for pair in _pairs(r)} - {""}
    prompts = {j for j, r in enumerate(records[1]) if any(p in asked for p, _ in _pairs(r))} - same - near
    found = (len(same), len(near), len(prompts))
    if not any(found):
        return None
    return Overlap(files=(files[0].path, files[1].path), same=found[0], near=found[1], prompts=found[2])


# --- tokens ----------------------------------------------------------------------------------


def _tokenizer(model: str) -> tuple[Any, int]:
    """The model's tokenizer and context, without its weights."""
    from types import SimpleNamespace

    from transformers import AutoConfig, AutoTokenizer

    from didact.models.model import Model

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: no tokenizer can be loaded from it: {str(error).splitlines()[0]}") from None
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError):  # an adapter's folder, or a tokenizer alone
        config = None
    weightless: Any = SimpleNamespace(config=config)
    return tokenizer, Model(weightless, tokenizer).context


def _tokens(tokenizer: Any, records: Sequence[Record], texts: Sequence[str]) -> list[int]:
    """Tokens of each record's longest prompt and answer together, or of its text."""
    from didact.data import encode  # with numpy, which nothing else here needs

    sizes = []
    for record, text in zip(records, texts, strict=True):
        pairs = [(prompt, answer) for prompt, answer in _pairs(record) if answer] or [("", text)]
        sizes.append(max(encode.sizes(tokenizer, pairs)))
    return sizes


# --- methods ---------------------------------------------------------------------------------


def _choice(entry: Mapping[str, Any], files: Sequence[File], model: str | None) -> Choice:
    """The command for one method: files go where their name says, else where their kind fits."""
    needs = {n: v for n, v in entry["needs"].items() if v["kind"] != "model"}
    given: dict[str, File] = {}
    for name in needs:
        named = [f for f in files if _role(f) == name and needs[name]["kind"] in f.kinds]
        given |= {name: named[0]} if named else {}
    for required in (True, False):
        for name, need in needs.items():
            free = [f for f in files if f not in given.values() and need["kind"] in f.kinds and _role(f) is None]
            if name not in given and need["required"] is required and free:
                given[name] = free[0]
    lacks = [_lack(name, v, files) for name, v in needs.items() if v["required"] and name not in given]
    if not given:
        lacks = (
            lacks
            or [f"{_flag(name)} ({v['kind']})" for name, v in needs.items()]
            or ["nothing to read: it needs no file"]
        )
    words = ["didact", "run", entry["name"]]
    if entry["needs"].get("model", {}).get("required"):
        words += ["--model", model or "DIR"]
    for name in (n for n in needs if n in given):
        words += [_flag(name), given[name].path]
    renames: dict[str, str] = {}
    for mine, theirs in (pair for f in given.values() for pair in f.rename.items()):
        if renames.setdefault(mine, theirs) != theirs:  # --map is for all files of a command
            lacks.append(f"one name for '{mine}': the files call it {renames[mine]} and {theirs}; rename it in one")
    if renames:
        words += ["--map", ",".join(f"{mine}={theirs}" for mine, theirs in renames.items())]
    if any(f.bad for f in given.values()):
        words.append("--skip-bad")
    without = [
        f"{_flag(n)} ({v['kind']}), {v['help']}" for n, v in needs.items() if n not in given and not v["required"]
    ]
    command = " ".join(_quoted(word) for word in words)
    return Choice(
        method=entry["name"], help=entry["help"], command="" if lacks else command, lacks=lacks, without=without
    )


def _lack(name: str, need: Mapping[str, Any], files: Sequence[File]) -> str:
    kept = [
        f"{f.path} is such a file, but its name says {_flag(_role(f) or '')}" for f in files if need["kind"] in f.kinds
    ]
    return f"{_flag(name)} ({need['kind']}): " + (kept[0] if kept else need["help"].partition(";")[0].rstrip("."))


def _role(file: File) -> str | None:
    """The parameter a file is named after: `forget10.jsonl` is what --forget takes, whichever method has it."""
    words = re.split(r"[^a-z]+", Path(file.path).name.lower())
    roles = {n for e in catalogue.read().values() for n, v in e["needs"].items() if v["kind"] in file.kinds}
    return next((role for role in sorted(roles) if role in words or role.rstrip("s") in words), None)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


# --- for people ------------------------------------------------------------------------------


def _about(f: File, advice: Advice) -> list[str]:
    """The lines on one file: its size, then only what someone should look at."""
    lines = [f"    {f.characters[0]:,} characters in the middle record, {f.characters[1]:,} in the longest"]
    if f.words[0] > 1:
        lines[0] += f" ({f.words[0]:,} and {f.words[1]:,} words)"
    if f.tokens:
        lines[0] += f"; {f.tokens[0]:,} and {f.tokens[1]:,} tokens"
    if not f.kinds:
        lines.append(f"    its fields are {', '.join(f.fields[:12]) or 'none'}; --map FIELD=YOURS renames them")
    if f.rename:
        told = ", ".join(f"{theirs} as {mine}" for mine, theirs in f.rename.items())
        lines.append(f"    read with --map: {told}")
    if f.bad:
        lines.append(f"    {_n(len(f.bad), 'bad line')}, the first is {f.bad[0]}")
    few = f" (of the first {advice.searched:,})"
    noted = [
        (f.too_long, f"longer than the model's context of {advice.context} tokens: prompts are cut, answers are not"),
        (f.empty, "without an answer or text"),
        (f.ties, "where chosen and rejected are equal, or their scores are"),
        (f.duplicates, "an exact repetition of an earlier one"),
        (f.near, "nearly a repetition of an earlier one" + ("" if f.records <= advice.searched else few)),
    ]
    return lines + [f"    {n:,} {what}" for n, what in noted if n]


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"

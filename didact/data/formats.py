"""Rows of files in the common data formats, each with its location. Imports no torch.

    FILE.jsonl, FILE.json    one JSON object a line, or over several lines; or one array of them
    FILE.json[:SPLIT]        an object of arrays, `{"train": [...], ...}`; a pair in one is a text and its label
    FILE.csv, FILE.tsv       a header line, then a row each; every cell is text (`Cells`)
    FILE.txt, FILE.md        one document (unless it is JSON lines); a folder of such files has one document per file
    FILE.epub, FILE.pdf      a row for every chapter or page that has text; a PDF needs pypdf (`didact[books]`)
    FILE.parquet             needs pyarrow, which comes with `datasets`
    FILE.jsonl.gz ...        any of the text formats, compressed
    FOLDER[:SPLIT]           what `datasets` saved, or data files it can read
    hub:NAME[:CONFIG]:SPLIT  a data set on the hub, through `datasets`; its code is never run

The error of one row is yielded in its place as a `UserError`, so that a reader can go on.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from didact.data import books
from didact.types import UserError

HUB = "hub:"
CELL = 1 << 30  # characters in one cell of a table; the csv module's own limit is below a long document
LONGEST = 16  # million characters in one line or field, more than any context takes; DIDACT_LONGEST overrides it
SWELLING = 100  # times its size that a .gz file may unpack to (or 64 MiB if more); DIDACT_SWELLING overrides it

PROSE = (".txt", ".md")
BETWEEN = tuple(" \t\r\n,")  # allowed between the items of an array

SPLITS = re.compile(  # names of the arrays in a file that has several, or one
    r"(\w+[_-])?(train(ing)?|val(id(ation)?)?|dev(elopment)?|test(ing)?|eval(uation)?|data|rows|examples|records)([_-]\w+)?",
    re.IGNORECASE,
)

Row = Mapping[str, Any] | UserError
Found = tuple[str, Row]


class Cells(dict[str, Any]):
    """A row of an untyped table: every value is text, and empty cells are left out."""


def rows(source: str | Path) -> Iterator[Found]:
    """Yield every row of a file, folder or hub reference with its location `source:line`; an overlong one as an error.

    Lines are counted in text formats, rows from 1 in the others and in splits.

    Raises:
        UserError: the source is missing, cannot be read, or is not what its name says.
    """
    limit = int(_setting("DIDACT_LONGEST", LONGEST) * 1e6)
    for place, row in _rows(source, limit):
        texts = row.items() if isinstance(row, Mapping) else ()
        overlong = next((k for k, v in texts if isinstance(v, str) and len(v) > limit), None)
        yield place, row if overlong is None else _too_long(f"field '{overlong}'", limit)


def _rows(source: str | Path, limit: int) -> Iterator[Found]:
    name = str(source)
    path = Path(source)
    if name.startswith(HUB) or path.is_dir() or _split(name)[0].is_dir():
        inside = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
        if inside and all(p.is_file() and p.suffix.lower() in PROSE for p in inside):
            return itertools.chain.from_iterable(_rows(p, limit) for p in inside)
        return _dataset(name)
    split = ""
    if not path.exists() and _split(name)[0].is_file():
        path, split = _split(name)
    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if kind == ".parquet":
        return _parquet(name)
    if kind in books.BOUND:
        return books.rows(path, _bytes(path))
    table = kind in (".csv", ".tsv")
    text = _text(path, "a table in text" if table else "one JSON object a line")
    if table:
        return _table(name, text, "," if kind == ".csv" else "\t")
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if first in ("{", "[") or split or (kind == ".json" and (first[:1] == "[" or not _is_json_lines(first, text))):
        return _document(name, text, split)
    if kind in PROSE and not isinstance(_object(first), Mapping):
        return iter([(f"{name}:1", {"text": text})] if text.strip() else [])
    return _lines(name, text, limit)


def streamed(source: str | Path) -> Iterator[Found]:
    """As `rows`, but read a `.jsonl` file, compressed or not, line by line."""
    path, limit = Path(source), int(_setting("DIDACT_LONGEST", LONGEST) * 1e6)
    packed = path.suffix.lower() == ".gz"
    if (path.with_suffix("") if packed else path).suffix.lower() != ".jsonl" or not path.is_file():
        return rows(source)
    with contextlib.suppress(UserError):
        first = next(_numbered_lines(path, packed), (1, ""))[1].strip()
        if not first or first[0] != "{" or isinstance(_object(first), UserError):
            return rows(source)  # values over several lines, or an error to be located
    return (
        (f"{source}:{number}", _object(line) if len(line) <= limit else _too_long("the line", limit))
        for number, line in _numbered_lines(path, packed)
        if line.strip()
    )


def _numbered_lines(path: Path, packed: bool) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers, decompressing up to a limit."""
    limit = max(1 << 26, int(path.stat().st_size * _setting("DIDACT_SWELLING", SWELLING)))
    unpacked = number = 0
    opened: Any = gzip.open if packed else open
    try:
        with opened(path, "rb") as handle:
            for number, raw in enumerate(handle, 1):
                unpacked += len(raw)
                if packed and unpacked > limit:
                    raise UserError(
                        f"{path}:{number}: unpacks to more than {limit >> 20:,} MiB; set DIDACT_SWELLING higher"
                    )
                if raw.strip():
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text; convert the file first") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = "not a gzip file, or a truncated one" if packed else f"cannot be read: {error}"
        raise UserError(f"{path}: {reason}") from None


def fingerprint(source: str | Path) -> str:
    """SHA-256 of a file's bytes, or of its rows if the source is a folder or on the hub.

    Raises:
        UserError: the source cannot be read.
    """
    if Path(source).is_file():
        return hashlib.sha256(_bytes(Path(source))).hexdigest()
    digest = hashlib.sha256()
    for _, row in rows(source):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def decoded(text: str) -> Any:
    """Parse JSON; invalid JSON raises `UserError`. NaN and infinities pass, for the later check to name the field."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {_reason(error)}") from None


# --- text ------------------------------------------------------------------------------------

_DECODER = json.JSONDecoder(parse_constant=lambda name: math.nan)


def _lines(name: str, text: str, limit: int) -> Iterator[Found]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", _object(line) if len(line) <= limit else _too_long("the line", limit)


def _too_long(name: str, limit: int) -> UserError:
    return UserError(f"{name} has more than {limit / 1e6:g} million characters; split it, or set DIDACT_LONGEST higher")


def _setting(name: str, default: float) -> float:
    """Read a limit that an environment variable may override."""
    try:
        return float(os.environ.get(name, default))
    except ValueError:
        raise UserError(f"the variable {name} must be a number") from None


def _object(line: str) -> Row:
    try:
        return decoded(line)
    except UserError as problem:
        return problem


def _is_json_lines(first: str, text: str) -> bool:
    """Whether a text is JSON lines: its first line is a value, and more follow."""
    return bool(text.strip() != first and not isinstance(_object(first), UserError))


def _document(name: str, text: str, split: str) -> Iterator[Found]:
    """Yield the items of one JSON array, of a split of one object, or of concatenated values."""
    if text.lstrip().startswith("["):
        return _stream(name, text, text.index("[") + 1, "]")
    try:
        whole = _DECODER.decode(text.strip())
    except (ValueError, RecursionError):  # several values, or an error to be located
        whole = None
    splits = [k for k, v in whole.items() if isinstance(v, list)] if isinstance(whole, dict) else []
    if split or (splits and all(SPLITS.fullmatch(k) for k in splits)):
        if not split and len(splits) == 1:
            (split,) = splits
        if split not in splits:
            path = name if Path(name).exists() else name.rpartition(":")[0]
            raise UserError(f"{name}: name one of its splits, {path}:SPLIT: {', '.join(splits) or 'it has none'}")
        return ((f"{name}:{i}", _paired(item)) for i, item in enumerate(whole[split], 1))
    return _stream(name, text, 0, "")


def _paired(item: Any) -> Any:
    """An item of a split; a pair of texts becomes a text and its label (as in CLINC)."""
    return {"text": item[0], "label": item[1]} if is_pair(item) else item


def is_pair(item: Any) -> bool:
    """Whether a value is a list of two texts."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)


def splits_of(path: str | Path) -> list[str]:
    """Names of the splits of a JSON file that is an object of several; empty for any other file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        next(iter(rows(path)), None)
    except UserError as error:
        match = re.search(r"name one of its splits, .*:SPLIT: (.*)$", str(error))
        if match and Path(path).is_file():
            return match[1].split(", ")
        raise
    return []


def _stream(name: str, text: str, at: int, end: str) -> Iterator[Found]:
    """Yield concatenated JSON values up to `end`, each with the line it starts on; an error in one ends them."""
    line, counted_to = 1, 0
    while True:
        while text[at : at + 1] in BETWEEN:
            at += 1
        line, counted_to = line + text.count("\n", counted_to, at), at
        if at == len(text):
            if end:
                raise UserError(f"{name}:{line}: not valid JSON: the array is not closed")
            return
        if end and text[at] == end:
            if text[at + 1 :].strip():
                raise UserError(f"{name}:{line}: not valid JSON: something follows the array")
            return
        try:
            item, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}:{line}: not valid JSON: {_reason(error)}") from None
        yield f"{name}:{line}", item


def _table(name: str, text: str, delimiter: str) -> Iterator[Found]:
    csv.field_size_limit(CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1  # where the row begins: a quoted cell may hold line ends
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{name}:{line}: not a table: {error}; fix the quotes") from None
        if cells is None:
            return
        if cells and not header:
            header = cells
            if duplicate := next((c for c in header if header.count(c) > 1), None):
                raise UserError(f"{name}:{line}: two columns are called '{duplicate}'; rename one")
        elif cells:
            row: Row = Cells({k: v for k, v in zip(header, cells, strict=False) if v.strip()})
            if len(cells) > len(header):
                row = UserError(
                    f"{len(cells)} cells, but the header has {len(header)}; quote cells with a {delimiter!r}"
                )
            yield f"{name}:{line}", row
        line = reader.line_num + 1


def _text(path: Path, expected: str) -> str:
    raw = _bytes(path)
    if path.suffix.lower() == ".gz":
        try:
            raw = _unpacked(path, raw)
        except (OSError, EOFError, zlib.error):
            raise UserError(f"{path}: not a gzip file, or a truncated one") from None
    if b"\0" in raw:
        raise UserError(f"{path}: a binary file; {expected} is expected")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; convert the file first") from None


def _unpacked(path: Path, raw: bytes) -> bytes:
    """Decompress a gzip file, up to a limit."""
    limit = max(1 << 26, int(len(raw) * _setting("DIDACT_SWELLING", SWELLING)))
    with gzip.open(io.BytesIO(raw)) as packed:
        out = packed.read(limit + 1)
    if len(out) > limit:
        raise UserError(
            f"{path}: unpacks to more than {limit >> 20:,} MiB, {limit // len(raw):,} times its size; "
            "set DIDACT_SWELLING higher if that is intended"
        )
    return out


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block, and it cannot be read twice
            raise UserError(f"{path}: not a file; save the output of a pipe or device to one")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "msg", "nested too deeply"))


# --- tables with types -----------------------------------------------------------------------


def _parquet(name: str) -> Iterator[Found]:
    import pyarrow.parquet

    raw = _bytes(Path(name))
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(io.BytesIO(raw)).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", {str(k): _cell(v) for k, v in row.items()}
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError, OverflowError) as error:
        raise UserError(f"{name}: not a Parquet file, or a damaged one: {_first_line(error)}") from None


def _dataset(name: str) -> Iterator[Found]:
    for number, row in enumerate(_loaded(name), 1):
        yield f"{name}:{number}", {str(k): _cell(v) for k, v in row.items()}


def _loaded(name: str) -> Any:
    """The data set behind `hub:NAME[:CONFIG]:SPLIT` or `FOLDER[:SPLIT]`."""
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the final error is reported below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder, split = _split(name)
    try:
        if name.startswith(HUB):
            repo, *config, split = name.removeprefix(HUB).split(":") if name.count(":") in (2, 3) else ["", ""]
            if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repo):
                raise UserError(f"{name}: hub:NAME:SPLIT is expected, as in hub:owner/name:train")
            return datasets.load_dataset(repo, *config, split=split)
        saved = any((folder / f).is_file() for f in ("state.json", "dataset_dict.json"))
        dataset = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except UserError:
        raise
    except Exception as error:  # whatever a reader of some format, a server or a cache raises
        hint = "; connect, or give a local file" if isinstance(error, ConnectionError) else ""
        raise UserError(f"{name}: cannot be read: {_first_line(error)}{hint}") from None
    if not isinstance(dataset, dict):
        return dataset
    if not split and len(dataset) == 1:
        (split,) = dataset
    if split not in dataset:
        raise UserError(f"{name}: name one of its splits, {folder}:SPLIT: {', '.join(dataset)}")
    return dataset[split]


def _split(name: str) -> tuple[Path, str]:
    """Split `FOLDER:SPLIT`; an existing folder whose name has a colon is kept whole."""
    folder, colon, split = name.rpartition(":")
    return (Path(folder), split) if colon and not Path(name).is_dir() else (Path(name), "")


def _cell(value: Any) -> Any:
    """Convert a value to JSON types, NaN aside; types JSON lacks (times, images) become text. Binary that is not UTF-8
    text stays, for the field check to refuse; a struct's null fields, which other rows of the column have, go."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {str(k): _cell(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_cell(v) for v in value]
    return value if isinstance(value, str | int | float) or value is None else str(value)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Rows from every format people keep data in, each with the place it came from. Imports no torch.

    FILE.jsonl, FILE.json    one JSON object a line, or over several lines; or one array of them
    FILE.json[:SPLIT]        an object of arrays, `{"train": [...], ...}`; a pair in one is a text and its label
    FILE.csv, FILE.tsv       a header line, then a row each; every cell is text (`Cells`)
    FILE.txt, FILE.md        one document, as it is (unless it is JSON lines); a folder of such has one a file
    FILE.epub, FILE.pdf      a row for every chapter or page that has text; a PDF needs pypdf (`didact[books]`)
    FILE.parquet             needs pyarrow, which comes with `datasets`
    FILE.jsonl.gz ...        any of the text formats, compressed
    FOLDER[:SPLIT]           what `datasets` saved, or data files it can read
    hub:NAME[:CONFIG]:SPLIT  a data set on the hub, through `datasets`; its code is never run

What is wrong with one row stands in that row's place as a `UserError`, so that a reader can go on.
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
LONGEST = 16  # million characters in one line or field, or what DIDACT_LONGEST says: no context takes more
SWELLING = 100  # times its size that a .gz file may unpack to, or what DIDACT_SWELLING says; 64 MiB it always may

PROSE = (".txt", ".md")
BETWEEN = tuple(" \t\r\n,")  # what may stand between the items of an array

SPLITS = re.compile(  # names of the arrays in a file that has several, or one
    r"(\w+[_-])?(train(ing)?|val(id(ation)?)?|dev(elopment)?|test(ing)?|eval(uation)?|data|rows|examples|records)([_-]\w+)?",
    re.IGNORECASE,
)

Row = Mapping[str, Any] | UserError
Found = tuple[str, Row]


class Cells(dict[str, Any]):
    """A row of a table without types: every value is text, and empty cells are left out."""


def rows(source: str | Path) -> Iterator[Found]:
    """Every row of a file, folder or hub reference, with its place as `source:line`; one that is too long as its error.

    Lines are counted in text formats, rows from 1 in the others and in splits.

    Raises:
        UserError: the source is missing, cannot be read, or is not what its name says.
    """
    most = int(_setting("DIDACT_LONGEST", LONGEST) * 1e6)
    for place, row in _rows(source, most):
        texts = row.items() if isinstance(row, Mapping) else ()
        long = next((k for k, v in texts if isinstance(v, str) and len(v) > most), None)
        yield place, row if long is None else _too_long(f"field '{long}'", most)


def _rows(source: str | Path, most: int) -> Iterator[Found]:
    name = str(source)
    path = Path(source)
    if name.startswith(HUB) or path.is_dir() or _split(name)[0].is_dir():
        inside = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
        if inside and all(p.is_file() and p.suffix.lower() in PROSE for p in inside):
            return itertools.chain.from_iterable(_rows(p, most) for p in inside)
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
    if first in ("{", "[") or split or (kind == ".json" and (first[:1] == "[" or not _lined(first, text))):
        return _document(name, text, split)
    if kind in PROSE and not isinstance(_object(first), Mapping):
        return iter([(f"{name}:1", {"text": text})] if text.strip() else [])
    return _lines(name, text, most)


def streamed(source: str | Path) -> Iterator[Found]:
    """The same rows; those of a `.jsonl` file, packed or not, without holding more of it than a line."""
    path, most = Path(source), int(_setting("DIDACT_LONGEST", LONGEST) * 1e6)
    packed = path.suffix.lower() == ".gz"
    if (path.with_suffix("") if packed else path).suffix.lower() != ".jsonl" or not path.is_file():
        return rows(source)
    with contextlib.suppress(UserError):
        first = next(_handled(path, packed), (1, ""))[1].strip()
        if not first or first[0] != "{" or isinstance(_object(first), UserError):
            return rows(source)  # values over several lines, or a mistake that has a place
    return (
        (f"{source}:{number}", _object(line) if len(line) <= most else _too_long("the line", most))
        for number, line in _handled(path, packed)
        if line.strip()
    )


def _handled(path: Path, packed: bool) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, the first that is not empty first; one that is no text ends them."""
    limit = max(1 << 26, int(path.stat().st_size * _setting("DIDACT_SWELLING", SWELLING)))
    seen = number = 0
    opened: Any = gzip.open if packed else open
    try:
        with opened(path, "rb") as handle:
            for number, raw in enumerate(handle, 1):
                seen += len(raw)
                if packed and seen > limit:
                    raise UserError(
                        f"{path}:{number}: unpacks to more than {limit >> 20:,} MiB; set DIDACT_SWELLING higher"
                    )
                if raw.strip():
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text; convert the file first") from None
    except (OSError, EOFError, zlib.error) as error:
        why = "not a gzip file, or only half of one" if packed else f"cannot be read: {error}"
        raise UserError(f"{path}: {why}") from None


def fingerprint(source: str | Path) -> str:
    """SHA-256 of a file's bytes; of the rows themselves where the source is a folder or on the hub.

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
    """A JSON value; what is none raises `UserError`. NaN and infinities are let through, for the field to be named."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {_reason(error)}") from None


# --- text ------------------------------------------------------------------------------------

_DECODER = json.JSONDecoder(parse_constant=lambda name: math.nan)


def _lines(name: str, text: str, most: int) -> Iterator[Found]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", _object(line) if len(line) <= most else _too_long("the line", most)


def _too_long(what: str, most: int) -> UserError:
    return UserError(f"{what} has more than {most / 1e6:g} million characters; split it, or set DIDACT_LONGEST higher")


def _setting(name: str, default: float) -> float:
    """A limit that the environment may raise."""
    try:
        return float(os.environ.get(name, default))
    except ValueError:
        raise UserError(f"the variable {name} must be a number") from None


def _object(line: str) -> Row:
    try:
        return decoded(line)
    except UserError as problem:
        return problem


def _lined(first: str, text: str) -> bool:
    """Whether a text has one value a line, by its first, and more than one."""
    return bool(text.strip() != first and not isinstance(_object(first), UserError))


def _document(name: str, text: str, split: str) -> Iterator[Found]:
    """The items of one JSON array, values one after another, or the items of a split of one object."""
    if text.lstrip().startswith("["):
        return _stream(name, text, text.index("[") + 1, "]")
    try:
        whole = _DECODER.decode(text.strip())
    except (ValueError, RecursionError):  # several values, or a mistake that has a line
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
    """An item of a split; a pair of texts is a text and its label (CLINC has such)."""
    return {"text": item[0], "label": item[1]} if is_pair(item) else item


def is_pair(item: Any) -> bool:
    """Whether a value is a list of two texts."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)


def splits_of(path: str | Path) -> list[str]:
    """The names of the splits of a JSON file that is an object of several; none of any other file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        next(iter(rows(path)), None)
    except UserError as error:
        named = re.search(r"name one of its splits, .*:SPLIT: (.*)$", str(error))
        if named and Path(path).is_file():
            return named[1].split(", ")
        raise
    return []


def _stream(name: str, text: str, at: int, end: str) -> Iterator[Found]:
    """JSON values one after another up to `end`, each with the line it begins on; a mistake in one ends them."""
    line, counted = 1, 0
    while True:
        while text[at : at + 1] in BETWEEN:
            at += 1
        line, counted = line + text.count("\n", counted, at), at
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
            raise UserError(f"{name}:{line}: not a table: {error}; mend the quotes") from None
        if cells is None:
            return
        if cells and not header:
            header = cells
            if twice := next((c for c in header if header.count(c) > 1), None):
                raise UserError(f"{name}:{line}: two columns are called '{twice}'; rename one")
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
            raise UserError(f"{path}: not a gzip file, or only half of one") from None
    if b"\0" in raw:
        raise UserError(f"{path}: a binary file; {expected} is expected")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; convert the file first") from None


def _unpacked(path: Path, raw: bytes) -> bytes:
    """What a gzip file holds, as long as it is no more than a limit."""
    most = max(1 << 26, int(len(raw) * _setting("DIDACT_SWELLING", SWELLING)))
    with gzip.open(io.BytesIO(raw)) as packed:
        out = packed.read(most + 1)
    if len(out) > most:
        raise UserError(
            f"{path}: unpacks to more than {most >> 20:,} MiB, {most // len(raw):,} times its size; "
            "set DIDACT_SWELLING higher if that is meant"
        )
    return out


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, and cannot be read twice
            raise UserError(f"{path}: not a file; save what a pipe or device gives to one")
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

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what came of them is told below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder, split = _split(name)
    try:
        if name.startswith(HUB):
            where, *config, split = name.removeprefix(HUB).split(":") if name.count(":") in (2, 3) else ["", ""]
            if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", where):
                raise UserError(f"{name}: hub:NAME:SPLIT is expected, as in hub:owner/name:train")
            return datasets.load_dataset(where, *config, split=split)
        saved = any((folder / f).is_file() for f in ("state.json", "dataset_dict.json"))
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except UserError:
        raise
    except Exception as error:  # whatever a reader of some format, a server or a cache raises
        mend = "; connect, or give a local file" if isinstance(error, ConnectionError) else ""
        raise UserError(f"{name}: cannot be read: {_first_line(error)}{mend}") from None
    if not isinstance(found, dict):
        return found
    if not split and len(found) == 1:
        (split,) = found
    if split not in found:
        raise UserError(f"{name}: name one of its splits, {folder}:SPLIT: {', '.join(found)}")
    return found[split]


def _split(name: str) -> tuple[Path, str]:
    """`FOLDER:SPLIT` apart; a folder whose own name has a colon is that folder."""
    folder, colon, split = name.rpartition(":")
    return (Path(folder), split) if colon and not Path(name).is_dir() else (Path(name), "")


def _cell(value: Any) -> Any:
    """A value as JSON has it, NaN apart; what JSON lacks (times, pictures) as text. Binary that is no UTF-8 text stays
    so, for a reader that wants it to refuse; fields that only other rows of the column have are none of this one's."""
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

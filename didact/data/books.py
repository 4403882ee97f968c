"""Books as rows of text: an EPUB by its chapters in reading order, a PDF by its pages."""

from __future__ import annotations

import html
import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from didact.types import UserError

BOUND = (".epub", ".pdf")
BLOCKS = re.compile(r"</(?:p|div|h[1-6]|li|tr|dt|dd|pre|blockquote)>|<br\s*/?>", re.IGNORECASE)
CELLS = re.compile(r"</t[dh]>", re.IGNORECASE)
HIDDEN = re.compile(r"<(head|script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
TAGS = re.compile(r"<[^<>]*>")
LARGEST = 1 << 26  # bytes that a chapter may unpack to
CONTAINER = "META-INF/container.xml"
Row = dict[str, Any]


def rows(path: Path, raw: bytes) -> Iterator[tuple[str, Row]]:
    """Yield the chapters of an EPUB or pages of a PDF that have text, with their number.

    Raises:
        UserError: the reader is not installed; the file is not such a book, is encrypted, or has no text.
    """
    kind = path.suffix.lower()[1:]
    has_text = False
    for number, text in enumerate(_pages(path, raw) if kind == "pdf" else _chapters(path, raw), 1):
        if text.strip():
            has_text = True
            yield f"{path}:{number}", {"text": text.strip(), "chapter" if kind == "epub" else "page": number}
    if not has_text:
        scanned = ": run OCR on scanned pages first" if kind == "pdf" else ""
        raise UserError(f"{path}: no text in it{scanned}")


def _pages(path: Path, raw: bytes) -> Iterator[str]:
    try:
        import pypdf
    except ImportError:
        raise UserError(f"{path}: reading it needs the package pypdf: pip install didact[books]") from None
    try:
        book = pypdf.PdfReader(io.BytesIO(raw))
        if book.is_encrypted and not book.decrypt(""):
            raise UserError(f"{path}: needs a password; save it without one first")
        for page in book.pages:
            yield page.extract_text()
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything in the reader
        raise UserError(f"{path}: not a PDF that can be read: {_describe(error)}") from None


def _chapters(path: Path, raw: bytes) -> Iterator[str]:
    """Yield the chapters in order: the container names the package file, whose spine lists them.

    Read with the standard library: the licence of the common package for it (AGPL) would bind users of this one.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            if "META-INF/encryption.xml" in packed.namelist() and b"EncryptedKey" in _unpacked(
                packed, "META-INF/encryption.xml"
            ):
                raise UserError(f"{path}: its text is encrypted (DRM)")
            package = ElementTree.fromstring(_unpacked(packed, CONTAINER)).find(".//{*}rootfile")
            place = "" if package is None else package.get("full-path", "")
            table = ElementTree.fromstring(_unpacked(packed, place))
            hrefs = {item.get("id"): item.get("href", "") for item in table.iterfind(".//{*}manifest/{*}item")}
            for item in table.iterfind(".//{*}spine/{*}itemref"):
                if href := hrefs.get(item.get("idref")):
                    name = posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(href)))
                    yield _plain(_unpacked(packed, name).decode("utf-8", "replace"))
    except (
        zipfile.BadZipFile,
        zlib.error,
        ElementTree.ParseError,
        LookupError,
        ValueError,
        OSError,
        EOFError,
    ) as error:
        raise UserError(f"{path}: not an EPUB that can be read: {_describe(error)}") from None


def _unpacked(packed: zipfile.ZipFile, name: str) -> bytes:
    with packed.open(name) as member:
        out = member.read(LARGEST + 1)
    if len(out) > LARGEST:
        raise ValueError(f"{name} unpacks to more than {LARGEST >> 20} MiB")
    return out


def _describe(error: Exception) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0]


def _plain(page: str) -> str:
    """A chapter's text: one line per block, table cells separated by `|`."""
    separated = BLOCKS.sub("\n", CELLS.sub("\t", HIDDEN.sub(" ", page).replace("\n", " ")))
    text = html.unescape(TAGS.sub("", separated))
    lines = (" | ".join(" ".join(cell.split()) for cell in line.strip().split("\t")) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)

"""Books read as text: EPUB chapters in their order, PDF pages, and a one-line error for other files."""

import zipfile

import pypdf
import pytest

from didact.data.read import read
from didact.types import Parallel, Text, UserError


def epub_of(path, chapters, **more):
    """Write an EPUB with chapters in the order of the spine; the manifest lists them in reverse."""
    items = "".join(f'<item id="c{i}" href="text/c%20{i}.xhtml"/>' for i in reversed(range(len(chapters))))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:x"><rootfiles><rootfile full-path="OEBPS/b.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/b.opf",
            f'<package xmlns="urn:y"><manifest>{items}</manifest><spine>{spine}</spine></package>',
        )
        for i, text in enumerate(chapters):
            page = f"<html><head><title>t</title></head><body><script>bad()</script><h1>C{i}</h1>{text}</body></html>"
            archive.writestr(f"OEBPS/text/c {i}.xhtml", page)
        for name, text in more.items():
            archive.writestr(name.replace("__", "/") + ".xml", text)


def pdf_of(path, text):
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]  # fmt: skip
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % at for at in offsets)
    out += b"xref\n0 5\n0000000000 65535 f \n%strailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(out),
    )
    path.write_bytes(out)


def test_a_book_is_read_as_text_epub_or_pdf(tmp_path):
    (tmp_path / "g.txt").write_text("Line one.\n\nLine two.\n", encoding="utf-8")
    epub_of(
        tmp_path / "g.epub",
        ["<p>Adjectives\nfollow &amp; agree.</p><table><tr><td>ka</td><td>dog</td></tr></table>", "Verbs come last."],
    )
    pdf_of(tmp_path / "g.pdf", "The plural ends in ka.")
    assert [r.text for r in read(tmp_path / "g.txt", Text)] == ["Line one.\n\nLine two.\n"]
    assert [r.text for r in read(tmp_path / "g.epub", Text)] == [
        "C0\nAdjectives follow & agree.\nka | dog", "C1\nVerbs come last."
    ]  # fmt: skip
    assert [r.text.strip() for r in read(tmp_path / "g.pdf", Text)] == ["The plural ends in ka."]


@pytest.mark.parametrize(
    ("name", "reason"), [("g.epub", "not an EPUB"), ("g.pdf", "not a PDF"), ("g.txt", "empty"), ("e.pdf", "OCR")]
)
def test_a_damaged_or_empty_book_is_one_line(tmp_path, name, reason):
    path = tmp_path / name
    if name == "e.pdf":
        pdf_of(path, "")
    else:
        path.write_bytes(b"" if name == "g.txt" else b"no such book")
    with pytest.raises(UserError, match=reason) as error:
        read(path, Text)
    assert "\n" not in str(error.value)


def test_a_locked_book_is_told(tmp_path):
    epub_of(tmp_path / "g.epub", ["x"], **{"META-INF__encryption": "<encryption><EncryptedKey/></encryption>"})
    with pytest.raises(UserError, match="encrypted"):
        read(tmp_path / "g.epub", Text)
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "g.pdf")
    with pytest.raises(UserError, match="needs a password"):
        read(tmp_path / "g.pdf", Text)


def test_a_row_that_only_marks_a_benchmark_is_no_record(tmp_path):
    rows = '{"big-bench-canary": "x"}\n{"source": "a", "target": "b"}\n'
    (tmp_path / "t.jsonl").write_text(rows, encoding="utf-8")
    assert [p.source for p in read(tmp_path / "t.jsonl", Parallel)] == ["a"]

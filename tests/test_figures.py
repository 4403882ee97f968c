"""Figures that methods declare: written, read and drawn; positions match the numbers; hostile and damaged files."""

import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import torch
from test_report import EVIL, INTO_SVG, accessible, inert, look, run_folder

from didact import figures, files
from didact.figures import Bar, Bars, Curves, Heat, Line, Points, Scatter, Span, Timeline, Trees
from didact.report import drawing, page
from didact.types import Result, UserError

X = np.arange(1, 5)


def every(word="a"):
    """One figure of each kind, with `word` as every text."""
    texts = {"title": word, "note": word, "x": word}
    return [
        Curves(**texts, y=word, lines=[Line(word, X, torch.arange(4.0), X - 2, X), Line("b", X, [1.0, None, 2, 3])],
               levels={word: 0.5}),
        Heat(**texts, y=word, value=word, columns=[word, 3], rows=[word], values=np.array([[0.25, np.nan]])),
        Bars(**texts, bars=[Bar(word, 0.5, 0.25, 0.75, group=word), Bar("none", None)], levels={word: 1.0}),
        Scatter(**texts, y=word, points=[Points(word, [0, 1], [2, 3], [word, word]), Points("b", X, X)], diagonal=True),
        Trees(title=word, note=word, words=[word, "b", "c"],
              trees={word: (word, [0, ("", [1, 2])]), "o": ("", [0, 1, 2])}),
        Timeline(**texts, rows=[word, "b"], spans=[Span(0, 0, 40, word, word), Span(1, 10, 20, "b", "c")]),
    ]  # fmt: skip


def numbers(pattern, text):
    return [tuple(map(float, match.groups())) for match in re.finditer(pattern, text)]


def test_what_is_written_is_read_and_drawn_alike(tmp_path):
    result = Result(figures=every())
    written = result.save(tmp_path)
    assert "figures.json" in written and "6 figures" in repr(result)
    again = figures.read(tmp_path)
    assert [type(f) for f in again] == [type(f) for f in result.figures]
    for ours, theirs in zip(result.figures, again, strict=True):
        assert figures.as_row(ours) == figures.as_row(theirs) and ours.svg() == theirs.svg()


def test_places_are_true_to_the_numbers():
    svg = drawing.draw(figures.as_row(every()[0]))
    level = numbers(r'class="least" x1="[\d.]+" y1="([\d.]+)"', svg)[0][0]
    (_, one), (_, two), (_, three) = numbers(r"[ML]([\d.]+) ([\d.]+)", re.search(r'"line s1" d="(.*?)"', svg)[1])[:3]
    assert level == pytest.approx((one + two) / 2, abs=0.1) and one - two == pytest.approx(two - three, abs=0.1)
    assert re.search(r'class="name s1"[^>]*>a<', svg) and re.search(r'class="name"[^>]*>a<', svg)

    bars = Bars(title="t", x="x", bars=[Bar("p", 0.2), Bar("q", 0.4), Bar("r", -0.1)], levels={"chance": 0.3})
    svg = drawing.draw(figures.as_row(bars))
    (a, p), (_, q), (b, r) = numbers(r'class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    assert q == pytest.approx(2 * p, abs=0.2) and r == pytest.approx(p / 2, abs=0.2) == a - b
    assert numbers(r'class="least" x1="([\d.]+)"', svg)[0][0] == pytest.approx(a + 1.5 * p, abs=0.2)

    heat = Heat(title="t", x="x", y="y", value="v", columns=[1, 2, 3], rows=["r"], values=[[0.0, 1.0, -2.0]])
    cells = re.findall(
        r'class="(cell[ \w]*)" fill-opacity="([\d.]+)" x="[\d.]+" y="24', drawing.draw(figures.as_row(heat))
    )
    assert [c for c, _ in cells] == ["cell", "cell", "cell minus"]
    assert [float(v) for _, v in cells] == pytest.approx([0.0, drawing.READ / 2, drawing.READ])

    svg = drawing.draw(figures.as_row(every()[4]))  # the second tree has one of the two spans of the first
    assert "o: 1 of 2 spans right" in svg and svg.count("branch other") == 0
    gold_tree = ("", [("", [0, 1]), 2])
    svg = drawing.draw(
        figures.as_row(Trees(title="t", words="abc", trees={"t": gold_tree, "o": ("", [0, ("", [1, 2])])}))
    )
    assert "1 of 2" in svg and svg.count("branch other") == 2


def test_hostile_text_is_text_on_the_page_and_alone(tmp_path, browser):
    figures_shown = [*every(EVIL), *every(INTO_SVG)]
    files.write_json(tmp_path / "figures.json", [figures.as_row(f) for f in figures_shown])
    path = page.write(run_folder(tmp_path))
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab, console, requests = look(browser, path, scheme, width)
        inert(tab, console, requests, [path])
        accessible(tab, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator(".pictures figure svg[role=img]").count() == 12
        assert tab.locator(".pictures figcaption").all_inner_texts() == [EVIL] * 6 + [INTO_SVG] * 6
    for figure in figures_shown:
        figure.save(tmp_path / "alone.svg")
        root = xml.etree.ElementTree.parse(tmp_path / "alone.svg").getroot()
        assert {e.tag.rpartition("}")[2] for e in root.iter()} <= {
            "svg", "style", "g", "rect", "text", "title", "line", "path"
        }  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: Line("a", [1, 2], [1]),
        lambda: Line("a", [1, 2], [1, 2], low=[0, 0]),
        lambda: Heat(title="t", x="x", y="y", value="v", columns=[1], rows=[1], values=[[1, 2]]),
        lambda: Points("a", [1], [1], ["n", "m"]),
    ],
)
def test_wrong_shapes_are_refused_where_they_are_made(build):
    with pytest.raises(UserError, match=r"names|values"):
        build()


@pytest.mark.parametrize("damage", [
    {"kind": "pie"}, {"words": ["a"]}, {"trees": {"a": ["", []]}}, {"trees": {"a": ["", [0, "b"]]}}, {"words": None},
])  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, damage):
    row = figures.as_row(every()[4]) | damage
    (tmp_path / "figures.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=r"figures\.json: not figures of didact .*repeat the run") as error:
        page.write(run_folder(tmp_path))
    assert "\n" not in str(error.value)


def test_nothing_to_draw_is_said():
    assert "no finite value" in drawing.draw(
        figures.as_row(Curves(title="t", x="x", y="y", lines=[Line("a", [1], [float("nan")])]))
    )
    empty = [Bars(title="t", x="x", bars=[]), Heat(title="t", x="x", y="y", value="v", columns=[], rows=[], values=[])]
    for figure in [*empty, Scatter(title="t", x="x", y="y", points=[]), Trees(title="t", words=[], trees={})]:
        assert figure.svg().startswith("<svg")


def test_spans_of_a_timeline_are_as_long_as_they_take():
    spans = [Span(0, 0, 10, "1", "forward"), Span(1, 10, 30, "1", "backward")]
    svg = drawing.draw(figures.as_row(Timeline(title="t", x="s", rows=["a", "b"], spans=spans)))
    bars = numbers(r'x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="18', svg)
    (x, y, wide), (later, below, twice) = bars
    assert twice + 1 == pytest.approx(2 * (wide + 1), abs=0.2) and later == pytest.approx(x + wide + 1, abs=0.2)
    assert below == y + 20 and svg.count('class="mark s1"') == svg.count('class="mark s2"') == 2
    with pytest.raises(UserError, match="row 2 of 1"):
        Timeline(title="t", x="s", rows=["a"], spans=[Span(2, 0, 1, "", "")])

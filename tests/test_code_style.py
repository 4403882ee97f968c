"""The code-style example: violations are assigned to their lines, and its command measures every arm."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pycodestyle")  # the extra `parse`
EXAMPLE = Path(__file__).parents[1] / "examples" / "code_style.py"
named = importlib.util.spec_from_file_location("code_style", EXAMPLE)
code_style = importlib.util.module_from_spec(named)
named.loader.exec_module(code_style)

SOURCE = "import os,sys\n\n\ndef f(x):\n    return  x \n"


def test_findings_belong_to_their_lines_by_the_character():
    assert code_style.violations(SOURCE) == [["E401", "E231"], [], [], [], ["W291", "E271"]]
    document = code_style.document(SOURCE)
    assert "".join(s.text for s in document.segments) == SOURCE
    assert [s.score for s in document.segments] == [-2 / 14, 0, 0, 0, -2 / 15]
    assert code_style.rate([document]) == pytest.approx(4 / len(SOURCE))


def test_what_cannot_be_read_is_no_matter_of_style():
    assert code_style.violations("x = (\n") == [[]]
    assert not code_style.valid("x = (\n")
    assert code_style.valid(SOURCE)


@given(st.text("ax:(,'#\t\n \f", max_size=40))
def test_any_text_has_one_count_a_line(text):
    assert len(code_style.violations(text)) == len(text.split("\n")) - (text == "" or text[-1] == "\n")


@pytest.mark.parametrize(
    ("text", "ended", "body"),
    [
        ("    a\n\n    b\ndef g():\n    c\n", True, "    a\n\n    b\n"),
        ("    a\n    b", False, "    a\n"),
        ("    a\n    b", True, "    a\n    b\n"),
        ("    a\n\n\n", False, "    a\n"),
        ("x = 1\n", True, ""),
        ("", True, ""),
    ],
)
def test_a_function_ends_where_nothing_is_indented_and_has_whole_lines(text, ended, body):
    assert code_style.function("def f():\n", text, ended) == "def f():\n" + body


def test_no_file_has_two_purposes_and_none_is_a_test():
    names = [name for name, _ in code_style.corpus(60)]
    assert len(names) == len(set(names)) > 5
    assert not any("test" in Path(n).parts for n in names)
    assert list(code_style.corpus(60)) == list(code_style.corpus(60))


def test_the_command_makes_every_unit_once_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(code_style, "SEEDS", (1, 2))
    data = tmp_path / "phf_functions_csnet.jsonl"
    data.write_text("".join(json.dumps({"text": f"def f{i}(x):"}) + "\n" for i in range(9)))
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "1", "--every", "80"]
    command += ["--prompts", "3", "--arms", "mle", "conditional"]
    code_style.main(command)
    stdout = capsys.readouterr().out
    assert "| conditional - mle |" in stdout
    units = sorted((tmp_path / "out/units").glob("*.json"))
    assert len(units) == len(code_style.RATES) + 2 * len(code_style.SEEDS)
    (saved,) = [p for p in units if p.name.startswith("conditional") and p.name.endswith("seed1.json")]
    row = json.loads(saved.read_text())
    assert row["told"]["with_marks"] > row["told"]["all"] > 0
    assert 0 <= row["valid"] <= 1 and row["violations"] >= 0
    saved.unlink()
    code_style.main(command)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "_seed" in line] == [saved.stem]
    assert json.loads(saved.read_text())["clean"] == pytest.approx(row["clean"])

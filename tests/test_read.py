"""Readers: any bytes give records or one `UserError` that names file and line; nothing is lost in between."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from didact import read as package_read
from didact.data.read import from_row, parse, read
from didact.types import RECORDS, Demo, Example, Preference, Text, UserError, as_row

GOOD = {"prompt": "Where was Mira born?", "completion": "Tarn"}
FUZZ = settings(max_examples=550, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None), max_size=4),
    st.sampled_from([10**309, -(10**400), "\ud83d", {"a": "\udc00"}, [[float("nan")]], [], {}]),
)
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
field_names = st.sampled_from(
    [*sorted({f.name for record in RECORDS.values() for f in dataclasses.fields(record)}), "messages", "other", ""]
)
kinds = st.sampled_from(list(RECORDS))


def write(folder, *lines, name="data.jsonl", newline="\n"):
    path = folder / name
    text = newline.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes((text + newline).encode("utf-8", "surrogatepass"))
    return path


def complaint(path, kind="demo", **options):
    with pytest.raises(UserError) as caught:
        read(path, kind, **options)
    return str(caught.value)


def read_or_one_complaint(path, kind):
    """Records that survive a round trip, or a `UserError` that names the file."""
    try:
        records = read(path, kind)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path)), message
        assert "Traceback" not in message and len(message.splitlines()) <= 23
    else:
        assert records and all(type(r) is RECORDS[kind] for r in records)
        for record in records:
            json.dumps(as_row(record), ensure_ascii=False).encode()
            assert from_row(as_row(record), type(record)) == record or "nan" in repr(record)


# --- fuzz: 4 x 550 cases ---------------------------------------------------------------------


@FUZZ
@given(raw=st.binary(max_size=200), kind=kinds)
def test_random_bytes_give_records_or_one_complaint(tmp_path, raw, kind):
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(raw)
    read_or_one_complaint(path, kind)


@FUZZ
@given(rows=st.lists(json_values, max_size=4), kind=kinds)
def test_random_json_gives_records_or_one_complaint(tmp_path, rows, kind):
    read_or_one_complaint(write(tmp_path, *rows), kind)


@FUZZ
@given(row=st.dictionaries(field_names, json_values, max_size=8), kind=kinds)
def test_random_values_in_known_fields_give_records_or_one_complaint(tmp_path, row, kind):
    read_or_one_complaint(write(tmp_path, row), kind)


VALID = [
    json.dumps(GOOD | {"perturbed": ["a", "b"], "extra": {"k": 1}}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    json.dumps({"text": "x", "score": 1.5, "metadata": {"k": [1, 2]}}),
    json.dumps({"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 1}),
    json.dumps({"x": [[1.0, 2.0]], "y": [1.0], "x_query": [0.5, 0.5]}),
]


edits = st.tuples(
    st.sampled_from(["change", "drop", "insert", "cut"]),
    st.integers(0, 200),
    st.sampled_from([b'"', b"\\ud800", b"[", b"{", b"1e999", b"NaN", b"\xff", b"\n", b"\0", b"null", b"1" * 320]),
)


@FUZZ
@given(line=st.sampled_from(VALID), edits=st.lists(edits, min_size=1, max_size=4), kind=kinds)
def test_mutated_valid_lines_give_records_or_one_complaint(tmp_path, line, edits, kind):
    raw = line.encode()
    for what, at, piece in edits:
        at %= len(raw) + 1
        end = {"change": at + len(piece), "drop": at + 1, "insert": at, "cut": len(raw)}[what]
        raw = raw[:at] + (b"" if what in ("drop", "cut") else piece) + raw[end:]
    path = tmp_path / "mutated.jsonl"
    path.write_bytes(raw)
    read_or_one_complaint(path, kind)


# --- every kind of bad input, each with its own line -----------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            {"prompt": "p"},
            "field 'completion' is missing; this line has 'prompt' (--map completion=YOUR_FIELD renames)",
        ),
        ({"prompt": "p", "completion": None}, "field 'completion' is missing"),
        ({"prompt": 3, "completion": "c"}, "field 'prompt' must be text, not a whole number"),
        ({"prompt": "p", "completion": ["c"]}, "field 'completion' must be text, not a list"),
        (GOOD | {"perturbed": ["a", 1]}, "field 'perturbed' must be a list of text, not a list"),
        ("[1, 2]", "a JSON object is expected, not a list"),
        ("17", "a JSON object is expected, not a whole number"),
        ("null", "a JSON object is expected, not null"),
        ('{"prompt": "p", ', "not valid JSON"),
        ("prompt,completion", "not valid JSON"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"prompt": "p", "completion": "half \\ud83d"}', "field 'completion' holds half a surrogate pair"),
        ({"messages": [{"role": "user", "content": "q"}]}, "one user turn and one assistant turn"),
        ({"messages": "hello"}, "one user turn and one assistant turn"),
        (
            {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "a"}]},
            "every turn needs a text 'content'",
        ),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path, line, says):
    path = write(tmp_path, GOOD, "", line, GOOD)
    message = complaint(path)
    assert message.startswith(f"{path}:3: ") and says in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_not_finite_floats_are_refused(tmp_path, number):
    path = write(tmp_path, f'{{"text": "t", "score": {number}}}')
    assert complaint(path, "text").startswith(f"{path}:1: field 'score'")


@pytest.mark.parametrize("where", ['"x": [[1, NaN]], "y": [1]', '"x": [[1, 2]], "y": [-Infinity]'])
def test_nan_is_found_deep_in_a_table(tmp_path, where):
    path = write(tmp_path, "{" + where + "}")
    assert "holds NaN or an infinity" in complaint(path, "example")


def test_true_is_not_a_number(tmp_path):
    assert "field 'score' must be a number, not true or false" in complaint(
        write(tmp_path, {"text": "t", "score": True}), "text"
    )


def test_whole_numbers_are_read_as_floats_where_a_float_is_meant(tmp_path):
    (record,) = read(write(tmp_path, {"text": "t", "score": 2}), "text")
    assert isinstance(record.score, float) and record.score == 2


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no Demo record in it: it is empty"),
        (b"\n \n\n", "no Demo record in it: it is empty"),
        (b"\x7fELF\0\0\1", "a binary file; one JSON object a line is expected"),
        (b'{"prompt": "p", "completion": "c"}\n{"prompt": "\xe9"}\n', ":2: not UTF-8 text"),
    ],
)
def test_a_file_without_records_is_one_line(tmp_path, raw, says):
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    message = complaint(path)
    assert message.startswith(str(path)) and says in message and "\n" not in message


def test_a_missing_file_and_a_folder_are_one_line_each(tmp_path):
    assert complaint(tmp_path / "none.jsonl") == f"{tmp_path / 'none.jsonl'}: no such file"
    assert complaint(tmp_path).startswith(f"{tmp_path}: cannot be read: ")


def test_an_unknown_record_kind_lists_those_there_are(tmp_path):
    assert complaint(write(tmp_path, GOOD), "demos") == f"unknown record kind 'demos': use one of {', '.join(RECORDS)}"


def test_twenty_bad_lines_are_listed_and_the_rest_counted(tmp_path):
    path = write(tmp_path, GOOD, *[{"prompt": str(i)} for i in range(27)])
    lines = complaint(path).splitlines()
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{path}:{i}" for i in range(2, 22)]
    assert lines[20:] == ["... and 7 more bad lines", "(--skip-bad drops and counts such lines)"]


def test_skip_bad_drops_and_counts(tmp_path):
    records = read(write(tmp_path, GOOD, {"prompt": "p"}, "not json", GOOD), skip_bad=True)
    assert [as_row(r) for r in records] == [GOOD, GOOD]
    assert records.dropped == 2
    assert read(write(tmp_path, GOOD)).dropped == 0


def test_skip_bad_with_nothing_left_still_complains(tmp_path):
    assert "all 2 lines are bad" in complaint(write(tmp_path, "x", "y"), skip_bad=True)


# --- what is read ----------------------------------------------------------------------------


def test_rename_maps_the_files_fields_to_the_records(tmp_path):
    path = write(tmp_path, {"question": "q", "answer": "a", "prompt_id": 3})
    (record,) = read(path, rename={"prompt": "question", "completion": "answer"})
    assert record == Demo(prompt="q", completion="a", extra={"prompt_id": 3})
    assert "field 'prompt' is missing" in complaint(path, rename={"completion": "answer"})


def test_messages_become_prompt_and_completion(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (record,) = read(write(tmp_path, {"messages": turns, "id": 7}))
    assert record == Demo(prompt="q", completion="a", extra={"id": 7})


def test_unknown_fields_are_kept_in_extra(tmp_path):
    (record,) = read(write(tmp_path, GOOD | {"id": 1, "nested": {"a": [1]}, "task": "t"}))
    assert record.extra == {"id": 1, "nested": {"a": [1]}} and record.task == "t"


def test_an_extra_field_of_the_file_is_merged_and_never_replaces_a_known_one(tmp_path):
    (record,) = read(write(tmp_path, GOOD | {"extra": {"fact": "born", "prompt": "another"}}))
    assert record == Demo(**GOOD, extra={"fact": "born"})
    assert as_row(record) == GOOD | {"fact": "born"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path, newline, mark):
    path = write(tmp_path, GOOD, "", GOOD, newline=newline)
    path.write_bytes(mark + path.read_bytes())
    assert [as_row(r) for r in read(path)] == [GOOD, GOOD]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    row = {"prompt": "a\u2028b\x85c\u000bd", "completion": "c"}
    path = write(tmp_path, json.dumps(row, ensure_ascii=False))
    assert as_row(read(path)[0]) == row


def test_records_remember_their_file(tmp_path):
    path = write(tmp_path, GOOD)
    assert read(path).path == str(path)
    assert package_read(path) == read(path)


finite = st.floats(allow_nan=False, allow_infinity=False)
plain_text = st.text(max_size=10)
records = st.one_of(
    st.builds(
        Demo,
        prompt=plain_text,
        completion=plain_text,
        choices=st.none() | st.lists(plain_text, max_size=3),
        task=st.none() | plain_text,
        perturbed=st.none() | st.lists(plain_text, max_size=3),
        alternate=st.none() | plain_text,
        extra=st.dictionaries(st.sampled_from(["id", "fact", "é"]), st.integers() | plain_text, max_size=2),
    ),
    st.builds(Text, text=plain_text, score=st.none() | finite, metadata=st.none() | st.just({"a": [1, {"b": None}]})),
    st.builds(Preference, prompt=plain_text, chosen=plain_text, rejected=plain_text, chosen_score=st.none() | finite),
    st.builds(Example, x=st.lists(st.lists(finite, max_size=2), max_size=3), y=st.lists(finite, max_size=3)),
)


@settings(max_examples=300, deadline=None)
@given(record=records)
def test_a_record_survives_the_way_to_a_line_and_back(record):
    row = as_row(record)
    assert from_row(row, type(record)) == record
    assert parse(json.dumps(row), type(record)) == record
    assert parse(json.dumps(row, ensure_ascii=False), type(record)) == record


def test_huge_integers_outside_number_fields_are_kept_as_they_are():
    record = parse('{"text": "t", "id": ' + "9" * 400 + "}", Text)
    assert record.extra["id"] == int("9" * 400)

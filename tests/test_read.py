"""Readers: any bytes give records or one `UserError` that names file and line; no field is lost."""

import csv
import dataclasses
import gzip
import io
import json
import pickle
import re
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from didact import read as package_read
from didact.data import formats
from didact.data.read import from_row, parse, read
from didact.types import (
    RECORDS,
    Critique,
    Demo,
    Example,
    Judged,
    Lexeme,
    Messages,
    Parallel,
    Passage,
    Preference,
    Scored,
    Segment,
    Step,
    Text,
    Trajectory,
    Trial,
    UserError,
    as_row,
)

HH = Path(__file__).parents[2] / "shared" / "data" / "hh_rlhf_harmless_test.jsonl"
GOOD = {"prompt": "Where was Mira born?", "completion": "Tarn"}
FUZZ = settings(max_examples=5 * settings().max_examples, deadline=None, suppress_health_check=list(HealthCheck))

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
    with pytest.raises(UserError) as error:
        read(path, kind, **options)
    return str(error.value)


def read_or_one_complaint(path, kind):
    """Check that a file gives records that survive a round trip, or a `UserError` that names the file."""
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


# --- fuzz: 4 x 550 cases of JSONL, 2 x 500 of every other format ----------------------------


@pytest.mark.parametrize(
    ("line", "prompt", "completion"),
    [({"prompt": 1.5, "completion": 2}, "1.5", "2"), ({"x": 3, "y": -1e-3}, "3", "-0.001"),
     ({"x": "two rooms", "y": 4.0}, "two rooms", "4.0")],
)  # fmt: skip
def test_points_of_a_function_may_be_numbers(line, prompt, completion):
    demo = from_row(line, Demo)
    assert (demo.prompt, demo.completion) == (prompt, completion) and not demo.extra


def test_a_trial_may_be_a_point():
    trial = from_row({"x": {"lr": 0.01}, "y": 1}, Trial)
    assert trial.config == {"lr": 0.01} and trial.score == 1.0


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
    json.dumps({"task": "t", "final_observation": 2, "steps": [{"observation": [1], "action": "a", "reward": 1}]}),
    json.dumps({"segments": [{"text": "x", "score": 1.5}]}),
    json.dumps({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
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
    for edit, at, piece in edits:
        at %= len(raw) + 1
        end = {"change": at + len(piece), "drop": at + 1, "insert": at, "cut": len(raw)}[edit]
        raw = raw[:at] + (b"" if edit in ("drop", "cut") else piece) + raw[end:]
    path = tmp_path / "mutated.jsonl"
    path.write_bytes(raw)
    read_or_one_complaint(path, kind)


table_bytes = st.text(st.sampled_from("\"',;\t\n\r[]{}:1e.promt\\"), max_size=60).map(str.encode)
OTHERS = ("a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz")


@FUZZ
@given(raw=st.binary(max_size=100) | table_bytes, kind=kinds)
def test_random_bytes_under_every_ending_give_records_or_one_complaint(tmp_path, raw, kind):
    for name in OTHERS:
        (tmp_path / name).write_bytes(raw)
        read_or_one_complaint(tmp_path / name, kind)


def whole_files():
    rows = [GOOD | {"perturbed": ["a"], "score": 1.5}, {"prompt": "p", "completion": "c\nd"}]
    table, parquet = io.StringIO(), io.BytesIO()
    csv.DictWriter(table, ["prompt", "completion", "perturbed", "score"], delimiter=",").writeheader()
    csv.DictWriter(table, ["prompt", "completion", "perturbed", "score"]).writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    lines = "\n".join(map(json.dumps, rows)).encode()
    encoded = (json.dumps(rows, indent=1).encode(), table.getvalue().encode())
    return dict(
        zip(OTHERS, (*encoded, encoded[1].replace(b",", b"\t"), parquet.getvalue(), gzip.compress(lines)), strict=True)
    )


WHOLE = whole_files()
spots = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


@FUZZ
@given(changes=st.lists(spots, min_size=1, max_size=3), cut=st.none() | st.floats(0, 1), kind=kinds)
def test_damaged_files_of_every_format_give_records_or_one_complaint(tmp_path, changes, cut, kind):
    for name, whole in WHOLE.items():
        raw = bytearray(whole)
        for at, value in changes:
            raw[int(at * len(raw))] = value
        (tmp_path / name).write_bytes(raw if cut is None else raw[: int(cut * len(raw))])
        read_or_one_complaint(tmp_path / name, kind)


# --- every kind of bad input, each with its own message --------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
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
        (
            {"messages": [{"role": "user", "content": "q"}]},
            "field 'messages' must hold an assistant turn with something before it",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
            "field 'messages' must hold an assistant turn with something before it",
        ),
        ({"messages": 3}, "field 'messages' must be a list of turns"),
        ({"messages": []}, "field 'messages' must be a list of turns"),
        ({"messages": "hello"}, "not valid JSON"),
        (
            {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "a"}]},
            "field 'messages', turn 1: every turn needs a text 'role' and a text 'content'",
        ),
        (
            {"prompt": "p", "completion": [{"role": "user", "content": "q"}]},
            "field 'completion' must be one assistant turn, not user",
        ),
        (
            {"prompt": [{"role": "user", "content": "half \ud83d"}], "completion": "c"},
            "field 'prompt' holds half a surrogate pair",
        ),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path, line, expected):
    path = write(tmp_path, GOOD, "", line, GOOD)
    message = complaint(path)
    assert message.startswith(f"{path}:3: ") and expected in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_not_finite_floats_are_refused(tmp_path, number):
    path = write(tmp_path, f'{{"text": "t", "score": {number}}}')
    assert complaint(path, "text").startswith(f"{path}:1: field 'score'")


@pytest.mark.parametrize("fields", ['"x": [[1, NaN]], "y": [1]', '"x": [[1, 2]], "y": [-Infinity]'])
def test_nan_is_found_deep_in_a_table(tmp_path, fields):
    path = write(tmp_path, "{" + fields + "}")
    assert "holds NaN or an infinity" in complaint(path, "example")


def test_true_is_not_a_number(tmp_path):
    assert "field 'score' must be a number, not true or false" in complaint(
        write(tmp_path, {"text": "t", "score": True}), "text"
    )


def test_whole_numbers_are_read_as_floats_where_a_float_is_meant(tmp_path):
    (record,) = read(write(tmp_path, {"text": "t", "score": 2}), "text")
    assert isinstance(record.score, float) and record.score == 2


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "no Demo record in it: it is empty"),
        (b"\n \n\n", "no Demo record in it: it is empty"),
        (b"\x7fELF\0\0\1", "a binary file; one JSON object a line is expected"),
        (b'{"prompt": "p", "completion": "c"}\n{"prompt": "\xe9"}\n', ":2: not UTF-8 text"),
    ],
)
def test_a_file_without_records_is_one_line(tmp_path, raw, expected):
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    message = complaint(path)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


def test_a_missing_file_and_a_folder_are_one_line_each(tmp_path):
    assert complaint(tmp_path / "none.jsonl") == f"{tmp_path / 'none.jsonl'}: no such file"
    assert complaint(tmp_path).startswith(f"{tmp_path}: cannot be read: ")


def test_an_unknown_record_kind_lists_those_there_are(tmp_path):
    assert complaint(write(tmp_path, GOOD), "demos") == f"unknown record kind 'demos': use one of {', '.join(RECORDS)}"


def test_what_is_wrong_with_many_lines_is_told_once_and_twenty_things_at_most(tmp_path):
    path = write(tmp_path, GOOD, *[{"prompt": str(i)} for i in range(27)], {"prompt": 3, "completion": "c"})
    missing, typed, mend = complaint(path).splitlines()
    assert missing.startswith(f"{path}:2 and 26 more: field 'completion' is missing; this line has 'prompt'")
    assert typed == f"{path}:29: field 'prompt' must be text, not a whole number" and mend.startswith("(--skip-bad")
    path = write(tmp_path, *[{"prompt": "p", f"x{i}": str(i)} for i in range(27)])
    assert [line.split(": ")[0] for line in complaint(path).splitlines()[:20]] == [f"{path}:{i}" for i in range(1, 21)]
    assert complaint(path).splitlines()[20:] == ["... and 7 more bad lines", "(--skip-bad drops and counts such lines)"]


def test_a_missing_field_is_told_with_the_map_that_fits(tmp_path):
    path = write(tmp_path, *[{"Question": str(i), "Answer": "a"} for i in range(3)])
    fits = {"prompt": "Question", "completion": "Answer"}
    assert complaint(path).splitlines()[0].endswith("(--map prompt=Question,completion=Answer renames)")
    assert [r.prompt for r in read(path, "demo", fits)] == ["0", "1", "2"]


LABELLED = [{"text": f"t{i}", "intent": "ab"[i % 2]} for i in range(6)]


def test_classified_texts_are_demonstrations_with_the_labels_as_choices(tmp_path):
    records = read(write(tmp_path, *LABELLED))
    assert [(r.prompt, r.completion, r.choices) for r in records[:2]] == [
        ("t0", "a", ["a", "b"]),
        ("t1", "b", ["a", "b"]),
    ]
    records = read(write(tmp_path, *[{"sentence": f"s{i}", "label": i % 2} for i in range(4)]))
    assert records[1].completion == "1" and records[1].choices == ["0", "1"]
    labelled = [row | {"label": 0, "label_text": "no"} for row in ({"text": "a"}, {"text": "b"})]
    assert [r.completion for r in read(write(tmp_path, *labelled))] == ["no", "no"]
    both = write(tmp_path, *[row | {"fine": f"f{i // 3}"} for i, row in enumerate(LABELLED)])
    assert "several fields may be the label, 'intent', 'fine': choose one with --map completion=intent" in complaint(
        both
    )
    assert read(both, "demo", {"completion": "fine"})[0].choices == ["f0", "f1"]
    # Read as texts, the labels go to `extra`
    assert read(write(tmp_path, *LABELLED), "text")[0].extra == {"intent": "a"}
    distinct = read(write(tmp_path, *[{"text": f"t{i}", "label": f"l{i}"} for i in range(6)]))
    assert distinct[0].choices is None  # every text has a label of its own: no classes
    ambiguous = write(tmp_path, {"question": "q", "answer": "a", "category": "c"})
    assert "--map prompt=question,completion=answer" in complaint(ambiguous)  # an answer outranks a category


def test_json_over_several_lines_and_of_splits_is_read(tmp_path):
    for name in ("data.jsonl", "data.json"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row, indent=2) for row in (GOOD, GOOD | {"task": "t"}, {"prompt": "p"})))
        assert complaint(path).startswith(f"{path}:10: field 'completion'")
        path.write_text(json.dumps(GOOD, indent=2))
        assert [as_row(r) for r in read(path)] == [GOOD]
        path.write_text('{\n "prompt": "p",\n "completion": \n}')
        assert complaint(path).startswith(f"{path}:1: not valid JSON")
    splits = {"oos_train": [["?", "oos"]], "train": [[f"t{i}", "ab"[i % 2]] for i in range(6)], "val": [GOOD]}
    for indent in (None, 2):
        path = tmp_path / "clinc.json"
        path.write_text(json.dumps(splits, indent=indent))
        assert complaint(path) == f"{path}: name one of its splits, {path}:SPLIT: oos_train, train, val"
        assert complaint(f"{path}:dev").endswith(f"{path}:SPLIT: oos_train, train, val")
        records = read(f"{path}:train")
        assert (records[1].prompt, records[1].completion, records[1].choices) == ("t1", "b", ["a", "b"])
        assert records.places[1] == f"{path}:train:2" and formats.splits_of(path) == list(splits)
        assert [as_row(r) for r in read(f"{path}:val")] == [GOOD]
        path.write_text(json.dumps({"version": "1", "data": [GOOD]}, indent=indent))
        assert [as_row(r) for r in read(path)] == [GOOD] and formats.splits_of(path) == []


def test_plain_text_is_a_document_and_a_folder_of_it_one_a_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.txt").write_text(text := "One day.\n\nIt rained.\n")
    (tmp_path / "b/2.md").write_text("# Two\n")
    assert [r.text for r in read(tmp_path / "b/1.txt", "text")] == [text]
    assert [r.text for r in read(tmp_path / "b", "text")] == [text, "# Two\n"]
    (tmp_path / "rows.txt").write_text('{"prompt": "p", "completion": "c"}\n' * 2)  # JSON lines in a .txt file
    assert len(read(tmp_path / "rows.txt", "demo")) == 2
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        read(tmp_path / "none.txt", "text")


def test_sharegpt_is_read_by_every_record_with_a_prompt(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}, {"from": "human", "value": "x"}]
    path = write(tmp_path, {"conversations": [*turns, {"from": "gpt", "value": "y"}]})
    (record,) = read(path)
    assert record.completion == "y" and [t["role"] for t in record.prompt.turns] == ["user", "assistant", "user"]
    assert [r.completion for r in read(path, turns="all")] == ["ho", "y"]
    assert read(path, "demo", {"messages": "conversations"})[0] == record
    row = {"conversations": turns[:1], "chosen": turns[1], "rejected": {"from": "gpt", "value": "no"}}
    (pair,) = read(write(tmp_path, row), "preference")
    assert (pair.prompt.turns[0]["content"], pair.chosen, pair.rejected) == ("hi", "ho", "no")


def test_skip_bad_drops_and_counts(tmp_path):
    records = read(write(tmp_path, GOOD, {"prompt": "p"}, "not json", GOOD), skip_bad=True)
    assert [as_row(r) for r in records] == [GOOD, GOOD]
    assert records.dropped == 2
    assert read(write(tmp_path, GOOD)).dropped == 0


def test_skip_bad_with_nothing_left_still_complains(tmp_path):
    assert "all 2 lines are bad" in complaint(write(tmp_path, "x", "y"), skip_bad=True)


# --- fields and conversations ----------------------------------------------------------------


def test_rename_maps_the_files_fields_to_the_records(tmp_path):
    path = write(tmp_path, {"question": "q", "answer": "a", "prompt_id": 3})
    (record,) = read(path, rename={"prompt": "question", "completion": "answer"})
    assert record == Demo(prompt="q", completion="a", extra={"prompt_id": 3})
    assert "field 'prompt' is missing" in complaint(path, rename={"completion": "answer"})


def turn(role, content):
    return {"role": role, "content": content}


def test_the_last_assistant_turn_of_messages_is_the_completion_and_what_precedes_it_the_prompt(tmp_path):
    turns = [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "r"), turn("assistant", "b")]
    (record,) = read(write(tmp_path, {"messages": [*turns, turn("user", "thanks")], "id": 7}))
    assert isinstance(record.prompt, Messages) and list(record.prompt.turns) == turns[:-1]
    assert record.prompt == "System: s\nUser: q\nAssistant: a\nUser: r\nAssistant:"
    assert record.completion == "b" and record.extra == {"id": 7}


def test_a_conversation_survives_the_way_to_a_line_copies_and_pickles(tmp_path):
    record = Demo(prompt=Messages([turn("user", "q") | {"name": "Mira"}]), completion="a")
    row = json.loads(json.dumps(as_row(record)))
    assert row["prompt"] == [{"role": "user", "content": "q", "name": "Mira"}]
    for again in (from_row(row, Demo), pickle.loads(pickle.dumps(record)), dataclasses.replace(record, task="t")):
        assert again.prompt.turns == record.prompt.turns


def test_trls_conversational_fields_are_read_for_every_record_with_a_prompt(tmp_path):
    question, better, worse = [turn("user", "q")], [turn("assistant", "a")], [turn("assistant", "b")]
    rows = {
        "demo": {"prompt": question, "completion": better},
        "preference": {"prompt": question, "chosen": better, "rejected": worse},
        "judged": {"prompt": question, "completion": better, "label": True},
        "scored": {"messages": question + better, "score": 2},
        "critique": {"prompt": question, "completion": worse, "feedback": "f", "refinement": better},
    }
    for kind, row in rows.items():
        (record,) = read(write(tmp_path, row), kind)
        assert record.prompt.turns == tuple(question)
        texts = {name: getattr(record, name, None) for name in ("completion", "chosen", "rejected", "refinement")}
        expected = {name: row[name][0]["content"] for name in texts if name in row}
        assert {name: text for name, text in texts.items() if text and name in row} == expected


def test_whole_dialogues_are_split_where_they_begin_to_differ(tmp_path):
    shared = [turn("user", "q"), turn("assistant", "a"), turn("user", "r")]
    path = write(tmp_path, {"chosen": [*shared, turn("assistant", "x")], "rejected": [*shared, turn("assistant", "y")]})
    (record,) = read(path, "preference")
    assert record.prompt.turns == tuple(shared) and (record.chosen, record.rejected) == ("x", "y")
    tie = [turn("user", "q"), turn("assistant", "x")]
    (record,) = read(write(tmp_path, {"chosen": tie, "rejected": tie}), "preference")
    assert record.prompt.turns == (tie[0],) and record.chosen == record.rejected == "x"
    early = {"chosen": [*shared, turn("assistant", "x")], "rejected": [shared[0], turn("assistant", "y")]}
    assert "field 'chosen' must be one assistant turn, not assistant, user, assistant" in complaint(
        write(tmp_path, early), "preference"
    )
    apart = {"chosen": tie[:1], "rejected": tie[1:]}
    assert "field 'chosen' must be one assistant turn, not user" in complaint(write(tmp_path, apart), "preference")
    alone = {"chosen": tie[1:], "rejected": tie[1:]}
    assert "field 'prompt' is missing" in complaint(write(tmp_path, alone), "preference")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: q\n\nAssistant: yes", "\n\nHuman: q\n\nAssistant: you", "\n\nHuman: q\n\nAssistant:"),
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: x",
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: y",
            "\n\nHuman: q\n\nAssistant:",
        ),
        ("The capital is Paris", "The capital is Poros", "The capital is "),
        ("The capital", "The capital is Paris", "The "),
        ("a b", "a b", "a "),
    ],
)
def test_dialogues_in_one_text_are_split_at_the_last_answer_both_share_else_at_white_space(chosen, rejected, prompt):
    record = from_row({"chosen": chosen, "rejected": rejected}, Preference)
    assert record.prompt == prompt
    assert (record.prompt + record.chosen, record.prompt + record.rejected) == (chosen, rejected)


@pytest.mark.parametrize(
    "row", [{"chosen": "Tarn", "rejected": "Osso"}, {"question": "?", "chosen": "I a", "rejected": "I b"}]
)
def test_answers_alone_are_not_taken_for_dialogues(row):
    with pytest.raises(UserError, match="field 'prompt' is missing"):
        from_row(row, Preference)


@pytest.mark.skipif(not HH.exists(), reason="the data of hh-rlhf are not here")
def test_hh_rlhf_is_read_as_it_is_and_split_without_loss():
    records = read(HH, "preference")
    raw = [json.loads(line) for line in HH.read_text().splitlines()]
    assert len(records) == len(raw)
    for record, row in zip(records, raw, strict=True):
        assert record.prompt + record.chosen == row["chosen"] and record.prompt + record.rejected == row["rejected"]
        assert record.prompt.endswith("\n\nAssistant:") and record.chosen[:1].isspace()
    assert sum("\n\nAssistant:" in record.chosen for record in records) < 0.01 * len(records)


def test_steps_and_segments_are_records_of_their_own(tmp_path):
    steps = [
        {"observation": [0, 1], "action": "left", "reward": 1},
        {"observation": [1, 1], "action": "up", "hit": True},
    ]
    (record,) = read(write(tmp_path, {"task": "t", "steps": steps, "final_observation": [2, 2]}), "trajectory")
    assert record.steps == [
        Step(observation=[0, 1], action="left", reward=1.0),
        Step(observation=[1, 1], action="up", extra={"hit": True}),
    ]
    del steps[1]["action"]
    message = complaint(write(tmp_path, {"task": "t", "steps": steps, "final_observation": 0}), "trajectory")
    assert ":1: field 'steps', item 2: field 'action' is missing; this line has 'observation', 'hit'" in message
    assert "--map" not in message
    path = write(tmp_path, {"task": "t", "steps": [3], "final_observation": 0})
    assert "field 'steps', item 1: a JSON object is expected, not a whole number" in complaint(path, "trajectory")


def test_a_text_may_be_given_by_its_segments(tmp_path):
    parts = [{"text": "A. ", "score": 0.5}, {"text": "B.", "score": 2}]
    (record,) = read(write(tmp_path, {"segments": parts}), "text")
    assert record.text == "A. B." and record.segments == [Segment(**p | {"score": float(p["score"])}) for p in parts]
    assert "item 1: field 'score' is missing" in complaint(write(tmp_path, {"segments": [{"text": "A"}]}), "text")


# --- tables, arrays, Parquet, compressed files, folders, the hub -----------------------------


def test_a_table_is_read_by_its_fields_types(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,score,metadata,note\n"a, b",1.5,"{""k"": [1]}",7\nc,,,\n')
    one, two = read(path, "text")
    assert one == Text(text="a, b", score=1.5, metadata={"k": [1]}, extra={"note": "7"})
    assert two == Text(text="c")
    path.write_text("prompt,completion,label\np,c,true\np,d,0\n")
    assert [r.label for r in read(path, "judged")] == [True, False]
    path.write_text('x,y,task\n"[[1, 2], [3, 4]]","[0, 1]",5\n')
    assert read(path, "example")[0] == Example(x=[[1, 2], [3, 4]], y=[0, 1], task="5")
    path = tmp_path / "data.tsv"
    path.write_text('context\tquestion\tanswers\na, b\tq\t"[""x"", ""y""]"\n')
    assert read(path, "qa")[0].answers == ["x", "y"]


def test_a_tables_messages_are_json_in_a_cell(tmp_path):
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps([turn("user", "q"), turn("assistant", "a")])]])
    assert read(path)[0].prompt.turns == (turn("user", "q"),)


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ('"p\nq\nr",c\np,\n', "demo", ":5: field 'completion' is missing; this line has 'prompt'"),
        ("p,c,more\n", "demo", ":2: 3 cells, but the header has 2"),
        ('p,"c\n', "demo", ":2: not a table: unexpected end of data"),
        ('p,"c"d\n', "demo", ":2: not a table:"),
    ],
)
def test_a_bad_cell_is_named_by_the_line_its_row_begins_on(tmp_path, body, kind, expected):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion\n" + body)
    message = complaint(path, kind)
    assert message.startswith(str(path)) and expected in message


def test_a_cell_that_does_not_fit_its_field_says_how_to_write_it(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("context,question,answers\nc,q,Paris\n")
    assert ":2: field 'answers' must be a list of text, not text (in a table, write it as JSON)" in complaint(
        path, "qa"
    )
    path.write_text("text,score\nt,high\nt,nan\n")
    first, second, _ = complaint(path, "text").splitlines()
    assert first.endswith(":2: field 'score' must be a number, not text")
    assert second.startswith(f"{path}:3: field 'score' holds NaN")
    path.write_text("text,text\na,b\n")
    assert complaint(path, "text") == f"{path}:1: two columns are called 'text'; rename one"


def test_an_array_is_read_item_by_item_with_their_lines(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=1))
    assert [as_row(r) for r in read(path)] == [GOOD, GOOD]
    path.write_text(json.dumps([GOOD, {"prompt": "p"}, 3], indent=1))
    first, second, _ = complaint(path).splitlines()
    assert first.startswith(f"{path}:6: field 'completion' is missing") and second.startswith(
        f"{path}:9: a JSON object"
    )
    path.write_text('[{"prompt": "p",\n "completion": "c"},\n')
    assert complaint(path) == f"{path}:3: not valid JSON: the array is not closed"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))  # JSON lines with the same suffix
    assert len(read(path)) == 2


def test_every_format_gives_the_same_records(tmp_path):
    table = [GOOD | {"task": "t", "perturbed": ["a", "b"]}, GOOD | {"task": None, "perturbed": None}]
    expected = [from_row(row, Demo) for row in table]
    lines = "\n".join(map(json.dumps, table)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(table))
    arrow = pyarrow.Table.from_pylist(table)
    pyarrow.parquet.write_table(arrow, tmp_path / "a.parquet")
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=datasets.Dataset(arrow), test=datasets.Dataset(arrow)).save_to_disk(tmp_path / "both")
    datasets.Dataset(arrow).save_to_disk(tmp_path / "one")
    (tmp_path / "files").mkdir()
    pyarrow.parquet.write_table(arrow, tmp_path / "files" / "test.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "one", "both:test", "files", "files:test"):
        assert list(read(tmp_path / name)) == expected, name
    assert "name one of its splits" in complaint(tmp_path / "both") and ": train, test" in complaint(tmp_path / "both")


def test_values_json_does_not_have_are_kept_as_text(tmp_path):
    import datetime

    table = pyarrow.Table.from_pylist([{"text": "t", "when": datetime.date(2024, 5, 1), "raw": b"x", "score": 1}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (record,) = read(tmp_path / "a.parquet", "text")
    assert record.extra == {"when": "2024-05-01", "raw": "x"} and record.score == 1.0


def test_rows_of_a_parquet_file_are_counted_from_one(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, {"prompt": "p", "completion": None}]), path)
    assert complaint(path).startswith(f"{path}:2: field 'completion' is missing")


@pytest.mark.parametrize("name", ["hub:x", "hub:./x:train", "hub:a/b/c:train", "hub::train", "hub:a:b:c:d"])
def test_a_hub_reference_names_a_data_set_and_a_split(name):
    assert complaint(name) == f"{name}: hub:NAME:SPLIT is expected, as in hub:owner/name:train"


def test_without_a_network_a_hub_reference_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = complaint("hub:nobody/nothing:train")
    assert message.startswith("hub:nobody/nothing:train: cannot be read: ") and "\n" not in message
    assert message.endswith("connect, or give a local file")


def test_the_fingerprint_is_the_files_hash_and_a_folders_content(tmp_path):
    import hashlib

    path = write(tmp_path, GOOD)
    assert formats.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    datasets.disable_progress_bars()
    prints = []
    for name, rows in {"a": [GOOD], "b": [GOOD], "c": [GOOD | {"prompt": "p"}]}.items():
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
        prints.append(formats.fingerprint(tmp_path / name))
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(UserError, match="no such file"):
        formats.fingerprint(tmp_path / "none")


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
turns = st.builds(turn, st.sampled_from(["system", "user", "assistant"]), plain_text)
talk = plain_text | st.lists(turns, min_size=1, max_size=3).map(Messages)
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
    st.builds(Judged, prompt=plain_text, completion=plain_text, label=st.booleans()),
    st.builds(Scored, prompt=plain_text, completion=plain_text, score=finite),
    st.builds(Critique, prompt=talk, completion=plain_text, feedback=plain_text, refinement=st.none() | plain_text),
    st.builds(
        Trajectory,
        task=plain_text,
        steps=st.lists(st.builds(Step, observation=plain_text, action=st.integers(), reward=st.none() | finite)),
        final_observation=plain_text,
        success=st.none() | st.booleans(),
    ),
    st.builds(Lexeme, synset=plain_text, language=plain_text, lemma=plain_text),
    st.builds(Parallel, source=plain_text, target=plain_text, source_lang=st.none() | plain_text),
    st.builds(Passage, text=plain_text, title=st.none() | plain_text),
    st.builds(Trial, config=st.dictionaries(plain_text, finite | plain_text, max_size=3), score=st.none() | finite),
    st.builds(Text, text=plain_text, segments=st.lists(st.builds(Segment, text=plain_text, score=finite), min_size=1)),
    st.builds(Example, x=st.lists(st.lists(finite, max_size=2), max_size=3), y=st.lists(finite, max_size=3)),
)


@given(record=records)
def test_a_record_survives_the_way_to_a_line_and_back(record):
    row = as_row(record)
    assert from_row(row, type(record)) == record
    assert parse(json.dumps(row), type(record)) == record
    assert parse(json.dumps(row, ensure_ascii=False), type(record)) == record


def test_huge_integers_outside_number_fields_are_kept_as_they_are():
    record = parse('{"text": "t", "id": ' + "9" * 400 + "}", Text)
    assert record.extra["id"] == int("9" * 400)


def test_every_line_of_the_page_on_records_is_read_whole():
    page = (Path(__file__).parent.parent / "docs" / "records.md").read_text()
    examples = re.findall(r"\*\*`(\w+)`\*\*.*?```json\n(.*?)```", page, re.S)
    assert {kind for kind, _ in examples} == set(RECORDS)
    for kind, lines in examples:
        for line in lines.splitlines():
            assert not parse(line, RECORDS[kind]).extra, line


# --- formats of other data sets --------------------------------------------------------------

USER, TARN, OSSO = (
    {"role": r, "content": c} for r, c in (("user", "Where?"), ("assistant", "Tarn"), ("assistant", "Osso"))
)
BOTH = {"chosen": [USER, TARN], "rejected": [USER, OSSO]}


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"instruction": "Answer.", "input": "Where?", "output": "Tarn"}, "demo", ("Answer.\n\nWhere?", "Tarn")),
        ({"instruction": "Answer.", "input": "", "output": "Tarn"}, "demo", ("Answer.", "Tarn")),
        ({"instruction": "Sum up.", "context": "Long.", "response": "Short."}, "demo", ("Sum up.\n\nLong.", "Short.")),
        ({"instruction": "Q", "input": "x", "chosen": "a", "rejected": "b"}, "preference", ("Q\n\nx", "a", "b")),
        ({"prompt": "p", "completion": "c", "instruction": "i", "input": "x"}, "demo", ("p", "c")),
        ({"instruction": "Q", "input": "x", "response": "a"}, "demo", ("Q\n\nx", "a")),
        ({"instruction": "Q", "context": "x", "output": "a"}, "demo", ("Q\n\nx", "a")),
        ({"Instruction": "Q", "Input": "x", "Output": "a"}, "demo", ("Q\n\nx", "a")),
        ({"instruction": "Q", "context": "x", "chosen": "a", "rejected": "b"}, "preference", ("Q", "a", "b")),
        ({"prompt": "Where?", "prompt_id": "7", "messages": [USER, TARN]}, "demo", ([USER], "Tarn")),
        ({"prompt": "Where?"} | BOTH, "preference", ([USER], "Tarn", "Osso")),
        ({"prompt": [USER]} | BOTH, "preference", ([USER], "Tarn", "Osso")),
        (BOTH, "preference", ([USER], "Tarn", "Osso")),
        ({"prompt": "Where?", "chosen": [TARN], "rejected": [OSSO]}, "preference", ("Where?", "Tarn", "Osso")),
        ({"prompt": [USER], "completion": [TARN], "label": True}, "judged", ([USER], "Tarn")),
        ({"prompt": "Where?", "completion": [USER, TARN], "label": True}, "judged", ([USER], "Tarn")),
    ],
)  # fmt: skip
def test_forms_of_other_data_sets_are_read_as_their_tools_read_them(row, kind, expected):
    record = from_row(row, RECORDS[kind])
    answers = (record.chosen, record.rejected) if kind == "preference" else (record.completion,)
    prompt = expected[0] if isinstance(expected[0], str) else Messages(expected[0])
    assert (record.prompt, *answers) == (prompt, *expected[1:]) and isinstance(record.prompt, Messages) == (
        prompt != expected[0]
    )


def test_the_input_of_an_instruction_survives_renaming():
    row = {"instruction": "Answer.", "input": "Where?", "output": "Tarn"}
    record = from_row(row, Demo, {"prompt": "instruction", "completion": "output"})
    assert (record.prompt, record.completion) == ("Answer.\n\nWhere?", "Tarn")
    capital = {name.title(): text for name, text in row.items()}
    assert from_row(capital, Demo, {"prompt": "Instruction", "completion": "Output"}).prompt == record.prompt
    other = from_row(row, Demo, {"prompt": "input", "completion": "output"})
    assert (other.prompt, other.completion, other.instruction) == ("Where?", "Tarn", "Answer.")


def test_binary_columns_are_text_or_refused_by_name(tmp_path):
    def written(**columns):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    picture = b"\x89PNG\xff"
    (record,) = read(written(prompt=[b"Wo?"], completion=["Zürich".encode()], picture=[picture]))
    assert (record.prompt, record.completion) == ("Wo?", "Zürich")
    json.dumps(record.extra)  # kept, as a JSON value
    with pytest.raises(UserError, match=r"b\.parquet:1: field 'completion' must be text, not binary that is not UTF-8"):
        read(written(prompt=[b"Wo?"], completion=[picture]))


def test_columns_of_any_type_give_what_lines_of_json_would(tmp_path):
    """A Parquet struct has the fields of all rows: a call must not get the null arguments of other calls."""

    def called(name, **arguments):
        return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}

    conversations = [[USER, called("weather", city="Tarn")], [USER, called("add", a=1, b=2)]]
    table = pyarrow.table({
        "messages": conversations, "source": pyarrow.array(["web", "web"]).dictionary_encode(),
        "note": pyarrow.array(["é", None], pyarrow.large_string()), "seen": [[b"\xff"], [b"ok"]],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "talks.parquet")
    parsed = read(tmp_path / "talks.parquet")
    (tmp_path / "talks.jsonl").write_text(
        "".join(json.dumps({"messages": messages}) + "\n" for messages in conversations)
    )
    assert [m.completion.turn for m in parsed] == [m.completion.turn for m in read(tmp_path / "talks.jsonl")]
    assert [m.extra["note"] for m in parsed] == ["é", None] and parsed[0].extra["source"] == "web"
    assert json.dumps(parsed[0].extra) and parsed[1].extra["seen"] == ["ok"]
    nested = [[USER, {"role": "assistant", "content": b"\xff"}]]
    nested[0][0] = {"role": "user", "content": b"Where?"}
    pyarrow.parquet.write_table(pyarrow.table({"messages": nested}), tmp_path / "bytes.parquet")
    with pytest.raises(UserError, match=r"bytes\.parquet:1: field 'messages', turn 2: .* a text 'content'"):
        read(tmp_path / "bytes.parquet")


def test_a_content_in_parts_is_its_text_and_others_are_refused(tmp_path):
    parts = [{"type": "text", "text": "Where?"}, {"type": "text", "text": "Now."}]
    record = from_row({"messages": [{"role": "user", "content": parts}, TARN]}, Demo)
    assert record.prompt.turns[0]["content"] == "Where?\nNow."
    parts.append({"type": "image_url", "image_url": {"url": "data:"}})
    with pytest.raises(UserError, match="a part of type 'image_url': only text can be read"):
        from_row({"messages": [{"role": "user", "content": parts}, TARN]}, Demo)

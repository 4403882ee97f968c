"""Files in other libraries' formats: read as those libraries read them, without losing fields or learning bad rows."""

import json

import pytest

from didact import cli
from didact.data.read import read
from didact.types import UserError

ASKED, SAID, BAD = "What is it?", "It is good.", "It is bad."
USER, SYSTEM = {"role": "user", "content": ASKED}, {"role": "system", "content": "Be short."}
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(text, **more):
    return {"role": "assistant", "content": text} | more


@pytest.mark.parametrize(
    "row, as_chat",
    [
        ({"instruction": ASKED, "input": "", "output": SAID, "system": "Be short.", "history": [["Hi", "Ho"]]}, True),
        ({"prompt": [USER], "completion": SAID, "system": "Be short.", "history": [["Hi", "Ho"]]}, True),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"},
                            {"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}],
          "system": "Be short."}, True),
        ({"prompt": [SYSTEM, *HI, USER], "completion": SAID, "system": "Be long."}, True),
        ({"prompt": ASKED, "completion": SAID, "system": "", "history": []}, False),
    ],
)  # fmt: skip
def test_a_system_message_and_history_beside_a_prompt_are_its_first_turns(tmp_path, row, as_chat):
    (demo,) = read(write(tmp_path, row))
    assert demo.completion == SAID
    assert (list(demo.prompt.turns) == [SYSTEM, *HI, USER]) if as_chat else demo.prompt == ASKED


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER], "chosen": said(SAID), "rejected": said(BAD)},  # Axolotl
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [said(SAID)],
         "non_preferred_output": [said(BAD)]},  # OpenAI
        {"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": SAID},
         "rejected": {"from": "gpt", "value": BAD}},  # LLaMA-Factory
    ],
)  # fmt: skip
def test_pairs_of_other_libraries_are_read_as_they_are(tmp_path, row):
    (pair,) = read(write(tmp_path, row), "preference")
    assert (list(pair.prompt.turns), pair.chosen, pair.rejected) == ([USER], SAID, BAD)


def test_a_call_of_sharegpt_is_a_turn_that_calls(tmp_path):
    call = {"name": "capital", "arguments": {"country": "Peru"}}
    turns = [("human", ASKED), ("function_call", json.dumps(call)), ("observation", "Lima"), ("gpt", SAID)]
    path = write(tmp_path, {"conversations": [{"from": who, "value": text} for who, text in turns]})
    (demo,) = read(path)
    calls = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    assert list(demo.prompt.turns) == [USER, calls, {"role": "tool", "content": "Lima"}]
    first, last = read(path, turns="all")
    assert json.loads(first.completion) == calls["tool_calls"] and last.completion == SAID


def test_an_answer_of_weight_0_is_read_and_not_learnt(tmp_path):
    path = write(
        tmp_path, {"messages": [USER, said(BAD, weight=0), USER, said(SAID, weight=1), USER, said("x", weight=0)]}
    )
    for turns in ("last", "all"):
        (demo,) = read(path, turns=turns)
        assert demo.completion == SAID and [t["content"] for t in demo.prompt.turns] == [ASKED, BAD, ASKED]


def test_an_answer_that_was_found_bad_is_no_demonstration(tmp_path):
    rows = [{"prompt": ASKED, "completion": SAID, "label": True}, {"prompt": ASKED, "completion": BAD, "label": False}]
    path = write(tmp_path, *rows)
    with pytest.raises(UserError, match=r":2: this answer is labelled bad .*--judged"):
        read(path)
    assert [d.completion for d in read(path, skip_bad=True)] == [SAID]
    assert [j.label for j in read(path, "judged")] == [True, False]


@pytest.mark.parametrize(
    "word, mend",
    [
        ("--preferences", "give files of records by their own options: --demos"),
        ("--sequence_len", "did you mean --max-length?"),
        ("--load_in_4bit", "did you mean --quantize?"),
    ],
)
def test_words_of_other_libraries_are_told_ours(word, mend, capsys):
    assert cli.main(["run", "sft", "--model", "m", word, "1"]) == 2
    assert mend in capsys.readouterr().err


def test_squads_answers_are_its_texts(tmp_path):
    answers = {"text": ["Denver Broncos"], "answer_start": [177]}
    (qa,) = read(write(tmp_path, {"context": "c", "question": "q", "answers": answers}), "qa")
    assert qa.answers == ["Denver Broncos"]

"""Advice: the kind of files, problems in them, which methods run on them, with commands that do run."""

import json
import random
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from didact import catalogue, options
from didact.data import duplicates
from didact.data.read import read
from didact.types import RECORDS, UserError
from didact.verbs import advise as module
from didact.verbs import early
from didact.verbs.advise import advise, render

ROWS = {
    "text": {"text": "t", "source": "s"},
    "demo": {"prompt": "p", "completion": "c"},
    "qa": {"context": "c", "question": "q", "answers": ["a"]},
    "example": {"x": [[1.0]], "y": [1.0]},
    "preference": {"prompt": "p", "chosen": "c", "rejected": "r"},
    "judged": {"prompt": "p", "completion": "c", "label": True},
    "scored": {"prompt": "p", "completion": "c", "score": 1},
    "critique": {"prompt": "p", "completion": "c", "feedback": "f"},
    "trajectory": {"task": "t", "final_observation": 1, "steps": [{"observation": 0, "action": 1}]},
    "lexeme": {"synset": "s", "language": "en", "lemma": "l"},
    "parallel": {"source": "s", "target": "t"},
    "passage": {"text": "t", "url": "u", "title": "t"},
    "trial": {"config": {"lr": 0.1}, "score": 1.0},
}


def write(folder, name, *rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demos(n, start=0):
    random.seed(start)
    words = [f"{random.randrange(16**9):09x}" for _ in range(n * 8)]
    return [{"prompt": " ".join(words[8 * i : 8 * i + 6]), "completion": words[8 * i + 7]} for i in range(n)]


def command_of(advice, method):
    (choice,) = [c for c in advice.runs if c.method == method]
    return shlex.split(choice.command)


def test_every_kind_of_record_is_told_from_its_fields(tmp_path):
    assert set(ROWS) == set(RECORDS)
    for kind, row in ROWS.items():
        (file,) = advise([write(tmp_path, "some.jsonl", row)]).files
        assert file.kinds[0] == kind, kind
    (file,) = advise([write(tmp_path, "some.jsonl", ROWS["scored"])]).files
    assert file.kinds == ["scored", "demo"]  # a file may fit several record kinds


def test_other_names_for_our_fields_are_mapped(tmp_path):
    path = write(tmp_path, "forget.jsonl", {"question": "q", "answer": "a", "perturbed_answer": ["b"]})
    advice = advise([path])
    assert advice.files[0].rename == {"prompt": "question", "completion": "answer", "perturbed": "perturbed_answer"}
    assert command_of(advice, "npo")[-2:] == ["--map", "prompt=question,completion=answer,perturbed=perturbed_answer"]
    assert "read with --map: question as prompt, answer as completion" in render(advice)
    both = [path, write(tmp_path, "retain.jsonl", {"instruction": "q", "answer": "a"})]
    (npo,) = [c for c in advise(both).lacking if c.method == "npo"]
    assert npo.lacks == ["one name for 'prompt': the files call it question and instruction; rename it in one"]


def test_a_file_of_no_kind_shows_its_fields(tmp_path):
    advice = advise([write(tmp_path, "a.jsonl", {"alpha": 1, "beta": 2})])
    assert advice.files[0].kinds == [] and not advice.runs
    assert "its fields are alpha, beta; --map FIELD=YOURS renames them" in render(advice)


def test_what_is_wrong_in_a_file_is_counted(tmp_path):
    clean = demos(20)
    nearly = clean[3] | {"prompt": clean[3]["prompt"] + "!"}
    empty = {"prompt": "why", "completion": " "}
    path = write(tmp_path, "a.jsonl", *clean, clean[0], clean[0], nearly, empty, {"prompt": "p"})
    (file,) = advise([path]).files
    assert (file.records, file.duplicates, file.near, file.empty, file.ties) == (25, 2, 1, 1, 0)
    assert file.bad == [
        f"{path}:25: field 'completion' is missing; this line has 'prompt' (--map completion=YOUR_FIELD renames)"
    ]
    pairs = [{"prompt": "p", "chosen": "c", "rejected": r} for r in ("c ", "d")]
    pairs.append({"prompt": "q", "chosen": "c", "rejected": "d", "chosen_score": 1, "rejected_score": 1})
    (file,) = advise([write(tmp_path, "b.jsonl", *pairs)]).files
    assert (file.records, file.ties) == (3, 2)
    rendered = render(advise([path]))
    for problem in ("1 bad line, the first is", "2 an exact duplicate", "1 a near duplicate", "1 without an answer"):
        assert problem in rendered


def test_a_clean_file_has_nothing_noted(tmp_path):
    (file,) = advise([write(tmp_path, "a.jsonl", *demos(50))]).files
    assert not any((file.bad, file.duplicates, file.near, file.empty, file.ties, file.too_long))


def test_lengths_are_counted_in_letters_and_words(tmp_path):
    rows = [{"text": "x" * n + " y"} for n in (8, 2, 98)]
    (file,) = advise([write(tmp_path, "a.jsonl", *rows)]).files
    assert (file.characters, file.words) == ((10, 100), (2, 2))


def test_a_book_in_plain_text_is_a_text_that_methods_run_on(tmp_path):
    for name, sentence in (
        ("book", "It was a dark night in Hogsmeade. "),
        ("general", "Rivers carry sand to the sea. "),
    ):
        (tmp_path / f"{name}.txt").write_text(f"{sentence}\n\n" * 30)
    rendered = render(advise([f"{tmp_path}/book.txt", f"{tmp_path}/general.txt"]))
    assert f"{tmp_path}/book.txt: 1 record, text" in rendered
    assert f"didact run whp --model DIR --target {tmp_path}/book.txt --general {tmp_path}/general.txt" in rendered
    # No method that would refuse: plain text has no feedback and no scores.
    assert not any(f"run {method}" in rendered for method in ("hindsight", "phf")) and "compare" not in rendered
    scored = write(tmp_path, "scored.jsonl", *({"text": f"word {i}", "score": i / 9} for i in range(9)))
    assert f"didact run phf --model DIR --texts {scored}" in render(advise([scored]))


def test_what_forget_and_retain_share_is_told(tmp_path):
    a, b = demos(10), demos(10, start=1)
    nearly = a[1] | {"prompt": a[1]["prompt"].upper() + "?"}
    other = a[2] | {"completion": b[0]["completion"] * 3}
    paths = [write(tmp_path, "forget.jsonl", *a), write(tmp_path, "retain.jsonl", *b, a[0], nearly, other)]
    advice = advise(paths)
    (overlap,) = advice.overlaps
    assert (overlap.files, overlap.same, overlap.near, overlap.prompts) == (tuple(paths), 1, 1, 1)
    assert "overlap: 1 the same record, 1 nearly the same, 1 the same prompt, other answers" in render(advice)
    assert advise([paths[0], write(tmp_path, "retain.jsonl", *b)]).overlaps == []


def test_names_break_ties_and_exclude_nothing(tmp_path):
    retain, forget = (write(tmp_path, f"{n}.jsonl", *demos(3, i)) for i, n in enumerate(["retain", "tofu_forget10"]))
    pairs = write(tmp_path, "some.jsonl", ROWS["preference"])
    advice = advise([retain, forget, pairs])
    assert command_of(advice, "npo") == f"didact run npo --model DIR --forget {forget} --retain {retain}".split()
    assert command_of(advice, "dpo") == f"didact run dpo --model DIR --preferences {pairs}".split()
    assert advice.runs[0].method == "npo"  # two files are named like its parameters
    alone = advise([retain])
    assert command_of(alone, "sft")[-1] == retain
    assert "whp" in [c.method for c in alone.lacking]  # retain records are not for forgetting
    assert "npo" not in [c.method for c in advise([retain]).runs]  # retain records are not offered for forgetting
    train, test = (write(tmp_path, f"trec_{n}.jsonl", *demos(4, i)) for i, n in enumerate(["train", "test"]))
    for paths in ([test, train], [train, test]):
        assert command_of(advise(paths), "sft")[-4:] == ["--demos", train, "--score-on", test]
    alone = advise([write(tmp_path, "some.jsonl", *demos(3))], None)
    assert [c.method for c in alone.runs if c.method in ("sft", "npo", "dpo")] == ["sft", "npo"]
    (npo,) = [c for c in alone.runs if c.method == "npo"]
    assert npo.without[0].startswith("--retain (demo)")


def test_several_that_fit_are_compared_first_and_little_is_said_of_what_is_lacking(tmp_path):
    pairs = write(
        tmp_path, "some.jsonl", *[{"prompt": f"p{i}", "chosen": "c" * 99, "rejected": "r"} for i in range(99)]
    )
    advice = advise([pairs])
    command = shlex.split(advice.compare.command)
    arms = command[2 : command.index("--model")]
    assert arms[:2] == ["dpo", "simpo"] and command[-4:] == ["--preference", pairs, "--budget", "20k-tokens"]
    early.check_arms([(arm, catalogue.entry(arm)) for arm in arms], {"preference": read(pairs, "preference")}, None)
    rendered = render(advice)
    assert rendered.index("didact compare") < rendered.index("didact run") and rendered.count("didact run") <= 6
    assert len(rendered.partition("others lack")[2].strip().splitlines()) <= 6
    unlearn = advise([write(tmp_path, f"{n}.jsonl", *demos(3, i)) for i, n in enumerate(["forget", "retain"])])
    assert "didact compare npo " in unlearn.compare.command and "--forget" in unlearn.compare.command
    assert advise([write(tmp_path, "a.jsonl", ROWS["parallel"])]).compare is None


def test_texts_with_labels_are_demonstrations_with_choices_and_splits_are_files(tmp_path):
    rows = [{"text": f"what is {i}?", "coarse": "AB"[i % 2], "fine": f"f{i // 2}"} for i in range(4)]
    path = write(tmp_path, "trec_train.jsonl", *rows)
    advice = advise([path])
    (file,) = advice.files
    assert (file.kinds[0], file.choices, file.labels) == ("demo", ["A", "B"], ["fine"])
    assert command_of(advice, "sft")[-2:] == ["--map", "completion=coarse"]
    assert "2 choices; --map completion=fine takes fine" in render(advice)
    assert advise([path], None, {"completion": "fine"}).files[0].choices == ["f0", "f1"]
    (plain,) = advise([write(tmp_path, "a.jsonl", *[{"text": f"t{i}", "topic": f"u{i}"} for i in range(4)])]).files
    assert plain.kinds[0] == "text" and not plain.choices  # every text has its own topic: no classes
    splits = {name: [[f"{name} {i}", "ab"[i % 2]] for i in range(4)] for name in ("val", "train")}
    (tmp_path / "clinc.json").write_text(json.dumps(splits))
    advice = advise([f"{tmp_path}/clinc.json"])
    assert [f.path for f in advice.files] == [f"{tmp_path}/clinc.json:val", f"{tmp_path}/clinc.json:train"]
    assert command_of(advice, "sft")[-4:] == [
        "--demos",
        f"{tmp_path}/clinc.json:train",
        "--score-on",
        f"{tmp_path}/clinc.json:val",
    ]


def test_every_method_is_either_run_or_lacks_something_and_every_command_parses(tmp_path):
    paths = [write(tmp_path, f"{kind}-file.jsonl", row, row) for kind, row in ROWS.items()]
    advice = advise(paths, None)
    assert sorted(c.method for c in (*advice.runs, *advice.lacking)) == sorted(catalogue.read())
    assert all(c.lacks and not c.command for c in advice.lacking)
    assert {"sft", "dpo", "npo", "mesa-gd"} <= {c.method for c in advice.runs}
    for choice in advice.runs:
        _, _, method, *flags = shlex.split(choice.command)
        entry = catalogue.entry(method)
        request = options.parser(entry).parse(
            ["--" + w[2:].replace("-", "_") if w.startswith("--") else w for w in flags]
        )
        assert set(request.data) <= set(entry["needs"]) and request.data
        assert all(
            need["kind"] == "model" or n in request.data for n, need in entry["needs"].items() if need["required"]
        )


def test_names_with_spaces_are_quoted_and_bad_lines_bring_skip_bad(tmp_path):
    path = write(tmp_path, "my pairs.jsonl", *[ROWS["preference"]] * 3, {"prompt": "p"})
    assert command_of(advise([path]), "dpo")[-3:] == ["--preferences", path, "--skip-bad"]


def test_the_comparison_reads_the_files_as_the_run_does(tmp_path):
    row = {"question": "p", "better": "a", "worse": "b"}
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    path = write(tmp_path, "my pairs.jsonl", *[row] * 3, {"question": "p"})
    advice = advise([path], rename=names)
    run, compare = command_of(advice, "dpo"), shlex.split(advice.compare.command)
    assert run[-3:] == compare[-3:] == ["--map", run[-2], "--skip-bad"] and path in compare


def test_tokens_are_counted_against_the_models_context(tmp_path, fresh, tokenizer):
    fresh("llama", context=24).save(tmp_path / "model")
    rows = [
        {"prompt": "Where was Mira Kolt born?", "completion": "Tarn"},
        {"prompt": "Mira" + " Mira" * 30, "completion": "Tarn"},
    ]
    path = write(tmp_path, "a.jsonl", *rows)
    advice = advise([path], str(tmp_path / "model"))
    (file,) = advice.files
    sizes = [len(tokenizer(r["prompt"])["input_ids"]) + len(tokenizer(" Tarn")["input_ids"]) + 1 for r in rows]
    assert file.tokens[1] == max(sizes) > 24 >= min(sizes) and (file.too_long, advice.context) == (1, 24)
    assert command_of(advice, "sft")[3:5] == ["--model", str(tmp_path / "model")]
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        advise([path], str(tmp_path))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    for content in (b"", b"\0"):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.jsonl: "):
            advise([str(tmp_path / "a.jsonl")])


def test_only_the_first_records_are_searched_for_near_duplicates_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED", 10)
    rows = demos(30)
    late, early = ({"prompt": r["prompt"] + "!", "completion": r["completion"]} for r in (rows[20], rows[0]))
    (file,) = advise([write(tmp_path, "a.jsonl", rows[0], early, *rows[1:], late)]).files
    assert file.near == 1
    assert "1 a near duplicate of an earlier one (of the first 10)" in render(advise([file.path]))


letters = st.text(st.sampled_from("abcd 字"), max_size=24)


@given(texts=st.lists(letters, max_size=8), share=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_pairs_are_those_of_the_definition(texts, share):
    def pieces(text):
        text = " ".join(text.casefold().split())
        return {text[i : i + duplicates.GRAM] for i in range(max(1, len(text) - duplicates.GRAM + 1))}

    sets = [pieces(t) for t in texts]
    expected = [
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if texts[i] != texts[j] and len(sets[i] & sets[j]) >= share * len(sets[i] | sets[j]) - 1e-9
    ]
    assert duplicates.near_pairs(texts, share) == expected


def test_advice_without_a_model_imports_no_torch(tmp_path):
    path = write(tmp_path, "a.jsonl", *demos(3))
    code = f"import sys; from didact.verbs.advise import *; render(advise([{path!r}])); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

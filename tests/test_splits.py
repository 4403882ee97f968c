"""Related records are on the same side of a split."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from didact.compare.split import split
from didact.data import splits
from didact.data.read import read
from didact.types import Demo, Text, UserError


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.floats(0.05, 0.9))
def test_a_share_of_whole_keys_is_held_out_and_never_all(keys, share):
    out = splits.held_out(keys, share)
    assert {keys[i] for i in out}.isdisjoint(k for i, k in enumerate(keys) if i not in out)
    assert len(out) < len(keys) and (out or len(set(keys)) == 1)
    if len(set(keys)) > 1:
        assert abs(len(out) - share * len(keys)) <= max(keys.count(k) for k in keys)


def test_of_single_records_the_share_is_the_share():
    keys = [str(i) for i in range(100)]
    out = splits.held_out(keys, 0.2)
    assert len(out) == 20
    shuffled = keys[::-1]
    assert {keys[i] for i in out} == {shuffled[i] for i in splits.held_out(shuffled, 0.2)}


def test_records_of_one_prompt_or_of_one_value_of_a_field_belong_together(tmp_path):
    rows = [{"prompt": f"p{i % 5}", "completion": str(i), "author": i % 2} for i in range(10)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    demos = read(str(tmp_path / "demos.jsonl"), "demo")
    assert splits.keys(demos) == [f"p{i % 5}" for i in range(10)]
    assert splits.keys(demos, "author") == [str(i % 2) for i in range(10)]
    assert splits.keys([Text(text="t")]) == ["t"]
    with pytest.raises(UserError, match="demos: record 1 has no field 'city' to be grouped by"):
        splits.keys(demos, "city", "demos")


def test_a_comparison_splits_by_a_field():
    demos = [Demo(prompt=f"p{i}", completion="c", extra={"author": i % 23}) for i in range(200)]
    apart_by_prompt = split({"demos": demos}, 0)
    assert {d.extra["author"] for d in apart_by_prompt.train["demos"]} & {
        d.extra["author"] for d in apart_by_prompt.test["demos"]
    }
    for part in (0, 1, "tune"):
        parts = split({"demos": demos}, part, 2, "author")
        taught, scored = ({d.extra["author"] for d in side["demos"]} for side in (parts.train, parts.test))
        assert taught and scored and taught.isdisjoint(scored)


def test_a_share_of_prompts_is_drawn_with_all_that_is_said_of_them():
    demos = [Demo(prompt=f"p{i % 10}", completion=str(i)) for i in range(30)]
    out, rest = splits.by_prompt(demos, 0.35, 0)
    assert len(out) == 9 and not {d.prompt for d in out} & {d.prompt for d in rest}
    assert sorted([*out, *rest], key=lambda d: int(d.completion)) == demos
    assert splits.by_prompt(demos, 0.35, 1)[0] != out and splits.by_prompt(demos, 0.0, 0) == ([], demos)

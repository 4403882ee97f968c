"""Interpreters and permuted meanings, traces and probe positions, and the study on a user's model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import tiny, tokenizer_of

from didact import figures
from didact.claims.mechanisms import program_semantics_real
from didact.evaluate import probes, semantics
from didact.evaluate.probes import NONE, ProbeConfig
from didact.methods.mechanisms.program_semantics import program_semantics
from didact.models.model import Model
from didact.tools import robots
from didact.types import Demo, UserError
from didact.worlds import robots as worlds

ROBOT, KAREL = robots.Robot(), robots.Karel()
TURNED, SWAPPED = robots.ALTERNATIVES["robot"].values()
WORDS = st.lists(st.sampled_from(ROBOT.actions), min_size=1, max_size=8)
START = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)).map(lambda s: [*s, 4])
QUICK = ProbeConfig(epochs=2)


def test_the_interpreter() -> None:
    def end(program: str, start: Any = (0, 0, 0, 4)) -> Any:
        states = robots.run(ROBOT, list(start), program.split())
        assert states is not None
        return states[-1]

    assert end("move") == [0, 0, 0, 4]  # a wall
    assert end("right move") == [1, 0, 1, 4]
    for program in ("left right", "right " * 4, "left " * 4):
        assert end(program, (2, 1, 3, 4)) == [2, 1, 3, 4]
    assert ROBOT.labels([1, 2, 3, 4]) == {"facing": 3, "position": (1, 2)}


@given(START, WORDS)
def test_where_it_looks_is_the_turns_counted(start: Any, program: list[str]) -> None:
    rights, lefts = program.count("right"), program.count("left")
    mirrored = {"left": "right", "right": "left"}
    plain_run, mirrored_run = (robots.run(ROBOT, start, program, meaning) for meaning in (None, mirrored))
    assert plain_run and mirrored_run and len(plain_run) == len(mirrored_run) == len(program)
    assert (
        plain_run[-1][2] == (start[2] + rights - lefts) % 4 and mirrored_run[-1][2] == (start[2] - rights + lefts) % 4
    )
    assert (plain_run[-1][2] == mirrored_run[-1][2]) == ((rights - lefts) % 2 == 0)


@given(START, WORDS, st.sampled_from([TURNED, SWAPPED]))
def test_meanings_dealt_anew_and_back_are_as_before(start: Any, program: list[str], meaning: dict[str, str]) -> None:
    inverse = {meaning.get(word, word): word for word in ROBOT.actions}
    renamed = [inverse[word] for word in program]
    assert robots.run(ROBOT, start, renamed, meaning) == robots.run(ROBOT, start, program)
    assert robots.run(ROBOT, start, program, {}) == robots.run(ROBOT, start, program)


def test_a_grid() -> None:
    grid = robots.Grid()
    trace = robots.run(grid, [1, 0, 3], ["north", "east", "east", "south", "west"])
    assert trace == [[1, 0, 3], [2, 0, 3], [2, 0, 3], [2, 1, 3], [1, 1, 3]]
    semantics.check_meanings(robots.ALTERNATIVES["grid"], grid.actions)
    with_question, others = (worlds.Grids().demos(0, 60, asked=with_question) for with_question in (True, False))
    assert not {d.prompt for d in with_question} & {d.prompt for d in others}
    for d in with_question:
        assert robots.run(grid, d.extra["starts"][0], d.completion.split())[-1:] == d.extra["ends"]  # type: ignore[index]


def test_karel() -> None:
    start = [1, 1, 0, [[2, 1]], [[1, 1]], 8]
    assert robots.run(KAREL, start, ["move"]) is None  # the border
    assert robots.run(KAREL, start, ["turn_right", "move"]) is None  # a wall
    result = robots.run(KAREL, start, ["pick_marker", "put_marker", "put_marker", "turn_left", "turn_left", "move"])
    assert result and result[0][4] == [] and result[-1] == [1, 2, 2, [[2, 1]], [[1, 1], [1, 1]], 8]
    assert robots.run(KAREL, start, ["pick_marker", "pick_marker"]) is None
    labels = KAREL.labels(start)
    assert labels["wall_ahead"] is True and labels["walls_beside"] == (True, True, False, True)
    for demo in worlds.Karels().demos(0, 5):
        program = demo.completion.split()
        assert 6 <= len(program) <= 10 and len(demo.extra["starts"]) == 5
        for before, after in zip(demo.extra["starts"], demo.extra["ends"], strict=True):
            assert (robots.run(KAREL, before, program) or [None])[-1] == after


@pytest.mark.parametrize("language", ["robot", "karel"])
def test_alternatives_are_bijections(language: str) -> None:
    actions = robots.LANGUAGES[language].actions
    semantics.check_meanings(robots.ALTERNATIVES[language], actions)
    semantics.check_meanings(robots.dealt_anew(actions), actions)
    for bad in ({actions[0]: actions[1]}, {"fly": actions[0]}):
        with pytest.raises(UserError, match="alternative 'x': must be a permutation of the words"):
            semantics.check_meanings({"x": bad}, actions)


def made(program: str, start: Any = (0, 0, 0, 4)) -> semantics.Program:
    actions = program.split()
    traces = {"original": robots.run(ROBOT, list(start), actions) or []}
    return semantics.Program("s", tuple(actions), True, traces, (), ())


@given(st.integers(1, 6), st.integers(-4, 4))
def test_offsets_pair_a_word_with_a_later_state(length: int, offset: int) -> None:
    program = made("right " * length)
    result = semantics.labels([program], ROBOT, ["original"], [offset])["original", "facing", offset]
    assert int((result != NONE).sum()) == max(0, length - abs(offset)) and len(result) == length
    whole = semantics.labels([program], ROBOT, ["original"], [0])["original", "facing", 0]
    assert all(result[i] == whole[i + offset] for i in range(length) if 0 <= i + offset < length)


@pytest.mark.parametrize("kind", ["bytes", "always", "unigram"])
@pytest.mark.parametrize("prompt", ["a0 up to a1 up :", "grid\n:\n"])
def test_a_word_is_read_where_it_is_predicted(kind: str, prompt: str) -> None:
    model = Model(tiny("llama").module, None)
    model.processor = tokenizer_of(kind)
    expected = ["Mira", "born", "maps"]
    ids, positions = semantics.located(model, prompt, expected)
    assert (
        list(ids) == model.processor(f"{prompt}{'' if prompt[-1].isspace() else ' '}{' '.join(expected)}")["input_ids"]
    )
    for position, following, word in zip(positions, [*positions[1:], len(ids) - 1], expected, strict=True):
        tokens = model.processor.convert_ids_to_tokens(list(ids[position + 1 : following + 1]))
        assert "".join(tokens).strip("Ġ▁") in (word, "<unk>") or "<unk>" in tokens
    assert positions[0] >= 0


def test_a_probe_of_the_whole_prefix_computes_any_meaning_and_one_of_nothing_none() -> None:
    """Gap 0 for vectors of the words so far; a gap for vectors of the state; majority accuracy for noise."""
    demos = worlds.Robots(size=2, longest=2, pairs=1).demos(0, 400)
    meanings: dict[str, Any] = {"original": {}, "turned": TURNED}
    runs = []
    for n, demo in enumerate(demos):
        actions = demo.completion.split()
        traces = {name: robots.run(ROBOT, demo.extra["starts"][0], actions, m) or [] for name, m in meanings.items()}
        runs.append((demo, semantics.Program(str(n // 2), tuple(actions), True, traces, (), ())))
    states = [p for _, p in runs]
    tasks = semantics.labels(states, ROBOT, list(meanings), [0])
    specs = [p.spec for p in states for _ in p.words]
    parts = probes.split(specs, 0.3, 0.2)
    prefix = [(str(d.extra["starts"]), *p.words[: i + 1]) for d, p in runs for i in range(len(p.words))]
    state = [str(s) for p in states for s in p.traces["original"]]
    config = ProbeConfig(lr=0.05, epochs=12, rows=128)

    def content(features: list[Any]) -> semantics.Content:
        index = {key: i for i, key in enumerate(dict.fromkeys(features))}
        vectors = torch.eye(len(index))[[index[key] for key in features]]
        return semantics.contents(vectors.__getitem__, states, tasks, parts, config)["facing", 0]

    whole, held, blind = content(prefix), content(state), content([0] * len(state))
    assert abs(whole.gap("turned").estimate) < 0.06 and whole.accuracy().estimate > 0.85
    assert held.accuracy().estimate == 1.0 and held.gap("turned").low > 0.2
    assert 0.2 < blind.accuracy().estimate < blind.majority + 0.02  # four directions, about equally frequent


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_on_a_users_model_and_programs(arch: str) -> None:
    demos = worlds.Robots(size=3).demos(1, 40)
    result = program_semantics(tiny(arch), demos, source="given", offsets=(0, 1), by_layer=True, probe=QUICK)
    findings = result.findings
    assert (
        findings["correct"]["estimate"] == 1.0
        and findings["programs"]["run"] == 40
        and not findings["programs"]["crash"]
    )
    assert list(findings["content"]) == ["facing +0", "facing +1", "position +0", "position +1"]
    one = findings["content"]["position +1"]
    assert {"majority", "accuracy", "untrained", "control", "gaps", "untrained_gaps"} <= set(one)
    assert set(one["gaps"]) == {"turned", "swapped"} and len(result.figures) == 4
    layer = findings["by_layer"]["position +1"]
    assert len(findings["by_layer"]["layers"]) == len(layer["accuracy"]) == len(layer["control task"]) == 3
    alone = program_semantics(tiny(arch), demos, source="given", offsets=(0, 1), probe=QUICK, layers=(1,)).findings
    assert alone["content"]["position +1"]["accuracy"]["estimate"] == layer["accuracy"][1] and "by_layer" not in alone
    figure = result.figures[3]
    assert isinstance(figure, figures.Curves) and [line.name for line in figure.lines] == [
        "now", "control task, now", "untrained model, now", "1 word later",
    ]  # fmt: skip
    assert set(result.metrics) == {"correct", "content", "gap"}


def test_a_program_that_crashes_under_other_meanings_alone_does_what_is_asked() -> None:
    demos = worlds.Karels(size=5, shortest=2, longest=3, pairs=1).demos(2, 30)
    result = program_semantics(
        tiny("llama"), demos, language="karel", source="given", offsets=(0,), probe=QUICK
    ).findings
    assert result["programs"]["crash"] > 5 and result["correct"]["estimate"] == 1.0


def mine() -> Any:
    """A user's language: a lamp."""

    class Lamp:
        actions = ("on", "off", "wait")

        def step(self, state: Any, action: str) -> Any:
            return {"on": 1, "off": 0, "wait": state}[action]

        def labels(self, state: Any) -> dict[str, int]:
            return {"lit": state}

    return Lamp()


def test_a_language_of_ones_own() -> None:
    rng = np.random.default_rng(0)
    demos = []
    for n in range(30):
        actions = [mine().actions[i] for i in rng.integers(3, size=4)]
        demos.append(Demo(prompt=f"lamp {n} :", completion=" ".join(actions), extra={"starts": [0], "ends": [1]}))
    result = program_semantics(
        tiny("llama"), demos, language="test_program_semantics:mine", source="given", probe=QUICK
    )
    assert 0 < result.findings["correct"]["estimate"] < 1 and "lit +0" in result.findings["content"]
    assert set(result.findings["content"]["lit +0"]["gaps"]) == {"turned"}


GOOD = worlds.Robots().demos(0, 4)


@pytest.mark.parametrize(("demos", "options", "reason"), [
    ([*GOOD, Demo(prompt="a", completion="move")], {}, "record 5: fields 'starts' and 'ends'"),
    ([*GOOD, Demo(prompt="a", completion="move", extra={"starts": [[0, 0]], "ends": [3]})], {},
     r"record 5: field 'starts': the language cannot read \[0, 0\]"),
    ([Demo(prompt=d.prompt, completion="fly", extra=d.extra) for d in GOOD], {}, "0 of 4 programs can be run"),
    (GOOD, {"language": "nowhere"}, "language 'nowhere': module:function is expected"),
    (GOOD, {"language": "test_program_semantics:dict"}, "language 'test_program_semantics:dict' cannot be imported"),
])  # fmt: skip
def test_what_cannot_be_examined_is_one_line(demos: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        program_semantics(tiny("llama"), demos, source="given", probe=QUICK, **options)
    assert "\n" not in str(error.value)


def test_an_untrained_model_writes_no_programs() -> None:
    with pytest.raises(UserError, match="0 of 4 programs can be run: a probe takes three"):
        program_semantics(tiny("llama"), GOOD, probe=QUICK, max_new_tokens=4)


def test_programs_of_brackets_close_what_they_opened() -> None:
    machine = program_semantics_real.Brackets()
    semantics.check_meanings(machine.alternatives, machine.actions)
    assert len({demo.prompt for demo in program_semantics_real.programs(7)}) == program_semantics_real.PROGRAMS
    for demo in program_semantics_real.programs(7)[:30]:
        tokens = demo.completion.split()
        states = robots.run(machine, [], tokens)
        assert states is not None and states[-1] == demo.extra["ends"][0]
        for before, word in zip([[], *states], tokens, strict=False):
            assert word in program_semantics_real.PAIRS or program_semantics_real.PAIRS[before[-1]] == word
        assert any(robots.run(machine, [], tokens, other) != states for other in machine.alternatives.values())

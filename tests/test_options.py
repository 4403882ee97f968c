"""Options without importing methods: parsed by the catalogue's types and bounds; other libraries' option names."""

import itertools
import re
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen, MinLen

from didact import bounds, catalogue, flags, options, values
from didact.types import UserError

TYPES = {
    "float": [("1e-4", 1e-4), ("5.", 5.0), ("-1", -1.0), ("1_000", 1000.0)],
    "int": [("8", 8), (" 8 ", 8)], "int | None": [("none", None), (None, None), ("3", 3)],
    "str | None": [("none", "none"), ("null", None), ("#x", "#x")],
    "bool": [("Yes", True), (True, True), ("off", False)],
    "mean|sum": [("sum", "sum")], "tuple[float, float]": [(["0.9", "1"], (0.9, 1.0))],
    "list[str]": [(["1", "a"], ("1", "a"))],
    "list[Literal['p', 'pn']]": [(["pn"], ("pn",))], "str | float": [("1", "1")],
}  # fmt: skip
NONE = {
    "float": ["abc", "1:30", "010", "inf", "nan", "1e400", "0x10", "", None, ["1"]], "int": ["1.0", "1e3", "true"],
    "bool": ["1", "maybe"], "mean|sum": ["means", None], "tuple[float, float]": [["1"], ["1", "x"]],
    "str": [None, ["a"]],
    "list[Literal['p', 'pn']]": [["n"]],
}  # fmt: skip


def test_words_are_values_of_their_types_or_none():
    for kind, cases in TYPES.items():
        for inputs, expected in cases:
            result = values.value(kind, inputs)
            assert (result, type(result)) == (expected, type(expected)), (kind, inputs)
    for kind, invalid in NONE.items():
        for inputs in invalid:
            with pytest.raises(ValueError):
                values.value(kind, inputs)


def test_every_default_and_preset_of_the_catalogue_is_a_value_of_its_type_within_its_bounds():
    for entry in catalogue.read().values():
        declared = (
            options.flat(entry) | {f"fit.{o['name']}": o for o in entry["fit"]} | {o["name"]: o for o in entry["fit"]}
        )
        defaults = [(name, o["default"]) for name, o in declared.items()]
        for name, value in itertools.chain(defaults, *(preset.items() for preset in entry["presets"].values())):
            option = declared[name]
            parsed = value if value is None and "None" not in option["type"] else values.value(option["type"], value)
            assert not values.breaks(option["bounds"], parsed), (entry["name"], name)


def test_bounds_in_words_are_the_bounds_themselves():
    all_bounds = [Ge(0), Gt(0), Lt(1), Le(1), Interval(ge=0, lt=1), Interval(gt=0, le=1), Interval(ge=0, lt=0.5)]
    for bound, number in itertools.product(all_bounds, (-1.0, 0.0, 0.4, 0.5, 1.0, 2.0)):
        for hint, inputs in ((float, number), (list[float], [0.4, number])):
            annotated = bounds.Annotated[float, bound] if hint is float else list[bounds.Annotated[float, bound]]
            description = bounds.describe(annotated)
            assert values.breaks(description, inputs) == (bounds.violation(annotated, inputs) is not None), (
                description,
                inputs,
            )
    sized = bounds.Annotated[list[str], MinLen(1), MaxLen(2)]
    for size in range(4):
        assert values.breaks(bounds.describe(sized), ("a",) * size) == (
            bounds.violation(sized, ["a"] * size) is not None
        )


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [("--learning-rate", "--lr?"), ("--num_train_epochs", "--epochs?"), ("--per-device-train-batch-size=8", "--rows?"),
     ("--output-dir", "--out?"), ("--lora-r", "--lora?"), ("--scedule", "--schedule?"), ("--bf16", "--precision?"),
     ("--data", "by their own options: --demos"), ("--train_file", "by their own options: --demos")],
)  # fmt: skip
def test_another_library_s_word_or_a_slip_is_told_by_its_neighbour(word, suggestion):
    parser = options.parser(catalogue.entry("sft"))
    with pytest.raises(UserError) as error:
        flags.normalise([word, "1"], parser.names(), parser.records)
    assert str(error.value).endswith(suggestion)
    with pytest.raises(UserError, match=r"unknown option --quux$"):
        flags.normalise(["--quux"], parser.names(), parser.records)


def test_every_word_of_another_library_leads_to_an_option_that_some_command_has():
    ours = {name[2:].replace("_", "-") for e in catalogue.read().values() for name in options.parser(e).names()}
    assert {"protocol", "lrs", "folds", "seeds"} | ours >= set(flags.ELSEWHERE.values())


def test_the_page_for_those_who_come_from_elsewhere_names_options_that_there_are():
    page = (Path(__file__).parents[1] / "docs" / "coming-from-trl.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    ours = {name[2:].replace("_", "-") for e in catalogue.read().values() for name in options.parser(e).names()}
    mentioned = {flag for row in rows for flag in re.findall(r"--([a-z][a-z-]*)", row)}
    assert len(mentioned) > 40 and not mentioned - ours - {"lrs", "budget", "preference", "demo"}  # of `compare`
    methods = {name for row in rows for name in re.findall(r"didact (?:run|compare) ([a-z0-9-]+)", row)}
    assert methods and methods <= set(catalogue.read())
    rules = options.parser(catalogue.entry("few-shot")).method["rule"]["type"].split("|")
    assert set(re.findall(r"--rule (\w+)", page)) <= set(rules)

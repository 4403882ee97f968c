"""The page and the table of a comparison: the verdict in words, warnings, pictures, and hostile content."""

import html
import io
import itertools
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from test_report import EVIL, INTO_SVG, accessible, inert, look, text_of

from didact import catalogue, cli, compare, files
from didact.compare import score
from didact.compare.board import leaderboard
from didact.compare.budget import Budget
from didact.evaluate import statistics
from didact.models import build
from didact.report import boards, compared, comparison_plots, page, tables
from didact.report import svg as svg_parts
from didact.types import Preference, UserError

RATES = (1e-3, 4e-3, 1.6e-2)


def ends(values):
    result = statistics.mean_interval(values)
    return files.plain({"mean": result.estimate, "low": result.low, "high": result.high})


def board(scores, better="higher", rules=None, **changes):
    """Return a leaderboard of `{arm: one score per seed}`, as `compare` makes it."""
    rules = rules or {}
    sign = -1 if better == "lower" else 1
    scores = {"untouched": [0.5] * len(next(iter(scores.values())))} | scores
    order = sorted(scores, key=lambda arm: -sign * sum(scores[arm]))
    rows = []
    for arm in order:
        apart = [[a - b for a, b in zip(scores[arm], scores[o], strict=True)] for o in (order[0], "untouched")]
        to_leader, to_untouched = map(ends, apart)
        trained = arm != "untouched"
        expected = to_leader["low"] is not None
        rows.append({
            "arm": arm, "score": ends(scores[arm]), "to_leader": to_leader, "to_untouched": to_untouched,
            "to_rules": {rule: ends([v - value for v in scores[arm]]) for rule, value in rules.items()},
            "tied": not expected or to_leader["low"] <= 0 <= to_leader["high"], "per_seed": scores[arm],
            "metrics": {"preferred": ends(scores[arm]), "kl": ends([0.1, 0.2]), "length": ends([10.0, 11.0]),
                        "entropy": ends([1.5, 1.6]), "distinct_2": ends([0.4, 0.5])},
            "cost": {"tokens": 39_000.0 * trained, "flops": 5e9 * trained, "seconds": 2.0 * trained},
            "lr": 4e-3 if trained else None, "steps": 27 if trained else None,
            "search": {"0.001": 0.6, "0.004": 0.7, "0.016": 0.65} if trained else {},
            "samples": [{"part": "", "prompt": "Where?", "wanted": "said sft", "answer": f"said {arm}"}],
            "answered": {"": {"right": 29 * (arm == "sft"), "of": 32}},
        })  # fmt: skip
    identity = {"arms": [[arm, {}, {"rows": 8}] for arm in scores if arm != "untouched"], "model": "0123abcd"}
    return {
        "protocol": "prefer", "primary": "preferred", "better": better, "budget": {"amount": 4e4, "unit": "tokens"},
        "seeds": list(range(1, 1 + len(rows[0]["per_seed"]))), "tuning_seed": 1000, "rates": list(RATES), "folds": 5,
        "rows": rows, "rules": rules, "failures": {}, "judged": False, "schema": 1, "status": "done", "verb": "compare",
        "model": "models/small",
        "data": {"preference": {"path": "my pairs.jsonl", "sha256": "ab" * 32, "records": 480}},
        "identity": identity, "versions": {"didact": "0.1.0", "torch": "2.13.0"}, "device": "cpu", "didact_commit": "c",
    } | changes  # fmt: skip


def written(root, content):
    (root / "leaderboard.json").write_text(json.dumps(content))
    return page.write(root)


HIGH, LOW = [0.80, 0.82, 0.81], [0.60, 0.63, 0.61]


# --- in words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "pattern"),
    [
        ({"a": HIGH, "b": LOW}, r"^a is best: preferred 0\.810 \(.*\), 0\.197 \(.*\) above b, the next, and 0\.31"),
        ({"a": HIGH}, r"^a is best: preferred 0\.810 \([\d. to]*\), 0\.310 \([\d. to]*\) above the untouched model\.$"),
        ({"a": HIGH, "b": [0.82, 0.80, 0.80]}, r"It is tied with b: the data cannot tell them apart\.$"),
        ({"a": HIGH, "b": [0.4, 0.6, 0.5]}, r"b is not better than the untouched model\.$"),
        ({"a": HIGH, "b": [0.4, 0.6, 0.5], "c": [0.1, 0.1, 0.1]}, r"b and c are not better than the untouched"),
        ({"a": [0.3, 0.9, 0.6]}, r"^a scored highest.*But the data cannot tell it from the untouched model\.$"),
        ({"a": [0.3, 0.9, 0.6], "b": [0.4, 0.8, 0.59]}, r"from the untouched model, nor from b\.$"),
        ({"a": [0.4, 0.4, 0.41], "b": [0.3, 0.6, 0.5]}, r"^No method is better than the untouched.*tell b from it\.$"),
        ({"a": [0.7]}, r"With one seed the data cannot tell the arms apart\.$"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_data_can_tell_and_no_more(scores, pattern):
    assert re.search(pattern, boards.verdict(board(scores)))


def test_where_the_time_went_is_on_the_page(tmp_path):
    seconds = {"search": 150.0, "scoring": 7.0, "generation": 5.0, "probes": 0.1}
    text = " ".join(text_of(written(tmp_path, board({"a": HIGH}, time=seconds))).split())
    assert "Where the time went training in the search for a learning rate 2 min 30 s scoring 7 s generating" in text
    assert "Where the time went" not in text_of(written(tmp_path, board({"a": HIGH}, time={"probes": 0.1})))


def test_where_less_is_better_the_lowest_is_best():
    verdict = boards.verdict(board({"a": [0.2, 0.21, 0.2], "b": [0.3, 0.31, 0.3]}, "lower"))
    assert re.search(r"^a is best.* 0\.1\d* \(.*\) below b, the next.*below the untouched model\.$", verdict)
    worse = board({"a": [0.2, 0.21, 0.2], "b": [0.8, 0.81, 0.8]}, "lower")
    assert [boards.versus_reference(row, worse) for row in worse["rows"]] == ["better", "unclear", "worse"]


def test_where_every_method_failed_the_verdict_says_so(tmp_path):
    failed = board({"a": HIGH})
    failed |= {
        "rows": [r for r in failed["rows"] if r["arm"] == "untouched"],
        "failures": {"a": "the loss became NaN"},
    }
    failed["rows"][0] |= {"to_leader": ends([0.0] * 3), "tied": True}
    assert "No method gave a model" in boards.verdict(failed)
    text = " ".join(text_of(written(tmp_path, failed)).split())
    assert "the loss became NaN" in text and "Use the best arm" not in text and "1 method compared" in text


@given(st.integers(0, 2), st.booleans())
def test_a_best_learning_rate_at_the_edge_is_warned_of_with_a_wider_grid(best, tie):
    data = board({"a": HIGH})
    row = data["rows"][0]
    row["search"] = {f"{lr:g}": 0.9 if i == best or (tie and i == 1) else 0.5 for i, lr in enumerate(RATES)}
    row["lr"] = RATES[best]
    warnings = [w for w in boards.warnings(data) if "learning rate" in w]
    if best == 1 or tie:
        assert not warnings
    else:
        grid = "0.00025 0.001 0.004 0.016" if best == 0 else "0.001 0.004 0.016 0.064"
        assert len(warnings) == 1 and f"--lrs {grid})" in warnings[0]


def test_warnings_tell_what_the_leaderboard_does_not(tmp_path):
    calm = board({"a": HIGH})
    assert boards.warnings(calm) == []
    assert any("exactly the same" in w and "of a " in w for w in boards.warnings(board({"a": [0.8] * 3})))
    assert "One seed" in boards.warnings(board({"a": [0.8]}))[0]
    meaning = {"preferred": {"n": 100, "unit": "", "better": "higher", "help": ""}}
    split = boards.warnings(calm | {"folds": 0, "meaning": meaning})
    assert len(split) == 1 and "±\xa00.08 for 100 of them" in split[0]  # 1.96 sqrt(.81 .19 / 100)
    ruled = boards.warnings(board({"a": HIGH, "b": LOW}, rules={"longer": 0.7, "shorter": 0.3}))
    assert len(ruled) == 1 and "0.700" in ruled[0] and "; b is not shown to be better" in ruled[0]
    many_arms = board({name: [0.6, 0.61, 0.62 + i / 99] for i, name in enumerate("abcde")})
    assert any("5 methods" in w for w in boards.warnings(many_arms))
    for row in many_arms["rows"]:
        row["to_untouched"] |= {"p": 0.03, "holm": 0.15 if row["arm"] == "a" else 0.01}
    assert any("(Holm), a is no longer significantly different" in w for w in boards.warnings(many_arms))
    assert any("tuned on the forget records" in w for w in boards.warnings(calm | {"tuned_on_tested": ["forget"]}))
    fallen = board({"a": HIGH})
    fallen["rows"][0]["metrics"] |= {"entropy": ends([0.1, 0.2]), "length": ends([50.0, 51.0])}
    fallen["rows"][0]["cost"]["tokens"] = 44_000.0
    warnings = " ".join(boards.warnings(fallen))
    fallen["rows"][0]["cost"]["tokens"] = 36_000.0
    assert "Less than the budget was used: a by 10 %" in " ".join(boards.warnings(fallen))
    assert "half the entropy" in warnings and "twice the length" in warnings and "a by 10 %" in warnings


# --- the table -------------------------------------------------------------------------------


def test_the_table_is_readable_at_140_columns():
    data = board({"unlearning-survey.task-arithmetic": HIGH, "npo:simnpo": [0.82, 0.80, 0.80], "sft": LOW})
    console = Console(width=140, record=True, file=io.StringIO(), markup=False)
    console.print(tables.leaderboard(data))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 140 and "…" not in "".join(lines)
    first, second, last = (next(line for line in lines if line.startswith(f"{i} ")) for i in (1, 2, 4))
    assert "0.810 ± 0.025" in first and "best" in first and "39,000" in first and "0.004" in first and "27" in first
    assert "tied" in second and "-0.003 ± " in second and "tied" not in last and "untouched" in last
    one = Console(width=140, record=True, file=io.StringIO())
    one.print(tables.leaderboard(board({"a": [0.7]})))
    assert "one seed" in one.export_text()


# --- the page --------------------------------------------------------------------------------


def test_the_page_tells_what_was_asked_what_came_out_and_how_to_take_it(tmp_path):
    (tmp_path / "models" / "dpo").mkdir(parents=True)
    (tmp_path / "models" / "dpo" / "config.json").write_text("{}")
    data = board(
        {"dpo": HIGH, "sft": LOW}, failures={"npo": "npo needs forget"}, argv=["compare", "dpo", "--model", "a b"],
        rules={"the shorter answer is the better": 0.55},
    )  # fmt: skip
    text = " ".join(text_of(written(tmp_path, data)).split())
    for part in (
        "3 methods compared", "dpo is best", "didact compare dpo --model 'a b'", "40 k tokens",
        "480 preference records", "npo needs forget", "my pairs.jsonl", "0.001, 0.004, 0.016", "said sft",
        "said untouched", "weights 0123abcd", "sft 29 of 32", "untouched 0 of 32",
        "didact run dpo --model models/small --preferences 'my pairs.jsonl' --rows 8 --lr 0.004 --steps 27 --seed 1",
        f"from_pretrained('{tmp_path}/models/dpo')", "the rule “the shorter answer is the better”", "commit c",
    ):  # fmt: skip
        assert part in text.replace("\xa0", " "), part
    names = (
        "Leaderboard", "Cost and quality", "Differences, seed by seed", "Seed by seed", "Did it collapse?",
        "The search for a learning rate", "All metrics", "Samples", "Failures", "Use the best arm", "Setup",
    )  # fmt: skip
    order = [text.index(f" {name} ", text.index("Versions ")) for name in names]
    assert order == sorted(order)


def test_a_method_taught_with_records_of_another_kind_is_repeated_through_map_or_not_at_all():
    data = board({"sft": HIGH})
    assert "--demos 'my pairs.jsonl' --map completion=chosen" in compared._command(data["rows"][0], data)
    data["data"] = {"critique": data["data"]["preference"]}
    assert compared._command(data["rows"][0], data) == ""


def test_the_command_of_a_preset_names_only_what_differs_from_it():
    entry = catalogue.entry("npo")
    preset = next(iter(entry["presets"]))
    own = {k: v for k, v in entry["presets"][preset].items() if not k.startswith("fit.")}
    data = board({f"npo:{preset}": HIGH}, data={"forget": {"path": "f.jsonl", "sha256": "", "records": 4}})
    data["identity"]["arms"] = [[f"npo:{preset}", own | {"beta": 0.7}, {}]]
    command = compared._command(data["rows"][0], data)
    assert command.startswith(f"didact run npo:{preset} --model models/small --forget f.jsonl --beta 0.7 --lr 0.004")


def test_a_real_comparison_has_a_table_and_a_page(tmp_path, capsys):
    text = [f"what is {a} {i}? it is {b}." for a in ("red", "blue") for b in ("good", "bad") for i in range(9)]
    model = build.build("llama", build.train_tokenizer(text, 300), d=32, layers=1, heads=2, context=64)
    model.save(tmp_path / "small")
    pairs = [Preference(prompt=f"what is red {i}?", chosen=" it is good.", rejected=" it is bad.") for i in range(60)]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    files.write_lines(tmp_path / "pairs.jsonl", rows)
    command = ["compare", "dpo", "--model", str(tmp_path / "small"), "--preference", str(tmp_path / "pairs.jsonl")]
    command += ["--budget", "8k-tokens", "--seeds", "2", "--lrs", "0.001", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "page: " in capsys.readouterr().out
    saved = files.read_json(tmp_path / "out" / "leaderboard.json")
    assert set(compared.REQUIRED) <= set(saved)
    content = " ".join(text_of(tmp_path / "out" / "report.html").split())
    assert boards.verdict(saved) in content and f"didact run dpo --model {tmp_path / 'small'}" in content
    # The command that trains the winner again runs.
    line = compared._command(next(r for r in saved["rows"] if r["arm"] == "dpo"), saved)
    assert cli.main([*line.split()[1:], "--dry-run"]) == 0


def test_what_is_no_finished_comparison_is_one_line(tmp_path):
    files.write_json(tmp_path / "comparison.json", {})
    with pytest.raises(UserError, match="not finished: run its command again"):
        page.write(tmp_path)
    for content, message in (
        ([1], "not a leaderboard"),
        ({"rows": []}, "not a leaderboard"),
        ({"rows": [{}]}, "no primary, "),
    ):
        files.write_json(tmp_path / "leaderboard.json", content)
        with pytest.raises(UserError, match=message):
            page.write(tmp_path)
    assert not list(tmp_path.glob("*.html"))


# --- pictures --------------------------------------------------------------------------------


def test_a_scatter_puts_points_by_cost_from_zero_and_its_lines_by_score():
    points = [comparison_plots.Point("a", 10.0, 0.6, 0.5, 0.7), comparison_plots.Point("b", 20.0, 0.8, full=False)]
    svg = comparison_plots.scatter(points, "tokens", "score", {"untouched": (0.5, "null")}, ("budget", 40.0))
    (ax, ay), (bx, by) = [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]
    limit = float(re.search(r'class="least" x1="([\d.]+)"', svg)[1])
    assert bx - ax == pytest.approx((limit - bx) / 2, abs=0.2)  # 10, 20, 40 share one scale ...
    zero = re.search(r'class="tick middle" x="([\d.]+)" y="[\d.]+">0<', svg)
    assert ax - float(zero[1]) == pytest.approx(bx - ax, abs=0.2)  # ... that begins at 0
    start = float(re.search(r'class="null" x1="[\d.]+" y1="([\d.]+)"', svg)[1])
    assert start - ay == pytest.approx((start - by) / 3, abs=0.2) and svg.count('class="span"') == 1
    assert svg.count('class="dot"') == 1 == svg.count('class="ring"') and "untouched 0.5" in svg


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1)), min_size=1, max_size=14))
@example([(0.0, 0.5)] * 14)
@example([(1e5, 0.5)] * 14)
def test_names_and_points_of_a_scatter_do_not_lie_on_each_other(places):
    svg = comparison_plots.scatter(
        [comparison_plots.Point(f"arm {i}", x, y) for i, (x, y) in enumerate(places)], "cost", "score"
    )
    at = sorted((float(x), float(y)) for x, y in re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', svg))
    assert len(at) == len(places) and all(0 < x < 400 for x, _ in at)
    labels = re.findall(r'<text class="(end)?" x="([\d.-]+)" y="([\d.]+)">arm', svg)
    assert len(labels) == len(places)
    for side in ("end", ""):
        ys = sorted(float(y) for kind, _, y in labels if kind == side)
        assert all(b - a >= svg_parts.LINE - 0.11 for a, b in itertools.pairwise(ys))


def test_marks_of_a_column_share_the_scale_at_its_head(tmp_path):
    data = board({"a": HIGH, "b": LOW}, rules={"rule": 0.1})
    scales = compared._scales(data)
    low, high = scales["score"][0]
    assert low <= 0.1 and high >= 0.82
    marks = [compared._row(i, row, data, scales)["marks"]["score"] for i, row in enumerate(data["rows"])]
    uprights = {re.search(r'class="least" x1="([\d.]+)"', mark)[1] for mark in marks}
    assert len(uprights) == 1
    assert f"scale from {low:.3g} to {high:.3g}" in comparison_plots.ruler((low, high))


# --- in a browser ----------------------------------------------------------------------------


def test_a_hostile_comparison_is_shown_as_text_and_loads_nothing(tmp_path, browser):
    data = board(
        {EVIL: HIGH, INTO_SVG: LOW, "plain": [0.4, 0.6, 0.5]}, rules={EVIL: 0.55}, failures={EVIL * 2: EVIL},
        model=EVIL, argv=["compare", EVIL], versions={EVIL: EVIL},
        meaning={EVIL: {"n": 3, "unit": EVIL, "help": EVIL, "better": ""}},
    )  # fmt: skip
    data["data"] = {EVIL: {"path": EVIL, "sha256": EVIL, "records": 3}}
    for row in data["rows"]:
        row["metrics"][EVIL] = ends([1.0, 2.0])
        row["samples"] = [
            {"part": EVIL, "prompt": EVIL, "wanted": EVIL, "answer": "{{ 7 * 7 }}"},
            {"prompt": "javascript:alert(1)", "answer": "\ud800"},
        ]
        row["answered"] = {EVIL: {"right": 1, "of": 2}}
    path = written(tmp_path, data)
    for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 390)):
        tab, console, requests = look(browser, path, scheme, width)
        inert(tab, console, requests, [path])
        accessible(tab, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        if width == 1280:
            text = tab.inner_text("main")
            assert EVIL in text and "{{ 7 * 7 }}" in text
            assert tab.locator(".sample.arms").first.locator(".cell:not(.asked)").count() == 4
            assert not tab.locator("details.wide table").is_visible()
            tab.locator("details.wide summary").click()
            assert tab.locator("details.wide table").is_visible()
        tab.close()


def test_the_leaderboard_can_be_read_at_a_glance(tmp_path, browser):
    data = board({"dpo": HIGH, "sft": [0.82, 0.80, 0.80], "kto": LOW}, rules={"shorter": 0.55})
    data["rows"][0] |= {"lr": RATES[2], "search": {"0.001": 0.6, "0.004": 0.7, "0.016": 0.8}}
    path = written(tmp_path, data)
    tab, console, _ = look(browser, path)
    judged = [
        re.findall(r"[a-z]+", t) for t in tab.locator("#board ~ .scroll").first.locator(".judged").all_inner_texts()
    ]
    assert judged == [["highest"], ["better"], ["tied"], ["better"], ["behind"], ["better"], ["behind"]]
    marks = tab.locator("#board ~ .scroll").first.locator("tbody svg[role=img]")
    assert (
        marks.count() == 4 and marks.nth(2).locator(".ring").count() == 1 and marks.nth(1).locator(".dot").count() == 1
    )
    at = [m.locator("circle").bounding_box()["x"] for m in marks.all()]
    assert at == sorted(at, reverse=True)  # better scores are further right, on one scale
    label = tab.locator("#quality ~ svg").first.get_attribute("aria-label")
    assert "dpo 0.81 at 3.9e+04" in label and "untouched 0.5" in label and "shorter 0.55" in label
    assert tab.locator("text=best at the edge").count() == 1 and console == []
    assert "largest for dpo" in html.unescape(tab.locator(".warning").first.inner_text())
    tab.close()


def test_what_compare_makes_has_all_the_page_needs(tmp_path):
    """The leaderboard of `compare` itself, from units without any training."""
    setting = compare.Setting(
        model=build.build("llama", build.train_tokenizer(["a b c"] * 3, 260), d=8, layers=1, heads=1), records={},
        protocol="text", budget=Budget.parse("90-seconds"), seeds=(1, 2, 3), rates=RATES, folder=tmp_path,
    )  # fmt: skip

    def unit(nll, cost):
        return {"metrics": {"nll": nll, "kl": 0.1}, "cost": dict.fromkeys(("tokens", "flops", "seconds"), cost)}

    start = unit(3.0, 0.0) | {"meaning": {"nll": {"n": 9, "unit": "nats", "better": "lower", "help": ""}}}
    units = {"untouched": [start] * 3, "sft": [unit(2.0 + k / 10, 80.0 + k) for k in range(3)]}
    chosen = {"sft": {"lr": RATES[1], "steps": 9, "search": {"0.004": 2.1}}}
    result = files.plain(
        leaderboard(setting, score.primary_of(setting.protocol, False), units, chosen, {"dpo": "no pairs"})
    )
    result |= {"model": "m", "data": {}, "identity": {}, "versions": {}}
    text = " ".join(text_of(written(tmp_path, result)).split())
    assert "sft is best: nll 2.100" in text and "below the untouched model" in text and "lower is better" in text
    assert "1 min 30 s" in text.replace("\xa0", " ") and "no pairs" in text

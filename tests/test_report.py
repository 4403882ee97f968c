"""Pages, opened in a real browser where there is one (CI must have one)."""

import html
import json
import math
import os
import re
import shutil

import pytest

from didact import files
from didact.models import adapters, load, mixers
from didact.models.model import Model, copy_of
from didact.report import page, plots
from didact.types import Result, UserError

EVIL = "<script>alert(1)</script><img src=x onerror=\"document.title='pwned'\">"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


def result(**changes):
    """What `didact run` writes, small."""
    metric = {"n": 20, "ci": None, "unit": "", "help": "", "better": "lower", "before": 1.0}
    return {
        "schema": 1, "status": "done", "verb": "run", "method": "npo", "preset": "npo-rt",
        "argv": ["run", "npo:npo-rt", "--forget", "my files/forget.jsonl"],
        "options": {
            "beta": {"value": 0.5, "from": "flag"}, "lr": {"value": 1e-3, "from": "file own.yaml"},
            "loss": {"value": "npo", "from": "preset npo-rt"}, "delta": {"value": 0.0, "from": "default"},
            "betas": {"value": [0.9, 0.95], "from": "flag"}, "steps": {"value": None, "from": "default"},
        },
        "model": {"path": "models/small", "fingerprint": "0123456789abcdef"},
        "data": {"forget": {"path": "my files/forget.jsonl", "sha256": "ab" * 32, "records": 20, "dropped": 3}},
        "held_out": {"retain": 8},
        "metrics": {
            "forget_accuracy": metric | {"after": 0.25, "ci": [0.1, 0.4], "gold": 0.21, "help": "tokens"},
            "utility": metric | {"after": 0.5, "better": "higher"},
            "membership": metric | {"after": 0.6, "better": "gold"},
            "forget_entropy": metric | {"after": 2.0, "better": "", "unit": "nats"},
            "broken": metric | {"after": None, "before": None, "ci": [None, None]},
        },
        "findings": {},
        "cost": {"tokens": 1_234_567, "flops": 2.5e12, "seconds": 12.3, "peak_bytes": 2**28, "calls": 0},
        "files": {"model": "hf: opens in transformers, vLLM, lm-eval and didact.load", "history.jsonl": "JSON lines"},
        "warnings": [], "joined": "by one space", "versions": {"didact": "0.1.0", "torch": "2.13.0"},
        "device": "cpu", "dtype": "float32", "threads": 2, "python": "3.11.7", "didact_commit": "abc1234", "seed": 7,
    } | changes  # fmt: skip


def history(rows=30):
    return [{"step": i + 1, "loss": 2 / (i + 1), "forget": None if i == 5 else 1.0, "lr": 1e-3} for i in range(rows)]


def run_folder(root, told=None, samples=(), rows=None, findings=None):
    files.write_json(root / "result.json", told or result())
    (root / "samples.json").write_text(json.dumps(list(samples)))
    files.write_lines(root / "history.jsonl", history() if rows is None else rows)
    if findings is not None:
        files.write_json(root / "findings.json", findings)
    return root


def card(method="npo", **changes):
    row = {"kind": "difference", "null": 0.0, "direction": "greater", "margin": 0.0, "unit": "", "n": 5, "level": 0.95}
    return {
        "method": method, "tier": "quick", "claim": f"{method} works {EVIL}",
        "arms": {"ours": {"loss": [1.0, 2.0, 3.0]}, "theirs": {"loss": [2.0, None, 3.0], "speed": [1.0, 1.0, 1.0]}},
        "tests": [
            row | {"name": "better", "estimate": 0.5, "interval": [0.2, 0.8], "gates": "verdict", "outcome": "holds"},
            row | {"name": "smaller", "direction": "less", "unit": "log ratio", "margin": 0.1,
                   "estimate": math.log(0.5), "interval": [-1.0, -0.4], "gates": "verdict", "outcome": "holds"},
            row | {"name": "alike", "kind": "equivalence", "margin": 0.2, "estimate": 0.3, "interval": [0.25, 0.35],
                   "gates": "none", "outcome": "fails"},
            row | {"name": "unknown", "estimate": None, "interval": [None, None], "gates": "competence",
                   "outcome": "inconclusive"},
        ],
        "sabotage": [
            {"name": "sign flipped", "breaks": "better", "estimate": 1.0, "interval": [0.5, 1.5], "detected": True},
            {"name": "gone", "breaks": "better", "estimate": None, "interval": None, "detected": False, "error": "E"},
        ],
        "verdict": "holds", "seeds": [0, 1, 2], "seconds": 12.0, "versions": {"torch": "2.13.0"},
        "measured": "2026-01-02T03:04:05+00:00", "sources_sha256": "cd" * 32,
    } | changes  # fmt: skip


def text_of(place):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", place.read_text(), flags=re.S)))


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMIUM) and not os.environ.get("CI"):
        pytest.skip("no chromium here: apt-get install -y chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def look(browser, place, scheme, width=1100):
    """Open a page; its screenshot stands beside it. Returns it with all it said and asked for."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(place.as_uri())
    tab.screenshot(path=place.with_name(f"{place.stem}-{scheme}-{width}.png"), full_page=True)
    return tab, said, asked


def test_a_hostile_run_is_shown_as_text_and_loads_nothing(tmp_path, browser):
    told = result(warnings=[f"careful {EVIL}"], argv=["run", "npo", f"--forget={EVIL}"])
    told["options"]["delta"] = {"value": EVIL, "from": f"file {EVIL}"}
    told["data"]["forget"]["path"] = EVIL
    told["metrics"] |= {EVIL: told["metrics"]["utility"] | {"help": EVIL, "unit": EVIL}}
    samples = [
        {
            "part": "forget",
            "prompt": EVIL,
            "wanted": "</div></table></style>",
            "before": EVIL,
            "after": "]]>--><b>x\u202e",
        },
        {
            "part": EVIL,
            "prompt": "javascript:alert(1)",
            "wanted": "\ud800",
            "before": "a" * 3000,
            "after": "{{ 7 * 7 }}",
        },
    ]
    rows = [row | {EVIL: 1.0, "$x_1$": 2.0, '"><script>alert(2)</script>': 3.0} for row in history()]
    findings = {
        EVIL: EVIL,
        "table": {"a": {EVIL: {"estimate": 1.0, "low": 0.5, "high": 1.5}}},
        "deep": [[[[EVIL] * 9] * 9]],
    }
    place = page.write(run_folder(tmp_path, told, samples, rows, findings))

    colours = {}
    for scheme in ("light", "dark"):
        tab, said, asked = look(browser, place, scheme)
        assert said == [] and asked == [place.as_uri()]
        assert tab.title() == "npo:npo-rt · didact"
        assert tab.evaluate("[document.scripts.length, document.images.length, document.links.length]") == [0, 0, 0]
        seen = tab.inner_text("main")
        assert EVIL in seen and "{{ 7 * 7 }}" in seen and "</div></table></style>" in seen
        assert tab.locator(".said").all_inner_texts().count(EVIL) == 2
        colours[scheme] = [
            tab.evaluate(f"getComputedStyle(document.body).{which}") for which in ("backgroundColor", "color")
        ]
        curve = tab.locator("svg.curve").first
        assert curve.get_attribute("role") == "img" and "loss goes from 2 at step 1" in curve.get_attribute(
            "aria-label"
        )
        line = tab.evaluate("getComputedStyle(document.querySelector('svg.curve path[style*=series-1]')).stroke")
        assert line not in colours[scheme]
        tab.close()
    paper = {scheme: int(colours[scheme][0][4:].split(",")[0]) for scheme in colours}
    assert paper["light"] > 200 > 60 > paper["dark"]

    tab, said, _ = look(browser, place, "light", width=390)
    assert said == [] and tab.evaluate("document.documentElement.scrollWidth") <= 390  # wide tables scroll inside
    tab.close()


def test_the_scoreboard_in_a_browser(tmp_path, browser):
    for name, verdict in (("npo", "holds"), ("mesa-gd", "fails"), ("zzz", None)):
        files.write_json(tmp_path / f"{name}.json", card(name, verdict=verdict))
    place = page.write(tmp_path)
    assert place.name == "index.html"
    for scheme in ("light", "dark"):
        tab, said, asked = look(browser, place, scheme)
        assert said == [] and asked == [place.as_uri()]
        assert tab.locator("svg.mark").count() == 3 * 3  # a test without an estimate has no mark
        assert tab.locator("h2").all_inner_texts() == ["mesa-gd: fails", "npo: holds", "zzz: no verdict"]
        assert f"npo works {EVIL}" in tab.inner_text("main")
        # Where the claim lies is right of the middle line, whichever way the test points.
        for row in tab.locator("svg.mark").all()[:2]:
            assert float(row.locator(".dot").get_attribute("x")) > 90
        tab.close()


# --- what stands on it -----------------------------------------------------------------------


def test_a_run_tells_what_was_asked_what_came_out_and_what_it_cost(tmp_path):
    samples = [{"prompt": "Where?", "before": "Paro", "after": "Lund"}]  # as a method may give them
    seen = " ".join(text_of(page.write(run_folder(tmp_path, samples=samples))).split())
    for part in (
        "didact run npo:npo-rt --forget 'my files/forget.jsonl'", "sha256 " + "ab" * 32, "arXiv:2404.05868",
        "models/small", "weights 0123456789abcdef", "file own.yaml", "0.9 0.95", "preset npo-rt", "retain: 8 records",
        "0.100 .. 0.400", "gold 0.21", "lower is better", "near .5 is better", "1.23 M", "2.5 T FLOP", "256 MiB",
        "2 threads", "abc1234", "Where?", "Paro", "Lund",
    ):  # fmt: skip
        assert part in seen
    changed = seen[seen.index("Options that differ") : seen.index("All 6 options")]
    assert "beta" in changed and "delta" not in changed and "0.1 flag" in changed  # the default beside the value


@pytest.mark.parametrize("form", ["hf", "peft", "peft without base", "didact"])
def test_the_lines_that_load_the_result_do(tmp_path, form, fresh):
    model = fresh("llama")
    names = {"start": model.module}
    if form.startswith("peft"):
        if form == "peft":
            model.save(tmp_path / "base")
            model = load.load(tmp_path / "base")
        model = adapters.lora(copy_of(model), 2)
    elif form == "didact":
        model = Model(mixers.LinearSelfAttention(3, 1, layers=1), kind="module")
    written = Result(models={"model": model}).save(tmp_path)
    place = page.write(run_folder(tmp_path, result(files=written)))
    blocks = [html.unescape(b) for b in re.findall(r"<pre>(.*?)</pre>", place.read_text(), re.S) if " = " in b]
    assert len(blocks) == (2 if form in ("hf", "peft") else 1)
    for block in blocks:
        exec(block, names)
        assert names.pop("model") is not None


def test_findings_and_curves_of_a_method_without_text(tmp_path):
    findings = {
        "kind": "white-box",
        "closest": {"reference": "gd", "tied_with": []},
        "alignment": {"gd": {"loss": {"estimate": 0.1, "low": 0.05, "high": 0.15}, "note": None}},
        "ood": {"inputs": [{"value": 0.5, "learner": 1.0, "gd": 1.1}, {"value": 1.0, "learner": 2.0, "gd": 2.1}]},
        "nested": {"a": {"b": [1, {"c": 2}]}},
    }
    told = result(method="gone", metrics={}, model=None, data={}, files={}, preset=None)
    seen = " ".join(text_of(page.write(run_folder(tmp_path, told, rows=[], findings=findings))).split())
    for part in (
        "white-box",
        "reference gd, tied with none",
        "0.050 .. 0.150",
        "learner goes from 1 at value 0.5",
        '"c": 2',
    ):
        assert part in seen
    assert "Samples" not in seen and "Training" not in seen


def test_long_curves_are_averaged_and_gaps_are_left():
    rows = [{"step": i, "loss": float(i)} for i in range(2000)]
    rows[0]["loss"] = None
    svg = plots.curve(rows, ["loss"])
    assert len(re.findall(r"\bL ", svg)) < 600 and "from 2.5 at step 2" in svg
    assert "no finite value" in plots.curve([{"step": 1, "loss": None}], ["loss"])
    assert "currentColor" in svg and "var(--series-1)" in svg and not re.search(r"#0102|<style|<metadata", svg)


def test_two_plots_share_no_id_and_the_same_plot_is_the_same_text():
    one, two = (plots.curve(history(), [name]) for name in ("loss", "lr"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert one == plots.curve(history(), ["loss"])


def test_what_is_no_run_and_no_scoreboard_is_one_line(tmp_path):
    def refused(folder):
        with pytest.raises(UserError) as caught:
            page.write(folder)
        assert str(caught.value).count("\n") == 0
        assert not list(tmp_path.rglob("*.html"))
        return str(caught.value)

    assert "no such folder" in refused(tmp_path / "none")
    assert "neither a run" in refused(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert "neither a run" in refused(tmp_path)
    (tmp_path / "result.json").write_text("[1]")
    assert "not a result of didact" in refused(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1, "status": "running", "method": "npo"}))
    assert "not finished" in refused(tmp_path)
    (tmp_path / "result.json").write_text("{")
    assert "result.json: cannot be read" in refused(tmp_path)

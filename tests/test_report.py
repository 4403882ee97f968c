"""Report pages, opened in a real browser where there is one (CI must have one)."""

import html
import itertools
import json
import math
import re
from pathlib import Path

import pytest

from didact import catalogue, files, untrusted
from didact.models import adapters, load, mixers
from didact.models.model import Model, copy_of
from didact.report import comparison_plots, findings, page, plots, svg, tables, words
from didact.types import Result, UserError

EVIL = "</style></title><script>alert(1)</script><img src=x onerror=\"document.title='pwned'\">"
INTO_SVG = '</text></svg><script>alert(2)</script><svg onload="alert(3)">&amp;'


def result(**changes):
    """A small result, as `didact run` writes it."""
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
            "forget_token_accuracy": metric | {"after": 0.25, "ci": [0.1, 0.4], "gold": 0.21, "help": "tokens"},
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


def run_folder(root, run_result=None, samples=(), rows=None, findings=None):
    files.write_json(root / "result.json", run_result or result())
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


def text_of(path):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S)))


# --- in a browser ----------------------------------------------------------------------------


def look(browser, path, scheme="light", width=1280):
    """Open a page; return it with its console messages and requests."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    console, requests = [], []
    tab.on("console", lambda message: console.append(message.text))
    tab.on("pageerror", lambda error: console.append(str(error)))
    tab.on("dialog", lambda dialog: (console.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    return tab, console, requests


# Every element that shows text of its own: contrast of its colour with the nearest background below it.
FAINT = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number), light = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    if (['TITLE', 'STYLE'].includes(e.tagName.toUpperCase()) || e.closest('.unseen')) continue;
    let behind = e;
    while (behind && !(rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1)) behind = behind.parentElement;
    const style = getComputedStyle(e), ink = rgb(e.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [ink, rgb(getComputedStyle(behind).backgroundColor)].map(c => light(c.slice(0, 3)));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(`${e.tagName}.${e.className} ${contrast.toFixed(2)} ${e.textContent.slice(0, 40)}`);
  }
  return faint;
}"""


def inert(tab, console, requests, paths):
    """Check that no script ran, nothing was fetched, and the page has only our own elements."""
    assert console == [] and requests == [path.as_uri() for path in paths]
    assert tab.evaluate("[document.scripts.length, document.images.length]") == [0, 0]
    assert tab.locator("[onerror], [onload], [onclick], iframe, object, embed, form, b > img").count() == 0
    assert tab.locator("style").count() == 1


def accessible(tab, scheme):
    """Check headings in order, tables with scopes, named pictures, regions in reach of a keyboard, enough contrast."""
    levels = [int(name[1]) for name in tab.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(e => e.tagName)")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert tab.locator("th:not([scope])").count() == 0 == tab.locator("table:not(:has(thead))").count()
    assert tab.locator("svg:not([role=img][aria-label]):not([aria-hidden=true])").count() == 0
    assert tab.locator("main > .scroll:not([tabindex='0'][role=region][aria-label])").count() == 0
    targets = tab.eval_on_selector_all("nav a", "all => all.map(e => e.getAttribute('href'))")
    assert all(tab.locator(target).count() == 1 for target in targets)
    assert tab.evaluate(FAINT) == [], scheme


@pytest.mark.parametrize(
    ("processes", "starts"),
    [([1, 1], "didact run"), ([8, 8], "torchrun --nproc_per_node 8 -m didact run"),
     ([16, 8], "torchrun --nnodes 2 --nproc_per_node 8 -m didact run")],
)  # fmt: skip
def test_a_run_of_several_processes_is_repeated_by_a_launcher(tmp_path, processes, starts):
    markup = page.write(run_folder(tmp_path, result(processes=processes))).read_text()
    assert f'<pre class="take">{starts} npo:npo-rt' in markup


def test_a_hostile_run_is_shown_as_text_and_loads_nothing(tmp_path, browser):
    hostile = result(warnings=[f"careful {EVIL}"], argv=["run", "npo", f"--forget={EVIL}"])
    hostile["options"]["delta"] = {"value": EVIL, "from": f"file {EVIL}"}
    hostile["data"] = {EVIL: hostile["data"]["forget"] | {"path": EVIL}}
    hostile["model"]["path"] = hostile["versions"][EVIL] = hostile["files"][EVIL] = EVIL
    hostile["answered"] = {part: {"of": 9, "before": 8, "after": 1} for part in (EVIL, "forget")}
    hostile["metrics"] |= {EVIL: hostile["metrics"]["utility"] | {"help": EVIL, "unit": EVIL, "better": EVIL}}
    samples = [
        {"part": "forget", "prompt": EVIL, "wanted": "</div></dl></style>", "before": EVIL, "after": "]]><b>x\u202e"},
        {"part": EVIL, "prompt": "javascript:alert(1)", "wanted": "\ud800", "before": EVIL * 9, "after": "{{ 7 * 7 }}"},
    ]  # fmt: skip
    rows = [row | {EVIL: 1.0, "$x_1$": 2.0, INTO_SVG: 3.0} for row in history()]
    line = {"x": [1, 2], "y": [1, 2]}
    told_findings = {
        EVIL: EVIL, "table": {"a": {EVIL: {"estimate": 1.0, "low": 0.5, "high": 1.5}}}, "deep": [[[[EVIL] * 9] * 9]],
        "curves": {INTO_SVG: {"lines": {INTO_SVG: line, EVIL: line}, "xlabel": INTO_SVG, "ylabel": INTO_SVG}},
    }  # fmt: skip
    path = page.write(run_folder(tmp_path, hostile, samples, rows, told_findings))

    paper = {}
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            tab, console, requests = look(browser, path, scheme, width)
            inert(tab, console, requests, [path])
            assert tab.title() == "npo:npo-rt · didact"
            # Wide tables scroll inside their container
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.links].map(a => a.href).filter(h => !h.includes('#'))") == [
                "https://arxiv.org/abs/2404.05868"
            ]
            if width == 1280:
                text = tab.inner_text("main")
                assert EVIL in text and "{{ 7 * 7 }}" in text and "</div></dl></style>" in text
                assert tab.locator(".said").all_inner_texts().count(EVIL) == 2
                label = tab.locator("figure svg").first.get_attribute("aria-label")
                assert "loss goes from 2 at optimiser step 1" in label
                assert any(INTO_SVG[:20] in t for t in tab.locator("#findings ~ .curves text").all_text_contents())
                accessible(tab, scheme)
                colours = "getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color"
                paper[scheme], ink = (tab.evaluate(colour) for colour in colours)
                assert tab.evaluate("getComputedStyle(document.querySelector('.line')).stroke") not in (paper, ink)
            tab.close()
    lightness = {scheme: int(colour[4:].split(",")[0]) for scheme, colour in paper.items()}
    assert lightness["light"] > 200 > 60 > lightness["dark"]


def test_a_long_answer_is_folded_and_a_key_opens_it(tmp_path, browser):
    long = "word " * 400
    samples = [{"prompt": "Why?", "wanted": "so", "before": long, "after": "", "part": "demos"}]
    tab, console, _ = look(browser, page.write(run_folder(tmp_path, samples=samples)), width=390)
    fold = tab.locator(".sample details")
    assert fold.count() == 1 and not fold.locator("> .said").is_visible()
    assert "all 2,000 characters" in fold.inner_text() and "(nothing)" in tab.locator(".sample").inner_text()
    fold.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert fold.locator("> .said").is_visible() and not fold.locator("summary .said").is_visible()
    assert fold.locator("> .said").text_content() == long and console == []
    tab.close()


def test_the_scoreboard_leads_to_the_pages_of_its_claims(tmp_path, browser):
    for name, verdict in (("npo", "holds"), ("mesa-gd", "fails"), ("zzz", None)):
        arms = card()["arms"] | {INTO_SVG: {EVIL: [1e-3, 1.0, None]}}
        files.write_json(tmp_path / f"{name}.json", card(name, verdict=verdict, arms=arms))
    path = page.write(tmp_path)
    assert path.name == "index.html"
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab, console, requests = look(browser, path, scheme, width)
        inert(tab, console, requests, [path])
        accessible(tab, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("tbody th a").all_inner_texts() == ["mesa-gd", "npo", "zzz"]
        facts = tab.locator(".facts dd").all_inner_texts()
        assert [f.split()[0] for f in facts[1:6]] == ["1", "1", "0", "1", "2"]  # the last: stale
        tab.click("text=npo")
        inert(tab, console, requests, [path, tmp_path / "npo.html"])
        accessible(tab, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert f"npo works {EVIL}" in tab.inner_text("main")
        assert tab.locator(".forest svg[role=img]").count() == 3  # a test without an estimate has none
        tab.close()


def test_an_estimate_lies_in_the_shade_where_its_test_would_hold(tmp_path, browser):
    path = tmp_path / "npo.json"
    files.write_json(path, card())
    tab, _, _ = look(browser, page.write(path))
    positions = {}
    for picture in tab.locator(".forest svg[role=img]").all():
        shade, dot = picture.locator(".region").bounding_box(), picture.locator(".dot").bounding_box()
        middle = dot["x"] + dot["width"] / 2
        name = picture.get_attribute("aria-label").split(":")[0]
        positions[name] = shade["x"] < middle < shade["x"] + shade["width"]
    assert positions == {"better": True, "smaller": True, "alike": False}
    tab.close()


def test_it_prints_in_ink_on_paper(tmp_path, browser):
    tab, _, _ = look(browser, page.write(run_folder(tmp_path)), "dark", 720)
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.querySelector('h2')).color") == "rgb(35, 33, 29)"
    assert tab.locator("details th:text-is('delta')").is_visible()  # sections that are collapsed on screen
    tab.close()


# --- content ---------------------------------------------------------------------------------


def test_a_run_tells_what_was_asked_what_came_out_and_what_it_cost(tmp_path):
    samples = [{"prompt": "Where?", "before": "Paro", "after": "Lund"},  # values a method may return
               {"part": "retain", "prompt": "When?", "wanted": "1946", "before": "1946", "after": "1931"}]  # fmt: skip
    run_result = result(answered={"retain": {"of": 32, "before": 30, "after": 29}})
    text = " ".join(text_of(page.write(run_folder(tmp_path, run_result, samples))).split())
    for part in (
        "Asked to make a model forget some answers and keep the rest", "model models/small with 20 forget records",
        "didact run npo:npo-rt --forget 'my files/forget.jsonl'", "sha256 " + "ab" * 32, "arXiv:2404.05868",
        "weights 0123456789abcdef", "file own.yaml", "0.9 0.95", "preset npo-rt", "retain: 8 records",
        "0.100 to 0.400", "lower is better", "near .5 is better", "1.23\xa0M", "2.5\xa0T FLOP", "256 MiB",
        "2 threads", "commit abc1234", "Where?", "Paro", "Lund",
        "retain: 30 of 32 answers as in the records before, 29 after", "didact evaluate", "--protocol forget",
    ):  # fmt: skip
        assert part.replace("\xa0", " ") in text, part
    order = [text.index(f" {name} ", text.index("Versions ")) for name in (
        "Before and after", "Samples", "Training", "Cost", "Data and options", "Use the result", "Versions and machine"
    )]  # fmt: skip
    assert order == sorted(order)
    changed = text[text.index("Options that differ") : text.index("All 6 options")]
    assert "beta" in changed and "delta" not in changed and "0.1 flag" in changed  # the default next to the value


def test_better_and_worse_are_told_as_far_as_the_interval_can_tell(tmp_path):
    metric = {"n": 9, "ci": None, "unit": "", "help": "", "before": 0.5}
    run_result = result(metrics={
        "up": metric | {"after": 0.7, "better": "higher", "ci": [0.6, 0.8]},
        "down": metric | {"after": 0.7, "better": "lower"},
        "unclear": metric | {"after": 0.6, "better": "higher", "ci": [0.4, 0.8]},
        "alike": metric | {"after": 0.50001, "better": "higher", "ci": [0.4999, 0.5001]},
        "fair": metric | {"before": 0.9, "after": 0.4, "better": "gold"},
        "neither": metric | {"after": 0.6, "better": ""},
        "new": metric | {"before": None, "after": 0.6, "better": "higher"},
    })  # fmt: skip
    path = page.write(run_folder(tmp_path, run_result))
    rows = re.findall(r'<tr>\s*<th scope="row">(\w+).*?<td class="keep">(.*?)</td>', path.read_text(), re.S)
    verdicts = {name: re.findall(r"</svg>([\w ]+)</span>", cell) for name, cell in rows[:7]}
    assert verdicts == {
        "up": ["better"], "down": ["worse"], "unclear": ["within interval"], "alike": ["the same"],
        "fair": ["better"], "neither": [], "new": [],
    }  # fmt: skip
    lead = (
        "Of 5 metrics with a better side, 2 got better, 1 got worse, 1 stayed within the interval and 1 stayed the same"
    )
    assert lead in re.sub(r"\s+([.,])", r"\1", " ".join(text_of(path).split()))


def test_a_claim_tells_its_verdict_and_whether_its_code_changed(tmp_path):
    from didact.claims import runner

    current = runner.sources_sha256(*runner.load("npo").modules)
    path = tmp_path / "npo.json"
    for sources, state in ((current, "the same"), ("0" * 64, "changed")):
        files.write_json(path, card(sources_sha256=sources))
        file = page.write(path)
        assert file == tmp_path / "npo.html"
        text = " ".join(text_of(file).split())
        assert f"code since then {state}" in text and ("measures it again" in text) == (state == "changed")
        assert "competence gate" in text and "reported only" in text and "1 of 2 sabotages went unnoticed" in text
        assert "× 0.5" in text and "0 ± 0.2" in text and "below 0" in text
    files.write_json(path, card(verdict="fails", sabotage=[]))
    text = " ".join(text_of(page.write(path)).split())
    assert "“unknown” is undecided (competence gate); 2 of 3 tests that decide hold over 3 seeds" in text


@pytest.mark.parametrize("form", ["hf", "peft", "didact"])
def test_the_lines_that_load_the_result_do(tmp_path, form, fresh):
    model = fresh("llama")
    names = {"start": model.module}
    if form == "peft":
        model.save(tmp_path / "base")
        model = adapters.lora(copy_of(load.load(tmp_path / "base")), 2)
    elif form == "didact":
        model = Model(mixers.LinearSelfAttention(3, 1, layers=1), kind="module")
    written = Result(models={"model": model}).save(tmp_path)
    path = page.write(run_folder(tmp_path, result(files=written)))
    blocks = [
        html.unescape(b) for b in re.findall(r'<pre class="take">(.*?)</pre>', path.read_text(), re.S) if " = " in b
    ]
    assert len(blocks) == (2 if form in ("hf", "peft") else 1)
    for block in blocks:
        exec(block, names)
        assert names.pop("model") is not None


def test_findings_are_shown_by_their_form(tmp_path):
    values = {
        "kind": "white-box",
        "closest": {"reference": "gd", "tied_with": []},
        "alignment": {"gd": {"loss": {"estimate": 0.1, "low": 0.05, "high": 0.15}, "note": None}},
        "rows": [{"word": "aa", "count": 3}, {"word": "bb", "count": 1e-9}],
        "nested": {"a": {"b": [1, {"c": 2}]}},
        "curves": {"by K": {"x": [1, 2], "y": [0.25, None], "xlabel": "K", "ylabel": "accuracy"}},
    }
    run_result = result(method="gone", metrics={}, model=None, data={}, files={}, preset=None)
    text = " ".join(text_of(page.write(run_folder(tmp_path, run_result, rows=[], findings=values))).split())
    for part in (
        "white-box", "reference gd, tied with none", "0.100 0.050 to 0.150", "aa 3", "bb 1.00 × 10⁻⁹", '"c": 2',
    ):  # fmt: skip
        assert part in text, part
    assert "Samples" not in text and "Training" not in text
    kinds = [(block.name, block.kind) for block in findings.blocks(values)]
    assert kinds == [
        ("", "curves"), ("", "short"), ("alignment", "table"), ("rows", "table"),
        ("nested", "heading"), ("a", "heading"), ("b", "json"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "curve", [{"x": [1]}, {"x": [1], "y": [1, 2]}, {"x": [1], "y": ["a"]}, {"lines": {}}, {"x": [1], "y": [True]}, [1]]
)
def test_what_has_not_the_form_of_a_curve_is_shown_otherwise(curve):
    assert not findings.is_curve(curve)
    blocks = findings.blocks({"curves": {"c": curve}})
    assert blocks and all(block.kind != "curves" for block in blocks)


def test_a_chart_puts_points_where_they_belong():
    few = plots.chart([plots.Line("a", [1, 2, 4, 8], [0.0, 0.5, 0.25, 1.0], [0.0] * 4, [1.0] * 4)], "K", log=True)
    at = [
        (float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", re.search(r'"line s1" d="(.*?)"', few)[1])
    ]
    steps = [b[0] - a[0] for a, b in itertools.pairwise(at)]
    assert max(steps) - min(steps) <= 0.2  # doublings are equally spaced on a logarithmic axis
    (_, zero), (_, half), (_, quarter), (_, one) = at
    assert half == pytest.approx((zero + one) / 2, abs=0.1) and quarter == pytest.approx(
        0.75 * zero + 0.25 * one, abs=0.1
    )
    whiskers = re.findall(r'class="line s1 whole" x1="[\d.]+" y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"', few)
    assert [(float(a), float(b)) for a, b in whiskers] == [(zero, one)] * 4
    assert all(f">{tick}</text>" in few for tick in ("1", "2", "4", "8", "0", "0.5", "1.0"))


def test_long_curves_are_averaged_and_gaps_are_left():
    rows = [{"step": i, "loss": float(i)} for i in range(2000)]
    rows[0]["loss"] = None
    svg = plots.chart([plots.of_rows(rows, "loss")], "step")
    assert svg.count("L") == plots.MAX_POINTS - 1 and "step (means of 5)" in svg and "from 1 at step 1" in svg
    gap = plots.chart([plots.of_rows([row | {"loss": None if row["step"] == 9 else 1.0} for row in rows[:20]], "loss")])
    assert re.search(r'"line s1" d="(.*?)"', gap)[1].count("M") == 2
    assert "no finite value" in plots.chart([plots.of_rows([{"step": 1, "loss": None}], "loss")])


def test_a_strip_has_a_dot_per_seed_and_says_which_have_none():
    svg = comparison_plots.strip("loss", {"a": [0.001, 0.1, 10.0], "b": [1.0, None, 1.0], "c": [None] * 3}, [0, 1, 2])
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "a, seed 0: 0.001", "a, seed 1: 0.1", "a, seed 2: 10", "b, seed 0: 1", "b, seed 2: 1"
    ]  # fmt: skip
    assert "1 none" in svg and "no value in 3 of 3 seeds" in svg and "geometric means over 3 seeds: a 0.1;" in svg
    dots = [float(x) for x in re.findall(r'class="seed" cx="([\d.]+)"', svg)]
    assert dots[1] == pytest.approx((dots[0] + dots[2]) / 2, abs=0.1)  # logarithmic
    assert float(re.search(r'class="mean" x1="([\d.]+)"', svg)[1]) == pytest.approx(dots[1], abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0, 1, ["0", "0.5", "1.0"]), (-0.3, 7.9, ["−5", "0", "5", "10"]), (2e-5, 2e-5, ["1.8", "2.0", "2.2"]),
        (0, 250_000, ["0", "1", "2", "3"]), (1.0, 1.0 + 1e-9, None),
    ],
)  # fmt: skip
def test_ticks_are_round_and_cover_what_is_shown(low, high, names):
    ticks = svg.axis_ticks(low, high, 3)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 6
    if names:
        assert svg.format_ticks(ticks)[0] == names


def test_numbers_are_set_as_in_print():
    assert [words.number(v) for v in (None, math.nan, 0.5, -1.13e-8, 70459.5, 12)] == [
        "–", "–", "0.500", "−1.13\xa0×\xa010⁻⁸", "70,460", "12.000"
    ]  # fmt: skip
    assert words.interval([-2.6e-4, 0.196]) == "0.000 to 0.196"  # no signed zero
    assert (
        words.interval([0.00038, 0.00123]) == "0.00038 to 0.00123"
        and words.number(8e-4, [0.00038, 0.00123]) == "0.00080"
    )
    assert words.interval([0.1, None]) == words.interval(None) == ""
    assert [words.short(v) for v in (0.0, 1e-9, -2.302585)] == ["0", "10⁻⁹", "−2.3"]
    assert [words.duration(v) for v in (0.25, 59.6, 92, 8123)] == [
        "0.25\xa0s",
        "1\xa0min 0\xa0s",
        "1\xa0min 32\xa0s",
        "2\xa0h 15\xa0min",
    ]
    assert words.typed([0.9, None, True, 1e-5]) == "0.9 none yes 1e-05"


def test_what_is_no_run_and_no_scoreboard_is_one_line(tmp_path):
    def refused(folder):
        with pytest.raises(UserError) as error:
            page.write(folder)
        assert str(error.value).count("\n") == 0
        assert not list(tmp_path.rglob("*.html"))
        return str(error.value)

    assert "no such folder" in refused(tmp_path / "none")
    assert "neither a run" in refused(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert "not a claim's card" in refused(tmp_path / "other.json")
    assert "neither a run" in refused(tmp_path)
    (tmp_path / "result.json").write_text("[1]")
    assert "not a result of didact" in refused(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1, "status": "running", "method": "npo"}))
    assert "not finished" in refused(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1, "status": "done", "method": "npo", "argv": []}))
    assert "no model, data, options" in refused(tmp_path)
    (tmp_path / "result.json").write_text("{")
    assert "result.json: cannot be read" in refused(tmp_path)


def test_the_terminal_shows_three_answers_of_all_parts_by_their_first_lines():
    rows = [
        {"part": p, "prompt": f"Q: {p}{i}\nA:", "before": "Rome\nQ: and", "after": ""} for p in "ab" for i in range(3)
    ]
    console = untrusted.console(120)
    with console.capture() as out:
        console.print(tables.samples(rows), tables.samples([{"part": "test", "prompt": "p", "after": "said"}]))
    lines = out.get().splitlines()
    assert [line.split()[2] for line in lines[1:4]] == ["a0", "b0", "a1"] and lines[1].count("Rome …") == 1
    assert (
        "and" not in out.get() and lines[4].split() == ["prompt", "after"] and lines[5].split() == ["test", "p", "said"]
    )


def test_a_study_measures_beside_what_it_names_and_shows_one_column_where_nothing_stands_beside(tmp_path):
    entries = catalogue.read()
    studies = [name for name, entry in entries.items() if entry["family"] == "mechanisms"]
    assert {tables.sides(entries[name]) for name in studies} == {("reference", "measured")} and len(studies) > 8
    row = {"after": 0.4, "before": 0.9, "gold": None, "n": 7, "ci": (0.3, 0.5), "unit": "", "better": "lower"}
    for before, head, verdict in ((0.9, "Reference and measured", "1</b> came out better"), (None, "Measured", "")):
        metric = row | {"before": before, "help": "loss; before: answering 0"}
        markup = Path(
            page.write(run_folder(tmp_path / head[0], result(method="mesa-gd", preset=None, metrics={"loss": metric})))
        ).read_text(encoding="utf-8")
        assert f">{head}</h2>" in markup and verdict in markup and "loss; reference: answering 0" in markup
        assert ("reference</th>" in markup) == (before is not None)
        console = untrusted.console(200)
        with console.capture() as text:
            console.print(tables.metrics({"loss": metric}, tables.sides(entries["mesa-gd"])))
        columns = [word for word in text.get().split("\n")[0].split("  ") if word]
        assert [c.strip() for c in columns][:2] == ["metric", "reference" if before else "measured"]


def test_what_only_asks_is_compared_with_plain_asking_and_what_trains_with_before(tmp_path):
    entries = catalogue.read()
    assert [tables.sides(entries[name]) for name in ("npo", "gpt3.clean")] == [("before", "after")] * 2
    sample = [{"part": "test", "prompt": "Where?", "before": "Paro", "after": "Lund", "wanted": "Lund"}]
    run_result = result(method="consensus", preset=None)
    markup = Path(page.write(run_folder(tmp_path, run_result, sample))).read_text(encoding="utf-8")
    assert ">Asked plainly and through the procedure<" in markup and markup.count("before") == 1  # of the next chat
    console = untrusted.console(200)
    with console.capture() as text:
        console.print(
            tables.metrics(
                {"one": run_result["metrics"]["utility"] | {"gold": None}}, tables.sides(entries["consensus"])
            )
        )
    assert text.get().split("\n")[0].split("  ")[0] == "metric" and "asked plainly" in text.get()

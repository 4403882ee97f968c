"""An mkdocs hook: one page a method, made from its docstring, notes on the paper, and its measured claim.

The catalogue and `scoreboard/` are the only sources, so a page cannot say other than the code;
`docs/papers/<slug>.md` adds what the paper reports and where it and its code disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, options

ROOT = Path(__file__).parent.parent
VERDICTS = {"holds": "the claim holds", "fails": "the claim fails", "inconclusive": "inconclusive"}


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    families: list[Any] = ["methods/index.md"]
    for family, entries in _by_family().items():
        families.append({family: [{e["name"]: f"methods/{e['name']}.md"} for e in entries]})
    for item in config.nav:
        if "Methods" in item:
            item["Methods"] = families
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {"methods/index.md": index()} | {f"methods/{e['name']}.md": page(e) for e in _entries()}
    pages["speed.md"] = (ROOT / "docs" / "speed.md").read_text() + speed()
    for path, text in pages.items():
        if (old := files.get_file_from_path(path)) is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=text))
    return files


def index() -> str:
    """All methods by what the user wants."""
    lines = ["# The methods", "", "What each needs, gives, and the verdict on its paper's claim.", ""]
    for family, entries in _by_family().items():
        lines += [f"## {family}: {catalogue.FAMILIES[family].goal}", ""]
        rows = [[f"[{e['name']}]({e['name']}.md)", _cell(e["help"]), _needs(e), _verdict(e)] for e in entries]
        lines += _table(("method", "what it does", "needs", "claim"), rows)
    return "\n".join(lines) + "\n"


def page(entry: Mapping[str, Any]) -> str:
    """One method's page."""
    name, slug = entry["name"], entry["name"].partition(".")[0]
    lines = [f"# {name}", "", f"*{entry['paper']}* ({entry['year']}, {entry['source']}).", "", entry["doc"], ""]
    lines += ["## Use it", "", "```console", *_commands(entry), "```", ""]
    lines += ["The same in Python:", "", "```python", *_python(entry), "```", ""]
    lines += ["## What it needs", ""]
    needs = [[f"`--{_flag(n)}`", v["kind"], "yes" if v["required"] else "no", _cell(v["help"])]
             for n, v in entry["needs"].items()]  # fmt: skip
    lines += _table(("input", "what", "required", ""), needs)
    lines += [f"It gives: {', '.join(entry['gives'])}.", ""]
    if entry["options"]:
        lines += ["## Options", ""]
        rows = [
            [f"`--{_flag(o['name'])}`", f"`{_shown(o['default'])}`", _cell(o["type"]), _cell(o.get("bounds") or ""),
             _cell(o["help"])]
            for o in options.flat(entry).values()
        ]  # fmt: skip
        lines += _table(("option", "default", "type", "must be", ""), rows)
    if entry["fit"]:
        changed = ", ".join(f"`--{_flag(o['name'])} {_shown(o['default'])}`" for o in entry["fit"])
        lines += ["Training options, with this method's defaults: " + changed + ".", ""]
    if entry["presets"]:
        lines += ["## Presets", "", f"`didact run {name}:PRESET` sets:", ""]
        rows = [[f"`{k}`", ", ".join(f"{_flag(o)} {_shown(v)}" for o, v in p.items()) or "the defaults"]
                for k, p in entry["presets"].items()]  # fmt: skip
        lines += _table(("preset", "options"), rows)
    notes = ROOT / "docs" / "papers" / f"{slug}.md"
    if notes.exists():
        lines += [notes.read_text().strip(), ""]
    card = ROOT / "scoreboard" / f"{slug}.json"
    if card.exists():
        lines += claim(json.loads(card.read_text()))
    return "\n".join(lines) + "\n"


def claim(card: Mapping[str, Any]) -> list[str]:
    """The measured claim: tests, sabotages, and how to measure it again."""
    lines = ["## The claim, tested", "", card["claim"], ""]
    lines += [
        f"Verdict: **{card['verdict']}** (tier {card['tier']}, {len(card['seeds'])} seeds, {card['seconds']:.0f} s, "
        f"measured {card['measured'][:10]} with torch {card['versions']['torch']}).",
        "",
    ]
    rows = [
        [_cell(t["name"]), t["kind"], _number(t["estimate"]), _interval(t["interval"]), _cell(t["unit"]),
         {"verdict": "yes", "competence": "can it be tested?"}.get(t["gates"], "reported only"), f"**{t['outcome']}**"]
        for t in card["tests"]
    ]  # fmt: skip
    lines += _table(("test", "kind", "estimate", "interval", "unit", "gates", "outcome"), rows)
    if card["sabotage"]:
        lines += ["A broken method must be noticed:", ""]
        rows = [
            [_cell(s["name"]), _cell(s["breaks"]), _number(s["estimate"]), _interval(s["interval"]),
             "yes" if s["detected"] else "no"]
            for s in card["sabotage"]
        ]  # fmt: skip
        lines += _table(("sabotage", "test it breaks", "shift", "interval", "detected"), rows)
    return [*lines, f"Measure it yourself: `didact claim {card['method']} --sabotage`.", ""]


def speed() -> str:
    """The committed bench tables."""
    lines: list[str] = []
    for path in sorted((ROOT / "results" / "bench").glob("*.json")):
        told = json.loads(path.read_text())
        machine = told["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        lines += ["", f"## {path.stem}", ""]
        lines += [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, load "
                  f"{machine['load']:.2f} before the first arm; {versions}.", ""]  # fmt: skip
        rows = [
            [b["bench"], _number(b["ours"]), _number(b["peer"]), b["unit"], f"**{b['ratio']:.2f}**",
             "" if b["target"] is None else f"{b['target']:g}", b["setting"],
             {True: "yes", False: "no", None: ""}[b.get("same")]]
            for b in told["benches"] if "error" not in b
        ]  # fmt: skip
        lines += _table(("bench", "didact", "peer", "unit", "ratio", "target", "peer's best setting", "same"), rows)
    return "\n".join(lines)


def _entries() -> list[dict[str, Any]]:
    return list(catalogue.read().values())


def _by_family() -> dict[str, list[dict[str, Any]]]:
    found = {family: [e for e in _entries() if e["family"] == family] for family in catalogue.FAMILIES}
    return {family: entries for family, entries in found.items() if entries}


def _commands(entry: Mapping[str, Any]) -> list[str]:
    wanted = [f"--{_flag(n)} {_file(n, v)}" for n, v in entry["needs"].items() if v["required"]]
    lines = [] if entry["baseline"] else [f"$ didact run {entry['name']}          # on its embedded example"]
    return [*lines, " ".join([f"$ didact run {entry['name']}", *wanted, f"--out runs/{entry['name']}"])]


def _python(entry: Mapping[str, Any]) -> list[str]:
    given = [
        f"    {n}=didact.load({_file(n, v)!r}),"
        if v["kind"] == "model"
        else f"    {n}=didact.read({_file(n, v)!r}, {v['kind']!r}),"
        for n, v in entry["needs"].items()
        if v["required"]
    ]
    call = f"result = didact.{entry['family']}.{entry['function']}("
    return ["import didact", "", call, *given, ")", 'result.report("out")  # the numbers; saved, with a page']


def _file(name: str, need: Mapping[str, Any]) -> str:
    return "my-model" if need["kind"] == "model" else f"{name}.jsonl"


def _needs(entry: Mapping[str, Any]) -> str:
    shown = (f"{v['kind']}" if v["required"] else f"[{v['kind']}]" for v in entry["needs"].values())
    return ", ".join(shown).replace("[", "\\[")


def _verdict(entry: Mapping[str, Any]) -> str:
    return "baseline" if entry["baseline"] else VERDICTS.get(entry["verdict"] or "", "not yet measured")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _shown(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _interval(ends: Sequence[float | None] | None) -> str:
    return "" if not ends else " .. ".join("inf" if e is None else _number(e) for e in ends)

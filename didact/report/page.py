"""One self-contained HTML page per run, and one for a scoreboard: no script, no network.

What a model wrote, and whatever else comes out of a file, is untrusted: the template escapes everything but our own
SVG, and the page's policy lets a browser load nothing at all.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from didact import catalogue, files
from didact.report import plots, tables
from didact.types import UserError

TEMPLATE = "page.html"
LATE = ("grad_norm", "lr")  # curves shown after the losses


def write(folder: str | Path) -> Path:
    """Write the page of a run (`report.html`) or of a scoreboard (`index.html`) into its folder.

    Raises:
        UserError: the folder holds neither, or the run is not finished.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the --out folder of a run, or a scoreboard folder")
    if (root / "result.json").exists():
        return _put(root / "report.html", _run(root))
    cards = [card for path in sorted(root.glob("*.json")) if _is_card(card := _read(path))]
    if not cards:
        raise UserError(f"{folder}: neither a run (no result.json) nor a scoreboard (no claim's card)")
    return _put(root / "index.html", {"title": "Scoreboard", "cards": [_card(c) for c in cards]})


def _put(path: Path, shown: Mapping[str, Any]) -> Path:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"number": tables.number, "value": _value, "many": _many}
    text = env.get_template(TEMPLATE).render({"run": None, "cards": None, **shown})
    with files.new_file(path) as beside:
        # A half surrogate pair, which JSON can hold and UTF-8 cannot, must not stop the page.
        beside.write_text(text, encoding="utf-8", errors="replace")
    return path


def _svg(text: str) -> Any:
    """Our own SVG, the only thing the template does not escape."""
    import markupsafe

    return markupsafe.Markup(text)


# --- a run -----------------------------------------------------------------------------------


def _run(root: Path) -> dict[str, Any]:
    told = _read(root / "result.json")
    if not isinstance(told, dict) or "method" not in told or "status" not in told:
        raise UserError(f"{root / 'result.json'}: not a result of didact")
    if told["status"] != "done":
        raise UserError(f"{root}: the run is not finished: repeat its command, which goes on where it stopped")
    entry = catalogue.read().get(told["method"], {})
    name = told["method"] + (f":{told['preset']}" if told.get("preset") else "")
    samples = _read(root / "samples.json") if (root / "samples.json").exists() else []
    findings = _read(root / "findings.json") if (root / "findings.json").exists() else told.get("findings") or {}
    return {
        "title": name,
        "run": told,
        "entry": entry,
        "command": shlex.join(["didact", *map(str, told["argv"])]),
        "changed": _changed(told["options"], entry),
        "metrics": _metrics(told["metrics"]),
        "golden": any(m.get("gold") is not None for m in told["metrics"].values()),
        "samples": samples,
        "curves": _curves(_lines(root / "history.jsonl")),
        "findings": _findings(findings),
        "cost": _cost(told["cost"]),
        "loads": [_load(root, what, how) for what, how in told["files"].items() if what.split("-")[0] == "model"],
        "others": [(what, how) for what, how in told["files"].items() if what.split("-")[0] != "model"],
        "folder": shlex.quote(str(root)),
    }


def _changed(options: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Options somebody set, with the method's own value and help."""
    known = {o["name"]: o for o in (*entry.get("options", ()), *entry.get("fit", ()))}
    unknown = {"default": None, "help": ""}
    return [{**unknown, **known.get(n, {}), "name": n, **o} for n, o in options.items() if o["from"] != "default"]


def _metrics(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, m in metrics.items():
        shown = {**m, "name": name, "mark": _svg(plots.change(m)), "reading": tables.ARROWS[m["better"]], "moved": ""}
        if m["better"] in ("higher", "lower") and m["before"] is not None and m["after"] is not None:
            gain = (m["after"] - m["before"]) * (1 if m["better"] == "higher" else -1)
            still = tables.number(m["after"]) == tables.number(m["before"])
            shown["moved"] = "" if still else "good" if gain > 0 else "bad"
        rows.append(shown)
    return rows


def _curves(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One small plot per logged column; columns of which nothing is a number are left out."""
    names = [n for n in dict.fromkeys(k for row in history for k in row) if n != "step"]
    names = [n for n in names if any(isinstance(row.get(n), int | float) for row in history)]
    ordered = [n for n in names if n not in LATE] + [n for n in LATE if n in names]
    return [{"name": n, "svg": _svg(plots.curve(history, [n]))} for n in ordered]


def _findings(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each finding as what it looks like: first short ones in a row each, then curves, tables, else JSON."""
    short = {k: v for k, v in findings.items() if not isinstance(v, dict | list) or _is_short(v)}
    shown: list[dict[str, Any]] = [{"name": "", "kind": "short", "value": short}] if short else []
    for name, value in findings.items():
        if name in short:
            continue
        if isinstance(value, dict) and value and all(_is_series(v) for v in value.values()):
            curves = [
                {"name": k, "svg": _svg(plots.curve(v, [c for c in v[0] if c != "value"], x="value", title=k))}
                for k, v in value.items()
            ]
            shown.append({"name": name, "kind": "curves", "value": curves})
        elif isinstance(value, dict) and value and all(_is_row(v) for v in value.values()):
            columns = list(dict.fromkeys(c for row in value.values() for c in row))
            shown.append({"name": name, "kind": "table", "columns": columns, "value": value})
        else:
            shown.append({"name": name, "kind": "json", "value": json.dumps(value, indent=1, ensure_ascii=False)})
    return shown


def _is_short(value: Any) -> bool:
    items = list(value.values()) if isinstance(value, dict) else value
    flat = [x for item in items for x in (item if isinstance(item, list) else [item])]
    return len(flat) <= 12 and all(x is None or isinstance(x, int | float | str) for x in flat)


def _is_series(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) and "value" in r for r in value)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(_is_cell(v) for v in value.values())


def _is_cell(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str) or (isinstance(value, dict) and "estimate" in value)


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        ("seconds", f"{cost['seconds']:.0f} s", "teaching and scoring"),
        ("tokens", _many(cost["tokens"]), "trained tokens, counted three times"),
        ("flops", f"{_many(cost['flops'])} FLOP", "about 6 per weight and trained token"),
        ("peak_bytes", f"{cost['peak_bytes'] / 2**20:,.0f} MiB", "of the process, or of the accelerator"),
        ("calls", _many(cost["calls"]), "to a remote model"),
    ]
    names = {"seconds": "time", "flops": "arithmetic", "peak_bytes": "peak memory"}
    return [(names.get(name, name), text, help_) for name, text, help_ in rows if cost[name]]


def _load(root: Path, what: str, how: str) -> dict[str, str]:
    """Python lines that load a saved model, and what else opens it."""
    kind, _, opens = how.partition(": ")
    place = str(root / what)
    config: dict[str, Any] = {}
    for name in ("config.json", "adapter_config.json"):
        if (root / what / name).exists():
            config |= _read(root / what / name)
    seq2seq = config.get("is_encoder_decoder") or config.get("task_type") == "SEQ_2_SEQ_LM"
    task = "Seq2SeqLM" if seq2seq else "CausalLM"
    if kind == "peft" and not config.get("base_model_name_or_path"):
        kind = "peft alone"
    lines = {
        "hf": f"from transformers import AutoModelFor{task}, AutoTokenizer\n\n"
        f"model = AutoModelFor{task}.from_pretrained({place!r})\ntokenizer = AutoTokenizer.from_pretrained({place!r})",
        "peft": f"from peft import AutoPeftModelFor{task}  # loads the start model too\n\n"
        f"model = AutoPeftModelFor{task}.from_pretrained({place!r})",
        "peft alone": "from peft import PeftModel  # start: the module that was taught, which has no folder\n\n"
        f"model = PeftModel.from_pretrained(start, {place!r})",
        "didact": f"from didact.models import mixers\n\nmodel = mixers.load_module({place!r})",
    }.get(kind, f"# {how}")
    also = "" if kind not in ("hf", "peft") else f"import didact\n\nmodel = didact.load({place!r})"
    return {"name": what, "lines": lines, "also": also, "opens": opens}


# --- claims ----------------------------------------------------------------------------------


def _is_card(card: Any) -> bool:
    return isinstance(card, dict) and {"method", "tests", "verdict", "arms"} <= card.keys()


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    tests = [
        {
            **t, "mark": _svg(plots.forest_row(t)), "against": _against(t), "factor": _factor(t, t["estimate"]),
            "against_factor": _factor(t, t["null"]) if t["kind"] in ("difference", "bound") else "",
        }
        for t in card["tests"]
    ]  # fmt: skip
    metrics = list(dict.fromkeys(m for arm in card["arms"].values() for m in arm))
    arms = {a: [_spread(columns.get(m)) for m in metrics] for a, columns in card["arms"].items()}
    entry = catalogue.read().get(card["method"], {})
    return {**card, "tests": tests, "metrics": metrics, "arms": arms, "entry": entry}


def _against(test: Mapping[str, Any]) -> str:
    """What the estimate is held against, in symbols."""
    null, margin = tables.number(test["null"]), tables.number(test["margin"])
    if test["kind"] in ("equivalence", "exact"):
        return f"within {margin} of {null}"
    return f"{'below' if test['direction'] == 'less' else 'above'} {null}"


def _factor(test: Mapping[str, Any], value: float | None) -> str:
    """A log ratio as the factor it stands for."""
    if test["unit"] != "log ratio" or value is None or abs(value) > 700:
        return ""
    return f"× {math.exp(value):.3g}"


def _spread(values: list[float | None] | None) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return f"{len(values) - len(known)} of {len(values)} seeds have none"
    mean = tables.number(statistics.fmean(known))
    return mean if len(known) < 2 else f"{mean} ± {tables.number(statistics.stdev(known))}"


# --- small things ----------------------------------------------------------------------------


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _value(value: Any) -> str:
    """An option or a finding as a reader writes it."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return " ".join(map(_value, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_value(v)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _many(count: float | None) -> str:
    """A large count in three digits."""
    if count is None:
        return "-"
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:g}"

"""Context of a run's page, read from the run's folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, options
from didact.evaluate.measures import BESIDE
from didact.report import drawing, findings, plots, svg, tables, words
from didact.types import UserError

LAST_CURVES = ("grad_norm", "lr")  # curves shown after the losses
REQUIRED = ("model", "data", "options", "metrics", "cost", "files", "warnings", "versions", "argv", "seed")
OUTCOMES = {"better": "better", "worse": "worse", "unclear": "within the interval", "same": "the same", "": ""}


def template_context(root: Path) -> dict[str, Any]:
    """Return the context of `run.html`.

    Raises:
        UserError: the folder holds no finished run.
    """
    run = read(root / "result.json")
    if not isinstance(run, dict) or "method" not in run or "status" not in run:
        raise UserError(f"{root / 'result.json'}: not a result of didact")
    if run["status"] != "done":
        raise UserError(f"{root}: the run is not finished: run its command again to resume it")
    if missing := [name for name in REQUIRED if name not in run]:
        raise UserError(f"{root / 'result.json'}: not a result of didact: no {', '.join(missing)}")
    entry = catalogue.read().get(run["method"], {})
    sides = tables.sides(entry)
    metrics = [_metric(name, m, sides) for name, m in run["metrics"].items()]
    raw_findings = _optional(root / "findings.json", files.read_json, run.get("findings") or {})
    models = {name: description for name, description in run["files"].items() if name.split("-")[0] == "model"}
    return {
        "title": run["method"] + (f":{run['preset']}" if run.get("preset") else ""),
        "run": run,
        "entry": entry,
        "link": paper_link(entry),
        "command": shlex.join([*_launcher(run), *map(str, run["argv"])]),
        "example": any(d.get("path") == "embedded example" for d in run["data"].values()),
        "metrics": metrics,
        "sides": sides,
        "paired": any(m.get("before") is not None for m in metrics),
        "counts": {
            outcome: sum(m["moved"] == outcome for m in metrics if not m["name"].endswith(BESIDE))
            for outcome in OUTCOMES
            if outcome
        },
        "share_axis": plots.share_axis() if any(m["share"] and m["mark"] for m in metrics) else "",
        "golden": any(m.get("gold") is not None for m in metrics),
        "figures": drawing.load_figures(root),
        "samples": _optional(root / "samples.json", files.read_json, []),
        "answered": dict(zip(run.get("answered", {}), tables.match_lines(run.get("answered", {})), strict=True)),
        "curves": _curves(_optional(root / "history.jsonl", files.read_lines, [])),
        "findings": findings.blocks(raw_findings) if isinstance(raw_findings, dict) else [],
        "cost": _cost(run["cost"]),
        "options": _options(run["options"], entry),
        "loads": [load_lines(root, name, description) for name, description in models.items()],
        "others": {name: description for name, description in run["files"].items() if name not in models},
        "folder": shlex.quote(str(root)),
    }


def read(path: Path) -> Any:
    """Read a JSON file; a missing file is a `UserError`."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be read: no such file") from None


def _launcher(run: Mapping[str, Any]) -> list[str]:
    """The command that starts `didact` as for this run: `torchrun` where it had several processes."""
    processes, per_node = run.get("processes", (1, 1))
    if processes == 1:
        return ["didact"]
    node_options = [] if processes == per_node else ["--nnodes", str(processes // per_node)]
    return ["torchrun", *node_options, "--nproc_per_node", str(per_node), "-m", "didact"]


def _optional(path: Path, read: Callable[[Path], Any], absent: Any) -> Any:
    return read(path) if path.exists() else absent


def paper_link(entry: Mapping[str, Any]) -> str:
    """The paper's arXiv link; empty where its source is not arXiv."""
    match = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", entry.get("source", ""))
    return f"https://arxiv.org/abs/{match[1]}" if match else ""


def _metric(name: str, m: Mapping[str, Any], sides: Sequence[str]) -> dict[str, Any]:
    before, after = (svg.number(m.get(side)) for side in ("before", "after"))
    outcome = _outcome(before, after, m.get("ci"), m.get("better", ""))
    change = after - before
    return {
        **m, "name": name, "help": m.get("help", "").replace("before:", f"{sides[0]}:"),
        "mark": plots.change(m, sides), "share": plots.is_share(m), "moved": outcome,
        "change": ("+" if change > 0 else "") + words.number(change) if change == change else "",
    }  # fmt: skip


def _outcome(before: float, after: float, ci: Any, better: str) -> str:
    """A key of `OUTCOMES`: whether a metric got better, given its interval; empty if it has no better direction."""
    gain = {
        "higher": after - before, "lower": before - after, "gold": abs(before - 0.5) - abs(after - 0.5)
    }.get(better)  # fmt: skip
    if gain is None or gain != gain:
        return ""
    if words.number(after) == words.number(before):
        return "same"
    if ci and None not in ci and ci[0] <= before <= ci[1]:
        return "unclear"
    return "better" if gain > 0 else "worse"


def _curves(history: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """One small plot per logged column that holds numbers."""
    names = [n for n in dict.fromkeys(k for row in history for k in row) if n != "step"]
    names = [n for n in names if any(svg.number(row.get(n)) == svg.number(row.get(n)) for row in history)]
    ordered = [n for n in names if n not in LAST_CURVES] + [n for n in LAST_CURVES if n in names]
    return [(n, plots.chart([plots.of_rows(history, n)], "optimiser step", width=300, height=170)) for n in ordered]


def _options(values: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every option with its value, default and help; `changed` where it was set."""
    declared = {**options.flat(entry), **{o["name"]: o for o in entry["fit"]}} if entry else {}
    unknown = {"default": None, "help": ""}
    return [
        {**unknown, **declared.get(name, {}), "name": name, **o, "changed": o["from"] != "default"}
        for name, o in values.items()
    ]


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, Callable[[float], str], str]] = [
        ("seconds", "time", words.duration, "teaching and scoring"),
        ("tokens", "tokens", words.many, "counted once per forward pass of any model, three times in training"),
        ("flops", "arithmetic", lambda n: f"{words.many(n)} FLOP", "2 per weight and token forward, 4 backward"),
        ("peak_bytes", "peak memory", lambda n: f"{n / 2**20:,.0f} MiB", "of the process, or of the accelerator"),
        ("calls", "calls", words.many, "prompts sent to a model, local or on a server"),
    ]
    return [(label, format_(cost[name]), explanation) for name, label, format_, explanation in rows if cost.get(name)]


def load_lines(root: Path, name: str, description: str) -> dict[str, str]:
    """Python lines that load a saved model, and the other tools that open it.

    `description` is `KIND: TOOLS`, as `result.json` has it under `files`.
    """
    kind, _, opens = description.partition(": ")
    path = str(root / name)
    config: dict[str, Any] = {}
    for filename in ("config.json", "adapter_config.json"):
        if (root / name / filename).exists():
            config |= read(root / name / filename)
    seq2seq = config.get("is_encoder_decoder") or config.get("task_type") == "SEQ_2_SEQ_LM"
    masked = any(str(architecture).endswith("ForMaskedLM") for architecture in config.get("architectures") or ())
    task = "Seq2SeqLM" if seq2seq else "MaskedLM" if masked else "CausalLM"
    lines = {
        "hf": f"from transformers import AutoModelFor{task}, AutoTokenizer\n\n"
        f"model = AutoModelFor{task}.from_pretrained({path!r})\ntokenizer = AutoTokenizer.from_pretrained({path!r})",
        "peft": f"from peft import AutoPeftModelFor{task}  # loads the start model too\n\n"
        f"model = AutoPeftModelFor{task}.from_pretrained({path!r})",
        "didact": f"import didact\n\nmodel = didact.load({path!r})",
    }.get(kind, f"# {description}")
    didact_lines = "" if kind not in ("hf", "peft") else f"import didact\n\nmodel = didact.load({path!r})"
    return {"name": name, "lines": lines, "also": didact_lines, "opens": opens}

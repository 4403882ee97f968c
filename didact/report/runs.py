"""What the page of a run shows, read from the run's folder."""

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

LATE = ("grad_norm", "lr")  # curves shown after the losses
PLACES = ("model", "data", "options", "metrics", "cost", "files", "warnings", "versions", "argv", "seed")
CHANGES = {"better": "better", "worse": "worse", "unclear": "within the interval", "same": "the same", "": ""}


def told(root: Path) -> dict[str, Any]:
    """Everything `run.html` names.

    Raises:
        UserError: the folder holds no finished run.
    """
    run = read(root / "result.json")
    if not isinstance(run, dict) or "method" not in run or "status" not in run:
        raise UserError(f"{root / 'result.json'}: not a result of didact")
    if run["status"] != "done":
        raise UserError(f"{root}: the run is not finished: repeat its command, which goes on where it stopped")
    if missing := [name for name in PLACES if name not in run]:
        raise UserError(f"{root / 'result.json'}: not a result of didact: no {', '.join(missing)}")
    entry = catalogue.read().get(run["method"], {})
    sides = tables.sides(entry)
    metrics = [_metric(name, m, sides) for name, m in run["metrics"].items()]
    found = _optional(root / "findings.json", files.read_json, run.get("findings") or {})
    models = {what: how for what, how in run["files"].items() if what.split("-")[0] == "model"}
    return {
        "title": run["method"] + (f":{run['preset']}" if run.get("preset") else ""),
        "run": run,
        "entry": entry,
        "link": paper_link(entry),
        "command": shlex.join([*_launched(run), *map(str, run["argv"])]),
        "example": any(d.get("path") == "embedded example" for d in run["data"].values()),
        "metrics": metrics,
        "sides": sides,
        "paired": any(m.get("before") is not None for m in metrics),
        "counts": {
            word: sum(m["moved"] == word for m in metrics if not m["name"].endswith(BESIDE)) for word in CHANGES if word
        },
        "share_axis": plots.share_axis() if any(m["share"] and m["mark"] for m in metrics) else "",
        "golden": any(m.get("gold") is not None for m in metrics),
        "figures": drawing.shown(root),
        "samples": _optional(root / "samples.json", files.read_json, []),
        "answered": dict(zip(run.get("answered", {}), tables.answered(run.get("answered", {})), strict=True)),
        "curves": _curves(_optional(root / "history.jsonl", files.read_lines, [])),
        "findings": findings.blocks(found) if isinstance(found, dict) else [],
        "cost": _cost(run["cost"]),
        "options": _options(run["options"], entry),
        "loads": [load_lines(root, what, how) for what, how in models.items()],
        "others": {what: how for what, how in run["files"].items() if what not in models},
        "folder": shlex.quote(str(root)),
    }


def read(path: Path) -> Any:
    """A JSON file, or one line that says why not."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be read: no such file") from None


def _launched(run: Mapping[str, Any]) -> list[str]:
    """What starts a run as it was started: by a launcher, where there were several processes."""
    world, node = run.get("processes", (1, 1))
    if world == 1:
        return ["didact"]
    nodes = [] if world == node else ["--nnodes", str(world // node)]
    return ["torchrun", *nodes, "--nproc_per_node", str(node), "-m", "didact"]


def _optional(path: Path, read: Callable[[Path], Any], absent: Any) -> Any:
    return read(path) if path.exists() else absent


def paper_link(entry: Mapping[str, Any]) -> str:
    """Where a paper can be read, if its source says so."""
    found = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", entry.get("source", ""))
    return f"https://arxiv.org/abs/{found[1]}" if found else ""


def _metric(name: str, m: Mapping[str, Any], sides: Sequence[str]) -> dict[str, Any]:
    before, after = (svg.number(m.get(which)) for which in ("before", "after"))
    moved = _moved(before, after, m.get("ci"), m.get("better", ""))
    change = after - before
    return {
        **m, "name": name, "help": m.get("help", "").replace("before:", f"{sides[0]}:"),
        "mark": plots.change(m, sides), "share": plots.is_share(m), "moved": moved,
        "change": ("+" if change > 0 else "") + words.number(change) if change == change else "",
    }  # fmt: skip


def _moved(before: float, after: float, ci: Any, better: str) -> str:
    """Whether a number got better, as far as its interval can tell; nothing where no way is better."""
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
    """One small plot per logged column; columns of which nothing is a number are left out."""
    names = [n for n in dict.fromkeys(k for row in history for k in row) if n != "step"]
    names = [n for n in names if any(svg.number(row.get(n)) == svg.number(row.get(n)) for row in history)]
    ordered = [n for n in names if n not in LATE] + [n for n in LATE if n in names]
    return [(n, plots.chart([plots.of_rows(history, n)], "optimiser step", width=300, height=170)) for n in ordered]


def _options(shown: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every option with the method's own value and help; `changed` where somebody set it."""
    known = {**options.flat(entry), **{o["name"]: o for o in entry["fit"]}} if entry else {}
    unknown = {"default": None, "help": ""}
    return [
        {**unknown, **known.get(n, {}), "name": n, **o, "changed": o["from"] != "default"} for n, o in shown.items()
    ]


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, Callable[[float], str], str]] = [
        ("seconds", "time", words.duration, "teaching and scoring"),
        ("tokens", "tokens", words.many, "once for every forward pass of any model, three times when trained"),
        ("flops", "arithmetic", lambda n: f"{words.many(n)} FLOP", "2 per weight and token forward, 4 backward"),
        ("peak_bytes", "peak memory", lambda n: f"{n / 2**20:,.0f} MiB", "of the process, or of the accelerator"),
        ("calls", "calls", words.many, "prompts put to a model, here or on a server"),
    ]
    return [(title, form(cost[name]), help_) for name, title, form, help_ in rows if cost.get(name)]


def load_lines(root: Path, what: str, how: str) -> dict[str, str]:
    """Python lines that load a saved model, and what else opens it."""
    kind, _, opens = how.partition(": ")
    place = str(root / what)
    config: dict[str, Any] = {}
    for name in ("config.json", "adapter_config.json"):
        if (root / what / name).exists():
            config |= read(root / what / name)
    seq2seq = config.get("is_encoder_decoder") or config.get("task_type") == "SEQ_2_SEQ_LM"
    masked = any(str(name).endswith("ForMaskedLM") for name in config.get("architectures") or ())
    task = "Seq2SeqLM" if seq2seq else "MaskedLM" if masked else "CausalLM"
    lines = {
        "hf": f"from transformers import AutoModelFor{task}, AutoTokenizer\n\n"
        f"model = AutoModelFor{task}.from_pretrained({place!r})\ntokenizer = AutoTokenizer.from_pretrained({place!r})",
        "peft": f"from peft import AutoPeftModelFor{task}  # loads the start model too\n\n"
        f"model = AutoPeftModelFor{task}.from_pretrained({place!r})",
        "didact": f"import didact\n\nmodel = didact.load({place!r})",
    }.get(kind, f"# {how}")
    also = "" if kind not in ("hf", "peft") else f"import didact\n\nmodel = didact.load({place!r})"
    return {"name": what, "lines": lines, "also": also, "opens": opens}

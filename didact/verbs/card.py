"""The model card (README.md) of a saved model, with the hub's metadata: what it is, its training, its measures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didact import catalogue, files, untrusted
from didact.verbs import inputs

NAME = "README.md"
LIBRARY = {"peft": "peft", "hf": "transformers"}
OPENED = {
    "peft": "from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained({place!r})",
    "hf": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    "model = AutoModelForCausalLM.from_pretrained({place!r})\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "didact": "import didact\n\nmodel = didact.load({place!r})",
}
Row = tuple[str, float | None, float | None, Sequence[float | None] | None, str]
"""A measure: name, before, after, interval of after, which direction is better."""


def of_run(report: Mapping[str, Any], root: Path) -> None:
    """Write cards for all models of a run, from its result.json."""
    metrics = files.plain(report["metrics"])
    rows = [(n, m["before"], m["after"], m["ci"], m["better"]) for n, m in metrics.items()]
    options = {k: v["value"] for k, v in files.plain(report["options"]).items() if v["from"] != "default"}
    for place, description in report["files"].items():
        if (root / place).is_dir():
            kind = description.partition(":")[0]
            write(root / place, kind, report["method"], report, rows, options)


def of_comparison(board: Mapping[str, Any], root: Path, places: Mapping[str, str]) -> None:
    """Write cards for the models of a comparison, from its leaderboard; `places` are the folders by arm."""
    start: Mapping[str, Any] = next((r for r in board["rows"] if r["arm"] == board["reference"]), {"metrics": {}})
    for row in board["rows"]:
        folder = root / places.get(row["arm"], "?")
        if not folder.is_dir():
            continue
        before = {n: m["mean"] for n, m in start["metrics"].items()}
        rows = [
            (n, before.get(n), m["mean"], (m["low"], m["high"]), board["meaning"].get(n, {}).get("better", ""))
            for n, m in files.plain(row["metrics"]).items()
        ]
        options = {k: row[k] for k in ("lr", "steps") if row[k] is not None}
        kind = "peft" if (folder / "adapter_config.json").exists() else "hf" if _hf(folder) else "didact"
        report = {**board, "model": {"path": board["model"]}, "seed": board["seeds"][0]}
        write(folder, kind, re.split(r"[: ]", row["arm"])[0], report, rows, options)


def write(
    folder: Path, kind: str, method: str, report: Mapping[str, Any], rows: Iterable[Row], options: Mapping[str, Any]
) -> None:
    """Write one card into a model's folder and its seal."""
    text = card(folder.name, kind, method, report, list(rows), options)
    files.add_file(folder, NAME, str(untrusted.cleaned(text)))


def card(
    name: str, kind: str, method: str, report: Mapping[str, Any], rows: Sequence[Row], options: Mapping[str, Any]
) -> str:
    """Return the text of a card: the hub's metadata as YAML, then Markdown."""
    from huggingface_hub import EvalResult, ModelCardData

    entry = catalogue.read().get(method)
    base = str((report.get("model") or {}).get("path") or "")
    hub = base if _on_hub(base) else None
    data = dict(report.get("data", {}))
    results = [
        EvalResult(
            task_type="text-generation", dataset_type="local", dataset_name=", ".join(map(_file, data.values())),
            metric_type=metric, metric_value=after,
        )
        for metric, _, after, _, _ in rows if after is not None
    ]  # fmt: skip
    title = f"{method}-{Path(base).name or 'model'}"
    meta = ModelCardData(
        base_model=hub, library_name=LIBRARY.get(kind, "didact"), pipeline_tag="text-generation",
        tags=["didact", method, *([entry["family"]] if entry else [])],
        model_name=title if results else None, eval_results=results or None,
    )  # fmt: skip
    lines = ["---", meta.to_yaml().strip(), "---", "", f"# {_cell(title)}", ""]
    if entry:
        lines += [f"{entry['help']} Method: `{method}`, *{entry['paper']}* ({entry['year']}, {entry['source']}).", ""]
    lines += [f"Start model: `{_cell(hub or Path(base).name or 'unknown')}`.", ""]
    lines += ["## Use", "", "```python", OPENED[kind].format(place=name), "```", ""]
    if rows:
        lines += [
            "## Measured",
            "",
            "| measure | before | after | 95 % interval | better |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_cell(n)} | {_number(b)} | {_number(a)} | {_interval(ci)} | {better} |" for n, b, a, ci, better in rows
        ]
        lines += [
            "",
            "On held-out records, if the run held some out. `general_*` is on general text.",
            "",
        ]
    if data:
        lines += ["## Data", "", "| as | file | records | sha256 |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {_cell(n)} | {_file(d)} | {d.get('records', '')} | {d.get('sha256', '')} |" for n, d in data.items()
        ]
        lines += [""]
    if options:
        lines += ["## Options", "", *(f"- {_cell(str(k))}: `{_cell(str(v))}`" for k, v in options.items()), ""]
    versions = ", ".join(f"{n} {v}" for n, v in report.get("versions", {}).items())
    lines += [f"Seed {report.get('seed')}; {versions}; didact commit {report.get('didact_commit') or 'unknown'}."]
    return "\n".join(lines) + "\n"


def _on_hub(base: str) -> bool:
    return "/" in base and bool(inputs.HUB_ID.fullmatch(base)) and not Path(base).exists()


def _hf(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _file(source: Mapping[str, Any]) -> str:
    """Return a file's name without its folder, which is private."""
    return _cell(Path(str(source.get("path", ""))).name)


def _cell(text: str) -> str:
    return re.sub(r"[|`<>\s]+", " ", text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(ci: Sequence[float | None] | None) -> str:
    return f"{_number(ci[0])} .. {_number(ci[1])}" if ci and None not in ci else ""

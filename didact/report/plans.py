"""A plan as text: in the terminal, and on its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from didact.report import drawing, runs, words
from didact.types import UserError

REQUIRED = ("model", "cluster", "best", "rows", "counts", "why", "groups", "figures")
GROUP_NAMES = {"tp": "tensor parallel", "dp": "data parallel", "pp": "pipeline"}
COLUMNS = ("pp", "dp", "tp", "micro", "recompute", "zero", "s a step", "TFLOP/s a GPU", "MFU", "idle", "GiB a GPU")


def show(plan: Mapping[str, Any], console: Console) -> None:
    """Print the plan in the terminal."""
    for line in lead(plan):
        console.print(line)
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "recompute" else "right")
    for row in plan["rows"] or [plan["best"]]:
        table.add_row(*cells(row))
    console.print("", table, "")
    if plan["why"]:
        console.print("why the first is the first:")
    for line in plan["why"]:
        console.print(f"  {line}")
    for line in facts(plan):
        console.print(line)


def lead(plan: Mapping[str, Any]) -> list[str]:
    """Lines on the model, the cluster, and the layouts that were searched."""
    model, cluster, counts = plan["model"], plan["cluster"], plan["counts"]
    best = plan["best"]
    layouts = f"layouts: {counts['fit']:,} fit, {counts['too_large']:,} too large, {counts['illegal']:,} not legal"
    if not plan["fits"]:
        needed = best["memory_bytes"] / 2**30
        layouts += f": the smallest takes {needed:,.1f} GiB of {cluster['memory'] / 2**30:,.1f} (take more GPUs)"
    return [
        f"{model['name'] or 'model'}: {model['parameters']:,} parameters ({model['layers']} layers, "
        f"{model['hidden']} wide, {model['heads']} heads, vocabulary {model['vocab']:,}), "
        f"{model['context']} tokens a row",
        f"{cluster['gpus']:,} GPUs, {cluster['gpus_per_node']} a node: {cluster['memory'] / 2**30:,.1f} GiB, "
        f"{cluster['peak'] / 1e12:g} TFLOP/s at {cluster['efficiency']:.3g}; batch {plan['batch']:,}",
        layouts,
    ]


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a layout's row in the table."""
    layout = row["layout"]
    stages = f"{layout['pp']}x{layout['chunks']}" if layout["chunks"] > 1 else str(layout["pp"])
    return [
        stages, str(layout["dp"]), str(layout["tp"]), str(layout["micro"]), layout["recompute"], str(layout["zero"]),
        f"{row['step_seconds']:.4g}", f"{row['rate'] / 1e12:.1f}", f"{row['mfu']:.1%}", f"{row['bubble']:.1%}",
        f"{row['memory_bytes'] / 2**30:.1f}",
    ]  # fmt: skip


def facts(plan: Mapping[str, Any]) -> list[str]:
    """Lines on what follows from the best layout: groups, traffic, the whole run, and a measured step."""
    traffic = plan["traffic"]
    lines = [
        f"{GROUP_NAMES[name]}: {groups:,} group{'s' * (groups != 1)}, "
        f"{f'{across_nodes:,} across nodes' if across_nodes else 'inside nodes'}; "
        f"{traffic[name] / 2**30:,.2f} GiB a GPU and step"
        for name, (groups, across_nodes) in plan["groups"].items()
        if plan["best"]["layout"][name] > 1
    ]
    if run := plan.get("run"):
        cost = f", cost {run['cost']:,.0f}" if "cost" in run else ""
        ramp = f" (batch from {run['ramp'][0]} in steps of {run['ramp'][1]})" if run["ramp"] else ""
        lines.append(
            f"{run['tokens'] / 1e9:,.4g} billion tokens: {run['steps']:,} steps{ramp}, "
            f"{run['seconds'] / 86400:,.1f} days, {run['gpu_hours']:,.0f} GPU hours{cost}"
        )
    if m := plan.get("measured"):
        lines.append(
            f"measured {m['seconds']:g} s a step with {m['layout']}: {m['rate'] / 1e12:.1f} TFLOP/s a GPU "
            f"({m['model_rate'] / 1e12:.1f} without recomputation, MFU {m['mfu']:.1%}); "
            f"matrix products at {m['efficiency']:.3f} of the peak"
        )
    return lines


def template_context(root: Path) -> dict[str, Any]:
    """Return the context of `plan.html`.

    Raises:
        UserError: the file is not a plan of didact.
    """
    path = root / "plan.json"
    plan = runs.read(path)
    if not isinstance(plan, dict) or any(name not in plan for name in REQUIRED):
        raise UserError(f"{path}: not a plan of didact")
    try:
        best = plan["best"]
        return {
            "title": f"plan of {plan['model']['name'] or 'a model'}", "lead": lead(plan), "best": best,
            "fits": plan["fits"], "columns": COLUMNS, "rows": [cells(row) for row in plan["rows"] or [best]],
            "why": plan["why"], "facts": facts(plan), "illegal": plan["illegal"],
            "tokens": words.many(best["tokens_per_second"]),
            "pictures": [(str(f["title"]), drawing.draw(f), str(f["note"])) for f in plan["figures"]],
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not a plan of didact ({error}); run its command again") from None

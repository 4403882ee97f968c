"""The table and plot of `examples/tofu.py`, from the units done so far: docs/tofu.md and docs/tofu.svg.

python examples/tofu_report.py --out results/tofu --docs docs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import tofu

from didact import files
from didact.evaluate import statistics

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLUMNS = {
    "ks": "KS to gold",
    "log10_p": "log10 p",
    "utility": "utility, unseen retain",
    "retain_accuracy": "accuracy, unseen retain",
    "forget_accuracy": "accuracy, forget",
    "forget_extraction": "extraction",
    "forget_entropy": "entropy, forget (nats)",
    "membership": "membership AUC",
    "relearned_seen": "relearned, taught half",
    "relearned_unseen": "relearned, other half",
}


SETTING = ("arm", "lr", "beta")
LONGER = {
    "ks": "KS to gold", "utility": "utility, unseen retain", "retain_accuracy": "accuracy, unseen retain",
    "forget_accuracy": "accuracy, forget", "criterion": "criterion",
}  # fmt: skip
SEARCH = ("criterion", "ks", "retain_accuracy")
CURVES = {"ks": ("KS to gold", "-"), "utility": ("utility", "--"), "forget_accuracy": ("forget accuracy", ":")}


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/tofu"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    units = [files.read_json(p) for p in sorted((args.out / "units").glob("*.json"))]
    anchors = files.read_json(args.out / "anchors.json")
    picks = {arm: tofu.chosen(args.out, arm, 2, "budget") for arm in tofu.ARMS}
    tests = {
        arm: [u for u in units if pick and u["seed"] != tofu.TUNING_SEED and all(u[k] == pick[k] for k in SETTING)]
        for arm, pick in picks.items()
    }
    done = {arm: rows for arm, rows in tests.items() if rows}
    plot(done, anchors, args.docs / "tofu.svg")
    intro = Path(__file__).with_name("tofu_intro.md").read_text(encoding="utf-8")
    for mark, value in (
        ("GOLD_MEMBERSHIP", anchors["gold"]["membership"]),
        ("FULL_FACTS", anchors["full"]["facts"]),
        ("FULL_AUTHORS", anchors["full"]["authors"]),
    ):
        intro = intro.replace(mark, f"{value:.2f}")
    reading = Path(__file__).with_name("tofu_reading.md")
    parts = [
        intro,
        *([reading.read_text(encoding="utf-8")] if reading.exists() else []),
        table(done, anchors),
        "![Trajectories of every preset](tofu.svg)",
        tuning(units),
        *longer(args.out, picks),
    ]
    with files.new_file(args.docs / "tofu.md") as beside:
        beside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def table(done: dict[str, list[dict[str, Any]]], anchors: dict[str, Any]) -> str:
    """Return one line per preset: mean and half-width of the 95 % t interval over seeds."""
    lines = ["## Results at a fixed price", "", "| model | seeds | lr, beta | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("| --- " * (3 + len(COLUMNS)) + "|")
    names = {"full": "*full* (start)", "gold": "*gold*", "gold2": "*gold, other seed* (ceiling)"}
    for name, label in names.items():
        lines.append(f"| {label} | 1 | | " + " | ".join(f"{anchors[name][c]:.2f}" for c in COLUMNS) + " |")
    for arm, rows in sorted(done.items(), key=lambda item: mean(item[1], "ks")):
        cells = " | ".join(cell(rows, c) for c in COLUMNS)
        beta = f", {rows[0]['beta']:g}" if rows[0]["beta"] is not None else ""
        lines.append(f"| `{arm}` | {len(rows)} | {rows[0]['lr']:g}{beta} | {cells} |")
    return "\n".join(lines)


def cell(rows: list[dict[str, Any]], column: str) -> str:
    """Format the mean over seeds, with the half-width of its t interval from two seeds on."""
    interval = statistics.mean_interval([r[column] for r in rows])
    half = (interval.high - interval.low) / 2
    return f"{interval.estimate:.2f}" + (f" ± {half:.2f}" if len(rows) > 1 else "")


def tuning(units: list[dict[str, Any]]) -> str:
    """Return the search of every preset: criterion, KS and accuracy on unseen retain at each setting."""
    text = "Criterion / KS / accuracy on unseen retain, at the last step, tuning seed."
    lines = ["## The search", "", text, ""]
    lines += ["| preset | beta | " + " | ".join(f"lr {lr:g}" for lr in tofu.RATES) + " |"]
    lines += ["| --- " * (2 + len(tofu.RATES)) + "|"]
    by_setting = {(u["arm"], u["lr"], u["beta"]): u for u in units if u["seed"] == tofu.TUNING_SEED}
    for arm in tofu.ARMS:
        for beta in tofu.BETAS.get(arm, (None,)):
            cells = [by_setting.get((arm, lr, beta)) for lr in tofu.RATES]
            columns = " | ".join("not run" if c is None else " / ".join(f"{c[k]:.2f}" for k in SEARCH) for c in cells)
            lines.append(f"| `{arm}` | {beta if beta is not None else ''} | {columns} |")
    return "\n".join(lines)


def longer(out: Path, picks: dict[str, Any]) -> list[str]:
    """Compare the chosen settings with themselves at twice the steps; empty where that did not run."""
    lines = [
        "## Twice the steps",
        "",
        "The settings chosen above, 5 epochs / 10 epochs, tuning seed. Nothing was searched at 10.",
        "",
        "| preset | lr, beta | " + " | ".join(LONGER.values()) + " |",
        "| --- " * (2 + len(LONGER)) + "|",
    ]
    done = 0
    for arm, pick in picks.items():
        if pick and (path := tofu.place(out, arm, pick["lr"], pick["beta"], tofu.TUNING_SEED, "longer")).exists():
            twice, done = files.read_json(path), done + 1
            beta = f", {pick['beta']:g}" if pick["beta"] is not None else ""
            cells = " | ".join(f"{pick[c]:.2f} / {twice[c]:.2f}" for c in LONGER)
            lines.append(f"| `{arm}` | {pick['lr']:g}{beta} | {cells} |")
    return ["\n".join(lines)] if done else []


def plot(done: dict[str, list[dict[str, Any]]], anchors: dict[str, Any], path: Path) -> None:
    """Plot KS and utility along training, mean over seeds, one small panel per preset."""
    columns = 4
    height = max(1, -(-len(done) // columns))
    figure, axes = plt.subplots(height, columns, figsize=(11, 2.3 * height), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(done) :]:
        axis.set_visible(False)
    for axis, (arm, rows) in zip(axes.flat, done.items(), strict=False):
        steps = [point["step"] for point in rows[0]["trajectory"]]
        for column, (label, style) in CURVES.items():
            curves = [[point[column] for point in row["trajectory"]] for row in rows]
            axis.plot(steps, [sum(c) / len(c) for c in zip(*curves, strict=True)], style, label=label)
        axis.axhline(anchors["gold2"]["ks"], color="grey", linewidth=0.6)
        axis.set_title(arm, fontsize=9)
        axis.set_ylim(0, 1.02)
    axes.flat[0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("optimiser step", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Title": "KS, utility and forget accuracy while unlearning"})


def mean(rows: list[dict[str, Any]], column: str) -> float:
    """Return the mean of a column over seeds."""
    return sum(r[column] for r in rows) / len(rows)


if __name__ == "__main__":
    main()

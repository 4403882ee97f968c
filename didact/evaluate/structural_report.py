"""Battery scores as metrics, warnings and figures: each arm against the one without forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from didact import figures
from didact.types import Metric

Battery = Mapping[str, Mapping[str, Any]]
ENDS = ("estimate", "low", "high")
NAMES = {
    "start": "initial model",
    "none": "no forgetting",
    "active": "active",
    "temporary": "temporary",
    "probabilistic": "probabilistic",
}
HELP = {
    "seen": "sentences as in training",
    "tail": "rare words",
    "conflict": "the context's answer where the weights say otherwise",
    "conflict_tail": "rare words, where the weights say otherwise",
    "unseen": "words that training never had",
    "ambiguous": "words that occur as both",
    "plain": "words that occur as one",
    "repeated": "the second token of a repeated pair",
}
CHOICE = "share answered as the context says"


def metrics(after: Battery, before: Battery, baseline: str) -> dict[str, Metric]:
    """Every set's accuracy; `baseline` names the model of the value before."""
    return {
        f"{task}_accuracy": Metric(
            after=scores["accuracy"]["estimate"],
            before=before[task]["accuracy"]["estimate"] if task in before else None,
            n=scores["n"],
            ci=(scores["accuracy"]["low"], scores["accuracy"]["high"]),
            better="higher",
            help=f"{HELP.get(task, task)}; before: {baseline}",
        )
        for task, scores in after.items()
        if "(" not in task
    }


def warnings(after: Battery, plain: Battery) -> list[str]:
    """Warn about sets on which forgetting is not shown to help."""
    out = []
    for task in ("unseen", "conflict"):
        if task in after and task in plain:
            low, without = after[task]["accuracy"]["low"], plain[task]["accuracy"]["estimate"]
            if low <= without:
                out.append(
                    f"{HELP[task]}: not shown to be better than without forgetting ({without:.2f}); forget more "
                    "(forget.share, forget.every) or for longer (forget.until, steps)"
                )
    return out


def plots(arms: Mapping[str, Battery], over: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[figures.Figure]:
    """Figures: each set's final accuracy by arm, and accuracy over training on the unseen and conflict sets."""
    tasks = dict.fromkeys(task for scores in arms.values() for task in scores)
    out: list[figures.Figure] = [
        figures.Bars(
            title="What each model answers at the end",
            x=CHOICE,
            bars=[
                bar(NAMES.get(arm, arm), scores[task]["accuracy"], HELP.get(task, task))
                for task in tasks
                if "(" not in task
                for arm, scores in arms.items()
                if task in scores
            ],
        )
    ]
    for task in ("unseen", "conflict"):
        lines = [
            figures.Line(
                NAMES.get(arm, arm),
                [row["step"] for row in rows],
                *([row[task][name] for row in rows] for name in ENDS),
            )
            for arm, rows in over.items()
            if rows and task in rows[0]
        ]
        if lines:
            out.append(figures.Curves(title=f"Over training: {HELP[task]}", x="step", y=CHOICE, lines=lines))
    return out


def bar(name: str, interval: Mapping[str, float], group: str = "") -> figures.Bar:
    """A bar with its interval."""
    return figures.Bar(name, interval["estimate"], interval["low"], interval["high"], group)


def bins(arms: Mapping[str, Battery]) -> figures.Figure:
    """Loss by frequency of the token."""
    names = {"all": "all tokens", "head": "most frequent half", "middle": "next 40 %", "tail": "rarest tenth"}
    return figures.Bars(
        title="Held-out loss by frequency of the token",
        x="nats a token",
        bars=[
            bar(NAMES.get(arm, arm), losses[bin_]["loss"], text)
            for bin_, text in names.items()
            for arm, losses in arms.items()
            if bin_ in losses
        ],
    )

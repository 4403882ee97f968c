"""Report on an in-context regressor: everything that `prism` measures, metrics and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from didact import figures
from didact.data.streams import Tensors
from didact.evaluate import prism, statistics
from didact.evaluate.references import bayes
from didact.learn import fit as loop
from didact.learn import functions
from didact.models.model import Model
from didact.models.sequence import SequenceLearner
from didact.models.untrained import untrained
from didact.types import Metric, UserError

REPORT, WATCHED = 1, 2  # seed components of held-out draws
LOSS = functions.position_loss
SHOWN = 200  # prompts for measurements with many queries


class Watch:
    """Monitors loss and distance from Bayes during training, on prompts like the training ones and from outside."""

    def __init__(self, law: Any, outside: Mapping[str, Any], seed: int, steps: int, looks: int) -> None:
        self.parts = {"trained on": law, **outside}
        self.batches = {name: part((seed, 0, WATCHED), SHOWN) for name, part in self.parts.items()} if looks else {}
        self.hook = loop.every(max(1, steps // max(looks, 1)), self._look)
        self.hooks = (self.hook,) if looks else ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The recorded measurements."""
        return self.hook.rows

    def _look(self, step: loop.Step) -> dict[str, Any]:
        out: dict[str, Any] = {"step": step.step}
        for name, batch in self.batches.items():
            y = batch["y"][..., 0].double()
            guess = prism.predict(step.module, batch["x"], batch["y"])
            out[f"{name}: loss"] = float((guess - y).square().mean())
            if (best := bayes.exact(self.parts[name])) is not None:
                out[f"{name}: from Bayes"] = float((guess - best(batch["x"], y).mean).square().mean())
        return out


def checked(module: Any, law: Any) -> nn.Module:
    """Return a user's saved learner in eval mode if it fits the function class.

    Raises:
        UserError: it is another kind of module, or has other numbers of inputs or outputs.
    """
    if not isinstance(module, SequenceLearner) or (module.inputs, module.outputs) != (law.dim, 1):
        raise UserError(
            f"a learner of functions with {law.dim} inputs and one target is needed: this is a "
            f"{type(module).__name__}{getattr(module, 'spec', '')}: set functions.dim, or give one trained here"
        )
    return module.eval()


def examine(
    module: nn.Module, law: Any, outside: Mapping[str, Any], count: int, after: int, seed: int
) -> dict[str, Any]:
    """Run all measurements on one learner, with the loss of an untrained copy."""
    batch: Tensors = law((seed, 0, REPORT), count)
    x, y = batch["x"], batch["y"]
    guess = prism.predict(module, x, y)
    out = prism.examine(guess, batch, prism.reference_predictors(law), "prompts as trained")
    blank: Any = untrained(Model(module, kind="module"), seed).module
    untrained_guess = prism.predict(blank, x, y)
    out["untrained"] = {"loss": float((untrained_guess - y[..., 0]).square().mean())}
    out["order"] = _order(module, batch, guess)
    out["outside"] = {
        name: prism.examine(
            prism.predict(module, (shifted := other_law((seed, 0, REPORT), count))["x"], shifted["y"]), shifted,
            prism.reference_predictors(other_law), name,
        )
        for name, other_law in outside.items()
    }  # fmt: skip
    subset = Tensors({k: v[:SHOWN] for k, v in batch.tensors.items()})
    first = law.parts[0] if isinstance(law, functions.Mixture) else law
    if bayes.exact(law) is not None and getattr(first, "basis", "linear") == "linear":
        out["implied_weights"] = prism.weights_report(module, subset, law, after or law.rows // 2)
    if getattr(first, "basis", "") == "fourier":
        lengths = tuple(sorted({min(n, law.rows - 1) for n in (1, 2, 4, 8, 16, 32)}))
        small = Tensors({k: v[:40] for k, v in batch.tensors.items()})
        out["spectrum"] = prism.frequencies(module, small, first.half_width, lengths)
    return out


def _order(module: nn.Module, batch: Tensors, guess: Any) -> dict[str, Any]:
    """How much the last prediction changes when the rows before it are permuted; the Bayes predictor's does not."""
    count, length = min(SHOWN, len(batch["x"])), batch["x"].shape[1]
    order = torch.cat(
        [torch.randperm(length - 1, generator=torch.Generator().manual_seed(0)), torch.tensor([length - 1])]
    )
    permuted = prism.predict(module, batch["x"][:count][:, order], batch["y"][:count][:, order])
    return dict(statistics.mean_interval((permuted[:, -1] - guess[:count, -1]).square().numpy())._asdict())


def predictor(module: Any) -> Callable[[Any, Any, Any], Any]:
    """`(x (N, d), y (N,), query (M, d)) -> (M,)`, each query answered separately."""

    def predict(x: Any, y: Any, query: Any) -> Any:
        rows, targets, queries = (torch.from_numpy(np.asarray(v, dtype=np.float32)) for v in (x, y, query))
        return prism.answers(module, rows[None], targets[None, :, None], torch.atleast_2d(queries)[None])[0].numpy()

    return predict


def metrics(report: Mapping[str, Any], count: int) -> tuple[dict[str, Metric], list[str]]:
    """Loss, the excess over the exact floor, and the distance from Bayes, if it is known."""

    def metric(
        interval: Mapping[str, float], text: str, before: float | None = None, gold: float | None = None
    ) -> Metric:
        better: Literal["lower"] = "lower"
        return Metric(
            after=interval["estimate"],
            before=before,
            gold=gold,
            n=count,
            ci=(interval["low"], interval["high"]),
            better=better,
            help=text,
        )

    bayes_loss = report["distance"].get("Bayes", {}).get("reference_loss", {}).get("estimate")
    untrained_loss = report["untrained"]["loss"]
    out = {
        "loss": metric(
            report["loss"], "squared error over all positions; before: untrained", untrained_loss, bayes_loss
        )
    }
    if "excess" in report:
        out["excess"] = metric(report["excess"], "loss above the exact Bayes predictor's on the same prompts")
        out["distance_to_bayes"] = metric(report["distance"]["Bayes"], "mean square of the difference in prediction")
    zero = report["distance"]["zero"]["reference_loss"]["estimate"]
    warnings = [] if report["loss"]["high"] < 0.9 * zero else ["hardly better than answering 0: train longer"]
    return out, warnings


def pictures(report: Mapping[str, Any]) -> list[figures.Figure]:
    """Figures: in-context curves with the Bayes floor, distances, recognition, spectrum, and losses over training."""

    def line(name: str, curve: Mapping[str, Any]) -> figures.Line:
        return figures.Line(name, list(range(len(curve["estimate"]))), curve["estimate"], curve["low"], curve["high"])

    # Least squares and the like can be off by thousands near as many rows as inputs and would flatten the rest.
    limit = 3 * max(report["curves"]["zero"]["estimate"])
    plotted = [n for n, c in report["curves"].items() if n not in ("averaging", "3 neighbours")]
    plotted = [n for n in plotted if max(report["curves"][n]["estimate"]) < limit][:6]
    out: list[figures.Figure] = [
        figures.Curves(
            title="Loss as examples come in", x="examples before", y="squared error",
            lines=[line(n, report["curves"][n]) for n in plotted], note="Bayes is exact: nothing can be below it.",
        ),
        figures.Bars(
            title="Distance from reference predictors", x="mean square of the difference in prediction",
            bars=[figures.Bar(n, d["estimate"], d["low"], d["high"]) for n, d in report["distance"].items()],
        ),
    ]  # fmt: skip
    if "slope" in report.get("recognition", {}):
        beta = report["recognition"]["beta"]
        out.append(
            figures.Curves(
                title="Which part is it?", x="examples before", y="weight of the true part", lines=[line("Bayes", beta)]
            )
        )
    if "spectrum" in report:
        spectrum = report["spectrum"]
        out.append(
            figures.Heat(
                title="Spectrum of the predicted function", x="frequency", y="examples before", value="energy",
                columns=list(range(len(spectrum["energy"][0]))), rows=spectrum["lengths"], values=spectrum["energy"],
            )
        )  # fmt: skip
    if rows := report.get("looks"):
        steps, names = [row["step"] for row in rows], [k for k in rows[0] if k.endswith(": loss")]
        lines = [figures.Line(n.removesuffix(": loss"), steps, [r[n] for r in rows]) for n in names]
        out.append(figures.Curves(title="Over training", x="step", y="squared error", lines=lines))
    return out

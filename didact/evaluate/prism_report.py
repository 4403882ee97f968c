"""The report of an in-context regressor through the Bayesian prism: everything `prism` measures, metrics, pictures."""

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

REPORT, WATCHED = 1, 2  # tags of draws that training never sees
LOSS = functions.position_loss
SHOWN = 200  # prompts of the parts that ask a learner many times


class Watch:
    """Looks at a training now and then: loss and distance from Bayes, on prompts as trained and from outside."""

    def __init__(self, law: Any, outside: Mapping[str, Any], seed: int, steps: int, looks: int) -> None:
        self.parts = {"trained on": law, **outside}
        self.batches = {name: one((seed, 0, WATCHED), SHOWN) for name, one in self.parts.items()} if looks else {}
        self.hook = loop.every(max(1, steps // max(looks, 1)), self._look)
        self.hooks = (self.hook,) if looks else ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was seen."""
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
    """A user's saved learner, if it learns such functions.

    Raises:
        UserError: it is another module, or of other inputs.
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
    """Everything of one learner, beside an untrained copy."""
    batch: Tensors = law((seed, 0, REPORT), count)
    x, y = batch["x"], batch["y"]
    guess = prism.predict(module, x, y)
    out = prism.examine(guess, batch, prism.named(law), "prompts as trained")
    fresh: Any = untrained(Model(module, kind="module"), seed).module
    idle = prism.predict(fresh, x, y)
    out["untrained"] = {"loss": float((idle - y[..., 0]).square().mean())}
    out["order"] = _order(module, batch, guess)
    out["outside"] = {
        name: prism.examine(
            prism.predict(module, (shifted := one((seed, 0, REPORT), count))["x"], shifted["y"]), shifted,
            prism.named(one), name,
        )
        for name, one in outside.items()
    }  # fmt: skip
    some = Tensors({k: v[:SHOWN] for k, v in batch.tensors.items()})
    first = law.parts[0] if isinstance(law, functions.Mixture) else law
    if bayes.exact(law) is not None and getattr(first, "basis", "linear") == "linear":
        out["implied_weights"] = prism.weights_report(module, some, law, after or law.rows // 2)
    if getattr(first, "basis", "") == "fourier":
        lengths = tuple(sorted({min(n, law.rows - 1) for n in (1, 2, 4, 8, 16, 32)}))
        few = Tensors({k: v[:40] for k, v in batch.tensors.items()})
        out["spectrum"] = prism.frequencies(module, few, first.half_width, lengths)
    return out


def _order(module: nn.Module, batch: Tensors, guess: Any) -> dict[str, Any]:
    """How much the last prediction moves when the rows before it come in another order; Bayes does not move."""
    some, length = min(SHOWN, len(batch["x"])), batch["x"].shape[1]
    order = torch.cat(
        [torch.randperm(length - 1, generator=torch.Generator().manual_seed(0)), torch.tensor([length - 1])]
    )
    again = prism.predict(module, batch["x"][:some][:, order], batch["y"][:some][:, order])
    return dict(statistics.mean_interval((again[:, -1] - guess[:some, -1]).square().numpy())._asdict())


def predictor(module: Any) -> Callable[[Any, Any, Any], Any]:
    """`(x (N, d), y (N,), query (M, d)) -> (M,)`, each query asked by itself."""

    def predict(x: Any, y: Any, query: Any) -> Any:
        rows, shown, asked = (torch.from_numpy(np.asarray(v, dtype=np.float32)) for v in (x, y, query))
        return prism.answers(module, rows[None], shown[None, :, None], torch.atleast_2d(asked)[None])[0].numpy()

    return predict


def metrics(found: Mapping[str, Any], count: int) -> tuple[dict[str, Metric], list[str]]:
    """Loss, the excess over the exact floor, and the distance from Bayes, where there is one."""

    def metric(of: Mapping[str, float], text: str, before: float | None = None, gold: float | None = None) -> Metric:
        better: Literal["lower"] = "lower"
        return Metric(
            after=of["estimate"],
            before=before,
            gold=gold,
            n=count,
            ci=(of["low"], of["high"]),
            better=better,
            help=text,
        )

    bayes_loss = found["distance"].get("Bayes", {}).get("reference_loss", {}).get("estimate")
    idle = found["untrained"]["loss"]
    out = {"loss": metric(found["loss"], "squared error over all positions; before: untrained", idle, bayes_loss)}
    if "excess" in found:
        out["excess"] = metric(found["excess"], "loss above the exact Bayes predictor's on the same prompts")
        out["distance_to_bayes"] = metric(found["distance"]["Bayes"], "mean square of the difference in prediction")
    zero = found["distance"]["zero"]["reference_loss"]["estimate"]
    told = [] if found["loss"]["high"] < 0.9 * zero else ["hardly better than answering 0: train longer"]
    return out, told


def pictures(found: Mapping[str, Any]) -> list[figures.Figure]:
    """In-context curves with the Bayes floor, distances, recognition, spectra, and what training forgot."""

    def line(name: str, curve: Mapping[str, Any]) -> figures.Line:
        return figures.Line(name, list(range(len(curve["estimate"]))), curve["estimate"], curve["low"], curve["high"])

    # Least squares and its kin can be off by thousands where rows are as many as inputs: they would flatten the rest.
    most = 3 * max(found["curves"]["zero"]["estimate"])
    shown = [n for n, c in found["curves"].items() if n not in ("averaging", "3 neighbours")]
    shown = [n for n in shown if max(found["curves"][n]["estimate"]) < most][:6]
    out: list[figures.Figure] = [
        figures.Curves(
            title="Loss as examples come in", x="examples before", y="squared error",
            lines=[line(n, found["curves"][n]) for n in shown], note="Bayes is exact: nothing can be below it.",
        ),
        figures.Bars(
            title="Distance from reference predictors", x="mean square of the difference in prediction",
            bars=[figures.Bar(n, d["estimate"], d["low"], d["high"]) for n, d in found["distance"].items()],
        ),
    ]  # fmt: skip
    if "slope" in found.get("recognition", {}):
        beta = found["recognition"]["beta"]
        out.append(
            figures.Curves(
                title="Which part is it?", x="examples before", y="weight of the true part", lines=[line("Bayes", beta)]
            )
        )
    if "spectrum" in found:
        told = found["spectrum"]
        out.append(
            figures.Heat(
                title="Spectrum of the predicted function", x="frequency", y="examples before", value="energy",
                columns=list(range(len(told["energy"][0]))), rows=told["lengths"], values=told["energy"],
            )
        )  # fmt: skip
    if rows := found.get("looks"):
        steps, names = [row["step"] for row in rows], [k for k in rows[0] if k.endswith(": loss")]
        seen = [figures.Line(n.removesuffix(": loss"), steps, [r[n] for r in rows]) for n in names]
        out.append(figures.Curves(title="Over training", x="step", y="squared error", lines=seen))
    return out

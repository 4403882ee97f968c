"""KUL: gradient ascent, a few records at a time, with a stop rule (Jang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from didact.bounds import Count, Whole
from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.evaluate import memorisation
from didact.learn import language, specialists
from didact.learn.fit import Hook, Step, StopWhen, Term
from didact.methods.unlearning.survey import SURVEY, UNLEARN
from didact.models import adapters
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Fit, Result


@method("unlearning-survey.kul", **SURVEY, gives=("models", "findings"), kinds=("causal",), protocol=("forget",))
def kul(
    model: Model,
    forget: Sequence[Demo],
    unseen: Sequence[Demo] | None = None,
    *,
    chunk: Whole = 8,
    n: Count = 10,
    every: Count = 1,
    fit: Fit = UNLEARN,
    hooks: Sequence[Hook] = (),
) -> Result:
    """Gradient ascent, a few records at a time, until they are no better known than unseen text (KUL).

        L = mean log p(x_t | x_<t),   stop when EL_n and MA of every record are below their means on `unseen`

    MA is the share of tokens that are the first choice; EL_n the share of n-grams in the model's continuations, from
    every prefix of the text, that are in the true continuation.

    Args:
        model: a causal model; left unchanged.
        forget: records whose completions must go.
        unseen: records of the same kind that no model has seen, for the stop rule; without them ascent runs to its end.
        chunk: records forgotten together, one chunk after another; 0 takes all at once.
        n: n of EL.
        every: epochs between two checks of the stop rule.
        fit: how to ascend on one chunk, at most.
        hooks: called around every step.

    Raises:
        UserError: the loss became NaN.
    """
    rows = specialists.rows(model, forget, "forget")
    limits = memorisation.mean(model, specialists.rows(model, unseen, "unseen"), n) if unseen else None
    result, current, steps = Result(), model, []
    size = chunk or len(rows)
    for number, start in enumerate(range(0, len(rows), size)):
        part = rows[start : start + size]
        rule = [_stop_rule(current, part, n, limits, max(1, every * max(1, len(part) // fit.rows)))] if limits else []
        trained = language.train(
            current, {"forget": language.single(part)}, _ascent, fit.replace(rows=min(fit.rows, len(part))),
            hooks=[*hooks, *rule], name=f"kul-{number}",
        )  # fmt: skip
        # Adapters cannot be stacked, and one on weights that are saved nowhere could not be loaded.
        current = adapters.merged(trained.model) if fit.lora and size < len(rows) else trained.model
        result.history += trained.history
        result.cost.tokens += trained.cost.tokens
        result.cost.flops += trained.cost.flops
        steps.append(len(trained.history))
    el, ma = memorisation.mean(current, rows, n)
    result.models = {"model": current}
    result.findings = {"el": el, "ma": ma, "threshold": limits, "steps": steps}
    if not unseen:
        result.warnings.append("no unseen records: ascent has no stop rule, and its end is decided by the steps")
    return result


def _stop_rule(
    model: Model, rows: Sequence[TokenizedExample], n: int, limits: tuple[float, float], steps: int
) -> StopWhen:
    """Stop once every row is at or below both limits; check every so many steps."""

    def below(step: Step) -> bool:
        if (step.step + 1) % steps:
            return False
        module: Any = step.module
        current = Model(module, model.processor, model.kind)
        scores = [memorisation.memorised(current, r, n) for r in rows]
        return all(k.el <= limits[0] and k.ma <= limits[1] for k in scores)

    return StopWhen(below)


def _ascent(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"forget": language.cross_entropy(student, micro, weight=-1.0)}

"""Direct preference optimisation: the preference baseline people use today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from didact.data import encode
from didact.data.streams import Micro
from didact.learn import language
from didact.learn.fit import Hook, Term
from didact.models.model import Model
from didact.objectives import preference
from didact.registry import method
from didact.types import Fit, Preference, Result, UserError


@method(
    "dpo",
    paper="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    year=2023,
    source="arXiv:2305.18290",
    protocol="prefer",
    baseline=True,
)
def dpo(
    model: Model,
    preferences: Sequence[Preference],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    fit: Fit = Fit(lr=1e-6, epochs=1, rows=32, warmup=0.1),  # noqa: B008  (Fit is frozen)
    hooks: Sequence[Hook] = (),
) -> Result:
    """Teach a model to prefer one completion to another, without a reward model.

        L = -mean log sigmoid(beta ((logp_w - ref_w) - (logp_l - ref_l)))

    logp is the SUM over completion tokens; ref is the model as it came.

    Args:
        model: a causal or seq2seq model; it stays as it was, a taught copy is returned.
        preferences: prompts with a chosen and a rejected completion.
        beta: how far the model may move from where it came from; larger stays closer.
        label_smoothing: the share of pairs assumed to be labelled the wrong way round.
        fit: how to train.
        hooks: called around every step.

    Raises:
        UserError: a completion longer than the context; the loss became NaN.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise UserError(f"beta = {beta}, label_smoothing = {label_smoothing}: beta above 0, smoothing in [0, 0.5)")
    sides = [
        encode.rows(model.tokenizer, pairs, model.kind, model.context, "preferences")
        for pairs in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    ]
    items = list(zip(*sides, strict=True))
    ref = language.reference_logp(model, items).to(model.device)

    def terms(student: Model, micro: Micro) -> Mapping[str, Term]:
        logp, _ = language.sequence_logp(student, micro)
        was = ref[micro.index]
        losses = preference.dpo(logp[:, 0], logp[:, 1], was[:, 0], was[:, 1], beta, label_smoothing)
        margin = beta * ((logp - was)[:, 0] - (logp - was)[:, 1]).detach()
        won = (margin > 0).to(margin)
        return {
            "dpo": Term(losses.sum(), "pairs.rows"),
            "margin": Term(margin.sum(), "pairs.rows", 0.0),
            "accuracy": Term(won.sum(), "pairs.rows", 0.0),
        }

    options = {"beta": beta, "label_smoothing": label_smoothing}
    taught = language.teach(model, {"pairs": items}, terms, fit, hooks=hooks, name="dpo", identity=options)
    return Result(models={"model": taught.model}, history=taught.history, cost=taught.cost)

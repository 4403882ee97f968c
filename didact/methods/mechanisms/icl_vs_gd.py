"""Do pretrained Transformers Learn In-Context by Gradient Descent? (Shen, Mishra and Khashabi 2024)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from didact.bounds import BelowOne, Count, Positive, Whole
from didact.evaluate import equivalence, layer_tests, three_way
from didact.learn.subset import Tuning
from didact.models.model import Model
from didact.registry import method
from didact.types import Demo, Metric, Result


@method(
    "icl-vs-gd",
    paper="Do pretrained Transformers Learn In-Context by Gradient Descent?",
    year=2024,
    source="arXiv:2310.08540",
    gives=("findings",),
    capabilities=("train",),
    kinds=("causal",),
    presets={
        "layers": {"ways": ("v@first", "v@middle", "v@last"), "layers": 4},
        "adam": {"optimizer": "adam", "lrs": (1e-6, 1e-5, 1e-4)},
        "adapter": {"ways": ("lora/full", "lora"), "optimizer": "adam", "lrs": (1e-4, 5e-4, 2e-3)},
    },
)
def icl_vs_gd(
    model: Model,
    train: Sequence[Demo],
    test: Sequence[Demo],
    *,
    shots: tuple[Count, ...] = (8,),
    ways: tuple[str, ...] = ("all/full", "all", "kv", "v@middle"),
    lrs: tuple[Positive, ...] = (1e-5, 5e-5, 1e-4, 5e-4),
    epochs: Count = 4,
    optimizer: Literal["sgd", "adam"] = "sgd",
    loss: Literal["label", "text"] = "label",
    draws: Count = 20,
    held: BelowOne = 0.3,
    queries: Count = 10,
    orders: Count = 4,
    top: Count = 10,
    margin: Positive = 0.1,
    layers: Whole = 0,
    separator: str = "\n",
    seed: int = 0,
) -> Result:
    """Say whether demonstrations in the prompt do to your model what fine-tuning on the same demonstrations does.

    K demonstrations stand before a query (ICL), or the model is fine-tuned on them and asked the query alone (GD), its
    weights being put back bit for bit. At the answer's place, over the whole vocabulary,

        overlap = |top_k(p_ICL) & top_k(p_GD)| / k,
        cosine  = sum_O p q / sqrt(sum_O p^2 sum_O q^2 + k - |O|),   O the tokens that both have,

    each placed between a floor and a ceiling: `(s(ICL, GD) - s(ICL, nothing)) / (s(ICL, ICL in another order) -
    s(ICL, nothing))`. Rate and epoch are those of some draws most similar to ICL among those that learnt; the others
    are reported. How much the order of the demonstrations changes an answer is measured of both. The verdict is
    indistinguishable only if both similarities reach the ceiling and order matters equally, by equivalence tests.

    Args:
        model: causal; any decoder of transformers.
        train: demonstrations are drawn from it. Where records name a `task`, a draw is of one task.
        test: queries, with `choices`; a query is never asked behind a demonstration that asks the same.
        shots: every K to compare at.
        ways: of fine-tuning: `all` weights, `lora`, or letters of q, k, v and perhaps a layer (`kv`, `v@middle`);
            behind `/full` all demonstrations make one step, otherwise each its own, in their order.
        lrs: rates to try.
        epochs: to try, up to this many.
        optimizer: plain SGD, or Adam.
        loss: of the label alone, or of the whole text.
        draws: of demonstrations: the unit of every interval.
        held: share of the draws on which rate and epoch are chosen.
        queries: of each draw, at most.
        orders: of each draw's demonstrations.
        top: k of the likeliest tokens that are compared.
        margin: of the equivalence: so much of the way from floor to ceiling may be missing.
        layers: draws on which blocks are scaled, left out and permuted, as steps of gradient descent could be.
        separator: between demonstrations.
        seed: of draws and orders.

    Returns:
        findings: verdicts, similarities with controls, order sensitivities, the whole grid, weights near zero.

    Raises:
        UserError: too few records, records without choices, a prompt longer than the context, projections not found.
    """
    began = time.monotonic()
    reader = three_way.LanguageReader(model, separator.replace("\\n", "\n"), loss)
    labels = three_way.labels(train)
    train, test = three_way.checked(train, "train", labels), three_way.checked(test, "test", labels)
    tuning = Tuning(lr=lrs[0], epochs=epochs, optimizer=optimizer, per="rows" if loss == "label" else "tokens")
    how = equivalence.Comparison(
        ways={w: three_way.Way.of(w, tuning) for w in ways}, rates=lrs, held=held, orders=orders, top=top,
        margin=margin, seed=seed,
    )  # fmt: skip
    result = Result()
    by_shots: dict[str, Any] = {}
    for k in shots:
        drawn = three_way.episodes(train, test, k, queries, max(draws, 3), seed)
        by_shots[str(k)] = equivalence.findings(equivalence.compare(reader, drawn, how), how)
    told = by_shots[str(max(shots))]
    result.findings = {
        "verdict": equivalence.sentence(told),
        "shots": by_shots,
        "small_weights": layer_tests.small_weights(model),
    }
    if layers:
        some = [episode for episode, _ in drawn[:layers]]
        result.findings["layers"] = layer_tests.interventions(reader, some, seed)
    result.metrics, result.figures = _metrics(told), equivalence.pictures(told)
    result.warnings = equivalence.warnings(told)
    result.cost.tokens, result.cost.seconds = reader.tokens_read, time.monotonic() - began
    return result


def _metrics(told: dict[str, Any]) -> dict[str, Metric]:
    def metric(of: dict[str, float], text: str, before: float | None = None) -> Metric:
        ends = (of["low"], of["high"])
        return Metric(after=of["estimate"], before=before, n=told["draws"], ci=ends, help=text)

    none, icl = told["controls"]["none"], told["controls"]["itself"]
    out = {
        "accuracy_icl": metric(icl["accuracy"], "behind demonstrations; before: without", none["accuracy"]["estimate"])
    }
    for name, way in told["ways"].items():
        text = "of the way from no demonstrations to ICL's own noise"
        out[f"similarity_{name}"] = metric(way["cosine"]["relative"], f"{name}: {text}")
        out[f"accuracy_{name}"] = metric(way["to_icl"]["accuracy"], f"fine-tuned, {name}", none["accuracy"]["estimate"])
    return out

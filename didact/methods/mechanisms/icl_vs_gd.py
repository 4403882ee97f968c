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
    """Test whether demonstrations in the prompt change a model's predictions as fine-tuning on them does.

    K demonstrations precede a query (ICL), or the model is fine-tuned on them and asked the query alone (GD), and its
    weights are then restored bit for bit. At the answer's position, over the whole vocabulary,

        overlap = |top_k(p_ICL) & top_k(p_GD)| / k,
        cosine  = sum_O p q / sqrt(sum_O p^2 sum_O q^2 + k - |O|),   O the tokens in both top k,

    each placed between a floor and a ceiling: `(s(ICL, GD) - s(ICL, nothing)) / (s(ICL, ICL in another order) - s(ICL,
    nothing))`. Rate and epoch are chosen on some draws, as the most similar to ICL among those that learnt; the other
    draws are reported. Sensitivity to the order of the demonstrations is measured for both. The verdict is
    indistinguishable only if both similarities reach the ceiling and order matters equally, by equivalence tests.

    Args:
        model: a causal model; any decoder of transformers.
        train: records to draw demonstrations from. If records name a `task`, each draw is from one task.
        test: queries, with `choices`; a query never follows a demonstration that asks the same.
        shots: every K to compare at.
        ways: fine-tunings to compare: `all` weights, `lora`, or letters of q, k, v with an optional layer (`kv`,
            `v@middle`); with `/full` appended all demonstrations make one step, otherwise each its own, in their order.
        lrs: learning rates to try.
        epochs: maximum number of epochs; all up to it are tried.
        optimizer: plain SGD, or Adam.
        loss: loss of fine-tuning, on the label alone or on the whole text.
        draws: number of draws of demonstrations: the unit of every confidence interval.
        held: share of the draws on which rate and epoch are chosen.
        queries: maximum number of queries per draw.
        orders: orders of each draw's demonstrations that are compared.
        top: k, the number of likeliest tokens that are compared.
        margin: margin of the equivalence: this share of the way from floor to ceiling may be missing.
        layers: draws on which blocks are scaled, left out and permuted, as steps of gradient descent could be.
        separator: text between demonstrations.
        seed: random seed of draws and orders.

    Returns:
        findings: verdicts, similarities with controls, order sensitivities, the whole grid, weights near zero.

    Raises:
        UserError: too few records, records without choices, a prompt longer than the context, projections not found.
    """
    start_time = time.monotonic()
    reader = three_way.LanguageReader(model, separator.replace("\\n", "\n"), loss)
    labels = three_way.labels(train)
    train, test = three_way.checked(train, "train", labels), three_way.checked(test, "test", labels)
    tuning = Tuning(lr=lrs[0], epochs=epochs, optimizer=optimizer, per="rows" if loss == "label" else "tokens")
    comparison = equivalence.Comparison(
        ways={w: three_way.Way.of(w, tuning) for w in ways}, rates=lrs, held=held, orders=orders, top=top,
        margin=margin, seed=seed,
    )  # fmt: skip
    result = Result()
    by_shots: dict[str, Any] = {}
    for k in shots:
        draw_pairs = three_way.episodes(train, test, k, queries, max(draws, 3), seed)
        by_shots[str(k)] = equivalence.findings(equivalence.compare(reader, draw_pairs, comparison), comparison)
    findings = by_shots[str(max(shots))]
    result.findings = {
        "verdict": equivalence.sentence(findings),
        "shots": by_shots,
        "small_weights": layer_tests.small_weights(model),
    }
    if layers:
        episodes = [episode for episode, _ in draw_pairs[:layers]]
        result.findings["layers"] = layer_tests.interventions(reader, episodes, seed)
    result.metrics, result.figures = _metrics(findings), equivalence.pictures(findings)
    result.warnings = equivalence.warnings(findings)
    result.cost.tokens, result.cost.seconds = reader.tokens_read, time.monotonic() - start_time
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

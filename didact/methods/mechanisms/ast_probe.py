"""AST-Probe: recovering abstract syntax trees from hidden representations (Hernandez Lopez et al. 2022)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from didact.bounds import BelowOne, Count, NonNegative
from didact.data import parsing
from didact.evaluate import probes, syntax, syntax_scores, syntax_study
from didact.evaluate.probes import Training
from didact.evaluate.syntax_study import Study
from didact.models import untrained
from didact.models.model import Model
from didact.registry import method
from didact.types import Metric, Result, Text


@method(
    "ast-probe",
    paper="AST-Probe: Recovering abstract syntax trees from hidden representations of pre-trained language models",
    year=2022,
    source="arXiv:2206.11719",
    gives=("models", "findings"),
    capabilities=("hidden",),
    kinds=("causal", "seq2seq", "masked"),
    presets={
        "paper": {"snippets": 26_000, "test": 4 / 26, "valid": 1 / 11},
        "sweep": {"ranks": (8, 16, 32, 64, 128, 256, 512)},
        "small": {"rank": 16, "probe.lr": 1e-2, "probe.epochs": 10},
    },
)
def ast_probe(
    model: Model,
    texts: Sequence[Text] | None = None,
    *,
    language: str = "python",
    repository: str = "",
    snippets: Annotated[int, Ge(3)] = 1000,
    longest: Annotated[int, Ge(2)] = 512,
    layers: tuple[int, ...] = (),
    rank: Count = 128,
    ranks: tuple[Count, ...] = (),
    loss: syntax.Loss = "rank",
    orthogonality: NonNegative = 5.0,
    pooling: syntax.Pooling = "mean",
    test: BelowOne = 0.2,
    valid: BelowOne = 0.1,
    probe: Training = Training(),
    seed: int = 42,
) -> Result:
    """Test whether hidden states encode the whole syntax tree of the input, in which layer, and in how many dimensions.

    The model is left unchanged. A tree over n tokens becomes `d, c` (height and label of the lowest node above two
    neighbours) and `u` (labels above single tokens). A probe projects the state h_i of each token to `z_i = h_i P` and
    predicts

        d_i ~ ||z_i - z_{i-1}||^2,    c_i ~ (z_i - z_{i-1}) C,    u_i ~ z_i U,
        loss = L_d + L_c + L_u + orthogonality ||P^T P - I||_F^2,

    where L_d ranks the d of a text (hinge of margin 1) and L_c, L_u are cross-entropies. Trees are rebuilt from the
    predictions and compared by their constituents, the labelled spans. Every layer is compared with a copy of the model
    whose blocks are untrained (its embeddings are kept) and with a control task, trees that are a function of the words
    alone, the mean of four draws. The layer is chosen on texts that are not in the reported numbers. In a causal model
    a state cannot depend on later tokens, and trees do: compare with its own layer 0.

    Args:
        model: any model with hidden states; of a seq2seq model the encoder is read.
        texts: programs, one per record, optionally with their trees (a field `tree`, nested lists `[label, child, ...]`
            whose strings are the tokens of the text: any grammar of your own); by default functions of `repository`.
        language: language of programs without a tree: one that tree-sitter has a grammar for.
        repository: folder whose functions are used if no texts are given; Python's standard library by default.
        snippets: maximum number of texts; the first usable ones are taken.
        longest: maximum number of tokens; longer texts are left out.
        layers: layers to probe, 0 the embeddings; all by default.
        rank: dimensions of the subspace, at most the model's width.
        ranks: further ranks to try at the best layer.
        loss: loss of the heights: rank, or a regression (l1, l2).
        orthogonality: weight of the penalty that keeps the columns of P orthonormal.
        pooling: how a token's state is pooled from its sub-tokens.
        test: share of the texts that probes are scored on.
        valid: share of the others that epoch and layer are chosen on.
        probe: training of the probes. The paper's 20,000 texts take lr 1e-3; with a thousand, 1e-2 does better.
        seed: random seed of the split, the probes, the untrained copy and the control task.

    Returns:
        `models["subspace"]`, the probe with its basis `module.p (width, rank)`; findings: precision, recall and F1 by
        layer and arm, gains over layer 0, the untrained copy and the control task, recall by non-terminal.

    Raises:
        UserError: the tree of a record does not fit its text, no texts are left, a grammar is not installed, or the
            model gives no hidden states.
    """
    start_time = time.monotonic()
    inputs = parsing.functions(repository or parsing.library(), language, seed) if texts is None else texts
    usable, skipped = syntax.read(model, inputs, language, longest, snippets, pooling)
    parts = probes.split(range(len(usable)), test, valid, seed)
    rank = min(rank, model.text_config.hidden_size)
    study = Study(usable, parts, rank, probe, loss, orthogonality, seed)
    store = study.store(model, layers)
    true_task = {"trained": (study.corpus, rank)}
    by_layer = {layer: study.probe(store, layer, true_task | study.controls) for layer in store.layers}
    trained = {layer: r["trained"] for layer, r in by_layer.items()}
    control = {layer: syntax_study.mean([r[name] for name in study.controls]) for layer, r in by_layer.items()}
    random_store = study.store(untrained.untrained(model, seed, keep_embeddings=True), store.layers)
    random_init = {
        layer: study.probe(random_store, layer, true_task)["trained"] for layer in random_store.layers if layer
    }
    best = syntax_study.best(trained)
    top, baselines = trained[best], {"untrained": random_init[syntax_study.best(random_init)]} if random_init else {}
    if 0 in trained:
        baselines["layer_0"] = trained[0]

    result = Result()
    arms = {"trained": trained, "untrained blocks": random_init, "control task": control}
    result.findings = {
        "snippets": {"used": len(usable), **skipped, **{k: len(p) for k, p in parts._asdict().items()}},
        "layers": {name: {k: syntax_study.summary(r.test) for k, r in by.items()} for name, by in arms.items()},
        "best": {
            "layer": best,
            "rank": rank,
            **syntax_study.summary(top.test),
            "selectivity": syntax_study.gap(top, control[best]),
            **{f"gain_over_{name}": syntax_study.gap(top, r) for name, r in baselines.items()},
            **syntax_scores.parts_right(top.predicted, study.true),
            "off_orthonormal": syntax.orthogonality(top.probe).item() ** 0.5,
            "official_recall": float(
                np.mean([s.recall for s in syntax_scores.scores(top.predicted, study.true, True)])
            ),
        },
        "labels": syntax_scores.recall_by_label(top.predicted, study.true),
        "degrees_from_best": {k: syntax_scores.angle(r.probe, top.probe) for k, r in trained.items() if k != best},
    }
    result.figures = [syntax_study.curve(arms)]
    if ranks:
        sizes = {str(r): (study.corpus, min(r, model.text_config.hidden_size)) for r in ranks}
        swept = {int(r): reading for r, reading in study.probe(store, best, sizes).items()} | {rank: top}
        result.findings["ranks"] = {r: syntax_study.summary(reading.test) for r, reading in sorted(swept.items())}
        result.figures.append(syntax_study.sweep(swept))
    if tree := syntax_study.example_trees([usable[i] for i in parts.test.tolist()], top, study.true):
        result.figures.append(tree)
    result.models = {"subspace": Model(top.probe, kind="module")}
    result.metrics = _metrics(result.findings["best"], {n: float(r.test["f1"].mean()) for n, r in baselines.items()})
    result.cost.tokens = 2 * sum(len(s.ids) for s in usable)
    result.cost.seconds = time.monotonic() - start_time
    return result


def _metrics(best: dict[str, Any], baselines: dict[str, float]) -> dict[str, Metric]:
    f1, gap = best["f1"], best["selectivity"]
    return {
        "f1": Metric(
            after=f1["estimate"], before=max(baselines.values(), default=None), ci=(f1["low"], f1["high"]),
            better="higher", help="of constituents, at the best layer; before: layer 0 or untrained blocks",
        ),
        "selectivity": Metric(
            after=gap["estimate"], ci=(gap["low"], gap["high"]), better="higher", help="F1 less that of the control"
        ),
    }  # fmt: skip

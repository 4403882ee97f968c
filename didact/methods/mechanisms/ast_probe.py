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
    """Say whether hidden states hold the whole syntax tree of what a model reads, where, and in how many dimensions.

    The model stays as it is. A tree over n tokens becomes `d, c` (height and label of the lowest node above two
    neighbours) and `u` (labels above single tokens). A probe projects the state h_i of each token to `z_i = h_i P`
    and reads

        d_i ~ ||z_i - z_{i-1}||^2,    c_i ~ (z_i - z_{i-1}) C,    u_i ~ z_i U,
        loss = L_d + L_c + L_u + orthogonality ||P^T P - I||_F^2,

    where L_d ranks the d of a text (hinge of margin 1) and L_c, L_u are cross-entropies. Trees are rebuilt from
    what it says and compared by their constituents, the labelled spans. Beside every layer stand a copy of the model
    whose blocks are untrained (its embeddings are kept) and a control task, trees that are a function of the words
    alone, the mean of four draws. The layer is chosen on texts that no number reported is from. Of a causal model a
    state knows nothing of what follows, and trees depend on it: compare with its own layer 0.

    Args:
        model: any model with hidden states; of a seq2seq model the encoder is read.
        texts: programs, one a record, perhaps with their trees (a field `tree`, nested lists `[label, child, ...]`
            whose strings are the tokens of the text: any grammar of your own); by default functions of `repository`.
        language: of programs without a tree: one that tree-sitter has a grammar for.
        repository: folder whose functions are taken where no texts are given; Python's standard library by default.
        snippets: texts that are used at most: the first that serve.
        longest: tokens; longer texts are left out.
        layers: which are probed, 0 the embeddings; all by default.
        rank: dimensions of the subspace, at most the model's width.
        ranks: further ones that are tried at the best layer.
        loss: of heights: rank, or a regression (l1, l2).
        orthogonality: weight of the columns of P being orthonormal.
        pooling: how a token is read from its sub-tokens.
        test: share of the texts that probes are scored on.
        valid: share of the others that epoch and layer are chosen on.
        probe: training of the probes. The paper's 20,000 texts take lr 1e-3; with a thousand, 1e-2 does better.
        seed: of the split, the probes, the untrained copy and the control task.

    Returns:
        `models["subspace"]`, the probe with its basis `module.p (width, rank)`; findings: precision, recall and F1 by
        layer and arm, gains over layer 0, the untrained copy and the control task, recall by non-terminal.

    Raises:
        UserError: the tree of a record does not fit its text, no texts are left, a grammar is not installed, or the
            model gives no hidden states.

    """
    began = time.monotonic()
    given = parsing.functions(repository or parsing.library(), language, seed) if texts is None else texts
    read, left = syntax.read(model, given, language, longest, snippets, pooling)
    parts = probes.split(range(len(read)), test, valid, seed)
    rank = min(rank, model.text_config.hidden_size)
    study = Study(read, parts, rank, probe, loss, orthogonality, seed)
    store = study.store(model, layers)
    true = {"trained": (study.corpus, rank)}
    found = {layer: study.probe(store, layer, true | study.controls) for layer in store.layers}
    trained = {layer: r["trained"] for layer, r in found.items()}
    control = {layer: syntax_study.mean([r[name] for name in study.controls]) for layer, r in found.items()}
    blank = study.store(untrained.untrained(model, seed, keep_embeddings=True), store.layers)
    untaught = {layer: study.probe(blank, layer, true)["trained"] for layer in blank.layers if layer}
    at = syntax_study.best(trained)
    top, baselines = trained[at], {"untrained": untaught[syntax_study.best(untaught)]} if untaught else {}
    if 0 in trained:
        baselines["layer_0"] = trained[0]

    result = Result()
    arms = {"trained": trained, "untrained blocks": untaught, "control task": control}
    result.findings = {
        "snippets": {"used": len(read), **left, **{k: len(p) for k, p in parts._asdict().items()}},
        "layers": {name: {k: syntax_study.told(r.test) for k, r in by.items()} for name, by in arms.items()},
        "best": {
            "layer": at,
            "rank": rank,
            **syntax_study.told(top.test),
            "selectivity": syntax_study.gap(top, control[at]),
            **{f"gain_over_{name}": syntax_study.gap(top, r) for name, r in baselines.items()},
            **syntax_scores.parts_right(top.predicted, study.true),
            "off_orthonormal": syntax.orthogonality(top.probe).item() ** 0.5,
            "official_recall": float(
                np.mean([s.recall for s in syntax_scores.scores(top.predicted, study.true, True)])
            ),
        },
        "labels": syntax_scores.recall_by_label(top.predicted, study.true),
        "degrees_from_best": {k: syntax_scores.angle(r.probe, top.probe) for k, r in trained.items() if k != at},
    }
    result.figures = [syntax_study.curve(arms)]
    if ranks:
        sizes = {str(r): (study.corpus, min(r, model.text_config.hidden_size)) for r in ranks}
        swept = {int(r): reading for r, reading in study.probe(store, at, sizes).items()} | {rank: top}
        result.findings["ranks"] = {r: syntax_study.told(reading.test) for r, reading in sorted(swept.items())}
        result.figures.append(syntax_study.sweep(swept))
    if tree := syntax_study.shown([read[i] for i in parts.test.tolist()], top, study.true):
        result.figures.append(tree)
    result.models = {"subspace": Model(top.probe, kind="module")}
    result.metrics = _metrics(result.findings["best"], {n: float(r.test["f1"].mean()) for n, r in baselines.items()})
    result.cost.tokens = 2 * sum(len(s.ids) for s in read)
    result.cost.seconds = time.monotonic() - began
    return result


def _metrics(best: dict[str, Any], baselines: dict[str, float]) -> dict[str, Metric]:
    f1, more = best["f1"], best["selectivity"]
    return {
        "f1": Metric(
            after=f1["estimate"], before=max(baselines.values(), default=None), ci=(f1["low"], f1["high"]),
            better="higher", help="of constituents, at the best layer; before: layer 0 or untrained blocks",
        ),
        "selectivity": Metric(
            after=more["estimate"], ci=(more["low"], more["high"]), better="higher", help="F1 less that of the control"
        ),
    }  # fmt: skip

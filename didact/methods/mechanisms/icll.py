"""In-context language learning: n-gram heads, and how well models learn a language from examples (Akyurek et al.)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, MinLen

from didact.bounds import BelowOne, Count, Whole
from didact.data import encode, splits
from didact.evaluate import induction, language_figures, languages, perplexity
from didact.learn import ngram_arms
from didact.learn.fit import Hook
from didact.learn.ngram_arms import Arch, Arm
from didact.models import build
from didact.models.model import Model
from didact.registry import method
from didact.types import Fit, Result, Text, UserError


@method(
    "icll",
    paper="In-Context Language Learning: Architectures and Algorithms",
    year=2024,
    source="arXiv:2401.12973",
    gives=("models", "findings"),
    capabilities=("train",),
    kinds=("causal",),
    presets={
        "paper": {
            "arch": "transformer", "layers": 8, "width": 128, "window": 1000, "sizes": [1, 2, 3], "fit.epochs": 200,
        },
        "whole": {"whole": True, "fit.lr": 2e-5},
    },
)  # fmt: skip
def icll(
    text: Sequence[Text],
    model: Model | None = None,
    *,
    arch: Arch = "gru",
    layers: Count = 2,
    width: Count = 64,
    vocabulary: Annotated[int, Ge(259)] = 1024,
    sizes: Annotated[Sequence[Count], MinLen(1)] = (1, 2),
    block: Whole = 0,
    against: Sequence[Arm] = ("control", "plain"),
    within: bool = False,
    whole: bool = False,
    probe: bool = False,
    window: Annotated[int, Ge(2)] = 256,
    held_out: BelowOne = 0.1,
    fit: Fit = Fit(lr=5e-4, rows=32, epochs=10, schedule="cosine", warmup=1.0, weight_decay=0.1),
    hooks: Sequence[Hook] = (),
) -> Result:
    """Add n-gram heads to a model, train it on text or formal languages, and measure what the lookup gains.

    A head of size n attends, without weights of its own, to what followed earlier occurrences of the last n tokens:

        A[t, i] = 1/count where x[i-n..i-1] = x[t-n+1..t] and i < t,     h <- h + W1 (A norm(h)) + W2 norm(h)

    In a given model the heads start at zero, so that at first it is unchanged; only they are trained unless `whole`.
    Without a model, a small one is trained from scratch. Every arm in `against` is trained on the same rows: `control`
    has the same weights and looks nothing up, `uniform` averages all earlier states, `plain` has no heads. Arms are
    compared on held-out documents. If records include the automaton that generated their strings
    (`metadata: {"automaton": [{"a": 1, "b": 2}, ...]}`, strings between `|`), held-out languages are compared with it,
    by the share of possible first choices and the distance of distributions, next to n-grams with back-off, n-grams
    smoothed by a network trained on the training languages, and Baum-Welch; the report says which of these a model is
    like.

    Args:
        text: documents; or prompts of formal languages, each with its automaton.
        model: a causal decoder; by default one is built.
        arch: architecture of a new model; transformer has rotary positions.
        layers: layers of a new model.
        width: width of a new model.
        vocabulary: size of a new model's byte-level BPE; symbols of a formal language are words.
        sizes: n of the heads, which follow one another.
        block: block of the model after which the heads are inserted, counted from 0.
        against: arms to compare with the heads.
        within: n-grams of a formal language do not cross the separator.
        probe: for formal languages, also probe hidden states for what followed the last n tokens most often, and for
            whether two positions are in one state of the automaton.
        whole: train all weights of a given model, not only the inserted ones.
        window: tokens per row.
        held_out: share of the documents (or languages) that no arm is trained on.
        fit: training of every arm.
        hooks: called around every step of every arm.

    Returns:
        `models["model"]`, with heads, saved in the `didact` format; findings.

    Raises:
        UserError: no text to hold out, symbols that are not one token each, strings that their automaton rejects, a
            model whose blocks are not found; or an arm predicts better than the automaton itself: it sees the future.
    """
    start_time = time.monotonic()
    formal = languages.has_automata(text)
    indices = splits.held_out(languages.keys(text) if formal else splits.keys(text), held_out)
    held, train_texts = [text[i] for i in sorted(indices)], [t for i, t in enumerate(text) if i not in indices]
    if not held or not train_texts:
        raise UserError(f"text: {len(text)} documents, of which {held_out:.0%} are held out: two different at least")
    base = model
    if base is None:
        tokenizer = (
            languages.tokenizer_of(text) if formal else build.train_tokenizer((t.text for t in train_texts), vocabulary)
        )
        model = ngram_arms.start(arch, tokenizer, layers, width, window, fit.seed)
    assert model is not None
    window = min(window, model.context - 1)
    rows = [row for t in train_texts for row in encode.windows(model.tokenizer, [t.text], window)]
    words, smoothing_texts = (languages.words(text), train_texts[: languages.SMOOTHED]) if formal else ([], [])
    prompts, smoothing_prompts = (
        languages.prompts(t, model.tokenizer, window, words) if formal else None for t in (held, smoothing_texts)
    )
    boundary = int(prompts.separator) if prompts and within else None

    result, arms = Result(), dict[str, Model]()
    for name in dict.fromkeys(("heads", *against)):
        arm = ngram_arms.arm(name, model, sizes, block, base is not None, fit.seed, boundary)
        heads_only = base is not None and not whole
        if heads_only and name == "plain":
            arms[name] = arm  # nothing to train: it is the given model
            continue
        run = ngram_arms.train(name, arm, rows, fit, heads_only, prompts.symbols.tolist() if prompts else None, hooks)
        arms[name] = run.model
        result.history = result.history or run.history  # that of `heads`, the first arm
        result.cost.tokens += run.cost.tokens
        result.cost.flops += run.cost.flops
    initial = {"given": base} if base is not None and (whole or "plain" not in against) else {}
    result.findings["parameters"] = {name: arm.parameters for name, arm in arms.items()}
    texts = [t.text for t in held]
    rows_held = [row for t in texts for row in encode.windows(model.tokenizer, [t], window)]
    result.findings["looked_up"] = perplexity.looked_up(model, texts, window, sizes)
    if prompts:
        result.findings["languages"] = languages.findings(arms | initial, prompts, smoothing_prompts, fit.seed)
        result.metrics = languages.metrics(result.findings["languages"])
        result.figures += language_figures.of_languages(result.findings["languages"])
    else:
        result.findings["text"] = perplexity.findings(arms | initial, texts, window)
        result.metrics = perplexity.metrics(result.findings["text"])
        result.figures += language_figures.of_text(result.findings["text"])
    result.figures += induction.inspect(
        result.findings, arms, rows_held, prompts if probe else None, max(sizes), fit.seed
    )
    sample_tokens = max(rows_held, key=lambda row: len(set(row.completion))).completion
    pieces = [str(model.tokenizer.decode([token])) for token in sample_tokens]
    result.figures += [language_figures.lookup_map(sample_tokens, pieces, max(sizes))]
    result.models = {"model": arms["heads"]}
    result.cost.seconds = time.monotonic() - start_time
    return result

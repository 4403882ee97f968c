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
    """Put n-gram heads into a model, teach it text or formal languages, and say what the lookup is worth.

    A head of size n attends, without weights of its own, to what followed earlier occurrences of the last n tokens:

        A[t, i] = 1/count where x[i-n..i-1] = x[t-n+1..t] and i < t,     h <- h + W1 (A norm(h)) + W2 norm(h)

    A given model gets heads that begin at zero, so that it is at first what it was; they alone are trained unless
    `whole`. Without one, a small model is trained from nothing. Every arm in `against` is taught the same rows:
    `control` has the same weights and looks nothing up, `uniform` the mean of all before, `plain` has no heads.
    Arms are compared on held-out documents. Where records bring the automaton their strings are of
    (`metadata: {"automaton": [{"a": 1, "b": 2}, ...]}`, strings between `|`), held-out languages are compared with it:
    the share of possible first choices, the distance of the distributions, beside n-grams with back-off, n-grams
    smoothed by a network that learnt it on the taught languages, and Baum-Welch; and which of these a model is like.

    Args:
        text: documents; or prompts of formal languages, each with its automaton.
        model: a causal decoder; by default one is built.
        arch: of a built one; transformer has rotary positions.
        layers: of a built one.
        width: of a built one.
        vocabulary: of the byte-level BPE of a built one; symbols of a formal language are words.
        sizes: n of the heads, which stand in a row.
        block: behind which block of the model, counted from 0.
        against: what the heads are compared with.
        within: n-grams of a formal language do not reach over the separator.
        probe: of formal languages, also read off hidden states what followed the last n tokens most often, and whether
            two places are in one state of the automaton.
        whole: train all weights of a given model, not what is inserted alone.
        window: tokens a model reads at once.
        held_out: share of the documents (of languages) that no model is taught.
        fit: training of every arm.
        hooks: called around every step of every arm.

    Returns:
        `models["model"]`, with heads, saved in the `didact` format; findings.

    Raises:
        UserError: no text to hold out, symbols that are not one token each, strings that are not of their automaton, a
            model without blocks to be found; or an arm predicts better than the automaton itself: it sees the future.
    """
    began = time.monotonic()
    formal = languages.has_automata(text)
    out = splits.held_out(languages.keys(text) if formal else splits.keys(text), held_out)
    kept, taught = [text[i] for i in sorted(out)], [t for i, t in enumerate(text) if i not in out]
    if not kept or not taught:
        raise UserError(f"text: {len(text)} documents, of which {held_out:.0%} are held out: two different at least")
    given = model
    if given is None:
        tokenizer = (
            languages.tokenizer_of(text) if formal else build.train_tokenizer((t.text for t in taught), vocabulary)
        )
        model = ngram_arms.start(arch, tokenizer, layers, width, window, fit.seed)
    assert model is not None
    window = min(window, model.context - 1)
    rows = [row for t in taught for row in encode.windows(model.tokenizer, [t.text], window)]
    words, few = (languages.words(text), taught[: languages.SMOOTHED]) if formal else ([], [])
    prompts, shown = (languages.prompts(t, model.tokenizer, window, words) if formal else None for t in (kept, few))
    boundary = int(prompts.separator) if prompts and within else None

    result, arms = Result(), dict[str, Model]()
    for name in dict.fromkeys(("heads", *against)):
        arm = ngram_arms.arm(name, model, sizes, block, given is not None, fit.seed, boundary)
        alone = given is not None and not whole
        if alone and name == "plain":
            arms[name] = arm  # nothing of it is trained: it is the given model
            continue
        made = ngram_arms.train(name, arm, rows, fit, alone, prompts.symbols.tolist() if prompts else None, hooks)
        arms[name] = made.model
        result.history = result.history or made.history  # of the arm with heads
        result.cost.tokens += made.cost.tokens
        result.cost.flops += made.cost.flops
    first = {"given": given} if given is not None and (whole or "plain" not in against) else {}
    result.findings["parameters"] = {name: arm.parameters for name, arm in arms.items()}
    texts = [t.text for t in kept]
    rows_held = [row for t in texts for row in encode.windows(model.tokenizer, [t], window)]
    result.findings["looked_up"] = perplexity.looked_up(model, texts, window, sizes)
    if prompts:
        result.findings["languages"] = languages.findings(arms | first, prompts, shown, fit.seed)
        result.metrics = languages.metrics(result.findings["languages"])
        result.figures += language_figures.of_languages(result.findings["languages"])
    else:
        result.findings["text"] = perplexity.findings(arms | first, texts, window)
        result.metrics = perplexity.metrics(result.findings["text"])
        result.figures += language_figures.of_text(result.findings["text"])
    result.figures += induction.looked_into(
        result.findings, arms, rows_held, prompts if probe else None, max(sizes), fit.seed
    )
    richest = max(rows_held, key=lambda row: len(set(row.completion))).completion
    pieces = [str(model.tokenizer.decode([token])) for token in richest]
    result.figures += [language_figures.lookup_map(richest, pieces, max(sizes))]
    result.models = {"model": arms["heads"]}
    result.cost.seconds = time.monotonic() - began
    return result

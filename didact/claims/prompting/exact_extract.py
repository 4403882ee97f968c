"""Exact-extract's claim: brute force agrees with it, and greedy answers of an untuned model are worse because they are
often not extractive, which tuning on a few questions or on recurring spans corrects.

The exact part needs no training: random weights, all spans by forced decoding. The trained part is a language model of
passages that repeat their facts (`worlds.facts`); questions are phrased as the start of a passage's next sentence. It
is then tuned on k questions, or on spans of passages. Each key has its own words for values: if keys shared them, so
small a model would still be at chance after the three minutes it has, and could not show the claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from didact.claims import lab, runner
from didact.claims.lab import bound, difference, exact, gate
from didact.claims.prompting import exact_extract_example as example
from didact.data import spans
from didact.evaluate import qa
from didact.infer import qa_prompts, span_decoders, span_scores
from didact.infer.qa_prompts import PromptFormat
from didact.infer.span_decoders import SearchConfig
from didact.infer.span_scores import Floats
from didact.learn import span_rows
from didact.methods.prompting.exact_extract_rss import exact_extract_rss
from didact.methods.prompting.exact_extract_tune import exact_extract_tune
from didact.models.model import Model
from didact.worlds import facts

LENGTH = {  # steps of the language model, of tuning, of spans; test questions
    "smoke": (10, 4, 4, 10), "quick": (420, 100, 150, 60), "full": (900, 200, 300, 300),
}  # fmt: skip
TUNED = (0, 64, 1024)  # questions tuned on

problem, problem_rss, problem_tune = example.problem, example.problem_rss, example.problem_tune


def run(seed: int, tier: runner.Tier, hide: bool = False) -> runner.Measured:
    """Brute force on random models; one language model tuned on k questions, or on spans. With `hide`, all other
    occurrences of a recurring span are removed from its passage, so that there is nothing to copy."""
    arms = {"brute force": brute_force(seed)}
    models = {f"k={k}": _tune(seed, tier, k) for k in TUNED}
    with runner.patched({"didact.data.spans:cut": _without_copies} if hide else {}):
        models["recurring"] = _train_on_spans(seed, tier, "recurring")
    models["random"] = _train_on_spans(seed, tier, "random")
    arms |= {name: measured(model, seed, LENGTH[tier][3]) for name, model in models.items()}
    by_k = [arms[f"k={k}"]["optimality"] for k in TUNED]
    rho = float(stats.spearmanr(TUNED, by_k).statistic) if len(set(by_k)) > 1 else 0.0
    return arms | {"k": {"optimality_trend": rho}}


def brute_force(seed: int) -> dict[str, float]:
    """Compare exact decoding with forced decoding of every span, and with greedy decoding along the passage: a
    decoder-only model for each position encoding and an encoder-decoder, all random, passages of at most 12
    tokens. Each measure is the maximum (in nats): `scores`, the error of a span's nll; `answer`, by how much the
    answer's nll exceeds the least, and `above_greedy` greedy's; `rows`, the number of decoder rows against n.
    """
    rng, words = np.random.default_rng([seed, 12]), facts.vocabulary()
    scores, answer, above, rows = [], [], [], []
    for model, form in _random_models(seed):
        for _ in range(4):
            text = " ".join(words[i] for i in rng.integers(len(words), size=rng.integers(3, 13)))
            question = qa_prompts.encode_question(model, form, text, str(rng.choice(facts.KEYS)))
            (table,) = span_scores.score(model, [question], form)
            (best_span,) = span_scores.best(question, table, form)
            assert best_span.start is not None
            forced = span_decoders.forced(model, question, form)
            finite = np.isfinite(forced)
            scores.append(float(np.abs(span_scores.totals(table.nll, table.end)[finite] - forced[finite]).max()))
            best_nll = float(forced[best_span.start, len(best_span.tokens) - 1])
            answer.append(best_nll - float(forced.min()))
            above.append(best_nll - span_decoders.constrained_greedy(question, table).nll)
            rows.append(abs(table.rows - len(question.passage)))
    return {"scores": max(scores), "answer": max(answer), "above_greedy": max(above), "rows": float(max(rows))}


def _random_models(seed: int) -> Iterator[tuple[Model, PromptFormat]]:
    kinds: tuple[Any, ...] = (("llama", "none", 0.2), ("gpt2", "none", 0.2), ("t5", "Ġso", None))
    for arch, bos, spread in kinds:
        weights = {"initializer_range": spread} if spread else {}
        model = example.blank(arch, d=32, layers=2, heads=4, context=64, seed=seed, **weights)
        yield model, qa_prompts.prompt_format(model, **example.FORM, bos=bos, end="eos")


def measured(model: Model, seed: int, asked: int) -> dict[str, float]:
    """F1 (percent) by decoder, their difference, and the diagnostics of one model, over the seed's test questions."""
    records = example.world(seed, asked).test
    form, pairs = qa_prompts.prompt_format(model, **example.FORM), [(r.context, r.question) for r in records]
    rows = span_decoders.answer(
        model, pairs, form, ("exact", "greedy", "constrained_greedy"), SearchConfig(max_len=example.LONGEST)
    )
    answers = {name: [spans[0] for spans in column] for name, column in rows.items()}
    out = {name: m.value for name, m in qa.compare(records, answers).items()}
    decoded = zip(answers["exact"], answers["greedy"], strict=True)
    above = [e.nll - g.nll for e, g in decoded if g.start is not None and g.text]  # where the greedy answer is a span
    lengths = lab.mean(len(s.tokens) for s in answers["exact"])
    return out | {"gap": out["gain"], "above_greedy": max(above, default=0.0), "exact_length": lengths}


@lab.shared
def _base(seed: int, tier: runner.Tier) -> Model:
    return example.language_model(seed, LENGTH[tier][0])


@lab.shared
def _tune(seed: int, tier: runner.Tier, k: int) -> Model:
    _, steps, _, n_questions = LENGTH[tier]
    if not k:
        return _base(seed, tier)
    tune, fit = example.world(seed, n_questions).tune, example.TEACH.replace(lr=1e-3, steps=steps, seed=seed)
    return lab.model_of(exact_extract_tune(_base(seed, tier), tune, examples=k, **example.FORM, fit=fit))


def _train_on_spans(seed: int, tier: runner.Tier, select: Any) -> Model:
    """A model trained on spans; the cache key has the training rows, so that a sabotage of the spans trains anew."""
    base, passages = _base(seed, tier), example.world(seed, 1).passages
    rows, _ = span_rows.rss_rows(base, passages, qa_prompts.prompt_format(base, **example.FORM), select, seed=seed)
    return _shared_training(seed, tier, select, hash(tuple(rows)))


@lab.shared
def _shared_training(seed: int, tier: runner.Tier, select: Any, content: int) -> Model:
    fit, passages = example.TEACH.replace(steps=LENGTH[tier][2], seed=seed), example.world(seed, 1).passages
    return lab.model_of(exact_extract_rss(_base(seed, tier), passages, select=select, **example.FORM, fit=fit))


def _without_copies(text: str, span: spans.Span) -> spans.Masked:
    target = text[slice(*span)]
    return spans.Masked(text[: span[0]].replace(target, "").rstrip(), target)


def _end_left_out(nll: Floats, end: Floats) -> Floats:
    return np.where(np.isfinite(end), nll.cumsum(1), np.inf)


def _mean(nll: Floats, end: Floats) -> Floats:
    return (nll.cumsum(1) + end) / np.arange(2, nll.shape[1] + 2)


def _shifted(nll: Floats, end: Floats) -> Floats:
    return nll.cumsum(1) + np.where(np.isfinite(end), np.concatenate([end[:, :1], end[:, :-1]], 1), np.inf)


TOTALS, BRUTE = "didact.infer.span_scores:totals", "brute force.scores"
SCORES, HELP, POINTS = "scores are those of forced decoding", "recurring spans help greedy", "% points"

CLAIM = runner.Claim(
    method="exact-extract",
    text=(
        "One decoder row per start finds the likeliest span of a passage exactly. Asked without any tuning, a model's "
        "greedy answers are often no span, and the exact answers are better (F1); after tuning on questions the gap "
        "closes and greedy decoding finds the likeliest span more often. Recurring-span pre-training makes greedy "
        "decoding extractive without a question."
    ),
    run=run,
    gates=(gate("the model can answer at all", "k=0.exact_f1", at_least=5.0, unit="F1 %"),),
    tests=(
        exact(SCORES, BRUTE, 0.0, 1e-4, "nats"),
        exact("is the likeliest span", "brute force.answer", 0.0, 1e-4, "nats"),
        exact("one row per start", "brute force.rows", unit="rows"),
        bound("greedy along the passage is never likelier", "brute force.above_greedy", 1e-4, "nats", less=True),
        bound("greedy spans are never likelier", "k=0.above_greedy", 1e-4, "nats", less=True),
        difference("exact beats greedy untuned", "k=0.exact_f1", "k=0.greedy_f1", POINTS),
        difference("tuning closes the gap", "k=0.gap", "k=1024.gap", POINTS),
        bound("tuning makes greedy optimal", "k.optimality_trend", unit="Spearman rho"),
        difference("recurring spans make it extractive", "recurring.extractiveness", "random.extractiveness", POINTS,
                   reported=True),
        difference(HELP, "recurring.greedy_f1", "random.greedy_f1", POINTS, reported=True),
    ),
    sabotages=(
        runner.Sabotage("end token left out", SCORES, BRUTE, {TOTALS: _end_left_out}),
        runner.Sabotage("mean instead of sum", SCORES, BRUTE, {TOTALS: _mean}),
        runner.Sabotage("end read one token early", SCORES, BRUTE, {TOTALS: _shifted}),
        runner.Sabotage("no other occurrence left", HELP, "recurring.greedy_f1", options={"hide": True}),
    ),
)  # fmt: skip

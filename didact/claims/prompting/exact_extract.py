"""Exact-extract's claim: brute force agrees with it, and where a model was not tuned greedy decoding loses by not
being extractive, which a few questions or recurring spans mend.

The exact part needs no training: models with random weights, all spans by forced decoding. The trained part is a
small language model of passages in which facts are told again and again (`worlds.facts`), asked as the next sentence
of a passage would begin, then tuned on k questions, or on spans of raw passages. Each key has words of its own: where
any key may have any words, a model this small is still at chance when its three minutes are over, and one that knows
nothing cannot show the paper's claim.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from didact.claims import runner, verdict
from didact.claims.problem import Problem
from didact.data import spans
from didact.data.encode import TokenizedExample
from didact.data.streams import MicroBatch
from didact.evaluate import qa
from didact.infer import qa_prompts, span_decoders, span_scores
from didact.infer.qa_prompts import PromptFormat
from didact.infer.span_decoders import SearchConfig
from didact.infer.span_scores import Span
from didact.learn import episodes, language, span_rows
from didact.learn import fit as loop
from didact.learn.fit import Term
from didact.methods.prompting.exact_extract_rss import exact_extract_rss
from didact.methods.prompting.exact_extract_tune import exact_extract_tune
from didact.models import build, load
from didact.models.model import Model
from didact.types import Fit, Text
from didact.worlds import facts

TEMPLATE = "{context} so {question}"  # a question is how a sentence of the world begins
FORM: dict[str, Any] = {"template": TEMPLATE}
LONGEST = 8  # tokens of an answer; the longest value has three
_OPTIONS = FORM | {"search.max_len": LONGEST}
_FIT = {"lr": 1e-3, "steps": 100, "rows": 16}
TUNED = (0, 64, 1024)  # questions tuned on


@dataclass(frozen=True)
class Length:
    """Steps of a tier: of the language model, of tuning, of spans; and how many questions are asked."""

    pretrain: int
    tune: int
    rss: int
    asked: int


LENGTH = {"smoke": Length(10, 4, 4, 10), "quick": Length(500, 150, 200, 100), "full": Length(900, 200, 300, 300)}


@episodes.one_thread()
def problem(seed: int) -> Problem:
    """What `didact run exact-extract` decodes when given no model and data."""
    return Problem(model=_example(seed), data={"questions": _world(seed, 40).test}, options=_OPTIONS)


@episodes.one_thread()
def problem_rss(seed: int) -> Problem:
    """What `didact run exact-extract.rss` teaches; the paper's rate changes nothing in a model this small."""
    world = _world(seed, 40)
    return Problem(
        model=_example(seed), data={"passages": world.passages}, options=dict(FORM), fit=_FIT,
        protocol={"questions": world.test},
    )  # fmt: skip


@episodes.one_thread()
def problem_tune(seed: int) -> Problem:
    """What `didact run exact-extract.tune` teaches."""
    world = _world(seed, 40)
    return Problem(
        model=_example(seed), data={"questions": world.tune[:256]}, options=_OPTIONS, fit=_FIT,
        protocol={"questions": world.test},
    )  # fmt: skip


def run(seed: int, tier: runner.Tier, hide: bool = False) -> dict[str, dict[str, float]]:
    """Brute force on random models; one language model tuned on k questions, or on spans.

    `hide` breaks recurring spans alone: no other occurrence is left to copy from.
    """
    with episodes.one_thread():
        length = LENGTH[tier]
        arms = {"brute force": brute_force(seed)}
        for k in TUNED:
            arms[f"k={k}"] = measured(_tuned(seed, k, length), seed, length)
        with runner.patched({"didact.data.spans:cut": _nowhere_else} if hide else {}):
            arms["recurring"] = measured(_spanned(seed, "recurring", length), seed, length)
        arms["random"] = measured(_spanned(seed, "random", length), seed, length)
        by_k = [arms[f"k={k}"]["optimality"] for k in TUNED]
        rho = float(stats.spearmanr(TUNED, by_k).statistic) if len(set(by_k)) > 1 else 0.0
        arms["k"] = {"optimality_trend": rho}
        return arms


def brute_force(seed: int) -> dict[str, float]:
    """Exact decoding against forced decoding of every span, and against greedy along the passage: a decoder-only
    model of each sort of position and an encoder-decoder, all random, passages of at most 12 tokens.

    `scores` is the largest difference of any span's nll, `answer` how far the nll of the answer, by forced decoding,
    is above the least, `above_greedy` how far it is above that of greedy along the passage, all in nats and the
    largest seen; `rows` how many decoder rows there are beside n.
    """
    draw = np.random.default_rng([seed, 12])
    scores, answer, above, rows = [], [], [], []
    words = facts.vocabulary()
    for model, form in _random_models(seed):
        for _ in range(4):
            text = " ".join(words[i] for i in draw.integers(len(words), size=draw.integers(3, 13)))
            question = qa_prompts.encode_question(model, form, text, str(draw.choice(facts.KEYS)))
            (table,) = span_scores.score(model, [question], form)
            (found,) = span_scores.best(question, table, form)
            assert found.start is not None
            alone = span_decoders.forced(model, question, form)
            spans_ = np.isfinite(alone)
            scores.append(float(np.abs(span_scores.totals(table.nll, table.end)[spans_] - alone[spans_]).max()))
            given = float(alone[found.start, len(found.tokens) - 1])
            answer.append(given - float(alone.min()))
            above.append(given - span_decoders.constrained_greedy(question, table).nll)
            rows.append(abs(table.rows - len(question.passage)))
    return {"scores": max(scores), "answer": max(answer), "above_greedy": max(above), "rows": float(max(rows))}


def measured(model: Model, seed: int, length: Length) -> dict[str, float]:
    """F1 (percent) by decoder, their difference, and the diagnostics of one model, over the seed's test questions."""
    records = _world(seed, length.asked).test
    form = qa_prompts.prompt_format(model, **FORM)
    pairs = [(r.context, r.question) for r in records]
    found = span_decoders.answer(
        model, pairs, form, ("exact", "greedy", "constrained_greedy"), SearchConfig(max_len=LONGEST)
    )
    said = {name: [s[0] for s in rows] for name, rows in found.items()}
    told = {name: m.value for name, m in qa.compare(records, said).items()}
    told["gap"] = told["gain"]
    told["above_greedy"] = max(
        (e.nll - g.nll for e, g in zip(said["exact"], said["greedy"], strict=True) if _is_span(g)), default=0.0
    )
    told["exact_length"] = float(np.mean([len(s.tokens) for s in said["exact"]]))
    return told


def _is_span(said: Span) -> bool:
    return said.start is not None and bool(said.text)


def _random_models(seed: int) -> list[tuple[Model, PromptFormat]]:
    made = []
    for arch in ("llama", "gpt2", "t5"):
        more = {} if arch == "t5" else {"initializer_range": 0.2}
        model = build.build(arch, _tokenizer(), d=32, layers=2, heads=4, context=64, seed=seed, **more)  # type: ignore  # names from a tuple
        bos = "Ġso" if arch == "t5" else "none"
        made.append((model, qa_prompts.prompt_format(model, TEMPLATE, bos=bos, end="eos")))
    return made


def _example(seed: int) -> Model:
    """The language model of the quick tier."""
    steps = LENGTH["quick"].pretrain
    sources = inspect.getsource(facts), inspect.getsource(_base), inspect.getsource(loop)
    return load.kept("example", lambda: _base(seed, steps), f"exact-extract {seed} {steps}", *sources)


@functools.cache
def _tokenizer() -> Any:
    return build.train_tokenizer([" " + " ".join(facts.vocabulary())] * 3, 400)


@functools.lru_cache(maxsize=32)
def _world(seed: int, asked: int) -> facts.Facts:
    return facts.facts(seed, passages=1500, test=asked)


@functools.lru_cache(maxsize=32)
def _base_texts(seed: int, steps: int) -> list[Text]:
    """What the language model reads: passages of its own."""
    return facts.facts(seed + 500, passages=min(8000, 16 * steps), tune=0, test=0).passages


@functools.lru_cache(maxsize=32)
def _base(seed: int, steps: int) -> Model:
    """A language model of passages, two layers, 0.1M weights. One that begins at the usual 0.02 is flat far longer."""
    blank = build.build("qwen2", _tokenizer(), d=64, layers=2, heads=2, context=128, seed=seed, initializer_range=0.1)
    end = (int(blank.tokenizer.eos_token_id or 0),)
    rows = [TokenizedExample(end, (*qa_prompts.text_ids(blank, t.text), *end)) for t in _base_texts(seed, steps)]
    fit = _fit(2.5e-3, steps, seed).replace(warmup_steps=min(30, steps // 4))
    return language.train(blank, {"passages": language.single(rows)}, _nll, fit, quiet=True).model


@functools.lru_cache(maxsize=128)
def _tuned(seed: int, k: int, length: Length) -> Model:
    base = _base(seed, length.pretrain)
    if not k:
        return base
    tune, fit = _world(seed, length.asked).tune, _fit(1e-3, length.tune, seed)
    made = exact_extract_tune(base, tune, examples=k, **FORM, fit=fit).models["model"]
    assert isinstance(made, Model)
    return made


def _spanned(seed: int, select: Any, length: Length) -> Model:
    """Trained on spans; kept by what it was trained on, so that a sabotage of the spans trains anew."""
    base = _base(seed, length.pretrain)
    form = qa_prompts.prompt_format(base, **FORM)
    rows, _ = span_rows.rss_rows(base, _world(seed, 1).passages, form, select, seed=seed)
    return _on_spans(seed, select, length, hash(tuple(rows)))


@functools.lru_cache(maxsize=128)
def _on_spans(seed: int, select: Any, length: Length, content: int) -> Model:
    base, fit = _base(seed, length.pretrain), _fit(2.5e-3, length.rss, seed)
    made = exact_extract_rss(base, _world(seed, 1).passages, select=select, **FORM, fit=fit).models["model"]
    assert isinstance(made, Model)
    return made


def _fit(lr: float, steps: int, seed: int) -> Fit:
    return Fit(lr=lr, steps=steps, rows=16, micro_tokens=1 << 16, schedule="constant", betas=(0.9, 0.95), seed=seed)


def _nll(student: Model, micro: MicroBatch) -> Mapping[str, Term]:
    return {"nll": language.cross_entropy(student, micro)}


def _nowhere_else(text: str, span: spans.Span) -> spans.Masked:
    """RSS broken: every other occurrence of the span goes too."""
    taken = text[slice(*span)]
    return spans.Masked(text[: span[0]].replace(taken, "").rstrip(), taken)


def _end_left_out(nll: span_scores.Floats, end: span_scores.Floats) -> span_scores.Floats:
    return np.where(np.isfinite(end), nll.cumsum(1), np.inf)


def _mean(nll: span_scores.Floats, end: span_scores.Floats) -> span_scores.Floats:
    return (nll.cumsum(1) + end) / np.arange(2, nll.shape[1] + 2)


def _shifted(nll: span_scores.Floats, end: span_scores.Floats) -> span_scores.Floats:
    """The end read one token too early."""
    return nll.cumsum(1) + np.where(np.isfinite(end), np.concatenate([end[:, :1], end[:, :-1]], 1), np.inf)


_TOTALS = "didact.infer.span_scores:totals"


def _exact(name: str, a: str, margin: float, unit: str = "nats") -> verdict.Test:
    return verdict.Test(name=name, kind="exact", a=a, margin=margin, unit=unit)


def _never_above(name: str, a: str) -> verdict.Test:
    return verdict.Test(name=name, kind="bound", a=a, null=1e-4, direction="less", unit="nats")


def _more(name: str, a: str, b: str, unit: str = "% points", gates: bool = True) -> verdict.Test:
    role: Any = "verdict" if gates else "none"
    return verdict.Test(name=name, kind="difference", a=a, b=b, unit=unit, gates=role)


def _broken(name: str, totals: Callable[..., Any]) -> runner.Sabotage:
    return runner.Sabotage(
        name=name, breaks="scores are those of forced decoding", patch={_TOTALS: totals}, metric="brute force.scores"
    )


CLAIM = runner.Claim(
    method="exact-extract",
    text=(
        "One decoder row per start finds the likeliest span of a passage exactly. Asked without any tuning, a model's "
        "greedy answers are often no span, and the exact answers are better (F1); after tuning on questions the gap "
        "closes and greedy decoding finds the likeliest span more often. Recurring-span pre-training makes greedy "
        "decoding extractive without a question."
    ),
    run=run,
    gates=(verdict.gate("the model can answer at all", "k=0.exact_f1", at_least=5.0, unit="F1 %"),),
    tests=(
        _exact("scores are those of forced decoding", "brute force.scores", 1e-4),
        _exact("is the likeliest span", "brute force.answer", 1e-4),
        _exact("one row per start", "brute force.rows", 0.0, "rows"),
        _never_above("greedy along the passage is never likelier", "brute force.above_greedy"),
        _never_above("greedy spans are never likelier", "k=0.above_greedy"),
        _more("exact beats greedy untuned", "k=0.exact_f1", "k=0.greedy_f1"),
        _more("tuning closes the gap", "k=0.gap", "k=1024.gap"),
        verdict.Test(name="tuning makes greedy optimal", kind="bound", a="k.optimality_trend", unit="Spearman rho"),
        _more("recurring spans make it extractive", "recurring.extractiveness", "random.extractiveness", gates=False),
        _more("recurring spans help greedy", "recurring.greedy_f1", "random.greedy_f1", gates=False),
    ),
    sabotages=(
        _broken("end token left out", _end_left_out),
        _broken("mean instead of sum", _mean),
        _broken("end read one token early", _shifted),
        runner.Sabotage(
            name="no other occurrence left", breaks="recurring spans help greedy",
            options={"hide": True}, metric="recurring.greedy_f1",
        ),
    ),
    seeds={"smoke": 1, "quick": 5, "full": 10},
)  # fmt: skip

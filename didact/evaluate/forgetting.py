"""Metrics of unlearning: the TOFU metrics, extraction strength, min-k membership.

Most functions return per-record arrays, so that intervals can be computed; scalars derive from them. Sources: TOFU
(Maini et al., 2024) and its official code, extraction strength (Carlini et al., 2021, as in
open-unlearning), min-k probability (Shi et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from didact.data import encode, words
from didact.models import forward
from didact.models.model import Model
from didact.objectives import tokens as token_functions
from didact.types import Demo

Array = NDArray[np.float64]
ASKED = 64  # records that show whether a model ends its answers
MIN_K = 0.2  # share of least likely tokens in min-k membership


def rows_of(model: Model, records: Sequence[Demo], name: str = "records") -> list[encode.TokenizedExample]:
    """Tokenize the records' prompts and completions for this model."""
    pairs = [(r.prompt, r.completion) for r in records]
    return encode.rows(model.tokenizer, pairs, model.kind, model.context, name, model.condition)


def answers(model: Model, records: Sequence[Demo], name: str = "records", end: bool = True) -> dict[str, Array]:
    """Measures of how well each record's answer is known, `(N,)` each, with or without its end token: see `known`."""
    return answer_scores(model, records, name)[end]


def answer_scores(model: Model, records: Sequence[Demo], name: str = "records") -> dict[bool, dict[str, Array]]:
    """Measures of how well each record's answer is known, `(N,)` each: with its end token (True) and without (False).

    `probability` exp(-mean nll), `accuracy` share of answer tokens that are the first choice,
    `extraction` `1 - min{k : greedy continuation of y_<k equals the rest} / T`, `entropy` of the
    predictions in nats, `min_k` mean log-prob of the least likely fifth of the tokens. `ended` is 1 where an end
    token is the first choice after the answer; if the model has several end tokens, any of them counts.

    Args:
        model: causal or seq2seq.
        records: prompts with their answers.
        name: name of the records in messages.
    """
    rows = rows_of(model, records, name)
    names = ("probability", "accuracy", "extraction", "entropy", "min_k", "ended")
    out = {end: {k: np.zeros(len(rows)) for k in names} for end in (True, False)}
    ends = sorted(encode.stops(model.tokenizer))
    fns = {"logp": token_functions.logp, "correct": token_functions.correct, "entropy": token_functions.entropy}
    fns |= {
        "ended": partial(token_functions.any_correct, any_of=ends),
        "end": partial(token_functions.any_logp, any_of=ends),
    }
    for group, batch, values in forward.score(model, rows, fns):
        row = batch.row.cpu().numpy()
        per_token = {k: v.double().cpu().numpy() for k, v in values.items()}
        for j, i in enumerate(group):
            logp, right, entropy = (per_token[k][row == j] for k in ("logp", "correct", "entropy"))
            has_end = rows[i].completion[-1] in ends
            if has_end:
                ended = per_token["ended"][row == j][-1]
                logp[-1], right[-1] = per_token["end"][row == j][-1], ended
                out[True]["ended"][i] = out[False]["ended"][i] = ended
            for end, length in ((True, len(logp)), (False, len(logp) - has_end)):
                scores = out[end]
                scores["probability"][i] = np.exp(logp[:length].mean())
                scores["accuracy"][i] = right[:length].mean()
                scores["extraction"][i] = extraction_strength(right[:length])
                scores["entropy"][i] = entropy[:length].mean()
                scores["min_k"][i] = np.sort(logp[:length])[: max(1, round(MIN_K * length))].mean()
    return out


def totals(model: Model, rows: Sequence[encode.TokenizedExample]) -> dict[bool, tuple[Array, Array]]:
    """Log-prob of every completion, SUM over its tokens, and its token count, `(N,)` each: with its end token (True)
    and without (False)."""
    ends = encode.stops(model.tokenizer)
    total, count, last = (np.zeros(len(rows)) for _ in range(3))
    for group, batch, values in forward.score(model, rows):
        row, logp = batch.row.cpu().numpy(), values["logp"].double().cpu().numpy()
        for j, i in enumerate(group):
            own = logp[row == j]
            total[i], count[i] = own.sum(), len(own)
            last[i] = own[-1]
    ended = np.array([row.completion[-1] in ends for row in rows])
    return {True: (total, count), False: (total - np.where(ended, last, 0.0), count - ended)}


def ends_answers(model: Model, records: Sequence[Demo]) -> bool:
    """Whether a model ends its answers: an end token is its first choice after at least half of the records' answers.

    A base model goes on instead. True if the tokenizer has no end token, since then none is scored.
    """
    if not encode.stops(model.tokenizer):
        return True
    return bool(answers(model, records[:ASKED])["ended"].mean() >= 0.5)


def counted(end: bool) -> str:
    """Say in a measure's help text whether it counts the end token."""
    return "end token included" if end else "end token not counted"


def extraction_strength(right: Array) -> float:
    """`1 - k/T`, k the shortest prefix after which every token is the greedy one; `right (T,)` is 0 or 1.

    Greedy decoding from y_<k reproduces the rest exactly when each of its tokens is the first choice given
    the true tokens before it, so one teacher-forced pass decides all k.
    """
    errors = np.flatnonzero(right < 0.5)
    k = int(errors[-1]) + 1 if len(errors) else 0
    return 1 - k / len(right)


def truth_ratios(
    model: Model,
    records: Sequence[Demo],
    orientation: Literal["code", "paper"] = "code",
    average: Literal["geometric", "arithmetic"] = "geometric",
    name: str = "records",
    end: bool = True,
) -> Array:
    """The truth ratio of each record, from its `paraphrased` (else its own) answer and its `perturbed` ones.

    `code` (TOFU's repository): `P(paraphrased) / mean_j P(perturbed_j)`, above 1 where the truth is
    preferred; `paper` (and open-unlearning): the inverse. P is length-normalised, `exp(-mean nll)`, over the end token
    too unless `end` is False. The repository's mean is geometric, the paper's arithmetic.
    """
    true_, perturbed = _answer_probabilities(model, records, name, end)
    if average == "geometric":
        mean = np.array([np.exp(np.log(w).mean()) for w in perturbed])
    else:
        mean = np.array([w.mean() for w in perturbed])
    ratio = true_ / np.maximum(mean, np.finfo(float).tiny)
    return ratio if orientation == "code" else 1 / np.maximum(ratio, np.finfo(float).tiny)


def choice_probabilities(model: Model, records: Sequence[Demo], name: str = "records") -> Array:
    """`p_true / (p_true + sum_j p_perturbed_j)`, p length-normalised: TOFU's metric for facts and authors."""
    plain = [Demo(prompt=r.prompt, completion=r.completion, perturbed=r.perturbed) for r in records]
    true_, perturbed = _answer_probabilities(model, plain, name)
    return np.array([t / (t + w.sum()) for t, w in zip(true_, perturbed, strict=True)])


def forget_truth_score(ratios: Array) -> float:
    """TOFU's score on the forget set, `mean min(TR, 1/TR)`, the same in both orientations."""
    return float(np.minimum(ratios, 1 / ratios).mean())


def retain_truth_score(ratios: Array) -> float:
    """TOFU's score elsewhere, `mean max(0, 1 - 1/TR)` with TR in the code's orientation."""
    return float(np.maximum(0, 1 - 1 / ratios).mean())


def rouge_recall(generated: Sequence[str], gold: Sequence[str]) -> Array:
    """ROUGE-L recall of each generation against the gold answer, stemmed as in TOFU, in any script."""
    from rouge_score import rouge_scorer, tokenizers

    class Words(tokenizers.DefaultTokenizer):  # type: ignore[misc]  # rouge_score has no types
        """rouge_score's own words, and words of letters that it would drop."""

        def tokenize(self, text: str) -> list[str]:
            """The words of a text."""
            own = super().tokenize
            if not words.foreign(text):
                return list(own(text))
            return [t for word in words.words(text.lower()) for t in (own(word) if word.isascii() else [word])]

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words(use_stemmer=True))
    return np.array(
        [scorer.score(reference, text)["rougeL"].recall for text, reference in zip(generated, gold, strict=True)]
    )


def membership_auc(members: Array, non_members: Array) -> float:
    """Probability that a member scores above a non-member (ties count half): .5 shows no trace of membership."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(members, non_members).statistic / (len(members) * len(non_members)))


def chance(records: Sequence[Demo]) -> float:
    """The mean of `choice_probabilities` for a model without knowledge: mean 1 / (1 + number of perturbed answers)."""
    return float(np.mean([1 / (1 + len(r.perturbed or ())) for r in records]))


def has_truth(records: Sequence[Demo]) -> bool:
    """Whether every record has perturbed (wrong) answers."""
    return all(r.perturbed for r in records)


def _answer_probabilities(
    model: Model, records: Sequence[Demo], name: str, end: bool = True
) -> tuple[Array, list[Array]]:
    pairs: list[tuple[str, str]] = []
    for r in records:
        pairs += [(r.prompt, answer) for answer in (r.paraphrased or r.completion, *(r.perturbed or ()))]
    rows = encode.rows(model.tokenizer, pairs, model.kind, model.context, name, model.condition, end)
    total, count = forward.row_logp(model, rows)
    p = np.exp((total / count).numpy())
    true_, perturbed, start = [], [], 0
    for r in records:
        n = len(r.perturbed or ())
        true_.append(p[start])
        perturbed.append(p[start + 1 : start + 1 + n])
        start += 1 + n
    return np.array(true_), perturbed

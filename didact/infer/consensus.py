"""Rank candidates by a model's probabilities as generator and as discriminator, and by the consensus of both.

    g    log p(y | x)                                           mi   log p(y | x, correct) + log p(correct | x, y)
    sc   log p(y | x, correct) - log p(y | x, incorrect)        d    D_1(correct | y), without the model's bias to yes
    avg  log G_1(y | correct) + log D_1(correct | y)            er_g, er_d   G and D after the consensus game

K candidates take 3 K log-probs of texts and K verdicts; the game itself is arithmetic (`infer.equilibrium`).

Source: Jacob et al. 2023, arXiv:2310.09139; avg is ours, a cheap baseline for the game.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from didact.errors import BudgetError
from didact.infer import equilibrium, rank, yesno
from didact.infer import lm as language_models
from didact.infer.equilibrium import Game, Policies
from didact.types import LM, Messages

Floats = NDArray[np.float64]
Rule = Literal["er_d", "er_g", "avg", "g", "d", "mi", "sc"]
RULES: tuple[Rule, ...] = get_args(Rule)
AT_ONCE = 2048  # candidates scored between two checks of the budget


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Prompt templates; `{prompt}` is the question (of a conversation the last turn), `{candidate}` an answer.

    Args:
        correct: asks for a correct answer.
        incorrect: asks for an incorrect answer.
        verify: asks whether an answer is correct.
        yes: the verdict that it is correct.
        no: the verdict that it is not.
    """

    correct: str = "Answer correctly.\n\n{prompt}"
    incorrect: str = "Answer incorrectly.\n\n{prompt}"
    verify: str = "{prompt} {candidate}\n\nIs this answer correct, yes or no?\n\nReply:"
    yes: str = "Yes"
    no: str = "No"

    def __post_init__(self) -> None:
        for name in ("correct", "incorrect", "verify"):  # a shell passes the two characters \\n
            text = getattr(self, name).replace("\\n", "\n")
            object.__setattr__(self, name, text)
            yesno.fill(text, {"prompt": "", **({"candidate": ""} if name == "verify" else {})}, f"wording.{name}")


class Scores(NamedTuple):
    """A model's log-probs of the candidates, in nats: `plain (questions, K)` after the question alone, `g (questions,
    2, K)` when asked for a correct or an incorrect answer, `d (questions, K, 2)` its verdicts. NaN where a question has
    fewer candidates, or the budget ended before it; `undecided` verdicts, neither yes nor no, count half for each."""

    plain: Floats
    g: Floats
    d: Floats
    undecided: int = 0
    n_questions: int = 0
    ended: bool = False

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Mask of the questions that have scores."""
        return np.asarray((~np.isnan(self.plain)).any(1))


class Ranked(NamedTuple):
    """Each question's candidates, the model's log-probs of them, every rule's scores `(questions, K)` (higher is
    better), and the initial and final policies."""

    candidates: Sequence[Sequence[str]]
    scores: Scores
    rules: Mapping[Rule, Floats]
    start: Policies
    end: Policies

    def winners(self, rule: Rule) -> list[str]:
        """Return the best candidate of every question; an empty text where there is none."""
        picks = zip(best(self.rules[rule]), self.candidates, strict=True)
        return ["" if j is None else texts[j] for j, texts in picks]


def scores(
    lm: LM, prompts: Sequence[str], candidates: Sequence[Sequence[str]], wording: Wording, rule: rank.Rule = "sum"
) -> Scores:
    """Score every candidate with a model.

    Args:
        lm: with `score`; verdicts are read from its top next-token log-probs if it gives them, else scored too.
        prompts: the questions.
        candidates: distinct answers to each question.
        wording: the prompt templates.
        rule: a candidate's log-prob: `sum`, or its mean by `token` or `character`.
    """
    k = max(map(len, candidates), default=0)
    plain, g, d = (np.full((len(prompts), *shape), np.nan) for shape in ((k,), (2, k), (k, 2)))
    undecided, count, ended = 0, 0, False
    pairs = [(i, j) for i, texts in enumerate(candidates) for j in range(len(texts))]
    for batch in _batches(pairs, AT_ONCE):
        texts = [candidates[i][j] for i, j in batch]
        columns = [
            [prompts[i] for i, _ in batch],
            [fill(wording.correct, prompts[i]) for i, _ in batch],
            [fill(wording.incorrect, prompts[i]) for i, _ in batch],
        ]
        try:
            likelihoods = iter(lm.score([(p, t) for column in columns for p, t in zip(column, texts, strict=True)]))
            verdicts = _verdicts(lm, [fill(wording.verify, prompts[i], candidates[i][j]) for i, j in batch], wording)
        except BudgetError:
            ended = True
            break
        for table in (plain, g[:, 0], g[:, 1]):
            for (i, j), text, likelihood in zip(batch, texts, likelihoods, strict=False):
                table[i, j] = rank.by_rule(rule, likelihood.logp, likelihood.tokens, max(1, len(text.strip())))
        with np.errstate(divide="ignore"):
            for (i, j), p in zip(batch, verdicts, strict=True):
                d[i, j] = np.log([p, 1 - p]) if p == p else np.log(0.5)
        undecided += sum(p != p for p in verdicts)
        count += len(batch)
    return Scores(plain, g, d, undecided, count, ended)


def fill(template: str, prompt: str, candidate: str = "") -> str:
    """Fill a question into a template; a conversation has its last turn replaced."""
    question = prompt.turns[-1]["content"] if isinstance(prompt, Messages) else prompt.rstrip(" ")
    text = yesno.fill(template, {"prompt": str(question), "candidate": candidate.strip()})
    if isinstance(prompt, Messages):
        return Messages([*prompt.turns[:-1], {**prompt.turns[-1], "content": text}], prompt.tools)
    return text


def play(
    lm: LM, prompts: Sequence[str], candidates: Sequence[Sequence[str]], wording: Wording, game: Game,
    rule: rank.Rule = "sum",
) -> Ranked:  # fmt: skip
    """Score every candidate, play the game, and rank by every rule. Arguments as in `scores`."""
    return played(candidates, scores(lm, prompts, candidates, wording, rule), game)


def played(candidates: Sequence[Sequence[str]], scored: Scores, game: Game) -> Ranked:
    """Play the game on given scores, and rank by every rule."""
    start = equilibrium.initial(scored.g, scored.d, game.normalise)
    end = equilibrium.solve(start, game)
    g_correct, d_correct = scored.g[:, 0], start.discriminator[:, :, 0]
    rules: dict[Rule, Floats] = {
        "er_d": end.discriminator[:, :, 0],
        "er_g": end.generator[:, 0],
        "avg": np.log(start.generator[:, 0]) + np.log(d_correct),
        "g": scored.plain,
        "d": d_correct,
        "mi": g_correct + np.fmax(scored.d[:, :, 0], equilibrium.LEAST),
        "sc": g_correct - scored.g[:, 1],  # the logit of correct
    }
    return Ranked(candidates, scored, rules, start, end)


def best(scores: Floats) -> list[int | None]:
    """Return the index of every question's best candidate, the first of equal ones; None where there is none."""
    return [None if np.isnan(row).all() else int(np.nanargmax(row)) for row in scores]


def agreement(a: Floats, b: Floats) -> float:
    """Return the share of questions for which two rules choose the same candidate."""
    pairs = [(x, y) for x, y in zip(best(a), best(b), strict=True) if x is not None]
    return float(np.mean([x == y for x, y in pairs])) if pairs else float("nan")


def kl_moved(start: Policies, end: Policies) -> Mapping[str, float]:
    """Return each player's mean KL(final || initial policy) in nats; the discriminator's is summed over candidates."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [y * (np.log(y) - np.log(x)) for x, y in zip(start, end, strict=True)]
    g, d = (np.nansum(part, axis=2) for part in parts)
    return {"generator": float(g.mean()), "discriminator": float(d.sum(1).mean())} if g.size else {}


def _verdicts(lm: LM, prompts: Sequence[str], wording: Wording) -> list[float]:
    """Return P(yes) among yes and no; NaN where the model gives neither."""
    if isinstance(lm, language_models.Local) or not language_models.lacks(lm, "top_logprobs"):
        return yesno.probabilities(lm, prompts, wording.yes, wording.no)
    both = iter(lm.score([(p, word) for p in prompts for word in (wording.yes, wording.no)]))
    return [yesno.share(next(both).logp, next(both).logp) for _ in prompts]


def _batches(pairs: Iterable[tuple[int, int]], size: int) -> Iterator[list[Any]]:
    """Yield batches of about `size` candidates, without splitting those of one question."""
    batch: list[tuple[int, int]] = []
    for i, j in pairs:
        if len(batch) >= size and j == 0:
            yield batch
            batch = []
        batch.append((i, j))
    if batch:
        yield batch

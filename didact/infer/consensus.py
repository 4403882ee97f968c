"""Candidates ranked by what a model says of them as a generator and as a judge, and by what both agree on.

    g    log p(y | x)                                           mi   log p(y | x, correct) + log p(correct | x, y)
    sc   log p(y | x, correct) - log p(y | x, incorrect)        d    D_1(correct | y), less the model's yes to all
    avg  log G_1(y | correct) + log D_1(correct | y)            er_g, er_d   G and D after the consensus game

K candidates take 3 K log-probs of texts and K verdicts; the game itself is arithmetic (`infer.equilibrium`).

Source: Jacob et al. 2023, arXiv:2310.09139; avg is ours, the cheap rival of the game.
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
AT_ONCE = 2048  # candidates between two looks at the budget


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How the model is asked; `{prompt}` is the question (of a conversation its last turn), `{candidate}` an answer.

    Args:
        correct: asks for a right answer.
        incorrect: asks for a wrong one.
        verify: asks whether an answer is right.
        yes: the verdict that it is.
        no: the verdict that it is not.
    """

    correct: str = "Answer correctly.\n\n{prompt}"
    incorrect: str = "Answer incorrectly.\n\n{prompt}"
    verify: str = "{prompt} {candidate}\n\nIs this answer correct, yes or no?\n\nReply:"
    yes: str = "Yes"
    no: str = "No"

    def __post_init__(self) -> None:
        for name in ("correct", "incorrect", "verify"):  # a shell hands over the two characters \\n
            text = getattr(self, name).replace("\\n", "\n")
            object.__setattr__(self, name, text)
            yesno.fill(text, {"prompt": "", **({"candidate": ""} if name == "verify" else {})}, f"wording.{name}")


class Scores(NamedTuple):
    """What a model says of the candidates, in nats: `plain (questions, K)`, `g (questions, 2, K)` asked for a correct
    and for an incorrect answer, `d (questions, K, 2)` its verdicts. NaN where a question has fewer candidates, or the
    budget ended before it; `undecided` verdicts were neither yes nor no and count as half of each."""

    plain: Floats
    g: Floats
    d: Floats
    undecided: int = 0
    asked: int = 0
    ended: bool = False

    @property
    def known(self) -> NDArray[np.bool_]:
        """Of which questions there are scores."""
        return np.asarray((~np.isnan(self.plain)).any(1))


class Ranked(NamedTuple):
    """The candidates of each question, what the model says of them, every rule's score `(questions, K)` (higher is
    better), and the first and last policies."""

    candidates: Sequence[Sequence[str]]
    found: Scores
    rules: Mapping[Rule, Floats]
    start: Policies
    end: Policies

    def winners(self, rule: Rule) -> list[str]:
        """The best candidate of every question; an empty text where there is none."""
        at = zip(best(self.rules[rule]), self.candidates, strict=True)
        return ["" if j is None else texts[j] for j, texts in at]


def scores(
    lm: LM, prompts: Sequence[str], candidates: Sequence[Sequence[str]], wording: Wording, rule: rank.Rule = "sum"
) -> Scores:
    """Ask a model about every candidate.

    Args:
        lm: with `score`; verdicts are read from its likeliest next tokens where it gives them, else scored too.
        prompts: the questions.
        candidates: of each; different texts.
        wording: how it is asked.
        rule: how the log-prob of a candidate is taken: `sum`, or its mean by `token` or `character`.
    """
    k = max(map(len, candidates), default=0)
    plain, g, d = (np.full((len(prompts), *shape), np.nan) for shape in ((k,), (2, k), (k, 2)))
    undecided, asked, ended = 0, 0, False
    at = [(i, j) for i, texts in enumerate(candidates) for j in range(len(texts))]
    for some in _whole(at, AT_ONCE):
        texts = [candidates[i][j] for i, j in some]
        ways = [
            [prompts[i] for i, _ in some],
            [worded(wording.correct, prompts[i]) for i, _ in some],
            [worded(wording.incorrect, prompts[i]) for i, _ in some],
        ]
        try:
            found = iter(lm.score([(p, t) for way in ways for p, t in zip(way, texts, strict=True)]))
            said = _verdicts(lm, [worded(wording.verify, prompts[i], candidates[i][j]) for i, j in some], wording)
        except BudgetError:
            ended = True
            break
        for out in (plain, g[:, 0], g[:, 1]):
            for (i, j), text, one in zip(some, texts, found, strict=False):
                out[i, j] = rank.by_rule(rule, one.logp, one.tokens, max(1, len(text.strip())))
        with np.errstate(divide="ignore"):
            for (i, j), p in zip(some, said, strict=True):
                d[i, j] = np.log([p, 1 - p]) if p == p else np.log(0.5)
        undecided += sum(p != p for p in said)
        asked += len(some)
    return Scores(plain, g, d, undecided, asked, ended)


def worded(template: str, prompt: str, candidate: str = "") -> str:
    """A question in a template; of a conversation its last turn is, and it stays one."""
    asked = prompt.turns[-1]["content"] if isinstance(prompt, Messages) else prompt.rstrip(" ")
    text = yesno.fill(template, {"prompt": str(asked), "candidate": candidate.strip()})
    if isinstance(prompt, Messages):
        return Messages([*prompt.turns[:-1], {**prompt.turns[-1], "content": text}], prompt.tools)
    return text


def play(
    lm: LM, prompts: Sequence[str], candidates: Sequence[Sequence[str]], wording: Wording, game: Game,
    rule: rank.Rule = "sum",
) -> Ranked:  # fmt: skip
    """Ask about every candidate, play the game, and rank by every rule. Arguments as in `scores`."""
    return played(candidates, scores(lm, prompts, candidates, wording, rule), game)


def played(candidates: Sequence[Sequence[str]], found: Scores, game: Game) -> Ranked:
    """The game on scores that are there, and every rule's ranking."""
    start = equilibrium.initial(found.g, found.d, game.normalise)
    end = equilibrium.solve(start, game)
    correct, sure = found.g[:, 0], start.discriminator[:, :, 0]
    rules: dict[Rule, Floats] = {
        "er_d": end.discriminator[:, :, 0],
        "er_g": end.generator[:, 0],
        "avg": np.log(start.generator[:, 0]) + np.log(sure),
        "g": found.plain,
        "d": sure,
        "mi": correct + np.fmax(found.d[:, :, 0], equilibrium.LEAST),
        "sc": correct - found.g[:, 1],  # its logit
    }
    return Ranked(candidates, found, rules, start, end)


def best(scores: Floats) -> list[int | None]:
    """The candidate of the highest score of every question, the first of equals; None where there is none."""
    return [None if np.isnan(row).all() else int(np.nanargmax(row)) for row in scores]


def agreement(a: Floats, b: Floats) -> float:
    """How often two rules choose the same candidate."""
    pairs = [(x, y) for x, y in zip(best(a), best(b), strict=True) if x is not None]
    return float(np.mean([x == y for x, y in pairs])) if pairs else float("nan")


def moved(start: Policies, end: Policies) -> Mapping[str, float]:
    """How far the players went from what they said at first, nats a question and player: mean KL(last || first)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [y * (np.log(y) - np.log(x)) for x, y in zip(start, end, strict=True)]
    g, d = (np.nansum(part, axis=2) for part in parts)
    return {"generator": float(g.mean()), "discriminator": float(d.sum(1).mean())} if g.size else {}


def _verdicts(lm: LM, prompts: Sequence[str], wording: Wording) -> list[float]:
    """P(yes) of yes and no; NaN where the model says neither."""
    if isinstance(lm, language_models.Local) or not language_models.lacks(lm, "top_logprobs"):
        return yesno.probabilities(lm, prompts, wording.yes, wording.no)
    both = iter(lm.score([(p, word) for p in prompts for word in (wording.yes, wording.no)]))
    return [yesno.share(next(both).logp, next(both).logp) for _ in prompts]


def _whole(at: Iterable[tuple[int, int]], most: int) -> Iterator[list[Any]]:
    """Candidates in parts of about `most`, those of one question together."""
    out: list[tuple[int, int]] = []
    for i, j in at:
        if len(out) >= most and j == 0:
            yield out
            out = []
        out.append((i, j))
    if out:
        yield out

"""Equilibrium ranking: answers on which a model as generator and as judge agree (Jacob et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from didact.bounds import Count
from didact.data import words
from didact.evaluate import ranked
from didact.infer import ask
from didact.infer import consensus as game_of
from didact.infer import lm as language_models
from didact.infer.ask import Asking
from didact.infer.consensus import Ranked, Rule, Wording
from didact.infer.equilibrium import Game
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Cost, Demo, Result

SHOWN = 3  # sample answers in the report


@method(
    "consensus",
    paper="The Consensus Game: Language Model Generation via Equilibrium Search",
    year=2023,
    source="arXiv:2310.09139",
    gives=("predict", "findings", "records"),
    capabilities=("score",),
    protocol=("answer",),
    answers="test",
    presets={
        "er-g": {"rank": "er_g"},
        "calibrated": {"game.lam_g": 1.0, "game.lam_d": 1.0},
        "average": {"rank": "avg"},
        "mutual-information": {"rank": "mi"},
    },
)
def consensus(
    model: Model | LM,
    test: Sequence[Demo] | None = None,
    *,
    rank: Rule = "er_d",
    candidates: Count = 20,
    length: Literal["sum", "token", "character"] = "sum",
    wording: Wording = Wording(),
    game: Game = Game(),
    asking: Asking = Asking(temperature=1.0, max_new_tokens=64, tries=1),
    stop: str = "\n",
    seed: int = 0,
) -> Result:
    """Answer with the candidate on which the model as generator and the model as judge agree.

    Candidates are the record's `choices`, or different answers sampled for it. The model gives the log-prob of each as
    a correct and as an incorrect answer, and says whether it is correct; a game between generator and judge brings them
    to agree while each stays near its initial policy (`infer.equilibrium`). Nothing is trained, no label is read.

        er_d  D*(correct | y)    er_g  G*(y | correct)    the game's last policies
        avg   log G_1(y | correct) + log D_1(correct | y) the two first policies added: no game
        g     log p(y | x)       d     D_1(correct | y)   either alone
        mi    log p(y | x, correct) + log p(correct | x, y)
        sc    log p(y | x, correct) - log p(y | x, incorrect)

    Where both sides are about equally good the game beats both; where one is much worse it falls in between. Adding the
    two (avg) is as good in our measurements: the findings show all rules side by side.

    Args:
        model: scores texts; verdicts are read from its top next tokens if it gives them.
        test: questions to answer; with `choices` these are ranked. The completion is only used for accuracies.
        rank: the rule that gives the answer.
        candidates: answers sampled for a question without choices.
        length: log-prob of a candidate as the sum over its tokens, its mean over them, or over characters.
        wording: how the model is asked.
        game: settings of the equilibrium search.
        asking: how candidates are sampled, and how many at most.
        stop: a sampled answer ends before this text; empty does not stop.
        seed: random seed of the samples.

    Returns:
        `predict(prompts, choices=None)`; one record per question with its ranking, and `chosen` and `rejected`, so that
        the file can be used as preferences; as transcript the winners on which both sides agree, to train on as
        pseudo-labels; findings with every rule's accuracy, and how often both sides agree before and after.

    Raises:
        UserError: a model that cannot score.
    """
    start_time = time.monotonic()
    lm, test = language_models.need(model, "score", by="consensus"), test or ()
    asker = ask.Asker(lm, asking, seed)

    def play(prompts: Sequence[str], choices: Sequence[Sequence[str] | None]) -> Ranked:
        texts = _candidates(asker, prompts, choices, candidates, stop.replace("\\n", "\n"))
        return game_of.play(lm, prompts, texts, wording, game, length)

    ranking = play([r.prompt for r in test], [r.choices for r in test])
    answers = ranking.winners(rank)
    cache: dict[tuple[str, tuple[str, ...]], str] = {(str(r.prompt), ()): a for r, a in zip(test, answers, strict=True)}

    def predict(prompts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[str]:
        keys = [(str(p), tuple(c)) for p, c in zip(prompts, choices or [()] * len(prompts), strict=True)]
        new = {key: p for key, p in zip(keys, prompts, strict=True) if key not in cache}
        if new:
            cache.update(zip(new, play(list(new.values()), [c for _, c in new]).winners(rank), strict=True))
        return [cache[key] for key in keys]

    examples = zip(test[:SHOWN], answers, strict=False)
    return Result(
        predict=predict,
        records=ranked.records_of(ranking, test, rank),
        transcript=ranked.pseudo_labels(ranking, test),
        findings=ranked.findings(ranking, test, game)
        | asker.findings()
        | {"complete": not (ranking.scores.ended or asker.ended)},
        warnings=asker.warnings() + ranked.warnings(ranking, lm, test, wording),
        samples=[{"part": "test", "prompt": r.prompt, "wanted": r.completion, "after": a} for r, a in examples],
        cost=Cost(seconds=time.monotonic() - start_time, calls=4 * ranking.scores.n_questions + len(asker.exchanges)),
    )


def _candidates(
    asker: ask.Asker, prompts: Sequence[str], choices: Sequence[Sequence[str] | None], count: int, stop: str
) -> list[list[str]]:
    """Return the choices, or sampled answers where there are none, without duplicates."""
    items = [i for i, texts in enumerate(choices) if not texts for _ in range(count)]
    sampled = asker.ask(
        [prompts[i] for i in items], lambda t: words.key(t) or None, "candidate", items, stop=(stop,) if stop else ()
    )
    out = [list(texts or ()) for texts in choices]
    for i, text in zip(items, sampled, strict=True):
        out[i] += [text] if text else []
    return [words.distinct(texts) for texts in out]

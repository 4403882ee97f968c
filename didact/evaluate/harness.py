"""Any model of didact's as a model of lm-evaluation-harness (0.4), which ranks the choices of a task by a rule.

    from didact.evaluate import harness
    lm_eval.simple_evaluate(model=harness.model(didact.load("DIR"), rank="er_d"), tasks=["arc_easy"])

Requests about one document's context are one question: its continuations are the candidates. What the harness is given
for each is the rule's score, so that `acc` is the accuracy of the ranking; `acc_norm` divides scores by lengths, which
only log-probs (`g`) are made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from didact.data import words
from didact.infer import consensus
from didact.infer import lm as language_models
from didact.infer.consensus import Rule, Wording
from didact.infer.equilibrium import Game
from didact.models.model import Model
from didact.types import LM, UserError

LEAST = -1e9  # of a candidate that has no score


def model(of: Model | LM, rank: Rule = "er_d", wording: Wording = Wording(), game: Game = Game()) -> Any:
    """A model for `lm_eval.simple_evaluate(model=...)`.

    Args:
        of: an opened model (`didact.load`), or a server (`didact.connect`).
        rank: by which rule of `consensus` candidates are ranked; `g` is the harness's own, the plain log-prob.
        wording: how the model is asked.
        game: of the equilibrium search.

    Raises:
        UserError: lm-eval is not installed, or the model cannot score.
    """
    try:
        from lm_eval.api import model as theirs
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed: pip install lm-eval") from None
    lm = language_models.need(of, "score", by="lm-eval")

    class Ranking(theirs.LM):  # type: ignore[misc]  # it has no types
        """Ranks choices, and writes what a task wants written."""

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            """Every candidate's score; none is said to be what the model would write."""
            return [(score, False) for score in scores(lm, requests, rank, wording, game)]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            """Log-probs of whole texts."""
            return [found.logp for found in lm.score([("", request.args[0]) for request in requests])]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            """Greedy answers up to a stop string."""
            out = []
            for request in requests:
                prompt, how = request.args
                until = how.get("until") or []
                stop = (until,) if isinstance(until, str) else tuple(until)
                out.append(lm.generate([prompt], int(how.get("max_gen_toks", 256)), stop=stop)[0][0])
            return out

    return Ranking()


def scores(
    lm: LM, requests: Sequence[Any], rank: Rule, wording: Wording = Wording(), game: Game = Game()
) -> list[float]:  # fmt: skip
    """The score of every request's continuation among those of its question, in order.

    Args:
        lm: the model.
        requests: the harness's, with `args` (context, continuation), `task_name` and `doc_id`.
        rank: by which rule.
        wording: how the model is asked.
        game: of the equilibrium search.

    Raises:
        UserError: a question has one continuation alone, which nothing is to be ranked with.
    """
    questions: dict[tuple[Any, ...], list[str]] = {}
    for request in requests:
        questions.setdefault(_question(request), []).append(request.args[1])
    candidates = [words.distinct(texts) for texts in questions.values()]
    if alone := next((key for key, texts in zip(questions, candidates, strict=True) if len(texts) < 2), None):
        raise UserError(f"{alone[0]}: document {alone[1]} has one continuation: only multiple choice can be ranked")
    made = consensus.play(lm, [context for *_, context in questions], candidates, wording, game)
    table = made.rules[rank]
    places = {key: i for i, key in enumerate(questions)}
    out = []
    for request in requests:
        i = places[_question(request)]
        text = words.key(request.args[1])
        j = next(j for j, candidate in enumerate(candidates[i]) if words.key(candidate) == text)
        out.append(float(table[i, j]) if table[i, j] == table[i, j] else LEAST)
    return out


def _question(request: Any) -> tuple[Any, ...]:
    return request.task_name, request.doc_id, request.args[0]

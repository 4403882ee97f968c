"""A didact model as a model of lm-evaluation-harness (0.4), ranking the choices of a task by a rule of `consensus`.

    from didact.evaluate import harness
    lm_eval.simple_evaluate(model=harness.model(didact.load("DIR"), rank="er_d"), tasks=["arc_easy"])

Requests about one document's context are one question, and its continuations are the candidates. The harness gets the
rule's score of each, so that `acc` is the accuracy of the ranking; `acc_norm` divides scores by lengths, which makes
sense only for log-probs (`g`).
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

LEAST = -1e9  # score of a candidate that has none


def model(of: Model | LM, rank: Rule = "er_d", wording: Wording = Wording(), game: Game = Game()) -> Any:
    """A model for `lm_eval.simple_evaluate(model=...)`.

    Args:
        of: a model from `didact.load`, or a server from `didact.connect`.
        rank: rule of `consensus` that ranks candidates; `g` is the harness's own, the plain log-prob.
        wording: how the model is asked.
        game: settings of the equilibrium search.

    Raises:
        UserError: lm-eval is not installed, or the model cannot score.
    """
    try:
        from lm_eval.api import model as lm_eval_model
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed: pip install lm-eval") from None
    lm = language_models.need(of, "score", by="lm-eval")

    class Ranking(lm_eval_model.LM):  # type: ignore[misc]  # it has no types
        """Ranks choices, and generates free answers."""

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            """Every candidate's score; `is_greedy` is always False."""
            return [(score, False) for score in scores(lm, requests, rank, wording, game)]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            """Log-probs of whole texts."""
            return [score.logp for score in lm.score([("", request.args[0]) for request in requests])]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            """Greedy answers up to a stop string."""
            out = []
            for request in requests:
                prompt, options = request.args
                until = options.get("until") or []
                stop = (until,) if isinstance(until, str) else tuple(until)
                out.append(lm.generate([prompt], int(options.get("max_gen_toks", 256)), stop=stop)[0][0])
            return out

    return Ranking()


def scores(
    lm: LM, requests: Sequence[Any], rank: Rule, wording: Wording = Wording(), game: Game = Game()
) -> list[float]:  # fmt: skip
    """The score of every request's continuation among those of its question, in request order.

    Args:
        lm: the model.
        requests: the harness's requests, with `args` (context, continuation), `task_name` and `doc_id`.
        rank: rule that ranks candidates.
        wording: how the model is asked.
        game: settings of the equilibrium search.

    Raises:
        UserError: a question has only one continuation.
    """
    questions: dict[tuple[Any, ...], list[str]] = {}
    for request in requests:
        questions.setdefault(_question(request), []).append(request.args[1])
    candidates = [words.distinct(texts) for texts in questions.values()]
    if alone := next((key for key, texts in zip(questions, candidates, strict=True) if len(texts) < 2), None):
        raise UserError(f"{alone[0]}: document {alone[1]} has one continuation: only multiple choice can be ranked")
    result = consensus.play(lm, [context for *_, context in questions], candidates, wording, game)
    table = result.rules[rank]
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

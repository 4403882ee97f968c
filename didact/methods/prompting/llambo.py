"""LLAMBO: hyperparameter tuning with a language model's prior knowledge of such problems (Liu et al. 2024)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from didact.bounds import Count, Whole
from didact.data import spaces
from didact.infer import functions, tuning
from didact.infer import lm as language_models
from didact.infer.ask import Asking
from didact.infer.tuning import Search
from didact.infer.tuning_prompts import Card
from didact.models.model import Model
from didact.registry import method
from didact.types import LM, Metric, Objective, Result, Trial, UserError

NAME = "llambo"


@method(
    NAME,
    paper="Large Language Models to Enhance Bayesian Optimization",
    year=2024,
    source="arXiv:2402.03921",
    gives=("findings", "records"),
    capabilities=("generate",),
    presets={
        "generative": {"search.surrogate": "generative"},
        "sampler": {"search.surrogate": "none", "search.candidates": 5},
        "no-context": {"card.context": "none", "card.names": False},
        "docstring": {"search.alpha": -0.2},
    },
)
def llambo(
    model: Model | LM,
    history: Sequence[Trial] | None = None,
    *,
    space: str = "",
    objective: str | Objective | None = None,
    lower: bool = False,
    trials: Count = 25,
    start: Whole = 5,
    suggest: Count = 5,
    warm: bool = True,
    against: tuple[Literal["random", "tpe", "gp"], ...] = (),
    card: Card = Card(),
    search: Search = Search(),
    asking: Asking = Asking(max_new_tokens=500, tries=1),
    seed: int = 0,
) -> Result:
    """Tune an expensive objective in few trials, with a language model's prior knowledge of such problems.

    From a description of the task the model names `start` configurations; then, repeatedly, it is shown the trials
    so far and asked for candidates that reach

        s' = s_best + alpha (s_best - s_worst)        (scores standardised, higher is better)

    predicts the score of each (mean m and deviation d of several answers, the history in several orders), and the one
    of largest expected improvement `(m - s_best) Phi(z) + d phi(z)`, `z = (m - s_best) / d`, is tried. If its answers
    cannot be read, or the call budget is used up, Optuna's TPE proposes; the findings say how often.

    With an `objective` the loop is run. Without one it suggests what to try after the `history`: `suggest` trials
    without a score, to be filled in and passed back.

    Args:
        model: a local model or a server.
        history: trials so far: `{"config": {...}, "score": 0.83}`, without a score if one failed.
        space: a JSON file of parameters, `{"lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": true}}`: int,
            float or `choices`, with `when` for those that exist only for some values of others; or the JSON itself.
        objective: your function `module:function`, from a configuration (a dict) to a number.
        lower: whether a lower score is better.
        trials: evaluations of the objective, initial trials included.
        start: number of initial trials.
        suggest: number of suggestions if there is no objective.
        warm: the model names the initial trials; else they are random.
        against: searches without knowledge of the task, each run for as many trials of the objective, for comparison:
            random, tpe or gp (a Gaussian process).
        card: description of what is tuned.
        search: how the next trial is found.
        asking: how the model is asked, and how many calls at most.
        seed: random seed of all draws.

    Returns:
        records: the trials in order, each with its `source` (warm start, model, fallback, random) and, of the model's
        own, what it `predicted` (mean and standard deviation); findings: the best trial, the best score so far by
        trial, the best of `against`, calibration of the predictions (coverage of 90 % intervals, their width), and the
        calls; the transcript.

    Raises:
        UserError: a space or a history that cannot be read, an objective that raises or gives no number.
    """
    start_time = time.monotonic()
    if not space:
        raise UserError(f"{NAME} needs to know what is tuned: --space FILE, a JSON file of parameters")
    parameters = spaces.space_of(space)
    if search.surrogate == "generative":
        language_models.need(model, "top_logprobs", by=f"{NAME} with the generative surrogate")
    lm = language_models.need(model, "generate", by=NAME)
    score = _objective(objective)
    from didact.infer import sampler as samplers  # imports optuna, an optional extra

    study, proposer = samplers.start_study(
        lm, parameters, [(dict(t.config), t.score) for t in history or ()], lower, card=card, how=search, asking=asking,
        start=start if score else max(start, suggest), warm=warm, seed=seed,
    )  # fmt: skip
    runs = []
    for _ in range(trials if score else suggest):
        trial, config, value = samplers.next_trial(study, parameters, score)
        mean, std = proposer.predictions.get(trial.number, (math.nan, math.nan))
        guess = {"predicted": [mean, std]} if math.isfinite(mean) else {}
        runs.append(Trial(config=config, score=value, extra={"source": proposer.sources[trial.number]} | guess))
    result = Result(records=list(runs), transcript=list(proposer.asker.demos()), warnings=proposer.asker.warnings())
    sources = [t.extra["source"] for t in runs]
    scored = [t for t in [*(history or ()), *runs] if t.score is not None]
    best_of = min if lower else max
    result.findings = proposer.asker.findings() | {
        "sources": {s: sources.count(s) for s in dict.fromkeys(sources)},
        "best": _row(best_of(scored, key=_score)) if scored else None,
        "course": [best_of(_score(t) for t in scored[: n + 1]) for n in range(len(scored))],
        "next": None if score else [t.config for t in runs],
    }
    if predicted := [t for t in runs if t.score is not None and "predicted" in t.extra]:
        means, stds = zip(*(t.extra["predicted"] for t in predicted), strict=True)
        calibration = tuning.calibration(means, stds, list(map(_score, predicted)))
        result.findings["predictions"] = {"trials": len(predicted)} | calibration
    if scored and score:
        past = [(dict(t.config), t.score) for t in history or ()]
        best = {NAME: best_of(map(_score, scored))}
        for name in against:
            rival = samplers.rival(name, parameters, past, lower, start, seed)
            values = [samplers.next_trial(rival, parameters, score)[2] for _ in range(trials)]
            best[name] = best_of(v for v in [*values, *(s for _, s in past)] if v is not None)
        result.findings["best_after_as_many_trials"] = best
        sense: Any = "lower" if lower else "higher"
        result.metrics = {
            "best_score": Metric(after=best[NAME], n=len(scored), better=sense, help="of all trials"),
            **{f"best_score_beyond_{name}": Metric(after=best[NAME] - best[name], n=trials, better=sense,
                                                   help=f"the same less what {name} found in as many trials")
               for name in against},
        }  # fmt: skip
    if count := sources.count("fallback"):
        result.warnings.append(f"{count:,} of {len(runs):,} trials are TPE's: the model named no new configuration")
    result.cost.seconds = time.monotonic() - start_time
    return result


def _score(trial: Trial) -> float:
    return float(trial.score if trial.score is not None else math.nan)


def _row(trial: Trial) -> Mapping[str, Any]:
    return {"config": trial.config, "score": trial.score}


def _objective(given: str | Objective | None) -> Callable[[dict[str, Any]], float | None] | None:
    """Wrap the user's function; a result that is not a finite number counts as a failed trial."""
    if given is None:
        return None
    function = functions.import_function(given, "objective") if isinstance(given, str) else given

    def score(config: dict[str, Any]) -> float | None:
        try:
            value = float(function(dict(config)))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"objective: {type(error).__name__}: {error} for {config}") from error
        return value if math.isfinite(value) else None

    return score

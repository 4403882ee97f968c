"""LLAMBO: hyperparameters tuned by a language model that knows something about such problems (Liu et al. 2024)."""

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
    """Tune what is expensive to try, with few trials and a model that has read about such things.

    The model names `start` configurations from what it is told of the task; then, again and again, it is shown what
    was tried and asked for candidates that reach

        s' = s_best + alpha (s_best - s_worst)        (scores standardised, higher is better)

    predicts what each would score (mean m and deviation d of several answers, the history in several orders), and the
    one of largest expected improvement  (m - s_best) Phi(z) + d phi(z),  z = (m - s_best) / d,  is tried. Where its
    answers cannot be read, or the calls are used up, Optuna's TPE proposes; how often is a finding.

    With an `objective` the loop is run. Without one it says what to try next after the `history`: `suggest` trials
    without a score, to be filled in and given again.

    Args:
        model: a local model or a server.
        history: trials so far: `{"config": {...}, "score": 0.83}`, without a score where one failed.
        space: a JSON file of parameters, `{"lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": true}}`: int,
            float or `choices`, with `when` for those that are there for some values of others only; or the JSON itself.
        objective: your function `module:function`, from a configuration (a dict) to a number.
        lower: whether a lower score is better.
        trials: of the objective, those of the start among them.
        start: trials to begin with.
        suggest: what to try next, where there is no objective.
        warm: the model names the first trials; else they are random.
        against: searches that know nothing of the task, each run beside it for as many trials, which costs as many of
            the objective: random, tpe or gp (a Gaussian process).
        card: what is tuned, in words.
        search: how the next trial is found.
        asking: how the model is asked, and how many calls at most.
        seed: of everything drawn.

    Returns:
        records: the trials in order, each with its `source` (warm start, model, fallback, random) and, of the model's
        own, what it `predicted` (mean and standard deviation); findings: the best, the course of it beside those of
        `against`, how well the predictions know what they do not know (coverage of 90 % intervals, their width), and
        what was asked; the transcript.

    Raises:
        UserError: a space or a history that cannot be read, an objective that raises or gives no number.
    """
    began = time.monotonic()
    if not space:
        raise UserError(f"{NAME} needs to know what is tuned: --space FILE, a JSON file of parameters")
    known = spaces.space_of(space)
    if search.surrogate == "generative":
        language_models.need(model, "top_logprobs", by=f"{NAME} with the generative surrogate")
    lm = language_models.need(model, "generate", by=NAME)
    score = _objective(objective)
    from didact.infer import sampler as samplers  # optuna, which an extra installs

    study, proposer = samplers.begun(
        lm, known, [(dict(t.config), t.score) for t in history or ()], lower, card=card, how=search, asking=asking,
        start=start if score else max(start, suggest), warm=warm, seed=seed,
    )  # fmt: skip
    tried = []
    for _ in range(trials if score else suggest):
        trial, config, value = samplers.tried(study, known, score)
        mean, std = proposer.predictions.get(trial.number, (math.nan, math.nan))
        guess = {"predicted": [mean, std]} if math.isfinite(mean) else {}
        tried.append(Trial(config=config, score=value, extra={"source": proposer.sources[trial.number]} | guess))
    result = Result(records=list(tried), transcript=list(proposer.asker.demos()), warnings=proposer.asker.warnings())
    sources = [t.extra["source"] for t in tried]
    scored = [t for t in [*(history or ()), *tried] if t.score is not None]
    side = min if lower else max
    result.findings = proposer.asker.findings() | {
        "sources": {s: sources.count(s) for s in dict.fromkeys(sources)},
        "best": _row(side(scored, key=_score)) if scored else None,
        "course": [side(_score(t) for t in scored[: n + 1]) for n in range(len(scored))],
        "next": None if score else [t.config for t in tried],
    }
    if guessed := [t for t in tried if t.score is not None and "predicted" in t.extra]:
        means, stds = zip(*(t.extra["predicted"] for t in guessed), strict=True)
        found = tuning.calibration(means, stds, list(map(_score, guessed)))
        result.findings["predictions"] = {"trials": len(guessed)} | found
    if scored and score:
        begun = [(dict(t.config), t.score) for t in history or ()]
        best = {NAME: side(map(_score, scored))}
        for name in against:
            rival = samplers.rival(name, known, begun, lower, start, seed)
            values = [samplers.tried(rival, known, score)[2] for _ in range(trials)]
            best[name] = side(v for v in [*values, *(s for _, s in begun)] if v is not None)
        result.findings["best_after_as_many_trials"] = best
        sense: Any = "lower" if lower else "higher"
        result.metrics = {
            "best_score": Metric(after=best[NAME], n=len(scored), better=sense, help="of all trials"),
            **{f"best_score_beyond_{name}": Metric(after=best[NAME] - best[name], n=trials, better=sense,
                                                   help=f"the same less what {name} found in as many trials")
               for name in against},
        }  # fmt: skip
    if lost := sources.count("fallback"):
        result.warnings.append(f"{lost:,} of {len(tried):,} trials are TPE's: the model named no new configuration")
    result.cost.seconds = time.monotonic() - began
    return result


def _score(trial: Trial) -> float:
    return float(trial.score if trial.score is not None else math.nan)


def _row(trial: Trial) -> Mapping[str, Any]:
    return {"config": trial.config, "score": trial.score}


def _objective(given: str | Objective | None) -> Callable[[dict[str, Any]], float | None] | None:
    """The user's function; what is no finite number counts as a failed trial."""
    if given is None:
        return None
    function = functions.imported(given, "objective") if isinstance(given, str) else given

    def score(config: dict[str, Any]) -> float | None:
        try:
            value = float(function(dict(config)))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"objective: {type(error).__name__}: {error} for {config}") from error
        return value if math.isfinite(value) else None

    return score

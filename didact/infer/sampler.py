"""LLAMBO as an Optuna sampler: a language model proposes, with Optuna's TPE as the fallback.

    study = optuna.create_study(sampler=LlamboSampler(didact.connect("http://host/v1#name")))
    study.optimize(objective, 25)

With a `space` whole configurations are proposed, conditions included. Without one the space is the union of what past
trials have requested: every parameter of it is proposed, and used where the trial requests it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from didact.data.spaces import Config, Parameter, Space
from didact.errors import UserError
from didact.infer import tuning
from didact.infer.ask import Asker, Asking
from didact.infer.tuning import Search
from didact.infer.tuning_prompts import Card, Words
from didact.types import LM

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise UserError("llambo: the package optuna is missing: pip install didact[solve]") from None


class LlamboSampler(optuna.samplers.BaseSampler):
    """Samples configurations with a language model; `sources` has each trial's source (model, warm start, fallback or
    random), `predictions` the mean and standard deviation that the model predicted for its own proposals.

    Args:
        lm: the model; anything with `generate` (and `top_logprobs` for the generative surrogate).
        space: the search space, where it is known beforehand; a warm start needs it.
        card: what is tuned, in words.
        how: how the next configuration is found.
        asking: tries, calls and length of answers.
        start: initial configurations, from the model's knowledge or drawn at random.
        warm: whether the model proposes them.
        seed: of all random draws.
        fallback: the sampler used where the model proposes nothing; TPE by default.
    """

    def __init__(
        self,
        lm: LM,
        *,
        space: Space | None = None,
        card: Card = Card(),
        how: Search = Search(),
        asking: Asking = Asking(max_new_tokens=500, tries=1),
        start: int = 5,
        warm: bool = True,
        seed: int = 0,
        fallback: optuna.samplers.BaseSampler | None = None,
    ) -> None:
        self.asker, self.space, self.card, self.how = Asker(lm, asking, seed), space, card, how
        self.start, self.warm, self.seed = start, warm, seed
        self.fallback = fallback or optuna.samplers.TPESampler(seed=seed, n_startup_trials=start)
        self.random = optuna.samplers.RandomSampler(seed)
        self.sources: dict[int, str] = {}
        self.predictions: dict[int, tuple[float, float]] = {}
        self._queue: list[dict[str, Any]] | None = None
        self._proposals: dict[int, dict[str, Any]] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Propose the whole configuration of a trial."""
        completed = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        running = [t.params for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        pending = [*running, *(c for n, c in self._proposals.items() if n != trial.number)]
        space = self.space or _observed_space(completed)
        if len(study.get_trials(deepcopy=False)) <= self.start or not completed or space is None:
            config, source = self._next_warm_start(), "warm start"
        else:
            config, source = self._propose(study, completed, space, trial.number, pending), "model"
        self._proposals[trial.number] = config or {}
        self.sources[trial.number] = source if config else "fallback" if len(completed) >= self.start else "random"

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Forget the proposal of a finished trial."""
        self._proposals.pop(trial.number, None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: proposals are handed out parameter by parameter, as a trial requests them."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Empty: see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposed value if it lies in the requested distribution; else the fallback's value."""
        config = self._proposals.get(trial.number, {})
        if param_name in config and _contains(param_distribution, config[param_name]):
            return config[param_name]
        sampler = self.random if self.sources.get(trial.number) in ("random", "warm start") else self.fallback
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _next_warm_start(self) -> dict[str, Any] | None:
        """The next configuration of the warm start."""
        if self._queue is None:
            enabled = self.warm and self.space is not None
            words = Words(self.space, self.card) if self.space else None
            self._queue = tuning.warm_start(self.asker, words, self.start) if enabled and words else []
        return self._queue.pop(0) if self._queue else None

    def _propose(
        self,
        study: optuna.Study,
        completed: Sequence[FrozenTrial],
        space: Space,
        number: int,
        pending: Sequence[Config],
    ) -> dict[str, Any] | None:
        lower = study.direction == optuna.study.StudyDirection.MINIMIZE
        scores = [float(t.values[0]) for t in completed]
        history = tuning.trials([t.params for t in completed], scores, lower, self.how)
        proposal = tuning.proposed(
            self.asker, Words(space, self.card), history, self.how, self.seed + 7919 * number, pending
        )
        if proposal is None:
            return None
        self.predictions[number] = tuning.to_original(proposal.mean, proposal.std, scores, lower, self.how)
        return proposal.config


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distribution of every parameter."""
    out: dict[str, BaseDistribution] = {}
    for p in space.parameters:
        if p.type == "choice":
            out[p.name] = CategoricalDistribution(p.choices)
        elif p.type == "int":
            out[p.name] = IntDistribution(int(p.low), int(p.high), log=p.log)
        else:
            out[p.name] = FloatDistribution(p.low, p.high, log=p.log)
    return out


def suggested(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Request every active parameter of the space from a trial; return its configuration."""
    config: dict[str, Any] = {}
    for p in space.parameters:
        if all(config.get(k) in v for k, v in p.when.items()):
            if p.type == "choice":
                config[p.name] = trial.suggest_categorical(p.name, p.choices)
            elif p.type == "int":
                config[p.name] = trial.suggest_int(p.name, int(p.low), int(p.high), log=p.log)
            else:
                config[p.name] = trial.suggest_float(p.name, p.low, p.high, log=p.log)
    return config


def _observed_space(completed: Sequence[FrozenTrial]) -> Space | None:
    """The space of the distributions that trials have requested; None if there is none."""
    by_name: dict[str, BaseDistribution] = {}
    for trial in completed:
        by_name |= trial.distributions
    parameters = []
    for name, d in by_name.items():
        if isinstance(d, CategoricalDistribution):
            parameters.append(Parameter(name, "choice", choices=tuple(d.choices)))
        elif isinstance(d, IntDistribution | FloatDistribution):
            kind: Any = "int" if isinstance(d, IntDistribution) else "float"
            parameters.append(Parameter(name, kind, float(d.low), float(d.high), d.log))
    return Space(tuple(parameters)) if parameters else None


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def start_study(
    lm: LM, space: Space, history: Sequence[tuple[dict[str, Any], float | None]], lower: bool, **options: Any
) -> tuple[optuna.Study, LlamboSampler]:
    """Start a study with the trials of a history; return it and its sampler. A history replaces the initial trials.

    Raises:
        UserError: a trial of the history is outside the space.
    """
    sampler = LlamboSampler(lm, space=space, **options | ({"start": 0} if history else {}))
    return _study(sampler, space, history, lower), sampler


def rival(
    name: str, space: Space, history: Sequence[tuple[dict[str, Any], float | None]], lower: bool, start: int, seed: int
) -> optuna.Study:
    """The same study with a baseline sampler that knows nothing of the task: random, tpe, or gp."""
    samplers: dict[str, Any] = {
        "random": lambda: optuna.samplers.RandomSampler(seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=start),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=start, deterministic_objective=False),
    }
    return _study(samplers[name](), space, history, lower)


def _study(
    sampler: optuna.samplers.BaseSampler, space: Space, history: Sequence[tuple[dict[str, Any], float | None]],
    lower: bool,
) -> optuna.Study:  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="minimize" if lower else "maximize")
    by_name = distributions(space)
    for number, (config, score) in enumerate(history, 1):
        if not space.valid(config):
            raise UserError(f"history: record {number}: {config} is outside the search space")
        state = TrialState.COMPLETE if score is not None else TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=score, params=config, distributions={k: by_name[k] for k in config}
            )
        )
    return study


def next_trial(
    study: optuna.Study, space: Space, score: Callable[[dict[str, Any]], float | None] | None
) -> tuple[optuna.Trial, dict[str, Any], float | None]:
    """Start a study's next trial; with an objective, score it and end it (as failed without a score)."""
    trial = study.ask()
    config = suggested(trial, space)
    value = score(config) if score else None
    if score and value is None:
        study.tell(trial, state=TrialState.FAIL)
    elif score:
        study.tell(trial, value)
    return trial, config, value

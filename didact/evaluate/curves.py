"""Learning curves of an in-context learner: values by position with intervals, the improvement within a sequence,
which of Kirsch's regimes that is, and an error if it does better than is possible.

Values are `(B, T)`: one number (correct or not, a squared error) for every sequence at every position.
"""

from __future__ import annotations

from scipy import stats
from torch import Tensor

from didact.evaluate import statistics
from didact.evaluate.statistics import Interval
from didact.types import UserError

ENOUGH = 0.05  # a smaller improvement within a sequence counts as none
ALARM = 1e-4  # p-value below which an accuracy is not chance, where only chance is possible


def curve(values: Tensor) -> dict[str, list[float]]:
    """Means at every position with 95 % t intervals over sequences: `{"estimate", "low", "high"}`, each `(T,)`."""
    rows = [statistics.mean_interval(column) for column in values.double().T.cpu().numpy()]
    return {name: [getattr(row, name) for row in rows] for name in Interval._fields}


def last_quarter(values: Tensor) -> Tensor:
    """Mean over the last quarter of the positions of every sequence, `(B,)`."""
    return values[:, -max(1, values.shape[1] // 4) :].double().mean(1)


def improvement(hits: Tensor) -> Interval:
    """In-context improvement: accuracy over the last quarter minus that at the first position, paired by sequence."""
    return statistics.mean_interval((last_quarter(hits) - hits[:, 0].double()).cpu().numpy())


def level(hits: Tensor) -> Interval:
    """Accuracy over the last quarter of the positions."""
    return statistics.mean_interval(last_quarter(hits).cpu().numpy())


def regime(seen: Tensor, unseen: Tensor, chance: float) -> str:
    """Name what was learned: a learning algorithm, identifying training tasks, memorising them, or nothing.

    Args:
        seen: correct or not on training tasks, with other examples.
        unseen: the same on fresh tasks.
        chance: accuracy of guessing.
    """
    if improvement(unseen).low > ENOUGH:
        return "learning to learn"
    if improvement(seen).low > ENOUGH:
        return "task identification"
    return "memorisation" if level(seen).low > chance + ENOUGH else "not meta-trained"


def check_chance(hits: Tensor, chance: float, where: str) -> None:
    """Check predictions that can only be guesses: at the first position of fresh tasks, and wherever labels are random.

    Raises:
        UserError: accuracy is above chance, so labels leak into the inputs.
    """
    right, n = int(hits.sum()), hits.numel()
    if stats.binomtest(right, n, min(chance, 1.0), alternative="greater").pvalue < ALARM:
        raise UserError(
            f"{where}: {right / n:.3f} right where no more than {chance:.3f} is possible: labels leak into the inputs"
        )


def check_floor(errors: Tensor, floor: Tensor, where: str) -> Interval:
    """The excess of errors `(B, T)` over a floor that nothing can beat, averaged over positions, paired by sequence.

    Raises:
        UserError: it is below zero by more than three standard errors: the target leaks, or prompts are not fresh.
    """
    excess = (errors - floor).double().mean(1).cpu().numpy()
    interval = statistics.mean_interval(excess)
    if interval.estimate < -3 * stats.sem(excess):
        raise UserError(
            f"{where}: loss {interval.estimate:.2g} below the exact floor, more than three standard errors: no "
            "predictor can do that on fresh prompts, so the target leaks or the prompts are training prompts"
        )
    return interval

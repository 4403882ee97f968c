"""Ways to break InfAlign that its claim must notice: each replaces the function named in its docstring."""

from __future__ import annotations

from typing import Any

import numpy as np

from didact.evaluate import win_rates
from didact.objectives import policy, rewards

# The intact functions, which the sabotages wrap.
_transform, _calibrated = rewards.transform, rewards.calibrated
_win_rate, _leave_one_out = win_rates.win_rate, policy.leave_one_out


def swapped(u: Any, name: Any, t: float = 10.0, floor: float = 0.0) -> Any:
    """`rewards.transform` with the sign of t swapped."""
    return _transform(u, name, -t, floor)


def no_ties(reward: Any, reference: Any, weight: Any = None) -> Any:
    """`rewards.calibrate` without counting ties as a half."""
    below = np.asarray(reference)[..., None, :] < np.asarray(reward)[..., :, None]
    return below.mean(-1) if weight is None else (below * np.asarray(weight)[..., None, :]).sum(-1)


def over_all(reward: Any, reference: Any, by: rewards.Calibration) -> Any:
    """`rewards.calibrated` over all prompts at once."""
    return _calibrated(reward, reference, "global" if by == "prompt" else by)


def one_sided(p: Any, r: Any, q: Any, z: Any, to: Any) -> float:
    """`win_rates.win_rate` with only one side decoded."""
    return float(_win_rate(win_rates.decoded(p, r, to), r, q, z, rewards.procedure("sample")))


def turned(reward: Any) -> Any:
    """`policy.leave_one_out` with its sign flipped."""
    return -_leave_one_out(reward)

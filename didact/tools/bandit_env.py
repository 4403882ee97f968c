"""One bandit as a Gymnasium environment, for players that are no part of ours: `gymnasium.make("didact/Bandit-v0")`.

The optimal arm and expected rewards stand in `info`, which no player should read; the observation is the context, or
nothing (a constant) where there is none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from didact.errors import UserError
from didact.tools import bandits

try:
    import gymnasium
except ImportError:
    raise UserError("bandits as environments: the package gymnasium is missing: pip install didact[env]") from None


class BanditEnv(gymnasium.Env[Any, Any]):
    """An episode is one instance, drawn at `reset`: of its `seed`, and then the next at every further reset.

    Args:
        config: which bandits; fields of it may be given by name instead, as `gymnasium.make` does.
        fields: of `BanditConfig`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, config: bandits.BanditConfig | None = None, **fields: Any) -> None:
        self.config = dataclasses.replace(config or bandits.BanditConfig(), **fields)
        shown = self.config.features if self.config.contextual else 1
        self.action_space = gymnasium.spaces.Discrete(self.config.arms)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (shown,), np.float64)
        self._seed, self._step, self._instance = 0, 0, bandits.drawn(self.config, 1, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new instance."""
        super().reset(seed=seed)
        self._seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self._step, self._instance = 0, bandits.drawn(self.config, 1, self._seed)
        return self._seen(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pull an arm; the episode is truncated at the horizon."""
        told = self._info() | {"regret": float(self._instance.best[0, self._step] - self._expected()[int(action)])}
        reward = float(self._instance.paid(self._step, np.array([int(action)]))[0])
        self._step += 1
        return self._seen(), reward, False, self._step >= self.config.horizon, told

    def _expected(self) -> Any:
        return self._instance.expected[0, self._step]

    def _seen(self) -> Any:
        context = self._instance.context(min(self._step, self.config.horizon - 1))
        return np.zeros(1) if context is None else context[0].astype(np.float64)

    def _info(self) -> dict[str, Any]:
        return {"best": int(self._expected().argmax()), "expected": self._expected().tolist()}


gymnasium.register("didact/Bandit-v0", entry_point="didact.tools.bandit_env:BanditEnv")

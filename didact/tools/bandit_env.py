"""One bandit as a Gymnasium environment, for players outside this package: `gymnasium.make("didact/Bandit-v0")`.

`info` has the optimal arm and the expected rewards, which players must not read; the observation is the context, or a
constant where there is none.
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
    """One bandit instance per episode, drawn at `reset` from its `seed`, or from the environment's own random stream.

    Args:
        config: the kind of bandit; its fields may be passed by name instead, as `gymnasium.make` does.
        fields: of `BanditConfig`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, config: bandits.BanditConfig | None = None, **fields: Any) -> None:
        self.config = dataclasses.replace(config or bandits.BanditConfig(), **fields)
        size = self.config.features if self.config.contextual else 1
        self.action_space = gymnasium.spaces.Discrete(self.config.arms)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self._seed, self._step, self._instance = 0, 0, bandits.drawn(self.config, 1, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a new instance."""
        super().reset(seed=seed)
        self._seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self._step, self._instance = 0, bandits.drawn(self.config, 1, self._seed)
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pull an arm; the episode is truncated at the horizon."""
        info = self._info() | {"regret": float(self._instance.best[0, self._step] - self._expected()[int(action)])}
        reward = float(self._instance.paid(self._step, np.array([int(action)]))[0])
        self._step += 1
        return self._observation(), reward, False, self._step >= self.config.horizon, info

    def _expected(self) -> Any:
        return self._instance.expected[0, self._step]

    def _observation(self) -> Any:
        context = self._instance.context(min(self._step, self.config.horizon - 1))
        return np.zeros(1) if context is None else context[0].astype(np.float64)

    def _info(self) -> dict[str, Any]:
        return {"best": int(self._expected().argmax()), "expected": self._expected().tolist()}


gymnasium.register("didact/Bandit-v0", entry_point="didact.tools.bandit_env:BanditEnv")

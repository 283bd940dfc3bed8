"""What environments in which a walker looks for hidden cells of a square room share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import grids
from seqrl.envs.checks import check_choice
from seqrl.errors import SeqrlError

__all__ = ["WalkingEnv"]


class WalkingEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """A walker's cell is all that is seen; five moves, regrets by what was still within reach.

    Args:
        size: cells along each side.
        horizon: steps after which an episode is truncated.
        observation_space: of cells, float32 or integers.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int,
        horizon: int,
        observation_space: spaces.Space[Any],
        render_mode: str | None,
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(5)
        self.observation_space = observation_space
        self._type = np.float32 if isinstance(observation_space, spaces.Box) else np.int64
        # Plain attributes: reading them in `step` is cheaper than going through settings.
        self._last, self._limit = size - 1, horizon
        self._x = self._y = self._time = 0
        self._moves: list[tuple[int, int]] = [(dx, dy) for dx, dy in grids.MOVES.tolist()]
        """Change of (x, y) by each action."""
        self._running = self._started = False

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode has ended, whatever the policy does."""
        return self._limit

    @property
    def position(self) -> tuple[int, int]:
        """The agent's cell."""
        return self._x, self._y

    def _begin(self, x: int, y: int) -> tuple[NDArray[Any], dict[str, Any]]:
        """What ``reset`` returns, once the task is set."""
        self._x, self._y, self._time = x, y, 0
        self._running = self._started = True
        return self._observation(), {"optimal_action": self.oracle_action()}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action, 0 to 4.

        Raises:
            SeqrlError: no episode is running, or the action is none of the five.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        if action not in (0, 1, 2, 3, 4):
            raise SeqrlError(f"action={action!r} is not allowed", "actions are 0, 1, 2, 3 and 4")
        before = self._within_reach()
        dx, dy = self._moves[int(action)]
        self._x = min(max(self._x + dx, 0), self._last)
        self._y = min(max(self._y + dy, 0), self._last)
        self._time += 1
        reward, terminated = self._arrive()
        truncated = not terminated and self._time >= self._limit
        self._running = not (terminated or truncated)
        after = self._within_reach() if self._running else 0
        info: dict[str, Any] = {
            "optimal_action": self.oracle_action(),
            "regret": float(before - reward - after),
        }
        if not self._running:
            info |= self._outcome()
        return self._observation(), reward, terminated, truncated, info

    def _observation(self) -> NDArray[Any]:
        return np.array((self._x, self._y), self._type)

    def render(self) -> Any:
        """Draw the room in the ``render_mode`` given at construction, ``None`` without one.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not self._started:
            raise SeqrlError("render() before the first episode", "call reset() first")
        marks, told = self._shown()
        caption = f"step {self._time} of {self._limit}, {told}"
        return grids.render(self.render_mode, self._last + 1, self.position, marks, caption)

    @abstractmethod
    def oracle_action(self) -> int:
        """The best action in the present state."""

    @abstractmethod
    def _arrive(self) -> tuple[float, bool]:
        """Reward of the cell just entered, and whether it ends the episode."""

    @abstractmethod
    def _within_reach(self) -> int:
        """The highest return still possible in the present episode."""

    @abstractmethod
    def _outcome(self) -> dict[str, Any]:
        """What an episode's last info holds besides."""

    @abstractmethod
    def _shown(self) -> tuple[dict[str, tuple[int, int]], str]:
        """Letters of hidden cells, and what to say below the picture."""

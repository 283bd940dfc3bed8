"""PointReach2D: steer a point in a square to a place that is never shown.

Our own task for learning from data nobody would want to imitate: the recorded behaviour wanders
between random waypoints and finds the goal by chance, so a good policy must be put together from
pieces of many episodes.

    state, observation   x in [-1, 1]^2, drawn uniformly at reset
    step                 x' = clip(x + 0.1 a, -1, 1), actions a in [-1, 1]^2
    reward               1 and the end where |x' - (0.6, 0.6)| < 0.15, else 0; cut after 50 steps

All arithmetic is in float32, so that stepping and the generated data agree to the last bit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import generation
from seqrl.envs.checks import (
    check_array,
    check_choice,
    check_int,
    check_number,
    known_options,
)
from seqrl.errors import SeqrlError

__all__ = ["GOAL", "HORIZON", "PointReachEnv"]

Points = NDArray[np.float32]

GOAL: Points = np.array((0.6, 0.6), np.float32)
HORIZON = 50
_STEP, _RADIUS = np.float32(0.1), np.float32(0.15)

RANDOM_RETURN = 0.1135
"""Mean return of uniformly random play over 400 000 episodes (standard error 0.0005)."""


def advanced(positions: Points, actions: NDArray[Any]) -> Points:
    """Positions ``[..., 2]`` after actions ``[..., 2]``, float32."""
    after: Points = np.clip(positions + _STEP * actions.astype(np.float32), -1, 1)
    return after


def reached(positions: Points) -> NDArray[np.bool_]:
    """Which of the positions ``[..., 2]`` are at the goal, ``[...]``."""
    away = positions - GOAL
    return np.asarray((away * away).sum(axis=-1) < _RADIUS * _RADIUS)


class PointReachEnv(gymnasium.Env[NDArray[Any], NDArray[Any]]):
    """PointReach2D, ``seqrl/PointReach2D-v0``.

    Actions ``Box(-1, 1, (2,))``; values outside are clipped. Observations: the position, float32
    ``[2]``. The episode terminates at the goal and is truncated after 50 steps. Every ``info``
    holds ``optimal_action``, after a step also ``regret``: 1 on the step after which the goal can
    no longer be reached in time, else 0. The last one holds ``success``. The best return is 1;
    no start is more than 15 steps away.

    Args:
        render_mode: ``None`` or ``"ansi"``.

    Raises:
        SeqrlError: another render mode.

    Example:
        >>> env = PointReachEnv()
        >>> observation, info = env.reset(options={"state": [0.6, 0.3]})
        >>> [env.step(env.oracle_action())[1:3] for _ in range(2)]
        [(0.0, False), (1.0, True)]
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 8}
    data_options: ClassVar[tuple[str, ...]] = ("noise", "redraw", "bins")
    """Arguments of :meth:`behaviour_columns` that describe the data and not the environment."""

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self._position: Points = np.zeros(2, np.float32)
        self._time = 0
        self._running = False

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode has ended, whatever the policy does."""
        return HORIZON

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds the first position; ``None`` continues the present stream.
            options: ``{"state": [x, y]}`` fixes it, within [-1, 1].

        Raises:
            SeqrlError: unknown option or a position outside the square.
        """
        super().reset(seed=seed)
        given = known_options(options, ("state",))
        position = self.np_random.uniform(-1, 1, 2)
        if "state" in given:
            position = check_array("state", given["state"], (1, 2))[0]
            if np.abs(position).max() > 1:
                raise SeqrlError(f"state={position.tolist()} is not allowed", "it is in [-1, 1]^2")
        self._position = position.astype(np.float32)
        self._time, self._running = 0, True
        return self._position.copy(), {"optimal_action": self.oracle_action()}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action, ``[2]``.

        Raises:
            SeqrlError: no episode is running, or the action is not two finite numbers.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        wanted = check_array("action", action, (1, 2))[0]
        before = self._within_reach()
        self._position = advanced(self._position, np.clip(wanted, -1, 1))
        self._time += 1
        terminated = bool(reached(self._position))
        truncated = not terminated and self._time >= HORIZON
        self._running = not (terminated or truncated)
        reward = float(terminated)
        after = self._within_reach() if self._running else 0
        info: dict[str, Any] = {
            "optimal_action": self.oracle_action(),
            "regret": float(before - reward - after),
        }
        if not self._running:
            info["success"] = terminated
        return self._position.copy(), reward, terminated, truncated, info

    def _within_reach(self) -> int:
        """1 if the goal can still be reached in time, else 0."""
        # At full speed along both axes every gap closes as fast as it can.
        gap = np.maximum(np.abs(GOAL - self._position) - _STEP * (HORIZON - self._time), 0)
        return int((gap * gap).sum() < _RADIUS * _RADIUS)

    def oracle_action(self) -> NDArray[np.float32]:
        """The fastest way to the goal: along each axis full speed, or what is left of the way."""
        action: NDArray[np.float32] = np.clip((GOAL - self._position) / _STEP, -1, 1)
        return action

    def episode_options(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation episode ``i``: none, its seed decides where it starts."""
        check_int("i", i, 0)
        return {}

    def render(self) -> Any:
        """Draw the square as text of 21 x 21 cells, ``None`` without a ``render_mode``."""
        if self.render_mode is None:
            return None
        axis = np.linspace(-1, 1, 21, dtype=np.float32)
        goal = reached(np.stack(np.meshgrid(axis, axis), axis=-1))
        rows = [["G" if hit else "." for hit in line] for line in goal]
        column, row = np.rint((self._position + 1) * 10).astype(int).tolist()
        rows[row][column] = "A"
        lines = ["".join(line) for line in reversed(rows)]
        return "\n".join([*lines, f"step {self._time} of {HORIZON}"]) + "\n"

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the measured return of uniformly random play and the optimum's, which is 1.

        Raises:
            SeqrlError: a setting; the environment has none.
        """
        known_settings(kwargs)
        return {"random": RANDOM_RETURN, "oracle": 1.0}

    @classmethod
    def data_env_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Return the settings of the environment among the arguments of its generated data."""
        return {name: value for name, value in kwargs.items() if name not in cls.data_options}

    @classmethod
    def behaviour_columns(
        cls,
        episodes: int,
        seed: int,
        *,
        noise: float = 0.7,
        redraw: float = 0.1,
        bins: int = 16,
        **env_kwargs: Any,
    ) -> dict[str, NDArray[Any]]:
        """Generate episodes that wander between hidden waypoints, as flat columns.

        At every step the waypoint is drawn anew from the square with probability ``redraw``; the
        action is ``clip(3 (waypoint - x) + noise N(0, I), -1, 1)``, moved to the nearest of
        ``bins`` centres per axis (for 16: -15/16, -13/16 .. 15/16). A longer set begins with a
        shorter one.

        Args:
            episodes: number of episodes E (2000 in our measurements).
            seed: 0 or more.
            noise: standard deviation of the action noise.
            redraw: probability of a new waypoint.
            bins: action values per axis, 2 or more; 0 leaves actions as they are.
            **env_kwargs: settings of the environment; it has none.

        Returns:
            ``observations [N, 2]`` and ``actions [N, 2]`` float32, ``rewards [N]`` float32,
            ``terminations [N]`` and ``truncations [N]`` bool, ``final_observations [E, 2]``,
            ``episode_starts [E + 1]`` int64.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        noise, redraw = check_number("noise", noise, 0, 100), check_number("redraw", redraw, 0, 1)
        bins = check_int("bins", bins, 0)
        if bins == 1:
            raise SeqrlError("bins=1 is not allowed", "bins must be 0, or 2 or more")
        known_settings(env_kwargs)
        # Generators of their own, drawn episode by episode: a longer set begins alike.
        kinds = [np.random.default_rng((seed, kind)) for kind in range(4)]
        start = kinds[0].uniform(-1, 1, (episodes, 2)).astype(np.float32)
        waypoints = kinds[1].uniform(-1, 1, (episodes, HORIZON, 2))
        fresh = kinds[2].random((episodes, HORIZON)) < redraw
        noises = noise * kinds[3].standard_normal((episodes, HORIZON, 2))
        return _wander(start, waypoints, fresh, noises, bins)


def known_settings(kwargs: dict[str, Any]) -> None:
    """Refuse every setting: the environment has none."""
    rest = [name for name in kwargs if name != "render_mode"]
    if rest:
        raise SeqrlError(f"no environment setting {rest[0]!r}", "PointReach2D has none")


def _wander(
    start: Points,
    waypoints: NDArray[np.float64],
    fresh: NDArray[np.bool_],
    noises: NDArray[np.float64],
    bins: int,
) -> generation.Columns:
    """Step all episodes side by side, and lay them end to end."""
    episodes = len(start)
    positions = np.zeros((episodes, HORIZON + 1, 2), np.float32)
    actions = np.zeros((episodes, HORIZON, 2), np.float32)
    lengths = np.full(episodes, HORIZON, np.int64)
    positions[:, 0] = start
    target, alive = waypoints[:, 0].copy(), np.ones(episodes, np.bool_)
    for t in range(HORIZON):
        target[fresh[:, t]] = waypoints[fresh[:, t], t]
        wanted = np.clip(3 * (target - positions[:, t]) + noises[:, t], -1, 1)
        if bins:
            wanted = (np.clip(np.floor((wanted + 1) / 2 * bins), 0, bins - 1) + 0.5) / bins * 2 - 1
        actions[:, t] = wanted
        positions[:, t + 1] = advanced(positions[:, t], actions[:, t])
        ended = alive & reached(positions[:, t + 1])
        lengths[ended] = t + 1
        alive &= ~ended
    starts, episode, time = generation.episode_steps(lengths)
    return {
        "observations": positions[episode, time],
        **generation.last_step_columns(actions[episode, time], starts, ~alive),
        "truncations": (time == HORIZON - 1) & alive[episode],
        "terminations": (time == lengths[episode] - 1) & ~alive[episode],
        "final_observations": positions[np.arange(episodes), lengths],
    }

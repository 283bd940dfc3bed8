"""The passive and the active T-Maze of Ni et al.: memory, and memory with credit assignment.

Source: Ni, Ma, Eysenbach, Bacon, "When Do Transformers Shine in RL? Decoupling Memory from Credit
Assignment", arXiv 2307.03864, and the official repository twni2016/Memory-RL (``envs/tmaze.py``).

    corridor cells x = 0 .. o + L at y = 0, goal cells (o + L, +1) and (o + L, -1), start (o, 0)
    observation   x = 0: (0, cue)   corridor: (0, 0)   x = o + L: (1, y)
    reward        penalty * [x < t - o] before the last step, [y == goal] at the last step

with o = 0 (passive) or 1 (active: the cue lies one step to the left of the start). The cue is shown
at the first visit of x = 0 and never again. Built as the code has it, except:

| point | code | here |
|---|---|---|
| ``distract_reward`` for standing at x = 0 | a parameter, 0 in all runs | left out |
| end after the fixed number of steps | ``done`` | ``terminated``: the last reward is paid then |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import drawing, generation
from seqrl.envs.checks import check_choice, check_int, check_number, settings_from
from seqrl.envs.goals import balanced_goal, choose_goal
from seqrl.envs.tmaze import DOWN, LEFT, RIGHT, UP
from seqrl.errors import SeqrlError

__all__ = ["ClassicTMazeEnv", "ClassicTMazeSettings", "TMazeActiveEnv", "TMazePassiveEnv"]


@dataclass(frozen=True)
class ClassicTMazeSettings:
    """Checked settings of a :class:`ClassicTMazeEnv`."""

    corridor: int = 50
    """Corridor length L; the paper goes from 50 to 1500 (passive) and 20 to 500 (active)."""
    mode: str = "dense"
    """``"dense"``: penalty for falling behind, as in the paper; ``"sparse"``: no penalty."""
    penalty: float | None = None
    """Reward of a step that ends behind schedule, -1 to 0; default ``-1 / L``, 0 if sparse."""
    obs: str = "vector"
    """``"vector"``: float32 ``[2]``; ``"pixels"``: the same as a 64 x 64 picture."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("corridor", check_int("corridor", self.corridor, 1))
        keep("mode", check_choice("mode", self.mode, ("dense", "sparse")))
        if self.penalty is not None:
            keep("penalty", check_number("penalty", self.penalty, -1, 0))
            if self.mode == "sparse" and self.penalty != 0:
                raise SeqrlError(
                    f"penalty={self.penalty!r} is not allowed with mode='sparse'",
                    "use mode='dense', or leave the penalty out",
                )
        keep("obs", check_choice("obs", self.obs, ("vector", "pixels")))

    @property
    def step_penalty(self) -> float:
        """Reward of a step that ends behind schedule."""
        if self.penalty is not None:
            return self.penalty
        return -1.0 / self.corridor if self.mode == "dense" else 0.0

    def observation_space(self) -> spaces.Box:
        """Return the space of the observations."""
        if self.obs == "pixels":
            return spaces.Box(0, 255, drawing.OBSERVATION_SHAPE, np.uint8)
        low, high = np.array([0, -1], np.float32), np.array([1, 1], np.float32)
        return spaces.Box(low, high, dtype=np.float32)


class ClassicTMazeEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """What the passive and the active T-Maze share; make one of these two.

    Actions ``Discrete(4)``: 0 right, 1 up, 2 left, 3 down; a move into a wall costs its step, and a
    goal cell can be left again. An episode takes exactly ``L + 2 o + 1`` actions; its last step
    sets ``terminated`` because the reward for the side is paid there: the time limit belongs to the
    task. The last ``info`` holds ``success`` (bool) and ``goal``; earlier ones are empty.

    Args:
        corridor: corridor length L, 1 or more.
        mode: ``"dense"`` or ``"sparse"``.
        penalty: reward of a step that ends behind schedule, -1 to 0; default by ``mode``.
        obs: ``"vector"`` (float32 ``[2]``) or ``"pixels"`` (``uint8 [64, 64, 3]``).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the whole maze, goal included.

    Raises:
        SeqrlError: a setting out of its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    data_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of :meth:`oracle_columns` that describe the data and not the environment: none."""
    oracle_distance: ClassVar[int] = 0
    """Cells from the start to the cue, o."""

    def __init__(
        self,
        corridor: int = 50,
        mode: str = "dense",
        penalty: float | None = None,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        self.settings = ClassicTMazeSettings(corridor, mode, penalty, obs)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = self.settings.observation_space()
        self._junction = self.oracle_distance + self.settings.corridor
        self._limit = _episode_length(self.settings, self.oracle_distance)
        self._penalty = self.settings.step_penalty
        self._pixels = self.settings.obs == "pixels"
        self._x = self._y = self._time = self._goal = 0
        self._cue_seen = self._cue_shown = self._running = False

    @property
    def max_episode_steps(self) -> int:
        """Actions of every episode, ``L + 2 o + 1``."""
        return self._limit

    @property
    def position(self) -> tuple[int, int]:
        """The agent's cell (x, y)."""
        return self._x, self._y

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds the goal, the only random quantity; ``None`` continues the stream.
            options: ``{"goal": 1}`` or ``{"goal": -1}`` fixes the goal side.

        Raises:
            SeqrlError: unknown option or goal.
        """
        super().reset(seed=seed)
        self._goal = choose_goal(self.np_random, options)
        self._x, self._y, self._time = self.oracle_distance, 0, 0
        self._cue_seen, self._running = False, True
        return self._observation(), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action (0 right, 1 up, 2 left, 3 down).

        Raises:
            SeqrlError: no episode is running, or the action is none of the four.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        if action == RIGHT:
            if self._y == 0 and self._x < self._junction:
                self._x += 1
        elif action == LEFT:
            if self._y == 0 and self._x > 0:
                self._x -= 1
        elif action in (UP, DOWN):
            side = 1 if action == UP else -1
            if self._x == self._junction and self._y != side:
                self._y += side
        else:
            raise SeqrlError(f"action={action!r} is not allowed", "actions are 0, 1, 2 and 3")
        self._time += 1
        if self._time < self._limit:
            late = self._x < self._time - self.oracle_distance
            return self._observation(), self._penalty if late else 0.0, False, False, {}
        self._running = False
        success = self._y == self._goal
        info = {"success": success, "goal": self._goal}
        return self._observation(), float(success), True, False, info

    def _observation(self) -> NDArray[Any]:
        """Return a new observation of the present state; notes the first visit of the cue."""
        observation = np.zeros(2, np.float32)
        self._cue_shown = self._x == 0 and not self._cue_seen
        if self._cue_shown:
            self._cue_seen = True
            observation[1] = self._goal
        elif self._x == self._junction:
            observation[0] = 1
            observation[1] = self._y
        return _picture(observation) if self._pixels else observation

    def oracle_action(self) -> int:
        """Return the expert's action: to the cue if unseen, to the junction, to the goal side.

        It reads the true state, so it also recovers from mistakes: it leaves the wrong goal cell,
        waits in the right one, and skips the cue when there is no time left to fetch it.
        """
        way_by_cue = self._x + self._junction + 1
        if not self._cue_seen and self._y == 0 and way_by_cue <= self._limit - self._time:
            return LEFT
        if self._x < self._junction:
            return RIGHT
        if self._y == self._goal:
            return RIGHT  # a wall: stay
        return UP if self._goal > 0 else DOWN

    def episode_options(self, i: int) -> dict[str, Any]:
        """Return the reset options of evaluation episode ``i``: goals alternate, even is up."""
        return balanced_goal(i)

    def render(self) -> Any:
        """Draw the maze in the ``render_mode`` given at construction, ``None`` without one.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if self._goal == 0:
            raise SeqrlError("render() before the first episode", "call reset() first")
        view = drawing.MazeView(
            x=self._x,
            y=self._y,
            start=self.oracle_distance,
            junction=self._junction,
            goal=self._goal,
            cue=self._goal if self._cue_shown else 0,
            step=self._time,
            limit=self._limit,
        )
        return drawing.render(view, self.render_mode)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the oracle, both exact.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        settings = settings_from(ClassicTMazeSettings, kwargs)
        random = _random_return(settings.corridor, cls.oracle_distance, settings.step_penalty)
        return {"random": random, "oracle": 1.0}

    @classmethod
    def data_env_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Return the settings of the environment that data of :meth:`oracle_columns` belong to."""
        return dict(kwargs)

    @classmethod
    def oracle_columns(
        cls, episodes: int, seed: int = 0, **env_kwargs: Any
    ) -> dict[str, NDArray[Any]]:
        """Generate episodes of the oracle as flat columns.

        They equal, value for value, what stepping the environment with :meth:`oracle_action` gives
        when episode ``i`` is reset with ``episode_options(i)``: goals alternate. Nothing in them is
        random, so the ``seed`` changes nothing; it is taken because every environment takes one.

        Args:
            episodes: number of episodes E.
            seed: 0 or more, unused.
            **env_kwargs: settings of the environment; the corridor has the same length throughout.

        Returns:
            ``observations [N, 2]`` float32 (``[N, 64, 64, 3]`` uint8 for pixels), ``actions [N]``
            int64, ``rewards [N]`` float32, ``terminations [N]`` and ``truncations [N]`` bool,
            ``final_observations [E, ...]``, ``episode_starts [E + 1]`` int64;
            N = E * (L + 2 o + 1).

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> TMazeActiveEnv.oracle_columns(1, corridor=2)["actions"].tolist()
            [2, 0, 0, 0, 1]
        """
        episodes = check_int("episodes", episodes, 1)
        check_int("seed", seed, 0)
        settings = settings_from(ClassicTMazeSettings, env_kwargs)
        length, wait = _episode_length(settings, cls.oracle_distance), cls.oracle_distance
        goals = generation.alternating_goals(episodes)
        starts, episode, time = generation.episode_steps(np.full(episodes, length, np.int64))
        at_junction = time == length - 1
        actions = np.full(len(time), RIGHT, np.int64)
        actions[time < wait] = LEFT
        actions[at_junction] = np.where(goals > 0, UP, DOWN)
        observations = np.zeros((len(time), 2), np.float32)
        observations[:, 0] = at_junction
        observations[:, 1] = np.where(time == wait, goals[episode], 0)
        final = np.stack([np.ones(episodes), goals], axis=1).astype(np.float32)
        draw = _pictures if settings.obs == "pixels" else np.asarray
        return {
            "observations": draw(observations),
            **generation.last_step_columns(actions, starts, np.ones(episodes)),
            "final_observations": draw(final),
        }


class TMazePassiveEnv(ClassicTMazeEnv):
    """Passive T-Maze, ``seqrl/TMazePassive-v0``: the cue is in the reset observation.

    See :class:`ClassicTMazeEnv` for the arguments. Tests memory over L steps.

    Example:
        >>> env = TMazePassiveEnv(corridor=3)
        >>> env.reset(options={"goal": -1})[0].tolist(), env.max_episode_steps
        ([0.0, -1.0], 4)
    """

    oracle_distance: ClassVar[int] = 0


class TMazeActiveEnv(ClassicTMazeEnv):
    """Active T-Maze, ``seqrl/TMazeActive-v0``: the cue lies one step left of the start.

    See :class:`ClassicTMazeEnv` for the arguments. Fetching the cue earns nothing until the last
    step, so this tests memory and credit assignment over L steps. Walking straight to the junction
    is not penalised.
    """

    oracle_distance: ClassVar[int] = 1


def _episode_length(settings: ClassicTMazeSettings, oracle_distance: int) -> int:
    """Return the number of actions of every episode."""
    return settings.corridor + 2 * oracle_distance + 1


def _pictures(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw observation vectors ``[N, 2]`` as pictures ``[N, 64, 64, 3]``.

    The second channel is the side at the junction (first channel 1) and the cue elsewhere.
    """
    v = vectors.astype(np.int8)
    flag, side = v[:, 0], v[:, 1]
    return drawing.observation_images(side * flag, side * (1 - flag), flag, v[:, 2:])


def _picture(vector: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw one observation vector."""
    picture: NDArray[np.uint8] = _pictures(vector[None])[0]
    return picture


@lru_cache(maxsize=256)
def _random_return(corridor: int, oracle_distance: int, penalty: float) -> float:
    """Return the exact expected return of uniformly random play.

    Dynamic programming over the corridor cell, with the two goal cells as one by symmetry: half of
    the mass found there at the end is on the right side. A corridor cell keeps 1/2 of its mass and
    passes 1/4 to each neighbour (walls return it); the junction keeps 1/4 (its right wall) and
    passes 1/2 to the goal cells; a goal cell keeps 3/4 and passes 1/4 back.
    """
    limit = corridor + 2 * oracle_distance + 1
    mass = np.zeros(corridor + oracle_distance + 1)
    mass[oracle_distance] = 1.0
    in_goals, expected = 0.0, 0.0
    for time in range(1, limit + 1):
        moved = mass / 2
        moved[-1] = mass[-1] / 4 + in_goals / 4
        moved[0] += mass[0] / 4
        moved[1:] += mass[:-1] / 4
        moved[:-1] += mass[1:] / 4
        in_goals = in_goals * 0.75 + mass[-1] / 2
        mass = moved
        if time < limit:
            expected += penalty * mass[: max(time - oracle_distance, 0)].sum()
    return float(expected + in_goals / 2)

"""The T-Maze of RATE: read a cue in the first observation, act on it at the end of a corridor.

Source: Cherepanov et al., "Recurrent Action Transformer with Memory", arXiv 2306.09459, and the
official repository CognitiveAISystems/RATE (``src/envs/tmaze``, ``src/envs_datasets``).

    corridor cells x = 0 .. L at y = 0, goal cells (L, +1) and (L, -1); the agent starts at (0, 0)
    observation  [y, cue, flag, noise]       cue = goal side at the first step only, then 0
    reward       1 on the step into the right goal cell, 0 on every other step

Built as the official code does it, where paper and code differ:

| point | paper | code | here |
|---|---|---|---|
| flag | one step before the junction | at the junction, x == L | code |
| flag in the observation after the last move | - | 1 in evaluation, 0 in the data file | 1 |
| training data of N segments | union of the limits K .. N K | largest file, N times | both |
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
from seqrl.envs.checks import check_bool, check_choice, check_int, settings_from
from seqrl.envs.goals import balanced_goal, choose_goal
from seqrl.errors import SeqrlError

__all__ = ["DOWN", "LEFT", "RIGHT", "UP", "TMazeEnv", "TMazeSettings"]

RIGHT, UP, LEFT, DOWN = 0, 1, 2, 3

# Noise is drawn for this many steps at once: one generator call costs as much as hundreds of draws.
_NOISE_BLOCK = 1024


@dataclass(frozen=True)
class TMazeSettings:
    """Checked settings of a :class:`TMazeEnv`."""

    limit: int = 30
    """Actions an episode may take (T of the paper)."""
    corridor: int | None = None
    """Corridor length L: the junction is L steps from the start. Default ``limit - 2``."""
    noise: bool = True
    """Whether the fourth channel is redrawn from {-1, 0, 1} at every step; otherwise it is 0."""
    cue_steps: int = 1
    """The cue is shown in the first ``cue_steps`` observations; 0 makes a control without cue."""
    flag: bool = True
    """Whether the third channel marks the junction; otherwise it is 0."""
    distractors: int = 0
    """Further channels of the same kind as the noise channel."""
    obs: str = "vector"
    """``"vector"``: float32 ``[4 + distractors]``; ``"pixels"``: the same as a 64 x 64 picture."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("limit", check_int("limit", self.limit, 3))
        if self.corridor is not None:
            # L + 1 moves reach a goal cell, so a longer corridor could not be solved in time.
            keep("corridor", check_int("corridor", self.corridor, 1, self.limit - 1))
        keep("noise", check_bool("noise", self.noise))
        keep("cue_steps", check_int("cue_steps", self.cue_steps, 0))
        keep("flag", check_bool("flag", self.flag))
        keep("obs", check_choice("obs", self.obs, ("vector", "pixels")))
        most = None if self.obs == "vector" else drawing.MAX_PATCHES - 1
        keep("distractors", check_int("distractors", self.distractors, 0, most))

    @property
    def length(self) -> int:
        """Corridor length L in cells between start and junction."""
        return self.limit - 2 if self.corridor is None else self.corridor

    @property
    def width(self) -> int:
        """Number of channels of the observation vector."""
        return 4 + self.distractors

    def observation_space(self) -> spaces.Box:
        """Return the space of the observations."""
        if self.obs == "pixels":
            return spaces.Box(0, 255, drawing.OBSERVATION_SHAPE, np.uint8)
        low = np.full(self.width, -1, np.float32)
        low[2] = 0  # the flag
        return spaces.Box(low, np.ones(self.width, np.float32), dtype=np.float32)


class TMazeEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """T-Maze with a cue at the start, ``seqrl/TMaze-v0`` (arXiv 2306.09459).

    Actions ``Discrete(4)``: 0 right, 1 up, 2 left, 3 down; a move into a wall costs its step.
    Observations: float32 ``[y, cue, flag, noise, distractors...]``, shape ``[4 + distractors]``,
    or ``uint8 [64, 64, 3]`` with ``obs="pixels"``. The cell x is not observed.
    An episode terminates in a goal cell and is truncated, by the environment itself, after
    ``limit`` actions. The last ``info`` holds ``success`` (bool) and ``goal``; earlier ones are
    empty. The best return is 1 and needs ``L + 1`` actions, so with the default corridor one step
    may be wasted and no more.

    Args:
        limit: actions an episode may take, 3 or more.
        corridor: corridor length L, 1 to ``limit - 1``; default ``limit - 2``.
        noise: whether the noise channel is on.
        cue_steps: number of observations that show the cue.
        flag: whether the junction flag is on.
        distractors: number of further noise channels (at most 15 with pixels).
        obs: ``"vector"`` or ``"pixels"``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the whole maze, goal included.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = TMazeEnv(limit=9, noise=False)
        >>> env.reset(seed=0, options={"goal": 1})[0].tolist()
        [0.0, 1.0, 0.0, 0.0]
        >>> rewards = [env.step(action)[1] for action in 7 * [RIGHT] + [UP]]
        >>> rewards
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    data_options: ClassVar[tuple[str, ...]] = ("corridors", "segments", "mixture", "wrong_turns")
    """Arguments of :meth:`oracle_columns` that describe the data and not the environment."""

    def __init__(
        self,
        limit: int = 30,
        corridor: int | None = None,
        noise: bool = True,
        cue_steps: int = 1,
        flag: bool = True,
        distractors: int = 0,
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        self.settings = TMazeSettings(limit, corridor, noise, cue_steps, flag, distractors, obs)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = self.settings.observation_space()
        # Plain attributes: reading them in `step` is cheaper than going through the settings.
        self._length, self._limit = self.settings.length, self.settings.limit
        self._cue_steps, self._flag = self.settings.cue_steps, self.settings.flag
        self._pixels = self.settings.obs == "pixels"
        self._x = self._y = self._time = self._goal = 0
        self._running = False
        self._block: NDArray[np.float32] = np.zeros((0, self.settings.width), np.float32)
        self._row = 0

    @property
    def max_episode_steps(self) -> int:
        """Actions after which an episode has ended, whatever the policy does."""
        return self._limit

    @property
    def position(self) -> tuple[int, int]:
        """The agent's cell (x, y), which observations do not show."""
        return self._x, self._y

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds goal and noise; ``None`` continues the present stream.
            options: ``{"goal": 1}`` or ``{"goal": -1}`` fixes the goal side.

        Raises:
            SeqrlError: unknown option or goal.
        """
        super().reset(seed=seed)
        self._goal = choose_goal(self.np_random, options)
        self._x = self._y = self._time = 0
        self._running = True
        self._block, self._row = self._block[:0], 0
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
            if self._x < self._length:
                self._x += 1
        elif action == LEFT:
            if self._x > 0:
                self._x -= 1
        elif action in (UP, DOWN):
            if self._x == self._length:
                self._y = 1 if action == UP else -1
        else:
            raise SeqrlError(f"action={action!r} is not allowed", "actions are 0, 1, 2 and 3")
        self._time += 1
        terminated = self._y != 0
        truncated = not terminated and self._time >= self._limit
        if not (terminated or truncated):
            return self._observation(), 0.0, False, False, {}
        self._running = False
        success = self._y == self._goal
        info = {"success": success, "goal": self._goal}
        return self._observation(), float(success), terminated, truncated, info

    def _observation(self) -> NDArray[Any]:
        """Return a new observation of the present state and use up one row of noise."""
        if self._row == len(self._block):
            self._draw_block()
        observation = self._block[self._row].copy()  # callers keep what they are given
        self._row += 1
        if self._y:
            observation[0] = self._y
        if self._time < self._cue_steps:
            observation[1] = self._goal
        if self._flag and self._x == self._length:
            observation[2] = 1
        return _picture(observation) if self._pixels else observation

    def _draw_block(self) -> None:
        """Fill the noise of the next observations: at most to the end of the episode."""
        rows = min(self._limit + 1 - self._time, _NOISE_BLOCK)
        self._block = _noise_rows(self.np_random, rows, self.settings)
        self._row = 0

    def oracle_action(self) -> int:
        """Return the expert's action: right to the junction, then to the goal side.

        It reads the true state, so it is right in every state, whether or not the cue was seen.
        """
        if self._x < self._length:
            return RIGHT
        return UP if self._goal > 0 else DOWN

    def episode_options(self, i: int) -> dict[str, Any]:
        """Return the reset options of evaluation episode ``i``: goals alternate, even is up.

        An even number of episodes thus has as many goals up as down, which pins the score of an
        agent that ignores the cue to 0.5 (the paper evaluates 50 up and 50 down).
        """
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
        cue = self._goal if self._time < self._cue_steps else 0
        view = drawing.MazeView(
            self._x, self._y, 0, self._length, self._goal, cue, self._time, self._limit
        )
        return drawing.render(view, self.render_mode)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the oracle, both exact.

        Args:
            **kwargs: settings of the environment, as given to the constructor.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> TMazeEnv.reference_scores(limit=3)
            {'random': 0.125, 'oracle': 1.0}
        """
        settings = settings_from(TMazeSettings, kwargs)
        return {"random": _random_success(settings.length, settings.limit), "oracle": 1.0}

    @classmethod
    def data_env_kwargs(
        cls, *, limit: int = TMazeSettings.limit, segments: int = 1, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the settings of the environment that data of :meth:`oracle_columns` belong to.

        Takes the same arguments (without ``episodes`` and ``seed``): the arguments that describe
        the data are dropped, and ``limit`` becomes the longest of the union, ``limit * segments``.
        """
        check_int("limit", limit, 3)
        check_int("segments", segments, 1)
        kept = {name: value for name, value in kwargs.items() if name not in cls.data_options}
        return {"limit": int(limit) * int(segments), **kept}

    @classmethod
    def oracle_columns(
        cls,
        episodes: int,
        seed: int,
        *,
        limit: int = TMazeSettings.limit,
        corridors: str = "uniform",
        segments: int = 1,
        mixture: str = "union",
        wrong_turns: bool = False,
        **env_kwargs: Any,
    ) -> dict[str, NDArray[Any]]:
        """Generate episodes of the oracle as flat columns (the training data of RATE).

        An episode equals what stepping ``TMazeEnv(limit=L + 2, corridor=L)`` with
        :meth:`oracle_action` gives, up to the noise, which comes from one generator per limit:
        the episodes of one limit do not depend on ``segments``. Goals alternate. Every episode has
        L + 1 actions.

        Args:
            episodes: episodes per limit (the paper: 2000, half of them per goal).
            seed: of corridor lengths and noise, 0 or more.
            limit: longest episode K; with ``segments`` the smallest limit of the union.
            corridors: ``"uniform"`` draws L from 1 .. ``limit - 2`` (1 .. ``corridor`` when that
                is given) for each episode, ``"longest"`` takes the largest of these.
            segments: number n of limits: ``limit``, ``2 * limit`` .. ``n * limit``.
            mixture: ``"union"`` joins the n files (paper), ``episodes * n`` episodes in all;
                ``"max_only"`` is the file of the largest limit alone: the official loader opens it
                n times, and repeats would only leak into a held-out part.
            wrong_turns: in half of the episodes of each goal turn to the wrong side, return 0.
            **env_kwargs: further settings of the environment.

        Returns:
            ``observations [N, 4 + distractors]`` float32 (``[N, 64, 64, 3]`` uint8 for pixels),
            ``actions [N]`` int64, ``rewards [N]`` float32, ``terminations [N]`` and
            ``truncations [N]`` bool, ``final_observations [E, ...]``, ``episode_starts [E + 1]``.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> columns = TMazeEnv.oracle_columns(2, seed=0, limit=4, corridors="longest")
            >>> columns["actions"].tolist(), columns["episode_starts"].tolist()
            ([0, 0, 1, 0, 0, 3], [0, 3, 6])
        """
        episodes, seed = check_int("episodes", episodes, 1), check_int("seed", seed, 0)
        limit, segments = check_int("limit", limit, 3), check_int("segments", segments, 1)
        check_choice("corridors", corridors, ("uniform", "longest"))
        check_choice("mixture", mixture, ("union", "max_only"))
        wrong_turns = check_bool("wrong_turns", wrong_turns)
        numbers = range(segments if mixture == "max_only" else 1, segments + 1)
        files = []
        for number in numbers:
            settings = settings_from(TMazeSettings, {**env_kwargs, "limit": limit * number})
            rng = np.random.default_rng((seed, settings.limit))
            lengths = np.full(episodes, settings.length, np.int64)
            if corridors == "uniform":
                lengths = rng.integers(1, settings.length, size=episodes, endpoint=True)
            files.append(_oracle_file(settings, lengths, rng, wrong_turns))
        return generation.join_files(files)


def _noise_rows(
    rng: np.random.Generator, rows: int, settings: TMazeSettings
) -> NDArray[np.float32]:
    """Return observation rows ``[rows, C]`` with the noise channels drawn and all others 0."""
    block = np.zeros((rows, settings.width), np.float32)
    first = 3 if settings.noise else 4
    if first < settings.width:
        shape = (rows, settings.width - first)
        block[:, first:] = rng.integers(-1, 2, size=shape, dtype=np.int8)
    return block


def _pictures(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw observation vectors ``[N, 4 + distractors]`` as pictures ``[N, 64, 64, 3]``."""
    v = vectors.astype(np.int8)
    return drawing.observation_images(v[:, 0], v[:, 1], v[:, 2], v[:, 3:])


def _picture(vector: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw one observation vector."""
    picture: NDArray[np.uint8] = _pictures(vector[None])[0]
    return picture


def _oracle_file(
    settings: TMazeSettings, lengths: NDArray[np.int64], rng: np.random.Generator, wrong_turns: bool
) -> generation.Columns:
    """Return the columns of one episode per corridor length in ``lengths [E]``."""
    goals = generation.alternating_goals(len(lengths))
    turns = goals.copy()
    if wrong_turns:
        turns[np.arange(len(turns)) % 4 >= 2] *= -1  # one right, one wrong turn for each goal
    starts, episode, time = generation.episode_steps(lengths + 1)
    at_junction = time == lengths[episode]
    actions = np.full(len(time), RIGHT, np.int64)
    actions[at_junction] = np.where(turns > 0, UP, DOWN)

    observations = _noise_rows(rng, len(time), settings)
    observations[:, 1] = np.where(time < settings.cue_steps, goals[episode], 0)
    observations[:, 2] = at_junction & settings.flag
    final = _noise_rows(rng, len(lengths), settings)
    final[:, 0] = turns
    final[:, 1] = np.where(lengths + 1 < settings.cue_steps, goals, 0)
    final[:, 2] = settings.flag
    draw = _pictures if settings.obs == "pixels" else np.asarray
    return {
        "observations": draw(observations),
        **generation.last_step_columns(actions, starts, turns == goals),
        "final_observations": draw(final),
    }


@lru_cache(maxsize=256)
def _random_success(length: int, limit: int) -> float:
    """Return the exact probability that uniformly random play reaches the right goal in time.

    Dynamic programming over the corridor cell: a cell keeps 1/2 of its mass (up and down are
    walls) and passes 1/4 to each neighbour, walls at both ends return that quarter; the junction
    passes 1/4 to each goal cell instead, and half of the goal cells reached are right ones.
    """
    mass = np.zeros(length + 1)
    mass[0] = 1.0
    reached = 0.0
    for _ in range(limit):
        reached += mass[-1] / 2
        moved = mass / 2
        moved[-1] = mass[-1] / 4
        moved[0] += mass[0] / 4
        moved[1:] += mass[:-1] / 4
        moved[:-1] += mass[1:] / 4
        mass = moved
    return float(reached / 2)

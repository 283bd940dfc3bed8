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

``cue_bits``, ``junctions``, ``distractors`` and ``reissue`` are ours: they ask for more memory than
one bit, for its order, for leaving things out and for replacing what was kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import drawing, generation
from seqrl.envs.checks import check_bool, check_choice, check_int, settings_from
from seqrl.envs.goals import balanced_goals, choose_goals
from seqrl.envs.tmaze_data import Cues, draw_cues, noise_rows, oracle_file, pictures
from seqrl.envs.tmaze_settings import DOWN, LEFT, RIGHT, UP, TMazeSettings
from seqrl.errors import SeqrlError

__all__ = ["DOWN", "LEFT", "RIGHT", "UP", "TMazeEnv", "TMazeSettings"]

# Noise is drawn for this many steps at once: one generator call costs as much as hundreds of draws.
_NOISE_BLOCK = 1024


class TMazeEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """T-Maze with a cue at the start, ``seqrl/TMaze-v0`` (arXiv 2306.09459).

    Actions ``Discrete(4)``: 0 right, 1 up, 2 left, 3 down; a move into a wall costs its step.
    Observations: float32 ``[y, cue, flag, noise, ...]``, or ``uint8 [64, 64, 3]`` with
    ``obs="pixels"``. The cell x is not observed. An episode terminates in a goal cell and is
    truncated, by the environment itself, after ``limit`` actions. The last ``info`` holds
    ``success`` (bool) and ``goal``; earlier ones are empty. The best return is 1 and needs
    ``L + 1`` actions, so with the default corridor one step may be wasted and no more.

    What the further settings mean exactly:

    - ``cue_bits=b``: the cue is b independent bits, each +1 or -1. At the junction a one-hot query
      of b channels names one of them, drawn uniformly, and this bit is the goal side. Like the
      flag, the query is still there in the goal cell.
    - ``junctions=n``: n corridors of length L, each ending in a junction with its own cue (and
      query). All n cues are shown together, in the first ``cue_steps`` observations. The right turn
      leads into the first cell of the next corridor, which looks like any other and cannot be left
      backwards; a wrong turn terminates with y = its side and return 0. The last right turn pays 1.
      The best way takes ``n (L + 1)`` actions. ``goal`` is a tuple of n sides, and the last info
      also counts the right ``turns``.
    - ``distractors=d``: in d observations of each episode the cue channels hold random signs, and
      one more channel holds 1, which means that this cue is false. Their times are drawn, without
      repetition, from those at which the shortest way is in a corridor and no cue is shown.
    - ``reissue=r``: at r times of the first corridor, after the first cue, drawn without
      repetition, the whole cue is drawn anew (each bit is flipped with probability 1/2) and shown
      for one observation, unmarked. The latest one is right, for all junctions.

    False and new cues come by the clock, like the first one: an agent that has wasted steps sees
    them at the same time in another cell. No junction can be reached before the last reissue. The
    channels, in order: y, the first bit of the cue, flag, noise, ``noise_channels``, the further
    bits (those of junction 1 in order, then those of junction 2, ...), queries, mark of false cues.

    Args:
        limit: actions an episode may take, ``2 * junctions + 1`` or more.
        corridor: corridor length L, 1 to ``limit // junctions - 1``; default
            ``(limit - 1) // junctions - 1``, which is ``limit - 2`` for one junction.
        noise: whether the noise channel is on.
        cue_steps: number of observations that show the cue.
        flag: whether the junction flag is on (it must be with several ``cue_bits``).
        noise_channels: number of further noise channels.
        obs: ``"vector"`` or ``"pixels"`` (for at most 16 channels besides y, first bit and flag).
        cue_bits: bits of a junction's cue.
        junctions: number of corridors with a junction, 1 to 63.
        distractors: number of false cues.
        reissue: how often the cue is issued again (needs ``cue_steps`` of 1 or more).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the whole maze, goal included.

    Raises:
        SeqrlError: a setting out of its range, or settings that contradict each other or do not
            fit into the corridor.

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
        noise_channels: int = 0,
        obs: str = "vector",
        cue_bits: int = 1,
        junctions: int = 1,
        distractors: int = 0,
        reissue: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.settings = TMazeSettings(
            limit=limit,
            corridor=corridor,
            noise=noise,
            cue_steps=cue_steps,
            flag=flag,
            noise_channels=noise_channels,
            obs=obs,
            cue_bits=cue_bits,
            junctions=junctions,
            distractors=distractors,
            reissue=reissue,
        )
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = self.settings.observation_space()
        # Plain attributes: reading them in `step` is cheaper than going through the settings.
        s = self.settings
        self._length, self._limit, self._junctions = s.length, s.limit, s.junctions
        self._cue_steps, self._flag, self._pixels = s.cue_steps, s.flag, s.obs == "pixels"
        self._cue_columns = s.cue_columns
        self._query_column = s.query_column if s.cue_bits > 1 else None
        self._draws = s.cue_bits > 1 or s.distractors > 0 or s.reissue > 0
        self._x = self._y = self._time = self._turns = 0
        self._goals: tuple[int, ...] = ()
        self._queries: list[int] = [0] * s.junctions
        self._cue: NDArray[np.int64] = np.zeros(s.junctions, np.int64)
        self._events: dict[int, tuple[NDArray[np.int64], bool]] = {}
        self._running = False
        self._block: NDArray[np.float32] = np.zeros((0, s.width), np.float32)
        self._row = 0

    @property
    def max_episode_steps(self) -> int:
        """Actions after which an episode has ended, whatever the policy does."""
        return self._limit

    @property
    def position(self) -> tuple[int, int]:
        """The agent's cell (x, y) in its present corridor, which observations do not show."""
        return self._x, self._y

    @property
    def junction(self) -> int:
        """Number of the junction that is next (or was the last), counted from 0."""
        return min(self._turns, self._junctions - 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds goals, cues and noise; ``None`` continues the present stream.
            options: ``{"goal": 1}`` or ``{"goal": -1}`` fixes the goal side; with several junctions
                ``{"goal": (1, -1, ...)}`` all of them.

        Raises:
            SeqrlError: unknown option or goal.
        """
        super().reset(seed=seed)
        self._goals = choose_goals(self.np_random, options, self._junctions)
        self._x = self._y = self._time = self._turns = 0
        self._running = True
        self._block, self._row = self._block[:0], 0
        if self._draws:
            goals, lengths = np.array([self._goals]), np.array([self._length])
            self._play(draw_cues(self.np_random, self.settings, goals, lengths))
        else:
            self._cue = np.array(self._goals)
        return self._observation(), {}

    def _play(self, cues: Cues) -> None:
        """Show the cues of an episode (E = 1), whose latest issue must fit the goals."""
        self._queries = cues.queries[0].tolist()
        self._cue = cues.issues[0, 0]
        again = zip(cues.reissued[0].tolist(), cues.issues[0, 1:], strict=True)
        false = zip(cues.disturbed[0].tolist(), cues.false[0], strict=True)
        self._events = {time: (cue, False) for time, cue in again}
        self._events |= {time: (cue, True) for time, cue in false}

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
                self._turn(1 if action == UP else -1)
        else:
            raise SeqrlError(f"action={action!r} is not allowed", "actions are 0, 1, 2 and 3")
        self._time += 1
        terminated = self._y != 0
        truncated = not terminated and self._time >= self._limit
        if not (terminated or truncated):
            return self._observation(), 0.0, False, False, {}
        self._running = False
        success = self._turns == self._junctions
        info: dict[str, Any] = {"success": success, "goal": self._goals[0]}
        if self._junctions > 1:
            info |= {"goal": self._goals, "turns": self._turns}
        return self._observation(), float(success), terminated, truncated, info

    def _turn(self, side: int) -> None:
        """Leave a junction for the next corridor or, at the end or on a wrong turn, a goal cell."""
        right = side == self._goals[self._turns]
        self._turns += right
        if right and self._turns < self._junctions:
            self._x = 0
        else:
            self._y = side

    def _observation(self) -> NDArray[Any]:
        """Return a new observation of the present state and use up one row of noise."""
        if self._row == len(self._block):
            self._draw_block()
        observation = self._block[self._row].copy()  # callers keep what they are given
        self._row += 1
        if self._y:
            observation[0] = self._y
        if self._time < self._cue_steps:
            observation[self._cue_columns] = self._cue
        elif self._time in self._events:
            observation[self._cue_columns], false = self._events[self._time]
            if false:
                observation[-1] = 1
        if self._x == self._length:
            if self._flag:
                observation[2] = 1
            if self._query_column is not None:
                observation[self._query_column + self._queries[self.junction]] = 1
        picture: NDArray[Any] = pictures(observation[None])[0] if self._pixels else observation
        return picture

    def _draw_block(self) -> None:
        """Fill the noise of the next observations: at most to the end of the episode."""
        rows = min(self._limit + 1 - self._time, _NOISE_BLOCK)
        self._block = noise_rows(self.np_random, rows, self.settings)
        self._row = 0

    def oracle_action(self) -> int:
        """Return the expert's action: right to the junction, then to the goal side.

        It reads the true state, so it is right in every state, whether or not the cue was seen.
        """
        if self._x < self._length:
            return RIGHT
        return UP if self._goals[self.junction] > 0 else DOWN

    def episode_options(self, i: int) -> dict[str, Any]:
        """Return the reset options of evaluation episode ``i``: goals alternate, even is up.

        An even number of episodes thus has as many goals up as down, which pins the score of an
        agent that ignores the cue to 0.5 (the paper evaluates 50 up and 50 down). With several
        junctions all combinations of the first m are gone through in every 2**m episodes.
        """
        return balanced_goals(i, self._junctions)

    def render(self) -> Any:
        """Draw the maze in the ``render_mode`` given at construction, ``None`` without one.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not self._goals:
            raise SeqrlError("render() before the first episode", "call reset() first")
        cue, false = self._cue, False
        if self._time >= self._cue_steps:
            cue, false = self._events.get(self._time, (0 * cue, False))
        here = self.junction
        view = drawing.MazeView(
            x=self._x,
            y=self._y,
            start=0,
            junction=self._length,
            goal=self._goals[here],
            # What the sign says of this junction: a false cue is no sign.
            cue=0 if false else int(cue[here * self.settings.cue_bits + self._queries[here]]),
            step=self._time,
            limit=self._limit,
            notes=self._notes(cue, false),
        )
        return drawing.render(view, self.render_mode)

    def _notes(self, cue: NDArray[np.int64], false: bool) -> tuple[str, ...]:
        """What a rendering says beyond the plain maze."""
        notes = []
        if self._junctions > 1:
            notes.append(f"junction {self.junction + 1} of {self._junctions}")
        if self.settings.cue_bits > 1:
            notes.append(f"asks for bit {self._queries[self.junction]}")
        if len(cue) > 1 and cue.any():
            notes.append("bits " + "".join("+" if bit > 0 else "-" for bit in cue))
        if false:
            notes.append("a false cue is shown")
        return tuple(notes)

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
        random = _random_success(settings.length, settings.limit, settings.junctions)
        return {"random": random, "oracle": 1.0}

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

        An episode equals what stepping ``TMazeEnv(limit=n (L + 1) + 1, corridor=L, junctions=n)``
        with :meth:`oracle_action` gives, up to noise and drawn cues, which come from one generator
        per limit: the episodes of one limit do not depend on ``segments``. The goals are those of
        :meth:`episode_options`. Every episode has n (L + 1) actions.

        Args:
            episodes: episodes per limit (the paper: 2000, half of them per goal).
            seed: of corridor lengths, cues and noise, 0 or more.
            limit: longest episode K; with ``segments`` the smallest limit of the union.
            corridors: ``"uniform"`` draws L from 1 .. ``limit - 2`` (1 .. ``corridor`` when that
                is given) for each episode, ``"longest"`` takes the largest of these. All corridors
                of an episode have the same length. With reissues or distractors, lengths without
                room for all of them are left out.
            segments: number n of limits: ``limit``, ``2 * limit`` .. ``n * limit``.
            mixture: ``"union"`` joins the n files (paper), ``episodes * n`` episodes in all;
                ``"max_only"`` is the file of the largest limit alone: the official loader opens it
                n times, and repeats would only leak into a held-out part.
            wrong_turns: in half of the episodes of each goal (each combination of goals) turn to
                the wrong side, return 0; with several junctions at a random one, which is the last.
            **env_kwargs: further settings of the environment.

        Returns:
            ``observations [N, width]`` float32 (``[N, 64, 64, 3]`` uint8 for pixels),
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
                least = settings.shortest
                lengths = rng.integers(least, settings.length, size=episodes, endpoint=True)
            files.append(oracle_file(settings, lengths, rng, wrong_turns))
        return generation.join_files(files)


@lru_cache(maxsize=256)
def _random_success(length: int, limit: int, junctions: int) -> float:
    """Return the exact probability that uniformly random play takes all turns right in time.

    Dynamic programming over the cells of the corridors: a cell keeps 1/2 of its mass (up and down
    are walls) and passes 1/4 to each neighbour, walls at both ends return that quarter; a junction
    loses 1/4 to the wrong side instead and passes 1/4 to the next corridor or, at last, the goal.
    """
    mass = np.zeros((junctions, length + 1))
    mass[0, 0] = 1.0
    reached = 0.0
    for _ in range(limit):
        reached += mass[-1, -1] / 4
        moved = mass / 2
        moved[:, -1] = mass[:, -1] / 4
        moved[:, 0] += mass[:, 0] / 4
        moved[:, 1:] += mass[:, :-1] / 4
        moved[:, :-1] += mass[:, 1:] / 4
        moved[1:, 0] += mass[:-1, -1] / 4
        mass = moved
    return float(reached)

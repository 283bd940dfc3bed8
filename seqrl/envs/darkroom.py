"""Dark Room: find a goal that is never shown, in an empty square room.

Sources: Lee et al., "Supervised Pretraining Can Learn In-Context Reinforcement Learning", arXiv
2306.14892, and jon--lee/decision-pretrained-transformer (presets ``dpt`` and ``permuted``); Laskin
et al., "In-context Reinforcement Learning with Algorithm Distillation", arXiv 2210.14215 (``ad``
and ``hard``).

    observation   (x, y), the agent's own cell
    step          move, clip to the room, then reward 1 if the new cell is the goal, else 0

| point | official code | here |
|---|---|---|
| best action under permuted actions | raises an error | the place of the wanted move in the order |
| tasks of the permuted room | no split | 100 training orders, 20 test orders, shuffled alike |
| Dark Room Hard, "reward once" | others end the episode at the goal | later visits pay nothing |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from seqrl.envs import grids
from seqrl.envs.checks import check_actions, check_int
from seqrl.envs.rooms import DarkRoomSettings, darkroom_tasks, given_tasks
from seqrl.envs.walking import WalkingEnv
from seqrl.errors import SeqrlError

__all__ = ["DarkRoomEnv", "VectorDarkRoom", "darkroom_tasks"]

Cells = NDArray[np.int64]


class DarkRoomEnv(WalkingEnv):
    """Dark Room, ``seqrl/DarkRoom-v0``.

    Actions ``Discrete(5)``: 0 x + 1, 1 x - 1, 2 y + 1, 3 y - 1, 4 stay; with an action order the
    move ``order[action]`` is made. Observations: the agent's cell. An episode is truncated after
    ``horizon`` steps; it terminates only with ``terminate_on_goal``. Every ``info`` holds
    ``optimal_action`` for the state it comes with, and after a step ``regret``: how much the step
    lowered the highest return within reach, so that regrets add up to the optimum less the return.
    The last one also holds ``success`` (the goal was visited) and ``goal``.

    Args:
        preset: ``dpt`` (10 x 10, 100 steps, from the corner), ``ad`` (9 x 9, 20 steps, from the
            centre), ``hard`` (17 x 17, 20 steps, from the centre, pays once) or ``permuted`` (as
            ``dpt``, goal in the far corner, the five actions in a hidden order). The other
            arguments replace settings of it; None leaves them.
        size: cells along each side, 2 to 100.
        goal: cell (x, y), or ``"far"`` for the far corner; None draws one at every reset.
        horizon: steps of an episode.
        start: ``"corner"``, ``"center"`` or ``"random"``.
        reward_once: only the first visit of the goal pays.
        terminate_on_goal: reaching the goal ends the episode.
        perm_index: action order 0 to 119 (``itertools.permutations``), or ``"any"``: drawn.
        split: ``"all"``, ``"train"`` or ``"test"``: which goals are drawn (4 : 1), or which orders
            where the goal is fixed (100 : 20).
        obs: ``"vector"`` (float32, raw coordinates) or ``"discrete"`` (MultiDiscrete).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows the goal.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = DarkRoomEnv()
        >>> observation, info = env.reset(options={"goal": (2, 1)})
        >>> [env.step(env.oracle_action())[1] for _ in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """

    def __init__(
        self,
        preset: str = "dpt",
        size: int | None = None,
        goal: Any = None,
        horizon: int | None = None,
        start: str | None = None,
        reward_once: bool | None = None,
        terminate_on_goal: bool | None = None,
        perm_index: Any = None,
        split: str = "all",
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        self.settings = DarkRoomSettings.of(
            preset,
            size=size,
            goal=goal,
            horizon=horizon,
            start=start,
            reward_once=reward_once,
            terminate_on_goal=terminate_on_goal,
            perm_index=perm_index,
            split=split,
            obs=obs,
        )
        rule = self.settings
        super().__init__(rule.size, rule.horizon, rule.observation_space(), render_mode)
        self._once, self._ends = rule.pays_once, rule.terminate_on_goal
        self._goal, self._order, self._paid = (0, 0), 0, False

    @property
    def goal(self) -> tuple[int, int]:
        """The goal of the present episode, which observations do not show."""
        return self._goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds whatever is drawn; ``None`` continues the present stream.
            options: ``{"goal": (x, y)}`` and, in a room with an action order, ``{"perm_index": p}``
                fix the task, whatever the split.

        Raises:
            SeqrlError: unknown option or a value out of its range.
        """
        super().reset(seed=seed)
        goal, order, start = self.settings.draw(self.np_random, 1)
        given = given_tasks(self.settings, options, 1)
        gx, gy = given.get("goal", goal)[0].tolist()
        self._goal, self._order = (gx, gy), int(given.get("order", order)[0])
        self._moves = [tuple(m) for m in grids.MOVES[grids.PERMUTATIONS[self._order]].tolist()]
        self._paid = False
        return self._begin(*start[0].tolist())

    def _arrive(self) -> tuple[float, bool]:
        hit = (self._x, self._y) == self._goal
        reward = float(hit and not (self._once and self._paid))
        self._paid = self._paid or hit
        return reward, hit and self._ends

    def _outcome(self) -> dict[str, Any]:
        return {"success": self._paid, "goal": self._goal}

    def _shown(self) -> tuple[dict[str, tuple[int, int]], str]:
        return {"G": self._goal}, f"action order {self._order}"

    def _within_reach(self) -> int:
        """The highest return still possible in the present episode."""
        away = max(abs(self._goal[0] - self._x) + abs(self._goal[1] - self._y), 1)
        left = self._limit - self._time
        if self._once:
            return int(not self._paid and away <= left)
        return max(left - away + 1, 0)

    def oracle_action(self) -> int:
        """The best action in the present state: first along x, then along y, then stay."""
        dx, dy = self._goal[0] - self._x, self._goal[1] - self._y
        if dx:
            wanted = (1, 0) if dx > 0 else (-1, 0)
        else:
            wanted = (0, (dy > 0) - (dy < 0))
        # The place of the wanted move in the hidden order is the action that makes it.
        return self._moves.index(wanted)

    def episode_options(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation episode (or trial) ``i``: the tasks of the split in turn."""
        return self.settings.task(i)

    @classmethod
    def reference_scores(cls, preset: str = "dpt", **kwargs: Any) -> dict[str, float]:
        """Return the mean returns of uniformly random play and of the optimum, both exact.

        The mean is over the goals of the split (and over the first cells, where these are drawn).

        Args:
            preset: as for the constructor.
            **kwargs: further settings of the environment.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> DarkRoomEnv.reference_scores("ad")["oracle"]
            16.54320987654321
        """
        kwargs.pop("render_mode", None)
        settings = DarkRoomSettings.of(preset, **kwargs)
        goals, room = settings.goals(), grids.cells(settings.size)
        starts = room if settings.start == "random" else settings.starts(np.zeros((1, 2), np.int64))
        numbers, first = (c[:, 0] * settings.size + c[:, 1] for c in (goals, starts))
        chance = grids.random_play(settings.size, settings.horizon, numbers, settings.pays_once)
        away = grids.distance(starts[:, None], goals[None])
        best = settings.best(away, settings.horizon, False)
        return {"random": float(chance[:, first].mean()), "oracle": float(best.mean())}

    @classmethod
    def context_columns(
        cls,
        seed: int = 0,
        tasks: int | None = None,
        histories: int = 100,
        steps: int | None = None,
        rollin: str = "uniform",
        **settings: Any,
    ) -> dict[str, Any]:
        """Transitions of the rooms of a split, as flat columns.

        See :func:`seqrl.envs.context_data.darkroom_transitions`.
        """
        from seqrl.envs.context_data import darkroom_transitions

        rooms = DarkRoomSettings.of(**settings)
        return darkroom_transitions(rooms, seed, tasks, histories, steps, rollin)

    @classmethod
    def history_columns(cls, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
        """Learning histories in the rooms of a split, as flat columns.

        See :class:`seqrl.envs.context_data.Annealing` for the arguments beside the settings.
        """
        from seqrl.envs.context_data import Annealing, darkroom_histories

        plan = Annealing.taken_from(kwargs)
        return darkroom_histories(plan, seed, **kwargs)


class VectorDarkRoom(VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]]):
    """Thousands of Dark Rooms in numpy arrays; a row behaves as a :class:`DarkRoomEnv` does.

    Nothing is reset by itself (autoreset is disabled): a row that is over rests, with reward 0 and
    both flags false, until it is reset. Infos hold arrays ``optimal_action [N]`` and, after a step,
    ``regret [N]``. All rows draw from one generator.

    Args:
        num_envs: number of rooms N.
        preset: as for :class:`DarkRoomEnv`.
        **settings: as for :class:`DarkRoomEnv`.

    Example:
        >>> env = VectorDarkRoom(20, split="test")
        >>> observations, infos = env.reset(seed=0, options=env.episode_options())
        >>> total = sum(env.step(env.oracle_actions())[1] for _ in range(100))
        >>> float(total.mean())
        90.9
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, num_envs: int, preset: str = "dpt", **settings: Any) -> None:
        self.num_envs = check_int("num_envs", num_envs, 1)
        self.settings = DarkRoomSettings.of(preset, **settings)
        self.single_observation_space = self.settings.observation_space()
        self.single_action_space = spaces.Discrete(5)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        n = num_envs
        self._position, self._goal = np.zeros((n, 2), np.int64), np.zeros((n, 2), np.int64)
        self._order, self._time = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._paid, self._running = np.zeros(n, np.bool_), np.zeros(n, np.bool_)

    @property
    def max_episode_steps(self) -> int:
        """Steps after which every episode has ended."""
        return self.settings.horizon

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start episodes; observations ``[N, 2]``.

        Args:
            seed: of the one generator that all rows draw from; ``None`` continues it.
            options: ``goal`` (``[N, 2]``, or one cell for all), ``perm_index`` (``[N]`` or one),
                ``reset_mask`` (``[N]`` bool): rows to reset, the others stay as they are.

        Raises:
            SeqrlError: unknown option, or values of a wrong shape or range.
        """
        super().reset(seed=seed)
        rest = dict(options or {})
        rows = np.asarray(rest.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if rows.shape != (self.num_envs,) or rows.dtype != np.bool_:
            raise SeqrlError("reset_mask is not allowed", f"it must be [{self.num_envs}] bool")
        goal, order, start = self.settings.draw(self.np_random, self.num_envs)
        given = given_tasks(self.settings, rest, self.num_envs)
        goal, order = given.get("goal", goal), given.get("order", order)
        self._goal[rows], self._order[rows] = goal[rows], order[rows]
        self._position[rows] = start[rows]
        self._time[rows], self._paid[rows], self._running[rows] = 0, False, True
        return self._observations(), {"optimal_action": self.oracle_actions()}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every running row with actions ``[N]``.

        Raises:
            SeqrlError: all rows are over, or an action is none of the five.
        """
        if not self._running.any():
            raise SeqrlError("step() without a running episode", "call reset() first")
        chosen = check_actions(actions, self.num_envs, 5)
        rule, before, live = self.settings, self._within_reach(), self._running
        after = grids.moved(self._position, grids.PERMUTATIONS[self._order, chosen], rule.size)
        self._position = np.where(live[:, None], after, self._position)
        self._time += live
        hit = live & (self._position == self._goal).all(axis=1)
        rewards = (hit & ~(self._paid & rule.pays_once)).astype(np.float64)
        self._paid |= hit
        terminated = hit & rule.terminate_on_goal
        truncated = live & ~terminated & (self._time >= rule.horizon)
        self._running = live & ~terminated & ~truncated
        regret = before - rewards - self._within_reach()
        infos = {"optimal_action": self.oracle_actions(), "regret": regret}
        return self._observations(), rewards, terminated, truncated, infos

    def _observations(self) -> NDArray[Any]:
        return self._position.astype(np.float32 if self.settings.obs == "vector" else np.int64)

    def _within_reach(self) -> NDArray[np.float64]:
        """The highest return still possible in each row, ``[N]``; 0 in rows that are over."""
        left = np.where(self._running, self.settings.horizon - self._time, 0)
        return self.settings.best(grids.distance(self._position, self._goal), left, self._paid)

    @property
    def running(self) -> NDArray[np.bool_]:
        """Which rows have an episode under way, ``[N]``."""
        return self._running.copy()

    @property
    def goals(self) -> Cells:
        """The goal of every row, ``[N, 2]``."""
        return self._goal.copy()

    def oracle_actions(self) -> Cells:
        """The best action of every row, ``[N]``."""
        wanted = grids.shortest_action(self._position, self._goal)
        place: Cells = np.argmax(grids.PERMUTATIONS[self._order] == wanted[:, None], axis=1)
        return place

    def episode_options(self, first: int = 0) -> dict[str, Any]:
        """Reset options that make row k the evaluation episode ``first + k`` of the single room."""
        tasks = [self.settings.task(first + k) for k in range(self.num_envs)]
        return {name: np.array([task[name] for task in tasks]) for name in tasks[0]}

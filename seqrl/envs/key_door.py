"""Dark Key-to-Door: find a hidden key, then a hidden door, in an empty square room.

Source: the task of Laskin et al., "In-context Reinforcement Learning with Algorithm Distillation",
arXiv 2210.14215, for which no code was released. Two later versions differ, and both can be made:

| point | corl-team/toy-meta-gym (default) | jaehyeon-son/dicp |
|---|---|---|
| first cell | random | the centre: ``start="center"`` |
| at the door, with the key | the episode ends | it goes on: ``terminate_on_door=False`` |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import grids
from seqrl.envs.checks import check_bool, check_choice, check_int, known_options, settings_from
from seqrl.envs.walking import WalkingEnv

__all__ = ["DarkKeyDoorEnv", "KeyDoorSettings"]


@dataclass(frozen=True)
class KeyDoorSettings:
    """Checked settings of a :class:`DarkKeyDoorEnv`."""

    size: int = 9
    """Cells along each side."""
    horizon: int = 50
    """Steps of an episode."""
    key: Any = None
    """Cell (x, y) of the key; None: drawn at reset."""
    door: Any = None
    """Cell (x, y) of the door; None: drawn at reset."""
    start: str = "random"
    """``"random"``, ``"center"`` (size // 2 each) or ``"corner"`` (0, 0)."""
    terminate_on_door: bool = True
    """Whether the door ends the episode."""
    split: str = "all"
    """Which pairs of cells are drawn: ``all``, ``train`` or ``test``."""
    obs: str = "vector"
    """``"vector"``: float32 (x, y); ``"discrete"``: MultiDiscrete, one-hot once flattened."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        # Pairs of cells are listed, and exact play takes size**4 numbers a step.
        keep("size", check_int("size", self.size, 2, 20))
        keep("horizon", check_int("horizon", self.horizon, 1))
        for name in ("key", "door"):
            if (cell := getattr(self, name)) is not None:
                keep(name, grids.check_cell(name, cell, self.size))
        check_choice("start", self.start, ("random", "center", "corner"))
        keep("terminate_on_door", check_bool("terminate_on_door", self.terminate_on_door))
        check_choice("split", self.split, grids.SPLITS)
        check_choice("obs", self.obs, ("vector", "discrete"))

    def pair(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Key and door of task ``number``, which is key cell * cells + door cell."""
        key, door = divmod(number, self.size**2)
        kx, ky = divmod(key, self.size)
        dx, dy = divmod(door, self.size)
        return self.key or (kx, ky), self.door or (dx, dy)


class DarkKeyDoorEnv(WalkingEnv):
    """Dark Key-to-Door, ``seqrl/DarkKeyDoor-v0``.

    Actions as in Dark Room: 0 x + 1, 1 x - 1, 2 y + 1, 3 y - 1, 4 stay. The observation is the
    agent's cell; it does not tell whether the key was found. The first step that ends on the key
    pays 1; after it, the first step that ends on the door pays 1 and, by default, terminates. The
    episode is truncated after ``horizon`` steps. Every ``info`` holds ``optimal_action``, after a
    step also ``regret`` (the loss of the highest return within reach); the last one ``success``
    (both found), ``key`` and ``door``.

    Args:
        size: cells along each side, 2 to 20.
        horizon: steps of an episode.
        key: cell (x, y); None draws one at every reset.
        door: cell (x, y); None draws one at every reset.
        start: ``"random"``, ``"center"`` or ``"corner"``.
        terminate_on_door: whether the door ends the episode.
        split: ``"all"``, ``"train"`` or ``"test"``: which pairs are drawn (4 : 1, fixed).
        obs: ``"vector"`` (float32, raw coordinates) or ``"discrete"`` (MultiDiscrete).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; shows key and door.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = DarkKeyDoorEnv(start="corner")
        >>> observation, info = env.reset(options={"key": (1, 0), "door": (1, 1)})
        >>> [env.step(env.oracle_action())[1:3] for _ in range(2)]
        [(1.0, False), (1.0, True)]
    """

    def __init__(
        self,
        size: int = 9,
        horizon: int = 50,
        key: Any = None,
        door: Any = None,
        start: str = "random",
        terminate_on_door: bool = True,
        split: str = "all",
        obs: str = "vector",
        render_mode: str | None = None,
    ) -> None:
        self.settings = KeyDoorSettings(
            size, horizon, key, door, start, terminate_on_door, split, obs
        )
        cells: spaces.Space[Any] = spaces.Box(0, size - 1, (2,), np.float32)
        if obs == "discrete":
            cells = spaces.MultiDiscrete([size, size])
        super().__init__(size, horizon, cells, render_mode)
        self._tasks = grids.split_of(size**4, split)
        self._key = self._door = (0, 0)
        self._found = 0  # how many of the two

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds whatever is drawn; ``None`` continues the present stream.
            options: ``{"key": (x, y), "door": (x, y)}``, both or one, whatever the split.

        Raises:
            SeqrlError: unknown option or a cell outside the room.
        """
        super().reset(seed=seed)
        size = self.settings.size
        given = known_options(options, ("key", "door"))
        drawn = int(self._tasks[self.np_random.integers(len(self._tasks))])
        first = self.np_random.integers(size, size=2).tolist()
        self._key, self._door = self.settings.pair(drawn)
        if "key" in given:
            self._key = grids.check_cell("key", given["key"], size)
        if "door" in given:
            self._door = grids.check_cell("door", given["door"], size)
        fixed = {"center": size // 2, "corner": 0}.get(self.settings.start)
        self._found = 0
        return self._begin(*(first if fixed is None else (fixed, fixed)))

    def _arrive(self) -> tuple[float, bool]:
        wanted = (self._key, self._door, None)[self._found]
        reward = float(self.position == wanted)
        self._found += int(reward)
        return reward, bool(reward) and self._found == 2 and self.settings.terminate_on_door

    def _outcome(self) -> dict[str, Any]:
        return {"success": self._found == 2, "key": self._key, "door": self._door}

    def _shown(self) -> tuple[dict[str, tuple[int, int]], str]:
        marks = {"D": self._door} if self._found else {"D": self._door, "K": self._key}
        return dict(marks), f"found {('nothing', 'the key', 'key and door')[self._found]}"

    def _within_reach(self) -> int:
        """The highest return still possible in the present episode."""
        left = self.settings.horizon - self._time
        if self._found == 2:
            return 0
        to_door = _steps(self._key if self._found == 0 else self.position, self._door)
        if self._found == 1:
            return int(to_door <= left)
        to_key = _steps(self.position, self._key)
        return int(to_key <= left) + int(to_key + to_door <= left)

    def oracle_action(self) -> int:
        """The best action: to the key, to the door, then stay; along x before y."""
        goal = (self._key, self._door, self.position)[self._found]
        return int(grids.shortest_action(np.array(self.position), np.array(goal)))

    def episode_options(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation episode (or trial) ``i``: the pairs of the split in turn."""
        key, door = self.settings.pair(int(self._tasks[i % len(self._tasks)]))
        return {"key": key, "door": door}

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the mean returns of uniformly random play and of the optimum, both exact.

        The mean is over the pairs of the split, and over the first cells where these are drawn.

        Args:
            **kwargs: settings of the environment.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        settings = settings_from(KeyDoorSettings, kwargs)
        random, oracle = _returns(settings)
        return {"random": random, "oracle": oracle}


def _steps(start: tuple[int, int], goal: tuple[int, int]) -> int:
    """Steps until a step ends on the goal: one even when it starts there."""
    return max(abs(goal[0] - start[0]) + abs(goal[1] - start[1]), 1)


@lru_cache(maxsize=32)
def _returns(settings: KeyDoorSettings) -> tuple[float, float]:
    """Mean returns of random play and of the optimum."""
    size, horizon = settings.size, settings.horizon
    pairs = [settings.pair(int(t)) for t in grids.split_of(size**4, settings.split)]
    numbers = np.array([(k[0] * size + k[1], d[0] * size + d[1]) for k, d in pairs])
    counts = np.zeros((size**2, size**2))
    np.add.at(counts, (numbers[:, 0], numbers[:, 1]), 1 / len(pairs))  # weight of (key, door)
    room = grids.cells(size)
    centre = (size // 2) * (size + 1)
    fixed = {"center": centre, "corner": 0}.get(settings.start)
    starts = np.arange(size**2) if fixed is None else np.array([fixed])
    # reached[t, goal, cell]: probability of entering the goal within t steps from the cell.
    reached = grids.random_play(size, horizon, np.arange(size**2), absorbing=True, keep=True)
    to_key = reached[:, :, starts].mean(axis=2)  # (H+1, key)
    expected = float(to_key[horizon] @ counts.sum(axis=1))
    for t in range(1, horizon):
        now = to_key[t] - to_key[t - 1]  # the key is found at step t
        expected += float(now @ (counts * reached[horizon - t].T).sum(axis=1))
    away = np.maximum(grids.distance(room[:, None], room[None]), 1)
    total = away[starts][:, :, None] + away[None]  # (start, key, door)
    best = (away[starts] <= horizon).mean(axis=0) @ counts.sum(axis=1)
    best += ((total <= horizon).mean(axis=0) * counts).sum()
    return expected, float(best)

"""Dark Room as data: its settings and presets, its tasks, and what is best in them.

Sources: see :mod:`seqrl.envs.darkroom`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs import grids
from seqrl.envs.checks import check_bool, check_choice, check_int, known_options, settings_from
from seqrl.errors import SeqrlError

__all__ = ["PRESETS", "DarkRoomSettings", "darkroom_tasks", "given_tasks"]

Cells = NDArray[np.int64]

PRESETS: dict[str, dict[str, Any]] = {
    "dpt": {"size": 10, "horizon": 100, "start": "corner"},
    "ad": {"size": 9, "horizon": 20, "start": "center"},
    "hard": {"size": 17, "horizon": 20, "start": "center", "reward_once": True},
    "permuted": {"size": 10, "horizon": 100, "start": "corner", "goal": "far", "perm_index": "any"},
}
"""Published rooms by name; every setting given besides takes the place of the preset's."""

_TRAIN_ORDERS = 100


@dataclass(frozen=True)
class DarkRoomSettings:
    """Checked settings of a Dark Room, after the preset was filled in."""

    size: int = 10
    """Cells along each side."""
    goal: Any = None
    """A cell (x, y), ``"far"`` for the corner (size - 1, size - 1), or None: drawn at reset."""
    horizon: int = 100
    """Steps of an episode."""
    start: str = "corner"
    """``"corner"`` (0, 0), ``"center"`` (size // 2 each) or ``"random"``."""
    reward_once: bool = False
    """Only the first visit of the goal in an episode pays."""
    terminate_on_goal: bool = False
    """Reaching the goal ends the episode."""
    perm_index: Any = None
    """Order of the actions, 0 to 119; ``"any"``: drawn at reset; None: as they are named."""
    split: str = "all"
    """Which goals (or orders, where the goal is fixed) are drawn: ``all``, ``train``, ``test``."""
    obs: str = "vector"
    """``"vector"``: float32 (x, y); ``"discrete"``: MultiDiscrete, one-hot once flattened."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("size", check_int("size", self.size, 2, 100))
        keep("horizon", check_int("horizon", self.horizon, 1))
        if self.goal is not None:
            last = self.size - 1
            far = isinstance(self.goal, str) and self.goal == "far"
            keep("goal", (last, last) if far else grids.check_cell("goal", self.goal, self.size))
        check_choice("start", self.start, ("corner", "center", "random"))
        keep("reward_once", check_bool("reward_once", self.reward_once))
        keep("terminate_on_goal", check_bool("terminate_on_goal", self.terminate_on_goal))
        if self.perm_index is not None and self.perm_index != "any":
            keep("perm_index", check_int("perm_index", self.perm_index, 0, 119))
        check_choice("split", self.split, grids.SPLITS)
        check_choice("obs", self.obs, ("vector", "discrete"))

    @classmethod
    def of(cls, preset: str = "dpt", **given: Any) -> DarkRoomSettings:
        """The settings of a preset with those replaced that are given and not None."""
        base = PRESETS[check_choice("preset", preset, tuple(PRESETS))]
        return settings_from(cls, {**base, **{k: v for k, v in given.items() if v is not None}})

    @property
    def pays_once(self) -> bool:
        """Whether an episode's return is at most 1."""
        return self.reward_once or self.terminate_on_goal

    def observation_space(self) -> spaces.Space[Any]:
        """Return the space of the observations."""
        if self.obs == "discrete":
            return spaces.MultiDiscrete([self.size, self.size])
        return spaces.Box(0, self.size - 1, (2,), np.float32)

    def observed(self, at: Cells) -> NDArray[np.float32]:
        """Cells ``[N, 2]`` as data hold them: raw coordinates, or one-hot ``[N, 2 * size]``."""
        if self.obs == "vector":
            return at.astype(np.float32)
        one_hot = np.eye(self.size, dtype=np.float32)[at]
        return one_hot.reshape(len(at), -1)

    def goals(self) -> Cells:
        """The goals an episode may have, ``[G, 2]``, in the order of the split."""
        if self.goal is not None:
            return np.array([self.goal], np.int64)
        numbers = grids.split_of(self.size**2, self.split)
        return grids.cells(self.size)[numbers]

    def orders(self) -> Cells:
        """Numbers of the action orders an episode may have, ``[P]``."""
        if self.perm_index is None:
            return np.zeros(1, np.int64)
        if self.perm_index != "any":
            return np.array([self.perm_index], np.int64)
        # The split is one of goals; orders are split only where the goal is always the same.
        part = self.split if self.goal is not None else "all"
        return grids.split_of(len(grids.PERMUTATIONS), part, _TRAIN_ORDERS)

    def starts(self, drawn: Cells) -> Cells:
        """First cells ``[N, 2]`` of episodes for which ``drawn [N, 2]`` was drawn."""
        if self.start == "random":
            return drawn
        return np.full_like(drawn, 0 if self.start == "corner" else self.size // 2)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Cells, Cells, Cells]:
        """Draw goals ``[n, 2]``, orders ``[n]`` and first cells ``[n, 2]``.

        The same numbers are drawn whatever is fixed: fixing the task leaves the rest as it was.
        """
        goals, orders = self.goals(), self.orders()
        goal = goals[rng.integers(len(goals), size=n)]
        order = orders[rng.integers(len(orders), size=n)]
        return goal, order, self.starts(rng.integers(self.size, size=(n, 2)))

    def task(self, i: int) -> dict[str, Any]:
        """Reset options of task ``i``, counted through the goals first and around at the end."""
        goals, orders = self.goals(), self.orders()
        x, y = goals[i % len(goals)].tolist()
        task: dict[str, Any] = {"goal": (x, y)}
        if self.perm_index is not None:
            task["perm_index"] = int(orders[i // len(goals) % len(orders)])
        return task

    def best(self, distances: Cells, left: Any, paid: Any) -> NDArray[np.float64]:
        """The highest return still possible at some distance from the goal, ``[...]``.

        Args:
            distances: moves to the goal.
            left: steps left in the episode.
            paid: whether the goal was visited before.
        """
        away = np.maximum(distances, 1)  # on the goal, staying pays at the next step
        if self.pays_once:
            return np.where(paid, 0.0, (away <= left).astype(np.float64))
        return np.maximum(left - away + 1, 0).astype(np.float64)


def darkroom_tasks(preset: str = "dpt", **settings: Any) -> list[dict[str, Any]]:
    """Every task of a Dark Room once, as the options of ``reset``, in the order of its split.

    Args:
        preset: as for the environment.
        **settings: as for the environment; ``split="test"`` gives the held-out ones.

    >>> [task["goal"] for task in darkroom_tasks(split="test")][:3]
    [(2, 5), (3, 7), (8, 1)]
    >>> len(darkroom_tasks()), len(darkroom_tasks("permuted")), len(darkroom_tasks("ad"))
    (100, 120, 81)
    """
    chosen = DarkRoomSettings.of(preset, **settings)
    count = len(chosen.goals()) * len(chosen.orders())
    return [chosen.task(i) for i in range(count)]


def given_tasks(
    settings: DarkRoomSettings, options: Mapping[str, Any] | None, n: int
) -> dict[str, Cells]:
    """The goals ``[n, 2]`` and orders ``[n]`` that reset options fix."""
    permuted = settings.perm_index is not None
    options = known_options(options, ("goal", "perm_index") if permuted else ("goal",))
    given: dict[str, Cells] = {}
    if "goal" in options:
        asked = options["goal"]
        many = np.ndim(asked) == 2
        if many and len(asked) != n:
            raise SeqrlError(f"{len(asked)} goals given", f"one, or {n} of them")
        pairs = [grids.check_cell("goal", g, settings.size) for g in (asked if many else [asked])]
        given["goal"] = np.broadcast_to(np.array(pairs, np.int64), (n, 2))
    if "perm_index" in options:
        orders = [check_int("perm_index", p, 0, 119) for p in np.atleast_1d(options["perm_index"])]
        if len(orders) not in (1, n):
            raise SeqrlError(f"{len(orders)} values of perm_index given", f"one, or {n} of them")
        given["order"] = np.broadcast_to(np.array(orders, np.int64), (n,))
    return given

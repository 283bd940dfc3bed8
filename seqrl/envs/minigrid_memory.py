"""MiniGrid-Memory with symbolic observations: which of two objects lay in the first room?

The game is ``MemoryEnv`` of the optional package ``minigrid`` (Farama Foundation); the three
actions and the small window are those of Cherepanov et al., "Recurrent Action Transformer with
Memory", arXiv 2306.09459, who show pictures of it. Here an observation names what lies in each
cell, which needs no vision and little data, and a scripted expert makes the data.

    a room with a key or a ball, a corridor, and a passage across its end with both of them;
    reward  1 - 0.9 steps / max_steps  beside the object of the first room, 0 beside the other
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs.checks import check_bool, check_choice, check_int, known_options
from seqrl.errors import SeqrlError

__all__ = ["FORWARD", "KINDS", "LEFT", "RIGHT", "MiniGridMemoryEnv"]

LEFT, RIGHT, FORWARD = range(3)
KINDS = ("unseen", "empty", "wall", "key", "ball")
"""What a cell may hold, in the order of an observation's one-hot groups."""

Place = tuple[int, int, int]
"""Column, row and direction (0 right, 1 down, 2 left, 3 up)."""

_AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
_FAR = 1 << 30


class MiniGridMemoryEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """MiniGrid-Memory, ``seqrl/MiniGridMemory-v0``; needs the package ``minigrid``.

    Actions ``Discrete(3)``: 0 turn left, 1 turn right, 2 forward. Observations: float32
    ``[view_size * view_size * 5]``, a one-hot group of :data:`KINDS` for each cell seen, farthest
    row first, left to right; the agent is in the middle of the last row and looks up. Walls hide
    what is behind them. Colours are left out: here they follow from the kinds. An episode
    terminates beside either object at the end and is truncated after ``max_steps``; the last
    ``info`` holds ``success``, earlier ones are empty.

    Args:
        size: cells along each side of the grid, odd, 7 or more.
        random_length: draw the corridor's length at every reset; otherwise it is the longest.
        view_size: cells along each side of what is seen, odd, 3 or more.
        max_steps: steps of an episode; None for ``5 * size**2``.
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``.

    Raises:
        SeqrlError: ``minigrid`` is not installed, or a setting is out of its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 13,
        random_length: bool = False,
        view_size: int = 3,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        for name, value, low in (("size", size, 7), ("view_size", view_size, 3)):
            if check_int(name, value, low) % 2 == 0:
                raise SeqrlError(f"{name}={value!r} is not allowed", f"{name} must be odd")
        if max_steps is not None:
            check_int("max_steps", max_steps, 1)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._size = int(size)
        self._game = _game(
            size=int(size),
            random_length=check_bool("random_length", random_length),
            agent_view_size=int(view_size),
            max_steps=max_steps,
            render_mode="rgb_array" if render_mode == "rgb_array" else None,
        )
        self._kind_of = _kind_table()
        self._one_hot = np.eye(len(KINDS), dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        self.observation_space = spaces.Box(0, 1, (view_size**2 * len(KINDS),), np.float32)
        self._running = self._cue_seen = False
        self._plans: dict[bool, dict[Place, int]] = {}

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode has ended, whatever the policy does."""
        return int(self._game.max_steps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds objects, corridor and first place; ``None`` continues the present stream.
            options: there are none.

        Raises:
            SeqrlError: an option.
        """
        known_options(options, ())
        super().reset(seed=seed)
        seen, _ = self._game.reset(seed=seed)
        self._running, self._cue_seen, self._plans = True, False, {}
        return self._observation(seen), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action (0 turn left, 1 turn right, 2 forward).

        Raises:
            SeqrlError: no episode is running, or the action is none of the three.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        if action not in (LEFT, RIGHT, FORWARD):
            raise SeqrlError(f"action={action!r} is not allowed", "actions are 0, 1 and 2")
        seen, reward, terminated, truncated, _ = self._game.step(int(action))
        truncated = bool(truncated) and not terminated
        self._running = not (terminated or truncated)
        info = {} if self._running else {"success": bool(terminated) and reward > 0}
        return self._observation(seen), float(reward), bool(terminated), truncated, info

    def _observation(self, seen: dict[str, Any]) -> NDArray[np.float32]:
        """One-hot groups of the cells in view; notes whether the first room's object is there."""
        kinds = self._kind_of[seen["image"][:, :, 0]]  # by column, then row
        cue = self._game.relative_coords(1, self._size // 2 - 1)
        if cue is not None:
            self._cue_seen |= KINDS[kinds[cue]] in ("key", "ball")
        observation: NDArray[np.float32] = self._one_hot[kinds.T].reshape(-1)
        return observation

    # --- the expert -----------------------------------------------------------------------------

    def oracle_action(self) -> int:
        """Return the expert's action: first see the object of the first room, then go to its like.

        It takes a shortest way, turns included, and is right after mistakes, too.
        """
        if self._cue_seen not in self._plans:
            self._plans[self._cue_seen] = self._distances()
        plan = self._plans[self._cue_seen]
        column, row = (int(v) for v in self._game.agent_pos)
        direction = int(self._game.agent_dir)
        right, down = _AHEAD[direction]
        ahead = (column + right, row + down, direction)
        after = [(column, row, (direction + turn) % 4) for turn in (-1, 1)]
        costs = [plan.get(place, _FAR) for place in (*after, ahead)]
        return min((FORWARD, LEFT, RIGHT), key=lambda action: costs[action])

    def _distances(self) -> dict[Place, int]:
        """Actions that are left from every place to the present goal."""
        game, middle = self._game, self._size // 2
        ends = {tuple(game.success_pos), tuple(game.failure_pos)}
        if self._cue_seen:
            goals: list[Place] = [(*game.success_pos, direction) for direction in range(4)]
            ends.remove(tuple(game.success_pos))
        else:
            goals = [(1, middle, 3)]  # right below the object, facing it

        def free(column: int, row: int) -> bool:
            return game.grid.get(column, row) is None and (column, row) not in ends

        steps, queue = dict.fromkeys(goals, 0), deque(goals)
        while queue:
            column, row, direction = queue.popleft()
            right, down = _AHEAD[direction]
            before = [(column, row, (direction + turn) % 4) for turn in (-1, 1)]
            if free(column - right, row - down):
                before.append((column - right, row - down, direction))
            for place in before:
                if place not in steps:
                    steps[place] = steps[(column, row, direction)] + 1
                    queue.append(place)
        return steps

    def render(self) -> Any:
        """Draw the grid in the ``render_mode`` given at construction, ``None`` without one."""
        if self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return f"{self._game.pprint_grid()}\n"
        return self._game.render()

    def close(self) -> None:
        """Close the game."""
        self._game.close()


def _game(**settings: Any) -> Any:
    """The package's environment.

    Raises:
        SeqrlError: the package is not installed.
    """
    try:
        from minigrid.envs.memory import MemoryEnv
    except ImportError as e:
        raise SeqrlError(
            f"MiniGrid-Memory needs the package minigrid ({e})",
            hint='pip install "seqrl[minigrid]"',
        ) from e
    return MemoryEnv(**settings)


def _kind_table() -> NDArray[np.int64]:
    """Index of :data:`KINDS` for each object number of the package, ``[n]``."""
    from minigrid.core.constants import OBJECT_TO_IDX

    table = np.zeros(max(OBJECT_TO_IDX.values()) + 1, np.int64)
    for index, kind in enumerate(KINDS):
        table[OBJECT_TO_IDX[kind]] = index
    return table

"""Cutting a stream of transitions into episodes, and the reward of Kitchen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrl.errors import SeqrlError

_JUMP = 5.0
"""Distance between positions of consecutive steps that no ant walks (D4RL's own checker)."""


@dataclass(frozen=True)
class Split:
    """Where the episodes of a stream of N transitions lie."""

    starts: np.ndarray
    """``[E]`` first step of each episode in the stream."""
    stops: np.ndarray
    """``[E]`` one past its last step."""
    terminated: np.ndarray
    """``[E]`` bool; the other episodes were truncated."""
    tail: int
    """Steps after the last episode end (not part of any episode unless kept)."""

    @property
    def contiguous(self) -> bool:
        """Whether the episodes follow one another from step 0 without a gap."""
        return bool(self.starts[0] == 0 and (self.starts[1:] == self.stops[:-1]).all())

    @property
    def steps(self) -> int:
        """Steps in all episodes."""
        return int((self.stops - self.starts).sum())

    def describe(self, kept_tail: bool = False) -> str:
        """One line for reports."""
        n, ended = len(self.starts), int(self.terminated.sum())
        ones = int((self.stops - self.starts == 1).sum())
        tail = f"tail of {self.tail} steps {'kept' if kept_tail else 'dropped'}"
        inside = int(self.stops[-1]) - int(self.starts[0]) - self.steps
        between = f", {inside} steps between episodes dropped" if inside else ""
        return (
            f"{n} episodes: {ended} terminated, {n - ended} truncated, "
            f"{tail}{between}, {ones} one-step episodes"
        )


def split_episodes(
    data: Mapping[str, np.ndarray],
    max_episode_steps: int | None = None,
    keep_tail: bool = False,
    goal_terminals: str = "keep",
) -> Split:
    """Cut a stream of transitions into episodes.

    A step ends an episode if ``terminals`` or ``timeouts`` is set there; without ``timeouts``, if
    it is the ``max_episode_steps``-th of its episode. With ``goal_terminals="merge"`` (AntMaze,
    where a run of steps near the goal is all terminal) the stream is cut at timeouts and where the
    position jumps, and each episode ends with its first terminal.

    Args:
        data: ``terminals [N]``, optional ``timeouts [N]``; for "merge" also ``observations
            [N, >= 2]`` (x and y first) and, for an exact jump test, ``next_observations``.
        max_episode_steps: time limit, used only without ``timeouts``.
        keep_tail: keep the steps after the last end as a truncated episode.
        goal_terminals: "keep" or "merge".

    Raises:
        SeqrlError: no step ends an episode.

    >>> ends = {"terminals": np.arange(12) == 3, "timeouts": np.arange(12) == 9}
    >>> split = split_episodes(ends)
    >>> (split.stops - split.starts).tolist(), split.tail
    ([4, 6], 2)
    """
    terminals = np.asarray(data["terminals"], dtype=bool)
    n = len(terminals)
    timeouts = data.get("timeouts")
    if goal_terminals == "merge":
        ends = _discontinuities(data)
    else:
        ends = terminals.copy()
    if timeouts is not None:
        ends |= np.asarray(timeouts, dtype=bool)
    elif max_episode_steps is not None:
        bounds = np.concatenate([[0], np.flatnonzero(ends) + 1])
        since = np.arange(n) - np.repeat(bounds, np.diff(np.append(bounds, n)))
        ends |= (since + 1) % max_episode_steps == 0
    stops = np.flatnonzero(ends) + 1
    tail = n - int(stops[-1]) if len(stops) else n
    if goal_terminals == "merge" and terminals[n - tail :].any():
        tail, stops = 0, np.append(stops, n)  # the goal was reached: complete but for the walk on
    elif keep_tail and tail:
        stops = np.append(stops, n)
    if len(stops) == 0:
        raise SeqrlError(
            f"no episode end among {n} steps: no terminals, "
            + ("no timeouts set" if timeouts is not None else "no timeouts array, no known limit"),
            hint="name the environment for its time limit (--env ID), or use --keep-tail",
        )
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    if goal_terminals == "merge":
        hits = np.append(np.flatnonzero(terminals), n)
        first = hits[np.searchsorted(hits, starts)]
        stops = np.minimum(stops, first + 1)
    return Split(starts, stops, terminals[stops - 1], tail)


def _discontinuities(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """``[N]`` bool: the position of the next step does not follow from this one."""
    position = np.asarray(data["observations"])[:, :2]
    jumps = np.zeros(len(position), dtype=bool)
    if (following := data.get("next_observations")) is not None:
        gap = np.abs(np.asarray(following)[:-1, :2] - position[1:]).max(axis=1)
        jumps[:-1] = gap > 1e-6
    else:
        jumps[:-1] = np.linalg.norm(np.diff(position, axis=0), axis=1) > _JUMP
    return jumps


def subtask_increase(rewards: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Kitchen rewards as the environment gives them: 1 when the subtasks done reach a new number.

    The stored reward of a step is the number of subtasks done by then, so that an episode's stored
    return grows with its length; the environment pays each subtask once.

    Args:
        rewards: ``[N]`` stored rewards, whole numbers of at least 0.
        episode_starts: ``[E+1]``.

    >>> subtask_increase(np.array([0, 1, 1, 2, 1, 1.0]), np.array([0, 4, 6])).tolist()
    [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    """
    if (rewards < 0).any() or (rewards != np.round(rewards)).any():
        raise SeqrlError(
            "--kitchen-rewards delta needs rewards that count subtasks (0, 1, 2, ...)",
            hint="leave --kitchen-rewards at stored for other data",
        )
    # Each episode is lifted above all before it, so one running maximum serves all episodes.
    lift = np.repeat(np.arange(len(episode_starts) - 1), np.diff(episode_starts))
    offset = lift * (float(rewards.max()) + 1)
    best = np.maximum.accumulate(rewards + offset) - offset
    increase = np.diff(best, prepend=0.0)
    increase[episode_starts[:-1]] = rewards[episode_starts[:-1]]
    return increase.astype(np.float32)

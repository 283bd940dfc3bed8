"""Helpers that build whole episodes as flat columns, without a Python loop over steps.

A *column* holds one value per step of all episodes in order; ``episode_starts [E + 1]`` says where
each episode begins. This is the form in which the dataset layer keeps trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "alternating_goals",
    "episode_steps",
    "equal_length_columns",
    "join_files",
    "last_step_columns",
]

Indices = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]
"""Column name to array; see :func:`last_step_columns` and the environments' ``oracle_columns``."""


def alternating_goals(episodes: int) -> NDArray[np.int64]:
    """Return +1, -1, +1, ... of shape ``[episodes]``: every prefix is balanced to within one."""
    return 1 - 2 * (np.arange(episodes, dtype=np.int64) % 2)


def episode_steps(lengths: NDArray[np.int64]) -> tuple[Indices, Indices, Indices]:
    """Lay episodes of the given lengths (actions, all >= 1) end to end.

    Returns:
        ``episode_starts [E + 1]``, and for each of the N steps the episode it belongs to and its
        time in that episode, both ``[N]``; all int64.
    """
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    episode = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    time = np.arange(starts[-1], dtype=np.int64) - starts[episode]
    return starts, episode, time


def last_step_columns(
    actions: NDArray[Any], starts: NDArray[np.int64], rewards: NDArray[Any]
) -> Columns:
    """Make the columns of episodes that are rewarded, and terminate, at their last step.

    Args:
        actions: ``[N]`` or ``[N, A]``.
        starts: ``[E + 1]``.
        rewards: reward of each episode's last step, ``[E]``.

    Returns:
        ``actions``, ``rewards`` float32, ``terminations`` and ``truncations`` bool (all ``[N]``),
        and ``episode_starts``.
    """
    last = starts[1:] - 1
    reward = np.zeros(len(actions), np.float32)
    reward[last] = rewards
    end = np.zeros(len(actions), np.bool_)
    end[last] = True
    return {
        "actions": actions,
        "rewards": reward,
        "terminations": end,
        "truncations": np.zeros(len(actions), np.bool_),
        "episode_starts": starts,
    }


def equal_length_columns(
    observations: NDArray[Any], actions: NDArray[Any], rewards: NDArray[Any]
) -> Columns:
    """Make the columns of E episodes of T actions each, all terminated by their last one.

    Args:
        observations: ``[E, T + 1, ...]``.
        actions: ``[E, T]``.
        rewards: ``[E, T]``.

    Returns:
        ``observations [E * T, ...]``, ``final_observations [E, ...]`` and what
        :func:`last_step_columns` returns.
    """
    count, length = actions.shape
    end = np.zeros((count, length), np.bool_)
    end[:, -1] = True
    return {
        "observations": observations[:, :-1].reshape(count * length, *observations.shape[2:]),
        "actions": actions.reshape(-1),
        "rewards": rewards.reshape(-1).astype(np.float32),
        "terminations": end.reshape(-1),
        "truncations": np.zeros(count * length, np.bool_),
        "final_observations": observations[:, -1].copy(),
        "episode_starts": np.arange(count + 1, dtype=np.int64) * length,
    }


def join_files(files: Sequence[Columns]) -> Columns:
    """Append the episodes of several sets of columns, in order."""
    if len(files) == 1:
        return files[0]
    joined: Columns = {}
    for name in files[0]:
        if name != "episode_starts":
            joined[name] = np.concatenate([columns[name] for columns in files])
    starts = [np.zeros(1, np.int64)]
    for columns in files:
        starts.append(columns["episode_starts"][1:] + starts[-1][-1])
    joined["episode_starts"] = np.concatenate(starts)
    return joined

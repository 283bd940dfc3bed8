"""Discounted returns of logged steps, exact where a limit cut the episode.

What would have followed a truncated end is unknown, so a return has two parts: the rewards that
were logged, and the discount of whatever comes after them::

    G_t = returns[t] + tails[t] * V(end),   tails[t] = discount ** (steps to the end), 0 if it
                                            terminated

The columns of a set are computed once and kept for as long as the set lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import numpy as np

from seqrl.datasets.statistics import rows_in_use

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_KEPT: WeakKeyDictionary[Trajectories, dict[float, tuple[np.ndarray, np.ndarray]]] = (
    WeakKeyDictionary()
)


def discounted_columns(data: Trajectories, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """``returns`` and ``tails`` of every step of the columns, ``[N]`` float32 each.

    Args:
        data: all steps of its columns, selected or not.
        discount: in (0, 1].
    """
    kept = _KEPT.setdefault(data, {})
    if discount not in kept:
        kept[discount] = discounted_returns(
            np.asarray(data.rewards), np.asarray(data.terminations), data.episode_starts, discount
        )
    return kept[discount]


def discounted_returns(
    rewards: np.ndarray, terminations: np.ndarray, episode_starts: np.ndarray, discount: float
) -> tuple[np.ndarray, np.ndarray]:
    """Logged discounted returns-to-go, and the discount of what lies beyond a truncated end.

    Walks from the ends of all episodes backwards at once, in float64.

    Args:
        rewards: ``[N]``.
        terminations: ``[N]`` bool.
        episode_starts: ``[E+1]`` offsets, first 0, last N.
        discount: in (0, 1].

    Returns:
        ``returns [N]`` and ``tails [N]``, float32.

    >>> r = np.array([1.0, 2.0, 4.0, 1.0])
    >>> ends = np.array([False, False, False, True])
    >>> [c.tolist() for c in discounted_returns(r, ends, np.array([0, 3, 4]), 0.5)]
    [[3.0, 4.0, 4.0, 1.0], [0.125, 0.25, 0.5, 0.0]]
    """
    lengths = np.diff(episode_starts)
    order = np.argsort(-lengths, kind="stable")
    lengths, last = lengths[order], episode_starts[1:][order] - 1
    returns, tails = np.zeros(len(rewards)), np.zeros(len(rewards))
    value = np.zeros(len(last))
    tail = np.where(terminations[last], 0.0, 1.0)
    for back in range(int(lengths[0])):
        n = int(np.searchsorted(-lengths, -back, side="left"))  # episodes longer than this
        steps = last[:n] - back
        value[:n] = rewards[steps] + discount * value[:n]
        tail[:n] *= discount
        returns[steps], tails[steps] = value[:n], tail[:n]
    return returns.astype(np.float32), tails.astype(np.float32)


def value_range(
    data: Trajectories, discount: float, top: Literal["auto", "data"] = "auto"
) -> dict[str, float]:
    """What moves and stretches discounted returns into [0, 1]: ``(G - floor) / span``.

    Args:
        data: its episodes in use.
        discount: in (0, 1).
        top: the return that becomes 1. ``auto``: the largest reward r where only terminated steps
            have any, else ``r / (1 - discount)``, and at least 0: no policy can do better.
            ``data``: a tenth of the logged range above the best logged return.

    Returns:
        ``floor``: the worst logged return, at most 0; ``span``: top less floor, 1 where no step has
        a reward; ``mean`` of the scaled returns, cut episodes continued by the floor.
    """
    rewards = rows_in_use(data, data.rewards).astype(np.float64)
    logged, tails = (
        rows_in_use(data, c).astype(np.float64) for c in discounted_columns(data, discount)
    )
    floor, best = min(0.0, float(logged.min())), max(0.0, float(rewards.max()))
    if top == "data":
        most = float(logged.max()) + 0.1 * (float(logged.max()) - floor)
    elif np.all(rows_in_use(data, data.terminations) | (rewards == 0)):
        most = best
    else:
        most = best / (1 - discount)
    span = most - floor if most > floor else 1.0
    mean = float(((logged + tails * floor - floor) / span).mean())
    return {"floor": floor, "span": span, "mean": mean}

"""Statistics of a dataset that travel with every policy trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqrl.spec import DataStats

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_CHUNK = 65_536


def compute_stats(data: Trajectories) -> DataStats:
    """Observation moments, action ranges, reward and return quantiles of the episodes in use.

    Observation moments follow the published protocol: over all transitions of the data before the
    best-episodes filter, standard deviation with ddof 0 plus 1e-6 (Chen et al. 2021, gym code).
    """
    returns = data.returns
    q = np.quantile(returns, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    names = ("min", "p10", "p25", "p50", "p75", "p90", "max")
    kind = data.task.action.kind
    actions, rewards = rows_in_use(data, data.actions), rows_in_use(data, data.rewards)
    rtg = rows_in_use(data, data.rtg)
    mean, std = _moments(data) if data.task.observation.kind == "vector" else ((), ())
    counts: tuple[int, ...] = ()
    if kind == "discrete":
        counts = tuple(np.bincount(actions, minlength=data.task.action.n).tolist())
    return DataStats(
        obs_mean=mean,
        obs_std=std,
        return_scale=suggest_scale(returns),
        return_quantiles={
            **dict(zip(names, q.tolist(), strict=True)),
            "mean": float(returns.mean()),
        },
        reward_min=float(rewards.min()),
        reward_max=float(rewards.max()),
        rtg_min=float(rtg.min()),
        rtg_max=float(rtg.max()),
        action_low=tuple(actions.min(axis=0).tolist()) if kind == "continuous" else (),
        action_high=tuple(actions.max(axis=0).tolist()) if kind == "continuous" else (),
        action_counts=counts,
        episodes=len(data),
        steps=data.num_steps,
        max_episode_length=int(data.lengths.max()),
    )


def suggest_scale(returns: np.ndarray) -> float:
    """The largest absolute return rounded (in the logarithm) to a power of ten, at least 1.

    >>> suggest_scale(np.array([1019.0, 3696.0])), suggest_scale(np.array([0.0, 1.0]))
    (10000.0, 1.0)
    """
    top = float(np.abs(returns).max())
    return float(10.0 ** max(0, round(np.log10(top)))) if top > 0 else 1.0


def rows_in_use(data: Trajectories, column: np.ndarray) -> np.ndarray:
    """The steps in use of a column (the column itself when every episode is)."""
    if data.selection is None:
        return np.asarray(column)
    return np.concatenate(
        [column[a : a + n] for a, n in zip(data.starts, data.lengths, strict=True)]
    )


def _moments(data: Trajectories) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per dimension in two passes of bounded memory."""
    ids = data.stats_selection if data.stats_selection is not None else data.selection
    starts = data.episode_starts
    if ids is None:
        spans = [(i, min(i + _CHUNK, starts[-1])) for i in range(0, int(starts[-1]), _CHUNK)]
    else:
        spans = [(int(starts[e]), int(starts[e + 1])) for e in ids]
    n = sum(b - a for a, b in spans)
    mean = sum(data.observations[a:b].sum(axis=0, dtype=np.float64) for a, b in spans) / n
    var = (
        sum(
            np.square(data.observations[a:b] - mean, dtype=np.float64).sum(axis=0) for a, b in spans
        )
        / n
    )
    return tuple(np.asarray(mean).tolist()), tuple((np.sqrt(var) + 1e-6).tolist())

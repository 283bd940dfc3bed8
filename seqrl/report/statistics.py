"""Averages over seeds and rows, their intervals, and how probable an improvement is.

The definitions are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (``rliable``): interquartile mean over all runs of all tasks, 95 % percentile
bootstrap intervals stratified by task, and the probability of improvement averaged over tasks. One
thing is added: the lengths of a row are answered by the same trained policies, so a seed is
resampled with all of its columns. With one column a row this is the published bootstrap.

A **stratum** is an array ``[seeds, columns]`` of scores: the runs of one entrant on one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seqrl.scores import BOOTSTRAP_DRAWS, bootstrap

Strata = Sequence[np.ndarray]
Statistic = Callable[[np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A number with its 95 % interval and the runs behind it."""

    value: float
    low: float | None
    """None with a single seed: one run says nothing of another one."""
    high: float | None
    seeds: int
    """The fewest of any stratum."""
    over: str
    """What the interval is over."""


def over_seeds(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean over seeds with its bootstrap interval; of two seeds that is their range.

    >>> over_seeds([1.0, 3.0])
    Estimate(value=2.0, low=1.0, high=3.0, seeds=2, over='range of 2 seeds')
    >>> over_seeds([0.5]).low is None
    True
    """
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, 1, "1 seed, no interval")
    low, high = bootstrap(values, seed=seed)
    return Estimate(mean, low, high, n, _over(n))


def _over(n: int, of: str = "") -> str:
    return f"range of 2 seeds{of}" if n == 2 else f"bootstrap over {n} seeds{of}"


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, as ``scipy.stats.trim_mean(values, 0.25)``.

    >>> float(interquartile_mean(np.array([1, 2, 3, 4, 5, 6, 7, 100])))
    4.5
    """
    n = values.shape[-1]
    cut = n // 4
    middle: np.ndarray = np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)
    return middle


def plain_mean(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis."""
    mean: np.ndarray = values.mean(axis=-1)
    return mean


def resample(strata: Strata, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> list[np.ndarray]:
    """Stratified bootstrap: ``[draws, seeds, columns]`` of each stratum, seeds with replacement."""
    rng = np.random.Generator(np.random.Philox(seed))
    return [s[rng.integers(len(s), size=(draws, len(s)))] for s in strata]


def aggregate(strata: Strata, statistic: Statistic = interquartile_mean, seed: int = 0) -> Estimate:
    """A statistic over all runs and columns of all rows, with its stratified interval.

    Args:
        strata: of one entrant, an array ``[seeds, columns]`` a row.
        statistic: of the last axis: ``interquartile_mean`` or ``plain_mean``.
        seed: of the resampling.
    """
    value = float(statistic(np.concatenate([s.ravel() for s in strata])))
    n = min(len(s) for s in strata)
    if n == 1:  # a row of one seed adds no width: the interval would be too narrow
        return Estimate(value, None, None, 1, _single(strata))
    drawn = [d.reshape(len(d), -1) for d in resample(strata, seed)]
    low, high = np.quantile(statistic(np.concatenate(drawn, axis=1)), [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, _stratified(strata))


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``P(X > Y)`` of a column, ties counting half: the Mann-Whitney statistic over pairs.

    Args:
        x: ``[..., n, columns]``, runs of one entrant.
        y: ``[..., m, columns]``, of another.

    Returns:
        ``[..., columns]``.

    >>> improvement(np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]])).tolist()
    [0.875]
    """
    a, b = x[..., :, None, :], y[..., None, :, :]
    # Counted in bytes: the comparison of all pairs of all resamples is the largest array here.
    wins: np.ndarray = ((a > b).astype(np.int8) - (a < b).astype(np.int8)).mean(axis=(-3, -2))
    return 0.5 + 0.5 * wins


def probability_of_improvement(x: Strata, y: Strata, seed: int = 0) -> Estimate:
    """How probable it is that a run of one entrant beats a run of another, over all columns.

    Args:
        x: of one entrant, an array ``[seeds, columns]`` a row; larger is better.
        y: of the other, with the same rows and columns.
        seed: of the resampling; the two are resampled independently.
    """
    value = float(np.concatenate([improvement(a, b) for a, b in zip(x, y, strict=True)]).mean())
    n = min(len(s) for s in (*x, *y))
    if n == 1:
        return Estimate(value, None, None, 1, _single([*x, *y]))
    pairs = zip(resample(x, seed), resample(y, seed + 1), strict=True)
    drawn = np.concatenate([improvement(a, b) for a, b in pairs], axis=-1).mean(axis=-1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, _stratified([*x, *y]))


def _single(strata: Strata) -> str:
    some = max(len(s) for s in strata) > 1
    return "1 seed somewhere, no interval" if some else "1 seed, no interval"


def _stratified(strata: Strata) -> str:
    counts = sorted({len(s) for s in strata})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"bootstrap over {seeds} seeds, by row"


def difference(before: Mapping[int, float], after: Mapping[int, float], seed: int = 0) -> Estimate:
    """Mean difference of two sets of runs, paired by seed where at least two seeds match.

    Args:
        before, after: score by training seed.
        seed: of the resampling.

    >>> difference({0: 1.0, 1: 5.0}, {0: 2.0, 1: 6.0})
    Estimate(value=1.0, low=1.0, high=1.0, seeds=2, over='2 paired seeds')
    """
    both = [s for s in before if s in after]
    if len(both) >= 2:
        steps = [after[s] - before[s] for s in both]
        low, high = bootstrap(steps, seed=seed)
        return Estimate(float(np.mean(steps)), low, high, len(both), f"{len(both)} paired seeds")
    a, b = (np.array(list(v.values())) for v in (before, after))
    value, n = float(b.mean() - a.mean()), min(len(a), len(b))
    if n == 1:
        return Estimate(value, None, None, 1, "1 seed, no interval")
    da, db = (d.mean(axis=1) for d in (resample([a], seed)[0], resample([b], seed + 1)[0]))
    low, high = np.quantile(db - da, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, f"{len(a)} and {len(b)} unpaired seeds")

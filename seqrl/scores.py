"""Scores: normalisation to 0-100 and intervals. Nothing here runs a policy or imports torch.

A normalised score is ``100 * (return - random) / (expert - random)``, on undiscounted episode
returns. Where the two constants come from is always said beside the number.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from seqrl.errors import SeqrlError
from seqrl.spec import TaskSpec

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

BOOTSTRAP_DRAWS = 2000


class Reference(NamedTuple):
    """The two returns that a score is measured against."""

    random: float
    """Maps to 0."""
    expert: float
    """Maps to 100."""
    source: str
    """Where they come from, for reports."""


class Interval(NamedTuple):
    """A 95 % interval and what it was taken over."""

    low: float
    high: float
    kind: str


# --- intervals and averages -------------------------------------------------------------------


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    Args:
        successes: how many of ``n`` trials succeeded.
        n: number of trials, at least 1.
        z: normal quantile; 1.96 gives 95 %.

    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= n or n < 1:
        raise SeqrlError(f"{successes} successes of {n} trials have no interval")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """Interquartile mean: the mean after dropping a quarter of the values at either end.

    The number dropped is rounded down, as in ``scipy.stats.trim_mean(values, 0.25)``.

    >>> iqm([1, 2, 3, 4, 5, 6, 7, 100])
    4.5
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def bootstrap(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
    statistic: Callable[[np.ndarray], float] = _mean,
) -> tuple[float, float]:
    """Seeded 95 % percentile bootstrap interval of a statistic.

    Args:
        values: ``[n]``, at least one.
        seed: of the resampling; the same seed gives the same interval.
        draws: number of resamples.
        statistic: of one resample ``[n]``; the mean by default.

    >>> bootstrap([3.0, 3.0, 3.0])
    (3.0, 3.0)
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0:
        raise SeqrlError("an interval of no values was asked for")
    picks = np.random.Generator(np.random.Philox(seed)).integers(len(x), size=(draws, len(x)))
    if statistic is _mean:
        stats = x[picks].mean(axis=1)
    else:
        stats = np.array([statistic(x[p]) for p in picks])
    low, high = np.quantile(stats, [0.025, 0.975])
    return float(low), float(high)


def interval(
    groups: Sequence[Sequence[float] | np.ndarray],
    *,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] = _mean,
) -> Interval:
    """A 95 % interval that says what it is over: seeds when there are three or more.

    Args:
        groups: the episodes' values of each training seed.
        seed: of the resampling.
        statistic: of the seeds' means, or of all episodes.

    >>> interval([[1.0, 1.0], [1.0], [1.0]]).kind, interval([[1.0, 1.0]]).kind
    ('bootstrap over 3 seeds', 'bootstrap over 2 episodes')
    """
    if len(groups) >= 3:
        values = np.array([np.mean(g) for g in groups])
        kind = f"bootstrap over {len(values)} seeds"
    else:
        values = np.concatenate([np.asarray(g, dtype=np.float64) for g in groups])
        kind = f"bootstrap over {len(values)} episodes"
    return Interval(*bootstrap(values, seed=seed, statistic=statistic), kind)


def summary(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean, standard deviation (ddof 0), median, IQM, range and interval of episode values."""
    x = np.asarray(values, dtype=np.float64)
    low, high, kind = interval([x], seed=seed)
    return {
        "mean": float(x.mean()),
        "std": float(x.std()),
        "median": float(np.median(x)),
        "iqm": iqm(x),
        "min": float(x.min()),
        "max": float(x.max()),
        "ci": [low, high],
        "ci_kind": kind,
    }


# --- normalisation ----------------------------------------------------------------------------


def normalized(value: float, random: float, expert: float) -> float | None:
    """Score on the 0-100 scale; None when the two references are equal.

    >>> normalized(1607.0138475, -20.272305, 3234.3)
    50.0
    """
    if expert == random:
        return None
    return 100.0 * (value - random) / (expert - random)


def denormalized(score: float, random: float, expert: float) -> float:
    """The return that has a given normalised score."""
    return random + (expert - random) * score / 100.0


def reference_scores(task: TaskSpec) -> Reference | None:
    """The returns that map to 0 and 100 for a task, or None when nobody knows them.

    Tried in order: the dataset's own scores, the shipped table by dataset name, the same by
    environment name, and what the environment class says of itself.
    """
    if task.reference_scores is not None:
        source = task.reference_source or f"stored with dataset {task.name}"
        return Reference(*task.reference_scores, source)
    for name in (task.name, task.env_id):
        if name is not None and (found := _from_table(name)) is not None:
            return found
    return None if task.env_id is None else _from_environment(task.env_id, task.env_kwargs)


@functools.cache
def reference_table() -> tuple[dict[str, str], ...]:
    """Rows of the shipped table: ``dataset``, ``env``, ``min``, ``max`` and ``source``."""
    file = resources.files("seqrl").joinpath("reference_scores.csv")
    if not file.is_file():
        return ()
    with file.open(encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


def _from_table(name: str) -> Reference | None:
    """The row of a dataset, or the one pair of scores that all rows of an environment share."""
    base = name.rpartition(":")[2].replace("_", "-").lower()
    rows = [r for r in reference_table() if r["dataset"].lower() == base]
    if not rows:
        env = re.sub(r"-v\d+$", "", base)
        rows = [r for r in reference_table() if r["env"].lower() == env]
    pairs = {(float(r["min"]), float(r["max"])) for r in rows}
    if len(pairs) != 1:
        # Several versions of an environment with different constants: no way to tell which.
        return None
    random, expert = pairs.pop()
    label = rows[0]["dataset"] if len(rows) == 1 else rows[0]["env"]
    return Reference(random, expert, f"{rows[0].get('source') or 'd4rl'} {label}")


def _from_environment(env_id: str, kwargs: Mapping[str, Any]) -> Reference | None:
    """What the environment's class computes of its own random and oracle returns."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    import seqrl.envs  # noqa: F401  (registers the environments of seqrl)

    try:
        spec = gymnasium.spec(env_id)
        entry = spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        offer = getattr(creator, "reference_scores", None)
        if offer is None:
            return None
        given = {k: v for k, v in {**spec.kwargs, **kwargs}.items() if k != "max_episode_steps"}
        scores = offer(**given)
        return Reference(float(scores["random"]), float(scores["oracle"]), f"{env_id} itself")
    except Exception:
        # A score is an extra: what cannot be found out stays unknown and the run goes on.
        return None

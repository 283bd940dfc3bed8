"""Bandits as data: their settings, their tasks, and what random and best play are worth.

Sources: see :mod:`seqrl.envs.bandit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl.envs.checks import check_array, check_bool, check_choice, check_int, check_number
from seqrl.errors import SeqrlError

__all__ = ["BanditSettings", "LinearBanditSettings", "Tasks", "arm_features", "linear_means"]

Floats = NDArray[np.float64]

_TASKS = 5077
"""Key of the stream that evaluation tasks are drawn from."""
_FEATURE_SEED = 1234
_DRAWN_TASKS = 1 << 16


@dataclass(frozen=True)
class Tasks:
    """``n`` bandits drawn together: everything that stays the same during an episode."""

    means: Floats
    """Expected reward of each arm, ``[n, K]``."""
    features: Floats | None = None
    """Of each arm, ``[n, K, d]``; None for bandits without."""
    theta: Floats | None = None
    """``[n, d]``."""


def _keep(settings: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def _task_stream(i: int) -> np.random.Generator:
    """The generator of evaluation task ``i``."""
    return np.random.default_rng((_TASKS, check_int("i", i, 0)))


@dataclass(frozen=True)
class BanditSettings:
    """Checked settings of a ``BanditEnv``."""

    n_arms: int | None = None
    """Number of arms K; default 5, or the number of ``means``."""
    sigma: float = 0.3
    """Standard deviation of a Gaussian reward."""
    horizon: int = 500
    """Pulls of an episode."""
    kind: str = "gaussian"
    """``"gaussian"`` or ``"bernoulli"``."""
    means: Any = None
    """Expected rewards ``[K]`` of every episode; None: drawn uniformly from [0, 1]."""
    resample: bool = True
    """Whether means are drawn anew at every reset; otherwise at the first one only."""
    noise_free: bool = False
    """Whether rewards are the means themselves."""

    def __post_init__(self) -> None:
        given = None if self.means is None else check_array("means", self.means, None)
        count = self.n_arms if self.n_arms is not None else 5 if given is None else given.size
        _keep(
            self,
            n_arms=check_int("n_arms", count, 2),
            sigma=check_number("sigma", self.sigma, 0, 1e6),
            horizon=check_int("horizon", self.horizon, 1),
            kind=check_choice("kind", self.kind, ("gaussian", "bernoulli")),
            resample=check_bool("resample", self.resample),
            noise_free=check_bool("noise_free", self.noise_free),
        )
        if given is not None:
            _keep(self, means=tuple(self._means(given, 1)[0].tolist()))

    def _means(self, value: Any, n: int) -> Floats:
        means = check_array("means", value, (n, self.arms_count))
        if self.kind == "bernoulli" and not ((means >= 0) & (means <= 1)).all():
            raise SeqrlError("means outside [0, 1]", "a Bernoulli mean is a probability")
        return means

    @property
    def arms_count(self) -> int:
        """Number of arms K."""
        return self.n_arms or 5

    def option_names(self) -> tuple[str, ...]:
        """Options of ``reset``."""
        return ("means",)

    def draw(self, rng: np.random.Generator, n: int, options: Any = None) -> Tasks:
        """Draw ``n`` tasks; options fix them and leave what is drawn afterwards as it was."""
        means = rng.random((n, self.arms_count))
        if self.means is not None:
            means = np.broadcast_to(np.array(self.means), means.shape).copy()
        if options and "means" in options:
            means = self._means(options["means"], n)
        return Tasks(means)

    def evaluation_task(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation task ``i``; without ``resample`` there is one task only."""
        task = self.draw(_task_stream(i if self.resample else 0), 1)
        return {"means": task.means[0].tolist()}

    def observation_space(self) -> spaces.Box:
        """Return the space of the constant observation 1."""
        return spaces.Box(0, 1, (1,), np.float32)

    def observations(self, tasks: Tasks) -> NDArray[np.float32]:
        """New observations ``[n, 1]``: all ones."""
        return np.ones((len(tasks.means), 1), np.float32)

    def rewards(self, rng: np.random.Generator, means: Any) -> Any:
        """Draw rewards of the arms pulled; ``means`` a number or ``[n]``."""
        size = np.shape(means) or None
        if self.noise_free:
            return means
        if self.kind == "bernoulli":
            return (rng.random(size) < means) * 1.0
        return means + self.sigma * rng.standard_normal(size)


@dataclass(frozen=True)
class LinearBanditSettings:
    """Checked settings of a ``LinearBanditEnv``."""

    resample: ClassVar[bool] = True
    n_arms: int = 10
    """Number of arms K."""
    dim: int = 2
    """Features of an arm, d."""
    sigma: float = 0.3
    """Standard deviation of a reward."""
    horizon: int = 200
    """Pulls of an episode."""
    arms: str = "fixed"
    """``"fixed"``: the same features in all tasks; ``"per_env"``: drawn uniformly from [-1, 1]."""
    theta: str = "normal"
    """``"normal"``: N(0, I / dim); ``"uniform01"``: uniform on [0, 1]."""
    observe_arms: bool = False
    """Whether the observation is the features of all arms rather than 1."""
    noise_free: bool = False
    """Whether rewards are the means themselves."""

    def __post_init__(self) -> None:
        _keep(
            self,
            n_arms=check_int("n_arms", self.n_arms, 2),
            dim=check_int("dim", self.dim, 1),
            sigma=check_number("sigma", self.sigma, 0, 1e6),
            horizon=check_int("horizon", self.horizon, 1),
            arms=check_choice("arms", self.arms, ("fixed", "per_env")),
            theta=check_choice("theta", self.theta, ("normal", "uniform01")),
            observe_arms=check_bool("observe_arms", self.observe_arms),
            noise_free=check_bool("noise_free", self.noise_free),
        )

    @property
    def arms_count(self) -> int:
        """Number of arms K."""
        return self.n_arms

    def option_names(self) -> tuple[str, ...]:
        """Options of ``reset``."""
        return ("theta",) if self.arms == "fixed" else ("theta", "arms")

    def draw(self, rng: np.random.Generator, n: int, options: Any = None) -> Tasks:
        """Draw ``n`` tasks; options fix them and leave what is drawn afterwards as it was."""
        if self.theta == "normal":
            theta = rng.standard_normal((n, self.dim)) / np.sqrt(self.dim)
        else:
            theta = rng.random((n, self.dim))
        shape = (n, self.n_arms, self.dim)
        if self.arms == "per_env":
            features = rng.uniform(-1, 1, shape)
        else:
            features = np.broadcast_to(arm_features(self.n_arms, self.dim), shape)
        if options and "theta" in options:
            theta = check_array("theta", options["theta"], (n, self.dim))
        if options and "arms" in options:
            features = check_array("arms", options["arms"], shape)
            if np.abs(features).max() > 1:
                raise SeqrlError("arms outside [-1, 1]", "features are observed within [-1, 1]")
        means = (features * theta[:, None]).sum(axis=2)
        return Tasks(means, features, theta)

    def evaluation_task(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation task ``i``."""
        task = self.draw(_task_stream(i), 1)
        values = {"theta": task.theta, "arms": task.features}
        return {k: values[k][0].tolist() for k in self.option_names()}  # type: ignore[index]

    def observation_space(self) -> spaces.Box:
        """Return the space of the constant 1, or of the features of all arms in order."""
        if not self.observe_arms:
            return spaces.Box(0, 1, (1,), np.float32)
        features = arm_features(self.n_arms, self.dim)
        limit = 1.0 if self.arms == "per_env" else float(np.ceil(np.abs(features).max()))
        return spaces.Box(-limit, limit, (self.n_arms * self.dim,), np.float32)

    def observations(self, tasks: Tasks) -> NDArray[np.float32]:
        """New observations ``[n, 1]`` or ``[n, K * d]``."""
        n = len(tasks.means)
        if self.observe_arms and tasks.features is not None:
            return tasks.features.reshape(n, -1).astype(np.float32)
        return np.ones((n, 1), np.float32)

    def rewards(self, rng: np.random.Generator, means: Any) -> Any:
        """Draw rewards of the arms pulled; ``means`` a number or ``[n]``."""
        if self.noise_free:
            return means
        return means + self.sigma * rng.standard_normal(np.shape(means) or None)


@lru_cache(maxsize=16)
def arm_features(n_arms: int, dim: int) -> Floats:
    """The published features of the fixed arms, ``[n_arms, dim]``; read-only.

    >>> arm_features(10, 2)[0].round(3).tolist()
    [0.333, -0.842]
    """
    # The legacy generator, because the published arms were drawn by it.
    drawn = np.random.RandomState(_FEATURE_SEED).normal(size=(n_arms, dim)) / np.sqrt(dim)
    drawn.flags.writeable = False
    return drawn


@lru_cache(maxsize=16)
def linear_means(settings: LinearBanditSettings) -> tuple[float, float]:
    """Expected mean of a random arm and of the best one."""
    # A normal theta, and arms drawn around 0, make all means symmetric around 0.
    symmetric = settings.theta == "normal" or settings.arms == "per_env"
    fixed = arm_features(settings.n_arms, settings.dim)
    random = 0.0 if symmetric else float(fixed.mean(axis=0).sum() / 2)
    if settings.dim == 2 and settings.theta == "normal" and settings.arms == "fixed":
        # Cauchy: over all directions the maximum of x . u averages perimeter / (2 pi), where the
        # perimeter is that of the convex hull; the length of theta averages sqrt(pi) / 2.
        return random, float(_hull_perimeter(fixed) / (2 * np.pi) * np.sqrt(np.pi) / 2)
    task = settings.draw(np.random.default_rng(_TASKS), _DRAWN_TASKS)
    return random, float(task.means.max(axis=1).mean())


def _hull_perimeter(points: Floats) -> float:
    """Perimeter of the convex hull of points ``[n, 2]``: gift wrapping."""
    at = first = int(points[:, 0].argmin())
    total = 0.0
    while True:
        ahead = points - points[at]
        following = (at + 1) % len(points)
        for k in range(len(points)):
            (ax, ay), (bx, by) = ahead[following], ahead[k]
            if ax * by - ay * bx < 0:
                following = k
        total += float(np.hypot(*ahead[following]))
        at = following
        if at == first:
            return total

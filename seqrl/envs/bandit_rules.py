"""Classical rules for bandits, for thousands of tasks at once in plain numpy.

A rule is a frozen dataclass: ``memory(n, arms)`` makes what it remembers of ``n`` tasks,
``choose(memory, draws)`` picks arms ``[n]``, ``memory.update(...)`` notes what came of them.
:mod:`seqrl.references.bandit` runs the same rules in the rollout engine; :func:`play` runs them
against a vectorised environment.

Source: Lee et al., arXiv 2306.14892, ``ctrls/ctrl_bandit.py`` of
jon--lee/decision-pretrained-transformer; for the Bernoulli and linear variants Lin, Bai, Mei, arXiv
2310.08566. Shapes: ``n`` tasks, ``K`` arms, ``d`` features, ``T`` pulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from seqrl.envs.bandit import VectorBandit, VectorLinearBandit
from seqrl.errors import SeqrlError

__all__ = [
    "ArmMemory",
    "BetaThompson",
    "Empirical",
    "Lcb",
    "LinUcb",
    "LinearMemory",
    "LinearThompson",
    "Play",
    "Thompson",
    "Ucb",
    "behaviour_probabilities",
    "gaussian_posterior",
    "play",
    "sample_arms",
]

Floats = NDArray[np.float64]
Arms = NDArray[np.int64]


class Draws(Protocol):
    """Where randomness comes from: a numpy generator, or streams of the rows of an engine."""

    def standard_normal(self, size: tuple[int, ...]) -> Floats: ...
    def random(self, size: tuple[int, ...]) -> Floats: ...
    def beta(self, a: Floats, b: Floats) -> Floats: ...


# --- memory ---------------------------------------------------------------------------------------


@dataclass
class ArmMemory:
    """How often each arm was pulled and what that paid in all."""

    counts: Floats
    """``[n, K]``."""
    sums: Floats
    """``[n, K]``."""

    def update(self, rows: NDArray[Any], actions: Arms, rewards: NDArray[Any]) -> None:
        """Note pulls ``actions [n]`` and ``rewards [n]`` of the rows set in ``rows [n]`` bool."""
        at = np.flatnonzero(rows)
        self.counts[at, actions[at]] += 1
        self.sums[at, actions[at]] += rewards[at]

    def forget(self, rows: NDArray[Any]) -> None:
        """Make the rows set in ``rows [n]`` bool fresh."""
        self.counts[rows] = self.sums[rows] = 0

    @property
    def means(self) -> Floats:
        """Empirical means ``[n, K]``, 0 for arms never pulled."""
        means: Floats = self.sums / np.maximum(self.counts, 1)
        return means


@dataclass
class LinearMemory:
    """Sums of features for a regression of rewards."""

    gram: Floats
    """Sum of x x', ``[n, d, d]``."""
    moment: Floats
    """Sum of x r, ``[n, d]``."""
    pulls: Arms
    """``[n]``."""
    features: Floats
    """Of all arms, ``[n, K, d]``; set by whoever knows them."""

    def update(self, rows: NDArray[Any], actions: Arms, rewards: NDArray[Any]) -> None:
        """Note pulls ``actions [n]`` and ``rewards [n]`` of the rows set in ``rows [n]`` bool."""
        at = np.flatnonzero(rows)
        x = self.features[at, actions[at]]  # (m, d)
        self.gram[at] += x[:, :, None] * x[:, None]
        self.moment[at] += x * rewards[at, None]
        self.pulls[at] += 1

    def forget(self, rows: NDArray[Any]) -> None:
        """Make the rows set in ``rows [n]`` bool fresh; their features stay."""
        self.gram[rows], self.moment[rows], self.pulls[rows] = 0, 0, 0


Memory = ArmMemory | LinearMemory


# --- independent arms -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _ArmRule:
    """What the rules for independent arms share."""

    def memory(self, n: int, arms: int) -> ArmMemory:
        """Fresh memory of ``n`` tasks."""
        return ArmMemory(np.zeros((n, arms)), np.zeros((n, arms)))

    def scores(self, memory: ArmMemory, draws: Draws | None) -> Floats:
        """What the rule thinks of each arm, ``[n, K]``."""
        raise NotImplementedError

    def choose(self, memory: ArmMemory, draws: Draws | None) -> Arms:
        """The arms of the highest scores, ``[n]``; of equal ones the first."""
        chosen: Arms = self.scores(memory, draws).argmax(axis=1)
        return chosen


@dataclass(frozen=True)
class Empirical(_ArmRule):
    """Greedy on empirical means, after one pull of each arm."""

    def scores(self, memory: ArmMemory, draws: Draws | None = None) -> Floats:
        """Empirical means, infinite for arms never pulled."""
        return np.where(memory.counts > 0, memory.means, np.inf)


@dataclass(frozen=True)
class Ucb(_ArmRule):
    """Upper confidence bound: ``mean + c / sqrt(n)``, arms never pulled first.

    With ``pseudo`` pulls of reward 0 added to each arm, ``s / (p + n) + c / sqrt(p + n)``: with 1
    the rule of the theory code for Bernoulli arms.
    """

    c: float = 1.0
    """Width of the bound."""
    pseudo: float = 0.0
    """Pulls of reward 0 that every arm starts with."""

    def scores(self, memory: ArmMemory, draws: Draws | None = None) -> Floats:
        """Upper bounds, infinite for arms never pulled."""
        n = memory.counts + self.pseudo
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = memory.sums / n + self.c / np.sqrt(n)
        return np.where(n > 0, bound, np.inf)


@dataclass(frozen=True)
class Lcb(_ArmRule):
    """Lower confidence bound ``mean - c / max(1, sqrt(n))``: cautious with given data.

    It does not explore; online it stays with the first arm that pays. The mean of an arm never
    pulled counts as 0.
    """

    c: float = 0.8
    """Width of the bound."""

    def scores(self, memory: ArmMemory, draws: Draws | None = None) -> Floats:
        """Lower bounds."""
        bound: Floats = memory.means - self.c / np.maximum(np.sqrt(memory.counts), 1)
        return bound


@dataclass(frozen=True)
class Thompson(_ArmRule):
    """Thompson sampling with a normal prior on each mean and known noise."""

    sigma: float = 0.3
    """Standard deviation of rewards, above 0."""
    prior_mean: float = 0.5
    """Of each arm's mean."""
    prior_var: float = 1 / 12
    """Of each arm's mean; 1/12 is that of a uniform number."""

    def __post_init__(self) -> None:
        if not self.sigma > 0 or not self.prior_var > 0:
            raise SeqrlError(
                f"Thompson sampling with sigma={self.sigma}, prior_var={self.prior_var}",
                hint="both must be above 0",
            )

    def scores(self, memory: ArmMemory, draws: Draws | None) -> Floats:
        """One draw of each arm's mean from its posterior."""
        prior = self.sigma, self.prior_mean, self.prior_var
        mean, var = gaussian_posterior(memory.counts, memory.sums, *prior)
        return mean + np.sqrt(var) * _needed(draws).standard_normal(mean.shape)


@dataclass(frozen=True)
class BetaThompson(_ArmRule):
    """Thompson sampling for rewards 0 and 1 with a Beta prior on each mean."""

    a: float = 1.0
    """Prior successes."""
    b: float = 1.0
    """Prior failures."""

    def scores(self, memory: ArmMemory, draws: Draws | None) -> Floats:
        """One draw of each arm's mean from its posterior."""
        wins = memory.sums
        return _needed(draws).beta(self.a + wins, self.b + memory.counts - wins)


def gaussian_posterior(
    counts: Floats,
    sums: Floats,
    sigma: float = 0.3,
    prior_mean: float = 0.5,
    prior_var: float = 1 / 12,
) -> tuple[Floats, Floats]:
    """Posterior mean and variance of each arm's mean under known noise.

    Args:
        counts: pulls ``[..., K]``.
        sums: what they paid in all, ``[..., K]``.
        sigma: standard deviation of rewards.
        prior_mean: of the normal prior.
        prior_var: of the normal prior.
    """
    precision = 1 / prior_var + counts / sigma**2
    mean: Floats = (prior_mean / prior_var + sums / sigma**2) / precision
    variance: Floats = 1 / precision
    return mean, variance


# --- linear arms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LinearRule:
    """What the rules for linear arms share: a ridge regression of the rewards."""

    ridge: float = 1.0
    """Weight of the penalty on theta, above 0."""

    def memory(self, n: int, arms: int) -> LinearMemory:
        """Fresh memory of ``n`` tasks; its features ``[n, K, d]`` are to be set."""
        return LinearMemory(
            np.zeros((n, 0, 0)), np.zeros((n, 0)), np.zeros(n, np.int64), np.zeros((n, arms, 0))
        )

    def estimate(self, memory: LinearMemory) -> tuple[Floats, Floats]:
        """Estimates of theta ``[n, d]`` and the inverse ``[n, d, d]`` of what was seen."""
        seen = memory.gram + self.ridge * np.eye(memory.gram.shape[-1])
        inverse: Floats = np.asarray(np.linalg.inv(seen), np.float64)
        theta: Floats = (inverse @ memory.moment[..., None])[..., 0]
        return theta, inverse


@dataclass(frozen=True)
class LinUcb(_LinearRule):
    """LinUCB: ``x' theta + c sqrt(x' V^-1 x)``, the first arm of a task drawn at random."""

    c: float = 1.0
    """Width of the bound; 0 is greedy."""

    def choose(self, memory: LinearMemory, draws: Draws | None) -> Arms:
        """The arms of the highest upper bounds, ``[n]``."""
        theta, inverse = self.estimate(memory)
        x = memory.features
        widths = np.einsum("nkd,nde,nke->nk", x, inverse, x)
        bounds = (x @ theta[..., None])[..., 0] + self.c * np.sqrt(np.maximum(widths, 0))
        first = (_needed(draws).random((len(bounds), 1))[:, 0] * bounds.shape[1]).astype(np.int64)
        return np.where(memory.pulls == 0, first, bounds.argmax(axis=1))


@dataclass(frozen=True)
class LinearThompson(_LinearRule):
    """Thompson sampling of theta from N(0, prior_var I) and known noise.

    ``ridge`` must be ``sigma**2 / prior_var``; :meth:`of` makes it so.
    """

    sigma: float = 0.3
    """Standard deviation of rewards."""

    @classmethod
    def of(cls, sigma: float, prior_var: float) -> LinearThompson:
        """The rule of a prior variance of each entry of theta.

        Raises:
            SeqrlError: one of the two is not above 0.
        """
        if not sigma > 0 or not prior_var > 0:
            raise SeqrlError(
                f"Thompson sampling with sigma={sigma}, prior_var={prior_var}",
                hint="both must be above 0",
            )
        return cls(ridge=sigma**2 / prior_var, sigma=sigma)

    def choose(self, memory: LinearMemory, draws: Draws | None) -> Arms:
        """The best arms ``[n]`` of one theta drawn from each posterior."""
        theta, inverse = self.estimate(memory)
        noise = _needed(draws).standard_normal(theta.shape)
        root = np.linalg.cholesky(inverse)
        drawn = theta + self.sigma * (root @ noise[..., None])[..., 0]
        chosen: Arms = (memory.features @ drawn[..., None])[..., 0].argmax(axis=1)
        return chosen


Rule = Any
"""Any of the rules above."""


def _needed(draws: Draws | None) -> Draws:
    if draws is None:
        raise SeqrlError("this rule draws at random", hint="pass it a generator")
    return draws


def with_features(memory: Memory, features: Floats) -> None:
    """Tell a linear memory the arms ``[n, K, d]`` it is about; others need none."""
    if isinstance(memory, LinearMemory):
        n, _, d = features.shape
        memory.features = features
        if memory.gram.shape[-1] != d:
            memory.gram, memory.moment = np.zeros((n, d, d)), np.zeros((n, d))


# --- playing --------------------------------------------------------------------------------------


class Play(NamedTuple):
    """One episode in every row of a vectorised bandit."""

    actions: Arms
    """``[n, T]``."""
    rewards: Floats
    """``[n, T]``."""
    regrets: Floats
    """``[n, T]``: best mean less that of the arm pulled."""


def play(
    rule: Rule,
    env: VectorBandit | VectorLinearBandit,
    *,
    seed: int,
    options: dict[str, Any] | None = None,
) -> Play:
    """Run a rule for one episode in every row.

    Args:
        rule: one of the rules above.
        env: the bandits.
        seed: of tasks, rewards and the rule.
        options: of the reset, such as ``env.episode_options()``.

    Example:
        >>> done = play(Ucb(), VectorBandit(1000, horizon=100), seed=0)
        >>> 5.5 < float(done.regrets.sum(axis=1).mean()) < 8
        True
    """
    env.reset(seed=seed, options=options)
    draws = np.random.default_rng((seed, 1))
    n, horizon = env.num_envs, env.max_episode_steps
    memory = rule.memory(n, int(env.settings.arms_count))
    if env.tasks is not None and env.tasks.features is not None:
        with_features(memory, env.tasks.features)
    out = Play(np.zeros((n, horizon), np.int64), np.zeros((n, horizon)), np.zeros((n, horizon)))
    everyone = np.ones(n, np.bool_)
    for t in range(horizon):
        actions = rule.choose(memory, draws)
        _, rewards, _, _, infos = env.step(actions)
        memory.update(everyone, actions, rewards)
        out.actions[:, t], out.rewards[:, t], out.regrets[:, t] = actions, rewards, infos["regret"]
    return out


def behaviour_probabilities(rng: np.random.Generator, n: int, arms: int) -> Floats:
    """Fixed arm probabilities of DPT's recorded bandit data, ``[n, arms]``.

    A draw of a flat Dirichlet mixed with one random arm; the arm's share is one of 0, 0.1 .. 1.
    """
    share = rng.integers(11, size=(n, 1)) / 10
    favourite = np.eye(arms)[rng.integers(arms, size=n)]
    mixed: Floats = (1 - share) * rng.dirichlet(np.ones(arms), size=n) + share * favourite
    return mixed


def sample_arms(rng: np.random.Generator, probabilities: Floats, pulls: int) -> Arms:
    """Independent arms ``[n, pulls]`` with probabilities ``[n, K]`` in each row."""
    edges = probabilities.cumsum(axis=1)
    # Rounding may leave the last edge below 1; nothing lies above it.
    edges[:, -1] = 1.0
    u = rng.random((len(edges), pulls))
    chosen: Arms = (u[:, :, None] >= edges[:, None, :-1]).sum(axis=2)
    return chosen

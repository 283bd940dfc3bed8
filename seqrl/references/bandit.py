"""Classical bandit policies for the rollout engine, and their verdicts on recorded pulls.

The rules themselves are in :mod:`seqrl.envs.bandit_rules`. What is known of the task (noise, kind
of rewards, features of the arms) is read from its environment's settings unless given. Statistics
last for a trial: with several episodes a trial they go on from one to the next.

Shapes: ``n`` rows or tasks, ``K`` arms, ``d`` features, ``T`` recorded pulls, ``P`` prefixes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrl.draws import RowDraws
from seqrl.envs import bandit_rules as rules
from seqrl.envs.bandit_tasks import BanditSettings, LinearBanditSettings, arm_features
from seqrl.envs.checks import settings_from
from seqrl.errors import SeqrlError
from seqrl.references.policy import ReferencePolicy
from seqrl.spec import Step, TaskSpec

Floats = NDArray[np.float64]
Arms = NDArray[np.int64]
Known = BanditSettings | LinearBanditSettings

_SETTINGS: dict[str, type[Any]] = {
    "seqrl/Bandit-v0": BanditSettings,
    "seqrl/LinearBandit-v0": LinearBanditSettings,
}


class RowGenerators:
    """The draws that rules want, from the streams of the rows: no row depends on its neighbours."""

    def __init__(self, draws: RowDraws):
        # Four numbers of 24 bits key a generator of each row's own for this step.
        words = (draws.uniform(4).double().numpy() * 2**24).astype(np.uint64)
        keys = (words[:, 0::2] << np.uint64(24)) | words[:, 1::2]
        self._rows = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def standard_normal(self, size: tuple[int, ...]) -> Floats:
        """Standard normal numbers ``[n, ...]``."""
        return np.stack([g.standard_normal(size[1:]) for g in self._rows])

    def random(self, size: tuple[int, ...]) -> Floats:
        """Uniform numbers ``[n, ...]`` in [0, 1)."""
        return np.stack([g.random(size[1:]) for g in self._rows])

    def beta(self, a: Floats, b: Floats) -> Floats:
        """Beta numbers of parameters ``[n, K]``."""
        return np.stack([g.beta(x, y) for g, x, y in zip(self._rows, a, b, strict=True)])


class BanditPolicy(ReferencePolicy):
    """A rule run by the engine; its acting state is the rule's memory, arrays with ``n`` rows.

    Args:
        task: a task with one discrete action.
        **settings: fields of the rule, in place of what the task's environment says.

    Raises:
        SeqrlError: another kind of action, or a setting out of its range.
    """

    memory = "trial"
    trial_episodes: ClassVar[int] = 1
    random: ClassVar[bool] = False
    """Whether the rule draws at random."""
    linear: ClassVar[bool] = False
    """Whether the rule needs the features of the arms."""

    def __init__(self, task: TaskSpec, **settings: Any):
        super().__init__(task)
        if task.action.kind != "discrete":
            raise SeqrlError(f"{self.name} pulls arms, the task has {task.action.describe()}")
        self.arms = task.action.n
        known = _known(task)
        self.rule = self.make_rule(known, settings)
        self._features = _features(task, known) if self.linear else None
        self._observed = isinstance(known, LinearBanditSettings) and known.observe_arms

    @abstractmethod
    def make_rule(self, known: Known | None, given: dict[str, Any]) -> rules.Rule:
        """The rule for what is known of the task and the settings given."""

    def initial_state(self, n: int) -> rules.Memory:
        """Fresh memory of ``n`` rows."""
        memory: rules.Memory = self.rule.memory(n, self.arms)
        if self._features is not None:
            shape = (n, *self._features.shape)
            rules.with_features(memory, np.broadcast_to(self._features, shape).copy())
        return memory

    def reset(self, state: rules.Memory, rows: Tensor) -> rules.Memory:
        """The memory with the rows set in ``rows [n]`` bool made fresh."""
        state.forget(rows.cpu().numpy())
        return state

    def act(
        self, state: rules.Memory, step: Step, generator: RowDraws | None = None
    ) -> tuple[Tensor, rules.Memory]:
        """Note the last pull of every row that had one, and choose arms ``[n]``."""
        going_on = ~step.trial_first.cpu().numpy()
        actions = step.prev_action.cpu().numpy()
        state.update(going_on, actions, step.prev_reward.cpu().numpy().astype(np.float64))
        if self._observed and isinstance(state, rules.LinearMemory):
            seen = step.observation.cpu().numpy().astype(np.float64)
            rules.with_features(state, seen.reshape(len(seen), self.arms, -1))
        if self.random and generator is None:
            raise SeqrlError(f"{self.name} needs a generator", hint="pass one to act()")
        draws = RowGenerators(generator) if self.random and generator is not None else None
        return torch.from_numpy(self.rule.choose(state, draws)), state


class _FieldPolicy(BanditPolicy):
    """A policy whose settings are the fields of its rule."""

    rule_class: ClassVar[type[Any]]

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls.rule_class))

    def make_rule(self, known: Known | None, given: dict[str, Any]) -> rules.Rule:
        return self.rule_class(**given)


class EmpiricalPolicy(_FieldPolicy):
    """Greedy on empirical means."""

    name = "emp"
    rule_class = rules.Empirical


class UcbPolicy(_FieldPolicy):
    """Upper confidence bound, ``ucb?c=1&pseudo=0``."""

    name = "ucb"
    rule_class = rules.Ucb


class LcbPolicy(_FieldPolicy):
    """Lower confidence bound, ``lcb?c=0.8``."""

    name = "lcb"
    rule_class = rules.Lcb


class LinUcbPolicy(_FieldPolicy):
    """LinUCB with known arms, ``linucb?c=1&ridge=1``."""

    name = "linucb"
    rule_class = rules.LinUcb
    random = True
    linear = True


class ThompsonPolicy(BanditPolicy):
    """Thompson sampling for independent arms: Beta for Bernoulli rewards, else normal.

    ``thompson?sigma=0.3&prior_mean=0.5&prior_var=0.0833`` (normal), ``thompson?a=1&b=1`` (Beta).
    The noise of the environment is the default ``sigma``; in a linear bandit the prior is N(0, 1).
    """

    name = "thompson"
    random = True

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        return ("sigma", "prior_mean", "prior_var", "a", "b")

    def make_rule(self, known: Known | None, given: dict[str, Any]) -> rules.Rule:
        own = dict(given)
        bernoulli = isinstance(known, BanditSettings) and known.kind == "bernoulli"
        if ("a" in own or "b" in own) if own else bernoulli:
            rest = set(own) - {"a", "b"}
            if rest:
                raise SeqrlError(f"{self.name} with a Beta prior has no {', '.join(sorted(rest))}")
            return rules.BetaThompson(**own)
        if isinstance(known, LinearBanditSettings):
            own = {"prior_mean": 0.0, "prior_var": 1.0, **own}
        if known is not None:
            own = {"sigma": known.sigma, **own}
        return rules.Thompson(**own)


class LinearThompsonPolicy(BanditPolicy):
    """Thompson sampling of theta with known arms, ``lin_thompson?sigma=0.3&prior_var=0.5``."""

    name = "lin_thompson"
    random = True
    linear = True

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        return ("sigma", "prior_var")

    def make_rule(self, known: Known | None, given: dict[str, Any]) -> rules.Rule:
        sigma, prior = 0.3, 1.0
        if isinstance(known, LinearBanditSettings):
            sigma = known.sigma
            prior = 1 / known.dim if known.theta == "normal" else 1.0
        return rules.LinearThompson.of(
            float(given.get("sigma", sigma)), float(given.get("prior_var", prior))
        )


def _known(task: TaskSpec) -> Known | None:
    """The settings of the task's environment, if it is one of our bandits."""
    cls = _SETTINGS.get((task.env_id or "").rpartition(":")[2])
    return None if cls is None else settings_from(cls, task.env_kwargs)


def _features(task: TaskSpec, known: Known | None) -> Floats | None:
    """Features of arms that are the same in all tasks ``[K, d]``; None where they are observed."""
    if not isinstance(known, LinearBanditSettings):
        raise SeqrlError(
            f"'{task.env_id or task.name}' is no linear bandit",
            hint="the features of its arms are not known: use ucb or thompson",
        )
    if known.observe_arms:
        return None
    if known.arms == "per_env":
        raise SeqrlError("the arms of this bandit are hidden", hint="observe_arms=true shows them")
    return arm_features(known.n_arms, known.dim)


# --- what the rules make of recorded pulls --------------------------------------------------------


def prefix_statistics(
    actions: Arms, rewards: NDArray[Any], arms: int, lengths: Sequence[int]
) -> tuple[Floats, Floats]:
    """How often each arm was pulled in prefixes of recorded pulls, and what it paid in all.

    Args:
        actions: ``[n, T]``.
        rewards: ``[n, T]``.
        arms: K.
        lengths: of the prefixes, ``[P]``, each from 0 to T.

    Returns:
        Counts and sums, both ``[n, P, K]``.

    Raises:
        SeqrlError: a length out of its range.
    """
    if any(not 0 <= length <= actions.shape[1] for length in lengths):
        raise SeqrlError(
            f"prefixes of {list(lengths)} pulls", hint=f"{actions.shape[1]} pulls were recorded"
        )
    counts = np.zeros((len(actions), len(lengths), arms))
    sums = np.zeros_like(counts)
    for k in range(arms):
        pulled = actions == k
        for total, values in ((counts, pulled), (sums, pulled * rewards)):
            up_to = np.concatenate([np.zeros((len(actions), 1)), values.cumsum(axis=1)], axis=1)
            total[:, :, k] = up_to[:, list(lengths)]
    return counts, sums


def offline_mean(counts: Floats, sums: Floats) -> Arms:
    """Arms ``[...]`` of the highest empirical means; an arm never pulled counts as 0."""
    return _best(sums / np.maximum(counts, 1))


def offline_lcb(counts: Floats, sums: Floats, c: float = 0.8) -> Arms:
    """Arms ``[...]`` of the highest lower bounds ``mean - c / max(1, sqrt(n))``."""
    return _best(sums / np.maximum(counts, 1) - c / np.maximum(np.sqrt(counts), 1))


def offline_posterior(counts: Floats, sums: Floats, **prior: float) -> Arms:
    """Arms ``[...]`` of the highest posterior means (prior as for ``gaussian_posterior``)."""
    return _best(rules.gaussian_posterior(counts, sums, **prior)[0])


def offline_thompson(
    counts: Floats, sums: Floats, rng: np.random.Generator, votes: int = 100, **prior: float
) -> Arms:
    """Arms ``[...]`` that are best in most of ``votes`` draws from the posterior."""
    mean, var = rules.gaussian_posterior(counts, sums, **prior)
    width = np.sqrt(var)
    tally = np.zeros(mean.shape)
    for _ in range(votes):
        best = (mean + width * rng.standard_normal(mean.shape)).argmax(axis=-1)
        np.put_along_axis(
            tally, best[..., None], np.take_along_axis(tally, best[..., None], -1) + 1, -1
        )
    return _best(tally)


def offline_ridge(
    actions: Arms,
    rewards: NDArray[Any],
    features: Floats,
    lengths: Sequence[int],
    ridge: float = 1.0,
) -> Arms:
    """Arms ``[n, P]`` that a ridge regression on prefixes of recorded pulls predicts to be best.

    Args:
        actions: ``[n, T]``.
        rewards: ``[n, T]``.
        features: of the arms, ``[n, K, d]``, or ``[K, d]`` if all tasks have the same.
        lengths: of the prefixes, ``[P]``.
        ridge: weight of the penalty.
    """
    x = np.broadcast_to(features, (len(actions), *np.shape(features)[-2:]))
    rule, out = rules.LinUcb(c=0.0, ridge=ridge), np.zeros((len(actions), len(lengths)), np.int64)
    for p, length in enumerate(lengths):
        seen = np.take_along_axis(x, actions[:, :length, None], axis=1)  # (n, length, d)
        gram = np.einsum("ntd,nte->nde", seen, seen)
        moment = np.einsum("ntd,nt->nd", seen, rewards[:, :length])
        memory = rules.LinearMemory(gram, moment, np.full(len(actions), length), x)
        out[:, p] = _best((x @ rule.estimate(memory)[0][..., None])[..., 0])
    return out


def _best(scores: Floats) -> Arms:
    best: Arms = scores.argmax(axis=-1)
    return best

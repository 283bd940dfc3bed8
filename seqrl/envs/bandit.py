"""Bandits: tasks without states, in which everything worth knowing must be tried out.

Sources: Lee et al., arXiv 2306.14892, and jon--lee/decision-pretrained-transformer (Gaussian and
linear bandits); Lin, Bai, Mei, arXiv 2310.08566, and licong-lin/in-context-rl (Bernoulli bandits,
linear bandits with their own arms).

    observation   1 (or the features of all arms)
    reward        mean of the arm + sigma * N(0, 1), or 1 with that probability and 0 otherwise

| point | official code | here |
|---|---|---|
| the flag ``var`` | used as a standard deviation | named for what it is, ``sigma`` |
| observation space | - | Box(0, 1) rather than Box(1, 1), which Gymnasium warns of |
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from seqrl.envs.bandit_tasks import BanditSettings, LinearBanditSettings, Tasks, linear_means
from seqrl.envs.checks import check_actions, check_choice, check_int, known_options, settings_from
from seqrl.errors import SeqrlError

__all__ = ["BanditEnv", "LinearBanditEnv", "VectorBandit", "VectorLinearBandit"]

Floats = NDArray[np.float64]
Settings = BanditSettings | LinearBanditSettings

# --- one environment ------------------------------------------------------------------------------


class _Bandit(gymnasium.Env[NDArray[Any], np.int64]):
    """What the bandits share; make one of the two below.

    Actions ``Discrete(K)``. An episode is truncated after ``horizon`` pulls and never terminates.
    Every ``info`` holds ``optimal_action``, after a pull also ``regret``, the best mean less that
    of the arm pulled.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 8}

    def __init__(self, settings: Settings, render_mode: str | None) -> None:
        self.settings = settings
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(settings.arms_count)
        self.observation_space = settings.observation_space()
        self.tasks: Tasks | None = None
        """The task of the present episode, with a leading dimension of 1."""
        self._means: list[float] = []
        self._best, self._optimal, self._time = 0.0, 0, 0
        self._last: tuple[int, float] | None = None
        self._seen: NDArray[np.float32] = np.ones(1, np.float32)
        self._running = False

    @property
    def max_episode_steps(self) -> int:
        """Pulls of every episode."""
        return int(self.settings.horizon)

    @property
    def means(self) -> list[float]:
        """Expected reward of each arm in the present episode."""
        return list(self._means)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds task and rewards; ``None`` continues the present stream.
            options: what fixes the task, see the class; the rewards' noise of a seed stays.

        Raises:
            SeqrlError: unknown option, or values of a wrong shape or range.
        """
        super().reset(seed=seed)
        given = known_options(options, self.settings.option_names())
        drawn = self.settings.draw(self.np_random, 1, given)
        if given or self.tasks is None or self.settings.resample:
            self.tasks = drawn
        self._means = self.tasks.means[0].tolist()
        self._best = max(self._means)
        self._optimal = self._means.index(self._best)
        self._seen = self.settings.observations(self.tasks)[0]
        self._time, self._last, self._running = 0, None, True
        return self._seen.copy(), {"optimal_action": self._optimal}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Pull an arm.

        Raises:
            SeqrlError: no episode is running, or there is no such arm.
        """
        if not self._running:
            raise SeqrlError("step() without a running episode", "call reset() first")
        if not self.action_space.contains(action):
            last = len(self._means) - 1
            raise SeqrlError(f"action={action!r} is not allowed", f"arms are 0 to {last}")
        mean = self._means[action]
        reward = float(self.settings.rewards(self.np_random, mean))
        self._time += 1
        self._last = int(action), reward
        truncated = self._time >= self.settings.horizon
        self._running = not truncated
        info = {"optimal_action": self._optimal, "regret": self._best - mean}
        return self._seen.copy(), reward, False, truncated, info

    recorded_by: ClassVar[str]
    """Who played the published data."""
    learner: ClassVar[str]
    """A player that learns."""

    @classmethod
    def context_columns(
        cls,
        seed: int = 0,
        tasks: int = 10_000,
        behaviour: str | None = None,
        histories: int = 1,
        **settings: Any,
    ) -> dict[str, Any]:
        """Histories of ``tasks`` bandits, of ``horizon`` pulls each, as flat columns.

        See :func:`seqrl.envs.context_data.bandit_histories`; ``behaviour`` is by default that of
        the published data (``mixed``, of linear bandits ``thompson``).
        """
        from seqrl.envs.context_data import bandit_histories

        vector = VectorLinearBandit if issubclass(cls, LinearBanditEnv) else VectorBandit
        return bandit_histories(
            vector, tasks, seed, behaviour or cls.recorded_by, histories, **settings
        )

    @classmethod
    def history_columns(
        cls,
        seed: int = 0,
        tasks: int = 10_000,
        behaviour: str | None = None,
        histories: int = 1,
        **settings: Any,
    ) -> dict[str, Any]:
        """The same of a player that learns (``ucb``, of linear bandits ``linucb``): a learning
        history is one episode of pulls."""
        return cls.context_columns(seed, tasks, behaviour or cls.learner, histories, **settings)

    def oracle_action(self) -> int:
        """The arm of the highest mean."""
        return self._optimal

    def episode_options(self, i: int) -> dict[str, Any]:
        """Reset options of evaluation episode (or trial) ``i``: a task that is a function of i."""
        return dict(self.settings.evaluation_task(i))

    def generation_options(self, i: int) -> dict[str, Any]:
        """No reset options: generated data draw their tasks, and share none with evaluation."""
        return {}

    def render(self) -> Any:
        """Describe the arms as text, ``None`` without a ``render_mode``.

        Raises:
            SeqrlError: before the first ``reset``.
        """
        if self.render_mode is None:
            return None
        if not self._means:
            raise SeqrlError("render() before the first episode", "call reset() first")
        pulled, reward = self._last or (-1, 0.0)
        lines = [
            f"arm {k}  mean {mean:6.3f} {'best' if k == self._optimal else '    '}"
            + (f"  pulled, reward {reward:.3f}" if k == pulled else "")
            for k, mean in enumerate(self._means)
        ]
        lines.append(f"pull {self._time} of {self.settings.horizon}")
        return "\n".join(line.rstrip() for line in lines) + "\n"


class BanditEnv(_Bandit):
    """Bandit with independent arms, ``seqrl/Bandit-v0``.

    The observation is the constant 1. ``reset(options={"means": [...]})`` fixes the task.

    Args:
        n_arms: number of arms K, 2 or more; default 5, or the number of ``means``.
        sigma: standard deviation of a Gaussian reward.
        horizon: pulls of an episode.
        kind: ``"gaussian"`` or ``"bernoulli"``.
        means: expected rewards of every episode; None draws them uniformly from [0, 1].
        resample: whether means are drawn at every reset, or at the first one only.
        noise_free: whether rewards are the means themselves.
        render_mode: ``None`` or ``"ansi"``.

    Raises:
        SeqrlError: a setting out of its range.

    Example:
        >>> env = BanditEnv(noise_free=True)
        >>> observation, info = env.reset(options={"means": [0.1, 0.5, 0.9, 0.2, 0.3]})
        >>> info["optimal_action"], env.step(1)[1]
        (2, 0.5)
    """

    recorded_by, learner = "mixed", "ucb"

    def __init__(
        self,
        n_arms: int | None = None,
        sigma: float = 0.3,
        horizon: int = 500,
        kind: str = "gaussian",
        means: Any = None,
        resample: bool = True,
        noise_free: bool = False,
        render_mode: str | None = None,
    ) -> None:
        settings = BanditSettings(n_arms, sigma, horizon, kind, means, resample, noise_free)
        super().__init__(settings, render_mode)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the best arm, both exact.

        Raises:
            SeqrlError: unknown setting or value out of range.

        Example:
            >>> BanditEnv.reference_scores(n_arms=4, horizon=10)
            {'random': 5.0, 'oracle': 8.0}
        """
        settings = settings_from(BanditSettings, kwargs)
        count = settings.arms_count
        if settings.means is None and settings.resample:
            mean, best = 0.5, count / (count + 1)  # of uniform numbers, and of their maximum
        else:
            means = settings.evaluation_task(0)["means"]
            mean, best = float(np.mean(means)), max(means)
        return {"random": settings.horizon * mean, "oracle": settings.horizon * best}


class LinearBanditEnv(_Bandit):
    """Bandit whose means are linear in the features of its arms, ``seqrl/LinearBandit-v0``.

    The mean of an arm is the product of its features with a hidden vector theta. The default is
    DPT's structure task: ten fixed arms that the observation, the constant 1, does not show.
    The setting of the theory paper is ``dim=5, arms="per_env", theta="uniform01", sigma=1.5,
    observe_arms=True``. ``reset(options={"theta": [...]})`` fixes the task; with ``per_env`` also
    ``"arms"``, ``[K, d]`` within [-1, 1].

    Args:
        n_arms: number of arms K, 2 or more.
        dim: features of an arm.
        sigma: standard deviation of a reward.
        horizon: pulls of an episode.
        arms: ``"fixed"`` or ``"per_env"``.
        theta: ``"normal"`` or ``"uniform01"``.
        observe_arms: whether the observation is the features of all arms, in order.
        noise_free: whether rewards are the means themselves.
        render_mode: ``None`` or ``"ansi"``.

    Raises:
        SeqrlError: a setting out of its range.
    """

    recorded_by, learner = "thompson", "linucb"

    def __init__(
        self,
        n_arms: int = 10,
        dim: int = 2,
        sigma: float = 0.3,
        horizon: int = 200,
        arms: str = "fixed",
        theta: str = "normal",
        observe_arms: bool = False,
        noise_free: bool = False,
        render_mode: str | None = None,
    ) -> None:
        settings = LinearBanditSettings(
            n_arms, dim, sigma, horizon, arms, theta, observe_arms, noise_free
        )
        super().__init__(settings, render_mode)

    @classmethod
    def reference_scores(cls, **kwargs: Any) -> dict[str, float]:
        """Return the expected returns of uniformly random play and of the best arm.

        Exact for two features, fixed arms and a normal theta (the default); otherwise the best
        arm's is a mean over 65 536 drawn tasks, the same ones every time.

        Raises:
            SeqrlError: unknown setting or value out of range.
        """
        settings = settings_from(LinearBanditSettings, kwargs)
        random, oracle = linear_means(settings)
        return {"random": settings.horizon * random, "oracle": settings.horizon * oracle}


# --- many at once ---------------------------------------------------------------------------------


class _VectorBandit(VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]]):
    """Thousands of bandits in numpy arrays; a row behaves as the single environment does.

    All rows are truncated together after ``horizon`` pulls; autoreset is disabled. All rows draw
    from one generator. Infos hold ``optimal_action [N]``, after a pull also ``regret [N]``.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
    settings_class: ClassVar[type[Any]]

    def __init__(self, num_envs: int, **settings: Any) -> None:
        self.num_envs = check_int("num_envs", num_envs, 1)
        self.settings = settings_from(self.settings_class, settings)
        self.single_observation_space = self.settings.observation_space()
        self.single_action_space = spaces.Discrete(self.settings.arms_count)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks: Tasks | None = None
        """The tasks of the present episodes."""
        self._rows = np.arange(num_envs)
        self._best: Floats = np.zeros(num_envs)
        self._optimal: NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._time, self._running = 0, False

    @property
    def max_episode_steps(self) -> int:
        """Pulls of every episode."""
        return int(self.settings.horizon)

    def episode_options(self, first: int = 0) -> dict[str, Any]:
        """Reset options that make row k the evaluation episode ``first + k``."""
        tasks = [self.settings.evaluation_task(first + k) for k in range(self.num_envs)]
        return {name: np.array([task[name] for task in tasks]) for name in tasks[0]}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode in every row; observations ``[N, S]``.

        Args:
            seed: of the one generator that all rows draw from; ``None`` continues it.
            options: as for the single environment, with a leading dimension N or without (then
                all rows get the same task).

        Raises:
            SeqrlError: unknown option, or values of a wrong shape or range.
        """
        super().reset(seed=seed)
        given = known_options(options, self.settings.option_names())
        drawn = self.settings.draw(self.np_random, self.num_envs, given)
        if given or self.tasks is None or self.settings.resample:
            self.tasks = drawn
        self._optimal = self.tasks.means.argmax(axis=1)
        self._best = self.tasks.means.max(axis=1)
        self._time, self._running = 0, True
        observations = self.settings.observations(self.tasks)
        return observations, {"optimal_action": self._optimal.copy()}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Pull an arm in every row: ``actions [N]``.

        Raises:
            SeqrlError: no episode is running, or there is no such arm.
        """
        if not self._running or self.tasks is None:
            raise SeqrlError("step() without a running episode", "call reset() first")
        chosen = check_actions(actions, self.num_envs, self.settings.arms_count)
        means = self.tasks.means[self._rows, chosen]
        rewards = self.settings.rewards(self.np_random, means)
        self._time += 1
        self._running = self._time < self.settings.horizon
        over = np.full(self.num_envs, not self._running)
        infos = {"optimal_action": self._optimal.copy(), "regret": self._best - means}
        observations = self.settings.observations(self.tasks)
        return observations, rewards, np.zeros(self.num_envs, np.bool_), over, infos

    def oracle_actions(self) -> NDArray[np.int64]:
        """The best arm of every row, ``[N]``."""
        return self._optimal.copy()


class VectorBandit(_VectorBandit):
    """Many of :class:`BanditEnv`.

    Args:
        num_envs: number of bandits N.
        **settings: as for :class:`BanditEnv`.

    Example:
        >>> env = VectorBandit(1000, horizon=10)
        >>> observations, infos = env.reset(seed=0)
        >>> float(env.step(env.oracle_actions())[4]["regret"].max())
        0.0
    """

    settings_class = BanditSettings


class VectorLinearBandit(_VectorBandit):
    """Many of :class:`LinearBanditEnv`; ``tasks.features`` are the arms, ``[N, K, d]``.

    Args:
        num_envs: number of bandits N.
        **settings: as for :class:`LinearBanditEnv`.
    """

    settings_class = LinearBanditSettings

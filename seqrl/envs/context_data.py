"""Data of many tasks for learning in context, made all at once.

A **history** is what one task showed in order: T pulls of a bandit, or T transitions of a room. The
columns say which task an episode is of (``episode_task``), its place in the history
(``episode_order``) and, at every step, the best action there (``optimal_action``).

Sources: Lee et al., arXiv 2306.14892, and ``collect_data.py`` of
jon--lee/decision-pretrained-transformer; Lin, Bai, Mei, arXiv 2310.08566. Shapes: ``M`` tasks,
``T`` steps of a history, ``N = M * histories * T`` steps in all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl.envs import bandit_rules as rules
from seqrl.envs import grids
from seqrl.envs.bandit import VectorBandit, VectorLinearBandit
from seqrl.envs.checks import check_choice, check_int, check_number
from seqrl.envs.darkroom import VectorDarkRoom
from seqrl.envs.rooms import DarkRoomSettings
from seqrl.errors import SeqrlError

__all__ = [
    "Annealing",
    "Pulls",
    "bandit_histories",
    "darkroom_histories",
    "darkroom_transitions",
    "recorded_pulls",
]

Columns = dict[str, Any]
"""Column name to array; ``notes`` is a mapping of JSON data."""

_FIXED = ("mixed", "uniform")
"""Behaviours of bandits whose pulls do not depend on what came of earlier ones."""
_CHUNK = 10_000
"""Tasks played side by side."""


@dataclass(frozen=True)
class Annealing:
    """A learning history without a learner: moves at random, ever less often.

    The share of random moves falls from ``eps_start`` to ``eps_final`` over the first ``anneal`` of
    a history's steps; all other moves are the best ones.
    """

    tasks: int | None = None
    """Number of tasks; None: all there are."""
    histories: int = 10
    """Of each task."""
    episodes: int = 100
    """Of each history."""
    eps_start: float = 1.0
    eps_final: float = 0.0
    anneal: float = 0.9

    def __post_init__(self) -> None:
        if self.tasks is not None:
            check_int("tasks", self.tasks, 1)
        check_int("histories", self.histories, 1)
        check_int("episodes", self.episodes, 1)
        for name in ("eps_start", "eps_final", "anneal"):
            check_number(name, getattr(self, name), 0, 1)

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any]) -> Annealing:
        """From the parameters of a URI, which are taken out of ``kwargs``."""
        names = [f.name for f in fields(cls)]
        return cls(**{k: kwargs.pop(k) for k in names if k in kwargs})

    def share(self, episode: float) -> float:
        """Share of random moves after so many episodes.

        >>> [round(Annealing(episodes=10).share(e), 2) for e in (0, 4.5, 9, 9.5)]
        [1.0, 0.5, 0.0, 0.0]
        """
        falling = self.anneal * self.episodes
        done = 1.0 if falling == 0 else min(episode / falling, 1.0)
        return self.eps_start + (self.eps_final - self.eps_start) * done


def _adaptive(name: str, sigma: float, linear: bool) -> Any:
    """The rule that plays, from its name in a URI."""
    if name == "thompson":
        # As published: a wide prior around 0 for linear bandits, that of uniform means otherwise.
        mean, var = (0.0, 1.0) if linear else (0.5, 1 / 12)
        return rules.Thompson(prior_mean=mean, prior_var=var, sigma=sigma)
    known = {"ucb": rules.Ucb, "empirical": rules.Empirical, "beta_thompson": rules.BetaThompson}
    if linear:
        known["linucb"] = rules.LinUcb
    if name not in known:
        raise SeqrlError(
            f"behaviour '{name}' is not known here",
            f"one of mixed, uniform, thompson, {', '.join(known)}",
        )
    return known[name]()


def bandit_histories(
    vector: type[VectorBandit | VectorLinearBandit],
    tasks: int,
    seed: int,
    behaviour: str,
    histories: int = 1,
    **settings: Any,
) -> Columns:
    """Histories of bandits, one episode each.

    Args:
        vector: kind of bandits.
        tasks: number of tasks M, drawn anew (evaluation has tasks of its own).
        seed: 0 or more.
        behaviour: ``mixed`` (fixed arm probabilities of a task: a flat Dirichlet's draw mixed with
            one random arm), ``uniform``, or a rule that learns while it plays: ``thompson``,
            ``ucb``, ``empirical``, ``beta_thompson`` or, for linear bandits, ``linucb``.
        histories: of each task.
        **settings: of the environment; its ``horizon`` is T.

    Raises:
        SeqrlError: unknown behaviour or setting.
    """
    tasks = check_int("tasks", tasks, 1)
    histories = check_int("histories", histories, 1)
    parts: list[Columns] = []
    for first in range(0, tasks, _CHUNK):
        n = min(_CHUNK, tasks - first)
        env = vector(n * histories, **settings)
        drawn = env.settings.draw(np.random.default_rng((seed, first, 0)), n)
        names = env.settings.option_names()
        values = {"means": drawn.means, "theta": drawn.theta, "arms": drawn.features}
        options = {k: np.repeat(np.asarray(values[k]), histories, 0) for k in names}
        parts.append(_bandit_part(env, options, (seed, first, 1), behaviour))
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    steps = len(joined["rewards"]) // (tasks * histories)
    ends = np.arange(1, len(joined["rewards"]) + 1) % steps == 0
    return {
        **joined,
        "terminations": np.zeros(len(ends), np.bool_),
        "truncations": ends,
        "episode_starts": np.arange(0, len(ends) + 1, steps),
        "episode_task": np.repeat(np.arange(tasks), histories),
        "episode_order": np.zeros(tasks * histories, np.int64),
        "notes": {"order_matters": behaviour not in _FIXED},
    }


@dataclass(frozen=True)
class Pulls:
    """What bandits paid, and what a judge knows of them."""

    means: NDArray[np.float64]
    """``[M, K]``: what the arms pay on average."""
    features: NDArray[np.float64] | None
    """``[M, K, d]`` or ``[K, d]`` of linear bandits."""
    observations: NDArray[np.float32]
    """``[M, ...]``, the same at every step."""
    actions: NDArray[np.int64]
    """``[M, T]``."""
    rewards: NDArray[np.float32]
    """``[M, T]``."""


def recorded_pulls(
    vector: type[VectorBandit | VectorLinearBandit],
    tasks: int,
    seed: int,
    behaviour: str = "mixed",
    **settings: Any,
) -> Pulls:
    """Pulls of bandits drawn for judging, at most 10,000 of them.

    Args:
        vector: kind of bandits.
        tasks: number of bandits M.
        seed: 0 or more; other seeds than those of training data give other bandits.
        behaviour: see :func:`bandit_histories`.
        **settings: of the environment; its ``horizon`` is T.

    Raises:
        SeqrlError: unknown behaviour or setting, or too many tasks.
    """
    tasks = check_int("tasks", tasks, 1, _CHUNK)
    env = vector(tasks, **settings)
    drawn = env.settings.draw(np.random.default_rng((seed, 0, 0)), tasks)
    values = {"means": drawn.means, "theta": drawn.theta, "arms": drawn.features}
    options = {k: np.asarray(values[k]) for k in env.settings.option_names()}
    part = _bandit_part(env, options, (seed, 0, 1), behaviour)
    shape = (tasks, env.max_episode_steps)
    return Pulls(
        means=np.asarray(drawn.means),
        features=None if drawn.features is None else np.asarray(drawn.features),
        observations=part["final_observations"],
        actions=part["actions"].reshape(shape),
        rewards=part["rewards"].reshape(shape),
    )


def _bandit_part(env: Any, options: dict[str, Any], seed: Any, behaviour: str) -> Columns:
    rng = np.random.default_rng(seed)
    observations, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
    n, steps, arms = env.num_envs, env.max_episode_steps, env.settings.arms_count
    if behaviour in _FIXED:
        probabilities = np.full((n, arms), 1 / arms)
        if behaviour == "mixed":
            probabilities = rules.behaviour_probabilities(rng, n, arms)
        actions = rules.sample_arms(rng, probabilities, steps)
        rewards = np.stack([env.step(actions[:, t])[1] for t in range(steps)], 1)
    else:
        linear = isinstance(env, VectorLinearBandit)
        rule = _adaptive(behaviour, float(env.settings.sigma), linear)
        done = rules.play(rule, env, seed=int(rng.integers(2**31)), options=options)
        actions, rewards = done.actions, done.rewards
    best = env.oracle_actions()
    return {
        "observations": np.repeat(observations, steps, 0),
        "actions": actions.reshape(-1).astype(np.int64),
        "rewards": rewards.reshape(-1).astype(np.float32),
        "final_observations": observations,
        "optimal_action": np.repeat(best, steps).astype(np.int64),
    }


def darkroom_transitions(
    settings: DarkRoomSettings,
    seed: int,
    tasks: int | None = None,
    histories: int = 100,
    steps: int | None = None,
    rollin: str = "uniform",
) -> Columns:
    """Transitions of Dark Rooms.

    Args:
        settings: of the rooms; their split says which tasks there are.
        seed: 0 or more.
        tasks: the first so many tasks of the split; all of them by default.
        histories: of each task.
        steps: transitions T of a history; the horizon by default.
        rollin: ``uniform``: cells and actions drawn independently, an episode of one step each (the
            published data); ``expert``: the best way from the first cell.

    Raises:
        SeqrlError: a value out of its range.
    """
    count = len(settings.goals()) * len(settings.orders())
    chosen = check_int("tasks", count if tasks is None else tasks, 1, count)
    histories = check_int("histories", histories, 1)
    length = check_int("steps", settings.horizon if steps is None else steps, 1)
    check_choice("rollin", rollin, ("uniform", "expert"))
    rng = np.random.default_rng(seed)
    listed = [settings.task(i) for i in range(chosen)]
    goal = np.repeat(np.array([t["goal"] for t in listed]), histories, 0)  # (R, 2)
    order = np.repeat(np.array([t.get("perm_index", 0) for t in listed]), histories)
    rows = chosen * histories
    if rollin == "uniform":
        at = rng.integers(settings.size, size=(rows, length, 2))
        actions = rng.integers(5, size=(rows, length))
        after = _moved(at, order, actions, settings)
    else:
        place = settings.starts(rng.integers(settings.size, size=(rows, 2)))
        at, after = np.zeros((2, rows, length, 2), np.int64)
        actions = np.zeros((rows, length), np.int64)
        for t in range(length):
            at[:, t], actions[:, t] = place, _best(place[:, None], goal, order)[:, 0]
            place = _moved(place[:, None], order, actions[:, t : t + 1], settings)[:, 0]
            after[:, t] = place
    hit = (after == goal[:, None]).all(-1)
    if rollin == "expert" and settings.pays_once:
        hit &= np.cumsum(hit, 1) == 1
    size = rows * length
    # Independent transitions are episodes of one step.
    each = 1 if rollin == "uniform" else length
    ends = np.arange(1, size + 1) % each == 0
    episodes = size // each
    return {
        "observations": settings.observed(at.reshape(size, 2)),
        "actions": actions.reshape(-1),
        "rewards": hit.reshape(-1).astype(np.float32),
        "terminations": np.zeros(size, np.bool_),
        "truncations": ends,
        "final_observations": settings.observed(after.reshape(size, 2)[each - 1 :: each]),
        "episode_starts": np.arange(0, size + 1, each),
        "episode_task": np.repeat(np.arange(chosen), episodes // chosen),
        "episode_order": np.tile(np.arange(length // each), rows),
        "optimal_action": _best(at, goal, order).reshape(-1),
        "notes": {"order_matters": rollin != "uniform"},
    }


def darkroom_histories(plan: Annealing, seed: int, **settings: Any) -> Columns:
    """Annealed histories of Dark Rooms, all side by side.

    Args:
        plan: how many there are, and how random they are.
        seed: 0 or more.
        **settings: of the environment; its split says which tasks there are.

    Raises:
        SeqrlError: a value out of its range.
    """
    rooms = DarkRoomSettings.of(**settings)
    count = len(rooms.goals()) * len(rooms.orders())
    tasks = count if plan.tasks is None else check_int("tasks", plan.tasks, 1, count)
    listed = [rooms.task(i) for i in range(tasks)]
    options = {
        name: np.repeat(np.array([t[name] for t in listed]), plan.histories, 0)
        for name in listed[0]
    }
    n, limit = tasks * plan.histories, rooms.horizon
    env = VectorDarkRoom(n, **settings)
    rng = np.random.default_rng((seed, 1))
    shape = (n, plan.episodes, limit)
    rows: Columns = {
        "observations": np.zeros((*shape, 2), np.int8),
        "actions": np.zeros(shape, np.int8),
        "optimal_action": np.zeros(shape, np.int8),
        "rewards": np.zeros(shape, np.float32),
        "terminations": np.zeros(shape, np.bool_),
        "truncations": np.zeros(shape, np.bool_),
    }
    taken = np.zeros(shape, np.bool_)
    finals = np.zeros((n, plan.episodes, 2), np.int8)
    for e in range(plan.episodes):
        at, infos = env.reset(seed=seed if e == 0 else None, options=options)
        for t in range(limit):
            live, best = env.running.copy(), infos["optimal_action"]
            if not live.any():
                break
            wild = rng.random(n) < plan.share(e + t / limit)
            actions = np.where(wild, rng.integers(5, size=n), best)
            taken[:, e, t] = live
            rows["observations"][:, e, t], rows["actions"][:, e, t] = at, actions
            rows["optimal_action"][:, e, t] = best
            at, rewards, ended, cut, infos = env.step(actions)
            rows["rewards"][:, e, t] = rewards
            rows["terminations"][:, e, t], rows["truncations"][:, e, t] = ended, cut
        finals[:, e] = at
    lengths = taken.sum(-1).reshape(-1)
    columns = {name: rows[name][taken] for name in rows}
    for name in ("actions", "optimal_action"):
        columns[name] = columns[name].astype(np.int64)
    return {
        **columns,
        "observations": rooms.observed(columns["observations"].astype(np.int64)),
        "final_observations": rooms.observed(finals.reshape(-1, 2).astype(np.int64)),
        "episode_starts": np.concatenate([[0], np.cumsum(lengths)]),
        "episode_task": np.repeat(np.arange(tasks), plan.histories * plan.episodes),
        "episode_order": np.tile(np.arange(plan.episodes), n),
    }


def _moved(
    at: NDArray[Any], order: NDArray[Any], actions: NDArray[Any], settings: DarkRoomSettings
) -> NDArray[np.int64]:
    """Cells after ``actions [R, T]`` at ``at [R, T, 2]`` under action orders ``[R]``."""
    return grids.moved(at, grids.PERMUTATIONS[order[:, None], actions], settings.size)


def _best(at: NDArray[Any], goal: NDArray[Any], order: NDArray[Any]) -> NDArray[np.int64]:
    """Best actions ``[R, T]`` at cells ``at [R, T, 2]``."""
    wanted = grids.shortest_action(at, goal[:, None])
    named = grids.PERMUTATIONS[order][:, None] == wanted[..., None]  # (R, T, 5)
    best: NDArray[np.int64] = named.argmax(-1)
    return best

"""Data of many tasks, for learning in context: ``incontext:ENV_ID?...``, ``histories:ENV_ID?...``.

``incontext:`` asks the environment's class for ``context_columns(seed, **parameters)``: what tasks
showed, and the best action at every step (bandits: ``tasks``, ``behaviour``; Dark Room: ``tasks``,
``histories``, ``steps``, ``rollin``; see their ``context_columns``).

``histories:`` makes learning histories without a learner: all episodes of a history are of one
task. Their player moves at random with a probability that falls from ``eps_start`` to
``eps_final`` over the first ``anneal`` of the steps, and otherwise as the environment's oracle
says: a stand-in for the training run of an agent. (ad-eps does the same; its mapping from a wanted
performance to the final probability is inverted, so here that is set itself.) A class with
``history_columns`` makes its own.

==============  ===========  ===================================================================
parameter       default      of ``histories:``
==============  ===========  ===================================================================
``tasks``       all, or 64   number of tasks
``histories``   10           of each task
``episodes``    100          of each history
``eps_start``   1            share of random moves at first
``eps_final``   0            and at last
``anneal``      0.9          share of a history's steps over which it falls
``seed``        0
==============  ===========  ===================================================================

Every other parameter goes to the environment. Data of a split ``train`` say that the policy is to
be evaluated on the split ``test``: tasks it has not seen. ``notes["order_matters"]`` says that what
was done depended on what came before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import spaces as sp
from seqrl.datasets import columns as cols
from seqrl.datasets import generated
from seqrl.draws import derive_seed
from seqrl.envs.context_data import Annealing
from seqrl.envs.making import horizon, make_env
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

READ_OPTIONS = generated.READ_OPTIONS

OPTIMAL = "optimal_action"
_TASKS, _MOST_TASKS = 64, 4096
"""Tasks by default where there is no end of them, and how many are looked through for an end."""
_STREAM = 6
"""Stream of derived seeds."""


def source_files(uri: DatasetURI, options: LoadOptions) -> list[Path]:
    """The environment's module, and what makes the data: changing them makes a cache stale."""
    from seqrl.envs import context_data

    return [*generated.source_files(uri, options), Path(context_data.__file__), Path(__file__)]


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Make the data of a URI.

    Raises:
        SeqrlError: unknown environment or parameter, or an environment without what is needed.
    """
    kwargs = dict(uri.params)
    seed = generated.count_in("seed", kwargs.pop("seed", 0), 0)
    cls = generated.environment_class(uri.name)
    maker = "context_columns" if uri.scheme == "incontext" else "history_columns"
    if hasattr(cls, maker):
        columns = generated.made_columns(cls, maker, uri, {"seed": seed, **kwargs})
        kwargs = generated.environment_kwargs(cls, kwargs)
        env = make_env(uri.name, kwargs)
    elif uri.scheme == "incontext":
        made = ("seqrl/Bandit-v0", "seqrl/LinearBandit-v0", "seqrl/DarkRoom-v0")
        raise SeqrlError(
            f"environment '{uri.name}' makes no data of tasks with their best actions "
            "(context_columns)",
            hint=f"those that do: {', '.join(made)}; learning histories: histories:{uri.name}",
        )
    else:
        plan = Annealing.taken_from(kwargs)
        env = make_env(uri.name, kwargs)
        columns = _annealed(env, plan, seed, uri)
    try:
        shown = {**kwargs, "split": "test"} if kwargs.get("split") == "train" else kwargs
        notes = columns.pop("notes", {"order_matters": True})
        data = generated.trajectories_of(env, columns, uri, shown, options)
        data.notes |= notes
        return data
    finally:
        env.close()


def _annealed(env: Any, plan: Annealing, seed: int, uri: DatasetURI) -> dict[str, Any]:
    """Step through the histories of any environment with tasks and an oracle."""
    base, limit = env.unwrapped, horizon(env)
    if not hasattr(base, "oracle_action") or not hasattr(base, "episode_options"):
        raise SeqrlError(
            f"environment '{uri.name}' has no tasks with a scripted expert "
            "(episode_options, oracle_action)",
            hint="recorded histories: set episode_task and episode_order of an npz file",
        )
    if limit is None:
        raise SeqrlError(f"environment '{uri.name}' has no time limit of its own")
    rows: dict[str, list[Any]] = {k: [] for k in (*cols.STEP, "final_observations", OPTIMAL)}
    starts, tasks, places = [0], [], []
    for task, options in enumerate(_options(base, plan.tasks)):
        for history in range(plan.histories):
            number = task * plan.histories + history
            rng = np.random.default_rng((seed, _STREAM, number))
            env.action_space.seed(derive_seed(seed, _STREAM, number))
            for e in range(plan.episodes):
                obs, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
                random, done, t = rng.random(limit), False, 0
                while not done:
                    flat = sp.flatten_observation(env.observation_space, obs)
                    best = action = base.oracle_action()
                    if random[t] < plan.share(e + t / limit):
                        action = env.action_space.sample()
                    obs, reward, ended, cut, _ = env.step(action)
                    t += 1
                    done = bool(ended or cut or t == limit)
                    values = (flat, action, reward, bool(ended), done and not ended)
                    for key, value in zip(cols.STEP, values, strict=True):
                        rows[key].append(value)
                    rows[OPTIMAL].append(best)
                rows["final_observations"].append(
                    sp.flatten_observation(env.observation_space, obs)
                )
                starts.append(len(rows["rewards"]))
                tasks.append(task)
                places.append(e)
    return {
        "observations": np.stack(rows["observations"]),
        "actions": np.asarray(rows["actions"]),
        "rewards": np.array(rows["rewards"], np.float32),
        "terminations": np.array(rows["terminations"], bool),
        "truncations": np.array(rows["truncations"], bool),
        "final_observations": np.stack(rows["final_observations"]),
        "episode_starts": np.array(starts),
        "episode_task": np.array(tasks),
        "episode_order": np.array(places),
        OPTIMAL: sp.flatten_actions(env.action_space, np.asarray(rows[OPTIMAL])),
    }


def _options(base: Any, asked: Any) -> list[dict[str, Any]]:
    """Reset options of the tasks: as many as asked for, else each that there is, once."""
    offer = base.episode_options
    if asked is not None:
        return [offer(i) for i in range(generated.count_in("tasks", asked, 1))]
    first = offer(0)
    found = [first]
    for i in range(1, _MOST_TASKS):
        task = offer(i)
        if task == first:
            return found
        found.append(task)
    return found[:_TASKS]

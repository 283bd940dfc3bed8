"""Recording data with any policy: the evaluation engine, keeping every step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrl import references
from seqrl.acting import RtgUpdate
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import derive_seed
from seqrl.envs.pool import EnvPool, Vector, env_factory, make_pool, step_limit, task_of
from seqrl.errors import SeqrlError
from seqrl.rollout import RECORDING, EpisodePlan, EpisodeRecord, Progress, rollout
from seqrl.scores import reference_scores
from seqrl.spec import TaskSpec
from seqrl.targets import resolve_targets


class _Recorder(NamedTuple):
    """A policy to record with, and how it is described in the data."""

    policy: Any
    name: str
    target: float
    rtg_update: RtgUpdate = "reward"


def collect(
    env_id: str,
    policy: Any = "random",
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 8,
    env_kwargs: Mapping[str, Any] | None = None,
    target: float | str | None = None,
    *,
    max_steps: int | None = None,
    vector: Vector = "auto",
    trust: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
) -> Trajectories:
    """Record episodes of an environment.

    Episode i is reset with the seed of (``seed``, recording stream, i), which is stored with it.
    An environment's ``episode_options`` are not asked: they are for evaluation, and may name tasks
    that training is not to see.

    Args:
        env_id: environment.
        policy: ``random``, ``oracle``, ``sb3:FILE.zip``, a run folder or checkpoint, or a policy
            or agent itself.
        episodes: how many.
        seed: of the recording.
        num_envs: environments side by side; changes nothing in the data.
        env_kwargs: arguments of the environment.
        target: target return (as for ``--targets``) of a policy that uses one; by default the last
            one it suggests.
        max_steps: cuts episodes; needed where the environment has no limit.
        vector: as for evaluation.
        trust: the policy's file may run code (``sb3:``, or a checkpoint of a foreign agent).
        name: of the dataset; the environment's id by default.
        progress: called with episodes done, episodes planned, steps so far.

    Raises:
        SeqrlError: unknown policy or environment, a policy that does not fit it, no step limit.

    >>> data = collect("CartPole-v1", "random", episodes=3, num_envs=1)
    >>> len(data), data.task.action.describe()
    (3, 'Discrete(2)')
    """
    if episodes < 1:
        raise SeqrlError(f"asked for {episodes} episodes, must be at least 1")
    with make_pool(env_factory(env_id, env_kwargs), num_envs, vector) as pool:
        task = task_of(pool, env_id, env_kwargs)
        recorder = _recorder(policy, task, target, trust)
        limit = step_limit(pool, max_steps, task)
        plans = [
            EpisodePlan(i, derive_seed(seed, RECORDING, i), recorder.target, trial=i)
            for i in range(episodes)
        ]
        with _evaluating(recorder.policy):
            records = rollout(
                recorder.policy,
                pool,
                plans,
                rtg_update=recorder.rtg_update,
                max_steps=limit,
                record=True,
                progress=progress,
            )
        return _trajectories(records, pool, task, recorder, seed, limit, name or env_id)


@contextlib.contextmanager
def _evaluating(policy: Any) -> Iterator[None]:
    """An agent in evaluation mode, and afterwards in the mode it was in."""
    training = getattr(policy, "training", False)
    if training:
        policy.eval()
    try:
        yield
    finally:
        if training:
            policy.train()


def write(data: Trajectories, destination: str) -> str:
    """Write recorded data to ``npz:PATH``, ``d4rl:PATH``, ``minari:ID`` or ``cache:PATH``."""
    from seqrl.datasets.cache import convert

    return convert(data, destination)


def _recorder(policy: Any, task: TaskSpec, target: float | str | None, trust: bool) -> _Recorder:
    """The policy that a name, a path or an object stands for."""
    if isinstance(policy, str) and references.is_reference(policy):
        return _Recorder(references.make_reference(policy, task), policy, 0.0)
    if isinstance(policy, str) and policy.startswith("sb3:"):
        from seqrl.references.sb3 import load_sb3

        file = policy.removeprefix("sb3:")
        return _Recorder(load_sb3(file, task, trust), f"sb3:{Path(file).name}", 0.0)
    from seqrl.policy import Policy, load_policy

    label = type(policy).__name__
    if isinstance(policy, (str, Path)):
        if not Path(policy).exists():
            raise SeqrlError(
                f"no policy '{policy}'",
                hint=f"{', '.join(references.names())}, sb3:FILE.zip, or a run folder",
            )
        label = str(policy)
        policy = load_policy(policy, trust=trust)
    elif not isinstance(policy, Policy):
        policy = Policy(policy)
    value = policy.default_target
    if target is not None:
        stats = getattr(policy.agent, "stats", ())
        value = resolve_targets([target], stats[0] if stats else None, policy.task)[0].value
    return _Recorder(policy.agent, label, value, policy.rtg_update)


def _trajectories(
    records: list[EpisodeRecord],
    pool: EnvPool,
    task: TaskSpec,
    recorder: _Recorder,
    seed: int,
    limit: int,
    name: str,
) -> Trajectories:
    steps = [r.steps for r in records if r.steps is not None]
    lengths = np.array([r.length for r in records])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ends = starts[1:] - 1
    terminations = np.zeros(starts[-1], dtype=bool)
    terminations[ends] = [r.terminated for r in records]
    truncations = np.zeros(starts[-1], dtype=bool)
    truncations[ends] = [r.truncated for r in records]
    notes = {
        "recorded_with": recorder.name,
        "recording_seed": seed,
        "recording_target": recorder.target if math.isfinite(recorder.target) else None,
    }
    return Trajectories(
        observations=np.concatenate([s.observations[:-1] for s in steps]),
        actions=np.concatenate([s.actions for s in steps]),
        rewards=np.concatenate([s.rewards for s in steps]),
        terminations=terminations,
        truncations=truncations,
        final_observations=np.stack([s.observations[-1] for s in steps]),
        episode_starts=starts,
        task=_named(task, name, limit),
        observation_space=pool.observation_space,
        action_space=pool.action_space,
        episode_seeds=np.array([r.plan.seed for r in records], dtype=np.int64),
        source=f"recorded: {recorder.name} in {task.env_id}",
        notes=notes,
    )


def _named(task: TaskSpec, name: str, limit: int) -> TaskSpec:
    known = reference_scores(task)
    return dataclasses.replace(
        task,
        name=name,
        max_episode_steps=limit,
        reference_scores=None if known is None else (known.random, known.expert),
        reference_source=None if known is None else known.source,
    )

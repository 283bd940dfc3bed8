"""Evaluation: a sweep of target returns over seeded episodes, scored, as one JSON-able report.

Everything in a report but ``timing`` is the same when the evaluation is run again on the same
machine with the same versions, however many environments run side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch

from seqrl import scores
from seqrl.acting import RtgUpdate, Timing
from seqrl.envs.pool import Vector, env_factory, make_pool, step_limit, task_of
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.eval_report import (
    EvalReport,
    Outcome,
    episode_rows,
    format_report,
    target_summary,
    to_outcome,
)
from seqrl.references import make_reference
from seqrl.rollout import (
    FINAL,
    REFERENCE,
    EpisodePlan,
    EpisodeRecord,
    plan_episodes,
    rollout,
)
from seqrl.spec import DataStats, TaskSpec
from seqrl.targets import DEFAULT_TARGETS, Target, resolve_targets, targets_of
from seqrl.trials import trial_summary

__all__ = [
    "EvalConfig",
    "EvalReport",
    "Outcome",
    "evaluate",
    "format_report",
    "to_outcome",
]

_REFERENCE_EPISODES = 20

Progress = Callable[[int, int, int], None]
RtgChoice = Literal["auto", "reward", "none"]
Normaliser = Literal["auto", "dataset", "none"]


@dataclass(frozen=True)
class EvalConfig:
    """How to evaluate. Only what is recorded under ``protocol`` can change a result."""

    targets: tuple[str, ...] = ()
    """Target returns: numbers, p50, p90, max, max*1.5 or n100 (normalised); by default the
    policy's own, else p50,p90,max of the training episodes. Of several tasks, 2:3600 is for task
    2 alone, quantiles are each task's own."""
    episodes: int = 100
    """Episodes per target; each target runs the same ones."""
    num_envs: int | None = None
    """Environments side by side (default: 16, or all episodes if fewer); changes no result."""
    seed: int = 10_000
    """Seed of the evaluation; episode i is seeded by (seed, stream, i)."""
    stream: int = FINAL
    """0 for periodic evaluation during training, 1 for the final one and `seqrl eval`."""
    row_block: int = 8
    """Rows the policy always computes at once; 1 is fastest for a single environment."""
    vector: Vector = "auto"
    """Environments in this process (sync), in processes of their own (async), or sync unless a
    step takes over a millisecond (auto)."""
    rtg_update: RtgChoice = "auto"
    """Subtract rewards from the target return as they come; none for delayed rewards; auto follows
    the training data."""
    normaliser: Normaliser = "auto"
    """Reference scores: auto looks them up; dataset is random play against the 90 % quantile of the
    training returns; none."""
    max_steps: int | None = None
    """Cut episodes at this many steps; needed where the environment has no limit of its own."""
    acting: str | None = None
    """Acting rule beyond the training window; by default the policy's present one."""
    decode: Literal["greedy", "sample"] | None = None
    """Most likely action, or one drawn from the predicted distribution."""
    temperature: float | None = None
    """Divides logits before drawing."""
    trial_episodes: int | None = None
    """Episodes of a trial: of one task, and of one memory for agents whose memory lasts for several
    (default: the agent's own)."""
    video: str | None = None
    """Folder for videos of the first episodes of each target."""
    video_episodes: int = 1
    """How many episodes of each target to film."""

    def __post_init__(self) -> None:
        for name in ("episodes", "row_block", "num_envs", "max_steps", "trial_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SeqrlError(f"{name} is {value}, must be at least 1")
        if self.video_episodes < 0 or self.seed < 0 or self.stream < 0:
            raise SeqrlError("video_episodes, seed and stream must be at least 0")
        for name, allowed in (
            ("vector", get_args(Vector)),
            ("rtg_update", get_args(RtgChoice)),
            ("normaliser", get_args(Normaliser)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise SeqrlError(
                    f"{name} is {value!r}, must be one of {', '.join(allowed)}",
                    hint=did_you_mean(str(value), allowed),
                )


def evaluate(
    agent: Any,
    *,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    config: EvalConfig | None = None,
    info: Mapping[str, Any] | None = None,
    task: int = 0,
    progress: Progress | None = None,
) -> EvalReport:
    """Evaluate a policy on every target.

    The agent's mode (training or not) and acting options are afterwards what they were before.

    Args:
        agent: an agent, a reference policy, or a :class:`seqrl.policy.Policy`.
        env_id: environment, by default that of the agent's task.
        env_kwargs: its arguments, by default those of the task.
        config: see :class:`EvalConfig`.
        info: facts of the policy for the report (``checkpoint``, ``step``) and for defaults
            (``targets``, ``delayed``).
        task: which of the agent's tasks.
        progress: called with episodes done, episodes planned, steps so far.

    Raises:
        SeqrlError: no environment known, spaces that do not fit, no step limit, a bad target.
    """
    config = config or EvalConfig()
    if hasattr(agent, "agent"):  # a Policy
        info = {**agent.info, **(info or {})}
        agent = agent.agent
    known = dict(info or {})
    spec = _task_evaluated(agent, task, env_id, env_kwargs)
    stats: DataStats | None = agent.stats[task] if getattr(agent, "stats", ()) else None
    notes: list[str] = []
    targets = _targets(agent, config, stats, spec, known, notes, task)
    job = _Job(agent, config, spec, task, targets, _rtg_update(config, known, stats))
    records, protocol, timing = _run(job, progress)
    normaliser = _normaliser(config, spec, stats, protocol["max_steps"])
    episodes = episode_rows(records, targets, normaliser)
    return EvalReport(
        episodes=episodes,
        summary=[
            target_summary(t.label, episodes, config.seed, trial_episodes(agent, config))
            for t in targets
        ],
        env={
            "id": spec.env_id,
            "kwargs": spec.env_kwargs,
            "version": environment_versions(spec.env_id or ""),
        },
        policy={
            "agent": getattr(agent, "name", type(agent).__name__),
            "checkpoint": known.get("checkpoint"),
            "step": known.get("step"),
        },
        normaliser=normaliser,
        protocol=protocol,
        notes=notes,
        trials=_trials(agent, config, targets, records),
        timing=timing,
    )


@dataclass(frozen=True)
class _Job:
    """What is run: all that the episodes depend on."""

    agent: Any
    config: EvalConfig
    spec: TaskSpec
    task: int
    targets: list[Target]
    rtg_update: RtgUpdate


def _run(
    job: _Job, progress: Progress | None
) -> tuple[list[EpisodeRecord], dict[str, Any], dict[str, Any]]:
    """Run the episodes of all targets: their records, the protocol, the timing."""
    config, agent, spec = job.config, job.agent, job.spec
    if config.video is not None:
        from seqrl.video import check_writer

        check_writer("mp4")  # before hours of work, not after
    num_envs = min(config.num_envs or 16, config.episodes * len(job.targets))
    factory = env_factory(spec.env_id or "", spec.env_kwargs, keys=spec.observation.keys)
    timing = Timing()
    with make_pool(factory, num_envs, config.vector) as pool, _acting(agent, config):
        limit = step_limit(pool, config.max_steps, spec)
        plans = plan_episodes(
            pool,
            config.episodes,
            [t.value for t in job.targets],
            seed=config.seed,
            stream=config.stream,
            per_trial=trial_episodes(agent, config),
        )
        records = rollout(
            agent,
            pool,
            plans,
            row_block=config.row_block,
            rtg_update=job.rtg_update,
            max_steps=limit,
            task=job.task,
            progress=progress,
            timing=timing,
        )
        if config.video is not None:
            _film(job, plans, limit)
        protocol = _protocol(job, limit)
        return records, protocol, _timing(timing, num_envs, type(pool).__name__)


# --- what to run ------------------------------------------------------------------------------


def _task_evaluated(
    agent: Any, task: int, env_id: str | None, env_kwargs: Mapping[str, Any] | None
) -> TaskSpec:
    """The agent's task, in another environment if one is named."""
    tasks = agent.tasks
    if not 0 <= task < len(tasks):
        raise SeqrlError(f"task {task} of {len(tasks)} does not exist")
    spec: TaskSpec = tasks[task]
    own = spec.env_id
    chosen = env_id or own
    if chosen is None:
        raise SeqrlError(
            f"the data '{spec.name}' name no environment to evaluate in", hint="add --env ID"
        )
    kwargs = dict(spec.env_kwargs if env_kwargs is None and chosen == own else env_kwargs or {})
    if chosen == own and kwargs == spec.env_kwargs:
        return spec
    # The dataset's own reference scores and step limit speak of the environment it came from.
    return dataclasses.replace(
        spec,
        name=chosen,
        env_id=chosen,
        env_kwargs=kwargs,
        max_episode_steps=None,
        reference_scores=None,
        reference_source=None,
    )


def _targets(
    agent: Any,
    config: EvalConfig,
    stats: DataStats | None,
    spec: TaskSpec,
    info: Mapping[str, Any],
    notes: list[str],
    task: int = 0,
) -> list[Target]:
    if not getattr(agent, "uses_returns", True):
        if config.targets:
            notes.append("the policy ignores target returns: run once")
        return [Target("-", 0.0)]
    asked = config.targets or tuple(info.get("targets") or ())
    own = targets_of(asked, task, len(agent.tasks)) or DEFAULT_TARGETS
    return resolve_targets(own, stats, spec, notes)


def _rtg_update(config: EvalConfig, info: Mapping[str, Any], stats: DataStats | None) -> RtgUpdate:
    if config.rtg_update != "auto":
        return config.rtg_update
    delayed = info.get("delayed", stats.custom.get("delayed", False) if stats else False)
    return "none" if delayed else "reward"


def trial_episodes(agent: Any, config: EvalConfig) -> int:
    """Episodes of a trial: by default the agent's own, 1 where memory ends with the episode."""
    return config.trial_episodes or int(getattr(agent, "trial_episodes", 1))


def _trials(
    agent: Any, config: EvalConfig, targets: list[Target], records: list[EpisodeRecord]
) -> list[dict[str, Any]] | None:
    per_trial = trial_episodes(agent, config)
    alone = agent.memory != "trial" and per_trial == 1
    if alone and any(r.regrets is None for r in records):
        return None
    n = len(records) // len(targets)
    return [
        trial_summary(t.label, records[i * n : (i + 1) * n], per_trial, config.seed)
        for i, t in enumerate(targets)
    ]


@contextlib.contextmanager
def _acting(agent: Any, config: EvalConfig) -> Iterator[None]:
    """The agent in evaluation mode with the config's acting options; restored afterwards."""
    options = (config.acting, config.decode, config.temperature)
    if not isinstance(agent, torch.nn.Module):
        if any(o is not None for o in options):
            raise SeqrlError("a reference policy has no acting options")
        yield
        return
    # Each module's own mode: a frozen part may be in evaluation mode inside a training agent.
    modes = [(m, m.training) for m in agent.modules()]
    acting = getattr(agent, "acting", None)
    agent.eval()
    try:
        if any(o is not None for o in options):
            agent.set_acting(*options)  # type: ignore[operator]
        yield
    finally:
        for module, training in modes:
            module.training = training
        if acting is not None:
            agent.acting = acting


def _protocol(job: _Job, limit: int) -> dict[str, Any]:
    acting = getattr(job.agent, "acting", None)
    return {
        "seed": job.config.seed,
        "stream": job.config.stream,
        "row_block": job.config.row_block,
        "rule": getattr(acting, "rule", None),
        "decode": getattr(acting, "decode", None),
        "temperature": getattr(acting, "temperature", None),
        "rtg_update": job.rtg_update,
        "trial_episodes": trial_episodes(job.agent, job.config),
        "max_steps": limit,
        "device": str(getattr(job.agent, "device", "cpu")),
    }


def _film(job: _Job, plans: list[EpisodePlan], limit: int) -> None:
    """Run the first episodes of each target again, the same ones, in front of a camera."""
    from seqrl.video import film

    config, spec = job.config, job.spec
    for t, target in enumerate(job.targets):
        first = t * config.episodes
        name = "episodes" if target.label == "-" else f"target_{target.label.replace('*', 'x')}"
        film(
            job.agent,
            env_factory(spec.env_id or "", spec.env_kwargs, "rgb_array", spec.observation.keys),
            plans[first : first + min(config.video_episodes, config.episodes)],
            Path(config.video or ".") / f"{name}.mp4",
            row_block=config.row_block,
            rtg_update=job.rtg_update,
            max_steps=limit,
            task=job.task,
        )


# --- what came of it --------------------------------------------------------------------------


def _normaliser(
    config: EvalConfig, spec: TaskSpec, stats: DataStats | None, limit: int
) -> dict[str, Any] | None:
    if config.normaliser == "none":
        return None
    if config.normaliser == "auto":
        found = scores.reference_scores(spec)
        if found is None:
            return None
        name = found.source.split()[0]
        return {"name": name, **found._asdict()}
    if stats is None:
        raise SeqrlError("normaliser 'dataset' needs statistics of training data")
    return {
        "name": "dataset",
        "random": random_return(
            spec.env_id or "", json.dumps(spec.env_kwargs, sort_keys=True), config.seed, limit
        ),
        "expert": stats.return_quantiles["p90"],
        "source": f"mean of {_REFERENCE_EPISODES} random episodes; p90 of the training returns",
    }


@functools.lru_cache(maxsize=64)
def random_return(env_id: str, env_kwargs: str, seed: int, limit: int) -> float:
    """Mean return of uniformly random play over 20 episodes of a stream of its own.

    Args:
        env_kwargs: as JSON text.
    """
    kwargs = json.loads(env_kwargs)
    with make_pool(env_factory(env_id, kwargs), _REFERENCE_EPISODES, "sync") as pool:
        policy = make_reference("random", task_of(pool, env_id, kwargs))
        plans = plan_episodes(pool, _REFERENCE_EPISODES, seed=seed, stream=REFERENCE)
        records = rollout(policy, pool, plans, max_steps=limit)
    return float(np.mean([r.episode_return for r in records]))


def environment_versions(env_id: str) -> str:
    """Versions of the packages an environment's behaviour depends on.

    >>> environment_versions("CartPole-v1").startswith("gymnasium ")
    True
    """
    entry = gymnasium.spec(env_id).entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    package = module.partition(":")[0].partition(".")[0]
    names = ["gymnasium", *([package] if package != "gymnasium" else [])]
    if "minigrid" in module and package != "minigrid":
        names.append("minigrid")
    if "mujoco" in module or package in ("gymnasium_robotics", "metaworld", "shimmy", "ogbench"):
        names.append("mujoco")
    found = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def _timing(timing: Timing, num_envs: int, vector: str) -> dict[str, Any]:
    median, p95 = timing.policy_ms()
    now = datetime.datetime.now().astimezone()
    return {
        "date": now.isoformat(timespec="seconds"),
        "wall_s": timing.wall_s,
        "steps": timing.steps,
        "steps_per_s": timing.steps / max(timing.wall_s, 1e-9),
        "policy_ms": {"median": median, "p95": p95},
        "env_ms": 1e3 * timing.env_s / max(timing.steps, 1),
        "engine_ms": timing.engine_ms(),
        "num_envs": num_envs,
        "vector": "async" if vector == "AsyncPool" else "sync",
        "threads": torch.get_num_threads(),
    }

"""seqrl in Python: the same runs and the same numbers as the command line.

>>> import seqrl                                                        # doctest: +SKIP
>>> data = seqrl.load_dataset("tmaze-30")                               # doctest: +SKIP
>>> run = seqrl.train("dt", data, steps=5000, seed=0)                   # doctest: +SKIP
>>> report = seqrl.evaluate(run, targets=[1.0], episodes=100)           # doctest: +SKIP
>>> policy = seqrl.load_policy(run.dir)                                 # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.presets import merge
from seqrl.presets.settings import build, layer, nested

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent
    from seqrl.datasets.trajectories import Trajectories
    from seqrl.eval_report import EvalReport
    from seqrl.evaluating import TaskReports
    from seqrl.experiment import Run
    from seqrl.spec import DataStats, TaskSpec


_FLAT_EVAL = ("targets", "acting", "decode", "temperature")
_WHOLE = (
    *("eval_episodes", "eval_tasks", "evaluate", "loggers", "init_from"),
    *("agent_config", "load", "eval"),
)


def load_dataset(
    uri: str | Trajectories | Sequence[str | Trajectories], **options: Any
) -> Trajectories:
    """Load one task's data.

    Args:
        uri: a URI (``minari:ID``, ``d4rl:FILE``, ``npz:FILE``, ``cache:DIR``, ``oracle:ENV?...``,
            ``random:ENV?...``), a name (``seqrl list datasets``), or several that belong together.
        options: fields of :class:`seqrl.datasets.LoadOptions`, such as ``best=10``.

    Raises:
        SeqrlError: unknown or broken data, an unknown option, or sources of different tasks.

    >>> len(load_dataset("tmaze-smoke", episodes=5))
    5
    """
    from seqrl.datasets import catalog

    return catalog.load_dataset(uri, options=build(catalog.LoadOptions, options, "load_dataset"))


def train(
    agent: str | None = None,
    data: str | Trajectories | Sequence[str | Trajectories] | None = None,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Train an agent and evaluate it, as ``seqrl train`` does.

    Args:
        agent: registered name or ``module:Class``; may come from the preset or config file.
        data: what to train on, by name or loaded; the built-in T-Maze data when missing.
        out: the run folder; by default ``runs/DATA/AGENT/DATE_sSEED``.
        name: of the run, in place of the date.
        preset: settings to begin with; by default those the data bring, ``"none"`` for none.
        config: JSON file of settings over the preset.
        progress: show the progress line on standard error.
        settings: as the flags of ``seqrl train``: ``steps``, ``seed``, ``lr``, ``context``,
            ``batch_size``, ``targets``, ...; parts as mappings: ``agent_config={"width": 64}``,
            ``optim={"warmup_steps": 100}``, ``eval={"episodes": 20}``, ``load={"best": 10}``.

    Returns:
        The run: ``dir``, ``result``, ``final``, ``evaluate()``, ``policy()``.

    Raises:
        SeqrlError: whatever the command line would refuse.
    """
    from seqrl.datasets.catalog import CATALOGUE, LoadOptions, default_preset, load_sources
    from seqrl.experiment import ExperimentConfig, Watch, run_experiment

    given = _nested_settings(settings)
    loaded = None
    if data is not None:
        items = [data] if isinstance(data, str) or not isinstance(data, Sequence) else list(data)
        if any(not isinstance(d, str) for d in items):
            loaded = load_sources(items, build(LoadOptions, given.get("load", {}), "load"))
        names = items if loaded is None else [d.task.name for d in loaded]
        given["data"] = names
    if agent is not None:
        given["agent"] = agent
    layered = layer(
        given,
        preset=preset,
        file=config,
        default_data=[next(iter(CATALOGUE))],
        default_preset=default_preset,
    )
    if loaded is not None:
        layered.settings["data"] = [_source(d) for d in loaded]
    return run_experiment(
        ExperimentConfig.from_json(layered.settings),
        out=out,
        name=name,
        data=loaded,
        watch=Watch(stream=sys.stderr if progress else None),
    )


def _source(data: Trajectories) -> str:
    """The name under which data can be loaded again: that of the catalogue where it has one."""
    from seqrl.datasets.catalog import CATALOGUE, resolve

    name = data.task.name
    return name if name in CATALOGUE and str(resolve(name)) == data.source else data.source


def _nested_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names, as the command line has them, put where an experiment config has them."""
    from seqrl.trainer import TrainConfig

    places = {f.name: f"train.{f.name}" for f in dataclasses.fields(TrainConfig)}
    places |= {"lr": "train.optim.lr", "context": "agent_config.context"}
    places |= {k: f"eval.{k}" for k in _FLAT_EVAL} | {k: k for k in _WHOLE}
    places |= {"env": "load.env", "env_kwargs": "load.env_kwargs"}
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in places:
            raise SeqrlError(
                f"train() has no setting '{key}'",
                hint=did_you_mean(key, places, f"settings: {', '.join(places)}"),
            )
        out = merge(out, nested({places[key]: _plain(key, value)}))
    return out


def _plain(key: str, value: Any) -> Any:
    """Targets may be one number; everything else stays as it is."""
    if key == "targets" and not isinstance(value, (list, tuple)):
        return [value]
    return dict(value) if isinstance(value, Mapping) else value


def evaluate(
    policy: Any,
    *,
    targets: float | str | Sequence[float | str] | None = None,
    episodes: int | None = None,
    checkpoint: str = "last",
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    task: int = 0,
    trust: bool = False,
    device: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> EvalReport:
    """Evaluate a policy as ``seqrl eval`` does; what is not given is as in its run.

    Args:
        policy: a run, a run folder or checkpoint, a policy or an agent.
        targets: target returns: numbers, ``"p90"``, ``"max*1.5"``, ``"n100"``.
        episodes: per target.
        checkpoint: ``last``, ``best``, a step or a path, where ``policy`` is a run.
        env: another environment.
        env_kwargs: its arguments; over the policy's own where the environment is its own.
        task: which of the policy's tasks.
        trust: the checkpoint may name agent code to import.
        device: where a loaded policy computes; the run's own device, or the CPU.
        progress: called with episodes done, planned, and steps so far.
        options: other fields of ``seqrl.evaluation.EvalConfig``.

    Raises:
        SeqrlError: no such policy, or an environment that does not fit it.
    """
    from seqrl.evaluation import EvalConfig
    from seqrl.experiment import Run, evaluate_agent

    stored: dict[str, Any] = {}
    if isinstance(policy, Run):
        policy, device = policy.dir, device or policy.device
    if isinstance(policy, (str, Path)):
        from seqrl.policy import load_policy

        stored = stored_eval_settings(policy)
        policy = load_policy(policy, checkpoint, device or "cpu", trust, task=task)
    if targets is not None:
        options["targets"] = _plain("targets", targets)
    if episodes is not None:
        options["episodes"] = episodes
    config = build(EvalConfig, merge(stored, options), "evaluate")
    own = getattr(policy, "agent", policy).tasks[task]
    if env_kwargs is not None and env in (None, own.env_id):
        env_kwargs = {**own.env_kwargs, **env_kwargs}
    return evaluate_agent(
        policy, config, env_id=env, env_kwargs=env_kwargs, task=task, progress=progress
    )


def evaluate_tasks(
    policy: Any,
    *,
    tasks: Sequence[int] | None = None,
    checkpoint: str = "last",
    trust: bool = False,
    device: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> TaskReports:
    """Evaluate the tasks of a policy of several, as ``seqrl eval`` does without ``--task``.

    Args:
        policy: see :func:`evaluate`, as are the other arguments.
        tasks: their numbers; all that name an environment by default.
        options: fields of ``seqrl.evaluation.EvalConfig``.

    Returns:
        ``reports`` of every task, and ``mean``, their mean normalised score.
    """
    from seqrl import evaluating
    from seqrl.evaluation import EvalConfig
    from seqrl.experiment import Run

    stored: dict[str, Any] = {}
    if isinstance(policy, Run):
        policy, device = policy.dir, device or policy.device
    if isinstance(policy, (str, Path)):
        from seqrl.policy import load_policy

        stored = stored_eval_settings(policy)
        policy = load_policy(policy, checkpoint, device or "cpu", trust)
    config = build(EvalConfig, merge(stored, options), "evaluate_tasks")
    return evaluating.evaluate_tasks(policy, config, tasks=tasks, progress=progress)


def stored_eval_settings(path: str | Path) -> dict[str, Any]:
    """The evaluation settings of the run that a path lies in; none for a bare checkpoint.

    Raises:
        SeqrlError: there is nothing at that path.
    """
    from seqrl.runfolder import open_run

    if not Path(path).exists():
        raise SeqrlError(f"{path} does not exist", hint="runs here: seqrl list runs")
    try:
        settings = open_run(path).config()[0].get("eval") or {}
    except SeqrlError:
        return {}
    return {**settings, "video": None}


def make_agent(
    name: str, data: Trajectories | TaskSpec | Sequence[Trajectories | TaskSpec], **config: Any
) -> Agent:
    """An untrained agent for data, or for a task without any.

    Args:
        name: registered name or ``module:Class``.
        data: one or several; a bare task gets neutral statistics (mean 0, deviation 1).
        config: fields of the agent's config.

    Raises:
        SeqrlError: unknown agent or option, or a task it cannot serve.

    >>> data = load_dataset("tmaze-smoke")
    >>> make_agent("bc", data, width=16).config.width
    16
    """
    from seqrl.agents.registry import agent_class
    from seqrl.spec import TaskSpec

    cls = agent_class(name)
    own = build(cls.config_class, config, f"agent '{name}'", "option")
    items: list[Any] = list(data) if isinstance(data, (list, tuple)) else [data]
    tasks = [d if isinstance(d, TaskSpec) else d.task for d in items]
    cls.check_tasks(tasks)
    stats = []
    for d in items:
        if isinstance(d, TaskSpec):
            stats.append(_neutral_stats(d))
        else:
            stats.append(dataclasses.replace(d.stats, custom=cls.statistics(own, d)))
    return cls(own, tasks, stats)


def _neutral_stats(task: TaskSpec) -> DataStats:
    from seqrl.spec import DataStats

    size = task.observation.shape[0] if task.observation.kind == "vector" else 0
    quantiles = ("min", "p10", "p25", "p50", "p75", "p90", "max", "mean")
    return DataStats(
        obs_mean=(0.0,) * size,
        obs_std=(1.0,) * size,
        return_scale=1.0,
        return_quantiles=dict.fromkeys(quantiles, 0.0),
        reward_min=0.0,
        reward_max=0.0,
        rtg_min=0.0,
        rtg_max=0.0,
        action_low=task.action.low,
        action_high=task.action.high,
        action_counts=(1,) * task.action.n if task.action.kind == "discrete" else (),
        episodes=0,
        steps=0,
        max_episode_length=task.max_episode_steps or 1,
    )

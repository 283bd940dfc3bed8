"""An experiment: data, agent, training and evaluation bound into one run folder.

::

    load -> hold out -> agent from statistics -> run folder -> train -> final evaluation -> summary

The command line and ``seqrl.train`` both call :func:`run_experiment`, so they give the same run.
Nothing heavy is imported before an experiment is prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import seqrl
from seqrl.datasets.catalog import LoadOptions
from seqrl.errors import RunInterrupted, SeqrlError
from seqrl.evaluating import (
    TaskReports,
    evaluable,
    evaluate_agent,
    evaluate_tasks,
    periodic_evaluator,
)
from seqrl.presets import merge
from seqrl.presets.settings import build, differences
from seqrl.spec import to_plain

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent, AgentConfig
    from seqrl.datasets.trajectories import Trajectories
    from seqrl.eval_report import EvalReport
    from seqrl.evaluation import EvalConfig
    from seqrl.policy import Policy
    from seqrl.runfolder import RunFolder
    from seqrl.trainer import TrainConfig, Trainer, TrainResult

ROOT = "runs"
"""Folder of runs that are given no folder of their own."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what a run does."""

    agent: str
    """Registered name, or module:Class."""
    agent_config: AgentConfig
    data: tuple[str, ...]
    """URIs or names of the data."""
    load: LoadOptions
    train: TrainConfig
    eval: EvalConfig
    """Of the final evaluation; the periodic one differs in episodes and stream alone."""
    eval_episodes: int = 10
    """Episodes per target of the evaluations during training."""
    eval_tasks: int | None = None
    """Tasks that each evaluation during training asks, spread evenly; none means all."""
    evaluate: bool = True
    """Evaluate in the environment of the data, where they name one."""
    loggers: tuple[str, ...] = ("jsonl", "csv", "tensorboard")
    """Where metrics go: jsonl, csv, tensorboard, wandb, or none."""
    init_from: str | None = None
    """Run or checkpoint whose weights training starts from."""
    preset: str | None = None
    """Preset the settings began with, for the record."""

    def __post_init__(self) -> None:
        for name in ("eval_episodes", "eval_tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SeqrlError(f"{name} is {value}, must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into an equal config."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> ExperimentConfig:
        """A config from nested settings; what is not said takes the classes' defaults."""
        from seqrl.agents.registry import agent_class
        from seqrl.evaluation import EvalConfig
        from seqrl.trainer import TrainConfig

        rest = dict(settings)
        if not rest.get("agent"):
            raise SeqrlError("no agent named", hint="seqrl list agents")
        name = str(rest["agent"])
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(rest) - set(known)):
            raise SeqrlError(
                f"the config has no part '{unknown[0]}'", hint=f"its parts: {', '.join(known)}"
            )
        classes: dict[str, type] = {"load": LoadOptions, "train": TrainConfig, "eval": EvalConfig}
        parts: dict[str, Any] = {k: build(c, rest.get(k) or {}, k) for k, c in classes.items()}
        own, cls_own = rest.get("agent_config") or {}, agent_class(name).config_class
        parts["agent_config"] = build(cls_own, own, f"agent '{name}'", "option")
        parts |= {k: tuple(rest[k]) for k in ("data", "loggers") if k in rest}
        return cls(**{**rest, **parts})


# --- before training ---------------------------------------------------------------------------


@dataclass
class Prepared:
    """An experiment ready to be trained."""

    config: ExperimentConfig
    agent: Agent
    data: list[Trajectories]
    """All data of each task; ``training`` and ``holdout`` are parts of it."""
    training: list[Trajectories]
    holdout: list[Trajectories] | None
    notes: list[str] = field(default_factory=list)
    """What the user should know before it starts."""

    @property
    def evaluated(self) -> bool:
        """Whether an environment can and shall be asked."""
        return self.config.evaluate and bool(evaluable(self.agent.tasks))


def prepare(config: ExperimentConfig, data: Sequence[Trajectories] | None = None) -> Prepared:
    """Load the data, hold some out, build the agent, look at the environment.

    Args:
        data: what ``config.data`` names, where it is loaded already.

    Raises:
        SeqrlError: unknown data, an agent or environment that does not fit them.
    """
    from seqrl.datasets.catalog import load_sources
    from seqrl.trainer import hold_out

    data = list(data) if data is not None else load_sources(list(config.data), config.load)
    training, holdout = hold_out(data, config.train.holdout, config.train.seed)
    prepared = Prepared(config, make_agent(config, training), data, training, holdout)
    notes = prepared.notes
    for d in data:
        if guess := d.notes.get("env_guess"):
            notes.append(str(guess))
    if config.init_from is not None:
        notes += warm_start(prepared.agent, config.init_from)
    if prepared.evaluated:
        _check_environments(prepared)
    elif config.evaluate:
        decides = "the validation loss decides" if holdout else "nothing decides"
        notes.append(f"the data name no environment: no evaluation, {decides} what is best (--env)")
    return prepared


def make_agent(config: ExperimentConfig, data: Sequence[Trajectories]) -> Agent:
    """The agent with its first weights, which the training seed decides."""
    import torch

    from seqrl.agents.registry import agent_class

    cls = agent_class(config.agent)
    tasks = [d.task for d in data]
    cls.check_tasks(tasks)
    stats = []
    for d in data:
        facts = dict(cls.statistics(config.agent_config, d))
        if d.notes.get("delayed"):
            facts["delayed"] = True
        stats.append(dataclasses.replace(d.stats, custom=facts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return cls(config.agent_config, tasks, stats)


def warm_start(agent: Agent, source: str) -> list[str]:
    """Take over the weights of a run wherever name and shape agree; says what was left out."""
    import torch

    from seqrl.checkpoint import load_agent

    other, meta = load_agent(source)
    mine = agent.state_dict()
    tensors = {k: v for k, v in other.state_dict().items() if isinstance(v, torch.Tensor)}
    fitting = {k: v for k, v in tensors.items() if k in mine and mine[k].shape == v.shape}
    if not fitting:
        raise SeqrlError(
            f"no weight of {source} ('{meta.agent}') fits this agent", hint="drop --init-from"
        )
    agent.load_state_dict({**mine, **fitting})
    notes = [f"starts from {source} (step {meta.step}): {len(fitting)} of {len(mine)} tensors"]
    for name in sorted(tensors.keys() - fitting.keys()):
        here = tuple(mine[name].shape) if name in mine else "nothing of that name"
        notes.append(f"not taken over: {name} {tuple(tensors[name].shape)}, here {here}")
    return notes


def _check_environments(prepared: Prepared) -> None:
    """Make each environment once, so that a run does not fail at its first evaluation."""
    from seqrl.envs.pool import env_factory, make_pool, step_limit
    from seqrl.evaluation import trial_episodes
    from seqrl.rollout import check_spaces, check_trials

    tasks, settings = prepared.agent.tasks, prepared.config.eval
    for i in evaluable(tasks):
        task = tasks[i]
        try:
            keys = task.observation.keys
            factory = env_factory(task.env_id or "", task.env_kwargs, keys=keys)
            with make_pool(factory, 1, "sync") as pool:
                check_spaces(prepared.agent, pool, i)
                check_trials(settings.episodes, trial_episodes(prepared.agent, settings))
                step_limit(pool, settings.max_steps, task)
        except SeqrlError as e:
            hint = f"{e.hint}; or train without evaluating: --no-evaluate" if e.hint else None
            raise SeqrlError(e.message, hint=hint or "--no-evaluate trains without it") from e
    if left := [t.name for t in tasks if t.env_id is None]:
        prepared.notes.append(f"not evaluated, no environment is named: {', '.join(left)}")


# --- runs --------------------------------------------------------------------------------------


@dataclass
class Run:
    """A trained run: its folder, how training ended and what the final evaluation found."""

    folder: RunFolder
    config: ExperimentConfig
    result: TrainResult
    final: EvalReport | None
    """None where there was no environment to ask; of several tasks the first one's."""
    device: str = "cpu"
    tasks: TaskReports | None = None
    """The final evaluation of every task, where there are several."""

    @property
    def dir(self) -> Path:
        """The run folder."""
        return self.folder.dir

    def policy(self, checkpoint: str = "last") -> Policy:
        """The trained policy, ready to act."""
        from seqrl.policy import load_policy

        return load_policy(self.dir, checkpoint, self.device)

    def evaluate(self, checkpoint: str = "last", **options: Any) -> EvalReport:
        """Evaluate again; options are those of ``EvalConfig``, the run's own where not given."""
        settings = merge(to_plain(self.config.eval), {"video": None, **options})
        from seqrl.evaluation import EvalConfig

        return evaluate_agent(self.policy(checkpoint), build(EvalConfig, settings, "eval"))

    def summary(self) -> dict[str, Any]:
        """The outcome as plain JSON data."""
        r = self.result
        return {
            "run": str(self.dir),
            "agent": self.config.agent,
            "data": list(self.config.data),
            "seed": self.config.train.seed,
            "steps": r.step,
            "seconds": r.seconds,
            "metrics": r.metrics,
            "best": r.best,
            "final": None if self.final is None else self.final.summary,
            **(self.tasks.summary() if self.tasks is not None else {}),
        }


@dataclass(frozen=True)
class Watch:
    """Who looks on while an experiment runs; by default nobody."""

    stream: TextIO | None = None
    """Where the progress line goes."""
    started: Callable[[Prepared, Trainer, RunFolder], None] | None = None
    """Called once everything is checked and the folder made."""
    episodes: Callable[[int, int, int], None] | None = None
    """Called during the final evaluation with episodes done, planned, and steps so far."""


def run_experiment(
    config: ExperimentConfig,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    data: Sequence[Trajectories] | None = None,
    command: Sequence[str] | None = None,
    prepared: Prepared | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train from the beginning and evaluate.

    Args:
        out: exactly this folder; by default ``runs/DATA/AGENT/DATE_sSEED``.
        name: in place of the date.
        data: see :func:`prepare`.
        command: recorded in ``run.json``.
        prepared: from :func:`prepare`, where that was called already.
    """
    from seqrl.distributed import Processes
    from seqrl.runfolder import RunFolder

    ready = prepared or prepare(config, data)
    others = f"+{len(ready.data) - 1}" if len(ready.data) > 1 else ""
    folder = RunFolder(run_dir(config, ready.data[0].task.name + others, out, name))
    if Processes.from_env().first:
        sources = [{"source": d.source, "fingerprint": d.fingerprint} for d in ready.data]
        RunFolder.create(folder.dir, config=config.to_json(), command=command, data=sources)
    try:
        trainer = _trainer(ready, folder, watch or Watch())
    except SeqrlError:
        shutil.rmtree(folder.dir)  # a device or batch size that cannot be had: nothing was trained
        raise
    return _train(ready, trainer, folder, watch or Watch())


def run_dir(config: ExperimentConfig, data: str, out: str | Path | None, name: str | None) -> Path:
    """The folder of a new run."""
    from seqrl.runfolder import new_run_dir

    if out is not None:
        return Path(out)
    path = new_run_dir(ROOT, data, config.agent, config.train.seed)
    return path if name is None else path.parent / f"{name}_s{config.train.seed}"


def _trainer(ready: Prepared, folder: RunFolder, watch: Watch) -> Trainer:
    from seqrl.distributed import Processes
    from seqrl.loggers import make_loggers
    from seqrl.progress import ProgressSink
    from seqrl.trainer import Trainer

    config = ready.config
    first = Processes.from_env().first
    return Trainer(
        ready.agent,
        ready.training,
        config=config.train,
        run=folder,
        holdout=ready.holdout,
        evaluator=periodic_evaluator(config) if ready.evaluated else None,
        loggers=make_loggers(config.loggers, folder, config.to_json()) if first else (),
        progress=ProgressSink(watch.stream, log=folder.log),
        targets=config.eval.targets,
    )


def _train(
    ready: Prepared,
    trainer: Trainer,
    folder: RunFolder,
    watch: Watch,
    resume: bool = False,
    allow_change: bool = False,
) -> Run:
    """Train to the end, evaluate what was saved last, close the record."""
    if watch.started is not None:
        watch.started(ready, trainer, folder)
    result = trainer.fit(resume, allow_change=allow_change, finish=False)
    device = trainer.learner.device.type
    if not trainer.processes.first:
        return Run(folder, ready.config, result, None, device)
    found = None
    with stoppable(folder, "during the final evaluation", f"seqrl resume {folder.dir}"):
        if ready.evaluated:
            found = _final_evaluation(folder, ready, device, watch)
    several = found if len(ready.agent.tasks) > 1 else None
    final = None if found is None else found.reports[0]
    run = Run(folder, ready.config, result, final, device, several)
    folder.mark("done", step=result.step, summary=run.summary())
    return run


def _final_evaluation(folder: RunFolder, ready: Prepared, device: str, watch: Watch) -> TaskReports:
    """Evaluate the last checkpoint as ``seqrl eval`` does, into ``eval/final.json``."""
    from seqrl.policy import load_policy

    policy = load_policy(folder.dir, device=device)
    found = evaluate_tasks(policy, ready.config.eval, progress=watch.episodes)
    for i, report in zip(found.tasks, found.reports, strict=True):
        first = report is found.reports[0]
        folder.write_eval("final" if first else f"final_task{i}", report.to_json())
    return found


@contextlib.contextmanager
def stoppable(folder: RunFolder, doing: str, resume: str) -> Iterator[None]:
    """Ctrl-C or SIGTERM inside leaves a run marked as interrupted, which can be resumed.

    Args:
        doing: what goes on inside.
        resume: the command that goes on with it.
    """
    from seqrl.devices import StopNow, StopSignals

    signals = StopSignals()
    try:
        with signals, signals.urgent():
            yield
    except (StopNow, KeyboardInterrupt) as e:
        folder.mark("interrupted", text := f"interrupted {doing}")
        raise RunInterrupted(text, hint=resume) from e


# --- resuming ----------------------------------------------------------------------------------


def resume_experiment(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    allow_change: bool = False,
    data: Sequence[Trajectories] | None = None,
    watch: Watch | None = None,
) -> Run:
    """Continue a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        path: run folder, or anything inside it.
        overrides: nested settings; another ``train.steps`` is always allowed.
        allow_change: other settings and other data too.
        data: the run's data, where they cannot be loaded by name.

    Raises:
        SeqrlError: no run there, or settings or data that are not the run's.
    """
    from seqrl.distributed import Processes
    from seqrl.runfolder import CONFIG_SCHEMA, open_run, write_json

    folder = open_run(path)
    settings, upgrades = folder.config()
    before = ExperimentConfig.from_json(settings)
    config = ExperimentConfig.from_json(merge(settings, overrides or {}))
    notes = [*upgrades, *_settle(folder, before, config, allow_change)]
    # The weights come from the checkpoint, so where they once started no longer matters.
    ready = prepare(dataclasses.replace(config, init_from=None), data)
    ready.config, ready.notes = config, notes + ready.notes
    _check_data(folder, ready.data, allow_change)
    if config != before and Processes.from_env().first:
        record = {"schema": CONFIG_SCHEMA, "seqrl_version": seqrl.__version__}
        write_json(folder.dir / "config.json", {**record, "config": config.to_json()})
    watch = watch or Watch()
    trainer = _trainer(ready, folder, watch)
    return _train(ready, trainer, folder, watch, resume=True, allow_change=allow_change)


def _settle(
    folder: RunFolder, before: ExperimentConfig, after: ExperimentConfig, allow_change: bool
) -> list[str]:
    """What changed and what follows from it; refuses what needs ``allow_change``."""
    from seqrl.checkpoint import saved_steps
    from seqrl.optim import describe_extension

    changed = differences(before.to_json(), after.to_json())
    old, new = before.train.steps, after.train.steps
    others = [c.removeprefix("train.") for c in changed if not c.startswith("train.steps ")]
    if others and (not allow_change or after.agent != before.agent):
        hint = "drop them, or add --allow-change" if after.agent == before.agent else "train anew"
        raise SeqrlError(f"settings differ from the run's: {'; '.join(others)}", hint=hint)
    notes = [f"changed: {c}" for c in others]
    if new != old:
        now = max(saved_steps(folder.checkpoints), default=0)
        if new < now:  # refused here, before the run's settings are touched
            text = f"the run is at step {now}, past the {new} asked for"
            raise SeqrlError(text, hint=f"--steps {now} or more")
        effect = describe_extension(after.train.optim, now, old, new)
        notes.insert(0, f"steps {old} → {new}; {effect}")
    return notes


def _check_data(folder: RunFolder, data: Sequence[Trajectories], allow_change: bool) -> None:
    before = [d.get("fingerprint") for d in folder.read().get("data", ())]
    now = [d.fingerprint for d in data]
    if before and before != now and not allow_change:
        raise SeqrlError(
            f"the data are not those the run began with: {', '.join(d.source for d in data)} "
            f"(fingerprint {', '.join(map(str, before))} → {', '.join(now)})",
            hint="restore them, or add --allow-change to go on with these",
        )

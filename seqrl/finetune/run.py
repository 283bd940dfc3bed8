"""A fine-tuning run: an offline run goes on in its environment, in a run folder of its own.

::

    load -> evaluate -> first round -> loop -> evaluate -> summary (before, after)

The evaluation before and the one after are those of ``seqrl eval``, over the same episodes.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from seqrl import checkpoint as ckpt
from seqrl.agents.agent import Agent
from seqrl.datasets.catalog import load_sources
from seqrl.datasets.trajectories import Trajectories
from seqrl.devices import resolve_device
from seqrl.distributed import Processes
from seqrl.errors import RunInterrupted, SeqrlError
from seqrl.eval_report import EvalReport
from seqrl.evaluating import evaluate_agent, periodic_evaluator
from seqrl.experiment import ExperimentConfig, run_dir, stoppable
from seqrl.finetune.collecting import Collector, Round, check_can_act
from seqrl.finetune.config import FinetuneConfig, Schedule
from seqrl.finetune.loop import ActorCritic, Method, OnlineTrainer, WeightedBC
from seqrl.loggers import make_loggers
from seqrl.optim import OptimConfig
from seqrl.policy import Policy, load_policy
from seqrl.presets import merge
from seqrl.progress import ProgressSink
from seqrl.runfolder import RunFolder, open_run, read_json
from seqrl.targets import DEFAULT_TARGETS, resolve_targets
from seqrl.trainer import EvalOutcome, TrainConfig, TrainResult

BEFORE, FINAL = "before", "final"
"""Names of the evaluations before and after, under ``eval/``."""


@dataclass(frozen=True)
class Watch:
    """Who looks on; by default nobody."""

    stream: TextIO | None = None
    """Where the progress line goes."""
    say: Callable[[str], None] | None = None
    """Called with a line about what happens next."""
    episodes: Callable[[int, int, int], None] | None = None
    """Called during the long evaluations with episodes done, planned, and steps so far."""


@dataclass
class Tuning:
    """A run to be fine-tuned, everything checked."""

    config: FinetuneConfig
    experiment: ExperimentConfig
    """Of the fine-tuning run: the offline run's, with other training settings."""
    agent: Agent
    origin: str
    """The checkpoint it starts from."""
    step: int
    """Updates behind that checkpoint."""
    targets: tuple[Any, ...]
    """Suggested target returns of that checkpoint."""

    @property
    def policy(self) -> Policy:
        """The agent with what is known about it."""
        info = {"checkpoint": self.origin, "step": self.step, "targets": self.targets}
        return Policy(self.agent, info)

    @property
    def first_target(self) -> float:
        """Target return of the first round."""
        if not self.agent.uses_returns:
            return 0.0
        given = (self.config.target,) if self.config.target else self.experiment.eval.targets
        asked = given or self.targets or DEFAULT_TARGETS
        return resolve_targets([asked[-1]], self.agent.stats[0], self.agent.tasks[0])[0].value


@dataclass
class FinetuneRun:
    """A finished fine-tuning run."""

    folder: RunFolder
    tuning: Tuning
    result: TrainResult
    env_steps: int
    before: EvalReport
    final: EvalReport

    def summary(self) -> dict[str, Any]:
        """The outcome as plain JSON data."""
        r, t = self.result, self.tuning
        return {
            "run": str(self.folder.dir),
            "source": t.origin,
            "method": t.config.method,
            "agent": t.experiment.agent,
            "data": list(t.experiment.data),
            "seed": t.config.seed,
            "steps": r.step,
            "env_steps": self.env_steps,
            "seconds": r.seconds,
            "metrics": r.metrics,
            "best": r.best,
            "before": self.before.summary,
            "final": self.final.summary,
        }


# --- preparing ---------------------------------------------------------------------------------


def prepare(
    source: str | Path,
    config: FinetuneConfig,
    *,
    checkpoint: str = "last",
    evaluation: Mapping[str, Any] | None = None,
    eval_episodes: int = 10,
    loggers: Sequence[str] | None = None,
    trust: bool = False,
) -> Tuning:
    """Load a run and check that it can be fine-tuned as asked.

    Args:
        source: run folder, or anything inside it.
        config: settings.
        checkpoint: which of its checkpoints to start from.
        evaluation: settings of evaluations that differ from the run's.
        eval_episodes: episodes per target of the evaluations on the way.
        loggers: where metrics go; as in the run by default.
        trust: the checkpoint may name agent code to import.

    Raises:
        SeqrlError: no run there, an agent or task the method cannot take, or several processes.
    """
    if not Processes.from_env().alone:
        raise SeqrlError("fine-tuning runs in one process", hint="start it without torchrun")
    settings = dict(open_run(source).config()[0])
    settings.pop("finetune", None)
    agent, meta, path = _load(source, checkpoint, trust)
    _move(agent, config.env, config.env_kwargs)
    check_can_act(agent)
    offline = ExperimentConfig.from_json(settings)
    own = merge(settings, {"eval": dict(evaluation or {})})
    own["train"] = _train_config(offline.train, config).to_json()
    own["eval_episodes"] = eval_episodes
    own |= {"init_from": str(path), "preset": None}
    if loggers is not None:
        own["loggers"] = tuple(loggers)
    experiment = ExperimentConfig.from_json(own)
    e = experiment.eval
    if any(o is not None for o in (e.acting, e.decode, e.temperature)):
        agent.set_acting(e.acting, e.decode, e.temperature)
    tuning = Tuning(config, experiment, agent, str(path), meta.step, tuple(meta.targets))
    _method(tuning, None)  # refuses what it cannot take
    _ = tuning.first_target
    return tuning


def _load(source: str | Path, checkpoint: str, trust: bool) -> tuple[Agent, ckpt.PolicyMeta, Path]:
    path = ckpt.find_checkpoint(source, checkpoint)
    agent, meta = ckpt.load_agent(path, trust=trust)
    return agent, meta, path


def _move(agent: Agent, env: str | None, env_kwargs: Mapping[str, Any]) -> None:
    """Let the agent's task be posed by another environment, where one is named."""
    task = agent.tasks[0]
    chosen = env or task.env_id
    kwargs = {**(task.env_kwargs if chosen == task.env_id else {}), **env_kwargs}
    if (chosen, kwargs) == (task.env_id, task.env_kwargs):
        return
    # Reference scores and step limit speak of the environment the data came from.
    moved = dataclasses.replace(
        task,
        name=chosen or task.name,
        env_id=chosen,
        env_kwargs=kwargs,
        max_episode_steps=None,
        reference_scores=None,
        reference_source=None,
    )
    agent.tasks = (moved, *agent.tasks[1:])


def _train_config(offline: TrainConfig, c: FinetuneConfig) -> TrainConfig:
    """Training settings of a method: for cloning the offline run's, without its warm-up."""
    if c.method == "actor_critic":
        optim = OptimConfig(lr=c.lr or 1e-3, weight_decay=1e-3, grad_clip=0.5)
        batch_size = c.batch_size or 128
    else:
        optim = dataclasses.replace(
            offline.optim, lr=c.lr or offline.optim.lr, warmup_steps=0, schedule="constant"
        )
        batch_size = c.batch_size or offline.batch_size
    return TrainConfig(
        steps=c.number("steps"),
        batch_size=batch_size,
        seed=c.seed,
        optim=optim,
        device=c.device,
        log_every=c.log_every,
        eval_every=c.every("eval"),
        save_every=c.every("save"),
        keep=offline.keep,
        holdout=0.0,
    )


def _method(t: Tuning, offline: Trajectories | None) -> Method:
    batch_size = t.experiment.train.batch_size
    if t.config.method == "actor_critic":
        return ActorCritic(t.agent, t.config, batch_size)
    return WeightedBC(t.agent, t.config, batch_size, offline)


def _offline_data(t: Tuning) -> Trajectories | None:
    """The data of the offline run, under the task of the environment collected in."""
    if t.config.method != "weighted_bc" or not t.config.bc.offline:
        return None
    try:
        (data,) = load_sources(list(t.experiment.data), t.experiment.load)
    except SeqrlError as e:
        raise SeqrlError(
            f"the data of the run cannot be loaded: {e.message}",
            hint="--bc.no-offline learns from new episodes alone",
        ) from e
    return dataclasses.replace(data, task=t.agent.tasks[0])


# --- running -----------------------------------------------------------------------------------


def run_finetune(
    tuning: Tuning,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    command: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> FinetuneRun:
    """Fine-tune into a new run folder.

    Args:
        out: exactly this folder; by default ``runs/ENVIRONMENT/AGENT-METHOD/DATE_sSEED``.
        name: in place of the date.
        command: recorded in ``run.json``.
        watch: who looks on.
    """
    t = tuning
    offline = _offline_data(t)
    names = dataclasses.replace(t.experiment, agent=f"{t.agent.name}-{t.config.method}")
    place = run_dir(names, t.agent.tasks[0].name, out, name)
    settings = {**t.experiment.to_json(), "finetune": t.config.to_json()}
    folder = RunFolder.create(place, config=settings, command=command)
    try:
        resolve_device(t.config.device)
        return _run(t, folder, offline, watch or Watch(), resume=False)
    except RunInterrupted:
        raise
    except SeqrlError:
        if not ckpt.saved_steps(folder.checkpoints) and not _has(folder, BEFORE):
            shutil.rmtree(folder.dir)  # refused before anything was done
        raise


def resume_finetune(
    path: str | Path, *, trust: bool = False, watch: Watch | None = None
) -> FinetuneRun:
    """Continue an interrupted fine-tuning run from its last checkpoint.

    Weighted cloning goes on bit for bit; actor-critic computes its remembered states anew.

    Args:
        path: run folder, or anything inside it.
        trust: its checkpoint may name agent code to import.
        watch: who looks on.

    Raises:
        SeqrlError: no such run, or one that is complete.
    """
    folder = open_run(path)
    settings = dict(folder.config()[0])
    if "finetune" not in settings:
        raise SeqrlError(f"{path} is no fine-tuning run", hint=f"seqrl resume {path}")
    if folder.read().get("status") == "done":
        raise SeqrlError(f"{path} is complete", hint=f"fine-tune it further: seqrl finetune {path}")
    config = FinetuneConfig.from_json(settings.pop("finetune"))
    experiment = ExperimentConfig.from_json(settings)
    started = bool(ckpt.saved_steps(folder.checkpoints))
    origin = str(experiment.init_from)
    agent, meta, _ = _load(folder.dir if started else origin, "last", trust)
    _move(agent, config.env, config.env_kwargs)
    t = Tuning(config, experiment, agent, origin, meta.step, tuple(meta.targets))
    return _run(t, folder, _offline_data(t), watch or Watch(), resume=True)


def _run(
    t: Tuning, folder: RunFolder, offline: Trajectories | None, watch: Watch, resume: bool
) -> FinetuneRun:
    say = watch.say or (lambda text: None)
    stopped = (folder, "outside training", f"seqrl finetune {folder.dir} --resume")
    with stoppable(*stopped):
        before = _report(folder, BEFORE, t, watch) or _measure(folder, BEFORE, t.policy, t, watch)
        say(f"before  {_words(before)}")
        outcome = _first_outcome(folder, t)
        collector = _collector(t, folder)
        first = collector.stored(0) if resume else None
        first = first or _first_round(t, collector)
    trainer = _trainer(t, folder, offline, collector, first, outcome, watch)
    result = trainer.fit(resume, finish=False)
    with stoppable(*stopped):
        policy = load_policy(folder.dir, device=trainer.learner.device, trust=True)
        final = _measure(folder, FINAL, policy, t, watch)
    run = FinetuneRun(folder, t, result, trainer.env_steps, before, final)
    folder.mark("done", step=result.step, summary=run.summary())
    return run


def _collector(t: Tuning, folder: RunFolder) -> Collector:
    chosen = t.experiment.eval.rtg_update
    return Collector(
        t.agent,
        folder.dir / "rounds",
        t.config.seed,
        t.policy.rtg_update if chosen == "auto" else chosen,
        jitter=t.config.target_jitter,
        remember=t.config.method == "actor_critic",
        max_steps=t.experiment.eval.max_steps,
    )


def _first_round(t: Tuning, collector: Collector) -> Round:
    method, steps = _method(t, None), t.config.number("steps")
    sigma = Schedule.parse(t.config.noise, steps)(0) if method.explores(0) else 0.0
    return collector.collect(0, t.config.number("first"), t.first_target, sigma)


def _trainer(
    t: Tuning,
    folder: RunFolder,
    offline: Trajectories | None,
    collector: Collector,
    first: Round,
    outcome: EvalOutcome | None,
    watch: Watch,
) -> OnlineTrainer:
    e = t.experiment
    return OnlineTrainer(
        t.agent,
        first,
        outcome=outcome,
        method=_method(t, offline),
        collector=collector,
        finetune=t.config,
        target=t.first_target,
        config=e.train,
        run=folder,
        evaluator=periodic_evaluator(e) if t.config.every("eval") else None,
        loggers=make_loggers(e.loggers, folder, e.to_json()),
        progress=ProgressSink(watch.stream, log=folder.log),
        targets=e.eval.targets or t.targets,
    )


# --- evaluations -------------------------------------------------------------------------------


def _measure(folder: RunFolder, name: str, policy: Policy, t: Tuning, watch: Watch) -> EvalReport:
    report = evaluate_agent(policy, t.experiment.eval, progress=watch.episodes)
    folder.write_eval(name, report.to_json())
    return report


def _has(folder: RunFolder, name: str) -> bool:
    return (folder.eval / f"{name}.json").is_file()


def _report(folder: RunFolder, name: str, t: Tuning, watch: Watch) -> EvalReport | None:
    """An evaluation made before the run was interrupted."""
    if not _has(folder, name):
        return None
    return EvalReport.from_json(read_json(folder.eval / f"{name}.json", "remove it"))


def _first_outcome(folder: RunFolder, t: Tuning) -> EvalOutcome | None:
    """The evaluation at step 0; None where nothing is evaluated on the way, or it is on file."""
    if not t.config.every("eval") or ckpt.saved_steps(folder.checkpoints):
        return None
    return periodic_evaluator(t.experiment)(t.agent, 0)


def _words(report: EvalReport) -> str:
    """The result at the last-listed target in a few words."""
    last = report.summary[-1]
    low, high = last["return"]["ci"]
    at = "" if last["target_label"] == "-" else f" at target {last['target_label']}"
    return f"{last['n']} ep{at}: return {last['return']['mean']:.4g} [{low:.4g}, {high:.4g}]"

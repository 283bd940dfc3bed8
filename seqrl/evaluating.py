"""Evaluating all tasks of a policy: on the way of a training run, at its end, and ever after.

A policy of one task gives one report. One of several gives a report each and a mean normalised
score over the tasks, which needs a scale for every task: where no reference scores are known,
random play is 0 and the 90 % quantile of the task's training returns is 100.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent
    from seqrl.eval_report import EvalReport
    from seqrl.evaluation import EvalConfig
    from seqrl.experiment import ExperimentConfig
    from seqrl.spec import TaskSpec
    from seqrl.training import EvalOutcome

Progress = Callable[[int, int, int], None]


def task_labels(tasks: Sequence[TaskSpec]) -> list[str]:
    """A name for each task; those that share a name get their number as well."""
    names = [t.name for t in tasks]
    return [n if names.count(n) == 1 else f"{n} #{i}" for i, n in enumerate(names)]


def evaluable(tasks: Sequence[TaskSpec]) -> list[int]:
    """Numbers of the tasks that name an environment."""
    return [i for i, t in enumerate(tasks) if t.env_id is not None]


def evaluate_agent(
    agent: Any, config: EvalConfig, info: Mapping[str, Any] | None = None, **options: Any
) -> EvalReport:
    """``seqrl.evaluation.evaluate`` with what is known of the training data put into ``info``."""
    from seqrl.evaluation import evaluate

    bare = getattr(agent, "agent", agent)
    delayed = any(s.custom.get("delayed", False) for s in getattr(bare, "stats", ()))
    return evaluate(agent, config=config, info={**(info or {}), "delayed": delayed}, **options)


@dataclasses.dataclass
class TaskReports:
    """What an evaluation of several tasks found."""

    tasks: list[int]
    """Numbers of the tasks evaluated."""
    labels: list[str]
    reports: list[EvalReport]

    @property
    def mean(self) -> float | None:
        """Mean over the tasks of the normalised score at the last-listed target.

        None where a task has none.
        """
        scores = [r.summary[-1]["normalized"] for r in self.reports]
        if any(s is None for s in scores):
            return None
        return math.fsum(s["mean"] for s in scores) / len(scores)

    def summary(self) -> dict[str, Any]:
        """The result of every task and their mean as plain JSON data."""
        rows = zip(self.tasks, self.labels, self.reports, strict=True)
        return {
            "tasks": [{"task": i, "name": n, "summary": r.summary} for i, n, r in rows],
            "mean_normalized": self.mean,
        }

    def to_json(self) -> dict[str, Any]:
        """Every report in full, and the mean."""
        rows = zip(self.tasks, self.labels, self.reports, strict=True)
        full = [{"task": i, "name": n, **r.to_json()} for i, n, r in rows]
        return {"tasks": full, "mean_normalized": self.mean}

    def rows(self) -> list[list[str]]:
        """Cells of a table: task, target, episodes, return with its interval, score, success."""
        out = []
        for i, label, report in zip(self.tasks, self.labels, self.reports, strict=True):
            last = report.summary[-1]
            low, high = last["return"]["ci"]
            form = ".0f" if max(abs(low), abs(high)) >= 100 else ".2f"
            score, win = last["normalized"], last["success"]
            out.append(
                [
                    f"{i} {label}",
                    str(last["target_label"]),
                    str(last["n"]),
                    f"{last['return']['mean']:{form}} [{low:{form}}, {high:{form}}]",
                    "-" if score is None else f"{round(score['mean'], 1) + 0.0:.1f}",
                    "-" if win is None else f"{win['rate']:.2f}",
                ]
            )
        return out

    HEAD = ("TASK", "TARGET", "EPISODES", "RETURN [95% CI]", "NORM.", "SUCCESS")

    def line(self) -> str:
        """The mean in a few words."""
        n = len(self.reports)
        mean = "-" if self.mean is None else f"{round(self.mean, 1) + 0.0:.1f}"
        return f"mean normalised {mean} over {n} task{'' if n == 1 else 's'}"


def evaluate_tasks(
    agent: Any,
    config: EvalConfig,
    info: Mapping[str, Any] | None = None,
    tasks: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> TaskReports:
    """Evaluate several tasks of a policy, each in its own environment.

    Args:
        agent: an agent or a :class:`seqrl.policy.Policy`.
        config: of every task; each resolves targets such as ``p90`` from its own data.
        info: see :func:`seqrl.evaluation.evaluate`.
        tasks: their numbers; all that name an environment by default.
        progress: called with episodes done, planned, and steps so far, task by task.

    Raises:
        SeqrlError: no task names an environment.
    """
    specs = getattr(agent, "agent", agent).tasks
    numbers = evaluable(specs) if tasks is None else list(tasks)
    if not numbers:
        raise SeqrlError("the data name no environment to evaluate in", hint="add --env ID")
    labels = task_labels(specs)
    reports = []
    for i in numbers:
        own = task_config(config, specs[i], labels[i], several=len(specs) > 1)
        reports.append(evaluate_agent(agent, own, info, task=i, progress=progress))
    return TaskReports(numbers, [labels[i] for i in numbers], reports)


def task_config(config: EvalConfig, task: TaskSpec, label: str, several: bool) -> EvalConfig:
    """The config for one task of several: a scale for its score, a video folder of its own."""
    from seqrl.scores import reference_scores

    if not several:
        return config
    changes: dict[str, Any] = {}
    if config.normaliser == "auto" and reference_scores(task) is None:
        changes["normaliser"] = "dataset"
    if config.video is not None:
        changes["video"] = str(Path(config.video) / label.replace("/", "_"))
    return dataclasses.replace(config, **changes)


def periodic_evaluator(config: ExperimentConfig) -> Callable[[Agent, int], EvalOutcome]:
    """The evaluator of a training run: few episodes, of a stream that the final one never uses.

    Of several tasks it asks ``config.eval_tasks``, spread evenly over their list; the best
    checkpoint is then decided by the mean normalised score.
    """
    from seqrl.evaluation import to_outcome, trial_episodes
    from seqrl.rollout import PERIODIC
    from seqrl.training import EvalOutcome

    settings = dataclasses.replace(
        config.eval, episodes=config.eval_episodes, stream=PERIODIC, video=None
    )

    def evaluator(agent: Agent, step: int) -> EvalOutcome:
        numbers = _spread(evaluable(agent.tasks), config.eval_tasks)
        each = trial_episodes(agent, settings)  # a whole number of trials
        whole = dataclasses.replace(settings, episodes=-(-settings.episodes // each) * each)
        found = evaluate_tasks(agent, whole, {"step": step}, numbers)
        outcomes = [to_outcome(r) for r in found.reports]
        if len(agent.tasks) == 1:
            one = outcomes[0]
            plain = {k.removeprefix("eval/"): v for k, v in one.scalars.items()}
            return EvalOutcome(one.score, plain, one.report, one.line)
        scalars: dict[str, float] = {}
        for label, o in zip(found.labels, outcomes, strict=True):
            scalars |= {f"{label}/{k.removeprefix('eval/')}": v for k, v in o.scalars.items()}
        mean = found.mean
        if mean is None:  # without a common scale: returns as they are
            mean = math.fsum(o.score for o in outcomes) / len(outcomes)
        else:
            scalars["normalized"] = mean
        return EvalOutcome(mean, scalars, found.to_json(), f"eval {found.line()}")

    return evaluator


def _spread(numbers: Sequence[int], most: int | None) -> list[int]:
    """At most so many of the numbers, evenly spread, the first one among them."""
    n = len(numbers)
    k = n if most is None else min(most, n)
    return [numbers[i * n // k] for i in range(k)]

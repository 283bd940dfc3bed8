"""What a cell will cost, from a few timed updates and a few timed environment steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.bench.cells import Cell
from seqrl.training import Callback

if TYPE_CHECKING:
    from seqrl.experiment import ExperimentConfig, Prepared
    from seqrl.trainer import Trainer

_WARM, _TIMED, _PATIENCE = 2, 8, 20.0
_STEPS = 20
"""Environment steps of the timed rollout."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one core."""

    update: float
    """Of one update."""
    training: float
    measuring: float

    @property
    def total(self) -> float:
        """Of the whole cell."""
        return self.training + self.measuring


def seconds_per_update(
    config: ExperimentConfig,
    ready: Prepared | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of one update by ``clock``, data included, after two to warm up.

    The weights that come of it are thrown away.
    """
    import dataclasses

    from seqrl.experiment import prepare
    from seqrl.trainer import Trainer

    ready = ready or prepare(dataclasses.replace(config, evaluate=False))
    watch = _Stopwatch(clock)
    # Rows, checkpoints and evaluations are not part of an update; nothing is written.
    train = dataclasses.replace(config.train, steps=_WARM + _TIMED, eval_every=0, save_every=0)
    train = dataclasses.replace(train, log_every=_WARM + _TIMED)
    trainer = Trainer(ready.agent, ready.training, config=train, loggers=(), callbacks=[watch])
    with contextlib.suppress(_Patience):
        trainer.fit()
    return float(np.median(np.diff(watch.times)[_WARM - 1 :]))


class _Patience(Exception):
    """Enough updates were timed."""


class _Stopwatch(Callback):
    """Notes when updates end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []

    def on_step(self, trainer: Trainer, step: int) -> None:
        """After every update."""
        self.times.append(self.clock())
        if self.times[-1] - self.times[0] > _PATIENCE and step > _WARM + 1:
            raise _Patience


def estimate(cell: Cell) -> Estimate:
    """What an unfinished cell will cost, training from the beginning."""
    import dataclasses

    from seqrl.experiment import ExperimentConfig, prepare

    plan = cell.plan
    if plan["kind"] == "speed":
        limit = float(plan["limits"].get("seconds", 60))
        return Estimate(0.0, 0.0, limit * len(plan["batches"]))
    if plan["settings"] is None:
        return Estimate(0.0, 0.0, 0.0)
    config = ExperimentConfig.from_json(plan["settings"])
    ready = prepare(dataclasses.replace(config, evaluate=False))
    # The time of cores rather than of the clock on the wall: what else runs here does not count.
    # A GPU's work is in neither; there, waiting for it is what takes the time.
    clock = time.process_time if ready.agent.device.type == "cpu" else time.perf_counter
    measuring = _measuring(plan, config, ready, clock)
    update = seconds_per_update(config, ready, clock)
    training = plan["seconds"] or update * config.train.steps
    return Estimate(update, training, measuring)


def _measuring(
    plan: Mapping[str, Any], config: ExperimentConfig, ready: Prepared, clock: Callable[[], float]
) -> float:
    """Seconds of all evaluations: those of a few steps, times the steps there will be at most."""
    task = ready.agent.tasks[0]
    longest = task.max_episode_steps or ready.agent.stats[0].max_episode_length
    usual = len(config.eval.targets or (0,) * 3)
    steps = 0
    for m in plan["measures"]:
        episodes = int(m["options"].get("episodes") or config.eval.episodes)
        targets = len(m["options"].get("targets") or config.eval.targets or (0,) * 3)
        steps += (m["x"] or longest) * _blocks(episodes * targets)
    if config.evaluate:
        often = sum(config.train.due("eval", k + 1) for k in range(config.train.steps))
        steps += longest * often * _blocks(config.eval_episodes * usual)
        steps += longest * _blocks(config.eval.episodes * usual)
    return steps * _seconds_per_step(plan["measures"][0]["options"], ready, clock)


def _blocks(episodes: int) -> int:
    """Rounds of 16 environments."""
    return -(-episodes // 16)


def _seconds_per_step(
    options: Mapping[str, Any], ready: Prepared, clock: Callable[[], float]
) -> float:
    """Of 16 environments at once."""
    from seqrl import api

    left = ("checkpoint", "trial_episodes", "contexts", "context_sizes")
    few = {k: v for k, v in options.items() if k not in left}
    few |= {"episodes": 16, "max_steps": _STEPS, "targets": ["max"], "normaliser": "none"}
    few["trial_episodes"] = 1 if ready.agent.memory == "trial" else None
    begin = clock()
    api.evaluate(ready.agent, **few)
    return (clock() - begin) / _STEPS

"""The on-policy loop: the training loop of offline runs, with a round of episodes now and then.

::

    round 0, updates 0 .. k-1, round 1, updates k .. 2k-1, ...

Everything but the rounds (rows of metrics, evaluations, checkpoints, signals, resuming) is
:class:`seqrl.trainer.Trainer`'s.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from seqrl.agents.actor import RecurrentActor
from seqrl.agents.agent import Agent
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.finetune.actor_critic import ActorCriticLearner
from seqrl.finetune.collecting import Collector, Round
from seqrl.finetune.config import FinetuneConfig, Schedule
from seqrl.finetune.replay import Replay
from seqrl.finetune.weighted import EpisodeSampler, WeightedPool
from seqrl.learner import Learner
from seqrl.runfolder import read_json
from seqrl.trainer import EvalOutcome, TrainConfig, Trainer


class Method(ABC):
    """What a method does with rounds of episodes."""

    remembers = False
    """Whether rounds have to carry acting states."""

    @abstractmethod
    def learner(self, plain: Learner, train: TrainConfig) -> Learner:
        """The learner to use in place of the plain one; that one where it will do."""

    @abstractmethod
    def add(self, found: Round) -> dict[str, float]:
        """Take in a round; numbers for the metrics."""

    @abstractmethod
    def batch(self, update: int) -> Any:
        """What the learner learns from in an update (from 0)."""

    def explores(self, update: int) -> bool:
        """Whether actions are disturbed in a round before an update."""
        return True


class WeightedBC(Method):
    """See :mod:`seqrl.finetune.weighted`.

    Args:
        agent: any agent.
        config: settings.
        batch_size: windows of a batch.
        offline: data of the offline run; None leaves them out.
    """

    def __init__(
        self, agent: Agent, config: FinetuneConfig, batch_size: int, offline: Trajectories | None
    ):
        self.window, self.batch_size, self.seed = agent.config.window(), batch_size, config.seed
        self.pool = WeightedPool(config.bc, offline)
        self.sampler: EpisodeSampler | None = None

    def learner(self, plain: Learner, train: TrainConfig) -> Learner:
        return plain

    def add(self, found: Round) -> dict[str, float]:
        self.pool.add(found)
        self.sampler = self.pool.sampler(self.window, self.batch_size, self.seed)
        return {"pool": float(len(self.sampler.data)), "reference": self.pool.reference}

    def batch(self, update: int) -> Any:
        if self.sampler is None:
            raise SeqrlError("there are no episodes to learn from yet")
        return self.sampler.batch(update)


class ActorCritic(Method):
    """See :mod:`seqrl.finetune.actor_critic`.

    Args:
        agent: the actor.
        config: settings.
        batch_size: transitions of a batch.

    Raises:
        SeqrlError: an agent that is no actor, or a task without action gradients.
    """

    remembers = True

    def __init__(self, agent: Agent, config: FinetuneConfig, batch_size: int):
        if not isinstance(agent, RecurrentActor):
            raise SeqrlError(
                f"agent '{agent.name}' has no actor-critic fine-tuning",
                hint="use --method weighted_bc",
            )
        agent.check_actor()
        self.agent, self.config, self.batch_size = agent, config.ac, batch_size
        self.replay = Replay(self.config.capacity, config.seed, agent.device)

    def learner(self, plain: Learner, train: TrainConfig) -> Learner:
        self.replay.device = plain.device
        return ActorCriticLearner(
            self.agent,
            self.config,
            train.optim,
            steps=train.steps,
            seed=train.seed,
            device=plain.device,
        )

    def add(self, found: Round) -> dict[str, float]:
        self.replay.add(found)
        return {"replay": float(len(self.replay))}

    def batch(self, update: int) -> Any:
        c = self.config
        parts = c.warmup_critic_steps if update < c.warmup else 1
        first = update * c.warmup_critic_steps
        return [self.replay.draw(first + i, self.batch_size) for i in range(parts)]

    def explores(self, update: int) -> bool:
        return self.config.warmup_noise or update >= self.config.warmup


class OnlineTrainer(Trainer):
    """The training loop with rounds.

    Args:
        agent: fine-tuned in place.
        first: the first round.
        outcome: evaluation of the agent as it was; None where nothing is evaluated.
        method: what is done with rounds.
        collector: makes them.
        finetune: settings.
        target: target return of the first round.
        options: as for :class:`seqrl.trainer.Trainer`.
    """

    def __init__(
        self,
        agent: Agent,
        first: Round,
        *,
        outcome: EvalOutcome | None,
        method: Method,
        collector: Collector,
        finetune: FinetuneConfig,
        target: float,
        **options: Any,
    ):
        super().__init__(agent, [first.data], **options)
        self.method, self.collector, self.finetune = method, collector, finetune
        self.learner = method.learner(self.learner, self.config)
        self.sampler = method  # type: ignore[assignment]
        self.every = finetune.number("collect_every")
        self.sigma = Schedule.parse(finetune.noise, self.config.steps)
        self.target = target
        self.reached = best_mean({} if outcome is None else outcome.scalars)
        """Best mean return of an evaluation so far, at any target."""
        self.env_steps = 0
        self.facts: dict[str, float] = {}
        """Of the last round."""
        self._first, self._outcome = first, outcome

    # --- rounds -------------------------------------------------------------------------------

    def next_target(self) -> float:
        """Target return of the next round: a margin above what was reached."""
        if self.reached is None:
            return self.target
        return self.reached + self.finetune.target_margin * abs(self.reached)

    def collect(self, number: int) -> Round:
        """The round before update ``number * every``."""
        update = number * self.every
        sigma = self.sigma(update) if self.method.explores(update) else 0.0
        episodes = self.finetune.number("collect_episodes")
        return self.collector.collect(number, episodes, self.next_target(), sigma)

    def take(self, found: Round) -> None:
        """Hand a round to the method."""
        more = self.method.add(found)
        self.env_steps += found.data.num_steps
        self.facts = {**found.facts, **more, "env_steps": float(self.env_steps)}

    def _update(self) -> None:
        number, inside = divmod(self.step, self.every)
        if inside == 0:
            with self._clock.paused():
                self.take(self._first if number == 0 else self.collect(number))
        super()._update()
        self._means.add(self.facts)

    # --- evaluations --------------------------------------------------------------------------

    def _evaluate(self, timing: Mapping[str, float]) -> dict[str, float]:
        found = super()._evaluate(timing)
        self._reach(best_mean({k.removeprefix("eval/"): v for k, v in found.items()}))
        return found

    def _reach(self, mean: float | None) -> None:
        if mean is not None:
            self.reached = mean if self.reached is None else max(self.reached, mean)

    # --- beginning ----------------------------------------------------------------------------

    def _start(self, resume: bool, allow_change: bool) -> None:
        super()._start(resume, allow_change)
        if self._saved is None:
            self._begin()
        else:
            self._reload()

    def _begin(self) -> None:
        """Write down the offline policy: its evaluation and a checkpoint, which may stay best."""
        if self._outcome is not None:
            o = self._outcome
            score = {} if o.score is None else {"eval/score": o.score}
            found = {**score, **{f"eval/{k}": v for k, v in o.scalars.items()}}
            self._improves(found)
            for logger in self.loggers:
                logger.log(0, {**found, "env_steps": 0.0})
            if self.run is not None:
                self.run.write_eval(0, o.record)
            self.progress.line(self._parts({}, o.text))
        self._save()

    def _reload(self) -> None:
        """Take in the rounds collected before the checkpoint."""
        for number in range(math.ceil(self.step / self.every)):
            found = self.collector.stored(number)
            if found is None:
                raise SeqrlError(
                    f"round {number} of the run is missing in {self.collector.folder}",
                    hint="fine-tune anew from its checkpoint",
                )
            self.take(found)
        if self.method.remembers:
            self.progress.message(
                "note: remembered states were computed anew: the run goes on, "
                "but not bit for bit as it would have"
            )
        if self.run is not None:
            for file in sorted(self.run.eval.glob("step_*.json")):
                record = read_json(file, "remove it, and resume again")
                means = [float(s["return"]["mean"]) for s in record.get("summary", ())]
                self._reach(max(means, default=None))

    def _conditions(self) -> dict[str, dict[str, Any]]:
        conditions = super()._conditions()
        conditions["must_match"]["fine-tuning"] = self.finetune.to_json()
        return conditions

    def _windows_of(self, update: int) -> dict[str, Any]:
        return {"round": update // self.every}

    def _resume_hint(self) -> str | None:
        return f"seqrl finetune {self.run.dir} --resume" if self.run is not None else None


def best_mean(scalars: Mapping[str, float]) -> float | None:
    """The largest mean return among the numbers of an evaluation; None where there is none."""
    found = [v for k, v in scalars.items() if k == "return" or k.startswith("return[")]
    return max(found, default=None)

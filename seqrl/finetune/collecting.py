"""Rounds of episodes: the agent acts with exploration noise, the rollout engine keeps every step.

Shapes: n rows of a block, A action dimension, T steps of an episode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqrl.acting import RtgUpdate
from seqrl.agents.agent import Agent
from seqrl.datasets.catalog import LoadOptions, load_dataset
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import RowDraws, derive_seed, uniform64
from seqrl.envs.pool import env_factory, make_pool, step_limit
from seqrl.errors import SeqrlError
from seqrl.layers.state import map_states, take_rows
from seqrl.rollout import EpisodePlan, EpisodeRecord, rollout
from seqrl.spec import Step, TaskSpec

ONLINE = 6
"""Stream of the seeds of collected episodes: no evaluation or dataset uses it."""
_TARGETS = 1

_ROW_BLOCK = 8
_NUM_ENVS = 16


class Exploring:
    """An agent whose actions are disturbed; what the rollout engine asks of a policy.

    Gaussian noise of ``sigma`` half widths of the action space, cut at its bounds (half width 1
    where there are none), or with chance ``sigma`` a choice at random. The noise of a row depends
    on the seed of its episode alone.

    Args:
        agent: in evaluation mode.
        sigma: size of the noise.
        remember: keep the acting state before every call, and the last one.
    """

    def __init__(self, agent: Agent, sigma: float, remember: bool = False):
        self.agent, self.sigma = agent, sigma
        self.tasks, self.memory, self.device = agent.tasks, agent.memory, agent.device
        self.states: list[Any] = []
        """With ``remember``: the state before each call, in order."""
        self.last: Any = None
        """The state after the last call."""
        self.remember = remember
        action = self.tasks[0].action
        self.low, self.high = torch.tensor(action.low), torch.tensor(action.high)
        self.half = (self.high - self.low) / 2 if action.bounded else torch.ones(action.size)

    def initial_state(self, n: int) -> Any:
        """As the agent's."""
        return self.agent.initial_state(n)

    def reset(self, state: Any, rows: Tensor) -> Any:
        """As the agent's."""
        return self.agent.reset(state, rows)

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        """The agent's actions, disturbed."""
        if self.remember:
            self.states.append(map_states(lambda t: t.clone(), state))
        action, self.last = self.agent.act(state, step, generator)
        if self.sigma > 0 and generator is not None:
            action = self._disturbed(action.cpu(), generator).to(action.device)
        return action, self.last

    def _disturbed(self, action: Tensor, draws: RowDraws) -> Tensor:
        spec = self.tasks[0].action
        if spec.kind == "continuous":
            u = draws.uniform(spec.size).clamp(1e-7, 1 - 1e-7)
            noise = math.sqrt(2) * torch.erfinv(2 * u - 1)
            return (action + self.sigma * self.half * noise).clamp(self.low, self.high)
        sizes = torch.tensor(spec.nvec)
        u = draws.uniform(2 * len(sizes))
        instead = (u[:, len(sizes) :] * sizes).long().view(action.shape)
        return torch.where((u[:, : len(sizes)] < self.sigma).view(action.shape), instead, action)


@dataclass(frozen=True)
class Round:
    """Episodes of one round."""

    number: int
    data: Trajectories
    states: list[Any] | None
    """An entry an episode where they were asked for: the acting state before each step and after
    the last, tensors ``[T + 1, ...]``."""
    facts: dict[str, float]
    """For the metrics: target, noise, mean return, steps."""


@dataclass(frozen=True)
class Collector:
    """Collects rounds in an environment and keeps their episodes as files.

    Args:
        agent: acts; its mode is afterwards what it was.
        folder: for ``round_0000.npz`` and so on; made when needed.
        seed: of the fine-tuning run.
        rtg_update: as in the evaluation of the agent.
        jitter: share of the target by which that of an episode may differ.
        remember: keep acting states.
        max_steps: cuts episodes; None leaves that to the environment.
    """

    agent: Agent
    folder: Path
    seed: int
    rtg_update: RtgUpdate = "reward"
    jitter: float = 0.0
    remember: bool = False
    max_steps: int | None = None

    @property
    def task(self) -> TaskSpec:
        """The environment's task."""
        return self.agent.tasks[0]

    def collect(self, number: int, episodes: int, target: float, sigma: float) -> Round:
        """Let the agent act for a round and store what it did.

        A function of the agent's weights, the seed and the arguments: whatever runs beside it.

        Raises:
            SeqrlError: an environment without a step limit, or one that fails.
        """
        task = self.task
        seeds = [derive_seed(self.seed, ONLINE, number * 1_000_000 + i) for i in range(episodes)]
        u = uniform64(self.seed, ONLINE, 2 * number + _TARGETS, episodes)
        targets = target + self.jitter * (2 * u - 1) * abs(target)
        plans = [EpisodePlan(i, seeds[i], float(targets[i]), trial=i) for i in range(episodes)]
        # States are told apart by their row, so every episode has one of its own.
        side_by_side = episodes if self.remember else min(_NUM_ENVS, episodes)
        factory = env_factory(task.env_id or "", task.env_kwargs, keys=task.observation.keys)
        training = self.agent.training
        self.agent.eval()
        policy = Exploring(self.agent, sigma, self.remember)
        try:
            with make_pool(factory, side_by_side) as pool:
                records = rollout(
                    policy,
                    pool,
                    plans,
                    row_block=episodes if self.remember else _ROW_BLOCK,
                    rtg_update=self.rtg_update,
                    max_steps=step_limit(pool, self.max_steps, task),
                    record=True,
                )
        finally:
            self.agent.train(training)
        data = as_trajectories(records, task, f"round {number} of fine-tuning in {task.env_id}")
        data.notes.update(target=target, noise=sigma)
        self.folder.mkdir(parents=True, exist_ok=True)
        data.to_npz(self._file(number))
        states = _by_episode(policy, records) if self.remember else None
        return Round(number, data, states, _facts(data))

    def _file(self, number: int) -> Path:
        return self.folder / f"round_{number:04d}.npz"

    def stored(self, number: int) -> Round | None:
        """A round collected earlier, its states remembered anew; None where there is no file.

        The states are those of the agent as it is now, not of when it acted.
        """
        file = self._file(number)
        if not file.is_file():
            return None
        data = load_dataset(f"npz:{file}", options=LoadOptions(cache=False))
        data = dataclasses.replace(data, task=self.task)
        states = (
            [replayed(self.agent, data, e) for e in range(len(data))] if self.remember else None
        )
        return Round(number, data, states, _facts(data))


def _facts(data: Trajectories) -> dict[str, float]:
    return {
        "collect/target": float(data.notes["target"]),
        "collect/noise": float(data.notes["noise"]),
        "collect/return": float(data.returns.mean()),
        "collect/steps": float(data.num_steps),
    }


def as_trajectories(records: list[EpisodeRecord], task: TaskSpec, source: str) -> Trajectories:
    """Recorded episodes in the form of all data, with the observations as stored."""
    steps = [(r, r.steps) for r in records if r.steps is not None]
    image = task.observation.kind == "image"
    observations: spaces.Space[Any] = (
        spaces.Box(0, 255, task.observation.shape, np.uint8)
        if image
        else spaces.Box(-np.inf, np.inf, task.observation.shape, np.float32)
    )
    data = Trajectories.from_episodes(
        [
            {
                "observations": s.observations,
                "actions": s.actions,
                "rewards": s.rewards,
                "terminated": r.terminated,
            }
            for r, s in steps
        ],
        observation_space=observations,
        action_space=_action_space(task),
        name=task.name,
        env_id=task.env_id,
        source=source,
    )
    return dataclasses.replace(data, task=task)


def _action_space(task: TaskSpec) -> spaces.Space[Any]:
    a = task.action
    if a.kind == "continuous":
        bounds = [np.array(b, np.float32) for b in (a.low, a.high)]
        return spaces.Box(bounds[0], bounds[1], a.shape, np.float32)
    return spaces.Discrete(a.n) if a.kind == "discrete" else spaces.MultiDiscrete(list(a.nvec))


def _by_episode(policy: Exploring, records: list[EpisodeRecord]) -> list[Any]:
    """Each episode's states: episode i had row i of the only block, from the first call on."""
    trail = [*policy.states, policy.last]
    found = []
    for row, record in enumerate(records):
        own = [take_rows(s, slice(row, row + 1)) for s in trail[: record.length + 1]]
        found.append(map_states(lambda *t: torch.cat(t), *own))
    return found


def episode_steps(data: Trajectories, episode: int) -> dict[str, Tensor]:
    """Fields of the T + 1 moments of an episode (the last one is after its end), raw units.

    ``rtg`` is what the episode really went on to earn, 0 at the end.
    """
    e = data[episode]
    length = len(e)
    action = torch.from_numpy(np.array(e.actions))
    zero = torch.zeros_like(action[:1])
    rtg = torch.from_numpy(np.append(e.returns_to_go, np.float32(0)))
    reward = torch.from_numpy(np.append(np.float32(0), e.rewards))
    return {
        "observation": torch.from_numpy(np.array(e.observations)),
        "prev_action": torch.cat([zero, action]),
        "prev_reward": reward,
        "rtg": rtg,
        "timestep": torch.arange(length + 1),
    }


def step_of(fields: Mapping[str, Tensor]) -> Step:
    """The ``Step`` of given fields ``[n, ...]``."""
    first = fields["timestep"] == 0
    return Step(
        **{k: fields[k] for k in ("observation", "prev_action", "prev_reward", "rtg", "timestep")},
        first=first,
        trial_first=first,
        prev_terminated=torch.zeros_like(first),
    )


@torch.no_grad()
def replayed(agent: Agent, data: Trajectories, episode: int) -> Any:
    """The states an agent has along an episode, tensors ``[T + 1, ...]``."""
    training = agent.training
    agent.eval()
    fields = {k: v.to(agent.device) for k, v in episode_steps(data, episode).items()}
    state, states = agent.initial_state(1), []
    for t in range(len(fields["rtg"])):
        states.append(map_states(lambda x: x.clone(), state))
        if t + 1 < len(fields["rtg"]):
            _, state = agent.step(state, step_of({k: v[t : t + 1] for k, v in fields.items()}))
    agent.train(training)
    return map_states(lambda *t: torch.cat(t), *states)


def check_can_act(agent: Agent) -> None:
    """Raise SeqrlError for agents that rounds of single episodes do not suit."""
    if len(agent.tasks) != 1 or agent.memory != "episode":
        raise SeqrlError(
            f"agent '{agent.name}' cannot be fine-tuned: it "
            + ("serves several tasks" if len(agent.tasks) != 1 else "remembers across episodes"),
            hint="fine-tune agents of one task whose memory ends with the episode",
        )
    if agent.tasks[0].env_id is None:
        raise SeqrlError("the run names no environment to collect in", hint="add --env ID")

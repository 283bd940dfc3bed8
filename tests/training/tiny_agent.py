"""A small recurrent agent and random data, for tests of the trainer alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig
from seqrl.datasets.trajectories import Trajectories
from seqrl.spec import Batch, LossOut, Step, WindowSpec


@dataclass(frozen=True)
class TinyConfig(AgentConfig):
    """Settings of the test agent."""

    context: int = 6
    """Window length."""
    width: int = 16
    """Units."""
    dropout: float = 0.0
    """Before the head."""
    poison: int | None = None
    """The update, from 0, whose loss is NaN."""
    delay: float = 0.0
    """Seconds a loss takes."""

    def window(self) -> WindowSpec:
        return WindowSpec("any_start", self.context)


class TinyAgent(Agent):
    """A GRU over observations; the loss is the mean squared action error over valid steps."""

    name = "tiny"
    config_class = TinyConfig
    acting_rules = ("stream",)
    observation_kinds = ("vector",)
    config: TinyConfig

    def __init__(self, config: TinyConfig, tasks: Any, stats: Any):
        super().__init__(config, tasks, stats)
        task = self.tasks[0]
        self.inp = nn.Linear(task.observation.shape[0], config.width)
        self.cell = nn.GRU(config.width, config.width, batch_first=True)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, task.action.size)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def predict(self, batch: Batch) -> Tensor:
        hidden, _ = self.cell(torch.relu(self.inp(self.observe(batch.observations))))
        return self.head(self.drop(hidden))

    def loss(self, batch: Batch) -> LossOut:
        if self.config.delay:
            time.sleep(self.config.delay)
        error = (self.predict(batch) - batch.actions).square()[batch.mask]
        loss = error.mean()
        if self.training and int(self.updates) == self.config.poison:
            loss = loss * torch.nan
        return LossOut(loss, error.numel(), {"action_error": error.detach().mean().sqrt()})

    def after_update(self, step: int) -> None:
        self.updates.fill_(step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = list(self.head.parameters())
        rest = [p for n, p in self.named_parameters() if not n.startswith("head.")]
        return [{"params": rest}, {"params": head, "weight_decay": 0.0, "lr_scale": 2.0}]

    def initial_state(self, n: int) -> dict[str, Tensor]:
        return {"h": torch.zeros(n, self.config.width)}

    def step(self, state: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.relu(self.inp(self.observe(step.observation))).unsqueeze(1)
        y, h = self.cell(x, state["h"].unsqueeze(0))
        return self.head(y[:, 0]), {"h": h[0]}


class OtherAgent(TinyAgent):
    """A second class, for checkpoints that name something else."""

    name = "other"


def tiny_data(episodes: int = 20, seed: int = 0, longest: int = 12) -> Trajectories:
    """Random episodes of unequal length: 5 observations, 2 continuous actions."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(episodes):
        t = int(rng.integers(1, longest + 1))
        made.append(
            {
                "observations": rng.normal(size=(t + 1, 5)).astype(np.float32),
                "actions": rng.uniform(-0.9, 0.9, (t, 2)).astype(np.float32),
                "rewards": rng.normal(size=t).astype(np.float32),
                "terminated": bool(rng.random() < 0.5),
            }
        )
    return Trajectories.from_episodes(made, name="tiny", source=f"tiny-{seed}")


def tiny(data: Trajectories | None = None, **config: Any) -> TinyAgent:
    """The agent with the same first weights every time."""
    data = tiny_data() if data is None else data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyAgent(replace(TinyConfig(), **config), [data.task], [data.stats])

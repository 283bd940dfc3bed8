"""A whole agent in one file: return-conditioned causal convolutions.

Each step is one vector, the sum of its embedded return-to-go, observation and previous action. A
layer mixes the last ``kernel`` steps, channel by channel, and adds the result to its input. What
acting must remember is therefore just the last ``kernel - 1`` inputs of each layer.

    seqrl train examples.causal_conv:CausalConv --data tmaze-30 --agent.context 30
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_sizes
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class CausalConvConfig(AgentConfig):
    """Settings; the text under each field is its help at the command line."""

    context: int = 20
    """Time steps of a training window."""
    width: int = 64
    """Channels."""
    n_layer: int = 4
    """Layers; the agent sees ``n_layer * (kernel - 1) + 1`` steps back."""
    kernel: int = 6
    """Steps that one layer mixes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer")
        require(self.kernel >= 2, "kernel", self.kernel, "at least 2")

    def window(self) -> WindowSpec:
        """Windows from any step, cut at the episode end."""
        return WindowSpec("any_start", self.context)


class CausalConv(Agent):
    """Acting state: ``past [n, layers, kernel - 1, D]``, the newest inputs of each layer."""

    name = "causal_conv"
    config_class = CausalConvConfig
    acting_rules = ("stream",)
    battery_config = {"context": 8, "width": 48, "n_layer": 2, "kernel": 3}
    config: CausalConvConfig

    def __init__(self, config: CausalConvConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.embed_rtg = nn.Linear(1, c.width)
        self.embed_obs = observation_embedding(task.observation, c.width)
        self.embed_action = ActionEmbedding(task.action, c.width)
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(c.n_layer))
        self.mixes = nn.ModuleList(
            nn.Conv1d(c.width, c.width, c.kernel, groups=c.width) for _ in range(c.n_layer)
        )
        self.outs = nn.ModuleList(nn.Linear(c.width, c.width) for _ in range(c.n_layer))
        self.head = ActionHead(task.action, c.width)

    def _embed(self, obs: Tensor, rtg: Tensor, prev: Tensor, has_prev: Tensor) -> Tensor:
        # ``observe`` and ``scaled`` turn raw values into network inputs, here and in training.
        x = self.embed_obs(self.observe(obs)) + self.embed_rtg(self.scaled(rtg).unsqueeze(-1))
        return x + self.embed_action(prev) * has_prev.unsqueeze(-1)

    def predict(self, batch: Batch) -> Tensor:
        has_prev = torch.ones_like(batch.rewards)
        has_prev[:, 0] = 0
        prev = torch.roll(batch.actions, 1, dims=1)
        x = self._embed(batch.observations, batch.returns_to_go, prev, has_prev)  # (B, T, D)
        for norm, mix, out in zip(self.norms, self.mixes, self.outs, strict=True):
            past = F.pad(norm(x).transpose(1, 2), (self.config.kernel - 1, 0))  # (B, D, k-1+T)
            x = x + out(F.gelu(mix(past).transpose(1, 2)))
        return self.head(x)

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def initial_state(self, n: int) -> dict[str, Any]:
        c = self.config
        return {"past": self.head.out.weight.new_zeros(n, c.n_layer, c.kernel - 1, c.width)}

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        has_prev = (~step.first).to(step.rtg.dtype)
        x = self._embed(step.observation, step.rtg, step.prev_action, has_prev)  # (n, D)
        past = []
        for i, (norm, mix, out) in enumerate(zip(self.norms, self.mixes, self.outs, strict=True)):
            seen = torch.cat([state["past"][:, i], norm(x).unsqueeze(1)], 1)  # (n, k, D)
            x = x + out(F.gelu(mix(seen.transpose(1, 2))[..., 0]))
            past.append(seen[:, 1:])
        return self.head(x), {"past": torch.stack(past, 1)}

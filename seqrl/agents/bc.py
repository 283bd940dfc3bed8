"""Behaviour cloning with an MLP (the baseline of Chen et al. 2021, gym code ``mlp_bc.py``).

The last K observations, oldest first and zeros before the episode's start, are concatenated:

    a_t = head( MLP(s_{t-K+1}, ..., s_t) ),   loss = error of the last action of each window

Trained on the best episodes alone (``--best 10``) this is the percentage BC of the paper.
Release and here agree; the release pads windows on the left, here the zeros are put in front
inside the agent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require_fractions, require_sizes
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ImageEncoder
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class BCConfig(AgentConfig):
    """MLP behaviour cloning settings (published: width 256, 3 layers, dropout 0.1)."""

    context: int = 1
    """Observations K the MLP sees: the current one and K-1 before it."""
    width: int = 256
    """Hidden units of each layer."""
    n_layer: int = 3
    """Hidden layers."""
    dropout: float = 0.1
    """After each hidden layer but the first linear one's input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer")
        require_fractions(self, "dropout")

    def window(self) -> WindowSpec:
        return WindowSpec("any_end", self.context)


class BehaviourCloning(Agent):
    """See the module's docstring. Acting state: the last K-1 encoded observations of each row."""

    name = "bc"
    config_class = BCConfig
    uses_returns = False
    battery_config = {"context": 3, "width": 64, "dropout": 0.0}
    config: BCConfig

    def __init__(self, config: BCConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        task, c = self.tasks[0], config
        image = task.observation.kind == "image"
        self.encoder = ImageEncoder(task.observation.shape, c.width) if image else nn.Identity()
        self.features = c.width if image else task.observation.shape[0]
        layers: list[nn.Module] = [nn.Linear(c.context * self.features, c.width)]
        for _ in range(c.n_layer - 1):
            layers += [nn.ReLU(), Dropout(c.dropout), nn.Linear(c.width, c.width)]
        self.body = nn.Sequential(*layers, nn.ReLU(), Dropout(c.dropout))
        self.head = ActionHead(task.action, c.width)

    def predict(self, batch: Batch) -> Tensor:
        x = self.encoder(self.observe(batch.observations))  # (B, T, F)
        k = self.config.context
        x = F.pad(x, (0, 0, k - 1, 0)).unfold(1, k, 1)  # (B, T, F, K)
        return self.head(self.body(x.transpose(2, 3).flatten(2)))

    def loss(self, batch: Batch) -> LossOut:
        # Earlier steps of a window lack the observations before it; only its last one counts.
        last = batch.mask.clone()
        last[:, :-1] &= ~batch.mask[:, 1:]
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, last, self.common_action
        )

    def initial_state(self, n: int) -> dict[str, Tensor]:
        weight = self.head.out.weight
        return {"past": weight.new_zeros(n, self.config.context - 1, self.features)}

    def step(self, state: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.encoder(self.observe(step.observation)).unsqueeze(1)  # (n, 1, F)
        x = torch.cat([state["past"], x], 1)  # (n, K, F)
        return self.head(self.body(x.flatten(1))), {"past": x[:, 1:]}

"""Recurrent cloning: an LSTM or GRU over one vector a step, with or without returns-to-go.

    h_t = cell( W [e(s_t), e(a_{t-1}), e(R_t)], h_{t-1} ),   a_t = head(h_t)

The plain baseline of every memory table (BC-LSTM in RATE, Cherepanov et al. 2023, where the cell
has 128 units in one layer). It acts by carrying its state, at constant cost and memory however
long the episode. Differences from RATE's baseline code: the previous action enters as input, the
return-to-go may (``return_tokens``), both can be switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require_fractions, require_sizes
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class LSTMConfig(AgentConfig):
    """Recurrent cloning settings."""

    context: int = 20
    """Time steps of a training window (acting has no limit)."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Recurrent cell."""
    width: int = 128
    """Units of the cell and of the input vector."""
    n_layer: int = 1
    """Stacked recurrent layers."""
    forget_bias: float = 0.0
    """Added to the first biases of forget gates (update gates of a GRU). At 0, as in the library, a
    new cell keeps about half of what it holds from one step to the next; at 1 three quarters."""
    dropout: float = 0.0
    """On the input vector and before the head."""
    return_tokens: bool = True
    """Condition on returns-to-go; without them this is recurrent behaviour cloning."""
    action_input: bool = True
    """Feed the previous action."""
    windows: Literal["any_start", "episode_start"] = "episode_start"
    """Where training windows lie. From the episode start training sees the state as acting does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer")
        require_fractions(self, "dropout")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class RecurrentAgent(Agent):
    """See the module's docstring. Acting state: hidden (and cell) vectors ``[n, layers, D]``."""

    name = "lstm"
    config_class = LSTMConfig
    acting_rules = ("stream",)
    battery_config = {"context": 8, "width": 48, "n_layer": 2}
    config: LSTMConfig

    def __init__(self, config: LSTMConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        self.embed_obs = observation_embedding(task.observation, c.width)
        self.embed_rtg = nn.Linear(1, c.width) if c.return_tokens else None
        self.embed_action = ActionEmbedding(task.action, c.width) if c.action_input else None
        self.norm = nn.LayerNorm(c.width)
        self.dropout = Dropout(c.dropout)
        cell = nn.LSTM if c.cell == "lstm" else nn.GRU
        self.cell = cell(c.width, c.width, c.n_layer, batch_first=True)
        self._lengthen_memory()
        self.head = ActionHead(task.action, c.width)

    @torch.no_grad()
    def _lengthen_memory(self) -> None:
        # Both kinds of cell have these gates second: (input, forget, ...) and (reset, update, ...).
        for name, bias in self.cell.named_parameters():
            if name.startswith("bias_ih"):
                bias.view(-1, self.config.width)[1] += self.config.forget_bias

    def _inputs(self, obs: Tensor, rtg: Tensor, prev: Tensor, has_prev: Tensor) -> Tensor:
        """Input vectors ``[..., D]``: the normalised sum of what the step is made of."""
        x = self.embed_obs(self.observe(obs))
        if self.embed_rtg is not None:
            x = x + self.embed_rtg(self.scaled(rtg).unsqueeze(-1))
        if self.embed_action is not None:
            x = x + self.embed_action(prev) * has_prev.unsqueeze(-1)
        return self.dropout(self.norm(x))

    def predict(self, batch: Batch) -> Tensor:
        prev = torch.roll(batch.actions, 1, dims=1)
        has_prev = torch.ones_like(batch.rewards)
        has_prev[:, 0] = 0
        x = self._inputs(batch.observations, batch.returns_to_go, prev, has_prev)
        # Processors without bf16 instructions have no fused bf16 cell: float32 on CPUs.
        if x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                y, _ = self.cell(x.float())
        else:
            y, _ = self.cell(x)
        return self.head(self.dropout(y))

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def initial_state(self, n: int) -> dict[str, Tensor]:
        zeros = self.head.out.weight.new_zeros(n, self.config.n_layer, self.config.width)
        return {"h": zeros, "c": zeros.clone()} if self.config.cell == "lstm" else {"h": zeros}

    def step(self, state: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        x = self._inputs(
            step.observation, step.rtg, step.prev_action, (~step.first).to(step.rtg.dtype)
        ).unsqueeze(1)
        carried = {k: v.transpose(0, 1).contiguous() for k, v in state.items()}
        if self.config.cell == "lstm":
            y, (h, c) = self.cell(x, (carried["h"], carried["c"]))
            new = {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}
        else:
            y, h = self.cell(x, carried["h"])
            new = {"h": h.transpose(0, 1)}
        return self.head(self.dropout(y[:, 0])), new

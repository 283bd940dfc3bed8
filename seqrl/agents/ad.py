"""Algorithm Distillation (Laskin et al. 2022, arXiv 2210.14215): imitate how an agent learned.

The data are learning histories: all episodes of one training run, in order. A model that predicts
the next action from a window across several episodes has to improve from one to the next as the
agent did, and goes on doing so in a new task, without any update:

    token t    W [ s_t, a_{t-1}, r_{t-1}, first step of an episode? ]       one a step
    loss       - log p(a_t | the window up to s_t)                          at every step

There is no return-to-go, and no label but what was done. Evaluated over a trial of several
episodes, the context is kept from one to the next and the oldest steps drop out of it. No official
code was released; layers and training follow the paper's table as others report it. Any mixer of
the shelf can stand in attention's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.errors import SeqrlError
from seqrl.layers.context_model import (
    ContextModel,
    Positions,
    action_features,
    count_action_features,
)
from seqrl.layers.embeddings import observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.stack import grouped_parameters
from seqrl.layers.token_memory import RULES, NewTokens
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class ADConfig(AgentConfig):
    """Algorithm Distillation settings."""

    context: int = 100
    """Steps K of a window: several episodes, or it is mere cloning."""
    width: int = 64
    """Size D of the token vectors."""
    n_layer: int = 4
    """Blocks."""
    n_head: int = 4
    """Attention heads; must divide the width."""
    mixer: tuple[str, ...] = ("attention",)
    """What mixes tokens: a name of `seqrl list mixers`, one for all blocks or one a block."""
    positions: Positions = "learned"
    """A learned vector for each place in the window, rotation by distance, or nothing."""
    dropout: float = 0.0
    """On tokens and within blocks (published: 0.1)."""
    attn_dropout: float = 0.0
    """On attention weights (published: 0.5)."""
    init: Literal["torch", "gpt2"] = "torch"
    """How linear layers start: torch's own way, or N(0, 0.02) as in GPT-2, from which models this
    small take off late."""
    trial_episodes: int = 20
    """Episodes of a trial in evaluation, unless --trial-episodes says otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer", "n_head", "trial_episodes")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require_fractions(self, "dropout", "attn_dropout")

    def window(self) -> WindowSpec:
        return WindowSpec("history", self.context)


class AlgorithmDistillation(Agent):
    """See the module's docstring. Its acting state is that of ``layers/token_memory.py``."""

    name = "ad"
    config_class = ADConfig
    memory = "trial"
    uses_returns = False
    acting_rules = RULES
    battery_config = {"context": 6, "width": 32, "n_layer": 2}
    config: ADConfig

    def __init__(self, config: ADConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.trial_episodes = c.trial_episodes
        self.embed = observation_embedding(task.observation, c.width)
        self.embed_first = nn.Linear(1, c.width, bias=False)
        self.embed_previous = nn.Linear(count_action_features(task.action) + 1, c.width, bias=False)
        self.model = ContextModel(
            c.width, c.context, c.n_layer, c.n_head, c.mixer, "softmax", c.positions, c.dropout,
            c.attn_dropout, c.init,
        )  # fmt: skip
        # A token is kept as two halves: what its step brought, and what led to it. The window's
        # first token is used without the latter, which lies outside the window.
        self.recall = self.model.memory(2 * c.width)
        self.head = ActionHead(task.action, c.width)

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        before = torch.roll(batch.actions, 1, 1), torch.roll(batch.rewards, 1, 1)
        halves = self._halves(batch.observations, *before, batch.timesteps == 0)
        x = self.finish_tokens(halves, torch.arange(halves.shape[1], device=halves.device))
        return self.head(self.model.stack.read(x, slice(None)))

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return grouped_parameters(self)

    def _halves(self, obs: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        """``[..., 2D]``: of state and episode start, and of the action and reward before."""
        now = self.embed(self.observe(obs)) + self.embed_first(first.float().unsqueeze(-1))
        led = torch.cat([action_features(self.tasks[0].action, action), reward.unsqueeze(-1)], -1)
        return torch.cat([now, self.embed_previous(led)], -1)

    # --- acting -------------------------------------------------------------------------------

    def check_rule(self, rule: str) -> None:
        super().check_rule(rule)
        self.recall.check_rule(rule, self.config.mixer)
        if rule.startswith("stream") and self.config.positions == "learned":
            raise SeqrlError(
                f"rule '{rule}' needs positions that do not move with the window",
                hint="use --acting recompute or refill, or train with --agent.positions "
                "relative or none",
            )

    def initial_state(self, n: int) -> dict[str, Any]:
        return self.recall.initial_state(self.model.stack, n, self.acting.rule)

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        return self.recall.reset(self.model.stack, state, rows)

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        token = self._halves(step.observation, step.prev_action, step.prev_reward, step.first)
        new = NewTokens(token.unsqueeze(1), token, step.timestep, step.trial_first)
        hidden, state = self.recall.advance(self, self.model.stack, state, self.acting.rule, new)
        return self.head(hidden), state

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor | None = None) -> Tensor:
        """What depends on a token's place; see :class:`TokenModel`."""
        now, led = x.chunk(2, -1)
        return self.model.finish(now + led * (position > 0).unsqueeze(-1), position)

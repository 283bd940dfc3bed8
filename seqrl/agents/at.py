"""Agentic Transformer (Liu and Abbeel 2023, arXiv 2305.16554): chains of attempts, each better.

Several whole episodes of one task stand in one context, sorted from worst to best. All of them
start with the best one's return as their target, and a token after each step says whether the
target was met. At test time the policy tries several times within one context and should improve:

    per step   g_t  s_t  a_t  r_t  d_t        g_0 = R*, g_{t+1} = g_t - r_t;  a_t is read at s_t
    d_t = 1    at the last step of an episode whose return is R*: the best one (and ties), else 0
    loss       actions of the last episode alone (or of all)

A reproduction wrote d at the unsorted place of an episode, so that it could stand on another one;
here it is worked out from g and r, in training and acting alike. Its largest-of-n score beats any
single attempt by selection alone: evaluation reports the last and the largest return of a trial
side by side, and does the same for any other policy (``--trial-episodes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.stack import grouped_parameters
from seqrl.layers.step_tokens import check_horizon
from seqrl.layers.token_memory import RULES, AttentionMemory, NewTokens
from seqrl.layers.transformer import Transformer
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class ATConfig(AgentConfig):
    """Agentic Transformer settings; layers as in the paper's table."""

    context: int = 80
    """Steps of a window over all its episodes; of each the last ``context // episodes`` are taken.
    """
    episodes: int = 4
    """Most episodes of a chain; the number is drawn from 1 to this."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 3
    """Blocks."""
    n_head: int = 1
    """Attention heads; must divide the width."""
    activation: Literal["relu", "gelu"] = "relu"
    """Between the two linear layers of a block."""
    dropout: float = 0.1
    """On tokens and within blocks."""
    reward_token: bool = True
    """Show rewards (without them the paper reports 80.4 instead of 85.2 on average)."""
    loss_on: Literal["last", "all"] = "last"
    """Learn the actions of a chain's best episode, or of all of them."""
    max_timestep: int = 1000
    """Rows of the timestep table: episodes may not be longer."""
    trial_episodes: int = 4
    """Episodes of a trial in evaluation, unless --trial-episodes says otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("context", "episodes", "width", "n_layer", "n_head", "max_timestep")
        require_sizes(self, *sizes, "trial_episodes")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require(self.context >= self.episodes, "context", self.context, f"at least {self.episodes}")
        require_fractions(self, "dropout")

    def window(self) -> WindowSpec:
        return WindowSpec("chain", self.context, episodes=self.episodes)


class AgenticTransformer(Agent):
    """See the module's docstring.

    The tokens of a step are kept as ``(a, r, d)`` of the step before and ``(g, s)`` of its own: the
    same sequence, cut where a new step arrives. At the start of a window, where nothing came
    before, a learned vector stands for the former.

    Acting state: that of ``layers/token_memory.py`` and, of the last step, ``rtg [n]`` (scaled) and
    ``time [n]``.
    """

    name = "at"
    config_class = ATConfig
    memory = "trial"
    acting_rules = RULES
    battery_config = {"context": 8, "episodes": 2, "width": 32, "n_layer": 2, "dropout": 0.0}
    config: ATConfig

    def __init__(self, config: ATConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        check_horizon("timestep", c.max_timestep, self.stats[0].max_episode_length)
        self.trial_episodes = c.trial_episodes
        self.embed_obs = observation_embedding(task.observation, c.width)
        self.embed_rtg = nn.Linear(1, c.width)
        self.embed_action = ActionEmbedding(task.action, c.width)
        self.embed_reward = nn.Linear(1, c.width) if c.reward_token else None
        self.embed_done = nn.Embedding(2, c.width)
        self.embed_time = nn.Embedding(c.max_timestep, c.width)
        self.before = 3 if c.reward_token else 2  # tokens (a, r, d) or (a, d)
        self.nothing = nn.Parameter(0.02 * torch.randn(c.width))
        self.norm = nn.LayerNorm(c.width)
        self.dropout = Dropout(c.dropout)
        self.stack = Transformer(c.width, c.n_layer, c.n_head, c.activation, c.dropout)
        period = self.before + 2
        self.recall = AttentionMemory(c.context, period, period - 1, c.width)
        self.head = ActionHead(task.action, c.width)

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        rtg, rewards = self.scaled(batch.returns_to_go), self.scaled(batch.rewards)
        done = self._met(rtg, rewards) & (batch.terminations | batch.truncations)
        led = [_earlier(x) for x in (batch.actions, rewards, done, batch.timesteps)]
        obs = self.observe(batch.observations)
        tokens = self._tokens(rtg, obs, batch.timesteps, *led)  # (B, T, m, D)
        x = tokens.flatten(1, 2)
        x = self.finish_tokens(x, torch.arange(x.shape[1], device=x.device))
        readers = slice(tokens.shape[2] - 1, None, tokens.shape[2])
        return self.head(self.stack.read(self.dropout(x), readers))

    def loss(self, batch: Batch) -> LossOut:
        mask = batch.mask
        if self.config.loss_on == "last":
            # Steps after which no further episode ends within the window: those of the last one,
            # its own end included.
            ends = (batch.terminations | batch.truncations) & mask
            last = mask.sum(1, keepdim=True) - 1
            at = torch.arange(mask.shape[1], device=mask.device)
            inner = ends & (at < last)
            mask = mask & ~inner.flip(1).cummax(1).values.flip(1)
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, mask, self.common_action
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return grouped_parameters(self)

    @staticmethod
    def _met(rtg: Tensor, reward: Tensor) -> Tensor:
        """Whether nothing is left of the target after a step (both scaled)."""
        return rtg - reward <= 1e-4 * rtg.abs().clamp(min=1.0)

    def _tokens(
        self,
        rtg: Tensor,
        obs: Tensor,
        time: Tensor,
        action: Tensor,
        reward: Tensor,
        done: Tensor,
        time_before: Tensor,
    ) -> Tensor:
        """Tokens ``[..., m, D]`` of steps: what the step before brought, return-to-go, state.

        Args:
            rtg: ``[...]``, obs: ``[..., S]``, time: ``[...]`` of the step.
            action: ``[..., A]``, reward, done, time_before: ``[...]`` of the step before.
        """
        now, then = self.embed_time(time), self.embed_time(time_before)
        parts = [self.embed_action(action) + then]
        if self.embed_reward is not None:
            parts.append(self.embed_reward(reward.unsqueeze(-1)))
        parts.append(self.embed_done(done.long()))
        parts += [self.embed_rtg(rtg.unsqueeze(-1)) + now, self.embed_obs(obs) + now]
        return torch.stack(parts, -2)

    # --- acting -------------------------------------------------------------------------------

    def initial_state(self, n: int) -> dict[str, Any]:
        state = self.recall.initial_state(self.stack, n, self.acting.rule)
        zeros = self.nothing.new_zeros(n)
        return {"memory": state, "rtg": zeros, "time": zeros.long()}

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        memory = self.recall.reset(self.stack, state["memory"], rows)
        kept = {k: state[k].masked_fill(rows, 0) for k in ("rtg", "time")}
        return {"memory": memory, **kept}

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        rtg, reward = self.scaled(step.rtg), self.scaled(step.prev_reward)
        time = step.timestep.clamp(max=self.config.max_timestep - 1)
        # An episode has ended before each first step but a trial's.
        done = self._met(state["rtg"], reward) & step.first & ~step.trial_first
        obs = self.observe(step.observation)
        tokens = self._tokens(rtg, obs, time, step.prev_action, reward, done, state["time"])
        new = NewTokens(tokens, tokens[:, 0], step.timestep, step.trial_first)
        hidden, memory = self.recall.advance(
            self, self.stack, state["memory"], self.acting.rule, new
        )
        return self.head(hidden), {"memory": memory, "rtg": rtg, "time": time}

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor | None = None) -> Tensor:
        """What depends on a token's place; see :class:`TokenModel`."""
        return self.norm(torch.where((position < self.before).unsqueeze(-1), self.nothing, x))


def _earlier(x: Tensor) -> Tensor:
    """``x [B, T, ...]`` one step later: what came before each step, zero before the first."""
    return F.pad(x[:, :-1], (0,) * 2 * (x.dim() - 2) + (1, 0))

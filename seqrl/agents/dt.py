"""Decision Transformer (Chen et al. 2021, arXiv 2106.01345), and transformer BC without returns.

Tokens ``(R_0, s_0, a_0, R_1, s_1, a_1, ...)`` with undiscounted returns-to-go go through causal
GPT-2 blocks; the action of step t is read at its state token:

    a_t = head( Transformer(R_0, s_0, a_0, ..., R_t, s_t)[s_t] ),   loss = mean over real steps

What differs from the released code, and why:

==================================  ===============================================================
release                             here
==================================  ===============================================================
windows padded on the left          on the right, the same values at real steps (no mask needed)
return/state heads, never trained   left out
whole last block computed           only at state tokens (exact; nothing else is read)
embedding dropout stuck at 0.1      its own field ``embed_dropout``, default 0.1
re-encodes K steps every time       the same values from a cache while the episode is younger
tanh in [-1, 1]                     stretched to the action bounds (the same where they are [-1, 1])
==================================  ===============================================================

``positions="window_start"``, ``token_positions`` and ``embed_tanh`` build the Atari model.
``mixer`` puts another layer of the shelf in attention's place, keeping the rest of the block:
``aaren``, ``mlstm``, ``s4d``, ``s6`` and others, one for all blocks or one each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.errors import SeqrlError
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.mixer import Place, build_mixers
from seqrl.layers.stack import MixerStack, decay_by_kind, grouped_parameters, residual_stack
from seqrl.layers.step_tokens import StepTokens, check_horizon
from seqrl.layers.token_memory import RULES, AttentionMemory, MixerMemory, NewTokens, TokenMemory
from seqrl.layers.transformer import Transformer
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class DTConfig(AgentConfig):
    """Decision Transformer settings; defaults are the published Gym ones but for attn_dropout."""

    context: int = 20
    """Time steps K of a training window, and the most the policy looks back."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 3
    """Transformer blocks."""
    n_head: int = 1
    """Attention heads; must divide the width."""
    activation: Literal["relu", "gelu"] = "relu"
    """Between the two linear layers of a block."""
    dropout: float = 0.1
    """On the outputs of attention and MLP."""
    embed_dropout: float = 0.1
    """On the token vectors."""
    attn_dropout: float = 0.0
    """On attention weights (published: 0.1; above 0 training leaves the fused attention path)."""
    return_tokens: bool = True
    """Condition on returns-to-go; without them this is the transformer behaviour cloning."""
    mixer: tuple[str, ...] = ("attention",)
    """What mixes tokens: a name of `seqrl list mixers`, with options as in s4d:init=lin; one for
    all blocks or one a block."""
    positions: Literal["timestep", "window", "window_start", "relative", "none"] = "timestep"
    """Learned vector added to a step's tokens, by step of the episode, by place in the window, or
    one a window by its first step (Atari); relative: attention by distance; none adds nothing."""
    max_timestep: int = 1000
    """Rows of the timestep table: episodes may not be longer (timestep, window_start)."""
    token_positions: bool = False
    """Add a learned vector by place of the token in the window (Atari)."""
    embed_norm: bool = True
    """LayerNorm over the token vectors."""
    embed_tanh: bool = False
    """Tanh on each embedded return, state and action (Atari)."""
    head_bias: bool = True
    """Bias of the action head (Atari: none)."""
    decay: Literal["all", "weights"] = "all"
    """Weight decay on all parameters (Gym), or on linear and convolution weights only (Atari)."""
    windows: Literal["any_start", "any_end", "episode_start"] = "any_start"
    """Where training windows lie: from any step, up to any step, or from the episode start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer", "n_head", "max_timestep")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require_fractions(self, "dropout", "embed_dropout", "attn_dropout")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class DecisionTransformer(Agent):
    """See the module's docstring. Its acting state is that of ``layers/token_memory.py``."""

    name = "dt"
    config_class = DTConfig
    acting_rules = RULES
    battery_config = {"context": 6, "width": 32, "dropout": 0.0, "embed_dropout": 0.0}
    config: DTConfig

    def __init__(self, config: DTConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        check_horizon(c.positions, c.max_timestep, self.stats[0].max_episode_length)
        self.layout = TripletLayout((RTG, OBS, ACTION) if c.return_tokens else (OBS, ACTION))
        self.tokens = StepTokens(
            task, c.width, self.layout, context=c.context, positions=c.positions,
            max_timestep=c.max_timestep, per_token=c.token_positions, norm=c.embed_norm,
            tanh=c.embed_tanh, dropout=c.embed_dropout,
        )  # fmt: skip
        self.stack, self.recall = self._stack_and_memory()
        self.head = ActionHead(task.action, c.width, bias=c.head_bias)
        if c.embed_tanh and task.action.kind == "discrete":  # as the Atari release starts it
            nn.init.normal_(self.head.out.weight, std=0.02)

    def _stack_and_memory(self) -> tuple[Transformer | MixerStack, TokenMemory]:
        c, m = self.config, self.layout.size
        memory = (c.context, m, self.layout.place(OBS), c.width, c.positions != "window_start")
        if all(name == "attention" for name in c.mixer):
            relative = c.positions == "relative"
            sizes = (c.width, c.n_layer, c.n_head, c.activation, c.dropout, c.attn_dropout)
            return Transformer(*sizes, relative), AttentionMemory(*memory)
        place = Place(
            width=c.width,
            heads=c.n_head,
            window=m * c.context,
            period=m,
            dropout=c.attn_dropout,
            positions=c.positions,
        )
        mixers = build_mixers(c.mixer, place, c.n_layer)
        return residual_stack(mixers, c.width, c.activation, c.dropout), MixerMemory(*memory)

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        rtg, obs = self.scaled(batch.returns_to_go), self.observe(batch.observations)
        x = self.tokens.window(rtg, obs, batch.actions, batch.timesteps)
        return self.head(self.stack.read(x, self.layout.readers(OBS)))

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.config.decay == "all":
            return grouped_parameters(self)
        return decay_by_kind(self, nn.Linear, nn.Conv2d)

    # --- acting -------------------------------------------------------------------------------

    def check_rule(self, rule: str) -> None:
        super().check_rule(rule)
        self.recall.check_rule(rule, self.config.mixer)
        if rule.startswith("stream") and self.tokens.moving:
            raise SeqrlError(
                f"rule '{rule}' needs positions that do not move with the window",
                hint="use --acting recompute or refill, or train with --agent.positions "
                "timestep, relative or none",
            )

    def initial_state(self, n: int) -> dict[str, Any]:
        return self.recall.initial_state(self.stack, n, self.acting.rule)

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        return self.recall.reset(self.stack, state, rows)

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        rtg, obs = self.scaled(step.rtg), self.observe(step.observation)
        tokens, action = self.tokens.step(rtg, obs, step.prev_action, step.timestep)
        action = tokens[:, 0] if action is None else action  # every layout here has actions
        new = NewTokens(tokens, action, step.timestep, step.first)
        hidden, state = self.recall.advance(self, self.stack, state, self.acting.rule, new)
        return self.head(hidden), state

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """What depends on a token's place; see :class:`TokenModel`."""
        return self.tokens.finish(x, position, timestep)

"""Decision ConvFormer (Kim et al. 2024, arXiv 2310.03022): a Decision Transformer whose tokens are
mixed by three causal filters, one for each kind of token.

Tokens ``(R_0, s_0, a_0, R_1, ...)``, pre-norm residual blocks, the action read at the state token:

    x <- x + filter_type(LN(x));   x <- x + MLP(LN(x));   a_t = head( LN(x)[s_t] )

n blocks of L taps see n (L - 1) earlier tokens, 15 by default: five steps. A window that holds
them (K = 8 does) is all there is to know, so acting carries the last few inputs of each filter and
that equals re-encoding the window. The hybrid of the paper has attention in the last block:
``mixer = conv ... conv attention``; any mixer of the shelf will do.

What differs from the released code, and why:

==================================  ===============================================================
release                             here
==================================  ===============================================================
padding on the left goes through    on the right, where nothing reads it: the filters then see zeros
the filters, with other values in   before the episode in training and acting alike
training than at rollout            (``pad_mode="official"`` does as released)
all filters at every position       each position by its own filter alone (exact)
action embedding without tokens     left out with ``action_tokens=False``
return/state heads, never trained   left out
tanh in [-1, 1]                     stretched to the action bounds (the same where they are [-1, 1])
==================================  ===============================================================
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.errors import SeqrlError
from seqrl.layers.conv import ThreeFilterConv
from seqrl.layers.filter_memory import FilterMemory
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.mixer import Place, build_mixers
from seqrl.layers.stack import decay_by_kind, grouped_parameters, residual_stack
from seqrl.layers.state import select_rows
from seqrl.layers.step_tokens import StepTokens, check_horizon
from seqrl.layers.token_memory import NewTokens
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec

OFFICIAL_PADDING = -10.0
"""Action of a padded step in training windows (``pad_mode="official"``)."""


@dataclass(frozen=True)
class DCConfig(AgentConfig):
    """Decision ConvFormer settings; defaults are the published Gym ones."""

    context: int = 8
    """Time steps K of a training window, and the most the policy looks back."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 3
    """Blocks."""
    kernel: int = 6
    """Tokens L that a filter reads."""
    mixer: tuple[str, ...] = ("conv",)
    """What mixes tokens: one name of `seqrl list mixers` for all blocks or one a block; the
    paper's hybrid is conv in every block but the last, attention there."""
    conv_proj: bool = False
    """A linear layer after the filters (published for some Atari games)."""
    n_head: int = 1
    """Heads of blocks with attention; must divide the width."""
    activation: Literal["relu", "gelu"] = "gelu"
    """Between the two linear layers of a block."""
    dropout: float = 0.1
    """On the outputs of filters, attention and MLP."""
    embed_dropout: float = 0.1
    """On the token vectors."""
    attn_dropout: float = 0.0
    """On attention weights, where there are any."""
    return_tokens: bool = True
    """Condition on returns-to-go; without them this is behaviour cloning."""
    action_tokens: bool = True
    """Tokens of past actions (off: the release's remove_act_embs, two filters)."""
    pad_mode: Literal["masked", "official"] = "masked"
    """What lies before the first step: zeros for the filters, or padded steps as released."""
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
        require_sizes(self, "context", "width", "n_layer", "kernel", "n_head", "max_timestep")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require_fractions(self, "dropout", "embed_dropout", "attn_dropout")
        moving = self.positions in ("window", "window_start") or self.token_positions
        require(
            self.pad_mode == "masked" or not moving,
            "pad_mode", self.pad_mode, "masked where positions move with the window",
        )  # fmt: skip

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)

    def mixers(self) -> tuple[str, ...]:
        """The mixers with this config's filter settings where they name none of their own."""
        ours = f"kernel={self.kernel},proj={self.conv_proj},dropout={self.dropout}"
        split = [text.partition(":") for text in self.mixer]
        return tuple(
            f"{name}:{ours},{given}" if name == "conv" else f"{name}{colon}{given}"
            for name, colon, given in split
        )


class DecisionConvFormer(Agent):
    """See the module's docstring. Its acting state is that of ``layers/filter_memory.py``."""

    name = "dc"
    config_class = DCConfig
    acting_rules = FilterMemory.rules
    battery_config = {"context": 5, "width": 32, "dropout": 0.0, "embed_dropout": 0.0}
    config: DCConfig

    def __init__(self, config: DCConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        check_horizon(c.positions, c.max_timestep, self.stats[0].max_episode_length)
        self._check_padding()
        kinds = {RTG: c.return_tokens, OBS: True, ACTION: c.action_tokens}
        self.layout = TripletLayout(tuple(k for k, used in kinds.items() if used))
        self.tokens = StepTokens(
            task, c.width, self.layout, context=c.context, positions=c.positions,
            max_timestep=c.max_timestep, per_token=c.token_positions, norm=c.embed_norm,
            tanh=c.embed_tanh, dropout=c.embed_dropout,
        )  # fmt: skip
        m = self.layout.size
        place = Place(c.width, c.n_head, m * c.context, m, 0, c.n_layer, c.attn_dropout,
                      c.positions)  # fmt: skip
        mixers = build_mixers(c.mixers(), place, c.n_layer)
        self.stack = residual_stack(mixers, c.width, c.activation, c.dropout)
        self.head = ActionHead(task.action, c.width, bias=c.head_bias)
        if c.embed_tanh and task.action.kind == "discrete":  # as the Atari release starts it
            nn.init.normal_(self.head.out.weight, std=0.02)
        kept = not self.tokens.moving and c.pad_mode == "masked"
        sizes = (c.context, m, self.layout.place(OBS), c.width)
        self.recall = FilterMemory(self.stack, sizes, cacheable=kept)
        reach = sum(x.kernel - 1 if isinstance(x, ThreeFilterConv) else 10**9 for x in mixers)
        self.whole = kept and reach <= (c.context - 1) * m + self.layout.place(OBS)
        """Whether nothing older than the window can reach the newest state token."""

    def _check_padding(self) -> None:
        task, mode = self.tasks[0], self.config.pad_mode
        fits = task.action.kind == "continuous" and task.observation.kind == "vector"
        if mode == "official" and not fits:
            raise SeqrlError(
                "pad_mode 'official' is that of the Gym release: vectors and continuous actions, "
                f"the data have {task.observation.describe()} and {task.action.describe()}",
                hint="--agent.pad-mode masked",
            )

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        if self.config.pad_mode == "masked":
            return self._predict(batch)
        length = batch.mask.shape[1]
        shift = length - batch.mask.sum(1, keepdim=True)
        places = torch.arange(length, device=shift.device)
        prediction = self._predict(_padded_on_the_left(batch, places - shift))
        back = (places + shift).clamp(max=length - 1).unsqueeze(-1)
        return prediction.gather(1, back.expand_as(prediction))

    def _predict(self, batch: Batch) -> Tensor:
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
        return decay_by_kind(self, nn.Linear, nn.Conv2d, ThreeFilterConv)

    # --- acting -------------------------------------------------------------------------------

    def check_rule(self, rule: str) -> None:
        super().check_rule(rule)
        if rule == "stream" and not self.recall.cacheable:
            raise SeqrlError(
                "rule 'stream' needs positions that do not move with the window and "
                "pad_mode masked",
                hint="use --acting recompute, or train with --agent.positions timestep or none",
            )

    @property
    def _rule(self) -> str:
        # The same function, but without encoding the window again and again.
        return "stream" if self.whole else self.acting.rule

    def initial_state(self, n: int) -> dict[str, Any]:
        state = self.recall.initial_state(self.stack, n, self._rule)
        if self.config.pad_mode == "official":
            # As if K steps of padding had been taken: the window is full from the start.
            state["count"] += self.config.context
            state["window"] += self._padded_step(n).unsqueeze(1)
        return state

    def _padded_step(self, n: int) -> Tensor:
        """Tokens ``[n, m, D]`` of a padded step at rollout: zeros, also as a normalised state."""
        action, obs = self.tasks[0].action, self.tasks[0].observation
        zeros = self.head.out.weight.new_zeros
        step, last = zeros(n), torch.zeros(n, dtype=torch.int64, device=self.device)
        tokens, before = self.tokens.step(step, zeros(n, *obs.shape), zeros(n, *action.shape), last)
        return tokens if before is None else torch.cat([tokens, before.unsqueeze(1)], 1)

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        if self.config.pad_mode == "official":
            fresh = self.initial_state(int(rows.shape[0]))
            reset: dict[str, Any] = select_rows(rows, fresh, state)
            return reset
        return self.recall.reset(self.stack, state, rows)

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        rtg, obs = self.scaled(step.rtg), self.observe(step.observation)
        tokens, action = self.tokens.step(rtg, obs, step.prev_action, step.timestep)
        action = tokens[:, 0] if action is None else action
        new = NewTokens(tokens, action, step.timestep, step.first)
        hidden, state = self.recall.advance(self, self.stack, state, self._rule, new)
        return self.head(hidden), state

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """What depends on a token's place; see :class:`TokenModel`."""
        return self.tokens.finish(x, position, timestep)


def _padded_on_the_left(batch: Batch, source: Tensor) -> Batch:
    """Windows moved to the right, padded before with the release's training values.

    Args:
        source: ``[B, T]`` the step that comes to each place; negative for padding.
    """
    rows = torch.arange(batch.size, device=source.device).unsqueeze(1)
    padding = {"actions": OFFICIAL_PADDING, "observations": 0, "returns_to_go": 0, "timesteps": 0}
    moved = {}
    for name, value in padding.items():
        x = getattr(batch, name)[rows, source.clamp(min=0)]
        moved[name] = x.masked_fill((source < 0).view(*source.shape, *[1] * (x.dim() - 2)), value)
    return dataclasses.replace(batch, **moved)

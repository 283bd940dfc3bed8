"""Decision Mamba: return-conditioned cloning with selective state spaces.

``decision_mamba`` is Lv et al. 2024 (arXiv 2406.05427): tokens ``(R_0, s_0, a_0, ...)`` through
multi-grained blocks (``layers/multi_grained.py``), trained on labels that an earlier self refines,
with two objectives beside cloning:

    a_ref = (1 - b_k) a + b_k teacher(tau),   b_k = min(cap, b_T k / iterations)
    L = (1 - w_s - w_R) mse(a_t, a_ref) + w_s huber(s_{t+1}) + w_R huber(R_{t+1})

``dmamba`` is Ota 2024 (arXiv 2403.19925): a Decision Transformer with Mamba in attention's place;
its presets turn the objectives above off.

What differs from the released code of Lv et al., and why:

====================================  =============================================================
release                               here
====================================  =============================================================
step summaries hold the action that   they hold the action before; and reach the tokens of their
is predicted, and reach other steps   own step (state tokens saw later actions while training)
weight of the refined label is 0,     the paper's: a frozen copy of the policy, renewed after each
its source the model itself           iteration of ``teacher_every`` updates
that weight 0 also drops L_s, L_R     independent
windows padded on the left, unmasked  on the right, so that padding comes after all it could reach
A, D and norms decay                  no decay on them, on biases and other vectors
no tanh with ``embed=mlp``            ``action_tanh``, on by default for bounded actions
====================================  =============================================================

The release of Ota resets the step sizes of Mamba to 0.69, a memory of about one token
(``ota_init``); here they start between 0.001 and 0.1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss, masked_mean
from seqrl.layers.multi_grained import MultiGrainedBlock, MultiGrainedMemory, MultiGrainedStack
from seqrl.layers.s6 import S6
from seqrl.layers.stack import MLP, MixerBlock, MixerStack, RMSNorm
from seqrl.layers.token_memory import MixerMemory, NewTokens
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec

LAYOUT = TripletLayout((RTG, OBS, ACTION))


@dataclass(frozen=True)
class DecisionMambaConfig(AgentConfig):
    """Decision Mamba settings; defaults fit a CPU (published: 24 layers of 768)."""

    variant: Literal["decision_mamba", "dmamba"] = "decision_mamba"
    """Blocks of Lv et al. (Mamba alone, RMSNorm) or of Ota (Mamba and MLP, LayerNorm)."""
    context: int = 20
    """Time steps K of a training window, and the most that rule recompute looks back."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 3
    """Blocks."""
    state: int = 16
    """States N of a channel."""
    expand: int = 2
    """Channels of a mixer are this times the width."""
    conv: int = 4
    """Tokens the convolution in a mixer sees."""
    multi_grained: bool = True
    """A second mixer over steps in every block (variant decision_mamba)."""
    fusion: Literal["dual", "shared_gate"] = "dual"
    """How the two mixers of a block are joined: as released, or one gate for both (figure)."""
    embed: Literal["linear", "mlp"] = "linear"
    """Embeddings and action head; mlp adds a residual hidden layer (release: all but Hopper)."""
    action_tanh: bool = True
    """Keep continuous actions within finite bounds by a tanh."""
    positions: Literal["timestep", "none"] = "timestep"
    """Learned vector added to a step's tokens, by step of the episode; none adds nothing."""
    max_timestep: int = 1000
    """Rows of the timestep table: episodes may not be longer."""
    dropout: float = 0.0
    """On token vectors and, for dmamba, behind its MLPs."""
    next_state_weight: float = 0.05
    """Weight w_s of predicting the next observation (never for images); 0 turns it off."""
    next_return_weight: float = 0.05
    """Weight w_R of predicting the next return-to-go; 0 turns it off."""
    teacher: Literal["snapshot", "ema", "none"] = "snapshot"
    """Who refines labels: the policy as of the last iteration, a running average of it, nobody."""
    teacher_every: int = 2500
    """Updates of an iteration."""
    teacher_decay: float = 0.999
    """Of the running average, at each update."""
    total_updates: int = 100_000
    """Planned updates, over which the weight of the teacher rises (set it to the run's steps)."""
    beta_max: float = 0.85
    """Weight b_T of the teacher that the schedule aims at."""
    beta_cap: float = 0.5
    """Most the weight may be."""
    pser_schedule: Literal["linear", "constant"] = "linear"
    """Rise with the iterations, or the full weight from the first snapshot on."""
    ota_init: bool = False
    """Start linear layers in the blocks as Ota's release does, step sizes included."""
    windows: Literal["any_start", "any_end", "episode_start"] = "any_start"
    """Where training windows lie: from any step, up to any step, or from the episode start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("context", "width", "n_layer", "state", "expand", "conv", "max_timestep")
        require_sizes(self, *sizes, "teacher_every", "total_updates")
        require_fractions(self, "dropout", "teacher_decay")
        for name in ("next_state_weight", "next_return_weight", "beta_max", "beta_cap"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        aux = self.next_state_weight + self.next_return_weight
        require(aux < 1, "next_state_weight", aux, "below 1 together with next_return_weight")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)

    def beta(self, iteration: int) -> float:
        """Weight b_k of the teacher after ``iteration`` whole iterations.

        >>> [round(DecisionMambaConfig().beta(k), 3) for k in (0, 1, 2, 23, 24)]
        [0.0, 0.021, 0.042, 0.489, 0.5]
        """
        if self.teacher == "none" or iteration == 0:
            return 0.0
        share = iteration * self.teacher_every / self.total_updates
        rising = self.pser_schedule == "linear"
        return min(self.beta_cap, self.beta_max * share if rising else self.beta_max)


class DecisionMambaNet(nn.Module):
    """The policy network: everything that the teacher is a copy of."""

    def __init__(self, c: DecisionMambaConfig, task: TaskSpec):
        super().__init__()
        d = c.width
        self.time_first = c.variant == "dmamba"
        self.embed = nn.ModuleDict(
            {
                RTG: _embedding(nn.Linear(1, d), c),
                OBS: _embedding(observation_embedding(task.observation, d), c),
                ACTION: _embedding(ActionEmbedding(task.action, d), c),
            }
        )
        self.embed_time = nn.Embedding(c.max_timestep, d) if c.positions == "timestep" else None
        self.embed_norm = nn.LayerNorm(d)
        self.dropout = Dropout(c.dropout)
        self.stack = _stack(c)
        action = ActionHead(task.action, d)
        action.squash = action.squash and c.action_tanh
        hidden = [nn.Linear(d, d), nn.GELU()] if c.embed == "mlp" else []
        self.head = nn.Sequential(*hidden, action)

    def token(self, kind: str, x: Tensor, timestep: Tensor) -> Tensor:
        """Tokens ``[..., D]`` of one kind, from network inputs and ``timestep [...]``."""
        x = self.embed[kind](x)
        table = self.embed_time
        time = 0.0 if table is None else table(timestep.clamp(0, table.num_embeddings - 1))
        x = self.embed_norm(x + time) if self.time_first else self.embed_norm(x) + time
        return self.dropout(x)

    def forward(self, inputs: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        """Hidden states ``[B, 3T - 1, D]`` of a window; inputs by kind of token ``[B, T, ...]``."""
        tokens = {kind: self.token(kind, x, timesteps) for kind, x in inputs.items()}
        # Nothing follows the last action token, so it is never looked at.
        y, _ = self.stack(LAYOUT.interleave(tokens)[:, :-1])
        return y

    def actions(self, hidden: Tensor) -> Tensor:
        """Action predictions ``[B, T, ...]`` from :meth:`forward`'s hidden states."""
        return self.head(LAYOUT.read(hidden, OBS))


class _Refined(nn.Module):
    """``h = base(x);  h + W2 gelu(W1 h + b1) + b2``."""

    def __init__(self, base: nn.Module, width: int):
        super().__init__()
        self.base, self.mlp = base, MLP(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + self.mlp(h)


def _embedding(base: nn.Module, c: DecisionMambaConfig) -> nn.Module:
    return _Refined(base, c.width) if c.embed == "mlp" else base


def _stack(c: DecisionMambaConfig) -> MixerStack | MultiGrainedStack:
    options: dict[str, Any] = {"expand": c.expand, "state": c.state, "conv": c.conv}
    stack: MixerStack | MultiGrainedStack
    if c.variant == "dmamba":
        blocks = []
        for _ in range(c.n_layer):
            mlp = MLP(c.width, 4 * c.width)
            for part in (mlp.up, mlp.down):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
            behind = nn.Sequential(mlp, Dropout(c.dropout))
            blocks.append(MixerBlock(S6(c.width, **options), nn.LayerNorm, c.width, behind))
        stack = MixerStack(blocks, nn.LayerNorm(c.width))
    elif c.multi_grained:
        grained = [MultiGrainedBlock(c.width, c.fusion, **options) for _ in range(c.n_layer)]
        stack = MultiGrainedStack(grained, c.width)
    else:
        plain = [MixerBlock(S6(c.width, **options), RMSNorm, c.width) for _ in range(c.n_layer)]
        stack = MixerStack(plain, RMSNorm(c.width))
    if c.ota_init:
        for linear in (m for m in stack.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
    return stack


class DecisionMamba(Agent):
    """See the module's docstring. Its acting state is that of ``layers/token_memory.py``."""

    name = "decision_mamba"
    config_class = DecisionMambaConfig
    acting_rules = ("recompute", "stream")
    battery_config = {"context": 6, "width": 32, "n_layer": 2}
    config: DecisionMambaConfig

    def __init__(self, config: DecisionMambaConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        longest = self.stats[0].max_episode_length
        if c.positions == "timestep" and longest > c.max_timestep:
            raise SeqrlError(
                f"episodes reach {longest:,} steps, agent.max_timestep is {c.max_timestep:,}",
                hint=f"--agent.max-timestep {longest}",
            )
        self.net = DecisionMambaNet(c, task)
        predicted = task.observation.shape[0] if task.observation.kind == "vector" else 0
        self.next_state: nn.Linear | None = (
            nn.Linear(c.width, predicted) if c.next_state_weight and predicted else None
        )
        self.next_return = nn.Linear(c.width, 1) if c.next_return_weight else None
        memory = (
            MultiGrainedMemory if isinstance(self.net.stack, MultiGrainedStack) else MixerMemory
        )
        self.recall = memory(c.context, LAYOUT.size, LAYOUT.place(OBS), c.width)
        self.teacher = (
            None if c.teacher == "none" else copy.deepcopy(self.net).requires_grad_(False)
        )
        self.iteration = 0
        """Whole iterations so far: snapshots taken, for teacher="snapshot"."""

    # --- learning -----------------------------------------------------------------------------

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {
            RTG: self.scaled(batch.returns_to_go).unsqueeze(-1),
            OBS: self.observe(batch.observations),
            ACTION: batch.actions,
        }

    def predict(self, batch: Batch) -> Tensor:
        return self.net.actions(self.net(self._inputs(batch), batch.timesteps))

    def loss(self, batch: Batch) -> LossOut:
        inputs = self._inputs(batch)
        hidden = self.net(inputs, batch.timesteps)
        out = self._action_loss(batch, inputs, self.net.actions(hidden))
        parts, metrics = [], dict(out.metrics)
        if batch.mask.shape[1] > 1:
            # From the action token of step t to step t + 1, where that is real.
            y, mask = LAYOUT.read(hidden, ACTION), batch.mask[:, 1:]
            c, heads = self.config, (self.next_state, self.next_return)
            weights = (c.next_state_weight, c.next_return_weight)
            for kind, head, w in zip((OBS, RTG), heads, weights, strict=True):
                if head is None:
                    continue
                errors = F.smooth_l1_loss(head(y).float(), inputs[kind][:, 1:], reduction="none")
                parts.append((w, masked_mean(errors, mask)[0]))
                metrics[f"next_{kind}_loss"] = parts[-1][1].detach()
        loss = out.loss * (1 - sum(w for w, _ in parts))
        for w, value in parts:
            loss = loss + w * value
        return LossOut(loss, out.count, metrics)

    def _action_loss(self, batch: Batch, inputs: dict[str, Tensor], prediction: Tensor) -> LossOut:
        """Against labels refined by the teacher while training, else against the data's.

        Metrics: ``action_error`` against the data, ``beta``, and ``label_shift``: the mean absolute
        change of the labels, or the probability they took from the data's action.
        """
        spec, beta = self.tasks[0].action, self.config.beta(self.iteration)
        plain = action_loss(spec, prediction, batch.actions, batch.mask, self.common_action)
        metrics = {**plain.metrics, "beta": beta, "label_shift": 0.0}
        if beta == 0 or self.teacher is None or not self.training:
            return LossOut(plain.loss, plain.count, metrics)
        with torch.no_grad():
            taught = self.teacher.actions(self.teacher(inputs, batch.timesteps)).float()
        if spec.kind == "continuous":
            labels = torch.lerp(batch.actions, taught, beta)
            errors = (prediction.float() - labels).square()
            shift = (labels - batch.actions).abs()
        else:
            data = F.one_hot(batch.actions, spec.n).float()
            labels = torch.lerp(data, taught.softmax(-1), beta)
            errors = -(labels * prediction.float().log_softmax(-1)).sum(-1)
            shift = (labels - data).abs().sum(-1) / 2
        loss, count = masked_mean(errors, batch.mask)
        metrics["label_shift"] = masked_mean(shift, batch.mask)[0]
        return LossOut(loss, count, metrics)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Renew the teacher: at the end of an iteration (snapshot), or a little (ema)."""
        if self.teacher is None:
            return
        own: list[Tensor] = list(self.net.parameters())
        old: list[Tensor] = list(self.teacher.parameters())
        if self.config.teacher == "ema":
            torch._foreach_lerp_(old, own, 1 - self.config.teacher_decay)
        if step % self.config.teacher_every == 0:
            self.iteration = step // self.config.teacher_every
            if self.config.teacher == "snapshot":
                torch._foreach_copy_(old, own)

    def train(self, mode: bool = True) -> DecisionMamba:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def get_extra_state(self) -> dict[str, int]:
        """Saved beside the weights (and the teacher's): resuming goes on in the same iteration."""
        return {"iteration": self.iteration}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.iteration = int(state["iteration"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Decay on matrices alone: none on A, on biases, norms and other vectors."""
        mixers = [m for m in self.modules() if isinstance(m, S6)]
        bare = {id(p) for m in mixers for g in m.parameter_groups() for p in g["params"]}
        split: dict[bool, list[Tensor]] = {True: [], False: []}
        for p in self.parameters():
            if p.requires_grad:
                split[p.dim() > 1 and id(p) not in bare].append(p)
        return [{"params": split[True]}, {"params": split[False], "weight_decay": 0.0}]

    # --- acting -------------------------------------------------------------------------------

    def initial_state(self, n: int) -> dict[str, Any]:
        return self.recall.initial_state(self.net.stack, n, self.acting.rule)

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        return self.recall.reset(self.net.stack, state, rows)

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        net, t = self.net, step.timestep
        rtg = net.token(RTG, self.scaled(step.rtg).unsqueeze(-1), t)
        tokens = torch.stack([rtg, net.token(OBS, self.observe(step.observation), t)], 1)
        action = net.token(ACTION, step.prev_action, t - 1)
        new = NewTokens(tokens, action, t, step.first)
        hidden, state = self.recall.advance(self, net.stack, state, self.acting.rule, new)
        return net.head(hidden), state

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """Nothing here depends on a token's place in the window; see :class:`TokenModel`."""
        return x

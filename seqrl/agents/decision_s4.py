"""Decision S4: state space layers over one vector a step (David et al. 2023, arXiv 2306.05167).

    u_t = W [tanh E_s(s_t), tanh E_a(a_{t-1}), tanh E_R(R_t)],   a_t = head(S4 blocks(u_0 .. u_t))
    block(x) = x + GELU(Linear(dropout(GELU(S4(LayerNorm(x))))))

Trained on whole trajectories as a convolution, it acts as a recurrence: constant cost and memory
at any step of an episode. Loss: squared error (or cross-entropy) over real steps.

The authors released no code; the sources are the paper's introduction, and the single-agent parts
that a later project built on their code still contains. What differs from those:

==================================  ===============================================================
there                               here
==================================  ===============================================================
previous steps' R_{t-1} with s_t    R_t with s_t, in training and acting alike
the first step is not trained on    it is, with a zero previous action
S4 with HiPPO-LegS, bilinear        S4D with HiPPO-LegS, held input; ``kernel="dplr"`` for theirs
no norm, no residual connection     both, unless ``ds4_strict``
only C and D of the kernel learn    all of it does, unless ``train_kernel=False``
input layer missing in training     applied in training and acting
==================================  ===============================================================

It also fine-tunes by actor-critic (:mod:`seqrl.agents.actor`, section "on-policy" of the paper).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.actor import RecurrentActor
from seqrl.agents.agent import AgentConfig, require, require_sizes
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import action_loss
from seqrl.layers.hippo import INITS
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.s4 import S4, S4D
from seqrl.layers.stack import grouped_parameters
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class DecisionS4Config(AgentConfig):
    """Decision S4 settings."""

    context: int | None = None
    """Time steps of a training window; none means whole episodes. Acting has no limit."""
    windows: Literal["episode", "episode_start", "any_start"] = "episode"
    """Where training windows lie. From the episode's start training sees the state as acting does;
    any_start needs a context."""
    width: int = 64
    """Channels H of each S4 layer (published code: 96)."""
    state: int = 64
    """State numbers N of each channel (published code: 96)."""
    n_layer: int = 3
    """S4 blocks."""
    embed_width: int = 128
    """Size of the embedded state, action and return, before they are joined."""
    embed_tanh: bool = True
    """Tanh on each of the three."""
    core: Literal["s4", "rnn", "lin", "random"] = "s4"
    """What carries time: S4, a tanh RNN, nothing, or S4 with a random state matrix (ablations)."""
    kernel: Literal["diagonal", "dplr"] = "diagonal"
    """S4D, or full S4 (diagonal plus low rank; LegS, bilinear; several times slower to
    train)."""
    init: Literal["legs", "lin", "inv", "real"] = "legs"
    """First state matrix of the diagonal kernel."""
    disc: Literal["zoh", "bilinear"] = "zoh"
    """Discretisation of the diagonal kernel."""
    dt_min: float = 0.001
    """Shortest step length at the start; memory reaches back about 1/dt steps."""
    dt_max: float = 0.1
    """Longest step length at the start."""
    n_ssm: int | None = None
    """Copies of the state matrix; none means 1 for legs, one a channel for the others."""
    train_kernel: bool = True
    """Learn step lengths and state matrices too (rate at most 1e-3), not only what reads them."""
    kernel_dtype: Literal["float32", "float64"] = "float32"
    """Precision of the kernel's powers."""
    norm: bool = True
    """LayerNorm before each S4 layer."""
    residual: bool = True
    """Add a block's input to its output."""
    ds4_strict: bool = False
    """Blocks as in the published code: no norm, no residual connection."""
    dropout: float = 0.0
    """On the first hidden vector and inside blocks."""
    train_noise: float = 0.0
    """Deviation of Gaussian noise added after each S4 layer in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "width", "state", "n_layer", "embed_width")
        require(self.state % 2 == 0, "state", self.state, "even")
        ok = self.context is None or self.context >= 1
        require(ok, "context", self.context, "at least 1, or none")
        whole = self.context is not None or self.windows == "episode"
        require(whole, "windows", self.windows, "episode where there is no context")
        require(self.init in INITS, "init", self.init, f"one of {', '.join(INITS)}")
        ok = 0 < self.dt_min <= self.dt_max
        require(ok, "dt_min", self.dt_min, f"above 0 and at most dt_max ({self.dt_max})")
        divides = self.n_ssm is None or (self.n_ssm >= 1 and self.width % self.n_ssm == 0)
        require(divides, "n_ssm", self.n_ssm, f"a divisor of {self.width}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(self.train_noise >= 0, "train_noise", self.train_noise, "at least 0")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class Block(nn.Module):
    """``x + GELU(Linear(dropout(GELU(core(norm(x))))))``; norm and residual may be missing."""

    def __init__(self, c: DecisionS4Config):
        super().__init__()
        bare = c.ds4_strict
        self.norm = nn.LayerNorm(c.width) if c.norm and not bare else nn.Identity()
        self.core = build_core(c)
        self.dropout = Dropout(c.dropout)
        self.linear = nn.Linear(c.width, c.width)
        self.residual, self.noise = c.residual and not bare, c.train_noise

    def forward(self, x: Tensor, core: Callable[[Tensor], tuple[Tensor, Any]]) -> tuple[Any, Any]:
        """The block around its core, which is called on a sequence or on a step.

        Args:
            x: ``[B, L, H]`` or ``[n, H]``.
            core: ``self.core``, or its step, with the state filled in.
        """
        y, state = core(self.norm(x))
        if self.training and self.noise:
            y = y + self.noise * torch.randn_like(y)
        y = F.gelu(self.linear(self.dropout(F.gelu(y))))
        return (x + y if self.residual else y), state


class TanhRNN(Mixer):
    """``h_t = tanh(W u_t + U h_{t-1} + b)``, then a linear layer. State: ``h [B, H]``."""

    def __init__(self, width: int):
        super().__init__()
        self.cell = nn.RNN(width, width, batch_first=True)
        self.out = nn.Linear(width, width)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> TanhRNN:
        return cls(place.width, **options)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before = None if state is None else state.unsqueeze(0)
        with torch.autocast(x.device.type, enabled=False):
            y, h = self.cell(x.to(self.out.weight.dtype), before)
        return self.out(y), None if state is None else h[0]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self(x.unsqueeze(1), state)
        return y[:, 0], state

    def initial_state(self, rows: int) -> Any:
        return self.out.weight.new_zeros(rows, self.out.in_features)


class Pointwise(Mixer):
    """Carries nothing over time: the block is an MLP on each step."""

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> Pointwise:
        return cls(**options)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x, state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, state

    def initial_state(self, rows: int) -> Any:
        return ()


def build_core(c: DecisionS4Config) -> Mixer:
    """What a block does over time."""
    if c.core == "rnn":
        return TanhRNN(c.width)
    if c.core == "lin":
        return Pointwise()
    shared: dict[str, Any] = {
        "state": c.state,
        "dt_min": c.dt_min,
        "dt_max": c.dt_max,
        "n_ssm": c.n_ssm,
        "train_kernel": c.train_kernel,
        "kernel_dtype": c.kernel_dtype,
    }
    if c.kernel == "dplr" and c.core == "s4":
        return S4(c.width, **shared)
    return S4D(c.width, init="random" if c.core == "random" else c.init, disc=c.disc, **shared)


class DecisionS4(RecurrentActor):
    """See the module's docstring. Acting state: a list, the state of each block's core."""

    name = "decision_s4"
    config_class = DecisionS4Config
    acting_rules = ("stream",)
    # The FFT rounds: measured 1e-7 for predictions of size 0.5.
    tolerance = {"causality": 1e-6, "padding": 1e-5, "streaming": 1e-5}
    battery_config = {"width": 32, "state": 16, "n_layer": 2, "embed_width": 32}
    config: DecisionS4Config

    def __init__(self, config: DecisionS4Config, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.embed_obs = observation_embedding(task.observation, c.embed_width)
        self.embed_action = ActionEmbedding(task.action, c.embed_width)
        self.embed_rtg = nn.Linear(1, c.embed_width)
        nn.init.normal_(next(self.embed_action.parameters()), std=0.02)
        self.join = nn.Linear(3 * c.embed_width, c.width)
        self.before = nn.Linear(c.width, c.width)
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        outputs = task.action.size if task.action.kind == "continuous" else task.action.n
        self.head = nn.Linear(c.width, outputs, bias=False)

    def _inputs(self, obs: Tensor, rtg: Tensor, prev: Tensor, has_prev: Tensor) -> Tensor:
        """Input vectors ``[..., H]`` of steps.

        Args:
            obs: ``[..., S]`` or images; rtg: ``[...]``; both raw.
            prev: previous actions ``[..., A]`` or ``[...]``.
            has_prev: ``[...]`` bool, False at an episode's first step: a zero action then, or a
                zero vector where actions are choices.
        """
        there = has_prev.unsqueeze(-1)
        if self.tasks[0].action.kind == "continuous":
            action = self.embed_action(prev * there)
        else:
            action = self.embed_action(prev) * there
        rtg = self.scaled(rtg).unsqueeze(-1)
        parts = [self.embed_obs(self.observe(obs)), action, self.embed_rtg(rtg)]
        if self.config.embed_tanh:
            parts = [torch.tanh(p) for p in parts]
        x = F.gelu(self.join(torch.cat(parts, -1)))
        return self.dropout(self.before(x))

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        has_prev = torch.ones_like(batch.mask)
        # The action before a window that starts in mid-episode is not in it: zero there too.
        has_prev[:, 0] = False
        prev = torch.roll(batch.actions, 1, dims=1)
        x = self._inputs(batch.observations, batch.returns_to_go, prev, has_prev)
        for block in self.blocks:
            x, _ = block(x, block.core)
        return self.head(x)

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Decay on the weights of linear and convolution layers behind the embeddings; none on
        biases, norms, embeddings and the recurrence, whose inside has a bounded rate."""
        rest, *special = grouped_parameters(self)
        inner = [self.join, self.before, self.head, *self.blocks.modules()]
        if isinstance(self.embed_obs, nn.Module):
            inner += [m for m in self.embed_obs.modules() if isinstance(m, nn.Conv2d)]
        decayed = {id(m.weight) for m in inner if isinstance(m, (nn.Linear, nn.Conv2d))}
        decayed |= {id(p) for m in inner if isinstance(m, nn.RNN) for p in m.parameters()}
        split: dict[bool, list[Tensor]] = {True: [], False: []}
        for p in rest["params"]:
            split[id(p) in decayed].append(p)
        return [{"params": split[True]}, {"params": split[False], "weight_decay": 0.0}, *special]

    # --- acting -------------------------------------------------------------------------------

    def initial_state(self, n: int) -> list[Any]:
        return [block.core.initial_state(n) for block in self._blocks()]

    def step(self, state: list[Any], step: Step) -> tuple[Tensor, list[Any]]:
        x = self._inputs(step.observation, step.rtg, step.prev_action, ~step.first)
        after = []
        for block, own in zip(self._blocks(), state, strict=True):
            x, new = block(x, lambda y, b=block, s=own: b.core.step(y, s))
            after.append(new)
        return self.head(x), after

    def decode(self, prediction: Tensor, generator: Any) -> Tensor:
        action = super().decode(prediction, generator)
        return action if self.tasks[0].action.kind == "discrete" else self.within_bounds(action)

    def freeze_for_finetune(self) -> None:
        """No longer train step lengths and state matrices (after the paper's successors, who found
        late collapses otherwise)."""
        for m in self.modules():
            if isinstance(m, S4D):
                m.freeze_kernel()

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

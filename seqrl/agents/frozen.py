"""Frozen history: a random recurrent encoder that never learns, read by a head that does.

    x_t = P [o_t, a_{t-1}, r_{t-1}],  h_t = encoder(x_t, h_{t-1}),  a_t = MLP([norm(h_t), o_t, R_t])

P and the encoder are drawn once and kept; behaviour cloning trains the MLP alone. This is the
control of every memory table: what a memory does that nobody trained. Features h depend on the
data alone; they are encoded anew with every batch, without gradient, and not cached.

A frozen memory under a trained head is the idea of HELM (Paischer et al. 2022, arXiv 2205.12258),
the scaling of random weights that of echo state networks (Jaeger 2001). Differences from HELM:

==================================  ===============================================================
HELM                                here
==================================  ===============================================================
a pretrained language model         a random GRU, LSTM or other recurrent mixer
observations become mixtures of     a random projection of observation, previous action and, if
word vectors (FrozenHopfield)       asked for, reward
online, by PPO                      offline, by cloning, with the return-to-go in the head
==================================  ===============================================================
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, ImageEncoder
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.mixer import Mixer, Place, build_mixers
from seqrl.layers.rnn import GRUMixer, LSTMMixer
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class FrozenConfig(AgentConfig):
    """Frozen-history settings."""

    context: int = 20
    """Time steps of a training window (acting has no limit)."""
    encoder: tuple[str, ...] = ("gru",)
    """What carries the history: gru, lstm, or another recurrent name of `seqrl list mixers`, one
    for all layers or one each."""
    width: int = 128
    """Units of the encoder, and numbers that the projection makes of a step."""
    n_layer: int = 1
    """Encoder layers; each reads the outputs of the one below."""
    input_scale: float = 1.0
    """Deviation of the projected step's entries, where what it is made of has deviation 1."""
    spectral_radius: float = 1.0
    """Of gru and lstm: size of all eigenvalues of a gate's recurrent matrix, which is this times a
    random orthogonal one. Other encoders keep the start of their own."""
    time_scale: float = 100.0
    """Of gru and lstm: first biases of forget (update) gates keep for 1 to this many steps,
    log-uniform over the units; at 1 all are 0."""
    encoder_seed: int | None = None
    """Draw the encoder from this seed; none means from the run's, as the head."""
    action_input: bool = True
    """Encode the previous action."""
    reward_input: bool = False
    """Encode the previous reward."""
    return_tokens: bool = True
    """Condition the head on returns-to-go (the encoder never sees them)."""
    head_width: int = 256
    """Hidden units of each layer of the head; of images, also of what it sees of them."""
    head_layers: int = 2
    """Hidden layers of the head."""
    dropout: float = 0.0
    """After each hidden layer of the head."""
    windows: Literal["any_start", "episode_start"] = "episode_start"
    """Where training windows lie. From the episode start training sees the state as acting does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer", "head_width", "head_layers")
        require_fractions(self, "dropout")
        require(self.input_scale > 0, "input_scale", self.input_scale, "above 0")
        radius = self.spectral_radius
        require(radius >= 0, "spectral_radius", radius, "at least 0")
        require(self.time_scale >= 1, "time_scale", self.time_scale, "at least 1")
        seed = self.encoder_seed
        require(seed is None or seed >= 0, "encoder_seed", seed, "at least 0, or none")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class HistoryEncoder(nn.Module):
    """The frozen part: a random projection of each step, and random recurrent layers over it.

    Its weights are parameters that ask for no gradient, so that they are saved with the policy.

    Args:
        config: sizes, scales and what is encoded.
        task: observations and actions.
        reward_size: rewards are divided by this.

    Raises:
        SeqrlError: an unknown mixer, or one that forgets by a window.
    """

    def __init__(self, config: FrozenConfig, task: TaskSpec, reward_size: float):
        super().__init__()
        self.config, self.reward_size = config, reward_size
        c = config
        self.obs = nn.Linear(math.prod(task.observation.shape), c.width, bias=False)
        self.image = task.observation.kind == "image"
        self.action = ActionEmbedding(task.action, c.width) if c.action_input else None
        self.reward = nn.Linear(1, c.width, bias=False) if c.reward_input else None
        mixers = build_mixers(c.encoder, Place(c.width, period=1), c.n_layer)
        self.layers = nn.ModuleList(mixers)
        for name, mixer in zip(c.encoder * c.n_layer, mixers, strict=False):
            if not mixer.unlimited:
                raise SeqrlError(
                    f"encoder '{name}' carries no state, it looks at a window",
                    hint="use gru, lstm or another mixer of fixed size: seqrl list mixers",
                )
        self._start()
        self.requires_grad_(False)

    def _start(self) -> None:
        """First and last values: entries whose sums have unit scale."""
        parts = [p for p in (self.obs, self.action, self.reward) if p is not None]
        scale = self.config.input_scale / math.sqrt(len(parts))
        for part in parts:
            for m in part.modules():
                if isinstance(m, nn.Linear):
                    nn.init.normal_(m.weight, std=scale / math.sqrt(m.in_features))
                    if m.bias is not None:
                        nn.init.zeros_(m.bias)
                elif isinstance(m, nn.Embedding):
                    nn.init.normal_(m.weight, std=scale)
        for mixer in self.layers:
            if isinstance(mixer, (GRUMixer, LSTMMixer)):
                start_cell(mixer.cell, self.config.spectral_radius, self.config.time_scale)

    def _project(self, obs: Tensor, action: Tensor, reward: Tensor, known: Tensor) -> Tensor:
        """Input vectors ``[..., D]``; see :meth:`forward`."""
        x = self.obs(obs.flatten(-3) * 2 - 1 if self.image else obs)
        if self.action is not None:
            x = x + self.action(action) * known.unsqueeze(-1)
        if self.reward is not None:
            x = x + self.reward((reward / self.reward_size * known).unsqueeze(-1))
        return x

    def forward(self, obs: Tensor, action: Tensor, reward: Tensor, known: Tensor) -> Tensor:
        """Features of whole windows.

        Args:
            obs: ``[B, T, S]`` normalised, or images ``[B, T, H, W, C]`` in [0, 1].
            action: of the step before, ``[B, T, A]`` or ``[B, T]``.
            reward: of the step before, ``[B, T]``, raw.
            known: ``[B, T]`` float, 0 where there is no step before.

        Returns:
            ``[B, T, D]``, without gradient.
        """
        with torch.no_grad(), torch.autocast(obs.device.type, enabled=False):
            x = self._project(obs, action, reward, known)
            for mixer in self._mixers():
                x, _ = mixer(x)
            return _normed(x)

    def step(
        self, state: list[Any], obs: Tensor, action: Tensor, reward: Tensor, known: Tensor
    ) -> tuple[Tensor, list[Any]]:
        """Features ``[n, D]`` of one more step, and the state; arguments as in :meth:`forward`
        without T."""
        x, after = self._project(obs, action, reward, known), []
        for mixer, own in zip(self._mixers(), state, strict=True):
            x, own = mixer.step(x, own)
            after.append(own)
        return _normed(x), after

    def initial_state(self, n: int) -> list[Any]:
        """The state of each layer before the first step."""
        return [mixer.initial_state(n) for mixer in self._mixers()]

    def _mixers(self) -> list[Mixer]:
        return list(self.layers)  # type: ignore[arg-type]


@torch.no_grad()
def start_cell(cell: nn.RNNBase, radius: float, time_scale: float) -> None:
    """Random weights of a recurrent layer that keeps what it is given for a while.

    Input maps are N(0, 1/D), biases 0 but those of the gates that say how much is kept: there
    ``log u``, u log-uniform over the units, by which ``1 - sigmoid(bias) = 1 / (1 + u)`` of the
    memory goes at each step (after Tallec and Ollivier 2018, arXiv 1804.11188, whose u is uniform).

    Args:
        cell: one layer of ``nn.GRU`` or ``nn.LSTM``; written to.
        radius: recurrent matrices are this times a random orthogonal one a gate, so that at 1
            nothing fades or grows by the matrix alone.
        time_scale: largest u; the smallest is 1.
    """
    weight_in, weight_back, bias_in, bias_back = cell.all_weights[0]
    units = weight_back.shape[1]
    nn.init.normal_(weight_in, std=weight_in.shape[1] ** -0.5)
    for gate in weight_back.split(units):
        nn.init.orthogonal_(gate, gain=radius)
    nn.init.zeros_(bias_in)
    nn.init.zeros_(bias_back)
    # Both kinds of cell have these gates second: (input, forget, ...) and (reset, update, ...).
    gates = bias_in.view(-1, units)
    gates[1].uniform_(0, math.log(time_scale))
    if isinstance(cell, nn.LSTM):
        gates[0] = -gates[1]  # what is kept for long is written slowly; a GRU does so by itself


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class Frozen(Agent):
    """See the module's docstring. Acting state: a list, the state of each encoder layer."""

    name = "frozen"
    config_class = FrozenConfig
    acting_rules = ("stream",)
    battery_config = {"context": 8, "width": 48, "n_layer": 2, "head_width": 64}
    config: FrozenConfig

    def __init__(self, config: FrozenConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        largest = max(abs(self.stats[0].reward_min), abs(self.stats[0].reward_max))
        with _drawing_from(c.encoder_seed):
            self.encoder = HistoryEncoder(c, task, largest or 1.0)
        image = task.observation.kind == "image"
        self.vision = ImageEncoder(task.observation.shape, c.head_width) if image else nn.Identity()
        seen = c.head_width if image else task.observation.shape[0]
        layers: list[nn.Module] = []
        size = c.width + seen + int(c.return_tokens)
        for _ in range(c.head_layers):
            layers += [nn.Linear(size, c.head_width), nn.ReLU(), Dropout(c.dropout)]
            size = c.head_width
        self.body = nn.Sequential(*layers)
        self.head = ActionHead(task.action, c.head_width)

    def _decide(self, h: Tensor, obs: Tensor, rtg: Tensor) -> Tensor:
        """Predictions from features ``[..., D]``, network-ready observations and raw returns."""
        parts = [h, self.vision(obs)]
        if self.config.return_tokens:
            parts.append(self.scaled(rtg).unsqueeze(-1))
        return self.head(self.body(torch.cat(parts, -1)))

    def encode_history(self, batch: Batch) -> Tensor:
        """Features ``[B, T, D]`` of a batch's steps: a function of the data alone."""
        known = torch.ones_like(batch.rewards)
        # The step before a window that starts in mid-episode is not in it: unknown there too.
        known[:, 0] = 0
        before = [torch.roll(x, 1, dims=1) for x in (batch.actions, batch.rewards)]
        return self.encoder(self.observe(batch.observations), *before, known)

    def predict(self, batch: Batch) -> Tensor:
        obs = self.observe(batch.observations)
        return self._decide(self.encode_history(batch), obs, batch.returns_to_go)

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def initial_state(self, n: int) -> list[Any]:
        return self.encoder.initial_state(n)

    def step(self, state: list[Any], step: Step) -> tuple[Tensor, list[Any]]:
        obs, known = self.observe(step.observation), (~step.first).to(step.rtg.dtype)
        h, state = self.encoder.step(state, obs, step.prev_action, step.prev_reward, known)
        return self._decide(h, obs, step.rtg), state


@contextlib.contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    """Inside, torch draws from ``seed``, and afterwards as if it had not drawn; None: as ever."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

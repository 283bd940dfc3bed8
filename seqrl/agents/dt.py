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

``timestep_embedding="window_start"``, ``token_positions`` and ``embed_tanh`` build the Atari model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
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
    timestep_embedding: Literal["absolute", "window", "window_start", "none"] = "absolute"
    """Learned vector added to a step's tokens, by step of the episode, by place in the window, or
    one a window by its first step (Atari); none adds nothing."""
    max_timestep: int = 1000
    """Rows of the timestep table: episodes may not be longer (absolute, window_start)."""
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
        for name in ("context", "width", "n_layer", "n_head", "max_timestep"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        for name in ("dropout", "embed_dropout", "attn_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class DecisionTransformer(Agent):
    """See the module's docstring. State ``[n]`` rows: window of tokens and/or key-value caches."""

    name = "dt"
    config_class = DTConfig
    acting_rules = ("recompute", "stream", "refill")
    offsets: Tensor
    slots: Tensor
    battery_config = {"context": 6, "width": 32, "dropout": 0.0, "embed_dropout": 0.0}
    config: DTConfig

    def __init__(self, config: DTConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        self.layout = TripletLayout((RTG, OBS, ACTION) if c.return_tokens else (OBS, ACTION))
        self._check_horizon()
        self.embed_rtg = nn.Linear(1, c.width) if c.return_tokens else None
        self.embed_obs = observation_embedding(task.observation, c.width)
        self.embed_action = ActionEmbedding(task.action, c.width)
        tables = {"absolute": c.max_timestep, "window": c.context}
        tables["window_start"] = c.max_timestep + 1
        self.embed_time = (
            None
            if c.timestep_embedding == "none"
            else nn.Embedding(tables[c.timestep_embedding], c.width)
        )
        self.positions = (
            nn.Parameter(torch.zeros(self.layout.size * c.context + 1, c.width))
            if c.token_positions
            else None
        )
        self.embed_norm = nn.LayerNorm(c.width) if c.embed_norm else None
        self.embed_dropout = Dropout(c.embed_dropout)
        self.transformer = Transformer(
            c.width, c.n_layer, c.n_head, c.activation, c.dropout, c.attn_dropout
        )
        self.head = ActionHead(task.action, c.width, bias=c.head_bias)
        m = self.layout.size
        self.register_buffer("offsets", torch.arange(-1, m - 1), persistent=False)
        self.register_buffer("slots", torch.arange(m * c.context), persistent=False)
        self._atari_start()

    def _check_horizon(self) -> None:
        longest, c = self.stats[0].max_episode_length, self.config
        if c.timestep_embedding in ("absolute", "window_start") and longest > c.max_timestep:
            raise SeqrlError(
                f"episodes reach {longest:,} steps, agent.max_timestep is {c.max_timestep:,}",
                hint=f"--agent.max-timestep {longest}",
            )

    def _atari_start(self) -> None:
        """The Atari release starts its position and time tables at 0 and its action table small."""
        if self.config.timestep_embedding == "window_start" and self.embed_time is not None:
            nn.init.zeros_(self.embed_time.weight)
        if self.config.embed_tanh and self.tasks[0].action.kind == "discrete":
            nn.init.normal_(next(self.embed_action.parameters()), std=0.02)
            nn.init.normal_(self.head.out.weight, std=0.02)

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        steps = batch.mask.shape[1]
        rtg, obs = self._embed_returns(batch.returns_to_go), self._embed_obs(batch.observations)
        tokens = {OBS: obs, ACTION: self._squash(self.embed_action(batch.actions))}
        if rtg is not None:
            tokens[RTG] = rtg
        if (time := self._time(batch.timesteps)) is not None:
            tokens = {k: v + time for k, v in tokens.items()}
        # Nothing follows the last action token, so it is never looked at.
        x = self.layout.interleave(tokens)[:, :-1]
        readers = self.layout.positions(OBS, steps, x.device)
        x = self.embed_dropout(self._finish_embedding(x))
        return self.head(self.transformer(x, readers))

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.config.decay == "all":
            return super().parameter_groups()
        kinds = (nn.Linear, nn.Conv2d)
        decayed = {id(m.weight) for m in self.modules() if isinstance(m, kinds)}
        params = list(self.parameters())
        return [
            {"params": [p for p in params if id(p) in decayed]},
            {"params": [p for p in params if id(p) not in decayed], "weight_decay": 0.0},
        ]

    # --- tokens -------------------------------------------------------------------------------

    def _squash(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if self.config.embed_tanh else x

    def _embed_returns(self, returns: Tensor) -> Tensor | None:
        if self.embed_rtg is None:
            return None
        return self._squash(self.embed_rtg(self.scaled(returns).unsqueeze(-1)))

    def _embed_obs(self, observations: Tensor) -> Tensor:
        return self._squash(self.embed_obs(self.observe(observations)))

    def _time(self, timesteps: Tensor) -> Tensor | None:
        """Time vectors ``[B, T, D]`` of a training window with timesteps ``[B, T]``."""
        if self.embed_time is None:
            return None
        kind = self.config.timestep_embedding
        if kind == "window":
            places = torch.arange(timesteps.shape[1], device=timesteps.device)
            return self.embed_time(places).unsqueeze(0)
        if kind == "window_start":
            timesteps = timesteps[:, :1]
        return self.embed_time(timesteps.clamp(max=self.embed_time.num_embeddings - 1))

    def _finish_embedding(self, x: Tensor) -> Tensor:
        """Token positions and norm of a window's tokens ``[B, L, D]``."""
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        return x if self.embed_norm is None else self.embed_norm(x)

    # --- acting -------------------------------------------------------------------------------
    # State: "count" [n] steps taken; "window" [n, K, m, D] tokens of the last K steps (before
    # window-relative positions and norm); "caches" keys and values, one pair a block; "filled" [n]
    # steps the cache holds. Slot p of a cache belongs to token p modulo its size.

    def set_acting(
        self,
        rule: str | None = None,
        decode: str | None = None,
        temperature: float | None = None,
    ) -> None:
        if rule == "stream" and self._window_relative:
            raise SeqrlError(
                "rule 'stream' needs positions that do not move with the window",
                hint="use --acting recompute or refill, or train with --agent.timestep-embedding "
                "absolute or none",
            )
        super().set_acting(rule, decode, temperature)

    @property
    def _window_relative(self) -> bool:
        c = self.config
        return c.timestep_embedding in ("window", "window_start") or c.token_positions

    @property
    def _cacheable(self) -> bool:
        """False where the tokens of past steps change at every step (``window_start``)."""
        return self.config.timestep_embedding != "window_start"

    def initial_state(self, n: int) -> dict[str, Any]:
        c, m, rule = self.config, self.layout.size, self.acting.rule
        weight = self.head.out.weight
        state: dict[str, Any] = {"count": torch.zeros(n, dtype=torch.int64, device=weight.device)}
        if rule != "stream":
            state["window"] = weight.new_zeros(n, c.context, m, c.width)
        if self._cacheable:
            state["caches"] = self.transformer.new_caches(n, m * c.context)
            state["filled"] = torch.zeros_like(state["count"])
        return state

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        # What lies beyond ``count`` is never read, so forgetting is setting the counts to zero.
        fresh = {k: v.masked_fill(rows, 0) for k, v in state.items() if k in ("count", "filled")}
        return {**state, **fresh}

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        tokens, action = self._step_tokens(step)
        count = state["count"]
        state = dict(state)
        if self.acting.rule != "stream":
            state["window"] = self._push(state["window"], count, tokens, action)
        if not self._cacheable:
            hidden = self._reencode(state["window"], count, step.timestep)
        elif self.acting.rule == "recompute":
            hidden = self._cached_then_reencoded(state, tokens, action, step.timestep)
        elif self.acting.rule == "refill":
            hidden = self._refilled(state, tokens, action)
        else:
            hidden = self._cached(state, tokens, action, state["filled"])
            state["filled"] = state["filled"] + 1
        state["count"] = count + 1
        return self.head(hidden), state

    def _step_tokens(self, step: Step) -> tuple[Tensor, Tensor]:
        """This step's tokens up to the state ``[n, m-1, D]`` and the last action's ``[n, D]``."""
        rtg = self._embed_returns(step.rtg)
        parts = [self._embed_obs(step.observation)]
        if rtg is not None:
            parts.insert(0, rtg)
        tokens = torch.stack(parts, 1)
        action = self._squash(self.embed_action(step.prev_action))
        if self.config.timestep_embedding == "absolute" and self.embed_time is not None:
            t = step.timestep.clamp(max=self.config.max_timestep - 1)
            tokens = tokens + self.embed_time(t).unsqueeze(1)
            action = action + self.embed_time((t - 1).clamp(min=0))
        return tokens, action

    def _push(self, window: Tensor, count: Tensor, tokens: Tensor, action: Tensor) -> Tensor:
        """The window with the last action completed and the new step's tokens appended."""
        n, k, m, _ = window.shape
        rows = torch.arange(n, device=count.device)
        full = count >= k
        window = torch.where(full[:, None, None, None], window.roll(-1, 1), window)
        place = count.clamp(max=k - 1)
        before = (place - 1).clamp(min=0)
        # A first step has no action before it; slot 0's action is written again one step later.
        window[rows, before, m - 1] = action
        window[rows, place, : m - 1] = tokens
        return window

    def _reencode(self, window: Tensor, count: Tensor, timestep: Tensor) -> Tensor:
        """Hidden state ``[n, D]`` of the newest state token from the whole window's tokens."""
        n, k, m, d = window.shape
        x = window
        if self.embed_time is not None and self.config.timestep_embedding == "window":
            x = x + self.embed_time.weight[:, None]
        elif self.embed_time is not None and self.config.timestep_embedding == "window_start":
            # As released: at rollout the one time vector is the current step's.
            t = timestep.clamp(max=self.config.max_timestep)
            x = x + self.embed_time(t)[:, None, None]
        x = self._finish_embedding(x.reshape(n, k * m, d)[:, :-1])
        newest = count.clamp(max=k - 1) * m + self.layout.place(OBS)
        return self.transformer(x, newest.unsqueeze(-1))[:, 0]

    def _cached(
        self, state: dict[str, Any], tokens: Tensor, action: Tensor, place: Tensor
    ) -> Tensor:
        """Hidden state ``[n, D]`` of the newest state token over the cache.

        ``place [n]`` is the step's number in the cache's own counting.
        """
        k, m = self.config.context, self.layout.size
        slots = k * m
        x = torch.cat([action.unsqueeze(1), tokens], 1)  # (n, m, D)
        position = place.unsqueeze(1) * m + self.offsets
        if self.embed_time is not None and self.config.timestep_embedding == "window":
            x = x + self.embed_time(position.clamp(min=0).div(m, rounding_mode="floor"))
        if self.positions is not None:
            x = x + self.positions[position.clamp(min=0)]
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        taken = position.remainder(slots)
        newest = position[:, -1:]
        holds = newest - (newest - self.slots).remainder(slots)
        oldest = ((place - k + 1) * m).clamp(min=0).unsqueeze(1)
        # On a first step the action token is no token at all: nothing sees it, and it is let see
        # the step's first token only so that its attention is defined.
        upto = position.clamp(min=0).unsqueeze(2)
        seen = (holds >= oldest).unsqueeze(1) & (holds.unsqueeze(1) <= upto)  # (n, m, slots)
        return self.transformer.extend(x, state["caches"], taken, seen.unsqueeze(1))

    def _cached_then_reencoded(
        self, state: dict[str, Any], tokens: Tensor, action: Tensor, timestep: Tensor
    ) -> Tensor:
        """Rule ``recompute``: equal to re-encoding the last K steps, from the cache while t < K.

        Each row's path depends on its own age alone, so its result does not depend on the others.
        """
        count, k = state["count"], self.config.context
        young = count < k
        if not bool(young.any()):
            return self._reencode(state["window"], count, timestep)
        cached = self._cached(state, tokens, action, count.clamp(max=k - 1))
        if bool(young.all()):
            return cached
        old = self._reencode(state["window"], count, timestep)
        return torch.where(young.unsqueeze(1), cached, old)

    def _refilled(self, state: dict[str, Any], tokens: Tensor, action: Tensor) -> Tensor:
        """Rule ``refill``: a cache of up to K steps, re-encoded from the last K/2 when full."""
        k, m = self.config.context, self.layout.size
        keep = max(k // 2, 1)
        full = state["filled"] >= k
        if bool(full.any()):
            # All but the newest step go back in; the newest follows like any other.
            steps = state["window"][:, k - keep : k - 1]
            if keep > 1:
                x = steps.reshape(len(full), (keep - 1) * m, -1)
                if self.embed_time is not None and self.config.timestep_embedding == "window":
                    x = x + self.embed_time.weight[: keep - 1].repeat_interleave(m, 0)
                self.transformer.prefill(self._finish_embedding(x), state["caches"], full)
            state["filled"] = torch.where(full, keep - 1, state["filled"])
        hidden = self._cached(state, tokens, action, state["filled"])
        state["filled"] = state["filled"] + 1
        return hidden

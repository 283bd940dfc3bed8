"""Environment steps as token vectors: return-to-go, state, action, and what tells their place.

Shapes: B rows of a window, n environment rows, T steps, m tokens of a step, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.spec import TaskSpec

Positions = Literal["timestep", "window", "window_start", "relative", "none"]


class StepTokens(nn.Module):
    """Tokens of the kinds in ``layout``, in training windows and while acting.

    Inputs are network inputs: scaled returns, normalised observations. A layout without actions
    ends with the state, and then actions are not looked at.

    Args:
        task: its spaces.
        width: D.
        layout: kinds of token and their order.
        context: K steps of a window.
        positions: learned vector added to a step's tokens, by step of the episode, by place in the
            window, one a window by its first step, or none (``relative``, ``none``).
        max_timestep: rows of the timestep table.
        per_token: a learned vector by place of the token in the window as well.
        norm: LayerNorm over the token vectors.
        tanh: on each embedded return, state and action.
        dropout: on the tokens of training windows.
    """

    def __init__(
        self,
        task: TaskSpec,
        width: int,
        layout: TripletLayout,
        *,
        context: int,
        positions: Positions = "timestep",
        max_timestep: int = 1000,
        per_token: bool = False,
        norm: bool = True,
        tanh: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.layout, self.positions, self.tanh = layout, positions, tanh
        self.rtg = nn.Linear(1, width) if RTG in layout.order else None
        self.obs = observation_embedding(task.observation, width)
        self.action = ActionEmbedding(task.action, width) if ACTION in layout.order else None
        rows = {"timestep": max_timestep, "window": context, "window_start": max_timestep + 1}
        self.time = nn.Embedding(rows[positions], width) if positions in rows else None
        length = layout.size * context + 1
        self.table = nn.Parameter(torch.zeros(length, width)) if per_token else None
        self.norm = nn.LayerNorm(width) if norm else None
        self.dropout = Dropout(dropout)
        # The Atari release starts its time table at 0 and its action table small.
        if positions == "window_start" and self.time is not None:
            nn.init.zeros_(self.time.weight)
        if tanh and self.action is not None and task.action.kind == "discrete":
            nn.init.normal_(next(self.action.parameters()), std=0.02)

    @property
    def moving(self) -> bool:
        """Whether a step's tokens change as the window moves on."""
        return self.positions in ("window", "window_start") or self.table is not None

    def window(self, rtg: Tensor, obs: Tensor, actions: Tensor, timesteps: Tensor) -> Tensor:
        """Tokens of training windows, without a last action token (nothing follows it).

        Args:
            rtg: ``[B, T]``.
            obs: ``[B, T, ...]``.
            actions: ``[B, T, ...]``.
            timesteps: ``[B, T]``.

        Returns:
            ``[B, mT - 1, D]``, or ``[B, mT, D]`` where a step ends with its state.
        """
        tokens = {OBS: self._squash(self.obs(obs))}
        if self.rtg is not None:
            tokens[RTG] = self._squash(self.rtg(rtg.unsqueeze(-1)))
        if self.action is not None:
            tokens[ACTION] = self._squash(self.action(actions))
        if (time := self._window_time(timesteps)) is not None:
            tokens = {k: v + time for k, v in tokens.items()}
        x = self.layout.interleave(tokens)
        x = x if self.action is None else x[:, :-1]
        if self.table is not None:
            x = x + self.table[: x.shape[1]]
        return self.dropout(x if self.norm is None else self.norm(x))

    def step(
        self, rtg: Tensor, obs: Tensor, prev_action: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One step's tokens up to its state, and the previous step's action token (None in a layout
        without actions), before :meth:`finish`.

        Args:
            rtg: ``[n]``.
            obs: ``[n, ...]``.
            prev_action: ``[n, ...]``.
            timestep: ``[n]``.

        Returns:
            ``[n, tokens, D]`` and ``[n, D]``.
        """
        parts = [self._squash(self.obs(obs))]
        if self.rtg is not None:
            parts.insert(0, self._squash(self.rtg(rtg.unsqueeze(-1))))
        tokens = torch.stack(parts, 1)
        action = None if self.action is None else self._squash(self.action(prev_action))
        if self.positions == "timestep" and self.time is not None:
            last = self.time.num_embeddings - 1
            tokens = tokens + self.time(timestep.clamp(max=last)).unsqueeze(1)
            if action is not None:
                action = action + self.time((timestep - 1).clamp(0, last))
        return tokens, action

    def finish(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """Add what depends on a token's place in the window, then normalise.

        Args:
            x: ``[n, L, D]``.
            position: ``[L]`` or ``[n, L]``, negative for the missing action before a first step.
            timestep: ``[n]`` the newest step's.
        """
        position = position.clamp(min=0)
        if self.time is not None and self.positions == "window":
            x = x + self.time(position.div(self.layout.size, rounding_mode="floor"))
        elif self.time is not None and self.positions == "window_start":
            # As released: while acting, the one time vector is the current step's.
            last = self.time.num_embeddings - 1
            x = x + self.time(timestep.clamp(max=last)).unsqueeze(1)
        if self.table is not None:
            x = x + self.table[position]
        return x if self.norm is None else self.norm(x)

    def _window_time(self, timesteps: Tensor) -> Tensor | None:
        if self.time is None:
            return None
        if self.positions == "window":
            places = torch.arange(timesteps.shape[1], device=timesteps.device)
            return self.time(places).unsqueeze(0)
        if self.positions == "window_start":
            timesteps = timesteps[:, :1]
        return self.time(timesteps.clamp(max=self.time.num_embeddings - 1))

    def _squash(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if self.tanh else x


def check_horizon(positions: str, max_timestep: int, longest: int) -> None:
    """Raise SeqrlError where episodes of ``longest`` steps outrun the timestep table."""
    if positions in ("timestep", "window_start") and longest > max_timestep:
        raise SeqrlError(
            f"episodes reach {longest:,} steps, agent.max_timestep is {max_timestep:,}",
            hint=f"--agent.max-timestep {longest}",
        )

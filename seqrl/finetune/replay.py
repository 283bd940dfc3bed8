"""Remembered transitions of agents that act by a state.

Each moment of an episode is stored once: what was seen, the acting state, the reward that had just
come. A transition is a moment and the one after it, so a state (16 kB a layer at width and state
64) is never stored twice.

Shapes: C moments of room, n transitions drawn, T steps of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrl.draws import uniform64
from seqrl.finetune.collecting import Round, episode_steps, step_of
from seqrl.layers.state import map_states
from seqrl.spec import Step

REPLAY = 8
"""Stream of the draws from the memory."""


@dataclass(frozen=True)
class Transitions:
    """Transitions as critics and actor learn from them; raw units."""

    step: Step
    state: Any
    """The acting state before the step, as it was then."""
    action: Tensor
    """``[n, A]``, as executed."""
    reward: Tensor
    """``[n]``."""
    terminated: Tensor
    """``[n]`` bool: the episode ended with the step; False where a time limit cut it."""
    next_step: Step
    next_state: Any

    def __len__(self) -> int:
        return len(self.reward)


class Replay:
    """A ring of moments.

    Args:
        capacity: C.
        seed: of the run.
        device: where drawn transitions are put.
    """

    def __init__(self, capacity: int, seed: int, device: torch.device):
        self.capacity, self.seed, self.device = capacity, seed, device
        self.fields: dict[str, Tensor] = {}
        self.states: Any = None
        self.terminated = torch.zeros(capacity, dtype=torch.bool)
        self.valid = np.zeros(capacity, dtype=bool)
        """Moments that have a moment after them."""
        self._head = 0

    def __len__(self) -> int:
        return int(self.valid.sum())

    def add(self, found: Round) -> None:
        """Store a round's episodes over the oldest ones."""
        for episode, states in enumerate(found.states or ()):
            data = found.data[episode]
            fields = episode_steps(found.data, episode)
            # Of an episode larger than the memory the end is kept.
            keep = min(len(data) + 1, self.capacity)
            fields = {k: v[-keep:] for k, v in fields.items()}
            states = map_states(lambda t, k=keep: t[-k:].detach().cpu(), states)
            if self.states is None:
                self._make_room(fields, states)
            where = (self._head + np.arange(keep)) % self.capacity
            index = torch.from_numpy(where)
            for name, values in fields.items():
                self.fields[name][index] = values
            map_states(lambda room, new, i=index: room.index_copy_(0, i, new), self.states, states)
            self.terminated[index] = False
            self.terminated[int(where[-2])] = data.terminated
            self.valid[where] = True
            self.valid[where[-1]] = False
            self._head = int((self._head + keep) % self.capacity)

    def _make_room(self, fields: dict[str, Tensor], states: Any) -> None:
        def room(like: Tensor) -> Tensor:
            return torch.zeros((self.capacity, *like.shape[1:]), dtype=like.dtype)

        self.fields = {k: room(v) for k, v in fields.items()}
        self.states = map_states(room, states)

    def draw(self, update: int, n: int) -> Transitions:
        """Transitions drawn uniformly; a function of the seed, the update and the contents."""
        known = np.flatnonzero(self.valid)
        chosen = known[(uniform64(self.seed, REPLAY, update, n) * len(known)).astype(np.int64)]
        now = torch.from_numpy(chosen)
        after = torch.from_numpy((chosen + 1) % self.capacity)

        def at(index: Tensor) -> tuple[Step, Any]:
            fields = {k: v[index].to(self.device) for k, v in self.fields.items()}
            return step_of(fields), map_states(lambda t: t[index].to(self.device), self.states)

        (step, state), (next_step, next_state) = at(now), at(after)
        return Transitions(
            step,
            state,
            next_step.prev_action,
            next_step.prev_reward,
            self.terminated[now].to(self.device),
            next_step,
            next_state,
        )

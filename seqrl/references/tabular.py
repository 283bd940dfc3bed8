"""UCB-VI: optimistic value iteration on what was counted, for tasks with few observations.

Source: Azar, Osband, Munos, "Minimax Regret Bounds for Reinforcement Learning", arXiv 1703.05449
(the Hoeffding bonus); one of the experts of Lin, Bai, Mei, arXiv 2310.08566. Before each episode,
with N(s, a) visits in t steps of the trial, remaining steps h and empirical means r and P:

    Q_h(s, a) = min(h r_max, r(s, a) + c H sqrt(ln(S A t / delta) / N(s, a)) + P(.|s, a) V_{h-1})

and h r_max where (s, a) was never tried. Two liberties: S counts the observations met so far, so
that the rule needs no list of states; and of equal values one is drawn at random, without which the
first episode would repeat one action throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.references.policy import ReferencePolicy
from seqrl.spec import Step, TaskSpec

Floats = NDArray[np.float64]

_FIRST_STATES = 32


@dataclass
class Counts:
    """Acting state: what each of ``n`` rows has counted; grows with the observations met."""

    keys: NDArray[np.float32]
    """Observations met, ``[n, S, D]``."""
    known: NDArray[np.int64]
    """How many of them are real, ``[n]``."""
    visits: Floats
    """``[n, S, A]``."""
    rewards: Floats
    """Sums, ``[n, S, A]``."""
    moves: Floats
    """Transitions that did not terminate, ``[n, S, A, S]``."""
    values: Floats
    """Q of the present episode by remaining steps, ``[n, H + 1, S, A]``."""
    planned: NDArray[np.int64]
    """How many states the plan of the present episode covers, ``[n]``."""
    last: NDArray[np.int64]
    """State of the last step, ``[n]``."""
    steps: NDArray[np.int64]
    """Steps of the trial, ``[n]``."""

    def grow(self) -> None:
        """Make room for twice as many observations."""
        more = self.keys.shape[1]

        def padded(array: NDArray[Any], *axes: int) -> NDArray[Any]:
            return np.pad(array, [(0, more if k in axes else 0) for k in range(array.ndim)])

        self.keys, self.visits = padded(self.keys, 1), padded(self.visits, 1)
        self.rewards, self.moves = padded(self.rewards, 1), padded(self.moves, 1, 3)
        self.values = padded(self.values, 2)


class UcbViPolicy(ReferencePolicy):
    """UCB-VI, ``ucbvi?c=0.001&delta=0.1&reward_max=1&max_states=512``.

    It learns across the episodes of a trial, all of one task: evaluate with ``trial_episodes``.

    Args:
        task: one discrete action, observations as vectors, a step limit H.
        c: factor of the bonus. With the theory's 1, tens of episodes of a Dark Room are explored
            as if nothing had been found; pairs never tried stay optimistic whatever it is.
        delta: probability with which the bounds may fail.
        reward_max: largest reward of a step; rewards are taken to lie between 0 and it.
        max_states: how many different observations a row may meet.

    Raises:
        SeqrlError: a task it is not for, or a setting out of its range.
    """

    name = "ucbvi"
    memory = "trial"
    trial_episodes: ClassVar[int] = 10

    def __init__(
        self,
        task: TaskSpec,
        c: float = 0.001,
        delta: float = 0.1,
        reward_max: float = 1.0,
        max_states: int = 512,
    ):
        super().__init__(task)
        if task.action.kind != "discrete" or task.observation.kind != "vector":
            raise SeqrlError(
                f"ucbvi is for tables, the task has {task.observation.describe()} observations and "
                f"{task.action.describe()} actions"
            )
        if task.max_episode_steps is None:
            raise SeqrlError("ucbvi plans to the end of an episode", hint="the task has no limit")
        if c < 0 or not 0 < delta < 1 or not reward_max > 0 or max_states < 1:
            raise SeqrlError(
                f"ucbvi with c={c}, {delta=}, {reward_max=}, {max_states=}",
                hint="c >= 0, 0 < delta < 1, reward_max > 0, max_states >= 1",
            )
        self.c, self.delta, self.reward_max = float(c), float(delta), float(reward_max)
        self.max_states, self.horizon = int(max_states), int(task.max_episode_steps)

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return ("c", "delta", "reward_max", "max_states")

    def initial_state(self, n: int) -> Counts:
        """Empty tables of ``n`` rows."""
        s, a = min(_FIRST_STATES, self.max_states), self.tasks[0].action.n
        size = self.tasks[0].observation.shape[0]
        return Counts(
            keys=np.zeros((n, s, size), np.float32),
            known=np.zeros(n, np.int64),
            visits=np.zeros((n, s, a)),
            rewards=np.zeros((n, s, a)),
            moves=np.zeros((n, s, a, s)),
            values=np.zeros((n, self.horizon + 1, s, a)),
            planned=np.zeros(n, np.int64),
            last=np.zeros(n, np.int64),
            steps=np.zeros(n, np.int64),
        )

    def reset(self, state: Counts, rows: Tensor) -> Counts:
        """The tables with the rows set in ``rows [n]`` bool emptied."""
        at = rows.cpu().numpy()
        for array in (state.known, state.visits, state.rewards, state.moves, state.steps):
            array[at] = 0
        state.planned[at] = 0
        return state

    def act(
        self, state: Counts, step: Step, generator: RowDraws | None = None
    ) -> tuple[Tensor, Counts]:
        """Count the last transition of every row, plan where an episode starts, choose ``[n]``."""
        if generator is None:
            raise SeqrlError("ucbvi needs a generator", hint="pass one to act()")
        ties = generator.uniform(1)[:, 0].double().numpy()
        seen = step.observation.cpu().numpy()
        final = seen if step.final_observation is None else step.final_observation.cpu().numpy()
        first, fresh = step.first.cpu().numpy(), step.trial_first.cpu().numpy()
        actions, ended = step.prev_action.cpu().numpy(), step.prev_terminated.cpu().numpy()
        rewards, times = step.prev_reward.cpu().numpy(), step.timestep.cpu().numpy()
        chosen = np.zeros(len(seen), np.int64)
        for row in range(len(seen)):
            if not fresh[row]:
                after = final[row] if first[row] else seen[row]
                self._count(
                    state, row, int(actions[row]), float(rewards[row]), after, bool(ended[row])
                )
            at = self._number(state, row, seen[row])
            if first[row]:
                self._plan(state, row)
            state.last[row] = at
            left = max(self.horizon - int(times[row]), 0)
            if at < state.planned[row]:
                q = state.values[row, left, at]
                best = np.flatnonzero(q >= q.max() - 1e-9)
            else:  # met for the first time in this episode: everything is worth trying
                best = np.arange(state.values.shape[-1])
            chosen[row] = best[int(ties[row] * len(best))]
        return torch.from_numpy(chosen), state

    def _number(self, state: Counts, row: int, observation: NDArray[Any]) -> int:
        """The number of an observation, a new one if it was not met before."""
        known = int(state.known[row])
        same = (state.keys[row, :known] == observation).all(axis=1)
        if same.any():
            return int(same.argmax())
        if known == self.max_states:
            raise SeqrlError(
                f"ucbvi has met {known} different observations",
                hint="it is for tasks with few; ucbvi?max_states=N allows more",
            )
        if known == state.keys.shape[1]:
            state.grow()
        state.keys[row, known] = observation
        state.known[row] += 1
        return known

    def _count(
        self,
        state: Counts,
        row: int,
        action: int,
        reward: float,
        after: NDArray[Any],
        terminated: bool,
    ) -> None:
        before = int(state.last[row])
        following = self._number(state, row, after)
        state.visits[row, before, action] += 1
        state.rewards[row, before, action] += reward
        if not terminated:
            state.moves[row, before, action, following] += 1
        state.steps[row] += 1

    def _plan(self, state: Counts, row: int) -> None:
        """Optimistic values of every remaining time for the states met so far."""
        s = int(state.known[row])  # only these, so that a row's sums do not depend on the others
        visits = state.visits[row, :s]
        tried, n = visits > 0, np.maximum(visits, 1)
        actions = visits.shape[1]
        chance = state.moves[row, :s, :, :s] / n[:, :, None]
        t = max(int(state.steps[row]), 1)
        bonus = np.sqrt(np.log(s * actions * t / self.delta) / n)
        gain = state.rewards[row, :s] / n + self.c * self.horizon * self.reward_max * bonus
        value = np.zeros(s)
        for left in range(1, self.horizon + 1):
            most = left * self.reward_max
            q = np.where(tried, np.minimum(gain + chance @ value, most), most)
            state.values[row, left, :s] = q
            value = q.max(axis=1)
        state.planned[row] = s

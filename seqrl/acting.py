"""A policy on rows of environments, always computed at one batch shape.

The rollout engine and :class:`seqrl.policy.Policy` both act through :class:`PolicyRows`, so an
environment loop of one's own does what an evaluation does.

Shapes: ``R`` policy rows (a multiple of the block), ``k`` rows of one call, ``n`` rows of a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, ObservationSpec, Step

RtgUpdate = Literal["reward", "none"]


class ActingPolicy(Protocol):
    """What the engine asks of a policy; agents and reference policies both offer it.

    A policy with a true attribute ``needs_oracle`` gets the environment's scripted action in
    ``Step.oracle_action``.
    """

    @property
    def memory(self) -> str:
        """``episode``, or ``trial`` when the acting state lasts for several episodes."""

    def initial_state(self, n: int) -> Any:
        """Acting state of ``n`` fresh rows."""

    def reset(self, state: Any, rows: Tensor) -> Any:
        """The state with the rows set in ``rows [n] bool`` made fresh."""

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        """Actions ``[n, A]`` or ``[n]`` for one step of every row, and the new state."""


class Timing:
    """Where the time of a rollout went, in constant memory.

    Args:
        clock: seconds; ``time.process_time`` in benchmarks on shared machines.
    """

    _KEPT = 4096

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.wall_s = self.policy_s = self.env_s = 0.0
        self.steps = 0
        self._samples: list[float] = []
        self._every, self._calls = 1, 0

    def policy_call(self, seconds: float, rows: int) -> None:
        """Note one call of the policy that served ``rows`` environments."""
        self.policy_s += seconds
        self._calls += 1
        if self._calls % self._every == 0:
            self._samples.append(1e3 * seconds / rows)
            if len(self._samples) == self._KEPT:
                # Keep every other sample from now on: even coverage of a run of any length.
                self._samples = self._samples[::2]
                self._every *= 2

    def policy_ms(self) -> tuple[float, float]:
        """Median and 95 % quantile of the policy's milliseconds per environment step."""
        if not self._samples:
            return 0.0, 0.0
        median, p95 = np.quantile(self._samples, [0.5, 0.95])
        return float(median), float(p95)

    def engine_ms(self) -> float:
        """Milliseconds per environment step besides the policy and the environments."""
        return 1e3 * (self.wall_s - self.policy_s - self.env_s) / max(self.steps, 1)


class PolicyRows:
    """A policy at one batch shape: ``R`` rows in blocks, and everything a ``Step`` says of them.

    The engine and :class:`seqrl.policy.Policy` both act through this class, so both do the same.

    Args:
        policy: the policy.
        blocks: number of blocks.
        row_block: rows of a block.
        observation: stored form of observations.
        action: stored form of actions.
        device: where the policy computes.
        task: index into the policy's tasks, None for a policy without tasks.
        rtg_update: ``reward`` subtracts each reward from the return-to-go; ``none`` keeps it.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        blocks: int,
        row_block: int,
        observation: ObservationSpec,
        action: ActionSpec,
        device: torch.device | str = "cpu",
        task: int | None = None,
        rtg_update: RtgUpdate = "reward",
    ):
        self.policy, self.row_block, self.device = policy, row_block, torch.device(device)
        self.subtract = rtg_update == "reward"
        rows = blocks * row_block
        obs_type = np.uint8 if observation.kind == "image" else np.float32
        action_type = np.float32 if action.kind == "continuous" else np.int64
        self.observation = np.zeros((rows, *observation.shape), obs_type)
        self.prev_action = np.zeros((rows, *action.shape), action_type)
        self.action = self.prev_action.copy()
        self.prev_reward = np.zeros(rows, np.float32)
        self.rtg = np.zeros(rows)  # float64: a long episode's rewards add up without rounding
        self.timestep = np.zeros(rows, np.int64)
        self.first = np.ones(rows, bool)
        self.trial_first = np.ones(rows, bool)
        self.prev_terminated = np.zeros(rows, bool)
        self.final_observation = (
            np.zeros_like(self.observation) if policy.memory == "trial" else None
        )
        self.oracle = self.prev_action.copy() if getattr(policy, "needs_oracle", False) else None
        self.trial = np.zeros(rows, np.int64)
        self.live = np.zeros(rows, bool)
        self._fresh = np.zeros(rows, bool)
        self._states: list[Any] = [None] * blocks
        self._draws = [RowDraws(row_block) for _ in range(blocks)]
        self._task = (
            None
            if task is None
            else torch.full((row_block,), task, dtype=torch.int64, device=self.device)
        )

    def begin(
        self, row: int, target: float, seed: int, new_trial: bool = True, trial: int = 0
    ) -> None:
        """Start an episode in ``row``; the memory is forgotten at a trial's start only."""
        self.rtg[row] = target
        self.trial[row] = trial
        self.timestep[row] = 0
        self.first[row] = True
        self.trial_first[row] = new_trial
        self.live[row] = True
        self._draws[row // self.row_block].restart(row % self.row_block, seed)
        if new_trial:
            self._fresh[row] = True
            self._clear_previous(row)

    def feed(self, rows: np.ndarray | slice, executed: np.ndarray, rewards: np.ndarray) -> None:
        """Note what was executed in ``rows`` (``[k, ...]``) and the rewards ``[k]`` for it."""
        self.prev_action[rows] = executed
        self.prev_reward[rows] = rewards
        if self.subtract:
            self.rtg[rows] -= rewards
        self.timestep[rows] += 1
        self.first[rows] = False
        self.trial_first[rows] = False
        self.prev_terminated[rows] = False
        if self.final_observation is not None:
            self.final_observation[rows] = 0

    def end(self, row: int, terminated: bool, final: np.ndarray) -> None:
        """Note how the episode in ``row`` ended; matters where its trial goes on."""
        self.prev_terminated[row] = terminated
        if self.final_observation is not None:
            self.final_observation[row] = final

    def retire(self, row: int) -> None:
        """Make ``row`` inert: it pads its block and looks like a first step of nothing."""
        self.live[row] = False
        self.first[row] = self.trial_first[row] = True
        self.observation[row] = 0
        self.rtg[row] = self.timestep[row] = 0
        self._clear_previous(row)

    def _clear_previous(self, row: int) -> None:
        self.prev_action[row] = 0
        self.prev_reward[row] = 0
        self.prev_terminated[row] = False
        if self.final_observation is not None:
            self.final_observation[row] = 0

    def act(self, timing: Timing | None = None) -> None:
        """Let every block with a live row act; the answers are in ``action``.

        Raises:
            PolicyFailure: the policy raised, or an action of a live row is not finite.
        """
        b = self.row_block
        for i in range(len(self._states)):
            rows = slice(i * b, (i + 1) * b)
            live = self.live[rows]
            count = int(np.count_nonzero(live))
            if count == 0:
                continue
            start = timing.clock() if timing else 0.0
            step = self._step(rows)
            try:
                state = self._renewed(i, rows, live)
                actions, self._states[i] = self.policy.act(state, step, self._draws[i])
                answer = actions.cpu().numpy()
            except Exception as e:
                raise PolicyFailure(rows.start + np.flatnonzero(live)) from e
            if timing:
                timing.policy_call(timing.clock() - start, count)
            self._take(answer, rows, live)

    def _renewed(self, i: int, rows: slice, live: np.ndarray) -> Any:
        """The state of block ``i`` with the rows that start a trial made fresh."""
        fresh = self._fresh[rows]
        state = self._states[i]
        if state is None:
            state = self.policy.initial_state(self.row_block)
        elif fresh.any():
            # Inert rows too, or what a state counts would grow in them without end.
            state = self.policy.reset(state, torch.from_numpy(fresh | ~live).to(self.device))
        fresh[:] = False
        return state

    def _step(self, rows: slice) -> Step:
        # Copies, because a policy may keep what it is handed while these arrays are written again.
        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[rows].copy()).to(self.device)

        def optional(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else tensor(array)

        return Step(
            observation=tensor(self.observation),
            prev_action=tensor(self.prev_action),
            prev_reward=tensor(self.prev_reward),
            rtg=torch.from_numpy(self.rtg[rows].astype(np.float32)).to(self.device),
            timestep=tensor(self.timestep),
            first=tensor(self.first),
            trial_first=tensor(self.trial_first),
            prev_terminated=tensor(self.prev_terminated),
            final_observation=optional(self.final_observation),
            task=self._task,
            trial=tensor(self.trial),
            oracle_action=optional(self.oracle),
        )

    def _take(self, answer: np.ndarray, rows: slice, live: np.ndarray) -> None:
        where = self.action[rows]
        if answer.shape != where.shape:
            raise SeqrlError(
                f"the policy returned actions of shape {answer.shape}, not {where.shape}",
                hint="act() returns [n, A] for continuous and [n] for discrete actions",
            )
        where[:] = answer
        if where.dtype == np.float32 and not np.isfinite(where).all():
            bad = live & ~np.isfinite(where).reshape(len(where), -1).all(axis=1)
            if bad.any():
                raise PolicyFailure(rows.start + np.flatnonzero(bad))


class PolicyFailure(Exception):
    """The policy raised (``__cause__``) or answered NaN or infinity in ``rows``."""

    def __init__(self, rows: np.ndarray):
        super().__init__(f"rows {rows.tolist()}")
        self.rows = rows

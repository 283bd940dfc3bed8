"""The rollout engine: a policy, environments and planned episodes in; one record an episode out.

A pure function: no logging, no files, no globals. Three rules make an episode's record independent
of how many environments run side by side:

* every planned episode runs once, from its own seed, whatever slot takes it;
* the policy always runs on blocks of ``row_block`` rows, padded with inert ones, because kernels
  round differently for other batch shapes;
* episode i always sits at place ``i % row_block`` of its block, because some kernels round the last
  rows of a batch differently from the first ones.

Shapes: ``R`` policy rows (a multiple of the block), ``k`` rows of one call, ``S`` observation
dimension, ``A`` action dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from seqrl import spaces as sp
from seqrl.acting import ActingPolicy, PolicyFailure, PolicyRows, RtgUpdate, Timing
from seqrl.draws import derive_seed
from seqrl.envs.pool import ABSENT, SUCCEEDED, EnvPool, LocalPool, PoolStep, SlotFailure
from seqrl.errors import SeqrlError

__all__ = [
    "ActingPolicy",
    "EpisodePlan",
    "EpisodeRecord",
    "RecordedSteps",
    "Timing",
    "check_spaces",
    "plan_episodes",
    "rollout",
]

PERIODIC, FINAL, RECORDING, REFERENCE = 0, 1, 3, 5
"""Streams of episode seeds, a use each, so that no use sees the episodes of another (2: generated
datasets, 4: policies that are given no seed)."""


@dataclass(frozen=True)
class EpisodePlan:
    """One episode to run. ``index`` fixes its place in a block, ``seed`` everything random."""

    index: int
    seed: int
    target: float = 0.0
    """Return-to-go at the first step, raw units."""
    options: Mapping[str, Any] | None = None
    """Passed to the environment's ``reset``."""
    trial: int | None = None
    """Number of the trial the episode belongs to; only for policies whose memory lasts for one."""
    place: int = 0
    """Place within the trial; a plan with place 0 begins a new one."""


@dataclass(frozen=True)
class RecordedSteps:
    """The steps of one episode, in stored form."""

    observations: np.ndarray
    """``[T+1, ...]``, the final one included."""
    actions: np.ndarray
    """``[T, A]`` or ``[T]``, as executed."""
    rewards: np.ndarray
    """``[T]`` float32."""


@dataclass(frozen=True)
class EpisodeRecord:
    """How one planned episode went."""

    plan: EpisodePlan
    episode_return: float
    """Undiscounted sum of rewards, raw units."""
    length: int
    success: bool | None
    """Whether an info said so at any step; None when no info spoke of success."""
    terminated: bool
    truncated: bool
    steps: RecordedSteps | None = None
    """Only with ``record=True``."""
    regrets: np.ndarray | None = None
    """``[T]`` float64: how much worse than the best each step was; None where no info said."""


Frames = Callable[[EpisodePlan, Callable[[], np.ndarray]], None]
Progress = Callable[[int, int, int], None]


def rollout(
    policy: ActingPolicy,
    envs: EnvPool | Callable[[], gymnasium.Env[Any, Any]],
    episodes: Sequence[EpisodePlan],
    *,
    num_envs: int = 1,
    row_block: int = 8,
    rtg_update: RtgUpdate = "reward",
    max_steps: int | None = None,
    device: torch.device | str | None = None,
    task: int = 0,
    record: bool = False,
    frames: Frames | None = None,
    progress: Progress | None = None,
    timing: Timing | None = None,
) -> list[EpisodeRecord]:
    """Run every planned episode once.

    Args:
        policy: an agent in evaluation mode, or a reference policy.
        envs: a pool, or a function that makes one environment (then ``num_envs`` are made here,
            and closed).
        episodes: what to run; the episodes of a trial follow each other.
        num_envs: environments side by side when ``envs`` is a function; changes no result.
        row_block: rows the policy always computes at once; part of the protocol, for it may change
            the last bits of an action.
        rtg_update: ``reward`` subtracts every reward from the target; ``none`` keeps it.
        max_steps: cuts episodes that reach it (truncated); None leaves that to the environment.
        device: where the policy computes; its own by default.
        task: which of the policy's tasks this is.
        record: keep the steps of every episode.
        frames: called with the plan and a function that draws, after each reset and step.
        progress: called with episodes done, episodes planned and steps so far.
        timing: filled with where the time went.

    Returns:
        One record per plan, in the order of ``episodes``.

    Raises:
        SeqrlError: spaces that do not fit, or a policy or an environment that failed; the message
            names episode and step.
    """
    if row_block < 1:
        raise SeqrlError(f"row_block is {row_block}, must be at least 1")
    pool = envs if isinstance(envs, EnvPool) else LocalPool(envs, max(num_envs, 1))
    try:
        check_spaces(policy, pool, task)
        engine = _Engine(policy, pool, episodes, row_block, rtg_update, max_steps, device, task)
        engine.record, engine.frames, engine.progress = record, frames, progress
        engine.timing = timing or Timing()
        with torch.inference_mode():
            return engine.run()
    finally:
        if pool is not envs:
            pool.close()


def plan_episodes(
    pool: EnvPool,
    episodes: int,
    targets: Sequence[float] = (0.0,),
    *,
    seed: int,
    stream: int,
    per_trial: int = 1,
) -> list[EpisodePlan]:
    """Episodes 0 .. n-1 for each target, the same ones for all.

    Args:
        pool: asked for reset options, once a trial: all episodes of a trial are of one task.
        episodes: per target.
        targets: target returns, raw units.
        seed: of the evaluation; episode i is seeded by (seed, stream, i).
        stream: what the episodes are for.
        per_trial: episodes of a trial, for policies whose memory lasts for one.

    Raises:
        SeqrlError: the episodes are no whole number of trials.
    """
    check_trials(episodes, per_trial)
    seeds = [derive_seed(seed, stream, i) for i in range(episodes)]
    options = [pool.episode_options(trial) for trial in range(episodes // per_trial)]
    return [
        EpisodePlan(i, seeds[i], target, options[i // per_trial], i // per_trial, i % per_trial)
        for target in targets
        for i in range(episodes)
    ]


def check_trials(episodes: int, per_trial: int) -> None:
    """Raise SeqrlError unless the episodes are a whole number of trials."""
    if episodes % per_trial:
        raise SeqrlError(
            f"{episodes} episodes are no whole number of trials of {per_trial}",
            hint=f"--episodes {-(-episodes // per_trial) * per_trial}",
        )


def check_spaces(policy: ActingPolicy, pool: EnvPool, task: int = 0) -> None:
    """Raise SeqrlError unless the policy's task has the observations and actions of the pool."""
    tasks = getattr(policy, "tasks", None)
    if not tasks:
        return
    mine = tasks[task]
    hint = f"trained on {mine.env_id or mine.name}"
    action, observation = (
        sp.action_spec(pool.action_space),
        sp.observation_spec(pool.observation_space),
    )
    if (mine.action.kind, mine.action.shape, mine.action.nvec) != (
        action.kind,
        action.shape,
        action.nvec,
    ):
        raise SeqrlError(
            f"policy acts on {mine.action.describe()}, env wants {action.describe()}", hint=hint
        )
    if (mine.observation.kind, mine.observation.shape) != (observation.kind, observation.shape):
        raise SeqrlError(
            f"policy reads {mine.observation.describe()}, env gives {observation.describe()}",
            hint=hint,
        )


@dataclass
class _Running:
    """The episode in one row: sums, not histories, unless its steps are recorded."""

    slot: int
    number: int
    """Place of the plan in the order asked for."""
    plan: EpisodePlan
    rest: deque[int]
    """Plans of the same trial still to come."""
    total: float = 0.0
    length: int = 0
    success: int = ABSENT
    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)


class _Engine:
    """One rollout under way: which row runs which episode in which slot."""

    record = False
    frames: Frames | None = None
    progress: Progress | None = None
    timing: Timing

    def __init__(
        self,
        policy: ActingPolicy,
        pool: EnvPool,
        episodes: Sequence[EpisodePlan],
        row_block: int,
        rtg_update: RtgUpdate,
        max_steps: int | None,
        device: torch.device | str | None,
        task: int,
    ):
        self.pool, self.plans, self.row_block = pool, episodes, row_block
        self.max_steps = max_steps
        self.blocks = -(-pool.num_envs // row_block)
        where = device if device is not None else getattr(policy, "device", "cpu")
        self.rows = PolicyRows(
            policy,
            self.blocks,
            row_block,
            sp.observation_spec(pool.observation_space),
            sp.action_spec(pool.action_space),
            where,
            task if getattr(policy, "tasks", None) else None,
            rtg_update,
        )
        self.waiting = _by_place(episodes, row_block, policy.memory == "trial")
        self.free_slots = list(range(pool.num_envs))[::-1]
        self.running: dict[int, _Running] = {}
        self.records: list[EpisodeRecord | None] = [None] * len(episodes)
        self.done = 0
        # The running episodes in order of their rows, kept until one starts or ends.
        self.order: list[int] = []
        self.index: np.ndarray | slice = slice(0)
        self.episodes: list[_Running] = []
        self.slots: list[int] = []

    def run(self) -> list[EpisodeRecord]:
        clock = self.timing.clock
        start = clock()
        self._start(self._assign())
        while self.running:
            if self.rows.oracle is not None:
                self.rows.oracle[self.index] = self.pool.oracle_actions(self.slots)
            try:
                self.rows.act(self.timing)
            except PolicyFailure as e:
                raise self._policy_error(e) from e
            self._account(*self._step())
        self.timing.wall_s += clock() - start
        return [r for r in self.records if r is not None]

    # --- starting -----------------------------------------------------------------------------

    def _assign(self) -> list[int]:
        """Give free slots to waiting episodes whose place is free; the rows that start."""
        started = []
        while self.free_slots:
            # The earliest waiting trial that has a free row at its place, in any block.
            choice = None
            for place, queue in enumerate(self.waiting):
                if not queue or (choice is not None and queue[0][0] > choice[0]):
                    continue
                own = range(place, self.blocks * self.row_block, self.row_block)
                row = next((r for r in own if r not in self.running), None)
                if row is not None:
                    choice = (queue[0][0], place, row)
            if choice is None:
                break
            _, place, row = choice
            trial = self.waiting[place].popleft()
            number = trial.popleft()
            self.running[row] = _Running(
                self.free_slots.pop(), number, self.plans[number], rest=trial
            )
            started.append(row)
        return started

    def _start(self, rows: list[int]) -> None:
        """Reset the environments of ``rows`` and begin their episodes."""
        self.order = sorted(self.running)
        self.episodes = [self.running[r] for r in self.order]
        self.slots = [e.slot for e in self.episodes]
        # A slice where it will do: indexing by it is several times cheaper.
        full = len(self.order) == self.blocks * self.row_block
        self.index = slice(None) if full else np.array(self.order, dtype=np.int64)
        if not rows:
            return
        episodes = [self.running[r] for r in rows]
        start = self.timing.clock()
        try:
            observations = self.pool.reset(
                [e.slot for e in episodes],
                [e.plan.seed for e in episodes],
                [e.plan.options for e in episodes],
            )
        except SlotFailure as e:
            raise self._env_error(e) from e
        self.timing.env_s += self.timing.clock() - start
        for row, episode in zip(rows, episodes, strict=True):
            plan = episode.plan
            new_trial = self.rows.final_observation is None or plan.place == 0
            trial = plan.index if plan.trial is None else plan.trial
            self.rows.begin(row, plan.target, plan.seed, new_trial, trial)
        self.rows.observation[rows] = observations
        self._show(rows)

    # --- stepping -----------------------------------------------------------------------------

    def _step(self) -> tuple[np.ndarray, PoolStep]:
        # A copy, because the next actions are written to the same place.
        chosen = self.rows.action[self.index].copy()
        executed = sp.execute_actions(self.pool.action_space, chosen)
        start = self.timing.clock()
        try:
            out = self.pool.step(self.slots, executed)
        except SlotFailure as e:
            raise self._env_error(e) from e
        self.timing.env_s += self.timing.clock() - start
        self.timing.steps += len(self.slots)
        return executed, out

    def _account(self, executed: np.ndarray, out: PoolStep) -> None:
        """Add a step to every running episode, end those that are over, start others."""
        if self.record:
            self._remember(executed, out)
        self.rows.feed(self.index, executed, out.rewards)
        self.rows.observation[self.index] = out.observations
        limit = self.max_steps
        over = (out.terminated | out.truncated).tolist()
        rewards, success = out.rewards.tolist(), out.success.tolist()
        ended = []
        for k, e in enumerate(self.episodes):
            e.total += rewards[k]
            e.length += 1
            if success[k] > e.success:
                e.success = success[k]
            if over[k] or e.length == limit:
                ended.append((k, self.order[k]))
        if out.regret is not None:
            for e, regret in zip(self.episodes, out.regret.tolist(), strict=True):
                e.regrets.append(regret)
        self._show(self.order)
        if ended:
            going_on = [row for k, row in ended if self._end(k, row, out)]
            self._start(going_on + self._assign())
        if self.progress is not None and (ended or self.timing.steps % 256 < len(self.slots)):
            self.progress(self.done, len(self.plans), self.timing.steps)

    def _end(self, k: int, row: int, out: PoolStep) -> bool:
        """Record the episode of ``row``; True when its trial goes on there."""
        e = self.running[row]
        terminated = bool(out.terminated[k])
        self.records[e.number] = EpisodeRecord(
            plan=e.plan,
            episode_return=float(e.total),
            length=e.length,
            success=None if e.success == ABSENT else e.success == SUCCEEDED,
            terminated=terminated,
            truncated=not terminated,
            steps=self._recorded(e, out.observations[k]) if self.record else None,
            regrets=np.array(e.regrets) if len(e.regrets) == e.length else None,
        )
        self.done += 1
        self.rows.end(row, terminated, out.observations[k])
        if e.rest:
            number = e.rest.popleft()
            self.running[row] = _Running(e.slot, number, self.plans[number], e.rest)
            return True
        self.free_slots.append(e.slot)
        del self.running[row]
        self.rows.retire(row)
        return False

    # --- what may be asked for besides --------------------------------------------------------

    def _remember(self, executed: np.ndarray, out: PoolStep) -> None:
        for k, (row, e) in enumerate(zip(self.order, self.episodes, strict=True)):
            e.observations.append(self.rows.observation[row].copy())
            e.actions.append(executed[k])
            e.rewards.append(float(out.rewards[k]))

    def _recorded(self, e: _Running, final: np.ndarray) -> RecordedSteps:
        actions = np.stack(e.actions).astype(self.rows.prev_action.dtype, copy=False)
        observations = np.stack([*e.observations, final])
        return RecordedSteps(observations, actions, np.array(e.rewards, np.float32))

    def _show(self, rows: list[int]) -> None:
        if self.frames is None:
            return
        for row in rows:
            e = self.running[row]
            self.frames(e.plan, lambda slot=e.slot: self.pool.render(slot))  # type: ignore[misc]

    # --- errors -------------------------------------------------------------------------------

    def _where(self, e: _Running) -> str:
        return f"step {e.length} of episode {e.plan.index} (seed {e.plan.seed})"

    def _policy_error(self, failure: PolicyFailure) -> SeqrlError:
        running = [self.running[r] for r in failure.rows.tolist()]
        where = "; ".join(self._where(e) for e in running[:3])
        more = f" and {len(running) - 3} more" if len(running) > 3 else ""
        cause = failure.__cause__
        if cause is None:
            return SeqrlError(
                f"the policy's action is not finite at {where}{more}",
                hint="weights or observations may hold NaN: seqrl doctor",
            )
        return SeqrlError(f"the policy failed at {where}{more}: {_text(cause)}", hint=_hint(cause))

    def _env_error(self, failure: SlotFailure) -> SeqrlError:
        cause = failure.__cause__ or failure
        hit = [e for e in self.running.values() if failure.slot in (None, e.slot)]
        where = self._where(hit[0]) if len(hit) == 1 else f"one of {len(hit)} episodes"
        return SeqrlError(f"the environment failed at {where}: {_text(cause)}", hint=_hint(cause))


def _text(cause: BaseException) -> str:
    if isinstance(cause, SeqrlError):
        return cause.message
    return f"{type(cause).__name__}: {cause}"


def _hint(cause: BaseException) -> str | None:
    return cause.hint if isinstance(cause, SeqrlError) else None


def _by_place(
    plans: Sequence[EpisodePlan], row_block: int, trials: bool
) -> list[deque[deque[int]]]:
    """Waiting trials (deques of plan numbers) by place in a block, each in the order asked for."""
    groups: list[deque[int]] = []
    for number, plan in enumerate(plans):
        if not trials or plan.place == 0 or not groups:
            groups.append(deque())
        groups[-1].append(number)
    waiting: list[deque[deque[int]]] = [deque() for _ in range(row_block)]
    for group in groups:
        head = plans[group[0]]
        key = head.trial if trials and head.trial is not None else head.index
        waiting[key % row_block].append(group)
    return waiting

"""A trained policy that acts, in an environment loop of one's own or behind a robot.

>>> policy = load_policy("runs/x")                      # doctest: +SKIP
>>> observation, _ = env.reset(seed=0)                  # doctest: +SKIP
>>> policy.reset(target=3600.0)                         # doctest: +SKIP
>>> action = policy.act(observation)                    # doctest: +SKIP
>>> observation, reward, *_ = env.step(action)          # doctest: +SKIP
>>> action = policy.act(observation, reward)            # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.acting import PolicyFailure, PolicyRows, RtgUpdate
from seqrl.checkpoint import find_checkpoint, load_agent
from seqrl.draws import derive_seed
from seqrl.envs.making import make_env
from seqrl.errors import SeqrlError
from seqrl.targets import DEFAULT_TARGETS, Target, resolve_targets, targets_of

if TYPE_CHECKING:
    from seqrl.spec import TaskSpec

_SEEDS = 4
"""Stream of the seeds that episodes get when none is given."""


def load_policy(
    path: str | Path,
    checkpoint: str | Path = "last",
    device: str | torch.device = "cpu",
    trust: bool = False,
    *,
    row_block: int = 8,
    task: int = 0,
) -> Policy:
    """The policy of a run folder or checkpoint, ready to act.

    Args:
        path: run folder, checkpoint, or anything inside a run.
        checkpoint: ``last``, ``best``, a step or a path.
        device: where it computes.
        trust: the checkpoint may name code outside seqrl to import.
        row_block: see :class:`Policy`.
        task: which of the policy's tasks it is to do.

    Raises:
        SeqrlError: nothing there, damaged, or code that is not trusted.
    """
    folder = find_checkpoint(path, checkpoint)
    agent, meta = load_agent(folder, device, trust=trust)
    named = str(checkpoint) in ("last", "best") and folder != Path(path).resolve()
    info = {
        "checkpoint": str(checkpoint) if named else folder.name,
        "step": meta.step,
        "targets": meta.targets,
    }
    return Policy(agent, info, row_block=row_block, task=task)


class _Start(NamedTuple):
    """An episode that begins with the next observation of a row."""

    target: float
    seed: int
    new_trial: bool


class Policy:
    """An agent with the memory of the episodes it is acting in.

    One environment has observations without a leading dimension, a batch of ``n`` has one. With
    the defaults, the k-th episode of a single environment gets bit for bit the actions that
    ``seqrl eval`` takes in episode k, given the same seed and target.

    Args:
        agent: an agent or a reference policy.
        info: facts such as ``checkpoint``, ``step`` and suggested ``targets``.
        row_block: rows always computed at once, as in the evaluation to agree with; 1 is fastest
            for a single environment.
        task: which of the agent's tasks it does.
    """

    def __init__(
        self,
        agent: Any,
        info: Mapping[str, Any] | None = None,
        *,
        row_block: int = 8,
        task: int = 0,
    ):
        if row_block < 1:
            raise SeqrlError(f"row_block is {row_block}, must be at least 1")
        if not 0 <= task < len(agent.tasks):
            raise SeqrlError(
                f"the policy has no task {task}, it has {len(agent.tasks)}",
                hint="tasks are counted from 0, in the order of the data",
            )
        self.agent = agent
        """The agent itself."""
        self.info = dict(info or {})
        """Facts about the policy: ``checkpoint``, ``step``, ``targets``."""
        self.task: TaskSpec = self.agent.tasks[task]
        """What the policy was trained to do."""
        self.targets = self._suggested(task)
        """Suggested target returns, raw units; the last one is the default."""
        self.row_block = row_block
        self._task_number = task
        self._spaces: tuple[spaces.Space[Any], spaces.Space[Any]] | None = None
        self._looked_for_spaces = False
        self._number = 0
        self._begun = 0
        self._forget()
        self._awaiting: tuple[Any, Any] = (None, None)

    def _suggested(self, task: int) -> list[Target]:
        stats = getattr(self.agent, "stats", ())
        if not getattr(self.agent, "uses_returns", True):
            return []
        asked = targets_of(tuple(self.info.get("targets") or ()), task, len(self.agent.tasks))
        asked = asked or (DEFAULT_TARGETS if stats else ())
        return resolve_targets(asked, stats[task] if stats else None, self.task) if asked else []

    @property
    def rtg_update(self) -> RtgUpdate:
        """How the return-to-go goes on: data with delayed rewards were learned with a fixed one."""
        stats = getattr(self.agent, "stats", ())
        custom = stats[self._task_number].custom if stats else {}
        return "none" if self.info.get("delayed", custom.get("delayed", False)) else "reward"

    @property
    def default_target(self) -> float:
        """The target return of an episode that is given none."""
        return self.targets[-1].value if self.targets else 0.0

    def use_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        """Tell the policy the environment's spaces, for Dict or Tuple observations and for actions
        in the environment's own form. Where the environment is installed it finds them itself."""
        if sp.observation_spec(observation_space).shape != self.task.observation.shape:
            raise SeqrlError(
                f"policy reads {self.task.observation.describe()}, "
                f"the space given has {sp.observation_spec(observation_space).describe()}"
            )
        if sp.action_spec(action_space).nvec != self.task.action.nvec:
            raise SeqrlError(
                f"policy acts on {self.task.action.describe()}, "
                f"the space given is {sp.action_spec(action_space).describe()}"
            )
        self._spaces = (observation_space, action_space)

    # --- episodes -----------------------------------------------------------------------------

    def reset(
        self,
        mask: Any | None = None,
        *,
        target: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        episode: int | None = None,
        new_trial: bool = True,
    ) -> None:
        """Begin an episode with the next observation: everywhere, or in some rows of a batch.

        Args:
            mask: ``[n]`` bool, the rows of a batch that begin an episode; None means all, and the
                next observations may then be of another number of environments.
            target: target return, one or ``[n]``; by default the policy's last suggested one.
            seed: of sampled actions, one or ``[n]``; by default they count up.
            episode: number of the episode (or trial) in the evaluation to agree with, for a
                single environment; by default they are counted from 0.
            new_trial: False keeps a memory that lasts for a trial; the next ``act`` then takes the
                last reward and, if known, ``terminated`` and ``final_observation``.
        """
        new_trial = new_trial or self.agent.memory != "trial"
        if mask is None and (new_trial or self._rows is None):
            if episode is not None:
                self._number = int(episode)
            elif self._acted.any():
                self._number += 1
            self._forget()
            self._awaiting = (target, seed)
            return
        if self._rows is None:
            raise SeqrlError(
                "reset(mask) before the first act: the number of rows is not known",
                hint="call reset() first",
            )
        chosen = np.ones_like(self._acted) if mask is None else np.asarray(mask, bool).reshape(-1)
        if chosen.shape != self._acted.shape:
            raise SeqrlError(f"mask has {len(chosen)} entries, there are {len(self._acted)} rows")
        self._begin(np.flatnonzero(chosen), target, seed, new_trial)

    def _forget(self) -> None:
        self._rows: PolicyRows | None = None
        self._single = True
        self._acted = np.zeros(0, dtype=bool)
        self._starts: dict[int, _Start] = {}

    def _begin(self, rows: np.ndarray, target: Any, seed: Any, new_trial: bool) -> None:
        n = len(self._acted)
        targets = np.broadcast_to(self.default_target if target is None else target, n)
        if seed is None:
            seeds = [derive_seed(self._begun, _SEEDS, j) for j in range(n)]
            self._begun += 1
        elif np.ndim(seed) == 0:
            one = int(np.asarray(seed))
            seeds = [one if self._single else derive_seed(one, _SEEDS, j) for j in range(n)]
        else:
            seeds = [int(s) for s in np.broadcast_to(np.asarray(seed), n)]
        for j in rows.tolist():
            self._starts[j] = _Start(float(targets[j]), seeds[j], new_trial)

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        obs: Any,
        reward: Any | None = None,
        *,
        terminated: Any = False,
        final_observation: Any | None = None,
    ) -> Any:
        """The action for an observation.

        Args:
            obs: of one environment, or of a batch with a leading dimension.
            reward: for the last action, one or ``[n]``; needed after an episode's first step (and
                ignored on rows that begin an episode).
            terminated: one or ``[n]``; only after ``reset(new_trial=False)``.
            final_observation: as ``obs``; only after ``reset(new_trial=False)``.

        Returns:
            An action in the form the environment takes, within its bounds; with a leading
            dimension for a batch.

        Raises:
            SeqrlError: no reward where one is needed, observations of the wrong shape, another
                number of environments without a reset, or an agent that failed.
        """
        observations, single = self._observations(obs)
        n = len(observations)
        rows = self._ready(n, single)
        if single != self._single or n != len(self._acted):
            now = "one environment" if self._single else f"{len(self._acted)} environments"
            raise SeqrlError(
                f"the policy is acting in {now}, the observation has shape {np.shape(obs)}",
                hint="call reset() before the number of environments changes",
            )
        place = self._place(n)
        self._feed(rows, place, reward, terminated, final_observation)
        rows.observation[place] = observations
        try:
            with torch.inference_mode():
                rows.act()
        except PolicyFailure as e:
            cause = e.__cause__
            what = (
                "its action is not finite" if cause is None else f"{type(cause).__name__}: {cause}"
            )
            raise SeqrlError(f"the policy failed at step {rows.timestep[place[0]]}: {what}") from e
        self._acted[:] = True
        self._executed = self._clipped(rows.action[place])
        return self._given(self._executed)

    def _ready(self, n: int, single: bool) -> PolicyRows:
        if self._rows is None:
            self._rows = PolicyRows(
                self.agent,
                -(-n // self.row_block),
                self.row_block,
                self.task.observation,
                self.task.action,
                getattr(self.agent, "device", "cpu"),
                self._task_number,
                self.rtg_update,
            )
            self._single = single
            self._acted = np.zeros(n, dtype=bool)
            self._begin(np.arange(n), *self._awaiting, new_trial=True)
        return self._rows

    def _place(self, n: int) -> np.ndarray:
        """Policy rows of the environments; as in an evaluation, episode k sits at place k."""
        return np.array([self._number % self.row_block]) if self._single else np.arange(n)

    def _feed(
        self, rows: PolicyRows, place: np.ndarray, reward: Any, terminated: Any, final: Any
    ) -> None:
        """Hand the last transition to rows that go on, and begin episodes in the others."""
        goes_on = self._acted.copy()
        for j, start in self._starts.items():
            goes_on[j] &= not start.new_trial
        if goes_on.any():
            if reward is None:
                raise SeqrlError(
                    "act() needs the reward of the last action",
                    hint="policy.act(obs, reward); after an episode's end policy.reset()",
                )
            rewards = np.broadcast_to(np.asarray(reward, dtype=np.float64), len(goes_on))
            rows.feed(place[goes_on], self._executed[goes_on], rewards[goes_on])
        ended = np.broadcast_to(np.asarray(terminated, dtype=bool), len(goes_on))
        finals = None if final is None else self._observations(final)[0]
        for j, start in self._starts.items():
            if not start.new_trial:
                last = rows.observation[place[j]].copy() if finals is None else finals[j]
                rows.end(place[j], bool(ended[j]), last)
            rows.begin(place[j], start.target, start.seed, start.new_trial)
        self._starts = {}

    # --- forms --------------------------------------------------------------------------------

    def _observations(self, obs: Any) -> tuple[np.ndarray, bool]:
        """Observations in stored form ``[n, ...]``, and whether they are of one environment."""
        shape = self.task.observation.shape
        if not isinstance(obs, (Mapping, tuple)):
            array = np.asarray(obs)
            # Integers may be choices that are still to become one-hot vectors.
            plain = array.dtype.kind == "f" or self.task.observation.kind == "image"
            if plain or self._find_spaces() is None:
                if array.shape == shape:
                    return array[None], True
                if array.shape[1:] == shape and array.ndim == len(shape) + 1:
                    return array, False
        known = self._find_spaces()
        if known is None:
            nested = isinstance(obs, (Mapping, tuple))
            given = f"is a {type(obs).__name__}" if nested else f"has shape {np.shape(obs)}"
            raise SeqrlError(
                f"the policy reads {self.task.observation.describe()}, the observation {given}",
                hint="policy.use_spaces(env.observation_space, env.action_space)",
            )
        batch = _extra_dimensions(known[0], obs)
        if batch == 0:
            flat = sp.flatten_observation(known[0], obs)[None]
        elif batch == 1:
            flat = sp.flatten_observations(known[0], obs)
        if batch not in (0, 1) or flat.shape[1:] != shape:
            raise SeqrlError(
                f"the observation has shape {np.shape(obs)}, the environment's space is {known[0]}"
            )
        return flat, batch == 0

    def _find_spaces(self) -> tuple[spaces.Space[Any], spaces.Space[Any]] | None:
        if self._spaces is None and not self._looked_for_spaces and self.task.env_id is not None:
            with contextlib.suppress(SeqrlError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                keys = self.task.observation.keys
                env = make_env(self.task.env_id, self.task.env_kwargs, keys=keys)
                self.use_spaces(env.observation_space, env.action_space)
                env.close()
        self._looked_for_spaces = True
        return self._spaces

    def _clipped(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[n, ...]`` as executed, in stored form."""
        action = self.task.action
        if action.kind != "continuous":
            return actions.copy()
        low, high = (np.asarray(bound, dtype=np.float32) for bound in (action.low, action.high))
        return np.clip(actions, low, high)

    def _given(self, stored: np.ndarray) -> Any:
        """Actions in the form the environment takes, a single one without leading dimension."""
        # Where no space is known the stored form is right but for exotic spaces: a Discrete that
        # does not start at 0, or a Box of several dimensions.
        known = self._find_spaces() if self.task.action.kind != "continuous" else self._spaces
        if known is not None:
            given = [sp.unflatten_action(known[1], a) for a in stored]
            return given[0] if self._single else np.stack([np.asarray(g) for g in given])
        if self._single:
            return int(stored[0]) if self.task.action.kind == "discrete" else stored[0]
        return stored


def _extra_dimensions(space: spaces.Space[Any], value: Any) -> int:
    """How many leading dimensions a value has beyond those of its space (first leaf decides)."""
    if isinstance(space, spaces.Dict):
        key = sorted(space.spaces)[0]
        return _extra_dimensions(space.spaces[key], value[key])
    if isinstance(space, spaces.Tuple):
        return _extra_dimensions(space.spaces[0], value[0])
    return np.ndim(value) - len(space.shape or ())

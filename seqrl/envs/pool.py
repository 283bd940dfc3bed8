"""Making environments, and stepping a fixed number of them slot by slot.

Shapes: ``k`` slots of one call, ``S`` observation dimension, ``A`` action dimension. Observations
leave a pool in stored form (float32 vectors or uint8 images) and actions enter it so; see
:mod:`seqrl.spaces`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.envs.making import horizon, make_env
from seqrl.errors import SeqrlError
from seqrl.spec import TaskSpec

EnvFactory = Callable[[], gymnasium.Env[Any, Any]]
Vector = Literal["auto", "sync", "async"]

ABSENT, FAILED, SUCCEEDED = -1, 0, 1
"""What a step says about success: nothing, not yet, achieved."""

# Above this cost of one step, worker processes pay for their pipes (measured: about 0.3 ms a step).
_SLOW_STEP_S = 1e-3


class PoolStep(NamedTuple):
    """What stepping ``k`` slots returned."""

    observations: np.ndarray
    """``[k, S]`` float32 or ``[k, H, W, C]`` uint8; never reused by the pool."""
    rewards: np.ndarray
    """``[k]`` float64."""
    terminated: np.ndarray
    """``[k]`` bool."""
    truncated: np.ndarray
    """``[k]`` bool."""
    success: np.ndarray
    """``[k]`` int8: ABSENT, FAILED or SUCCEEDED."""
    regret: np.ndarray | None = None
    """``[k]`` float64: how much worse than the best the step was; NaN, or None for all of them,
    where no info says."""


class SlotFailure(Exception):
    """An environment raised; ``__cause__`` is what it raised."""

    def __init__(self, slot: int | None):
        super().__init__(f"environment slot {slot}")
        self.slot = slot
        """Number of the slot, None when it is not known which one."""


class EnvPool(ABC):
    """A fixed number of environment slots, each reset and stepped on its own.

    The rollout engine needs nothing else of environments, so any vectorised simulator that can
    reset some of its rows and leave others alone can stand behind this interface.
    """

    num_envs: int
    """Number of slots."""
    observation_space: spaces.Space[Any]
    """Of one environment, as it was made."""
    action_space: spaces.Space[Any]
    """Of one environment, as it was made."""
    max_episode_steps: int | None
    """After how many steps an episode is over in any case; None when nothing says so."""

    @abstractmethod
    def reset(
        self,
        slots: Sequence[int],
        seeds: Sequence[int],
        options: Sequence[Mapping[str, Any] | None],
    ) -> np.ndarray:
        """Start an episode in each of ``slots``; first observations ``[k, ...]`` in stored form."""

    @abstractmethod
    def step(self, slots: Sequence[int], actions: np.ndarray) -> PoolStep:
        """Step ``slots`` with actions ``[k, A]`` or ``[k]`` in stored form; others rest."""

    def episode_options(self, i: int) -> dict[str, Any] | None:
        """Reset options the environment itself asks for in evaluation episode ``i``."""
        return None

    def oracle_actions(self, slots: Sequence[int]) -> np.ndarray:
        """The environments' scripted actions, ``[k, A]`` or ``[k]`` in stored form."""
        raise SeqrlError(
            "this environment has no oracle",
            hint="an environment with oracle_action() is needed",
        )

    def render(self, slot: int) -> np.ndarray:
        """A picture ``[H, W, 3]`` uint8 of one slot."""
        raise SeqrlError("these environments cannot be rendered")

    def close(self) -> None:  # noqa: B027  (an optional hook)
        """Release the environments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LocalPool(EnvPool):
    """Environments in this process, stepped one after the other.

    Args:
        factory: makes one environment; called ``num_envs`` times.
        num_envs: number of slots.
        first: an environment made before, used for slot 0.
    """

    def __init__(
        self,
        factory: EnvFactory,
        num_envs: int,
        first: gymnasium.Env[Any, Any] | None = None,
    ):
        self.envs = [first] if first is not None else [factory()]
        self.envs += [factory() for _ in range(num_envs - 1)]
        env = self.envs[0]
        self.num_envs = num_envs
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.max_episode_steps = horizon(env)
        spec = sp.observation_spec(env.observation_space)
        self._shape = spec.shape
        self._dtype = np.uint8 if spec.kind == "image" else np.float32
        self._flatten = observation_writer(env.observation_space)
        self._unflatten = action_reader(env.action_space)

    def reset(
        self,
        slots: Sequence[int],
        seeds: Sequence[int],
        options: Sequence[Mapping[str, Any] | None],
    ) -> np.ndarray:
        out = np.empty((len(slots), *self._shape), self._dtype)
        for k, slot in enumerate(slots):
            given = None if options[k] is None else dict(options[k] or {})
            try:
                observation, _ = self.envs[slot].reset(seed=int(seeds[k]), options=given)
                out[k] = self._flatten(observation)
            except Exception as e:
                raise SlotFailure(slot) from e
        return out

    def step(self, slots: Sequence[int], actions: np.ndarray) -> PoolStep:
        k = len(slots)
        out = np.empty((k, *self._shape), self._dtype)
        rewards = np.empty(k)
        terminated, truncated = np.empty(k, dtype=bool), np.empty(k, dtype=bool)
        success, regret = np.full(k, ABSENT, dtype=np.int8), None
        envs, flatten = self.envs, self._flatten
        slot = -1
        try:
            for j, (slot, action) in enumerate(zip(slots, self._unflatten(actions), strict=True)):
                observation, rewards[j], terminated[j], truncated[j], info = envs[slot].step(action)
                out[j] = flatten(observation)
                if info:
                    success[j] = success_in(info)
                    if "regret" in info:
                        regret = np.full(k, np.nan) if regret is None else regret
                        regret[j] = info["regret"]
        except Exception as e:
            raise SlotFailure(slot) from e
        return PoolStep(out, rewards, terminated, truncated, success, regret)

    def episode_options(self, i: int) -> dict[str, Any] | None:
        return episode_options(self.envs[0], i)

    def oracle_actions(self, slots: Sequence[int]) -> np.ndarray:
        actions = [oracle_action(self.envs[slot]) for slot in slots]
        return sp.flatten_actions(self.action_space, actions)

    def render(self, slot: int) -> np.ndarray:
        try:
            frame = self.envs[slot].render()
        except Exception as e:
            raise SeqrlError(
                f"the environment cannot be rendered: {type(e).__name__}: {e}",
                hint="it must support render_mode='rgb_array'; MuJoCo without a display needs "
                "MUJOCO_GL=egl set before Python starts",
            ) from e
        if not isinstance(frame, np.ndarray):
            raise SeqrlError(
                f"rendering returned {type(frame).__name__}, no picture",
                hint="the environment must be made with render_mode='rgb_array'",
            )
        return frame

    def close(self) -> None:
        for env in self.envs:
            env.close()


class AsyncPool(EnvPool):
    """Environments in worker processes, stepped at the same time; pays for slow environments.

    Args:
        factory: makes one environment; must be picklable.
        num_envs: number of slots, a process each.
        first: an environment made before, kept for its spaces and episode options.
    """

    def __init__(
        self,
        factory: EnvFactory,
        num_envs: int,
        first: gymnasium.Env[Any, Any] | None = None,
    ):
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode

        self._first = first if first is not None else factory()
        self.num_envs = num_envs
        self.observation_space = self._first.observation_space
        self.action_space = self._first.action_space
        self.max_episode_steps = horizon(self._first)
        self._vector = AsyncVectorEnv(
            [functools.partial(_Slot, factory, slot) for slot in range(num_envs)],
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def reset(
        self,
        slots: Sequence[int],
        seeds: Sequence[int],
        options: Sequence[Mapping[str, Any] | None],
    ) -> np.ndarray:
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[list(slots)] = True
        all_seeds: list[int | None] = [None] * self.num_envs
        for slot, seed in zip(slots, seeds, strict=True):
            all_seeds[slot] = int(seed)
        own = {int(s): None if o is None else dict(o) for s, o in zip(slots, options, strict=True)}
        try:
            observations, _ = self._vector.reset(
                seed=all_seeds, options={"reset_mask": mask, "slots": own}
            )
        except Exception as e:
            raise SlotFailure(None) from e
        return np.asarray(observations)[list(slots)]

    def step(self, slots: Sequence[int], actions: np.ndarray) -> PoolStep:
        rows = list(slots)
        sent = np.zeros((self.num_envs, 1 + sp.action_spec(self.action_space).size))
        sent[rows, 0] = 1
        sent[rows, 1:] = actions.reshape(len(rows), -1)
        try:
            observations, rewards, terminated, truncated, infos = self._vector.step(sent)
        except Exception as e:
            raise SlotFailure(None) from e
        success = np.asarray(infos["success"])[rows]
        regret = np.asarray(infos["regret"], np.float64)[rows]
        # Indexing by a list copies, so the shared memory behind the observations is not handed out.
        return PoolStep(
            np.asarray(observations)[rows],
            rewards[rows],
            terminated[rows],
            truncated[rows],
            success.astype(np.int8),
            None if np.isnan(regret).all() else regret,
        )

    def episode_options(self, i: int) -> dict[str, Any] | None:
        return episode_options(self._first, i)

    def oracle_actions(self, slots: Sequence[int]) -> np.ndarray:
        oracle_action_of(self._first)  # the clear error, raised here and not in a worker
        actions = self._vector.call("scripted_action")
        return np.stack([actions[slot] for slot in slots])

    def close(self) -> None:
        self._first.close()
        self._vector.close()


class _Slot(gymnasium.Env[np.ndarray, np.ndarray]):
    """What a worker process runs: one environment in stored form that rests while it is idle.

    An action is ``[1, a...]``, or ``[0, ...]`` for a slot that no episode runs in.
    """

    def __init__(self, factory: EnvFactory, slot: int):
        self.env, self.slot = factory(), slot
        space = self.env.action_space
        spec, action = sp.observation_spec(self.env.observation_space), sp.action_spec(space)
        image = spec.kind == "image"
        self._dtype = np.uint8 if image else np.float32
        self.observation_space = spaces.Box(
            0 if image else -np.inf, 255 if image else np.inf, spec.shape, self._dtype
        )
        self.action_space = spaces.Box(-np.inf, np.inf, (1 + action.size,), np.float64)
        self._stored = np.float32 if action.kind == "continuous" else np.int64
        self._action_shape = (1, *action.shape)
        self._flatten = observation_writer(self.env.observation_space)
        self._unflatten = action_reader(space)
        self._last = np.zeros(spec.shape, self._dtype)
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        own = (options or {}).get("slots", {}).get(self.slot)
        observation, _ = self.env.reset(seed=seed, options=own)
        self._last = self._flatten(observation).astype(self._dtype, copy=False)
        self._started = True
        return self._last, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not action[0]:
            return self._last, 0.0, False, False, {"success": ABSENT, "regret": np.nan}
        stored = action[1:].astype(self._stored).reshape(self._action_shape)
        given = next(iter(self._unflatten(stored)))
        observation, reward, terminated, truncated, info = self.env.step(given)
        self._last = self._flatten(observation).astype(self._dtype, copy=False)
        said = {"success": success_in(info), "regret": float(info.get("regret", np.nan))}
        return self._last, float(reward), bool(terminated), bool(truncated), said

    def scripted_action(self) -> np.ndarray:
        """The oracle's action in stored form (the zero action before the first episode)."""
        if not self._started:
            return np.zeros(self._action_shape[1:], self._stored)
        return sp.flatten_actions(self.env.action_space, [oracle_action(self.env)])[0]

    def close(self) -> None:
        self.env.close()


def make_pool(factory: EnvFactory, num_envs: int, vector: Vector = "auto") -> EnvPool:
    """A pool of ``num_envs`` environments.

    Args:
        factory: makes one environment; picklable for ``vector="async"``.
        num_envs: number of slots.
        vector: ``sync`` steps in this process; ``async`` in a process each; ``auto`` is ``sync``
            unless one step takes over a millisecond and there are cores to spare.

    Raises:
        SeqrlError: no slot asked for, or an unknown ``vector``.
    """
    if num_envs < 1:
        raise SeqrlError(f"num_envs is {num_envs}, must be at least 1")
    if vector not in ("auto", "sync", "async"):
        raise SeqrlError(f"vector is {vector!r}, must be auto, sync or async")
    first = factory()
    if vector == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        slow = num_envs > 1 and cores > 1 and step_seconds(first) > _SLOW_STEP_S
        vector = "async" if slow else "sync"
    return (AsyncPool if vector == "async" else LocalPool)(factory, num_envs, first)


def env_factory(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    keys: tuple[str, ...] = (),
) -> EnvFactory:
    """A picklable factory of one kind of environment (arguments as for ``make_env``)."""
    return functools.partial(make_env, env_id, dict(env_kwargs or {}), render_mode, keys)


def step_seconds(env: gymnasium.Env[Any, Any], steps: int = 20) -> float:
    """Median seconds of one step under a constant action. Leaves the environment mid-episode.

    An environment that fails here counts as fast: the run itself will say what is wrong with it.
    """
    spec = sp.action_spec(env.action_space)
    kind = np.float32 if spec.kind == "continuous" else np.int64
    stored = sp.execute_actions(env.action_space, np.zeros((1, *spec.shape), kind))
    action = next(iter(action_reader(env.action_space)(stored)))
    costs = [0.0]
    with contextlib.suppress(Exception):
        env.reset(seed=0, options=episode_options(env, 0))
        for _ in range(steps):
            start = time.perf_counter()
            ended = env.step(action)[2:4]
            costs.append(time.perf_counter() - start)
            if any(ended):
                env.reset(seed=0, options=episode_options(env, 0))
    return float(np.median(costs))


def step_limit(pool: EnvPool, max_steps: int | None = None, task: TaskSpec | None = None) -> int:
    """After how many steps an episode is cut: ``max_steps``, else the environment's or data's.

    Raises:
        SeqrlError: none of them says, so an episode might never end.
    """
    limit = max_steps or pool.max_episode_steps or (task.max_episode_steps if task else None)
    if limit is None:
        name = (task.env_id or task.name) if task else "the environment"
        raise SeqrlError(
            f"{name} has no step limit: an episode may never end", hint="add --max-steps 1000"
        )
    return limit


def task_of(pool: EnvPool, env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> TaskSpec:
    """The task that the environments of a pool pose."""
    return TaskSpec(
        name=env_id,
        observation=sp.observation_spec(pool.observation_space),
        action=sp.action_spec(pool.action_space),
        env_id=env_id,
        env_kwargs=dict(env_kwargs or {}),
        max_episode_steps=pool.max_episode_steps,
    )


# --- one environment --------------------------------------------------------------------------


def observation_writer(space: spaces.Space[Any]) -> Callable[[Any], np.ndarray]:
    """A function from one observation to stored form; the cheapest that is right for ``space``."""
    if isinstance(space, spaces.Box) and (sp.is_image(space) or len(space.shape) == 1):
        # Assigning to a float32 row casts; nothing else is to be done.
        return np.asarray
    return functools.partial(sp.flatten_observation, space)


def action_reader(space: spaces.Space[Any]) -> Callable[[np.ndarray], Any]:
    """A function from actions ``[k, ...]`` in stored form to ``k`` actions of the space."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda actions: [a + start for a in actions.tolist()]
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        dtype = space.dtype
        return lambda actions: actions.astype(dtype, copy=False)
    return lambda actions: [sp.unflatten_action(space, a) for a in actions]


def success_in(info: Mapping[str, Any]) -> int:
    """Whether an info says the task was achieved: SUCCEEDED, FAILED, or ABSENT when it is silent.

    >>> success_in({"success": True}), success_in({"is_success": 0.0}), success_in({"reward": 1})
    (1, 0, -1)
    """
    said = info.get("success")
    if said is None:
        said = info.get("is_success")
    return ABSENT if said is None else (SUCCEEDED if np.any(said) else FAILED)


def episode_options(env: gymnasium.Env[Any, Any], i: int) -> dict[str, Any] | None:
    """The options an environment offers for evaluation episode ``i``; None when it offers none."""
    offer = getattr(env.unwrapped, "episode_options", None)
    return None if offer is None else dict(offer(i))


def oracle_action_of(env: gymnasium.Env[Any, Any]) -> Callable[[], Any]:
    """The scripted policy of an environment.

    Raises:
        SeqrlError: it has none.
    """
    oracle = getattr(env.unwrapped, "oracle_action", None)
    if oracle is None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        raise SeqrlError(
            f"{name} has no oracle", hint="the environment needs a method oracle_action()"
        )
    return oracle


def oracle_action(env: gymnasium.Env[Any, Any]) -> Any:
    """The scripted action for the present state, in the environment's own form."""
    return oracle_action_of(env)()

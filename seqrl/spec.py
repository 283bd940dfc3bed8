"""What a task looks like and what an agent sees: the types every other room shares.

``TaskSpec`` (shapes, kinds, bounds) is plain JSON-able data. ``Batch`` is what a loss sees,
``Step`` what acting sees. Both carry *raw* observations, rewards and returns-to-go: the agent's
base class normalises, in one function used by training and acting alike.

Shapes use ``B`` batch rows, ``n`` environment rows, ``T`` time steps, ``S`` observation
dimension, ``A`` action dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    import torch

ObservationKind = Literal["vector", "image"]
ActionKind = Literal["continuous", "discrete", "multidiscrete"]
WindowKind = Literal[
    "any_start", "any_end", "episode_start", "episode", "history", "context", "chain"
]


@dataclass(frozen=True)
class ObservationSpec:
    """Observations after flattening: a float32 vector ``(S,)`` or a uint8 image ``(H, W, C)``."""

    kind: ObservationKind
    shape: tuple[int, ...]
    keys: tuple[str, ...] = ()
    """Order in which the entries of a Dict space were concatenated; empty for other spaces."""

    def describe(self) -> str:
        """A short text for tables and errors, such as ``Box(11,)`` or ``Image(64, 64, 3)``."""
        return f"{'Box' if self.kind == 'vector' else 'Image'}{self.shape}"


@dataclass(frozen=True)
class ActionSpec:
    """Actions as stored and predicted.

    ``continuous``: float32 ``(A,)`` with bounds ``low``/``high`` (infinite where unbounded).
    ``discrete``: int64 scalar in ``[0, nvec[0])``. ``multidiscrete``: int64 ``(A,)``, entry j in
    ``[0, nvec[j])``.
    """

    kind: ActionKind
    shape: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    nvec: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Action dimensions A (1 for a discrete action)."""
        return self.shape[0] if self.shape else 1

    @property
    def n(self) -> int:
        """Number of choices of a discrete action."""
        if self.kind != "discrete":
            raise SeqrlError(f"{self.describe()} has no single number of choices")
        return self.nvec[0]

    @property
    def bounded(self) -> bool:
        """True for continuous actions whose every bound is finite."""
        inf = float("inf")
        return self.kind == "continuous" and all(
            -inf < lo and hi < inf for lo, hi in zip(self.low, self.high, strict=True)
        )

    def describe(self) -> str:
        """A short text for tables and errors, such as ``Box(3,)`` or ``Discrete(4)``."""
        if self.kind == "continuous":
            return f"Box({self.size},)"
        if self.kind == "discrete":
            return f"Discrete({self.nvec[0]})"
        return f"MultiDiscrete({list(self.nvec)})"


@dataclass(frozen=True)
class TaskSpec:
    """One task: its spaces, where it can be evaluated, and the scores it is measured against."""

    name: str
    observation: ObservationSpec
    action: ActionSpec
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    reference_scores: tuple[float, float] | None = None
    """(random, expert) returns that map to 0 and 100, or None when unknown."""
    reference_source: str | None = None
    """Where the reference scores come from, for reports."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into an equal spec."""
        return to_plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Rebuild a spec written by :meth:`to_json`."""
        obs, act = dict(data["observation"]), dict(data["action"])
        scores = data.get("reference_scores")
        return cls(
            name=data["name"],
            observation=ObservationSpec(
                obs["kind"], tuple(obs["shape"]), tuple(obs.get("keys", ()))
            ),
            action=ActionSpec(
                act["kind"],
                tuple(act["shape"]),
                tuple(float(v) for v in act.get("low", ())),
                tuple(float(v) for v in act.get("high", ())),
                tuple(act.get("nvec", ())),
            ),
            env_id=data.get("env_id"),
            env_kwargs=dict(data.get("env_kwargs") or {}),
            max_episode_steps=data.get("max_episode_steps"),
            reference_scores=None if scores is None else (float(scores[0]), float(scores[1])),
            reference_source=data.get("reference_source"),
        )


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy scalars as plain JSON data (infinities become strings)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_plain(value.tolist())
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value


@dataclass(frozen=True)
class WindowSpec:
    """The windows of trajectories that an agent's loss wants.

    ``any_start``: start uniform over all steps, cut at the episode end. ``any_end``: last step
    uniform over all steps, cut at the episode start. ``episode_start``: the first ``length``
    steps of a uniformly drawn episode. ``episode``: a whole episode (``length`` caps it).

    Over several episodes (``datasets/context_windows.py``): ``history``: consecutive steps of one
    learning history, the last of them uniform over all steps. ``context``: ``length - 1``
    transitions of one history, and as last step a query drawn from any history of the same task.
    ``chain``: up to ``episodes`` episodes of one task from worst to best, the last
    ``length // episodes`` steps of each.
    """

    kind: WindowKind
    length: int | None = None
    """Time steps T of a window; None (only for ``episode``) means the longest episode drawn."""
    next_observation: bool = False
    """Also gather the observation after each step (the final one at an episode's last step)."""
    extras: tuple[str, ...] = ()
    """Names of optional columns to gather as well."""
    discount: float | None = None
    """Also gather returns discounted by this (see ``datasets/discounting.py``)."""
    shuffle: bool = False
    """Only ``context``: a fresh random order of the history's transitions in every window."""
    episodes: int = 1
    """Only ``chain``: most episodes of a window."""

    def __post_init__(self) -> None:
        kinds = get_args(WindowKind)
        if self.kind not in kinds:
            raise SeqrlError(f"window kind {self.kind!r} is not one of {', '.join(kinds)}")
        if self.length is None and self.kind != "episode":
            raise SeqrlError(f"a window of kind {self.kind!r} needs a length")
        if self.length is not None and self.length < 1:
            raise SeqrlError(f"window length is {self.length}, must be at least 1")
        if self.discount is not None and not 0 < self.discount <= 1:
            raise SeqrlError(f"window discount is {self.discount}, must be above 0 and at most 1")
        least = {"context": 2, "chain": self.episodes}.get(self.kind, 1)
        if self.length is not None and self.length < least:
            raise SeqrlError(
                f"window length is {self.length}, a {self.kind} needs at least {least}"
            )


@dataclass
class Batch:
    """Right-padded windows of trajectories: valid steps first, zeros after, ``mask`` tells.

    Every tensor has leading dimensions ``[B, T]`` unless said. Values are raw (not normalised).
    """

    observations: torch.Tensor
    """``[B, T, S]`` float32 or ``[B, T, H, W, C]`` uint8."""
    actions: torch.Tensor
    """``[B, T, A]`` float32, ``[B, T]`` int64 (discrete) or ``[B, T, A]`` int64."""
    rewards: torch.Tensor
    """``[B, T]`` float32."""
    returns_to_go: torch.Tensor
    """``[B, T]`` float32: undiscounted sum of rewards from this step to the episode end."""
    timesteps: torch.Tensor
    """``[B, T]`` int64: step index within the episode, from 0."""
    terminations: torch.Tensor
    """``[B, T]`` bool: the environment ended the episode with this step."""
    truncations: torch.Tensor
    """``[B, T]`` bool: a time limit cut the episode after this step."""
    mask: torch.Tensor
    """``[B, T]`` bool: True on real steps."""
    task: torch.Tensor
    """``[B]`` int64: index into the agent's tasks."""
    rows: torch.Tensor
    """``[B]`` int64: flat index in the data of each window's first step."""
    next_observations: torch.Tensor | None = None
    """As ``observations``, one step later, where the window asked for it."""
    next_known: torch.Tensor | None = None
    """``[B, T]`` bool, with them: False where an episode's end was not recorded and its last
    observation stands in, and at padding."""
    discounted_returns: torch.Tensor | None = None
    """``[B, T]`` float32: discounted sum of the rewards from this step to the episode end, where
    the window asked for it."""
    discounted_tails: torch.Tensor | None = None
    """``[B, T]`` float32, with them: discount of what would follow a truncated end; 0 where the
    episode terminated."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """Optional columns, ``[B, T, ...]``."""

    @property
    def size(self) -> int:
        """Number of windows B."""
        return self.mask.shape[0]

    def map(self, fn: Any) -> Batch:
        """A batch with ``fn`` applied to every tensor."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            v = getattr(self, f.name)
            if f.name == "extras":
                values[f.name] = {k: fn(t) for k, t in v.items()}
            else:
                values[f.name] = None if v is None else fn(v)
        return Batch(**values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked host memory, for asynchronous copies to a GPU."""
        return self.map(lambda t: t.pin_memory())

    def __getitem__(self, rows: slice) -> Batch:
        """The windows ``rows`` as a smaller batch."""
        return self.map(lambda t: t[rows])


@dataclass
class Step:
    """One environment step for ``n`` rows, as the rollout engine hands it to ``Agent.act``.

    Within an episode the previous action and reward are those of the step before (zero at the
    first). For an agent whose memory lasts for a trial of several episodes, on a row with
    ``first`` set inside a trial the ``prev_*`` fields and ``final_observation`` describe the last
    transition of the episode that just ended; at a trial's start they are zero and
    ``trial_first`` is set.
    """

    observation: torch.Tensor
    """``[n, S]`` float32 or ``[n, H, W, C]`` uint8, raw."""
    prev_action: torch.Tensor
    """``[n, A]`` or ``[n]``, as executed (after clipping); zero where there is none."""
    prev_reward: torch.Tensor
    """``[n]`` float32, raw."""
    rtg: torch.Tensor
    """``[n]`` float32: the target return less the rewards received so far, raw."""
    timestep: torch.Tensor
    """``[n]`` int64: step index within the episode, from 0."""
    first: torch.Tensor
    """``[n]`` bool: first step of an episode."""
    trial_first: torch.Tensor
    """``[n]`` bool: first step of a trial (equals ``first`` for episode memory)."""
    prev_terminated: torch.Tensor
    """``[n]`` bool: the previous transition terminated its episode."""
    final_observation: torch.Tensor | None = None
    """As ``observation``: last observation of the episode just ended; only for trial memory."""
    task: torch.Tensor | None = None
    """``[n]`` int64 index into the agent's tasks; None means task 0 everywhere."""
    trial: torch.Tensor | None = None
    """``[n]`` int64: number of the trial (of the episode, where each is a trial of its own): by it
    a policy finds what it was given for one, such as recorded transitions of its task."""
    oracle_action: torch.Tensor | None = None
    """The environment's scripted action, filled only for a policy that asks for it."""


@dataclass(frozen=True)
class LossOut:
    """A loss: the mean over valid entries, how many there were, and scalars worth logging."""

    loss: torch.Tensor
    """Scalar: mean over the valid entries of the batch."""
    count: int | torch.Tensor
    """Number of valid entries averaged over; the trainer weights micro-batches and ranks by it."""
    metrics: dict[str, torch.Tensor | float] = field(default_factory=dict)
    """Named scalars, detached."""


@dataclass(frozen=True)
class DataStats:
    """What an agent may know of its training data; JSON-able and saved with every policy."""

    obs_mean: tuple[float, ...]
    """Per dimension, over all steps (empty for images)."""
    obs_std: tuple[float, ...]
    """Per dimension standard deviation (ddof 0) plus 1e-6 (empty for images)."""
    return_scale: float
    """Default divisor of returns: the largest |return| rounded to a power of ten (>= 1)."""
    return_quantiles: dict[str, float]
    """Episode returns: ``min``, ``p10``, ``p25``, ``p50``, ``p75``, ``p90``, ``max``, ``mean``."""
    reward_min: float
    reward_max: float
    rtg_min: float
    rtg_max: float
    action_low: tuple[float, ...]
    """Per dimension smallest action in the data (continuous actions only)."""
    action_high: tuple[float, ...]
    action_counts: tuple[int, ...]
    """How often each discrete action occurs (discrete actions only)."""
    episodes: int
    steps: int
    max_episode_length: int
    custom: dict[str, Any] = field(default_factory=dict)
    """What ``Agent.statistics`` asked of the columns once before training."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into equal statistics."""
        return to_plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DataStats:
        """Rebuild statistics written by :meth:`to_json`."""
        names = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names
        }
        return cls(**values)

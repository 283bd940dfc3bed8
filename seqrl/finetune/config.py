"""Settings of fine-tuning. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seqrl.errors import SeqrlError
from seqrl.presets.settings import build
from seqrl.spec import to_plain
from seqrl.units import parse_count

METHODS = ("weighted_bc", "actor_critic")

_DEFAULTS: dict[str, dict[str, int]] = {
    "weighted_bc": {"steps": 2000, "collect_every": 200, "collect_episodes": 20, "first": 20},
    "actor_critic": {"steps": 8000, "collect_every": 200, "collect_episodes": 2, "first": 20},
}


@dataclass(frozen=True)
class WeightedBCConfig:
    """The agent's own loss, on episodes drawn by their return."""

    keep: int = 2000
    """Most episodes kept to learn from."""
    keep_by: Literal["recent", "best"] = "recent"
    """Which are kept when there are more."""
    offline: bool = True
    """Keep learning from the data of the offline run too."""
    length_power: float = 1.0
    """An episode is drawn in proportion to its weight times its length to this power."""
    temperature: float = 1.0
    """Divides the exponent of an episode's weight: small values leave the best episodes alone."""
    spread: float = 0.4
    """The return that weighs 1 is this many deviations above the mean of a round (best round)."""
    weight_min: float = 0.01
    """Least weight of an episode."""
    weight_max: float = 10.0
    """Largest weight of an episode."""

    def __post_init__(self) -> None:
        _require(self.keep >= 1, "bc.keep", self.keep, "at least 1")
        _require(self.length_power >= 0, "bc.length_power", self.length_power, "at least 0")
        _require(self.temperature > 0, "bc.temperature", self.temperature, "above 0")
        ok = 0 < self.weight_min <= self.weight_max
        _require(ok, "bc.weight_min", self.weight_min, "above 0 and at most bc.weight_max")


@dataclass(frozen=True)
class ActorCriticConfig:
    """Deterministic policy gradients through remembered states."""

    gamma: float = 0.99
    """Discount of the critics."""
    actor_lr: float = 1e-5
    """Learning rate of the actor; --lr is the critics'."""
    warmup: int = 3000
    """Updates of the critics alone, before the actor moves at all."""
    warmup_noise: bool = True
    """Explore while warming up. Without it (as published) critics see one action a state."""
    warmup_critic_steps: int = 1
    """Optimiser steps of the critics in an update while warming up (published: 10)."""
    actor_every: int = 2
    """The actor takes a step in every so many updates."""
    critic: Literal["mlp", "ds4_resnet"] = "mlp"
    """Two layers of 256 units, or the small residual network of the published code."""
    critics: int = 2
    """One critic, or several of which the least value counts in targets."""
    critic_sees_returns: bool = False
    """Critics see the return-to-go too."""
    tau: float = 0.01
    """Share of the weights that targets take over at an update; 0 copies them whole now and then
    (as published, see copy_every)."""
    copy_every: int = 2000
    """Updates between whole copies to the targets, where tau is 0."""
    capacity: int = 20_000
    """Transitions remembered. Each keeps the agent's state: 16 kB a layer at width and state 64."""

    def __post_init__(self) -> None:
        _require(0 <= self.gamma < 1, "ac.gamma", self.gamma, "in [0, 1)")
        _require(self.actor_lr > 0, "ac.actor_lr", self.actor_lr, "above 0")
        _require(self.warmup >= 0, "ac.warmup", self.warmup, "at least 0")
        for name in ("warmup_critic_steps", "actor_every", "critics", "copy_every", "capacity"):
            _require(getattr(self, name) >= 1, f"ac.{name}", getattr(self, name), "at least 1")
        _require(0 <= self.tau <= 1, "ac.tau", self.tau, "in [0, 1]")


@dataclass(frozen=True)
class FinetuneConfig:
    """How to go on training in the environment."""

    method: Literal["weighted_bc", "actor_critic"] = "weighted_bc"
    """The agent's loss on episodes weighted by return (any agent), or actor-critic (recurrent)."""
    env: str | None = None
    """Environment to act in; none means that of the data."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Its arguments, over those of the data where it is their environment."""
    steps: int | None = None
    """Updates in all; none means 2k for weighted_bc, 8k for actor_critic."""
    collect_every: int | None = None
    """Updates from one round of collecting to the next; none means 200."""
    collect_episodes: int | None = None
    """Episodes of a round; none means 20 for weighted_bc, 2 for actor_critic."""
    first_episodes: int | None = None
    """Episodes of the first round; none means 20."""
    noise: tuple[str, ...] = ("0:0.2", "100%:0.05")
    """Exploration as UPDATE:SIZE points, linear between them. Size is the deviation of Gaussian
    noise in half widths of the action space, or the chance of a random choice."""
    target: str | None = None
    """Target return of the first round's episodes; none means the last evaluation target."""
    target_margin: float = 0.1
    """Later rounds ask for the best evaluation mean so far and this share of it more."""
    target_jitter: float = 0.15
    """Each episode's target lies uniformly within this share around the round's."""
    seed: int = 0
    """Decides episodes, exploration and batches."""
    batch_size: int | None = None
    """Windows (weighted_bc; none means as in the offline run) or transitions (none means 128)."""
    lr: float | None = None
    """Learning rate; none means as in the offline run, or 1e-3 for critics."""
    log_every: int = 50
    """Updates between rows of metrics."""
    eval_every: int | None = None
    """Updates between evaluations; none means 10 % of the steps, 0 never."""
    save_every: int | None = None
    """Updates between checkpoints; none means 10 % of the steps, 0 only at the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    bc: WeightedBCConfig = field(default_factory=WeightedBCConfig)
    ac: ActorCriticConfig = field(default_factory=ActorCriticConfig)

    def __post_init__(self) -> None:
        _require(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        for name in ("steps", "collect_every", "collect_episodes", "first_episodes", "batch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1, or none")
        for name in ("target_margin", "target_jitter"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        Schedule.parse(self.noise, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into an equal config."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FinetuneConfig:
        """A config from nested settings; what is not said takes the defaults."""
        return build(cls, data, "finetune")

    def number(self, name: str) -> int:
        """A count, the method's own where none is set: ``steps``, ``collect_every``, ..."""
        value = getattr(self, "first_episodes" if name == "first" else name)
        return _DEFAULTS[self.method][name] if value is None else int(value)

    def every(self, kind: Literal["eval", "save"]) -> int:
        """Updates between evaluations or checkpoints."""
        value: int | None = getattr(self, f"{kind}_every")
        return max(1, self.number("steps") // 10) if value is None else value


@dataclass(frozen=True)
class Schedule:
    """A number that changes linearly between given updates and stays level outside them."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def parse(cls, words: Sequence[str], steps: int) -> Schedule:
        """From points ``UPDATE:VALUE``; an update may be a percentage of ``steps``.

        Raises:
            SeqrlError: no points, one that is not understood, or updates that do not rise.

        >>> fork = Schedule.parse(["18k:0.75", "60k:0.3", "90k:0.005"], 100_000)
        >>> [round(fork(u), 4) for u in (0, 18_000, 39_000, 60_000, 99_000)]
        [0.75, 0.75, 0.525, 0.3, 0.005]
        """
        points = []
        for word in words:
            at, colon, value = word.partition(":")
            try:
                update = float(at[:-1]) / 100 * steps if at.endswith("%") else parse_count(at)
                points.append((float(update), float(value)))
            except (ValueError, SeqrlError):
                colon = ""
            if not colon or points[-1][1] < 0:
                raise SeqrlError(
                    f"noise '{word}' is not understood", hint="--noise 0:0.2,100%:0.05"
                )
        if not points or [p[0] for p in points] != sorted(p[0] for p in points):
            raise SeqrlError("noise needs points whose updates rise", hint="--noise 0:0.2,5k:0.05")
        return cls(tuple(points))

    def __call__(self, update: int) -> float:
        """The value at an update."""
        before = self.points[0]
        for point in self.points:
            if update < point[0]:
                if update <= before[0]:
                    return before[1]
                share = (update - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        flag = "--" + name.replace("_", "-")
        raise SeqrlError(f"{name} is {value!r}, must be {allowed}", hint=f"set {flag}")

"""The protocol every agent follows: learn from a ``Batch``, act on a ``Step``.

An agent is an ``nn.Module`` built from a frozen config, the task(s) it serves and the statistics
of their data. The trainer knows only ``loss``, ``parameter_groups`` and ``after_update``; the
rollout engine only ``initial_state``, ``reset`` and ``act``. What the acting state holds is the
agent's own affair: every tensor in it has leading dimension n, the environment rows.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seqrl.errors import SeqrlError
from seqrl.layers.state import select_rows
from seqrl.spec import ActionKind, Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec, to_plain

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories
    from seqrl.draws import RowDraws


@dataclass(frozen=True)
class AgentConfig:
    """Settings every agent has; each agent's own config adds its fields."""

    normalize_observations: bool = True
    """Shift and scale vector observations by the data's mean and standard deviation."""
    return_scale: float | None = None
    """Divide returns by this; none means the data's largest |return| rounded to a power of 10."""

    def __post_init__(self) -> None:
        if self.return_scale is not None:
            require(self.return_scale > 0, "return_scale", self.return_scale, "above 0")

    def window(self) -> WindowSpec:
        """The windows of trajectories the agent's loss wants."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; ``config_from_json`` turns it back into an equal config."""
        return to_plain(self)


def require(ok: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a SeqrlError naming a config field, its value and what is allowed, unless ``ok``."""
    if not ok:
        flag = "--agent." + name.replace("_", "-")
        raise SeqrlError(f"{name} is {value!r}, must be {allowed}", hint=f"set {flag}")


def require_sizes(config: AgentConfig, *names: str) -> None:
    """Refuse any of these fields that is below 1."""
    for name in names:
        require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")


def require_fractions(config: AgentConfig, *names: str) -> None:
    """Refuse any of these fields that is outside [0, 1)."""
    for name in names:
        require(0 <= getattr(config, name) < 1, name, getattr(config, name), "in [0, 1)")


def config_from_json(cls: type[AgentConfig], data: Mapping[str, Any]) -> AgentConfig:
    """Rebuild a config written by ``AgentConfig.to_json``; unknown fields are an error."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise SeqrlError(
            f"{cls.__name__} has no field {', '.join(map(repr, unknown))}",
            hint=f"its fields: {', '.join(fields)}",
        )
    values = {k: _as_tuples(v) for k, v in data.items()}
    return cls(**values)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass
class Acting:
    """How a policy turns predictions into actions, chosen when it is loaded or evaluated."""

    rule: str
    """What happens beyond the training window; one of the agent's ``acting_rules``."""
    decode: str = "greedy"
    """Most likely action, or one drawn from the predicted distribution."""
    temperature: float = 1.0
    """Divides logits before drawing; only for ``sample``."""


class Agent(nn.Module, ABC):
    """Base class of all agents. Subclasses set the class variables and the abstract methods."""

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    action_kinds: ClassVar[tuple[ActionKind, ...]] = ("continuous", "discrete")
    observation_kinds: ClassVar[tuple[str, ...]] = ("vector", "image")
    multi_task: ClassVar[bool] = False
    memory: ClassVar[Literal["episode", "trial"]] = "episode"
    """Whether the acting state ends with the episode or lasts for a trial of several."""
    acting_rules: ClassVar[tuple[str, ...]] = ("recompute",)
    """Rules the agent can act by: ``recompute``, ``refill``, ``stream``, the latter perhaps with
    what it gives up (``stream:tova``). The first is the default."""
    uses_returns: bool = True
    """False for agents that ignore the target return (one target is then enough)."""
    overfit_measure: ClassVar[tuple[str, float]] = ("action_error", 0.05)
    """Metric of ``loss`` and the value it falls below when four episodes are learned by heart."""
    battery_config: ClassVar[dict[str, Any]] = {}
    """Config fields of the shared test battery: small, and without dropout."""
    tolerance: ClassVar[dict[str, float]] = {"causality": 0.0, "padding": 1e-5, "streaming": 1e-5}
    """Largest allowed differences in the shared test battery."""

    def __init__(self, config: AgentConfig, tasks: Sequence[TaskSpec], stats: Sequence[DataStats]):
        super().__init__()
        self.check_tasks(tasks)
        self.config = config
        self.tasks = tuple(tasks)
        self.stats = tuple(stats)
        self.acting = Acting(self.acting_rules[0])
        for i, s in enumerate(self.stats):
            # Not in the state dict: the statistics are saved once, as JSON beside the weights.
            self.register_buffer(f"obs_mean_{i}", torch.tensor(s.obs_mean), persistent=False)
            self.register_buffer(f"obs_std_{i}", torch.tensor(s.obs_std), persistent=False)

    @classmethod
    def check_tasks(cls, tasks: Sequence[TaskSpec]) -> None:
        """Raise SeqrlError for tasks this agent cannot serve."""
        if len(tasks) > 1 and not cls.multi_task:
            from seqrl.datasets.trajectories import spec_difference

            why = spec_difference(tasks[0], tasks[1]) or "they are separate tasks"
            raise SeqrlError(
                f"agent '{cls.name}' takes one task, the data hold {len(tasks)}: {why}",
                hint="train on one of them at a time",
            )
        for t in tasks:
            if t.action.kind not in cls.action_kinds:
                raise SeqrlError(
                    f"agent '{cls.name}' needs {' or '.join(cls.action_kinds)} actions, "
                    f"dataset has {t.action.describe()}",
                    hint=f"agents for {t.action.kind} data: {_agents_for(t.action.kind)}",
                )
            if t.observation.kind not in cls.observation_kinds:
                raise SeqrlError(
                    f"agent '{cls.name}' needs {' or '.join(cls.observation_kinds)} observations, "
                    f"dataset has {t.observation.describe()}",
                )

    # --- learning -----------------------------------------------------------------------------

    @abstractmethod
    def predict(self, batch: Batch) -> Tensor:
        """Action prediction at every step: ``[B, T, A]`` means or ``[B, T, V]`` logits.

        The value at step t depends on steps up to t only, and not on the action at t.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> LossOut:
        """Mean loss over the valid entries of a batch, their number, and metrics."""

    def forward(self, batch: Batch) -> LossOut:
        """``loss``, under the name that data-parallel wrappers and the compiler hook into."""
        return self.loss(batch)

    def losses(self, batch: Batch) -> Iterator[LossOut] | None:
        """Several losses of one batch, each followed by an optimiser step of its own.

        For algorithms that step within a batch (once a segment, say); what one loss hands to the
        next lives in the generator. None, as here, means the one step of ``loss``.
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: ``params`` and, where they differ from the trainer's settings,
        ``weight_decay``, ``lr_scale`` (multiplies the learning rate) or ``lr_max`` (caps it).
        By default one group of everything that trains."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_update(self, step: int) -> None:
        """Called after optimiser step number ``step`` (from 1): target networks, teachers."""

    @classmethod
    def statistics(cls, config: AgentConfig, data: Trajectories) -> dict[str, Any]:
        """JSON-able facts the agent wants of the data, computed once before training."""
        return {}

    # --- acting -------------------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, n: int) -> Any:
        """Acting state of ``n`` fresh rows: a dict/tuple/dataclass of tensors ``[n, ...]``."""

    def reset(self, state: Any, rows: Tensor) -> Any:
        """``state`` with the rows where ``rows [n] bool`` is set made fresh, others untouched."""
        return select_rows(rows, self.initial_state(int(rows.shape[0])), state)

    @abstractmethod
    def step(self, state: Any, step: Step) -> tuple[Tensor, Any]:
        """Consume one step: prediction for its action, ``[n, A]`` or ``[n, V]``, and the state."""

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        """Actions for one step of every row.

        Args:
            state: from ``initial_state``, ``reset`` or the last ``act``.
            step: see :class:`seqrl.spec.Step`; consumed exactly once.
            generator: random streams of the rows, needed for ``decode="sample"``.

        Returns:
            Actions ``[n, A]`` float32 (within their bounds) or ``[n]`` int64, and the new state.
        """
        prediction, state = self.step(state, step)
        return self.decode(prediction, generator), state

    def decode(self, prediction: Tensor, generator: RowDraws | None) -> Tensor:
        """Actions from predictions: the mean, the most likely choice, or a drawn one."""
        if self.tasks[0].action.kind == "continuous":
            return prediction.float()
        if self.acting.decode == "greedy":
            return prediction.argmax(-1)
        if generator is None:
            raise SeqrlError("decode='sample' needs a generator", hint="pass one to act()")
        u = generator.uniform(prediction.shape[-1]).to(prediction.device).clamp_min(1e-12)
        gumbel = -torch.log(-torch.log(u))
        return (prediction.float() / self.acting.temperature + gumbel).argmax(-1)

    def set_acting(
        self,
        rule: str | None = None,
        decode: str | None = None,
        temperature: float | None = None,
    ) -> None:
        """Choose how to act; None keeps the present choice.

        Raises:
            SeqrlError: a rule this agent does not have, or sampling where it is deterministic.
        """
        if rule is not None:
            self.check_rule(rule)
        if decode not in (None, "greedy", "sample"):
            raise SeqrlError(f"decode is {decode!r}, must be greedy or sample")
        if decode == "sample" and not self.can_sample:
            raise SeqrlError(
                f"agent '{self.name}' predicts one continuous action, there is none to sample",
                hint="drop --decode sample",
            )
        if temperature is not None and not temperature > 0:
            raise SeqrlError(f"temperature is {temperature}, must be above 0")
        self.acting = Acting(
            rule=rule or self.acting.rule,
            decode=decode or self.acting.decode,
            temperature=temperature or self.acting.temperature,
        )

    def check_rule(self, rule: str) -> None:
        """Raise SeqrlError for a rule this agent cannot act by; agents add what configs forbid."""
        if rule not in self.acting_rules:
            raise SeqrlError(
                f"agent '{self.name}' cannot act by '{rule}'",
                hint=f"its rules: {', '.join(self.acting_rules)}",
            )

    @property
    def can_sample(self) -> bool:
        """Whether predictions are distributions that ``decode="sample"`` can draw from."""
        return all(t.action.kind != "continuous" for t in self.tasks)

    # --- units: the one place where raw values become network inputs ---------------------------

    def observe(self, observations: Tensor, task: int = 0) -> Tensor:
        """Raw observations as network input: normalised vectors, or images in [0, 1]."""
        if self.tasks[task].observation.kind == "image":
            return observations.to(torch.float32) / 255.0
        if not self.config.normalize_observations:
            return observations
        mean, std = getattr(self, f"obs_mean_{task}"), getattr(self, f"obs_std_{task}")
        return (observations - mean) / std

    def scaled(self, returns: Tensor, task: int = 0) -> Tensor:
        """Raw rewards or returns divided by the return scale."""
        return returns / self.scale_of(task)

    def scale_of(self, task: int = 0) -> float:
        """The return scale in force for a task."""
        return self.config.return_scale or self.stats[task].return_scale

    @property
    def common_action(self) -> int | None:
        """The most frequent discrete action of the data; None for other kinds of action."""
        counts = self.stats[0].action_counts
        return max(range(len(counts)), key=counts.__getitem__) if counts else None

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device


def _agents_for(kind: str) -> str:
    from seqrl.agents.registry import ROWS

    return " ".join(r.name for r in ROWS if kind in r.actions)

"""What a training run is given and what it gives back: config, hold-out, outcomes, hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seqrl.datasets.trajectories import Trajectories
from seqrl.distributed import Processes
from seqrl.errors import SeqrlError
from seqrl.optim import OptimConfig
from seqrl.runfolder import RunFolder
from seqrl.spec import to_plain

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent
    from seqrl.trainer import Trainer


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the agent."""

    steps: int = 100_000
    """Updates."""
    batch_size: int = 64
    """Windows in the batch of one update, over all processes."""
    best_share: float | None = None
    """Draw this share of the windows from the episodes whose return is above the mean: where
    successes are rare, few batches would else hold one. None draws all alike."""
    seed: int = 0
    """Decides the batches, dropout, the hold-out and the first weights."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning-rate schedule."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; weights stay fp32. fp16 needs CUDA."""
    compile: bool = False
    """Compile the agent with torch.compile (pays on GPUs)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is some."""
    deterministic: bool = False
    """Refuse GPU operations whose result varies from run to run (CPU ones never do)."""
    log_every: int = 100
    """Updates between rows of metrics."""
    eval_every: int | None = None
    """Updates between evaluations; none means 5 % of the steps, 0 never."""
    save_every: int | None = None
    """Updates between checkpoints; none means 10 % of the steps, 0 only at the end."""
    keep: int = 2
    """Newest checkpoints kept, besides the best."""
    holdout: float = 0.05
    """Share of the episodes held out for the validation loss."""
    val_batches: int = 20
    """Batches of a validation loss."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep", "val_batches"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eval_every", "save_every"):
            every = getattr(self, name)
            _require(every is None or every >= 0, name, every, "at least 0, or none")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        share = self.best_share
        _require(share is None or 0 < share < 1, "best_share", share, "between 0 and 1, or none")
        _require(0 <= self.holdout < 1, "holdout", self.holdout, "at least 0 and below 1")
        for name, known in (
            ("precision", ("fp32", "bf16", "fp16")),
            ("device", ("auto", "cpu", "cuda")),
        ):
            value = getattr(self, name)
            _require(value in known, name, value, "one of " + ", ".join(known))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_json` turns back into an equal config."""
        return to_plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Rebuild a config written by :meth:`to_json`."""
        optim = dict(data["optim"])
        optim["betas"] = tuple(optim["betas"])
        return cls(**{**data, "optim": OptimConfig(**optim)})

    def due(self, kind: Literal["log", "eval", "save"], step: int) -> bool:
        """Whether rows, evaluations or checkpoints fall on ``step``; all do on the last."""
        every = {"log": self.log_every, "eval": self.eval_every, "save": self.save_every}[kind]
        if every is None:
            every = max(1, self.steps // (20 if kind == "eval" else 10))
        if every == 0:
            return kind == "save" and step == self.steps
        return step % every == 0 or step == self.steps


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        flag = "--" + name.replace("_", "-")
        raise SeqrlError(f"{name} is {value!r}, must be {allowed}", hint=f"set {flag}")


@dataclass(frozen=True)
class EvalOutcome:
    """What an evaluation during training found."""

    score: float | None
    """Decides which checkpoint is ``best``, higher being better; None leaves that to others."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Numbers for the metrics, logged as ``eval/NAME``."""
    record: dict[str, Any] = field(default_factory=dict)
    """Written to ``eval/step_XXXXXXX.json``."""
    text: str = ""
    """A few words for the progress line, such as ``eval[1.0] success 0.50 [0.24, 0.76]``."""


Evaluator = Callable[["Agent", int], EvalOutcome]
"""Called with the agent (evaluation mode, averaged weights) and the step."""


class Callback:
    """Hooks into a run; override what you need. Called on every process."""

    def on_step(self, trainer: Trainer, step: int) -> None:
        """After update number ``step`` (from 1)."""

    def on_eval(self, trainer: Trainer, step: int, values: Mapping[str, float]) -> None:
        """After an evaluation; ``values`` are empty on all processes but the first."""

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        """After a checkpoint was saved (first process only)."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    seconds: float
    """Wall-clock time of all its sessions."""
    metrics: dict[str, float]
    """The last row of metrics."""
    best: dict[str, Any] | None
    """``step``, ``value`` and ``by`` (score or val_loss, negated) of the best checkpoint."""
    run: RunFolder | None


def hold_out(
    data: Sequence[Trajectories], share: float, seed: int
) -> tuple[list[Trajectories], list[Trajectories] | None]:
    """Training and hold-out sets of every task, split by episode; none held out when share is 0.

    A single task of one episode is trained on whole.

    Raises:
        SeqrlError: a share outside [0, 1), or one task of several too small to be split.
    """
    _require(0 <= share < 1, "holdout", share, "at least 0 and below 1")
    pairs = [d.split(share, seed) for d in data]
    held = [h for _, h in pairs if h is not None]
    if held and len(held) < len(pairs):
        short = next(d for d, (_, h) in zip(data, pairs, strict=True) if h is None)
        raise SeqrlError(
            f"{short.source} has one episode, none of it can be held out", hint="--holdout 0"
        )
    return [t for t, _ in pairs], held or None


def check_sets(agent: Agent, data: Sequence[Trajectories], holdout: Sequence[Trajectories]) -> None:
    """Raise SeqrlError where there is not one data set, and one hold-out set, for each task."""
    if len(data) != len(agent.tasks):
        raise SeqrlError(
            f"the agent serves {len(agent.tasks)} tasks, but {len(data)} data sets were given"
        )
    if holdout and len(holdout) != len(data):
        raise SeqrlError(
            f"{len(holdout)} hold-out sets for {len(data)} data sets",
            hint="give one each: see seqrl.trainer.hold_out",
        )


def check_sharing(config: TrainConfig, processes: Processes) -> None:
    """Raise SeqrlError for a batch that processes and micro-batches cannot share evenly."""
    share = processes.world * config.optim.accumulation
    if config.batch_size % share:
        raise SeqrlError(
            f"batch size {config.batch_size} cannot be split into "
            f"{config.optim.accumulation} micro-batches on {processes.world} processes",
            hint=f"use a multiple of {share}",
        )

"""Optimiser, learning-rate schedule, gradient clipping and weight averaging of the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqrl.errors import SeqrlError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a learning-rate schedule."""

    lr: float = 1e-4
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 1e-4
    """Decoupled weight decay (an agent may exempt parameters)."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly: at update i, min((i+1)/warmup, 1)."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up: level, or falling to the end of the run."""
    min_lr_ratio: float = 0.0
    """Cosine and linear fall no lower than this share of the learning rate."""
    schedule_steps: int | None = None
    """Update at which cosine and linear reach 0; none means the end of the run."""
    grad_clip: float | None = 0.25
    """Largest norm of the whole gradient; none or 0 clips nothing."""
    accumulation: int = 1
    """Micro-batches a batch is split into, to save memory; does not change what is learned."""
    ema: float | None = None
    """Decay of a running average of the weights, which is then what is evaluated and saved.
    Update n averages with min(ema, (1+n)/(10+n)), so that early weights are soon forgotten."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", self.lr, "above 0")
        betas = self.betas
        ok = len(betas) == 2 and all(0 <= b < 1 for b in betas)
        _require(ok, "betas", betas, "two numbers in [0, 1)")
        _require(self.eps > 0, "eps", self.eps, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        known = ("constant", "cosine", "linear")
        _require(self.schedule in known, "schedule", self.schedule, "one of " + ", ".join(known))
        in_unit = 0 <= self.min_lr_ratio <= 1
        _require(in_unit, "min_lr_ratio", self.min_lr_ratio, "in [0, 1]")
        ends = self.schedule_steps
        _require(ends is None or ends > 0, "schedule_steps", ends, "at least 1, or none")
        clip = self.grad_clip
        _require(clip is None or clip >= 0, "grad_clip", clip, "at least 0, or none")
        _require(self.accumulation >= 1, "accumulation", self.accumulation, "at least 1")
        _require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "in (0, 1), or none")


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    # "not ok" is also where a NaN ends up: every comparison above is false for it.
    if not ok:
        flag = "--lr" if name == "lr" else "--optim." + name.replace("_", "-")
        raise SeqrlError(f"optim.{name} is {value!r}, must be {allowed}", hint=f"set {flag}")


# --- learning rate -----------------------------------------------------------------------------


def lr_factor(update: int, config: OptimConfig, total: int) -> float:
    """What the learning rate is multiplied by at ``update`` (from 0) of a run of ``total``.

    Warm-up first: ``min((update+1)/warmup, 1)``. Then, with p the share of the way from the end
    of warm-up to the end of the schedule (at most 1), 1 for constant,
    ``max(min_lr_ratio, (1 + cos(pi p))/2)`` for cosine and ``max(min_lr_ratio, 1 - p)`` for linear.

    >>> c = OptimConfig(warmup_steps=4, schedule="linear")
    >>> [lr_factor(u, c, 8) for u in (0, 3, 4, 6, 8)]
    [0.25, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = config.warmup_steps
    if update < warmup:
        return (update + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    p = (update - warmup) / max((config.schedule_steps or total) - warmup, 1)
    if p >= 1:
        return config.min_lr_ratio
    fall = 1 - p if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * p))
    return max(config.min_lr_ratio, fall)


def describe_extension(config: OptimConfig, step: int, old_total: int, new_total: int) -> str:
    """One line on what becomes of the learning rate when a run at ``step`` gets another length.

    >>> describe_extension(OptimConfig(), 5000, 5000, 10_000)
    'schedule constant: the learning rate stays 1.0e-04'
    """
    before = config.lr * lr_factor(step, config, old_total)
    after = config.lr * lr_factor(step, config, new_total)
    if config.schedule == "constant":
        return f"schedule constant: the learning rate stays {after:.1e}"
    if config.schedule_steps is not None:
        end = config.schedule_steps
        return f"schedule {config.schedule} still ends at step {end}: {after:.1e} now"
    return (
        f"schedule {config.schedule} is recomputed for {new_total} steps instead of {old_total}: "
        f"the learning rate goes on at {after:.1e} (it was {before:.1e})"
    )


# --- optimiser ---------------------------------------------------------------------------------


def build_optimizer(
    groups: Sequence[Mapping[str, Any]], config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over an agent's parameter groups, fused where the device has it.

    A group may set its own ``weight_decay``, ``lr_scale`` to multiply the learning rate, and
    ``lr_max``, above which its peak does not rise.

    Raises:
        SeqrlError: nothing to train.
    """
    prepared = []
    for g in groups:
        params = [p for p in g["params"] if p.requires_grad]
        if params:
            decay = float(g.get("weight_decay", config.weight_decay))
            scale = float(g.get("lr_scale", 1.0))
            scale = min(scale, float(g.get("lr_max", math.inf)) / config.lr)
            prepared.append({"params": params, "weight_decay": decay, "lr_scale": scale})
    if not prepared:
        raise SeqrlError("the agent has no parameters to train", hint="see parameter_groups()")
    betas = (config.betas[0], config.betas[1])
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(prepared, lr=config.lr, betas=betas, eps=config.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, each group's ``lr_scale`` applied."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore the running averages of an optimiser; rates and decays stay as configured now.

    Raises:
        SeqrlError: a state of other parameters.
    """
    params = [p for g in optimizer.param_groups for p in g["params"]]
    hint = "the checkpoint belongs to another agent or version; start anew from its weights"
    try:
        state = saved["state"]
        sizes = [len(g["params"]) for g in saved["param_groups"]]
        fits = sizes == [len(g["params"]) for g in optimizer.param_groups] and all(
            v.dim() == 0 or v.shape == params[int(i)].shape
            for i, values in state.items()
            for v in values.values()
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        fits = False
    if not fits:
        raise SeqrlError("the optimiser state does not fit the agent's parameters", hint=hint)
    configured = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)


def clip_gradients(params: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit``; returns the norm before.

    The same arithmetic as ``torch.nn.utils.clip_grad_norm_`` in fewer operations; on a CPU,
    where reading the norm costs nothing, gradients within the limit are not touched.
    """
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    factor = limit / (norm + 1e-6)
    if norm.device.type != "cpu" or float(factor) < 1:
        torch._foreach_mul_(grads, factor.clamp(max=1.0))
    return norm


# --- weight averaging --------------------------------------------------------------------------


class WeightAverage:
    """Running average of a module's trained parameters: ``average = d*average + (1-d)*weights``.

    ``d`` at update n (from 1) is ``min(decay, (1+n)/(10+n))``. Everything else in the module
    (buffers, frozen parameters) is used as it is.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after update ``n`` (from 1)."""
        d = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - d)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the averages; afterwards its own weights, bit for bit."""
        raw = [p.detach().clone() for p in self.weights]
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(raw)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew at the module's present weights."""
        for average, p in zip(self.average, self.weights, strict=True):
            average.copy_(p)

    @torch.no_grad()
    def _copy(self, values: Iterable[Tensor]) -> None:
        for p, v in zip(self.weights, values, strict=True):
            p.copy_(v)

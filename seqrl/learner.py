"""One update of an agent's weights: loss, gradients over parts and processes, optimiser step.

The trainer owns the loop, the files and the decisions; this is the arithmetic between a batch and
the next weights.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from seqrl import distributed
from seqrl.devices import autocast, seed_generators
from seqrl.distributed import Processes
from seqrl.errors import SeqrlError
from seqrl.optim import (
    OptimConfig,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    load_optimizer,
    lr_factor,
    set_learning_rate,
)
from seqrl.spec import Batch, LossOut

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent

# Fifth part of the seed where torch draws outside a training loss; training seeds have four.
_VALIDATION, _EVALUATION = 1, 2


class NotFinite(Exception):
    """A loss or a gradient was NaN or infinite."""

    def __init__(self, update: int, loss: float, norm: float):
        self.update, self.loss, self.norm = update, loss, norm
        bad, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        super().__init__(f"{bad} is {'NaN' if math.isnan(value) else 'inf'}")


class _Pending(NamedTuple):
    """An update whose loss and gradient norm were not looked at yet."""

    update: int
    loss: Tensor
    norm: Tensor | None


class Learner:
    """An agent with its optimiser.

    Args:
        agent: trained in place; moved to ``device``.
        optim: optimiser and schedule.
        steps: updates of the whole run, for the schedule.
        seed: with the update's number it decides what torch draws in the loss.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(
        self,
        agent: Agent,
        optim: OptimConfig,
        *,
        steps: int,
        seed: int,
        precision: str,
        device: torch.device,
        processes: Processes,
    ):
        self.optim, self.steps, self.seed = optim, steps, seed
        self.device, self.processes = device, processes
        self.autocast = autocast(precision, device)
        self.agent = agent.to(device)
        self.optimizer = build_optimizer(agent.parameter_groups(), optim, device)
        self.params = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self.average = None if optim.ema is None else WeightAverage(agent, optim.ema)
        self.module: Any = agent
        """The agent as called in training: perhaps compiled, perhaps data-parallel."""
        self.immediate = device.type == "cpu"
        """Whether reading a number off the device costs nothing."""
        self.stop_votes: Tensor | None = None
        """How many processes wish to stop, as of the last update."""
        self._pending: list[_Pending] = []

    def wrap(self, compile: bool) -> None:
        """Compile the agent if asked to, and make it data-parallel where there are processes."""
        self.module = torch.compile(self.agent) if compile else self.agent
        if not self.processes.alone:
            self.module = distributed.data_parallel(self.module, self.device)

    def unwrap(self) -> None:
        """Undo :meth:`wrap`, while the processes can still talk.

        A data-parallel wrapper that outlives its connections may wait for their threads for ever.
        """
        self.module, self.stop_votes = self.agent, None
        if not self.processes.alone:
            gc.collect()  # the wrapper is part of reference cycles

    def lr(self, update: int) -> float:
        """Learning rate of an update (from 0)."""
        return self.optim.lr * lr_factor(update, self.optim, self.steps)

    # --- an update ----------------------------------------------------------------------------

    def update(self, update: int, batch: Batch, stop: bool = False) -> dict[str, Any]:
        """Take one optimiser step.

        Args:
            update: its number, from 0.
            batch: this process's rows, on any device.
            stop: this process wishes to stop; told to the others.

        Returns:
            ``loss``, the agent's metrics and ``grad_norm`` (where gradients are clipped): numbers
            on a CPU, else tensors that nothing has waited for.

        Raises:
            NotFinite: on a CPU, before the weights change; elsewhere see :meth:`check_finite`.
        """
        if self.device.type != "cpu":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        several = self.agent.losses(batch)
        if several is not None:
            values = self._several_steps(update, several)
        elif self.processes.alone and self.optim.accumulation == 1:
            values = self._step(update, *self._backward(update, batch))
        else:
            values = self._step(update, *self._backward_in_parts(update, batch, stop))
        self.agent.after_update(update + 1)
        if self.average:
            self.average.update(update + 1)
        if self.immediate:
            return {k: float(v) for k, v in values.items()}
        return {k: v.double() if isinstance(v, Tensor) else v for k, v in values.items()}

    def _step(self, update: int, loss: Tensor, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Clip the gradients, look at them and take the optimiser step."""
        clip = self.optim.grad_clip
        norm = clip_gradients(self.params, clip) if clip else None
        # With fp16 an infinite gradient is normal: the scaler skips the step and scales less.
        self._pending.append(_Pending(update, loss, None if self.scaler else norm))
        if self.immediate:
            self.check_finite()
        set_learning_rate(self.optimizer, self.lr(update))
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        for p in self.params:  # as zero_grad() does, without its bookkeeping
            p.grad = None
        values = {"loss": loss, **metrics}
        if norm is not None:
            values["grad_norm"] = norm
        return values

    def _several_steps(self, update: int, several: Iterator[LossOut]) -> dict[str, Any]:
        """An optimiser step for each of an agent's losses of one batch; means over their entries.

        Raises:
            SeqrlError: processes or micro-batches, between which such steps cannot be shared.
        """
        if not self.processes.alone or self.optim.accumulation > 1:
            raise SeqrlError(
                f"agent '{self.agent.name}' takes several optimiser steps within a batch",
                hint="train it in one process and with --optim.accumulation 1",
            )
        seed_generators(self.device, self.seed, update, 0, 0)
        totals: dict[str, Any] = {}
        entries: Any = 0.0
        while True:
            with self.autocast:
                out = next(several, None)
            if out is None:
                break
            self._backpropagate(out.loss)
            values = self._step(update, out.loss.detach(), out.metrics)
            entries = entries + out.count
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value * out.count
        if not totals:
            raise SeqrlError(f"agent '{self.agent.name}' made no loss of update {update + 1}")
        return {k: v / entries for k, v in totals.items()}

    def _backpropagate(self, loss: Tensor) -> None:
        if self.scaler:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
        else:
            loss.backward()

    def _backward(self, update: int, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Gradients of one whole batch in one process."""
        seed_generators(self.device, self.seed, update, 0, 0)
        with self.autocast:
            out = self.module(batch)
        self._backpropagate(out.loss)
        return out.loss.detach(), out.metrics

    def _backward_in_parts(
        self, update: int, batch: Batch, stop: bool
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Gradients over micro-batches and processes, each weighted by its valid entries.

        A part's mean loss is multiplied by its number of entries, the summed gradient divided by
        the total number: the gradient of the mean over the whole batch.
        """
        parts, rank = self.optim.accumulation, self.processes.rank
        rows = batch.size // parts
        # Count and loss over the parts, and the vote: one message carries all three.
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        metrics: dict[str, Any] = {}
        for i in range(parts):
            seed_generators(self.device, self.seed, update, rank, i)
            # Gradients travel once, with the last part.
            quiet = not self.processes.alone and i < parts - 1
            with self.module.no_sync() if quiet else contextlib.nullcontext():
                with self.autocast:
                    out = self.module(batch[i * rows : (i + 1) * rows])
                weighted = out.loss * (out.count / rows)
                (self.scaler.scale(weighted) if self.scaler else weighted).backward()
            sums[0] += out.count
            sums[1] += out.loss.detach() * out.count
            for name, value in out.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value * out.count
        own = sums[0].clamp(min=1.0)
        if not self.processes.alone:
            sums[2] += float(stop)
            self.stop_votes = distributed.total(sums)[2]
        entries = sums[0].clamp(min=1.0)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        # Data-parallel gradients are means over the processes, hence their number.
        factor = (self.processes.world * rows / entries).float()
        torch._foreach_mul_([p.grad for p in self.params if p.grad is not None], factor)
        return sums[1] / entries, {k: v / own for k, v in metrics.items()}

    def check_finite(self) -> None:
        """Look at the losses and gradient norms since the last look.

        Raises:
            NotFinite: naming the first update that went wrong.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        if self.immediate:
            pairs = [(float(p.loss), 0.0 if p.norm is None else float(p.norm)) for p in pending]
        else:  # one transfer for all of them
            norms = [p.loss * 0 if p.norm is None else p.norm for p in pending]
            both = [torch.stack([p.loss for p in pending]), torch.stack(norms)]
            pairs = list(zip(*(t.tolist() for t in both), strict=True))
        for p, (loss, norm) in zip(pending, pairs, strict=True):
            if not (math.isfinite(loss) and (math.isfinite(norm) or self.scaler)):
                raise NotFinite(p.update, loss, norm)

    def weights_finite(self) -> bool:
        """Whether every trained weight is finite."""
        return all(bool(torch.isfinite(p).all()) for p in self.params)

    # --- evaluation ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Inside, the agent is in evaluation mode, has the averaged weights and builds no graph."""
        applied = self.average.applied() if self.average else contextlib.nullcontext()
        self.agent.eval()
        try:
            with applied, torch.no_grad():
                seed_generators(self.device, self.seed, step, 0, 0, _EVALUATION)
                yield
        finally:
            self.agent.train()

    def validation_loss(self, batches: Iterable[Batch]) -> float:
        """Mean loss over the valid entries of batches."""
        loss = entries = 0.0
        for i, batch in enumerate(batches):
            seed_generators(self.device, self.seed, i, 0, 0, _VALIDATION)
            with self.autocast:
                out = self.agent.loss(batch.to(self.device))
            loss += float(out.loss) * float(out.count)
            entries += float(out.count)
        return loss / max(entries, 1.0)

    # --- what a checkpoint holds --------------------------------------------------------------

    @contextlib.contextmanager
    def policy_weights(self) -> Iterator[None]:
        """Inside, the agent has the weights that are saved as the policy."""
        with self.average.applied() if self.average else contextlib.nullcontext():
            yield

    def tensors(self) -> dict[str, Any]:
        """Contents of ``optimizer.pt``; call it outside :meth:`policy_weights`."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        if self.average:
            pairs = zip(self.average.names, self.average.weights, strict=True)
            state["raw_weights"] = {n: w.detach().clone() for n, w in pairs}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`tensors`, when the agent holds the saved policy weights.

        Raises:
            SeqrlError: a state of another agent.
        """
        if self.average:
            # The policy weights are the averages; those of a run without any begin one.
            self.average.reset()
        try:
            load_optimizer(self.optimizer, state["optimizer"])
            own = dict(self.agent.named_parameters())
            with torch.no_grad():
                for name, value in state.get("raw_weights", {}).items():
                    own[name].copy_(value)
            if self.scaler and "scaler" in state:
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
            raise SeqrlError(f"optimiser state does not fit the agent: {e}") from e

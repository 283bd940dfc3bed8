"""Data-parallel training over the processes that ``torchrun`` starts.

::

    torchrun --nproc-per-node 2 -m seqrl train dt --data hopper-medium

Each process takes its rows of the global batch; gradients are averaged by
``DistributedDataParallel`` (gloo on CPU, nccl on CUDA) and weighted by valid entries, so that the
number of processes changes the speed alone. The first process writes everything.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqrl.errors import SeqrlError

# The others wait while the first process evaluates, which may take long.
_TIMEOUT = datetime.timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """Which of how many training processes this one is."""

    rank: int = 0
    """This process, from 0."""
    world: int = 1
    """Number of processes."""
    local_rank: int = 0
    """This process among those of its machine, from 0."""

    @classmethod
    def from_env(cls) -> Processes:
        """What ``torchrun`` put into the environment; one process when it did not.

        Raises:
            SeqrlError: variables that make no sense.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        try:
            found = [int(os.environ.get(n, d)) for n, d in zip(names, ("0", "1", "0"), strict=True)]
        except ValueError:
            found = [0, 0, 0]
        if not 0 <= found[0] < found[1]:
            values = ", ".join(f"{n}={os.environ.get(n)!r}" for n in names)
            raise SeqrlError(
                f"the environment names no valid process: {values}",
                hint="start several processes with torchrun, or unset these variables",
            )
        return cls(*found)

    @property
    def first(self) -> bool:
        """Whether this process writes files and evaluates."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1


@contextlib.contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Inside, the processes can talk. Nothing happens for one, or where they already could."""
    if processes.alone or torch.distributed.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    except (ValueError, RuntimeError) as e:
        raise SeqrlError(
            f"{processes.world} processes cannot join: {str(e).splitlines()[0]}",
            hint="start them with torchrun",
        ) from e
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with gradients averaged over the processes.

    Parameters a batch does not reach are allowed: agents with several losses or segments have them.
    """
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=ids, find_unused_parameters=True, gradient_as_bucket_view=True
    )


def total(values: Tensor) -> Tensor:
    """The sum over all processes (in place)."""
    torch.distributed.all_reduce(values)
    return values


def from_first(value: Any, processes: Processes) -> Any:
    """The first process's value, on every process (they must have joined)."""
    if processes.alone:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def lost_contact(error: BaseException, processes: Processes) -> bool:
    """Whether an error only says that another process of the run has gone."""
    text = str(error).lower()
    gone = any(w in text for w in ("connection closed", "connection reset", "connection refused"))
    return isinstance(error, RuntimeError) and not processes.alone and gone


def under_torchrun() -> bool:
    """Whether ``torchrun`` started this process; it then repeats every signal to it."""
    return "TORCHELASTIC_RUN_ID" in os.environ

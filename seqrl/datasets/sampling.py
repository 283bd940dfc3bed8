"""Batches of windows, each a pure function of (seed, update, row).

Sampling is one vectorised gather per column: draw a start for every row, add ``arange(T)``, take.
Which windows exist is the agent's ``WindowSpec``; the padding rule is one for all: valid steps
first, zeros after, ``mask`` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import uniform64
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, WindowSpec

TRAINING, VALIDATION = 0, 1
"""Streams of the counter-based generator: hold-out batches never follow the training draws."""


class Sampler:
    """Training batches of windows from one task's trajectories, or several tasks' in turn.

    Update ``u`` draws from task ``u mod len(data)``. Rank r of w takes rows
    ``r*B/w .. (r+1)*B/w`` of the global batch, so the data do not depend on the number of
    processes.

    Args:
        data: one ``Trajectories`` a task.
        window: what the agent's loss wants.
        batch_size: global batch size B.
        seed: training seed.
        rank: this process.
        world: number of processes; must divide ``batch_size``.

    Raises:
        SeqrlError: a batch size the processes cannot share, or a missing optional column.
    """

    def __init__(
        self,
        data: Sequence[Trajectories],
        window: WindowSpec,
        batch_size: int,
        seed: int = 0,
        *,
        stream: int = TRAINING,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size < 1 or batch_size % world:
            raise SeqrlError(
                f"batch size {batch_size} cannot be shared by {world} processes",
                hint=f"use a multiple of {world}",
            )
        self.gathers = [_Gather(d, window, task=i) for i, d in enumerate(data)]
        self.batch_size = batch_size
        self.seed, self.stream = seed, stream
        share = batch_size // world
        self.rows = slice(rank * share, (rank + 1) * share)

    def batch(self, update: int) -> Batch:
        """This process's rows of the global batch of ``update`` (from 0)."""
        gather = self.gathers[update % len(self.gathers)]
        u = uniform64(self.seed, self.stream, update, self.batch_size)
        return gather(u[self.rows])


def ordered_batches(
    data: Sequence[Trajectories], window: WindowSpec, batch_size: int, limit: int, seed: int = 0
) -> Iterator[Batch]:
    """At most ``limit`` batches for validation: the same windows whenever they are asked for."""
    sampler = Sampler(data, window, batch_size, seed, stream=VALIDATION)
    for u in range(limit):
        yield sampler.batch(u)


class _Gather:
    """Turns uniform numbers into windows of one task's trajectories."""

    def __init__(self, data: Trajectories, window: WindowSpec, task: int):
        for name in window.extras:
            if name not in data.extras:
                raise SeqrlError(
                    f"{data.source} has no column '{name}', which the agent's loss needs",
                    hint=f"its optional columns: {', '.join(data.extras) or 'none'}",
                )
        self.data, self.window, self.task = data, window, task
        self.starts, self.lengths, self.offsets = data.starts, data.lengths, data.step_offsets
        self.contiguous = data.selection is None
        self.steps = np.arange(window.length or int(self.lengths.max()))

    def __call__(self, u: np.ndarray) -> Batch:
        first, valid, timestep = self._place(u)
        t = self.steps if self.window.length else self.steps[: int(valid.max())]
        last = first + valid - 1
        index = np.minimum(first[:, None] + t, last[:, None])  # (B, T), clipped at the window end
        mask = t < valid[:, None]
        padding = np.flatnonzero(~mask)
        d = self.data

        def take(column: np.ndarray) -> torch.Tensor:
            values = column.take(index, axis=0)
            values.reshape(index.size, -1)[padding] = 0
            return torch.from_numpy(values)

        timesteps = timestep[:, None] + t
        timesteps.reshape(-1)[padding] = 0
        next_obs = None
        if self.window.next_observation:
            next_obs = torch.from_numpy(self._next(index, padding))
        return Batch(
            observations=take(d.observations),
            actions=take(d.actions),
            rewards=take(d.rewards),
            returns_to_go=take(d.rtg),
            timesteps=torch.from_numpy(timesteps),
            terminations=take(d.terminations),
            truncations=take(d.truncations),
            mask=torch.from_numpy(mask),
            task=torch.full((len(u),), self.task, dtype=torch.int64),
            rows=torch.from_numpy(first),
            next_observations=next_obs,
            extras={k: take(d.extras[k]) for k in self.window.extras},
        )

    def _place(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat index of the first step, number of valid steps and first timestep of each window."""
        w = self.window
        if w.kind in ("episode_start", "episode"):
            e = (u * len(self.starts)).astype(np.int64)
            n = self.lengths[e]
            valid = n if w.length is None else np.minimum(n, w.length)
            return self.starts[e], valid, np.zeros(len(u), dtype=np.int64)
        # A uniform step among all those in use: episodes are drawn in proportion to their length.
        step = (u * self.offsets[-1]).astype(np.int64)
        e = np.searchsorted(self.offsets, step, side="right") - 1
        t = step - self.offsets[e]
        length = len(self.steps)
        if w.kind == "any_start":
            return self.starts[e] + t, np.minimum(self.lengths[e] - t, length), t
        begin = np.maximum(t + 1 - length, 0)
        return self.starts[e] + begin, t + 1 - begin, begin

    def _next(self, index: np.ndarray, padding: np.ndarray) -> np.ndarray:
        """Observations one step later; an episode's final observation at its last step."""
        d = self.data
        following = np.minimum(index + 1, len(d.observations) - 1)
        values = d.observations[following]
        e = np.searchsorted(d.episode_starts, index, side="right") - 1
        at_end = index + 1 == d.episode_starts[e + 1]
        values[at_end] = d.final_observations[e[at_end]]
        values.reshape(index.size, -1)[padding] = 0
        return values

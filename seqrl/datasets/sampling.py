"""Batches of windows, each a pure function of (seed, update, row).

Sampling is one vectorised gather per column: draw a start for every row, add ``arange(T)``, take.
Which windows exist is the agent's ``WindowSpec``; the padding rule is one for all: valid steps
first, zeros after, ``mask`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from seqrl.datasets.discounting import discounted_columns
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import uniform64
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, WindowSpec

TRAINING, VALIDATION = 0, 1
"""Streams of the counter-based generator: hold-out batches never follow the training draws."""
_FURTHER = 16
"""Added to a stream for windows that need more than one number a row."""

More = Callable[[int], np.ndarray]
"""``more(k)``: ``[B, k]`` uniform numbers for the rows of a batch."""


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
        best_share: draw this share of the windows from the episodes whose return is above the
            mean, the rest from the others; None draws all alike.
        rank: this process.
        world: number of processes; must divide ``batch_size``.

    Raises:
        SeqrlError: a batch size the processes cannot share, a missing optional column, or
            ``best_share`` for windows over several episodes.
    """

    def __init__(
        self,
        data: Sequence[Trajectories],
        window: WindowSpec,
        batch_size: int,
        seed: int = 0,
        *,
        stream: int = TRAINING,
        best_share: float | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size < 1 or batch_size % world:
            raise SeqrlError(
                f"batch size {batch_size} cannot be shared by {world} processes",
                hint=f"use a multiple of {world}",
            )
        self.gathers = [gather_for(window)(d, window, task=i) for i, d in enumerate(data)]
        self.warps = [_warp(d, window, best_share) for d in data]
        self.batch_size = batch_size
        self.seed, self.stream = seed, stream
        share = batch_size // world
        self.rows = slice(rank * share, (rank + 1) * share)

    def batch(self, update: int) -> Batch:
        """This process's rows of the global batch of ``update`` (from 0)."""
        task = update % len(self.gathers)
        gather, warp = self.gathers[task], self.warps[task]
        u = uniform64(self.seed, self.stream, update, self.batch_size)
        if warp is not None:
            u = np.interp(u, *warp)
        return gather(u[self.rows], lambda k: self.more(update, k))

    def more(self, update: int, k: int) -> np.ndarray:
        """``[B/w, k]`` further uniform numbers of this process's rows, from streams of their own;
        a row's depend on (seed, update, row) and on k."""
        n = self.batch_size
        draws = uniform64(self.seed, _FURTHER + self.stream, update, n * k)
        return draws.reshape(n, k)[self.rows]


def _warp(
    data: Trajectories, window: WindowSpec, share: float | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Points of the map from uniform numbers to those by which the better episodes get ``share``.

    A number in [0, 1) picks an episode by its place among all, each as wide as its chance; the map
    makes the episodes of above-average return wider together and leaves the place inside one alone.
    """
    if share is None:
        return None
    if window.kind not in ("any_start", "any_end", "episode_start", "episode"):
        raise SeqrlError(
            "best_share is for windows inside one episode", hint="drop --best-share for this agent"
        )
    better = data.returns > data.returns.mean()
    if not better.any():  # all alike
        return None
    even = data.lengths if window.kind.startswith("any") else np.ones(len(data))
    wanted = np.where(better, share / even[better].sum(), (1 - share) / even[~better].sum()) * even
    before, after = (np.concatenate([[0.0], np.cumsum(w) / w.sum()]) for w in (wanted, even))
    return before, after


def ordered_batches(
    data: Sequence[Trajectories], window: WindowSpec, batch_size: int, limit: int, seed: int = 0
) -> Iterator[Batch]:
    """At most ``limit`` batches for validation: the same windows whenever they are asked for."""
    sampler = Sampler(data, window, batch_size, seed, stream=VALIDATION)
    for u in range(limit):
        yield sampler.batch(u)


def gather_for(window: WindowSpec) -> type[Gather]:
    """The class that cuts this kind of window."""
    if window.kind in ("history", "context", "chain"):
        from seqrl.datasets import context_windows

        return context_windows.KINDS[window.kind]
    return Gather


class Gather:
    """Turns uniform numbers into windows of one task's trajectories.

    Raises:
        SeqrlError: a column the window asks for is missing.
    """

    def __init__(self, data: Trajectories, window: WindowSpec, task: int):
        for name in window.extras:
            if name not in data.extras:
                raise SeqrlError(
                    f"{data.source} has no column '{name}', which the agent's loss needs",
                    hint=f"its optional columns: {', '.join(data.extras) or 'none'}",
                )
        self.data, self.window, self.task = data, window, task
        self.starts, self.lengths, self.offsets = data.starts, data.lengths, data.step_offsets
        self.steps = np.arange(window.length or int(self.lengths.max()))

    def __call__(self, u: np.ndarray, more: More) -> Batch:
        """The windows of ``u [B]`` in [0, 1)."""
        first, valid, timestep = self._place(u)
        t = self.steps if self.window.length else self.steps[: int(valid.max())]
        last = first + valid - 1
        index = np.minimum(first[:, None] + t, last[:, None])  # (B, T), clipped at the window end
        return self.collect(index, t < valid[:, None], timestep[:, None] + t)

    def collect(self, index: np.ndarray, mask: np.ndarray, timesteps: np.ndarray) -> Batch:
        """The columns at flat steps ``index [B, T]``, zero where ``mask [B, T]`` is not set."""
        padding = np.flatnonzero(~mask)
        d = self.data

        def take(column: np.ndarray) -> torch.Tensor:
            values = column.take(index, axis=0)
            values.reshape(index.size, -1)[padding] = 0
            return torch.from_numpy(values)

        timesteps.reshape(-1)[padding] = 0
        next_obs = next_known = returns = tails = None
        if self.window.next_observation:
            next_obs = torch.from_numpy(self._next(index, padding))
            next_known = torch.from_numpy(mask & self._known(index))
        if self.window.discount is not None:
            returns, tails = (take(c) for c in discounted_columns(d, self.window.discount))
        return Batch(
            observations=take(d.observations),
            actions=take(d.actions),
            rewards=take(d.rewards),
            returns_to_go=take(d.rtg),
            timesteps=torch.from_numpy(timesteps),
            terminations=take(d.terminations),
            truncations=take(d.truncations),
            mask=torch.from_numpy(mask),
            task=torch.full((len(index),), self.task, dtype=torch.int64),
            rows=torch.from_numpy(index[:, 0].copy()),
            next_observations=next_obs,
            next_known=next_known,
            discounted_returns=returns,
            discounted_tails=tails,
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

    def _known(self, index: np.ndarray) -> np.ndarray:
        """Where :meth:`_next` gives what was recorded and does not repeat the last observation."""
        known = self.data.final_known
        if known is None:
            return np.ones(index.shape, dtype=bool)
        e = np.searchsorted(self.data.episode_starts, index, side="right") - 1
        return np.asarray(known[e] | (index + 1 != self.data.episode_starts[e + 1]))

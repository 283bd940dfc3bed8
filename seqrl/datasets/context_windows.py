"""Windows over several episodes, for agents that learn in context.

A **history** is a run of episodes of one task in the order of learning: consecutive episodes in use
with the same ``episode_task`` and a rising ``episode_order``. Data without task numbers are one
history in the order in which they are stored, which for a replay buffer is the order of learning.
No window crosses from one history into another. A selection (every tenth episode, say) shortens
the histories: the episodes left out are as if they had never been.

==========  =====================================================================================
kind        window of T steps
==========  =====================================================================================
history     consecutive steps of one history, across its episodes (Algorithm Distillation)
context     T - 1 transitions of a history, then a query: a step of any history of the task (DPT)
chain       up to n episodes of one task, from worst to best; returns-to-go start at the best
            one's return in all of them (Agentic Transformer; Liu and Abbeel 2023, section 3)
==========  =====================================================================================

Shapes: ``B`` windows, ``T`` steps, ``N`` steps in use, ``H`` histories. A **position** counts the
steps in use, 0 to N - 1; episodes in use that follow each other are neighbours there, wherever
their columns lie.
"""

from __future__ import annotations

import numpy as np
import torch

from seqrl.datasets.sampling import Gather, More
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, WindowSpec


def history_offsets(data: Trajectories) -> np.ndarray:
    """``[H+1]`` int64: number of the first episode in use of each history, then their count.

    >>> from seqrl.testing.battery import tiny_data
    >>> history_offsets(tiny_data("discrete", episodes=4)).tolist()
    [0, 4]
    """
    episodes = len(data)
    begins = np.zeros(episodes, dtype=bool)
    begins[0] = True
    if data.episode_task is not None:
        task = data.episode_task[data.episode_ids]
        begins[1:] |= task[1:] != task[:-1]
    if data.episode_order is not None:
        order = data.episode_order[data.episode_ids]
        begins[1:] |= order[1:] <= order[:-1]
    return np.append(np.flatnonzero(begins), episodes)


class _Histories(Gather):
    """What the windows below share: where histories and tasks lie among the positions."""

    def __init__(self, data: Trajectories, window: WindowSpec, task: int):
        super().__init__(data, window, task)
        episodes = history_offsets(data)
        self.begins = self.offsets[episodes]  # (H+1,) positions
        numbers = np.zeros(len(data), dtype=np.int64)
        if data.episode_task is not None:
            numbers = data.episode_task[data.episode_ids]
        self.tasks = numbers[episodes[:-1]]  # (H,) task of each history

    def _at(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat index and timestep of each position."""
        e = np.searchsorted(self.offsets, position, side="right") - 1
        timestep = position - self.offsets[e]
        return self.starts[e] + timestep, timestep

    def _history(self, position: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.begins, position, side="right") - 1


class HistoryWindows(_Histories):
    """Consecutive steps of one history; the last is uniform over all steps in use."""

    def __call__(self, u: np.ndarray, more: More) -> Batch:
        last = (u * self.offsets[-1]).astype(np.int64)
        first = np.maximum(last + 1 - len(self.steps), self.begins[self._history(last)])
        position = np.minimum(first[:, None] + self.steps, last[:, None])
        index, timestep = self._at(position)
        return self.collect(index, self.steps <= (last - first)[:, None], timestep)


class ContextWindows(_Histories):
    """Transitions of one history and a query step of the same task as last valid step.

    Shuffled, the transitions are a random choice of the history's in random order. Otherwise they
    are consecutive steps in their order, which must be kept where what was done depended on what
    came before. A shorter history is taken whole.
    """

    def __init__(self, data: Trajectories, window: WindowSpec, task: int):
        super().__init__(data, window, task)
        if data.episode_task is None:
            raise SeqrlError(
                f"{data.source} does not say which task an episode is of (episode_task)",
                hint="seqrl data made for learning in context: incontext:ENV_ID, histories:ENV_ID",
            )
        # All steps of a task, as ranges of positions: histories sorted by task.
        self.by_task = np.argsort(self.tasks, kind="stable")
        sizes = np.diff(self.begins)[self.by_task]
        self.run = np.concatenate([[0], np.cumsum(sizes)])  # (H+1,) counts the steps by task
        known = self.tasks[self.by_task]
        self.task_first = np.searchsorted(known, known, side="left")
        self.task_end = np.searchsorted(known, known, side="right")
        self.place = np.empty_like(self.by_task)  # of each history in by_task
        self.place[self.by_task] = np.arange(len(self.by_task))

    def __call__(self, u: np.ndarray, more: More) -> Batch:
        room = len(self.steps) - 1
        last = (u * self.offsets[-1]).astype(np.int64)
        h = self._history(last)
        begin, size = self.begins[h], np.diff(self.begins)[h]
        count = np.minimum(size, room)
        if self.window.shuffle:
            position = begin[:, None] + self._choice(size, room, more)
        else:
            first = np.maximum(last + 1 - room, begin)
            # Of a history that fits, all of it: what comes after `last` belongs to it, too.
            first = np.where(size <= room, begin, first)
            count = np.where(size <= room, size, last + 1 - first)
            position = first[:, None] + np.arange(room)
        position = np.append(position, np.zeros((len(u), 1), np.int64), axis=1)
        position[np.arange(len(u)), count] = self._query(h, more(1)[:, 0])
        mask = self.steps <= count[:, None]
        index, timestep = self._at(np.where(mask, position, begin[:, None]))
        return self.collect(index, mask, timestep)

    def _choice(self, size: np.ndarray, room: int, more: More) -> np.ndarray:
        """``[B, room]``: distinct numbers below ``size [B]`` in random order; then anything."""
        most = int(size.max())
        keys = more(most)
        keys[np.arange(most) >= size[:, None]] = 2.0  # beyond a history's end: sorted behind
        if most > 4 * room:  # few of many: find them before sorting
            part = np.argpartition(keys, room, axis=1)[:, :room]
            order = np.argsort(np.take_along_axis(keys, part, 1), axis=1)
            return np.take_along_axis(part, order, 1)
        chosen = np.argsort(keys, axis=1)[:, :room]
        return np.pad(chosen, ((0, 0), (0, room - chosen.shape[1])))

    def _query(self, history: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Position of a uniform step among all of the same task."""
        place = self.place[history]
        low, high = self.run[self.task_first[place]], self.run[self.task_end[place]]
        step = low + (u * (high - low)).astype(np.int64)
        k = np.searchsorted(self.run, step, side="right") - 1
        return self.begins[self.by_task[k]] + step - self.run[k]


class ChainWindows(_Histories):
    """Episodes of one task in ascending order of their returns, packed without padding.

    The number of episodes is uniform over 1 to ``window.episodes``; they are drawn in proportion
    to their lengths, each once. Of a long episode the last steps are taken. A step's return-to-go
    is what the best episode of the chain had still to get after the same rewards:
    ``R* - (rewards so far)``.
    """

    def __init__(self, data: Trajectories, window: WindowSpec, task: int):
        super().__init__(data, window, task)
        numbers = np.zeros(len(data), dtype=np.int64)
        if data.episode_task is not None:
            numbers = data.episode_task[data.episode_ids]
        order = np.argsort(numbers, kind="stable")
        self.episodes_by_task = order
        known = numbers[order]
        self.run = np.concatenate([[0], np.cumsum(self.lengths[order])])
        self.task_low = self.run[np.searchsorted(known, numbers, side="left")]
        self.task_high = self.run[np.searchsorted(known, numbers, side="right")]
        self.returns = data.returns

    def __call__(self, u: np.ndarray, more: More) -> Batch:
        most = self.window.episodes
        each = len(self.steps) // most
        first = np.searchsorted(self.offsets, u * self.offsets[-1], side="right") - 1
        draws = more(1 + _TRIES * most)
        wanted = 1 + (draws[:, 0] * most).astype(np.int64)
        low, high = self.task_low[first], self.task_high[first]
        step = low[:, None] + draws[:, 1:] * (high - low)[:, None]
        others = self.episodes_by_task[np.searchsorted(self.run, step, side="right") - 1]
        candidates = np.concatenate([first[:, None], others], axis=1)
        index = np.zeros((len(u), len(self.steps)), np.int64)
        timestep, mask = np.zeros_like(index), np.zeros(index.shape, bool)
        best = np.zeros(index.shape)
        for row in range(len(u)):
            chosen = np.array(list(dict.fromkeys(candidates[row].tolist()))[: wanted[row]])
            chosen = chosen[np.argsort(self.returns[chosen], kind="stable")]
            at = 0
            for e in chosen.tolist():
                n = min(int(self.lengths[e]), each)
                t = np.arange(self.lengths[e] - n, self.lengths[e])
                index[row, at : at + n] = self.starts[e] + t
                timestep[row, at : at + n] = t
                best[row, at : at + n] = self.returns[chosen[-1]] - self.returns[e]
                at += n
            mask[row, :at] = True
            index[row, at:] = index[row, 0]
        batch = self.collect(index, mask, timestep)
        batch.returns_to_go += torch.from_numpy(best.astype(np.float32))
        return batch


_TRIES = 3
"""Candidates drawn for each place in a chain; those drawn twice are used once."""

KINDS: dict[str, type[Gather]] = {
    "history": HistoryWindows,
    "context": ContextWindows,
    "chain": ChainWindows,
}

"""Minari's HDF5 storage read straight into flat columns by low-level h5py calls.

Layout (Minari 0.4 to 0.5): a group ``episode_<i>`` an episode with ``observations`` (T+1 rows, or
nested groups for Dict and Tuple spaces), ``actions``, ``rewards``, ``terminations`` and
``truncations`` (T rows), optional ``infos`` and an attribute ``seed``. Opening an object costs more
than reading it here, so every object is opened once, by group, and its size is checked by HDF5
itself: the memory space handed over has to hold as many elements as the file's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.datasets import columns as cols
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.minari_store import RawColumns


class NotDirect(Exception):
    """The file is laid out in a way this reader does not know."""


@dataclass(frozen=True)
class Plan:
    """What the metadata say about a file."""

    observation_space: Any
    action_space: Any
    episodes: int
    steps: int
    infos: tuple[str, ...] = ()
    """Info entries to read as extra columns."""


@dataclass
class _Leaf:
    """One stored array of every episode and the flat column it goes to."""

    path: bytes
    column: np.ndarray
    """``[N, ...]``"""
    stored: np.ndarray
    """The same memory in the shape of the file's arrays: HDF5 is slow to copy between ranks."""
    mtype: Any
    """HDF5 type to convert to while reading."""
    finals: np.ndarray = field(default_factory=lambda: np.empty(0))
    """``[E, ...]`` as ``stored``: row T of each episode."""


def read_columns(path: Path, plan: Plan, source: str, allocate: cols.Allocate) -> RawColumns:
    """Read all episodes.

    Raises:
        NotDirect: the layout is not the expected one (types, sizes, more steps than announced).
        SeqrlError: the file is truncated or damaged.
    """
    from h5py import h5f

    try:
        file = h5f.open(str(path).encode(), h5f.ACC_RDONLY)
    except OSError as error:
        raise SeqrlError(
            f"{source}: {path.name} cannot be opened as HDF5: {_first_line(error)}",
            hint="the file is truncated or damaged; download or write the dataset again",
        ) from None
    try:
        return _Reader(file, plan, source, allocate).read()
    finally:
        file.close()


class _Reader:
    def __init__(self, file: Any, plan: Plan, source: str, allocate: cols.Allocate):
        from h5py import h5a, h5d, h5g, h5s, h5t

        self.open_group, self.open_dataset = h5g.open, h5d.open
        self.open_attribute, self.whole = h5a.open, h5s.ALL
        self.space = h5s.create_simple((1,))  # resized for every read: cheaper than a new one
        self.file, self.plan, self.source = file, plan, source
        self.types: dict[np.dtype[Any], Any] = {}
        self.create_type = h5t.py_create
        self.seed_type = h5t.py_create(np.dtype(np.int64))
        n = plan.steps
        self.obs = self._space_leaves(
            plan.observation_space, b"observations", "observations", allocate, extra_row=True
        )
        self.act = self._space_leaves(plan.action_space, b"actions", "actions", allocate)
        self.rewards = self._leaf(b"rewards", allocate("rewards", (n,), np.float32), ())
        self.ends = self._leaf(b"terminations", allocate("terminations", (n,), bool), ())
        self.cuts = self._leaf(b"truncations", allocate("truncations", (n,), bool), ())
        self.infos = [self._info_leaf(name) for name in plan.infos]
        self.lengths = np.zeros(plan.episodes, dtype=np.int64)
        self.seeds = np.full(plan.episodes, -1, dtype=np.int64)
        self.known = np.ones(plan.episodes, dtype=bool)

    def _leaf(
        self, path: bytes, column: np.ndarray, shape: tuple[int, ...], extra_row: bool = False
    ) -> _Leaf:
        """A leaf whose rows are stored with ``shape``."""
        mtype = self.types.get(column.dtype)
        if mtype is None:
            mtype = self.types[column.dtype] = self.create_type(column.dtype)
        leaf = _Leaf(path, column, column.reshape(-1, *shape), mtype)
        if extra_row:
            leaf.finals = np.zeros((self.plan.episodes, *shape), column.dtype)
        return leaf

    def _info_leaf(self, name: str) -> _Leaf:
        from h5py import h5d

        path = b"infos/" + name.encode()
        try:
            first = h5d.open(self.file, b"episode_0/" + path)
        except KeyError:
            raise NotDirect from None
        column = np.empty((self.plan.steps, *first.shape[1:]), first.dtype)
        return self._leaf(path, column, first.shape[1:], extra_row=True)

    def _space_leaves(
        self,
        space: Any,
        path: bytes,
        name: str,
        allocate: cols.Allocate,
        extra_row: bool = False,
    ) -> Any:
        """Leaves in the nesting of the space; a single Box goes where the caller wants it."""
        if isinstance(space, spaces.Dict):
            return {
                k: self._space_leaves(s, path + b"/" + k.encode(), "", cols.in_memory, extra_row)
                for k, s in space.spaces.items()
            }
        if isinstance(space, spaces.Tuple):
            return tuple(
                self._space_leaves(s, path + b"/_index_%d" % i, "", cols.in_memory, extra_row)
                for i, s in enumerate(space.spaces)
            )
        n = self.plan.steps
        if sp.is_image(space):
            column = allocate(name, (n, *space.shape), np.uint8)
        elif isinstance(space, spaces.Box):
            column = allocate(name, (n, int(np.prod(space.shape))), np.float32)
        else:
            column = np.empty((n, *space.shape), np.int64)
        return self._leaf(path, column, space.shape, extra_row)

    def read(self) -> RawColumns:
        from seqrl.datasets.minari_store import RawColumns

        obs_leaves, act_leaves = list(_flatten(self.obs)), list(_flatten(self.act))
        step = 0
        for episode in range(self.plan.episodes):
            try:
                step += self._episode(episode, step, obs_leaves, act_leaves)
            except NotDirect:
                raise
            except (KeyError, TypeError, ValueError):
                raise NotDirect from None
            except OSError as error:
                if "different number of elements" in str(error) or "convert" in str(error):
                    raise NotDirect from None
                raise SeqrlError(
                    f"{self.source}: episode {episode} cannot be read: {_first_line(error)}",
                    hint="the file is truncated or damaged; download or write the dataset again",
                ) from None
        if step != self.plan.steps:
            raise NotDirect
        space, rows = self.plan.observation_space, _map(self.obs, lambda leaf: leaf.column)
        finals = _map(self.obs, lambda leaf: leaf.finals.reshape(-1, *leaf.column.shape[1:]))
        return RawColumns(
            space,
            self.plan.action_space,
            sp.flatten_observations(space, rows),
            sp.flatten_observations(space, finals),
            sp.flatten_actions(self.plan.action_space, self.act.column),
            self.rewards.column,
            self.ends.column,
            self.cuts.column,
            self.lengths,
            self.seeds,
            self.known,
            {k: leaf.column for k, leaf in zip(self.plan.infos, self.infos, strict=True)},
        )

    def _episode(
        self, episode: int, step: int, obs_leaves: list[_Leaf], act_leaves: list[_Leaf]
    ) -> int:
        """Read one episode into the columns from ``step`` on; returns its length T."""
        group = self.open_group(self.file, b"episode_%d" % episode)
        rewards = self.open_dataset(group, b"rewards")
        steps = int(rewards.shape[0])
        if steps == 0 or step + steps > self.plan.steps:
            raise NotDirect
        stop = step + steps
        self._read(rewards, self.rewards.stored[step:stop], self.rewards.mtype)
        for leaf in (*act_leaves, self.ends, self.cuts):
            dataset = self.open_dataset(group, leaf.path)
            self._read(dataset, leaf.stored[step:stop], leaf.mtype)
        for leaf in obs_leaves:
            dataset = self.open_dataset(group, leaf.path)
            if not self._read_with_final(dataset, leaf, step, steps, episode):
                self.known[episode] = False
        for leaf in self.infos:
            self._read_with_final(self.open_dataset(group, leaf.path), leaf, step, steps, episode)
        with contextlib.suppress(KeyError):
            seed = self.open_attribute(group, b"seed")
            seed.read(self.seeds[episode : episode + 1].reshape(()), self.seed_type)
        self.lengths[episode] = steps
        return steps

    def _read(self, dataset: Any, into: np.ndarray, mtype: Any) -> None:
        """Read a whole stored array; HDF5 refuses it unless it has as many elements."""
        self.space.set_extent_simple(into.shape)
        dataset.read(self.space, self.whole, into, mtype)

    def _read_with_final(
        self, dataset: Any, leaf: _Leaf, step: int, steps: int, episode: int
    ) -> bool:
        """Read T+1 rows, the last into ``finals``; with T rows repeat the last and say False."""
        rows, stop = int(dataset.shape[0]), step + steps
        if rows == steps:
            self._read(dataset, leaf.stored[step:stop], leaf.mtype)
            leaf.finals[episode] = leaf.stored[stop - 1]
            return False
        if rows != steps + 1:
            raise NotDirect
        if stop < self.plan.steps:  # row T lies where the next episode will be read
            self._read(dataset, leaf.stored[step : stop + 1], leaf.mtype)
            leaf.finals[episode] = leaf.stored[stop]
        else:
            spare = np.empty((rows, *leaf.stored.shape[1:]), leaf.stored.dtype)
            self._read(dataset, spare, leaf.mtype)
            leaf.stored[step:stop] = spare[:steps]
            leaf.finals[episode] = spare[steps]
        return True


def _flatten(tree: Any) -> Any:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _flatten(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from _flatten(value)
    else:
        yield tree


def _map(tree: Any, fn: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _map(v, fn) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_map(v, fn) for v in tree)
    return fn(tree)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

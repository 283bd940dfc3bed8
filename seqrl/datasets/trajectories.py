"""Trajectories: the one form in which every dataset exists here.

Flat, contiguous columns over all N steps plus the offsets of the episodes. A selection of
episodes (a hold-out split, the best 10 %) is a list of episode numbers over the same columns, so
it copies nothing and works on memory-mapped columns of any size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqrl import spaces as sp
from seqrl.datasets.construction import (
    end_flags,
    final_rows,
    flat_arrays,
    hash_arrays,
    joined_fields,
)
from seqrl.datasets.statistics import compute_stats
from seqrl.datasets.validate import check_columns
from seqrl.errors import SeqrlError
from seqrl.spec import DataStats, TaskSpec

STEP_COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


def returns_to_go(rewards: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Undiscounted sum of rewards from each step to the end of its episode.

    One cumulative sum over the whole column in float64, then a subtraction per episode.

    Args:
        rewards: ``[N]``.
        episode_starts: ``[E+1]`` offsets, first 0, last N.

    Returns:
        ``[N]`` float32.

    >>> returns_to_go(np.array([1, 2, 3, 4, 5.0]), np.array([0, 5]))
    array([15., 14., 12.,  9.,  5.], dtype=float32)
    """
    total = np.zeros(len(rewards) + 1)
    np.cumsum(rewards, dtype=np.float64, out=total[1:])
    ends = np.repeat(total[episode_starts[1:]], np.diff(episode_starts))
    ends -= total[:-1]
    return ends.astype(np.float32)


@dataclass(frozen=True)
class Episode:
    """One episode as arrays over its T steps."""

    observations: np.ndarray
    """``[T+1, ...]``: the final observation included."""
    actions: np.ndarray
    rewards: np.ndarray
    returns_to_go: np.ndarray
    terminated: bool
    truncated: bool
    seed: int | None
    extras: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(eq=False)
class Trajectories:
    """Episodes of one task, flat.

    Build one with :meth:`from_arrays`, :meth:`from_episodes` or ``seqrl.load_dataset(uri)``.
    Arrays may be ``numpy.memmap``. Columns hold *all* steps of the source; ``selection`` names the
    episodes in use (None means all), and ``starts``, ``lengths``, ``returns`` speak of those.
    """

    observations: np.ndarray
    """``[N, S]`` float32 or ``[N, H, W, C]`` uint8."""
    actions: np.ndarray
    """``[N, A]`` float32, ``[N]`` int64 or ``[N, A]`` int64."""
    rewards: np.ndarray
    """``[N]`` float32."""
    terminations: np.ndarray
    """``[N]`` bool."""
    truncations: np.ndarray
    """``[N]`` bool."""
    final_observations: np.ndarray
    """``[E, ...]``: the observation after the last step of each episode of the source."""
    episode_starts: np.ndarray
    """``[E+1]`` int64 offsets of the source's episodes: first 0, last N."""
    task: TaskSpec
    observation_space: Any
    action_space: Any
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """Optional columns ``[N, ...]`` such as ``optimal_action``."""
    episode_task: np.ndarray | None = None
    """``[E]`` int64: task number within a task-structured set."""
    episode_order: np.ndarray | None = None
    """``[E]`` int64: place within a learning history."""
    episode_seeds: np.ndarray | None = None
    """``[E]`` int64: the reset seed each episode was recorded with, -1 where unknown."""
    final_known: np.ndarray | None = None
    """``[E]`` bool: False where the source had no final observation and the last was repeated."""
    rtg: Any = None
    """``[N]`` float32 returns-to-go; computed when not given."""
    selection: np.ndarray | None = None
    """``[E']`` int64: the episodes in use, in order; None means all."""
    source: str = "arrays"
    """URI or description of where the data came from."""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for reports: how episodes were split, options applied, suggested targets."""
    validated: bool = False
    """Set by readers of our own cache, whose contents were checked when they were written."""
    stats_selection: np.ndarray | None = None
    """Episodes that state statistics are computed over, where they differ from ``selection``."""

    def __post_init__(self) -> None:
        self.episode_starts = np.asarray(self.episode_starts, dtype=np.int64)
        if not self.validated:
            check_columns(self)
            self.validated = True
        if self.rtg is None:
            self.rtg = returns_to_go(self.rewards, self.episode_starts)

    # --- construction -------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminations: Any,
        truncations: Any | None = None,
        *,
        final_observations: Any | None = None,
        observation_space: Any | None = None,
        action_space: Any | None = None,
        extras: Mapping[str, Any] | None = None,
        name: str = "arrays",
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        source: str = "arrays",
    ) -> Trajectories:
        """Trajectories from flat arrays, cut where ``terminations`` or ``truncations`` is set.

        Args:
            observations: ``[N, ...]`` of the observation space (a mapping for Dict spaces).
            actions: ``[N, A]`` or ``[N]``; rewards: ``[N]`` or ``[N, 1]``.
            terminations: ``[N]``: the environment ended the episode.
            truncations: ``[N]``: a limit ended it (as does the end of the arrays).
            final_observations: ``[E, ...]``; the last observation is repeated when missing.
            observation_space: Gymnasium space; guessed from the arrays when missing.
            action_space: as above.

        Raises:
            SeqrlError: mismatched lengths, NaN, actions outside their space, no steps.

        >>> data = Trajectories.from_arrays(
        ...     observations=np.zeros((5, 2)), actions=np.zeros((5, 1)),
        ...     rewards=[1, 2, 3, 4, 5], terminations=[0, 0, 0, 0, 1])
        >>> data.rtg.tolist()
        [15.0, 14.0, 12.0, 9.0, 5.0]
        """
        rewards = np.asarray(rewards, dtype=np.float32).reshape(-1)
        term, trunc = end_flags(len(rewards), terminations, truncations, source)
        starts = np.concatenate([[0], np.flatnonzero(term | trunc) + 1])
        if observation_space is None or action_space is None:
            guessed = sp.space_from_arrays(np.asarray(observations), np.asarray(actions))
            observation_space = observation_space or guessed[0]
            action_space = action_space or guessed[1]
        obs = sp.flatten_observations(observation_space, observations)
        final, known = final_rows(obs, starts, observation_space, final_observations)
        task = TaskSpec(
            name=name,
            observation=sp.observation_spec(observation_space),
            action=sp.action_spec(action_space),
            env_id=env_id,
            env_kwargs=dict(env_kwargs or {}),
            max_episode_steps=max_episode_steps,
        )
        return cls(
            obs,
            sp.flatten_actions(action_space, actions),
            rewards,
            term,
            trunc,
            final,
            starts,
            task,
            observation_space,
            action_space,
            extras={k: np.asarray(v) for k, v in (extras or {}).items()},
            final_known=known,
            source=source,
        )

    @classmethod
    def from_episodes(cls, episodes: Iterable[Mapping[str, Any]], **options: Any) -> Trajectories:
        """Trajectories from a list of episodes.

        Args:
            episodes: mappings with ``observations`` (``[T+1, ...]``, or ``[T, ...]`` without the
                final one), ``actions [T, ...]``, ``rewards [T]`` and ``terminated`` (bool; the
                episode counts as truncated otherwise).
            options: as for :meth:`from_arrays` (spaces, name, env_id, ...).
        """
        return cls.from_arrays(**flat_arrays(episodes), **options)

    @classmethod
    def join(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """Several sets with equal spaces as one (selections are applied, columns copied)."""
        if len(parts) == 1:
            return parts[0]
        for p in parts[1:]:
            if difference := spec_difference(parts[0].task, p.task):
                raise SeqrlError(f"{parts[0].source} and {p.source} cannot be joined: {difference}")
        return dataclasses.replace(parts[0], **joined_fields(parts))

    # --- size and episodes in use -------------------------------------------------------------

    @property
    def columns_steps(self) -> int:
        """Steps N that the columns hold (selected or not)."""
        return len(self.rewards)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """``[E]`` int64: flat index of the first step of each episode in use."""
        return self._take(self.episode_starts[:-1])

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """``[E]`` int64: steps of each episode in use."""
        return self._take(np.diff(self.episode_starts))

    @functools.cached_property
    def returns(self) -> np.ndarray:
        """``[E]`` float64: undiscounted return of each episode in use."""
        return np.asarray(self.rtg[self.starts], dtype=np.float64)

    @functools.cached_property
    def step_offsets(self) -> np.ndarray:
        """``[E+1]`` int64: running count of the steps in use."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def episode_ids(self) -> np.ndarray:
        """``[E]`` int64: number in the source of each episode in use."""
        return np.arange(len(self.episode_starts) - 1) if self.selection is None else self.selection

    @property
    def num_steps(self) -> int:
        """Steps in use."""
        return int(self.step_offsets[-1])

    def _take(self, per_episode: np.ndarray) -> np.ndarray:
        return per_episode if self.selection is None else per_episode[self.selection]

    def __len__(self) -> int:
        """Number of episodes in use."""
        return len(self.starts)

    def __getitem__(self, i: int) -> Episode:
        """Episode ``i`` of those in use, as arrays over its own steps."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        e, a = int(self.episode_ids[i]), int(self.starts[i])
        b = a + int(self.lengths[i])
        seed = None if self.episode_seeds is None else int(self.episode_seeds[e])
        return Episode(
            np.concatenate([self.observations[a:b], self.final_observations[e : e + 1]]),
            self.actions[a:b],
            self.rewards[a:b],
            self.rtg[a:b],
            bool(self.terminations[b - 1]),
            bool(self.truncations[b - 1]),
            None if seed is None or seed < 0 else seed,
            {k: v[a:b] for k, v in self.extras.items()},
        )

    # --- selections and options ---------------------------------------------------------------

    def select(self, episodes: Any, *, keep_stats: bool = False) -> Trajectories:
        """The episodes ``episodes`` (numbers among those in use), sharing the same columns.

        Args:
            keep_stats: state statistics stay those of the present selection (the published %BC
                protocol normalises by all transitions, before the filter).
        """
        ids = self.episode_ids[np.asarray(episodes)]
        if len(ids) == 0:
            raise SeqrlError(
                f"no episode of {self.source} is left by that selection",
                hint=f"the set has {len(self)} episodes",
            )
        stats = (
            (self.stats_selection if self.stats_selection is not None else self.episode_ids)
            if keep_stats
            else None
        )
        return dataclasses.replace(
            self, selection=ids, stats_selection=stats, notes=dict(self.notes)
        )

    def best(self, percent: float) -> Trajectories:
        """The highest-return episodes that together hold at most ``percent`` % of the steps.

        At least one episode is kept (Chen et al. 2021, the %BC baseline).
        """
        if not 0 < percent <= 100:
            raise SeqrlError(f"best is {percent} %, must be above 0 and at most 100")
        order = np.argsort(-self.returns, kind="stable")
        room = percent / 100 * self.num_steps
        keep = int(np.searchsorted(np.cumsum(self.lengths[order]), room, side="right"))
        return self.select(np.sort(order[: max(keep, 1)]), keep_stats=True)

    def first(self, episodes: int) -> Trajectories:
        """The first ``episodes`` episodes."""
        if episodes < 1:
            raise SeqrlError(f"asked for {episodes} episodes, must be at least 1")
        return self.select(np.arange(min(episodes, len(self))))

    def split(self, holdout: float, seed: int = 0) -> tuple[Trajectories, Trajectories | None]:
        """Training and hold-out sets by episode; the hold-out is None when ``holdout`` is 0.

        Data of several tasks are split by task, and all episodes of one go the same way.

        Args:
            holdout: share of the episodes (tasks) in [0, 1); at least one is held out when above 0.
            seed: decides which; the same seed gives the same split.
        """
        if not 0 <= holdout < 1:
            raise SeqrlError(f"holdout is {holdout}, must be at least 0 and below 1")
        group = np.arange(len(self))
        if self.episode_task is not None:
            tasks, of = np.unique(self.episode_task[self.episode_ids], return_inverse=True)
            group = of if len(tasks) > 1 else group
        count = int(group.max()) + 1
        if holdout == 0 or count < 2:
            return self, None
        order = np.random.default_rng(seed).permutation(count)
        out = np.zeros(count, dtype=bool)
        out[order[: min(max(1, round(holdout * count)), count - 1)]] = True
        held = out[group]
        return self.select(np.flatnonzero(~held)), self.select(np.flatnonzero(held))

    def every(self, k: int) -> Trajectories:
        """Every k-th episode, the first included; of learning histories, each one's every k-th
        (a thinner history shows a faster learner; Laskin et al. 2022)."""
        if k < 1:
            raise SeqrlError(f"every is {k}, must be at least 1")
        place = np.arange(len(self))
        if self.episode_task is not None or self.episode_order is not None:
            from seqrl.datasets.context_windows import history_offsets

            begins = history_offsets(self)
            place -= np.repeat(begins[:-1], np.diff(begins))
        return self.select(np.flatnonzero(place % k == 0))

    def delayed(self) -> Trajectories:
        """All reward of an episode moved to its last step (the delayed-reward protocol)."""
        rewards = np.zeros(self.columns_steps, dtype=np.float32)
        ends = self.episode_starts[1:] - 1
        rewards[ends] = np.asarray(self.rtg)[self.episode_starts[:-1]]
        return dataclasses.replace(
            self,
            rewards=rewards,
            rtg=None,
            notes={**self._notes_of_new_columns(), "delayed": True},
        )

    def scale_rewards(self, scale: float = 1.0, shift: float = 0.0) -> Trajectories:
        """Rewards replaced by ``reward * scale + shift`` (returns-to-go follow)."""
        rewards = np.asarray(self.rewards) * np.float32(scale) + np.float32(shift)
        notes = {
            **self._notes_of_new_columns(),
            "reward_scale": scale,
            "reward_shift": shift,
        }
        return dataclasses.replace(self, rewards=rewards, rtg=None, notes=notes)

    def compact(self) -> Trajectories:
        """A copy whose columns hold just the steps in use, in memory."""
        if self.selection is None:
            return self
        idx = np.repeat(self.starts - self.step_offsets[:-1], self.lengths)
        idx += np.arange(self.num_steps)

        def per_episode(v: np.ndarray | None) -> np.ndarray | None:
            return None if v is None else v[self.episode_ids]

        return dataclasses.replace(
            self,
            **{k: getattr(self, k)[idx] for k in STEP_COLUMNS},
            extras={k: v[idx] for k, v in self.extras.items()},
            rtg=self.rtg[idx],
            final_observations=self.final_observations[self.episode_ids],
            episode_starts=self.step_offsets,
            episode_task=per_episode(self.episode_task),
            episode_order=per_episode(self.episode_order),
            episode_seeds=per_episode(self.episode_seeds),
            final_known=per_episode(self.final_known),
            selection=None,
            stats_selection=None,
            notes=self._notes_of_new_columns(),
        )

    def _notes_of_new_columns(self) -> dict[str, Any]:
        """The notes for a set with other columns: without the fingerprint of the present ones."""
        return {k: v for k, v in self.notes.items() if k != "fingerprint_of_columns"}

    # --- description --------------------------------------------------------------------------

    @functools.cached_property
    def stats(self) -> DataStats:
        """Statistics of the episodes in use, for normalisation and targets."""
        return compute_stats(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Short hash of contents and selection; equal data give an equal fingerprint."""
        if known := self.notes.get("fingerprint_of_columns"):
            content = str(known)
        else:
            names = (*STEP_COLUMNS, "final_observations", "episode_starts")
            content = hash_arrays({k: getattr(self, k) for k in names})
        if self.selection is None:
            return content
        return hash_arrays({"selection": self.selection}, content)

    @property
    def nbytes(self) -> int:
        """Bytes of the per-step columns."""
        columns = [getattr(self, k) for k in STEP_COLUMNS] + [self.rtg, *self.extras.values()]
        return sum(c.nbytes for c in columns if c is not None)

    def __repr__(self) -> str:
        spec, r = self.task, self.returns
        return (
            f"Trajectories({spec.name!r}: {len(self):,} episodes, {self.num_steps:,} steps, "
            f"{self.nbytes / 1e6:.1f} MB\n"
            f"  obs {spec.observation.describe()} {self.observations.dtype}, "
            f"action {spec.action.describe()} {self.actions.dtype}, env {spec.env_id}\n"
            f"  return {r.min():.4g} .. {r.max():.4g} (mean {r.mean():.4g}), "
            f"length {self.lengths.min()} .. {self.lengths.max()})"
        )

    # --- writing ------------------------------------------------------------------------------

    def to_npz(self, path: str | Path) -> Path:
        """Write an ``.npz`` that ``npz:PATH`` reads back without loss; returns the path."""
        from seqrl.datasets.npz import write_npz

        return write_npz(self, path)

    def to_d4rl(self, path: str | Path) -> Path:
        """Write a flat D4RL-style HDF5 file that ``d4rl:PATH`` reads back; returns the path."""
        from seqrl.datasets.d4rl import write_d4rl

        return write_d4rl(self, path)

    def to_minari(self, dataset_id: str, **metadata: Any) -> str:
        """Write a dataset ``namespace/name-vN`` into the local Minari store; returns the id."""
        from seqrl.datasets.minari_store import write_minari

        return write_minari(self, dataset_id, **metadata)


def spec_difference(a: TaskSpec, b: TaskSpec) -> str | None:
    """One phrase naming how two tasks differ in spaces or environment; None when they do not."""
    if a.observation != b.observation:
        return f"observations are {a.observation.describe()} and {b.observation.describe()}"
    if a.action != b.action:
        return f"actions are {a.action.describe()} and {b.action.describe()}"
    if a.env_id != b.env_id:
        return f"environments are {a.env_id} and {b.env_id}"
    if a.env_kwargs != b.env_kwargs:
        return f"environment arguments are {a.env_kwargs} and {b.env_kwargs}"
    return None

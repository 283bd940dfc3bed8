"""D4RL files: flat HDF5 arrays of transitions, read with h5py alone.

Layout and splitting rule follow Farama-Foundation/D4RL (``offline_env.py``, ``d4rl/__init__.py``,
``scripts/generation``). Differences from its ``sequence_dataset``, all on purpose:

| point | D4RL code | here |
|---|---|---|
| files with ``metadata/...`` entries | fails (slices every key by step) | only per-step arrays |
| no ``timeouts``: step counter after the first cut | restarts at 1 | restarts at 0 |
| steps after the last end flag | dropped silently | dropped and reported, or kept on request |
| last observation of an episode | lost | taken from ``next_observations`` |

Columns are read straight into the arrays that are kept. Of ``next_observations`` only the rows at
episode ends are kept; it is read block by block, since those rows touch nearly every chunk.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import spaces as sp
from seqrl.datasets import columns as cols
from seqrl.datasets import d4rl_names
from seqrl.datasets.splitting import Split, split_episodes, subtask_increase
from seqrl.errors import SeqrlError
from seqrl.spec import TaskSpec

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

__all__ = ["READ_OPTIONS", "read", "source_files", "split_episodes", "write_d4rl"]

READ_OPTIONS = ("goal_terminals", "kitchen_rewards", "keep_tail", "clip_actions", "env")
"""Options that change what is read from a file."""

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_META = "metadata/seqrl"


# --- reading ----------------------------------------------------------------------------------


def source_files(uri: DatasetURI, options: LoadOptions) -> list[Path]:
    """The file whose state decides whether a cached copy is still good."""
    return [cols.existing_file(uri.name, "d4rl")]


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Read a D4RL file into trajectories.

    Raises:
        SeqrlError: not an HDF5 file or a damaged one, required arrays missing, arrays of different
            lengths, no episode end, or contents that do not validate.
    """
    path = cols.existing_file(uri.name, "d4rl")
    with _FlatFile(path) as file:
        meta = file.meta()
        family = d4rl_names.family_of(path.stem)
        split = _split(file, family, options)
        columns = _columns(file, split, options, allocate)
        if meta is None:
            data = _as_published(path, family, columns, options)
        else:
            columns |= file.own_columns(split)
            data = cols.from_columns(columns, meta, source=file.name)
    data.notes["split"] = split.describe(options.keep_tail)
    return data


def _split(file: _FlatFile, family: d4rl_names.Family | None, options: LoadOptions) -> Split:
    from seqrl.datasets.catalog import episode_limit

    flags = {"terminals": file.flags("terminals")}
    limit = None
    if "timeouts" in file:
        flags["timeouts"] = file.flags("timeouts")
    else:
        limit = episode_limit(options.env) if options.env else None
        if family is not None and family.limit_ends:
            limit = limit or family.max_episode_steps
    if options.goal_terminals == "merge":
        for name in ("observations", "next_observations"):
            if name in file:
                flags[name] = file.positions(name)
    try:
        return split_episodes(flags, limit, options.keep_tail, options.goal_terminals)
    except SeqrlError as error:
        raise SeqrlError(f"{file.name}: {error.message}", hint=error.hint) from None


def _columns(
    file: _FlatFile, split: Split, options: LoadOptions, allocate: cols.Allocate
) -> dict[str, np.ndarray]:
    lengths = split.stops - split.starts
    starts = np.concatenate([[0], np.cumsum(lengths)])
    n, last = split.steps, starts[1:] - 1
    terminations = np.zeros(n, dtype=bool)
    terminations[last] = split.terminated
    truncations = np.zeros(n, dtype=bool)
    truncations[last] = ~split.terminated
    columns = {
        "observations": file.column("observations", split, allocate),
        "actions": file.column("actions", split, allocate),
        "rewards": file.column("rewards", split, allocate),
        "terminations": terminations,
        "truncations": truncations,
        "episode_starts": starts,
    }
    if options.kitchen_rewards == "delta":
        columns["rewards"] = subtask_increase(columns["rewards"], starts)
    if "next_observations" in file:
        columns["final_observations"] = file.rows("next_observations", split.stops - 1)
    else:
        columns["final_observations"] = columns["observations"][last]
        columns["final_known"] = np.zeros(len(last), dtype=bool)
    return columns


def _as_published(
    path: Path,
    family: d4rl_names.Family | None,
    columns: dict[str, np.ndarray],
    options: LoadOptions,
) -> Trajectories:
    """Trajectories from a file that says nothing of its spaces or environment."""
    from seqrl.datasets.trajectories import Trajectories

    obs_space, act_space = sp.space_from_arrays(columns["observations"], columns["actions"])
    notes: dict[str, Any] = {}
    if family is None:
        notes["env_guess"] = f"no environment known for '{path.name}'; --env names one"
    elif family.env_id is None:
        notes["env_guess"] = "no current environment has these observations; --env names one"
    else:
        notes["env_guess"] = f"environment guessed from file name: {family.env_id}; --env overrides"
    if family is not None and family.targets:
        notes["published_targets"] = list(family.targets)
    if "final_known" in columns:
        notes["final_observations"] = "not in the file: the last observation is repeated"
    scores = d4rl_names.reference_scores(path.stem)
    action = sp.action_spec(act_space)
    if action.bounded and (max(action.high) > 1 or min(action.low) < -1):
        notes["actions"] = "beyond [-1, 1]: the action space was widened to the data"
        if options.clip_actions:
            act_space = type(act_space)(-1.0, 1.0, act_space.shape, np.float32)
            action = sp.action_spec(act_space)
            columns["actions"] = cols.clip_actions(columns["actions"], action)
            notes["actions"] = "clipped to [-1, 1]"
    task = TaskSpec(
        name=path.stem,
        observation=sp.observation_spec(obs_space),
        action=action,
        env_id=family.env_id if family else None,
        env_kwargs=dict(family.env_kwargs) if family else {},
        max_episode_steps=family.max_episode_steps if family else None,
        reference_scores=scores,
        reference_source="d4rl" if scores else None,
    )
    return Trajectories(
        **columns,  # type: ignore[arg-type]
        task=task,
        observation_space=obs_space,
        action_space=act_space,
        source=f"d4rl:{path}",
        notes=notes,
    )


class _FlatFile:
    """An open D4RL file; every failure to read it becomes one error naming file and field."""

    def __init__(self, path: Path):
        self.path, self.name = path, f"d4rl:{path}"

    def __enter__(self) -> _FlatFile:
        import h5py

        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise SeqrlError(
                f"{self.name} cannot be opened as HDF5: {_first_line(error)}",
                hint="the file is truncated, damaged or no HDF5; copy or download it again",
            ) from None
        try:
            self._check_keys()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def __contains__(self, key: str) -> bool:
        return key in self.file

    def _check_keys(self) -> None:
        missing = [k for k in _REQUIRED if k not in self.file]
        if missing:
            raise SeqrlError(
                f"{self.name} lacks {', '.join(missing)}; it has {', '.join(self.file) or 'none'}",
                hint="a D4RL file has observations, actions, rewards and terminals at its top",
            )
        shape = self.file["rewards"].shape
        if not shape or shape[0] == 0:
            raise SeqrlError(f"{self.name} holds no steps", hint="the file is empty")
        if shape[1:] not in ((), (1,)):
            raise SeqrlError(f"{self.name}: rewards has shape {shape}, must be one number a step")
        self.steps = shape[0]
        for key in (*_REQUIRED, "timeouts", "next_observations"):
            if key in self.file and len(self.file[key]) != self.steps:
                n = len(self.file[key])
                raise SeqrlError(
                    f"{self.name}: {key} has {n} steps, rewards has {self.steps} "
                    f"(first step without a partner: {min(n, self.steps)})",
                    hint="all per-step arrays need one entry a step",
                )

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[Any]:
        try:
            yield self.file[key]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SeqrlError(
                f"{self.name}: {key} cannot be read: {_first_line(error)}",
                hint="the file is damaged; copy or download it again",
            ) from None

    def flags(self, key: str) -> np.ndarray:
        """``[N]`` bool; kitchen and relabelled antmaze files store float32, some ``(N, 1)``."""
        with self._reading(key) as stored:
            values = stored[()].reshape(-1)
        if len(values) != self.steps:
            raise SeqrlError(
                f"{self.name}: {key} has shape {stored.shape}, must be one flag a step"
            )
        if values.dtype.kind == "f" and np.isnan(values).any():
            i = int(np.argmax(np.isnan(values)))
            raise SeqrlError(f"{self.name}: {key}[{i}] is nan", hint="flags are 0 or 1")
        return values.astype(bool, copy=False)

    def positions(self, key: str) -> np.ndarray:
        """``[N, 2]``: the first two entries of each observation."""
        with self._reading(key) as stored:
            if stored.ndim != 2 or stored.shape[1] < 2:
                raise SeqrlError(
                    f"{self.name}: --goal-terminals merge needs x and y in {key}",
                    hint="use it for antmaze files only",
                )
            values: np.ndarray = stored[:, :2]
        return values

    def column(self, key: str, split: Split, allocate: cols.Allocate) -> np.ndarray:
        """The steps of the episodes, cast to the stored type while reading."""
        with self._reading(key) as stored:
            shape, dtype = _stored_form(key, stored)
            out = allocate(key, (split.steps, *shape), dtype)
            target = out.reshape(split.steps, *stored.shape[1:])
            if split.contiguous:
                stored.read_direct(target, np.s_[: split.steps])
            else:
                keep = np.zeros(self.steps + 1, dtype=np.int8)
                keep[split.starts] += 1
                np.subtract.at(keep, split.stops, 1)
                mask = np.cumsum(keep[:-1], dtype=np.int8).astype(bool)
                done = 0
                for a, block in _blocks(stored, dtype):
                    chosen = block[mask[a : a + len(block)]]
                    target[done : done + len(chosen)] = chosen
                    done += len(chosen)
        return out

    def rows(self, key: str, index: np.ndarray) -> np.ndarray:
        """Rows ``index`` (increasing) of a column, without keeping the rest of it."""
        with self._reading(key) as stored:
            shape, dtype = _stored_form("observations", stored)
            out = np.empty((len(index), *stored.shape[1:]), dtype)
            wanted = np.searchsorted(index, np.arange(0, self.steps, _block_rows(stored)))
            for a, block in _blocks(
                stored, dtype, skip=np.diff(np.append(wanted, len(index))) == 0
            ):
                first, last = np.searchsorted(index, (a, a + len(block)))
                out[first:last] = block[index[first:last] - a]
        return out.reshape(len(index), *shape)

    def meta(self) -> dict[str, Any] | None:
        """The facts that seqrl's own writer adds, or None for other files."""
        if _META not in self.file:
            return None
        with self._reading(_META) as stored:
            meta: dict[str, Any] = json.loads(stored[()])
        cols.check_schema(meta, self.name)
        return meta

    def own_columns(self, split: Split) -> dict[str, np.ndarray]:
        """Extra columns and per-episode arrays of a file written by seqrl."""
        found: dict[str, np.ndarray] = {}
        for key in cols.EPISODE:
            if f"metadata/{key}" in self.file:
                with self._reading(f"metadata/{key}") as stored:
                    found[key] = stored[()]
        for key in self.file.get("infos", ()):
            with self._reading(f"infos/{key}") as stored:
                found[f"extra/{key}"] = stored[: split.steps]
        return found


def _stored_form(key: str, stored: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of one entry and dtype of a column as kept: float32, int64 (discrete) or uint8."""
    shape, kind = stored.shape[1:], stored.dtype.kind
    if kind not in "fiub":
        raise SeqrlError(
            f"d4rl:{stored.file.filename}: {key} holds {stored.dtype}, not numbers",
            hint="store numeric arrays",
        )
    if key == "rewards":
        return (), np.dtype(np.float32)
    if key == "observations":
        image = stored.dtype == np.uint8 and len(shape) == 3
        return (shape or (1,)), np.dtype(np.uint8 if image else np.float32)
    if kind in "iu":
        return shape, np.dtype(np.int64)
    return (shape or (1,)), np.dtype(np.float32)


def _block_rows(stored: Any) -> int:
    """Rows of a block: whole chunks, so that none is unpacked twice."""
    chunk: int = stored.chunks[0] if stored.chunks else 8192
    return chunk


def _blocks(
    stored: Any, dtype: np.dtype[Any], skip: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of consecutive blocks, in one reused buffer."""
    rows, n = _block_rows(stored), len(stored)
    buffer = np.empty((min(rows, n), *stored.shape[1:]), dtype)
    for i, a in enumerate(range(0, n, rows)):
        if skip is not None and skip[i]:
            continue
        b = min(a + rows, n)
        stored.read_direct(buffer, np.s_[a:b], np.s_[: b - a])
        yield a, buffer[: b - a]


def _first_line(error: BaseException) -> str:
    return str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__


# --- writing ----------------------------------------------------------------------------------


def write_d4rl(data: Trajectories, path: str | Path) -> Path:
    """Write the episodes in use as a D4RL-style file, gzip-compressed.

    Besides the arrays of the D4RL layout (``next_observations`` included) it holds extra columns
    under ``infos/``, and under ``metadata/`` what D4RL files lack: spaces, environment, reset
    seeds. Reading it back gives equal trajectories.

    Raises:
        SeqrlError: the folder cannot be written.
    """
    import h5py

    data, path = data.compact(), Path(path).expanduser()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    last = data.episode_starts[1:] - 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(part, "w") as file:
            for key, column in (
                ("observations", data.observations),
                ("actions", data.actions),
                ("rewards", data.rewards),
                ("terminals", data.terminations),
                ("timeouts", data.truncations),
                *((f"infos/{k}", v) for k, v in data.extras.items()),
            ):
                file.create_dataset(key, data=column, compression="gzip")
            obs = data.observations
            following = file.create_dataset(
                "next_observations", obs.shape, obs.dtype, chunks=True, compression="gzip"
            )
            rows = _block_rows(following)
            for a in range(0, len(obs), rows):
                b = min(a + rows, len(obs))
                block = np.array(obs[np.minimum(np.arange(a + 1, b + 1), len(obs) - 1)])
                first, stop = np.searchsorted(last, (a, b))
                block[last[first:stop] - a] = data.final_observations[first:stop]
                following[a:b] = block
            file[_META] = json.dumps(cols.meta_of(data))
            for key in cols.EPISODE:
                if getattr(data, key) is not None:
                    file[f"metadata/{key}"] = getattr(data, key)
        os.replace(part, path)
    except OSError as error:
        raise SeqrlError(f"{path} cannot be written: {_first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path

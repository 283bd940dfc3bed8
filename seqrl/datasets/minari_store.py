"""The local Minari store: listing, reading and writing its datasets.

The store is ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``. Nothing is downloaded unless the
option ``download`` is set.

HDF5 datasets are read with low-level h5py calls straight into flat columns, without importing
Minari. An episode's T+1 observations are read in place: the last one lands where the next episode
begins and is set aside first. Other storages (arrow, parquet), JPEG-coded images and whatever else
the direct path does not know go through Minari's own reader.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.datasets import columns as cols
from seqrl.errors import SeqrlError
from seqrl.spec import ObservationSpec, TaskSpec

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

READ_OPTIONS = ("obs_keys", "clip_actions")
"""Options that change what is read from a dataset."""

_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+-v\d+")
_MARK = "seqrl"
"""Key of metadata.json under which our writer keeps what Minari has no place for."""


# --- the store --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalDataset:
    """A dataset of the local store, as far as its metadata can be read."""

    id: str
    episodes: int = 0
    steps: int = 0
    env_id: str | None = None
    data_format: str = "hdf5"
    problem: str | None = None
    """Why it cannot be loaded, for a misconfigured entry."""


def store_folder() -> Path:
    """The folder of the local store (which need not exist)."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def is_valid_id(dataset_id: str) -> bool:
    """Whether an id has the form ``namespace/name-vN`` (the namespace is optional).

    Minari itself fails on other ids with a bare TypeError, and a folder of such a name breaks its
    listing of the whole store.
    """
    parts = dataset_id.split("/")
    return _ID.fullmatch(dataset_id) is not None and all(parts)


def is_local(dataset_id: str) -> bool:
    """Whether the store has a folder with data of that id."""
    return is_valid_id(dataset_id) and (store_folder() / dataset_id / "data").is_dir()


def list_local() -> list[LocalDataset]:
    """Every dataset of the local store by id; misconfigured ones carry their ``problem``."""
    root = store_folder()
    folders = sorted(p.parent for p in _data_folders(root)) if root.is_dir() else []
    return [_summary(folder.relative_to(root).as_posix(), folder) for folder in folders]


def _data_folders(folder: Path) -> Iterator[Path]:
    try:
        children = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return
    if any(p.name == "data" for p in children):
        yield folder / "data"
        return
    for child in children:
        yield from _data_folders(child)


def _summary(dataset_id: str, folder: Path) -> LocalDataset:
    if not is_valid_id(dataset_id):
        return LocalDataset(dataset_id, problem="its id is not of the form namespace/name-vN")
    try:
        meta = _metadata(folder)
        return LocalDataset(
            dataset_id,
            int(meta["total_episodes"]),
            int(meta["total_steps"]),
            _env_spec(meta).get("id"),
            meta["data_format"],
            None if meta.get("dataset_id") == dataset_id else "its metadata names another id",
        )
    except (SeqrlError, KeyError, TypeError, ValueError) as error:
        problem = getattr(error, "message", f"its metadata is incomplete ({error!r})")
        return LocalDataset(dataset_id, problem=problem)


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "data" / "metadata.json"
    try:
        meta = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SeqrlError(
            f"{path} cannot be read: {error}", hint="the dataset is incomplete; delete its folder"
        ) from None
    if not isinstance(meta, dict):
        raise SeqrlError(f"{path} is not a JSON object", hint="the dataset is damaged")
    return meta


def _env_spec(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The stored environment, the one meant for evaluation first; {} when there is none."""
    for key in ("eval_env_spec", "env_spec"):
        if meta.get(key):
            spec: dict[str, Any] = json.loads(meta[key])
            return spec
    return {}


# --- reading ----------------------------------------------------------------------------------


def source_files(uri: DatasetURI, options: LoadOptions) -> list[Path]:
    """The files whose state decides whether a cached copy is still good."""
    data = _find(uri.name, options) / "data"
    return sorted(p for p in data.rglob("*") if p.is_file())


def _find(dataset_id: str, options: LoadOptions) -> Path:
    """Folder of a dataset, downloaded first if that is allowed and needed."""
    from seqrl.datasets.catalog import unknown_dataset

    if not is_valid_id(dataset_id):
        error = unknown_dataset(dataset_id)
        raise SeqrlError(
            error.message, hint=f"Minari ids look like namespace/name-v0; {error.hint}"
        )
    if not is_local(dataset_id):
        if not options.download:
            raise unknown_dataset(dataset_id)
        _download(dataset_id)
    return store_folder() / dataset_id


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except ImportError as error:
        raise SeqrlError(
            f"downloading '{dataset_id}' needs another package: {error}",
            hint='pip install "minari[hf]"',
        ) from None
    except Exception as error:  # whatever the network stack raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeqrlError(
            f"dataset '{dataset_id}' cannot be downloaded: {reason}",
            hint="check the id and the network; MINARI_REMOTE names another server",
        ) from None


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Read a dataset of the local store into trajectories.

    Raises:
        SeqrlError: not in the store, damaged files, spaces that cannot be flattened, or contents
            that do not validate.
    """
    from seqrl.datasets.trajectories import Trajectories

    folder = _find(uri.name, options)
    meta, source = _metadata(folder), f"minari:{uri.name}"
    raw = _read_columns(folder, meta, source, options, allocate)
    obs_spec = sp.observation_spec(raw.observation_space)
    if sp.is_image(raw.observation_space) and options.obs_keys:
        obs_spec = ObservationSpec(obs_spec.kind, obs_spec.shape, options.obs_keys)
    task = _task(uri.name, meta, obs_spec, raw.action_space)
    if options.clip_actions:
        raw.actions = cols.clip_actions(raw.actions, task.action)
    extras = {}
    for name, entry in meta.get(_MARK, {}).get("extras", {}).items():
        column = raw.infos[name].astype(entry["dtype"], copy=False)
        extras[name] = column.reshape(len(column), *entry["shape"])
    known = raw.final_known
    if unknown := meta.get(_MARK, {}).get("final_unknown"):
        known[unknown] = False
    notes: dict[str, Any] = {}
    if meta.get(_MARK, {}).get("order_matters"):
        notes["order_matters"] = True
    if not known.all():
        notes["final_observations"] = (
            f"missing in {int((~known).sum())} of {len(known)} episodes: "
            "the last observation is repeated"
        )
    if wrappers := [w.get("name") for w in _env_spec(meta).get("additional_wrappers") or ()]:
        notes["env_wrappers"] = wrappers
    return Trajectories(
        observations=raw.observations,
        actions=raw.actions,
        rewards=raw.rewards,
        terminations=raw.terminations,
        # Time limit and terminal state may fall on the same step: it counts as terminated.
        truncations=raw.truncations & ~raw.terminations,
        final_observations=raw.final_observations,
        episode_starts=np.concatenate([[0], np.cumsum(raw.lengths)]),
        task=task,
        observation_space=raw.observation_space,
        action_space=raw.action_space,
        extras=extras,
        episode_seeds=raw.seeds if (raw.seeds >= 0).any() else None,
        final_known=None if known.all() else known,
        source=source,
        notes=notes,
        **{  # type: ignore[arg-type]
            k: np.array(v, dtype=np.int64)
            for k, v in meta.get(_MARK, {}).get("episodes", {}).items()
        },
    )


def _task(
    dataset_id: str, meta: Mapping[str, Any], obs_spec: ObservationSpec, action_space: Any
) -> TaskSpec:
    spec = _env_spec(meta)
    low, high = meta.get("ref_min_score"), meta.get("ref_max_score")
    known = low is not None and high is not None
    kwargs = {k: v for k, v in (spec.get("kwargs") or {}).items() if k != "render_mode"}
    return TaskSpec(
        name=meta.get(_MARK, {}).get("name") or dataset_id,
        observation=obs_spec,
        action=sp.action_spec(action_space),
        env_id=_env_id(spec),
        env_kwargs=kwargs,
        max_episode_steps=spec.get("max_episode_steps"),
        reference_scores=(float(low), float(high)) if known else None,  # type: ignore[arg-type]
        reference_source="minari metadata" if known else None,
    )


def _env_id(spec: Mapping[str, Any]) -> str | None:
    """The id under which Gymnasium makes the environment.

    A third-party environment is registered by importing its package, so its id becomes
    ``package:id``; the package is read off the entry point.
    """
    name, entry = spec.get("id"), spec.get("entry_point")
    if not name or ":" in name or not isinstance(entry, str):
        return name
    package = entry.partition(":")[0].partition(".")[0]
    return name if package in ("gymnasium", "seqrl") else f"{package}:{name}"


@dataclass
class RawColumns:
    """What the readers of the storages hand over: columns in stored form, and episodes."""

    observation_space: Any
    """The selected part of the space."""
    action_space: Any
    observations: np.ndarray
    """``[N, ...]`` flattened."""
    final_observations: np.ndarray
    """``[E, ...]`` flattened."""
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    lengths: np.ndarray
    """``[E]``"""
    seeds: np.ndarray
    """``[E]``, -1 where there is none."""
    final_known: np.ndarray
    """``[E]`` bool: False where an episode had T observations, not T+1."""
    infos: dict[str, np.ndarray]
    """Our extra columns, ``[N, ...]``."""


def _read_columns(
    folder: Path,
    meta: Mapping[str, Any],
    source: str,
    options: LoadOptions,
    allocate: cols.Allocate,
) -> RawColumns:
    from seqrl.datasets import minari_generic, minari_hdf5

    if int(meta.get("total_episodes", 0)) == 0 or int(meta.get("total_steps", 0)) == 0:
        raise SeqrlError(f"{source} holds no steps", hint="the dataset is empty")
    extras = tuple(meta.get(_MARK, {}).get("extras", {}))
    direct = meta.get("data_format") == "hdf5" and "observation_space" in meta
    direct = direct and "action_space" in meta
    obs_space = act_space = None
    if direct:
        whole = parse_space(json.loads(meta["observation_space"]))
        act_space = parse_space(json.loads(meta["action_space"]))
        direct = whole is not None and act_space is not None
        if direct:
            obs_space = select_keys(whole, options.obs_keys, source)
            direct = not (meta.get("jpeg_encoding", True) and _has_coded_image(obs_space))
    if direct:
        file = folder / "data" / "main_data.hdf5"
        plan = minari_hdf5.Plan(
            obs_space, act_space, int(meta["total_episodes"]), int(meta["total_steps"]), extras
        )
        try:
            return minari_hdf5.read_columns(file, plan, source, allocate)
        except minari_hdf5.NotDirect:
            pass  # an unusual layout: Minari's reader decides whether it is readable
    return minari_generic.read_columns(folder / "data", source, options.obs_keys, extras)


def parse_space(data: Mapping[str, Any]) -> Any:
    """A space from Minari's JSON form; None for kinds that seqrl does not store."""
    kind = data["type"]
    if kind == "Box":
        low, high = (np.array(data[k], dtype=data["dtype"]) for k in ("low", "high"))
        return spaces.Box(low, high, tuple(data["shape"]), np.dtype(data["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        dtype = np.dtype(data["dtype"]).type
        return spaces.MultiDiscrete(np.array(data["nvec"]), dtype, start=np.array(data["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        parts = {k: parse_space(v) for k, v in data["subspaces"].items()}
        # Entries of unknown kind are kept as None: the user may select the others.
        return _PartialDict(parts) if None in parts.values() else spaces.Dict(parts)
    if kind == "Tuple":
        items = [parse_space(v) for v in data["subspaces"]]
        return None if None in items else spaces.Tuple(items)
    return None


class _PartialDict:
    """A Dict space some of whose entries (Text, ...) seqrl cannot store."""

    def __init__(self, parts: dict[str, Any]):
        self.spaces = parts


def select_keys(space: Any, keys: tuple[str, ...], source: str) -> Any:
    """The part of a Dict space that the option ``obs_keys`` names.

    Raises:
        SeqrlError: no Dict space, a key it does not have, or an entry that cannot be flattened.
    """
    if not keys:
        if isinstance(space, _PartialDict):
            good = ",".join(k for k, v in space.spaces.items() if v is not None)
            raise SeqrlError(
                f"{source}: some observation entries are neither numbers nor images",
                hint=f"select some of the others: --obs-keys {good}",
            )
        return space
    if not isinstance(space, (spaces.Dict, _PartialDict)):
        raise SeqrlError(
            f"{source}: --obs-keys given, but observations are {type(space).__name__}, not Dict",
            hint="leave --obs-keys out",
        )
    missing = [k for k in keys if space.spaces.get(k) is None]
    if missing:
        raise SeqrlError(
            f"{source}: no observation entry {', '.join(map(repr, missing))} of a usable kind",
            hint=f"entries: {', '.join(space.spaces)}",
        )
    if len(keys) == 1 and sp.is_image(space.spaces[keys[0]]):
        return space.spaces[keys[0]]
    return spaces.Dict({k: space.spaces[k] for k in keys})


def _has_coded_image(space: Any) -> bool:
    """Whether Minari stores (part of) the space as JPEG (its own rule for images)."""
    if isinstance(space, spaces.Dict):
        return any(map(_has_coded_image, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(_has_coded_image, space.spaces))
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and min(space.shape[:2]) >= 32
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


# --- writing ----------------------------------------------------------------------------------


def write_minari(
    data: Trajectories, dataset_id: str, *, data_format: str = "hdf5", **metadata: Any
) -> str:
    """Write the episodes in use into the local store; see :mod:`seqrl.datasets.minari_writer`.

    Args:
        dataset_id: ``namespace/name-vN``; an existing dataset is never overwritten.
        data_format: "hdf5", or "arrow" or "parquet" (package pyarrow).
        metadata: ``author``, ``author_email``, ``algorithm_name``, ``code_permalink``,
            ``description``, ``requirements``.

    Returns:
        The id.

    Raises:
        SeqrlError: malformed or existing id, unknown format or metadata, or a failed write (which
            leaves nothing behind).
    """
    from seqrl.datasets.minari_writer import write

    return write(data, dataset_id, data_format=data_format, metadata=metadata)

"""Trajectories as a dataset of the local Minari store.

Minari's ``DataCollector`` is not used (its ``step`` needs jax): whole episodes go to
``create_dataset_from_buffers``. Images are stored exactly (``jpeg_encoding=False``), reset seeds go
with their episodes, extra columns become ``infos`` (with a last row of zeros, since Minari keeps
T+1 rows there). What Minari has no place for (``episode_task``, ``episode_order``, the name) is
kept in ``metadata.json`` under the key ``seqrl``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.datasets import minari_store as store
from seqrl.errors import SeqrlError, did_you_mean

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories

_FORMATS = ("hdf5", "arrow", "parquet")
_METADATA = (
    *("author", "author_email", "algorithm_name"),
    *("code_permalink", "description", "requirements"),
)


def write(
    data: Trajectories, dataset_id: str, *, data_format: str, metadata: Mapping[str, Any]
) -> str:
    """Write a dataset (documented at :func:`seqrl.datasets.minari_store.write_minari`)."""
    folder = _free_folder(dataset_id)
    if data_format not in _FORMATS:
        raise SeqrlError(
            f"Minari storage '{data_format}' is not one of {', '.join(_FORMATS)}",
            hint=did_you_mean(data_format, _FORMATS),
        )
    for key in metadata:
        if key not in _METADATA:
            raise SeqrlError(
                f"Minari metadata has no entry '{key}'",
                hint=did_you_mean(key, _METADATA, f"entries: {', '.join(_METADATA)}"),
            )
    data = data.compact()
    created = _first_missing(folder)
    try:
        _create(data, dataset_id, data_format, metadata)
    except BaseException as error:
        shutil.rmtree(created, ignore_errors=True)
        if isinstance(error, SeqrlError) or not isinstance(error, Exception):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeqrlError(
            f"dataset '{dataset_id}' cannot be written to {store.store_folder()}: {reason}",
            hint='pip install "seqrl[arrow]"' if isinstance(error, ImportError) else None,
        ) from error
    return dataset_id


def _free_folder(dataset_id: str) -> Path:
    if not store.is_valid_id(dataset_id):
        raise SeqrlError(
            f"'{dataset_id}' is no Minari dataset id",
            hint="write namespace/name-v0: letters, digits, - and _, ending in -v and a number",
        )
    folder = store.store_folder() / dataset_id
    if folder.exists():
        raise SeqrlError(
            f"dataset '{dataset_id}' exists in {store.store_folder()}",
            hint="choose another name or version; existing data are never overwritten",
        )
    return folder


def _first_missing(folder: Path) -> Path:
    """The topmost folder of a path that does not exist yet: what a failed write must remove."""
    while not folder.parent.exists():
        folder = folder.parent
    return folder


def _create(
    data: Trajectories, dataset_id: str, data_format: str, metadata: Mapping[str, Any]
) -> None:
    import minari

    given = dict(metadata)
    for key in ("author", "author_email"):
        if key in given:
            given[key] = {given[key]} if isinstance(given[key], str) else set(given[key])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each piece of metadata not given
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffer=_buffers(data, flat_infos=data_format == "hdf5"),
            env=None,
            observation_space=data.observation_space,
            action_space=data.action_space,
            data_format=data_format,
            jpeg_encoding=False,
            **given,
        )
    # Environment and scores are added afterwards: Minari would make the environment for them.
    facts: dict[str, Any] = {store._MARK: _mark(data)}
    if data.task.env_id is not None:
        facts["env_spec"] = _spec_json(data)
    if data.task.reference_scores is not None:
        facts["ref_min_score"], facts["ref_max_score"] = data.task.reference_scores
    dataset.storage.update_metadata(facts)


def _buffers(data: Trajectories, flat_infos: bool) -> list[Any]:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    buffers = []
    for i in range(len(data)):
        episode = data[i]
        steps = len(episode)
        ended = np.arange(1, steps + 1) == steps
        infos = {}
        for name, column in episode.extras.items():
            padded = np.concatenate([column, np.zeros_like(column[:1])])
            # Minari's arrow storage cannot read one-dimensional infos back.
            infos[name] = padded if flat_infos else padded.reshape(steps + 1, -1)
        buffers.append(
            EpisodeBuffer(
                id=i,
                seed=episode.seed,
                observations=unflatten_observations(data.observation_space, episode.observations),
                actions=_unflatten_actions(data.action_space, episode.actions),
                rewards=episode.rewards,
                terminations=ended & episode.terminated,
                truncations=ended & episode.truncated,
                infos=infos,
            )
        )
    return buffers


def _mark(data: Trajectories) -> dict[str, Any]:
    known = data.final_known
    return {
        "name": data.task.name,
        "extras": {
            k: {"dtype": str(v.dtype), "shape": list(v.shape[1:])} for k, v in data.extras.items()
        },
        "episodes": {
            k: getattr(data, k).tolist()
            for k in ("episode_task", "episode_order")
            if getattr(data, k) is not None
        },
        "final_unknown": [] if known is None else np.flatnonzero(~known).tolist(),
        "reference_source": data.task.reference_source,
        "order_matters": bool(data.notes.get("order_matters")),
    }


def _spec_json(data: Trajectories) -> str:
    """The environment's Gymnasium spec as JSON, from the registry where it is registered."""
    import dataclasses

    from gymnasium.envs.registration import EnvSpec, registry

    import seqrl.envs  # noqa: F401  (registers ours)

    task = data.task
    package, _, name = (task.env_id or "").rpartition(":")
    spec = registry.get(name)
    if spec is None or not isinstance(spec.entry_point, str):
        spec = EnvSpec(name, entry_point=f"{package}:{name}" if package else None)
    spec = dataclasses.replace(
        spec,
        kwargs={**spec.kwargs, **task.env_kwargs},
        max_episode_steps=task.max_episode_steps,
        vector_entry_point=None,
    )
    try:
        text: str = spec.to_json()
    except (TypeError, ValueError):  # keyword arguments that are not JSON
        text = json.dumps({"id": name, "entry_point": spec.entry_point, "kwargs": {}})
    return text


def unflatten_observations(space: Any, rows: np.ndarray) -> Any:
    """Flattened observations ``[N, S]`` back in the form of their space.

    The inverse of :func:`seqrl.spaces.flatten_observations` up to the float32 it rounds to.
    """
    if sp.is_image(space):
        return rows
    value, used = _take(space, rows, 0)
    if used != rows.shape[1]:
        raise SeqrlError(f"observations have {rows.shape[1]} entries, their space has {used}")
    return value


def _take(space: Any, rows: np.ndarray, at: int) -> tuple[Any, int]:
    """The entries of ``space``, which begin at column ``at`` of ``rows``, and where they end."""
    n = len(rows)
    if isinstance(space, spaces.Dict):
        values: dict[str, Any] = {}
        for key in sorted(space.spaces):
            values[key], at = _take(space.spaces[key], rows, at)
        return values, at
    if isinstance(space, spaces.Tuple):
        items = []
        for part in space.spaces:
            item, at = _take(part, rows, at)
            items.append(item)
        return tuple(items), at
    if isinstance(space, spaces.Discrete):
        stop = at + int(space.n)
        return rows[:, at:stop].argmax(axis=1) + int(space.start), stop
    if isinstance(space, spaces.MultiDiscrete):
        digits = []
        for k in space.nvec.reshape(-1):
            digits.append(rows[:, at : at + int(k)].argmax(axis=1))
            at += int(k)
        flat = np.stack(digits, axis=1).reshape(n, *space.shape)
        return (flat + space.start).astype(space.dtype), at
    stop = at + int(np.prod(space.shape))
    return rows[:, at:stop].reshape(n, *space.shape).astype(space.dtype), stop


def _unflatten_actions(space: Any, actions: np.ndarray) -> np.ndarray:
    """Stored actions ``[N, ...]`` in the form of their space."""
    if isinstance(space, spaces.Discrete):
        return actions + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        moved: np.ndarray = actions.reshape(-1, *space.shape) + space.start
        return moved.astype(space.dtype)
    return actions.reshape(-1, *space.shape).astype(space.dtype)

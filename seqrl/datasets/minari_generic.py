"""Minari datasets of any storage and layout, through Minari's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.minari_store import RawColumns


def read_columns(
    data_path: Path, source: str, obs_keys: tuple[str, ...], infos: tuple[str, ...]
) -> RawColumns:
    """Read all episodes one by one.

    Args:
        data_path: the dataset's ``data`` folder.
        source: named in errors.
        obs_keys: entries of a Dict space to use; empty for all.
        infos: info entries to read as extra columns.

    Raises:
        SeqrlError: a storage whose package is missing, a version Minari does not read, or damage.
    """
    from seqrl.datasets.minari_store import RawColumns, select_keys

    dataset = _open(data_path, source)
    space = select_keys(dataset.observation_space, obs_keys, source)
    sp.observation_spec(space)  # refuses unusable spaces before anything is read
    episodes = _episodes(dataset, source)
    obs, finals, actions, known, lengths = [], [], [], [], []
    for i, episode in enumerate(episodes):
        steps = len(episode.rewards)
        rows, acts = _flattened(dataset, space, episode, f"{source}: episode {i}")
        lengths.append(steps)
        obs.append(rows[:steps])
        finals.append(rows[-1])
        actions.append(acts)
        known.append(len(rows) == steps + 1)
    seeds = [m.get("seed") for m in dataset.storage.get_episode_metadata(range(len(episodes)))]
    return RawColumns(
        space,
        dataset.action_space,
        np.concatenate(obs),
        np.stack(finals),
        np.concatenate(actions),
        _flat(episodes, "rewards", np.float32),
        _flat(episodes, "terminations", bool),
        _flat(episodes, "truncations", bool),
        np.array(lengths),
        np.array([-1 if s is None else int(s) for s in seeds], dtype=np.int64),
        np.array(known),
        {k: _info(episodes, k, source) for k in infos},
    )


def _flattened(dataset: Any, space: Any, episode: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Observations (T or T+1 rows) and actions of an episode in stored form.

    Raises:
        SeqrlError: contents that do not fit the spaces, or each other.
    """
    obs_spec, act_spec = sp.observation_spec(space), sp.action_spec(dataset.action_space)
    steps = len(episode.rewards)
    again = "write the dataset again with the spaces of its contents"
    try:
        values = _select(episode.observations, space, dataset.observation_space)
        rows = sp.flatten_observations(space, values)
        acts = sp.flatten_actions(dataset.action_space, episode.actions)
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise SeqrlError(f"{where} does not fit its spaces: {error}", hint=again) from None
    if (rows.shape[1:], acts.shape[1:]) != (obs_spec.shape, act_spec.shape):
        raise SeqrlError(
            f"{where} has entries of shape {rows.shape[1:]} and {acts.shape[1:]}, "
            f"its spaces are {obs_spec.describe()} and {act_spec.describe()}",
            hint=again,
        )
    if steps == 0 or len(rows) not in (steps, steps + 1) or len(acts) != steps:
        raise SeqrlError(
            f"{where} has {steps} rewards, {len(acts)} actions and {len(rows)} observations",
            hint="an episode of T steps has T+1 observations",
        )
    return rows, acts


def _open(data_path: Path, source: str) -> Any:
    from minari.dataset.minari_dataset import MinariDataset

    try:
        return MinariDataset(data_path)
    except ImportError as error:
        raise SeqrlError(f"{source}: {error}", hint='pip install "seqrl[arrow]"') from None
    except Exception as error:  # Minari raises many kinds for a bad version, space or file
        reason = str(error) or type(error).__name__
        raise SeqrlError(
            f"{source} cannot be opened: {reason}",
            hint="the dataset is damaged or of another Minari version",
        ) from None


def _episodes(dataset: Any, source: str) -> list[Any]:
    episodes: list[Any] = []
    try:
        for episode in dataset.iterate_episodes():
            episodes.append(episode)
    except Exception as error:  # as above, while reading
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SeqrlError(
            f"{source}: episode {len(episodes)} cannot be read: {reason}",
            hint="the file is truncated or damaged; download or write the dataset again",
        ) from None
    if len(episodes) != dataset.total_episodes:
        raise SeqrlError(
            f"{source} announces {dataset.total_episodes} episodes and holds {len(episodes)}",
            hint="the dataset is damaged; download or write it again",
        )
    return episodes


def _select(values: Any, space: Any, whole: Any) -> Any:
    """The entry itself where a single image was selected from a Dict."""
    if isinstance(whole, spaces.Dict) and not isinstance(space, spaces.Dict):
        key = next(k for k, v in whole.spaces.items() if v is space)
        return values[key]
    return values


def _flat(episodes: list[Any], name: str, dtype: Any) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(e, name)).reshape(-1) for e in episodes]).astype(
        dtype
    )


def _info(episodes: list[Any], name: str, source: str) -> np.ndarray:
    try:
        return np.concatenate([np.asarray(e.infos[name])[: len(e.rewards)] for e in episodes])
    except (KeyError, TypeError, ValueError) as error:
        raise SeqrlError(
            f"{source}: info '{name}' is not in every episode ({error!r})",
            hint="write the dataset again",
        ) from None

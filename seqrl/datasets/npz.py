"""People's own arrays in one ``.npz`` file, and seqrl's lossless form of it.

Names understood (all flat over the N steps of all episodes, one after another):

| array | shape | |
|---|---|---|
| ``observations`` | ``[N, ...]`` | uint8 ``[N, H, W, C]`` is taken as images |
| ``actions`` | ``[N, A]`` or ``[N]`` | integers are discrete actions |
| ``rewards`` | ``[N]`` or ``[N, 1]`` | |
| ``terminations``, or ``terminals``, or ``dones`` | ``[N]`` | the environment ended the episode |
| ``truncations``, or ``timeouts`` | ``[N]``, optional | a limit ended it |
| ``episode_starts`` | ``[E]`` or ``[E+1]``, optional | where no flag marks an episode's end |
| ``final_observations`` | ``[E, ...]``, optional | the observation after each last step |
| ``next_observations`` | ``[N, ...]``, optional | its rows at episode ends serve as the above |
| ``episode_task``, ``episode_order``, ``episode_seeds`` | ``[E]``, optional | |
| ``meta`` | JSON text, optional | see below |
| any other | ``[N, ...]`` | an extra column of that name |

``meta`` may say what arrays cannot: ``name``, ``env_id``, ``env_kwargs``, ``max_episode_steps``,
``reference_scores`` (random, expert), ``action_low`` and ``action_high`` (numbers or lists; without
them the action space is [-1, 1], widened to the data), ``num_actions`` (of discrete actions).

Files are read with ``allow_pickle=False``: opening a stranger's file runs none of their code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl.datasets import columns as cols
from seqrl.errors import SeqrlError

if TYPE_CHECKING:
    from seqrl.datasets.catalog import DatasetURI, LoadOptions
    from seqrl.datasets.trajectories import Trajectories

_ENDS = ("terminations", "terminals", "dones")
_CUTS = ("truncations", "timeouts")
_KNOWN = {
    *("observations", "actions", "rewards", "episode_starts"),
    *("final_observations", "next_observations", "meta"),
    *_ENDS,
    *_CUTS,
    *cols.EPISODE,
}
_SPEC_KEYS = ("name", "env_id", "env_kwargs", "max_episode_steps")
_WRITE = "numpy.savez(path, observations=..., actions=..., rewards=..., terminations=...)"


def read(
    uri: DatasetURI, options: LoadOptions, allocate: cols.Allocate = cols.in_memory
) -> Trajectories:
    """Read an ``.npz`` file (see the module's table of names).

    Raises:
        SeqrlError: no ``.npz`` file, a damaged one, arrays missing, or contents that do not
            validate.
    """
    path = cols.existing_file(uri.name, "npz")
    source = f"npz:{path}"
    arrays = _load(path, source)
    meta = _meta(arrays, source)
    if "schema" in meta:
        data = _own(arrays, meta, source)
    else:
        data = _theirs(arrays, meta, source, options)
    return data


def _load(path: Path, source: str) -> dict[str, np.ndarray]:
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise SeqrlError(f"{source} is a single array, not an .npz", hint=_WRITE)
            arrays = {}
            for name in file.files:
                arrays[name] = file[name]
    except SeqrlError:
        raise
    except Exception as error:  # a damaged header can make numpy raise nearly anything
        what = f"{source}: {name}" if name else source
        pickled = "Object arrays" in str(error) or "pickled" in str(error)
        raise SeqrlError(
            f"{what} cannot be read: {'it holds Python objects' if pickled else error}",
            hint=f"store plain numeric arrays: {_WRITE}"
            if pickled
            else "the file is truncated, damaged or no .npz; write or copy it again",
        ) from None
    return arrays


def _meta(arrays: dict[str, np.ndarray], source: str) -> dict[str, Any]:
    if "meta" not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays["meta"][()]))
    except ValueError as error:
        raise SeqrlError(
            f"{source}: meta is not JSON: {error}", hint="store numpy.array(json.dumps({...}))"
        ) from None
    if not isinstance(meta, dict):
        raise SeqrlError(f"{source}: meta is not a JSON object", hint='such as {"env_id": "..."}')
    return meta


def _own(arrays: dict[str, np.ndarray], meta: Mapping[str, Any], source: str) -> Trajectories:
    columns = {k: v for k, v in arrays.items() if k in _KNOWN and k != "meta"}
    for name in meta.get("extras", ()):
        columns[f"extra/{name}"] = arrays[f"extra_{name}"]
    return cols.from_columns(columns, meta, source=source)


def _theirs(
    arrays: dict[str, np.ndarray], meta: Mapping[str, Any], source: str, options: LoadOptions
) -> Trajectories:
    from seqrl import spaces as sp
    from seqrl.datasets.trajectories import Trajectories

    missing = [k for k in ("observations", "actions", "rewards") if k not in arrays]
    if missing or not any(k in arrays for k in (*_ENDS, *_CUTS, "episode_starts")):
        lacking = missing or ["terminations (or terminals, dones, episode_starts)"]
        raise SeqrlError(
            f"{source} lacks {', '.join(lacking)}; it has {', '.join(arrays) or 'nothing'}",
            hint=_WRITE,
        )
    n = arrays["rewards"].shape[0] if arrays["rewards"].ndim else 0
    for key, array in arrays.items():
        per_step = key not in ("meta", "episode_starts", "final_observations", *cols.EPISODE)
        if per_step and (array.ndim == 0 or len(array) != n):
            raise SeqrlError(
                f"{source}: {key} has {len(array) if array.ndim else 'no'} steps, rewards has {n}",
                hint="all per-step arrays need one entry a step; episode_* and "
                "final_observations need one an episode",
            )
    observations, actions = _as_columns(arrays["observations"]), arrays["actions"]
    if actions.ndim == 2 and actions.shape[1] == 1 and actions.dtype.kind in "iu":
        actions = actions[:, 0]
    obs_space, act_space = sp.space_from_arrays(observations, actions)
    act_space = _told_space(meta, act_space, source)
    actions = sp.flatten_actions(act_space, actions)
    if options.clip_actions:
        actions = cols.clip_actions(actions, sp.action_spec(act_space))
    ends, cuts = _flags(arrays, n, source)
    data = Trajectories.from_arrays(
        observations,
        actions,
        arrays["rewards"],
        ends,
        cuts,
        final_observations=_finals(arrays, ends | cuts),
        observation_space=obs_space,
        action_space=act_space,
        extras={k: v for k, v in arrays.items() if k not in _KNOWN},
        source=source,
        **{"name": Path(source).stem, **{k: meta[k] for k in _SPEC_KEYS if k in meta}},
    )
    changes: dict[str, Any] = {k: arrays[k] for k in cols.EPISODE if k in arrays}
    if scores := meta.get("reference_scores"):
        low, high = (float(v) for v in scores)
        changes["task"] = dataclasses.replace(
            data.task, reference_scores=(low, high), reference_source=f"meta of {source}"
        )
    return dataclasses.replace(data, **changes, validated=False) if changes else data


def _told_space(meta: Mapping[str, Any], guessed: Any, source: str) -> Any:
    """The action space with the bounds or the number of choices that ``meta`` gives."""
    from gymnasium import spaces

    try:
        if "num_actions" in meta:
            return spaces.Discrete(int(meta["num_actions"]))
        if "action_low" in meta or "action_high" in meta:
            low, high = (
                np.broadcast_to(np.asarray(meta.get(k, v), np.float32), guessed.shape)
                for k, v in (("action_low", -1.0), ("action_high", 1.0))
            )
            return spaces.Box(low, high, dtype=np.float32)
    except (TypeError, ValueError, AssertionError) as error:
        raise SeqrlError(
            f"{source}: meta describes no action space: {error}",
            hint="num_actions, or action_low and action_high with one number a dimension",
        ) from None
    return guessed


def _as_columns(observations: np.ndarray) -> np.ndarray:
    return observations[:, None] if observations.ndim == 1 else observations


def _flags(arrays: Mapping[str, np.ndarray], n: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Terminations and truncations ``[N]`` bool, from whichever names the file uses."""
    ends, cuts = (
        next((arrays[k].reshape(-1).astype(bool) for k in names if k in arrays), np.zeros(n, bool))
        for names in (_ENDS, _CUTS)
    )
    if "episode_starts" in arrays:
        starts = np.unique(np.append(arrays["episode_starts"], n))
        if starts[0] != 0 or starts[-1] != n:
            raise SeqrlError(
                f"{source}: episode_starts goes from {starts[0]} to {starts[-1]}, "
                f"must lie between 0 and the number of steps, {n}",
                hint="give the index of each episode's first step",
            )
        cuts = cuts.copy()
        cuts[starts[1:].astype(np.int64) - 1] = True
    return ends, cuts & ~ends


def _finals(arrays: Mapping[str, np.ndarray], ended: np.ndarray) -> np.ndarray | None:
    if "final_observations" in arrays:
        return _as_columns(arrays["final_observations"])
    if "next_observations" not in arrays or not len(ended):
        return None
    ended = ended.copy()
    ended[-1] = True
    return _as_columns(arrays["next_observations"])[ended]


def write_npz(data: Trajectories, path: str | Path, *, compress: bool = False) -> Path:
    """Write the episodes in use so that ``npz:PATH`` reads them back without loss.

    Args:
        compress: smaller and several times slower to write and read.

    Raises:
        SeqrlError: the folder cannot be written.
    """
    data, path = data.compact(), Path(path).expanduser()
    arrays = {k.replace("extra/", "extra_"): v for k, v in cols.columns_of(data).items()}
    meta = {**cols.meta_of(data), "extras": sorted(data.extras)}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            save = np.savez_compressed if compress else np.savez
            save(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        os.replace(part, path)
    except OSError as error:
        raise SeqrlError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path

"""From Gymnasium spaces to the arrays that seqrl stores, and back.

Observations become one float32 vector (or one uint8 image); actions become float32 vectors,
int64 scalars or int64 vectors. Rules for vectors, in order: Box entries are flattened in C order,
Discrete and MultiDiscrete entries become one-hot groups, MultiBinary stays 0/1, Dict entries
follow sorted by name and Tuple entries by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from seqrl.errors import SeqrlError
from seqrl.spec import ActionSpec, ObservationSpec

_FIX = "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict/Tuple of these"


def is_image(space: spaces.Space[Any]) -> bool:
    """True for a uint8 Box ``(H, W, C)`` with bounds 0..255."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def observation_spec(space: spaces.Space[Any]) -> ObservationSpec:
    """The flattened form of an observation space.

    Raises:
        SeqrlError: a kind of space that cannot be flattened (Text, Graph, Sequence, ...).

    >>> observation_spec(spaces.Dict(b=spaces.Box(-1, 1, (2,)), a=spaces.Discrete(3)))
    ObservationSpec(kind='vector', shape=(5,), keys=('a', 'b'))
    """
    if is_image(space):
        return ObservationSpec("image", tuple(space.shape or ()))
    keys = tuple(sorted(space.spaces)) if isinstance(space, spaces.Dict) else ()
    return ObservationSpec("vector", (_width(space, "observation"),), keys)


def _width(space: spaces.Space[Any], where: str) -> int:
    if isinstance(space, spaces.Box):
        if is_image(space) and "." in where:
            raise SeqrlError(f"{where} is an image inside a Dict or Tuple space", hint=_FIX)
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Dict):
        return sum(_width(s, f"{where}.{k}") for k, s in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return sum(_width(s, f"{where}.{i}") for i, s in enumerate(space.spaces))
    raise SeqrlError(f"{where} space {type(space).__name__} cannot be flattened", hint=_FIX)


def flatten_observations(space: spaces.Space[Any], values: Any) -> np.ndarray:
    """A column of observations as ``[N, S]`` float32, or ``[N, H, W, C]`` uint8 for images.

    Args:
        space: the space of one observation.
        values: array ``[N, ...]``; for Dict a mapping of such columns, for Tuple a sequence.
    """
    if is_image(space):
        return np.ascontiguousarray(values, dtype=np.uint8)
    parts = _parts(space, values)
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return np.ascontiguousarray(flat, dtype=np.float32)


def _parts(space: spaces.Space[Any], values: Any) -> list[np.ndarray]:
    if isinstance(space, spaces.Dict):
        return [p for k in sorted(space.spaces) for p in _parts(space.spaces[k], values[k])]
    if isinstance(space, spaces.Tuple):
        return [p for s, v in zip(space.spaces, values, strict=True) for p in _parts(s, v)]
    array = np.asarray(values)
    if isinstance(space, spaces.Discrete):
        return [_one_hot(array.reshape(-1) - int(space.start), int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        columns = (array - space.start).reshape(len(array), -1)
        return [_one_hot(columns[:, j], int(k)) for j, k in enumerate(space.nvec.reshape(-1))]
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return [array.reshape(len(array), -1)]
    raise SeqrlError(f"observation space {type(space).__name__} cannot be flattened", hint=_FIX)


def _one_hot(index: np.ndarray, n: int) -> np.ndarray:
    if len(index) and not 0 <= index.min() <= index.max() < n:
        i = int(np.argmax((index < 0) | (index >= n)))
        raise SeqrlError(
            f"observation {i} holds choice {index[i]} of {n} (counted from 0)",
            hint="check the observation space of the data",
        )
    out = np.zeros((len(index), n), dtype=np.float32)
    out[np.arange(len(index)), index.astype(np.int64)] = 1.0
    return out


def flatten_observation(space: spaces.Space[Any], value: Any) -> np.ndarray:
    """One observation as ``[S]`` float32 or ``[H, W, C]`` uint8 (same rules as the column form)."""
    if isinstance(space, spaces.Box):
        if is_image(space):
            return np.asarray(value, dtype=np.uint8)
        return np.asarray(value, dtype=np.float32).reshape(-1)
    return flatten_observations(space, _with_axis(space, value))[0]


def _with_axis(space: spaces.Space[Any], value: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {k: _with_axis(s, value[k]) for k, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_with_axis(s, v) for s, v in zip(space.spaces, value, strict=True)]
    return np.asarray(value)[None]


def action_spec(space: spaces.Space[Any]) -> ActionSpec:
    """The stored form of an action space.

    Raises:
        SeqrlError: a kind of space that is no Box, Discrete, MultiDiscrete or MultiBinary.

    >>> action_spec(spaces.Discrete(4))
    ActionSpec(kind='discrete', shape=(), low=(), high=(), nvec=(4,))
    """
    if isinstance(space, spaces.Box):
        low = tuple(float(v) for v in space.low.reshape(-1))
        high = tuple(float(v) for v in space.high.reshape(-1))
        return ActionSpec("continuous", (len(low),), low, high)
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (), nvec=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        nvec = tuple(int(k) for k in space.nvec.reshape(-1))
        return ActionSpec("multidiscrete", (len(nvec),), nvec=nvec)
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return ActionSpec("multidiscrete", (size,), nvec=(2,) * size)
    raise SeqrlError(
        f"action space {type(space).__name__} is not supported",
        hint="use Box, Discrete, MultiDiscrete or MultiBinary actions",
    )


def flatten_actions(space: spaces.Space[Any], values: Any) -> np.ndarray:
    """A column of actions as stored: ``[N, A]`` float32, ``[N]`` int64 or ``[N, A]`` int64."""
    array = np.asarray(values)
    if isinstance(space, spaces.Box):
        return np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float32)
    if isinstance(space, spaces.Discrete):
        return array.reshape(len(array)).astype(np.int64) - int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return (array.astype(np.int64) - space.start).reshape(len(array), -1)
    return np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.int64)


def execute_actions(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Actions as executed, still in stored form: continuous ones clipped to their Box."""
    if isinstance(space, spaces.Box):
        return np.clip(actions, space.low.reshape(-1), space.high.reshape(-1))
    return actions


def unflatten_action(space: spaces.Space[Any], action: np.ndarray) -> Any:
    """One stored action in the form the environment takes (shape, dtype, offset of the space)."""
    if isinstance(space, spaces.Box):
        return action.reshape(space.shape).astype(space.dtype, copy=False)
    if isinstance(space, spaces.Discrete):
        return int(action) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return action.reshape(space.shape).astype(space.dtype) + space.start
    return action.reshape(space.shape).astype(space.dtype)


def space_from_arrays(observations: np.ndarray, actions: np.ndarray) -> tuple[Any, Any]:
    """Spaces guessed from people's own arrays: unbounded Box or image, Discrete or Box in [-1, 1].

    Continuous actions outside [-1, 1] widen the Box to the range of the data.
    """
    if observations.dtype == np.uint8 and observations.ndim == 4:
        obs_space: Any = spaces.Box(0, 255, observations.shape[1:], np.uint8)
    else:
        obs_space = spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)
    if np.issubdtype(actions.dtype, np.integer) and actions.ndim == 1:
        return obs_space, spaces.Discrete(int(actions.max(initial=0)) + 1)
    if np.issubdtype(actions.dtype, np.integer):
        return obs_space, spaces.MultiDiscrete(actions.max(axis=0) + 1)
    columns = actions.reshape(len(actions), -1)
    low = np.minimum(columns.min(axis=0, initial=-1.0), -1.0).astype(np.float32)
    high = np.maximum(columns.max(axis=0, initial=1.0), 1.0).astype(np.float32)
    # No Box has NaN bounds; the validation reports the values themselves.
    low[~np.isfinite(low)], high[~np.isfinite(high)] = -1.0, 1.0
    return obs_space, spaces.Box(low, high, dtype=np.float32)


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as plain data, for caches and run folders (the kinds seqrl supports)."""
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": [str(v) for v in space.low.reshape(-1)] if not is_image(space) else ["0"],
            "high": [str(v) for v in space.high.reshape(-1)] if not is_image(space) else ["255"],
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {k: space_to_json(s) for k, s in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(s) for s in space.spaces]}
    raise SeqrlError(f"space {type(space).__name__} is not supported", hint=_FIX)


def space_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """Rebuild a space written by :func:`space_to_json`."""
    kind = data["type"]
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bounds(data[k], shape, dtype) for k in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        return spaces.Dict({k: space_from_json(s) for k, s in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(s) for s in data["spaces"]])
    raise SeqrlError(f"unknown kind of space {kind!r}")


def _bounds(values: Sequence[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    array = np.array([float(v) for v in values]).astype(dtype)
    if array.size == 1:
        return np.full(shape, array.reshape(-1)[0], dtype=dtype)
    return array.reshape(shape)

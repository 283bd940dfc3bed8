"""Small datasets and files for the tests of readers and writers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from seqrl.datasets.trajectories import Trajectories

LENGTHS = (4, 1, 7, 3)


def flat_arrays(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, np.ndarray]:
    """D4RL-style arrays: odd episodes terminate, even ones time out."""
    rng = np.random.default_rng(seed)
    n, ends = sum(lengths), np.cumsum(lengths) - 1
    walk = rng.standard_normal((n + 1, 3)).astype(np.float32)
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    terminals[ends[1::2]] = True
    timeouts[ends[::2]] = True
    return {
        "observations": walk[:-1].copy(),
        "next_observations": walk[1:].copy(),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def write_hdf5(path: Path, arrays: dict[str, Any], **options: Any) -> str:
    """A flat HDF5 file; returns its d4rl: URI."""
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            array = np.asarray(value)
            file.create_dataset(key, data=array, **(options if array.ndim else {}))
    return f"d4rl:{path}"


def trajectories(**options: Any) -> Trajectories:
    """Continuous-action data with everything optional filled in."""
    arrays = flat_arrays()
    data = Trajectories.from_arrays(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        arrays["terminals"],
        arrays["timeouts"],
        final_observations=arrays["next_observations"][np.cumsum(LENGTHS) - 1],
        extras={
            "optimal_action": np.arange(len(arrays["rewards"])),
            "weight": arrays["observations"][:, :2] * 2,
            "good": arrays["rewards"] > 0,
        },
        **{"name": "toy", "env_id": "Pendulum-v1", "env_kwargs": {"g": 9.0}, **options},
    )
    task = dataclasses.replace(
        data.task, max_episode_steps=200, reference_scores=(-3.0, 5.5), reference_source="test"
    )
    return dataclasses.replace(
        data,
        task=task,
        episode_seeds=np.array([11, 12, -1, 14]),
        episode_task=np.array([0, 1, 1, 2]),
        episode_order=np.array([3, 2, 1, 0]),
        final_known=np.array([True, True, False, True]),
        validated=False,
    )


def assert_same(a: Trajectories, b: Trajectories, *, task: bool = True) -> None:
    """Every column, extra column, per-episode array and (if asked) the task are equal."""
    for field in dataclasses.fields(Trajectories):
        if field.name in ("task", "source", "notes", "extras", "observation_space"):
            continue
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            assert x is not None, field.name
            assert y is not None, field.name
            assert x.dtype == y.dtype, field.name
            np.testing.assert_array_equal(x, y, err_msg=field.name)
        elif field.name != "action_space" or task:
            assert x == y, field.name
    assert set(a.extras) == set(b.extras)
    for name in a.extras:
        assert a.extras[name].dtype == b.extras[name].dtype, name
        np.testing.assert_array_equal(a.extras[name], b.extras[name], err_msg=name)
    if task:
        assert a.task == b.task
        assert a.observation_space == b.observation_space
    assert a.fingerprint == b.fingerprint

"""Every fault of a file is one error that names file, field, first bad index and a remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from tests.datasets.builders import LENGTHS, flat_arrays, trajectories, write_hdf5

FRESH = LoadOptions(cache=False)
N = sum(LENGTHS)


def fault(uri: str, **options: Any) -> SeqrlError:
    with pytest.raises(SeqrlError) as error:
        load_dataset(uri, options=LoadOptions(cache=False, **options))
    assert error.value.hint, "every fault says what to do"
    return error.value


def broken(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> SeqrlError:
    """The error of a D4RL file whose arrays ``change`` has spoilt; it names the file."""
    arrays: dict[str, Any] = flat_arrays()
    change(arrays)
    error = fault(write_hdf5(tmp_path / "toy.hdf5", arrays))
    assert f"d4rl:{tmp_path}/toy.hdf5" in error.message
    return error


def put(key: str, index: Any, value: float) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[key][index] = value

    return change


# --- contents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_in_observations(tmp_path: Path, value: float) -> None:
    error = broken(tmp_path, put("observations", (6, 2), value))
    assert f"observations[6, 2] is {value} (episode 2, step 1)" in error.message


def test_nan_in_rewards_and_actions(tmp_path: Path) -> None:
    assert (
        "rewards[4] is nan (episode 1, step 0)"
        in broken(tmp_path, put("rewards", 4, np.nan)).message
    )
    assert "actions[0, 1] is nan" in broken(tmp_path, put("actions", (0, 1), np.nan)).message


def test_nan_in_a_final_observation(tmp_path: Path) -> None:
    error = broken(tmp_path, put("next_observations", (4, 0), np.nan))
    assert "final_observations[1, 0] is nan (episode 1)" in error.message


def test_nan_among_flags(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["terminals"] = arrays["terminals"].astype(np.float32)
        arrays["terminals"][2] = np.nan

    assert "terminals[2] is nan" in broken(tmp_path, change).message


def test_large_finite_values_are_no_fault(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["observations"][:, 0] = 3e38  # their sum overflows
    data = load_dataset(write_hdf5(tmp_path / "toy.hdf5", arrays), options=FRESH)
    assert len(data) == len(LENGTHS)


@pytest.mark.parametrize("key", ["observations", "actions", "terminals", "timeouts"])
def test_columns_of_different_lengths(tmp_path: Path, key: str) -> None:
    error = broken(tmp_path, lambda a: a.update({key: a[key][:-2]}))
    assert f"{key} has {N - 2} steps, rewards has {N}" in error.message
    assert f"first step without a partner: {N - 2}" in error.message


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_array(tmp_path: Path, key: str) -> None:
    error = broken(tmp_path, lambda a: a.pop(key))
    assert f"lacks {key}; it has" in error.message


def test_a_column_of_text(tmp_path: Path) -> None:
    error = broken(tmp_path, lambda a: a.update(actions=np.full(N, b"left")))
    assert "actions holds |S4, not numbers" in error.message


def test_rewards_of_several_numbers(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["rewards"] = np.zeros((N, 2), np.float32)
    with pytest.raises(SeqrlError, match="must be one number a step"):
        load_dataset(write_hdf5(tmp_path / "toy.hdf5", arrays), options=FRESH)


def test_no_episode_end(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["terminals"][:] = arrays["timeouts"][:] = False

    assert f"no episode end among {N} steps" in broken(tmp_path, change).message


def test_an_empty_file(tmp_path: Path) -> None:
    def empty(arrays: dict[str, Any]) -> None:
        arrays.update({k: v[:0] for k, v in arrays.items()})

    assert "holds no steps" in broken(tmp_path, empty).message


def test_an_action_outside_its_box_and_the_way_out(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["actions"][9, 1] = 3.5
    meta = json.dumps({"action_low": -1, "action_high": [1, 1]})
    np.savez(tmp_path / "toy.npz", meta=np.array(meta), **arrays)
    uri = f"npz:{tmp_path}/toy.npz"
    error = fault(uri)
    assert "actions[9, 1] is 3.5, outside Box(2,) [-1, 1] (episode 2, step 4)" in error.message
    assert "1 steps are like this" in error.message
    assert "--clip-actions" in str(error.hint)
    clipped = load_dataset(uri, options=LoadOptions(cache=False, clip_actions=True))
    assert clipped.actions.max() == 1.0


def test_rounding_beyond_the_box_is_tolerated() -> None:
    data = trajectories()
    actions = data.actions.copy()
    actions[0, 0] = 1 + 1e-5
    assert dataclasses.replace(data, actions=actions, validated=False).validated


def test_a_discrete_action_that_does_not_exist(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["actions"] = np.arange(N) % 5
    np.savez(tmp_path / "toy.npz", meta=np.array('{"num_actions": 4}'), **arrays)
    error = fault(f"npz:{tmp_path}/toy.npz")
    assert "actions[4] is 4, outside Discrete(4) [0, 3] (episode 1, step 0)" in error.message


# --- columns given in Python ------------------------------------------------------------------


def respoilt(**fields: Any) -> SeqrlError:
    with pytest.raises(SeqrlError) as error:
        dataclasses.replace(trajectories(), **fields, validated=False)
    assert error.value.hint
    return error.value


def test_dtypes_other_than_the_specs() -> None:
    data = trajectories()
    error = respoilt(observations=data.observations.astype(np.float64))
    assert "observations is float64, must be float32" in error.message
    assert (
        "terminations is int8, must be bool"
        in respoilt(terminations=data.terminations.astype(np.int8)).message
    )


def test_shapes_other_than_the_specs() -> None:
    error = respoilt(actions=trajectories().actions[:, :1])
    assert "an entry of actions has shape (1,), must be (2,) for Box(2,)" in error.message


def test_episode_starts_must_grow_and_cover_the_steps() -> None:
    assert (
        "episode_starts[2] is 4, not above the one before (4)"
        in respoilt(episode_starts=[0, 4, 4, 12, N]).message
    )
    assert f"goes from 0 to {N - 1}" in respoilt(episode_starts=[0, 4, 5, 12, N - 1]).message


def test_flags_in_the_middle_and_missing_flags() -> None:
    data = trajectories()
    flags = data.terminations.copy()
    flags[6] = True
    assert (
        "terminations[6] is True inside an episode (episode 2, step 1)"
        in respoilt(terminations=flags).message
    )
    assert (
        "no episode end: terminations[3] and truncations[3] are both False"
        in respoilt(truncations=np.zeros(N, bool)).message
    )


def test_per_episode_and_extra_columns_of_wrong_length() -> None:
    data = trajectories()
    assert (
        "final_observations has 3 entries, there are 4 episodes"
        in respoilt(final_observations=data.final_observations[:3]).message
    )
    assert "episode_seeds has 2 entries" in respoilt(episode_seeds=np.zeros(2, int)).message
    error = respoilt(extras={"weight": np.zeros(3)})
    assert f"extras['weight'] has 3 steps, rewards has {N}" in error.message


def test_nothing_given() -> None:
    with pytest.raises(SeqrlError, match="holds no steps"):
        Trajectories.from_arrays(np.zeros((0, 2)), np.zeros((0, 1)), [], [])


# --- damaged files ----------------------------------------------------------------------------


def test_an_hdf5_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "toy.hdf5"
    uri = write_hdf5(path, flat_arrays((500, 500)), compression="gzip")
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        error = fault(uri)
        assert "cannot be opened as HDF5" in error.message
        assert str(path) in error.message


def test_a_damaged_chunk_names_its_column(tmp_path: Path) -> None:
    path = tmp_path / "toy.hdf5"
    uri = write_hdf5(path, flat_arrays((500, 500)), compression="gzip", chunks=True)
    with h5py.File(path) as file:
        chunk = file["actions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    assert f"d4rl:{path}: actions cannot be read" in fault(uri).message


def test_a_file_that_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "toy.hdf5").write_text("not a dataset")
    assert "cannot be opened as HDF5" in fault(f"d4rl:{tmp_path}/toy.hdf5").message


def test_a_minari_file_cut_short(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    path = home / "minari/test/toy-v0/data/main_data.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    error = fault("minari:test/toy-v0")
    assert "minari:test/toy-v0: main_data.hdf5 cannot be opened as HDF5" in error.message


def test_a_minari_dataset_without_its_parts(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    folder = home / "minari/test/toy-v0/data"
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_2"]["actions"]
    assert "episode 2 cannot be read" in fault("minari:test/toy-v0").message
    (folder / "metadata.json").write_text("{")
    assert "metadata.json cannot be read" in fault("minari:test/toy-v0").message
    shutil.rmtree(folder)
    assert "is not in" in fault("minari:test/toy-v0").message


def test_damaged_and_strange_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    uri = f"npz:{path}"
    np.savez_compressed(path, **flat_arrays((300, 300)))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read" in fault(uri).message
    content[200:260] = b"\x00" * 60
    path.write_bytes(content)
    assert "cannot be read" in fault(uri).message
    path.write_text("no archive")
    assert "cannot be read" in fault(uri).message
    np.savez(path, **{**flat_arrays(), "notes": np.array([{"a": 1}], dtype=object)})
    assert "it holds Python objects" in fault(uri).message
    np.savez(path, observations=np.zeros((3, 2)), actions=np.zeros(3, int), rewards=np.zeros(3))
    assert "lacks terminations (or terminals, dones, episode_starts)" in fault(uri).message
    np.savez(path, **{**flat_arrays(), "weight": np.zeros(5)})
    assert f"weight has 5 steps, rewards has {N}" in fault(uri).message
    np.savez(path, **flat_arrays(), meta=np.array("{"))
    assert "meta is not JSON" in fault(uri).message

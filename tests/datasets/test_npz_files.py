"""People's own arrays: every documented name works, and seqrl's own form is lossless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.datasets.npz import write_npz
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from tests.datasets.builders import LENGTHS, assert_same, flat_arrays, trajectories

N = sum(LENGTHS)


def saved(path: Path, **arrays: Any) -> Trajectories:
    np.savez(path / "mine.npz", **arrays)
    return load_dataset(f"npz:{path}/mine.npz")


def base() -> dict[str, Any]:
    arrays = flat_arrays()
    return {k: arrays[k] for k in ("observations", "actions", "rewards")}


@pytest.mark.parametrize("compress", [False, True])
def test_writing_and_reading_back_is_lossless(tmp_path: Path, compress: bool) -> None:
    data = trajectories()
    path = write_npz(data, tmp_path / "new" / "toy.npz", compress=compress)
    assert_same(load_dataset(f"npz:{path}"), data)


def test_the_selection_is_written(tmp_path: Path) -> None:
    data = trajectories().select([3, 1])
    back = load_dataset(f"npz:{data.to_npz(tmp_path / 'toy.npz')}")
    assert back.lengths.tolist() == [3, 1]
    assert back.episode_seeds is not None
    assert back.episode_seeds.tolist() == [14, 12]


@pytest.mark.parametrize("ends", ["terminations", "terminals", "dones"])
@pytest.mark.parametrize("cuts", ["truncations", "timeouts"])
def test_flags_under_all_their_names(tmp_path: Path, ends: str, cuts: str) -> None:
    arrays = flat_arrays()
    data = saved(
        tmp_path, **base(), **{ends: arrays["terminals"], cuts: arrays["timeouts"].astype(int)}
    )
    assert data.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(data.terminations, arrays["terminals"])
    np.testing.assert_array_equal(data.truncations, arrays["timeouts"])


@pytest.mark.parametrize("closing", [True, False])
def test_episode_starts_instead_of_flags(tmp_path: Path, closing: bool) -> None:
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    data = saved(tmp_path, **base(), episode_starts=starts if closing else starts[:-1])
    assert data.lengths.tolist() == list(LENGTHS)
    assert int(data.truncations.sum()) == len(LENGTHS)
    with pytest.raises(SeqrlError, match="episode_starts goes from 1 to"):
        saved(tmp_path, **base(), episode_starts=np.array([1, 4]))


def test_final_and_next_observations(tmp_path: Path) -> None:
    arrays = flat_arrays()
    flags = {"terminals": arrays["terminals"], "timeouts": arrays["timeouts"]}
    last = arrays["next_observations"][np.cumsum(LENGTHS) - 1]
    given = saved(tmp_path, **base(), **flags, final_observations=last)
    derived = saved(tmp_path, **base(), **flags, next_observations=arrays["next_observations"])
    for data in (given, derived):
        np.testing.assert_array_equal(data.final_observations, last)
        assert data.final_known is None
    unknown = saved(tmp_path, **base(), **flags)
    assert unknown.final_known is not None
    assert not unknown.final_known.any()


def test_other_arrays_become_extra_columns(tmp_path: Path) -> None:
    flags = {"terminals": flat_arrays()["terminals"], "timeouts": flat_arrays()["timeouts"]}
    data = saved(tmp_path, **base(), **flags, teacher=np.arange(N), episode_seeds=np.arange(4))
    assert list(data.extras) == ["teacher"]
    assert data.episode_seeds is not None
    assert data.episode_seeds.tolist() == [0, 1, 2, 3]


def test_meta_tells_what_arrays_cannot(tmp_path: Path) -> None:
    meta = {
        "name": "mine",
        "env_id": "Pendulum-v1",
        "env_kwargs": {"g": 9.0},
        "max_episode_steps": 200,
        "reference_scores": [-1, 2],
        "action_low": -3,
        "action_high": [3, 4],
    }
    data = saved(
        tmp_path, **base(), dones=flat_arrays()["terminals"], meta=np.array(json.dumps(meta))
    )
    task = data.task
    assert (task.name, task.env_id, task.env_kwargs) == ("mine", "Pendulum-v1", {"g": 9.0})
    assert task.reference_scores == (-1.0, 2.0)
    assert (task.action.low, task.action.high) == ((-3.0, -3.0), (3.0, 4.0))
    with pytest.raises(SeqrlError, match="meta describes no action space"):
        saved(
            tmp_path, **base(), dones=flat_arrays()["terminals"], meta='{"action_low": [1, 2, 3]}'
        )


@pytest.mark.parametrize(
    ("actions", "space"),
    [
        (np.arange(N) % 3, "Discrete(3)"),
        ((np.arange(N) % 3)[:, None], "Discrete(3)"),
        (np.stack([np.arange(N) % 2, np.arange(N) % 5], 1), "MultiDiscrete([2, 5])"),
        (np.linspace(-1, 1, N), "Box(1,)"),
        (np.linspace(-4, 4, 2 * N).reshape(N, 2), "Box(2,)"),
    ],
)
def test_action_spaces_are_guessed(tmp_path: Path, actions: np.ndarray, space: str) -> None:
    arrays = base() | {"actions": actions, "dones": flat_arrays()["terminals"]}
    assert saved(tmp_path, **arrays).task.action.describe() == space


def test_images_and_numbers_as_observations(tmp_path: Path) -> None:
    images = np.zeros((N, 5, 5, 3), np.uint8)
    dones = flat_arrays()["terminals"]
    assert saved(tmp_path, **(base() | {"observations": images}), dones=dones).task.observation.kind
    scalars = saved(tmp_path, **(base() | {"observations": np.arange(N)}), dones=dones)
    assert scalars.observations.shape == (N, 1)


def test_the_last_step_ends_an_episode_whatever_the_flags_say(tmp_path: Path) -> None:
    dones = np.zeros(N, bool)
    data = saved(tmp_path, **base(), dones=dones)
    assert data.lengths.tolist() == [N]
    assert bool(data.truncations[-1])


def test_actions_can_be_clipped(tmp_path: Path) -> None:
    arrays = base()
    arrays["actions"] *= 3
    np.savez(
        tmp_path / "x.npz",
        **arrays,
        dones=flat_arrays()["terminals"],
        meta='{"action_low": -1, "action_high": 1}',
    )
    data = load_dataset(f"npz:{tmp_path}/x.npz", options=LoadOptions(clip_actions=True))
    assert np.abs(data.actions).max() == 1.0

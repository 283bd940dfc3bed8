"""The local Minari store: what is listed, what is read, what is written, and Minari's traps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from seqrl import spaces as sp
from seqrl.datasets import LoadOptions, list_local, load_dataset
from seqrl.datasets.catalog import parse_uri
from seqrl.datasets.minari_store import is_valid_id
from seqrl.datasets.minari_writer import unflatten_observations
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from tests.datasets.builders import LENGTHS, assert_same, trajectories

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Minari, of missing metadata
FORMATS = ["hdf5", "arrow", "parquet"]


def load(name: str = "test/toy-v0", **options: Any) -> Trajectories:
    return load_dataset(f"minari:{name}", options=LoadOptions(cache=False, **options))


def edit_metadata(home: Path, name: str = "test/toy-v0", **changes: Any) -> None:
    path = home / "minari" / name / "data/metadata.json"
    meta = json.loads(path.read_text())
    meta.update(changes)
    path.write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))


def sampled(obs_space: Any, action_space: Any, lengths: tuple[int, ...] = LENGTHS) -> Trajectories:
    """Random data of any spaces."""
    obs_space.seed(0)
    action_space.seed(0)
    n, e = sum(lengths), len(lengths)

    def stacked(space: Any, values: list[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {k: stacked(s, [v[k] for v in values]) for k, s in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(stacked(s, [v[i] for v in values]) for i, s in enumerate(space.spaces))
        return np.stack([np.asarray(v) for v in values])

    def column(space: Any, k: int) -> Any:
        return stacked(space, [space.sample() for _ in range(k)])

    ends = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    return Trajectories.from_arrays(
        column(obs_space, n),
        column(action_space, n),
        np.arange(n) / 7,
        ends,
        final_observations=column(obs_space, e),
        observation_space=obs_space,
        action_space=action_space,
    )


SPACES: dict[str, tuple[Any, Any]] = {
    "dict": (
        spaces.Dict(
            position=spaces.Box(-1, 1, (2, 2), np.float64),
            cue=spaces.Discrete(3, start=1),
            bits=spaces.MultiBinary(4),
            inner=spaces.Dict(a=spaces.Box(0, 9, (1,), np.int64)),
        ),
        spaces.Box(-2, 2, (2,), np.float32),
    ),
    "tuple": (
        spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (3,), np.float32))),
        spaces.Discrete(3, start=2),
    ),
    "multidiscrete": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([2, 5, 3])),
    "discrete": (spaces.Discrete(6), spaces.MultiBinary(3)),
    "image": (spaces.Box(0, 255, (36, 40, 3), np.uint8), spaces.Discrete(2)),
    "small image": (spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Discrete(2)),
    "float64 matrix": (spaces.Box(-9, 9, (2, 3), np.float64), spaces.Box(-1, 1, (2, 2))),
}


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", FORMATS)
def test_writing_and_reading_back_is_lossless(data_format: str) -> None:
    if data_format != "hdf5":
        pytest.importorskip("pyarrow")
    from seqrl.datasets.minari_store import write_minari

    data = trajectories()
    write_minari(data, "test/toy-v0", data_format=data_format, author="someone")
    back = load()
    assert_same(back, dataclasses.replace(data, task=back.task))
    assert back.task == dataclasses.replace(data.task, reference_source="minari metadata")


@pytest.mark.parametrize("kind", SPACES)
def test_every_supported_space_survives_minari(kind: str) -> None:
    data = sampled(*SPACES[kind])
    data.to_minari("test/toy-v0")
    back = load()
    assert back.observation_space == data.observation_space
    assert back.action_space == data.action_space
    assert_same(back, data, task=False)
    assert back.observations.dtype == (np.uint8 if "image" in kind else np.float32)


@pytest.mark.parametrize("kind", ["dict", "tuple", "multidiscrete", "image"])
def test_every_supported_space_survives_arrow(kind: str) -> None:
    pytest.importorskip("pyarrow")
    from seqrl.datasets.minari_store import write_minari

    data = sampled(*SPACES[kind])
    write_minari(data, "test/toy-v0", data_format="arrow")
    assert_same(load(), data, task=False)


@pytest.mark.parametrize("kind", SPACES)
def test_unflattening_inverts_flattening(kind: str) -> None:
    data = sampled(*SPACES[kind])
    space = data.observation_space
    again = sp.flatten_observations(space, unflatten_observations(space, data.observations))
    np.testing.assert_array_equal(again, data.observations)


def test_minari_itself_reads_what_is_written() -> None:
    import minari

    data = trajectories()
    data.to_minari("test/toy-v0")
    dataset = minari.load_dataset("test/toy-v0")
    episodes = list(dataset.iterate_episodes())
    assert dataset.total_steps == data.num_steps
    for i, episode in enumerate(episodes):
        mine = data[i]
        np.testing.assert_array_equal(episode.observations, mine.observations)  # T+1 rows
        np.testing.assert_array_equal(episode.actions, mine.actions)
        np.testing.assert_array_equal(episode.rewards, mine.rewards)
        assert bool(episode.terminations[-1]) == mine.terminated
        assert bool(episode.truncations[-1]) == mine.truncated
        np.testing.assert_array_equal(
            episode.infos["optimal_action"][:-1], mine.extras["optimal_action"]
        )
    env = dataset.recover_environment()
    assert env.spec is not None
    assert (env.spec.id, env.spec.kwargs) == ("Pendulum-v1", {"g": 9.0})
    scores = dataset.storage.metadata
    assert (scores["ref_min_score"], scores["ref_max_score"]) == (-3.0, 5.5)


@pytest.mark.parametrize("kind", ["dict", "float64 matrix", "multidiscrete"])
def test_the_direct_reader_agrees_with_minari(kind: str, home: Path) -> None:
    sampled(*SPACES[kind]).to_minari("test/toy-v0")
    direct = load()
    from seqrl.datasets import minari_generic, minari_store

    raw = minari_generic.read_columns(minari_store.store_folder() / "test/toy-v0/data", "x", (), ())
    np.testing.assert_array_equal(direct.observations, raw.observations)
    np.testing.assert_array_equal(direct.final_observations, raw.final_observations)
    np.testing.assert_array_equal(direct.actions, raw.actions)


# --- reading ----------------------------------------------------------------------------------


def test_dict_entries_can_be_selected() -> None:
    data = sampled(*SPACES["dict"])
    data.to_minari("test/toy-v0")
    part = load(obs_keys=("position", "cue"))
    assert part.task.observation.keys == ("cue", "position")
    np.testing.assert_array_equal(
        part.observations,
        np.concatenate([data.observations[:, 4:7], data.observations[:, 8:]], axis=1),
    )
    with pytest.raises(SeqrlError, match="no observation entry 'cues'"):
        load(obs_keys=("cues",))


def test_an_image_can_be_selected_from_a_dict_with_text(home: Path) -> None:
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    frames = np.arange(4 * 147, dtype=np.uint8).reshape(4, 7, 7, 3)
    minari.create_dataset_from_buffers(
        "test/grid-v0",
        buffer=[
            EpisodeBuffer(
                observations={"image": frames, "mission": ["go"] * 4},
                actions=np.zeros(3, np.int64),
                rewards=np.ones(3),
                terminations=np.arange(3) == 2,
                truncations=np.zeros(3, bool),
            )
        ],
        observation_space=spaces.Dict(image=image, mission=spaces.Text(9)),
        action_space=spaces.Discrete(7),
    )
    with pytest.raises(SeqrlError, match="neither numbers nor images") as error:
        load("test/grid-v0")
    assert "image" in str(error.value.hint)
    data = load("test/grid-v0", obs_keys=("image",))
    np.testing.assert_array_equal(data.observations, frames[:3])
    np.testing.assert_array_equal(data.final_observations[0], frames[3])
    assert data.task.observation.keys == ("image",)


def test_selecting_keys_of_a_plain_space_is_refused() -> None:
    trajectories().to_minari("test/toy-v0")
    with pytest.raises(SeqrlError, match="observations are Box, not Dict"):
        load(obs_keys=("x",))


def test_episodes_without_a_final_observation_are_reported(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    with h5py.File(home / "minari/test/toy-v0/data/main_data.hdf5", "a") as file:
        for i in (0, 3):
            rows = file[f"episode_{i}/observations"]
            rows.resize((len(rows) - 1, 3))
    data = load()
    assert data.final_known is not None
    assert data.final_known.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(data.final_observations[0], data.observations[3])
    assert "missing in 3 of 4 episodes" in data.notes["final_observations"]


def test_wrong_totals_in_the_metadata_do_not_matter(home: Path) -> None:
    data = trajectories()
    data.to_minari("test/toy-v0")
    for total in (5, 100):
        edit_metadata(home, total_steps=total)
        assert_same(load(), data, task=False)


def test_flags_stored_as_integers_are_read(home: Path) -> None:
    data = trajectories()
    data.to_minari("test/toy-v0")
    with h5py.File(home / "minari/test/toy-v0/data/main_data.hdf5", "a") as file:
        for group in file.values():
            for key in ("terminations", "truncations"):
                values = group[key][:].astype(np.int8)
                del group[key]
                group[key] = values
    assert_same(load(), data, task=False)


def test_observations_of_another_shape_are_refused(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    with h5py.File(home / "minari/test/toy-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        file["episode_1/observations"] = np.zeros((2, 4), np.float32)
    with pytest.raises(SeqrlError, match=r"episode 1 has entries of shape \(4,\) and \(2,\)"):
        load()
    with h5py.File(home / "minari/test/toy-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros((3, 2), np.float32)
    with pytest.raises(SeqrlError, match="episode 0 has 4 rewards, 3 actions and 5 observations"):
        load()


def test_lossy_jpeg_images_are_read_too(home: Path) -> None:
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    space = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    frames = np.full((4, 40, 40, 3), 100, np.uint8)
    minari.create_dataset_from_buffers(
        "test/photo-v0",
        buffer=[
            EpisodeBuffer(
                observations=frames,
                actions=np.zeros(3, np.int64),
                rewards=np.ones(3),
                terminations=np.arange(3) == 2,
                truncations=np.zeros(3, bool),
            )
        ],
        observation_space=space,
        action_space=spaces.Discrete(2),
    )
    data = load("test/photo-v0")
    assert data.observations.dtype == np.uint8
    assert np.abs(data.observations.astype(int) - 100).max() < 10


def test_a_limit_on_a_terminal_step_counts_as_terminated(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    with h5py.File(home / "minari/test/toy-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/truncations"][-1] = True
    data = load()
    assert bool(data.terminations[4])
    assert not data.truncations[4]


def test_the_evaluation_environment_is_preferred(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    spec = {"id": "CartPole-v1", "entry_point": "gymnasium.envs:X", "kwargs": {"render_mode": "x"}}
    edit_metadata(home, eval_env_spec=json.dumps({**spec, "max_episode_steps": 77}))
    task = load().task
    assert (task.env_id, task.env_kwargs, task.max_episode_steps) == ("CartPole-v1", {}, 77)


def test_third_party_environments_carry_their_package(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    spec = {"id": "Maze-v3", "entry_point": "some_robots.envs.maze:Maze", "max_episode_steps": 9}
    edit_metadata(home, env_spec=json.dumps(spec))
    assert load().task.env_id == "some_robots:Maze-v3"
    edit_metadata(home, env_spec=None)
    assert load().task.env_id is None


def test_scores_are_unknown_unless_both_are_there(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    edit_metadata(home, ref_min_score=None)
    assert load().task.reference_scores is None


# --- the store --------------------------------------------------------------------------------


def test_a_missing_dataset_names_folder_close_names_and_download(home: Path) -> None:
    trajectories().to_minari("test/toy-v0")
    with pytest.raises(SeqrlError) as error:
        load("test/toy-v1")
    assert error.value.message == f"dataset 'test/toy-v1' is not in {home / 'minari'}"
    assert error.value.hint == "close: test/toy-v0; or download: add --download"


def test_nothing_is_downloaded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    asked: list[str] = []

    def fake(name: str) -> None:
        asked.append(name)
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(minari, "download_dataset", fake)
    for name in ("test/far-v0", "minari:test/far-v0"):
        with pytest.raises(SeqrlError, match="is not in"):
            load_dataset(name)
    assert asked == []
    with pytest.raises(SeqrlError, match="cannot be downloaded: Name or service not known"):
        load("test/far-v0", download=True)
    assert asked == ["test/far-v0"]


def test_ids_are_checked_before_anything_is_touched(home: Path) -> None:
    good = ["toy-v0", "test/toy-v0", "a_b/c-d/toy-v12"]
    bad = ["toy", "test/toy", "../toy-v0", "test/../toy-v0", "/toy-v0", "a b/toy-v0", "test//x-v0"]
    assert [is_valid_id(i) for i in good + bad] == [True] * 3 + [False] * len(bad)
    for name in bad:
        with pytest.raises(SeqrlError, match="is no Minari dataset id"):
            trajectories().to_minari(name)
    assert not (home / "minari").exists()


def test_listing_survives_misconfigured_entries(home: Path) -> None:
    data = trajectories()
    data.to_minari("test/toy-v0")
    data.to_minari("test/moved-v0")
    (home / "minari/test/moved-v0").rename(home / "minari/test/elsewhere-v0")
    (home / "minari/test/noversion/data").mkdir(parents=True)
    (home / "minari/test/empty-v0/data").mkdir(parents=True)
    (home / "minari/.hidden/data").mkdir(parents=True)
    found = {d.id: d for d in list_local()}
    assert set(found) == {
        "test/toy-v0",
        "test/elsewhere-v0",
        "test/noversion",
        "test/empty-v0",
    }
    toy = found["test/toy-v0"]
    assert (toy.episodes, toy.steps, toy.env_id) == (4, 15, "Pendulum-v1")
    assert toy.problem is None
    assert all(d.problem for name, d in found.items() if name != "test/toy-v0")
    import minari

    with pytest.raises(TypeError):  # Minari's own listing dies of it
        minari.list_local_datasets()


def test_no_store_is_an_empty_list() -> None:
    assert list_local() == []


def test_existing_data_are_never_overwritten() -> None:
    trajectories().to_minari("test/toy-v0")
    with pytest.raises(SeqrlError, match="dataset 'test/toy-v0' exists in") as error:
        trajectories().select([0]).to_minari("test/toy-v0")
    assert "another name or version" in str(error.value.hint)
    assert len(load()) == 4


def test_a_failed_write_leaves_nothing_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    trajectories().to_minari("other/toy-v0")
    monkeypatch.setattr(HDF5Storage, "update_episodes", fail)
    with pytest.raises(SeqrlError, match=r"cannot be written to .*: No space left"):
        trajectories().to_minari("test/deep/toy-v0")
    assert not (home / "minari/test").exists()
    assert [d.id for d in list_local()] == ["other/toy-v0"]
    monkeypatch.undo()


def test_unknown_formats_and_metadata_are_refused() -> None:
    from seqrl.datasets.minari_store import write_minari

    with pytest.raises(SeqrlError, match="storage 'hdf' is not one of"):
        write_minari(trajectories(), "test/toy-v0", data_format="hdf")
    with pytest.raises(SeqrlError, match="no entry 'autor'") as error:
        write_minari(trajectories(), "test/toy-v0", autor="me")
    assert "author" in str(error.value.hint)


def test_an_environment_that_is_not_installed_is_still_recorded() -> None:
    data = trajectories(env_id="some_robots:Maze-v3")
    data.to_minari("test/toy-v0")
    back = load()
    assert (back.task.env_id, back.task.env_kwargs) == ("some_robots:Maze-v3", {"g": 9.0})


def test_the_catalogue_parses_ids_whole() -> None:
    assert parse_uri("minari:a/b-v0").name == "a/b-v0"

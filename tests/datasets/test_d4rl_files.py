"""D4RL files: the published rules, the quirks, and what one reads from file names."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.datasets.d4rl import split_episodes
from seqrl.datasets.d4rl_names import family_of, reference_scores
from seqrl.datasets.splitting import subtask_increase
from seqrl.errors import SeqrlError
from tests.datasets.builders import LENGTHS, assert_same, flat_arrays, trajectories, write_hdf5

FRESH = LoadOptions(cache=False)


def at(n: int, *index: int) -> np.ndarray:
    flags = np.zeros(n, dtype=bool)
    flags[list(index)] = True
    return flags


def lengths(**data: np.ndarray) -> list[int]:
    split = split_episodes(data)
    return (split.stops - split.starts).tolist()


# --- splitting --------------------------------------------------------------------------------


def test_terminals_and_timeouts_end_episodes_and_the_tail_is_dropped() -> None:
    split = split_episodes({"terminals": at(12, 3), "timeouts": at(12, 9)})
    assert (split.stops - split.starts).tolist() == [4, 6]
    assert split.terminated.tolist() == [True, False]
    assert split.tail == 2


def test_without_timeouts_the_counter_restarts_at_zero() -> None:
    """The official code restarts it at 1 and so gives 5, 4, 4 and drops 2."""
    split = split_episodes({"terminals": at(15)}, max_episode_steps=5)
    assert (split.stops - split.starts).tolist() == [5, 5, 5]
    assert split.tail == 0


def test_a_terminal_restarts_the_step_counter() -> None:
    split = split_episodes({"terminals": at(12, 2)}, max_episode_steps=4)
    assert (split.stops - split.starts).tolist() == [3, 4, 4]
    assert split.tail == 1


def test_with_timeouts_present_the_limit_does_not_cut() -> None:
    split = split_episodes({"terminals": at(9), "timeouts": at(9, 8)}, max_episode_steps=3)
    assert (split.stops - split.starts).tolist() == [9]


def test_the_tail_can_be_kept_as_a_truncated_episode() -> None:
    split = split_episodes({"terminals": at(8, 3), "timeouts": at(8)}, keep_tail=True)
    assert (split.stops - split.starts).tolist() == [4, 4]
    assert split.terminated.tolist() == [True, False]


def test_a_step_with_both_flags_counts_as_terminated() -> None:
    split = split_episodes({"terminals": at(4, 3), "timeouts": at(4, 3)})
    assert split.terminated.tolist() == [True]


def test_a_stream_without_any_end_is_refused() -> None:
    with pytest.raises(SeqrlError, match="no episode end among 4 steps"):
        split_episodes({"terminals": at(4), "timeouts": at(4)})


def test_runs_of_goal_terminals_give_one_step_episodes_unless_merged() -> None:
    position = np.stack([np.arange(12.0), np.zeros(12)], axis=1)
    position[8:] += 100  # a reset
    data = {"terminals": at(12, 5, 6, 7), "timeouts": at(12, 11), "observations": position}
    assert lengths(**data) == [6, 1, 1, 4]
    merged = split_episodes(data, goal_terminals="merge")
    assert merged.starts.tolist() == [0, 8]
    assert merged.stops.tolist() == [6, 12]
    assert merged.terminated.tolist() == [True, False]
    assert "2 steps between episodes dropped" in merged.describe()


def test_merging_uses_next_observations_where_there_are_any() -> None:
    position = np.stack([np.arange(6.0), np.zeros(6)], axis=1)
    following = position + np.array([1, 0])
    position[3:] += 0.5  # a small jump, which the distance test could not see
    following[3:] += 0.5
    data = {"terminals": at(6, 5), "observations": position, "next_observations": following}
    assert split_episodes(data, goal_terminals="merge").starts.tolist() == [0, 3]


def test_kitchen_delta_pays_every_subtask_once() -> None:
    rewards = np.array([0, 1, 1, 2, 1, 2, 3, 0, 0, 4], float)
    starts = np.array([0, 7, 10])
    assert subtask_increase(rewards, starts).tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0, 4]


# --- files ------------------------------------------------------------------------------------


def test_a_file_becomes_episodes_with_their_final_observations(tmp_path: Path) -> None:
    arrays = flat_arrays()
    data = load_dataset(write_hdf5(tmp_path / "toy.hdf5", arrays), options=FRESH)
    assert data.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(data.observations, arrays["observations"])
    ends = np.cumsum(LENGTHS) - 1
    np.testing.assert_array_equal(data.final_observations, arrays["next_observations"][ends])
    np.testing.assert_array_equal(data.terminations, arrays["terminals"])
    np.testing.assert_array_equal(data.truncations, arrays["timeouts"])
    assert data.final_known is None
    assert data.notes["split"] == (
        "4 episodes: 2 terminated, 2 truncated, tail of 0 steps dropped, 1 one-step episodes"
    )


@pytest.mark.parametrize("chunks", [None, (5, 1), (3, 3)])
def test_final_observations_are_found_in_any_chunking(
    tmp_path: Path, chunks: tuple[int, int] | None
) -> None:
    arrays = flat_arrays((9, 2, 30, 1, 1, 17))
    path = tmp_path / "toy.hdf5"
    uri = write_hdf5(path, arrays)
    with h5py.File(path, "a") as file:
        del file["next_observations"]
        file.create_dataset("next_observations", data=arrays["next_observations"], chunks=chunks)
    data = load_dataset(uri, options=FRESH)
    ends = np.cumsum([9, 2, 30, 1, 1, 17]) - 1
    np.testing.assert_array_equal(data.final_observations, arrays["next_observations"][ends])


def test_scalars_metadata_and_columns_of_one_entry_are_no_obstacle(tmp_path: Path) -> None:
    arrays = flat_arrays()
    odd = dict(arrays)
    odd["rewards"] = arrays["rewards"][:, None]
    odd["terminals"] = arrays["terminals"][:, None].astype(np.float32)
    odd["metadata/algorithm"] = np.bytes_("SAC")
    odd["metadata/iteration"] = 5
    odd["metadata/policy/fc0/weight"] = np.zeros((7, 7))
    odd["infos/qpos"] = np.zeros((len(arrays["rewards"]), 2))
    plain = load_dataset(write_hdf5(tmp_path / "plain.hdf5", arrays), options=FRESH)
    data = load_dataset(write_hdf5(tmp_path / "odd.hdf5", odd), options=FRESH)
    assert data.fingerprint == plain.fingerprint
    assert data.extras == {}


def test_float64_files_are_cast_to_float32(tmp_path: Path) -> None:
    arrays = flat_arrays()
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
    data = load_dataset(write_hdf5(tmp_path / "wide.hdf5", wide), options=FRESH)
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    np.testing.assert_array_equal(data.actions, arrays["actions"])


def test_the_tail_is_reported_and_kept_on_request(tmp_path: Path) -> None:
    arrays = flat_arrays()
    for key in ("terminals", "timeouts"):
        arrays[key][-1] = False
    uri = write_hdf5(tmp_path / "toy.hdf5", arrays)
    data = load_dataset(uri, options=FRESH)
    assert data.lengths.tolist() == list(LENGTHS[:-1])
    assert "tail of 3 steps dropped" in data.notes["split"]
    kept = load_dataset(uri, options=LoadOptions(cache=False, keep_tail=True))
    assert kept.lengths.tolist() == list(LENGTHS)
    assert bool(kept.truncations[-1])


def test_a_missing_time_limit_is_taken_from_the_environment(tmp_path: Path) -> None:
    arrays = flat_arrays((400,))
    arrays["terminals"][:] = False
    del arrays["timeouts"]
    uri = write_hdf5(tmp_path / "mine.hdf5", arrays)
    with pytest.raises(SeqrlError, match="no episode end") as error:
        load_dataset(uri, options=FRESH)
    assert "--keep-tail" in str(error.value.hint)
    data = load_dataset(uri, options=LoadOptions(cache=False, env="Pendulum-v1"))
    assert data.lengths.tolist() == [200, 200]
    assert data.task.max_episode_steps == 200


def test_without_next_observations_the_last_one_is_repeated_and_marked(tmp_path: Path) -> None:
    arrays = flat_arrays()
    del arrays["next_observations"]
    data = load_dataset(write_hdf5(tmp_path / "toy.hdf5", arrays), options=FRESH)
    ends = np.cumsum(LENGTHS) - 1
    np.testing.assert_array_equal(data.final_observations, arrays["observations"][ends])
    assert data.final_known is not None
    assert not data.final_known.any()


def test_kitchen_files_end_at_terminals_alone(tmp_path: Path) -> None:
    arrays = flat_arrays((300, 20))
    arrays["terminals"] = (arrays["terminals"] | arrays["timeouts"]).astype(np.float32)
    del arrays["timeouts"], arrays["next_observations"]
    arrays["rewards"] = np.minimum(np.arange(320) // 60, 4).astype(np.float32)
    uri = write_hdf5(tmp_path / "kitchen_microwave_kettle_light_slider-v0.hdf5", arrays)
    data = load_dataset(uri, options=FRESH)
    assert data.lengths.tolist() == [300, 20]
    assert data.task.reference_scores == (0.0, 4.0)
    delta = load_dataset(uri, options=LoadOptions(cache=False, kitchen_rewards="delta"))
    assert delta.returns.tolist() == [4.0, 4.0]


def test_antmaze_files_can_be_merged(tmp_path: Path) -> None:
    arrays = flat_arrays((12,))
    arrays["observations"][:, 0] = np.arange(12) / 10
    arrays["observations"][:, 1] = 0
    arrays["observations"][8:, 0] += 50
    arrays["terminals"], arrays["timeouts"] = at(12, 5, 6, 7), at(12, 11)
    del arrays["next_observations"]
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    uri = write_hdf5(tmp_path / name, arrays, chunks=True)
    plain = load_dataset(uri, options=FRESH)
    assert plain.lengths.tolist() == [6, 1, 1, 4]
    merged = load_dataset(uri, options=LoadOptions(cache=False, goal_terminals="merge"))
    assert merged.lengths.tolist() == [6, 4]
    np.testing.assert_array_equal(
        merged.observations, arrays["observations"][[0, 1, 2, 3, 4, 5, 8, 9, 10, 11]]
    )
    assert plain.task.env_id is None
    assert plain.task.reference_scores == (0.0, 1.0)


def test_discrete_actions_and_image_observations_keep_their_types(tmp_path: Path) -> None:
    arrays = flat_arrays()
    n = len(arrays["rewards"])
    arrays["actions"] = (np.arange(n) % 3).astype(np.int32)
    arrays["observations"] = np.arange(n * 4 * 4 * 3, dtype=np.uint8).reshape(n, 4, 4, 3)
    arrays["next_observations"] = arrays["observations"][::-1]
    data = load_dataset(write_hdf5(tmp_path / "toy.hdf5", arrays), options=FRESH)
    assert data.task.action.describe() == "Discrete(3)"
    assert data.observations.dtype == np.uint8
    assert data.task.observation.kind == "image"


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "env", "limit"),
    [
        ("hopper_medium-v2", "Hopper-v4", 1000),
        ("halfcheetah_medium_expert-v2", "HalfCheetah-v4", 1000),
        ("walker2d_full_replay-v2", "Walker2d-v4", 1000),
        ("ant_medium-v2", "Ant-v4", 1000),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed", None, 1000),
        ("maze2d-umaze-sparse-v1", None, 300),
        ("maze2d-large-dense-v1", None, 800),
        ("mini_kitchen_microwave_kettle_light_slider-v0", None, 280),
        ("pen-v0_demos_clipped", "gymnasium_robotics:AdroitHandPen-v1", 100),
    ],
)
def test_published_file_names_are_known(stem: str, env: str | None, limit: int) -> None:
    family = family_of(stem)
    assert family is not None
    assert (family.env_id, family.max_episode_steps) == (env, limit)


def test_ant_needs_contact_forces_for_its_111_observations() -> None:
    family = family_of("ant_medium-v2")
    assert family is not None
    assert family.env_kwargs == {"use_contact_forces": True}


def test_reference_scores_go_by_data_set_then_family() -> None:
    assert reference_scores("hopper_medium-v2") == (-20.272305, 3234.3)
    assert reference_scores("maze2d-umaze-sparse-v1") == (23.85, 161.86)
    assert reference_scores("maze2d-umaze-dense-v0") != reference_scores("maze2d-umaze-dense-v1")
    assert reference_scores("pen-v0_expert_clipped") == (96.262799, 3076.8331017826877)
    assert reference_scores("mine") is None


def test_the_guessed_environment_is_said_and_can_be_overridden(tmp_path: Path) -> None:
    uri = write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays())
    data = load_dataset(uri, options=FRESH)
    assert data.notes["env_guess"] == (
        "environment guessed from file name: Hopper-v4; --env overrides"
    )
    assert data.task.env_id == "Hopper-v4"
    other = load_dataset(uri, options=LoadOptions(cache=False, env="Hopper-v5"))
    assert other.task.env_id == "Hopper-v5"
    assert "env_guess" not in other.notes
    assert other.task.reference_scores == (-20.272305, 3234.3)


def test_an_unknown_name_has_no_environment(tmp_path: Path) -> None:
    data = load_dataset(write_hdf5(tmp_path / "mine.hdf5", flat_arrays()), options=FRESH)
    assert data.task.env_id is None
    assert "--env" in data.notes["env_guess"]


# --- writing ----------------------------------------------------------------------------------


def test_writing_and_reading_back_is_lossless(tmp_path: Path) -> None:
    data = trajectories()
    path = data.to_d4rl(tmp_path / "new" / "toy.hdf5")
    assert_same(load_dataset(f"d4rl:{path}", options=FRESH), data)


def test_a_written_file_has_the_published_layout(tmp_path: Path) -> None:
    data = trajectories()
    with h5py.File(data.to_d4rl(tmp_path / "toy.hdf5")) as file:
        n = data.num_steps
        for key in ("observations", "actions", "rewards", "terminals", "timeouts"):
            assert len(file[key]) == n
        following = file["next_observations"][:]
    np.testing.assert_array_equal(following[:3], data.observations[1:4])
    np.testing.assert_array_equal(following[data.episode_starts[1:] - 1], data.final_observations)


def test_only_the_episodes_in_use_are_written(tmp_path: Path) -> None:
    data = trajectories().select([2, 0])
    back = load_dataset(f"d4rl:{data.to_d4rl(tmp_path / 'toy.hdf5')}", options=FRESH)
    assert back.lengths.tolist() == [7, 4]
    assert back.returns.tolist() == data.returns.tolist()


def test_an_unwritable_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqrlError, match="cannot be written"):
        trajectories().to_d4rl(tmp_path / "file" / "toy.hdf5")

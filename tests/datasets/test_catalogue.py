"""Names and URIs, the options of loading, and sources that belong together."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqrl.datasets import CATALOGUE, LoadOptions, load_dataset, load_sources, parse_uri
from seqrl.datasets.catalog import DatasetURI, default_preset
from seqrl.errors import SeqrlError
from tests.datasets.builders import flat_arrays, trajectories, write_hdf5

TOY = "oracle:seqrl/TMaze-v0?limit=5&episodes=4"


# --- URIs -------------------------------------------------------------------------------------


def test_values_of_parameters() -> None:
    uri = parse_uri("oracle:seqrl/X-v0?a=3&b=1e-3&c=true&d=None&e=long%20word&f=-2&g=v1.2.3")
    assert uri.params == {
        "a": 3, "b": 1e-3, "c": True, "d": None, "e": "long word", "f": -2, "g": "v1.2.3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["d4rl:/a dir/x?y=1.hdf5", "oracle:m.n:Env-v0?a=1&b=x", "minari:a/b-v0", "npz:x.npz"]
)
def test_text_form_parses_back(text: str) -> None:
    uri = parse_uri(text)
    assert parse_uri(str(uri)) == uri


def test_paths_are_taken_whole() -> None:
    assert parse_uri("d4rl:/a?b=1") == DatasetURI("d4rl", "/a?b=1")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("foo:bar", "is not a dataset URI", "seqrl list datasets"),
        ("minar:x", "is not a dataset URI", "did you mean 'minari'"),
        ("oracle:", "names no dataset", "oracle:NAME"),
        ("oracle:X-v0?limit", "'limit' in 'oracle:X-v0?limit' is not key=value", "&"),
    ],
)
def test_malformed_uris(text: str, message: str, hint: str) -> None:
    with pytest.raises(SeqrlError) as error:
        parse_uri(text)
    assert message in error.value.message
    assert hint in str(error.value.hint)


# --- names ------------------------------------------------------------------------------------


def test_an_unknown_name_says_where_it_looked_and_what_to_do(home: Path) -> None:
    with pytest.raises(SeqrlError) as error:
        load_dataset("tmaze-3")
    assert error.value.message == f"dataset 'tmaze-3' is not in {home / 'minari'}"
    hint = str(error.value.hint)
    assert hint.startswith("close: tmaze-30")
    assert 'make it: --data "oracle:seqrl/TMaze-v0?limit=3"' in hint
    assert hint.endswith("or download: add --download")


def test_bare_file_names_are_told_their_scheme() -> None:
    for name, uri in (("a/x.hdf5", "d4rl:a/x.hdf5"), ("x.npz", "npz:x.npz")):
        with pytest.raises(SeqrlError) as error:
            load_dataset(name)
        assert error.value.hint == f"write {uri}"


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "hopper_medium-v2.hdf5", flat_arrays())
    with pytest.raises(SeqrlError) as error:
        load_dataset(f"d4rl:{tmp_path}/hoper_medium-v2.hdf5")
    assert error.value.hint == f"close in {tmp_path}: hopper_medium-v2.hdf5"
    with pytest.raises(SeqrlError, match="is a folder"):
        load_dataset(f"d4rl:{tmp_path}")


def test_every_catalogue_entry_loads_under_its_own_name() -> None:
    for name, entry in CATALOGUE.items():
        uri = parse_uri(entry.uri)
        if uri.scheme in ("incontext", "histories"):  # large: a few of their tasks
            few = {**uri.params, "tasks": 3} | ({"histories": 2} if "room" in name else {})
            data = load_dataset(str(dataclasses.replace(uri, params=few)))
            assert data.episode_task is not None
            assert set(data.episode_task) == {0, 1, 2}
        elif name != "tmaze-90":  # the same with more episodes
            assert load_dataset(name).task.name == name
    data = load_dataset("tmaze-30")
    assert len(data) == 2000
    assert data.task.env_kwargs == {"limit": 30}
    assert parse_uri(CATALOGUE["tmaze-90"].uri).params["segments"] == 3


def test_catalogue_entries_name_presets() -> None:
    assert default_preset("tmaze-30", "dt") == "dt/tmaze-30"
    assert default_preset("tmaze-30", "nobody") is None
    assert default_preset("minari:a/b-v0", "dt") is None


def test_a_bare_name_may_be_a_local_minari_id() -> None:
    trajectories().to_minari("test/toy-v0")
    assert load_dataset("test/toy-v0").source == "minari:test/toy-v0"


def test_listing_names_imports_nothing_heavy() -> None:
    code = (
        "import sys; from seqrl.datasets.catalog import CATALOGUE, parse_uri, LoadOptions\n"
        "parse_uri(CATALOGUE['tmaze-30'].uri); LoadOptions()\n"
        "print([m for m in ('minari', 'h5py', 'torch', 'gymnasium', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_loading_data_needs_no_torch() -> None:
    code = (
        "import sys; from seqrl.datasets import load_dataset, inspect, format_report\n"
        "format_report(inspect(load_dataset('tmaze-smoke')))\n"
        "print('torch' in sys.modules, 'minari' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False False"


# --- options ----------------------------------------------------------------------------------


def test_best_delayed_scaled_and_subset() -> None:
    data = trajectories()
    best = load_dataset(data, options=LoadOptions(best=50))
    assert best.num_steps <= 0.5 * data.num_steps
    assert best.notes["best"] == 50
    assert min(best.returns) >= np.sort(data.returns)[-len(best)]
    level = float(np.median(data.returns))
    good = load_dataset(data, options=LoadOptions(min_return=level))
    assert min(good.returns) == min(r for r in data.returns if r >= level)
    assert len(good) == (data.returns >= level).sum()
    assert good.stats.obs_mean == data.stats.obs_mean
    with pytest.raises(SeqrlError, match="no episode of return 1e\\+09 or more"):
        load_dataset(data, options=LoadOptions(min_return=1e9))
    first = load_dataset(data, options=LoadOptions(episodes=2))
    assert first.lengths.tolist() == [4, 1]
    scaled = load_dataset(data, options=LoadOptions(reward_scale=2, reward_shift=1))
    np.testing.assert_allclose(scaled.rewards, 2 * data.rewards + 1)
    np.testing.assert_allclose(scaled.returns, 2 * data.returns + data.lengths, rtol=1e-5)


def test_delayed_reward_keeps_returns_and_makes_returns_to_go_constant() -> None:
    data = trajectories()
    late = load_dataset(data, options=LoadOptions(delayed=True))
    np.testing.assert_allclose(late.returns, data.returns, rtol=1e-6)
    for i in range(len(late)):
        episode = late[i]
        assert not episode.rewards[:-1].any()
        assert len(set(episode.returns_to_go.tolist())) == 1


def test_options_leave_the_given_data_alone() -> None:
    data = trajectories()
    before = data.fingerprint
    other = load_dataset(
        data, options=LoadOptions(best=40, delayed=True, reward_scale=3, env="CartPole-v1")
    )
    assert data.fingerprint == before
    assert data.task.env_id == "Pendulum-v1"
    assert "best" not in data.notes
    assert other.task.env_id == "CartPole-v1"
    assert other.task.max_episode_steps == 500


def test_environment_arguments_are_added_or_replaced() -> None:
    data = trajectories()
    added = load_dataset(data, options=LoadOptions(env_kwargs={"x": 1}))
    assert added.task.env_kwargs == {"g": 9.0, "x": 1}
    fresh = load_dataset(data, options=LoadOptions(env="Pendulum-v1", env_kwargs={"x": 1}))
    assert fresh.task.env_kwargs == {"x": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"best": 0}, {"best": 101}, {"episodes": 0}, {"goal_terminals": "drop"},
        {"kitchen_rewards": "x"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SeqrlError, match=f"{next(iter(wrong))} is"):
        LoadOptions(**wrong)  # type: ignore[arg-type]


def test_the_fingerprint_follows_the_contents() -> None:
    data = load_dataset(TOY)
    assert load_dataset(TOY).fingerprint == data.fingerprint
    changed = [
        load_dataset(TOY, options=LoadOptions(delayed=True)),
        load_dataset(TOY, options=LoadOptions(reward_scale=2)),
        load_dataset(TOY, options=LoadOptions(episodes=2)),
        load_dataset([TOY, TOY]),
    ]
    prints = {d.fingerprint for d in changed}
    # All rewards of this data come at the last step: delaying them changes nothing.
    assert changed[0].fingerprint == data.fingerprint
    assert len(prints) == 4
    assert changed[2].compact().fingerprint == data.first(2).compact().fingerprint


# --- several sources --------------------------------------------------------------------------


def test_sources_of_one_task_are_joined_in_order() -> None:
    other = TOY.replace("episodes=4", "episodes=2&seed=5")
    (data,) = load_sources([TOY, other])
    assert len(data) == 6
    assert data.source == f"{TOY} + {other}"
    np.testing.assert_array_equal(data[4].observations, load_dataset(other)[0].observations)
    assert len(data.notes["joined"]) == 2


def test_sources_of_other_tasks_stay_apart_in_order() -> None:
    cart = "random:CartPole-v1?episodes=2"
    tasks = load_sources([TOY, cart, TOY])
    assert [t.task.env_id for t in tasks] == ["seqrl/TMaze-v0", "CartPole-v1"]
    assert [len(t) for t in tasks] == [8, 2]
    with pytest.raises(SeqrlError, match="are different tasks: actions are Discrete"):
        load_dataset([TOY, cart])


def test_environments_with_other_arguments_are_other_tasks() -> None:
    assert len(load_sources([TOY, TOY.replace("limit=5", "limit=6")])) == 2


def test_best_of_joined_sources_keeps_the_statistics_of_all_steps() -> None:
    one = trajectories()
    two = dataclasses.replace(one, observations=one.observations + 1, validated=False)
    (best,) = load_sources([one, two], LoadOptions(best=30))
    (whole,) = load_sources([one, two])
    assert best.num_steps < whole.num_steps
    np.testing.assert_allclose(best.stats.obs_mean, whole.stats.obs_mean, rtol=1e-6)
    assert len(best) == 2 * len(one.best(30))


def test_no_source_is_an_error() -> None:
    with pytest.raises(SeqrlError, match="no dataset given"):
        load_sources([])

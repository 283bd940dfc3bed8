"""Recorded data: the readers against each other and against Minari itself.

These tests look at ``SEQRL_TEST_DATA``, a folder with ``minari/`` and ``d4rl/``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from seqrl.datasets import LoadOptions, load_dataset

DATA = os.environ.get("SEQRL_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="SEQRL_TEST_DATA names no folder with data")
FRESH = LoadOptions(cache=False)
FILE = Path(DATA) / "d4rl" / "hopper_medium-v2.hdf5"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path(DATA) / "minari"))


def test_the_same_recording_through_d4rl_and_minari() -> None:
    flat = load_dataset(f"d4rl:{FILE}", options=FRESH)
    episodes = load_dataset("minari:seqrl/hopper/medium-v0", options=FRESH).first(375).compact()
    assert len(flat) == 375
    assert flat.notes["split"] == (
        "375 episodes: 350 terminated, 25 truncated, tail of 361 steps dropped, 0 one-step episodes"
    )
    for name in (
        *("observations", "actions", "rewards", "terminations", "truncations"),
        *("final_observations", "episode_starts"),
    ):
        np.testing.assert_array_equal(getattr(flat, name), getattr(episodes, name), err_msg=name)
    np.testing.assert_allclose(flat.returns, episodes.returns, rtol=1e-6)
    assert flat.fingerprint == episodes.fingerprint
    assert flat.task.reference_scores == episodes.task.reference_scores == (-20.272305, 3234.3)
    assert (flat.task.env_id, episodes.task.env_id) == ("Hopper-v4", "Hopper-v5")


@pytest.mark.parametrize("name", ["seqrl/cartpole/medium-v0", "seqrl/pendulum/medium-v0"])
def test_the_direct_reader_equals_minaris_iterator(name: str) -> None:
    import minari

    data = load_dataset(f"minari:{name}", options=FRESH)
    dataset = minari.load_dataset(name)
    assert len(data) == dataset.total_episodes
    for i, theirs in enumerate(dataset.iterate_episodes()):
        mine = data[i]
        np.testing.assert_array_equal(mine.observations, theirs.observations)
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        np.testing.assert_array_equal(mine.rewards, theirs.rewards.astype(np.float32))
        assert mine.terminated == bool(theirs.terminations[-1])
        assert mine.truncated == bool(theirs.truncations[-1] and not theirs.terminations[-1])
    seeds = [m["seed"] for m in dataset.storage.get_episode_metadata(range(len(data)))]
    assert data.episode_seeds is not None
    assert data.episode_seeds.tolist() == seeds


def test_published_facts_of_the_recordings() -> None:
    medium = load_dataset("seqrl/hopper/medium-v0", options=FRESH)
    assert (len(medium), medium.num_steps) == (488, 200_271)
    assert round(float(medium.returns.mean())) == 1502
    history = load_dataset("seqrl/hopper/sac-history-v0", options=FRESH)
    assert (len(history), history.num_steps) == (930, 99_927)
    assert history.episode_seeds is None

"""Promises of PointReach2D: spec rules, fastest oracle, aimless data that stepping repeats."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs.point_reach import PointReachEnv
from seqrl.errors import SeqrlError

FRESH = LoadOptions(cache=False)


def steps(env: Any, limit: int = 50) -> int:
    """Steps of the oracle's episode that was just begun."""
    for t in range(limit):
        _, reward, terminated, truncated, _ = env.step(env.oracle_action())
        if terminated or truncated:
            assert (reward, terminated) == (1.0, True)
            return t + 1
    raise AssertionError("never arrived")


def test_passes_gymnasiums_checker_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("seqrl/PointReach2D-v0")
        assert env.get_wrapper_attr("max_episode_steps") == 50
        check_env(env.unwrapped)


def test_moves_are_a_tenth_of_the_action_within_the_square() -> None:
    env = PointReachEnv()
    env.reset(options={"state": [-0.95, 0.0]})
    observation, reward, terminated, _, _ = env.step(np.array([-1.0, 0.5]))
    np.testing.assert_allclose(observation, [-1, 0.05], atol=1e-6)
    assert (reward, terminated) == (0.0, False)
    observation = env.step(np.array([5.0, -0.5]))[0]  # clipped to 1
    np.testing.assert_allclose(observation, [-0.9, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("y", "hit"), [(0.36, False), (0.352, False), (0.349, False), (0.38, True)]
)
def test_the_goal_is_a_disc_of_radius_015(y: float, hit: bool) -> None:
    env = PointReachEnv()
    env.reset(options={"state": [0.6, y]})
    _, reward, terminated, _, info = env.step(np.array([0.0, 0.75]))  # up by 0.075
    assert (reward, terminated) == (float(hit), hit)
    assert info.get("success") is (True if hit else None)


def test_staying_away_is_truncated_after_fifty_steps_and_regrets_once() -> None:
    env = PointReachEnv()
    env.reset(options={"state": [-1.0, -1.0]})
    with pytest.raises(SeqrlError, match="finite"):
        env.step(np.array([np.nan, 0.0]))
    out = [env.step(np.array([-1.0, -1.0])) for _ in range(50)]
    assert [o[3] for o in out] == [False] * 49 + [True]
    assert not any(o[2] for o in out)
    assert out[-1][4]["success"] is False
    regrets = [o[4]["regret"] for o in out]
    assert sum(regrets) == 1
    assert regrets[35] == 1  # 15 steps would still have been enough
    with pytest.raises(SeqrlError, match="reset"):
        env.step(np.zeros(2))


def test_the_oracle_is_as_fast_as_the_geometry_allows() -> None:
    env = PointReachEnv()
    for seed in range(200):
        start, _ = env.reset(seed=seed)
        needed = 1
        while np.linalg.norm(np.maximum(np.abs(start - 0.6) - 0.1 * needed, 0)) >= 0.15:
            needed += 1
        assert steps(env) == needed <= 15


def test_seeds_repeat_and_evaluation_fixes_nothing_else() -> None:
    env = PointReachEnv()
    first = [env.reset(seed=s, options=env.episode_options(s))[0].tolist() for s in range(20)]
    again = [env.reset(seed=s)[0].tolist() for s in range(20)]
    assert first == again
    assert len({tuple(x) for x in first}) == 20


def test_behaviour_data_are_what_stepping_their_actions_gives() -> None:
    data = load_dataset("behaviour:seqrl/PointReach2D-v0?episodes=60&seed=3", options=FRESH)
    assert data.task.env_id == "seqrl/PointReach2D-v0"
    assert data.task.env_kwargs == {}
    env = PointReachEnv()
    for i in range(60):
        episode = data[i]
        env.reset(options={"state": episode.observations[0].astype(np.float64)})
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(observation, episode.observations[t + 1])
            assert reward == episode.rewards[t]
        assert (terminated, truncated) == (episode.terminated, not episode.terminated)
        assert len(episode.actions) <= 50


def test_behaviour_finds_the_goal_by_chance_and_its_actions_are_sixteen_centres() -> None:
    data = load_dataset("behaviour:seqrl/PointReach2D-v0?episodes=2000", options=FRESH)
    assert len(data) == 2000
    assert 0.16 < data.rewards.sum() / 2000 < 0.24
    assert 80_000 < data.num_steps < 95_000
    centres = (np.arange(16) + 0.5) / 8 - 1
    np.testing.assert_array_equal(np.unique(data.actions), centres.astype(np.float32))
    assert data.task.reference_scores == (pytest.approx(0.1135), 1.0)


def test_longer_data_begin_with_shorter_ones_and_seeds_differ() -> None:
    make = PointReachEnv.behaviour_columns
    short, long, other = make(5, 0), make(9, 0), make(5, 1)
    steps = short["episode_starts"][-1]
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(short[name], long[name][:steps])
    assert (short["observations"][0] != other["observations"][0]).any()
    free = make(5, 0, bins=0)
    assert len(np.unique(free["actions"])) > 100
    for a, b in pairwise(long["episode_starts"]):
        assert 1 <= b - a <= 50


def test_random_reference_is_the_measured_one() -> None:
    data = load_dataset("random:seqrl/PointReach2D-v0?episodes=400", options=FRESH)
    mean = data.rewards.sum() / 400
    expected = PointReachEnv.reference_scores()["random"]
    assert mean == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5)


def test_the_text_shows_point_and_goal() -> None:
    env = PointReachEnv(render_mode="ansi")
    env.reset(options={"state": [-1.0, 1.0]})
    lines = env.render().splitlines()
    assert lines[0][0] == "A"
    assert "G" in lines[4]
    assert lines[-1] == "step 0 of 50"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("behaviour:seqrl/TMaze-v0", "describes no behaviour"),
        ("behaviour:seqrl/PointReach2D-v0?bins=1", "bins=1"),
        ("behaviour:seqrl/PointReach2D-v0?redraw=2", "redraw=2"),
        ("behaviour:seqrl/PointReach2D-v0?size=3", "'size'"),
    ],
)
def test_bad_data_settings_are_refused(uri: str, message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        load_dataset(uri, options=FRESH)


def test_bad_settings_and_options_are_refused() -> None:
    with pytest.raises(SeqrlError, match="'ansi'"):
        PointReachEnv(render_mode="human")
    with pytest.raises(SeqrlError, match="no environment setting 'size'"):
        PointReachEnv.reference_scores(size=3)
    env = PointReachEnv()
    for options in ({"state": [2.0, 0.0]}, {"state": [0.0]}, {"goal": 1}):
        with pytest.raises(SeqrlError):
            env.reset(options=options)

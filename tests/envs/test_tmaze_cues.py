"""Promises of the T-Maze's cues: RATE's by default; more bits, turns, false and new ones."""

from __future__ import annotations

import hashlib
import warnings
from itertools import pairwise, product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs.goals import turn_signs
from seqrl.envs.tmaze import DOWN, LEFT, RIGHT, UP, TMazeEnv, TMazeSettings
from seqrl.envs.tmaze_data import Cues, draw_cues
from seqrl.errors import SeqrlError

ALL: dict[str, Any] = {"cue_bits": 2, "junctions": 2, "distractors": 2, "reissue": 2}
VARIANTS: list[dict[str, Any]] = [
    {"cue_bits": 3},
    {"junctions": 3},
    {"junctions": 2, "flag": False, "cue_steps": 3},
    {"distractors": 4},
    {"reissue": 3, "cue_steps": 2},
    {"distractors": 3, "junctions": 3, "cue_steps": 4},
    {"cue_bits": 2, "reissue": 1},
    {"cue_steps": 0, "distractors": 2},
    ALL,
    {**ALL, "noise_channels": 2},
    {**ALL, "obs": "pixels"},
]


def play(env: Any, actions: Any, first: Any = None, **reset: Any) -> dict[str, Any]:
    """Step through actions (a list, or a function of the observations so far)."""
    seen = [env.reset(**reset)[0] if first is None else first]
    out: dict[str, Any] = {"actions": [], "rewards": [], "terminations": [], "truncations": []}
    for t in range(env.max_episode_steps if callable(actions) else len(actions)):
        action = actions(seen) if callable(actions) else actions[t]
        observation, *ended, info = env.step(action)
        seen.append(observation)
        for name, value in zip(out, (action, *ended), strict=True):
            out[name].append(value)
        if ended[1] or ended[2]:
            break
    return {**out, "obs": np.stack(seen), "info": info}


# --- the default is the maze of before ------------------------------------------------------------

EPISODES = {
    "99d0d028b30288e9": {},
    "4f770a4c183579c3": {"limit": 9},
    "f4cfc92d1addd68c": {"limit": 1500},
    "91dfce075e782cda": {"limit": 12, "cue_steps": 4, "flag": False, "corridor": 6},
    "75700266f16f0150": {"limit": 9, "noise_channels": 2},
    "b065e6c2930c5797": {"limit": 9, "noise": False, "noise_channels": 1},
    "3747c070741fd16c": {"limit": 9, "obs": "pixels", "noise_channels": 3},
}
DATA = {
    "7267838d4035332a": {"episodes": 40, "seed": 0},
    "fd4ed6b53776dff1": {"episodes": 10, "seed": 3, "limit": 10, "segments": 3},
    "051d804a2b4196e4": {
        "episodes": 10,
        "seed": 3,
        "limit": 10,
        "segments": 3,
        "mixture": "max_only",
    },
    "a6299ea6435ad4dc": {"episodes": 21, "seed": 1, "limit": 9, "wrong_turns": True},
    "894014af824471fa": {
        "episodes": 6,
        "seed": 2,
        "limit": 12,
        "corridors": "longest",
        "cue_steps": 3,
        "flag": False,
        "noise_channels": 2,
    },
    "56e1a8a250c77735": {
        "episodes": 4,
        "seed": 2,
        "limit": 9,
        "obs": "pixels",
        "noise": False,
        "noise_channels": 2,
    },
}
"""Digests of what the environment gave before it had any other cue than the one at the start."""


def feed(digest: Any, *arrays: Any) -> None:
    for array in map(np.ascontiguousarray, arrays):
        digest.update(repr((array.dtype.str, array.shape)).encode() + array.tobytes())


@pytest.mark.parametrize("expected", EPISODES)
def test_by_default_episodes_are_bit_for_bit_those_of_before(expected: str) -> None:
    digest, env = hashlib.sha256(), TMazeEnv(**EPISODES[expected])
    feed(digest, env.observation_space.low, env.observation_space.high)
    rng = np.random.default_rng(0)
    for seed in range(6):
        options = None if seed % 2 else env.episode_options(seed // 2)
        feed(digest, env.reset(seed=seed if seed != 3 else None, options=options)[0])
        done = False
        while not done:
            action = int(rng.integers(4)) if rng.random() < 0.02 else env.oracle_action()
            observation, reward, terminated, truncated, info = env.step(action)
            feed(digest, observation)
            digest.update(repr((action, reward, terminated, truncated, info)).encode())
            done = terminated or truncated
    assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("expected", DATA)
def test_by_default_data_are_bit_for_bit_those_of_before(expected: str) -> None:
    digest, columns = hashlib.sha256(), TMazeEnv.oracle_columns(**DATA[expected])
    for name in sorted(columns):
        digest.update(name.encode())
        feed(digest, columns[name])
    assert digest.hexdigest()[:16] == expected


# --- all variants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_every_variant_passes_gymnasiums_checker_without_warnings(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("seqrl/TMaze-v0", limit=20, **kwargs).unwrapped)


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_the_oracle_wins_every_variant_in_the_shortest_time(kwargs: dict[str, Any]) -> None:
    env = TMazeEnv(limit=24, **kwargs)
    junctions, length = env.settings.junctions, env.settings.length
    assert 24 - junctions <= junctions * (length + 1) < 24
    for seed in range(8):
        played = play(env, lambda _: env.oracle_action(), seed=seed)
        assert sum(played["rewards"]) == played["rewards"][-1] == 1
        assert len(played["actions"]) == junctions * (length + 1)
        assert played["info"]["success"] is True


@pytest.mark.parametrize("wrong_turns", [False, True])
@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_generated_episodes_are_those_of_the_environment_with_the_same_draws(
    kwargs: dict[str, Any], wrong_turns: bool
) -> None:
    count, limit = 24, 24
    kwargs = {"noise": False, **kwargs}
    columns = TMazeEnv.oracle_columns(count, 5, limit=limit, wrong_turns=wrong_turns, **kwargs)
    settings = TMazeSettings(limit=limit, **kwargs)
    rng = np.random.default_rng((5, limit))
    lengths = rng.integers(settings.shortest, settings.length, size=count, endpoint=True)
    goals = turn_signs(np.arange(count), settings.junctions)
    cues = draw_cues(rng, settings, goals, lengths)
    quiet = np.ones(settings.width, bool)
    quiet[settings.noise_columns] = False
    for i, (a, b) in enumerate(pairwise(columns["episode_starts"])):
        length = int(lengths[i])
        least = settings.junctions * (length + 1) + 1
        env = TMazeEnv(**{**kwargs, "limit": least, "corridor": length})
        env.reset(seed=0, options=env.episode_options(i))
        env._play(Cues(*(draw[i : i + 1] for draw in cues)))
        played = play(env, columns["actions"][a:b].tolist(), first=env._observation())
        for name in ("rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(columns[name][a:b], played[name], err_msg=name)
        obs = np.concatenate([columns["observations"][a:b], columns["final_observations"][i, None]])
        chosen = ... if settings.obs == "pixels" else (slice(None), quiet)
        np.testing.assert_array_equal(obs[chosen], played["obs"][chosen])
        assert wrong_turns or columns["rewards"][b - 1] == 1


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_observations_of_data_and_environment_are_of_the_space(kwargs: dict[str, Any]) -> None:
    columns = TMazeEnv.oracle_columns(6, 0, limit=24, **kwargs)
    env = TMazeEnv(limit=24, **kwargs)
    played = play(env, lambda _: env.action_space.sample(), seed=0)
    for rows in (columns["observations"], columns["final_observations"], played["obs"]):
        assert rows.dtype == env.observation_space.dtype
        assert all(env.observation_space.contains(row) for row in rows)


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_equal_seeds_give_equal_episodes_and_data(kwargs: dict[str, Any]) -> None:
    plan = [RIGHT, LEFT, *[RIGHT] * 20]
    one, two = (play(TMazeEnv(limit=24, **kwargs), plan, seed=3)["obs"] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    files = [TMazeEnv.oracle_columns(5, seed, limit=24, **kwargs) for seed in (1, 1, 2)]
    for name in files[0]:
        np.testing.assert_array_equal(files[0][name], files[1][name])
    assert files[0]["observations"].tobytes() != files[2]["observations"].tobytes()


# --- what the channels mean: agents that see nothing else -----------------------------------------


class Reader:
    """Solves every variant from its observations alone; each flaw ignores one rule."""

    def __init__(self, settings: TMazeSettings, flaw: str = "") -> None:
        self.s, self.flaw = settings, flaw

    def __call__(self, seen: list[np.ndarray]) -> int:
        s, now = self.s, seen[-1]
        if now[2] == 0:
            return RIGHT
        false = [s.distractors > 0 and o[-1] == 1 and self.flaw != "believes" for o in seen]
        shown = [o for o, lie in zip(seen, false, strict=True) if o[1] and not lie]
        cue = shown[0 if self.flaw == "keeps the first" else -1][s.cue_columns]
        junction = sum(int(o[2]) for o in seen) - 1
        if self.flaw == "starts at the end":
            junction = s.junctions - 1 - junction
        bit = 0
        if s.cue_bits > 1 and self.flaw != "ignores the query":
            query = now[s.query_column : s.query_column + s.cue_bits]
            assert query.sum() == 1
            bit = int(query.argmax())
        return UP if cue[junction * s.cue_bits + bit] > 0 else DOWN


@pytest.mark.parametrize(
    ("kwargs", "flaw", "expected"),
    [
        ({}, "", 1),
        (ALL, "", 1),
        ({"junctions": 5, "cue_bits": 3, "distractors": 5, "limit": 40}, "", 1),
        ({"reissue": 1}, "", 1),
        ({"reissue": 1}, "keeps the first", 1 / 2),
        ({"reissue": 3, "junctions": 2}, "keeps the first", 1 / 4),
        ({"distractors": 2}, "", 1),
        ({"distractors": 2}, "believes", 1 / 2),
        ({"cue_bits": 4}, "", 1),
        ({"cue_bits": 4}, "ignores the query", 1 / 4 + 3 / 4 / 2),
        ({"junctions": 2}, "", 1),
        ({"junctions": 2}, "starts at the end", 1 / 2),
    ],
    ids=str,
)
def test_every_rule_of_the_cues_is_needed_and_enough(
    kwargs: dict[str, Any], flaw: str, expected: float
) -> None:
    env = TMazeEnv(**{"limit": 20, **kwargs})
    reader = Reader(env.settings, flaw)
    wins = [
        play(env, reader, seed=i, options=env.episode_options(i))["info"]["success"]
        for i in range(400)
    ]
    assert np.mean(wins) == 1 if expected == 1 else abs(np.mean(wins) - expected) < 0.09


def test_the_first_cue_is_the_latest_one_unless_it_is_issued_again() -> None:
    env = TMazeEnv(limit=20, cue_bits=3, junctions=2, noise=False)
    obs = play(env, [RIGHT] * 19, seed=0)["obs"]
    columns = env.settings.cue_columns
    assert (np.abs(obs[0, columns]) == 1).all()
    assert not obs[1:, columns].any()


def test_channels_have_their_documented_places() -> None:
    env = TMazeEnv(limit=20, noise_channels=2, noise=False, flag=True, **ALL)
    s = env.settings
    assert s.cue_columns.tolist() == [1, 6, 7, 8]
    assert (s.query_column, s.width) == (9, 12)
    obs, _ = env.reset(seed=1, options={"goal": (1, -1)})
    assert obs.shape == (12,)
    assert env.junction == 0
    at_junction = play(env, [RIGHT] * s.length, seed=1, options={"goal": (1, -1)})["obs"]
    assert at_junction[-1, 2] == 1
    assert at_junction[-1, 9:11].sum() == 1
    assert not at_junction[:-1, [2, 9, 10]].any()
    assert at_junction[:, 11].sum() in (0, 1, 2)


# --- junctions ------------------------------------------------------------------------------------


def test_a_right_turn_leads_into_the_next_corridor_which_cannot_be_left_backwards() -> None:
    env = TMazeEnv(limit=12, corridor=2, junctions=3, noise=False)
    plan = [RIGHT, RIGHT, UP, LEFT, RIGHT, RIGHT, DOWN, RIGHT, RIGHT, UP]
    played = play(env, plan, options={"goal": (1, -1, 1)})
    assert played["rewards"] == [0] * 9 + [1]
    assert played["info"] == {"success": True, "goal": (1, -1, 1), "turns": 3}
    # y stays 0 until the end: a new corridor looks like any other.
    np.testing.assert_array_equal(played["obs"][:, 0], [0] * 10 + [1])
    np.testing.assert_array_equal(played["obs"][:, 2], [0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(played["obs"][0, env.settings.cue_columns], [1, -1, 1])
    assert not played["obs"][1:, env.settings.cue_columns].any()


def test_a_wrong_turn_at_any_junction_ends_the_episode_with_nothing() -> None:
    for right in range(3):
        env = TMazeEnv(limit=12, corridor=2, junctions=3)
        plan = [RIGHT, RIGHT, UP] * right + [RIGHT, RIGHT, DOWN]
        played = play(env, plan, options={"goal": (1, 1, 1)})
        assert (played["terminations"][-1], sum(played["rewards"])) == (True, 0)
        assert played["info"] == {"success": False, "goal": (1, 1, 1), "turns": right}
        assert played["obs"][-1, 0] == -1
        assert len(played["actions"]) == len(plan)


def test_a_wasted_step_is_allowed_and_one_more_than_the_limit_fails() -> None:
    plan = [RIGHT, RIGHT, UP] * 3
    for wasted, reward in ((1, 1.0), (2, 0.0)):
        env = TMazeEnv(limit=10, junctions=3)
        assert env.settings.length == 2
        played = play(env, [LEFT] * wasted + plan, options={"goal": (1, 1, 1)})
        assert sum(played["rewards"]) == reward
        assert played["truncations"][-1] is (reward == 0)


def test_evaluation_goes_through_all_combinations_and_late_turns_vary_early() -> None:
    env = TMazeEnv(limit=90, junctions=4)
    goals = [env.episode_options(i)["goal"] for i in range(16)]
    assert sorted(goals) == sorted(product((-1, 1), repeat=4))
    assert [goal[0] for goal in goals] == [1, -1] * 8
    signs = turn_signs(np.arange(100), 64)
    assert not signs.mean(axis=0).any()
    correlations = signs.T @ signs / 100 - np.eye(64)
    assert np.abs(correlations).max() < 0.5
    assert TMazeEnv(junctions=1).episode_options(3) == {"goal": -1}


def test_wrong_turns_fall_on_every_junction_and_on_half_of_every_combination() -> None:
    columns = TMazeEnv.oracle_columns(
        1600, 0, limit=20, junctions=2, corridors="longest", wrong_turns=True, noise=False
    )
    starts = columns["episode_starts"]
    won, lengths = columns["rewards"][starts[1:] - 1], np.diff(starts)
    goals = columns["observations"][starts[:-1]][:, TMazeSettings(junctions=2).cue_columns]
    for goal in product((-1, 1), repeat=2):
        assert won[(goals == goal).all(axis=1)].mean() == 0.5
    assert set(lengths[won == 1]) == {18}
    assert 0.4 < (lengths[won == 0] == 9).mean() < 0.6


@pytest.mark.parametrize(
    "kwargs", [{"limit": 5, "junctions": 2}, {"limit": 6, "junctions": 2, "corridor": 1}]
)
def test_random_reference_is_the_mean_over_all_action_sequences(kwargs: dict[str, Any]) -> None:
    env = TMazeEnv(**kwargs)
    # By symmetry one combination of goals stands for all.
    plans = product(range(4), repeat=env.max_episode_steps)
    returns = [sum(play(env, plan, options={"goal": (1, -1)})["rewards"]) for plan in plans]
    reference = TMazeEnv.reference_scores(**kwargs)
    assert reference == {"random": pytest.approx(np.mean(returns), abs=1e-12), "oracle": 1.0}


# --- false and new cues ---------------------------------------------------------------------------


def test_times_are_uniform_over_the_corridors_and_never_meet() -> None:
    settings = TMazeSettings(limit=20, junctions=2, distractors=2, reissue=2, cue_steps=2)
    count, length = 20_000, settings.length  # 8
    rng = np.random.default_rng(0)
    goals = 1 - 2 * rng.integers(2, size=(count, 2))
    cues = draw_cues(rng, settings, goals, np.full(count, length))
    times = np.concatenate([cues.reissued, cues.disturbed], axis=1)
    assert all(len(set(row)) == 4 for row in times[:500].tolist())
    counts = np.bincount(cues.reissued.ravel(), minlength=18)
    assert set(np.flatnonzero(counts)) == set(range(2, 8))
    np.testing.assert_allclose(counts[2:8] / count, 2 / 6, atol=0.02)
    counts = np.bincount(cues.disturbed.ravel(), minlength=18)
    assert set(np.flatnonzero(counts)) == {*range(2, 8), *range(9, 17)}
    np.testing.assert_allclose(counts[9:17] / count, 2 / 12, atol=0.02)
    np.testing.assert_allclose(counts[2:8] / count, 2 / 12 * 4 / 6, atol=0.02)
    assert (np.diff(cues.reissued) > 0).all()
    # Every bit of every cue is fair, a reissue flips half of them, the last is the goal.
    np.testing.assert_allclose(cues.issues.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(
        (cues.issues[:, 1:] != cues.issues[:, :-1]).mean(axis=0), 0.5, atol=0.02
    )
    np.testing.assert_array_equal(cues.issues[:, -1], goals)
    np.testing.assert_allclose(cues.false.mean(axis=0), 0, atol=0.03)


def test_cues_come_by_the_clock_wherever_the_agent_is() -> None:
    kwargs: dict[str, Any] = {"limit": 30, "corridor": 9, "distractors": 2, "reissue": 2}
    going, waiting = (
        play(TMazeEnv(**kwargs), plan, seed=2)["obs"] for plan in ([RIGHT] * 9, [LEFT] * 9)
    )
    columns = [1, -1]
    np.testing.assert_array_equal(going[:, columns], waiting[:, columns])
    assert (going[:, 1] != 0).sum() == 5
    assert going[:, -1].sum() == 2


def test_fixing_the_goal_leaves_times_false_cues_and_noise_as_they_were() -> None:
    options = {"goal": 1}, {"goal": -1}
    up, down = (
        play(TMazeEnv(limit=20, distractors=3, reissue=1), [RIGHT] * 18, seed=4, options=o)["obs"]
        for o in options
    )
    different = np.argwhere(up != down)
    assert different.shape == (1, 2)  # the reissued cue alone: the first one was random
    assert different[0, 1] == 1


def test_corridors_too_short_for_their_cues_are_left_out_of_data() -> None:
    kwargs: dict[str, Any] = {"limit": 20, "cue_steps": 2, "reissue": 1, "distractors": 3}
    settings = TMazeSettings(**kwargs)
    assert settings.shortest == 6
    columns = TMazeEnv.oracle_columns(400, 0, **kwargs)
    lengths = np.diff(columns["episode_starts"]) - 1
    assert sorted(set(lengths)) == list(range(6, 19))
    marks = np.add.reduceat(columns["observations"][:, -1], columns["episode_starts"][:-1])
    np.testing.assert_array_equal(marks, 3)


def test_data_load_by_uri_with_all_settings() -> None:
    uri = "oracle:seqrl/TMaze-v0?limit=20&junctions=2&cue_bits=2&distractors=1&reissue=1"
    data = load_dataset(f"{uri}&segments=2&episodes=5", options=LoadOptions(cache=False))
    assert len(data) == 10
    cues = {"junctions": 2, "cue_bits": 2, "distractors": 1, "reissue": 1}
    assert data.task.env_kwargs == {"limit": 40, **cues}
    assert data.observations.shape[1] == TMazeSettings(limit=20, **ALL).width


# --- pictures and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20, 400])
def test_renderings_tell_junction_bits_and_lies_within_bounds(size: int) -> None:
    many: dict[str, Any] = {"junctions": 8, "cue_bits": 10, "distractors": 1}
    env = TMazeEnv(limit=size, render_mode="ansi", **many)
    env.reset(seed=0)
    text = env.render()
    assert max(map(len, text.splitlines())) <= 64
    assert "junction 1 of 8" in text
    assert "asks for bit" in text
    assert "bits " in text
    told, done = [], False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.oracle_action())
        told.append(env.render())
        done = terminated or truncated
    assert sum("false cue" in text for text in told) == 1
    image = TMazeEnv(limit=size, render_mode="rgb_array", **many)
    image.reset(seed=0)
    picture = image.render()
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 132


@pytest.mark.parametrize(
    ("kwargs", "value", "allowed"),
    [
        ({"junctions": 0}, "junctions=0", "from 1 to 63"),
        ({"junctions": 64, "limit": 1000}, "junctions=64", "from 1 to 63"),
        ({"junctions": 3, "limit": 6}, "limit=6", ">= 7"),
        ({"junctions": 3, "limit": 12, "corridor": 4}, "corridor=4", "from 1 to 3"),
        ({"cue_bits": 0}, "cue_bits=0", ">= 1"),
        ({"cue_bits": 2, "flag": False}, "flag=False", "leave the flag on"),
        ({"noise_channels": -1}, "noise_channels=-1", ">= 0"),
        ({"distractors": -1}, "distractors=-1", ">= 0"),
        ({"distractors": 9, "limit": 11}, "distractors=9 does not fit", "room for 8"),
        ({"reissue": 1.5}, "reissue=1.5", ">= 0"),
        ({"reissue": 1, "cue_steps": 0}, "cue_steps=0", "cue_steps=1"),
        ({"reissue": 2, "limit": 20, "corridor": 2}, "reissue=2 does not fit", "room for 1"),
        ({"reissue": 1, "cue_steps": 30}, "reissue=1 does not fit", "room for 0"),
        ({"obs": "pixels", "cue_bits": 9}, "obs='pixels'", "at most 16"),
        ({"obs": "pixels", **ALL, "noise_channels": 10}, "noise_channels=10", "from 0 to 9"),
    ],
    ids=str,
)
def test_senseless_settings_are_refused_with_value_and_what_to_do(
    kwargs: dict[str, Any], value: str, allowed: str
) -> None:
    for build in (TMazeEnv, lambda **k: TMazeEnv.oracle_columns(2, 0, **k)):
        with pytest.raises(SeqrlError) as caught:
            build(**kwargs)
        assert value in caught.value.message
        assert allowed in str(caught.value.hint)


def test_reissue_may_be_written_as_yes_or_no() -> None:
    assert TMazeSettings(reissue=True).reissue == 1
    assert TMazeSettings(reissue=False).reissue == 0


def test_bad_goals_of_several_junctions_are_refused() -> None:
    env = TMazeEnv(limit=20, junctions=2)
    for goal in (1, (1,), (1, 0), (1, -1, 1), "up", (1.0, 1.0), ((1,), (1, 2)), None):
        with pytest.raises(SeqrlError, match="must be 2 sides"):
            env.reset(options={"goal": goal})
    with pytest.raises(SeqrlError, match="did you mean 'goal'"):
        env.reset(options={"gaol": (1, 1)})

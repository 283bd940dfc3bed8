"""Key-to-Door in numbers: exact chances, and episodes made side by side that stepping repeats."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from seqrl import spaces as sp
from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs import key_to_door_boards as boards
from seqrl.envs import key_to_door_episodes as whole
from seqrl.envs.key_to_door import KeyToDoorEmptyEnv, KeyToDoorEnv
from seqrl.errors import SeqrlError

FRESH = LoadOptions(cache=False)


# --- chances --------------------------------------------------------------------------------------


def transitions(layout: str, phase: int, with_key: bool) -> dict[int, list[int]]:
    """Cell after each action in each cell that can be reached, read off the running environment."""
    env = KeyToDoorEnv(layout, (1000, 1000, 1000))
    env.reset(seed=0)
    env._phase, env._unlocked, env._has_key = phase, with_key, False
    starts = boards.START_CELLS if phase == 0 else boards.LAYOUTS[layout].starts
    table: dict[int, list[int]] = {}
    todo = starts.tolist()
    while todo:
        if (cell := todo.pop()) in table:
            continue
        table[cell] = []
        for action in range(4):
            env._cell, env._frame = cell, 0
            env.step(action)
            table[cell].append(boards.cell_of(*env.position))
        todo += table[cell]
    return table


def arrival(table: dict[int, list[int]], starts: Any, targets: Any, steps: int) -> float:
    """Chance of standing on the target within some random steps, averaged over both ends."""
    total = 0.0
    for target in targets.tolist():
        mass = dict.fromkeys(starts.tolist(), 1 / len(starts))
        for _ in range(steps):
            after: dict[int, float] = {}
            for cell, p in mass.items():
                for following in table[cell]:
                    after[following] = after.get(following, 0) + p / 4
            total += after.pop(target, 0.0)
            mass = after
    return total / len(targets)


KEY = {10: 0.055591, 15: 0.102791, 20: 0.152620, 25: 0.202495}
DOOR = {
    "sr": {5: 0.106445, 10: 0.196022, 15: 0.273849, 20: 0.344081},
    "cca": {5: 0.016484, 10: 0.055591, 15: 0.102791, 20: 0.152620},
}


@pytest.mark.parametrize("layout", ["sr", "cca"])
def test_chances_of_random_play_are_the_exact_ones(layout: str) -> None:
    table = transitions(layout, 0, False)
    key = {n: arrival(table, boards.START_CELLS, boards.KEY_CELLS, n) for n in KEY}
    assert key == pytest.approx(KEY, abs=1e-6)
    ends = boards.LAYOUTS[layout]
    table = transitions(layout, 2, True)
    door = {n: arrival(table, ends.starts, ends.doors, n) for n in DOOR[layout]}
    assert door == pytest.approx(DOOR[layout], abs=1e-6)
    for first, third in ((15, 10), (15, 15), (20, 10)):
        scores = KeyToDoorEnv.reference_scores(
            layout=layout, phase_lengths=(first, 30, third), num_apples=0, final_reward=1
        )
        assert scores["random"] == pytest.approx(key[first] * door[third], abs=1e-12)
        assert scores["oracle"] == 1


def test_published_products_and_the_preset() -> None:
    def success(layout: str, first: int, third: int) -> float:
        lengths = (first, 7, third)
        return KeyToDoorEmptyEnv.reference_scores(layout=layout, phase_lengths=lengths)["random"]

    assert success("sr", 15, 10) == pytest.approx(0.020149, abs=1e-6)
    assert success("sr", 15, 15) == pytest.approx(0.028149, abs=1e-6)
    assert success("cca", 15, 15) == pytest.approx(0.010566, abs=1e-6)
    assert KeyToDoorEmptyEnv.reference_scores()["random"] == pytest.approx(0.029917, abs=1e-6)
    assert KeyToDoorEmptyEnv.reference_scores()["oracle"] == 1
    with pytest.raises(SeqrlError, match="'size'"):
        KeyToDoorEnv.reference_scores(size=3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"phase_lengths": (15, 15, 10)},
        {"layout": "cca", "phase_lengths": (15, 30, 15)},
        {"layout": "cca", "phase_lengths": (25, 1, 20)},
    ],
)
def test_many_random_episodes_agree_within_04_points(settings: dict[str, Any]) -> None:
    columns = KeyToDoorEmptyEnv.random_columns(20_000, seed=0, obs_mode="symbolic", **settings)
    exact = KeyToDoorEmptyEnv.reference_scores(**settings)["random"]
    assert columns["rewards"].sum() / 20_000 == pytest.approx(exact, abs=0.004)


@pytest.mark.parametrize("respawn_every", [0, 1, 20, 70])
@pytest.mark.parametrize("kind", ["random", "oracle"])
def test_references_with_apples_are_the_mean_returns(kind: str, respawn_every: int) -> None:
    settings: dict[str, Any] = {
        "num_apples": 7,
        "apple_reward": (1, 3),
        "fix_apple_reward_in_episode": False,
        "respawn_every": respawn_every,
    }
    make = KeyToDoorEnv.random_columns if kind == "random" else KeyToDoorEnv.oracle_columns
    columns = make(4000, seed=1, obs_mode="symbolic", **settings)
    returns = np.add.reduceat(columns["rewards"].astype(float), columns["episode_starts"][:-1])
    expected = KeyToDoorEnv.reference_scores(**settings)[kind]
    assert returns.mean() == pytest.approx(expected, abs=4.5 * returns.std() / 4000**0.5)


# --- data -----------------------------------------------------------------------------------------


CASES: list[dict[str, Any]] = [
    {},
    {"obs_mode": "flat", "layout": "cca", "phase_lengths": (15, 30, 15)},
    {"obs_mode": "symbolic", "respawn_every": 3, "num_apples": 22},
    {"obs_mode": "full", "layout": "cca", "respawn_every": 0, "phase_lengths": (8, 40, 9)},
    {"crop": False, "phase_lengths": (30, 25, 40), "respawn_every": 1},
]


@pytest.mark.parametrize("kind", ["random", "oracle"])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_generated_episodes_are_what_stepping_gives(kind: str, settings: dict[str, Any]) -> None:
    env = KeyToDoorEnv(**settings)
    episodes, total = 25, env.max_episode_steps
    make = KeyToDoorEnv.random_columns if kind == "random" else KeyToDoorEnv.oracle_columns
    columns = make(episodes, seed=7, **settings)
    draws = whole.draw(env.settings, episodes, 7)
    keys = 0
    for e in range(episodes):
        part = slice(e * total, (e + 1) * total)
        options = {
            name: divmod(int(getattr(draws, name)[e]), 11)
            for name in ("start", "key", "door_start", "door")
        }
        sites = boards.APPLE_SITES[draws.apples[e]].tolist()
        options["apples"] = [divmod(cell, 11) for cell in sites]  # type: ignore[assignment]
        observation, info = env.reset(options=options)
        seen, played, held = [], [], False
        for t in range(total):
            action = env.oracle_action() if kind == "oracle" else int(columns["actions"][part][t])
            seen.append(sp.flatten_observation(env.observation_space, observation))
            observation, reward, terminated, _, info = env.step(action)
            played.append((action, reward, terminated))
            held |= info["has_key"]
        last = sp.flatten_observation(env.observation_space, observation)
        np.testing.assert_array_equal(columns["observations"][part], np.stack(seen))
        np.testing.assert_array_equal(columns["final_observations"][e], last)
        for k, name in enumerate(("actions", "rewards", "terminations")):
            made = [step[k] for step in played]
            np.testing.assert_array_equal(columns[name][part], made, err_msg=name)
        keys += held
    assert not columns["truncations"].any()
    assert keys == episodes if kind == "oracle" else keys > 0


def test_longer_sets_begin_with_shorter_ones_and_seeds_differ() -> None:
    settings: dict[str, Any] = {"apple_reward": (1, 2), "fix_apple_reward_in_episode": False}
    short, long, other = (
        KeyToDoorEnv.random_columns(n, seed, **settings) for n, seed in ((5, 0), (9, 0), (5, 1))
    )
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(short[name], long[name][: 5 * 85])
    assert (short["actions"] != other["actions"]).any()
    assert len(set(short["rewards"].tolist())) > 10
    fixed = KeyToDoorEnv.oracle_columns(40, 0, apple_reward=(1, 2), final_reward=0)["rewards"]
    assert set(fixed.tolist()) == {0.0, 1.0, 2.0}
    assert all(len(set(episode.tolist())) == 2 for episode in fixed.reshape(40, 85))


def test_ten_thousand_random_episodes_take_moments() -> None:
    began = time.process_time()
    columns = KeyToDoorEmptyEnv.random_columns(10_000, seed=0)
    assert time.process_time() - began < 5  # 0.25 s on a quiet core
    assert columns["observations"].shape == (450_000, 5, 5, 3)
    assert np.bincount(columns["actions"]).min() > 111_000


def test_data_by_name_know_their_environment_and_exact_references() -> None:
    data = load_dataset("key-to-door-1k", options=FRESH)
    assert (len(data), data.num_steps) == (1000, 45_000)
    assert data.task.env_id == "seqrl/KeyToDoorEmpty-v0"
    assert data.task.env_kwargs == {"obs_mode": "one_hot"}
    assert data.task.max_episode_steps == 45
    assert data.task.reference_source == "environment"
    assert data.task.reference_scores == (pytest.approx(0.029917, abs=1e-6), 1.0)
    successes = [i for i in range(1000) if data[i].rewards.sum() == 1]
    assert 15 <= len(successes) <= 46
    for i in successes:
        episode = data[i]
        paid = int(episode.rewards.argmax())
        assert paid >= 35
        rtg = episode.returns_to_go
        assert (rtg[: paid + 1] == 1).all()
        assert (rtg[paid + 1 :] == 0).all()


def test_settings_of_a_uri_reach_the_environment() -> None:
    uri = "oracle:seqrl/KeyToDoor-v0?episodes=3&phase_lengths=9,8,4&apple_reward=1,10&obs_mode=flat"
    data = load_dataset(uri, options=FRESH)
    assert data.lengths.tolist() == [21] * 3
    assert data.observations.shape == (63, 75)
    env = gymnasium.make("seqrl/KeyToDoor-v0", **data.task.env_kwargs)
    assert env.unwrapped.settings.apple_range == (1, 10)
    given = KeyToDoorEnv(phase_lengths=[9, 8, 4]).settings  # as JSON holds them
    assert given.phase_lengths == (9, 8, 4)

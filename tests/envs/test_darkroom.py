"""Promises of the dark rooms: published rules and splits, right oracle, exact references."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.envs import grids
from seqrl.envs.darkroom import DarkRoomEnv, VectorDarkRoom, darkroom_tasks
from seqrl.envs.key_door import DarkKeyDoorEnv
from seqrl.errors import SeqrlError

OFFICIAL_TEST_GOALS = [
    *[(2, 5), (3, 7), (8, 1), (4, 6), (3, 9), (6, 5), (5, 8), (1, 2), (8, 8), (7, 0)],
    *[(8, 7), (3, 6), (2, 1), (8, 3), (0, 9), (9, 6), (6, 7), (6, 4), (4, 7), (4, 4)],
]
ROOMS: list[dict[str, Any]] = [
    {"preset": "dpt"},
    {"preset": "ad"},
    {"preset": "hard"},
    {"preset": "permuted"},
    {"size": 4, "horizon": 9, "start": "random", "perm_index": "any", "split": "train"},
    {"size": 4, "horizon": 9, "start": "random", "terminate_on_goal": True, "obs": "discrete"},
]


def play(env: Any, actions: Any, **reset: Any) -> dict[str, Any]:
    """Everything seen in one episode of ``actions`` (a list, or "oracle")."""
    observation, info = env.reset(**reset)
    out: dict[str, Any] = {"obs": [observation], "infos": [info], "rewards": [], "over": []}
    for t in range(env.max_episode_steps):
        action = env.oracle_action() if isinstance(actions, str) else int(actions[t])
        observation, reward, *over, info = env.step(action)
        for name, value in zip(out, (observation, info, reward, over), strict=True):
            out[name].append(value)
        if any(over):
            break
    return out


@pytest.mark.parametrize("kwargs", ROOMS)
def test_a_room_passes_gymnasiums_checker_without_warnings(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("seqrl/DarkRoom-v0", **kwargs)
        assert type(env.unwrapped) is DarkRoomEnv
        check_env(env.unwrapped)


@pytest.mark.parametrize("kwargs", [{}, {"start": "center", "terminate_on_door": False}])
def test_key_to_door_passes_gymnasiums_checker_without_warnings(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("seqrl/DarkKeyDoor-v0", **kwargs).unwrapped)


# --- tasks ----------------------------------------------------------------------------------------


def test_the_held_out_goals_are_the_official_ones() -> None:
    test, train = ([t["goal"] for t in darkroom_tasks(split=split)] for split in ("test", "train"))
    assert test == OFFICIAL_TEST_GOALS
    assert len(train) == 80
    assert set(train) | set(test) == set(product(range(10), range(10)))
    assert [t["goal"] for t in darkroom_tasks()] == train + test


def test_the_permuted_room_has_120_tasks_split_in_100_and_20() -> None:
    tasks = darkroom_tasks("permuted")
    assert {t["goal"] for t in tasks} == {(9, 9)}
    assert sorted(t["perm_index"] for t in tasks) == list(range(120))
    parts = [darkroom_tasks("permuted", split=s) for s in ("train", "test")]
    assert [len(p) for p in parts] == [100, 20]
    assert parts[0] + parts[1] == tasks
    assert grids.PERMUTATIONS[[0, 1, 119]].tolist() == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 4, 3],
        [4, 3, 2, 1, 0],
    ]


def test_a_split_restricts_what_is_drawn_and_evaluation_walks_over_it() -> None:
    env = DarkRoomEnv(split="test")
    env.reset(seed=0)
    drawn = set()
    for _ in range(300):
        env.reset()
        drawn.add(env.goal)
    assert drawn == set(OFFICIAL_TEST_GOALS)
    assert [env.episode_options(i)["goal"] for i in range(40)] == 2 * OFFICIAL_TEST_GOALS
    env.reset(options={"goal": (0, 0)})  # a goal asked for need not be of the split
    assert env.goal == (0, 0)


def test_key_to_door_splits_its_pairs() -> None:
    parts = []
    for split in ("train", "test"):
        env = DarkKeyDoorEnv(size=3, split=split)
        count = {"train": 64, "test": 17}[split]
        tasks = [tuple(env.episode_options(i).values()) for i in range(count)]
        assert tasks[0] == tuple(env.episode_options(count).values())
        parts.append(set(tasks))
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 81


# --- rules ----------------------------------------------------------------------------------------


def test_moves_rewards_and_end_of_the_default_room() -> None:
    env = DarkRoomEnv(horizon=8)
    actions = [1, 3, 0, 2, 4, 4, 0, 1]  # two walls, x + 1, y + 1, stay, stay, away, back
    played = play(env, actions, options={"goal": (1, 1)})
    cells = [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [1, 1], [2, 1], [1, 1]]
    assert np.array(played["obs"]).tolist() == cells
    assert played["rewards"] == [0, 0, 0, 1, 1, 1, 0, 1]
    assert played["over"] == [[False, False]] * 7 + [[False, True]]
    assert played["infos"][-1]["success"] is True
    assert played["infos"][-1]["goal"] == (1, 1)
    with pytest.raises(SeqrlError, match="reset"):
        env.step(0)


def test_reward_once_and_terminate_on_goal() -> None:
    once = play(DarkRoomEnv(horizon=4, reward_once=True), [0, 4, 1, 0], options={"goal": (1, 0)})
    assert once["rewards"] == [1, 0, 0, 0]
    ends = play(DarkRoomEnv(terminate_on_goal=True), [2, 0], options={"goal": (1, 1)})
    assert (ends["rewards"], ends["over"][-1]) == ([0, 1], [True, False])


def test_presets_have_the_published_sizes_and_arguments_replace_theirs() -> None:
    for preset, size, horizon, start in (
        ("dpt", 10, 100, (0, 0)),
        ("ad", 9, 20, (4, 4)),
        ("hard", 17, 20, (8, 8)),
        ("permuted", 10, 100, (0, 0)),
    ):
        env = DarkRoomEnv(preset)
        env.reset(seed=0)
        assert env.settings.size == size
        assert env.max_episode_steps == horizon
        assert env.position == start
    assert DarkRoomEnv("hard").settings.reward_once
    env = DarkRoomEnv("ad", horizon=7, goal="far")
    env.reset()
    assert (env.max_episode_steps, env.goal, env.settings.size) == (7, (8, 8), 9)


def test_the_best_action_solves_every_goal_in_its_distance() -> None:
    env = DarkRoomEnv()
    for goal in product(range(10), range(10)):
        rewards = play(env, "oracle", options={"goal": goal})["rewards"]
        away = max(sum(goal), 1)
        assert rewards == [0] * (away - 1) + [1] * (101 - away)


def test_the_best_action_solves_every_order_where_the_official_code_fails() -> None:
    env = DarkRoomEnv("permuted")
    for order in range(120):
        played = play(env, "oracle", options={"perm_index": order})
        assert sum(played["rewards"]) == 83
        assert played["infos"][0]["optimal_action"] == grids.PERMUTATIONS[order].tolist().index(0)


@pytest.mark.parametrize("kwargs", ROOMS)
def test_regrets_add_up_to_the_optimum_less_the_return(kwargs: dict[str, Any]) -> None:
    env = DarkRoomEnv(**kwargs)
    rng = np.random.default_rng(0)
    for seed in range(10):
        best = sum(play(env, "oracle", seed=seed)["rewards"])
        played = play(env, rng.integers(5, size=100), seed=seed)
        regrets = [info["regret"] for info in played["infos"][1:]]
        assert min(regrets) >= 0
        assert sum(regrets) == best - sum(played["rewards"])


def test_key_to_door_pays_the_key_then_the_door() -> None:
    where = {"key": (1, 0), "door": (0, 0)}
    env = DarkKeyDoorEnv(start="corner")
    played = play(env, [4, 0, 4, 1], options=where)  # the door pays nothing before the key
    assert played["rewards"] == [0, 1, 0, 1]
    assert played["over"][-1] == [True, False]
    assert played["infos"][-1]["success"] is True
    stays = DarkKeyDoorEnv(start="corner", terminate_on_door=False, horizon=6)
    played = play(stays, [0, 1, 4, 0, 1, 4], options=where)
    assert played["rewards"] == [1, 1, 0, 0, 0, 0]
    same = play(env, "oracle", options={"key": (2, 1), "door": (2, 1)})
    assert same["rewards"] == [0, 0, 1, 1]


def test_key_to_door_regrets_add_up_and_its_optimum_finds_both() -> None:
    env = DarkKeyDoorEnv(horizon=14)
    rng = np.random.default_rng(0)
    for seed in range(60):
        best = sum(play(env, "oracle", seed=seed)["rewards"])
        played = play(env, rng.integers(5, size=14), seed=seed)
        regrets = [info["regret"] for info in played["infos"][1:]]
        assert sum(regrets) == best - sum(played["rewards"])
        key, door = played["infos"][-1]["key"], played["infos"][-1]["door"]
        to_key = max(int(np.abs(played["obs"][0] - key).sum()), 1)
        to_door = max(int(np.abs(np.subtract(key, door)).sum()), 1)
        assert best == (to_key <= 14) + (to_key + to_door <= 14)


# --- seeds, many at once --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DarkRoomEnv, DarkKeyDoorEnv])
def test_seeds_repeat_and_fixing_the_task_leaves_the_start(cls: Any) -> None:
    env = cls(start="random")
    starts = []
    for seed in range(12):
        first = play(env, [0] * 100, seed=seed)
        again = play(env, [0] * 100, seed=seed)
        np.testing.assert_array_equal(first["obs"], again["obs"])
        fixed = env.reset(seed=seed, options=env.episode_options(3))[0]
        np.testing.assert_array_equal(fixed, first["obs"][0])
        starts.append(tuple(fixed))
    assert len(set(starts)) > 6


@pytest.mark.parametrize("kwargs", ROOMS)
def test_many_rooms_are_the_single_room_side_by_side(kwargs: dict[str, Any]) -> None:
    rng, n = np.random.default_rng(0), 6
    env, many = DarkRoomEnv(**kwargs), VectorDarkRoom(n, **kwargs)
    first = many.reset(seed=3, options=many.episode_options(2))[0]
    assert many.observation_space.contains(first)
    actions = rng.integers(5, size=(many.max_episode_steps, n))
    steps = []
    for a in actions:
        steps.append(many.step(a))
        if not many.running.any():
            break
    for row in range(n):
        seeded: dict[str, Any] = {"options": env.episode_options(2 + row)}
        played = _from_cell(env, first[row], actions[:, row], seeded)
        for t, (obs, reward, over, info) in enumerate(played):
            assert np.array_equal(obs, steps[t][0][row])
            assert reward == steps[t][1][row]
            assert over == [steps[t][2][row], steps[t][3][row]]
            for name in ("optimal_action", "regret"):
                assert info[name] == steps[t][4][name][row]
        for rested in steps[len(played) :]:  # over: nothing more happens in this row
            assert (rested[1][row], rested[2][row], rested[3][row]) == (0, False, False)
    alone = VectorDarkRoom(1, **kwargs).reset(seed=8)
    single = env.reset(seed=8)
    np.testing.assert_array_equal(alone[0][0], single[0])
    assert alone[1]["optimal_action"][0] == single[1]["optimal_action"]


def _from_cell(env: Any, cell: Any, actions: Any, reset: dict[str, Any]) -> list[Any]:
    """Step the single room from a given first cell: with a random start, look for its seed."""
    seed = next(s for s in range(1000) if np.array_equal(env.reset(seed=s, **reset)[0], cell))
    env.reset(seed=seed, **reset)
    out = []
    for action in actions:
        obs, reward, *over, info = env.step(int(action))
        out.append((obs, reward, over, info))
        if any(over):
            break
    return out


def test_some_rows_can_be_reset_and_the_others_go_on() -> None:
    env = VectorDarkRoom(3, split="test")
    env.reset(seed=0, options={"goal": (3, 3)})
    for _ in range(2):
        env.step(np.zeros(3, np.int64))
    mask = np.array([False, True, False])
    observations, _ = env.reset(options={"reset_mask": mask})
    assert observations.tolist() == [[2, 0], [0, 0], [2, 0]]
    assert env.goals[0].tolist() == [3, 3]
    assert tuple(env.goals[1].tolist()) in OFFICIAL_TEST_GOALS
    with pytest.raises(SeqrlError, match="bool"):
        env.reset(options={"reset_mask": [1, 0, 0]})


# --- references, pictures, refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "random", "oracle"),
    [
        ({"split": "test"}, 0.74, 90.9),
        ({"split": "train"}, None, 92.2625),
        ({}, 1.0, None),
        ({"preset": "ad"}, 0.25, 16.54),
        ({"preset": "permuted"}, None, 83.0),
        ({"preset": "hard"}, None, 1.0),
    ],
)
def test_reference_scores_are_those_measured(kwargs: Any, random: Any, oracle: Any) -> None:
    scores = DarkRoomEnv.reference_scores(**kwargs)
    assert random is None or scores["random"] == pytest.approx(random, abs=0.005)
    assert oracle is None or scores["oracle"] == pytest.approx(oracle, abs=0.005)


@pytest.mark.parametrize("kwargs", [k for k in ROOMS if k.get("preset") != "hard"])
def test_random_returns_agree_with_random_play(kwargs: dict[str, Any]) -> None:
    env = VectorDarkRoom(4000, **kwargs)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    returns = np.zeros(4000)
    while env.running.any():
        returns += env.step(rng.integers(5, size=4000))[1]
    expected = DarkRoomEnv.reference_scores(**kwargs)["random"]
    assert returns.mean() == pytest.approx(expected, abs=4 * returns.std() / 4000**0.5)


@pytest.mark.parametrize("cls", [DarkRoomEnv, DarkKeyDoorEnv])
def test_references_are_means_over_all_action_sequences(cls: Any) -> None:
    kwargs = {"size": 2, "horizon": 3, "start": "random"}
    env = cls(**kwargs)
    tasks = [env.episode_options(i) for i in range({DarkRoomEnv: 4, DarkKeyDoorEnv: 16}[cls])]
    random, best = [], []
    for task in tasks:
        seeds: dict[tuple[int, ...], int] = {}
        for seed in range(60):  # one seed for each first cell
            seeds.setdefault(tuple(env.reset(seed=seed, options=task)[0]), seed)
        assert len(seeds) == 4
        for seed in seeds.values():
            sequences = product(range(5), repeat=3)
            total = [sum(play(env, s, seed=seed, options=task)["rewards"]) for s in sequences]
            random.append(np.mean(total))
            best.append(max(total))
    scores = cls.reference_scores(**kwargs)
    assert scores == {
        "random": pytest.approx(np.mean(random)),
        "oracle": pytest.approx(np.mean(best)),
    }


@pytest.mark.parametrize("cls", [DarkRoomEnv, DarkKeyDoorEnv])
def test_pictures_show_the_agent_and_what_is_hidden(cls: Any) -> None:
    text, image = cls(render_mode="ansi"), cls(render_mode="rgb_array")
    seen = []
    for env in (text, image):
        env.reset(seed=1)
        seen.append(env.render())
        for action in (0, 0, 2):
            env.step(action)
        seen.append(env.render())
    assert seen[0].count("A") == 1
    assert any(letter in seen[0] for letter in "GK")
    assert seen[0] != seen[1]
    assert seen[2].dtype == np.uint8
    assert (seen[2] != seen[3]).any()


@pytest.mark.parametrize(
    ("build", "kwargs", "value", "allowed"),
    [
        (DarkRoomEnv, {"preset": "dtp"}, "preset='dtp'", "did you mean 'dpt'"),
        (DarkRoomEnv, {"size": 1}, "size=1", "from 2 to 100"),
        (DarkRoomEnv, {"goal": (10, 0)}, "goal=(10, 0)", "from 0 to 9"),
        (DarkRoomEnv, {"goal": "near"}, "goal='near'", "cell"),
        (DarkRoomEnv, {"goal": 3}, "goal=3", "cell"),
        (DarkRoomEnv, {"start": "centre"}, "start='centre'", "did you mean 'center'"),
        (DarkRoomEnv, {"perm_index": 120}, "perm_index=120", "from 0 to 119"),
        (DarkRoomEnv, {"split": "val"}, "split='val'", "'train'"),
        (DarkRoomEnv, {"obs": "pixels"}, "obs='pixels'", "'discrete'"),
        (DarkRoomEnv, {"reward_once": "yes"}, "reward_once='yes'", "true or false"),
        (DarkKeyDoorEnv, {"key": (9, 0)}, "key=(9, 0)", "from 0 to 8"),
        (DarkKeyDoorEnv, {"size": 21}, "size=21", "from 2 to 20"),
        (VectorDarkRoom, {"num_envs": 2, "goals": 3}, "'goals'", "did you mean 'goal'"),
    ],
)
def test_bad_settings_are_refused_with_value_and_allowed_range(
    build: Any, kwargs: dict[str, Any], value: str, allowed: str
) -> None:
    with pytest.raises(SeqrlError) as caught:
        build(**kwargs)
    assert value in caught.value.message
    assert allowed in str(caught.value.hint)


def test_bad_options_and_actions_are_refused() -> None:
    env = DarkRoomEnv()
    with pytest.raises(SeqrlError, match="did you mean 'goal'"):
        env.reset(options={"gaol": (0, 0)})
    with pytest.raises(SeqrlError, match="no option 'perm_index'"):
        env.reset(options={"perm_index": 3})
    with pytest.raises(SeqrlError, match="no option 'goal'"):
        DarkKeyDoorEnv().reset(options={"goal": (0, 0)})
    for room in (env, DarkKeyDoorEnv()):
        with pytest.raises(SeqrlError, match="reset"):
            room.step(0)
        room.reset(seed=0)
        for action in (-1, 5):
            with pytest.raises(SeqrlError, match="actions are 0, 1, 2, 3 and 4"):
                room.step(action)
    many = VectorDarkRoom(3)
    with pytest.raises(SeqrlError, match="2 goals given"):
        many.reset(options={"goal": [(0, 0), (1, 1)]})
    many.reset(seed=0)
    with pytest.raises(SeqrlError, match="integers from 0 to 4"):
        many.step(np.full(3, 5))

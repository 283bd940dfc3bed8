"""Promises of Key-to-Door: the published game's rules, its expert, its pictures."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs import key_to_door_boards as boards
from seqrl.envs.key_to_door import KeyToDoorEmptyEnv, KeyToDoorEnv
from seqrl.errors import SeqrlError

NORTH, SOUTH, WEST, EAST, STAY = range(5)
FRESH = LoadOptions(cache=False)
WHITE = (255, 255, 255)


def play(env: KeyToDoorEnv, actions: Any, **reset: Any) -> dict[str, Any]:
    """Step through ``actions`` (a list, or "oracle") and return everything that was seen."""
    observation, info = env.reset(**reset)
    out: dict[str, Any] = {"obs": [observation], "infos": [info], "rewards": [], "actions": []}
    out["ended"] = []
    oracle = isinstance(actions, str)
    for t in range(env.max_episode_steps if oracle else len(actions)):
        out["actions"].append(env.oracle_action() if oracle else int(actions[t]))
        observation, reward, terminated, truncated, info = env.step(out["actions"][-1])
        assert not truncated
        for name, value in zip(
            ("obs", "rewards", "ended", "infos"),
            (observation, reward, terminated, info),
            strict=True,
        ):
            out[name].append(value)
    return out


def codes(played: dict[str, Any], code: int) -> list[int]:
    """How many cells of each observation hold something."""
    return [int((observation == code).sum()) for observation in played["obs"]]


# --- the Gymnasium contract -----------------------------------------------------------------------


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("mode", ["pixels", "flat", "symbolic", "one_hot", "full"])
@pytest.mark.parametrize("env_id", ["seqrl/KeyToDoor-v0", "seqrl/KeyToDoorEmpty-v0"])
def test_passes_gymnasiums_checker_without_warnings(env_id: str, mode: str, crop: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, obs_mode=mode, crop=crop)
        check_env(env.unwrapped)
        check_env(gymnasium.make(env_id, layout="cca", obs_mode=mode).unwrapped)
    assert env.observation_space.dtype == np.uint8
    shapes = {"pixels": (5, 5, 3), "flat": (75,), "symbolic": (5, 5), "one_hot": (175,)}
    shape = {**shapes, "full": (7, 11)}[mode]
    whole_board = {"pixels": (7, 11, 3), "flat": (231,), "symbolic": (7, 11), "full": (7, 11)}
    whole_board["one_hot"] = (539,)
    assert env.observation_space.shape == (shape if crop else whole_board[mode])


def test_defaults_are_the_specified_ones_and_the_horizon_is_told() -> None:
    env, empty = KeyToDoorEnv(), KeyToDoorEmptyEnv()
    assert env.settings.phase_lengths == (15, 60, 10)
    assert (env.settings.num_apples, env.settings.final_reward) == (10, 5.0)
    assert gymnasium.make("seqrl/KeyToDoor-v0").get_wrapper_attr("max_episode_steps") == 85
    assert empty.settings.phase_lengths == (20, 15, 10)
    assert (empty.settings.num_apples, empty.settings.final_reward) == (0, 1.0)
    assert empty.max_episode_steps == 45


def test_phases_switch_after_their_last_action_and_the_episode_terminates_at_85() -> None:
    played = play(KeyToDoorEnv(), [STAY] * 85, seed=0)
    assert [info["phase"] for info in played["infos"]] == [0] * 15 + [1] * 60 + [2] * 11
    assert played["ended"] == [False] * 84 + [True]
    assert [("success" in info) for info in played["infos"]] == [False] * 85 + [True]
    assert played["infos"][-1]["success"] is False


def test_a_step_outside_an_episode_is_refused_and_reset_works_in_its_middle() -> None:
    env = KeyToDoorEmptyEnv()
    with pytest.raises(SeqrlError, match="reset"):
        env.step(NORTH)
    play(env, [NORTH] * 30, seed=0)
    played = play(env, "oracle", seed=1)
    assert played["infos"][-1]["success"] is True
    with pytest.raises(SeqrlError, match="reset"):
        env.step(NORTH)


# --- boards ---------------------------------------------------------------------------------------


def test_boards_are_the_published_ones() -> None:
    view = boards.view_of("sr", crop=False)
    drawn = [
        ["".join("#" if code == boards.WALL else "." for code in row) for row in board]
        for board in view.backgrounds[:, boards.cell_of(3, 5)].reshape(3, 7, 11)
    ]
    assert drawn == [
        [
            "..#######..",
            "..#.....#..",
            "..#.....#..",
            "..##...##..",
            "..#.....#..",
            "..#.....#..",
            "..#######..",
        ],
        ["###########", *["#.........#"] * 5, "###########"],
        [
            "...........",
            "...##.##...",
            "...#...#...",
            "...#...#...",
            "...#...#...",
            "...#####...",
            "...........",
        ],
    ]
    assert [tuple(map(int, colour)) for colour in boards.COLOURS] == [
        (204, 204, 204),
        (25, 25, 25),
        (228, 148, 109),
        (159, 81, 44),
        (134, 206, 235),
        (140, 178, 0),
        (255, 255, 255),
    ]
    sites = {divmod(int(cell), 11) for cell in boards.APPLE_SITES}
    assert sites == {
        *((row, column) for row in (1, 3) for column in (1, 3, 5, 7, 9)),
        *((row, column) for row in (2, 4) for column in (2, 4, 6, 8)),
        *((5, column) for column in (1, 3, 7, 9)),
    }


def test_the_experts_round_enters_every_apple_site_once_in_44_steps() -> None:
    cell = boards.DISTRACTOR_START
    seen = []
    for _ in range(89):
        cell = int(boards.following("sr", 1)[cell, boards.ROUND[cell]])
        seen.append(cell)
    assert seen[44:88] == seen[:44]
    assert len(set(seen[:44])) == 44
    assert set(seen[1:44:2]) == set(boards.APPLE_SITES.tolist())


def test_initial_observation_is_the_agent_between_floor_walls_and_at_most_one_key() -> None:
    env = KeyToDoorEnv()
    floor, wall, agent, key = (tuple(map(int, boards.COLOURS[code])) for code in range(4))
    keys = 0
    for seed in range(100):
        observation, info = env.reset(seed=seed)
        assert observation.dtype == np.uint8
        assert observation.shape == (5, 5, 3)
        assert info == {"phase": 0, "has_key": False}
        pixels = [tuple(p) for p in observation.reshape(-1, 3).tolist()]
        assert pixels[12] == agent
        rest = pixels[:12] + pixels[13:]
        assert set(rest) <= {floor, wall, key}
        assert rest.count(key) <= 1
        keys += key in rest
    assert 0 < keys < 100


@pytest.mark.parametrize("layout", ["sr", "cca"])
@pytest.mark.parametrize("crop", [True, False])
def test_all_modes_show_the_same(layout: str, crop: bool) -> None:
    actions = np.random.default_rng(0).integers(4, size=85)
    seen = {
        mode: np.stack(play(KeyToDoorEnv(layout, crop=crop, obs_mode=mode), actions, seed=3)["obs"])
        for mode in ("pixels", "flat", "symbolic", "one_hot", "full")
    }
    np.testing.assert_array_equal(seen["pixels"], boards.COLOURS[seen["symbolic"]])
    kinds = seen["one_hot"].reshape(*seen["symbolic"].shape, len(boards.CODES))
    np.testing.assert_array_equal(kinds.argmax(-1), seen["symbolic"])
    np.testing.assert_array_equal(kinds.sum(-1), 1)
    channels_first = np.moveaxis(seen["pixels"], -1, 1).reshape(86, -1)
    np.testing.assert_array_equal(seen["flat"], channels_first)
    if not crop:
        np.testing.assert_array_equal(seen["full"], seen["symbolic"])


# --- key, apples, door ----------------------------------------------------------------------------


def test_picking_up_the_key_pays_nothing_and_lights_one_cell_for_one_observation() -> None:
    env = KeyToDoorEnv(obs_mode="pixels", crop=False)
    options = {"start": (4, 4), "key": (2, 4)}
    played = play(env, [NORTH, NORTH, STAY, SOUTH, NORTH], options=options)
    white = [np.argwhere((o == WHITE).all(axis=-1)).tolist() for o in played["obs"]]
    assert white == [[], [], [[0, 5]], [], [], []]
    assert [info["has_key"] for info in played["infos"]] == [False, False, True, True, True, True]
    assert not any(played["rewards"])
    cropped = play(KeyToDoorEnv(), [NORTH, NORTH, STAY], options=options)["obs"]
    white = [np.argwhere((o == WHITE).all(axis=-1)).tolist() for o in cropped]
    assert white == [[], [], [[0, 3]], []]
    late = [WEST, EAST] * 6 + [STAY, NORTH, NORTH, STAY]
    played = play(env, late, options=options)
    assert played["infos"][14] == {"phase": 0, "has_key": False}
    assert played["infos"][15] == {"phase": 1, "has_key": True}
    assert not any((o == WHITE).all(axis=-1).any() for o in played["obs"])


def test_the_door_opens_with_the_key_alone_and_pays_once() -> None:
    env = KeyToDoorEnv(phase_lengths=(2, 1, 8))
    options = {"start": (4, 4), "key": (2, 4)}
    env.reset(options=options)
    for action in (STAY, STAY, STAY, NORTH, NORTH, NORTH):
        _, reward, *_ = env.step(action)
        assert reward == 0
    assert env.position == (2, 5)
    played = play(env, [NORTH, NORTH, STAY, NORTH, NORTH, NORTH, SOUTH, STAY], options=options)
    assert played["rewards"] == [0, 0, 0, 0, 5, 0, 0, 0]
    assert [i["has_key"] for i in played["infos"]] == [False, False, *[True] * 3, *[False] * 4]
    assert env.position == (1, 5)
    # The door is drawn over the agent.
    assert played["obs"][5][2, 2].tolist() == boards.COLOURS[boards.DOOR].tolist()
    assert not any(env.step(STAY)[2] for _ in range(2))
    *_, terminated, _, info = env.step(STAY)
    assert terminated
    assert info == {"phase": 2, "has_key": False, "success": True}
    # Once outside, the whole surroundings can be walked.
    env.reset(options=options)
    for action in (NORTH, NORTH, STAY, NORTH, NORTH, NORTH, WEST, WEST):
        env.step(action)
    assert env.position == (0, 3)


def test_an_apple_is_back_after_21_frames_and_waits_for_the_next_step() -> None:
    env = KeyToDoorEnv(phase_lengths=(1, 60, 1), obs_mode="full")
    options = {"start": (4, 4), "key": (1, 7), "apples": [(5, 3), (1, 1)]}
    away = play(env, [STAY, WEST, WEST, EAST] + [STAY] * 30, options=options)
    frames = [int(o[5, 3] == boards.APPLE) for o in away["obs"][1:]]  # of the second board
    # Picked up at frame 2, there again at frame 23.
    assert frames == [1, 1] + [0] * 21 + [1] * (len(frames) - 23)
    assert away["rewards"] == [0, 0, 1] + [0] * 31
    there = play(env, [STAY, WEST, WEST] + [STAY] * 30, options=options)
    assert [t for t, reward in enumerate(there["rewards"]) if reward] == [2, 24]
    assert codes(play(KeyToDoorEnv(obs_mode="full"), [STAY] * 15, seed=0), boards.APPLE)[-1] == 10
    never = KeyToDoorEnv(phase_lengths=(1, 60, 1), respawn_every=0)
    assert sum(play(never, [STAY, WEST, WEST] + [STAY] * 50, options=options)["rewards"]) == 1


def test_the_last_apple_of_the_second_board_is_paid_with_the_third_boards_view() -> None:
    env = KeyToDoorEnv(phase_lengths=(1, 2, 3))
    options = {"apples": [(5, 3)]}
    env.reset(options=options)
    for action in (STAY, WEST):
        env.step(action)
    _, reward, _, _, info = env.step(WEST)
    assert (reward, info["phase"]) == (1, 2)


def test_apple_rewards_are_constant_or_an_end_an_episode_or_uniform_a_pick_up() -> None:
    def rewards(**settings: Any) -> list[set[float]]:
        env = KeyToDoorEnv(phase_lengths=(1, 60, 1), num_apples=22, **settings)
        return [{r for r in play(env, "oracle", seed=s)["rewards"] if r} for s in range(30)]

    assert rewards(apple_reward=3) == [{3.0}] * 30
    fixed = rewards(apple_reward=(1, 10))
    assert {len(values) for values in fixed} == {1}
    assert set().union(*fixed) == {1.0, 10.0}
    free = rewards(apple_reward=(1, 10), fix_apple_reward_in_episode=False)
    assert all(len(values) == 30 for values in free)
    drawn = np.array(sorted(set().union(*free)))
    assert 1 <= drawn[0] < 1.5 < 9.5 < drawn[-1] <= 10
    assert abs(drawn.mean() - 5.5) < 0.4


# --- the expert -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "layout"), [((15, 60, 10), "sr"), ((8, 1, 2), "sr"), ((8, 1, 8), "cca")]
)
def test_the_expert_always_succeeds(lengths: tuple[int, ...], layout: str) -> None:
    env = KeyToDoorEnv(layout, lengths)
    for seed in range(60):
        assert play(env, "oracle", seed=seed)["infos"][-1]["success"] is True
    walks = boards.steps_between("sr", 0)[boards.KEY_CELLS][:, boards.START_CELLS]
    assert walks.max() == 8
    assert KeyToDoorEnv.reference_scores(phase_lengths=lengths, layout=layout, num_apples=0) == {
        "random": pytest.approx(0.4, abs=0.4),
        "oracle": 5,
    }


def test_the_expert_is_right_after_mistakes() -> None:
    env = KeyToDoorEnv()
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for t in range(85):
        wild = t < 6 or 15 <= t < 75 or 75 <= t < 78
        env.step(int(rng.integers(4)) if wild else env.oracle_action())
    assert env._earned == 5


# --- randomness -----------------------------------------------------------------------------------


def test_same_seed_same_episode_and_instances_share_nothing() -> None:
    actions = np.random.default_rng(1).integers(4, size=85)
    settings: dict[str, Any] = {"apple_reward": (1, 2), "fix_apple_reward_in_episode": False}
    first = play(KeyToDoorEnv(**settings), actions, seed=5)
    one, other = KeyToDoorEnv(**settings), KeyToDoorEnv(**settings)
    observations, rewards = [one.reset(seed=5)[0]], []
    other.reset(seed=6)
    for action in actions:
        other.step(int(action))
        if other._time == 85:
            other.reset()
        observation, reward, *_ = one.step(int(action))
        observations.append(observation)
        rewards.append(reward)
    np.testing.assert_array_equal(np.stack(first["obs"]), np.stack(observations))
    assert first["rewards"] == rewards
    others = {play(KeyToDoorEnv(), actions, seed=s)["obs"][0].tobytes() for s in range(20)}
    assert len(others) > 5


def test_fixing_one_thing_leaves_the_others_as_they_were() -> None:
    env = KeyToDoorEnv("cca", obs_mode="full")
    free = play(env, [STAY] * 85, seed=2)["obs"]
    fixed = play(env, [STAY] * 85, seed=2, options={"key": (1, 3)})["obs"]
    assert fixed[0][1, 3] == boards.KEY
    np.testing.assert_array_equal(np.stack(free[15:]), np.stack(fixed[15:]))
    assert (free[0] == boards.AGENT).argmax() == (fixed[0] == boards.AGENT).argmax()


# --- for people -----------------------------------------------------------------------------------


def test_renderings_show_the_whole_board() -> None:
    options = {"start": (4, 4), "key": (1, 7)}
    env = KeyToDoorEnv(render_mode="ansi")
    with pytest.raises(SeqrlError, match="reset"):
        env.render()
    env.reset(options=options)
    lines = env.render().splitlines()
    assert lines[1] == "..#....k#.."
    assert lines[4] == "..#.A...#.."
    assert lines[-1] == "board 1 of 3, step 0 of 85, without a key"
    env = KeyToDoorEnv(render_mode="rgb_array", crop=True, obs_mode="flat")
    env.reset(options=options)
    before = env.render()
    env.step(EAST)
    assert before.shape == (178, 264, 3)
    assert before.dtype == np.uint8
    assert (before != env.render()).any()
    assert KeyToDoorEnv().render() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "maze"}, "layout"),
        ({"phase_lengths": (15, 60)}, "phase_lengths"),
        ({"phase_lengths": "15,60,x"}, "phase_lengths"),
        ({"phase_lengths": (15, 0, 10)}, "phase_lengths=0"),
        ({"phase_lengths": 15}, "phase_lengths=15"),
        ({"num_apples": 23}, "num_apples=23"),
        ({"apple_reward": (1, 2, 3)}, "apple_reward"),
        ({"apple_reward": (2, 1)}, "apple_reward"),
        ({"apple_reward": "many"}, "apple_reward"),
        ({"final_reward": -1}, "final_reward=-1"),
        ({"respawn_every": -1}, "respawn_every=-1"),
        ({"obs_mode": "image"}, "obs_mode"),
        ({"crop": 2}, "crop=2"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        KeyToDoorEnv(**settings)


def test_bad_options_actions_and_data_settings_are_refused() -> None:
    env = KeyToDoorEnv()
    for options in ({"goal": 1}, {"key": (4, 4)}, {"start": 3}, {"apples": [(5, 5)]}):
        with pytest.raises(SeqrlError):
            env.reset(options=options)  # type: ignore[arg-type]
    env.reset(seed=0)
    with pytest.raises(SeqrlError, match="action"):
        env.step(0.5)  # type: ignore[arg-type]
    before = env.position
    assert env.step(np.int64(-1))[1] == 0  # an unknown action is staying, as in the original
    assert env.position == before
    for uri in ("random:seqrl/KeyToDoor-v0?size=3", "oracle:seqrl/KeyToDoor-v0?num_apples=-1"):
        with pytest.raises(SeqrlError, match=r"size|num_apples"):
            load_dataset(uri, options=FRESH)

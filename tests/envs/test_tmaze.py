"""Promises of the three T-Mazes: spec traces, hidden goal, exact oracle data, honest references."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from itertools import pairwise, product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.envs import drawing
from seqrl.envs.tmaze import DOWN, LEFT, RIGHT, UP, TMazeEnv
from seqrl.envs.tmaze_classic import TMazeActiveEnv, TMazePassiveEnv
from seqrl.errors import SeqrlError

CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "seqrl/TMaze-v0": (TMazeEnv, {"limit": 9}),
    "seqrl/TMazePassive-v0": (TMazePassiveEnv, {"corridor": 7}),
    "seqrl/TMazeActive-v0": (TMazeActiveEnv, {"corridor": 7}),
}
IDS = list(CLASSES)


def play(env: Any, actions: Any, **reset: Any) -> dict[str, Any]:
    """Step through ``actions`` (a list, or "oracle") and return everything that was seen."""
    names = ("obs", "rewards", "terminations", "truncations", "infos")
    out: dict[str, Any] = {name: [] for name in (*names, "actions")}
    observation, info = env.reset(**reset)
    out["obs"].append(observation)
    out["infos"].append(info)
    for t in range(env.max_episode_steps if actions == "oracle" else len(actions)):
        out["actions"].append(env.oracle_action() if actions == "oracle" else actions[t])
        seen = env.step(out["actions"][-1])
        for name, value in zip(names, seen, strict=True):
            out[name].append(value)
        if seen[2] or seen[3]:
            break
    out["obs"] = np.stack(out["obs"])
    return out


# --- the Gymnasium contract -----------------------------------------------------------------------


@pytest.mark.parametrize("obs", ["vector", "pixels"])
@pytest.mark.parametrize("env_id", IDS)
def test_passes_gymnasiums_checker_without_warnings(env_id: str, obs: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, obs=obs, **CLASSES[env_id][1])
        check_env(env.unwrapped)


def test_registering_twice_is_silent_and_imports_neither_torch_nor_the_environments() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import seqrl.envs, gymnasium; seqrl.envs.register_envs()\n"
        "assert all(row.id in gymnasium.registry for row in seqrl.envs.ENVIRONMENTS)\n"
        "loaded = {'torch', 'seqrl.envs.tmaze', 'seqrl.envs.drawing'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("env_id", IDS)
def test_the_registered_environment_is_the_class_and_tells_its_horizon(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    env = gymnasium.make(env_id, **kwargs)
    assert type(env.unwrapped) is cls
    horizon = {"seqrl/TMaze-v0": 9, "seqrl/TMazePassive-v0": 8, "seqrl/TMazeActive-v0": 10}[env_id]
    assert env.get_wrapper_attr("max_episode_steps") == horizon
    assert len(play(env.unwrapped, [LEFT, UP] * 10, seed=0)["actions"]) == horizon


def test_a_step_outside_an_episode_is_refused() -> None:
    for cls, kwargs in CLASSES.values():
        env = cls(**kwargs)
        with pytest.raises(SeqrlError, match="reset"):
            env.step(RIGHT)
        play(env, "oracle", seed=0)
        with pytest.raises(SeqrlError, match="reset"):
            env.step(RIGHT)


@pytest.mark.parametrize("env_id", IDS)
def test_success_and_goal_are_told_in_the_last_info_only(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    played = play(cls(**kwargs), "oracle", options={"goal": -1})
    assert not any(played["infos"][:-1])
    assert played["infos"][-1] == {"success": True, "goal": -1}


# --- RATE T-Maze ----------------------------------------------------------------------------------


def test_winning_trace_of_limit_nine() -> None:
    played = play(TMazeEnv(limit=9, noise=False), [RIGHT] * 7 + [UP], options={"goal": 1})
    assert played["rewards"] == [0] * 7 + [1]
    assert played["terminations"] == [False] * 7 + [True]
    assert not any(played["truncations"])
    expected = np.zeros((9, 4))
    expected[0, 1] = 1  # the cue
    expected[7:, 2] = 1  # the flag, at the junction and in the goal cell above it
    expected[8, 0] = 1  # y
    np.testing.assert_array_equal(played["obs"], expected)


def test_never_moving_is_truncated_at_the_limit_without_reward() -> None:
    env = TMazeEnv(limit=9)
    played = play(env, [LEFT] * 20, options={"goal": 1})
    assert len(played["actions"]) == 9
    assert not any(played["rewards"])
    assert (played["terminations"][-1], played["truncations"][-1]) == (False, True)
    assert played["infos"][-1]["success"] is False
    assert env.position == (0, 0)


def test_one_no_op_may_be_wasted_and_a_second_one_loses() -> None:
    for wasted, reward in (([UP], 1.0), ([LEFT], 1.0), ([UP, DOWN], 0.0)):
        actions = [*wasted, *[RIGHT] * 7, UP]
        played = play(TMazeEnv(limit=9), actions, options={"goal": 1})
        assert sum(played["rewards"]) == reward
        assert len(played["actions"]) == 9


def test_wrong_turn_terminates_with_reward_zero() -> None:
    played = play(TMazeEnv(limit=9), [RIGHT] * 7 + [DOWN], options={"goal": 1})
    assert sum(played["rewards"]) == 0
    assert played["terminations"][-1] is True
    assert played["infos"][-1]["success"] is False


@pytest.mark.parametrize("limit", [3, 9, 30, 90, 300, 1200])
@pytest.mark.parametrize("goal", [-1, 1])
def test_oracle_always_succeeds_with_one_step_to_spare(limit: int, goal: int) -> None:
    played = play(TMazeEnv(limit=limit), "oracle", seed=1, options={"goal": goal})
    assert played["rewards"][-1] == 1
    assert len(played["actions"]) == limit - 1


@pytest.mark.parametrize("cue_steps", [0, 1, 3, 9])
def test_cue_is_shown_in_the_first_cue_steps_observations_wherever_one_is(cue_steps: int) -> None:
    expected = np.where(np.arange(10) < cue_steps, -1, 0)
    for actions in ([LEFT] * 9, [RIGHT, LEFT] * 4 + [LEFT]):
        played = play(TMazeEnv(limit=9, cue_steps=cue_steps), actions, options={"goal": -1})
        np.testing.assert_array_equal(played["obs"][:, 1], expected)


def test_noise_and_noise_channels_are_uniform_on_three_values_uncorrelated_or_off() -> None:
    env = TMazeEnv(limit=6000, noise_channels=2)
    noise = play(env, [LEFT] * 6000, seed=3)["obs"][:, 3:]
    assert noise.shape == (6001, 3)
    assert set(np.unique(noise)) == {-1, 0, 1}
    for value in (-1, 0, 1):
        np.testing.assert_allclose((noise == value).mean(axis=0), 1 / 3, atol=0.03)
    correlations = np.corrcoef(np.column_stack([noise[1:], noise[:-1]]), rowvar=False)
    assert np.abs(correlations - np.eye(6)).max() < 0.06
    assert not play(TMazeEnv(noise=False, flag=False), "oracle", seed=0)["obs"][:, 2:].any()


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episode_and_other_seeds_give_other_episodes(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    first, second = (play(cls(**kwargs), "oracle", seed=5)["obs"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    others = [play(cls(**kwargs), "oracle", seed=seed)["obs"].tobytes() for seed in range(20)]
    assert len(set(others)) > 1


@pytest.mark.parametrize("env_id", IDS)
def test_goals_are_balanced_exactly_by_episode_options_and_on_average_without(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    env = cls(**kwargs)
    ends = [play(env, "oracle", options=env.episode_options(i))["infos"][-1] for i in range(10)]
    assert [end["goal"] for end in ends] == [1, -1] * 5
    env.reset(seed=0)
    ends = [play(env, "oracle")["infos"][-1] for _ in range(400)]
    assert 150 < sum(end["goal"] == 1 for end in ends) < 250


def test_fixing_the_goal_leaves_the_noise_as_it_was() -> None:
    env = TMazeEnv(limit=30)
    choices: list[Any] = [{"goal": 1}, {"goal": -1}, None]
    up, down, free = (play(env, [RIGHT] * 28, seed=4, options=c)["obs"] for c in choices)
    np.testing.assert_array_equal(up[1:], down[1:])
    np.testing.assert_array_equal(up[1:], free[1:])
    assert up[0, 1] == -down[0, 1]


# --- Ni et al.: passive and active ----------------------------------------------------------------


@pytest.mark.parametrize(("cls", "goal"), [*product((TMazePassiveEnv, TMazeActiveEnv), (-1, 1))])
def test_classic_oracle_returns_one_in_exactly_the_fixed_length(cls: Any, goal: int) -> None:
    for corridor in (1, 5, 50, 250):
        played = play(cls(corridor=corridor), "oracle", options={"goal": goal})
        assert sum(played["rewards"]) == 1
        assert len(played["actions"]) == corridor + 2 * cls.oracle_distance + 1
        assert played["terminations"][-1] is True


def test_classic_observations_are_cue_then_nothing_then_junction() -> None:
    passive = play(TMazePassiveEnv(corridor=3), "oracle", options={"goal": -1})
    np.testing.assert_array_equal(passive["obs"], [[0, -1], [0, 0], [0, 0], [1, 0], [1, -1]])
    active = play(TMazeActiveEnv(corridor=2), "oracle", options={"goal": -1})
    assert active["actions"] == [LEFT, RIGHT, RIGHT, RIGHT, DOWN]
    np.testing.assert_array_equal(active["obs"], [[0, 0], [0, -1], [0, 0], [0, 0], [1, 0], [1, -1]])


def test_always_left_returns_minus_one_in_the_passive_maze() -> None:
    played = play(TMazePassiveEnv(corridor=5), [LEFT] * 6, seed=0)
    assert played["rewards"] == pytest.approx([-0.2] * 5 + [0])
    assert sum(played["rewards"]) == pytest.approx(-1)


def test_walking_straight_right_is_never_penalised_in_the_active_maze() -> None:
    played = play(TMazeActiveEnv(corridor=5), [RIGHT] * 8, seed=0)
    assert played["rewards"] == [0] * 8
    assert not played["obs"][:-3, 1].any()  # and never learns the cue


def test_classic_cue_is_shown_at_the_first_visit_only() -> None:
    actions = [LEFT, LEFT, RIGHT, LEFT, RIGHT]
    played = play(TMazeActiveEnv(corridor=5), actions, options={"goal": 1})
    np.testing.assert_array_equal(played["obs"][:, 1], [0, 1, 0, 0, 0, 0])
    played = play(TMazePassiveEnv(corridor=5), actions, options={"goal": 1})
    np.testing.assert_array_equal(played["obs"][:, 1], [1, 0, 0, 0, 0, 0])


def test_classic_penalty_follows_mode_and_value() -> None:
    assert sum(play(TMazePassiveEnv(corridor=5, mode="sparse"), [LEFT] * 6)["rewards"]) == 0
    given = play(TMazePassiveEnv(corridor=5, penalty=-0.5), [LEFT] * 6)
    assert sum(given["rewards"]) == pytest.approx(-2.5)


def test_classic_goal_cell_can_be_left_and_the_oracle_repairs_a_wrong_turn() -> None:
    env = TMazeActiveEnv(corridor=2)
    env.reset(options={"goal": 1})
    for action in (RIGHT, RIGHT, DOWN):
        env.step(action)
    assert env.position == (3, -1)
    assert env.oracle_action() == UP
    env.step(UP)
    assert env.position == (3, 0)
    assert env.step(env.oracle_action())[1] == 1


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_pixels_are_a_function_of_the_vector(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    pictures: dict[bytes, bytes] = {}
    for seed in range(12):
        actions = np.random.default_rng(seed).choice([RIGHT, RIGHT, RIGHT, UP, LEFT], 10).tolist()
        vectors = play(cls(**kwargs), actions, seed=seed)["obs"]
        images = play(cls(obs="pixels", **kwargs), actions, seed=seed)["obs"]
        assert images.dtype == np.uint8
        assert images.shape[1:] == (64, 64, 3)
        for vector, image in zip(vectors, images, strict=True):
            assert pictures.setdefault(vector.tobytes(), image.tobytes()) == image.tobytes()
    assert len(set(pictures.values())) == len(pictures)  # and nothing of the vector is lost


def test_different_vectors_give_different_pictures() -> None:
    rows = np.array(list(product((-1, 0, 1), (-1, 0, 1), (0, 1), (-1, 0, 1), (-1, 0, 1))))
    images = drawing.observation_images(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:])
    assert len({image.tobytes() for image in images}) == len(rows)


def test_pixels_say_nothing_about_goal_or_position_after_the_cue() -> None:
    env = TMazeEnv(limit=30, noise=False, obs="pixels")
    up, down = (play(env, [RIGHT] * 28, options={"goal": goal})["obs"] for goal in (1, -1))
    assert (up[0] != down[0]).any()
    np.testing.assert_array_equal(up[1:], down[1:])
    assert (up[1:28] == up[1]).all()  # every corridor cell looks alike
    assert (up[28] != up[1]).any()  # the junction does not


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("size", [9, 400])
def test_renderings_have_bounded_width_and_change_as_the_agent_moves(
    env_id: str, size: int
) -> None:
    cls, kwargs = CLASSES[env_id]
    kwargs = dict.fromkeys(kwargs, size)
    frames = []
    for mode in ("ansi", "rgb_array"):
        env = cls(render_mode=mode, **kwargs)
        env.reset(options={"goal": 1})
        frames.append(env.render())
        env.step(RIGHT)
        frames.append(env.render())
    assert max(map(len, frames[0].splitlines())) <= 64
    assert frames[0] != frames[1]
    assert frames[2].shape[0] == 132
    assert frames[2].shape[1] <= 436
    assert (frames[2] != frames[3]).any()


# --- oracle data ----------------------------------------------------------------------------------


def split(columns: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Cut flat columns into episodes with all their observations."""
    starts = columns["episode_starts"]
    episodes = []
    for e, (a, b) in enumerate(pairwise(starts)):
        obs = np.concatenate([columns["observations"][a:b], columns["final_observations"][e, None]])
        rest = ("actions", "rewards", "terminations", "truncations")
        episodes.append({"obs": obs, **{name: columns[name][a:b] for name in rest}})
    return episodes


def assert_equals_stepping(episode: dict[str, np.ndarray], env: Any, i: int, width: Any) -> None:
    played = play(env, "oracle", seed=i, options=env.episode_options(i))
    for name in ("actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(episode[name], played[name], err_msg=name)
    np.testing.assert_array_equal(episode["obs"][..., :width], played["obs"][..., :width])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"noise": False},
        {"noise": False, "cue_steps": 4, "flag": False, "corridor": 4},
        {"noise": False, "obs": "pixels"},
        {"noise": True, "noise_channels": 2},
    ],
)
def test_generated_episodes_are_those_of_the_stepped_oracle(kwargs: dict[str, Any]) -> None:
    columns = TMazeEnv.oracle_columns(12, seed=0, limit=9, **kwargs)
    width = 3 if kwargs["noise"] else None  # noise draws differ, everything else is equal
    for i, episode in enumerate(split(columns)):
        corridor = len(episode["actions"]) - 1
        env = TMazeEnv(**{**kwargs, "limit": corridor + 2, "corridor": corridor})
        assert_equals_stepping(episode, env, i, width)


@pytest.mark.parametrize("obs", ["vector", "pixels"])
@pytest.mark.parametrize("cls", [TMazePassiveEnv, TMazeActiveEnv])
def test_generated_classic_episodes_are_those_of_the_stepped_oracle(cls: Any, obs: str) -> None:
    for corridor in (1, 6):
        columns = cls.oracle_columns(4, 0, corridor=corridor, obs=obs)
        for i, episode in enumerate(split(columns)):
            assert_equals_stepping(episode, cls(corridor=corridor, obs=obs), i, None)


@pytest.mark.parametrize("env_id", IDS)
def test_columns_have_the_promised_shapes_and_types(env_id: str) -> None:
    cls, kwargs = CLASSES[env_id]
    columns = cls.oracle_columns(5, 0, **kwargs)
    steps = columns["episode_starts"][-1]
    per_step = {"observations": "float32", "actions": "int64", "rewards": "float32"}
    per_step.update(terminations="bool", truncations="bool")
    for name, dtype in per_step.items():
        assert columns[name].dtype == dtype
        assert len(columns[name]) == steps
    assert set(columns) == {*per_step, "final_observations", "episode_starts"}
    assert columns["final_observations"].dtype == "float32"
    assert columns["episode_starts"].dtype == "int64"
    assert columns["final_observations"].shape == (5, columns["observations"].shape[1])
    space = cls(**kwargs).observation_space
    assert all(space.contains(row) for row in columns["observations"])


def test_tmaze_30_is_two_thousand_balanced_winning_episodes_of_uniform_corridors() -> None:
    columns = TMazeEnv.oracle_columns(2000, seed=0, limit=30)
    episodes = split(columns)
    lengths = np.diff(columns["episode_starts"]) - 1
    assert len(episodes) == 2000
    assert sorted(set(lengths)) == list(range(1, 29))
    counts = np.bincount(lengths, minlength=29)[1:]
    assert abs(counts - 2000 / 28).max() < 40
    cues = columns["observations"][columns["episode_starts"][:-1], 1]
    assert (cues == 1).sum() == (cues == -1).sum() == 1000
    assert columns["rewards"].sum() == 2000
    assert set(np.unique(columns["observations"][:, 3])) == {-1, 0, 1}
    longest = TMazeEnv.oracle_columns(4, seed=0, limit=30, corridors="longest")
    np.testing.assert_array_equal(np.diff(longest["episode_starts"]), 29)


def test_return_to_go_is_one_until_the_goal() -> None:
    for episode in split(TMazeEnv.oracle_columns(6, seed=0, limit=9)):
        rtg = episode["rewards"][::-1].cumsum()[::-1]
        np.testing.assert_array_equal(rtg, 1)


def test_segments_are_the_union_of_the_single_files_or_the_largest_of_them() -> None:
    union = TMazeEnv.oracle_columns(10, seed=7, limit=10, segments=3)
    largest = TMazeEnv.oracle_columns(10, seed=7, limit=10, segments=3, mixture="max_only")
    files = [TMazeEnv.oracle_columns(10, seed=7, limit=n) for n in (10, 20, 30)]
    for name in union:
        np.testing.assert_array_equal(largest[name], files[-1][name], err_msg=name)
        if name != "episode_starts":
            parts = np.concatenate([file[name] for file in files])
            np.testing.assert_array_equal(union[name], parts, err_msg=name)
    lengths = np.concatenate([np.diff(file["episode_starts"]) for file in files])
    np.testing.assert_array_equal(np.diff(union["episode_starts"]), lengths)


def test_wrong_turns_lose_half_of_the_episodes_of_each_goal() -> None:
    columns = TMazeEnv.oracle_columns(40, seed=0, limit=9, wrong_turns=True)
    starts = columns["episode_starts"]
    goals, won = columns["observations"][starts[:-1], 1], columns["rewards"][starts[1:] - 1]
    for goal in (-1, 1):
        assert won[goals == goal].mean() == 0.5
    turned = np.where(columns["actions"][starts[1:] - 1] == UP, 1, -1)
    np.testing.assert_array_equal(won == 1, turned == goals)
    np.testing.assert_array_equal(columns["final_observations"][:, 0], turned)


def test_data_belong_to_the_environment_of_the_longest_limit() -> None:
    kwargs = TMazeEnv.data_env_kwargs(limit=30, segments=3, corridors="uniform", noise=False)
    assert kwargs == {"limit": 90, "noise": False}
    assert TMazePassiveEnv.data_env_kwargs(corridor=9) == {"corridor": 9}


# --- references and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (TMazeEnv, {"limit": 4}),
        (TMazeEnv, {"limit": 6, "corridor": 2}),
        (TMazePassiveEnv, {"corridor": 4}),
        (TMazeActiveEnv, {"corridor": 1}),
        (TMazeActiveEnv, {"corridor": 3, "mode": "sparse"}),
    ],
)
def test_random_reference_is_the_mean_over_all_action_sequences(cls: Any, kwargs: Any) -> None:
    env = cls(**kwargs)
    cases = product(product(range(4), repeat=env.max_episode_steps), (-1, 1))
    returns = [sum(play(env, seq, options={"goal": goal})["rewards"]) for seq, goal in cases]
    reference = cls.reference_scores(**kwargs)
    assert reference == {"random": pytest.approx(np.mean(returns), abs=1e-9), "oracle": 1.0}


DATA = partial(TMazeEnv.oracle_columns, episodes=4, seed=0)


@pytest.mark.parametrize(
    ("build", "kwargs", "value", "allowed"),
    [
        (TMazeEnv, {"limit": 2}, "limit=2", ">= 3"),
        (TMazeEnv, {"limit": 9.5}, "limit=9.5", ">= 3"),
        (TMazeEnv, {"limit": True}, "limit=True", ">= 3"),
        (TMazeEnv, {"limit": 9, "corridor": 9}, "corridor=9", "from 1 to 8"),
        (TMazeEnv, {"corridor": 0}, "corridor=0", "from 1 to 29"),
        (TMazeEnv, {"cue_steps": -1}, "cue_steps=-1", ">= 0"),
        (TMazeEnv, {"noise": "yes"}, "noise='yes'", "true or false"),
        (TMazeEnv, {"flag": 2}, "flag=2", "true or false"),
        (TMazeEnv, {"noise_channels": -1}, "noise_channels=-1", ">= 0"),
        (TMazeEnv, {"noise_channels": 16, "obs": "pixels"}, "noise_channels=16", "from 0 to 15"),
        (TMazeEnv, {"obs": "pixel"}, "obs='pixel'", "did you mean 'pixels'"),
        (TMazeEnv, {"render_mode": "human"}, "render_mode='human'", "'ansi'"),
        (TMazePassiveEnv, {"corridor": 0}, "corridor=0", ">= 1"),
        (TMazePassiveEnv, {"mode": "Dense"}, "mode='Dense'", "'dense', 'sparse'"),
        (TMazePassiveEnv, {"penalty": 0.5}, "penalty=0.5", "from -1 to 0"),
        (TMazePassiveEnv, {"penalty": float("nan")}, "penalty=nan", "from -1 to 0"),
        (TMazeActiveEnv, {"penalty": -0.1, "mode": "sparse"}, "penalty=-0.1", "mode='dense'"),
        (DATA, {"episodes": 0}, "episodes=0", ">= 1"),
        (DATA, {"seed": -1}, "seed=-1", ">= 0"),
        (DATA, {"segments": 0}, "segments=0", ">= 1"),
        (DATA, {"corridors": "long"}, "corridors='long'", "longest"),
        (DATA, {"mixture": "all"}, "mixture='all'", "union"),
        (DATA, {"nois": False}, "'nois'", "did you mean 'noise'"),
        (DATA, {"limit": 9, "corridor": 20}, "corridor=20", "from 1 to 8"),
    ],
)
def test_bad_settings_are_refused_with_value_and_allowed_range(
    build: Any, kwargs: dict[str, Any], value: str, allowed: str
) -> None:
    with pytest.raises(SeqrlError) as caught:
        build(**kwargs)
    assert value in caught.value.message
    assert allowed in str(caught.value.hint)


@pytest.mark.parametrize("cls", [TMazeEnv, TMazePassiveEnv, TMazeActiveEnv])
def test_bad_goals_options_and_actions_are_refused(cls: Any) -> None:
    env = cls()
    for goal in (0, 2, True, "up", None):
        with pytest.raises(SeqrlError, match=r"\+1 \(up\) or -1 \(down\)"):
            env.reset(options={"goal": goal})
    with pytest.raises(SeqrlError, match="did you mean 'goal'"):
        env.reset(options={"gaol": 1})
    env.reset(seed=0)
    for action in (-1, 4):
        with pytest.raises(SeqrlError, match="actions are 0, 1, 2 and 3"):
            env.step(action)

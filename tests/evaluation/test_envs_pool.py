"""Making environments: every mistake is one clear line. Pools: slots are independent."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from eval_toys import pool
from gymnasium import error, spaces

from seqrl.envs import pool as pools
from seqrl.envs.making import horizon, make_env
from seqrl.envs.pool import (
    ABSENT,
    FAILED,
    SUCCEEDED,
    AsyncPool,
    LocalPool,
    env_factory,
    make_pool,
    step_limit,
    success_in,
    task_of,
)
from seqrl.errors import SeqrlError


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message", "hint"),
    [
        ("CartPol-v1", {}, "no environment 'CartPol-v1'", "did you mean 'CartPole-v1'"),
        ("cartpole-v1", {}, "no environment", "CartPole-v1"),
        ("CartPole-v7", {}, "no environment 'CartPole-v7'", "CartPole-v1"),
        ("TMaze-v0", {}, "no environment 'TMaze-v0'", "'seqrl/TMaze-v0'"),
        ("nothing:X-v0", {}, "module 'nothing' is not installed", "PYTHONPATH"),
        ("Taxi-v3", {}, "environment 'Taxi-v3' is retired", "Taxi-v"),
        ("Hopper-v2", {}, "environment 'Hopper-v2' is retired", "Hopper-v4"),
        ("not an id!", {}, "'not an id!' is no environment id", "module:Name-v0"),
        ("toy/Walk-v0", {"rewar": 1}, "takes no argument 'rewar'", "did you mean 'reward'?"),
        ("seqrl/TMaze-v0", {"limit": 1}, "limit=1 is not allowed", "limit must be"),
    ],
)
def test_what_cannot_be_made_says_why_and_what_to_do(env_id, kwargs, message, hint):
    with pytest.raises(SeqrlError) as e:
        make_env(env_id, kwargs)
    assert message in e.value.message
    assert hint in (e.value.hint or "")


@pytest.mark.parametrize(
    ("raised", "message", "hint"),
    [
        (
            error.DependencyNotInstalled("MuJoCo is not installed"),
            "needs mujoco",
            '"seqrl[mujoco]"',
        ),
        (error.DependencyNotInstalled("Box2D is not installed"), "needs box2d", '"seqrl[box2d]"'),
        (ModuleNotFoundError("No module named 'foo'", name="foo"), "cannot be imported", "foo"),
        (ValueError("strange"), "ValueError: strange", "arguments given"),
    ],
)
def test_a_missing_package_names_the_extra_to_install(monkeypatch, raised, message, hint):
    def make(*args, **kwargs):
        raise raised

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(SeqrlError) as e:
        make_env("Hopper-v5", {})
    assert message in e.value.message
    assert hint in (e.value.hint or "")


@pytest.mark.parametrize(
    ("env_id", "install"),
    [("MiniGrid-Empty-5x5-v0", "minigrid"), ("FetchReach-v4", "gymnasium-robotics")],
)
def test_well_known_packages_are_named_by_their_ids(env_id, install, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    # As in a process that has not imported the package yet.
    monkeypatch.delitem(gymnasium.registry, env_id, raising=False)
    with pytest.raises(SeqrlError) as e:
        make_env(env_id)
    assert e.value.hint == f"pip install {install}"


def test_an_environment_comes_without_the_passive_checker():
    env = make_env("CartPole-v1")
    while isinstance(env, gymnasium.Wrapper):
        assert not isinstance(env, gymnasium.wrappers.PassiveEnvChecker)
        env = env.env


def test_the_horizon_is_found_wherever_it_stands():
    assert horizon(make_env("CartPole-v1")) == 500
    assert horizon(make_env("seqrl/TMaze-v0", {"limit": 12})) == 12
    bare = make_env("toy/Counting-v0")
    assert horizon(bare) is None
    assert horizon(gymnasium.wrappers.TimeLimit(bare, 9)) == 9


def test_an_endless_environment_needs_a_step_limit():
    with pool("toy/Counting-v0") as envs:
        task = task_of(envs, "toy/Counting-v0")
        with pytest.raises(SeqrlError, match="has no step limit") as e:
            step_limit(envs, None, task)
        assert e.value.hint == "add --max-steps 1000"
        assert step_limit(envs, 70, task) == 70


def test_observations_leave_a_pool_as_float32():
    with pool("toy/Walk-v0", 2) as envs:
        first = envs.reset([0, 1], [0, 1], [None, None])
        step = envs.step([1], np.zeros((1, 3), np.float32))
        assert first.dtype == step.observations.dtype == np.float32
        assert first.shape == (2, 5)
        assert envs.envs[0].observation_space.dtype == np.float64


def test_nested_observations_are_flattened_in_stated_order():
    class Nested(gymnasium.Env):
        observation_space = spaces.Dict(
            b=spaces.Box(-1, 1, (2, 2)), a=spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1)])
        )
        action_space = spaces.MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return {"b": np.array([[1, 2], [3, 4]]) / 4, "a": (2, np.array([0.5]))}, {}

        def step(self, action):
            assert action.dtype == self.action_space.dtype
            return self.reset()[0], float(action.sum()), False, True, {"is_success": action[1]}

    expected = [0, 0, 1, 0.5, 0.25, 0.5, 0.75, 1]
    for envs in (LocalPool(Nested, 2), AsyncPool(Nested, 2)):
        with envs:
            assert envs.reset([1], [0], [None])[0].tolist() == expected
            envs.reset([0], [0], [None])
            step = envs.step([0, 1], np.array([[0, 0], [1, 2]]))
            assert step.observations.tolist() == [expected, expected]
            assert step.rewards.tolist() == [0, 3]
            assert step.success.tolist() == [FAILED, SUCCEEDED]
            assert step.truncated.tolist() == [True, True]


@pytest.mark.parametrize("kind", [LocalPool, AsyncPool])
def test_slots_that_are_not_named_rest(kind):
    with kind(env_factory("toy/Walk-v0"), 3) as envs:
        options = [{"length": 9}] * 3
        envs.reset([0, 1, 2], [5, 6, 7], options)
        envs.step([0, 2], np.zeros((2, 3), np.float32))
        moved = envs.reset([2], [6], [{"length": 9}])  # slot 2 becomes a copy of slot 1
        step = envs.step([1, 2], np.zeros((2, 3), np.float32))
        assert (step.observations[0] == step.observations[1]).all()
        assert not (step.observations[0] == moved[0]).all()


@pytest.mark.parametrize("kind", [LocalPool, AsyncPool])
def test_slots_get_their_own_options(kind):
    with kind(env_factory("toy/Offering-v0"), 2) as envs:
        envs.reset([0, 1], [0, 0], [{"goal": 1}, {"goal": 0}])
        step = envs.step([0, 1], np.zeros(2, np.int64))
        assert step.rewards.tolist() == [1, 0]
        assert [envs.episode_options(i) for i in range(3)] == [
            {"goal": 0},
            {"goal": 1},
            {"goal": 0},
        ]


def test_success_is_read_under_both_names():
    assert success_in({"success": np.bool_(True)}) == SUCCEEDED
    assert success_in({"success": 0.0}) == FAILED
    assert success_in({"is_success": 1}) == SUCCEEDED
    assert success_in({}) == ABSENT


def test_cheap_environments_stay_in_process_unless_asked(monkeypatch):
    factory = env_factory("toy/Walk-v0")
    with make_pool(factory, 2) as envs:
        assert isinstance(envs, LocalPool)
    with make_pool(factory, 2, "async") as envs:
        assert isinstance(envs, AsyncPool)
    monkeypatch.setattr(pools, "step_seconds", lambda env: 5e-3)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    with make_pool(factory, 2) as envs:
        assert isinstance(envs, AsyncPool)
    with pytest.raises(SeqrlError, match="num_envs is 0"):
        make_pool(factory, 0)
    with pytest.raises(SeqrlError, match="must be auto, sync or async"):
        make_pool(factory, 1, "fast")


def test_a_slow_step_is_noticed():
    env = make_env("toy/Walk-v0")
    assert 0 < pools.step_seconds(env, 5) < 1e-2

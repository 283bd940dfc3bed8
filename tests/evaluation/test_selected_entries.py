"""A policy trained on some entries of a Dict observation is evaluated on those entries."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from seqrl.agents.bc import BCConfig, BehaviourCloning
from seqrl.datasets.trajectories import Trajectories
from seqrl.envs.pool import make_env
from seqrl.evaluation import EvalConfig, evaluate


class ThreeEntries(gymnasium.Env):
    """Two vectors and an image; the reward is the first vector's sum."""

    max_episode_steps = 5

    def __init__(self):
        image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        box = spaces.Box(-1, 1, (2,), np.float64)
        self.observation_space = spaces.Dict({"near": box, "far": box, "view": image})
        self.action_space = spaces.Discrete(2)

    def _look(self):
        self.t += 1
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = -1
        return self._look(), {}

    def step(self, action):
        obs = self._look()
        return obs, float(obs["near"].sum()), self.t == 5, False, {}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("tests/ThreeEntries-v0", entry_point=ThreeEntries)
    yield
    gymnasium.registry.pop("tests/ThreeEntries-v0")


@pytest.mark.parametrize(
    ("keys", "shape"), [(("far", "near"), (4,)), (("near",), (2,)), (("view",), (8, 8, 3))]
)
def test_selected_entries_reach_the_policy(keys: tuple[str, ...], shape: tuple[int, ...]) -> None:
    env = make_env("tests/ThreeEntries-v0", keys=keys)
    parts = {k: env.unwrapped.observation_space[k] for k in keys}
    space = parts["view"] if "view" in keys else spaces.Dict(parts)
    rng = np.random.default_rng(0)
    n = 12
    columns = {k: rng.uniform(-1, 1, (n, 2)) for k in parts}
    obs = rng.integers(0, 256, (n, 8, 8, 3), np.uint8) if "view" in keys else columns
    data = Trajectories.from_arrays(
        obs, rng.integers(0, 2, n), np.ones(n), np.arange(n) % 4 == 3,
        observation_space=space, action_space=env.action_space, env_id="tests/ThreeEntries-v0",
    )  # fmt: skip
    assert data.task.observation.shape == shape
    task = data.task
    if "view" in keys:  # as the Minari reader notes it
        import dataclasses

        task = dataclasses.replace(
            task, observation=dataclasses.replace(task.observation, keys=keys)
        )
    agent = BehaviourCloning(BCConfig(width=16), [task], [data.stats]).eval()
    report = evaluate(agent, config=EvalConfig(episodes=3, num_envs=2))
    assert [e["length"] for e in report.episodes] == [5, 5, 5]


def test_all_entries_and_other_observations_stay_as_they_are() -> None:
    whole = make_env("tests/ThreeEntries-v0")
    assert set(whole.observation_space.spaces) == {"near", "far", "view"}
    plain = make_env("CartPole-v1", keys=("near",))
    assert plain.observation_space.shape == (4,)

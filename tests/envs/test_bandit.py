"""Promises of the bandits: spec rewards, hidden means, honest references, many equal to one."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from seqrl.datasets import LoadOptions, load_dataset
from seqrl.envs.bandit import BanditEnv, LinearBanditEnv, VectorBandit, VectorLinearBandit
from seqrl.envs.bandit_rules import behaviour_probabilities, sample_arms
from seqrl.envs.bandit_tasks import arm_features
from seqrl.envs.pool import env_factory, make_pool
from seqrl.errors import SeqrlError
from seqrl.rollout import plan_episodes

THEORY = {
    "dim": 5,
    "arms": "per_env",
    "theta": "uniform01",
    "sigma": 1.5,
    "observe_arms": True,
}
CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (BanditEnv, VectorBandit, {"horizon": 20}),
    (BanditEnv, VectorBandit, {"horizon": 20, "kind": "bernoulli", "n_arms": 3}),
    (BanditEnv, VectorBandit, {"horizon": 20, "means": [0.1, 0.9]}),
    (LinearBanditEnv, VectorLinearBandit, {"horizon": 20}),
    (LinearBanditEnv, VectorLinearBandit, {"horizon": 20, **THEORY}),
]
IDS = ["gaussian", "bernoulli", "given", "linear", "theory"]


def play(env: Any, actions: Any, **reset: Any) -> dict[str, np.ndarray]:
    """Everything seen while stepping through ``actions [T]`` (of one environment)."""
    observation, info = env.reset(**reset)
    out: dict[str, list[Any]] = {"obs": [observation], "best": [info["optimal_action"]]}
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        values = {"obs": observation, "best": info["optimal_action"], "rewards": reward}
        values |= {"regret": info["regret"], "over": (terminated, truncated)}
        for name, value in values.items():
            out.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in out.items()}


@pytest.mark.parametrize(("cls", "vector", "kwargs"), CASES, ids=IDS)
def test_passes_gymnasiums_checker_without_warnings(cls: Any, vector: Any, kwargs: Any) -> None:
    env_id = {BanditEnv: "seqrl/Bandit-v0", LinearBanditEnv: "seqrl/LinearBandit-v0"}[cls]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, **kwargs)
        assert type(env.unwrapped) is cls
        check_env(env.unwrapped)


def test_sigma_is_the_standard_deviation_of_an_arm() -> None:
    for sigma in (0.3, 1.5):
        rewards = VectorBandit(1, sigma=sigma, horizon=20_000, means=[0.2, 0.6])
        played = play(rewards, np.ones((20_000, 1), np.int64), seed=0)["rewards"]
        assert played.std() == pytest.approx(sigma, rel=0.03)
        assert played.mean() == pytest.approx(0.6, abs=4 * sigma / 20_000**0.5)


def test_a_bernoulli_arm_pays_one_with_its_mean() -> None:
    env = BanditEnv(kind="bernoulli", horizon=4000, means=[0.2, 0.7])
    rewards = play(env, [1] * 4000, seed=3)["rewards"]
    assert set(rewards) == {0.0, 1.0}
    assert rewards.mean() == pytest.approx(0.7, abs=0.03)


def test_an_episode_is_cut_at_the_horizon_never_terminates_and_then_refuses_steps() -> None:
    env = BanditEnv(horizon=3)
    with pytest.raises(SeqrlError, match="reset"):
        env.step(0)
    played = play(env, [0, 1, 2], seed=0)
    assert played["over"].tolist() == [[False, False], [False, False], [False, True]]
    with pytest.raises(SeqrlError, match="reset"):
        env.step(0)
    many = VectorBandit(2, horizon=1)
    many.reset(seed=0)
    assert many.step(np.zeros(2, np.int64))[3].tolist() == [True, True]
    with pytest.raises(SeqrlError, match="reset"):
        many.step(np.zeros(2, np.int64))


def test_infos_tell_best_arm_and_gap_and_the_oracle_has_none() -> None:
    env = BanditEnv(noise_free=True, horizon=9)
    played = play(env, [0, 1, 2, 1], options={"means": [0.5, 0.75, 0.25, 0.0, 0.0]})
    assert played["best"].tolist() == [1] * 5
    assert played["regret"].tolist() == [0.25, 0.0, 0.5, 0.0]
    assert played["rewards"].tolist() == [0.5, 0.75, 0.25, 0.75]
    assert played["obs"].tolist() == [[1.0]] * 5
    assert env.oracle_action() == 1


def test_means_are_drawn_at_every_reset_or_once() -> None:
    env = BanditEnv()
    env.reset(seed=0)
    first = env.means
    env.reset()
    assert env.means != first
    fixed = BanditEnv(resample=False)
    fixed.reset(seed=0)
    first = fixed.means
    fixed.reset(seed=1)
    assert fixed.means == first
    assert fixed.episode_options(0) == fixed.episode_options(7)


@pytest.mark.parametrize(("cls", "vector", "kwargs"), CASES, ids=IDS)
def test_seeds_repeat_and_fixing_the_task_leaves_the_noise_as_it_was(
    cls: Any, vector: Any, kwargs: Any
) -> None:
    env, actions = cls(**kwargs), [0, 1] * 10
    one, again, other = (play(env, actions, seed=s) for s in (5, 5, 6))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert (one["rewards"] != other["rewards"]).any()
    # Twice the same seed with other tasks: the noise around the means is the same.
    if kwargs.get("kind") != "bernoulli" and "means" not in kwargs:
        noise = []
        for i in range(2):
            rewards = play(env, actions, seed=5, options=env.episode_options(i))["rewards"]
            noise.append(rewards - np.array([env.means[a] for a in actions]))
        np.testing.assert_allclose(noise[0], noise[1], atol=1e-12)


@pytest.mark.parametrize(("cls", "vector", "kwargs"), CASES, ids=IDS)
def test_many_environments_are_the_single_one_side_by_side(
    cls: Any, vector: Any, kwargs: Any
) -> None:
    env = cls(**kwargs)
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(20, 7))
    # One row with the generator of one environment: the same to the last bit, noise included.
    alone, single = (
        play(vector(1, **kwargs), actions[:, :1], seed=4),
        play(env, actions[:, 0], seed=4),
    )
    for name in ("obs", "best", "rewards", "regret"):
        np.testing.assert_array_equal(alone[name][:, 0], single[name], err_msg=name)
    # Many rows on the evaluation tasks, without noise.
    if kwargs.get("kind") == "bernoulli":
        return
    many = vector(7, noise_free=True, **kwargs)
    seen = play(many, actions, seed=0, options=many.episode_options(3))
    env = cls(noise_free=True, **kwargs)
    for row in range(7):
        single = play(env, actions[:, row], seed=9, options=env.episode_options(3 + row))
        for name in ("obs", "best", "rewards", "regret"):
            np.testing.assert_allclose(seen[name][:, row], single[name], atol=1e-12, err_msg=name)


def test_a_vector_environment_says_what_gymnasium_asks_of_one() -> None:
    env = VectorLinearBandit(4, **THEORY)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.DISABLED
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert observations.shape == (4, 50)
    assert env.single_action_space.n == 10
    assert env.action_space.contains(env.oracle_actions())


def test_evaluation_tasks_are_a_function_of_the_trial_alone() -> None:
    env = BanditEnv()
    tasks = [env.episode_options(i)["means"] for i in range(200)]
    assert tasks == [BanditEnv(horizon=9).episode_options(i)["means"] for i in range(200)]
    assert len({tuple(t) for t in tasks}) == 200
    assert np.mean(tasks) == pytest.approx(0.5, abs=0.05)
    with make_pool(env_factory("seqrl/Bandit-v0"), 2, "sync") as pool:
        plans = plan_episodes(pool, 6, seed=0, stream=1, per_trial=3)
    assert [p.options for p in plans] == [env.episode_options(k // 3) for k in range(6)]


def test_generated_data_hold_no_evaluation_tasks() -> None:
    data = load_dataset(
        "random:seqrl/Bandit-v0?noise_free=true&horizon=40&episodes=5",
        options=LoadOptions(cache=False),
    )
    asked = {round(m, 5) for i in range(50) for m in BanditEnv().episode_options(i)["means"]}
    assert not asked & {round(float(r), 5) for r in data.rewards}


def test_linear_arms_are_the_published_ones() -> None:
    drawn = np.random.RandomState(1234).normal(size=(10, 2)) / np.sqrt(2)
    np.testing.assert_array_equal(arm_features(10, 2), drawn)
    many = VectorLinearBandit(4000)
    many.reset(seed=0)
    assert many.tasks is not None
    assert many.tasks.theta is not None
    np.testing.assert_allclose(many.tasks.theta.var(axis=0), 0.5, rtol=0.1)
    np.testing.assert_allclose(many.tasks.means, many.tasks.theta @ drawn.T, atol=1e-12)
    theory = VectorLinearBandit(300, **THEORY)
    observations, _ = theory.reset(seed=0)
    assert theory.tasks is not None
    features = observations.reshape(300, 10, 5)
    means = np.einsum("nkd,nd->nk", features, theory.tasks.theta)
    np.testing.assert_allclose(means, theory.tasks.means, atol=1e-5)


def test_reference_scores_are_the_expected_returns() -> None:
    assert BanditEnv.reference_scores() == {"random": 250.0, "oracle": pytest.approx(500 * 5 / 6)}
    given = BanditEnv.reference_scores(means=[0.25, 0.5], horizon=4)
    assert given == {"random": 1.5, "oracle": 2.0}
    angles = np.linspace(0, 2 * np.pi, 200_001)[:-1]
    best = (arm_features(10, 2) @ np.stack([np.cos(angles), np.sin(angles)])).max(axis=0).mean()
    exact = 200 * best * np.sqrt(np.pi) / 2
    assert LinearBanditEnv.reference_scores()["oracle"] == pytest.approx(exact, rel=1e-6)
    for kwargs in ({"theta": "uniform01"}, THEORY, {"dim": 3}):
        many = VectorLinearBandit(20_000, **kwargs)
        many.reset(seed=1)
        assert many.tasks is not None
        scores = LinearBanditEnv.reference_scores(**kwargs)
        returns = 200 * many.tasks.means
        assert scores["random"] == pytest.approx(returns.mean(), abs=4)
        assert scores["oracle"] == pytest.approx(returns.max(axis=1).mean(), rel=0.02)


def test_recorded_behaviour_mixes_dirichlet_and_one_arm() -> None:
    rng = np.random.default_rng(0)
    p = behaviour_probabilities(rng, 20_000, 5)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(p.mean(axis=0), 0.2, atol=0.01)
    assert (p.max(axis=1) > 1 - 1e-12).mean() == pytest.approx(1 / 11, abs=0.01)
    arms = sample_arms(rng, np.array([[0.1, 0.6, 0.3]] * 2), 20_000)
    np.testing.assert_allclose(np.bincount(arms[0]) / 20_000, [0.1, 0.6, 0.3], atol=0.02)


def test_the_text_shows_means_and_pull() -> None:
    env = BanditEnv(render_mode="ansi", means=[0.25, 0.5], noise_free=True)
    env.reset(seed=0)
    env.step(0)
    text = env.render()
    assert "arm 1  mean  0.500 best" in text
    assert "pulled, reward 0.250" in text


@pytest.mark.parametrize(
    ("build", "kwargs", "value", "allowed"),
    [
        (BanditEnv, {"n_arms": 1}, "n_arms=1", ">= 2"),
        (BanditEnv, {"n_arms": 3, "means": [0.1, 0.2]}, "means", "[1, 3]"),
        (BanditEnv, {"means": "many"}, "means='many'", "finite numbers"),
        (BanditEnv, {"means": [0.5, float("nan")]}, "means", "finite numbers"),
        (BanditEnv, {"kind": "bernoulli", "means": [0.5, 1.5]}, "[0, 1]", "probability"),
        (BanditEnv, {"sigma": -1}, "sigma=-1", "from 0"),
        (BanditEnv, {"horizon": 0}, "horizon=0", ">= 1"),
        (BanditEnv, {"kind": "gausian"}, "kind='gausian'", "did you mean 'gaussian'"),
        (BanditEnv, {"resample": "no"}, "resample='no'", "true or false"),
        (BanditEnv, {"render_mode": "human"}, "render_mode='human'", "'ansi'"),
        (LinearBanditEnv, {"dim": 0}, "dim=0", ">= 1"),
        (LinearBanditEnv, {"arms": "free"}, "arms='free'", "'per_env'"),
        (LinearBanditEnv, {"theta": "unit"}, "theta='unit'", "'uniform01'"),
        (VectorBandit, {"num_envs": 0}, "num_envs=0", ">= 1"),
        (VectorBandit, {"num_envs": 2, "arms": 3}, "'arms'", "n_arms"),
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
    env = BanditEnv()
    with pytest.raises(SeqrlError, match="did you mean 'means'"):
        env.reset(options={"mean": [0.5] * 5})
    with pytest.raises(SeqrlError, match=r"\[1, 5\]"):
        env.reset(options={"means": [0.5] * 4})
    with pytest.raises(SeqrlError, match="no option 'arms'"):
        LinearBanditEnv().reset(options={"arms": np.zeros((10, 2))})
    with pytest.raises(SeqrlError, match=r"\[-1, 1\]"):
        LinearBanditEnv(**THEORY).reset(options={"arms": np.full((10, 5), 2.0)})
    env.reset(seed=0)
    for action in (-1, 5, 0.5):
        with pytest.raises(SeqrlError, match="arms are 0 to 4"):
            env.step(action)  # type: ignore[arg-type]
    many = VectorBandit(3)
    many.reset(seed=0)
    for actions in (np.zeros(2, np.int64), np.full(3, 5), np.zeros(3)):
        with pytest.raises(SeqrlError, match=r"\[3\] integers from 0 to 4"):
            many.step(actions)

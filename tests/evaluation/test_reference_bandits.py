"""Promises of the classical policies: published curves, and the engine runs the same rules."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from seqrl import references
from seqrl.collect import collect
from seqrl.envs import bandit_rules as rules
from seqrl.envs.bandit import VectorBandit, VectorLinearBandit
from seqrl.envs.bandit_tasks import arm_features
from seqrl.envs.pool import env_factory, make_pool, task_of
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig, evaluate
from seqrl.references import bandit as offline
from seqrl.references import make_reference
from seqrl.rollout import EpisodeRecord, plan_episodes, rollout

THEORY: dict[str, Any] = {"dim": 5, "arms": "per_env", "theta": "uniform01", "sigma": 1.5}
TIMES = (25, 50, 100, 200, 500)

# Cumulative regret at TIMES, as measured for the specification with as many environments.
CURVES: list[tuple[str, Any, Any, dict[str, Any], int, tuple[float, ...]]] = [
    ("ts", rules.Thompson(), VectorBandit, {}, 2000, (3.57, 4.72, 6.01, 7.45, 9.61)),
    ("ucb", rules.Ucb(), VectorBandit, {}, 2000, (3.90, 5.30, 6.78, 8.41, 10.65)),
    ("emp", rules.Empirical(), VectorBandit, {}, 2000, (2.71, 3.58, 5.19, 8.28, 17.40)),
    (
        *("ts 0.5", rules.Thompson(0.5), VectorBandit, {"sigma": 0.5}, 2000),
        (5.09, 7.55, 10.45, 13.72, 18.75),
    ),
    (
        *("ucb 0.5", rules.Ucb(), VectorBandit, {"sigma": 0.5}, 2000),
        (4.37, 6.10, 8.05, 10.23, 13.63),
    ),
    (
        *("emp 0.5", rules.Empirical(), VectorBandit, {"sigma": 0.5}, 2000),
        (3.76, 5.55, 8.80, 15.10, 33.65),
    ),
    (
        *("ts 20", rules.Thompson(), VectorBandit, {"n_arms": 20}, 2000),
        (8.39, 13.10, 18.43, 24.41, 33.81),
    ),
    (
        *("ucb 20", rules.Ucb(), VectorBandit, {"n_arms": 20}, 2000),
        (9.91, 15.16, 22.44, 30.71, 41.63),
    ),
    (
        *("emp 20", rules.Empirical(), VectorBandit, {"n_arms": 20}, 2000),
        (9.64, 11.32, 13.38, 16.96, 27.05),
    ),
    ("linucb", rules.LinUcb(), VectorLinearBandit, {}, 1000, (2.56, 2.91, 3.38, 3.93)),
    (
        *("blind ts", rules.Thompson(0.3, 0, 1), VectorLinearBandit, {}, 1000),
        (10.28, 12.18, 13.97, 15.80),
    ),
    (
        *("linear ts", rules.LinearThompson.of(0.3, 0.5), VectorLinearBandit, {}, 1000),
        (2.63, 2.98, 3.42, 3.95),
    ),
    ("greedy", rules.LinUcb(c=0), VectorLinearBandit, {}, 1000, (4.10, 6.71, 11.8, 21.8)),
    (
        *("theory linucb", rules.LinUcb(c=2), VectorLinearBandit, THEORY, 1000),
        (13.28, 19.27, 26.72, 35.29),
    ),
    (
        *("theory ts", rules.LinearThompson.of(1.5, 1), VectorLinearBandit, THEORY, 1000),
        (16.6, 25.7, 37.3, 51.0),
    ),
    ("theory emp", rules.Empirical(), VectorLinearBandit, THEORY, 1000, (18.1, 25.3, 36.3, 56.3)),
    (
        *("beta ts", rules.BetaThompson(), VectorBandit, {"kind": "bernoulli", "horizon": 200}),
        *(2000, (4.35, 6.16, 8.21, 10.5)),
    ),
    (
        *("shrunk ucb", rules.Ucb(pseudo=1), VectorBandit, {"kind": "bernoulli", "horizon": 200}),
        *(2000, (2.78, 3.81, 5.12, 6.75)),
    ),
    (
        *("bernoulli emp", rules.Empirical(), VectorBandit, {"kind": "bernoulli", "horizon": 200}),
        *(2000, (3.37, 4.74, 7.11, 11.6)),
    ),
]


@pytest.mark.parametrize(
    ("rule", "vector", "kwargs", "n", "expected"),
    [c[1:] for c in CURVES],
    ids=[c[0] for c in CURVES],
)
def test_regret_curves_are_the_measured_ones(
    rule: Any, vector: Any, kwargs: dict[str, Any], n: int, expected: tuple[float, ...]
) -> None:
    env = vector(n, **kwargs)
    regret = rules.play(rule, env, seed=0).regrets.cumsum(axis=1)
    for t, value in zip(TIMES, expected, strict=False):
        at = regret[:, t - 1]
        # Both numbers are means over n environments; the last digit of the table is rounded.
        error = np.sqrt(2) * at.std() / n**0.5 + 0.05
        assert abs(at.mean() - value) < 3 * error, (t, at.mean(), value)


def test_rules_start_with_what_was_never_pulled() -> None:
    memory = rules.ArmMemory(np.array([[1.0, 0, 1]]), np.array([[5.0, 0, 0]]))
    assert rules.Empirical().choose(memory, None).tolist() == [1]
    assert rules.Ucb().choose(memory, None).tolist() == [1]
    assert rules.Lcb().choose(memory, None).tolist() == [0]
    with pytest.raises(SeqrlError, match="draws at random"):
        rules.Thompson().choose(memory, None)


# --- recorded pulls -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, arms and rewards of 4000 bandits under DPT's behaviour."""
    rng = np.random.default_rng(0)
    means = rng.random((4000, 5))
    arms = rules.sample_arms(rng, rules.behaviour_probabilities(rng, 4000, 5), 500)
    noise = 0.3 * rng.standard_normal(arms.shape)
    return means, arms, np.take_along_axis(means, arms, axis=1) + noise


def test_offline_choices_lose_what_was_measured(recorded: Any) -> None:
    means, arms, rewards = recorded
    lengths = (1, 5, 10, 25, 50, 100, 250, 500)
    counts, sums = offline.prefix_statistics(arms, rewards, 5, lengths)
    rng = np.random.default_rng(1)
    expected = {
        "emp": (0.296, 0.200, 0.159, 0.113, 0.088, 0.068, 0.048, 0.040),
        "lcb": (0.296, 0.217, 0.179, 0.137, 0.110, 0.087, 0.062, 0.051),
        "ts": (0.254, 0.168, 0.137, 0.093, 0.070, 0.051, 0.038, 0.029),
        "posterior": (0.246, 0.159, 0.128, 0.090, 0.067, 0.050, 0.037, 0.029),
    }
    chosen = {
        "emp": offline.offline_mean(counts, sums),
        "lcb": offline.offline_lcb(counts, sums),
        "ts": offline.offline_thompson(counts, sums, rng),
        "posterior": offline.offline_posterior(counts, sums),
    }
    for name, values in expected.items():
        assert chosen[name].shape == (4000, 8)
        loss = means.max(axis=1, keepdims=True) - np.take_along_axis(means, chosen[name], axis=1)
        error = np.sqrt(2) * loss.std(axis=0) / 4000**0.5 + 0.0005
        assert (np.abs(loss.mean(axis=0) - values) < 3 * error).all(), (name, loss.mean(axis=0))


def test_prefixes_are_counted_from_their_start() -> None:
    arms, rewards = np.array([[0, 1, 1, 0]]), np.array([[1.0, 2.0, 4.0, 8.0]])
    counts, sums = offline.prefix_statistics(arms, rewards, 2, (0, 2, 4))
    assert counts.tolist() == [[[0, 0], [1, 1], [2, 2]]]
    assert sums.tolist() == [[[0, 0], [1, 2], [9, 6]]]
    with pytest.raises(SeqrlError, match="4 pulls"):
        offline.prefix_statistics(arms, rewards, 2, (5,))


def test_a_ridge_regression_on_known_arms_needs_few_pulls() -> None:
    env = VectorLinearBandit(300, sigma=0.1)
    done = rules.play(rules.Thompson(0.1, 0, 1), env, seed=0)
    assert env.tasks is not None
    for features in (arm_features(10, 2), env.tasks.features):
        best = offline.offline_ridge(done.actions, done.rewards, features, (0, 3, 100), ridge=0.1)
        loss = env.tasks.means.max(axis=1, keepdims=True)
        loss = loss - np.take_along_axis(env.tasks.means, best, axis=1)
        assert loss.mean(axis=0)[2] < 0.02 < loss.mean(axis=0)[1] < loss.mean(axis=0)[0]


# --- in the engine --------------------------------------------------------------------------------


def run(
    name: str, env_id: str, kwargs: dict[str, Any], episodes: int, per_trial: int = 1, num: int = 4
) -> list[EpisodeRecord]:
    with make_pool(env_factory(env_id, kwargs), num, "sync") as pool:
        policy = make_reference(name, task_of(pool, env_id, kwargs))
        plans = plan_episodes(pool, episodes, seed=0, stream=1, per_trial=per_trial)
        return rollout(policy, pool, plans, record=True)


LINEAR = {**THEORY, "observe_arms": True, "horizon": 15}
ROOM = {"size": 4, "horizon": 8, "goal": (2, 2)}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *[(n, "seqrl/Bandit-v0", {"horizon": 15}) for n in ("emp", "ucb?c=2", "lcb", "thompson")],
    ("thompson", "seqrl/Bandit-v0", {"horizon": 15, "kind": "bernoulli"}),
    *[(n, "seqrl/LinearBandit-v0", LINEAR) for n in ("linucb", "lin_thompson")],
    *[(n, "seqrl/LinearBandit-v0", {"horizon": 15}) for n in ("linucb", "thompson")],
    ("ucbvi?c=0.01", "seqrl/DarkRoom-v0", ROOM),
]


@pytest.mark.parametrize(("name", "env_id", "kwargs"), CASES)
def test_results_do_not_depend_on_the_number_of_environments(
    name: str, env_id: str, kwargs: dict[str, Any]
) -> None:
    one, many = (run(name, env_id, kwargs, 22, per_trial=2, num=num) for num in (1, 11))
    for a, b in zip(one, many, strict=True):
        assert a.steps is not None
        assert b.steps is not None
        np.testing.assert_array_equal(a.steps.actions, b.steps.actions)
        np.testing.assert_array_equal(a.steps.rewards, b.steps.rewards)


@pytest.mark.parametrize(
    ("name", "rule", "vector", "env_id", "kwargs"),
    [
        ("ucb", rules.Ucb(), VectorBandit, "seqrl/Bandit-v0", {}),
        ("emp", rules.Empirical(), VectorBandit, "seqrl/Bandit-v0", {"kind": "bernoulli"}),
        (
            *("linucb?c=0", rules.LinUcb(c=0), VectorLinearBandit),
            *("seqrl/LinearBandit-v0", {"arms": "per_env", "observe_arms": True}),
        ),
    ],
)
def test_the_engine_runs_the_same_rules(
    name: str, rule: Any, vector: Any, env_id: str, kwargs: dict[str, Any]
) -> None:
    """Replaying the rewards seen in the engine through the rule gives the actions taken there."""
    kwargs = {**kwargs, "horizon": 12}
    records = run(name, env_id, kwargs, 6, per_trial=2)
    env = vector(1, **kwargs)
    memory: Any = None
    for i, record in enumerate(records):
        assert record.steps is not None
        if i % 2 == 0:
            env.reset(options=record.plan.options)
            memory = rule.memory(1, env.single_action_space.n)
            if isinstance(memory, rules.LinearMemory):
                rules.with_features(memory, record.steps.observations[:1].reshape(1, 10, -1))
        for action, reward in zip(record.steps.actions, record.steps.rewards, strict=True):
            if not isinstance(memory, rules.LinearMemory) or memory.pulls[0]:
                assert rule.choose(memory, np.random.default_rng(0))[0] == action
            memory.update(np.array([True]), np.array([action]), np.array([reward], np.float64))


def test_engine_and_vectorised_thompson_sampling_regret_alike() -> None:
    records = run("thompson", "seqrl/Bandit-v0", {"horizon": 25}, 160, num=16)
    engine = np.array([np.sum(r.regrets) for r in records])
    vector = rules.play(rules.Thompson(), VectorBandit(2000, horizon=25), seed=0)
    other = vector.regrets.sum(axis=1)
    error = np.hypot(engine.std() / 160**0.5, other.std() / 2000**0.5)
    assert abs(engine.mean() - other.mean()) < 3.5 * error


def test_statistics_last_for_a_trial_and_end_with_it() -> None:
    kwargs = {"horizon": 20, "sigma": 0.1}
    records = run("thompson", "seqrl/Bandit-v0", kwargs, 120, per_trial=3, num=8)
    regret = np.array([np.sum(r.regrets) for r in records]).reshape(40, 3).mean(axis=0)
    assert regret[0] > 2 * regret[1] > 2 * regret[2] - 0.2
    apart = run("thompson", "seqrl/Bandit-v0", kwargs, 40, num=8)
    fresh = np.array([np.sum(r.regrets) for r in apart])
    assert fresh.mean() == pytest.approx(regret[0], abs=4 * fresh.std() / 40**0.5)


def test_ucbvi_finds_the_hidden_goal_within_a_trial() -> None:
    kwargs = {"size": 5, "horizon": 15, "goal": (3, 2)}
    records = run("ucbvi", "seqrl/DarkRoom-v0", kwargs, 8 * 30, per_trial=30, num=8)
    returns = np.array([r.episode_return for r in records]).reshape(8, 30)
    assert returns[:, -5:].mean() > 0.9 * 11  # the optimum is 15 - 5 + 1
    assert returns[:, :2].mean() < 3
    # A goal that ends the episode is worth 1 and nothing after: the rest is tried out first.
    ended = run("ucbvi", "seqrl/DarkRoom-v0", {**kwargs, "terminate_on_goal": True}, 80, 80)
    assert [r.episode_return for r in ended[-5:]] == [1] * 5


def test_ucbvi_grows_its_table_and_says_when_it_is_full() -> None:
    kwargs = {"size": 7, "horizon": 60, "start": "random"}
    assert len(run("ucbvi", "seqrl/DarkRoom-v0", kwargs, 4, per_trial=2)) == 4
    with pytest.raises(SeqrlError, match="20 different observations"):
        run("ucbvi?max_states=20", "seqrl/DarkRoom-v0", kwargs, 2)


def test_a_report_and_recorded_data_take_settings_of_a_reference() -> None:
    with make_pool(env_factory("seqrl/Bandit-v0", {"horizon": 9}), 1, "sync") as pool:
        task = task_of(pool, "seqrl/Bandit-v0", {"horizon": 9})
    config = EvalConfig(episodes=6, trial_episodes=3)
    report = evaluate(make_reference("ucb?c=0.5", task), config=config)
    assert report.policy["agent"] == "ucb"
    assert report.normaliser is not None
    assert report.normaliser["expert"] == pytest.approx(7.5)
    data = collect("seqrl/Bandit-v0", "ucb?c=0.5", episodes=3, env_kwargs={"horizon": 9})
    assert data.lengths.tolist() == [9] * 3


# --- names, settings, refusals --------------------------------------------------------------------


def test_listing_references_imports_no_torch() -> None:
    code = (
        "import sys, seqrl.references as r; assert len(r.names()) == 9\n"
        "assert r.is_reference('ucb?c=2') and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_noise_and_prior_are_those_of_the_environment_unless_given() -> None:
    def rule(name: str, env_id: str = "seqrl/Bandit-v0", **kwargs: Any) -> Any:
        with make_pool(env_factory(env_id, kwargs), 1, "sync") as pool:
            policy: Any = make_reference(name, task_of(pool, env_id, kwargs))
        return policy.rule

    linear = "seqrl/LinearBandit-v0"
    assert rule("thompson", sigma=0.5) == rules.Thompson(0.5)
    assert rule("thompson?sigma=1&prior_var=2", sigma=0.5) == rules.Thompson(1, 0.5, 2)
    assert rule("thompson", kind="bernoulli") == rules.BetaThompson()
    assert rule("thompson?a=2", kind="bernoulli") == rules.BetaThompson(2)
    assert rule("thompson", linear) == rules.Thompson(0.3, 0, 1)
    assert rule("lin_thompson", linear) == rules.LinearThompson.of(0.3, 0.5)
    assert rule("linucb?c=2&ridge=0.5", linear) == rules.LinUcb(ridge=0.5, c=2)
    assert rule("lcb", linear) == rules.Lcb(0.8)
    assert rule("emp", "CartPole-v1") == rules.Empirical()
    for name in references.names():
        assert references.is_reference(name)


@pytest.mark.parametrize(
    ("name", "env_id", "kwargs", "message"),
    [
        ("ubc", "seqrl/Bandit-v0", {}, "did you mean 'ucb'"),
        ("ucb?d=1", "seqrl/Bandit-v0", {}, "has no setting 'd'"),
        ("random?c=1", "seqrl/Bandit-v0", {}, "settings of random: none"),
        ("ucb?c=much", "seqrl/Bandit-v0", {}, "'c=much'"),
        ("thompson?sigma=0", "seqrl/Bandit-v0", {}, "above 0"),
        ("thompson?a=1&sigma=2", "seqrl/Bandit-v0", {}, "no sigma"),
        ("linucb", "seqrl/Bandit-v0", {}, "no linear bandit"),
        ("linucb", "seqrl/LinearBandit-v0", {"arms": "per_env"}, "observe_arms"),
        ("ucb", "Pendulum-v1", {}, "pulls arms"),
        ("ucbvi", "Pendulum-v1", {}, "for tables"),
        ("ucbvi?delta=2", "seqrl/DarkRoom-v0", {}, "delta"),
    ],
)
def test_mistakes_are_refused(name: str, env_id: str, kwargs: Any, message: str) -> None:
    with make_pool(env_factory(env_id, kwargs), 1, "sync") as pool:
        task = task_of(pool, env_id, kwargs)
    with pytest.raises(SeqrlError, match=message):
        make_reference(name, task)

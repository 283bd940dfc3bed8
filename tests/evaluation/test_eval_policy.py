"""A loaded policy acts as in an evaluation, alone or in a batch, and says what it needs."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
from eval_toys import Gru, Probe, Trial, stats_of, task_of
from gymnasium import spaces

from seqrl.agents.lstm import LSTMConfig, RecurrentAgent
from seqrl.checkpoint import PolicyMeta, point, save_checkpoint
from seqrl.draws import derive_seed
from seqrl.errors import SeqrlError
from seqrl.evaluation import EvalConfig, evaluate
from seqrl.policy import Policy, load_policy
from seqrl.spec import ObservationSpec


@pytest.fixture(scope="module", params=[0, 3], ids=["continuous", "discrete"])
def run(request, tmp_path_factory):
    """A run folder with one checkpoint of a small recurrent agent."""
    task = task_of("toy/Walk-v0", actions=request.param)
    stats = stats_of(task)
    if task.action.kind == "continuous":
        stats = dataclasses.replace(stats, action_low=(-0.5,) * 3, action_high=(0.5,) * 3)
    agent = RecurrentAgent(LSTMConfig(width=48), [task], [stats])
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text("{}")
    meta = PolicyMeta.of(agent, 300, targets=("p50", 12.5))
    path = save_checkpoint(folder / "checkpoints", agent, meta)
    point(folder / "checkpoints", "last", path.name)
    return folder


def play(policy, env, seed, target, **reset):
    """One episode in a loop of one's own."""
    obs, _ = env.reset(seed=seed)
    policy.reset(target=target, seed=seed, **reset)
    action, total, length = policy.act(obs), 0.0, 0
    while True:
        obs, reward, terminated, truncated, _ = env.step(action)
        total, length = total + reward, length + 1
        if terminated or truncated:
            return total, length
        action = policy.act(obs, reward)


def test_a_loop_of_ones_own_does_exactly_what_an_evaluation_does(run):
    policy = load_policy(run)
    config = EvalConfig(targets=("12.5",), episodes=20, num_envs=5)
    for decode in ("greedy", "sample"):
        if decode == "sample" and policy.task.action.kind == "continuous":
            continue
        policy.agent.set_acting(decode=decode)
        report = evaluate(policy, config=config)
        env = gymnasium.make("toy/Walk-v0", **policy.task.env_kwargs)
        fresh = Policy(policy.agent)
        mine = [play(fresh, env, derive_seed(10_000, 1, i), 12.5) for i in range(20)]
        assert mine == [(e["return"], e["length"]) for e in report.episodes]
        # One episode alone, too: its number says where it sat.
        alone = play(fresh, env, derive_seed(10_000, 1, 13), 12.5, episode=13)
        assert alone == mine[13]


def test_a_batch_acts_like_single_environments_at_the_same_places():
    agent = Gru(task_of("toy/Walk-v0")).eval()
    n = 11  # more than a block
    batch, singles = Policy(agent), [Policy(agent) for _ in range(n)]
    rng = np.random.default_rng(0)
    for j, single in enumerate(singles):
        single.reset(target=float(j), episode=j)
    batch.reset(target=[float(j) for j in range(n)])
    for t in range(6):
        obs, reward = rng.normal(size=(n, 5)), rng.normal(size=n)
        if t == 3:  # row 4 begins another episode, its neighbours go on
            batch.reset(np.arange(n) == 4, target=0.5)
            singles[4].reset(target=0.5, episode=4)
        actions = batch.act(obs, reward)
        assert actions.shape == (n, 3)
        for j, single in enumerate(singles):
            first = t == 0 or (t == 3 and j == 4)
            assert (single.act(obs[j], None if first else reward[j]) == actions[j]).all()


def test_what_the_policy_is_and_what_it_suggests(run):
    policy = load_policy(run, "last")
    assert policy.agent.name == "lstm"
    assert not policy.agent.training
    assert policy.task.env_id == "toy/Walk-v0"
    assert policy.targets == [("p50", 3.0), ("12.5", 12.5)]
    assert policy.default_target == 12.5
    assert policy.info["checkpoint"] == "last"
    assert policy.info["step"] == 300
    assert load_policy(run / "checkpoints" / "last").info["checkpoint"] == "step_0000300"
    report = evaluate(policy, config=EvalConfig(episodes=1))
    assert [s["target_label"] for s in report.summary] == ["p50", "12.5"]
    assert report.policy == {"agent": "lstm", "checkpoint": "last", "step": 300}
    assert play(policy, gymnasium.make("toy/Walk-v0", **policy.task.env_kwargs), 2, None)


def test_the_suggested_target_is_the_default():
    agent = Probe(task_of("toy/Counting-v0"))
    policy = Policy(agent, {"targets": ["p50", "max"]})
    policy.act(np.zeros(1))
    assert agent.seen[-1].rtg[0].item() == 6.0
    policy.act(np.zeros(1), 2.5)
    assert agent.seen[-1].rtg[0].item() == 3.5
    constant = Policy(agent, {"targets": ["max"], "delayed": True})
    constant.act(np.zeros(1))
    constant.act(np.zeros(1), 2.5)
    assert agent.seen[-1].rtg[0].item() == 6.0


def test_a_reward_is_needed_after_the_first_step_and_ignored_at_it():
    policy = Policy(Probe(task_of("toy/Counting-v0")))
    policy.act(np.zeros(1), 99.0)
    assert policy.agent.seen[-1].prev_reward[0].item() == 0
    with pytest.raises(SeqrlError, match="needs the reward of the last action") as e:
        policy.act(np.zeros(1))
    assert "policy.act(obs, reward)" in e.value.hint
    policy.act(np.zeros(1), 1.0)
    policy.reset()
    policy.act(np.zeros(1))
    assert policy.agent.seen[-1].first[0].item()


@pytest.mark.parametrize("obs", [np.zeros(4), np.zeros((2, 4)), np.zeros((2, 2, 5)), 1.0])
def test_observations_of_another_shape_are_refused(obs):
    policy = Policy(Gru(task_of("toy/Walk-v0")))
    with pytest.raises(SeqrlError, match="observation"):
        policy.act(obs)


def test_the_number_of_environments_changes_only_at_a_reset():
    policy = Policy(Gru(task_of("toy/Walk-v0")))
    policy.act(np.zeros(5))
    with pytest.raises(SeqrlError, match="acting in one environment"):
        policy.act(np.zeros((2, 5)), [0, 0])
    policy.reset()
    assert policy.act(np.zeros((2, 5))).shape == (2, 3)
    with pytest.raises(SeqrlError, match="mask has 3 entries, there are 2 rows"):
        policy.reset([True, False, False])
    policy.reset()
    with pytest.raises(SeqrlError, match=r"reset\(mask\) before the first act"):
        policy.reset([True])


def test_actions_come_in_the_form_of_the_environment_and_within_bounds():
    discrete = Policy(Probe(task_of("toy/Walk-v0", actions=3)))
    assert discrete.act(np.zeros(5)) == 2  # Discrete(3, start=2)
    discrete.reset()
    assert discrete.act(np.zeros((2, 5))).tolist() == [2, 2]
    agent = Gru(task_of("toy/Walk-v0"))
    agent.head.bias.data.fill_(9.0)
    action = Policy(agent).act(np.ones(5))
    assert action.dtype == np.float32
    assert np.abs(action).max() == 0.5


def test_nested_observations_need_the_space():
    space = spaces.Dict(b=spaces.Box(-1, 1, (2,)), a=spaces.Discrete(3))
    task = dataclasses.replace(
        task_of("toy/Counting-v0"),
        env_id="nowhere/Installed-v0",
        observation=ObservationSpec("vector", (5,), ("a", "b")),
    )
    policy = Policy(Probe(task))
    obs = {"a": 1, "b": np.array([0.5, -0.5])}
    with pytest.raises(SeqrlError, match="the observation is a dict") as e:
        policy.act(obs)
    assert "use_spaces" in e.value.hint
    with pytest.raises(SeqrlError, match=r"policy reads Box\(5,\)"):
        policy.use_spaces(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
    with pytest.raises(SeqrlError, match=r"policy acts on Discrete\(2\)"):
        policy.use_spaces(space, spaces.Discrete(3))
    policy.use_spaces(space, spaces.Discrete(2, start=7))
    assert policy.act(obs) == 7
    assert policy.agent.seen[-1].observation[0].tolist() == [0, 1, 0, 0.5, -0.5]
    policy.reset()
    batch = {"a": np.array([0, 2]), "b": np.zeros((2, 2))}
    assert policy.act(batch).tolist() == [7, 7]
    assert policy.agent.seen[-1].observation[:2, :3].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_choices_as_observations_are_understood_where_the_environment_is_installed():
    task = dataclasses.replace(task_of("FrozenLake-v1"), env_kwargs={})
    policy = Policy(Probe(task))
    assert policy.act(3) == 0
    assert policy.agent.seen[-1].observation[0].argmax().item() == 3
    policy.reset()
    assert policy.act(np.array([1, 2])).shape == (2,)


def test_a_memory_that_lasts_for_a_trial_survives_its_episodes():
    policy = Policy(Trial(task_of("toy/Counting-v0")))
    policy.act(np.zeros(1))
    policy.reset(new_trial=False, target=4.0)
    policy.act(np.zeros(1), 3.0, terminated=True, final_observation=np.full(1, 9.0))
    step = policy.agent.seen[-1]
    assert (step.first[0].item(), step.trial_first[0].item()) == (True, False)
    assert (step.prev_reward[0].item(), step.prev_terminated[0].item()) == (3.0, True)
    assert (step.final_observation[0, 0].item(), step.rtg[0].item()) == (9.0, 4.0)
    assert policy.agent.ages[0].item() == 1
    policy.reset()
    policy.act(np.zeros(1))
    assert policy.agent.seen[-1].trial_first[1].item()  # the second trial sits at place 1
    assert policy.agent.ages[1].item() == 0


def test_a_failing_agent_says_at_which_step():
    class Failing(Probe):
        def step(self, state, step):
            raise RuntimeError("broken")

    with pytest.raises(SeqrlError, match="policy failed at step 0: RuntimeError: broken"):
        Policy(Failing(task_of("toy/Counting-v0"))).act(np.zeros(1))
    with pytest.raises(SeqrlError, match="row_block is 0"):
        Policy(Probe(task_of("toy/Counting-v0")), row_block=0)

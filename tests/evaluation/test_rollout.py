"""The rollout engine: every promise it makes to a policy and to a reader of its records."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from eval_toys import Gru, Probe, Trial, Window, plans, pool, task_of

from seqrl.acting import Timing
from seqrl.envs.pool import make_pool
from seqrl.errors import SeqrlError
from seqrl.references import make_reference
from seqrl.rollout import EpisodePlan, plan_episodes, rollout


def outcome(records):
    return [
        (r.episode_return, r.length, r.success, r.terminated, r.truncated, r.plan) for r in records
    ]


@pytest.mark.parametrize("actions", [0, 3], ids=["continuous", "discrete"])
@pytest.mark.parametrize("agent", [Gru, Window], ids=["gru", "attention"])
def test_results_do_not_depend_on_the_number_of_environments(agent, actions):
    policy = agent(task_of("toy/Walk-v0", actions=actions)).eval()
    asked = plans(40, targets=(1.0, 30.0))
    first, *others = [
        outcome(rollout(policy, pool("toy/Walk-v0", n, actions=actions), asked))
        for n in (1, 3, 8, 20)
    ]
    lengths = [r[1] for r in first]
    assert min(lengths) == 1
    assert max(lengths) > 50  # very unequal episodes
    assert len({r[0] for r in first}) > 40  # the policy matters and is not the same everywhere
    for other in others:
        assert other == first


def test_sampled_actions_do_not_depend_on_the_number_of_environments():
    policy = Gru(task_of("toy/Walk-v0", actions=3)).eval()
    greedy = outcome(rollout(policy, pool("toy/Walk-v0", 1, actions=3), plans(20)))
    policy.set_acting(decode="sample", temperature=2.0)
    a, b, c = [
        outcome(rollout(policy, pool("toy/Walk-v0", n, actions=3), plans(20))) for n in (1, 3, 20)
    ]
    assert a == b == c
    assert a != greedy


def test_every_planned_episode_runs_once_whatever_its_length():
    # Short episodes must not crowd out long ones: quotas are fixed before the start.
    started: list[int] = []

    class Noting(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            started.append(seed)
            self.left = 1 if seed % 4 else 200
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.left -= 1
            return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}

    class Still(Probe):
        def step(self, state, step):
            return torch.zeros(len(step.rtg), self.out), state

    policy = Still(task_of("toy/Counting-v0"))
    records = rollout(policy, Noting, plans(24, base=0), num_envs=5)
    assert sorted(started) == list(range(24))
    assert [r.plan.index for r in records] == list(range(24))
    assert [r.length for r in records] == [1 if i % 4 else 200 for i in range(24)]
    assert np.mean([r.episode_return for r in records]) == (6 * 200 + 18) / 24


def test_return_to_go_starts_at_the_target_and_loses_each_reward():
    policy = Probe(task_of("toy/Counting-v0"))
    [record] = rollout(policy, pool("toy/Counting-v0"), [EpisodePlan(0, 0, 15.0)])
    assert [s.rtg[0].item() for s in policy.seen] == [15, 14, 12, 9, 5]
    assert [s.timestep[0].item() for s in policy.seen] == [0, 1, 2, 3, 4]
    assert [s.prev_reward[0].item() for s in policy.seen] == [0, 1, 2, 3, 4]
    assert [s.first[0].item() for s in policy.seen] == [True] + 4 * [False]
    assert record.episode_return == 15


def test_return_to_go_rises_when_rewards_are_negative():
    policy = Probe(task_of("toy/Counting-v0", sign=-1.0))
    rollout(policy, pool("toy/Counting-v0", sign=-1.0), [EpisodePlan(0, 0, -15.0)])
    assert [s.rtg[0].item() for s in policy.seen] == [-15, -14, -12, -9, -5]


def test_return_to_go_stays_for_delayed_rewards():
    policy = Probe(task_of("toy/Counting-v0"))
    rollout(policy, pool("toy/Counting-v0"), [EpisodePlan(0, 0, 15.0)], rtg_update="none")
    assert [s.rtg[0].item() for s in policy.seen] == 5 * [15]


def test_previous_action_is_the_clipped_one():
    class Pushy(Probe):
        def step(self, state, step):
            self.seen.append(step)
            return torch.full((len(step.rtg), 3), 9.0), state

    policy = Pushy(task_of("toy/Walk-v0"))
    envs = pool("toy/Walk-v0")
    rollout(policy, envs, [EpisodePlan(0, 0, options={"length": 3})])
    assert policy.seen[0].prev_action[0].tolist() == [0, 0, 0]
    assert policy.seen[1].prev_action[0].tolist() == [0.5, 0.5, 0.5]
    assert all((np.abs(a) <= 0.5).all() for a in envs.envs[0].unwrapped.taken)


def test_environments_get_actions_in_their_own_form():
    policy = Probe(task_of("toy/Walk-v0", actions=3))
    envs = pool("toy/Walk-v0", actions=3)
    rollout(policy, envs, [EpisodePlan(0, 0, options={"length": 2})])
    assert [int(a) for a in envs.envs[0].unwrapped.taken] == [2, 2]  # Discrete(3, start=2)


def test_terminated_and_truncated_are_told_apart():
    policy = Probe(task_of("toy/Walk-v0"))
    records = rollout(policy, pool("toy/Walk-v0", 2), plans(6))
    for r in records:
        assert (r.terminated, r.truncated) == (r.plan.seed % 2 == 0, r.plan.seed % 2 == 1)


def test_max_steps_cuts_and_counts_as_truncated():
    policy = Probe(task_of("toy/Counting-v0"))
    [r] = rollout(policy, pool("toy/Counting-v0"), plans(1), max_steps=3)
    assert (r.length, r.terminated, r.truncated, r.episode_return) == (3, False, True, 6)
    [r] = rollout(policy, pool("toy/Counting-v0"), plans(1), max_steps=5)
    assert (r.length, r.terminated, r.truncated) == (5, True, False)


def test_success_counts_when_true_at_any_step_and_is_none_when_never_spoken_of():
    policy = Probe(task_of("toy/Walk-v0"))
    records = rollout(policy, pool("toy/Walk-v0", 4), plans(60))
    assert {r.success for r in records} == {None, True, False}
    assert all(r.success is None for r in records if r.length <= 2)


def test_resetting_one_row_leaves_its_neighbours_bit_equal():
    # Episode 0 alone, and beside seven others that end and restart all the time.
    policy = Gru(task_of("toy/Walk-v0")).eval()
    long = EpisodePlan(0, 7, 5.0, {"length": 50})
    short = [EpisodePlan(i, 100 + i, 1.0, {"length": 1 + i % 4}) for i in range(1, 40)]
    alone = rollout(policy, pool("toy/Walk-v0", 1), [long])
    beside = rollout(policy, pool("toy/Walk-v0", 8), [long, *short])
    assert outcome(beside)[0] == outcome(alone)[0]


def test_memory_starts_fresh_in_every_episode():
    policy = Probe(task_of("toy/Counting-v0"))
    ages = []

    class Ages(Probe):
        def step(self, state, step):
            ages.append((state["age"][0].item(), step.timestep[0].item()))
            return super().step(state, step)

    policy = Ages(task_of("toy/Counting-v0"))
    rollout(policy, pool("toy/Counting-v0"), [EpisodePlan(0, i) for i in range(3)])
    assert ages == [(t, t) for t in range(5)] * 3


def test_padding_rows_are_reset_with_the_others():
    # Or whatever a state counts would grow in them without end.
    policy = Probe(task_of("toy/Counting-v0"))
    rollout(policy, pool("toy/Counting-v0"), [EpisodePlan(0, i) for i in range(30)])
    assert policy.ages.max().item() <= 5


def test_trial_memory_lasts_for_its_episodes_and_is_told_how_each_ended():
    policy = Trial(task_of("toy/Counting-v0", length=2))
    asked = plan_episodes(pool("toy/Counting-v0"), 4, [9.0], seed=0, stream=1, per_trial=2)
    assert [(p.trial, p.place) for p in asked] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    rollout(policy, pool("toy/Counting-v0", length=2), asked)
    # Trial 0 sits in row 0 and trial 1 in row 1; one environment runs them in turn.
    seen = [(s, 0) for s in policy.seen[:4]] + [(s, 1) for s in policy.seen[4:]]

    def column(name):
        return [np.asarray(getattr(s, name)[row].tolist()).reshape(-1)[0] for s, row in seen]

    assert column("first") == [True, False] * 4
    assert column("trial_first") == [True, False, False, False] * 2
    assert column("timestep") == [0, 1] * 4
    assert column("rtg") == [9, 8] * 4
    assert column("prev_reward") == [0, 1, 2, 1] * 2  # the last reward reaches the next episode
    assert column("prev_terminated") == [False, False, True, False] * 2
    assert column("final_observation") == [0, 0, 2, 0] * 2
    assert column("observation") == [0, 1, 0, 1] * 2


def test_trial_results_do_not_depend_on_the_number_of_environments():
    class Memory(Gru):
        memory = "trial"

    policy = Memory(task_of("toy/Walk-v0")).eval()
    asked = plan_episodes(pool("toy/Walk-v0"), 30, [1.0], seed=0, stream=1, per_trial=3)
    a, b, c = [outcome(rollout(policy, pool("toy/Walk-v0", n), asked)) for n in (1, 3, 20)]
    assert a == b == c


def test_oracle_actions_reach_only_policies_that_ask():
    policy = Probe(task_of("toy/Walk-v0"))
    rollout(policy, pool("toy/Walk-v0"), plans(1))
    assert policy.seen[0].oracle_action is None
    policy.needs_oracle = True
    policy.seen.clear()
    rollout(policy, pool("toy/Walk-v0"), plans(1))
    assert policy.seen[0].oracle_action.abs()[0].tolist() == pytest.approx([0.1] * 3)


def test_an_environment_without_oracle_is_named():
    policy = make_reference("oracle", task_of("toy/Counting-v0"))
    with pytest.raises(SeqrlError, match=r"toy/Counting-v0 has no oracle"):
        rollout(policy, pool("toy/Counting-v0"), plans(1))


def test_actions_that_are_not_finite_name_episode_and_step():
    class Diverging(Probe):
        def step(self, state, step):
            prediction = torch.zeros(len(step.rtg), 3)
            prediction[step.timestep == 2] = float("nan")
            return prediction, state

    policy = Diverging(task_of("toy/Walk-v0"))
    asked = [EpisodePlan(4, 11, options={"length": 9})]
    with pytest.raises(SeqrlError, match=r"not finite at step 2 of episode 4 \(seed 11\)"):
        rollout(policy, pool("toy/Walk-v0"), asked)


def test_padding_rows_may_hold_anything():
    class Careless(Probe):
        def step(self, state, step):
            prediction = torch.full((len(step.rtg), 3), float("nan"))
            prediction[0] = 0.0
            return prediction, state

    assert len(rollout(Careless(task_of("toy/Walk-v0")), pool("toy/Walk-v0"), plans(1))) == 1


def test_a_failing_policy_and_a_failing_environment_name_episode_and_step():
    class Failing(Probe):
        def step(self, state, step):
            raise KeyError("weights")

    with pytest.raises(SeqrlError, match=r"policy failed at step 0 of episode 0.*KeyError"):
        rollout(Failing(task_of("toy/Counting-v0")), pool("toy/Counting-v0"), plans(1))

    def broken():
        env = gymnasium.make("toy/Counting-v0", disable_env_checker=True).unwrapped
        env.length = None
        return env

    with pytest.raises(SeqrlError, match=r"environment failed at step 0 of episode 0.*TypeError"):
        rollout(Probe(task_of("toy/Counting-v0")), broken, plans(1))


def test_actions_of_the_wrong_shape_are_refused():
    class Wrong(Probe):
        def act(self, state, step, generator=None):
            return torch.zeros(len(step.rtg), 1), state

    with pytest.raises(SeqrlError, match=r"actions of shape \(8, 1\), not \(8,\)"):
        rollout(Wrong(task_of("toy/Counting-v0")), pool("toy/Counting-v0"), plans(1))


def test_a_policy_of_another_environment_is_refused_before_the_run():
    policy = Probe(task_of("toy/Walk-v0"))
    with pytest.raises(SeqrlError) as e:
        rollout(policy, pool("toy/Counting-v0"), plans(1))
    assert e.value.message == "policy acts on Box(3,), env wants Discrete(2)"
    assert e.value.hint == "trained on toy/Walk-v0"
    discrete = Probe(task_of("toy/Walk-v0", actions=2))
    with pytest.raises(SeqrlError, match=r"policy reads Box\(5,\), env gives Box\(1,\)"):
        rollout(discrete, pool("toy/Counting-v0"), plans(1))


def test_steps_handed_to_a_policy_are_its_to_keep():
    policy = Probe(task_of("toy/Counting-v0"))
    rollout(policy, pool("toy/Counting-v0"), plans(1))
    assert [s.observation[0, 0].item() for s in policy.seen] == [0, 1, 2, 3, 4]


def test_acting_leaves_no_autograd_graph():
    policy = Gru(task_of("toy/Walk-v0"))
    states = []
    original = policy.step

    def step(state, step):
        out = original(state, step)
        states.append(out[1]["h"].requires_grad)
        return out

    policy.step = step
    rollout(policy, pool("toy/Walk-v0"), plans(2))
    assert states
    assert not any(states)


def test_ten_thousand_steps_take_no_more_memory_than_a_thousand():
    class Still(Gru):
        def step(self, state, step):
            return torch.zeros(len(step.rtg), self.out), state

    policy = Still(task_of("toy/Counting-v0"))
    peaks = []
    for length in (1000, 10_000):
        with pool("toy/Counting-v0", length=length) as envs:
            tracemalloc.start()
            [record] = rollout(policy, envs, plans(1), row_block=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert record.length == length
    # Latencies are kept too, up to a fixed number of them.
    assert peaks[1] - peaks[0] < 300_000


def test_latency_samples_are_bounded():
    timing = Timing()
    for i in range(50_000):
        timing.policy_call(1e-3 if i % 2 else 3e-3, 1)
    median, p95 = timing.policy_ms()
    assert len(timing._samples) < Timing._KEPT
    assert 1.0 <= median <= p95 <= 3.0 + 1e-9


def test_recording_keeps_every_step_and_frames_see_every_state():
    policy = Gru(task_of("toy/Walk-v0")).eval()
    shown = []
    asked = plans(5)
    envs = pool("toy/Walk-v0", 2, render_mode="rgb_array")
    records = rollout(
        policy,
        envs,
        asked,
        record=True,
        frames=lambda plan, draw: shown.append((plan.index, draw().shape)),
    )
    for r in records:
        assert r.steps.observations.shape == (r.length + 1, 5)
        assert r.steps.actions.shape == (r.length, 3)
        assert np.float64(r.steps.rewards.sum()) == pytest.approx(r.episode_return, abs=1e-3)
        assert sum(i == r.plan.index for i, _ in shown) == r.length + 1
    assert {shape for _, shape in shown} == {(20, 31, 3)}


def test_worker_processes_give_the_same_results():
    policy = Gru(task_of("toy/Walk-v0")).eval()
    kwargs = {"render_mode": None}

    def factory():
        return gymnasium.make("toy/Walk-v0", disable_env_checker=True, **kwargs)

    asked = plans(12)
    local = outcome(rollout(policy, pool("toy/Walk-v0", 3), asked))
    with make_pool(factory, 3, "async") as workers:
        assert outcome(rollout(policy, workers, asked)) == local
        oracle = make_reference("oracle", task_of("toy/Walk-v0"))
        by_workers = outcome(rollout(oracle, workers, asked))
    assert by_workers == outcome(rollout(oracle, pool("toy/Walk-v0", 3), asked))


def test_the_engine_names_no_environment_or_agent():
    import seqrl.acting
    import seqrl.rollout
    from seqrl.agents import registry
    from seqrl.envs import ENVIRONMENTS

    for module in (seqrl.rollout, seqrl.acting):
        source = Path(module.__file__).read_text(encoding="utf-8").lower()
        for name in [row.id.lower() for row in ENVIRONMENTS] + ["hopper", "tmaze", "t-maze"]:
            assert name not in source
        for name in registry.names():
            assert f"'{name}'" not in source
            assert f'"{name}"' not in source

"""Agentic Transformer: relabelled chains, which steps are learned, the memory of a trial."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from seqrl.agents.at import AgenticTransformer
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.spec import Batch, Step
from seqrl.testing.battery import build, tiny_data


def at(data: Trajectories, **fields: Any) -> AgenticTransformer:
    agent = build(AgenticTransformer, data, **fields).eval()
    assert isinstance(agent, AgenticTransformer)
    return agent


def chains(agent: AgenticTransformer, data: Trajectories, rows: int = 32) -> Batch:
    return Sampler([data], agent.config.window(), rows, seed=4).batch(0)


def ends(batch: Batch, row: int) -> list[int]:
    done = (batch.terminations | batch.truncations)[row] & batch.mask[row]
    return torch.nonzero(done).flatten().tolist()


def test_the_completion_token_marks_the_best_episode_and_ties_alone() -> None:
    data = tiny_data("discrete", longest=6)
    data.rewards[:] = data.rewards.round()  # ties
    data.rtg[:] = Trajectories.from_episodes(
        [{"observations": e.observations, "actions": e.actions, "rewards": e.rewards}
         for e in (data[i] for i in range(len(data)))]
    ).rtg  # fmt: skip
    agent = at(data, context=24, episodes=4)
    batch = chains(agent, data)
    rtg, rewards = agent.scaled(batch.returns_to_go), agent.scaled(batch.rewards)
    met = agent._met(rtg, rewards)
    seen = 0
    for row in range(batch.size):
        places = ends(batch, row)
        left = [float(batch.returns_to_go[row, p] - batch.rewards[row, p]) for p in places]
        assert [bool(met[row, p]) for p in places] == [abs(v) < 1e-3 for v in left]
        assert abs(left[-1]) < 1e-3, "the last episode is the best"
        assert all(v > -1e-3 for v in left)
        seen += len(places) > 2
    assert seen > 5


@torch.no_grad()
def test_only_the_last_episode_is_learned() -> None:
    data = tiny_data("discrete", longest=6)
    last, everything = (at(data, context=24, episodes=4, loss_on=on) for on in ("last", "all"))
    batch = chains(last, data)
    wanted = 0
    for row in range(batch.size):
        n, places = int(batch.mask[row].sum()), ends(batch, row)
        begin = places[-2] + 1 if len(places) > 1 else 0
        wanted += n - begin
    assert float(last.loss(batch).count) == wanted
    assert float(everything.loss(batch).count) == float(batch.mask.sum())


@torch.no_grad()
def test_later_episodes_see_earlier_ones_and_never_the_reverse() -> None:
    data = tiny_data("discrete", longest=6)
    agent = at(data, context=24, episodes=4)
    batch = chains(agent, data)
    row = next(r for r in range(batch.size) if len(ends(batch, r)) > 1)
    border = ends(batch, row)[0] + 1
    base = agent.predict(batch)[row]
    moved = copy.deepcopy(batch)
    moved.observations[row, border + 1] += 1
    after = agent.predict(moved)[row]
    assert torch.equal(base[: border + 1], after[: border + 1])
    moved = copy.deepcopy(batch)
    moved.actions[row, 0] = (moved.actions[row, 0] + 1) % 3
    after = agent.predict(moved)[row]
    assert not torch.equal(base[border], after[border])


@torch.no_grad()
@pytest.mark.parametrize("reward_token", [True, False])
@pytest.mark.parametrize("rule", ["recompute", "stream"])
def test_a_trial_acts_as_its_chain_predicts(reward_token: bool, rule: str) -> None:
    data = tiny_data("discrete", longest=6)
    agent = at(data, context=24, episodes=4, reward_token=reward_token)
    agent.set_acting(rule=rule)
    batch = chains(agent, data)
    row = next(r for r in range(batch.size) if len(ends(batch, r)) > 2)
    n = int(batch.mask[row].sum())
    whole = agent.predict(batch)[row, :n]
    state, outputs = agent.initial_state(1), []
    over = {p + 1 for p in ends(batch, row)}
    for t in range(n):
        before = max(t - 1, 0)
        y, state = agent.step(
            state,
            Step(
                observation=batch.observations[row, t : t + 1],
                prev_action=batch.actions[row, before : before + 1] * (t > 0),
                prev_reward=batch.rewards[row, before : before + 1] * (t > 0),
                rtg=batch.returns_to_go[row, t : t + 1],
                timestep=batch.timesteps[row, t : t + 1],
                first=torch.tensor([t == 0 or t in over]),
                trial_first=torch.tensor([t == 0]),
                prev_terminated=torch.zeros(1, dtype=torch.bool),
            ),
        )
        outputs.append(y[0])
    torch.testing.assert_close(torch.stack(outputs), whole, rtol=1e-4, atol=1e-5)


def test_sizes() -> None:
    data = tiny_data("discrete")
    with_rewards, without = at(data, context=8), at(data, context=8, reward_token=False)
    width = with_rewards.config.width
    count = [sum(p.numel() for p in a.parameters()) for a in (with_rewards, without)]
    assert count[0] - count[1] == 2 * width  # one linear layer from a number
    assert (with_rewards.recall.period, without.recall.period) == (5, 4)

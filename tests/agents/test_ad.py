"""Algorithm Distillation: one context over several episodes, and what a token may know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from seqrl.agents.ad import AlgorithmDistillation
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.spec import Batch, Step
from seqrl.testing.battery import build, tiny_data


def ad(data: Trajectories, **fields: Any) -> AlgorithmDistillation:
    agent = build(AlgorithmDistillation, data, **fields).eval()
    assert isinstance(agent, AlgorithmDistillation)
    return agent


def trial_steps(batch: Batch, row: int) -> list[Step]:
    """A window from the start of a history as the steps of a trial."""
    out = []
    for t in range(int(batch.mask[row].sum())):
        first = batch.timesteps[row, t : t + 1] == 0
        before = max(t - 1, 0)
        out.append(
            Step(
                observation=batch.observations[row, t : t + 1],
                prev_action=batch.actions[row, before : before + 1] * (t > 0),
                prev_reward=batch.rewards[row, before : before + 1] * (t > 0),
                rtg=torch.zeros(1),
                timestep=batch.timesteps[row, t : t + 1],
                first=first,
                trial_first=torch.tensor([t == 0]),
                prev_terminated=torch.zeros(1, dtype=torch.bool),
            )
        )
    return out


def from_the_start(agent: AlgorithmDistillation, data: Trajectories) -> tuple[Batch, int]:
    """A full window that begins with a history and spans several episodes."""
    for u in range(50):
        batch = Sampler([data], agent.config.window(), 32, seed=u).batch(0)
        starts = (batch.timesteps[:, 0] == 0) & batch.mask.all(1)
        several = (batch.timesteps == 0).sum(1) > 1
        # Tiny data: observations of a history's first step, by which it is known.
        begins = torch.tensor([int(r) in {int(data.starts[i]) for i in (0, 4, 8)}
                               for r in batch.rows])  # fmt: skip
        rows = torch.nonzero(starts & several & begins).flatten()
        if len(rows):
            return batch, int(rows[0])
    raise AssertionError("no such window")


@torch.no_grad()
@pytest.mark.parametrize(
    ("mixer", "positions", "rules"),
    [
        (("attention",), "learned", ("recompute", "refill")),
        (("attention",), "relative", ("recompute", "refill", "stream")),
        (("mlstm",), "none", ("recompute", "stream")),
        (("s6",), "none", ("recompute", "stream")),
    ],
)
def test_the_memory_lasts_over_the_episodes_of_a_trial(
    mixer: tuple[str, ...], positions: str, rules: tuple[str, ...]
) -> None:
    data = tiny_data("discrete", longest=6)
    agent = ad(data, context=12, mixer=mixer, positions=positions)
    batch, row = from_the_start(agent, data)
    whole = agent.predict(batch)[row]
    for rule in rules:
        agent.set_acting(rule=rule)
        state, outputs = agent.initial_state(1), []
        for step in trial_steps(batch, row):
            y, state = agent.step(state, step)
            outputs.append(y[0])
        torch.testing.assert_close(torch.stack(outputs), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_action_may_depend_on_earlier_rewards_but_not_on_its_own() -> None:
    data = tiny_data("discrete", longest=6)
    agent = ad(data, context=12)
    batch = Sampler([data], agent.config.window(), 16, seed=0).batch(0)
    base = agent.predict(batch)
    moved = copy.deepcopy(batch)
    moved.rewards[:, 4] += 3
    after = agent.predict(moved)
    assert torch.equal(base[:, :5], after[:, :5]), "r_t must not reach the prediction of a_t"
    assert bool((base[:, 5] != after[:, 5]).any()), "r_t must reach the prediction of a_{t+1}"


@torch.no_grad()
def test_a_window_that_starts_inside_an_episode_does_not_look_back() -> None:
    data = tiny_data("discrete", longest=6)
    agent = ad(data, context=4)
    agent.set_acting(rule="recompute")
    batch, row = from_the_start(ad(data, context=12), data)
    steps = trial_steps(batch, row)
    state, outputs = agent.initial_state(1), []
    for step in steps:
        y, state = agent.step(state, step)
        outputs.append(y[0])
    # The last K steps as a training window, in order.
    last = batch.map(lambda x: x[row : row + 1, -4:] if x.dim() > 1 else x[row : row + 1])
    torch.testing.assert_close(outputs[-1], agent.predict(last)[0, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_start_of_an_episode_is_told() -> None:
    data = tiny_data("discrete")
    agent = ad(data)
    batch = Sampler([data], agent.config.window(), 16, seed=0).batch(0)
    other = copy.deepcopy(batch)
    other.timesteps += 1
    assert not torch.equal(agent.predict(batch), agent.predict(other))


def test_streaming_needs_places_that_do_not_move() -> None:
    with pytest.raises(SeqrlError, match="positions"):
        ad(tiny_data("discrete")).set_acting(rule="stream")
    with pytest.raises(SeqrlError, match="attention in every layer"):
        ad(tiny_data("discrete"), mixer=("s6",), positions="none").set_acting(rule="refill")

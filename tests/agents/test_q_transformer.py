"""Q-Transformer: values in closed form, exact targets, one way to values, bins, resuming.

Tests named ``test_defect_...`` guard against what public re-implementations do
(docs/agents/q_transformer.md has the table).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from seqrl.agents.q_transformer import QTransformer, QTransformerConfig, pick, q_losses
from seqrl.checkpoint import PolicyMeta, load_agent, save_checkpoint
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.datasets.transitions import read_transitions
from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.evaluating import evaluate_agent
from seqrl.evaluation import EvalConfig
from seqrl.layers.action_decoder import BinValues
from seqrl.layers.transformer import Transformer
from seqrl.spec import Batch, DataStats, ObservationSpec
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes
from tests.agents.test_dt import size, task

PAIR = spaces.MultiDiscrete([8, 8])
NEAR = {"context": 1, "width": 32, "n_layer": 1, "n_head": 2, "gamma": 0.5, "target_tau": 0.05}


def made(
    observations: Any, actions: Any, rewards: Any, ends: Any, space: Any = None, cut: Any = None
) -> Trajectories:
    """Trajectories from flat arrays; observations are rows of an identity matrix, and an episode's
    last one stands for what follows it."""
    eye = np.eye(int(np.max(observations)) + 1, dtype=np.float32)
    data = Trajectories.from_arrays(
        eye[np.asarray(observations)], np.asarray(actions), np.asarray(rewards, np.float32),
        np.asarray(ends, bool), None if cut is None else np.asarray(cut, bool), action_space=space,
        observation_space=spaces.Box(0, 1, (len(eye),), np.float32), name="made",
    )  # fmt: skip
    data.final_known = None
    return data


def agent_on(data: Trajectories, **fields: Any) -> QTransformer:
    plain = {**NEAR, "normalize_observations": False, **fields}
    config = QTransformerConfig(**plain)
    torch.manual_seed(0)
    custom = json.loads(json.dumps(QTransformer.statistics(config, data)))
    return QTransformer(config, [data.task], [dataclasses.replace(data.stats, custom=custom)])


def trained(agent: QTransformer, data: Trajectories, updates: int, lr: float, batch: int) -> None:
    sampler = Sampler([data], agent.config.window(), batch, seed=0)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], lr=lr)
    for u in range(updates):
        optimizer.zero_grad()
        agent.loss(sampler.batch(u)).loss.backward()
        optimizer.step()
        agent.after_update(u + 1)


def every_step(data: Trajectories, agent: QTransformer) -> Batch:
    """Windows that end at each step of a set, once."""
    n = data.num_steps
    gather = Sampler([data], agent.config.window(), 1).gathers[0]
    return gather((np.arange(n) + 0.5) / n, lambda k: np.zeros((n, k)))


class Table(nn.Module):
    """In place of the network: a free number for every state (a one-hot vector) and bin."""

    kinds, dims = ("state",), 1

    def __init__(self, states: int, bins: int):
        super().__init__()
        self.values = nn.Parameter(torch.full((states, bins), 0.1))
        self.legal = torch.ones(1, bins, dtype=torch.bool)

    def token(self, kind: str, x: Tensor) -> Tensor:
        return x

    def read(self, history: tuple[Tensor, Tensor], bins: Tensor) -> tuple[Tensor, None]:
        steps, _ = history
        return (steps[:, -1, 0] @ self.values)[:, None, None], None


def tabular(data: Trajectories, updates: int = 500, **fields: Any) -> QTransformer:
    """An agent whose table was trained on all steps at once until nothing moves."""
    fields = {"target_tau": 0.5, **fields}
    agent = agent_on(data, **fields)
    states, bins = data.task.observation.shape[0], agent.bins.sizes[0]
    agent.net = Table(states, bins)  # type: ignore[assignment]
    agent.target = copy.deepcopy(agent.net).requires_grad_(False)  # type: ignore[assignment]
    batch = every_step(data, agent)
    optimizer = torch.optim.SGD(agent.net.parameters(), lr=0.5 * batch.size)
    for u in range(updates):
        optimizer.zero_grad()
        agent.loss(batch).loss.backward()
        optimizer.step()
        agent.after_update(u + 1)
    return agent


def unscaled(agent: QTransformer) -> Tensor:
    return agent.span * agent.net.values.detach() + agent.floor  # type: ignore[operator]


def metric(agent: QTransformer, batch: Batch, name: str) -> float:
    return float(agent.loss(batch).metrics[name])


# --- what values converge to --------------------------------------------------------------------

SHARES, VALUES = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.5, 0.9, 0.9, 0.2])


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_values_settle_at_the_closed_form(alpha: float, reduction: str) -> None:
    """``p y / (p + alpha (1 - p) / (B - 1))``; a sum over bins multiplies alpha by B - 1."""
    bins = torch.tensor([0] * 6 + [1] * 3 + [2]).unsqueeze(1)
    table = nn.Parameter(torch.full((4,), 0.5))
    optimizer = torch.optim.SGD([table], lr=0.5)
    draws = torch.Generator().manual_seed(0)
    for u in range(2500):
        optimizer.param_groups[0]["lr"] = 1 / (1 + u / 100)
        some = bins[torch.randint(0, 10, (64,), generator=draws)]
        values = table.expand(64, 1, 1, 4)
        legal = torch.ones(1, 4, dtype=torch.bool)
        td, pull = q_losses(values, some, VALUES[some], legal, reduction)
        optimizer.zero_grad()
        (0.5 * td + 0.5 * alpha * pull).backward()
        optimizer.step()
    weight = alpha * (3 if reduction == "sum" else 1)
    want = SHARES * VALUES / (SHARES + weight * (1 - SHARES) / 3)
    assert float((table.detach() - want).abs().max()) < 0.01
    if (alpha, reduction) == (1.0, "mean"):
        assert want.tolist() == pytest.approx([0.409, 0.506, 0.225, 0.0], abs=1e-3)


CHAIN = {  # two states: action 0 stays, 1 moves over; staying in state 1 earns 1
    "observations": [0, 0, 1, 1],
    "actions": [0, 1, 0, 1],
    "rewards": [0, 0, 1, 0],
    "next": [0, 1, 1, 0],
}


def chain(repeat: int = 1) -> Trajectories:
    eye = np.eye(2, dtype=np.float32)
    return Trajectories.from_arrays(
        eye[CHAIN["observations"] * repeat], np.array(CHAIN["actions"] * repeat),
        np.array(CHAIN["rewards"] * repeat, np.float32), np.zeros(4 * repeat), np.ones(4 * repeat),
        final_observations=eye[CHAIN["next"] * repeat], action_space=spaces.Discrete(2),
        observation_space=spaces.Box(0, 1, (2,), np.float32), name="chain",
    )  # fmt: skip


def value_iteration(gamma: float) -> Tensor:
    q = torch.zeros(2, 2)
    for _ in range(500):
        for s, a, r, after in zip(*CHAIN.values(), strict=True):
            q[s, a] = r + gamma * q[after].max()
    return q


def test_one_dimension_without_pull_and_bound_is_q_learning() -> None:
    data = chain()
    agent = tabular(data, alpha=0.0, mc_lower_bound=False, gamma=0.9)
    assert agent.span == pytest.approx(10)
    assert float((unscaled(agent) - value_iteration(0.9)).abs().max()) < 1e-3


def test_its_updates_are_those_of_q_learning() -> None:
    """Step by step the loss is the squared error to ``r + gamma max Q_target``."""
    data = chain(repeat=8)
    agent = agent_on(data, alpha=0.0, mc_lower_bound=False, head_init=0.5)
    sampler = Sampler([data], agent.config.window(), 16, seed=0)
    optimizer = torch.optim.Adam(agent.net.parameters(), lr=1e-2)
    for u in range(5):
        batch = sampler.batch(u)
        online, slow = (
            net.read(
                (net.token("state", x).unsqueeze(2), torch.ones(16, 1, dtype=torch.bool)),
                torch.zeros(16, 0, dtype=torch.int64),
            )[0][:, 0, 0]
            for net, x in ((agent.net, batch.observations), (agent.target, batch.next_observations))
        )
        want = batch.rewards[:, 0] / agent.span + 0.5 * slow.max(-1).values
        error = (online.gather(1, batch.actions).squeeze(1) - want.clamp(0, 1)).detach()
        out = agent.loss(batch)
        assert float(out.loss.detach()) == pytest.approx(
            float(0.5 * error.square().mean()), rel=1e-4
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        agent.after_update(u + 1)


def test_a_pair_of_choices_is_found_through_its_first() -> None:
    """Reward for (3, 5) alone: the first dimension's 3 is worth 1, all else about nothing."""
    pairs = np.stack(np.meshgrid(range(8), range(8), indexing="ij"), -1).reshape(-1, 2)
    rewards = (pairs == [3, 5]).all(1)
    data = made([0] * 64, pairs, rewards, [1] * 64, PAIR)
    agent = agent_on(data, alpha=0.0, mc_lower_bound=False)
    trained(agent, data, 500, 5e-3, 128)
    batch = every_step(data, agent)
    with torch.no_grad():
        bins, values = agent.net.greedy(agent._history(agent._steps(
            agent.net, batch.observations, batch.actions, batch.rewards), *torch.zeros(2, 1).long()
        ))  # fmt: skip
    assert bins.tolist() == [[3, 5]]
    assert float(values[0, 0, 3]) > 0.9
    assert float(values[0, 1, 5]) > 0.9
    others = torch.arange(8) != 3
    assert float(values[0, 0, others].max()) < 0.15


def test_scaling_is_exact_for_costs_and_gains() -> None:
    """A chain 0 -> 1 -> 2 -> end by action 0; by action 1 it ends at once."""

    for gains in ([-1, -2, -4, -8, -1, -3], [1, -2, 4, 0, -1, 3], [0.5, 0.2, 0.1, 0.3, 0.0, 0.9]):
        data = made([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], gains, [0, 0, 1, 1, 1, 1])
        for top in ("auto", "data"):
            # Every step's best return is in the data, so the data's range holds all values.
            agent = tabular(data, alpha=0.0, mc_lower_bound=False, gamma=0.9, value_max=top)
            end = max(gains[2], gains[5])
            middle = max(gains[1] + 0.9 * end, gains[4])
            want = torch.tensor([
                [gains[0] + 0.9 * middle, gains[3]], [gains[1] + 0.9 * end, gains[4]],
                [gains[2], gains[5]],
            ])  # fmt: skip
            if top == "data" and float(want.max()) > agent.span + agent.floor:
                continue  # stitching beat the data: the top is reached and cut
            assert float((unscaled(agent) - want).abs().max()) < 1e-3, (gains, top)


# --- defects of public code ---------------------------------------------------------------------


def test_defect_the_reward_reaches_the_last_dimension() -> None:
    """Without any reward targets are 0; with it an ended step's is the reward, whatever the net."""
    pairs = [[3, 5], [1, 2], [3, 5], [0, 0]]
    ends, rewards = [1, 1, 1, 1], [1.0, 0.0, 1.0, 0.5]
    for factor in (1.0, 0.0):
        data = made([0, 1, 0, 1], pairs, factor * np.array(rewards), ends, PAIR)
        for fields in ({"backup": "dim_nstep"}, {"n_step": 2}, {}):
            agent = agent_on(data, head_init=0.5, mc_lower_bound=False, **fields)
            batch = every_step(data, agent)
            last = targets_of(agent, batch)[:, -1]
            found = read_transitions(batch, agent.config.n_step, agent.config.reach)
            want = factor * torch.tensor(rewards)[batch.rows[found.row] + found.step]
            assert torch.allclose(last, want)


def targets_of(agent: QTransformer, batch: Batch) -> Tensor:
    """The targets that the loss compares logged bins with, before bound and clamp."""
    kept: list[Tensor] = []
    inner = agent._targets

    def spy(*args: Any) -> Tensor:
        kept.append(inner(*args))
        return kept[-1]

    agent._targets = spy  # type: ignore[method-assign]
    try:
        agent.loss(batch)
    finally:
        del agent._targets  # type: ignore[method-assign]
    return kept[0]


def cut_batch(terminated: bool, **fields: Any) -> tuple[QTransformer, Batch]:
    """Windows at the end of an episode that terminated or was cut."""
    data = made([0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, terminated],
                spaces.Discrete(4), [0, 0, 0, not terminated])  # fmt: skip
    data.final_observations[:] = np.eye(4, dtype=np.float32)[1]
    agent = agent_on(data, head_init=0.5, **{"context": 2, "alpha": 0.3, **fields})
    batch = every_step(data, agent)
    return agent, batch.map(lambda x: x[-1:])


OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"n_step": 3}, {"backup": "dim_nstep"}, {"double": True}, {"twin": True, "dueling": True},
    {"history_tokens": ("state", "action", "reward")},
)  # fmt: skip


@pytest.mark.parametrize("fields", OPTIONS)
def test_defect_nothing_is_bootstrapped_behind_a_terminated_step(fields: dict[str, Any]) -> None:
    agent, batch = cut_batch(terminated=True, **fields)
    before = float(agent.loss(batch).loss.detach())
    last = int(batch.mask.sum()) - 1
    batch.next_observations[:, last] += 5
    assert float(agent.loss(batch).loss.detach()) == before


@pytest.mark.parametrize("fields", OPTIONS)
def test_defect_a_cut_episode_bootstraps_from_its_last_observation(fields: dict[str, Any]) -> None:
    agent, batch = cut_batch(terminated=False, mc_lower_bound=False, **fields)
    before = float(agent.loss(batch).loss.detach())
    last = int(batch.mask.sum()) - 1
    batch.next_observations[:, last] += 5
    assert float(agent.loss(batch).loss.detach()) != before
    batch.next_known[:, last] = False
    found = read_transitions(batch, agent.config.n_step, agent.config.reach)
    assert not bool((found.next_step > last).any()), "an unknown end is left out"
    assert bool(torch.isfinite(agent.loss(batch).loss))


def test_defect_the_lower_bound_is_the_return_of_the_very_step() -> None:
    """Of step t and not of the step after; each step's own and not one for all."""
    data = made([0, 1, 2, 0, 1], [0, 1, 0, 1, 0], [0, 1, 3, 2, 4], [0, 0, 1, 0, 1])
    agent = agent_on(data, gamma=0.5, alpha=0.0)
    batch = every_step(data, agent)
    found = read_transitions(batch, 1, 1)
    returns = torch.tensor([0 + 0.5 * (1 + 1.5), 1 + 1.5, 3.0, 2 + 2.0, 4.0])
    assert torch.allclose(agent._logged(batch, found), returns / agent.span)
    wide = agent_on(data, gamma=0.5, context=2, n_step=2)  # windows that reach past the step
    several = every_step(data, wide)
    seen = read_transitions(several, 2, wide.config.reach)
    at = several.rows[seen.row] + seen.step
    assert sorted(at.tolist()) == [0, 1, 2, 3, 4]
    assert torch.allclose(wide._logged(several, seen), returns[at] / wide.span)
    with torch.no_grad():
        for p in agent.target.parameters():
            p.zero_()  # all values 1/2
    bounds = returns / agent.span
    plain = targets_of(agent, batch)[:, 0].clamp(0, 1)
    out = agent.loss(batch)
    assert float(out.metrics["mc_active"]) == pytest.approx(float((bounds > plain).float().mean()))
    assert float(out.metrics["target_max"]) == pytest.approx(
        float(torch.maximum(bounds, plain).max())
    )
    off = agent_on(data, gamma=0.5, mc_lower_bound=False)
    assert metric(off, batch, "mc_active") == 0


def test_defect_behind_a_cut_the_bound_stands_on_the_floor() -> None:
    data = made([0, 1, 0], [0, 1, 0], [-1, -2, -8], [0, 0, 1], cut=[0, 1, 0])
    agent = agent_on(data, gamma=0.5)
    batch = every_step(data, agent)
    logged = agent._logged(batch, read_transitions(batch, 1, 1)) * agent.span + agent.floor
    assert agent.floor == -8
    assert logged.tolist() == pytest.approx([-2 - 0.25 * 8, -2 - 0.5 * 8, -8])


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_defect_scaled_rewards_add_up_to_scaled_returns(gamma: float) -> None:
    """``r' + gamma G'`` is G' of the step before, offset and all, so both mean the same."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=12)
    ends = np.arange(12) % 4 == 3
    data = made(rng.integers(0, 3, 12), rng.integers(0, 2, 12), rewards, ends)
    agent = agent_on(data, gamma=gamma, mc_lower_bound=False)
    batch = every_step(data, agent)
    found = read_transitions(batch, 1, 1)
    logged = agent._logged(batch, found)
    agent._bootstrap = lambda *_: torch.cat([logged[1:], logged[:1]])  # type: ignore[method-assign]
    assert agent.floor < 0
    assert torch.allclose(targets_of(agent, batch)[:, 0], logged, atol=1e-6)


@torch.no_grad()
def test_defect_untaken_bins_are_pulled_by_their_values() -> None:
    """Not by logits; and by the mean over bins of the dimension that there are."""
    space = spaces.MultiDiscrete([3, 5])
    data = made([0, 1, 1], [[2, 4], [0, 1], [1, 3]], [1, 0, 2], [1, 1, 1], space)
    for reduction in ("mean", "sum"):
        agent = agent_on(data, head_init=2.0, conservative_reduction=reduction)
        batch = every_step(data, agent)
        found = read_transitions(batch, 1, 1)
        steps = agent._steps(agent.net, agent._observed(batch), batch.actions, batch.rewards)
        history = agent._history(steps, found.row, found.step)
        values, _ = agent.net.read(history, batch.actions[:, 0, :1])
        total = 0.0
        for i in range(3):
            for d, n in enumerate((3, 5)):
                others = [b for b in range(n) if b != int(batch.actions[i, 0, d])]
                part = values[i, 0, d, others].square()
                total += float(part.mean() if reduction == "mean" else part.sum())
        assert metric(agent, batch, "reg") == pytest.approx(total / 6, rel=1e-5)


def test_defect_the_pull_does_not_grow_with_the_batch() -> None:
    for kind in ("continuous", "discrete"):
        data = tiny_data(kind)
        agent = build(QTransformer, data, alpha=1.0)
        batch = Sampler([data], agent.config.window(), 16, seed=0).batch(0)
        twice = batch.map(lambda x: torch.cat([x, x]))
        one, two = agent.loss(batch), agent.loss(twice)
        for name in ("reg", "td"):
            assert float(two.metrics[name]) == pytest.approx(float(one.metrics[name]), rel=1e-5)
        assert float(two.loss.detach()) == pytest.approx(float(one.loss.detach()), rel=1e-5)
        assert two.count == 2 * one.count


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2, 6])
@pytest.mark.parametrize(
    "options",
    [{}, {"value_heads": 2, "dueling": True, "per_dimension": True},
     {"kinds": ("state", "action", "reward")}],
)  # fmt: skip
def test_defect_decoding_reads_the_values_that_training_read(dims: int, options: Any) -> None:
    """Bin by bin with cached keys, bin by bin anew, and all at once: the same function."""
    net, history = a_net(dims, **options)
    bins, values = net.greedy(history)
    whole, _ = net.read(history, bins[:, :-1])
    mean = whole.mean(1).masked_fill(~net.legal, float("-inf"))
    legal = torch.isfinite(mean)
    assert torch.equal(legal, torch.isfinite(values))
    assert float((mean - values)[legal].abs().max()) < 1e-5
    for i in range(dims):
        alone, _ = net.read(history, bins[:, :i])
        assert float((alone - whole[:, :, : i + 1]).abs().max()) < 1e-5
        assert torch.equal(mean[:, i].argmax(-1), bins[:, i])
    half = max((dims - 1) // 2, 1)
    if dims > 2:  # in two pieces of several bins
        first, prefix = net.read(history, bins[:, :half])
        rest, prefix = net.read(prefix, bins[:, half:-1])
        assert float((torch.cat([first, rest], 2) - whole).abs().max()) < 1e-5
        assert prefix.given == dims - 1


def a_net(dims: int, n: int = 5, **options: Any) -> tuple[BinValues, tuple[Tensor, Tensor]]:
    """A network with weights off their start, bins of unequal number, and histories of any age."""
    torch.manual_seed(0)
    sizes = tuple([7, 3, 5][i % 3] for i in range(dims))
    plain = {"width": 16, "layers": 2, "heads": 2, "context": 4, "head_std": 1.0}
    net = BinValues(ObservationSpec("vector", (3,)), sizes, **{**plain, **options}).eval()
    for p in net.parameters():
        p.data += 0.2 * torch.randn_like(p)
    steps = torch.randn(n, 4, len(net.kinds), 16)
    return net, (steps, torch.arange(4) >= torch.randint(0, 4, (n, 1)))


@torch.no_grad()
def test_defect_acting_chooses_no_bin_at_random() -> None:
    for kind in ("continuous", "discrete"):
        data = tiny_data(kind)
        agent = build(QTransformer, data).eval()
        step = steps_of(whole_episodes(agent, data))[0]
        prediction, _ = agent.step(agent.initial_state(4), step)
        for seed in range(5):
            draws = RowDraws(4)
            for row in range(4):
                draws.restart(row, seed)
            action, _ = agent.act(agent.initial_state(4), step, draws)
            best = prediction.argmax(-1) if kind == "discrete" else prediction
            assert torch.equal(action, best)


@pytest.mark.parametrize("count", [4, 16, 256])
def test_defect_there_are_as_many_bins_as_asked_for(count: int) -> None:
    agent = build(QTransformer, tiny_data("continuous"), bins=count)
    assert agent.bins.sizes == (count, count)
    index = torch.arange(count).unsqueeze(1).expand(-1, 2)
    assert torch.equal(agent.bins.encode(agent.bins.decode(index)), index)
    ends = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    assert torch.equal(agent.bins.decode(agent.bins.encode(ends)), ends)


@pytest.mark.parametrize("kind", ["continuous", "discrete", "image"])
@pytest.mark.parametrize("top", ["auto", "data"])
def test_defect_values_and_targets_stay_in_the_unit_interval(kind: str, top: str) -> None:
    data = tiny_data(kind)
    agent = build(QTransformer, data, value_max=top, head_init=5.0)
    for u in range(3):
        batch = Sampler([data], agent.config.window(), 32, seed=0).batch(u)
        metrics = agent.loss(batch).metrics
        for name in ("target_min", "target_max", "q_min", "q_max", "q_data", "q_best"):
            assert 0 <= float(metrics[name]) <= 1, name
        assert float(agent._logged(batch, read_transitions(batch, 1, 1)).max()) <= 1 + 1e-6


def test_defect_targets_come_from_the_slow_copy() -> None:
    """Those of the same step as well: moving the network moves no target."""
    data = tiny_data("continuous")
    agent = build(QTransformer, data)
    batch = Sampler([data], agent.config.window(), 16, seed=0).batch(0)
    before = targets_of(agent, batch).clone()
    with torch.no_grad():
        for p in agent.net.parameters():
            p += torch.randn_like(p)
    assert torch.equal(targets_of(agent, batch), before)
    with torch.no_grad():
        for p in agent.target.parameters():
            p += torch.randn_like(p)
    moved = targets_of(agent, batch)
    assert bool((moved != before).any(0).all()), "every dimension's target looks at it"


# --- targets, step by step ----------------------------------------------------------------------


@pytest.mark.parametrize("backup", ["dim", "dim_nstep"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"double": True},
        {"twin": True, "double": True},
        {"twin": True, "history_tokens": ("state", "reward")},
    ],
)
@torch.no_grad()
def test_targets_are_those_of_the_definition(backup: str, n: int, options: dict[str, Any]) -> None:
    """Against plain loops over the data: histories, rewards, ends, prefixes, who chooses."""
    data = tiny_data("continuous", episodes=6, longest=9)
    agent = build(QTransformer, data, backup=backup, n_step=n, **options)
    for p in agent.net.parameters():  # the copy is the network itself at first
        p += 0.1 * torch.randn_like(p)
    c, gamma = agent.config, agent.config.gamma
    batch = Sampler([data], c.window(), 24, seed=0).batch(0)
    targets, found = targets_of(agent, batch), read_transitions(batch, n, c.reach)

    def values(net: BinValues, e: int, t: int, prefix: Tensor) -> Tensor:
        """``[H, j + 1, B]`` at time t of an episode, from a history of its own making."""
        episode = data[e]
        steps, real = torch.zeros(1, c.context, len(net.kinds), c.width), torch.zeros(1, c.context)
        for k in range(max(t - c.context + 1, 0), t + 1):
            place = c.context - 1 - (t - k)
            real[0, place] = 1
            x = agent.observe(torch.from_numpy(episode.observations[k]))
            steps[0, place, 0] = net.token("state", x)
            if len(net.kinds) > 1 and k < t:
                r = agent.scaled(torch.tensor(episode.rewards[k]))
                steps[0, place, 1] = net.token("reward", r)
        return net.read((steps, real.bool()), prefix.unsqueeze(0))[0][0]

    def best(e: int, t: int, prefix: Tensor) -> Tensor:
        slow = values(agent.target, e, t, prefix).amin(0)
        chooser = values(agent.net, e, t, prefix).mean(0) if c.double else slow
        return slow.gather(1, chooser.argmax(-1, keepdim=True)).squeeze(1)

    assert len(found.row) > 10
    for i in range(len(found.row)):
        flat = int(batch.rows[found.row[i]] + found.step[i])
        e = int(np.searchsorted(data.episode_starts, flat, side="right") - 1)
        episode, t = data[e], flat - int(data.starts[e])
        logged = agent.bins.encode(torch.from_numpy(episode.actions))
        stop = min(t + n, len(episode))
        over = stop == len(episode)
        y = 0.0
        for k in range(t, stop):
            ended = over and episode.terminated and k == len(episode) - 1
            r = (episode.rewards[k] - (1 if ended else 1 - gamma) * agent.floor) / agent.span
            y += gamma ** (k - t) * r
        if not (over and episode.terminated):
            if backup == "dim" or over:
                value = best(e, stop, logged[0, :0])[0]
            else:
                value = best(e, stop, logged[stop, :1])[-1]
            y += gamma ** (stop - t) * float(value)
        first = y if backup == "dim_nstep" else float(best(e, t, logged[t, :1])[1])
        assert targets[i].tolist() == pytest.approx([first, y], abs=1e-5), (e, t)


def test_twins_differ_and_the_smaller_is_trusted() -> None:
    agent = build(QTransformer, tiny_data("discrete"), twin=True, head_init=0.0)
    one, two = agent.net.heads
    assert not torch.equal(one.out.weight, two.out.weight)
    values = torch.rand(4, 2, 1, 3)
    best = agent._best(values, None)
    assert torch.equal(best, values.amin(1).amax(-1))
    chosen = values.mean(1).argmax(-1)
    assert torch.equal(agent._best(values, values), pick(values.amin(1), chosen))


# --- the network --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 5])
def test_a_bin_changes_no_value_of_its_own_dimension_or_before(dims: int) -> None:
    net, history = a_net(dims)
    bins = torch.zeros(5, dims - 1, dtype=torch.int64)
    base, _ = net.read(history, bins)
    for j in range(dims - 1):
        moved = bins.clone()
        moved[:, j] = 1
        after, _ = net.read(history, moved)
        assert torch.equal(after[:, :, : j + 1], base[:, :, : j + 1])
        assert bool((after[:, :, j + 1 :] != base[:, :, j + 1 :]).any(-1).all())


@torch.no_grad()
def test_states_see_all_of_the_history_that_is_real_and_nothing_else() -> None:
    net, (steps, _) = a_net(3, n=2)
    real = torch.tensor([[False, True, True, True], [False, False, True, True]])
    bins = torch.zeros(2, 2, dtype=torch.int64)
    base, _ = net.read((steps, real), bins)
    for place in range(4):
        moved = steps.clone()
        moved[:, place] += 1
        after, _ = net.read((moved, real), bins)
        changed = (after != base).flatten(1).any(1)
        assert changed.tolist() == real[:, place].tolist()


@torch.no_grad()
def test_any_mask_is_the_causal_one_where_it_says_so() -> None:
    torch.manual_seed(0)
    stack = Transformer(16, 2, 4, "gelu").eval()
    x = torch.randn(3, 7, 16)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    whole = stack(x)
    y, past = stack.over(x, mask)
    assert torch.allclose(y, whole, atol=1e-6)
    read, _ = stack.over(x, mask, read=2)
    assert torch.allclose(read, whole[:, -2:], atol=1e-6)
    head, past = stack.over(x[:, :4], mask[:, :, :4, :4])
    tail, past = stack.over(x[:, 4:], mask[:, :, 4:], past)
    assert torch.allclose(torch.cat([head, tail], 1), whole, atol=1e-6)
    assert past[0].shape == (2, 3, 4, 7, 4)


@pytest.mark.parametrize(("s", "a", "count"), [(11, 3, 411_424), (17, 6, 424_864)])
def test_parameter_counts(s: int, a: int, count: int) -> None:
    spec, stats = task(s, a)
    assert size(QTransformer(QTransformerConfig(), [spec], [stats])) == count
    d, w, bins, layers = 128, 4, 32, 2
    formula = (s + 1) * d + w * d + (a - 1) * (bins + 1) * d
    formula += layers * (12 * d * d + 13 * d) + 2 * d + d * bins + bins
    assert count == formula


def test_bins_start_at_the_mean_return() -> None:
    data = tiny_data("discrete")
    facts = QTransformer.statistics(QTransformerConfig(gamma=0.9, value_max="data"), data)["values"]
    agent = build(QTransformer, data, head_init=0.0)
    batch = Sampler([data], agent.config.window(), 32, seed=0).batch(0)
    start = min(max(facts["mean"], 0.02), 0.5)
    assert 0.02 < facts["mean"] < 1
    for name in ("q_min", "q_max", "q_data"):
        assert metric(agent, batch, name) == pytest.approx(start, rel=1e-4)
    wide = build(QTransformer, data, head_init=0.0, dueling=True, head_per_dimension=True)
    assert metric(wide, batch, "q_max") == pytest.approx(start, rel=1e-4)


def test_a_checkpoint_holds_weights_alone() -> None:
    """Tables that follow from the sizes are made anew: an older checkpoint stays complete."""
    agent = build(QTransformer, tiny_data("continuous"))
    names = set(agent.net.state_dict())
    assert names == {name for name, _ in agent.net.named_parameters()}


@torch.no_grad()
def test_advantages_have_mean_zero_over_legal_bins() -> None:
    net, history = a_net(2, dueling=True)
    head = net.heads[0]
    logits = []
    keep = head.register_forward_hook(lambda m, i, o: logits.append((i[0], o)))
    net.read(history, torch.zeros(5, 1, dtype=torch.int64))
    keep.remove()
    hidden, out = logits[0]
    value = head.value(hidden)
    mean = (out * net.legal).sum(-1, keepdim=True) / net.legal.sum(-1, keepdim=True)
    assert torch.allclose(mean, value, atol=1e-5)


# --- bins and kinds of actions ------------------------------------------------------------------


def test_statistics_bins_and_range_survive_json() -> None:
    data = tiny_data("continuous")
    for fields in ({}, {"bin_edges": "quantile", "bounds": "data"}, {"decode_bins": "bin_mean"}):
        config = QTransformerConfig(bins=8, **fields)
        custom = QTransformer.statistics(config, data)
        stats = dataclasses.replace(data.stats, custom=custom)
        back = DataStats.from_json(json.loads(json.dumps(stats.to_json())))
        one, two = (QTransformer(config, [data.task], [s]) for s in (stats, back))
        for name in ("values", "edges", "legal"):
            assert torch.equal(getattr(one.bins, name), getattr(two.bins, name))
        assert (one.floor, one.span) == (two.floor, two.span)
    with pytest.raises(SeqrlError, match="need data"):
        QTransformer(config, [data.task], [data.stats])


@pytest.mark.parametrize(
    "fields",
    [{"bin_edges": "quantile", "bounds": "data"}, {"decode_bins": "bin_mean"},
     {"history_tokens": ("reward", "state", "action")}, {"dueling": True, "twin": True},
     {"head_per_dimension": True}, {"n_step": 3, "backup": "dim_nstep"}, {"context": 1}],
)  # fmt: skip
@torch.no_grad()
def test_stepping_predicts_what_the_window_predicts(fields: dict[str, Any]) -> None:
    for kind in ("continuous", "discrete"):
        data = tiny_data(kind)
        agent = build(QTransformer, data, **fields).eval()
        batch = whole_episodes(agent, data)
        stepped, _ = stream(agent, steps_of(batch))
        assert float((stepped - agent.predict(batch))[batch.mask].abs().max()) < 1e-5
        assert bool(torch.isfinite(agent.loss(batch).loss))


class PairEnv(gymnasium.Env):
    """Reward 1 for (2, 0), the episode ends after three steps."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.MultiDiscrete([3, 2])
    max_episode_steps = 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        assert action.shape == (2,)
        reward = float(tuple(action) == (2, 0))
        return self.observation_space.sample(), reward, self.t == 3, False, {}


def test_multidiscrete_actions_are_learned_and_carried_out() -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, [3, 2], (300, 2))
    data = Trajectories.from_arrays(
        rng.uniform(-1, 1, (300, 2)), actions, (actions == [2, 0]).all(1), np.arange(300) % 3 == 2,
        action_space=PairEnv.action_space, observation_space=PairEnv.observation_space,
        env_id="seqrl-test/Pair-v0", name="pair",
    )  # fmt: skip
    if "seqrl-test/Pair-v0" not in gymnasium.registry:
        gymnasium.register("seqrl-test/Pair-v0", PairEnv, max_episode_steps=3)
    agent = agent_on(data, alpha=0.1)
    assert agent.bins.sizes == (3, 2)
    trained(agent, data, 150, 1e-2, 64)
    report = evaluate_agent(agent.eval(), EvalConfig(episodes=4, targets=("1",)))
    assert [e["return"] for e in report.episodes] == [3.0] * 4


def test_two_greedy_rollouts_with_one_seed_are_identical() -> None:
    data = tiny_data("discrete")
    cart = gymnasium.make("CartPole-v1")
    data = Trajectories.from_arrays(
        np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2, np.ones(40),
        np.arange(40) % 10 == 9, env_id="CartPole-v1", observation_space=cart.observation_space,
        action_space=cart.action_space, max_episode_steps=500, name="cart",
    )  # fmt: skip
    agent = agent_on(data, head_init=1.0, context=3, history_tokens=("state", "action")).eval()
    config = EvalConfig(episodes=12, targets=("1",))
    one, two = (evaluate_agent(agent, config).episodes for _ in range(2))
    few = evaluate_agent(agent, dataclasses.replace(config, num_envs=3)).episodes
    keys = ("return", "length", "seed")
    assert [[e[k] for k in keys] for e in one] == [[e[k] for k in keys] for e in two]
    assert [[e[k] for k in keys] for e in one] == [[e[k] for k in keys] for e in few]


def test_sampling_is_for_one_choice_alone() -> None:
    build(QTransformer, tiny_data("discrete")).set_acting(decode="sample", temperature=0.1)
    with pytest.raises(SeqrlError, match="sample"):
        build(QTransformer, tiny_data("continuous")).set_acting(decode="sample")


# --- the slow copy, checkpoints, settings -------------------------------------------------------


def test_the_slow_copy_follows() -> None:
    data = tiny_data("continuous")
    agent = build(QTransformer, data, target_tau=0.3)
    before = [p.clone() for p in agent.target.parameters()]
    with torch.no_grad():
        for p in agent.net.parameters():
            p += 1
    agent.after_update(1)
    for old, own, new in zip(
        before, agent.net.parameters(), agent.target.parameters(), strict=True
    ):
        assert torch.allclose(new, 0.7 * old + 0.3 * own, atol=1e-6)
        assert not new.requires_grad
    groups = [id(p) for g in agent.parameter_groups() for p in g["params"]]
    assert not set(groups) & {id(p) for p in agent.target.parameters()}


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_a_resumed_agent_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    data = tiny_data(kind)
    agent = build(QTransformer, data, target_tau=0.1)
    sampler = Sampler([data], agent.config.window(), 8, seed=0)

    def go_on(a: QTransformer, start: int, stop: int) -> list[float]:
        optimizer = torch.optim.SGD(a.parameter_groups(), lr=0.5)
        losses = []
        for u in range(start, stop):
            optimizer.zero_grad()
            out = a.loss(sampler.batch(u))
            out.loss.backward()
            optimizer.step()
            a.after_update(u + 1)
            losses.append(float(out.loss.detach()))
        return losses

    go_on(agent, 0, 5)
    folder = save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, step=5))
    again, _ = load_agent(folder)
    moved = zip(agent.net.parameters(), agent.target.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    for a, b in zip(agent.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert go_on(agent, 5, 9) == go_on(again.train(), 5, 9)


def test_batches_without_a_single_usable_step_cost_nothing() -> None:
    agent, batch = cut_batch(terminated=False)
    batch.next_known[:] = False
    out = agent.loss(batch)
    out.loss.backward()
    assert (float(out.loss.detach()), out.count) == (0.0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma", 1.0), ("alpha", -1.0), ("bins", 1), ("n_head", 5), ("target_tau", 0.0),
     ("n_step", 0), ("history_tokens", ("action",)), ("history_tokens", ("state", "rtg")),
     ("head_init", -1.0)],
)  # fmt: skip
def test_wrong_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(SeqrlError, match=field) as e:
        QTransformerConfig(**{field: value})
    assert f"--agent.{field.replace('_', '-')}" in str(e.value.hint)


def test_windows_that_lack_returns_are_refused() -> None:
    data = tiny_data("discrete")
    agent = build(QTransformer, data)
    window = dataclasses.replace(agent.config.window(), discount=None)
    with pytest.raises(SeqrlError, match="discounted returns"):
        agent.loss(Sampler([data], window, 4).batch(0))


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_aimless_episodes_are_pieced_together() -> None:
    """PointReach2D from data that succeed by chance, at a quarter of its preset's updates."""
    import seqrl
    from seqrl import presets

    preset = presets.load("q_transformer/point-reach")
    data = seqrl.load_dataset((preset.data or ("",))[0])
    assert data.stats.return_quantiles["mean"] < 0.3
    config = QTransformerConfig(**preset.settings["agent_config"])
    torch.manual_seed(0)
    stats = dataclasses.replace(data.stats, custom=QTransformer.statistics(config, data))
    agent = QTransformer(config, [data.task], [stats])
    trained(agent, data, 400, 1e-3, 256)
    report = evaluate_agent(agent.eval(), EvalConfig(episodes=50, targets=("1",)))
    assert np.mean([e["return"] for e in report.episodes]) >= 0.9

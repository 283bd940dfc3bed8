"""DPT: what its tokens are, what a trial's context holds, and its two ways of acting."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrl.agents.dpt import DPT, GivenContext
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.layers.context_model import ReluStack, pour, roll_in
from seqrl.spec import Batch, Step
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes


def constant_data() -> Trajectories:
    """As of a bandit: every observation is 1."""
    data = tiny_data("discrete")
    ones = dataclasses.replace(data, observations=data.observations * 0 + 1, validated=False)
    ones.final_observations = data.final_observations * 0 + 1
    return ones


def contexts(agent: DPT, data: Trajectories, rows: int = 8) -> Batch:
    return Sampler([data], agent.config.window(), rows, seed=1).batch(0)


def dpt(data: Trajectories, **fields: Any) -> DPT:
    agent = build(DPT, data, **fields).eval()
    assert isinstance(agent, DPT)
    return agent


def test_the_published_size() -> None:
    data = constant_data()
    agent = dpt(data, context=500, width=32, n_layer=4)
    blocks = sum(p.numel() for p in agent.model.stack.blocks.parameters())
    # 12 d^2 weights and 13 d biases and norms a block.
    assert blocks == 4 * (12 * 32**2 + 13 * 32) == 50_816
    assert agent.model.table is not None
    assert agent.model.table.shape == (501, 32), "H + 1 places"


def test_no_weights_that_nothing_reads() -> None:
    """No table of words, and a place for each token there can be."""
    agent = dpt(constant_data(), context=500, width=32, n_layer=4)
    d, s, n = 32, 5, 3
    token, places = (2 * s + n + 1) * d + d, (500 + 1) * d
    head = 2 * d + d * n + n
    assert sum(p.numel() for p in agent.parameters()) == token + places + 50_816 + head


@torch.no_grad()
def test_as_many_heads_as_asked_for() -> None:
    """And heads they are: with the same weights four see what one does not."""
    data = tiny_data("discrete")
    one, four = dpt(data, n_head=1), dpt(data, n_head=4)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = contexts(one, data)
    a, b = one.prefix_predictions(batch), four.prefix_predictions(batch)
    torch.testing.assert_close(a[:, 0], b[:, 0], rtol=1e-4, atol=1e-5)  # a token alone
    assert bool(((a - b).abs().amax(-1) > 1e-5)[:, 1:][batch.mask[:, 1:]].all())


@torch.no_grad()
def test_the_token_is_one_linear_layer_on_state_action_next_state_reward() -> None:
    data = tiny_data("discrete")
    agent = dpt(data)
    batch = contexts(agent, data)
    assert batch.next_observations is not None
    one_hot = torch.nn.functional.one_hot(batch.actions, 3).float()
    parts = [batch.observations, one_hot, batch.next_observations, batch.rewards.unsqueeze(-1)]
    a = agent.embed
    assert isinstance(a, torch.nn.Linear)
    weights = [a.weight, agent.embed_rest.weight[:, :3], agent.embed_next.weight]
    weight = torch.cat([*weights, agent.embed_rest.weight[:, 3:]], 1)
    expected = torch.nn.functional.linear(torch.cat(parts, -1), weight, a.bias)
    torch.testing.assert_close(agent._transitions(batch), expected)


@torch.no_grad()
def test_a_prefix_knows_nothing_of_what_comes_after_it() -> None:
    data = tiny_data("discrete")
    agent = dpt(data, shuffle=False)
    batch = contexts(agent, data)
    base = agent.prefix_predictions(batch)
    moved = copy.deepcopy(batch)
    moved.rewards[:, 3] += 5  # the fourth transition: seen by prefixes of 4 and more
    after = agent.prefix_predictions(moved)
    assert torch.equal(base[:, :4], after[:, :4])
    long = batch.mask.sum(1) > 5
    assert bool((base[long, 4] != after[long, 4]).any(-1).all())


@torch.no_grad()
def test_every_prefix_is_asked_about_the_same_query_and_label() -> None:
    data = tiny_data("discrete")
    agent = dpt(data)
    batch = contexts(agent, data)
    logits = agent.prefix_predictions(batch)
    out = agent.loss(batch)
    total, count = 0.0, 0
    for row in range(batch.size):
        n = int(batch.mask[row].sum())
        label = int(batch.extras["optimal_action"][row, n - 1])
        for j in range(n):  # prefixes of 0 .. n - 1 transitions
            total -= float(logits[row, j].log_softmax(-1)[label])
            count += 1
    assert float(out.loss) == pytest.approx(total / count, rel=1e-5)
    assert float(out.count) == count
    without = dpt(data, train_prior=False)
    assert float(without.loss(batch).count) == count - batch.size


@torch.no_grad()
def test_streaming_equals_asking_anew_where_the_query_never_changes() -> None:
    data = constant_data()
    for fields in ({}, {"mixer": ("s6",), "positions": "none"}, {"positions": "relative"}):
        agent = dpt(data, **fields)
        batch = whole_episodes(agent, data)
        asked, _ = stream(agent, steps_of(batch))
        agent.set_acting(rule="stream")
        streamed, _ = stream(agent, steps_of(batch))
        real = batch.mask
        torch.testing.assert_close(asked[real], streamed[real], rtol=1e-4, atol=1e-5)
    with pytest.raises(SeqrlError, match="query that never changes"):
        dpt(tiny_data("discrete")).set_acting(rule="stream")
    with pytest.raises(SeqrlError, match="streaming form"):
        dpt(constant_data(), attention="relu").set_acting(rule="stream")


def _step(t: int, episode: int, rows: int = 2) -> Step:
    """Step t of an episode; observations (episode, t, ...), rewards 10 * episode + t."""
    at = torch.tensor([episode, t, 0, 0, 0]).float().expand(rows, 5)
    first = torch.full((rows,), t == 0)
    begins = first & (episode == 0)
    nothing = bool(begins.all())
    before = 10 * episode + t - 1 if t else 10 * (episode - 1) + 2
    final = torch.zeros(rows, 5)
    if t == 0 and episode:
        final = torch.tensor([episode - 1, 3, 0, 0, 0]).float().expand(rows, 5)
    return Step(
        observation=at,
        prev_action=torch.full((rows,), 0 if nothing else (t - 1) % 3),
        prev_reward=torch.full((rows,), 0.0 if nothing else float(before)),
        rtg=torch.zeros(rows),
        timestep=torch.full((rows,), t),
        first=first,
        trial_first=begins,
        prev_terminated=torch.zeros(rows, dtype=torch.bool),
        final_observation=final,
    )


def _tokens(agent: DPT, transitions: list[tuple[int, int]]) -> Tensor:
    """The tokens of transitions (episode, t) of the trial above, whose episodes last 3 steps."""
    s = torch.tensor([[e, t, 0, 0, 0] for e, t in transitions]).float()
    s2 = torch.tensor([[e, t + 1, 0, 0, 0] for e, t in transitions]).float()
    action = torch.tensor([t % 3 for _, t in transitions])
    reward = torch.tensor([10.0 * e + t for e, t in transitions])
    return agent._token(agent.embed(s), action, s2, reward)


@torch.no_grad()
@pytest.mark.parametrize("update", ["step", "episode"])
def test_the_context_of_a_trial(update: str) -> None:
    agent = dpt(tiny_data("discrete"), context=5, context_update=update)
    state = agent.initial_state(2)
    done: list[tuple[int, int]] = []
    whole: list[tuple[int, int]] = []
    for episode in range(3):
        whole = list(done)
        for t in range(3):
            answer, state = agent.step(state, _step(t, episode))
            visible = (done if update == "step" else whole)[-5:]
            assert state["count"].tolist() == [len(visible)] * 2
            if visible:
                seen = state["seen"][0, : len(visible)]
                torch.testing.assert_close(seen, _tokens(agent, visible))
            query = agent.embed(torch.tensor([[episode, t, 0, 0, 0]]).float())
            context = torch.zeros(1, 5, agent.config.width)
            context[0, : len(visible)] = _tokens(agent, visible) if visible else 0
            expected = agent._ask(query, context, torch.tensor([len(visible)]))
            torch.testing.assert_close(answer[:1], expected)
            done.append((episode, t))
    state = agent.reset(state, torch.tensor([True, False]))
    assert state["count"].tolist()[0] == 0
    assert state["count"].tolist()[1] > 0


@torch.no_grad()
def test_a_given_context_is_used() -> None:
    data = tiny_data("discrete")
    agent = dpt(data, shuffle=False)
    batch = whole_episodes(agent, data)
    context = batch.map(lambda x: x[:, : agent.config.context] if x.dim() > 1 else x)
    state = agent.with_context(
        agent.initial_state(4), torch.tensor([True, False, True, True]), context
    )
    assert state["count"].tolist() == [
        0 if i == 1 else int(context.mask[i].sum()) for i in range(4)
    ]
    step = steps_of(batch)[0]
    with_it, _ = agent.step(state, step)
    without, _ = agent.step(agent.initial_state(4), step)
    same = (with_it == without).all(-1).tolist()
    assert same == [False, True, False, False]


def test_recorded_contexts_are_those_of_the_trial_whatever_runs_beside_it() -> None:
    from seqrl.datasets.catalog import LoadOptions, load_dataset
    from seqrl.evaluation import EvalConfig, evaluate

    uri = "incontext:seqrl/DarkRoom-v0?size=4&horizon=6&split=all&histories=1&steps=6"
    data = load_dataset(uri, options=LoadOptions(cache=False))
    agent = dpt(data, shuffle=False)
    for p in agent.parameters():
        p.data.mul_(2)  # so that contexts matter to an untrained network
    spec = dataclasses.replace(agent.config.window(), kind="history", length=6)
    last = np.arange(16) * 6 + 5  # the last transition of each goal's history
    contexts = Sampler([data], spec, 16).gathers[0]((last + 0.5) / data.num_steps, None)  # type: ignore
    assert contexts.mask.all()
    policy = GivenContext(agent, contexts)
    reports = [evaluate(policy, config=EvalConfig(episodes=16, num_envs=n)) for n in (1, 5, 16)]
    assert reports[0].episodes == reports[1].episodes == reports[2].episodes
    # Trial 3 by hand.
    step = _step(0, 0, rows=1)
    step.observation = torch.zeros(1, 2)
    step.final_observation, step.trial = None, torch.tensor([3])
    got, _ = policy.act(None, step)
    state = agent.with_context(agent.initial_state(1), torch.tensor([True]), contexts[3:4])
    prediction, _ = agent.step(state, step)
    assert int(got) == int(prediction.argmax())
    with pytest.raises(SeqrlError, match="contexts for 16 trials"):
        evaluate(policy, config=EvalConfig(episodes=17, num_envs=17))
    with pytest.raises(SeqrlError, match="the agent takes 4"):
        GivenContext(dpt(data, context=4), contexts)


def test_order_that_is_information_is_not_shuffled() -> None:
    data = tiny_data("discrete")
    data.notes["order_matters"] = True
    with pytest.raises(SeqrlError, match="order"):
        build(DPT, data)
    build(DPT, data, shuffle=False)


@torch.no_grad()
def test_relu_attention_against_its_formula() -> None:
    torch.manual_seed(0)
    stack = ReluStack(8, 1).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    block = stack.blocks[0]
    q, k, v = block.qkv(x).chunk(3, -1)
    y = torch.zeros_like(x)
    for i in range(5):
        for j in range(i + 1):
            weight = torch.relu((q[:, i] * k[:, j]).sum(-1, keepdim=True))
            y[:, i] += weight * v[:, j] / (i + 1)
    h = block.norm1(x + y)
    expected = block.norm2(h + block.down(torch.relu(block.up(h))))
    torch.testing.assert_close(stack(x), expected, rtol=1e-12, atol=1e-12)


def test_relu_attention_has_one_head() -> None:
    data = constant_data()
    dpt(data, attention="relu", n_head=1)
    with pytest.raises(SeqrlError, match="one head of full width, not 2"):
        dpt(data, attention="relu", n_head=2)


@torch.no_grad()
def test_the_order_of_a_context_matters_less_without_positions() -> None:
    """A causal mask keeps prefixes ordered, so insensitivity is a matter of degree."""
    data = constant_data()
    gaps = {}
    for positions in ("learned", "none"):
        gap = []
        for seed in range(5):
            torch.manual_seed(seed)
            agent = dpt(data, positions=positions, n_layer=1)
            for p in agent.parameters():
                p.mul_(3 if p.dim() > 1 else 1)
            batch = contexts(agent, data, 16)
            other = copy.deepcopy(batch)
            other.actions[:, :5] = batch.actions[:, :5].flip(1)
            other.rewards[:, :5] = batch.rewards[:, :5].flip(1)
            full = batch.mask.all(1)
            a, b = (agent.prefix_predictions(x)[full, -1] for x in (batch, other))
            gap.append(float((a - b).abs().mean()))
        gaps[positions] = sum(gap) / len(gap)
    assert gaps["none"] < 1e-5 < gaps["learned"]


def test_rolling_buffers_keep_order_and_length() -> None:
    buffer, count = torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64)
    for i in range(1, 6):
        rows = torch.tensor([True, i % 2 == 1])
        buffer, count = roll_in(buffer, count, torch.full((2, 1), float(i)), rows)
    assert buffer[:, :, 0].tolist() == [[3, 4, 5], [1, 3, 5]]
    assert count.tolist() == [3, 3]
    more = torch.arange(10, 14.0).view(1, 4, 1).expand(2, 4, 1)
    poured, total = pour(
        torch.tensor([[[1.0], [0], [0]], [[1.0], [2], [3]]]),
        torch.tensor([1, 3]),
        more,
        torch.tensor([1, 4]),
        torch.tensor([True, True]),
    )
    assert poured[:, :, 0].tolist()[0][:2] == [1, 10]
    assert poured[:, :, 0].tolist()[1] == [11, 12, 13]
    assert total.tolist() == [2, 3]

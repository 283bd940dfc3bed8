"""What the frozen-history agent has beyond the battery: an encoder that is drawn and then kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent
from seqrl.agents.frozen import Frozen, FrozenConfig, start_cell
from seqrl.datasets.sampling import Sampler
from seqrl.errors import SeqrlError
from seqrl.layers.shelf import ROWS
from seqrl.testing.battery import (
    KINDS,
    build,
    steps_of,
    stream,
    tiny_data,
    whole_episodes,
)

WINDOWS = ("attention", "conv", "trxl")
RECURRENT = tuple(r.name for r in ROWS if r.name not in WINDOWS)
INPUTS: dict[str, Any] = {"reward_input": True, "n_layer": 1}


def weights(agent: Agent) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in agent.named_parameters()}


def train(agent: Agent, updates: int = 3, precision: torch.dtype | None = None) -> None:
    sampler = Sampler([tiny_data("discrete")], agent.config.window(), 8, seed=5)
    optimizer = torch.optim.AdamW(agent.parameter_groups(), lr=1e-2, weight_decay=0.1)
    for u in range(updates):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            loss = agent.loss(sampler.batch(u)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        agent.after_update(u + 1)


def stepped_features(agent: Frozen, batch: Any) -> Tensor:
    state, out = agent.initial_state(batch.size), []
    for s in steps_of(batch):
        known = (~s.first).float()
        obs = agent.observe(s.observation)
        h, state = agent.encoder.step(state, obs, s.prev_action, s.prev_reward, known)
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("encoder", RECURRENT)
def test_training_moves_the_head_and_nothing_of_the_encoder(encoder: str) -> None:
    data = tiny_data("discrete")
    agent = build(Frozen, data, encoder=(encoder,), **INPUTS)
    before = weights(agent)
    train(agent)
    with torch.inference_mode():  # an evaluation in between leaves nothing that training minds
        stream(agent.eval(), steps_of(whole_episodes(agent, data)))
    train(agent.train())
    train(agent, precision=torch.bfloat16)
    after = weights(agent)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("encoder."), name
    assert not any(p.requires_grad for p in agent.encoder.parameters())
    optimised = {id(p) for g in agent.parameter_groups() for p in g["params"]}
    assert not optimised & {id(p) for p in agent.encoder.parameters()}


@pytest.mark.parametrize("encoder", RECURRENT)
def test_streamed_features_equal_those_of_the_whole_sequence(encoder: str) -> None:
    data = tiny_data("discrete")
    agent = build(Frozen, data, encoder=(encoder,), **INPUTS).eval()
    assert isinstance(agent, Frozen)
    batch = whole_episodes(agent, data)
    whole = agent.encode_history(batch)
    assert not whole.requires_grad
    gap = (whole - stepped_features(agent, batch))[batch.mask].abs().max()
    assert gap < 1e-4  # features have deviation 1


@pytest.mark.parametrize("encoder", RECURRENT)
@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_the_first_step_reaches_later_features_alone(encoder: str, name: str) -> None:
    data = tiny_data("discrete")
    agent = build(Frozen, data, encoder=(encoder,), **INPUTS).eval()
    assert isinstance(agent, Frozen)
    batch = whole_episodes(agent, data)
    moved = batch.map(lambda x: x.clone())
    first = getattr(moved, name)[:, 0]
    first.copy_((first + 1) % 3 if name == "actions" else first + 1)
    gap = (agent.encode_history(batch) - agent.encode_history(moved)).abs().amax((0, 2))
    assert gap[-1] > 1e-4
    # An action and a reward come after the features of their step (FFTs round: measured 1e-6).
    assert (gap[0] > 1e-4) == (name == "observations")
    assert name == "observations" or gap[0] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_returns_reach_the_head_and_not_the_encoder(kind: str) -> None:
    data = tiny_data(kind)
    agent = build(Frozen, data, **INPUTS).eval()
    assert isinstance(agent, Frozen)
    assert agent.uses_returns
    batch = whole_episodes(agent, data)
    moved = dataclasses.replace(batch, returns_to_go=batch.returns_to_go + 1)
    assert torch.equal(agent.encode_history(batch), agent.encode_history(moved))
    assert not torch.equal(agent.predict(batch), agent.predict(moved))
    agent = build(Frozen, data, return_tokens=False).eval()
    assert not agent.uses_returns
    assert torch.equal(agent.predict(batch), agent.predict(moved))


def test_features_do_not_depend_on_the_precision_of_training() -> None:
    data = tiny_data("continuous")
    agent = build(Frozen, data, **INPUTS)
    assert isinstance(agent, Frozen)
    batch = whole_episodes(agent, data)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(agent.encode_history(batch), agent.encode_history(batch))
        rounded = agent.encode_history(batch)
    assert torch.equal(rounded, agent.encode_history(batch))


def test_inputs_that_are_switched_off_are_not_encoded() -> None:
    data = tiny_data("discrete")
    agent = build(Frozen, data, action_input=False).eval()
    assert isinstance(agent, Frozen)
    batch = whole_episodes(agent, data)
    moved = dataclasses.replace(batch, actions=2 - batch.actions, rewards=batch.rewards + 1)
    assert torch.equal(agent.encode_history(batch), agent.encode_history(moved))


def drawn(seed: int, **fields: Any) -> dict[str, Tensor]:
    data = tiny_data("discrete")
    torch.manual_seed(seed)
    return weights(Frozen(FrozenConfig(width=16, **fields), [data.task], [data.stats]))


def test_the_seed_decides_the_encoder() -> None:
    one, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one[n], again[n]) for n in one)
    # Biases start at 0 but for the one that holds the time scales.
    zeros = {"encoder.action.linear.bias", "encoder.layers.0.cell.bias_hh_l0"}
    same = {n for n in one if torch.equal(one[n], other[n])}
    assert same <= zeros


def test_an_encoder_of_its_own_seed_outlives_the_run_s() -> None:
    one, other = drawn(0, encoder_seed=7), drawn(1, encoder_seed=7)
    kept = {n for n in one if torch.equal(one[n], other[n])}
    assert kept == {n for n in one if n.startswith("encoder.")}
    # And the head does not notice which encoder it is given.
    changed = drawn(0, encoder_seed=8)
    assert not torch.equal(one["encoder.obs.weight"], changed["encoder.obs.weight"])
    heads = [n for n in one if not n.startswith("encoder.")]
    assert all(torch.equal(one[n], changed[n]) for n in heads)


@pytest.mark.parametrize("encoder", ["lstm", "slstm"])
def test_saved_and_loaded_it_is_bit_equal(encoder: str, tmp_path: Path) -> None:
    from seqrl.checkpoint import PolicyMeta, load_agent, save_checkpoint

    agent = build(Frozen, tiny_data("discrete"), encoder=(encoder,), **INPUTS)
    train(agent)
    torch.manual_seed(99)  # what is loaded was drawn from elsewhere
    loaded, _ = load_agent(save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, step=3)))
    assert loaded.state_dict().keys() == agent.state_dict().keys()
    before, after = weights(agent), weights(loaded)
    assert any(n.startswith("encoder.layers") for n in before)
    assert all(torch.equal(before[n], after[n]) for n in before)
    batch = whole_episodes(agent, tiny_data("discrete"))
    assert torch.equal(agent.eval().predict(batch), loaded.eval().predict(batch))


def test_cells_start_at_unit_scale_and_with_the_time_scales_asked_for() -> None:
    torch.manual_seed(0)
    for cell in (nn.GRU(96, 96), nn.LSTM(96, 96)):
        start_cell(cell, radius=0.9, time_scale=50.0)
        weight_in, weight_back, bias_in, bias_back = cell.all_weights[0]
        assert abs(float(weight_in.detach().std()) * 96**0.5 - 1) < 0.05
        for gate in weight_back.detach().split(96):
            sizes = torch.linalg.eigvals(gate).abs()
            assert torch.allclose(sizes, torch.full_like(sizes, 0.9), atol=1e-4)
        gates = bias_in.detach().view(-1, 96)
        steps = 1 / (1 - torch.sigmoid(gates[1])) - 1
        assert steps.min() >= 1 - 1e-4
        assert 25 < steps.max() <= 50 + 1e-2
        assert not bias_back.any()
        rest = [0, *range(2, len(gates))]
        if isinstance(cell, nn.LSTM):
            assert torch.equal(gates[0], -gates[1])
            rest.remove(0)
        assert not gates[rest].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": 0}, "context is 0, must be at least 1"),
        ({"width": 0}, "width is 0"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"head_width": 0}, "head_width is 0"),
        ({"head_layers": 0}, "head_layers is 0"),
        ({"input_scale": 0.0}, "input_scale is 0.0, must be above 0"),
        ({"spectral_radius": -0.1}, "spectral_radius is -0.1, must be at least 0"),
        ({"time_scale": 0.5}, "time_scale is 0.5, must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0, must be in \[0, 1\)"),
        ({"encoder_seed": -1}, "encoder_seed is -1, must be at least 0, or none"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        FrozenConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": ("gruu",)}, "no mixer 'gruu'"),
        ({"encoder": ("gru", "attention")}, "encoder 'attention' carries no state"),
        ({"encoder": ("conv",)}, "encoder 'conv' carries no state"),
        ({"encoder": ("trxl",)}, "encoder 'trxl' carries no state"),
        ({"encoder": ("gru",) * 3}, "mixer names 3 layers, the agent has 2"),
        ({"encoder": ("gru:size=3",)}, "mixer 'gru:size=3'"),
    ],
)
def test_encoders_that_cannot_be_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        build(Frozen, tiny_data("discrete"), **fields)


def test_layers_may_differ_and_take_options() -> None:
    data = tiny_data("continuous")
    agent = build(Frozen, data, encoder=("s4d:dt_min=0.01", "lstm")).eval()
    assert [type(m).__name__ for m in agent.encoder.layers] == ["S4D", "LSTMMixer"]
    batch = whole_episodes(agent, data)
    whole, (stepped, _) = agent.predict(batch), stream(agent, steps_of(batch))
    assert (whole - stepped)[batch.mask].abs().max() < 1e-4

"""A Decision Transformer with any mixer of the shelf, and what attention's caches give up."""

import dataclasses

import pytest
import torch

from seqrl.agents.dt import DecisionTransformer
from seqrl.errors import SeqrlError
from seqrl.layers.attention import AttentionMixer
from seqrl.layers.mixer import MIXERS, Place, build_mixers
from seqrl.layers.stack import grouped_parameters
from seqrl.testing import battery
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes

OTHERS = sorted(set(MIXERS) - {"attention"})


def with_mixer(*names: str, **fields) -> type[DecisionTransformer]:
    small = {"context": 6, "width": 32, "n_head": 2, "dropout": 0.0, "embed_dropout": 0.0}

    class Variant(DecisionTransformer):
        battery_config = {**small, "n_layer": 2, "positions": "none", "mixer": names, **fields}
        tolerance = {"causality": 1e-5, "padding": 1e-4, "streaming": 1e-4}

    return Variant


@pytest.mark.parametrize("name", [*OTHERS, "conv attention", "s6 attention:eviction=window+first"])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("check", ["causality", "padding", "streaming", "row_reset", "overfits"])
def test_the_battery_holds_for_every_mixer(name: str, kind: str, check: str) -> None:
    if check == "overfits" and kind == "continuous":
        check = "deterministic"
    getattr(battery, f"check_{check}")(with_mixer(*name.split()), kind)


def long_batch(steps: int = 20, rows: int = 3):
    data = tiny_data("continuous")
    batch = whole_episodes(build(DecisionTransformer, data, context=steps), data, rows=rows)
    batch.mask[:] = True
    batch.timesteps[:] = torch.arange(steps)
    return batch


def moves(agent, batch, at: int, seen_at: int) -> bool:
    """Whether the observation of step ``at`` changes the prediction of step ``seen_at``."""
    base, _ = stream(agent, steps_of(batch))
    moved = batch.map(lambda x: x.clone())
    moved.observations[:, at] += 1
    after, _ = stream(agent, steps_of(moved))
    return bool((after[:, seen_at] != base[:, seen_at]).any())


def test_what_each_eviction_remembers_in_one_layer() -> None:
    data, batch = tiny_data("continuous"), long_batch()
    agent = build(DecisionTransformer, data, n_layer=1, positions="none").eval()
    agent.set_acting(rule="stream")
    assert not moves(agent, batch, 0, 15)
    assert moves(agent, batch, 10, 15)
    assert not moves(agent, batch, 9, 15)
    agent.set_acting(rule="stream:window+first")
    assert moves(agent, batch, 0, 15)
    assert moves(agent, batch, 11, 15)
    assert not moves(agent, batch, 10, 15)
    agent.set_acting(rule="stream:tova")
    _, state = stream(agent, steps_of(batch))
    held = state["places"][:, 0]
    assert all(len(set(row.tolist())) == 18 and row.min() >= 0 for row in held)
    assert (held.sort(1).values != torch.arange(41, 59)).any(), "tova keeps just the newest"


@pytest.mark.parametrize("rule", ["recompute", "stream"])
def test_rows_of_a_long_cache_do_not_depend_on_the_age_of_others(rule: str) -> None:
    """Beside an old row a young one is computed over more, masked, slots: not a bit changes."""
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data, context=400, positions="none", n_head=2).eval()
    agent.set_acting(rule=rule)
    batch = long_batch(20, rows=4)
    steps = steps_of(batch)
    young, _ = stream(agent, steps)
    state = agent.initial_state(4)
    with torch.no_grad():
        for t in range(380):
            _, state = agent.step(state, steps[t % 20])
        state = agent.reset(state, torch.tensor([True, False, True, False]))
        for t, s in enumerate(steps):
            y, state = agent.step(state, s)
            assert torch.equal(y[[0, 2]], young[[0, 2], t]), t
            assert not torch.equal(y[1], young[1, t])


@pytest.mark.parametrize("fields", [{"positions": "window"}, {"token_positions": True}])
def test_young_rows_beside_old_ones_with_places_in_the_window(fields: dict) -> None:
    """A place in the window never leaves the window's table, however old a row is."""
    agent = build(with_mixer("gru", **fields), tiny_data("continuous")).eval()
    steps = steps_of(long_batch())
    alone, state = stream(agent, steps)
    state = agent.reset(state, torch.tensor([True, False, False]))
    with torch.no_grad():
        for t, s in enumerate(steps):
            age = torch.tensor([t, 20 + t, 20 + t])
            y, state = agent.step(state, dataclasses.replace(s, timestep=age, first=age == 0))
            assert torch.allclose(y[0], alone[0, t], atol=1e-6), t


@pytest.mark.parametrize("mixer", [("gru",), ("conv", "attention"), ("attention",)])
def test_actions_are_read_from_the_whole_computations_values(mixer: tuple[str, ...]) -> None:
    data = tiny_data("continuous")
    agent = build(with_mixer(*mixer), data).eval()
    batch = whole_episodes(agent, data)
    with torch.no_grad():
        rtg, obs = agent.scaled(batch.returns_to_go), agent.observe(batch.observations)
        x = agent.tokens.window(rtg, obs, batch.actions, batch.timesteps)
        whole = agent.stack(x)
        whole = whole if isinstance(whole, torch.Tensor) else whole[0]
        assert torch.allclose(agent.predict(batch), agent.head(whole[:, 1::3]), atol=1e-6)


@pytest.mark.parametrize("rule", ["stream:window+first", "stream:tova"])
def test_evictions_change_nothing_while_the_episode_fits(rule: str) -> None:
    data, batch = tiny_data("continuous"), long_batch(6)
    agent = build(DecisionTransformer, data).eval()
    agent.set_acting(rule=rule)
    stepped, _ = stream(agent, steps_of(batch))
    with torch.no_grad():
        assert float((agent.predict(batch) - stepped).abs().max()) < 1e-6


def test_tova_drops_the_token_looked_at_least() -> None:
    torch.manual_seed(0)
    mixer = AttentionMixer(8, heads=2, window=4, eviction="tova").double().eval()
    nn_scale = 8.0  # attention far from even, or there would be nothing to choose
    mixer.attention.qkv.weight.data.mul_(nn_scale / 0.2)
    x = torch.randn(3, 12, 8, dtype=torch.float64)
    state = mixer.initial_state(3)
    kept: list[list[int]] = [[] for _ in range(3)]
    q, k, v = mixer.attention.qkv(x).view(3, 12, 3, 2, 4).unbind(2)
    for t in range(12):
        y, state = mixer.step(x[:, t], state)
        for row in range(3):
            kept[row].append(t)
            keys, values = k[row, kept[row]], v[row, kept[row]]  # (n, H, 4)
            weights = (torch.einsum("hd,nhd->hn", q[row, t], keys) / 2).softmax(-1)
            want = mixer.attention.out(torch.einsum("hn,nhd->hd", weights, values).flatten())
            assert torch.allclose(y[row], want, atol=1e-12)
            if len(kept[row]) == 4:
                kept[row].pop(int(weights.mean(0).argmin()))
    assert any(0 in row or 1 in row for row in kept) or kept[0] != kept[1]


def test_relative_positions_see_distance_alone() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data, positions="relative", context=6).eval()
    batch = long_batch(6)
    with torch.no_grad():
        base = agent.predict(batch)
        batch.timesteps += 500
        assert torch.equal(base, agent.predict(batch))
    agent.set_acting(rule="stream")
    far = agent.initial_state(3)
    far = {**far, "filled": far["filled"] + 6000, "count": far["count"] + 6000}
    for cache in far["caches"]:
        cache.fill_(7.0)
    # A cache whose visible slots are all written anew sees the same distances at any position.
    near = agent.initial_state(3)
    steps = steps_of(long_batch(20))
    (a, _), (b, _) = stream(agent, steps, near), stream(agent, steps, far)
    assert float((a[:, 13:] - b[:, 13:]).abs().max()) < 1e-4
    assert float((a[:, 0] - b[:, 0]).abs().max()) > 1e-3


def test_wrong_mixers_are_named() -> None:
    data = tiny_data("continuous")
    with pytest.raises(SeqrlError, match="no mixer 'atention'") as e:
        build(DecisionTransformer, data, mixer=("atention",))
    assert "attention" in (e.value.hint or "")
    with pytest.raises(SeqrlError, match="names 2 layers, the agent has 3"):
        build(DecisionTransformer, data, mixer=("gru", "gru"))
    with pytest.raises(SeqrlError, match="no option=value"):
        build_mixers(("gru:5",), Place(8), 1)
    with pytest.raises(SeqrlError, match="unexpected keyword"):
        build_mixers(("attention:speed=9",), Place(8), 1)
    with pytest.raises(SeqrlError, match="eviction 'some'"):
        build_mixers(("attention:eviction=some",), Place(8), 1)


def test_rules_of_attention_alone_are_refused_for_other_mixers() -> None:
    agent = build(with_mixer("gru"), tiny_data("continuous"))
    with pytest.raises(SeqrlError, match="needs attention in every layer") as e:
        agent.set_acting(rule="refill")
    assert "recompute, stream" in (e.value.hint or "")
    with pytest.raises(SeqrlError, match="cannot act by 'other'"):
        agent.set_acting(rule="other")


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_parameter_is_in_one_group(name: str) -> None:
    agent = build(with_mixer(name), tiny_data("continuous"))
    groups = grouped_parameters(agent)
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in agent.parameters() if p.requires_grad}


def test_decay_on_weights_leaves_mixers_what_they_ask() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data, mixer=("s4d",), decay="weights")
    decayed, rest, *special = agent.parameter_groups()
    assert rest["weight_decay"] == 0.0
    assert any(g.get("lr_max") for g in special)
    kernel = {id(p) for g in special for p in g["params"]}
    split = {id(p) for g in (decayed, rest) for p in g["params"]}
    assert not kernel & split
    assert len(kernel | split) == sum(p.requires_grad for p in agent.parameters())

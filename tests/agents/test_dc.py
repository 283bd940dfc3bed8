"""Decision ConvFormer: published sizes, what it can see, padding, acting rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqrl import presets
from seqrl.agents.dc import OFFICIAL_PADDING, DCConfig, DecisionConvFormer
from seqrl.agents.dt import DecisionTransformer
from seqrl.errors import SeqrlError
from seqrl.layers.attention import AttentionMixer
from seqrl.layers.conv import ThreeFilterConv
from seqrl.spec import Batch
from seqrl.testing.battery import (
    build,
    check_padding,
    check_recompute_forgets,
    check_row_reset,
    check_streaming,
    steps_of,
    stream,
    tiny_data,
    whole_episodes,
)
from tests.agents.test_dt import mixed_ages, size, task


@pytest.mark.parametrize(
    ("s", "a", "width", "count"),
    [
        (11, 3, 256, 1_858_307),
        (17, 6, 128, 537_478),
        (17, 6, 256, 1_861_382),
        (17, 6, 512, 6_868_486),
        (29, 8, 128, 539_528),
        (29, 8, 512, 6_876_680),
    ],
)
def test_gym_parameter_count_is_the_published_one(s: int, a: int, width: int, count: int) -> None:
    t, stats = task(s, a)
    assert size(DecisionConvFormer(DCConfig(width=width), [t], [stats])) == count


@pytest.mark.parametrize(
    ("s", "a", "width", "count"), [(11, 3, 256, 1_852_931), (17, 6, 128, 534_790)]
)
def test_without_action_tokens_count_is_the_published_one(
    s: int, a: int, width: int, count: int
) -> None:
    t, stats = task(s, a)
    agent = DecisionConvFormer(DCConfig(width=width, action_tokens=False), [t], [stats])
    assert size(agent) + (a + 1) * width == count  # the release keeps an unused action embedding


ATARI = DCConfig(
    n_layer=6, n_head=8, positions="window_start", embed_norm=False, token_positions=True,
    embed_tanh=True, head_bias=False, decay="weights", max_timestep=10_000,
)  # fmt: skip
HYBRID = (*("conv",) * 5, "attention")


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"mixer": ("attention",)}, 1_674_400),
        ({}, 1_294_240),
        ({"conv_proj": True}, 1_393_312),
        ({"mixer": HYBRID}, 1_357_600),
        ({"mixer": HYBRID, "conv_proj": True}, 1_440_160),
    ],
)
def test_atari_parameter_count_is_the_published_one(changes: dict[str, Any], count: int) -> None:
    t, stats = task((84, 84, 4), 4, discrete=True)
    agent = DecisionConvFormer(dataclasses.replace(ATARI, **changes), [t], [stats])
    # The published count leaves out the time table and includes an unused V x d token table.
    assert size(agent) - 10_001 * 128 + 4 * 128 == count


def test_atari_decays_filters_but_not_their_biases() -> None:
    t, stats = task((84, 84, 4), 4, discrete=True)
    agent = DecisionConvFormer(ATARI, [t], [stats])
    decayed, rest = ({id(p) for p in g["params"]} for g in agent.parameter_groups())
    filters = [m for m in agent.modules() if isinstance(m, ThreeFilterConv)]
    assert len(filters) == 6
    assert all(id(m.weight) in decayed and id(m.bias) in rest for m in filters)
    assert agent.parameter_groups()[1]["weight_decay"] == 0.0
    assert len(decayed) + len(rest) == len(list(agent.parameters()))


def test_filter_settings_reach_the_blocks() -> None:
    t, stats = task(4, 2)
    c = DCConfig(kernel=4, conv_proj=True, mixer=("conv", "conv:kernel=9", "attention"), n_head=2)
    first, second, last = (b.mixer for b in DecisionConvFormer(c, [t], [stats]).stack.blocks)
    assert (first.kernel, second.kernel) == (4, 9)
    assert first.proj is not None
    assert second.proj is not None
    assert isinstance(last, AttentionMixer)
    assert last.window == 24


# --- what it sees ------------------------------------------------------------------------------


def long_batch(steps: int = 20, rows: int = 3) -> Batch:
    data = tiny_data("continuous")
    batch = whole_episodes(build(DecisionConvFormer, data, context=steps), data, rows=rows)
    batch.mask[:] = True
    batch.timesteps[:] = torch.arange(steps)
    noise = torch.Generator().manual_seed(1)
    for name in ("observations", "actions", "returns_to_go"):
        x = getattr(batch, name)
        setattr(batch, name, torch.rand(x.shape, generator=noise) - 0.5)
    return batch


@torch.no_grad()
def test_receptive_field_is_the_published_one() -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), context=20).eval()
    batch, t = long_batch(), 7
    base = agent.predict(batch)
    for name, seen in (
        ("observations", range(t, t + 6)),
        ("actions", range(t + 1, t + 6)),
        ("returns_to_go", range(t, t + 5)),
    ):
        moved = batch.map(lambda x: x.clone())
        getattr(moved, name)[:, t] += 1
        changed = (agent.predict(moved) != base).any(-1).any(0).nonzero().flatten()
        assert changed.tolist() == list(seen), name


@torch.no_grad()
def test_shifting_the_window_shifts_the_outputs() -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), context=20).eval()
    agent.tokens.time.weight.zero_()
    batch = long_batch()
    later = batch.map(lambda x: x[:, 1:].clone() if x.dim() > 1 else x)
    gap = agent.predict(batch)[:, 7:] - agent.predict(later)[:, 6:]
    assert float(gap.abs().max()) < 1e-6
    agent.tokens.time.weight.normal_()
    later.timesteps += 1
    assert float((agent.predict(batch)[:, 7:] - agent.predict(later)[:, 6:]).abs().max()) > 1e-3


@torch.no_grad()
def test_is_a_decision_transformer_with_other_mixers() -> None:
    data = tiny_data("continuous")
    dc = build(DecisionConvFormer, data).eval()
    dt = build(DecisionTransformer, data, mixer=("conv",), activation="gelu", context=5).eval()
    dt.load_state_dict(dc.state_dict())
    batch = whole_episodes(dc, data)
    assert torch.equal(dc.predict(batch), dt.predict(batch))


# --- padding -----------------------------------------------------------------------------------


def left(batch: Batch, fill: dict[str, float], extra: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """The batch's columns padded on the left to T + extra, and the mask of real steps."""
    b, k = batch.mask.shape
    real = batch.mask.sum(1)
    columns = {}
    for name, value in fill.items():
        x = getattr(batch, name)
        y = torch.full((b, k + extra, *x.shape[2:]), value).to(x.dtype)
        for i in range(b):
            y[i, k + extra - real[i] :] = x[i, : real[i]]
        columns[name] = y
    return columns, torch.arange(k + extra) >= (k + extra - real).unsqueeze(1)


def released(
    agent: DecisionConvFormer, columns: dict[str, Tensor], mask: Tensor | None, normalised: bool
) -> Tensor:
    """The published computation, written out; ``mask`` hides padding from the filters."""
    obs = columns["observations"]
    obs = obs if normalised else (obs - agent.obs_mean_0) / agent.obs_std_0
    t = agent.tokens.time.weight[columns["timesteps"]]
    rtg = columns["returns_to_go"].unsqueeze(-1) / agent.scale_of()
    parts = [agent.tokens.rtg(rtg) + t, agent.tokens.obs(obs) + t]
    parts.append(agent.tokens.action(columns["actions"]) + t)
    x = torch.stack(parts, 2).flatten(1, 2)
    norm = agent.tokens.norm
    x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)
    for block in agent.stack.blocks:
        y = block.norm1(x)
        if mask is not None:
            y = y * mask.repeat_interleave(3, 1).unsqueeze(-1)
        padded = F.pad(y.transpose(1, 2), (5, 0))
        w, b = block.mixer.weight, block.mixer.bias
        outs = [F.conv1d(padded, w[j].unsqueeze(1), b[j], groups=x.shape[2]) for j in range(3)]
        kinds = torch.arange(x.shape[1]) % 3
        x = x + torch.stack(outs, 0)[kinds, :, :, torch.arange(x.shape[1])].transpose(0, 1)
        x = x + block.mlp.down(F.gelu(block.mlp.up(block.norm2(x))))
    return agent.head(agent.stack.norm(x)[:, 1::3])


def short_windows(agent: DecisionConvFormer) -> Batch:
    batch = whole_episodes(agent, tiny_data("continuous"), rows=5)
    batch.mask[:, :] = True
    for i in range(5):
        batch.mask[i, i + 1 :] = False
    return batch


@torch.no_grad()
@pytest.mark.parametrize("content", [0.0, -10.0, 123.0])
@pytest.mark.parametrize("extra", [0, 3])
def test_masked_padding_is_no_padding(content: float, extra: int) -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous")).eval()
    batch = short_windows(agent)
    fill = {"observations": content, "actions": content, "returns_to_go": content, "timesteps": 0}
    columns, mask = left(batch, fill, extra)
    want = released(agent, columns, mask, normalised=False)
    got = agent.predict(batch)
    for i in range(5):
        assert torch.allclose(got[i, : i + 1], want[i, -i - 1 :], atol=2e-6), i


@torch.no_grad()
def test_official_padding_is_the_releases_in_training() -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), pad_mode="official").eval()
    masked = build(DecisionConvFormer, tiny_data("continuous")).eval()
    batch = short_windows(agent)
    fill = {"observations": 0.0, "actions": OFFICIAL_PADDING, "returns_to_go": 0, "timesteps": 0}
    columns, _ = left(batch, fill)
    want, got = released(agent, columns, None, normalised=False), agent.predict(batch)
    for i in range(5):
        assert torch.allclose(got[i, : i + 1], want[i, -i - 1 :], atol=2e-6), i
    assert torch.equal(got[4], masked.predict(batch)[4]), "a full window has no padding"
    assert float((got - masked.predict(batch))[0, 0].abs().max()) > 1e-3


@torch.no_grad()
def test_official_padding_is_the_releases_while_acting() -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), pad_mode="official").eval()
    k, batch = agent.config.context, long_batch(12)
    stepped, _ = stream(agent, steps_of(batch))
    obs = (batch.observations - agent.obs_mean_0) / agent.obs_std_0
    for t in range(12):
        lo, pad = max(0, t + 1 - k), max(0, k - t - 1)
        columns = {
            "observations": F.pad(obs[:, lo : t + 1], (0, 0, pad, 0)),
            "actions": F.pad(batch.actions[:, lo : t + 1], (0, 0, pad, 0)),
            "returns_to_go": F.pad(batch.returns_to_go[:, lo : t + 1], (pad, 0)),
            "timesteps": F.pad(batch.timesteps[:, lo : t + 1], (pad, 0)),
        }
        want = released(agent, columns, None, normalised=True)[:, -1]
        assert torch.allclose(stepped[:, t], want, atol=2e-6), t


def test_official_padding_keeps_rows_and_gradients_apart() -> None:
    class Official(DecisionConvFormer):
        battery_config = {**DecisionConvFormer.battery_config, "pad_mode": "official"}

    check_padding(Official, "continuous")
    check_row_reset(Official, "continuous")
    agent = build(Official, tiny_data("continuous")).eval()
    mixed_ages(agent, long_batch(), "recompute")
    with pytest.raises(SeqrlError, match="pad_mode masked"):
        agent.set_acting(rule="stream")


@pytest.mark.parametrize("kind", ["discrete", "image"])
def test_official_padding_needs_what_the_release_pads(kind: str) -> None:
    with pytest.raises(SeqrlError, match="is that of the Gym release") as e:
        build(DecisionConvFormer, tiny_data(kind), pad_mode="official")
    assert e.value.hint == "--agent.pad-mode masked"


# --- acting ------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {"context": 6},
    "short": {"context": 3},
    "hybrid": {"context": 6, "mixer": ("conv", "conv", "attention"), "n_head": 2},
    "two tokens": {"context": 5, "action_tokens": False},
    "two tokens, short": {"context": 3, "action_tokens": False},
    "states alone": {"context": 4, "action_tokens": False, "return_tokens": False},
    "window": {"context": 6, "positions": "window", "token_positions": True},
    "two tokens, window": {"context": 6, "positions": "window", "action_tokens": False},
    "recurrent": {"context": 4, "mixer": ("conv", "gru", "conv")},
}


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_recompute_beyond_the_window_is_re_encoding_the_last_steps(fields: dict) -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), **fields).eval()
    k, batch = agent.config.context, long_batch()
    stepped, _ = stream(agent, steps_of(batch))
    for t in range(20):
        lo = max(0, t + 1 - k)
        window = batch.map(lambda x: x[:, lo : t + 1] if x.dim() > 1 else x)  # noqa: B023
        gap = (agent.predict(window)[:, -1] - stepped[:, t]).abs().max()
        assert float(gap) < 1e-5, f"t={t}"


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_variants_keep_the_batterys_promises(fields: dict) -> None:
    class Variant(DecisionConvFormer):
        battery_config = {**DecisionConvFormer.battery_config, **fields}

    for check in (check_streaming, check_row_reset, check_recompute_forgets):
        check(Variant, "continuous")
    agent = build(Variant, tiny_data("continuous")).eval()
    for rule in ("recompute", "stream") if agent.recall.cacheable else ("recompute",):
        mixed_ages(agent, long_batch(), rule)


def test_carrying_serves_for_re_encoding_where_the_window_holds_all() -> None:
    data, batch = tiny_data("continuous"), long_batch()
    for context, exact in ((6, True), (5, False)):
        agent = build(DecisionConvFormer, data, context=context).eval()
        assert agent.whole is exact  # 15 tokens against 5 x 3 + 1 and 4 x 3 + 1
        agent.set_acting(rule="stream")
        carried, _ = stream(agent, steps_of(batch))
        agent.set_acting(rule="recompute")
        again, state = stream(agent, steps_of(batch))
        assert ("window" in state) is not exact
        late = (carried - again)[:, context:].abs().max()
        assert (float(late) == 0) is exact
    for fields in ({"mixer": ("attention",)}, {"mixer": ("conv", "gru", "conv")},
                   {"positions": "window"}, {"pad_mode": "official"}):  # fmt: skip
        assert not build(DecisionConvFormer, data, context=8, **fields).whole


def test_an_agent_that_remembers_more_than_the_window_is_caught() -> None:
    class Cheats(DecisionTransformer):
        """Keeps sliding its cache where it says that it re-encodes."""

        def step(self, state, step):
            self.acting.rule = "stream"
            return super().step(state, step)

    with pytest.raises(AssertionError, match="older than the last 6 steps"):
        check_recompute_forgets(Cheats, "continuous")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": 0}, "kernel is 0, must be at least 1"),
        ({"n_head": 3}, "n_head is 3, must be a divisor of 128"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"pad_mode": "official", "positions": "window"}, "pad_mode is 'official', must be masked"),
    ],
)
def test_bad_settings_name_value_and_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        DCConfig(**fields)


def test_stream_is_refused_where_positions_move() -> None:
    agent = build(DecisionConvFormer, tiny_data("continuous"), positions="window")
    with pytest.raises(SeqrlError, match="positions that do not move"):
        agent.set_acting(rule="stream")


def test_episodes_longer_than_the_time_table_are_refused() -> None:
    with pytest.raises(SeqrlError, match="max_timestep is 5"):
        build(DecisionConvFormer, tiny_data("continuous"), max_timestep=5)


def test_published_settings() -> None:
    for name, width, lr, targets in (
        ("hopper-medium", 256, 1e-4, [72_000, 36_000, 7200, 3600]),
        ("hopper-medium-replay", 256, 1e-4, [72_000, 36_000, 7200, 3600]),
        ("hopper-medium-expert", 128, 1e-3, [72_000, 36_000, 7200, 3600]),
        ("walker2d-medium", 128, 1e-4, [100_000, 50_000, 10_000, 5000]),
        ("walker2d-medium-replay", 128, 1e-3, [100_000, 50_000, 10_000, 5000]),
        ("halfcheetah-medium-expert", 128, 1e-3, [240_000, 120_000, 24_000, 12_000]),
        ("antmaze", 128, 1e-4, [100_000, 1000, 100, 10, 1]),
    ):
        s = presets.load(f"dc/{name}").settings
        assert (s["agent_config"]["width"], s["train"]["optim"]["lr"]) == (width, lr), name
        assert s["eval"]["targets"] == targets, name
        assert s["train"]["optim"]["warmup_steps"] == 10_000
        assert s["agent_config"]["context"] == 8
        kept = s["agent_config"].get("action_tokens", True)
        assert kept is (name != "hopper-medium-replay"), name
    projected = {"qbert", "seaquest", "frostbite", "assault"}
    for game in (*projected, "breakout", "pong", "asterix", "gopher"):
        s = presets.load(f"dc/atari-{game}").settings
        assert s["agent_config"]["conv_proj"] is (game in projected), game
        windows = s["train"]["steps"] * s["train"]["batch_size"]
        assert windows == pytest.approx(10 * 500_000, rel=1e-4), game

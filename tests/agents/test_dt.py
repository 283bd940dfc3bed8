"""Decision Transformer: parameter counts, parity with the published model, acting rules."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from seqrl.agents.bc import BCConfig, BehaviourCloning
from seqrl.agents.dt import DecisionTransformer, DTConfig
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.layers.attention import CausalSelfAttention
from seqrl.layers.dropout import fast_dropout
from seqrl.layers.token_memory import RULES
from seqrl.spec import ActionSpec, Batch, DataStats, ObservationSpec, Step, TaskSpec
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes


def task(s: int | tuple[int, ...], a: int, discrete: bool = False) -> tuple[TaskSpec, DataStats]:
    obs = ObservationSpec("vector", (s,)) if isinstance(s, int) else ObservationSpec("image", s)
    action = (
        ActionSpec("discrete", (), nvec=(a,))
        if discrete
        else ActionSpec("continuous", (a,), (-1.0,) * a, (1.0,) * a)
    )
    n = s if isinstance(s, int) else 0
    stats = DataStats(
        obs_mean=(0.0,) * n, obs_std=(1.0,) * n, return_scale=1.0, return_quantiles={},
        reward_min=0, reward_max=1, rtg_min=0, rtg_max=1, action_low=(), action_high=(),
        action_counts=(), episodes=1, steps=10, max_episode_length=10,
    )  # fmt: skip
    return TaskSpec("t", obs, action), stats


def size(agent: torch.nn.Module) -> int:
    return sum(p.numel() for p in agent.parameters() if p.requires_grad)


@pytest.mark.parametrize(("s", "a", "count"), [(11, 3, 726_019), (17, 6, 727_558)])
def test_gym_parameter_count_is_the_published_one(s: int, a: int, count: int) -> None:
    t, stats = task(s, a)
    assert size(DecisionTransformer(DTConfig(), [t], [stats])) == count
    d, layers, t_max = 128, 3, 1000
    formula = t_max * d + 2 * d + (s * d + d) + (a * d + d) + 2 * d
    formula += layers * (12 * d * d + 13 * d) + 2 * d + d * a + a
    assert count == formula


ATARI = DTConfig(
    n_layer=6, n_head=8, activation="gelu", positions="window_start", embed_norm=False,
    token_positions=True, embed_tanh=True, head_bias=False, decay="weights", context=30,
)  # fmt: skip


@pytest.mark.parametrize(
    ("k", "v", "count"), [(30, 4, 1_682_848), (30, 6, 1_683_616), (50, 6, 1_691_296),
                          (30, 18, 1_688_224)],
)  # fmt: skip
def test_atari_parameter_count_is_the_published_one(k: int, v: int, count: int) -> None:
    t, stats = task((84, 84, 4), v, discrete=True)
    agent = DecisionTransformer(dataclasses.replace(ATARI, context=k), [t], [stats])
    # The published count leaves out the time table and includes an unused V x d token table.
    assert size(agent) - 1001 * 128 + v * 128 == count


def test_atari_decay_groups_split_as_published() -> None:
    t, stats = task((84, 84, 4), 4, discrete=True)
    agent = DecisionTransformer(ATARI, [t], [stats])
    decayed, rest = (sum(p.numel() for p in g["params"]) for g in agent.parameter_groups())
    assert decayed == 1_659_520
    assert rest == 151_456 - 4 * 128  # less the unused table
    assert agent.parameter_groups()[1]["weight_decay"] == 0.0


def test_atari_model_acts_as_it_re_encodes() -> None:
    t, stats = task((84, 84, 4), 4, discrete=True)
    agent = DecisionTransformer(dataclasses.replace(ATARI, context=4), [t], [stats]).eval()
    state = agent.initial_state(2)
    for i in range(6):
        step = Step(
            torch.randint(0, 256, (2, 84, 84, 4), dtype=torch.uint8), torch.zeros(2).long(),
            torch.zeros(2), torch.full((2,), 90.0), torch.full((2,), i), torch.full((2,), i == 0),
            torch.full((2,), i == 0), torch.zeros(2).bool(),
        )  # fmt: skip
        action, state = agent.act(state, step)
        assert action.shape == (2,)
        assert action.dtype == torch.int64


@pytest.mark.parametrize(
    ("config", "s", "a", "count"),
    [
        (BCConfig(context=20, width=128), 11, 3, 61_699),
        (BCConfig(context=20, width=128), 17, 6, 77_446),
        (BCConfig(), 11, 3, 135_427),
        (BCConfig(), 17, 6, 137_734),
    ],
)
def test_bc_parameter_count_is_the_published_one(
    config: BCConfig, s: int, a: int, count: int
) -> None:
    t, stats = task(s, a)
    assert size(BehaviourCloning(config, [t], [stats])) == count


def left_padded_reference(agent: DecisionTransformer, batch: Batch) -> torch.Tensor:
    """The published computation, written out: left padding, additive -1e4 masks, all tokens."""
    b, k = batch.mask.shape
    real = batch.mask.sum(1)

    def left(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.roll(x[i], int(k - real[i]), 0) for i in range(b)])

    rtg, obs = left(batch.returns_to_go), left(batch.observations)
    actions, time, mask = left(batch.actions), left(batch.timesteps), left(batch.mask)
    obs = (obs - agent.obs_mean_0) / agent.obs_std_0
    t = agent.tokens.time.weight[time]
    tokens = torch.stack(
        [
            agent.tokens.rtg(rtg.unsqueeze(-1) / agent.scale_of()) + t,
            agent.tokens.obs(obs) + t,
            agent.tokens.action(actions) + t,
        ],
        2,
    ).view(b, 3 * k, -1)
    x = F.layer_norm(tokens, tokens.shape[-1:], agent.tokens.norm.weight, agent.tokens.norm.bias)
    pad = (1 - mask.repeat_interleave(3, 1).float()) * -1e4
    future = torch.ones(3 * k, 3 * k).tril().bool()
    for block in agent.stack.blocks:
        y = block.norm1(x)
        att = block.attention
        q, key, v = F.linear(y, att.qkv.weight, att.qkv.bias).chunk(3, -1)
        w = q @ key.transpose(1, 2) / math.sqrt(q.shape[-1])
        w = torch.where(future, w, torch.tensor(-1e4)) + pad[:, None]
        x = x + att.out(w.softmax(-1) @ v)
        x = x + block.down(F.relu(block.up(block.norm2(x))))
    out = agent.head(agent.stack.norm(x)[:, 1::3])
    return torch.stack([torch.roll(out[i], int(real[i] - k), 0) for i in range(b)])


def test_equals_the_published_left_padded_computation_at_real_steps() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data).eval()
    batch = whole_episodes(agent, data, rows=6)
    batch.mask[0, 2:] = False  # one short window at least
    with torch.no_grad():
        gap = (agent.predict(batch) - left_padded_reference(agent, batch))[batch.mask]
    assert float(gap.abs().max()) < 2e-6


def test_attention_gives_left_padding_no_weight() -> None:
    torch.manual_seed(0)
    layer = CausalSelfAttention(16, 1)
    x = torch.randn(1, 5, 16)
    padded = torch.cat([torch.randn(1, 3, 16) * 100, x], 1)
    q, k, v = layer._split(layer.qkv(padded), 3)
    allowed = torch.ones(8, 8).tril().bool()
    allowed[:, :3] = False
    allowed |= torch.eye(8).bool()
    y = layer._finish(layer._attend(q, k, v, allowed))[:, 3:]
    assert torch.allclose(y, layer(x), atol=1e-6)


def test_last_block_computed_at_state_tokens_alone_is_exact() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data).eval()
    x = torch.randn(4, 17, 32)
    readers = torch.arange(6) * 3 + 1
    with torch.no_grad():
        trimmed, full = agent.stack(x, readers), agent.stack(x)[:, readers]
    assert float((trimmed - full).abs().max()) < 1e-6


@pytest.mark.parametrize("time", ["timestep", "window", "relative", "none"])
def test_recompute_beyond_the_window_is_re_encoding_the_last_steps(time: str) -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data, positions=time).eval()
    k = agent.config.context
    long = build(DecisionTransformer, data, context=20)
    batch = whole_episodes(long, data, rows=3)
    batch.mask[:] = True
    batch.timesteps[:] = torch.arange(20)
    stepped, _ = stream(agent, steps_of(batch))
    with torch.no_grad():
        for t in range(20):
            lo = max(0, t + 1 - k)
            window = Batch(
                **{
                    f.name: getattr(batch, f.name)[:, lo : t + 1]
                    for f in dataclasses.fields(batch)
                    if isinstance(getattr(batch, f.name), torch.Tensor)
                    and f.name not in ("task", "rows")
                },
                task=batch.task,
                rows=batch.rows,
            )
            gap = (agent.predict(window)[:, -1] - stepped[:, t]).abs().max()
            assert float(gap) < 1e-5, f"t={t}"


def mixed_ages(agent: DecisionTransformer, batch: Batch, rule: str) -> None:
    """Rows reset at different times act exactly as they would have alone in step."""
    agent.set_acting(rule=rule)
    steps = steps_of(batch)
    alone, _ = stream(agent, steps)
    state, late = agent.initial_state(3), 4
    with torch.no_grad():
        for t in range(20 + late):
            # Row 1 runs ``late`` steps behind the others.
            here = [min(t, 19), max(t - late, 0), min(t, 19)]
            rows = [steps[h] for h in here]
            values = {
                f.name: torch.stack([getattr(s, f.name)[i] for i, s in enumerate(rows)])
                for f in dataclasses.fields(Step)
                if isinstance(getattr(rows[0], f.name), torch.Tensor)
            }
            if t == late:
                state = agent.reset(state, torch.tensor([False, True, False]))
            y, state = agent.step(state, Step(**values))
            if t < 20:
                assert torch.equal(y[[0, 2]], alone[[0, 2], t]), t
            if t >= late:
                assert torch.equal(y[1], alone[1, t - late]), t


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_different_age_do_not_touch_each_other(rule: str) -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data).eval()
    long = build(DecisionTransformer, data, context=20)
    mixed_ages(agent, whole_episodes(long, data, rows=3), rule)


def test_stream_equals_recompute_within_the_window_and_is_another_rule_beyond() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data).eval()
    batch = whole_episodes(build(DecisionTransformer, data, context=20), data, rows=3)
    results = {}
    for rule in ("recompute", "stream"):
        agent.set_acting(rule=rule)
        results[rule], _ = stream(agent, steps_of(batch))
    gap = (results["recompute"] - results["stream"]).abs().amax((0, 2))
    assert float(gap[: agent.config.context].max()) < 1e-6
    assert float(gap[agent.config.context + 1 :].max()) > 1e-4


def test_refill_keeps_between_half_and_all_of_the_window() -> None:
    """After a refill the policy has forgotten what is older than K/2 steps, not more."""
    data = tiny_data("continuous")
    agent = build(DecisionTransformer, data, positions="none").eval()
    agent.set_acting(rule="refill")
    batch = whole_episodes(build(DecisionTransformer, data, context=20), data, rows=3)
    k, t = agent.config.context, agent.config.context  # the first refill happens at t = K
    base, _ = stream(agent, steps_of(batch))
    for back, matters in ((k // 2 - 1, True), (k // 2, False)):
        moved = batch.map(lambda x: x.clone())
        moved.observations[:, t - back] += 1
        after, _ = stream(agent, steps_of(moved))
        assert bool((after[:, t] != base[:, t]).any()) is matters, back


def test_stream_is_refused_where_positions_move() -> None:
    agent = build(DecisionTransformer, tiny_data("continuous"), positions="window")
    with pytest.raises(SeqrlError, match="stream"):
        agent.set_acting(rule="stream")
    assert agent.acting.rule == "recompute"


def test_episodes_longer_than_the_time_table_are_refused() -> None:
    data = Trajectories.from_arrays(
        np.zeros((30, 2), np.float32), np.zeros((30, 1), np.float32), np.zeros(30), np.zeros(30)
    )
    with pytest.raises(SeqrlError, match="episodes reach 30 steps") as e:
        build(DecisionTransformer, data, max_timestep=10)
    assert e.value.hint == "--agent.max-timestep 30"
    build(DecisionTransformer, data, max_timestep=10, positions="none")


def test_without_return_tokens_the_target_does_not_matter() -> None:
    data = tiny_data("discrete")
    agent = build(DecisionTransformer, data, return_tokens=False).eval()
    batch = whole_episodes(agent, data)
    assert not agent.uses_returns
    with torch.no_grad():
        a = agent.predict(batch)
        batch.returns_to_go += 100
        assert torch.equal(a, agent.predict(batch))


@pytest.mark.parametrize(
    ("field", "value"), [("context", 0), ("n_head", 3), ("dropout", 1.0), ("width", -1)]
)
def test_bad_settings_name_value_and_range(field: str, value: float) -> None:
    with pytest.raises(SeqrlError, match=f"{field} is {value}"):
        DTConfig(**{field: value})


def test_actions_stay_inside_uneven_bounds() -> None:
    t, stats = task(4, 2)
    t = dataclasses.replace(t, action=ActionSpec("continuous", (2,), (-2.0, 0.0), (2.0, 5.0)))
    agent = DecisionTransformer(DTConfig(width=32, context=3), [t], [stats])
    torch.nn.init.normal_(agent.head.out.weight, std=10)
    y = agent.head(torch.randn(500, 32)).detach()
    assert float(y[:, 0].min()) >= -2
    assert float(y[:, 0].max()) <= 2
    assert float(y[:, 1].min()) >= 0
    assert float(y[:, 1].max()) <= 5
    assert float(y[:, 1].max()) > 4.9


def test_layout_reads_back_what_it_interleaved() -> None:
    layout = TripletLayout()
    tokens = {k: torch.randn(2, 4, 3) for k in (RTG, OBS, ACTION)}
    x = layout.interleave(tokens)
    assert x.shape == (2, 12, 3)
    for k, v in tokens.items():
        assert torch.equal(layout.read(x, k), v)
    assert torch.equal(x[:, 0], tokens[RTG][:, 0])
    assert torch.equal(x[:, 4], tokens[OBS][:, 1])
    mask = torch.tensor([[True, False]])
    assert layout.mask(mask).tolist() == [[True] * 3 + [False] * 3]


def test_cheap_dropout_keeps_rate_scale_and_seed() -> None:
    torch.manual_seed(3)
    x = torch.ones(1_000_003, requires_grad=True)
    y = fast_dropout(x, 0.1)
    dropped = float((y == 0).float().mean())
    assert abs(dropped - 0.1) < 5 * math.sqrt(0.09 / 1e6)
    assert abs(float(y.detach().max()) - 1 / 0.9) < 2e-5
    assert abs(float(y.detach().mean()) - 1) < 2e-3
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(3)
    assert torch.equal(fast_dropout(torch.ones(1_000_003), 0.1), y.detach())
    # Each of the four elements of one draw drops at the same rate.
    for lane in range(4):
        assert abs(float((y[lane::4] == 0).float().mean()) - 0.1) < 5 * math.sqrt(0.09 / 2.5e5)

"""LRAM: its token layout, its vocabulary of actions, and one model for tasks of every kind."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import seqrl
from seqrl.agents.lram import LRAM, LRAMConfig
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.layers.multitask import ActionCodes, ImpalaEncoder, SharedObservations
from seqrl.spec import ActionSpec, ObservationSpec, Step, TaskSpec
from seqrl.testing import battery
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes

BOX = ActionSpec("continuous", (2,), (-2.0, 0.0), (2.0, 1.0))


def other_data(seed: int = 1) -> Trajectories:
    """A task with shorter observations and another number of choices than the battery's."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(8):
        t = int(rng.integers(3, 12))
        actions = rng.integers(0, 5, t)
        actions[0] = 4
        episodes.append({
            "observations": (5 * rng.normal(size=(t + 1, 3)) + 7).astype(np.float32),
            "actions": actions, "rewards": 100 * rng.normal(size=t).astype(np.float32),
            "terminated": True,
        })  # fmt: skip
    return Trajectories.from_episodes(episodes, name="other")


def many(*data: Trajectories, **fields) -> LRAM:
    torch.manual_seed(0)
    config = LRAMConfig(**{**LRAM.battery_config, **fields})
    return LRAM(config, [d.task for d in data], [d.stats for d in data])


def four() -> list[Trajectories]:
    return [tiny_data("continuous"), other_data(), tiny_data("image"), tiny_data("discrete")]


def batch_of(agent: LRAM, data: list[Trajectories], task: int):
    spec = dataclasses.replace(agent.config.window(), kind="episode_start")
    return Sampler(data, spec, 4, seed=3).batch(task)


# --- the sequence ------------------------------------------------------------------------------


@torch.no_grad()
def test_tokens_are_observation_return_reward_without_actions() -> None:
    data = tiny_data("continuous")
    agent = build(LRAM, data).eval()
    batch = whole_episodes(agent, data)
    seen: list[Tensor] = []
    agent.stack.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    base = agent.predict(batch)
    (x,) = seen
    steps = batch.mask.shape[1]
    assert x.shape == (4, 3 * steps - 1, 32), "three tokens a step, none after the last return"
    rtg = batch.returns_to_go.unsqueeze(-1) / agent.scale_of()
    reward = batch.rewards.unsqueeze(-1) / agent.scale_of()
    assert torch.allclose(x[:, 1::3], agent.embed_norm(agent.embed_rtg(rtg)))
    assert torch.allclose(x[:, 2::3], agent.embed_norm(agent.embed_reward(reward))[:, :-1])
    normal = (batch.observations - agent.obs_mean_0) / agent.obs_std_0
    assert torch.allclose(x[:, ::3], agent.embed_norm(agent.embed_obs.vector(normal)))
    batch.actions.uniform_(-1, 1)
    assert torch.equal(base, agent.predict(batch)), "an action reached the model"


@torch.no_grad()
def test_acting_feeds_the_reward_of_the_last_step_before_the_next_observation() -> None:
    data = tiny_data("discrete")
    agent = build(LRAM, data).eval()
    batch = whole_episodes(agent, data)
    steps = steps_of(batch)
    base, _ = stream(agent, steps)
    steps[3] = dataclasses.replace(steps[3], prev_reward=steps[3].prev_reward + 1)
    moved, _ = stream(agent, steps)
    assert torch.equal(base[:, :3], moved[:, :3])
    assert (base[:, 3] != moved[:, 3]).any()
    batch.rewards[:, 2] += 1
    whole = agent.predict(batch)
    assert float((whole - moved)[batch.mask].abs().max()) < 1e-5


@torch.no_grad()
def test_a_long_episode_acts_as_one_long_window() -> None:
    data = tiny_data("continuous", longest=60)
    agent = build(LRAM, data, context=60).eval()
    short = build(LRAM, data, context=5).eval()
    short.load_state_dict(agent.state_dict())
    batch = whole_episodes(agent, data)
    stepped, _ = stream(short, steps_of(batch))
    gap = (agent.predict(batch) - stepped)[batch.mask]
    assert float(gap.abs().max()) < 1e-4, "the state does not last beyond the window"
    short.set_acting(rule="recompute")
    again, _ = stream(short, steps_of(batch))
    window = batch.map(lambda t: t[:, 20:25] if t.dim() > 1 else t)
    assert (
        float((short.predict(window)[:, -1] - again[:, 24])[batch.mask[:, 24]].abs().max()) < 1e-5
    )


@pytest.mark.parametrize(
    "mixer", [("attention",), ("mamba",), ("gru",), ("attention", "mlstm"), ("xlstm",)]
)
@pytest.mark.parametrize("check", ["causality", "streaming", "row_reset", "deterministic"])
def test_any_mixer_serves(mixer: tuple[str, ...], check: str) -> None:
    class Variant(LRAM):
        battery_config = {"context": 6, "width": 32, "n_layer": 2, "n_head": 2, "mixer": mixer}
        tolerance = {"causality": 1e-5, "padding": 1e-5, "streaming": 1e-4}

    getattr(battery, f"check_{check}")(Variant, "continuous")


@torch.no_grad()
def test_without_returns_the_action_is_read_at_the_observation() -> None:
    data = tiny_data("discrete")
    agent = build(LRAM, data, return_tokens=False).eval()
    batch = whole_episodes(agent, data)
    base = agent.predict(batch)
    batch.returns_to_go += 5
    assert torch.equal(base, agent.predict(batch))
    assert not agent.uses_returns
    assert float((base - stream(agent, steps_of(batch))[0])[batch.mask].abs().max()) < 1e-5


def test_token_positions_forbid_streaming() -> None:
    data = tiny_data("discrete")
    agent = build(LRAM, data, mixer=("attention",), slstm_at=(), positions="token").eval()
    assert agent.acting.rule == "recompute"
    with pytest.raises(SeqrlError, match="do not move with the window"):
        agent.set_acting(rule="stream")
    batch = whole_episodes(agent, data)
    with torch.no_grad():
        gap = (agent.predict(batch) - stream(agent, steps_of(batch))[0])[batch.mask]
    assert float(gap.abs().max()) < 1e-5
    with pytest.raises(SeqrlError, match="needs attention in every layer"):
        build(LRAM, data).set_acting(rule="refill")


# --- actions as ids ----------------------------------------------------------------------------


def test_every_bin_goes_round_and_the_ends_are_the_bounds() -> None:
    codes = ActionCodes([BOX], [None])
    every = torch.arange(256).unsqueeze(-1).expand(256, 2)
    assert torch.equal(codes.encode(codes.decode(every, 0), 0), every + 18)
    ends = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [-9.0, 9.0]])
    assert codes.encode(ends, 0).tolist() == [[18, 18], [273, 273], [18, 273]]
    actions = torch.rand(1000, 2) * torch.tensor([4.0, 1.0]) - torch.tensor([2.0, 0.0])
    back = codes.decode(codes.encode(actions, 0) - 18, 0)
    width = torch.tensor([4.0, 1.0]) / 256
    assert bool(((back - actions).abs() <= width / 2 + 1e-6).all())
    assert codes.legal(0) == slice(18, 274)


def test_ids_are_those_of_the_release_on_the_unit_box() -> None:
    spec = ActionSpec("continuous", (1,), (-1.0,), (1.0,))
    codes = ActionCodes([spec], [None], decode_bins="lower_edge")
    a = torch.linspace(-1, 1, 999).unsqueeze(-1)
    release = 18 + torch.floor((a + 1) / (2 / 256)).clamp(0, 255).long()
    assert float((codes.encode(a, 0) != release).float().mean()) < 0.01, "but for rounding at edges"
    every = torch.arange(256).unsqueeze(-1)
    assert torch.allclose(codes.decode(every, 0), every * (2 / 256) - 1.0)


def test_discrete_ids_and_what_does_not_fit() -> None:
    few = ActionSpec("discrete", (), nvec=(4,))
    codes = ActionCodes([few], [None])
    actions = torch.tensor([[0, 3], [1, 2]])
    assert torch.equal(codes.encode(actions, 0), actions.unsqueeze(-1))
    assert torch.equal(codes.decode(codes.encode(actions, 0), 0), actions)
    assert codes.legal(0) == slice(0, 4)
    with pytest.raises(SeqrlError, match=r"Discrete\(20\) actions do not fit n_discrete 18") as e:
        ActionCodes([ActionSpec("discrete", (), nvec=(20,))], [None])
    assert e.value.hint == "--agent.n-discrete 20"
    wide = ActionSpec("continuous", (9,), (-1.0,) * 9, (1.0,) * 9)
    with pytest.raises(SeqrlError, match=r"Box\(9,\) actions do not fit max_actions 8"):
        ActionCodes([wide], [None])


def test_unbounded_actions_take_the_bounds_of_the_data() -> None:
    inf = math.inf
    spec = ActionSpec("continuous", (2,), (-inf, -1.0), (inf, inf))
    stats = dataclasses.replace(
        tiny_data("continuous").stats, action_low=(-3.0, -0.5), action_high=(5.0, 2.0)
    )
    codes = ActionCodes([spec], [stats])
    ends = codes.decode(torch.tensor([[0, 0], [255, 255]]), 0)
    wanted = [[-3 + 8 / 512, -1 + 3 / 512], [5 - 8 / 512, 2 - 3 / 512]]
    assert torch.allclose(ends, torch.tensor(wanted))


def test_only_legal_ids_are_chosen_and_only_real_dimensions_learned() -> None:
    data = four()
    agent = many(*data).eval()
    with torch.no_grad():
        agent.head.bias.view(8, 274)[:, 4:18] = 50.0  # legal in no task but "other" (4)
    for task, shape in enumerate([(4, 6, 2, 256), (4, 6, 5), (4, 6, 3), (4, 6, 3)]):
        batch = batch_of(agent, data, task)
        with torch.no_grad():
            assert agent.predict(batch).shape == shape
            step = dataclasses.replace(steps_of(batch)[0], task=batch.task)
            action, _ = agent.act(agent.initial_state(4), step)
        spec = agent.tasks[task].action
        if spec.kind == "discrete":
            assert action.dtype == torch.int64
            assert int(action.max()) < spec.n
        else:
            assert action.shape == (4, 2)
            assert bool((action.abs() <= 1).all())
        agent.zero_grad()
        agent.loss(batch).loss.backward()
        rows = agent.head.weight.grad.view(8, 274, -1).abs().sum((1, 2)) > 0
        assert rows.tolist() == [d < spec.size for d in range(8)]


def test_the_loss_is_the_mean_over_valid_steps_and_real_dimensions() -> None:
    data = [tiny_data("continuous")]
    agent = many(*data)
    batch = batch_of(agent, data, 0)
    batch.mask[:, 4:] = False
    with torch.no_grad():
        logits = agent.head.logits(agent._hidden(batch, 0), 2).log_softmax(-1)
        ids = agent.codes.encode(batch.actions, 0).unsqueeze(-1)
        picked = -logits.gather(-1, ids)[batch.mask]
        out = agent.loss(batch)
    assert int(out.count) == 2 * int(batch.mask.sum())
    assert float(out.loss) == pytest.approx(float(picked.mean()), rel=1e-5)


def test_bins_can_be_drawn_and_cold_draws_are_the_greedy_ones() -> None:
    data = tiny_data("continuous")
    agent = build(LRAM, data).eval()
    with torch.no_grad():  # far from uniform, or the coldest draw would be a tie
        agent.head.weight.mul_(20)
    step = steps_of(whole_episodes(agent, data))[0]

    def draw(seed: int, **how) -> Tensor:
        agent.set_acting(**how)
        draws = RowDraws(4)
        for row in range(4):
            draws.restart(row, seed + row)
        with torch.no_grad():
            return agent.act(agent.initial_state(4), step, draws)[0]

    greedy = draw(0, decode="greedy")
    warm = draw(0, decode="sample", temperature=5.0)
    assert torch.equal(warm, draw(0))
    assert not torch.equal(warm, draw(9))
    assert not torch.equal(warm, greedy)
    assert torch.equal(draw(0, temperature=1e-4), greedy)
    with pytest.raises(SeqrlError, match="needs a generator"):
        agent.decode(torch.zeros(1, 2, 256), None)
    with pytest.raises(SeqrlError, match="decode is 'best'"):
        agent.set_acting(decode="best")


# --- one space of observations -----------------------------------------------------------------


def test_vectors_share_one_layer_as_if_padded_with_zeros() -> None:
    specs = [ObservationSpec("vector", (5,)), ObservationSpec("vector", (3,))]
    embed = SharedObservations(specs, 16, largest=7)
    x = torch.randn(2, 4, 3)
    padded = torch.cat([x, torch.zeros(2, 4, 4)], -1)
    assert torch.allclose(embed(x), embed.vector(padded), atol=1e-6)
    with pytest.raises(SeqrlError, match="5 entries, max_observation is 4") as e:
        SharedObservations(specs, 16, largest=4)
    assert e.value.hint == "--agent.max-observation 5"


def test_images_of_any_size_share_the_convolutions() -> None:
    shapes = [(64, 64, 3), (20, 33, 1), (7, 7, 3)]
    embed = SharedObservations([ObservationSpec("image", s) for s in shapes], 16)
    for shape in shapes:
        x = torch.rand(2, 3, *shape)
        padded = torch.zeros(2, 3, 64, 64, 3)
        padded[..., : shape[0], : shape[1], : shape[2]] = x
        assert embed(x).shape == (2, 3, 16)
        assert torch.allclose(embed(x), embed.image(padded), atol=1e-6)
    with pytest.raises(SeqrlError, match="64 pixels a side, image_size is 32"):
        SharedObservations([ObservationSpec("image", (64, 64, 3))], 16, image_size=32)
    with pytest.raises(SeqrlError, match="no task has observations"):
        embed(torch.rand(2, 3, 5))


def test_the_encoder_is_that_of_impala() -> None:
    encoder = ImpalaEncoder(64, 3, 512)
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16] * 5 + [32] * 10
    assert encoder.out.in_features == 2048
    size = sum(p.numel() for p in encoder.parameters())
    first, second, third = (3 * 16 + 4 * 256) * 9, (512 + 4 * 1024) * 9, 5 * 1024 * 9
    assert size == first + second + third + 5 * 16 + 10 * 32 + 2048 * 512 + 512


# --- several tasks -----------------------------------------------------------------------------


def test_each_task_has_its_own_units() -> None:
    data = four()
    agent = many(*data)
    for task in (0, 1):
        x = torch.from_numpy(np.asarray(data[task].observations))
        normal = agent.observe(x, task)
        assert float(normal.mean(0).abs().max()) < 1e-4
        assert torch.allclose(normal.std(0, correction=0), torch.ones(x.shape[1]), atol=1e-3)
    assert agent.scale_of(1) == data[1].stats.return_scale != agent.scale_of(0)
    own = many(*data, return_scales=(1.0, 20.0, 3.0, 4.0))
    assert [own.scale_of(i) for i in range(4)] == [1, 20, 3, 4]
    assert float(own.scaled(torch.tensor(40.0), 1)) == 2
    with pytest.raises(SeqrlError, match="2 entries for 4 tasks"):
        many(*data, return_scales=(1.0, 2.0))


def test_every_task_streams_as_it_was_trained_and_moves_every_parameter() -> None:
    data = four()
    agent = many(*data)
    for task in range(4):
        batch = batch_of(agent, data, task)
        assert int(batch.task[0]) == task
        agent.loss(batch).loss.backward()
        with torch.no_grad():
            gap = (agent.predict(batch) - stream(agent, steps_of(batch))[0])[batch.mask]
        assert float(gap.abs().max()) < 1e-4
    still = [n for n, p in agent.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_a_task_alone_predicts_the_same_with_and_without_the_others() -> None:
    data = four()
    agent = many(*data).eval()
    alone = many(data[1], max_observation=5).eval()
    mine = {k: v for k, v in agent.state_dict().items() if k in alone.state_dict()}
    alone.load_state_dict(mine)
    with torch.no_grad():
        batch = batch_of(agent, data, 1)
        want = agent.predict(batch)
        batch.task.zero_()
        assert torch.equal(alone.predict(batch), want)
        agent.only_task = 1  # as an exported copy is told
        assert torch.equal(agent.predict(batch), want)


def test_metrics_name_the_task() -> None:
    data = four()
    agent = many(*data)
    metrics = [agent.loss(batch_of(agent, data, i)).metrics for i in range(4)]
    assert "rare_action_error" not in metrics[0]
    assert [f"loss/{i}" in m for i, m in enumerate(metrics)] == [True] * 4
    assert set(metrics[1]) == {"action_error", "rare_action_error", "loss/1"}


@pytest.mark.slow
def test_two_tasks_of_different_kinds_are_learned_at_once() -> None:
    data = [tiny_data(k, episodes=4, longest=6) for k in ("continuous", "discrete")]
    agent = many(*data)
    sampler = Sampler(data, agent.config.window(), 32, seed=2)
    last: dict[int, float] = {}
    optimizer = torch.optim.AdamW(agent.parameters(), lr=3e-3)
    for u in range(400):
        out = agent.loss(sampler.batch(u))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        last[u % 2] = float(out.metrics["action_error"])
    assert last[0] < 0.05
    assert last[1] < 0.05


# --- parameters --------------------------------------------------------------------------------


def test_decay_is_on_matrices_and_convolutions_alone() -> None:
    data = four()
    agent = many(*data, mixer=("attention",), slstm_at=(), positions="token")
    for model in (agent, many(*data)):
        groups = model.parameter_groups()
        ids = [id(p) for g in groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())
        decayed = {id(p) for g in groups if "weight_decay" not in g for p in g["params"]}
        for name, p in model.named_parameters():
            plain = p.dim() < 2 or name == "token_table" or name.endswith(".bias")
            assert (id(p) in decayed) != plain, name


SIZES = {(512, 8): 2.5, (768, 12): 3.7, (1024, 16): 4.9, (1280, 20): 6.2}
"""Width and blocks to the released millions of parameters outside the backbone, "about"; they
include heads that are never trained (state, reward, return), which are left out here."""


@pytest.mark.parametrize(("width", "layers"), SIZES)
def test_the_parts_around_the_backbone_have_the_released_size(width: int, layers: int) -> None:
    box = ActionSpec("continuous", (4,), (-1.0,) * 4, (1.0,) * 4)
    choices = ActionSpec("discrete", (), nvec=(18,))
    tasks = [
        TaskSpec("vector", ObservationSpec("vector", (39,)), box),
        TaskSpec("image", ObservationSpec("image", (64, 64, 3)), choices),
    ]
    with torch.device("meta"):
        agent = seqrl.make_agent("lram", tasks, width=width, n_layer=layers, max_observation=204)
    around = sum(p.numel() for p in agent.parameters())
    around -= sum(p.numel() for p in agent.stack.parameters())
    assert around == 97_600 + width * (205 + 2049 + 2 + 2 + 2 + 2192) + 2192
    assert 0.9 < around / 1e6 / SIZES[width, layers] <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("context", 0), ("bins", 1), ("dropout", 1.0), ("max_observation", 0), ("n_head", 0)],
)
def test_wrong_values_are_named(field: str, value: object) -> None:
    with pytest.raises(SeqrlError, match=f"{field} is {value!r}"):
        LRAMConfig(**{field: value})


def test_slstm_at_belongs_to_xlstm() -> None:
    with pytest.raises(SeqrlError, match="slstm_at is for mixer xlstm"):
        build(LRAM, tiny_data("discrete"), mixer=("gru",))


def test_a_block_of_rows_acts_by_its_task() -> None:
    data = four()
    agent = many(*data).eval()
    step = steps_of(batch_of(agent, data, 1))[0]
    assert isinstance(step, Step)
    with torch.no_grad():
        action, _ = agent.act(agent.initial_state(4), step)
    assert action.shape == (4,)
    with pytest.raises(RuntimeError), torch.no_grad():
        # Rows of another task than their observations: noticed, not guessed.
        agent.act(agent.initial_state(4), dataclasses.replace(step, task=torch.zeros(4).long()))

"""Decision Mamba: causality of its blocks, refined labels, objectives, acting."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.decision_mamba import DecisionMamba, DecisionMambaConfig
from seqrl.checkpoint import PolicyMeta, load_agent, save_checkpoint
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.layers.heads import action_loss, masked_mean
from seqrl.layers.multi_grained import PERIOD, MultiGrainedBlock, MultiGrainedStack
from seqrl.layers.s6 import S6
from seqrl.layers.stack import MixerStack
from seqrl.spec import ActionSpec, Batch, ObservationSpec, TaskSpec, WindowSpec
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes

FUSIONS = ("dual", "shared_gate")


def stack(fusion: Any = "dual", width: int = 8, blocks: int = 3) -> MultiGrainedStack:
    """Blocks with all parameters off their start."""
    torch.manual_seed(0)
    made = MultiGrainedStack([MultiGrainedBlock(width, fusion) for _ in range(blocks)], width)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.1 * torch.randn_like(p)
    return made.double()


def influences(model: Any, tokens: int, width: int = 8) -> Tensor:
    """``[L, L]`` bool: does output p depend on token q?"""
    x = torch.randn(1, tokens, width, dtype=torch.float64, requires_grad=True)
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    weight = torch.randn(width, dtype=torch.float64)
    rows = []
    for p in range(tokens):
        (g,) = torch.autograd.grad((y[0, p] * weight).sum(), x, retain_graph=True)
        rows.append(g[0].abs().sum(-1) > 0)
    return torch.stack(rows)


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_state_and_action_tokens_see_nothing_later(steps: int, fusion: str) -> None:
    found = influences(stack(fusion), 3 * steps)
    for t in range(steps):
        state, action = 3 * t + 1, 3 * t + 2
        assert not bool(found[state, state + 1 :].any()), f"state token of step {t} looks ahead"
        assert not bool(found[action, action + 1 :].any()), f"action token of step {t} looks ahead"
        assert bool(found[state, : state + 1].all())
    # The return token of a step sees its state, which no head reads.
    assert bool(found[0, 1])


class AsReleased(MultiGrainedBlock):
    """The published alignment, which leaks: groups (R_t, s_t, a_t), tiled over the sequence."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        steps = x.shape[1] // PERIOD
        after = F.pad(h[:, :-1], (0, 0, 0, 1)).view(x.shape[0], steps, -1)
        fine, _ = self._fine(self.group(after), None, None)
        return x + self._joined(h, fine.repeat(1, PERIOD, 1), None, None)[0]


def test_the_published_alignment_would_be_caught() -> None:
    torch.manual_seed(0)
    found = influences(AsReleased(8).double(), 60)
    leaking = {t for t in range(20) if bool(found[3 * t + 1, 3 * t + 2 :].any())}
    assert leaking == {0, 1, 2, 3, 4, 5, 6, 10, 11, 12}


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_in_front_is_not_seen(fusion: str) -> None:
    model, steps = stack(fusion).float(), 10
    x = torch.randn(2, 3 * steps, 8)
    want = model(x)[0]
    for pad in range(steps):
        padded = torch.cat([torch.randn(2, 3 * pad, 8), x], 1)
        mask = torch.arange(padded.shape[1]).expand(2, -1) >= 3 * pad
        assert float((model(padded, mask)[0][:, 3 * pad :] - want).abs().max()) < 1e-5
    gap = float((model(padded)[0][:, 3 * pad :] - want).abs().max())
    assert gap > 0.1, "the mask does nothing"


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_step_at_a_time_equals_the_whole(fusion: str) -> None:
    model, steps = stack(fusion), 30
    x = torch.randn(2, 3 * steps, 8, dtype=torch.float64)
    whole = model(x)[0]
    state = model.initial_state(2)
    before = torch.cat([torch.full_like(x[:, :1], 9.0), x[:, :-1]], 1).view(2, steps, 3, 8)
    for t in range(steps):
        y, state = model.extend(before[:, t], state, torch.full((2,), t == 0))
        assert float((y[:, 1:] - whole[:, 3 * t : 3 * t + 2]).abs().max()) < 1e-10
        if t:
            assert float((y[:, 0] - whole[:, 3 * t - 1]).abs().max()) < 1e-10


def test_parameter_counts() -> None:
    def count(**fields: Any) -> int:
        task = TaskSpec(
            "t", ObservationSpec("vector", (11,)), ActionSpec("continuous", (3,), (-1.0,) * 3,
            (1.0,) * 3),
        )  # fmt: skip
        stats = dataclasses.replace(tiny_data("continuous").stats, obs_mean=(), obs_std=())
        with torch.device("meta"):
            agent = DecisionMamba(DecisionMambaConfig(**fields), [task], [stats])
        return sum(p.numel() for p in agent.net.stack.parameters())

    assert count() == 848_000
    assert count(width=768, n_layer=24) == 223_544_064
    assert count(variant="dmamba") == 746_368
    assert count(variant="dmamba", width=256) == 2_893_568


@pytest.mark.parametrize(
    "fields", [{}, {"fusion": "shared_gate"}, {"multi_grained": False}, {"variant": "dmamba"}]
)
def test_step_sizes_keep_mambas_start(fields: dict[str, Any]) -> None:
    agent = build(DecisionMamba, tiny_data("continuous"), **fields)
    mixers = [m for m in agent.modules() if isinstance(m, S6)]
    assert len(mixers) >= 2
    for m in mixers:
        sizes = F.softplus(m.dt_proj.bias.detach())
        assert 1e-4 <= float(sizes.min()) <= float(sizes.max()) <= 0.1001


def test_ota_init_is_the_releases() -> None:
    agent = build(DecisionMamba, tiny_data("continuous"), variant="dmamba", ota_init=True)
    (first, *_) = [m for m in agent.net.stack.modules() if isinstance(m, S6)]
    assert float(F.softplus(first.dt_proj.bias.detach())[0]) == pytest.approx(0.6931, abs=1e-4)
    assert 0.015 < float(first.in_proj.weight.detach().std()) < 0.025
    assert isinstance(agent.net.stack, MixerStack)


# --- labels refined by an earlier self ----------------------------------------------------------


def taught(kind: str = "continuous", **fields: Any) -> tuple[DecisionMamba, list[Batch]]:
    """An agent whose teacher is renewed every third update of twelve, and batches for it."""
    data = tiny_data(kind)
    agent = build(DecisionMamba, data, **{"teacher_every": 3, "total_updates": 12, **fields})
    sampler = Sampler([data], agent.config.window(), 6, seed=1)
    return agent.train(), [sampler.batch(u) for u in range(12)]


def value(x: Tensor) -> float:
    return float(x.detach())


def trained(agent: DecisionMamba, batches: list[Batch], start: int, stop: int) -> None:
    optimizer = torch.optim.SGD(agent.parameter_groups(), lr=0.02)
    for u in range(start, stop):
        optimizer.zero_grad()
        agent.loss(batches[u]).loss.backward()
        optimizer.step()
        agent.after_update(u + 1)


def test_weight_of_the_teacher_is_scheduled() -> None:
    c = DecisionMambaConfig()
    assert c.beta(0) == 0
    assert c.beta(1) == pytest.approx(0.85 / 40)
    assert c.beta(23) < 0.5 == c.beta(24) == c.beta(40)
    constant = dataclasses.replace(c, pser_schedule="constant", beta_max=0.3)
    assert [constant.beta(k) for k in (0, 1, 39)] == [0.0, 0.3, 0.3]
    assert dataclasses.replace(c, teacher="none").beta(30) == 0


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_before_the_first_snapshot_the_loss_is_plain(kind: str) -> None:
    agent, batches = taught(kind)
    plain, _ = taught(kind, teacher="none")
    with torch.no_grad():
        for p in agent.teacher.parameters():
            p.fill_(float("nan"))  # not even looked at
    assert value(agent.loss(batches[0]).loss) == value(plain.loss(batches[0]).loss)
    trained(plain, batches, 0, 2)
    agent, _ = taught(kind)
    trained(agent, batches, 0, 2)
    for a, b in zip(agent.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_snapshots_are_taken_at_the_end_of_iterations_only() -> None:
    agent, batches = taught()
    weights = [p.detach().clone() for p in agent.teacher.parameters()]
    for u in range(7):
        trained(agent, batches, u, u + 1)
        now = [p.detach().clone() for p in agent.teacher.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
        assert same == ((u + 1) % 3 != 0)
        assert agent.iteration == (u + 1) // 3
        if not same:
            own = agent.net.parameters()
            assert all(torch.equal(a, b) for a, b in zip(now, own, strict=True))
        weights = now


def test_running_average_teacher() -> None:
    agent, batches = taught(teacher="ema", teacher_decay=0.9)
    before = [p.detach().clone() for p in agent.teacher.parameters()]
    trained(agent, batches, 0, 1)
    pairs = zip(before, agent.net.parameters(), agent.teacher.parameters(), strict=True)
    for old, own, new in pairs:
        assert torch.allclose(new, 0.9 * old + 0.1 * own, atol=1e-7)


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_gradient_mixes_those_of_label_and_teacher(kind: str) -> None:
    """(1 - beta) grad loss(label) + beta grad loss(teacher); nothing reaches the teacher."""
    agent, batches = taught(kind, next_state_weight=0.0, next_return_weight=0.0)
    trained(agent, batches, 0, 3)
    batch, beta = batches[4], agent.config.beta(1)
    with torch.no_grad():  # the snapshot is the policy itself: move it away
        for p in agent.teacher.parameters():
            p += 0.05 * torch.randn_like(p)
        inputs = agent._inputs(batch)
        answer = agent.teacher.actions(agent.teacher(inputs, batch.timesteps))
    params = list(agent.net.parameters())

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, params))

    out = agent.loss(batch)
    assert float(out.metrics["beta"]) == beta > 0
    assert float(out.metrics["label_shift"]) > 0
    got = gradients(out.loss)
    prediction = agent.predict(batch)
    spec = agent.tasks[0].action
    to_label = gradients(action_loss(spec, prediction, batch.actions, batch.mask).loss)
    prediction = agent.predict(batch)
    if kind == "continuous":
        to_teacher = gradients(masked_mean((prediction - answer).square(), batch.mask)[0])
    else:
        losses = -(answer.softmax(-1) * prediction.log_softmax(-1)).sum(-1)
        to_teacher = gradients(masked_mean(losses, batch.mask)[0])
    for g, a, b in zip(got, to_label, to_teacher, strict=True):
        assert torch.allclose(g, (1 - beta) * a + beta * b, atol=1e-6)
    agent.loss(batch).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in agent.teacher.parameters())
    assert not {id(p) for p in agent.teacher.parameters()} & {
        id(p) for g in agent.parameter_groups() for p in g["params"]
    }


def test_evaluation_measures_against_the_data() -> None:
    agent, batches = taught()
    trained(agent, batches, 0, 3)
    training, evaluating = (agent.train(m).loss(batches[5]) for m in (True, False))
    assert not agent.train().teacher.training
    assert value(training.loss) != value(evaluating.loss)
    assert float(training.metrics["action_error"]) == float(evaluating.metrics["action_error"])


def test_a_resumed_agent_goes_on_bit_for_bit(tmp_path: Path) -> None:
    agent, batches = taught()
    trained(agent, batches, 0, 7)
    folder = save_checkpoint(tmp_path, agent, PolicyMeta.of(agent, step=7))
    again, _ = load_agent(folder)
    assert again.iteration == agent.iteration == 2
    for a in (agent, again):
        a.train()
    assert value(agent.loss(batches[8]).loss) == value(again.loss(batches[8]).loss)
    for a in (agent, again):
        trained(a, batches, 8, 10)
    assert value(agent.loss(batches[11]).loss) == value(again.loss(batches[11]).loss)


# --- the other objectives -----------------------------------------------------------------------


def test_next_state_and_return_are_those_one_step_later() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionMamba, data).train()
    batch = Sampler([data], agent.config.window(), 8, seed=4).batch(0)
    hidden = agent.net(agent._inputs(batch), batch.timesteps)
    out, total, n = agent.loss(batch), [0.0, 0.0], 0
    states = agent.next_state(hidden).detach()
    returns = agent.next_return(hidden).detach()
    for i in range(batch.size):
        for t in range(batch.mask.shape[1] - 1):
            if not bool(batch.mask[i, t + 1]):
                continue
            n += 1
            goal = agent.observe(batch.observations[i, t + 1])
            total[0] += float(F.smooth_l1_loss(states[i, 3 * t + 2], goal))
            goal = agent.scaled(batch.returns_to_go[i, t + 1])
            total[1] += float(F.smooth_l1_loss(returns[i, 3 * t + 2, 0], goal))
    assert 0 < n < batch.mask.numel() - batch.size
    assert float(out.metrics["next_obs_loss"]) == pytest.approx(total[0] / n, rel=1e-5)
    assert float(out.metrics["next_rtg_loss"]) == pytest.approx(total[1] / n, rel=1e-5)
    action = value(agent._action_loss(batch, agent._inputs(batch), agent.predict(batch)).loss)
    want = 0.9 * action + 0.05 * total[0] / n + 0.05 * total[1] / n
    assert value(out.loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("state", "rtg"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3)])
def test_objectives_are_switched_one_by_one(state: float, rtg: float) -> None:
    data = tiny_data("continuous")
    fields = {"next_state_weight": state, "next_return_weight": rtg}
    agent = build(DecisionMamba, data, **fields).train()
    batch = whole_episodes(agent, data)
    out = agent.loss(batch)
    assert ("next_obs_loss" in out.metrics) == (agent.next_state is not None) == bool(state)
    assert ("next_rtg_loss" in out.metrics) == (agent.next_return is not None) == bool(rtg)
    action = action_loss(agent.tasks[0].action, agent.predict(batch), batch.actions, batch.mask)
    want = (1 - state - rtg) * value(action.loss)
    want += state * float(out.metrics.get("next_obs_loss", 0))
    want += rtg * float(out.metrics.get("next_rtg_loss", 0))
    assert value(out.loss) == pytest.approx(want, rel=1e-5)


def test_images_have_no_next_state_objective() -> None:
    agent = build(DecisionMamba, tiny_data("image"))
    assert agent.next_state is None
    assert agent.next_return is not None


def test_windows_of_one_step_train() -> None:
    data = tiny_data("continuous")
    agent = build(DecisionMamba, data, context=1).train()
    out = agent.loss(Sampler([data], agent.config.window(), 4, seed=0).batch(0))
    assert bool(torch.isfinite(out.loss))


def test_decay_on_matrices_alone() -> None:
    agent = build(DecisionMamba, tiny_data("continuous"))
    decayed, rest = agent.parameter_groups()
    names = {id(p): n for n, p in agent.named_parameters()}
    assert rest["weight_decay"] == 0
    without = {names[id(p)] for p in rest["params"]}
    assert "net.stack.blocks.0.fine.A_log" in without
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(n.endswith("A_log") or dict(agent.named_parameters())[n].dim() < 2 for n in without)
    count = len(decayed["params"]) + len(rest["params"])
    assert count == sum(p.requires_grad for p in agent.parameters())


# --- acting -------------------------------------------------------------------------------------

VARIANTS: tuple[dict[str, Any], ...] = (
    {"fusion": "shared_gate", "embed": "mlp"},
    {"multi_grained": False},
    {"variant": "dmamba"},
    {"embed": "mlp", "action_tanh": False, "positions": "none"},
)


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS)
def test_stepping_predicts_what_the_window_predicts(fields: dict[str, Any]) -> None:
    data = tiny_data("continuous")
    agent = build(DecisionMamba, data, **fields).eval()
    batch = whole_episodes(agent, data)
    whole = agent.predict(batch)
    for rule in agent.acting_rules:
        agent.set_acting(rule=rule)
        gap = (stream(agent, steps_of(batch))[0] - whole)[batch.mask].abs().max()
        assert float(gap) < 1e-5, rule


@torch.no_grad()
def test_streaming_remembers_beyond_the_window() -> None:
    """Rule stream is the whole episode at once; recompute the last K steps of it."""
    data = tiny_data("continuous", longest=20)
    agent = build(DecisionMamba, data, context=5).eval()
    batch = Sampler([data], WindowSpec("episode_start", 18), 4, seed=0).batch(0)
    whole = agent.predict(batch)
    agent.set_acting(rule="stream")
    streamed, _ = stream(agent, steps_of(batch))
    assert float((streamed - whole)[batch.mask].abs().max()) < 1e-5
    agent.set_acting(rule="recompute")
    recomputed, _ = stream(agent, steps_of(batch))
    last = batch.map(lambda x: x[:, 13:18] if x.dim() > 1 else x)
    gap = (recomputed[:, 17] - agent.predict(last)[:, 4])[batch.mask[:, 17]]
    assert gap.numel()
    assert float(gap.abs().max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rule", DecisionMamba.acting_rules)
def test_rows_of_different_age_act_as_if_alone(rule: str) -> None:
    data = tiny_data("continuous", longest=20)
    agent = build(DecisionMamba, data, context=4).eval()
    agent.set_acting(rule=rule)
    steps = steps_of(Sampler([data], WindowSpec("episode_start", 14), 3, seed=2).batch(0))
    alone, _ = stream(agent, steps)
    state, late = agent.initial_state(3), 6
    for t in range(14):
        step = steps[t]
        if t >= late:  # row 1 begins again
            fields = {
                f.name: getattr(step, f.name)
                for f in dataclasses.fields(step)
                if isinstance(getattr(step, f.name), Tensor)
            }
            row = {f: getattr(steps[t - late], f) for f in fields}
            for f, value in fields.items():
                fields[f] = value.clone()
                fields[f][1] = row[f][1]
            step = dataclasses.replace(step, **fields)
        if t == late:
            state = agent.reset(state, torch.tensor([False, True, False]))
        y, state = agent.step(state, step)
        want = alone[:, t].clone()
        if t >= late:
            want[1] = alone[1, t - late]
        assert float((y - want).abs().max()) < 1e-5, (rule, t)


def test_long_episodes_need_a_long_table() -> None:
    data = tiny_data("continuous")
    with pytest.raises(SeqrlError, match="max_timestep"):
        build(DecisionMamba, data, max_timestep=3)
    build(DecisionMamba, data, max_timestep=3, positions="none")


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta_cap", 1.2), ("teacher_every", 0), ("next_state_weight", 0.99), ("dropout", 1.0)],
)
def test_wrong_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(SeqrlError, match=field):
        DecisionMambaConfig(**{field: value})


# --- learning -----------------------------------------------------------------------------------


def controller_data(episodes: int = 8, length: int = 12) -> Trajectories:
    """A linear controller on a stable linear system."""
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(2, 4)) * 0.3
    made = []
    for _ in range(episodes):
        s, obs, actions = rng.normal(size=4), [], []
        for _ in range(length):
            a = np.clip(gain @ s, -0.95, 0.95)
            obs.append(s)
            actions.append(a)
            s = 0.9 * s + 0.1 * np.resize(a, 4)
        made.append(
            {
                "observations": np.array([*obs, s], dtype=np.float32),
                "actions": np.array(actions, dtype=np.float32),
                "rewards": -np.square(obs).sum(1).astype(np.float32),
                "terminated": True,
            }
        )
    return Trajectories.from_episodes(made, name="controller")


def test_a_linear_controller_is_learned() -> None:
    data = controller_data()
    config = DecisionMambaConfig(
        width=32, n_layer=1, context=6, teacher_every=80, total_updates=240
    )
    torch.manual_seed(0)
    agent = DecisionMamba(config, [data.task], [data.stats]).train()
    sampler = Sampler([data], config.window(), 16, seed=0)
    optimizer = torch.optim.AdamW(agent.parameter_groups(), lr=3e-3, weight_decay=1e-5)
    for u in range(240):
        out = agent.loss(sampler.batch(u))
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.25)
        optimizer.step()
        agent.after_update(u + 1)
    with torch.no_grad():
        batch = whole_episodes(agent.eval(), data)
        error = masked_mean((agent.predict(batch) - batch.actions).square(), batch.mask)[0]
    assert float(error) < 1e-3
    assert agent.iteration == 3
    assert float(out.metrics["beta"]) > 0

"""Decision S4: published sizes, what it is fed, and one function acting and in training."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from seqrl.agents.decision_s4 import DecisionS4, DecisionS4Config, Pointwise, TanhRNN
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.layers.s4 import S4, S4D
from seqrl.optim import OptimConfig, build_optimizer
from seqrl.rollout import EpisodePlan, rollout
from seqrl.spec import Batch, Step, WindowSpec
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes
from seqrl.testing.mixer_battery import check_causality, check_pieces, check_reset, check_step
from tests.agents.test_dt import task

SMALL: dict[str, Any] = {"width": 16, "state": 16, "n_layer": 2, "embed_width": 16}


def agent(s: int = 4, a: int = 2, discrete: bool = False, **fields: Any) -> DecisionS4:
    spec, stats = task(s, a, discrete)
    torch.manual_seed(0)
    return DecisionS4(DecisionS4Config(**{**SMALL, **fields}), [spec], [stats])


def trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def windows(rows: int, length: int, s: int = 4, a: int = 2, dtype=torch.float32) -> Batch:
    """Random windows of several lengths, the first one full."""
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, length, *shape, generator=g, dtype=torch.float64).to(dtype)

    lengths = torch.tensor([max(1, length - i * length // rows) for i in range(rows)])
    mask = torch.arange(length) < lengths[:, None]
    none = torch.zeros(rows, length, dtype=torch.bool)
    return Batch(
        observations=draw(s), actions=draw(a).clamp(-1, 1), rewards=draw(),
        returns_to_go=draw(), timesteps=torch.arange(length).expand(rows, -1),
        terminations=none, truncations=none, mask=mask,
        task=torch.zeros(rows, dtype=torch.int64), rows=torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "a", "width", "count"),
    [(11, 3, 96, 104_736), (11, 3, 64, 56_256), (17, 6, 96, 106_176), (17, 6, 64, 57_600)],
)
def test_parameter_counts_of_the_published_layout(s: int, a: int, width: int, count: int) -> None:
    fields = {"width": width, "state": width, "ds4_strict": True, "train_kernel": False}
    spec, stats = task(s, a)
    made = DecisionS4(DecisionS4Config(**fields), [spec], [stats])
    assert trained(made) == count
    e, h, n, layers = 128, width, width, 3
    formula = e * (s + 1) + e * (a + 1) + 2 * e + 3 * e * h + h + h * h + h
    assert count == formula + layers * (h * n + h + h * h + h) + h * a


def test_default_learns_the_kernel_and_norms_besides() -> None:
    spec, stats = task(11, 3)
    made = DecisionS4(DecisionS4Config(), [spec], [stats])
    h, n, layers = 64, 64, 3
    assert trained(made) == 56_256 + layers * (h + n // 2 + n // 2 + n) + layers * 2 * h


# --- one function ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "length", "allowed"), [(torch.float32, 1000, 1e-4), (torch.float64, 300, 1e-9)]
)
@torch.no_grad()
def test_stepping_is_the_convolution(dtype: torch.dtype, length: int, allowed: float) -> None:
    made = agent().to(dtype).eval()
    batch = windows(3, length, dtype=dtype)
    whole = made.predict(batch)
    stepped, _ = stream(made, steps_of(batch))
    assert relative(stepped[batch.mask], whole[batch.mask]) < allowed
    cut = dataclasses.replace(batch, **{
        f.name: getattr(batch, f.name)[:, : length // 3] for f in dataclasses.fields(batch)
        if isinstance(getattr(batch, f.name), Tensor) and getattr(batch, f.name).dim() > 1
    })  # fmt: skip
    assert relative(made.predict(cut), whole[:, : length // 3]) < allowed


@pytest.mark.parametrize(
    "fields",
    [{"kernel": "dplr"}, {"core": "rnn"}, {"core": "lin"}, {"core": "random"}, {"init": "lin"},
     {"disc": "bilinear"}, {"ds4_strict": True}, {"embed_tanh": False}, {"n_ssm": 4},
     {"kernel_dtype": "float64"}, {"norm": False}, {"residual": False}],
    ids=lambda f: "-".join(map(str, f.items())),
)  # fmt: skip
@torch.no_grad()
def test_every_variant_steps_as_it_learns(fields: dict[str, Any]) -> None:
    made = agent(**fields).eval()
    batch = windows(3, 40)
    gap = relative(stream(made, steps_of(batch))[0][batch.mask], made.predict(batch)[batch.mask])
    assert gap < 2e-5


@pytest.mark.parametrize("check", [check_step, check_pieces, check_reset, check_causality])
def test_the_plain_rnn_is_a_mixer(check) -> None:
    check(TanhRNN.for_stack)


def test_cores_are_what_they_are_called() -> None:
    def core(**fields: Any) -> Any:
        return agent(**fields).blocks[0].core

    assert type(core()) is S4D
    assert type(core(kernel="dplr")) is S4
    assert type(core(core="rnn")) is TanhRNN
    assert type(core(core="lin")) is Pointwise
    frequencies = [core(core=c).frequency for c in ("s4", "random")]
    assert not torch.equal(*frequencies)
    assert len(core().log_decay) == 1
    assert len(core(init="lin").log_decay) == 16


def test_no_prediction_looks_at_its_own_action_or_later() -> None:
    made = agent().double()
    batch = windows(1, 30, dtype=torch.float64)
    fields = ("observations", "actions", "returns_to_go")
    for name in fields:
        getattr(batch, name).requires_grad_()
    inputs = [getattr(batch, name) for name in fields]
    obs, action, rtg = torch.autograd.grad(made.predict(batch)[:, 12].sum(), inputs)
    assert action[:, 12:].abs().max() <= 1e-12 * action.abs().max()
    assert obs[:, 13:].abs().max() <= 1e-12 * obs.abs().max()
    assert rtg[:, 13:].abs().max() <= 1e-12 * rtg.abs().max()
    for grad, last in ((action, 11), (obs, 12), (rtg, 12)):
        assert grad[0, : last + 1].reshape(last + 1, -1).abs().sum(1).min() > 0


def test_staggered_episodes_side_by_side_go_as_they_go_alone() -> None:
    spec, stats = task(4, 2, discrete=True)
    torch.manual_seed(0)
    made = DecisionS4(DecisionS4Config(**SMALL), [spec], [stats]).eval()
    plans = [EpisodePlan(i, 50 + i, 100.0) for i in range(7)]

    def run(num_envs: int) -> list[list[int]]:
        make = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
        records = rollout(made, make, plans, num_envs=num_envs, record=True)
        return [r.steps.actions.tolist() for r in records if r.steps is not None]

    alone = run(1)
    assert len({len(a) for a in alone}) > 2
    assert run(3) == alone
    assert run(7) == alone


# --- what it is fed ----------------------------------------------------------------------------


def four_steps() -> Trajectories:
    return Trajectories.from_episodes(
        [
            {
                "observations": np.arange(5, dtype=np.float32)[:, None] * 10,
                "actions": np.array([[0.1], [0.2], [0.3], [0.4]], np.float32),
                "rewards": np.array([1, 2, 3, 4], np.float32),
                "terminated": True,
            }
        ]
    )


def test_each_step_gets_its_state_the_action_before_and_its_own_return() -> None:
    data = four_steps()
    config = DecisionS4Config(**SMALL, normalize_observations=False, return_scale=2.0)
    made = DecisionS4(config, [data.task], [data.stats]).eval()
    fed: list[tuple[Tensor, ...]] = []
    made._inputs = lambda *given: (fed.append(given), torch.zeros(*given[1].shape, 16))[1]  # type: ignore[method-assign]
    batch = Sampler([data], WindowSpec("episode"), 1).batch(0)
    made.predict(batch)
    obs, rtg, prev, has_prev = fed[0]
    assert obs[0, :, 0].tolist() == [0, 10, 20, 30]
    assert rtg[0].tolist() == [10, 9, 7, 4]
    assert has_prev[0].tolist() == [False, True, True, True]
    assert prev[0, 1:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    fed.clear()
    stream(made, steps_of(batch))
    for t, (obs_t, rtg_t, prev_t, has_t) in enumerate(fed):
        assert float(obs_t) == 10 * t
        assert float(rtg_t) == [10, 9, 7, 4][t]
        assert bool(has_t) == (t > 0)
        assert float(prev_t) == pytest.approx([0, 0.1, 0.2, 0.3][t])


@torch.no_grad()
def test_inputs_are_the_three_embeddings_joined() -> None:
    made = agent(s=3, a=2, embed_tanh=True)
    obs, rtg, prev = torch.randn(3), torch.tensor(0.7), torch.randn(2)
    parts = [made.embed_obs(obs), made.embed_action(prev), made.embed_rtg(rtg[None])]
    joined = torch.cat([torch.tanh(p) for p in parts])
    wanted = made.before(torch.nn.functional.gelu(made.join(joined)))
    assert torch.equal(made._inputs(obs, rtg, prev, torch.tensor(True)), wanted)
    none = made._inputs(obs, rtg, prev, torch.tensor(False))
    assert torch.equal(none, made._inputs(obs, rtg, torch.zeros(2), torch.tensor(True)))
    made = agent(s=3, a=5, discrete=True)
    first = made._inputs(obs, rtg, torch.tensor(0), torch.tensor(False))
    assert torch.equal(first, made._inputs(obs, rtg, torch.tensor(4), torch.tensor(False)))
    assert not torch.equal(first, made._inputs(obs, rtg, torch.tensor(0), torch.tensor(True)))


def test_windows_are_whole_episodes_by_default() -> None:
    assert DecisionS4Config().window() == WindowSpec("episode", None)
    assert DecisionS4Config(context=50).window() == WindowSpec("episode", 50)
    crops = DecisionS4Config(context=20, windows="any_start")
    assert crops.window() == WindowSpec("any_start", 20)
    data = tiny_data("continuous")
    batch = Sampler([data], DecisionS4Config().window(), 64).batch(0)
    assert batch.mask.shape[1] == batch.mask.sum(1).max()
    assert (batch.timesteps[:, 0] == 0).all()
    with pytest.raises(SeqrlError, match="windows is 'any_start'"):
        DecisionS4Config(windows="any_start")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"state": 15}, "state is 15"), ({"context": 0}, "context is 0"),
     ({"dt_min": 0.5}, "dt_min is 0.5"), ({"n_ssm": 5}, "n_ssm is 5"),
     ({"dropout": 1.0}, "dropout is 1.0"), ({"init": "hippo"}, "init is 'hippo'")],
)  # fmt: skip
def test_wrong_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        DecisionS4Config(**fields)


def test_actions_stay_in_their_box() -> None:
    made = agent().eval()
    with torch.no_grad():
        made.head.weight.mul_(1e3)
        batch = windows(4, 1)
        step = steps_of(batch)[0]
        raw, _ = made.step(made.initial_state(4), step)
        action, _ = made.act(made.initial_state(4), step)
    assert raw.abs().max() > 1
    assert action.abs().max() == 1
    assert torch.equal(action, raw.clamp(-1, 1))


# --- learning ----------------------------------------------------------------------------------


def test_groups_hold_every_parameter_once_and_decay_only_inner_weights() -> None:
    made = agent()
    groups = made.parameter_groups()
    names = {id(p): n for n, p in made.named_parameters()}
    seen = [names[id(p)] for g in groups for p in g["params"]]
    assert sorted(seen) == sorted(names.values())
    decayed = {names[id(p)] for g in groups if g.get("weight_decay") is None for p in g["params"]}
    assert decayed == {
        "join.weight", "before.weight", "head.weight", "blocks.0.linear.weight",
        "blocks.1.linear.weight",
    }  # fmt: skip
    capped = {names[id(p)].rpartition(".")[2] for g in groups if "lr_max" in g for p in g["params"]}
    assert capped == {"log_dt", "log_decay", "frequency", "B"}
    rnn = agent(core="rnn")
    names = {id(p): n for n, p in rnn.named_parameters()}
    seen = [names[id(p)] for g in rnn.parameter_groups() for p in g["params"]]
    assert sorted(seen) == sorted(names.values())


@pytest.mark.parametrize("train_kernel", [True, False])
def test_only_a_trained_kernel_moves(train_kernel: bool) -> None:
    data = tiny_data("continuous")
    made = build(DecisionS4, data, train_kernel=train_kernel)
    before = copy.deepcopy(made.state_dict())
    optimizer = build_optimizer(made.parameter_groups(), OptimConfig(lr=1e-2), torch.device("cpu"))
    sampler = Sampler([data], made.config.window(), 8)
    for u in range(10):
        optimizer.zero_grad()
        made.loss(sampler.batch(u)).loss.backward()
        optimizer.step()
    moved = {n for n, v in made.state_dict().items() if not torch.equal(v, before[n])}
    kernel = {n for n in before if n.rpartition(".")[2] in S4D.kernel_names}
    assert kernel
    assert kernel <= moved if train_kernel else not kernel & moved
    assert {n for n in before if n.endswith((".C", ".D"))} <= moved
    for block in made.blocks:
        assert (block.core.continuous()[1].real < 0).all()


@torch.no_grad()
def test_weights_that_change_are_acted_with_at_once() -> None:
    data = tiny_data("continuous")
    made = build(DecisionS4, data).eval()
    batch = whole_episodes(made, data)
    stream(made, steps_of(batch))
    with torch.enable_grad():
        optimizer = build_optimizer(
            made.parameter_groups(), OptimConfig(lr=1e-1), torch.device("cpu")
        )
        made.loss(batch).loss.backward()
        optimizer.step()
    gap = (stream(made, steps_of(batch))[0] - made.predict(batch))[batch.mask].abs().max()
    assert float(gap) < 1e-4


def test_noise_is_for_training_alone() -> None:
    made, batch = agent(train_noise=0.5), windows(2, 6)
    made.train()
    assert not torch.equal(made.predict(batch), made.predict(batch))
    made.eval()
    assert torch.equal(made.predict(batch), made.predict(batch))


def remembering(core: str, seed: int, updates: int = 120) -> float:
    """Share of right answers in copying the first bit to the end of 200 steps."""
    length, rows = 200, 32
    spec, stats = task(1, 2, discrete=True)
    torch.manual_seed(seed)
    config = DecisionS4Config(
        width=32, state=64, n_layer=2, embed_width=32, core=core, normalize_observations=False
    )
    made = DecisionS4(config, [spec], [stats])
    optim = OptimConfig(lr=3e-3, weight_decay=0.0)
    optimizer = build_optimizer(made.parameter_groups(), optim, torch.device("cpu"))

    def batch(rows: int) -> Batch:
        bit = torch.randint(0, 2, (rows,))
        b = windows(rows, length, 1, 1)
        obs = torch.zeros(rows, length, 1)
        obs[:, 0, 0] = bit * 2.0 - 1
        mask = torch.zeros(rows, length, dtype=torch.bool)
        mask[:, -1] = True
        actions = torch.zeros(rows, length, dtype=torch.int64)
        actions[:, -1] = bit
        none = torch.zeros(rows, length)
        return dataclasses.replace(
            b, observations=obs, actions=actions, returns_to_go=none, mask=mask
        )

    for _ in range(updates):
        optimizer.zero_grad()
        made.loss(batch(rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    made.eval()
    with torch.no_grad():
        return 1 - float(made.loss(batch(256)).metrics["action_error"])


@pytest.mark.slow
def test_a_bit_is_remembered_for_two_hundred_steps() -> None:
    assert remembering("s4", 0) > 0.99
    # Nothing carried over time: no better than guessing.
    assert remembering("lin", 0) < 0.75


def test_row_draws_are_not_needed_to_act() -> None:
    made = agent(discrete=True, a=3).eval()
    n = 2
    none = torch.zeros(n)
    step = Step(
        torch.randn(n, 4), torch.zeros(n, dtype=torch.int64), none, none,
        torch.zeros(n, dtype=torch.int64), none == 0, none == 0, none > 0,
    )  # fmt: skip
    with torch.inference_mode():
        action, _ = made.act(made.initial_state(n), step)
    assert action.dtype == torch.int64
    with pytest.raises(SeqrlError, match="continuous actions"):
        made.check_actor()

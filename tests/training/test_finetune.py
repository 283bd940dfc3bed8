"""Fine-tuning: episodes weighted by return, transitions with memory, and a run around them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reach import LENGTH, offline_run
from torch import Tensor

from seqrl.agents.agent import Agent
from seqrl.agents.decision_s4 import DecisionS4, DecisionS4Config
from seqrl.checkpoint import find_checkpoint, load_agent
from seqrl.datasets.trajectories import Trajectories
from seqrl.draws import RowDraws
from seqrl.errors import RunFailed, RunInterrupted, SeqrlError
from seqrl.finetune import ActorCriticConfig, FinetuneConfig, WeightedBCConfig
from seqrl.finetune import run as ft
from seqrl.finetune.actor_critic import ActorCriticLearner
from seqrl.finetune.collecting import Collector, Exploring, Round, replayed, step_of
from seqrl.finetune.config import Schedule
from seqrl.finetune.loop import OnlineTrainer
from seqrl.finetune.replay import Replay
from seqrl.finetune.weighted import EpisodeSampler, WeightedPool, episode_weights
from seqrl.layers.critics import MLPCritic, build_critic
from seqrl.layers.s4 import S4D
from seqrl.layers.state import map_states
from seqrl.optim import OptimConfig
from seqrl.spec import ActionSpec, DataStats, ObservationSpec, TaskSpec, WindowSpec
from seqrl.testing.battery import tiny_data

SMALL: dict[str, Any] = {"width": 8, "state": 8, "n_layer": 2, "embed_width": 8}
TIMES = ("it_per_s", "data_share", "seconds")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reach_task(env: str = "ft/Reach-v0", discrete: bool = False) -> tuple[TaskSpec, DataStats]:
    action = (
        ActionSpec("discrete", (), nvec=(3,))
        if discrete
        else ActionSpec("continuous", (1,), (-1.0,), (1.0,))
    )
    stats = DataStats(
        obs_mean=(0.0,) * 3, obs_std=(1.0,) * 3, return_scale=10.0,
        return_quantiles={"max": 7.0}, reward_min=-2, reward_max=1, rtg_min=0, rtg_max=8,
        action_low=(-1.0,), action_high=(1.0,), action_counts=(1, 1, 1) if discrete else (),
        episodes=9, steps=60, max_episode_length=LENGTH,
    )  # fmt: skip
    return TaskSpec("reach", ObservationSpec("vector", (3,)), action, env_id=env), stats


def actor(discrete: bool = False, **fields: Any) -> DecisionS4:
    spec, stats = reach_task("ft/Pick-v0" if discrete else "ft/Reach-v0", discrete)
    torch.manual_seed(0)
    return DecisionS4(DecisionS4Config(**{**SMALL, **fields}), [spec], [stats])


def collector(folder: Path, agent: Agent, remember: bool = True, **options: Any) -> Collector:
    return Collector(agent, folder, 0, remember=remember, **options)


def rewarded(*returns: float, length: int = 3) -> Trajectories:
    """Episodes with these returns; action of every step the episode's number."""
    return Trajectories.from_episodes(
        [
            {
                "observations": np.full((n + 1, 2), i, np.float32),
                "actions": np.full((n, 1), i / 10, np.float32),
                "rewards": np.full(n, g / n, np.float32),
                "terminated": True,
            }
            for i, g in enumerate(returns)
            for n in [length + i]
        ]
    )


def a_round(data: Trajectories, number: int = 0) -> Round:
    return Round(number, data, None, {})


# --- weights -----------------------------------------------------------------------------------


def test_weights_are_the_clipped_exponential() -> None:
    returns = np.array([0.0, 50, 100, 200, 330, 340, 1e9, -1e9])
    wanted = np.clip(np.exp(np.maximum(np.minimum(returns / 100 - 1, 50), -50)), 0.01, 10)
    assert episode_weights(returns, 100.0, WeightedBCConfig()) == pytest.approx(wanted)
    assert wanted[[0, 2, 6, 7]] == pytest.approx([np.exp(-1), 1, 10, 0.01])
    sharp = WeightedBCConfig(temperature=0.1, weight_max=5.0)
    assert episode_weights(np.array([90.0, 110, 200]), 100.0, sharp) == pytest.approx(
        [np.exp(-1), np.exp(1), 5.0]
    )


def test_better_episodes_weigh_more_whatever_the_sign() -> None:
    for reference in (-200.0, 0.0, 200.0):
        found = episode_weights(np.linspace(-300, 300, 20), reference, WeightedBCConfig())
        assert (np.diff(found) >= 0).all()
        at = episode_weights(np.array([reference]), reference, WeightedBCConfig())
        assert at == pytest.approx([1])


def test_episodes_are_drawn_by_weight_and_length() -> None:
    data = rewarded(1, 2, 3, 4)  # lengths 3, 4, 5, 6
    chances = np.array([1.0, 0.0, 3.0, 4.0])
    for kind, length in (("episode", None), ("episode_start", 2), ("any_start", 2), ("any_end", 3)):
        sampler = EpisodeSampler(data, WindowSpec(kind, length), chances, 2000, seed=0)  # type: ignore[arg-type]
        batch = sampler.batch(0)
        episode = batch.observations[:, 0, 0].long()
        share = torch.bincount(episode, minlength=4) / 2000
        assert share.numpy() == pytest.approx(chances / 8, abs=0.035), kind
        # Every window lies inside its episode.
        inside = batch.observations[..., 0] == episode[:, None]
        assert inside[batch.mask].all()
        if kind == "any_start":
            starts = batch.timesteps[episode == 3, 0]
            assert torch.bincount(starts, minlength=6).min() > 100
        assert torch.equal(sampler.batch(5).rows, sampler.batch(5).rows)
        assert not torch.equal(sampler.batch(5).rows, sampler.batch(6).rows)


def test_the_pool_draws_in_proportion_to_a_power_of_the_length() -> None:
    data = rewarded(2, 2, 2)
    for power in (0.0, 1.0, 2.0):
        pool = WeightedPool(WeightedBCConfig(length_power=power))
        pool.add(a_round(data))
        sampler = pool.sampler(WindowSpec("episode"), 8, 0)
        chances = np.diff(sampler.cumulative, prepend=0)
        assert chances == pytest.approx(data.lengths**power / (data.lengths**power).sum())


def test_the_pool_keeps_recent_or_best_episodes_and_the_best_reference() -> None:
    offline = rewarded(50, 1)
    for by, wanted in (("recent", [9, 2, 3]), ("best", [50, 10, 9])):
        pool = WeightedPool(WeightedBCConfig(keep=3, keep_by=by), offline)  # type: ignore[arg-type]
        pool.add(a_round(rewarded(10, 9)))
        level = 9.5 + 0.4 * 0.5
        assert pool.reference == pytest.approx(level)
        pool.add(a_round(rewarded(2, 3)))
        assert pool.reference == pytest.approx(level)
        assert pool.data is not None
        assert sorted(pool.data.returns) == pytest.approx(sorted(wanted))
        assert pool.data.columns_steps == pool.data.num_steps


def test_windows_of_several_episodes_are_refused() -> None:
    with pytest.raises(SeqrlError, match="there are no episodes"):
        WeightedPool(WeightedBCConfig()).sampler(WindowSpec("episode"), 8, 0)
    window = WindowSpec("episode")
    object.__setattr__(window, "kind", "segments")
    with pytest.raises(SeqrlError, match="weighted_bc draws windows of single episodes"):
        EpisodeSampler(rewarded(1), window, np.ones(1), 2, 0)


# --- settings ----------------------------------------------------------------------------------


def test_noise_schedule_at_its_breakpoints() -> None:
    fork = Schedule.parse(["18k:0.75", "60k:0.3", "90k:0.005"], 0)
    values = [fork(u) for u in (0, 18_000, 39_000, 60_000, 75_000, 90_000, 10**6)]
    assert values == pytest.approx([0.75, 0.75, 0.525, 0.3, 0.1525, 0.005, 0.005])
    ours = Schedule.parse(["0:0.2", "100%:0.05"], 1000)
    assert [ours(u) for u in (0, 500, 1000)] == pytest.approx([0.2, 0.125, 0.05])
    assert Schedule.parse(["0:0.3"], 10)(7) == 0.3


@pytest.mark.parametrize("words", [(), ("0.2",), ("x:1",), ("0:y",), ("5:1", "2:1"), ("0:-1",)])
def test_noise_that_is_not_understood(words: tuple[str, ...]) -> None:
    with pytest.raises(SeqrlError, match="noise"):
        FinetuneConfig(noise=words)


def test_settings_survive_json_and_wrong_ones_are_named() -> None:
    config = FinetuneConfig(
        method="actor_critic", steps=7, ac=ActorCriticConfig(tau=0.0), env_kwargs={"early": False}
    )
    assert FinetuneConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.number("collect_episodes") == 2
    assert FinetuneConfig().number("first") == 20
    assert FinetuneConfig(steps=50).every("eval") == 5
    for wrong, message in (
        ({"method": "ppo"}, "method is 'ppo'"),
        ({"steps": 0}, "steps is 0"),
        ({"bc": {"temperature": 0}}, "bc.temperature is 0"),
        ({"ac": {"gamma": 1.0}}, "ac.gamma is 1.0"),
        ({"ac": {"gama": 0.9}}, "has no setting 'gama'"),
    ):
        with pytest.raises(SeqrlError, match=message):
            FinetuneConfig.from_json(wrong)


# --- collecting --------------------------------------------------------------------------------


def test_noise_is_a_rows_own_and_stays_in_the_box() -> None:
    agent = actor().eval()
    step = step_of(
        {
            "observation": torch.zeros(3, 3), "prev_action": torch.zeros(3, 1),
            "prev_reward": torch.zeros(3), "rtg": torch.zeros(3),
            "timestep": torch.zeros(3, dtype=torch.int64),
        }
    )  # fmt: skip

    def noisy(sigma: float, seeds: tuple[int, ...], steps: int = 1) -> list[Tensor]:
        draws, out = RowDraws(3), []
        for row, seed in enumerate(seeds):
            draws.restart(row, seed)
        with torch.no_grad():
            for _ in range(steps):
                policy = Exploring(agent, sigma)
                out.append(policy.act(agent.initial_state(3), step, draws)[0])
        return out

    clean = noisy(0.0, (1, 2, 3))[0]
    one, two = noisy(0.3, (1, 2, 3))[0], noisy(0.3, (9, 2, 4))[0]
    assert one[1] == two[1]
    assert one[0] != two[0]
    assert (one != clean).all()
    assert torch.stack(noisy(50.0, (1, 2, 3))).abs().max() <= 1
    many = torch.cat([a - clean for a in noisy(0.1, (1, 2, 3), 700)])
    assert float(many.std()) == pytest.approx(0.1, abs=0.006)
    assert float(many.mean()) == pytest.approx(0.0, abs=0.01)


def test_choices_are_random_as_often_as_asked() -> None:
    agent = actor(discrete=True).eval()
    policy = Exploring(agent, 0.3)
    draws = RowDraws(600)
    for row in range(600):
        draws.restart(row, row)
    plain = torch.ones(600, dtype=torch.int64)
    moved = policy._disturbed(plain, draws)
    assert moved.dtype == torch.int64
    counts = torch.bincount(moved, minlength=3) / 600
    assert counts.tolist() == pytest.approx([0.1, 0.8, 0.1], abs=0.05)


def test_a_round_is_a_function_of_weights_seed_and_number(tmp_path: Path) -> None:
    agent = actor().train()
    rounds = [
        collector(tmp_path, agent, remember, jitter=0.15).collect(1, 9, 6.0, 0.2)
        for remember in (True, True, False)
    ]
    assert agent.training
    one, two, three = (r.data for r in rounds)
    assert np.array_equal(one.actions, two.actions)
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(one.episode_starts, three.episode_starts)
    assert one.actions == pytest.approx(three.actions, abs=1e-5)
    other = collector(tmp_path, agent, False).collect(2, 9, 6.0, 0.2).data
    assert not np.array_equal(other.observations[:2], three.observations[:2])
    again = collector(tmp_path, agent, False).stored(1)
    assert again is not None
    assert again.data.fingerprint == three.fingerprint
    assert again.data.task == agent.tasks[0]
    assert collector(tmp_path, agent).stored(7) is None


def test_targets_differ_within_their_share(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[float] = []
    from seqrl.finetune import collecting

    real = collecting.rollout

    def spy(policy: Any, pool: Any, plans: Any, **options: Any) -> Any:
        seen.extend(p.target for p in plans)
        return real(policy, pool, plans, **options)

    monkeypatch.setattr(collecting, "rollout", spy)
    agent = actor()
    collector(tmp_path, agent, False, jitter=0.15).collect(0, 40, -200.0, 0.0)
    assert len(set(seen)) == 40
    assert all(-230 <= t <= -170 for t in seen)
    assert np.std(seen) == pytest.approx(60 / np.sqrt(12), rel=0.25)


def recorded(folder: Path, episodes: int = 8) -> tuple[DecisionS4, Round, list[Any]]:
    """A round, and what the agent was really asked at each step of each episode."""
    agent = actor().eval()
    calls: list[Any] = []
    real = agent.act

    def spy(state: Any, step: Any, generator: Any = None) -> Any:
        calls.append((map_states(lambda t: t.clone(), state), step))
        return real(state, step, generator)

    agent.act = spy  # type: ignore[method-assign]
    found = collector(folder, agent).collect(0, episodes, 6.0, 1.5)
    agent.act = real  # type: ignore[method-assign]
    return agent, found, calls


def test_memory_returns_the_states_that_were_acted_from(tmp_path: Path) -> None:
    _, found, calls = recorded(tmp_path)
    memory = Replay(200, 0, torch.device("cpu"))
    memory.add(found)
    assert len(memory) == found.data.num_steps
    drawn = memory.draw(0, 300)
    pairs = set()
    for i in range(300):
        t = int(drawn.step.timestep[i])
        state, step = calls[t]
        rows = [r for r in range(8) if torch.equal(step.observation[r], drawn.step.observation[i])]
        assert len(rows) == 1
        row = rows[0]
        pairs.add((row, t))
        mine: list[bool] = []
        map_states(lambda a, b, k=i, r=row, m=mine: (m.append(torch.equal(a[k], b[r])), a)[1],
                   drawn.state, state)  # fmt: skip
        assert mine
        assert all(mine), "not the state it acted from"
        assert torch.equal(drawn.step.prev_action[i], step.prev_action[row])
        assert torch.equal(drawn.step.first[i], step.first[row])
        if t + 1 < len(calls) and not bool(drawn.terminated[i]) and t + 1 < LENGTH:
            after, following = calls[t + 1]
            assert torch.equal(drawn.next_step.observation[i], following.observation[row])
            assert torch.equal(drawn.action[i], following.prev_action[row])
            assert torch.equal(drawn.next_state[0][0][i], after[0][0][row])
    assert len(pairs) == found.data.num_steps, "some transitions are never drawn"


def test_returns_are_relabelled_with_what_was_earned(tmp_path: Path) -> None:
    agent, found, _ = recorded(tmp_path)
    memory = Replay(200, 0, torch.device("cpu"))
    memory.add(found)
    d = memory.draw(0, 400)
    lost = agent.scaled(d.step.rtg) - agent.scaled(d.next_step.rtg)
    assert lost.numpy() == pytest.approx((d.reward / 10).numpy(), abs=1e-6)
    ends = d.terminated | (d.next_step.timestep == LENGTH)
    assert ends.any()
    assert (d.next_step.rtg[ends] == 0).all()
    assert found.data.terminations.any()
    assert (~found.data.terminations[found.data.episode_starts[1:] - 1]).any()
    reached = d.next_step.observation[:, 0].abs() < 0.1
    assert torch.equal(d.terminated, reached)  # a time limit is no end


def test_the_memory_forgets_the_oldest(tmp_path: Path) -> None:
    agent = actor().eval()
    rounds = [collector(tmp_path, agent).collect(n, 4, 6.0, 0.3) for n in range(5)]
    memory = Replay(60, 0, torch.device("cpu"))
    for found in rounds:
        memory.add(found)
        d = memory.draw(1, 200)
        assert (d.next_step.timestep == d.step.timestep + 1).all()
        assert (d.next_step.prev_action == d.action).all()
    newest = {float(o) for o in rounds[-1].data.observations[:, 2]}
    oldest = {float(o) for o in rounds[0].data.observations[:, 2]}
    seen = {float(o) for o in memory.draw(2, 5000).step.observation[:, 2]}
    assert newest <= seen
    assert not oldest & seen
    small = Replay(4, 0, torch.device("cpu"))
    small.add(rounds[0])
    assert len(small) == 3


def test_states_computed_anew_are_those_of_acting(tmp_path: Path) -> None:
    agent, found, _ = recorded(tmp_path)
    # A target of its own was asked for; what is stored is what was earned.
    stored = collector(tmp_path, agent).stored(0)
    assert stored is not None
    assert stored.states is not None
    anew = replayed(agent, found.data, 2)
    length = int(found.data.lengths[2])
    assert anew[0][0].shape == (length + 1, 8, 4)
    assert (anew[0][0][0] == 0).all()
    assert torch.equal(anew[1][1], stored.states[2][1][1])


# --- actor and critics -------------------------------------------------------------------------


def learner(agent: DecisionS4, **config: Any) -> ActorCriticLearner:
    optim = OptimConfig(lr=1e-3, weight_decay=1e-3, grad_clip=0.5)
    given = {"warmup": 3, "actor_lr": 1e-4, "actor_every": 1, **config}
    made = ActorCriticConfig(**given)
    return ActorCriticLearner(agent, made, optim, steps=100, seed=0, device=torch.device("cpu"))


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [k for k in a if torch.equal(a[k], b[k])]


@pytest.fixture
def memory(tmp_path: Path) -> Replay:
    made = Replay(200, 0, torch.device("cpu"))
    made.add(recorded(tmp_path)[1])
    return made


def test_warming_up_moves_the_critics_alone_and_then_the_kernel_stays(memory: Replay) -> None:
    agent = actor(dropout=0.5).train()
    made = learner(agent)
    offline, critics = tensors_of(agent), tensors_of(made.critics)
    for u in range(3):
        found = made.update(u, [memory.draw(u, 16)])
        assert "actor_value" not in found
    assert same(offline, agent.state_dict()) == list(offline)
    assert same(offline, made.target_actor.state_dict()) == list(offline)
    assert not same(critics, made.critics.state_dict())
    before = tensors_of(made.critics)
    found = made.update(3, [memory.draw(3, 16)])
    assert "actor_value" in found
    assert agent.training
    for u in range(4, 12):
        made.update(u, [memory.draw(u, 16)])
    moved = set(offline) - set(same(offline, agent.state_dict()))
    kernel = {k for k in offline if k.rpartition(".")[2] in S4D.kernel_names}
    assert not kernel & moved
    assert set(offline) - kernel == moved
    assert not same(before, made.critics.state_dict())
    assert all(p.grad is None for p in [*agent.parameters(), *made.critics.parameters()])
    assert all(p.requires_grad for p in made.critics.parameters())


def test_an_actor_step_leaves_the_critics_and_uphill_goes_the_actor(memory: Replay) -> None:
    agent = actor()
    made = learner(agent, warmup=0, actor_lr=1e-3)
    batch, critics = memory.draw(0, 64), tensors_of(made.critics)
    values = [made._actor_step(0, batch)["actor_value"] for _ in range(30)]
    assert same(critics, made.critics.state_dict()) == list(critics)
    assert values[-1] > values[0]


def test_critics_learn_one_step_targets_to_terminations_alone(memory: Replay) -> None:
    agent = actor()
    made = learner(agent, gamma=0.5, critics=2)
    t = memory.draw(0, 50)
    with torch.no_grad():
        a = made.target_actor.act_with_grad(t.next_state, t.next_step)
        seen = torch.cat([t.next_step.observation, t.next_step.rtg[:, None] / 10], 1)
        future = torch.minimum(*(q(seen, a) for q in made.target_critics))
        target = t.reward / 2 + 0.5 * torch.where(t.terminated, 0.0, future)
        seen = torch.cat([t.step.observation, t.step.rtg[:, None] / 10], 1)
        errors = torch.stack([q(seen, t.action) - target for q in made.critics])
    assert made._critic_step(0, t)["loss"] == pytest.approx(float(errors.square().mean()))
    assert t.terminated.any()
    assert ((t.next_step.timestep == LENGTH) & ~t.terminated).any()


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_slow_copies(memory: Replay, tau: float) -> None:
    agent = actor()
    made = learner(agent, tau=tau, copy_every=4, warmup=5)
    for u in range(12):
        slow = [tensors_of(made.target_critics), tensors_of(made.target_actor)]
        made.update(u, [memory.draw(u, 16)])
        fast = [made.critics.state_dict(), agent.state_dict()]
        now = [made.target_critics.state_dict(), made.target_actor.state_dict()]
        number = u + 1
        held = [False, number <= 5]
        for i in range(2):
            for name, value in now[i].items():
                if tau == 0:
                    copied = number % 4 == 0 and not held[i]
                    assert torch.equal(value, (fast if copied else slow)[i][name]), (u, i, name)
                else:
                    wanted = slow[i][name] if held[i] else slow[i][name].lerp(fast[i][name], 0.1)
                    assert torch.allclose(value, wanted, atol=1e-7), (u, i, name)


def test_critic_steps_of_a_warm_up_and_sparse_actor_steps(memory: Replay) -> None:
    agent = actor()
    made = learner(agent, warmup=2, actor_every=3)
    acted = ["actor_value" in made.update(u, [memory.draw(u, 8)]) for u in range(9)]
    assert acted == [False, False, False, True, False, False, True, False, False]
    steps = made.optimizer.state[next(iter(made.critics.parameters()))]["step"]
    assert float(steps) == 9
    made.update(9, [memory.draw(9, 8), memory.draw(10, 8)])
    assert float(made.optimizer.state[next(iter(made.critics.parameters()))]["step"]) == 11


def test_the_actor_learns_more_slowly_and_the_learner_can_be_restored(memory: Replay) -> None:
    made = learner(actor(), actor_lr=1e-5)
    scales = {g["lr_scale"] for g in made.optimizer.param_groups[:-1]}
    assert sorted(scales) == pytest.approx([1e-2])
    for u in range(6):
        made.update(u, [memory.draw(u, 16)])
    saved = copy.deepcopy(made.tensors())
    weights = tensors_of(made.actor)
    after = made.update(6, [memory.draw(6, 16)])
    other = learner(actor(), actor_lr=1e-5)
    other.actor.load_state_dict(weights)
    other.restore(saved)
    assert other.update(6, [memory.draw(6, 16)]) == after
    with pytest.raises(SeqrlError, match="does not fit"):
        learner(actor(), critics=1).restore(saved)


def test_critics_see_what_they_should() -> None:
    inputs, action = torch.randn(5, 4), torch.randn(5, 2)
    for kind in ("mlp", "ds4_resnet"):
        blind, seeing = (build_critic(kind, 3, 2, see) for see in (False, True))
        other = inputs.clone()
        other[:, -1] += 1
        assert blind(inputs, action).shape == (5,)
        assert torch.equal(blind(inputs, action), blind(other, action))
        assert not torch.equal(seeing(inputs, action), seeing(other, action))
        assert not torch.equal(blind(inputs, action), blind(inputs, action + 1))
    assert MLPCritic(3, 2).hidden1.in_features == 5
    with pytest.raises(SeqrlError, match="no critic 'mpl'"):
        build_critic("mpl", 3, 2, False)


def test_an_actors_gradient_reaches_its_weights_but_not_its_state(memory: Replay) -> None:
    agent, t = actor(), memory.draw(0, 8)
    agent.act_with_grad(t.state, t.step).sum().backward()
    assert agent.blocks[0].core.C.grad is not None
    leaves: list[Tensor] = []
    map_states(lambda x: (leaves.append(x), x)[1], t.state)
    assert not any(x.requires_grad for x in leaves)


# --- whole runs --------------------------------------------------------------------------------

BC: dict[str, Any] = {
    "method": "weighted_bc", "steps": 12, "collect_every": 4, "collect_episodes": 3,
    "first_episodes": 5, "eval_every": 6, "save_every": 4, "log_every": 2, "device": "cpu",
}  # fmt: skip
AC: dict[str, Any] = {
    **BC, "method": "actor_critic", "batch_size": 16, "ac": {"warmup": 4, "actor_every": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Decision S4 run in the reaching task."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQRL_HOME", str(folder / "home"))
        return offline_run(folder, "decision_s4", agent_config={**SMALL, "n_layer": 1})


def tune(source: Path, out: Path, settings: dict[str, Any], **options: Any) -> ft.FinetuneRun:
    t = ft.prepare(source, FinetuneConfig.from_json(settings), eval_episodes=3, **options)
    return ft.run_finetune(t, out=out)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def weights(folder: Path) -> bytes:
    return (find_checkpoint(folder) / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("settings", [BC, AC], ids=["weighted_bc", "actor_critic"])
def test_a_run_is_recorded_and_repeats(offline: Path, tmp_path: Path, settings: Any) -> None:
    source = weights(offline)
    runs = [tune(offline, tmp_path / name, settings) for name in ("a", "b")]
    a, b = (r.folder.dir for r in runs)
    assert weights(offline) == source
    assert weights(a) == weights(b) != source
    assert rows(a) == rows(b)
    found = rows(a)
    assert [r["step"] for r in found] == [0, 2, 4, 6, 8, 10, 12]
    assert {"eval/score", "eval/return[6.0]"} <= set(found[0])
    assert {"collect/return", "collect/target", "collect/noise", "env_steps"} <= set(found[1])
    assert found[1]["collect/noise"] == pytest.approx(0.2)
    assert found[-1]["collect/noise"] == pytest.approx(0.1)
    names = {p.name for p in (a / "eval").iterdir()}
    assert names == {"before.json", "final.json", *(f"step_{n:07d}.json" for n in (0, 6, 12))}
    assert (find_checkpoint(a, "step_0000012") / "trainer.json").is_file()
    record = json.loads((a / "run.json").read_text())
    assert record["status"] == "done"
    summary = record["summary"]
    assert summary["method"] == settings["method"]
    assert summary["env_steps"] == found[-1]["env_steps"]
    assert summary["before"][0]["return"] == runs[0].before.summary[0]["return"]
    assert summary["final"][0]["n"] == 4
    # The first point of the curve is the offline policy, and it may stay the best.
    assert find_checkpoint(a, "best").name in {"step_0000000", "step_0000006", "step_0000012"}
    agent, meta = load_agent(a)
    assert meta.step == 12
    assert meta.targets == ("6.0",)
    assert isinstance(agent, DecisionS4)
    assert all(p.requires_grad for p in agent.parameters())


def test_before_and_after_are_what_eval_says(offline: Path, tmp_path: Path) -> None:
    import seqrl

    run = tune(offline, tmp_path / "a", BC)
    for place, report in ((offline, run.before), (run.folder.dir, run.final)):
        assert seqrl.evaluate(place).episodes == report.episodes


def broken_at(step: int) -> Any:
    real = OnlineTrainer._update

    def update(self: OnlineTrainer) -> None:
        if self.step == step:
            raise KeyboardInterrupt
        real(self)

    return update


@pytest.mark.parametrize("step", [0, 6, 9])
def test_an_interrupted_run_ends_where_it_would_have(
    offline: Path, tmp_path: Path, monkeypatch: Any, step: int
) -> None:
    whole = tune(offline, tmp_path / "whole", BC)
    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "_update", broken_at(step))
        with pytest.raises(RunInterrupted) as e:
            tune(offline, tmp_path / "cut", BC)
    assert e.value.hint == f"seqrl finetune {tmp_path / 'cut'} --resume"
    run = ft.resume_finetune(tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert run.final.episodes == whole.final.episodes
    assert run.env_steps == whole.env_steps
    with pytest.raises(SeqrlError, match="is complete"):
        ft.resume_finetune(tmp_path / "cut")


def test_an_interrupted_actor_critic_goes_on(
    offline: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "_update", broken_at(9))
        with pytest.raises(RunInterrupted):
            tune(offline, tmp_path / "cut", AC)
    saved = torch.load(find_checkpoint(tmp_path / "cut") / "optimizer.pt", weights_only=True)
    assert {"critics", "target_critics", "target_actor", "optimizer"} <= set(saved)
    run = ft.resume_finetune(tmp_path / "cut")
    assert run.result.step == 12
    assert "computed anew" in (tmp_path / "cut" / "log.txt").read_text()
    with pytest.raises(SeqrlError, match="is no fine-tuning run"):
        ft.resume_finetune(offline)


def test_stopping_before_the_first_update_leaves_a_run_to_resume(
    offline: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("evaluate_agent", "_first_outcome", "_first_round"):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(ft, name, stop)
            with pytest.raises(RunInterrupted, match="outside training"):
                tune(offline, out, BC)
        assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    whole = tune(offline, tmp_path / "whole", BC)
    for name in ("evaluate_agent", "_first_outcome", "_first_round"):
        run = ft.resume_finetune(tmp_path / name)
        assert weights(tmp_path / name) == weights(tmp_path / "whole")
        assert run.before.episodes == whole.before.episodes


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(
    offline: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    real = ActorCriticLearner._critic_step

    def poisoned(self: ActorCriticLearner, update: int, t: Any) -> Any:
        t.reward[:] = torch.nan if update == 9 else t.reward
        return real(self, update, t)

    monkeypatch.setattr(ActorCriticLearner, "_critic_step", poisoned)
    with pytest.raises(RunFailed, match="NaN at step 10") as e:
        tune(offline, tmp_path / "run", AC)
    assert e.value.hint
    assert json.loads((tmp_path / "run/nan_step_0000010.json").read_text())["round"] == 2
    assert find_checkpoint(tmp_path / "run").name == "step_0000008"


@pytest.mark.parametrize("name", ["dt"])
def test_any_agent_takes_weighted_cloning_but_not_actor_critic(name: str, tmp_path: Path) -> None:
    source = offline_run(
        tmp_path, name, "ft/Pick-v0", agent_config={"context": 4, "width": 8, "n_layer": 1}
    )
    run = tune(source, tmp_path / "tuned", {**BC, "bc": {"offline": False, "keep": 6}})
    assert rows(run.folder.dir)[-1]["pool"] == 6
    with pytest.raises(SeqrlError, match=f"agent '{name}' has no actor-critic fine-tuning") as e:
        tune(source, tmp_path / "no", AC)
    assert e.value.hint == "use --method weighted_bc"
    assert not (tmp_path / "no").exists()


def test_choices_have_no_action_gradient(tmp_path: Path) -> None:
    source = offline_run(
        tmp_path, "decision_s4", "ft/Pick-v0", agent_config={**SMALL, "n_layer": 1}, steps=2
    )
    with pytest.raises(SeqrlError, match="needs continuous actions"):
        tune(source, tmp_path / "no", AC)
    assert tune(source, tmp_path / "yes", BC).result.step == 12


def test_another_environment(offline: Path, tmp_path: Path) -> None:
    settings = {**BC, "steps": 4, "env_kwargs": {"early": False}}
    run = tune(offline, tmp_path / "late", settings)
    assert run.final.env["kwargs"] == {"early": False}
    assert all(e["length"] == LENGTH for e in run.final.episodes)
    agent, _ = load_agent(tmp_path / "late")
    assert agent.tasks[0].env_kwargs == {"early": False}
    with pytest.raises(SeqrlError, match="env wants Discrete"):
        tune(offline, tmp_path / "no", {**BC, "env": "ft/Pick-v0"})


def test_data_that_are_gone_are_named(tmp_path: Path) -> None:
    source = offline_run(tmp_path, "decision_s4", agent_config={**SMALL, "n_layer": 1}, steps=2)
    (tmp_path / "ft-Reach-v0.npz").unlink()
    with pytest.raises(SeqrlError, match="the data of the run cannot be loaded") as e:
        tune(source, tmp_path / "no", BC)
    assert e.value.hint == "--bc.no-offline learns from new episodes alone"
    assert tune(source, tmp_path / "yes", {**BC, "bc": {"offline": False}}).result.step == 12


def test_later_rounds_ask_for_more_than_was_reached(offline: Path, tmp_path: Path) -> None:
    run = tune(offline, tmp_path / "a", {**BC, "target_margin": 0.5})
    found = rows(run.folder.dir)
    assert found[1]["collect/target"] == 6.0
    best = max(r["eval/return[6.0]"] for r in found if "eval/return[6.0]" in r and r["step"] <= 6)
    assert found[-1]["collect/target"] == pytest.approx(1.5 * best)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["weighted_bc", "actor_critic"])
def test_fine_tuning_improves_a_poor_policy(method: str, tmp_path: Path) -> None:
    source = offline_run(
        tmp_path,
        "decision_s4",
        steps=60,
        eval={"episodes": 40},
        agent_config={**SMALL, "width": 16},
    )
    settings = {
        "method": method, "steps": 600, "collect_every": 50, "collect_episodes": 10, "lr": 1e-3,
        "noise": ("0:0.4", "100%:0.1"), "device": "cpu", "bc": {"temperature": 0.1},
        "ac": {"warmup": 150, "actor_lr": 1e-3, "tau": 0.02, "gamma": 0.9},
    }  # fmt: skip
    run = tune(source, tmp_path / "tuned", settings)
    before, after = (r.summary[-1]["return"] for r in (run.before, run.final))
    assert after["ci"][0] > before["ci"][1], (before["mean"], after["mean"])


def test_tiny_data_of_the_battery_is_no_use_of_the_environment() -> None:
    data = tiny_data("continuous")
    spec, stats = data.task, data.stats
    agent = DecisionS4(DecisionS4Config(**SMALL), [spec], [stats])
    from seqrl.finetune.collecting import check_can_act

    with pytest.raises(SeqrlError, match="names no environment"):
        check_can_act(agent)
    agent.memory = "trial"  # type: ignore[misc]
    with pytest.raises(SeqrlError, match="remembers across episodes"):
        check_can_act(agent)

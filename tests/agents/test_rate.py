"""RATE: what the memory carries, in training and acting; its ablations; steps per segment."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from seqrl.agents.rate import RATE, RATEConfig
from seqrl.distributed import Processes
from seqrl.errors import SeqrlError
from seqrl.layers.state import map_states
from seqrl.layers.trxl import segment_mask
from seqrl.learner import Learner
from seqrl.optim import OptimConfig
from seqrl.spec import Batch, Step
from seqrl.testing.battery import build, steps_of, stream, tiny_data, whole_episodes

K = RATE.battery_config["segment"]
T = 14  # four segments of three steps and two steps more


def agent_and_batch(
    kind: str = "continuous", steps: int = T, rows: int = 3, **fields: object
) -> tuple[RATE, Batch]:
    """An agent in evaluation mode and windows of ``steps`` real steps each."""
    data = tiny_data(kind, seed=1)
    agent = build(RATE, data, **fields)
    assert isinstance(agent, RATE)
    long = build(RATE, data, segment=steps, segments=1)
    batch = whole_episodes(long, data, rows)
    batch.mask[:] = True
    batch.timesteps[:] = torch.arange(steps)
    return agent.eval(), batch


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


# --- information and gradients -----------------------------------------------------------------


@pytest.mark.parametrize("mem_len", [0, 14])
@torch.no_grad()
def test_nothing_leaks_from_the_future(mem_len: int) -> None:
    agent, batch = agent_and_batch(mem_len=mem_len)
    base = agent.predict(batch)
    for t in (1, K - 1, K, 2 * K + 1):
        moved = batch.map(lambda x: x.clone())
        moved.observations[:, t + 1 :] += 5
        moved.returns_to_go[:, t + 1 :] -= 3
        moved.actions[:, t:] *= -0.5
        assert gap(agent.predict(moved)[:, : t + 1], base[:, : t + 1]) == 0, t


@pytest.mark.parametrize("carried", [True, False])
@torch.no_grad()
def test_memory_alone_carries_the_first_segment_to_all_later_ones(carried: bool) -> None:
    agent, batch = agent_and_batch(mem_len=0, memory_tokens=2 if carried else 0)
    moved = batch.map(lambda x: x.clone())
    moved.observations[:, 0] += 3
    change = (agent.predict(moved) - agent.predict(batch)).abs().amax((0, 2))
    assert bool((change[K:] > 0).all()) is carried
    assert bool((change[:K] > 0).all())
    if not carried:
        assert float(change[K:].max()) == 0


@torch.no_grad()
def test_the_last_action_of_a_segment_is_written() -> None:
    agent, batch = agent_and_batch(mem_len=0)
    moved = batch.map(lambda x: x.clone())
    moved.actions[:, K - 1] *= -0.5
    change = (agent.predict(moved) - agent.predict(batch)).abs().amax((0, 2))
    assert float(change[:K].max()) == 0
    assert bool((change[K:] > 0).all())


def reach(agent: RATE, batch: Batch, segment: int) -> list[bool]:
    """Which segments' observations a segment's predictions send a gradient to."""
    moved = batch.map(lambda x: x.clone())
    moved.observations.requires_grad_()
    agent.predict(moved)[:, segment * K : (segment + 1) * K].square().sum().backward()
    grad = moved.observations.grad
    assert grad is not None
    return [bool((part != 0).any()) for part in grad[:, : 4 * K].split(K, 1)]


@pytest.mark.parametrize(
    ("bptt", "second", "third", "fourth"),
    [
        (None, [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]),
        (0, [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]),
        (1, [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]),
        (2, [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]),
        (9, [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]),
    ],
)
def test_gradients_reach_as_far_back_as_asked(
    bptt: int | None, second: list, third: list, fourth: list
) -> None:
    agent, batch = agent_and_batch(mem_len=0, memory_bptt=bptt)
    assert reach(agent, batch, 1) == list(map(bool, second))
    assert reach(agent, batch, 2) == list(map(bool, third))
    assert reach(agent, batch, 3) == list(map(bool, fourth))


def test_cached_states_send_no_gradient_back() -> None:
    agent, batch = agent_and_batch(memory_tokens=0, mem_len=20)
    assert reach(agent, batch, 1) == [False, True, False, False]
    moved = batch.map(lambda x: x.clone())
    moved.observations[:, 0] += 3  # but they are seen
    with torch.no_grad():
        assert gap(agent.predict(moved)[:, K], agent.predict(batch)[:, K]) > 0


def test_detached_memory_leaves_the_valve_without_gradients() -> None:
    """As released: nothing ever trains the valve, and the start vectors by the first segment."""
    for bptt, trained in ((None, True), (0, False)):
        agent, batch = agent_and_batch(mem_len=0, memory_bptt=bptt)
        agent.loss(batch).loss.backward()
        assert agent.valve is not None
        found = {p.grad is not None and bool(p.grad.any()) for p in agent.valve.parameters()}
        assert found == {trained}
        assert agent.first_memory is not None
        assert bool(agent.first_memory.grad.any())  # type: ignore[union-attr]


def test_rows_of_the_first_memory_differ_and_so_do_those_of_the_next() -> None:
    agent, batch = agent_and_batch(mem_len=0, memory_tokens=4)
    with torch.no_grad():
        _, state = stream(agent, steps_of(batch)[: K + 1])
    for m in (agent.first_memory, state["memory"][0]):
        assert m is not None
        assert float((m[0] - m[1]).detach().abs().max()) > 1e-3


# --- equal to simpler models -------------------------------------------------------------------


@torch.no_grad()
def test_one_segment_without_memory_is_a_causal_transformer_xl() -> None:
    agent, batch = agent_and_batch(segment=T, segments=1, memory_tokens=0, mem_len=0)
    x = agent._tokens(batch, torch.arange(3), slice(0, T))
    blocked = ~torch.ones(3 * T, 3 * T, dtype=torch.bool).tril()
    y, _ = agent.stack(x, blocked)
    assert gap(agent.predict(batch), agent.head(y[:, 1::3])) < 1e-5
    assert not [n for n, _ in agent.named_parameters() if "memory" in n or "valve" in n]


@pytest.mark.parametrize("valve", ["none", "ca2", "gru"])
@torch.no_grad()
def test_memory_is_the_recursion_written_out(valve: str) -> None:
    """With valve ``none`` this is the recurrent memory transformer."""
    agent, batch = agent_and_batch(mem_len=0, valve=valve)
    m, rows = 2, torch.arange(3)
    memory, out = agent.first_memory.expand(3, -1, -1), []  # type: ignore[union-attr]
    for begin in range(0, T, K):
        steps = slice(begin, min(begin + K, T))
        tokens = agent._tokens(batch, rows, steps)
        n = tokens.shape[1]
        x = torch.cat([memory, tokens, memory], 1)
        y, _ = agent.stack(x, segment_mask(0, m, n, m, False, "cpu"), ahead=m - 1)
        out.append(agent.head(y[:, m : m + n][:, 1::3]))
        written = y[:, m + n :]
        memory = written if valve == "none" else agent.valve.inner(written.relu(), memory)  # type: ignore[union-attr]
    assert gap(agent.predict(batch), torch.cat(out, 1)) < 1e-5


# --- acting ------------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, object]] = {
    "memory": {"mem_len": 0},
    "memory and cache": {"mem_len": 7},
    "cache longer than a segment": {"mem_len": 31},
    "memory reads cache": {"mem_len": 14, "memory_reads_cache": True},
    "cache alone": {"memory_tokens": 0, "mem_len": 10},
    "neither": {"memory_tokens": 0, "mem_len": 0},
    "one memory token": {"memory_tokens": 1},
    "many memory tokens": {"memory_tokens": 8, "mem_len": 3},
    "segments of one step": {"segment": 1},
    "long segment": {"segment": 20},
    "no returns": {"return_tokens": False},
    "no returns, no memory": {"return_tokens": False, "memory_tokens": 0, "mem_len": 0},
    "one layer": {"n_layer": 1},
    "one layer, cache alone": {"n_layer": 1, "memory_tokens": 0},
    "rmt": {"valve": "none", "mem_len": 0},
    "lstm valve": {"valve": "lstm"},
    "gate valve": {"valve": "gate"},
    "ca1": {"valve": "ca1", "valve_heads": 4, "valve_activation": "leaky_relu"},
    "gtrxl": {"layer": "gtrxl", "d_inner": 20},
    "trxl-i": {"layer": "trxl-i", "d_inner": 20, "memory_tokens": 0},
    "doubled": {"double_residual": True, "d_inner": 20, "d_head": 5},
    "tanh": {"embed_tanh": "all"},
}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_acting_equals_training_across_segments_and_in_a_partial_one(name: str) -> None:
    kind = "discrete" if len(name) % 2 else "continuous"
    agent, batch = agent_and_batch(kind, **SHAPES[name])
    stepped, _ = stream(agent, steps_of(batch))
    assert gap(stepped, agent.predict(batch)) < 1e-5


@torch.no_grad()
def test_images_cross_segments_too() -> None:
    agent, batch = agent_and_batch("image", steps=8)
    stepped, _ = stream(agent, steps_of(batch))
    assert gap(stepped, agent.predict(batch)) < 1e-5


def rows_at(steps: list[Step], here: list[int]) -> Step:
    """Row i of step ``here[i]``."""
    rows = [steps[h] for h in here]
    values = {
        f.name: torch.stack([getattr(s, f.name)[i] for i, s in enumerate(rows)])
        for f in dataclasses.fields(Step)
        if isinstance(getattr(rows[0], f.name), Tensor)
    }
    return Step(**values)


@pytest.mark.parametrize("fields", [{"mem_len": 0}, {"mem_len": 14}, {"memory_tokens": 0}])
@pytest.mark.parametrize("late", [1, 2, 4])
@torch.no_grad()
def test_rows_in_different_phases_do_not_touch_each_other(late: int, fields: dict) -> None:
    agent, batch = agent_and_batch(**fields)
    steps = steps_of(batch)
    alone, _ = stream(agent, steps)
    state = agent.initial_state(3)
    for t in range(T + late):
        here = [min(t, T - 1), max(t - late, 0), min(t, T - 1)]
        if t == late:
            state = agent.reset(state, torch.tensor([False, True, False]))
        y, state = agent.step(state, rows_at(steps, here))
        if t < T:
            assert torch.equal(y[[0, 2]], alone[[0, 2], t]), t
        if t >= late:
            assert torch.equal(y[1], alone[1, t - late]), t


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_work_of_a_border_done_at_every_step_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an exported graph, which cannot ask whether any row is at a border."""
    agent, batch = agent_and_batch(**SHAPES[name])
    steps, late = steps_of(batch), torch.tensor([0, 1, 2])
    runs = []
    for always in (False, True):
        monkeypatch.setattr("seqrl.agents.rate.exporting", lambda always=always: always)
        state, out = agent.initial_state(3), []
        for t in range(T):
            if t in late:
                state = agent.reset(state, late == t)
            y, state = agent.step(state, rows_at(steps, (t - late).clamp(min=0).tolist()))
            out.append(y)
        runs.append(torch.stack(out))
    assert torch.equal(*runs)


@torch.no_grad()
def test_a_cold_start_forgets_what_the_slots_hold() -> None:
    """Whatever keys and values were there cannot come back after a reset."""
    agent, batch = agent_and_batch()
    steps = steps_of(batch)
    fresh, state = stream(agent, steps)
    state = map_states(lambda x: x.fill_(1e4) if x.is_floating_point() else x, state)
    state = agent.reset(state, torch.ones(3, dtype=torch.bool))
    again, _ = stream(agent, steps, state)
    assert torch.equal(again, fresh)


def test_training_goes_on_after_acting() -> None:
    agent, batch = agent_and_batch()
    with torch.inference_mode():
        state = agent.initial_state(3)
        for s in steps_of(batch):
            _, state = agent.act(state, s)
    agent.train()
    agent.loss(batch).loss.backward()
    assert agent.stack.bias.grad is not None


@torch.no_grad()
def test_the_target_begins_anew_with_every_segment() -> None:
    agent, batch = agent_and_batch(reset_target=True)
    plain, _ = agent_and_batch()
    plain.load_state_dict(agent.state_dict())
    batch.rewards[:] = 1.0
    batch.returns_to_go[:] = 50.0 - torch.arange(T).float()
    raised = batch.map(lambda x: x.clone())
    raised.returns_to_go[:] = 50.0 - (torch.arange(T) % K).float()
    stepped, _ = stream(agent, steps_of(batch))
    assert gap(stepped, plain.predict(raised)) < 1e-5
    assert gap(stepped, plain.predict(batch)) > 1e-4


# --- windows -----------------------------------------------------------------------------------


@torch.no_grad()
def test_rows_that_have_ended_are_left_out_without_changing_the_others() -> None:
    agent, batch = agent_and_batch(rows=4)
    lengths = [T, 2, K, 2 * K + 1]
    for i, n in enumerate(lengths):
        batch.mask[i, n:] = False
    together = agent.predict(batch)
    for i, n in enumerate(lengths):
        alone = agent.predict(batch[i : i + 1])
        assert gap(together[i, :n], alone[0, :n]) < 1e-6
    seen: list[int] = []
    forward = agent.stack.forward
    agent.stack.forward = lambda x, *a, **k: (seen.append(len(x)), forward(x, *a, **k))[1]  # type: ignore[method-assign]
    agent.predict(batch)
    assert seen == [4, 2, 2, 1, 1]
    seen.clear()
    batch.mask[:, 2:] = False  # nothing but padding after the first segment
    out = agent.loss(batch)
    assert seen == [4]
    assert bool(torch.isfinite(out.loss))
    assert float(out.count) == 4 * 2 * 2  # rows, steps, action dimensions


def test_window_is_segments_times_steps() -> None:
    w = RATEConfig(segment=7, segments=4, windows="episode_start").window()
    assert (w.kind, w.length) == ("episode_start", 28)


# --- a step a segment --------------------------------------------------------------------------


def learner(agent: RATE) -> Learner:
    optim = OptimConfig(lr=1e-2, weight_decay=0.1, grad_clip=1.0)
    return Learner(
        agent, optim, steps=10, seed=0, precision="fp32", device=torch.device("cpu"),
        processes=Processes.from_env(),
    )  # fmt: skip


def test_published_mode_takes_a_step_a_segment() -> None:
    fields = {"memory_bptt": 0, "step_per_segment": True, "mem_len": 5}
    agent, batch = agent_and_batch(**fields)
    by_hand, _ = agent_and_batch(**fields)
    batch.mask[0, K:] = False
    values = learner(agent.train()).update(0, batch)

    by_hand.train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    losses, counts, memory, past = [], [], None, None
    for begin in range(0, T, K):
        steps = slice(begin, min(begin + K, T))
        rows = torch.arange(3)[batch.mask[:, begin]]
        if memory is None:
            memory = by_hand.first_memory.expand(3, -1, -1)  # type: ignore[union-attr]
        elif len(memory) > len(rows):
            memory, past = memory[rows], [p[rows] for p in past or []]
        tokens = by_hand._tokens(batch, rows, steps)
        y, memory, past = by_hand._segment(tokens, memory.detach(), past, write=begin + K < T)
        if begin == 0:  # the start vectors are learned by the first segment
            first = by_hand._fresh_memory(3)
            y = by_hand._segment(tokens, first, None, write=True)[0]
        error = (by_hand.head(y) - batch.actions[rows, steps]).square()
        loss = error.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()) * error.numel())
        counts.append(error.numel())
    assert len(losses) == 5
    assert values["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
    for (name, a), b in zip(agent.named_parameters(), by_hand.parameters(), strict=True):
        assert gap(a, b) < 2e-5, name


def test_published_mode_never_moves_the_valve() -> None:
    agent, batch = agent_and_batch(memory_bptt=0, step_per_segment=True)
    before = {n: p.detach().clone() for n, p in agent.named_parameters()}
    own = learner(agent.train())
    for u in range(3):
        own.update(u, batch)
    still = {n for n, p in agent.named_parameters() if torch.equal(p, before[n])}
    assert still == {n for n in before if n.startswith("valve.")}


def test_without_it_there_is_one_loss_a_batch() -> None:
    agent, batch = agent_and_batch()
    assert agent.losses(batch) is None


def test_equal_seeds_train_equal_agents() -> None:
    results = []
    for _ in range(2):
        agent, batch = agent_and_batch(dropout=0.2, attn_dropout=0.1)
        own = learner(agent.train())
        losses = [own.update(u, batch)["loss"] for u in range(3)]
        results.append((losses, torch.cat([p.detach().flatten() for p in agent.parameters()])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 0}, "segment is 0"),
        ({"memory_tokens": -1}, "memory_tokens is -1"),
        ({"n_head": 3}, "n_head is 3, must be a divisor of 128, or d_head given"),
        ({"valve_heads": 5}, "valve_heads is 5"),
        ({"memory_bptt": -1}, "memory_bptt is -1"),
        ({"step_per_segment": True}, "memory_bptt is None, must be 0 with step_per_segment"),
        ({"layer": "gtrxl", "double_residual": True}, "double_residual is True"),
        ({"attn_dropout": 1.0}, "attn_dropout is 1.0"),
    ],
)
def test_bad_settings_name_value_and_range(fields: dict, message: str) -> None:
    with pytest.raises(SeqrlError, match=message):
        RATEConfig(**fields)

"""The promises every agent keeps, as checks that need nothing but the agent's class.

A registered agent is tested by being registered; for your own, run::

    from seqrl.testing.battery import CHECKS, KINDS
    for check in CHECKS:
        check(MyAgent, "discrete")

Each check raises AssertionError with what was broken. Tolerances are the agent's own
(``Agent.tolerance``).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrl.agents.agent import Agent, config_from_json
from seqrl.datasets.sampling import Sampler
from seqrl.datasets.trajectories import Trajectories
from seqrl.errors import SeqrlError
from seqrl.layers.state import map_states
from seqrl.spec import Batch, Step, WindowSpec

KINDS = ("continuous", "discrete", "image")


# --- what the checks work on -------------------------------------------------------------------


def tiny_data(kind: str, episodes: int = 12, seed: int = 0, longest: int = 20) -> Trajectories:
    """Random episodes of unequal length: vectors with Box or Discrete actions, or images.

    They form learning histories of four episodes, one a task; what was done counts as optimal.
    """
    rng = np.random.default_rng(seed)
    eps = []
    for _ in range(episodes):
        t = int(rng.integers(2, longest + 1))
        if kind == "image":
            obs = rng.integers(0, 256, (t + 1, 8, 8, 3), dtype=np.uint8)
        else:
            obs = rng.normal(size=(t + 1, 5)).astype(np.float32)
        if kind == "continuous":
            actions: Any = rng.uniform(-0.9, 0.9, (t, 2)).astype(np.float32)
        else:
            actions = rng.integers(0, 3, t)
            actions[0] = 2
        rewards = rng.normal(size=t).astype(np.float32)
        terminated = bool(rng.random() < 0.5)
        eps.append(
            {"observations": obs, "actions": actions, "rewards": rewards, "terminated": terminated}
        )
    data = Trajectories.from_episodes(eps, name=f"tiny-{kind}")
    number = np.arange(episodes)
    return dataclasses.replace(
        data,
        extras={"optimal_action": data.actions.copy()},
        episode_task=number // 4,
        episode_order=number % 4,
        validated=False,
    )


def build(cls: type[Agent], data: Trajectories, *, default: bool = False, **fields: Any) -> Agent:
    """An agent of ``cls`` on the data, in its small battery config unless ``default``."""
    config = cls.config_class(**({} if default else {**cls.battery_config, **fields}))
    stats = dataclasses.replace(data.stats, custom=cls.statistics(config, data))
    torch.manual_seed(0)
    return cls(config, [data.task], [stats])


def serves(cls: type[Agent], kind: str) -> bool:
    """Whether the agent takes this kind of task; if not, its refusal must name the kind."""
    data = tiny_data(kind)
    try:
        cls.check_tasks([data.task])
    except SeqrlError as refusal:
        assert cls.name in refusal.message, "the refusal does not name the agent"
        return False
    return True


def whole_episodes(agent: Agent, data: Trajectories, rows: int = 4) -> Batch:
    """The first steps of several episodes, as many as the agent's window holds."""
    window = agent.config.window()
    length = window.length or int(data.lengths.max())
    spec = dataclasses.replace(window, kind="episode_start", length=length)
    return Sampler([data], spec, rows, seed=3).batch(0)


def steps_of(batch: Batch) -> list[Step]:
    """The batch as the steps an engine would hand to ``act``."""
    out = []
    for t in range(batch.mask.shape[1]):
        first = torch.full((batch.size,), t == 0)
        before = max(t - 1, 0)
        zero = 0 if t == 0 else 1
        out.append(
            Step(
                observation=batch.observations[:, t],
                prev_action=batch.actions[:, before] * zero,
                prev_reward=batch.rewards[:, before] * zero,
                rtg=batch.returns_to_go[:, t],
                timestep=torch.full((batch.size,), t),
                first=first,
                trial_first=first,
                prev_terminated=torch.zeros(batch.size, dtype=torch.bool),
                task=batch.task,
            )
        )
    return out


@torch.no_grad()
def stream(agent: Agent, steps: list[Step], state: Any = None) -> tuple[Tensor, Any]:
    """Predictions ``[B, T, ...]`` of stepping through, and the last state."""
    state = agent.initial_state(len(steps[0].rtg)) if state is None else state
    outputs = []
    for s in steps:
        y, state = agent.step(state, s)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def _step_rows(step: Step, rows: Any) -> Step:
    values = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
    return Step(**{k: v[rows] if isinstance(v, Tensor) else v for k, v in values.items()})


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _fit(agent: Agent, batches: Callable[[int], Batch], updates: int, lr: float) -> dict[str, Any]:
    agent.train()
    optimizer = torch.optim.AdamW(agent.parameter_groups(), lr=lr, weight_decay=0.0)
    metrics: dict[str, Any] = {}
    for u in range(updates):
        torch.manual_seed(u)
        out = agent.loss(batches(u))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
        optimizer.step()
        agent.after_update(u + 1)
        metrics = {"loss": float(out.loss.detach()), **out.metrics}
    return metrics


# --- the checks --------------------------------------------------------------------------------


@torch.no_grad()
def check_causality(cls: type[Agent], kind: str) -> None:
    """Changing step t changes no earlier prediction, and its action not even the one at t."""
    data = tiny_data(kind)
    agent = build(cls, data).eval()
    batch = whole_episodes(agent, data)
    base, t = agent.predict(batch), batch.mask.shape[1] // 2
    moved = copy.deepcopy(batch)
    if kind == "continuous":
        moved.actions[:, t] += 0.3
    else:
        moved.actions[:, t] = (moved.actions[:, t] + 1) % 3
    moved.rewards[:, t] += 1
    gap = _gap(base[:, : t + 1], agent.predict(moved)[:, : t + 1])
    assert gap <= cls.tolerance["causality"], f"the action at t changes predictions to t by {gap}"
    moved = copy.deepcopy(batch)
    noise = torch.randint(0, 99, moved.observations[:, t].shape).to(moved.observations.dtype)
    moved.observations[:, t] = moved.observations[:, t] + noise
    moved.returns_to_go[:, t] += 2
    after = agent.predict(moved)
    gap = _gap(base[:, :t], after[:, :t])
    assert gap <= cls.tolerance["causality"], f"step t changes earlier predictions by {gap}"
    assert _gap(base[:, t], after[:, t]) > 0, "the observation at t does not reach the prediction"


def check_padding(cls: type[Agent], kind: str) -> None:
    """What stands in padded steps, and how many there are, changes neither loss nor gradients."""
    data = tiny_data(kind)
    agent = build(cls, data)
    batch = whole_episodes(agent, data, rows=6)
    short = batch.map(lambda x: x.clone())
    short.mask[:, batch.mask.shape[1] // 2 :] = False
    noisy = copy.deepcopy(short)
    pad = ~noisy.mask
    noisy.observations[pad] = 7
    noisy.actions[pad] = 1
    noisy.rewards[pad] = 9.0
    noisy.returns_to_go[pad] = -5.0
    if noisy.next_observations is not None:
        noisy.next_observations[pad] = 3
    results = []
    for b in (short, noisy):
        torch.manual_seed(0)
        agent.zero_grad()
        out = agent.loss(b)
        out.loss.backward()
        grads = [p.grad.flatten() for p in agent.parameters() if p.grad is not None]
        results.append((out, torch.cat(grads)))
    (clean, grads_clean), (dirty, grads_dirty) = results
    tolerance = cls.tolerance["padding"]
    assert float(clean.count) == float(dirty.count), "padding is counted as valid"
    gap = _gap(clean.loss.detach(), dirty.loss.detach())
    assert gap <= tolerance, f"loss moves by {gap}"
    gap = _gap(grads_clean, grads_dirty)
    assert gap <= tolerance, f"gradients move by {gap}"


@torch.no_grad()
def check_streaming(cls: type[Agent], kind: str) -> None:
    """Stepping through an episode predicts what the whole window predicts, by every rule."""
    data = tiny_data(kind)
    agent = build(cls, data).eval()
    batch = whole_episodes(agent, data)
    whole = agent.predict(batch)
    for rule in cls.acting_rules:
        try:
            agent.set_acting(rule=rule)
        except SeqrlError:
            continue
        stepped, _ = stream(agent, steps_of(batch))
        gap = _gap((whole - stepped)[batch.mask], torch.zeros(()))
        assert gap <= cls.tolerance["streaming"], f"rule {rule}: step and window differ by {gap}"


@torch.no_grad()
def check_row_reset(cls: type[Agent], kind: str) -> None:
    """A reset row acts as a fresh one; the rows beside it are bit-equal to never having reset."""
    data = tiny_data(kind)
    agent = build(cls, data).eval()
    batch = whole_episodes(agent, data)
    steps = steps_of(batch)
    for rule in cls.acting_rules:
        try:
            agent.set_acting(rule=rule)
        except SeqrlError:
            continue
        _, state = stream(agent, steps)
        untouched = map_states(lambda x: x.clone(), state)
        rows = torch.tensor([True, False, True, False])
        state = agent.reset(state, rows)
        again, _ = stream(agent, steps, state)
        fresh, _ = stream(agent, steps)
        gap = _gap(again[rows], fresh[rows])
        assert gap == 0, f"rule {rule}: a reset row differs from a fresh one by {gap}"
        onward, _ = stream(agent, steps, untouched)
        gap = _gap(again[~rows], onward[~rows])
        assert gap == 0, f"rule {rule}: resetting a row moved its neighbours by {gap}"


@torch.no_grad()
def check_rows_independent(cls: type[Agent], kind: str) -> None:
    """Row i of n predicts what it would alone."""
    data = tiny_data(kind)
    agent = build(cls, data).eval()
    steps = steps_of(whole_episodes(agent, data))
    together, _ = stream(agent, steps)
    for i in range(2):
        alone, _ = stream(agent, [_step_rows(s, slice(i, i + 1)) for s in steps])
        gap = _gap(together[i : i + 1], alone)
        assert gap <= cls.tolerance["streaming"], f"row {i} alone differs by {gap}"


@torch.no_grad()
def check_recompute_forgets(cls: type[Agent], kind: str) -> None:
    """By rule ``recompute``, histories that agree on the last K steps predict the same."""
    if "recompute" not in cls.acting_rules:
        return
    length = build(cls, tiny_data(kind)).config.window().length
    if length is None:  # an agent of whole episodes has no K
        return
    data = tiny_data(kind, longest=3 * length)
    agent = build(cls, data).eval()
    agent.set_acting(rule="recompute")
    for module in agent.modules():  # small first weights would let little through to be seen
        if isinstance(module, torch.nn.Linear):
            module.weight.mul_(3)
    batch = Sampler([data], WindowSpec("episode_start", 3 * length), 4, seed=3).batch(0)
    other = copy.deepcopy(batch)
    old = slice(0, 2 * length)
    other.observations[:, old] = 1
    other.actions[:, old] = 1
    other.rewards[:, old] = 9.0
    other.returns_to_go[:, old] = -5.0
    one, two = (stream(agent, steps_of(b))[0] for b in (batch, other))
    assert _gap(one[:, old], two[:, old]) > 0, "the histories differ in no prediction"
    gap = _gap(one[:, -1], two[:, -1])
    assert gap <= cls.tolerance["streaming"], (
        f"what is older than the last {length} steps changes the prediction by {gap}"
    )


def check_config_json(cls: type[Agent], kind: str) -> None:
    """Configs survive JSON, and unknown fields are refused by name."""
    for config in (cls.config_class(), cls.config_class(**cls.battery_config)):
        back = config_from_json(cls.config_class, json.loads(json.dumps(config.to_json())))
        assert back == config, f"{config} became {back}"
    try:
        config_from_json(cls.config_class, {"no_such_field": 1})
    except SeqrlError as e:
        assert "no_such_field" in e.message
    else:
        raise AssertionError("an unknown config field was accepted")


def check_gradients(cls: type[Agent], kind: str) -> None:
    """Every trainable parameter of the default config moves within three updates."""
    data = tiny_data(kind, episodes=40, longest=60)
    agent = build(cls, data, default=True)
    sampler = Sampler([data], agent.config.window(), 16, seed=1)
    moved: set[str] = set()
    optimizer = torch.optim.SGD([p for p in agent.parameters() if p.requires_grad], lr=0.1)
    for u in range(3):
        torch.manual_seed(u)
        optimizer.zero_grad()
        agent.loss(sampler.batch(u)).loss.backward()
        moved |= {
            n
            for n, p in agent.named_parameters()
            if p.grad is not None and bool(p.grad.abs().sum() > 0)
        }
        optimizer.step()
        agent.after_update(u + 1)
    missing = {n for n, p in agent.named_parameters() if p.requires_grad} - moved
    assert not missing, f"no gradient in three updates: {sorted(missing)}"


def check_overfits(cls: type[Agent], kind: str) -> None:
    """Four episodes are learned by heart, by the agent's own declared measure."""
    data = tiny_data(kind, episodes=4, longest=6)
    agent = build(cls, data)
    sampler = Sampler([data], agent.config.window(), 32, seed=2)
    measure, enough = cls.overfit_measure
    for lr in (3e-3, 1e-3, 3e-4):
        metrics = _fit(agent, sampler.batch, 150, lr)
        if float(metrics[measure]) < enough:
            return
    raise AssertionError(f"{measure} is {float(metrics[measure]):.3f}, should fall below {enough}")


def check_deterministic(cls: type[Agent], kind: str) -> None:
    """Same seed, same weights and losses, dropout included."""
    data = tiny_data(kind)
    results = []
    for _ in range(2):
        agent = build(cls, data, dropout=0.2) if _has_dropout(cls) else build(cls, data)
        sampler = Sampler([data], agent.config.window(), 8, seed=5)
        metrics = _fit(agent, sampler.batch, 3, 1e-3)
        results.append((metrics["loss"], [p.detach().clone() for p in agent.parameters()]))
    assert results[0][0] == results[1][0], f"losses differ: {results[0][0]} {results[1][0]}"
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def _has_dropout(cls: type[Agent]) -> bool:
    return any(f.name == "dropout" for f in dataclasses.fields(cls.config_class))


def check_bf16(cls: type[Agent], kind: str) -> None:
    """Loss and gradients stay finite under bf16 autocast."""
    data = tiny_data(kind)
    agent = build(cls, data)
    sampler = Sampler([data], agent.config.window(), 8, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        out = agent.loss(sampler.batch(0))
    out.loss.backward()
    assert bool(torch.isfinite(out.loss)), "loss is not finite"
    for name, p in agent.named_parameters():
        assert p.grad is None or bool(torch.isfinite(p.grad).all()), f"gradient of {name}"


_CHILD = """
import sys, torch, importlib
sys.path[:0] = {path!r}
importlib.import_module({module!r})
from seqrl.checkpoint import load_agent
from seqrl.testing.battery import steps_of, stream, tiny_data, whole_episodes
agent, _ = load_agent({folder!r}, trust=True)
agent.eval()
data = tiny_data({kind!r})
torch.save(stream(agent, steps_of(whole_episodes(agent, data)))[0], {out!r})
"""


def check_save_load(cls: type[Agent], kind: str) -> None:
    """A saved agent, loaded in a new process, predicts bit for bit the same."""
    from seqrl.checkpoint import PolicyMeta, save_checkpoint

    data = tiny_data(kind)
    agent = build(cls, data)
    sampler = Sampler([data], agent.config.window(), 8, seed=5)
    _fit(agent, sampler.batch, 2, 1e-3)
    agent.eval()
    here, _ = stream(agent, steps_of(whole_episodes(agent, data)))
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "out.pt"
        folder = save_checkpoint(Path(tmp), agent, PolicyMeta.of(agent, step=2))
        code = _CHILD.format(
            path=sys.path, module=cls.__module__, folder=str(folder), kind=kind, out=str(out)
        )
        threads = str(torch.get_num_threads())
        env = {"OMP_NUM_THREADS": threads, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        there = torch.load(out, weights_only=True)
    assert torch.equal(here, there), f"predictions differ by {_gap(here, there)}"


CHECKS: tuple[Callable[[type[Agent], str], None], ...] = (
    check_causality,
    check_padding,
    check_streaming,
    check_row_reset,
    check_rows_independent,
    check_recompute_forgets,
    check_config_json,
    check_gradients,
    check_overfits,
    check_deterministic,
    check_bf16,
    check_save_load,
)
